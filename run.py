"""The command line: train a network on corrupted data, unlearn with each method, compare (Sec. 4, Sec. 6).

    python run.py --task poison --discovery 0.5
    python run.py --task random --discovery 0.1 --method rem --dataset cifar10 --data-dir data --download
    python run.py grid --tasks all --discovery 0.1:1.0:0.1 --methods all --out runs/all   # many cells: study/grid.py
"""

import importlib
import os
import re
import sys
import warnings
from argparse import HelpFormatter
from dataclasses import replace
from pathlib import Path

# Before torch is imported: waiting threads of GNU OpenMP spin, so two runs that share the cores take each other's time.
# Two runs of 11 s at once took over 150 s, with this 32 s; one alone is as fast as before (results/spread/README.md).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import torch

from engine.checks import first_line
from experiment.cell import attempt, choose_methods, corrupt, draw_forget, new_model, train_original, unlearn
from experiment.console import Parser, add_flags, clipped, tell
from experiment.datasets import fingerprints, load, part_of
from experiment.devices import check_precision, check_room, choose_device, describe
from experiment.files import check_writable
from experiment.methods import code_of
from experiment.rows import append_row, failure_of, provenance, row_of
from experiment.settings import Config, resolve
from tasks import Task

DESCRIPTION = "Train a network on corrupted data, unlearn with each method, compare."  # python -OO leaves no docstrings
# First words and their modules, each loaded when it is asked for.
WORDS = {"grid": "study.grid", "report": "study.report", "cscore": "study.cscore", "repair": "repair.command"}

# --- Command line -----------------------------------------------------------------------------------------------------

def parser(word: str | None = None) -> Parser:
    """A flag per field of Config, or the flags behind a first word; only what was given ends up in the namespace."""
    p = Parser(prog="run.py", usage="run.py [FLAGS] | run.py {grid,report,cscore,repair} [--help]",
               description=DESCRIPTION,
               formatter_class=lambda prog: HelpFormatter(prog, max_help_position=23),
               epilog="Many cells: run.py grid. Tables and figures: run.py report. How regular a task is: run.py "
                      "cscore. A model of your own: run.py repair.")
    if word is None:
        add_flags(p)
        return p
    behind = p.add_subparsers(dest="word", metavar="WORD", prog="run.py")
    for name in WORDS:
        known = behind.add_parser(name)
        if name == word:
            module = importlib.import_module(WORDS[name])
            known.description = (module.__doc__ or "").partition("\n")[0]
            module.add_arguments(known)
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Returns: 0; 1 if a cell or a file failed; 2 for bad input, which one line names; 3 if a repair did not repair or did
        harm; 130 at Ctrl-C: files are written whole or not at all, and rows are appended whole.
    """
    argv = sys.argv[1:] if argv is None else argv
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name that stdout cannot encode ends no run
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *rest, **more: tell(f"warning: {message}")
        try:
            code = command(argv)
            if sys.stdout is not None:  # it is None where stdout was closed from the start
                sys.stdout.flush()  # so that a closed pipe is noticed here
            return code
        except (ValueError, TypeError, RuntimeError, MemoryError, OverflowError) as error:  # torch's, for absurd sizes
            tell(f"run.py: {clipped(what_went_wrong(error), 2000)}")
            return 2
        except KeyboardInterrupt:
            tell("run.py: interrupted; what was written is whole, and the same command goes on from there")
            return 130
        except BrokenPipeError:  # the reader of its output, such as head, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
            return 1
        except OSError as error:  # a disk that is full, a file that went away
            tell(f"run.py: {type(error).__name__}: {error}")
            return 1


def what_went_wrong(error: Exception) -> str:
    """The first line of an error; of torch's about memory what it asked for and what to do."""
    text = first_line(error, kind=False)
    if asked := re.search(r"(?i)tried to allocate (\S+ ?\w*)", text):
        return f"out of memory, {asked[1]} asked for; take a smaller network, image size or batch"
    return text


def command(argv: list[str]) -> int:
    """Do what the first word says, one of WORDS; where a flag comes first, or nothing, one cell."""
    p = parser(argv[0] if argv and not argv[0].startswith("-") else None)
    given, unknown = p.parse_known_args(argv)
    word = vars(given).pop("word", None)
    if unknown:
        p.exit(2, f"run.py{' ' + word if word else ''}: unrecognized arguments: {' '.join(unknown)}\n")
    if word:
        return importlib.import_module(WORDS[word]).main(vars(given), argv)
    rows = compare(resolve(vars(given)), argv)
    return 0 if all(row["status"] == "ok" and row["written"] for row in rows) else 1


# --- One cell ---------------------------------------------------------------------------------------------------------

def compare(config: Config, argv: list[str] = ()) -> list[dict]:
    """Train one original network and unlearn from it with each method of config.method; one row a method.

    Rows are appended to config.out as they come; one that cannot be written is named after the table.
    Raises: ValueError, TypeError for input that cannot be used, all of it before training.
    """
    if config.dataset == "folder":  # a relative path is another one in another working directory
        config = replace(config, data_dir=str(Path(config.data_dir).resolve()))
    if config.human_labels:
        config = replace(config, human_labels=str(Path(config.human_labels).resolve()))
    methods = choose_methods(config)
    paths = {Path(path.strip()).name: path.strip() for path in config.method.split(",")}  # of user-supplied methods
    codes = {name: code_of(paths.get(name, name)) for name in methods}
    device = choose_device(config.device)
    check_writable(config.out)
    dataset = load(config.dataset, config.data_dir, config.image_size, config.download)
    dataset = part_of(dataset, config.per_class, config.per_class_test, config.augment)
    task, images = corrupt(config, dataset), fingerprints(dataset)
    config = replace(config, n=len(task.corrupted))
    forget = draw_forget(config, task)
    model = new_model(config, dataset)
    check_precision(config, device)
    check_room(config, model)
    task = replace(task, train=task.train.to(device), test=task.test.to(device))
    if not config.quiet:
        print(headline(config, task, forget, model, device), flush=True)
    original, train_seconds, failure = attempt(lambda: train_original(config, task, model.to(device)))
    rows, unwritten = [], []
    for name, method in methods.items():
        outcome = (failure_of(f"training: {failure}") if failure
                   else unlearn(config, name, method, original, task, forget))
        row = row_of(replace(config, method=paths.get(name, name)), codes[name], provenance(device, argv),
                     {"images": images, "train_seconds": train_seconds, **outcome})
        try:
            append_row(config.out, row)
        except OSError as error:  # a full disk costs no method and no table
            unwritten, why = [*unwritten, name], error
        rows.append(row)
    print(table(rows))
    if unwritten:
        tell(f"run.py: no row of {', '.join(unwritten)} in {config.out} ({why})")
    if not config.quiet:
        print(f"{len(rows) - len(unwritten)} rows" if unwritten else "rows", "appended to", config.out)
    return [{**row, "written": row["method"] not in unwritten} for row in rows]


# --- Output -----------------------------------------------------------------------------------------------------------

def headline(config: Config, task: Task, forget: torch.Tensor, model, device: torch.device) -> str:
    """Two lines that say what is about to run."""
    parameters = sum(p.numel() for p in model.parameters())
    size = task.train.images.shape[-1]
    kind = {"poison": config.trigger, "human": config.human_column}.get(config.task)
    shown = "" if kind in (None, "patch") else f" ({kind})"
    return (f"{config.task}{shown} on {config.dataset}: {len(task.train)} images of {size}x{size}, "
            f"{len(task.corrupted)} corrupted, {len(forget)} of them discovered ({100 * config.discovery:g}%)\n"
            f"{config.arch} at {100 * config.capacity:g}% capacity, {parameters:,} parameters"
            f"{', trained with ETD' if config.etd else ''}; seed {config.seed}; {describe(device)}")


def table(rows: list[dict]) -> str:
    """The comparison, in percent but for the seconds; ASR: attack success rate. A failed cell shows its error."""
    wide = max([14, *(len(row["method"]) + 2 for row in rows)])
    scores = f"{'Healed':>8}{'undiscovered':>14}{'Utility':>9}{'product':>9}{'ASR':>8}"
    lines = [f"\n{'method':<{wide}}{scores}{'seconds':>9}"]
    for row in rows:
        if row["status"] != "ok":
            lines.append(f"{row['method']:<{wide}}  {row['error']}")
            continue
        values = [row[key] for key in ("healed", "healed_undiscovered", "utility", "product", "misled")]
        healed, undiscovered, utility, product, success = ("-" if v is None else f"{100 * v:.1f}" for v in values)
        scores = f"{healed:>8}{undiscovered:>14}{utility:>9}{product:>9}{success:>8}"
        lines.append(f"{row['method']:<{wide}}{scores}{row['seconds']:>9.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
