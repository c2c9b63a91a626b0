"""Step 1 of Algorithm 1, "add additional capacity theta_o2 to the existing model theta_o1" (Sec. 5, "Expand").

- theta_o1 is "the parameters of the original model", whatever made it: alone it is that model: X1, X2, X5, X6.
- "We expand the number of channels in each convolutional layer": X3, X7; A.3, half the channels at 50 % capacity: X3;
  logits are those of the original's classes: X12; modules that are one stay one: X11.
- "Initialized randomly": X4.
- theta_o1 with theta_o2 is a wider network, and with theta_o2 off the original: X8, X9; examples do not meet: F9, F10,
  F12.
- "The expansion works across architectures" (A.3): random ones X10, layers of many kinds X9, the ViT, "before/after FF
  in transformer blocks" and attention X13.
Networks of torchvision and layers of timm, and what is refused in what words, are in tests/engine/test_admission.py.
"""

import copy
import inspect
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import etd
import expand
import oracles
from architectures import IMAGE, Net, draw, example, fill_wide, plans
from etd import Expanded, ExpandedWeight
from helpers import assert_close, assert_same_state, gen, randomise, rows, run, seeds, small_net
from models import build

ratios = st.sampled_from([0.0, 0.3, 0.5, 1.0, 1.7])


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


# --- theta_o1 is the original model -----------------------------------------------------------------------------------

@given(seed=seeds, width=st.integers(1, 5), ratio=ratios, norm=st.booleans(),
       dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), last=st.booleans())
def test_base_only_is_the_original(seed, width, ratio, norm, dtype, last):
    """X1, X2, X7: base-only output is the original's bit for bit in both modes, any width, dtype and memory format, and
    so are weights, biases and BatchNorm's buffers and counts; without extra width no bit exists and every weight stays
    as it is."""
    net = small_net(seed, width=width, norm=norm, dtype=dtype)
    for name, buffer in net.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer += 7
    expanded = assert_transparent(net.to(memory_format=torch.channels_last) if last else net, IMAGE, ratio, seed=seed)
    if expanded.width == 0:
        assert not any(isinstance(layer, ExpandedWeight) for layer in expanded.layers().values())
        x = draw(seed, 3, 1, 8, 8, dtype=dtype)
        assert torch.equal(run(expanded.eval(), x, torch.zeros(3, 0, dtype=torch.bool)), run(net.eval(), x))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_base_only_is_the_original_on_cuda(dtype, layout):
    """X1, X6: the same on the GPU, in both memory formats; theta_o2 has device, dtype and format too."""
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
        if isinstance(getattr(layer, "base", None), nn.Conv2d) and layer.to_extra is not None:
            assert layer.to_extra.is_contiguous(memory_format=layout)


@given(seed=seeds, ratio=ratios)
def test_original_is_untouched(seed, ratio):
    """X5: neither the original nor the dropped network shares storage with the expanded one, and no hook is left."""
    net = small_net(seed)
    expanded = expand.expand(net, IMAGE, ratio)
    dropped = etd.drop(expanded)
    pointers = [{t.data_ptr() for t in n.state_dict().values() if t.numel()} for n in (net, expanded, dropped)]
    assert not (pointers[0] & pointers[1] or pointers[1] & pointers[2] or pointers[0] & pointers[2])
    assert not any(m._forward_hooks or m._forward_pre_hooks for n in (net, expanded, dropped) for m in n.modules())


def test_copies_and_pickles_of_an_expanded_network():
    """X5, D8: a deepcopy, a pickle and a loaded state of an expanded network compute the same and share nothing."""
    def made():
        return randomise(expand.expand(build("resnet9", 0.1, seed=0), torch.zeros(2, 3, 16, 16)), 1).eval()

    expanded, x = made(), draw(0, 2, 3, 16, 16)
    mask = rows(0, expanded, 2)
    loaded = expand.expand(build("resnet9", 0.1, seed=5), torch.zeros(2, 3, 16, 16), generator=gen(9)).eval()
    loaded.load_state_dict(expanded.state_dict())
    twins = [copy.deepcopy(expanded), pickle.loads(pickle.dumps(expanded)), loaded]
    with torch.no_grad():
        for p in expanded.parameters():
            p.zero_()
    for twin in twins:
        assert type(twin) is Expanded
        assert torch.equal(run(twin, x, mask), run(made(), x, mask)) and torch.equal(run(twin, x), run(made(), x))


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
    assert expanded.training == net.training
    for name, module in net.named_modules():
        assert inner[name].training == module.training, name
        if name in layers:
            assert layers[name].base.training == module.training
    dropped = etd.drop(expanded)
    for (name, a), (_, b) in zip(net.named_parameters(), dropped.named_parameters(), strict=True):
        assert a.requires_grad == b.requires_grad and a.dtype == b.dtype and a.stride() == b.stride(), name
    assert [m.training for m in net.modules()] == [m.training for m in dropped.modules()]
    assert {t.dtype for t in expanded.state_dict().values() if t.is_floating_point()} == {dtype}
    extra = layers["conv2"].to_extra
    assert extra.requires_grad and extra.is_contiguous(memory_format=torch.channels_last) == last


def test_mixed_dtypes_are_kept():
    """X6: a float32 head on a bf16 body keeps both dtypes, and theta_o2 takes each layer's own."""
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Conv2d(1, 3, 3, dtype=torch.bfloat16), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.body(x).amax(dim=(2, 3)).to(self.head.weight.dtype))

    expanded = assert_transparent(Mixed(), IMAGE)
    assert expanded.layers()["body"].to_extra.dtype == torch.bfloat16
    assert expanded.layers()["head"].to_base.dtype == torch.float32
    assert run(expanded, draw(0, 2, 1, 8, 8, dtype=torch.bfloat16), rows(0, expanded, 2)).dtype == torch.float32


# --- "The number of channels in each convolutional layer" -------------------------------------------------------------

def conv_count(inputs, extra_in, outputs, extra_out, area):
    """Parameters that theta_o2 adds to a convolution with bias."""
    return area * (outputs * extra_in + extra_out * (inputs + extra_in)) + extra_out


@given(seed=seeds, width=st.integers(1, 9), ratio=ratios)
def test_shapes_and_parameter_count(seed, width, ratio):
    """X3, X2, X12: blocks have the widening rule's shapes, and theta_o2 the closed formula's number of parameters; the
    last Linear makes no extra output that a mask could touch; the statistics of masked passes begin where the base's
    are."""
    net, extra = small_net(seed, channels=2, width=width, classes=5), round(ratio * width)
    net.norm1.num_batches_tracked += 7
    expanded = expand.expand(net, torch.zeros(2, 2, 8, 8), ratio)
    assert expanded.width == extra
    expected = conv_count(2, 0, width, extra, 9) + conv_count(width, extra, width, extra, 9) + 4 * extra + 5 * extra
    assert sum(p.numel() for p in expanded.theta_o2().values()) == expected
    assert len(expanded.theta_o1()) == len(list(net.parameters()))
    assert sum(p.numel() for p in expanded.parameters()) - sum(p.numel() for p in net.parameters()) == expected
    layers = expanded.layers()
    if extra:
        assert layers["conv1"].to_extra.shape == (extra, 2, 3, 3) and layers["conv1"].to_base is None
        assert layers["conv2"].to_extra.shape == (extra, width + extra, 3, 3)
        assert layers["conv2"].to_base.shape == (width, extra, 3, 3)
        assert layers["head"].to_base.shape == (5, extra)
        assert layers["head"].to_extra is None and layers["head"].extra_out == 0
        assert layers["norm1"].num_batches_tracked == 7
        for norm in (layers["norm1"], layers["norm2"]):  # the new entries are those of a new BatchNorm
            assert norm.extra_weight.eq(1).all() and norm.extra_bias.eq(0).all() and len(norm.extra_bias) == extra
            assert torch.equal(norm.running_mean, torch.cat([norm.base.running_mean, torch.zeros(extra)]))
            assert torch.equal(norm.running_var, torch.cat([norm.base.running_var, torch.ones(extra)]))


def test_layers_have_the_names_of_the_original():
    """X3: layers and the parts of theta_o2 are named as in the original, also where that has a part called "net"."""
    net = nn.Sequential()
    net.add_module("net", nn.Sequential())
    net.net.add_module("net", small_net(0))
    expanded = expand.expand(net, IMAGE)
    assert set(expanded.layers()) == {f"net.net.{name}" for name in ("conv1", "conv2", "norm1", "norm2", "head")}
    assert {name for name in expanded.theta_o2() if "conv" in name} == {
        "net.net.conv1.to_extra", "net.net.conv1.extra_bias", "net.net.conv2.to_base", "net.net.conv2.to_extra",
        "net.net.conv2.extra_bias"}


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


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_example_is_read_for_its_shape(batch):
    """X3, X4: any batch of at least one example gives the same expanded network, whatever its values, also where the
    caller has switched gradients off."""
    with torch.no_grad():
        expanded = expand.expand(small_net(0), draw(batch, batch, 1, 8, 8))
    assert_same_state(expanded, expand.expand(small_net(0), IMAGE))


class Shared(nn.Module):
    """One convolution and one norm run three times, and stand under a second name."""

    def __init__(self, width=3):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(width), nn.Linear(width, 2)
        self.alias = nn.ModuleList([self.conv, self.norm])

    def forward(self, x):
        x = self.stem(x)
        for i in range(3):
            x = x + (self.norm(self.conv(x)) if i < 2 else self.alias[0](x)).relu()
        return self.head(x.amax(dim=(2, 3)))


def test_shared_modules_stay_shared():
    """X11, X9: a module under two names is wrapped once, keeps both, drops back to one, and acts as the wide one."""
    net, x = randomise(Shared(), 2).double(), draw(0, 3, 1, 8, 8, dtype=torch.float64)
    expanded = assert_transparent(net, IMAGE).eval()
    dropped = etd.drop(expanded)
    for one in (expanded.net, dropped):
        assert one.alias[0] is one.conv and one.alias[1] is one.norm
    assert_close(run(expanded, x, rows(0, expanded, 3, 0)), run(net.eval(), x))
    assert_wide_twin(expanded, fill_wide(Shared(6).double(), expanded), x)


def test_tied_parameters_stay_tied():
    """X11: two layers with one weight still have one after expand and after drop; the optimizer sees it once."""
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1),
                        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    net[3].weight = net[1].weight
    expanded = assert_transparent(net, IMAGE)
    layers, dropped = expanded.layers(), etd.drop(expanded)
    assert layers["1"].base.weight is layers["3"].base.weight and dropped[1].weight is dropped[3].weight
    assert layers["1"].to_extra is not layers["3"].to_extra
    assert len({id(p) for p in expanded.parameters()}) == len(list(expanded.parameters()))


# --- "Initialized randomly" -------------------------------------------------------------------------------------------

def test_fresh_weights_have_the_wide_fan_in():
    """X4: theta_o2 is uniform within 1 / sqrt(the wide fan-in), as the default initialiser's weights are, drawn layer
    by layer from the generator; biases are 0."""
    net = randomise(nn.Sequential(nn.Conv2d(3, 20, 3), nn.Conv2d(20, 24, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
                                  nn.Linear(24, 10)), 0)
    expanded, g = expand.expand(net, torch.zeros(2, 3, 8, 8), ratio=1.5, generator=gen(1)), gen(1)
    for part, shape, fan_in in (("0.to_extra", (30, 3, 3, 3), 3 * 9), ("1.to_base", (24, 30, 3, 3), 50 * 9),
                                ("1.to_extra", (36, 50, 3, 3), 50 * 9), ("4.to_base", (10, 36), 60)):
        drawn = (2 * torch.rand(shape, generator=g, dtype=torch.float64) - 1) / math.sqrt(fan_in)
        assert_close(expanded.theta_o2()[part], drawn.float(), 1e-6)
    assert not any(p.any() for name, p in expanded.theta_o2().items() if "bias" in name)


def test_fresh_weights_depend_on_the_generator_alone():
    """X4: the same generator state gives the same theta_o2, another one another; it is no copy of theta_o1."""
    net = small_net(0)
    torch.manual_seed(0)
    first = expand.expand(net, IMAGE, generator=gen(7))
    torch.manual_seed(1)
    second, other = expand.expand(net, IMAGE, generator=gen(7)), expand.expand(net, IMAGE, generator=gen(8))
    assert_same_state(first, second)
    layer = first.layers()["conv2"]
    assert not torch.equal(layer.to_extra, other.layers()["conv2"].to_extra)
    assert not torch.isin(layer.to_extra.flatten(), layer.base.weight.flatten()).any()
    assert_same_state(expand.expand(net, IMAGE), expand.expand(net, IMAGE, generator=gen(0)))  # the documented default


class Fork(nn.Module):
    """A convolution that feeds a BatchNorm and a sum: its mask cannot wait for the BatchNorm, so expand tries twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 3)

    def forward(self, x):
        x = self.conv(x)
        return self.head((x + self.norm(x)).mean(dim=(2, 3)))


def test_a_second_try_draws_the_same_weights():
    """X4, X8: theta_o2 depends on the generator as it was given, not on how often expand had to try; of the second try
    the convolution is masked itself, and nothing that is off leaks into the sum."""
    generator, net = gen(3), randomise(Fork(), 0)
    expanded, x = expand.expand(net, torch.zeros(2, 1, 4, 4), generator=generator), draw(0, 3, 1, 4, 4)
    conv = expanded.layers()["conv"]
    assert conv.mask_output
    assert_close(run(expanded.eval(), x, rows(0, expanded, 3, 0)), run(net.eval(), x), 1e-5)
    expected = 2 * torch.rand((2, 1, 1, 1), generator=gen(3), dtype=torch.float64) - 1  # fan-in 1
    assert torch.equal(conv.to_extra, expected.float())
    again = expand.expand(Fork(), torch.zeros(2, 1, 4, 4), generator=generator).layers()["conv"]
    assert not torch.equal(conv.to_extra, again.to_extra)  # a generator that is used again has moved on


# --- A wider network, and with theta_o2 off the original --------------------------------------------------------------

@given(seed=seeds, width=st.integers(1, 5), ratio=ratios, norm=st.booleans(), batch=st.integers(1, 3),
       share=st.sampled_from([0, 0.5, 1]))
def test_masked_pass_equals_the_naive_loop(seed, width, ratio, norm, batch, share):
    """X9, M11, M12, E1: the masked pass is the numpy oracle's, one example and one pixel at a time."""
    net = small_net(seed, width=width, norm=norm, dtype=torch.float64)
    expanded = expand.expand(net, IMAGE, ratio, generator=gen(seed))
    randomise(expanded, seed).eval()  # theta_o2's biases and statistics too
    x, mask = draw(seed, batch, 1, 3, 4, dtype=torch.float64), rows(seed, expanded, batch, share)
    weights = {key.removeprefix("net."): value.numpy() for key, value in expanded.state_dict().items()}
    expected = oracles.masked_small_net(x.numpy(), mask.numpy(), weights, norm)
    # sums in another order, running variances down to 0.1
    assert_close(run(expanded, x, mask), torch.from_numpy(expected), 1e-11)


@given(seed=seeds, plan=plans())
def test_random_networks_equal_their_wide_twin(seed, plan):
    """X9: all-one masks give the plain wider network, whose weights are put together in the test."""
    net = randomise(Net(plan), seed).double()
    expanded = randomise(expand.expand(net, example(plan), plan.ratio, plan.layers, gen(seed)), seed + 1)
    x = draw(seed, 4, plan.channels, plan.size, plan.size, dtype=torch.float64)
    # 1x1 maps of four examples: BatchNorm by batch statistics can divide by small deviations
    assert_wide_twin(expanded, fill_wide(Net(plan, wide=True).double(), expanded), x, 1e-10)


@given(seed=seeds, plan=plans())
def test_random_networks_expand_and_drop_back(seed, plan):
    """X10, X1, X8, D1: any network of the family expands, no layer skipped, is the original base-only bit for bit and
    under zero masks, and drops back."""
    net = randomise(Net(plan), seed).double()
    expanded = assert_transparent(net, example(plan), plan.ratio, plan.layers, seed)
    assert_same_state(etd.drop(expanded), net)
    widths = [b.outputs[1] for b in plan.blocks] + ([plan.hidden[1]] if plan.hidden else [])
    assert expanded.width == max(widths)
    for i, block in enumerate(plan.blocks):
        layer = expanded.layers().get(f"blocks.{i}.conv")
        found = (layer.extra_in, layer.extra_out) if layer is not None else (0, 0)
        assert found == (block.inputs[1], block.outputs[1])
    x = draw(seed, 3, plan.channels, plan.size, plan.size, dtype=torch.float64)
    # eval mode with running statistics; batchwise norms divide by deviations
    assert_close(run(expanded.eval(), x, rows(seed, expanded, 3, 0)), run(net.eval(), x), 1e-10)


@given(seed=seeds, plan=plans(max_depth=3))
def test_random_networks_keep_examples_apart(seed, plan):
    """F9, F10, F12, M11: under random masks each example's output is the one that it has alone (eval mode, running
    statistics), so a batch's order, splits, padding and other examples are nothing to it; a bit that is off is off
    whatever the weights behind it."""
    net = randomise(Net(plan), seed).double()
    expanded = expand.expand(net, example(plan), plan.ratio, plan.layers).eval()
    x, mask = draw(seed, 3, plan.channels, plan.size, plan.size, dtype=torch.float64), rows(seed, expanded, 3)
    together, off = run(expanded, x, mask), run(expanded, x, torch.zeros_like(mask))
    if not any(block.norm == "batchwise" for block in plan.blocks):
        alone = torch.cat([run(expanded, x[i : i + 1], mask[i : i + 1]) for i in range(3)])
        assert_close(together, alone, 1e-11)
    with torch.no_grad():
        for p in expanded.theta_o2().values():
            p.mul_(3)
    assert_close(run(expanded, x, torch.zeros_like(mask)), off, 1e-10)


# --- Where the mask stands: after BatchNorm, else on the layer itself -------------------------------------------------

class Between(nn.Module):
    """conv - what stands between - norm - pool - Linear."""

    def __init__(self, between):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 2)
        self.between = between

    def forward(self, x):
        return self.head(self.norm(self.between(self.conv, x)).amax(dim=(2, 3)))


def straight(conv, x):
    """The norm reads the very tensor that the convolution made."""
    return conv(x)


def at_the_same_place(conv, x):
    """The norm reads another tensor, which has the `id` of the convolution's if nobody has kept that one."""
    out = conv(x)
    place, new, held = id(out), out.relu(), []
    del out
    for _ in range(30):
        if id(new) == place:
            break
        held.append(new)
        new = new.clone()
    return new


@pytest.mark.parametrize("between, norm_masks", [(straight, True), (at_the_same_place, False)])
def test_a_norm_masks_for_the_layer_whose_very_output_it_reads(between, norm_masks):
    """M11, X10: where a norm reads a convolution's own output the mask acts after the norm, whose statistics see the
    unmasked channels; where it reads another tensor, also one at the same place in memory, the convolution is masked
    itself, and the norm's statistics of channels that are off are those of zeros."""
    net = randomise(Between(between), 0)
    expanded = expand.expand(net, IMAGE).train()
    run(expanded, draw(0, 4, 1, 8, 8), rows(0, expanded, 4, 0))
    means = expanded.layers()["norm"].running_mean[3:]
    assert bool(means.ne(0).all() if norm_masks else means.eq(0).all())


def test_a_norm_masks_what_an_activation_lifts():
    """X8, X10: a Sigmoid turns a masked 0 into a half, but the mask of the norm behind it turns that off: no leak."""
    net = randomise(nn.Sequential(nn.Conv2d(1, 3, 3), nn.Sigmoid(), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3),
                                  nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(3, 2)), 0).double()
    expanded, x = expand.expand(net, IMAGE).eval(), draw(0, 4, 1, 8, 8, dtype=torch.float64)
    assert expanded.width == 3
    assert_close(run(expanded, x, rows(0, expanded, 4, 0)), run(net.eval(), x))


# --- Layers of many kinds ---------------------------------------------------------------------------------------------

CONVOLUTIONS = {  # beside those that `plans` draws
    "same": dict(padding="same"), "same reflect": dict(padding="same", padding_mode="reflect", dilation=2),
    "valid": dict(padding="valid"), "oblong": dict(padding=(0, 2), stride=(2, 1)),
    "circular": dict(padding=2, padding_mode="circular"),
    "multiplier reflect": dict(padding=1, groups=4, out=12, padding_mode="reflect", bias=False),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_settings(case):
    """X9: padding modes, dilation, "same", strides and depthwise multipliers act on the wide layer as on the base's."""
    more = dict(CONVOLUTIONS[case])
    out, depthwise = more.pop("out", 4), "groups" in more

    def make(scale):
        kwargs = {**more, **({"groups": 4 * scale} if depthwise else {})}
        return nn.Sequential(nn.Conv2d(1, 4 * scale, 3, padding=1), nn.Conv2d(4 * scale, out * scale, 3, **kwargs),
                             nn.CELU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(out * scale, 2)).double()

    expanded = randomise(assert_transparent(randomise(make(1), 1), IMAGE), 2)
    assert expanded.width == out
    assert_wide_twin(expanded, fill_wide(make(2), expanded), draw(1, 3, 1, 8, 8, dtype=torch.float64))


NORMS = {"cumulative": dict(momentum=None), "bare": dict(affine=False, track_running_stats=False),
         "still": dict(momentum=0.0), "quick": dict(momentum=0.3), "latest": dict(momentum=1.0)}


@pytest.mark.parametrize("kind", NORMS)
def test_batchnorm_settings(kind):
    """X9: momenta, and neither weights nor statistics, act as in the wide network, over several batches."""
    def make(scale):
        return nn.Sequential(nn.Conv2d(1, 3 * scale, 3), nn.BatchNorm2d(3 * scale, **NORMS[kind]), nn.ReLU(),
                             nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(3 * scale, 2)).double()

    expanded = randomise(assert_transparent(randomise(make(1), 1), IMAGE), 2)
    wide = fill_wide(make(2), expanded)
    for i in range(3):
        assert_wide_twin(expanded, wide, draw(i, 4, 1, 8, 8, dtype=torch.float64))


@pytest.mark.skipif("bias" not in inspect.signature(nn.BatchNorm2d).parameters, reason="not in this torch")
def test_batchnorm_without_bias():
    """X10: torch's BatchNorm2d(bias=False) has a weight alone, and expands like any other."""
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, bias=False), nn.ReLU(), nn.AdaptiveMaxPool2d(1),
                        nn.Flatten(), nn.Linear(3, 2))
    assert_transparent(randomise(net, 0), IMAGE)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_inside_keeps_working(training):
    """X1: Dropout and Dropout2d run on base and extra channels; base-only draws what the original draws."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout2d(0.5), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5),
                        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    expanded, x = expand.expand(randomise(net, 0), IMAGE).train(training), draw(0, 4, 1, 8, 8)
    torch.manual_seed(3)
    first = run(expanded, x)
    torch.manual_seed(3)
    assert torch.equal(first, run(net.train(training), x))
    assert run(expanded, x, rows(0, expanded, 4)).isfinite().all()


def test_linear_networks():
    """X9: a network of Linears expands where its hidden layers are named, with BatchNorm1d between them."""
    def make(scale):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 4 * scale), nn.BatchNorm1d(4 * scale), nn.GELU(),
                             nn.Linear(4 * scale, 3 * scale), nn.ReLU(), nn.Linear(3 * scale, 2)).double()

    expanded = assert_transparent(randomise(make(1), 0), IMAGE, layers=["1", "4"])
    assert_wide_twin(expanded, fill_wide(make(2), expanded), draw(0, 4, 1, 8, 8, dtype=torch.float64))


# --- Transformers -----------------------------------------------------------------------------------------------------

SMALL_VIT = dict(channels=1, image_size=8, patch=4, dim=8, depth=2, heads=2, head_dim=4)


@given(seed=seeds, ratio=ratios)
def test_vit_blocks(seed, ratio):
    """X13, X1, X8, X9: of the ViT hidden units of the feed-forward layers are added and nothing else: both masks give
    a ViT with other hidden widths, and drop gives it back."""
    net = randomise(build("vit", hidden=6, **SMALL_VIT), seed).double()
    expanded = assert_transparent(net, IMAGE, ratio, seed=seed).eval()
    assert expanded.width == round(6 * ratio)
    assert set(expanded.layers()) == ({f"ff.{i}.{j}" for i in range(2) for j in (1, 3)} if expanded.width else set())
    x = draw(seed, 3, 1, 8, 8, dtype=torch.float64)
    assert_close(run(expanded, x, rows(seed, expanded, 3, 0)), run(net.eval(), x))
    wide = build("vit", hidden=6 + expanded.width, **SMALL_VIT).double()
    shapes = {key: value.shape for key, value in wide.state_dict().items()}
    same = {key: value for key, value in net.state_dict().items() if value.shape == shapes[key]}
    wide.load_state_dict(same, strict=False)
    assert_wide_twin(expanded, fill_wide(wide, expanded), x)


@pytest.mark.parametrize("layers, extra", [
    (None, {"ff.0.1": 6, "ff.1.1": 6}), (["ff.1.1"], {"ff.1.1": 6}), (("ff.1.1", "ff.0.1"), {"ff.0.1": 6, "ff.1.1": 6}),
    (["patches.project"], None), ([], None)])
def test_layers_that_are_given_win_over_the_networks_own(layers, extra):
    """X13: layers=[...] is followed where it is given, even where it names none, and a network's own `expandable` where
    it is not; what is given and does not fit is refused, not replaced."""
    net = build("vit", hidden=6, seed=0, **SMALL_VIT)
    if extra is None:
        with pytest.raises(TypeError, match="^cannot expand"):
            expand.expand(net, IMAGE, layers=layers)
    else:
        expanded = expand.expand(net, IMAGE, layers=layers)
        assert {name: layer.extra_out for name, layer in expanded.layers().items() if layer.extra_out} == extra


def test_a_networks_own_layers_win_over_every_convolution():
    """X13: `expandable` of a convolutional network names the only ones that get channels; None names none."""
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    for own, extra in ((("0",), {"0"}), (None, {"0", "1"})):
        net.expandable = own
        assert {name for name, layer in expand.expand(net, IMAGE).layers().items() if layer.extra_out} == extra


def test_names_are_read_once():
    """X13, X4: names that can be read but once, from an iterator, are followed in both tries that expand makes."""
    net = Fork()
    expanded = expand.expand(net, torch.zeros(2, 1, 4, 4), layers=iter(["conv"]))
    assert_same_state(expanded, expand.expand(net, torch.zeros(2, 1, 4, 4), layers=["conv"]))


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
    """X13: a network with nn.MultiheadAttention works where its feed-forward layer is named, and is refused where the
    attention would get channels."""
    net = randomise(Attentive(), 0)
    expanded, x = assert_transparent(net, IMAGE, layers=["up"]).train(mode), draw(0, 3, 1, 8, 8)
    quick, slow = run(expanded, x, rows(0, expanded, 3, 1)), expanded(x, rows(0, expanded, 3, 1)).detach()
    assert expanded.width == 5
    assert_close(quick, slow, 1e-5)  # float32, another kernel without gradients
    with pytest.raises(TypeError, match="^cannot expand 'attention'"):
        expand.expand(net, IMAGE)
