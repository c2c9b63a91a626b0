"""Any torch Dataset in place of Data (experiment/data.py, Streamed): the same numbers, whoever reads the samples.

A repair on one is in repair/test_repair_command.py.
"""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import IterableDataset

from experiment.cell import unlearn
from experiment.data import Streamed
from experiment.methods import METHODS
from helpers import gen, make_data, seeds, small_net, streamed, tiny
from tasks import Task

# On random data rounding decides whether a cap is reached.
pytestmark = pytest.mark.filterwarnings("ignore:Acc")


class Samples:
    """The images and labels of a Data as a torch Dataset, each put through `transform`."""

    def __init__(self, data, transform=torch.clone):  # a name of a module, as what starts processes may need it
        self.data, self.transform = data, transform

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        return self.transform(self.data.images[i]), int(self.data.labels[i])


def assert_same_pass(one, other):
    """Two passes are equal bit for bit, layout of memory included."""
    for left, right in zip(one, other, strict=True):
        for a, b in zip(left, right, strict=True):
            assert torch.equal(a, b) and a.dtype == b.dtype and a.stride() == b.stride()


# --- Batches ----------------------------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 12), st.integers(1, 7), st.integers(0, 2), st.booleans(), st.booleans())
def test_batches_are_those_of_data(seed, n, size, pad, flip, augment):
    """U1: for uint8 images every pass is Data's bit for bit: order, crop, flip, normalisation, generator's state."""
    data = make_data(seed, n=n, channels=3, pad=pad, flip=flip)
    twin, index = streamed(data), torch.randint(0, n, (n,), generator=gen(seed))
    assert len(twin) == n and torch.equal(twin.labels, data.labels) and twin.augments == data.augments
    for where, dtype in ((None, torch.float32), (index, torch.float64), (index, torch.bfloat16)):
        a, b = gen(seed), gen(seed)
        how = dict(size=size, augment=augment, dtype=dtype)
        assert_same_pass(data.batches(where, generator=a, **how), twin.batches(where, generator=b, **how))
        assert torch.equal(a.get_state(), b.get_state())
    assert_same_pass(data.batches(index, size=size), twin.batches(index, size=size))
    assert torch.equal(data.some(index).images, twin.some(index).images)


def test_float_images_are_taken_as_they_are():
    """U1: for the transforms of Data, by the user's own code, a pass is Data's bit for bit."""
    data = make_data(3, n=9, channels=3)
    scale, shift = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1).float()
                    for v in ([1 / (255 * s) for s in data.std], [m / s for m, s in zip(data.mean, data.std)]))
    twin = Streamed(Samples(data, lambda image: image.float().mul(scale).sub(shift)), 4)
    assert_same_pass(data.batches(size=4, generator=gen(0)), twin.batches(size=4, generator=gen(0)))


def test_labels_that_are_given_are_all_that_is_looked_at():
    """U1: with labels= a sample may hold anything in place of its own; without, what is no class is named."""
    data = make_data(3, n=9)
    pairs = [(image, torch.zeros(40)) for image in data.images]
    twin = Streamed(pairs, 4, data.mean, data.std, data.labels)
    assert_same_pass(data.batches(size=4), twin.batches(size=4))
    with pytest.raises(ValueError, match="sample 0 cannot be read as a pair .*40 elements"):
        Streamed(pairs, 4)


def plain(image):
    """A transform that draws nothing."""
    return image.float()


def noisy(image):
    """A transform that draws from all three global generators."""
    return image.float() + torch.rand(()) + random.random() + np.random.rand()


def test_any_number_of_workers_gives_the_same_pass():
    """U2: with random transforms 0, 2 and 4 workers give the same samples, and leave the global generators."""
    data, index = make_data(0, n=12), torch.tensor([3, 3, 5, 0, 1, 2, 7, 8, 9, 10])
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    found = [list(Streamed(Samples(data, plain), 4, augmented=Samples(data, noisy), labels=data.labels, workers=workers)
                  .batches(index, size=2, generator=gen(1), augment=True)) for workers in (0, 2, 4)]
    assert_same_pass(found[0], found[1])
    assert_same_pass(found[0], found[2])
    twin = Streamed(Samples(data, plain), 4, augmented=Samples(data, noisy))
    assert twin.augments
    rows, x = (torch.cat([batch[k] for batch in found[0]]) for k in (0, 1))
    noise = (x - data.images[rows])[:, 0, 0, 0]
    assert len(noise.unique()) == 10  # the same image twice has noise of its own each time
    drawn = {float(next(twin.batches(rows, size=10, generator=gen(seed), augment=True))[1].sum()) for seed in range(9)}
    assert len(drawn) == 9
    assert torch.equal(next(twin.batches(rows, size=10))[1], data.images[rows].float())
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()


# --- Methods and metrics ----------------------------------------------------------------------------------------------

def test_a_row_of_results_is_the_same():
    """U4: a cell's row, with the scores of its task, is that of Data, with workers too."""
    data, test = make_data(1, n=16), make_data(2, n=8)
    task = Task("confusion", 0, data, test, (data.labels + 1) % 4, torch.tensor([1, 2, 9]))
    twin = replace(task, train=replace(streamed(data), workers=2), test=streamed(test))
    net, forget = small_net(0), torch.tensor([1, 9])
    rows = [unlearn(tiny(), "rem", METHODS["rem"].function, net, each, forget) for each in (task, twin)]
    assert rows[0]["status"] == "ok"
    assert {**rows[0], "seconds": 0} == {**rows[1], "seconds": 0}


# --- Bad input --------------------------------------------------------------------------------------------------------


class Endless(IterableDataset):
    """A Dataset without length."""

    def __iter__(self):
        yield torch.zeros(1, 4, 4), 0


def damaged(image, label):
    raise OSError("damaged\nfile")


WRONG = {  # what stands in place of a pair, and what is told of sample 3
    "a raise": (damaged, r"sample 3 cannot be read as a pair \(image, label\): OSError: damaged$"),
    "no pair": (lambda image, label: image, "sample 3 cannot be read as a pair"),
    "three": (lambda image, label: (image, label, 1), "sample 3 cannot be read as a pair.*too many"),
    "no tensor": (lambda image, label: (image.numpy(), label), r"image of sample 3 is ndarray \(1, 8, 8\), expected"),
    "another size": (lambda image, label: (image[:, :4], label), r"image of sample 3 is .*\(1, 4, 8\).*sample 0"),
    "another dtype": (lambda image, label: (image.float(), label), "image of sample 3 is .*float32.*sample 0"),
    "a label too large": (lambda image, label: (image, 4), "label of sample 3 is 4, expected 0 to 3"),
    "a label below 0": (lambda image, label: (image, torch.tensor(-1)), "label of sample 3 is -1"),
    "a word": (lambda image, label: (image, "cat"), "label of sample 3 is 'cat'"),
}


class Spoilt(Samples):
    """Samples of which one is wrong in a way of WRONG; of this module, as what starts processes may need it."""

    def __init__(self, how, at=3, n=8):
        super().__init__(make_data(0, n=n))
        self.how, self.at = how, at

    def __getitem__(self, i):
        pair = super().__getitem__(i)
        return WRONG[self.how][0](*pair) if i == self.at else pair


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_sample_is_named(name, workers):
    """U5: what is wrong with a sample is one line that names it, from a worker too; sample 0 is looked at first."""
    _, words = WRONG[name]
    with pytest.raises(ValueError, match=words) as caught:
        Streamed(Spoilt(name), 4, workers=workers)
    assert "\n" not in str(caught.value)
    if "label" not in name and name != "a word":
        with pytest.raises(ValueError, match=words):
            list(Streamed(Spoilt(name), 4, labels=torch.zeros(8, dtype=torch.int64), workers=workers).batches(size=2))
        with pytest.raises(ValueError, match="sample 0"):
            Streamed(Spoilt(name if name not in ("another size", "another dtype") else "a raise", at=0), 4)


def test_a_wrong_label_is_named_by_a_worker():
    """U5: labels are read 512 at a time, so that of a long data set workers read them."""
    with pytest.raises(ValueError, match="label of sample 555 is 4, expected 0 to 3"):
        Streamed(Spoilt("a label too large", at=555, n=600), 4, workers=2)


def test_wrong_arguments_are_refused():
    """U5: no length, another length, labels that do not fit, a crop of float images: told before any pass."""
    data = make_data(0, n=8)
    with pytest.raises(TypeError, match="Endless has no length"):
        Streamed(Endless(), 4)
    for n in (7, 9):
        with pytest.raises(TypeError, match="Samples has no length, or none above 0, or not dataset's"):
            Streamed(Samples(data), 4, augmented=Samples(make_data(0, n=n)))
    with pytest.raises(TypeError, match="none above 0"):
        Streamed([], 4)
    with pytest.raises(ValueError, match=r"image of sample 0 is Tensor \(8, 8\), expected a uint8 or float tensor"):
        Streamed([(data.images[0, 0], 0)], 4)
    with pytest.raises(ValueError, match="label of sample 2 is 4, expected 0 to 3"):
        Streamed(Samples(data), 4, labels=torch.tensor([0, 0, 4, 0, 0, 0, 0, 9]))
    with pytest.raises(ValueError, match="labels has 3 entries for 8 images"):
        Streamed(Samples(data), 4, labels=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="pad and flip are for uint8"):
        Streamed(Samples(data, lambda image: image.float()), 4, pad=1)
    with pytest.raises(ValueError, match="mean .* do not fit"):
        Streamed(Samples(data), 4, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(ValueError, match="pad is -1"):
        Streamed(Samples(data), 4, pad=-1)


def test_without_augmentation_a_sample_is_always_the_same():
    """U2: random transforms of `dataset` itself depend on the sample, not on its place in the pass or on the order."""
    twin, index = Streamed(Samples(make_data(0, n=6), noisy), 4), torch.tensor([5, 2, 5])
    whole = next(twin.batches())[1]
    assert torch.equal(next(twin.batches(index))[1], whole[index])
    for rows, x, _ in twin.batches(size=4, generator=gen(0)):
        assert torch.equal(x, whole[rows])


def test_uint8_images_without_mean_and_std_are_scaled_to_one():
    """U1: mean None is 0 and std None is 1: pixels from 0 to 1."""
    data = make_data(0, n=6, channels=3)
    assert torch.allclose(next(Streamed(Samples(data), 4).batches())[1], data.images / 255, atol=1e-6)


def test_some_examples_are_not_augmented():
    """U1: `some` gives the images as the network sees them, with nothing that moves them again."""
    data = make_data(0, pad=2, flip=True, trigger=True)
    for source in (data, streamed(data)):
        some = source.some(torch.tensor([3, 1]))
        assert not some.augments and some._overlay is None
        assert torch.equal(some.images, data.images[[3, 1]]) and torch.equal(some.labels, data.labels[[3, 1]])
