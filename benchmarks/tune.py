"""Tuning of step 2 and of what step 3 leaves out, on 6,000 Fashion-MNIST training images that fashion-mini lacks.

    python benchmarks/tune.py --variants carry-today,away0.07-susb2-place --seeds 100,101 --rates 0.1
    python benchmarks/tune.py --data fashion-mini --variants carry-today,reach0.07-susb2 --seeds 5,6 --epochs 10
    python benchmarks/tune.py --table results/tuning/rows.jsonl       # the tables of results/tuning, from the rows

Fashion-MNIST comes from Debian's package (apt-get install dataset-fashion-mnist), or from --source, a folder of the
same .gz files. Of data/fashion-mini.npz no image is read, only which training rows it holds: training and test images
here are drawn from the others, DRAW being the seed. With `--data fashion-mini` the chosen values are tried on the
embedded images themselves, at seeds that nothing was chosen on.

Every epoch of every run is a JSON line, written as it comes. A run whose last epoch is in the file is skipped; where an
epoch is there twice, the last line counts. The rows hold which examples of W each epoch gets right, so that rules for
the end can be compared without a new run.
Fields of a row, beside the settings: passes (updates, where a pass is one batch), acc_path (Acc(D_f) before each),
u_gamma and u_forget (mean CE - CE_ref of D_f when Acc(D_f) <= gamma and when step 2 is over), moved_gamma and moved
(displacement of theta_o1 in step 2 over its norm, at the same two), moved_step3; u_retain, far_retain (mean u of D_r
after step 2, and its share above 6), u_bad, far_bad (the same of the undiscovered, which no method sees); *_step2
(scores of theta_o1 after step 2); left_out, left_out_bad (suspects of step 3, and the undiscovered among them);
*_raw (scores without the refresh, where that is on a copy); healed to acc_watched after step 3; watched: images of W;
watched_hits: W in hexadecimal digits, numpy.packbits, a bit an image. The oldest rows lack some of them.
"""

import argparse
import copy
import json
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from unittest import mock

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from baselines import npo  # noqa: E402
from data.make_fashion_mini import CLASSES, PER_CLASS, SOURCE, read_idx  # noqa: E402
from engine.batches import batches_of  # noqa: E402
from engine.lines import Line, carry_on, copies, moved  # noqa: E402
from engine.modes import eval_mode, refresh_batchnorm  # noqa: E402
from engine.scores import accuracy_of, cross_entropy  # noqa: E402
from engine.streams import stream  # noqa: E402
from engine.updates import one_pass  # noqa: E402
from etd import drop  # noqa: E402
from experiment.cell import corrupt, find, new_model, train_original  # noqa: E402
from experiment.data import Dataset  # noqa: E402
from experiment.datasets import FASHION, MINI_FILE, RECIPES, _arrays, _data, load  # noqa: E402
from experiment.rows import append_row  # noqa: E402
from experiment.settings import resolve  # noqa: E402
from metrics import evaluate, mean_sem, predict  # noqa: E402
import rem  # noqa: E402
from rem import State, add_capacity, redirect, step2_loss, step3_batch  # noqa: E402

DRAW = 30  # seed of the tuning images
WATCHED = 0.05  # share of D_r that step 3 leaves out, W
FIXED = dict(optimizer="sgd", momentum=0.9, unlearn_lr=0.01, max_passes=100, precision="bf16")

# A variant is what differs from BASE.
#   rule: what follows once Acc(D_f) <= gamma: "carry" (nothing: the momentum runs on into step 3), "coast" (it runs out
#       in closed form), "ray" (theta_o1 goes on along the displacement of this step 2 until that is `reach` times its
#       norm), "away" (the same until theta_o1 is that far from the reference; a later step 2 that makes passes goes on
#       as far, where rem.py's ends at gamma), "rem" (step 2 as rem.py has it), "whole" (the same, but for all of
#       `reach` however little of D_f was learnt); after all but "carry" the optimiser's state is cleared
#   refresh: of BatchNorm's base statistics after each epoch: "place", or "copy" (on what is judged alone)
#   suspects: CE of the given label above which an image of D_r is left out of step 3; None: none is
#   from_epoch: the first epoch that leaves suspects out; looked: their CE is that "after" step 2, or "before" it, as
#       the epoch before left them
BASE = dict(rule="carry", reach=None, refresh="copy", suspects=None, from_epoch=1, looked="after")
AFTER, BEFORE = dict(from_epoch=2), dict(from_epoch=2, looked="before")
VARIANTS = {
    "untouched": dict(rule="untouched"),
    "npo": dict(rule="npo"),
    "carry-today": dict(refresh="place"),
    "coast": dict(rule="coast"),
    "ray0.1": dict(rule="ray", reach=0.1),
    "away0.05": dict(rule="away", reach=0.05),
    "away0.07": dict(rule="away", reach=0.07),
    "away0.1": dict(rule="away", reach=0.1),
    "away0.05-sus2": dict(rule="away", reach=0.05, suspects=3.0, **AFTER),
    "away0.07-sus2": dict(rule="away", reach=0.07, suspects=3.0, **AFTER),
    "away0.07-sus2-ce1": dict(rule="away", reach=0.07, suspects=1.0, **AFTER),
    "away0.07-susb1": dict(rule="away", reach=0.07, suspects=1.0, **BEFORE),
    "away0.07-susb2": dict(rule="away", reach=0.07, suspects=2.0, **BEFORE),
    "away0.07-susb2-place": dict(rule="away", reach=0.07, suspects=2.0, refresh="place", **BEFORE),
    "reach0.05": dict(rule="rem", reach=0.05, refresh="place"),
    "reach0.07": dict(rule="rem", reach=0.07, refresh="place"),
    "reach0.07-susb2": dict(rule="rem", reach=0.07, suspects=2.0, refresh="place", **BEFORE),
    "reach0.07-susb2-whole": dict(rule="whole", reach=0.07, suspects=2.0, refresh="place", **BEFORE),
    "carry-susb2": dict(suspects=2.0, refresh="place", **BEFORE),
}
KEY = ("variant", "task", "discovery", "seed", "n", "batch", "epochs", "train_epochs")  # what tells a run from another
TRAINED = 12  # epochs of training, fashion-mini's preset: rows that do not say have these


def tuning_data(source: Path) -> Dataset:
    """6,000 training and 2,000 test images, equally many of each class, from training rows outside fashion-mini."""
    images, labels = (read_idx(source / f"train-{what}-ubyte.gz") for what in ("images-idx3", "labels-idx1"))
    free = np.ones(len(labels), bool)
    with np.load(MINI_FILE) as file:
        free[file["index_train"]] = False
    rng, splits = np.random.default_rng(DRAW), {}
    for split in ("train", "test"):
        picks = [rng.choice(np.flatnonzero(free & (labels == c)), PER_CLASS[split], replace=False)
                 for c in range(CLASSES)]
        index = rng.permutation(np.concatenate(picks))
        free[index] = False
        splits[split] = (images[index][..., None], labels[index])
    recipe, arrays = RECIPES["fashion-mini"], _arrays(splits, FASHION, source)
    return Dataset("fashion-mini", *(_data(arrays, s, recipe["size"], recipe["mean"], recipe["std"]) for s in splits),
                   FASHION)


def original_of(config, task, dataset: Dataset, folder: Path):
    """The trained network of a task and seed, read from `folder` or trained, in batches of 256, and left there."""
    epochs = "" if config.epochs == TRAINED else f"-{config.epochs}"
    path, model = folder / f"{config.task}-n{config.n}-{config.seed}{epochs}.pt", new_model(config, dataset)
    if path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model
    train_original(replace(config, batch=256), task, model)
    torch.save(model.state_dict(), path)
    return model


# --- Step 2 -----------------------------------------------------------------------------------------------------------

@torch.no_grad()
def ce_of(s: State, index: torch.Tensor | None) -> torch.Tensor:
    """CE of theta_o1 alone on examples of D_tr, labels as given, eval mode."""
    with eval_mode(s.expanded):
        return torch.cat([cross_entropy(s, x, y) for _, x, y in batches_of(s, index, augment=False, size=1024)])


class Whole(Line):
    """A line along which the first step 2 goes `reach` far, however little of D_f was learnt."""

    def __init__(self, s: State, reach: float, believed: float):
        super().__init__(s, reach, believed=1.0)


def remove(s: State, v: dict) -> dict:
    """Step 2 by a variant's rule; what it did."""
    theta_o1, path, passes = s.expanded.theta_o1(), [], 0
    begin = copies(theta_o1)
    if v["rule"] in ("rem", "whole"):
        with mock.patch.object(rem, "Line", Whole if v["rule"] == "whole" else Line):
            rem.remove(s, reach=v["reach"])
        return dict(passes=s.record["passes"], acc_forget_gamma=s.record["acc_forget"], moved=moved(theta_o1, begin))
    s.expanded.eval()
    while (acc := accuracy_of(s, s.forget)) > s.config.gamma and passes < s.config.max_passes:
        path.append(round(acc, 3))
        with one_pass(s, "step 2") as update:
            for rows, x, y in batches_of(s, s.forget):
                update(step2_loss(cross_entropy(s, x, y), s.reference.base(rows, x, y), s.config.beta), rows)
        passes += 1
    at_gamma = moved(theta_o1, begin)
    u_gamma = float((ce_of(s, s.forget) - s.reference.known[1, s.forget]).mean())
    if passes and v["rule"] != "carry":
        RULES[v["rule"]](s, v["reach"], begin)
        s.optimizer.state.clear()
    return dict(passes=passes, acc_path=path, acc_forget_gamma=acc, u_gamma=u_gamma, moved_gamma=at_gamma,
                moved=moved(theta_o1, begin))


@torch.no_grad()
def coast(s: State, reach: None, begin: list[torch.Tensor]) -> None:
    """The momentum runs out, as it would without gradients: m + m^2 + ... = m / (1 - m) times the last update."""
    group = s.optimizer.param_groups[0]
    ahead = group["momentum"] / (1 - group["momentum"])
    for p in s.expanded.theta_o1():
        if p in s.optimizer.state:
            p -= group["lr"] * ahead * s.optimizer.state[p]["momentum_buffer"]


def ray(s: State, reach: float, begin: list[torch.Tensor]) -> None:
    """theta_o1 goes on along the displacement of this step 2 until that is `reach` times its norm."""
    carry_on(s.expanded.theta_o1(), begin, reach)


@torch.no_grad()
def away(s: State, reach: float, begin: list[torch.Tensor]) -> None:
    """theta_o1 goes on along the displacement of this step 2 until it is `reach` times the reference's norm from it."""
    theta_o1, ref = s.expanded.theta_o1(), s.reference.net.theta_o1()
    line, off = ([p - q for p, q in zip(theta_o1, others, strict=True)] for others in (begin, ref))
    line, off, whole = (torch.cat([t.flatten().double() for t in tensors]) for tensors in (line, off, ref))
    # |off + t line|^2 = reach^2 |ref|^2, its larger root
    a, b, c = float(line @ line), float(line @ off), float(off @ off) - reach**2 * float(whole @ whole)
    if a and c < 0:
        t = (-b + (b * b - a * c) ** 0.5) / a
        for p, q in zip(theta_o1, begin, strict=True):
            p += t * (p - q)


RULES = dict(coast=coast, ray=ray, away=away)


# --- A run ------------------------------------------------------------------------------------------------------------

def scores(net, task, forget: torch.Tensor, watched: torch.Tensor | None) -> dict:
    """Healed, Utility, ... and what W gets right, of a plain network."""
    found = evaluate(net, task, forget)
    row = {name: found[name] for name in ("healed", "healed_forget", "healed_undiscovered", "healed_test", "utility",
                                          "product", "acc_forget")}
    if watched is not None:
        hits = predict(net, task.train, watched) == task.train.labels[watched]
        row |= dict(acc_watched=float(hits.float().mean()), watched=len(watched),
                    watched_hits=np.packbits(hits.numpy()).tobytes().hex())
    return row


def after_step2(s: State, ce: torch.Tensor, bad: torch.Tensor) -> dict:
    """How far step 2 has moved CE (of all of D_tr) from the reference's; bad: the undiscovered."""
    u, retain = ce - s.reference.known[1], ~s.in_forget
    return dict(u_forget=float(u[s.forget].mean()), u_retain=float(u[retain].mean()),
                u_bad=float(u[bad].mean()) if len(bad) else None, far_retain=float((u[retain] > 6).float().mean()),
                far_bad=float((u[bad] > 6).float().mean()) if len(bad) else None)


def run(v: dict, config, task, original, forget: torch.Tensor, tell) -> None:
    """All epochs of a variant on one cell; tell(epoch, **values) after each, epoch 0 being the untouched network."""
    generator = stream(config.seed, "unlearning")
    if v["rule"] == "npo":
        return tell(1, **scores(npo(original, task.train, forget, config, generator), task, forget, None))
    s = add_capacity(original, task.train, forget, config, generator)
    # W as engine/ending.py draws it, here whatever the end
    retain = (~s.in_forget).nonzero().flatten()
    order, few = torch.randperm(len(retain), generator=stream(config.seed, "watched")), round(WATCHED * len(retain))
    watched, taught = retain[order[:few]].sort().values, torch.cat([forget, retain[order[few:]]]).sort().values
    if v["rule"] == "untouched":
        return tell(0, **scores(original, task, forget, watched))
    s.reference.remember(s)
    bad = task.corrupted[~torch.isin(task.corrupted, forget)]
    for s.epoch in range(1, config.unlearn_epochs + 1):
        begin = time.perf_counter()
        before = ce_of(s, None) if v["looked"] == "before" else None
        notes = remove(s, v)
        ce = ce_of(s, None)
        notes |= after_step2(s, ce, bad)
        notes |= {f"{name}_step2": value for name, value in scores(drop(s.expanded), task, forget, watched).items()
                  if name in ("healed", "utility", "acc_watched")}
        index = taught
        if v["suspects"] is not None and s.epoch >= v["from_epoch"]:
            out = ((ce if before is None else before) > v["suspects"]) & ~s.in_forget
            index = taught[~out[taught]]
            notes |= dict(left_out=int(out.sum()), left_out_bad=int(out[bad].sum()))
        held = copies(s.expanded.theta_o1())
        redirect(s, step3_batch, index)
        notes |= dict(moved_step3=moved(s.expanded.theta_o1(), held), seconds=round(time.perf_counter() - begin, 2))
        judged = s.expanded
        if v["refresh"] == "copy":
            raw = evaluate(drop(judged), task, forget)
            notes |= dict(product_raw=raw["product"], acc_forget_raw=raw["acc_forget"])
            judged = copy.deepcopy(judged)
        refresh_batchnorm(judged, task.train, config.batch, modes=s.modes)
        tell(s.epoch, **notes, **scores(drop(judged), task, forget, watched))


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
    last = {tuple({"train_epochs": TRAINED, **row}[name] for name in (*KEY, "epoch")): row for row in rows}
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

NEW = "reach0.07-susb2"  # REM as it is: step 2 by engine/lines.py


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


def table(rows: list[dict]) -> str:
    """The tables of results/tuning/README.md, a blank line between two: of tuning, or of fresh seeds."""
    if any(row["variant"] == NEW for row in rows):
        return fresh_tables(rows)
    runs = runs_of(rows)
    make = (variants_table, cells_table, poison_table, ends_table, long_table, norm_table)
    return "\n".join(one(runs) for one in make)


def read(path: Path) -> list[dict]:
    """The rows of a file, none where it is not there."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def main(argv: list[str] | None = None) -> int:
    """Run what is not in the file of rows yet, or print the tables of one."""
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--table", type=Path, metavar="ROWS", help="print the tables of these rows and run nothing")
    p.add_argument("--data", choices=("tuning", "fashion-mini"), default="tuning", help="images to run on")
    p.add_argument("--variants", default=f"{CARRY},{CHOSEN}-place", help=", ".join(VARIANTS))
    p.add_argument("--seeds", default="100")
    p.add_argument("--tasks", default="poison,confusion,random")
    p.add_argument("--rates", default="0.1,0.5,1", help="discovery rates")
    p.add_argument("--epochs", type=int, default=3)
    p.add_argument("--train-epochs", type=int, default=TRAINED, help="of the network; fewer learn less of D_c")
    p.add_argument("--batch", type=int, default=256)
    p.add_argument("--n", type=int, default=120, help="corrupted images")
    p.add_argument("--source", type=Path, default=SOURCE, help="folder of Fashion-MNIST's .gz files (%(default)s)")
    p.add_argument("--out", type=Path, default=Path("runs/tuning/rows.jsonl"), help="of the rows (%(default)s)")
    p.add_argument("--originals", type=Path, default=Path("runs/tuning/originals"), help="of networks (%(default)s)")
    args = p.parse_args(argv)
    if args.table:
        print(table(read(args.table)), end="")
        return 0
    names, seeds, tasks = args.variants.split(","), [int(seed) for seed in args.seeds.split(",")], args.tasks.split(",")
    if unknown := [name for name in names if name not in VARIANTS]:
        p.error(f"no variant {unknown[0]!r}; choose from {', '.join(VARIANTS)}")
    if args.data == "tuning" and not args.source.is_dir():
        p.error(f"no folder {args.source}: apt-get install dataset-fashion-mnist, or give --source")
    torch.set_num_threads(1)
    for folder in (args.originals, args.out.parent):
        folder.mkdir(parents=True, exist_ok=True)
    dataset = tuning_data(args.source) if args.data == "tuning" else load("fashion-mini")
    for name, seed, kind, rate in product(names, seeds, tasks, map(float, args.rates.split(","))):
        v = {**BASE, **VARIANTS[name]}
        last = {"npo": 1, "untouched": 0}.get(v["rule"], args.epochs)
        cell = dict(variant=name, **v, **FIXED, task=kind, discovery=rate, seed=seed, n=args.n, batch=args.batch,
                    epochs=args.epochs, train_epochs=args.train_epochs)
        done = [{"train_epochs": TRAINED, **row} for row in read(args.out) if row["epoch"] >= last]
        if any(all(row[k] == cell[k] for k in KEY) for row in done):
            continue
        config = resolve(dict(dataset="fashion-mini", task=kind, seed=seed, discovery=rate, n=args.n, batch=args.batch,
                              epochs=args.train_epochs, unlearn_epochs=args.epochs, quiet=True, **FIXED))
        task = corrupt(config, dataset)
        original = original_of(config, task, dataset, args.originals)

        def tell(epoch: int, cell=cell, **values) -> None:
            append_row(args.out, {**cell, "epoch": epoch, **values})
            shown = ("moved", "healed", "utility", "product", "acc_forget", "seconds")
            parts = (f"{name} {values[name]:.3f}" for name in shown if name in values)
            print(*(cell[k] for k in KEY[:4]), epoch, *parts, flush=True)

        run(v, config, task, original, find(config, task), tell)
    return 0


if __name__ == "__main__":
    sys.exit(main())
