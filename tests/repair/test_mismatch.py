"""Whether a network fits a folder (repair/mismatch.py, P2, P3, P7): told before any work, with what fits better."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from colours import add_to_net, began, call, colours  # noqa: F401
from experiment.data import Data
from helpers import make_data, small_net, streamed
from repair import mismatch
from repair.images import Reading
from repair.inputs import Folder
from repair.network import repair_quietly

pytestmark = pytest.mark.filterwarnings("ignore:Acc")  # rounding decides whether a cap is reached


# --- Readings of the folder -------------------------------------------------------------------------------------------

TRAPS = {  # network, flags, what has happened to the images, what fits
    "mean": ("colours", ("--mean", 0, 0, 0, "--std", 1, 1, 1), lambda image: image,
             "--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225"),
    "size": ("at_the_middle", ("--image-size", 64),  # the colour is in the middle alone
             lambda image: np.pad(image[20:24, 20:24], ((20, 8), (20, 8), (0, 0))), "--image-size 32 --crop-pct 1"),
    "crop": ("at_the_corner", (),  # with a black frame, which the corner does not see in a crop
             lambda image: np.pad(image[1:-1, 1:-1], ((1, 1), (1, 1), (0, 0))), "--image-size 32 --crop-pct 0.875"),
    "bgr": ("colours", (), lambda image: np.ascontiguousarray(image[:, :, ::-1]), "BGR images"),
    "squash": ("colours", ("--resize", "squash"),  # between sides that a crop leaves out
               lambda image: np.concatenate([0 * image, image, 255 + 0 * image], axis=1), "--resize crop"),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_traps_are_told_before_any_work(colours, capsys, trap):
    """P2: another mean and std, image size, crop, resizing or order of colours stops the run, which says what fits."""
    network, more, change, words = TRAPS[trap]
    for path in (colours["--data"] / "train").rglob("*.png"):
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)
    world = {**colours, "--model": f"{colours['--data'] / 'net.py'}:{network}", "--force": None}
    assert call(world, *more) == 2
    told = capsys.readouterr()
    assert "accuracy on the labels as given: 0." in told.out and not began(told.out)
    assert told.err.count("run.py: the network gives") == 1 and f"98.6% with {words}" in told.err
    assert "--force" in told.err
    assert not colours["--out"].exists()


def test_natural_order():
    """P2: timm's order: numbers by value, of any length, letters without case."""
    names = ["9" * 5000, "10", "2", "b10", "B9", "ant", "Cat"]
    assert sorted(names, key=mismatch.natural) == ["2", "10", "9" * 5000, "ant", "B9", "b10", "Cat"]


@pytest.mark.parametrize("known, best, refused", [(0.92, 1.0, False), (0.7, 0.75, False), (0.7, 0.85, True),
                                                  (0.55, 0.6, False), (0.45, 0.1, True)])
def test_when_a_network_is_refused(monkeypatch, capsys, known, best, refused):
    """P2: below 90 % of the labels another reading must be better by 10 %, and half be known; --force goes on."""
    labels, before = torch.zeros(102, dtype=torch.int64), torch.zeros(102, dtype=torch.int64)
    before[2 : 102 - round(100 * known)] = 1
    data = Data(torch.zeros(102, 1, 2, 2, dtype=torch.uint8), labels, 2, (0.5,), (0.5,))
    folder = Folder(Path(), ["a", "b"], [Path()] * 102, labels, torch.tensor([0, 1]), None, "")
    # in place of readings, so that the accuracies are exact numbers around the bounds
    monkeypatch.setattr(mismatch, "readings", lambda *args, **more: [(best, "another size", None), (0.0, "BGR", None)])
    for force in (False, True):
        if refused and not force:
            words = f"{best:.1%} with another size" if best > known else "it was trained on other images"
            with pytest.raises(ValueError, match=f"{words}.* go on all the same: --force"):
                mismatch.look_first(None, data, before, folder, Reading(2), force)
        else:
            mismatch.look_first(None, data, before, folder, Reading(2), force)
        assert f"given: {known:.3f} without the known bad, 1.000 on these" in capsys.readouterr().out


def test_an_order_that_is_no_better_ends_no_search(monkeypatch):
    """P2: where another order of classes is no better, other sizes are tried; where it gives nearly all, nothing is."""
    labels, asked = torch.arange(104) % 4, []
    before, some = labels.clone(), (labels >= 2) & (torch.arange(104) % 8 < 4)
    before[some] = 5 - labels[some]  # a half of two classes, which timm has the other way round
    data = Data(torch.zeros(104, 1, 2, 2, dtype=torch.uint8), labels, 4, (0.5,), (0.5,))
    folder = Folder(Path(), ["0", "1", "10", "2"], [Path()] * 104, labels, torch.tensor([0, 1]), None, "")
    monkeypatch.setattr(mismatch, "readings", lambda *args, sizes: asked.append(sizes) or [])  # it learns what is tried
    mismatch.look_first(None, data, before, folder, Reading(2), False)
    assert asked == [True]
    before[labels >= 2] = 5 - labels[labels >= 2]
    with pytest.raises(ValueError, match="it gives 100.0% with timm's order of classes"):
        mismatch.look_first(None, data, before, folder, Reading(2), False)
    assert asked == [True]


def test_other_readings_are_judged_on_the_images_they_were_tried_on(monkeypatch):
    """P2: where only some images are tried, another reading must beat the given one on these, not on all images."""
    labels, readings = torch.zeros(40, dtype=torch.int64), Mock(return_value=[(0.5, "another size", None)])
    data = Data(torch.zeros(40, 1, 2, 2, dtype=torch.uint8), labels, 2, (0.5,), (0.5,))
    folder = Folder(Path(), ["a", "b"], [Path(str(i)) for i in range(40)], labels, torch.tensor([0]), None, "")
    monkeypatch.setattr(mismatch, "LOOK", 10)  # so that forty images are more than are tried
    monkeypatch.setattr(mismatch, "readings", readings)  # it learns which are tried
    chosen = list(range(40))
    for right in (0, 3):  # none at first, which tells which are tried; then 30 % of these ten, 82 % of all
        before = torch.zeros(40, dtype=torch.int64).index_fill(0, torch.tensor(chosen[right:]), 1)
        with pytest.raises(ValueError, match="on 10 images it gives 50.0% with another size"):
            mismatch.look_first(None, data, before, folder, Reading(2), False)
        chosen = [int(path.name) for path in readings.call_args.args[2]]
        assert len(set(chosen)) == 10 and 0 not in chosen  # D_f is not among them


def test_another_reading_may_overflow():
    """P2: where logits are finite as given, those of another reading need not be; it fits nothing then."""
    data = make_data(0, channels=3, classes=2)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    nn.init.constant_(net[2].weight, 3e38)
    found = {words: share for share, words, _ in mismatch.readings(net, data, [], Reading(8))}
    assert found["--mean 0 0 0 --std 1 1 1"] == 0.0


# --- Networks that give no logits -------------------------------------------------------------------------------------

class Odd(nn.Module):
    """Whatever a function makes of logits of twelve classes."""

    def __init__(self, change):
        super().__init__()
        self.net, self.change = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 12)), change

    def forward(self, x):
        return self.change(self.net(x))


@pytest.mark.parametrize("net, words", [
    (Odd(nn.ConstantPad1d((0, 1), 0.0)), r"^m.pt was trained on 13 classes \(outputs of n.py:f\), the data has 12"),
    (Odd(lambda z: z[:, 1:]), r"^m.pt was trained on 11 classes \(outputs of n.py:f\), the data has 12; "),
    (Odd(lambda z: (z, z)), r"n.py:f gives a tuple for 2 images, not logits \(2, 12\)"),
    (Odd(lambda z: {"logits": z}), r"n.py:f gives a dict for 2 images, not logits \(2, 12\)"),
    (Odd(lambda z: z[:, :, None, None]), r"n.py:f gives a Tensor of shape \(2, 12, 1, 1\) for 2 images, not logits"),
    (Odd(lambda z: z[:1]), r"n.py:f gives a Tensor of shape \(1, 12\) for 2 images, not logits"),
    (Odd(lambda z: z.no_such_thing), r"n.py:f does not run on images of 3x8x8 \(AttributeError: .*thing.*FUNCTION$"),
    (nn.Sequential(nn.Conv2d(1, 12, 8), nn.Flatten()),
     r"have 1 channels.*; check .*\(a network of grey images: self.net\(x.mean\(1, keepdim=True\)\)\)$"),
    (Odd(Mock(side_effect=torch.OutOfMemoryError("all of it is used"))), "^all of it is used$"),
], ids=["wide", "narrow", "tuple", "dict", "maps", "one", "raising", "grey", "hungry"])
def test_a_network_that_gives_no_logits_is_told(net, words):
    """P3: outputs of another number or kind, or a forward pass that raises: one line that says which."""
    with pytest.raises((ValueError, torch.OutOfMemoryError), match=words) as caught:
        mismatch.check_logits(net, make_data(0, channels=3, classes=12), "n.py:f", "m.pt")
    assert "\n" not in str(caught.value)


def test_logits_are_looked_at_before_any_work(colours, capsys):
    """P3: with the command, logits of other classes, or that are not finite though the weights are, are one line."""
    path = add_to_net(colours, "def wide(): return colours(12).append(nn.ConstantPad1d((0, 1), 0.0))\n")
    assert call({**colours, "--model": f"{path}:wide"}, "--force") == 2
    wide = capsys.readouterr()
    assert wide.err.startswith(f"run.py: {colours['--checkpoint']} was trained on 13 classes (outputs of {path}:wide)")
    stored = torch.load(colours["--checkpoint"], weights_only=True)
    torch.save({**stored, "4.weight": stored["4.weight"] * 1.5e38}, colours["--checkpoint"])
    assert call(colours) == 2
    infinite = capsys.readouterr()
    assert "model.pt gives logits that are not finite on these images; check the file, --mean and" in infinite.err
    for told in (wide, infinite):
        assert told.err.count("\n") == 1 and not began(told.out)
    assert not colours["--out"].exists()


# --- Memory formats ---------------------------------------------------------------------------------------------------

class View(nn.Module):
    """A classic: maps are flattened by x.view, which takes contiguous ones alone."""

    def forward(self, x):
        return x.view(x.size(0), -1)


def test_networks_that_flatten_by_view():
    """P7: they are given contiguous batches, in memory and streamed, and repaired; others keep the faster format."""
    torch.manual_seed(0)
    data, forget = make_data(0, n=24, classes=4), torch.tensor([1, 5])
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), View(), nn.Linear(4 * 64, 4))
    for source in (data, streamed(data)):
        assert mismatch.memory_format_of(net, source) == torch.contiguous_format
        assert mismatch.memory_format_of(small_net(0), source) == torch.channels_last
        found = repair_quietly(net, source, forget, unlearn_epochs=1, gamma=1.0)
        assert list(found.state_dict()) == list(net.state_dict())
        assert not torch.equal(found[-1].weight, net[-1].weight)
    assert data.memory_format == torch.channels_last
