"""Tables from result rows: means over runs and over seeds, the paper's numbers beside ours (Tables 1, 2 and 4-9).

    for table in make_tables("4", load_rows(["results/fashion-mini"])):
        print(report.markdown(table))

Choice: Tables 8 and 9 are read as trained with ETD, since their No UL differs from that of Tables 4 and 5, which no
mask would change.
"""

import json
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

from experiment.methods import METHODS
from metrics import mean_sem
from study.captions import caption, endings, once, slug
from study.rows import (SCORES, SETTINGS, VARIANTS, compared, etd_alone, maskless, measured, networks, pick, products,
                        split, sweep, without_extra_curves)
from study.stats import by_product, learnt, mean_of_seeds, minus, percent, summary
from experiment.settings import EVERY_TASK
from tasks import TASKS

PAPER = json.loads(Path(__file__).with_name("paper.json").read_text())
ON_ETD = ("7", "8", "9")  # tables of networks trained with ETD
BEST = ("5", "6", "7")  # whose values are "to the best method for each discovery rate - regularity pairing"
COLUMNS = {"1": ("ETD",), "2": ("3.1", "3.2", "ETD"), "4": ("capacity", "ETD"), "5": ("capacity", "ETD")}
# Columns on the product beside its mean over runs: name -> whether it holds (mean, SEM), and what the caption says.
BESIDE = {"over seeds": True, "seeds": False, "minus REM": True, "pairs": False, "misled": True, "learnt": False,
          "best per cell": True}
SOME = ("misled", "learnt", "best per cell", "gave up / idle")  # columns for which few or old rows have no numbers
NOTES = {"over seeds": "Over seeds: mean ± SEM of each seed's mean product over the cells (task, discovery rate) that "
                       "every seed has; seeds: seeds × cells.",
         "minus REM": "Minus REM: likewise of the product less that of REM (REM+ where REM was not run; without ETD, "
                      "where there is such a run) in the same cell and seed; pairs: seeds × cells.",
         "misled": "Misled: share of triggered test images of other classes that get the target label, in runs of "
                   "poison.",
         "learnt": f"Learnt: accuracy on D_c's labels as given before unlearning ({' / '.join(TASKS)}).",
         "best per cell": "Best per cell, not ranked: at the values with the best mean product in each task and "
                          "discovery rate, chosen by the score itself, which no user could.",
         "gave up / idle": "Gave up / idle: runs that gave up above gamma (REM: in some step 2); that did nothing.",
         "REM less it": "REM less it (REM+ less its own variants): of the product in the same cell and seed, mean ± SEM "
                         "over all pairs of runs; over seeds: of each seed's mean over the cells that every seed has; "
                         "pairs: seeds × cells."}


@dataclass(frozen=True)
class Table:
    """A table before it is written; a cell is str, int, bool, None (empty) or, in a column of `stats`, (mean, SEM)."""

    name: str  # of its file
    title: str
    caption: str
    header: tuple[str, ...]
    rows: list[tuple]
    stats: tuple[str, ...]  # the columns that hold (mean, SEM)
    digits: int = 2  # decimals of these


def make_tables(name: str, rows: list[dict], own: bool = False) -> list[Table]:
    """The tables of one name: one for each data set and number of corrupted images that has rows for it.

    Args: name: of NAMES: mean, cells, plane, ablations, or the number of a table of the paper; rows: of
        `rows.load_rows`; own: leave the paper's data sets out of tables in which the paper has another one.
    Returns: Tables, none where no row belongs to them.
    """
    rows = sweep(without_extra_curves(rows))
    if name in ("mean", "cells"):
        make = means if name == "mean" else cells
        return [make(*title, part, rem_without_etd(rows, part)) for *title, part in groups(rows, "etd")]
    rows = etd_alone(rows)
    if name in ("plane", "ablations"):
        return list(filter(None, [(plane if name == "plane" else ablations)(*group) for group in groups(rows)]))
    mine = [row for row in rows if belongs(row, name)]
    beside = {row["n"] for row in mine if row["data"] == "cifar10"}  # Table 1 has ViT on SVHN beside ResNet-9
    mine = [{**r, "study": "cifar10" if name == "1" and r["data"] == "svhn" and r["arch"] == "vit" and r["n"] in beside
             else r["data"]} for r in mine]
    others = {table["dataset"] for table in PAPER["tables"].values()} - {PAPER["tables"][name]["dataset"]}
    # A plain retrain alone makes no table of networks trained with ETD.
    return [paper_table(name, *key, part) for key, part in split(mine, "study", "n").items()
            if not (own and key[0] in others) and (name not in ON_ETD or any(row["etd"] for row in part))]


def groups(rows: list[dict], *more: str) -> list[tuple[str, str, list[dict]]]:
    """What is set side by side, behind its name in files and in words; runs without masks stand beside every p_mem."""
    found = []
    for (data, n, arch, capacity, *etd), part in split(rows, "data", "n", "arch", "capacity", *more).items():
        training = "".join(", with ETD" if some else ", no ETD" for some in etd)
        for p_mem in sorted({row["p_mem"] for row in part if not maskless(row)}) or [SETTINGS["p_mem"]]:
            name = f"{data} n{n} {arch} c{100 * capacity:g}{' etd' if any(etd) else ''} p{p_mem:g}"
            title = f"{data}, {n} corrupted, {arch}, capacity {100 * capacity:g} %{training}, p_mem {p_mem:g}"
            found.append((name, title, [row for row in part if maskless(row) or row["p_mem"] == p_mem]))
    return found


def rem_without_etd(rows: list[dict], part: list[dict]) -> list[dict]:
    """REM's runs without ETD beside a part that `groups` has made: of its data, network and p_mem."""
    place = {key: part[0][key] for key in ("data", "n", "arch", "capacity")}
    masks = {row["p_mem"] for row in part if not maskless(row)} or {SETTINGS["p_mem"]}
    own = {"rem", "rem-plus"}
    return [row for row in pick(rows, method=own, etd=False, kept=True, **place) if row["p_mem"] in masks]


def belongs(row: dict, number: str) -> bool:
    """Whether a row is of the network, masks and methods of a table of the paper; the data set may be any."""
    spec = PAPER["tables"][number]
    network = row["arch"] == spec["arch"] or number == "1" and row["arch"] == "vit"
    place = any((row["capacity"], row["etd"]) == (r["capacity"], r["etd"]) for r in spec["rows"]
                if (r["method"] == "retrain") == (row["method"] == "retrain"))
    method = row["method"] in VARIANTS if number == "2" else compared(row["method"])
    return network and place and method and (row["p_mem"] == spec["p_mem"] or maskless(row))


def kept_and_best(rows: list[dict], *keys: str) -> tuple[list[dict], dict[tuple, list[dict]]]:
    """Of `sweep` the runs that are compared, one per network; by these keys those at the best values of each cell."""
    return networks([row for row in rows if row["kept"]]), split(pick(rows, best=True), *keys)


def further(rows: list[dict], group: list[dict], best: list[dict] = ()) -> tuple:
    """The columns BESIDE of one method: its runs, those of its group with REM's or REM+'s, its own at the best of each
    cell."""
    which = "rem" if pick(group, method="rem") else "rem-plus"
    rem = pick(group, method=which, etd=False) or pick(group, method=which)
    own = {row["method"] for row in rows} == {which} and {row["etd"] for row in rows} <= {row["etd"] for row in rem}
    less = {} if own else minus(products(rows), products(rem))
    misled = percent(row["misled"] for row in pick(rows) if row.get("misled") is not None)
    return (*mean_of_seeds(products(rows)), *mean_of_seeds(less), misled, learnt(rows),
            percent(row["product"] for row in best))


def table_of(name: str, title: str, text: str, columns: dict[str, bool], lines: list[tuple], digits: int = 2) -> Table:
    """A Table without the empty columns of SOME, with NOTES on the others; columns: name -> whether of (mean, SEM)."""
    used = [column not in SOME or any(row[k] is not None for row in lines) for k, column in enumerate(columns)]
    header = tuple(compress(columns, used))
    text = " ".join([text, *(note for column, note in NOTES.items() if column in header)])
    lines = [tuple(compress(row, used)) for row in lines]
    return Table(slug(name), title, text, header, lines, tuple(name for name in header if columns[name]), digits)


# --- The paper's ------------------------------------------------------------------------------------------------------

def paper_table(number: str, data: str, n: int, rows: list[dict]) -> Table:
    """A table of the paper with our numbers beside it, ours in descending order; what was not run is empty."""
    spec, keys, first = PAPER["tables"][number], ("arch", "capacity", "etd", "method"), COLUMNS.get(number, ())
    (rows, best), arch = kept_and_best(rows, *keys), spec["arch"]
    ours, paper = split(rows, *keys), {tuple(row[key] for key in keys[1:]): row for row in spec["rows"]}
    every = dict.fromkeys([*paper, *sorted(key[1:] for key in ours if key[0] == arch), *(key[1:] for key in ours)])
    lines = []
    for key, mine in by_product({key: ours.get((arch, *key), []) for key in every}).items():
        (capacity, etd, method), theirs, chosen = key, paper.get(key, {}), best.get((arch, *key), [])
        what = {"capacity": f"{100 * capacity:g}", "ETD": etd, "3.1": "no31" not in method, "3.2": "no32" not in method}
        line = (*(what[name] for name in first), method,
                *beside_papers(mine, theirs, spec, chosen if number in BEST else ()),
                *further(mine, pick(rows, arch=arch, capacity=capacity), chosen))
        if number == "1":
            vit = ours.get(("vit", *key), []), {"product": theirs.get("vit")}
            line += beside_papers(*vit, PAPER["tables"]["5"], scores=("product",))
        lines.append(line)
    scores = {name + more: True for name in ("Healed", "Utility", "product") for more in ("", " (paper)")}
    columns = dict.fromkeys((*first, "method", "n"), False) | scores | {"difference": False} | BESIDE
    if number == "1":
        columns |= {"ViT n": False, "ViT product": True, "ViT product (paper)": True, "ViT difference": False}
    title, text = f"Table {number}: {data}, {n} corrupted", " ".join([caption(rows, *keys), *once(rows)])
    return table_of(f"table {number} {data} n{n}", title, f"{text} {of_the_paper(number)}", columns, lines)


def beside_papers(rows: list[dict], theirs: dict, spec: dict, best: list[dict] = (), scores=SCORES) -> tuple:
    """n, each score of ours and the paper's, and the difference in product where both are over the same cells.

    Args: best: runs of which the difference is taken, where the paper's are at the best values of each cell.
    """
    mine, product = summary(rows), summary(best or rows)["product"]
    paper = {key: tuple(value) if isinstance(value, list) else value for key, value in theirs.items()}  # or "OOM"
    pairs = [value for key in scores for value in (mine[key], paper.get(key))]
    alike = isinstance(paper.get("product"), tuple) and like_the_papers(best or rows, spec)
    return mine["n"], *pairs, f"{product[0] - paper['product'][0]:+.2f}" if alike else None


def like_the_papers(rows: list[dict], spec: dict) -> bool:
    """Whether runs of one method are on a table's data, in all cells (task, rate) of the paper and in no other.

    The seeds may differ. Methods that read no D_f have no rates, so that the tasks are enough.
    """
    cells = {(task, rate) for task, rate, _ in products(rows)}
    papers = [{(task, rate) for task in TASKS for rate in rates} for rates in ([None], PAPER["discovery"])]
    data = {(row["data"], row["n"]) for row in pick(rows)}
    return cells in papers and data == {(spec["dataset"], spec["corrupted"])}


def of_the_paper(number: str) -> str:
    """Where the paper's numbers of a table come from, and how far ours can be compared."""
    spec, rates = PAPER["tables"][number], len(PAPER["discovery"])
    data = f"{spec['data']} (ViT: SVHN)" if number == "1" else spec["data"]
    text = (f"The paper's numbers: {data}, {spec['corrupted']} corrupted, over its {len(TASKS) * rates} cells "
            f"({len(TASKS)} tasks × {rates} discovery rates); no difference is given where ours are over other data "
            "or cells.")
    if number in BEST:
        text += (" They are of the best method for each discovery rate and task; where we ran several values of a "
                 "setting, the difference is that of best per cell.")
    if number in ON_ETD:
        plain = {"8": 4, "9": 5}.get(number)
        hint = f"; its Utility is below that of Table {plain}, which may mean with ETD" if plain else ""
        text += (" Trained with ETD, but for retrain, a plain network here (the paper does not say how its is trained"
                 f"{hint}).")
    return text


# --- Our own ----------------------------------------------------------------------------------------------------------

def means(name: str, title: str, rows: list[dict], rem: list[dict] = ()) -> Table:
    """Every method of one group: runs, scores, seconds, and the time relative to training beside A.8's; rem: its runs
    without ETD."""
    (rows, best), lines = kept_and_best(rows, "method"), []
    for (method,), part in by_product(split(rows, "method")).items():
        timed = [row for row in pick(part) if row.get("seconds") is not None]
        timed = [row for row in timed if not measured(row)] or timed
        shares = [100 * row["seconds"] / row["train_seconds"] for row in timed if row.get("train_seconds")]
        times = [mean_sem(v)[0] if v else None for v in ([row["seconds"] for row in timed], shares)]
        times = [None if v is None else f"{v:.1f}" for v in (*times, PAPER["A.8"].get(method))]
        lines.append((method, *summary(part).values(), *further(part, [*rows, *rem], best.get((method,), [])), *times))
    note = ("Time in percent of training, beside A.8's (CIFAR10, 50 % capacity). With --jobs the seconds include "
            "waiting for each other. Runs with Fig. 5's points are timed with their measuring, so these count only "
            "where there is no other.")
    columns = {"method": False, "n": False, "failed": False, "Healed": True, "Utility": True, "product": True, **BESIDE}
    columns |= {"seconds": False, "time %": False, "time % (paper)": False}
    text = " ".join([caption(rows, "method"), *once(rows), note])
    return table_of("mean " + name, "Means: " + title, text, columns, lines)


def cells(name: str, title: str, rows: list[dict], rem: list[dict] = ()) -> Table:
    """Mean product of each method in each task and at each discovery rate; rem: its runs without ETD."""
    rates, lines = sorted({row["discovery"] for row in rows}), []
    kept = [row for row in rows if row["kept"]]
    for (task,), part in split(kept, "task").items():
        best = split(pick(rows, task=task, best=True), "method")
        named = {method: runs for (method,), runs in by_product(split(part, "method")).items()}
        named |= {f"{method}, best per cell (not ranked)": runs for (method,), runs in best.items()}
        for method, runs in named.items():
            found = (percent(row["product"] for row in pick(runs, discovery=rate)) for rate in rates)
            lines.append((task, method, *found, *further(networks(runs), [*part, *pick(rem, task=task)])))
    sizes = [len(part) for part in split(pick(kept), "task", "method", "discovery").values()]
    least_most = sorted({min(sizes, default=0), max(sizes, default=0)})
    text = (f"{caption(kept, 'method')} Columns: discovery rates; runs per cell: {' to '.join(map(str, least_most))}.")
    columns = {"task": False, "method": False, **{f"{rate:g}": True for rate in rates}, **BESIDE}
    return table_of("cells " + name, "Product: " + title, text, columns, lines)


def plane(name: str, title: str, rows: list[dict]) -> Table | None:
    """Mean product of each method in every cell that has all seeds, and over them, beside the paper's; None of none."""
    rows, lines = [row for row in rows if compared(row["method"])], []
    has = {seed: {(row["task"], row["discovery"]) for row in part}
           for (seed,), part in split(pick(rows), "seed").items()}
    every = set().union(*has.values())
    shared = sorted((cell for cell in every if all(cell in cells for cells in has.values())),
                    key=lambda cell: (EVERY_TASK.index(cell[0]), cell[1]))
    if not shared:
        return None
    rows = [row for row in rows if (row["task"], row["discovery"]) in shared]
    (kept, best), number = kept_and_best(rows, "method", "etd"), "4" if rows[0]["arch"] == "resnet9" else "5"
    theirs = {(r["method"], r["etd"]): f"{r['product'][0]:.1f}" for r in PAPER["tables"][number]["rows"]
              if r["capacity"] == rows[0]["capacity"]}
    for (method, etd), mine in by_product(split(kept, "method", "etd")).items():
        runs = pick(rows, method=method, etd=etd, kept=True)
        found = [percent(r["product"] for r in pick(runs, task=task, discovery=rate)) for task, rate in shared]
        noted, *ended = endings(mine)
        lines.append((called(method, etd), *(mean and f"{mean[0]:.0f}" for mean in found), summary(mine)["product"],
                      *further(mine, kept, best.get((method, etd), [])),
                      "{} / {}".format(*ended) if noted else None, theirs.get((method, etd))))
    columns = {"method": False, **{f"{task} {rate:g}": False for task, rate in shared}, "mean": True, **BESIDE,
               "gave up / idle": False, f"Table {number}": False}
    lacking = ", ".join(f"seed {seed} lacks {len(every - cells)}" for seed, cells in has.items() if every - cells)
    left_out = [f"Cells left out, which not every seed has: {len(every) - len(shared)} ({lacking})."] if lacking else []
    text = " ".join([caption(kept, "method", "etd"), *once(kept), *left_out,
                     f"Table {number}: the paper's product over its data and cells."])
    return table_of("plane " + name, "Plane: " + title, text, columns, lines, digits=1)


def called(method: str, etd: bool) -> str:
    """A method with its training."""
    if not etd:
        return method
    return "ETD alone" if method == "no-ul" else f"{method} on ETD"


def ablations(name: str, title: str, rows: list[dict]) -> Table | None:
    """Table 2's variants and what knows all of D_c: product by task, REM's less theirs over all pairs; None of none."""
    shown = {"ideal", "of REM+"}
    wanted = {*VARIANTS, "rem-plus", *(each for each, method in METHODS.items() if method.part in shown)} - {"etd"}
    (rows, _), lines = kept_and_best([row for row in rows if row["method"] in wanted]), []
    if {row["method"] for row in rows} <= {"rem", "rem-plus"}:
        return None
    parts = by_product(split(rows, "method", "etd"))
    for (method, etd), mine in parts.items():
        whole = "rem-plus" if method.startswith("rem-plus") else "rem"
        score, rem = summary(mine), products(parts.get((whole, etd), []))
        less = {} if method == whole else minus(rem, products(mine))
        tasks = [percent(row["product"] for row in pick(mine, task=task)) for task in TASKS]
        lines.append((called(method, etd), score["n"], *tasks, score["product"], percent(less.values()),
                      len(less) or None, *mean_of_seeds(less)))
    columns = {"method": False, "n": False, **dict.fromkeys((*TASKS, "mean", "REM less it"), True)}
    columns |= {"paired runs": False, "REM less it, over seeds": True, "pairs": False}
    text = caption(rows, "method", "etd")
    return table_of("ablations " + name, "Ablations: " + title, text, columns, lines, digits=1)


NAMES = ("mean", "cells", "plane", "ablations", *PAPER["tables"])
