"""The two networks of the paper, ResNet-9 and a small-data ViT (Sec. 4, "Experimental setup"; A.3 with Table 3).

- Table 3: the sizes of both at 100 % capacity, R8; "capacity" multiplies every width, N1, X3.
- ResNet-9 of Goel et al. 2024, layer by layer, at any image size, with its first weights and statistics: N1.
- The ViT for small data (Lee et al. 2021), with shifted patches and locality attention, by hand: N3, N1.
- Seeds 0, 1, 2: weights come from the seed: N1. Sizes that do not fit are told: N3.
- Sec. 3, "retraining from scratch": any network's weights drawn anew: N1.
"""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from helpers import assert_close, assert_same_state, gen, randomise, seeds
from models import ARCHITECTURES, LocalityAttention, ResNet9, ShiftedPatches, ViT, build, reinitialise
from test_etd import untouched_rng

SMALL = dict(patch=4, dim=8, depth=2, heads=2, head_dim=4, hidden=12)  # a ViT that runs in a blink


def made(name, capacity=1.0, seed=0, **more):
    """A small network on images of 8x8."""
    return build(name, capacity, seed=seed, image_size=8, **(SMALL if name == "vit" else {}), **more)


def size(net):
    """The number of parameters."""
    return sum(p.numel() for p in net.parameters())


# --- Table 3 ----------------------------------------------------------------------------------------------------------

def test_golden_sizes():
    """N1, R8: 2.276 M parameters of ResNet-9 at 100 %, 571 k at 50 %; of the ViT patch 8, dimension 512, depth 4,
    8 heads of 64 and hidden width 1536."""
    assert size(build("resnet9", 1.0, seed=0)) == 2_276_224
    assert size(build("resnet9", 0.5, seed=0)) == 570_816
    net = build("vit", 1.0, seed=0)
    attention = 2 * 512 + 512 * 3 * 512 + 512 * 512 + 512 + 1
    ff = 2 * 512 + 512 * 1536 + 1536 + 1536 * 512 + 512
    patches = 2 * 960 + 960 * 512 + 512  # 5 images x 3 channels x 8 x 8 pixels
    assert size(net) == 4 * (attention + ff) + patches + 17 * 512 + 512 + 2 * 512 + 512 * 10 + 10
    assert [(part.heads, part.qkv.out_features) for part in net.attention] == 4 * [(8, 3 * 8 * 64)]


@given(st.sampled_from([0.125, 0.25, 0.5, 1.0]), st.sampled_from([1, 3]), st.integers(1, 12))
def test_width_scaling(capacity, channels, classes):
    """N1, X3: every width of ResNet-9 is multiplied by the capacity; of the ViT the hidden width alone."""
    a, b, c = (round(w * capacity) for w in (64, 128, 256))
    convs = [(channels, a, 3), (a, b, 5), (b, b, 3), (b, b, 3), (b, c, 3), (c, c, 3), (c, c, 3), (c, b, 3)]
    # convolutions with bias, two numbers a BatchNorm channel, a head without bias
    expected = sum(i * o * k * k + o + 2 * o for i, o, k in convs) + b * classes
    assert size(made("resnet9", capacity, channels=channels, classes=classes)) == expected
    whole, less = (made("vit", share, channels=channels, classes=classes) for share in (1.0, capacity))
    hidden = max(1, round(12 * capacity))
    assert size(whole) - size(less) == 2 * (12 - hidden) * (8 + 1 + 8)  # depth 2
    assert whole.head.out_features == classes


# --- ResNet-9 ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("image_size", [8, 10, 11, 12, 28, 33])
def test_resnet9_takes_every_size(image_size):
    """N1: (B, C, S, S) -> (B, classes) from 8 pixels on, forward and backward, padded below 11 only."""
    net = build("resnet9", 0.05, channels=1, classes=4, image_size=image_size, seed=0)
    out = net(torch.rand((2, 1, image_size, image_size), generator=gen(0)))
    assert out.shape == (2, 4) and torch.isfinite(out).all()
    out.sum().backward()
    last = [m for m in net.modules() if isinstance(m, nn.Conv2d)][-1]
    assert last.padding == ((1, 1) if image_size <= 10 else (0, 0))


def test_resnet9_by_hand():
    """N1, N3: the layers of Goel et al.'s ResNet-9 one after another, CELU at 0.075, two residual sums, a head without
    bias; a second pass says the same."""
    net = randomise(build("resnet9", 0.1, channels=2, classes=4, image_size=17, seed=0), 0).double().eval()
    convs, norms = ([m for m in net.modules() if isinstance(m, kind)] for kind in (nn.Conv2d, nn.BatchNorm2d))
    assert [(c.out_channels, c.kernel_size[0], c.stride[0]) for c in convs] == [
        (6, 3, 1), (13, 5, 2), (13, 3, 1), (13, 3, 1), (26, 3, 1), (26, 3, 1), (26, 3, 1), (13, 3, 1)]

    def unit(x, k):
        conv, norm = convs[k], norms[k]
        x = F.conv2d(x, conv.weight, conv.bias, stride=2 if k == 1 else 1, padding=(1, 2, 1, 1, 1, 1, 1, 0)[k])
        mean, var, weight, bias = (t[:, None, None] for t in (norm.running_mean, norm.running_var, norm.weight,
                                                              norm.bias))
        x = (x - mean) / (var + 1e-5).sqrt() * weight + bias
        return torch.where(x > 0, x, 0.075 * ((x / 0.075).exp() - 1))

    image = torch.rand((3, 2, 17, 17), generator=gen(1), dtype=torch.float64)
    x = unit(unit(image, 0), 1)
    x = x + unit(unit(x, 2), 3)
    x = F.max_pool2d(unit(x, 4), 2)
    x = x + unit(unit(x, 5), 6)
    x = unit(x, 7).amax(dim=(2, 3)) @ net.head.weight.T
    assert_close(net(image), x)
    assert torch.equal(net(image), net(image))


def test_resnet9_initialisation():
    """N1: convolution biases start at 0, weights within torch's default bound 1 / sqrt(fan-in) and of its spread."""
    for conv in (m for m in build("resnet9", 0.5, seed=1).modules() if isinstance(m, nn.Conv2d)):
        bound = conv.weight[0].numel() ** -0.5
        assert not conv.bias.any() and conv.weight.abs().max() <= bound
        # uniform: sd = bound / sqrt(3); its estimate from m >= 864 draws has sd below bound / sqrt(m), here 5 of them
        assert abs(conv.weight.std() - bound / 3**0.5) < 5 * bound / conv.weight.numel() ** 0.5


# --- The ViT ----------------------------------------------------------------------------------------------------------

def test_vit_by_hand():
    """N3: class token first, positions, then attention and feed-forward layers with residual sums; the class token's
    logits; a second pass says the same."""
    net = randomise(made("vit", 0.5, channels=1, classes=4), 0).double().eval()

    def norm(x, layer):
        spread = (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        return (x - x.mean(-1, keepdim=True)) / spread * layer.weight + layer.bias

    image = torch.rand((3, 1, 8, 8), generator=gen(1), dtype=torch.float64)
    x = torch.cat([net.token.repeat(3, 1, 1), net.patches(image)], dim=1) + net.position  # (3, 5, 8)
    for attention, (before, up, _, down) in zip(net.attention, net.ff, strict=True):
        x = x + attention(x)
        hidden = norm(x, before) @ up.weight.T + up.bias
        gelu = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        x = x + gelu @ down.weight.T + down.bias
    assert_close(net(image), norm(x[:, 0], net.norm) @ net.head.weight.T + net.head.bias)
    assert torch.equal(net(image), net(image))


@pytest.mark.parametrize("tokens", [2, 5])
def test_attention_matches_the_formula(tokens):
    """N3: softmax(q k^T exp(temperature), diagonal left out) v, by hand; of two tokens each has the other's value; the
    temperature starts at 1 / sqrt(head_dim)."""
    net = LocalityAttention(6, 2, 3).double()
    assert_close(net.temperature.exp(), torch.tensor(3.0, dtype=torch.float64) ** -0.5, 1e-7)  # made in float32
    randomise(net, 0)
    x = torch.rand((2, tokens, 6), generator=gen(4), dtype=torch.float64)
    parts = net.qkv(net.norm(x)).reshape(2, tokens, 3, 2, 3)
    out = torch.empty(2, tokens, 2, 3, dtype=torch.float64)
    for head in range(2):
        q, k, v = (parts[:, :, i, head] for i in range(3))  # (2, tokens, 3)
        scores = q @ k.transpose(1, 2) * net.temperature.exp()
        scores = scores.masked_fill(torch.eye(tokens, dtype=torch.bool), -torch.inf)
        out[:, :, head] = scores.softmax(-1) @ v
        assert tokens > 2 or torch.equal(out[:, :, head], v.flip(1))
    assert_close(net(x), net.out(out.reshape(2, tokens, 6)))


def test_shifted_patches():
    """N3: a patch's vector holds its own pixels first, then those half a patch up-left, ... zeros beyond the image."""
    net = ShiftedPatches(1, 4, 7).double()
    x = torch.rand((1, 1, 8, 8), generator=gen(5), dtype=torch.float64)
    seen = {}
    net.norm.register_forward_pre_hook(lambda m, args: seen.update(x=args[0]))
    net(x)
    patches = seen["x"][0].reshape(4, 5, 4, 4)  # token, shift, row, column
    padded = torch.zeros(12, 12, dtype=torch.float64)
    padded[2:10, 2:10] = x[0, 0]
    for token, (top, left) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        assert torch.equal(patches[token, 0], x[0, 0, top : top + 4, left : left + 4])
        windows = [padded[2 + top + dy : 6 + top + dy, 2 + left + dx : 6 + left + dx]
                   for dy in (-2, 2) for dx in (-2, 2)]
        found = [k for shifted in patches[token, 1:] for k, part in enumerate(windows) if torch.equal(shifted, part)]
        assert sorted(found) == [0, 1, 2, 3]  # each of the four once


def test_vit_initialisation():
    """N1: the class token and every position start at a mean of 0 and a spread of 0.02."""
    net = build("vit", seed=0)
    for p in (net.token, net.position):
        values, n = p.detach().double().flatten(), p.numel()
        # standard errors of a mean and of a standard deviation of n normal draws; five of each
        assert abs(values.mean()) < 5 * 0.02 * n**-0.5 and abs(values.std() - 0.02) < 5 * 0.02 * (2 * n) ** -0.5


# --- Both -------------------------------------------------------------------------------------------------------------

@given(st.sampled_from(sorted(ARCHITECTURES)), seeds)
def test_weights_come_from_the_seed(name, seed):
    """N1: the same seed gives the same weights in training mode, another seed others; no global random state moves, but
    that of torch where no seed is given."""
    with untouched_rng():
        a, b, other = (made(name, 0.1, seed=s) for s in (seed, seed, seed + 1))
    assert_same_state(a, b)
    assert a.training and not torch.equal(a.head.weight, other.head.weight)
    torch.manual_seed(seed)
    assert_same_state(made(name, 0.1, seed=None), a)
    assert not torch.equal(made(name, 0.1, seed=None).head.weight, a.head.weight)


@pytest.mark.parametrize("make, words", [
    (lambda: build("resnet10"), "unknown architecture 'resnet10'; choose one of resnet9, vit"),
    (lambda: ResNet9(image_size=7), "images of 7x7 are smaller than ResNet-9 takes"),
    (lambda: ResNet9(capacity=0), "capacity is 0; it must be a factor above 0"),
    (lambda: ResNet9(capacity=float("inf")), "capacity is inf"), (lambda: ResNet9(channels=0), "channels is 0"),
    (lambda: ViT(classes=0), "classes is 0"), (lambda: ViT(capacity=-1), "capacity is -1"),
    (lambda: ViT(image_size=30), "image size 30 and patch size 8 do not fit; use a multiple of 8"),
    (lambda: ViT(image_size=8), "at least 16"),
])
def test_errors(make, words):
    """N3: sizes that do not fit are a ValueError with the numbers."""
    with pytest.raises(ValueError, match=words):
        make()


# --- Weights drawn anew -----------------------------------------------------------------------------------------------

def test_fresh_resnet9():
    """N1: fresh weights of ResNet-9 are what `build` draws from that seed, in the network's own layout, mode and
    dtype."""
    net = build("resnet9", 0.1, channels=1, image_size=8, seed=1).eval().requires_grad_(False)
    net.to(memory_format=torch.channels_last)
    before, state = copy.deepcopy(net), torch.get_rng_state()
    fresh = reinitialise(net, 2)
    assert_same_state(fresh, build("resnet9", 0.1, channels=1, image_size=8, seed=2))
    assert_same_state(net, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert [v.stride() for v in fresh.state_dict().values()] == [v.stride() for v in net.state_dict().values()]
    assert not any(m.training for m in fresh.modules()) and not any(p.requires_grad for p in fresh.parameters())
    assert all(p.dtype == torch.float64 for p in reinitialise(net.double(), 2).parameters())


def test_fresh_vit():
    """N1: no number of the ViT's trained weights is left, its bare parameters included, and each has its first
    spread."""
    sizes = dict(channels=1, image_size=16, dim=64, depth=2, heads=2, head_dim=32, hidden=64)
    net, first = build("vit", seed=0, **sizes), build("vit", seed=2, **sizes)
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(7.0)
    fresh = reinitialise(net, 1)
    for (name, a), b in zip(fresh.named_parameters(), first.parameters(), strict=True):
        assert not (a == 7).any(), name
        # a standard deviation of k draws is known to 1 / sqrt(2 k): five of them, for both
        found, wanted = (float(v.detach().std(correction=0)) for v in (a, b))
        assert abs(found - wanted) <= 5 * wanted * a.numel() ** -0.5, name
        assert wanted > 0 or torch.equal(a, b), name  # temperatures, LayerNorm
    assert_same_state(fresh, reinitialise(net, 1))
    assert not torch.equal(fresh.token, reinitialise(net, 2).token)


def test_reinitialise_draws_torchs_attention_anew():
    """N1: a module that draws its weights by `_reset_parameters`, as nn.MultiheadAttention does, is drawn anew too."""
    net = nn.MultiheadAttention(4, 2)
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(7.0)
    fresh = reinitialise(net, 1)
    assert not any((p == 7).any() for p in fresh.parameters())
    assert_same_state(fresh, reinitialise(net, 1))


def test_unknown_parameters_are_refused():
    """N1: a network whose bare parameters nobody knows how to draw is refused by name, not half drawn."""
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1))

    with pytest.raises(TypeError, match="'0.1' .Scale. owns parameters and has no reset_parameters"):
        reinitialise(nn.Sequential(nn.Sequential(nn.Linear(2, 2), Scale())), 0)
