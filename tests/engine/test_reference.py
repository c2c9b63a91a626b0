"""engine/scores.py: the frozen network of Eq. 2, asked for by dataset index where nothing augments the data.

That REM is the same with stored values and batch by batch is in paper/test_twins.py, which has both.
"""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from helpers import assert_close, gen, make_data, run, small_net
from rem import redirect, step3_batch
from states import Loose, make_state


@pytest.mark.parametrize("batch", [3, 5, 64])
@pytest.mark.parametrize("make, stored", [(make_data, True), (partial(make_data, pad=1), False),
                                          (partial(make_data, flip=True), False),
                                          (lambda seed: Loose(make_data(seed)), False)])
def test_stored_only_without_augmentation(make, stored, batch):
    """F8, L16, M13: what is asked for is the CE of step 1's network, also once it moves. Where no augmentation may move
    an image, as in a source that says nothing, it is stored by dataset index, whatever the batches, and neither image
    nor label is looked at any more; to store draws no number."""
    data = make(batch)
    state = make_state(data=data, net=small_net(0, dtype=torch.float64), batch=batch)
    drawn, net = state.generator.get_state(), state.reference.net
    state.reference.remember(state)
    assert (state.reference.known is not None) == stored and torch.equal(state.generator.get_state(), drawn)
    redirect(state, step3_batch)
    rows = torch.randperm(12, generator=gen(batch))[:7]
    _, x, y = next(data.batches(rows, dtype=torch.float64))
    given = (rows, torch.zeros(0), torch.zeros(0)) if stored else (rows, x, y)
    for found, mask in ((state.reference.full(*given), [state.masks[rows]]), (state.reference.base(*given), [])):
        assert_close(found, F.cross_entropy(run(net, x, *mask), y, reduction="none"), 1e-10)
        assert not found.requires_grad
