"""Original networks of a grid: trained once, kept in a file under a hash of all their settings, shared by every cell.

    seconds, failure = make_original(original, folder)     # trains and saves it unless its file is there
    task, network, seconds = load_original(original, folder)
"""

import os
import pickle
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from baselines import METHODS
from experiment import attempt, choose_device, corrupt, new_model, train_original
from data import Dataset
from datasets import load
from train import expand_for
from metrics import NonFiniteLoss
from study.plan import TRAINED_ALONE, cell_key
from settings import Config, stream
from tasks import Task, load_task, save_task, write_whole


@lru_cache(maxsize=2)
def read_dataset(*where) -> Dataset:
    """The data set of (name, folder, image size, download), read once a process."""
    return load(*where)


def dataset_of(config: Config) -> Dataset:
    """The settings' data set on the CPU."""
    return read_dataset(config.dataset, config.data_dir, config.image_size, config.download)


def device_of(config: Config) -> torch.device:
    """The settings' device; "auto" and "cuda" under torchrun are the rank's own GPU."""
    local = os.environ.get("LOCAL_RANK")
    if config.device in ("auto", "cuda") and local is not None and torch.cuda.is_available():
        own = torch.device("cuda", int(local) % torch.cuda.device_count())
        torch.cuda.set_device(own)
        return own
    return choose_device(config.device)


def original_path(folder: str | Path, original: Config) -> Path:
    """Where an original lies: its settings are in the name, so no two that differ ever share a file."""
    name = f"{original.task}-{original.dataset}-{original.arch}-n{original.n}-seed{original.seed}-{cell_key(original)}"
    return Path(folder) / "originals" / f"{name}.pt"


def on_device(task: Task, device: torch.device) -> Task:
    """The task with its images on a device."""
    return replace(task, train=task.train.to(device), test=task.test.to(device))


def make_original(original: Config, folder: str | Path) -> tuple[float | None, str | None]:
    """Train an original network and save it with its task, unless it is there.

    Args:
        original: settings as `plan.original_of` makes them; its method is empty, or one of TRAINED_ALONE.
        folder: of the grid.

    Returns:
        (seconds of training, error text or None).
    """
    path = original_path(folder, original)
    if path.exists() and path.with_suffix(".task").exists():
        return None, None
    dataset, device = dataset_of(original), device_of(original)
    task = corrupt(original, dataset)
    save_task(task, path.with_suffix(".task"))
    here, model = on_device(task, device), new_model(original, dataset).to(device)
    network, seconds, failure = attempt(lambda: whole(train(original, here, model)))
    if failure is None:
        content = {"network": network.state_dict(), "seconds": seconds}
        write_whole(path, lambda file: torch.save(content, file))
    return seconds, failure


def train(original: Config, task: Task, model):
    """The original network, or the one that a method of TRAINED_ALONE makes, as `experiment.unlearn` would run it."""
    if original.method not in TRAINED_ALONE:
        return train_original(original, task, model)
    more = {"corrupted": task.corrupted} if original.method == "etd-ideal" else {}
    some = task.corrupted[:1]  # a D_f that they do not read
    return METHODS[original.method](model, task.train, some, original, stream(original.seed, "unlearning"), **more)


def whole(network):
    """The network, unless a weight is not a finite number: a file of such would spoil every cell."""
    for name, value in network.state_dict().items():
        if not value.isfinite().all():
            raise NonFiniteLoss(f"{name} is not finite after training; lower the rate")
    return network


@lru_cache(maxsize=2)
def load_original(original: Config, folder: str) -> tuple:
    """Read what `make_original` saved.

    Returns:
        (task on the device, the network on the device, seconds of its training).
    """
    path, dataset, device = original_path(folder, original), dataset_of(original), device_of(original)
    stored = path.with_suffix(".task")
    task = on_device(undamaged(stored, lambda: load_task(stored, dataset)), device)
    network = new_model(original, dataset).to(device)
    if original.etd and original.method not in TRAINED_ALONE:
        network = expand_for(network, task.train, original)
    content = undamaged(path, lambda: torch.load(path, weights_only=True, map_location="cpu"))
    network.load_state_dict(content["network"])
    return task, network, content["seconds"]


def undamaged(path: Path, read):
    """What read() returns; a ValueError that says what to do where the file is damaged."""
    try:
        return read()
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is damaged; delete it and take --retry-failed to make it anew") from error
