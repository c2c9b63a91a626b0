"""Files of data sets for tests: trees of pictures, and the files that torchvision's classes read."""

import os
import pickle
import sys
import types

import numpy as np
from PIL import Image


def write_tree(root, splits=("train", "test"), classes=("ant", "bee"), size=(8, 8), per_class=3, seed=0) -> dict:
    """Write a tree of random PNGs; returns {relative path: (H, W, 3) array}."""
    rng, written = np.random.default_rng(seed), {}
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for k in range(per_class):
                pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{k}.png")
                written[f"{split}/{name}/{k}.png"] = pixels
    return written


def write_fashion_mnist(root, train: np.ndarray, test: np.ndarray, labels=lambda n: bytes(range(n))) -> None:
    """Fashion-MNIST's IDX files of (N, 28, 28) uint8 images, labelled 0, 1, ... unless `labels` says otherwise."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, pixels in (("train", train), ("t10k", test)):
        header = b"".join(k.to_bytes(4, "big") for k in (0x803, *pixels.shape))
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = b"".join(k.to_bytes(4, "big") for k in (0x801, len(pixels)))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels(len(pixels)))


def write_cifar10(root, monkeypatch, per_file=4) -> tuple[dict, dict]:
    """CIFAR-10's pickles of random images, whose checksums count as right; returns {file: rows}, {file: labels}."""
    from torchvision.datasets import cifar

    base, rng, rows, labels = root / cifar.CIFAR10.base_folder, np.random.default_rng(0), {}, {}
    base.mkdir(parents=True)
    for name, _ in cifar.CIFAR10.train_list + cifar.CIFAR10.test_list:
        rows[name] = rng.integers(0, 256, (per_file, 3072), dtype=np.uint8)
        labels[name] = rng.integers(0, 10, per_file).tolist()
        (base / name).write_bytes(pickle.dumps({"data": rows[name], "labels": labels[name]}))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    # the real files are too large for a test, and no others have their checksums
    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: os.path.isfile(path))
    return rows, labels


def fake_svhn(monkeypatch, loadmat) -> None:
    """SVHN's files are there, with the right checksums, and scipy, which may not be installed, reads `loadmat` of them.

    loadmat: path -> {"X": (32, 32, 3, N) uint8, "y": (N, 1)}; None: the files are not there.
    """
    from torchvision.datasets import svhn

    package, io = types.ModuleType("scipy"), types.ModuleType("scipy.io")
    package.io, io.loadmat = io, loadmat
    monkeypatch.setitem(sys.modules, "scipy", package)
    monkeypatch.setitem(sys.modules, "scipy.io", io)
    if loadmat is not None:
        monkeypatch.setattr(svhn, "check_integrity", lambda path, md5: True)


def write_imagenette(root, classes=None) -> None:
    """Imagenette's folders of all or some classes, one JPEG each for training and testing."""
    from torchvision.datasets.imagenette import Imagenette

    tree = root / "imagenette2-160"
    write_tree(tree, ("train", "val"), classes or list(Imagenette._WNID_TO_CLASS), size=(80, 64), per_class=1)
    for path in tree.rglob("*.png"):
        with Image.open(path) as image:
            image.save(path.with_suffix(".JPEG"))
        path.unlink()
