"""Whether a network fits a folder of images (repair/mismatch.py, P2, P3): found out before any work."""

from unittest.mock import Mock

import pytest
import torch
from torch import nn

from colours import add_to_net, began, call, colours  # noqa: F401
from helpers import gen, make_data
from repair.mismatch import check_labels, check_logits, orders

NAMES = [str(k) for k in range(12)]


# --- Labels -----------------------------------------------------------------------------------------------------------

def predictions(order: list[str], names: list[str], labels: torch.Tensor, wrong: float = 0.0) -> torch.Tensor:
    """What a network gives whose classes are in such an order, on a share of the images at random."""
    called = torch.tensor([order.index(name) for name in names])[labels]
    random = torch.rand(len(labels), generator=gen(0)) < wrong
    return torch.where(random, torch.randint(0, len(names), called.shape, generator=gen(1)), called)


@pytest.mark.parametrize("order, wrong", [(sorted(NAMES), 0.0), (NAMES[::-1], 0.3), (NAMES[5:] + NAMES[:5], 0.4)])
def test_another_order_of_the_classes_is_found(order, wrong):
    """P2: strings' order, or one that no tool has, although a part of the images is wrong: the message has it."""
    labels = torch.arange(600) % 12
    with pytest.raises(ValueError, match=f"in the order {', '.join(order)}: write that.*--class-map; .*--force"):
        check_labels(predictions(order, NAMES, labels, wrong), labels, torch.tensor([0]), NAMES)


@pytest.mark.parametrize("right, refused", [(0.95, False), (0.6, False), (0.4, True), (0.0, True)])
def test_when_a_network_is_refused(right, refused):
    """P2: where fewer than half of the images outside D_f get their labels; noise has no other order."""
    labels, forget = torch.arange(600) % 12, torch.arange(60)
    predicted = torch.randint(0, 12, (600,), generator=gen(2))
    predicted[60 : 60 + round(540 * right)] = labels[60 : 60 + round(540 * right)]
    if refused:
        with pytest.raises(ValueError, match=r"gives \d+.\d% of the images outside --bad their labels: the images .*"
                                             "--image-size.*--force"):
            check_labels(predicted, labels, forget, NAMES)
    else:
        check_labels(predicted, labels, forget, NAMES)


def test_an_order_is_suggested_where_each_class_has_an_output():
    """P2: beside the usual ones; timm's has numbers by value and letters without case."""
    labels = torch.arange(24) % 4
    names = ["b10", "ant", "B9", "2"]
    assert orders(labels, labels, names) == [sorted(names), ["2", "ant", "B9", "b10"], names]
    assert len(orders(labels * 0, labels, names)) == 2


def test_the_command_refuses_before_any_work(colours, capsys):
    """P2: images that are read otherwise stop the run, in one line; --force goes on."""
    assert call({**colours, "--force": None}, "--mean", 0, 0, 0, "--std", 1, 1, 1) == 2
    told = capsys.readouterr()
    assert "of the known bad images their labels as given, and" in told.out and not began(told.out)
    assert told.err.count("run.py: the network gives") == 1 and "--mean and --std" in told.err
    assert not colours["--out"].exists()


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
    (Odd(Mock(side_effect=torch.OutOfMemoryError("all of it is used"))), "^all of it is used$"),
], ids=["wide", "narrow", "tuple", "dict", "maps", "one", "raising", "hungry"])
def test_a_network_that_gives_no_logits_is_told(net, words):
    """P3: outputs of another number or kind, or a forward pass that raises: one line that says which."""
    with pytest.raises((ValueError, torch.OutOfMemoryError), match=words) as caught:
        check_logits(net, make_data(0, channels=3, classes=12), "n.py:f", "m.pt")
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
