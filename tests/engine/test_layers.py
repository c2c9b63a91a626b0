"""What a layer's kind is, how a masked pass goes through a network (engine/layers.py), and tables of bits (bits.py).

- layers.py: the kind of a layer X10, fresh weights X4, X6, the mask of a layer M11, M17, who holds it and how long E2,
  A21, what is put in whose place D1, X11.
- bits.py: M13, M16.
"""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

import etd
import expand
from architectures import IMAGE, draw
from engine.bits import BLOCK, MaskTable, draw_bits
from engine.layers import MaskedPass, channels_of, initialiser, run_with, swap
from helpers import assert_close, gen, randomise, rows, run, seeds, small_net

# --- The kind of a layer ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("layer, expected", [
    (nn.Linear(4, 6), (4, 6, -1, False, False)), (nn.Conv2d(4, 6, 3), (4, 6, 1, False, False)),
    (nn.Conv2d(4, 8, 3, groups=4), (4, 8, 1, True, False)), (nn.Conv2d(4, 8, 3, groups=2), (4, 8, 1, False, True)),
    (nn.Conv2d(1, 8, 3, groups=1), (1, 8, 1, False, False))])
def test_channels_of_a_layer(layer, expected):
    """X10: inputs, outputs and where they lie; depthwise is one group a channel, of more channels than one."""
    assert channels_of(layer) == expected


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


def test_fresh_weights_have_the_layers_memory_format():
    """X6: channels_last where the weight is that and not plain at the same time, as a 1x1 kernel is."""
    for kernel, last in ((3, True), (3, False), (1, True)):
        conv = nn.Conv2d(2, 3, kernel)
        conv = conv.to(memory_format=torch.channels_last) if last else conv
        w = initialiser(conv.weight, 2, gen(0))(4, 5)
        assert w.is_contiguous(memory_format=torch.channels_last) == last or kernel == 1
        assert w.is_contiguous() == (not last or kernel == 1)


def test_running_with_other_weights_leaves_the_layer():
    """E4: base(x) with wider weights and more groups is what a layer of that size computes; the layer stays."""
    base, wide = nn.Conv2d(2, 2, 3, padding=1, groups=2), nn.Conv2d(5, 5, 3, padding=1, groups=5)
    x, before = draw(0, 2, 5, 4, 4), base.weight.clone()
    out = run_with(base, dict(wide.named_parameters()), x, groups=3)
    assert torch.equal(out, wide(x)) and base.groups == 2 and torch.equal(base.weight, before)


# --- A masked pass ----------------------------------------------------------------------------------------------------

@given(seed=seeds, outputs=st.integers(1, 3), extra=st.integers(1, 4))
def test_the_mask_of_a_layer(seed, outputs, extra):
    """M11, M17: 1 for every base channel and the first bits of each row for the others, whatever was asked before: of
    other widths or another dtype."""
    mask = torch.rand(3, 5, generator=gen(seed)) < 0.5
    active = MaskedPass(mask)
    for base, more, dtype in itertools.product({outputs, 2}, {extra, 3}, (torch.float32, torch.bfloat16)):
        found = active.over(base, more, dtype)
        assert found.dtype == dtype and found.shape == (3, base + more)
        for row, bits in zip(found.tolist(), mask.tolist(), strict=True):
            assert row == [1.0] * base + [float(bit) for bit in bits[:more]]


class Block(nn.Module):
    """conv - ReLU - a block that training may recompute in the backward pass - pool - Linear."""

    def __init__(self, recomputed=True):
        super().__init__()
        self.recomputed = recomputed
        self.stem, self.inner = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.other, self.head = nn.Conv2d(3, 3, 1), nn.Linear(3, 4)

    def body(self, x):
        return self.other(self.inner(x).relu())

    def forward(self, x):
        x = self.stem(x).relu()
        recomputed = self.recomputed and self.training
        x = x + (checkpoint(self.body, x, use_reentrant=False) if recomputed else self.body(x))
        return self.head(x.amax(dim=(2, 3)))


def gradients_of_two_passes(net, masks):
    """Gradients, by name, of one loss over two passes, each with its own masks or without."""
    expanded = randomise(expand.expand(net, IMAGE), 1).train()
    x = draw(0, 3, 1, 8, 8, dtype=torch.float64)
    passes = [expanded(x * (i + 1), None if mask is None else rows(mask, expanded, 3)) for i, mask in enumerate(masks)]
    sum((i + 1) * out.square().sum() for i, out in enumerate(passes)).backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in expanded.named_parameters()}


@pytest.mark.parametrize("masks", [(1, 2), (1, None), (None, 1)])
def test_each_pass_is_recomputed_under_its_own_masks(masks):
    """A21, F2: of several passes in one loss, masked and base-only, as in step 3, each is recomputed in the backward
    pass under the masks that it ran with."""
    plain, again = (gradients_of_two_passes(randomise(Block(how), 0).double(), masks) for how in (False, True))
    for name, grad in plain.items():
        assert_close(again[name], grad)


def test_no_mask_is_held_after_a_pass():
    """E2, A21: a mask is held neither after a forward nor after a backward pass, also one that failed."""
    expanded = expand.expand(randomise(Block(), 0), IMAGE).train()
    layers, x = list(expanded.layers().values()), draw(0, 3, 1, 8, 8)
    out = expanded(x, rows(0, expanded, 3))
    assert [layer.active for layer in layers] == [None] * len(layers)
    out.sum().backward()
    assert [layer.active for layer in layers] == [None] * len(layers)
    plain = expanded(x).detach()
    out = expanded(x, rows(0, expanded, 3))
    hook = expanded.layers()["stem"].base.weight.register_hook(lambda grad: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        out.sum().backward()
    hook.remove()
    assert torch.equal(expanded(x).detach(), plain)  # a base-only pass is that of theta_o1 again


# --- Putting layers in place of others --------------------------------------------------------------------------------

def test_swap_keeps_order_and_shares():
    """D1, X11: new modules stand wherever the old ones stood, under every name, in the old order; the root stays."""
    shared = nn.Linear(2, 2)
    root = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared, nn.Linear(2, 1)))
    keys, new = list(root.state_dict()), nn.Linear(2, 2)
    swap(root, {shared: new})
    assert root[0] is new and root[2][0] is new and list(root.state_dict()) == keys
    swap(root, {root: nn.ReLU()})
    assert root[0] is new


# --- Tables of bits ---------------------------------------------------------------------------------------------------

@given(n=st.integers(1, 17), width=st.integers(0, 19), seed=seeds)
def test_rows_by_whatever_indexes_a_tensor(n, width, seed):
    """M13: an index, several, a slice or a mask give what they give of the plain bits, of any width."""
    bits, order = torch.rand(n, width, generator=gen(seed)) < 0.5, torch.randperm(n, generator=gen(seed))
    table = draw_bits(n, width, lambda size: bits)
    for at in (n - 1, -1, torch.tensor(n - 1), order, order.view(1, -1), slice(None, None, 2), order > 2, [0, 0]):
        assert torch.equal(table[at], bits[at])
    assert table.packed.shape == (n, math.ceil(width / 8)) and table.packed.dtype == torch.uint8


@pytest.mark.parametrize("n, width", [(301, 19), (2200, 1000), (3, 2 * BLOCK), (0, 5), (5, 0)])
def test_a_table_is_filled_in_parts(n, width):
    """M16, M3: rows are drawn in order, each once, and no more than BLOCK bits, or one row, are unpacked at a time."""
    asked = []

    def fill(size):
        first = sum(asked)
        asked.append(size)
        numbers = torch.arange(first * width, (first + size) * width).view(size, width)
        return numbers % 7 < 3

    table = draw_bits(n, width, fill)
    assert sum(asked) == n and all(size * width <= max(BLOCK, width) for size in asked)
    assert n * width <= BLOCK or len(asked) > 1
    rows = torch.tensor([0, n // 2, n - 1] if n else [], dtype=torch.int64)
    places = rows[:, None] * width + torch.arange(width)
    assert torch.equal(table[rows], places % 7 < 3)


def test_tables_are_told_apart_as_objects():
    """M1: mask tables are compared and hashed as objects, not by their bits; moving one leaves it and its width."""
    one, same = (etd.mask_table(6, 4, 0.2, seed=0) for _ in range(2))
    assert one == one and one != same and len({one, same}) == 2 and torch.equal(one.packed, same.packed)
    moved = one.to("cpu")
    assert type(moved) is MaskTable and moved.width == 4 and torch.equal(moved[:], one[:])


def test_what_is_there_before_theta_o2_grows():
    """E5: a network that is not expanded yet has masks of no bit and runs as it is."""
    net = small_net(0)
    assert etd.Expanded(net).width == 0 == etd.ExpandedBatchNorm(nn.BatchNorm2d(3)).extra_out
    assert torch.equal(run(etd.Expanded(net).eval(), IMAGE, torch.zeros(2, 0, dtype=torch.bool)), run(net, IMAGE))
