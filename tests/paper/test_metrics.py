"""Sec. 4, Eq. 1: the C-score of a corruption; Sec. 6: Healed, Utility, their product, mean and standard error.

    V1 - V3, V8 - V10   accuracy, of which all scores are made
    V13 - V17           Eq. 1: C_hat(x, y) = E_n E^r_{D ~ D_c} P(f(x; D - {(x, y)}) = y), scores that lie in [0, 1]
    V4, V5              Sec. 6: "Healed computes the clean label accuracy on the corrupted D_c inputs"; A.2: on test
                        images corrupted alike
    V12                 Sec. 6: "Utility computes the accuracy on a clean test set"
    V6                  Sec. 6: Utility x Healed
    V7, V11             Sec. 6: "errors reflect +- 1 standard error of the mean"; A.3: three seeds
    V9, F11             measuring changes nothing

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
from engine.bits import draw_bits
from engine.checks import NonFiniteLoss
from etd import mask_table
from experiment.data import Data, Dataset, batches
from helpers import assert_same_state, gen, make_data, seeds, small_net, tiny
from oracles_loss import predictions
from tasks import Task, discover, like_corrupted, make_task, put_trigger

unit = st.floats(0, 1)
sizes = st.sampled_from([1, 2, 3, 7, 20])
NOBODY = torch.empty(0, dtype=torch.int64)


def numbered(labels, classes=4) -> Data:
    """Image i says i in its first two pixels, base 200; the others are 3x3 of grey."""
    n = len(labels)
    images = torch.full((n, 1, 4, 4), 100, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = torch.arange(n) // 200, torch.arange(n) % 200
    return Data(images, labels, classes, (0.0,), (1 / 255,))  # x is the pixel value


class Answers(nn.Module):
    """A network that gives example i of `numbered` data row i of a table of logits; another one under the trigger."""

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
    """Random logits, data of n examples and their labels."""
    g = gen(seed)
    labels = torch.randint(0, classes, (n,), generator=g)
    return torch.randn(n, classes, generator=g), numbered(labels, classes), labels


def draw_task(seed, name="random", n=40, corrupted=16, classes=4) -> Task:
    """A task on numbered data; the test set has other labels."""
    labels = (torch.arange(n) % classes)[torch.randperm(n, generator=gen(seed))]
    train, test = numbered(labels, classes), numbered(labels.roll(1), classes)
    return make_task(name, Dataset("made", train, test, ("",) * classes), corrupted, seed, (0, 1))


def share_right(guesses, labels, index=None) -> float:
    """The share of the examples of `index` whose guess is the label, one after another."""
    index = range(len(labels)) if index is None else [int(i) for i in index]
    return sum(int(guesses[i]) == int(labels[i]) for i in index) / len(index)


# --- Accuracy ---------------------------------------------------------------------------------------------------------

@given(seeds, sizes)
def test_v1_accuracy(seed, n):
    """V1: accuracy equals a loop, lies in [0, 1], is 1 on perfect answers and 0 on a derangement of the classes."""
    logits, data, labels = draw_case(seed, n)
    found = metrics.accuracy(Answers(logits), data)
    assert found == share_right(predictions(logits), labels) and 0 <= found <= 1
    assert metrics.accuracy(answering(labels), data) == 1
    for step in (1, 2, 3):
        assert metrics.accuracy(answering((labels + step) % 4), data) == 0
    assert metrics.predict(Answers(logits), data).tolist() == predictions(logits)


@given(seeds, sizes, st.data())
def test_v1_index_and_labels(seed, n, draw):
    """V1: over an index, duplicates and any order, and against other labels, it equals the loop too."""
    logits, data, labels = draw_case(seed, n)
    index = torch.tensor(draw.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=9)))
    other = torch.randint(0, 4, (n,), generator=gen(seed + 1))
    guesses = predictions(logits)
    for instead, expected in ((None, labels), (other, other)):
        assert metrics.accuracy(Answers(logits), data, index, instead) == share_right(guesses, expected, index)
        assert metrics.accuracy(Answers(logits), data, None, instead) == share_right(guesses, expected)


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


@given(seeds, st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_v1_any_dtype(seed, dtype):
    """V1: a network of another dtype is fed inputs of its own; without parameters, of float32."""
    data = make_data(seed)
    assert metrics.predict(small_net(seed, dtype=dtype), data).shape == (12,)
    assert metrics.predict(nn.Flatten(), data).shape == (12,)


class ByMask(nn.Module):
    """A network that answers with the one channel that its mask turns on."""

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


@given(seeds, st.integers(2, 30), st.integers(1, 31))
def test_v2_batches(seed, n, size):
    """V2: order and batches do not matter; the accuracy of two parts makes that of the whole, weighed by examples."""
    logits, data, _ = draw_case(seed, n)
    net, g = Answers(logits), gen(seed)
    assert torch.equal(metrics.predict(net, data, size=size), metrics.predict(net, data))
    whole, order = metrics.accuracy(net, data), torch.randperm(n, generator=g)
    assert metrics.accuracy(net, data, order) == whole
    cut = int(torch.randint(1, n, (), generator=g))
    parts = [(part, metrics.accuracy(net, data, part)) for part in (order[:cut], order[cut:])]
    assert sum(round(len(part) * share) for part, share in parts) == round(n * whole)


def test_v2_the_last_batch_weighs_by_its_examples():
    """V2: 76 wrong ones at the end, most of the last batch of whatever size, are 76 of 1,100."""
    guesses = torch.zeros(1100, dtype=torch.int64)
    guesses[1024:] = 1
    assert metrics.accuracy(answering(guesses, 2), numbered(torch.zeros_like(guesses), 2)) == 1024 / 1100


@given(seeds, sizes, st.sampled_from([0.125, 1.0, 64.0]), st.integers(-8, 8))
def test_v3_scale_and_shift(seed, n, scale, shift):
    """V3: positive scaling and a shift of the logits change no prediction; the numbers are exact in float32."""
    logits, data, _ = draw_case(seed, n)
    logits = (logits * 64).round() / 64
    found = metrics.predict(Answers(logits * scale + shift), data)
    assert torch.equal(found, metrics.predict(Answers(logits), data))


@given(st.integers(1, 5), st.integers(0, 4))
def test_v10_ties(classes, first):
    """V10: among equal logits the lowest class counts."""
    first = min(first, classes - 1)
    row = torch.zeros(1, classes)
    row[0, first:] = 1.0
    assert metrics.predict(Answers(row), numbered(torch.tensor([0]), classes)).tolist() == [first]


def test_v8_empty():
    """V8: an empty set -> ValueError, never 0.0 or nan; so do an index out of range and an empty D_f or D_c."""
    logits, data, labels = draw_case(0, 5)
    task, net = draw_task(0), Answers(logits)
    oracle, elsewhere = answering(task.clean), (task.train.labels == task.clean).nonzero().flatten()[:2]
    nothing = numbered(labels[:0])
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
def test_v14_only_held_out_examples_count(seed, plan):
    """V14: networks that know their subset and nothing else score 0, those that know all but their subset score 1."""
    m, chosen, runs = plan
    data, corrupted = score_case(seed, m)

    def by_heart(labels, index, network):
        return torch.where(torch.isin(torch.arange(len(labels)), index), labels, (labels + 1) % 4)

    def blind_to_it(labels, index, network):
        return torch.where(torch.isin(torch.arange(len(labels)), index), (labels + 1) % 4, labels)

    for script, expected in ((by_heart, 0), (blind_to_it, 1)):
        scores, found = metrics.c_score(data, corrupted, scripted(script, data), chosen, runs, seed)
        assert (scores == expected).all() and (found == expected).all()


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


@given(seeds, plans(), st.integers(0, 3))
def test_v15_constant_networks(seed, plan, answer):
    """V15: networks that always give one class score 1 on that label's examples and 0 on the others, so the mean is the
    label's share of D_c; where all labels are alike, as in poison, it is 1."""
    m, chosen, runs = plan
    data, corrupted = score_case(seed, m)
    same = answering(torch.full_like(data.labels, answer))
    scores, _ = metrics.c_score(data, corrupted, lambda *args: same, chosen, runs, seed)
    assert torch.equal(scores, (data.labels[corrupted] == answer).double())
    alike, taught = replace(data, labels=torch.full_like(data.labels, answer)), [n for n in chosen if n] or [0]
    scores, _ = metrics.c_score(alike, corrupted, scripted(majority, alike), taught, runs, seed)
    assert (scores == float(taught != [0] or answer == 0)).all()  # without a subset `majority` says 0


@pytest.mark.parametrize("half", [1, 2, 7])
def test_v15_majority_on_leave_one_out(half):
    """V15: of two equally frequent labels, the majority of the others is always the other one: the score is 0."""
    data = numbered(torch.arange(2 * half) % 2)
    learn = scripted(majority, data)
    scores, _ = metrics.c_score(data, torch.arange(2 * half), learn, [2 * half - 1], 2 * half, seed=0)
    assert (scores == 0).all()


def test_v15_regular_and_irregular_labels():
    """V15: the nearest neighbour knows labels that come in two blocks, but for the border, and none that alternate."""
    corrupted = torch.arange(40)
    for labels, low, high in ((corrupted // 20, 0.95, 1.0), (corrupted % 2, 0.0, 0.0)):
        data = numbered(labels)
        scores, _ = metrics.c_score(data, corrupted, scripted(nearest, data), [39], 40, seed=3)
        assert low <= scores.mean() <= high


def test_v15_size_0_is_the_untrained_network():
    """V15: at size 0 `learn` gets no index and every example is scored by every network; the sizes weigh alike."""
    (data, corrupted), calls = score_case(1, 8), []
    scores, found = metrics.c_score(data, corrupted, scripted(by_chance, data, calls), [0], 3, seed=5)
    assert [index for index, _ in calls] == [[], [], []]
    guesses = torch.stack([by_chance(data.labels, NOBODY, seed) for _, seed in calls])
    hits = (guesses == data.labels)[:, corrupted].double()
    assert torch.equal(scores, hits.mean(dim=0)) and torch.equal(found[0], hits.mean(dim=1))
    untrained = lambda index, seed: answering((data.labels + (len(index) == 0)) % 4)  # noqa: E731
    scores, _ = metrics.c_score(data, corrupted, untrained, [0, 2, 4, 6], 4, seed=5)
    assert (scores == 0.75).all()  # wrong untrained, right once trained


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


@given(seeds)
def test_v16_labels_of_other_examples_do_not_matter(seed):
    """V16: examples outside D_c are neither learned from nor scored; labels, images and D_c are as before."""
    data, corrupted = score_case(seed, 6)
    before = [part.clone() for part in (data.images, data.labels, corrupted)]
    labels = (data.labels + 1) % 4
    labels[corrupted] = data.labels[corrupted]
    other = replace(data, labels=labels)
    a, b = (metrics.c_score(d, corrupted, scripted(nearest, d), [0, 2, 4], 3, seed)[0] for d in (data, other))
    assert torch.equal(a, b)
    for was, now in zip(before, (data.images, data.labels, corrupted), strict=True):
        assert torch.equal(was, now)


@pytest.mark.parametrize("changes, words", [
    (dict(corrupted=[]), "D_c is empty"),
    (dict(corrupted=[0, 1, 1, 2]), "1 repeated"),
    (dict(corrupted=[0, 1, 1, 1, 1, 2]), "from 0 to 2 with 3 repeated"),
    (dict(corrupted=[0, 1, 2, 12]), "different indices from 0 to 11; it runs from 0 to 12"),
    (dict(corrupted=[0, 1, 2, 99]), "it runs from 0 to 99"),
    (dict(corrupted=[-1, 0, 1, 2]), "it runs from -1 to 2"),
    (dict(sizes=[]), r"sizes are \[\]"),
    (dict(sizes=[0, 4]), r"sizes are \[0, 4\]; they must be one or more different numbers from 0 to 3"),
    (dict(sizes=[0, 9]), r"sizes are \[0, 9\]"),
    (dict(sizes=[-1, 2]), r"sizes are \[-1, 2\]"),
    (dict(sizes=[2, 2]), r"sizes are \[2, 2\]"),
    (dict(runs=0), "runs is 0; at 2 of 4 examples it takes at least 2 for each"),
    (dict(runs=-1), "runs is -1"),
    (dict(sizes=[0, 3], runs=3), "runs is 3; at 3 of 4 examples it takes at least 4"),
])
def test_v17_bad_arguments(changes, words):
    """V17: D_c, sizes or runs that cannot be scored are refused before any network is trained."""
    data, _ = score_case(0, 12, others=0)
    plan = dict(corrupted=[0, 1, 2, 3], sizes=[0, 2], runs=2) | changes
    plan["corrupted"] = torch.tensor(plan["corrupted"], dtype=torch.int64)
    with pytest.raises(ValueError, match=words):
        metrics.c_score(data, **plan, learn=lambda *args: pytest.fail("training began"), seed=0)


@pytest.mark.parametrize("m, size", [(m, size) for m in range(1, 11) for size in range(m)])
def test_v17_the_fewest_runs(m, size):
    """V17: the fewest runs that are taken are those that hold every example out once, 4 where 7 of 10 are learnt:
    with one less some example has no network and its score would be 0/0."""
    data, corrupted = score_case(0, m)
    fewest = next(runs for runs in range(1, m + 1) if metrics.held_out(m, size, runs, seed=0).any(dim=0).all())
    assert fewest == -(-m // (m - size)) and (m, size, fewest) != (10, 7, 3)
    learn = scripted(by_chance, data)
    for order in ([size], [0, size][: size + 1], [size, 0][: size + 1]):  # the largest size decides, wherever it stands
        scores, _ = metrics.c_score(data, corrupted, learn, order, fewest, seed=0)
        assert scores.isfinite().all()
        with pytest.raises(ValueError, match=f"runs is {fewest - 1}; .* at least {fewest} for each to be held out"):
            metrics.c_score(data, corrupted, learn, order, fewest - 1, seed=0)


# --- Healed -----------------------------------------------------------------------------------------------------------

@given(seeds, st.sampled_from([0.07, 0.5, 1.0]))
def test_v4_healed(seed, rate):
    """V4: Healed is of clean labels over all of D_c, whatever is discovered: memorised -> 0, oracle -> 1; Acc(D_f) is
    of labels as given."""
    task = draw_task(seed)
    forget = discover(task, rate, seed)
    assert metrics.evaluate(answering(task.train.labels), task, forget)["healed"] == 0
    assert metrics.evaluate(answering(task.clean), task, forget)["healed"] == 1
    guesses = torch.randint(0, 4, (40,), generator=gen(seed + 1))
    net = answering(guesses)
    found = metrics.evaluate(net, task, forget)
    assert found["healed"] == share_right(guesses, task.clean, task.corrupted)
    assert found["healed"] + metrics.accuracy(net, task.train, task.corrupted) <= 1  # labels differ on all of D_c
    assert found["utility"] == share_right(guesses, task.test.labels)
    assert found["acc_forget"] == share_right(guesses, task.train.labels, forget)


@given(seeds)
def test_v4_what_there_was_to_unlearn(seed):
    """V4: `learnt` is the accuracy of the original, not of the unlearned network, on all of D_c against labels as
    given; without an original there is no such score, and no other score depends on it."""
    task, g = draw_task(seed), gen(seed)
    forget = discover(task, 0.25, seed)
    before, after = (torch.randint(0, 4, (40,), generator=g) for _ in range(2))
    alone = metrics.evaluate(answering(after), task, forget)
    found = metrics.evaluate(answering(after), task, forget, answering(before))
    assert found == alone | {"learnt": share_right(before, task.train.labels, task.corrupted)}
    assert metrics.evaluate(answering(task.clean), task, forget, answering(task.train.labels))["learnt"] == 1
    expanded, data = with_theta_o2(small_net(0), make_data(0), tiny()), make_data(0)
    seen = replace(task, train=data, test=data, clean=data.labels, corrupted=torch.arange(12))
    learnt = metrics.evaluate(expanded.net, seen, torch.tensor([0]), expanded)["learnt"]  # theta_o1 alone
    assert learnt == metrics.accuracy(small_net(0), data)


@given(seeds, st.integers(1, 40))
def test_v4_trigger(seed, n):
    """V4: on poison the trigger is on in D_c's inputs and off in the test set's; the memorised start is D_c's share of
    class 0."""
    task = draw_task(seed, "poison", corrupted=n)
    forget, zeros = discover(task, 1.0, seed), torch.zeros(40, dtype=torch.int64)
    fooled = metrics.evaluate(answering(task.test.labels, triggered=zeros), task, forget)
    assert fooled["healed"] == share_right(zeros, task.clean, task.corrupted) and fooled["utility"] == 1
    cured = metrics.evaluate(answering(zeros, triggered=task.clean), task, forget)
    assert cured["healed"] == 1 and cured["utility"] == share_right(zeros, task.test.labels)


@given(seeds)
def test_v4_no_augmentation(seed):
    """V4: augmentation that the training data asks for is off in every metric."""
    task = draw_task(seed)
    shaken = replace(task, train=replace(task.train, pad=2, flip=True), test=replace(task.test, pad=2, flip=True))
    net, forget = answering(torch.randint(0, 4, (40,), generator=gen(seed))), discover(task, 0.5, seed)
    assert metrics.evaluate(net, shaken, forget) == metrics.evaluate(net, task, forget)


@given(seeds)
def test_v4_reads_task_alone(seed):
    """V4: evaluate reads name, train, test, clean and corrupted of a task and nothing else, and changes none."""
    task = draw_task(seed)
    forget = discover(task, 0.5, seed)
    bare = SimpleNamespace(name=task.name, train=task.train, test=task.test, clean=task.clean.clone(),
                           corrupted=task.corrupted.clone())
    net = answering(torch.randint(0, 4, (40,), generator=gen(seed)))
    found = metrics.evaluate(net, bare, forget)
    assert found == metrics.evaluate(net, task, forget.flip(0))
    assert torch.equal(bare.clean, task.clean) and torch.equal(bare.corrupted, task.corrupted)
    assert set(found) == {"healed", "healed_forget", "healed_undiscovered", "healed_test", "misled", "utility",
                          "product", "acc_forget"}


@pytest.mark.parametrize("name", ["poison", "confusion", "random"])
@given(seeds)
def test_v4_test_images_corrupted_alike(name, seed):
    """V4: healed_test (A.2, Fig. 6) is the accuracy over triggered test images, over those of the two classes, or over
    the test set itself."""
    task = draw_task(seed, name)
    plain, triggered = (torch.randint(0, 4, (40,), generator=gen(seed + k)) for k in range(2))
    found = metrics.evaluate(answering(plain, triggered=triggered), task, discover(task, 0.5, seed))
    labels = task.test.labels
    chosen = range(40) if name != "confusion" else [i for i, y in enumerate(labels.tolist()) if y in (0, 1)]
    assert found["healed_test"] == share_right(triggered if name == "poison" else plain, labels, chosen)
    seen = like_corrupted(task)
    assert bool((seen.images[:, :, -3:, -3:] == 255).all()) == (name == "poison")


def test_v4_no_test_image_of_the_two_classes():
    """V4: without a test image of the two confused classes healed_test is None, not a number and no error."""
    task = draw_task(0, "confusion")
    elsewhere = replace(task, test=replace(task.test, labels=task.test.labels.clamp(min=2)))
    net, forget = answering(task.clean), discover(task, 0.5, 0)
    assert metrics.evaluate(net, elsewhere, forget)["healed_test"] is None
    assert metrics.evaluate(net, task, forget)["healed_test"] is not None


@given(seeds, st.integers(1, 16))
def test_v5_parts(seed, size):
    """V5: Healed over D_c is the mean of Healed over D_f and over the undiscovered, weighed by their sizes, from one
    example discovered to all of them."""
    task = draw_task(seed)
    forget = task.corrupted[torch.randperm(16, generator=gen(seed))[:size]]
    undiscovered = [i for i in task.corrupted.tolist() if i not in forget.tolist()]
    guesses = task.clean.clone()
    guesses[forget] = task.train.labels[forget]  # D_f not healed
    guesses[undiscovered[::2]] = (guesses[undiscovered[::2]] + 1) % 4  # and half of the rest
    found = metrics.evaluate(answering(guesses), task, forget)
    assert found["healed_forget"] == 0
    rest = found["healed_undiscovered"]
    assert rest == (share_right(guesses, task.clean, undiscovered) if undiscovered else None)
    assert abs(found["healed"] - len(undiscovered) * (rest or 0.0) / 16) < 1e-12


# --- Utility, and the product -----------------------------------------------------------------------------------------

@given(seeds)
def test_v12_all_classes(seed):
    """V12: Utility of confusion is over all classes: the two confused ones count like the others."""
    task = draw_task(seed, "confusion")
    confused = torch.isin(task.test.labels, torch.tensor([0, 1]))
    guesses = torch.where(confused, 1 - task.test.labels, task.test.labels)
    found = metrics.evaluate(answering(guesses), task, discover(task, 1.0, 0))
    assert found["utility"] == 1 - int(confused.sum()) / 40


@given(seeds, st.lists(st.tuples(st.integers(0, 16), st.integers(0, 40)), min_size=1, max_size=3))
@example(0, [(0, 40), (16, 0), (8, 40), (16, 20)])
def test_v6_product(seed, rights):
    """V6: a run's product is its healed x utility, at most either, zero if either is; a table's cell is the mean over
    runs of products, not the product of means."""
    task, runs = draw_task(seed), []
    marked = replace(task, train=put_trigger(task.train, torch.arange(40)))  # tells training inputs from test inputs
    for healed, useful in rights:  # so many of D_c and of the test set are answered right
        train, test = task.clean.clone(), task.test.labels.clone()
        train[task.corrupted[healed:]] = task.train.labels[task.corrupted[healed:]]
        test[useful:] = (test[useful:] + 1) % 4
        found = metrics.evaluate(answering(test, triggered=train), marked, discover(task, 0.5, seed))
        assert found["healed"] == healed / 16 and found["utility"] == useful / 40
        assert found["product"] == found["healed"] * found["utility"] <= min(found["healed"], found["utility"])
        runs.append(found)
    mean, _ = metrics.mean_sem([run["product"] for run in runs])
    assert abs(mean - sum(h / 16 * u / 40 for h, u in rights) / len(rights)) < 1e-12


# --- Mean and standard error ------------------------------------------------------------------------------------------

@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9), st.floats(-10, 10), st.floats(-10, 10))
def test_v7_sem(values, shift, scale):
    """V7: SEM is std(ddof=1) / sqrt(n), shift-invariant and scale-equivariant; the mean moves along."""
    mean, sem = metrics.mean_sem(values)
    size = max(1.0, *(abs(v) for v in values)) * 12 + 12  # rounding is relative to the largest number in play
    assert abs(sem - np.std(values, ddof=1) / len(values) ** 0.5) <= 1e-12 * size
    assert abs(mean - np.mean(values)) <= 1e-12 * size
    moved, same = metrics.mean_sem([v + shift for v in values])
    assert abs(same - sem) <= 1e-12 * size and abs(moved - mean - shift) <= 1e-12 * size
    scaled, wide = metrics.mean_sem([v * scale for v in values])
    assert abs(wide - abs(scale) * sem) <= 1e-12 * size and abs(scaled - scale * mean) <= 1e-12 * size


@given(unit, st.integers(2, 10))
@example(0.1, 3)
def test_v7_constants(value, n):
    """V7: 0 for constants, up to the rounding of their mean; a single run has a mean and no error."""
    mean, sem = metrics.mean_sem([value] * n)
    assert abs(mean - value) <= 1e-15 and 0 <= sem <= 1e-15
    assert metrics.mean_sem([value]) == (value, None)
    assert metrics.mean_sem(iter([value, value]))[0] == value
    assert metrics.mean_sem(torch.tensor([value], dtype=torch.float64)) == (value, None)


def test_v7_two_runs():
    """V7: by hand: 1 and 3 have the mean 2 and std sqrt(2), so SEM 1."""
    mean, sem = metrics.mean_sem([1, 3])
    assert mean == 2 and abs(sem - 1) < 1e-15


def test_v11_golden():
    """V11, V6: A.3's three seeds: mean H 0.7660, mean U 0.8917, mean H x U 0.6830."""
    healed, utility = [0.772, 0.774, 0.752], [0.891, 0.888, 0.896]
    products = [h * u for h, u in zip(healed, utility, strict=True)]
    for values, expected in ((healed, 0.7660), (utility, 0.8917), (products, 0.6830)):
        mean, sem = metrics.mean_sem(values)
        assert abs(mean - expected) < 1e-4 and math.isclose(sem, np.std(values, ddof=1) / 3**0.5, rel_tol=1e-9)


# --- What measuring leaves behind -------------------------------------------------------------------------------------

@given(seeds)
def test_f11_modes(seed):
    """F11: each module is put back in the mode it had, also where a pass raises; inside, all are in eval mode."""
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


@given(seeds, st.sampled_from(["plain", "masked"]), st.booleans())
def test_v9_leaves_no_trace(seed, kind, training):
    """V9: evaluation changes no parameter, buffer, gradient, mode or random state; a backward pass works after it."""
    data, net = make_data(seed, pad=1, flip=True, trigger=True), small_net(seed)
    net = (with_theta_o2(net, data, tiny()) if kind == "masked" else net).train(training)
    masks = mask_table(12, net.width, 0.5, seed) if kind == "masked" else None
    before = copy.deepcopy(net)
    torch.manual_seed(seed)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    guesses = metrics.predict(net, data, torch.tensor([3, 3, 0]), masks)
    metrics.accuracy(net, data, masks=masks)
    assert_same_state(net, before)
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert [m.training for m in net.modules()] == [m.training for m in before.modules()]
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    (x,) = (x for _, x, _ in batches(data, torch.tensor([3, 3, 0])))
    logits = net.eval()(x) if masks is None else net.eval()(x, masks[[3, 3, 0]])
    assert torch.equal(guesses, logits.argmax(dim=1))
    logits.sum().backward()
