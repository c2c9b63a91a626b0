"""Image files but for their borders (repair/images.py): decoded, left out if asked, in memory where there is room."""

import math
import os

import pytest
import torch
from PIL import Image

from experiment.data import Data, Streamed
from image_tree import root, training, written  # noqa: F401
from repair import images
from repair.images import Reading, decode, free_in_group, load_images, room_for_images
from repair.inputs import open_folder

# --- Damaged and foreign files ----------------------------------------------------------------------------------------

def test_images_that_cannot_be_decoded(tmp_path, root, monkeypatch):
    """B5: truncated, empty, foreign and monstrous images and pipes are refused by name, or left out of all if asked."""
    whole = (root / "train/ant/0.png").read_bytes()
    (root / "train/ant/0.png").write_bytes(whole[:40])
    (root / "train/ant/1.png").write_bytes(b"")  # one of D_f
    (root / "train/bee/1.png").write_bytes(b"no image at all")
    Image.new("1", (20_000, 20_000)).save(root / "train/bee/2.png")  # 50 kB that would be 1.2 GB
    (root / "train/bee/3.png").unlink()
    os.mkfifo(root / "train/bee/3.png")  # which would be waited for
    (root / "val/bee/8.png").write_bytes(whole[:40])
    bad = written(tmp_path, "b.txt", "1\n4\n9")
    clean = written(tmp_path, "c.csv", "path,label\nalone.png,ant\nant/1.png,bee\n")
    with pytest.raises(ValueError, match=r"5 images cannot be decoded, .*ant/0.png .* first; .*--skip-bad-images"):
        open_folder(root, bad).load(Reading(8))
    folder = open_folder(root, bad, clean)
    train, heldout, skipped = folder.load(Reading(8), skip=True)
    kept = [path for path in training(root) if path.relative_to(root / "train").as_posix() not in
            ("ant/0.png", "ant/1.png", "bee/1.png", "bee/2.png", "bee/3.png")]
    assert folder.paths == kept and len(train) == 5 and len(heldout) == 1 and len(skipped) == 6
    assert [kept[i].name for i in folder.forget] == ["4.png", "alone.png"]
    assert folder.clean.tolist() == [-1] * 4 + [0]
    assert train.images[0, 0].eq(20).all()  # ant/2.png is first now
    assert train.labels.tolist() == [0] * 3 + [1] * 2 and heldout.labels.tolist() == [1]
    monkeypatch.setattr(images, "PART", 4)  # files that are decoded at a time where none is kept
    folder = open_folder(root, bad, clean)
    streamed, _, left_out = folder.load(Reading(8), workers=0, skip=True, room=0)
    assert isinstance(streamed, Streamed) and folder.paths == kept and left_out == skipped
    assert torch.equal(streamed.labels, train.labels) and streamed.mean == pytest.approx(train.mean)
    assert torch.equal(streamed.some(torch.arange(5)).images, train.images)


@pytest.mark.parametrize("room", [math.inf, 0])
@pytest.mark.parametrize("part", ["train", "val"])
def test_a_folder_without_an_image_that_can_be_decoded(root, tmp_path, part, room):
    """B4: with `skip` too, training images or held-out ones of which none can be decoded are told at once."""
    broken = sorted(path for path in (root / part).rglob("*.png"))
    for path in broken:
        path.write_bytes(b"no image at all")
    folder = open_folder(root, written(tmp_path, "b.txt", "1"))
    with pytest.raises(ValueError, match=f"none of {len(broken)} images can be decoded, .*/{part}/.* first; check"):
        folder.load(Reading(8), workers=0, skip=True, room=room)


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "jp2", "png", "ppm", "pgm", "tif", "webp"])
def test_images_of_every_kind_that_is_read(tmp_path, suffix):
    """B4: each kind of image that a folder may hold is decoded by its contents, whatever the suffix."""
    Image.new("L" if suffix == "pgm" else "RGB", (8, 8), 200 if suffix == "pgm" else (200,) * 3).save(
        tmp_path / f"x.{suffix}")
    (tmp_path / f"x.{suffix}").rename(tmp_path / "x.png")
    images, _ = decode([tmp_path / "x.png"], Reading(8))
    assert (images.int() - 200).abs().max() <= 2


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
def test_what_is_kept_in_memory(tmp_path, root, room, train, heldout):
    """P8: training images are kept where they fit, held-out ones where both do, to the byte; pixels are the same."""
    folder, reading = open_folder(root, written(tmp_path, "b.txt", "9")), Reading(8, mean=(0.5,) * 3, std=(0.2,) * 3)
    found = folder.load(reading, workers=0, room=room * reading.size_of(1))
    assert [type(part) for part in found[:2]] == [train, heldout]
    for part, whole in zip(found[:2], folder.load(reading)[:2], strict=True):
        every = torch.arange(len(whole))
        assert torch.equal(part.some(every).images, whole.images) and torch.equal(part.labels, whole.labels)
        assert (part.mean, part.std) == (whole.mean, whole.std) and whole.images.nbytes == reading.size_of(len(whole))
    assert type(folder.load(reading, workers=0, room=room * reading.size_of(1) - 1)[1]) is Streamed


def test_mean_and_std_are_the_given_ones_or_those_of_the_training_images(root):
    """B4: the images' own mean and std, over all pixels, unless they are given; streamed in parts or in memory."""
    paths, labels = training(root), torch.zeros(10, dtype=torch.int64)
    pixels = decode(paths, Reading(8))[0].double() / 255
    own = pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3), correction=0).clamp_min(1 / 255)  # green is 0
    for room in (math.inf, 0):
        data, _ = load_images(paths, labels, 2, Reading(8), workers=0, room=room)
        assert data.mean == pytest.approx(own[0].tolist()) and data.std == pytest.approx(own[1].tolist())
        for skip in (False, True):
            given = Reading(8, mean=(0.1,) * 3, std=(0.2,) * 3)
            data, _ = load_images(paths, labels, 2, given, workers=0, room=room, skip=skip)
            assert (data.mean, data.std) == ((0.1,) * 3, (0.2,) * 3)


def test_room_for_images(monkeypatch):
    """P8: half of what is free, on a GPU too, or the given GB; a bad number is refused."""
    cpu = torch.device("cpu")
    # in place of /proc/meminfo, which is another one on every machine
    monkeypatch.setattr(images.Path, "read_text", lambda path: "MemFree: 1 kB\nMemAvailable:   4000 kB\n")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3000, 9000))  # free, and all of it
    assert room_for_images(torch.device("cuda")) == 1500
    assert room_for_images(cpu) == 4000 * 1024 / 2
    monkeypatch.setattr(images.Path, "read_text", lambda path: "what")
    assert room_for_images(cpu) == float("inf") and room_for_images(cpu, 1.5) == 1.5e9
    with pytest.raises(ValueError, match="--max-memory is -1"):
        room_for_images(cpu, -1.0)


def test_room_in_a_container(tmp_path):
    """P8: the least that a limit on the own group or one above it leaves, file caches counted as free."""
    root, own = tmp_path / "cgroup", tmp_path / "self"
    (root / "a" / "b").mkdir(parents=True)
    own.write_text("4:memory:/x\n0::/a/b\n")
    assert free_in_group(own, root) == free_in_group(tmp_path / "none", root) == float("inf")
    for place, limit in ((root / "a", 1000), (root / "a" / "b", "max"), (root, 700)):
        (place / "memory.max").write_text(f"{limit}\n")
        (place / "memory.current").write_text("500\n")
        (place / "memory.stat").write_text("anon 300\ninactive_file 150\n")
    assert free_in_group(own, root) == 350
    (root / "memory.max").unlink()
    assert free_in_group(own, root) == 650
    own.write_text("4:memory:/x\n")
    assert free_in_group(own, root) == float("inf")
