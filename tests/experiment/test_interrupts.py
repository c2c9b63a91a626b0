"""Ctrl-C (experiment/interrupts.py): one line, exit code 130 and no traceback, whatever the main thread is in.

Each test sends SIGINT to a process of its own, once that has said that it is where it shall be.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGINT is sent as POSIX does")

HEAD = """
import hashlib, os, sys, time
from experiment.interrupts import answer_while_importing, answering
def ready(): print("ready", flush=True)
"""
LONG_STEP = HEAD + """
def main():
    ready()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes outside of Python, in one step
sys.exit(answering(main, lambda: WORDS))
"""
STUCK = HEAD + """
def main():
    try:
        ready()
        while True: pass
    except KeyboardInterrupt:
        print("again", flush=True)
        while True: pass  # cleans up for ever
sys.exit(answering(main, lambda: "the words"))
"""
OUTSIDE = HEAD + """
def main():
    ready()
    while True: pass  # an interrupt that main has no answer to
sys.exit(answering(main, lambda: "the words"))
"""
DROPPED = HEAD + """
class Odd:
    def __del__(self):
        ready()
        time.sleep(600)  # Python drops what is raised here
def main():
    Odd()
    while True: pass
sys.exit(answering(main, lambda: "the words"))
"""
CAUGHT = HEAD + """
def main():
    try:
        ready()
        time.sleep(600)
    except BaseException:
        pass  # code of others
    while True: pass
sys.exit(answering(main, lambda: "the words"))
"""
FORKING = HEAD + """
def main():
    if os.fork() == 0:  # nothing of Python's knows it yet, as a worker that is just being started
        time.sleep(30)
        os.write(2, b"still there")
        os._exit(0)
    ready()
    while True: pass
sys.exit(answering(main, lambda: "the words"))
"""
LATE = HEAD + """
def main():
    try:
        ready()
        while True: pass
    except KeyboardInterrupt:
        time.sleep(3.2)  # until the process is being ended by force, and its words are being made
        print("run.py: interrupted; told by main", file=sys.stderr)
        return 130
sys.exit(answering(main, lambda: time.sleep(60)))
"""
JUST_FORKED = HEAD + """
import signal
def main():
    child = os.fork()
    if child == 0:
        HANDLER()  # as if Ctrl-C had come before it was deaf to it
        os._exit(7)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print("run.py: interrupted; told by main" if code == 7 else code, file=sys.stderr)
    return 130
def keep(number, handler, put=signal.signal):
    global HANDLER
    HANDLER = HANDLER or (handler if callable(handler) else None)
    return put(number, handler)
HANDLER, signal.signal = None, keep
sys.exit(answering(main, lambda: "the words"))
"""
IMPORTING = HEAD + """
answer_while_importing()
ready()
while True: pass
"""
AFTERWARDS = HEAD + """
import atexit
atexit.register(lambda: (ready(), time.sleep(1)))
sys.exit(answering(lambda: 3, lambda: "the words"))
"""
WORKERS = HEAD + """
import torch
from torch.utils.data import DataLoader
class Slow(torch.utils.data.Dataset):
    def __len__(self): return 1000
    def __getitem__(self, i): time.sleep(0.05); return i
def main():
    try:
        for i, _ in enumerate(DataLoader(Slow(), num_workers=2, multiprocessing_context="fork")):
            if i == 3: ready()
    except KeyboardInterrupt:
        print("run.py: interrupted; told by main", file=sys.stderr)
        return 130
sys.exit(answering(main, lambda: "the words"))
"""


def interrupted(code: str, times: int = 1, group: bool = False, ignored: bool = False) -> tuple[int, str]:
    """Exit code and stderr of a process that got SIGINT at each of the first lines that it printed."""
    kept = signal.SIG_IGN if ignored else signal.default_int_handler
    process = subprocess.Popen([sys.executable, "-B", "-c", code], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, kept),
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        for _ in range(times):
            assert process.stdout.readline(), "it has ended before it was ready"
            (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
        return process.wait(timeout=60), process.stderr.read()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("code, words, times", [
    (LONG_STEP.replace("WORDS", "'the words'"), "the words", 1),
    (LONG_STEP.replace("WORDS", "time.sleep(60)"), "what was written is whole", 1),
    (LONG_STEP.replace("WORDS", "1 / 0"), "what was written is whole", 1),
    (STUCK, "the words", 2), (OUTSIDE, "the words", 1), (IMPORTING, "nothing had begun", 1), (DROPPED, "the words", 1),
    (CAUGHT, "the words", 1), (FORKING, "the words", 1)],
    ids=["long step", "words that wait", "words that fail", "twice", "outside", "importing", "dropped", "caught",
         "forking"])
def test_an_interrupt_is_one_line_and_130(code, words, times):
    """R3: in one long step, where main does not come back or has no answer, while libraries load, and where the
    KeyboardInterrupt comes to nothing, the process ends all the same, and what it has just forked ends with it."""
    assert interrupted(code, times) == (130, f"run.py: interrupted; {words}\n")


def test_of_several_processes_the_first_tells(monkeypatch):
    """R3: another one, as torchrun numbers them, ends without a word."""
    monkeypatch.setenv("RANK", "1")
    assert interrupted(IMPORTING) == (130, "")


def test_an_interrupt_of_all_processes():
    """R3: a terminal sends Ctrl-C to the workers that decode too, which leave the answer to main, in its process."""
    assert interrupted(WORKERS, group=True) == (130, "run.py: interrupted; told by main\n")


def test_who_comes_late_tells_nothing():
    """R3: where main has told it while the process was about to end by force, that is the one line."""
    assert interrupted(LATE) == (130, "run.py: interrupted; told by main\n")


def test_a_process_that_was_just_forked_tells_nothing():
    """R3: Ctrl-C may reach it before it is deaf to it; the answer stays with the process that forked it."""
    found = subprocess.run([sys.executable, "-B", "-c", JUST_FORKED], cwd=ROOT, text=True, capture_output=True,
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    assert (found.returncode, found.stderr) == (130, "run.py: interrupted; told by main\n")


def test_an_interrupt_after_the_work_changes_nothing():
    """R3: while Python ends, there is nothing to interrupt any more."""
    assert interrupted(AFTERWARDS) == (3, "")


def test_what_a_shell_runs_in_the_background_is_not_interrupted():
    """R3: where Ctrl-C was switched off for it, as by nohup or a script's &, it stays off."""
    code = HEAD + "answer_while_importing()\nsys.exit(answering(lambda: (ready(), time.sleep(0.5))[0] or 4, None))"
    assert interrupted(code, ignored=True) == (4, "")
