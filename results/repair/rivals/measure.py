"""`repair` beside what else a user could do with a list of bad images: healing, what comes back, and impure lists.

    python results/repair/rivals/measure.py --seeds 0,1,2                  # rows.jsonl beside this file, appended to
    python results/repair/rivals/measure.py --impure 0.1,0.3 --corruptions patch

A row is a treatment of one trained network; one that is there is skipped, so that the same command goes on. A rival
runs at three rates (retraining at its own), and the one is taken that a user would take (`chosen`): no true label,
trigger or test image is asked. Each treated network is then trained on (`train_on`), to see whether the trigger comes
back.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))

import baselines_repair  # noqa: E402
from baselines import ascent, fine_tune  # noqa: E402
from engine.batches import among  # noqa: E402
from engine.modes import NORMS, copy_of, refresh_batchnorm  # noqa: E402
from engine.features import features  # noqa: E402
from engine.streams import stream  # noqa: E402
from experiment.corruptions import TRIGGERS  # noqa: E402
from experiment.rows import append_row, provenance  # noqa: E402
from metrics import accuracy, predict, share  # noqa: E402
from rem import add_capacity, discard  # noqa: E402
from rem_plus import Settings as PlusSettings  # noqa: E402
from rem_plus import remove_to_distance  # noqa: E402
from repair import repair  # noqa: E402
from repair.finish import logits  # noqa: E402
from repair.looks import crossed  # noqa: E402
from repair.pipeline import margin  # noqa: E402
from results.repair.rivals.trials import (CORRUPTIONS, N, SUBJECTS, TARGET, Subject, Trial, corrupt,  # noqa: E402
                                          trained)
from train import fit  # noqa: E402

EPOCHS = 5  # of fine-tuning, as in rivals.jsonl; D-BR has ten
TIMES = 5  # how often an epoch of `taught` has each listed image
BELIEVED = 0.2  # share of the listed images that may keep their labels, for a rate to be taken
LEFT = 5  # bad images among those that a network is trained on with
ON = {"2 %": 12, "10 %": 60}  # images of such a training, of N
ON_RATE, ON_EPOCHS = 0.01, 5
Method = Callable[[nn.Module, Trial, Subject, int, float], nn.Module | None]  # model, trial, subject, seed, rate


# --- Treatments -------------------------------------------------------------------------------------------------------

def rest_of(trial: Trial) -> torch.Tensor:
    """(N - k,) int64, the images that are not listed."""
    return (~among(trial.known, N)).nonzero()[:, 0]


def ended(net: nn.Module, trial: Trial, index: torch.Tensor) -> nn.Module:
    """The network in eval mode, statistics of BatchNorm again over `index`, so that no difference comes of these."""
    refresh_batchnorm(net, trial.train, 32, index=index)
    return net.eval()


def by(method: Callable, epochs: int = EPOCHS) -> Method:
    """A method of baselines.py's signature, at a factor of the rate of training."""
    def treatment(model, trial, subject, seed, rate):
        config = replace(subject.training, unlearn_epochs=epochs, unlearn_lr=rate * subject.training.lr, seed=seed)
        net = method(model, trial.train, trial.known, config, stream(seed, "fine-tuning"))
        return ended(net, trial, rest_of(trial))

    return treatment


def sap(model, trial, subject, seed, rate):
    """SAP at a scale, `rate`."""
    net = baselines_repair.sap(rate)(model, trial.train, trial.known, subject.training, stream(seed, "SAP"))
    return ended(net, trial, rest_of(trial))


def far_then_fine_tune(model, data, forget, config, generator):
    """Step 2 of REM+, to the distance that `repair` chooses, then plain training on D_r, without theta_o2."""
    norm = any(isinstance(module, NORMS) for module in model.modules())
    settings = PlusSettings(extra_ratio=0.0, batch=config.batch, optimizer=config.optimizer, gamma=0.05,
                            reach=0.07 if norm else 0.02, unlearn_lr=config.unlearn_lr)
    state = add_capacity(model, data, forget, settings, generator)
    state.epoch = 1
    remove_to_distance(state)
    return fine_tune(discard(state), data, forget, config, generator)


def taught(model, trial, subject, seed, rate):
    """Fine-tuning with the listed images at their true labels, TIMES each per epoch."""
    labels = trial.train.labels.clone()
    labels[trial.known] = trial.truth[trial.known]
    index = torch.cat([rest_of(trial), *[trial.known] * TIMES])
    net = copy_of(model)
    fit(net, replace(trial.train, labels=labels), index, subject.training, stream(seed, "fine-tuning"), epochs=EPOCHS,
        lr=rate * subject.training.lr)
    return ended(net, trial, index)


def retrained(without: Callable[[Trial], torch.Tensor]) -> Method:
    """Training anew, from other weights, on what `without` leaves."""
    def treatment(model, trial, subject, seed, rate):
        net, index = subject.network(seed + 1000), without(trial)
        fit(net, trial.train, index, subject.training, stream(seed, "retraining"), lr=rate * subject.training.lr)
        return ended(net, trial, index)

    return treatment


def good_ones(trial: Trial) -> torch.Tensor:
    """(N - b,) int64, all good images: what nobody knows."""
    return (~among(trial.bad, N)).nonzero()[:, 0]


@torch.no_grad()
def pruned(model, trial, subject, seed, rate):
    """Pruning by channel Lipschitzness (CLP, Zheng et al. 2022), without data; None of a network without BatchNorm.

    Channel k of a convolution before a BatchNorm has the bound |gamma_k| / sqrt(var_k + eps) times the largest
    singular value of its weight, an (inputs, height x width) matrix. Those above mean + u std of their layer are
    zeroed, weight and bias of the norm; u is `rate`.
    """
    net, convolution, pairs = copy_of(model), None, 0
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            convolution = module
        elif isinstance(module, NORMS) and convolution is not None:
            largest = torch.linalg.matrix_norm(convolution.weight.flatten(2), ord=2)  # (channels,)
            bound = (module.weight / (module.running_var + module.eps).sqrt()).abs() * largest
            outlying = bound > bound.mean() + rate * bound.std()
            module.weight[outlying] = module.bias[outlying] = 0
            convolution, pairs = None, pairs + 1
    return net.eval() if pairs else None


SHARES = (0.1, 0.3, 1.0)  # factors of the rate of training
RIVALS: dict[str, tuple[Method, tuple[float, ...]]] = {
    "ABL": (by(baselines_repair.abl), SHARES),
    "ascent until forgotten": (by(ascent), (0.01, 0.03, 0.1)),  # ABL's, with a stop at Acc(D_f) <= gamma
    "D-BR": (by(baselines_repair.d_br(), 10), SHARES),
    "D-BR, all of D_r trusted": (by(baselines_repair.d_br(1.0), 10), SHARES),
    "SAP": (sap, (100.0, 1000.0, 10000.0)),
    "step 2, fine-tuned": (by(baselines_repair.step2_then_fine_tune), SHARES),
    "step 2 of REM+, fine-tuned": (by(far_then_fine_tune), SHARES),
    "fine-tuned": (by(fine_tune), SHARES),
    "taught": (taught, SHARES),
    "retrained": (retrained(rest_of), (1.0,)),
    "retrained, all known": (retrained(good_ones), (1.0,)),
    "CLP": (pruned, (1.0, 2.0, 3.0)),
}
OURS = ("repair", "REM+ alone", "repair, doubted ones off the list")
TREATMENTS = ("untouched", *OURS, *RIVALS)


# --- Scores -----------------------------------------------------------------------------------------------------------

def scores_of(model, trial: Trial, corruption: str) -> dict[str, float | None]:
    """Healed (images corrupted as D_c is, true labels), Utility (clean test images), product; misled of triggers. Of
    what a user has: the share of listed and of held-out images that get their labels as given."""
    healed, utility = accuracy(model, trial.alike), accuracy(model, trial.test)
    misled = share(predict(model, trial.alike) == TARGET) if corruption in TRIGGERS else None
    return {"healed": healed, "utility": utility, "product": healed * utility, "misled": misled,
            "listed": accuracy(model, trial.train, trial.known), "heldout": accuracy(model, trial.heldout)}


def chosen(tried: list[dict]) -> dict:
    """What a user would take: of those that leave at most BELIEVED of the listed images at their labels the one that is
    best on held-out images, labels as given; where none does, the one that leaves the fewest."""
    least = max(BELIEVED, min(row["listed"] for row in tried))
    return max((row for row in tried if row["listed"] <= least), key=lambda row: row["heldout"])


def train_on(model, trial: Trial, corruption: str, seed: int) -> dict[str, dict]:
    """Misled and Utility after the user has trained on: with few images, LEFT bad ones that nobody listed among them,
    and with clean images of another source."""
    config = replace(SUBJECTS["VGG, BatchNorm"].training, optimizer="sgd")
    hidden, good = trial.bad[~torch.isin(trial.bad, trial.known)], good_ones(trial)
    order = stream(seed, "training on")
    bad = hidden[torch.randperm(len(hidden), generator=order)[:LEFT]]
    good = good[torch.randperm(len(good), generator=order)]
    parts = {name: (trial.train, torch.cat([bad, good[:count - LEFT]])) for name, count in ON.items()}
    parts["other source"] = (trial.other, None)
    found = {}
    for name, (data, index) in parts.items():
        net = copy_of(model)
        fit(net, data, index, config, stream(seed, "training on"), epochs=ON_EPOCHS, lr=ON_RATE, schedule="constant")
        scores = scores_of(net.eval(), trial, corruption)
        found[name] = {key: scores[key] for key in ("misled", "healed", "utility")}
    return found


def auroc(bad: torch.Tensor, good: torch.Tensor) -> float:
    """The chance that a good image has a higher score than a bad one, a tie counting half."""
    above = (good[:, None] > bad).double() + 0.5 * (good[:, None] == bad).double()
    return float(above.mean())


def doubts(model, first, trial: Trial) -> dict[str, float]:
    """How well scores tell the good images of an impure list from the bad ones, AUROC; high scores are doubted.

    Scores: minus the held-out likeness to the list, the margin and the loss before, and minus the loss after REM+.
    """
    h, labels = features(model, trial.train), trial.train.labels
    before, after = logits(model, trial.train), logits(first, trial.train)
    scores = {"unlike the list": -crossed(h, trial.known), "margin before": -margin(before, labels),
              "loss after REM+": -F.cross_entropy(after, labels, reduction="none")}
    is_bad = torch.isin(trial.known, trial.bad)
    return {name: auroc(score[trial.known[is_bad]], score[trial.known[~is_bad]]) for name, score in scores.items()}


# --- Rows -------------------------------------------------------------------------------------------------------------

def measured(net, trial: Trial, corruption: str, seed: int, lasting: bool) -> dict:
    """The scores of a network and, of a trigger, what is left of them when it is trained on."""
    more = {"on": train_on(net, trial, corruption, seed)} if lasting and corruption in TRIGGERS else {}
    return {**scores_of(net, trial, corruption), **more}


def of_ours(model, trial: Trial, corruption: str, seed: int, lasting: bool) -> dict[str, dict]:
    """The rows of `repair`, on the way to it of REM+ alone and, where it doubts images of the list, of a repair without
    these."""
    saved, begin = [], time.perf_counter()

    def healed(forget, save=None):
        return repair(model, trial.train, forget, seed=seed, quiet=True, force=True, save=save)

    found = healed(trial.known, lambda net: saved.append(copy_of(net)))
    seconds, impure = time.perf_counter() - begin, not torch.isin(trial.known, trial.bad).all()
    more = {"verdict": found.verdict.word, "seconds": round(seconds, 1)}
    more |= {"doubts": doubts(model, saved[0], trial)} if impure else {}
    more["doubted"] = {"bad": int(torch.isin(found.doubted, trial.bad).sum()), "all": len(found.doubted)}
    nets = {"repair": found.network.eval(), "REM+ alone": saved[0].eval()}
    if len(found.doubted):
        believed = trial.known[~torch.isin(trial.known, found.doubted)]
        nets["repair, doubted ones off the list"] = healed(believed).network.eval()
    return {name: {**measured(net, trial, corruption, seed, lasting), **(more if name == "repair" else {})}
            for name, net in nets.items()}


def of_rival(name: str, model, trial: Trial, subject: Subject, corruption: str, seed: int, lasting: bool) -> dict:
    """The row of a rival at the rate that a user would choose, and what each rate gave; empty if it cannot be done."""
    method, rates = RIVALS[name]
    tried, nets, begin = [], {}, time.perf_counter()
    for rate in rates:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Acc")
                net = method(model, trial, subject, seed, rate)
            if net is None:
                continue
            tried.append({"rate": rate, **scores_of(net, trial, corruption)})
        except ArithmeticError:  # a loss or a logit is not finite at this rate
            continue
        nets[rate] = net
    if not tried:
        return {}
    seconds, best = round(time.perf_counter() - begin, 1), chosen(tried)
    return {**best, **measured(nets[best["rate"]], trial, corruption, seed, lasting), "seconds": seconds,
            "tried": tried}


def run(place: dict, treatments: list[str], lasting: bool, out: Path) -> None:
    """Append a row for each of the treatments of one trained network."""
    subject, corruption, seed = SUBJECTS[place["network"]], place["corruption"], place["seed"]
    trial = corrupt(corruption, seed, place["impure"])
    model = trained(subject, trial, seed)
    origin = provenance(torch.device("cpu"), sys.argv[1:])

    def write(name: str, found: dict) -> None:
        append_row(str(out), {**place, "treatment": name, "bad": len(trial.bad), "list": len(trial.known), **found,
                              **origin})
        shown = {key: found.get(key) for key in ("healed", "utility", "misled", "rate", "seconds")}
        print(*place.values(), name, shown, flush=True)

    if "untouched" in treatments:
        write("untouched", measured(model, trial, corruption, seed, lasting))
    for name in [name for name in treatments if name in RIVALS]:
        write(name, of_rival(name, model, trial, subject, corruption, seed, lasting))
    if any(name in treatments for name in OURS):
        for name, found in of_ours(model, trial, corruption, seed, lasting).items():
            write(name, found)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, known in (("networks", SUBJECTS), ("corruptions", CORRUPTIONS), ("treatments", TREATMENTS)):
        p.add_argument(f"--{name}", default=";".join(known), help=f"with semicolons (default: {'; '.join(known)})")
    p.add_argument("--seeds", default="0,1,2")
    p.add_argument("--impure", default="0", help="shares of the list that are good images, with commas (default: 0)")
    p.add_argument("--out", type=Path, default=HERE / "rows.jsonl", help="file of JSON lines, appended to")
    args = p.parse_args()
    asked = {name: getattr(args, name).split(";") for name in ("networks", "corruptions", "treatments")}
    for name, known in (("networks", SUBJECTS), ("corruptions", CORRUPTIONS), ("treatments", TREATMENTS)):
        if unknown := [each for each in asked[name] if each not in known]:
            p.error(f"--{name}: unknown {unknown[0]!r}; choose from {'; '.join(known)}")
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    torch.set_num_threads(1)
    done = {tuple(row[key] for key in ("network", "corruption", "seed", "impure", "treatment")) for row in rows}
    for seed in map(int, args.seeds.split(",")):
        for impure in map(float, args.impure.split(",")):
            for corruption in asked["corruptions"]:
                for network in asked["networks"]:
                    place = {"network": network, "corruption": corruption, "seed": seed, "impure": impure}
                    left = [name for name in asked["treatments"] if (*place.values(), name) not in done]
                    if left == [OURS[-1]]:  # it is there only where an image was doubted
                        continue
                    if left:
                        run(place, left, impure == 0, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
