"""Data sets as uint8 tensors, augmentation by tensor indexing, batches of (index, x, y) (Sec. 4).

    train, generator = load("fashion-mini").train.to(device), torch.Generator().manual_seed(0)
    for index, x, y in batches(train, size=128, generator=generator, augment=True):
        loss = F.cross_entropy(model(x), y)  # x: (B, C, H, W) normalised; index: dataset indices, on the CPU
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

import datasets

TRIGGER_SIZE = 3  # pixels; the poison trigger is a white square in the bottom right corner
TRIGGER_VALUE = 255

# Choice: everything that is fixed per data set. mean, std: per channel, of the training pixels in [0, 1] at native size
# (None: computed from the training images). size: pixels a side (None: must be given). pad "eighth": size // 8 pixels.
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
RECIPES = {
    "fashion-mini": dict(mean=(0.2873,), std=(0.3540,), size=16, pad=0, flip=False),  # printed by make_fashion_mini.py
    "fashion-mnist": dict(mean=(0.2860,), std=(0.3530,), size=28, pad=0, flip=True),
    "cifar10": dict(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), size=32, pad=4, flip=True),
    # No flip: a flipped digit is no digit.
    "svhn": dict(mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970), size=32, pad=4, flip=False),
    "imagenette": dict(**IMAGENET, size=64, pad="eighth", flip=True),  # from the 160 pixel archive
    "folder": dict(mean=None, std=None, size=None, pad="eighth", flip=True),
}
DATASETS = tuple(RECIPES)


# ---- images in memory ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)  # eq compares tensors element by element, which has no single truth value
class Data:
    """Images on one device, labels as given, and how to augment them."""

    images: torch.Tensor  # (N, C, H, W) uint8
    labels: torch.Tensor  # (N,) int64, the labels as given (maybe corrupted)
    classes: int
    mean: tuple[float, ...]  # per channel, in [0, 1] pixel units
    std: tuple[float, ...]
    pad: int = 0  # random crop with this much zero padding, pixels; 0: no crop
    flip: bool = False  # random horizontal flip
    trigger: torch.Tensor | None = None  # (N,) bool: examples that carry the poison trigger; put on after augmentation

    def __post_init__(self):
        _check_tensor("images", self.images, torch.uint8, 4)
        n, channels = self.images.shape[:2]
        _check_tensor("labels", self.labels, torch.int64, 1, n, self.images.device)
        if self.trigger is not None:
            _check_tensor("trigger", self.trigger, torch.bool, 1, n, self.images.device)
            _check_room(self.images)
        if n and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.classes:
            found = f"{int(self.labels.min())} to {int(self.labels.max())}"
            raise ValueError(f"labels run from {found}, expected 0 to {self.classes - 1}: relabel them or set classes")
        if len(self.mean) != channels or len(self.std) != channels or not min(self.std) > 0:
            raise ValueError(
                f"mean {self.mean} and std {self.std} do not fit images of {channels} channels: "
                "give one number per channel, std above 0"
            )
        if self.pad < 0:
            raise ValueError(f"pad is {self.pad}, expected 0 (no crop) or more pixels")

    def __len__(self):
        return len(self.images)

    def to(self, device):
        """Return the same data with its tensors on `device`."""
        trigger = None if self.trigger is None else self.trigger.to(device)
        return replace(self, images=self.images.to(device), labels=self.labels.to(device), trigger=trigger)

    def batches(self, index=None, size=512, generator=None, augment=False, dtype=torch.float32):
        """Iterate once over examples in batches (index, x, y), see `batches` below."""
        return batches(self, index, size, generator, augment, dtype)

    @property
    def augments(self):
        """Whether augmentation can change what a pass yields."""
        return bool(self.pad or self.flip)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test set of the same classes."""

    name: str
    train: Data
    test: Data
    names: tuple[str, ...]  # class names


def _check_tensor(name, tensor, dtype, ndim, length=None, device=None):
    """Raise TypeError or ValueError unless `tensor` is a tensor of this dtype, rank, length and device."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}, expected a torch.Tensor of {dtype}")
    if tensor.dtype != dtype or tensor.ndim != ndim:
        found = f"{tensor.dtype} with {tensor.ndim} dimensions"
        raise TypeError(f"{name} is {found}, expected {dtype} with {ndim}: convert it")
    if length is not None and len(tensor) != length:
        raise ValueError(f"{name} has {len(tensor)} entries for {length} images: give one for each image")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, the images are on {device}: move the Data with .to(device)")


def _check_room(images):
    if min(images.shape[-2:]) < TRIGGER_SIZE:
        height, width = images.shape[-2:]
        trigger = f"{TRIGGER_SIZE}x{TRIGGER_SIZE} trigger"
        raise ValueError(f"image of {height}x{width} is smaller than the {trigger}: use larger images")


def add_trigger(images):
    """Return a copy of images (B, C, H, W), pixels in 0..255, with the bottom right 3x3 pixels white.

    Raises: ValueError if the trigger does not fit.
    """
    _check_room(images)
    images = images.clone()
    images[:, :, -TRIGGER_SIZE:, -TRIGGER_SIZE:] = TRIGGER_VALUE
    return images


# ---- batches ---------------------------------------------------------------------------------------------------------


MEMORY_FORMAT = torch.channels_last  # of x and of the networks: tensor cores want it, and it is faster on CPUs too


def count_batches(n, size):
    """Return the number of batches in a shuffled pass over n examples.

    BatchNorm in training mode cannot normalise a single example with 1x1 maps, so in a shuffled pass (training) a last
    batch of one example joins the batch before it.
    """
    return -(-n // size) - (n % size == 1 and n > size > 1)


def batches(data, index=None, size=512, generator=None, augment=False, dtype=torch.float32):
    """Iterate once over examples in batches (index, x, y).

    All random numbers of the pass are drawn in this call, on the CPU: randperm(n), then if augmenting and pad > 0
    randint(0, 2 pad + 1, (2, n)) for the top and left corner, then if augmenting and flip randint(0, 2, (n,)).

    Args:
        data: Data of N examples, on any device.
        index: (n,) int64 dataset indices in [0, N), duplicates allowed; None: all of them.
        size: examples a batch. The last, smaller batch is kept.
        generator: CPU torch.Generator; the order is then a random permutation of index. None: the order as given.
        augment: random crop and flip as `data` says; needs a generator.
        dtype: of x. Pixels are normalised in float32 at least, and rounded once.
    Returns: iterator of index (B,) int64 on the CPU, x (B, C, H, W) and y (B,) int64 on data's device.
    Raises: ValueError for an index out of range or empty, size < 1, augment without a generator.
    """
    index = _check_index(index, len(data))
    if size < 1:
        raise ValueError(f"size is {size}, expected at least 1 example a batch")
    if augment and generator is None:
        raise ValueError("augment=True draws random numbers: pass generator=torch.Generator().manual_seed(seed)")
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(f"generator is on {generator.device}, expected one on the CPU: pass torch.Generator()")
    n = len(index)
    starts = range(0, n, size)
    if generator is not None:
        starts = starts[: count_batches(n, size)]
        index = index[torch.randperm(n, generator=generator)]
    moves = _draw_moves(data, n, generator) if augment and (data.pad or data.flip) else None
    return _iterate(data, index, moves, list(zip(starts, [*starts[1:], n], strict=True)), dtype)


def inputs(data, index):
    """Return the images that the network sees, before normalisation: no augmentation, trigger on.

    Args:
        index: (B,) int64 dataset indices in [0, N); None: all of them.
    Returns: (B, C, H, W) uint8, on data's device.
    """
    return _view(data, _check_index(index, len(data)).to(data.images.device))


def _check_index(index, n):
    """Return index as a (B,) int64 CPU tensor with all entries in [0, n), or raise ValueError."""
    index = torch.arange(n) if index is None else torch.as_tensor(index).cpu().clone()
    if index.numel() == 0:
        raise ValueError("index is empty, expected at least one example")
    if index.dtype != torch.int64 or index.ndim != 1:
        raise ValueError(f"index is {index.dtype} of shape {tuple(index.shape)}, expected 1-d torch.int64: convert it")
    outside = (index < 0) | (index >= n)
    if outside.any():
        raise ValueError(f"index {int(index[outside][0])} out of range for {n} examples")
    return index


def _draw_moves(data, n, generator):
    """Return (3, n) int64 on the CPU: top and left corner of the crop, 1 where flipped."""
    moves = torch.zeros(3, n, dtype=torch.int64)
    if data.pad:
        moves[:2] = torch.randint(0, 2 * data.pad + 1, (2, n), generator=generator)
    if data.flip:
        moves[2] = torch.randint(0, 2, (n,), generator=generator)
    return moves


def _iterate(data, index, moves, spans, dtype):
    """Yield the batches; nothing here waits for the device after the first lines."""
    device = data.images.device
    where = index.to(device)
    rows = cols = None
    if moves is not None:
        rows, cols = _crop_indices(moves.to(device), *data.images.shape[2:])
    # (pixel / 255 - mean) / std = pixel * scale - shift
    mean, std = (torch.tensor(value, dtype=torch.float64).view(1, -1, 1, 1) for value in (data.mean, data.std))
    work = torch.promote_types(dtype, torch.float32)
    scale, shift = (1 / (255 * std)).to(device, work), (mean / std).to(device, work)  # (1, C, 1, 1)
    for a, b in spans:
        moved = (None, None) if moves is None else (rows[a:b], cols[a:b])
        images = _view(data, where[a:b], *moved)
        x = images.to(work, memory_format=MEMORY_FORMAT).mul_(scale).sub_(shift).to(dtype)
        yield index[a:b], x, data.labels.index_select(0, where[a:b])


def _crop_indices(moves, height, width):
    """Return rows (n, H) and cols (n, W) of each example's crop in the padded image; a flip reverses the columns."""
    top, left, flipped = moves[:, :, None]  # each (n, 1)
    across = torch.arange(width, device=moves.device)
    rows = top + torch.arange(height, device=moves.device)
    return rows, left + torch.where(flipped > 0, width - 1 - across, across)


def _view(data, index, rows=None, cols=None):
    """Return uint8 images of index (B,): cropped and flipped to rows (B, H), cols (B, W) if given, then the trigger."""
    images = data.images.index_select(0, index)
    if rows is not None:
        images = F.pad(images, (data.pad,) * 4)  # zeros, that is black; (B, C, H + 2 pad, W + 2 pad)
        flat = rows[:, :, None] * images.shape[3] + cols[:, None, :]  # (B, H, W)
        flat = flat.flatten(1)[:, None].expand(-1, images.shape[1], -1)  # (B, C, H * W)
        images = images.flatten(2).gather(2, flat).view(len(images), -1, *data.images.shape[2:])
    if data.trigger is not None:  # after crop and flip, so that neither moves it
        carries = data.trigger.index_select(0, index)[:, None, None, None]
        images = torch.where(carries, add_trigger(images), images)
    return images


# ---- data sets -------------------------------------------------------------------------------------------------------


def load(name, data_dir="data", image_size=None, download=False):
    """Return a data set as CPU tensors.

    Args:
        name: one of DATASETS. "fashion-mini" comes with the code; "folder" is data_dir/{train,test or val}/<class>/*.
        data_dir: folder of the data set's files, as torchvision lays them out.
        image_size: pixels a side, None: the data set's own, RECIPES. Folders need one.
        download: fetch a missing data set (not for fashion-mini and folder).
    Returns: Dataset.
    Raises: ValueError for an unknown name or missing files, with the path tried and what mends it.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown data set {name!r}: choose from {', '.join(DATASETS)}")
    recipe = RECIPES[name]
    image_size = recipe["size"] if image_size is None else image_size
    if image_size is None or image_size < 1:
        raise ValueError(f"image_size is {image_size} for data set {name}: give pixels a side, e.g. image_size=32")
    if name == "fashion-mini":
        arrays = datasets.read_mini()
    elif name == "folder":
        arrays = datasets.read_tree(Path(data_dir), image_size)
    else:
        arrays = datasets.read_torchvision(name, Path(data_dir), image_size, download)
    mean, std = recipe["mean"] or arrays["mean"], recipe["std"] or arrays["std"]
    parts = {}
    for split in ("train", "test"):
        images, labels = _resize(arrays[f"x_{split}"], image_size), arrays[f"y_{split}"]
        parts[split] = Data(images, labels, len(arrays["names"]), tuple(mean), tuple(std))
    pad = image_size // 8 if recipe["pad"] == "eighth" else recipe["pad"]
    train = replace(parts["train"], pad=pad, flip=recipe["flip"])  # a test set is never augmented
    return Dataset(name, train, parts["test"], tuple(arrays["names"]))


def _resize(images, size):
    """Return (N, C, size, size) uint8, by antialiased bilinear interpolation; the images as they are if they fit."""
    if images.shape[2:] == (size, size):
        return images
    parts = images.split(4096)  # the float copy of a whole data set would be large
    kwargs = dict(size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return torch.cat([F.interpolate(part.float(), **kwargs).round().clamp(0, 255).to(torch.uint8) for part in parts])
