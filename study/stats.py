"""Numbers of a table: means over runs and over seeds, differences to REM in the same cells, runs that gave up.

    mine = summary(pick(rows, method="npo"))            # n, failed, mean and SEM over runs of each score, in percent
    mean, seeds = over_seeds(products(rows))            # the seeds are what is independent
    mean, pairs = over_seeds(minus(products(npo), products(rem)))

Choice: over seeds count only the cells that every seed has, for means of other cells differ for that alone.
"""

from statistics import fmean

from methods import reads_forget, reads_setting
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


# --- Over seeds -------------------------------------------------------------------------------------------------------

def products(rows: list[dict]) -> dict[tuple, float]:
    """(task, discovery rate, seed) -> product of one method's runs, a fraction; the rate of what reads no D_f: None."""
    good = [{**row, "discovery": row["discovery"] if reads_forget(row["method"]) else None} for row in pick(rows)]
    return {key: fmean(row["product"] for row in part) for key, part in split(good, "task", "discovery", "seed").items()}


def minus(mine: dict[tuple, float], other: dict[tuple, float]) -> dict[tuple, float]:
    """Mine less the other's in every cell and seed that both have; what reads no D_f is the same at every rate."""
    def at(values, key):
        return values.get(key, values.get((key[0], None, key[2])))

    pairs = {key: (at(mine, key), at(other, key)) for key in mine | other}
    return {key: a - b for key, (a, b) in pairs.items() if None not in (a, b)}


def over_seeds(values: dict[tuple, float]) -> tuple[tuple | None, str | None]:
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
    return percent(fmean(cells[place] for place in shared) for cells in seeds.values()), f"{len(seeds)} × {len(shared)}"


def against_rem(rows: list[dict], rem: list[dict]) -> tuple:
    """Product over seeds, "seeds × cells", product less REM's (None for REM itself) over seeds, its "seeds × cells"."""
    own = any(row in rem for row in rows)
    return *over_seeds(products(rows)), *over_seeds({} if own else minus(products(rows), products(rem)))


def baseline(rows: list[dict]) -> list[dict]:
    """The runs of REM that others are compared with: without ETD where there are some."""
    return pick(rows, method="rem", etd=False) or pick(rows, method="rem")


# --- What a score does not tell ---------------------------------------------------------------------------------------

def learnt(rows: list[dict]) -> str | None:
    """Of the untouched network its accuracy on D_c's labels as given, in percent, a number per task; else None."""
    found = [row for row in networks(pick(rows, method="no-ul")) if row.get("learnt") is not None]
    parts = [pick(found, task=task) for task in TASKS]
    return " / ".join(f"{100 * fmean(row['learnt'] for row in part):.0f}" for part in parts if part) or None


def left_alone(row: dict) -> bool:
    """Whether a method that is passes over D_f and nothing else made none: Acc(D_f) was at most gamma before."""
    return row.get("passes") == 0 and not reads_setting("unlearn_epochs", {"method": row["ran"]})


def endings(rows: list[dict]) -> tuple[int, int, int]:
    """(runs that note how they ended, those that gave up above gamma, those that left the network as it was)."""
    noted = [row for row in pick(rows) if row.get("gave_up") is not None]
    return len(noted), sum(row["gave_up"] for row in noted), sum(map(left_alone, noted))


def of_endings(rows: list[dict]) -> list[str]:
    """A sentence on the runs that gave up or did nothing, by method; none where no run notes it."""
    parts = {method + (" with ETD" if etd else ""): endings(part)
             for (method, etd), part in split(networks(rows), "method", "etd").items()}
    if not any(noted for noted, _, _ in parts.values()):
        return []
    texts = [", ".join(f"{name} {counts[k]} of {counts[0]} runs" for name, counts in parts.items() if counts[k]) or "none"
             for k in (1, 2)]
    return [f"Gave up with Acc(D_f) above gamma: {texts[0]}. Did nothing, Acc(D_f) being at most gamma: {texts[1]}."]
