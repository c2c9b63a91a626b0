"""A task in a file beside its network.

    save_task(task, "folder/task")                  # the labels and D_c, not the images
    task = load_task("folder/task", dataset)        # ValueError if the data set has other images
"""

from dataclasses import replace
from pathlib import Path

import torch

from experiment.corruptions import TRIGGERS
from experiment.data import Dataset
from experiment.datasets import fingerprint_with_labels
from experiment.files import write_whole
from experiment.pickles import asks_for_code
from tasks import Task, assemble, fingerprint


def save_task(task: Task, path: str | Path) -> None:
    """Write the labels and D_c, so that unlearning sees the very labels that training saw; whole or not at all."""
    source = fingerprint(task.train) if task.source is None else task.source
    content = {"name": task.name, "seed": task.seed, "labels": task.train.labels.cpu(), "clean": task.clean,
               "corrupted": task.corrupted, "images": source, "test": fingerprint_with_labels(task.test),
               "trigger": next(name for name, put in TRIGGERS.items() if put is task.trigger)}
    write_whole(path, lambda file: torch.save(content, file))


def load_task(path: str | Path, dataset: Dataset) -> Task:
    """Read what `save_task` wrote and put it on the data set it was made from.

    Raises: ValueError for no such file, or the data set has other images, of training or of testing.
    """
    if not Path(path).is_file():
        raise ValueError(f"no task file at {path}; save_task writes one")
    content = read_task(path)
    if other := other_images(content, dataset):
        raise ValueError(f"the task in {path} was made from other {other[0]} images than {dataset.name}'s; "
                         "load the data it was made from, or start again in another folder")
    clean = replace(dataset, train=replace(dataset.train, labels=content["clean"].to(dataset.train.images.device)))
    trigger = TRIGGERS[content.get("trigger", "patch")]  # older files have the only one that there was
    return assemble(content["name"], content["seed"], clean, content["labels"], content["corrupted"], trigger)


def other_images(content: dict, dataset: Dataset) -> list[str]:
    """Of a task that `read_task` has read, which images are others than a data set's: "training", "test" or none."""
    test = fingerprint_with_labels(dataset.test)
    same = {"training": content["images"] == fingerprint(dataset.train),
            "test": content.get("test", test) == test}  # older files have none
    return [part for part, alike in same.items() if not alike]


def read_task(path: str | Path) -> dict:
    """What `save_task` wrote; ValueError for a file of something else."""
    try:
        content = torch.load(path, weights_only=True)
        return {name: content[name] for name in ("name", "seed", "labels", "clean", "corrupted", "images")} | content
    except Exception as error:  # a file of something else can raise anything
        asked = asks_for_code(path, error)
        reason = f"it asks for code to be run ({asked}) and was not read" if asked else "it is damaged"
        raise ValueError(f"{path} is no task of ours: {reason}; delete it and give the same command again") from error
