"""The command line and what it shows: flags made of the settings, one line per epoch with the time left."""

import argparse
import contextlib
import os
import sys
import threading
import time
from dataclasses import fields

from engine.checks import kind_of
from experiment.settings import ARCH_PRESETS, BOTH_PRESETS, DATASET_PRESETS, STAGES, Config


def number_of(value) -> float | None:
    """A number of any kind, a tensor of one too, as a float; None for what is none."""
    if isinstance(value, (str, bytes)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def tell(text: str) -> None:
    """Print a line on stderr, which may be closed or full: nothing that is done depends on whether it can be read."""
    try:
        if sys.stderr is not None:  # else print would take stdout
            print(text, file=sys.stderr, flush=True)
    except OSError:
        with contextlib.suppress(OSError, ValueError):  # what is left in its buffer would fail once more at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def clipped(text: str, most: int = 80) -> str:
    """A text for a message, with its middle left out where it is long."""
    return text if len(text) <= most else f"{text[:most // 2]}... ({len(text):,} letters)"


class Parser(argparse.ArgumentParser):
    """Flags are written out; an error is one line on stderr, without the usage, and exit code 2."""

    def __init__(self, **more):
        super().__init__(allow_abbrev=False, **more)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {clipped(message, 2000)}\n")

    def exit(self, status: int = 0, message: str | None = None):
        if message:
            tell(message.rstrip("\n"))
        sys.exit(status)


def flag(name: str) -> str:
    """A field's name as it is typed."""
    return "--" + name.replace("_", "-")


def flags(parser: Parser, names=None):
    """Give (argument group of its stage, field, help) for each field of Config, or for those of these names."""
    presets = {**ARCH_PRESETS, **DATASET_PRESETS, **{" ".join(both): preset for both, preset in BOTH_PRESETS.items()}}
    for stage, title in STAGES.items():
        group = parser.add_argument_group(title)
        for f in fields(Config):
            if f.metadata["stage"] == stage and (names is None or f.name in names):
                special = [f"{name}: {preset[f.name]}" for name, preset in presets.items() if f.name in preset]
                shown = special if f.default is None else [f"default: {f.default}", *special]
                text = f.metadata["help"] + (f" ({'; '.join(shown)})" if shown else "")
                yield group, f, text.replace("%", "%%")


def add_flags(parser: Parser, names=None) -> None:
    """A flag per field of Config, or of these names; only what was given ends up in the namespace."""
    for group, f, text in flags(parser, names):
        more = dict(help=text, default=argparse.SUPPRESS)
        if f.type is bool:
            group.add_argument(flag(f.name), action=argparse.BooleanOptionalAction, **more)
        else:
            group.add_argument(flag(f.name), type=kind_of(f), choices=f.metadata["choices"] or None,
                               metavar=f.name.split("_")[-1].upper(), **more)


SHOWN = ("loss", "acc_forget", "acc_held_out", "reach")  # what a line of progress shows of what a method logs


LONG = 60.0  # seconds without a line after which a terminal shows that work goes on


@contextlib.contextmanager
def progress(label: str, quiet: bool, min_seconds: float = 0.0):
    """A log function for `fit` and the methods, for the length of a block: one line per epoch with the time left.

    In a terminal, work without such a line for LONG seconds says so in a line that is rewritten every second.
    Args: label: what is done, such as "train"; quiet: print nothing; min_seconds: print nothing either of what takes
        less, by the seconds so far and the estimate of those left.
    """
    if quiet:
        yield lambda *args, **values: None
        return
    begin = last = time.perf_counter()
    since, done, terminal = "the start", threading.Event(), sys.stdout is not None and sys.stdout.isatty()
    clear = "\r" + " " * 60 + "\r" if terminal else ""

    def log(epoch: int, epochs: int, model, **values) -> None:
        nonlocal last, since
        last, since = time.perf_counter(), f"epoch {epoch}"
        left = (last - begin) / epoch * (epochs - epoch)
        if last - begin + left >= min_seconds:
            numbers = {name: number_of(values.get(name)) for name in SHOWN}
            shown = "".join(f"{name} {value:8.4f}  " for name, value in numbers.items() if value is not None)
            shown = f"{shown}{last - begin:6.1f} s  {left:6.1f} s left\n"
            print(f"{clear}{label:<8} epoch {epoch:3d}/{epochs}  {shown}", end="", flush=True)

    def watch() -> None:
        with contextlib.suppress(OSError):  # a terminal that is gone
            while not done.wait(1.0):
                if (silent := time.perf_counter() - last) >= LONG:
                    print(f"\r{label:<8} {silent:.0f} s since {since}", end="", flush=True)
            print(clear, end="", flush=True)

    watcher = threading.Thread(target=watch, daemon=True)
    if terminal:
        watcher.start()
    try:
        yield log
    finally:
        done.set()
        if terminal:
            watcher.join()
