"""Files that are whole or not there: a task beside its network, and whether a file can be written."""

import os
import zlib
from dataclasses import replace
from pathlib import Path

import torch

from experiment.data import Data, Dataset
from tasks import Task, assemble, fingerprint


def check_writable(out: str) -> None:
    """Raise ValueError unless rows can be appended to the result file, a link's target; makes its folder."""
    try:
        path = Path(out).resolve()
        if not out or path.exists() and not path.is_file():
            raise OSError("it is no regular file")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise OSError("permission denied")
    except (OSError, RuntimeError, ValueError) as error:  # a link to itself, a name with a null byte
        raise ValueError(f"cannot write results to {out} ({error}); give another --out") from error


def of_test(test: Data) -> int:
    """CRC-32 of a test set, labels and all."""
    return zlib.crc32(test.labels.cpu().contiguous().numpy(), fingerprint(test))


def save_task(task: Task, path: str | Path) -> None:
    """Write the labels and D_c, so that unlearning sees the very labels that training saw; whole or not at all."""
    source = fingerprint(task.train) if task.source is None else task.source
    content = {"name": task.name, "seed": task.seed, "labels": task.train.labels.cpu(), "clean": task.clean,
               "corrupted": task.corrupted, "images": source, "test": of_test(task.test)}
    write_whole(path, lambda file: torch.save(content, file))


def load_task(path: str | Path, dataset: Dataset) -> Task:
    """Read what `save_task` wrote and put it on the data set it was made from.

    Raises: ValueError for no such file, or the data set has other images, of training or of testing.
    """
    if not Path(path).is_file():
        raise ValueError(f"no task file at {path}; save_task writes one")
    content = torch.load(path, weights_only=True)
    test = of_test(dataset.test)
    same = {"training": content["images"] == fingerprint(dataset.train),
            "test": content.get("test", test) == test}  # older files have none
    if other := [part for part, alike in same.items() if not alike]:
        raise ValueError(f"the task in {path} was made from other {other[0]} images than {dataset.name}'s; "
                         "load the data it was made from, or begin anew elsewhere")
    clean = replace(dataset, train=replace(dataset.train, labels=content["clean"].to(dataset.train.images.device)))
    return assemble(content["name"], content["seed"], clean, content["labels"], content["corrupted"])


def write_whole(path: str | Path, write) -> None:
    """Call write(file) on a temporary file beside `path`, sync it, then put it in place in one step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
