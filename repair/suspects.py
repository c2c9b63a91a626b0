"""Find what has not been found: a repaired network does not believe the given labels of the undiscovered part of D_c.

    found = suspects(repaired, data, forget)             # repaired by REM from D_f; found.index: most suspect first
    similar = probe(features(model, data), forget)       # (N,) how much each looks like D_f to the untouched network

Only labels as given are read. The paper names discovery as the first axis of the task space (Sec. 4) and stops there;
figures of this score and of others are in results/fashion-mini/suspects/README.md.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from engine.batches import among
from engine.checks import NonFiniteLoss, check_forget
from engine.features import gather

FOLDS = 5  # parts of D_f that are held out in turn


class Suspects(NamedTuple):
    """Every image outside D_f, most suspect first; among equal scores in the order of the data."""

    index: torch.Tensor  # (N - k,) int64, dataset indices
    score: torch.Tensor  # (N - k,) float64, CE of the given label, >= 0; exp(-score) is its probability
    predicted: torch.Tensor  # (N - k,) int64, what the network gives instead


def suspects(model: nn.Module, data, forget: torch.Tensor) -> Suspects:
    """Rank the images outside D_f by the cross-entropy of their given label: s_i = -log p(y_i | x_i; theta_o1).

    Choice: the network is the *repaired* one. The network before the repair has memorised D_c, and a loss can only tell
    what it has memorised badly; REM takes the corruption out of theta_o1, undiscovered images included, so afterwards
    their given labels are improbable, whether a trigger, a class or nothing explains them.
    Args:
        model: the repaired network, plain.
        data: D_tr with its labels as given: len(data) and data.batches, as `rem` takes them.
        forget: (k,) int64 dataset indices, D_f; neither empty nor all of D_tr.
    Returns: Suspects, on the CPU; model, data and random states stay as they are.
    Raises: ValueError: D_f cannot be used, or data.batches leaves images out; NonFiniteLoss: a logit is not finite.
    """
    forget = check_forget(forget, len(data)).cpu()
    z, labels = logits(model, data)
    index, score = ranked(given_loss(z, labels), forget)
    return Suspects(index, score, z.argmax(dim=1)[index])


def ranked(score: torch.Tensor, forget: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices outside D_f by falling score, ties in the order of the data, and those scores; score: (N,), of all."""
    index = (~among(forget, len(score))).nonzero().flatten()
    index = index[score[index].argsort(descending=True, stable=True)]
    return index, score[index]


# --- Passes, in eval mode without augmentation ------------------------------------------------------------------------

def logits(model: nn.Module, data) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, C) in float64 and labels as given (N,), on the CPU; NonFiniteLoss where one is not finite."""
    def outputs(x, y):
        return torch.cat([model(x).double(), y[:, None]], dim=1)  # (B, C + 1)

    found = gather(model, data, None, outputs)  # (N, C + 1)
    if not found.isfinite().all():
        raise NonFiniteLoss("the network's logits are not finite; lower the rate")
    return found[:, :-1], found[:, -1].long()


# --- Scores: (N,) float64, higher is more suspect ---------------------------------------------------------------------

def given_loss(z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """-log p(y); it ranks as cleanlab's self-confidence p(y) does, upside down."""
    return F.cross_entropy(z, labels, reduction="none")


def margin(z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """max_{k != y} z_k - z_y, the logit margin."""
    own = labels[:, None]
    return z.scatter(1, own, -torch.inf).amax(dim=1) - z.gather(1, own)[:, 0]


def probe(h: torch.Tensor, forget: torch.Tensor) -> torch.Tensor:
    """Probability in [0, 1] of a logistic regression that tells D_f from the rest, either side with half the weight.

    Minimises mean_{D_f} log(1 + exp(-f)) / 2 + mean_{rest} log(1 + exp(f)) / 2 + |w|^2 / (2 N), f = w . h + b, over
    features at mean 0 and variance 1. The rest holds the undiscovered part too, as positives without a label.
    """
    known = among(forget, len(h))
    return torch.sigmoid(probe_logits(h, known, h))


def probe_logits(h: torch.Tensor, known: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """f of the images with features `of`, (m, d), from the regression that tells `known`, (n,) bool, among `h`, (n, d).
    """
    n, d = h.shape
    mean, deviation = h.mean(dim=0), h.std(dim=0, correction=0).clamp_min(1e-12)  # a constant feature stays 0
    h = (h - mean) / deviation
    w, b = torch.zeros(d, dtype=h.dtype, requires_grad=True), torch.zeros((), dtype=h.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([w, b], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        f = h @ w + b  # (n,)
        value = (F.softplus(-f[known]).mean() + F.softplus(f[~known]).mean() + w @ w / n) / 2
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return (of - mean) / deviation @ w.detach() + b.detach()


def crossed(h: torch.Tensor, forget: torch.Tensor) -> torch.Tensor:
    """(N,) the probe's f of each image by probes that do not know it: how bad images look that nobody listed.

    Each of FOLDS probes is fitted without every FOLDS-th image of D_f. An image of D_f has the f of the probe that was
    fitted without it, every other one the mean over the probes. A single image of D_f cannot be held out, and is not.
    """
    forget, parts = forget.sort().values, min(FOLDS, len(forget))
    known = among(forget, len(h))
    if parts < 2:
        return probe_logits(h, known, h)
    held_out, mean = torch.zeros(len(h), dtype=h.dtype), torch.zeros(len(h), dtype=h.dtype)
    for fold in range(parts):
        out = forget[fold::parts]
        inside = ~among(out, len(h))
        f = probe_logits(h[inside], known[inside], h)
        held_out[out] = f[out]
        mean += f / parts
    return mean.index_copy_(0, forget, held_out[forget])
