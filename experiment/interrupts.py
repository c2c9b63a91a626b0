"""Ctrl-C, answered within seconds whatever the main thread is in: one line, exit code 130, no traceback.

    sys.exit(answering(lambda: main(argv), lambda: "nothing is left"))       # KeyboardInterrupt, as ever, or by force
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time

GRACE = 1.0  # seconds in which the main thread may come back to Python, which raises KeyboardInterrupt in it
LATE = 3.0  # seconds in which it may then clean up
CODE = 130  # what a shell gives for a program that Ctrl-C has ended


def leave(text: str) -> None:
    """End the process now, with a line on stderr; files are written whole or not at all, so none stays half."""
    if os.environ.get("RANK", "0") == "0":  # of several processes the first one tells
        with contextlib.suppress(OSError):
            os.write(2, f"run.py: interrupted; {text}\n".encode(errors="backslashreplace"))
    end(CODE)


def words_of(what_is_left) -> str:
    """What what_is_left() gives, within GRACE seconds: the main thread may hold what it waits for, as in an import."""
    found = []

    def ask() -> None:
        with contextlib.suppress(Exception):
            found.append(what_is_left())

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(GRACE)
    return found[0] if found else "what was written is whole"


def answer_while_importing() -> None:
    """Leave at Ctrl-C with a line, from now until `answering`; what runs in the background with Ctrl-C off keeps so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: leave("nothing had begun"))


def answering(main, what_is_left) -> int:
    """Call main() and return what it does; at Ctrl-C it gets a KeyboardInterrupt, or the process ends by force.

    main lets the KeyboardInterrupt pass. It is told here, once, and the process ends with that, before anything else is
    destroyed.
    Python raises KeyboardInterrupt between two of its own steps. One step of a large network, or the import of a
    library, can take far longer than a user waits; then a thread that the signal itself wakes ends the process after
    GRACE seconds, and LATE seconds later where the KeyboardInterrupt has come to nothing: code of others may catch it,
    and what is raised while an object is destroyed, as the workers of a pass are, Python itself drops. So does a second
    Ctrl-C, while the first is being answered. Processes that are forked leave the answer to this one, and end with it.
    Args: what_is_left: gives the words of the line.
    """
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        return main()
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    raised, over, mine, parent = threading.Event(), threading.Event(), os.getpid(), os.getpid()
    ending = threading.RLock()  # who has it ends the process; a second Ctrl-C finds it with the same thread

    def tell_and_end() -> None:
        if ending.acquire(blocking=False):
            leave(words_of(what_is_left))
        threading.Event().wait()  # another thread is at it

    def handle(*_) -> None:
        if os.getpid() != mine:
            return  # just forked, and not yet deaf to it
        if raised.is_set():
            tell_and_end()
        raised.set()
        raise KeyboardInterrupt

    def listen() -> None:
        with woken:
            while number := woken.recv(1):
                if number[0] == signal.SIGINT and not (raised.wait(GRACE) and over.wait(LATE)):
                    tell_and_end()

    def forking() -> None:
        nonlocal parent
        parent = os.getpid()

    def forked() -> None:
        alone()
        end_with(parent)

    def dropped(what, otherwise=sys.unraisablehook) -> None:
        if issubclass(what.exc_type, KeyboardInterrupt):
            tell_and_end()
        otherwise(what)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    signal.signal(signal.SIGINT, handle)
    signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    sys.unraisablehook = dropped
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=forking, after_in_child=forked)
    try:
        try:
            code = main()
        finally:
            alone()  # nothing is left to do but to end
            if raised.is_set():
                flush()  # as long as the other thread would end a process whose reader does not read
            ending.acquire()  # where that thread is at it, whatever has become of main meanwhile is nobody's business
    except KeyboardInterrupt:
        tell_and_end()
    over.set()
    wakes.close()
    listener.join(GRACE)  # it reads the end, and closes its own
    if raised.is_set():
        end(code)
    return code


def flush() -> None:
    """Write what was printed, as far as somebody reads it."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def end(code: int) -> None:
    """End at once: taking a large library apart again can take as long as a user waits.

    torch raises an error in the main thread where a worker dies that it still waits for; nobody shall read of that.
    """
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)


def end_with(parent: int) -> None:
    """Let a thread end this forked process within a second of its parent, which cannot end one that it is just forking.

    Such a one would hold the terminal or a pipe for ever: the workers of torch note whose they are only once they run.
    """
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(CODE)

    threading.Thread(target=watch, daemon=True).start()


def alone() -> None:
    """Let Ctrl-C pass by, and wake nobody."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
