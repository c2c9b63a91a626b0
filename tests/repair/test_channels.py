"""Networks of grey images (repair/channels.py): one channel in the checkpoint or the network, and it simply works."""

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from colours import call, colours, report_of  # noqa: F401
from helpers import make_data
from models import build
from repair import checkpoints, mismatch
from repair.channels import with_channels
from repair.images import Reading, decode, load_images

THREE = ((0.3, 0.4, 0.8), (0.1, 0.2, 0.3))


def stem_of_one(classes: int = 3) -> nn.Module:
    """resnet18 as its users change it for grey images."""
    net = torchvision.models.resnet18(num_classes=classes)
    net.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return net


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_known_network_takes_the_channels_of_its_checkpoint(wrapped):
    """P2: the first convolution becomes one of one channel, all weights fit, and the network runs as its owner's."""
    torch.manual_seed(0)
    owners, net = stem_of_one().eval(), torchvision.models.resnet18(num_classes=3).eval()
    stored = {("module." if wrapped else "") + name: t for name, t in owners.state_dict().items()}
    net.conv1.weight.requires_grad_(not wrapped)
    reading = with_channels(net, stored, Reading(32, 1.0, *THREE))
    assert reading.channels == 1 and reading.mean == pytest.approx((0.5,)) and reading.std == pytest.approx((0.2,))
    checkpoints.load_into(net, stored)
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(net(x), owners(x)) and net.conv1.in_channels == 1
    assert net.conv1.weight.requires_grad is not wrapped  # what was frozen is
    assert reading.size_of(10) == 10 * 32 * 32


def test_what_takes_three_channels_keeps_them():
    """P2: colours stay colours, and another stem than the network's is told with its channels."""
    net = torchvision.models.resnet18(num_classes=3)
    reading = Reading(32, 1.0, *THREE)
    assert with_channels(net, net.state_dict(), reading) == reading and net.conv1.in_channels == 3
    assert with_channels(net, {}, reading).channels == 3  # a checkpoint without that layer tells nothing
    with pytest.raises(ValueError, match="give three numbers each"):
        with_channels(net, net.state_dict(), Reading(32, 1.0, (0.5,), (0.5,)))
    grey = stem_of_one()
    assert with_channels(grey, {}, Reading(32)).channels == 1
    with pytest.raises(ValueError, match=r"\(trained on colours, three channels; this network takes grey images, one"):
        checkpoints.load_into(grey, net.state_dict())
    other = {**net.state_dict(), "conv1.weight": torch.zeros(64, 1, 3, 3)}
    assert with_channels(net, other, reading).channels == 3  # another kernel: another network
    with pytest.raises(ValueError, match=r"small images\?\) \(trained on grey images, one channel; this network takes"):
        checkpoints.load_into(net, other)


def test_networks_that_say_it_by_themselves():
    """P2: a network that makes its own grey gets colours; one without convolutions is asked; if none runs, colours."""
    grey_inside = stem_of_one()  # the recipe of a user who has found a way
    grey_inside.register_forward_pre_hook(lambda net, inputs: inputs[0].mean(1, keepdim=True))
    assert with_channels(grey_inside, {}, Reading(32)).channels == 3
    assert with_channels(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), {}, Reading(8)).channels == 1
    assert with_channels(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), {}, Reading(8)).channels == 3
    assert with_channels(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(3, 2, 1)), {}, Reading(8)).channels == 3


def test_grey_images_keep_their_values(tmp_path):
    """B4: files that are grey, or grey in colours, give their values; colours Pillow's luminance; streamed the same."""
    values = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(values[:, :, 0]).save(tmp_path / "0.png")
    Image.fromarray(np.repeat(values[:, :, :1], 3, axis=2)).save(tmp_path / "1.png")
    Image.fromarray(values).save(tmp_path / "2.png")
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    images, _ = decode(paths, Reading(9, channels=1), 1)
    assert images.shape == (3, 1, 9, 9)
    assert torch.equal(images[0], images[1]) and np.array_equal(images[0, 0].numpy(), values[:, :, 0])
    luminance = values.astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(images[2, 0].numpy() - luminance).max() <= 1
    labels = torch.tensor([0, 1, 0])
    streamed, _ = load_images(paths, labels, 2, Reading(9, channels=1), 0, room=0)
    assert torch.equal(streamed.some(torch.arange(3)).images, images) and len(streamed.mean) == 1


def test_other_readings_of_grey_images():
    """P2: the usual means and stds of colours, of one channel, MNIST's and the images' own; they have no BGR."""
    net, data = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), make_data(0)
    tried = [words for _, words, _ in mismatch.readings(net, data, [], Reading(8, channels=1), sizes=False)]
    assert tried[:5] == ["--mean 0.449 --std 0.226", "--mean 0 --std 1", "--mean 0.5 --std 0.5",
                         "--mean 0.4734 --std 0.2507", "--mean 0.1307 --std 0.3081"] and len(tried) == 6


@pytest.mark.filterwarnings("ignore:Acc")  # rounding decides whether a cap is reached
def test_the_command_repairs_a_network_of_grey_images(colours, capsys):
    """P2, P1: with one channel in the checkpoint and three by name; the repaired weights have the stored shapes."""
    stored = build("resnet9", 0.1, channels=1, classes=12, image_size=8).state_dict()
    torch.save(stored, colours["--checkpoint"])
    world = {**colours, "--model": "resnet9:0.1", "--image-size": 8}
    assert call(world, "--mean", 0.5, "--std", 0.5, "--epochs", 1) in (0, 3)  # it is untrained
    assert "the network takes one channel: images are read as grey ones" in capsys.readouterr().out
    report, found = report_of(world), checkpoints.read(world["--out"])
    assert report["reading"]["channels"] == 1 and report["reading"]["mean"] == [0.5]
    assert list(found) == list(stored) and [t.shape for t in found.values()] == [t.shape for t in stored.values()]
    assert (world["--out"].parent / "suspects.csv").exists()
