"""Sec. 3, Table 1: the methods that REM is compared with; Table 2 and Fig. 7: REM's ablations.

    A9, A11, A12, A15, A16, A18, A22, L10, L11   what every method promises, see contract.py
    A13, L14                                     Table 2: an ablation is decided by its name
    A14                                          Table 1, "ETD": REM on ETD
    A2, A3, A20                                  methods that stop by Acc(D_f), as gradient ascent, NPO and Potion do
    R8                                           constants of the papers that the methods come from

That each method is its formula, update by update, is in test_rivals_twins.py; here is what holds whatever the formula
is, and the closed forms of its parts. In the order of baselines.py.
"""

import contextlib
import copy
import inspect
import math
import warnings
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

import baselines
import contract
import rem_plus
from engine.batches import count_batches
from engine.checks import NonFiniteLoss, check_forget
from engine.streams import stream
from expand import expand
from experiment.data import batches
from experiment.methods import METHODS as RECORDS
from experiment.methods import load_method
from experiment.settings import Config
from helpers import assert_same_state, gen, make_data, seeds, small_net, tiny
from metrics import accuracy
from rem import add_capacity

METHODS = {name: record.function for name, record in RECORDS.items()}
EXAMPLE = str(Path(__file__).parents[2] / "examples" / "my_method.py") + ":relabel"


def on_etd(model, data, forget, config, generator, log=None):
    """rem-on-etd, given a plain network: expand it first, and see that the Expanded is left alone."""
    expanded = baselines.with_theta_o2(model, data, config)
    before = copy.deepcopy(expanded)
    out = METHODS["rem-on-etd"](expanded, data, forget, config, generator, log=log)
    assert_same_state(expanded, before)
    return out


def repaired(model, data, forget, config, generator, log=None):
    """REM+ with early stopping, which leaves two of these few images out of step 3."""
    with mock.patch.object(rem_plus, "HELD_OUT", 0.25):
        return rem_plus.rem_plus(model, data, forget, replace(config, stop="repaired"), generator, log=log)


# Potion of 500 tries is tried 60 times here: no promise depends on their number
RUNNABLE = {**METHODS, "rem-on-etd": on_etd, "rem-plus, early stopping": repaired,
            "my_method.py:relabel": load_method(EXAMPLE)[1],
            "potion-500": baselines.potion(tries=60, part=25, relative=True)}


def draw(seed, size=4, n=12):
    """D_f in no order, and D_r."""
    forget = torch.randperm(n, generator=gen(seed))[:size]
    return forget, torch.tensor([i for i in range(n) if i not in forget.tolist()])


def answered(net, data):
    """The classes that a network gives, (N,) int64."""
    passed, net = batches(data, dtype=next(net.parameters()).dtype), copy.deepcopy(net).eval()
    with torch.no_grad():
        return torch.cat([net(x).argmax(dim=1) for _, x, _ in passed])


def learnt(net, data, wrong=()):
    """The data with the network's own answers as given labels, but for the examples of `wrong`: Acc is known."""
    labels = answered(net, data)
    labels[list(wrong)] = (labels[list(wrong)] + 1) % data.classes
    return replace(data, labels=labels)


class Stubborn(nn.Module):
    """A network that says class 0 whatever its weights are, as long as they only move a little or shrink."""

    def __init__(self, seed):
        super().__init__()
        self.net = small_net(seed)

    def forward(self, x):
        return 1e-3 * self.net(x) + torch.tensor([1.0, 0.0, 0.0, 0.0])


def stubborn(right=2):
    """Stubborn, data, and D_f of 4 examples of which so many are of class 0."""
    net, data, forget = Stubborn(0), make_data(0), torch.tensor([8, 2, 5, 1])
    labels = data.labels.clone()
    labels[forget] = torch.where(torch.arange(4) < right, 0, 1)
    data = replace(data, labels=labels)
    assert accuracy(net, data, forget) == right / 4
    return net, data, forget


# --- The contract -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", list(RUNNABLE))
@pytest.mark.parametrize("keeps", contract.PROPERTIES, ids=lambda keeps: keeps.__name__)
def test_contract(keeps, name):
    """A9, A11, A12, A15, A16, A18, A22, L10, L11: every method and the worked example keep every property."""
    keeps(RUNNABLE[name], 0)


def broken(change):
    """A method that goes against the contract in one way."""
    def method(model, data, forget, config, generator):
        check_forget(forget, len(data))
        net = copy.deepcopy(model)
        return change(net, model, data) or net
    return method


def global_noise(net, model, data):
    with torch.no_grad():
        net.conv1.weight += torch.randn(net.conv1.weight.shape)


def without_gradients(net, model, data):
    torch.set_grad_enabled(False)


def hooked(net, model, data):
    net.register_forward_pre_hook(lambda module, x: (x[0] + 1,))


def computed_otherwise(net, model, data):
    net.forward = lambda x: model.eval()(x) + 1


def logging(*calls):
    """A method that logs these epochs, each with a loss, or 0 with the number of its passes."""
    def method(model, data, forget, config, generator, log):
        check_forget(forget, len(data))
        for epoch, epochs in calls:
            log(epoch, epochs, model, **({"loss": 1.0} if epoch else {"passes": epochs or None}))
        return copy.deepcopy(model)
    return method


BROKEN = [
    (contract.plain_network, broken(hooked)),
    (contract.plain_network, broken(computed_otherwise)),
    (contract.deterministic, broken(without_gradients)),
    *((contract.logs_epochs, logging(*calls)) for calls in (
        [(2, 2)], [(1, 2), (1, 2)], [(1, 3), (2, 2)], [(1, 1), (2, 1)], [(0, 0), (1, 1)])),
    (contract.inputs_stay, broken(lambda net, model, data: model.norm1.running_mean.add_(1) is None)),
    (contract.deterministic, broken(global_noise)),
    (contract.blind, lambda model, data, forget, config, generator, *, test: model),
    (contract.blind, lambda model, data, forget, config, generator: data._overlay and model),
    (contract.blind, lambda model, data, forget, config, generator: vars(data) and model),
]


@pytest.mark.parametrize("keeps, method", BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_contract_can_be_broken(keeps, method):
    """A18: a method that breaks a property fails it."""
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        keeps(method)


@pytest.mark.parametrize("calls", [[(1, 3), (2, 3), (3, 3)], [(1, 5)], [(0, 0)], []])
def test_what_may_be_logged(calls):
    """A18: epochs of a number of its own, fewer than announced, a run without passes, nothing; always where it is
    given, without asking whether it is."""
    contract.assert_contract(logging(*calls))


@pytest.mark.parametrize("name", list(RUNNABLE))
def test_ours_log_each_epoch_that_is_asked_for(name):
    """A18: once an epoch, or once without."""
    calls = []
    contract.unlearn(RUNNABLE[name], log=lambda epoch, epochs, net, **more: calls.append((epoch, epochs)), epochs=2,
                     unlearn_epochs=2)
    asked = "log" in inspect.signature(RUNNABLE[name]).parameters
    assert calls in ([[(0, 0)], [(1, 2), (2, 2)]] if asked else [[]])


def test_contract_sees_what_is_read():
    """A12: a sealed task lets nothing be read but D_tr; D_c is open to the IDEAL methods alone."""
    asking = {name for name, method in METHODS.items() if "corrupted" in inspect.signature(method).parameters}
    assert asking == {"etd-ideal", "rem-ideal", "rem-plus-ideal"}
    for kind, sealed in ((contract.SealedTask, {"test", "clean", "corrupted"}),
                         (contract.SealedButCorrupted, {"test", "clean"})):
        task = kind("poison", 0, *[torch.zeros(1)] * 4)
        for name in ("train", "test", "clean", "corrupted"):
            with pytest.raises(AssertionError, match="was read") if name in sealed else contextlib.nullcontext():
                getattr(task, name)


@pytest.mark.parametrize("name", ["retrain", "cf", "ascent", "scrub", "badt", "etd"])
@pytest.mark.parametrize("last", [False, True])
def test_a3_an_overflow_is_told(name, last):
    """A3: an overflow ends in NonFiniteLoss, even where the very last update is the one that ruins the network."""
    net, data = small_net(0), make_data(0, pad=1, flip=True)
    more = dict(batch=12, epochs=1, unlearn_epochs=1) if last else dict(batch=4)
    text = "not finite any more" if last else "the loss is (nan|-?inf)"
    # SCRUB ends with a pass over D_r; ascent looks at its network after every pass
    text = {"scrub": "the loss is (nan|-?inf)", "ascent": "logits are not finite"}.get(name, text)
    with warnings.catch_warnings(), pytest.raises(NonFiniteLoss, match=text):
        warnings.filterwarnings("ignore", message="Acc")
        config = tiny(lr=1e37, unlearn_lr=1e37, weight_decay=1e5, gamma=0.2, max_passes=1, **more)
        METHODS[name](net, learnt(net, data), draw(0)[0], config, gen(7))


def test_constants_of_the_papers():
    """R8: SCRUB's alpha, temperature and steps, SSD's batch and lambda, Potion's growth a try; CUTS's passes, images of
    D_tr, neighbours and weight of diversity. SCRUB's 100 steps are two max passes at CIFAR-10's 98 an epoch."""
    b = baselines
    assert (Config.alpha, b.SCRUB_TEMPERATURE, b.SCRUB_STEPS) == (0.01, 4.0, 100)
    assert (b.SSD_BATCH, b.SSD_LAMBDA, b.POTION_GROWTH) == (64, 1, 1.1)
    assert (b.CUTS_PASSES, b.CUTS_IMAGES, b.CUTS_NEAREST, b.CUTS_DIVERSITY) == (10, 1000, 5, 2.0)
    for found in (100, 500, 1000):
        assert math.ceil(100 / (count_batches(found, 512) + count_batches(50000 - found, 512))) == 2


def test_one_example():
    """A20: a D_f of one example with 1x1 maps has no batch statistics: the passes over it use the running ones."""
    net, data = small_net(0), make_data(0, n=6, size=1)
    data = learnt(net, data)
    for name in ("ascent", "npo", "scrub", "ssd", "potion", "cuts", "rem"):
        out = contract.unlearn(METHODS[name], net=net, data=data, forget=torch.tensor([1]), gamma=0.2, ssd_alpha=0.5)
        assert any(not torch.equal(a, b) for a, b in zip(out.parameters(), net.parameters(), strict=True)), name


# --- Dampening --------------------------------------------------------------------------------------------------------

@given(seeds, st.integers(1, 40), st.floats(0, 100))
@example(0, 1, 50.0)
@example(0, 7, 0.0)
@example(0, 7, 100.0)
def test_percentile(seed, size, q):
    """L16: the percentile is numpy's; of nothing it is infinite, which no ratio exceeds."""
    values = torch.rand(size, generator=gen(seed), dtype=torch.float64).sort().values
    assert baselines.percentile(values, q) == pytest.approx(np.percentile(values.numpy(), q), rel=1e-12)
    assert baselines.percentile(values[:0], q) == math.inf


@pytest.mark.parametrize("name", ["ssd", "potion"])
def test_a_parameter_that_no_output_depends_on_stays(name):
    """A18: a parameter that the forward pass does not use has importance 0 and stays, as a frozen one does; a channel
    of no importance to D_r has no ratio and spoils no percentile; the others are dampened."""
    net = small_net(0)
    net.idle = nn.Linear(2, 2)
    net.conv2.weight.requires_grad_(False)
    with torch.no_grad():
        net.head.weight[:, 0] = 0  # so nothing depends on channel 0
    data = learnt(net, make_data(0))
    out = contract.unlearn(METHODS[name], net=net, data=data, forget=draw(0)[0], gamma=0.5, ssd_alpha=0.5)
    assert torch.equal(out.idle.weight, net.idle.weight) and torch.equal(out.conv2.weight, net.conv2.weight)
    assert not torch.equal(out.conv1.weight, net.conv1.weight)
    assert all(p.isfinite().all() for p in out.parameters())


def test_ssd_has_a_batch_of_its_own():
    """R8: the batch of training plays no part in SSD's importances, that of Potion's is the batch of training."""
    net = small_net(0, dtype=torch.float64)
    data, forget = learnt(net, make_data(0)), draw(0)[0]
    for name, alike in (("ssd", True), ("potion", False)):
        outs = [contract.unlearn(METHODS[name], net=net, data=data, forget=forget, batch=batch, ssd_alpha=0.5)
                for batch in (2, 12)]
        assert torch.equal(outs[0].conv2.weight, outs[1].conv2.weight) == alike


def test_weights_that_nothing_reaches_move_no_cut(monkeypatch):
    """L16: a weight that no gradient reaches has no ratio, so that Potion's cuts are those of the others."""
    net, cuts = small_net(3), []
    idle = copy.deepcopy(net)
    idle.idle = nn.Parameter(torch.ones(500))
    monkeypatch.setattr(baselines, "dampen", lambda *given: cuts.append(given[-1]))
    monkeypatch.setattr(baselines, "accuracy", lambda *_: 1.0)
    monkeypatch.setattr(baselines, "say_end", lambda *_: None)
    for one in (net, idle):
        METHODS["potion"](one, make_data(3, n=30), torch.arange(5), tiny(gamma=0.0), gen(0))
    assert len(cuts) == 100 and cuts[:50] == cuts[50:]


# --- Methods that stop by Acc(D_f) ------------------------------------------------------------------------------------

ENDS = [("ascent", 3, "passes", 0.2), ("npo", 3, "passes", 0.2), ("potion", 50, "tries of Potion", 0.2),
        ("potion-500", 500, "tries of Potion", 0.1)]  # a fifth of the original's one half


@pytest.mark.parametrize("name, most, what, bound", ENDS, ids=lambda value: value if isinstance(value, str) else "")
def test_a3_giving_up(name, most, what, bound):
    """A3, R1: a bound that is never reached ends at the cap, with a warning that has the bound which holds, and the log
    says so; Potion's, as released, is a part of what the original network had."""
    net, data, forget = stubborn()
    said = "gamma = 0.2" if name == "npo" else f"{bound:.3g}"
    if name == "npo":  # which takes networks that `expand` takes
        net = small_net(0)
        data = learnt(net, make_data(0), wrong=forget[2:].tolist())
    with pytest.warns(UserWarning, match=f"is 0.50 after {most} {what}, still above {said}$") as warned:
        calls = []
        METHODS[name](net, data, forget, tiny(gamma=0.2, max_passes=3, unlearn_lr=1e-9), gen(0),
                      log=lambda *args, **values: calls.append((*args[:2], values)))
    [(epoch, epochs, values)] = calls
    assert (epoch, epochs, values["passes"], values["acc_forget"]) == (0, 0, most, 0.5) and len(warned) == 1
    assert name == "npo" or values["gave_up"]


@pytest.mark.parametrize("name", ["ascent", "npo", "potion", "potion-500"])
def test_a2_equality_is_reached(name):
    """A2: Acc(D_f) = gamma is reached: nothing moves, nothing is said; one step below gamma it is not. Potion as
    released asks for gamma times the original's Acc(D_f), so it stops at once at gamma 1 alone, or where that is 0."""
    net, forget = small_net(0), torch.tensor([8, 2, 5, 1])
    half, none = (learnt(net, make_data(0), wrong=forget[k:].tolist()) for k in (2, 0))
    relative = name == "potion-500"

    def moved(data, gamma):
        out = RUNNABLE[name](net, data, forget, tiny(gamma=gamma, max_passes=1), gen(0))
        return not torch.equal(out.conv1.weight, net.conv1.weight)

    reached = 1.0 if relative else 0.5
    assert not moved(half, reached) and not moved(none, 0.0)  # a warning would be an error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Acc")
        assert moved(half, math.nextafter(reached, 0)) and moved(half, 0.5) == relative


@pytest.mark.parametrize("name", ["ascent", "npo"])
def test_a20_the_mode_that_is_set(name):
    """A20: `forget_norm` decides whether passes use, and move, the running statistics; auto is batch, as no step 3
    follows; one example alone has no batch statistics."""
    net, forget = small_net(0), draw(0)[0]
    data = learnt(net, make_data(0))
    for norm, known, moves in (("auto", forget, True), ("batch", forget, True), ("running", forget, False),
                               ("batch", forget[:1], False), ("batch", forget[:2], True)):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Acc")
            out = METHODS[name](net, data, known, tiny(gamma=0.2, max_passes=1, forget_norm=norm), gen(0))
        assert torch.equal(out.norm1.running_mean, net.norm1.running_mean) != moves
        assert not torch.equal(out.conv1.weight, net.conv1.weight)


@pytest.mark.parametrize("name", ["ascent", "badt", "scrub"])
@pytest.mark.filterwarnings("ignore:Acc")
def test_a30_frozen_norms(name):
    """A30: the statistics of a BatchNorm that its user froze stay bit for bit, those of another move."""
    net = small_net(0)
    net.norm1.eval()
    out = METHODS[name](net, learnt(net, make_data(0)), draw(0)[0], tiny(max_passes=1), gen(0))
    assert torch.equal(out.norm1.running_mean, net.norm1.running_mean)
    assert torch.equal(out.norm1.running_var, net.norm1.running_var) and not out.norm1.training
    assert not torch.equal(out.norm2.running_mean, net.norm2.running_mean)


# --- Back along a task vector -----------------------------------------------------------------------------------------

def test_cuts_takes_the_nearest_of_equal_steps():
    """A18: where all steps score the same, as of a network that says one class alone, it stays where it was."""
    net, data, forget = stubborn()
    out = METHODS["cuts"](net, data, forget, tiny(unlearn_lr=0.01), gen(0))
    assert_same_state(out, net)


def test_cuts_may_go_all_the_way_back():
    """R8: of its 21 steps the last is a whole one away from the wrong labels, and is taken where it agrees best."""
    data, net, steps = make_data(0), small_net(0), []
    with mock.patch.object(baselines, "agreement", lambda *_: len(steps)), \
            mock.patch.object(baselines, "walk", lambda net, start, end, step: steps.append(step)):
        METHODS["cuts"](net, data, draw(0)[0], tiny(unlearn_lr=0.01), gen(0))
    assert steps == [-k / 20 for k in range(21)] + [-1.0]


def test_cuts_passes_over_what_is_not_finite():
    """A3: a step whose network gives infinite logits is not taken, even where its classes would score the highest."""
    net, data, index = small_net(0), make_data(0), torch.arange(12)
    places = baselines.neighbours(torch.rand(12, 3, generator=gen(0)))
    assert -2 <= baselines.agreement(net, data, index, places) <= 1
    with torch.no_grad():
        net.head.weight[0] = math.inf
    assert baselines.agreement(net, data, index, places) == -math.inf
    net = small_net(0)
    with mock.patch.object(baselines, "CUTS_PASSES", 1):  # of one update, after which every step but 0 overflows
        assert_same_state(METHODS["cuts"](net, data, draw(0)[0], tiny(unlearn_lr=1e30, batch=12), gen(0)), net)


# --- REM by other names -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("capacity, ratio, width", [(0.5, None, 3), (0.25, None, 9), (0.5, 2.0, 6), (1.0, None, 0)])
def test_e6_theta_o2_is_drawn_once_for_all(capacity, ratio, width):
    """E6, X3: ETD's network and REM's have the same theta_o2, of what is left to the 100 % network, unless a ratio is
    given; it is drawn from the settings' seed."""
    net, data, config = small_net(0), make_data(0), tiny(capacity=capacity, ratio=ratio, seed=5)
    expanded = baselines.with_theta_o2(net, data, config)
    assert expanded.width == width  # over 3 channels
    assert_same_state(expanded, add_capacity(net, data, torch.tensor([1]), config, gen(0)).expanded)
    drawn = expand(net, torch.zeros(2, 1, 8, 8), width / 3, generator=stream(5, "theta_o2"))
    assert_same_state(expanded, drawn)


@pytest.mark.parametrize("name, fixed, other", [
    ("rem-no31", dict(step31=False, step32=True), dict(step31=True, step32=False)),
    ("rem-no32", dict(step31=True, step32=False), dict(step31=False, step32=True)),
    ("rem-ce", dict(redirect="ce"), dict(redirect="npo")),
])
def test_a13_the_name_decides(name, fixed, other):
    """A13, L14: an ablation is REM with these settings, whatever the settings say; each is another network than REM."""
    data, (forget, _), net = make_data(0), draw(0), small_net(0)

    def by(method, **more):
        return contract.unlearn(METHODS[method], net=net, data=data, forget=forget, gamma=0.5, **more)

    assert_same_state(by(name, **other), by("rem", **fixed))
    assert not torch.equal(by(name).conv1.weight, by("rem").conv1.weight)


def test_a14_rem_on_etd():
    """A14: rem-on-etd is for the Expanded of an ETD-trained network, and refuses a plain one."""
    with pytest.raises(ValueError, match="rem-on-etd works on an ETD-trained network.*add --etd"):
        METHODS["rem-on-etd"](small_net(0), make_data(0), draw(0)[0], tiny(), gen(0))
