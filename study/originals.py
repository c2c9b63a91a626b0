"""Original networks of a grid: trained once, kept in a file under a hash of all their settings, shared by every cell.

    seconds, failure = make_original(original, folder)     # trains and saves it unless its file is there
    task, network, seconds = load_original(original, folder)

An original of other images, of a folder that has changed since, stays where it is; the new one lies beside it.
A file's first line has a SHA-256 of the rest and the original's key, so that altered or swapped weights are never used.
"""

import hashlib
import io
import os
import weakref
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from baselines import with_theta_o2
from engine.checks import finite_weights
from engine.streams import stream
from experiment.cell import attempt, corrupt, draw_forget, new_model, train_original
from experiment.console import LONG, clipped, progress
from experiment.data import Dataset
from experiment.datasets import fingerprints, load, part_of
from experiment.devices import check_room, choose_device
from experiment.files import check_writable, write_whole
from experiment.methods import METHODS, find_method
from experiment.settings import Config
from experiment.stored_tasks import load_task, other_images, read_task, save_task
from study.rows import cell_key
from tasks import Task


@lru_cache(maxsize=2)
def read_dataset(*where) -> Dataset:
    """The data set of `where_of`, read once per process."""
    return part_of(load(*where[:4]), *where[4:])


def dataset_of(config: Config) -> Dataset:
    """The settings' data set on the CPU."""
    return read_dataset(*where_of(config))


def where_of(config: Config) -> tuple:
    """What `read_dataset` takes for the settings: what `load` takes, then what `part_of` does."""
    return (config.dataset, str(Path(config.data_dir).absolute()), config.image_size, config.download,
            config.per_class, config.per_class_test, config.augment)


FINGERPRINTS = weakref.WeakKeyDictionary()  # of data sets that are in memory


def images_of(config: Config) -> str:
    """The fingerprint of the settings' images, which rows hold; taken once of each data set that is read."""
    dataset = dataset_of(config)
    if dataset not in FINGERPRINTS:
        FINGERPRINTS[dataset] = fingerprints(dataset)
    return FINGERPRINTS[dataset]


def device_of(config: Config) -> torch.device:
    """The settings' device; "auto" and "cuda" under torchrun are the rank's own GPU."""
    if config.device in ("auto", "cuda") and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        own = torch.device("cuda", from_torchrun("LOCAL_RANK", 0) % torch.cuda.device_count())
        torch.cuda.set_device(own)
        return own
    return choose_device(config.device)


def from_torchrun(name: str, default: int) -> int:
    """What torchrun has put into the environment under a name: a whole number of at least 0; ValueError."""
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise ValueError(f"{name} is {clipped(text)!r} in the environment; torchrun sets it to a whole number: unset "
                         "it, or start the command by torchrun")
    return int(text)


def check_cells(cells: list[Config]) -> None:
    """Look at everything that can be wrong with the input before any training."""
    for method in dict.fromkeys(cell.method for cell in cells):
        find_method(method)
    device_of(cells[0])
    tasks = {(*where_of(c), c.task, c.n, c.trigger, c.human_column, c.pair, c.discovery): c for c in cells}
    for cell in tasks.values():
        draw_forget(cell, corrupt(cell, dataset_of(cell)))
    networks = {}
    for c in cells:
        sizes = c.dataset, c.image_size, c.arch, c.width, c.capacity, c.patch, c.dim, c.depth
        networks.setdefault(sizes, {})[c.ratio, c.method] = c
    for alike in networks.values():
        first = next(iter(alike.values()))
        model = new_model(first, dataset_of(first))
        for cell in alike.values():
            check_room(cell, model)


def check_originals(folder: str | Path, originals: list[Config]) -> None:
    """Raise ValueError unless the files of originals can be written, before any of them is trained."""
    for path in (place_of_original(folder, original) for original in originals):
        check_writable(str(path))
        check_writable(str(path.with_suffix(".task")))


def original_path(folder: str | Path, original: Config) -> Path:
    """Where an original lies: its settings are in the name, so no two that differ ever share a file."""
    name = f"{original.task}-{original.dataset}-{original.arch}-n{original.n}-seed{original.seed}-{cell_key(original)}"
    return Path(folder) / "originals" / f"{name}.pt"


def place_of_original(folder: str | Path, original: Config) -> Path:
    """Where the original of these images lies: beside one of other images their fingerprint is in its name."""
    path = original_path(folder, original)
    try:
        other = path.with_suffix(".task").is_file() and other_images(read_task(path.with_suffix(".task")),
                                                                     dataset_of(original))
    except ValueError:  # damaged, which `read_checked` tells
        other = False
    return path.with_name(f"{path.stem}-{images_of(original)}.pt") if other else path


def on_device(task: Task, device: torch.device) -> Task:
    """The task with its images on a device."""
    return replace(task, train=task.train.to(device), test=task.test.to(device))


def make_original(original: Config, folder: str | Path, retry: bool = False) -> tuple[float | None, str | None]:
    """Train an original network and save it with its task, unless it is there.

    Args: original: settings as `plan.original_of` makes them; its method is empty, or one that trains alone; folder: of
        the grid; retry: make it again where its files are damaged.
    Returns: (seconds of training, error text or None).
    """
    path = place_of_original(folder, original)
    if path.exists() and path.with_suffix(".task").exists():
        try:
            read_checked(path, cell_key(original))
            return None, None
        except ValueError as damage:
            if not retry:
                return None, str(damage)
    dataset, device = dataset_of(original), device_of(original)
    task = corrupt(original, dataset)
    here, model = on_device(task, device), new_model(original, dataset).to(device)
    label = f"{original.task:<11}train {original.method or 'the original'}, seed {original.seed}"
    with progress(label, original.quiet, LONG) as log:
        network, seconds, failure = attempt(lambda: finite_weights(train(original, here, model, log)))
    if failure is None:
        save_task(task, path.with_suffix(".task"))
        write_checked(path, cell_key(original), {"network": network.state_dict(), "seconds": seconds})
    return seconds, failure


def train(original: Config, task: Task, model, log):
    """The original network, or the one that a method makes that trains alone, as `cell.unlearn` would run it."""
    if not original.method:
        return train_original(original, task, model, log)
    more = {"corrupted": task.corrupted} if original.method == "etd-ideal" else {}
    some = task.corrupted[:1]  # a D_f that they do not read
    generator = stream(original.seed, "unlearning")
    return METHODS[original.method].function(model, task.train, some, original, generator, log=log, **more)


@lru_cache(maxsize=2)
def load_original(original: Config, folder: str) -> tuple:
    """What `make_original` saved: (task on the device, the network on the device, seconds of its training)."""
    path, dataset, device = place_of_original(folder, original), dataset_of(original), device_of(original)
    content = read_checked(path, cell_key(original))
    task = on_device(load_task(path.with_suffix(".task"), dataset), device)
    network = new_model(original, dataset).to(device)
    if original.etd and not original.method:
        network = with_theta_o2(network, task.train, original)
        network.trained_under = original.seed, original.p_mem
    network.load_state_dict(content["network"])
    return task, network, content["seconds"]


def write_checked(path: Path, key: str, content: dict) -> None:
    """Write content for torch.load behind a line with the SHA-256 of key, task file and content, and with the key."""
    packed = io.BytesIO()
    torch.save(content, packed)
    line = f"{checksum(path, key, packed.getbuffer())} {key}\n".encode()
    write_whole(path, lambda file: (file.write(line), file.write(packed.getbuffer())))


def read_checked(path: Path, key: str) -> dict:
    """What `write_checked` wrote; a ValueError that says what to do unless the file and its task's are as written."""
    line, _, packed = path.read_bytes().partition(b"\n")
    if line != f"{checksum(path, key, packed)} {key}".encode():
        raise ValueError(f"{path} or its .task is damaged or another network's; --retry-failed in a grid makes both "
                         "anew, elsewhere delete both and give the same command again")
    return torch.load(io.BytesIO(packed), weights_only=True, map_location="cpu")


def checksum(path: Path, key: str, packed) -> str:
    """SHA-256 of an original's key, of its task's file and of its packed content."""
    return hashlib.sha256(b"".join((key.encode(), path.with_suffix(".task").read_bytes(), packed))).hexdigest()
