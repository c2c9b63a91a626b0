"""A part of a data set: so many images of each class, and training without augmentation (Sec. 4: data sets).

    dataset = part_of(load("cifar10"), per_class=1000, per_class_test=200)      # 10,000 and 2,000 images of ten classes
    dataset.rows, dataset.whole      # which images of the whole training set these are, and all of its labels
"""

from dataclasses import replace

import torch

from engine.streams import stream
from experiment.data import Dataset


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
        rows = drawn(dataset, train.labels.cpu(), per_class, "training")
        more = {"rows": rows, "whole": train.labels.cpu()}
        train = replace(train, images=train.images[rows], labels=train.labels[rows])
    if per_class_test is not None:
        rows = drawn(dataset, test.labels.cpu(), per_class_test, "test")
        test = replace(test, images=test.images[rows], labels=test.labels[rows])
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
