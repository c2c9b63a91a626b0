"""What comes with a user's network or data source and must do no harm.

- Buffers that hold -inf, and state that is no tensor, come through                                     L11
- Batches whose memory is used again train the same network                                             A7
"""


import pytest
import torch
from torch import nn

import baselines
from engine.ending import Never, Repaired
from experiment.data import Data
from helpers import assert_same_state, gen, make_data, small_net, tiny
from rem import rem

pytestmark = pytest.mark.filterwarnings("ignore:Acc")  # step 2 may give up

FORGET = torch.tensor([2, 5, 7])

class Extras(nn.Module):
    """small_net with a buffer that holds -inf, as an attention's mask does, and a state that is no tensor."""

    def __init__(self):
        super().__init__()
        self.net = small_net(0)
        self.register_buffer("mask", torch.full((4, 4), -torch.inf))

    def forward(self, x):
        return self.net(x)

    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        assert state == {"version": 3}


def test_what_a_network_had_from_the_first_is_no_ruin():
    """L11: -inf in a buffer that no update moves, and extra state, come through; a NaN there does not."""
    net, data = Extras(), make_data(0, n=40)
    outs = [rem(net, data, FORGET, tiny(), gen(0), until=until) for until in (Never, Repaired)]
    for out in [*outs, baselines.fine_tune(net, data, FORGET, tiny(), gen(0))]:
        assert torch.equal(out.mask, net.mask) and out.get_extra_state() == {"version": 3}
        assert not torch.equal(out.net.head.weight, net.net.head.weight)
    net.mask[0, 0] = torch.nan
    with pytest.raises(ArithmeticError, match="mask is not finite"):
        baselines.fine_tune(net, data, FORGET, tiny(), gen(0))


# --- batches.py -------------------------------------------------------------------------------------------------------

class Source:
    """A plain data source; its batches are new tensors, or live in the same memory, as some fast loaders have it."""

    def __init__(self, data: Data, reuses: bool):
        self.data, self.reuses = data, reuses

    def __len__(self):
        return len(self.data)

    def batches(self, index=None, size=512, generator=None, augment=False, dtype=torch.float32):
        index = torch.arange(len(self)) if index is None else index
        rows = index if generator is None else index[torch.randperm(len(index), generator=generator)]
        held = None
        for part in rows.split(size):
            batch = next(self.data.batches(part, size=size, dtype=dtype))
            held = [tensor.clone() for tensor in batch] if held is None or not self.reuses else held
            for place, tensor in zip(held, batch, strict=True):
                place[: len(part)] = tensor
            yield tuple(place[: len(part)] for place in held)


@pytest.mark.parametrize("n", [12, 13])
@pytest.mark.parametrize("until", [Never, Repaired])
def test_batches_may_be_used_again(n, until):
    """A7: a source that gives every batch in the same memory trains the same network, also with a last batch of one."""
    data, net, config = make_data(0, n=n), small_net(0), tiny(gamma=0.3)
    fresh, used = (rem(net, Source(data, reuses), FORGET, config, gen(0), until=until) for reuses in (False, True))
    assert_same_state(fresh, used)
    assert not torch.equal(fresh.head.weight, net.head.weight)
