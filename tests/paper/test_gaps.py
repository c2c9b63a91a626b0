"""Branches and defaults that the tests of their own files do not reach: odd networks, missing programs, second
tries."""

import ast
import importlib
import inspect
import subprocess
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import nn

import etd
import train
import expand
import metrics
from experiment import cell as experiment
from experiment.data import Data, batches
from helpers import assert_close, gen, make_data, small_net
from engine.checks import check_forget


class Fixed(nn.Module):
    """A network whose logits are the first pixels of its input, whatever number they are."""

    def forward(self, x):
        return torch.where(x[:, 0, 0, :2] > 1, torch.nan, x[:, 0, 0, :2])


def test_a_gpu_that_is_not_used_spoils_nothing():
    """R1: a CPU run does not wait for a GPU that it never touched, so a broken one costs no result."""
    with mock.patch.object(torch.cuda, "is_available", lambda: True), \
            mock.patch.object(torch.cuda, "is_initialized", lambda: False), \
            mock.patch.object(torch.cuda, "synchronize", side_effect=RuntimeError("CUDA error: device busy")):
        result, _, failure = experiment.attempt(lambda: 1)
    assert (result, failure) == (1, None)


@pytest.mark.parametrize("where", [0, 2, 4])
def test_one_wild_logit_in_any_batch(where):
    """V1, V8: a logit that is not finite in any one batch, first, middle or last, is an error and no class."""
    images = torch.zeros(5, 1, 1, 2, dtype=torch.uint8)
    data = Data(images, torch.zeros(5, dtype=torch.int64), 2, (0.0,), (1 / 255,))
    assert metrics.predict(Fixed(), data, size=1).tolist() == [0] * 5
    images[where, 0, 0, 1] = 2
    for size in (1, 2, 5):
        with pytest.raises(metrics.NonFiniteLoss, match="logits are not finite"):
            metrics.predict(Fixed(), data, size=size)


def test_generators_of_other_devices_are_refused():
    """M5: batches draws on the CPU, so a generator that is elsewhere is a ValueError that says where it is."""
    elsewhere = SimpleNamespace(device=torch.device("cuda"))
    with pytest.raises(ValueError, match="generator is on cuda"):
        batches(make_data(0), generator=elsewhere)


class Shortcut(nn.Module):
    """A network that fails where nobody watches it: without gradients and hooks, as a fast path of inference would."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 1), nn.Linear(2, 3)

    def forward(self, x):
        if not torch.is_grad_enabled() and not self._forward_hooks:
            raise RuntimeError("the fast path wants all of its weights")
        return self.head(self.conv(x).mean(dim=(2, 3)))


def test_a_failing_fast_path_is_refused():
    """X10: what goes wrong in inference alone is a TypeError that names the network too."""
    with pytest.raises(TypeError, match="cannot expand the network Shortcut: the fast path wants all of its weights"):
        expand.expand(Shortcut(), torch.zeros(2, 1, 4, 4))


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10)])
def test_no_git_is_no_error(error):
    """R3: without git, or with one that hangs, a row's commit is None."""
    with mock.patch.object(experiment.subprocess, "run", side_effect=error):
        assert experiment.git_hash() is None


class Cut(nn.Module):
    """A network that keeps the first two channels of what its convolution gives, whatever their number."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 1), nn.Linear(2, 3)

    def forward(self, x):
        return self.head(self.conv(x)[:, :2].mean(dim=(2, 3)))


def test_a_network_that_cuts_theta_o2_off_is_refused():
    """X10: extra channels that reach no output are a TypeError that names their layer, not a theta_o2 without
    effect."""
    with pytest.raises(TypeError, match="cannot expand 'conv': its extra channels reach no output"):
        expand.expand(Cut(), torch.zeros(2, 1, 4, 4))


def test_refresh_is_one_shuffled_pass():
    """D7: refreshed statistics are means over the images of one augmented pass drawn from the generator, or from one of
    seed 0: a last batch of two counts half as much as one of four."""
    data, found = make_data(0, n=10, pad=2, flip=True), []
    for given, seed in ((None, 0), (gen(5), 5)):
        expanded = expand.expand(small_net(0), torch.zeros(2, 1, 8, 8))
        train.refresh_batchnorm(expanded, data, size=4, generator=given)
        conv = small_net(0).conv1
        with torch.no_grad():
            parts = [conv(x) for _, x, _ in batches(data, size=4, generator=gen(seed), augment=True)]
        norm = expanded.layers()["norm1"].base
        assert_close(norm.running_mean, torch.cat(parts).mean(dim=(0, 2, 3)), 1e-5)  # float32
        assert_close(norm.running_var, sum(len(part) * part.var(dim=(0, 2, 3)) for part in parts) / 10, 1e-5)
        found.append(norm.running_var)
    assert [len(part) for part in parts] == [4, 4, 2] and not torch.allclose(*found, atol=1e-4)


class Fork(nn.Module):
    """A convolution that feeds a BatchNorm and a sum: its mask cannot wait for the BatchNorm, so expand tries twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 3)

    def forward(self, x):
        x = self.conv(x)
        return self.head((x + self.norm(x)).mean(dim=(2, 3)))


def test_a_second_try_draws_the_same_weights():
    """X4: theta_o2 depends on the generator alone, not on how often expand had to try."""
    conv = expand.expand(Fork(), torch.zeros(2, 1, 4, 4), generator=gen(3)).layers()["conv"]
    assert conv.mask_output  # the second try's
    expected = 2 * torch.rand((2, 1, 1, 1), generator=gen(3), dtype=torch.float64) - 1  # fan-in 1
    assert torch.equal(conv.to_extra, expected.float())


def test_a16_says_how_many_are_repeated():
    """A16: the message about a repeated forget set has the number of repetitions."""
    with pytest.raises(ValueError, match="names 3 examples twice"):
        check_forget(torch.tensor([1, 1, 2, 2, 2]), 9)


@pytest.mark.parametrize("n", [3, 300])
def test_a16_all_of_the_data_is_refused(n):
    """A16: a forget set of all examples leaves nothing to retain, however many they are."""
    with pytest.raises(ValueError, match=f"all {n} training examples"):
        check_forget(torch.randperm(n, generator=gen(n)), n)


@pytest.mark.parametrize("module", sorted(path.stem for path in Path(etd.__file__).parent.glob("*.py")))
def test_arguments_have_names(module):
    """Every argument of a function can be given by its name."""
    names = vars(importlib.import_module(module))
    functions = [f for f in names.values() if inspect.isfunction(f) and f.__module__ == module]
    assert functions
    for function in functions:
        for parameter in inspect.signature(function).parameters.values():
            assert parameter.kind is not parameter.POSITIONAL_ONLY, f"{module}.{function.__name__}: {parameter.name}"


SHIPPED = [path for folder in (".", "study", "formats", "benchmarks", "examples")
           for path in sorted((Path(etd.__file__).parent / folder).glob("*.py"))]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_checkpoints_run_no_code(path):
    """A8, T16: every torch.load of the shipped code says weights_only=True."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert {word.arg: ast.unparse(word.value)
                    for word in node.keywords}.get("weights_only") == "True", node.lineno
