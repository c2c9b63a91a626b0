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

import inspect
import json
import math
import re
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import fmean, stdev

import pandas as pd

from experiment.methods import METHODS, reads_forget, reads_setting
from experiment.settings import EVERY_TASK, resolve
from metrics import mean_sem
from results.claims import statements
from study import tables
from study.rows import SWEPT, etd_alone, latest, load_rows, networks, pick, sweep, without_extra_curves
from study.tables import ANY_RATE, called, learnt, minus, over_seeds, paired, product_of_paper

ROOT = Path(__file__).resolve().parent.parent
SCORE = re.compile(r"(.*?)(?:([%#])(\d?))?")  # its name, its unit, its decimals
OURS = ("reach", "stop", "disbelieved", "farther")  # the four changes of REM+
HEADS = {"healed": "Healed", "utility": "Utility"}
ONCE = {name for name in METHODS if not reads_forget(name)}  # whose network is the same at every discovery rate


# --- Markers ----------------------------------------------------------------------------------------------------------

def table_of(text: str) -> list[str]:
    """The lines of a table in Markdown, with a line on its rows below it; ValueError for a marker with a mistake."""
    kind, sources, options, more = parsed(text)
    names, note = more.pop("names", ""), more.pop("note", "")
    frame = frame_at(sources, more.pop("open", None))
    if "last" in more:
        frame = frame.drop_duplicates(more.pop("last").split(","), keep="last")
    frame = chosen(frame, {key: re.split(",(?! )", value) for key, value in more.items()})
    for key in ",".join(options.get(name, "") for name in ("by", "across")).strip(",").split(","):
        frame = frame[texts(frame, key) != "nan"] if key else frame  # a file may have lines of two kinds
    if frame.empty:
        raise ValueError(f"no rows are left of {text!r}")
    header, lines = kind(frame, **options)
    grid = renamed([header, *lines], names)
    made = ["| " + " | ".join(line) + " |" for line in grid]
    made.insert(1, "|---" * len(header) + "|")
    below = note_on(frame)
    return made + ["", below] if below and note != "no" else made


def parsed(text: str) -> tuple[Callable, tuple[str, ...], dict[str, str], dict[str, str]]:
    """Of a marker its kind, its files and folders, the options of the kind, and all other options."""
    try:
        name, *words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{text!r} does not parse ({error})") from error
    if name not in KINDS:
        raise ValueError(f"unknown kind of table {name!r}; choose from {', '.join(KINDS)}")
    given = dict(word.split("=", 1) for word in words if "=" in word)
    _, *known = inspect.signature(KINDS[name]).parameters.values()  # the first is the frame
    if lacking := [each.name for each in known if each.default is each.empty and each.name not in given]:
        raise ValueError(f"a table of the kind {name} needs {lacking[0]}=...")
    options = {each.name: given.pop(each.name) for each in known if each.name in given}
    return KINDS[name], tuple(word for word in words if "=" not in word), options, given


def chosen(frame: pd.DataFrame, filters: dict[str, list[str]]) -> pd.DataFrame:
    """The rows whose fields have one of these values."""
    for key, values in filters.items():
        if key not in frame:
            raise ValueError(f"{key!r} is neither an option of this kind of table nor a field of the rows")
        found = frame[key].map(text_of)
        if lacking := set(values) - set(found):
            raise ValueError(f"no row has {key}={sorted(lacking)[0]}")
        frame = frame[found.isin(values)]
        frame.attrs[key] = values  # the order of the lines
    return frame


def renamed(grid: list[list[str]], names: str) -> list[list[str]]:
    """The cells with other names in place of some, "old: new; old: new"; ValueError for one that is not there."""
    pairs = [pair.split(": ", 1) for pair in names.split("; ") if pair]
    if odd := [pair[0] for pair in pairs if len(pair) != 2]:
        raise ValueError(f"names has {odd[0]!r}; write \"old: new; old: new\"")
    if unused := {old for old, _ in pairs} - {cell for line in grid for cell in line}:
        raise ValueError(f"names has {sorted(unused)[0]!r}, which is not in the table")
    every = dict(pairs) | {f"minus {old}": f"minus {new}" for old, new in pairs}
    return [[every.get(cell, cell) for cell in line] for line in grid]


def note_on(frame: pd.DataFrame) -> str:
    """A line on rows: seeds, versions, processors; empty where they name none."""
    seeds, versions, cpus = (sorted(set(frame[name].dropna())) if name in frame else []
                             for name in ("seed", "version", "cpu"))
    in_a_row = len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1
    span = f"{seeds[0]} to {seeds[-1]}" if in_a_row else ", ".join(map(str, seeds))
    parts = [f"{name}{'s' * (len(found) > 1)} {text}" for name, found, text in (
        ("seed", seeds, span), ("version", versions, ", ".join(versions))) if found]
    parts += sorted({re.sub(r"\(R\)| Processor", "", cpu) for cpu in cpus})
    return f"<sub>{'; '.join(parts)}</sub>" if parts else ""


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
    """A score of every row, NaN where a row lacks it: a field, or two with an operation between."""
    for sign, operation in (("*", pd.Series.mul), ("/", pd.Series.div), ("-", pd.Series.sub)):
        if sign in score:
            return operation(*(numbers(frame, part) for part in score.split(sign, 1))).replace(math.inf, 0.0)
    if score == "product" and score not in frame:
        return numbers(frame, "healed*utility")
    if score not in frame:
        raise ValueError(f"no row has a score {score!r}; a row has {', '.join(frame)}")
    return frame[score].astype(float)


def parts_of(frame: pd.DataFrame, by: str) -> dict[tuple[str, ...], pd.DataFrame]:
    """Rows by the values of these fields: tasks in the paper's order, numbers ascending, others as chosen or found."""
    keys = {key: texts(frame, key) for key in by.split(",")}
    order = [[*frame.attrs.get(key, ()), *dict.fromkeys(column)] for key, column in keys.items()]

    def rank(value: str, seen: list[str]) -> tuple:
        if value in EVERY_TASK:
            return 0, EVERY_TASK.index(value)
        return (0, float(value)) if re.fullmatch(r"-?[\d.]+(e-?\d+)?", value) else (1, seen.index(value))

    found = dict(iter(frame.groupby(list(keys.values()), sort=False)))
    return {place: found[place] for place in sorted(found, key=lambda place: [*map(rank, place, order)])}


# --- Numbers ----------------------------------------------------------------------------------------------------------

def shown(mean: float, error: float | None = None, digits: int = 1, sign: bool = False) -> str:
    """A mean, and its error where there is one."""
    text = f"{mean:{'+' * sign}.{digits}f}"
    text = text if float(text) else text.replace("-", "+" * sign)
    return text if error is None else f"{text} ± {error:.{digits}f}"


def average(frame: pd.DataFrame, score: str, unit: str = "") -> str:
    """Mean of a score over rows; ± SEM over the values of the field `unit` where that is given; empty of none."""
    name, percent, digits = SCORE.fullmatch(score).groups()
    values = numbers(frame, name).dropna()
    if values.empty:
        return ""
    means = values.groupby(texts(frame, unit)).agg(fmean) if unit else [fmean(values)]
    factor = 1 if percent == "#" else 100
    return shown(*(value and factor * value for value in mean_sem(means)), int(digits or 0))


def by_cell(frame: pd.DataFrame, score: str, cell: str, unit: str) -> pd.Series:
    """A score by cell, discovery rate and unit, which is what counts as independent, such as the seed.

    The rate is ANY_RATE where rows have none, or a method reads no D_f: there its rates are one network. ValueError
    where other rows differ in one cell.
    """
    once = frame["method"].isin(ONCE) if "method" in frame else pd.Series(False, frame.index)
    rate = frame["discovery"].astype(float).mask(once, ANY_RATE) if "discovery" in frame else ANY_RATE
    keys = [*cell.split(","), "discovery", *unit.split(",")]
    values = pd.DataFrame({key: rate if key == "discovery" else texts(frame, key) for key in keys})
    values = values.assign(value=numbers(frame, score), once=once).dropna(subset="value")
    differ = values[~values["once"]].groupby(keys)["value"].nunique() > 1
    if differ.any():
        raise ValueError(f"rows differ in one cell {differ.idxmax()}; tell them apart by by= or a filter")
    return values.groupby(keys)["value"].agg(fmean)


def over_units(values: pd.Series, unit: str, sign: bool = False) -> tuple[str, str]:
    """Mean ± SEM over the units of each unit's mean over the cells that all have, in percent; units × cells."""
    mean, count = over_seeds(values, unit.split(","))
    return (shown(*mean, sign=sign), count) if mean else ("", "")


def counted(unit: str) -> str:
    """The head of a column of numbers of units and cells."""
    return "seeds × cells" if unit == "seed" else f"({unit.replace(',', ', ')}) × cells"


def heads(show: str) -> list[tuple[str, str]]:
    """Head and scores of each column of `show`."""
    items = [item.rpartition(":")[::2] for item in show.split(",")]
    named = [label or re.sub(r"[%#]\d?", "", item).replace("+", " / ").replace(">", " -> ") for label, item in items]
    return [(HEADS.get(name, name), item) for name, (_, item) in zip(named, items, strict=True)]


# --- Kinds of tables: from the rows and a marker's options to a header and lines --------------------------------------

Made = tuple[list[str], list[list[str]]]


def product(frame: pd.DataFrame, by: str = "method", columns: str = "product,seeds,minus", against: str = "",
            cell: str = "task", over: str = "seed") -> Made:
    """A line per method or variant, best first: its product over seeds, and less that of `against` in the same cells.

    Args: cell: what besides the discovery rate tells cells apart; over: what counts as independent; columns, of which
        an empty one is left out: cells and tasks (the mean in each), healed, utility, product, seeds, minus, misled (of
        runs of poison), learnt (of the untouched network), best (at the best alpha of each cell), paper (of Table 4, or
        5 of a ViT), reachable (see `of_reachable`; it needs rows of no-ul and retrain).
    """
    parts, best = compared(frame, by)
    values = {place: by_cell(part, "product", cell, over) for place, part in parts.items()}
    if against and (against,) not in parts:
        raise ValueError(f"against={against} is no line of the table; choose from {', '.join(map(' '.join, parts))}")

    def column(name: str, place: tuple[str, ...]) -> dict[str, str]:
        part, mine = parts[place], values[place]
        if name == "cells":
            runs = parts_of(part, "task,discovery")
            return {" ".join(key): average(runs[key], "product") if key in runs else ""
                    for key in parts_of(frame, "task,discovery")}
        if name == "tasks":
            return {task: over_units(mine[mine.index.get_level_values("task") == task], over)[0]
                    for (task,) in parts_of(frame, "task")}
        if name == "minus":
            less = minus(mine, values[against,]) if against and place != (against,) else mine[:0]
            return {f"minus {against}": over_units(less, over)[0]}
        if name == "best":
            return {"best per cell": over_units(by_cell(best[place], "product", cell, over), over)[0]
                    if place in best else ""}
        if name == "seeds":
            return {counted(over): over_units(mine, over)[1]}
        if name == "reachable":
            return {name: of_reachable(mine, values["no-ul",], values["retrain",], over)}
        if name == "misled":
            return {name: average(part, "misled%1", over) if "misled" in part else ""}
        if name == "learnt":
            return {name: learnt(tables.frame_of(networks(list(part["row"])))) or ""}
        if name == "paper":
            return {name: product_of_paper(*part.iloc[0][["arch", "method", "etd", "capacity"]]) or ""}
        if name in ("product", "healed", "utility"):
            return {HEADS.get(name, name): over_units(by_cell(part, name, cell, over), over)[0]}
        raise ValueError(f"unknown column {name!r}; see results/kinds.py")

    lines = []
    for place in sorted(parts, key=lambda place: -fmean(values[place])):
        line = dict(zip(by.split(","), place, strict=True))
        for name in columns.split(","):
            line |= column(name, place)
        lines.append(line)
    full = [name for k, name in enumerate(lines[0]) if k <= by.count(",") or any(line[name] for line in lines)]
    return full, [[line[name] for name in full] for line in lines]


def of_reachable(mine: pd.Series, untouched: pd.Series, retrained: pd.Series, unit: str) -> str:
    """How much of the way from the untouched network to an oracle, in percent of it: mean ± SEM over units.

    The oracle is retraining at discovery 1, without any corrupted image: no method that knows less can be asked for
    more, though one that puts theta_o2 beside the network may give it.
    """
    known = retrained[retrained.index.get_level_values("discovery") == 1]
    oracle = paired(mine, known.rename({1: ANY_RATE}, level="discovery"))[1]
    units = unit.split(",")
    gained, wanted = (minus(values, untouched).groupby(units).agg(fmean) for values in (mine, oracle))
    return shown(*(100 * value for value in mean_sem(gained / wanted)), digits=0)


def compared(frame: pd.DataFrame, by: str) -> tuple[dict, dict]:
    """Rows by line, of a method with several alphas those that it is compared at; and those that are best per cell."""
    if by != "method" or "variant" not in frame:
        return parts_of(frame, by), {}
    swept = sweep(without_extra_curves(list(frame["row"])))
    kept, best = (frame_of([row for row in swept if row[mark]]) for mark in ("kept", "best"))
    return parts_of(kept, by), parts_of(best, by) if len(best) else {}


def means(frame: pd.DataFrame, show: str, by: str = "method", across: str = "", sem: str = "", all: str = "",
          count: str = "") -> Made:
    """Means of scores over the rows of each line.

    Args: show: scores, a column each, with a name before `:`; `+` joins several by / and `>` by ->; across: fields for
        each value of which there is a column of the scores; sem: ± SEM over the values of this field; all: over all
        rows, too, in a last column or, where there is no across, in a line; count: head of a column of numbers of rows.
    """
    items = heads(show)
    columns = list(parts_of(frame, across)) if across else []

    def joined(part: pd.DataFrame, item: str) -> str:
        sides = [[average(part, score, sem) for score in side.split("+")] for side in item.split(">")]
        return " -> ".join(map(" / ".join, sides)) if any(map(any, sides)) else ""

    def line(place: tuple[str, ...], part: pd.DataFrame) -> list[str]:
        found = parts_of(part, across) if across else {}
        groups = [found.get(column, part[:0]) for column in columns] + [part] * bool(all or not across)
        numbered = [*place, str(len(part))] if count else [*place]
        return numbered + [joined(group, item) for group in groups for _, item in items]

    lines = [line(place, part) for place, part in parts_of(frame, by).items()]
    if all and not across:
        lines.append(line(("all", *[""] * by.count(",")), frame))
    labels = [label for label, _ in items]
    named = [", ".join([" ".join(column), label][:1 + (len(items) > 1)]) for column in columns for label in labels]
    named += ["all"] * (len(items) * bool(all)) if across else labels
    return [*by.split(","), *[count] * bool(count), *named], lines


def pairs(frame: pd.DataFrame, first: str, less: str, by: str = "task", of: str = "method", all: str = "",
          cell: str = "task", over: str = "seed") -> Made:
    """Two values of a field, such as two methods, in the same cells and seeds: both means, and the paired difference.

    Args: of: the field; first, less: its two values; all: a last line over all; cell, over: as in product.
    """
    lines, parts = [], parts_of(frame, by)
    if all:
        parts[("all", *[""] * by.count(","))] = frame
    for place, part in parts.items():
        sides = [part[texts(part, of) == value] for value in (first, less)]
        if len(sides[0]) and len(sides[1]):
            mine, other = paired(*(by_cell(side, "product", cell, over) for side in sides))
            lines.append([*place, over_units(mine, over)[0], over_units(other, over)[0],
                          *over_units(mine - other, over, sign=True)])
    if not lines:
        raise ValueError(f"no cell has {of} {first} and {less}")
    return [*by.split(","), first, less, "difference", counted(over)], lines


def each(frame: pd.DataFrame, show: str, by: str = "method") -> Made:
    """Every seed's score in a line, and their mean, for each score of `show`, with a name before `:`."""
    lines = []
    for place, part in parts_of(frame, by).items():
        found = [100 * numbers(part.sort_values("seed", kind="stable"), score) for _, score in heads(show)]
        lines.append([*place, *(text for values in found
                                for text in (" / ".join(f"{v:.0f}" for v in values), f"{fmean(values):.1f}"))])
    return [*by.split(","), *(text for head, _ in heads(show) for text in (f"{head}, each seed", "mean"))], lines


def spread(frame: pd.DataFrame, show: str) -> Made:
    """A line per score of `show`, `name:score`: mean, SD, least and most over all rows, in percent."""
    lines = [[head, *(f"{of(100 * numbers(frame, score)):.1f}" for of in (fmean, stdev, min, max))]
             for head, score in heads(show)]
    return [f"over {len(frame)} runs", "mean", "SD", "least", "most"], lines


def growth(frame: pd.DataFrame, by: str, along: str, show: str, x: str = "") -> Made:
    """Scores while one thing grows: their values, and the slope of the logarithms between the two largest (1: linear).

    Args: along: the field that grows; x: its size as a number; show: as in means.
    """
    x, lines = x or along, []
    for place, part in parts_of(frame, by).items():
        part = part.sort_values(x)
        line, sizes = [" / ".join(texts(part, along))], part[x].iloc[-2:]
        for _, item in heads(show):
            ends = numbers(part, SCORE.fullmatch(item)[1]).iloc[-2:]
            slope = math.log(ends.iloc[1] / ends.iloc[0]) / math.log(sizes.iloc[1] / sizes.iloc[0])
            line += [" / ".join(average(part.loc[[k]], item) for k in part.index), shown(slope, digits=2)]
        lines.append([*place, *line])
    return [*by.split(","), along, *(text for head, _ in heads(show) for text in (head, "slope"))], lines


def claims(frame: pd.DataFrame, show: str = "all") -> Made:
    """The paper's statements and their verdicts, of rows of their own: all, count, front or against."""
    return statements.made(show, statements.STATEMENTS, statements.world())


KINDS = {kind.__name__: kind for kind in (product, means, pairs, each, spread, growth, claims)}
