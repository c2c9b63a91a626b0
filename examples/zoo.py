"""Small networks for examples/trials.py: torchvision's and timm's code, with BatchNorm and without, and their training.

    subject = SUBJECTS["vgg"]
    model = subject.network(seed=0)
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torchvision import models
from torchvision.models.vgg import make_layers

from examples.corrupted import IMAGES
from experiment.settings import Config


@dataclass(frozen=True)
class Subject:
    """A network, the images it is trained on, and how."""

    make: Callable[[int], nn.Module]  # from a number of classes
    images: str  # of IMAGES
    training: Config

    def network(self, seed: int) -> nn.Module:
        """The untrained network; the global random state stays as it is."""
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return self.make(IMAGES[self.images][1])


PLAN = [16, "M", 32, "M", 64, 64, "M"]  # channels of the convolutions, M: halved


def vgg(classes: int) -> nn.Module:
    """torchvision's layers of a VGG of four convolutions without a norm, and one linear layer."""
    return nn.Sequential(make_layers(PLAN), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * 64, classes))


def vgg_bn(classes: int) -> nn.Module:
    """The same with BatchNorm."""
    layers = make_layers(PLAN, batch_norm=True)
    return nn.Sequential(layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * 64, classes))


def timm_resnet(classes: int) -> nn.Module:
    """timm's `test_resnet`, four stages of 32 to 96 channels."""
    import timm

    return timm.create_model("test_resnet", num_classes=classes)


def vit(classes: int) -> nn.Module:
    """torchvision's ViT, patches of 8 pixels, three layers 64 wide."""
    return models.VisionTransformer(32, 8, 3, 4, 64, 128, num_classes=classes)


# Choice: rates and epochs at which the untouched network learns the corruptions, seen on seed 0.
SUBJECTS = {
    "timm test_resnet": Subject(timm_resnet, "shapes", Config(epochs=12, batch=32, lr=0.03)),
    "VGG": Subject(vgg, "clothes", Config(epochs=25, batch=32, lr=0.003, optimizer="adam")),
    "VGG, BatchNorm": Subject(vgg_bn, "clothes", Config(epochs=20, batch=32, lr=0.05)),
    "ViT": Subject(vit, "shapes", Config(epochs=25, batch=32, lr=0.002, optimizer="adam")),
}
