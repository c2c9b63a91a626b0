"""The command line: train a network on corrupted data, unlearn with each method, compare (Sec. 4, Sec. 6).

    python run.py --task poison --discovery 0.5
    python run.py --task random --discovery 0.1 --method rem --dataset cifar10 --data-dir data --download
    python run.py grid --tasks all --discovery 0.1:1.0:0.1 --methods all --out runs/all     # many cells, see grid.py
"""

import os
import sys
import warnings
from argparse import HelpFormatter
from dataclasses import asdict, replace
from pathlib import Path

import torch

import repair
from datasets import load
from experiment import (NO_SCORES, append_row, attempt, check_writable, choose_device, choose_methods, corrupt, find, new_model,
                        provenance, train_original, unlearn)
from methods import code_of
from settings import Config, Parser, add_flags, resolve
from study import cscore, grid, report
from tasks import Task

WORDS = {"grid": grid, "report": report, "cscore": cscore, "repair": repair}  # first words of the command line

# --- Command line -------------------------------------------------------------------------------------------------------


def parser() -> Parser:
    """A flag per field of Config, and a parser behind each first word; only what was given ends up in the namespace."""
    p = Parser(prog="run.py", usage="run.py [FLAGS] | run.py {grid,report,cscore,repair} [--help]",
               description=__doc__.splitlines()[0], formatter_class=lambda prog: HelpFormatter(prog, max_help_position=23))
    add_flags(p)
    words = p.add_subparsers(dest="word", prog="run.py", metavar="WORD", help="grid, report, cscore or repair",
                             title="many cells, tables and figures, the regularity of a task, a model of your own")
    for word, module in WORDS.items():
        module.add_arguments(words.add_parser(word, description=module.__doc__.splitlines()[0]))
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 if a cell or a file failed, 2 for bad input (one line on stderr)."""
    argv = sys.argv[1:] if argv is None else argv
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *rest, **more: print(f"warning: {message}", file=sys.stderr)
        try:
            code = command(argv)
            sys.stdout.flush()  # so that a closed pipe is noticed here
            return code
        except (ValueError, TypeError, RuntimeError, MemoryError, OverflowError) as error:  # torch's own for absurd sizes too
            print(f"run.py: {(str(error).splitlines() or [type(error).__name__])[0]}", file=sys.stderr)
            return 2
        except BrokenPipeError:  # the reader of its output, such as head, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
            return 1
        except OSError as error:  # a disk that is full, a file that went away
            print(f"run.py: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("run.py: interrupted; the rows of finished cells are in the result file", file=sys.stderr)
            return 130


def command(argv: list[str]) -> int:
    """Do what the first word says: a grid, a report, C-scores or, without such a word, one cell."""
    p = parser()
    given, unknown = p.parse_known_args(argv)
    given = vars(given)
    word = given.pop("word", None)
    if unknown or word and argv[0] != word:
        p.exit(2, f"run.py {word or ''}".rstrip() + (f": unrecognized arguments: {' '.join(unknown)}\n" if unknown else
                                                     " goes before all flags\n"))
    if word:
        return WORDS[word].main(given, argv)
    rows = compare(resolve(given), argv)
    return 0 if all(row["status"] == "ok" and row["written"] for row in rows) else 1


# --- One cell -----------------------------------------------------------------------------------------------------------


def compare(config: Config, argv: list[str] = ()) -> list[dict]:
    """Train one original network and unlearn from it with each method of config.method; one row a method.

    Rows are appended to config.out as they come. Everything that can be wrong with the input is looked at before training.

    Raises:
        ValueError, TypeError: the input cannot be used.
    """
    methods = choose_methods(config)
    paths = {Path(path.strip()).name: path.strip() for path in config.method.split(",")}  # of methods of one's own
    device = choose_device(config.device)
    check_writable(config.out)
    dataset = load(config.dataset, config.data_dir, config.image_size, config.download)
    task = corrupt(config, dataset)
    forget = find(config, task)
    model = new_model(config, dataset)
    task = replace(task, train=task.train.to(device), test=task.test.to(device))
    say(config, headline(config, task, forget, model, device))
    original, train_seconds, failure = attempt(lambda: train_original(config, task, model.to(device)))
    rows, unwritten = [], []
    for name, method in methods.items():
        row = {**asdict(config), "method": name, "code": code_of(paths.get(name, name)), **provenance(device, argv),
               "train_seconds": train_seconds}
        row |= ({"status": "failed", "error": f"training: {failure}", **NO_SCORES, "seconds": None} if failure
                else unlearn(config, name, method, original, task, forget))
        try:
            append_row(config.out, row)
        except OSError as error:  # a full disk takes neither the table nor the later methods
            print(f"run.py: {name} has no row in {config.out} ({error})", file=sys.stderr)
            unwritten.append(name)
        rows.append(row)
    print(table(rows))
    say(config, f"{len(rows) - len(unwritten)} rows appended to {config.out}" if unwritten else f"rows appended to {config.out}")
    return [{**row, "written": row["method"] not in unwritten} for row in rows]


# --- Output -------------------------------------------------------------------------------------------------------------


def say(config: Config, text: str) -> None:
    """Print unless --quiet."""
    if not config.quiet:
        print(text, flush=True)


def headline(config: Config, task: Task, forget: torch.Tensor, model, device: torch.device) -> str:
    """Two lines that say what is about to run."""
    parameters = sum(p.numel() for p in model.parameters())
    size = task.train.images.shape[-1]
    return (f"{config.task} on {config.dataset}: {len(task.train)} images of {size}x{size}, {len(task.corrupted)} corrupted, "
            f"{len(forget)} of them discovered ({100 * config.discovery:g}%)\n"
            f"{config.arch} at {100 * config.capacity:g}% capacity, {parameters:,} parameters"
            f"{', trained with ETD' if config.etd else ''}; seed {config.seed}; {device}")


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
