"""Images as uint8 tensors, augmentation by tensor indexing, batches of (index, x, y) (Sec. 4).

    train, generator = load("fashion-mini").train.to(device), torch.Generator().manual_seed(0)  # load: datasets.py
    for index, x, y in train.batches(size=128, generator=generator, augment=True):
        loss = F.cross_entropy(model(x), y)  # x: (B, C, H, W) normalised; index: dataset indices, on the CPU
    train = Streamed(dataset, classes=10, workers=4)  # the same of any torch Dataset, whose images stay where they are
"""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from engine.batches import count_batches
from engine.checks import check_index, first_line

MOST_PIXELS = 4096  # per side of an image that a network gets


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
    memory_format: torch.memory_format = torch.channels_last  # of x; contiguous for networks that flatten by x.view
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
            raise ValueError(f"mean {self.mean} and std {self.std} do not fit images of {channels} channels: give one "
                             "number per channel for pixels scaled to [0, 1], mean from 0 to 1 and std above 0")
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

    augmented = None  # another source of augmented images, as Streamed has it

    @property
    def augments(self):
        """Whether augmentation can change what a pass yields."""
        return bool(self.pad or self.flip or self.augmented is not None)

    @property
    def device(self):
        """Where the batches are."""
        return self.images.device

    @property
    def shape(self):
        """(C, H, W) of an image."""
        return self.images.shape[1:]

    def some(self, index):
        """Return the examples of `index`, (k,) int64 on the CPU, as Data without augmentation; images must be uint8."""
        ((images, labels),) = self._read(check_index(index, len(self)), [slice(0, len(index))], None)
        return Data(images, labels, self.classes, self.mean, self.std, memory_format=self.memory_format)

    def _read(self, index, spans, seed):
        """Yield images (B, C, H, W) and labels (B,) of each span of `index`."""
        where = index.to(self.device)
        for at in spans:
            yield self.images.index_select(0, where[at]), self.labels.index_select(0, where[at])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test set of the same classes."""

    name: str
    train: Data
    test: Data
    names: tuple[str, ...]  # class names
    index: torch.Tensor | None = None  # (N,) int64, where a part was drawn: its images in the whole training set
    whole: torch.Tensor | None = None  # labels of that whole training set, on the CPU


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


def check_memory(n, channels, size):
    """Raise ValueError for images that this machine cannot hold, before any of them is made."""
    if not hasattr(os, "sysconf"):
        return
    need, room = n * channels * size**2, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > room:
        raise ValueError(f"{n:,} images of {size}x{size} take {need / 1e9:.3g} GB and this machine has "
                         f"{room / 1e9:.3g}: give a smaller --image-size")


# ---- batches ---------------------------------------------------------------------------------------------------------

PIXELS = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)  # dtypes of images
MEMORY_FORMAT = Data.memory_format  # of the networks too: tensor cores want it, and it is faster on CPUs


def batches(data, index=None, size=512, generator=None, augment=False, dtype=torch.float32):
    """Iterate once over examples in batches (index, x, y).

    All random numbers of the pass are drawn in this call, on the CPU: randperm(n), then if augmenting and pad > 0
    randint(0, 2 pad + 1, (2, n)) for the top and left corner, then if augmenting and flip randint(0, 2, (n,)).
    Args:
        data: Data or Streamed of N examples, on any device.
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
    n, seed = len(index), None
    starts = range(0, n, size)
    if generator is not None:
        starts = starts[: count_batches(n, size)]
        index = index[torch.randperm(n, generator=generator)]
    moves = _draw_moves(data, n, generator) if augment and (data.pad or data.flip) else None
    if augment:  # what the generator would draw next, read off a twin, so that its own stream stays
        seed = int(torch.randint(2**62, (), generator=generator.clone_state()))
    spans = [slice(a, b) for a, b in zip(starts, [*starts[1:], n], strict=True)]
    return _iterate(data, index, moves, spans, dtype, seed)


def _draw_moves(data, n, generator):
    """Return (3, n) int64 on the CPU: top and left corner of the crop, 1 where flipped."""
    moves = torch.zeros(3, n, dtype=torch.int64)
    if data.pad:
        moves[:2] = torch.randint(0, 2 * data.pad + 1, (2, n), generator=generator)
    if data.flip:
        moves[2] = torch.randint(0, 2, (n,), generator=generator)
    return moves


def _iterate(data, index, moves, spans, dtype, seed):
    """Yield the batches; nothing here waits for the device after the first lines."""
    device = data.device
    if moves is not None:
        rows, cols = _crop_indices(moves.to(device), *data.shape[1:])
    # (pixel / 255 - mean) / std = pixel * scale - shift
    mean, std = (torch.tensor(value, dtype=torch.float64).view(1, -1, 1, 1) for value in (data.mean, data.std))
    work = torch.promote_types(dtype, torch.float32)
    scale, shift = (1 / (255 * std)).to(device, work), (mean / std).to(device, work)  # (1, C, 1, 1)
    for at, (images, labels) in zip(spans, data._read(index, spans, seed), strict=True):
        if moves is not None:
            move = partial(_move, pad=data.pad, rows=rows[at], cols=cols[at])
            images = move(images) if data._overlay is None else data._overlay(images, index[at], move)
        x = images.to(work, memory_format=data.memory_format)
        yield index[at], (x.mul_(scale).sub_(shift) if images.dtype == torch.uint8 else x).to(dtype), labels


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


# ---- images that stay where they are ---------------------------------------------------------------------------------

@dataclass(frozen=True, eq=False)
class Streamed:
    """Any torch Dataset, read by a DataLoader in every pass; used like Data.

    dataset[i] is a pair (image, label). Of uint8 images a pass makes what Data makes of them; float ones it takes as
    the user's transforms made them. A pass depends on its generator alone, not on the number of workers: order, crop
    and flip as in Data, and before each sample the global generators of torch, numpy and Python are seeded from it.
    A sample with which something is wrong is named by a ValueError, in a pass too.
    """

    dataset: object  # torch Dataset with a length: image (C, H, W) as seen without augmentation, label a whole number
    classes: int
    mean: tuple[float, ...] | None = None  # of uint8 images, as in Data; None: 0, with std 1
    std: tuple[float, ...] | None = None
    labels: torch.Tensor | None = None  # (N,) int64 in place of the samples' own; None: theirs, each read once for it
    augmented: object | None = None  # the same samples under random transforms; None: pad and flip are all there is
    workers: int = 0  # processes that read (some systems pickle dataset for them); fewer where a pass is short
    device: torch.device = torch.device("cpu")  # where the batches go, by way of pinned memory if it is a GPU
    pad: int = 0  # of uint8 images, as in Data
    flip: bool = False
    memory_format: torch.memory_format = torch.channels_last
    _overlay = None

    def __post_init__(self):
        for source in (self.dataset, self.augmented or self.dataset):
            if not hasattr(source, "__len__") or not 0 < len(source) == len(self.dataset):
                raise TypeError(f"{type(source).__name__} has no length, or none above 0, or not dataset's: give a "
                                "Dataset whose samples an index can name")
        n, first = len(self.dataset), _stack(_Samples(self.dataset, None, None).__getitems__([(0, 0)]))
        if isinstance(first, str):
            raise ValueError(first)
        shape, dtype = kind = _kind(first[0][0])
        if dtype != torch.uint8 and (self.pad or self.flip):
            raise ValueError("pad and flip are for uint8 images: put them into the transforms of augmented")
        mean, std = self.mean or (0.0,) * shape[0], self.std or (1.0,) * shape[0]
        for name, value in dict(mean=mean, std=std, shape=shape, _kind=kind).items():
            object.__setattr__(self, name, value)
        if self.labels is None:
            parts = [slice(a, min(n, a + 512)) for a in range(0, n, 512)]
            read = torch.cat([labels.cpu() for _, labels in self._read(torch.arange(n), parts, None)])
            object.__setattr__(self, "labels", read)
        wrong = ((self.labels < 0) | (self.labels >= self.classes)).nonzero().flatten().tolist()
        if wrong:
            raise ValueError(f"label of sample {wrong[0]} is {int(self.labels[wrong[0]])}, expected 0 to "
                             f"{self.classes - 1}")
        as_if = torch.zeros((), dtype=torch.uint8).expand(n, *shape)  # takes no memory
        Data(as_if, self.labels, self.classes, self.mean, self.std, self.pad)  # whose checks are ours

    def __len__(self):
        return len(self.labels)

    def to(self, device):
        """Return the same data whose batches go to `device`."""
        return replace(self, device=torch.device(device))

    batches, augments, some = Data.batches, Data.augments, Data.some

    def _read(self, index, spans, seed):
        """Yield images (B, C, H, W) and labels (B,) of each span of `index`; seed: of the transforms of `augmented`."""
        source = self.dataset if seed is None or self.augmented is None else self.augmented
        samples = _Samples(source, self._kind, self.classes if self.labels is None else None)
        # a seed by the place in the pass; without augmentation by the sample, so that it is always the same
        keys = ([(i, i if seed is None else seed + k) for k, i in zip(range(len(index))[at], index[at].tolist())]
                for at in spans)
        loader = DataLoader(samples, batch_sampler=keys, num_workers=max(0, min(self.workers, len(spans) - 1)),
                            collate_fn=_stack, pin_memory=self.device.type == "cuda", generator=torch.Generator())
        for at, batch in zip(spans, loader, strict=True):
            if isinstance(batch, str):
                raise ValueError(batch)
            labels = batch[1] if self.labels is None else self.labels[index[at]]
            yield tuple(part.to(self.device, non_blocking=True) for part in (batch[0], labels))


@dataclass
class _Samples:
    """What a worker reads: for (index, seed) an image and its label, or a line on what is wrong with the sample."""

    dataset: object
    kind: tuple | None  # of every image, see _kind; None: any
    classes: int | None  # None: the label is not looked at

    def __getitems__(self, keys):
        """A list of pairs or lines; the global random states are as before."""
        kept = torch.get_rng_state(), random.getstate(), np.random.get_state()
        try:
            return [self.read(*key) for key in keys]
        finally:
            torch.set_rng_state(kept[0])
            random.setstate(kept[1])
            np.random.set_state(kept[2])

    def read(self, i, seed):
        """The pair (image, label) of sample i, or a line."""
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            image, label = self.dataset[i]
            if self.classes is None:
                label = 0
            elif hasattr(label, "item"):
                label = label.item()
        except Exception as error:  # transforms and decoders raise anything
            return f"sample {i} cannot be read as a pair (image, label): {first_line(error)}"
        kind = _kind(image)
        if isinstance(kind, str) or self.kind not in (None, kind):
            wanted = f"{self.kind} as that of sample 0" if self.kind else "a uint8 or float tensor (C, H, W)"
            return f"image of sample {i} is {kind}, expected {wanted}: ToTensor, Resize and CenterCrop make it one"
        if self.classes is not None and label not in range(self.classes):
            return f"label of sample {i} is {label!r}, expected 0 to {self.classes - 1}: set classes or labels"
        return image, label


def _kind(image):
    """Shape and dtype of an image tensor, of anything else a text."""
    fits = isinstance(image, torch.Tensor) and image.dim() == 3 and image.dtype in PIXELS
    return (tuple(image.shape), image.dtype) if fits else f"{type(image).__name__} {tuple(getattr(image, 'shape', ()))}"


def _stack(samples):
    """One batch of samples, or the first line of what is wrong with one."""
    if wrong := [sample for sample in samples if isinstance(sample, str)]:
        return wrong[0]
    return torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])
