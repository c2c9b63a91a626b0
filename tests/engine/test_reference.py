"""engine/reference.py: the frozen network of Eq. 2, asked for by dataset index where nothing augments the data.

That REM is the same with stored values and batch by batch is in paper/test_twins.py, which has both.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from helpers import assert_close, gen, make_data, run, seeds, small_net
from rem import redirect, step3_batch
from states import Loose, make_state


@given(seeds, st.sampled_from([3, 5, 64]))
def test_stored_values(seed, batch):
    """F8, M13: they are the CE of step 1's network by dataset index, whatever the batches, also once it moves."""
    data = make_data(seed, trigger=True)
    state = make_state(seed, data=data, net=small_net(seed, dtype=torch.float64), batch=batch)
    net, rows = state.reference.net, torch.randperm(12, generator=gen(seed))[:7]
    state.reference.remember(state)
    redirect(state, step3_batch)
    _, x, y = next(data.batches(rows, dtype=torch.float64))
    nothing = torch.zeros(0)  # neither image nor label is looked at any more
    for found, mask in ((state.reference.full(rows, nothing, nothing), [state.masks[rows]]),
                        (state.reference.base(rows, nothing, nothing), [])):
        assert_close(found, F.cross_entropy(run(net, x, *mask), y, reduction="none"), 1e-10)
        assert not found.requires_grad


@pytest.mark.parametrize("data, stored", [(make_data(0), True), (make_data(0, pad=1), False),
                                          (make_data(0, flip=True), False), (Loose(make_data(0)), False)])
def test_stored_only_without_augmentation(data, stored):
    """F8, L16: augmentation may move an image, in a source that says nothing too; to store draws no number."""
    state = make_state(data=data)
    drawn = state.generator.get_state()
    state.reference.remember(state)
    assert (state.reference.known is not None) == stored and torch.equal(state.generator.get_state(), drawn)
    rows, x, y = next(iter(data.batches(generator=gen(0), augment=True)))
    moved = state.reference.base(rows, x, y), F.cross_entropy(run(state.reference.net, x), y, reduction="none")
    assert_close(*moved, 1e-6)
    assert not state.reference.full(rows, x, y).requires_grad
