"""What a grid has to do and roughly how long it takes: by its own rows where it has some, else by a timed epoch.

    print(overview(groups, remaining, rows, folder, jobs=2))     # groups: [(original, cells)], rows: cell key -> row
"""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

from experiment import attempt, corrupt, new_model, train_original
from methods import METHODS, reads_setting
from settings import PLACE, Config, flag
from study.originals import dataset_of, device_of, on_device, original_path
from study.rows import SETTINGS, cell_key

ALIKE = ("unlearn_epochs", "epochs", "dataset", "arch", "capacity", "width", "etd")  # runs alike in these take as long
COLUMNS = {"task", "dataset", "arch", "capacity", "seed", "method", "etd", "discovery"}  # shown of every cell


def overview(groups, remaining, rows: dict[str, dict], folder: str | Path, jobs: int, every: bool = False) -> str:
    """A line per original: its cells, how many are done, failed, left (with `every` a line each); then the hours."""
    left, total = {cell_key(cell) for _, cells in remaining for cell in cells}, [0] * 4
    names = [f"{o.arch} {100 * o.capacity:g}% " + (o.method or ("trained with etd" if o.etd else "")) + more
             for (o, _), more in zip(groups, differences([original for original, _ in groups]), strict=True)]
    line = "{:<11}{:<15}{:<%d}{:>4}{:>7}{:>6}{:>8}{:>6}" % max([41, *(len(name) + 2 for name in names)])
    lines = [line.format("task", "data set", "network", "seed", "cells", "done", "failed", "left")]
    for (original, cells), name in zip(groups, names, strict=True):
        states = [rows[key]["status"] if (key := cell_key(cell)) in rows else "" for cell in cells]
        counts = [len(cells), states.count("ok"), states.count("failed"), sum(cell_key(cell) in left for cell in cells)]
        total = [a + b for a, b in zip(total, counts, strict=True)]
        lines.append(line.format(original.task, original.dataset, name, original.seed, *counts))
        for cell, state, more in zip(cells, states, differences(cells), strict=True) if every else ():
            state = ", ".join(filter(None, [state.replace("ok", "done"), "left" if cell_key(cell) in left else ""]))
            text = f"  {cell.discovery:<7g}{Path(cell.method).name:<20}{more}  "
            lines.append(text.ljust(len(lines[0]) - len(state)) + state)
    past = {}
    for row in (row for row in rows.values() if row["status"] == "ok"):
        past.setdefault((row["method"], *(row[name] for name in ALIKE)), []).append(row["seconds"])
    hours = sum(estimate(*group, rows, past, folder) for group in remaining) / jobs / 3600
    hours = "an unknown number of" if math.isnan(hours) else f"about {hours:.2f}"
    lines += [line.format("all", "", "", "", *total), f"{hours} hours left with --jobs {jobs}, a rough estimate"]
    return "\n".join(lines)


def differences(configs: list[Config]) -> list[str]:
    """Of each those settings, as they are typed, that its method reads and in which they differ."""
    read = [{name: getattr(c, name) for name in SETTINGS if reads_setting(name, vars(c))} for c in configs]
    names = [name for name in SETTINGS if len({mine[name] for mine in read if name in mine}) > 1]
    names = [name for name in names if name not in COLUMNS | PLACE]
    return ["".join(f" {flag(name)[2:]} {mine[name]}" for name in names if name in mine) for mine in read]


def estimate(original: Config, cells: list[Config], rows: dict[str, dict], past: dict, folder: str | Path) -> float:
    """Seconds of a group: of training where the network is not there; of each cell past ones' mean, or by its work."""
    plain = replace(original, etd=False, ratio=None)
    wide = replace(plain, width=original.width * (1 + original.extra_ratio))  # what a masked pass costs
    work = 0 if original_path(folder, original).exists() else original.epochs
    seconds = work and work * epoch(wide if original.etd or original.method else plain, rows)
    for cell in cells if not original.method else ():  # what trains alone is there then
        method = METHODS.get(cell.method, METHODS["rem"])  # a user-supplied method counts as REM
        times = getattr(cell, method.per) if method.per else 1
        if alike := past.get((Path(cell.method).name, *(getattr(cell, name) for name in ALIKE))):
            seconds += sum(alike) / len(alike)
        else:
            parts = ((method.plain, plain), (method.masked, wide))
            seconds += times * sum(share * epoch(network, rows) for share, network in parts if share)
    return seconds


def epoch(config: Config, rows: dict[str, dict]) -> float:
    """Seconds in which a plain network of these settings trains an epoch: of a row if there is one, else timed."""
    alike = [row for row in rows.values() if all(row[name] == getattr(config, name) for name in ALIKE[1:])]
    past = max((row["train_seconds"] or 0 for row in alike), default=0) / max(1, config.epochs)
    return past or timed_epoch(replace(config, task="random", n=1, seed=0, epochs=1, quiet=True))


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
