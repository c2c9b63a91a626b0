"""benchmarks/scale.py on a handful of images: every mode runs, and all end with one network (G5)."""

import json

import pytest

from benchmarks import scale


@pytest.mark.slow
def test_every_mode_is_measured_and_ends_with_one_network(tmp_path, capsys):
    """G5: a row a mode, with one result for all; table and picture; what is measured is not measured again."""
    modes = ["in memory", "streamed, 1 worker", "streamed, 2 processes"]
    how = ["--sizes", "48", "--capacity", "0.05", "--modes", *modes, "--out", str(tmp_path / "scale")]
    assert scale.main(how) == 0
    rows = [json.loads(line) for line in (tmp_path / "scale" / "scale.jsonl").read_text().splitlines()]
    assert [row["mode"] for row in rows] == modes and all(row["n"] == 48 for row in rows)
    one, streamed, two = (row["sum"] for row in rows)
    assert one == streamed and two == pytest.approx(one, rel=0.01)  # of two, BatchNorm sees halves of batches
    assert all(0 < row["start"] <= row["peak"] and row["seconds"] > 0 for row in rows) and rows[1]["worker_peak"] > 0
    shown = capsys.readouterr().out
    assert shown.count("48 images, ") == 3 and (tmp_path / "scale" / "scale.md").read_text() in shown
    assert (tmp_path / "scale" / "scale.png").exists() == ("no picture" not in shown)
    assert scale.main(how) == 0 and "48 images, " not in capsys.readouterr().out


def test_the_table_adds_up():
    """G5: memory is the first process's and, for each worker, the largest one's."""
    row = {"n": 1500, "mode": "m", "workers": 2, "load_seconds": 1.0, "seconds": 2.0, "peak": 300.0, "start": 200.0,
           "worker_peak": 50.0}
    assert scale.table([row]).splitlines()[-1] == "| 1,500 | m | 1.0 | 2.0 | 400 | 100 |"
