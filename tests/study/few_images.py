"""A grid and other commands run in this process, on few images, and what they leave behind."""

from collections import Counter
from dataclasses import replace
from functools import cache

import pytest

import run
from experiment.datasets import load
from helpers import rows_of
from study import cscore, originals
from study.rows import read_rows, rows_by_cell

QUICK = ["--epochs", "1", "--unlearn-epochs", "1", "--n", "20", "--width", "0.1", "--max-passes", "2", "--device",
         "cpu", "--image-size", "8"]
FEW = [*QUICK, "--n", "10", "--batch", "64", "--quiet"]  # on the 128 images of `few`
LOUD = [word for word in FEW if word != "--quiet"]
AXES = {flag[2:].replace("-", "_"): value for flag, value in zip(LOUD[::2], LOUD[1::2], strict=True)}
AXES |= {"quiet": "on"}  # FEW, as `expand_axes` takes it
TIMES = {"seconds", "train_seconds", "argv", "out", "quiet", "git"}  # what may differ between two runs of one cell


@cache
def load_few(*args):
    """A data set that comes with the code, cut to its first 128 training and 40 test images."""
    dataset = load(*args)
    train, test = (replace(data, images=data.images[:n], labels=data.labels[:n])
                   for data, n in ((dataset.train, 128), (dataset.test, 40)))
    return replace(dataset, train=train, test=test)


@pytest.fixture
def fresh(monkeypatch):
    """As in a process of its own: no rank is set, and nothing is kept from another test."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    forget()
    yield
    forget()


@pytest.fixture
def few(fresh, monkeypatch):
    """The built-in data cut short, so that a cell takes a blink."""
    for module in (run, originals, cscore):
        monkeypatch.setattr(module, "load", load_few)


def forget() -> None:
    """Empty what a process keeps of data sets and originals."""
    originals.read_dataset.cache_clear()
    originals.load_original.cache_clear()


def do(out, *arguments, size=FEW) -> int:
    """Run the grid in this process."""
    return run.main(["grid", *size, *arguments, "--out", str(out)])


def refusal(capsys, *argv) -> str:
    """What run.py says of bad input: one line on stderr, with exit code 2 and nothing on stdout."""
    capsys.readouterr()
    try:
        code = run.main([str(word) for word in argv])
    except SystemExit as stop:  # argparse's own errors
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and len(err.splitlines()) == 1, err
    return err


def numbers(out) -> dict[str, dict]:
    """Cell key -> its row without times, of a grid's folder or of run.py's file."""
    rows = rows_of(out) if out.is_file() else read_rows(out)
    return {key: {name: value for name, value in row.items() if name not in TIMES}
            for key, row in rows_by_cell(rows).items()}


def statuses(out) -> Counter:
    """How many rows there are of each method and status."""
    return Counter((row["method"], row["status"]) for row in read_rows(out))
