"""What the tests of the paper's claims measure; it takes minutes, so one process of its own measures while other tests run.

    begin()                  # at the start of the suite, see conftest.py
    found("poison", 0)       # in a test: waits for that measurement
"""

import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache

import torch

from methods import METHODS
from experiment import new_model, train_original
from datasets import load
from etd import drop, mask_table
from metrics import accuracy, evaluate
from settings import resolve, stream
from tasks import discover, make_task

SEEDS = (0, 1, 2)
running = {}  # what is being measured: (kind, seed) -> Future


def begin() -> None:
    """Start to measure in a process of its own."""
    if not running:
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,))
        for kind, seed in [*(("poison", seed) for seed in SEEDS), ("left", 0), ("etd", 0)]:
            running[kind, seed] = pool.submit(measure, kind, seed)
        pool.shutdown(wait=False)


def end() -> None:
    """Leave out what has not begun."""
    for future in running.values():
        future.cancel()


def found(kind: str, seed: int = 0) -> dict:
    """The numbers of one measurement."""
    begin()
    return running[kind, seed].result()


def measure(kind: str, seed: int) -> dict:
    """One measurement; a warning fails it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {"poison": poison, "left": left, "etd": etd}[kind](seed)


def poison(seed: int) -> dict:
    """REM on the poisoned network at three rates; at 0.5 Fig. 5's curve, a pair an epoch, too."""
    config, task, original = trained("poison", seed)
    forget, curve = discover(task, 0.5, seed), []

    def log(epoch, epochs, net, **values):
        channel = mask_table(len(task.train), net.width, config.p_mem, config.seed, forget)[forget[:1]].expand(len(task.train), -1)
        curve.append((accuracy(net, task.train, task.corrupted), accuracy(net, task.train, task.corrupted, masks=channel)))

    net = METHODS["rem"].function(original, task.train, forget, config, stream(seed, "unlearning"), log=log)
    return {"learnt": accuracy(original, task.train, task.corrupted), "before": evaluate(original, task, forget), "curve": curve,
            0.1: scores_of("rem", config, task, original, 0.1), 0.5: evaluate(net, task, forget),
            1.0: scores_of("rem", config, task, original, 1.0)}


def left(seed: int) -> dict:
    """REM, fine-tuning and retraining at discovery 0.2, on all 6,000 images with the preset's numbers."""
    config = resolve(dict(task="poison", seed=seed, width=0.25, device="cpu", quiet=True))
    dataset = load("fashion-mini")
    task = make_task("poison", dataset, config.n, seed)
    original = train_original(config, task, new_model(config, dataset))
    return {name: scores_of(name, config, task, original, 0.2) for name in ("rem", "cf", "retrain")}


def etd(seed: int) -> dict:
    """Healed of networks trained with and without example-tied dropout, without unlearning."""
    healed = {}
    for name, masked in (("random", True), ("random", False), ("poison", True)):
        _, task, network = trained(name, seed, masked)
        healed[name, masked] = evaluate(drop(network) if masked else network, task, discover(task, 0.5, seed))["healed"]
    return healed


@cache
def small():
    """fashion-mini cut to 2,000 training and 1,000 test images."""
    dataset = load("fashion-mini")

    def cut(data, n):
        return replace(data, images=data.images[:n], labels=data.labels[:n])

    return replace(dataset, train=cut(dataset.train, 2000), test=cut(dataset.test, 1000))


@cache
def trained(name, seed, etd=False):
    """Settings, task and trained network; 10 % of the images are corrupted."""
    config = resolve(dict(task=name, seed=seed, etd=etd, n=200, width=0.25, epochs=10, batch=64, unlearn_epochs=5,
                          unlearn_lr=0.01, device="cpu", quiet=True))
    task = make_task(name, small(), config.n, seed)
    return config, task, train_original(config, task, new_model(config, small()))


def scores_of(method, config, task, original, rate):
    """Scores of one method at a discovery rate."""
    forget = discover(task, rate, config.seed)
    return evaluate(METHODS[method].function(original, task.train, forget, config, stream(config.seed, "unlearning")), task, forget)
