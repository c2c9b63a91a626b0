"""One cell: a task, an original network, one method, and the row of results that comes of it (Sec. 4, Sec. 6).

    task = corrupt(config, dataset)                                     # D_tr with its corruption
    original = train_original(config, task, new_model(config, dataset))
    outcome = unlearn(config, "rem", METHODS["rem"].function, original, task, forget)
    ran = replace(config, method="rem")
    append_row("runs/cells.jsonl", row_of(ran, code_of("rem"), provenance(device, sys.argv), outcome))
"""

import contextlib
import copy
import inspect
import math
import re
import time
import traceback
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from baselines import with_theta_o2
from engine.checks import check_forget, first_line, out_of_memory
from engine.modes import eval_mode
from engine.streams import same_world, stream
from etd import Expanded, drop, mask_table, train_etd
from experiment.console import clipped, number_of, progress, tell
from experiment.data import MEMORY_FORMAT, Data, Dataset
from experiment.methods import METHODS, allowed_with, check_names, find_method
from experiment.rows import NO_SCORES
from experiment.settings import Config
from metrics import accuracy, evaluate
from models import build
from rem import add_capacity
from tasks import Task, discover, make_task
from train import fit


# --- Train, unlearn, measure ------------------------------------------------------------------------------------------

def corrupt(config: Config, dataset: Dataset) -> Task:
    """The settings' task on a data set: D_tr with its corruption."""
    pair = config.pair and re.fullmatch(r"\s*(\d{1,20})\s*,\s*(\d{1,20})\s*", config.pair)
    if config.pair is not None and not pair:
        raise ValueError(f"pair is {clipped(config.pair)!r}; give two class numbers such as 3,5")
    pair = pair and (int(pair[1]), int(pair[2]))
    if config.task == "human" or config.trigger != Config.trigger:
        from experiment.corruptions import further_task  # here, because the paper has none of these

        return further_task(config, dataset, pair)
    return make_task(config.task, dataset, config.n, config.seed, pair)


def with_true_n(config: Config, dataset: Dataset) -> Config:
    """The settings with the number of corrupted images that the task has: of people's labels it is found, not set."""
    if config.task != "human":
        return config
    return replace(config, n=len(corrupt(config, dataset).corrupted))


def draw_forget(config: Config, task: Task) -> torch.Tensor:
    """D_f at the settings' discovery rate, checked."""
    return check_forget(discover(task, config.discovery, config.seed), len(task.train))


def new_model(config: Config, dataset: Dataset):
    """The freshly initialised network for a data set, weights from config.seed."""
    channels, height, width = dataset.train.shape
    if height != width:
        raise ValueError(f"images are {height}x{width}; the networks take square ones, use --image-size")
    shape = dict(channels=channels, classes=dataset.train.classes, image_size=height)
    if config.arch == "vit":  # Table 3's proportions: 8 heads of 64 at dimension 512, and 1,536 hidden units
        shape |= dict(patch=config.patch, dim=config.dim, depth=config.depth, head_dim=config.dim // 8,
                      hidden=3 * config.dim)
    seed = stream(config.seed, "weights").initial_seed()
    try:
        model = build(config.arch, config.width * config.capacity, **shape, seed=seed)
    except (OverflowError, RuntimeError, TypeError) as error:  # widths that no tensor has
        if out_of_memory(error):  # the message says how much was asked for
            raise
        raise ValueError(f"{config.arch} of width {config.width:g} at capacity {config.capacity:g} cannot be built "
                         f"({first_line(error)}); give smaller ones") from error
    return model.to(memory_format=MEMORY_FORMAT)


def train_original(config: Config, task: Task, model, log=None):
    """Train the original on D_tr, corruption included; an Expanded with --etd. log: as in `unlearn`."""
    check_outputs(model, task.train)
    generator = stream(config.seed, "training")
    with contextlib.nullcontext(log) if log else progress("train", config.quiet) as log:
        if config.etd:
            return train_etd(with_theta_o2(model, task.train, config), task.train, config, generator, fit, log=log)
        fit(model, task.train, None, config, generator, log=log)
    return model


def check_outputs(model, data: Data) -> int:
    """The number of a network's outputs; ValueError unless it has one for every label that the data can have."""
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    with eval_mode(model), torch.no_grad():
        _, x, _ = next(data.batches(torch.tensor([0]), generator=torch.Generator(), dtype=dtype))
        outputs = model(x).shape[1]
    if outputs < data.classes:
        raise ValueError(f"the network has {outputs} outputs for {data.classes} classes; "
                         "give it a head with one for each")
    return outputs


def unlearn(config: Config, name: str, method, original, task: Task, forget: torch.Tensor, log=None) -> dict:
    """Run one method and measure it; the second half of its row. D_c goes to a method that asks for `corrupted` alone.

    Args: name, method: in rows, and its function; original: the trained network, an Expanded with --etd, left as it is;
        task, forget: D_tr with its corruption; D_f; log: called once per epoch, see train.fit, by methods that take
        log=; None for `progress`, as loud as the settings say.
    Returns: status, error, what `metrics.evaluate` gives, seconds, and of what the method logged: passes, over D_f or
        tries of Potion, None if it makes none; gave_up, whether a stop condition was not met within those allowed: as
        the method says, else Acc(D_f) above gamma; and of REM that has started over reach_used.
    """
    generator, points, notes = stream(config.seed, "unlearning"), [], []  # the same generator for every method
    keeps = name in METHODS and METHODS[name].etd in ("kept", "only")
    model = drop(original) if isinstance(original, Expanded) and not keeps else original
    data = task.train
    if ":" in name:  # a user-supplied method may write into what it gets, which must not reach the next method
        model, data = copy.deepcopy(model), copy.deepcopy(data)

    def work():
        check_outputs(model, data)
        asked = inspect.signature(method).parameters
        curve = config.curve and (":" in name or "curve" in METHODS[name].reads)
        with contextlib.nullcontext(log) if log else progress(name, config.quiet) as show:
            def note(epoch: int, epochs: int, net, **values) -> None:
                notes.append(values)
                if curve and epoch:
                    points.append(point(config, net, task, forget, epoch, **values))
                if epoch:
                    show(epoch, epochs, net, **values)

            if curve:
                first = (add_capacity(model, data, forget, config, stream(config.seed, "curve")).expanded if keeps
                         else model)
                points.append(point(config, first, task, forget, 0))
            more = {"log": note} if "log" in asked else {}
            more |= {"corrupted": task.corrupted.clone()} if "corrupted" in asked else {}
            return method(model, data, forget.clone(), config, generator, **more)

    def measure():
        if not isinstance(unlearned, nn.Module):
            raise TypeError(f"{name} returned {type(unlearned).__name__}; a method returns the unlearned network")
        fresh = name in METHODS and METHODS[name].etd == "none"  # a new network, which had nothing to unlearn
        net, before = drop(unlearned) if isinstance(unlearned, Expanded) else unlearned, None if fresh else original
        given, returned = check_outputs(original, task.train), check_outputs(net, task.train)
        if returned != given:
            raise ValueError(f"{name} returned a network of {returned} outputs; the one that it was given has {given}")
        reaches = [note["reach"] for note in notes if "reach" in note and name in METHODS]
        used = {"reach_used": reaches[-1]} if reaches else {}
        return {**evaluate(net, task, forget, before), **end_of(notes, config.gamma), **used}

    unlearned, seconds, failure = attempt(work)
    scores = {}
    if failure is None:
        scores, _, failure = attempt(measure)
    row = {"status": "failed" if failure else "ok", "error": failure, **NO_SCORES, **(scores or {}), "seconds": seconds}
    return {**row, "points": points} if points else row


def end_of(notes: list[dict], gamma: float) -> dict:
    """passes and gave_up of a row, plain numbers whatever kind was logged; an error of some kind for what is none."""
    ends = [note for note in notes if "passes" in note]
    passes = [math.ceil(note["passes"]) for note in ends if note["passes"] is not None]  # a half one was begun, too
    said = [note["gave_up"] if note.get("gave_up") is not None else (note.get("acc_forget") or 0) > gamma
            for note in ends]
    return {"passes": sum(passes) if passes else None, "gave_up": any(said)}


def point(config: Config, net, task: Task, forget: torch.Tensor, epoch: int, **values) -> dict:
    """A network after an epoch, a point of Fig. 5: its scores, what the method logs (`values`) and the redirection.

    base: accuracy on D_c's given labels, of theta_o1 in REM; full: the same of theta_o1 with theta_o2 under D_f's mask.
    """
    scores = evaluate(net, task, forget)
    logged = {name: plain(value) for name, value in values.items()}
    found = {"epoch": epoch, "base": accuracy(net, task.train, task.corrupted), **logged}
    found |= {name: scores[name] for name in ("healed", "healed_undiscovered", "utility")}
    if isinstance(net, Expanded):  # D_f's row for all of D_c
        shared = mask_table(len(task.train), net.width, config.p_mem, config.seed, task.corrupted)
        found["full"] = accuracy(net, task.train, task.corrupted, masks=shared)
    return found


def plain(value):
    """What a row can hold of what a method logs: a text, or a finite number of any kind; else None."""
    if value is None or isinstance(value, (int, str)):
        return value
    number = number_of(value)
    return number if number is None or math.isfinite(number) else None


def attempt(work):
    """Run work() and leave the world as it was; returns (result, seconds, error text or None).

    Diverging, running out of memory, or a user-supplied method that calls sys.exit is an outcome. Ctrl-C, or a
    reader of standard output that has gone away, is none.
    """
    begin = time.perf_counter()
    result = failure = None
    try:
        with same_world():
            result = work()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
    except (KeyboardInterrupt, BrokenPipeError):
        raise
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        failure = f"{first_line(error)} ({Path(place.filename).name}:{place.lineno})"
        tell(f"failed: {failure}")
    return result, round(time.perf_counter() - begin, 3), failure


# --- Input checks -----------------------------------------------------------------------------------------------------

def choose_methods(config: Config) -> dict:
    """Names and functions of config.method, each once, in the order given.

    Raises: ValueError for an unknown name, one without a meaning with or without --etd, a file without such a method.
    """
    every = [name for name, method in METHODS.items() if allowed_with(name, config.etd) and method.in_all]
    given = [name.strip() for name in config.method.split(",") if name.strip()]
    names = list(dict.fromkeys(each for name in given for each in (every if name == "all" else [name])))
    check_names(names)
    for name in names:
        if not allowed_with(name, config.etd):
            raise ValueError(f"{name} trains a network of its own; leave out --etd" if config.etd else
                             f"{name} works on an ETD-trained network; add --etd")
    return dict(map(find_method, names))
