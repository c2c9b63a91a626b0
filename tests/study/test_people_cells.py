"""People's mistakes as cells: in a grid with its originals, in tables, and how well suspects are found among them."""

import json
from dataclasses import replace

import numpy as np
import pytest

import run
from experiment.settings import resolve
from few_images import FEW, do, few, load_few  # noqa: F401
from made_rows import column, load as load_rows_of, make_row, one
from study.plan import expand_axes
from study.rows import cell_key, read_rows
from tasks import TASKS


@pytest.fixture
def labels(tmp_path):
    """A file of labels by people for the 128 images of `few`, the first twelve of them wrong."""
    found = load_few("fashion-mini").train.labels.numpy().copy()
    found[:12] = (found[:12] + 1) % 10
    path = tmp_path / "people.npy"
    np.save(path, found)
    return path


def test_a_grid_of_people(few, labels, tmp_path):  # noqa: F811
    """A grid has cells of people's labels, whose number is found; a second call does nothing; another file is another
    cell."""
    out = tmp_path / "grid"
    argv = ["--task", "human", "--methods", "no-ul,npo", "--discovery", "0.5", "--human-labels", str(labels)]
    assert do(out, *argv) == 0
    rows = read_rows(out)
    assert [(row["task"], row["n"], row["status"]) for row in rows] == [("human", 12, "ok")] * 2
    assert do(out, *argv) == 0 and len(read_rows(out)) == 2
    assert run.main(["report", str(out), "--table", "plane", "--out", str(tmp_path / "report")]) == 0
    other = labels.with_name("other.npy")
    other.write_bytes(labels.read_bytes())
    assert do(out, *argv[:-1], str(other)) == 0 and len(read_rows(out)) == 4


def test_what_tells_cells_apart():
    """Of people's labels the column and the file tell cells apart, and n does not, since it is found; of the other
    tasks it is the other way round. "all" tasks are the paper's."""
    base = resolve({"task": "human", "human_labels": "a.pt", "method": "rem"})
    changed = [replace(base, human_column="worse"), replace(base, human_labels="b.pt"), replace(base, n=7)]
    assert [cell_key(cell) == cell_key(base) for cell in changed] == [False, False, True]
    base = replace(base, task="random")
    changed = [replace(cell, task="random") for cell in changed]
    assert [cell_key(cell) == cell_key(base) for cell in changed] == [True, True, False]
    assert {cell.task for cell in expand_axes({"task": "all", "method": "rem"})} == set(TASKS)
    assert [c.human_column for c in expand_axes({"task": "human", "human_column": "aggre,worse", "method": "rem"})] == [
        "aggre", "worse"]


def test_tables_of_people(tmp_path):
    """A table of people's mistakes stands apart, names their column, and has one number of what was learnt."""
    rows = [{**make_row(method, score, 0.9, task="human", human_column="worse", n=31, discovery=rate), "learnt": 0.4}
            for method, score in (("rem", 0.8), ("no-ul", 0.3)) for rate in (0.1, 0.5)]
    found = one("plane", load_rows_of(tmp_path, rows))
    assert "cifar10 with labels worse" in found.title and found.header[1:3] == ("human 0.1", "human 0.5")
    assert column(found, "learnt") == [None, "40"]
    mixed = load_rows_of(tmp_path, rows + [make_row("rem", task="random", discovery=0.1)])
    assert mixed and len({row["data"] for row in mixed}) == 2


def test_suspects_of_people(few, labels, tmp_path, capsys):  # noqa: F811
    """`run.py suspects` ranks what people mislabelled and nobody has found, and shows it as a column of its own."""
    out = tmp_path / "x" / "scores.jsonl"
    argv = ["suspects", "--task", "human", "--discovery", "0.5", "--human-labels", str(labels), *FEW]
    assert run.main([*argv, "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["n"] for row in rows} == {12}
    assert {row["undiscovered"] for row in rows if "score" in row} == {6}
    assert "| score | human 0.5 | all |" in capsys.readouterr().out
