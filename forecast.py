"""How long a grid will take: judged by its own rows where it has some, else by timing a few steps (run.py grid --dry-run).

    print(overview(groups, remaining, rows, folder, jobs=2))
    lines = Lines(total=90, say=print)    # lines.cell(row) as each is done
"""

import math
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from cell import attempt, corrupt, new_model, train_original
from originals import dataset_of, device_of, on_device, original_path
from plan import TRAINED_ALONE, cell_key
from settings import Config


def overview(groups, remaining, rows: dict[str, dict], folder: str | Path, jobs: int) -> str:
    """A line an original network: its cells, how many are done, failed and left; then the sum and an estimate of hours.

    Args:
        groups: [(original, cells)] of the whole grid, or of one rank of it.
        remaining: the same without the cells that are done.
        rows: cell key -> row of what the folder holds.
        folder: of the grid.
        jobs: cells at a time.
    """
    left = {cell_key(original): len(cells) for original, cells in remaining}
    lines, total = [f"{'task':<11}{'data set':<15}{'network':<38}{'seed':>4}{'cells':>7}{'done':>6}{'failed':>8}{'left':>6}"], [0] * 4
    for original, cells in groups:
        found = [rows[key]["status"] == "ok" for key in map(cell_key, cells) if key in rows]
        counts = [len(cells), sum(found), len(found) - sum(found), left.get(cell_key(original), 0)]
        total = [a + b for a, b in zip(total, counts, strict=True)]
        kind = original.method or ("trained with etd" if original.etd else "")
        kind += f", p_mem {original.p_mem:g}" if kind else ""  # which a network trained without masks does not depend on
        network = f"{original.arch} {original.capacity:.0%} {kind}"
        lines.append(f"{original.task:<11}{original.dataset:<15}{network:<38}{original.seed:>4}" + tail(counts))
    lines.append(f"{'all':<68}" + tail(total))
    hours = sum(estimate(remaining, rows, folder)) / jobs / 3600
    hours = "an unknown number of" if math.isnan(hours) else f"about {hours:.2f}"
    return "\n".join([*lines, f"{hours} hours left with --jobs {jobs}, a rough estimate"])


def tail(counts: list[int]) -> str:
    """The four numbers at a line's end."""
    return "{:>7}{:>6}{:>8}{:>6}".format(*counts)


def estimate(remaining, rows: dict[str, dict], folder: str | Path) -> list[float]:
    """Seconds of each group: means of the folder's rows where it has some, else passes times seconds of an epoch."""
    known = {}
    for row in rows.values():
        if row["status"] == "ok":
            known.setdefault((row["dataset"], row["arch"], row["capacity"], row["method"]), []).append(row["seconds"])
    seconds = []
    for original, cells in remaining:
        epoch = epoch_seconds(original, rows)
        spent = 0.0 if original_path(folder, original).exists() else training_passes(original) * epoch
        for cell in cells:
            past = known.get((cell.dataset, cell.arch, cell.capacity, Path(cell.method).name))
            trained = cell.method in TRAINED_ALONE  # its seconds are the original's
            spent += 0.0 if trained else sum(past) / len(past) if past else passes(cell) * epoch
        seconds.append(spent)
    return seconds


def epoch_seconds(original: Config, rows: dict[str, dict]) -> float:
    """Seconds that a plain network of these settings trains an epoch: of a row if there is one, else timed."""
    for row in rows.values():
        alike = all(row[key] == getattr(original, key) for key in ("dataset", "arch", "capacity", "width", "epochs"))
        if alike and row["train_seconds"] and not row["etd"] and original.epochs:
            return row["train_seconds"] / original.epochs
    keep = ("dataset", "data_dir", "image_size", "download", "arch", "width", "capacity", "batch", "optimizer", "device", "precision")
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


def training_passes(original: Config) -> float:
    """Training epochs' worth of an original network; a masked pass costs what the wide network costs."""
    masked = original.etd or original.method in TRAINED_ALONE
    return original.epochs * ((1 + original.extra_ratio) ** 2 if masked else 1)


def passes(config: Config) -> float:
    """Roughly how many training epochs a cell costs once its original is there; a method of one's own counts as REM."""
    wide, again = (1 + config.extra_ratio) ** 2, config.unlearn_epochs
    return {"no-ul": 0, "ascent": 0.1, "npo": 0.3, "ssd": 1.5, "potion": 2, "retrain": config.epochs, "cf": again,
            "scrub": 1.3 * again, "badt": 1.4 * again, "rem-no31": 2 * again}.get(config.method, again * (1 + wide))


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
