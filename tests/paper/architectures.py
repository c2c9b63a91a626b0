"""Small random networks that expand must handle, and their plain wide twins.

    plan = data.draw(plans())
    net, wide = Net(plan), Net(plan, wide=True)        # `wide` has every extra channel built in
    fill_wide(wide, expand.expand(net, example(plan), plan.ratio, plan.layers))
"""

import copy
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import nn

import etd
import expand
from helpers import assert_close, assert_same_state, gen, rows, run, small_net

IMAGE = torch.zeros(2, 1, 8, 8)  # an example for networks of one channel, such as helpers.small_net
SMALL_VIT = dict(channels=1, image_size=8, patch=4, dim=8, depth=2, heads=2, head_dim=4)

ACTIVATIONS = {"celu": lambda: nn.CELU(0.075), "relu": nn.ReLU, "gelu": nn.GELU,
               "inplace": lambda: nn.ReLU(inplace=True)}


@dataclass(frozen=True)
class Block:
    """One convolution with what stands around it; each width is (base, extra)."""

    kind: str  # "post": conv - norm - act; "pre": norm - act - conv; "depthwise": as post, each channel alone
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    kernel: int
    stride: int
    norm: str  # "none", "batch", "plain" (affine=False), "batchwise" (no running statistics) or "cumulative"
    bias: bool
    act: str
    residual: bool
    pool: str  # "none", "max" or "avg"
    padding_mode: str = "zeros"
    dilation: int = 1
    eps: float = 1e-5  # of the norm


@dataclass(frozen=True)
class Plan:
    """A whole network: blocks, then global or no pooling, flatten, maybe a hidden Linear, and the head."""

    channels: int
    size: int
    ratio: float
    blocks: tuple[Block, ...]
    area: int  # pixels of the last map that reach the head: 1 after global pooling
    pool: str  # "max", "avg" or "flat"
    hidden: tuple[int, int] | None
    bias: bool
    classes: int = 3

    @property
    def layers(self):
        """The `layers` argument of expand: None unless the hidden Linear is expanded too."""
        if not self.hidden or not self.hidden[1]:
            return None
        return [f"blocks.{i}.conv" for i in range(len(self.blocks))] + ["hidden"]


class Keeping(nn.Module):
    """small_net that keeps its last output, with the history that torch cannot copy."""

    def __init__(self):
        super().__init__()
        self.net = small_net(0)

    def forward(self, x):
        self.seen = self.net(x)
        return self.seen


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal numbers, drawn in float64 and then rounded to the dtype."""
    return torch.randn(shape, generator=gen(seed), dtype=torch.float64).to(dtype)


def example(plan: Plan, batch: int = 2) -> torch.Tensor:
    """Zeros of the plan's input shape."""
    return torch.zeros(batch, plan.channels, plan.size, plan.size)


@st.composite
def plans(draw, max_depth: int = 4) -> Plan:
    """Networks that expand must handle; residual sums stand only where both sides have equal extra widths."""
    ratio = draw(st.sampled_from([0.0, 0.3, 0.5, 1.0, 1.5, 2.0]))
    channels, size = draw(st.integers(1, 3)), draw(st.sampled_from([5, 8]))
    plan_size, blocks, now = size, [], (channels, 0)
    for _ in range(draw(st.integers(1, max_depth))):
        kind = draw(st.sampled_from(["post", "post", "pre", "depthwise"]))
        if kind == "depthwise" and now[0] > 1:
            times = draw(st.sampled_from([1, 2]))
            outputs = (now[0] * times, now[1] * times)
        else:
            kind = "post" if kind == "depthwise" else kind
            width = now[0] if draw(st.booleans()) else draw(st.integers(1, 9))
            outputs = (width, round(ratio * width))
        residual = outputs == now and draw(st.booleans())
        kernel = draw(st.sampled_from([1, 3]))
        stride = 1 if residual or size < 4 else draw(st.sampled_from([1, 1, 2]))
        size = -(-size // stride)
        pool = draw(st.sampled_from(["none", "none", "max", "avg"])) if size >= 4 else "none"
        padding_mode = draw(st.sampled_from(["zeros"] * 3 + ["reflect", "circular",
                                                             "replicate"])) if size * stride >= 4 else "zeros"
        dilation = 2 if kernel == 3 and size * stride >= 4 and draw(st.integers(0, 4)) == 4 else 1
        norm = draw(st.sampled_from(["none", "batch", "batch", "plain", "batchwise", "cumulative"]))
        eps = draw(st.sampled_from([1e-5, 1e-3, 0.1])) if norm != "none" else 1e-5
        blocks.append(Block(kind, now, outputs, kernel, stride, norm, draw(st.booleans()),
                            draw(st.sampled_from(sorted(ACTIVATIONS))),
                            residual, pool, padding_mode, dilation, eps))
        size, now = size // 2 if pool != "none" else size, outputs
    pool = draw(st.sampled_from(["max", "avg", "flat"]))
    hidden = draw(st.none() | st.integers(1, 6))
    extra = round(ratio * hidden) if hidden and draw(st.booleans()) else 0
    return Plan(channels, plan_size, ratio, tuple(blocks), size * size if pool == "flat" else 1, pool,
                (hidden, extra) if hidden else None, draw(st.booleans()))


def make_norm(kind: str, width: int, eps: float) -> nn.Module:
    """The BatchNorm of a block, or nothing."""
    options = {"batch": {}, "plain": dict(affine=False), "batchwise": dict(track_running_stats=False),
               "cumulative": dict(momentum=None)}
    return nn.Identity() if kind == "none" else nn.BatchNorm2d(width, eps, **options[kind])


class BlockModule(nn.Module):
    """One Block; with wide=True the extra channels are built in."""

    def __init__(self, block: Block, wide: bool):
        super().__init__()
        inputs, outputs = (pair[0] + wide * pair[1] for pair in (block.inputs, block.outputs))
        self.kind, self.residual = block.kind, block.residual
        groups = inputs if block.kind == "depthwise" else 1
        self.conv = nn.Conv2d(inputs, outputs, block.kernel, block.stride, padding=block.kernel // 2 * block.dilation,
                              groups=groups,
                              bias=block.bias, padding_mode=block.padding_mode, dilation=block.dilation)
        self.norm = make_norm(block.norm, inputs if block.kind == "pre" else outputs, block.eps)
        self.act = ACTIVATIONS[block.act]()
        self.pool = {"none": nn.Identity, "max": lambda: nn.MaxPool2d(2), "avg": lambda: nn.AvgPool2d(2)}[block.pool]()

    def forward(self, x):
        if self.kind == "pre":  # what the convolution makes feeds the residual sum and the next block's norm
            y = self.conv(self.act(x.clone() if isinstance(self.norm, nn.Identity) else self.norm(x)))
        else:
            y = self.act(self.norm(self.conv(x)))
        return self.pool(x + y if self.residual else y)


class Net(nn.Module):
    """The network of a plan."""

    def __init__(self, plan: Plan, wide: bool = False):
        super().__init__()
        self.blocks = nn.Sequential(*(BlockModule(block, wide) for block in plan.blocks))
        self.pool = {"max": lambda: nn.AdaptiveMaxPool2d(1), "avg": lambda: nn.AdaptiveAvgPool2d(1),
                     "flat": nn.Identity}[plan.pool]()
        last = plan.blocks[-1].outputs
        inputs = (last[0] + wide * last[1]) * plan.area
        self.hidden = None
        if plan.hidden:
            width = plan.hidden[0] + wide * plan.hidden[1]
            self.hidden = nn.Linear(inputs, width, bias=plan.bias)
            inputs = width
        self.head = nn.Linear(inputs, plan.classes, bias=plan.bias)

    def forward(self, x):
        x = self.pool(self.blocks(x)).flatten(1)
        if self.hidden is not None:
            x = self.hidden(x).relu()
        return self.head(x)


def fill_wide(wide: nn.Module, expanded: nn.Module) -> nn.Module:
    """Write theta_o1 and theta_o2 into the slices of the plain wide network where they belong; returns the network."""
    layers, plain = expanded.layers(), dict(expanded.net.named_modules())
    with torch.no_grad():
        for name, module in wide.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                fill_weight(module, layers.get(name), plain[name])
            elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                fill_norm(module, layers[name])
    return wide


def fill_weight(module, layer, plain) -> None:
    base = plain if layer is None else layer.base
    rows, columns = base.weight.shape[:2]
    module.weight.fill_(float("nan"))  # an entry that no block covers must not pass unseen
    module.weight[:rows, :columns] = base.weight
    if getattr(layer, "to_base", None) is not None:
        module.weight[:rows, columns:] = layer.to_base
    if getattr(layer, "to_extra", None) is not None:
        module.weight[rows:] = layer.to_extra
    if module.bias is not None:
        module.bias[:rows] = base.bias
        if len(module.bias) > rows:
            module.bias[rows:] = layer.extra_bias


def fill_norm(module, layer) -> None:
    for name in ("weight", "bias"):
        if getattr(module, name) is not None:
            getattr(module, name).copy_(torch.cat([getattr(layer.base, name), getattr(layer, f"extra_{name}")]))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        if getattr(module, name) is not None:
            getattr(module, name).copy_(getattr(layer, name))


# --- What every network must keep -------------------------------------------------------------------------------------

def assert_transparent(net, inputs, ratio=1.0, layers=None, seed=0):
    """expanded(x) is net(x) bit for bit in eval and training mode, moves the very same buffers, and drops back to them;
    the network itself stays. Returns what `expand` gave."""
    before, plain = copy.deepcopy(net), copy.deepcopy(net)
    expanded = expand.expand(net, inputs, ratio, layers, gen(seed))
    assert_same_state(net, before)
    x = draw(seed, 3, *inputs.shape[1:], dtype=next(net.parameters()).dtype)
    used = copy.deepcopy(expanded)
    for mode in (False, True, False):
        used.train(mode), plain.train(mode)
        assert torch.equal(run(used, x), run(plain, x))
    assert_same_state(etd.drop(used), plain)
    return expanded


def assert_wide_twin(expanded, wide, x, tolerance=1e-12):
    """Under all-one masks the expanded network is the plain wide one, in both modes, the statistics of norms too."""
    ones = rows(0, expanded, len(x), 1)
    for mode in (False, True, False):
        assert_close(run(expanded.train(mode), x, ones), run(wide.train(mode), x), tolerance)
    for name, module in wide.named_modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.running_mean is not None:
            layer = expanded.layers()[name]
            assert_close(layer.running_mean, module.running_mean, tolerance)
            assert_close(layer.running_var, module.running_var, tolerance)
            assert layer.num_batches_tracked == module.num_batches_tracked
