"""The ranking of suspects and the other scores (repair/suspects.py), against naive twins."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contract import blind, deterministic, inputs_stay
from engine.checks import NonFiniteLoss
from engine.features import features
from helpers import assert_close, gen, make_data, seeds, small_net
from repair.suspects import given_loss, logits, margin, probe, ranked, suspects


def everything(model, data, forget, config, generator):
    """A method in form: looks for suspects by every score, and returns the network as it is."""
    suspects(model, data, forget)
    (z, labels), h = logits(model, data), features(model, data)
    for score in (margin(z, labels), probe(h, forget)):
        assert score.shape == (len(data),) and score.isfinite().all()
    return copy.deepcopy(model)


# --- The ranking ------------------------------------------------------------------------------------------------------

@given(seeds, st.integers(2, 20), st.data())
def test_the_score_is_the_loss_of_the_given_label(seed, n, draw):
    """S10, S11: score = -log p(given label) of the network alone, by loops over images; predicted is its class."""
    data, net = make_data(seed, n=n, trigger=True, pad=1, flip=True), small_net(seed)
    forget = torch.tensor(draw.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n - 1, unique=True)))
    found, twin = suspects(net, data, forget), {}
    for i in range(n):
        x = (data.images[i : i + 1] / 255 - 0.5) / 0.25
        z = net.eval()(x).detach().double().numpy()[0]
        twin[i] = np.log(np.exp(z - z.max()).sum()) + z.max() - z[data.labels[i]], int(z.argmax())
    assert sorted(found.index.tolist()) == sorted(set(range(n)) - set(forget.tolist()))
    for i, score, predicted in zip(*(part.tolist() for part in found), strict=True):
        assert score == pytest.approx(twin[i][0], abs=1e-4) and predicted == twin[i][1] and score >= 0
    assert found.score.tolist() == sorted(found.score.tolist(), reverse=True)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.data())
def test_ranks_leave_out_what_is_known_and_keep_ties_in_order(values, draw):
    """S11: D_f is never named, every other image once; falling scores, ties in the order of the data."""
    known = draw.draw(st.sets(st.integers(0, len(values) - 1), max_size=len(values) - 1))
    index, score = ranked(torch.tensor(values).double(), torch.tensor(sorted(known), dtype=torch.int64))
    twin = sorted((i for i in range(len(values)) if i not in known), key=lambda i: (-values[i], i))
    assert index.tolist() == twin and score.tolist() == [values[i] for i in twin]


@pytest.mark.parametrize("keeps", [blind, deterministic, inputs_stay])
def test_nothing_hidden_is_read_and_nothing_changes(keeps):
    """S12: no clean label, test set or D_c is read; network, data, D_f, modes and random states stay."""
    keeps(everything)


def test_what_cannot_be_ranked_is_refused():
    """S12: a D_f that check_forget refuses -> ValueError; logits that are not finite -> NonFiniteLoss."""
    data, net = make_data(0), small_net(0)
    with pytest.raises(ValueError, match="twice"):
        suspects(net, data, torch.tensor([1, 1]))
    net.head.weight.data[0, 0] = math.nan
    with pytest.raises(NonFiniteLoss, match="not finite"):
        suspects(net, data, torch.tensor([0]))


# --- The other scores -------------------------------------------------------------------------------------------------

def drawn(seed: int, n: int = 9, classes: int = 4, d: int = 5):
    """Logits, labels, features and D_f."""
    g = gen(seed)
    z, h = torch.randn(n, classes, generator=g).double(), torch.randn(n, d, generator=g).double()
    return 3 * z, torch.randint(0, classes, (n,), generator=g), h, torch.randperm(n, generator=g)[: 1 + seed % (n - 1)]


@given(seeds)
def test_scores_equal_naive_twins(seed):
    """S13: margin by loops as its formula is printed; CE ranks as 1 - self-confidence does."""
    z, labels, _, _ = drawn(seed)
    p = np.exp(z.numpy()) / np.exp(z.numpy()).sum(1, keepdims=True)
    twin = [max(float(z[i, k]) for k in range(4) if k != y) - float(z[i, y]) for i, y in enumerate(labels.tolist())]
    assert_close(margin(z, labels), torch.tensor(twin, dtype=torch.float64))
    confidence = torch.from_numpy(p[np.arange(9), labels.numpy()])
    assert torch.equal(given_loss(z, labels).argsort(), (1 - confidence).argsort())
    assert_close((-given_loss(z, labels)).exp(), confidence)


@given(seeds)
def test_the_probe_is_at_its_minimum(seed):
    """S13: no step away from the probe's weights lowers its loss, computed in numpy; scale of features is no matter."""
    _, _, h, forget = drawn(seed, n=20)
    found = probe(h, forget)
    x = (h.numpy() - h.numpy().mean(0)) / h.numpy().std(0)
    known = np.isin(np.arange(20), forget.numpy())
    f = np.log(found.numpy()) - np.log1p(-found.numpy())
    w = np.linalg.lstsq(np.c_[x, np.ones(20)], f, rcond=None)[0]

    def loss(w):
        f = np.c_[x, np.ones(20)] @ w
        return (np.logaddexp(0, -f[known]).mean() + np.logaddexp(0, f[~known]).mean() + w[:-1] @ w[:-1] / 20) / 2

    for k in range(6):
        for step in (-1e-2, 1e-2):
            assert loss(w) <= loss(w + step * np.eye(6)[k]) + 1e-9
    assert_close(probe(7 * h + 3, forget), found, 1e-3)
    assert_close(probe(torch.cat([h, torch.ones(20, 1)], 1), forget), found, 1e-3)  # a constant says nothing
