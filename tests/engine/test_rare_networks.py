"""Networks that are rare, a lazy one and one of half precision, before and after the methods of baselines.py.

- V9      a network that keeps what it made can be differentiated afterwards
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import baselines
import metrics
from helpers import gen, make_data, small_net, tiny

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
