"""The ranking of suspects and the number that is likely bad (repair/suspects.py), against naive twins and mixtures."""

import math

import pytest
import torch
from hypothesis import given
from torch.nn import functional as F

from helpers import assert_close, gen, seeds
from repair.suspects import mixture, odds_of_labels, odds_of_looks, rank


def drawn(seed: int, n: int = 12, classes: int = 3):
    """Logits, labels, D_f, similar and crossed, with ties."""
    g = gen(seed)
    z = torch.randint(-2, 3, (n, classes), generator=g).double()
    forget = torch.randperm(n, generator=g)[: 1 + seed % (n - 1)]
    looks = torch.randint(0, 4, (2, n), generator=g).double()
    return z, torch.randint(0, classes, (n,), generator=g), forget, looks[0] / 4, looks[1]


# --- The order --------------------------------------------------------------------------------------------------------

@given(seeds)
def test_the_order_is_that_of_the_printed_odds(seed):
    """S10, S11, S20, S23: log q_y (1 - p_y) / p_y + log N(f; m_y + d, v) / N(f; m_y, v), by loops in Python's numbers.
    The second is 0 where D_f has fewer than four images or its held-out members lie below the others; the middle of a
    class that is all in D_f is that of all others. D_f is never named, every other image once; the score is the loss of
    the given label."""
    z, labels, forget, similar, f = drawn(seed)
    n, classes = z.shape
    known = sorted(set(forget.tolist()))
    rest = [i for i in range(n) if i not in known]
    middle = [sorted(float(f[i]) for i in rest if labels[i] == y or not any(labels[i] == y for i in rest))
              for y in range(classes)]
    above = [float(f[i]) - middle[labels[i]][(len(middle[labels[i]]) - 1) // 2] for i in range(n)]
    inside, outside = [above[i] for i in known], [above[i] for i in rest]
    d, mean = sum(inside) / len(inside), sum(outside) / len(outside)
    odds = {}
    for i in range(n):
        p = math.exp(z[i, labels[i]]) / sum(math.exp(value) for value in z[i])
        q = (sum(int(labels[j] == labels[i]) for j in known) + 1) / (len(known) + classes)
        odds[i] = math.log(q * (1 - p) / p)
        if len(known) >= 4 and d > 0:
            v = (sum((x - d) ** 2 for x in inside) / (len(inside) - 1)
                 + sum((x - mean) ** 2 for x in outside) / len(outside)) / 2
            odds[i] += (above[i] ** 2 - (above[i] - d) ** 2) / (2 * max(v, 1e-9))
    sums = odds_of_labels(z, labels, forget) + odds_of_looks(f, labels, forget)
    assert_close(sums, torch.tensor([odds[i] for i in range(n)], dtype=torch.float64), 1e-6)
    found = rank(z, labels, forget, similar, f)
    assert sorted(found.index.tolist()) == rest
    values = [odds[i] for i in found.index.tolist()]
    assert all(a >= b - 1e-6 * (1 + abs(a)) for a, b in zip(values, values[1:]))
    score = F.cross_entropy(z, labels, reduction="none")
    assert torch.equal(found.score, score[found.index]) and torch.equal(found.similar, similar[found.index])
    assert torch.equal(found.predicted, z.argmax(1)[found.index])
    for ranks, column in ((found.by_score, score), (found.by_similar, similar)):
        twin = sorted(rest, key=lambda i, column=column: (-float(column[i]), i))
        assert [twin.index(i) + 1 for i in found.index.tolist()] == ranks.tolist()
    share = float(found.chance.mean())
    known_chance = [share * math.exp(min(odds[i], 700)) / (share * math.exp(min(odds[i], 700)) + 1 - share)
                    for i in known]
    number = sum(c * c for c in found.chance.tolist()) / max(0.1, sum(known_chance) / len(known))
    assert abs(found.likely - min(number, len(rest))) <= 0.51 and found.chance.tolist() == sorted(found.chance)[::-1]


def test_ties_keep_the_order_of_the_data():
    """S20: images of which nothing tells one from another stay in their order, in all three ranks."""
    z, labels = torch.zeros(6, 2).double(), torch.zeros(6, dtype=torch.int64)
    found = rank(z, labels, torch.tensor([2]), torch.zeros(6), torch.zeros(6).double())
    assert found.index.tolist() == [0, 1, 3, 4, 5]
    assert found.by_score.tolist() == found.by_similar.tolist() == [1, 2, 3, 4, 5]


def test_extreme_logits_rank_as_others_do():
    """S20: a network that is sure beyond float64 gives finite odds, and the most disbelieved comes first; looks that
    vary within neither kind give finite odds too."""
    z = torch.tensor([[900.0, 0], [0, 900], [800, 0], [0, 0]]).double()
    odds = odds_of_labels(z, torch.zeros(4, dtype=torch.int64), torch.tensor([3]))
    assert odds.isfinite().all() and odds[1] > odds[3] > odds[2] > odds[0]
    found = rank(z, torch.zeros(4, dtype=torch.int64), torch.tensor([3]))
    assert found.index.tolist() == [1, 2, 0] and found.similar is None and found.by_similar is None
    assert [suspect.similar for suspect in found.suspects()] == [None] * 3
    alike = torch.arange(40) < 10
    assert odds_of_looks(alike.double(), torch.zeros(40, dtype=torch.int64), alike.nonzero()[:, 0]).isfinite().all()


# --- The number -------------------------------------------------------------------------------------------------------

@given(seeds)
def test_the_share_is_where_the_likelihood_is_largest(seed):
    """S21: sum log(s e^odds + 1 - s) over a grid of s has its top where EM ends; chances follow from that share."""
    odds = 3 * torch.randn(40, generator=gen(seed)).double() - 2
    _, found = mixture(odds)
    grid = torch.linspace(1e-6, 1 - 1e-6, 20001).double()
    likelihood = torch.log(grid[:, None] * odds.exp() + 1 - grid[:, None]).sum(dim=1)
    best = float(grid[likelihood.argmax()])
    assert float(found.mean()) == pytest.approx(best, abs=2e-3)
    share = float(found.mean())
    assert_close(found, share * odds.exp() / (share * odds.exp() + 1 - share), 1e-3)


def made(seed: int, share: float, n: int = 4000, classes: int = 5, seen: float = 3.0):
    """Images from the model itself: logits, labels, D_f, f, and which are bad; `seen`: how far apart the looks are."""
    g = gen(seed)
    z = 2 * torch.randn((n, classes), generator=g).double()
    p = z.softmax(dim=1)
    labels, bad = torch.multinomial(p, 1, generator=g)[:, 0], torch.rand(n, generator=g) < share
    f = torch.randn(n, generator=g).double() + seen * bad
    for i in bad.nonzero()[:, 0].tolist():  # the label 0 where the image is not of class 0
        labels[i] = 0
        z[i, 0] = min(float(z[i, 0]), -1.0)
    known = bad.nonzero()[:, 0]
    return z, labels, known[: len(known) // 3], f, bad


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_the_number_is_found_where_the_model_holds(share):
    """S22: over 20 seeds the estimate is off by less than a fifth of the real number on average; where looks tell
    alone, most of what is marked is bad."""
    errors, right = [], []
    for seed in range(20):
        z, labels, forget, f, bad = made(seed, share)
        found = rank(z, labels, forget, f, f)
        real = int(bad.sum()) - len(forget)
        errors.append(found.likely / real - 1)
        right.append(float(bad[found.index[: found.likely]].double().mean()))
    assert abs(sum(errors) / 20) < 0.2 and sum(right) / 20 > 0.8


def test_no_bad_images_are_few():
    """S22: where nothing is left to find, next to nothing is marked; a D_f that is still believed tells of no more than
    ten times as many as are disbelieved."""
    z, labels, forget, f, bad = made(0, 0.02)
    everything = bad.nonzero()[:, 0]
    assert rank(z, labels, everything, f, f).likely <= 0.004 * len(z)
    labels = torch.arange(1000) % 3
    z = 20 * torch.nn.functional.one_hot(torch.where(torch.arange(1000) < 10, (labels + 1) % 3, labels), 3).double()
    assert 10 <= rank(z, labels, torch.arange(500, 506)).likely <= 100


# --- Two signs --------------------------------------------------------------------------------------------------------

def test_either_kind_finds_what_the_other_is_blind_to():
    """S25: bad images of half that are believed but look bad, of half disbelieved: the first fifth of the overall order
    holds nearly all, of either score alone about a half."""
    g = gen(0)
    n, bad = 1000, torch.arange(1000) % 5 == 0
    z = torch.zeros(n, 3).double()
    labels = torch.randint(0, 3, (n,), generator=g)
    z[torch.arange(n), labels] = 4.0
    disbelieved = bad & (torch.arange(n) % 2 == 0)
    z[torch.arange(n), labels] -= 9.0 * disbelieved
    f = torch.randn(n, generator=g).double() + 6.0 * (bad & ~disbelieved)
    forget = bad.nonzero()[:40, 0]
    found = rank(z, labels, forget, torch.sigmoid(f), f)
    wanted = int(bad.sum()) - 40
    hit = [float(bad[order[:wanted]].double().mean()) for order in (
        found.index, found.index[found.by_score.argsort()], found.index[found.by_similar.argsort()])]
    assert hit[0] > 0.95 and hit[1] < 0.7 and hit[2] < 0.7
