"""Step 3 of Algorithm 1: one pass over D_tr, utility repaired and D_c redirected into theta_o2 (Sec. 5).

- one pass over all of D_tr, D_f among it, reshuffled and augmented, 3.1 and 3.2 on the same images     A7
- 3.1, L_redirect: theta_o1 and theta_o2, each example under its own mask, D_f under one that it shares   A7, M7
- 3.2, L_remove: theta_o1 alone, only for batches that hold some of D_f                                 A7
- 3.3, theta <- theta - epsilon grad L_step3: both parts move, D_f's channels among them                  F7, D7
- every part of theta_o2 gets a gradient, or the network is refused by name                              A21
- the reference has the network's precision                                                             A20, L11
- a loss that is no number any more ends it                                                              A3

Its numbers are the twin's in test_twins.py; that dropout comes from the generator is in contract.py.
"""

import copy
import math
import warnings

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

import oracles
from architectures import IMAGE
from engine.masks import MaskTable
from engine.checks import NonFiniteLoss
from etd import drop, train_etd
from expand import expand
from helpers import assert_close, gen, make_data, randomise, rows, seeds, small_net, tiny
from rem import redirect, step3_batch
from states import channel_slices, draw_forget, extra_tensors, make_state, numbered, numbers, unlearn
from train import fit

betas = st.sampled_from([0.5, 1.0, 2.0])


# --- One pass over D_tr -----------------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 19), st.sampled_from([2, 6, 7, 19, 20, 64]), st.booleans())
@example(0, 10, 6, True)
def test_each_example_of_d_tr_once_an_epoch(seed, size, batch, flip):
    """A7, M7: step 3 visits each D_tr index once, reshuffled, each under its own mask row and D_f under the shared one,
    and theta_o1 alone on the very same images of the batches that hold some of D_f; the flip makes the reference run on
    each batch."""
    data, forget = numbered(20, seed=seed, flip=flip), draw_forget(seed, 20, size)
    state = make_state(seed, data=data, forget=forget, batch=batch)
    own = [oracles.mask_row(0, None if i in forget else i, state.expanded.width, 0.5) for i in range(20)]
    orders = []
    for _ in range(3):
        seen = []
        hook = state.expanded.register_forward_pre_hook(lambda net, args: seen.append(args))
        redirect(state, step3_batch)
        hook.remove()
        masked, alone = ([args for args in seen if (len(args) == 2) == kind] for kind in (True, False))
        for x, mask in masked:
            assert mask.tolist() == [own[i] for i in numbers(data, x)]
        with_d_f = [x for x, _ in masked if set(numbers(data, x)) & set(forget.tolist())]
        for x, (same,) in zip(with_d_f, alone, strict=True):
            assert torch.equal(x, same)
        orders.append(sum((numbers(data, x) for x, _ in masked), []))
        assert sorted(orders[-1]) == list(range(20))
    assert orders[0] != orders[1] != orders[2]


@given(seeds)
def test_no_idle_passes(seed):
    """A7: theta_o1 alone, like the reference, runs for the terms that a batch has, once each."""
    state, asked, base = make_state(seed, data=make_data(seed, pad=1), forget=torch.tensor([0]), batch=3), [], []
    state.reference.net.register_forward_hook(lambda net, args, out: asked.append(len(args)))
    state.expanded.register_forward_hook(lambda net, args, out: base.append(out.requires_grad) if len(args) == 1
                                         else None)
    redirect(state, step3_batch)
    assert sorted(asked) == [1] + [2] * 4 and base == [True]  # D_f is in one batch of four


# --- The loss of a batch ----------------------------------------------------------------------------------------------


@given(seeds, betas, st.sampled_from(["float32", "bf16"]), st.booleans())
def test_it_starts_at_the_reference(seed, beta, precision, flip):
    """A20, L11: where nothing has moved, u = 0 in either precision: the loss is -(2 log 2 / beta) |D_r| / |D_tr|."""
    state = make_state(seed, data=make_data(seed, flip=flip), net=small_net(seed, norm=False), beta=beta, batch=64,
                       precision=precision)
    redirect(state, step3_batch)
    expected = torch.tensor(-2 * math.log(2) / beta * 8 / 12)
    assert_close(torch.tensor(state.record["loss"]), expected, 1e-6)  # float32; a bf16 apart is 4e-3


# --- What moves -------------------------------------------------------------------------------------------------------


@given(seed=seeds, removes=st.booleans())
def test_the_channels_of_d_f_move(seed, removes):
    """F7, M7: step 3 moves theta_o1, D_f's own channels and the statistics of the passes that it makes, and no channel
    that is off in every row."""
    state = make_state(seed, weight_decay=0.0, p_mem=0.3, extra_ratio=2.0, size=3)
    bits = state.masks[:]
    bits[:, :2] = False
    bits[:, 2] = state.in_forget  # bit 2 is D_f's alone: what moves there moves for D_f's sake
    eights = nn.functional.pad(bits, (0, -bits.shape[1] % 8)).view(len(bits), -1, 8)
    state.masks = MaskTable((eights * 2 ** torch.arange(8)).sum(dim=2).to(torch.uint8), bits.shape[1])
    state.reference.masks = state.masks
    assert torch.equal(state.masks[:], bits)
    extra, base = copy.deepcopy(extra_tensors(state.expanded)), drop(state.expanded)
    redirect(state, lambda s, at, x, y: step3_batch(s, at, x, y, removes))
    for name, p, dim, start in channel_slices(state.expanded):
        for j in (0, 1):
            assert torch.equal(p.select(dim, start + j), extra[name].select(dim, start + j)), (name, j)
    assert not torch.equal(extra_tensors(state.expanded)["head.to_base"][:, 2], extra["head.to_base"][:, 2])
    assert not torch.equal(extra_tensors(state.expanded)["norm1.running_mean"], extra["norm1.running_mean"])
    for name, value in drop(state.expanded).state_dict().items():
        still = "num_batches" in name or "running" in name if not removes else False  # no pass of theta_o1 alone
        assert torch.equal(value, base.state_dict()[name]) == still or ".bias" in name, name


# --- Gradients for all of theta_o2 ------------------------------------------------------------------------------------


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
            outs.append(train_etd(expand(net, IMAGE), data, tiny(p_mem=0.5), gen(0), fit).net)
    for a, b in zip(outs[0].state_dict().values(), outs[1].state_dict().values(), strict=True):
        assert_close(a, b)
    assert not torch.equal(outs[0].head.bias, randomise(Block(None), 0).double().head.bias)


def test_no_mask_is_left_after_a_backward_pass():
    """A21, E2: after the backward pass, also one that failed, base-only passes are the original's."""
    net = randomise(Block("reentrant"), 0)
    expanded, x = expand(net, IMAGE).train(), torch.rand(3, 1, 8, 8, generator=gen(0))
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


def test_a_rate_that_is_too_high():
    """A3: a rate of 1e30 ends in NonFiniteLoss that names the epoch, not in a network of NaN."""
    with pytest.raises(NonFiniteLoss, match="the loss is (nan|inf|-inf) in step 3 of epoch 1; lower the rate"):
        unlearn(gamma=1.0, unlearn_lr=1e30)
