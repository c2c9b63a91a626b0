"""REM+'s small-loss selection: the images of D_r that step 3 leaves out, because their labels have a large loss.

That REM+ leaves them out from epoch 2 on, by the loss before step 2, is the twin's in test_rem_plus.py.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from etd import drop
from helpers import Trusting, make_data, seeds, small_net
from rem_plus import copies, small_loss
from states import plus_state

FORGET = torch.tensor([7, 2, 11, 4])


def ce_of(state) -> torch.Tensor:
    """CE of each label as given, theta_o1 alone, in eval mode, one image at a time: the twin."""
    net, data = drop(state.expanded).eval(), state.data
    with torch.no_grad():
        logits = [net(x) for _, x, _ in data.batches(size=1, dtype=torch.float64)]
    return F.cross_entropy(torch.cat(logits), data.labels, reduction="none")


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
