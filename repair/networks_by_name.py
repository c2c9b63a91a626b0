"""Networks by name: ours, torchvision's, timm's, or a function of a file, and how their images are read.

    model, reading = build_network("resnet18", classes=3, size=64)   # untrained; size, crop, mean and std to read with
"""

import inspect
import math
import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from engine.checks import first_line
from engine.streams import same_world
from experiment import datasets
from experiment.console import clipped
from experiment.user_code import function_of
from models import ARCHITECTURES, build
from repair.inputs import Reading

IMAGENET = (datasets.IMAGENET["mean"], datasets.IMAGENET["std"])
FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")  # of weights, which --model does not take


def build_network(model: str, classes: int, size: int | None = None, crop_pct: float | None = None, mean=None,
                  std=None) -> tuple[nn.Module, Reading]:
    """An untrained network by name, and how images are read for it: as given, else as its usual weights want them.

    Args: model: resnet9 or vit (`resnet9:0.5`: half the widths), a network of torchvision, timm:NAME, FILE.py:FUNCTION;
        classes: outputs; size, crop_pct, mean, std: see Reading; where a size is given, crop_pct is 1 unless given too.
    Raises: ValueError for an unknown name, a size that is missing, out of range or not one the network takes.
    """
    name, _, detail = model.rpartition(":") if ".py:" in model else model.partition(":")  # C:\nets\mine.py:make
    if Path(model).suffix in FILES:
        raise ValueError(f"--model is the file {model}; it takes a name, and --checkpoint the file (swapped?)")
    kinds = {"timm": timm_network, **dict.fromkeys(ARCHITECTURES, own_network)}
    make, usual = (file_network if name.endswith(".py") else kinds.get(name, torchvision_network))(name, detail)
    if crop_pct is None:
        crop_pct = usual.get("crop_pct", 1.0) if size is None else 1.0
    size = usual.get("size") if size is None else size
    if size is None or size < 1:
        raise ValueError(f"the image size is {size}; give --image-size, the pixels per side {model} was trained on")
    if not 0 < crop_pct <= 1 or (mean is None) != (std is None):
        raise ValueError(f"--crop-pct {crop_pct}, --mean {mean}, --std {std}: give a share in (0, 1], and both "
                         "of the others or neither")
    reading = Reading(size, crop_pct)
    try:
        made = make(classes, size)
    except AssertionError as error:  # of torchvision, for a size
        raise ValueError(f"{model} cannot be built at {size} pixels, --image-size ({first_line(error)})") from error
    except (OverflowError, TypeError) as error:  # widths that no tensor has
        raise ValueError(f"--model {clipped(model)} cannot be built at {size} pixels ({first_line(error)}); give "
                         "smaller widths or another --image-size") from error
    check_parameters(made, f"--model {model}")
    first = next((m for m in made.modules() if isinstance(m, nn.Conv2d)), None)
    channels = 1 if first is not None and first.in_channels == 1 else 3
    mean, std = (usual.get("mean"), usual.get("std")) if mean is None else (mean, std)
    if mean is not None and channels == 1 and len(mean) == 3:
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    if mean is not None and not (len(mean) == len(std) == channels and all(0 <= m <= 1 for m in mean)
                                 and all(0 < s < math.inf for s in std)):
        raise ValueError(f"--mean {mean}, --std {std}: the network takes images of {channels} channels; give a number "
                         "for each, for pixels in [0, 1], std above 0")
    return made, replace(reading, mean=mean and tuple(mean), std=std and tuple(std), channels=channels)


def check_parameters(model: nn.Module, what: str) -> None:
    """Raise ValueError unless a network has parameters, and real ones; what: its name in the message."""
    found = dict(model.named_parameters())
    if lazy := [name for name, p in found.items() if isinstance(p, nn.parameter.UninitializedParameter)]:
        raise ValueError(f"{what} has lazy layers, {lazy[0]} first, whose shapes are not known yet; run it once on a "
                         "batch of zeros where it is made")
    if not found:
        raise ValueError(f"{what} has no parameters, so a repair can change nothing; give a network with weights")
    if strange := [name for name, p in found.items() if p.is_complex()]:
        raise ValueError(f"{what} has complex parameters, {strange[0]} first; a repair takes real ones")


def own_network(name: str, detail: str):
    """One of models.py; `resnet9:0.5` at half the widths."""
    if detail and not re.fullmatch(r"[0-9]+[.]?[0-9]*|[.][0-9]+", detail):
        raise ValueError(f"--model {name}:{detail}: after the colon stands a factor of the widths, such as {name}:0.5")
    capacity = float(detail or 1)
    if not capacity > 0:
        raise ValueError(f"--model {name}:{detail}: the factor of the widths must be above 0")
    return lambda classes, size: build(name, capacity, classes=classes, image_size=size), {}


def file_network(name: str, detail: str):
    """What FUNCTION of FILE.py returns, called with the number of classes where it takes num_classes or classes."""
    function = function_of(f"{name}:{detail}", f"--model {name}:{detail}")

    def make(classes: int, image_size: int) -> nn.Module:
        try:
            asked = [key for key in ("num_classes", "classes") if key in inspect.signature(function).parameters]
            with same_world():
                made = function(**dict.fromkeys(asked[:1], classes))
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except (Exception, SystemExit) as error:
            raise ValueError(f"--model: {detail} of {name} does not run ({first_line(error)}); it is called with "
                             "num_classes or classes, or with nothing") from error
        if not isinstance(made, nn.Module):
            raise ValueError(f"--model: {detail} of {name} returns a {type(made).__name__}, not a torch.nn.Module")
        return made

    return make, dict(mean=IMAGENET[0], std=IMAGENET[1])


def torchvision_network(name: str, detail: str):
    """A classifier of torchvision and what its first weights were trained with."""
    from torchvision import models  # here, because it takes long to import

    if detail or name not in models.list_models(module=models):
        found = f"{name}:{detail}" if detail else name
        raise ValueError(f"unknown --model {found!r}; give {', '.join(ARCHITECTURES)}, "
                         "a classifier of torchvision such as resnet18, timm:NAME or FILE.py:FUNCTION")
    usual = next(iter(models.get_model_weights(name))).transforms()
    size, resized = usual.crop_size[0], usual.resize_size[0]

    def make(classes: int, image_size: int) -> nn.Module:
        more = {"image_size": image_size} if name.startswith("vit_") else {}
        if name in ("googlenet", "inception_v3"):  # without auxiliary heads, which run in training alone
            more = dict(aux_logits=False, init_weights=False)
        return models.get_model(name, weights=None, num_classes=classes, **more)

    return make, dict(size=size, crop_pct=size / resized, mean=usual.mean, std=usual.std)


def timm_network(name: str, detail: str):
    """A network of timm, where that is installed, and what its weights were trained with."""
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"{name}:{detail} needs timm: pip install timm") from error
    if detail.partition(".")[0] not in timm.list_models():  # resnet18.a1_in1k: the tag names its weights
        raise ValueError(f"timm has no network {detail!r}; timm.list_models() names those that it has")
    usual = timm.get_pretrained_cfg(detail)

    def make(classes: int, image_size: int) -> nn.Module:
        try:  # transformers need to know it, convolutional networks do not take it
            return timm.create_model(detail, pretrained=False, num_classes=classes, img_size=image_size)
        except TypeError:
            return timm.create_model(detail, pretrained=False, num_classes=classes)

    return make, dict(size=usual.input_size[-1], crop_pct=usual.crop_pct, mean=usual.mean, std=usual.std)

