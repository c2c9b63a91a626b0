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

SCRIPT = """
import atexit, hashlib, os, signal, sys, time
from experiment.interrupts import answer_while_importing, answering
def ready(): print("ready", flush=True)
def what_is_left(): return "the words"
BODY
sys.exit(answering(main, what_is_left))
"""
LONG_STEP = """
def main():
    ready()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes outside of Python, in one step
"""
SLOW_WORDS = LONG_STEP + "def what_is_left(): time.sleep(60)"
NO_WORDS = LONG_STEP + "def what_is_left(): 1 / 0"
STUCK = """
def main():
    try:
        ready()
        while True: pass
    except KeyboardInterrupt:
        print("again", flush=True)
        while True: pass  # cleans up for ever
"""
DROPPED = """
class Odd:
    def __del__(self):
        ready()
        time.sleep(600)  # Python drops what is raised here
def main():
    Odd()
    while True: pass
"""
CAUGHT = """
def main():
    try:
        ready()
        time.sleep(600)
    except BaseException:
        pass  # code of others
    while True: pass
"""
FORKING = """
def main():
    if os.fork() == 0:  # nothing of Python's knows it yet, as a worker that is just being started
        time.sleep(30)
        os.write(2, b"still there")
        os._exit(0)
    ready()
    while True: pass
"""
JUST_FORKED = """
def main():
    child = os.fork()
    if child == 0:
        HANDLER()  # as if Ctrl-C had come before it was deaf to it
        os._exit(7)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    raise KeyboardInterrupt if code == 7 else RuntimeError(code)
def keep(number, handler, put=signal.signal):
    global HANDLER
    HANDLER = HANDLER or (handler if callable(handler) else None)
    return put(number, handler)
HANDLER, signal.signal = None, keep
"""
IMPORTING = """
answer_while_importing()
ready()
while True: pass
"""
AFTERWARDS = """
atexit.register(lambda: (ready(), time.sleep(1)))
def main(): return 3
"""
BACKGROUND = """
answer_while_importing()
def main():
    ready()
    time.sleep(0.5)
    return 4
"""
LOADED = """
at_once, said = os._exit, os.write  # of the cores of a busy machine another thread has one first
def later(code): time.sleep(0.5); at_once(code)
def told(to, line):
    done = said(to, line)
    time.sleep(0.5 if to == 2 else 0)
    return done
os._exit, os.write = later, told
"""
WORKERS = LOADED + """
import torch
from torch.utils.data import DataLoader
class Slow(torch.utils.data.Dataset):
    def __len__(self): return 1000
    def __getitem__(self, i): time.sleep(0.05); return i
def main():
    for i, _ in enumerate(DataLoader(Slow(), num_workers=2, multiprocessing_context="fork")):
        if i == 3: ready(); time.sleep(STEP)
"""
WAITING = WORKERS.replace("STEP", "0")  # for a batch
STUBBORN = WORKERS.replace("STEP", "60").replace("0.05", "0.05 if i < 4 else 60")  # main waits for them
LATE = LOADED + """
def main():
    try:
        ready()
        while True: pass
    except KeyboardInterrupt:
        time.sleep(3.2)  # until the process is being ended by force, and its words are being made
        ready()  # for a second Ctrl-C
        while True: pass
def what_is_left(): time.sleep(60)
"""
ENDING = LOADED + """
import threading
from torch.utils.data import DataLoader
class Slow(list):
    def __getitem__(self, i): time.sleep(60 * i); return i
def main():
    passing = iter(DataLoader(Slow(range(9)), num_workers=2, multiprocessing_context="fork"))
    next(passing)
    threading.Timer(0.3, ready).start()
    del passing  # waits for its workers
    while True: pass
"""


def interrupted(body: str, times: int = 1, group: bool = False, ignored: bool = False) -> tuple[int, str]:
    """Exit code and stderr of a process that got SIGINT at each of the first lines that it printed."""
    kept = signal.SIG_IGN if ignored else signal.default_int_handler
    quiet = ["-W", "ignore::DeprecationWarning"]  # newer Pythons warn of a fork beside threads
    process = subprocess.Popen([sys.executable, "-B", *quiet, "-c", SCRIPT.replace("BODY", body)], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
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


@pytest.mark.parametrize("body, words, how", [
    (LONG_STEP, "the words", {}), (SLOW_WORDS, "what was written is whole", {}),
    (NO_WORDS, "what was written is whole", {}), (STUCK, "the words", {"times": 2}),
    (IMPORTING, "nothing had begun", {}), (DROPPED, "the words", {}), (CAUGHT, "the words", {}),
    (FORKING, "the words", {}), (WAITING, "the words", {"group": True}),
    (STUBBORN, "the words", {"group": True}), (ENDING, "the words", {"group": True}),
    (LATE, "what was written is whole", {"times": 2}),
    (JUST_FORKED, "the words", {"times": 0})],
    ids=["long step", "words that wait", "words that fail", "twice", "importing", "dropped", "caught", "forking",
         "workers", "workers that do not end", "workers that are ending", "late", "just forked"])
def test_an_interrupt_is_one_line_and_130(body, words, how):
    """R3: in one long step, where main does not come back, while libraries load, and where the KeyboardInterrupt comes
    to nothing, the process ends all the same, and what it has just forked ends with it. It is told once: not again for
    a second Ctrl-C while the process is about to end by force, nor by workers that decode, to which a terminal sends
    Ctrl-C too, or by what was just forked; and what torch says of workers that die with it is not heard."""
    assert interrupted(body, **how) == (130, f"run.py: interrupted; {words}\n")


def test_of_several_processes_the_first_tells(monkeypatch):
    """R3: another one, as torchrun numbers them, ends without a word."""
    monkeypatch.setenv("RANK", "1")
    assert interrupted(IMPORTING) == (130, "")


def test_an_interrupt_that_comes_to_nothing():
    """R3: while Python ends there is nothing to interrupt any more; where Ctrl-C was switched off for the process, as
    by nohup or a script's &, it stays off."""
    assert interrupted(AFTERWARDS) == (3, "")
    assert interrupted(BACKGROUND, ignored=True) == (4, "")
