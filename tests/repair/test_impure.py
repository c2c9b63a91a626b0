"""Listed images that are perhaps good (repair/impure.py): lists with a look and without, and when it is silent."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import gen, seeds
from repair.impure import look_good, told
from repair.looks import crossed, looking_alike

N, BAD, LISTED = 300, 30, torch.arange(0, 30, 2)
NONE = torch.zeros(N, dtype=torch.bool)


def features(seed, shift):
    """Features of N images, the first BAD of them with a look."""
    h = torch.randn(N, 6, generator=gen(seed), dtype=torch.float64)
    h[:BAD, 0] += shift
    return h


@pytest.mark.parametrize("seed", range(3))
def test_a_list_with_a_look(seed):
    """Good images on the list do not have its look: most are doubted, hardly a bad one, and of a list without good ones
    hardly any; the margins, by which all of them would be, decide nothing."""
    h, labels, margins = features(seed, 6), torch.zeros(N, dtype=torch.int64), torch.zeros(N)
    margins[:BAD] = -20
    good = torch.tensor([250, 210, 290, 230])
    found = []
    for listed in (LISTED, torch.cat([good, LISTED])):
        alike = looking_alike(h, labels, listed, 0)
        assert alike.any()
        found.append(look_good(listed, margins, crossed(h, listed), alike).tolist())
    pure, impure = found
    assert len(pure) <= 1 and len(set(impure) - set(good.tolist())) <= 2
    assert len(set(impure) & set(good.tolist())) >= 2 and impure == sorted(impure)


@given(seeds, st.integers(0, 10))
def test_a_list_without_a_look(seed, count):
    """Wrong labels are learnt with less margin than right ones, good images on the list with as much as others: those
    beyond the median of the unlisted are doubted, as in sorting by hand, and no bad one is."""
    margins = -2 - torch.rand(N, generator=gen(seed), dtype=torch.float64)
    margins[:BAD] += 2
    listed = torch.cat([torch.arange(200, 200 + count), LISTED])
    rest = sorted(margins[[i for i in range(N) if i not in listed.tolist()]].tolist())
    middle = (rest[(len(rest) - 1) // 2] + rest[len(rest) // 2]) / 2
    expected = [i for i in range(200, 200 + count) if margins[i] < middle]
    assert look_good(listed, margins, torch.zeros(N), NONE).tolist() == expected


def test_when_it_is_silent():
    """Fewer than four listed images, no likeness, nothing unlisted, or more than half of the list in doubt: then none
    is doubted, since the scores say nothing of it."""
    margins = torch.linspace(-1, 1, N)
    doubted = torch.tensor([0, 1, 298, 299])
    assert look_good(doubted, margins, margins, NONE).tolist() == [0, 1]
    assert look_good(doubted[:3], margins, margins, NONE).tolist() == []
    assert look_good(doubted, margins, None, NONE).tolist() == []
    assert look_good(torch.tensor([0, 1, 2, 299]), margins, margins, NONE).tolist() == []
    assert look_good(torch.arange(N), margins, margins, NONE).tolist() == []


def test_the_order_of_the_list_decides_nothing():
    """Indices come back sorted, whatever their order was, and the list stays as it was."""
    margins, listed = torch.linspace(-1, 1, N), torch.tensor([299, 1, 298, 0])
    assert look_good(listed, margins, margins, NONE).tolist() == [0, 1] and listed.tolist() == [299, 1, 298, 0]


@pytest.mark.parametrize("count, end", [(1, "good ones, 0.png; look"), (5, "3.png, 4.png; look"),
                                        (7, "4.png and 2 more; look")])
def test_the_line(count, end):
    """It says how many of how many, names five, and what to do."""
    line = told([f"{i}.png" for i in range(count)], 20)
    assert line.startswith(f"the list looks impure: {count} of its 20 images look like ") and end in line
