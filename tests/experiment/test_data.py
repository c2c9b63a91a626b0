"""Tests of data.py, datasets.py and make_fashion_mini.py: batches, augmentation, the trigger, and every loader."""

import os
import pickle
import random
import subprocess
import sys
import types
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from experiment import data as data_module
import make_fashion_mini
from experiment import datasets
from experiment.data import Data, batches
from experiment.datasets import DATASETS, load
from tasks import add_trigger, put_trigger

ROOT = Path(data_module.__file__).resolve().parent
seeds = st.integers(0, 2**31 - 1)


def gen(seed):
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True, eq=False)
class Known(Data):
    """Data that remembers, for the oracle, its images without the trigger and which of them carry it."""

    raw: torch.Tensor | None = None
    carries: torch.Tensor | None = None


def make_data(seed, n=7, channels=3, height=5, width=6, classes=4, trigger=None, **kwargs):
    """Random images of 1..254, so that neither padding (0) nor trigger (255) occurs in them by accident."""
    generator = gen(seed)
    images = torch.randint(1, 255, (n, channels, height, width), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, classes, (n,), generator=generator)
    carries = torch.rand(n, generator=generator) < (0.5 if trigger else 0)
    mean = tuple(0.3 + 0.1 * c for c in range(channels))
    std = tuple(0.2 + 0.05 * c for c in range(channels))
    data = Known(images, labels, classes, mean, std, raw=images, carries=carries, **kwargs)
    return put_trigger(data, carries.nonzero().flatten()) if trigger else data


@st.composite
def datas(draw, trigger=st.sampled_from([None, "some"])):
    return make_data(
        draw(seeds),
        n=draw(st.integers(1, 13)),
        channels=draw(st.sampled_from([1, 3])),
        height=draw(st.integers(3, 7)),
        width=draw(st.integers(3, 7)),
        pad=draw(st.integers(0, 4)),
        flip=draw(st.booleans()),
        trigger=draw(trigger),
    )


def augment_oracle(data, index, generator):
    """One pass in plain loops: (order (n,), images (n, C, H, W) uint8) from the draws that `batches` documents."""
    n, (_, channels, height, width) = len(index), data.images.shape
    order = [int(index[i]) for i in torch.randperm(n, generator=generator)]
    corners = torch.zeros(2, n, dtype=torch.int64)
    flips = torch.zeros(n, dtype=torch.int64)
    if data.pad:
        corners = torch.randint(0, 2 * data.pad + 1, (2, n), generator=generator)
    if data.flip:
        flips = torch.randint(0, 2, (n,), generator=generator)
    images = np.zeros((n, channels, height, width), np.uint8)
    for k, i in enumerate(order):
        padded = np.zeros((channels, height + 2 * data.pad, width + 2 * data.pad), np.uint8)
        padded[:, data.pad : data.pad + height, data.pad : data.pad + width] = data.raw[i].numpy()
        top, left = int(corners[0, k]), int(corners[1, k])
        crop = padded[:, top : top + height, left : left + width]
        if flips[k]:
            crop = crop[:, :, ::-1]
        images[k] = crop
        if data.carries[i]:
            images[k, :, height - 3 :, width - 3 :] = 255
    return order, images


def normalise_oracle(data, images):
    """(x / 255 - mean) / std in float64."""
    mean, std = (np.array(value).reshape(1, -1, 1, 1) for value in (data.mean, data.std))
    return (images / 255 - mean) / std


def assert_same(a, b):
    """Two passes are bitwise equal."""
    for left, right in zip(a, b, strict=True):
        for one, other in zip(left, right, strict=True):
            assert torch.equal(one, other)


# ---- batches ---------------------------------------------------------------------------------------------------------


@given(datas(), st.integers(1, 15), seeds)
def test_each_example_once(data, size, seed):
    """A7: a shuffled pass visits every index exactly once, with its own label, in batches of `size`."""
    found = list(batches(data, size=size, generator=gen(seed), augment=True))
    order = torch.cat([index for index, _, _ in found])
    assert torch.equal(order.sort().values, torch.arange(len(data)))
    assert order.dtype == torch.int64 and order.device.type == "cpu"
    for index, x, y in found:
        assert len(index) == len(x) == len(y)
        assert torch.equal(y, data.labels[index])
        assert x.shape[1:] == data.images.shape[1:] and x.dtype == torch.float32


@given(st.integers(1, 40), st.integers(1, 12), st.booleans(), seeds)
def test_batch_sizes(n, size, shuffle, seed):
    """The last, smaller batch is kept; in a shuffled pass a last batch of one joins the batch before it."""
    data = make_data(seed, n=n)
    sizes = [len(index) for index, _, _ in batches(data, size=size, generator=gen(seed) if shuffle else None)]
    expected = [size] * (n // size) + [n % size] * (n % size > 0)
    if shuffle and len(expected) > 1 and size > 1 and expected[-1] == 1:
        expected[-2:] = [size + 1]
    assert sizes == expected


@pytest.mark.parametrize(
    "n, size, shuffled", [(1, 4, [1]), (5, 4, [5]), (9, 4, [4, 5]), (3, 1, [1, 1, 1]), (4, 4, [4])]
)
def test_batch_sizes_by_hand(n, size, shuffled):
    """The merging rule on cases worked out by hand."""
    assert [len(i) for i, _, _ in batches(make_data(0, n=n), size=size, generator=gen(0))] == shuffled


@given(datas(), seeds, st.data())
def test_given_index(data, seed, draw):
    """A pass over an index, duplicates allowed, keeps its order without a generator and permutes it with one."""
    index = torch.tensor(draw.draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=20)))
    kept = index.clone()
    passed = index.clone()
    waiting = batches(data, passed, size=3)
    passed.fill_(-1)  # what the caller does to the index later does not reach a pass that was already checked
    plain = torch.cat([i for i, _, _ in waiting])
    mixed = torch.cat([i for i, _, _ in batches(data, index, size=3, generator=gen(seed))])
    assert torch.equal(plain, index)
    assert torch.equal(mixed.sort().values, index.sort().values)
    assert torch.equal(index, kept)


@given(datas(), seeds)
def test_determined_by_generator(data, seed):
    """R4: same generator state, same pass, bitwise, and the same state afterwards."""
    a, b = gen(seed), gen(seed)
    assert_same(batches(data, size=4, generator=a, augment=True), batches(data, size=4, generator=b, augment=True))
    assert torch.equal(a.get_state(), b.get_state())


def test_two_passes_differ():
    """A7: the order is drawn afresh in every pass of one generator."""
    data, generator = make_data(0, n=50), gen(0)
    first, second = (torch.cat([i for i, _, _ in batches(data, generator=generator)]) for _ in range(2))
    assert not torch.equal(first, second)


@given(datas(), seeds)
def test_global_rng_untouched(data, seed):
    """T10: a pass with everything on leaves the random states of torch, numpy and python as they were."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    list(batches(data, size=3, generator=gen(seed), augment=True))
    assert torch.equal(before[0], torch.get_rng_state())
    assert all(np.array_equal(a, b) for a, b in zip(before[1], np.random.get_state(), strict=True))
    assert before[2] == random.getstate()


@given(datas(), seeds)
def test_draws_only_what_it_needs(data, seed):
    """No draw for a crop when pad is 0, for a flip when flip is off, for either without augment."""
    used, wanted = gen(seed), gen(seed)
    list(batches(data, size=3, generator=used, augment=True))
    augment_oracle(data, torch.arange(len(data)), wanted)
    assert torch.equal(used.get_state(), wanted.get_state())
    plain, order = gen(seed), gen(seed)
    list(batches(data, size=3, generator=plain))
    torch.randperm(len(data), generator=order)
    assert torch.equal(plain.get_state(), order.get_state())


@given(datas(), seeds, st.integers(1, 6))
def test_augmentation_equals_loops(data, seed, size):
    """Order, crop, flip, trigger and normalisation equal numpy loops over single images, in float64."""
    order, images = augment_oracle(data, torch.arange(len(data)), gen(seed))
    found = list(batches(data, size=size, generator=gen(seed), augment=True, dtype=torch.float64))
    assert torch.cat([index for index, _, _ in found]).tolist() == order
    x = torch.cat([x for _, x, _ in found]).numpy()
    np.testing.assert_allclose(x, normalise_oracle(data, images), rtol=0, atol=1e-12)


@given(datas(), seeds, st.data())
def test_augmented_index_equals_loops(data, seed, draw):
    """The same with a given index, where moves belong to the place in the pass: duplicates get their own."""
    index = torch.tensor(draw.draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=9)))
    order, images = augment_oracle(data, index, gen(seed))
    ((found, x, _),) = batches(data, index, generator=gen(seed), augment=True, dtype=torch.float64)
    assert found.tolist() == order
    np.testing.assert_allclose(x.numpy(), normalise_oracle(data, images), rtol=0, atol=1e-12)


@given(datas())
def test_normalisation(data):
    """x is (pixel / 255 - mean) / std of the images; bfloat16 is float32 rounded once."""
    ((_, x32, _),) = batches(data)
    ((_, x16, _),) = batches(data, dtype=torch.bfloat16)
    # |x| is at most 5 and the largest intermediate 5: a few units of 2^-24 each
    np.testing.assert_allclose(x32.numpy(), normalise_oracle(data, data.images.numpy()), rtol=0, atol=3e-6)
    assert torch.equal(x16, x32.to(torch.bfloat16))


@given(datas(trigger=st.none()))
def test_flip_is_an_involution(data):
    """Flipping by column indices twice gives the image back, and equals tensor.flip."""
    moves = torch.zeros(3, len(data), dtype=torch.int64)
    moves[:2], moves[2] = data.pad, 1  # a crop at the middle of the padding is the image itself
    rows, cols = data_module._crop_indices(moves, *data.images.shape[2:])
    once = data_module._move(data.images, data.pad, rows, cols)
    assert torch.equal(once, data.images.flip(3))
    assert torch.equal(data_module._move(once, data.pad, rows, cols), data.images)


def test_crops_and_flips_are_uniform():
    """stat: every corner of the crop and either flip come up within 5 sd of their share (seed 0, 4000 draws)."""
    data = make_data(0, n=4000, height=3, width=3, pad=1, flip=True)
    top, left, flipped = data_module._draw_moves(data, 4000, gen(0))
    for values, choices in ((top, 3), (left, 3), (flipped, 2), (top * 3 + left, 9), (left * 2 + flipped, 6)):
        p = 1 / choices
        bound = 5 * (4000 * p * (1 - p)) ** 0.5
        assert all(abs(int((values == v).sum()) - 4000 * p) < bound for v in range(choices))


# ---- trigger ---------------------------------------------------------------------------------------------------------


@given(datas(trigger=st.just("some")), seeds)
def test_trigger_stays_in_corner(data, seed):
    """T12: crop and flip never move the trigger: all of the corner is white, and nothing else is."""
    for index, x, _ in batches(data, size=4, generator=gen(seed), augment=True, dtype=torch.float64):
        white = torch.tensor([(1 - m) / s for m, s in zip(data.mean, data.std, strict=True)], dtype=torch.float64)
        is_white = (x - white.view(1, -1, 1, 1)).abs() < 1e-9
        corner = torch.zeros_like(is_white)
        corner[:, :, -3:, -3:] = True
        assert torch.equal(is_white, corner & data.carries[index][:, None, None, None])


@given(datas(trigger=st.none()))
def test_add_trigger(data):
    """T4: only the 3x3 corner changes, to 255; twice is once; the input is left alone."""
    kept = data.images.clone()
    poisoned = add_trigger(data.images)
    assert torch.equal(data.images, kept)
    assert (poisoned[:, :, -3:, -3:] == 255).all()
    rest = torch.ones(data.images.shape[2:], dtype=torch.bool)
    rest[-3:, -3:] = False
    assert torch.equal(poisoned[:, :, rest], kept[:, :, rest])
    assert torch.equal(add_trigger(poisoned), poisoned)
    assert add_trigger(data.images.double()).dtype == torch.float64 and poisoned.dtype == torch.uint8


@given(datas())
def test_put_trigger(data):
    """V4: the images are as the network sees them without augmentation: with the trigger where there is one."""
    expected = torch.where(data.carries[:, None, None, None], add_trigger(data.raw), data.raw)
    assert torch.equal(data.images, expected) and data.images.dtype == torch.uint8


@given(datas(), seeds)
def test_inputs_not_mutated(data, seed):
    """T13: a pass changes no tensor that it was given, and what it yields shares no memory with them."""
    kept = [t.clone() for t in (data.images, data.labels, data.raw)]
    for index, x, y in batches(data, size=3, generator=gen(seed), augment=True):
        x.zero_(), y.zero_(), index.zero_()
    for before, after in zip(kept, (data.images, data.labels, data.raw), strict=True):
        assert torch.equal(before, after)


# ---- validation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-1, 60, 10**6])
def test_index_out_of_range(bad):
    """M18: the first index out of range is named; a negative one does not wrap."""
    data = make_data(0, n=60)
    with pytest.raises(ValueError, match=f"^index {bad} out of range for 60 examples$"):
        batches(data, torch.tensor([3, bad, -7]))  # raised before any batch is asked for


@pytest.mark.parametrize(
    "kwargs, text",
    [
        (dict(index=torch.tensor([], dtype=torch.int64)), "empty"),
        (dict(index=torch.tensor([0.0])), "float32"),
        (dict(index=torch.tensor([True])), "bool"),
        (dict(index=torch.tensor([1], dtype=torch.int32)), "int32"),
        (dict(index=torch.tensor([[1]])), r"\(1, 1\)"),
        (dict(size=0), "size is 0"),
        (dict(augment=True), "generator"),
    ],
)
def test_batches_refuses(kwargs, text):
    """Bad arguments are a ValueError at the call, not at the first batch."""
    with pytest.raises(ValueError, match=text):
        batches(make_data(0), **kwargs)


@pytest.mark.parametrize(
    "change, error, text",
    [
        (dict(images=torch.zeros(7, 3, 5, 6)), TypeError, "images is torch.float32"),
        (dict(images=torch.zeros(7, 5, 6, dtype=torch.uint8)), TypeError, "3 dimensions"),
        (dict(images=np.zeros((7, 3, 5, 6), np.uint8)), TypeError, "ndarray"),
        (dict(labels=torch.zeros(7)), TypeError, "labels is torch.float32"),
        (dict(labels=torch.zeros(6, dtype=torch.int64)), ValueError, "6 entries for 7 images"),
        (dict(labels=torch.full((7,), 4)), ValueError, "4 to 4, expected 0 to 3"),
        (dict(labels=torch.full((7,), -1)), ValueError, "-1 to -1"),
        (dict(mean=(0.5,)), ValueError, "3 channels"),
        (dict(std=(0.5, 0.5)), ValueError, "3 channels"),
        (dict(std=(0.5, 0.5, 0.0)), ValueError, "std above 0"),
        (dict(mean=(0.5, 0.5, 113.9)), ValueError, "scaled to .0, 1., mean from 0 to 1"),
        (dict(mean=(0.5, -0.1, 0.5)), ValueError, "mean from 0 to 1"),
        (dict(mean=(0.5, float("nan"), 0.5)), ValueError, "mean from 0 to 1"),
        (dict(pad=-1), ValueError, "pad is -1"),
    ],
)
def test_data_refuses(change, error, text):
    """Data checks itself, and says what it found and what it wants."""
    with pytest.raises(error, match=text):
        replace(make_data(0), **change)


@pytest.mark.parametrize("height, width", [(2, 9), (9, 2)])
def test_trigger_too_large(height, width):
    """T14: an image smaller than the trigger is a ValueError with the numbers."""
    with pytest.raises(ValueError, match=f"{height}x{width} is smaller than the 3x3"):
        add_trigger(torch.zeros(1, 1, height, width, dtype=torch.uint8))
    with pytest.raises(ValueError, match="smaller"):
        put_trigger(make_data(0, height=height, width=width), torch.tensor([1]))


def test_to_device():
    """Data.to moves every tensor; tensors on different devices are refused."""
    data = make_data(0, trigger="some", pad=2, flip=True)
    moved = data.to("cpu")
    assert len(moved) == 7 and moved.pad == 2 and moved.flip and moved._overlay is data._overlay
    with pytest.raises(ValueError, match="labels is on meta"):
        replace(data, labels=data.labels.to("meta"))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # torch says that it is a prototype
def test_cuda_equals_cpu_without_synchronising():
    """M5: a pass on the GPU gives the CPU's batches, channels_last, and waits for the device only at its start."""
    data = make_data(0, n=300, trigger="some", pad=2, flip=True)
    moved = data.to("cuda")
    passes = batches(moved, size=64, generator=gen(1), augment=True)
    found = [next(passes)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        found += list(passes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(found, batches(data, size=64, generator=gen(1), augment=True), strict=True):
        assert ours[0].device.type == "cpu" and torch.equal(ours[0], theirs[0])
        assert ours[1].is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(ours[1].cpu(), theirs[1], atol=3e-6) and torch.equal(ours[2].cpu(), theirs[2])


# ---- loaders ---------------------------------------------------------------------------------------------------------


def test_fashion_mini():
    """The built-in set: 6,000 and 2,000 images of 16x16, equally many of each class, at most 4 MB on disk."""
    dataset = load("fashion-mini")
    assert dataset.train.images.shape == (6000, 1, 16, 16) and dataset.test.images.shape == (2000, 1, 16, 16)
    assert torch.equal(dataset.train.labels.bincount(), torch.full((10,), 600))
    assert torch.equal(dataset.test.labels.bincount(), torch.full((10,), 200))
    assert len(dataset.names) == 10 and dataset.name == "fashion-mini"
    assert dataset.train.pad == 0 and not dataset.train.flip and dataset.train._overlay is None
    assert datasets.MINI_FILE.stat().st_size <= 4 * 2**20
    assert (datasets.MINI_FILE.parent / "fashion-mini.LICENSE").read_text().count("Zalando SE") == 1
    assert not torch.equal(dataset.train.labels, dataset.train.labels.sort().values)  # rows are shuffled


def test_fashion_mini_native_size():
    """At its native size the file is passed on untouched, and mean and std are those of its training pixels."""
    train = load("fashion-mini", image_size=28).train
    with np.load(datasets.MINI_FILE) as file:
        assert np.array_equal(train.images[:, 0].numpy(), file["x_train"])
        assert len(set(file["index_train"].tolist())) == 6000 and file["index_train"].dtype == np.int32
    pixels = train.images.double() / 255
    assert abs(pixels.mean() - train.mean[0]) < 5e-5 and abs(pixels.std() - train.std[0]) < 5e-5


@pytest.mark.skipif(not make_fashion_mini.SOURCE.is_dir(), reason="package dataset-fashion-mnist is not installed")
def test_fashion_mini_is_what_its_script_draws():
    """The file in the repository is what make_fashion_mini.py draws, array by array."""
    drawn = make_fashion_mini.draw()
    with np.load(datasets.MINI_FILE) as file:
        assert set(file.files) == set(drawn)
        for name, array in drawn.items():
            assert array.dtype == file[name].dtype and np.array_equal(array, file[name])


def test_fashion_mini_missing(monkeypatch, tmp_path):
    """R7: a lost built-in file is named, with the script that makes it."""
    monkeypatch.setattr(datasets, "MINI_FILE", tmp_path / "none.npz")
    with pytest.raises(ValueError, match="none.npz.*make_fashion_mini.py"):
        load("fashion-mini")


@given(seeds, st.integers(1, 3), st.integers(3, 12), st.integers(3, 12))
@settings(max_examples=20)
def test_resize(seed, channels, size, target):
    """Resizing keeps constant images constant, stays in the range of the pixels, and is off at the right size."""
    images = torch.randint(0, 256, (3, channels, size, size), dtype=torch.uint8, generator=gen(seed))
    images[0] = seed % 256
    found = datasets._resize(images, target)
    assert found.shape == (3, channels, target, target) and found.dtype == torch.uint8
    assert (found[0] == seed % 256).all()
    assert found.min() >= images.min() and found.max() <= images.max()
    assert (found is images) == (size == target)


def resize_oracle(image, target):
    """Antialiased bilinear downscaling of one (H, W) image in plain loops: a triangle as wide as the scale, rows then
    columns."""
    def along(lines):
        size, out = lines.shape[0], np.zeros((target, lines.shape[1]))
        scale = size / target
        for k in range(target):
            centre = (k + 0.5) * scale
            weights = [max(0.0, 1 - abs((i + 0.5 - centre) / max(scale, 1.0))) for i in range(size)]
            out[k] = sum(w * line for w, line in zip(weights, lines, strict=True)) / sum(weights)
        return out
    return along(along(image.astype(float)).T).T


@pytest.mark.parametrize("size, target", [(32, 16), (28, 16), (9, 4), (5, 2), (4, 7)])
def test_resize_is_antialiased(size, target):
    """Downscaling weighs every pixel under a triangle as wide as the scale, upscaling two neighbours a side: a loop's
    values."""
    image = torch.randint(0, 256, (1, 1, size, size), dtype=torch.uint8, generator=gen(size))
    found = datasets._resize(image, target)[0, 0].numpy().astype(float)
    assert np.abs(found - resize_oracle(image[0, 0].numpy(), target)).max() <= 0.5 + 1e-3  # rounded once, float32


@pytest.mark.parametrize("size, pad", [(8, 1), (16, 2), (24, 3), (32, 4)])
def test_pad_follows_the_size_asked_for(tmp_path, size, pad):
    """Crops move by an eighth of the size asked for, not of the files' own; without crops there is no pad at any
    size."""
    write_tree(tmp_path, size=(40, 40))
    dataset = load("folder", data_dir=tmp_path, image_size=size)
    assert dataset.train.pad == pad and dataset.test.pad == 0 and dataset.train.images.shape[2:] == (size, size)
    assert load("fashion-mini", image_size=size).train.pad == 0


def test_unknown_name():
    """R2: an unknown data set lists the choices."""
    with pytest.raises(ValueError, match="unknown data set 'mnist'.*" + ".*".join(DATASETS)):
        load("mnist")


def fake_scipy(monkeypatch, loadmat):
    package, io = types.ModuleType("scipy"), types.ModuleType("scipy.io")
    package.io, io.loadmat = io, loadmat
    monkeypatch.setitem(sys.modules, "scipy", package)
    monkeypatch.setitem(sys.modules, "scipy.io", io)


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "svhn", "imagenette"])
def test_missing_data_set(name, tmp_path, monkeypatch):
    """R7: a missing data set is a ValueError with the path tried and the flag that fetches it; nothing is written."""
    fake_scipy(monkeypatch, loadmat=None)
    with pytest.raises(ValueError, match=f"{name}: no complete copy at .*add --download") as caught:
        load(name, data_dir=tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("name, kind, place", [
    ("cifar10", "CIFAR10", "cifar-10-batches-py"), ("fashion-mnist", "FashionMNIST", "FashionMNIST"),
    ("svhn", "SVHN", "_32x32.mat"), ("imagenette", "Imagenette", "imagenette2-160")])
def test_failed_download(tmp_path, monkeypatch, name, kind, place):
    """R7: a download is tried where it is asked for, and one that fails says where the files belong."""
    from torchvision import datasets

    def fail(self):
        raise OSError("no route to host")

    monkeypatch.setitem(sys.modules, "scipy", types.ModuleType("scipy"))
    monkeypatch.setitem(sys.modules, "scipy.io", types.ModuleType("scipy.io"))
    cls = getattr(datasets, kind)
    monkeypatch.setattr(cls, "_download" if hasattr(cls, "_download") else "download", fail)
    with pytest.raises(ValueError, match=f"{place}.* failed .no route to host.*by hand"):
        load(name, data_dir=tmp_path, download=True, image_size=16)
    with pytest.raises(ValueError, match=f"{place}.*--download"):
        load(name, data_dir=tmp_path, image_size=16)


def test_import_does_no_io():
    """R7: importing data.py opens nothing under data/, runs no network code and leaves torchvision unimported."""
    code = (
        "import sys, torch, numpy\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, args: opened.append((event, str(args[0]))) "
        "if event in ('open', 'os.listdir', 'os.scandir', 'os.mkdir') or event.startswith('socket.') else None)\n"
        "import data, datasets\n"
        "bad = [o for o in opened if o[0].startswith('socket') or o[1].startswith(sys.argv[1])]\n"
        "assert opened and not bad, bad\n"
        "assert 'torchvision' not in sys.modules and 'PIL' not in sys.modules\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code, str(ROOT / "data") + os.sep]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def write_cifar10(root, per_file=4):
    """CIFAR-10's pickles of random images; returns {file: rows}, {file: labels}."""
    from torchvision.datasets import cifar

    base, rng, rows, labels = root / cifar.CIFAR10.base_folder, np.random.default_rng(0), {}, {}
    base.mkdir(parents=True)
    for name, _ in cifar.CIFAR10.train_list + cifar.CIFAR10.test_list:
        rows[name] = rng.integers(0, 256, (per_file, 3072), dtype=np.uint8)
        labels[name] = rng.integers(0, 10, per_file).tolist()
        (base / name).write_bytes(pickle.dumps({"data": rows[name], "labels": labels[name]}))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return rows, labels


def test_cifar10(tmp_path, monkeypatch):
    """CIFAR-10's pickles: rows of 3 x 32 x 32 bytes come out as (C, H, W) images in file order, with their labels."""
    from torchvision.datasets import cifar

    rows, labels = write_cifar10(tmp_path)
    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: os.path.isfile(path))
    dataset = load("cifar10", data_dir=tmp_path)
    train = [f"data_batch_{k}" for k in range(1, 6)]
    assert np.array_equal(dataset.train.images.flatten(1).numpy(), np.concatenate([rows[k] for k in train]))
    assert dataset.train.labels.tolist() == sum((labels[k] for k in train), [])
    assert np.array_equal(dataset.test.images.flatten(1).numpy(), rows["test_batch"])
    assert dataset.names == tuple("abcdefghij") and dataset.train.images.is_contiguous()
    assert (dataset.train.pad, dataset.train.flip, dataset.test.pad, dataset.test.flip) == (4, True, 0, False)


def test_fashion_mnist(tmp_path):
    """Full Fashion-MNIST: the IDX files of its own folder, 28x28, one channel."""
    raw, rng = tmp_path / "FashionMNIST" / "raw", np.random.default_rng(0)
    raw.mkdir(parents=True)
    images = {"train": rng.integers(0, 256, (5, 28, 28), dtype=np.uint8), "t10k": np.zeros((2, 28, 28), np.uint8)}
    for prefix, pixels in images.items():
        header = b"".join(k.to_bytes(4, "big") for k in (0x803, *pixels.shape))
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = b"".join(k.to_bytes(4, "big") for k in (0x801, len(pixels)))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(header + bytes(range(len(pixels))))
    dataset = load("fashion-mnist", data_dir=tmp_path)
    assert np.array_equal(dataset.train.images[:, 0].numpy(), images["train"])
    assert dataset.train.labels.tolist() == [0, 1, 2, 3, 4] and len(dataset.test) == 2


def test_svhn(tmp_path, monkeypatch):
    """SVHN's (H, W, C, N) arrays come out as (N, C, H, W), its label 10 as digit 0; digits are never flipped."""
    from torchvision.datasets import svhn

    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    fake_scipy(monkeypatch, lambda path: {"X": images, "y": np.array([[10], [1], [2], [9]])})
    monkeypatch.setattr(svhn, "check_integrity", lambda path, md5: True)
    dataset = load("svhn", data_dir=tmp_path)
    assert np.array_equal(dataset.train.images[1].numpy(), images[:, :, :, 1].transpose(2, 0, 1))
    assert dataset.train.labels.tolist() == [0, 1, 2, 9] and dataset.names == tuple("0123456789")
    assert (dataset.train.pad, dataset.train.flip) == (4, False)


def test_svhn_without_scipy(tmp_path, monkeypatch):
    """R7: without scipy the message names the package, before anything is fetched."""
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ValueError, match="pip install scipy"):
        load("svhn", data_dir=tmp_path, download=True)


# ---- folders ---------------------------------------------------------------------------------------------------------


def write_tree(root, splits=("train", "test"), classes=("ant", "bee"), size=(8, 8), per_class=3, seed=0):
    """Write a tree of random PNGs and return {relative path: (H, W, 3) array}."""
    rng, written = np.random.default_rng(seed), {}
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for k in range(per_class):
                pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{k}.png")
                written[f"{split}/{name}/{k}.png"] = pixels
    return written


def no_decoding(path, size):
    raise AssertionError(f"decoded {path} although it is in the cache")


@pytest.mark.parametrize("second", ["test", "val"])
def test_folder(tmp_path, second):
    """A tree of the right size is passed on pixel for pixel, in the order of the paths; val/ does for test/."""
    written = write_tree(tmp_path, splits=("train", second))
    dataset = load("folder", data_dir=tmp_path, image_size=8)
    for data, split in ((dataset.train, "train"), (dataset.test, second)):
        wanted = [pixels for path, pixels in sorted(written.items()) if path.startswith(split)]
        assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), np.stack(wanted))
        assert data.labels.tolist() == [0, 0, 0, 1, 1, 1] and data.labels.dtype == torch.int64
    assert dataset.names == ("ant", "bee") and (dataset.train.pad, dataset.train.flip) == (1, True)
    pixels = dataset.train.images.double() / 255
    np.testing.assert_allclose(dataset.train.mean, pixels.mean((0, 2, 3)), atol=1e-12)
    np.testing.assert_allclose(dataset.train.std, pixels.std((0, 2, 3), correction=0), atol=1e-12)
    assert dataset.test.mean == dataset.train.mean


@pytest.mark.parametrize("size", [(12, 8), (8, 12), (16, 24), (5, 4)])
def test_folder_resizes_and_crops(tmp_path, size):
    """Images of any shape come out square and RGB; a constant image stays constant."""
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        Image.new("L", size, 200).save(tmp_path / split / "a" / "0.png")
    images = load("folder", data_dir=tmp_path, image_size=8).train.images
    assert images.shape == (1, 3, 8, 8) and (images == 200).all()


def test_folder_centre_crop(tmp_path):
    """The crop is the middle of the longer side."""
    written = write_tree(tmp_path, size=(12, 8), per_class=1)
    images = load("folder", data_dir=tmp_path, image_size=8).train.images
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), written["train/ant/0.png"][:, 2:10])


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (31, 7), (5, 80), (7, 112), (300, 20), (9, 9), (3000, 1)])
def test_thin_images_are_resized_around_their_middle(tmp_path, monkeypatch, shape):
    """R7: what is resized of a file is at most 16 times as long as wide; up to there the pixels are those of the whole
    image resized."""
    rng, sizes, resize = np.random.default_rng(0), [], Image.Image.resize
    image = Image.fromarray(rng.integers(0, 256, (*shape[::-1], 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "resize", lambda *args: [sizes.append(args[1]), resize(*args)][1])
    found = datasets._decode_one(tmp_path / "a.png", 24)
    assert found.shape == (24, 24, 3) and max(sizes[0]) <= 16 * 24
    scale = 24 / min(shape)
    whole = resize(image, [max(24, round(side * scale)) for side in shape], Image.Resampling.BILINEAR)
    left, top = ((side - 24) // 2 for side in whole.size)
    if max(shape) <= 16 * min(shape):
        assert np.array_equal(found, np.asarray(whole)[top : top + 24, left : left + 24])
    else:
        middle = np.asarray(image)[0, shape[0] // 2 - 1 : shape[0] // 2 + 1].astype(int)  # two of 3000 pixels
        assert np.abs(found[:, [0, -1]].astype(int) - middle).max() <= 6


def test_folder_cache(tmp_path, monkeypatch):
    """R9: the second load reads the cache; another size, a changed, new or renamed file is never served from it."""
    write_tree(tmp_path)
    first = load("folder", data_dir=tmp_path, image_size=8)
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "_decode_one", no_decoding)
        second = load("folder", data_dir=tmp_path, image_size=8)
        with pytest.raises(AssertionError, match="decoded"):
            load("folder", data_dir=tmp_path, image_size=4)
    assert torch.equal(first.train.images, second.train.images) and torch.equal(first.test.labels, second.test.labels)
    assert (first.train.mean, first.train.std, first.names) == (second.train.mean, second.train.std, second.names)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "train" / "ant" / "1.png")
    changed = load("folder", data_dir=tmp_path, image_size=8).train
    assert changed.images[1, :, 0, 0].tolist() == [1, 2, 3]
    # last of its class to first of the next: the same files in the same order, so only the paths differ
    (tmp_path / "train" / "ant" / "2.png").rename(tmp_path / "train" / "bee" / "-.png")
    assert load("folder", data_dir=tmp_path, image_size=8).train.labels.tolist() == [0, 0, 1, 1, 1, 1]
    # then a file of the same length, so that only the time differs; then one of the same time but longer
    for shade, height, time in ((50, 8, 1), (60, 8, 2), (70, 10, 2)):
        Image.new("RGB", (8, height), (shade, 0, 0)).save(tmp_path / "train" / "ant" / "0.bmp")
        os.utime(tmp_path / "train" / "ant" / "0.bmp", (time, time))
        assert load("folder", data_dir=tmp_path, image_size=8).train.images[0, 0, 0, 0] == shade
    (tmp_path / "test" / "ant" / "0.png").unlink()
    assert len(load("folder", data_dir=tmp_path, image_size=8).test) == 5


@pytest.mark.parametrize("content", [b"", b"not a cache", None, "altered", "other"])
def test_folder_broken_cache(tmp_path, content):
    """A cache file that is empty, garbage, cut short, altered or something else is decoded anew and replaced."""
    write_tree(tmp_path)
    first = load("folder", data_dir=tmp_path, image_size=8)
    (cache,) = tmp_path.glob(".rem-cache-8-*.pt")
    whole = cache.read_bytes()
    if content == "altered":
        arrays = torch.load(cache, weights_only=True)
        arrays["x_train"][0, 0, 0, 0] ^= 1
        torch.save(arrays, cache)
    elif content == "other":
        torch.save([1, 2], cache)
    else:
        cache.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert torch.equal(load("folder", data_dir=tmp_path, image_size=8).train.images, first.train.images)
    assert len(torch.load(cache, weights_only=True)["x_train"]) == 6


@pytest.mark.parametrize("step", ["os.fsync", "os.replace", "torch.save"])
def test_folder_not_writable(tmp_path, monkeypatch, step):
    """A folder that cannot be written (or a full disk) loads all the same, and nothing is left behind."""
    write_tree(tmp_path)

    def refuse(*args, **kwargs):
        raise PermissionError("read-only")

    with monkeypatch.context() as patch:
        patch.setattr(step, refuse)
        assert len(load("folder", data_dir=tmp_path, image_size=8).train) == 6
    assert list(tmp_path.glob(".rem-cache*")) == []


def test_folder_errors(tmp_path):
    """R7: a missing split or size, other classes, an empty class, a broken file: each named with its remedy."""
    with pytest.raises(ValueError, match="image_size is None.*pixels per side with --image-size .*such as 32"):
        load("folder", data_dir=tmp_path)
    with pytest.raises(ValueError, match=f"no folder {tmp_path}/train: give the folder above .*<class>.*--data-dir"):
        load("folder", data_dir=tmp_path, image_size=8)
    write_tree(tmp_path, splits=("train",))
    with pytest.raises(ValueError, match=f"no folder {tmp_path}/test"):
        load("folder", data_dir=tmp_path, image_size=8)
    write_tree(tmp_path, splits=("test",), classes=("ant", "cat"))
    with pytest.raises(ValueError, match="same classes: only one has bee, cat"):
        load("folder", data_dir=tmp_path, image_size=8)
    (tmp_path / "test" / "cat").rename(tmp_path / "test" / "bee")
    (tmp_path / "test" / "bee" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot decode .*test/bee/0.png.*remove or replace"):
        load("folder", data_dir=tmp_path, image_size=8)
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(ValueError, match="empty.*expected .*<class>"):
        load("folder", data_dir=tmp_path, image_size=8)


def as_jpeg(tree):
    """The tree's pictures as Imagenette has them."""
    for path in tree.rglob("*.png"):
        with Image.open(path) as image:
            image.save(path.with_suffix(".JPEG"))
        path.unlink()


def test_imagenette(tmp_path, monkeypatch):
    """Imagenette is read like a folder at 64 pixels, cached, with readable class names and its own mean and std."""
    from torchvision.datasets.imagenette import Imagenette

    tree = tmp_path / "imagenette2-160"
    write_tree(tree, splits=("train", "val"), classes=list(Imagenette._WNID_TO_CLASS), size=(80, 64), per_class=1)
    as_jpeg(tree)
    dataset = load("imagenette", data_dir=tmp_path)
    assert dataset.names[:2] == ("tench", "English springer") and dataset.train.images.shape == (10, 3, 64, 64)
    assert (dataset.train.pad, dataset.train.flip, dataset.train.mean) == (8, True, datasets.IMAGENET["mean"])
    monkeypatch.setattr(datasets, "_decode_one", no_decoding)
    assert torch.equal(load("imagenette", data_dir=tmp_path).train.images, dataset.train.images)


def test_partial_imagenette(tmp_path):
    """R7: two of the ten classes are no Imagenette, whatever a network could learn from them."""
    write_tree(tmp_path / "imagenette2-160", splits=("train", "val"), classes=["n01440764", "n02102040"], per_class=1)
    as_jpeg(tmp_path)
    with pytest.raises(ValueError, match=f"imagenette: no complete copy at {tmp_path}.*2 of 10 classes"):
        load("imagenette", data_dir=tmp_path)


def bomb(path):
    """A PNG that says it has 30,000 x 30,000 pixels."""
    Image.new("L", (1, 1)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = (30000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


ODD_FILES = {
    "bomb": (bomb, "cannot decode .*odd.png .*pixels"),
    "pipe": (lambda path: os.mkfifo(path), "odd.png is no regular file"),
    "link to itself": (lambda path: path.symlink_to(path), "cannot read .*odd.png .*symbolic links"),
    "link to nothing": (lambda path: path.symlink_to("nothing"), "cannot read .*odd.png"),
    "random bytes": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(500)), "cannot decode .*odd.png"),
    "circle": (lambda path: path.with_suffix("").symlink_to("."), "links to another one of them"),
}


@pytest.mark.skipif(os.name == "nt", reason="no pipes and links there")
@pytest.mark.parametrize("kind", ODD_FILES)
def test_odd_image_files(tmp_path, kind):
    """R7: a decompression bomb, a pipe, a link to itself or to nothing, garbage, a circle of folders: named, none
    waited for."""
    make, text = ODD_FILES[kind]
    write_tree(tmp_path)
    make(tmp_path / "train" / "bee" / "odd.png")
    with pytest.raises(ValueError, match=text) as caught:
        load("folder", data_dir=tmp_path, image_size=8)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["random", "short", "no array", "labels"])
def test_damaged_fashion_mini(tmp_path, monkeypatch, damage):
    """R7: a damaged built-in file is named, with what mends it."""
    path = tmp_path / "mini.npz"
    whole = datasets.MINI_FILE.read_bytes()
    if damage == "no array":
        np.savez(path, x_train=np.zeros((1, 28, 28), np.uint8))
    elif damage == "labels":
        images, labels = np.zeros((2, 28, 28), np.uint8), np.full(2, 99, np.uint8)
        np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage == "short" else np.random.default_rng(0).bytes(2000))
    monkeypatch.setattr(datasets, "MINI_FILE", path)
    with pytest.raises(ValueError, match=f"{path}.* damaged .*restore") as caught:
        load("fashion-mini")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["random", "empty", "labels"])
def test_damaged_fashion_mnist(tmp_path, content):
    """R7: random bytes, empty files or labels that are none, in place of Fashion-MNIST's: the folder is named."""
    raw, rng = tmp_path / "FashionMNIST" / "raw", np.random.default_rng(0)
    raw.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        for name, magic, shape in (("images-idx3", 0x803, (3, 28, 28)), ("labels-idx1", 0x801, (3,))):
            header = b"".join(k.to_bytes(4, "big") for k in (magic, *shape))
            valid = header + bytes([200]) * int(np.prod(shape))
            damaged = {"random": rng.bytes(300), "empty": b"", "labels": valid}[content]
            (raw / f"{prefix}-{name}-ubyte").write_bytes(damaged)
    with pytest.raises(ValueError, match=f"{tmp_path}.*FashionMNIST") as caught:
        load("fashion-mnist", data_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_constant_folder(tmp_path):
    """A channel that never varies has std 1/255, not 0, so that normalised images are finite."""
    mean, std = datasets._moments(torch.full((2, 3, 4, 4), 51, dtype=torch.uint8))
    np.testing.assert_allclose(mean, [0.2] * 3, atol=1e-12)
    assert std == [1 / 255] * 3


def test_jpegs_of_every_kind(tmp_path):
    """Large and grey JPEGs decode to within a few grey levels of a plain PIL resize."""
    ramp = np.linspace(0, 255, 100).astype(np.uint8)
    across = np.tile(ramp, (100, 1))
    pixels = np.stack([across, across.T, np.full_like(across, 90)], -1)
    Image.fromarray(pixels).save(tmp_path / "rgb.jpg", quality=95)
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "grey.jpg", quality=95)
    for name, wanted in (("rgb.jpg", pixels), ("grey.jpg", np.repeat(pixels[:, :, :1], 3, 2))):
        plain = np.asarray(Image.fromarray(wanted).resize((10, 10), Image.Resampling.BILINEAR)).astype(int)
        found = datasets._decode_one(tmp_path / name, 10).astype(int)
        assert found.shape == (10, 10, 3)
        assert np.abs(found - plain).max() <= 10  # a 10x10 pixel box of the ramp spans 26 levels


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_grey_images_of_16_bits(tmp_path, kind):
    """R7, B4: 16 bits become 8 by 65535 -> 255, not by cutting off; pixels of no known range are refused by name."""
    wide = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    path = tmp_path / f"wide.{kind}"
    Image.fromarray(wide).save(path)
    with Image.open(path) as image:
        assert image.mode[0] == "I"  # as scanners and microscopes write it
    wanted = np.repeat((wide / 257).round().astype(np.uint8)[:, :, None], 3, 2)
    assert np.array_equal(datasets._decode_one(path, 8), wanted)
    narrow = np.arange(64, dtype=np.uint16).reshape(8, 8) * 4  # 8 bits in a file of 16
    Image.fromarray(narrow).save(path)
    assert np.array_equal(datasets._decode_one(path, 8)[:, :, 0], narrow)
    for odd in (np.linspace(0, 1, 64, dtype=np.float32), np.arange(64, dtype=np.int32) * 10_000_000):
        Image.fromarray(odd.reshape(8, 8)).save(tmp_path / "odd.tif")
        with pytest.raises(ValueError, match=r"odd\.tif .*neither of 8 bits nor of 16"):
            datasets._decode_one(tmp_path / "odd.tif", 8)


MOMENTS = {"fashion-mnist": ((0.2860,), (0.3530,)),
           "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
           "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
           "imagenette": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}


@pytest.mark.parametrize("name", MOMENTS)
def test_published_moments(name):
    """R8: mean and std of each data set are those of its training pixels, ImageNet's for Imagenette."""
    assert (datasets.RECIPES[name]["mean"], datasets.RECIPES[name]["std"]) == MOMENTS[name]


def test_fashion_mnist_is_flipped_but_not_cropped(tmp_path):
    """R8: full Fashion-MNIST is flipped and not cropped in training, and its test set is never augmented."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        for name, header in (("images-idx3", (0x803, 1, 28, 28)), ("labels-idx1", (0x801, 1))):
            content = b"".join(k.to_bytes(4, "big") for k in header) + bytes(28 * 28 if "images" in name else 1)
            (raw / f"{prefix}-{name}-ubyte").write_bytes(content)
    dataset = load("fashion-mnist", data_dir=tmp_path)
    assert (dataset.train.pad, dataset.train.flip, dataset.test.pad, dataset.test.flip) == (0, True, 0, False)


def test_svhn_has_two_splits(tmp_path, monkeypatch):
    """T15: SVHN's training and test images come from their own files."""
    from torchvision.datasets import svhn

    files = {f"{split}_32x32.mat": {"X": np.full((32, 32, 3, n), n, np.uint8), "y": np.full((n, 1), n)}
             for split, n in (("train", 4), ("test", 2))}
    fake_scipy(monkeypatch, lambda path: files[os.path.basename(path)])
    monkeypatch.setattr(svhn, "check_integrity", lambda path, md5: True)
    dataset = load("svhn", data_dir=tmp_path)
    assert dataset.train.labels.tolist() == [4] * 4 and dataset.test.labels.tolist() == [2] * 2
    assert (dataset.train.images == 4).all() and (dataset.test.images == 2).all()


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test", "names", "mean", "std"])
def test_folder_cache_with_one_thing_altered(tmp_path, key):
    """R9: a cache in which any one of images, labels, names and moments is altered is decoded anew."""
    write_tree(tmp_path)
    first = load("folder", data_dir=tmp_path, image_size=8)
    (cache,) = tmp_path.glob(".rem-cache-8-*.pt")
    arrays = torch.load(cache, weights_only=True)
    if isinstance(arrays[key], torch.Tensor):
        arrays[key].view(-1)[0] ^= 1
    else:
        arrays[key] = arrays[key][::-1]
    torch.save(arrays, cache)
    again = load("folder", data_dir=tmp_path, image_size=8)
    for one, other in ((first.train, again.train), (first.test, again.test)):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        assert (one.mean, one.std) == (other.mean, other.std)
    assert first.names == again.names


def test_folder_cache_of_another_decoder(tmp_path, monkeypatch):
    """R9: a cache that an older decoder wrote is not read."""
    write_tree(tmp_path)
    load("folder", data_dir=tmp_path, image_size=8)
    monkeypatch.setattr(datasets, "DECODER", datasets.DECODER + 1)
    monkeypatch.setattr(datasets, "_decode_one", no_decoding)
    with pytest.raises(AssertionError, match="decoded"):
        load("folder", data_dir=tmp_path, image_size=8)


def test_large_jpegs_keep_their_detail(tmp_path):
    """B4: a JPEG is decoded at no less than twice the size asked for, so that single blocks of 5 pixels are told."""
    blocks = np.random.default_rng(0).integers(0, 256, (32, 32, 1), dtype=np.uint8)
    image = Image.fromarray(np.kron(blocks, np.ones((5, 5, 3), np.uint8)))
    image.save(tmp_path / "a.jpg", quality=95)
    plain = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(datasets._decode_one(tmp_path / "a.jpg", 32) - plain).mean() < 5  # at a quarter: 26
