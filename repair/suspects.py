"""Suspects: the images that nobody listed, ranked by how likely each is bad, and how many of them are.

    ranking = rank(z, labels, forget, similar, crossed)     # z: logits of the repaired network; the rest: looks.py
    ranking.index[: ranking.likely]                         # dataset indices, most suspect first

Two signs show a bad image. Its label has a large loss under the *repaired* network: the network before it has memorised
the bad labels, and REM takes them out, unlisted ones included. And it looks like D_f, even where its label has a small
loss. Each sign is blind to what the other sees, so their log-odds are added, as in naive Bayes. An image is from a
mixture of two,

    good:  P(y | x) = p_y                       p = softmax(z), the repaired network's
    bad:   P(y | x) = q_y (1 - p_y)             q_y: the share of the given label y among D_f
    good:  f ~ N(m_y, v)                        f: how much it looks like D_f, to a probe that does not know it
    bad:   f ~ N(m_y + d, v)                    m_y: its median in the class as given; d: how far D_f lies above, each
                                                member held out in turn

and the share of bad ones is the one that makes the labels and the looks most likely (EM). Where the held-out members of
D_f look like their classes as given, the second pair adds nothing. No clean label is read.

The number of bad images: were R images bad, of mean chance c, then sum_i c_i^2 over the rest would be R c, since c_i of
the images of chance c_i are bad; and c is measured on D_f, whose images are bad. So R = sum_i c_i^2 / mean_{D_f} c.
results/repair/suspects measures how well this ranks and counts: it counts rather too few, since D_f itself was unlearnt
and gives itself away more than what nobody listed.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from engine.batches import among
from repair.looks import LEAST

SHOWN = 0.1  # least mean chance of D_f that is divided by: one that the network still fits says nothing of others
STEPS = 500  # of EM at most
SMALL = 1e-9  # a share of bad images that is none; probabilities keep this distance from 1


class Suspect(NamedTuple):
    """An image outside D_f."""

    index: int  # in the dataset
    score: float  # CE of the given label, repaired network; exp(-score) is cleanlab's self-confidence
    predicted: int  # what the repaired network gives instead
    similar: float | None  # probability in [0, 1] of the probe
    by_score: int  # rank from 1
    by_similar: int | None


class Ranking(NamedTuple):
    """The M images outside D_f in overall order, most suspect first, and how many of them are likely bad."""

    index: torch.Tensor  # (M,) int64, dataset indices
    chance: torch.Tensor  # (M,) float64, probability of being bad, falling
    score: torch.Tensor  # (M,) float64, CE of the given label
    predicted: torch.Tensor  # (M,) int64
    similar: torch.Tensor | None  # (M,) float64
    by_score: torch.Tensor  # (M,) int64, ranks from 1
    by_similar: torch.Tensor | None
    likely: int  # the estimated number of bad ones: the first so many are called likely bad

    def suspects(self):
        """Each image in overall order, as a Suspect of plain numbers."""
        nothing = [None] * len(self.index)
        columns = (self.index, self.score, self.predicted, self.similar, self.by_score, self.by_similar)
        yield from map(Suspect, *(nothing if column is None else column.tolist() for column in columns))


def rank(z: torch.Tensor, labels: torch.Tensor, forget: torch.Tensor, similar: torch.Tensor | None = None,
         crossed: torch.Tensor | None = None) -> Ranking:
    """Rank the images outside D_f by what their labels and their looks say together, and estimate how many are bad.

    Args:
        z: (N, C) float64, logits of the repaired network; labels: (N,) int64 as given; forget: (k,) int64, D_f.
        similar: (N,) how much each looks like D_f, in [0, 1], `looks.probe`; crossed: (N,) the same from probes that
            do not know the image, `looks.crossed`; None, both, where there are no features.
    """
    rest = ~among(forget, len(z))
    odds = odds_of_labels(z, labels, forget)
    if crossed is not None:
        odds = odds + odds_of_looks(crossed, labels, forget)
    share, chance = mixture(odds[rest])  # (M,)
    shown = torch.sigmoid(odds[forget] + torch.logit(share)).mean().clamp_min(SHOWN)
    number = round(float((chance**2).sum() / shown))
    order = odds[rest].argsort(descending=True, stable=True)
    index, score = rest.nonzero()[:, 0][order], F.cross_entropy(z, labels, reduction="none")
    return Ranking(index, chance[order], score[index], z.argmax(dim=1)[index],
                   None if similar is None else similar[index], ranks_of(score[rest])[order],
                   None if similar is None else ranks_of(similar[rest])[order], min(len(index), number))


def ranks_of(score: torch.Tensor) -> torch.Tensor:
    """The rank from 1 of each, the largest first, ties in order: (M,) int64."""
    order = score.argsort(descending=True, stable=True)
    return torch.empty_like(order).index_copy_(0, order, torch.arange(1, len(order) + 1))


def odds_of_labels(z: torch.Tensor, labels: torch.Tensor, forget: torch.Tensor) -> torch.Tensor:
    """(N,) log q_y (1 - p_y) / p_y: what a given label says for the image being bad.

    q is Laplace's estimate, (n_y + 1) / (k + C), from the n_y of k members of D_f with that label.
    """
    log_p = z.log_softmax(dim=1)
    own = labels[:, None]
    others = log_p.scatter(1, own, -torch.inf).logsumexp(dim=1)  # log (1 - p_y), also where p_y rounds to 1
    q = (torch.bincount(labels[forget], minlength=z.shape[1]) + 1.0) / (len(forget) + z.shape[1])
    return q.to(z.dtype).log()[labels] + others - log_p.gather(1, own)[:, 0]


def odds_of_looks(crossed: torch.Tensor, labels: torch.Tensor, forget: torch.Tensor) -> torch.Tensor:
    """(N,) log N(f; m_y + d, v) / N(f; m_y, v), v the mean of both sides' variances: what a look says for the image
    being bad, given its label; 0 of a D_f that is too small, or whose held-out members lie no higher than others do.

    Within the class as given, since the label has its own odds: where some classes have more bad images than others,
    the looks of a class would count a second time. A median, since the class has bad images of its own.
    """
    if len(forget) < LEAST:
        return torch.zeros_like(crossed)
    rest = ~among(forget, len(crossed))
    middle = crossed[rest].median().expand(int(labels.max()) + 1).clone()  # of a class that is all in D_f
    for y in labels[rest].unique():
        middle[y] = crossed[rest & (labels == y)].median()
    above = crossed - middle[labels]
    known = above[forget]
    if known.mean() <= 0:
        return torch.zeros_like(crossed)
    variance = ((known.var() + above[rest].var(correction=0)) / 2).clamp_min(SMALL)
    return known.mean() / variance * (above - known.mean() / 2)


def mixture(odds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The share of bad ones and the chance of each, from log-odds before any share is known: (M,) -> (), (M,).

    EM for the share s: chance = s e^odds / (s e^odds + 1 - s), s = mean of the chances. The likelihood is concave in s,
    so there is one maximum.
    """
    share = torch.tensor(0.5, dtype=odds.dtype)
    for _ in range(STEPS):
        chance = torch.sigmoid(odds + torch.logit(share))
        new = chance.mean().clamp(SMALL, 1 - SMALL)
        if abs(new - share) < SMALL:
            break
        share = new
    return share, chance
