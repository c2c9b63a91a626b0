"""Networks so sure of the known bad images that SGD would not move them.

P4: step 2 has updates of one length, so that a repair removes what a hundred updates at SGD's rate leave as it is.
"""

import copy
import warnings

import pytest
import torch
from torch import nn

from engine.streams import stream
from experiment.settings import Config
from helpers import make_data
from metrics import predict
from models import build
from repair.network import repair
from train import fit

FORGET = torch.tensor([1, 5, 7])


@pytest.fixture(scope="module")
def learnt():
    """24 random images and a ResNet-9 that knows them by heart."""
    data = make_data(0, n=24, channels=3, classes=4, size=8)
    net = build("resnet9", 0.1, classes=4, image_size=8, seed=0)
    fit(net, data, None, Config(epochs=20, batch=12, lr=0.02), stream(0, "training"))
    return data, net


@torch.no_grad()
def mean_ce(net: nn.Module, data) -> float:
    """Of D_f, in eval mode; double precision, where 1e-9 can be told from 0."""
    (_, x, y), = data.batches(FORGET)
    return float(nn.functional.cross_entropy(net.eval()(x).double(), y))


def as_sure_as(net: nn.Module, data, ce: float) -> nn.Module:
    """A copy whose head is scaled until D_f's mean cross-entropy is `ce`."""
    net = copy.deepcopy(net)
    weight, low, high = net.head.weight.detach().clone(), 0.1, 100.0
    for _ in range(50):
        factor = (low + high) / 2
        with torch.no_grad():
            net.head.weight.copy_(factor * weight)
        low, high = (factor, high) if mean_ce(net, data) > ce else (low, factor)
    return net


@pytest.mark.parametrize("ce", [1e-2, 1e-5, 1e-8])
def test_what_sgd_would_not_move_is_removed(learnt, ce):
    """P4: Acc(D_f) comes down within a few passes, without a warning; at SGD's rate a hundred passes move nothing where
    D_f's cross-entropy is 1e-5 or less."""
    data, net = learnt
    net, told = as_sure_as(net, data, ce), []
    assert torch.equal(predict(net, data, FORGET), data.labels[FORGET])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=r"Acc\(W\)")
        repair(net, data, FORGET, unlearn_epochs=1, stop="max", say=told.append)
    (line,) = (line for line in told if line.startswith("epoch 1/1: "))
    assert "Acc(D_f) 1.00 to 0.00" in line
    assert int(line.split("epoch 1/1: ")[1].split()[0]) <= 50  # updates of step 2
    if ce <= 1e-5:
        with pytest.warns(UserWarning, match="after 100 passes, still above gamma"):
            repair(net, data, FORGET, unlearn_epochs=1, stop="max", reach=0.0)
