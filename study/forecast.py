"""Roughly how long a grid takes: judged by its own rows where it has some, else by timing an epoch.

    hours(remaining, rows, folder, jobs=2)     # remaining: [(original, cells)], rows: cell key -> row
"""

import math
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean

import torch

from experiment import attempt, corrupt, new_model, train_original
from methods import METHODS, same_world
from settings import Config
from study.originals import dataset_of, device_of, on_device, original_path

ALIKE = ("unlearn_epochs", "epochs", "dataset", "image_size", "batch", "arch", "capacity", "width", "etd")
TIMED = ("dataset", "data_dir", "image_size", "download", "arch", "width", "capacity", "batch", "optimizer", "device",
         "precision")  # what the time of a step depends on


def hours(remaining, rows: dict[str, dict], folder: str | Path, jobs: int) -> float:
    """Hours for the cells that are left and the networks that they need; nan where not even an epoch can be timed."""
    past, trained = defaultdict(list), defaultdict(float)  # seconds: of runs, and the most that training took
    for row in rows.values():
        same = alike(row)
        trained[same[1:]] = max(trained[same[1:]], row.get("train_seconds") or 0)
        if row["status"] == "ok" and row.get("seconds") is not None:
            past[row["method"], same].append(row["seconds"])
    with same_world():  # which puts the number of threads back
        torch.set_num_threads(max(1, torch.get_num_threads() // jobs))  # as each job has
        return sum(seconds(*group, past, trained, folder) for group in remaining) / jobs / 3600


def alike(facts: dict) -> tuple:
    """What runs that take as long agree in, of a row or of vars(config): ALIKE, and the place of a folder of images."""
    place = str(Path(facts["data_dir"]).resolve()) if facts["dataset"] == "folder" else None
    return (*(facts[name] for name in ALIKE), place)


def seconds(original: Config, cells: list[Config], past: dict, trained: dict, folder: str | Path) -> float:
    """Seconds of a group: of training where the network is not there; of each cell past ones' mean, or by its work."""
    plain = replace(original, etd=False, ratio=None)

    def wide(ratio: float) -> Config:  # what a masked pass costs
        return replace(plain, width=original.width * (1 + ratio))

    work = 0 if original_path(folder, original).exists() else original.epochs
    spent = work and work * epoch(wide(original.extra_ratio) if original.etd or original.method else plain, trained)
    for cell in cells if not original.method else ():  # what trains alone is there then
        method = METHODS.get(cell.method, METHODS["rem"])  # a user-supplied method counts as REM
        times = getattr(cell, method.per) if method.per else 1
        if times_of := past.get((Path(cell.method).name, alike(vars(cell)))):
            spent += fmean(times_of)
        else:
            parts = ((method.plain, plain), (method.masked, wide(cell.extra_ratio)))
            spent += times * sum(share * epoch(network, trained) for share, network in parts if share)
    return spent


def epoch(config: Config, trained: dict) -> float:
    """Seconds in which a plain network of these settings trains an epoch: of a row if there is one, else timed."""
    past = trained.get(alike(vars(config))[1:], 0) / max(1, config.epochs)
    here = {name: getattr(config, name) for name in TIMED}
    return past or timed_epoch(Config(task="random", n=1, epochs=1, quiet=True, **here))


@cache
def timed_epoch(config: Config) -> float:
    """Seconds of a training epoch, from two batches after two to warm up; nan where it fails."""
    dataset, device = dataset_of(config), device_of(config)
    some = min(2 * config.batch, len(dataset.train))
    few = replace(dataset.train, images=dataset.train.images[:some], labels=dataset.train.labels[:some])
    task, model = on_device(corrupt(config, replace(dataset, train=few)), device), new_model(config, dataset).to(device)
    for _ in range(2):
        _, seconds, failure = attempt(lambda: train_original(config, task, model))
    return math.nan if failure else seconds * len(dataset.train) / some
