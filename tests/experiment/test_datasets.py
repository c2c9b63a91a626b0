"""Data sets by name (experiment/datasets.py): the built-in file and torchvision's classes (Sec. 4, A.3)."""

import os
import sys

import numpy as np
import pytest
import torch

import make_fashion_mini
from experiment import datasets
from experiment.datasets import load
from pictures import fake_svhn, write_cifar10, write_fashion_mnist, write_imagenette


# --- The built-in data set --------------------------------------------------------------------------------------------


def test_fashion_mini():
    """B4, R8: 6,000 and 2,000 shuffled images of 16x16, equally many of each class, never moved, with their licence; at
    its native size the file is passed on untouched, whose training pixels have the mean and std of the recipe."""
    dataset, native = load("fashion-mini"), load("fashion-mini", image_size=28)
    assert dataset.train.images.shape == (6000, 1, 16, 16) and dataset.test.images.shape == (2000, 1, 16, 16)
    assert torch.equal(dataset.train.labels.bincount(), torch.full((10,), 600))
    assert torch.equal(dataset.test.labels.bincount(), torch.full((10,), 200))
    assert not torch.equal(dataset.train.labels, dataset.train.labels.sort().values)
    assert len(dataset.names) == 10 and dataset.name == "fashion-mini" and not dataset.train.augments
    assert datasets.MINI_FILE.with_name("fashion-mini.LICENSE").read_text().count("Zalando SE") == 1
    with np.load(datasets.MINI_FILE) as file:
        for data, split in ((native.train, "train"), (native.test, "test")):
            assert np.array_equal(data.images[:, 0].numpy(), file[f"x_{split}"])
            assert np.array_equal(data.labels.numpy(), file[f"y_{split}"])
        assert len(set(file["index_train"].tolist())) == 6000
    pixels = native.train.images.double() / 255
    assert abs(pixels.mean() - native.train.mean[0]) < 5e-5 and abs(pixels.std() - native.train.std[0]) < 5e-5
    assert (native.test.mean, native.test.std) == (native.train.mean, native.train.std)


@pytest.mark.skipif(not make_fashion_mini.SOURCE.is_dir(), reason="package dataset-fashion-mnist is not installed")
def test_fashion_mini_is_what_its_script_draws():
    """B4: the file in the repository is what make_fashion_mini.py draws, array by array."""
    drawn = make_fashion_mini.draw()
    with np.load(datasets.MINI_FILE) as file:
        assert set(file.files) == set(drawn)
        for name, array in drawn.items():
            assert array.dtype == file[name].dtype and np.array_equal(array, file[name])


BLACK = np.zeros((2, 28, 28), np.uint8)
DAMAGE = {
    "missing": (lambda path: None, "no file .*mini.npz: restore it, or run .*make_fashion_mini.py"),
    "labels": (lambda path: np.savez(path, x_train=BLACK, y_train=[99, 99], x_test=BLACK, y_test=[99, 99]),
               "mini.npz are damaged .*restore"),
    "short": (lambda path: path.write_bytes(make_fashion_mini.OUT.read_bytes()[:100_000]), "is damaged .*restore")}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_lost_or_damaged_built_in_file(tmp_path, monkeypatch, kind):
    """R7: a lost or damaged built-in file is named in one line, with what mends it."""
    damage, text = DAMAGE[kind]
    monkeypatch.setattr(datasets, "MINI_FILE", tmp_path / "mini.npz")
    damage(tmp_path / "mini.npz")
    with pytest.raises(ValueError, match=text) as caught:
        load("fashion-mini")
    assert "\n" not in str(caught.value)


# --- Other sizes ------------------------------------------------------------------------------------------------------


def resized_by_loops(image, target):
    """Antialiased bilinear resizing of one (H, W) image: a triangle as wide as the scale, rows then columns."""
    def along(lines):
        size, out = lines.shape[0], np.zeros((target, lines.shape[1]))
        scale = size / target
        for k in range(target):
            centre = (k + 0.5) * scale
            weights = [max(0.0, 1 - abs((i + 0.5 - centre) / max(scale, 1.0))) for i in range(size)]
            out[k] = sum(w * line for w, line in zip(weights, lines, strict=True)) / sum(weights)
        return out

    return along(along(image.astype(float)).T).T


@pytest.mark.parametrize("target", [5, 14, 16, 40])
def test_other_sizes_equal_loops(target):
    """B4: downscaling weighs every pixel under a triangle as wide as the scale, upscaling two neighbours a side."""
    some = [0, 4095, 4096, 5999]  # the float copies are made in parts
    native, found = (load("fashion-mini", image_size=size).train.images[some, 0].numpy() for size in (28, target))
    for before, after in zip(native, found, strict=True):
        assert np.abs(after.astype(float) - resized_by_loops(before, target)).max() <= 0.5 + 1e-3  # rounded once


# --- torchvision's ----------------------------------------------------------------------------------------------------


def of_recipe(dataset) -> tuple:
    """What is fixed for a data set; its test images are never augmented."""
    assert (dataset.test.mean, dataset.test.std) == (dataset.train.mean, dataset.train.std)
    assert not dataset.test.augments
    return dataset.train.mean, dataset.train.std, dataset.train.pad, dataset.train.flip


def test_fashion_mnist(tmp_path):
    """B4, R8, T15: Fashion-MNIST's IDX files: 28x28, one channel, flipped in training and not cropped."""
    train = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    write_fashion_mnist(tmp_path, train, np.full((2, 28, 28), 7, np.uint8))
    dataset = load("fashion-mnist", data_dir=tmp_path)
    assert np.array_equal(dataset.train.images[:, 0].numpy(), train) and (dataset.test.images == 7).all()
    assert dataset.train.labels.tolist() == [0, 1, 2, 3, 4] and dataset.test.labels.tolist() == [0, 1]
    assert of_recipe(dataset) == ((0.2860,), (0.3530,), 0, True)


@pytest.mark.parametrize("name, size, pad", [("cifar10", None, 4), ("cifar10", 16, 2), ("cifar10-small", None, 4)])
def test_cifar10(tmp_path, monkeypatch, name, size, pad):
    """B4, R8: CIFAR-10's rows of 3 x 32 x 32 bytes come out as (C, H, W) in the files' order, cropped by
    an eighth of the size asked for, flipped; the small one, of which settings draw a part, reads the same files."""
    rows, labels = write_cifar10(tmp_path, monkeypatch)
    dataset, train = load(name, tmp_path, size), [f"data_batch_{k}" for k in range(1, 6)]
    if size is None:
        assert np.array_equal(dataset.train.images.flatten(1).numpy(), np.concatenate([rows[k] for k in train]))
        assert np.array_equal(dataset.test.images.flatten(1).numpy(), rows["test_batch"])
    assert dataset.train.shape == (3, size or 32, size or 32) and dataset.train.images.is_contiguous()
    assert dataset.train.labels.tolist() == sum((labels[k] for k in train), [])
    assert dataset.test.labels.tolist() == labels["test_batch"] and dataset.names == tuple("abcdefghij")
    assert of_recipe(dataset) == ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), pad, True)
    assert dataset.name == name


def test_svhn(tmp_path, monkeypatch):
    """B4, R8, T15: SVHN's (H, W, C, N) arrays come out as (N, C, H, W), label 10 as digit 0; no digit is flipped."""
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    test = {"X": np.full((32, 32, 3, 2), 2, np.uint8), "y": np.array([[3], [10]])}
    train = {"X": images, "y": np.array([[10], [1], [2], [9]])}
    fake_svhn(monkeypatch, lambda path: train if "train_32x32.mat" in str(path) else test)
    dataset = load("svhn", data_dir=tmp_path)
    assert np.array_equal(dataset.train.images.numpy(), images.transpose(3, 2, 0, 1))
    assert (dataset.test.images == 2).all() and dataset.test.labels.tolist() == [3, 0]
    assert dataset.train.labels.tolist() == [0, 1, 2, 9] and dataset.names == tuple("0123456789")
    assert of_recipe(dataset) == ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), 4, False)


def test_imagenette(tmp_path):
    """B4, R8: Imagenette is read like a folder at 64 pixels, with readable names and ImageNet's mean and std."""
    write_imagenette(tmp_path)
    for _ in range(2):  # the second time from the cache
        dataset = load("imagenette", data_dir=tmp_path)
        assert dataset.names[:2] == ("tench", "English springer") and dataset.train.images.shape == (10, 3, 64, 64)
        assert dataset.train.labels.tolist() == dataset.test.labels.tolist() == list(range(10))
        assert of_recipe(dataset) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 8, True)


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="this system does not tell its memory")
def test_images_that_fit_no_memory(monkeypatch):
    """R2: images that take more than the machine's memory are refused before any is made; as much as it has will do."""
    memory = {"SC_PAGE_SIZE": 8 * 8, "SC_PHYS_PAGES": 8000}  # for 8,000 grey images of 8x8
    with monkeypatch.context() as patch:
        patch.setattr(os, "sysconf", memory.__getitem__)
        load("fashion-mini", image_size=8)
        patch.setattr(datasets, "_resize", lambda *args: pytest.fail("an image was made"))
        with pytest.raises(ValueError, match="8,000 images of 9x9 take 0.000648 GB .* has 0.000512: give a smaller"):
            load("fashion-mini", image_size=9)


@pytest.mark.parametrize("name, kind, place", [
    ("cifar10", "CIFAR10", "cifar-10-batches-py"), ("fashion-mnist", "FashionMNIST", "FashionMNIST"),
    ("svhn", "SVHN", "_32x32.mat"), ("imagenette", "Imagenette", "imagenette2-160")])
def test_missing_files(tmp_path, monkeypatch, name, kind, place):
    """R7: missing files are told with the path tried and the flag that fetches them, a download that fails with where
    they belong; nothing is fetched unless it is asked for, and nothing is written."""
    from torchvision import datasets as torchvision

    def fail(self):
        raise OSError("no route to host")

    fake_svhn(monkeypatch, loadmat=None)
    cls = getattr(torchvision, kind)
    monkeypatch.setattr(cls, "_download" if hasattr(cls, "_download") else "download", fail)  # there is no network
    with pytest.raises(ValueError, match=f"{name}: no complete copy at {tmp_path}.*{place}.*add --download"):
        load(name, data_dir=tmp_path)
    assert list(tmp_path.rglob("*")) == []
    with pytest.raises(ValueError, match=f"{name}: download to {tmp_path}.*{place}.*no route to host.*by hand"):
        load(name, data_dir=tmp_path, download=True)


def test_svhn_without_scipy(tmp_path, monkeypatch):
    """R7: without scipy the message names the package, before anything is fetched."""
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ValueError, match="pip install scipy"):
        load("svhn", data_dir=tmp_path, download=True)


def test_partial_imagenette(tmp_path):
    """R7: two of the ten classes are no Imagenette, whatever a network could learn from them."""
    write_imagenette(tmp_path, ["n01440764", "n02102040"])
    with pytest.raises(ValueError, match=f"imagenette: no complete copy at {tmp_path}.*2 of 10 classes"):
        load("imagenette", data_dir=tmp_path)


@pytest.mark.parametrize("garbage", [True, False])
def test_damaged_fashion_mnist(tmp_path, garbage):
    """R7: garbage, or labels that are none, in place of Fashion-MNIST's: the folder is named in a line."""
    pixels = np.zeros((3, 28, 28), np.uint8)
    write_fashion_mnist(tmp_path, pixels, pixels, labels=lambda n: bytes([200]) * n)
    if garbage:
        for path in (tmp_path / "FashionMNIST" / "raw").iterdir():
            path.write_bytes(np.random.default_rng(0).bytes(300))
    with pytest.raises(ValueError, match=f"{tmp_path}.*FashionMNIST") as caught:
        load("fashion-mnist", data_dir=tmp_path)
    assert "\n" not in str(caught.value)
