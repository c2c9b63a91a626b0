"""Tuning of step 2 and of what step 3 leaves out, on 6,000 Fashion-MNIST training images that fashion-mini lacks.

    python benchmarks/tune.py --variants carry-today,away0.07-susb2-place --seeds 100,101 --rates 0.1
    python benchmarks/tune.py --data fashion-mini --variants carry-today,reach0.07-susb2 --seeds 5,6 --epochs 10
    python benchmarks/tune.py --arch vit --variants reach0.02-susb2,reach0.04-susb2 --rates 0.1 --epochs 10 --batch 128

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
from engine.removal import Removal, copies, move_along, moved  # noqa: E402
from engine.modes import eval_mode, refresh_batchnorm  # noqa: E402
from engine.scores import accuracy_of, cross_entropy  # noqa: E402
from engine.streams import stream  # noqa: E402
from engine.updates import one_pass  # noqa: E402
from etd import drop  # noqa: E402
from experiment.cell import corrupt, draw_forget, new_model, train_original  # noqa: E402
from experiment.console import told_in_a_line  # noqa: E402
from experiment.data import Dataset  # noqa: E402
from experiment.datasets import FASHION, MINI_FILE, RECIPES, _arrays, _data, load  # noqa: E402
from experiment.rows import append_row  # noqa: E402
from experiment.settings import resolve  # noqa: E402
from metrics import evaluate, predict  # noqa: E402
import rem  # noqa: E402
from rem import State, add_capacity, redirect, step2_loss, step3_batch  # noqa: E402

DRAW = 30  # seed of the tuning images
WATCHED = 0.05  # share of D_r that step 3 leaves out, W
FIXED = {"resnet9": dict(optimizer="sgd", momentum=0.9, unlearn_lr=0.01, max_passes=100, precision="bf16"),
         "vit": dict(arch="vit", optimizer="adam", unlearn_lr=2e-4, max_passes=100, precision="float32")}

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
    "reach0.02-susb2": dict(rule="rem", reach=0.02, suspects=2.0, refresh="place", **BEFORE),
    "reach0.04-susb2": dict(rule="rem", reach=0.04, suspects=2.0, refresh="place", **BEFORE),
    "reach0.07": dict(rule="rem", reach=0.07, refresh="place"),
    "reach0.07-susb2": dict(rule="rem", reach=0.07, suspects=2.0, refresh="place", **BEFORE),
    "reach0.07-susb2-whole": dict(rule="whole", reach=0.07, suspects=2.0, refresh="place", **BEFORE),
    "carry-susb2": dict(suspects=2.0, refresh="place", **BEFORE),
}
KEY = ("variant", "task", "discovery", "seed", "n", "batch", "epochs", "train_epochs", "arch")  # tell runs apart
TRAINED = {"resnet9": 12, "vit": 40}  # epochs of training, fashion-mini's preset
SILENT = dict(train_epochs=TRAINED["resnet9"], arch="resnet9")  # of rows that do not say


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
    """The trained network of a task and seed, read from `folder` or trained in the preset's batches and kept there."""
    epochs = "" if config.epochs == TRAINED[config.arch] else f"-{config.epochs}"
    arch = "" if config.arch == SILENT["arch"] else f"{config.arch}-"
    path, model = folder / f"{arch}{config.task}-n{config.n}-{config.seed}{epochs}.pt", new_model(config, dataset)
    if path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model
    train_original(replace(config, batch=resolve(dict(dataset="fashion-mini", arch=config.arch)).batch), task, model)
    torch.save(model.state_dict(), path)
    return model


# --- Step 2 -----------------------------------------------------------------------------------------------------------

@torch.no_grad()
def ce_of(s: State, index: torch.Tensor | None) -> torch.Tensor:
    """CE of theta_o1 alone on examples of D_tr, labels as given, eval mode."""
    with eval_mode(s.expanded):
        return torch.cat([cross_entropy(s, x, y) for _, x, y in batches_of(s, index, augment=False, size=1024)])


class Whole(Removal):
    """A line along which the first step 2 goes `reach` far, however little of D_f was learnt."""

    def __init__(self, s: State, reach: float, acc_forget: float):
        super().__init__(s, reach, acc_forget=1.0)


def remove(s: State, v: dict) -> dict:
    """Step 2 by a variant's rule; what it did."""
    theta_o1, path, passes = s.expanded.theta_o1(), [], 0
    begin = copies(theta_o1)
    if v["rule"] in ("rem", "whole"):
        with mock.patch.object(rem, "Removal", Whole if v["rule"] == "whole" else Removal):
            rem.remove(s, reach=v["reach"])
        return dict(passes=s.record["passes"], acc_forget_gamma=s.record["acc_forget"], moved=moved(theta_o1, begin))
    s.expanded.eval()
    while (acc := accuracy_of(s, s.forget)) > s.config.gamma and passes < s.config.max_passes:
        path.append(round(acc, 3))
        with one_pass(s, "step 2") as update:
            for rows, x, y in batches_of(s, s.forget):
                update(step2_loss(cross_entropy(s, x, y), s.reference.base(rows, x, y), s.config.beta))
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
    move_along(s.expanded.theta_o1(), begin, reach)


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


def read(path: Path) -> list[dict]:
    """The rows of a file, none where it is not there."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def main(argv: list[str] | None = None) -> int:
    """Run what is not in the file of rows yet."""
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--data", choices=("tuning", "fashion-mini"), default="tuning", help="images to run on")
    p.add_argument("--variants", default="carry-today,away0.07-susb2-place", help=", ".join(VARIANTS))
    p.add_argument("--seeds", default="100")
    p.add_argument("--tasks", default="poison,confusion,random")
    p.add_argument("--rates", default="0.1,0.5,1", help="discovery rates")
    p.add_argument("--epochs", type=int, default=3)
    p.add_argument("--arch", choices=TRAINED, default=SILENT["arch"], help="of the network (%(default)s)")
    p.add_argument("--train-epochs", type=int, help="of the network; fewer learn less of D_c (the preset's)")
    p.add_argument("--batch", type=int, default=256)
    p.add_argument("--n", type=int, default=120, help="corrupted images")
    p.add_argument("--source", type=Path, default=SOURCE, help="folder of Fashion-MNIST's .gz files (%(default)s)")
    p.add_argument("--out", type=Path, default=Path("runs/tuning/rows.jsonl"), help="of the rows (%(default)s)")
    p.add_argument("--originals", type=Path, default=Path("runs/tuning/originals"), help="of networks (%(default)s)")
    args = p.parse_args(argv)
    names, seeds, tasks = args.variants.split(","), [int(seed) for seed in args.seeds.split(",")], args.tasks.split(",")
    if unknown := [name for name in names if name not in VARIANTS]:
        p.error(f"no variant {unknown[0]!r}; choose from {', '.join(VARIANTS)}")
    if args.data == "tuning" and not args.source.is_dir():
        p.error(f"no folder {args.source}: apt-get install dataset-fashion-mnist, or give --source")
    torch.set_num_threads(1)
    trained, fixed = args.train_epochs or TRAINED[args.arch], FIXED[args.arch]
    for folder in (args.originals, args.out.parent):
        folder.mkdir(parents=True, exist_ok=True)
    dataset = tuning_data(args.source) if args.data == "tuning" else load("fashion-mini")
    for name, seed, kind, rate in product(names, seeds, tasks, map(float, args.rates.split(","))):
        v = {**BASE, **VARIANTS[name]}
        last = {"npo": 1, "untouched": 0}.get(v["rule"], args.epochs)
        cell = dict(variant=name, **v, **fixed, task=kind, discovery=rate, seed=seed, n=args.n, batch=args.batch,
                    epochs=args.epochs, train_epochs=trained)
        done = [{**SILENT, **row} for row in read(args.out) if row["epoch"] >= last]
        if any(all(row[k] == {**SILENT, **cell}[k] for k in KEY) for row in done):
            continue
        config = resolve(dict(dataset="fashion-mini", task=kind, seed=seed, discovery=rate, n=args.n, batch=args.batch,
                              epochs=trained, unlearn_epochs=args.epochs, quiet=True, **fixed))
        task = corrupt(config, dataset)
        original = original_of(config, task, dataset, args.originals)

        def tell(epoch: int, cell=cell, **values) -> None:
            append_row(args.out, {**cell, "epoch": epoch, **values})
            shown = ("moved", "healed", "utility", "product", "acc_forget", "seconds")
            parts = (f"{name} {values[name]:.3f}" for name in shown if name in values)
            print(*(cell[k] for k in KEY[:4]), epoch, *parts, flush=True)

        run(v, config, task, original, draw_forget(config, task), tell)
    return 0


if __name__ == "__main__":
    sys.exit(told_in_a_line(main))
