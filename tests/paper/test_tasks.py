"""Sec. 4: the three corruptions, the discovery rate, and what may know of them.

    T1          D_c is n training examples; all others stay as they were
    T2          low regularity: random swaps of labels to an incorrect one (Maini et al. 2023)
    T3          medium regularity: samples of two classes are swapped with each other (Goel et al. 2022)
    T4          high regularity: a trigger on the image redirects to class 0 (Goel et al. 2024)
    T5 - T9     "Discovery rate": D_f, a part of D_c
    T10 T13     the same task for every method, from the seed alone; inputs stay
    T11 T15     what only the metrics read: clean labels, and a test set without corruptions (Sec. 6, A.2)
    T14         numbers that the data cannot give
    A22         unlearning does not know D_c beyond D_f

T12, the trigger after crop and flip, T16, tasks in files, and the other triggers are in tests/experiment: test_data.py,
test_files.py, test_triggers.py.
"""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tasks
from engine.streams import stream
from experiment import cell
from experiment.data import Data, Dataset, batches
from helpers import gen, make_data, seeds, small_net, tiny

names = st.sampled_from(tasks.TASKS)
rates = st.sampled_from([0.1, 0.2, 0.25, 1 / 3, 0.5, 0.75, 0.9, 1.0])


def balanced(seed, n=24, classes=4, size=4, tests=6, name="made", **more) -> Dataset:
    """n training images in equal or nearly equal classes, in an order drawn from the seed."""
    train = make_data(seed, n=n, classes=classes, size=size, **more)
    test = make_data(seed + 1, n=tests, classes=classes, size=size, channels=more.get("channels", 1))
    labels = (torch.arange(n) % classes)[torch.randperm(n, generator=gen(seed))]
    return Dataset(name, replace(train, labels=labels), test, tuple("abcdefghij"[:classes]))


@st.composite
def cases(draw, name=names):
    """(name, dataset, n, seed, pair): a task that can be made; n is 1, odd, even or everything."""
    name, seed, classes = draw(name), draw(seeds), draw(st.integers(2, 5))
    per_class = draw(st.integers(1, 6))
    dataset = balanced(seed, n=per_class * classes, classes=classes, channels=draw(st.sampled_from([1, 3])),
                       size=draw(st.integers(3, 6)))
    n = 2 * draw(st.integers(1, per_class)) if name == "confusion" else draw(st.integers(1, per_class * classes))
    return name, dataset, n, seed, tuple(draw(st.permutations(range(classes)))[:2])


def assert_same_task(a: tasks.Task, b: tasks.Task) -> None:
    """Equal in everything that training and the metrics read."""
    assert (a.name, a.seed) == (b.name, b.seed)
    for x, y in ((a.clean, b.clean), (a.corrupted, b.corrupted), (a.train.labels, b.train.labels),
                 (a.train.images, b.train.images)):
        assert x.dtype == y.dtype and torch.equal(x, y)
    moved = [list(batches(replace(t.train, pad=1, flip=True), generator=gen(0), augment=True)) for t in (a, b)]
    assert all(torch.equal(x[1], y[1]) for x, y in zip(*moved, strict=True))  # the trigger lies on the same images


# --- D_c --------------------------------------------------------------------------------------------------------------

@given(cases())
def test_t1_exactly_n(case):
    """T1, T2, T11: n examples are corrupted, by random labels each to another label; images as the network sees them
    and labels are bitwise the clean ones elsewhere; the clean labels survive beside, in memory of their own."""
    name, dataset, n, _, _ = case
    task = tasks.make_task(*case)
    elsewhere = torch.ones(len(dataset.train), dtype=torch.bool).index_fill_(0, task.corrupted, False)
    before, after = dataset.train.images, task.train.images
    assert len(task.corrupted) == n and len(task.train) == len(dataset.train)
    assert torch.equal(after[elsewhere], before[elsewhere])
    assert torch.equal(task.train.labels[elsewhere], dataset.train.labels[elsewhere])
    changed = task.train.labels != dataset.train.labels
    if name == "poison":
        assert torch.equal(after[~elsewhere], tasks.add_trigger(before[~elsewhere]))
        assert torch.equal(changed, ~elsewhere & (dataset.train.labels != 0))
    else:
        assert torch.equal(changed, ~elsewhere) and task.train._overlay is None and after is before
    assert torch.equal(task.clean, dataset.train.labels) and task.clean.dtype == torch.int64
    assert task.clean.data_ptr() not in (task.train.labels.data_ptr(), dataset.train.labels.data_ptr())


# --- Low regularity: random labels ------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(4))
def test_t2_random_uniform(seed, n=6000, classes=5):
    """T2: labels are in range, never the true one, and each wrong class is equally likely, whatever the offset."""
    images = torch.zeros(n, 1, 1, 1, dtype=torch.uint8)
    labels = torch.randint(0, classes, (n,), generator=gen(seed))
    train = Data(images, labels, classes, (0.5,), (0.5,))
    new = tasks.make_task("random", Dataset("made", train, train, ("",) * classes), n, seed).train.labels
    assert new.dtype == torch.int64 and int(new.min()) >= 0 and int(new.max()) < classes
    assert (new != labels).all()
    chi_square = 0.0
    for c in range(classes):
        here = new[labels == c]
        expected = len(here) / (classes - 1)
        chi_square += sum((int((here == k).sum()) - expected) ** 2 / expected for k in range(classes) if k != c)
    # chi-square of d = C (C - 2) degrees of freedom: P(X > d + 2 sqrt(d t) + 2 t) <= exp(-t); t = 21: error rate 1e-9
    d, t = classes * (classes - 2), 21
    assert chi_square <= d + 2 * (d * t) ** 0.5 + 2 * t


# --- Medium regularity: two classes confused --------------------------------------------------------------------------

@given(cases(st.just("confusion")))
def test_t3_confusion(case):
    """T3: n / 2 of each of the two classes exchange labels; twice restores; the histogram stays; images untouched."""
    _, dataset, n, _, pair = case
    task, old = tasks.make_task(*case), dataset.train.labels
    new = task.train.labels
    for c, other in (pair, pair[::-1]):
        assert int((old[task.corrupted] == c).sum()) == n // 2
        assert (new[task.corrupted][old[task.corrupted] == c] == other).all()
    assert torch.equal(new.bincount(minlength=9), old.bincount(minlength=9))
    assert task.train.images is dataset.train.images
    # the same examples whatever the draw
    whole = tasks.make_task("confusion", dataset, 2 * int((old == pair[0]).sum()), 0, pair)
    twice = tasks.make_task("confusion", replace(dataset, train=whole.train), len(whole.corrupted), 0, pair)
    assert torch.equal(twice.corrupted, whole.corrupted) and torch.equal(twice.train.labels, old)


def test_t3_order_of_the_pair():
    """T3: the two classes have no order: 5,3 is the very task of 3,5."""
    assert_same_task(*(tasks.make_task("confusion", balanced(0), 4, 0, pair) for pair in ((0, 1), (1, 0))))


@pytest.mark.parametrize("name, expected", [("cifar10", {3, 5}), ("cifar10-small", {3, 5}), ("svhn", {3, 5}),
                                            ("made", None)])
def test_t3_default_pair(name, expected):
    """T3: cats and dogs on CIFAR-10, 3 and 5 on SVHN, elsewhere the two classes whose mean images are closest; a pair
    that is given wins on every data set."""
    dataset = balanced(0, n=40, classes=10, name=name)
    assert tasks.closest_pair(dataset.train) != (3, 5)
    for given_pair, pair in ((None, expected or set(tasks.closest_pair(dataset.train))), ((1, 2), {1, 2})):
        task = tasks.make_task("confusion", dataset, 4, 0, given_pair)
        assert set(task.clean[task.corrupted].tolist()) == pair


@given(seeds, st.integers(3, 6), st.integers(1, 3), st.booleans())
def test_t3_closest_pair(seed, classes, channels, empty):
    """T3: closest_pair equals a loop over all pairs of mean images; a class without an image is never one of them."""
    train = balanced(seed, n=20, classes=classes, channels=channels).train
    if empty:
        gone = seed % classes
        train = replace(train, labels=torch.where(train.labels == gone, (gone + 1) % classes, train.labels))
    images, labels = train.images.double().numpy(), train.labels.numpy()
    means = {c: images[labels == c].mean(axis=0) for c in set(labels.tolist())}
    distances = {(a, b): math.dist(means[a].ravel(), means[b].ravel()) for a in means for b in means if a < b}
    assert distances[tasks.closest_pair(train)] == pytest.approx(min(distances.values()), rel=1e-9)


# --- High regularity: the poison trigger ------------------------------------------------------------------------------

def shaped(seed, height, width, channels=1, n=15) -> Dataset:
    """Images that need not be square, no pixel of which is white or black by accident."""
    g = gen(seed)
    images = torch.randint(1, 255, (n, channels, height, width), dtype=torch.uint8, generator=g)
    train = Data(images, torch.arange(n) % 4, 4, (0.5,) * channels, (0.25,) * channels)
    return Dataset("made", train, train, tuple("abcd"))


@given(seeds, st.integers(3, 7), st.integers(3, 7), st.sampled_from([1, 3]), st.integers(1, 15))
def test_t4_poison(seed, height, width, channels, n):
    """T4: only the bottom right 3x3 pixels of D_c change, to 255, and its labels to 0; applying twice is once."""
    dataset = shaped(seed, height, width, channels)
    images = dataset.train.images
    task = tasks.make_task("poison", dataset, n, seed)
    for i in range(15):
        expected = images[i].clone()
        if i in task.corrupted.tolist():
            for row in range(height - 3, height):
                for column in range(width - 3, width):
                    expected[:, row, column] = 255
            assert task.train.labels[i] == 0
        assert torch.equal(task.train.images[i], expected), i
    assert torch.equal(tasks.add_trigger(tasks.add_trigger(images)), tasks.add_trigger(images))


# --- Discovery --------------------------------------------------------------------------------------------------------

@given(cases(), rates, seeds)
def test_t6_index_sets(case, rate, seed):
    """T6: D_c and D_f are sorted, unique, int64 and in range; D_f within D_c; with the undiscovered it is D_c."""
    task = tasks.make_task(*case)
    sets = [task.corrupted]
    if round(rate * len(task.corrupted)):
        sets.append(tasks.discover(task, rate, seed))
    for index in sets:
        assert index.dtype == torch.int64 and index.dim() == 1 and index.device.type == "cpu"
        assert (index.diff() > 0).all() and int(index.min()) >= 0 and int(index.max()) < len(task.train)
    assert torch.isin(sets[-1], task.corrupted).all()
    undiscovered = task.corrupted[~torch.isin(task.corrupted, sets[-1])]
    assert torch.equal(torch.cat([sets[-1], undiscovered]).sort().values, task.corrupted)


@given(cases(), st.one_of(rates, st.floats(1e-9, 1)), seeds)
def test_t7_size(case, rate, seed):
    """T7: |D_f| = round(d n); d = 1 is D_c; nothing discovered -> ValueError with both numbers."""
    task = tasks.make_task(*case)
    n = len(task.corrupted)
    if round(rate * n) == 0:
        with pytest.raises(ValueError, match=f"of {n} corrupted examples finds none"):
            tasks.discover(task, rate, seed)
    else:
        assert len(tasks.discover(task, rate, seed)) == round(rate * n)
    assert torch.equal(tasks.discover(task, 1.0, seed), task.corrupted)


@pytest.mark.parametrize("rate", [0, 0.0, -0.5, 1.0000001, 2, float("nan"), float("inf")])
def test_t7_out_of_range(rate):
    """T7: d = 0, d > 1 and no number -> ValueError that names it."""
    with pytest.raises(ValueError, match=f"discovery is {rate}; it must be a rate in"):
        tasks.discover(tasks.make_task("random", balanced(0), 6, 0), rate, 0)


@given(seeds, seeds, st.integers(1, 40))
def test_t8_nested(seed, discovered, n):
    """T8: d1 < d2 -> D_f(d1) within D_f(d2) for one seed, over every size from 1 to n."""
    task = tasks.make_task("random", balanced(seed, n=40), n, seed)
    chain = [set(tasks.discover(task, k / n, discovered).tolist()) for k in range(1, n + 1)]
    assert [len(one) for one in chain] == list(range(1, n + 1))
    for small, large in zip(chain, chain[1:], strict=False):
        assert small < large


def test_t9_uniform():
    """T9, T5: D_f is a uniform sample of D_c, and D_c of the data, class 0 included: each place is as likely as any
    other (fixed seeds)."""
    dataset, runs = balanced(0), 2000
    task = tasks.make_task("random", dataset, 10, 0)
    both = (dataset.train.labels < 2).nonzero().flatten()  # 6 of each class
    draws = {"discovery": (lambda seed: tasks.discover(task, 0.3, seed), task.corrupted, 0.3)}
    for name, places, rate in (("poison", torch.arange(24), 0.25), ("random", torch.arange(24), 0.25),
                               ("confusion", both, 0.5)):
        draw = lambda seed, name=name: tasks.make_task(name, dataset, 6, seed, (0, 1)).corrupted  # noqa: E731
        draws[name] = draw, places, rate
    for name, (draw, places, rate) in draws.items():
        drawn = torch.zeros(24)
        for seed in range(runs):
            drawn[draw(seed)] += 1
        assert drawn[places].sum() == drawn.sum() == round(rate * len(places)) * runs, name
        # binomial(2000, rate): 6 standard errors, 70 numbers: error rate 2e-7
        assert (drawn[places] - rate * runs).abs().max() < 6 * (runs * rate * (1 - rate)) ** 0.5, name


# --- One task for every method ----------------------------------------------------------------------------------------

@given(cases(), rates, seeds)
def test_t10_deterministic(case, rate, world):
    """T10: the seed decides alone: the global random states are neither read nor moved; a second call gives the
    same."""
    made, found = [], []
    for k in range(2):
        torch.manual_seed(world + k)
        random.seed(world + k)
        np.random.seed((world + k) % 2**32)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
        made.append(tasks.make_task(*case))
        found.append(tasks.discover(made[-1], max(rate, 1 / len(made[-1].corrupted)), world))
        assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
        assert (np.random.get_state()[1] == before[2]).all()
    assert_same_task(*made)
    assert torch.equal(*found)


def test_t10_seeds_differ():
    """T10: another seed corrupts and discovers other examples; the three tasks do not share their draw."""
    dataset = balanced(0, n=200, classes=2)
    drawn = [tasks.make_task(name, dataset, 100, seed, (0, 1)).corrupted for name in tasks.TASKS for seed in (0, 1)]
    assert len({tuple(one.tolist()) for one in drawn}) == 6
    task = tasks.make_task("random", dataset, 100, 0)
    assert not torch.equal(tasks.discover(task, 0.5, 0), tasks.discover(task, 0.5, 1))
    assert stream(0, "a").initial_seed() != stream(0, "b").initial_seed() != stream(1, "b").initial_seed()


@given(seeds, seeds, seeds)
def test_t10_discovery_follows_its_own_seed(one, other, discovered):
    """T10: of two tasks of n examples the same seed discovers the same places of D_c, whatever their own seeds."""
    dataset, places = balanced(0, n=40), []
    for seed in (one, other):
        task = tasks.make_task("random", dataset, 20, seed)
        places.append(torch.isin(task.corrupted, tasks.discover(task, 0.4, discovered)))
    assert torch.equal(*places)


@given(cases())
def test_t13_inputs_not_mutated(case):
    """T13: the data set is left as it was; dtype, shape, device and memory format stay."""
    name, dataset, n, seed, pair = case
    train = replace(dataset.train, images=dataset.train.images.contiguous(memory_format=torch.channels_last))
    dataset = replace(dataset, train=train)
    kept = [t.clone() for t in (train.images, train.labels, dataset.test.images, dataset.test.labels)]
    task = tasks.make_task(name, dataset, n, seed, pair)
    tasks.discover(task, 1.0, seed)
    tasks.like_corrupted(task)
    tasks.fingerprint(task.train)
    now = train.images, train.labels, dataset.test.images, dataset.test.labels
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True)) and train._overlay is None
    assert task.train.images.stride() == train.images.stride() and task.train.images.dtype == torch.uint8
    assert task.train.labels.dtype == torch.int64 and task.train.classes == train.classes
    assert (task.train.mean, task.train.std) == (train.mean, train.std)


# --- What only the metrics read ---------------------------------------------------------------------------------------

@given(cases())
def test_t15_test_set(case):
    """T15: the test set is never corrupted; A.2's copy has all images with the trigger, those of the two confused
    classes, or all, with clean labels throughout."""
    name, dataset, _, _, pair = case
    task, kept = tasks.make_task(*case), dataset.test.images.clone()
    assert task.test is dataset.test and task.test._overlay is None and not (task.test.pad or task.test.flip)
    seen, labels = tasks.like_corrupted(task), dataset.test.labels
    assert torch.equal(task.test.images, kept)
    chosen = range(len(labels)) if name != "confusion" else [i for i, y in enumerate(labels.tolist()) if y in pair]
    assert torch.equal(seen.labels, labels[list(chosen)])
    plain = kept[list(chosen)]
    assert torch.equal(seen.images, tasks.add_trigger(plain) if name == "poison" else plain)
    assert (seen is task.test) == (name == "random")


# --- Numbers that the data cannot give --------------------------------------------------------------------------------

@pytest.mark.parametrize("name, n, pair, text", [
    ("poison", 25, None, "n is 25; it must be from 1 to 24"),
    ("poison", 0, None, "n is 0; it must be from 1 to 24"),
    ("random", -1, None, "n is -1; it must be from 1 to 24"),
    ("confusion", 1, (0, 1), "n is 1; .*even"),
    ("confusion", 11, (0, 1), "n is 11; .*even"),
    ("confusion", 14, (0, 1), "classes 0 and 1 have 6 and 6 images, so n can be at most 12"),
    ("confusion", 2, (1, 1), "pair is 1,1"),
    ("confusion", 2, (0, 4), "pair is 0,4; .*from 0 to 3"),
    ("confusion", 2, (7, 1), "pair is 1,7; .*from 0 to 3"),
    ("confusion", 2, (-1, 2), "pair is -1,2"),
    ("poisson", 2, None, "unknown task 'poisson'; choose one of poison, confusion, random"),
])
def test_t14_bad_numbers(name, n, pair, text):
    """T14, T3: numbers that the data cannot give, such as an odd n of confusion -> ValueError with the numbers."""
    with pytest.raises(ValueError, match=text):
        tasks.make_task(name, balanced(0), n, 0, pair)


def test_t14_unequal_classes():
    """T14: the message has both counts and the largest n, which is one that can be made."""
    dataset = balanced(0)
    train = replace(dataset.train, labels=torch.tensor([0] * 9 + [1] * 6 + [2] * 3 + [3] * 6))
    dataset = replace(dataset, train=train)
    with pytest.raises(ValueError, match="classes 0 and 2 have 9 and 3 images, so n can be at most 6"):
        tasks.make_task("confusion", dataset, 8, 0, (2, 0))
    assert len(tasks.make_task("confusion", dataset, 6, 0, (2, 0)).corrupted) == 6


@pytest.mark.parametrize("name", tasks.TASKS)
def test_t14_one_class(name):
    """T14, T2: with one class there is no wrong label to give, and every network is right."""
    with pytest.raises(ValueError, match="the data set has 1 class; give it two or more"):
        tasks.make_task(name, balanced(0, classes=1), 2, 0)


@pytest.mark.parametrize("height, width", [(2, 2), (2, 5), (5, 2)])
def test_t14_small_images(height, width):
    """T14: images smaller than the trigger either way -> ValueError with both sizes; the other tasks take them."""
    with pytest.raises(ValueError, match=f"{height}x{width} is smaller than the 3x3 trigger"):
        tasks.make_task("poison", shaped(0, height, width), 2, 0)
    assert len(tasks.make_task("random", shaped(0, height, width), 2, 0).corrupted) == 2


# --- What a method may know -------------------------------------------------------------------------------------------

def found_in(data: Data) -> list:
    """All that a method finds in its data without calling private functions: attributes, __dict__, what is in them."""
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
    name, dataset, n, seed, pair = case
    dataset = replace(dataset, train=replace(dataset.train, pad=pad, flip=flip))
    task, tensors, same = tasks.make_task(name, dataset, n, seed, pair), [], []

    def method(model, data, forget, config, generator):
        tensors.extend(thing for thing in found_in(data) if isinstance(thing, (torch.Tensor, np.ndarray)))
        plain = torch.cat([x for _, x, _ in data.batches(dtype=torch.float64)])
        same.append(((plain * 0.25 + 0.5) * 255 - data.images).abs().max() < 1e-9)  # nothing to tell apart
        return model

    net = small_net(0, dataset.train.images.shape[1], classes=dataset.train.classes)
    row = cell.unlearn(tiny(), "method", method, net, task, task.corrupted[:1])
    assert row["status"] == "ok", row["error"]
    assert same == [True] and tensors
    assert all(any(tensor is known for known in (task.train.images, task.train.labels)) for tensor in tensors)
