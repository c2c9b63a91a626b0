"""Networks so sure of the known bad images that SGD cannot move them (repair/network.py: settle, stuck).

P4: where ten passes over D_f move nothing although its cross-entropy is no longer tiny, a repair takes Adam, says so,
and removes what SGD leaves; where SGD gets there, or what it does is given, it stays.
"""

import copy
import warnings

import pytest
import torch
from torch import nn

from engine.streams import stream
from experiment.settings import Config
from helpers import assert_same_state, make_data
from models import build
from repair.network import STUCK, choose_settings, mean_ce, repair, settle, stuck, too_sure, travelled
from train import fit

FORGET = torch.tensor([1, 5, 7])


@pytest.fixture(scope="module")
def learnt():
    """24 random images and a ResNet-9 that knows them by heart."""
    data = make_data(0, n=24, channels=3, classes=4, size=8)
    net = build("resnet9", 0.1, classes=4, image_size=8, seed=0)
    fit(net, data, None, Config(epochs=20, batch=12, lr=0.02), stream(0, "training"))
    return data, net


def as_sure_as(net: nn.Module, data, ce: float) -> nn.Module:
    """A copy whose head is scaled until D_f's mean cross-entropy is `ce`."""
    net = copy.deepcopy(net)
    weight, low, high = net.head.weight.detach().clone(), 0.1, 100.0
    for _ in range(50):
        factor = (low + high) / 2
        with torch.no_grad():
            net.head.weight.copy_(factor * weight)
        low, high = (factor, high) if mean_ce(net, data, FORGET) > ce else (low, factor)
    return net


@pytest.mark.parametrize("ce, is_stuck", [(1e-3, False), (1e-5, True)])
def test_sgd_stays_where_it_gets_there_and_adam_comes_where_it_does_not(learnt, ce, is_stuck):
    """P4: told from ten passes, what a hundred do; with Adam the same hundred are enough."""
    data, net = learnt
    net = as_sure_as(net, data, ce)
    assert not too_sure(net, data, FORGET)  # which is what was looked at before
    before, labels = copy.deepcopy(net), data.labels.clone()
    settings = dict(unlearn_epochs=1, stop="max")
    assert stuck(net, data, FORGET, choose_settings(net, 24, settings)[0]) == is_stuck
    assert_same_state(net, before)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        repair(net, data, FORGET, optimizer="sgd", **settings)
    assert any("after 100 passes, still above gamma" in str(w.message) for w in caught) == is_stuck
    told = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Acc(D_f) comes down to gamma
        repair(net, data, FORGET, say=told.append, **settings)
    assert any(line == f"optimizer adam ({STUCK})" for line in told) == is_stuck
    assert any(line.startswith("optimizer sgd") for line in told) != is_stuck
    (line,) = (line for line in told if line.startswith("epoch 1/1: "))
    assert "Acc(D_f) 1.00 to 0.00" in line and torch.equal(data.labels, labels)


def test_what_is_given_stays(learnt):
    """P4: an optimiser or a rate that is given is not changed; nor is anything where few passes are asked for."""
    data, net = learnt
    net = as_sure_as(net, data, 1e-5)
    for given in (dict(optimizer="sgd"), dict(unlearn_lr=0.004), dict(max_passes=10), dict(gamma=1.0)):
        assert settle(net, data, FORGET, given)[0].optimizer == "sgd"
    config, reasons = settle(net, data, FORGET, dict(max_passes=11))
    assert (config.optimizer, config.unlearn_lr) == ("adam", 1e-4) and f"optimizer adam ({STUCK})" in reasons


def test_a_network_that_overflows_is_not_stuck(learnt):
    """P4: what ten passes ruin moves; the repair itself tells of it."""
    data, net = learnt
    config = Config(optimizer="sgd", unlearn_lr=1e30, gamma=0.05)
    assert not stuck(as_sure_as(net, data, 1e-3), data, FORGET, config)


def test_the_way_of_momentum():
    """P4: SGD's way along a constant gradient, by torch's own optimiser."""
    for momentum in (0.0, 0.5, 0.9):
        p = nn.Parameter(torch.zeros((), dtype=torch.float64))
        optimizer = torch.optim.SGD([p], lr=1.0, momentum=momentum)
        for k in range(1, 30):
            p.grad = torch.ones_like(p)
            optimizer.step()
            assert -p.item() * (1 - momentum) == pytest.approx(travelled(k, momentum))
