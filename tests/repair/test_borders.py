"""Images that are not square (repair/images.py): cropped, which is said, or squashed whole with --resize squash."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from colours import began, call, colours, report_of  # noqa: F401
from helpers import make_data
from repair.images import Files, Reading, changed_by_reading, decode, load_images
from repair.state import marks_of, same_images


def striped(path, width: int, height: int):
    """An image whose columns and rows all differ."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    image = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


@pytest.mark.parametrize("width, height", [(40, 20), (20, 40), (16, 16), (300, 3), (1, 9)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.8, 0.9])  # of 16 at 0.9 they are 17.8, which is rounded
def test_squashed_images_are_whole(tmp_path, width, height, crop_pct):
    """B4: Pillow's own resize of both sides, then the same crop of the centre as ever."""
    path = striped(tmp_path / "x.png", width, height)
    resized, edge = round(16 / crop_pct), (round(16 / crop_pct) - 16) // 2
    wanted = np.asarray(Image.open(path).resize((resized, resized), Image.Resampling.BILINEAR))
    (found,), _ = decode([path], Reading(16, crop_pct, resize="squash"), 1)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), wanted[edge : edge + 16, edge : edge + 16])
    (cropped,), _ = decode([path], Reading(16, crop_pct), 1)
    assert torch.equal(cropped, found) == (width == height)


def test_what_is_cut_off_is_counted(tmp_path, monkeypatch):
    """B4: how many images lose a part of their longer side, and which share; a pixel that resizing loses is none. Of
    more than MANY evenly spaced ones are looked at, which is said."""
    sides = [(40, 20), (20, 80), (30, 24), (16, 16), (1000, 1001)]
    paths = [striped(tmp_path / f"{i}.png", *side) for i, side in enumerate(sides)]
    (tmp_path / "torn.png").write_bytes(b"torn")
    os.mkfifo(tmp_path / "pipe.png")  # which would be waited for
    (line,) = changed_by_reading([*paths, tmp_path / "torn.png", tmp_path / "pipe.png"], Reading(20), 1)
    assert line.startswith("3 of 7 images are not square: 20 to 75 %, in the median 50 %, of their longer side is cut")
    assert line.endswith("--resize squash")
    for nothing in ((paths[3:], Reading(20)), (paths, Reading(20, resize="squash")), ([], Reading(20))):
        assert changed_by_reading(*nothing, 1) == []
    near = striped(tmp_path / "near.png", 1000, 1026)  # a pixel of 21 where the crop is of images of 20
    assert "5 to 5 %" in changed_by_reading([near], Reading(16, 0.8), 1)[0]
    assert changed_by_reading([near], Reading(16), 1) == []
    monkeypatch.setattr("repair.images.MANY", 3)
    (line,) = changed_by_reading(paths, Reading(20), 1)
    assert line.startswith("2 of 3 images, evenly spaced among 5, are not square: 20 to 50 %")


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_images_of_more_than_8_bits_are_counted(tmp_path, kind):
    """B4, R7: how such grey images become 8 bits is said, whichever way they become square, and not of others."""
    for i, values in enumerate((np.zeros((8, 8), np.uint16), np.zeros((8, 9), np.uint16), np.zeros((8, 8), np.uint8))):
        Image.fromarray(values).save(tmp_path / f"{i}.{kind}")
    paths = sorted(tmp_path.iterdir())
    square, line = changed_by_reading(paths, Reading(8), 1)
    assert "1 of 3 images are not square" in square
    assert line.startswith("2 of 3 images have more than 8 bits per pixel: 65535 becomes 255")
    assert changed_by_reading(paths, Reading(8, resize="squash"), 1) == [line]
    assert changed_by_reading(paths[2:], Reading(8), 1) == []


def test_a_state_knows_how_images_became_square(tmp_path):
    """P9: the marks of streamed images tell the two ways apart though no file has changed; in memory pixels do."""
    paths = [striped(tmp_path / f"{i}.png", 40, 20) for i in range(3)]
    labels, marks = torch.zeros(3, dtype=torch.int64), {}
    for resize in ("crop", "squash"):
        files = Files(paths, labels, Reading(16, resize=resize))
        for room in (0, 1e9):
            data, _ = load_images(paths, labels, 2, files.reading, 0, room=room)
            marks[resize, room] = marks_of(data, files)
        assert marks_of(load_images(paths, labels, 2, files.reading, 0, room=0)[0]) == marks[resize, 0]
        assert same_images(marks[resize, 0], marks[resize, 1e9])
    assert marks_of(make_data(0, n=3), paths)["files"] == marks["crop", 0]["files"]
    for room in (0, 1e9):
        assert not same_images(marks["crop", room], marks["squash", 0])
        assert not same_images(marks["crop", room], marks["squash", 1e9])


def test_the_command_says_what_is_cut_off_and_offers_to_squash(colours, capsys):
    """B4, P2: cropped, the colours are gone, which stops the run with the flag that fits; with it the images are whole,
    held-out ones too, and the report says how they were read."""
    for path in (colours["--data"] / "train").rglob("*.png"):  # the colour is in the outer thirds alone
        image = np.asarray(Image.open(path))
        Image.fromarray(np.concatenate([image, np.full_like(image, 128), image], axis=1)).save(path)
    shutil.copytree(colours["--data"] / "train", colours["--data"] / "val")
    wide = {**colours, "--model": f"{colours['--data'] / 'net.py'}:at_the_edge"}
    assert call({**wide, "--force": None}) == 2
    told = capsys.readouterr()
    assert "144 of 144 images are not square: 67 to 67 %, in the median 67 %, of their longer side is cut" in told.out
    assert "98.6% with --resize squash" in told.err and not began(told.out)
    assert call(wide, "--resize", "squash", "--epochs", 0) == 0
    told = capsys.readouterr().out
    assert "not square" not in told and "labels as given: 0.986" in told
    report = report_of(wide)
    assert report["reading"]["resize"] == "squash" and report["scores"]["held-out images"][0] == round(69 / 72, 4)
