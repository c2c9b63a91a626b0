"""Properties V1-V12 of the metrics, and F11: evaluation puts every module back in its mode.

A function prop_* takes the module to test first, so that tests/test_mutants.py can run it on a broken copy.
"""

import copy
import math
import random
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

import metrics as metrics_module
import oracles_loss as oracle
from experiment.methods import METHODS
from experiment.data import Data, Dataset, batches
from etd import mask_table
from train import expand_for
from helpers import assert_same_state, gen, make_data, seeds, small_net, tiny
from tasks import Task, discover, like_corrupted, make_task, put_trigger

unit = st.floats(0, 1)
sizes = st.sampled_from([1, 2, 3, 7, 20])


def numbered(n, labels, classes) -> Data:
    """Image i says i in its first two pixels, base 200; the others are 3x3 of grey."""
    images = torch.full((n, 1, 4, 4), 100, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = torch.arange(n) // 200, torch.arange(n) % 200
    return Data(images, labels, classes, (0.0,), (1 / 255,))  # x is the pixel value


class Answers(nn.Module):
    """A network that gives example i of `numbered` data row i of a table of logits, another one where the trigger is
    on."""

    def __init__(self, logits, triggered=None):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())
        self.triggered = logits if triggered is None else triggered

    def forward(self, x):
        rows = (x[:, 0, 0, 0] * 200 + x[:, 0, 0, 1]).round().long()
        return torch.where(x[:, 0, -1, -1:] == 255, self.triggered[rows], self.logits[rows])


def answering(guesses, classes, triggered=None):
    """A network whose predictions are `guesses`."""
    def one_hot(values):
        return nn.functional.one_hot(values, classes).float()
    return Answers(one_hot(guesses), None if triggered is None else one_hot(triggered))


def draw_case(seed, n, classes=4):
    """Random logits, data of n examples and their labels."""
    g = gen(seed)
    labels = torch.randint(0, classes, (n,), generator=g)
    return torch.randn(n, classes, generator=g), numbered(n, labels, classes), labels


def draw_task(seed, name="random", n=40, corrupted=16, classes=4) -> Task:
    """A task on numbered data; the test set has other labels."""
    g = gen(seed)
    labels = (torch.arange(n) % classes)[torch.randperm(n, generator=g)]
    train, test = numbered(n, labels, classes), numbered(n, labels.roll(1), classes)
    return make_task(name, Dataset("made", train, test, ("",) * classes), corrupted, seed, (0, 1))


# --- Accuracy ---------------------------------------------------------------------------------------------------------


@given(seeds, sizes)
def test_v1_accuracy(seed, n):
    """V1: accuracy equals a loop, lies in [0, 1], is 1 on perfect answers and 0 on a derangement of the classes."""
    logits, data, labels = draw_case(seed, n)
    found = metrics_module.accuracy(Answers(logits), data)
    assert found == oracle.accuracy(oracle.predictions(logits), labels) and 0 <= found <= 1
    assert metrics_module.accuracy(answering(labels, 4), data) == 1
    for step in (1, 2, 3):
        assert metrics_module.accuracy(answering((labels + step) % 4, 4), data) == 0
    assert torch.equal(metrics_module.predict(Answers(logits), data), torch.tensor(oracle.predictions(logits)))


@given(seeds, sizes, st.data())
def test_v1_index_and_labels(seed, n, draw):
    """V1: over an index, duplicates and any order, and against other labels, it equals the loop too."""
    logits, data, _ = draw_case(seed, n)
    index = torch.tensor(draw.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=9)))
    other = torch.randint(0, 4, (n,), generator=gen(seed + 1))
    guesses = oracle.predictions(logits)
    for labels in (None, other):
        expected = oracle.accuracy([guesses[i] for i in index], [(data.labels if labels is None else labels)[i]
                                                                 for i in index])
        assert metrics_module.accuracy(Answers(logits), data, index, labels) == expected


def prop_v2(metrics, seed=0, n=7, size=3):
    """Order, splits and batch size do not matter; the last small batch weighs by its examples."""
    labels = torch.zeros(1100, dtype=torch.int64)
    guesses = labels.clone()
    guesses[1024:] = 1  # 76 wrong ones at the end, most of the second batch of whatever size
    large, net = numbered(1100, labels, 2), answering(guesses, 2)
    assert metrics.accuracy(net, large) == 1024 / 1100
    logits, data, _ = draw_case(seed, n)
    net, g = Answers(logits), gen(seed)
    whole = metrics.accuracy(net, data)
    with mock.patch.object(metrics, "batches", lambda data, index, _, **more: batches(data, index, size, **more)):
        assert metrics.accuracy(net, data) == whole  # in batches of `size`
    order = torch.randperm(n, generator=g)
    assert metrics.accuracy(net, data, order) == whole
    cut = int(torch.randint(1, n, (), generator=g))
    parts = [(part, metrics.accuracy(net, data, part)) for part in (order[:cut], order[cut:])]
    assert sum(round(len(part) * share) for part, share in parts) == round(n * whole)
    for one in (1, 2, n, n + 5):
        assert torch.equal(metrics.predict(net, data, size=one), metrics.predict(net, data))


@given(seeds, st.integers(2, 30), st.integers(1, 31))
def test_v2_batches(seed, n, size):
    """V2: order invariance, the weighted concat identity, batch-size invariance."""
    prop_v2(metrics_module, seed, n, size)


@given(seeds, sizes, st.sampled_from([0.125, 1.0, 64.0]), st.integers(-8, 8))
def test_v3_scale_and_shift(seed, n, scale, shift):
    """V3: positive scaling and a shift of the logits change no prediction; the numbers are exact in float32."""
    logits, data, _ = draw_case(seed, n)
    logits = (logits * 64).round() / 64
    found = metrics_module.predict(Answers(logits * scale + shift), data)
    assert torch.equal(found, metrics_module.predict(Answers(logits), data))


@given(st.integers(1, 5), st.integers(0, 4))
def test_v10_ties(classes, first):
    """V10: among equal logits the lowest class counts."""
    first = min(first, classes - 1)
    row = torch.zeros(1, classes)
    row[0, first:] = 1.0
    data = numbered(1, torch.tensor([0]), classes)
    assert metrics_module.predict(Answers(row), data).tolist() == [first]


@given(seeds)
def test_v8_empty(seed):
    """V8: an empty set -> ValueError, never 0.0 or nan; so do an index out of range and an empty D_f or D_c."""
    logits, data, _ = draw_case(seed, 5)
    net, nobody = Answers(logits), torch.empty(0, dtype=torch.int64)
    none = Data(data.images[:0], data.labels[:0], 4, data.mean, data.std)
    for call in (lambda: metrics_module.accuracy(net, data, nobody), lambda: metrics_module.predict(net, data, nobody),
                 lambda: metrics_module.accuracy(net, none), lambda: metrics_module.share(torch.empty(0,
                     dtype=torch.bool)),
                 lambda: metrics_module.mean_sem([])):
        with pytest.raises(ValueError, match="empty|no runs"):
            call()
    with pytest.raises(ValueError, match="index 5 out of range for 5"):
        metrics_module.accuracy(net, data, torch.tensor([0, 5]))
    task = draw_task(seed)
    elsewhere = (task.train.labels == task.clean).nonzero().flatten()[:2]
    for bad in (nobody, elsewhere):
        with pytest.raises(ValueError, match="empty"):
            metrics_module.evaluate(answering(task.clean, 4), task, bad)
    with pytest.raises(ValueError, match="empty"):
        metrics_module.evaluate(answering(task.clean, 4), replace(task, corrupted=nobody), elsewhere)


# --- Healed and Utility -----------------------------------------------------------------------------------------------


def prop_v4(metrics, seed=0, rate=0.5):
    """Healed is of clean labels on the inputs as trained on, over D_c: memorised -> 0, oracle -> 1."""
    task = draw_task(seed)
    forget = discover(task, rate, seed)
    assert metrics.evaluate(answering(task.train.labels, 4), task, forget)["healed"] == 0
    assert metrics.evaluate(answering(task.clean, 4), task, forget)["healed"] == 1
    guesses = torch.randint(0, 4, (40,), generator=gen(seed + 1))
    net = answering(guesses, 4)
    found = metrics.evaluate(net, task, forget)
    assert found["healed"] == oracle.healed(guesses, task.clean, task.corrupted)
    assert found["healed"] + metrics.accuracy(net, task.train, task.corrupted) <= 1  # labels differ on all of D_c
    assert found["utility"] == oracle.accuracy(guesses, task.test.labels)
    assert found["acc_forget"] == oracle.accuracy(guesses[forget], task.train.labels[forget])


@given(seeds, st.sampled_from([0.07, 0.5, 1.0]))
def test_v4_healed(seed, rate):
    """V4: Healed reads clean labels, over all of D_c."""
    prop_v4(metrics_module, seed, rate)


@given(seeds, st.integers(1, 40))
def test_v4_trigger(seed, n):
    """V4: on poison the trigger is on in D_c's inputs and off in the test set's; the memorised start is D_c's share of
    class 0."""
    task = draw_task(seed, "poison", corrupted=n)
    forget, zeros = discover(task, 1.0, seed), torch.zeros(40, dtype=torch.int64)
    fooled = metrics_module.evaluate(answering(task.test.labels, 4, triggered=zeros), task, forget)
    assert fooled["healed"] == oracle.healed(zeros, task.clean, task.corrupted) and fooled["utility"] == 1
    cured = metrics_module.evaluate(answering(zeros, 4, triggered=task.clean), task, forget)
    assert cured["healed"] == 1 and cured["utility"] == oracle.accuracy(zeros, task.test.labels)


@given(seeds)
def test_v4_no_augmentation(seed):
    """V4: augmentation that the training data asks for is off in every metric."""
    task = draw_task(seed)
    shaken = replace(task, train=replace(task.train, pad=2, flip=True), test=replace(task.test, pad=2, flip=True))
    net, forget = answering(torch.randint(0, 4, (40,), generator=gen(seed)), 4), discover(task, 0.5, seed)
    assert metrics_module.evaluate(net, shaken, forget) == metrics_module.evaluate(net, task, forget)


def prop_v5(metrics, seed=0, size=5):
    """Healed(D_c) is the size-weighted mean over D_f and the undiscovered, each its own set's."""
    task = draw_task(seed)
    forget = task.corrupted[torch.randperm(16, generator=gen(seed))[:size]]
    undiscovered = [i for i in task.corrupted.tolist() if i not in forget.tolist()]
    guesses = task.clean.clone()
    guesses[forget] = task.train.labels[forget]  # D_f not healed
    guesses[undiscovered[::2]] = (guesses[undiscovered[::2]] + 1) % 4  # and half of the rest
    found = metrics.evaluate(answering(guesses, 4), task, forget)
    assert found["healed_forget"] == 0
    rest = found["healed_undiscovered"]
    assert rest == (oracle.healed(guesses, task.clean, undiscovered) if undiscovered else None)
    expected = (size * found["healed_forget"] + len(undiscovered) * (rest or 0.0)) / 16
    assert abs(found["healed"] - expected) < 1e-12
    assert found["healed"] == oracle.healed(guesses, task.clean, task.corrupted)


@given(seeds, st.integers(1, 16))
def test_v5_parts(seed, size):
    """V5: Healed over D_c from its two parts, from one example discovered to all of them."""
    prop_v5(metrics_module, seed, size)


def prop_v6(metrics, seed=0, rights=((0, 40), (16, 0), (8, 40), (16, 20))):
    """The product is a run's own healed x utility, at most either, and a table's cell is the mean over runs of
    products."""
    task, runs = draw_task(seed), []
    forget = discover(task, 0.5, seed)
    for healed, useful in rights:  # so many of D_c and of the test set are answered right
        train, test = task.clean.clone(), task.test.labels.clone()
        train[task.corrupted[healed:]] = task.train.labels[task.corrupted[healed:]]
        test[useful:] = (test[useful:] + 1) % 4
        net = answering(test, 4)
        marked = replace(task, train=put_trigger(task.train, torch.arange(40)))
        net.triggered = answering(train, 4).logits.detach()  # the trigger tells training inputs from test inputs
        found = metrics.evaluate(net, marked, forget)
        assert found["healed"] == healed / 16 and found["utility"] == useful / 40
        assert found["product"] == found["healed"] * found["utility"] <= min(found["healed"], found["utility"])
        runs.append(found)
    mean, _ = metrics.mean_sem([run["product"] for run in runs])
    expected = sum(h / 16 * u / 40 for h, u in rights) / len(rights)
    assert abs(mean - expected) < 1e-12
    apart = [metrics.mean_sem([run[key] for run in runs])[0] for key in ("healed", "utility")]
    assert len(rights) == 1 or abs(mean - apart[0] * apart[1]) > 1e-3  # the product of means is another number


@given(seeds, st.integers(0, 16), st.integers(0, 40))
def test_v6_product(seed, healed, useful):
    """V6: U x H <= min(U, H), zero if either is; the mean over runs is of products."""
    prop_v6(metrics_module, seed)
    prop_v6(metrics_module, seed, ((healed, useful),))


@given(seeds)
def test_v12_all_classes(seed):
    """V12: Utility of confusion is over all classes: the two confused ones count like the others."""
    task = draw_task(seed, "confusion")
    confused = torch.isin(task.test.labels, torch.tensor([0, 1]))
    guesses = torch.where(confused, 1 - task.test.labels, task.test.labels)
    found = metrics_module.evaluate(answering(guesses, 4), task, discover(task, 1.0, 0))
    assert found["utility"] == 1 - int(confused.sum()) / 40


# --- Mean and standard error ------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9), st.floats(-10, 10), st.floats(-10, 10))
def test_v7_sem(values, shift, scale):
    """V7: SEM is std(ddof=1) / sqrt(n), shift-invariant and scale-equivariant; the mean moves along."""
    mean, sem = metrics_module.mean_sem(values)
    size = max(1.0, *(abs(v) for v in values)) * 12 + 12  # rounding is relative to the largest number in play
    assert abs(sem - oracle.sem(values)) <= 1e-12 * size and abs(mean - np.mean(values)) <= 1e-12 * size
    moved, same = metrics_module.mean_sem([v + shift for v in values])
    assert abs(same - sem) <= 1e-12 * size and abs(moved - mean - shift) <= 1e-12 * size
    scaled, wide = metrics_module.mean_sem([v * scale for v in values])
    assert abs(wide - abs(scale) * sem) <= 1e-12 * size and abs(scaled - scale * mean) <= 1e-12 * size


@given(unit, st.integers(2, 10))
@example(0.1, 3)
def test_v7_constants(value, n):
    """V7: 0 for constants, up to the rounding of their mean; a single run has a mean and no error."""
    mean, sem = metrics_module.mean_sem([value] * n)
    assert abs(mean - value) <= 1e-15 and 0 <= sem <= 1e-15
    assert metrics_module.mean_sem([value]) == (value, None)
    assert metrics_module.mean_sem(iter([value, value]))[0] == value
    assert metrics_module.mean_sem(torch.tensor([value], dtype=torch.float64)) == (value, None)


def test_v7_two_runs():
    """V7: by hand: 1 and 3 have the mean 2 and std sqrt(2), so SEM 1."""
    mean, sem = metrics_module.mean_sem([1, 3])
    assert mean == 2 and abs(sem - 1) < 1e-15


def test_v11_golden():
    """V11: A.3's three seeds: mean H 0.7660, mean U 0.8917, mean H x U 0.6830."""
    healed, utility = [0.772, 0.774, 0.752], [0.891, 0.888, 0.896]
    products = [h * u for h, u in zip(healed, utility, strict=True)]
    for values, expected in ((healed, 0.7660), (utility, 0.8917), (products, 0.6830)):
        mean, sem = metrics_module.mean_sem(values)
        assert abs(mean - expected) < 1e-4 and math.isclose(sem, oracle.sem(values), rel_tol=1e-9)


# --- What evaluation leaves behind ------------------------------------------------------------------------------------


def prop_f11(metrics, seed=0):
    """Each module is put back in the mode it had, also where a pass raises; inside, all are in eval mode."""
    net, data = small_net(seed), make_data(seed)
    for flags in range(8):
        for k, module in enumerate(net.modules()):
            module.training = bool(flags >> k % 3 & 1)
        modes, seen = [m.training for m in net.modules()], []
        hook = net.register_forward_hook(lambda *_: seen.append(any(m.training for m in net.modules())))
        metrics.accuracy(net, data)
        hook.remove()
        assert seen == [False] and [m.training for m in net.modules()] == modes
        broken = net.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            metrics.accuracy(net, data)
        broken.remove()
        assert [m.training for m in net.modules()] == modes


@given(seeds)
def test_f11_modes(seed):
    """F11: evaluation restores the mode it found, of every module."""
    prop_f11(metrics_module, seed)


@given(seeds, st.sampled_from(["plain", "masked"]), st.booleans())
def test_v9_leaves_no_trace(seed, kind, training):
    """V9: evaluation changes no parameter, buffer, gradient, mode or random state; a backward pass works after it."""
    data, net = make_data(seed, pad=1, flip=True, trigger=True), small_net(seed)
    net = expand_for(net, data, tiny()).train(training) if kind == "masked" else net.train(training)
    masks = mask_table(12, net.width, 0.5, seed) if kind == "masked" else None
    before = copy.deepcopy(net)
    torch.manual_seed(seed)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    guesses = metrics_module.predict(net, data, torch.tensor([3, 3, 0]), masks)
    metrics_module.accuracy(net, data, masks=masks)
    assert_same_state(net, before)
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert [m.training for m in net.modules()] == [m.training for m in before.modules()]
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    (x,) = (x for _, x, _ in batches(data, torch.tensor([3, 3, 0])))
    logits = net.eval()(x) if masks is None else net.eval()(x, masks[[3, 3, 0]])
    assert torch.equal(guesses, logits.argmax(dim=1))
    logits.sum().backward()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_v1_one_logit_of_one_example_that_is_not_finite(value):
    """V1: a single logit that is not finite is told, whether or not it is the largest; where it is not asked for, it is
    no obstacle."""
    logits, data, _ = draw_case(0, 12)
    logits[7, 2] = value
    for index in (None, torch.tensor([3, 7]), torch.tensor([7, 3, 7])):
        with pytest.raises(metrics_module.NonFiniteLoss, match="logits are not finite"):
            metrics_module.predict(Answers(logits), data, index)
    index = torch.tensor([11, 0, 8])
    assert torch.equal(metrics_module.predict(Answers(logits), data, index), logits[index].argmax(dim=1))


@given(seeds, st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_v1_any_dtype(seed, dtype):
    """V1: a network of another dtype is fed inputs of its own; without parameters, of float32."""
    data, net = make_data(seed), small_net(seed, dtype=dtype)
    assert metrics_module.predict(net, data).shape == (12,)
    assert metrics_module.predict(nn.Flatten(), data).shape == (12,)


@given(seeds)
def test_v4_test_images_corrupted_alike(seed):
    """V4, V12: healed_test is the accuracy over triggered test images, over the two classes, or over all of them."""
    for name in ("poison", "confusion", "random"):
        task = draw_task(seed, name)
        net = answering(torch.randint(0, 4, (40,), generator=gen(seed)), 4)
        seen = like_corrupted(task)
        hits = metrics_module.predict(net, task.test) == task.test.labels
        kept = range(len(hits)) if name != "confusion" else [
            i for i, y in enumerate(task.test.labels.tolist()) if y in task.clean[task.corrupted].tolist()]
        expected = sum(bool(hits[i]) for i in kept) / len(kept) if len(kept) else None
        assert metrics_module.evaluate(net, task, discover(task, 0.5, seed))["healed_test"] == expected
        assert bool((seen.images[:, :, -3:, -3:] == 255).all()) == (name == "poison")
        assert torch.equal(seen.labels, task.test.labels[list(kept)])


def test_v4_no_test_image_of_the_two_classes():
    """V4: without a test image of the two confused classes healed_test is None, not a number and no error."""
    task = draw_task(0, "confusion")
    elsewhere = replace(task, test=replace(task.test, labels=task.test.labels.clamp(min=2)))
    net, forget = answering(task.clean, 4), discover(task, 0.5, 0)
    assert metrics_module.evaluate(net, elsewhere, forget)["healed_test"] is None
    assert metrics_module.evaluate(net, task, forget)["healed_test"] is not None


@given(seeds)
def test_v4_reads_task_alone(seed):
    """V4: evaluate reads name, train, test, clean and corrupted of a task and nothing else, and changes none."""
    task = draw_task(seed)
    forget = discover(task, 0.5, seed)
    bare = SimpleNamespace(name=task.name, train=task.train, test=task.test, clean=task.clean.clone(),
                           corrupted=task.corrupted.clone())
    net = answering(torch.randint(0, 4, (40,), generator=gen(seed)), 4)
    found = metrics_module.evaluate(net, bare, forget)
    assert found == metrics_module.evaluate(net, task, forget.flip(0))
    assert torch.equal(bare.clean, task.clean) and torch.equal(bare.corrupted, task.corrupted)
    assert set(found) == {"healed", "healed_forget", "healed_undiscovered", "healed_test", "utility", "product",
                          "acc_forget"}
    untouched = METHODS["no-ul"].function(net, task.train, forget, tiny(), gen(seed))
    assert metrics_module.evaluate(untouched, task, forget) == found


def test_v14_the_seed_of_a_c_score():
    """V14: subsets and networks' seeds follow the seed alone: the same for the same one, others for another."""
    data, calls = make_data(0), {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(len(calls))
        kept = calls.setdefault(name, [])

        def learn(index, seed, kept=kept):
            kept.append((index.tolist(), seed))
            return small_net(0)

        metrics_module.c_score(data, torch.arange(10), learn, [0, 4, 6], 4, seed)
    assert calls["a"] == calls["b"]
    subsets, network_seeds = ([call[k] for name in ("a", "c") for call in calls[name]] for k in (0, 1))
    assert subsets[:4] == [[]] * 4 and len({tuple(subset) for subset in subsets}) > 12  # 16 draws of 4 or 6 out of 10
    assert len(set(network_seeds)) == 24
