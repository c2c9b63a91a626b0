"""The tables of results/tuning/README.md, from the rows of benchmarks/tune.py.

    python benchmarks/tuning_tables.py --table results/tuning/rows.jsonl     # how the values were chosen
    python benchmarks/tuning_tables.py --table results/tuning/little.jsonl   # where little was learnt
    python benchmarks/tuning_tables.py --table results/tuning/fresh.jsonl    # on seeds that nothing was chosen on
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.tune import KEY, SILENT, read  # noqa: E402
from experiment.console import told_in_a_line  # noqa: E402
from metrics import mean_sem  # noqa: E402

# --- Tables -----------------------------------------------------------------------------------------------------------

CARRY, CHOSEN = "carry-today", "away0.07-susb2"
AGAINST = [*((name, CARRY) for name in ("coast", "ray0.1", "away0.05", "away0.07", "away0.1", "away0.05-sus2",
                                        "away0.07-sus2", "away0.07-sus2-ce1", "away0.07-susb1")),
           (CHOSEN, CARRY), (CHOSEN, "away0.07"), ("away0.07-susb1", CHOSEN)]
EPOCHS = (1, 2, 3)


def runs_of(rows: list[dict]) -> dict[str, dict[tuple, dict[int, dict]]]:
    """variant -> (task, discovery, seed, batch) -> epoch -> row.

    Of an epoch that was run twice the last row counts, and of a cell that was run with 3 and with 10 epochs allowed
    each epoch once: the rate is constant, and the first three epochs are the same to the last digit. CHOSEN is
    "-place" where that was run, else with the refresh on a copy.
    """
    last = {tuple({**SILENT, **row}[name] for name in (*KEY, "epoch")): row for row in rows}
    runs = {}
    for row in last.values():
        cell = row["task"], row["discovery"], row["seed"], row["batch"]
        runs.setdefault(row["variant"], {}).setdefault(cell, {})[row["epoch"]] = row
    runs["copy"] = runs.get(CHOSEN, {})
    runs[CHOSEN] = runs["copy"] | runs.get(f"{CHOSEN}-place", {})
    return runs


def grid(header: list[str], lines) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines)) + "\n"


def signed(values: list[float]) -> str:
    """Mean ± SEM of fractions, in percent, with its sign, and n; empty of none."""
    if not values:
        return ""
    mean, error = mean_sem(values)
    return f"{100 * mean:+.1f}" + (f" ± {100 * error:.1f}" if error is not None else "") + f" ({len(values)})"


def name_of(cell: tuple) -> str:
    """A cell in words, without its seed."""
    return f"{cell[0]} {cell[1]:g}" + (f", batch {cell[3]}" if cell[3] != 256 else "")


def path_of(run: dict[int, dict], key: str) -> str:
    """A score after epochs 1 to 3, in percent; empty where the run is not there."""
    return " / ".join(f"{100 * run[epoch][key]:.0f}" for epoch in EPOCHS) if run else ""


def variants_table(runs: dict) -> str:
    """Product of a variant less another's in the same cells, after each epoch."""
    def line(mine: str, other: str) -> list[str]:
        pairs = [(run, runs[other][cell]) for cell, run in runs[mine].items() if cell in runs[other]]
        gained = [[a[e]["product"] - b[e]["product"] for a, b in pairs if e in a and e in b] for e in EPOCHS]
        return [mine + ("" if other == CARRY else f" less {other}"), *map(signed, gained)]

    return grid(["variant", *(f"epoch {epoch} (n)" for epoch in EPOCHS)], [line(*pair) for pair in AGAINST])


def cells_table(runs: dict) -> str:
    """Product in each cell, of the chosen variant and of today's."""
    lines = []
    for cell in sorted(runs[CHOSEN], key=lambda c: (c[3], c[1], c[0], c[2])):
        mine, other = runs[CHOSEN][cell], runs[CARRY].get(cell, {})
        gained = f"{100 * (mine[3]['product'] - other[3]['product']):+.1f}" if other else ""
        lines.append([name_of(cell), str(cell[2]), path_of(mine, "product"), path_of(other, "product"), gained])
    return grid(["task, discovery", "seed", CHOSEN, CARRY, "after epoch 3"], lines)


def poison_table(runs: dict) -> str:
    """Healed of poison at 0.1, seed by seed."""
    lines = []
    for cell in sorted(cell for cell in runs[CHOSEN] if cell[:2] == ("poison", 0.1) and cell[3] == 256):
        alone = [f"{100 * runs[name][cell][epoch]['healed']:.0f}" if cell in runs[name] else ""
                 for name, epoch in (("untouched", 0), ("npo", 1))]
        both = [path_of(runs[name].get(cell, {}), "healed") for name in (CARRY, CHOSEN)]
        lines.append([str(cell[2]), *alone, *both])
    return grid(["seed", "untouched", "NPO", CARRY, CHOSEN], lines)


def repaired(run: dict[int, dict], gamma: float = 0.2) -> int:
    """The epoch of three that `Repaired` returns, see engine/ending.py: one must beat the best by a standard error."""
    best, chosen = -1.0, 0
    for epoch in EPOCHS:
        acc, kept = run[epoch]["acc_watched"], 1 - max(run[epoch]["acc_forget"], gamma)
        done = 0 < best and acc * kept <= best + kept * (acc * (1 - acc) / run[epoch]["watched"]) ** 0.5
        if acc * kept > best:
            best, chosen = acc * kept, epoch
        if done:
            break
    return chosen


def right_of(row: dict) -> np.ndarray:
    """(w,) bool, of which images of W an epoch gets the label right."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(row["watched_hits"]), np.uint8))
    return bits[: row["watched"]].astype(bool)


def paired(run: dict[int, dict], gamma: float = 0.2) -> int:
    """The epoch that a paired end with patience returns of three: images of W newly right less newly wrong.

    Epochs above gamma are none to return; one that beats the best by more than sqrt(changed images) is the best; two
    that do not end it.
    """
    best, waited = 0, 0
    for epoch in EPOCHS:
        below = run[epoch]["acc_forget"] <= gamma
        if below and best:
            ours, best_ones = right_of(run[epoch]), right_of(run[best])
            better = int(ours.sum()) - int(best_ones.sum()) > max(1, (ours != best_ones).sum()) ** 0.5
        else:
            better = below
        best, waited = (epoch, 0) if better else (best, waited + (best > 0))
        if waited == 2:
            break
    return best or min(EPOCHS, key=lambda epoch: run[epoch]["acc_forget"])


ENDS = {"epoch 1": lambda run: 1, "epoch 3": lambda run: 3, "`Repaired`": repaired, "paired": paired}


def ends_table(runs: dict) -> str:
    """The chosen variant against today's in the cells that both have, by the epoch that is returned."""
    cells = sorted(cell for cell in runs[CHOSEN] if cell in runs[CARRY])
    plain = {(cell[0], cell[2]): row[0]["utility"] for cell, row in runs["untouched"].items()}  # of no D_f
    lines = []
    for mine, other in [(name, name) for name in ENDS] + [("paired", "`Repaired`")]:
        pairs = [(runs[CHOSEN][cell], runs[CARRY][cell], plain[cell[0], cell[2]]) for cell in cells]
        pairs = [(a[ENDS[mine](a)], b[ENDS[other](b)], u) for a, b, u in pairs]
        lost = [f"{100 * np.mean(d):+.1f} ({100 * min(d):+.1f})"
                for d in ([a["utility"] - u for a, _, u in pairs], [b["utility"] - u for _, b, u in pairs])]
        lines.append([mine if mine == other else f"{mine} against {other}",
                      *(f"{100 * np.mean([pair[i]['product'] for pair in pairs]):.1f}" for i in (0, 1)),
                      signed([a["product"] - b["product"] for a, b, _ in pairs]), *lost])
    return grid(["", CHOSEN, CARRY, "difference (n)", "its Utility", f"Utility, {CARRY}"], lines)


def long_table(runs: dict) -> str:
    """Mean product over epochs 4 to 10, where that many were run."""
    names, lines = (CARRY, "away0.07", "copy"), []
    for cell in sorted(cell for cell, run in runs["copy"].items() if 10 in run):
        means = [np.mean([runs[name][cell][epoch]["product"] for epoch in range(4, 11)]) for name in names]
        lines.append([name_of(cell), str(cell[2]), *(f"{100 * mean:.1f}" for mean in means)])
    return grid(["task, discovery", "seed", CARRY, "away0.07", CHOSEN], lines)


def norm_table(runs: dict) -> str:
    """Product with refreshed BatchNorm statistics less that of the same weights with those that lag behind.

    The mean over the variants of a cell first: up to epoch 2 many of them are the same network.
    """
    lines = []
    for epoch in EPOCHS:
        found = {}
        for name, cells in runs.items():
            for cell, run in cells.items() if name != CHOSEN else ():  # "copy" has them
                if "product_raw" in run.get(epoch, {}):
                    found.setdefault(cell, []).append(run[epoch]["product"] - run[epoch]["product_raw"])
        lines.append([f"epoch {epoch}", str(sum(map(len, found.values()))),
                      signed([float(np.mean(values)) for values in found.values()])])
    return grid(["", "runs", "refreshed less lagging (cells)"], lines)


# --- Tables of seeds that nothing was chosen on -----------------------------------------------------------------------

NEW = "reach0.07-susb2"  # REM as it is: step 2 by engine/removal.py


def kept(run: dict[int, dict], most: int, gamma: float = 0.2) -> int:
    """The epoch that engine/ending.py returns where at most that many are allowed."""
    best, back, waited = 0, 0, 0
    for epoch in range(1, most + 1):
        row, held = run[epoch], run.get(back)
        if held is None or max(row["acc_forget"], held["acc_forget"]) > gamma:
            better = held is None or row["acc_forget"] <= max(held["acc_forget"], gamma)
            level = False
        else:
            right, best_ones = right_of(row), right_of(run[best])
            lost = int(best_ones.sum()) - int(right.sum())
            better, level = lost < 0, lost**2 <= (right != best_ones).sum()
        best, waited = (epoch, 0) if better else (best, waited + (held["acc_forget"] <= gamma))
        back = epoch if better or level else back
        if waited == 2:
            break
    return back


CHOICES = {"as it is": (NEW, lambda run: kept(run, 3)), "epoch 3": (NEW, lambda run: 3),
           "as it was": (CARRY, repaired), "as printed": (CARRY, lambda run: 3)}  # variant, and the epoch returned


def fresh_tables(rows: list[dict]) -> str:
    """REM as it is, as it was and as printed, at seeds that nothing was chosen on: cell by cell, and on average."""
    runs = runs_of(rows)
    untouched, npo = ({cell: run[epoch] for cell, run in runs.get(name, {}).items()}
                      for name, epoch in (("untouched", 0), ("npo", 1)))
    cells = sorted((cell for cell, run in runs[NEW].items() if 3 in run and 3 in runs[CARRY].get(cell, {})),
                   key=lambda c: (c[0], c[1], c[2]))
    got = {name: {cell: runs[variant][cell][end(runs[variant][cell])] for cell in cells}
           for name, (variant, end) in CHOICES.items()}
    heads = ["task, discovery", "seeds", *CHOICES, "Healed, as it is (least)", "NPO", "Utility less untouched (least)"]
    shown = [place_line(place, [cell for cell in cells if cell[:2] == place], got, untouched, npo)
             for place in sorted({cell[:2] for cell in cells})]
    means = []
    for task in ("poison", "confusion", "random", "all"):
        mine = [cell for cell in cells if task in (cell[0], "all")]
        less = [signed([got["as it is"][cell]["product"] - got[name][cell]["product"] for cell in mine])
                for name in ("as it was", "as printed")]
        lost = signed([got["as it is"][cell]["utility"] - untouched[cell]["utility"] for cell in mine])
        means.append([task, *(f"{100 * np.mean([found[cell]['product'] for cell in mine]):.1f}"
                              for found in got.values()), *less, lost])
    return (grid(heads, shown) + "\n"
            + grid(["task", *CHOICES, "as it is less as it was (n)", "less as printed (n)", "Utility (n)"], means)
            + "\n" + seeds_table(got, cells))


def place_line(place: tuple, cells: list[tuple], got: dict, untouched: dict, npo: dict) -> list[str]:
    """A task at a rate: mean product of each choice over the seeds, and the least of what must not fall."""
    def mean_least(values) -> str:
        return f"{100 * np.mean(values):.0f} ({100 * min(values):.0f})"

    mine = got["as it is"]
    means = [f"{100 * np.mean([found[cell]['product'] for cell in cells]):.0f}" for found in got.values()]
    lost = [100 * (mine[cell]["utility"] - untouched[cell]["utility"]) for cell in cells]
    return [name_of((*place, 0, 256)), str(len(cells)), *means, mean_least([mine[cell]["healed"] for cell in cells]),
            f"{100 * np.mean([npo[cell]['healed'] for cell in cells]):.0f}", f"{np.mean(lost):+.1f} ({min(lost):+.1f})"]


def seeds_table(got: dict, cells: list[tuple]) -> str:
    """The mean over nine cells of the seeds that have all nine, and the difference over seeds."""
    seeds = [seed for seed in sorted({cell[2] for cell in cells}) if sum(cell[2] == seed for cell in cells) == 9]
    means = {name: [float(np.mean([found[cell]["product"] for cell in cells if cell[2] == seed])) for seed in seeds]
             for name, found in got.items()}
    mine = means["as it is"]
    lines = [[name, " / ".join(f"{100 * value:.0f}" for value in found), f"{100 * np.mean(found):.1f}",
              "" if name == "as it is" else signed([a - b for a, b in zip(mine, found, strict=True)])]
             for name, found in means.items() if found]
    return grid(["nine cells", f"seeds {' / '.join(map(str, seeds))}", "mean", "as it is less it (seeds)"], lines)


# --- Where little was learnt ------------------------------------------------------------------------------------------

WHOLE = f"{NEW}-whole"  # the same, all of `reach` however little was learnt


def little_table(runs: dict) -> str:
    """The untouched network, and the product after each epoch with all of `reach` and its share; last the means."""
    lines, found = [], {name: [] for name in (WHOLE, NEW)}
    for cell in sorted(runs[WHOLE], key=lambda c: c[1:3]):
        before, shown = runs["untouched"][cell][0], []
        for name, products in found.items():
            products.append([100 * runs[name][cell][epoch]["product"] for epoch in EPOCHS])
            shown.append(" / ".join(f"{value:.1f}" for value in products[-1]))
        had = " / ".join(f"{100 * before[key]:.1f}" for key in ("healed", "utility", "product"))
        lines.append([f"{cell[1]:g}", str(cell[2]), f"{before['acc_forget']:.2f}", had, *shown])
    means = [" / ".join(f"{value:.1f}" for value in np.mean(products, axis=0)) for products in found.values()]
    heads = ["confusion, discovery", "seed", "Acc(D_f)", "untouched", "all of `reach`", "its share"]
    return grid(heads, [*lines, ["mean", "", "", "", *means]])


def table(rows: list[dict]) -> str:
    """The tables of results/tuning/README.md, a blank line between two: of tuning, of little learnt, or fresh seeds."""
    if any(row["variant"] == WHOLE for row in rows):
        return little_table(runs_of(rows))
    if any(row["variant"] == NEW for row in rows):
        return fresh_tables(rows)
    runs = runs_of(rows)
    make = (variants_table, cells_table, poison_table, ends_table, long_table, norm_table)
    return "\n".join(one(runs) for one in make)


def main(argv: list[str] | None = None) -> int:
    """Print the tables of a file of rows."""
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--table", type=Path, required=True, metavar="ROWS", help="rows of benchmarks/tune.py")
    path = p.parse_args(argv).table
    if not (rows := read(path)):
        raise ValueError(f"{path} has no rows; name a file that benchmarks/tune.py has written")
    print(table(rows), end="")
    return 0


if __name__ == "__main__":
    sys.exit(told_in_a_line(main))
