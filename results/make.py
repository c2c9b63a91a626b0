"""Write the tables of every README.md from the stored rows.

    python results/make.py                     # rewrite the pages
    python results/make.py README.md           # this page alone
    python results/make.py --check             # change nothing; exit 1 where a page is not what its rows give

A table stands on a page between a marker and an end, and what is between them is written anew:

    <!-- table: product results/fashion-mini/grid against=rem-plus columns=product,seeds,minus -->
    <!-- end -->

A marker has a kind (a function of KINDS says what its table shows), files or folders of rows, and options. A folder
stands for all *.jsonl below it; `results/x:rem,npo` takes these methods alone; of one run in several places the last
counts. An option with the name of a field of the rows chooses rows: `task=poison seed=0,1` (a comma
before a space is part of a value). More options of all kinds:

    by=method,n      a line for each of these together; `variant` is the method with the settings that are not usual
    names="a: b; c: d"   what stands in the table in place of a and c
    note=no          no line with seeds, versions and processors below the table
    open=tried       a row for each entry of this list in the rows
    last=seed,epoch  of rows with the same values of these fields the last one counts

A score is a field (`healed`, `before.misled`, `points.3.healed`) or two of them with `*`, `-` or `/` between; in
percent, or as it is with `#`, and the decimals: `healed%1`, `seconds#2`. A mistake in a marker is one line, exit 2.
"""

import argparse
import json
import math
import re
import shlex
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, stdev

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from experiment.methods import METHODS, reads_forget, reads_setting  # noqa: E402
from experiment.settings import EVERY_TASK, resolve  # noqa: E402
from metrics import mean_sem  # noqa: E402
from results.claims.statements import claims  # noqa: E402
from study.rows import SWEPT, etd_alone, latest, load_rows, pick, sweep, without_extra_curves  # noqa: E402
from study.stats import learnt, mean_of_seeds, minus  # noqa: E402
from study.tables import PAPER, called  # noqa: E402

BEGIN = re.compile(r"<!-- table: (.*) -->")
END = "<!-- end -->"
UNIT = re.compile(r"[%#]\d?")  # behind a score
OURS = ("reach", "stop", "disbelieved", "farther")  # the four changes of REM+
OF_ALL = {"by", "names", "note", "open", "last"}
COLUMNS = {  # of the kind product
    "cells": "mean in each task and rate", "tasks": "mean in each task", "healed": "over seeds",
    "utility": "over seeds", "product": "or another score, over seeds", "seeds": "seeds × cells",
    "minus": "less against, in the same cells", "pairs": "seeds × cells of minus", "misled": "of runs of poison",
    "learnt": "of the untouched network", "best": "at the best alpha of each cell",
    "paper": "of Table 4, or 5 for a ViT"}
HEADS = {"healed": "Healed", "utility": "Utility"}
OPERATIONS = {"*": lambda a, b: a * b, "/": lambda a, b: a / b if b else 0.0, "-": lambda a, b: a - b}


# --- Pages ------------------------------------------------------------------------------------------------------------


def pages() -> list[Path]:
    """Every README.md at the root, in a room and below results/."""
    return sorted({ROOT / "README.md", *ROOT.glob("[a-z]*/README.md"), *ROOT.glob("results/**/README.md")})


def rewritten(text: str) -> str:
    """A page with its tables made anew; ValueError, with the number of the line, for a marker that makes none."""
    lines, opened = [], 0
    for number, line in enumerate(text.splitlines(), 1):
        marker = BEGIN.fullmatch(line)
        if line.strip() == END:
            if not opened:
                raise ValueError(f"line {number}: an end without a table above it; remove it")
            opened = 0
        elif opened and marker:
            raise ValueError(f"line {opened}: the table is not closed before line {number}; put {END} below it")
        elif line.startswith("<!-- table") and not marker:
            raise ValueError(f"line {number}: {line!r} is no marker; write <!-- table: KIND PATH ... -->")
        if not opened:
            lines.append(line)
        if marker:
            opened = number
            try:
                lines += ["", *table_of(marker[1]), ""]
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    if opened:
        raise ValueError(f"line {opened}: the table is not closed; put {END} below it")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Marker:
    """What a marker asks for: its kind, rows that its filters leave, and the other options."""

    kind: str
    rows: list[dict]
    options: dict[str, str]
    chosen: dict[str, list[str]]  # filters, in the order given

    def words(self, name: str, default: str = "") -> list[str]:
        """An option's values, separated by commas."""
        return [word.strip() for word in self.options.get(name, default).split(",") if word.strip()]

    def need(self, name: str) -> str:
        """An option without a default; ValueError where it is not given."""
        if name not in self.options:
            raise ValueError(f"a table of the kind {self.kind} needs {name}=...")
        return self.options[name]

    def scores(self) -> list[tuple[str, str]]:
        """Head and scores of each column of `show`; ValueError for a score that no row has."""
        items = [item.rpartition(":")[::2] for item in self.need("show").split(",")]
        for score in (score for _, item in items for score in re.split("[+>]", item)):
            if all(value_of(row, UNIT.sub("", score)) is None for row in self.rows):
                raise ValueError(f"no row has a score {score!r}; a row has {', '.join(self.rows[0])}")
        heads = [label or UNIT.sub("", item).replace("+", " / ").replace(">", " -> ") for label, item in items]
        return [(HEADS.get(head, head), item) for head, (_, item) in zip(heads, items, strict=True)]

    def places(self, *keys: str) -> list[tuple[str, ...]]:
        """The values of these fields that the rows have together: as chosen, numbers ascending, else as they appear."""
        found = list(dict.fromkeys(tuple(text_of(field(row, key)) for key in keys) for row in self.rows))
        seen = {key: list(dict.fromkeys(place[k] for place in found)) for k, key in enumerate(keys)}
        return sorted(found, key=lambda place: [rank(value, self.chosen.get(key) or seen[key])
                                                for key, value in zip(keys, place, strict=True)])


def table_of(text: str) -> list[str]:
    """The lines of a table in Markdown, with a line on its rows below it."""
    marker = parsed(text)
    header, lines = KINDS[marker.kind][0](marker)
    pairs = [pair.split(": ", 1) for pair in marker.options.get("names", "").split("; ") if pair]
    if odd := [pair[0] for pair in pairs if len(pair) != 2]:
        raise ValueError(f"names has {odd[0]!r}; write \"old: new; old: new\"")
    names = dict(pairs)
    names |= {f"minus {old}": f"minus {new}" for old, new in names.items() if f"minus {old}" in header}
    if unused := set(names) - {cell for line in (header, *lines) for cell in line}:
        raise ValueError(f"names has {sorted(unused)[0]!r}, which is not in the table")
    grid = [[names.get(cell, cell) for cell in line] for line in (header, *lines)]
    made = ["| " + " | ".join(line) + " |" for line in grid]
    made.insert(1, "|---" * len(header) + "|")
    note = note_on(marker.rows)
    return made + ["", note] if note and marker.options.get("note") != "no" else made


def parsed(text: str) -> Marker:
    """A marker's text read, with its rows; ValueError for what is not known or names no rows."""
    try:
        kind, *words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{text!r} does not parse ({error})") from error
    if kind not in KINDS:
        raise ValueError(f"unknown kind of table {kind!r}; choose from {', '.join(KINDS)}")
    given = dict(word.split("=", 1) for word in words if "=" in word)
    rows = rows_at(tuple(word for word in words if "=" not in word))
    if "open" in given:
        rows = [{**row, **entry} for row in rows for entry in row.get(given["open"]) or []]
    if "last" in given:
        rows = list({tuple(field(row, key) for key in given["last"].split(",")): row for row in rows}.values())
    known = OF_ALL | KINDS[kind][1]
    chosen = {key: re.split(",(?! )", value) for key, value in given.items() if key not in known}
    for key, values in chosen.items():
        if not any(key in row for row in rows):
            options = ", ".join(sorted(known))
            raise ValueError(f"{key!r} is neither an option of {kind} ({options}) nor a field of the rows")
        if lacking := set(values) - {text_of(row.get(key)) for row in rows}:
            raise ValueError(f"no row has {key}={sorted(lacking)[0]}")
        rows = [row for row in rows if text_of(row.get(key)) in values]
    for key in {*given.get("by", "").split(","), *given.get("across", "").split(",")} - {""}:
        if not (there := [row for row in rows if key.partition(".")[0] in row]):
            raise ValueError(f"no row has the field {key!r}")
        rows = there  # a file may have lines of two kinds
    if not rows:
        raise ValueError(f"no rows are left of {text!r}")
    return Marker(kind, rows, {key: value for key, value in given.items() if key in known}, chosen)


# --- Rows -------------------------------------------------------------------------------------------------------------


@cache
def rows_at(sources: tuple[str, ...]) -> list[dict]:
    """Rows of files and folders; those of methods are one per run, ended well, and have a `variant`."""
    if not sources:
        raise ValueError("the marker names no file or folder of rows")
    found, raw = [], False
    for source in sources:
        place, _, methods = source.partition(":")
        path = ROOT / place
        if not path.exists():
            raise ValueError(f"no file or folder {place}")
        files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
        lines = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
        if not lines:
            raise ValueError(f"no rows in {place}")
        raw = raw or "method" not in lines[0]
        part = lines if raw else load_rows([path])
        wanted = methods.split(",") if methods else None
        if lacking := set(wanted or ()) - {row.get("method") for row in part}:
            raise ValueError(f"{place} has no row of {sorted(lacking)[0]}")
        found += [row for row in part if wanted is None or row["method"] in wanted]
    return found if raw else with_variants(pick(etd_alone(latest(found))))


def with_variants(rows: list[dict]) -> list[dict]:
    """Rows with `variant`: the method and, as typed, its settings that are not usual.

    Those are named that differ from the preset of the row's data and network: the four changes of REM+ always, others
    where the rows of a method have several values.
    """
    values = {}
    for row in rows:
        for name in SWEPT:
            values.setdefault((row["method"], name), set()).add(row[name])
    found = []
    for row in rows:
        usual = vars(resolve({"dataset": row["dataset"], "arch": row["arch"]}))
        odd = [name for name in SWEPT if row[name] != usual[name] and reads_setting(name, {**row, "method": row["ran"]})
               and (name in OURS or len(values[row["method"], name]) > 1)]
        words = [f"--{name.replace('_', '-')} {text_of(row[name])}" for name in odd]
        found.append({**row, "variant": " ".join([called(row["method"], row["etd"]), *words])})
    return found


def having(rows: list[dict], keys: list[str], place: tuple[str, ...]) -> list[dict]:
    """Rows whose fields have these values."""
    return [row for row in rows if all(text_of(field(row, key)) == v for key, v in zip(keys, place, strict=True))]


def field(row: dict, name: str):
    """A field, an entry of one (`before.misled`, `points.3.healed`); ValueError where the row has none."""
    if name == "method" and "variant" in row:
        return called(row["method"], row["etd"])
    value = row
    for part in [name] if name in row else name.split("."):
        try:
            value = value[int(part) if isinstance(value, list) else part]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"a row has no field {name!r}; it has {', '.join(row)}") from error
    return value


def value_of(row: dict, score: str) -> float | None:
    """A score of a row: a field, or two with an operation between; None where the row lacks one."""
    for sign, operation in OPERATIONS.items():
        if sign in score:
            parts = [value_of(row, part) for part in score.split(sign, 1)]
            return None if None in parts else operation(*parts)
    if score == "product" and "product" not in row:
        return value_of(row, "healed*utility")
    try:
        return field(row, score)
    except ValueError:
        return None


def scores_of(rows: list[dict], score: str) -> list[float]:
    """A score of every row, in percent; ValueError for a row without it."""
    found = [value_of(row, score) for row in rows]
    if None in found:
        raise ValueError(f"a row has no score {score!r}; it has {', '.join(rows[found.index(None)])}")
    return [100 * value for value in found]


def text_of(value) -> str:
    """A field as it is typed in a marker and stands in a table."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:.10g}" if isinstance(value, int | float) else str(value)


def rank(value: str, order: list[str]) -> tuple:
    """Where a value stands in its column: tasks in the paper's order, numbers ascending, others in the order given."""
    if value in EVERY_TASK:
        return 0, EVERY_TASK.index(value)
    try:
        return 0, float(value)
    except ValueError:
        return 1, order.index(value)


def note_on(rows: list[dict]) -> str:
    """A line on rows: seeds, versions, processors; empty where they name none."""
    seeds = sorted({row["seed"] for row in rows if "seed" in row})
    versions = sorted({row["version"] for row in rows if row.get("version")})
    cpus = sorted({re.sub(r"\(R\)| Processor", "", row["cpu"]) for row in rows if row.get("cpu")})
    span = ", ".join(map(str, seeds))
    if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1:
        span = f"{seeds[0]} to {seeds[-1]}"
    parts = [f"{name}{'s' * (len(found) > 1)} {text}" for name, found, text in (
        ("seed", seeds, span), ("version", versions, ", ".join(versions))) if found]
    return f"<sub>{'; '.join([*parts, *cpus])}</sub>" if parts or cpus else ""


# --- Numbers ----------------------------------------------------------------------------------------------------------


def shown(mean: float, error: float | None = None, digits: int = 1, sign: bool = False) -> str:
    """A mean, and its error where there is one."""
    text = f"{mean:{'+' * sign}.{digits}f}"
    text = text if float(text) else text.replace("-", "+" * sign)
    return text if error is None else f"{text} ± {error:.{digits}f}"


def average(rows: list[dict], score: str, over: str = "") -> str:
    """Mean of a score over rows, in its unit; ± SEM over the values of `over` where that is given; empty of none."""
    name, unit, digits = re.fullmatch(r"(.*?)(?:([%#])(\d?))?", score).groups()
    values = {}
    for row in rows:
        if (value := value_of(row, name)) is not None:
            values.setdefault(text_of(field(row, over)) if over else "", []).append(value)
    if not values:
        return ""
    factor, means = 1 if unit == "#" else 100, [fmean(part) for part in values.values()]
    mean, error = mean_sem(means) if over else (fmean(values[""]), None)
    return shown(factor * mean, None if error is None else factor * error, int(digits or 0))


def by_cell(rows: list[dict], score: str, cell: list[str], over: list[str]) -> dict[tuple, float]:
    """(cell, discovery rate, unit) -> score; the unit is what counts as independent, such as the seed.

    The rate is None where rows have none, or a method reads no D_f: there its rates are one network. ValueError where
    other rows differ in one cell.
    """
    found, alike = {}, set()
    for row in rows:
        idle = row.get("method") in METHODS and not reads_forget(row["method"])
        place, unit = (tuple(text_of(field(row, name)) for name in names) for names in (cell, over))
        key = place, None if idle else row.get("discovery"), unit
        alike |= {key} if idle else set()
        if (value := value_of(row, score)) is not None:
            found.setdefault(key, []).append(value)
    if rows and not found:
        raise ValueError(f"no row has a score {score!r}; rows have {', '.join(rows[0])}")
    for key, values in found.items():
        if len(set(values)) > 1 and key not in alike:
            raise ValueError(f"{len(values)} rows differ in one cell {key}; tell them apart by by= or a filter")
    return {key: fmean(values) for key, values in found.items()}


def over_units(values: dict[tuple, float], sign: bool = False) -> tuple[str, str]:
    """Mean ± SEM over the units of each unit's mean over the cells that all have, in percent; units × cells."""
    mean, count = mean_of_seeds(values)
    return (shown(*mean, sign=sign), count) if mean else ("", "")


def counted(over: list[str]) -> str:
    """The head of a column of numbers of units and cells."""
    return "seeds × cells" if over == ["seed"] else f"({', '.join(over)}) × cells"


# --- Kinds of tables --------------------------------------------------------------------------------------------------


def product(marker: Marker) -> tuple[list[str], list[list[str]]]:
    """A line per method or variant, best first: its score over seeds, and less that of `against` in the same cells.

    Options: columns: some of COLUMNS; against; score (product); cell: what besides the discovery rate tells cells apart
    (task); over: what counts as independent (seed). An empty column is left out.
    """
    by, score = marker.words("by", "method"), marker.options.get("score", "product")
    cell, over = marker.words("cell", "task"), marker.words("over", "seed")
    columns, against = marker.words("columns", "product,seeds,minus"), marker.options.get("against")
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise ValueError(f"unknown column {unknown[0]!r}; choose from {', '.join(COLUMNS)}")
    parts, best = compared(marker.rows, by)
    values = {place: by_cell(part, score, cell, over) for place, part in parts.items()}
    if against and (against,) not in parts:
        raise ValueError(f"against={against} is no line of the table; choose from {', '.join(map(' '.join, parts))}")
    cells, tasks = (marker.places(*keys) if name in columns else []
                    for name, keys in (("cells", ["task", "discovery"]), ("tasks", ["task"])))

    def texts(name: str, place: tuple[str, ...]) -> list[str]:
        part, mine = parts[place], values[place]
        if name == "cells":
            return [average(having(part, ["task", "discovery"], cell), score) for cell in cells]
        if name == "tasks":
            return [over_units({key: value for key, value in mine.items() if key[0] == task})[0] for task in tasks]
        if name in ("product", "seeds"):
            return [over_units(mine)[name == "seeds"]]
        if name in ("minus", "pairs"):
            less = minus(mine, values[(against,)]) if against and place != (against,) else {}
            return [over_units(less)[name == "pairs"]]
        if name == "misled":
            return [average([row for row in part if row.get("misled") is not None], "misled%1", over[0])]
        if name == "learnt":
            return [learnt(part) or ""]
        if name == "best":
            return [over_units(by_cell(best.get(place, []), score, cell, over))[0]]
        return [of_paper(part[0])] if name == "paper" else [over_units(by_cell(part, name, cell, over))[0]]

    heads = {"cells": [" ".join(cell) for cell in cells], "tasks": [task for (task,) in tasks],
             "minus": [f"minus {against}"], "product": [HEADS.get(score, score)], "seeds": [counted(over)],
             "best": ["best per cell"]}
    header = [*by, *(head for name in columns for head in heads.get(name, [HEADS.get(name, name)]))]
    places = sorted(parts, key=lambda place: -fmean(values[place].values()))
    lines = [[*place, *(text for name in columns for text in texts(name, place))] for place in places]
    full = [k for k in range(len(header)) if k < len(by) or any(line[k] for line in lines)]
    return [header[k] for k in full], [[line[k] for k in full] for line in lines]


def compared(rows: list[dict], by: list[str]) -> tuple[dict, dict]:
    """Rows by line, of a method with several alphas those that it is compared at; and those that are best per cell."""
    kept, best = rows, []
    if by == ["method"] and "variant" in rows[0]:
        swept = sweep(without_extra_curves(rows))
        kept, best = ([row for row in swept if row[mark]] for mark in ("kept", "best"))
    found = {}, {}
    for group, part in zip(found, (kept, best), strict=True):
        for row in part:
            group.setdefault(tuple(text_of(field(row, key)) for key in by), []).append(row)
    return found


def of_paper(row: dict) -> str:
    """The paper's product of a method over its data and cells, of Table 4, or of Table 5 for a ViT."""
    lines = PAPER["tables"]["4" if row["arch"] == "resnet9" else "5"]["rows"]
    wanted = tuple(row[key] for key in ("method", "etd", "capacity"))
    return "".join(f"{line['product'][0]:.1f}" for line in lines
                   if tuple(line[key] for key in ("method", "etd", "capacity")) == wanted)


def means(marker: Marker) -> tuple[list[str], list[list[str]]]:
    """Means of scores over the rows of each line.

    Options: show: scores, a column each, with a name before `:`; `+` joins several by / and `>` by ->; across: fields
    for each value of which there is a column of the scores; sem: ± SEM over the values of this field; all: over all
    rows, too, in a last column or, where there is no across, in a line; count: the head of a column of numbers of rows.
    """
    by, across, over = marker.words("by", "method"), marker.words("across"), marker.options.get("sem", "")
    items = marker.scores()
    columns = [tuple(place) for place in marker.places(*across)] if across else [()]

    def cells(part: list[dict]) -> list[str]:
        groups = [having(part, across, column)
                  for column in columns]
        groups += [part] if across and "all" in marker.options else []
        return [joined(group, item, over) for group in groups for _, item in items]

    def joined(part: list[dict], item: str, over: str) -> str:
        texts = [re.split(r"\+", side) for side in item.split(">")]
        sides = [[average(part, score, over) for score in side] for side in texts]
        return " -> ".join(" / ".join(side) for side in sides) if part and any(map(any, sides)) else ""

    lines, name = [], marker.options.get("count")
    for place in marker.places(*by):
        part = having(marker.rows, by, place)
        lines.append([*place, *[str(len(part))] * bool(name), *cells(part)])
    if "all" in marker.options and not across:
        lines.append(["all", *[""] * (len(by) - 1), *[str(len(marker.rows))] * bool(name), *cells(marker.rows)])
    labels = [label for label, _ in items]
    heads = [", ".join(filter(None, (" ".join(column), label if len(items) > 1 or not across else "")))
             for column in columns for label in labels]
    heads += ["all"] * (len(items) if across and "all" in marker.options else 0)
    return [*by, *[name] * bool(name), *heads], lines


def pairs(marker: Marker) -> tuple[list[str], list[list[str]]]:
    """Two values of a field, such as two methods, in the same cells and seeds: both means, and the paired difference.

    Options: of: the field (method); first, less: its two values; score (product); by: a line each (task); all: a last
    line over all; cell, over: as in product.
    """
    by, of = marker.words("by", "task"), marker.options.get("of", "method")
    score = marker.options.get("score", "product")
    cell, over = marker.words("cell", "task"), marker.words("over", "seed")
    sides = marker.need("first"), marker.need("less")
    lines = []
    for place in [*marker.places(*by), *[None] * ("all" in marker.options)]:
        part = marker.rows if place is None else having(marker.rows, by, place)
        both = [by_cell([row for row in part if text_of(field(row, of)) == side], score, cell, over) for side in sides]
        if not all(both):
            continue
        shared = [{key: v for key, v in mine.items() if minus({key: v}, other)} for mine, other in (both, both[::-1])]
        less, count = over_units(minus(*both), sign=True)
        label = ["all", *[""] * (len(by) - 1)] if place is None else [*place]
        lines.append([*label, *(over_units(mine)[0] for mine in shared), less, count])
    if not lines:
        raise ValueError(f"no cell has {of} {sides[0]} and {sides[1]}")
    return [*by, *sides, "difference", counted(over)], lines


def each(marker: Marker) -> tuple[list[str], list[list[str]]]:
    """Every seed's score in a line, and their mean. Options: by; show: scores with a name before `:`."""
    by, items = marker.words("by", "method"), marker.scores()
    lines = []
    for place in marker.places(*by):
        part = having(marker.rows, by, place)
        part.sort(key=lambda row: row["seed"])
        cells = []
        for _, item in items:
            values = scores_of(part, item)
            cells += [" / ".join(f"{v:.0f}" for v in values), f"{fmean(values):.1f}"]
        lines.append([*place, *cells])
    return [*by, *(text for head, _ in items for text in (f"{head}, each seed", "mean"))], lines


def spread(marker: Marker) -> tuple[list[str], list[list[str]]]:
    """A line per score: mean, SD, least and most over all rows, in percent. Options: show: scores, `name:score`."""
    lines = []
    for label, item in marker.scores():
        values = scores_of(marker.rows, item)
        lines.append([label, *(f"{of(values):.1f}" for of in (fmean, stdev, min, max))])
    return [f"over {len(marker.rows)} runs", "mean", "SD", "least", "most"], lines


def growth(marker: Marker) -> tuple[list[str], list[list[str]]]:
    """Scores while one thing grows: their values, and the slope of the logarithms between the two largest (1: linear).

    Options: by; along: the field that grows; x: its size as a number; show: as in means.
    """
    by, along, x = marker.words("by"), marker.need("along"), marker.options.get("x", "")
    items, lines = marker.scores(), []
    for place in marker.places(*by):
        part = having(marker.rows, by, place)
        part.sort(key=lambda row: row[x or along])
        cells = [" / ".join(text_of(row[along]) for row in part)]
        for _, item in items:
            values = scores_of(part, UNIT.sub("", item))[-2:]
            sizes = [row[x or along] for row in part][-2:]
            slope = math.log(values[1] / values[0]) / math.log(sizes[1] / sizes[0]) if len(part) > 1 else math.nan
            cells += [" / ".join(average([row], item) for row in part), shown(slope, digits=2)]
        lines.append([*place, *cells])
    heads = [text for label, _ in items for text in (label, "slope")]
    return [*by, along, *heads], lines


KINDS = {  # name -> its function, its options
    "product": (product, {"columns", "against", "score", "cell", "over"}),
    "means": (means, {"show", "across", "sem", "all", "count"}),
    "pairs": (pairs, {"of", "first", "less", "score", "all", "cell", "over"}),
    "each": (each, {"show"}),
    "spread": (spread, {"show"}),
    "growth": (growth, {"along", "x", "show"}),
    "claims": (claims, {"show"}),
}


# --- The command ------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Rewrite or check the pages: 0; 1 where --check finds a page that is not what its rows give; 2 for a mistake."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pages", nargs="*", type=Path, help="these pages alone (default: every README.md)")
    parser.add_argument("--check", action="store_true", help="write nothing, and say what would change")
    asked, changed = parser.parse_args(argv), 0
    for page in asked.pages or pages():
        name = page.relative_to(ROOT) if page.is_relative_to(ROOT) else page
        try:
            text = page.read_text(encoding="utf-8")
            new = rewritten(text)
        except (OSError, ValueError) as error:
            print(f"results/make.py: {name}: {error}", file=sys.stderr)
            return 2
        if new == text:
            continue
        changed += 1
        old, made = text.splitlines(), new.splitlines()
        first = next(k for k in range(max(len(old), len(made))) if old[k : k + 1] != made[k : k + 1])
        if asked.check:
            print(f"{name}, line {first + 1}: found {''.join(old[first : first + 1])!r}, "
                  f"the rows give {''.join(made[first : first + 1])!r}; run python results/make.py")
        else:
            page.write_text(new, encoding="utf-8")
            print(f"{name} written")
    return int(asked.check and changed > 0)


if __name__ == "__main__":
    sys.exit(main())
