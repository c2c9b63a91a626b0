"""What the rows give for the tables that no command prints. See check.py.

    lines = TABLES["results/spread/README.md", "over runs", "mean"](labels)  # labels: the lines as shown
"""

import itertools
import re
from functools import partial
from statistics import fmean, stdev

from made import grid_of, lines_at, reported, rows_at
from study import suspects
from study.rows import SCORES, networks, pick, products
from study.stats import mean_of_seeds, minus, percent

TASKS = ("poison", "confusion", "random")
RATES = (0.1, 0.5, 1.0)
CELLS = [(task, rate) for task in TASKS for rate in RATES]
GRID = "results/fashion-mini/grid"  # nine cells, five seeds, all methods
MINI = (GRID, "results/fashion-mini/etd")  # the same with those on ETD
COPY = "results/cifar10-jpeg-16px/cells.jsonl"  # quarter width, bf16, seed 0
FLOAT32 = "results/cifar10-jpeg-16px/float32"  # the same in float32, ten rates
SEVEN = "results/cifar10-jpeg-16px/rates"  # the same in bf16, poison at the other seven rates
HALF = "results/lasting/cifar10-jpeg-16px"  # half width, random labels
LASTING = "results/lasting/fashion-mini"  # at most 2, 8 and 24 epochs, and twelve as printed, of version 0.2.0
TWELVE = "results/lasting/twelve"  # at most and all of twelve epochs, with the removal as it is and as printed
REDIRECT = "results/redirect"  # with and without the redirect term
SIZES = "results/tuning/sizes"  # other |D_f| and batches
TEN = "results/fashion-mini/rates"  # ten rates, seed 0
EPOCHS = "results/tuning/epochs"  # at most 10 epochs
FARTHER = "results/tuning/farther"  # once and twice as far
PASSES = "results/tuning/passes"  # D_f of many batches, before and after passes became shorter
ANEW = "results/tuning/copy"  # the copy of CIFAR-10 with REM of version 0.4.0 and 0.5.0
TRIGGERS = "results/fashion-mini/triggers"  # four triggers, few of few images known
SMALL = "results/cifar10-jpeg-small"  # 10,000 images of the copy at 32x32, learnt by heart
NINE = (f"{SMALL}/nine", f"{SMALL}/etd")  # the nine cells there, without and with ETD


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


def plane_of(*folders: str) -> dict[str, dict[str, str]]:
    """Of the table `plane` of folders together: method -> column -> cell."""
    ((header, *lines),) = reported([*folders, "--table", "plane"])
    return {line[0]: dict(zip(header, line, strict=True)) for line in lines}


def lasting_epochs(labels: list[list[str]]) -> list[list[str]]:
    """REM at so many epochs at most, NPO and no unlearning: product in each cell, and the mean over runs."""
    rows, lines = pick(rows_at(LASTING), stop="repaired"), []
    for name, seeds, *_ in labels:
        epochs = re.match(r"\d*", name)[0]
        axes = dict(unlearn_epochs=int(epochs), method="rem") if epochs else dict(method=name.strip("`"))
        wanted = tuple(range(int(seeds[-1]) + 1))
        runs = pick(rows, **axes, seed=wanted)
        parts = [pick(runs, task=task, discovery=rate) for task, rate in CELLS]
        whole = [part if len(part) == len(wanted) else [] for part in parts]
        lines.append([name, seeds, *map(mean, whole), mean_sem(row["product"] for row in networks(runs))])
    return lines


def half_and_quarter() -> dict[str, list[dict]]:
    """Rows on the copy of CIFAR-10 at seed 0 by the network's width, ETD left out."""
    return {"half": rows_at(HALF), "quarter": pick(rows_at(COPY), etd=False)}


def twelve_epochs(labels: list[list[str]]) -> list[list[str]]:
    """Poison of which a tenth is known, at most or all of twelve epochs: Healed after three and at the end by seed, and
    the mean product at the end."""
    rows, lines = pick(rows_at(TWELVE), method="rem"), []
    kinds = {"by the rule": dict(stop="repaired"), "all twelve": dict(stop="max", reach=0.07),
             "all twelve, as printed": dict(stop="max", reach=0.0)}
    for name, kind in kinds.items():
        runs = sorted(pick(rows, **kind), key=lambda row: row["seed"])
        third, last = ([f"{100 * value:.0f}" for value in values] for values in (
            [run["points"][3]["healed"] for run in runs], [run["healed"] for run in runs]))
        lines.append([name, " / ".join(third), " / ".join(last), mean_sem(run["product"] for run in runs)])
    return lines


def natural_images(labels: list[list[str]]) -> list[list[str]]:
    """Both widths, a line per cell that was run: scores, REM's lead over NPO, its epochs and the best of them."""
    lines = []
    for width, (task, rate) in itertools.product(("half", "quarter"), CELLS):
        runs = pick(half_and_quarter()[width], task=task, discovery=rate)
        if not runs:
            continue
        before, npo, rem = ([row for row in runs if row["method"] == name] for name in ("no-ul", "npo", "rem"))
        points = rem[0]["points"][1:]
        best = 100 * max(point["healed"] * point["utility"] for point in points)
        lead = 100 * (rem[0]["product"] - npo[0]["product"])
        cells = [scores(part, 1) for part in (before, npo, rem)]
        lines.append([width, f"{task} {rate:g}", mean(before, "learnt"), *cells, f"{lead:+.1f}", str(len(points)),
                      f"{best:.1f}"])
    return lines


def bf16_or_not(labels: list[list[str]]) -> list[list[str]]:
    """fashion-mini in float32 and bf16: product of each task and of all, and the difference in the same cells."""
    bf16, lines = rows_at("results/fashion-mini/bf16"), []
    both = [pick(rows_at(GRID), seed=tuple({row["seed"] for row in bf16})), bf16]
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
        runs = pick(rows, method=method, etd=False, discovery=RATES, seed=seeds)
        lines.append([method, *(scores(pick(runs, forget_norm=norm)) for norm in norms)])
    return lines


def shares(labels: list[list[str]]) -> list[list[str]]:
    """fashion-mini by the number of corrupted images: scores of no unlearning, and of REM and NPO by discovery rate."""
    rows, lines = rows_at("results/fashion-mini/share"), []
    named = {label[0].split()[0]: label[0] for label in labels}
    for n in sorted({row["n"] for row in rows}):
        runs = pick(rows, n=n)
        cells = [scores(pick(runs, method=method, discovery=rate)) for method in ("rem", "npo") for rate in RATES]
        lines.append([named.get(str(n), str(n)), scores(networks(pick(runs, method="no-ul"))), *cells])
    return lines


def figure_5(labels: list[list[str]]) -> list[list[str]]:
    """Fig. 5's two accuracies before and after, and Healed, by seed."""
    lines = []
    for row in sorted(rows_at("results/fashion-mini/fig5"), key=lambda row: row["seed"]):
        first, last = row["points"][0], row["points"][-1]
        shown = (first["base"], last["base"], last["full"], row["healed"])
        lines.append([str(row["seed"]), *(f"{100 * value:.0f}" for value in shown)])
    return lines


def every_seed(labels: list[list[str]]) -> list[list[str]]:
    """Healed of each seed by method, poison at 0.1: mean, least, most, and at how many seeds it is below REM's."""
    rows, lines = rows_at("results/fashion-mini/seeds"), []
    rem = {row["seed"]: row["healed"] for row in pick(rows, method="rem")}
    for method in ("rem", "npo", "scrub"):
        healed = {row["seed"]: row["healed"] for row in pick(rows, method=method)}
        values = [100 * healed[seed] for seed in sorted(healed)]
        below = sum(healed[seed] < rem[seed] for seed in healed)
        lines.append([method, " / ".join(f"{value:.0f}" for value in values), f"{fmean(values):.1f}",
                      f"{min(values):.0f}", f"{max(values):.0f}", "" if method == "rem" else str(below)])
    return lines


def every_trigger(labels: list[list[str]], folder: str = TRIGGERS) -> list[list[str]]:
    """Healed / Utility / misled of each method, means over seeds in percent, by trigger and number of bad images."""
    rows, lines = rows_at(folder), []
    for trigger in ("patch", "blended", "sinusoidal", "warp"):
        for n in sorted({row["n"] for row in rows}):
            runs = pick(rows, trigger=trigger, n=n)
            cells = [" / ".join(mean(pick(runs, method=method), key, 0) for key in ("healed", "utility", "misled"))
                     for method in ("no-ul", "cf", "scrub", "npo", "rem")]
            lines.append([trigger, str(n), str(len({row["seed"] for row in runs})), *cells])
    return lines


def small_fits(labels: list[list[str]]) -> list[list[str]]:
    """What the untouched network learns of random labels, and its Utility, by batch, peak rate and epochs."""
    rows = sorted(rows_at(f"{SMALL}/fit"), key=lambda row: (row["epochs"], row["batch"], row["lr"]))
    return [[str(row["batch"]), str(row["lr"]), str(row["epochs"]), *(f"{100 * row[key]:.0f}" for key in
             ("learnt", "utility"))] for row in rows]


def small_settings(labels: list[list[str]]) -> list[list[str]]:
    """REM by the rates of training and of unlearning, its epochs and reach, in the cells that were run with others."""
    rows = pick(rows_at(f"{SMALL}/nine", f"{SMALL}/other-settings"), method="rem", seed=0)
    cells = {(row["task"], row["discovery"]) for row in rows if "other-settings" in row["out"]}
    rows = [row for row in rows if (row["task"], row["discovery"]) in cells]
    names = ("lr", "unlearn_lr", "unlearn_epochs")
    far = {id(row): row.get("reach_used", row["reach"]) for row in rows}
    rows.sort(key=lambda row: (TASKS.index(row["task"]), row["discovery"], *(row[name] for name in names),
                               far[id(row)]))
    return [[f"{row['task']}, {row['discovery']:g}", *(str(row[name]) for name in names),
             f"{far[id(row)]:g}{' by itself' * bool(row['farther'])}",
             *(f"{100 * row[key]:.0f}" for key in SCORES)] for row in rows]


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


PRESET = dict(n=120, unlearn_epochs=3, arch="resnet9", batch=256, ratio=(None, 1.0))
LOW = {**PRESET, "discovery": 0.1}
WHERE = {  # the label of a line: what its rows are run with
    "the nine cells": {**PRESET, "discovery": RATES},
    "6 of 120 known (discovery 0.05)": {**PRESET, "discovery": 0.05},
    "12 of 120 known (0.1)": LOW,
    "60 of 600 known (0.1)": {**LOW, "n": 600},
    "12 epochs, all of them": {**LOW, "unlearn_epochs": 12},
    "small ViT": {**LOW, "arch": "vit", "unlearn_epochs": 10, "batch": 128},
    "5 of 50 known": {**LOW, "n": 50},
    "12 steps an epoch": {**LOW, "batch": 512},
    "12 steps, at most 10 epochs": {**LOW, "batch": 512, "unlearn_epochs": 10},
    "94 steps an epoch": {**LOW, "batch": 64},
    "theta_o2 three times as wide": {**LOW, "ratio": (None, 3.0)},
}


def with_and_without(labels: list[list[str]]) -> list[list[str]]:
    """REM and the ablation without the redirect term by what the runs differ in: products, and the difference."""
    rows, lines = rows_at(REDIRECT), []
    for name in [label[0] for label in labels]:
        rem, without = (pick(rows, **WHERE[name], method=method) for method in ("rem", "rem-no31"))
        pairs = minus(products(rem), products(without))
        tasks = [" / ".join(mean(pick(runs, task=task)) for runs in (rem, without)).strip(" /") for task in TASKS]
        ((value, error), count) = mean_of_seeds(pairs)
        less = f"{value:+.1f}" + ("" if error is None else f" ± {error:.1f}")
        lines.append([name, count, *tasks, less])
    return lines


def other_sizes(labels: list[list[str]]) -> list[list[str]]:
    """Other sizes of D_f and of an epoch: product of no unlearning, NPO and REM by task, and Utility that is lost."""
    rows, lines = rows_at(SIZES), []
    for name, task in [label[:2] for label in labels]:
        runs = pick(rows, n=WHERE[name]["n"], batch=WHERE[name]["batch"], task=task)
        before, npo = (pick(runs, method=method) for method in ("no-ul", "npo"))
        rem = pick(runs, method="rem", unlearn_epochs=WHERE[name]["unlearn_epochs"])
        lost = fmean(row["utility"] for row in rem) - fmean(row["utility"] for row in before)
        lines.append([name, task, str(len(rem)), *(scores(part) for part in (before, npo, rem)), f"{100 * lost:+.1f}"])
    return lines


def once_and_twice(labels: list[list[str]]) -> list[list[str]]:
    """REM at discovery 0.1 by the batch of training, once and twice as far, with what it does by itself: scores."""
    rows, lines = pick(rows_at(FARTHER, SIZES), method="rem", n=120, unlearn_epochs=3, discovery=0.1, seed=0), []
    for batch, task in [(int(batch), task) for batch, task, *_ in labels]:
        runs = pick(rows, batch=batch, task=task)
        once, twice = ([row for row in runs if row.get("reach_used", row["reach"]) == far] for far in (0.07, 0.14))
        by_itself = "twice" if any(row["farther"] for row in twice) else "once"
        lines.append([str(batch), task, str(len(once)), scores(once), scores(twice), by_itself])
    return lines


def many_batches(labels: list[list[str]]) -> list[list[str]]:
    """A D_f of many batches: REM of two versions, scores over seeds, and the later one's product less the other's."""
    rows, earlier, lines = rows_at(PASSES), rows_at(f"{PASSES}-before"), []
    for task in TASKS:
        before, new = (pick(rows, task=task, method=method) for method in ("no-ul", "rem"))
        old = pick(earlier, task=task, method="rem")
        lines.append([task, str(len({row["seed"] for row in new})), scores(networks(before)), scores(old), scores(new),
                      seeds_difference(new, old)])
    return lines


def vit_epochs(labels: list[list[str]]) -> list[list[str]]:
    """A small ViT on tuning images, by task and reach: Healed / Utility / Acc(W) before and after the epochs shown."""
    rows, lines = lines_at("results/tuning/vit.jsonl"), []
    for task in TASKS:
        mine = {(row["reach"], row["epoch"]): row for row in rows if row["task"] == task}
        for reach in sorted({reach for reach, _ in mine if reach}):
            shown = [mine[None, 0], *(mine[reach, epoch] for epoch in (1, 2, 3, 5, 10))]
            lines.append([task, str(reach), *(" / ".join(f"{100 * row[key]:.0f}" for key in
                                                         ("healed", "utility", "acc_watched")) for row in shown)])
    return lines


def copy_anew(labels: list[list[str]]) -> list[list[str]]:
    """The copy of CIFAR-10, cell by cell and over all: scores of no unlearning and of REM, products less those of no
    unlearning; Utility less no unlearning's, least in brackets."""
    rows, lines = pick(rows_at(ANEW), etd=False), []
    for label, cell in [*((f"{task} {rate:g}", dict(task=task, discovery=rate)) for task, rate in CELLS), ("all", {})]:
        rem, before = pick(rows, method="rem", **cell), pick(rows, method="no-ul", **cell)
        if rem:
            lines.append([label, str(len(rem)), *(scores(part, 1) for part in (before, rem)),
                          seeds_difference(rem, before), utility_gained(rem, before)])
    return lines


def utility_gained(runs: list[dict], before: list[dict]) -> str:
    """Utility of runs less that of the networks that they began with, in points: mean, and the least in brackets."""
    place = ("task", "discovery", "seed")
    had = {tuple(row[name] for name in place): row["utility"] for row in before}
    gains = [100 * (row["utility"] - had[tuple(row[name] for name in place)]) for row in runs]
    return f"{fmean(gains):+.1f} ({min(gains):+.1f})"


def more_epochs(labels: list[list[str]]) -> list[list[str]]:
    """REM at seed 0 with at most 3 and 10 epochs: product in each cell, and their mean."""
    rows = pick(rows_at(TEN, EPOCHS), discovery=RATES)
    at = {most: pick(rows, method="rem", seed=0, etd=False, unlearn_epochs=most) for most in (3, 10)}
    lines = []
    for (label, *_) in labels:
        cells = {(row["task"], row["discovery"]): row["product"] for row in at[int(label)]}
        lines.append([label, *(f"{100 * cells[cell]:.0f}" for cell in CELLS), f"{100 * fmean(cells.values()):.1f}"])
    return lines


def short_table(labels: list[list[str]]) -> list[list[str]]:
    """README.md's table: product over seeds and the difference from REM on fashion-mini."""
    plane = plane_of(*MINI)
    named = [(label[0], plane.get(label[0].strip("`"))) for label in labels]
    return [[name, cells["over seeds"], cells["minus REM"]] for name, cells in named if cells]


def methods_of_both(labels: list[list[str]]) -> list[list[str]]:
    """The front page's table of methods: product over seeds and difference from REM on both data sets, the paper's.

    Of the 10,000 images it has the seeds and cells, and no method that lacks one of the nine.
    """
    mini, heart, lines = plane_of(*MINI), plane_of(*NINE), []
    for (name, *_) in labels:
        there = heart.get(name, {})
        whole = all(there.get(f"{task} {rate:g}") for task, rate in CELLS)
        sides = [there[column] if whole else "" for column in ("over seeds", "seeds", "minus REM")]
        if name in mini:
            lines.append([name, *(mini[name][column] for column in ("over seeds", "minus REM")), *sides,
                          mini[name]["Table 4"]])
    return lines


def steps(labels: list[list[str]]) -> list[list[str]]:
    """The front page's table of ablations on fashion-mini: product over seeds, lead over NPO, REM less it."""
    rows, lines = rows_at(GRID), []
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
    data = {"fashion-mini": rows_at(GRID), "10,000 images": rows_at(f"{SMALL}/nine"),
            "copy at 16x16": pick(rows_at(COPY), etd=False)}
    lines = []
    for name, rows in data.items():
        parts = [networks(pick(rows, method="no-ul", task=task)) for task in TASKS]
        rem, npo = ([pick(rows, method=method, task=task) for task in TASKS] for method in ("rem", "npo"))
        leads = map(seeds_difference, rem, npo)
        lines.append([name, str(len({row["seed"] for row in rows})),
                      " / ".join(mean(part, "learnt", 0) for part in parts), *leads])
    return lines


def suspects_short(labels: list[list[str]]) -> list[list[str]]:
    """Lines and columns of the table of suspects that the front page shows: poison at both rates, and all."""
    header, *lines = grid_of(suspects.suspects_table(lines_at("results/fashion-mini/suspects/scores.jsonl")))
    places = [header.index(name) for name in ("score", "poison 0.1", "confusion 0.1", "random 0.1", "all")]
    wanted = [label[0] for label in labels]
    return [[line[place] for place in places] for name in wanted for line in lines if line[0] == name]


# (page, first two columns of the header): labels of the lines shown -> the lines there should be
TABLES = {
    ("README.md", "", "product"): short_table,
    ("results/README.md", "method", "fashion-mini"): methods_of_both,
    ("results/README.md", "variant", "seeds × cells"): steps,
    ("results/README.md", "data", "seeds"): what_was_learnt,
    ("results/README.md", "variant", "Healed after epoch 3"): twelve_epochs,
    ("results/README.md", "score", "poison 0.1"): suspects_short,
    ("results/README.md", "over runs", "mean"): machines,
    ("results/redirect/README.md", "what differs", "seeds × cells"): with_and_without,
    ("results/tuning/README.md", "what differs", "task"): other_sizes,
    ("results/tuning/README.md", "at most", "poison 0.1"): more_epochs,
    ("results/tuning/README.md", "batch", "task"): once_and_twice,
    ("results/tuning/README.md", "task", "reach"): vit_epochs,
    ("results/tuning/README.md", "task", "seeds"): many_batches,
    ("results/tuning/README.md", "task, discovery", "runs"): copy_anew,
    ("results/lasting/README.md", "REM, at most", "seeds"): lasting_epochs,
    ("results/lasting/README.md", "variant", "Healed after epoch 3"): twelve_epochs,
    ("results/lasting/README.md", "width", "task, discovery"): natural_images,
    ("results/spread/README.md", "over runs", "mean"): machines,
    ("results/fashion-mini/seeds/README.md", "method", "Healed, seeds 0 to 9"): every_seed,
    ("results/fashion-mini/triggers/README.md", "trigger", "corrupted"): every_trigger,
    ("results/cifar10-jpeg-small/README.md", "trigger", "corrupted"):
        partial(every_trigger, folder=f"{SMALL}/triggers"),
    ("results/cifar10-jpeg-small/README.md", "batch", "peak rate"): small_fits,
    ("results/cifar10-jpeg-small/README.md", "task, discovery", "peak rate"): small_settings,
    ("results/fashion-mini/bf16/README.md", "method", "task"): bf16_or_not,
    ("results/fashion-mini/forget-norm/README.md", "method", "running statistics (eval mode)"): running_or_batch,
    ("results/fashion-mini/share/README.md", "corrupted", "no-ul"): shares,
    ("results/fashion-mini/fig5/README.md", "seed", "theta_o1's accuracy on D_c's labels as given, before"): figure_5,
}
