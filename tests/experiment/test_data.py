"""Data in memory (experiment/data.py): a pass over images, against loops over single images (Sec. 4)."""

import random
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiment.data import Data, batches
from helpers import gen, seeds
from tasks import put_trigger


@dataclass(frozen=True, eq=False)
class Known(Data):
    """Data that remembers, for the oracle, its images without the trigger and which of them carry it."""

    raw: torch.Tensor | None = None
    carries: torch.Tensor | None = None


def make_known(seed, n=7, channels=3, height=5, width=6, trigger=False, **more) -> Known:
    """Random images of 1..254, so that neither padding (0) nor trigger (255) occurs in them by accident."""
    generator = gen(seed)
    images = torch.randint(1, 255, (n, channels, height, width), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 4, (n,), generator=generator)
    carries = torch.rand(n, generator=generator) < (0.5 if trigger else 0)
    mean = tuple(0.3 + 0.1 * c for c in range(channels))
    std = tuple(0.2 + 0.05 * c for c in range(channels))
    data = Known(images, labels, 4, mean, std, raw=images, carries=carries, **more)
    return put_trigger(data, carries.nonzero().flatten()) if trigger else data


@st.composite
def knowns(draw) -> Known:
    """Data of every odd size, with and without crop, flip and trigger."""
    side = st.integers(3, 7)
    return make_known(draw(seeds), draw(st.integers(1, 13)), draw(st.sampled_from([1, 3])), draw(side), draw(side),
                      draw(st.booleans()), pad=draw(st.integers(0, 4)), flip=draw(st.booleans()))


@st.composite
def indices(draw, n: int):
    """Some dataset indices, twice the same among them; or None, all of them."""
    return draw(st.none() | st.lists(st.integers(0, n - 1), min_size=1, max_size=20).map(torch.tensor))


def images_by_loops(data: Known, index, generator, augment: bool):
    """One pass: (order (n,), images (n, C, H, W) uint8) from the draws that `batches` documents."""
    n, (channels, height, width), pad = len(index), data.shape, data.pad
    order = [int(index[i]) for i in torch.randperm(n, generator=generator)]
    corners = torch.full((2, n), pad)  # the middle of the padding: no move
    flips = torch.zeros(n, dtype=torch.int64)
    if augment and pad:
        corners = torch.randint(0, 2 * pad + 1, (2, n), generator=generator)
    if augment and data.flip:
        flips = torch.randint(0, 2, (n,), generator=generator)
    images = np.zeros((n, channels, height, width), np.uint8)
    for k, i in enumerate(order):
        padded = np.zeros((channels, height + 2 * pad, width + 2 * pad), np.uint8)
        padded[:, pad : pad + height, pad : pad + width] = data.raw[i].numpy()
        top, left = int(corners[0, k]), int(corners[1, k])
        crop = padded[:, top : top + height, left : left + width]
        images[k] = crop[:, :, ::-1] if flips[k] else crop
        if data.carries[i]:
            images[k, :, height - 3 :, width - 3 :] = 255
    return order, images


def normalised(data: Data, images) -> np.ndarray:
    """(x / 255 - mean) / std in float64."""
    mean, std = (np.array(value).reshape(1, -1, 1, 1) for value in (data.mean, data.std))
    return (images / 255 - mean) / std


# --- What a pass yields -----------------------------------------------------------------------------------------------


@given(knowns(), seeds, st.integers(1, 6), st.booleans(), st.data())
def test_two_passes_equal_loops(data, seed, size, augment, draw):
    """U6, A7, R4, T12: two passes of one generator equal loops in order, images, labels and state of the generator."""
    index = draw.draw(indices(len(data)))
    where = torch.arange(len(data)) if index is None else index
    ours, theirs = gen(seed), gen(seed)
    for _ in range(2):
        order, images = images_by_loops(data, where, theirs, augment)
        found = list(batches(data, index, size, ours, augment, dtype=torch.float64))
        rows, x, y = (torch.cat(part) for part in zip(*found, strict=True))
        assert rows.tolist() == order and rows.dtype == torch.int64 and rows.device.type == "cpu"
        np.testing.assert_allclose(x.numpy(), normalised(data, images), rtol=0, atol=1e-12)
        assert torch.equal(y, data.labels[rows])
        assert all(len(part) == len(batch[0]) for batch in found for part in batch)
        assert torch.equal(ours.get_state(), theirs.get_state())


@given(knowns(), st.integers(1, 6), st.data())
def test_a_pass_without_generator_keeps_the_order(data, size, draw):
    """U6, T13: without a generator examples come in the order given, as it was at the call, whatever it is later."""
    index = draw.draw(indices(len(data)))
    wanted = torch.arange(len(data)) if index is None else index.clone()
    waiting = batches(data, index, size)
    if index is not None:
        index.fill_(-1)
    rows, x, _ = (torch.cat(part) for part in zip(*waiting, strict=True))
    assert torch.equal(rows, wanted) and x.dtype == torch.float32
    # |x| is at most 5 and the largest intermediate 5: a few units of 2^-24 each
    np.testing.assert_allclose(x.numpy(), normalised(data, data.images[wanted].numpy()), rtol=0, atol=3e-6)


@given(knowns())
def test_bfloat16_is_rounded_once(data):
    """U6: bfloat16 inputs are the float32 ones, rounded."""
    ((_, wide, _),), ((_, narrow, _),) = batches(data), batches(data, dtype=torch.bfloat16)
    assert narrow.dtype == torch.bfloat16 and torch.equal(narrow, wide.to(torch.bfloat16))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_layout_that_is_asked_for(layout):
    """U6: inputs have the memory layout that the data names, which a network that flattens by `view` depends on."""
    data = make_known(0, memory_format=layout)
    for part in (data, data.some(torch.tensor([1, 0]))):
        assert all(x.is_contiguous(memory_format=layout) for _, x, _ in part.batches(size=2))


@given(knowns(), seeds)
def test_a_pass_leaves_the_world_alone(data, seed):
    """T10, T13: global random states and inputs stay; what is yielded shares no memory with them."""
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    kept = [t.clone() for t in (data.images, data.labels, data.raw)]
    for index, x, y in batches(data, size=3, generator=gen(seed), augment=True):
        for given_away in (index, x, y):
            given_away.zero_()
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all() and before[2] == random.getstate()
    for then, now in zip(kept, (data.images, data.labels, data.raw), strict=True):
        assert torch.equal(then, now)


@pytest.mark.parametrize("pad, flip", [(0, False), (1, False), (0, True)])
def test_whether_augmentation_can_change_anything(pad, flip):
    """U6: `augments` is false where neither crop nor flip is on, so that only then answers may be kept."""
    assert make_known(0, pad=pad, flip=flip).augments == bool(pad or flip)


# --- Where it is ------------------------------------------------------------------------------------------------------


def test_to_device():
    """M5: Data.to moves every tensor and nothing else; tensors on different devices are refused."""
    data = make_known(0, trigger=True, pad=2, flip=True)
    moved = data.to("cpu")
    assert len(moved) == 7 and moved.pad == 2 and moved.flip and moved._overlay is data._overlay
    with pytest.raises(ValueError, match="labels is on meta"):
        replace(data, labels=data.labels.to("meta"))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # torch says that it is a prototype
def test_cuda_equals_cpu_without_synchronising():
    """M5: a pass on the GPU gives the CPU's batches, channels_last, and waits for the device only at its start."""
    data = make_known(0, n=300, trigger=True, pad=2, flip=True)
    passes = data.to("cuda").batches(size=64, generator=gen(1), augment=True)
    found = [next(passes)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        found += list(passes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(found, data.batches(size=64, generator=gen(1), augment=True), strict=True):
        assert ours[0].device.type == "cpu" and torch.equal(ours[0], theirs[0])
        assert ours[1].is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(ours[1].cpu(), theirs[1], atol=3e-6) and torch.equal(ours[2].cpu(), theirs[2])


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments, text", [
    (dict(index=torch.tensor([3, -1, 9])), "^index -1 out of range for 7 examples$"),  # it does not wrap
    (dict(index=torch.tensor([3, 7, -1])), "^index 7 out of range for 7 examples$"),
    (dict(index=torch.tensor([], dtype=torch.int64)), "index is empty, expected at least one example"),
    (dict(index=torch.tensor([0.0])), "float32"),  # other kinds in engine/test_checks.py
    (dict(size=0), "size is 0, expected at least 1"),
    (dict(augment=True), "augment=True draws random numbers: pass generator="),
    (dict(generator=SimpleNamespace(device=torch.device("cuda"))), "generator is on cuda"),  # it draws on the CPU
])
def test_batches_refuses(arguments, text):
    """M18, M5, U5: bad arguments are a ValueError at the call, not at the first batch."""
    with pytest.raises(ValueError, match=text):
        batches(make_known(0), **arguments)


@pytest.mark.parametrize("change, error, text", [
    (dict(images=torch.zeros(7, 3, 5, 6)), TypeError, "images is torch.float32"),
    (dict(images=torch.zeros(7, 5, 6, dtype=torch.uint8)), TypeError, "3 dimensions"),
    (dict(images=np.zeros((7, 3, 5, 6), np.uint8)), TypeError, "ndarray"),
    (dict(labels=torch.zeros(7)), TypeError, "labels is torch.float32"),
    (dict(labels=torch.zeros(6, dtype=torch.int64)), ValueError, "6 entries for 7 images"),
    (dict(labels=torch.full((7,), 4)), ValueError, "4 to 4, expected 0 to 3"),
    (dict(labels=torch.full((7,), -1)), ValueError, "-1 to -1"),
    (dict(mean=(0.5,)), ValueError, "3 channels"),
    (dict(std=(0.5, 0.5)), ValueError, "3 channels"),
    (dict(std=(0.5, 0.5, 0.0)), ValueError, "std above 0"),
    (dict(mean=(0.5, 0.5, 113.9)), ValueError, "scaled to .0, 1., mean from 0 to 1"),
    (dict(mean=(0.5, -0.1, 0.5)), ValueError, "mean from 0 to 1"),
    (dict(mean=(0.5, float("nan"), 0.5)), ValueError, "mean from 0 to 1"),
    (dict(pad=-1), ValueError, "pad is -1"),
])
def test_data_refuses(change, error, text):
    """U5, L17: Data checks itself, and says what it found and what it wants."""
    with pytest.raises(error, match=text):
        replace(make_known(0), **change)
