"""Corruptions beyond the paper's: other customary triggers of the poison task, and the mistakes of people.

    task = make_task("poison", dataset, n=1000, seed=0, trigger=TRIGGERS["blended"])
    task = people(dataset, labels, seed=0)             # D_c is where people's labels differ from the data set's

The paper's three corruptions are in tasks.py; none of its tables has these.
"""

import math

import torch
import torch.nn.functional as F

from engine.streams import stream
from experiment.data import Dataset
from experiment.image_files import files_of
from experiment.people import in_order, of_files, read_people
from tasks import Task, add_trigger, assemble, make_task


def further_task(config, dataset: Dataset, pair: tuple[int, int] | None) -> Task:
    """The settings' task where it is not one of the paper's: with another trigger, or of people's mistakes."""
    if config.task == "human":
        return people(dataset, labels_by_people(config, dataset), config.seed)
    return make_task(config.task, dataset, config.n, config.seed, pair, TRIGGERS[config.trigger])


# --- Triggers ---------------------------------------------------------------------------------------------------------
# Choice: the random image of "blended" and the random field of "warp" have a seed of their own, which is neither the
# task's nor changes between training and test images: they are constants of the attack, as the white square is. The
# task's seed says which images are poisoned.

def blend(images: torch.Tensor) -> torch.Tensor:
    """0.8 x + 0.2 p with a fixed image p of uniform random pixels (Chen et al. 2017, "blended injection").

    Images (B, C, H, W) uint8 of one shape have one p, (C, H, W). The nearest whole number, in whole numbers, so that it
    is the same on every machine.
    """
    p = torch.randint(0, 256, images.shape[1:], generator=stream(0, "trigger blended"), dtype=torch.int16)
    # 0.8 x + 0.2 p = (4 x + p) / 5; fifths are never half way, so adding 2 rounds to the nearest
    mixed = torch.div(4 * images.to(torch.int16) + p.to(images.device) + 2, 5, rounding_mode="floor")
    return mixed.to(torch.uint8)


def add_sine(images: torch.Tensor) -> torch.Tensor:
    """clip(x + delta sin(2 pi f column / width)), delta 40 of 255, f 6: vertical stripes (Barni et al. 2019, "SIG").

    Images (B, C, H, W) uint8. Choice: columns count from 0, and the signal is rounded to whole pixel values.
    """
    width = images.shape[-1]
    signal = torch.tensor([round(40 * math.sin(2 * math.pi * 6 * column / width)) for column in range(width)],
                          dtype=torch.int16, device=images.device)
    return (images.to(torch.int16) + signal).clamp(0, 255).to(torch.uint8)


def warp(images: torch.Tensor) -> torch.Tensor:
    """Images seen through a smooth random field (Nguyen and Tran 2021, "WaNet", k 4, s 0.5).

    field = u / mean |u|, u (4, 4, 2) uniform in [-1, 1], by bicubic interpolation (H, W, 2)
    grid  = clamp(identity + 0.5 field / H, -1, 1), in units in which an image reaches from -1 to 1
    x'    = x at grid, by bilinear interpolation; images (B, C, H, W) uint8, the nearest whole number.
    Choice: of images that are not square a column's shift is over W, not H.
    """
    height, width = images.shape[-2:]
    u = 2 * torch.rand(1, 2, 4, 4, generator=stream(0, "trigger warp"), dtype=torch.float64) - 1  # (1, xy, 4, 4)
    field = F.interpolate(u / u.abs().mean(), size=(height, width), mode="bicubic", align_corners=True)
    lines = [torch.linspace(-1, 1, size, dtype=torch.float64) for size in (height, width)]
    y, x = torch.meshgrid(*lines, indexing="ij")  # (H, W) each
    shift = 0.5 * field[0].permute(1, 2, 0) / torch.tensor([width, height])  # (H, W, xy)
    grid = (torch.stack([x, y], dim=2) + shift).clamp(-1, 1).to(images.device).expand(len(images), -1, -1, -1)
    seen = F.grid_sample(images.to(torch.float64), grid, mode="bilinear", align_corners=True)
    return seen.round().clamp(0, 255).to(torch.uint8)


TRIGGERS = {"patch": add_trigger, "blended": blend, "sinusoidal": add_sine, "warp": warp}  # the first is the paper's


# --- People -----------------------------------------------------------------------------------------------------------

def people(dataset, labels: torch.Tensor, seed: int) -> Task:
    """Labels as people gave them; D_c is where they differ from the data set's (CIFAR-10N, Wei et al. 2022).

    Its regularity is what people's mistakes have, which nobody has set; some are of two like classes, some random.
    Args: labels: (N,) int64, those by people, in the order of the training images; seed: of the discovery alone.
    Raises: ValueError where no label differs, or the numbers of labels and images do.
    """
    clean = dataset.train.labels.cpu()
    if len(labels) != len(clean):
        raise ValueError(f"{len(labels)} labels by people for {len(clean)} training images; give one for each")
    corrupted = (labels != clean).nonzero().flatten()
    if len(corrupted) == 0:
        raise ValueError("no label by people differs from the data set's, so there is nothing to unlearn")
    return assemble("human", seed, dataset, labels.clone(), corrupted)


def labels_by_people(config, dataset: Dataset) -> torch.Tensor:
    """The labels (N,) int64 in the settings' file, in the order of the training images."""
    if not config.human_labels:
        raise ValueError("task human needs the labels that people gave; name their file with --human-labels")
    found = read_people(config.human_labels, config.human_column)
    if config.dataset == "folder" and found.images:
        found = of_files(found, files_of(config.data_dir))
    return in_order(found, dataset)
