"""engine/masks.py: a table of bits (M16 is in paper/test_etd.py), fresh weights, and the mask of a layer.

Layers of many kinds, memory formats, wider weights, and what is put in whose place are in paper/test_step1_expand.py.
"""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from engine import masks
from engine.masks import MaskedPass, draw_bits, initialiser
from helpers import assert_close, gen, seeds


@given(seeds, st.integers(0, 20), st.integers(0, 19), st.sampled_from([1, 7, 40, 2**20]))
def test_rows_are_what_was_drawn(seed, n, width, block):
    """M1, M3, M13: bit for bit, in whatever blocks they are drawn, by every kind of index that a tensor takes."""
    asked = []

    def draw(rows):
        asked.append(rows)
        return whole[sum(asked[:-1]):sum(asked)]

    whole = torch.rand(n, width, generator=gen(seed)) < 0.4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "BLOCK", block)  # no caller can choose it, and 2**20 bits are too many for a test
        table = draw_bits(n, width, draw)
    assert sum(asked) == n and all(rows * width <= max(block, width) for rows in asked)
    found = table[:]
    assert torch.equal(found, whole) and found.dtype == torch.bool and table.width == width
    if n:
        index = torch.randint(0, n, (3, 2), generator=gen(seed))
        for at in (0, -1, torch.tensor(n - 1), index, slice(None, None, 2), torch.arange(n) > 2, [0, 0]):
            assert torch.equal(table[at], whole[at])


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
