"""The benchmarks: every mode of scale.py ends with one network; growth.py measures each method and slope (G5, G6)."""

import math
from multiprocessing import dummy

import pytest

from benchmarks import growth, scale
from helpers import make_data, rows_of


@pytest.mark.slow
def test_modes_are_measured_and_end_with_one_network(tmp_path, capsys):
    """G5: a row a mode, with one result for all; table and picture; what is measured is not measured again."""
    modes = ["streamed, 1 worker", "in memory"]
    how = ["--sizes", "48", "--capacity", "0.05", "--modes", *modes, "--out", str(tmp_path / "scale")]
    assert scale.main(how) == 0
    rows = rows_of(tmp_path / "scale" / "scale.jsonl")
    assert [row["mode"] for row in rows] == modes and all(row["n"] == 48 for row in rows)
    one, two = (row["sum"] for row in rows)
    assert two == pytest.approx(one, rel=1e-6)
    assert all(0 < row["start"] <= row["peak"] and row["seconds"] > 0 for row in rows) and rows[0]["worker_peak"] > 0
    shown = capsys.readouterr().out
    assert shown.count("48 images, ") == 2 and (tmp_path / "scale" / "scale.md").read_text() in shown
    assert (tmp_path / "scale" / "scale.png").exists() == ("no picture" not in shown)
    assert scale.main(how) == 0 and "48 images, " not in capsys.readouterr().out


def test_the_table_adds_up():
    """G5: memory is the first process's and, for each worker, the largest one's."""
    row = {"n": 1500, "mode": "m", "workers": 2, "load_seconds": 1.0, "seconds": 2.0, "peak": 300.0, "start": 200.0,
           "worker_peak": 50.0}
    assert scale.table([row]).splitlines()[-1] == "| 1,500 | m | 1.0 | 2.0 | 400 | 100 |"


@pytest.mark.filterwarnings("ignore:Acc")  # ten passes are not enough
def test_growth_is_measured(tmp_path, capsys, monkeypatch):
    """G6: a row per value and work, table and picture; what is measured is not measured again."""
    monkeypatch.setattr(growth.multiprocessing, "get_context", lambda kind: dummy)  # a thread in place of a fork
    monkeypatch.setitem(growth.BASE, "images", 300)
    how = ["--axes", "ratio", "--most", "0.5", "--what", "expand", "training", "--out", str(tmp_path / "growth")]
    assert growth.main(how) == 0
    rows = rows_of(tmp_path / "growth" / "growth.jsonl")
    assert [(row["axis"], row["x"], row["what"]) for row in rows] == [("ratio", x, "expand") for x in (0.25, 0.5)]
    assert all(0 < row["start"] <= row["peak"] and row["seconds"] > 0 for row in rows)
    shown = capsys.readouterr().out
    assert shown.count("ratio 0.") == 3 and (tmp_path / "growth" / "growth.md").read_text() in shown
    assert (tmp_path / "growth" / "growth.png").exists() == ("no picture" not in shown)
    assert growth.main(how) == 0 and "expand: " not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:Acc")
@pytest.mark.parametrize("what", growth.ALL)
def test_growth_runs_every_method(what):
    """G6: training, `expand` and every method of the paper's tables can be measured."""
    of = growth.subject("width", 0.125)
    data = make_data(0, n=40, channels=3, size=growth.SIDE, classes=growth.CLASSES)
    growth.work(what, of["model"], data, of["forget"][:1], of["config"])


def test_slopes():
    """G6: a slope is that between the two largest values; none where nothing grows or nothing was taken."""
    rows = [{"x": x, "seconds": seconds, "peak": 100.0, "start": 100.0, "axis": "images", "value": x, "what": "rem"}
            for x, seconds in ((6000, 8.0), (1500, 3.0), (15000, 50.0))]
    assert growth.slope(rows, growth.seconds) == pytest.approx(math.log(50 / 8) / math.log(15000 / 6000))
    assert growth.slope(rows[:1], growth.seconds) is growth.slope(rows, growth.memory) is None
    assert growth.table(rows).splitlines()[-1] == (
        "| images 1,500 / 6,000 / 15,000 | rem | 3.00 / 8.00 / 50.00 | 2.00 | 0 / 0 / 0 |  |")
