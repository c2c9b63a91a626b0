"""Numbers of a table: means over runs and over seeds, differences to REM in the same cells, runs that gave up.

    mine = summary(pick(rows, method="npo"))            # n, failed, mean and SEM over runs of each score, in percent
    mean, seeds = mean_of_seeds(products(rows))            # the seeds are what is independent
    mean, pairs = mean_of_seeds(minus(products(npo), products(rem)))

Choice: over seeds count only the cells that every seed has, for means of other cells differ for that alone.
"""

from statistics import fmean

from methods import reads_forget
from metrics import mean_sem
from settings import TASKS
from study.rows import SCORES, networks, pick, split


def percent(values) -> tuple[float, float | None] | None:
    """Mean and SEM of fractions, in percent; None of none."""
    values = list(values)
    return tuple(None if v is None else 100 * v for v in mean_sem(values)) if values else None


def summary(rows: list[dict]) -> dict:
    """n (runs that ended well; None where none was tried), failed, and mean and SEM over runs of each score, in %."""
    good = pick(rows)
    counts = {"n": len(good) if rows else None, "failed": len(rows) - len(good)}
    return counts | {key: percent(row[key] for row in good) for key in SCORES}


def descending(scores: dict, key: str = "product") -> list:
    """Keys of summaries by mean score, the best first; those without a run stay in order at the end."""
    return sorted(scores, key=lambda k: -scores[k][key][0] if scores[k][key] else 1.0)


def by_product(rows: list[dict], *keys: str) -> dict[tuple, list[dict]]:
    """Rows by the values of these keys, in descending order of their mean product."""
    parts = split(rows, *keys)
    return {key: parts[key] for key in descending({key: summary(part) for key, part in parts.items()})}


# --- Over seeds -------------------------------------------------------------------------------------------------------

def products(rows: list[dict]) -> dict[tuple, float]:
    """(task, discovery rate, seed) -> product of one method's runs, a fraction; the rate of what reads no D_f: None."""
    good = [{**row, "discovery": row["discovery"] if reads_forget(row["method"]) else None} for row in pick(rows)]
    cells = split(good, "task", "discovery", "seed")
    return {key: fmean(row["product"] for row in part) for key, part in cells.items()}


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
    seeds = {}
    for (task, rate, seed), value in values.items():
        seeds.setdefault(seed, {})[task, rate] = value
    shared = set.intersection(*map(set, seeds.values())) if seeds else set()
    if not shared:
        return None, None
    means = [fmean(cells[place] for place in shared) for cells in seeds.values()]
    return percent(means), f"{len(seeds)} × {len(shared)}"


def against_rem(rows: list[dict], rem: list[dict]) -> tuple:
    """Product over seeds and its "seeds × cells"; likewise the product less REM's, which REM itself has not."""
    own = {row["method"] for row in rows} == {"rem"} and {row["etd"] for row in rows} <= {row["etd"] for row in rem}
    return *mean_of_seeds(products(rows)), *mean_of_seeds({} if own else minus(products(rows), products(rem)))


def baseline(rows: list[dict]) -> list[dict]:
    """The runs of REM that others are compared with: without ETD where there are some."""
    return pick(rows, method="rem", etd=False) or pick(rows, method="rem")


# --- What a score does not tell ---------------------------------------------------------------------------------------

def learnt(rows: list[dict]) -> str | None:
    """Of the untouched network its accuracy on D_c's labels as given, in percent, a number per task; else None."""
    found = [row for row in networks(pick(rows, method="no-ul")) if row.get("learnt") is not None]
    parts = [pick(found, task=task) for task in TASKS]
    return " / ".join(f"{100 * fmean(row['learnt'] for row in part):.0f}" for part in parts if part) or None
