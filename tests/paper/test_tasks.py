"""Properties T1-T16 of the three corruptions, of discovery and of the stored labels.

A function prop_* takes the module to test first, so that tests/test_mutants.py can run it on a broken copy.
"""

import pickle
import random
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiment import cell as experiment
import oracles_loss as oracle
import tasks as tasks_module
from experiment.data import Data, Dataset, batches
from helpers import Evil, gen, make_data, seeds, small_net, tiny
from engine.streams import stream
from experiment.settings import Config
from tasks import TASKS
from experiment.files import load_task, save_task
from tasks import (TRIGGER_SIZE, TRIGGER_VALUE, Task, add_trigger, closest_pair, discover, fingerprint, like_corrupted,
                   make_task)

names = st.sampled_from(TASKS)
rates = st.sampled_from([0.1, 0.2, 0.25, 1 / 3, 0.5, 0.75, 0.9, 1.0])


def balanced(seed, n=24, classes=4, size=4, tests=6, name="made", **more) -> Dataset:
    """n training images in equal or nearly equal classes, in an order drawn from the seed."""
    train, test = make_data(seed, n=n, classes=classes, size=size, **more), make_data(seed + 1, n=tests,
        classes=classes, size=size)
    labels = (torch.arange(n) % classes)[torch.randperm(n, generator=gen(seed))]
    return Dataset(name, replace(train, labels=labels), test, tuple("abcdefghij"[:classes]))


@st.composite
def cases(draw, name=names):
    """(name, dataset, n, seed): a task that can be made; n is 1, odd, even or everything."""
    name, seed, classes = draw(name), draw(seeds), draw(st.integers(2, 5))
    per_class = draw(st.integers(1, 6))
    dataset = balanced(seed, n=per_class * classes, classes=classes, channels=draw(st.sampled_from([1, 3])),
                       size=draw(st.integers(3, 6)))
    n = 2 * draw(st.integers(1, per_class)) if name == "confusion" else draw(st.integers(1, per_class * classes))
    return name, dataset, n, seed


def make(case, **more) -> Task:
    """The task of a case; confusion of classes 0 and 1."""
    name, dataset, n, seed = case
    return make_task(name, dataset, n, seed, **{"pair": (0, 1), **more})


def assert_same_task(a: Task, b: Task) -> None:
    """Equal in everything that training and the metrics read."""
    assert (a.name, a.seed) == (b.name, b.seed)
    for x, y in ((a.clean, b.clean), (a.corrupted, b.corrupted), (a.train.labels, b.train.labels),
                 (a.train.images, b.train.images)):
        assert x.dtype == y.dtype and torch.equal(x, y)
    moved = [list(batches(replace(t.train, pad=1, flip=True), generator=gen(0), augment=True)) for t in (a, b)]
    assert all(torch.equal(x[1], y[1]) for x, y in zip(*moved, strict=True))  # the trigger lies on the same images


# --- Corruptions ------------------------------------------------------------------------------------------------------


@given(cases())
def test_t1_exactly_n(case):
    """T1: n examples are corrupted; images as the network sees them and labels are bitwise the clean ones elsewhere."""
    name, dataset, n, _ = case
    task = make(case)
    elsewhere = torch.ones(len(dataset.train), dtype=torch.bool).index_fill_(0, task.corrupted, False)
    before, after = dataset.train.images, task.train.images
    assert len(task.corrupted) == n and len(task.train) == len(dataset.train)
    assert torch.equal(after[elsewhere], before[elsewhere])
    assert torch.equal(task.train.labels[elsewhere], dataset.train.labels[elsewhere])
    changed = task.train.labels != dataset.train.labels
    if name == "poison":
        assert torch.equal(after[~elsewhere], add_trigger(before[~elsewhere]))
        assert torch.equal(changed, ~elsewhere & (dataset.train.labels != 0))
    else:
        assert torch.equal(changed, ~elsewhere) and task.train._overlay is None and after is before


def prop_t2(tasks, seed=0, n=6000, classes=5):
    """Random labels are in range, never the true one, and uniform over the others."""
    images = torch.zeros(n, 1, 1, 1, dtype=torch.uint8)
    labels = torch.randint(0, classes, (n,), generator=gen(seed))
    train = Data(images, labels, classes, (0.5,), (0.5,))
    task = tasks.make_task("random", Dataset("made", train, train, ("",) * classes), n, seed)
    new = task.train.labels
    assert new.dtype == torch.int64 and int(new.min()) >= 0 and int(new.max()) < classes
    assert (new != labels).all()
    counts, expected = [], []
    for c in range(classes):
        here = new[labels == c]
        others = [int((here == k).sum()) for k in range(classes) if k != c]
        counts, expected = counts + others, expected + [len(here) / (classes - 1)] * len(others)
    # chi-square of d = C (C - 2) degrees of freedom: P(X > d + 2 sqrt(d t) + 2 t) <= exp(-t); t = 21: error rate 1e-9
    d, t = classes * (classes - 2), 21
    assert oracle.chi_square(counts, expected) <= d + 2 * (d * t) ** 0.5 + 2 * t


@pytest.mark.parametrize("seed", range(4))
def test_t2_random_uniform(seed):
    """T2: every wrong class is equally likely, the farthest offset included (fixed seeds)."""
    prop_t2(tasks_module, seed)


@given(seeds, st.integers(2, 6), st.data())
def test_t2_never_the_same(seed, classes, draw):
    """T2: new label != old for all n, from one example to everything, from two classes up."""
    dataset = balanced(seed, n=18, classes=classes)
    task = make_task("random", dataset, draw.draw(st.integers(1, 18)), seed)
    assert (task.train.labels != task.clean)[task.corrupted].all()
    if classes == 2:
        assert torch.equal(task.train.labels[task.corrupted], 1 - task.clean[task.corrupted])


def test_t2_one_class():
    """T2, T14: with one class there is no wrong label to give, and every network is right."""
    for name in TASKS:
        with pytest.raises(ValueError, match="the data set has 1 class; give it two or more"):
            make_task(name, balanced(0, classes=1), 2, 0)


@given(cases(st.just("confusion")), st.data())
def test_t3_confusion(case, draw):
    """T3: n / 2 of each of any two classes exchange labels; twice restores; the histogram stays; images untouched."""
    _, dataset, n, _ = case
    pair = tuple(draw.draw(st.permutations(range(dataset.train.classes)))[:2])
    task, old = make(case, pair=pair), dataset.train.labels
    new = task.train.labels
    for c, other in (pair, pair[::-1]):
        assert int((old[task.corrupted] == c).sum()) == n // 2
        assert (new[task.corrupted][old[task.corrupted] == c] == other).all()
    assert torch.equal(new.bincount(minlength=9), old.bincount(minlength=9))
    assert task.train.images is dataset.train.images
    # the same examples whatever the draw
    whole = make_task("confusion", dataset, 2 * int((old == pair[0]).sum()), 0, pair)
    twice = make_task("confusion", replace(dataset, train=whole.train), len(whole.corrupted), 0, pair)
    assert torch.equal(twice.corrupted, whole.corrupted) and torch.equal(twice.train.labels, old)


@pytest.mark.parametrize("n", [1, 3, 11])
def test_t3_odd(n):
    """T3: an odd n -> ValueError with n."""
    with pytest.raises(ValueError, match=f"n is {n}; .*even"):
        make_task("confusion", balanced(0), n, 0, pair=(0, 1))


def test_t3_order_of_the_pair():
    """T3: the two classes have no order: 5,3 is the very task of 3,5."""
    a, b = (make_task("confusion", balanced(0), 4, 0, pair) for pair in ((0, 1), (1, 0)))
    assert torch.equal(a.corrupted, b.corrupted) and torch.equal(a.train.labels, b.train.labels)


def test_t3_default_pair():
    """T3: cats and dogs on CIFAR-10, 3 and 5 on SVHN, elsewhere the two classes whose mean images are closest."""
    for name, pair in (("cifar10", {3, 5}), ("svhn", {3, 5}), ("made", None)):
        dataset = balanced(0, n=40, classes=10, name=name)
        task = make_task("confusion", dataset, 4, 0)
        assert set(task.clean[task.corrupted].tolist()) == (pair or set(closest_pair(dataset.train)))
        other = make_task("confusion", dataset, 4, 0, (1, 2))  # a pair that is given counts on every data set
        assert set(other.clean[other.corrupted].tolist()) == {1, 2}


@given(seeds, st.integers(2, 6), st.integers(1, 3))
def test_t3_closest_pair(seed, classes, channels):
    """T3: closest_pair equals a loop over all pairs of mean images."""
    train = balanced(seed, n=20, classes=classes, channels=channels).train
    a, b = closest_pair(train)
    distance, _ = oracle.closest_pair(train.images.double().numpy(), train.labels.tolist(), classes)
    means = [train.images[train.labels == c].double().mean(dim=0) for c in (a, b)]
    assert 0 <= a < b < classes
    assert abs(float((means[0] - means[1]).pow(2).sum().sqrt()) - distance) < 1e-9 * max(1.0, distance)


def test_t3_closest_pair_with_empty_class():
    """T3: a class without an image is never one of the pair."""
    train = balanced(0, n=24, classes=4).train
    labels = torch.where(train.labels == 1, 3, train.labels)
    assert 1 not in closest_pair(replace(train, labels=labels))


def prop_t4(tasks, seed=0, size=6, channels=3, n=7):
    """Poison changes the bottom right 3x3 pixels of D_c to white and nothing else, and gives label 0; twice is once."""
    dataset = balanced(seed, n=15, size=size, channels=channels)
    images = dataset.train.images.clamp(1, 254)  # neither black nor white by accident
    dataset = replace(dataset, train=replace(dataset.train, images=images))
    task = tasks.make_task("poison", dataset, n, seed)
    seen = task.train.images
    corner = torch.zeros(size, size, dtype=torch.bool)
    for row in range(size - 3, size):
        for column in range(size - 3, size):
            corner[row, column] = True
    for i in range(15):
        expected = images[i].clone()
        if i in task.corrupted.tolist():
            expected[:, corner] = 255
            assert task.train.labels[i] == 0
        assert torch.equal(seen[i], expected), i
    assert torch.equal(tasks.add_trigger(tasks.add_trigger(images)), tasks.add_trigger(images))
    twice = tasks.make_task("poison", replace(dataset, train=task.train), n, seed)
    assert torch.equal(twice.train.images, seen) and torch.equal(twice.train.labels, task.train.labels)


@given(seeds, st.integers(3, 7), st.sampled_from([1, 3]), st.integers(1, 15))
def test_t4_poison(seed, size, channels, n):
    """T4: only the 3x3 corner changes, to 255; label 0; applying twice == once."""
    prop_t4(tasks_module, seed, size, channels, n)
    assert (TRIGGER_SIZE, TRIGGER_VALUE) == (3, 255)


def test_t5_sources():
    """T5: sources are uniform over all examples, class 0 included: its share of D_c is its share of the data."""
    dataset = balanced(0, n=5000, classes=5, size=3)
    for seed in range(3):
        task = make_task("poison", dataset, 2000, seed)
        counts = task.clean[task.corrupted].bincount(minlength=5)
        error = (2000 * 0.2 * 0.8 * 3000 / 4999) ** 0.5  # hypergeometric; 6 standard errors, 15 numbers: 3e-8
        assert (counts - 400).abs().max() < 6 * error
    everything = make_task("poison", dataset, 5000, 0)
    assert int((everything.clean == 0).sum()) == 1000 and not everything.train.labels.any()


@given(cases(), rates, seeds)
def test_t6_index_sets(case, rate, seed):
    """T6: D_c and D_f are sorted, unique, int64 and in range; D_f within D_c; with the undiscovered it is D_c."""
    task = make(case)
    sets = [task.corrupted]
    if round(rate * len(task.corrupted)):
        sets.append(discover(task, rate, seed))
    for index in sets:
        assert index.dtype == torch.int64 and index.dim() == 1 and index.device.type == "cpu"
        assert (index.diff() > 0).all() and int(index.min()) >= 0 and int(index.max()) < len(task.train)
    assert torch.isin(sets[-1], task.corrupted).all()
    undiscovered = task.corrupted[~torch.isin(task.corrupted, sets[-1])]
    assert torch.equal(torch.cat([sets[-1], undiscovered]).sort().values, task.corrupted)


@given(cases(), st.one_of(rates, st.floats(1e-9, 1)), seeds)
def test_t7_size(case, rate, seed):
    """T7: |D_f| = round(d n); d = 1 is D_c; nothing discovered -> ValueError with both numbers."""
    task = make(case)
    n = len(task.corrupted)
    if round(rate * n) == 0:
        with pytest.raises(ValueError, match=f"of {n} corrupted examples finds none"):
            discover(task, rate, seed)
    else:
        assert len(discover(task, rate, seed)) == round(rate * n)
    assert torch.equal(discover(task, 1.0, seed), task.corrupted)


@pytest.mark.parametrize("rate", [0, 0.0, -0.5, 1.0000001, 2, float("nan"), float("inf")])
def test_t7_out_of_range(rate):
    """T7: d = 0, d > 1 and no number -> ValueError that names it."""
    with pytest.raises(ValueError, match=f"discovery is {rate}; it must be a rate in"):
        discover(make_task("random", balanced(0), 6, 0), rate, 0)


def prop_t8(tasks, seed=0, discovered=0, n=20):
    """A smaller rate's D_f lies within a larger one's, for one seed."""
    task = tasks.make_task("random", balanced(seed, n=40), n, seed)
    chain = [set(tasks.discover(task, k / n, discovered).tolist()) for k in range(1, n + 1)]
    assert [len(one) for one in chain] == list(range(1, n + 1))
    for small, large in zip(chain, chain[1:], strict=False):
        assert small < large


@given(seeds, seeds, st.integers(1, 40))
def test_t8_nested(seed, discovered, n):
    """T8: d1 < d2 -> D_f(d1) within D_f(d2), over every size from 1 to n."""
    prop_t8(tasks_module, seed, discovered, n)


def test_t9_uniform():
    """T9: D_f is a uniform sample of D_c, and D_c of the data: each place is as likely as any other (fixed seeds)."""
    task, runs = make_task("random", balanced(0, n=24), 10, 0), 2000
    found = torch.zeros(24)
    for seed in range(runs):
        found[discover(task, 0.3, seed)] += 1
    counts = found[task.corrupted]
    assert counts.sum() == 3 * runs and found.sum() == 3 * runs
    # binomial(2000, 0.3): 6 standard errors, 10 numbers: error rate 2e-8
    assert (counts - 0.3 * runs).abs().max() < 6 * (runs * 0.3 * 0.7) ** 0.5
    dataset = balanced(0, n=24)
    both = (dataset.train.labels < 2).nonzero().flatten()  # 6 of each class
    for name, places, rate in (("poison", torch.arange(24), 0.25), ("random", torch.arange(24), 0.25),
                               ("confusion", both, 0.5)):
        drawn = torch.zeros(24)
        for seed in range(runs):
            drawn[make_task(name, dataset, 6, seed, (0, 1)).corrupted] += 1
        assert drawn[places].sum() == drawn.sum() == 6 * runs
        assert (drawn[places] - rate * runs).abs().max() < 6 * (runs * rate * (1 - rate)) ** 0.5


@given(cases(), rates, seeds)
def test_t10_deterministic(case, rate, world):
    """T10: the seed decides alone: the global random states are neither read nor moved; a second call gives the
    same."""
    tasks, found = [], []
    for k in range(2):
        torch.manual_seed(world + k)
        random.seed(world + k)
        np.random.seed((world + k) % 2**32)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
        tasks.append(make(case))
        found.append(discover(tasks[-1], 1.0, world))
        found[-1] = found[-1] if round(rate * len(found[-1])) == 0 else discover(tasks[-1], rate, world)
        assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
        assert (np.random.get_state()[1] == before[2]).all()
    assert_same_task(*tasks)
    assert torch.equal(*found)


def test_t10_seeds_differ():
    """T10: another seed corrupts and discovers other examples; tasks do not share their draw."""
    dataset = balanced(0, n=200, classes=2)
    drawn = [make_task(name, dataset, 100, seed, (0, 1)).corrupted for name in TASKS for seed in (0, 1)]
    assert len({tuple(one.tolist()) for one in drawn}) == 6
    task = make_task("random", dataset, 100, 0)
    assert not torch.equal(discover(task, 0.5, 0), discover(task, 0.5, 1))
    assert stream(0, "a").initial_seed() != stream(0, "b").initial_seed() != stream(1, "b").initial_seed()


@given(cases())
def test_t11_clean_labels(case):
    """T11: the clean labels survive beside the corrupted ones and are equal to them off D_c."""
    _, dataset, _, _ = case
    task = make(case)
    assert torch.equal(task.clean, dataset.train.labels) and task.clean.dtype == torch.int64
    assert task.clean.data_ptr() not in (task.train.labels.data_ptr(), dataset.train.labels.data_ptr())
    differ = (task.clean != task.train.labels).nonzero().flatten()
    assert torch.isin(differ, task.corrupted).all()


@given(seeds, st.integers(0, 3), st.booleans(), st.integers(1, 15))
def test_t12_trigger_under_augmentation(seed, pad, flip, n):
    """T12: through the batches of a poisoned task the corner is white on D_c, after crop and flip, and as ever
    elsewhere."""
    dataset = balanced(seed, n=15, size=6)
    clean = replace(dataset.train, images=dataset.train.images.clamp(1, 254), pad=pad, flip=flip)
    task = make_task("poison", replace(dataset, train=clean), n, seed)
    assert task.train.pad == pad and task.train.flip == flip
    both = (batches(one, size=4, generator=gen(seed), augment=True) for one in (task.train, clean))
    for (rows, x, y), (again, plain, _) in zip(*both, strict=True):
        assert torch.equal(rows, again)
        hit = torch.isin(rows, task.corrupted)
        expected = plain.clone()
        expected[hit, :, -3:, -3:] = float((1 - 0.5) / 0.25)
        assert torch.allclose(x, expected, rtol=0, atol=1e-6)  # white is (255 / 255 - mean) / std, in float32
        assert (y[hit] == 0).all()


def curious(data: Data) -> list:
    """Everything that a method finds in its data without calling private functions: attributes, __dict__, what is in
    them."""
    todo, found = [vars(data), *(getattr(data, name) for name in dir(data) if not name.startswith("__"))], []
    while todo:
        thing = todo.pop()
        if isinstance(thing, dict):
            todo += list(thing.values())
        elif isinstance(thing, (list, tuple, set)):
            todo += list(thing)
        else:
            found.append(thing)
            todo += list(vars(thing).values()) if hasattr(thing, "__dict__") and not isinstance(thing, type) else []
    return found


@given(cases(), st.integers(0, 2), st.booleans())
def test_a22_nothing_tells_d_c(case, pad, flip):
    """A22: attributes, __dict__ and comparing inputs tell a method no more of D_c than its images and given labels
    do."""
    name, dataset, n, seed = case
    task = make_task(name, replace(dataset, train=replace(dataset.train, pad=pad, flip=flip)), n, seed, (0, 1))
    seen = []

    def method(model, data, forget, config, generator):
        seen.extend(thing for thing in curious(data) if isinstance(thing, (torch.Tensor, np.ndarray)))
        plain = torch.cat([x for _, x, _ in data.batches(dtype=torch.float64)])
        seen.append(((plain * 0.25 + 0.5) * 255 - data.images).abs().max() < 1e-9)  # nothing to tell apart
        return model

    net = small_net(0, dataset.train.images.shape[1], classes=dataset.train.classes)
    with mock.patch.object(experiment, "evaluate", return_value={}):
        row = experiment.unlearn(tiny(), "method", method, net, task, task.corrupted[:1])
    assert row["status"] == "ok", row["error"]
    *tensors, same = seen
    assert same and tensors
    assert all(any(tensor is known for known in (task.train.images, task.train.labels)) for tensor in tensors)


@given(cases())
def test_t13_inputs_not_mutated(case):
    """T13: the data set is left as it was; dtype, shape, device and memory format stay."""
    _, dataset, _, _ = case
    train = replace(dataset.train, images=dataset.train.images.contiguous(memory_format=torch.channels_last))
    dataset = replace(dataset, train=train)
    kept = [t.clone() for t in (train.images, train.labels, dataset.test.images, dataset.test.labels)]
    name, _, n, seed = case
    task = make_task(name, dataset, n, seed, (0, 1))
    discover(task, 1.0, seed)
    like_corrupted(task)
    fingerprint(task.train)
    now = train.images, train.labels, dataset.test.images, dataset.test.labels
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True)) and train._overlay is None
    assert task.train.images.stride() == train.images.stride() and task.train.images.dtype == torch.uint8
    assert task.train.labels.dtype == torch.int64 and task.train.classes == train.classes
    assert (task.train.mean, task.train.std) == (train.mean, train.std)


@pytest.mark.parametrize("name, n, pair, text", [
    ("poison", 25, None, "n is 25; it must be from 1 to 24"),
    ("poison", 0, None, "n is 0; it must be from 1 to 24"),
    ("random", -1, None, "n is -1; it must be from 1 to 24"),
    ("confusion", 14, (0, 1), "classes 0 and 1 have 6 and 6 images, so n can be at most 12"),
    ("confusion", 2, (1, 1), "pair is 1,1"),
    ("confusion", 2, (0, 4), "pair is 0,4; .*from 0 to 3"),
    ("confusion", 2, (7, 1), "pair is 1,7; .*from 0 to 3"),
    ("confusion", 2, (-1, 2), "pair is -1,2"),
    ("poisson", 2, None, "unknown task 'poisson'; choose one of poison, confusion, random"),
])
def test_t14_bad_numbers(name, n, pair, text):
    """T14: numbers that the data cannot give -> ValueError with the numbers."""
    with pytest.raises(ValueError, match=text):
        make_task(name, balanced(0), n, 0, pair)


@pytest.mark.parametrize("pair, text", [((2, 0), "classes 0 and 2 have 9 and 3 images, so n can be at most 6"),
                                        ((1, 0), "classes 0 and 1 have 9 and 6 images, so n can be at most 12")])
def test_t14_unequal_classes(pair, text):
    """T14: the message has both counts and the largest n, which is one that can be made."""
    labels = torch.tensor([0] * 9 + [1] * 6 + [2] * 3 + [3] * 6)
    dataset = balanced(0)
    dataset = replace(dataset, train=replace(dataset.train, labels=labels))
    with pytest.raises(ValueError, match=text):
        make_task("confusion", dataset, int(text.split()[-1]) + 2, 0, pair)
    assert len(make_task("confusion", dataset, int(text.split()[-1]), 0, pair).corrupted) == int(text.split()[-1])


@pytest.mark.parametrize("size", [1, 2])
def test_t14_small_images(size):
    """T14: images smaller than the trigger -> ValueError with both sizes; the other tasks take them."""
    with pytest.raises(ValueError, match=f"{size}x{size} is smaller than the 3x3 trigger"):
        make_task("poison", balanced(0, size=size), 2, 0)
    assert len(make_task("random", balanced(0, size=size), 2, 0).corrupted) == 2


@given(cases())
def test_t15_test_set(case):
    """T15: the test set is never corrupted, nor by what makes a copy that is."""
    _, dataset, _, _ = case
    task = make(case)
    kept = dataset.test.images.clone()
    assert task.test is dataset.test and task.test._overlay is None and not (task.test.pad or task.test.flip)
    like_corrupted(task)
    assert torch.equal(task.test.images, kept)


@given(cases())
def test_t15_test_images_corrupted_alike(case):
    """T15: a task's like on the test set: all with the trigger, those of the two classes, or all; clean labels
    throughout."""
    _, dataset, _, _ = case
    task = make(case)
    seen, labels = like_corrupted(task), dataset.test.labels
    kept = torch.arange(len(labels)) if task.name != "confusion" else (labels <= 1).nonzero().flatten()  # classes 0, 1
    plain = dataset.test.images[kept]
    assert torch.equal(seen.labels, labels[kept])
    assert torch.equal(seen.images, add_trigger(plain) if task.name == "poison" else plain)
    assert (seen is task.test) == (task.name == "random")


def test_t11_a_task_is_fixed():
    """T11: a task's labels are no attributes to set: a changed task is another object."""
    with pytest.raises(FrozenInstanceError):
        make_task("random", balanced(0), 4, 0).clean = None


# --- Stored labels ----------------------------------------------------------------------------------------------------


@given(cases())
def test_t16_round_trip(tmp_path_factory, case):
    """T16: a saved task loads as the very labels, clean labels, D_c and triggered images, even onto redrawn labels."""
    _, dataset, _, _ = case
    task, path = make(case), tmp_path_factory.mktemp("task") / "deep" / "er" / "task.pt"
    save_task(task, path)
    assert [p.name for p in path.parent.iterdir()] == ["task.pt"]
    redrawn = replace(dataset, train=replace(dataset.train, labels=dataset.train.labels.roll(1)))
    for onto in (dataset, redrawn):
        found = load_task(path, onto)
        assert_same_task(found, task)
        assert found.test is dataset.test
        assert torch.equal(discover(found, 1.0, 3), discover(task, 1.0, 3))


def test_t16_second_process(tmp_path):
    """T16: a second process with other random states sees the very labels."""
    task, path, out = make_task("random", balanced(7), 9, 3), tmp_path / "task.pt", tmp_path / "found.pt"
    save_task(task, path)
    here = Path(__file__).resolve().parent
    code = (f"import sys; sys.path[:0] = [{str(here)!r}, {str(here.parent)!r}]\n"
            "import torch, test_tasks as t\n"
            "torch.manual_seed(99)\n"
            f"task = t.load_task({str(path)!r}, t.balanced(7))\n"
            f"torch.save([task.train.labels, task.clean, task.corrupted, t.discover(task, 0.5, 1)], {str(out)!r})\n")
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = torch.load(out, weights_only=True)
    for a, b in zip(found, [task.train.labels, task.clean, task.corrupted, discover(task, 0.5, 1)], strict=True):
        assert torch.equal(a, b)


@given(seeds, st.integers(0, 23), st.integers(1, 255))
def test_t16_other_images(tmp_path_factory, seed, where, step):
    """T16: one pixel of one image changed, images left out or in another order -> ValueError; so is a missing file."""
    dataset, path = balanced(seed), tmp_path_factory.mktemp("task") / "task.pt"
    save_task(make_task("poison", dataset, 5, seed), path)
    images = dataset.train.images.clone()
    images[where, 0, 1, 2] = (int(images[where, 0, 1, 2]) + step) % 256
    shorter = replace(dataset.train, images=images[:-1], labels=dataset.train.labels[:-1])
    turned = replace(dataset.train, images=dataset.train.images.flip(0))
    for other in (replace(dataset.train, images=images), shorter, turned):
        with pytest.raises(ValueError, match="made from other training images"):
            load_task(path, replace(dataset, train=other))
    with pytest.raises(ValueError, match="no task file at"):
        load_task(path.with_name("absent.pt"), dataset)


@given(seeds, st.integers(0, 5), st.integers(1, 255))
def test_t16_another_test_set(tmp_path_factory, seed, where, step):
    """T16: a test set with one other pixel, one other label or one image less -> ValueError; a file from before test
    sets were noted loads."""
    dataset, path = balanced(seed), tmp_path_factory.mktemp("task") / "task.pt"
    save_task(make_task("poison", dataset, 5, seed), path)
    test = dataset.test
    images, labels, where = test.images.clone(), test.labels.clone(), where % len(test)
    images[where, 0, 1, 2] = (int(images[where, 0, 1, 2]) + step) % 256
    labels[where] = (labels[where] + 1) % test.classes
    for other in (replace(test, images=images), replace(test, labels=labels),
                  replace(test, images=test.images[1:], labels=test.labels[1:])):
        with pytest.raises(ValueError, match="made from other test images"):
            load_task(path, replace(dataset, test=other))
    content = torch.load(path, weights_only=True)
    del content["test"]
    torch.save(content, path)
    load_task(path, replace(dataset, test=replace(test, images=images)))


def test_t16_last_image():
    """T16: of 9,000 images one pixel of the last makes other data of them."""
    images = torch.zeros(9000, 1, 3, 3, dtype=torch.uint8)
    data = Data(images, torch.zeros(9000, dtype=torch.int64), 2, (0.5,), (0.5,))
    before = fingerprint(data)
    images[-1, 0, -1, -1] = 1
    assert fingerprint(data) != before


def test_t16_loads_no_code(tmp_path):
    """T16: a task file that holds code is refused, and the code does not run."""
    torch.save({"images": 0, "name": Evil(tmp_path / "ran")}, tmp_path / "task.pt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load_task(tmp_path / "task.pt", balanced(0))
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "task.pt", weights_only=False)  # the control: this one runs it
    assert (tmp_path / "ran").exists()


def test_t16_layout_of_images(tmp_path):
    """T16: the memory format of the images makes no other data of them."""
    dataset = balanced(0, channels=3)
    save_task(make_task("random", dataset, 5, 0), tmp_path / "task.pt")
    last = replace(dataset.train, images=dataset.train.images.contiguous(memory_format=torch.channels_last))
    load_task(tmp_path / "task.pt", replace(dataset, train=last))


def test_t16_other_shape(tmp_path):
    """T16: the same bytes as images of another shape are other images."""
    dataset = balanced(0, size=6)
    save_task(make_task("random", dataset, 5, 0), tmp_path / "task.pt")
    with pytest.raises(ValueError, match="made from other training images"):
        load_task(tmp_path / "task.pt", replace(dataset, train=replace(dataset.train,
            images=dataset.train.images.view(24, 1, 4, 9))))


@pytest.mark.parametrize("broken", ["os.replace", "os.fsync", "torch.save"])
def test_t16_whole_or_not_at_all(tmp_path, monkeypatch, broken):
    """T16: whichever step of writing fails, nothing half-written stays and an older file is as it was."""
    first, second = (make_task("random", balanced(0), 5, seed) for seed in (0, 1))
    path = tmp_path / "task.pt"
    module, name = {"os": tasks_module.os, "torch": torch}[broken.split(".")[0]], broken.split(".")[1]

    def fail(*args, **kwargs):
        if broken == "torch.save":
            args[1].write(b"half")
        raise OSError("the disk is full")

    for before in (0, 1):
        if before:
            save_task(first, path)
        with monkeypatch.context() as patch, pytest.raises(OSError, match="disk is full"):
            patch.setattr(module, name, fail)
            save_task(second, path)
        assert len(list(tmp_path.iterdir())) == before
    assert_same_task(load_task(path, balanced(0)), first)


def test_default_task_settings():
    """T7: the default n and discovery of the settings make a task on data of their size."""
    assert (Config.n, Config.discovery) == (1000, 0.5)
    task = make_task("poison", balanced(0, n=1200, size=3), Config.n, Config.seed)
    assert len(discover(task, Config.discovery, Config.seed)) == 500
