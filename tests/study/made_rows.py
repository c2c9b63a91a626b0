"""Result rows as run.py writes them, made without a run, and how to look into the tables made of them."""

import json
import math
import statistics
from dataclasses import asdict
from pathlib import Path

import pytest

import run
from experiment.settings import VERSION, resolve
from study.rows import load_rows
from tasks import TASKS

ROOT = Path(run.__file__).resolve().parent


def make_row(method="rem", healed=0.8, utility=0.9, status="ok", **settings) -> dict:
    """A result row, of CIFAR-10 unless the settings say otherwise."""
    good = status == "ok"
    row = {**asdict(resolve({"dataset": "cifar10", **settings})), "method": method, "device": "cpu", "threads": 2,
           "torch": "2.6.0", "version": VERSION, "git": "abc", "argv": [], "train_seconds": 20.0, "status": status,
           "error": None if good else "boom"}
    scores = {"healed": healed, "utility": utility, "product": healed * utility, "healed_test": healed, "seconds": 5.0}
    return {**row, **(scores if good else {**dict.fromkeys(scores), "seconds": 900.0})}  # a failed run took its time


def row_of(product: float, method="rem", **settings) -> dict:
    """A row with this product."""
    return make_row(method, product, 1.0, **settings)


def noting(row, **values) -> dict:
    """The row of the same run that noted these numbers after each epoch."""
    points = [{"epoch": epoch, **dict(zip(values, found, strict=True))}
              for epoch, found in enumerate(zip(*values.values(), strict=True))]
    return {**row, "curve": True, "points": points}


def grid(methods, seeds=(0,), rates=(0.1, 1.0), **settings) -> list[dict]:
    """A row a method, task, rate and seed, every score different."""
    places = [(m, t, d, s) for m in methods for t in TASKS for d in rates for s in seeds]
    return [make_row(m, 0.2 + 0.6 * k / len(places), 0.8 + 0.1 * k / len(places), task=t, discovery=d, seed=s,
                     **settings)
            for k, (m, t, d, s) in enumerate(places)]


def every_cell(method="rem", *scores, **settings) -> list[dict]:
    """A row for each of the paper's cells, all scores alike."""
    return [make_row(method, *scores, task=t, discovery=k / 10, **settings)
            for t in TASKS for k in range(1, 11)]


def write(path: Path, rows: list) -> Path:
    """A result file of these rows; a str is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def load(tmp_path, rows) -> list[dict]:
    """The rows after a file of them was read."""
    return load_rows([write(tmp_path / "rows.jsonl", rows)])


def main(argv) -> int:
    """Run `run.py report`."""
    return run.main(["report", *argv])


def tables_of(name, rows) -> list:
    """The tables of a name; without pandas the test is skipped."""
    pytest.importorskip("pandas", reason="tables need pandas: pip install -r requirements-optional.txt")
    from study.tables import make_tables

    return make_tables(name, rows)


def one(name, rows):
    """The only table of a name."""
    (table,) = tables_of(name, rows)
    return table


def head(table) -> tuple:
    """The names of a table's columns."""
    return tuple(table.cells)


def lines(table) -> list[tuple]:
    """A table's lines, from top to bottom."""
    return list(table.cells.itertuples(index=False, name=None))


def column(table, name) -> list:
    """A table's column, from top to bottom."""
    return table.cells[name].tolist()


def line(table, **wanted) -> dict:
    """The only line of a table with these values, by column."""
    rows = table.cells.to_dict("records")
    (found,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return found


def mean_and_sem(values) -> tuple:
    """In percent, from the definition."""
    values = [100 * value for value in values]
    return (pytest.approx(statistics.mean(values), abs=1e-9),
            pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), abs=1e-6) if len(values) > 1 else None)
