"""The contract of every method (A9-A18), what is special to each, and how the command line finds them (R1, R2)."""

import contextlib
import copy
import inspect
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import baselines
import contract
from experiment import methods
import oracles
import rem as rem_module
import run
import train
from baselines import dampen, distillation, importance, percentile
from engine.batches import count_batches
from experiment.data import batches
from etd import drop
from train import expand_for, train_etd
from helpers import assert_close, assert_same_state, gen, make_data, make_dataset, seeds, small_net, tiny
from etd import Expanded
from experiment.methods import allowed_with, load_method
from metrics import accuracy
from models import build, reinitialise
from rem import rem
from engine.streams import stream
from experiment.settings import Config, resolve

few = settings(max_examples=max(2, settings().max_examples // 5))  # whole unlearning runs in each example
METHODS = {name: method.function for name, method in methods.METHODS.items()}
EXAMPLE = str(Path(__file__).parents[1] / "examples" / "my_method.py") + ":relabel"
# without: teachers answer once for all
schedules = st.sampled_from(["linear", "constant"])
augmentations = st.sampled_from([dict(), dict(pad=1, flip=True), dict(flip=True)])


def on_etd(model, data, forget, config, generator, log=None):
    """rem-on-etd, given a plain network: expand it first, and see that the Expanded is left alone."""
    expanded = expand_for(model, data, config)
    before = copy.deepcopy(expanded)
    out = METHODS["rem-on-etd"](expanded, data, forget, config, generator, log=log)
    assert_same_state(expanded, before)
    return out


RUNNABLE = {**METHODS, "rem-on-etd": on_etd, "my_method.py:relabel": load_method(EXAMPLE)[1]}


def scripted(*values):
    """An accuracy function that returns the values one after another, then the last one for ever; .calls counts."""
    def accuracy(*args, **kwargs):
        accuracy.calls += 1
        return values[min(accuracy.calls, len(values)) - 1]
    accuracy.calls = 0
    return accuracy


@contextlib.contextmanager
def accuracies(*values):
    """Acc(D_f) as scripted, for ascent and Potion."""
    spy = scripted(*values)
    with mock.patch.object(baselines, "accuracy", spy):
        yield spy


def draw(seed, size=4, n=12):
    """D_f in no order, and D_r."""
    forget = torch.randperm(n, generator=gen(seed))[:size]
    return forget, torch.tensor([i for i in range(n) if i not in forget.tolist()])


# --- The contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(RUNNABLE))
@pytest.mark.parametrize("keeps", contract.PROPERTIES, ids=lambda keeps: keeps.__name__)
def test_contract(keeps, name):
    """A9, A11, A12, A15, A16, A18, L10, L11: every method and the worked example keep every property, on one draw."""
    keeps(RUNNABLE[name], 0)


@few
@given(seeds, st.sampled_from(list(RUNNABLE)), st.sampled_from(contract.PROPERTIES))
def test_contract_drawn(seed, name, keeps):
    """A9-A18: the same on drawn data and networks."""
    keeps(RUNNABLE[name], seed)


def broken(change):
    """A method that goes against the contract in one way."""
    def method(model, data, forget, config, generator):
        baselines.check_forget(forget, len(data))
        net = copy.deepcopy(model)
        return change(net, model, data) or net
    return method


def global_noise(net, model, data):
    with torch.no_grad():
        net.conv1.weight += torch.randn(net.conv1.weight.shape)


class Odd(nn.Conv2d):
    """A convolution of another class."""


BROKEN = [
    (contract.inputs_stay, broken(lambda net, model, data: model.norm1.running_mean.add_(1) is None)),
    (contract.inputs_stay, broken(lambda net, model, data: data.labels.fill_(0) is None)),
    (contract.inputs_stay, broken(lambda net, model, data: model.requires_grad_(False) is None)),
    (contract.plain_network, broken(lambda net, model, data: model)),
    (contract.plain_network, broken(lambda net, model, data: expand_for(net, data, tiny()))),
    (contract.plain_network, broken(lambda net, model, data: net.to(memory_format=torch.contiguous_format))),
    (contract.plain_network, broken(lambda net, model, data: setattr(net, "conv2", Odd(3, 3, 3, padding=1)))),
    (contract.modes_come_back, broken(lambda net, model, data: net.train())),
    (contract.modes_come_back, broken(lambda net, model, data: net.eval())),
    (contract.deterministic, broken(global_noise)),
    (contract.global_random_states_stay, broken(global_noise)),
    (contract.finite_weights, broken(lambda net, model, data: net.norm2.running_var.fill_(math.nan) is None)),
    (contract.float64_stays, broken(lambda net, model, data: net.float())),
    (contract.forget_sets_refused, lambda model, data, forget, config, generator: model),
    (contract.logs_epochs, lambda model, data, forget, config, generator, log: model),
    (contract.blind, lambda model, data, forget, config, generator, *, test: model),
    (contract.blind, lambda model, data, forget, config, generator: data._overlay and model),
    (contract.blind, lambda model, data, forget, config, generator: vars(data) and model),
]


@pytest.mark.parametrize("keeps, method", BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_contract_can_be_broken(keeps, method):
    """A method that breaks a property fails it."""
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        keeps(method)


def test_contract_sees_what_is_read():
    """A12: a sealed task lets nothing be read but D_tr; D_c is open to the IDEAL methods alone."""
    asking = {name for name, method in METHODS.items() if "corrupted" in inspect.signature(method).parameters}
    assert asking == {"etd-ideal", "rem-ideal"}
    for kind, sealed in ((contract.SealedTask, {"test", "clean", "corrupted"}),
                         (contract.SealedButCorrupted, {"test", "clean"})):
        task = kind("poison", 0, *[torch.zeros(1)] * 4)
        for name in ("train", "test", "clean", "corrupted"):
            with pytest.raises(AssertionError, match="was read") if name in sealed else contextlib.nullcontext():
                getattr(task, name)


@pytest.mark.parametrize("name", ["retrain", "cf", "ascent", "scrub", "badt", "etd"])
def test_nonfinite(name):
    """A3: an overflow ends in NonFiniteLoss, even where the very last update is the one that ruins the network."""
    loss, last = "the loss is (nan|-?inf)", "not finite any more"
    for more, text in ((dict(batch=4), loss), (dict(batch=12, epochs=1, unlearn_epochs=1), last)):
        # SCRUB ends with a pass over D_r; Ascent's only pass is one batch
        text = {"scrub": loss, "ascent": last}.get(name, text)
        with accuracies(0.9, 0.0), pytest.raises(ArithmeticError, match=text):
            contract.unlearn(METHODS[name], lr=1e37, unlearn_lr=1e37, weight_decay=1e5, gamma=0.2, **more)


# --- Training anew and training on ------------------------------------------------------------------------------------


@few
@given(seeds, st.integers(1, 11))
def test_retrain(seed, size):
    """Retrain is fresh weights trained on D_r with the full recipe; neither D_f's images nor the trained weights
    matter."""
    data, (forget, retain) = make_data(seed), draw(seed, size)
    config = tiny(seed=seed, epochs=3, unlearn_lr=9.0, unlearn_epochs=7)
    anew = reinitialise(small_net(seed), stream(seed, "fresh weights").initial_seed())
    train.fit(anew, data, retain, config, gen(3), epochs=3, lr=0.05)
    assert_same_state(METHODS["retrain"](small_net(seed), data, forget, config, gen(3)), anew)
    images = data.images.clone()
    images[forget] = 255 - images[forget]
    assert_same_state(METHODS["retrain"](small_net(seed + 1), replace(data, images=images), forget, config, gen(3)),
                      anew)


@few
@given(seeds)
def test_fine_tune(seed):
    """CF is `unlearn_epochs` epochs on D_r at peak rate `unlearn_lr`, starting from the trained network."""
    data, (forget, retain), net = make_data(seed), draw(seed), small_net(seed)
    tuned = copy.deepcopy(net)
    train.fit(tuned, data, retain, tiny(), gen(3), epochs=3, lr=0.01)
    assert_same_state(METHODS["cf"](net, data, forget, tiny(unlearn_epochs=3, unlearn_lr=0.01), gen(3)), tuned)


def test_reinitialise_resnet9():
    """N1: fresh weights of ResNet-9 are what `build` draws from that seed, in the network's own layout, mode and
    dtype."""
    net = build("resnet9", 0.1, channels=1, image_size=8, seed=1).eval().requires_grad_(False)
    net.to(memory_format=torch.channels_last)
    before, state = copy.deepcopy(net), torch.get_rng_state()
    fresh = reinitialise(net, 2)
    assert_same_state(fresh, build("resnet9", 0.1, channels=1, image_size=8, seed=2))
    assert_same_state(net, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert [v.stride() for v in fresh.state_dict().values()] == [v.stride() for v in net.state_dict().values()]
    assert not any(m.training for m in fresh.modules()) and not any(p.requires_grad for p in fresh.parameters())
    assert all(p.dtype == torch.float64 for p in reinitialise(net.double(), 2).parameters())


def test_reinitialise_vit():
    """N1: no number of the ViT's trained weights is left, its bare parameters included, and each has its first
    spread."""
    sizes = dict(channels=1, image_size=16, dim=64, depth=2, heads=2, head_dim=32, hidden=64)
    net = build("vit", seed=0, **sizes)
    first = build("vit", seed=2, **sizes)
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(7.0)
    fresh = reinitialise(net, 1)
    for (name, a), b in zip(fresh.named_parameters(), first.parameters(), strict=True):
        assert not (a == 7).any(), name
        # a standard deviation of k draws is known to 1 / sqrt(2 k): five of them, for both
        found, wanted = (float(v.detach().std(correction=0)) for v in (a, b))
        assert abs(found - wanted) <= 5 * wanted * a.numel() ** -0.5, name
        assert wanted > 0 or torch.equal(a, b), name  # temperatures, LayerNorm
    assert_same_state(fresh, reinitialise(net, 1))
    assert not torch.equal(fresh.token, reinitialise(net, 2).token)


def test_reinitialise_refuses():
    """A network whose bare parameters nobody knows how to draw is refused by name, not half drawn."""
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1))

    with pytest.raises(TypeError, match="'0.1' .Scale. owns parameters and has no reset_parameters"):
        reinitialise(nn.Sequential(nn.Sequential(nn.Linear(2, 2), Scale())), 0)


# --- Ascent -----------------------------------------------------------------------------------------------------------


@few
@given(seeds, augmentations, st.integers(0, 4), st.integers(2, 8))
@example(0, dict(pad=1, flip=True), 2, 5)
def test_ascent(seed, augmentation, count, size):
    """Ascent is `count` whole passes up the CE on D_f while Acc(D_f) > gamma, equality included; oracle: SGD by
    hand."""
    data, (forget, _), config = make_data(seed, **augmentation), draw(seed, size), tiny(gamma=0.2, max_passes=9)
    net, generator = small_net(seed, dtype=torch.float64), gen(3)
    with accuracies(*[0.9] * count, 0.2) as spy:
        out = METHODS["ascent"](net, data, forget, config, gen(3))
    assert spy.calls == count + 1
    expected = by_hand(net, data, [(forget, lambda logits, rows, x, y: -ce_loop(logits, y))] * count, config, generator)
    for a, b in zip(out.state_dict().values(), expected.state_dict().values(), strict=True):
        assert_close(a.double(), b.double(), 1e-9)  # a few dozen float64 updates


def test_ascent_raises_ce():
    """Ascent raises CE on D_f: with a small step, in training mode and without BatchNorm."""
    data, (forget, _), net = make_data(0), draw(0), small_net(0, norm=False)
    before = mean_ce(net, data, forget)
    with accuracies(0.9, 0.0):
        after = mean_ce(METHODS["ascent"](net, data, forget, tiny(gamma=0.2, unlearn_lr=1e-3), gen(0)), data, forget)
    assert after > before


def test_one_example():
    """A D_f of one example with 1x1 maps has no batch statistics: the passes over it use the running ones."""
    net = build("resnet9", 0.05, channels=1, classes=4, image_size=12, seed=0)
    data = make_data(0, n=6, size=12)
    for name in ("ascent", "scrub", "ssd", "potion"):
        with accuracies(0.9, 0.0):
            contract.unlearn(METHODS[name], net=net, data=data, forget=torch.tensor([1]), gamma=0.2)


def test_ascent_cap():
    """A3: a gamma that is never reached ends at max_passes, with a warning."""
    data, (forget, _) = make_data(0), draw(0)
    with accuracies(0.9) as spy, pytest.warns(UserWarning,
                                              match="Acc\\(D_f\\) is 0.90 after 3 passes, still above 0.2"):
        METHODS["ascent"](small_net(0), data, forget, tiny(gamma=0.2, max_passes=3, unlearn_lr=1e-4), gen(0))
    assert spy.calls == 4


@few
@given(seeds)
def test_npo_and_ablations(seed):
    """A13, Table 2: npo is REM without 3.1 and 3.2; rem-no31 and rem-no32 switch off one each and keep the other on."""
    data, (forget, _), net = make_data(seed), draw(seed), small_net(seed)
    cases = ("npo", False, False), ("rem-no31", False, True), ("rem-no32", True, False), ("rem", True, True)
    for name, step31, step32 in cases:
        asked = {} if name == "rem" else dict(step31=not step31, step32=not step32)  # the name decides, not the flags
        with mock.patch.object(rem_module, "acc_forget", scripted(0.9, 0.0)):
            expected = rem(net, data, forget, tiny(step31=step31, step32=step32), gen(3))
        with mock.patch.object(rem_module, "acc_forget", scripted(0.9, 0.0)):
            assert_same_state(METHODS[name](net, data, forget, tiny(**asked), gen(3)), expected)


def test_l14_rem_ce_redirects_by_plain_ce():
    """L14: rem-ce is REM with the redirect loss set to CE, another network than REM's; without 3.1 the loss set is of
    no concern."""
    data, (forget, _), net = make_data(0), draw(0), small_net(0)

    def by_rem(**more):
        return METHODS["rem"](net, data, forget, tiny(gamma=0.5, **more), gen(3)).state_dict()

    plain, npo = by_rem(redirect="ce"), by_rem(redirect="npo")
    made = METHODS["rem-ce"](net, data, forget, tiny(gamma=0.5), gen(3)).state_dict()
    assert all(torch.equal(made[key], plain[key]) for key in plain)
    assert any(not torch.equal(plain[key], npo[key]) for key in plain)
    without = by_rem(redirect="ce", step31=False), by_rem(redirect="npo", step31=False)
    assert all(torch.equal(without[0][key], without[1][key]) for key in plain)


# --- Distillation -----------------------------------------------------------------------------------------------------


def kd_loop(student, teacher, temperature, lib=torch):
    """T^2 / B sum_i sum_c p log(p / q), one example after another; lib is torch, for gradients, or numpy."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        p, q = (lib.exp(v / temperature) / lib.exp(v / temperature).sum() for v in (t, s))
        total = total + (p * (lib.log(p) - lib.log(q))).sum()
    return total / len(student) * temperature * temperature


def ce_loop(logits, y):
    """Mean cross-entropy, one example after another."""
    return sum(row.exp().sum().log() - row[label] for row, label in zip(logits, y.tolist(), strict=True)) / len(y)


def mean_ce(net, data, index):
    """CE in eval mode."""
    _, x, y = next(batches(data, index, dtype=next(net.parameters()).dtype))
    with torch.no_grad():
        return float(F.cross_entropy(copy.deepcopy(net).eval()(x), y))


def by_hand(net, data, plan, config, generator, schedule="constant"):
    """SGD with momentum and weight decay, written out: one augmented pass for each (index, loss) of the plan."""
    net, steps = copy.deepcopy(net).train(), sum(count_batches(len(index if index is not None else data), config.batch)
                                                 for index, _ in plan)
    rates = oracles.linear(config.unlearn_lr, steps) if schedule == "linear" else [config.unlearn_lr] * steps
    speed = [torch.zeros_like(p) for p in net.parameters()]
    for index, loss_of in plan:
        for rows, x, y in batches(data, index, config.batch, generator, augment=True, dtype=torch.float64):
            rate = rates.pop(0)
            gradients = torch.autograd.grad(loss_of(net(x), rows, x, y), list(net.parameters()))
            with torch.no_grad():
                for p, g, v in zip(net.parameters(), gradients, speed, strict=True):
                    v.mul_(config.momentum).add_(g + config.weight_decay * p)
                    p -= rate * v
    assert rates == []
    return net


@given(seeds, st.integers(1, 5), st.integers(1, 6), st.sampled_from([1.0, 2.0, 4.0]), st.sampled_from([0.1, 3.0]))
@example(0, 3, 4, 4.0, 1.0)
def test_distillation(seed, size, classes, temperature, scale):
    """Distillation is T^2 times the mean over examples of KL(teacher || student) at temperature T (numpy loop)."""
    student, teacher = scale * torch.randn((2, size, classes), generator=gen(seed), dtype=torch.float64)
    expected = float(kd_loop(student.numpy(), teacher.numpy(), temperature, np))
    assert_close(distillation(student, teacher, temperature), torch.tensor(expected, dtype=torch.float64))
    teacher.requires_grad_()
    student.requires_grad_()
    distillation(student, teacher, temperature).backward()
    assert teacher.grad is None and distillation(teacher, teacher, temperature).abs() < 1e-12
    # d/ds_ic = T / B (q_ic - p_ic)
    p, q = (torch.softmax(v.detach() / temperature, dim=1) for v in (teacher, student))
    assert_close(student.grad, temperature / size * (q - p))


@few
@given(seeds, augmentations, st.sampled_from([0.01, 1.0]), st.integers(2, 7), st.sampled_from([1, 2, 3]), schedules)
@example(0, dict(pad=1, flip=True), 1.0, 5, 1, "linear")
@example(0, dict(), 1.0, 5, 2, "linear")
@example(0, dict(), 1.0, 5, 3, "constant")
def test_scrub(seed, augmentation, alpha, size, most, schedule):
    """SCRUB: max passes over D_f before passes over D_r while fewer than SCRUB_STEPS updates are done, one schedule
    over the updates of both; oracle: loops and SGD."""
    data, (forget, retain) = make_data(seed, **augmentation), draw(seed, size)
    config = tiny(alpha=alpha, unlearn_epochs=3, unlearn_lr=1e-3, schedule=schedule)
    net = small_net(seed, dtype=torch.float64)
    original = copy.deepcopy(net).eval()

    def towards(logits, rows, x, y):
        return ce_loop(logits, y) + alpha * kd_loop(logits, original(x).detach(), 4.0)

    def away(*batch):
        return -towards(*batch)

    epoch = count_batches(size, 4) + count_batches(12 - size, 4)
    stop = {1: epoch, 2: epoch + 1, 3: 100}[most]
    with mock.patch.object(baselines, "SCRUB_STEPS", stop):
        out = METHODS["scrub"](net, data, forget, config, gen(3))
    plan = [step for i in range(3) for step in ([(forget, away)] if i < most else []) + [(retain, towards)]]
    expected = by_hand(net, data, plan, config, gen(3), schedule)
    for a, b in zip(out.state_dict().values(), expected.state_dict().values(), strict=True):
        assert_close(a.double(), b.double(), 1e-9)  # a few dozen float64 updates


def test_scrub_passes_move_their_loss():
    """SCRUB's pass over D_f raises CE + alpha KD there, its pass over D_r lowers it there, for a small step."""
    data, (forget, retain), net = make_data(0), draw(0), small_net(0, norm=False)
    config, seen = tiny(unlearn_lr=1e-4, unlearn_epochs=1, batch=12, alpha=1.0, momentum=0.0, weight_decay=0.0), []
    original = baselines.teacher(net, data, config)

    def spying(student, optimizer, data, index, *args, **more):
        @torch.no_grad()
        def loss():
            rows, x, y = next(batches(data, index))
            return float(F.cross_entropy(student(x), y) + distillation(student(x), original(rows, x), 4.0))
        before = loss()
        mean = run_epoch(student, optimizer, data, index, *args, **more)
        seen.append((index.tolist(), loss() - before))
        return mean

    run_epoch = baselines.run_epoch
    with mock.patch.object(baselines, "run_epoch", spying):
        METHODS["scrub"](net, data, forget, config, gen(0))
    assert [index for index, _ in seen] == [forget.tolist(), retain.tolist()]
    assert seen[0][1] > 0 > seen[1][1]


def test_scrub_defaults():
    """R8: SCRUB's alpha 0.01, temperature 4 and 100 steps, which are two max passes at CIFAR-10's 98 an epoch."""
    assert (Config.alpha, baselines.SCRUB_TEMPERATURE, baselines.SCRUB_STEPS) == (0.01, 4.0, 100)
    for found in (100, 500, 1000):
        epoch = count_batches(found, 512) + count_batches(50000 - found, 512)
        assert math.ceil(100 / epoch) == 2


@few
@given(seeds, augmentations, st.integers(1, 7), st.sampled_from(["badt", "badt-sum"]), schedules)
@example(0, dict(flip=True), 5, "badt", "linear")
@example(0, dict(), 5, "badt-sum", "constant")
def test_badt(seed, augmentation, size, name, schedule):
    """BadT: D_f learns the fresh network's distribution, D_r the original's, both in eval mode; as released the loss is
    a mean over classes too, a fourth at four classes; oracle: loops and SGD."""
    data, (forget, _) = make_data(seed, **augmentation), draw(seed, size)
    config, scale = tiny(seed=seed, schedule=schedule), {"badt": 1 / 4, "badt-sum": 1.0}[name]
    net = small_net(seed, dtype=torch.float64)
    teachers = {False: copy.deepcopy(net).eval(), True: reinitialise(net,
                                                                     stream(seed,
                                                                         "fresh weights").initial_seed()).eval()}

    def mixed(logits, rows, x, y):
        answers = {which: teacher(x).detach() for which, teacher in teachers.items()}
        target = [answers[row in forget.tolist()][i] for i, row in enumerate(rows.tolist())]
        return scale * kd_loop(logits, target, 1.0)

    out = METHODS[name](net, data, forget, config, gen(3))
    expected = by_hand(net, data, [(None, mixed)] * 2, config, gen(3), schedule)
    for a, b in zip(out.state_dict().values(), expected.state_dict().values(), strict=True):
        assert_close(a.double(), b.double(), 1e-9)  # 6 float64 updates


def test_badt_without_bad_teacher():
    """BadT with D_f's teacher the original too is distillation from the original: in eval mode nothing would move."""
    data, (forget, _), net = make_data(0), draw(0), small_net(0, norm=False, dtype=torch.float64)
    config = tiny(weight_decay=0.0)
    with mock.patch.object(baselines, "fresh", lambda model, config: copy.deepcopy(model)):
        out = METHODS["badt"](net, data, forget, config, gen(0))
    for a, b in zip(net.parameters(), out.parameters(), strict=True):
        assert_close(a.detach(), b.detach())  # KL(p || p) = 0 has no gradient
    assert not torch.equal(METHODS["badt"](net, data, forget, config, gen(0)).conv1.weight, net.conv1.weight)


@given(seeds, augmentations, st.booleans())
@example(0, dict(flip=True), False)
@example(0, dict(), True)
def test_teacher(seed, augmentation, part):
    """A teacher answers in eval mode, without gradient, from a copy, and once for all where nothing is augmented."""
    data, net = make_data(seed, **augmentation), small_net(seed)
    index = torch.tensor([7, 2, 5]) if part else None
    runs = []
    with mock.patch.object(baselines, "logits_of", lambda net, x, precision: (runs.append(len(x)), net(x))[1]):
        answer = baselines.teacher(net, data, tiny(), index)
        with torch.no_grad():
            expected = copy.deepcopy(net).eval()
            net.head.weight.zero_()
        for rows, x, _ in batches(data, index, 2):
            logits = answer(rows, x)
            assert not logits.requires_grad
            assert_close(logits, expected(x).detach(), 1e-5)
    n = 12 if index is None else 3
    assert runs == ([2] * (n // 2) + [1] * (n % 2) if augmentation else [n])


# --- Dampening --------------------------------------------------------------------------------------------------------


def importance_loop(net, data, index, batch, kind):
    """Mean over batches of squared gradient of CE, or absolute gradient of the mean norm of the logits; one list of
    floats a parameter."""
    net, index = copy.deepcopy(net).eval(), torch.arange(len(data)) if index is None else index
    total = [np.zeros(p.numel()) for p in net.parameters()]
    chunks = index.split(batch)
    for chunk in chunks:
        _, x, y = next(batches(data, chunk, dtype=torch.float64))
        logits = net(x)
        loss = ce_loop(logits, y) if kind == "ce" else sum(sum(v * v for v in row).sqrt() for row in logits) / len(y)
        for i, g in enumerate(torch.autograd.grad(loss, list(net.parameters()))):
            g = g.flatten().numpy()
            total[i] = total[i] + (g * g if kind == "ce" else np.abs(g))
    return [t / len(chunks) for t in total]


def dampen_loop(weights, of_forget, of_rest, threshold, strength):
    """weight *= min(1, lambda I / I_f) where I_f > alpha I, one number after another."""
    out = []
    for w, i_f, i in zip(weights, of_forget, of_rest, strict=True):
        out.append(w * min(1.0, strength * i / i_f) if i_f > threshold * i else w)
    return out


def flat(parts):
    """One list of floats of all tensors or arrays."""
    return [float(v) for part in parts for v in np.asarray(part.detach() if torch.is_tensor(part) else part).ravel()]


@given(seeds, st.sampled_from([0.0, 0.3, 1.0, 10.0]), st.sampled_from([0.5, 1.0, 20.0]))
def test_dampen(seed, threshold, strength):
    """Dampening against a loop over hand-made importances, zeros in both, in one or in none included."""
    net, g = small_net(seed, dtype=torch.float64), gen(seed)
    of_forget, of_rest = ([torch.rand(p.shape, generator=g, dtype=torch.float64) * (torch.rand(p.shape,
        generator=g) < 0.7)
                           for p in net.parameters()] for _ in range(2))
    out = small_net(seed + 1, dtype=torch.float64)  # whatever it holds, the original's weights count
    dampen(out, net, of_forget, of_rest, threshold, strength)
    expected = dampen_loop(flat(net.parameters()), flat(of_forget), flat(of_rest), threshold, strength)
    assert flat(out.parameters()) == pytest.approx(expected, rel=1e-14, abs=0)


@given(seeds, st.integers(1, 40), st.floats(0, 100))
@example(0, 1, 50.0)
@example(0, 7, 0.0)
@example(0, 7, 100.0)
def test_percentile(seed, size, q):
    """The percentile is numpy's; of nothing it is infinite."""
    values = torch.rand(size, generator=gen(seed), dtype=torch.float64).sort().values
    assert percentile(values, q) == pytest.approx(np.percentile(values.numpy(), q), rel=1e-12)
    assert percentile(values[:0], q) == math.inf


@few
@given(seeds, augmentations, st.integers(1, 7))
def test_importance(seed, augmentation, size):
    """Importances are means over batches, in eval mode, without augmentation, one backward a batch; oracle: loops."""
    data, (forget, _), net = make_data(seed, **augmentation), draw(seed, size), small_net(seed, dtype=torch.float64)
    for kind, loss_of, measure in (("ce", F.cross_entropy, torch.square), ("norm", baselines.output_norm, torch.abs)):
        for index in (None, forget):
            with mock.patch.object(torch.autograd, "grad", wraps=torch.autograd.grad) as backward:
                found = importance(net, data, index, tiny(), loss_of, measure)
            assert backward.call_count == -(-(12 if index is None else size) // 4)
            expected = importance_loop(net, data, index, 4, kind)
            for a, b in zip(found, expected, strict=True):
                assert_close(a.flatten(), torch.tensor(b))


@few
@given(seeds, st.integers(1, 7))
def test_ssd(seed, size):
    """SSD dampens with I over D_tr, I_f over D_f in batches of 64, alpha as set and lambda 1, from given labels;
    oracle: loops."""
    data, (forget, _), net = make_data(seed), draw(seed, size), small_net(seed, dtype=torch.float64)
    assert (baselines.SSD_BATCH, baselines.SSD_LAMBDA) == (64, 1)
    for alpha, strength, batch in ((10.0, 1.0, 64), (0.5, 0.25, 3)):  # whatever the batch of training is
        importances = [importance_loop(net, data, index, batch, "ce") for index in (forget, None)]
        with mock.patch.multiple(baselines, SSD_BATCH=batch, SSD_LAMBDA=strength):
            out = METHODS["ssd"](net, data, forget, tiny(ssd_alpha=alpha), gen(0))
        expected = dampen_loop(flat(net.parameters()), *(flat(i) for i in importances), alpha, strength)
        assert flat(out.parameters()) == pytest.approx(expected, rel=1e-9)
    assert flat(out.parameters()) != flat(net.parameters())


@few
@given(seeds, st.integers(1, 7), st.integers(0, 4), st.sampled_from(["potion-500", "potion"]))
@example(0, 5, 0, "potion-500")
@example(0, 5, 3, "potion-500")
@example(0, 5, 3, "potion")
def test_potion(seed, size, tries, name):
    """Potion cuts at percentile 100 - ln(1 + 100 f) of I_f / I_r; f grows by 10 % a try, each from the original. As
    released f starts at a 25th of D_f's share and the end is a fifth of the original's Acc(D_f), equality included,
    else at that share and a fifth; loops."""
    part, end = {"potion-500": (25, 0.2 * 0.9), "potion": (1, 0.2)}[name]
    script = [0.9, *[math.nextafter(end, 1)] * (tries - 1), end] if tries else [0.0]
    data, (forget, retain), net = make_data(seed), draw(seed, size), small_net(seed, dtype=torch.float64)
    relabelled = replace(data, labels=data.labels.flip(0))  # labels play no part but in Acc(D_f)
    with (accuracies(*script) as spy, mock.patch.object(baselines, "dampen", wraps=dampen) as damp,
          mock.patch.object(torch.autograd, "grad", wraps=torch.autograd.grad) as backward):
        out = METHODS[name](net, relabelled, forget, tiny(gamma=0.2), gen(0))
    assert (spy.calls, damp.call_count) == (tries + 1, tries)
    assert backward.call_count == (0 if tries == 0 else -(-size // 4) + -(-(12 - size) // 4))
    expected = flat(net.parameters())
    if tries:
        i_f, i_r = (np.array(flat(importance_loop(net, data, index, 4, "norm"))) for index in (forget, retain))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = i_f / i_r
        ratios = ratios[np.isfinite(ratios)]
        cuts = [np.percentile(ratios, 100 - np.log(1 + 100 * size / 12 / part * 1.1**k)) for k in range(tries)]
        assert [call.args[4] for call in damp.call_args_list] == pytest.approx(cuts, rel=1e-9)
        expected = dampen_loop(expected, i_f, i_r, cuts[-1], 1.0)
        assert expected != flat(net.parameters())
    assert flat(out.parameters()) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name, tries, bound", [("potion-500", 500, "0.18"), ("potion", 50, "0.2")])
def test_potion_cap(name, tries, bound):
    """A3: Potion gives up after 500 tries as released, or 50, with a warning that has the bound which holds; it then
    holds the last try, which dampens the most."""
    data, (forget, _) = make_data(0), draw(0)
    with accuracies(0.9) as spy, pytest.warns(UserWarning, match=f"is 0.90 after {tries} tries of Potion, still above "
                                                                 f"{bound}$"):
        last = METHODS[name](small_net(0), data, forget, tiny(gamma=0.2), gen(0))
    assert spy.calls == tries + 1 and baselines.POTION_GROWTH == 1.1
    with accuracies(*[0.9] * tries, 0.0):
        assert_same_state(METHODS[name](small_net(0), data, forget, tiny(gamma=0.2), gen(0)), last)


@pytest.mark.parametrize("name, accs, gave_up", [("potion-500", (0.9, 0.19), True), ("potion-500", (0.9, 0.18), False),
                                                 ("potion", (0.9, 0.19), False), ("potion", (0.9, 0.3), True),
                                                 ("potion-500", (0.1, 0.1), True), ("ascent", (0.9, 0.19), False)])
def test_gave_up_by_the_bound_that_holds(name, accs, gave_up):
    """R1: a row says that a method gave up where its own stop was not met: Potion's, as released, is a fifth of what
    the original network had."""
    task = contract.make_task("poison", make_dataset(0), 8, 0)
    with accuracies(*accs), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = run.unlearn(tiny(gamma=0.2, max_passes=3), name, METHODS[name], small_net(0), task, task.corrupted[:4])
    assert row["status"] == "ok" and row["gave_up"] == gave_up


@few
@given(seeds, st.sampled_from(["ssd", "potion"]), st.integers(1, 11))
def test_weights_only_shrink(seed, name, size):
    """SSD and Potion only shrink weights and change no sign; BatchNorm's statistics and frozen weights stay."""
    net = small_net(seed)
    net.conv2.weight.requires_grad_(False)
    with accuracies(0.9, 0.9, 0.0):
        out = METHODS[name](net, make_data(seed), draw(seed, size)[0], tiny(gamma=0.2, ssd_alpha=0.5), gen(0))
    for (key, a), b in zip(net.state_dict().items(), out.state_dict().values(), strict=True):
        if key in dict(net.named_parameters()) and key != "conv2.weight":
            assert (b.abs() <= a.abs()).all() and (a * b >= 0).all(), key
        else:
            assert torch.equal(a, b), key
    assert any(not torch.equal(a, b) for a, b in zip(net.parameters(), out.parameters(), strict=True))


# --- Task vectors -----------------------------------------------------------------------------------------------------


def spied_cuts(net, data, scores=None, **more):
    """CUTS on half of the data, with scripted scores; returns the network, theta_p and the steps that were tried."""
    tried, real = [], baselines.walk

    def walk(net, start, end, step):
        tried.append((step, copy.deepcopy(end)))
        real(net, start, end, step)

    answers = mock.Mock(side_effect=scores) if scores else baselines.agreement
    with mock.patch.object(baselines, "walk", walk), mock.patch.object(baselines, "agreement", answers):
        out = METHODS["cuts"](net, data, draw(0)[0], tiny(**more), gen(0))
    return out, tried[0][1], [step for step, _ in tried]


@pytest.mark.parametrize("best, expected", [([0], 0.0), ([7], -0.35), ([20], -1.0), ([3, 9], -0.15)])
def test_cuts_takes_the_best_step(best, expected):
    """CUTS tries 0, -0.05, ..., -1 and is theta_o + a (theta_p - theta_o) at the best, the nearest to 0 among equals;
    BatchNorm's statistics are the original's."""
    net = small_net(0, dtype=torch.float64)
    out, tuned, steps = spied_cuts(net, make_data(0), [float(i in best) for i in range(21)])
    assert steps == pytest.approx([*(-i / 20 for i in range(21)), expected])
    moved = dict(net.named_parameters())
    for (key, found), after in zip(out.state_dict().items(), tuned.state_dict().values(), strict=True):
        before = net.state_dict()[key]
        assert_close(found.double(), (before + expected * (after - before) if key in moved else before).double())
    assert any(not torch.equal(a, b) for a, b in zip(net.parameters(), tuned.parameters(), strict=True))


def test_cuts_passes_and_steps():
    """Ten passes over D_f, as its authors have it, and steps of 0.05 from the original's weights up to its mirror."""
    data, net = make_data(0), small_net(0)
    out, tuned, _ = spied_cuts(net, data, batch=12)
    with mock.patch.object(baselines, "CUTS_PASSES", 10):
        assert_same_state(tuned, spied_cuts(net, data, batch=12)[1])
    with mock.patch.object(baselines, "CUTS_PASSES", 9):
        assert not torch.equal(tuned.conv1.weight, spied_cuts(net, data, batch=12)[1].conv1.weight)


def test_cuts_passes_over_what_is_not_finite():
    """A3: a step whose network gives infinite logits is not taken, even where its classes would score the highest."""
    net, data = small_net(0), make_data(0)
    index = torch.arange(12)
    places = baselines.neighbours(torch.rand(12, 3, generator=gen(0)))
    assert -2 <= baselines.agreement(net, data, index, places) <= 1
    with torch.no_grad():
        net.head.weight[0] = math.inf
    assert baselines.agreement(net, data, index, places) == -math.inf
    net, passes = small_net(0), mock.patch.object(baselines, "CUTS_PASSES", 1)
    with passes:  # of one update, after which every step but 0 overflows
        out, tuned, _ = spied_cuts(net, data, unlearn_lr=1e30, batch=12)
    assert tuned.conv1.weight.abs().max() > 1e20
    assert_same_state(out, net)


def test_agreement_by_hand():
    """Six images, three classes: the share of neighbours of the same class, less what entropy lacks to log C."""
    places = torch.tensor([[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4]])
    data = make_data(0, n=6, classes=3)

    def score(*classes):
        with mock.patch.object(baselines, "predict", lambda net, data, index: torch.tensor(classes)):
            return baselines.agreement(None, data, torch.arange(6), places)

    assert score(0, 0, 0, 0, 0, 0) == pytest.approx(1 - 2 * 1)  # all agree, no diversity
    assert score(0, 0, 0, 1, 1, 1) == pytest.approx(1 - 2 * (1 - math.log(2) / math.log(3)))
    assert score(0, 1, 2, 0, 1, 2) == pytest.approx(0 - 0)  # all classes alike, none agrees
    assert score(0, 0, 1, 1, 2, 2) == pytest.approx(2 / 6 - 0)  # two pairs agree one way and back, of 12


@given(seeds, st.integers(2, 9))
def test_neighbours(seed, n):
    """The nearest other rows by cosine, five at most; oracle: sorting."""
    h = torch.randn(n, 3, generator=gen(seed), dtype=torch.float64)
    found = baselines.neighbours(h)
    for i, row in enumerate(found.tolist()):
        others = sorted((j for j in range(n) if j != i), key=lambda j: -float(h[i] @ h[j] / h[j].norm()))
        assert row == others[:5]


# --- ETD and REM ------------------------------------------------------------------------------------------------------


@few
@given(seeds)
def test_etd(seed):
    """ETD alone trains fresh weights with masks on all of D_tr and drops theta_o2; only IDEAL shares a row, all of
    D_c."""
    data, forget, corrupted = make_data(seed), torch.tensor([3, 1]), torch.tensor([1, 3, 5])
    config = tiny(seed=seed, p_mem=0.5, ratio=20.0, epochs=1)
    anew = reinitialise(small_net(seed), stream(seed, "fresh weights").initial_seed())
    for name, shared in (("etd", None), ("etd-ideal", corrupted)):
        more = {} if shared is None else {"corrupted": corrupted}
        with mock.patch.object(train, "fit", wraps=train.fit) as fit:
            out = METHODS[name](small_net(seed + 1), data, forget, config, gen(3), **more)
        masks = fit.call_args.kwargs["masks"]
        assert fit.call_args.args[2] is None and len(masks[:].unique(dim=0)) == (12 if shared is None else 10)
        assert shared is None or (masks[corrupted] == masks[1]).all()
        assert_same_state(out, drop(train_etd(anew, data, config, gen(3), shared=shared)))


def test_rem_on_etd():
    """A14: rem-on-etd is REM on the Expanded of an ETD-trained network, and refuses a plain one."""
    data, (forget, _), config = make_data(0), draw(0), tiny(gamma=1.0, epochs=1)
    expanded = train_etd(small_net(0), data, config, gen(0))
    assert_same_state(METHODS["rem-on-etd"](expanded, data, forget, config, gen(1)),
                      rem(expanded, data, forget, config, gen(1)))
    with pytest.raises(ValueError, match="rem-on-etd works on an ETD-trained network.*add --etd"):
        METHODS["rem-on-etd"](small_net(0), data, forget, config, gen(0))


@few
@given(seeds)
def test_rem_ideal(seed):
    """M14: REM (IDEAL) is REM with one row for all of D_c; with D_c = D_f it is REM."""
    data, (forget, retain), config = make_data(seed), draw(seed), tiny(gamma=1.0)
    corrupted = torch.cat([forget, retain[:3]])
    run_ideal = lambda shared: METHODS["rem-ideal"](small_net(seed), data, forget, config, gen(3),
                                                    corrupted=shared)  # noqa: E731
    assert_same_state(run_ideal(corrupted), rem(small_net(seed), data, forget, config, gen(3), shared=corrupted))
    assert_same_state(run_ideal(forget), rem(small_net(seed), data, forget, config, gen(3)))
    assert not torch.equal(run_ideal(corrupted).conv1.weight, run_ideal(forget).conv1.weight)


# --- The command line -------------------------------------------------------------------------------------------------


def chosen(method, etd=False):
    """Names that the command line would run."""
    return list(run.choose_methods(resolve({"method": method, "etd": etd})))


def test_choose_methods():
    """R2: a,b,c in order and once; all is every method that has meaning with or without --etd, IDEAL included."""
    assert chosen("cf, rem,cf,,no-ul") == ["cf", "rem", "no-ul"]
    variants = {"badt-sum", "potion-500"}
    assert {name for name in METHODS if not allowed_with(name, False)} == {"rem-on-etd"}
    assert set(METHODS) - set(chosen("all")) == {"rem-on-etd", *variants}
    assert set(METHODS) - set(chosen("all", etd=True)) == {"rem-on-etd", "retrain", "etd", "etd-ideal", *variants}
    assert chosen("all,potion-500,badt-sum")[-2:] == ["potion-500", "badt-sum"]
    assert chosen("all,rem-on-etd", etd=True)[-1] == "rem-on-etd"
    assert chosen(f"{EXAMPLE},cf") == ["my_method.py:relabel", "cf"]
    assert chosen(f"all,{EXAMPLE}")[-1] == "my_method.py:relabel"
    assert run.choose_methods(resolve({"method": "all", "etd": True}))["rem"] is METHODS["rem"]
    assert set(chosen(Config.method)) <= set(METHODS)


@pytest.mark.parametrize("method, etd, text", [
    ("rem-on-etd", False, "rem-on-etd works on an ETD-trained network; add --etd"),
    ("cf,retrain", True, "retrain trains a network of its own; leave out --etd"),
    ("etd", True, "etd trains a network of its own"), ("etd-ideal", True, "etd-ideal trains a network of its own"),
    ("cf,unknown", False, "unknown method 'unknown'; choose from no-ul, retrain"), (" ,", False, "no method given"),
    ("nowhere/mine.py:f", False, "no file nowhere/mine.py for method nowhere/mine.py:f"),
])
def test_refused_methods(method, etd, text, tmp_path, capsys):
    """R2: a method that cannot run is one line on stderr and exit code 2, before any data is loaded."""
    with mock.patch.object(run, "load", side_effect=AssertionError("too late")):
        code = run.main(["--method", method, "--etd" if etd else "--no-etd", "--out", str(tmp_path / "rows.jsonl")])
    error = capsys.readouterr().err
    assert code == 2 and error.startswith(f"run.py: {text}") and error.count("\n") == 1


@pytest.mark.parametrize("content, text", [
    ("", "has no function 'f'"), ("f = 3", "has no function 'f'"), ("def f(:", "does not import .SyntaxError"),
    ("import nothing_of_this_name", "does not import .ModuleNotFoundError"),
    ("1 / 0", "does not import .ZeroDivisionError"), ("raise SystemExit(0)", "does not import .SystemExit"),
    ("def f(model, data): pass", "f takes .model, data. .*a method takes .model, data, forget, config, generator."),
    ("def f(a, b, c, d, e, g): pass", "a method takes"), ("def f(a, b, c, d, e, *, test): pass", "a method takes"),
])
def test_refused_files(content, text, tmp_path):
    """R2: what is wrong with one's own file is a one-line ValueError."""
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(ValueError, match=text) as caught:
        chosen(f"{tmp_path}/mine.py:f")
    assert "\n" not in str(caught.value)


def test_own_files(tmp_path):
    """R2: any callable of the five arguments will do, dataclasses included; two of one name are told apart by
    refusing."""
    source = ("from __future__ import annotations\nfrom dataclasses import dataclass\n"
              "@dataclass\nclass Mine:\n    rate: float = 1.0\n"
              "    def __call__(self, model, data, forget, config, generator, log=None, corrupted=None):\n"
              "        return model\n"
              "f = Mine()\n")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(source)
    assert chosen(f"{tmp_path}/a/mine.py:f") == ["mine.py:f"]
    with pytest.raises(ValueError, match="two methods are called mine.py:f"):
        chosen(f"{tmp_path}/a/mine.py:f,{tmp_path}/b/mine.py:f")


def test_network_that_a_method_gets():
    """With --etd REM and its variants get theta_o2 too, the others the network without it; D_c only when asked for."""
    task = contract.make_task("poison", make_dataset(0), 8, 0)
    original, got = expand_for(small_net(0), task.train, tiny()), []

    def plain(model, data, forget, config, generator):
        got.append(type(model))
        return copy.deepcopy(model)

    def curious(model, data, forget, config, generator, *, corrupted):
        assert torch.equal(corrupted, task.corrupted)
        return plain(model, data, forget, config, generator)

    for name in METHODS:
        for method in (plain, curious):
            row = run.unlearn(tiny(), name, method, original, task, task.corrupted[:4])
            assert row["status"] == "ok", row["error"]
            assert (got.pop() is Expanded) == name.startswith("rem")


@pytest.mark.filterwarnings("ignore:Acc")
@pytest.mark.parametrize("etd", [False, True])
def test_all_methods_from_the_command_line(etd, tmp_path):
    """R1: every method and one's own run from the command line; rem and rem-on-etd are one method with --etd."""
    out, names = tmp_path / "rows.jsonl", f"all,{'rem-on-etd,' if etd else ''}{EXAMPLE}"
    argv = ["--method", names, "--etd" if etd else "--no-etd", "--n", "6", "--width", "0.1", "--epochs", "1",
            "--quiet", "--unlearn-epochs", "1", "--batch", "8", "--device", "cpu", "--max-passes", "5", "--out",
            str(out)]
    with mock.patch.object(run, "load", lambda *args: make_dataset(0)):
        assert run.main(argv) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["method"] for row in rows] == chosen(names, etd)
    scores = {row["method"]: (row["healed"], row["utility"]) for row in rows if row["status"] == "ok"}
    assert len(scores) == len(rows) and (not etd or scores["rem"] == scores["rem-on-etd"])


def test_accuracy_is_against_given_labels():
    """A5: ascent and Potion stop on the labels as given: all of D_f wrong already, so nothing moves."""
    data, (forget, _), net = make_data(0), draw(0), small_net(0)
    labels = data.labels.clone()
    _, x, _ = next(batches(data))
    labels[forget] = (copy.deepcopy(net).eval()(x).argmax(dim=1)[forget] + 1) % 4
    data = replace(data, labels=labels)
    assert accuracy(net, data, forget) == 0
    for name in ("ascent", "potion"):
        assert_same_state(METHODS[name](net, data, forget, tiny(gamma=0.0), gen(0)), net)


def test_a_teacher_of_several_processes_answers_for_all():
    """G1: a process that reads its share of each batch alone gets the answers for every example, augmented or not."""
    data, net = make_data(0), small_net(0)
    answer = baselines.teacher(net, replace(data, part=(0, 2)), tiny())
    rows, x, _ = next(batches(data))
    assert_close(answer(rows, x), net.eval()(x).detach(), 1e-5)


def test_potion_leaves_out_what_matters_nowhere():
    """Weights of no importance to D_r have no ratio; the cut is the percentile of the others'."""
    data, (forget, retain), net = make_data(0), draw(0), small_net(0, dtype=torch.float64)
    with torch.no_grad():
        net.head.weight[:, 0] = 0  # so nothing depends on channel 0
    with accuracies(0.9, 0.0), mock.patch.object(baselines, "dampen", wraps=dampen) as damp:
        out = METHODS["potion"](net, data, forget, tiny(gamma=0.2), gen(0))
    i_f, i_r = (np.array(flat(importance_loop(net, data, index, 4, "norm"))) for index in (forget, retain))
    known = i_r > 0
    assert 0 < known.sum() < len(known)
    cut = np.percentile(i_f[known] / i_r[known], 100 - np.log(1 + 100 * 4 / 12))
    assert damp.call_args.args[4] == pytest.approx(cut, rel=1e-9)
    assert not torch.equal(out.conv1.weight, net.conv1.weight)


def test_ascent_runs_in_the_mode_that_is_set():
    """A20: `forget_norm` decides whether ascent's passes use, and move, the running statistics; auto is batch."""
    data, (forget, _), net = make_data(0), draw(0), small_net(0)
    for norm, moves in (("auto", True), ("batch", True), ("running", False)):
        with accuracies(0.9, 0.0):
            out = METHODS["ascent"](net, data, forget, tiny(gamma=0.2, forget_norm=norm), gen(0))
        assert torch.equal(out.norm1.running_mean, net.norm1.running_mean) != moves
        assert not torch.equal(out.conv1.weight, net.conv1.weight)


def test_cuts_looks_at_a_sample():
    """R8: CUTS chooses its step on 1,000 images of D_tr, drawn without repetition."""
    assert baselines.CUTS_IMAGES == 1000
    with (mock.patch.object(baselines, "CUTS_IMAGES", 5),
          mock.patch.object(baselines, "agreement", wraps=baselines.agreement) as seen):
        METHODS["cuts"](small_net(0), make_data(0), draw(0)[0], tiny(), gen(0))
    (sample,) = {tuple(call.args[2].tolist()) for call in seen.call_args_list}
    assert len(set(sample)) == 5 and sample != tuple(range(5))


@pytest.mark.parametrize("name", ["cf", "scrub", "badt", "ascent", "retrain"])
def test_no_gradient_is_left(name):
    """A18: the network that comes back holds no gradient of its last update."""
    with accuracies(0.9, 0.0):
        out = contract.unlearn(METHODS[name], gamma=0.2)
    assert all(p.grad is None for p in out.parameters())


@pytest.mark.parametrize("name", ["ssd", "potion"])
def test_a_parameter_that_no_output_depends_on_stays(name):
    """A18: a parameter that the forward pass does not use has importance 0 and stays; the others are dampened."""
    net = small_net(0)
    net.idle = nn.Linear(2, 2)
    with accuracies(0.9, 0.0):
        out = METHODS[name](net, make_data(0), draw(0)[0], tiny(gamma=0.2, ssd_alpha=0.5), gen(0))
    assert torch.equal(out.idle.weight, net.idle.weight) and not torch.equal(out.conv1.weight, net.conv1.weight)
