"""Do the numbers in the READMEs follow from the rows? Every table is made again and compared with the page.

    python results/check.py                              # README.md and every README.md below results/
    python results/check.py results/lasting/README.md    # these pages alone

It prints a line per table and per sentence with figures that it compared, a line per mismatch (page, line, found,
expected) and a line for what it could not compare, and exits with 1 if anything differs, else with 0.

A table is made again in one of two ways:

- by a command that stands above it on its page: `run.py report RESULTS --table NAMES`, `run.py suspects --out FILE`,
  or a script with a function `table` (`benchmarks/scale.py`, `tests/spread.py --out FILE`). The page may leave columns
  out, but no line that has runs;
- by a function of this file (TABLES), which reads the labels of the lines and computes their cells.

A figure in a sentence is found by the words around it (FIGURES). No sentence is asked for: where a page does not have
the words, a line says that there was nothing to compare. New rows take an edited table or sentence and nothing here.

Not checked, because no rows hold them: what a page calls "no result file kept"; the paper's numbers in sentences;
counts and ranges that are written as words ("in all nine cells"); the table of names of code and that of choices in
README.md; the seconds in its printed output, and its epochs; estimates in benchmarks/scale.py.
"""

import argparse
import importlib.util
import itertools
import json
import re
import shlex
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean, stdev

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from study import discovery, report  # noqa: E402
from study.rows import SCORES, load_rows, networks, pick, products  # noqa: E402
from study.stats import mean_of_seeds, minus, percent  # noqa: E402
from study.tables import PAPER  # noqa: E402

TASKS = ("poison", "confusion", "random")
RATES = (0.1, 0.5, 1.0)
CELLS = [(task, rate) for task in TASKS for rate in RATES]
GRID = "results/fashion-mini/grid"
COPY = "results/cifar10-jpeg-16px"  # quarter width, bf16
HALF = "results/lasting/cifar10-jpeg-16px"  # half width
SEVEN = "results/rates/cifar10-jpeg-16px"  # the other seven rates
# Leading columns that name a line rather than measure something.
LABELS = {"", "method", "ETD", "task", "score", "discovery", "round", "user", "images", "mode", "what grows", "of",
          "measured", "REM, at most", "seeds", "width", "task, discovery", "over runs", "network", "theta_o2 beside",
          "corrupted", "seed", "variant", "data"}


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


def cells_of(line: str) -> list[str]:
    """The cells of a line of a Markdown table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


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


# --- Tables that a command makes --------------------------------------------------------------------------------------

@cache
def rows_at(*paths: str) -> list[dict]:
    """The rows of result files or folders below the root, one per run."""
    return load_rows([ROOT / path for path in paths])


@cache
def lines_at(path: str) -> list[dict]:
    """Every line of a file of JSON lines below the root."""
    return [json.loads(line) for line in (ROOT / path).read_text(encoding="utf-8").splitlines()]


def grid_of(markdown: str) -> list[list[str]]:
    """The header and the lines of a Markdown table, whatever stands above it."""
    lines = [cells_of(line) for line in markdown.splitlines() if line.startswith("|")]
    return lines[:1] + lines[2:]


@cache
def made_by(command: str) -> list[list[list[str]]]:
    """The tables that a command prints, each a header and lines; none of a command that prints no table of rows."""
    words = shlex.split(command, comments=True)
    script = next((word for word in words if word.endswith(".py")), "")
    given = words[words.index(script) + 1:] if script else []
    if script == "run.py" and given[:1] == ["report"]:
        return reported(given[1:])
    out = next((ROOT / value for name, value in itertools.pairwise(given) if name == "--out"), None)
    if script == "run.py" and given[:1] == ["suspects"] and out and out.is_file():
        lines = lines_at(str(out.relative_to(ROOT)))
        return [grid_of(make(lines)) for make in (discovery.suspects_table, discovery.round_table)]
    return scripted(script, out) if script.count("/") == 1 else []


def reported(words: list[str]) -> list[list[list[str]]]:
    """The tables of `run.py report` with these words, without its figures."""
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    asked = parser.parse_args(words)
    paths = [ROOT / path for path in asked.results]
    if not all(path.exists() for path in paths) or asked.figure and not asked.table:
        return []
    texts = report.report([str(path) for path in paths], asked.table, None, asked.seeds, "markdown", None)
    return [with_runs(grid_of(text)) for text in texts]


def with_runs(grid: list[list[str]]) -> list[list[str]]:
    """A table without the lines of what was not run, for which it has the paper's number alone."""
    place = grid[0].index("n") if "n" in grid[0] else None
    return [line for line in grid if place is None or line[place]]


def scripted(script: str, out: Path | None) -> list[list[list[str]]]:
    """The table that a script's function `table` makes of its rows: those of --out, or of results/NAME/NAME.jsonl."""
    path = ROOT / script
    rows = out or ROOT / "results" / path.stem / f"{path.stem}.jsonl"
    if not path.is_file() or not rows.is_file() or "\ndef table(" not in path.read_text(encoding="utf-8"):
        return []
    spec = importlib.util.spec_from_file_location(f"checked_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return [grid_of(module.table(lines_at(str(rows.relative_to(ROOT)))))]
    except KeyError:  # rows of another kind, which this page's own table is made of
        return []


def remade(shown: Shown) -> list[list[str]] | None:
    """The lines that a shown table should have, in its columns; None where nothing makes it."""
    for command in reversed(shown.commands):
        for header, *lines in filter(None, made_by(command)):
            if header == shown.header:
                return lines
            if header.count("slope") < 2 and set(shown.header) <= set(header):
                places = [header.index(name) for name in shown.header]
                return [[line[place] for place in places] for line in lines]
    make = TABLES.get((shown.page, shown.header[0]))
    return make([cells for _, cells in shown.rows]) if make else None


# --- Tables that this file makes --------------------------------------------------------------------------------------

def mean_sem(values, digits: int = 1) -> str:
    """Mean ± SEM of fractions, in percent."""
    mean, error = percent(values)
    return f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def mean(rows: list[dict], key: str = "product", digits: int = 1) -> str:
    """Mean of a score over runs, in percent; empty without a run."""
    return f"{percent(row[key] for row in rows)[0]:.{digits}f}" if rows else ""


def scores(rows: list[dict], digits: int = 0) -> str:
    """Healed / Utility / product, means in percent."""
    return " / ".join(mean(rows, key, digits) for key in SCORES)


def seeds_difference(mine: list[dict], other: list[dict], digits: int = 1) -> str:
    """Product of runs less that of others in the same cells and seeds: mean ± SEM over seeds, in percent."""
    mean, error = mean_of_seeds(minus(products(mine), products(other)))[0]
    return f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def plane_of(folder: str) -> dict[str, dict[str, str]]:
    """Of the table `plane` of a folder method -> column -> cell."""
    ((header, *lines),) = reported([folder, "--table", "plane"])
    return {line[0]: dict(zip(header, line, strict=True)) for line in lines}


def lasting_epochs(labels: list[list[str]]) -> list[list[str]]:
    """REM at so many epochs at most, NPO and no unlearning: product in each cell, and the mean over runs."""
    rows, lines = rows_at("results/lasting/fashion-mini"), []
    for name, seeds, *_ in labels:
        epochs, stop = re.match(r"\d*", name)[0], "max" if "stop max" in name else "repaired"
        axes = dict(unlearn_epochs=int(epochs), stop=stop, method="rem") if epochs else dict(method=name.strip("`"))
        wanted = tuple(range(int(seeds[-1]) + 1))
        runs = pick(rows, **axes, seed=wanted)
        parts = [pick(runs, task=task, discovery=rate) for task, rate in CELLS]
        whole = [part if len(part) == len(wanted) else [] for part in parts]
        lines.append([name, seeds, *map(mean, whole), mean_sem(row["product"] for row in networks(runs))])
    return lines


def lasting_short(labels: list[list[str]]) -> list[list[str]]:
    """The same with the mean alone."""
    return [[name, seeds, cells[-1]] for name, seeds, *cells in lasting_epochs(labels)]


def half_and_quarter() -> dict[str, list[dict]]:
    """Rows on the copy of CIFAR-10 by the network's width, the paper's loop to the letter and ETD left out."""
    folders = {"half": (HALF, 1.0), "quarter": (COPY, 0.5)}
    return {name: pick(rows_at(folder), etd=False, stop="repaired", width=width)
            for name, (folder, width) in folders.items()}


def natural_images(labels: list[list[str]]) -> list[list[str]]:
    """Both widths at seed 0, a line per cell: scores, REM's lead over NPO, the epochs it ran and the best of them."""
    lines = []
    for width, (task, rate) in itertools.product(("half", "quarter"), CELLS):
        runs = pick(half_and_quarter()[width], task=task, discovery=rate, seed=0)
        before, npo, rem = ([row for row in runs if row["method"] == name] for name in ("no-ul", "npo", "rem"))
        points = rem[0]["points"][1:]
        best = 100 * max(point["healed"] * point["utility"] for point in points)
        lead = 100 * (rem[0]["product"] - npo[0]["product"])
        lines.append([width, f"{task} {rate:g}", mean(before, "learnt"), *(scores(part, 1) for part in (before, npo, rem)),
                      f"{lead:+.1f}", str(len(points)), f"{best:.1f}"])
    return lines


def both_precisions(labels: list[list[str]]) -> list[list[str]]:
    """The copy of CIFAR-10 at ten rates and seed 0: product in float32 / in bf16; lines that have no float32 left out."""
    both, lines = (rows_at("results/float32"), rows_at(COPY, SEVEN)), []
    for task, method in itertools.product(TASKS, ("no-ul", "npo", "rem", "badt")):
        cells = []
        for rate in [k / 10 for k in range(1, 11)]:
            parts = [pick(rows, task=task, method=method, discovery=rate, etd=False, seed=0) for rows in both]
            cells.append(" / ".join(map(mean, parts)).strip())
        if not all(cell.startswith("/") for cell in cells):
            lines.append([task, method, *cells])
    return lines


def bf16_or_not(labels: list[list[str]]) -> list[list[str]]:
    """fashion-mini in float32 and bf16: product of each task and of all, and the difference in the same cells."""
    both, lines = [rows_at(GRID), rows_at("results/fashion-mini/bf16")], []
    for method, task in itertools.product(("rem", "no-ul"), (*TASKS, "all")):
        wanted = dict(method=method, etd=False, discovery=RATES, task=TASKS if task == "all" else task)
        single, half = (networks(pick(rows, **wanted)) for rows in both)
        means = [mean_sem(row["product"] for row in part) for part in (single, half)]
        lines.append([method, task, *means, seeds_difference(half, single)])
    return lines


def running_or_batch(labels: list[list[str]]) -> list[list[str]]:
    """Step 2 on running and on batch statistics: scores of REM at seed 0, of NPO and Ascent at three seeds."""
    rows, lines = rows_at(GRID, "results/fashion-mini/forget-norm"), []
    for method, own, seeds in (("rem", "running", 0), ("npo", "batch", (0, 1, 2)), ("ascent", "batch", (0, 1, 2))):
        norms = ["auto" if norm == own else norm for norm in ("running", "batch")]
        lines.append([method, *(scores(pick(rows, method=method, etd=False, discovery=RATES, seed=seeds, forget_norm=norm))
                                for norm in norms)])
    return lines


def shares(labels: list[list[str]]) -> list[list[str]]:
    """fashion-mini by the number of corrupted images: scores of no unlearning, and of REM and NPO by discovery rate."""
    rows, lines = rows_at("results/fashion-mini/share"), []
    for n in sorted({row["n"] for row in rows}):
        runs = pick(rows, n=n)
        cells = [scores(pick(runs, method=method, discovery=rate)) for method in ("rem", "npo") for rate in RATES]
        lines.append([f"{n} ({n / 60:g} %)", scores(networks(pick(runs, method="no-ul"))), *cells])
    return lines


def figure_5(labels: list[list[str]]) -> list[list[str]]:
    """Fig. 5's two accuracies before and after, and Healed, by seed."""
    lines = []
    for row in sorted(rows_at("results/fashion-mini/fig5"), key=lambda row: row["seed"]):
        first, last = row["points"][0], row["points"][-1]
        shown = (first["base"], last["base"], last["full"], row["healed"])
        lines.append([str(row["seed"]), *(f"{100 * value:.0f}" for value in shown)])
    return lines


def trials(labels: list[list[str]]) -> list[list[str]]:
    """What repair heals of each network, images and layers, at each seed, before -> after."""
    lines, parts = [], {}
    for row in lines_at("results/repair/trials.jsonl"):
        parts.setdefault((row["network"], row["images"], row["layers"]), []).append(row)
    named = {tuple(cell.replace("`", "") for cell in label[:3]): label[:3] for label in labels}
    for (network, images, layers), part in parts.items():
        label = next((shown for (name, seen, beside), shown in named.items()
                      if (name, seen) == (network, images) and layers.startswith(beside)), [network, images, layers])
        pairs = [" -> ".join(" / ".join(f"{100 * row[key][k]:.0f}" for row in part) for k in (0, 1))
                 for key in ("stickered", "clean")]
        lines.append([*label, *pairs, " / ".join(f"{100 * row['misled'][1]:.0f}" for row in part)])
    return lines


SPREAD = {"REM, Healed": "rem healed", "REM, Utility": "rem utility", "REM, product": "rem product",
          "NPO, product": "npo product", "product, REM less NPO": "product over npo",
          "Utility, untouched less REM": "utility lost"}


def machines(labels: list[list[str]]) -> list[list[str]]:
    """The main job over seeds, capabilities and threads: mean, SD, least and most, in percent."""
    lines = []
    for name in [label[0] for label in labels if label[0] in SPREAD]:
        values = [100 * run[SPREAD[name]] for run in lines_at("results/spread/main.jsonl")]
        lines.append([name, *(f"{of(values):.1f}" for of in (fmean, stdev, min, max))])
    return lines


def short_table(labels: list[list[str]]) -> list[list[str]]:
    """README.md's table: product over seeds and the difference from REM on fashion-mini."""
    plane = plane_of(GRID)
    named = [(label[0], plane.get(label[0].strip("`"))) for label in labels]
    return [[name, cells["over seeds"], cells["minus REM"]] for name, cells in named if cells]


def methods_of_both(labels: list[list[str]]) -> list[list[str]]:
    """The front page's table of methods: product over seeds and difference from REM on both data sets, the paper's."""
    small, copy, lines = plane_of(GRID), plane_of(COPY), []
    for (name, *_) in labels:
        sides = [[found.get(name, {}).get(column, "") for column in ("over seeds", "minus REM")] for found in (small, copy)]
        if name in small:
            lines.append([name, *sides[0], *sides[1], small[name]["Table 4"]])
    return lines


def steps(labels: list[list[str]]) -> list[list[str]]:
    """The front page's table of ablations on fashion-mini: product over seeds, lead over NPO, REM less it."""
    rows, lines = pick(rows_at(GRID), etd=False), []
    npo, rem = (pick(rows, method=name) for name in ("npo", "rem"))
    for name in [label[0] for label in labels]:
        runs = pick(rows, method=name)
        less = "" if name == "rem" else seeds_difference(rem, runs)
        lead = "" if name == "npo" else seeds_difference(runs, npo)
        ((value, error), count) = mean_of_seeds(products(runs))
        lines.append([name, count, f"{value:.1f} ± {error:.1f}", lead, less])
    return lines


def what_was_learnt(labels: list[list[str]]) -> list[list[str]]:
    """The front page's table of data: what the untouched network had learnt of each task, and REM's lead over NPO."""
    widths = half_and_quarter()
    data = {"fashion-mini": pick(rows_at(GRID), etd=False), "copy, half width": pick(widths["half"], seed=0),
            "copy, quarter width": widths["quarter"]}
    lines = []
    for name, rows in data.items():
        parts = [networks(pick(rows, method="no-ul", task=task)) for task in TASKS]
        leads = [seeds_difference(*(pick(rows, method=method, task=task) for method in ("rem", "npo"))) for task in TASKS]
        lines.append([name, str(len({row["seed"] for row in rows})),
                      " / ".join(mean(part, "learnt", 0) for part in parts), *leads])
    return lines


def suspects_short(labels: list[list[str]]) -> list[list[str]]:
    """Lines and columns of the table of suspects that the front page shows: poison at both rates, and all."""
    header, *lines = grid_of(discovery.suspects_table(lines_at("results/fashion-mini/suspects/scores.jsonl")))
    places = [header.index(name) for name in ("score", "poison 0.1", "confusion 0.1", "random 0.1", "all")]
    wanted = [label[0] for label in labels]
    return [[line[place] for place in places] for name in wanted for line in lines if line[0] == name]


# (page, first column of the header): labels of the lines shown -> the lines there should be
TABLES = {
    ("README.md", ""): short_table,
    ("results/README.md", "method"): methods_of_both,
    ("results/README.md", "variant"): steps,
    ("results/README.md", "data"): what_was_learnt,
    ("results/README.md", "REM, at most"): lasting_short,
    ("results/README.md", "score"): suspects_short,
    ("results/README.md", "over runs"): machines,
    ("results/lasting/README.md", "REM, at most"): lasting_epochs,
    ("results/lasting/README.md", "width"): natural_images,
    ("results/float32/README.md", "task"): both_precisions,
    ("results/spread/README.md", "over runs"): machines,
    ("results/repair/README.md", "network"): trials,
    ("results/fashion-mini/bf16/README.md", "method"): bf16_or_not,
    ("results/fashion-mini/forget-norm/README.md", "method"): running_or_batch,
    ("results/fashion-mini/share/README.md", "corrupted"): shares,
    ("results/fashion-mini/fig5/README.md", "seed"): figure_5,
}


# --- Figures in sentences ---------------------------------------------------------------------------------------------

def least_most(values, digits: int = 1) -> list[str]:
    """The least and the most of some values, as text."""
    values = list(values)
    return [f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"]


def points_of(rows: list[dict]) -> list[float]:
    """The products of runs, in percent."""
    return [100 * row["product"] for row in rows]


def ahead(mine: list[dict], other: list[dict]) -> list[float]:
    """Product of each run less that of the other in the same cell and seed, in points."""
    return [100 * value for value in minus(products(mine), products(other)).values()]


def of_methods() -> list[tuple]:
    """fashion-mini, nine cells: what the page says beside its two tables."""
    rows = rows_at(GRID)
    plain, plane = pick(rows, etd=False), plane_of(GRID)
    rem, npo, no31 = (pick(plain, method=name) for name in ("rem", "npo", "rem-no31"))
    no32, poison = pick(plain, method="rem-no32"), pick(rem, task="poison", discovery=0.1)
    best = 100 * fmean(row["product"] for row in rem) - float(plane["scrub"]["best per cell"].split()[0])
    others = least_most((100 * row["healed"] for row in poison if row["seed"] != 3), 0)
    less = minus(products(rem), products(no31))
    tasks = {task: 100 * fmean(value for key, value in less.items() if key[0] == task) for task in TASKS}
    papers = {row["method"]: row["product"][0] for row in PAPER["tables"]["2"]["rows"] if not row["etd"]}
    regular = {task: [row["score"] for row in lines_at("results/fashion-mini/cscore.jsonl") if row["task"] == task]
               for task in TASKS}
    errors = [f"{fmean(found):.3f} ± {stdev(found) / len(found)**0.5:.3f}" for found in regular.values()]
    return [
        ("REM on ETD is level with it ({} behind)", [plane["rem on ETD"]["minus REM"].lstrip("-")]),
        ("lowest cells being {} and {}", [str(min(int(plane[name][f"{task} {rate:g}"]) for task, rate in CELLS))
                                          for name in ("rem", "rem on ETD")]),
        ("SCRUB is next, {} points behind with one alpha for all cells, and {} behind",
         [f"{-float(plane['scrub']['minus REM'].split()[0]):.0f}", f"{best:.0f}"]),
        ("CF is level with doing nothing (both {}; in the paper {} and {})",
         [f"{float(plane['no-ul']['mean'].split()[0]):.0f}", plane["cf"]["Table 4"], plane["no-ul"]["Table 4"]]),
        ("Healed ends at {}, at the other seeds at {} to {}", [mean(pick(poison, seed=3), "healed", 0), *others]),
        ("{} cells, {} hours", [f"{len(rows):,}", None]),
        ("REM loses {} points (± {} over seeds, ± {} over pairs of runs; the paper {})",
         [*seeds_difference(rem, no31).split(" ± "), mean_sem(less.values()).split(" ± ")[1],
          f"{papers['rem'] - papers['rem-no31']:.1f}"]),
        ("keeps {} of its lead of {} points over NPO",
         [seeds_difference(mine, npo).split(" ± ")[0] for mine in (no31, rem)]),
        ("Random labels lose {} and poison loses {}, while confusion gains {}",
         [f"{tasks['random']:.1f}", f"{tasks['poison']:.1f}", f"{-tasks['confusion']:.1f}"]),
        ("could be told from noise (the paper {})", [f"{papers['rem'] - papers['rem-no32']:.1f}"]),
        ("is {} for poison, {} for confusion and {} for random labels", errors),
        ("over the runs of `results/lasting` ({} against {})",
         [None, mean(pick(rows_at("results/lasting/fashion-mini"), method="rem", stop="repaired", unlearn_epochs=8))]),
    ]


def of_ten_rates() -> list[tuple]:
    """fashion-mini, ten rates: the range of REM's product."""
    rem = points_of(pick(rows_at("results/fashion-mini/rates"), method="rem", etd=False))
    return [("its product is between {} and {} in all {} cells", [*least_most(rem, 0), str(len(rem))])]


def of_step_2() -> list[tuple]:
    """Step 2's mode: the runs that diverged, and poison, confusion and random labels on batch statistics."""
    rows = rows_at(GRID, "results/fashion-mini/forget-norm")
    rem = {norm: {task: mean(pick(rows, method="rem", etd=False, discovery=RATES, seed=0, forget_norm=norm, task=task),
                             digits=0) for task in TASKS} for norm in ("auto", "batch")}
    ascent = pick(rows, method="ascent", forget_norm="running", seed=(0, 1, 2))
    return [("n = {} but for {} of ascent in eval mode", ["27", str(27 - len(ascent))]),
            ("poison falls from {} to {}", [rem[norm]["poison"] for norm in rem]),
            ("random labels fall from {} to {}", [rem[norm]["random"] for norm in rem])]


def of_suspects() -> list[tuple]:
    """Suspects: ranges over cells of some scores, and what the rounds change."""
    lines = lines_at("results/fashion-mini/suspects/scores.jsonl")
    header, *scored = grid_of(discovery.suspects_table(lines))
    cells = {line[0]: dict(zip(header[1:], line[1:], strict=True)) for line in scored}

    def number(score: str, column: str, key: int) -> float:  # 0: AUROC, 1: recall
        return float(cells[score][column].split(" / ")[key].split(" ± ")[0])

    named = (discovery.NEAREST, discovery.PROBE)
    confusion, random = ([number(name, f"{task} {rate:g}", key) for name in named for rate in (0.1, 0.5)]
                         for task, key in (("confusion", 1), ("random", 0)))
    _, *rounds = grid_of(discovery.round_table(lines_at("results/fashion-mini/suspects/rounds.jsonl")))
    product = [[cell.split(" / ")[-1].split(" ± ")[0] for cell in line[4:]] for line in rounds]
    known = [line[3].split(" / ") for line in rounds]
    return [("little recall on confusion ({} to {})", least_most(confusion, 2)),
            ("labels (AUROC {} to {})", least_most(random, 2)),
            ("raises D_f from {} to {}", [known[0][0], known[1][0]]),
            ("was level with discovery 1 before ({} against {})", [product[0][0], product[-1][0]]),
            ("random labels stay below it ({} against {})", [product[1][2], product[-1][2]]),
            ("unseen, {} clean ones among them", [str(int(known[2][0]) - int(known[2][1]))])]


def of_lasting() -> list[tuple]:
    """Lasting healing: the lead at half width, its second seed, and the loop to the letter on the copy."""
    half = half_and_quarter()["half"]
    leads = {width: [ahead(*(pick(rows, seed=0, task=task, method=name) for name in ("rem", "npo"))) for task in TASKS]
             for width, rows in half_and_quarter().items()}
    second = [scores(pick(half, seed=1, method=name), 1) for name in ("rem", "npo")]
    (loop,) = pick(rows_at(HALF), stop="max")
    healed = {point["epoch"]: f"{100 * point['healed']:.1f}" for point in loop["points"]}
    best = max(100 * point["healed"] * point["utility"] for point in loop["points"][1:])
    epochs = max(row["points"][-1]["epoch"] for row in
                 pick(rows_at("results/lasting/fashion-mini"), method="rem", stop="repaired"))
    learnt = [[mean(pick(rows, seed=0, method="no-ul", task=task), "learnt", 0) for rows in half_and_quarter().values()]
              for task in ("random", "confusion")]
    return [("every run ended by itself before the {} epoch", ["eighth" if epochs < 8 else f"{epochs + 1}th"]),
            ("REM leads NPO in all nine cells, by {} to {} points", least_most(sum(leads["half"], []))),
            ("discovery 0.1 (the narrowest) end at {} / {} / {}, NPO at {} / {} / {}",
             [part for text in second for part in text.split(" / ")]),
            ("at quarter width REM leads by {} to {}", least_most(leads["quarter"][0])),
            ("Healed is {} after epoch 1, {} after epoch 5, {} after step 2", [healed[1], healed[5], healed[6]]),
            ("ten epochs end at {} / {} / {}, and the best of them has {}",
             [*scores([loop], 1).split(" / "), f"{best:.1f}"]),
            ("hardly learnt, {} % at half width and {} % at quarter width", learnt[0]),
            ("heals what step 3 unteaches: {} to {} points, at quarter width {} to {}",
             [*least_most(leads["half"][2]), *least_most(leads["quarter"][2])]),
            ("is partly learnt, {} and {} %", learnt[1])]


def of_copy() -> list[tuple]:
    """The copy of CIFAR-10, nine cells: REM's leads, ETD, confusion, and what could be won."""
    rows, plane = pick(rows_at(COPY), etd=False), plane_of(COPY)
    rem, before = pick(rows, method="rem"), pick(rows, method="no-ul")
    on_etd = pick(rows_at(COPY), etd=True, method="rem")
    behind = [value for value in ahead(on_etd, rem) if value < 0]
    won = [ahead(pick(rows, method=name, task="confusion"), pick(before, task="confusion")) for name in ("cf", "scrub")]
    above = str(sum(a > 0 and b > 0 for a, b in zip(*won, strict=True)))
    masks = mean(networks(pick(rows_at(COPY), etd=True, method="no-ul")), "utility")
    at_one = {name: [plane[name][f"{task} 1"] for task in TASKS] for name in ("retrain", "npo", "rem", "no-ul", "scrub")}
    learnt = plane["no-ul"]["learnt"].split(" / ")
    return [("in every seed, by {} over NPO and {} over Ascent",
             [plane[name]["minus REM"].lstrip("-") for name in ("npo", "ascent")]),
            ("REM on ETD behind REM in all {} runs, by {} points",
             [str(len(behind)), plane["rem on ETD"]["minus REM"].lstrip("-")]),
            ("in all {} runs, by {} to {} and {} to {} points", [above, *least_most(won[0]), *least_most(won[1])]),
            ("the masks cost {} points of Utility", [f"{float(mean(networks(before), 'utility')) - float(masks):.1f}"]),
            ("It fits {} % of random labels", [learnt[2]]),
            ("unlearning has {} in place of {}", [f"{float(plane['no-ul']['mean'].split()[0]):.0f}",
                                                  f"{float(plane['no-ul']['Table 4']):.0f}"]),
            ("ends at {} on poison, {} on confusion and {} on random labels", at_one["retrain"]),
            ("there NPO has {}, {} and {}, REM {}, {} and {}, no unlearning {}, {} and {}",
             sum((at_one[name] for name in ("npo", "rem", "no-ul")), [])),
            ("what SCRUB has there ({} and {})", at_one["scrub"][1:])]


def of_copy_at_ten_rates() -> list[tuple]:
    """The copy of CIFAR-10, ten rates at seed 0: ranges by task, and who is above whom."""
    rows = [row for row in rows_at(COPY, SEVEN) if row["seed"] == 0]
    plain = pick(rows, etd=False)
    rem, on_etd = pick(plain, method="rem"), pick(rows, method="rem", etd=True)

    def ranges(runs):
        return sum((least_most(points_of(pick(runs, task=task))) for task in TASKS), [])

    over, under = ahead(rem, pick(plain, method="npo")), ahead(on_etd, rem)
    low = {name: least_most(points_of(row for row in pick(plain, method=name, task="poison") if row["discovery"] < 1), 0)
           for name in ("scrub", "retrain")}
    first = networks(pick(rows_at(COPY), method="no-ul", etd=False, seed=0))
    return [("level over the rates: {} to {} on poison, {} to {} on confusion and {} to {} on random labels", ranges(rem)),
            ("above NPO's in {} of the {} cells", [str(sum(value > 0 for value in over)), str(len(over))]),
            ("So is REM on ETD's: {} to {}, {} to {} and {} to {}", ranges(on_etd)),
            ("below REM's in {} of the {} cells", [str(sum(value < 0 for value in under)), str(len(under))]),
            ("SCRUB's is {} to {} on poison below discovery 1", low["scrub"]),
            ("and retraining's is {} to {}", low["retrain"]),
            ("have Utility {}, product {}.", [mean(first, "utility"), mean(first)])]


def of_precisions() -> list[tuple]:
    """The copy of CIFAR-10 in float32 and bf16: means over the nine cells, NPO on confusion, BadT on poison."""
    single, half = rows_at("results/float32"), pick(rows_at(COPY), etd=False)
    both = rows_at("results/float32", COPY, SEVEN)
    means = {}
    for name, task in (("no-ul", TASKS), ("npo", TASKS), ("rem", "random")):
        wanted = dict(method=name, task=task, discovery=RATES)
        means[name] = [mean(pick(single, **wanted)), *(mean(pick(half, **wanted, seed=seed)) for seed in range(3))]
    wanted = dict(method="npo", task="confusion", etd=False)
    npo = [mean(pick(both, seed=0, precision=precision, **wanted)) for precision in ("float32", "bf16")]
    ends = [mean(pick(half, seed=seed, discovery=1.0, **wanted), digits=0) for seed in range(3)]
    badt = [mean(pick(half, seed=0, method="badt", task="poison", discovery=rate), digits=0) for rate in (0.1, 1.0)]
    return [("no unlearning has {} in float32 and {} in bf16", means["no-ul"][:2]),
            ("NPO {} and {} (bf16, seeds 1 and 2: {}, {})", means["npo"]),
            ("REM on random labels {} and {} ({}, {})", means["rem"]),
            ("(means {} and {})", npo),
            ("{}, {} and {} at discovery 1", ends),
            ("in bf16 from {} to {}, below NPO", badt)]


def of_machines() -> list[tuple]:
    """The main job: how often REM is ahead, what moves it, and the other machine."""
    runs, other = (lines_at(f"results/spread/{name}.jsonl") for name in ("main", "intel"))
    seeds = sorted({run["seed"] for run in runs})
    within, between = [], []
    for key in ("rem product", "npo product"):
        parts = [[100 * run[key] for run in runs if run["seed"] == seed] for seed in seeds]
        within.append(f"{fmean(stdev(part) ** 2 for part in parts) ** 0.5:.1f}")
        between.append(f"{stdev(map(fmean, parts)):.1f}")
    healed, over = ([100 * run[key] for run in other] for key in ("rem healed", "product over npo"))
    won = sum(run["product over npo"] > 0 for run in runs)
    return [("({} runs; one", [str(len(runs))]),
            ("above NPO's in {} of the {} runs", [str(won), str(len(runs))]),
            ("(SD within a seed {}) more than the seed does (SD of the seeds' means {}); the seed moves NPO more ({} and {})",
             [within[0], between[0], within[1], between[1]]),
            ("{} runs), REM's Healed is {} on average and {} at least, its product {} above NPO's on average and {} at least",
             [str(len(other)), f"{fmean(healed):.1f}", f"{min(healed):.1f}", f"{fmean(over):.1f}", f"{min(over):.1f}"])]


def of_repairs() -> list[tuple]:
    """Repair of other networks: the most that is lost or left."""
    runs = lines_at("results/repair/trials.jsonl")
    return [("At most {} % of stickered images", [f"{100 * max(run['misled'][1] for run in runs):.0f}"]),
            ("clean accuracy falls by at most {} points",
             [f"{100 * max(run['clean'][0] - run['clean'][1] for run in runs):.0f}"])]


def of_scale() -> list[tuple]:
    """What repair costs: two processes against one, and their weights."""
    at = {(row["n"], row["mode"]): row for row in lines_at("results/scale/scale.jsonl")}
    faster = [f"{at[n, 'in memory']['seconds'] / at[n, 'in memory, 2 processes']['seconds']:.1f}" for n in (1500, 60000)]
    return [("are {} times as fast at {} images, {} times at {}", [faster[0], "1,500", faster[1], "60,000"])]


def of_growth() -> list[tuple]:
    """How cost grows: slopes and memory of ETD and REM, from the table."""
    ((_, *lines),) = made_by("python benchmarks/growth.py")
    at = {(line[0].split()[0], line[1]): line[2:] for line in lines}
    more = []
    for name in ("etd", "rem"):
        megabytes = [int(value) for value in at["images", name][2].split(" / ")]
        more.append(str(megabytes[-1] - megabytes[0]))
    return [("ETD and REM are at {} and {}", [at["images", name][1] for name in ("etd", "rem")]),
            ("ETD and REM take {} and {} MB more", more),
            ("CUTS is at {}", [at["width", "cuts"][1]]),
            ("`expand`'s memory at {}", [at["width", "expand"][3].rstrip("0")]),
            ("`expand` is at {}, one run", [at["network", "expand"][1]])]


def of_readme() -> list[tuple]:
    """README.md: the spread over machines, suspects, and the two leads over NPO on the copy of CIFAR-10."""
    runs = lines_at("results/spread/main.jsonl")
    healed, over, lost = ([100 * run[key] for run in runs] for key in ("rem healed", "product over npo", "utility lost"))
    header, *lines = grid_of(discovery.suspects_table(lines_at("results/fashion-mini/suspects/scores.jsonl")))
    auroc = {line[0]: [cell.split(" / ")[0] for cell in line] for line in lines}
    untouched, learnt = auroc[discovery.UNTOUCHED], plane_of(COPY)["no-ul"]["learnt"].split(" / ")
    half = half_and_quarter()["half"]
    leads = ahead(*(pick(half, method=name, seed=0) for name in ("rem", "npo")))
    return [("Over {} runs", [str(len(runs))]),
            ("Healed is {} on average and {} at least, its product {} points above NPO's ({} in the worst run), its "
             "Utility at most {} below", [f"{fmean(healed):.1f}", f"{min(healed):.1f}", f"{fmean(over):.1f}",
                                          f"{min(over):.1f}", f"{max(lost):.2f}"]),
            ("AUROC {} of the undiscovered", [auroc[discovery.REPAIRED][-1]]),
            ("untouched network has {}, on poison {} (",
             [untouched[-1], untouched[header.index("poison 0.1")].split(" ± ")[0]]),
            ("REM leads NPO by {} to {} points in nine cells", least_most(leads)),
            ("at quarter width by {} (3 seeds)", [plane_of(COPY)["npo"]["minus REM"].lstrip("-")]),
            ("random labels ({} and {} % learnt)", [learnt[1], learnt[2]])]


def of_front_page() -> list[tuple]:
    """The front page of the results."""
    methods = {template: values for template, values in of_methods()}
    rows = [row for path in sorted((ROOT / "results").rglob("*.jsonl")) for row in lines_at(str(path.relative_to(ROOT)))]
    made = [row["git"] for row in rows if row.get("git")]
    learnt = plane_of(COPY)["no-ul"]["learnt"].split(" / ")
    papers = {(row["method"], row["etd"]): f"{row['product'][0]:.0f}" for row in PAPER["tables"]["1"]["rows"]
              if row["capacity"] == 0.5}
    grid = pick(rows_at(GRID), etd=False)
    within = seeds_difference(*(pick(grid, method=name) for name in ("rem", "rem-no31")))
    repairs, machine = dict(of_repairs()), dict(of_machines())
    won = machine["above NPO's in {} of the {} runs"]
    rounds = dict(of_suspects())["raises D_f from {} to {}"]
    return [("is within {} points of REM", [within]),
            ("keeps {} of the {} points", methods["keeps {} of its lead of {} points over NPO"]),
            ("{} of the {} rows that name a commit", [f"{sum(name.endswith('-dirty') for name in made):,}", f"{len(made):,}"]),
            ("{} % of the random labels and {} % of the confused ones", [learnt[2], learnt[1]]),
            ("third to fifth in it ({}, {} and {}; NPO alone {})",
             [papers["npo", True], papers["ascent", True], papers["scrub", True], papers["npo", False]]),
            ("{} of the {} rows of the paper's Table 1", [str(sum(etd for _, etd in papers)), str(len(papers))]),
            ("REM is ahead of NPO in {} of {} runs", won),
            ("at most {} % of stickered images", repairs["At most {} % of stickered images"]),
            ("accuracy on clean ones falls by at most {} points", repairs["clean accuracy falls by at most {} points"]),
            ("raises what is known from {} to {}", rounds)]


# Page -> what makes (words around the figures, the figures as text; None for one that no row holds)
FIGURES = {
    "README.md": of_readme,
    "results/README.md": of_front_page,
    "results/cifar10-jpeg-16px/README.md": of_copy,
    "results/fashion-mini/README.md": of_methods,
    "results/fashion-mini/forget-norm/README.md": of_step_2,
    "results/fashion-mini/rates/README.md": of_ten_rates,
    "results/fashion-mini/suspects/README.md": of_suspects,
    "results/float32/README.md": of_precisions,
    "results/growth/README.md": of_growth,
    "results/lasting/README.md": of_lasting,
    "results/rates/README.md": of_copy_at_ten_rates,
    "results/repair/README.md": of_repairs,
    "results/scale/README.md": of_scale,
    "results/spread/README.md": of_machines,
}


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
    lines = remade(shown)
    if lines is None:
        print(f"not checked: {what}: no command above it prints it and no function here makes it")
        return
    wanted, count = {labels_of(shown.header, line): line for line in lines}, 0
    have = {labels_of(shown.header, cells): (number, cells) for number, cells in shown.rows}
    for label, (number, cells) in have.items():
        if label not in wanted or len(cells) != len(wanted[label]):
            told.differs(shown.page, number, f"line {' | '.join(label)}", " | ".join(cells), "no such line")
            continue
        for name, found, expected in list(zip(shown.header, cells, wanted[label], strict=True))[len(label):]:
            count += 1
            if found != expected:
                told.differs(shown.page, number, f"{' | '.join(label)}, {name}", found, expected)
    for label in wanted.keys() - have.keys():
        told.differs(shown.page, shown.line, "a line", "none", " | ".join(wanted[label]))
    order = [label for label in wanted if label in have]
    if order != [label for label in have if label in wanted] or len(have) != len(shown.rows):
        told.differs(shown.page, shown.line, "order of lines", "; ".join(" ".join(label) for label in have),
                     "; ".join(" ".join(label) for label in order))
    told.compared(what, count)


NUMBER = r"([-+]?\d(?:[\d.,]*\d)?(?: ± \d[\d.]*\d)?|[a-z]+(?<=th))"


def check_figures(page: str, told: Report) -> None:
    """Compare the figures in a page's sentences with what the rows give, wherever the page has the words."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for words, expected in FIGURES[page]() if page in FIGURES else ():
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
            right = [f"{100 * rows[name][key]:.1f}" for key in ("healed", "healed_undiscovered", "utility", "product")]
            count += len(right)
            if cells[:-1] != right:
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


def check(pages: list[str]) -> int:
    """Check these pages; returns how many cells, figures and lines differ."""
    told = Report()
    for page in pages:
        for shown in tables_of(page):
            check_table(shown, told)
        check_figures(page, told)
        check_output(page, told)
    check_written(told)
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
