"""engine/modes.py: training and evaluation mode, copies, and the running statistics of BatchNorm."""

import copy
import threading

import pytest
import torch
from torch import nn

from architectures import IMAGE, Keeping
from engine.modes import copy_of, modes_of, put_modes, refresh_batchnorm
from expand import expand
from experiment.data import batches
from helpers import assert_close, assert_same_state, gen, make_data, randomise, run, small_net
from states import acc_forget, extra_tensors, unlearn

# --- Modes ------------------------------------------------------------------------------------------------------------


class Both(nn.Module):
    """Two convolutions with a BatchNorm each, one of which a user may freeze, and one without parameters."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.plain, self.drop, self.head = nn.BatchNorm2d(4, affine=False), nn.Dropout(0.1), nn.Linear(4, 4)

    kept_in_eval = False  # whether norm1 stays in evaluation mode whatever the network is told

    def train(self, mode: bool = True):
        super().train(mode)
        if self.kept_in_eval:
            self.norm1.eval()
        return self

    def forward(self, x):
        x = self.norm1(self.conv1(x)).relu()
        x = self.plain(self.norm2(self.conv2(x))).relu()
        return self.head(self.drop(x.amax(dim=(2, 3))))


HOW = {  # what a user does to the network, and the BatchNorms whose statistics must then stay
    "eval in a training network": (lambda net: net.norm1.eval(), ["norm1"]),
    "no gradient": (lambda net: net.norm1.requires_grad_(False), ["norm1"]),
    "both, in evaluation mode": (lambda net: net.eval().norm1.requires_grad_(False), ["norm1"]),
    "a train() of its own": (lambda net: setattr(net.eval(), "kept_in_eval", True), ["norm1"]),
    "a part without gradient": (lambda net: net.norm1.weight.requires_grad_(False), []),
    "evaluation mode": (lambda net: net.eval(), []),
    "not at all": (lambda net: net, []),
}


@pytest.mark.parametrize("how", HOW)
def test_frozen_norms_keep_their_statistics(how):
    """A30, D7: frozen is a BatchNorm in evaluation mode in a network that trains, or one none of whose parameters has a
    gradient; not one of a network that came in evaluation mode as a whole. Through steps 2 and 3, the refresh and the
    end of the repair its statistics are bit for bit the network's own, those of masked passes too; others move."""
    (freeze, names), net, seen = HOW[how], randomise(Both(), 0), []
    freeze(net)
    with acc_forget(0.9, 0.0):
        out = unlearn(net=net, n=60, size=5, forget_norm="batch",
                      log=lambda epoch, epochs, model, **record: seen.append(extra_tensors(model)))
    for name in ("norm1", "norm2", "plain"):
        for kind in ("running_mean", "running_var", "num_batches_tracked"):
            own, masked = getattr(getattr(net, name), kind), seen[0][f"{name}.{kind}"]
            assert torch.equal(getattr(getattr(out, name), kind), own) == (name in names), (name, kind)
            assert torch.equal(masked[:4] if masked.dim() else masked, own) == (name in names), (name, kind)
    assert modes_of(out) == modes_of(net)


# --- Refresh ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [None, torch.tensor([7, 2, 2, 2, 8, 1, 0, 3, 4, 9])])
def test_a_refresh_is_one_shuffled_augmented_pass(index):
    """A12, D7, E1, F11: refreshed statistics are means over the images, or over those of an index as often as it has
    them, of one augmented pass drawn from a generator of seed 0, whatever the labels: a last batch of two counts half
    as much as one of four. Momenta and mixed modes come back; global random numbers stay."""
    data, expanded, conv = make_data(0, n=10, pad=2, flip=True), expand(small_net(0), IMAGE), small_net(0).conv1
    before, world = copy.deepcopy(extra_tensors(expanded)), torch.get_rng_state()
    expanded.layers()["norm2"].base.momentum = 0.3
    expanded.net.act.eval()
    modes = modes_of(expanded)
    refresh_batchnorm(expanded, data, size=4, index=index)
    parts = [run(conv, x) for _, x, _ in batches(data, index, size=4, generator=gen(0), augment=True)]
    assert [len(part) for part in parts] == [4, 4, 2]
    norm = expanded.layers()["norm1"].base
    assert_close(norm.running_mean, torch.cat(parts).mean(dim=(0, 2, 3)), 1e-5)  # float32
    assert_close(norm.running_var, sum(len(part) * part.var(dim=(0, 2, 3)) for part in parts) / 10, 1e-5)
    assert norm.num_batches_tracked == 3 and norm.momentum == 0.1
    assert expanded.layers()["norm2"].base.momentum == 0.3
    for name, value in extra_tensors(expanded).items():  # theta_o2 has statistics of its own
        assert torch.equal(value, before[name]), name
    assert modes_of(expanded) == modes and torch.equal(torch.get_rng_state(), world)


def test_a_refresh_asks_how_the_network_came():
    """A30: which BatchNorms are frozen is told by the modes that the network came with, not by those that it is in; its
    first layer may be in evaluation mode, too."""
    net, before = randomise(Both(), 0), randomise(Both(), 0)
    net.conv1.eval()
    net.norm1.eval()
    modes = modes_of(net)
    refresh_batchnorm(net.eval(), make_data(0), modes=modes)
    assert torch.equal(net.norm1.running_mean, before.norm1.running_mean)
    assert not torch.equal(net.norm2.running_mean, before.norm2.running_mean)


def test_a_refresh_that_fails():
    """E1, F11: an exception in the middle of the refresh leaves no norm with another momentum or mode."""
    expanded = expand(small_net(0), IMAGE)
    modes = [number % 3 > 0 for number, _ in enumerate(expanded.modules())]
    put_modes(expanded, modes)
    expanded.net.head.register_forward_pre_hook(lambda m, args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        refresh_batchnorm(expanded, make_data(0))
    assert expanded.layers()["norm1"].base.momentum == 0.1 and modes_of(expanded) == modes


class Idle(nn.Module):
    """A network with a norm that never runs and one that runs twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.idle, self.twice = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.none = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x):
        x = self.none(self.conv(x))
        return self.twice(x) + self.twice(2 * x)


def test_a_refresh_of_norms_that_run_never_or_twice():
    """E1, D7: one that never runs keeps its statistics, one that runs twice has the means of all that it saw."""
    net, data = randomise(Idle(), 0), make_data(0, n=6)
    idle = copy.deepcopy(net.idle)
    refresh_batchnorm(net, data, size=4)
    assert_same_state(net.idle, idle)
    assert net.idle.training and net.idle.momentum == 0.1
    assert net.twice.num_batches_tracked == 4 and net.none.running_mean is None
    means = 1.5 * torch.stack([run(net.eval().none, run(net.conv, x)).mean(dim=(0, 2, 3)) * len(x) / 6
                               for _, x, _ in batches(data, size=4, generator=gen(0), augment=True)]).sum(dim=0)
    assert_close(net.twice.running_mean, means, 1e-5)  # float32


def test_copies():
    """A11, D1: a copy has what a network has kept, without its history, which torch cannot copy."""
    net = Keeping()
    net(torch.rand(2, 1, 8, 8, generator=gen(0)))
    twin = copy_of(net)
    assert_same_state(twin, net)
    assert net.seen.grad_fn is not None and twin.seen.grad_fn is None and torch.equal(twin.seen, net.seen.detach())


@pytest.mark.parametrize("keep", [lambda net: [net(torch.zeros(2, *IMAGE.shape[1:]))], lambda net: threading.Lock()])
def test_what_cannot_be_copied(keep):
    """X10: a graph that a list keeps, or what no copy can have, is a TypeError that says what to do."""
    net = small_net(0)
    net.kept = keep(net)
    with pytest.raises(TypeError, match="cannot copy the network Net: .*; clear what it keeps of its passes"):
        copy_of(net)
    with pytest.raises(TypeError, match="cannot copy the network Net") as told:
        expand(net, IMAGE)
    assert "layers=[" not in str(told.value)
