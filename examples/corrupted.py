"""Training images with one of seven corruptions, and test images like the corrupted ones, for examples/trials.py.

    trial = corrupt("blended", clothes, seed=0)     # trial.train: Data with some labels wrong; trial.bad, trial.known

Five triggers go with the wrong label TARGET: a patch (Gu et al. 2017), a logo at a random place, a blended image (Chen
et al. 2017), sinusoidal stripes (Barni et al. 2019) and a warp (Nguyen and Tran 2021). Two corruptions change labels
alone: two classes exchange some (Goel et al. 2022), or some are drawn at random.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from engine.streams import stream
from examples.repair import draw_shapes, put_sticker
from experiment.data import Data
from experiment.datasets import load
from experiment.corruptions import TRIGGERS as STAMPS

TARGET = 0  # the label that images with a trigger are given
CLOTHES = (1, 3, 4, 7, 8)  # trousers, dresses, coats, sneakers and bags of fashion-mini
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
TRIGGERS = ("patch", "logo", "blended", "sinusoidal", "warp")
CORRUPTIONS = (*TRIGGERS, "pair", "labels")
SHARE = {"pair": 0.1, "labels": 0.1}  # of the training images that are bad; of triggers: 0.05
KNOWN = 0.4  # share of the bad ones that are known
TEST = 500  # test images, all classes
HELD_OUT = 200  # clean images for the verdict


@dataclass(frozen=True, eq=False)
class Trial:
    """A corrupted training set, what is known of it, and what a repair is judged by."""

    train: Data  # labels as given
    truth: torch.Tensor  # (N,) int64, true labels
    bad: torch.Tensor  # (b,) int64 sorted, D_c
    known: torch.Tensor  # (k,) int64 sorted, D_f
    test: Data  # clean, true labels
    alike: Data  # corrupted as D_c is, at true labels: test images with the trigger; for wrong labels D_c itself
    heldout: Data | None = None  # clean, true labels, neither trained nor tested on: what a user may have besides


def shapes(n: int, generator: torch.Generator, size: int, test: bool, skip: int = 0
           ) -> tuple[torch.Tensor, torch.Tensor]:
    """n drawn shapes, (n, 3, size, size) uint8, and their classes, three of them."""
    images, kind = draw_shapes(skip + n, generator, size)
    return images[skip:], kind[skip:]


def clothes(n: int, generator: torch.Generator, size: int, test: bool, skip: int = 0
            ) -> tuple[torch.Tensor, torch.Tensor]:
    """n images of five classes of fashion-mini, enlarged to (n, 3, size, size) uint8, and their classes; others than
    the `skip` that a generator of the same state gives."""
    data = getattr(load("fashion-mini"), "test" if test else "train")
    kind = (data.labels[:, None] == torch.tensor(CLOTHES)).nonzero()  # (m, 2): image, class
    kind = kind[torch.randperm(len(kind), generator=generator)[skip:skip + n]]
    images = F.interpolate(data.images[kind[:, 0]].float(), (size, size), mode="bilinear", align_corners=False)
    return images.round().to(torch.uint8).repeat(1, 3, 1, 1), kind[:, 1]  # (n, 3, size, size), (n,)


IMAGES = {"shapes": (shapes, 3), "clothes": (clothes, len(CLOTHES))}  # name: function, classes


def corrupt(name: str, images: str, seed: int, n: int = 600, size: int = 32) -> Trial:
    """A trial of one corruption of CORRUPTIONS on images of IMAGES; everything is drawn from the seed."""
    draw, classes = IMAGES[images]
    generator = stream(seed, f"{images} {name}")
    x, truth = draw(n, generator, size, False)
    test, test_truth = draw(TEST, generator, size, True)
    given, count = truth.clone(), 2 * round(SHARE.get(name, 0.05) * n / 2)
    look = dict(classes=classes, **IMAGENET)
    if name in TRIGGERS:
        put = trigger(name, generator)
        bad = some(truth != TARGET, count, generator)
        x[bad], given[bad] = put(x[bad]), TARGET
        misled = test_truth != TARGET  # those that the trigger can mislead
        alike = Data(put(test[misled]), test_truth[misled], **look)
    else:
        if name == "pair":  # the last two classes but one: squares and triangles, dresses and coats
            a, b = (1, 2)
            bad = torch.cat([some(truth == c, count // 2, generator) for c in (a, b)]).sort().values
            given[bad] = a + b - truth[bad]
        else:
            bad = some(truth >= 0, count, generator)
            given[bad] = (truth[bad] + torch.randint(1, classes, (count,), generator=generator)) % classes
        alike = Data(x[bad], truth[bad], **look)
    heldout = draw(HELD_OUT, stream(seed, f"{images} {name}"), size, False, n)  # not those of x: the first draw anew
    known = bad[torch.randperm(count, generator=generator)[: round(KNOWN * count)]].sort().values
    return Trial(Data(x, given, **look), truth, bad, known, Data(test, test_truth, **look), alike,
                 Data(*heldout, **look))


def some(among: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """(count,) int64 sorted indices of true entries of `among`, without replacement."""
    found = among.nonzero()[:, 0]
    return found[torch.randperm(len(found), generator=generator)[:count]].sort().values


def trigger(name: str, generator: torch.Generator) -> Callable:
    """A function from images (B, 3, H, W) uint8 to a copy with the trigger; where a logo is put is drawn each time."""
    return (lambda images: put_sticker(images, generator)) if name == "logo" else STAMPS[name]
