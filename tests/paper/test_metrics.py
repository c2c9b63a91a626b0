"""Sec. 4, Eq. 1: the C-score of a corruption; Sec. 6: Healed, Utility, their product, mean and standard error.

    V1 - V3, V8 - V10   accuracy, of which all scores are made; measuring changes nothing
    V13 - V17           Eq. 1: C_hat(x, y) = E_n E^r_{D ~ D_c} P(f(x; D - {(x, y)}) = y), scores that lie in [0, 1]
    V4, V5              Sec. 6: "Healed computes the clean label accuracy on the corrupted D_c inputs"; A.2: on test
                        images corrupted alike
    V12, V6             Sec. 6: "Utility computes the accuracy on a clean test set"; Utility x Healed
    V7, V11             Sec. 6: "errors reflect +- 1 standard error of the mean"; A.3: three seeds

Networks here answer by a table, so that the right number is known without one; V18, the order of the tasks, is an
outcome of training, in tests/study.
"""

import copy
import math
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

import metrics
from baselines import with_theta_o2
from engine import draw_bits
from engine.checks import NonFiniteLoss
from etd import mask_table
from experiment.data import Data, Dataset, batches
from helpers import assert_same_state, gen, make_data, seeds, small_net, tiny
from oracles_loss import predictions
from tasks import TARGET, Task, add_trigger, make_task

sizes = st.sampled_from([1, 2, 3, 7, 20])
NOBODY = torch.empty(0, dtype=torch.int64)


def numbered(labels, classes=4, first=0) -> Data:
    """Image i says first + i in its first two pixels, base 200; the others are 3x3 of grey."""
    n = len(labels)
    images, numbers = torch.full((n, 1, 4, 4), 100, dtype=torch.uint8), torch.arange(first, first + n)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = numbers // 200, numbers % 200
    return Data(images, labels, classes, (0.0,), (1 / 255,))  # x is the pixel value


class Answers(nn.Module):
    """A network that gives the image of number i row i of a table of logits; of another table under the trigger."""

    def __init__(self, logits, triggered=None):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())
        self.triggered = logits if triggered is None else triggered

    def forward(self, x):
        rows = (x[:, 0, 0, 0] * 200 + x[:, 0, 0, 1]).round().long()
        return torch.where(x[:, 0, -1, -1:] == 255, self.triggered[rows], self.logits[rows])


def answering(guesses, classes=4, triggered=None):
    """A network whose predictions are `guesses`."""
    def one_hot(values):
        return nn.functional.one_hot(values, classes).float()
    return Answers(one_hot(guesses), None if triggered is None else one_hot(triggered))


def draw_case(seed, n, classes=4):
    """Random logits, whole numbers of which some are equal, data of n examples and their labels."""
    g = gen(seed)
    labels = torch.randint(0, classes, (n,), generator=g)
    return (2 * torch.randn(n, classes, generator=g)).round(), numbered(labels, classes), labels


def share_right(guesses, labels, index=None) -> float | None:
    """The share of the examples of `index` whose guess is the label, one after another; None for no example."""
    index = range(len(labels)) if index is None else [int(i) for i in index]
    return sum(int(guesses[i]) == int(labels[i]) for i in index) / len(index) if index else None


# --- Accuracy ---------------------------------------------------------------------------------------------------------

@given(seeds, sizes, st.sampled_from([1, 3, 1024]), st.sampled_from([(1, 0), (64, -8), (0.125, 8)]), st.data())
def test_v1_accuracy(seed, n, size, scale_and_shift, draw):
    """V1, V2, V3, V10: a prediction is the first class of the largest logit, whatever the batches and the logits' scale
    and shift; accuracy is a loop, over all examples or an index, duplicates and any order, against the labels of the
    data or others; it is 1 on perfect answers and 0 on a derangement of the classes."""
    (logits, data, labels), (scale, shift) = draw_case(seed, n), scale_and_shift
    index = torch.tensor(draw.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=9)))
    other, guesses = torch.randint(0, 4, (n,), generator=gen(seed + 1)), predictions(logits)
    net = Answers(logits * scale + shift)
    assert metrics.predict(net, data, size=size).tolist() == guesses
    assert metrics.predict(net, data, index, size=size).tolist() == [guesses[i] for i in index]
    for instead, expected in ((None, labels), (other, other)):
        assert metrics.accuracy(net, data, index, instead) == share_right(guesses, expected, index)
        assert metrics.accuracy(net, data, None, instead) == share_right(guesses, expected)
    for step in range(4):
        assert metrics.accuracy(answering((labels + step) % 4), data) == (step == 0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 7, 11])
def test_v1_one_logit_that_is_not_finite(where, value):
    """V1, V8: a single logit that is not finite is told, in whatever batch, whether or not it is the largest; where its
    example is not asked for, it is no obstacle."""
    logits, data, _ = draw_case(0, 12)
    logits[where, 2] = value
    for index in (None, torch.tensor([3, where]), torch.tensor([where, 3, where])):
        for size in (1, 5, 1024):
            with pytest.raises(NonFiniteLoss, match="logits are not finite"):
                metrics.predict(Answers(logits), data, index, size=size)
    index = torch.tensor([10, 1, 8])
    assert metrics.predict(Answers(logits), data, index).tolist() == predictions(logits[index])


class ByMask(nn.Module):
    """A network without parameters, which answers with the one channel that its mask turns on."""

    def forward(self, x, mask):
        return mask.float()


def test_v1_masks_go_by_index():
    """V1, M13: under masks each example is answered under its own row, whatever the order and the batches."""
    data, index, own = make_data(0), torch.tensor([7, 7, 0, 11, 3]), torch.arange(12) % 4
    masks = draw_bits(12, 4, lambda rows: nn.functional.one_hot(own, 4).bool())
    for size in (1, 3, 1024):
        assert torch.equal(metrics.predict(ByMask(), data, masks=masks, size=size), own)
        assert torch.equal(metrics.predict(ByMask(), data, index, masks, size), own[index])
    for asked in (index, None):
        assert metrics.accuracy(ByMask(), data, asked, own, masks) == 1


def test_v2_the_last_batch_weighs_by_its_examples():
    """V2: 76 wrong ones at the end, most of the last batch of whatever size, are 76 of 1,100."""
    guesses = torch.zeros(1100, dtype=torch.int64)
    guesses[1024:] = 1
    assert metrics.accuracy(answering(guesses, 2), numbered(torch.zeros_like(guesses), 2)) == 1024 / 1100


def test_v8_empty():
    """V8: an empty set -> ValueError, never 0.0 or nan; so do an index out of range and an empty D_f or D_c."""
    logits, data, labels = draw_case(0, 5)
    task, net = draw_task(0), Answers(logits)
    oracle, nothing = answering(torch.zeros(80, dtype=torch.int64)), numbered(labels[:0])
    elsewhere = (task.train.labels == task.clean).nonzero()[:2, 0]
    for call in (lambda: metrics.accuracy(net, data, NOBODY), lambda: metrics.predict(net, data, NOBODY),
                 lambda: metrics.accuracy(net, nothing), lambda: metrics.share(torch.empty(0, dtype=torch.bool)),
                 lambda: metrics.mean_sem([]), lambda: metrics.evaluate(oracle, task, NOBODY),
                 lambda: metrics.evaluate(oracle, task, elsewhere),
                 lambda: metrics.evaluate(oracle, replace(task, corrupted=NOBODY), elsewhere),
                 lambda: metrics.evaluate(oracle, replace(task, test=nothing), task.corrupted)):
        with pytest.raises(ValueError, match="empty|no runs"):
            call()
    with pytest.raises(ValueError, match="index 5 out of range for 5"):
        metrics.accuracy(net, data, torch.tensor([0, 5]))


@given(seeds, st.booleans(), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_v9_leaves_no_trace(seed, masked, dtype):
    """V9, V1, F11: evaluation runs a network of any dtype in eval mode and changes no parameter, buffer, gradient or
    random state; each module has the mode that it had, also where a pass raises; a backward pass works after it."""
    data, net = make_data(seed, pad=1, flip=True, trigger=True), small_net(seed, dtype=dtype)
    net = with_theta_o2(net, data, tiny()) if masked else net
    masks = mask_table(12, net.width, 0.5, seed) if masked else None
    for k, module in enumerate(net.modules()):
        module.training = bool(seed >> k & 1)
    before, index = copy.deepcopy(net), torch.tensor([3, 3, 0])
    torch.manual_seed(seed)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    guesses = metrics.predict(net, data, index, masks)
    metrics.accuracy(net, data, masks=masks)
    broken = net.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        metrics.accuracy(net, data, masks=masks)
    broken.remove()
    assert_same_state(net, before)
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert [m.training for m in net.modules()] == [m.training for m in before.modules()]
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    (x,) = (x for _, x, _ in batches(data, index, dtype=dtype))
    logits = net.eval()(x) if masks is None else net.eval()(x, masks[index])
    assert torch.equal(guesses, logits.argmax(dim=1))
    logits.sum().backward()


# --- Eq. 1: the C-score -----------------------------------------------------------------------------------------------

def score_case(seed, m, others=5):
    """Data of m + others examples, and m of them, D_c."""
    g = gen(seed)
    labels = torch.randint(0, 4, (m + others,), generator=g)
    return numbered(labels), torch.randperm(m + others, generator=g)[:m].sort().values


# Scripted networks: (labels, index of the subset, seed) -> what each example of the data set is taken for.

def by_chance(labels, index, seed):
    """Anything, but what it was taught."""
    guesses = torch.randint(0, 4, labels.shape, generator=gen(seed))
    guesses[index] = labels[index]
    return guesses


def nearest(labels, index, seed):
    """The label of the example of the subset with the nearest number, the lower one of two; 0 without any."""
    if len(index) == 0:
        return torch.zeros_like(labels)
    return labels[index[(torch.arange(len(labels))[:, None] - index).abs().argmin(dim=1)]]


def majority(labels, index, seed):
    """The most frequent label of the subset, the lowest among equals."""
    return torch.full_like(labels, int(torch.bincount(labels[index], minlength=4).argmax()))


def scripted(script, data, calls=None):
    """A `learn` that answers by a script and notes its calls."""
    def learn(index, seed):
        if calls is not None:
            calls.append((index.tolist(), seed))
        return answering(script(data.labels, index, seed))

    return learn


def naive_scores(script, labels, corrupted, calls, sizes):
    """Eq. 1 in loops: over examples, over sizes, over the networks of that size that the example was no part of."""
    scores = []
    for i in corrupted.tolist():
        means = []
        for size in sizes:
            hits = [float(script(labels, torch.tensor(index, dtype=torch.int64), seed)[i] == labels[i])
                    for index, seed in calls if len(index) == size and i not in index]
            means.append(sum(hits) / len(hits))
        scores.append(sum(means) / len(means))
    return scores


@st.composite
def plans(draw):
    """(m, sizes, runs) that `c_score` takes."""
    m = draw(st.integers(1, 9))
    chosen = draw(st.lists(st.integers(0, m - 1), min_size=1, max_size=4, unique=True))
    least = -(-m // (m - max(chosen)))
    return m, chosen, draw(st.integers(least, least + 3))


@given(seeds, plans(), st.sampled_from([by_chance, nearest, majority]))
def test_v13_equals_the_naive_loops(seed, plan, script):
    """V13: every score equals the loops over the networks that did not see the example, and lies in [0, 1]."""
    (m, chosen, runs), calls = plan, []
    data, corrupted = score_case(seed, m)
    scores, found = metrics.c_score(data, corrupted, scripted(script, data, calls), chosen, runs, seed)
    expected = naive_scores(script, data.labels, corrupted, calls, chosen)
    assert scores.shape == (m,) and scores.dtype == torch.float64 and 0 <= scores.min() <= scores.max() <= 1
    assert (scores - torch.tensor(expected, dtype=torch.float64)).abs().max() < 1e-12
    for (index, network), rate in zip(calls, found.flatten().tolist(), strict=True):
        guesses = script(data.labels, torch.tensor(index, dtype=torch.int64), network)
        assert rate == share_right(guesses, data.labels, [i for i in corrupted.tolist() if i not in index])


@given(seeds, plans())
def test_v14_what_is_asked_of_learn(seed, plan):
    """V14: runs networks of each size, each on that many different examples of D_c, in their order, each with a seed of
    its own; the log counts them."""
    (m, chosen, runs), calls, logged = plan, [], []
    data, corrupted = score_case(seed, m)
    _, found = metrics.c_score(data, corrupted, scripted(by_chance, data, calls), chosen, runs, seed,
                               log=lambda *values: logged.append(values))
    assert [len(index) for index, _ in calls] == [size for size in chosen for _ in range(runs)]
    assert all(index == sorted(set(index)) and set(index) <= set(corrupted.tolist()) for index, _ in calls)
    assert len({network for _, network in calls}) == len(calls)
    assert logged == [(k + 1, len(calls), chosen[k // runs], float(found.flatten()[k])) for k in range(len(calls))]


@given(seeds, plans())
def test_v14_held_out_sets_are_balanced(seed, plan):
    """V14: each network leaves out m - n examples; none is left out more than once more often than another."""
    m, chosen, runs = plan
    for size in chosen:
        held = metrics.held_out(m, size, runs, seed)
        assert held.shape == (runs, m) and (held.sum(dim=1) == m - size).all()
        times = held.sum(dim=0)
        assert times.min() >= 1 and times.max() - times.min() <= 1


@pytest.mark.parametrize("row", [0, 2])
def test_v14_each_subset_is_a_uniform_draw(row):
    """V14: over 2,000 seeds each of 10 examples is left out of a subset of 6 in 40 % of the draws, and each pair of
    them together in 4/10 * 3/9 (within 5 standard errors; chance of a false alarm below 1e-4)."""
    held = torch.stack([metrics.held_out(10, 6, 3, seed)[row] for seed in range(2000)]).double()
    together = held.T @ held / len(held)  # (10, 10)
    expected = torch.full((10, 10), 4 / 10 * 3 / 9, dtype=torch.float64).fill_diagonal_(4 / 10)
    assert ((together - expected).abs() <= 5 * (expected * (1 - expected) / len(held)).sqrt()).all()


@given(seeds)
def test_v16_the_seed(seed):
    """V16: a seed gives the same subsets, networks' seeds and scores again, whatever the global random states, which
    stay; another one gives others."""
    (data, corrupted), kept = score_case(seed, 9), []
    for world, s in enumerate((seed, seed, seed + 1)):
        torch.manual_seed(world)
        calls, before = [], (torch.get_rng_state(), random.getstate(), repr(np.random.get_state()))
        scores, found = metrics.c_score(data, corrupted, scripted(by_chance, data, calls), [0, 3, 6], 4, s)
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1:] == (random.getstate(), repr(np.random.get_state()))
        kept.append((calls, scores.tolist(), found.tolist()))
    assert kept[0] == kept[1]
    assert {s for _, s in kept[0][0]}.isdisjoint(s for _, s in kept[2][0])
    assert [index for index, _ in kept[0][0]] != [index for index, _ in kept[2][0]]


def test_v16_sizes_are_drawn_apart():
    """V16: a size's subsets and networks do not depend on which other sizes there are; each size has an order of its
    own."""
    data, corrupted = score_case(2, 9)
    alone, among = [], []
    metrics.c_score(data, corrupted, scripted(by_chance, data, alone), [5], 3, seed=0)
    metrics.c_score(data, corrupted, scripted(by_chance, data, among), [0, 5, 2], 3, seed=0)
    assert alone == among[3:6]
    nested = [bool((metrics.held_out(20, 15, 1, seed) <= metrics.held_out(20, 5, 1, seed)).all()) for seed in range(8)]
    assert not all(nested)  # one order for all sizes would leave out 5 of the same 15


@pytest.mark.parametrize("changes, words", [
    (dict(corrupted=[]), "D_c is empty"),
    (dict(corrupted=[0, 1, 1, 2]), "1 repeated"),
    (dict(corrupted=[0, 1, 1, 1, 1, 2]), "from 0 to 2 with 3 repeated"),
    (dict(corrupted=[0, 1, 2, 12]), "different indices from 0 to 11; it runs from 0 to 12"),
    (dict(corrupted=[0, 1, 2, 14]), "it runs from 0 to 14"),
    (dict(corrupted=[-1, 0, 1, 2]), "it runs from -1 to 2"),
    (dict(sizes=[]), r"sizes are \[\]"),
    (dict(sizes=[0, 4]), r"sizes are \[0, 4\]; they must be one or more different numbers from 0 to 3"),
    (dict(sizes=[0, 6]), r"sizes are \[0, 6\]"),
    (dict(sizes=[-1, 2]), r"sizes are \[-1, 2\]"),
    (dict(sizes=[2, 2]), r"sizes are \[2, 2\]"),
    (dict(runs=0), "runs is 0; at 2 of 4 examples it takes at least 2 for each"),
    (dict(runs=3, sizes=[3, 0]), "runs is 3; at 3 of 4 examples it takes at least 4 for each"),
])
def test_v17_bad_arguments(changes, words):
    """V17: D_c, sizes or runs that cannot be scored are refused before any network is trained."""
    data, _ = score_case(0, 12, others=0)
    plan = dict(corrupted=[0, 1, 2, 3], sizes=[0, 2], runs=2) | changes
    plan["corrupted"] = torch.tensor(plan["corrupted"], dtype=torch.int64)
    with pytest.raises(ValueError, match=words):
        metrics.c_score(data, **plan, learn=lambda *args: pytest.fail("training began"), seed=0)


# --- Healed, Utility and their product --------------------------------------------------------------------------------

def draw_task(seed, name="random", classes=(0, 1, 2, 3)) -> Task:
    """16 of 40 images corrupted, test images of some classes, numbered from 40 on; both would be augmented."""
    g = gen(seed)
    train = numbered((torch.arange(40) % 4)[torch.randperm(40, generator=g)])
    test = numbered(torch.tensor(classes)[torch.randint(len(classes), (40,), generator=g)], first=40)
    train, test = (replace(data, pad=2, flip=True) for data in (train, test))
    return make_task(name, Dataset("made", train, test, ("",) * 4), 16, seed, (0, 1))


def draw_forget(seed, task, size):
    """D_f, so many of D_c in no order."""
    return task.corrupted[torch.randperm(16, generator=gen(seed))[:size]]


def scores_by_loops(task, forget, plain, triggered) -> dict:
    """Sec. 6 and A.2, image by image. `plain` and `triggered`: what the training images, then the test images, are
    taken for without and with the trigger."""
    corrupted, forget, labels = task.corrupted.tolist(), forget.tolist(), task.test.labels.tolist()
    poison = task.name == "poison"
    seen = [triggered[i] if poison and i in corrupted else plain[i] for i in range(40)]
    shown = (triggered if poison else plain)[40:]
    alike = [j for j in range(40) if task.name != "confusion" or labels[j] in (0, 1)]
    others = [j for j in range(40) if poison and labels[j] != TARGET]
    healed, utility = share_right(seen, task.clean, corrupted), share_right(plain[40:], labels)
    return {
        "healed": healed,
        "healed_forget": share_right(seen, task.clean, forget),
        "healed_undiscovered": share_right(seen, task.clean, [i for i in corrupted if i not in forget]),
        "healed_test": share_right(shown, labels, alike),
        "misled": share_right(shown, [TARGET] * 40, others),
        "utility": utility,
        "product": healed * utility,
        "acc_forget": share_right(seen, task.train.labels, forget),
    }


@pytest.mark.parametrize("name", ["poison", "confusion", "random"])
@given(seeds, st.integers(1, 16), st.sampled_from([(0, 1, 2, 3), (0,), (2, 3)]))
def test_v4_healed(name, seed, size, classes):
    """V4, V5, V6, V12: every score is a loop over images, as given, without augmentation: Healed over all of D_c, over
    D_f and over the rest, None where nobody is left; Utility over all classes of the test set; `learnt` of the
    original. A task's name, train, test, clean and corrupted are read, of poison its trigger, and not changed."""
    task, g = draw_task(seed, name, classes), gen(seed + 1)
    forget = draw_forget(seed, task, size)
    bare = SimpleNamespace(name=name, train=task.train, test=task.test, clean=task.clean.clone(),
                           corrupted=task.corrupted.clone(), trigger=add_trigger)
    plain, triggered, before = (torch.randint(0, 4, (80,), generator=g) for _ in range(3))
    net, expected = answering(plain, triggered=triggered), scores_by_loops(task, forget, plain, triggered)
    assert metrics.evaluate(net, bare, forget) == expected
    learnt = {"learnt": share_right(before, task.train.labels, task.corrupted)}
    assert metrics.evaluate(net, bare, forget, answering(before)) == expected | learnt
    assert torch.equal(bare.clean, task.clean) and torch.equal(bare.corrupted, task.corrupted)
    assert expected["healed_test"] is not None or (name, classes) == ("confusion", (2, 3))
    assert expected["misled"] is not None or name != "poison" or classes == (0,)


@given(seeds, st.integers(1, 16))
def test_v5_parts(seed, size):
    """V4, V5, V6: of a network that has memorised D_f alone Healed is the share of the undiscovered, of one that has
    memorised all of D_c 0, of one that knows the clean labels 1; Utility is 1, so the product is Healed."""
    task = draw_task(seed)
    forget = draw_forget(seed, task, size)
    memorised, knowing = (torch.cat([labels, task.test.labels]) for labels in (task.train.labels, task.clean))
    part = knowing.clone()
    part[forget] = memorised[forget]
    for guesses, healed in ((memorised, 0), (knowing, 1), (part, 1 - size / 16)):
        found = metrics.evaluate(answering(guesses), task, forget, answering(memorised))
        assert (found["healed"], found["utility"], found["product"], found["learnt"]) == (healed, 1, healed, 1)
        assert (found["healed_forget"], found["acc_forget"]) == ((1, 0) if healed == 1 else (0, 1))


def test_v4_the_original_without_theta_o2():
    """V4: `learnt` of an Expanded is that of theta_o1 alone."""
    data, task = make_data(0), draw_task(0)
    expanded = with_theta_o2(small_net(0), data, tiny())
    seen = replace(task, train=data, test=data, clean=data.labels, corrupted=torch.arange(12))
    learnt = metrics.evaluate(expanded.net, seen, torch.tensor([0]), expanded)["learnt"]
    assert learnt == metrics.accuracy(small_net(0), data)


# --- Mean and standard error ------------------------------------------------------------------------------------------

@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
@example([0.1, 0.1, 0.1])
def test_v7_sem(values):
    """V7: SEM is std(ddof=1) / sqrt(n), 0 for constants; a single run has a mean and no error; values may be an
    iterator or a tensor."""
    mean, sem = metrics.mean_sem(values)
    size = max(1.0, *(abs(v) for v in values))  # rounding is relative to the largest number in play
    assert abs(sem - np.std(values, ddof=1) / len(values) ** 0.5) <= 1e-12 * size
    assert abs(mean - np.mean(values)) <= 1e-12 * size
    assert metrics.mean_sem(iter(values)) == metrics.mean_sem(torch.tensor(values, dtype=torch.float64)) == (mean, sem)
    assert metrics.mean_sem(values[:1]) == (values[0], None)


def test_v11_golden():
    """V11, V6: A.3's three seeds: mean H 0.7660, mean U 0.8917, mean H x U 0.6830."""
    healed, utility = [0.772, 0.774, 0.752], [0.891, 0.888, 0.896]
    products = [h * u for h, u in zip(healed, utility, strict=True)]
    for values, expected in ((healed, 0.7660), (utility, 0.8917), (products, 0.6830)):
        mean, sem = metrics.mean_sem(values)
        assert abs(mean - expected) < 1e-4 and math.isclose(sem, np.std(values, ddof=1) / 3**0.5, rel_tol=1e-9)
