"""Networks of half precision under the methods of baselines.py."""

import torch
from torch.nn import functional as F

import baselines
from helpers import make_data, small_net, tiny


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
