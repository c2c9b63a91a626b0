"""What goes wrong around many cells: images that change between two commands, result files that are odd, bad names.

Each test has in its first line the point of the issue "Nothing mixed, nothing lost, nothing without a word" it holds.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import run
from study import discovery, grid, originals, rows
from study.captions import mixed


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Tests run in a folder of their own, so that what a command makes where it runs is not in the checkout."""
    monkeypatch.chdir(tmp_path)


pytestmark = pytest.mark.filterwarnings("ignore:Acc")  # REM may give up, and its end may tell of harm
QUICK = ["--image-size", "8", "--n", "4", "--width", "0.05", "--epochs", "1", "--batch", "16", "--unlearn-epochs", "1",
         "--discovery", "0.5", "--device", "cpu"]


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder of images, read anew by each command as by a process of its own."""
    generator = np.random.default_rng(0)
    for part, n in (("train", 32), ("test", 8)):
        for i in range(n):
            path = tmp_path / "data" / part / "ab"[i % 2] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def command(word: str, *argv) -> int:
    """run.py in this process, which has read no data set yet."""
    for cached in (originals.read_dataset, originals.load_original):
        cached.cache_clear()
    return run.main([word, *map(str, argv)])


def run_grid(pictures, seeds: str, *more) -> int:
    """Two methods on the folder."""
    return command("grid", "--dataset", "folder", "--data-dir", pictures, *QUICK, "--task", "poison", "--methods",
                   "no-ul,cf", "--seeds", seeds, "--out", "runs", *more)


def lines(path="runs/cells.jsonl") -> list[dict]:
    """The rows of a file."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def change(pictures, name="train/a/06.png", value=0) -> None:
    """Another image under the same name."""
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(pictures / name)


# --- 3. Two data sets under one name ----------------------------------------------------------------------------------

def test_a_grid_does_not_mix_two_data_sets(pictures, capsys):
    """Point 3: after a change of one image no row of before counts; one warning; the originals of before stay, and
    with the image put back rows and originals count again."""
    images = {path: path.read_bytes() for path in pictures.rglob("*.png")}
    assert run_grid(pictures, "0") == 0
    first, before = lines(), {path.name: path.read_bytes() for path in Path("runs/originals").iterdir()}
    assert run_grid(pictures, "0") == 0 and lines() == first
    capsys.readouterr()
    change(pictures)
    assert run_grid(pictures, "0,1", "--dry-run") == 0
    assert run_grid(pictures, "0,1") == 0
    told = capsys.readouterr()
    assert told.err.count("warning: 2 cells have rows in runs that are of other images") == 2  # once a command
    new = lines()[2:]
    assert sorted((row["method"], row["seed"]) for row in new) == [("cf", 0), ("cf", 1), ("no-ul", 0), ("no-ul", 1)]
    assert len({row["images"] for row in new}) == 1 and new[0]["images"] != first[0]["images"]
    assert all(row["status"] == "ok" for row in new)
    after = {path.name: path.read_bytes() for path in Path("runs/originals").iterdir()}
    assert before.items() <= after.items() and len(after) == len(before) + 4
    assert run_grid(pictures, "0,1") == 0 and len(lines()) == 6  # all is done
    assert "other images" not in capsys.readouterr().err
    change(pictures, "test/a/00.png")  # a test image counts as well
    assert run_grid(pictures, "1") == 0 and len(lines()) == 8
    for path, content in images.items():
        path.write_bytes(content)
    assert run_grid(pictures, "0") == 0 and len(lines()) == 8


def test_old_rows_count(pictures, capsys):
    """Point 3: rows without a fingerprint are of the images that are there, as they always were."""
    assert run_grid(pictures, "0") == 0
    found = [{name: value for name, value in row.items() if name not in ("images", "cpu", "isa")} for row in lines()]
    with open("runs/cells.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in found)
    capsys.readouterr()
    assert run_grid(pictures, "0") == 0 and lines() == found
    assert "other images" not in capsys.readouterr().err
    assert command("report", "runs") == 0
    assert "NOT ONE EXPERIMENT" not in capsys.readouterr().out


def test_a_report_of_two_data_sets(pictures, capsys):
    """Point 3: of a cell the last images count, which is told; cells of different images are NOT ONE EXPERIMENT."""
    assert run_grid(pictures, "0,1") == 0
    old = lines()
    change(pictures)
    assert run_grid(pictures, "0") == 0
    capsys.readouterr()
    assert command("report", "runs", "--table", "cells") == 0
    told = capsys.readouterr()
    fingerprints = sorted({row["images"] for row in lines()})
    assert f"2 rows of other images ({old[0]['images']}) left out" in told.err
    assert f"NOT ONE EXPERIMENT: the runs differ in images ({', '.join(fingerprints)})" in told.out
    assert command("report", "runs", "--seeds", "0") == 0
    assert "NOT ONE EXPERIMENT" not in capsys.readouterr().out


def test_images_are_compared_within_one_data_set():
    """Point 3: two data sets of different names are no warning; a row that does not say is none."""
    def row(**more):
        setting = {**rows.SETTINGS, "status": "ok", "product": 0.5, "ran": "cf", "method": "cf", "data": "x", **more}
        return setting

    assert "images" not in mixed([row(images="1"), row(images=None), row()])
    assert mixed([row(images="1"), row(images="2")])["images"] == ["1", "2"]
    assert "images" not in mixed([row(images="1"), row(images="2", data="y")])


def test_suspects_do_not_mix_two_data_sets(pictures, capsys):
    """Point 3: their rows hold the fingerprint, too, and are made anew of other images."""
    asked = ["--dataset", "folder", "--data-dir", pictures, *QUICK, "--task", "poison", "--seed", "0", "--out",
             "runs/scores.jsonl"]
    assert command("suspects", *asked) == 0
    first = lines("runs/scores.jsonl")
    assert command("suspects", *asked) == 0 and lines("runs/scores.jsonl") == first
    change(pictures)
    capsys.readouterr()
    assert command("suspects", *asked) == 0
    told, new = capsys.readouterr().err, lines("runs/scores.jsonl")[len(first):]
    assert f"warning: {len(first)} rows in runs/scores.jsonl are of other images" in told
    assert len(new) == len(first)
    assert {row["fingerprint"] for row in new}.isdisjoint(row["fingerprint"] for row in first)
    assert command("suspects", *asked) == 0 and len(lines("runs/scores.jsonl")) == 2 * len(first)


# --- 4. Names of outputs ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("out", [".", "o/", "a" * 256])
def test_suspects_look_at_out_first(pictures, capsys, monkeypatch, out):
    """Point 4: one line that names it, before any work."""
    monkeypatch.setattr(discovery, "make_original", lambda *args: pytest.fail("work began"))
    assert command("suspects", "--dataset", "folder", "--data-dir", pictures, *QUICK, "--out", out) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"cannot write results to {out}" in told and "--out" in told


def test_a_figure_does_not_replace_the_rows(pictures, capsys):
    """Point 4: suspects --figure beside rows of the figure's name."""
    pytest.importorskip("matplotlib")
    assert command("suspects", "--dataset", "folder", "--data-dir", pictures, *QUICK, "--out", "x.png", "--figure") == 2
    assert "--out is x.png, the name of the figure" in capsys.readouterr().err and not os.path.exists("x.png")


def test_originals_that_cannot_be_written_are_told_first(pictures, capsys, monkeypatch):
    """Point 4: a file in the place of their folder."""
    os.mkdir("runs")
    Path("runs/originals").touch()
    monkeypatch.setattr(grid, "make_original", lambda *args: pytest.fail("work began"))
    assert run_grid(pictures, "0") == 2
    assert "cannot write results to runs/originals/" in capsys.readouterr().err


def test_a_report_into_a_file(pictures, capsys):
    """Points 4, 8: --out of a file, and rows out of a pipe without a writer."""
    assert run_grid(pictures, "0") == 0
    Path("there").touch()
    os.mkfifo("pipe")
    capsys.readouterr()
    assert command("report", "runs", "--out", "there") == 2
    told = "run.py report: cannot write into there (it is a file); name another folder with --out\n"
    assert capsys.readouterr().err == told
    for path in ("pipe", "/dev/zero"):
        assert command("report", path) == 2
        assert f"cannot read {path} (it is no regular file); give a result file" in capsys.readouterr().err


def test_rows_from_a_shell(pictures, capsys):
    """Point 5: report <(...), which can be read once."""
    assert run_grid(pictures, "0") == 0
    capsys.readouterr()
    end, begin = os.pipe()
    os.write(begin, Path("runs/cells.jsonl").read_bytes())
    os.close(begin)
    try:
        assert command("report", f"/dev/fd/{end}") == 0
    finally:
        os.close(end)
    piped = capsys.readouterr().out
    assert command("report", "runs") == 0 and capsys.readouterr().out == piped


def test_a_report_of_a_folder_far_down(pictures, capsys):
    """Point 4: a long path of images makes no name of a table that cannot be written."""
    assert run_grid(pictures, "0") == 0
    found = [{**row, "data_dir": "/" + "/".join(["b" * 99] * 4)} for row in lines()]
    with open("far.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in found)
    assert command("report", "far.jsonl", "--out", "tables") == 0
    assert len(os.listdir("tables")) == 3


# --- 8. Odd rows ------------------------------------------------------------------------------------------------------

def test_deep_lines_are_left_out(pictures, capsys):
    """Point 8: JSON within JSON without end, in rows of a grid, which goes on, and of suspects. Other rows that cannot
    be are in test_rows_told_apart.py."""
    deep = "[" * 100_000 + "\n" + '{"cell": ' * 50_000 + "\n"
    os.mkdir("runs")
    for path in ("runs/cells.jsonl", "scores.jsonl"):
        Path(path).write_text(deep)
    assert run_grid(pictures, "0") == 0
    assert "runs/cells.jsonl: 2 lines, the first of them 1, are not a whole row" in capsys.readouterr().err
    assert command("suspects", "--dataset", "folder", "--data-dir", pictures, *QUICK, "--task", "poison", "--out",
                   "scores.jsonl") == 0


def test_a_folder_whose_name_is_no_text(pictures, capsys):
    """Point 8: bytes that are no letters can stand in the rows of a folder, and in what is written of them."""
    assert run_grid(pictures, "0") == 0
    found = [{**row, "data_dir": "/pictures\udcff"} for row in lines()]
    with open("odd.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in found)
    capsys.readouterr()
    assert command("report", "odd.jsonl", "--out", "tables") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("argv, words", [(["--ratio", "1e300"], "ratio is 1e+300"),
                                         (["--capacity", "1e-300"], "capacity is 1e-300 and so ratio"),
                                         (["--image-size", "200000"], "at most 4096")])
def test_a_grid_tells_absurd_numbers_before_the_work(pictures, capsys, monkeypatch, argv, words):
    """Point 8: as one cell does."""
    monkeypatch.setattr(grid, "make_original", lambda *args: pytest.fail("work began"))
    given = ["--dataset", "folder", "--data-dir", pictures, *QUICK, "--method", "rem", "--out", "runs", *argv]
    assert command("grid", *given) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1
