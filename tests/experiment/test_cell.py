"""One cell (experiment/cell.py): a task, an original network, one method, and what is measured (Sec. 4, Sec. 6)."""

import copy
import errno
import json
import math
import os
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import rem_plus
from baselines import with_theta_o2
from engine.checks import NonFiniteLoss
from engine.streams import stream
from etd import Expanded, drop, mask_table, train_etd
from experiment.cell import attempt, corrupt, draw_forget, new_model, point, train_original, unlearn
from experiment.methods import METHODS, allowed_with
from experiment.settings import AFTER_TRAINING, OF_THE_RUN
from helpers import assert_same_state, gen, make_data, make_dataset, small_net, tiny
from metrics import accuracy, evaluate, predict
from models import build
from rem import add_capacity
from tasks import TASKS, Task, discover, make_task
from train import fit

# In a few passes rounding decides whether gamma is reached.
pytestmark = pytest.mark.filterwarnings("ignore:Acc")


def made(seed=1, **changes):
    """Settings that differ in their seed, and the data that all of them read."""
    return tiny(**{"seed": seed, "n": 20, "discovery": 0.5, "width": 0.1, "batch": 8} | changes), \
        make_dataset(0, n=80, size=16)


def learnt_by_heart(n=24, wrong=6, **more):
    """A network, and a task whose labels as given are the network's answers, so that nothing is forgotten yet."""
    net = small_net(0, **more)
    data = make_data(0, n=n)
    data = replace(data, labels=predict(net, data))
    clean = data.labels.clone()
    clean[:wrong] = (clean[:wrong] + 1) % 4
    return net, Task("random", 0, data, make_data(1, n=8), clean, torch.arange(wrong))


# --- What a cell is made of -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_task_is_that_of_the_settings(name, seed):
    """R4, T10: D_c and D_f are `make_task`'s and `discover`'s for the n, the rate and the seed of the settings."""
    config, dataset = made(seed, task=name, discovery=0.3)
    ours, theirs = corrupt(config, dataset), make_task(name, dataset, 20, seed)
    for one, other in ((ours.corrupted, theirs.corrupted), (ours.train.labels, theirs.train.labels),
                       (ours.train.images, theirs.train.images),
                       (draw_forget(config, ours), discover(theirs, 0.3, seed))):
        assert torch.equal(one, other)


@pytest.mark.parametrize("pair", ["0,2", " 2 , 0 "])
def test_the_pair_is_two_numbers(pair):
    """T3: the pair of the settings is the two classes that are confused, in any order and spacing."""
    task = corrupt(*made(task="confusion", pair=pair))
    assert set(task.clean[task.corrupted].tolist()) == set(task.train.labels[task.corrupted].tolist()) == {0, 2}


@pytest.mark.parametrize("sizes, as_built", [
    (dict(arch="resnet9"), {}), (dict(arch="vit"), {}),
    (dict(arch="vit", patch=4, dim=64, depth=2), dict(patch=4, dim=64, depth=2, head_dim=8, hidden=192))])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_network_is_that_of_the_settings(seed, sizes, as_built):
    """R4, X3, N1: a new network is `width` times `capacity` as wide, its weights drawn by a stream of the seed; a ViT
    has Table 3's sizes, or those of the settings with 8 heads and three times the dimension as hidden units."""
    config, dataset = made(seed, width=0.5, capacity=0.25, **sizes)
    like = build(config.arch, 0.125, channels=1, classes=4, image_size=16,
                 seed=stream(seed, "weights").initial_seed(), **as_built)
    assert_same_state(new_model(config, dataset), like)


@pytest.mark.parametrize("height, width", [(8, 16), (16, 8)])
def test_networks_that_cannot_be_built(height, width):
    """R2: images that are not square are refused, with both sides; so is a width that no tensor has."""
    config, dataset = made()
    train = replace(dataset.train, images=dataset.train.images[:, :, :height, :width])
    with pytest.raises(ValueError, match=f"images are {height}x{width}; the networks take square ones"):
        new_model(config, replace(dataset, train=train))
    with pytest.raises(ValueError, match="resnet9 of width 1e.300 at capacity 1 cannot be built"):
        new_model(replace(config, width=1e300), dataset)


@pytest.mark.parametrize("etd", [False, True])
def test_an_original_is_made_of_its_parts(etd):
    """R4, R9: `fit`, or `train_etd` beside theta_o2, by the seed's stream; another seed gives another network."""
    config, dataset = made(etd=etd, p_mem=0.5)
    task, told = corrupt(config, dataset), []
    ours, other = (train_original(replace(config, seed=seed), task, small_net(0, width=4),
                                  log=lambda epoch, epochs, net, **values: told.append((epoch, epochs)))
                   for seed in (1, 2))
    theirs = small_net(0, width=4)
    if etd:
        theirs = train_etd(with_theta_o2(theirs, task.train, config), task.train, config, stream(1, "training"), fit)
    else:
        fit(theirs, task.train, None, config, stream(1, "training"))
    assert isinstance(ours, Expanded) is etd and told == [(1, 2), (2, 2)] * 2
    assert_same_state(ours, theirs)
    assert not torch.equal(next(ours.parameters()), next(other.parameters()))


def test_an_original_depends_on_no_setting_of_unlearning():
    """R9: training gives the same bits whatever the settings of unlearning and of the place are."""
    config, dataset = made(etd=True)
    task = corrupt(config, dataset)
    others = dict(method="cf", discovery=0.1, unlearn_epochs=7, stop="repaired", unlearn_lr=0.5, gamma=0.9, beta=3.0,
                  max_passes=1, reach=0.5, farther=0, disbelieved=1.0, forget_norm="batch", remove_weight="mean", alpha=1.0, ssd_alpha=1.0,
                  schedule="constant", step31=False, step32=False, redirect="ce", curve=True, data_dir="x",
                  human_labels="x", download=True, device="cpu", out="x")
    assert others.keys() == (AFTER_TRAINING | OF_THE_RUN) - {"quiet"}
    assert_same_state(*(train_original(each, task, small_net(0)) for each in (config, replace(config, **others))))


# --- What a method gets, and what is measured -------------------------------------------------------------------------


def test_no_unlearning_is_the_original():
    """S6: of "no-ul" the original itself is measured, bit for bit, and stays as it was."""
    net, task = learnt_by_heart()
    before, forget = copy.deepcopy(net), torch.arange(3)
    row = unlearn(tiny(), "no-ul", METHODS["no-ul"].function, net, task, forget)
    assert {**row, **evaluate(before, task, forget, before)} == row and row["status"] == "ok"
    assert_same_state(net, before)


@pytest.mark.parametrize("name, kept", [("mine.py:f", False), *((name, name.startswith("rem")) for name in METHODS
                                                                if allowed_with(name, True))])
def test_what_a_method_gets_of_an_etd_original(name, kept):
    """A14, R4: REM gets the network with theta_o2 as ETD trained it, every other method theta_o1; what is measured is
    theta_o1 either way. Every method has the same draws, the seed's stream for unlearning."""
    config, dataset = made(etd=True)
    task, got = corrupt(config, dataset), []
    original = train_original(config, task, small_net(0))

    def method(model, data, forget, config, generator):
        got.extend([model, generator.get_state()])
        return model

    row = unlearn(config, name, method, original, task, task.corrupted[:4])
    assert_same_state(got[0], original if kept else drop(original))
    assert torch.equal(got[1], stream(1, "unlearning").get_state())
    assert row["utility"] == accuracy(drop(original), task.test)
    assert row["learnt"] == accuracy(original, task.train, task.corrupted)


def spoil(model, data, forget, config, generator, corrupted):
    """A method that writes into all that it is given."""
    for value in (*model.parameters(), *model.buffers(), data.labels, data.images, forget, corrupted):
        value.data.zero_()
    return model


def test_a_method_that_works_in_place():
    """A11, R3: what one's own method does to network, data, D_f or D_c stays with it; its row still tells what the
    network that it was given had learnt; where a method trains anew there is nothing to tell."""
    net, task = learnt_by_heart()
    forget, before = torch.arange(3), copy.deepcopy(net)
    kept = [value.clone() for value in (task.train.labels, task.train.images, forget, task.corrupted)]
    rows = [unlearn(tiny(), name, method, net, task, forget)
            for name, method in (("odd.py:f", spoil), *((name, METHODS[name].function) for name in ("cf", "retrain")))]
    assert_same_state(net, before)
    for then, now in zip(kept, (task.train.labels, task.train.images, forget, task.corrupted), strict=True):
        assert torch.equal(then, now)
    assert [row["learnt"] for row in rows] == [1.0, 1.0, None] and {row["status"] for row in rows} == {"ok"}


# --- What a row tells of the method -----------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.0, 0.0])
def test_rows_tell_how_much_a_method_tried(gamma):
    """R3: passes over D_f (of REM in all epochs), tries of Potion, and whether a method gave up; at gamma 1 none has
    anything to do, at rate 0 passes have no effect."""
    net, task = learnt_by_heart(norm=False)
    config = tiny(gamma=gamma, unlearn_lr=0.0, max_passes=2, forget_norm="running", weight_decay=0.0)
    found = {}
    for name in ("no-ul", "cf", "ascent", "npo", "rem", "potion"):
        row = unlearn(config, name, METHODS[name].function, net, task, torch.arange(3))
        found[name] = row["passes"], row["gave_up"]
    tries, gave_up = found.pop("potion")
    tried = {"ascent": (2, True), "npo": (2, True), "rem": (4, True)} if gamma < 1 else dict.fromkeys(
        ("ascent", "npo", "rem"), (0, False))
    assert found == {"no-ul": (None, False), "cf": (None, False), **tried}
    assert (tries > 0) == (gamma < 1) and (gamma < 1 or not gave_up)


LOGGED = {  # what a method logs, call by call, and (passes, gave_up) or the error in its row, at gamma 0.2
    "half a pass was begun": ([dict(passes=0.5)], (1, False)),
    "numpy": ([dict(passes=np.int64(3), acc_forget=np.float32(1))], (3, True)),
    "torch": ([dict(passes=torch.tensor(2), gave_up=np.bool_(False), acc_forget=1.0)], (2, False)),
    "nothing known": ([dict(passes=None, acc_forget=None, gave_up=None)], (None, False)),
    "once is enough": ([dict(passes=5, acc_forget=0.5), dict(loss=1.0), dict(passes=1, acc_forget=0.1)], (6, True)),
    "its own word": ([dict(passes=1, gave_up=True, acc_forget=0.1)], (1, True)),
    "no passes, no word": ([dict(loss=1.0, acc_forget=0.9), dict(passes=1, acc_forget=0.2)], (1, False)),
    "a word": ([dict(passes="two")], "TypeError: "),
    "nan": ([dict(passes=float("nan"))], "ValueError: "),
    "inf": ([dict(passes=float("inf"))], "OverflowError: "),
}


@pytest.mark.parametrize("kind", LOGGED)
def test_whatever_a_method_logs_makes_a_row(kind):
    """R3, R11: passes are summed over all calls, giving up once is told, a method's own word on it counts for more than
    Acc(D_f); numbers of numpy and torch become plain ones; what is no number fails the method."""
    calls, wanted = LOGGED[kind]
    net, task = learnt_by_heart()

    def method(model, data, forget, config, generator, log=None):
        for values in calls:
            log(0, 0, model, **values)
        return model

    row = unlearn(tiny(gamma=0.2), "odd.py:f", method, net, task, torch.arange(3))
    if isinstance(wanted, str):
        assert row["status"] == "failed" and row["error"].startswith(wanted) and row["passes"] is None
    else:
        assert (row["error"], row["passes"], row["gave_up"]) == (None, *wanted)
        assert type(row["passes"]) in (int, type(None)) and type(row["gave_up"]) is bool


def test_a_row_says_how_far_rem_plus_went(monkeypatch, capsys):
    """R3, A40: where REM+ has started over reach_used is that of the epochs that count; other methods have none, nor
    has REM+ that does not, nor a user's that logs a `reach` of its own. A line of progress shows it."""
    monkeypatch.setattr(rem_plus, "MEMORISED", -1.0)
    net, task = learnt_by_heart()

    def mine(model, data, forget, config, generator, log=None):
        log(1, 1, model, reach=float("nan"))
        return model

    used = []
    for name, function, changes in (("rem-plus", None, {}), ("npo", None, {}), ("rem", None, {}),
                                    ("rem-plus", None, {"stop": "max"}), ("rem-plus", None, {"farther": 0}),
                                    ("odd.py:f", mine, {})):
        config = tiny(gamma=0.0, reach=0.05, max_passes=3, quiet=False, **{"stop": "repaired", "farther": 1} | changes)
        row = unlearn(config, name, function or METHODS[name].function, net, task, torch.arange(3))
        assert row["status"] == "ok", row["error"]
        used.append(row.get("reach_used"))
        assert ("  reach   0.1000" in capsys.readouterr().out) is (used[-1] == 0.1)
    assert used == [0.1, None, None, None, None, None]


def test_who_is_told_of_each_epoch():
    """R1: a log function hears of every epoch, and not of what a method logs before the first one."""
    net, task = learnt_by_heart()
    told = []
    for name in ("npo", "rem"):  # npo logs at its end alone
        unlearn(tiny(unlearn_epochs=3), name, METHODS[name].function, net, task, torch.arange(3),
                log=lambda epoch, epochs, net, **values: told.append((epoch, epochs, sorted(values))))
    assert [(epoch, epochs) for epoch, epochs, _ in told] == [(1, 3), (2, 3), (3, 3)]
    assert all({"loss", "passes", "acc_forget"} <= set(names) for _, _, names in told)


# --- Failures ---------------------------------------------------------------------------------------------------------


def wider(model):
    return nn.Sequential(model, nn.Linear(4, 5))


def raised(error):
    raise error


ODD = {  # what a method does with its network, and the error in its row (None: a good one)
    "leaves": (lambda model: os.chdir("/") or sys.exit(0), "SystemExit: 0"),
    "base": (lambda model: raised(BaseException("stop")), "BaseException: stop"),
    "lines": (lambda model: raised(ValueError("\n\nfirst\nsecond")), "ValueError: first"),
    "nothing": (lambda model: None, "TypeError: odd.py:f returned NoneType; a method returns the unlearned network"),
    "outputs": (wider, "ValueError: odd.py:f returned a network of 5 outputs; the one that it was given has 4"),
    "world": (lambda model: torch.set_default_dtype(torch.float64) or torch.manual_seed(5) and model, None),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_an_odd_method_does_reaches_no_other(capsys, kind):
    """R11: a method that exits, raises anything or changes the world is a failed row at most, with the place of its
    error; the next gives what it gives alone. What is put back is in test_user_code.py."""
    odd, error = ODD[kind]
    net, task = learnt_by_heart()
    state = torch.get_rng_state()

    def next_one():
        return unlearn(tiny(), "npo", METHODS["npo"].function, net, task, torch.arange(3)) | {"seconds": 0}

    alone = next_one()
    row = unlearn(tiny(), "odd.py:f", lambda model, data, forget, config, generator: odd(model), net, task,
                  torch.arange(3))
    assert next_one() == alone and torch.equal(torch.get_rng_state(), state)
    assert row["status"] == ("failed" if error else "ok")
    if error:
        place = "test_cell" if kind in ("leaves", "base", "lines") else "cell"
        assert re.fullmatch(rf"{re.escape(error)} \({place}\.py:\d+\)", row["error"])
        assert capsys.readouterr().err == f"failed: {row['error']}\n"


def test_a_reader_that_has_gone_and_ctrl_c_are_no_failures():
    """R3, R12: no row is made of a closed pipe or of Ctrl-C; an error of another kind is an outcome."""
    for error in (BrokenPipeError(errno.EPIPE, "gone"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            attempt(lambda error=error: raised(error))
    assert "No space" in attempt(lambda: raised(OSError(errno.ENOSPC, "No space")))[2]
    assert "NonFiniteLoss: too high" in attempt(lambda: raised(NonFiniteLoss("too high")))[2]


def test_too_few_outputs_are_told_before_any_work():
    """R2: fewer outputs than classes are told with both numbers, and nothing begins; more may be unlearnt."""
    config, dataset = made()
    task = corrupt(config, dataset)
    narrow, wide = small_net(0, classes=3), small_net(0, classes=5)
    with pytest.raises(ValueError, match="3 outputs for 4 classes"):
        train_original(config, task, narrow)
    row = unlearn(config, "cf", lambda *a: pytest.fail("it began"), narrow, task, task.corrupted[:2])
    assert row["status"] == "failed" and "the network has 3 outputs for 4 classes" in row["error"]
    assert unlearn(config, "cf", METHODS["no-ul"].function, wide, task, task.corrupted[:2])["status"] == "ok"


# --- Fig. 5 -----------------------------------------------------------------------------------------------------------


def test_a_point_reads_d_c_through_d_fs_row():
    """S3: a point has theta_o1's accuracy on D_c's given labels, that of theta_o1 with theta_o2 under D_f's mask row
    for each of D_c, the scores, and what the method logs."""
    config, dataset = made(task="random", p_mem=0.5)
    task = corrupt(config, dataset)
    forget = discover(task, 0.5, 1)
    net, generator, n = add_capacity(small_net(0, width=8), task.train, forget, config, gen(0)).expanded, gen(0), 80
    with torch.no_grad():  # so large that masks tell
        for parameter in net.theta_o2().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    row = mask_table(n, net.width, config.p_mem, config.seed, forget)[forget[:1]].expand(n, -1)
    labels, own = predict(net, task.train, masks=row), mask_table(n, net.width, config.p_mem, config.seed, forget)
    unknown = task.corrupted[~torch.isin(task.corrupted, forget)][::2]
    labels[unknown] = predict(net, task.train)[unknown]  # so that theta_o1 is better on D_c than on D_f
    task = replace(task, train=replace(task.train, labels=labels))
    found, wanted = point(config, net, task, forget, 1, loss=0.5), evaluate(net, task, forget)
    assert found["full"] == accuracy(net, task.train, task.corrupted, masks=row)
    assert found["full"] != accuracy(net, task.train, task.corrupted, masks=own)
    assert found["base"] == accuracy(net, task.train, task.corrupted) != accuracy(net, task.train, forget)
    assert found == {"epoch": 1, "loss": 0.5, "base": found["base"], "full": found["full"],
                     **{key: wanted[key] for key in ("healed", "healed_undiscovered", "utility")}}
    assert "full" not in point(config, drop(net), task, forget, 1)


@pytest.mark.parametrize("name, kept", [("rem", True), ("cf", False)])
def test_the_points_of_a_curve(name, kept):
    """S3: a curve has a point before the first epoch, of the original, and one after each; the last is the row's
    network where all epochs run. Noting them changes no number."""
    net, task = learnt_by_heart()
    forget = torch.arange(3)
    rows = [unlearn(tiny(curve=curve), name, METHODS[name].function, net, task, forget) for curve in (False, True)]
    points = rows[1].pop("points")
    assert rows[0] | {"seconds": 0} == rows[1] | {"seconds": 0}
    assert [at["epoch"] for at in points] == [0, 1, 2] and all(("full" in at) is kept for at in points)
    assert points[0]["base"] == 1 and points[0]["utility"] == accuracy(net, task.test)
    assert points[-1]["utility"] == rows[1]["utility"] and points[-1]["healed"] == rows[1]["healed"]
    assert "points" not in unlearn(tiny(curve=True), "npo", METHODS["npo"].function, net, task, forget)

    def own(model, data, forget, config, generator, log):
        log(0, 0, model, passes=1)  # no epoch, and no point
        log(1, 1, model, loss=0.0)
        log(2, 2, model, loss=np.float32(0.5), acc_forget=torch.tensor(0.25), a=math.nan, b=net, c=torch.ones(2), d=3)
        return model

    row = unlearn(tiny(curve=True), "x.py:own", own, net, task, forget)
    first, one, last = json.loads(json.dumps(row, allow_nan=False))["points"]  # as the row file wants it
    assert (first["epoch"], one["epoch"], one["loss"]) == (0, 1, 0.0) and first["healed"] == one["healed"]
    assert [last[name] for name in ("loss", "acc_forget", "a", "b", "c", "d")] == [0.5, 0.25, None, None, None, 3]
