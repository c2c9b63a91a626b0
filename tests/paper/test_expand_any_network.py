"""Expand for any network, beside the paper's path: "REM allows complete freedom in the architectural design" (Sec. 5).

- dtypes, modes, memory formats, names, copies and pickles                                X3, X5, X6, D8
- modules and weights that are shared stay shared                                              X9, X11
- random networks: each is its plain wide twin, and drops back to what it was      X1, X8, X9, X10, F9, F10, F12
- where the mask stands: after BatchNorm, else on the layer itself                        M11, X4, X8, X10
- layers of many kinds, layers that are named, attention                                  X1, X9, X10, X13
- blocks that training runs anew in the backward pass, or skips                                    A21, E2

Networks of torchvision and layers of timm, and what is refused in what words, are in tests/engine/test_admission.py.
"""

import copy
import inspect
import pickle
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

import baselines
import etd
import expand
from architectures import (IMAGE, SMALL_VIT, Keeping, Net, assert_transparent, assert_wide_twin, draw, example,
                           fill_wide, plans)
from etd import Expanded
from helpers import (assert_close, assert_same_state, gen, make_data, randomise, rows, run, seeds, small_net, tiny)
from models import build
from rem import rem
from rem_plus import rem_plus
from states import unlearn
from train import fit


# --- What stays as it was ---------------------------------------------------------------------------------------------

@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_base_only_is_the_original_on_cuda(dtype, layout):
    """X1, X6: on the GPU, too, theta_o1 alone is the original; theta_o2 has its device, dtype and memory format."""
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


@pytest.mark.filterwarnings("ignore:Acc")  # step 2 may give up
def test_a_kept_activation_is_let_go_of():
    """D1, X1: a network that keeps an activation is trained, unlearned and dropped, and keeps its own."""
    data, forget, net = make_data(0), torch.arange(9), Keeping()
    net(next(data.batches(forget))[1])  # one with a history, before anything starts
    etd.train_etd(baselines.with_theta_o2(net, data, tiny()), data, tiny(), gen(0), fit)
    for method in (rem, rem_plus):
        assert type(method(net, data, forget, tiny(), gen(0))) is Keeping
    baselines.fine_tune(net, data, forget, tiny(), gen(0))
    baselines.fresh(net, tiny())
    assert net.seen.grad_fn is not None


# --- Shared modules and weights ---------------------------------------------------------------------------------------

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


# --- Random networks --------------------------------------------------------------------------------------------------

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


# --- Layers that are named --------------------------------------------------------------------------------------------

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


# --- Blocks that training runs anew, or skips -------------------------------------------------------------------------

class Block(nn.Module):
    """conv - ReLU - a block that training may recompute in the backward pass - pool - Linear."""

    def __init__(self, how):
        super().__init__()
        self.how, self.stem, self.inner = how, nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.other, self.head = nn.Conv2d(3, 3, 1), nn.Linear(3, 4)

    def body(self, x):
        return self.other(self.inner(x).relu())

    def forward(self, x):
        x = self.stem(x).relu()
        if self.how is None or not self.training:
            x = x + self.body(x)
        elif self.how != "skipped":
            x = x + checkpoint(self.body, x, use_reentrant=self.how == "reentrant")
        return self.head(x.amax(dim=(2, 3)))


@pytest.mark.parametrize("how", ["reentrant", "not reentrant"])
@pytest.mark.parametrize("method", ["rem", "etd"])
def test_recomputed_blocks(how, method):
    """A21: with activation checkpointing in training, REM and ETD give the very weights that they give without it."""
    outs, data = [], make_data(0)
    warnings.filterwarnings("ignore", message="None of the inputs have requires_grad")  # in passes without
    for kind in (None, how):
        net = randomise(Block(kind), 0).double()
        if method == "rem":
            outs.append(unlearn(data=data, net=net, gamma=1.0))
        else:
            outs.append(etd.train_etd(expand.expand(net, IMAGE), data, tiny(p_mem=0.5), gen(0), fit).net)
    for a, b in zip(outs[0].state_dict().values(), outs[1].state_dict().values(), strict=True):
        assert_close(a, b)
    assert not torch.equal(outs[0].head.bias, randomise(Block(None), 0).double().head.bias)


def test_no_mask_is_left_after_a_backward_pass():
    """A21, E2: after the backward pass, also one that failed, base-only passes are the original's."""
    net = randomise(Block("reentrant"), 0)
    expanded, x = expand.expand(net, IMAGE).train(), torch.rand(3, 1, 8, 8, generator=gen(0))
    expanded(x, rows(0, expanded, 3)).sum().backward()
    assert torch.equal(expanded.net(x), net.train()(x))  # not expanded(x), which takes masks off by itself
    assert all(layer.active is None for layer in expanded.layers().values())
    assert torch.equal(expanded(x), net.train()(x))
    out = expanded(x, rows(0, expanded, 3))
    expanded.layers()["stem"].base.weight.register_hook(lambda grad: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        out.sum().backward()
    assert torch.equal(expanded(x), net.train()(x))


def test_theta_o2_without_a_gradient_is_named():
    """A21: a network that skips a block in training leaves theta_o2 without a gradient: a TypeError says so, also in a
    later epoch."""
    with pytest.raises(TypeError, match="cannot redirect through 'inner'"):
        unlearn(net=randomise(Block("skipped"), 0), gamma=1.0)
    net = randomise(Block(None), 0)

    def log(epoch, epochs, model, **record):
        model.net.how = "skipped"

    with pytest.raises(TypeError, match="cannot redirect through 'inner'"):
        unlearn(net=net, gamma=1.0, log=log)
