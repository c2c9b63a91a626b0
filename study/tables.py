"""Tables of result rows on pandas: means over runs and over seeds, the paper's numbers beside ours (Tables 1, 2, 4-9).

    for table in make_tables("4", load_rows(["results/fashion-mini"])):
        print(markdown(table))

    npo, rem = (by_cell(frame_of(pick(rows, method=name))) for name in ("npo", "rem"))
    mean, pairs = over_seeds(minus(npo, rem))        # in the same cells and seeds; the seeds are what is independent

Choice: over seeds count only the cells that every seed has, for means of other cells differ for that alone.
Choice: means and SEMs are those of metrics.py and fmean, whose sums are exact, so that no order of the rows moves the
last digit of a table, as it does in pandas' own.
Choice: Tables 8 and 9 are read as trained with ETD, since their No UL differs from that of Tables 4 and 5, which no
mask would change.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import pandas as pd

from experiment.methods import METHODS, reads_forget
from experiment.settings import EVERY_TASK
from study.captions import caption, endings, once
from study.rows import (SETTINGS, VARIANTS, compared, etd_alone, maskless, measured, networks, percent, pick, split,
                        sweep, without_extra_curves)
from tasks import TASKS

PAPER = json.loads(Path(__file__).with_name("paper.json").read_text())
FIELDS = ("data", "n", "arch", "capacity", "etd", "method", "task", "discovery", "seed", "status", "healed", "utility",
          "product", "misled", "learnt", "seconds", "train_seconds", "measured")  # of rows, in a frame
SCORES = {"healed": "Healed", "utility": "Utility", "product": "product"}
ANY_RATE = 0.0  # stands for the discovery rate of what reads no D_f
ON_ETD = ("7", "8", "9")  # tables of networks trained with ETD
BEST = ("5", "6", "7")  # whose values are "to the best method for each discovery rate - regularity pairing"
COLUMNS = {"1": ["ETD"], "2": ["3.1", "3.2", "ETD"], "4": ["capacity", "ETD"], "5": ["capacity", "ETD"]}
SOME = ["misled", "learnt", "best per cell", "gave up / idle"]  # columns for which few or old rows have no numbers
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


# --- Numbers ----------------------------------------------------------------------------------------------------------

def frame_of(rows: list[dict]) -> pd.DataFrame:
    """Rows as a frame of FIELDS, with None or NaN for what a row lacks."""
    return pd.DataFrame([{**row, "measured": measured(row)} for row in rows], columns=FIELDS, dtype=object)


def finished(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs that ended well."""
    return frame[frame["status"] == "ok"]


def by_cell(frame: pd.DataFrame, score: str = "product") -> pd.Series:
    """A method's score by task, discovery rate and seed, of its runs that ended well.

    The rate is ANY_RATE of methods that read no D_f, which have one network for all rates.
    """
    good = finished(frame).dropna(subset=score)
    reads = good["method"].map(reads_forget).astype(bool)
    good = good.assign(discovery=good["discovery"].astype(float).where(reads, ANY_RATE))
    return good.groupby(["task", "discovery", "seed"])[score].agg(fmean).astype(float)


def paired(mine: pd.Series, other: pd.Series) -> list[pd.Series]:
    """Both, in every cell and unit that both have; what has ANY_RATE is the same at every rate."""
    index = mine.index.union(other.index)
    at_any = pd.MultiIndex.from_frame(index.to_frame().assign(discovery=ANY_RATE))
    both = pd.DataFrame({k: values.reindex(index).fillna(pd.Series(values.reindex(at_any).to_numpy(), index))
                         for k, values in enumerate((mine, other))}, dtype=float).dropna()
    return [both[0], both[1]]


def minus(mine: pd.Series, other: pd.Series) -> pd.Series:
    """Mine less the other's in every cell and unit that both have."""
    mine, other = paired(mine, other)
    return mine - other


def over_seeds(values: pd.Series, unit: Sequence[str] = ("seed",)) -> tuple[tuple | None, str | None]:
    """Mean and SEM over units of each unit's mean over the cells that every unit has, in percent; "units × cells".

    Returns: ((mean, SEM), text), the SEM None of one unit; (None, None) where the units have no cell in common.
    """
    shared = values.unstack(list(unit)).dropna() if len(values) else ()
    if not len(shared):
        return None, None
    return percent(map(fmean, shared.T.to_numpy())), f"{shared.shape[1]} × {len(shared)}"


def learnt(frame: pd.DataFrame) -> str | None:
    """Of the untouched network its accuracy on D_c's labels as given, in percent, a number per task of TASKS, "-" where
    there is no such run; None where there is none of any task."""
    good = finished(frame).dropna(subset="learnt")
    means = good[good["method"] == "no-ul"].groupby("task")["learnt"].agg(fmean)
    tasks = TASKS if set(TASKS) & set(means.index) else EVERY_TASK[len(TASKS):]
    texts = [f"{100 * means[task]:.0f}" if task in means.index else "-" for task in tasks]
    return " / ".join(texts) if len(means) else None


def summary(frame: pd.DataFrame) -> dict:
    """n (runs that ended well; None where none was tried), failed, and mean and SEM over runs of each score, in %."""
    good = finished(frame)
    counts = {"n": len(good) if len(frame) else None, "failed": len(frame) - len(good)}
    return counts | {key: percent(good[key]) for key in SCORES}


def by_product(parts: dict[tuple, pd.DataFrame]) -> dict[tuple, pd.DataFrame]:
    """Parts in descending order of their mean product; those without a run stay in order at the end."""
    means = {key: summary(part)["product"] for key, part in parts.items()}
    return {key: parts[key] for key in sorted(parts, key=lambda key: -means[key][0] if means[key] else 1.0)}


def parts_of(frame: pd.DataFrame, *keys: str) -> dict[tuple, pd.DataFrame]:
    """A frame by the values of these fields, best product first."""
    return by_product(dict(iter(frame.groupby(list(keys)))))


# --- From a table to text ---------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Table:
    """A table before it is written; a cell is str, int, bool, None (empty) or (mean, SEM)."""

    title: str
    caption: str
    cells: pd.DataFrame
    digits: int = 2  # decimals of mean and SEM

    def texts(self, escape: Callable[[str], str]) -> pd.DataFrame:
        """Head and cells as text."""
        return self.cells.rename(columns=escape).map(lambda cell: escape(shown(cell, self.digits)))


def shown(cell, digits: int = 2) -> str:
    """A cell as text, with so many decimals."""
    if isinstance(cell, tuple):
        return f"{cell[0]:.{digits}f}" + ("" if cell[1] is None else f" ± {cell[1]:.{digits}f}")
    return "" if cell is None or cell is False else "✓" if cell is True else str(cell)


def markdown(table: Table) -> str:
    """The table in Markdown, its columns aligned, title and caption above; pandas would need another package."""
    texts = table.texts(lambda text: text.replace("\\", r"\\").replace("|", r"\|"))
    grid = [list(texts), *texts.to_numpy().tolist()]
    wide = [max(3, *map(len, column)) for column in zip(*grid, strict=True)]
    grid.insert(1, ["-" * width for width in wide])
    lines = ["| " + " | ".join(map(str.ljust, row, wide)) + " |" for row in grid]
    return "\n".join([f"**{table.title}.** {table.caption}", "", *lines, ""])


LATEX = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {c: f"${c}$" for c in "<>|"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$",
    "✓": r"$\checkmark$"})


def latex(table: Table) -> str:
    """The table in LaTeX; it needs booktabs for its lines, and amssymb for the tick."""
    texts = table.texts(lambda text: text.translate(LATEX))
    return texts.to_latex(index=False, escape=False, caption=f"{table.title}. {table.caption}".translate(LATEX))


# --- Which rows stand in a table --------------------------------------------------------------------------------------

def make_tables(name: str, rows: list[dict], own: bool = False) -> list[Table]:
    """The tables of one name: one for each data set and number of corrupted images that has rows for it.

    Args: name: of NAMES: mean, plane, ablations, or the number of a table of the paper; rows: of `rows.load_rows`;
        own: leave the paper's data sets out of tables in which the paper has another one.
    Returns: Tables, none where no row belongs to them.
    """
    rows = sweep(without_extra_curves(rows))
    if name == "mean":
        return [means(title, part, rem_without_etd(rows, part)) for title, part in groups(rows, "etd")]
    rows = etd_alone(rows)
    if name in ("plane", "ablations"):
        return list(filter(None, [(plane if name == "plane" else ablations)(*group) for group in groups(rows)]))
    mine = [row for row in rows if belongs(row, name)]
    beside = {row["n"] for row in mine if row["data"] == "cifar10"}  # Table 1 has ViT on SVHN beside ResNet-9
    mine = [{**row, "study": "cifar10" if name == "1" and (row["data"], row["arch"]) == ("svhn", "vit")
             and row["n"] in beside else row["data"]} for row in mine]
    others = {table["dataset"] for table in PAPER["tables"].values()} - {PAPER["tables"][name]["dataset"]}
    # A plain retrain alone makes no table of networks trained with ETD.
    return [paper_table(name, *key, part) for key, part in split(mine, "study", "n").items()
            if not (own and key[0] in others) and (name not in ON_ETD or any(row["etd"] for row in part))]


def groups(rows: list[dict], *more: str) -> list[tuple[str, list[dict]]]:
    """What is set side by side, behind its title; runs without masks stand beside every p_mem."""
    found = []
    for (data, n, arch, capacity, *etd), part in split(rows, "data", "n", "arch", "capacity", *more).items():
        training = "".join(", with ETD" if some else ", no ETD" for some in etd)
        for p_mem in sorted({row["p_mem"] for row in part if not maskless(row)}) or [SETTINGS["p_mem"]]:
            title = f"{data}, {n} corrupted, {arch}, capacity {100 * capacity:g} %{training}, p_mem {p_mem:g}"
            found.append((title, [row for row in part if maskless(row) or row["p_mem"] == p_mem]))
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


def kept_and_best(rows: list[dict], *keys: str) -> tuple[list[dict], dict[tuple, pd.DataFrame]]:
    """Of `sweep` the runs that are compared, one per network; by these keys those at the best values of each cell."""
    best = frame_of(pick(rows, best=True)).groupby(list(keys))
    return networks([row for row in rows if row["kept"]]), dict(iter(best))


# --- Columns that several tables have ---------------------------------------------------------------------------------

def rem_of(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs that `minus REM` is less: of REM, or of REM+ where REM was not run; without ETD where there are such."""
    good = finished(frame)
    found = good[good["method"] == ("rem" if "rem" in set(good["method"]) else "rem-plus")]
    plain = found[~found["etd"].astype(bool)]
    return plain if len(plain) else found


def beside(frame: pd.DataFrame, rem: pd.DataFrame, best: pd.DataFrame | None = None) -> dict:
    """The columns on a method's product beside its mean over runs, of its runs, REM's, and its own at the best of each
    cell."""
    own = set(zip(frame["method"], frame["etd"])) <= set(zip(rem["method"], rem["etd"]))
    mean, seeds = over_seeds(by_cell(frame))
    less, pairs = (None, None) if own else over_seeds(minus(by_cell(frame), by_cell(rem)))
    good = finished(frame)
    return {"over seeds": mean, "seeds": seeds, "minus REM": less, "pairs": pairs,
            "misled": percent(good["misled"].dropna()), "learnt": learnt(frame),
            "best per cell": None if best is None else percent(best["product"])}


def table_of(title: str, text: str, lines: list[dict], digits: int = 2) -> Table:
    """A Table of these lines without the columns of SOME that are empty, with NOTES on the others."""
    cells = pd.DataFrame(lines, dtype=object)
    cells = cells.drop(columns=[name for name in SOME if name in cells and cells[name].isna().all()])
    return Table(title, " ".join([text, *(note for name, note in NOTES.items() if name in cells)]), cells, digits)


# --- The paper's ------------------------------------------------------------------------------------------------------

def paper_table(number: str, data: str, n: int, rows: list[dict]) -> Table:
    """A table of the paper with our numbers beside it, ours in descending order; what was not run is empty."""
    spec, keys = PAPER["tables"][number], ("arch", "capacity", "etd", "method")
    (rows, best), arch = kept_and_best(rows, *keys), spec["arch"]
    frame = frame_of(rows)
    ours = dict(iter(frame.groupby(list(keys))))
    paper = {tuple(row[key] for key in keys[1:]): row for row in spec["rows"]}
    every = dict.fromkeys([*paper, *sorted(key[1:] for key in ours if key[0] == arch), *(key[1:] for key in ours)])
    lines = []
    for key, mine in by_product({key: ours.get((arch, *key), frame[:0]) for key in every}).items():
        (capacity, etd, method), theirs, chosen = key, paper.get(key, {}), best.get((arch, *key))
        what = {"capacity": f"{100 * capacity:g}", "ETD": etd, "3.1": "no31" not in method, "3.2": "no32" not in method}
        rem = rem_of(frame[(frame["arch"] == arch) & (frame["capacity"] == capacity)])
        line = {name: what[name] for name in COLUMNS.get(number, ())} | {"method": method}
        line |= beside_papers(mine, theirs, spec, chosen if number in BEST else None) | beside(mine, rem, chosen)
        if number == "1":
            vit, on_svhn = ours.get(("vit", *key), frame[:0]), {"product": theirs.get("vit")}
            found = beside_papers(vit, on_svhn, PAPER["tables"]["5"])
            line |= {f"ViT {name}": found[name] for name in ("n", "product", "product (paper)", "difference")}
        lines.append(line)
    text = " ".join([caption(rows, *keys), *once(rows), of_the_paper(number)])
    return table_of(f"Table {number}: {data}, {n} corrupted", text, lines)


def beside_papers(frame: pd.DataFrame, theirs: dict, spec: dict, best: pd.DataFrame | None = None) -> dict:
    """n, each score of ours and the paper's, and the difference in product where both are over the same cells.

    Args: best: runs of which the difference is taken, where the paper's are at the best values of each cell.
    """
    mine, compared = summary(frame), frame if best is None else best
    paper = {key: tuple(value) if isinstance(value, list) else value for key, value in theirs.items()}  # or "OOM"
    line = {"n": mine["n"]}
    for key, name in SCORES.items():
        line |= {name: mine[key], f"{name} (paper)": paper.get(key)}
    alike = isinstance(paper.get("product"), tuple) and like_the_papers(compared, spec)
    return line | {"difference": f"{summary(compared)['product'][0] - paper['product'][0]:+.2f}" if alike else None}


def like_the_papers(frame: pd.DataFrame, spec: dict) -> bool:
    """Whether runs of one method are on a table's data, in all cells (task, rate) of the paper and in no other.

    The seeds may differ. Methods that read no D_f have no rates, so that the tasks are enough.
    """
    good = finished(frame)
    cells = set(by_cell(good).index.droplevel("seed"))
    papers = [{(task, rate) for task in TASKS for rate in rates} for rates in ([ANY_RATE], PAPER["discovery"])]
    return cells in papers and set(zip(good["data"], good["n"])) == {(spec["dataset"], spec["corrupted"])}


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

def means(title: str, rows: list[dict], plain: list[dict] = ()) -> Table:
    """Every method of one group: runs, scores, seconds, and the time relative to training beside A.8's; plain: REM's
    runs without ETD."""
    (rows, best), lines = kept_and_best(rows, "method"), []
    rem = rem_of(frame_of([*rows, *plain]))
    for (method,), part in parts_of(frame_of(rows), "method").items():
        line = {"method": method} | {SCORES.get(name, name): value for name, value in summary(part).items()}
        timed = finished(part).dropna(subset="seconds")
        timed = timed[~timed["measured"].astype(bool)] if not timed["measured"].all() else timed
        trained = timed[timed["train_seconds"].astype(float) > 0]
        shares = 100 * trained["seconds"] / trained["train_seconds"]
        times = [fmean(values) if len(values) else None for values in (timed["seconds"], shares)]
        times = [None if v is None else f"{v:.1f}" for v in (*times, PAPER["A.8"].get(method))]
        names = "seconds", "time %", "time % (paper)"
        lines.append(line | beside(part, rem, best.get((method,))) | dict(zip(names, times, strict=True)))
    note = ("Time in percent of training, beside A.8's (CIFAR10, 50 % capacity). With --jobs the seconds include "
            "waiting for each other. Runs with Fig. 5's points are timed with their measuring, so these count only "
            "where there is no other.")
    return table_of(f"Means: {title}", " ".join([caption(rows, "method"), *once(rows), note]), lines)


def plane(title: str, rows: list[dict]) -> Table | None:
    """Mean product of each method in every cell that has all seeds, and over them, beside the paper's; None of none."""
    rows, lines = [row for row in rows if compared(row["method"])], []
    frame = frame_of(pick(rows))
    has = frame.groupby(["task", "discovery", "seed"]).size().unstack(fill_value=0) > 0  # lines: cells, columns: seeds
    shared = sorted(has.index[has.all(axis=1)], key=lambda cell: (EVERY_TASK.index(cell[0]), cell[1]))
    if not shared:
        return None
    rows = [row for row in rows if (row["task"], row["discovery"]) in shared]
    (kept, best), number = kept_and_best(rows, "method", "etd"), "4" if rows[0]["arch"] == "resnet9" else "5"
    arch, capacity = rows[0]["arch"], rows[0]["capacity"]
    runs = frame_of(row for row in pick(rows) if row["kept"])
    products = runs.groupby(["method", "etd", "task", "discovery"])["product"].agg(fmean)
    rem = rem_of(frame_of(kept))
    for (method, etd), mine in parts_of(frame_of(kept), "method", "etd").items():
        noted, *ended = endings(pick(kept, method=method, etd=etd))
        found = (products.get((method, etd, *cell)) for cell in shared)
        line = {"method": called(method, etd)} | {f"{task} {rate:g}": None if value is None else f"{100 * value:.0f}"
                                                  for (task, rate), value in zip(shared, found, strict=True)}
        line |= {"mean": summary(mine)["product"]} | beside(mine, rem, best.get((method, etd)))
        line["gave up / idle"] = "{} / {}".format(*ended) if noted else None
        lines.append(line | {f"Table {number}": product_of_paper(arch, method, etd, capacity)})
    lacks = (~has).sum()
    lacking = ", ".join(f"seed {seed} lacks {cells}" for seed, cells in lacks.items() if cells)
    left_out = [f"Cells left out, which not every seed has: {len(has) - len(shared)} ({lacking})."] if lacking else []
    text = " ".join([caption(kept, "method", "etd"), *once(kept), *left_out,
                     f"Table {number}: the paper's product over its data and cells."])
    return table_of(f"Plane: {title}", text, lines, digits=1)


def product_of_paper(arch: str, method: str, etd: bool, capacity: float) -> str | None:
    """The paper's product over its data and cells, of Table 4, or of Table 5 for a ViT; None where it has none."""
    found = [row["product"][0] for row in PAPER["tables"]["4" if arch == "resnet9" else "5"]["rows"]
             if (row["method"], row["etd"], row["capacity"]) == (method, etd, capacity)]
    return f"{found[0]:.1f}" if found else None


def called(method: str, etd: bool) -> str:
    """A method with its training."""
    if not etd:
        return method
    return "ETD alone" if method == "no-ul" else f"{method} on ETD"


def ablations(title: str, rows: list[dict]) -> Table | None:
    """Table 2's variants and what knows all of D_c: product by task, REM's less theirs over all pairs; None of none."""
    shown = {"ideal", "of REM+"}
    wanted = {*VARIANTS, "rem-plus", *(each for each, method in METHODS.items() if method.part in shown)} - {"etd"}
    rows = networks([row for row in rows if row["method"] in wanted and row["kept"]])
    if {row["method"] for row in rows} <= {"rem", "rem-plus"}:
        return None
    frame, lines = frame_of(rows), []
    parts = parts_of(frame, "method", "etd")
    for (method, etd), mine in parts.items():
        whole = "rem-plus" if method.startswith("rem-plus") else "rem"
        rem = frame[:0] if method == whole else parts.get((whole, etd), frame[:0])
        less, good = minus(by_cell(rem), by_cell(mine)), finished(mine)
        mean, pairs = over_seeds(less)
        line = {"method": called(method, etd), "n": len(good)}
        line |= {task: percent(good["product"][good["task"] == task]) for task in TASKS}
        lines.append(line | {"mean": percent(good["product"]), "REM less it": percent(less),
                             "paired runs": len(less) or None, "REM less it, over seeds": mean, "pairs": pairs})
    return table_of(f"Ablations: {title}", caption(rows, "method", "etd"), lines, digits=1)


NAMES = ("mean", "plane", "ablations", *PAPER["tables"])
