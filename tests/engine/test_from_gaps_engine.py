"""From the dissolved test_gaps.py and test_odd.py and the end of the old test_etd.py: modes, checks, batches, features.

To be folded into the files of these modules: refreshed statistics D7, F11, E1; index sets A16; what came with a network
L11; batches whose memory is used again A7; features S13.
"""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import baselines
import expand
from architectures import IMAGE
from engine.checks import check_forget
from engine.ending import Never, Repaired
from engine.features import features
from engine.modes import refresh_batchnorm
from experiment.data import Data, batches
from helpers import assert_close, assert_same_state, gen, make_data, run, seeds, small_net, tiny
from rem import rem

pytestmark = pytest.mark.filterwarnings("ignore:Acc")  # step 2 may give up

FORGET = torch.tensor([2, 5, 7])

# --- modes.py: refreshed statistics -----------------------------------------------------------------------------------

@given(seed=seeds, n=st.integers(5, 12))
def test_refreshed_statistics_are_the_data_sets(seed, n):
    """E1, D7: a refresh makes the base statistics those of the training images, whatever they were before, and leaves
    theta_o2, its own statistics and all weights."""
    data, net = make_data(seed, n=n), small_net(seed)
    expanded = expand.expand(net, IMAGE)
    before = {name: t.detach().clone() for name, t in expanded.state_dict().items()}
    refresh_batchnorm(expanded, data, size=n)
    norm = expanded.layers()["norm1"].base
    x = run(net.conv1, next(batches(data, size=n))[1])
    assert_close(norm.running_mean, x.mean(dim=(0, 2, 3)), 1e-5)  # float32
    assert_close(norm.running_var, x.var(dim=(0, 2, 3)), 1e-5)
    assert norm.num_batches_tracked == 1 and norm.momentum == 0.1
    after = expanded.state_dict()
    for name, value in before.items():
        if ".base.running" not in name and ".base.num_batches" not in name:
            assert torch.equal(value, after[name]), name


def test_refresh_is_one_shuffled_pass():
    """D7: refreshed statistics are means over the images of one augmented pass drawn from the generator, or from one of
    seed 0: a last batch of two counts half as much as one of four."""
    data, found = make_data(0, n=10, pad=2, flip=True), []
    for given_generator, seed in ((None, 0), (gen(5), 5)):
        net = small_net(0)
        refresh_batchnorm(net, data, size=4, generator=given_generator)
        parts = [run(net.conv1, x) for _, x, _ in batches(data, size=4, generator=gen(seed), augment=True)]
        assert_close(net.norm1.running_mean, torch.cat(parts).mean(dim=(0, 2, 3)), 1e-5)  # float32
        variance = sum(len(part) * part.var(dim=(0, 2, 3)) for part in parts) / 10
        assert_close(net.norm1.running_var, variance, 1e-5)
        found.append(net.norm1.running_var)
    assert [len(part) for part in parts] == [4, 4, 2] and not torch.allclose(*found, atol=1e-4)


def test_refresh_runs_in_batches_of_512():
    """E1: unless told otherwise a refresh runs in the paper's batches, whose number decides the variances."""
    data = make_data(0, n=600)
    usual, told, whole = (small_net(0) for _ in range(3))
    refresh_batchnorm(usual, data)
    refresh_batchnorm(told, data, size=512)
    refresh_batchnorm(whole, data, size=600)
    assert_same_state(usual, told)
    assert not torch.equal(usual.norm1.running_var, whole.norm1.running_var)


def test_refresh_reads_no_label_and_keeps_modes():
    """E1, F11: the refresh gives the same for any labels and puts modes and momenta back, mixed ones too, also where an
    exception ends it."""
    data, results = make_data(0, n=9), []
    for labels in (data.labels, torch.zeros_like(data.labels)):
        expanded = expand.expand(small_net(0), IMAGE)
        expanded.net.act.eval(), expanded.layers()["norm2"].eval()
        expanded.layers()["norm2"].base.momentum = 0.3
        modes = [m.training for m in expanded.modules()]
        refresh_batchnorm(expanded, type(data)(data.images, labels, 4, data.mean, data.std), size=4)
        results.append(copy.deepcopy(expanded))
        expanded.net.head.register_forward_pre_hook(lambda m, args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            refresh_batchnorm(expanded, data)
        for one in (results[-1], expanded):
            assert [m.training for m in one.modules()] == modes and one.layers()["norm2"].base.momentum == 0.3
    assert_same_state(*results)


class Idle(nn.Module):
    """A network with a norm that never runs and one that runs twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.idle, self.twice = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.conv(x)
        return self.twice(x) + self.twice(2 * x)


def test_a_refresh_of_norms_that_run_never_or_twice():
    """E1, D7: a norm that does not run keeps its statistics; one that runs twice has the means over all that it saw."""
    net, data = Idle(), make_data(0, n=6)
    net.idle.running_mean.fill_(3), net.idle.running_var.fill_(2), net.idle.num_batches_tracked.fill_(77)
    refresh_batchnorm(net, data, size=4)
    assert net.idle.running_mean.tolist() == [3] * 3 and net.idle.running_var.tolist() == [2] * 3
    assert net.idle.num_batches_tracked == 77 and net.idle.training and net.idle.momentum == 0.1
    x = run(net.conv, next(batches(data, size=6))[1])
    assert_close(net.twice.running_mean, 1.5 * x.mean(dim=(0, 2, 3)), 1e-5)  # float32
    assert net.twice.num_batches_tracked == 4


# --- checks.py --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("forget, n, text", [
    (torch.tensor([1, 1, 2, 2, 2]), 9, "names 3 examples twice"),
    (torch.randperm(3, generator=gen(3)), 3, "all 3 training examples"),
    (torch.randperm(300, generator=gen(0)), 300, "all 300 training examples")])
def test_a_forget_set_without_sense_is_refused(forget, n, text):
    """A16: repeated indices are told with their number; a forget set of all examples leaves nothing to retain."""
    with pytest.raises(ValueError, match=text):
        check_forget(forget, n)


class Extras(nn.Module):
    """small_net with a buffer that holds -inf, as an attention's mask does, and a state that is no tensor."""

    def __init__(self):
        super().__init__()
        self.net = small_net(0)
        self.register_buffer("mask", torch.full((4, 4), -torch.inf))

    def forward(self, x):
        return self.net(x)

    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        assert state == {"version": 3}


def test_what_a_network_had_from_the_first_is_no_ruin():
    """L11: -inf in a buffer that no update moves, and extra state, come through; a NaN there does not."""
    net, data = Extras(), make_data(0, n=40)
    outs = [rem(net, data, FORGET, tiny(), gen(0), until=until) for until in (Never, Repaired)]
    for out in [*outs, baselines.fine_tune(net, data, FORGET, tiny(), gen(0))]:
        assert torch.equal(out.mask, net.mask) and out.get_extra_state() == {"version": 3}
        assert not torch.equal(out.net.head.weight, net.net.head.weight)
    net.mask[0, 0] = torch.nan
    with pytest.raises(ArithmeticError, match="mask is not finite"):
        baselines.fine_tune(net, data, FORGET, tiny(), gen(0))


# --- batches.py -------------------------------------------------------------------------------------------------------

class Source:
    """A plain data source; its batches are new tensors, or live in the same memory, as some fast loaders have it."""

    def __init__(self, data: Data, reuses: bool):
        self.data, self.reuses = data, reuses

    def __len__(self):
        return len(self.data)

    def batches(self, index=None, size=512, generator=None, augment=False, dtype=torch.float32):
        index = torch.arange(len(self)) if index is None else index
        rows = index if generator is None else index[torch.randperm(len(index), generator=generator)]
        held = None
        for part in rows.split(size):
            batch = next(self.data.batches(part, size=size, dtype=dtype))
            held = [tensor.clone() for tensor in batch] if held is None or not self.reuses else held
            for place, tensor in zip(held, batch, strict=True):
                place[: len(part)] = tensor
            yield tuple(place[: len(part)] for place in held)


@pytest.mark.parametrize("n", [12, 13])
@pytest.mark.parametrize("until", [Never, Repaired])
def test_batches_may_be_used_again(n, until):
    """A7: a source that gives every batch in the same memory trains the same network, also with a last batch of one."""
    data, net, config = make_data(0, n=n), small_net(0), tiny(gamma=0.3)
    fresh, used = (rem(net, Source(data, reuses), FORGET, config, gen(0), until=until) for reuses in (False, True))
    assert_same_state(fresh, used)
    assert not torch.equal(fresh.head.weight, net.head.weight)


# --- features.py ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [(), (5,), (5, 6)])
def test_features_of_a_linear_layer_are_its_last_axis(size):
    """S13: what a Linear is given is averaged over all axes between the first and the last."""
    shown = torch.randn(12, *size, 3, generator=gen(0))
    head = nn.Linear(3, 4)
    net = nn.Sequential(nn.Flatten(), nn.Identity())
    net.forward = lambda x: head(shown[: len(x)]).flatten(1)
    net.add_module("head", head)
    expected = shown.double().flatten(1, -2).mean(dim=1) if size else shown.double()
    assert_close(features(copy.copy(net), make_data(0)), expected, 1e-6)
