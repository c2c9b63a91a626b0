"""Step 1 of Algorithm 1 (Sec. 5 "Expand"): put theta_o2 beside theta_o1. What the paper says of it, and what holds it:

- Algorithm 1: "Step 1: Add additional capacity theta_o2 to the existing model theta_o1 for redirection." Alone,
  theta_o1 is the existing model bit for bit, in training too, and the model given is left as it is.      X1, X2, X5, X7
- Sec. 5: "expands the network with additional capacity, initialized randomly". Choice: uniform, as torch draws a layer
  of the wider network, biases 0, from a seed.                                                                        X4
- Sec. 5: "we expand the number of channels in each convolutional layer". The classes stay as many as they are; at 50 %
  capacity (A.3) as many channels come as there are.                                                             X3, X12
- Sec. 5: "all examples pass through all of theta_o1 but each example will only pass through its assigned path in
  theta_o2 based on its mask": so does the plain wide network of twins.py.                             X9, M11, M12, E1
- Table 3 and A.3, ViT: "Before/after FF in transformer blocks". Choice: hidden units of the feed-forward layers.    X13

Beside this path: networks of other kinds in test_expand_any_network.py; masks in test_etd.py; what is refused,
and in what words, in tests/engine/test_admission.py.
"""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import etd
import expand
import twins
from architectures import IMAGE, SMALL_VIT, assert_transparent, assert_wide_twin, draw, fill_wide
from etd import ExpandedWeight
from helpers import assert_close, assert_same_state, gen, randomise, rows, run, seeds, small_net
from models import build

ratios = st.sampled_from([0.0, 0.3, 0.5, 1.0, 1.7])


# --- theta_o1 is the existing model -----------------------------------------------------------------------------------

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


@given(seed=seeds, ratio=ratios)
def test_original_is_untouched(seed, ratio):
    """X5: neither the original nor the dropped network shares storage with the expanded one, and no hook is left."""
    net = small_net(seed)
    expanded = expand.expand(net, IMAGE, ratio)
    dropped = etd.drop(expanded)
    pointers = [{t.data_ptr() for t in n.state_dict().values() if t.numel()} for n in (net, expanded, dropped)]
    assert not (pointers[0] & pointers[1] or pointers[1] & pointers[2] or pointers[0] & pointers[2])
    assert not any(m._forward_hooks or m._forward_pre_hooks for n in (net, expanded, dropped) for m in n.modules())


# --- Initialized randomly ---------------------------------------------------------------------------------------------

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


# --- Channels in each convolutional layer -----------------------------------------------------------------------------

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


# --- Each example through its own path --------------------------------------------------------------------------------

@given(seed=seeds, width=st.integers(1, 5), ratio=st.sampled_from([0.6, 1.0, 1.7]), batch=st.integers(2, 4),
       share=st.sampled_from([0, 0.5, 1]), training=st.booleans())
def test_masked_pass_is_the_twins(seed, width, ratio, batch, share, training):
    """X9, M11, M12, E1: the masked pass is that of the twin's plain wide network, in both modes; in eval mode each
    example alone gives what it gives in the batch."""
    expanded = expand.expand(small_net(seed, width=width, dtype=torch.float64), IMAGE, ratio, generator=gen(seed))
    randomise(expanded, seed).train(training)  # theta_o2's biases and statistics too
    x, mask = draw(seed, batch, 1, 3, 4, dtype=torch.float64), rows(seed, expanded, batch, share)
    twin = twins.RemTwin(twins.weights_of(expanded.state_dict()), lr=0, momentum=0, decay=0, beta=1)
    ones = [slice(None)] if training else range(batch)
    expected = [twin.logits(twin.w, x[i].view(-1, 1, 3, 4), mask[i].view(-1, mask.shape[1]).double(), training)
                for i in ones]
    # sums in another order, running variances down to 0.1
    assert_close(run(expanded, x, mask), torch.cat(expected), 1e-11)


# --- Feed-forward layers of the ViT -----------------------------------------------------------------------------------

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
