"""engine/checks.py: refusals that say what was found, before any training.

That each value of the settings is of its kind and in its range is in paper/test_algorithm.py and
experiment/test_settings.py.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from engine.checks import (NonFiniteLoss, check_forget, check_index, check_sets, check_settings, finite_weights,
                           first_line, settings_from)
from helpers import small_net

as_index = partial(torch.tensor, dtype=torch.int64)  # of an empty list, too

# --- Index sets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index, text", [
    (torch.tensor([6]), "index 6 out of range for 6 examples"),
    (torch.tensor([5, 8, -1]), "index 8 out of range for 6 examples"),
    (torch.tensor([5, -1]), "index -1 out of range for 6 examples"),
    (torch.tensor([1.0]), r"torch.float32 of shape \(1,\); they must be an int64 tensor"),
    (torch.tensor([1, 2], dtype=torch.int32), "torch.int32"),
    (torch.tensor([True]), "torch.bool"),
    (torch.tensor([[1, 2]]), r"torch.int64 of shape \(1, 2\)"),
    (torch.tensor(3), r"of shape \(\)"),
    ([1, 2], "dataset indices are list"),
])
def test_indices(index, text):
    """A16, M18: what is no int64 vector within the data is told as what it is; negative ones never wrap."""
    for check in (check_index, check_forget):
        with pytest.raises(ValueError, match=text):
            check(index, 6)


@pytest.mark.parametrize("forget, shared, text", [
    ([], [5], "the forget set is empty; nothing was discovered"),
    ([3, 0, 4, 1, 2, 5], None, "all 6 training examples; the retain set must not be empty"),
    ([1, 1, 2, 2, 2], None, "3 entries of the forget set name an example twice"),
    ([1, 5], [5, 3], "shared lacks examples of D_f"),
    ([1, 5], [5, 1, 6], "index 6 out of range")])
def test_forget_and_shared_sets(forget, shared, text):
    """A15, A16, M8: D_f is neither empty nor all examples, and names each once; what shares a mask row holds all of D_f
    and lies within the data; the text has the numbers."""
    with pytest.raises(ValueError, match=text):
        check_sets(as_index(forget), shared and as_index(shared), 6)


def test_indices_that_are_right():
    """A16, M8, M18: both ends of the data, repetitions and no index at all are indices; they come back as they are, as
    D_f and what shares a mask row do; without the latter D_f shares one."""
    for index in (torch.tensor([0, 5, 0]), as_index([])):
        assert check_index(index, 6) is index
    for shared in (None, [5, 3, 1], [2, 4, 3, 5, 1, 0]):
        found = check_sets(torch.tensor([5, 1]), shared and as_index(shared), 6)
        assert [part.tolist() for part in found] == [[5, 1], shared or [5, 1]]
    assert check_forget(torch.tensor([3, 0, 4, 1, 2]), 6).tolist() == [3, 0, 4, 1, 2]  # all but one


# --- Settings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Some:
    """Settings of two kinds."""

    rate: float = 0.5
    kind: str = "plain"
    passes: int = 3

    def __post_init__(self):
        check_settings(self, dict(rate="[0, 1]", kind=("plain", "wide")))


class Attributes:
    """Settings that are attributes of a class or computed, as a property is."""

    kind = "wide"

    @property
    def rate(self):
        return 0.25


@pytest.mark.parametrize("record, expected", [
    ({}, Some()), (dict(rate=0.1), Some(rate=0.1)), (SimpleNamespace(kind="wide"), Some(kind="wide")),
    (Some(passes=9), Some(passes=9)), (Attributes(), Some(0.25, "wide")),
    (dict(rate=0, kind="wide", passes=1, more=2), Some(0, "wide", 1)),
    (SimpleNamespace(rate=1, kind="wide", passes=1, epochs=9), Some(1, "wide", 1)),
    (type("Config", (), dict(rate=0.1, kind="wide", help=lambda self: None)), Some(0.1, "wide")),  # a class itself
])
def test_settings_from_records(record, expected):
    """A26: what a record lacks has its default; one that has all settings may hold more, for others."""
    assert settings_from(record, Some) == expected


@pytest.mark.parametrize("make, error, text", [
    *((lambda record=record: settings_from(record, Some), ValueError, "unknown setting 'rates'; did you mean 'rate'")
      for record in (dict(rates=0.1, kinds="wide"), SimpleNamespace(rates=0.1),
                     dict(rate=0.1, kind="wide", rates=0.1), type("Config", (), dict(rates=0.1))(),
                     type("Config", (), dict(rates=0.1)))),
    (lambda: Some(pases=1), TypeError, "unexpected keyword argument 'pases'"),
    (lambda: replace(Some(), pases=1), TypeError, "unexpected keyword argument 'pases'")])
def test_unknown_names(make, error, text):
    """A26: a record that lacks some settings and has another name is taken for misspelt; the class itself refuses an
    unknown name, `replace` too."""
    with pytest.raises(error, match=text):
        make()


# --- Finite numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part, value, bad", [
    ("conv1.weight", math.nan, True), ("conv1.weight", math.inf, True), ("norm1.running_mean", -math.inf, True),
    ("norm2.running_var", math.inf, True), ("mask", -math.inf, False), ("mask", math.nan, True),
])
def test_finite_weights(part, value, bad):
    """A3: weights and running statistics are finite; another buffer, as an attention's mask, may hold -inf."""
    net = small_net(0)
    net.register_buffer("mask", torch.zeros(3))
    assert finite_weights(net) is net
    with torch.no_grad():
        dict([*net.named_parameters(), *net.named_buffers()])[part].view(-1)[-1] = value
    if bad:
        with pytest.raises(NonFiniteLoss, match=f"{part} is not finite any more after the last update"):
            finite_weights(net)
    else:
        assert finite_weights(net) is net


# --- Errors -----------------------------------------------------------------------------------------------------------


class Mute(Exception):
    """An error whose text cannot be had."""

    def __str__(self):
        raise RuntimeError


@pytest.mark.parametrize("error, line, without_kind", [
    (ValueError("one\ntwo"), "ValueError: one", "one"), (ValueError("\n  \n one \ntwo"), "ValueError: one", "one"),
    (ValueError(), "ValueError", "ValueError"), (ValueError(" \n"), "ValueError", "ValueError"),
    (Mute(), "Mute", "Mute"), (KeyError("a"), "KeyError: 'a'", "'a'"),
    (OSError(2, "gone"), "FileNotFoundError: [Errno 2] gone", "[Errno 2] gone"),
])
def test_first_lines(error, line, without_kind):
    """A31: the first line of what an error says, after its type where asked for; its type alone if it says nothing."""
    assert first_line(error).rstrip() == line
    assert first_line(error, kind=False).rstrip() == without_kind
