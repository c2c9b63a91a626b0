"""REM+'s small-loss selection: the images of D_r that step 3 leaves out, because their labels have a large loss."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import rem_plus
from etd import drop
from helpers import Trusting, make_data, seeds, small_net
from rem_plus import EarlyStopping, copies, small_loss
from states import acc_forget, plus_state, unlearn_plus

pytestmark = pytest.mark.filterwarnings("ignore:Acc")  # the end may tell of harm

FORGET = torch.tensor([7, 2, 11, 4])


def ce_of(state) -> torch.Tensor:
    """CE of each label as given, theta_o1 alone, in eval mode, one image at a time: the twin."""
    net, data = drop(state.expanded).eval(), state.data
    with torch.no_grad():
        logits = [net(x) for _, x, _ in data.batches(size=1, dtype=torch.float64)]
    return F.cross_entropy(torch.cat(logits), data.labels, reduction="none")


def judged(seed: int, **changes):
    """A run of three epochs: of each what step 3 was given, CE before and after step 2; then D_tr without W, and W."""
    seen, ends = [], []

    def remove(state):
        before = ce_of(state)
        real["remove_to_distance"](state)
        seen.append([before, ce_of(state)])

    def redirect(state, loss, index):
        seen[-1].append(index)
        real["redirect"](state, loss, index)

    def end(state):
        ends.append(EarlyStopping(state))
        return ends[0]

    data, net = make_data(seed, n=48, pad=1, flip=True), small_net(seed, dtype=torch.float64)
    with acc_forget(*[0.9, 0.1] * 3):
        real = {name: getattr(rem_plus, name) for name in ("remove_to_distance", "redirect")}
        with mock.patch.multiple(rem_plus, remove_to_distance=remove, redirect=redirect, EarlyStopping=end):
            unlearn_plus(seed, data=data, net=net, forget=FORGET, batch=16, unlearn_epochs=3, **changes)
    taught = ends[0].trained_on
    return seen, torch.arange(48) if taught is None else taught, ends[0].held_out


def left_in(ce: torch.Tensor, taught: torch.Tensor, bound: float) -> torch.Tensor:
    """What step 3 is to be given of `taught`: all of it where more than half of D_r is above the bound."""
    suspect = (ce > bound) & ~torch.isin(torch.arange(len(ce)), FORGET)
    return taught if 2 * suspect.sum() > len(ce) - len(FORGET) else taught[~suspect[taught]]


@pytest.mark.parametrize("stop", ["max", "repaired"])
def test_who_is_left_out(stop):
    """A37: from epoch 2 on step 3 lacks exactly the images of D_r whose CE before step 2 is above `disbelieved`, unless
    that is more than half of D_r; D_f is all there, W is not."""
    out = kept = spared = other = most = 0
    for seed in range(4):
        seen, taught, held_out = judged(seed, stop=stop, disbelieved=1.5)
        known = torch.isin(taught, FORGET)
        assert len(seen) >= 2 and int(known.sum()) == len(FORGET)
        first = seen[0][2]
        assert first is None if stop == "max" else torch.equal(first, taught)
        for before, after, index in seen[1:]:
            index = taught if index is None else index
            assert torch.equal(index, left_in(before, taught, 1.5))
            assert held_out is None or not torch.isin(index, held_out).any()
            most += 2 * int((before > 1.5)[~torch.isin(torch.arange(48), FORGET)].sum()) > 48 - len(FORGET)
            out, kept = out + len(taught) - len(index), kept + len(index)
            spared += int((before[FORGET] > 1.5).sum())
            other += not torch.equal(index, left_in(after, taught, 1.5))
    assert min(out, kept, spared, other, most) > 0  # or this told nothing


@given(seeds, st.floats(0.1, 4.0))
def test_judging_moves_nothing(seed, bound):
    """A37: to judge draws no number, keeps no graph and leaves weights, statistics and modes as they were; in epoch 1,
    and where `disbelieved` is 0, no pass is made and none is left out."""
    state, graphs = plus_state(seed, forget=FORGET, disbelieved=bound), []
    state.expanded.train()
    state.expanded.register_forward_pre_hook(lambda net, args: graphs.append(torch.is_grad_enabled()))
    drawn, begin = state.generator.get_state(), copies([*state.expanded.parameters(), *state.expanded.buffers()])
    for state.epoch, at in ((1, bound), (5, 0.0)):
        state.config = replace(state.config, disbelieved=at)
        assert small_loss(state, None) is None and small_loss(state, FORGET) is FORGET and not graphs
    state.epoch, state.config = 2, replace(state.config, disbelieved=bound)
    index = small_loss(state, None)
    index = torch.arange(len(state.data)) if index is None else index
    assert torch.isin(FORGET, index).all() and torch.equal(small_loss(state, index.flip(0)), index.flip(0))
    assert torch.equal(state.generator.get_state(), drawn) and graphs and not any(graphs)
    assert all(module.training for module in state.expanded.modules())
    assert all(map(torch.equal, [*state.expanded.parameters(), *state.expanded.buffers()], begin))


@pytest.mark.parametrize("seed", range(4))
def test_what_somebody_has_looked_at_stays(seed):
    """A37: examples of `trusted` stay whatever theta_o1 thinks of them, and do not count towards the half of D_r."""
    data, looked_at = make_data(seed, n=48), torch.arange(20, 34)
    state = plus_state(seed, data=Trusting(data, looked_at), net=small_net(seed, dtype=torch.float64), forget=FORGET)
    state.epoch, ce, index = 2, ce_of(state), torch.arange(48)
    doubtful = ~torch.isin(index, torch.cat([FORGET, looked_at]))  # 30
    for share in (0.4, 0.6):
        bound = float(ce[doubtful].quantile(1 - share))
        state.config = replace(state.config, disbelieved=bound)
        suspect = doubtful & (ce > bound)
        assert (ce[looked_at] > bound).any() and int(suspect.sum()) == round(share * 30)
        found = small_loss(state, index)
        assert torch.equal(found, index[~suspect] if share < 0.5 else index)
