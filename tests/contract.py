"""What every method promises, one function a property; a test of a user-supplied method takes three lines.

    from contract import PROPERTIES
    @pytest.mark.parametrize("keeps", PROPERTIES)
    def test_my_method(keeps): keeps(my_method)

Each property takes the method and a seed of data and network, runs it on 12 images of 8x8, and asserts.
"""

import copy
import inspect
import random
import sys
import warnings
from dataclasses import fields
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from experiment import cell
from experiment import data as data_module
from experiment.data import Data, batches
from helpers import assert_same_state, gen, make_data, make_dataset, small_net, tiny
from etd import Expanded
from tasks import Task, discover, make_task


def unlearn(method, seed=0, *, net=None, data=None, forget=None, generator=7, log=None, **changes):
    """Run a method on small data; D_c, for a method that asks for it, is D_f and one more example."""
    net = small_net(seed) if net is None else net
    data = make_data(seed, pad=1, flip=True, trigger=True) if data is None else data
    forget = torch.randperm(len(data) - 1, generator=gen(seed))[:4] if forget is None else forget
    asked = inspect.signature(method).parameters
    more = {"corrupted": torch.cat([forget, torch.tensor([len(data) - 1])])} if "corrupted" in asked else {}
    more |= {"log": log or (lambda *given, **values: None)} if "log" in asked else {}
    config = tiny(**{"gamma": 0.3, "max_passes": 20, **changes})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Acc\\(D_f\\)")  # a gamma out of reach is no breach
        return method(net, data, forget, config, gen(generator), **more)


def inputs_stay(method, seed=0):
    """A11: network (weights, gradients, requires_grad, modes), images, labels and D_f stay as they were."""
    net, data, forget = small_net(seed), make_data(seed, trigger=True), torch.tensor([5, 1, 7])
    net.norm1.weight.requires_grad_(False)
    parts = (data.images, data.labels, forget)
    before, copies = copy.deepcopy(net), [part.clone() for part in parts]
    unlearn(method, seed, net=net, data=data, forget=forget)
    assert_same_state(net, before)
    for a, b in zip(net.modules(), before.modules(), strict=True):
        assert type(a) is type(b) and a.training == b.training
    for a, b in zip(net.parameters(), before.parameters(), strict=True):
        assert a.grad is None and a.requires_grad == b.requires_grad
    assert all(torch.equal(part, kept) for part, kept in zip(parts, copies, strict=True))


def plain_network(method, seed=0):
    """A18: a plain network of the original's class, keys, shapes, dtypes and memory format, in storage of its own and
    without a gradient of the last update."""
    net = small_net(seed).to(memory_format=torch.channels_last)
    out = unlearn(method, seed, net=net)
    assert not any(isinstance(m, Expanded) or hasattr(m, "active") or m._forward_hooks for m in out.modules())
    for a, b in zip(net.modules(), out.modules(), strict=True):
        assert type(a) is type(b)
    layout = [(k, v.shape, v.dtype, v.stride()) for k, v in net.state_dict().items()]
    assert [(k, v.shape, v.dtype, v.stride()) for k, v in out.state_dict().items()] == layout
    assert [p.requires_grad for p in out.parameters()] == [p.requires_grad for p in net.parameters()]
    assert all(p.grad is None for p in out.parameters())
    assert not {v.data_ptr() for v in net.state_dict().values()} & {v.data_ptr() for v in out.state_dict().values()}
    twin, x = copy.deepcopy(net).eval(), next(batches(make_data(seed)))[1]
    twin.load_state_dict(out.state_dict())
    assert out.training and torch.equal(out.eval()(x), twin(x)), "the result computes something else than its weights"


def modes_come_back(method, seed=0):
    """Every module of the result is in the mode of its twin in the network that came in."""
    for choose in (lambda i: False, lambda i: i % 2 == 0):
        net = small_net(seed)
        for i, module in enumerate(net.modules()):
            module.training = choose(i)
        out = unlearn(method, seed, net=net)
        assert [m.training for m in out.modules()] == [m.training for m in net.modules()]


def dropping(seed):
    """A network with dropout."""
    net = small_net(seed)
    net.act = nn.Sequential(net.act, nn.Dropout(0.5))
    return net


def deterministic(method, seed=0):
    """A9: the same generator and settings give the same network bit for bit, dropout included, whatever the global
    random states of torch, numpy and Python, which are left as they were, as are grad mode and default dtype."""
    outs = []
    for world in (0, 1):
        torch.manual_seed(world)
        np.random.seed(world)
        random.seed(world)
        net = dropping(seed)
        grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
        before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
        outs.append(unlearn(method, seed, net=net))
        after = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
        same_modes = (torch.is_grad_enabled(), torch.get_default_dtype()) == (grad, dtype)
        torch.set_grad_enabled(grad)  # so that no other method is to blame
        torch.set_default_dtype(dtype)
        assert torch.equal(before[0], after[0]) and before[1:] == after[1:] and same_modes
    assert_same_state(*outs)


class SealedTask(Task):
    """A task that raises when the test set, the clean labels or D_c are asked for."""

    sealed = ("test", "clean", "corrupted")

    def __getattribute__(self, name):
        if name in type(self).sealed:
            raise AssertionError(f"{name} was read")
        return super().__getattribute__(name)


class SealedButCorrupted(SealedTask):
    """The same for an IDEAL method, which may know D_c."""

    sealed = ("test", "clean")


class SealedData(Data):
    """D_tr that raises when anybody but data.py, or what copies objects, looks at what could tell D_c."""

    def __getattribute__(self, name):
        if name in ("_overlay", "__dict__"):
            caller = sys._getframe(1).f_code.co_filename
            if Path(caller).name not in ("dataclasses.py", "copy.py") and caller != data_module.__file__:
                raise AssertionError(f"{name} was read")
        return super().__getattribute__(name)


def blind(method, seed=0):
    """A12, A22: run as the command line runs it, nothing reads the test set, the clean labels or (unless asked for)
    D_c."""
    task = make_task("poison", make_dataset(seed, pad=1, flip=True), 8, seed)
    kind = SealedButCorrupted if "corrupted" in inspect.signature(method).parameters else SealedTask
    train = SealedData(**{f.name: getattr(task.train, f.name) for f in fields(Data)})
    sealed = kind(task.name, task.seed, train, task.test, task.clean, task.corrupted)
    config = tiny(gamma=0.0, max_passes=2)  # step 2, passes and tries are made, and given up
    # a mock, because the metrics, which may read what a method may not, are run by the same call
    with mock.patch.object(cell, "evaluate", return_value={}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = cell.unlearn(config, "method", method, small_net(seed), sealed, discover(task, 0.5, seed))
    assert row["status"] == "ok", row["error"]


def finite_weights(method, seed=0):
    """L11: every weight and statistic is a finite number under bf16 autocast too, and of the dtype that it had."""
    for (name, value), before in zip(unlearn(method, seed, precision="bf16").state_dict().items(),
                                     small_net(seed).state_dict().values(), strict=True):
        assert value.isfinite().all() and value.dtype == before.dtype, name


def float64_stays(method, seed=0):
    """L10: a float64 network is unlearned in float64, whatever the precision asks for."""
    outs = [unlearn(method, seed, net=small_net(seed, dtype=torch.float64), precision=p) for p in ("float32", "bf16")]
    assert_same_state(*outs)
    assert all(p.dtype == torch.float64 for p in outs[0].parameters())


def forget_sets_refused(method, seed=0):
    """A15, A16: an empty D_f, an empty D_r, duplicates and indices outside D_tr -> ValueError that says so."""
    nothing = torch.empty(0, dtype=torch.int64)
    refused = [
        (nothing, "the forget set is empty"),
        (torch.arange(12), "all 12 training examples"),
        (torch.tensor([1, 4, 1]), "twice"),
        (torch.tensor([12]), "index 12 out of range for 12 examples"),
        (torch.tensor([-1]), "index -1 out of range for 12 examples"),
        (torch.tensor([1.0]), "int64"),
    ]
    for forget, text in refused:
        with pytest.raises(ValueError, match=text):
            unlearn(method, seed, forget=forget)


def logs_epochs(method, seed=0):
    """A method that takes log= calls it once an epoch as log(epoch, epochs, model, loss=..., ...), from epoch 1 on and
    for as many of them as run; one without epochs as log(0, 0, model, passes=..., ...), once, None if it makes none."""
    calls = []

    def log(epoch, epochs, model, **values):
        value = values["loss" if epoch else "passes"]
        assert isinstance(model, nn.Module) and (value is None and not epoch or np.isfinite(value))
        calls.append((epoch, epochs))

    unlearn(method, seed, log=log, epochs=2, unlearn_epochs=2)
    asked = "log" in inspect.signature(method).parameters
    assert asked or not calls
    if calls and calls != [(0, 0)]:
        epochs = calls[0][1]
        assert calls == [(epoch, epochs) for epoch in range(1, len(calls) + 1)] and len(calls) <= epochs


PROPERTIES = [inputs_stay, plain_network, modes_come_back, deterministic, blind, finite_weights, float64_stays,
              forget_sets_refused, logs_epochs]


def assert_contract(method, seed=0):
    """All of it at once."""
    for keeps in PROPERTIES:
        keeps(method, seed)
