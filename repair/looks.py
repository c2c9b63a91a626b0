"""Which images look like the known bad ones, by the features of the network before the repair (Sec. 4: discovery).

    similar = probe(features, forget)                            # (N,) how much each looks like D_f, in [0, 1]
    alike = looking_alike(features, labels, forget, seed)        # (N,) bool

The images that look alike are left out of the finish and of the verdict, since an unlisted trigger is among them. Where
images are bad for their labels alone, looks say nothing, and `looking_alike` finds none.
"""

import math

import torch
from torch.nn import functional as F

from engine.batches import among
from engine.streams import stream

FOLDS = 5  # parts of D_f that are held out in turn
LEAST = 4  # members of D_f that can be compared with others
CHANCE = 0.01  # at which members of D_f that look like all others may be taken for different
MOST = 0.25  # share of the images: where more look like D_f, looks tell nothing apart


# --- The probe --------------------------------------------------------------------------------------------------------

def probe(h: torch.Tensor, forget: torch.Tensor) -> torch.Tensor:
    """Probability in [0, 1] of a logistic regression of D_f against the rest, either side with half the weight.

    Minimises mean_{D_f} log(1 + exp(-f)) / 2 + mean_{rest} log(1 + exp(f)) / 2 + |w|^2 / (2 N), f = w . h + b, over
    features at mean 0 and variance 1. The rest holds the undiscovered part too, as positives without a label.
    Args: h: (N, d) float64 features; forget: (k,) int64.
    """
    known = among(forget, len(h))
    return torch.sigmoid(probe_logits(h, known, h))


def probe_logits(h: torch.Tensor, known: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """f of the images with features `of`, (m, d), from the regression of `known`, (n,) bool, against the rest."""
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
    """(N,) the probe's f of each image by probes that were fitted without it, if it is in D_f.

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


# --- Which images look alike ------------------------------------------------------------------------------------------

def looking_alike(h: torch.Tensor, labels: torch.Tensor, forget: torch.Tensor, seed: int) -> torch.Tensor:
    """The images that look like D_f as much as its held-out members do, among images of the same label as given.

    Images of a label that D_f has are compared with its members there: an attack has a target label, and a mistake a
    class that it is taken for. (Of all images together 450 poisoned ones of a published network were not found;
    among those of the target label 434 of them were, with 45 clean ones: 10 % of 5,000 poisoned, 50 listed.) No image
    is alike to fewer than LEAST, and none is where more than MOST of all images would be.
    Args: h: (N, d) features; labels: (N,) as given; forget: (k,) int64; seed: of what is held out together.
    """
    known = among(forget, len(h))
    alike = torch.zeros_like(known)
    if len(forget) < LEAST:
        return alike
    own, mean = similarities(h, known, min(FOLDS, len(forget)), stream(seed, "held-out members"))
    for group in groups(labels, forget):
        if apart(own[group & known], own[group & ~known]):
            alike |= as_similar(own, mean, group & known, group & ~known)
    return alike & (int(alike.sum()) <= MOST * len(h))


def similarities(h: torch.Tensor, known: torch.Tensor, folds: int, generator: torch.Generator
                 ) -> tuple[torch.Tensor, torch.Tensor]:
    """How much each image looks like D_f, (N,), to the probe that was fitted without it, and its mean over all probes.

    Unlike in `crossed`, a part of the other images is held out with each part of D_f. known: (N,) bool, D_f.
    """
    fold, mean = torch.zeros(len(h), dtype=torch.int64), torch.zeros(len(h), dtype=h.dtype)
    for side in (known, ~known):
        rows = side.nonzero()[:, 0]
        fold[rows[torch.randperm(len(rows), generator=generator)]] = torch.arange(len(rows)) % folds
    own = torch.zeros_like(mean)
    for k in range(folds):
        out = fold == k
        similar = probe_logits(h[~out], known[~out], h)
        own[out], mean = similar[out], mean + similar / folds
    return own, mean


def groups(labels: torch.Tensor, forget: torch.Tensor):
    """What is compared with each other, each (N,) bool: the images of each label that LEAST of D_f have; then those of
    all other labels together, if LEAST of D_f are left there."""
    counts = torch.bincount(labels[forget], minlength=int(labels.max()) + 1)
    own = counts >= LEAST
    for label in own.nonzero()[:, 0]:
        yield labels == label
    if int(counts[~own].sum()) >= LEAST:
        yield ~own[labels]


def apart(members: torch.Tensor, others: torch.Tensor) -> bool:
    """Whether members of D_f look like D_f more than others do, beyond chance; similarities (m,) and (n,), all by
    probes that do not know the image.

    Above a similarity lies a share r of the members and q of the others. The largest r - q is the one-sided
    Kolmogorov-Smirnov statistic: were all from one distribution, it would for large m and n exceed
    sqrt(log(1 / p) (m + n) / (2 m n)) with chance p. It has to, at CHANCE.
    """
    m, n = len(members), len(others)
    return n > 0 and float(gaps(members, others).max()) > math.sqrt(math.log(1 / CHANCE) * (m + n) / (2 * m * n))


def gaps(members: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """r - q at the similarity of each member, most similar first: (m,), (n,) -> (m,) float64."""
    at, m = members.sort(descending=True).values, len(members)
    q = (others >= at[:, None]).double().mean(dim=1)
    return torch.arange(1, m + 1, dtype=torch.float64) / m - q


def as_similar(own: torch.Tensor, mean: torch.Tensor, members: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The `others` that are as similar as most `members` are to probes that do not know these; all (N,).

    The others' similarity is the mean over the probes, which varies less. The threshold is the similarity of that
    member at which r - q, see `apart`, is largest (Youden's index): it takes most of the bad images and few good ones.
    Bad images among the others lower r - q by a factor and do not move its maximum.
    """
    at = own[members].sort(descending=True).values  # (m,)
    return others & (mean >= at[gaps(own[members], mean[others]).argmax()])
