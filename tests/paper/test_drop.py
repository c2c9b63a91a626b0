"""Tests of drop: what comes back is theta_o1 and nothing else (D1-D9).

Each `prop_*` takes the module under test first, so that test_mutants.py can run it on a changed one.
"""

import copy
import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import etd
import expand
from architectures import Net, example, plans
from helpers import assert_same_state, gen, randomise, rows, run, seeds, small_net
from models import build

IMAGE = torch.zeros(2, 1, 8, 8)
ratios = st.sampled_from([0.0, 0.5, 1.0, 2.0])
EXTRA = ("to_base", "to_extra", "extra_weight", "extra_bias")


def draw(seed, *shape, dtype=torch.float32):
    return torch.randn(shape, generator=gen(seed), dtype=torch.float64).to(dtype)


def theta_o2(expanded) -> dict[str, torch.Tensor]:
    """Parameters and buffers that are not the network's own, by name."""
    found = {}
    for name, layer in expanded.layers().items():
        own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
        found.update({f"{name}.{part}": t for part, t in own})
    return found


def shake(expanded, seed, steps=3):
    """Train with masks and base-only for some steps, everything moving: parameters and both kinds of statistics."""
    expanded.train()
    optimizer = torch.optim.SGD(expanded.parameters(), lr=0.05, momentum=0.9)
    for i in range(steps):
        x = draw(seed + i, 4, 1, 8, 8, dtype=next(expanded.parameters()).dtype)
        loss = expanded(x, rows(seed + i, expanded, 4)).square().mean() + expanded(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return expanded


def prop_d1(etd, seed, ratio=1.0, norm=True, width=3):
    """drop(expand(m)) has m's keys in m's order, shapes, dtypes, values and module types."""
    net = small_net(seed, width=width, norm=norm)
    dropped = etd.drop(expand.expand(net, IMAGE, ratio))
    assert_same_state(dropped, net)
    kinds = [[(name, type(m)) for name, m in n.named_modules()] for n in (dropped, net)]
    assert kinds[0] == kinds[1]
    x = draw(seed, 4, 1, 8, 8)
    for mode in (True, False):
        assert torch.equal(run(dropped.train(mode), x), run(net.train(mode), x))


@given(seed=seeds, ratio=ratios, norm=st.booleans(), width=st.integers(1, 4))
def test_drop_undoes_expand(seed, ratio, norm, width):
    """D1: same keys in order, shapes, dtypes and values."""
    prop_d1(etd, seed, ratio, norm, width)


@given(seed=seeds, plan=plans())
def test_drop_undoes_expand_on_random_networks(seed, plan):
    """D1, D4: also on random architectures, after theta_o2 and its buffers were overwritten."""
    net = randomise(Net(plan), seed)
    expanded = expand.expand(net, example(plan), plan.ratio, plan.layers)
    with torch.no_grad():
        for t in theta_o2(expanded).values():
            t.fill_(7)
    assert_same_state(etd.drop(expanded), net)


def prop_d2(etd, seed):
    """A fresh plain network loads the dropped state strictly, and computes the same."""
    expanded = shake(expand.expand(small_net(seed), IMAGE), seed)
    dropped, fresh = etd.drop(expanded), small_net(seed + 1)
    fresh.load_state_dict(dropped.state_dict(), strict=True)
    x = draw(seed, 4, 1, 8, 8)
    assert torch.equal(run(fresh.eval(), x), run(dropped.eval(), x))


@given(seed=seeds)
def test_strict_load_into_a_fresh_network(seed):
    """D2: strict load_state_dict into a fresh plain model works after training."""
    prop_d2(etd, seed)


def prop_d3(etd, seed, ratio=1.0, norm=True):
    """After updates drop(big)(x) is big(x) bit for bit, buffers included, in both modes."""
    expanded = shake(expand.expand(small_net(seed, norm=norm), IMAGE, ratio), seed)
    dropped = etd.drop(expanded)
    bases = {name: layer.base for name, layer in expanded.layers().items()}
    for name, module in dropped.named_modules():
        if name in bases:
            assert_same_state(module, bases[name])
    x = draw(seed, 4, 1, 8, 8)
    for mode in (False, True, False):
        assert torch.equal(run(dropped.train(mode), x), run(expanded.train(mode), x))


@given(seed=seeds, ratio=ratios, norm=st.booleans())
def test_dropped_network_is_the_base_pass(seed, ratio, norm):
    """D3: after updates the dropped network computes what the base-only pass does, bit for bit."""
    prop_d3(etd, seed, ratio, norm)


@given(seed=seeds, value=st.sampled_from([0.0, -1.0, 1e30]), ratio=ratios)
def test_theta_o2_does_not_interfere(seed, value, ratio):
    """D4: whatever finite is written into theta_o2, and whatever masks run, the dropped network stays."""
    expanded = shake(expand.expand(small_net(seed), IMAGE, ratio), seed)
    before = etd.drop(expanded)
    with torch.no_grad():
        for name, t in theta_o2(expanded).items():
            t.fill_(value if t.is_floating_point() else 5)
    run(expanded.eval(), draw(seed, 3, 1, 8, 8), rows(seed, expanded, 3))
    assert_same_state(etd.drop(expanded), before)


@given(seed=seeds, last=st.booleans())
def test_dropped_network_is_plain(seed, last):
    """D5: no mask, hook, wrapper or index argument is left, and the file is no larger than the original's."""
    net = build("resnet9", 0.05 + 0.01 * (seed % 5), channels=1, image_size=8, seed=seed)
    net = net.to(memory_format=torch.channels_last) if last else net
    dropped = etd.drop(expand.expand(net, IMAGE))
    files = []
    for n in (net, dropped):
        files.append(io.BytesIO())
        torch.save(n, files[-1])
    assert files[1].tell() <= 1.01 * files[0].tell()
    assert [type(m) for m in dropped.modules()] == [type(m) for m in net.modules()]
    for a, b in zip(net.modules(), dropped.modules(), strict=True):
        assert a.__dict__.keys() == b.__dict__.keys()
        assert not (b._forward_hooks or b._forward_pre_hooks or b._backward_hooks or b._state_dict_hooks)
    with pytest.raises(TypeError):
        dropped(torch.zeros(2, 1, 8, 8), torch.zeros(2, 3, dtype=torch.bool))


@given(seed=seeds, ratio=ratios)
def test_drop_leaves_the_expanded_network_alone(seed, ratio):
    """D6: dropping twice gives the same; the expanded network is left whole, requires_grad is the original's, no
    gradient is."""
    net = small_net(seed)
    net.conv1.weight.requires_grad_(False)
    expanded = expand.expand(net, IMAGE, ratio)
    expanded(draw(seed, 2, 1, 8, 8)).sum().backward()
    before = copy.deepcopy(expanded)
    first = etd.drop(expanded)
    for a, b in zip(net.parameters(), first.parameters(), strict=True):
        assert a.requires_grad == b.requires_grad and b.grad is None
    with torch.no_grad():
        for t in first.state_dict().values():
            t.zero_()
    assert_same_state(expanded, before)
    assert_same_state(etd.drop(expanded), etd.drop(before))
    assert type(expanded) is type(before) and expanded.width == before.width


def prop_d7(etd, seed, passes=3):
    """With theta_o1 frozen, masked passes alone, forward and backward, leave the dropped network; base-only passes move
    it."""
    net = small_net(seed)
    expanded = expand.expand(net, IMAGE).train()
    for layer in expanded.layers().values():
        layer.base.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in expanded.parameters() if p.requires_grad], lr=0.1)
    statistics = expanded.layers()["norm1"].running_mean.clone()
    for i in range(passes):
        optimizer.zero_grad()
        expanded(draw(seed + i, 4, 1, 8, 8), rows(seed + i, expanded, 4)).square().mean().backward()
        optimizer.step()
    assert_same_state(etd.drop(expanded), net)
    assert not torch.equal(expanded.layers()["norm1"].running_mean, statistics)  # the masked ones did move
    plain = copy.deepcopy(net).train()
    x = draw(seed, 4, 1, 8, 8)
    run(expanded, x), run(plain, x)
    assert_same_state(etd.drop(expanded), plain)


@given(seed=seeds)
def test_masked_passes_leave_base_statistics(seed):
    """D7: base BatchNorm statistics move in base-only passes, and in those only."""
    prop_d7(etd, seed)


@given(seed=seeds)
def test_files_of_the_dropped_network(seed):
    """D8: torch.save and a weights_only load give the same state; so does the whole network."""
    dropped = etd.drop(expand.expand(build("resnet9", 0.05, channels=1, image_size=8, seed=seed), IMAGE))
    file = io.BytesIO()
    torch.save(dropped.state_dict(), file)
    file.seek(0)
    fresh = build("resnet9", 0.05, channels=1, image_size=8, seed=seed + 1)
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert_same_state(fresh, dropped)
    file = io.BytesIO()
    torch.save(dropped, file)
    file.seek(0)
    assert_same_state(torch.load(file, weights_only=False), dropped)


@given(seed=seeds, value=st.sampled_from([math.nan, math.inf]))
def test_nan_in_theta_o2_does_not_spread(seed, value):
    """D9: theta_o2 set to NaN or infinity: the base-only pass and the dropped network are finite and unchanged."""
    net = small_net(seed).eval()
    expanded, x = expand.expand(net, IMAGE).eval(), draw(seed, 3, 1, 8, 8)
    with torch.no_grad():
        for t in theta_o2(expanded).values():
            if t.is_floating_point():
                t.fill_(value)
    run(expanded, x, rows(seed, expanded, 3))
    dropped = etd.drop(expanded)
    assert torch.equal(run(dropped, x), run(net, x)) and torch.equal(run(expanded, x), run(net, x))
    assert all(t.isfinite().all() for t in dropped.state_dict().values())


@pytest.mark.parametrize("thing", [small_net(0), None, nn.Linear(1, 1)])
def test_drop_of_something_else_is_refused(thing):
    """D6: drop takes an Expanded and nothing else."""
    with pytest.raises(TypeError, match="Expanded"):
        etd.drop(thing)
