"""Step 3 of Algorithm 1 (Sec. 5 "Repair utility and redirect corruptions"). What the paper says of it, what holds it:

- 3.1: "Compute loss L_redirect using the theta_o1 and theta_o2 model with D_tr, where all D_f samples are assigned the
  same mask for redirection in theta_o2; remaining samples use random masks." Choice: one pass over D_tr an epoch, in a
  new order each time.                                                                                            A7, M7
- 3.2: "Compute L_remove(D_f) using only the theta_o1 part of the model", on the same images, for batches with some of
  D_f.                                                                                                                A7
- 3.3: "Update model with the combined loss L_step3": both parts move, and of theta_o2 the channels that are on. F7, D7
- Eq. 2, "ref": "the initialization of the respective weights", so that the loss begins at u = 0.               A20, L11
- Not in the paper: a loss that is no number any more ends it.                                                        A3

Its numbers are the twin's in test_twins.py. Beside this path: dropout in contract.py, and networks that run blocks anew
in the backward pass, or skip them, in test_expand_any_network.py.
"""

import copy
import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

import twins
from engine import MaskTable
from engine.checks import NonFiniteLoss
from etd import drop
from helpers import assert_close, make_data, seeds, small_net
from rem import redirect, step3_batch
from states import channel_slices, draw_forget, extra_tensors, make_state, numbered, numbers, unlearn

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
    own = [twins.mask_row(0, None if i in forget else i, state.expanded.width, 0.5) for i in range(20)]
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
    """F2, F7, M7: step 3 moves theta_o1, D_f's own channels and the statistics of the passes that it makes, and no
    channel that is off in every row."""
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


def test_a_rate_that_is_too_high():
    """A3: a rate of 1e30 ends in NonFiniteLoss that names the epoch, not in a network of NaN."""
    with pytest.raises(NonFiniteLoss, match="the loss is (nan|inf|-inf) in step 3 of epoch 1; lower the rate"):
        unlearn(gamma=1.0, unlearn_lr=1e30)
