"""Tests of expand: transparency, shapes, initialisation, random and well-known architectures, refusals (X1-X13).

Each `prop_*` takes the module under test first, so that test_mutants.py can run it on a changed one.
"""

import contextlib
import copy
import ctypes
import gc
import inspect
import math
import pickle
import random
from unittest import mock

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

import etd
import expand
import oracles
from architectures import SPOILERS, Net, Spoiler, example, fill_weight, fill_wide, plans
from helpers import assert_close, assert_same_state, gen, randomise, rows, run, seeds, small_net
from etd import Expanded, ExpandedBatchNorm, ExpandedWeight
from models import build

IMAGE = torch.zeros(2, 1, 8, 8)
ratios = st.sampled_from([0.0, 0.3, 0.5, 1.0, 1.7])


def draw(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=gen(seed), dtype=torch.float64).to(dtype)


def arrays(expanded):
    """The state dict as numpy arrays, for the oracle."""
    return {key.removeprefix("net."): value.double().numpy() for key, value in expanded.state_dict().items()}


def refused(model, inputs, **kwargs) -> str:
    """expand must raise a TypeError that names a module of the network; returns the text."""
    with pytest.raises(TypeError, match=r"^cannot expand ('|the network)") as info:
        expand.expand(model, inputs, **kwargs)
    text = str(info.value)
    if text.startswith("cannot expand '"):
        assert text.split("'")[1] in dict(model.named_modules()), text
    return text


# --- Transparency -----------------------------------------------------------------------------------------------------


def prop_x1(etd, seed, net, inputs, ratio=1.0, layers=None):
    """expanded(x) is net(x) bit for bit, in eval and in training mode, and moves the very same buffers."""
    before, plain = copy.deepcopy(net), copy.deepcopy(net)
    expanded = expand.expand(net, inputs, ratio, layers, gen(seed))
    assert_same_state(net, before)
    x = draw(seed, 3, *inputs.shape[1:], dtype=next(net.parameters()).dtype)
    for mode in (False, True, False):
        expanded.train(mode), plain.train(mode)
        assert torch.equal(run(expanded, x), run(plain, x))
    assert_same_state(etd.drop(expanded), plain)
    return expanded


@given(seed=seeds, width=st.integers(1, 5), ratio=ratios, norm=st.booleans(),
       dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), last=st.booleans())
def test_base_only_is_the_original(seed, width, ratio, norm, dtype, last):
    """X1: base-only output is the original's bit for bit in both modes, any width, dtype and memory format."""
    net = small_net(seed, width=width, norm=norm, dtype=dtype)
    prop_x1(etd, seed, net.to(memory_format=torch.channels_last) if last else net, IMAGE, ratio)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_base_only_is_the_original_on_cuda(dtype, layout):
    """X1, X6: the same on the GPU, in float32 and bf16, in both memory formats; theta_o2 has device, dtype and format
    too."""
    net = randomise(build("resnet9", 0.25, seed=0), 0).to("cuda", dtype, memory_format=layout)
    plain, expanded = copy.deepcopy(net), expand.expand(net, torch.zeros(2, 3, 32, 32))
    x = draw(0, 8, 3, 32, 32, dtype=dtype).cuda().to(memory_format=layout)
    for mode in (False, True):
        assert torch.equal(run(expanded.train(mode), x), run(plain.train(mode), x))
    assert_same_state(etd.drop(expanded), plain)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert torch.equal(run(expanded.eval(), x), run(plain.eval(), x))
        assert run(expanded, x, torch.ones(8, expanded.width, dtype=torch.bool, device="cuda")).isfinite().all()
    assert {(p.device.type, p.dtype) for p in expanded.parameters()} == {("cuda", dtype)}
    for layer in expanded.layers().values():
        if getattr(layer, "to_extra", None) is not None and layer.is_conv:
            assert layer.to_extra.is_contiguous(memory_format=layout)


@given(seed=seeds, ratio=ratios)
def test_base_layers_are_kept(seed, ratio):
    """X2: base weights, biases, BatchNorm buffers and num_batches_tracked are bitwise the original's."""
    net = small_net(seed)
    net.norm1.num_batches_tracked += 7
    expanded = expand.expand(net, IMAGE, ratio)
    bases = {name: layer.base for name, layer in expanded.layers().items()}
    for name, module in net.named_modules():
        if name and not isinstance(module, nn.CELU):
            kept = bases.get(name, dict(expanded.net.named_modules())[name])
            assert type(kept) is type(module)
            assert_same_state(kept, module)


@given(seed=seeds, width=st.integers(1, 5), ratio=ratios, norm=st.booleans(), batch=st.integers(1, 3),
       share=st.sampled_from([0, 0.5, 1]))
def test_masked_pass_equals_the_naive_loop(seed, width, ratio, norm, batch, share):
    """X9, M11, M12: the masked pass is the numpy oracle's, one example and one pixel at a time."""
    expanded = expand.expand(small_net(seed, width=width, norm=norm, dtype=torch.float64), IMAGE, ratio,
                             generator=gen(seed))
    randomise(expanded, seed).eval()  # theta_o2's biases and statistics too
    x, mask = draw(seed, batch, 1, 3, 4), rows(seed, expanded, batch, share)
    expected = oracles.masked_small_net(x.numpy(), mask.numpy(), arrays(expanded), norm)
    # sums in another order, running variances down to 0.1
    assert_close(run(expanded, x, mask), torch.from_numpy(expected), 1e-11)


# --- Shapes and initialisation ----------------------------------------------------------------------------------------


def conv_count(inputs, extra_in, outputs, extra_out, area, bias):
    return area * (outputs * extra_in + extra_out * (inputs + extra_in)) + bias * extra_out


@given(seed=seeds, width=st.integers(1, 9), ratio=ratios)
def test_shapes_and_parameter_count(seed, width, ratio):
    """X3: blocks have the widening rule's shapes, and theta_o2 the closed formula's number of parameters."""
    net, extra = small_net(seed, channels=2, width=width, classes=5), round(ratio * width)
    expanded = expand.expand(net, torch.zeros(2, 2, 8, 8), ratio)
    assert expanded.width == extra
    expected = conv_count(2, 0, width, extra, 9, True) + conv_count(width, extra, width, extra, 9,
                                                                    True) + 4 * extra + 5 * extra
    assert sum(p.numel() for p in expanded.parameters()) - sum(p.numel() for p in net.parameters()) == expected
    layers = expanded.layers()
    if extra:
        assert layers["conv1"].to_extra.shape == (extra, 2, 3, 3) and layers["conv1"].to_base is None
        assert layers["conv2"].to_extra.shape == (extra, width + extra, 3, 3)
        assert layers["conv2"].to_base.shape == (width, extra, 3, 3)
        assert layers["norm2"].running_mean.shape == (width + extra,) and layers["norm2"].extra_weight.shape == (extra,)
        assert layers["head"].to_base.shape == (5, extra) and layers["head"].to_extra is None
        for norm in (layers["norm1"], layers["norm2"]):  # the new entries are those of a new BatchNorm
            assert norm.extra_weight.eq(1).all() and norm.extra_bias.eq(0).all()
            assert torch.equal(norm.running_mean, torch.cat([norm.base.running_mean, torch.zeros(extra)]))
            assert torch.equal(norm.running_var, torch.cat([norm.base.running_var, torch.ones(extra)]))


def test_half_capacity_is_half_the_channels():
    """X3: ResNet-9 at 50 % with ratio 1 has the convolutions, norms and head inputs of the 100 % network."""
    half, full = build("resnet9", 0.5, seed=0), build("resnet9", 1.0, seed=0)
    expanded = expand.expand(half, torch.zeros(2, 3, 32, 32), ratio=1.0)
    assert sum(p.numel() for p in expanded.parameters()) == sum(p.numel() for p in full.parameters())
    wide = dict(full.named_modules())
    for name, layer in expanded.layers().items():
        if isinstance(layer, ExpandedWeight):
            assert 2 * layer.base.weight.shape[0] == wide[name].weight.shape[0] or name == "head"
            assert layer.inputs + layer.extra_in == wide[name].weight.shape[1]


def test_fresh_weights_have_the_wide_fan_in():
    """X4: theta_o2 has mean 0 and the default initialiser's deviation at the wide fan-in, within 5 sd; biases are 0."""
    net = randomise(nn.Sequential(nn.Conv2d(3, 20, 3), nn.Conv2d(20, 24, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
                                  nn.Linear(24, 10)), 0)
    expanded = expand.expand(net, torch.zeros(2, 3, 8, 8), ratio=1.5, generator=gen(1))
    for name, fan_in in (("0", 27), ("1", 50 * 9), ("4", 60)):
        layer, bound = expanded.layers()[name], fan_in**-0.5
        for part in (layer.to_base, layer.to_extra):
            if part is not None:
                w, sd = part.detach().double(), bound / math.sqrt(3)
                assert w.abs().max() <= bound and w.unique().numel() > 0.9 * w.numel()
                assert abs(w.mean()) < 5 * sd / math.sqrt(w.numel())
                # the variance of a uniform's square is (4 / 45) bound^4; 5 sd: error rate 6e-7 a bound, fixed seed
                assert abs((w**2).mean() - sd**2) < 5 * bound**2 * math.sqrt(4 / 45 / w.numel())
        if layer.extra_out:
            assert not layer.extra_bias.any()


@given(seed=seeds)
def test_fresh_weights_depend_on_the_generator_alone(seed):
    """X4: the same generator state gives the same theta_o2, another one another; it is no copy of theta_o1."""
    net = small_net(seed)
    torch.manual_seed(seed)
    first = expand.expand(net, IMAGE, generator=gen(seed))
    torch.manual_seed(seed + 1)
    second, other = expand.expand(net, IMAGE, generator=gen(seed)), expand.expand(net, IMAGE, generator=gen(seed + 1))
    assert_same_state(first, second)
    layer = first.layers()["conv2"]
    assert not torch.equal(layer.to_extra, other.layers()["conv2"].to_extra)
    assert not torch.isin(layer.to_extra.flatten(), layer.base.weight.flatten()).any()
    assert_same_state(expand.expand(net, IMAGE), expand.expand(net, IMAGE, generator=gen(0)))  # the documented default


@given(seed=seeds, ratio=ratios)
def test_original_is_untouched(seed, ratio):
    """X5: neither the original nor the dropped network shares storage with the expanded one, and the original stays."""
    net = small_net(seed)
    before = copy.deepcopy(net)
    expanded = expand.expand(net, IMAGE, ratio)
    dropped = etd.drop(expanded)
    pointers = [{t.data_ptr() for t in n.state_dict().values() if t.numel()} for n in (net, expanded, dropped)]
    assert not (pointers[0] & pointers[1] or pointers[1] & pointers[2] or pointers[0] & pointers[2])
    with torch.no_grad():
        for p in expanded.parameters():
            p.add_(1)
    assert_same_state(net, before)
    assert_same_state(dropped, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for n in (net, expanded, dropped) for m in n.modules())


@given(seed=seeds, dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
       last=st.booleans())
def test_dtype_mode_and_layout_are_kept(seed, dtype, last):
    """X6: dtypes, each module's own mode, requires_grad and memory format are as in the original; theta_o2 follows."""
    net, g = small_net(seed, width=4, dtype=dtype), gen(seed)
    net = net.to(memory_format=torch.channels_last) if last else net
    for module in net.modules():
        module.training = bool(torch.randint(2, (), generator=g))
    for p in net.parameters():
        p.requires_grad_(bool(torch.randint(2, (), generator=g)))
    expanded = expand.expand(net, IMAGE)
    layers, inner = expanded.layers(), dict(expanded.net.named_modules())
    for name, module in net.named_modules():
        assert inner[name].training == module.training, name
        if name in layers:
            assert layers[name].base.training == module.training
    dropped = etd.drop(expanded)
    for (name, a), (_, b) in zip(net.named_parameters(), dropped.named_parameters(), strict=True):
        assert a.requires_grad == b.requires_grad and a.dtype == b.dtype and a.stride() == b.stride(), name
    assert [m.training for m in net.modules()] == [m.training for m in dropped.modules()]
    assert {t.dtype for t in expanded.state_dict().values() if t.is_floating_point()} == {dtype}
    extra = expanded.layers()["conv2"].to_extra
    assert extra.requires_grad and extra.is_contiguous(memory_format=torch.channels_last) == last


def test_the_root_keeps_its_mode():
    """X6: the expanded network of a network in eval mode says that it is in eval mode."""
    assert not expand.expand(small_net(0).eval(), IMAGE).training


def test_mixed_dtypes_are_kept():
    """X6: a float32 head on a bf16 body keeps both dtypes, and theta_o2 takes each layer's own."""
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Conv2d(1, 3, 3, dtype=torch.bfloat16), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.body(x).amax(dim=(2, 3)).to(self.head.weight.dtype))

    expanded = prop_x1(etd, 0, Mixed(), IMAGE)
    assert expanded.layers()["body"].to_extra.dtype == torch.bfloat16
    assert expanded.layers()["head"].to_base.dtype == torch.float32
    assert run(expanded, draw(0, 2, 1, 8, 8, dtype=torch.bfloat16), rows(0, expanded, 2)).dtype == torch.float32


@given(seed=seeds, width=st.integers(1, 4), ratio=st.sampled_from([0.0, 0.1]), norm=st.booleans())
def test_no_extra_width_is_the_identity(seed, width, ratio, norm):
    """X7: with ratio 0, or one that rounds to 0 channels, the masked pass is the base-only pass and no bit exists."""
    expanded = prop_x1(etd, seed, small_net(seed, width=width, norm=norm), IMAGE, ratio)
    expanded = expand.expand(small_net(seed, width=width, norm=norm), IMAGE, ratio).eval()
    x = draw(seed, 3, 1, 8, 8, dtype=torch.float32)
    assert expanded.width == 0 and torch.equal(run(expanded, x, torch.zeros(3, 0, dtype=torch.bool)), run(expanded, x))
    assert not any(isinstance(layer, ExpandedWeight) for layer in expanded.layers().values())


def theta_o2(expanded):
    """Parameters that are not the base layers', by name."""
    return {name: p for name, p in expanded.named_parameters()
            if name.rsplit(".", 1)[-1] in ("to_base", "to_extra", "extra_weight", "extra_bias")}


@given(seed=seeds, ratio=ratios, norm=st.booleans(), batch=st.integers(1, 3))
def test_three_ways_to_turn_theta_o2_off_agree(seed, ratio, norm, batch):
    """X8: zero mask, theta_o2's weights zeroed, and the original network give one output."""
    net = small_net(seed, norm=norm, dtype=torch.float64)
    expanded = expand.expand(net, IMAGE, ratio).eval()
    x = draw(seed, batch, 1, 8, 8)
    off, original = run(expanded, x, rows(seed, expanded, batch, 0)), run(net.eval(), x)
    with torch.no_grad():
        for p in theta_o2(expanded).values():
            p.zero_()
    assert_close(off, original)
    assert_close(run(expanded, x, rows(seed, expanded, batch, 1)), original)


# --- Random architectures ---------------------------------------------------------------------------------------------


def prop_x9(etd, seed, plan):
    """Under all-one masks the expanded network is the plain wider one, in eval and training mode, its statistics
    too."""
    net = randomise(Net(plan), seed).double()
    expanded = expand.expand(net, example(plan), plan.ratio, plan.layers, gen(seed))
    randomise(expanded, seed + 1)
    wide = fill_wide(Net(plan, wide=True).double(), expanded)
    x = draw(seed, 4, plan.channels, plan.size, plan.size)
    ones = torch.ones(4, expanded.width, dtype=torch.bool)
    for mode in (False, True, False):
        got, expected = run(expanded.train(mode), x, ones), run(wide.train(mode), x)
        # 1x1 maps of four examples: BatchNorm by batch statistics can divide by small deviations
        assert_close(got, expected, 1e-10)
    for name, module in wide.named_modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            layer = expanded.layers()[name]
            assert_close(layer.running_mean, module.running_mean, 1e-10), assert_close(layer.running_var,
                module.running_var, 1e-10)
            assert layer.num_batches_tracked == module.num_batches_tracked


@given(seed=seeds, plan=plans())
def test_random_networks_expand_and_drop_back(seed, plan):
    """X10, X1, X8, D1: any network of the family expands, runs base-only bit for bit, and drops back."""
    net = randomise(Net(plan), seed).double()
    expanded = prop_x1(etd, seed, net, example(plan), plan.ratio, plan.layers)
    assert_same_state(etd.drop(expand.expand(net, example(plan), plan.ratio, plan.layers)), net)
    widths = [b.outputs[1] for b in plan.blocks] + ([plan.hidden[1]] if plan.hidden else [])
    assert expanded.width == max(widths)  # no layer is skipped
    for i, block in enumerate(plan.blocks):
        layer = expanded.layers().get(f"blocks.{i}.conv")
        found = (layer.extra_in, layer.extra_out) if layer is not None else (0, 0)
        assert found == (block.inputs[1], block.outputs[1])
    x, zero = draw(seed, 3, plan.channels, plan.size, plan.size), torch.zeros(3, expanded.width, dtype=torch.bool)
    fresh = expand.expand(net, example(plan), plan.ratio, plan.layers).eval()
    # eval mode with running statistics; batchwise norms divide by deviations
    assert_close(run(fresh, x, zero), run(net.eval(), x), 1e-10)


@given(seed=seeds, plan=plans())
def test_random_networks_equal_their_wide_twin(seed, plan):
    """X9: all-one masks give the plain wider network, whose weights are put together in the test."""
    prop_x9(etd, seed, plan)


@given(seed=seeds, plan=plans(max_depth=3))
def test_random_networks_keep_examples_apart(seed, plan):
    """F10, M11: under random masks each example's output is the one it has alone (eval mode, running statistics)."""
    net = randomise(Net(plan), seed).double()
    expanded = expand.expand(net, example(plan), plan.ratio, plan.layers).eval()
    x, mask = draw(seed, 3, plan.channels, plan.size, plan.size), rows(seed, expanded, 3)
    together = run(expanded, x, mask)
    if not any(block.norm == "batchwise" for block in plan.blocks):
        alone = torch.cat([run(expanded, x[i : i + 1], mask[i : i + 1]) for i in range(3)])
        assert_close(together, alone, 1e-11)
    off = run(expanded, x, mask.new_zeros(mask.shape))  # a bit that is off is off whatever the weights behind it
    with torch.no_grad():
        for p in theta_o2(expanded).values():
            p.mul_(3)
    assert_close(run(expanded, x, mask.new_zeros(mask.shape)), off, 1e-10)


@given(kind=st.sampled_from(SPOILERS), width=st.sampled_from([4, 6, 8]), ratio=st.sampled_from([0.5, 1.0, 2.0]),
       seed=seeds)
def test_networks_that_mix_channels_are_refused(kind, width, ratio, seed):
    """X10: concatenation, grouped convolution, shuffling, slicing, norms over channels and maps of 0 to another value
    raise."""
    refused(randomise(Spoiler(kind, width), seed), IMAGE, ratio=ratio)


@pytest.mark.parametrize("kind", SPOILERS)
def test_every_kind_of_mixing_is_refused(kind):
    """X10: the same, each kind for certain."""
    text = refused(randomise(Spoiler(kind, 4), 0), IMAGE)
    if kind in ("grouped", "groupnorm", "layernorm", "instancenorm", "conv1d", "transposed"):
        assert "'inner'" in text, text
    elif kind == "slice":
        assert "'first'" in text and "no output" in text, text
    else:  # 'first' and 'other' run before and keep their outputs; 'head' runs after
        assert text.startswith(LEAKS.format("'last'")), text


class Flip(nn.Module):
    """Reverses the channels, so that base and extra ones change places."""

    def forward(self, x):
        return x.flip(1)


class Times(nn.Module):
    """Multiplies by a number."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


LEAKS = "cannot expand {}: with every mask at 0 its base outputs still change"


def chain(*between, width=3, bias=True):
    """conv '0' - the given modules '1', '2', ... - conv - pool - Linear; the weights are the same at every call."""
    net = nn.Sequential(nn.Conv2d(1, width, 3), *between, nn.Conv2d(width, width, 3, bias=bias),
                        nn.AdaptiveMaxPool2d(1),
                        nn.Flatten(), nn.Linear(width, 2, bias=bias))
    return randomise(net, 0)


@pytest.mark.parametrize("mix", [Flip(), nn.Softmax(dim=1)], ids=["flip", "softmax"])
@pytest.mark.parametrize("place", range(4))
def test_the_layer_that_a_leak_reaches_first_is_named(mix, place):
    """X10: of several convolutions and norms, the message names the one whose own outputs change first, early or
    late."""
    layers = {"first": nn.Conv2d(1, 3, 3, padding=1), "second": nn.Conv2d(3, 4, 3, padding=1),
              "norm": nn.BatchNorm2d(4),
              "third": nn.Conv2d(4, 3, 1), "head": nn.Linear(3, 2)}
    net = nn.Sequential()
    for i, (name, layer) in enumerate(layers.items()):
        if name == "head":
            net.add_module("pool", nn.AdaptiveAvgPool2d(1)), net.add_module("flat", nn.Flatten())
        net.add_module(name, layer)
        if i == place:
            net.add_module("mix", mix)
    assert refused(randomise(net, 0), IMAGE).startswith(LEAKS.format(repr(list(layers)[place + 1])))


def test_a_norm_masks_what_an_activation_lifts():
    """X8, X10: a Sigmoid turns a masked 0 into a half, but the mask of the BatchNorm behind it turns that off: no
    leak."""
    net = chain(nn.Sigmoid(), nn.BatchNorm2d(3)).double()
    fresh, x = expand.expand(net, IMAGE).eval(), draw(0, 4, 1, 8, 8)
    assert fresh.width == 3
    assert_close(run(fresh, x, rows(0, fresh, 4, 0)), run(net.eval(), x))


class Beside(nn.Module):
    """The mean over all channels goes to the logits past the last layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 3), nn.Linear(3, 2)

    def forward(self, x):
        x = self.conv(x).relu().amax(dim=(2, 3))
        return self.head(x) + x.mean(dim=1, keepdim=True)


def test_a_leak_past_every_layer_is_the_networks():
    """X10: where each layer keeps its base outputs and the logits alone change, the message names the network and no
    layer."""
    assert refused(randomise(Beside(), 0), IMAGE).startswith(LEAKS.format("the network"))


# --- How strict the self check is -------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [1e3, 1e5, 1e7])
def test_a_small_leak_is_refused(beta):
    """X10: Softplus(beta) turns a masked 0 into log(2) / beta, 7e-4 to 7e-8: far from rounding in float64, so a
    leak."""
    assert refused(chain(nn.Softplus(beta)), IMAGE).startswith(LEAKS.format("'2'"))


def hidden_by_running_statistics():
    """In eval mode the running mean shuts every ReLU, so nothing is left to leak; a training pass opens them."""
    net = chain(nn.BatchNorm2d(3), nn.ReLU(), Flip()).eval()
    net[1].running_mean.fill_(1e3)
    return net


def hidden_by_a_norm():
    """BatchNorm starts with weight 0, as the last one of a residual branch often does."""
    net = chain(nn.BatchNorm2d(3), nn.ReLU(), Flip())
    nn.init.zeros_(net[1].weight), nn.init.zeros_(net[1].bias)
    return net


def hidden_by_a_convolution():
    """The convolution before the leak starts at 0."""
    net = chain(nn.Conv2d(3, 3, 3), Flip())
    nn.init.zeros_(net[1].weight), nn.init.zeros_(net[1].bias)
    return net


def hidden_by_its_size():
    """After the leak every output is near 1e-10, and so is what leaks."""
    return chain(Flip(), Times(1e-10), bias=False)


HIDDEN = {"running statistics": (hidden_by_running_statistics, "'4'"), "norm": (hidden_by_a_norm, "'4'"),
          "convolution": (hidden_by_a_convolution, "'3'"), "size": (hidden_by_its_size, "'3'")}


@pytest.mark.parametrize("case", HIDDEN)
def test_a_hidden_leak_is_refused(case):
    """X10: a leak that the network's present weights, statistics or scale hide is refused: training would bring it
    out."""
    make, name = HIDDEN[case]
    net = make()
    assert refused(net, IMAGE).startswith(LEAKS.format(name))


@pytest.mark.parametrize("width, depth", [(1, 2), (1, 6), (3, 5), (3, 24)])
def test_a_leak_behind_shut_relus_is_refused(width, depth):
    """X10: where random weights let ReLU after ReLU shut every signal off, a positive draw opens them and shows the
    leak."""
    body = [part for _ in range(depth) for part in (nn.Conv2d(width, width, 1, bias=False), nn.ReLU())]
    net = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.ReLU(), *body, Flip(),
                        nn.Conv2d(width, width, 1, bias=False), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
                        nn.Linear(width, 2, bias=False))
    assert refused(net, IMAGE).startswith(LEAKS.format(repr(str(len(body) + 3))))


def test_hidden_leaks_are_hidden():
    """X10: the networks of the test before change by less than 1e-8 when, as they are, their channels change places."""
    x = draw(0, 4, 1, 8, 8)
    for make, _ in HIDDEN.values():
        net = make().double().eval()
        straight = copy.deepcopy(net)
        straight[[isinstance(m, Flip) for m in net].index(True)] = nn.Identity()
        assert (run(net, x) - run(straight, x)).abs().max() < 1e-8


@pytest.mark.parametrize("factor", [1e-12, 1e-6, 1e6, 1e12])
def test_the_scale_of_a_network_is_no_leak(factor):
    """X10, X1: rounding grows with the outputs: a network whose signals are large or small expands like any other."""
    assert prop_x1(etd, 0, chain(nn.ReLU(), Times(factor), width=9), IMAGE).width == 9


class PreActivation(nn.Module):
    """A pre-activation residual network: what a convolution makes feeds the sum and, through it, the next norm."""

    def __init__(self, width=3, aliased=False):
        super().__init__()
        self.stem, self.head, self.aliased = nn.Conv2d(1, width, 3, padding=1), nn.Linear(width, 2), aliased
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            if self.aliased:  # the norm reads the very tensor that the convolution made
                y = conv(x)
                x = y + norm(y).relu()
            else:
                x = x + conv(norm(x).relu())
        return self.head(x.amax(dim=(2, 3)))


@pytest.mark.parametrize("aliased", [False, True])
def test_pre_activation_residuals_leak_nothing(aliased):
    """X8, X10: where a convolution feeds a BatchNorm and a sum, it is masked itself; no bit that is off reaches an
    output."""
    net = randomise(PreActivation(aliased=aliased), 3).double()
    expanded = expand.expand(net, IMAGE)
    x = draw(1, 5, 1, 8, 8)
    # one training pass through masks only, so that the own statistics stay the base's afterwards
    for mode in (True, False):
        plain = run(copy.deepcopy(net).train(mode), x)
        again = copy.deepcopy(expanded).train(mode)
        assert_close(run(again, x, rows(0, again, 5, 0)), plain)
    randomise(expanded, 4).eval()
    mask = rows(0, expanded, 5)
    mask[:, 1] = False
    before = run(expanded, x, mask)
    with torch.no_grad():  # channel 1 is off everywhere: what it computes and where it goes changes nothing
        for layer in expanded.layers().values():
            if isinstance(layer, ExpandedWeight):
                for part, dim, start in (("to_base", 1, 0), ("to_extra", 1, layer.inputs), ("to_extra", 0, 0),
                                         ("extra_bias", 0, 0)):
                    p = getattr(layer, part)
                    if p is not None and p.shape[dim] > start + 1:
                        p.select(dim, start + 1).fill_(1e3)
            else:
                layer.extra_weight[1], layer.extra_bias[1] = 1e3, -1e3
    assert_close(run(expanded, x, mask), before)


# --- Layers of many kinds ---------------------------------------------------------------------------------------------


def convolution_cases():
    """Convolutions with unusual settings, as the second of two."""
    return {
        "reflect": dict(padding=1, padding_mode="reflect"), "circular": dict(padding=2, padding_mode="circular"),
        "replicate": dict(padding=1, padding_mode="replicate", bias=False), "dilated": dict(padding=2, dilation=2),
        "same": dict(padding="same"), "same reflect": dict(padding="same", padding_mode="reflect", dilation=2),
        "valid": dict(padding="valid"),
        "oblong": dict(padding=(0, 2), stride=(2, 1)), "depthwise": dict(padding=1, groups=4),
        "multiplier": dict(padding=1, groups=4, out=8),
        "multiplier reflect": dict(padding=1, groups=4, out=12, padding_mode="reflect", bias=False),
    }


@pytest.mark.parametrize("case", convolution_cases())
def test_convolution_settings(case):
    """X9, X10: padding modes, dilation, "same", strides and depthwise multipliers act on the wide layer as on the
    base's."""
    more = convolution_cases()[case]
    out, depthwise = more.pop("out", 4), "groups" in more

    def make(scale):
        kwargs = {**more, **({"groups": 4 * scale} if depthwise else {})}
        return nn.Sequential(nn.Conv2d(1, 4 * scale, 3, padding=1), nn.Conv2d(4 * scale, out * scale, 3, **kwargs),
                             nn.CELU(),
                             nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(out * scale, 2)).double()

    expanded = prop_x1(etd, 1, randomise(make(1), 1), IMAGE)
    wide, x = fill_wide(make(2), randomise(expanded, 2)), draw(1, 3, 1, 8, 8)
    assert expanded.width == out
    assert_close(run(expanded.eval(), x, rows(0, expanded, 3, 1)), run(wide.eval(), x))


NORMS = {"plain": dict(affine=False), "batchwise": dict(track_running_stats=False), "cumulative": dict(momentum=None),
         "bare": dict(affine=False, track_running_stats=False), "still": dict(momentum=0.0),
         "quick": dict(momentum=0.3),
         "eps": dict(eps=1e-3), "large eps": dict(eps=0.1), "batchwise eps": dict(eps=0.1, track_running_stats=False)}


@pytest.mark.parametrize("kind", NORMS)
def test_batchnorm_settings(kind):
    """X9, X6: affine=False, no running statistics, eps and momentum act as in the wide network, over several
    batches."""
    def make(scale):
        return nn.Sequential(nn.Conv2d(1, 3 * scale, 3), nn.BatchNorm2d(3 * scale, **NORMS[kind]), nn.ReLU(),
                             nn.AdaptiveMaxPool2d(1),
                             nn.Flatten(), nn.Linear(3 * scale, 2)).double()

    expanded = prop_x1(etd, 1, randomise(make(1), 1), IMAGE)
    wide = fill_wide(make(2), randomise(expanded, 2))
    for i in range(3):
        x = draw(i, 4, 1, 8, 8)
        for mode in (True, False):
            assert_close(run(expanded.train(mode), x, rows(0, expanded, 4, 1)), run(wide.train(mode), x))


@pytest.mark.parametrize("momentum", [None, 0.0, 0.1, 0.3, 1.0])
def test_masked_statistics_have_the_norms_momentum(momentum):
    """X9, D7: over masked passes the own statistics of base channels move as the norm itself would, at any momentum."""
    net = randomise(nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, momentum=momentum), nn.ReLU(),
                                  nn.AdaptiveMaxPool2d(1),
                                  nn.Flatten(), nn.Linear(3, 2)), 0).double()
    expanded, plain = expand.expand(net, IMAGE).train(), copy.deepcopy(net).train()
    for i in range(3):
        x = draw(i, 4, 1, 8, 8)
        run(expanded, x, rows(i, expanded, 4)), run(plain, x)
        norm = expanded.layers()["1"]
        assert norm.num_batches_tracked == plain[1].num_batches_tracked == i + 1
        assert_close(norm.running_mean[:3], plain[1].running_mean), assert_close(norm.running_var[:3],
            plain[1].running_var)


@pytest.mark.skipif("bias" not in inspect.signature(nn.BatchNorm2d).parameters, reason="not in this torch")
def test_batchnorm_without_bias():
    """X10: torch's BatchNorm2d(bias=False) has a weight alone, and expands like any other."""
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, bias=False), nn.ReLU(), nn.AdaptiveMaxPool2d(1),
                        nn.Flatten(),
                        nn.Linear(3, 2))
    prop_x1(etd, 0, randomise(net, 0), IMAGE)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_inside_keeps_working(training):
    """X1, X10: Dropout and Dropout2d run on base and extra channels; base-only draws what the original draws."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout2d(0.5), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5),
                        nn.AdaptiveMaxPool2d(1),
                        nn.Flatten(), nn.Linear(4, 2))
    expanded, x = expand.expand(randomise(net, 0), IMAGE).train(training), draw(0, 4, 1, 8, 8, dtype=torch.float32)
    torch.manual_seed(3)
    first = run(expanded, x)
    torch.manual_seed(3)
    assert torch.equal(first, run(net.train(training), x))
    assert run(expanded, x, rows(0, expanded, 4)).isfinite().all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_alpha_dropout_leaks_nothing(kind, training):
    """F2, X10: both kinds of AlphaDropout turn a masked 0 into another value in training mode; they are named and
    refused."""
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.SELU(), kind(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(3, 2))
    assert refused(net.train(training), IMAGE).startswith(f"cannot expand '2': {kind.__name__} ")


class Shared(nn.Module):
    """One convolution and one norm run three times, and stand under a second name."""

    def __init__(self, width=3):
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, width, 3,
            padding=1), nn.BatchNorm2d(width)
        self.alias, self.head = nn.ModuleList([self.conv, self.norm]), nn.Linear(width, 2)

    def forward(self, x):
        x = self.stem(x)
        for i in range(3):
            x = x + (self.norm(self.conv(x)) if i < 2 else self.alias[0](x)).relu()
        return self.head(x.amax(dim=(2, 3)))


def test_shared_modules_stay_shared():
    """X11: a module under two names is wrapped once, keeps both names, and drops back to one module."""
    expanded = prop_x1(etd, 2, randomise(Shared(), 2).double(), IMAGE)
    assert expanded.net.alias[0] is expanded.net.conv and expanded.net.alias[1] is expanded.net.norm
    dropped = etd.drop(expanded)
    assert dropped.alias[0] is dropped.conv and dropped.alias[1] is dropped.norm
    fresh, x = expand.expand(randomise(Shared(), 2).double(), IMAGE).eval(), draw(0, 3, 1, 8, 8)
    assert_close(run(fresh, x, rows(0, fresh, 3, 0)), run(randomise(Shared(), 2).double().eval(), x))
    wide = fill_wide(Shared(6).double(), fresh)
    assert_close(run(fresh, x, rows(0, fresh, 3, 1)), run(wide.eval(), x))


def test_tied_parameters_stay_tied():
    """X11: two layers with one weight still have one after expand and after drop; the optimizer sees it once."""
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1),
                        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    net[3].weight = net[1].weight
    expanded = prop_x1(etd, 0, net, IMAGE)
    layers, dropped = expanded.layers(), etd.drop(expanded)
    assert layers["1"].base.weight is layers["3"].base.weight and dropped[1].weight is dropped[3].weight
    assert layers["1"].to_extra is not layers["3"].to_extra
    assert len({id(p) for p in expanded.parameters()}) == len(list(expanded.parameters()))


def test_a_shared_module_that_cannot_fit_both_places_is_refused():
    """X11: one convolution that meets extra channels once and none the other time raises, and is named."""
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(2, 2)

        def forward(self, x):
            return self.head(self.twice(self.twice(x).relu()).amax(dim=(2, 3)))

    assert "'twice'" in refused(Twice(), torch.zeros(2, 2, 8, 8))


@pytest.mark.parametrize("first", ["none", "some"])
def test_a_shared_module_meets_more_or_fewer_extra_channels(first):
    """X10, X11: whichever of its places comes first, the message says what is wrong with a shared module, and its
    name."""
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.both, self.head = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Linear(2, 2)

        def forward(self, x):
            inputs = [x, self.stem(x)] if first == "none" else [self.stem(x), x]
            return self.head(sum(self.both(one) for one in inputs).amax(dim=(2, 3)))

    assert "'both': it runs twice with different numbers of extra channels" in refused(Both(), torch.zeros(2, 2, 8, 8))


def test_logits_of_a_convolution():
    """X10, X12: a network whose logits a Conv2d makes is refused with the two shapes; without that layer it expands."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    text = refused(net, IMAGE)
    assert f"it gives ({len(IMAGE)}, 6) instead of ({len(IMAGE)}, 3); name the layers to expand" in text
    assert expand.expand(net, IMAGE, layers=["0"]).width == 4


def prop_x12(etd, seed):
    """The head has no extra output: logits have the original's shape, and no mask stands on the head's output."""
    expanded = expand.expand(small_net(seed, classes=5), IMAGE)
    head = expanded.layers()["head"]
    assert head.extra_out == 0 and head.to_extra is None and head.extra_bias is None
    x = draw(seed, 4, 1, 8, 8, dtype=torch.float32)
    seen = []
    hook = head.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    out = run(expanded, x, rows(seed, expanded, 4))
    hook.remove()
    wide = torch.cat([head.base.weight, head.to_base], dim=1)  # (5, inputs + extra): nothing behind it is masked
    assert out.shape == (4, 5)
    assert_close(out, nn.functional.linear(seen[0], wide, head.base.bias), 1e-5)


@given(seed=seeds)
def test_no_mask_touches_a_logit(seed):
    """X12: the last Linear gives no extra output and no masked one."""
    prop_x12(etd, seed)


def vit(seed, **more):
    return randomise(build("vit", channels=1, image_size=8, patch=4, dim=8, depth=2, heads=2, head_dim=4, hidden=6,
                           **more), seed).double()


@given(seed=seeds, ratio=ratios)
def test_vit_blocks(seed, ratio):
    """X13, X1, X8, X9: the ViT's feed-forward layers expand; nothing but hidden units is added."""
    net = vit(seed)
    expanded = prop_x1(etd, seed, net, IMAGE, ratio)
    assert expanded.width == round(6 * ratio)
    assert set(expanded.layers()) == ({f"ff.{i}.{j}" for i in range(2) for j in (1, 3)} if expanded.width else set())
    x, fresh = draw(seed, 3, 1, 8, 8), expand.expand(net, IMAGE, ratio).eval()
    assert_close(run(fresh, x, rows(seed, fresh, 3, 0)), run(net.eval(), x))
    wide = build("vit", channels=1, image_size=8, patch=4, dim=8, depth=2, heads=2, head_dim=4,
                 hidden=6 + expanded.width).double()
    shapes = {key: value.shape for key, value in wide.state_dict().items()}
    wide.load_state_dict({key: value for key, value in net.state_dict().items() if value.shape == shapes[key]},
                         strict=False)
    fill_wide(wide.ff, FakeExpanded(fresh))
    assert_close(run(fresh, x, rows(seed, fresh, 3, 1)), run(wide.eval(), x))


class FakeExpanded:
    """The ff list of an expanded ViT, as fill_wide reads an expanded network."""

    def __init__(self, expanded):
        self.net = expanded.net.ff
        self.found = {name.removeprefix("ff."): layer for name, layer in expanded.layers().items()}

    def layers(self):
        return self.found


class Attentive(nn.Module):
    """nn.MultiheadAttention over the pixels of a convolution's output, whose feed-forward layer is expanded."""

    def __init__(self, dim=4):
        super().__init__()
        self.conv, self.attention = nn.Conv2d(1, dim, 4, stride=4), nn.MultiheadAttention(dim, 2, batch_first=True)
        self.up, self.down, self.head = nn.Linear(dim, 5), nn.Linear(5, dim), nn.Linear(dim, 2)

    def forward(self, x):
        x = self.conv(x).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x)[0]
        return self.head((x + self.down(self.up(x).relu())).mean(1))


@pytest.mark.parametrize("mode", [True, False])
def test_multihead_attention_is_not_broken(mode):
    """X13: a network with nn.MultiheadAttention works where its feed-forward layer is named, and is refused where it
    gets channels."""
    net = randomise(Attentive(), 0)
    expanded = prop_x1(etd, 0, net, IMAGE, layers=["up"])
    x = draw(0, 3, 1, 8, 8, dtype=torch.float32)
    with torch.no_grad():
        quick = expanded.train(mode)(x, torch.ones(3, 5, dtype=torch.bool))
    slow = expanded(x, torch.ones(3, 5, dtype=torch.bool)).detach()
    assert_close(quick, slow, 1e-5)  # float32, another kernel without gradients
    assert "'attention'" in refused(net, IMAGE)


class Encoder(nn.Module):
    """torch's own encoder layer, which in eval mode without gradients reads weights instead of calling its Linears."""

    def __init__(self, batch_first=True, tokens=6):
        super().__init__()
        self.batch_first = batch_first
        self.project, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=batch_first)

    def forward(self, x):
        x = self.project(x)
        return self.head(self.encoder(x).mean(1) if self.batch_first else self.encoder(x.transpose(0, 1)).mean(0))


def test_fast_path_of_the_encoder_layer_is_not_taken_silently():
    """X13, X10: nn.TransformerEncoderLayer is refused, or runs theta_o2 with and without gradients alike."""
    inputs = torch.zeros(2, 6, 8)
    try:
        expanded = expand.expand(randomise(Encoder(), 0), inputs, layers=["encoder.linear1"]).eval()
    except TypeError as error:
        assert str(error).startswith("cannot expand")
    else:
        x, mask = draw(0, 3, 6, 8, dtype=torch.float32), torch.ones(3, expanded.width, dtype=torch.bool)
        slow, quick = expanded(x, mask).detach(), run(expanded, x, mask)
        assert_close(quick, slow, 1e-5)  # float32


class BatchSecond(nn.Module):
    """Runs a Linear on (1, B, C): its first axis is not the batch."""

    def __init__(self):
        super().__init__()
        self.stem, self.up, self.head = nn.Linear(6, 3), nn.Linear(3, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.head(self.up(self.stem(x)[None]).relu())[0]


class Reversed(BatchSecond):
    """Runs a Linear on the batch in reversed order."""

    def forward(self, x):
        return self.head(self.up(self.stem(x).flip(0)).relu()).flip(0)


@pytest.mark.parametrize("kind", [BatchSecond, Reversed])
def test_a_batch_in_another_place_is_refused_or_masked_rightly(kind):
    """F10, X10: where the first axis is not the batch as it came, expand refuses, or each example still meets its own
    row."""
    try:
        expanded = expand.expand(randomise(kind(), 0).double(), torch.zeros(2, 6), layers=["up"]).eval()
    except TypeError as error:
        assert str(error).startswith("cannot expand")
    else:
        x, mask = draw(0, 3, 6), torch.tensor([[0] * 5, [1] * 5, [0, 1, 0, 1, 0]], dtype=torch.bool)
        alone = torch.cat([run(expanded, x[i : i + 1], mask[i : i + 1]) for i in range(3)])
        assert_close(run(expanded, x, mask), alone)


@pytest.mark.parametrize("first", [True, False])
def test_examples_that_meet_a_neighbour_are_refused(first):
    """X10: an example that the first one reaches is refused where that one alone has its mask on, so that all others
    change and it does not; one that the last one reaches, where it alone changes."""
    class Meets(BatchSecond):
        def forward(self, x):
            h = self.up(self.stem(x)).relu()
            return self.head(h + (h[:1] if first else h[-1:]))

    text = refused(randomise(Meets(), 0).double(), torch.zeros(2, 6), layers=["up"])
    assert "examples do not meet their own masks" in text


class SequenceFirst(nn.Module):
    """Two tokens on the first axis: as many as the dry run has examples."""

    def __init__(self):
        super().__init__()
        self.stem, self.up, self.head = nn.Linear(6, 8), nn.Linear(4, 5), nn.Linear(5, 4)

    def forward(self, x):
        x = self.stem(x).unflatten(1, (2, 4)).transpose(0, 1)  # (2, B, 4)
        return self.head(self.up(x).relu()).mean(0)


class Folded(nn.Module):
    """Two crops of each image as examples of their own: a batch twice as long inside."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(3, 4)

    def forward(self, x):
        x = self.conv(x.reshape(-1, 1, 4, 8)).relu().amax(dim=(2, 3))
        return self.head(x).unflatten(0, (-1, 2)).mean(1)


def test_longer_batches_inside_are_refused():
    """X10: a mask row a example cannot serve a batch that is longer inside."""
    refused(Folded(), IMAGE)


class Checkpointed(nn.Module):
    """Recomputes a block in the backward pass, when no mask is held any more."""

    def __init__(self):
        super().__init__()
        self.stem, self.up, self.down, self.head = nn.Linear(6, 4), nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + checkpoint(lambda x: self.down(self.up(x).relu()), x, use_reentrant=False))


class Undecided(nn.Module):
    """Gives classes instead of logits: no gradient comes back from them."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.conv(x).relu().amax(dim=(2, 3))).argmax(dim=1, keepdim=True).double()


SELF_CHECKS = {
    "one example": (Folded, IMAGE[:1], None), "as many tokens as examples": (SequenceFirst, torch.zeros(2, 6), ["up"]),
    "classes": (Undecided, IMAGE, None),
}


@pytest.mark.parametrize("case", SELF_CHECKS)
def test_errors_in_the_self_check_name_the_module(case):
    """X10: whatever fails inside expand is a TypeError that names a module, also when only the self check meets it."""
    make, inputs, layers = SELF_CHECKS[case]
    refused(make(), inputs, layers=layers)


def test_a_network_that_casts_its_input_expands_or_is_refused():
    """X10: x.float() at the entrance, as for uint8 images, is handled, or the refusal is a TypeError that says so."""
    try:
        prop_x1(etd, 0, Casting(), IMAGE)
    except TypeError as error:
        assert str(error).startswith("cannot expand")


def test_an_empty_parameter_is_no_obstacle():
    """X10: a parameter without entries, of shape (0, 3), changes nothing."""
    net = small_net(0)
    net.register_parameter("spare", nn.Parameter(torch.zeros(0, 3)))
    prop_x1(etd, 0, net, IMAGE)


@pytest.mark.parametrize("layer", ["conv2", "norm1", "head"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_are_refused(kind, layer):
    """X10: a masked pass calls no wrapped layer's base, so none of its hooks would run; such a layer is named and
    refused."""
    net = small_net(0)
    getattr(net.get_submodule(layer), f"register_{kind}_hook")(lambda *args: None)
    assert refused(net, IMAGE).startswith(f"cannot expand {layer!r}: it has hooks")


class Casting(nn.Module):
    """Casts its input to float32, as networks that take uint8 images do."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.conv(x.float()).amax(dim=(2, 3)))


# --- Modes of use -----------------------------------------------------------------------------------------------------


def test_expand_under_no_grad():
    """X10: expand gives the same network when the caller has switched gradients off."""
    with torch.no_grad():
        expanded = expand.expand(small_net(0), IMAGE)
    assert_same_state(expanded, expand.expand(small_net(0), IMAGE))


def test_wrong_example_names_a_module_of_the_network():
    """X10: an example that the network itself cannot take is refused by the name of a module that the network has."""
    refused(small_net(0), torch.zeros(2, 5, 8, 8))


class WithGrouped(nn.Module):
    """A grouped convolution that no extra channel reaches, before a layer that can be expanded."""

    def __init__(self):
        super().__init__()
        self.stem, self.grouped, self.conv = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 3, 1)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.conv(self.grouped(self.stem(x)).relu()).amax(dim=(2, 3)))


@pytest.mark.parametrize("kwargs", [dict(layers=["conv"]), dict(ratio=0.0)])
def test_grouped_convolution_out_of_reach(kwargs):
    """X7, X10: a grouped convolution that no extra channel reaches is left as it is."""
    prop_x1(etd, 0, randomise(WithGrouped(), 0), IMAGE, **kwargs)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_example_batch_size_does_not_matter(batch):
    """X3, X4: any batch of at least one example gives the same expanded network; its values do not matter."""
    values = draw(batch, batch, 1, 8, 8, dtype=torch.float32)
    assert_same_state(expand.expand(small_net(0), values), expand.expand(small_net(0), IMAGE))


@pytest.mark.parametrize("kwargs, error", [
    (dict(ratio=-0.1), ValueError), (dict(ratio=math.inf), ValueError), (dict(ratio=math.nan), ValueError),
    (dict(layers=["nothing"]), ValueError), (dict(layers=["act"]), TypeError), (dict(layers=["norm1"]), TypeError),
    (dict(layers=[]), TypeError), (dict(layers=["head"]), TypeError), (dict(example=torch.zeros(8)), ValueError),
    (dict(example=torch.zeros(0, 1, 8, 8)), ValueError), (dict(example=None), ValueError),
    (dict(example=[IMAGE]), ValueError),
])
def test_bad_arguments_are_refused(kwargs, error):
    """X10: unusable ratios, examples and layer names raise ValueError, layers that cannot be expanded TypeError."""
    before = small_net(0)
    net = copy.deepcopy(before)
    with pytest.raises(error):
        expand.expand(net, kwargs.pop("example", IMAGE), **kwargs)
    assert_same_state(net, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_expanding_twice_is_refused():
    """X10: an expanded network is not expanded again."""
    with pytest.raises(TypeError, match="expanded already"):
        expand.expand(expand.expand(small_net(0), IMAGE), IMAGE)


ROOTS = {"conv": (lambda: nn.Conv2d(1, 2, 3), None), "linear": (lambda: nn.Linear(8, 8), None),
         "named": (lambda: nn.Linear(8, 8), [""]),
         "norm": (lambda: nn.BatchNorm2d(1), None)}


@pytest.mark.parametrize("root", ROOTS)
def test_a_single_layer_is_refused(root):
    """X10, X12: a network that is one layer has nothing but logits, so there is no place for theta_o2."""
    make, layers = ROOTS[root]
    with pytest.raises(TypeError, match="^cannot expand"):
        expand.expand(make(), IMAGE, layers=layers)


def test_linear_networks():
    """X10: a network of Linears expands where its hidden layers are named, with BatchNorm1d between them."""
    def make(scale):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 4 * scale), nn.BatchNorm1d(4 * scale), nn.GELU(),
                             nn.Linear(4 * scale, 3 * scale),
                             nn.ReLU(), nn.Linear(3 * scale, 2)).double()

    expanded = prop_x1(etd, 0, randomise(make(1), 0), IMAGE, layers=["1", "4"])
    x, wide = draw(0, 4, 1, 8, 8), make(2)
    with torch.no_grad():
        for i in (1, 4, 6):
            fill_weight(wide[i], expanded.layers()[str(i)], None)
        layer = expanded.layers()["2"]
        wide[2].weight.copy_(torch.cat([layer.base.weight, layer.extra_weight]))
        wide[2].bias.copy_(torch.cat([layer.base.bias, layer.extra_bias]))
        wide[2].running_mean.copy_(layer.running_mean), wide[2].running_var.copy_(layer.running_var)
    assert_close(run(expanded.eval(), x, rows(0, expanded, 4, 1)), run(wide.eval(), x))
    with pytest.raises(TypeError, match="no Conv2d"):
        expand.expand(make(1), IMAGE)


@pytest.mark.parametrize("spoil", ["weight norm", "subclass", "norm subclass", "idle"])
def test_layers_that_cannot_be_wrapped_are_refused(spoil):
    """X10: parametrised weights, subclasses and layers that do not run are named and refused, never skipped."""
    net, name = small_net(0), "'conv1'"
    if spoil == "weight norm":
        nn.utils.parametrizations.weight_norm(net.conv1)
    elif spoil == "subclass":
        net.conv1.__class__ = type("Special", (nn.Conv2d,), {})
    elif spoil == "norm subclass":
        net.norm1.__class__, name = type("Special", (nn.BatchNorm2d,), {}), "'norm1'"
    else:
        net.spare, name = nn.Conv2d(1, 2, 3), "'spare'"
    assert name in refused(net, IMAGE)


@given(seed=seeds, batch=st.integers(1, 4))
def test_wrong_mask_shapes_are_refused(seed, batch):
    """M1, X10: a mask that is not (B, width) raises a ValueError, never broadcasts."""
    expanded, x = expand.expand(small_net(seed), IMAGE), draw(seed, batch, 1, 8, 8, dtype=torch.float32)
    for shape in [(batch, 2), (batch, 4), (batch + 1, 3), (3,), (batch, 3, 1), (batch, 1), (0, 3)]:
        with pytest.raises(ValueError, match="mask"):
            expanded(x, torch.ones(shape, dtype=torch.bool))


def test_an_exception_in_a_masked_pass_leaves_no_mask_behind():
    """E2, F10: after a masked pass that failed, a base-only pass is still the original's."""
    net = small_net(0)
    expanded, x = expand.expand(net, IMAGE).eval(), draw(0, 2, 1, 8, 8, dtype=torch.float32)
    hook = expanded.net.head.register_forward_pre_hook(lambda m, args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        expanded(x, rows(0, expanded, 2))
    hook.remove()
    assert all(layer.keep is None for layer in expanded.layers().values())
    assert torch.equal(run(expanded, x), run(net.eval(), x))


def test_copies_and_pickles_of_an_expanded_network():
    """X5, D8: a deepcopy and a pickle of an expanded network compute the same and share nothing."""
    expanded = randomise(expand.expand(small_net(0), IMAGE), 1).eval()
    x, mask = draw(0, 3, 1, 8, 8, dtype=torch.float32), rows(0, expanded, 3)
    expected = run(expanded, x, mask), run(expanded, x)
    twin = copy.deepcopy(expanded)
    with torch.no_grad():
        for p in expanded.parameters():
            p.zero_()
    assert torch.equal(run(twin, x, mask), expected[0]) and torch.equal(run(twin, x), expected[1])
    twin = expand.expand(small_net(5), IMAGE, generator=gen(9))
    twin.load_state_dict(randomise(expand.expand(small_net(0), IMAGE), 1).state_dict())
    assert torch.equal(run(twin.eval(), x, mask), expected[0])


def test_a_resnet9_pickles_expanded():
    """D8: an expanded network of models.py survives pickle."""
    expanded = expand.expand(build("resnet9", 0.1, seed=0), torch.zeros(2, 3, 16, 16)).eval()
    again, x = pickle.loads(pickle.dumps(expanded)), draw(0, 2, 3, 16, 16, dtype=torch.float32)
    assert type(again) is Expanded and torch.equal(run(again, x, rows(0, expanded, 2)),
                                                   run(expanded, x, rows(0, expanded, 2)))


def test_expand_leaves_every_global_state():
    """M6, X5: torch's, numpy's and Python's random states are as before expand and drop."""
    net = small_net(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    etd.drop(expand.expand(net, IMAGE))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all() and before[2] == random.getstate()


# --- Networks of torchvision ------------------------------------------------------------------------------------------


def swin_layers(net):
    return [name for name, m in net.named_modules() if isinstance(m, nn.Linear) and name.endswith("mlp.0")]


def named(name, **more):
    """One of torchvision's networks with 10 classes, in float64: in eval mode fresh ones let signals shrink to
    1e-13."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(torchvision.models, name)(num_classes=10, **more).double().eval()


@pytest.fixture
def given_back():
    """What large networks took goes back to the system after the test, so that later ones and their processes have
    it."""
    yield
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # glibc's alone
        ctypes.CDLL(None).malloc_trim(0)


@pytest.mark.usefixtures("given_back")
@pytest.mark.parametrize("name, size", [("resnet18", 32), ("mobilenet_v2", 32), ("mnasnet0_5", 32),
                                        pytest.param("efficientnet_b0", 32, marks=pytest.mark.slow),
                                        pytest.param("swin_t", 32, marks=pytest.mark.slow)])
def test_known_networks_expand_and_drop_back(name, size):
    """X10, X1, D1, D2: torchvision's networks expand, run base-only bit for bit, and drop back whole."""
    net = named(name)
    layers = swin_layers(net) if name == "swin_t" else None
    inputs = torch.zeros(2, 3, size, size)
    expanded = expand.expand(net, inputs, 0.5, layers)
    x = draw(0, 2, 3, size, size)
    plain = run(net, x)
    assert expanded.width > 0 and torch.equal(run(expanded, x), plain)
    assert_same_state(etd.drop(expanded), net)
    scale, off, on = plain.abs().max(), run(expanded, x, rows(0, expanded, 2, 0)), run(expanded, x,
        rows(0, expanded, 2, 1))
    assert_close(off / scale, plain / scale, 1e-10)  # through dozens of layers
    assert (on - off).abs().max() > 1e-3 * scale
    named(name).load_state_dict(etd.drop(expanded).state_dict(), strict=True)


@pytest.mark.usefixtures("given_back")
@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "resnext50_32x4d", "convnext_tiny", "squeezenet1_0",
                                  pytest.param("densenet121", marks=pytest.mark.slow)])
def test_known_networks_that_cannot_be_expanded(name):
    """X10: networks that concatenate, shuffle, group or normalise over channels are refused, and a module is named."""
    net = named(name)
    refused(net, torch.zeros(1, 3, 64, 64), ratio=0.5)
    if name == "squeezenet1_0":  # also without the convolution that makes its logits
        layers = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d) and n != "classifier.1"]
        refused(net, torch.zeros(1, 3, 64, 64), ratio=0.5, layers=layers)


def test_norms_keep_statistics_of_their_own():
    """X2, D7: a masked pass in training mode moves the expanded norm's statistics and leaves the base's."""
    expanded = expand.expand(small_net(0), IMAGE).train()
    norm = expanded.layers()["norm1"]
    assert isinstance(norm, ExpandedBatchNorm)
    before = copy.deepcopy(norm.base.state_dict()), norm.running_mean.clone()
    run(expanded, draw(0, 4, 1, 8, 8, dtype=torch.float32), rows(0, expanded, 4))
    assert all(torch.equal(before[0][key], value) for key, value in norm.base.state_dict().items())
    assert not torch.equal(before[1], norm.running_mean) and norm.num_batches_tracked == 1


# --- What each draw of the self check is for --------------------------------------------------------------------------


class Gate(nn.Module):
    """x * sigmoid(the largest channel): a masked 0 lifts the largest one where all base channels are negative."""

    def forward(self, x):
        return x * x.amax(dim=1, keepdim=True).sigmoid()


class Lift(nn.Module):
    """x * (1 + the smallest channel where that is positive): of many signed channels it never is, and all pass."""

    def forward(self, x):
        return x * (1 + x.amin(dim=1, keepdim=True).relu())


def prop_x10_draws(expand):
    """A leak that only signed signals show, two that only positive ones show, and a gate that only signed ones pass."""
    for leaking in (chain(Gate()), shut(Flip()), chain(Lift(), width=40)):
        try:
            expand.expand(leaking, IMAGE)
        except TypeError as error:
            assert "its base outputs still change" in str(error), error
        else:
            raise AssertionError("a leak was accepted")
    for gate in (nn.Hardtanh(), nn.ReLU6()):
        try:
            assert expand.expand(chain(nn.ReLU(), Times(10), gate), IMAGE).width == 3
        except TypeError as error:
            raise AssertionError(f"{gate} was refused: {error}") from error


def shut(mix):
    """A deep narrow network: a random draw shuts one of its ReLUs, and nothing that lies behind it shows."""
    body = [part for _ in range(24) for part in (nn.Conv2d(1, 1, 1, bias=False), nn.ReLU())]
    return nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, bias=False), nn.ReLU(), *body, mix,
                         nn.Conv2d(1, 1, 1, bias=False),
                         nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(1, 2, bias=False))


def test_each_draw_of_the_self_check_counts():
    """X10: what one kind of draw cannot see, the other does, and a gate that large numbers shut is no cut."""
    prop_x10_draws(expand)


def test_draws_of_the_self_check(monkeypatch):
    """X10: the signed draw looks at signed inputs, the last at positive ones; the one between only where a weight of
    theta_o2 was not reached."""
    seen, looked = [], expand.leak
    monkeypatch.setattr(expand, "leak", lambda probe, x, positive: seen.append((bool((x < 0).any()), positive))
                        or looked(probe, x, positive))
    expand.expand(chain(nn.Tanh(), width=9), IMAGE)
    assert seen == [(True, False), (False, True)]
    seen.clear()
    monkeypatch.setattr(expand, "reached", lambda probe, x, generator: set())
    refused(chain(nn.Tanh(), width=9), IMAGE)
    assert seen == 2 * [(True, False), (True, False), (False, True)]  # with masks in either place


@pytest.mark.parametrize("positive", [False, True])
def test_weights_of_the_self_check(positive):
    """X10: matrices are drawn at 1 / sqrt(fan-in), all positive in the last draw, biases near 0, scales near 1."""
    net = nn.Sequential(nn.Conv2d(16, 400, 3), nn.BatchNorm2d(400), nn.Linear(400, 300)).double()
    expand.redraw(net, gen(0), positive)
    for weight, fan_in in ((net[0].weight, 144), (net[2].weight, 400)):
        drawn = weight.detach() * fan_in**0.5
        assert drawn.square().mean().sqrt().item() == pytest.approx(1, rel=0.05)
        assert (drawn.min() >= 0) == positive
    for value, centre in ((net[0].bias, 0), (net[1].bias, 0), (net[2].bias, 0), (net[1].weight, 1)):
        assert (value.detach() - centre).square().mean().sqrt().item() == pytest.approx(0.1, rel=0.15)


def prop_x10_pool(expand, pool=101):
    """More weights than were drawn for the self check: the numbers are used again, and every verdict stays."""
    with mock.patch.object(expand, "POOL", pool):
        prop_x10_draws(expand)
        assert expand.expand(randomise(PreActivation(width=9), 0), IMAGE).width == 9


def test_numbers_used_again_change_no_verdict():
    """X10: the self check draws a pool of numbers once for all weights; a pool shorter than one layer decides the
    same."""
    prop_x10_pool(expand)


class Raising(nn.Module):
    """A network whose forward pass raises in a masked pass."""

    def __init__(self, error):
        super().__init__()
        self.error, self.conv, self.head = error, nn.Conv2d(1, 3, 3), nn.Linear(3, 2)

    def forward(self, x):
        x = self.conv(x)
        if x.shape[1] > 3:
            raise self.error
        return self.head(x.amax(dim=(2, 3)))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("none left"), RuntimeError("can't allocate memory"),
                                   NameError("x"),
                                   ZeroDivisionError("0"), MemoryError()])
def test_what_no_network_means_goes_through(error):
    """X10: running out of memory and bugs of the code itself are no verdict about the network."""
    with pytest.raises(type(error)):
        expand.expand(Raising(error), IMAGE)


@pytest.mark.parametrize("error", [RuntimeError("a"), ValueError("a"), TypeError("a"), IndexError("a"), KeyError("a"),
                                   AttributeError("a"), AssertionError("a"), NotImplementedError("a")])
def test_what_a_network_means_names_it(error):
    """X10: whatever a forward pass raises where extra channels do not fit is a TypeError that names the module."""
    assert refused(Raising(error), IMAGE).startswith("cannot expand the network Raising: ")


# --- Networks that are refused in words -------------------------------------------------------------------------------


def test_old_weight_norm_is_refused():
    """X10: old-style weight_norm lives in a hook, and such a network cannot even be copied: the text says what to
    do."""
    net = small_net(0)
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(net.conv2)
    assert "'conv2': it has hooks of the old weight_norm" in refused(net, IMAGE)
    nn.utils.remove_weight_norm(net.conv2)
    expand.expand(net, IMAGE)


def test_a_network_without_values_is_refused():
    """X10: a network on the meta device has no values to expand."""
    assert "on the meta device" in refused(small_net(0).to("meta"), IMAGE)


def test_wrappers_around_a_network_are_refused():
    """X10, D1: DataParallel and torch.compile stand around the network that is meant; the text names it."""
    assert ".module" in refused(nn.DataParallel(small_net(0)), IMAGE)
    compiled = small_net(0)
    compiled._orig_mod = nn.Identity()  # how torch.compile keeps the network inside
    assert "it is compiled; take the network before compiling" in refused(compiled, IMAGE)


# --- Which layers to name ---------------------------------------------------------------------------------------------


def small_convnext():
    setting = torchvision.models.convnext.CNBlockConfig
    return torchvision.models.convnext.ConvNeXt([setting(4, 6, 1), setting(6, None, 1)], num_classes=3)


def small_torchvision_vit():
    return torchvision.models.VisionTransformer(16, 8, 2, 2, 8, 12, num_classes=3)


@pytest.mark.parametrize("make, names", [
    (small_convnext, ["features.1.0.block.3", "features.3.0.block.3"]),
    (small_torchvision_vit, ["encoder.layers.encoder_layer_0.mlp.0", "encoder.layers.encoder_layer_1.mlp.0"]),
])
def test_refusals_say_which_layers_to_name(make, names):
    """X10, X13: where the default layers are refused, the text names some that work, and hidden_layers gives them
    all."""
    with torch.random.fork_rng():
        net, inputs = make().eval(), torch.zeros(2, 3, 16, 16)
    assert "; name the layers that get extra outputs" in (text := refused(net, inputs))
    assert f"hidden_layers(model, example): layers=[{', '.join(map(repr, names))}]" in text
    before = copy.deepcopy(net)
    assert expand.hidden_layers(net, inputs) == names
    assert_same_state(net, before)
    assert not any(m._forward_hooks for m in net.modules())
    expanded = expand.expand(net, inputs, layers=names)
    assert {name for name, layer in expanded.layers().items() if layer.extra_out} == set(names)


def test_layers_that_do_not_fit_are_not_suggested():
    """X10: a convolution whose output also goes into a sum is followed by another one, but fits only by itself; it is
    left out."""
    class Norms(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.up, self.down = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 5, 1), nn.Conv2d(5, 3, 1)
            self.norm, self.act, self.head = nn.GroupNorm(1, 3), nn.ReLU(), nn.Linear(3, 2)

        def forward(self, x):
            x = self.stem(x)
            return self.head(self.norm(x + self.down(self.act(self.up(x)))).amax(dim=(2, 3)))

    net = randomise(Norms(), 0)
    assert expand.hidden_layers(net, IMAGE) == ["up"]
    assert "layers=['up']" in refused(net, IMAGE)
    assert expand.expand(net, IMAGE, layers=["up"]).width == 5
    assert "name" not in refused(net, IMAGE, layers=["stem"])  # who has named layers gets no suggestion


@pytest.mark.parametrize("groups, names", [(4, ["0"]), (2, [])])
def test_hidden_layers_look_through_depthwise_convolutions(groups, names):
    """X13: a depthwise convolution keeps channels apart, so a layer that another one follows behind it is hidden; any
    other grouped convolution does not."""
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=groups), nn.ReLU(),
                        nn.Conv2d(4, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    assert expand.hidden_layers(net, IMAGE) == names


def test_a_hidden_layer_is_named_once():
    """X13: a layer that runs twice is one name, also where another one that fits by itself alone stands between."""
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x):
            for _ in range(2):
                x = self.down(self.up(x).relu()).relu()
            return self.head(x)

    assert expand.hidden_layers(Twice(), torch.zeros(2, 6)) == ["up"]


def test_a_layer_whose_outputs_are_not_all_taken_is_not_hidden():
    """X13: where the next layer takes fewer inputs than there are, extra ones would be cut off."""
    class Sliced(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Linear(6, 5), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.stem(x)[:, :3])

    assert expand.hidden_layers(Sliced(), torch.zeros(2, 6)) == []


def test_hidden_layers_of_any_width():
    """X13: as many outputs as the next layer takes, also where Python makes a new object of each such number."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(IMAGE[0].numel(), 300), nn.ReLU(), nn.Linear(300, 3))
    assert expand.hidden_layers(net, IMAGE) == ["1"]


# --- Known subclasses -------------------------------------------------------------------------------------------------


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's: the norm, dropout and the activation in one module."""

    def __init__(self, width):
        super().__init__(width)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class Linear(nn.Linear):
    """As timm's: the same forward pass as torch's."""


BatchNormAct2d.__module__, Linear.__module__ = "timm.layers.norm_act", "timm.layers.linear"


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_timm_layers_are_known_by_name(ratio):
    """X1, X9: timm's BatchNormAct2d and Linear expand as the torch layers that they stand for, masks and statistics
    too."""
    def make(norm, act, linear):
        return nn.Sequential(nn.Conv2d(1, 4, 3), norm(4), act, nn.Conv2d(4, 4, 3), norm(4), act,
                             nn.AdaptiveAvgPool2d(1),
                             nn.Flatten(), linear(4, 2))

    known, plain = make(BatchNormAct2d, nn.Identity(), Linear), make(nn.BatchNorm2d, nn.ReLU(), nn.Linear)
    prop_x1(etd, 0, randomise(known, 0), IMAGE, ratio)
    nets = [randomise(expand.expand(randomise(net, 0).double(), IMAGE, ratio, generator=gen(1)), 2)
            for net in (known, plain)]
    x = draw(0, 4, 1, 8, 8)
    for mode in (True, False):
        outs = [run(net.train(mode), x, rows(0, net, 4)) for net in nets]
        assert_close(*outs)
    assert type(etd.drop(nets[0])[1]) is BatchNormAct2d


def test_other_subclasses_stay_refused():
    """X10: only the qualified names that are known count; the same class names from elsewhere are refused."""
    other = type("BatchNormAct2d", (nn.BatchNorm2d,), {"__module__": "elsewhere"})
    net = small_net(0)
    net.norm1.__class__ = other
    assert "'norm1'" in refused(net, IMAGE)
