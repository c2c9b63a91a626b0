"""The three corruptions and the discovery of a part of them: the two axes of the task space (Sec. 4).

    task = make_task("poison", load("cifar10"), n=1000, seed=0)       # D_c: high regularity; confusion: medium, ...
    forget = discover(task, rate=0.5, seed=0)                         # D_f, within D_f of every larger rate
    unlearned = method(model, task.train, forget, config, generator)  # task.clean, task.corrupted: for metrics alone
    marked = stamp(images, "blended")                                 # images (B, C, H, W) with a trigger on them
"""

import math
import zlib
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from engine.streams import stream

TASKS = ("poison", "confusion", "random")  # the paper's; "all" of them
EVERY_TASK = (*TASKS, "human")
TRIGGER_SIZE = 3  # pixels; the poison trigger is a white square in the bottom right corner (Goel et al. 2024)
TRIGGER_VALUE = 255
PEOPLE = ("aggre", "worse", "random1", "random2", "random3")  # of CIFAR-10N: by majority, worst of three, each of three
TRIGGERS = ("patch", "blended", "sinusoidal", "warp")  # of `stamp`
TARGET = 0  # the class that the trigger redirects to (Goel et al. 2024)
# The confused classes: cat and dog (Goel et al. 2024). Choice: on SVHN the same two numbers.
PAIRS = {"cifar10": (3, 5), "cifar10-small": (3, 5), "svhn": (3, 5)}


@dataclass(frozen=True)
class Task:
    """A training set with corrupted labels, and what only the metrics may know about it."""

    name: str  # poison, confusion, random or human
    seed: int
    train: object  # D_tr: labels as given; the poisoned images carry the trigger
    test: object  # D_test: never corrupted
    clean: torch.Tensor  # (N,) int64, the labels before corruption
    corrupted: torch.Tensor  # (n,) int64, D_c: sorted dataset indices
    source: int | None = None  # fingerprint of the images before corruption; None: they are train's
    trigger: str = "patch"  # of poison, one of TRIGGERS


def make_task(name: str, dataset, n: int, seed: int, pair: tuple[int, int] | None = None,
              trigger: str = "patch") -> Task:
    """Corrupt n training examples.

    Args: name: "poison" (high regularity), "confusion" (medium) or "random" (low); dataset: clean, it is left as it is;
        n: |D_c|, in [1, N], even for confusion; seed: of the draw: the same seed, data and n give the same task for
        every method; pair: the two classes of confusion, None for Goel's classes or, elsewhere, the pair of
        `closest_pair`; trigger: of poison, one of TRIGGERS.
    Returns: a Task whose labels are fixed from here on.
    Raises: ValueError for an unknown name, or numbers that the data cannot give; the text has them.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; choose one of {', '.join(TASKS)}")
    if dataset.train.classes < 2:
        raise ValueError(f"the data set has {dataset.train.classes} class; give it two or more, there is nothing to "
                         "tell apart")
    if not 1 <= n <= len(dataset.train):
        raise ValueError(f"n is {n}; it must be from 1 to {len(dataset.train)}, the number of training images")
    generator = stream(seed, f"task {name}")
    if name == "confusion":
        pair = pair or PAIRS.get(dataset.name) or closest_pair(dataset.train)
        return confusion(dataset, n, seed, pair, generator)
    if name == "poison":
        return poison(dataset, n, seed, generator, trigger)
    return random_labels(dataset, n, seed, generator)


def poison(dataset, n: int, seed: int, generator: torch.Generator, trigger: str = "patch") -> Task:
    """A trigger and label 0 on n images: the most regular task. The paper's is a white 3x3 patch in the bottom right
    corner (Goel et al. 2024); `stamp` has the others.

    Choice: sources are drawn uniformly from all classes, so about 1 / classes of D_c has clean label 0 already. The
    same seed poisons the same images whatever the trigger.
    """
    corrupted = sample(torch.arange(len(dataset.train)), n, generator)
    labels = dataset.train.labels.cpu().clone()
    labels[corrupted] = TARGET
    return assemble("poison", seed, dataset, labels, corrupted, trigger)


def confusion(dataset, n: int, seed: int, pair: tuple[int, int], generator: torch.Generator) -> Task:
    """n / 2 examples of each of two classes exchange labels (interclass confusion, Goel et al. 2022).

    Raises: ValueError: n is odd, more than the classes have, or the pair is not two classes.
    """
    pair = a, b = sorted(pair)  # 5,3 is 3,5
    labels = dataset.train.labels.cpu().clone()
    if n % 2:
        raise ValueError(f"n is {n}; confusion swaps n / 2 examples of each class, so it must be even")
    if a == b or not 0 <= min(a, b) <= max(a, b) < dataset.train.classes:
        raise ValueError(f"pair is {a},{b}; it must be two different classes from 0 to {dataset.train.classes - 1}")
    members = [(labels == c).nonzero().flatten() for c in pair]
    if min(len(m) for m in members) < n // 2:
        raise ValueError(f"n is {n}; classes {a} and {b} have {len(members[0])} and {len(members[1])} images, "
                         f"so n can be at most {2 * min(len(m) for m in members)}")
    corrupted = torch.cat([sample(m, n // 2, generator) for m in members]).sort().values
    labels[corrupted] = a + b - labels[corrupted]
    return assemble("confusion", seed, dataset, labels, corrupted)


def random_labels(dataset, n: int, seed: int, generator: torch.Generator) -> Task:
    """n examples get a label drawn uniformly from the wrong classes (Maini et al. 2023; the least regular task)."""
    labels, classes = dataset.train.labels.cpu().clone(), dataset.train.classes
    corrupted = sample(torch.arange(len(labels)), n, generator)
    offset = torch.randint(1, classes, (n,), generator=generator)  # 1 .. C - 1: never the true label
    labels[corrupted] = (labels[corrupted] + offset) % classes
    return assemble("random", seed, dataset, labels, corrupted)


def closest_pair(train) -> tuple[int, int]:
    """The two classes whose mean images are closest, for data sets that have no customary pair."""
    means = torch.stack([train.images[train.labels == c].to(torch.float64).mean(dim=0).flatten()
                         for c in range(train.classes)])  # (classes, C H W)
    distance = torch.cdist(means, means).fill_diagonal_(torch.inf)  # to itself
    a, b = divmod(int(distance.nan_to_num(nan=torch.inf).argmin()), train.classes)
    return min(a, b), max(a, b)


def people(dataset, labels: torch.Tensor, seed: int) -> Task:
    """Labels as people gave them; D_c is where they differ from the data set's (CIFAR-10N, Wei et al. 2022).

    Its regularity is what people's mistakes have, which nobody has set; some are of two like classes, some random.
    Args: labels: (N,) int64, those by people, in the order of the training images; seed: of the discovery alone.
    Raises: ValueError where no label differs, or the numbers of labels and images do.
    """
    clean = dataset.train.labels.cpu()
    if len(labels) != len(clean):
        raise ValueError(f"{len(labels)} labels by people for {len(clean)} training images; give one for each")
    corrupted = (labels != clean).nonzero().flatten()
    if len(corrupted) == 0:
        raise ValueError("no label by people differs from the data set's, so there is nothing to unlearn")
    return assemble("human", seed, dataset, labels.clone(), corrupted)


def sample(candidates: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    """n of the candidates, without replacement, sorted."""
    return candidates[torch.randperm(len(candidates), generator=generator)[:n]].sort().values


def assemble(name, seed, dataset, labels, corrupted, trigger: str = "patch") -> Task:
    """A Task from the corrupted labels; the clean ones are kept beside them, on the CPU with D_c."""
    train = dataset.train
    given, source = replace(train, labels=labels.to(train.images.device)), None
    if name == "poison":
        given, source = put_trigger(given, corrupted, trigger), fingerprint(train)
    return Task(name, seed, given, dataset.test, train.labels.cpu().clone(), corrupted, source, trigger)


# --- Triggers ---------------------------------------------------------------------------------------------------------

def put_trigger(data, index: torch.Tensor, trigger: str = "patch") -> object:
    """A copy of the data in which the images of `index` carry a trigger, which no crop or flip moves.

    A method that gets it can see the trigger, and nothing else that tells these images from the others.
    """
    shown, rows = data.images.clone(), index.to(data.images.device)
    shown[rows] = stamp(shown[rows], trigger)
    originals = data.images[rows].cpu()  # (n, C, H, W), what the trigger hides
    place = torch.full((len(data),), -1)  # (N,), an image's place in `originals`; -1: it carries no trigger
    place[index.cpu()] = torch.arange(len(index))

    def overlay(images: torch.Tensor, index: torch.Tensor, move) -> torch.Tensor:
        """Take the trigger off, crop and flip, put it on again: images (B, C, H, W) of the dataset indices (B,)."""
        at = place[index]  # (B,)
        on = (at >= 0).nonzero().flatten()
        if len(on) == 0:
            return move(images)
        rows = on.to(images.device, non_blocking=True)
        moved = move(images.index_copy(0, rows, originals[at[on]].to(images.device, non_blocking=True)))
        return moved.index_copy(0, rows, stamp(moved.index_select(0, rows), trigger))

    return replace(data, images=shown, _overlay=overlay)


def stamp(images: torch.Tensor, trigger: str = "patch") -> torch.Tensor:
    """Images with a trigger on them.

    Args: images: (B, C, H, W) uint8, they are left as they are; trigger: "patch", the paper's, or another one that is
        customary: "blended", "sinusoidal", "warp".
    Returns: (B, C, H, W) uint8, a copy. An image's result depends on it, its shape and the trigger alone.
    Choice: the random image of "blended" and the random field of "warp" have a seed of their own, which is neither the
        task's nor changes between training and test images: they are constants of the attack, as the white square is.
        The task's seed says which images are poisoned.
    Raises: ValueError for an unknown trigger, or images smaller than the patch; TypeError for other tensors.
    """
    if trigger not in TRIGGERS:
        raise ValueError(f"unknown trigger {trigger!r}; choose one of {', '.join(TRIGGERS)}")
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise TypeError(f"images are {images.dtype} with {images.dim()} dimensions; a trigger is put on torch.uint8 "
                        "with 4, (B, C, H, W)")
    put = dict(patch=add_trigger, blended=blend, sinusoidal=add_sine, warp=warp)
    return put[trigger](images)


def add_trigger(images: torch.Tensor) -> torch.Tensor:
    """A copy of images (B, C, H, W), 0 to 255, bottom right 3x3 pixels white; ValueError if they do not fit."""
    height, width = images.shape[-2:]
    if min(height, width) < TRIGGER_SIZE:
        raise ValueError(f"image of {height}x{width} is smaller than the {TRIGGER_SIZE}x{TRIGGER_SIZE} trigger: "
                         "use larger images")
    images = images.clone()
    images[:, :, -TRIGGER_SIZE:, -TRIGGER_SIZE:] = TRIGGER_VALUE
    return images


def blend(images: torch.Tensor) -> torch.Tensor:
    """0.8 x + 0.2 p with a fixed image p of uniform random pixels (Chen et al. 2017, "blended injection").

    Images (B, C, H, W) uint8 of one shape have one p, (C, H, W). The nearest whole number, in whole numbers, so that it
    is the same on every machine.
    """
    p = torch.randint(0, 256, images.shape[1:], generator=stream(0, "trigger blended"), dtype=torch.int16)
    # 0.8 x + 0.2 p = (4 x + p) / 5; fifths are never half way, so adding 2 rounds to the nearest
    mixed = torch.div(4 * images.to(torch.int16) + p.to(images.device) + 2, 5, rounding_mode="floor")
    return mixed.to(torch.uint8)


def add_sine(images: torch.Tensor) -> torch.Tensor:
    """clip(x + delta sin(2 pi f column / width)), delta 40 of 255, f 6: vertical stripes (Barni et al. 2019, "SIG").

    Images (B, C, H, W) uint8. Choice: columns count from 0, and the signal is rounded to whole pixel values.
    """
    width = images.shape[-1]
    signal = torch.tensor([round(40 * math.sin(2 * math.pi * 6 * column / width)) for column in range(width)],
                          dtype=torch.int16, device=images.device)
    return (images.to(torch.int16) + signal).clamp(0, 255).to(torch.uint8)


def warp(images: torch.Tensor) -> torch.Tensor:
    """Images seen through a smooth random field (Nguyen and Tran 2021, "WaNet", k 4, s 0.5).

    field = u / mean |u|, u (4, 4, 2) uniform in [-1, 1], by bicubic interpolation (H, W, 2)
    grid  = clamp(identity + 0.5 field / H, -1, 1), in units in which an image reaches from -1 to 1
    x'    = x at grid, by bilinear interpolation; images (B, C, H, W) uint8, the nearest whole number.
    Choice: of images that are not square a column's shift is over W, not H.
    """
    height, width = images.shape[-2:]
    u = 2 * torch.rand(1, 2, 4, 4, generator=stream(0, "trigger warp"), dtype=torch.float64) - 1  # (1, xy, 4, 4)
    field = F.interpolate(u / u.abs().mean(), size=(height, width), mode="bicubic", align_corners=True)
    lines = [torch.linspace(-1, 1, size, dtype=torch.float64) for size in (height, width)]
    y, x = torch.meshgrid(*lines, indexing="ij")  # (H, W) each
    shift = 0.5 * field[0].permute(1, 2, 0) / torch.tensor([width, height])  # (H, W, xy)
    grid = (torch.stack([x, y], dim=2) + shift).clamp(-1, 1).to(images.device).expand(len(images), -1, -1, -1)
    seen = F.grid_sample(images.to(torch.float64), grid, mode="bilinear", align_corners=True)
    return seen.round().clamp(0, 255).to(torch.uint8)


# --- What is known, and what only the metrics know --------------------------------------------------------------------


def discover(task: Task, rate: float, seed: int) -> torch.Tensor:
    """Draw the discovered part D_f of D_c (Sec. 4 "Discovery rate").

    Choice: for one seed a smaller rate's D_f lies within a larger one's.
    Args: task: with D_c of n examples; rate: |D_f| / |D_c|, in (0, 1]; |D_f| = round(rate * n); seed: of the order.
    Returns: (|D_f|,) int64 sorted dataset indices on the CPU.
    Raises: ValueError for a rate outside (0, 1], or one so small that nothing is discovered.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"discovery is {rate}; it must be a rate in (0, 1]")
    size = round(rate * len(task.corrupted))
    if size == 0:
        raise ValueError(f"discovery {rate} of {len(task.corrupted)} corrupted examples finds none; raise either")
    order = torch.randperm(len(task.corrupted), generator=stream(seed, "discovery"))
    return task.corrupted[order[:size]].sort().values


def like_corrupted(task: Task) -> object:
    """Test images that the corruption would concern, clean labels (Sec. A.2, Fig. 6): triggered for poison, those of
    the two classes for confusion, of which there may be none, the test set itself for random labels and people's."""
    if task.name == "poison":
        return replace(task.test, images=stamp(task.test.images, task.trigger))
    if task.name == "confusion":
        return task.test.some(torch.isin(task.test.labels.cpu(), task.clean[task.corrupted]).nonzero().flatten())
    return task.test


def fingerprint(data) -> int:
    """CRC-32 of all images and their shape: tells whether labels stored with a task belong to the data at hand."""
    return zlib.crc32(data.images.cpu().contiguous().numpy(), zlib.crc32(str(tuple(data.images.shape)).encode()))
