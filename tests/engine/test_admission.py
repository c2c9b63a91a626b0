"""Which networks can be expanded: what is refused by name, what by the check of outputs, and what is taken.

X10 is "expand works or raises a TypeError that names the module, and never silently skips a layer".
"""

import copy
import math
from collections import namedtuple

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torchvision.models import resnet
from torchvision.models.efficientnet import MBConvConfig

import etd
import expand
from architectures import IMAGE, draw
from helpers import assert_close, assert_same_state, gen, randomise, rows, run, small_net

LEAKS = "with every mask at 0 its base outputs still change"
VECTORS = torch.zeros(2, 6)


def refused(model, inputs=IMAGE, **kwargs) -> str:
    """expand must raise a TypeError that names a module of the network; returns what comes after "cannot expand "."""
    with pytest.raises(TypeError, match=r"^cannot expand ('|the network|Linear: )") as info:
        expand.expand(model, inputs, **kwargs)
    text = str(info.value).removeprefix("cannot expand ")
    if text.startswith("'"):
        assert text.split("'")[1] in dict(model.named_modules()), text
    return text


class Does(nn.Module):
    """A function of a tensor, and a layer that it may use."""

    def __init__(self, function, layer=None):
        super().__init__()
        self.function, self.layer = function, layer

    def forward(self, x):
        return self.function(x) if self.layer is None else self.function(self.layer, x)


def pooled(width, bias=True):
    """Global pooling and a Linear."""
    return nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(width, 2, bias=bias)


def chain(*between, width=3, bias=True):
    """conv '0' - the given modules '1', '2', ... - conv - pool - Linear; the weights are the same at every call."""
    net = nn.Sequential(nn.Conv2d(1, width, 3), *between, nn.Conv2d(width, width, 3, bias=bias), *pooled(width, bias))
    return randomise(net, 0)


def flip(x):
    """The channels in reversed order, so that base and extra ones change places."""
    return x.flip(1)


class Through(nn.Module):
    """conv - a function of its output - pool - Linear."""

    def __init__(self, then=lambda x: x, width=3):
        super().__init__()
        self.then, self.conv, self.head = then, nn.Conv2d(1, width, 3), nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.then(self.conv(x)).amax(dim=(2, 3)))


class Linears(nn.Module):
    """stem - up - head on vectors of 6, with what stands between them given."""

    def __init__(self, into=lambda x: x, back=lambda x: x, inputs=6):
        super().__init__()
        self.into, self.back = into, back
        self.stem, self.up, self.head = nn.Linear(6, 6), nn.Linear(inputs, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.back(self.head(self.up(self.into(self.stem(x))).relu()))


# --- Arguments --------------------------------------------------------------------------------------------------------

ANY_RATIO = "it must be extra width over base width, a finite number of at least 0"
ANY_EXAMPLE = r"it must be a batch of inputs, a tensor \(B, ...\) with B at least 1"


@pytest.mark.parametrize("kwargs, error, words", [
    (dict(ratio=-0.1), ValueError, f"ratio is -0.1; {ANY_RATIO}"),
    (dict(ratio=math.inf), ValueError, f"ratio is inf; {ANY_RATIO}"),
    (dict(ratio=math.nan), ValueError, f"ratio is nan; {ANY_RATIO}"),
    (dict(layers=["nothing"]), ValueError, "no layer 'nothing'; it has conv1, conv2, norm1, norm2, act, head"),
    (dict(layers=["conv1", "act"]), TypeError, "cannot expand 'act': this CELU is no plain Conv2d or Linear"),
    (dict(layers=[]), TypeError, "cannot expand Net: no layer is named, so the layers to expand must be named$"),
    (dict(layers=["head"]), TypeError, r"it gives \(2, 8\) instead of \(2, 4\); name the layers to expand"),
    (dict(example=torch.zeros(8)), ValueError, rf"example is torch.Size\(\[8\]\); {ANY_EXAMPLE}"),
    (dict(example=torch.zeros(0, 1, 8, 8)), ValueError, rf"example is torch.Size\(\[0, 1, 8, 8\]\); {ANY_EXAMPLE}"),
    (dict(example=[IMAGE]), ValueError, f"example is list; {ANY_EXAMPLE}"),
    (dict(example=torch.zeros(2, 5, 8, 8)), TypeError, "cannot expand 'conv1': .* to have 1 channels, but got 5"),
    (dict(model=expand.expand(small_net(0), IMAGE)), TypeError,
     "the network is expanded already; drop it first or use it as it is"),
])
def test_bad_arguments_are_refused(kwargs, error, words):
    """X10: unusable ratios, examples and layer names raise ValueError, layers that cannot be expanded and an expanded
    network TypeError, each with what was given and what must be; the network is left as it was."""
    before = kwargs.pop("model", small_net(0))
    net = copy.deepcopy(before)
    with pytest.raises(error, match=words):
        expand.expand(net, kwargs.pop("example", IMAGE), **kwargs)
    assert_same_state(net, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


# --- By name ----------------------------------------------------------------------------------------------------------

def put(name, module):
    """Puts a module into a network under a name."""
    return lambda net: setattr(net, name, module)


def derived(layer, base, name="Special"):
    """Gives a layer the class `name`, derived from its own in another module."""
    def derive(net):
        net.get_submodule(layer).__class__ = type(name, (base,), {"__module__": "elsewhere"})

    return derive


def old_weight_norm(net):
    """The one that is a hook, as pruning and the old spectral norm are."""
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(net.conv2)


@pytest.mark.parametrize("spoil, text", [
    (lambda net: net.to("meta"), "the network Net: 'conv1.weight' is on the meta device, without values"),
    (lambda net: net.register_buffer("scale", torch.ones(1, device="meta")), "the network Net: 'scale' is on the meta"),
    # a subclass may compute something else, also one that has a known one's name alone
    (derived("conv1", nn.Conv2d), "'conv1': this Special is no plain Conv2d or Linear"),
    (derived("head", nn.Linear, "Linear"), "'head'"),
    (derived("norm1", nn.BatchNorm2d, "BatchNormAct2d"),
     "'norm1': masked passes would move the running statistics of BatchNormAct2d"),
    (put("norm1", nn.SyncBatchNorm(3)), "'norm1': masked passes would move the running statistics of SyncBatchNorm"),
    # weights that are made of other tensors
    (lambda net: nn.utils.parametrizations.weight_norm(net.conv1), "'conv1'"),
    (old_weight_norm, "'conv2': this Conv2d is no plain Conv2d or Linear with a weight of its own; take off weight n"),
    (lambda net: nn.utils.spectral_norm(net.conv2), "'conv2': this Conv2d is no plain Conv2d or Linear"),
    (lambda net: prune.random_unstructured(net.head, "weight", 0.5), "'head'"),
    (put("spare", nn.Conv2d(1, 2, 3)), "'spare': it did not run on the example; leave it out with layers="),
    # in training mode they turn a masked 0 into another value
    (put("act", nn.AlphaDropout(0.5)), "'act': AlphaDropout turns masked zeros"),
    (put("act", nn.FeatureAlphaDropout(0.5)), "'act': FeatureAlphaDropout turns masked zeros"),
])
def test_what_is_refused_by_name(spoil, text):
    """F2, X10: tensors without values, subclasses, weights that are made of others, a layer that does not run, running
    statistics that are not kept apart, and both kinds of AlphaDropout."""
    net = small_net(0).eval()
    spoil(net)
    assert refused(net).startswith(text)


def test_wrappers_around_a_network_are_refused():
    """X10, D1: DataParallel, DistributedDataParallel and torch.compile stand round the network that is meant, or a part
    of it; the text names where and what to take instead."""
    distributed = nn.parallel.DistributedDataParallel
    parallel = distributed.__new__(distributed)  # making one asks for several processes
    nn.Module.__init__(parallel)
    parallel.module = small_net(0)
    for wrapper in (nn.DataParallel(small_net(0)), parallel):
        assert f"it is a {type(wrapper).__name__}; take the network inside, .module" in refused(wrapper)
        assert refused(nn.Sequential(wrapper)).startswith(f"'0': it is a {type(wrapper).__name__}")
    compiled = small_net(0)
    compiled._orig_mod = nn.Identity()  # how torch.compile keeps the network inside
    assert "it is compiled; take the network before compiling, ._orig_mod" in refused(compiled)


def test_hooks_run_in_masked_passes_too():
    """X1, X9, X10: a hook is a part of the network. One that doubles what a norm gives has the effect of a module that
    does, in base and masked passes; one of gradients gets those of the extra channels, too; one that mixes channels is
    refused. A parameter without entries, of shape (0, 3), changes nothing."""
    hooked, plain = chain(nn.BatchNorm2d(3), nn.ReLU()), chain(nn.BatchNorm2d(3), Does(lambda x: 2 * x), nn.ReLU())
    hooked[1].register_forward_hook(lambda m, args, out: 2 * out)
    hooked.register_parameter("spare", nn.Parameter(torch.zeros(0, 3)))
    seen = []
    hooked[3].register_full_backward_hook(lambda m, grad_in, grad_out: seen.append(grad_out[0].shape[1]))
    a, b = (expand.expand(each.double(), IMAGE, generator=gen(1)) for each in (hooked, plain))
    x = draw(0, 4, 1, 8, 8, dtype=torch.float64)
    for mode in (True, False):
        for masks in ((), (rows(0, a, 4),)):
            outs = [each.train(mode)(x, *masks) for each in (a, b)]
            assert torch.equal(*outs)
            outs[0].square().sum().backward()
    assert seen[-4:] == [3, 6, 3, 6]
    hooked[3].register_forward_pre_hook(lambda m, args: flip(args[0]))
    assert refused(hooked).startswith(f"'3': {LEAKS}")


# --- The dry run ------------------------------------------------------------------------------------------------------

class Twice(nn.Module):
    """One convolution that runs twice: on the input and on what `stem` gave, in an order."""

    def __init__(self, input_first):
        super().__init__()
        self.input_first, self.stem, self.twice = input_first, nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.head = nn.Linear(2, 2)

    def forward(self, x):
        inputs = [x, self.stem(x)] if self.input_first else [self.stem(x), x]
        return self.head(sum(self.twice(each) for each in inputs).amax(dim=(2, 3)))


def tokens_first(x):
    """Two tokens on the first axis, as many as the dry run has examples."""
    return x.unflatten(1, (2, -1)).transpose(0, 1)


def crops(net, x):
    """Two crops of each image as examples of their own: a batch twice as long inside."""
    return net(x.reshape(-1, 1, 4, 8)).unflatten(0, (-1, 2)).mean(1)


@pytest.mark.parametrize("make, inputs, layers, text", [
    # a network that is one layer has nothing but logits
    (lambda: nn.Conv2d(1, 2, 3), IMAGE, None, "the network"),
    (lambda: nn.Linear(8, 8), IMAGE, [""], "the network"),
    (lambda: nn.Linear(8, 8), IMAGE, None, "Linear: it has no Conv2d"),
    *((lambda first=first: Twice(first), torch.zeros(2, 2, 8, 8), None,
       "'twice': it runs twice with different numbers of extra channels") for first in (True, False)),
    # a mask row an example cannot serve a batch that is longer inside, or not the first axis
    (lambda: Does(crops, Through()), IMAGE, None, "'layer.conv': it runs on 4 rows for 2 examples, so their masks do"),
    (lambda: Linears(lambda x: x[None], lambda x: x[0]), VECTORS, ["up"], "'up': it runs on 1 rows for 2"),
    (lambda: Linears(tokens_first, lambda x: x.mean(0), inputs=3), VECTORS, ["up"],
     "'up': it runs on 2 rows for 6 examples"),  # of the self-check
])
def test_where_masks_or_extra_channels_do_not_fit(make, inputs, layers, text):
    """X10, X11, X12: a single layer, one that meets extra channels once and none the other time, in either order, and a
    batch on another axis are refused by name."""
    assert refused(make(), inputs, layers=layers).startswith(text)


@pytest.mark.parametrize("error, told", [
    *((kind("a"), True) for kind in (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError,
                                     AssertionError)),
    *((error, False) for error in (torch.OutOfMemoryError("none left"), RuntimeError("can't allocate memory"),
                                   NameError("x"), MemoryError()))])
def test_what_a_forward_pass_raises(error, told):
    """X10: what a network raises where extra channels do not fit is a TypeError that names the module; running out of
    memory and bugs of the code itself are no verdict about the network, and go through."""
    def then(x):
        if x.shape[1] > 3:
            raise error
        return x

    with pytest.raises(TypeError if told else type(error)) as found:
        expand.expand(Through(then), IMAGE)
    assert str(found.value).startswith("cannot expand the network Through: ") == told


@pytest.mark.parametrize("kwargs, width", [(dict(layers=["2"]), 3), (dict(ratio=0.0), 0)])
def test_grouped_convolution_out_of_reach(kwargs, width):
    """X7, X10: a grouped convolution that no extra channel reaches is left as it is, and refused where one does; the
    text says what to try, but not to somebody who has named layers."""
    net = randomise(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 3, 1), *pooled(3)), 0)
    assert expand.expand(net, IMAGE, **kwargs).width == width
    assert refused(net) == f"'1': it is a grouped convolution that is not depthwise; {expand.ADVICE}"
    assert expand.ADVICE not in refused(net, layers=["0"])
    net.expandable = ("0",)
    assert expand.ADVICE not in refused(net)


# --- The self-check: extra channels stay apart ------------------------------------------------------------------------

class Mixer(nn.Module):
    """first + other - something that does not keep extra channels apart - last - pool - Linear."""

    def __init__(self, inner, width, inputs, join=torch.add):
        super().__init__()
        self.first, self.other, self.join = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(1, width, 1), join
        self.inner, self.last, self.head = inner, nn.Conv2d(inputs, 5, 1), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.last(self.inner(self.join(self.first(x), self.other(x))).relu()).amax(dim=(2, 3)))


def beside(first, other):
    """The channels of both, one after the other."""
    return torch.cat([first, other], dim=1)


def halves(x):
    """The product of two halves of the channels."""
    first, second = x.chunk(2, dim=1)
    return first * second


LAYERS = {  # each works on all channels together, or has a number of its own for each
    "grouped": lambda width: nn.Conv2d(width, width, 3, padding=1, groups=2),
    "groupnorm": lambda width: nn.GroupNorm(2, width),
    "instancenorm": lambda width: nn.InstanceNorm2d(width, affine=True),
    "layernorm": lambda width: Does(lambda norm, x: norm(x.movedim(1, -1)).movedim(-1, 1), nn.LayerNorm(width)),
    "conv1d": lambda width: Does(lambda conv, x: conv(x.flatten(2)).unflatten(2, (8, 8)), nn.Conv1d(width, width, 1)),
    "transposed": lambda width: nn.ConvTranspose2d(width, width, 2)}

FUNCTIONS = {
    "shuffle": lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2), "roll": lambda x: x.roll(1, dims=1),
    "flip": flip, "mean": lambda x: x * x.mean(1, keepdim=True), "softmax": lambda x: x.softmax(dim=1),
    "groupnorm-plain": lambda x: F.group_norm(x, 1), "sigmoid": torch.sigmoid, "exp": torch.exp,
    "softplus": F.softplus, "shift": lambda x: x + 0.5, "nan": lambda x: x * x.abs().log(), "halves": halves}


@pytest.mark.parametrize("width, ratio", [(4, 1.0), (6, 0.5), (8, 2.0)])
def test_every_kind_of_mixing_is_refused(width, ratio):
    """X10: concatenation, grouped convolution, shuffling, slicing, norms over channels and maps of 0 to another value
    are refused at any width, and the layer is named at which that shows."""
    for kind, layer in LAYERS.items():
        assert refused(randomise(Mixer(layer(width), width, width), width), ratio=ratio).startswith("'inner"), kind
    nets = [Mixer(nn.Identity(), width, 2 * width, beside), Mixer(Does(lambda x: x[:, -width:]), width, width)]
    nets += [Mixer(Does(function), width, width // 2 if function is halves else width)
             for function in FUNCTIONS.values()]
    for net in nets:  # 'first' and 'other' run before and keep their outputs; 'head' runs after
        text = refused(randomise(net, width), ratio=ratio)
        assert ratio != 1.0 or text.startswith(f"'last': {LEAKS}"), text
    pixels_first = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), Does(lambda x: x.movedim(1, -1).flatten(1)),
                                 nn.Linear(64 * width, 3))
    text = refused(randomise(pixels_first, width), ratio=ratio)
    assert ratio != 1.0 or text.startswith(f"'2': {LEAKS}"), text


def flipped_at(place):
    """Convolutions, a norm and a head, with the channels in reversed order before one of them."""
    layers = [nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1),
              *pooled(4)]
    layers.insert(place, Does(flip))
    return randomise(nn.Sequential(*layers), 0)


def mixing_head():
    """A network whose layers keep their base outputs, while its logits change."""
    head = Does(lambda linear, x: linear(x) + x.mean(dim=1, keepdim=True), nn.Linear(3, 2))
    return randomise(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), *pooled(3)[:2], head), 0)


def lifted(x):
    """Softplus(1e3), whose leak is 7e-4, and 1e9 added to the one base channel."""
    x = F.softplus(x, 1e3)
    return torch.cat([x[:, :1] + 1e9, x[:, 1:]], dim=1)


def hidden_by_running_statistics():
    """In eval mode the running mean shuts every ReLU, so nothing is left to leak; a training pass opens them."""
    net = chain(nn.BatchNorm2d(3), nn.ReLU(), Does(flip)).eval()
    net[1].running_mean.fill_(1e3)
    return net


def hidden_by_zeros(layer, *after):
    """A layer starts at 0, as the last norm of a residual branch often does."""
    net = chain(layer, *after, Does(flip))
    nn.init.zeros_(net[1].weight)
    nn.init.zeros_(net[1].bias)
    return net


def deep(width):
    """A deep narrow network: a random draw shuts one of its ReLUs, and no leak that lies behind it shows."""
    body = [part for _ in range(24) for part in (nn.Conv2d(width, width, 1, bias=False), nn.ReLU())]
    return nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.ReLU(), *body, Does(flip),
                         nn.Conv2d(width, width, 1, bias=False), *pooled(width, bias=False))


def gate(x):
    """x * sigmoid(the largest channel): a masked 0 lifts the largest one where all base channels are negative."""
    return x * x.amax(dim=1, keepdim=True).sigmoid()


def lift(x):
    """x * (1 + the smallest channel where that is positive): of many signed channels it never is, and all pass."""
    return x * (1 + x.amin(dim=1, keepdim=True).relu())


@pytest.mark.parametrize("net, name", [
    (flipped_at(1), "'2'"), (flipped_at(2), "'3'"), (flipped_at(3), "'4'"), (flipped_at(4), "'7'"),
    (mixing_head(), "the network"),
    (chain(nn.Softplus(1e7)), "'2'"),  # log(2) / beta in place of 0, 7e-8: far from rounding in float64
    (chain(Does(lifted), width=1), "'2'"),  # next to nothing beside the size of outputs: their spread is the measure
    # hidden by present weights, statistics or scale: training would bring them out
    (hidden_by_running_statistics(), "'4'"),
    (hidden_by_zeros(nn.BatchNorm2d(3), nn.ReLU()), "'4'"), (hidden_by_zeros(nn.Conv2d(3, 3, 3)), "'3'"),
    (chain(Does(flip), Does(lambda x: 1e-10 * x), bias=False), "'3'"),
    # shown by signed draws alone, by positive ones alone, and by signed ones alone because a gate shuts the others
    (chain(Does(gate)), "'2'"), (deep(1), "'51'"), (deep(3), "'51'"), (chain(Does(lift), width=40), "'2'"),
])
def test_the_layer_that_a_leak_reaches_first_is_named(net, name):
    """X10: however small or hidden the leak is, the message names the layer whose own outputs change first; what one
    kind of draw cannot see, the other does."""
    assert refused(net).startswith(f"{name}: {LEAKS}")


@pytest.mark.parametrize("factor, bounded", [(10, nn.Hardtanh()), (10, nn.ReLU6()), (1e-12, nn.Identity()),
                                             (1e12, nn.Identity())])
def test_rounding_is_no_leak(factor, bounded):
    """X10: rounding grows with the outputs, so large and small signals are taken, bounded ones too."""
    net = chain(nn.ReLU(), Does(lambda x: factor * x), bounded, width=9)
    assert expand.expand(net, IMAGE).width == 9


# --- theta_o1 alone is the network, every weight reaches the output, every example meets its mask ---------------------

class Asking(nn.Module):
    """A network that asks its layers for their class."""

    def __init__(self, kind, then):
        super().__init__()
        self.layers = chain(nn.BatchNorm2d(3), nn.ReLU())
        self.kind, self.then = kind, then

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, self.kind):
                x = self.then(x)
        return x


@pytest.mark.parametrize("kind, then", [(nn.BatchNorm2d, torch.tanh), (nn.Conv2d, torch.tanh),
                                        (nn.Conv2d, lambda x: 1.0005 * x)])
def test_a_network_that_asks_for_classes_is_refused(kind, then):
    """X1, X10: with wrappers in it it computes something else, be it little; other layers would not help."""
    net, state = randomise(Asking(kind, then), 0), torch.get_rng_state()
    text = refused(net)
    assert "theta_o1 computes something else" in text and "isinstance" in text and expand.ADVICE not in text
    assert torch.equal(torch.get_rng_state(), state)
    assert expand.expand(randomise(Asking(kind, lambda x: x), 0), IMAGE).width == 3


def test_attributes_of_layers_are_their_own():
    """X1: a network may ask a wrapped layer for its sizes; what it has not is an AttributeError that names it."""
    expanded = expand.expand(small_net(0), IMAGE)
    conv, own = expanded.net.conv2, small_net(0).conv2
    assert (conv.out_channels, conv.kernel_size, conv.padding) == (own.out_channels, own.kernel_size, own.padding)
    with pytest.raises(AttributeError, match="nothing"):
        conv.nothing


class Shortcut(Through):
    """A network that fails where nobody watches it: without gradients and hooks, as a fast path of inference would."""

    def forward(self, x):
        if not torch.is_grad_enabled() and not self._forward_hooks:
            raise RuntimeError("the fast path wants all of its weights")
        return super().forward(x)


class Past(Linears):
    """A network that, without gradients and hooks, reads layers' weights in place of calling them, as a fast path does.
    """

    def forward(self, x):
        if torch.is_grad_enabled() or self.up._forward_hooks:
            return super().forward(x)
        inner = F.linear(self.stem(x), self.up.weight, self.up.bias).relu()
        return F.linear(inner, self.head.weight, self.head.bias)


def test_the_fast_path_of_attention_is_off_in_a_masked_pass():
    """X7: torch's encoder layer is expanded; a masked pass without gradients is the one with them, the base pass is the
    network's own bit for bit, and the switch is as it was."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    net = randomise(nn.Sequential(nn.Linear(8, 8), layer, Does(lambda x: x.mean(1)), nn.Linear(8, 4)), 0).eval()
    x = torch.randn((3, 6, 8), generator=gen(1))
    expanded = expand.expand(net, x, layers=["1.linear1"]).eval()
    mask = torch.rand((3, expanded.width), generator=gen(2)) < 0.5
    for on in (True, False):
        torch.backends.mha.set_fastpath_enabled(on)
        try:
            with torch.no_grad():
                alone, own, masked = expanded(x), net(x), expanded(x, mask)
            assert torch.equal(alone, own) and torch.backends.mha.get_fastpath_enabled() is on
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
        assert_close(masked, expanded(x, mask), 1e-5)
        assert (masked - alone).abs().max() > 1e-3


def meeting(into, back):
    """A network in which examples meet one another, in float64."""
    return randomise(Linears(into, back), 0).double()


MEETING = "the network: examples do not meet their own masks, so the batch is not the first axis"


@pytest.mark.parametrize("make, inputs, layers, text", [
    (lambda: Through(lambda x: x[:, :2], width=2), IMAGE, None,
     "'conv': its extra channels reach no output, so the network cuts them off"),
    # the batch in reversed order inside; all meet the first example, or the last
    (lambda: meeting(lambda x: x.flip(0), lambda x: x.flip(0)), VECTORS, ["up"], MEETING),
    (lambda: meeting(lambda x: x, lambda x: x + x[:1]), VECTORS, ["up"], MEETING),
    (lambda: meeting(lambda x: x, lambda x: x + x[-1:]), VECTORS, ["up"], MEETING),
    (Past, VECTORS, ["up"], "the network: without gradients it reads weights past its layers"),
    (Shortcut, IMAGE, None, "the network Shortcut: the fast path wants all of its weights"),
    # gives classes instead of logits: no gradient comes back from them
    (lambda: nn.Sequential(Through(), nn.Softmax(dim=1), Does(lambda x: x.argmax(dim=1, keepdim=True).double())),
     IMAGE, None, "the network"),
    # casts its input to float32, as networks that take uint8 images do, and the self-check is in float64
    (lambda: nn.Sequential(Does(lambda x: x.float()), Through()), IMAGE, None, "'1.conv'"),
])
def test_what_the_self_check_alone_meets_is_refused(make, inputs, layers, text):
    """X10, X13, F10: theta_o2 without effect, an example that meets another or its mask, whichever it is, a fast path
    past the layers, and whatever else fails in the self-check alone is a TypeError that names a module."""
    assert refused(make(), inputs, layers=layers).startswith(text)


class Headed(nn.Module):
    """With an auxiliary head, which runs in training alone."""

    def __init__(self, how):
        super().__init__()
        self.how, self.net, self.aux = how, small_net(0), nn.Linear(3, 4)

    def forward(self, x):
        if not self.training:
            return self.net(x)
        if self.how == "tuple":
            return namedtuple("Outputs", "logits aux")(self.net(x), self.net(x))
        return self.net(x) + self.aux(self.net.conv1(x).mean(dim=(2, 3)))


def test_heads_of_training_are_refused_before_any_work():
    """X10: another output in training is a ValueError of `expand`, a layer that then gets extra channels it did not
    grow for a TypeError that names it."""
    with pytest.raises(ValueError, match="in training the network gives a Outputs .*aux_logits=False"):
        expand.expand(Headed("tuple"), IMAGE)
    assert refused(Headed("sum")).startswith("'aux'")


# --- Networks of torchvision, layers of timm --------------------------------------------------------------------------

def small_efficientnet(num_classes):
    """Blocks with squeeze and excitation, of which the second kind expands its channels."""
    settings = [MBConvConfig(1, 3, 1, 32, 16, 1, 0.25, 1), MBConvConfig(6, 3, 2, 16, 24, 2, 0.25, 1)]
    return torchvision.models.EfficientNet(settings, 0.2, num_classes=num_classes, last_channel=32)


TORCHVISION = {  # small ones of their kinds
    "resnet": lambda **more: resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], **more),
    "mobilenet": lambda **more: torchvision.models.MobileNetV2(
        width_mult=0.25, inverted_residual_setting=[[1, 32, 1, 1], [6, 64, 2, 2]], **more),
    "swin": lambda **more: torchvision.models.SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], **more),
    "efficientnet": small_efficientnet}


def known(name):
    """One of torchvision's networks of 10 classes, in float64: in eval mode new ones let signals shrink to 1e-13."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TORCHVISION[name](num_classes=10).double().eval()


@pytest.mark.parametrize("name", TORCHVISION)
def test_known_networks_expand_and_drop_back(name):
    """X10, X1, D1, D2: torchvision's networks expand, run base-only bit for bit, and drop back whole."""
    net, inputs, layers = known(name), torch.zeros(2, 3, 32, 32), None
    if name == "swin":
        layers = [n for n, m in net.named_modules() if isinstance(m, nn.Linear) and n.endswith("mlp.0")]
    expanded, x = expand.expand(net, inputs, 0.5, layers), draw(0, 2, 3, 32, 32, dtype=torch.float64)
    plain = run(net, x)
    assert expanded.width > 0 and torch.equal(run(expanded, x), plain)
    dropped = etd.drop(expanded)
    assert_same_state(dropped, net)
    known(name).load_state_dict(dropped.state_dict(), strict=True)
    scale, off, on = plain.abs().max(), *(run(expanded, x, rows(0, expanded, 2, share)) for share in (0, 1))
    assert_close(off / scale, plain / scale, 1e-10)  # through many layers
    assert (on - off).abs().max() > 1e-3 * scale


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


def test_timm_layers_are_known_by_name():
    """X1, X9: timm's BatchNormAct2d and Linear expand as the torch layers that they stand for, statistics too."""
    def make(norm, act, linear):
        return nn.Sequential(nn.Conv2d(1, 4, 3), norm(4), act, nn.Conv2d(4, 4, 3), norm(4), act,
                             nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(4, 2))

    named, plain = make(BatchNormAct2d, nn.Identity(), Linear), make(nn.BatchNorm2d, nn.ReLU(), nn.Linear)
    nets = [randomise(expand.expand(randomise(net, 0).double(), IMAGE, 0.5, generator=gen(1)), 2)
            for net in (named, plain)]
    x = draw(0, 4, 1, 8, 8, dtype=torch.float64)
    for mode in (True, False):
        assert_close(*(run(net.train(mode), x, rows(0, net, 4)) for net in nets))
        assert_close(*(run(net.train(mode), x) for net in nets))
    assert type(etd.drop(nets[0])[1]) is BatchNormAct2d
