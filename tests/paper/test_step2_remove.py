"""Step 2 of Algorithm 1 (Sec. 5 "Remove corruptions from theta_o1"). What the paper says of it, and what holds it:

- "while Acc(D_f) > gamma do": no update where it is at gamma or below. Choice: whole passes over D_f, and Acc(D_f) is
  measured before the first and after each.                                                                     A1, A2
- 2.1: "Compute loss L_remove(D_f) using only the theta_o1 part of the model". Choice: in evaluation mode, so that
  before the first update u = 0.                                                                                A20, L11
- 2.2: "Update theta_o1 model part with loss L_step2 = -L_remove": nothing else moves.                           F6, A20
- Not in the paper: a cap on passes, with a warning, and a loss that is no number any more ends it.                   A3

Its order, its images, and its numbers, with momentum and weight decay, are the twin's in test_twins.py. Beside this
path: how Acc(D_f) is measured in tests/engine/test_scores.py, batches of any size in test_batches.py there.
"""

import copy
import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn import functional as F

import oracles_loss as oracle
from engine.batches import count_batches
from engine.checks import NonFiniteLoss
from etd import Expanded, drop
from experiment.data import batches
from helpers import assert_close, assert_same_state, gen, make_data, seeds
from rem import redirect, remove, step3_batch
from states import acc_forget, extra_tensors, make_state, unlearn


def updates_of(state):
    """A list to which every update of a state's optimiser adds its gradients by name."""
    found, names = [], dict(state.expanded.named_parameters())

    def note(optimizer, args, kwargs):
        found.append({name: None if p.grad is None else p.grad.clone() for name, p in names.items()})

    state.optimizer.register_step_pre_hook(note)
    return found


# --- While Acc(D_f) > gamma -------------------------------------------------------------------------------------------


@given(seeds, st.lists(st.floats(0.21, 1), max_size=6), st.floats(0, 0.2), st.integers(1, 11),
       st.sampled_from([2, 3, 64]), st.booleans())
@example(0, [0.9, 0.5, 0.3], 0.1, 5, 2, True)
def test_whole_passes_until_forgotten(seed, above, below, size, batch, just):
    """A1, A3: step 2 makes whole passes until Acc(D_f) <= gamma, measured before the first and after each; the last
    pass that the cap allows counts like any other, and nothing warns."""
    script = (*above, below)
    state = make_state(seed, size=size, batch=batch, max_passes=len(above) if just else 50)
    updates = updates_of(state)
    with acc_forget(*script) as asked:
        remove(state)
    assert len(updates) == oracle.update_count(script, 0.2, count_batches(size, batch), 50)
    assert len(asked) == len(script) and all(index is state.forget for index in asked)
    assert state.record == dict(acc_forget_before=script[0], acc_forget=below, passes=len(above), updates=len(updates))


@given(seeds, st.floats(0, 1))
@example(0, 0.0)
@example(0, 0.2)
@example(0, 1.0)
def test_equality_is_forgotten(seed, gamma):
    """A2: no update at or below gamma, whatever theta is then stays bit for bit; an update just above it."""
    state = make_state(seed, size=3, gamma=gamma)
    before = copy.deepcopy(state.expanded)
    for start, passes in ((gamma, 0), (math.nextafter(gamma, -1), 0), (math.nextafter(gamma, 2), 1)):
        with acc_forget(start, gamma):
            remove(state)
        assert state.record["passes"] == passes
        if not passes:
            assert_same_state(before, state.expanded)


@given(seeds, st.integers(0, 4), st.integers(1, 9), st.integers(1, 2))
def test_a_gamma_out_of_reach(seed, most, size, epochs):
    """A3: a gamma that is never reached ends at max_passes, with a warning in each epoch, and unlearning goes on."""
    seen = []
    text = f"0.90 after {most} passes, still above gamma = 0.2"
    with acc_forget(0.9), pytest.warns(UserWarning, match=text) as caught:
        net = unlearn(seed, size=size, max_passes=most, unlearn_epochs=epochs,
                      log=lambda *_, **record: seen.append((record["passes"], record["updates"])))
    assert seen == [(most, most * count_batches(size, 4))] * epochs
    assert len(caught) == epochs and not isinstance(net, Expanded)


def test_the_warning_names_its_caller():
    """A3: the warning points at the line that called step 2, not into the library."""
    with acc_forget(0.9), pytest.warns(UserWarning, match="0.90 after 1 passes") as caught:
        remove(make_state(max_passes=1))
    assert caught[0].filename == __file__


# --- 2.1 and 2.2 ------------------------------------------------------------------------------------------------------


@given(seeds, st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from(["float32", "bf16"]), st.booleans())
def test_it_starts_at_the_reference(seed, beta, precision, flip):
    """A20, L11: before its first update step 2 has u = 0, whatever the batch shares: its gradient is minus that of the
    mean CE of theta_o1 in evaluation mode, for every beta; in bf16 the reference runs in bf16 too."""
    data = make_data(seed, flip=flip)
    state = make_state(seed, data=data, beta=beta, batch=64, precision=precision)
    updates, net = updates_of(state), drop(state.expanded).eval()
    with acc_forget(0.9, 0.0):
        remove(state)
    _, x, y = next(batches(data, state.forget, 64, gen(seed), augment=True))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        logits = net(x)
    F.cross_entropy(logits.float(), y).backward()
    # float32; where a bf16 of the reference were missing u would be some hundredths, as the slope
    tolerance = 1e-5 if precision == "float32" else 2e-3
    for name, p in net.named_parameters():
        found = next(g for key, g in updates[0].items() if key.removeprefix("net.").replace(".base", "") == name)
        assert_close(found, -p.grad, tolerance)


@given(seed=seeds, augment=st.booleans(), training=st.booleans())
def test_theta_o1_alone_moves(seed, augment, training):
    """F1, F6, A20: step 2 leaves theta_o2 and its buffers bit for bit, whatever momentum and decay, and moves theta_o1;
    its statistics stay too, unless passes are asked to use those of each batch."""
    state = make_state(seed, data=make_data(seed, flip=augment), max_passes=2)
    redirect(state, step3_batch)  # so that theta_o2 has momentum
    extra, base = copy.deepcopy(extra_tensors(state.expanded)), drop(state.expanded)
    with acc_forget(0.9, 0.9, 0.0):
        remove(state, training)
    for name, t in extra_tensors(state.expanded).items():
        assert torch.equal(t, extra[name]), name
    after = drop(state.expanded)
    for (name, a), (_, b) in zip(after.named_parameters(), base.named_parameters(), strict=True):
        assert not torch.equal(a, b) or ".bias" in name, name
    for (name, a), (_, b) in zip(after.named_buffers(), base.named_buffers(), strict=True):
        assert torch.equal(a, b) == (not training), name


@pytest.mark.parametrize("norm, training", [("auto", False), ("running", False), ("batch", True)])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_mode_of_its_passes(norm, training, size):
    """A20: passes run in evaluation mode, in training mode where `forget_norm` is "batch"; one example alone has no
    batch statistics."""
    modes = []

    def spy(net, args):
        if torch.is_grad_enabled():  # neither accuracy nor the refresh
            modes.append(net.training)

    def log(epoch, epochs, model, **record):
        model.register_forward_pre_hook(spy)

    with acc_forget(0.0, 0.9, 0.0):  # the hook stands when the second epoch begins
        unlearn(size=size, forget_norm=norm, batch=64, log=log)
    assert modes == [training and size > 1, True, True]  # step 2, and both passes of step 3


def test_a_rate_that_is_too_high():
    """A3: a rate of 1e30 ends in NonFiniteLoss that says where, not in a network of NaN."""
    with acc_forget(0.9), pytest.raises(NonFiniteLoss, match="the loss is (nan|inf|-inf) in step 2; lower the rate"):
        unlearn(unlearn_lr=1e30)
