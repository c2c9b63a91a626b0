"""engine/layers.py: fresh weights, and the mask of a layer.

Layers of many kinds, memory formats and wider weights are in paper/test_expand_any_network.py.
"""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from engine.layers import MaskedPass, initialiser
from helpers import assert_close, gen, seeds


@pytest.mark.parametrize("make, inputs", [(lambda: nn.Conv2d(2, 3, (3, 1)), 5), (lambda: nn.Linear(7, 3), 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_fresh_weights_are_torchs_default(make, inputs, dtype):
    """X4, X6: uniform within 1 / sqrt(fan-in) of the wide layer, drawn in float64 from the generator and then rounded,
    with the kernel size, dtype and layout of the layer's weight."""
    weight = make().to(dtype).weight
    area, shape = weight[0, 0].numel(), (4, 6, *weight.shape[2:])
    fresh = initialiser(weight, inputs, gen(3))
    expected = (2 * torch.rand(shape, generator=gen(3), dtype=torch.float64) - 1) / math.sqrt(inputs * area)
    assert_close(fresh(4, 6).double(), expected.to(dtype).double(), {torch.bfloat16: 1e-2}.get(dtype, 1e-6))
    assert fresh(0, 6).shape == (0, 6, *weight.shape[2:]) and isinstance(fresh(1, 1), nn.Parameter)


@given(seed=seeds, outputs=st.integers(1, 3), extra=st.integers(1, 4))
def test_the_mask_of_a_layer(seed, outputs, extra):
    """M11, M17: 1 for each base channel, the first bits of the row for the others, whatever was asked before."""
    mask = torch.rand(3, 5, generator=gen(seed)) < 0.5
    active = MaskedPass(mask)
    for base, more, dtype in itertools.product({outputs, 2}, {extra, 3}, (torch.float32, torch.bfloat16)):
        found = active.over(base, more, dtype)
        assert found.dtype == dtype and found.shape == (3, base + more)
        for row, bits in zip(found.tolist(), mask.tolist(), strict=True):
            assert row == [1.0] * base + [float(bit) for bit in bits[:more]]
