"""How long a grid will take: judged by its own rows where it has some, else by timing a few steps (run.py grid --dry-run).

    print(overview(groups, remaining, rows, folder, jobs=2))
    lines = Lines(total=90, say=print)    # lines.cell(row) as each is done
"""

import contextlib
import math
import time
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path

import torch

from experiment import attempt, corrupt, new_model, train_original
from methods import METHODS, reads_setting
from study.originals import dataset_of, device_of, on_device, original_path
from study.plan import AFTER_TRAINING, PLACE, cell_key, flag
from settings import Config


def overview(groups, remaining, rows: dict[str, dict], folder: str | Path, jobs: int, every: bool = False) -> str:
    """A line an original network: its cells, how many are done, failed and left; then the sum and an estimate of hours.

    Args:
        groups: [(original, cells)] of the whole grid, or of one rank of it.
        remaining: the same without the cells that are done.
        rows: cell key -> row of what the folder holds.
        folder: of the grid.
        jobs: cells at a time.
        every: list every cell below its original.
    """
    left = {cell_key(original): {cell_key(cell) for cell in cells} for original, cells in remaining}
    names, total = titles([original for original, _ in groups]), [0] * 4
    wide = max([41, *(len(name) + 2 for name in names)])
    lines = [f"{'task':<11}{'data set':<15}{'network':<{wide}}{'seed':>4}{'cells':>7}{'done':>6}{'failed':>8}{'left':>6}"]
    for (original, cells), name in zip(groups, names, strict=True):
        keys, todo = [cell_key(cell) for cell in cells], left.get(cell_key(original), set())
        found = [rows[key]["status"] == "ok" for key in keys if key in rows]
        counts = [len(cells), sum(found), len(found) - sum(found), len(todo)]
        total = [a + b for a, b in zip(total, counts, strict=True)]
        lines.append(f"{original.task:<11}{original.dataset:<15}{name:<{wide}}{original.seed:>4}" + tail(counts))
        if every:
            varied = varying(cells, (AFTER_TRAINING | {"p_mem", "ratio"}) - {"method", "discovery"})
            lines += [cell_line(cell, varied, rows.get(key), key in todo, len(lines[0]))
                      for cell, key in zip(cells, keys, strict=True)]
    lines.append(f"{'all':<{30 + wide}}" + tail(total))
    with threads_of(jobs):
        hours = sum(estimate(remaining, rows, folder)) / jobs / 3600
    hours = "an unknown number of" if math.isnan(hours) else f"about {hours:.2f}"
    return "\n".join([*lines, f"{hours} hours left with --jobs {jobs}, a rough estimate"])


def tail(counts: list[int]) -> str:
    """The four numbers at a line's end."""
    return "{:>7}{:>6}{:>8}{:>6}".format(*counts)


def titles(originals: list[Config]) -> list[str]:
    """Each original's network and training, with what else tells it from others of the same task, data set and seed."""
    shown, twins = [], {}
    for original in originals:
        kind = original.method or ("trained with etd" if original.etd else "")
        kind += f", p_mem {original.p_mem:g}" if kind else ""  # which a network trained without masks does not depend on
        shown.append(f"{original.arch} {100 * original.capacity:g}% {kind}".rstrip())
        twins.setdefault((original.task, original.dataset, original.seed, shown[-1]), []).append(original)
    apart = {place: varying(same, {f.name for f in fields(Config)} - PLACE) for place, same in twins.items()}
    return [", ".join([text, *values(original, apart[original.task, original.dataset, original.seed, text])])
            for original, text in zip(originals, shown, strict=True)]


def varying(configs: list[Config], names: set[str]) -> list[str]:
    """Those of the settings in which these differ where their methods read them, in the order of Config."""
    found = {name: {getattr(config, name) for config in configs if reads_setting(name, vars(config))} for name in names}
    return [f.name for f in fields(Config) if len(found.get(f.name, ())) > 1]


def values(config: Config, names: list[str]) -> list[str]:
    """Settings as they are typed."""
    return [f"{flag(name)} {getattr(config, name)}" for name in names]


def cell_line(cell: Config, varied: list[str], row: dict | None, todo: bool, wide: int) -> str:
    """One cell: discovery rate, method, what else tells it from the others, and how it stands, at the end of the line."""
    state = "left" if row is None else "done" if row["status"] == "ok" else "failed, left" if todo else "failed"
    more = "  ".join(values(cell, [name for name in varied if reads_setting(name, vars(cell))]))
    return f"  {cell.discovery:<7g}{Path(cell.method).name:<20} {more}  ".ljust(wide - len(state)) + state


@contextlib.contextmanager
def threads_of(jobs: int):
    """Time with the threads that each of so many jobs has."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // jobs))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def estimate(remaining, rows: dict[str, dict], folder: str | Path) -> list[float]:
    """Seconds of each group: means of the folder's rows where it has some, else passes times the seconds of an epoch."""
    known, alike = {}, ("dataset", "arch", "capacity", "width", "epochs", "unlearn_epochs")
    for row in rows.values():
        if row["status"] == "ok":
            known.setdefault((*(row.get(key) for key in alike), row["method"]), []).append(row["seconds"])
    seconds = []
    for original, cells in remaining:
        spent = 0.0 if original_path(folder, original).exists() else training_seconds(original, rows)
        for cell in cells:
            past = known.get((*(getattr(cell, key) for key in alike), Path(cell.method).name))
            trained = original.method  # its seconds are the original's
            spent += 0.0 if trained else sum(past) / len(past) if past else cell_seconds(cell, rows)
            spent += evaluation(cell) * epoch_seconds(original, rows)
        seconds.append(spent)
    return seconds


def training_seconds(original: Config, rows: dict[str, dict]) -> float:
    """Seconds of training an original network."""
    masked = original.etd or original.method
    return original.epochs * epoch_seconds(whole(original) if masked else original, rows)


def cell_seconds(config: Config, rows: dict[str, dict]) -> float:
    """Roughly what a method takes once its original is there; one's own counts as REM, which runs both networks."""
    method = METHODS.get(config.method, METHODS["rem"])
    seconds = method.plain and method.plain * epoch_seconds(config, rows)
    seconds += method.masked and method.masked * epoch_seconds(whole(config), rows)
    return seconds * (getattr(config, method.per) if method.per else 1)


def whole(config: Config) -> Config:
    """The settings of a plain network as wide as theta_o1 and theta_o2 together: what a masked pass costs."""
    return replace(config, capacity=config.capacity * (1 + config.extra_ratio), ratio=None, etd=False)


def evaluation(config: Config) -> float:
    """Training epochs' worth of the scores of a cell: forward passes, a third of a step's work, over test set (twice) and D_c."""
    dataset = dataset_of(config)
    return (2 * len(dataset.test) + config.n) / len(dataset.train) / 3


def epoch_seconds(original: Config, rows: dict[str, dict]) -> float:
    """Seconds that a plain network of these settings trains an epoch: of a row if there is one, else timed."""
    for row in rows.values():
        alike = all(row[key] == getattr(original, key) for key in ("dataset", "arch", "capacity", "width", "epochs"))
        if alike and row["train_seconds"] and not row["etd"] and original.epochs:
            return row["train_seconds"] / original.epochs
    keep = ("dataset", "data_dir", "image_size", "download", "arch", "width", "capacity", "batch", "optimizer", "device",
            "precision")
    return timed_epoch(Config(n=1, quiet=True, epochs=1, **{key: getattr(original, key) for key in keep}))


@lru_cache(maxsize=None)
def timed_epoch(config: Config) -> float:
    """Seconds of a training epoch, from two batches after two to warm up."""
    dataset, device = dataset_of(config), device_of(config)
    some = min(2 * config.batch, len(dataset.train))
    few = replace(dataset.train, images=dataset.train.images[:some], labels=dataset.train.labels[:some])
    task, model = on_device(corrupt(config, replace(dataset, train=few)), device), new_model(config, dataset).to(device)
    for _ in range(2):
        _, seconds, failure = attempt(lambda: train_original(config, task, model))
    return math.nan if failure else seconds * len(dataset.train) / some


class Lines:
    """One aligned line a finished cell, with the time left at the mean pace so far."""

    def __init__(self, total: int, say):
        self.total, self.say, self.done, self.begin = total, say, 0, time.perf_counter()

    def original(self, original: Config, seconds: float | None) -> None:
        """An original network is there."""
        if seconds is not None:
            self.say(f"{'':<13}{original.task:<11}trained {original.method or 'the original'}, seed {original.seed}"
                     f"{', with ETD' if original.etd else ''}: {seconds:.1f} s")

    def cell(self, row: dict) -> None:
        """A cell has its row."""
        self.done += 1
        left = (time.perf_counter() - self.begin) / self.done * (self.total - self.done)
        scores = row["error"] if row["status"] != "ok" else "  ".join(
            f"{name} {100 * row[name]:5.1f}" for name in ("healed", "utility", "product")) + f"  {row['seconds']:8.1f} s"
        self.say(f"[{self.done:>5}/{self.total:<5}] {row['task']:<10} {row['discovery']:<5g} {row['method']:<12} "
                 f"{'etd' if row['etd'] else '':<4}seed {row['seed']}  {scores}  {left / 60:8.1f} min left")
