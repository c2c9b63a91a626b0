"""Networks and inputs that are rare: blocks that training skips, half precision.

- V9      a network that keeps what it made can be differentiated afterwards
- A21     a block that one batch skips is redirected through all the same
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import baselines
import metrics
from helpers import gen, make_data, randomise, small_net, tiny
from rem import rem

pytestmark = pytest.mark.filterwarnings("ignore:Acc")  # methods may give up

FORGET = torch.tensor([2, 5, 7])


class Lazy(nn.Module):
    """It makes a tensor in its first pass and uses it in all others."""

    grid = None

    def __init__(self):
        super().__init__()
        self.net = small_net(0)

    def forward(self, x):
        if self.grid is None:
            self.grid = x.new_ones(1, 4)
        return self.net(x) * self.grid


def test_predictions_leave_nothing_that_gradients_refuse():
    """V9: a network that keeps what it made while predicting can be differentiated afterwards."""
    net, data = Lazy(), make_data(0)
    metrics.predict(net, data)
    assert not net.grid.is_inference()
    net(next(data.batches(FORGET))[1]).sum().backward()
    baselines.ascent(Lazy(), data, FORGET, tiny(gamma=0.0), gen(0))


class Skipping(nn.Module):
    """conv - blocks that training skips at random - pool - Linear."""

    def __init__(self, share, blocks=3):
        super().__init__()
        self.share, self.stem, self.head = share, nn.Conv2d(1, 3, 3), nn.Linear(3, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Tanh(), nn.Conv2d(3, 3, 1))
                                    for _ in range(blocks))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            if not self.training or torch.rand(()) >= self.share:
                x = x + block(x)
        return self.head(x.amax(dim=(2, 3)))


def test_a_block_that_one_batch_skips_is_no_obstacle():
    """A21: stochastic depth that leaves a block out of the first batch, and brings it in later, is redirected through;
    a block that no batch of the first epoch runs is named."""
    skipped, config = 0, tiny(gamma=1.0, unlearn_epochs=2)  # step 2 has nothing to do
    for seed in range(6):
        net, spied = randomise(Skipping(0.4), 0), []
        net.blocks[0].register_forward_pre_hook(lambda module, inputs, spied=spied: spied.append(module.training))
        out = rem(net, make_data(0, n=40), FORGET, config, gen(seed))
        skipped += spied.count(True) < 2 * 2 * 10  # two passes a batch, ten batches an epoch
        assert not torch.equal(out.stem.weight, net.stem.weight)
    assert skipped == 6
    with pytest.raises(TypeError, match="cannot redirect through 'blocks.0.0'"):
        rem(randomise(Skipping(1.0), 0), make_data(0), FORGET, config, gen(0))


def test_importances_of_half_precision():
    """Squares of small gradients are summed in float32 at least: in float16 they would vanish."""
    data, config = make_data(0), tiny(batch=2)

    def loss(z, y):
        return 1e-3 * F.cross_entropy(z, y)

    half, single = (baselines.importance(small_net(0, dtype=dtype), data, None, config, loss, torch.square)
                    for dtype in (torch.float16, torch.float32))
    for a, b in zip(half, single, strict=True):
        assert a.dtype == torch.float32
        assert (a.sum() - b.sum()).abs() <= 0.05 * b.sum() > 0
