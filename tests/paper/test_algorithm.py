"""Properties A1-A19 of Algorithm 1, and of the training loop that it shares with the baselines.

A function prop_* takes the module to test first, so that tests/test_mutants.py can run it on a broken copy.
"""

import contextlib
import copy
import math
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import baselines
import etd
from experiment import cell as experiment
from experiment import methods
import oracles_loss as oracle
import rem as rem_module
import train
from baselines import fine_tune
from baselines import npo
from engine.batches import count_batches
from experiment.data import batches
from etd import drop, mask_table
from train import train_etd
from helpers import Evil, assert_close, assert_same_state, gen, make_data, seeds, small_net, tiny
from etd import Expanded
from metrics import accuracy
from models import build
from experiment.settings import Config

few = settings(max_examples=settings().max_examples * 2 // 5)  # several whole unlearning runs an example
betas = st.sampled_from([0.5, 1.0, 2.0])

CORE = {name: methods.METHODS[name].function for name in ("no-ul", "cf", "npo", "rem")}  # the rest has tests of its own


def numbered(n, size=4, classes=4, seed=0, **more):
    """n <= 256 images, image i all of value i, so that a batch tells which examples it holds."""
    data = make_data(seed, n=n, size=size, classes=classes, **more)
    data.images.copy_(torch.arange(n, dtype=torch.uint8).view(-1, 1, 1, 1).expand_as(data.images))
    return data


def numbers(data, x):
    """The examples of a batch of `numbered` data."""
    return (255 * (x[:, 0, 0, 0].double() * data.std[0] + data.mean[0])).round().long()


def draw_forget(seed, n, size):
    """D_f: `size` of n indices in no order."""
    return torch.randperm(n, generator=gen(seed))[:size]


def scripted(values):
    """An accuracy function that returns the values one after another, then the last one for ever; .calls counts."""
    def answer(*args, **kwargs):
        answer.calls += 1
        return values[min(answer.calls, len(values)) - 1]
    answer.calls = 0
    return answer


@contextlib.contextmanager
def counting(module, name):
    """Count the calls of module.name while they go on as ever."""
    with mock.patch.object(module, name, wraps=getattr(module, name)) as spy:
        yield spy


def unlearn(rem, draw, forget=None, data=None, net=None, n=12, generator=7, **changes):
    """One run of rem.rem on small data; Acc(D_f) is never above gamma = 1, so step 2 makes no pass unless told to."""
    data = make_data(draw, n=n) if data is None else data
    net = small_net(draw) if net is None else net
    forget = draw_forget(draw, len(data), 4) if forget is None else forget
    return rem.rem(net, data, forget, tiny(**{"gamma": 1.0, **changes}), gen(generator))


# --- Step 2 -----------------------------------------------------------------------------------------------------------


def prop_a1(rem, seed=0, script=(0.9, 0.5, 0.3, 0.1), size=5, batch=2, gamma=0.2):
    """Whole passes until Acc(D_f) <= gamma, measured before the first and after each: the exact number of updates."""
    data = make_data(seed)
    state = rem.start(small_net(seed), data, draw_forget(seed, 12, size), tiny(gamma=gamma, batch=batch, max_passes=50),
                      gen(seed))
    measure = scripted(script)
    with mock.patch.object(rem, "acc_forget", measure), counting(rem, "descend") as update:
        last = rem.remove(state)
    assert update.call_count == oracle.update_count(script, gamma, count_batches(size, batch), 50)
    assert measure.calls == update.call_count // count_batches(size, batch) + 1
    assert last == next(value for value in script if value <= gamma)
    assert state.record == dict(acc_forget_before=script[0], acc_forget=last, passes=measure.calls - 1,
                                updates=update.call_count)


@given(seeds, st.lists(st.floats(0.21, 1), max_size=6), st.floats(0, 0.2), st.integers(1, 11),
       st.sampled_from([2, 3, 64]))
def test_a1_updates(seed, above, below, size, batch):
    """A1: step 2 runs until Acc(D_f) <= gamma, for any script of accuracies, size of D_f and batch."""
    prop_a1(rem_module, seed, (*above, below), size, batch)


def test_a1_every_epoch():
    """A1: each epoch begins with step 2, which starts measuring anew."""
    script, data = (0.9, 0.1, 0.1, 0.8, 0.7, 0.0), make_data(0)
    with mock.patch.object(rem_module, "acc_forget", scripted(script)), counting(rem_module, "descend") as update:
        unlearn(rem_module, 0, data=data, gamma=0.2, unlearn_epochs=3)
    assert update.call_count == (1 + 0 + 2) * 1 + 3 * 3  # D_f is one batch of 4, D_tr three


def prop_a2(rem, seed=0, gamma=0.2):
    """No update at or below gamma; an update just above it."""
    data, forget = make_data(seed), draw_forget(seed, 12, 3)
    for start, updates in ((gamma, 0), (math.nextafter(gamma, -1), 0), (math.nextafter(gamma, 2), 1)):
        state = rem.start(small_net(seed), data, forget, tiny(gamma=gamma), gen(seed))
        before = copy.deepcopy(state.expanded)
        with mock.patch.object(rem, "acc_forget", scripted((start, gamma))), counting(rem, "descend") as update:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a step 2 that never ends is told by its updates
                rem.remove(state)
        assert update.call_count == updates
        if not updates:
            assert_same_state(before, state.expanded)


@given(seeds, st.floats(0, 1))
@example(0, 0.0)
@example(0, 1.0)
def test_a2_equality(seed, gamma):
    """A2: step 2 stops at equality ("while Acc(D_f) > gamma") and then leaves every weight and statistic alone."""
    prop_a2(rem_module, seed, gamma)


def test_a2_real_equality():
    """A2: one of five right is not above gamma = 0.2 in floating point either."""
    data, net = make_data(0), small_net(0)
    forget = torch.arange(5)
    labels = data.labels.clone()
    guesses = net.eval()(next(batches(data))[1]).argmax(dim=1)[:5]
    labels[:5] = (guesses + torch.tensor([0, 1, 1, 1, 1])) % 4
    state = rem_module.start(net, type(data)(data.images, labels, 4, data.mean, data.std), forget, tiny(gamma=0.2),
                             gen(0))
    with counting(rem_module, "descend") as update:
        assert rem_module.remove(state) == 0.2
    assert update.call_count == 0


@given(seeds, st.integers(0, 4), st.integers(1, 9), st.integers(1, 2))
def test_a3_cap(seed, most, size, epochs):
    """A3: a gamma that is never reached ends at max_passes, with a warning in each epoch, and unlearning goes on."""
    with mock.patch.object(rem_module, "acc_forget", scripted((0.9,))), counting(rem_module, "descend") as update:
        with pytest.warns(UserWarning,
                          match=f"Acc\\(D_f\\) is 0.90 after {most} passes, still above gamma = 0.2") as caught:
            net = unlearn(rem_module, seed, draw_forget(seed, 12, size), gamma=0.2, max_passes=most,
                          unlearn_epochs=epochs)
    assert len(caught) == epochs and not isinstance(net, Expanded)
    assert update.call_count == epochs * (most * count_batches(size, 4) + 3)


@given(seeds, st.integers(1, 6), st.integers(1, 9))
def test_a3_last_pass_counts(seed, most, size):
    """A3: a gamma that the last allowed pass reaches is reached: Acc(D_f) is measured after it too, and nothing
    warns."""
    state = rem_module.start(small_net(seed), make_data(seed), draw_forget(seed, 12, size),
                             tiny(gamma=0.2, max_passes=most), gen(seed))
    with mock.patch.object(rem_module, "acc_forget", scripted([0.9] * most + [0.1])), counting(rem_module,
        "descend") as update:
        assert rem_module.remove(state) == 0.1
    assert update.call_count == most * count_batches(size, 4)


def test_a3_warning_names_the_caller():
    """A3: the warning points at the line that called step 2, not into the library."""
    state = rem_module.start(small_net(0), make_data(0), draw_forget(0, 12, 3), tiny(gamma=0.2, max_passes=1), gen(0))
    with mock.patch.object(rem_module, "acc_forget", scripted((0.9,))), pytest.warns(UserWarning,
        match="0.90 after 1 passes") as caught:
        rem_module.remove(state)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("norm, repaired, trains", [("auto", True, False), ("auto", False, True), ("batch", True, True),
                                                    ("batch", False, True), ("running", True, False),
                                                    ("running", False, False)])
def test_a20_when_step_2_trains(norm, repaired, trains):
    """A20: "auto" trains where no step 3 follows; "batch" and "running" say it outright; one example alone has no batch
    statistics."""
    for size in (1, 2, 3, 100):
        assert rem_module.trains_on_forget(tiny(forget_norm=norm), torch.arange(size),
                                           repaired) == (trains and size > 1)
    assert rem_module.trains_on_forget(tiny(), torch.arange(2))  # nothing repairs, unless told so


@pytest.mark.parametrize("step31, step32, trains", [(True, True, False), (True, False, False), (False, True, False),
                                                    (False, False, True)])
def test_a20_either_term_repairs(step31, step32, trains):
    """A20: one of 3.1 and 3.2 is a step 3; with neither step 2 is NPO and trains as NPO does."""
    config, modes = tiny(gamma=0.2, step31=step31, step32=step32), []
    state = rem_module.start(small_net(0), make_data(0), draw_forget(0, 12, 3), config, gen(0))
    state.expanded.register_forward_hook(lambda net, *_: modes.append(net.training))
    with mock.patch.object(rem_module, "acc_forget", scripted((0.9, 0.1))):
        rem_module.remove(state)
    assert modes == [trains]


@given(seeds)
def test_a7_no_step_3(seed):
    """A7: without 3.1 and 3.2 an epoch is step 2 alone: step 3 has no loss and no update."""
    state = rem_module.start(small_net(seed), make_data(seed), torch.tensor([1, 2]), tiny(step31=False, step32=False),
                             gen(seed))
    before = copy.deepcopy(state.expanded)
    assert rem_module.redirect(state) == 0.0
    assert_same_state(before, state.expanded)


def prop_a5(rem, seed=0):
    """Acc(D_f) is of D_f, in order, without augmentation, trigger on, theta_o1 alone, eval mode, against the labels as
    given."""
    data = make_data(seed, n=12, pad=2, flip=True, trigger=True)
    forget = draw_forget(seed, 12, 5)
    state = rem.start(small_net(seed), data, forget, tiny(gamma=1.0), gen(seed))
    state.expanded.train()
    state.expanded.net.norm1.eval()  # a mixed mode, to be put back
    modes, seen, drawn = [m.training for m in state.expanded.modules()], [], state.generator.get_state()

    def spy(module, args, kwargs):
        assert not any(m.training for m in state.expanded.modules()) and not torch.is_grad_enabled()
        assert len(args) == 1 or args[1] is None
        assert not any(value is not None for value in kwargs.values())
        seen.append(args[0].clone())

    hook = state.expanded.register_forward_pre_hook(spy, with_kwargs=True)
    before = copy.deepcopy(drop(state.expanded)).eval()
    found = rem.remove(state)
    hook.remove()
    x = torch.cat([x for _, x, _ in batches(data, forget)])
    assert torch.equal(torch.cat(seen), x)
    assert found == oracle.accuracy(oracle.predictions(before(x).detach()), data.labels[forget])
    assert [m.training for m in state.expanded.modules()] == modes
    assert torch.equal(state.generator.get_state(), drawn)  # nothing was drawn for it


@given(seeds)
def test_a5_accuracy(seed):
    """A5: what Acc(D_f) is measured on, and how."""
    prop_a5(rem_module, seed)


def prop_a6(rem, seed=0, pad=1, flip=True):
    """Step 2 gives the same theta, bit for bit, whatever the images and labels of D_r are."""
    data, forget = make_data(seed, pad=pad, flip=flip), draw_forget(seed, 12, 5)
    retain = torch.ones(12, dtype=torch.bool).index_fill_(0, forget, False)
    images, labels = data.images.clone(), data.labels.clone()
    images[retain] = torch.randint(0, 2, images[retain].shape, dtype=torch.uint8, generator=gen(seed)) * 255
    labels[retain] = (labels[retain] + 1) % 4
    states = []
    for one in (data, type(data)(images, labels, 4, data.mean, data.std, pad, flip)):
        state = rem.start(small_net(seed), one, forget, tiny(gamma=0.2), gen(seed))
        with mock.patch.object(rem, "acc_forget", scripted((0.9, 0.8, 0.0))):
            rem.remove(state)
        states.append(state)
    assert_same_state(states[0].expanded, states[1].expanded)
    moved = [not torch.equal(a, b) for a, b in zip(states[0].expanded.net.parameters(),
                                                   states[0].reference.net.parameters(), strict=True)]
    assert any(moved)


@given(seeds, st.sampled_from([0, 1]), st.booleans())
def test_a6_retain_set(seed, pad, flip):
    """A6: step 2 is independent of D_r, with and without augmentation."""
    prop_a6(rem_module, seed, pad, flip)


# --- Step 3 -----------------------------------------------------------------------------------------------------------


class Watch:
    """Records every pass of a state's network but those of `accuracy` (input and masks), and the loss of each
    update."""

    def __init__(self, rem, state):
        self.rem, self.state, self.passes, self.steps = rem, state, [], []

    def __enter__(self):
        self.hook = self.state.expanded.register_forward_pre_hook(lambda *args: self.see(*args))
        self.patch = mock.patch.object(self.rem, "descend", self.update)
        self.real = self.rem.descend
        self.patch.start()
        return self

    def __exit__(self, *error):
        self.patch.stop()
        self.hook.remove()

    def see(self, module, args):
        if module.training or torch.is_grad_enabled():  # accuracy has neither
            self.passes.append((args[0], args[1] if len(args) > 1 else None))

    def update(self, optimizer, loss, *share):
        before = copy.deepcopy(self.state.expanded)  # as it was in the passes: nothing has moved but running statistics
        before._forward_pre_hooks.clear()
        self.steps.append((self.passes, before, float(loss.detach())))
        self.passes = []
        return self.real(optimizer, loss, *share)


def twin_logits(net, x, mask=None):
    """Logits without gradient, in the mode that the network is in."""
    with torch.no_grad():
        return net(x, mask).double()


def prop_a7(rem, seed=0, size=10, batch=6, beta=2.0, redirect=True, remove=True, flip=True):
    """Step 3 batch by batch: which examples, under which masks, and the loss of the twin with step 1's copies as
    reference.

    A flip leaves `numbered` images as they are, and makes the references run batch by batch instead of once.
    """
    data, forget = numbered(20, seed=seed, flip=flip), draw_forget(seed, 20, size)
    config = tiny(batch=batch, beta=beta, unlearn_lr=0.1, step31=redirect, step32=remove, p_mem=0.5)
    state = rem.start(small_net(seed, dtype=torch.float64), data, forget, config, gen(seed))
    initial = copy.deepcopy(state.expanded).eval()
    table = mask_table(20, state.expanded.width, 0.5, config.seed, forget)
    orders = []
    for _ in range(3):
        with Watch(rem, state) as watch:
            mean = rem.redirect(state)
        losses, order = [], []
        for passes, before, loss in watch.steps:
            full = [(x, mask) for x, mask in passes if mask is not None]
            base = [x for x, mask in passes if mask is None]
            assert len(full) == int(redirect) and len(base) == 1
            rows = numbers(data, base[0])
            hit = torch.isin(rows, forget)
            if redirect:
                assert torch.equal(full[0][0], base[0]) and torch.equal(full[0][1], table[rows])
            x, labels = base[0], data.labels[rows]
            logits = [twin_logits(net, x, mask) for mask in (table[rows], None) for net in (before, initial)]
            expected = oracle.step3_loss(*logits, labels, hit, beta, redirect, remove)
            if not redirect:  # theta_o1 alone is fine-tuned on D_r
                expected -= oracle.step3_loss(*logits[2:], *logits[2:], labels, ~hit, beta, False, True)
            # inputs were rounded to float32 and back
            assert_close(torch.tensor(loss).double(), torch.tensor(expected), 1e-9)
            losses.append(loss)
            order += rows.tolist()
        assert sorted(order) == list(range(20))
        assert abs(mean - sum(losses) / len(losses)) < 1e-5  # the epoch's sum is in float32
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]


@given(seeds, st.integers(1, 19), st.sampled_from([2, 6, 7, 19, 20, 64]), betas, st.booleans())
def test_a7_step3(seed, size, batch, beta, flip):
    """A7, L16: each D_tr index once an epoch, reshuffled, D_f in the redirect term too, the removal term on D_f
    alone."""
    prop_a7(rem_module, seed, size, batch, beta, flip=flip)


@given(seeds, st.integers(1, 19), betas, st.booleans())
@pytest.mark.parametrize("redirect, remove", [(True, False), (False, True)])
def test_l14_flags(redirect, remove, seed, size, beta, flip):
    """L14: each ablation flag takes exactly one term out of step 3; without 3.1, theta_o1 learns on D_r in its
    place."""
    prop_a7(rem_module, seed, size, 6, beta, redirect, remove, flip)


def prop_a7_step2(rem, seed=0, size=10, batch=4, beta=2.0, flip=True):
    """Step 2 batch by batch: D_f whole, base-only, in a new order each pass, and the loss of the twin."""
    data, forget = numbered(20, seed=seed, flip=flip), draw_forget(seed, 20, size)
    state = rem.start(small_net(seed, dtype=torch.float64), data, forget, tiny(batch=batch, beta=beta, gamma=0.2),
                      gen(seed))
    initial = copy.deepcopy(state.expanded).eval()
    with mock.patch.object(rem, "acc_forget", scripted((0.9, 0.8, 0.7, 0.0))), Watch(rem, state) as watch:
        rem.remove(state)
    order = []
    for passes, before, loss in watch.steps:
        assert len(passes) == 1 and passes[0][1] is None
        x = passes[0][0]
        rows = numbers(data, x)
        logits = [twin_logits(net, x) for net in (before, initial)]
        assert abs(loss - oracle.step2_loss(*logits, data.labels[rows], beta)) < 1e-9
        order.append(rows.tolist())
    rounds = [sum(order[i:i + len(order) // 3], []) for i in range(0, len(order), len(order) // 3)]
    assert len(rounds) == 3 and all(sorted(one) == sorted(forget.tolist()) for one in rounds)
    assert rounds[0] != rounds[1] != rounds[2]  # 10 examples or more: equal by chance once in 3.6 million draws


@given(seeds, st.sampled_from([2, 5, 64]), st.sampled_from([(0, True), (2, False), (2, True)]))
def test_a7_augmentation(seed, batch, moves):
    """A7, T12: steps 2 and 3 pass over images cropped and flipped as the data say, 3.1 and 3.2 over the same ones."""
    data, forget = make_data(seed, pad=moves[0], flip=moves[1]), draw_forget(seed, 12, 5)
    config, seen = tiny(batch=batch, gamma=0.2), []
    state, twin = rem_module.start(small_net(seed), data, forget, config, gen(seed)), gen(seed)
    state.expanded.register_forward_pre_hook(lambda net, args: seen.append(args[0]))
    for step, index, passes in ((rem_module.remove, forget, 1), (rem_module.redirect, None, 2)):
        seen.clear()
        with mock.patch.object(rem_module, "acc_forget", scripted((0.9, 0.0))):
            step(state)
        expected = [x for _, x, _ in batches(data, index, batch, twin, augment=True) for _ in range(passes)]
        for x, y in zip(seen, expected, strict=True):
            assert torch.equal(x, y)


@given(seeds)
def test_a7_no_idle_passes(seed):
    """A7: the reference runs for the terms that a batch has, once each, and theta_o1 alone has no gradient where it has
    no term."""
    data, forget = make_data(seed, pad=1), torch.tensor([0])
    state = rem_module.start(small_net(seed), data, forget, tiny(batch=3, gamma=0.2), gen(seed))
    asked, base = [], []
    alone = ((), (None,))  # what follows x where theta_o1 runs alone
    state.reference.register_forward_hook(lambda net, args, out: asked.append(args[1:] in alone))
    state.expanded.register_forward_hook(lambda net, args, out: base.append(out.requires_grad) if args[1:] in alone
                                         else None)
    with mock.patch.object(rem_module, "acc_forget", scripted((0.9, 0.0))):
        rem_module.remove(state)
    assert asked == [True] and base == [True]
    asked.clear(), base.clear()
    rem_module.redirect(state)
    assert sorted(asked) == [False] * 4 + [True] and sorted(base) == [False] * 3 + [True]  # D_f is in one batch of four


@given(seeds, st.integers(10, 19), st.sampled_from([2, 4, 10, 64]), betas, st.booleans())
def test_a7_step2(seed, size, batch, beta, flip):
    """A7, L16: each pass of step 2 visits D_f once, reshuffled, theta_o1 alone."""
    prop_a7_step2(rem_module, seed, size, batch, beta, flip)


def prop_a4(rem, epochs=3):
    """Exactly `epochs` outer iterations, each a step 2 and then a step 3."""
    trace, calls = [], []
    data, forget = make_data(0), draw_forget(0, 12, 4)
    with contextlib.ExitStack() as stack:
        for name in ("remove", "redirect"):
            real = getattr(rem, name)
            stack.enter_context(mock.patch.object(rem, name, lambda state, real=real,
                                                  name=name: (trace.append(name), real(state))[1]))
        rem.rem(small_net(0), data, forget, tiny(gamma=1.0, unlearn_epochs=epochs), gen(0), log=lambda *a,
                **k: calls.append((a, k)))
    assert trace == ["remove", "redirect"] * epochs
    assert [(a[0], a[1]) for a, _ in calls] == [(i + 1, epochs) for i in range(epochs)]
    assert all(isinstance(a[2], Expanded) and {"loss", "acc_forget", "updates"} <= set(k) for a, k in calls)


def prop_f8(rem, seed=0, epochs=3, pad=1):
    """Through all epochs the reference is step 1's copy of theta_o1 and theta_o2, frozen and in eval mode, and is
    used."""
    states, begun, start = [], [], rem.start

    def spy(*args, **kwargs):
        states.append(start(*args, **kwargs))
        begun.append(copy.deepcopy(states[-1].expanded))
        return states[-1]

    net, data, forget = small_net(seed), make_data(seed, pad=pad), draw_forget(seed, 12, 4)
    with mock.patch.object(rem, "start", spy), mock.patch.object(rem, "acc_forget", scripted((0.9, 0.0))):
        rem.rem(net, data, forget, tiny(gamma=0.2, unlearn_epochs=epochs), gen(seed))
    (state,), (initial,) = states, begun
    assert_same_state(state.reference, initial)
    assert_same_state(drop(state.reference), net)
    assert not any(m.training for m in state.reference.modules())
    assert all(p.grad is None and not p.requires_grad for p in state.reference.parameters())
    assert not torch.equal(next(state.expanded.parameters()), next(initial.parameters()))


@given(seeds, st.integers(1, 3), st.sampled_from([0, 1]))
def test_f8_reference(seed, epochs, pad):
    """F8: whole runs leave the reference as step 1 made it."""
    prop_f8(rem_module, seed, epochs, pad)


@given(st.integers(0, 5))
def test_a4_epochs(epochs):
    """A4: exactly max_epochs outer iterations."""
    prop_a4(rem_module, epochs)


@given(seeds, st.sampled_from([1, 2, 5, 6, 7, 12]), st.sampled_from([2, 5, 6, 7, 11, 12, 64]),
       st.sampled_from(["sgd", "adam"]))
def test_a7_any_sizes(seed, size, batch, optimizer):
    """A7: |D_f| below, at and above a batch, one example, a last batch of one, a batch above the data: all end
    finite."""
    forget = draw_forget(seed, 13, size)
    with mock.patch.object(rem_module, "acc_forget", scripted((0.9, 0.0))):
        net = unlearn(rem_module, seed, forget, n=13, gamma=0.2, batch=batch, optimizer=optimizer, unlearn_epochs=1)
    assert all(torch.isfinite(t).all() for t in net.state_dict().values())


# --- The whole algorithm ----------------------------------------------------------------------------------------------


def resumed(seed, path, done, changes, other=99):
    """A state of the same network, data and settings, made with other random states, and `done` epochs read from a
    file."""
    torch.manual_seed(other)
    data = make_data(seed, pad=changes.pop("pad", 0), flip=changes.pop("flip", False))
    state = rem_module.start(small_net(seed), data, draw_forget(seed, 12, 4), tiny(**changes), gen(other))
    if path is not None:
        experiment.load_state(state, path)
        assert state.epoch == done
    return state


def go_on(state, epochs):
    """Epochs of Algorithm 1 until `epochs` are done."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # step 2 may give up; that it does is A3
        while state.epoch < epochs:
            state.epoch += 1
            rem_module.remove(state)
            rem_module.redirect(state)
    return rem_module.finish(state)


@few
@given(seeds, st.integers(0, 3), st.sampled_from(["sgd", "adam"]), st.sampled_from([(0, False), (1, True)]))
def test_a8_resume(tmp_path_factory, seed, done, optimizer, augmentation):
    """A8: k epochs, save, load into a state with other random states, n - k epochs: bitwise the same as n epochs."""
    path = tmp_path_factory.mktemp("resume") / "state.pt"
    changes = dict(optimizer=optimizer, pad=augmentation[0], flip=augmentation[1], gamma=0.3, max_passes=2)
    state = resumed(seed, None, 0, dict(changes), other=3)
    whole = go_on(copy.deepcopy(state), 3)
    go_on(state, done)
    experiment.save_state(state, path)
    assert_same_state(go_on(resumed(seed, path, done, dict(changes)), 3), whole)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a8_second_process(tmp_path):
    """A8: the same across processes."""
    path, out = tmp_path / "state.pt", tmp_path / "net.pt"
    changes = dict(pad=1, flip=True, gamma=0.3, max_passes=2)
    state = resumed(5, None, 0, dict(changes), other=3)
    whole = go_on(copy.deepcopy(state), 4)
    go_on(state, 2)
    experiment.save_state(state, path)
    here = Path(__file__).resolve().parent
    code = (f"import sys; sys.path[:0] = [{str(here)!r}, {str(here.parent)!r}]\n"
            "import torch, test_algorithm as t\n"
            "torch.set_num_threads(1)\n"
            f"net = t.go_on(t.resumed(5, {str(path)!r}, 2, {changes!r}, other=1234), 4)\n"
            f"torch.save(net.state_dict(), {str(out)!r})\n")
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = copy.deepcopy(whole)
    found.load_state_dict(torch.load(out, weights_only=True))
    assert_same_state(found, whole)


@pytest.mark.parametrize("pad", [1, 0])
def test_a8_reference_is_read(tmp_path, pad):
    """A8, F8: the loaded reference counts, not the one that the state was started with, with and without
    augmentation."""
    path, data, forget = tmp_path / "state.pt", make_data(0, pad=pad), draw_forget(0, 12, 4)
    states = [rem_module.start(small_net(seed), data, forget, tiny(gamma=1.0), gen(0)) for seed in (0, 1)]
    experiment.save_state(states[0], path)
    experiment.load_state(states[1], path)
    assert_same_state(states[0].reference, states[1].reference)
    assert_same_state(*(go_on(state, 1) for state in states))


def test_a8_loads_no_code(tmp_path):
    """A8: a saved state that holds code is refused, and the code does not run."""
    state = rem_module.start(small_net(0), make_data(0), draw_forget(0, 12, 4), tiny(), gen(0))
    torch.save({"expanded": Evil(tmp_path / "ran")}, tmp_path / "state.pt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        experiment.load_state(state, tmp_path / "state.pt")
    assert not (tmp_path / "ran").exists()


@few
@given(seeds, st.sampled_from(list(CORE)), st.sampled_from(["sgd", "adam"]))
def test_a9_deterministic(seed, method, optimizer):
    """A9: same seed, same theta_u bitwise, for every method and whatever the global random state; another seed, another
    one."""
    data, forget, config = make_data(seed, pad=1, flip=True), draw_forget(seed, 12, 4), tiny(optimizer=optimizer)
    nets = []
    for world, generator in ((0, 7), (1, 7), (0, 8)):
        net = small_net(seed)
        torch.manual_seed(world)
        before = torch.get_rng_state()
        with mock.patch.object(rem_module, "acc_forget", scripted((0.9, 0.0))):
            nets.append(CORE[method](net, data, forget, config, gen(generator)))
        assert torch.equal(torch.get_rng_state(), before)
    assert_same_state(nets[0], nets[1])
    same = all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[2].parameters(), strict=True))
    assert same == (method == "no-ul")


def test_a9_config_seed():
    """A9: theta_o2 and the masks come from config.seed, so another one gives another theta_u."""
    a, b, c = (unlearn(rem_module, 0, seed=seed) for seed in (1, 1, 2))
    assert_same_state(a, b)
    assert not torch.equal(a.conv1.weight, c.conv1.weight)
    net, data = small_net(0), make_data(0)
    a, b, c = (rem_module.start(net, data, torch.tensor([1]), tiny(seed=seed), gen(0)) for seed in (1, 1, 2))
    extra = [state.expanded.layers()["conv1"].to_extra for state in (a, b, c)]
    assert torch.equal(a.masks[:], b.masks[:]) and not torch.equal(a.masks[:], c.masks[:])
    assert torch.equal(extra[0], extra[1]) and not torch.equal(extra[0], extra[2])


@given(seeds, st.sampled_from([0.0, 1.0]))
def test_a10_no_epoch(seed, gamma):
    """A10: without an epoch every weight, statistic and counter is the original's, whatever gamma."""
    net = small_net(seed)
    assert_same_state(unlearn(rem_module, seed, net=net, unlearn_epochs=0, gamma=gamma), net)


@given(seeds, st.sampled_from(["sgd", "adam"]), st.booleans())
def test_a10_rate_zero(seed, optimizer, norm):
    """A10: at rate 0 the parameters are the original's bitwise; step 3's base-only passes still move running
    statistics."""
    net = small_net(seed, norm=norm)
    with mock.patch.object(rem_module, "acc_forget", scripted((0.9, 0.0))):
        out = unlearn(rem_module, seed, net=net, unlearn_lr=0.0, gamma=0.2, optimizer=optimizer)
    for (name, a), (_, b) in zip(net.named_parameters(), out.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    if norm:
        assert not torch.equal(net.norm1.running_mean, out.norm1.running_mean)
        assert out.norm1.num_batches_tracked == net.norm1.num_batches_tracked + 2 * 3  # no batch of step 2 counts


@few
@given(seeds, st.sampled_from(list(CORE)), st.booleans(), st.sampled_from(["train", "eval", "mixed"]))
def test_a11_inputs(seed, method, frozen, mode):
    """A11: network (weights, modes, requires_grad, grads), data, labels and D_f are left as they were."""
    data, forget, net = make_data(seed, trigger=True), draw_forget(seed, 12, 4), small_net(seed).train(mode != "eval")
    net.head.weight.requires_grad_(not frozen)
    net.norm2.train(mode == "train")
    parts = (data.images, data.labels, forget)
    before, copies = copy.deepcopy(net), [part.clone() for part in parts]
    with mock.patch.object(rem_module, "acc_forget", scripted((0.9, 0.0))):
        out = CORE[method](net, data, forget, tiny(), gen(seed))
    assert_same_state(net, before)
    for a, b, c in zip(net.modules(), before.modules(), out.modules(), strict=True):
        assert a.training == b.training == c.training and type(a) is type(b) is type(c)
    for a, b, c in zip(net.parameters(), before.parameters(), out.parameters(), strict=True):
        assert a.grad is None and a.requires_grad == b.requires_grad == c.requires_grad
        assert a.data_ptr() != c.data_ptr()
    assert all(torch.equal(part, kept) for part, kept in zip(parts, copies, strict=True))


@few
@given(seeds, st.integers(1, 3), st.sampled_from([0.0, 0.5, 2.0]), betas, st.sampled_from([(0, False), (1, True)]))
def test_a13_npo(seed, epochs, ratio, beta, augmentation):
    """A13: without 3.1 and 3.2 REM is NPO, bitwise, whatever theta_o2's width."""
    data = make_data(seed, pad=augmentation[0], flip=augmentation[1])
    config = tiny(gamma=0.2, unlearn_epochs=epochs, ratio=ratio, beta=beta, max_passes=9)
    outs = []
    for method, more in ((rem_module.rem, dict(step31=False, step32=False)), (npo, {})):
        with mock.patch.object(rem_module, "acc_forget", scripted((0.9, 0.8, 0.5, 0.0))):
            changed = type(config)(**{**vars(config), **more})
            outs.append(method(small_net(seed), data, draw_forget(seed, 12, 5), changed, gen(seed)))
    assert_same_state(*outs)
    assert not torch.equal(outs[0].conv1.weight, small_net(seed).conv1.weight)


@few
@given(seeds, st.integers(1, 11))
def test_a14_on_etd(seed, size):
    """A14: REM on ETD widens nothing, keeps ETD's rows for D_r and gives D_f one new row."""
    data, forget, config = make_data(seed), draw_forget(seed, 12, size), tiny(epochs=1, p_mem=0.5, ratio=20.0,
        seed=seed)
    with counting(train, "fit") as fit:
        expanded = train_etd(small_net(seed), data, config, gen(seed))
    rows = fit.call_args.kwargs["masks"]
    state = rem_module.start(expanded, data, forget, config, gen(seed))
    assert sum(p.numel() for p in state.expanded.parameters()) == sum(p.numel() for p in expanded.parameters())
    assert_same_state(state.expanded, expanded)
    retain = torch.ones(12, dtype=torch.bool).index_fill_(0, forget, False)
    assert torch.equal(state.masks[retain], rows[retain])
    shared = state.masks[forget]
    assert expanded.width == 60 and (shared == shared[0]).all()
    assert not (rows[:] == shared[0]).all(dim=1).any()  # 12 chances of 2^-60
    before = copy.deepcopy(expanded)
    with Watch(rem_module, state) as watch:
        rem_module.redirect(state)
    assert watch.steps
    out = rem_module.rem(expanded, data, forget, tiny(gamma=1.0, ratio=20.0, seed=seed), gen(seed))
    assert_same_state(expanded, before)  # the network that was handed in is left as it is
    plain = small_net(seed)
    assert [(k, v.shape) for k, v in out.state_dict().items()] == [(k, v.shape) for k, v in plain.state_dict().items()]


def test_a14_ideal():
    """A14: REM (IDEAL) gives one row to all of `shared`, while D_f alone is removed."""
    data, forget, corrupted = make_data(0), torch.tensor([3, 1]), torch.tensor([1, 3, 5, 7])
    state = rem_module.start(small_net(0), data, forget, tiny(ratio=20.0), gen(0), shared=corrupted)
    assert (state.masks[corrupted] == state.masks[1]).all()
    assert len(state.masks[:].unique(dim=0)) == 9
    assert state.in_forget.nonzero().flatten().tolist() == [1, 3]


@pytest.mark.parametrize("method", list(CORE))
@pytest.mark.parametrize("forget, text", [
    (torch.empty(0, dtype=torch.int64), "the forget set is empty"),
    (torch.arange(6), "all 6 training examples"),
    (torch.tensor([1, 4, 1]), "twice"),
    (torch.tensor([6]), "index 6 out of range for 6 examples"),
    (torch.tensor([-1]), "index -1 out of range for 6 examples"),
    (torch.tensor([1.0]), "int64"),
    (torch.tensor([True, False, False, False, False, False]), "int64"),
    (torch.tensor([[1, 2]]), "int64"),
    ([1, 2], "int64"),
    (torch.empty(0), "int64"),
])
def test_a15_a16_forget_sets(method, forget, text):
    """A15, A16: an empty D_f, an empty D_r, duplicates, and indices outside D_tr -> ValueError, from every method."""
    with pytest.raises(ValueError, match=text):
        CORE[method](small_net(0), make_data(0, n=6), forget, tiny(), gen(0))


@pytest.mark.parametrize("shared", [torch.tensor([6]), torch.tensor([-1]), torch.tensor([0.0])])
def test_a16_shared(shared):
    """A16: indices of `shared` outside D_tr -> ValueError."""
    with pytest.raises(ValueError, match="index|indices"):
        rem_module.rem(small_net(0), make_data(0, n=6), torch.tensor([1]), tiny(), gen(0), shared=shared)


@given(seeds, st.sampled_from(["sgd", "adam"]), st.booleans(), st.sampled_from([0.0, 1.0]))
def test_a17_optimizer(seed, optimizer, frozen, ratio):
    """A17: every trainable parameter, theta_o2's too, is in the optimiser exactly once, and no frozen one."""
    net = small_net(seed)
    net.conv1.weight.requires_grad_(not frozen)
    config = tiny(optimizer=optimizer, ratio=ratio, unlearn_lr=0.25)
    state = rem_module.start(net, make_data(seed), torch.tensor([1]), config, gen(seed))
    (group,) = state.optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in state.expanded.parameters() if p.requires_grad]
    assert len({id(p) for p in group["params"]}) == len(group["params"])
    names = [name for name, p in state.expanded.named_parameters() if p.requires_grad]
    assert any(".to_extra" in name or ".to_base" in name for name in names) == (ratio > 0)
    assert not any(p.requires_grad for p in state.reference.parameters())
    wanted = dict(lr=0.25, weight_decay=0) if optimizer == "adam" else dict(lr=0.25, momentum=config.momentum,
        weight_decay=config.weight_decay)
    assert wanted.items() <= group.items() and (Config.momentum, Config.weight_decay) == (0.9, 5e-4)


@few
@given(seeds, st.sampled_from(list(CORE)))
def test_a18_plain(seed, method):
    """A18: the result runs on a plain model(x) call and is of the class, keys and shapes that came in."""
    net, data = small_net(seed), make_data(seed)
    out = CORE[method](net, data, torch.tensor([1, 2]), tiny(gamma=1.0), gen(seed))
    assert type(out) is type(net) and out.eval()(next(batches(data))[1]).shape == (12, 4)
    assert [(k, v.shape, v.dtype) for k, v in out.state_dict().items()] == [(k, v.shape, v.dtype) for k,
        v in net.state_dict().items()]
    assert not any(isinstance(m, Expanded) or hasattr(m, "keep") or m._forward_hooks for m in out.modules())


@few
@given(seeds, st.integers(1, 3))
def test_a19_last_epoch(seed, epochs):
    """A19: with stop="max" the last epoch's weights come back, in storage of their own."""
    data, forget, live, kept = make_data(seed), draw_forget(seed, 12, 3), [], []

    def log(epoch, epochs, model, **values):
        live.append(model)
        kept.append(drop(model))

    net = small_net(seed)
    out = rem_module.rem(net, data, forget, tiny(gamma=1.0, unlearn_epochs=epochs), gen(seed), log=log)
    assert_same_state(out, kept[-1])
    assert len(kept) == epochs and all(model is live[0] for model in live)
    own = {t.data_ptr() for t in out.state_dict().values()}
    assert not own & {t.data_ptr() for other in (net, live[0]) for t in other.state_dict().values()}
    if epochs > 1:
        assert not torch.equal(out.conv1.weight, kept[-2].conv1.weight)


# --- Numerics ---------------------------------------------------------------------------------------------------------


@few
@given(seeds, st.sampled_from([3, 5, 64]), betas, st.booleans())
def test_known_reference(seed, batch, beta, remove):
    """F8: without augmentation the references are computed once; batch by batch gives the same theta_u."""
    data, forget = make_data(seed, trigger=True), draw_forget(seed, 12, 5)
    outs = []
    for known in (rem_module.known_reference, lambda state: None):
        config = tiny(gamma=0.2, batch=batch, beta=beta, step32=remove, unlearn_lr=0.01)
        with mock.patch.object(rem_module, "acc_forget", scripted((0.9, 0.0))), mock.patch.object(rem_module,
            "known_reference", known):
            outs.append(rem_module.rem(small_net(seed, dtype=torch.float64), data, forget, config, gen(seed)))
    # not bitwise: a convolution or matrix product of another batch size may add in another order (float64, 6 steps)
    for a, b in zip(outs[0].state_dict().values(), outs[1].state_dict().values(), strict=True):
        assert_close(a.double(), b.double(), 1e-9)


def test_known_reference_only_without_augmentation():
    """F8: with augmentation the references see each batch as the network does: nothing is known beforehand."""
    for pad, flip, known in ((0, False, True), (1, False, False), (0, True, False)):
        state = rem_module.start(small_net(0), make_data(0, pad=pad, flip=flip), torch.tensor([1]), tiny(), gen(0))
        assert (state.known is not None) == known


@few
@given(seeds, st.sampled_from([1, 5, 11]), st.sampled_from([(0, False), (1, True)]), st.sampled_from(list(CORE)))
def test_bf16(seed, size, augmentation, method):
    """L11: bf16 autocast on the CPU stays finite and leaves the parameters in float32."""
    data = make_data(seed, pad=augmentation[0], flip=augmentation[1])
    with mock.patch.object(rem_module, "acc_forget", scripted((0.9, 0.0))):
        out = CORE[method](small_net(seed), data, draw_forget(seed, 12, size), tiny(precision="bf16"), gen(seed))
    for name, value in out.state_dict().items():
        assert torch.isfinite(value).all() and value.dtype in (torch.float32, torch.int64), name


@few
@given(seeds, st.sampled_from(["float32", "bf16"]), st.sampled_from(list(CORE)))
def test_float64(seed, precision, method):
    """L10: a float64 network is unlearned in float64, whatever precision asks for."""
    outs = []
    for asked in ("float32", precision):
        with mock.patch.object(rem_module, "acc_forget", scripted((0.9, 0.0))):
            net = small_net(seed, dtype=torch.float64)
            outs.append(CORE[method](net, make_data(seed), torch.tensor([1, 2, 3]), tiny(precision=asked), gen(seed)))
    assert_same_state(*outs)
    assert all(p.dtype == torch.float64 for p in outs[0].parameters())


@pytest.mark.parametrize("method", ["rem", "npo", "cf"])
def test_nonfinite(method):
    """A3: a rate of 1e30 ends in NonFiniteLoss that says where, not in a network of NaN."""
    with mock.patch.object(rem_module, "acc_forget", scripted((0.9,))), pytest.raises(etd.NonFiniteLoss,
        match="the loss is nan|inf"):
        CORE[method](small_net(0), make_data(0), torch.tensor([1, 2, 3]), tiny(gamma=0.2, unlearn_lr=1e30), gen(0))


@pytest.mark.parametrize("method", ["rem", "npo", "cf"])
def test_nonfinite_last_update(method):
    """A3, V8: where the very last update ruined the network, the method or its evaluation says so: NaN is no answer."""
    data, forget = make_data(0, n=6), torch.tensor([1, 2, 3])
    data.labels[forget] = 1  # a network of NaN answers class 0, so Acc(D_f) is 0 and step 2 is content
    config = tiny(unlearn_lr=1e30, batch=6, unlearn_epochs=1, gamma=0.0 if method == "npo" else 1.0)
    with pytest.raises(ArithmeticError):
        accuracy(CORE[method](small_net(0), data, forget, config, gen(0)), data)


def test_acc_forget_of_a_ruined_network():
    """A3, V8: logits that are not finite are no class, in REM's own measure neither."""
    data, forget = make_data(0), torch.tensor([1, 2, 3])
    state = rem_module.start(small_net(0), data, forget, tiny(), gen(0))
    assert 0 <= rem_module.acc_forget(state) <= 1
    with torch.no_grad():
        state.expanded.layers()["head"].base.weight[0] = math.inf
    with pytest.raises(etd.NonFiniteLoss, match="3 logits are not finite"):
        rem_module.acc_forget(state)


@pytest.mark.parametrize("image_size", [12, 14])
def test_a7_one_example_of_1x1_maps(image_size):
    """A7: |D_f| = 1 on ResNet-9 at 11 to 14 pixels, whose last map is 1x1."""
    net = build("resnet9", 0.05, channels=1, classes=4, image_size=image_size, seed=0)
    data = make_data(0, n=6, size=image_size)
    with mock.patch.object(rem_module, "acc_forget", scripted((0.9, 0.0))):
        unlearn(rem_module, 0, torch.tensor([1]), data, net, gamma=0.2, unlearn_epochs=1)


# --- The training loop ------------------------------------------------------------------------------------------------


@given(st.integers(2, 20000))
@example(2)
@example(149)
@example(150)
@example(3920)
def test_n2_rate(steps):
    """N2: up in equal parts over the first 1 % of the steps, then down in equal parts to one fifth at the last; never
    0."""
    rates = [train.rate(step, steps) for step in range(steps)] if steps < 2000 else None
    warm = max(1, round(0.01 * steps))
    assert abs(train.rate(steps - 1, steps) - 0.2) < 1e-12 and abs(0.025 * train.rate(steps - 1, steps) - 0.005) < 1e-12
    assert train.rate(warm - 1, steps) == 1
    if rates:
        up, down = torch.tensor(rates, dtype=torch.float64).tensor_split([warm])
        assert min(rates) > 0 and max(rates) == 1
        assert_close(up, torch.arange(1, warm + 1).double() / warm)
        assert_close(down, 1 - 0.8 * torch.arange(1, steps - warm + 1).double() / (steps - warm))


def test_n2_single_step():
    """N2: a training of one step runs at the peak rate."""
    assert train.rate(0, 1) == 1


@given(st.integers(0, 3), st.integers(1, 9), st.sampled_from([2, 4, 64]))
def test_n2_fit(epochs, size, batch):
    """N2: fit steps through the schedule over all its epochs, at `lr` times the factor."""
    data, index, rates = make_data(0), torch.arange(size), []

    def note(optimizer, loss, n):
        rates.append(optimizer.param_groups[0]["lr"])
        return loss.detach()

    with mock.patch.object(train, "descend", note):
        train.fit(small_net(0), data, index, tiny(batch=batch), gen(0), epochs=epochs, lr=0.5)
    steps = epochs * count_batches(size, batch)
    assert rates == [0.5 * train.rate(step, steps) for step in range(steps)]


@few
@given(seeds, st.sampled_from([2, 5, 64]), st.sampled_from(["sgd", "adam"]))
def test_a9_fit(seed, batch, optimizer):
    """A9: fit is deterministic in its generator, blind to the global one, and reports the mean loss of each epoch."""
    data, nets, logs = make_data(seed, pad=1, flip=True), [], []
    for world, generator in ((0, 1), (1, 1), (0, 2)):
        torch.manual_seed(world)
        net, seen = small_net(seed), []
        train.fit(net, data, None, tiny(batch=batch, optimizer=optimizer, epochs=2), gen(generator),
                  log=lambda epoch, epochs, model, loss, seen=seen: seen.append((epoch, epochs, loss)))
        nets.append(net)
        logs.append(seen)
    assert_same_state(nets[0], nets[1])
    assert logs[0] == logs[1] and [(a, b) for a, b, _ in logs[0]] == [(1, 2), (2, 2)]
    assert not torch.equal(nets[0].conv1.weight, nets[2].conv1.weight)


@given(seeds, st.sampled_from([2, 3, 5, 12, 64]), st.sampled_from([0, 2]), st.booleans())
def test_l16_fit(seed, batch, pad, flip):
    """L16, T12: fit is plain SGD on the mean cross-entropy of augmented batches: one epoch equals a loop written
    out."""
    data, lr = make_data(seed, pad=pad, flip=flip), 0.1
    config = tiny(batch=batch, momentum=0.9, weight_decay=0.01, epochs=1, lr=lr)
    net, twin = small_net(seed, dtype=torch.float64), small_net(seed, dtype=torch.float64)
    train.fit(net, data, None, config, gen(seed))
    twin.train()
    speed, steps = [torch.zeros_like(p) for p in twin.parameters()], count_batches(12, batch)
    for step, (_, x, y) in enumerate(batches(data, None, batch, gen(seed), augment=True, dtype=torch.float64)):
        loss = F.cross_entropy(twin(x), y)
        with torch.no_grad():
            for p, v, g in zip(twin.parameters(), speed, torch.autograd.grad(loss, list(twin.parameters())),
                               strict=True):
                v.mul_(0.9 if step else 0.0).add_(g + 0.01 * p)
                p.sub_(lr * train.rate(step, steps) * v)
    for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True):
        assert_close(a.double(), b.double(), 1e-10)


@given(st.floats(-1e30, 1e30), st.integers(0, 9))
def test_finite(total, steps):
    """A3: the mean loss of an epoch, NonFiniteLoss with the place where it is no number; no step at all counts as
    one."""
    assert train.finite(torch.tensor(total, dtype=torch.float64), steps, "here") == total / max(1, steps)
    for bad in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(etd.NonFiniteLoss, match="in there; lower the rate"):
            train.finite(torch.tensor(bad), steps, "there")


def test_nonfinite_fit():
    """A3: fit raises at the end of the epoch in which the loss stopped being finite, with its number."""
    net = small_net(0)
    with pytest.raises(etd.NonFiniteLoss, match="training epoch 1"):
        train.fit(net, make_data(0), None, tiny(lr=1e30), gen(0))


def test_update_leaves_unreached_parameters():
    """F6: a parameter that the loss does not reach stays bit for bit, with momentum and decay and a gradient from
    before."""
    reached, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([reached, other], lr=0.1, momentum=0.9, weight_decay=0.1)
    train.descend(optimizer, (reached + other).sum())
    kept = other.detach().clone()
    train.descend(optimizer, (reached**2).sum())
    assert torch.equal(other, kept) and other.grad is None


def test_t6_retain_set():
    """T6: fine-tuning runs on D_r alone, D_tr without D_f: D_f's images change nothing."""
    data, forget = make_data(0), torch.tensor([3, 5, 7])
    images = data.images.clone()
    images[forget] = 255 - images[forget]
    outs = [fine_tune(small_net(0), one, forget, tiny(), gen(0))
            for one in (data, type(data)(images, data.labels, 4, data.mean, data.std))]
    assert_same_state(*outs)
    with counting(baselines, "fit") as fit:
        fine_tune(small_net(0), data, forget, tiny(), gen(0))
    assert fit.call_args.args[2].tolist() == [0, 1, 2, 4, 6, 8, 9, 10, 11]


def test_l16_fit_trains_whatever_the_mode():
    """L16: a network that comes in eval mode is trained as one in training mode, and left in training mode."""
    nets = [small_net(0).train(mode) for mode in (True, False)]
    for net in nets:
        train.fit(net, make_data(0), None, tiny(), gen(0))
    assert_same_state(*nets)
    assert all(module.training for net in nets for module in net.modules())


def test_a9_fit_logs_the_mean_loss_of_each_epoch():
    """A9, A10: at rate 0, which is not the default rate, every epoch logs the loss of the network that came in."""
    data, net, seen = make_data(0), small_net(0, norm=False), []
    _, x, y = next(batches(data))
    before = F.cross_entropy(net(x), y).item()
    train.fit(net, data, None, tiny(batch=4, epochs=3), gen(0), lr=0.0,
              log=lambda epoch, epochs, model, loss: seen.append(loss))
    assert seen == pytest.approx([before] * 3, rel=1e-5)


def test_a8_a_repair_that_is_done_stays_done(tmp_path):
    """A8: a state saved after the epoch that ends the loop begins no further epoch where it is loaded."""
    states = [rem_module.start(small_net(0), make_data(0), draw_forget(0, 12, 4), tiny(gamma=1.0), gen(k))
              for k in range(2)]
    states[0].epoch, states[0].repaired = 1, True
    experiment.save_state(states[0], tmp_path / "state.pt")
    experiment.load_state(states[1], tmp_path / "state.pt")
    assert states[1].repaired and states[1].epoch == 1
    assert_same_state(*(rem_module.go_on(state) for state in states))
