"""Masks, and what etd.py needs to know of layers: a table of bits, layers by kind, how a masked pass goes through.

A table has every example's mask, eight bits to a byte: 1.28 million rows of 512 bits take 82 MB. A masked pass is
ambient: while it lasts every expanded layer holds it as `active`, so that networks need not know of it.
"""

import copy
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

BLOCK = 2**20  # bits that are in memory unpacked at a time while a table is filled


# --- A table of bits --------------------------------------------------------------------------------------------------

@dataclass(frozen=True, eq=False)
class MaskTable:
    """Rows of bits; table[index] is (..., width) bool, for every `index` that a tensor takes."""

    packed: torch.Tensor  # (N, ceil(width / 8)) uint8, the lowest bit first
    width: int

    def __getitem__(self, index) -> torch.Tensor:
        places = torch.arange(8, dtype=torch.uint8, device=self.packed.device)
        bits = self.packed[index][..., None] >> places & 1  # (..., ceil(width / 8), 8)
        return bits.flatten(-2)[..., : self.width].bool()

    def to(self, device) -> "MaskTable":
        """The same table on a device."""
        return replace(self, packed=self.packed.to(device))


def draw_bits(n: int, width: int, draw) -> MaskTable:
    """A table of n rows on the CPU; draw(rows) gives the bits of the next `rows` rows, (rows, width) bool."""
    columns = -(-width // 8)
    packed = torch.zeros((n, columns), dtype=torch.uint8, device="cpu")
    places = torch.arange(8, dtype=torch.uint8, device="cpu")
    for block in packed.split(max(1, BLOCK // max(1, width))):
        bits = F.pad(draw(len(block)), (0, 8 * columns - width))  # (rows, 8 columns)
        block |= (bits.view(len(block), columns, 8).to(torch.uint8) << places).sum(dim=2, dtype=torch.uint8)
    return MaskTable(packed, width)


# --- Layers by kind ---------------------------------------------------------------------------------------------------

class Channels(NamedTuple):
    """The channels of a Conv2d or Linear."""

    inputs: int
    outputs: int
    dim: int  # of the activations in which they lie
    depthwise: bool  # whether each channel has filters of its own
    grouped: bool  # whether groups of channels have, which extra channels do not fit into


def channels_of(layer: nn.Conv2d | nn.Linear) -> Channels:
    """The channels of a layer."""
    if isinstance(layer, nn.Linear):
        return Channels(layer.in_features, layer.out_features, -1, False, False)
    depthwise = 1 < layer.groups == layer.in_channels
    return Channels(layer.in_channels, layer.out_channels, 1, depthwise, layer.groups > 1 and not depthwise)


def initialiser(weight: torch.Tensor, inputs: int, generator: torch.Generator):
    """fresh(rows, columns): weights as torch's default initialiser draws them for a layer of `inputs` input channels.

    Their kernel size, dtype, device and memory format are those of `weight`, (rows, columns, ...).
    """
    bound = (inputs * weight[0, 0].numel()) ** -0.5  # kaiming_uniform with a = sqrt(5): 1 / sqrt(fan-in)
    nhwc = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if nhwc and not weight.is_contiguous() else torch.contiguous_format

    def fresh(rows: int, columns: int) -> nn.Parameter:
        values = torch.rand((rows, columns, *weight.shape[2:]), generator=generator, dtype=torch.float64,
                            device="cpu")
        values = ((2 * values - 1) * bound).to(weight.dtype).to(weight.device)
        return nn.Parameter(values.contiguous(memory_format=layout))

    return fresh


def run_with(base: nn.Module, tensors: dict[str, torch.Tensor], x: torch.Tensor, groups: int = 0) -> torch.Tensor:
    """base(x) with other weights, biases or statistics by name, its own stride, padding, eps; groups: more than its."""
    if groups:
        base = copy.copy(base)
        base.groups += groups
    return torch.func.functional_call(base, tensors, x)


# --- A masked pass ----------------------------------------------------------------------------------------------------

@dataclass(eq=False)
class MaskedPass:
    """What the expanded layers hold while one masked pass lasts; without it (None) the base layers run alone."""

    mask: torch.Tensor  # (B, width) bool, a row per example
    wide: dict[tuple, torch.Tensor] = field(default_factory=dict)  # (outputs, extra, dtype) -> (B, outputs + extra)

    def over(self, outputs: int, extra: int, dtype: torch.dtype) -> torch.Tensor:
        """(B, outputs + extra): 1 for every base channel, the first `extra` bits of each row for the others."""
        key = (outputs, extra, dtype)
        if key not in self.wide:  # layers of the same widths share it
            bits = self.mask[:, :extra]
            self.wide[key] = torch.cat([bits.new_ones((len(bits), outputs)), bits], dim=1).to(dtype)
        return self.wide[key]


def run_pass(net: nn.Module, x: torch.Tensor, active: MaskedPass | None, layers: list) -> torch.Tensor:
    """net(x) while every expanded layer holds `active`; the layers let go of it whatever happens.

    They hold it again while the backward pass goes through this pass: activation checkpointing runs blocks a second
    time there.
    torch's fast path of attention, which reads weights past the layers that hold them, is off in a masked pass.
    """
    def hold(what: MaskedPass | None) -> None:
        for layer in layers:
            layer.active = what

    def enter(grad: torch.Tensor) -> None:
        hold(active)
        torch.autograd.Variable._execution_engine.queue_callback(lambda: hold(None))  # at the end of the backward pass

    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        hold(active)
        torch.backends.mha.set_fastpath_enabled(fast and active is None)
        out = net(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        hold(None)
    if isinstance(out, torch.Tensor) and out.requires_grad:
        out.register_hook(enter)  # of several passes in one loss, the backward pass takes the latest first, each whole
    return out


def swap(root: nn.Module, new: dict[nn.Module, nn.Module]) -> None:
    """Put new[child] wherever child stands below root; the keys of state dicts keep their order."""
    for parent in list(root.modules()):
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]
