"""Cells of a folder of images: the folder is one data set by any path, and another one once its images change."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import run
from few_images import forget
from helpers import rows_of
from study.grid import cells_of
from study.rows import load_rows

pytestmark = pytest.mark.filterwarnings("ignore:Acc")  # REM may give up, and its end may tell of harm
QUICK = ["--dataset", "folder", "--data-dir", "data", "--image-size", "8", "--n", "4", "--width", "0.05", "--epochs",
         "1", "--batch", "16", "--unlearn-epochs", "1", "--task", "poison", "--discovery", "0.5", "--device", "cpu"]
CELLS = "runs/cells.jsonl"


@pytest.fixture(autouse=True)
def pictures(tmp_path, monkeypatch):
    """A folder of images, in a folder of its own where the commands run."""
    generator = np.random.default_rng(0)
    for part, n in (("train", 32), ("test", 8)):
        for i in range(n):
            path = tmp_path / "data" / part / "ab"[i % 2] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    monkeypatch.chdir(tmp_path)


def command(word: str, *argv) -> int:
    """run.py in this process, which has read no data set yet, as a process of its own has not."""
    forget()
    return run.main([word, *QUICK, *map(str, argv)])


def run_grid(seeds: str, *more) -> int:
    """Two methods on the folder."""
    return command("grid", "--methods", "no-ul,cf", "--seeds", seeds, "--out", "runs", *more)


def change(name="train/a/06.png") -> None:
    """Another image under the same name."""
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(Path("data", name))


def test_a_folder_is_one_data_set():
    """R5, R9: a cell that run.py has put into the grid's folder is not done again, also of images that are given by a
    relative path: it is the same cell and the same data set in a single run and in a grid, also where the folder is one
    data set of several, a blank before its name."""
    assert run.main([*QUICK, "--method", "no-ul", "--out", CELLS]) == 0
    assert run_grid("0") == 0 and [row["method"] for row in rows_of(CELLS)] == ["no-ul", "cf"]
    assert {row["data_dir"] for row in rows_of(CELLS)} == {str(Path("data").resolve())}
    assert len({row["data"] for row in load_rows(["runs"])}) == 1
    cells = cells_of({"dataset": "fashion-mini, folder", "data_dir": "data", "image_size": "8"}, None, 0, 1)[1]
    assert {(cell.dataset, cell.data_dir) for cell in cells} == {(name, str(Path("data").resolve()))
                                                                for name in ("fashion-mini", "folder")}


def test_a_grid_does_not_mix_two_data_sets(capsys):
    """R9, R5: after a change of one image no row of before counts, which one warning says; the originals of before
    stay; with the image put back rows and originals count again."""
    images = {path: path.read_bytes() for path in Path("data").rglob("*.png")}
    assert run_grid("0") == 0
    first, before = rows_of(CELLS), {path.name: path.read_bytes() for path in Path("runs/originals").iterdir()}
    assert run_grid("0") == 0 and rows_of(CELLS) == first and "other images" not in capsys.readouterr().err
    change()
    assert run_grid("0,1", "--dry-run") == 0
    assert run_grid("0,1") == 0
    told = capsys.readouterr()
    assert told.err.count("warning: 2 cells have rows in runs that are of other images") == 2  # once a command
    new = rows_of(CELLS)[2:]
    assert sorted((row["method"], row["seed"]) for row in new) == [("cf", 0), ("cf", 1), ("no-ul", 0), ("no-ul", 1)]
    assert len({row["images"] for row in new}) == 1 and new[0]["images"] != first[0]["images"]
    assert all(row["status"] == "ok" for row in new)
    after = {path.name: path.read_bytes() for path in Path("runs/originals").iterdir()}
    assert before.items() <= after.items() and len(after) == len(before) + 4
    assert run_grid("0,1") == 0 and len(rows_of(CELLS)) == 6  # all is done
    assert "other images" not in capsys.readouterr().err
    change("test/a/00.png")  # a test image counts as well
    assert run_grid("1") == 0 and len(rows_of(CELLS)) == 8
    for path, content in images.items():
        path.write_bytes(content)
    assert run_grid("0") == 0 and len(rows_of(CELLS)) == 8
