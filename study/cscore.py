"""The regularity axis as a number: C-scores of the corruptions, by networks trained on parts of D_c (Eq. 1, Sec. 4).

    python run.py cscore --task all
    python run.py cscore --task poison --sizes 0,0.5,0.9 --runs 10 --seed 1 --out results/cscore.jsonl

The networks see corrupted examples alone, with their labels as given. All poisoned images have label 0, so any trained
network predicts it, trigger or not, and the score is 1 at every size but 0. Confusion leaves two labels, to be told
apart by the image. Random labels follow from nothing: the score is chance, 1 / classes.
"""

import math
import time
from dataclasses import replace
from functools import partial

import torch

from engine.batches import count_batches
from engine.streams import stream
from experiment.cell import attempt, corrupt, with_true_n, new_model
from experiment.console import Parser, add_flags
from experiment.data import Data, Dataset
from experiment.datasets import fingerprints, load, part_of
from experiment.devices import choose_device
from experiment.files import check_writable
from experiment.rows import append_row, provenance
from experiment.settings import EVERY_TASK, Config, resolve
from metrics import accuracy, c_score, check_c_score, mean_sem
from tasks import TASKS, Task
from train import fit

# Those settings of run.py that have a part in a C-score; the other flags are errors here.
FLAGS = ("dataset", "per_class", "per_class_test", "data_dir", "download", "image_size", "n", "trigger", "human_labels",
         "human_column", "pair", "arch", "width", "capacity", "patch", "dim", "depth",
         "optimizer", "lr", "momentum", "weight_decay", "augment", "seed", "device", "precision", "quiet")
NO_C_SCORE = dict.fromkeys(("score", "sem", "by_size", "learned", "rates"))  # of a task that failed


def add_arguments(p: Parser) -> None:
    """The flags of run.py in FLAGS, and those of the estimator.

    Choice: every network gets the same number of updates, whatever the size of its subset. On fashion-mini 100 updates
    teach a network 93 % or more of its subset of poison and confusion, and 84 % or more of random labels (`learned`).
    """
    def add(name, default, text, **more):
        p.add_argument("--" + name, default=default, help=f"{text} (default: {default})", **more)

    add("task", "all", "corruption to score", choices=(*EVERY_TASK, "all"))
    add("sizes", "0,0.2,0.4,0.6,0.8", "sizes of the subsets, shares of D_c in [0, 1)")
    add("runs", 5, "networks of each size, at least 1 / (1 - largest size)", type=int)
    add("updates", 100, "training updates of each network, rounded up to whole epochs", type=int)
    add("batch", 64, "batch size in training", type=int)
    add("out", "runs/cscore.jsonl", "result file, one JSON line per task is appended")
    add_flags(p, FLAGS)


def main(given: dict, argv: list[str]) -> int:
    """Run `run.py cscore`; returns the exit code: 0, or 1 if a task failed. Bad input raises ValueError, TypeError."""
    names, shares, runs, updates = (given.pop(key) for key in ("task", "sizes", "runs", "updates"))
    configs = [resolve({**given, "task": name}) for name in (TASKS if names == "all" else [names])]
    config = configs[0]  # they differ in the task alone
    if updates < 1:
        raise ValueError(f"updates is {updates}; it must be at least 1")
    device = choose_device(config.device)
    check_writable(config.out)
    dataset = load(config.dataset, config.data_dir, config.image_size, config.download)
    dataset = part_of(dataset, config.per_class, config.per_class_test, config.augment)
    configs = [with_true_n(each, dataset) for each in configs]
    sizes = subset_sizes(shares, configs[0].n)
    images = fingerprints(dataset)
    tasks = [corrupt(c, dataset) for c in configs]
    for task in tasks:
        check_c_score(task.train, task.corrupted, sizes, runs)
    new_model(config, dataset)  # refuses images that the architecture does not take
    networks = runs * sum(size > 0 for size in sizes)
    log, rows = network_progress(networks * len(tasks), config.quiet), []
    for config, task in zip(configs, tasks, strict=True):
        scores = score_task(config, dataset, task, device, sizes, runs, updates, log)
        used = {name: getattr(config, name) for name in ("task", *FLAGS, "batch", "out")}
        plan = {"sizes": sizes, "runs": runs, "updates": updates, "networks": networks}
        rows.append({**used, **plan, **provenance(device, argv), "images": images, **scores})
        append_row(config.out, rows[-1])
    print(score_table(rows))
    if not config.quiet:
        print(f"rows appended to {config.out}")
    return 0 if all(row["status"] == "ok" for row in rows) else 1


def subset_sizes(shares: str, n: int) -> list[int]:
    """Numbers of examples from shares of n in [0, 1), separated by commas, rounded down."""
    try:
        values = [float(share) for share in shares.split(",")]
        if not all(0 <= value < 1 for value in values):
            raise ValueError
    except ValueError:
        raise ValueError(f"sizes is {shares!r}; give shares of D_c from 0 to below 1, such as 0,0.2,0.8") from None
    sizes = [math.floor(round(value * n, 6)) for value in values]  # 0.29 * 100 is 28.999999999999996
    if len(set(sizes)) < len(sizes):
        raise ValueError(f"sizes is {shares!r}, which are {', '.join(map(str, sizes))} of {n} corrupted examples; "
                         "give shares that differ by an example or more")
    return sizes


def score_task(config: Config, dataset: Dataset, task: Task, device: torch.device, sizes: list[int], runs: int,
               updates: int, log) -> dict:
    """The measured part of a task's row.

    Returns: score: mean of D_c's C-scores; sem: over runs, each the mean over sizes of the accuracy on the held-out
        part; by_size, learned: mean of it and of that on the subset (None at size 0); rates: (sizes, runs).
    """
    data, fits = task.train.to(device), {size: [] for size in sizes}
    learn, log = learner(config, dataset, data, updates, fits), partial(log, task.name)
    result, seconds, failure = attempt(lambda: c_score(data, task.corrupted, learn, sizes, runs, config.seed, log))
    row = {"status": "failed" if failure else "ok", "error": failure, **NO_C_SCORE, "seconds": seconds}
    if failure:
        return row
    scores, rates = result
    learned = [mean_sem(fits[size])[0] if size else None for size in sizes]
    return {**row, "score": float(scores.mean()), "sem": mean_sem(rates.mean(dim=0))[1], "learned": learned,
            "by_size": rates.mean(dim=1).tolist(), "rates": rates.tolist()}


def learner(config: Config, dataset: Dataset, data: Data, updates: int, fits: dict):
    """The `learn` of `c_score`: a new network, trained unless the subset is empty; notes what it learned in `fits`."""
    def learn(index: torch.Tensor, seed: int):
        model = new_model(replace(config, seed=seed), dataset).to(data.images.device)
        if len(index):
            epochs = -(-updates // count_batches(len(index), config.batch))
            fit(model, data, index, config, stream(seed, "training"), epochs=epochs)
            fits[len(index)].append(accuracy(model, data, index))  # on the labels as given
        return model

    return learn


# --- Output -----------------------------------------------------------------------------------------------------------

def network_progress(networks: int, quiet: bool):
    """A log function for `c_score` behind the task's name: a line per network with the time left for all tasks."""
    begin, trained = time.perf_counter(), 0

    def log(name: str, done: int, total: int, size: int, rate: float) -> None:
        nonlocal trained
        trained += size > 0  # the others take no time
        spent = time.perf_counter() - begin
        left = f"  {spent / trained * (networks - trained):6.1f} s left" if trained else ""
        print(f"{name:<10}network {done:3d}/{total}  n {size:4d}  accuracy held out {rate:6.4f}  {spent:6.1f} s{left}",
              flush=True)

    return (lambda *args: None) if quiet else log


def score_table(rows: list[dict]) -> str:
    """One line per task; scores are fractions, n is the number of runs that the SEM is over."""
    lines = [f"\n{'task':<12}{'C-score':>8}{'SEM':>8}{'n':>4}{'networks':>10}{'seconds':>9}"]
    for row in rows:
        if row["status"] != "ok":
            lines.append(f"{row['task']:<12}  {row['error']}")
            continue
        sem = "-" if row["sem"] is None else f"{row['sem']:.3f}"
        lines.append(f"{row['task']:<12}{row['score']:>8.3f}{sem:>8}{row['runs']:>4}{row['networks']:>10}"
                     f"{row['seconds']:>9.1f}")
    return "\n".join(lines)
