"""REM+'s relative distance, `reach`: how far the first step 2 takes theta_o1, and by which updates.

That all of it is the twin's, and `reach` 0 step 2 as printed, is in test_rem_plus.py; which methods read it is in
study/test_plan.py, its default in experiment/test_settings.py.
"""

import warnings
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import nn

import rem_plus
from helpers import assert_close, gen, make_data, small_net
from rem_plus import STEP, copies, move_along, moved
from states import acc_forget, plus_state, unlearn_plus

pytestmark = pytest.mark.filterwarnings("ignore:Acc")  # step 2 may give up


def started(seed: int, epoch: int = 1, **changes):
    """Algorithm 1 in float64 after step 1, in an epoch; the network has a large frozen weight, too."""
    net = small_net(seed, dtype=torch.float64)
    net.frozen = nn.Parameter(torch.full((9,), 1e4, dtype=torch.float64), requires_grad=False)
    state = plus_state(seed, net=net, **changes)
    state.epoch = epoch
    return state


def remove(state, reach: float) -> None:
    """Step 2 of REM+ with a `reach`."""
    state.config = replace(state.config, reach=reach)
    rem_plus.remove_to_distance(state)


def theta_of(state) -> list[nn.Parameter]:
    """The trainable part of theta_o1."""
    return [p for p in state.expanded.theta_o1() if p.requires_grad]


def vector(tensors) -> torch.Tensor:
    """All entries, in float64."""
    return torch.cat([t.detach().double().flatten() for t in tensors])


def distance(tensors, begin) -> float:
    """How far the first are from the second, over the norm of the second: the twin of rem_plus.moved."""
    return float(torch.linalg.vector_norm(vector(tensors) - vector(begin)) / torch.linalg.vector_norm(vector(begin)))


def noisy(state, seed: int) -> None:
    """Move theta_o1 away from the reference, as an epoch does."""
    with torch.no_grad():
        for p in theta_of(state):
            p += 0.1 * torch.randn(p.shape, generator=gen(seed), dtype=torch.float64)


def test_where_there_is_no_line_nothing_moves():
    """A32: where the gradient is exactly 0 there is no line to go along: the weights stay, and are numbers."""
    state = started(0, max_passes=2)
    with torch.no_grad():
        for p in theta_of(state):
            p.zero_()
    with acc_forget(0.9):
        remove(state, reach=0.5)
    assert state.record["passes"] == 2 and not vector(theta_of(state)).any()


def test_what_is_known_beyond_doubt_is_forgotten():
    """A32: an image of which the label's logit leads by 70, as in published networks, has a CE of 0, and its gradient
    no norm in float32; it is forgotten in a few updates."""
    net, data, forget = small_net(0), make_data(0), torch.tensor([3])
    with torch.no_grad():
        z = net.eval()(next(data.batches())[1])  # (12, 4)
        first, second = z[3].topk(2).values
        net.head.weight *= 70 / (first - second)
    state = plus_state(0, net=net, data=replace(data, labels=z.argmax(dim=1)), forget=forget, max_passes=30)
    remove(state, reach=0.5)
    assert (state.record["acc_forget_before"], state.record["acc_forget"]) == (1, 0) and state.record["passes"] < 30


@pytest.mark.parametrize("acc, gamma, share", [(0.3, 0.2, 0.5), (0.25, 0.2, 0.25), (0.4, 0.2, 1.0), (0.9, 0.2, 1.0),
                                               (0.15, 0.1, 0.5), (0.01, 0.0, 1.0)])
def test_little_learnt_is_little_to_take_out(acc, gamma, share):
    """A32: below Acc(D_f) = 2 gamma it goes on by the share Acc(D_f) / gamma - 1 of `reach`."""
    state = started(0, gamma=gamma)
    begin = copies(theta_of(state))
    with acc_forget(acc, 0.0):
        remove(state, reach=0.3)
    assert distance(theta_of(state), begin) == pytest.approx(0.3 * share, rel=1e-9)


@pytest.mark.parametrize("end, told", [(0.1, False), (0.4, True), (0.9, True)])
def test_a_warning_is_of_what_the_way_on_has_left(end, told):
    """A3, A32: where the passes give up above gamma, only what is above it on the line, too, is warned of, at the lower
    of the two; the record has Acc(D_f) there."""
    state = started(0, max_passes=2)
    with acc_forget(0.9, 0.9, 0.5, end), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        remove(state, reach=0.3)
    assert state.record["acc_forget"] == end
    text = f"Acc(D_f) is {min(0.5, end):.2f} after 2 passes, still above gamma = {state.config.gamma}"
    assert [str(one.message) for one in caught] == [text] * told


@pytest.mark.parametrize("seed, epoch", [(0, 1), (1, 2), (2, 3)])
def test_no_pass_begins_beyond(seed, epoch):
    """A33: the pass that comes to `reach` is the last, though Acc(D_f) > gamma, and there the weights stay."""
    def begun(reach, most, epoch=epoch, believed=0.9):
        state = started(seed, epoch, max_passes=most)
        noisy(state, seed)  # distance counts from where this step 2 begins, not from the reference
        begin = copies(theta_of(state))
        with acc_forget(believed):
            remove(state, reach=reach)
        return state, distance(theta_of(state), begin)

    reach = 4.5 * STEP
    state, far = begun(reach, 50)  # five updates are at most five times STEP long, and less where they turn back
    short = [begun(9.0, most, epoch=2)[1] for most in range(state.record["passes"])]
    assert 5 <= state.record["passes"] < 50 and max(short) < reach <= far
    little, _ = begun(reach, 50, believed=0.25)  # for which its line alone goes on less far
    assert little.record["passes"] == state.record["passes"]


@pytest.mark.parametrize("batch, steps, reach, length", [
    (6, 1, 4 * STEP, STEP), (6, 1, 3 * STEP, 0.75 * STEP), (2, 3, 12 * STEP, STEP), (2, 3, 6 * STEP, STEP / 2),
    (1, 6, STEP, STEP / 24), (5, 1, 3 * STEP, 0.75 * STEP)])
def test_a_pass_is_a_quarter_of_the_way_at_most(batch, steps, reach, length):
    """A33: updates are shorter than STEP where those of a pass would go farther than a quarter of `reach`, so that a
    D_f of many batches ends no farther than that beyond it."""
    def far(most):
        state = started(0, epoch=2, forget=torch.arange(6), batch=batch, max_passes=most)
        begin = copies(theta_of(state))
        with acc_forget(0.9):
            remove(state, reach=reach)
        return distance(theta_of(state), begin), state.record

    whole, record = far(50)
    assert record["updates"] == steps * record["passes"] and 4 <= record["passes"] < 50
    assert reach <= whole <= (1 + 1 / 4) * reach * (1 + 1e-9)
    once, _ = far(1)
    assert 0.5 * steps * length < once <= steps * length * (1 + 1e-9)
    assert steps > 1 or once == pytest.approx(length, rel=1e-9)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("reach", [0.0, 2.0])
def test_step_3_begins_without_momentum(optimizer, reach):
    """A34: with `reach` the optimiser has no state when step 3 follows a pass over D_f; without a pass it keeps its
    own, as it does in every epoch without `reach`."""
    seen = []

    def redirect(state, *given):
        seen.append((state.epoch, state.record["passes"], len(state.optimizer.state) > 0))
        real(state, *given)

    real, at_reach = rem_plus.redirect, [0.1] if reach else []
    with acc_forget(0.9, 0.1, *at_reach, 0.1, 0.9, 0.1), mock.patch.object(rem_plus, "redirect", redirect):
        unlearn_plus(optimizer=optimizer, reach=reach, unlearn_epochs=3, unlearn_lr=1e-3, stop="max")
    assert seen == [(1, 1, not reach), (2, 0, True), (3, 1, not reach)]


@pytest.mark.parametrize("end, far, reach, then", [
    ([3.3, 4.4], 0.1, 0.2, [3.6, 4.8]), ([6.0, 8.0], 1.0, 0.5, [6.0, 8.0]), ([6.0, 8.0], 1.0, 1.0, [6.0, 8.0]),
    ([3.0, 4.0], 0.0, 0.5, [3.0, 4.0])])
def test_distances_in_closed_form(end, far, reach, then):
    """A39: how far (3, 4) has moved, and where its line goes on to, however the weights are cut up; those that are as
    far stay, and so do those that have not moved; of no weights the distance is 0."""
    for cut in ([2], [1, 1]):
        begin, theta = (list(torch.tensor(at, dtype=torch.float64).split(cut)) for at in ([3.0, 4.0], end))
        assert moved(theta, begin) == pytest.approx(far, rel=1e-12)
        move_along(theta, begin, reach)
        assert_close(torch.cat(theta), torch.tensor(then, dtype=torch.float64))
        assert torch.cat(begin).tolist() == [3, 4]
    assert moved([], []) == 0 and moved(begin, []) == 0
