"""Image files of a folder (repair/inputs.py, B4, B5, P8): decoded, grey or squashed, in memory where there is room."""

import math
import os

import numpy as np
import pytest
import torch
from PIL import Image

from experiment.data import Data, Streamed
from image_tree import root, training, written  # noqa: F401
from repair import inputs
from repair.inputs import Files, Reading, decode, load, load_images, open_folder, room_for_images


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "monstrous", "pipe"])
def test_images_that_cannot_be_decoded(tmp_path, root, damage):
    """B5: truncated, empty, foreign and monstrous images and pipes are refused by name, in memory or streamed."""
    path = root / "train/bee/3.png"
    whole = path.read_bytes()
    path.unlink()
    if damage == "pipe":
        os.mkfifo(path)  # which would be waited for
    elif damage == "monstrous":
        Image.new("1", (20_000, 20_000)).save(path)  # 50 kB that would be 1.2 GB
    else:
        path.write_bytes({"cut": whole[:40], "empty": b"", "foreign": b"no image at all"}[damage])
    folder = open_folder(root, [written(tmp_path, "b.txt", "1\n4\n9")])
    with pytest.raises(ValueError, match="bee/3.png cannot be decoded .*; remove or replace it"):
        load(folder, Reading(8))
    streamed, _ = load(folder, Reading(8, mean=(0.5,) * 3, std=(0.5,) * 3), workers=0, room=0)
    with pytest.raises(ValueError, match="bee/3.png cannot be decoded"):
        list(streamed.batches())


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "jp2", "png", "ppm", "pgm", "tif", "webp"])
def test_images_of_every_kind_that_is_read(tmp_path, suffix):
    """B4: each kind of image that a folder may hold is decoded by its contents, whatever the suffix."""
    Image.new("L" if suffix == "pgm" else "RGB", (8, 8), 200 if suffix == "pgm" else (200,) * 3).save(
        tmp_path / f"x.{suffix}")
    (tmp_path / f"x.{suffix}").rename(tmp_path / "x.png")
    assert (decode([tmp_path / "x.png"], Reading(8)).int() - 200).abs().max() <= 2


@pytest.mark.parametrize("width, height", [(40, 20), (20, 40), (16, 16), (300, 3), (1, 9)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.8, 0.9])  # of 16 at 0.9 they are 17.8, which is rounded
def test_squashed_images_are_whole(tmp_path, width, height, crop_pct):
    """B4: Pillow's own resize of both sides, then the same crop of the centre as ever."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    striped = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1).astype(np.uint8)
    Image.fromarray(striped).save(tmp_path / "x.png")
    resized, edge = round(16 / crop_pct), (round(16 / crop_pct) - 16) // 2
    wanted = np.asarray(Image.fromarray(striped).resize((resized, resized), Image.Resampling.BILINEAR))
    (found,) = decode([tmp_path / "x.png"], Reading(16, crop_pct, resize="squash"), 1)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), wanted[edge : edge + 16, edge : edge + 16])
    (cropped,) = decode([tmp_path / "x.png"], Reading(16, crop_pct), 1)
    assert torch.equal(cropped, found) == (width == height)


def test_grey_images_keep_their_values(tmp_path):
    """B4: files that are grey, or grey in colours, give their values; colours Pillow's luminance; streamed the same."""
    values = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(values[:, :, 0]).save(tmp_path / "0.png")
    Image.fromarray(np.repeat(values[:, :, :1], 3, axis=2)).save(tmp_path / "1.png")
    Image.fromarray(values).save(tmp_path / "2.png")
    files = Files([tmp_path / f"{i}.png" for i in range(3)], torch.tensor([0, 1, 0]), Reading(9, channels=1))
    images = decode(files.paths, files.reading, 1)
    assert images.shape == (3, 1, 9, 9)
    assert torch.equal(images[0], images[1]) and np.array_equal(images[0, 0].numpy(), values[:, :, 0])
    luminance = values.astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(images[2, 0].numpy() - luminance).max() <= 1
    streamed = load_images(files, 2, 0, room=0)
    assert torch.equal(streamed.some(torch.arange(3)).images, images) and len(streamed.mean) == 1


@pytest.mark.parametrize("size, crop_pct, words", [
    (8, 0.0005, "--crop-pct 0.0005 of 8 pixels asks for images resized to 16,000, at most 8192"),
    (8, 5e-324, "resized to inf"), (4096, 0.4999, "at most 8192"), (4097, 1.0, "is 4097; .* from 1 to 4096 pixels"),
    (10**30, 1.0, "from 1 to 4096 pixels"), (0, 1.0, "the image size is 0")])
def test_sizes_are_bounded(size, crop_pct, words):
    """B5: images of no size, or that would fill the memory; the largest size and the smallest crop are taken."""
    with pytest.raises(ValueError, match=words):
        Reading(size, crop_pct)
    assert Reading(4096, 0.5).size == 4096 and Reading(1, 1 / 8192).crop_pct == 1 / 8192


# --- Room in memory ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("room, train, heldout", [(11, Data, Data), (10, Data, Streamed), (9, Streamed, Streamed)])
def test_what_is_kept_in_memory(tmp_path, root, monkeypatch, room, train, heldout):
    """P8: training images are kept where they fit, held-out ones where both do, to the byte; pixels, mean and std are
    the same, whatever the number of threads and of files that are decoded at a time."""
    monkeypatch.setattr(inputs, "PART", 4)
    monkeypatch.setattr(inputs, "TASK", 3)
    folder, reading = open_folder(root, [written(tmp_path, "b.txt", "9")]), Reading(8)
    found = load(folder, reading, workers=0, room=room * reading.size_of(1))
    assert [type(part) for part in found] == [train, heldout]
    for part, whole in zip(found, load(folder, reading, workers=3), strict=True):
        every = torch.arange(len(whole))
        assert torch.equal(part.some(every).images, whole.images) and torch.equal(part.labels, whole.labels)
        assert part.mean == pytest.approx(whole.mean) and part.std == pytest.approx(whole.std)
        assert whole.images.nbytes == reading.size_of(len(whole))
    assert type(load(folder, reading, workers=0, room=room * reading.size_of(1) - 1)[1]) is Streamed


def test_mean_and_std_are_the_given_ones_or_those_of_the_training_images(root):
    """B4: the images' own mean and std, over all pixels, unless they are given; streamed in parts or in memory."""
    paths, labels = training(root), torch.zeros(10, dtype=torch.int64)
    pixels = decode(paths, Reading(8)).double() / 255
    own = pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3), correction=0).clamp_min(1 / 255)  # green is 0
    for room in (math.inf, 0):
        data = load_images(Files(paths, labels, Reading(8)), 2, 0, room)
        assert data.mean == pytest.approx(own[0].tolist()) and data.std == pytest.approx(own[1].tolist())
        data = load_images(Files(paths, labels, Reading(8, mean=(0.1,) * 3, std=(0.2,) * 3)), 2, 0, room)
        assert (data.mean, data.std) == ((0.1,) * 3, (0.2,) * 3)


def test_room_for_images(monkeypatch):
    """P8: half of what is free, on a GPU too, or the given GB; a bad number is refused."""
    cpu = torch.device("cpu")
    # in place of /proc/meminfo, which is another one on every machine
    monkeypatch.setattr(inputs.Path, "read_text", lambda path: "MemFree: 1 kB\nMemAvailable:   4000 kB\n")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3000, 9000))  # free, and all of it
    assert room_for_images(torch.device("cuda")) == 1500
    assert room_for_images(cpu) == 4000 * 1024 / 2
    monkeypatch.setattr(inputs.Path, "read_text", lambda path: "what")
    assert room_for_images(cpu) == float("inf") and room_for_images(cpu, 1.5) == 1.5e9
    with pytest.raises(ValueError, match="--max-memory is -1"):
        room_for_images(cpu, -1.0)
