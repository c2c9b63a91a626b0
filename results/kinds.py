"""The kinds of tables that make.py writes, on pandas: what a marker asks for, its rows, and a function for each kind.

    table_of("product results/fashion-mini/grid against=rem-plus columns=product,seeds,minus")     # lines of Markdown

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
percent, or as it is with `#`, and the decimals: `healed%1`, `seconds#2`.
"""

import json
import math
import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, stdev

import pandas as pd

from experiment.methods import METHODS, reads_forget, reads_setting
from experiment.settings import EVERY_TASK, resolve
from metrics import mean_sem
from results.claims.statements import claims
from study.rows import SWEPT, etd_alone, latest, load_rows, pick, sweep, without_extra_curves
from study.tables import ANY_RATE, PAPER, called, learnt, minus, over_seeds, paired

ROOT = Path(__file__).resolve().parent.parent
UNIT = re.compile(r"(.*?)(?:([%#])(\d?))?")  # a score, whether in percent, and its decimals
OURS = ("reach", "stop", "disbelieved", "farther")  # the four changes of REM+
OF_ALL = {"by", "names", "note", "open", "last"}
COLUMNS = {  # of the kind product
    "cells": "mean in each task and rate", "tasks": "mean in each task", "healed": "over seeds",
    "utility": "over seeds", "product": "over seeds", "seeds": "seeds × cells",
    "minus": "less against, in the same cells", "misled": "of runs of poison", "learnt": "of the untouched network",
    "best": "at the best alpha of each cell", "paper": "of Table 4, or 5 for a ViT"}
HEADS = {"healed": "Healed", "utility": "Utility"}
ONCE = {name for name in METHODS if not reads_forget(name)}  # whose network is the same at every discovery rate


# --- Markers ----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Marker:
    """What a marker asks for: its kind, rows that its filters leave, and the other options."""

    kind: str
    frame: pd.DataFrame
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
            numbers(self.frame, UNIT.fullmatch(score)[1])
        heads = [label or re.sub(r"[%#]\d?", "", item).replace("+", " / ").replace(">", " -> ")
                 for label, item in items]
        return [(HEADS.get(head, head), item) for head, (_, item) in zip(heads, items, strict=True)]

    def parts(self, by: list[str], frame: pd.DataFrame | None = None) -> dict[tuple[str, ...], pd.DataFrame]:
        """The rows by the values of these fields: as chosen, numbers ascending, else as they appear."""
        frame = self.frame if frame is None else frame
        order = [[*self.chosen.get(key, ()), *dict.fromkeys(texts(self.frame, key))] for key in by]
        found = dict(iter(frame.groupby([texts(frame, key) for key in by], sort=False)))
        return {place: found[place] for place in sorted(found, key=lambda place: [*map(rank, place, order)])}


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
    note = note_on(marker.frame)
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
    known = OF_ALL | KINDS[kind][1]
    options = {key: value for key, value in given.items() if key in known}
    chosen = {key: re.split(",(?! )", value) for key, value in given.items() if key not in known}
    frame = frame_at(tuple(word for word in words if "=" not in word), given.get("open"))
    if "last" in given:
        frame = frame.drop_duplicates(given["last"].split(","), keep="last")
    for key, values in chosen.items():
        if key not in frame:
            raise ValueError(f"{key!r} is neither an option of {kind} ({', '.join(sorted(known))}) nor a field of the rows")
        found = frame[key].map(text_of)
        if lacking := set(values) - set(found):
            raise ValueError(f"no row has {key}={sorted(lacking)[0]}")
        frame = frame[found.isin(values)]
    for key in [key for name in ("by", "across") for key in given.get(name, "").split(",") if key]:
        frame = frame[texts(frame, key) != text_of(math.nan)]  # a file may have lines of two kinds
    if frame.empty:
        raise ValueError(f"no rows are left of {text!r}")
    return Marker(kind, frame, options, chosen)


# --- Rows -------------------------------------------------------------------------------------------------------------

@cache
def frame_at(sources: tuple[str, ...], opened: str | None = None) -> pd.DataFrame:
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
    found = found if raw else with_variants(pick(etd_alone(latest(found))))
    return frame_of(found if opened is None else [{**row, **entry} for row in found for entry in row.get(opened) or []])


def frame_of(rows: list[dict]) -> pd.DataFrame:
    """A frame with a column for each field, also of those within others (`before.misled`, `points.3.healed`), and the
    row itself as `row`. What a row lacks is NaN; an empty field is None."""
    return pd.DataFrame([{**flat(row), "row": row} for row in rows], dtype=object)


def flat(value, name: str = "") -> dict:
    """The fields of a row by name, with those of fields that are objects or lists."""
    if not isinstance(value, dict | list):
        return {name: value}
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    return {key: leaf for part, entry in entries for key, leaf in flat(entry, f"{name}.{part}".lstrip(".")).items()}


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
        name = called(row["method"], row["etd"])
        found.append({**row, "called": name, "variant": " ".join([name, *words])})
    return found


def text_of(value) -> str:
    """A field as it is typed in a marker and stands in a table."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:.10g}" if isinstance(value, int | float) else str(value)


def texts(frame: pd.DataFrame, key: str) -> pd.Series:
    """A field of every row as text; a method with its training. ValueError where no row has the field."""
    name = "called" if key == "method" and "called" in frame else key
    if name not in frame:
        raise ValueError(f"no row has the field {key!r}; a row has {', '.join(frame)}")
    return frame[name].map(text_of)


def numbers(frame: pd.DataFrame, score: str) -> pd.Series:
    """A score of every row: a field, or two with an operation between; ValueError where no row has one."""
    for sign, operation in (("*", pd.Series.mul), ("/", over), ("-", pd.Series.sub)):
        if sign in score:
            return operation(*(numbers(frame, part) for part in score.split(sign, 1)))
    if score == "product" and score not in frame:
        return numbers(frame, "healed*utility")
    if score not in frame or frame[score].isna().all():
        raise ValueError(f"no row has a score {score!r}; a row has {', '.join(frame)}")
    return pd.to_numeric(frame[score])


def over(mine: pd.Series, other: pd.Series) -> pd.Series:
    """The ratio, 0 where the other is 0."""
    return (mine / other).where(other != 0, 0.0)


def rank(value: str, order: list[str]) -> tuple:
    """Where a value stands in its column: tasks in the paper's order, numbers ascending, others in the order given."""
    if value in EVERY_TASK:
        return 0, EVERY_TASK.index(value)
    try:
        return 0, float(value)
    except ValueError:
        return 1, order.index(value)


def note_on(frame: pd.DataFrame) -> str:
    """A line on rows: seeds, versions, processors; empty where they name none."""
    seeds, versions, cpus = (sorted(set(frame[name].dropna())) if name in frame else []
                             for name in ("seed", "version", "cpu"))
    span = ", ".join(map(str, seeds))
    if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1:
        span = f"{seeds[0]} to {seeds[-1]}"
    parts = [f"{name}{'s' * (len(found) > 1)} {text}" for name, found, text in (
        ("seed", seeds, span), ("version", versions, ", ".join(versions))) if found]
    cpus = sorted({re.sub(r"\(R\)| Processor", "", cpu) for cpu in cpus})
    return f"<sub>{'; '.join([*parts, *cpus])}</sub>" if parts or cpus else ""


# --- Numbers ----------------------------------------------------------------------------------------------------------

def shown(mean: float, error: float | None = None, digits: int = 1, sign: bool = False) -> str:
    """A mean, and its error where there is one."""
    text = f"{mean:{'+' * sign}.{digits}f}"
    text = text if float(text) else text.replace("-", "+" * sign)
    return text if error is None else f"{text} ± {error:.{digits}f}"


def average(frame: pd.DataFrame, score: str, unit: str = "") -> str:
    """Mean of a score over rows; ± SEM over the values of the field `unit` where that is given; empty of none."""
    name, percent, digits = UNIT.fullmatch(score).groups()
    values = numbers(frame, name).dropna() if len(frame) else frame
    if values.empty:
        return ""
    means = values.groupby(texts(frame, unit)).agg(fmean) if unit else [fmean(values)]
    factor = 1 if percent == "#" else 100
    return shown(*(value and factor * value for value in mean_sem(means)), int(digits or 0))


def by_cell(frame: pd.DataFrame, score: str, cell: list[str], unit: list[str]) -> pd.Series:
    """A score by cell, discovery rate and unit, which is what counts as independent, such as the seed.

    The rate is ANY_RATE where rows have none, or a method reads no D_f: there its rates are one network. ValueError
    where other rows differ in one cell.
    """
    once = frame["method"].isin(ONCE) if "method" in frame else pd.Series(False, frame.index)
    rate = frame["discovery"].mask(once, ANY_RATE) if "discovery" in frame else ANY_RATE
    keys = {key: texts(frame, key) for key in cell} | {"discovery": rate} | {key: texts(frame, key) for key in unit}
    values = pd.DataFrame({**keys, "value": numbers(frame, score)}).dropna(subset="value")
    found = values.groupby(list(keys))["value"]
    differ = values[~once].groupby(list(keys))["value"].nunique() > 1
    if differ.any():
        raise ValueError(f"rows differ in one cell {differ.idxmax()}; tell them apart by by= or a filter")
    return found.agg(fmean)


def over_units(values: pd.Series, unit: list[str], sign: bool = False) -> tuple[str, str]:
    """Mean ± SEM over the units of each unit's mean over the cells that all have, in percent; units × cells."""
    mean, count = over_seeds(values, unit)
    return (shown(*mean, sign=sign), count) if mean else ("", "")


def counted(unit: list[str]) -> str:
    """The head of a column of numbers of units and cells."""
    return "seeds × cells" if unit == ["seed"] else f"({', '.join(unit)}) × cells"


# --- Kinds of tables --------------------------------------------------------------------------------------------------

def product(marker: Marker) -> tuple[list[str], list[list[str]]]:
    """A line per method or variant, best first: its product over seeds, and less that of `against` in the same cells.

    Options: columns: some of COLUMNS; against; cell: what besides the discovery rate tells cells apart (task); over:
    what counts as independent (seed). An empty column is left out.
    """
    by, cell, unit = marker.words("by", "method"), marker.words("cell", "task"), marker.words("over", "seed")
    columns, against = marker.words("columns", "product,seeds,minus"), (marker.options.get("against"),)
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise ValueError(f"unknown column {unknown[0]!r}; choose from {', '.join(COLUMNS)}")
    parts, best = compared(marker, by)
    if against[0] and against not in parts:
        raise ValueError(f"against={against[0]} is no line of the table; choose from {', '.join(map(' '.join, parts))}")
    values = {place: by_cell(part, "product", cell, unit) for place, part in parts.items()}
    lines = []
    for place in sorted(parts, key=lambda place: -fmean(values[place])):
        part, mine, line = parts[place], values[place], dict(zip(by, place, strict=True))
        for name in columns:
            if name == "cells":
                runs = marker.parts(["task", "discovery"], part)
                line |= {" ".join(key): average(runs.get(key, part[:0]), "product%0")
                         for key in marker.parts(["task", "discovery"])}
            elif name == "tasks":
                line |= {key: over_units(mine[mine.index.get_level_values("task") == key], unit)[0]
                         for (key,) in marker.parts(["task"])}
            elif name == "product":
                line[name] = over_units(mine, unit)[0]
            elif name == "seeds":
                line[counted(unit)] = over_units(mine, unit)[1]
            elif name == "minus":
                less = minus(mine, values[against]) if against in parts and place != against else mine[:0]
                line[f"minus {against[0]}"] = over_units(less, unit)[0]
            elif name == "misled":
                line[name] = average(part, "misled%1", unit[0]) if "misled" in part else ""
            elif name == "learnt":
                line[name] = learnt(part.drop_duplicates(["task", "seed"], keep="last")) or ""
            elif name == "best":
                line["best per cell"] = over_units(by_cell(best[place], "product", cell, unit), unit)[0] if place in best else ""
            elif name == "paper":
                line[name] = of_paper(part.iloc[0])
            else:
                line[HEADS[name]] = over_units(by_cell(part, name, cell, unit), unit)[0]
        lines.append(line)
    header = [name for k, name in enumerate(lines[0]) if k < len(by) or any(line[name] for line in lines)]
    return header, [[line[name] for name in header] for line in lines]


def compared(marker: Marker, by: list[str]) -> tuple[dict, dict]:
    """Rows by line, of a method with several alphas those that it is compared at; and those that are best per cell."""
    if by != ["method"] or "variant" not in marker.frame:
        return marker.parts(by), {}
    swept = sweep(without_extra_curves(list(marker.frame["row"])))
    kept, best = (frame_of([row for row in swept if row[mark]]) for mark in ("kept", "best"))
    return marker.parts(by, kept), marker.parts(by, best) if len(best) else {}


def of_paper(row: pd.Series) -> str:
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
    by, across, unit = marker.words("by", "method"), marker.words("across"), marker.options.get("sem", "")
    items, name, every = marker.scores(), marker.options.get("count"), "all" in marker.options
    columns = list(marker.parts(across)) if across else []

    def joined(part: pd.DataFrame, item: str) -> str:
        sides = [[average(part, score, unit) for score in side.split("+")] for side in item.split(">")]
        return " -> ".join(" / ".join(side) for side in sides) if any(map(any, sides)) else ""

    def line(place: tuple[str, ...], part: pd.DataFrame) -> list[str]:
        found = marker.parts(across, part) if across else {}
        groups = [found.get(column, part[:0]) for column in columns] + [part] * (every or not across)
        return [*place, *[str(len(part))] * bool(name), *(joined(group, item) for group in groups for _, item in items)]

    lines = [line(place, part) for place, part in marker.parts(by).items()]
    if every and not across:
        lines.append(line(("all", *[""] * (len(by) - 1)), marker.frame))
    labels = [label for label, _ in items]
    heads = [", ".join([" ".join(column), label][:1 + (len(items) > 1)]) for column in columns for label in labels]
    heads += ["all"] * (len(items) * every) if across else labels
    return [*by, *[name] * bool(name), *heads], lines


def pairs(marker: Marker) -> tuple[list[str], list[list[str]]]:
    """Two values of a field, such as two methods, in the same cells and seeds: both means, and the paired difference.

    Options: of: the field (method); first, less: its two values; by: a line each (task); all: a last line over all;
    cell, over: as in product.
    """
    by, of = marker.words("by", "task"), marker.options.get("of", "method")
    cell, unit = marker.words("cell", "task"), marker.words("over", "seed")
    sides, lines, parts = (marker.need("first"), marker.need("less")), [], marker.parts(by)
    if "all" in marker.options:
        parts["all", *[""] * (len(by) - 1)] = marker.frame
    for place, part in parts.items():
        both = [by_cell(part[texts(part, of) == side], "product", cell, unit) for side in sides
                if side in set(texts(part, of))]
        if len(both) < 2:
            continue
        both = paired(*both)
        less, count = over_units(both[0] - both[1], unit, sign=True)
        lines.append([*place, *(over_units(mine, unit)[0] for mine in both), less, count])
    if not lines:
        raise ValueError(f"no cell has {of} {sides[0]} and {sides[1]}")
    return [*by, *sides, "difference", counted(unit)], lines


def each(marker: Marker) -> tuple[list[str], list[list[str]]]:
    """Every seed's score in a line, and their mean. Options: by; show: scores with a name before `:`."""
    by, items, lines = marker.words("by", "method"), marker.scores(), []
    for place, part in marker.parts(by).items():
        found = [100 * numbers(part.sort_values("seed", kind="stable"), score) for _, score in items]
        lines.append([*place, *(text for values in found
                                for text in (" / ".join(f"{v:.0f}" for v in values), f"{fmean(values):.1f}"))])
    return [*by, *(text for head, _ in items for text in (f"{head}, each seed", "mean"))], lines


def spread(marker: Marker) -> tuple[list[str], list[list[str]]]:
    """A line per score: mean, SD, least and most over all rows, in percent. Options: show: scores, `name:score`."""
    lines = [[label, *(f"{of(100 * numbers(marker.frame, score)):.1f}" for of in (fmean, stdev, min, max))]
             for label, score in marker.scores()]
    return [f"over {len(marker.frame)} runs", "mean", "SD", "least", "most"], lines


def growth(marker: Marker) -> tuple[list[str], list[list[str]]]:
    """Scores while one thing grows: their values, and the slope of the logarithms between the two largest (1: linear).

    Options: by; along: the field that grows; x: its size as a number; show: as in means.
    """
    by, along, x = marker.words("by"), marker.need("along"), marker.options.get("x") or marker.need("along")
    items, lines = marker.scores(), []
    for place, part in marker.parts(by).items():
        part = part.sort_values(x)
        cells = [" / ".join(texts(part, along))]
        for _, item in items:
            (a, b), sizes = numbers(part, UNIT.fullmatch(item)[1])[-2:], part[x][-2:]
            slope = math.log(b / a) / math.log(sizes.iloc[1] / sizes.iloc[0])
            cells += [" / ".join(average(part.loc[[k]], item) for k in part.index), shown(slope, digits=2)]
        lines.append([*place, *cells])
    return [*by, along, *(text for label, _ in items for text in (label, "slope"))], lines


KINDS = {  # name -> its function, its options
    "product": (product, {"columns", "against", "cell", "over"}),
    "means": (means, {"show", "across", "sem", "all", "count"}),
    "pairs": (pairs, {"of", "first", "less", "all", "cell", "over"}),
    "each": (each, {"show"}),
    "spread": (spread, {"show"}),
    "growth": (growth, {"along", "x", "show"}),
    "claims": (claims, {"show"}),
}
