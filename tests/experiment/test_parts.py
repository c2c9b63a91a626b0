"""A part of each class of a data set, drawn by a seed of its own, and training without augmentation."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.streams import stream
from experiment.datasets import part_of
from experiment.settings import resolve
from helpers import gen, make_dataset, seeds
from pictures import write_tree
from study.originals import dataset_of
from tasks import make_task


def classes_of(seed, counts, tests) -> object:
    """A data set with so many training images of each class, in an order drawn from the seed, and test images."""
    def labels(numbers):
        found = torch.repeat_interleave(torch.arange(len(numbers)), torch.tensor(numbers))
        return found[torch.randperm(len(found), generator=gen(seed))]

    made = make_dataset(seed, n=sum(counts), tests=sum(tests), classes=len(counts), pad=1, flip=True)
    train, test = replace(made.train, labels=labels(counts)), replace(made.test, labels=labels(tests))
    return replace(made, train=train, test=test)


@given(seeds, st.lists(st.integers(3, 7), min_size=2, max_size=4), st.integers(1, 3))
def test_so_many_of_each_class(seed, counts, per_class):
    """The part has so many images of each class, each with its label, in the order of the whole; a smaller part lies
    within a larger one; the whole is left as it was."""
    dataset = classes_of(seed, counts, counts)
    part = part_of(dataset, per_class, per_class)
    assert part.train.labels.bincount().tolist() == part.test.labels.bincount().tolist() == [per_class] * len(counts)
    assert (part.index.diff() > 0).all() and torch.equal(part.whole, dataset.train.labels)
    assert torch.equal(part.train.images, dataset.train.images[part.index])
    assert torch.equal(part.train.labels, dataset.train.labels[part.index])
    assert (part.train.pad, part.train.flip) == (1, True) and len(dataset.train) == sum(counts)
    assert torch.isin(part_of(dataset, 1).index, part.index).all()
    assert len(part_of(dataset, per_class).test) == len(dataset.test)
    assert part_of(dataset, None, per_class).index is None


def test_nothing_asked():
    """Without a number the very same data set comes back; without augmentation nothing but that is changed."""
    dataset = classes_of(0, [5, 5], [2, 2])
    assert part_of(dataset) is dataset
    plain = part_of(dataset, augment=False)
    assert not plain.train.augments and dataset.train.augments and plain.train.images is dataset.train.images
    task = make_task("poison", plain, 4, 0)
    (_, x, _), (_, y, _) = (next(task.train.batches(generator=gen(0), augment=a)) for a in (True, False))
    assert torch.equal(x, y)


def test_which_images():
    """Copies whose classes have the same images in the same order have the same part, whatever the order of classes
    among each other: each class's images are drawn by a stream of its own, the same for every seed of a task."""
    mixed = classes_of(3, [20, 20, 20], [2, 2, 2])
    order = mixed.train.labels.argsort(stable=True)
    train = mixed.train
    tree = replace(mixed, train=replace(train, images=train.images[order], labels=train.labels[order]))
    one, other = part_of(mixed, 6), part_of(tree, 6)
    again = one.train.labels.argsort(stable=True)
    assert torch.equal(one.train.images[again], other.train.images)
    for c in range(3):
        drawn = torch.randperm(20, generator=stream(0, f"part training class {c}"))[:6]
        assert torch.equal(other.index[other.train.labels == c] - 20 * c, drawn.sort().values)


@pytest.mark.parametrize("numbers, text", [
    ((6, None), "--per-class is 6; class 1 has 5 training images"),
    ((None, 3), "--per-class-test is 3; class 0 has 2 test images"),
])
def test_too_many(numbers, text):
    """More than a class has is refused, with both numbers."""
    with pytest.raises(ValueError, match=text):
        part_of(classes_of(0, [7, 5], [2, 4]), *numbers)


def test_settings(tmp_path):
    """The part that is asked for, and training without augmentation, reach the data set of a grid."""
    write_tree(tmp_path, per_class=6)
    base = resolve({"dataset": "folder", "data_dir": str(tmp_path), "image_size": 8, "method": "no-ul"})
    cells = base, replace(base, per_class=4), replace(base, per_class_test=2), replace(base, augment=False)
    sizes = [(len(data.train), len(data.test), data.train.augments) for data in map(dataset_of, cells)]
    assert sizes == [(12, 12, True), (8, 12, True), (12, 4, True), (12, 12, False)]
