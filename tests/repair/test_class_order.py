"""The order of the classes, found by matching (repair/class_order.py), and what the command does with it (P2)."""

import itertools
import re
import shlex

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from colours import began, call, colours  # noqa: F401
from helpers import gen, seeds
from repair import mismatch
from repair.class_order import another_order, assignment, write_order

# --- The matching -----------------------------------------------------------------------------------------------------

@settings(max_examples=60)
@given(seeds, st.integers(1, 6), st.sampled_from([1, 2, 4, 1000]), st.booleans())
def test_the_matching_is_the_best_of_all(seed, n, most, product):
    """P2: the largest sum of all permutations, then the most classes that stay; of large products too."""
    draw = np.random.default_rng(seed)
    counts = draw.integers(0, most, (n, n))
    if product:
        counts = draw.integers(0, 30, (n, 1)) * draw.integers(0, 30, (1, n)) + draw.integers(0, 9, (n, n))
    found = assignment(counts)

    def worth(columns):
        return sum(counts[i, k] for i, k in enumerate(columns)), sum(i == k for i, k in enumerate(columns))

    assert sorted(found) == list(range(n))
    assert worth(found) == max(worth(columns) for columns in itertools.permutations(range(n)))


def predictions(seed: int, classes: int, n: int, right: float):
    """Labels, an order of the classes, and predictions that are right in it for a share of the images."""
    g = gen(seed)
    labels, order = torch.arange(n) % classes, torch.randperm(classes, generator=g)
    noise = torch.randint(0, classes, (n,), generator=g)
    return torch.where(torch.rand(n, generator=g) < right, order[labels], noise), labels, order


@pytest.mark.parametrize("classes, n, right", [(2, 60, 0.9), (3, 90, 1.0), (10, 300, 0.6), (10, 60, 0.9),
                                               (40, 160, 1.0), (300, 1800, 0.9)])
@pytest.mark.parametrize("way", ["in turn", "one after another"])
def test_an_order_is_found(classes, n, right, way):
    """P2: few classes or many, images of each in plenty or few, one class after another or mixed; the share is that of
    images that had no say in it."""
    for seed in range(5):
        predicted, labels, order = predictions(seed, classes, n, right)
        if way == "one after another":
            predicted, labels = predicted[labels.argsort(stable=True)], labels.sort().values
        if torch.equal(order, torch.arange(classes)):
            assert another_order(predicted, labels, classes) is None
            continue
        found = another_order(predicted, labels, classes)
        assert np.mean(found.outputs == order.numpy()) > 0.98 and found.share <= 1
        assert abs(found.share - (right + (1 - right) / classes)) < 5 * (0.25 / n) ** 0.5 + 0.03
        assert found.share == 1 or right < 1
        assert [int(order[c]) for c in found.classes] == list(range(classes)) or classes == 300


@pytest.mark.parametrize("classes, n", [(2, 12), (2, 200), (10, 20), (12, 72), (200, 200)])
def test_what_matching_finds_in_noise_is_no_order(classes, n):
    """P2: a matching hits many random predictions that it was made from; it is no order, nor is one class for all."""
    for seed in range(40):
        predicted, labels, _ = predictions(seed, classes, n, 0.0)
        assert another_order(predicted, labels, classes) is None
    assert another_order(torch.zeros_like(labels), labels, classes) is None


def test_two_classes_change_places_by_more_than_chance():
    """P2: of two classes half fits by chance, so Cohen's kappa tells: 0.6 is an order, 0.4 none; one class is none."""
    labels = torch.arange(400) % 2
    for right, found in ((7, False), (8, True)):
        predicted = torch.where(torch.arange(400) // 2 % 10 < right, 1 - labels, labels)
        assert (another_order(predicted, labels, 2) is not None) == found
    for n, found in ((16, True), (14, False)):  # all change places: four standard deviations above chance, or less
        assert (another_order(1 - labels[:n], labels[:n], 2) is not None) == found
    for n in (40, 1, 0):
        assert another_order(torch.ones(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64), 2) is None


# --- The class map ----------------------------------------------------------------------------------------------------

def test_a_class_map_replaces_nothing(tmp_path):
    """P2: another file of its name stays, and the next free name is taken; the same content is written once."""
    file = tmp_path / "x.classes.txt"
    assert write_order(["b", "ü"], file) == file and file.read_text(encoding="utf-8") == "b\nü\n"
    assert write_order(["b", "ü"], file) == file
    second = write_order(["a"], file)
    assert second == tmp_path / "x.classes-2.txt" and file.read_text(encoding="utf-8") == "b\nü\n"
    assert write_order(["c"], file).name == "x.classes-3.txt" and write_order(["a"], file) == second
    assert write_order(["a\nb"], tmp_path / "y.txt") is write_order([" a"], tmp_path / "y.txt") is None
    assert write_order(["\udcff"], tmp_path / "y.txt") is write_order(["a"], file / "y.txt") is None
    assert not (tmp_path / "y.txt").exists()


def test_the_command_finds_the_order_and_goes_on_with_it(colours, capsys):
    """P2: an order that no tool has is printed and written; with the flag that is printed the network fits."""
    stored, order = torch.load(colours["--checkpoint"], weights_only=True), [7, 3, 11, 0, 1, 2, 10, 9, 8, 4, 6, 5]
    stored |= {name: stored[name][order] for name in ("4.weight", "4.bias")}
    torch.save(stored, colours["--checkpoint"])
    assert call({**colours, "--force": None}) == 2
    told = capsys.readouterr()
    assert not began(told.out)
    line = told.err.strip().splitlines()[-1]
    assert "98.6% with another order of classes, 7, 3, 11, 0, 1, 2, 10, 9, 8, 4, 6, 5: add --class-map " in line
    flag, file = shlex.split(re.search(r"add (--class-map .*), which has it", line)[1])
    assert file == str(colours["--out"].with_name("repaired.classes.txt"))
    assert call({**colours, flag: file}, "--epochs", 0) == 0
    told = capsys.readouterr()
    assert "accuracy on the labels as given: 0.986 without the known bad, 0.000 on these" in told.out  # 69 of 70
    assert told.err == "warning: the network has not learnt the known bad labels, so there is little to repair\n"


def test_a_usual_order_needs_few_images():
    """P2: timm's order is found with an image a class, where a matching cannot be judged."""
    names = sorted(str(i) for i in range(12))
    places = torch.tensor([int(name) for name in names])
    labels = torch.arange(12)
    assert another_order(places[labels], labels, 12) is None
    ((share, words, order),) = mismatch.orders(places[labels], labels, names)
    assert share == 1 and words.startswith("timm's order of classes, 0, 1, 2") and order[2] == "2"
