"""Tables from result rows: mean and SEM over runs, the paper's numbers beside ours (Tables 1, 2 and 4-9).

    for table in make_tables("4", load_rows(["results/fashion-mini"])):
        print(report.markdown(table))

Choice: Tables 8 and 9 are read as trained with ETD, since their No UL differs from that of Tables 4 and 5, which no
mask would change.
"""

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path

from methods import METHODS, reads_forget
from metrics import mean_sem
from settings import TASKS
from study.captions import caption, once
from study.rows import (SCORES, SETTINGS, etd_alone, maskless, measured, networks, pick, split, sweep,
                        without_extra_curves)
from study.stats import (against_rem, baseline, descending, endings, learnt, minus, over_seeds, percent, products,
                         summary)

PAPER = json.loads(Path(__file__).with_name("paper.json").read_text())
ON_ETD = ("7", "8", "9")  # tables of networks trained with ETD
VARIANTS = ("rem", *(name for name in METHODS if METHODS[name].part == "ablation"), "rem-no31-no32")  # of Table 2
COLUMNS = {"1": ("ETD",), "2": ("3.1", "3.2", "ETD"), "4": ("capacity", "ETD"), "5": ("capacity", "ETD")}
BEST = ("5", "6", "7")  # whose numbers are of "the best method for each discovery rate - regularity pairing"
NAMES = ("mean", "cells", "plane", "ablations", *PAPER["tables"])
BESIDE = {"over seeds": True, "seeds": False, "minus REM": True, "pairs": False, "learnt": False, "best per cell": True}
NOTES = {"over seeds": "Over seeds: mean ± SEM of each seed's mean product over the cells (task, discovery rate) that "
                       "every seed has; seeds: seeds × cells.",
         "minus REM": "Minus REM: likewise of the product less REM's in the same cell and seed; pairs: seeds × cells.",
         "learnt": f"Learnt: accuracy on D_c's labels as given before unlearning ({' / '.join(TASKS)})."}


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


# --- Numbers ----------------------------------------------------------------------------------------------------------

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


# --- Tables -----------------------------------------------------------------------------------------------------------

def make_tables(name: str, rows: list[dict], own: bool = False) -> list[Table]:
    """The tables of one name: one for each data set and number of corrupted images that has rows for it.

    Args: name: of NAMES: mean, cells, plane, ablations, or the number of a table of the paper; rows: of
        `rows.load_rows`; own: leave the paper's data sets out of tables in which the paper has another one.
    Returns: Tables, none where no row belongs to them.
    """
    rows = sweep(without_extra_curves(rows))
    if name in ("mean", "cells"):
        return [(means if name == "mean" else cells)(key, part) for key, part in groups(rows, "etd").items()]
    if name in ("plane", "ablations"):
        made = [(plane if name == "plane" else ablations)(key, part) for key, part in groups(etd_alone(rows)).items()]
        return list(filter(None, made))
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


def groups(rows: list[dict], *more: str) -> dict[tuple, list[dict]]:
    """What is set side by side, by `place`; runs without masks stand beside those of every p_mem."""
    found = {}
    for key, part in split(rows, "data", "n", "arch", "capacity", *more).items():
        sizes = sorted({row["p_mem"] for row in part if not maskless(row)}) or [SETTINGS["p_mem"]]
        found |= {(p_mem, *key): [row for row in part if maskless(row) or row["p_mem"] == p_mem] for p_mem in sizes}
    return found


def kept_and_best(rows: list[dict]) -> tuple[list[dict], list[dict]]:
    """Of `sweep` the runs that are compared, one per network, and those at the best values of each cell."""
    return networks([row for row in rows if row["kept"]]), [row for row in rows if row["best"]]


def beside(rows: list[dict], rem: list[dict], best: list[dict]) -> tuple:
    """The columns BESIDE of one method: its runs, REM's, and its own at the best values of each cell."""
    return *against_rem(rows, rem), learnt(rows), percent(row["product"] for row in pick(best))


def table_of(name: str, title: str, caption: str, columns: dict[str, bool], lines: list[tuple], digits=2) -> Table:
    """A Table without the columns of BESIDE that are empty, and with what the others mean in its caption.

    Args: columns: name -> whether it holds (mean, SEM).
    """
    used = [name not in ("learnt", "best per cell") or any(row[k] is not None for row in lines) for k, name in enumerate(columns)]
    header = tuple(itertools.compress(columns, used))
    notes = [text for name, text in NOTES.items() if name in header]
    return Table(slug(name), title, " ".join([caption, *notes]), header,
                 [tuple(itertools.compress(row, used)) for row in lines], tuple(n for n in header if columns[n]), digits)


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
    return ":" in method or method in METHODS and METHODS[method].part == "compared"


def paper_table(number: str, data: str, n: int, rows: list[dict]) -> Table:
    """A table of the paper with our numbers beside it, ours in descending order; what was not run is empty."""
    spec, (rows, best) = PAPER["tables"][number], kept_and_best(rows)
    keys = ("capacity", "etd", "method")
    ours = {arch: split([r for r in rows if r["arch"] == arch], *keys) for arch in (spec["arch"], "vit")}
    best = split([r for r in best if r["arch"] == spec["arch"]], *keys)
    paper = {tuple(row[key] for key in keys): {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
             for row in spec["rows"]}
    every = dict.fromkeys([*paper, *ours[spec["arch"]], *ours["vit"]])
    lines = []
    for key in descending({key: summary(ours[spec["arch"]].get(key, [])) for key in every}):
        (capacity, etd, method), mine, theirs = key, ours[spec["arch"]].get(key, []), paper.get(key, {})
        first = {"capacity": f"{100 * capacity:g}", "ETD": etd}
        first |= {"3.1": "no31" not in method, "3.2": "no32" not in method}
        rem = baseline([row for row in rows if (row["arch"], row["capacity"]) == (spec["arch"], capacity)])
        line = (*(first[c] for c in COLUMNS.get(number, ())), method,
                *beside_papers(mine, theirs, spec, best=best.get(key) if number in BEST else None))
        if number == "1":
            product = {"product": theirs.get("vit")}
            line += beside_papers(ours["vit"].get(key, []), product, PAPER["tables"]["5"], ("product",))
        lines.append((*line, *beside(mine, rem, best.get(key, []))))
    scores = dict.fromkeys(["Healed", "Healed (paper)", "Utility", "Utility (paper)", "product", "product (paper)"], True)
    vit = {"ViT n": 0, "ViT product": 1, "ViT product (paper)": 1, "ViT difference": 0} if number == "1" else {}
    text = " ".join([caption(rows, "arch", *keys), *once(rows), of_the_paper(number)])
    columns = dict.fromkeys([*COLUMNS.get(number, ()), "method", "n"], False) | scores | {"difference": False} | vit
    return table_of(f"table {number} {data} n{n}", f"Table {number}: {data}, {n} corrupted", text, columns | BESIDE, lines)


def beside_papers(rows: list[dict], theirs: dict, spec: dict, scores=SCORES, best=None) -> tuple:
    """n, each score of ours and the paper's, and the difference in product where both are over the same cells.

    Args: best: runs of which the difference is taken, where the paper's are at the best values of each cell.
    """
    mine, product = summary(rows), summary(best or rows)["product"]
    pairs = [value for key in scores for value in (mine[key], theirs.get(key))]
    alike = like_the_papers(best or rows, spec["dataset"], spec["corrupted"])
    return mine["n"], *pairs, difference(product, theirs.get("product")) if alike else None


def of_the_paper(number: str) -> str:
    """Where the paper's numbers of a table come from, and how far ours can be compared."""
    spec, rates = PAPER["tables"][number], len(PAPER["discovery"])
    data = f"{spec['data']} (ViT: SVHN)" if number == "1" else spec["data"]
    text = (f"The paper's numbers: {data}, {spec['corrupted']} corrupted, over its {len(TASKS) * rates} cells "
            f"({len(TASKS)} tasks × {rates} discovery rates); no difference is given where ours are over other data or "
            "cells.")
    if number in BEST:
        text += (" They are of the best method for each discovery rate and task: where several values of a setting were "
                 "run, the difference is that of best per cell.")
    if number in ON_ETD:
        plain = {"8": 4, "9": 5}.get(number)
        hint = f"; its Utility is below that of Table {plain}, which may mean with ETD" if plain else ""
        text += (" Trained with ETD, but for retrain, a plain network here (the paper does not say how its is trained"
                 f"{hint}).")
    return text


def means(key: tuple, rows: list[dict]) -> Table:
    """Every method of one group: runs, scores, seconds, and the time relative to training beside A.8's."""
    rows, best = kept_and_best(rows)
    parts = {method: part for (method,), part in split(rows, "method").items()}
    scores, lines = {method: summary(part) for method, part in parts.items()}, []
    for method in descending(scores):
        mine, good = scores[method], pick(parts[method])
        timed = [row for row in good if row.get("seconds") is not None]
        timed = [row for row in timed if not measured(row)] or timed
        shares = [100 * row["seconds"] / row["train_seconds"] for row in timed if row.get("train_seconds")]
        times = [mean_sem(v)[0] if v else None for v in ([row["seconds"] for row in timed], shares)]
        times = [None if v is None else f"{v:.1f}" for v in (*times, PAPER["A.8"].get(method))]
        more = beside(parts[method], baseline(rows), [row for row in best if row["method"] == method])
        lines.append((method, mine["n"], mine["failed"], *(mine[k] for k in SCORES), *more, *times))
    note = ("Time in percent of training, beside A.8's (CIFAR10, 50 % capacity). With --jobs the seconds include "
            "waiting for each other. Runs with Fig. 5's points are timed with their measuring, so these count only "
            "where there is no other.")
    columns = {"method": 0, "n": 0, "failed": 0, "Healed": 1, "Utility": 1, "product": 1, **BESIDE}
    columns |= dict.fromkeys(["seconds", "time %", "time % (paper)"], False)
    text = " ".join([caption(rows, "method"), *once(rows), note])
    return table_of("mean " + short(key), "Means: " + place(key), text, columns, lines)


def cells(key: tuple, rows: list[dict]) -> Table:
    """Mean product of each method in each task and at each discovery rate."""
    rates, lines = sorted({row["discovery"] for row in rows}), []
    kept, best = [row for row in rows if row["kept"]], [row for row in rows if row["best"]]
    for (task,), part in split(kept, "task").items():
        named = {method: runs for (method,), runs in split(part, "method").items()}
        named = {method: named[method] for method in descending({name: summary(runs) for name, runs in named.items()})}
        named |= {f"{method}, best per cell (not ranked)": runs
                  for (method,), runs in split(pick(best, task=task), "method").items()}
        for name, runs in named.items():
            found = [percent(row["product"] for row in pick(runs, discovery=rate)) for rate in rates]
            lines.append((task, name, *found, *beside(networks(runs), baseline(part), [])))
    sizes = [len(part) for part in split(pick(kept), "task", "method", "discovery").values()]
    least_most = sorted({min(sizes, default=0), max(sizes, default=0)})
    note = f"Columns: discovery rates; runs per cell: {' to '.join(map(str, least_most))}."
    columns = {"task": 0, "method": 0, **dict.fromkeys([f"{rate:g}" for rate in rates], True), **BESIDE}
    return table_of("cells " + short(key), "Product: " + place(key), f"{caption(kept, 'method')} {note}", columns, lines)


def plane(key: tuple, rows: list[dict]) -> Table | None:
    """Mean product of each method in every cell that has all seeds, and over these cells, beside the paper's mean.

    Returns: None where there is no such cell.
    """
    rows = [row for row in rows if compared(row["method"])]
    places = [{(row["task"], row["discovery"]) for row in part} for part in split(rows, "seed").values()]
    shared = sorted(set.intersection(*places) if places else (), key=lambda at: (TASKS.index(at[0]), at[1]))
    rows = [row for row in rows if (row["task"], row["discovery"]) in shared]
    if not rows:
        return None
    (kept, best), number, lines = kept_and_best(rows), "4" if key[3] == "resnet9" else "5", []
    parts, best = split(kept, "method", "etd"), split(best, "method", "etd")
    theirs = {(r["method"], r["etd"]): f"{r['product'][0]:.1f}" for r in PAPER["tables"][number]["rows"]
              if r["capacity"] == key[4]}
    for name in descending({name: summary(part) for name, part in parts.items()}):
        runs = [row for row in rows if row["kept"] and (row["method"], row["etd"]) == name]
        cells_of = [percent(r["product"] for r in pick(runs, task=task, discovery=rate)) for task, rate in shared]
        noted, *ended = endings(parts[name])
        lines.append((called(*name), *(found and f"{found[0]:.0f}" for found in cells_of), summary(parts[name])["product"],
                      *beside(parts[name], baseline(kept), best.get(name, [])),
                      " / ".join(map(str, ended)) if noted else None, theirs.get(name)))
    columns = {"method": 0, **{f"{task} {rate:g}": 0 for task, rate in shared}, "mean": 1, **BESIDE,
               "gave up / idle": 0, f"Table {number}": 0}
    text = f"{caption(kept, 'method', 'etd')} Table {number}: the paper's product, of its data and all of its cells."
    return table_of("plane " + short(key), "Product: " + place(key), text, columns, lines, digits=1)


def called(method: str, etd: bool) -> str:
    """A method with its training."""
    return "ETD alone" if etd and method == "no-ul" else method + " on ETD" * etd


def ablations(key: tuple, rows: list[dict]) -> Table | None:
    """Table 2's variants and what knows all of D_c: product by task, and REM's less theirs over all pairs on file.

    Returns: None where no variant was run.
    """
    ideal = {name for name, method in METHODS.items() if method.part == "ideal"} - {"etd"}
    rows, _ = kept_and_best([row for row in rows if row["method"] in {*VARIANTS, *ideal}])
    parts, lines = split(rows, "method", "etd"), []
    if not {row["method"] for row in rows} - {"rem"}:
        return None
    for name in descending({name: summary(part) for name, part in parts.items()}):
        mine, rem = parts[name], parts.get(("rem", name[1]), [])
        less = {} if name[0] == "rem" else minus(products(rem), products(mine))
        tasks = [percent(row["product"] for row in pick(mine, task=task)) for task in TASKS]
        score = summary(mine)
        lines.append((called(*name), score["n"], *tasks, score["product"], percent(less.values()), len(less) or None,
                      *over_seeds(less)))
    columns = {"method": 0, "n": 0, **dict.fromkeys([*TASKS, "mean", "REM less it"], True), "runs": 0,
               "REM less it, over seeds": 1, "seeds": 0}
    text = (f"{caption(rows, 'method', 'etd')} REM less it: of the product in the same cell and seed, over all paired runs; "
            "over seeds: of each seed's mean over the cells that every seed has, as many as seeds × cells.")
    return table_of("ablations " + short(key), "Ablations: " + place(key), text, columns, lines, digits=1)


def place(key: tuple) -> str:
    """A group of runs in words."""
    p_mem, data, n, arch, capacity, *etd = key
    training = "".join(", with ETD" if some else ", no ETD" for some in etd)
    return f"{data}, {n} corrupted, {arch}, capacity {100 * capacity:g} %{training}, p_mem {p_mem:g}"


def short(key: tuple) -> str:
    """A group of runs in a file name."""
    p_mem, data, n, arch, capacity, *etd = key
    return f"{data} n{n} {arch} c{100 * capacity:g}{' etd' if any(etd) else ''} p{p_mem:g}"


def slug(text: str) -> str:
    """A file name of letters, digits, dots and hyphens."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")
