"""Checks with their errors: index sets, settings, losses and weights that are finite numbers.

    forget = check_forget(forget, n=len(data))       # a ValueError that says what was found, before any training
    mean = finite(total, steps, "step 3 of epoch 2")  # NonFiniteLoss, which names the place
"""

import difflib
import functools
import math
import sys
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


def out_of_memory(error: Exception) -> bool:
    """Whether there was no memory, which torch says with a RuntimeError; it says nothing about the network."""
    said = ("allocate memory", "tried to allocate")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in said)


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


def check_settings(settings, allowed: dict) -> None:
    """Raise a TypeError or ValueError that names the first field of a dataclass of a wrong type or out of its range.

    A field that may be None and has None for its default is not looked at where it is None.
    Args: allowed: by name a tuple of texts, the choices, or an interval such as "(0, 1]"; numbers that are not named
        must be finite and at least 0.
    """
    for f in fields(settings):
        name, value, kind = f.name, getattr(settings, f.name), kind_of(f)
        if value is None and f.default is None:
            continue
        if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool) != (kind is bool):
            raise TypeError(f"{name} is {value!r}; it must be {kind.__name__}")
        among = allowed.get(name) or ("[0, inf)" if kind in (int, float) else ())
        if isinstance(among, tuple) and among and value not in among:
            raise ValueError(f"{name} is {value!r}; choose from {', '.join(among)}")
        if isinstance(among, str) and not inside(value, among):
            least = f"{'at least' if among[0] == '[' else 'above'} {among[1:].partition(',')[0]}"
            wanted = f"a finite number {least}" if "inf" in among else f"in {among}"
            raise ValueError(f"{name.replace('_', '-')} is {value}; it must be {wanted}")


def inside(value: float, interval: str) -> bool:
    """Whether a number lies in an interval such as "(0, 1]"; whatever a float cannot hold does not."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    return above and value <= sys.float_info.max and (value <= high if interval[-1] == "]" else value < high)


@functools.cache
def kind_of(f) -> type:
    """A field's type: bool, str, int or float; where None may stand too, the other one."""
    return next(kind for kind in (bool, str, int, float) if f.type in (kind, kind | None))


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
