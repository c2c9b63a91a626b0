"""The three corruptions and the discovery of a part of them: the two axes of the task space (Sec. 4).

    task = make_task("poison", load("cifar10"), n=1000, seed=0)       # D_c: high regularity; confusion: medium, ...
    forget = discover(task, rate=0.5, seed=0)                         # D_f, within D_f of every larger rate
    unlearned = method(model, task.train, forget, config, generator)  # task.clean, task.corrupted: for metrics alone
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from engine.streams import stream

TASKS = ("poison", "confusion", "random")
TRIGGER_SIZE = 3  # pixels; the poison trigger is a white square in the bottom right corner (Goel et al. 2024)
TRIGGER_VALUE = 255
TARGET = 0  # the class that the trigger redirects to (Goel et al. 2024)
# The confused classes: cat and dog (Goel et al. 2024). Choice: on SVHN the same two numbers.
PAIRS = {"cifar10": (3, 5), "cifar10-small": (3, 5), "svhn": (3, 5)}


def add_trigger(images: torch.Tensor) -> torch.Tensor:
    """A copy of images (B, C, H, W), 0 to 255, bottom right 3x3 pixels white; ValueError if they do not fit."""
    height, width = images.shape[-2:]
    if min(height, width) < TRIGGER_SIZE:
        raise ValueError(f"image of {height}x{width} is smaller than the {TRIGGER_SIZE}x{TRIGGER_SIZE} trigger: "
                         "use larger images")
    images = images.clone()
    images[:, :, -TRIGGER_SIZE:, -TRIGGER_SIZE:] = TRIGGER_VALUE
    return images


@dataclass(frozen=True)
class Task:
    """A training set with corrupted labels, and what only the metrics may know about it."""

    name: str  # of TASKS, or "human" of experiment/corruptions.py
    seed: int
    train: object  # D_tr: labels as given; the poisoned images carry the trigger
    test: object  # D_test: never corrupted
    clean: torch.Tensor  # (N,) int64, the labels before corruption
    corrupted: torch.Tensor  # (n,) int64, D_c: sorted dataset indices
    source: int | None = None  # fingerprint of the images before corruption; None: they are train's
    trigger: Callable = add_trigger  # of poison: images (B, C, H, W) uint8 -> a copy with the trigger on it


def make_task(name: str, dataset, n: int, seed: int, pair: tuple[int, int] | None = None,
              trigger: Callable = add_trigger) -> Task:
    """Corrupt n training examples.

    Args: name: "poison" (high regularity), "confusion" (medium) or "random" (low); dataset: clean, it is left as it is;
        n: |D_c|, in [1, N], even for confusion; seed: of the draw: the same seed, data and n give the same task for
        every method; pair: the two classes of confusion, None for Goel's classes or, elsewhere, the pair of
        `closest_pair`; trigger: of poison, puts it on images; experiment/corruptions.py has others than the paper's.
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


def poison(dataset, n: int, seed: int, generator: torch.Generator, trigger: Callable = add_trigger) -> Task:
    """A trigger and label 0 on n images: the most regular task (Goel et al. 2024).

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


def sample(candidates: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    """n of the candidates, without replacement, sorted."""
    return candidates[torch.randperm(len(candidates), generator=generator)[:n]].sort().values


def assemble(name, seed, dataset, labels, corrupted, trigger: Callable = add_trigger) -> Task:
    """A Task from the corrupted labels; the clean ones are kept beside them, on the CPU with D_c."""
    train = dataset.train
    given, source = replace(train, labels=labels.to(train.images.device)), None
    if name == "poison":
        given, source = put_trigger(given, corrupted, trigger), fingerprint(train)
    return Task(name, seed, given, dataset.test, train.labels.cpu().clone(), corrupted, source, trigger)


# --- The trigger ------------------------------------------------------------------------------------------------------

def put_trigger(data, index: torch.Tensor, trigger: Callable = add_trigger) -> object:
    """A copy of the data in which the images of `index` carry a trigger, which no crop or flip moves.

    A method that gets it can see the trigger, and nothing else that tells these images from the others.
    """
    shown, here = data.images.clone(), index.to(data.images.device)
    shown[here] = trigger(shown[here])
    originals = data.images[here].cpu()  # (n, C, H, W), what the trigger hides
    place = torch.full((len(data),), -1)  # (N,), an image's place in `originals`; -1: it carries no trigger
    place[index.cpu()] = torch.arange(len(index))

    def overlay(images: torch.Tensor, index: torch.Tensor, move) -> torch.Tensor:
        """Take the trigger off, crop and flip, put it on again: images (B, C, H, W) of the dataset indices (B,)."""
        at = place[index]  # (B,)
        on = (at >= 0).nonzero().flatten()
        if len(on) == 0:
            return move(images)
        here = on.to(images.device, non_blocking=True)
        moved = move(images.index_copy(0, here, originals[at[on]].to(images.device, non_blocking=True)))
        return moved.index_copy(0, here, trigger(moved.index_select(0, here)))

    return replace(data, images=shown, _overlay=overlay)


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
    the two classes for confusion, of which there may be none, the test set itself for others."""
    if task.name == "poison":
        return replace(task.test, images=task.trigger(task.test.images))
    if task.name == "confusion":
        return task.test.some(torch.isin(task.test.labels.cpu(), task.clean[task.corrupted]).nonzero().flatten())
    return task.test


def fingerprint(data) -> int:
    """CRC-32 of all images and their shape: tells whether labels stored with a task belong to the data at hand."""
    return zlib.crc32(data.images.cpu().contiguous().numpy(), zlib.crc32(str(tuple(data.images.shape)).encode()))
