"""Image files: which there are below a folder, one of them decoded, a whole tree of them, mean and spread of pixels.

    found = list_images(Path("pictures"), "train")       # .classes, .samples, .targets, as torchvision has them
    image = decode_image("pictures/train/cat/1.png", 32)  # (32, 32, 3) uint8
    mean, std = mean_and_std(images)                     # per channel, of (N, C, H, W) uint8
    arrays = read_tree(Path("pictures"), image_size=32)  # pictures/{train,test or val}/<class>/*
    arrays["x_train"], arrays["y_train"], arrays["names"]  # (N, 3, 32, 32) uint8, (N,) int64, class names; x_test, ...
    arrays["mean"], arrays["std"]                        # per channel, of the training images
"""

import contextlib
import hashlib
import json
import os
import stat
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from experiment.console import tell
from experiment.data import check_memory
from experiment.files import check_readable, write_whole

SLIM = 16  # longer side over shorter one of an image file above which its ends are cut off before it is resized
DECODER = 2  # of `decode_image`: raised where it reads a file otherwise than before, so that no older cache is read
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # by contents; of EPS a program is started
MOST_RESIZED = 8192  # per side of one before its centre is cropped


def list_images(root, *choices):
    """Return torchvision's listing (classes, samples, targets) of the first of root/choice that exists.

    Files and folders whose names begin with a dot are left out; a warning says how many files are no images.
    """
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import IMG_EXTENSIONS

    class Visible(ImageFolder):
        def find_classes(self, directory):
            names = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir() and not hidden(entry.name))
            if not names:
                raise FileNotFoundError(f"Couldn't find any class folder in {directory}.")
            return names, {name: k for k, name in enumerate(names)}

    place = next((root / choice for choice in choices if (root / choice).is_dir()), None)
    if place is None:
        raise ValueError(f"no folder {root.resolve() / choices[0]}: give the folder above train/<class>/* and "
                         "test/<class>/* or val/<class>/* (--data-dir; of repair --data, where train/ is enough)")
    below, passed_over = len(os.path.join(place, "")), Counter()  # the latter by suffix

    def is_image(path):
        if any(map(hidden, path[below:].split(os.sep))):
            return False
        image = path.lower().endswith(IMG_EXTENSIONS)
        if not image:
            passed_over[os.path.splitext(path)[1].lower() or "no suffix"] += 1
        return image

    try:
        found = Visible(place, is_valid_file=is_image)
    except OSError as error:  # no classes, a class without images, a link to itself
        raise ValueError(f"{error} (expected {place.resolve()}/<class>/*.png or .jpg)") from error
    folders = {os.path.dirname(path) for path, _ in found.samples}
    if len({os.path.realpath(folder) for folder in folders}) < len(folders):
        raise ValueError(f"a folder below {place.resolve()} links to another one of them, so images would count twice: "
                         "remove the link")
    if passed_over:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in passed_over.most_common())
        tell(f"warning: files below {place} are passed over, as no images by their names: {kinds}; images end in "
             f"{', '.join(IMG_EXTENSIONS)}")
    return found


def hidden(name):
    """Whether a file or folder is hidden, by its name."""
    return name.startswith(".")


def check_apart(train, other):
    """Raise ValueError where most of the images held out are training images, by way of links; warn where some are.

    A few may be copies of each other, which a store that keeps each content once links to one file.
    """
    own = {os.path.realpath(path) for path, _ in train.samples}
    shared = [path for path, _ in other.samples if os.path.realpath(path) in own]
    if 2 * len(shared) > len(other.samples):
        raise ValueError(f"{shared[0]} is one of the training images below {train.root}, and so are {len(shared)} of "
                         f"{len(other.samples)}: give images that were held out")
    if shared:
        tell(f"warning: {len(shared)} of {len(other.samples)} images held out are training images, {shared[0]} first")


def decode_image(path, size, squash=False):
    """Return (size, size, 3) uint8: RGB, shorter side resized to `size`, centre crop; or both sides with `squash`."""
    from PIL import Image

    try:
        check_readable(path)  # a pipe would be waited for
        with Image.open(path, formats=FORMATS) as image:
            image.draft("RGB", (2 * size, 2 * size))  # lets a large JPEG be decoded at a fraction of its size
            image = (eight_bits(image) if image.mode[0] in "IF" else image).convert("RGB")
    except Exception as error:  # PIL's decoders raise anything, and DecompressionBombError for billions of pixels
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"cannot decode {path} ({reason}): remove or replace it") from error
    if squash:
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    if (short := min(image.size)) != size:
        if max(image.size) > SLIM * short:  # resized whole it could fill the memory
            width, height = (min(side, SLIM * short) for side in image.size)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        scale = size / short
        image = image.resize([max(size, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - size) // 2 for side in image.size)
    return np.asarray(image)[top : top + size, left : left + size]


def eight_bits(image):
    """Return a grey image of 16 bits as one of 8, one whose values are all of 8 bits as it is.

    ValueError for other pixels, whose range is not known.
    """
    from PIL import Image

    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its pixels, {values.min():g} to {values.max():g}, are neither of 8 bits nor of 16")
    scale = 257 if values.max() > 255 else 1  # 65535 / 257 is 255
    return Image.fromarray((values / scale).round().astype(np.uint8))


def mean_and_std(images):
    """Return mean and std per channel of (N, C, H, W) uint8 in [0, 1] units, exactly, by counting pixel values.

    Instead of one tensor an iterable of parts will do.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    parts = images.split(4096) if isinstance(images, torch.Tensor) else images
    counted = sum(torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in part.transpose(0, 1)])
                  for part in parts)  # (C, 256)
    mean, std = [], []
    for counts in counted:
        share = counts.double() / counts.sum()
        mean.append(float(share @ values))
        std.append(max(float(share @ (values - mean[-1]) ** 2) ** 0.5, 1 / 255))  # a constant channel has std 0
    return mean, std


# ---- trees of image files --------------------------------------------------------------------------------------------

def read_tree(root, image_size):
    """Return the arrays of root/{train,test or val}/<class>/* as square RGB images, decoded or from the cache file.

    The cache's name holds the size and a hash of all paths, lengths, times and numbers on the disk, so a changed folder
    is never served stale. Caches of earlier states stay until they are deleted by hand.
    Args: root: Path of the folder above train/; image_size: pixels per side; the shorter side is resized to it, the
        rest is cropped around the centre.
    Returns: dict of x_train, x_test (N, 3, H, W) uint8, y_train, y_test (N,) int64, names, mean, std.
    Raises: ValueError for missing folders, different classes in train and test, or a file that is no image.
    """
    train, test = list_images(root, "train"), list_images(root, "test", "val")
    check_apart(train, test)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(f"{train.root} and {test.root} must have the same classes: only one has {', '.join(odd)}")
    cache = root / f".rem-cache-{image_size}-{_fingerprint(root, train, test)}.pt"
    arrays = _cached(cache)
    if arrays is None:
        arrays = {"names": train.classes}
        for split, found in (("train", train), ("test", test)):
            arrays[f"x_{split}"] = torch.from_numpy(_decode(found.samples, image_size))
            arrays[f"y_{split}"] = torch.tensor(found.targets)
        arrays["mean"], arrays["std"] = mean_and_std(arrays["x_train"])
        with contextlib.suppress(OSError, RuntimeError):  # a folder that cannot be written or a full disk: no cache
            write_whole(cache, lambda file: torch.save({**arrays, "checksum": _checksum(arrays)}, file))
    return arrays | {"root": str(root.resolve())}


def files_of(root):
    """Return the paths of the training images below root/train, in the order in which a folder's images are read."""
    return [path for path, _ in list_images(Path(root), "train").samples]


def _cached(path):
    """Return what the cache file holds, or None where there is none or it is damaged."""
    if not path.is_file():
        return None
    try:
        arrays = torch.load(path, weights_only=True)
        return arrays if arrays.pop("checksum") == _checksum(arrays) else None
    except Exception:  # damaged files make torch raise anything
        return None


def _checksum(arrays):
    """Return the CRC-32 of all images, labels and names."""
    total = zlib.crc32(repr((arrays["names"], arrays["mean"], arrays["std"])).encode())
    for key in ("x_train", "y_train", "x_test", "y_test"):
        total = zlib.crc32(arrays[key].numpy(), total)
    return total


def _fingerprint(root, *listings):
    """Return a short hash of which files there are, how long and how old; ValueError for what is no regular file.

    Two files that have changed places may be alike in length and time of writing, so their numbers on the disk count.
    """
    entries = [DECODER]
    for path, _ in (sample for found in listings for sample in found.samples):
        try:
            status = os.stat(path)
        except OSError as error:  # a link to itself or to nothing
            raise ValueError(f"cannot read {path} ({error.strerror}): remove or replace it") from error
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise ValueError(f"{path} is no regular file: remove it")
        marks = status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
        entries.append((os.path.relpath(path, root), *marks))
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16]


def _decode(samples, size):
    """Return (N, 3, size, size) uint8 of the files in samples; threads suffice, since PIL decodes without the GIL."""
    check_memory(len(samples), 3, size)
    images = np.empty((len(samples), 3, size, size), np.uint8)

    def fill(i):
        images[i] = decode_image(samples[i][0], size).transpose(2, 0, 1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(fill, range(len(samples))):  # the loop raises what a thread raised
            pass
    return images
