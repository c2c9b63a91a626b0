"""The command line: train a network on corrupted data, unlearn with each method, compare (Sec. 4, Sec. 6).

    python run.py --task poison --discovery 0.5
    python run.py --task random --discovery 0.1 --method rem --dataset cifar10 --data-dir data --download
    python run.py --task confusion --discovery 1.0 --etd --seed 1 --out runs/etd.jsonl
"""

import argparse
import contextlib
import inspect
import json
import os
import subprocess
import sys
import time
import traceback
import warnings
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch

import settings
from baselines import METHODS, NEEDS_ETD, NOT_ON_ETD, ON_EXPANDED, load_method
from data import MEMORY_FORMAT, Dataset, load
from etd import drop, train_etd
from layers import Expanded
from metrics import evaluate
from models import build
from rem import check_forget
from settings import Config, resolve, stream
from tasks import Task, discover, make_task, write_whole
from train import fit

VERSION = "0.1.0"


# --- Command line -------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """One flag a field of Config; only what was given ends up in the namespace."""
    p = argparse.ArgumentParser(prog="run.py", description=__doc__.splitlines()[0], argument_default=argparse.SUPPRESS,
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    p.error = lambda message: p.exit(2, f"run.py: {message}\n")  # one line, without the usage
    for f in fields(Config):
        flag, choices, text = "--" + f.name.replace("_", "-"), f.metadata.get("choices"), f.metadata["help"]
        presets = {**settings.ARCH_PRESETS, **settings.DATASET_PRESETS}
        special = [f"{name}: {preset[f.name]}" for name, preset in presets.items() if f.name in preset]
        if f.default is not None:
            text += f" (default: {f.default}{''.join('; ' + s for s in special)})"
        text = text.replace("%", "%%")
        if f.type is bool:
            p.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        else:
            kind = next(t for t in (str, int, float) if f.type in (t, t | None))
            p.add_argument(flag, type=kind, choices=choices, metavar=None if choices else f.name.upper(), help=text)
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 if a cell failed, 2 for bad input (one line on stderr)."""
    argv = sys.argv[1:] if argv is None else argv
    given = vars(parser().parse_args(argv))
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *rest, **more: print(f"warning: {message}", file=sys.stderr)
        try:
            rows = compare(resolve(given), argv)
        except (ValueError, TypeError) as error:
            print(f"run.py: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("run.py: interrupted; the rows of finished methods are in the result file", file=sys.stderr)
            return 130
    return 0 if all(row["status"] == "ok" for row in rows) else 1


NO_SCORES = dict.fromkeys(("healed", "healed_forget", "healed_undiscovered", "healed_test", "utility", "product"))  # of a failed cell


# --- One cell -----------------------------------------------------------------------------------------------------------


def compare(config: Config, argv: list[str] = ()) -> list[dict]:
    """Train one original network and unlearn from it with each method of config.method; one row a method.

    Rows are appended to config.out as they come. Everything that can be wrong with the input is looked at before training.

    Raises:
        ValueError, TypeError: the input cannot be used.
    """
    methods = choose_methods(config)
    device = choose_device(config.device)
    check_writable(config.out)
    dataset = load(config.dataset, config.data_dir, config.image_size, config.download)
    pair = None if config.pair is None else parse_pair(config.pair)
    task = make_task(config.task, dataset, config.n, config.seed, pair)
    forget = check_forget(discover(task, config.discovery, config.seed), len(task.train))
    model = new_model(config, dataset)
    task = replace(task, train=task.train.to(device), test=task.test.to(device))
    say(config, headline(config, task, forget, model, device))
    original, train_seconds, failure = attempt(lambda: train_original(config, task, model.to(device)))
    rows = []
    for name, method in methods.items():
        row = {**asdict(config), "method": name, **provenance(device, argv), "train_seconds": train_seconds}
        row |= ({"status": "failed", "error": f"training: {failure}", **NO_SCORES, "seconds": None} if failure
                else unlearn(config, name, method, original, task, forget))
        append_row(config.out, row)
        rows.append(row)
    print(table(rows))
    say(config, f"rows appended to {config.out}")
    return rows


def new_model(config: Config, dataset: Dataset):
    """The freshly initialised network for a data set, weights from config.seed."""
    images = dataset.train.images
    if images.shape[2] != images.shape[3]:
        raise ValueError(f"images are {images.shape[2]}x{images.shape[3]}; the networks take square ones, use --image-size")
    shape = dict(channels=images.shape[1], classes=dataset.train.classes, image_size=images.shape[2])
    seed = stream(config.seed, "weights").initial_seed()
    model = build(config.arch, config.width * config.capacity, **shape, seed=seed)
    return model.to(memory_format=MEMORY_FORMAT)


def train_original(config: Config, task: Task, model):
    """Train the original on D_tr, corruption included; an Expanded with --etd."""
    generator, log = stream(config.seed, "training"), progress("train", config.quiet)
    if config.etd:
        return train_etd(model, task.train, config, generator, log=log)
    fit(model, task.train, None, config, generator, log=log)
    return model


def unlearn(config: Config, name: str, method, original, task: Task, forget: torch.Tensor) -> dict:
    """Run one method and measure it; the second half of its row. D_c goes to a method that asks for `corrupted` alone."""
    generator = stream(config.seed, "unlearning")  # the same for every method
    model = original if name in ON_EXPANDED or not isinstance(original, Expanded) else drop(original)
    asked = inspect.signature(method).parameters
    more = {"log": progress(name, config.quiet)} if "log" in asked else {}
    more |= {"corrupted": task.corrupted} if "corrupted" in asked else {}
    unlearned, seconds, failure = attempt(lambda: method(model, task.train, forget, config, generator, **more))
    scores = {}
    if failure is None:
        unlearned = drop(unlearned) if isinstance(unlearned, Expanded) else unlearned
        scores, _, failure = attempt(lambda: evaluate(unlearned, task, forget))
    return {"status": "failed" if failure else "ok", "error": failure, **NO_SCORES, **(scores or {}), "seconds": seconds}


def attempt(work):
    """Run work(); returns (result, seconds, error text or None). Running out of numbers or of memory is an outcome."""
    begin = time.perf_counter()
    result = failure = None
    try:
        result = work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        failure = f"{type(error).__name__}: {error}".splitlines()[0] + f" ({Path(place.filename).name}:{place.lineno})"
        print(f"failed: {failure}", file=sys.stderr)
    return result, round(time.perf_counter() - begin, 3), failure


# --- Input checks -------------------------------------------------------------------------------------------------------


def choose_methods(config: Config) -> dict:
    """Names and functions of config.method, each once, in the order given.

    Raises:
        ValueError: an unknown name, one that has no meaning with or without --etd, or a file that holds no such method.
    """
    names = [name.strip() for name in config.method.split(",") if name.strip()]
    unfit = NOT_ON_ETD if config.etd else NEEDS_ETD
    methods = {}
    for name in dict.fromkeys(names):
        if name == "all":
            methods |= {known: METHODS[known] for known in METHODS if known not in unfit}
        elif name in unfit:
            raise ValueError(f"{name} trains a network of its own; leave out --etd" if config.etd else
                             f"{name} works on an ETD-trained network; add --etd")
        elif ":" in name:
            short, method = load_method(name)
            if short in methods:
                raise ValueError(f"two methods are called {short}; give one of the files another name")
            methods[short] = method
        elif name not in METHODS:
            raise ValueError(f"unknown method {name!r}; choose from {', '.join(METHODS)}, all or FILE.py:FUNCTION")
        else:
            methods[name] = METHODS[name]
    if not methods:
        raise ValueError(f"no method given; choose from {', '.join(METHODS)}, all or FILE.py:FUNCTION")
    return methods


def choose_device(name: str) -> torch.device:
    """The device of that name, or for "auto" a GPU where there is one; ValueError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not there ({str(error).splitlines()[0]}); use cpu, cuda or auto") from error
    return device


def parse_pair(text: str) -> tuple[int, int]:
    """Two class numbers from "A,B"."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"pair is {text!r}; give two class numbers such as 3,5")
    return int(parts[0]), int(parts[1])


def check_writable(out: str) -> None:
    """Raise ValueError unless rows can be appended to the result file; makes its folder."""
    path = Path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK) or not os.access(path.parent, os.W_OK):
            raise OSError("it is a folder" if path.is_dir() else "permission denied")
    except OSError as error:
        raise ValueError(f"cannot write results to {out} ({error}); give another file with --out") from error


# --- Output -------------------------------------------------------------------------------------------------------------


def append_row(out: str, row: dict) -> None:
    """Append one JSON line: the file is written anew beside itself and put in place whole, so a kill tears nothing."""
    path = Path(out)
    with only_writer(path.parent):
        before = path.read_bytes() if path.exists() else b""
        if before and not before.endswith(b"\n"):
            before += b"\n"
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        write_whole(path, lambda file: file.write(before + line))


@contextlib.contextmanager
def only_writer(folder: Path):
    """Hold the folder's advisory lock, so that two runs that share a result file lose no row; without fcntl, no lock."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def provenance(device: torch.device, argv) -> dict:
    """Where a row comes from: code, library, device and command."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "version": VERSION,
            "git": git_hash(), "argv": list(argv)}


def git_hash() -> str | None:
    """The commit of the code, None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def say(config: Config, text: str) -> None:
    """Print unless --quiet."""
    if not config.quiet:
        print(text, flush=True)


def headline(config: Config, task: Task, forget: torch.Tensor, model, device: torch.device) -> str:
    """Two lines that say what is about to run."""
    parameters = sum(p.numel() for p in model.parameters())
    size = task.train.images.shape[-1]
    return (f"{config.task} on {config.dataset}: {len(task.train)} images of {size}x{size}, {len(task.corrupted)} corrupted, "
            f"{len(forget)} of them discovered ({config.discovery:.0%})\n"
            f"{config.arch} at {config.capacity:.0%} capacity, {parameters:,} parameters"
            f"{', trained with ETD' if config.etd else ''}; seed {config.seed}; {device}")


def progress(label: str, quiet: bool):
    """A log function for `fit` and the methods: one aligned line an epoch with the time left."""
    begin = time.perf_counter()

    def log(epoch: int, epochs: int, model, **values) -> None:
        spent = time.perf_counter() - begin
        shown = "  ".join(f"{name} {value:8.4f}" for name, value in values.items())
        print(f"{label:<8} epoch {epoch:3d}/{epochs}  {shown}  {spent:6.1f} s  {spent / epoch * (epochs - epoch):6.1f} s left", flush=True)

    return (lambda *args, **values: None) if quiet else log


def table(rows: list[dict]) -> str:
    """The comparison, percent where a fraction is meant; a failed cell shows its error."""
    wide = max([14, *(len(row["method"]) + 2 for row in rows)])
    lines = [f"\n{'method':<{wide}}{'Healed':>8}{'undiscovered':>14}{'Utility':>9}{'product':>9}{'seconds':>9}"]
    for row in rows:
        if row["status"] != "ok":
            lines.append(f"{row['method']:<{wide}}  {row['error']}")
            continue
        cells = [f"{100 * row[k]:.1f}" if row[k] is not None else "-" for k in ("healed", "healed_undiscovered", "utility", "product")]
        lines.append(f"{row['method']:<{wide}}{cells[0]:>8}{cells[1]:>14}{cells[2]:>9}{cells[3]:>9}{row['seconds']:>9.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
