"""Checks with their errors: index sets, settings, losses and weights that are finite numbers.

    forget = check_forget(forget, n=len(data))       # a ValueError that says what was found, before any training
    mean = finite(total, steps, "step 3 of epoch 2")  # NonFiniteLoss, which names the place
"""

import difflib
import functools
import math
import numbers
import warnings
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
    """Return D_f, on the CPU, if it is a set of dataset indices, neither empty nor all n examples; ValueError."""
    twice = len(check_index(forget, n)) - len(forget.unique())
    if len(forget) == 0:
        raise ValueError("the forget set is empty; nothing was discovered, so there is nothing to unlearn")
    if twice:
        raise ValueError(f"{twice} entries of the forget set name an example twice or more often; give each once")
    if len(forget) == n:
        raise ValueError(f"the forget set is all {n} training examples; the retain set must not be empty")
    return forget.cpu()


def check_sets(forget: torch.Tensor, shared: torch.Tensor | None, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return D_f (`check_forget`) and the indices that share one mask row: D_f where none are given; ValueError."""
    forget = check_forget(forget, n)
    if shared is None:
        return forget, forget
    if not torch.isin(forget, check_index(shared, n).cpu()).all():
        raise ValueError("shared lacks examples of D_f, which are under one mask (step 3.1); give all of D_f and more")
    return forget, shared


# --- Settings ---------------------------------------------------------------------------------------------------------

def nearest(name: str, known) -> str:
    """The known name that is most like a given one."""
    return max(known, key=lambda other: difflib.SequenceMatcher(None, name, other).ratio())


def settings_from(record, kind: type):
    """The settings of `kind`, a dataclass, that a record of settings gives; those that it lacks have their defaults.

    A record may hold settings for others beside all of these, as a whole experiment's does. One that lacks some of
    these and has other names is taken for misspelt, so that no setting vanishes.
    Args: record: an instance of `kind`, a dict, or any object or class with attributes.
    Raises: ValueError for a name that `kind` does not know, with the nearest that it does.
    """
    if isinstance(record, kind):
        return record
    given = record if isinstance(record, dict) else [name for name in dir(record) if not name.startswith("_")
                                                     and not callable(getattr(record, name))]
    names = [f.name for f in fields(kind)]
    has = record.__contains__ if isinstance(record, dict) else lambda name: hasattr(record, name)
    known = [name for name in names if has(name)]
    unknown = [name for name in given if name not in names]
    if unknown and len(known) < len(names):
        raise ValueError(f"unknown setting {unknown[0]!r}; did you mean {nearest(unknown[0], names)!r}?")
    get = record.__getitem__ if isinstance(record, dict) else lambda name: getattr(record, name)
    return kind(**{name: get(name) for name in known})


def checked(**allowed):
    """Decorate a dataclass of settings: an unknown name is an error, and so is a value outside of what is allowed.

    Args: allowed: by name a tuple of texts, the choices, or a pair of numbers, the least and the most; every other
        number must be at least 0.
    Raises (the decorated class): TypeError for an unknown name, with the nearest known one, and for a value of another
        kind than the default; ValueError for a value.
    """
    def decorate(kind: type) -> type:
        make, names = kind.__init__, [f.name for f in fields(kind)]

        @functools.wraps(make)
        def __init__(self, *values, **given):
            for name in given:
                if name not in names:
                    raise TypeError(f"{kind.__name__} has no setting {name!r}; did you mean {nearest(name, names)!r}?")
            make(self, *values, **given)
            for f in fields(kind):
                name, value = f.name, getattr(self, f.name)
                check_kind(name, value, f.default)
                if name in allowed or isinstance(value, (int, float)):
                    check_value(name, value, allowed.get(name, (0, math.inf)))

        kind.__init__ = __init__
        return kind

    return decorate


def check_kind(name: str, value, default) -> None:
    """Raise TypeError unless a setting whose default is a number is one, and a whole one if the default is whole."""
    wanted = numbers.Integral if isinstance(default, int) else numbers.Real
    if isinstance(default, (int, float)) and not isinstance(default, bool) and (
            not isinstance(value, wanted) or isinstance(value, bool)):
        number = "whole number" if wanted is numbers.Integral else "number"
        raise TypeError(f"{name} is {value!r}; it must be a {number}")


def check_value(name: str, value, among: tuple) -> None:
    """Raise ValueError unless a setting's value is one of its choices, or in its range, both ends of which count."""
    if isinstance(among[0], str):
        if value not in among:
            raise ValueError(f"{name} is {value!r}; choose from {', '.join(among)}")
    elif not among[0] <= value <= among[1]:
        raise ValueError(f"{name} is {value}; it must be from {among[0]} to {among[1]}")


def positive(**settings: float) -> None:
    """Raise ValueError for the first setting that is not above 0."""
    for name, value in settings.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be above 0")


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


def warn_above(acc: float, gamma: float, passes: int) -> None:
    """Warn where step 2 has given up with Acc(D_f) above gamma."""
    if acc > gamma:
        warnings.warn(f"Acc(D_f) is {acc:.2f} after {passes} passes, still above gamma = {gamma}", stacklevel=3)
