"""Where data sets come from: the built-in file, torchvision's classes, folders of image files (Sec. 4: data sets).

    dataset = load("fashion-mini")                           # .train and .test are data.Data
    dataset = part_of(dataset, per_class=50)                 # .index: which images of the whole these are
    images = fingerprints(dataset)                           # of a row of results: "1a2b3c4d-5e6f7a8b"

Every reader returns a dict of x_train, x_test, y_train, y_test and names, that of folders mean and std beside them.
"""

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from engine.checks import first_line
from engine.streams import stream
from experiment.console import tell
from experiment.data import MOST_PIXELS, Data, Dataset, check_memory
from tasks import fingerprint

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
IMAGENETTE_CLASSES = 10
IMAGENETTE_IMAGES = 9469  # of training
MINI_FILE = Path(__file__).resolve().parent.parent / "data" / "fashion-mini.npz"

# Choice: everything that is fixed per data set. mean, std: per channel, of the training pixels in [0, 1] at native size
# (None: computed from the training images). size: pixels per side (None: must be given). crop: random crops with an
# eighth of the image size as padding: 4 pixels at 32, 2 at 16.
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CIFAR10 = dict(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), size=32, crop=True, flip=True)
RECIPES = {
    "fashion-mini": dict(mean=(0.2873,), std=(0.3540,), size=16, crop=False, flip=False),  # from make_fashion_mini.py
    "fashion-mnist": dict(mean=(0.2860,), std=(0.3530,), size=28, crop=False, flip=True),
    "cifar10": CIFAR10,
    # No flip: a flipped digit is no digit.
    "svhn": dict(mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970), size=32, crop=True, flip=False),
    "cifar10-small": CIFAR10,  # of which settings.py draws 1,000 images a class
    "imagenette": dict(**IMAGENET, size=64, crop=True, flip=True),  # from the 160 pixel archive
    "folder": dict(mean=None, std=None, size=None, crop=True, flip=True),
}
DATASETS = tuple(RECIPES)
FILES = {"fashion-mnist": "FashionMNIST/raw/*-ubyte", "cifar10": "cifar-10-batches-py/*",
         "cifar10-small": "cifar-10-batches-py/*",
         "svhn": "{train,test}_32x32.mat", "imagenette": "imagenette2-160/{train,val}/<class>/*"}  # as torchvision's


def load(name, data_dir="data", image_size=None, download=False):
    """Return a data set as CPU tensors.

    Args: name: of DATASETS: "fashion-mini" comes with the code, "folder" is data_dir/{train,test or val}/<class>/*;
        data_dir: folder of the files, as torchvision lays them out; image_size: pixels per side, None: the data set's
        own, RECIPES; folders need one; download: fetch a missing data set (not fashion-mini, not folder).
    Raises: ValueError for an unknown name or missing files, with the path tried and what mends it.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown data set {name!r}: choose from {', '.join(DATASETS)}")
    recipe = RECIPES[name]
    image_size = recipe["size"] if image_size is None else image_size
    if image_size is None or not 1 <= image_size <= MOST_PIXELS:
        bound = "" if image_size is None or image_size < 1 else f", at most {MOST_PIXELS}"
        raise ValueError(f"image_size is {image_size} for data set {name}: give pixels per side with --image-size (in "
                         f"Python image_size), such as 32{bound}")
    if name == "fashion-mini":
        arrays = read_mini()
    elif name == "folder":
        arrays = read_folder(Path(data_dir), image_size)
    else:
        arrays = read_torchvision(name, Path(data_dir), image_size, download)
    check_memory(len(arrays["x_train"]) + len(arrays["x_test"]), arrays["x_train"].shape[1], image_size)
    mean, std = recipe["mean"] or arrays["mean"], recipe["std"] or arrays["std"]
    train, test = (_data(arrays, split, image_size, mean, std) for split in ("train", "test"))
    pad = image_size // 8 if recipe["crop"] else 0
    train = replace(train, pad=pad, flip=recipe["flip"])  # a test set is never augmented
    return Dataset(name, train, test, tuple(arrays["names"]))


def _data(arrays, split, size, mean, std):
    """Return one part of the readers' arrays as Data, or a ValueError that says which files do not make sense."""
    try:
        images = _resize(arrays[f"x_{split}"], size)
        return Data(images, arrays[f"y_{split}"], len(arrays["names"]), tuple(mean), tuple(std))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the {split} files in {arrays['root']} are damaged ({error}): restore them") from error


def _resize(images, size):
    """Return (N, C, size, size) uint8, by antialiased bilinear interpolation; the images as they are if they fit."""
    if images.shape[2:] == (size, size):
        return images
    parts = images.split(4096)  # the float copy of a whole data set would be large
    kwargs = dict(size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return torch.cat([F.interpolate(part.float(), **kwargs).round().clamp(0, 255).to(torch.uint8) for part in parts])


# ---- a part of a data set --------------------------------------------------------------------------------------------

def part_of(dataset: Dataset, per_class: int | None = None, per_class_test: int | None = None,
            augment: bool = True) -> Dataset:
    """The data set with so many training and test images of each class; the very same one where nothing is asked.

    Choice: the images are drawn with a seed of their own, since they are a data set by themselves: every seed of a task
    has the same ones. They are drawn among a class's images in their order, so that copies of a data set whose classes
    are in one order, image for image, have the same part. A smaller part lies within a larger one.
    Args: per_class, per_class_test: images of each class, None for all; augment: whether training crops and flips.
    Raises: ValueError where a class has fewer images.
    """
    train, test, more = dataset.train, dataset.test, {}
    if per_class is not None:
        index = drawn(dataset, train.labels.cpu(), per_class, "training")
        more = {"index": index, "whole": train.labels.cpu()}
        train = replace(train, images=train.images[index], labels=train.labels[index])
    if per_class_test is not None:
        index = drawn(dataset, test.labels.cpu(), per_class_test, "test")
        test = replace(test, images=test.images[index], labels=test.labels[index])
    if not augment:
        train = replace(train, pad=0, flip=False)
    if (per_class, per_class_test, augment) == (None, None, True):
        return dataset
    return replace(dataset, train=train, test=test, **more)


def drawn(dataset: Dataset, labels: torch.Tensor, count: int, split: str) -> torch.Tensor:
    """Indices (classes x count,) int64 of so many images of each class, sorted; labels: (N,) int64 on the CPU."""
    found = []
    for label, name in enumerate(dataset.names):
        members = (labels == label).nonzero().flatten()
        if len(members) < count:
            flag = "--per-class" if split == "training" else "--per-class-test"
            raise ValueError(f"{flag} is {count}; class {name} has {len(members)} {split} images, give at most these")
        order = torch.randperm(len(members), generator=stream(0, f"part {split} class {label}"))
        found.append(members[order[:count]])
    return torch.cat(found).sort().values


# ---- which images a data set has -------------------------------------------------------------------------------------

def fingerprint_with_labels(data: Data) -> int:
    """CRC-32 of the images and labels of a training or test set."""
    return zlib.crc32(data.labels.cpu().contiguous().numpy(), fingerprint(data))


def fingerprints(dataset: Dataset) -> str:
    """What tells a data set from another of its name in a row: fingerprints of training and test set, uncorrupted."""
    return f"{fingerprint_with_labels(dataset.train):08x}-{fingerprint_with_labels(dataset.test):08x}"


# ---- files -----------------------------------------------------------------------------------------------------------

def read_mini():
    """Return the arrays of the built-in data set, at native size."""
    if not MINI_FILE.is_file():
        raise ValueError(f"fashion-mini: no file {MINI_FILE}: restore it, or run python data/make_fashion_mini.py")
    try:
        with open(MINI_FILE, "rb") as opened, np.load(opened) as file:
            arrays = {split: (file[f"x_{split}"][..., None], file[f"y_{split}"]) for split in ("train", "test")}
        return _arrays(arrays, FASHION, MINI_FILE)
    except Exception as error:  # numpy, zipfile and zlib have each their own
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"fashion-mini: {MINI_FILE} is damaged ({reason}): restore it, or run "
                         "python data/make_fashion_mini.py") from error


def _arrays(splits, names, root):
    """Return the readers' dict, made of {split: (images (N, H, W, C), labels (N,))}, arrays or tensors."""
    result = {"names": names, "root": str(root)}
    for split, (images, labels) in splits.items():
        result[f"x_{split}"] = torch.as_tensor(images).permute(0, 3, 1, 2).contiguous()
        result[f"y_{split}"] = torch.as_tensor(labels, dtype=torch.int64)
    return result


def read_torchvision(name, root, image_size, download):
    """Return the arrays of a torchvision data set; missing files are a ValueError with the path and the remedy."""
    from torchvision import datasets  # here, because it takes long to import

    if name == "svhn":
        try:
            import scipy.io  # noqa: F401  (torchvision reads SVHN's .mat files with it)
        except ImportError as error:
            raise ValueError("svhn: torchvision needs scipy to read its .mat files: pip install scipy") from error
    splits = ("train", "test")
    try:
        if name == "fashion-mnist":
            sets = {s: datasets.FashionMNIST(root, train=s == "train", download=download) for s in splits}
            return _arrays({s: (d.data[..., None], d.targets) for s, d in sets.items()}, FASHION, root / "FashionMNIST")
        if name in ("cifar10", "cifar10-small"):
            sets = {s: datasets.CIFAR10(root, train=s == "train", download=download) for s in splits}
            return _arrays({s: (d.data, d.targets) for s, d in sets.items()}, sets["train"].classes, root)
        if name == "svhn":
            sets = {s: datasets.SVHN(root, split=s, download=download) for s in splits}
            arrays = {s: (d.data.transpose(0, 2, 3, 1), d.labels) for s, d in sets.items()}
            return _arrays(arrays, "0123456789", root)
        found = datasets.Imagenette(root, split="train", size="160px", download=download)
        if len(found.wnids) != IMAGENETTE_CLASSES:
            raise RuntimeError(f"{len(found.wnids)} of {IMAGENETTE_CLASSES} classes are there")
        if len(found) != IMAGENETTE_IMAGES:
            tell(f"warning: imagenette: {len(found):,} training images, where the archive has {IMAGENETTE_IMAGES:,}: "
                 "was it unpacked to its end?")
    except Exception as error:  # files of random bytes make torchvision raise anything
        tried, reason = root.resolve() / FILES[name], first_line(error, kind=False)
        if download:
            raise ValueError(f"{name}: download to {tried} failed ({reason}): put the files there by hand") from error
        raise ValueError(f"{name}: no complete copy at {tried} ({reason}): add --download, or name the folder "
                         "that has it with --data-dir (in Python data_dir)") from error
    return read_folder(root / "imagenette2-160", image_size) | {"names": [words[0] for words in found.classes]}


def read_folder(root, image_size):
    """Return the arrays of root/{train,test or val}/<class>/*, see image_files.read_tree."""
    from experiment.image_files import read_tree  # here, because the built-in data set needs no image files

    return read_tree(root, image_size)
