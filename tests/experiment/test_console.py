"""The command line and what it shows (experiment/console.py): flags made of the settings, lines of progress.

What is told of bad input is in test_command.py.
"""

import io
import re
import sys
import threading
import time
import warnings
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import run
from experiment import console
from experiment.console import Parser, add_flags, progress, tell
from experiment.settings import ARCH_PRESETS, DATASET_PRESETS, Config, resolve

FIELDS = fields(Config)


def flag_of(name: str) -> str:
    """How a setting is typed."""
    return "--" + name.replace("_", "-")


def parsed(*argv) -> dict:
    """What the flags of all settings make of a command line."""
    parser = Parser(prog="x")
    add_flags(parser)
    return vars(parser.parse_args(argv))


# --- Flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", FIELDS, ids=lambda f: f.name)
def test_a_flag_for_every_setting(f):
    """R2: a flag gives its setting a value of the setting's type, and gives no other setting one."""
    if f.type is bool:
        argv, value = [flag_of(f.name) if not f.default else "--no-" + flag_of(f.name)[2:]], not f.default
    else:
        choices = f.metadata["choices"]
        value = next(c for c in choices if c != f.default) if choices else {
            int: 8, float: 0.75, str: "7", int | None: 7, float | None: 0.75, str | None: "0,1"}[f.type]
        argv = [flag_of(f.name), str(value)]
    found = parsed(*argv)
    assert found == {f.name: value} and type(found[f.name]) is type(value)
    assert getattr(resolve(found), f.name) == value


def test_help_shows_every_default(capsys, monkeypatch):
    """R2: --help names every flag with its default and the presets that change it."""
    monkeypatch.setenv("COLUMNS", "300")  # no word is broken at its hyphen
    with pytest.raises(SystemExit) as stop:
        run.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for f in FIELDS:
        assert f"{flag_of(f.name)} " in text or f"{flag_of(f.name)}, --no-" in text
        assert f.default is None or f"(default: {f.default}" in text
    for name, preset in {**ARCH_PRESETS, **DATASET_PRESETS}.items():
        assert all(f"{name}: {value}" in text for value in preset.values())


# --- Errors that cannot be told ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("closed", [True, False])
def test_a_stderr_that_takes_nothing(capsys, monkeypatch, closed):
    """R2: closed or full, it ends nothing, not even when Python ends; print to None would take stdout."""
    full = open("/dev/full", "w")
    monkeypatch.setattr(sys, "stderr", None if closed else full)
    assert run.main(["--n", "0"]) == 2
    tell("anything")
    monkeypatch.setattr(run, "command", lambda argv: warnings.warn("in between", stacklevel=1) or 0)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run.main([]) == 0
    full.close()  # as when Python ends: nothing is left in its buffer that could fail once more
    assert capsys.readouterr().out == ""


# --- Progress ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets, in place of the machine's."""
    now = [100.0]
    monkeypatch.setattr(console.time, "perf_counter", lambda: now[0])
    return now


@pytest.mark.parametrize("quiet, least, lines", [(False, 0, 2), (False, 40, 2), (False, 41, 0), (True, 0, 0)])
def test_progress_is_silent_about_what_is_short(capsys, clock, quiet, least, lines):
    """R1: a line comes once the time so far and the estimate of the rest reach min_seconds; quiet prints none."""
    with progress("train", quiet, least) as log:
        for epoch in (1, 2):
            clock[0] += 20
            log(epoch, 2, None, loss=0.5)
    assert len(capsys.readouterr().out.splitlines()) == lines


def test_a_line_of_progress(capsys, clock):
    """R1: the epoch, the loss, Acc(D_f) and Acc(W) where they are numbers, the time so far and that left."""
    with progress("rem", False) as log:
        clock[0] += 20
        log(1, 10, None, passes=3, acc_held_out=0.25, acc_forget=0.125, loss=0.5)
        log(2, 10, None, loss=1.0)
        log(4, 10, None, loss=None, acc_forget=torch.tensor(0.5), acc_held_out="high")  # as a user's method may log
    assert capsys.readouterr().out.splitlines() == [
        "rem      epoch   1/10  loss   0.5000  acc_forget   0.1250  acc_held_out   0.2500    20.0 s   180.0 s left",
        "rem      epoch   2/10  loss   1.0000    20.0 s    80.0 s left",
        "rem      epoch   4/10  acc_forget   0.5000    20.0 s    30.0 s left"]


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize("stream_of, seen", [(Terminal, True), (io.StringIO, False)])
def test_long_silence_is_told_in_a_terminal(monkeypatch, stream_of, seen):
    """R1: work without a line for long writes one anew, wiped in the end; elsewhere it writes nothing."""
    out = stream_of()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(console, "LONG", 0.5)

    def wait_for(text):
        deadline = time.monotonic() + (30 if seen else 1.2)
        while text not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)

    threads = set(threading.enumerate())
    with progress("train", False) as log:
        wait_for("s since the start")
        log(1, 2, None, loss=0.5)
        wait_for("s since epoch 1")
    assert set(threading.enumerate()) <= threads  # nobody watches any more
    told = re.findall(r"\rtrain +\d+ s since (the start|epoch 1)", out.getvalue())
    assert set(told) == ({"the start", "epoch 1"} if seen else set())
    shown = [line.split("\r")[-1] for line in out.getvalue().split("\n")]  # what a terminal is left with
    assert shown[0].startswith("train    epoch   1/2  loss   0.5000") and shown[1:] == [""]
