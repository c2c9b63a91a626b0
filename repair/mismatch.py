"""Whether a network fits a folder of images: told before any work, with the reading of the folder that fits better.

    look_first(model, data, predicted(model, data), folder, reading, force=False)     # ValueError if it does not fit
"""

import contextlib
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from engine.checks import first_line
from engine.modes import eval_mode
from experiment.console import tell
from experiment.data import Data, Streamed
from experiment.image_files import mean_and_std
from metrics import predict
from repair.checkpoints import other_classes
from repair.class_order import another_order, write_order
from repair.images import Reading, decode, head_of
from repair.inputs import Folder
from repair.lists import DIGITS
from repair.networks_by_name import IMAGENET
from repair.progress import Watch, tell_here

NORMS = (IMAGENET, ((0.0,) * 3, (1.0,) * 3), ((0.5,) * 3, (0.5,) * 3),
         ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)))  # mean and std to try, the last CIFAR-10's
SIZES = (32, 64, 96, 128, 160, 224, 256, 299)  # pixels per side that networks are trained at
MNIST = ((0.1307,), (0.3081,))
LOOK = 500  # images on which another reading of the folder is tried
SURE, LOW, BETTER = 0.9, 0.5, 0.1  # accuracies on the given labels: no doubt; too low to go on; worth a stop
FEW = 20  # classes of which a message has all names
PIXELS = 2**24  # of the images of one batch in passes without a gradient


def predicted(model: nn.Module, data: Data | Streamed, say=tell_here) -> torch.Tensor:
    """(N,) classes, in batches that fit into memory; say: called with lines where it takes long."""
    with Watch("what the network gives", say) as watch:
        return predict(model, watch.over(data), size=max(16, PIXELS // math.prod(data.shape)))


def memory_format_of(model: nn.Module, data: Data | Streamed) -> torch.memory_format:
    """How a network can be given images: channels_last, the faster one, unless it flattens maps by x.view, which takes
    contiguous ones alone."""
    few, weight = torch.arange(min(2, len(data))), next(model.parameters())
    for found in (torch.channels_last, torch.contiguous_format):
        ((_, x, _),) = replace(data, memory_format=found).batches(few, dtype=weight.dtype)
        with eval_mode(model), torch.no_grad(), contextlib.suppress(Exception):
            model(x.to(weight.device))
            return found
    return data.memory_format  # `check_logits` says what is wrong


def check_logits(model: nn.Module, data: Data | Streamed, name: str, file: str) -> None:
    """Raise ValueError unless a network gives logits of all classes for two images; name and file: of the messages."""
    ((_, x, _),) = data.some(torch.arange(min(2, len(data)))).batches(dtype=next(model.parameters()).dtype)
    with eval_mode(model), torch.no_grad():
        try:
            logits = model(x)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # networks raise anything
            of_grey = " (a network of grey images: self.net(x.mean(1, keepdim=True)))"
            grey = of_grey if "channels" in str(error) else ""
            raise ValueError(f"--model {name} does not run on images of {'x'.join(map(str, data.shape))} "
                             f"({first_line(error)}); check --image-size, or FILE.py:FUNCTION{grey}") from error
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2 or len(logits) != len(x):
        shape = f" of shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else ""
        raise ValueError(f"--model {name} gives a {type(logits).__name__}{shape} for {len(x)} images, not logits "
                         f"({len(x)}, {data.classes}); give FILE.py:FUNCTION of a network that returns them alone")
    if logits.shape[1] != data.classes:
        raise ValueError(other_classes(file, logits.shape[1], f"outputs of {name}", data.classes))


def share_of(hits: torch.Tensor) -> float | None:
    """Fraction of true entries, None of none."""
    return round(float(hits.double().mean()), 4) if len(hits) else None


def look_first(model, data, before: torch.Tensor, folder: Folder, reading: Reading, force: bool,
               class_map: Path | None = None) -> None:
    """Print how well the network knows the given labels; ValueError if it does not, with what fits better.

    class_map: file for the order of classes that fits, which never replaces another one; None: none is written.
    """
    hits, others = before == data.labels.cpu(), torch.ones(len(data), dtype=torch.bool)
    others[folder.forget] = False
    accuracy, known = share_of(hits[others]), share_of(hits[folder.forget])
    print(f"accuracy on the labels as given: {accuracy:.3f} without the known bad, {known:.3f} on these", flush=True)
    if known < LOW:
        tell("warning: the network has not learnt the known bad labels, so there is little to repair")
    if accuracy >= SURE or force:
        return
    found = [one for one in orders(before[others], data.labels.cpu()[others], folder.classes)
             if one[0] > accuracy + BETTER]
    order = torch.randperm(int(others.sum()), generator=torch.Generator().manual_seed(0))
    chosen = others.nonzero()[:, 0][order[:LOOK]]
    if not found or found[0][0] < SURE:  # the order is looked at first: that takes no pass
        few = data.some(chosen)
        paths = [folder.paths[i] for i in chosen]
        found += readings(model, few, paths, reading, sizes=not found)
    found.sort(key=lambda one: one[0], reverse=True)
    better = [one for one in found if one[0] > share_of(hits[chosen]) + BETTER][:3]
    words = [f"{value:.1%} with {what}" for value, what, _ in better]
    if better and better[0][2] and class_map is not None:
        words[0] += told_order(better[0][2], class_map)
    if better or accuracy < LOW:
        none = "no more with other class orders, colours, mean and std or sizes: it was trained on other images"
        raise ValueError(f"the network gives {accuracy:.1%} of the labels, so something does not fit; on {len(chosen)} "
                         f"images it gives {'; '.join(words) or none}. To go on all the same: --force")


def orders(before: torch.Tensor, labels: torch.Tensor, classes: list[str]) -> list[tuple[float, str, list[str]]]:
    """(share of the labels, words, the classes in it) of the other orders of the classes that fit, the best first.

    Tried are the usual ones and what matching finds; before, labels: (n,) of images that are not known to be bad.
    """
    usual = {"timm's": sorted(classes, key=natural), "torchvision's": sorted(classes)}
    found = {}
    for words, names in usual.items():
        places = torch.tensor([names.index(name) for name in classes])
        found.setdefault(tuple(names), (share_of(before == places[labels]), words))
    if matched := another_order(before, labels, len(classes)):
        names = tuple(classes[i] for i in matched.classes)
        found.setdefault(names, (round(matched.share, 4), "another"))
    found.pop(tuple(classes), None)
    fitting = [(share, f"{words} order of classes, {listed(names)}", list(names))
               for names, (share, words) in found.items() if share >= LOW]
    return sorted(fitting, key=lambda one: one[0], reverse=True)


def listed(names) -> str:
    """Names of classes for a message: all of few ones."""
    return ", ".join(names if len(names) <= FEW else (*names[:4], "..."))


def told_order(names: list[str], class_map: Path) -> str:
    """Write a class map, and say how to use it."""
    file = write_order(names, class_map)
    return f": add --class-map {shlex.quote(str(file))}, which has it" if file else ", which --class-map takes"


def readings(model: nn.Module, data: Data, paths: list[Path], reading: Reading, sizes: bool = True):
    """(accuracy, words, None) of each other reading of some images, one thing changed at a time; sizes: those too."""
    def note(words: str, other: Data) -> tuple[float, str, None]:
        try:
            return share_of(predicted(model, other) == other.labels.cpu()), words, None
        except ArithmeticError:  # logits that are not finite
            return 0.0, words, None

    colours = data.shape[0] == 3
    if colours:
        yield note("BGR images (which FILE.py:FUNCTION can flip)", replace(data, images=data.images.flip(1)))
    grey = [tuple((sum(values) / 3,) for values in norm) for norm in NORMS]
    for mean, std in (*(NORMS if colours else (*grey, MNIST)), mean_and_std(data.images.cpu())):
        if (tuple(mean), tuple(std)) != (data.mean, data.std):
            numbers = [" ".join(f"{v:.4g}" for v in values) for values in (mean, std)]
            yield note(f"--mean {numbers[0]} --std {numbers[1]}", replace(data, mean=tuple(mean), std=tuple(std)))
    other_way = "squash" if reading.resize == "crop" else "crop"
    others = [replace(reading, resize=other_way)] if any(len({*head_of(path)[0]}) > 1 for path in paths) else []
    if sizes:
        others += [replace(reading, size=size, crop_pct=crop) for size, crop in
                   ((reading.size, 0.875), *((size, 1.0) for size in SIZES))]
    with Watch("trying other sizes of the images", tell_here) as watch:
        watch.begin(len(others), " sizes")
        for other in others:
            if other != reading:
                images = decode(paths, other)[0].to(data.images.device)
                with contextlib.suppress(Exception):  # networks raise anything: it takes no such size
                    flags = f"--image-size {other.size} --crop-pct {other.crop_pct:g}"
                    flags = flags if other.resize == reading.resize else f"--resize {other.resize}"
                    yield note(flags, replace(data, images=images))
            watch.step()


def natural(name: str) -> list:
    """Sort key of timm's class order: numbers by value, letters without case."""
    parts = [part for part in re.split(r"(\d+)", name) if part]
    return [(0, int(part), "") if part.isdecimal() and len(part) <= DIGITS else (1, 0, part.lower()) for part in parts]
