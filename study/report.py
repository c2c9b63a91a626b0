"""Tables and figures of the paper from result files alone, its numbers beside ours (Tables 1, 2, 4-9; Figs 1, 3-11).

    python run.py report results/fashion-mini
    python run.py report results --table all --figure all --out report
    python run.py report runs/cells.jsonl --table 4,cells --format latex --seeds 0
"""

import argparse
import csv
import hashlib
import io
import itertools
import os
import sys
from dataclasses import fields
from pathlib import Path

from experiment.console import Parser, tell
from experiment.files import check_folder, write_whole
from experiment.settings import Config
from study.canvas import import_figure, plain_text, save
from study.figures import DRAW, Missing, draw
from study.plan import parse_axis
from study.rows import load_rows
from study.tables import NAMES, Table, make_tables


# --- Formats ----------------------------------------------------------------------------------------------------------

def show(cell, digits: int = 2) -> str:
    """A cell as text, with so many decimals."""
    if isinstance(cell, tuple):
        return f"{cell[0]:.{digits}f}" + ("" if cell[1] is None else f" ± {cell[1]:.{digits}f}")
    return "" if cell is None or cell is False else "✓" if cell is True else str(cell)


def markdown(table: Table) -> str:
    """The table in Markdown, its columns aligned, title and caption above."""
    escape = str.maketrans({"\\": r"\\", "|": r"\|"})
    grid = [[show(cell, table.digits).translate(escape) for cell in row] for row in (table.header, *table.rows)]
    wide = [max(3, *map(len, column)) for column in zip(*grid, strict=True)]
    grid.insert(1, ["-" * width for width in wide])
    lines = ["| " + " | ".join(map(str.ljust, row, wide)) + " |" for row in grid]
    return "\n".join([f"**{table.title}.** {table.caption}", "", *lines, ""])


LATEX = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {c: f"${c}$" for c in "<>|"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$",
    "✓": r"$\checkmark$"})


def latex(table: Table) -> str:
    """The table in LaTeX; the tick needs amssymb."""
    cells = [[show(cell, table.digits).translate(LATEX) for cell in row] for row in (table.header, *table.rows)]
    grid = [" & ".join(row) + r" \\" for row in cells]
    begin = [r"\begin{table}", rf"\caption{{{f'{table.title}. {table.caption}'.translate(LATEX)}}}",
             rf"\begin{{tabular}}{{{'l' * len(table.header)}}}"]
    end = [r"\hline", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join([*begin, r"\hline", grid[0], r"\hline", *grid[1:], *end])


def as_csv(table: Table) -> str:
    """The table in CSV: a column of means has one of SEMs after it; the caption is in the other formats."""
    def spread(name, cell):
        if name not in table.stats:
            return [str(int(cell)) if isinstance(cell, bool) else show(cell)]
        pair = cell if isinstance(cell, tuple) else (cell, None)
        return [f"{value:.{table.digits}f}" if isinstance(value, float) else show(value) for value in pair]

    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(name for column in table.header for name in [column, f"{column} SEM"][: 1 + (column in table.stats)])
    for row in table.rows:
        out.writerow(value for name, cell in zip(table.header, row, strict=True) for value in spread(name, cell))
    return text.getvalue()


LONGEST = 200  # bytes of a file's name without its ending
FORMATS = {"markdown": (markdown, ".md"), "latex": (latex, ".tex"), "csv": (as_csv, ".csv")}


# --- Command line -----------------------------------------------------------------------------------------------------

def named(path: str) -> str:
    """A path that is not empty, as an unset variable of a shell is."""
    if not path:
        raise argparse.ArgumentTypeError("an empty name; name result files, or folders of them")
    return path


def add_arguments(p: Parser) -> None:
    """The flags; a wrong one is one line on stderr and exit code 2."""
    p.add_argument("results", nargs="+", type=named,
                   help="result files of run.py, or folders for every *.jsonl below them")
    p.add_argument("--table", help=f"tables, separated by commas: {', '.join(NAMES)} or all (default: mean)")
    p.add_argument("--figure", help=f"figures, separated by commas: {', '.join(DRAW)} or all; needs --out, matplotlib")
    p.add_argument("--seeds", "--seed", metavar="LIST", help="only rows of these, 0,1 or 0:4:1 (default: all)")
    p.add_argument("--format", help=f"of tables: {', '.join(FORMATS)} (default: markdown; with --out all of them)")
    p.add_argument("--out", help="folder to write to; figures are written as PNG and SVG")


def main(given: dict, argv: list[str]) -> int:
    """Run `run.py report`; returns the exit code: 0, or 2 for bad input (one line on stderr)."""
    try:
        print("\n".join(report(**given)), flush=True)
    except BrokenPipeError:  # its reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
    except (ValueError, OSError) as error:
        tell(f"run.py report: {error}")
        return 2
    return 0


def report(results: list[str], table: str | None, figure: str | None, seeds: str | None, format: str | None,
           out: str | None) -> list[str]:
    """Make all that was asked for, then write it; returns what to print: the tables, or with --out how many files."""
    if out == "":
        raise ValueError("--out is empty; name a folder")
    formats = choose("format", format or (",".join(FORMATS) if out else "markdown"), FORMATS)
    names = choose("table", table or ("" if figure else "mean"), NAMES)
    numbers = choose("figure", figure or "", DRAW)
    if numbers and not out:
        raise ValueError("figures are written to files; give a folder with --out")
    figure_class = import_figure() if numbers else None
    if out:
        check_folder(out)
    rows = load_rows(results) if seeds is None else of_seeds(load_rows(results), seeds)
    tables = collect("table", names, NAMES, lambda name: make_tables(name, rows, own=names == list(NAMES)))
    names = apart([table.name for table in tables])
    texts = [(name + FORMATS[f][1], FORMATS[f][0](table)) for name, table in zip(names, tables) for f in formats]
    if not out:
        return [text for _, text in texts]

    def drawn(number: str) -> list:
        with plain_text():
            return draw(number, rows, figure_class)

    figures = collect("figure", numbers, DRAW, drawn)
    for name, text in texts:
        write_whole(Path(out, name), lambda file, text=text: file.write(text.encode()))
    for name, (_, made) in zip(apart([name for name, _ in figures]), figures):
        save(out, name, made)
    return [f"{len(texts)} files of tables and {2 * len(figures)} of figures in {out}"]


def of_seeds(rows: list[dict], text: str) -> list[dict]:
    """The rows of the seeds in "0,1" or "0:4:1"; ValueError if one of them has none."""
    (field,) = (f for f in fields(Config) if f.name == "seed")
    wanted, found = parse_axis(field, text), {row["seed"] for row in rows}
    if missing := [seed for seed in wanted if seed not in found]:
        raise ValueError(f"no row has seed {missing[0]}; there are {', '.join(map(str, sorted(found)))}")
    return [row for row in rows if row["seed"] in wanted]


def apart(names: list[str]) -> list[str]:
    """File names of which no two are one where letters' case does not count, by a number behind the later ones.

    One that is too long for a file, of a folder of images far down, is cut, with a digest of the whole.
    """
    found = []
    for name in names:
        if len(name.encode()) > LONGEST:
            name = f"{name[:LONGEST // 4]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        taken = {other.lower() for other in found}
        free = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        found.append(next(each for each in free if each.lower() not in taken))
    return found


def choose(what: str, text: str, known) -> list[str]:
    """Names out of "a,b" or "all"; ValueError for one that is not known."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if text and not names:
        raise ValueError(f"{what} is {text!r}, without a name; choose from {', '.join(known)} or all")
    if unknown := [name for name in names if name not in known and name != "all"]:
        raise ValueError(f"unknown {what} {unknown[0]!r}; choose from {', '.join(known)} or all")
    return list(known) if "all" in names else names


def collect(what: str, names: list[str], known, make) -> list:
    """What make(name) gives for each name; missing rows are a note where all were asked for, else an error."""
    made = []
    for name in names:
        try:
            found = make(name)
            if not found:
                raise Missing(f"{what} {name} has no rows in these results")
            made += found
        except Missing as missing:
            if names != list(known):
                raise
            tell(f"run.py report: skipped: {missing}")
    return made
