"""One cell: a task, an original network, one method, and the row of results that comes of it (Sec. 4, Sec. 6).

    task = corrupt(config, dataset)                                     # D_tr with its corruption
    original = train_original(config, task, new_model(config, dataset))
    outcome = unlearn(config, "rem", METHODS["rem"].function, original, task, forget)
    ran = replace(config, method="rem")
    append_row("runs/cells.jsonl", row_of(ran, code_of("rem"), provenance(device, sys.argv), outcome))
"""

import contextlib
import copy
import errno
import inspect
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from data import MEMORY_FORMAT, Data, Dataset
from etd import Expanded, drop, eval_mode, mask_table, ranks, stream
from methods import METHODS, check_names, find_method, fits, same_world
from metrics import accuracy, evaluate
from models import build
from rem import State, check_forget, start
from settings import VERSION, Config
from tasks import Task, discover, make_task, write_whole
from train import fit, train_etd

SHOWN = ("loss", "acc_forget", "score")  # what a line of progress shows of what a method logs
LONG = 60.0  # seconds without a line after which a terminal is told that work goes on
NO_SCORES = dict.fromkeys(("healed", "healed_forget", "healed_undiscovered", "healed_test", "utility", "product",
                           "acc_forget", "learnt", "passes", "gave_up"))  # of a failed cell


# --- Train, unlearn, measure ------------------------------------------------------------------------------------------

def corrupt(config: Config, dataset: Dataset) -> Task:
    """The settings' task on a data set: D_tr with its corruption."""
    pair = config.pair and re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*", config.pair)
    if config.pair is not None and not pair:
        raise ValueError(f"pair is {config.pair!r}; give two class numbers such as 3,5")
    return make_task(config.task, dataset, config.n, config.seed, pair and (int(pair[1]), int(pair[2])))


def find(config: Config, task: Task) -> torch.Tensor:
    """D_f at the settings' discovery rate, checked."""
    return check_forget(discover(task, config.discovery, config.seed), len(task.train))


def new_model(config: Config, dataset: Dataset):
    """The freshly initialised network for a data set, weights from config.seed."""
    channels, height, width = dataset.train.shape
    if height != width:
        raise ValueError(f"images are {height}x{width}; the networks take square ones, use --image-size")
    shape = dict(channels=channels, classes=dataset.train.classes, image_size=height)
    seed = stream(config.seed, "weights").initial_seed()
    model = build(config.arch, config.width * config.capacity, **shape, seed=seed)
    return model.to(memory_format=MEMORY_FORMAT)


def train_original(config: Config, task: Task, model, log=None):
    """Train the original on D_tr, corruption included; an Expanded with --etd. log: as in `unlearn`."""
    check_outputs(model, task.train)
    generator = stream(config.seed, "training")
    with contextlib.nullcontext(log) if log else progress("train", config.quiet) as log:
        if config.etd:
            return train_etd(model, task.train, config, generator, log=log)
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
        the method says, else Acc(D_f) above gamma.
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
        curve = config.curve and name in METHODS and "curve" in METHODS[name].reads
        with contextlib.nullcontext(log) if log else progress(name, config.quiet) as show:
            def tell(epoch: int, epochs: int, net, **values) -> None:
                notes.append(values)
                if curve:
                    points.append(point(config, net, task, forget, epoch, **values))
                if epoch:
                    show(epoch, epochs, net, **values)

            if curve:
                first = start(model, data, forget, config, stream(config.seed, "curve")).expanded if keeps else model
                points.append(point(config, first, task, forget, 0))
            more = {"log": tell} if "log" in asked else {}
            more |= {"corrupted": task.corrupted.clone()} if "corrupted" in asked else {}
            return method(model, data, forget.clone(), config, generator, **more)

    def measure():
        if not isinstance(unlearned, nn.Module):
            raise TypeError(f"{name} returned {type(unlearned).__name__}; a method returns the unlearned network")
        anew = name in METHODS and METHODS[name].etd == "none"  # what trains anew had nothing to unlearn
        net, before = drop(unlearned) if isinstance(unlearned, Expanded) else unlearned, None if anew else original
        given, returned = check_outputs(original, task.train), check_outputs(net, task.train)
        if returned != given:
            raise ValueError(f"{name} returned a network of {returned} outputs; the one that it was given has {given}")
        return {**evaluate(net, task, forget, before), **told_at_end(notes, config.gamma)}

    unlearned, seconds, failure = attempt(work)
    scores = {}
    if failure is None:
        scores, _, failure = attempt(measure)
    row = {"status": "failed" if failure else "ok", "error": failure, **NO_SCORES, **(scores or {}), "seconds": seconds}
    return {**row, "points": points} if points else row


def told_at_end(notes: list[dict], gamma: float) -> dict:
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
    found = {"epoch": epoch, "base": accuracy(net, task.train, task.corrupted), **values}
    found |= {name: scores[name] for name in ("healed", "healed_undiscovered", "utility")}
    if isinstance(net, Expanded):  # D_f's row for all of D_c
        shared = mask_table(len(task.train), net.width, config.p_mem, config.seed, task.corrupted)
        found["full"] = accuracy(net, task.train, task.corrupted, masks=shared)
    return found


def attempt(work):
    """Run work() and leave the world as it was; returns (result, seconds, error text or None).

    Diverging, running out of memory, or a user-supplied method that calls sys.exit is an outcome. An interrupt by the
    user, or a reader that has closed the pipe, is none.
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
        if ranks()[1] > 1 and not isinstance(error, ArithmeticError):
            raise  # the other processes may know nothing of it
        place = traceback.extract_tb(error.__traceback__)[-1]
        failure = f"{one_line(error)} ({Path(place.filename).name}:{place.lineno})"
        print(f"failed: {failure}", file=sys.stderr)
    return result, round(time.perf_counter() - begin, 3), failure


def one_line(error: BaseException) -> str:
    """Type and first line of an exception, whatever its text is or does."""
    try:
        text = next(iter(str(error).strip().splitlines()), "")
    except Exception:  # a __str__ that fails
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# --- Going on in another process --------------------------------------------------------------------------------------

PARTS = ("expanded", "reference", "optimizer")  # of a rem.State, with a state dict each
NOTES = ("epoch", "best", "best_score", "repaired", "known")


def save_state(state: State, path: str | Path, **notes) -> None:
    """Write all that REM's next epoch depends on, and `notes`, so that it can go on elsewhere; whole or not at all."""
    content = notes | {part: getattr(state, part).state_dict() for part in PARTS}
    content |= {note: getattr(state, note) for note in NOTES} | {"draws": state.generator.get_state()}
    write_whole(path, lambda file: torch.save(content, file))


def load_state(state: State, path: str | Path) -> None:
    """Put what `save_state` wrote into a state made by `rem.start` from the same network, data and settings."""
    content = torch.load(path, weights_only=True, map_location=state.device)
    for part in PARTS:
        getattr(state, part).load_state_dict(content[part])
    for note in NOTES:
        setattr(state, note, content[note])
    state.generator.set_state(content["draws"].cpu())


# --- Input checks -----------------------------------------------------------------------------------------------------

def choose_methods(config: Config) -> dict:
    """Names and functions of config.method, each once, in the order given.

    Raises: ValueError for an unknown name, one without a meaning with or without --etd, a file without such a method.
    """
    every = [name for name, method in METHODS.items() if fits(name, config.etd) and method.in_all]
    given = [name.strip() for name in config.method.split(",") if name.strip()]
    names = list(dict.fromkeys(each for name in given for each in (every if name == "all" else [name])))
    check_names(names)
    for name in names:
        if not fits(name, config.etd):
            raise ValueError(f"{name} trains a network of its own; leave out --etd" if config.etd else
                             f"{name} works on an ETD-trained network; add --etd")
    return dict(map(find_method, names))


def choose_device(name: str) -> torch.device:
    """The device of that name, or for "auto" a GPU where there is one; ValueError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" has no values to give
        if device.type == "cuda":
            torch.cuda.set_device(device)  # the one that `attempt` waits for
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"device {name!r} is not there ({reason}); use cpu, cuda or auto") from error
    return device


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


# --- Rows -------------------------------------------------------------------------------------------------------------

def row_of(cell: Config, code: str | None, origin: dict, outcome: dict) -> dict:
    """A whole row: settings, the method's short name and code, where the row comes from, what came out.

    code: `methods.code_of` from when the method was loaded; its file may be another one by the time that it has run.
    """
    return {**asdict(cell), "method": Path(cell.method).name, "code": code, **origin, **outcome}


def failure_of(error: str) -> dict:
    """What comes out of a cell that gave no numbers."""
    return {"status": "failed", "error": error, **NO_SCORES, "seconds": None}


def append_row(out: str, row: dict) -> None:
    """Append one JSON line in one write, synced to the disk; after a torn line on a line of its own."""
    line = json.dumps(row, allow_nan=False).encode() + b"\n"
    with open(out, "ab+", buffering=0) as file:
        with contextlib.suppress(ImportError):  # Windows
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)  # so that two runs that share the file lose no row; closing it unlocks it
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if file.read(1) not in (b"", b"\n"):
            line = b"\n" + line
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)  # no half row stays behind
            raise


def provenance(device: torch.device, argv) -> dict:
    """Where a row comes from: code, library, device and command."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "version": VERSION,
            "git": git_hash(), "argv": list(argv)}


def git_hash() -> str | None:
    """The commit of the code, with "-dirty" if tracked files differ from it; None outside a checkout."""
    command = ["git", "-C", Path(__file__).resolve().parent, "describe", "--always", "--dirty", "--abbrev=40",
               "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


@contextlib.contextmanager
def progress(label: str, quiet: bool, min_seconds: float = 0.0):
    """A log function for `fit` and the methods, for the length of a block: one line per epoch with the time left.

    In a terminal, work without such a line for LONG seconds says so in a line that is written anew every second.
    Args: label: what is done, such as "train"; quiet: print nothing; min_seconds: print nothing either of what takes
        less, by the seconds so far and the estimate of those left.
    """
    if quiet:
        yield lambda *args, **values: None
        return
    begin = last = time.perf_counter()
    since, done, terminal = "the start", threading.Event(), sys.stdout is not None and sys.stdout.isatty()
    clear = "\r" + " " * 60 + "\r" if terminal else ""

    def log(epoch: int, epochs: int, model, **values) -> None:
        nonlocal last, since
        last, since = time.perf_counter(), f"epoch {epoch}"
        left = (last - begin) / epoch * (epochs - epoch)
        if last - begin + left >= min_seconds:
            shown = "".join(f"{name} {values[name]:8.4f}  " for name in SHOWN if name in values)
            shown = f"{shown}{last - begin:6.1f} s  {left:6.1f} s left\n"
            print(f"{clear}{label:<8} epoch {epoch:3d}/{epochs}  {shown}", end="", flush=True)

    def watch() -> None:
        with contextlib.suppress(OSError):  # a terminal that is gone
            while not done.wait(1.0):
                if (silent := time.perf_counter() - last) >= LONG:
                    print(f"\r{label:<8} {silent:.0f} s since {since}", end="", flush=True)
            print(clear, end="", flush=True)

    watcher = threading.Thread(target=watch, daemon=True)
    if terminal:
        watcher.start()
    try:
        yield log
    finally:
        done.set()
        if terminal:
            watcher.join()
