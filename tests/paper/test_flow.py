"""Gradient flow through the masked network: which loss moves which parameters, under which mask (Sec. 2, Sec. 5).

- a loss of theta_o1 alone moves theta_o1 alone                       F1
- each example's gradient flows through its own path in theta_o2      F2, F3, F4
- channels that are off stay where they are, but for weight decay     F5

That examples do not meet in the forward pass is in test_expand_any_network.py.
"""

import copy
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import architectures
from architectures import IMAGE
from engine.updates import descend, make_optimizer
from etd import ExpandedBatchNorm
from expand import expand
from helpers import assert_close, gen, randomise, rows, seeds, small_net
from models import build
from states import channel_slices, small

draw = partial(architectures.draw, dtype=torch.float64)


def fresh(seed, norm=True, width=3):
    """An expanded small_net in float64, theta_o2 and all statistics drawn."""
    return randomise(expand(small_net(seed, width=width, norm=norm, dtype=torch.float64), IMAGE), seed)


def loss_of(expanded, seed, batch, mask=None):
    """Summed cross-entropy of a drawn batch."""
    x, y = draw(seed, batch, 1, 8, 8), torch.randint(4, (batch,), generator=gen(seed))
    return F.cross_entropy(expanded(x, mask), y, reduction="sum")


@given(seed=seeds, norm=st.booleans(), train_mode=st.booleans())
def test_base_only_loss_moves_theta_o1_alone(seed, norm, train_mode):
    """F1: gradient on every theta_o2 entry is 0 or None; nonzero on theta_o1."""
    expanded = fresh(seed, norm).train(train_mode)
    loss_of(expanded, seed, 4).backward()
    for name, p in expanded.theta_o2().items():
        assert p.grad is None or not p.grad.any(), name
    for name, layer in expanded.layers().items():
        assert layer.base.weight.grad.any(), name


@given(seed=seeds, batch=st.integers(1, 3), norm=st.booleans(), train_mode=st.booleans())
def test_masked_channels_get_no_gradient(seed, batch, norm, train_mode):
    """F2: channels that no example of the batch has on get a gradient of exactly 0, with batch statistics too; those
    that one has on get some."""
    expanded = fresh(seed, norm, width=5).train(train_mode)
    mask = rows(seed, expanded, batch, 0.3)
    loss_of(expanded, seed, batch, mask).backward()
    union = mask.any(dim=0)
    for name, p, dim, start in channel_slices(expanded):
        for j, active in enumerate(union):
            assert active or not p.grad.select(dim, start + j).any(), (name, j)
    assert not union.any() or expanded.layers()["head"].to_base.grad[:, union].any()


@given(seed=seeds, batch=st.integers(1, 4), norm=st.booleans())
def test_batch_gradient_is_the_sum_of_single_ones(seed, batch, norm):
    """F3: the gradient of a batch is the sum of the single examples' gradients under their own masks (eval mode)."""
    expanded = fresh(seed, norm).eval()
    mask, x = rows(seed, expanded, batch), draw(seed, batch, 1, 8, 8)
    y = torch.randint(4, (batch,), generator=gen(seed))
    F.cross_entropy(expanded(x, mask), y, reduction="sum").backward()
    whole = [p.grad.clone() for p in expanded.parameters()]
    expanded.zero_grad()
    for i in range(batch):  # .grad adds up
        F.cross_entropy(expanded(x[i : i + 1], mask[i : i + 1]), y[i : i + 1], reduction="sum").backward()
    for expected, p in zip(whole, expanded.parameters(), strict=True):
        assert_close(p.grad, expected)


@pytest.mark.parametrize("norm, train_mode", [(False, False), (True, False), (True, True)])
def test_gradcheck_of_the_masked_pass(norm, train_mode):
    """F4: gradients of the masked pass agree with finite differences, for the input and every parameter."""
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2) if norm else nn.Identity(), nn.CELU(),
                        nn.Conv2d(2, 1, 2), nn.CELU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)).double()
    expanded = randomise(expand(net, torch.zeros(2, 1, 4, 4)), 0).train(train_mode)
    names, values = zip(*expanded.named_parameters(), strict=True)
    mask, x = torch.tensor([[True, False], [False, True], [True, True]]), draw(1, 3, 1, 4, 4)

    def masked(x, *values):
        twin = copy.deepcopy(expanded)  # statistics move in training mode: a copy each time
        return torch.func.functional_call(twin, dict(zip(names, values, strict=True)), (x, mask))

    inputs = (x.requires_grad_(), *(v.detach().clone().requires_grad_() for v in values))
    assert torch.autograd.gradcheck(masked, inputs)


@given(seed=seeds, decay=st.sampled_from([0.0, 0.01]))
def test_inactive_channels_under_sgd(seed, decay):
    """F5: without decay inactive channels stay bit for bit; with decay they shrink by 1 - lr wd: zero is not "no
    change"."""
    expanded = fresh(seed, width=4).train()
    config = small(momentum=0.0, weight_decay=decay)
    optimizer = make_optimizer(expanded, config, lr=0.1)
    mask = rows(seed, expanded, 3)
    mask[:, 1] = False
    before = {name: p.detach().clone() for name, p in expanded.theta_o2().items()}
    for _ in range(2):
        descend(optimizer, loss_of(expanded, seed, 3, mask))
    inactive = torch.nonzero(~mask.any(dim=0)).flatten().tolist()
    for name, p, dim, start in channel_slices(expanded):
        for j in inactive:
            old, new = before[name].select(dim, start + j), p.detach().select(dim, start + j)
            if decay:
                assert_close(new, old * (1 - 0.1 * decay) ** 2, 1e-15)
            else:
                assert torch.equal(new, old), name
    active = mask.any(dim=0)
    head = expanded.layers()["head"].to_base
    assert not active.any() or not torch.equal(head[:, active], before["head.to_base"][:, active])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flow_on_cuda(dtype):
    """F1, F2, X1: on the GPU too base-only passes leave theta_o2, and channels off in every row get no gradient."""
    net = randomise(build("resnet9", 0.1, seed=0), 0).to("cuda", dtype, memory_format=torch.channels_last)
    expanded = expand(net, torch.zeros(2, 3, 32, 32)).train()
    x = draw(0, 8, 3, 32, 32, dtype=dtype).cuda().to(memory_format=torch.channels_last)
    expanded(x).float().square().mean().backward()
    assert all(p.grad is None for p in expanded.theta_o2().values())
    mask = torch.zeros(8, expanded.width, dtype=torch.bool, device="cuda")
    mask[:, ::2] = True
    expanded(x, mask).float().square().mean().backward()
    for name, layer in expanded.layers().items():
        if isinstance(layer, ExpandedBatchNorm):
            assert not layer.extra_weight.grad[1::2].any() and layer.extra_weight.grad[::2].any(), name
        elif layer.extra_out:
            assert not layer.to_extra.grad[1::2].any(), name
