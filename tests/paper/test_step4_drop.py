"""Step 4 of Algorithm 1 (Sec. 5 "drop"): throw theta_o2 away. What the paper says of it, and what holds it:

- Algorithm 1: "Step 4: Discard additional capacity theta_o2 to keep only theta_o1 as the unlearned model." The result
  is a plain network of the original's names, shapes and dtypes.                                     D1, D2, D5, D6, D8
- "... keep only theta_o1": what comes out is what ran without masks, bit for bit, and for BatchNorm's running
  statistics, too, masked passes do not count.                                                                    D3, D7
- "Discard": whatever theta_o2 has become, the result does not depend on it.                                      D4, D9
- Sec. 2, ETD: "At inference time, the memorization neurons are dropped out": it is the same `drop`.
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
from architectures import IMAGE, draw
from helpers import assert_same_state, rows, run, seeds, small_net
from models import build
from states import extra_tensors

ratios = st.sampled_from([0.0, 0.5, 1.0, 2.0])


def overwrite(expanded, value):
    """Write a number into all of theta_o2."""
    with torch.no_grad():
        for t in extra_tensors(expanded).values():
            t.fill_(value if t.is_floating_point() else 5)


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


# --- A plain network --------------------------------------------------------------------------------------------------

@given(seed=seeds, ratio=ratios, norm=st.booleans(), width=st.integers(1, 4))
def test_drop_undoes_expand(seed, ratio, norm, width):
    """D1: same keys in order, shapes, dtypes, values and module types, and the same output in both modes."""
    net = small_net(seed, width=width, norm=norm)
    dropped = etd.drop(expand.expand(net, IMAGE, ratio))
    assert_same_state(dropped, net)
    assert [(k, type(m)) for k, m in dropped.named_modules()] == [(k, type(m)) for k, m in net.named_modules()]
    x = draw(seed, 4, 1, 8, 8)
    for mode in (True, False):
        assert torch.equal(run(dropped.train(mode), x), run(net.train(mode), x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("capacity", [0.05, 0.09])
def test_dropped_network_is_plain(capacity, layout):
    """D5, D8: no mask, hook, wrapper or index argument is left; the file is no larger than the original's, and what it
    holds is read back, a state dict by weights_only too."""
    net = build("resnet9", capacity, channels=1, image_size=8, seed=0).to(memory_format=layout)
    dropped = etd.drop(expand.expand(net, IMAGE))
    files = [io.BytesIO() for _ in range(3)]
    for content, file in zip((net, dropped, dropped.state_dict()), files, strict=True):
        torch.save(content, file)
    assert files[1].tell() <= 1.01 * files[0].tell()
    for file in files:
        file.seek(0)
    assert_same_state(torch.load(files[1], weights_only=False), dropped)
    fresh = build("resnet9", capacity, channels=1, image_size=8, seed=1)
    fresh.load_state_dict(torch.load(files[2], weights_only=True), strict=True)
    assert_same_state(fresh, dropped)
    assert [type(m) for m in dropped.modules()] == [type(m) for m in net.modules()]
    for a, b in zip(net.modules(), dropped.modules(), strict=True):
        assert a.__dict__.keys() == b.__dict__.keys()
        assert not (b._forward_hooks or b._forward_pre_hooks or b._backward_hooks or b._state_dict_hooks)
    with pytest.raises(TypeError):
        dropped(IMAGE, torch.zeros(2, 3, dtype=torch.bool))


@given(seed=seeds, ratio=ratios)
def test_drop_leaves_the_expanded_network_alone(seed, ratio):
    """D6: dropping twice gives the same; the expanded network stays; requires_grad is the original's, no gradient."""
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


@pytest.mark.parametrize("thing", [small_net(0), None, nn.Linear(1, 1)])
def test_drop_of_something_else_is_refused(thing):
    """D6: drop takes an Expanded and nothing else, and says what it was given."""
    with pytest.raises(TypeError, match=f"drop takes the Expanded that expand returns, not a {type(thing).__name__}"):
        etd.drop(thing)


# --- What ran without masks -------------------------------------------------------------------------------------------

@given(seed=seeds, ratio=ratios, norm=st.booleans())
def test_dropped_network_is_the_base_pass(seed, ratio, norm):
    """D2, D3: after updates the dropped network has the base layers' states and gives the base-only output, bit for
    bit; a fresh plain network loads its state strictly."""
    expanded = shake(expand.expand(small_net(seed, norm=norm), IMAGE, ratio), seed)
    dropped = etd.drop(expanded)
    small_net(seed + 1, norm=norm).load_state_dict(dropped.state_dict(), strict=True)
    bases = {name: layer.base for name, layer in expanded.layers().items()}
    for name, module in dropped.named_modules():
        if name in bases:
            assert_same_state(module, bases[name])
    x = draw(seed, 4, 1, 8, 8)
    for mode in (False, True, False):
        assert torch.equal(run(dropped.train(mode), x), run(expanded.train(mode), x))


@given(seed=seeds)
def test_masked_passes_leave_base_statistics(seed):
    """D7, X2: with theta_o1 frozen, training under masks leaves the dropped network bit for bit, running statistics and
    their count among them, and moves statistics of its own; a base-only pass moves the base's as the original's."""
    net = small_net(seed)
    expanded = expand.expand(net, IMAGE).train()
    for p in expanded.theta_o1():
        p.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in expanded.parameters() if p.requires_grad], lr=0.1)
    norm = expanded.layers()["norm1"]
    statistics = norm.running_mean.clone()
    for i in range(3):
        optimizer.zero_grad()
        expanded(draw(seed + i, 4, 1, 8, 8), rows(seed + i, expanded, 4)).square().mean().backward()
        optimizer.step()
    assert_same_state(etd.drop(expanded), net)
    assert not torch.equal(norm.running_mean, statistics) and norm.num_batches_tracked == 3
    plain, x = copy.deepcopy(net).train(), draw(seed, 4, 1, 8, 8)
    run(expanded, x), run(plain, x)
    assert_same_state(etd.drop(expanded), plain)


# --- What is discarded ------------------------------------------------------------------------------------------------

@given(seed=seeds, value=st.sampled_from([0.0, -1.0, 1e30, math.nan, math.inf]), ratio=ratios)
def test_theta_o2_does_not_interfere(seed, value, ratio):
    """D4, D9: whatever is written into theta_o2, NaN and infinity too, and whatever masks run, the base-only pass and
    the dropped network stay, finite."""
    expanded, x = shake(expand.expand(small_net(seed), IMAGE, ratio), seed).eval(), draw(seed, 3, 1, 8, 8)
    dropped, out = etd.drop(expanded), run(expanded, x)
    overwrite(expanded, value)
    run(expanded, x, rows(seed, expanded, 3))
    assert_same_state(etd.drop(expanded), dropped)
    assert torch.equal(run(expanded, x), out) and out.isfinite().all()
