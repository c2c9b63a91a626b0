"""Rows of result files: read, told apart, and chosen where several stand for one run or one algorithm.

    rows = load_rows(["results/fashion-mini", "runs/cells.jsonl"])
    rem = pick(rows, method="rem", etd=False, discovery=(0.1, 0.5))     # those that ended well
    for (task, seed), part in split(rem, "task", "seed").items(): ...
    done = rows_by_cell(read_rows("runs/grid"))                         # cell key -> row
"""

import hashlib
import json
import math
import os
from collections import defaultdict
from dataclasses import fields
from operator import itemgetter
from pathlib import Path

import torch

from experiment.console import tell
from experiment.datasets import RECIPES
from experiment.files import check_readable
from experiment.methods import MASKS, METHODS, OF_VIT, OPTIONAL, STEP3, code_of, reads_forget, reads_setting
from experiment.settings import DATASET_PRESETS, Config, OF_THE_RUN, VERSION, resolve
from metrics import mean_sem
from tasks import PAIRS

SETTINGS = {f.name: f.default for f in fields(Config)}
SCORES = ("healed", "utility", "product")
# In [0, 1]; other numbers are at least 0.
SHARES = {*SCORES, "healed_test", "misled", "learnt", "acc_forget", "base", "full"}
PRINTED_SINCE = (0, 7)  # versions before this one had REM+ under the name `rem`
LATER = {"remove_weight": "share"}  # settings that rows of earlier versions lack, and what these ran with
VARIANTS = ("rem", *(name for name in METHODS if METHODS[name].part == "ablation"), "rem-no31-no32")  # of Table 2
SWEPT = sorted(OPTIONAL - MASKS - STEP3 - {"curve"})  # of which a method may be run with several values, to choose from
# Or None; old rows lack some.
NUMBERS = ("seconds", "train_seconds", "healed_test", "misled", "learnt", "acc_forget", "passes", "reach_used")
# What two rows of one run may differ in; `data` has the place of a folder of images.
NOT_IDENTITY = OF_THE_RUN | {"curve"}
IDENTITY = itemgetter("data", *(name for name in SETTINGS if name not in NOT_IDENTITY))


class Missing(ValueError):
    """The results lack the rows that a table or figure is made of; the text says which."""


# --- Reading ----------------------------------------------------------------------------------------------------------

def load_rows(paths) -> list[dict]:
    """Rows of result files, one per run and cell: of several `latest` says which counts.

    Args: paths: files, or folders for every *.jsonl below them, which are read in the order of their names.
    Returns: rows with every setting, `data` (the data set's name) and `ran` (the method's name as run).
    Raises: ValueError for a path that is not there, or no row at all.
    """
    rows = []
    for path in map(Path, paths):
        if not path.exists():
            raise ValueError(f"no file or folder {path}")
        for file in filter(Path.is_file, sorted(path.rglob("*.jsonl"))) if path.is_dir() else [path]:
            rows += map(canonical, read_file(file))
    if not rows:
        raise ValueError(f"no rows in {', '.join(map(str, paths))}")
    warn_of_versions(rows)
    return latest(rows)


def warn_of_versions(rows: list[dict]) -> None:
    """Say on stderr how many rows `latest` leaves out for the images, or for the version of a user's method's file."""
    images = images_that_count(rows, IDENTITY)
    others = [row for row in rows if row.get("images") not in (None, images.get(IDENTITY(row)))]
    for (data,), part in split(others, "data").items():
        found = ", ".join(sorted({row["images"] for row in part}))
        tell(f"warning: {data}: {rows_in_words(part)} of other images ({found}) left out; of each cell the images of "
             "the last row count, in the order of the files")
    last = {IDENTITY(row): row.get("code") for row in rows}
    older = [row for row in rows if row.get("code") != last[IDENTITY(row)]]
    for (method,), part in split(older, "method").items():
        codes = ", ".join(sorted({str(row.get("code"))[:8] for row in part}))
        tell(f"warning: {method}: {rows_in_words(part)} of another file or version ({codes}) left out; of each cell "
             "the version of the last row counts, in the order of the files")


def rows_in_words(rows: list[dict]) -> str:
    """Their number, as "1 row" or "3 rows"."""
    return "1 row" if len(rows) == 1 else f"{len(rows)} rows"


def read_rows(folder: str | Path) -> list[dict]:
    """Every row of every *.jsonl in a folder."""
    return [row for path in sorted(Path(folder).glob("*.jsonl")) if path.is_file() for row in read_file(path)]


def read_file(file: Path) -> list[dict]:
    """The rows of one file; lines that are none are left out and named in one warning, C-scores without a word."""
    rows, odd = [], []
    try:
        check_readable(file, pipe=True)
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(f"cannot read {file} ({error.strerror or error}); give a result file or a folder") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not is_other(row):
                rows.append(named(checked({**LATER, **row})))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            odd.append(number)
    if odd:
        lines = f"line {odd[0]} is" if len(odd) == 1 else f"{len(odd)} lines, the first of them {odd[0]}, are"
        tell(f"warning: {file}: {lines} not a whole row; left out")
    return rows


def is_other(row) -> bool:
    """Whether a line is of cscore, tests/spread.py or a benchmark, removed ones among them: no method's row."""
    marks = ({"sizes", "runs"}, {"cell"}, {"kind", "isa"}, {"network", "layers"}, {"mode", "peak"}, {"axis", "peak"},
             {"variant", "rule"}, {"likely", "recall"}, {"network", "corruption"}, {"network", "treatment"}, {"ratios"})
    return isinstance(row, dict) and "method" not in row and any(mark <= row.keys() for mark in marks)


def checked(row: dict) -> dict:
    """The row itself; an error of some kind unless every setting is in its range and every number is one."""
    Config(**{name: row[name] for name in SETTINGS})
    numbers = [(key, row[key]) for key in SCORES if row["status"] == "ok"]
    numbers += [(key, row[key]) for key in NUMBERS if row.get(key) is not None]
    numbers += [(key, point[key]) for point in row.get("points", ()) for key in ("epoch", "base")]
    numbers += [(key, point[key]) for point in row.get("points", ()) for key in ("full", "healed") if key in point]
    sound = all(type(value) in (int, float) and 0 <= value <= (1 if key in SHARES else math.inf)
                and math.isfinite(value) for key, value in numbers)
    if not sound or row.get("gave_up") not in (None, False, True) or row["status"] not in ("ok", "failed"):
        raise ValueError("not a result row")
    if not isinstance(row.get("images"), str | None):
        raise ValueError("not a fingerprint")
    for text in (value for value in row.values() if isinstance(value, str)):
        text.encode("utf-8", "surrogateescape")  # half a letter is none; a file's name may have bytes that are none
    return row


def named(row: dict) -> dict:
    """The row, its method named by what its settings say that it was.

    Versions before 0.7 ran REM+ under the name `rem` (and its ablations likewise). Such a row is of `rem` where all
    four changes of REM+ were off, else of `rem-plus`. Without `stop` or `reach` a restart cannot happen, so `farther`
    does not matter there.
    """
    version = tuple(int(part) for part in str(row.get("version") or "0").split(".")[:2])
    name = row["method"]
    if version >= PRINTED_SINCE or name not in METHODS or not name.startswith("rem"):
        return row
    printed = row["stop"] == "max" and not row["reach"] and not row["disbelieved"]
    if printed:
        return row
    return {**row, "method": "rem-plus" if name == "rem-on-etd" else name.replace("rem", "rem-plus", 1)}


# --- What tells cells apart -------------------------------------------------------------------------------------------

def key_of(config: Config, code: str | None) -> str:
    """16 hexadecimal digits of what a cell's numbers depend on, the path of a folder and a user's code among it."""
    facts = {name: getattr(config, name) if reads_setting(name, vars(config)) else default
             for name, default in SETTINGS.items() if name not in OF_THE_RUN}
    if config.dataset == "folder":
        facts["data_dir"] = str(Path(config.data_dir).resolve())
    if config.task == "human" and config.human_labels:
        facts["human_labels"] = str(Path(config.human_labels).resolve())
    facts |= {name: of(vars(config)) for name, of in (("precision", precision_of), ("image_size", size_of))}
    facts |= {"method": Path(config.method).name, "code": code, "version": VERSION}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def cell_key(config: Config) -> str:
    """What tells a cell from every other, whether it has run or not."""
    return key_of(config, code_of(config.method))


def precision_of(setting: dict) -> str:
    """What precision "auto" comes to, by the device that settings ask for or that a row names."""
    on_gpu = torch.cuda.is_available() if setting["device"] == "auto" else setting["device"] != "cpu"
    return setting["precision"] if setting["precision"] != "auto" else "bf16" if on_gpu else "float32"


def size_of(setting: dict) -> int | None:
    """Pixels per side of settings or a row, None where they are the data set's own."""
    own = RECIPES.get(setting["dataset"], {}).get("size")  # None of folders
    return None if setting["image_size"] == own else setting["image_size"]


def rows_by_cell(rows: list[dict], images: dict[str, str] | None = None, others: list | None = None) -> dict[str, dict]:
    """Cell key -> its row of this version of the code; a good one before a failed one, else the last.

    Args: images: fingerprint by cell key: rows of other images do not count, older ones that do not say do; others: a
        list to which the keys of the rows that do not count for that are added.
    """
    mine, found = [row for row in rows if row.get("version") == VERSION], {}
    for row in sorted(mine, key=lambda row: row["status"] == "ok"):
        key = key_of(Config(**{name: row[name] for name in SETTINGS}), row.get("code"))
        if row.get("images") in (None, (images or {}).get(key, row.get("images"))):
            found[key] = row
        elif others is not None:
            others.append(key)
    return found


def canonical(row: dict) -> dict:
    """The row with the method's name by what ran, and without settings that say the same twice or do not matter to it.

    rem-on-etd is rem on a network trained with --etd; rem with a step or the redirect loss changed is that ablation.
    """
    method, pixels, named = row["method"], size_of(row), set()
    if method in ("rem", "rem-on-etd", "rem-plus"):
        named = STEP3
        off = "".join(f"-no{step}" for step in ("31", "32") if not row["step" + step])
        method = method.removesuffix("-on-etd") + off + ("-ce" if row["redirect"] == "ce" and row["step31"] else "")
    idle = {name for name in OPTIONAL - {"curve"} if not reads_setting(name, row)} | named
    usual = "batch" if method.endswith("-no31-no32") else METHODS[row["method"]].norm if row["method"] in METHODS else ""
    idle |= {"forget_norm"} if row["forget_norm"] == usual else set()
    data = row["dataset"] + (f" {place_of(row)}" if row["dataset"] == "folder" else "")
    usual_part = DATASET_PRESETS.get(row["dataset"], {}).get("per_class")
    if row["per_class"] not in (None, usual_part):  # other data, which tables and figures set apart
        data += f" of {row['per_class']} a class"
    if row["task"] == "poison" and row["trigger"] != SETTINGS["trigger"]:
        data += f" with the {row['trigger']} trigger"
    if row["task"] == "human":
        data += f" with labels {row['human_column']}"
    idle |= {name for name in {"trigger", "human_column", *OF_VIT} if not reads_setting(name, row)}
    ratio = Config(capacity=row["capacity"], ratio=row["ratio"]).extra_ratio if reads_setting("p_mem", row) else None
    found = {**row, **{name: SETTINGS[name] for name in idle}, "method": method, "ran": row["method"], "ratio": ratio,
             "pair": confused(row), "precision": precision_of(row), "image_size": pixels,
             "data": data + (f" at {pixels} px" if pixels else "")}
    return {name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
            for name, value in found.items()}  # the bytes of a folder's name that are no letters can be written so


def place_of(row: dict) -> Path:
    """A row's folder of images by one name, however it was given: relative where it lies below where we are."""
    folder = Path(os.path.abspath(row["data_dir"]))  # a link keeps its name: it may lead elsewhere on each machine
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def maskless(row: dict) -> bool:
    """Whether no mask acted in a run: trained without ETD, by a method without theta_o2."""
    return row["ratio"] is None


def confused(row: dict) -> str | None:
    """The setting `pair`, None where it is the data set's customary one or the task confuses no classes."""
    pair = None if row["pair"] is None else ",".join(sorted(part.strip() for part in str(row["pair"]).split(",")))
    customary = ",".join(map(str, PAIRS.get(row["dataset"], ())))
    return pair if row["task"] == "confusion" and pair != customary else None


# --- One row per run --------------------------------------------------------------------------------------------------

def measured(row: dict) -> bool:
    """Whether the run noted Fig. 5's points, which its seconds contain."""
    return bool(row.get("points")) and row["curve"]


def latest(rows: list[dict], key=IDENTITY) -> list[dict]:
    """One row per run; it has Fig. 5's points if any row of the run that ended well has.

    Of several rows that one counts that ended well; then one timed without Fig. 5's points; then the later in the file.
    Rows have no date: between files "later" is the order in which they are given, in a folder that of their names. Of a
    user's method those rows alone count that have the last one's `code`: an older file's do not stand for it. So it is
    with `images`, where rows have that.
    """
    last, images = {key(row): row.get("code") for row in rows}, images_that_count(rows, key)
    rows = [row for row in rows if row.get("code") == last[key(row)]
            and row.get("images") in (None, images.get(key(row)))]
    kept = {key(row): row for row in rows}  # in the order of their first rows
    kept |= {key(row): row for row in sorted(rows, key=lambda row: (row["status"] == "ok", not measured(row)))}
    points = {key(row): row["points"] for row in rows if row["status"] == "ok" and row.get("points")}
    return [{**row, "points": points[name]} if name in points else row for name, row in kept.items()]


def images_that_count(rows: list[dict], key) -> dict[tuple, str]:
    """The last row's fingerprint of images of each run, of rows that have one."""
    return {key(row): row["images"] for row in rows if row.get("images") is not None}


def networks(rows: list[dict]) -> list[dict]:
    """One row per network, for means and SEMs: what reads no D_f, such as no-ul, is one at ten discovery rates."""
    return latest(rows, lambda row: IDENTITY(row if reads_forget(row["method"]) else {**row, "discovery": None}))


def sweep(rows: list[dict]) -> list[dict]:
    """Rows, marked where a method was run with several values of its settings in one cell; other ones are all kept.

    Returns: rows with `kept`: whether the row has the values that the method is compared at, the same in all cells and
        chosen by no score (most defaults, then most runs); `best`: whether it has those with the best mean product in
        its task and discovery rate, of those with most runs that ended well (an oracle's choice; the paper's in Tables
        5-7); `tried`: setting -> its values. Rows that are neither are left out.
    """
    parts = defaultdict(list)
    for row in rows:
        parts[IDENTITY({**row, **dict.fromkeys(("task", "discovery", "seed", *SWEPT))})].append(row)
    return [row for part in parts.values() for row in marked(part)]


def marked(rows: list[dict]) -> list[dict]:
    """The rows of one method with the marks of `sweep`."""
    if len(split(rows, "task", "discovery", "seed")) == len(rows):
        return [{**row, "kept": True, "best": False, "tried": {}} for row in rows]
    default = vars(resolve({"dataset": rows[0]["dataset"], "arch": rows[0]["arch"]}))
    runs = split(rows, *SWEPT)
    one = max(runs, key=lambda values: (sum(default[name] == v for name, v in zip(SWEPT, values)), len(runs[values])))
    tried = {name: sorted({row[name] for row in rows}) for name in SWEPT}
    tried, found = {name: values for name, values in tried.items() if len(values) > 1}, []
    for cell in split(rows, "task", "discovery").values():
        mine = split(cell, *SWEPT)
        good = {values: [row["product"] for row in pick(part)] for values, part in mine.items()}
        best = max(mine, key=lambda values: (len(good[values]), math.fsum(good[values])))
        found += [{**row, "kept": values == one, "best": values == best, "tried": tried}
                  for values, part in mine.items() if values in (one, best) for row in part]
    return found


def etd_alone(rows: list[dict]) -> list[dict]:
    """The method etd as the paper's "No UL" with ETD, where that was not run itself."""
    named = [{**row, "method": "no-ul", "etd": True} if row["method"] == "etd" else row for row in rows]
    return latest(sorted(named, key=lambda row: row["ran"] != "etd"))  # no-ul itself is the later


def without_extra_curves(rows: list[dict]) -> list[dict]:
    """Rows without those of Fig. 5 (5 unlearning epochs) whose cell was run at another number of epochs as well."""
    cells = [IDENTITY({**row, "unlearn_epochs": None}) for row in rows]
    plain = {cell for cell, row in zip(cells, rows, strict=True) if not measured(row)}
    return [row for cell, row in zip(cells, rows, strict=True) if not measured(row) or cell not in plain]


# --- Picking ----------------------------------------------------------------------------------------------------------

def compared(method: str) -> bool:
    """Whether Tables 1 and 4-9 have a method: user-supplied ones too, no variant that is shown apart."""
    return ":" in method or method in METHODS and METHODS[method].part not in ("ablation", "ideal", "of REM+")


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


def percent(values) -> tuple[float, float | None] | None:
    """Mean and SEM of fractions, in percent; None of none."""
    values = list(values)
    return tuple(None if v is None else 100 * v for v in mean_sem(values)) if values else None
