"""Tuning of step 2 and of the end of REM, on 6,000 Fashion-MNIST training images that fashion-mini does not hold.

    python benchmarks/tune.py --variants carry,coast --seeds 100,101 --rates 0.1,0.5,1 --epochs 3 --out FILE

Every epoch of every run is a JSON line, written as it comes; what is in the file already is skipped. No image of
data/fashion-mini.npz is read: training and test images here are drawn from the other training rows, DRAW being the seed.
The rows hold which examples of W each epoch gets right, so that rules for the end can be compared without a new run.
Fields of a row, beside the settings: passes (updates, where a pass is one batch), acc_path (Acc(D_f) before each),
u_gamma and u_forget (mean CE - CE_ref of D_f when Acc(D_f) <= gamma and when step 2 is over), moved_gamma and moved
(displacement of theta_o1 in step 2 over its norm, at the same two), moved_step3; u_retain, far_retain (mean u of D_r
after step 2, and its share above 6), u_bad, far_bad (the same of the undiscovered, which no method sees); *_step2
(scores of theta_o1 after step 2); left_out, left_out_bad (suspects of step 3, and the undiscovered among them);
*_raw (scores without the refresh, where that is on a copy); healed to acc_watched after step 3; watched_hits: W in
hexadecimal digits, numpy.packbits, a bit an image.
"""

import argparse
import copy
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "data")]

import rem as r  # noqa: E402
from data import Dataset  # noqa: E402
from make_fashion_mini import CLASSES, PER_CLASS, SOURCE, read_idx  # noqa: E402
from datasets import FASHION, MINI_FILE, RECIPES, _arrays, _data  # noqa: E402
from etd import EXTRA, descend, drop, eval_mode, forked_rng, refresh_batchnorm, stream  # noqa: E402
from experiment import append_row, corrupt, find, new_model, train_original  # noqa: E402
from methods import npo  # noqa: E402
from metrics import evaluate, predict  # noqa: E402
from settings import resolve  # noqa: E402

DRAW = 30  # seed of the tuning images

# A variant is what differs from BASE.
#   rule: what follows once Acc(D_f) <= gamma: "carry" (nothing: the momentum runs on into step 3), "clear" (it is
#       forgotten), "coast" (it runs out in closed form), "ray" (theta_o1 goes on along the displacement of step 2 until
#       that is `reach` times the norm of theta_o1), "away" (the same until theta_o1 is that far from the reference, so
#       that a later step 2 ends at gamma)
#   refresh: of BatchNorm's base statistics after each epoch: "place", "copy" (on what is judged alone) or "none"
#   suspects: CE of the given label above which an image of D_r is left out of step 3; None: none is
#   from_epoch: the first epoch that leaves suspects out; looked: their CE is that "after" step 2, or "before" it, as the
#       epoch before left them
BASE = dict(rule="carry", reach=None, refresh="copy", suspects=None, from_epoch=1, looked="after", momentum=0.9, watched=0.05,
            max_passes=100, optimizer="sgd", unlearn_lr=0.01, precision="bf16")
VARIANTS = {
    "untouched": dict(rule="untouched"),
    "npo": dict(rule="npo"),
    "carry-letter": dict(refresh="none", watched=0.0),
    "carry-today": dict(refresh="place"),
    "clear": dict(rule="clear"),
    "coast": dict(rule="coast"),
    "coast-place": dict(rule="coast", refresh="place"),
    **{f"ray{reach:g}": dict(rule="ray", reach=reach) for reach in (0.1,)},
    **{f"away{reach:g}": dict(rule="away", reach=reach) for reach in (0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)},
    **{f"away{reach:g}-place": dict(rule="away", reach=reach, refresh="place") for reach in (0.05, 0.07, 0.1)},
    **{f"away{reach:g}-sus1": dict(rule="away", reach=reach, suspects=3.0) for reach in (0.05, 0.07, 0.1)},
    **{f"away{reach:g}-sus2": dict(rule="away", reach=reach, suspects=3.0, from_epoch=2)
       for reach in (0.05, 0.07, 0.1)},
    **{f"away{reach:g}-sus2-ce{ce:g}": dict(rule="away", reach=reach, suspects=ce, from_epoch=2)
       for reach in (0.05, 0.07, 0.1) for ce in (0.7, 1.0, 2.0)},
    **{f"away{reach:g}-susb{ce:g}": dict(rule="away", reach=reach, suspects=ce, from_epoch=2, looked="before")
       for reach in (0.05, 0.06, 0.07, 0.1) for ce in (1.0, 2.0, 3.0)},
    **{f"away{reach:g}-susb{ce:g}-place": dict(rule="away", reach=reach, suspects=ce, from_epoch=2, looked="before",
                                               refresh="place") for reach in (0.05, 0.06, 0.07) for ce in (2.0, 3.0)},
    "carry-susb3": dict(suspects=3.0, from_epoch=2, looked="before"),
    "carry-copy": dict(),
    "coast-sus1": dict(rule="coast", suspects=3.0),
    "coast-sus2": dict(rule="coast", suspects=3.0, from_epoch=2),
}


def tuning_data() -> Dataset:
    """6,000 training and 2,000 test images, equally many of each class, from training rows outside fashion-mini."""
    images, labels = (read_idx(SOURCE / f"train-{what}-ubyte.gz") for what in ("images-idx3", "labels-idx1"))
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
    recipe, arrays = RECIPES["fashion-mini"], _arrays(splits, FASHION, SOURCE)
    return Dataset("fashion-mini", *(_data(arrays, s, recipe["size"], recipe["mean"], recipe["std"]) for s in splits),
                   FASHION)


def original_of(config, task, dataset, folder: Path):
    """The trained network of a task and seed, read from `folder` or trained and left there."""
    path, model = folder / f"{config.task}-n{config.n}-{config.seed}.pt", new_model(config, dataset)
    if path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model
    train_original(replace(config, batch=256), task, model)
    torch.save(model.state_dict(), path)
    return model


# --- Step 2 -----------------------------------------------------------------------------------------------------------

def theta_o1(state) -> list[torch.Tensor]:
    """The parameters that step 2 updates."""
    return [p for name, p in state.expanded.named_parameters()
            if name.rpartition(".")[2] not in EXTRA and p.requires_grad]


def norm(tensors) -> float:
    """Euclidean norm of all entries together."""
    return float(torch.stack([t.norm() for t in tensors]).norm())


def update(state) -> None:
    """One pass over D_f (2.1, 2.2)."""
    with forked_rng(state.generator, state.device):
        for rows, x, y in r.loader(state, state.forget):
            ce, (_, ce_ref) = r.cross_entropy(state, x, y), r.reference_ce(state, rows, x, y)
            descend(state.optimizer, r.step2_loss(ce, ce_ref, state.config.beta), len(rows))


@torch.no_grad()
def ce_of(state, index) -> torch.Tensor:
    """CE of theta_o1 alone on examples of D_tr, labels as given, eval mode."""
    with eval_mode(state.expanded):
        return torch.cat([r.cross_entropy(state, x, y) for _, x, y in r.loader(state, index, augment=False, size=1024)])


def remove(state, v: dict) -> dict:
    """Step 2 by a variant's rule; what it did."""
    begin, path, passes = [p.detach().clone() for p in theta_o1(state)], [], 0
    state.expanded.eval()
    while (acc := r.acc_forget(state)) > state.config.gamma and passes < v["max_passes"]:
        path.append(round(acc, 3))
        update(state)
        passes += 1
    moved = norm(p.detach() - b for p, b in zip(theta_o1(state), begin, strict=True)) / norm(begin)
    with torch.no_grad():
        u_gamma = float((ce_of(state, state.forget) - reference(state, state.forget)).mean())
    if passes and v["rule"] != "carry":
        RULES[v["rule"]](state, v, begin)
        state.optimizer.state.clear()
    ended = norm(p.detach() - b for p, b in zip(theta_o1(state), begin, strict=True)) / norm(begin)
    return dict(passes=passes, acc_path=path, acc_forget_gamma=acc, u_gamma=u_gamma, moved_gamma=moved, moved=ended)


def reference(state, index) -> torch.Tensor:
    """The reference's CE, theta_o1 alone, which no augmentation changes here."""
    return state.known[1, index]


def clear(state, v, begin) -> None:
    """The momentum is forgotten."""


@torch.no_grad()
def coast(state, v, begin) -> None:
    """The momentum runs out, as it would without gradients: m + m^2 + ... = m / (1 - m) times the last update."""
    group = state.optimizer.param_groups[0]
    ahead = group["momentum"] / (1 - group["momentum"])
    for p in theta_o1(state):
        if p in state.optimizer.state:
            p -= group["lr"] * ahead * state.optimizer.state[p]["momentum_buffer"]


@torch.no_grad()
def ray(state, v, begin) -> None:
    """theta_o1 goes on along the displacement of this step 2 until that is `reach` times its norm."""
    moved = norm(p - b for p, b in zip(theta_o1(state), begin, strict=True))
    factor = max(1.0, v["reach"] * norm(begin) / moved)
    for p, b in zip(theta_o1(state), begin, strict=True):
        p.copy_(b + factor * (p - b))


@torch.no_grad()
def away(state, v, begin) -> None:
    """theta_o1 goes on along the displacement of this step 2 until it is `reach` times the reference's norm from it."""
    refs = [ref for (name, ref), p in zip(state.reference.named_parameters(), state.expanded.parameters(), strict=True)
            if name.rpartition(".")[2] not in EXTRA and p.requires_grad]
    line = [p - b for p, b in zip(theta_o1(state), begin, strict=True)]
    off = [p - ref for p, ref in zip(theta_o1(state), refs, strict=True)]
    # |off + t line|^2 = reach^2 |ref|^2, its larger root
    a, b = norm(line) ** 2, float(sum((x * y).sum() for x, y in zip(line, off, strict=True)))
    c = norm(off) ** 2 - (v["reach"] * norm(refs)) ** 2
    if c < 0:
        t = (-b + (b * b - a * c) ** 0.5) / a
        for p, x in zip(theta_o1(state), line, strict=True):
            p += t * x


RULES = dict(clear=clear, coast=coast, ray=ray, away=away)


# --- A run ------------------------------------------------------------------------------------------------------------

def packed(hits: torch.Tensor) -> str:
    """True and false as hexadecimal digits, eight a byte, the first highest."""
    return np.packbits(hits.numpy().astype(bool)).tobytes().hex()


def scores(net, task, forget, watched) -> dict:
    """Healed, Utility, ... and what W gets right, of a plain network."""
    found = evaluate(net, task, forget)
    row = {name: found[name] for name in ("healed", "healed_forget", "healed_undiscovered", "healed_test", "utility",
                                          "product", "acc_forget")}
    if watched is not None:
        hits = predict(net, task.train, watched) == task.train.labels[watched]
        row |= dict(acc_watched=float(hits.float().mean()), watched_hits=packed(hits), watched=len(watched))
    return row


def run(v: dict, config, task, original, forget, tell) -> None:
    """All epochs of a variant on one cell; tell(epoch, **values) after each, epoch 0 being the untouched network."""
    generator = stream(config.seed, "unlearning")
    config = replace(config, optimizer=v["optimizer"], unlearn_lr=v["unlearn_lr"], momentum=v["momentum"])
    if v["rule"] == "npo":
        return tell(1, **scores(npo(original, task.train, forget, config, generator), task, forget, None))
    r.WATCHED = v["watched"]
    state = r.start(original, task.train, forget, config, generator)
    watched = state.watched
    if v["rule"] == "untouched":
        return tell(0, **scores(original, task, forget, watched))
    everything, retain = state.taught, (~state.in_forget).nonzero().flatten()
    bad = task.corrupted[~torch.isin(task.corrupted, forget)]
    for epoch in range(1, config.unlearn_epochs + 1):
        begin = time.perf_counter()
        believed = ce_of(state, None) if v["suspects"] is not None else None
        notes = remove(state, v)
        ce, ce_ref = ce_of(state, None), state.known[1]
        u = ce - ce_ref
        notes |= dict(u_forget=float(u[forget].mean()), u_retain=float(u[retain].mean()),
                      u_bad=float(u[bad].mean()) if len(bad) else None,
                      far_retain=float((u[retain] > 6).float().mean()),
                      far_bad=float((u[bad] > 6).float().mean()) if len(bad) else None)
        notes |= {f"{name}_step2": value for name, value in scores(drop(state.expanded), task, forget, watched).items()
                  if name in ("healed", "utility", "acc_watched")}
        state.taught = everything
        if v["suspects"] is not None and epoch >= v["from_epoch"]:
            out = ((ce if v["looked"] == "after" else believed) > v["suspects"]) & ~state.in_forget
            among = torch.arange(len(task.train)) if everything is None else everything
            state.taught = among[~out[among]]
            notes |= dict(left_out=int(out.sum()), left_out_bad=int(out[bad].sum()))
        before = [p.detach().clone() for p in theta_o1(state)]
        r.redirect(state)
        notes["moved_step3"] = norm(p.detach() - b for p, b in zip(theta_o1(state), before, strict=True)) / norm(before)
        seconds = time.perf_counter() - begin
        judged = state.expanded
        if v["refresh"] == "place":
            refresh_batchnorm(judged, task.train, config.batch)
        elif v["refresh"] == "copy":
            raw = evaluate(drop(state.expanded), task, forget)
            notes |= dict(product_raw=raw["product"], acc_forget_raw=raw["acc_forget"])
            judged = copy.deepcopy(state.expanded)
            refresh_batchnorm(judged, task.train, config.batch)
        tell(epoch, **notes, **scores(drop(judged), task, forget, watched), seconds=round(seconds, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", required=True)
    parser.add_argument("--seeds", required=True)
    parser.add_argument("--tasks", default="poison,confusion,random")
    parser.add_argument("--rates", default="0.1,0.5,1")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--n", type=int, default=120)
    parser.add_argument("--out", type=Path, default=Path("/tmp/lab/tuning/rows.jsonl"))
    parser.add_argument("--originals", type=Path, default=Path("/tmp/lab/tuning/originals"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.originals.mkdir(parents=True, exist_ok=True)
    dataset = tuning_data()
    for name in args.variants.split(","):
        v = {**BASE, **VARIANTS[name]}
        epochs = 1 if v["rule"] == "npo" else 0 if v["rule"] == "untouched" else args.epochs
        for seed in map(int, args.seeds.split(",")):
            for task_name in args.tasks.split(","):
                for rate in map(float, args.rates.split(",")):
                    cell = dict(variant=name, **v, task=task_name, discovery=rate, seed=seed, n=args.n,
                                batch=args.batch)
                    done = [json.loads(line) for line in open(args.out)] if args.out.exists() else []
                    if any(all(row.get(k) == w for k, w in cell.items()) and row["epoch"] >= epochs for row in done):
                        continue
                    config = resolve(dict(dataset="fashion-mini", task=task_name, seed=seed, discovery=rate, n=args.n,
                                          batch=args.batch, unlearn_epochs=args.epochs, precision=v["precision"], quiet=True))
                    task = corrupt(config, dataset)
                    original = original_of(config, task, dataset, args.originals)

                    def tell(epoch, **values):
                        append_row(args.out, {**cell, "epochs": args.epochs, "epoch": epoch, **values})
                        print(name, task_name, rate, seed, epoch, *(f"{k} {values[k]:.3f}" if values[k] is not None
                              else "" for k in ("u_gamma", "moved_gamma", "moved", "moved_step3", "u_forget", "utility_step2", "far_retain", "far_bad",
                              "healed", "utility", "product", "acc_forget", "seconds") if k in values), flush=True)

                    run(v, config, task, original, find(config, task), tell)


if __name__ == "__main__":
    main()
