"""engine/bits.py: a table of bits, eight to a byte (M16 is in paper/test_etd.py), drawn block by block."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine import bits
from engine.bits import draw_bits
from helpers import gen, seeds


@given(seeds, st.integers(0, 20), st.integers(0, 19), st.sampled_from([1, 7, 40, 2**20]))
def test_rows_are_what_was_drawn(seed, n, width, block):
    """M1, M3, M13: bit for bit, in whatever blocks they are drawn, by every kind of index that a tensor takes."""
    asked = []

    def draw(rows):
        asked.append(rows)
        return whole[sum(asked[:-1]):sum(asked)]

    whole = torch.rand(n, width, generator=gen(seed)) < 0.4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bits, "BLOCK", block)  # no caller can choose it, and 2**20 bits are too many for a test
        table = draw_bits(n, width, draw)
    assert sum(asked) == n and all(rows * width <= max(block, width) for rows in asked)
    found = table[:]
    assert torch.equal(found, whole) and found.dtype == torch.bool and table.width == width
    if n:
        index = torch.randint(0, n, (3, 2), generator=gen(seed))
        for at in (0, -1, torch.tensor(n - 1), index, slice(None, None, 2), torch.arange(n) > 2, [0, 0]):
            assert torch.equal(table[at], whole[at])
