"""The triggers beyond the paper's (experiment/corruptions.py): their formulas by loops, after crop and flip, on test
images.

The white patch, the paper's trigger, is in tests/paper/test_tasks.py, who is misled by it in test_metrics.py.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tasks
from engine.streams import stream
from experiment.corruptions import TRIGGERS
from experiment.data import Data, Dataset, batches
from experiment.stored_tasks import load_task, read_task, save_task
from helpers import gen, make_dataset, seeds

SHAPES = st.tuples(st.integers(3, 8), st.integers(3, 8), st.sampled_from([1, 3]))  # height, width, channels
OTHERS = list(TRIGGERS)[1:]


def pictures(seed, n, height, width, channels) -> torch.Tensor:
    """Random images, black and white pixels among them."""
    values = torch.randint(-40, 296, (n, channels, height, width), generator=gen(seed))
    return values.clamp(0, 255).to(torch.uint8)


# --- Formulas ---------------------------------------------------------------------------------------------------------

def cubic(t: float) -> float:
    """The weight of a knot at distance t in cubic convolution, a = -0.75 (Keys 1981)."""
    a, t = -0.75, abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def between_knots(knots: np.ndarray, place: float) -> float:
    """Cubic convolution of four knots (4,) at a place in [0, 3], the outer knots repeated."""
    first = math.floor(place)
    return sum(cubic(place - k) * knots[min(max(k, 0), 3)] for k in range(first - 1, first + 3))


def between_pixels(image: np.ndarray, row: float, column: float) -> float:
    """Bilinear interpolation of an image (H, W) at a place within it."""
    top, left = min(int(row), image.shape[0] - 1), min(int(column), image.shape[1] - 1)
    below, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
    down, across = row - top, column - left
    return ((1 - down) * ((1 - across) * image[top, left] + across * image[top, right])
            + down * ((1 - across) * image[below, left] + across * image[below, right]))


def by_loops(image: np.ndarray, trigger: str) -> np.ndarray:
    """An image (C, H, W) with a trigger, pixel by pixel, before it is rounded."""
    channels, height, width = image.shape
    found = np.zeros(image.shape)
    if trigger == "blended":
        p = torch.randint(0, 256, image.shape, generator=stream(0, "trigger blended"), dtype=torch.int16).numpy()
    if trigger == "warp":
        u = 2 * torch.rand(1, 2, 4, 4, generator=stream(0, "trigger warp"), dtype=torch.float64)[0].numpy() - 1
        u = u / np.abs(u).mean()
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                if trigger == "patch":
                    found[c, i, j] = 255 if i >= height - 3 and j >= width - 3 else image[c, i, j]
                elif trigger == "blended":
                    found[c, i, j] = 0.8 * image[c, i, j] + 0.2 * p[c, i, j]
                elif trigger == "sinusoidal":
                    found[c, i, j] = min(max(image[c, i, j] + 40 * math.sin(2 * math.pi * 6 * j / width), 0), 255)
                else:
                    place = 3 * i / (height - 1), 3 * j / (width - 1)
                    across, down = (between_knots([between_knots(line, place[1]) for line in one], place[0])
                                    for one in u)
                    y = min(max(2 * i / (height - 1) - 1 + 0.5 * down / height, -1), 1)
                    x = min(max(2 * j / (width - 1) - 1 + 0.5 * across / width, -1), 1)
                    found[c, i, j] = between_pixels(image[c], (y + 1) / 2 * (height - 1), (x + 1) / 2 * (width - 1))
    return found


@pytest.mark.parametrize("trigger", TRIGGERS)
@given(seeds, SHAPES, st.integers(0, 3))
def test_formulas(trigger, seed, shape, n):
    """Each trigger is its formula, pixel by pixel, to the nearest whole number, on any number of images, which are left
    as they were; the global random state has no part and stays."""
    images = pictures(seed, n, *shape)
    torch.manual_seed(seed)
    before, state = images.clone(), torch.get_rng_state()
    found = TRIGGERS[trigger](images)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(images, before)
    assert found.dtype == torch.uint8 and found.shape == images.shape
    for image, ours in zip(images.double().numpy(), found.double().numpy(), strict=True):
        assert np.abs(by_loops(image, trigger) - ours).max() <= 0.5 + 1e-9


# --- On the images of a task ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("trigger", OTHERS)
@given(seeds, SHAPES, st.integers(0, 3), st.booleans(), st.integers(1, 15))
def test_after_crop_and_flip(trigger, seed, shape, pad, flip, n):
    """D_c's images carry it; in an augmented batch it is put on after crop and flip, and others are as ever."""
    images = pictures(seed, 15, *shape)
    channels = shape[2]
    plain = Data(images, torch.arange(15) % 4, 4, (0.0,) * channels, (1 / 255,) * channels, pad=pad, flip=flip)
    task = tasks.make_task("poison", Dataset("made", plain, plain, tuple("abcd")), n, seed, trigger=TRIGGERS[trigger])
    shown = images.clone()
    shown[task.corrupted] = TRIGGERS[trigger](images[task.corrupted])
    assert torch.equal(task.train.images, shown) and torch.equal(plain.images, images)
    both = (batches(data, size=4, generator=gen(seed), augment=True) for data in (task.train, plain))
    for (rows, x, _), (again, clean, _) in zip(*both, strict=True):
        hit = torch.isin(rows, task.corrupted)
        expected = clean.round().to(torch.uint8)
        expected[hit] = TRIGGERS[trigger](expected[hit])
        assert torch.equal(rows, again) and torch.equal(x.round().to(torch.uint8), expected)


@given(seeds)
def test_same_images_whatever_the_trigger(seed):
    """One seed poisons the same images with the same labels, whatever the trigger."""
    made = [tasks.make_task("poison", make_dataset(seed), 6, seed, trigger=trigger) for trigger in TRIGGERS.values()]
    for task in made[1:]:
        assert torch.equal(task.corrupted, made[0].corrupted) and torch.equal(task.train.labels, made[0].train.labels)
        assert not torch.equal(task.train.images, made[0].train.images) and task.source == made[0].source


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_test_images_and_files(trigger, tmp_path):
    """The metrics' test images carry it, out of a file too; one that is older than the other triggers has the patch."""
    dataset = make_dataset(0, pad=1)
    task = tasks.make_task("poison", dataset, 6, 0, trigger=TRIGGERS[trigger])
    save_task(task, tmp_path / "x.task")
    loaded = load_task(tmp_path / "x.task", dataset)
    for one in (task, loaded):
        assert torch.equal(tasks.like_corrupted(one).images, TRIGGERS[trigger](dataset.test.images))
        assert torch.equal(one.test.images, dataset.test.images)
    both = (batches(one.train, generator=gen(1), augment=True) for one in (task, loaded))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(*both, strict=True))
    content = read_task(tmp_path / "x.task")
    del content["trigger"]
    torch.save(content, tmp_path / "old.task")
    assert load_task(tmp_path / "old.task", dataset).trigger is tasks.add_trigger
