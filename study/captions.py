"""What a reader must know of a table or figure: its runs, and warnings where they are not one experiment."""

import re
from collections import defaultdict
from dataclasses import fields

from experiment.methods import OF_VIT, reads_forget, reads_setting
from experiment.settings import Config
from study.rows import NOT_IDENTITY, SETTINGS, maskless, pick, split

OWN = [name for name in SETTINGS if name in ("forget_norm", "schedule", "ssd_alpha")]  # each method its own
COORDINATES = {"task", "discovery", "method", "seed", "capacity", "etd", "p_mem", "n", "arch"}


def caption(rows: list[dict], *row_keys: str) -> str:
    """What the rows of a table are: data, tasks, rates, seeds, hardware, and everything a reader must be warned of."""
    def found(key, of=str):
        return ", ".join(dict.fromkeys(of(row[key]) for row in sorted(rows, key=lambda row: row[key])))

    good, failed = pick(rows), [row for row in rows if row["status"] != "ok"]
    runs = [f"{len(good)} {'run' if len(good) == 1 else 'runs'}", *sorted({hardware(row) for row in good})]
    text = ["Mean ± SEM over runs, in percent; product: mean over runs of Healed × Utility (over all classes).",
            f"Rows: {found('data')}, {found('n')} corrupted; {found('task')}; "
            f"discovery {found('discovery', '{:g}'.format)}; seeds {found('seed')}; {'; '.join(runs)}."]
    names = [f"{row['method']}{' with ETD' if row['etd'] else ''} {row['task']} {row['discovery']:g} seed {row['seed']}"
             for row in failed]
    if failed:
        text.append(f"Failed, not averaged: {len(failed)} of {len(rows)} runs ({'; '.join(names)}).")
    text += of_endings(rows)
    if choices := of_sweeps(rows):
        text.append(f"Of several values one for all cells: {'; '.join(choices)}.")
    if uneven(rows, *row_keys):
        text.append("The methods do not cover the same tasks, rates and seeds (see n): compare with care.")
    if lopsided(rows, *row_keys):
        text.append("Not every task and discovery rate has the same seeds: those with more weigh more over runs.")
    if settings := mixed(rows):
        settings = "; ".join(f"{key} ({', '.join(found)})" for key, found in settings.items())
        text.append(f"NOT ONE EXPERIMENT: the runs differ in {settings}.")
    names = [str(row.get("git") or "unknown") for row in rows]
    commits = sorted({name[:7] + ("-dirty" if name.endswith("-dirty") else "") for name in names})
    return " ".join([*text, f"Commits: {', '.join(commits)}."] if len(commits) > 1 else text)


def brief(rows: list[dict], failed: int) -> str:
    """The warnings of a caption in a few words, for the title of a figure; empty where there are none."""
    settings, choices = mixed(rows), of_sweeps(rows)
    keys = ("arch", "capacity", "etd", "method")
    warnings = {f"NOT ONE EXPERIMENT: the runs differ in {', '.join(map(in_words, settings))}": settings,
                "the methods' tasks, rates or seeds differ": uneven(rows, *keys),
                "some cells have more seeds than others": lopsided(rows, *keys),
                "; ".join(choices): choices,
                f"{failed} failed {'run' if failed == 1 else 'runs'} left out": failed}
    return "; ".join(words for words, apply in warnings.items() if apply)


def of_sweeps(rows: list[dict]) -> list[str]:
    """For methods that were run with several values of a setting, the one that they are compared at."""
    return list(dict.fromkeys(f"{row['method']} {name} {row[name]} (of {', '.join(map(str, values))})"
                              for row in rows for name, values in row.get("tried", {}).items()))


def in_words(setting: str) -> str:
    """What a setting is, by the first words of its help: "peak rate" for lr."""
    texts = {f.name: f.metadata["help"] for f in fields(Config)}
    return re.split(r"[;,:(]", texts.get(setting, setting))[0].strip()


def uneven(rows: list[dict], *row_keys: str) -> bool:
    """Whether methods ended well in different places: tasks and seeds, and rates where the method depends on them."""
    runs = [places(part) for part in split(pick(rows), *row_keys).values()]
    seeds = {frozenset((task, seed) for task, _, seed in part) for part in runs}
    rates = {frozenset(part) for part in runs if all(rate is not None for _, rate, _ in part)}
    return len(seeds) > 1 or len(rates) > 1


def places(rows: list[dict]) -> set[tuple]:
    """(task, discovery rate, seed) of one method's runs; the rate of what reads no D_f is None."""
    return {(row["task"], row["discovery"] if reads_forget(row["method"]) else None, row["seed"]) for row in rows}


def once(rows: list[dict]) -> list[str]:
    """How methods that read no D_f are counted, where there are some."""
    found = sorted({row["method"] for row in rows if not reads_forget(row["method"])})
    return [f"{', '.join(found)}: the same network at every discovery rate, counted once."] if found else []


def hardware(row: dict) -> str:
    """Device, threads and torch of a run."""
    threads = f", threads {row['threads']}" if "threads" in row and row.get("device") == "cpu" else ""
    return f"{row.get('device')}{threads}, torch {row.get('torch')}"


def mixed(rows: list[dict]) -> dict[str, list[str]]:
    """Settings, images, and versions of a user's method (`code`), that differ between runs of one table, with their
    values."""
    shared = [key for key in SETTINGS if key not in COORDINATES | NOT_IDENTITY | {*OWN}]
    values = defaultdict(set)
    for keys, places in (([*OWN, "code"], ("method",)), ([*shared, "version"], ("arch", "capacity")),
                         (["images"], ("data",))):
        for part in split(rows, *places).values():
            for key in keys:
                found = {str(row.get(key)) for row in part if counts(key, row)}
                values[key] |= found if len(found) > 1 else set()
    return {key: sorted(found) for key, found in values.items() if found}


def counts(key: str, row: dict) -> bool:
    """Whether a run's numbers depend on this setting."""
    if key == "pair":
        return row["task"] == "confusion"
    if key in {"trigger", "human_column", *OF_VIT}:
        return reads_setting(key, row)
    if key == "images":
        return row.get("images") is not None  # older rows do not say
    return not maskless(row) if key == "ratio" else reads_setting(key, {"method": row["ran"]})


def lopsided(rows: list[dict], *row_keys: str) -> bool:
    """Whether one method's tasks and rates have other seeds than each other, so that some weigh more in its mean."""
    runs = [places(part) for part in split(pick(rows), *row_keys).values()]
    return any(len(part) < len({key[:2] for key in part}) * len({seed for _, _, seed in part}) for part in runs)


def endings(rows: list[dict]) -> tuple[int, int, int]:
    """(runs that note how they ended, those that gave up above gamma, those that left the network as it was)."""
    noted = [row for row in pick(rows) if row.get("gave_up") is not None]
    idle = [row for row in noted if row.get("passes") == 0  # of a method that is passes over D_f and nothing else
            and not reads_setting("unlearn_epochs", {"method": row["ran"]})]
    return len(noted), sum(row["gave_up"] for row in noted), len(idle)


def of_endings(rows: list[dict]) -> list[str]:
    """A sentence on the runs that gave up or did nothing, by method; none where no run notes it."""
    parts = {method + (" with ETD" if etd else ""): endings(part)
             for (method, etd), part in split(rows, "method", "etd").items()}
    if not any(noted for noted, _, _ in parts.values()):
        return []
    texts = [", ".join(f"{name} {found[k]} of {found[0]} runs" for name, found in parts.items() if found[k]) or "none"
             for k in (1, 2)]
    return [f"Gave up with Acc(D_f) above gamma (REM: in some step 2): {texts[0]}. Did nothing, Acc(D_f) being at most "
            f"gamma: {texts[1]}."]

