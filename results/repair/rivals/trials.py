"""Corrupted training images of fashion-mini, and two small networks that learn them, for measure.py beside this file.

    trial = corrupt("blended", seed=0)          # trial.train: Data with some labels wrong; trial.bad, trial.known
    model = trained(SUBJECTS["VGG"], trial, seed=0)

600 images of five classes. 5 % have a trigger and the label TARGET, or 10 % a wrong label: two classes exchange some
("pair"), or some are drawn at random ("labels"). 40 % of the bad ones are known. Everything is drawn as for the rows of
results/repair/rivals.jsonl.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.vgg import make_layers

from engine.streams import stream
from experiment.corruptions import TRIGGERS
from experiment.data import Data
from experiment.datasets import load
from experiment.settings import Config
from train import fit

TARGET = 0  # the label that images with a trigger are given
CLASSES = (1, 3, 4, 7, 8)  # trousers, dresses, coats, sneakers and bags
LOOK = dict(classes=len(CLASSES), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CORRUPTIONS = ("patch", "blended", "sinusoidal", "pair", "labels")
N, TEST, HELD_OUT, OTHER = 600, 500, 200, 300  # images for training and tests, held out, and of another source
SHARE = {"pair": 0.1, "labels": 0.1}  # of the images that are bad; of triggers 0.05
KNOWN = 0.4  # share of the bad ones that are known


@dataclass(frozen=True, eq=False)
class Trial:
    """A corrupted training set, what is listed as bad, and what a repair is judged by."""

    train: Data  # labels as given
    truth: torch.Tensor  # (N,) int64, true labels
    bad: torch.Tensor  # (b,) int64 sorted, D_c
    known: torch.Tensor  # (k,) int64 sorted, the list: D_f and, where it is impure, good images
    heldout: Data  # not trained on, corrupted alike, labels as given: by these a rate is chosen
    test: Data  # clean, true labels
    alike: Data  # corrupted as D_c is, at true labels: test images with the trigger; for wrong labels D_c itself
    other: Data  # clean, true labels, neither trained on nor tested


def corrupt(name: str, seed: int, impure: float = 0.0) -> Trial:
    """A trial of one corruption of CORRUPTIONS; everything is drawn from the seed.

    impure: share of the listed images that are good ones; the bad ones are all listed, too.
    """
    generator = stream(seed, f"clothes {name}")
    images, truth = clothes(N, generator, "train")
    test = Data(*clothes(TEST, generator, "test"), **LOOK)
    train, bad = corrupted(name, images, truth, generator)
    if name in TRIGGERS:
        misled = test.labels != TARGET  # those that the trigger can mislead
        alike = Data(TRIGGERS[name](test.images[misled]), test.labels[misled], **LOOK)
    else:
        alike = Data(train.images[bad], truth[bad], **LOOK)
    known = bad[torch.randperm(len(bad), generator=generator)[: round(KNOWN * len(bad))]].sort().values
    # Images that the training set has not: the first draw once more, and what comes after it.
    more, labels = clothes(HELD_OUT + OTHER, stream(seed, f"clothes {name}"), "train", skip=N)
    heldout, _ = corrupted(name, more[:HELD_OUT], labels[:HELD_OUT], stream(seed, "held out"))
    other = Data(more[HELD_OUT:], labels[HELD_OUT:], **LOOK)
    return Trial(train, truth, bad, with_good_ones(known, bad, impure, seed), heldout, test, alike, other)


def clothes(n: int, generator: torch.Generator, part: str, skip: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """n images of CLASSES, (n, 3, 32, 32) uint8, and their classes; others than the first `skip` of the same draw."""
    data = getattr(load("fashion-mini"), part)
    kind = (data.labels[:, None] == torch.tensor(CLASSES)).nonzero()  # (m, 2): image, class
    kind = kind[torch.randperm(len(kind), generator=generator)[skip:skip + n]]
    images = F.interpolate(data.images[kind[:, 0]].float(), (32, 32), mode="bilinear", align_corners=False)
    return images.round().to(torch.uint8).repeat(1, 3, 1, 1), kind[:, 1]


def corrupted(name: str, images: torch.Tensor, truth: torch.Tensor, generator: torch.Generator
              ) -> tuple[Data, torch.Tensor]:
    """The images with their labels as given, and which of them are bad, (b,) int64 sorted."""
    images, given, count = images.clone(), truth.clone(), 2 * round(SHARE.get(name, 0.05) * len(truth) / 2)
    if name in TRIGGERS:
        bad = some(truth != TARGET, count, generator)
        images[bad], given[bad] = TRIGGERS[name](images[bad]), TARGET
    elif name == "pair":  # dresses and coats
        bad = torch.cat([some(truth == c, count // 2, generator) for c in (1, 2)]).sort().values
        given[bad] = 3 - truth[bad]
    else:
        bad = some(truth >= 0, count, generator)
        given[bad] = (truth[bad] + torch.randint(1, len(CLASSES), (count,), generator=generator)) % len(CLASSES)
    return Data(images, given, **LOOK), bad


def some(among: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """(count,) int64 sorted indices of true entries of `among`, without replacement."""
    found = among.nonzero()[:, 0]
    return found[torch.randperm(len(found), generator=generator)[:count]].sort().values


def with_good_ones(known: torch.Tensor, bad: torch.Tensor, impure: float, seed: int) -> torch.Tensor:
    """The list with so many good images that they are the share `impure` of it, rounded."""
    count = round(len(known) * impure / (1 - impure))
    good = torch.ones(N, dtype=torch.bool).index_fill(0, bad, False)
    return torch.cat([known, some(good, count, stream(seed, "good ones"))]).sort().values


# --- Networks ---------------------------------------------------------------------------------------------------------

PLAN = [16, "M", 32, "M", 64, 64, "M"]  # channels of the convolutions, M: halved


@dataclass(frozen=True)
class Subject:
    """A VGG of four convolutions and one linear layer, torchvision's layers, and how it is trained."""

    make_layers: Callable[[list], nn.Module]
    training: Config

    def network(self, seed: int) -> nn.Module:
        """The untrained network; the global random state stays as it is."""
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            layers = self.make_layers(PLAN)
            return nn.Sequential(layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * 64, len(CLASSES)))


SUBJECTS = {
    "VGG": Subject(make_layers, Config(epochs=25, batch=32, lr=0.003, optimizer="adam")),
    "VGG, BatchNorm": Subject(lambda plan: make_layers(plan, batch_norm=True), Config(epochs=20, batch=32, lr=0.05)),
}


def trained(subject: Subject, trial: Trial, seed: int) -> nn.Module:
    """The network trained on the labels as given."""
    model = subject.network(seed)
    fit(model, trial.train, None, subject.training, stream(seed, "training"))
    return model.eval()
