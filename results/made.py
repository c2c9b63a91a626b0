"""Rows, and the tables that commands make of them. See check.py.

    header, *lines = made_by("run.py report results/fashion-mini/grid --table plane")[0]
"""

import argparse
import importlib.util
import itertools
import json
import shlex
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from study import report, suspects  # noqa: E402
from study.rows import load_rows  # noqa: E402


def cells_of(line: str) -> list[str]:
    """The cells of a line of a Markdown table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


@cache
def rows_at(*paths: str) -> list[dict]:
    """The rows of result files or folders below the root, one per run."""
    return load_rows([ROOT / path for path in paths])


@cache
def lines_at(path: str) -> list[dict]:
    """Every line of a file of JSON lines below the root."""
    return [json.loads(line) for line in (ROOT / path).read_text(encoding="utf-8").splitlines()]


def grid_of(markdown: str) -> list[list[str]]:
    """The header and the lines of a Markdown table, whatever stands above it."""
    lines = [cells_of(line) for line in markdown.splitlines() if line.startswith("|")]
    return lines[:1] + lines[2:]


@cache
def made_by(command: str) -> list[list[list[str]]]:
    """The tables that a command prints, each a header and lines; none of a command that prints no table of rows."""
    words = shlex.split(command, comments=True)
    script = next((word for word in words if word.endswith(".py")), "")
    given = words[words.index(script) + 1:] if script else []
    if script == "run.py" and given[:1] == ["report"]:
        return reported(given[1:])
    out = next((ROOT / value for name, value in itertools.pairwise(given) if name in ("--out", "--table")), None)
    if script == "run.py" and given[:1] == ["suspects"] and out and out.is_file():
        lines = lines_at(str(out.relative_to(ROOT)))
        return [grid_of(make(lines)) for make in (suspects.suspects_table, suspects.round_table)]
    return scripted(script, out) if script.count("/") == 1 else []


def reported(words: list[str]) -> list[list[list[str]]]:
    """The tables of `run.py report` with these words, without its figures."""
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    asked = parser.parse_args(words)
    paths = [ROOT / path for path in asked.results]
    if not all(path.exists() for path in paths) or asked.figure and not asked.table:
        return []
    texts = report.report([str(path) for path in paths], asked.table, None, asked.seeds, "markdown", None)
    return [with_runs(grid_of(text)) for text in texts]


def with_runs(grid: list[list[str]]) -> list[list[str]]:
    """A table without the lines of what was not run, for which it has the paper's number alone."""
    place = grid[0].index("n") if "n" in grid[0] else None
    return [line for line in grid if place is None or line[place]]


def scripted(script: str, out: Path | None) -> list[list[list[str]]]:
    """The tables that a script's function `table` makes of its rows: --out, --table or results/NAME/NAME.jsonl."""
    path = ROOT / script
    rows = out or ROOT / "results" / path.stem / f"{path.stem}.jsonl"
    if not path.is_file() or not rows.is_file() or "\ndef table(" not in path.read_text(encoding="utf-8"):
        return []
    spec = importlib.util.spec_from_file_location(f"checked_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return [grid_of(part) for part in module.table(lines_at(str(rows.relative_to(ROOT)))).split("\n\n")]
    except KeyError:  # rows of another kind, which this page's own table is made of
        return []
