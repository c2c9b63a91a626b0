"""Numbers of a table: means over runs and over seeds, differences to REM in the same cells, runs that gave up.

    mine = summary(pick(rows, method="npo"))            # n, failed, mean and SEM over runs of each score, in percent
    mean, seeds = mean_of_seeds(products(rows))         # the seeds are what is independent
    mean, pairs = mean_of_seeds(minus(products(npo), products(rem)))

Choice: over seeds count only the cells that every seed has, for means of other cells differ for that alone.
"""

from statistics import fmean

from metrics import mean_sem
from study.rows import SCORES, networks, pick
from experiment.settings import EVERY_TASK
from tasks import TASKS


def percent(values) -> tuple[float, float | None] | None:
    """Mean and SEM of fractions, in percent; None of none."""
    values = list(values)
    return tuple(None if v is None else 100 * v for v in mean_sem(values)) if values else None


def summary(rows: list[dict]) -> dict:
    """n (runs that ended well; None where none was tried), failed, and mean and SEM over runs of each score, in %."""
    good = pick(rows)
    counts = {"n": len(good) if rows else None, "failed": len(rows) - len(good)}
    return counts | {key: percent(row[key] for row in good) for key in SCORES}


def by_product(parts: dict[tuple, list[dict]]) -> dict[tuple, list[dict]]:
    """Parts in descending order of their mean product; those without a run stay in order at the end."""
    means = {key: summary(part)["product"] for key, part in parts.items()}
    return {key: parts[key] for key in sorted(parts, key=lambda key: -means[key][0] if means[key] else 1.0)}


# --- Over seeds -------------------------------------------------------------------------------------------------------

def minus(mine: dict[tuple, float], other: dict[tuple, float]) -> dict[tuple, float]:
    """Mine less the other's in every cell and seed that both have; what reads no D_f is the same at every rate."""
    def at(values, key):
        return values.get(key, values.get((key[0], None, key[2])))

    pairs = {key: (at(mine, key), at(other, key)) for key in mine | other}
    return {key: a - b for key, (a, b) in pairs.items() if None not in (a, b)}


def mean_of_seeds(values: dict[tuple, float]) -> tuple[tuple | None, str | None]:
    """Mean and SEM over seeds of each seed's mean over the cells that every seed has, in percent; "seeds × cells".

    Args: values: (task, discovery rate, seed) -> a fraction.
    Returns: ((mean, SEM), text), the SEM None of one seed; (None, None) where the seeds have no cell in common.
    """
    seeds = {seed for _, _, seed in values}
    shared = {(task, rate) for task, rate, _ in values if all((task, rate, seed) in values for seed in seeds)}
    if not shared:
        return None, None
    means = [fmean(values[(*place, seed)] for place in shared) for seed in seeds]
    return percent(means), f"{len(seeds)} × {len(shared)}"


# --- What a score does not tell ---------------------------------------------------------------------------------------

def learnt(rows: list[dict]) -> str | None:
    """Of the untouched network its accuracy on D_c's labels as given, in percent, a number per task of TASKS, "-" where
    there is no such run; None where there is none of any task."""
    found = [row for row in networks(pick(rows, method="no-ul")) if row.get("learnt") is not None]
    tasks = TASKS if any(row["task"] in TASKS for row in found) else EVERY_TASK[len(TASKS):]
    parts = [pick(found, task=task) for task in tasks]
    texts = [f"{100 * fmean(row['learnt'] for row in part):.0f}" if part else "-" for part in parts]
    return " / ".join(texts) if found else None
