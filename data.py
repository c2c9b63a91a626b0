"""Images as uint8 tensors, augmentation by tensor indexing, batches of (index, x, y) (Sec. 4).

    train, generator = load("fashion-mini").train.to(device), torch.Generator().manual_seed(0)  # load: datasets.py
    for index, x, y in train.batches(size=128, generator=generator, augment=True):
        loss = F.cross_entropy(model(x), y)  # x: (B, C, H, W) normalised; index: dataset indices, on the CPU
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F

from etd import check_index

# ---- images in memory ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)  # eq compares tensors element by element, which has no single truth value
class Data:
    """Images on one device, labels as given, and how to augment them."""

    images: torch.Tensor  # (N, C, H, W) uint8, what the network sees without augmentation
    labels: torch.Tensor  # (N,) int64, the labels as given (maybe corrupted)
    classes: int
    mean: tuple[float, ...]  # per channel, in [0, 1] pixel units
    std: tuple[float, ...]
    pad: int = 0  # random crop with this much zero padding, pixels; 0: no crop
    flip: bool = False  # random horizontal flip
    # What augmentation must not move: called as _overlay(images, index, move), it returns move(images) put right.
    # Private, because it can tell which images it is for.
    _overlay: Callable | None = field(default=None, repr=False)

    def __post_init__(self):
        _check_tensor("images", self.images, torch.uint8, 4)
        n, channels = self.images.shape[:2]
        _check_tensor("labels", self.labels, torch.int64, 1, n, self.images.device)
        if n and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.classes:
            found = f"{int(self.labels.min())} to {int(self.labels.max())}"
            raise ValueError(f"labels run from {found}, expected 0 to {self.classes - 1}: relabel them or set classes")
        fits = len(self.mean) == len(self.std) == channels and min(self.std) > 0
        if not fits or not all(0 <= mean <= 1 for mean in self.mean):
            raise ValueError(
                f"mean {self.mean} and std {self.std} do not fit images of {channels} channels: "
                "give one number per channel for pixels scaled to [0, 1], mean from 0 to 1 and std above 0"
            )
        if self.pad < 0:
            raise ValueError(f"pad is {self.pad}, expected 0 (no crop) or more pixels")

    def __len__(self):
        return len(self.images)

    def to(self, device):
        """Return the same data with its tensors on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

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
        size: examples per batch. The last, smaller batch is kept.
        generator: CPU torch.Generator; the order is then a random permutation of index. None: the order as given.
        augment: random crop and flip as `data` says; needs a generator.
        dtype: of x. Pixels are normalised in float32 at least, and rounded once.
    Returns: iterator of index (B,) int64 on the CPU, x (B, C, H, W) and y (B,) int64 on data's device.
    Raises: ValueError for an index out of range or empty, size < 1, augment without a generator.
    """
    index = torch.arange(len(data)) if index is None else check_index(index, len(data)).cpu().clone()
    if len(index) == 0:
        raise ValueError("index is empty, expected at least one example")
    if size < 1:
        raise ValueError(f"size is {size}, expected at least 1 example per batch")
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
    if moves is not None:
        rows, cols = _crop_indices(moves.to(device), *data.images.shape[2:])
    # (pixel / 255 - mean) / std = pixel * scale - shift
    mean, std = (torch.tensor(value, dtype=torch.float64).view(1, -1, 1, 1) for value in (data.mean, data.std))
    work = torch.promote_types(dtype, torch.float32)
    scale, shift = (1 / (255 * std)).to(device, work), (mean / std).to(device, work)  # (1, C, 1, 1)
    for a, b in spans:
        images = data.images.index_select(0, where[a:b])
        if moves is not None:
            move = partial(_move, pad=data.pad, rows=rows[a:b], cols=cols[a:b])
            images = move(images) if data._overlay is None else data._overlay(images, index[a:b], move)
        x = images.to(work, memory_format=MEMORY_FORMAT).mul_(scale).sub_(shift).to(dtype)
        yield index[a:b], x, data.labels.index_select(0, where[a:b])


def _crop_indices(moves, height, width):
    """Return rows (n, H) and cols (n, W) of each example's crop in the padded image; a flip reverses the columns."""
    top, left, flipped = moves[:, :, None]  # each (n, 1)
    across = torch.arange(width, device=moves.device)
    rows = top + torch.arange(height, device=moves.device)
    return rows, left + torch.where(flipped > 0, width - 1 - across, across)


def _move(images, pad, rows, cols):
    """Return images (B, C, H, W) cropped and flipped to rows (B, H), cols (B, W) of them with a black border."""
    height, width = images.shape[2:]
    images = F.pad(images, (pad,) * 4)  # (B, C, H + 2 pad, W + 2 pad)
    flat = rows[:, :, None] * images.shape[3] + cols[:, None, :]  # (B, H, W)
    flat = flat.flatten(1)[:, None].expand(-1, images.shape[1], -1)  # (B, C, H * W)
    return images.flatten(2).gather(2, flat).view(len(images), -1, height, width)
