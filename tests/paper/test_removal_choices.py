"""engine/lines.py and `believed`: `reach`, how far the first step 2 goes, and `disbelieved`, what step 3 leaves out.

- Updates of one length, then along their line as far as `reach`; a later step 2 ends at gamma       A32, A33
- No state of the optimiser is carried from step 2 into step 3                                       A34
- At 0 both are off: Algorithm 1 as printed; NPO knows neither                                       A35, A36
- Left out of step 3 is exactly what theta_o1 disbelieves, before step 2, from epoch 2 on            A37
- No clean label is read; distances in closed form                                                   A38, A39
"""

import contextlib
import warnings
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import baselines
import rem as r
from engine.batches import batches_of
from engine.ending import Never, Repaired
from engine.lines import STEP, carry_on, copies, moved
from engine.modes import passing_mode, refresh_batchnorm
from engine.scores import believed
from engine.updates import one_pass
from etd import drop
from experiment.methods import METHODS, reads_setting
from helpers import assert_close, assert_same_state, gen, make_data, seeds, small_net, tiny

FORGET = torch.tensor([7, 2, 11, 4])
few = settings(max_examples=settings().max_examples * 2 // 5)  # whole unlearning runs
optimizers = pytest.mark.parametrize("optimizer", ["sgd", "adam"])
optimizers_of_step_3 = st.sampled_from(["sgd", "adam"])


def started(seed: int, epoch: int = 1, dtype=torch.float32, **changes) -> r.State:
    """Algorithm 1 after step 1, in an epoch; both choices off."""
    data, config = make_data(seed), tiny(**{"gamma": 0.2, "momentum": 0.9, **changes})
    s = r.add_capacity(small_net(seed, dtype=dtype), data, FORGET, config, gen(seed))
    s.epoch = epoch
    return s


@contextlib.contextmanager
def told(*accuracies: float):
    """Let Acc(D_f) of step 2 be these, one after another, then the last for ever; a warning that it is above gamma, or
    of the end, is none."""
    left = list(accuracies)
    with mock.patch.object(r, "accuracy_of", lambda s, index: left.pop(0) if len(left) > 1 else left[0]):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Acc")
            yield


def vector(tensors) -> torch.Tensor:
    """All entries, in float64."""
    return torch.cat([t.detach().double().flatten() for t in tensors])


def distance(tensors, begin) -> float:
    """How far the first are from the second, over the norm of the second: the twin of engine.lines.moved."""
    return float(torch.linalg.vector_norm(vector(tensors) - vector(begin)) / torch.linalg.vector_norm(vector(begin)))


def noisy(s: r.State, seed: int) -> None:
    """Move theta_o1 away from the reference, as an epoch does."""
    with torch.no_grad():
        for p in s.expanded.theta_o1():
            p += 0.1 * torch.randn(p.shape, generator=gen(seed), dtype=torch.float64).to(p)


# --- reach ------------------------------------------------------------------------------------------------------------

def walk(s: r.State, passes: int) -> None:
    """The twin: `passes` times theta <- theta - STEP ||theta_begin|| g / ||g||, g the gradient of L_step2 over D_f."""
    theta = [p for p in s.expanded.theta_o1() if p.requires_grad]
    length = STEP * float(vector(theta).norm())
    x, y = next((x, y) for _, x, y in s.data.batches(FORGET, size=len(FORGET), dtype=theta[0].dtype))
    with torch.no_grad():
        ref = F.cross_entropy(s.reference.net(x), y, reduction="none")
    s.expanded.eval()
    for _ in range(passes):
        ce = F.cross_entropy(s.expanded(x), y, reduction="none")
        down = torch.autograd.grad(-2 * F.logsigmoid(ce - ref).mean(), theta)
        norm = vector(down).norm()
        with torch.no_grad():
            for p, g in zip(theta, down, strict=True):
                p -= (length * g / norm).to(p)


@few
@given(seeds, st.floats(0.05, 5.0), st.integers(1, 3), optimizers_of_step_3)
def test_a26_the_first_goes_as_far_as_told(seed, reach, passes, optimizer):
    """A32: the first step 2 makes updates of one length down the gradient, whatever the rate, the momentum and the
    optimiser of step 3, and ends `reach` times its first norm away on their line; Acc(D_f) is of there."""
    twin = started(seed, dtype=torch.float64)
    s = started(seed, dtype=torch.float64, reach=reach, unlearn_lr=7.0, optimizer=optimizer)
    begin, theta_o2 = copies(s.expanded.theta_o1()), [p.detach().clone() for p in s.expanded.theta_o2().values()]
    walk(twin, passes)
    carry_on(twin.expanded.theta_o1(), begin, reach)
    with told(*[0.9] * passes, 0.1, 0.05):
        r.remove(s, reach=reach)
    assert distance(s.expanded.theta_o1(), begin) == pytest.approx(reach, rel=1e-9)
    assert distance(s.expanded.theta_o1(), twin.expanded.theta_o1()) < 1e-9 * (1 + reach)
    assert all(torch.equal(a, b) for a, b in zip(s.expanded.theta_o2().values(), theta_o2, strict=True))
    assert (s.record["passes"], s.record["updates"], s.record["acc_forget"]) == (passes, passes, 0.05)


@given(seeds, st.floats(1e-6, 5.0))
def test_a26_nothing_to_unlearn(seed, reach):
    """A32: where Acc(D_f) <= gamma from the start there is no line to go along: nothing moves."""
    s = started(seed, reach=reach)
    begin = copies(s.expanded.theta_o1())
    with told(0.2):
        r.remove(s, reach=reach)
    assert all(torch.equal(p, b) for p, b in zip(s.expanded.theta_o1(), begin, strict=True))
    assert s.record["passes"] == 0 and not s.optimizer.state


def test_a26_a_warning_is_of_where_the_passes_end():
    """A32: where they end at gamma step 2 has not given up, though on their line D_f may be believed again."""
    s, left = started(0, reach=0.5), [0.9, 0.1, 0.6]
    with mock.patch.object(r, "accuracy_of", lambda s, index: left.pop(0)), warnings.catch_warnings():
        warnings.simplefilter("error")
        r.remove(s, reach=0.5)
    assert s.record["acc_forget"] == 0.6 and not left


def test_a26_where_there_is_no_gradient_nothing_moves():
    """A32: a gradient of exactly 0 is no direction: the weights stay, and are numbers."""
    s = started(0, reach=0.5)
    with torch.no_grad():
        for p in s.expanded.theta_o1():
            p.zero_()
    begin = copies(s.expanded.theta_o1())
    with told(0.9, 0.9, 0.1):
        r.remove(s, reach=0.5)
    assert all(torch.equal(p, b) for p, b in zip(s.expanded.theta_o1(), begin, strict=True))


def test_a26_frozen_weights_do_not_count():
    """A32: `reach` and the length of an update are of the trainable part of theta_o1: a frozen layer of large weights
    does not lengthen them, and stays."""
    ends = []
    for value in (1.0, 1e4):
        net = small_net(0)
        net.frozen = nn.Parameter(torch.full((9,), value), requires_grad=False)
        s = r.add_capacity(net, make_data(0), FORGET, tiny(gamma=0.2, reach=0.3), gen(0))
        s.epoch = 1
        with told(0.9, 0.1):
            r.remove(s, reach=0.3)
        out = drop(s.expanded)
        assert torch.equal(out.frozen, net.frozen)
        ends.append(out.conv1.weight.detach())
    assert torch.equal(*ends) and not torch.equal(ends[0], small_net(0).conv1.weight)


@few
@given(seeds, st.integers(2, 9), st.floats(1.0, 5.0))
def test_a27_a_later_one_ends_at_gamma(seed, epoch, reach):
    """A33: a later step 2 ends where its passes do, wherever it begins."""
    s, twin = (started(seed, epoch, dtype=torch.float64, reach=reach) for _ in range(2))
    for state in (s, twin):
        noisy(state, seed)
    walk(twin, 2)
    with told(0.9, 0.8, 0.1):
        r.remove(s, reach=reach)
    assert distance(s.expanded.theta_o1(), twin.expanded.theta_o1()) < 1e-9
    assert s.record["acc_forget"] == 0.1 and s.record["passes"] == 2


@pytest.mark.parametrize("seed, epoch", [(0, 1), (1, 2), (2, 3)])
def test_a27_no_pass_begins_beyond(seed, epoch):
    """A33: the pass that comes to `reach` is the last, though Acc(D_f) > gamma, and there the weights stay."""
    def begun(reach, most, epoch=epoch):
        s = started(seed, epoch, dtype=torch.float64, reach=reach, max_passes=most)
        noisy(s, seed)  # distance counts from where this step 2 begins, not from the reference
        begin = copies(s.expanded.theta_o1())
        with told(0.9):
            r.remove(s, reach=reach)
        return s, distance(s.expanded.theta_o1(), begin)

    s, far = begun(0.9 * STEP, 5)  # one update is STEP long
    assert s.record["passes"] == 1 and far == pytest.approx(STEP, rel=1e-9)
    s, far = begun(1.5 * STEP, 50)  # two of them are at most twice as long, and less where they turn back
    short = [begun(9.0, most, epoch=2)[1] for most in range(s.record["passes"])]
    assert s.record["passes"] < 50 and max(short) < 1.5 * STEP <= far


@optimizers
@pytest.mark.parametrize("reach", [0.0, 2.0])
def test_a28_step_3_begins_without_momentum(optimizer, reach):
    """A34: with `reach` the optimiser has no state when step 3 follows a pass over D_f; without a pass it keeps its
    own, as it does in every epoch without `reach`."""
    seen = []

    def redirect(s, *given):
        seen.append((s.epoch, s.record["passes"], len(s.optimizer.state) > 0))
        real(s, *given)

    real, at_reach = r.redirect, [0.1] if reach else []
    with told(0.9, 0.1, *at_reach, 0.1, 0.9, 0.1), mock.patch.object(r, "redirect", redirect):
        r.rem(small_net(0), make_data(0), FORGET, tiny(optimizer=optimizer, gamma=0.2, reach=reach, unlearn_epochs=3,
                                                       unlearn_lr=1e-3), gen(0), until=Never)
    assert seen == [(1, 1, not reach), (2, 0, True), (3, 1, not reach)]


def to_the_letter(model, data, forget, config, generator):
    """Algorithm 1 with momentum carried over, and the refresh of BatchNorm; theta_o1."""
    s = r.add_capacity(model, data, forget, config, generator)
    s.reference.remember(s)
    for s.epoch in range(1, config.unlearn_epochs + 1):
        passes = 0
        while r.accuracy_of(s, forget) > config.gamma and passes < config.max_passes:
            passing_mode(s, False)
            with one_pass(s, "step 2") as update:
                for rows, x, y in batches_of(s, forget):
                    update(r.step2_loss(r.cross_entropy(s, x, y), s.reference.base(rows, x, y), config.beta), rows)
            passes += 1
        r.redirect(s, r.step3_batch, None)
        refresh_batchnorm(s.expanded, data, config.batch, modes=s.modes)
    return drop(s.expanded)


@optimizers
@pytest.mark.parametrize("seed, augments", [(0, False), (1, True)])
def test_a29_off_is_algorithm_1(optimizer, seed, augments):
    """A35: at 0 both choices change no bit: momentum is carried over and step 3 sees all of D_tr."""
    data = make_data(seed, pad=int(augments), flip=augments)
    config = tiny(optimizer=optimizer, unlearn_epochs=3, max_passes=2, gamma=0.2, unlearn_lr=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = to_the_letter(small_net(seed), data, FORGET, config, gen(seed))
        assert_same_state(plain, r.rem(small_net(seed), data, FORGET, config, gen(seed), until=Never))


@pytest.mark.parametrize("setting", [dict(reach=1.0), dict(disbelieved=2.0)], ids=str)
def test_a29_on_is_not(setting):
    """A35: each of the two changes the network, or the test above would tell nothing."""
    nets = []
    for more in ({}, setting):
        with told(0.9, 0.1, 0.1, 0.9, 0.1):
            nets.append(r.rem(small_net(0), make_data(0), FORGET, tiny(gamma=0.2, **more), gen(0), until=Never))
    assert not torch.equal(nets[0].conv1.weight, nets[1].conv1.weight)


@few
@given(seeds, st.floats(1e-3, 5.0), st.floats(1e-3, 5.0))
def test_a30_npo_knows_neither(seed, reach, disbelieved):
    """A36: NPO, and REM without 3.1 and 3.2, which is NPO, end at gamma whatever the two are."""
    nets = []
    on = dict(reach=reach, disbelieved=disbelieved)
    for method, more in ((baselines.npo, {}), (baselines.npo, on),
                         (baselines.rem_as_set, dict(**on, step31=False, step32=False))):
        with told(0.9, 0.5, 0.1):
            nets.append(method(small_net(seed), make_data(seed), FORGET, tiny(gamma=0.2, **more), gen(seed)))
    assert_same_state(nets[0], nets[1])
    assert_same_state(nets[0], nets[2])


@pytest.mark.parametrize("setting", ["reach", "disbelieved"])
def test_a30_who_reads_them(setting):
    """A36: REM in all its versions depends on them, and no other method does."""
    assert {name for name in METHODS if reads_setting(setting, {"method": name})} == {
        name for name in METHODS if name.startswith("rem")}


# --- disbelieved ------------------------------------------------------------------------------------------------------

def ce_of(s: r.State) -> torch.Tensor:
    """CE of each label as given, theta_o1 alone, in eval mode, one image at a time: the twin."""
    net, data = drop(s.expanded).eval(), s.data
    with torch.no_grad():
        logits = [net(x) for _, x, _ in data.batches(size=1, dtype=torch.float64)]
    return F.cross_entropy(torch.cat(logits), data.labels, reduction="none")


def judged(seed: int, until, **changes):
    """A run of three epochs: of each what step 3 was given, CE before and after step 2, D_tr without W; and D_r."""
    seen, ends = [], []

    def remove(s, *given, **more):
        before = ce_of(s)
        real["remove"](s, *given, **more)
        seen.append([before, ce_of(s)])

    def redirect(s, loss, index):
        seen[-1].append(index)
        real["redirect"](s, loss, index)

    def end(s):
        ends.append(until(s))
        return ends[0]

    real = {name: getattr(r, name) for name in ("remove", "redirect")}
    data = make_data(seed, n=48, pad=1, flip=True)
    with told(*[0.9, 0.1] * 3), mock.patch.multiple(r, remove=remove, redirect=redirect):
        config = tiny(gamma=0.2, batch=16, unlearn_epochs=3, **changes)
        r.rem(small_net(seed, dtype=torch.float64), data, FORGET, config, gen(seed), until=end)
    taught = ends[0].trained_on
    return seen, torch.arange(48) if taught is None else taught, getattr(ends[0], "held_out", None)


def left_in(ce: torch.Tensor, taught: torch.Tensor, bound: float) -> torch.Tensor:
    """What step 3 is to be given of `taught`: all of it where more than half of D_r is above the bound."""
    suspect = (ce > bound) & ~torch.isin(torch.arange(len(ce)), FORGET)
    return taught if 2 * suspect.sum() > len(ce) - len(FORGET) else taught[~suspect[taught]]


@pytest.mark.parametrize("until", [Never, Repaired])
def test_a31_who_is_left_out(until):
    """A37: from epoch 2 on step 3 lacks exactly the images of D_r whose CE before step 2 is above `disbelieved`, unless
    that is more than half of D_r; D_f is all there, W is not."""
    out = kept = spared = other = 0
    for seed in range(4):
        seen, taught, held_out = judged(seed, until, disbelieved=1.5)
        known = torch.isin(taught, FORGET)
        assert len(seen) >= 2 and int(known.sum()) == len(FORGET)
        first = seen[0][2]
        assert first is None if until is Never else torch.equal(first, taught)
        for before, after, index in seen[1:]:
            index = taught if index is None else index
            assert torch.equal(index, left_in(before, taught, 1.5))
            assert held_out is None or not torch.isin(index, held_out).any()
            out, kept = out + len(taught) - len(index), kept + len(index)
            spared += int((before[FORGET] > 1.5).sum())
            other += not torch.equal(index, left_in(after, taught, 1.5))
    assert min(out, kept, spared, other) > 0  # or this told nothing


@pytest.mark.parametrize("until", [Never, Repaired])
def test_a31_0_leaves_none_out(until):
    """A37: at 0 no image is disbelieved, and no pass is made to find out."""
    seen, taught, _ = judged(0, until)
    for _, _, index in seen:
        assert index is None if until is Never else torch.equal(index, taught)
    s = started(0, 5)
    with mock.patch.object(s.expanded, "forward", side_effect=AssertionError):
        assert believed(s, None) is None and believed(s, FORGET) is FORGET


@given(seeds, st.floats(0.1, 4.0))
def test_a31_judging_moves_nothing(seed, bound):
    """A37: to judge draws no number and leaves weights, statistics and modes as they were; none is asked in epoch 1."""
    s = started(seed, 1, disbelieved=bound)
    s.expanded.train()
    drawn, begin = s.generator.get_state(), copies([*s.expanded.parameters(), *s.expanded.buffers()])
    assert believed(s, None) is None
    s.epoch = 2
    index = believed(s, None)
    index = torch.arange(len(s.data)) if index is None else index
    assert torch.isin(FORGET, index).all() and torch.equal(believed(s, index.flip(0)), index.flip(0))
    assert torch.equal(s.generator.get_state(), drawn) and all(module.training for module in s.expanded.modules())
    assert all(map(torch.equal, [*s.expanded.parameters(), *s.expanded.buffers()], begin))


class Bare:
    """D_tr of which nothing can be had but its length and its batches, labels as given."""

    def __init__(self, data):
        self.__data, self.augments = data, data.augments

    def __len__(self):
        return len(self.__data)

    def batches(self, *given, **named):
        """Those of the data."""
        return self.__data.batches(*given, **named)


@pytest.mark.parametrize("until", [Never, Repaired])
def test_a32_no_clean_label(until):
    """A38: with both choices on, the batches are all that is read of the data."""
    config = tiny(gamma=0.2, reach=1.0, disbelieved=1.0, unlearn_epochs=3)
    nets = []
    for data in (make_data(0, n=48), Bare(make_data(0, n=48))):
        with told(*[0.9, 0.1, 0.1] * 3):
            nets.append(r.rem(small_net(0), data, FORGET, config, gen(0), until=until))
    assert_same_state(*nets)


# --- engine/lines.py --------------------------------------------------------------------------------------------------

def test_a33_closed_form():
    """A39: (3, 4) and (3.3, 4.4) are a tenth apart; to 0.2 the line goes on to (3.6, 4.8), however it is cut up."""
    for cut in ([2], [1, 1]):
        begin = list(torch.tensor([3.0, 4.0], dtype=torch.float64).split(cut))
        theta = list(torch.tensor([3.3, 4.4], dtype=torch.float64).split(cut))
        assert moved(theta, begin) == pytest.approx(0.1, rel=1e-12)
        carry_on(theta, begin, 0.2)
        assert_close(torch.cat(theta), torch.tensor([3.6, 4.8], dtype=torch.float64))
        assert torch.equal(torch.cat(begin), torch.tensor([3.0, 4.0], dtype=torch.float64))


def test_a33_who_stays():
    """A39: weights that are as far stay, and so do those that have not moved; of no weights the distance is 0."""
    begin = [torch.tensor([3.0, 4.0])]
    for end, reach in (([6.0, 8.0], 0.5), ([6.0, 8.0], 1.0), ([3.0, 4.0], 0.5)):
        theta = [torch.tensor(end)]
        carry_on(theta, begin, reach)
        assert theta[0].tolist() == end
    assert moved([], []) == 0 and moved(begin, []) == 0


@given(seeds, st.lists(st.integers(1, 5), min_size=1, max_size=4), st.floats(1e-3, 0.5), st.floats(0.6, 10))
def test_a33_any_weights(seed, sizes, near, reach):
    """A39: from any point the line goes on to `reach` in the same direction; copies are no views and have no graph."""
    theta = [torch.nn.Parameter(torch.randn(size, generator=gen(seed + i), dtype=torch.float64))
             for i, size in enumerate(sizes)]
    begin = copies(theta)
    whole = vector(begin)
    line = torch.randn(len(whole), generator=gen(seed + 9), dtype=torch.float64)
    line *= near * whole.norm() / line.norm()
    with torch.no_grad():
        for p, step in zip(theta, line.split(sizes), strict=True):
            p += step
    assert moved(theta, begin) == pytest.approx(near, rel=1e-9) and not any(b.requires_grad for b in begin)
    assert torch.equal(vector(begin), whole)
    carry_on(theta, begin, reach)
    assert_close(vector(theta), whole + line * (reach / near), 1e-9)
    assert all(p.requires_grad and p.is_leaf for p in theta)
