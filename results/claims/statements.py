"""Statements of the paper, and by a rule written beside each whether our rows reproduce it: the table kind `claims`.

    <!-- table: claims results/rem-plus show=all note=no -->     # every statement, in the paper's order
    <!-- table: claims results/rem-plus show=count note=no -->   # how many have each verdict
    <!-- table: claims results/rem-plus show=front note=no -->   # the count and the five that matter most
    <!-- table: claims results/rem-plus show=against note=no --> # what is not reproduced, and what we think of it

A statement measures one or more checks, each on a data set of PLACES. All hold: reproduced; some: partly; none: not
reproduced. One seed has no error: it can contradict and not support, and alone it leaves a statement not measured.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import StatisticsError, correlation, fmean

import pandas as pd

from metrics import mean_sem
from study.rows import etd_alone, load_rows, pick, split, sweep, without_extra_curves
from study.tables import ANY_RATE, by_cell, frame_of, minus, over_seeds
from tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]
VERDICTS = ("reproduced", "partly", "not reproduced", "not measured")
PLACES = {  # data set -> where its rows are; places that are not there yet have none
    "fashion-mini": ("fashion-mini/grid", "fashion-mini/etd", "rem-plus/fashion-mini", "rem-plus/etd"),
    "10,000 images": ("cifar10-jpeg-small/nine", "cifar10-jpeg-small/etd", "rem-plus/ten-thousand"),
    "fashion-mini, ViT": ("fashion-mini/vit",),
    "poison 0.1, twelve epochs": ("lasting/twelve", "rem-plus/twelve"),
    "fashion-mini, five epochs": ("fashion-mini/fig5",),
    "C-score": ("fashion-mini/cscore.jsonl",),
}
GRIDS = ("fashion-mini", "10,000 images")
LONG = "poison 0.1, twelve epochs"
PRIOR = ("npo", "ascent", "scrub", "badt", "potion", "retrain")  # of Table 1
NAMES = {"npo": "NPO", "ascent": "Ascent", "scrub": "SCRUB", "badt": "BadT", "potion": "Potion",
         "retrain": "retraining", "no-ul": "No UL"}
WITHOUT = {"-no31": "less REM without 3.1", "-no32": "less REM without 3.2", "-ideal": "less REM (IDEAL)"}
LEVEL = 5.0  # points within which two scores are called level


# --- Checks and verdicts ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """A number of ours on one data set, and whether it is as the paper says; None where it decides nothing."""

    data: str
    what: str
    mean: float
    error: float | None
    seeds: int
    holds: bool | None
    plus: bool = False  # of REM+, for want of rows of `rem`
    digits: int = 1
    cells: int = 1


@dataclass(frozen=True)
class Statement:
    """What the paper says and where, its number, the rule, what measures it, and a thought in case it fails here."""

    where: str
    text: str
    paper: str
    rule: str
    measure: Callable[[dict[str, list[dict]]], list[Check]]
    thought: str = ""
    front: bool = False


def above(mean: float, error: float | None, least: float = 0.0) -> bool | None:
    """Whether a number is above another by more than two standard errors; without an error False or None."""
    return mean - 2 * error > least if error is not None else None if mean > least else False


def below(mean: float, error: float | None, most: float) -> bool | None:
    """Whether a number is below another by more than two standard errors; without an error False or None."""
    return mean + 2 * error < most if error is not None else None if mean < most else False


def level(mean: float, error: float | None) -> bool | None:
    """Whether the mean and two standard errors on either side lie within LEVEL of 0; without an error False or None."""
    return below(abs(mean), error, LEVEL)


def undecided(mean: float, error: float | None) -> None:
    """The rule of a number that is shown and decides nothing."""


def verdict(checks: list[Check]) -> str:
    """One of VERDICTS."""
    found = [check.holds for check in checks if check.holds is not None]
    if not any(check.holds is not None and check.seeds > 1 for check in checks):
        return "not measured"
    return "reproduced" if all(found) else "partly" if any(found) else "not reproduced"


# --- Rows -------------------------------------------------------------------------------------------------------------


def world() -> dict[str, list[dict]]:
    """Data set -> its rows: of methods one per run that ended well, at the settings that a method is compared at."""
    return {name: rows_of(name) for name in PLACES}


@cache
def rows_of(name: str) -> list[dict]:
    """The rows of one data set; none where no place is there."""
    paths = [ROOT / "results" / place for place in PLACES[name] if (ROOT / "results" / place).exists()]
    if not paths:
        return []
    if name == "C-score":
        return [json.loads(line) for line in paths[0].read_text(encoding="utf-8").splitlines()]
    rows = etd_alone(load_rows(paths))
    rows = rows if name in (LONG, "fashion-mini, five epochs") else without_extra_curves(rows)
    return [row for row in pick(sweep(rows)) if row["kept"]]


def scores(rows: list[dict], method: str, etd: bool = False, score: str = "product", p_mem: float = 0.2,
           capacity: float = 0.5) -> pd.Series:
    """A method's score by task, discovery rate and seed, a fraction; the rate of what reads no D_f is ANY_RATE."""
    return by_cell(frame_of(pick(rows, method=method, etd=etd, p_mem=p_mem, capacity=capacity)), score)


def our_name(rows: list[dict], suffix: str = "", etd: bool = False) -> str:
    """`rem` if it and its variant were run, else `rem-plus`."""
    printed = pick(rows, method="rem", etd=etd) and pick(rows, method="rem" + suffix, etd=etd)
    return "rem" if printed else "rem-plus"


def of_task(values: pd.Series, task: str) -> pd.Series:
    """The values of one task by rate and seed, so that tasks can be compared at the same ones."""
    return values[values.index.get_level_values("task") == task].droplevel("task")


def drop(values: pd.Series, task: str) -> pd.Series:
    """A task's score at the highest discovery rate less that at the lowest, for each seed."""
    found = of_task(values, task)
    rates = sorted(set(found.index.get_level_values("discovery")))
    ends = [found[found.index.get_level_values("discovery") == end] for end in rates[-1:] + rates[:1]]
    if len(rates) < 2:
        return found[:0]
    return minus(*(part.rename(index=dict.fromkeys(rates, ANY_RATE), level="discovery") for part in ends))


def whole_seeds(values: pd.Series) -> pd.Series:
    """The values of the seeds that have the most cells, for a seed that is still being measured would leave few."""
    cells = values.groupby("seed").transform("size")
    return values[cells == cells.max()]


def difference(data: str, what: str, values: pd.Series, rule, plus: bool = False) -> list[Check]:
    """The check on values by cell and seed in percent; none where the seeds have no cell in common."""
    mean, count = over_seeds(whole_seeds(values))
    if not mean:
        return []
    seeds, cells = map(int, count.split(" × "))
    return [Check(data, what, *mean, seeds, rule(*mean), plus, cells=cells)]


# --- What a statement measures ----------------------------------------------------------------------------------------


def ours_less(*others: str, mine_etd=False, places=GRIDS, etd=False, best=False, rule=above, score="product"):
    """REM less each of the others, or less the best of them, in the same cells and seeds."""
    def measure(rows_by: dict) -> list[Check]:
        found = []
        for data in places:
            rows = rows_by[data]
            name = our_name(rows, etd=mine_etd)
            mine = scores(rows, name, mine_etd, score)
            there = {other: values for other in others if len(values := scores(rows, other, etd, score))}
            if best and there:
                top = max(there, key=lambda other: fmean(there[other]))
                there = {top: there[top]}
            for other, values in there.items():
                what = f"less {called(other, etd)}"
                found += difference(data, what, minus(mine, values), rule, name == "rem-plus")
        return found
    return measure


def variant(suffix: str, places=(*GRIDS, LONG), etd=False, rule=above, score="product"):
    """REM less one of its variants, such as `-no31`; of REM+ where not both were run as printed."""
    def measure(rows_by: dict) -> list[Check]:
        found = []
        for data in places:
            name = our_name(rows_by[data], suffix, etd)
            both = scores(rows_by[data], name, etd, score), scores(rows_by[data], name + suffix, etd, score)
            found += difference(data, WITHOUT[suffix], minus(*both), rule, name == "rem-plus")
        return found
    return measure


def on_etd_less_off(*methods: str, rule=above):
    """Each method on a network trained with ETD less itself on a plain one; REM as `rem`, or else `rem-plus`."""
    def measure(rows_by: dict) -> list[Check]:
        found = []
        for data in GRIDS:
            for method in methods:
                printed = method != "rem" or our_name(rows_by[data], etd=True) == "rem"
                name = method if printed else "rem-plus"
                both = scores(rows_by[data], name, True), scores(rows_by[data], name)
                found += difference(data, NAMES.get(method, "REM"), minus(*both), rule, not printed)
        return found
    return measure


def method_less(method: str, *others: str, etd=False):
    """A method, on ETD where that is asked for, less others on a plain network."""
    def measure(rows_by: dict) -> list[Check]:
        return [check for data in GRIDS for other in others
                for check in difference(data, f"less {NAMES[other]}", minus(scores(rows_by[data], method, etd),
                                                                            scores(rows_by[data], other)), above)]
    return measure


def poison_over_random(method: str):
    """A method's product on poison less that on random labels."""
    def measure(rows_by: dict) -> list[Check]:
        found = []
        for data in GRIDS:
            values = scores(rows_by[data], method)
            less = minus(of_task(values, "poison"), of_task(values, "random"))
            found += difference(data, "poison less random", less, above)
        return found
    return measure


def drops(method: str):
    """How much more a method loses by partial discovery in a task than in the next less regular one."""
    def measure(rows_by: dict) -> list[Check]:
        found = []
        for data in GRIDS:
            values = scores(rows_by[data], method)
            for more, less in zip(TASKS[:-1], TASKS[1:], strict=True):
                both = drop(values, more), drop(values, less)
                found += difference(data, f"loss on {more} less on {less}", minus(*both), above)
        return found
    return measure


def etd_by_regularity(rows_by: dict) -> list[Check]:
    """ETD alone: on random labels above the plain network, and there above poison."""
    found = []
    for data in GRIDS:
        mine, plain = scores(rows_by[data], "no-ul", True), scores(rows_by[data], "no-ul")
        found += difference(data, "random, less No UL", minus(of_task(mine, "random"), of_task(plain, "random")), above)
        found += difference(data, "random less poison", minus(of_task(mine, "random"), of_task(mine, "poison")), above)
    return found


def lowest_cell(rows_by: dict) -> list[Check]:
    """REM's lowest cell, which shall be above half of its mean over cells."""
    found = []
    for data in GRIDS:
        name = our_name(rows_by[data])
        values = 100 * whole_seeds(scores(rows_by[data], name))
        if len(values):
            cells = values.groupby(["task", "discovery"]).agg(fmean)
            half, (task, rate) = fmean(cells) / 2, cells.idxmin()
            part = values[task, rate]
            mean, error = mean_sem(part)
            found.append(Check(data, f"half the mean {half:.1f}, lowest cell ({task} {rate:g})", mean, error, len(part),
                               above(mean, error, half), name == "rem-plus", cells=len(cells)))
    return found


def jumps(rows_by: dict) -> list[Check]:
    """Between neighbouring discovery rates: the change without step 3.2 less that with it."""
    found = []
    for data in GRIDS:
        name = our_name(rows_by[data], "-no32")
        both = [steps(scores(rows_by[data], method)) for method in (name + "-no32", name)]
        found += difference(data, "change without 3.2, less with it", minus(*both), above, name == "rem-plus")
    return found


def steps(values: pd.Series) -> pd.Series:
    """By task, rate and seed how much the score changes from the rate before, up or down."""
    if values.empty:
        return values
    change = values.unstack("discovery").diff(axis=1).abs()
    return change.stack().dropna().reorder_levels(["task", "discovery", "seed"])


def channel(rows_by: dict) -> list[Check]:
    """Fig. 5's two accuracies on D_c's labels as given after the last epoch."""
    data, found = "fashion-mini, five epochs", []
    name = our_name(rows_by[data])
    ends = [row["points"][-1] for row in pick(rows_by[data], method=name) if row.get("points")]
    for key, what, rule in (("base", "base alone", lambda *of: below(*of, 20)),
                            ("full", "base and channel", lambda *of: above(*of, 50))):
        values = [100 * point[key] for point in ends if key in point]
        if values:
            mean, error = mean_sem(values)
            found.append(Check(data, what, mean, error, len(values), rule(mean, error), name == "rem-plus"))
    return found


def comes_back(rows_by: dict) -> list[Check]:
    """Healed after the last of twelve epochs less that after the third."""
    name = our_name(rows_by[LONG])
    rows = [row for row in pick(rows_by[LONG], method=name) if len(row.get("points") or ()) > 3]
    less = [row["healed"] - row["points"][3]["healed"] for row in rows]
    values = by_cell(frame_of(rows).assign(less=less), "less")
    return difference(LONG, "Healed, epoch 12 less 3", values, level, name == "rem-plus")


def train_and_test(rows_by: dict) -> list[Check]:
    """Correlation of Healed and Healed on test images over methods and rates, of runs with Utility of at least 80 %."""
    found = []
    for task, rule in (("poison", lambda *of: above(*of, 0.5)), ("random", lambda *of: below(*of, 0.5))):
        values = []
        rows = [row for row in pick(rows_by["fashion-mini"], task=task)
                if row["utility"] >= 0.8 and row.get("healed_test") is not None]
        for part in split(rows, "seed").values():
            try:
                values.append(correlation(*zip(*((row["healed"], row["healed_test"]) for row in part), strict=True)))
            except (StatisticsError, TypeError):
                continue  # one run, or runs that are all alike
        if values:
            mean, error = mean_sem(values)
            found.append(Check("fashion-mini", task, mean, error, len(values), rule(mean, error), digits=2))
    return found


def seeds_alike(rows_by: dict) -> list[Check]:
    """The range over seeds of REM's Healed on random labels at discovery 0.5."""
    found = []
    for data in GRIDS:
        name = our_name(rows_by[data])
        rows = pick(rows_by[data], method=name, etd=False, task="random", discovery=0.5)
        values = [100 * row["healed"] for row in rows]
        if values:
            width = max(values) - min(values)
            found.append(Check(data, "highest less lowest", width, None, len(values),
                               width < LEVEL if len(values) > 1 else None, name == "rem-plus"))
    return found


def costs(rows_by: dict) -> list[Check]:
    """Seconds in percent of training, and of them BadT less SCRUB, SCRUB less REM, REM less NPO."""
    found = []
    for data in GRIDS:
        name, share = our_name(rows_by[data]), {}
        for method in (name, "scrub", "npo", "badt"):
            part = frame_of(pick(rows_by[data], method=method, etd=False))
            part = part[part["train_seconds"].astype(float) > 0]
            share[method] = by_cell(part.assign(share=part["seconds"] / part["train_seconds"]), "share")
            found += difference(data, NAMES.get(method, "REM"), share[method], undecided, method == "rem-plus")
        for more, less in (("badt", "scrub"), ("scrub", name), (name, "npo")):
            what = f"{NAMES.get(more, 'REM')} less {NAMES.get(less, 'REM')}"
            plus = name == "rem-plus" and name in (more, less)
            found += difference(data, what, minus(share[more], share[less]), above, plus)
    return found


def regularity(rows_by: dict) -> list[Check]:
    """The C-score of each task less that of the next."""
    rows = pd.DataFrame(rows_by["C-score"], columns=["task", "seed", "score"]).assign(discovery=ANY_RATE)
    values = rows.set_index(["task", "discovery", "seed"])["score"]
    found = []
    for more, less in zip(TASKS[:-1], TASKS[1:], strict=True):
        both = of_task(values, more), of_task(values, less)
        found += difference("fashion-mini", f"{more} less {less}", minus(*both), above)
    return found


def masks(rows_by: dict) -> list[Check]:
    """REM with masks of 5 % less REM with masks of 20 %."""
    found = []
    for data in GRIDS:
        name = our_name(pick(rows_by[data], p_mem=0.05))
        both = [scores(rows_by[data], name, p_mem=share) for share in (0.05, 0.2)]
        found += difference(data, "5 % less 20 %", minus(*both), level, name == "rem-plus")
    return found


def capacities(rows_by: dict) -> list[Check]:
    """The untouched network of half the capacity less that of the whole, on random labels."""
    found = []
    for data in GRIDS:
        both = [scores(rows_by[data], "no-ul", capacity=share) for share in (0.5, 1.0)]
        less = minus(*(of_task(values, "random") for values in both))
        found += difference(data, "random, 50 % less 100 %", less, above)
    return found


def nothing(rows_by: dict) -> list[Check]:
    """No rows of this data exist."""
    return []


# --- The statements, in the paper's order -----------------------------------------------------------------------------

ABOVE = "above 0 by two SEM"
WITHIN = f"with two SEM within {LEVEL:g} of 0"
STATEMENTS = (
    Statement("Sec. 4, Eq. 1", "By the C-score poison is more regular than confusion, and that than random labels.",
              "the ranking alone", f"both differences {ABOVE}", regularity),
    Statement("Sec. 4, Fig. 1d", "ETD alone succeeds at low regularity and fails at high.", "Fig. 1d",
              f"random less No UL, and random less poison: {ABOVE}", etd_by_regularity,
              "Where the network fits every label ETD may drop part of the poison too."),
    Statement("Sec. 4, Fig. 1c", "Potion excels at high regularity and fails at low.", "Fig. 1c",
              f"poison less random labels {ABOVE}", poison_over_random("potion"),
              "In a small network few weights serve poison alone, so Potion spends Utility there as well."),
    Statement("Sec. 4, Fig. 1f", "Ascent does worse at low than at high regularity.", "Fig. 1f",
              f"poison less random labels {ABOVE}", poison_over_random("ascent")),
    Statement("Sec. 4, Fig. 1b", "Retraining loses more by partial discovery the higher the regularity.", "Fig. 1b",
              f"loss from rate 1.0 to 0.1, each task less the next less regular: {ABOVE}", drops("retrain"),
              "Confusion of two classes is heard in a vote of their clean images, so that little of it is relearnt."),
    Statement("Sec. 4, Fig. 1e", "SCRUB loses more by partial discovery the higher the regularity.", "Fig. 1e",
              f"loss from rate 1.0 to 0.1, each task less the next less regular: {ABOVE}", drops("scrub"),
              "SCRUB is tuned by one alpha, which acts on the tasks unequally."),
    Statement("Sec. 6", "REM has no sudden breakdown along either dimension.", "Fig. 10",
              "the lowest cell less two SEM above half the mean over cells", lowest_cell,
              "On images that are fitted completely the confusion of two classes stays where D_f does not show it."),
    Statement("Table 1", "REM leads every method without ETD.", "+17.0 on the next, NPO",
              f"REM less the best of them {ABOVE}", ours_less(*PRIOR, best=True),
              "The best rival differs from the paper's, and as printed REM stops with part of the damage unrepaired.",
              True),
    Statement("Table 1", "REM is far ahead of NPO.", "+17.0", f"REM less NPO {ABOVE}", ours_less("npo")),
    Statement("Sec. 6, Table 1", "Retraining is no gold standard: REM is ahead of it.", "+24.9",
              f"REM less retraining {ABOVE}", ours_less("retrain")),
    Statement("Sec. 6, Fig. 3", "ETD alone is far better than training a plain network of its size.", "+18.4",
              f"ETD alone less No UL {ABOVE}", method_less("no-ul", "no-ul", etd=True)),
    Statement("Sec. 6, Fig. 3", "ETD alone outperforms prior methods in the aggregate.",
              "+1.6 on retraining, but -6.3 on NPO and -5.4 on Ascent (Table 1)",
              f"ETD alone less each prior method {ABOVE}",
              method_less("no-ul", *PRIOR, etd=True),
              "ETD alone leaves the poison, which the best rivals remove.", True),
    Statement("Sec. 6, Table 1", "Ascent beats many other methods in the aggregate.",
              "+7.0 retraining, +12.8 SCRUB, +13.9 BadT, +19.3 Potion", f"Ascent less each of these four {ABOVE}",
              method_less("ascent", "retrain", "scrub", "badt", "potion")),
    Statement("Sec. 6, Fig. 3", "REM comes close to REM (IDEAL).", "Fig. 3", f"REM less REM (IDEAL) {WITHIN}",
              variant("-ideal", places=GRIDS, rule=level)),
    Statement("Table 1", "REM on ETD is level with REM.", "-0.2", f"REM on ETD less REM {WITHIN}",
              on_etd_less_off("rem", rule=level)),
    Statement("Table 1", "REM on ETD leads every other method on ETD.", "+6.1 on the next, NPO",
              f"REM on ETD less the best of them {ABOVE}", ours_less(*PRIOR, mine_etd=True, etd=True, best=True)),
    Statement("Table 1", "ETD helps NPO, Ascent, SCRUB and Potion.", "+10.7, +10.3, +17.2, +15.1",
              f"each on ETD less without {ABOVE}", on_etd_less_off("npo", "ascent", "scrub", "potion")),
    Statement("Table 2", "Redirection (step 3.1) is essential.", "+3.6 (73.40, 69.82)",
              f"REM less REM without 3.1 {ABOVE}",
              variant("-no31"),
              "Three to five epochs on few images are too short for what is undiscovered to come back, which "
              " redirection is there to catch.", True),
    Statement("Table 2", "The barrier (step 3.2) adds to the score.", "+2.0 (73.40, 71.38)",
              f"REM less REM without 3.2 {ABOVE}", variant("-no32"),
              "REM+ ends early, and the barrier protects a long run.", True),
    Statement("Table 2", "The barrier (step 3.2) adds healing.", "+2.2 (81.16, 78.94)",
              f"Healed of REM less that without 3.2 {ABOVE}", variant("-no32", score="healed"),
              "REM+ ends early, and the barrier protects a long run."),
    Statement("Table 2", "With ETD the difference that step 3.2 makes vanishes.", "-0.5 (73.19, 73.69)",
              f"REM on ETD less that without 3.2 {WITHIN}", variant("-no32", places=GRIDS, etd=True, rule=level)),
    Statement("A.4, Fig. 7", "The barrier (step 3.2) adds stability along the discovery rates.", "Fig. 7",
              f"mean change between neighbouring rates, without 3.2 less with it: {ABOVE}", jumps,
              "Our discovery rates are too few to show the jumps that the paper's show."),
    Statement("Sec. 6, Fig. 5", "The base's accuracy on the corrupted labels falls to chance while that of base and "
              "channel stays high.", "99.0 to about 10; the channel high",
              "base below 20 and both above 50, by two SEM",
              channel,
              "Eq. 2's pull vanishes on images that step 2 has made far worse than the reference.", True),
    Statement("Sec. 6", "What is undiscovered is not reintroduced while REM runs.", "Fig. 5, five epochs",
              f"Healed after epoch 12 less after epoch 3 {WITHIN}", comes_back,
              "As printed nothing holds down what is undiscovered; its training goes on for twelve epochs."),
    Statement("A.2, Fig. 6", "Healing of train and test images goes together at high regularity, and little at low.",
              "Fig. 6", "correlation above 0.5 for poison and below 0.5 for random labels, by two SEM", train_and_test,
              "With few images Utility falls where random labels were learnt, and both rise when these are healed."),
    Statement("A.3", "REM is not sensitive to the seed of the mask.", "Healed 77.2, 77.4, 75.2",
              f"range of Healed over seeds (of task and network too) below {LEVEL:g}, random labels at rate 0.5",
              seeds_alike,
              "Our seeds change the network and the corrupted images as well."),
    Statement("A.5, Fig. 8", "A smaller capacity memorises fewer random labels.", "Fig. 8",
              f"No UL of 50 % less of 100 %, random labels: {ABOVE}", capacities),
    Statement("Table 5", "REM leads on a ViT too.", "+6.1 on the next, Ascent", f"REM less the best other {ABOVE}",
              ours_less(*PRIOR, places=("fashion-mini, ViT",), best=True)),
    Statement("Tables 6 and 7", "REM leads on Imagenette.", "+6.5 and +6.4 on the next, SCRUB",
              f"REM less the best other {ABOVE}", nothing),
    Statement("Tables 4 and 8", "Masks of 5 % and 20 % give REM similar results.", "76.38 and 73.19 on ETD",
              f"REM with 5 % less with 20 % {WITHIN}", masks),
    Statement("A.8", "BadT costs more time than SCRUB, that more than REM, that more than NPO.",
              "24.7, 14.0, 10.7 and 0.2 % of training", f"each less the next, in percent of training, {ABOVE}", costs,
              "Step 2 of REM is repeated in each epoch, and training is short here."),
)


# --- Tables -----------------------------------------------------------------------------------------------------------


def made(show: str, statements: tuple[Statement, ...], rows_by: dict) -> tuple[list[str], list[list[str]]]:
    """Header and lines of one of the four tables; ValueError for another name."""
    measured = [(statement, statement.measure(rows_by)) for statement in statements]
    found = [(statement, checks, verdict(checks)) for statement, checks in measured]
    count = Counter(text for *_, text in found)
    counts = ", ".join(f"{count[name]} {name}" for name in VERDICTS)
    if show == "all":
        return (["where", "the paper says", "paper", "ours", "rule", "verdict"],
                [[s.where, s.text, s.paper, ours(checks), s.rule, text] for s, checks, text in found])
    if show == "count":
        return [*VERDICTS, "all"], [[*(str(count[name]) for name in VERDICTS), str(len(found))]]
    if show == "front":
        lines = [[s.text, s.paper, ours(checks), text] for s, checks, text in found if s.front]
        lines.append([f"all {len(found)} statements", "", "", counts])
        return ["the paper says", "paper", "ours", "verdict"], lines
    if show == "against":
        failed = [[s.text, s.thought] for s, _, text in found if text == "not reproduced"]
        return ["the paper says", "what we think"], failed
    raise ValueError(f"show={show} is no table of claims; choose from all, count, front, against")


def ours(checks: list[Check]) -> str:
    """Our numbers, a data set after the other, with seeds × cells; REM+ is named where it stands in for REM."""
    texts, parts = [], {}
    for check in checks:
        parts.setdefault((check.data, check.seeds, check.cells, check.plus), []).append(check)
    for (data, seeds, cells, plus), part in parts.items():
        numbers = ", ".join(number(check) for check in part)
        more = f"seeds × cells {seeds} × {cells}" + ", REM+ only" * plus
        texts.append(f"{data}: {numbers} ({more})")
    return "; ".join(texts)


def number(check: Check) -> str:
    """One number with its error."""
    error = "" if check.error is None else f" ± {check.error:.{check.digits}f}"
    return f"{check.what} {check.mean:.{check.digits}f}{error}"


def called(method: str, etd: bool) -> str:
    """A method's name, with its training."""
    return NAMES.get(method, method) + " on ETD" * etd
