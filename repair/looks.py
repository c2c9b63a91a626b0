"""Which images look like D_f, to the network before a repair (Sec. 4: discovery).

    alike = looking_alike(features(model, data), labels, forget, seed)        # (N,) bool

The finish leaves them out, and the verdict does not count them: a trigger that nobody listed is in them. What images
are bad for their labels alone is not told by looks, and then none is.
"""

import math

import torch

from engine.batches import among
from engine.streams import stream
from repair.suspects import probe_logits

FOLDS = 5  # in which images are held out
LEAST = 4  # members of D_f that can be compared with others
CHANCE = 0.01  # at which members of D_f that look like all others may be taken for apart
MOST = 0.25  # share of the images: where more look like D_f, its looks tell nothing apart


def looking_alike(h: torch.Tensor, labels: torch.Tensor, forget: torch.Tensor, seed: int) -> torch.Tensor:
    """The images that look like D_f as much as its held-out members do, among images of the same label as given.

    The images of a label that D_f has are compared with its members there: an attack has a target, a mistake a class
    that it is taken for, and images of other labels say nothing of either. Of all images together a published network's
    450 bad ones were not told apart (10 % of 5,000, 50 listed); among those of their label 434 of them were, and 45
    good ones. None is alike to fewer than LEAST, and none is where more than MOST of all images would be: then it is
    the looks that tell nothing.
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
    """(N,) how much each image looks like D_f, `known` (N,) bool, to a probe that was fitted without it, and on average
    to all of them; a fifth of D_f and of the others is left out of each."""
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
    """What is compared with each other, each (N,) bool: the images of a label that LEAST of D_f have, one after
    another; then those of all other labels together, if LEAST of D_f are left there."""
    counts = torch.bincount(labels[forget], minlength=int(labels.max()) + 1)
    own = counts >= LEAST
    for label in own.nonzero()[:, 0]:
        yield labels == label
    if int(counts[~own].sum()) >= LEAST:
        yield ~own[labels]


def apart(members: torch.Tensor, others: torch.Tensor) -> bool:
    """Whether members of D_f look like D_f more than others do, beyond chance: similarities (m,) and (n,), all of them
    by probes that do not know the image, since a probe tells images apart that it knows, whatever they are.

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

    The others' similarity is the mean over the probes, the steadier one. Taken is the similarity of that member at
    which r - q, see `apart`, is largest (Youden's index): most of the bad, few of the good, and rather too many, since
    three bad ones that stay can bring a trigger back. Bad images among the others lower r - q by a factor and do not
    move its maximum.
    """
    at = own[members].sort(descending=True).values  # (m,)
    return others & (mean >= at[gaps(own[members], mean[others]).argmax()])
