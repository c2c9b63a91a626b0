"""Do the numbers in the READMEs follow from the rows? Every table is made again and compared with the page.

    python results/check.py                              # README.md and every README.md below results/
    python results/check.py results/lasting/README.md    # these pages alone

It prints a line per table and per sentence with figures that it compared, a line per mismatch (page, line, found,
expected) and a line for what it could not compare, and exits with 1 if anything differs, else with 0.

A table is made again in one of two ways:

- by a command that stands above it on its page: `run.py report RESULTS --table NAMES`, `run.py suspects --out FILE`,
  or a script with a function `table` (`benchmarks/scale.py`, `tests/spread.py --out FILE`). The page may leave columns
  out, but no line that has runs;
- by a function of expected.py or repairs.py (TABLES), which reads the labels of the lines and computes their cells.

No row may come from changed code that was not committed (its `git` ends with -dirty).

A figure in a sentence is found by the words around it (sentences.py, repairs.py). No sentence is asked for: where a
page does not have the words, a line says that there was nothing to compare. New rows take an edited table or sentence,
nothing else.

Not checked, because no rows hold them: what a page calls "no result file kept"; the paper's numbers in sentences, but
for a few; counts that are written as words ("in all nine cells"); ranges of what a figure shows; in README.md the table
of names of code, that of choices, and the seconds and epochs of the printed output; in results/README.md that of pages.
"""

import argparse
import itertools
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import repairs
from expected import TABLES
from made import ROOT, cells_of, grid_of, lines_at, made_by, rows_at
from sentences import FIGURES

MAKERS = TABLES | repairs.TABLES
SAID = FIGURES | repairs.FIGURES

MISSING = (ValueError, LookupError, TypeError, OSError)  # what rows that are not there, or not alike, bring about
# Leading columns that name a line rather than measure something.
LABELS = {"", "method", "ETD", "task", "score", "discovery", "round", "user", "images", "mode", "what grows", "of",
          "measured", "REM, at most", "seeds", "width", "task, discovery", "over runs", "network", "theta_o2 beside",
          "corrupted", "seed", "variant", "data", "treatment", "candidate", "what differs", "at most", "nine cells",
          "confusion, discovery", "trigger", "batch", "peak rate", "unlearning's", "epochs", "reach"}


# --- Pages ------------------------------------------------------------------------------------------------------------

@dataclass
class Shown:
    """A table as it stands on a page."""

    page: str  # path below the root
    heading: str
    line: int  # of the header, from 1
    header: list[str]
    commands: list[str]  # those above it on the page, the nearest last
    rows: list[tuple[int, list[str]]] = field(default_factory=list)  # (line, cells)


def tables_of(page: str) -> list[Shown]:
    """Every table of a page, with the heading and the commands above it."""
    found, commands, heading, fence, inside = [], [], "", None, False
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            fence = line[3:].strip() if fence is None else None
        elif fence is not None:
            commands += [line] if fence == "bash" else []
        elif line.startswith("|"):
            if not inside:
                found.append(Shown(page, heading, number, cells_of(line), list(commands)))
            elif not set(line) <= set("|-: "):
                found[-1].rows.append((number, cells_of(line)))
        else:
            heading = line.lstrip("# ") if line.startswith("#") else heading
            commands += re.findall(r"`(python [^`]*)`", line)
        inside = fence is None and line.startswith("|")
    return found


def remade(shown: Shown) -> list[list[str]] | None:
    """The lines that a shown table should have, in its columns; None where nothing makes it."""
    for command in reversed(shown.commands):
        for header, *lines in filter(None, made_by(command)):
            if header == shown.header:
                return lines
            if len(set(header)) == len(header) and set(shown.header) <= set(header):
                places = [header.index(name) for name in shown.header]
                return [[line[place] for place in places] for line in lines]
    make = MAKERS.get((shown.page, *shown.header[:2]))
    return make([cells for _, cells in shown.rows]) if make else None


# --- Comparing --------------------------------------------------------------------------------------------------------

@dataclass
class Report:
    """What was compared so far, printed as it comes."""

    cells: int = 0
    wrong: int = 0

    def compared(self, what: str, cells: int) -> None:
        """Say that so many cells or figures of something were compared."""
        self.cells += cells
        print(f"checked      {what}: {cells}")

    def differs(self, page: str, line: int, what: str, found: str, expected: str) -> None:
        """Say that a page has something else than the rows give."""
        self.wrong += 1
        print(f"DIFFERENT    {page}:{line}: {what}: found {found!r}, expected {expected!r}")


def labels_of(header: list[str], cells: list[str]) -> tuple:
    """The leading cells that name a line of a table."""
    return tuple(cell for _, cell in itertools.takewhile(lambda pair: pair[0] in LABELS, zip(header, cells)))


def check_table(shown: Shown, told: Report) -> None:
    """Compare a table with what the rows give: its lines, their order and every cell beside the labels."""
    what = f"{shown.page}:{shown.line} {shown.heading}: table of {shown.header[0] or 'no name'!r}"
    try:
        lines = remade(shown)
    except MISSING as error:
        told.differs(shown.page, shown.line, what, "a table", f"none: {error!r}")
        return
    if lines is None:
        print(f"not checked: {what}: no command above it prints it and no function here makes it")
        return
    wanted = {labels_of(shown.header, line): line for line in lines}
    have = {labels_of(shown.header, cells): (number, cells) for number, cells in shown.rows}
    count = compare_cells(shown, have, wanted, told)
    compare_lines(shown, have, wanted, told)
    told.compared(what, count)


def compare_cells(shown: Shown, have: dict, wanted: dict, told: Report) -> int:
    """Compare the cells of the lines shown; returns how many there were beside the labels."""
    count = 0
    for label, (number, cells) in have.items():
        if label not in wanted or len(cells) != len(wanted[label]):
            told.differs(shown.page, number, "a line", " | ".join(cells), " | ".join(wanted.get(label, ["none"])))
            continue
        for name, found, expected in list(zip(shown.header, cells, wanted[label], strict=True))[len(label):]:
            count += 1
            if found != expected:
                told.differs(shown.page, number, f"{' | '.join(label)}, {name}", found, expected)
    return count


def compare_lines(shown: Shown, have: dict, wanted: dict, told: Report) -> None:
    """Say which lines are missing, whether two are alike, and the first that stands in another place."""
    for label in [label for label in wanted if label not in have]:
        told.differs(shown.page, shown.line, "a line", "none", " | ".join(wanted[label]))
    if len(have) < len(shown.rows):
        told.differs(shown.page, shown.line, "lines", f"{len(shown.rows)}, some of them alike", str(len(wanted)))
    orders = [label for label in have if label in wanted], [label for label in wanted if label in have]
    for found, expected in zip(*orders, strict=True):
        if found != expected:
            told.differs(shown.page, have[found][0], "order of lines", " | ".join(found), " | ".join(expected))
            break


# A figure, with its SEM if it has one.
NUMBER = r"([-+]?\d(?:[\d.,]*\d)?(?: ± [\d.]*\d)?)"


def check_figures(page: str, told: Report) -> None:
    """Compare the figures in a page's sentences with what the rows give, wherever the page has the words."""
    text = (ROOT / page).read_text(encoding="utf-8")
    try:
        figures = SAID[page]() if page in SAID else ()
    except MISSING as error:
        told.differs(page, 1, "figures in sentences", "some", f"none: {error!r}")
        return
    for words, expected in figures:
        pattern = r"\s+".join(re.escape(word).replace(r"\{\}", NUMBER) for word in words.split())
        found = list(re.finditer(pattern.replace(" ± ", r"\s+±\s+"), text))
        if not found:
            print(f"not checked: {page}: it does not say {words!r}")
            continue
        for match in found:
            line = text.count("\n", 0, match.start()) + 1
            for own, right in zip(match.groups(), expected, strict=True):
                if right is not None and " ".join(own.split()) != right:
                    told.differs(page, line, words, " ".join(own.split()), right)
        told.compared(f"{page}:{line} {words!r}: figures", sum(right is not None for right in expected) * len(found))


def check_output(page: str, told: Report) -> None:
    """Compare the scores that the main README prints of its first command with the row file of that run."""
    text = (ROOT / page).read_text(encoding="utf-8")
    block = re.search(r"<!-- output -->\n(.*?)<!-- /output -->", text, re.DOTALL)
    rows = {row["method"]: row for row in rows_at("results/spread/seed0.jsonl")}
    first, count = text.count("\n", 0, block.start(1)) + 1 if block else 0, 0
    for number, line in enumerate(block[1].splitlines() if block else (), first):
        name, *cells = line.split() or [""]
        if name in rows and "epoch" not in cells:
            keys = ("healed", "healed_undiscovered", "utility", "product", "misled")  # older rows have no misled
            right = [f"{100 * rows[name][key]:.1f}" for key in keys if key in rows[name]]
            count += len(right)
            if cells[:len(right)] != right:
                told.differs(page, number, f"printed output, {name}", " ".join(cells[:-1]), " ".join(right))
    if block:
        told.compared(f"{page}:{first} printed output: cells", count)


def check_written(told: Report) -> None:
    """Compare the tables that the benchmarks wrote beside their rows (scale.md, growth.md) with what the rows give."""
    for path in sorted((ROOT / "results").rglob("*.md")):
        script = f"benchmarks/{path.stem}.py"
        if path.name != "README.md" and (ROOT / script).is_file():
            name = str(path.relative_to(ROOT))
            (own, *_), right = [grid_of(path.read_text(encoding="utf-8"))], made_by(f"python {script}")[0]
            for number, (mine, line) in enumerate(itertools.zip_longest(own, right, fillvalue=[])):
                if mine != line:
                    told.differs(name, number + 1 + (number > 0), "a line", " | ".join(mine), " | ".join(line))
            told.compared(f"{name}: cells", sum(map(len, right)))


def check_commits(told: Report) -> None:
    """Ask that no row comes from changed code that was not committed."""
    for path in sorted((ROOT / "results").rglob("*.jsonl")):
        name = str(path.relative_to(ROOT))
        rows = lines_at(name)
        for number, row in enumerate(rows, 1):
            if str(row.get("git")).endswith("-dirty"):
                told.differs(name, number, "commit", row["git"], "code that was committed")
        if made := sum(bool(row.get("git")) for row in rows):
            told.compared(f"{name}: commits", made)


def check(pages: list[str]) -> int:
    """Check these pages; returns how many cells, figures and lines differ."""
    told = Report()
    for page in pages:
        for shown in tables_of(page):
            check_table(shown, told)
        check_figures(page, told)
        check_output(page, told)
    if "README.md" in pages:
        check_written(told)
        check_commits(told)
    print(f"{told.cells} cells and figures compared, {told.wrong} different")
    return told.wrong


def main(argv: list[str] | None = None) -> int:
    """Check the pages asked for, or all; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pages", nargs="*", type=Path, help="Markdown files (default: README.md, results/**/README.md)")
    asked = parser.parse_args(argv).pages or [ROOT / "README.md", *sorted((ROOT / "results").rglob("README.md"))]
    return 1 if check([str(path.resolve().relative_to(ROOT)) for path in asked]) else 0


if __name__ == "__main__":
    sys.exit(main())
