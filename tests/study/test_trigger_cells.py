"""Poison with another trigger is a cell of its own: in grids, originals, rows, tables and on the command line."""

import json
from dataclasses import replace

import pytest

import run
from experiment.settings import Config, resolve
from made_rows import column, load, make_row, one
from study.plan import by_original, expand_axes, original_of, overview
from study.rows import cell_key, rows_by_cell
from study.tables import make_tables
from tasks import TASKS, TRIGGERS


@pytest.mark.parametrize("task", TASKS)
def test_keys(task):
    """Triggers tell cells and originals of poison apart, and no others."""
    cells = [resolve({"task": task, "trigger": trigger, "method": "rem"}) for trigger in TRIGGERS]
    for key in (cell_key, lambda cell: cell_key(original_of(cell))):
        assert len({key(cell) for cell in cells}) == (4 if task == "poison" else 1)


def test_grid_cells():
    """As an axis, triggers multiply the cells of poison alone; the overview names them."""
    cells = expand_axes({"task": "all", "trigger": "patch,warp", "method": "no-ul,rem"})
    assert sorted((cell.task, cell.trigger) for cell in cells if cell.method == "rem") == [
        ("confusion", "patch"), ("poison", "patch"), ("poison", "warp"), ("random", "patch")]
    groups = by_original(cells)
    assert len(groups) == 4
    text = overview(groups, groups, {})
    assert text.count("trigger warp") == 1 and text.count("trigger patch") == 1


def test_rows_count_for_their_cell(tmp_path):
    """A row with a trigger is the row of that cell; of a task that has none it is the row whatever it says."""
    cell = resolve({"dataset": "cifar10", "task": "poison", "trigger": "blended", "method": "rem", "device": "cpu"})
    mine = make_row(task="poison", trigger="blended")
    assert list(rows_by_cell([mine])) == [cell_key(cell)]
    assert cell_key(replace(cell, trigger="warp")) not in rows_by_cell([mine])
    other = make_row(task="random", trigger="blended")
    assert list(rows_by_cell([other])) == [cell_key(replace(cell, task="random", trigger="patch"))]


def test_tables_apart(tmp_path):
    """Tables set the triggers apart, and say which; other tasks stay with the patch, without a warning."""
    rows = [make_row(method, 0.5 + 0.1 * k, 0.9, task=task, discovery=0.5, trigger=trigger)
            for k, trigger in enumerate(("patch", "warp")) for task in TASKS for method in ("rem", "npo")]
    tables = {table.title: table for table in make_tables("plane", load(tmp_path, rows))}
    assert len(tables) == 2
    (title,) = (title for title in tables if "with the warp trigger" in title)
    assert [name for name in tables[title].header if name.endswith("0.5")] == ["poison 0.5"]
    (usual,) = tables.keys() - {title}
    assert [name for name in tables[usual].header if name.endswith("0.5")] == [f"{task} 0.5" for task in TASKS]
    assert not any("NOT ONE" in table.caption for table in tables.values())
    assert tables[title].name != tables[usual].name


def test_misled_in_tables(tmp_path):
    """Where rows have it, tables show the mean of misled over the runs of poison; else there is no such column."""
    rows = [{**make_row("rem", task="poison", discovery=0.5, seed=seed), "misled": value}
            for seed, value in enumerate((0.1, 0.3))]
    rows += [{**make_row("rem", task="random", discovery=0.5, seed=seed), "misled": None} for seed in (0, 1)]
    (found,) = column(one("plane", load(tmp_path, rows)), "misled")
    assert found == pytest.approx((20.0, 10.0))
    bare = [{key: value for key, value in row.items() if key != "misled"} for row in rows]
    assert "misled" not in one("plane", load(tmp_path, bare)).header
    odd = [{**rows[0], "misled": 1.5}, rows[1]]
    assert len(load(tmp_path, odd)) == 1


def test_command_line(tmp_path, capsys):
    """`--trigger` reaches the images and the row; the headline and the table show it; an unknown one ends with a line."""
    small = ["--epochs", "1", "--n", "20", "--width", "0.05", "--method", "no-ul", "--device", "cpu"]
    out = str(tmp_path / "x.jsonl")
    assert run.main([*small, "--trigger", "sinusoidal", "--out", out]) == 0
    shown = capsys.readouterr().out
    row = json.loads((tmp_path / "x.jsonl").read_text())
    assert shown.startswith("poison (sinusoidal) on fashion-mini") and row["trigger"] == "sinusoidal"
    assert f"{100 * row['misled']:.1f}" in shown.splitlines()[-2].split()
    with pytest.raises(SystemExit) as ended:
        run.main([*small, "--trigger", "x", "--out", out])
    assert ended.value.code == 2 and "patch" in capsys.readouterr().err
    with pytest.raises(ValueError, match="trigger is 'x'; choose from patch, blended"):
        Config(trigger="x")
