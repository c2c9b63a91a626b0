"""Checks with their errors: index sets, settings, losses and weights that are finite numbers.

    forget = check_forget(forget, n=len(data))       # a ValueError that says what was found, before any training
    mean = finite(total, steps, "step 3 of epoch 2")  # NonFiniteLoss, which names the place
"""

import difflib
import functools
import math
from dataclasses import fields

import torch
from torch import nn


class NonFiniteLoss(ArithmeticError):
    """A loss, a logit or a weight is not a finite number any more; the text says where."""


def first_line(error: BaseException, kind: bool = True) -> str:
    """The first line of what an exception says, after its type where `kind` is set; whatever its text is or does."""
    try:
        text = next(iter(str(error).strip().splitlines()), "")
    except Exception:  # a __str__ that fails
        text = ""
    name = type(error).__name__
    if not text:
        return name
    return f"{name}: {text}" if kind else text


# --- Index sets -------------------------------------------------------------------------------------------------------

def check_index(index: torch.Tensor, n: int) -> torch.Tensor:
    """Return `index` if it is an int64 vector with values in [0, n); a ValueError names the first that is not."""
    is_tensor = isinstance(index, torch.Tensor)
    if not is_tensor or index.dtype != torch.int64 or index.dim() != 1:
        found = f"{index.dtype} of shape {tuple(index.shape)}" if is_tensor else type(index).__name__
        raise ValueError(f"dataset indices are {found}; they must be an int64 tensor of shape (k,)")
    outside = index[(index < 0) | (index >= n)]
    if len(outside):
        raise ValueError(f"index {outside[0].item()} out of range for {n} examples")
    return index


def check_forget(forget: torch.Tensor, n: int) -> torch.Tensor:
    """Return D_f, on the CPU, if it is a set of dataset indices that is neither empty nor all n examples; ValueError."""
    twice = len(check_index(forget, n)) - len(forget.unique())
    if len(forget) == 0:
        raise ValueError("the forget set is empty; nothing was discovered, so there is nothing to unlearn")
    if twice:
        raise ValueError(f"the forget set names {twice} examples twice; give each once")
    if len(forget) == n:
        raise ValueError(f"the forget set is all {n} training examples; the retain set must not be empty")
    return forget.cpu()


def check_shared(shared: torch.Tensor | None, forget: torch.Tensor, n: int) -> torch.Tensor:
    """Return the indices that share one mask row: D_f where none are given; ValueError if they lack some of D_f."""
    if shared is None:
        return forget
    if not torch.isin(forget, check_index(shared, n).cpu()).all():
        raise ValueError("shared lacks examples of D_f, which are under one mask (step 3.1); give all of D_f and more")
    return shared


# --- Settings ---------------------------------------------------------------------------------------------------------

def nearest(name: str, known) -> str:
    """The known name that is most like a given one."""
    return max(known, key=lambda other: difflib.SequenceMatcher(None, name, other).ratio())


def settings_from(record, kind: type):
    """The settings of `kind`, a dataclass, that a record of settings gives; those that it lacks have their defaults.

    A record may hold settings for others beside all of these, as a whole experiment's does. One that lacks some of
    these and has other names is taken for misspelt, so that no setting vanishes.
    Args: record: an instance of `kind`, a dict, or any object with attributes.
    Raises: ValueError for a name that `kind` does not know, with the nearest that it does.
    """
    if isinstance(record, kind):
        return record
    given = record if isinstance(record, dict) else vars(record)
    names = [f.name for f in fields(kind)]
    has = record.__contains__ if isinstance(record, dict) else lambda name: hasattr(record, name)
    known = [name for name in names if has(name)]
    unknown = [name for name in given if name not in names]
    if unknown and len(known) < len(names):
        raise ValueError(f"unknown setting {unknown[0]!r}; did you mean {nearest(unknown[0], names)!r}?")
    get = record.__getitem__ if isinstance(record, dict) else lambda name: getattr(record, name)
    return kind(**{name: get(name) for name in known})


def refuse_unknown(kind: type) -> type:
    """Decorate a dataclass so that an unknown name is a TypeError that says the nearest known one."""
    make, names = kind.__init__, [f.name for f in fields(kind)]

    @functools.wraps(make)
    def __init__(self, *values, **given):
        for name in given:
            if name not in names:
                raise TypeError(f"{kind.__name__} has no setting {name!r}; did you mean {nearest(name, names)!r}?")
        make(self, *values, **given)

    kind.__init__ = __init__
    return kind


def check_choices(settings, **choices: tuple) -> None:
    """Raise ValueError for the first setting whose value is none of its choices."""
    for name, among in choices.items():
        if (value := getattr(settings, name)) not in among:
            raise ValueError(f"{name} is {value!r}; choose from {', '.join(among)}")


def check_ranges(settings, **ranges: tuple[float, float]) -> None:
    """Raise ValueError for the first setting outside its range, both ends of which belong to it."""
    for name, (least, most) in ranges.items():
        if not least <= (value := getattr(settings, name)) <= most:
            raise ValueError(f"{name} is {value}; it must be from {least} to {most}")


# --- Finite numbers ---------------------------------------------------------------------------------------------------

def finite(total: torch.Tensor, steps: int, where: str) -> float:
    """Mean loss of a pass as a float; NonFiniteLoss unless it is a finite number."""
    mean = float(total) / max(1, steps)
    if not math.isfinite(mean):
        raise NonFiniteLoss(f"the loss is {mean} in {where}; lower the rate")
    return mean


def finite_weights(net: nn.Module) -> nn.Module:
    """The network itself; NonFiniteLoss if the last update has left a weight or statistic that is not finite."""
    for name, value in [*net.named_parameters(), *net.named_buffers()]:  # a buffer that is a mask may hold -inf
        if (~value.isfinite() if value.requires_grad or "running_" in name else value.isnan()).any():
            raise NonFiniteLoss(f"{name} is not finite any more after the last update; lower the rate")
    return net


def check_trainable(parameters) -> None:
    """Raise ValueError unless one of a network's own parameters may change."""
    if not any(p.requires_grad for p in parameters):
        raise ValueError("every parameter of the network is frozen; set requires_grad where unlearning may change it")
