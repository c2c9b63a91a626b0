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
from etd import mask_table
from expand import expand
from helpers import assert_close, gen, make_data, seeds, small_net
from repair.suspects import given_loss, logits, margin, nearest, probe, ranked, suspects, tracin


def everything(model, data, forget, config, generator):
    """A method in form: looks for suspects by every score, and returns the network as it is."""
    suspects(model, data, forget)
    (z, labels), h = logits(model, data), features(model, data)
    for score in (margin(z, labels), nearest(h, forget), tracin(z, labels, h, forget), probe(h, forget)):
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


def test_logits_under_a_mask_are_those_of_the_channel():
    """S16: an expanded network's logits are theta_o1's, or with a row of masks those through its channel."""
    data = make_data(0, pad=1, flip=True)
    expanded = expand(small_net(0), torch.zeros(2, 1, 8, 8), generator=gen(1))
    row = mask_table(12, expanded.width, 0.5, 0, torch.tensor([3]))[3]
    x = (data.images / 255 - 0.5) / 0.25
    base, through = logits(expanded, data)[0], logits(expanded, data, row)[0]
    with torch.no_grad():
        assert_close(base, expanded.eval()(x).double(), 1e-5)
        assert_close(through, expanded(x, row.expand(12, -1)).double(), 1e-5)
    assert (base - through).abs().max() > 1e-3


# --- The other scores -------------------------------------------------------------------------------------------------

def drawn(seed: int, n: int = 9, classes: int = 4, d: int = 5):
    """Logits, labels, features and D_f."""
    g = gen(seed)
    z, h = torch.randn(n, classes, generator=g).double(), torch.randn(n, d, generator=g).double()
    return 3 * z, torch.randint(0, classes, (n,), generator=g), h, torch.randperm(n, generator=g)[: 1 + seed % (n - 1)]


@given(seeds)
def test_scores_equal_naive_twins(seed):
    """S13: margin, nearest and TracIn, by loops as their formulas are printed; CE ranks as 1 - self-confidence does."""
    z, labels, h, forget = drawn(seed)
    p = np.exp(z.numpy()) / np.exp(z.numpy()).sum(1, keepdims=True)
    error = p - np.eye(4)[labels.numpy()]
    unit = h.numpy() / np.linalg.norm(h.numpy(), axis=1, keepdims=True)
    twins = {"margin": [], "nearest": [], "tracin": []}
    for i, y in enumerate(labels.tolist()):
        twins["margin"].append(max(float(z[i, k]) for k in range(4) if k != y) - float(z[i, y]))
        near = sorted((float(unit[i] @ unit[j]) for j in forget.tolist()), reverse=True)[:5]
        twins["nearest"].append(sum(near) / len(near))
        twins["tracin"].append(sum(float(h[i] @ h[j]) * float(error[i] @ error[j]) for j in forget.tolist()))
    assert_close(margin(z, labels), torch.tensor(twins["margin"], dtype=torch.float64))
    assert_close(nearest(h, forget), torch.tensor(twins["nearest"], dtype=torch.float64))
    assert_close(tracin(z, labels, h, forget), torch.tensor(twins["tracin"], dtype=torch.float64))
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
