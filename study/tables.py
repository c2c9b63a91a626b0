"""Tables from result rows: mean and SEM over runs, the paper's numbers beside ours (Tables 1, 2 and 4-9).

    for table in make_tables("4", load_rows(["results/fashion-mini"])):
        print(report.markdown(table))

Choice: Tables 8 and 9 are read as trained with ETD, since their No UL differs from that of Tables 4 and 5, which no
mask would change.
"""

import json
import re
from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path

from methods import METHODS, reads_forget, reads_setting
from metrics import mean_sem
from settings import TASKS, Config
from study.rows import (NOT_IDENTITY, SCORES, SETTINGS, etd_alone, maskless, measured, networks, pick, split,
                        without_extra_curves)

PAPER = json.loads(Path(__file__).with_name("paper.json").read_text())
ON_ETD = ("7", "8", "9")  # tables of networks trained with ETD
VARIANTS = ("rem", *(name for name in METHODS if METHODS[name].part == "ablation"), "rem-no31-no32")  # of Table 2
OWN = {"forget_norm", "schedule", "ssd_alpha"}  # which each method may have its own of
COORDINATES = {"task", "discovery", "method", "seed", "capacity", "etd", "p_mem", "alpha", "n", "arch"}
COLUMNS = {"1": ("ETD",), "2": ("3.1", "3.2", "ETD"), "4": ("capacity", "ETD"), "5": ("capacity", "ETD")}
NAMES = ("mean", "cells", *PAPER["tables"])


@dataclass(frozen=True)
class Table:
    """A table before it is written; a cell is str, int, bool, None (empty) or, in a column of `stats`, (mean, SEM)."""

    name: str  # of its file
    title: str
    caption: str
    header: tuple[str, ...]
    rows: list[tuple]
    stats: tuple[str, ...]  # the columns that hold (mean, SEM)


# --- Numbers ----------------------------------------------------------------------------------------------------------

def percent(values) -> tuple[float, float | None] | None:
    """Mean and SEM of fractions, in percent; None of none."""
    values = list(values)
    return tuple(None if v is None else 100 * v for v in mean_sem(values)) if values else None


def summary(rows: list[dict]) -> dict:
    """n (runs that ended well; None where none was tried), failed, and mean and SEM over runs of each score, in %."""
    good = pick(rows)
    counts = {"n": len(good) if rows else None, "failed": len(rows) - len(good)}
    return counts | {key: percent(row[key] for row in good) for key in SCORES}


def difference(ours, paper) -> str | None:
    """Ours minus the paper's mean, signed; None unless there are both."""
    return f"{ours[0] - paper[0]:+.2f}" if ours and isinstance(paper, tuple) else None


def like_the_papers(rows: list[dict], dataset: str, n: int) -> bool:
    """Whether runs are on this data set with n corrupted images, in all cells (task, rate) of the paper and no other.

    The seeds may differ. Methods that read no D_f have no rates, so that the tasks are enough.
    """
    good = pick(rows)
    fixed = not any(reads_forget(row["method"]) for row in good)
    cells = {(row["task"], None if fixed else row["discovery"]) for row in good}
    papers = {(task, rate) for task in TASKS for rate in ([None] if fixed else PAPER["discovery"])}
    return cells == papers and all((row["data"], row["n"]) == (dataset, n) for row in good)


def descending(scores: dict, key: str = "product") -> list:
    """Keys of summaries by mean score, the best first; those without a run stay in order at the end."""
    return sorted(scores, key=lambda k: -scores[k][key][0] if scores[k][key] else 1.0)


# --- Captions ---------------------------------------------------------------------------------------------------------

def caption(rows: list[dict], *row_keys: str) -> str:
    """What the rows of a table are: data, tasks, rates, seeds, hardware, and everything a reader must be warned of."""
    def found(key, of=str):
        return ", ".join(dict.fromkeys(of(row[key]) for row in sorted(rows, key=lambda row: row[key])))

    good, failed = pick(rows), [row for row in rows if row["status"] != "ok"]
    runs = [f"{len(good)} {'run' if len(good) == 1 else 'runs'}", *sorted({hardware(row) for row in good})]
    text = ["Mean ± SEM over runs, in percent; product: mean over runs of Healed × Utility (over all classes).",
            f"Rows: {found('data')}, {found('n')} corrupted; {found('task')}; "
            f"discovery {found('discovery', '{:g}'.format)}; seeds {found('seed')}; {'; '.join(runs)}."]
    names = [f"{row['method']}{' with ETD' if row['etd'] else ''} {row['task']} {row['discovery']:g} seed {row['seed']}"
             for row in failed]
    if failed:
        text.append(f"Failed, not averaged: {len(failed)} of {len(rows)} runs ({'; '.join(names)}).")
    if any(row.get("alphas", 1) > 1 for row in rows):
        text.append("SCRUB: the alpha with the best mean product in each task and discovery rate, chosen by the score "
                    "itself, which no user could (the paper does so too).")
    if uneven(rows, *row_keys):
        text.append("The methods do not cover the same tasks, rates and seeds (see n): compare with care.")
    if lopsided(rows, *row_keys):
        text.append("Not every task and discovery rate has the same seeds: those with more weigh more.")
    if settings := mixed(rows):
        settings = "; ".join(f"{key} ({', '.join(found)})" for key, found in settings.items())
        text.append(f"NOT ONE EXPERIMENT: the runs differ in {settings}.")
    names = [str(row.get("git") or "unknown") for row in rows]
    commits = sorted({name[:7] + ("-dirty" if name.endswith("-dirty") else "") for name in names})
    return " ".join([*text, f"Commits: {', '.join(commits)}."] if len(commits) > 1 else text)


def brief(rows: list[dict], failed: int) -> str:
    """The warnings of a caption in a few words, for the title of a figure; empty where there are none."""
    alphas, settings = max(row.get("alphas", 1) for row in rows), mixed(rows)
    keys = ("arch", "capacity", "etd", "method")
    warnings = {f"NOT ONE EXPERIMENT: the runs differ in {', '.join(map(in_words, settings))}": settings,
                "the methods' tasks, rates or seeds differ": uneven(rows, *keys),
                "some cells have more seeds than others": lopsided(rows, *keys),
                f"SCRUB: best of {alphas} alphas by this score": alphas > 1,
                f"{failed} failed {'run' if failed == 1 else 'runs'} left out": failed}
    return "; ".join(words for words, apply in warnings.items() if apply)


def in_words(setting: str) -> str:
    """What a setting is, by the first words of its help: "peak rate" for lr."""
    texts = {f.name: f.metadata["help"] for f in fields(Config)}
    return re.split(r"[;,:(]", texts.get(setting, setting))[0].strip()


def uneven(rows: list[dict], *row_keys: str) -> bool:
    """Whether methods ended well in different places: tasks and seeds, and rates where the method depends on them."""
    parts = split(pick(rows), *row_keys).values()
    seeds = [{(row["task"], row["seed"]) for row in part} for part in parts]
    rated = [part for part in parts if reads_forget(part[0]["method"])]
    rates = [{(row["task"], row["seed"], row["discovery"]) for row in part} for part in rated]
    return any(places != group[0] for group in (seeds, rates) for places in group)


def once(rows: list[dict]) -> list[str]:
    """How methods that read no D_f are counted, where there are some."""
    found = sorted({row["method"] for row in rows if not reads_forget(row["method"])})
    return [f"{', '.join(found)}: the same network at every discovery rate, counted once."] if found else []


def hardware(row: dict) -> str:
    """Device, threads and torch of a run."""
    threads = f", threads {row['threads']}" if "threads" in row and row.get("device") == "cpu" else ""
    return f"{row.get('device')}{threads}, torch {row.get('torch')}"


def mixed(rows: list[dict]) -> dict[str, list[str]]:
    """Settings that differ between runs which a table averages or compares, with their values."""
    values = defaultdict(set)
    for part in split(rows, "method").values():  # those that do not read it keep the default
        for key in OWN:
            found = {str(row[key]) for row in part}
            values[key] |= found if len(found) > 1 else set()
    for part in split(rows, "arch", "capacity").values():
        for key in [*(key for key in SETTINGS if key not in COORDINATES | NOT_IDENTITY | OWN), "version"]:
            found = {str(row.get(key)) for row in part if counts(key, row)}
            values[key] |= found if len(found) > 1 else set()
    return {key: sorted(found) for key, found in values.items() if found}


def counts(key: str, row: dict) -> bool:
    """Whether a run's numbers depend on this setting."""
    if key == "pair":
        return row["task"] == "confusion"
    return not maskless(row) if key == "ratio" else reads_setting(key, {"method": row["ran"]})


def lopsided(rows: list[dict], *row_keys: str) -> bool:
    """Whether one method's tasks and rates have other seeds than each other, so that some weigh more in its mean."""
    for part in split(networks(pick(rows)), *row_keys).values():
        places = ("task",) if not reads_forget(part[0]["method"]) else ("task", "discovery")
        seeds = [{row["seed"] for row in cell} for cell in split(part, *places).values()]
        if any(some != seeds[0] for some in seeds):
            return True
    return False


# --- Tables -----------------------------------------------------------------------------------------------------------

def make_tables(name: str, rows: list[dict], own: bool = False) -> list[Table]:
    """The tables of one name: one for each data set and number of corrupted images that has rows for it.

    Args: name: of NAMES: mean, cells, or the number of a table of the paper; rows: of `rows.load_rows`; own: leave the
        paper's data sets out of tables in which the paper has another one.
    Returns: Tables, none where no row belongs to them.
    """
    rows = without_extra_curves(rows)
    if name in ("mean", "cells"):
        return [(means if name == "mean" else cells)(key, part) for key, part in groups(rows).items()]
    spec = PAPER["tables"][name]
    mine = [row for row in etd_alone(rows) if belongs(row, name)]
    beside = {row["n"] for row in mine if row["data"] == "cifar10"}  # Table 1 has ViT on SVHN beside ResNet-9
    mine = [{**r, "study": "cifar10" if name == "1" and r["data"] == "svhn" and r["arch"] == "vit" and r["n"] in beside
             else r["data"]} for r in mine]
    others = {table["dataset"] for table in PAPER["tables"].values()} - {spec["dataset"]}
    studies = [(key, part) for key, part in split(mine, "study", "n").items() if not (own and key[0] in others)]
    # A plain retrain alone makes no table of networks trained with ETD.
    studies = [(key, part) for key, part in studies if name not in ON_ETD or any(row["etd"] for row in part)]
    return [paper_table(name, *key, part) for key, part in studies]


def groups(rows: list[dict]) -> dict[tuple, list[dict]]:
    """What `mean` and `cells` set side by side, by `place`; runs without masks stand beside those of every p_mem."""
    found = {}
    for key, part in split(rows, "data", "n", "arch", "capacity", "etd").items():
        sizes = sorted({row["p_mem"] for row in part if not maskless(row)}) or [SETTINGS["p_mem"]]
        found |= {(*key, p_mem): [row for row in part if maskless(row) or row["p_mem"] == p_mem] for p_mem in sizes}
    return found


def belongs(row: dict, number: str) -> bool:
    """Whether a row is of the network, masks and methods of a table of the paper; the data set may be any."""
    spec = PAPER["tables"][number]
    network = row["arch"] == spec["arch"] or number == "1" and row["arch"] == "vit"
    place = any((row["capacity"], row["etd"]) == (r["capacity"], r["etd"]) for r in spec["rows"]
                if (r["method"] == "retrain") == (row["method"] == "retrain"))
    method = row["method"] in VARIANTS if number == "2" else compared(row["method"])
    return network and place and method and (row["p_mem"] == spec["p_mem"] or maskless(row))


def compared(method: str) -> bool:
    """Whether Tables 1 and 4-9 have a method: user-supplied ones too, no ablation, none that knows all of D_c."""
    return ":" in method or method in METHODS and METHODS[method].part in ("compared", "variant")


def paper_table(number: str, data: str, n: int, rows: list[dict]) -> Table:
    """A table of the paper with our numbers beside it, ours in descending order; what was not run is empty."""
    spec, rows, columns = PAPER["tables"][number], networks(rows), COLUMNS.get(number, ())
    keys = ("capacity", "etd", "method")
    ours = {arch: split([r for r in rows if r["arch"] == arch], *keys) for arch in (spec["arch"], "vit")}
    paper = {tuple(row[key] for key in keys): {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
             for row in spec["rows"]}
    every = dict.fromkeys([*paper, *ours[spec["arch"]], *ours["vit"]])
    lines = []
    for key in descending({key: summary(ours[spec["arch"]].get(key, [])) for key in every}):
        (capacity, etd, method), mine, theirs = key, ours[spec["arch"]].get(key, []), paper.get(key, {})
        first = {"capacity": f"{100 * capacity:g}", "ETD": etd}
        first |= {"3.1": "no31" not in method, "3.2": "no32" not in method}
        line = *(first[c] for c in columns), method, *beside_papers(mine, theirs, spec)
        if number == "1":
            product = {"product": theirs.get("vit")}
            line += beside_papers(ours["vit"].get(key, []), product, PAPER["tables"]["5"], ("product",))
        lines.append(line)
    stats = ("Healed", "Healed (paper)", "Utility", "Utility (paper)", "product", "product (paper)")
    vit = ("ViT n", "ViT product", "ViT product (paper)", "ViT difference") if number == "1" else ()
    text = " ".join([caption(rows, "arch", *keys), *once(rows), of_the_paper(number)])
    return Table(slug(f"table {number} {data} n{n}"), f"Table {number}: {data}, {n} corrupted", text,
                 (*columns, "method", "n", *stats, "difference", *vit), lines, stats + vit[1:3])


def beside_papers(rows: list[dict], theirs: dict, spec: dict, scores=SCORES) -> tuple:
    """n, each score of ours and the paper's, and the difference in product where both are over the same cells."""
    mine = summary(rows)
    pairs = [value for key in scores for value in (mine[key], theirs.get(key))]
    alike = like_the_papers(rows, spec["dataset"], spec["corrupted"])
    return mine["n"], *pairs, difference(mine["product"], theirs.get("product")) if alike else None


def of_the_paper(number: str) -> str:
    """Where the paper's numbers of a table come from, and how far ours can be compared."""
    spec, rates = PAPER["tables"][number], len(PAPER["discovery"])
    data = f"{spec['data']} (ViT: SVHN)" if number == "1" else spec["data"]
    text = (f"The paper's numbers: {data}, {spec['corrupted']} corrupted, over its {len(TASKS) * rates} cells "
            f"({len(TASKS)} tasks × {rates} discovery rates); no difference is given where ours are over other data or "
            "cells.")
    if number in ON_ETD:
        plain = {"8": 4, "9": 5}.get(number)
        hint = f"; its Utility is below that of Table {plain}, which may mean with ETD" if plain else ""
        text += (" Trained with ETD, but for retrain, a plain network here (the paper does not say how its is trained"
                 f"{hint}).")
    return text


def means(key: tuple, rows: list[dict]) -> Table:
    """Every method of one group: runs, scores, seconds, and the time relative to training beside A.8's."""
    rows = networks(rows)
    parts = {method: part for (method,), part in split(rows, "method").items()}
    scores, lines = {method: summary(part) for method, part in parts.items()}, []
    for method in descending(scores):
        mine, good = scores[method], pick(parts[method])
        timed = [row for row in good if row.get("seconds") is not None]
        timed = [row for row in timed if not measured(row)] or timed
        shares = [100 * row["seconds"] / row["train_seconds"] for row in timed if row.get("train_seconds")]
        times = [mean_sem(v)[0] if v else None for v in ([row["seconds"] for row in timed], shares)]
        times = [None if v is None else f"{v:.1f}" for v in (*times, PAPER["A.8"].get(method))]
        lines.append((method, mine["n"], mine["failed"], *(mine[k] for k in SCORES), *times))
    note = ("Time in percent of training, beside A.8's (CIFAR10, 50 % capacity). With --jobs the seconds include "
            "waiting for each other. Runs with Fig. 5's points are timed with their measuring, so these count only "
            "where there is no other.")
    text, stats = " ".join([caption(rows, "method"), *once(rows), note]), ("Healed", "Utility", "product")
    header = ("method", "n", "failed", *stats, "seconds", "time %", "time % (paper)")
    return Table(slug("mean " + short(key)), "Means: " + place(key), text, header, lines, stats)


def cells(key: tuple, rows: list[dict]) -> Table:
    """Mean product of each method in each task and at each discovery rate."""
    rates, lines = sorted({row["discovery"] for row in rows}), []
    for (task,), part in split(rows, "task").items():
        scores = {method: summary(runs) for (method,), runs in split(part, "method").items()}
        for method in descending(scores):
            runs = [pick(part, method=method, discovery=rate) for rate in rates]
            lines.append((task, method, *(percent(row["product"] for row in some) for some in runs)))
    stats = tuple(f"{rate:g}" for rate in rates)
    sizes = [len(part) for part in split(pick(rows), "task", "method", "discovery").values()]
    least_most = sorted({min(sizes, default=0), max(sizes, default=0)})
    note = f"Columns: discovery rates; runs per cell: {' to '.join(map(str, least_most))}."
    return Table(slug("cells " + short(key)), "Product: " + place(key), f"{caption(rows, 'method')} {note}",
                 ("task", "method", *stats), lines, stats)


def place(key: tuple) -> str:
    """A group of runs in words."""
    data, n, arch, capacity, etd, p_mem = key
    training = "with" if etd else "no"
    return f"{data}, {n} corrupted, {arch}, capacity {100 * capacity:g} %, {training} ETD, p_mem {p_mem:g}"


def short(key: tuple) -> str:
    """A group of runs in a file name."""
    data, n, arch, capacity, etd, p_mem = key
    return f"{data} n{n} {arch} c{100 * capacity:g}{' etd' if etd else ''} p{p_mem:g}"


def slug(text: str) -> str:
    """A file name of letters, digits, dots and hyphens."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")
