"""rem and rem-plus as an experiment knows them: registry, cells and their keys, what an epoch prints.

- rem, its ablations and REM (IDEAL) read no setting of REM+                              A36
- rem-plus without its four changes is rem, bit for bit, and so are the ablations         A41
- an epoch of rem says nothing of held-out images, which it does not have                 A41
"""

import contextlib
import io
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given

from baselines import with_theta_o2
from experiment.cell import unlearn
from experiment.methods import METHODS, OPTIONAL, REM, REM_PLUS, reads_setting
from helpers import assert_same_state, make_data, small_net, tiny
from made_cells import cells
from metrics import predict
from study.rows import cell_key
from tasks import Task

N = 24
OFF = dict(reach=0.0, stop="max", disbelieved=0.0, farther=0)
ON = dict(reach=0.05, stop="repaired", disbelieved=1.0, farther=1)
TIMES = {"seconds"}
TWINS = {name: name.replace("rem", "rem-plus") for name in METHODS if name.replace("rem", "rem-plus") in METHODS
         and "plus" not in name and name.startswith("rem")}


def task_of(net) -> Task:
    """A task whose labels as given are the network's answers; six of them are wrong."""
    data = make_data(0, n=N)
    data = replace(data, labels=predict(net, data))
    clean = data.labels.clone()
    clean[:6] = (clean[:6] + 1) % 4
    return Task("random", 0, data, make_data(1, n=12), clean, torch.arange(6))


def cell(name: str, config, etd: bool = False):
    """What a cell of a method makes: its network, its row without times, what each epoch logs, what it prints."""
    net, found, records, printed = small_net(0), [], [], io.StringIO()
    task = task_of(net)
    original = with_theta_o2(net, task.train, config) if etd else net

    def kept(*args, log, **more):
        def both(epoch, epochs, model, **record):
            records.append((epoch, record))
            log(epoch, epochs, model, **record)

        found.append(METHODS[name].function(*args, log=both, **more))
        return found[0]

    def oracle(*args, corrupted, log):  # by its arguments a method is told D_c, or not
        return kept(*args, log=log, corrupted=corrupted)

    def plain(*args, log):
        return kept(*args, log=log)

    method = oracle if name.endswith("-ideal") else plain
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        warnings.filterwarnings("ignore", message="Acc")
        row = unlearn(replace(config, method=name, etd=etd, quiet=False), name, method, original, task, torch.arange(3))
    assert row["status"] == "ok", row["error"]
    return found[0], {key: value for key, value in row.items() if key not in TIMES}, records, printed.getvalue()


def test_every_rem_has_its_twin():
    """A36: rem, REM (IDEAL) and each ablation has one of REM+; they differ in the settings of REM+ alone."""
    assert TWINS == {"rem": "rem-plus", "rem-ideal": "rem-plus-ideal", "rem-no31": "rem-plus-no31",
                     "rem-no32": "rem-plus-no32", "rem-ce": "rem-plus-ce"}
    assert REM_PLUS - REM == set(OFF)
    for name, plus in TWINS.items():
        assert METHODS[plus].reads - METHODS[name].reads == set(OFF)
        assert METHODS[name].reads < METHODS[plus].reads


@pytest.mark.parametrize("etd", [False, True])
@pytest.mark.parametrize("name", TWINS)
def test_a_cell_of_rem_and_one_of_rem_plus(name, etd):
    """A36, A41: with other values of reach, stop, disbelieved and farther rem's network, its row and what it logs are
    the same; rem-plus with all four off has them too, bit for bit, and with all on another network."""
    config = tiny(max_passes=2, batch=8)
    rem, *told, _ = cell(name, replace(config, **OFF), etd)
    for method, changes in ((name, ON), (TWINS[name], OFF)):
        other, *said, _ = cell(method, replace(config, **changes), etd)
        assert_same_state(rem, other)
        assert said == told
    plus, *_ = cell(TWINS[name], replace(config, **ON), etd)
    assert any(not torch.equal(a, b) for a, b in zip(rem.parameters(), plus.parameters(), strict=True))


@pytest.mark.parametrize("setting", ON)
@given(cells(methods=tuple(TWINS)))
def test_the_key_of_a_cell(setting, each):
    """A36: with another value of a setting of REM+ a cell of rem has the same key, and one of rem-plus another one."""
    for method, same in ((each.method, True), (TWINS[each.method], False)):
        off, on = (replace(each, method=method, **OFF | changed) for changed in ({}, {setting: ON[setting]}))
        assert (cell_key(off) == cell_key(on)) == same


@pytest.mark.parametrize("changes", [OFF, ON])
def test_an_epoch_of_rem_has_no_held_out_images(changes):
    """A41, R1: whatever the settings of REM+ are, a record of rem has the loss and step 2's numbers, and the line that
    is printed no other; of REM+ with early stopping both tell of W."""
    config = tiny(max_passes=2, batch=8, **changes)
    _, _, records, printed = cell("rem", config)
    assert [epoch for epoch, _ in records] == [1, 2]
    assert all(set(record) == {"loss", "acc_forget_before", "acc_forget", "passes", "updates"} for _, record in records)
    assert "acc_forget" in printed and not any(word in printed for word in ("held", "best", "end", "reach"))
    _, _, records, printed = cell("rem-plus", config)
    told = {"acc_held_out", "acc_forget_end", "best"}
    assert all((told <= set(record)) == (changes is ON) for _, record in records)
    assert ("acc_held_out" in printed) == (changes is ON)


def test_settings_of_rem_plus_are_nobody_elses():
    """A36: of all methods REM+ and its own alone read them."""
    readers = {name for name in METHODS if any(reads_setting(each, {"method": name}) for each in OFF)}
    assert readers == {*TWINS.values()} and set(OFF) < OPTIONAL
