"""T16: a task in a file: labels are stored with the task, so that a second process sees those of training (A.3)."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiment.data import Data
from experiment.files import load_task, save_task
from helpers import seeds
from tasks import discover, fingerprint, make_task
from test_tasks import assert_same_task, balanced, cases


@given(cases())
def test_t16_round_trip(tmp_path_factory, case):
    """T16: a saved task loads as the very labels, clean labels, D_c and triggered images: what is in the file counts,
    whatever labels the data set has by now."""
    task, dataset, path = make_task(*case), case[1], tmp_path_factory.mktemp("task") / "deep" / "er" / "task.pt"
    save_task(task, path)
    assert [p.name for p in path.parent.iterdir()] == ["task.pt"]
    redrawn = replace(dataset, train=replace(dataset.train, labels=dataset.train.labels.roll(1)))
    for onto in (dataset, redrawn):
        found = load_task(path, onto)
        assert_same_task(found, task)
        assert found.test is dataset.test
        assert torch.equal(discover(found, 1.0, 3), discover(task, 1.0, 3))


@pytest.mark.parametrize("name", ["poison", "random"])
def test_t16_a_loaded_task_is_saved_as_itself(tmp_path, name):
    """T16: a task that was loaded and saved again still belongs to the images before corruption."""
    dataset, first, second = balanced(0), tmp_path / "first.pt", tmp_path / "second.pt"
    save_task(make_task(name, dataset, 5, 0), first)
    save_task(load_task(first, dataset), second)
    assert_same_task(load_task(second, dataset), load_task(first, dataset))


def test_t16_second_process(tmp_path):
    """T16: a second process with other random states sees the very labels."""
    task, path, out = make_task("random", balanced(7), 9, 3), tmp_path / "task.pt", tmp_path / "found.pt"
    save_task(task, path)
    code = ("import torch, test_files as t\n"
            "torch.manual_seed(99)\n"
            f"task = t.load_task({str(path)!r}, t.balanced(7))\n"
            f"torch.save([task.train.labels, task.clean, task.corrupted, t.discover(task, 0.5, 1)], {str(out)!r})\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr
    found = torch.load(out, weights_only=True)
    for a, b in zip(found, [task.train.labels, task.clean, task.corrupted, discover(task, 0.5, 1)], strict=True):
        assert torch.equal(a, b)


@given(seeds, st.integers(0, 23), st.integers(1, 255))
def test_t16_other_images(tmp_path_factory, seed, where, step):
    """T16: one pixel of one image changed, images left out or in another order -> ValueError; so is a missing file."""
    dataset, path = balanced(seed), tmp_path_factory.mktemp("task") / "task.pt"
    save_task(make_task("poison", dataset, 5, seed), path)
    images = dataset.train.images.clone()
    images[where, 0, 1, 2] = (int(images[where, 0, 1, 2]) + step) % 256
    shorter = replace(dataset.train, images=images[:-1], labels=dataset.train.labels[:-1])
    turned = replace(dataset.train, images=dataset.train.images.flip(0))
    for other in (replace(dataset.train, images=images), shorter, turned):
        with pytest.raises(ValueError, match="made from other training images"):
            load_task(path, replace(dataset, train=other))
    with pytest.raises(ValueError, match="no task file at"):
        load_task(path.with_name("absent.pt"), dataset)


@given(seeds, st.integers(0, 5), st.integers(1, 255))
def test_t16_another_test_set(tmp_path_factory, seed, where, step):
    """T16: a test set with one other pixel, one other label or one image less -> ValueError; a file from before test
    sets were noted loads."""
    dataset, path = balanced(seed), tmp_path_factory.mktemp("task") / "task.pt"
    save_task(make_task("poison", dataset, 5, seed), path)
    test = dataset.test
    images, labels = test.images.clone(), test.labels.clone()
    images[where, 0, 1, 2] = (int(images[where, 0, 1, 2]) + step) % 256
    labels[where] = (labels[where] + 1) % test.classes
    for other in (replace(test, images=images), replace(test, labels=labels),
                  replace(test, images=test.images[1:], labels=test.labels[1:])):
        with pytest.raises(ValueError, match="made from other test images"):
            load_task(path, replace(dataset, test=other))
    content = torch.load(path, weights_only=True)
    del content["test"]
    torch.save(content, path)
    load_task(path, replace(dataset, test=replace(test, images=images)))


def test_t16_last_image():
    """T16: of 9,000 images one pixel of the last makes other data of them."""
    images = torch.zeros(9000, 1, 3, 3, dtype=torch.uint8)
    data = Data(images, torch.zeros(9000, dtype=torch.int64), 2, (0.5,), (0.5,))
    before = fingerprint(data)
    images[-1, 0, -1, -1] = 1
    assert fingerprint(data) != before


def test_t16_layout_and_shape_of_images(tmp_path):
    """T16: the memory format makes no other data of the images, another shape of the same bytes does."""
    dataset = balanced(0, channels=3, size=6)
    save_task(make_task("random", dataset, 5, 0), tmp_path / "task.pt")
    images = dataset.train.images
    last = replace(dataset.train, images=images.contiguous(memory_format=torch.channels_last))
    load_task(tmp_path / "task.pt", replace(dataset, train=last))
    with pytest.raises(ValueError, match="made from other training images"):
        wide = replace(dataset.train, images=images.view(24, 3, 4, 9))
        load_task(tmp_path / "task.pt", replace(dataset, train=wide))
