"""Rows of result files: read, told apart, and chosen where several stand for one run or one algorithm.

    rows = load_rows(["results/fashion-mini", "runs/cells.jsonl"])
    rem = pick(rows, method="rem", etd=False, discovery=(0.1, 0.5))     # those that ended well
    for (task, seed), part in split(rem, "task", "seed").items(): ...
"""

import json
import math
import re
import sys
from collections import defaultdict
from dataclasses import fields
from operator import itemgetter
from pathlib import Path

from methods import METHODS, OPTIONAL, reads_setting
from metrics import mean_sem
from settings import TASKS, Config
from tasks import PAIRS

SETTINGS = {f.name: f.default for f in fields(Config)}
SCORES = ("healed", "utility", "product")
NOT_IDENTITY = {"dataset", "data_dir", "image_size", "download", "device", "out", "quiet", "curve"}  # `data` names the first 3
IDENTITY = itemgetter("data", *(key for key in SETTINGS if key not in NOT_IDENTITY))


# --- Reading ------------------------------------------------------------------------------------------------------------


def load_rows(paths) -> list[dict]:
    """Rows of result files, one a run and cell: of several `latest` says which counts.

    Args:
        paths: files, or folders for every *.jsonl below them; a folder's are read in the order of their names.

    Returns:
        Rows with every setting, `data` (the data set's name) and `ran` (the method's name as run).

    Raises:
        ValueError: a path that is not there, or no row at all.
    """
    rows = []
    for path in map(Path, paths):
        if not path.exists():
            raise ValueError(f"no file or folder {path}")
        for file in sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]:
            rows += read(file)
    if not rows:
        raise ValueError(f"no rows in {', '.join(map(str, paths))}")
    return best_alpha(latest(rows))


def read(file: Path) -> list[dict]:
    """The whole rows of one file; lines that are none are skipped and named in one warning, C-scores without a word."""
    rows, torn = [], []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows += [] if is_c_score(row) else [canonical(whole(row))]
        except (ValueError, TypeError, KeyError):
            torn.append(number)
    if torn:
        lines = f"line {torn[0]} is" if len(torn) == 1 else f"{len(torn)} lines, the first of them {torn[0]}, are"
        print(f"run.py report: warning: {file}: {lines} not a whole row; skipped", file=sys.stderr)
    return rows


def is_c_score(row) -> bool:
    """Whether a line is of `run.py cscore`, which has scores of tasks and none of methods."""
    return isinstance(row, dict) and "method" not in row and {"sizes", "runs"} <= set(row)


def whole(row: dict) -> dict:
    """The row itself with defaults for settings that older rows lack; ValueError unless it can be averaged or counted."""
    row = {**SETTINGS, "forget_norm": "batch", **row}  # what version 0.1.0 did, which had no such setting
    numbers = [row[key] for key in ("discovery", "n", "capacity", "p_mem", "seed")]
    numbers += [row[key] for key in SCORES] if row["status"] == "ok" else []
    numbers += [row[key] for key in ("ratio", "seconds", "train_seconds", "healed_test") if row.get(key) is not None]
    sound = all(isinstance(value, int | float) and math.isfinite(value) for value in numbers) and row["capacity"] > 0
    plain = all(isinstance(row[key], str | int | float | None) for key in SETTINGS)
    named = all(isinstance(row[key], type(SETTINGS[key])) for key in ("method", "dataset", "data_dir", "etd"))
    known = row["task"] in TASKS and row["arch"] in ("resnet9", "vit") and row["status"] in ("ok", "failed")
    if not (sound and plain and named and known):
        raise ValueError("not a result row")
    return row


def canonical(row: dict) -> dict:
    """The row with the method's name by what ran, and without settings that say the same twice or do not matter to it.

    rem-on-etd is rem on a network trained with --etd; rem with a step or the redirect loss changed is that ablation.
    """
    method, pixels, named = row["method"], row["image_size"], set()
    masks = reads_setting("p_mem", row)
    if method in ("rem", "rem-on-etd"):
        named = {"step31", "step32", "redirect"}
        off = "".join(f"-no{step}" for step in ("31", "32") if not row["step" + step])
        method = "rem" + off + ("-ce" if row["redirect"] == "ce" and row["step31"] else "")
    idle = {axis for axis in OPTIONAL if not reads_setting(axis, row)} - {"curve"} | named
    row = {**row, **{axis: SETTINGS[axis] for axis in idle}}
    usual = "batch" if method == "rem-no31-no32" else METHODS[row["method"]].norm if row["method"] in METHODS else ""
    if row["forget_norm"] == usual:
        row = {**row, "forget_norm": "auto"}
    row = {**row, "method": method, "ran": row["method"], "pair": confused(row)}
    data = row["dataset"] + (f" {row['data_dir']}" if row["dataset"] == "folder" else "")
    data += f" at {pixels} px" if pixels else ""
    ratio = 1 / row["capacity"] - 1 if row["ratio"] is None else row["ratio"]
    return {**row, "ratio": ratio if masks else None, "data": data}


def maskless(row: dict) -> bool:
    """Whether no mask acted in a run: trained without ETD, by a method without theta_o2."""
    return row["ratio"] is None


def confused(row: dict) -> str | None:
    """The setting `pair`, None where it is the data set's customary one or the task confuses no classes."""
    pair = None if row["pair"] is None else ",".join(sorted(part.strip() for part in str(row["pair"]).split(",")))
    customary = ",".join(map(str, PAIRS.get(row["dataset"], ())))
    return pair if row["task"] == "confusion" and pair != customary else None


def reads_forget(method: str) -> bool:
    """Whether a method depends on D_f; of one that does not, the network is the same at every discovery rate."""
    return method not in METHODS or METHODS[method].reads_forget


# --- One row a run ------------------------------------------------------------------------------------------------------


def identity(row: dict) -> tuple:
    """What makes two rows the same run."""
    return IDENTITY(row)


def network(row: dict) -> tuple:
    """What makes two rows the same network: for methods that read no D_f every setting but the discovery rate."""
    return identity({**row, "discovery": None} if not reads_forget(row["method"]) else row)


def measured(row: dict) -> bool:
    """Whether the run noted Fig. 5's points, which its seconds contain."""
    return bool(row.get("points")) and row["curve"]


def latest(rows: list[dict], key=identity) -> list[dict]:
    """One row a run; it has Fig. 5's points if any row of the run that ended well has.

    Of several rows that one counts that the newest version of the code made; then one that ended well; then that by name
    (rem-on-etd, no-ul); then one with healed_test, which older code did not write; then one timed without Fig. 5's points;
    then the later in the file. Rows have no date: between files "later" is the order in which they are given, in a folder
    that of their names.
    """
    def rank(row):
        version = [int(part) for part in re.findall(r"\d+", str(row.get("version")))]  # none is older than any
        return version, row["status"] == "ok", row["ran"] not in ("rem", "etd"), row.get("healed_test") is not None, not measured(row)

    kept, points = {}, {}
    for row in rows:
        name = key(row)
        if name not in kept or rank(row) >= rank(kept[name]):
            kept[name] = row
        if row["status"] == "ok" and row.get("points"):
            points[name] = row["points"]
    return [{**row, "points": points[name]} if name in points else row for name, row in kept.items()]


def networks(rows: list[dict]) -> list[dict]:
    """One row a network, for means and SEMs: at ten discovery rates no-ul is one network, not ten."""
    return latest(rows, network)


def best_alpha(rows: list[dict]) -> list[dict]:
    """SCRUB at the best alpha in each task and discovery rate, as the paper does; `alphas`: how many there were.

    The best has the most runs that ended well, then the best mean product: an alpha does not win by failing.
    """
    cells, kept = defaultdict(lambda: defaultdict(list)), [row for row in rows if row["method"] != "scrub"]
    for row in rows:
        if row["method"] == "scrub":
            cells[identity({**row, "alpha": None, "seed": None})][row["alpha"]].append(row)

    def score(runs):
        good = [row["product"] for row in runs if row["status"] == "ok"]
        return len(good), mean_sem(good)[0] if good else -1.0

    for cell in cells.values():
        kept += [{**row, "alphas": len(cell)} for row in max(cell.values(), key=score)]
    return kept


def etd_alone(rows: list[dict]) -> list[dict]:
    """The method etd as the paper's "No UL" with ETD, where that was not run itself."""
    return latest([{**row, "method": "no-ul", "etd": True} if row["method"] == "etd" else row for row in rows])


def without_extra_curves(rows: list[dict]) -> list[dict]:
    """Rows without those of Fig. 5 (5 unlearning epochs) whose cell was run at another number of epochs as well."""
    def cell(row):
        return identity({**row, "unlearn_epochs": None})

    plain = {cell(row) for row in rows if not measured(row)}
    return [row for row in rows if not measured(row) or cell(row) not in plain]


# --- Picking ------------------------------------------------------------------------------------------------------------


def pick(rows: list[dict], **wanted) -> list[dict]:
    """Rows that ended well and have these values; a tuple or set means any of its entries."""
    some = {key: value if isinstance(value, tuple | set) else (value,) for key, value in wanted.items()}
    return [row for row in rows if row["status"] == "ok" and all(row[key] in values for key, values in some.items())]


def split(rows: list[dict], *keys) -> dict[tuple, list[dict]]:
    """Rows by the values of these keys, in ascending order of the values."""
    parts = defaultdict(list)
    for row in rows:
        parts[tuple(row[key] for key in keys)].append(row)
    return dict(sorted(parts.items()))
