"""results/repair/rivals/: trials that follow from a seed, the rate that a user would take."""

import pytest
import torch

from results.repair.rivals import measure
from results.repair.rivals.trials import CORRUPTIONS, N, TARGET, corrupt


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_trial(name):
    """The same seed gives the same trial and another seed another; what is bad has a wrong label, and all else a right
    one; held-out images and those of the other source are none of the training images."""
    one, same, other = corrupt(name, 0), corrupt(name, 0), corrupt(name, 1)
    assert torch.equal(one.train.images, same.train.images) and torch.equal(one.known, same.known)
    assert not torch.equal(one.train.images, other.train.images)
    assert (one.train.labels != one.truth).nonzero()[:, 0].tolist() == one.bad.tolist()
    assert len(one.bad) == (60 if name in ("pair", "labels") else 30) and len(one.known) == 0.4 * len(one.bad)
    assert torch.isin(one.known, one.bad).all()
    seen = {image.numpy().tobytes() for image in one.train.images}
    assert len(seen) == N
    for data in (one.heldout, one.other):
        assert not seen & {image.numpy().tobytes() for image in data.images}
    misled = one.alike.labels != TARGET
    assert misled.all() or name in ("pair", "labels")


@pytest.mark.parametrize("impure, good", [(0.0, 0), (0.1, 1), (0.3, 5)])
def test_an_impure_list(impure, good):
    """The bad ones that are known stay on it, and good ones come to them, the same images being trained on."""
    pure, mixed = corrupt("patch", 0), corrupt("patch", 0, impure)
    assert torch.equal(pure.train.labels, mixed.train.labels) and torch.isin(pure.known, mixed.known).all()
    assert int((~torch.isin(mixed.known, mixed.bad)).sum()) == good == len(mixed.known) - len(pure.known)


def tried(*rows):
    """Rows of (rate, listed, heldout)."""
    return [dict(zip(("rate", "listed", "heldout"), row, strict=True)) for row in rows]


@pytest.mark.parametrize("rows, rate", [
    ([(1, 1.0, 0.95), (2, 0.1, 0.90), (3, 0.0, 0.80)], 2),  # the best on held-out images believes the list
    ([(1, 0.2, 0.90), (2, 0.1, 0.90)], 1),  # the first of equal ones
    ([(1, 0.9, 0.95), (2, 0.5, 0.60), (3, 0.5, 0.70)], 3),  # none has forgotten it
])
def test_the_rate_that_a_user_would_take(rows, rate):
    """Of those that leave at most a fifth of the list at its labels the best on held-out images, else of those that
    leave the fewest."""
    assert measure.chosen(tried(*rows))["rate"] == rate


def test_auroc():
    """A share of pairs, ties by half."""
    assert measure.auroc(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0])) == 3.5 / 4
