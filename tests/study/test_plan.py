"""plan.py: axes and presets of the grid, what tells cells and originals apart, result files (Tables 1-9, Table 3,
A.7)."""

import json
import sys
import warnings
from collections import Counter
from dataclasses import asdict, fields, replace
from decimal import Decimal
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from study import grid, originals
from study import rows as rows_module
from experiment.methods import METHODS, OPTIONAL, code_of, allowed_with, reads_setting
from train import expand_for
from helpers import gen, make_data, small_net, tiny
from study.originals import original_path
from study.plan import PRESETS, by_original, expand_axes, original_of, parse_axis, preset
from study.rows import cell_key, precision_of, read_rows, rows_by_cell, size_of
from experiment.settings import AFTER_TRAINING, Config, PLACE, VERSION
from tasks import TASKS

FIELDS = {f.name: f for f in fields(Config)}
RATES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


def axis(name, text):
    """The values that a flag's text stands for."""
    return parse_axis(FIELDS[name], text)


def other(name, value):
    """A value of a setting within its range that differs from the one given."""
    f = FIELDS[name]
    if f.type is bool:
        return not value
    if f.metadata.get("choices"):
        return next(choice for choice in f.metadata["choices"] if choice != value)
    if name == "method":
        return "rem" if value != "rem" else "npo"
    if f.type in (int, int | None):
        return 32 if value is None else value + 2
    if f.type in (float, float | None):
        return 0.5 if value is None else value / 2 + 0.125 if value != 0.25 else 0.75
    return f"another {value}"


@st.composite
def cells(draw, methods=tuple(METHODS)):
    """Settings of a cell with one method, those that the presets and the axes change drawn."""
    return Config(task=draw(st.sampled_from(TASKS)), discovery=draw(st.sampled_from(RATES)),
                  method=draw(st.sampled_from(methods)),
                    dataset=draw(st.sampled_from(["fashion-mini", "cifar10", "svhn", "folder"])),
                    n=draw(st.integers(1, 500)) * 2,
                    arch=draw(st.sampled_from(["resnet9", "vit"])), capacity=draw(st.sampled_from([0.1, 0.5, 0.9,
                        1.0])),
                    ratio=draw(st.sampled_from([None, 0.5, 1.0])), etd=draw(st.booleans()),
                    p_mem=draw(st.sampled_from([0.05, 0.2])),
                    seed=draw(st.integers(0, 2**62)), alpha=draw(st.sampled_from([0.001, 0.01, 10.0])),
                    curve=draw(st.booleans()), image_size=draw(st.sampled_from([None, 16])))


# --- Axes -------------------------------------------------------------------------------------------------------------


def test_discovery_rates_of_the_paper():
    """0.1:1.0:0.1 is the ten rates of Sec. 4 as typed, without the rounding that adding 0.1 ten times gives."""
    assert axis("discovery", "0.1:1.0:0.1") == RATES
    assert axis("discovery", "0.1:0.3:0.1") == [0.1, 0.2, 0.3]
    assert axis("seed", "0:2:1") == [0, 1, 2] == axis("seed", "0,1,2")


@given(st.integers(0, 999), st.integers(1, 99), st.integers(1, 12), st.integers(0, 4), st.integers(0, 98))
def test_ranges_are_exact(first, step, count, places, beyond):
    """first:last:step gives the floats that one would have typed, the last one too if a step meets it."""
    def text(whole):
        return str(Decimal(whole).scaleb(-places))

    last = first + (count - 1) * step + beyond % step  # as far as the next value, but not onto it
    typed = [text(first + i * step) for i in range(count)]
    found = axis("gamma", f"{text(first)}:{text(last)}:{text(step)}")
    assert found == [float(value) for value in typed] == axis("gamma", ",".join(typed))


@given(st.lists(st.integers(0, 9), min_size=1))
def test_lists_keep_their_order_without_repeats(values):
    """A list is taken in the order given, each value once; spaces and empty places do not matter."""
    assert axis("seed", " , ".join(map(str, values)) + ",") == list(dict.fromkeys(values))
    assert axis("gamma", ",".join(f"{value}.50,{value}.5" for value in values)) == list(dict.fromkeys(v + 0.5
        for v in values))


def test_lists_may_hold_ranges():
    """Values and ranges mix."""
    assert axis("seed", "7,0:2:1,1,9") == [7, 0, 1, 2, 9]
    assert axis("capacity", "1.0,0.1:0.3:0.1") == [1.0, 0.1, 0.2, 0.3]


def test_all_and_both():
    """`all` is every task or every algorithm once, within a list too; switches take on, off and both."""
    every = axis("method", "all")
    assert axis("task", "all") == list(TASKS) and set(every) == set(METHODS) - {"rem-on-etd", "badt-sum", "potion-500"}
    assert axis("method", "cf,all,examples/my_method.py:relabel") == [
        "cf", *(name for name in every if name != "cf"), "examples/my_method.py:relabel"]
    assert [axis("etd", word) for word in ("on", "off", "both")] == [[True], [False], [False, True]]
    assert axis("pair", "3,5") == ["3,5"]  # one value, though it holds a comma


BAD_AXES = [
    ("discovery", "0.3:0.1:0.1", "rises"), ("discovery", "0.3:0.25:0.1", "rises"), ("discovery", "0.1:0.3:0", "rises"),
    ("discovery", "0.1:0.3:-0.1", "rises"), ("discovery", "0.1:0.3", "first:last:step"),
    ("discovery", "a:b:c", "first:last:step"),
    ("discovery", "0.1:inf:0.1", "more than 100,000 values"), ("discovery", "nan:1:0.1", "first:last:step"),
    ("discovery", "0.1:1:inf", "first:last:step"),
    ("discovery", "0.1:0.2:0.1:1", "first:last:step"), ("discovery", "half", "float values"),
    ("seed", "0.5", "int values"),
    ("seed", "0:1:0.5", "int values"), ("seed", ",", "empty"), ("method", "", "empty"),
    ("etd", "maybe", "on, off or both"),
    ("etd", "on,off", "on, off or both"), ("method", "rem,rme", "unknown method 'rme'"),
    ("method", "All", "unknown method"),
    ("method", "a/m.py:f,b/m.py:f", "two methods are called m.py:f"),
    ("seed", "0:1:1e-9999999", "first:last:step"), ("seed", "0:1e999999:1", "more than 100,000 values"),
    ("seed", "1:1e30:1", "more than 100,000 values"), ("lr", "0:1:1e-9", "more than 100,000 values"),
]


@pytest.mark.parametrize("name, text, words", BAD_AXES, ids=[f"{name} {text}" for name, text, _ in BAD_AXES])
def test_axes_that_do_not_parse(name, text, words):
    """R2: the message names the flag or the method, what was given and what is taken."""
    with pytest.raises(ValueError, match=words) as raised:
        axis(name, text)
    assert (f"--{name}" in str(raised.value) or name == "method") and "\n" not in str(raised.value)


def test_unknown_axis_and_value_out_of_range():
    """R2: expand_axes checks names and every combination's values."""
    for axes, words in (({"discover": "0.1"}, "unknown axis 'discover'"),
                        ({"discovery": "0.5,1.5"}, "discovery is 1.5"),
                        ({"task": "poison,poisn"}, "choose from poison"), ({"arch": "cnn"}, "choose from resnet9"),
                        ({"method": "rem,rem-on-etd"}, "rem-on-etd fits none of these cells; add --etd"),
                        ({"method": "rem,retrain", "etd": "on"}, "retrain fits none of these cells; it trains anew")):
        with pytest.raises(ValueError, match=words):
            expand_axes(axes)


axis_values = {"task": st.lists(st.sampled_from(TASKS), min_size=1, unique=True),
               "discovery": st.lists(st.sampled_from(RATES), min_size=1, max_size=3, unique=True),
               "seed": st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
               "etd": st.sampled_from([[False], [True], [False, True]]),
               "capacity": st.lists(st.sampled_from([0.25, 0.5, 1.0]), min_size=1, max_size=2, unique=True),
               "method": st.lists(st.sampled_from(["no-ul", "retrain", "etd", "scrub", "rem", "rem-on-etd"]),
                                  min_size=1, unique=True)}


@given(st.fixed_dictionaries(axis_values))
def test_cells_are_the_product_of_the_axes(values):
    """A cell for every combination that has a meaning, each once; a naive loop says the same."""
    values = {name: values[name] for name in axis_values}  # in this order
    words = {(False,): "off", (True,): "on", (False, True): "both"}
    axes = {name: words[tuple(v)] if name == "etd" else ",".join(map(str, v)) for name, v in values.items()}
    expected = {choice for choice in product(*values.values()) if fits(choice[5], choice[3])}
    found = [(c.task, c.discovery, c.seed, c.etd, c.capacity, c.method) for c in expand_axes({}, [axes])]
    assert len(found) == len(set(found)) and set(found) == expected


def test_defaults_of_a_grid():
    """No axis at all is the four methods of a plain run; data set and architecture bring their presets."""
    assert [cell.method for cell in expand_axes({})] == ["no-ul", "cf", "npo", "rem"]
    found = expand_axes({"arch": "resnet9,vit", "dataset": "fashion-mini,cifar10", "method": "rem"})
    assert {(c.arch, c.dataset): (c.optimizer, c.n) for c in found} == {
        ("resnet9", "fashion-mini"): ("sgd", 120), ("resnet9", "cifar10"): ("sgd", 1000),
        ("vit", "fashion-mini"): ("adam", 120), ("vit", "cifar10"): ("adam", 1000)}


def test_alpha_concerns_scrub_alone():
    """Table 3: four values of alpha make four cells of SCRUB and one of every other method, at its default."""
    found = Counter((cell.method, cell.alpha) for cell in expand_axes({"alpha": "0.001,0.01,0.1,10",
        "method": "scrub,rem"}))
    assert found == Counter({("scrub", 0.001): 1, ("scrub", 0.01): 1, ("scrub", 0.1): 1, ("scrub", 10.0): 1,
                             ("rem", 0.01): 1})


def test_statistics_concern_methods_that_pass_over_forget():
    """Two values of forget_norm make two cells of ascent, npo and REM and one of every other method, at its default."""
    found = Counter((cell.method, cell.forget_norm) for cell in expand_axes({"forget_norm": "running,batch",
        "method": "cf,npo,rem"}))
    assert found == Counter({("cf", "auto"): 1, **{(name, norm): 1 for name in ("npo", "rem")
                                                   for norm in ("running", "batch")}})


class Reading(Config):
    """A Config that notes which of its fields are read; `dataclasses.replace`, which reads all, does not count."""

    def __getattribute__(self, name):
        caller = sys._getframe(1).f_code
        if not name.startswith("_") and caller.co_name not in ("replace", "_replace", "__init__", "__post_init__",
                                                               "check"):
            noted.add(name)
        return super().__getattribute__(name)


noted = set()


@pytest.mark.parametrize("method", [name for name in METHODS if name != "no-ul"])
def test_a_method_reads_what_concerns_it(method):
    """A field that its record keeps from a method is not read by it, and one that it grants is read in some run."""
    noted.clear()
    data, forget = make_data(0, n=12), torch.tensor([1, 4, 5])
    for step31, step32 in ((True, True), (False, False)):
        values = {**asdict(tiny(gamma=0.0, max_passes=1, unlearn_epochs=1, epochs=1)), "step31": step31,
                  "step32": step32}
        network = expand_for(small_net(0), data, tiny()) if not allowed_with(method, False) else small_net(0)
        more = {"corrupted": forget} if method in ("rem-ideal", "etd-ideal") else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gamma is not reached
            METHODS[method].function(network, data, forget, Reading(**values), gen(0), **more)
    fixed = {"rem-no31": {"step31", "step32", "redirect", "p_mem", "ratio"}, "rem-no32": {"step31", "step32"},
             # the value that the ablation gives itself, or what `start` copies for a step 3 that does not come
             "rem-ce": {"redirect"},
             "npo": {"step31", "step32", "p_mem", "ratio", "redirect", "unlearn_epochs", "stop"}}
    here = {"curve"} | ({"ratio"} if method == "rem-on-etd" else set())  # read by the runner, or in ETD training
    for axis in OPTIONAL - here - fixed.get(method, set()):
        read = axis in noted or axis == "ratio" and "extra_ratio" in noted
        assert reads_setting(axis, {"method": method, "etd": not allowed_with(method, False)}) == read, axis


def test_settings_of_no_concern_make_no_cells():
    """Values that a method does not read make one cell of it, at the default; out of range they are an error all the
    same."""
    axes = {"gamma": "0.1,0.3", "beta": "1,2", "unlearn_epochs": "3,4", "unlearn_lr": "0.1,0.2", "step32": "both"}
    found = Counter(cell.method
                    for cell in expand_axes({**axes, "method": "no-ul,retrain,etd,cf,ssd,potion,npo,rem,rem-no31"}))
    assert found == {"no-ul": 1, "retrain": 1, "etd": 1, "cf": 4, "ssd": 1, "potion": 2, "npo": 8, "rem": 32,
                     "rem-no31": 16}
    with pytest.raises(ValueError, match="gamma is 2"):
        expand_axes({"gamma": "2", "method": "no-ul"})


def test_masks_concern_those_that_have_them():
    """p_mem and ratio make two cells each of REM, of ETD and of all that starts from ETD training, one of everything
    else."""
    axes = {"p_mem": "0.2,0.05", "ratio": "0.5,1.0", "etd": "both", "method": "all"}
    found = Counter((cell.method, cell.etd) for cell in expand_axes(axes))
    assert {name for name, count in found.items() if count == 4} == {
        *((name, True) for name in METHODS if allowed_with(name, True) and METHODS[name].in_all), ("etd", False),
        ("etd-ideal", False),
        *((name, False) for name in METHODS if name.startswith("rem") and name not in ("rem-on-etd", "rem-no31"))}
    assert set(found.values()) == {1, 4}
    plain = [cell for cell in expand_axes(axes) if found[cell.method, cell.etd] == 1]
    assert {cell.method for cell in plain} >= {"no-ul", "retrain", "cf", "npo", "scrub", "ssd"}
    assert all((cell.p_mem, cell.ratio) == (0.2, None) for cell in plain)
    own = expand_axes({"p_mem": "0.2,0.05", "method": "examples/my_method.py:relabel"})
    assert [cell.p_mem for cell in own] == [0.2, 0.05]  # which may read any setting


@pytest.mark.parametrize("axes", [{"method": "all", "task": "all"}, {"method": "all", "task": "all", "etd": "both",
                                                                     "seed": "0,1,2"}])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 8])
def test_ranks_share_the_work(axes, world):
    """Every group has one rank, and no rank has much more than its part of the cells, few groups being what they
    are."""
    groups = by_original(expand_axes({**axes, "discovery": "0.1:1.0:0.1"}))
    parts = [grid.shard_cells(groups, rank, world) for rank in range(world)]
    assert sorted(map(id, sum(parts, []))) == sorted(map(id, groups))
    loads = [sum(len(cells) for _, cells in part) for part in parts]
    assert max(loads) <= sum(loads) / world + max(len(cells) for _, cells in groups)


# --- Presets ----------------------------------------------------------------------------------------------------------

MAIN = {"no-ul", "ascent", "npo", "scrub", "badt", "potion", "rem"}
RESNET, VIT = ("cifar10", "resnet9", 1000), ("svhn", "vit", 1000)
IMAGENETTE = ("imagenette", "resnet9", 100)  # A.7: 100 corruptions


@cache
def cells_of(name):
    """A preset's cells, made once: the larger ones have thousands."""
    return preset(name, {})


# table -> {(data set, network, n, capacity, etd, p_mem): methods}, read off the paper's rows and captions. Choices:
# Potion on
# the ViT, which the paper has no memory for, and NPO on Imagenette run too; "Retrained" is a plain retraining in every
# table.
ROWS = {
    "table1": {(*net, 0.5, etd, 0.2): MAIN if etd else MAIN | {"retrain"} for net in (RESNET, VIT)
               for etd in (False, True)},
    "table2": {(*RESNET, 0.5, etd, 0.2): {"rem", "rem-no31", "rem-no32"} for etd in (False, True)},
    "table4": {(*RESNET, 0.5, True, 0.2): MAIN | {"cf"}, (*RESNET, 0.5, False, 0.2): MAIN | {"cf", "retrain"},
               (*RESNET, 1.0, False, 0.2): MAIN | {"cf", "retrain"}},
    "table5": {(*VIT, 0.5, True, 0.2): MAIN | {"cf"}, (*VIT, 0.5, False, 0.2): MAIN | {"cf", "retrain"},
               (*VIT, 1.0, False, 0.2): {"no-ul", "ascent"}},
    "table6": {(*IMAGENETTE, 0.5, False, 0.2): MAIN | {"retrain"}},
    "table7": {(*IMAGENETTE, 0.9, True, 0.2): MAIN, (*IMAGENETTE, 0.9, False, 0.2): {"retrain"}},
    "table8": {(*RESNET, 0.5, True, 0.05): MAIN, (*RESNET, 0.5, False, 0.2): {"retrain"}},  # which has no masks
    "table9": {(*VIT, 0.5, True, 0.05): MAIN, (*VIT, 0.5, False, 0.2): {"retrain"}},
}


@pytest.mark.parametrize("name", ROWS)
def test_presets_are_the_tables(name):
    """R8: each table's preset has its networks and methods, all at 3 tasks, 10 discovery rates, 3 seeds; SCRUB with 4
    alphas."""
    found = {}
    for cell in cells_of(name):
        kind = (cell.dataset, cell.arch, cell.n, cell.capacity, cell.etd, cell.p_mem)
        found.setdefault(kind, Counter())[cell.method, cell.task, cell.discovery, cell.seed] += 1
    assert {kind: {method for method, *_ in counts} for kind, counts in found.items()} == ROWS[name]
    for kind, counts in found.items():
        assert counts == Counter({cell: 4 if cell[0] == "scrub" else 1
                                  for cell in product(ROWS[name][kind], TASKS, RATES, (0, 1, 2))})


@pytest.mark.parametrize("name", PRESETS)
def test_presets_train_as_table_3_says(name):
    """R8: Table 3's rates, batch sizes, epochs, threshold and beta hold in every preset of the paper; Fig. 5 unlearns 5
    epochs."""
    for cell in cells_of(name) if name != "quick" else preset(name, {"dataset": "cifar10"}):
        rates = ("adam", 1e-4, 2048, 2e-5) if cell.arch == "vit" else ("sgd", 0.025, 512, 0.005)
        assert (cell.optimizer, cell.lr, cell.batch, cell.unlearn_lr) == rates
        assert (cell.epochs, cell.unlearn_epochs, cell.gamma, cell.beta) == (40, 5 if name == "fig5" else 10, 0.2, 1.0)
        assert cell.width == 1.0 and cell.ratio is None and cell.alpha in (0.001, 0.01, 0.1, 10.0)


def test_presets_of_the_figures():
    """Fig. 5: poison at discovery 0.5 over 5 epochs, with the curve; Fig. 8: capacities with and without ETD, before
    unlearning."""
    assert [(c.task, c.discovery, c.method, c.etd, c.curve, c.unlearn_epochs, c.capacity, c.dataset, c.seed)
            for c in cells_of("fig5")] == [("poison", 0.5, "rem", False, True, 5, 0.5, "cifar10", seed)
                                           for seed in (0, 1, 2)]
    found = cells_of("fig8")
    assert {(c.task, c.method, c.dataset, c.arch) for c in found} == {(task, "no-ul", "cifar10", "resnet9")
                                                                      for task in TASKS}
    pairs = {(c.capacity, c.etd) for c in found}
    assert pairs == {*product((0.1, 0.2, 0.3, 0.5, 0.7, 0.9), (False, True)), (1.0, False)}
    assert len(found) == len(pairs) * 3 * 3  # tasks and seeds


def test_quick_is_the_built_in_data():
    """The preset to try the grid with: one seed of each task on fashion-mini, as run.py runs it."""
    found = cells_of("quick")
    assert {(c.dataset, c.seed, c.etd) for c in found} == {("fashion-mini", 0, False)} and len(found) == 3 * 3 * 4


def test_given_values_replace_a_presets():
    """What the command line names takes the place of the preset's values, in each of its blocks."""
    found = preset("table1", {"dataset": "fashion-mini", "discovery": "0.5", "seed": "7", "method": "rem"})
    assert {(c.dataset, c.discovery, c.seed, c.method, c.arch, c.etd) for c in found} == {
        ("fashion-mini", 0.5, 7, "rem", arch, etd) for arch in ("resnet9", "vit") for etd in (False, True)}
    assert {c.etd for c in preset("table8", {"method": "retrain"})} == {False}  # fits one block, which is enough
    with pytest.raises(ValueError, match="retrain fits none"):
        preset("table8", {"method": "rem,retrain", "etd": "on"})
    with pytest.raises(ValueError, match="unknown preset 'table3'; choose from table1"):
        preset("table3", {})


# --- What tells cells and originals apart -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIELDS)
@given(cell=cells())
def test_key_holds_every_setting_but_the_place(name, cell):
    """R5, R9: a cell's key changes with every setting that its method reads, but for where and how loudly it runs."""
    changed = replace(cell, **{name: other(name, getattr(cell, name))})
    same = name in PLACE and not (name == "data_dir" and cell.dataset == "folder")  # a folder is told by its path
    same = same or not reads_setting(name, asdict(cell))
    if name in ("device", "precision"):
        same = precision_of(vars(changed)) == precision_of(vars(cell))
    if name == "image_size":
        same = size_of(vars(changed)) == size_of(vars(cell))
    assert (cell_key(changed) == cell_key(cell)) == same


@pytest.mark.parametrize("name", FIELDS)
@given(cell=cells())
def test_originals_are_shared_where_training_is_the_same(name, cell):
    """R9: an original's file differs with every setting that training reads, and with none that unlearning alone
    reads."""
    changed = replace(cell, **{name: other(name, getattr(cell, name))})
    here, there = (original_path("runs", original_of(c)) for c in (cell, changed))
    alone = METHODS[cell.method].trains_alone
    unread = AFTER_TRAINING | PLACE | (set() if cell.etd or alone else {"p_mem", "ratio"})
    same = name in unread and not (name == "data_dir" and cell.dataset == "folder") and not (name == "method" and alone)
    if name in ("device", "precision"):
        same = precision_of(vars(changed)) == precision_of(vars(cell))
    if name == "image_size":
        same = size_of(vars(changed)) == size_of(vars(cell))
    assert (here == there) == same


@given(cells(), cells())
def test_file_names_carry_the_settings(a, b):
    """R9: task, data set, network, n and seed stand in the file's name, and two originals share one only if all is the
    same."""
    here, there = original_path("runs", original_of(a)), original_path("runs", original_of(b))
    assert here.name.startswith(f"{a.task}-{a.dataset}-{a.arch}-n{a.n}-seed{a.seed}-")
    assert here.parent == Path("runs/originals")
    read = [f for f in FIELDS if f not in AFTER_TRAINING | PLACE | {"precision", "image_size"}]
    if here == there:
        assert precision_of(vars(a)) == precision_of(vars(b)) and size_of(vars(a)) == size_of(vars(b))
        masked = a.etd or METHODS[a.method].trains_alone
        assert all(getattr(a, f) == getattr(b, f) for f in read if masked or f not in ("p_mem", "ratio"))


@given(cells())
def test_originals_are_their_own(cell):
    """R9: the original of an original is itself; a method that trains alone never shares one with a method that
    unlearns."""
    original = original_of(cell)
    assert original_of(original) == original and original.out == Config.out
    assert original.method == (cell.method if METHODS[cell.method].trains_alone else "")
    assert original_of(replace(cell, method="etd")) != original_of(replace(cell, method="rem")) != original_of(
        replace(cell, method="etd-ideal"))


def test_another_version_trains_anew(monkeypatch):
    """R9: code of another version reads no file of this one."""
    before = cell_key(Config(method="rem")), original_path("runs", original_of(Config(method="rem")))
    monkeypatch.setattr(rows_module, "VERSION", "0.0.0")
    after = cell_key(Config(method="rem")), original_path("runs", original_of(Config(method="rem")))
    assert before[0] != after[0] and before[1] != after[1]


@given(st.lists(cells(), min_size=1, max_size=12), st.integers(1, 5))
def test_groups_and_ranks_part_the_cells(found, world):
    """Every cell lies in one group and every group with one rank; a group's cells share an original that no other group
    has."""
    groups = by_original(found)
    assert sorted(map(cell_key, found)) == sorted(cell_key(cell) for _, group in groups for cell in group)
    originals = [original_path("runs", original) for original, _ in groups]
    assert len(set(originals)) == len(groups)
    for original, group in groups:
        assert {original_path("runs", original_of(cell)) for cell in group} == {original_path("runs", original)}
    shares = [grid.shard_cells(groups, rank, world) for rank in range(world)]
    assert Counter(id(group) for share in shares for group in share) == Counter(map(id, groups))


def test_own_methods_are_told_by_file_and_function():
    """A row has the short name of one's own method, so the key is that of the path too."""
    assert cell_key(Config(method="some/where/m.py:f")) == cell_key(Config(method="m.py:f"))
    assert cell_key(Config(method="m.py:f")) != cell_key(Config(method="m.py:g"))


# --- Result files -----------------------------------------------------------------------------------------------------


def row_of(cell, status="ok", **more):
    """The parts of a row that the grid reads."""
    return {**asdict(cell), "method": Path(cell.method).name, "status": status, "error": None, "version": VERSION,
            "healed": 0.5, "utility": 0.5, "product": 0.25, "seconds": 1.0, "train_seconds": 1.0, **more}


@given(cells())
def test_key_survives_the_file(cell):
    """R5: a row read back from JSON is taken for the cell that it came from."""
    assert set(rows_by_cell([json.loads(json.dumps(row_of(cell)))])) == {cell_key(cell)}


def test_a_good_row_is_kept_before_a_failed_one():
    """R5: a cell with several rows has its good one, else the last."""
    cell = Config(method="rem")
    for statuses, kept in (("failed ok", 1), ("ok failed", 0), ("failed failed", 1), ("ok ok", 1)):
        rows = [row_of(cell, status, number=i) for i, status in enumerate(statuses.split())]
        assert [row["number"] for row in rows_by_cell(rows).values()] == [kept]


def test_rows_of_another_version_are_not_done():
    """R5: a row of another version, or of none, does not count."""
    rows = [row_of(Config(method="rem"), version="0.0.0"), {**row_of(Config(method="npo")), "version": None}]
    assert rows_by_cell(rows) == {} and len(rows_by_cell([*rows, row_of(Config(method="npo"))])) == 1


NEW = ("schedule", "ssd_alpha", "stop")  # settings that rows did not always have
OLD_ROWS = [  # what a row of before was, and the cell of today that it stands for
    *((dict(method=name), dict(method=name)) for name in METHODS if name not in (
        "scrub", "badt", "badt-sum", "potion", "ssd", "cf", "cuts") and "stop" not in METHODS[name].reads),
    *((dict(method=name), dict(method=name, stop="max")) for name in METHODS if "stop" in METHODS[name].reads),
    (dict(method="cf"), dict(method="cf", schedule="linear")),
    (dict(method="scrub", alpha=0.1), dict(method="scrub", alpha=0.1, schedule="constant")),
    (dict(method="badt"), dict(method="badt-sum", schedule="constant")),
    (dict(method="potion"), dict(method="potion")),
    (dict(method="some/m.py:f"), dict(method="m.py:f", stop="max")),
]


@pytest.mark.parametrize("was, now", OLD_ROWS, ids=lambda setting: "-".join(map(str, setting.values())))
def test_rows_without_newer_settings_are_found(was, now, tmp_path):
    """R5: a row from before there was a setting stands for the cell of today that gives its numbers, and no other."""
    etd = was["method"] == "rem-on-etd"
    row = {name: value for name, value in row_of(Config(etd=etd, **was)).items() if name not in NEW}
    (tmp_path / "cells.jsonl").write_text(json.dumps(row) + "\n")
    assert rows_by_cell(read_rows(tmp_path)).keys() == {cell_key(Config(etd=etd, **now))}


def test_rows_of_today_lack_nothing(tmp_path):
    """R5: rows that have the schedule are read as they are, and SSD's in other batches count for no cell."""
    rows = [row_of(Config(method=name)) for name in ("badt", "potion", "scrub", "ssd", "cuts")]
    (tmp_path / "cells.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_rows(tmp_path) == rows
    old = {name: value for name, value in rows[3].items() if name not in NEW}
    (tmp_path / "cells.jsonl").write_text(json.dumps(old) + "\n")
    [found] = read_rows(tmp_path)
    assert rows_by_cell([found]) == {} and (found["method"], found["ssd_alpha"]) == ("ssd", 10.0)


@pytest.mark.parametrize("method", ["no-ul", "npo", "rem", "etd"])
def test_a_row_with_stop_alone_is_found(method, tmp_path):
    """R5: a row from before the schedule, but not before REM could end early, keeps how it ended."""
    row = {name: value for name, value in row_of(Config(method=method)).items() if name not in NEW[:2]}
    (tmp_path / "cells.jsonl").write_text(json.dumps(row) + "\n")
    assert rows_by_cell(read_rows(tmp_path)).keys() == {cell_key(Config(method=method))}


def test_alphas_of_ssd_and_schedules_make_cells():
    """Values of ssd_alpha make cells of SSD alone, schedules of fine-tuning, SCRUB and Bad Teacher; alphas of SCRUB."""
    axes = {"ssd_alpha": "0.1,10,1e6", "schedule": "linear,constant", "alpha": "0.001,0.01,0.1,10", "method": "all"}
    found = Counter(cell.method for cell in expand_axes(axes))
    assert {name: count for name, count in found.items() if count > 1} == {"ssd": 3, "cf": 2, "badt": 2, "scrub": 8}


def test_torn_lines_are_left_out(tmp_path, capsys):
    """R5: half a line, bytes that are no text, bare values, brackets without end, numbers beyond float and a method
    that is no name are left out with a warning; all else is read, of every file.
    """
    good, number, pairs = (json.dumps({**row_of(Config(method="rem")), **more}).encode() for more in (
        {}, {"method": 3}, {"points": [1, 2]}))
    odd = [good[:50], b"\xff\xfe", b"12", b"[" * 5000, number, pairs, good.replace(b"512", b"9" * 400)]
    (tmp_path / "cells-0.jsonl").write_bytes(b"\n".join([good, *odd, good, good[:90]]))
    (tmp_path / "cells-1.jsonl").write_bytes(good)
    (tmp_path / "cells-1.jsonl.99.tmp").write_bytes(good[:9])
    assert len(read_rows(tmp_path)) == 3
    file = tmp_path / "cells-0.jsonl"
    assert capsys.readouterr().err == (f"warning: {file}: 8 lines, the first of them 2, are not a "
                                       "whole row; left out\n")


def test_other_commands_rows_are_passed_over(tmp_path, capsys):
    """R5: a file of C-scores in the same folder is neither a cell nor torn."""
    score = '{"task": "poison", "status": "ok", "score": 0.8, "sizes": [0], "runs": 1}'
    (tmp_path / "cscore.jsonl").write_text(score + "\n")
    assert read_rows(tmp_path) == [] and capsys.readouterr().err == ""


def test_no_folder_has_no_rows(tmp_path):
    """R5: a grid begins with nothing."""
    assert read_rows(tmp_path / "none") == [] and rows_by_cell([]) == {}


def test_three_thousand_rows(tmp_path):
    """R5: a folder of 3,000 rows is read and every cell of it known."""
    found = cells_of("table1")[:3000]
    (tmp_path / "cells.jsonl").write_text("".join(json.dumps(row_of(cell)) + "\n" for cell in found))
    assert len(rows_by_cell(read_rows(tmp_path))) == len(found) == 3000


def test_own_method_is_told_by_its_code(tmp_path):
    """R9, R5: a cell of one's own method is another cell once the file changes; its alpha is its own concern."""
    path = tmp_path / "mine.py"
    path.write_text("def f(model, data, forget, config, generator): return model\n")
    cells = expand_axes({"method": f"{path}:f,no-ul", "alpha": "0.1,0.5"})
    assert [(cell.method.rpartition(":")[2], cell.alpha) for cell in cells] == [("f", 0.1), ("no-ul", 0.01), ("f", 0.5)]
    before = [cell_key(cell) for cell in cells]
    row = row_of(cells[0], code=code_of(cells[0].method))
    assert set(rows_by_cell([row])) == {before[0]}
    path.write_text("def f(model, data, forget, config, generator): return None\n")
    after = [cell_key(cell) for cell in cells]
    assert after[0] not in before and after[1] == before[1] and set(rows_by_cell([row])) == {before[0]}


def test_a_relative_path_is_another_one_elsewhere(tmp_path, monkeypatch):
    """R9, R5: one relative data path in two working directories is two data sets of images, and a row of the one is no
    row of the other; the grid's rows hold the whole path."""
    keys = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        given = {"dataset": "folder", "data_dir": "images", "image_size": "16", "method": "rem"}
        _, (cell,) = grid.cells_of(given, None, 0, 1)
        keys.append(cell_key(cell))
        assert cell.data_dir == str(tmp_path / name / "images")
        assert cell_key(replace(cell, data_dir="images")) == keys[-1]
        assert cell_key(replace(cell, data_dir="images", dataset="cifar10")) == cell_key(replace(cell,
            dataset="cifar10"))
        row = row_of(cell)
    assert keys[0] != keys[1] and set(rows_by_cell([row])) == {keys[1]}
    monkeypatch.chdir(tmp_path / "a")
    assert set(rows_by_cell([row])) == {keys[1]}


def test_data_are_read_where_the_process_stands(tmp_path, monkeypatch):
    """R9: the data set that is kept in memory is that of the whole path."""
    asked = []
    monkeypatch.setattr(originals, "load", lambda name, folder, *rest: asked.append(folder) or object())
    originals.read_dataset.cache_clear()
    found = []
    for name in ("a", "b", "a"):
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / name)
        found.append(originals.dataset_of(Config(dataset="folder", data_dir="images")))
    originals.read_dataset.cache_clear()
    assert asked == [str(tmp_path / name / "images") for name in ("a", "b")]
    assert found[0] is found[2] is not found[1]


def test_precision_is_what_it_comes_to():
    """R9: float32 on the CPU and bf16 on a GPU are different cells, however they were asked for."""
    cell = expand_axes({"method": "no-ul", "device": "cpu"})[0]
    gpu = replace(cell, device="cuda")
    assert cell_key(cell) == cell_key(replace(cell, precision="float32")) != cell_key(gpu) == cell_key(replace(gpu,
        precision="bf16"))
    assert cell_key(replace(gpu, device="NVIDIA H100")) == cell_key(gpu)  # the name that a row has


def test_the_own_image_size_is_no_other_data_set():
    """R9: --image-size 16 is what fashion-mini has anyway, so that it makes no other cell; of CIFAR-10 it does."""
    own, cifar = (expand_axes({"method": "no-ul", "dataset": name})[0] for name in ("fashion-mini", "cifar10"))
    assert cell_key(own) == cell_key(replace(own, image_size=16)) != cell_key(replace(own, image_size=32))
    assert cell_key(cifar) == cell_key(replace(cifar, image_size=32)) != cell_key(replace(cifar, image_size=16))


def test_masks_do_not_concern_rem_without_3_1():
    """R9: REM without step 3.1 reads neither p_mem nor ratio, but on a network that masks have trained."""
    for field in ("p_mem", "ratio"):
        assert reads_setting(field, {"method": "rem", "step31": True})
        assert not reads_setting(field, {"method": "rem", "step31": False})
        assert reads_setting(field, {"method": "rem", "step31": False, "etd": True})
