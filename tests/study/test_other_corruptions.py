"""Poison with another trigger, and people's mistakes: cells of their own in grids, originals, rows and tables."""

from dataclasses import replace

import numpy as np
import pytest

from experiment.cell import corrupt
from experiment.settings import resolve
from few_images import do, few, fresh, load_few  # noqa: F401
from made_rows import column, head, load, make_row, one, tables_of
from study.plan import by_original, expand_axes, original_of, overview
from study.rows import cell_key, read_rows
from experiment.corruptions import TRIGGERS
from tasks import TASKS

# --- Triggers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_triggers_tell_cells_apart(task):
    """R9: triggers tell cells and originals of poison apart, are on its images and, as an axis, multiply it alone."""
    cells = [resolve({"task": task, "trigger": trigger, "method": "rem", "n": 12}) for trigger in TRIGGERS]
    for key in (cell_key, lambda cell: cell_key(original_of(cell))):
        assert len({key(cell) for cell in cells}) == (4 if task == "poison" else 1)
    images = {corrupt(cell, load_few("fashion-mini")).train.images.sum().item() for cell in cells}
    assert len(images) == (4 if task == "poison" else 1)
    groups = by_original(expand_axes({"task": task, "trigger": "patch,warp", "method": "no-ul,rem"}))
    assert [original.trigger for original, _ in groups] == (["patch", "warp"] if task == "poison" else ["patch"])
    assert overview(groups, groups, {}).count("trigger warp") == (task == "poison")


def test_tables_of_triggers(tmp_path):
    """V19: tables set the triggers apart, and say which; other tasks stay with the patch, without a warning."""
    rows = [make_row(method, 0.5 + 0.1 * k, 0.9, task=task, discovery=0.5, trigger=trigger)
            for k, trigger in enumerate(("patch", "warp")) for task in TASKS for method in ("rem", "npo")]
    rows = load(tmp_path, rows)
    assert len(rows) == 2 * (2 + 1 + 1)  # runs of tasks without a trigger are one
    usual, warped = tables_of("plane", rows)
    assert "with the warp trigger" in warped.title and "trigger" not in usual.title
    for table, tasks in ((usual, TASKS), (warped, ("poison",))):
        assert [name for name in head(table) if name.endswith(" 0.5")] == [f"{task} 0.5" for task in tasks]
        assert "NOT ONE" not in table.caption


def test_misled_in_tables(tmp_path):
    """V19: where rows have it, tables show the mean of misled over the runs of poison; else there is no such column."""
    rows = [{**make_row("rem", task="poison", discovery=0.5, seed=seed), "misled": value}
            for seed, value in enumerate((0.1, 0.3))]
    rows += [{**make_row("rem", task="random", discovery=0.5, seed=seed), "misled": None} for seed in (0, 1)]
    (found,) = column(one("plane", load(tmp_path, rows)), "misled")
    assert found == pytest.approx((20.0, 10.0))
    assert "misled" not in head(one("plane", load(tmp_path, rows[2:])))


# --- People -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def labels(tmp_path):
    """A file of labels by people for the 128 images of `few`, the first twelve of them wrong."""
    found = load_few("fashion-mini").train.labels.numpy().copy()
    found[:12] = (found[:12] + 1) % 10
    path = tmp_path / "people.npy"
    np.save(path, found)
    return path


def test_a_grid_of_people(few, labels, tmp_path):  # noqa: F811
    """R5, R9: cells of people's labels, whose number is found, are done once; another file is another cell."""
    out = tmp_path / "grid"
    argv = ["--task", "human", "--methods", "no-ul,npo", "--discovery", "0.5", "--human-labels", str(labels)]
    assert do(out, *argv) == 0
    rows = read_rows(out)
    assert [(row["task"], row["n"], row["status"]) for row in rows] == [("human", 12, "ok")] * 2
    assert do(out, *argv) == 0 and len(read_rows(out)) == 2
    other = labels.with_name("other.npy")
    other.write_bytes(labels.read_bytes())
    assert do(out, *argv[:-1], str(other)) == 0 and len(read_rows(out)) == 4


def test_people_tell_cells_apart():
    """R9: of people's labels the column and the file tell cells apart, and n does not, since it is found; of the other
    tasks it is the other way round. "all" tasks are the paper's."""
    base = resolve({"task": "human", "human_labels": "a.pt", "method": "rem"})
    changed = [replace(base, human_column="worse"), replace(base, human_labels="b.pt"), replace(base, n=7)]
    assert [cell_key(cell) == cell_key(base) for cell in changed] == [False, False, True]
    for task in TASKS:
        keys = [cell_key(replace(cell, task=task)) for cell in (base, *changed)]
        assert [key == keys[0] for key in keys[1:]] == [True, True, False]
    assert {cell.task for cell in expand_axes({"task": "all", "method": "rem"})} == set(TASKS)
    columns = expand_axes({"task": "human", "human_column": "aggre,worse", "method": "rem"})
    assert [cell.human_column for cell in columns] == ["aggre", "worse"]


def test_tables_of_people(tmp_path):
    """V19: a table of people's mistakes stands apart, names their column, and has one number of what was learnt."""
    rows = [{**make_row(method, score, 0.9, task="human", human_column="worse", n=31, discovery=rate), "learnt": 0.4}
            for method, score in (("rem", 0.8), ("no-ul", 0.3)) for rate in (0.1, 0.5)]
    found = one("plane", load(tmp_path, rows))
    assert "cifar10 with labels worse" in found.title and head(found)[1:3] == ("human 0.1", "human 0.5")
    assert column(found, "learnt") == [None, "40"]
    assert len(tables_of("plane", load(tmp_path, rows + [make_row("rem", task="random", n=31, discovery=0.1)]))) == 2


def test_files_of_one_name_in_two_folders_are_two_files():
    """R9: labels by people are told apart by the whole path of their file."""
    one_key, other = (cell_key(resolve({"task": "human", "human_labels": f"{folder}/a.pt", "method": "rem"}))
                      for folder in "xy")
    assert one_key != other
