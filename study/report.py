"""Tables and figures of the paper from result files alone, its numbers beside ours (Tables 1, 2, 4-9; Figs 1, 3-11).

    python run.py report results/fashion-mini
    python run.py report results --table all --figure all --out report

Tables need pandas and figures matplotlib, which nothing else here does: requirements-optional.txt.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path

from experiment.console import Parser, tell
from experiment.files import check_folder, write_whole
from study.figures import DRAW, draw, save
from study.rows import Missing, load_rows

NAMES = ("mean", "plane", "ablations", "1", "2", "4", "5", "6", "7", "8", "9")  # of tables, see tables.py


def path(text: str) -> str:
    """A path that is not empty, as an unset variable of a shell is."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name; name result files, or folders of them")
    return text


def add_arguments(p: Parser) -> None:
    """The flags; a wrong one is one line on stderr and exit code 2."""
    p.add_argument("results", nargs="+", type=path,
                   help="result files of run.py, or folders for every *.jsonl below them")
    p.add_argument("--table", help=f"tables, separated by commas: {', '.join(NAMES)} or all (default: mean)")
    p.add_argument("--figure", help=f"figures, separated by commas: {', '.join(DRAW)} or all; needs --out")
    p.add_argument("--out", help="folder to write to: tables as Markdown and LaTeX, figures as PNG and SVG")


def main(given: dict, argv: list[str]) -> int:
    """Run `run.py report`; returns the exit code: 0, or 2 for bad input (one line on stderr)."""
    try:
        print("\n".join(report(**given)), flush=True)
    except BrokenPipeError:  # its reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
    except ModuleNotFoundError as error:
        tell(f"run.py report needs {error.name.partition('.')[0]}: pip install -r requirements-optional.txt")
        return 2
    except (ValueError, OSError) as error:
        tell(f"run.py report: {error}")
        return 2
    return 0


def report(results: list[str], table: str | None, figure: str | None, out: str | None) -> list[str]:
    """Make all that was asked for, then write it; returns what to print: the tables, or with --out how many files.

    Raises: ValueError for bad input or no rows; ModuleNotFoundError without pandas or matplotlib.
    """
    if out == "":
        raise ValueError("--out is empty; name a folder")
    names = choose("table", table or ("" if figure else "mean"), NAMES)
    numbers = choose("figure", figure or "", DRAW)
    if numbers and not out:
        raise ValueError("figures are written to files; give a folder with --out")
    tables = importlib.import_module("study.tables") if names else None  # pandas
    if numbers:
        importlib.import_module("matplotlib")
    if out:
        check_folder(out)
    rows = load_rows(results)
    made = collect("table", names, NAMES, lambda name: tables.make_tables(name, rows, own=names == list(NAMES)))
    figures = collect("figure", numbers, DRAW, lambda number: draw(number, rows))
    if not out:
        return [tables.markdown(each) for found in made.values() for each in found]
    for name, found in made.items():
        for ending, form in ((".md", tables.markdown), (".tex", tables.latex)):
            text = "\n".join(map(form, found)).encode()
            write_whole(Path(out, f"table-{name}{ending}"), lambda file, text=text: file.write(text))
    for number, found in figures.items():
        for k, drawn in enumerate(found, 1):  # the title says of which data a figure is
            save(Path(out, f"figure-{number}" + f"-{k}" * (k > 1)), drawn)
    count = 2 * sum(map(len, figures.values()))
    return [f"{2 * len(made)} files of tables and {count} of figures in {out}"]


def choose(what: str, text: str, known) -> list[str]:
    """Names out of "a,b" or "all"; ValueError for one that is not known."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if text and not names:
        raise ValueError(f"{what} is {text!r}, without a name; choose from {', '.join(known)} or all")
    if unknown := [name for name in names if name not in known and name != "all"]:
        raise ValueError(f"unknown {what} {unknown[0]!r}; choose from {', '.join(known)} or all")
    return list(known) if "all" in names else names


def collect(what: str, names: list[str], known, make) -> dict[str, list]:
    """What make(name) gives for each name; missing rows are a note where all were asked for, else an error."""
    made = {}
    for name in names:
        try:
            found = make(name)
            if not found:
                raise Missing(f"{what} {name} has no rows in these results")
            made[name] = found
        except Missing as missing:
            if names != list(known):
                raise
            tell(f"run.py report: skipped: {missing}")
    return made
