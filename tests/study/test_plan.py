"""study/plan.py: axes and presets of a grid, what tells one cell and one original from another (Tables 1-9, A.7)."""

import warnings
from collections import Counter
from dataclasses import asdict, replace
from decimal import Decimal
from functools import cache
from itertools import product
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import baselines
import rem_plus
from baselines import with_theta_o2
from experiment.methods import METHODS, OF_ONE_TASK, OF_VIT, OPTIONAL, allowed_with, reads_setting
from experiment.settings import AFTER_TRAINING, Config, OF_THE_RUN
from helpers import gen, make_data, small_net, tiny
from made_cells import FIELDS, RATES, cells, other
from metrics import predict
from study import grid, plan, rows
from study.originals import original_path
from study.plan import PRESETS, by_original, expand_axes, original_of, parse_axis, preset
from study.rows import cell_key, precision_of, size_of
from tasks import TASKS


def axis(name, text):
    """The values that a flag's text stands for."""
    return parse_axis(FIELDS[name], text)


# --- Axes -------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 999), st.integers(1, 99), st.integers(1, 12), st.integers(0, 4), st.integers(0, 98))
def test_ranges_are_exact(first, step, count, places, beyond):
    """R2: first:last:step gives the floats that one would have typed, the last one too if a step meets it."""
    def text(whole):
        return str(Decimal(whole).scaleb(-places))

    last = first + (count - 1) * step + beyond % step  # as far as the next value, but not onto it
    typed = [text(first + i * step) for i in range(count)]
    found = axis("gamma", f"{text(first)}:{text(last)}:{text(step)}")
    assert found == [float(value) for value in typed] == axis("gamma", ",".join(typed))


@given(st.lists(st.integers(0, 9), min_size=1))
def test_lists_keep_their_order_without_repeats(values):
    """R2: a list is taken in the order given, each value once; spaces and empty places do not matter."""
    assert axis("seed", " , ".join(map(str, values)) + ",") == list(dict.fromkeys(values))
    assert axis("gamma", ",".join(f"{value}.50,{value}.5" for value in values)) == list(dict.fromkeys(v + 0.5
        for v in values))


def test_all_both_and_mixtures():
    """R2: `all` is every task or every algorithm once, within a list too; switches take on, off and both; values and
    ranges mix."""
    every = axis("method", "all")
    left_out = {"rem-on-etd", "badt-sum", "potion-500"}  # another name, and other versions
    left_out |= {"rem-plus-ideal", "rem-plus-no31", "rem-plus-no32", "rem-plus-ce"}  # of REM they are the paper's
    left_out |= {"abl", "d-br", "sap", "step2-cf"}  # rivals of a repair
    assert axis("task", "all") == list(TASKS) and set(every) == set(METHODS) - left_out
    assert axis("method", "cf,all,examples/my_method.py:relabel") == [
        "cf", *(name for name in every if name != "cf"), "examples/my_method.py:relabel"]
    assert [axis("etd", word) for word in ("on", "off", "both")] == [[True], [False], [False, True]]
    assert axis("pair", "3,5") == ["3,5"]  # one value, though it holds a comma
    assert axis("seed", "7,0:2:1,1,9") == [7, 0, 1, 2, 9]
    assert len(axis("seed", "1:100000:1")) == 100_000  # the most, see BAD_AXES


BAD_AXES = [
    ("discovery", "0.3:0.25:0.1", "rises"), ("discovery", "0.1:0.3:0", "rises"), ("discovery", "0.1:0.3:-0.1", "rises"),
    ("discovery", "0.1:0.3", "first:last:step"), ("discovery", "a:b:c", "first:last:step"),
    ("discovery", "nan:1:0.1", "first:last:step"), ("discovery", "0.1:1:inf", "first:last:step"),
    ("seed", "0:1:1e-9999999", "first:last:step"), ("discovery", "0.1:inf:0.1", "more than 100,000 values"),
    ("seed", "0:1e999999:1", "more than 100,000 values"), ("seed", "0:100000:1", "more than 100,000 values"),
    ("discovery", "half", "float values"), ("seed", "0.5", "int values"), ("seed", "0:1:0.5", "int values"),
    ("seed", ",", "empty"), ("method", "", "empty"), ("etd", "on,off", "on, off or both"),
    ("method", "rem,rme", "unknown method 'rme'"), ("method", "All", "unknown method"),
    ("method", "a/m.py:f,b/m.py:f", "two methods are called m.py:f"),
]


@pytest.mark.parametrize("name, text, words", BAD_AXES, ids=[f"{name} {text}" for name, text, _ in BAD_AXES])
def test_axes_that_do_not_parse(name, text, words):
    """R2: the message names the flag or the method, what was given and what is taken."""
    with pytest.raises(ValueError, match=words) as raised:
        axis(name, text)
    assert (f"--{name}" in str(raised.value) or name == "method") and "\n" not in str(raised.value)


def test_unknown_axis_and_value_out_of_range():
    """R2: expand_axes checks names and every combination's values, those too that the method does not read."""
    for axes, words in (({"discover": "0.1"}, "unknown axis 'discover'"),
                        ({"discovery": "0.5,1.5"}, "discovery is 1.5"),
                        ({"gamma": "2", "method": "no-ul"}, "gamma is 2"),
                        ({"task": "poison,poisn"}, "choose from poison"), ({"arch": "cnn"}, "choose from resnet9"),
                        ({"method": "rem,rem-on-etd"}, "rem-on-etd fits none of these cells; add --etd"),
                        ({"method": "rem,retrain", "etd": "on"}, "retrain fits none of these cells; it trains anew")):
        with pytest.raises(ValueError, match=words):
            expand_axes(axes)


def test_defaults_of_a_grid():
    """R8: No axis at all is the five methods of a plain run; data set and architecture bring their presets."""
    assert [cell.method for cell in expand_axes({})] == ["no-ul", "cf", "npo", "rem", "rem-plus"]
    found = expand_axes({"arch": "resnet9,vit", "dataset": "fashion-mini,cifar10", "method": "rem"})
    assert {(c.arch, c.dataset): (c.optimizer, c.n) for c in found} == {
        ("resnet9", "fashion-mini"): ("sgd", 120), ("resnet9", "cifar10"): ("sgd", 1000),
        ("vit", "fashion-mini"): ("adam", 120), ("vit", "cifar10"): ("adam", 1000)}


# --- Settings that a method reads -------------------------------------------------------------------------------------


def test_settings_of_no_concern_make_no_cells():
    """R9: several values of a setting make a cell each of the methods that read it, one at the default of every other;
    masks are read by REM, by ETD and by all that starts from ETD training."""
    axes = {"alpha": "0.001,0.01,0.1,10", "gamma": "0.1,0.3", "step32": "both", "p_mem": "0.2,0.05", "etd": "both"}
    sizes = {name: 4 if name == "alpha" else 2 for name in axes if name != "etd"}
    cells = expand_axes({**axes, "method": "all"})
    found = Counter((cell.method, cell.etd) for cell in cells)
    assert found.keys() == {(method, etd) for method in axis("method", "all") for etd in (False, True)
                            if allowed_with(method, etd)}
    assert found == {(method, etd): prod(size for name, size in sizes.items()
                                         if reads_setting(name, {"method": method, "etd": etd}))
                     for method, etd in found}
    some = [("cf", False), ("cf", True), ("scrub", False), ("etd", False), ("npo", True), ("rem", False), ("rem", True),
            ("rem-no31", False), ("rem-no31", True)]
    assert [found[key] for key in some] == [1, 2, 4, 2, 4, 8, 8, 2, 4]
    assert {(cell.alpha, cell.gamma, cell.p_mem) for cell in cells if not found[cell.method, cell.etd] > 1} == {
        (0.01, 0.2, 0.2)}
    own = expand_axes({"p_mem": "0.2,0.05", "method": "examples/my_method.py:relabel"})
    assert [cell.p_mem for cell in own] == [0.2, 0.05]  # which may read any setting


CHANGED = dict(p_mem=0.7, ratio=0.5, unlearn_epochs=1, unlearn_lr=0.3, schedule="constant", gamma=0.8, max_passes=2,
               step31=False, step32=False, redirect="ce", beta=3.0, stop="max", alpha=5.0, ssd_alpha=1.0, reach=0.9,
               disbelieved=1.0, farther=0, remove_weight="mean")


def unlearned(method: str, config: Config, seed=0) -> dict[str, torch.Tensor]:
    """The weights that a method gives on a small network that knows all its labels."""
    net, forget = small_net(seed, width=4), torch.tensor([1, 4, 5, 9])
    data = make_data(seed, n=16)
    data = replace(data, labels=predict(net, data, torch.arange(16)))
    if not allowed_with(method, False):
        net = with_theta_o2(net, data, config)
    more = {"corrupted": torch.tensor([1, 4, 5, 9, 12])} if method.endswith("-ideal") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gamma is not reached
        return METHODS[method].function(net, data, forget, config, gen(0), **more).state_dict()


@pytest.mark.parametrize("method", METHODS)
def test_a_method_reads_what_concerns_it(method, monkeypatch):
    """R9: settings that a method's record keeps from it change no weight, and each one that it grants does."""
    monkeypatch.setattr(rem_plus, "MEMORISED", -1.0)  # so that `farther` counts whatever a few images give
    base = tiny(stop="repaired", gamma=0.2, max_passes=3, unlearn_lr=0.05, batch=16, epochs=1, reach=0.05)
    asked = {"method": method, "etd": not allowed_with(method, False)}
    changes = CHANGED | {"forget_norm": "running" if METHODS[method].norm == "batch" else "batch"}
    assert changes.keys() | {"curve"} == OPTIONAL  # points that are noted change no network
    read, plain = {name for name in changes if reads_setting(name, asked)}, {}

    def same(seed=0, **changed) -> bool:
        if seed not in plain:
            plain[seed] = unlearned(method, base, seed)
        after = unlearned(method, replace(base, **changed), seed)
        return all(torch.equal(before, after[name]) for name, before in plain[seed].items())

    assert same(**{name: value for name, value in changes.items() if name not in read})
    if method == "cuts":  # it may choose the untouched network at any rate
        assert read == {"unlearn_lr"} and not all(same(s, unlearn_lr=lr) for s in range(3) for lr in (0.5, 1.0, 2.0))
    else:
        assert not [name for name in sorted(read) if same(**{name: changes[name]})]


# --- Presets ----------------------------------------------------------------------------------------------------------

MAIN = {"no-ul", "ascent", "npo", "scrub", "badt", "potion", "rem"}
RESNET, VIT = ("cifar10", "resnet9", 1000), ("svhn", "vit", 1000)
IMAGENETTE = ("imagenette", "resnet9", 100)  # A.7: 100 corruptions


@cache
def cells_of(name):
    """A preset's cells of one seed, made once: the larger ones have thousands of three."""
    return preset(name, {"seed": "0"})


# table -> {(data set, network, n, capacity, etd, p_mem): methods}, read off the paper's rows and captions. Choices:
# Potion on the ViT, which the paper has no memory for, and NPO on Imagenette run too; "Retrained" is a plain retraining
# in every table. Fig. 3 has ETD alone (no-ul on an ETD-trained network) and REM (IDEAL) at 50 %, and neither of them
# nor REM at 100 %.
ROWS = {
    "table1": {(*net, 0.5, etd, 0.2): MAIN if etd else MAIN | {"retrain"} for net in (RESNET, VIT)
               for etd in (False, True)},
    "table2": {(*RESNET, 0.5, etd, 0.2): {"rem", "rem-no31", "rem-no32"} for etd in (False, True)},
    "table4": {(*RESNET, 0.5, True, 0.2): MAIN | {"cf"}, (*RESNET, 0.5, False, 0.2): MAIN | {"cf", "retrain"},
               (*RESNET, 1.0, False, 0.2): MAIN | {"cf", "retrain"}},
    "fig3": {(*RESNET, 0.5, True, 0.2): {"no-ul"}, (*RESNET, 0.5, False, 0.2): MAIN | {"cf", "retrain", "rem-ideal"},
             (*RESNET, 1.0, False, 0.2): (MAIN | {"cf", "retrain"}) - {"rem"}},
    "table5": {(*VIT, 0.5, True, 0.2): MAIN | {"cf"}, (*VIT, 0.5, False, 0.2): MAIN | {"cf", "retrain"},
               (*VIT, 1.0, False, 0.2): {"no-ul", "ascent"}},
    "table6": {(*IMAGENETTE, 0.5, False, 0.2): MAIN | {"retrain"}},
    "table7": {(*IMAGENETTE, 0.9, True, 0.2): MAIN, (*IMAGENETTE, 0.9, False, 0.2): {"retrain"}},
    "table8": {(*RESNET, 0.5, True, 0.05): MAIN, (*RESNET, 0.5, False, 0.2): {"retrain"}},  # which has no masks
    "table9": {(*VIT, 0.5, True, 0.05): MAIN, (*VIT, 0.5, False, 0.2): {"retrain"}},
}


@pytest.mark.parametrize("name", ROWS)
def test_presets_are_the_tables(name):
    """R8, R9: each table's preset, and that of Fig. 3, has its networks and methods at 3 tasks, 10 rates and 3 seeds,
    each cell once; SCRUB with 4 alphas. A method has no cell where it has no meaning."""
    assert all(block["seed"] == "0,1,2" for block in PRESETS[name])
    found = {}
    for cell in cells_of(name):
        kind = (cell.dataset, cell.arch, cell.n, cell.capacity, cell.etd, cell.p_mem)
        found.setdefault(kind, Counter())[cell.method, cell.task, cell.discovery] += 1
    assert found == {kind: {cell: 4 if cell[0] == "scrub" else 1 for cell in product(methods, TASKS, RATES)}
                     for kind, methods in ROWS[name].items()}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_train_as_table_3_says(name):
    """R8: Table 3's rates, batch sizes, epochs, gamma and beta hold in every preset; Fig. 5 unlearns 5 epochs."""
    for cell in cells_of(name) if name != "quick" else preset(name, {"dataset": "cifar10"}):
        rates = ("adam", 1e-4, 2048, 2e-5) if cell.arch == "vit" else ("sgd", 0.025, 512, 0.005)
        assert (cell.optimizer, cell.lr, cell.batch, cell.unlearn_lr) == rates
        assert (cell.epochs, cell.unlearn_epochs, cell.gamma, cell.beta) == (40, 5 if name == "fig5" else 10, 0.2, 1.0)
        assert cell.width == 1.0 and cell.ratio is None and cell.alpha in (0.001, 0.01, 0.1, 10.0)


def test_presets_of_the_figures():
    """R8: Fig. 5: poison at rate 0.5 over 5 epochs of Algorithm 1 as printed, with the curve; Fig. 8: capacities with
    and without ETD."""
    assert [(c.task, c.discovery, c.method, c.etd, c.curve, c.unlearn_epochs, c.capacity, c.dataset, c.seed)
            for c in preset("fig5", {})] == [("poison", 0.5, "rem", False, True, 5, 0.5, "cifar10", seed)
                                           for seed in (0, 1, 2)]
    found = preset("fig8", {})
    assert {(c.task, c.method, c.dataset, c.arch) for c in found} == {(task, "no-ul", "cifar10", "resnet9")
                                                                      for task in TASKS}
    pairs = {(c.capacity, c.etd) for c in found}
    assert pairs == {*product((0.1, 0.2, 0.3, 0.5, 0.7, 0.9), (False, True)), (1.0, False)}
    assert len(found) == len(pairs) * 3 * 3  # tasks and seeds
    quick = preset("quick", {})  # to try the grid with
    assert {(c.dataset, c.seed, c.etd) for c in quick} == {("fashion-mini", 0, False)} and len(quick) == 3 * 3 * 5
    assert {c.method for c in quick} == set(Config.method.split(","))


@pytest.mark.parametrize("name", sorted(PRESETS.keys() - {"quick"}))
def test_presets_run_the_algorithm_as_printed(name, monkeypatch):
    """R8: what a preset of the paper calls rem, without a flag, is Algorithm 1 of rem.py and never REM+, which a user
    may name beside it; the ablations, rem-ideal and REM on ETD are of rem as printed, too."""
    named = {cell.method for cell in cells_of(name)}
    assert not {method for method in named if "plus" in method}
    called = []
    monkeypatch.setattr(baselines, "rem_plus", lambda *args, **more: called.append("rem_plus"))
    monkeypatch.setattr(baselines, "rem", lambda *args, **more: called.append("rem"))
    of_rem = sorted(method for method in named if method.startswith("rem"))
    for method in of_rem:
        more = {"corrupted": torch.tensor([1, 2])} if method.endswith("-ideal") else {}
        METHODS[method].function(small_net(0), make_data(0), torch.tensor([1]), tiny(), gen(0), **more)
    assert called == ["rem"] * len(of_rem)
    beside = preset(name, {"seed": "0", "method": "rem,rem-plus"})
    assert {cell.method for cell in beside} == {"rem", "rem-plus"}



def test_given_values_replace_a_presets():
    """R8: what the command line names takes the place of the preset's values, in each of its blocks."""
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
def test_keys_hold_the_settings_that_are_read(name, cell):
    """R5, R9: a cell's key changes with every setting that its method reads, an original's file with every setting that
    training reads, and neither with any other, nor with where and how loudly it runs."""
    changed, alone = replace(cell, **{name: other(name, getattr(cell, name))}), METHODS[cell.method].trains_alone
    idle = {each for each in FIELDS if not reads_setting(each, asdict(cell))}
    unread = AFTER_TRAINING | OF_THE_RUN | (idle & {*OF_ONE_TASK, *OF_VIT})
    unread |= set() if cell.etd or alone else {"p_mem", "ratio"}
    same, shared = name in OF_THE_RUN | idle, name in unread and not (name == "method" and alone)
    if name == "data_dir" and cell.dataset == "folder":  # which is told by its path
        same = shared = False
    if name in ("device", "precision"):
        same = shared = precision_of(vars(changed)) == precision_of(vars(cell))
    if name == "image_size":
        same = shared = size_of(vars(changed)) == size_of(vars(cell))
    assert (cell_key(changed) == cell_key(cell)) == same
    here, there = (original_path("runs", original_of(c)) for c in (cell, changed))
    assert (here == there) == shared


@given(cells())
def test_originals_are_their_own(cell):
    """R9: the original of an original is itself; a method that trains alone never shares one with a method that
    unlearns; task, data set, network, n and seed stand in the file's name."""
    original = original_of(cell)
    path = original_path("runs", original)
    assert path.name.startswith(f"{cell.task}-{cell.dataset}-{cell.arch}-n{cell.n}-seed{cell.seed}-")
    assert path.parent == Path("runs/originals")
    assert original_of(original) == original and original.out == Config.out
    assert original.method == (cell.method if METHODS[cell.method].trains_alone else "")
    assert original_of(replace(cell, method="etd")) != original_of(replace(cell, method="rem")) != original_of(
        replace(cell, method="etd-ideal"))


def test_another_version_trains_anew(monkeypatch):
    """R9: code of another version reads no file of this one."""
    before = original_path("runs", original_of(Config(method="rem")))
    monkeypatch.setattr(rows, "VERSION", "0.0.0")
    assert original_path("runs", original_of(Config(method="rem"))) != before


@given(st.lists(cells(), min_size=1, max_size=12))
def test_groups_part_the_cells(found):
    """R9: every cell lies in one group, and a group's cells share an original that no other group has."""
    groups = by_original(found)
    assert sorted(map(cell_key, found)) == sorted(cell_key(cell) for _, group in groups for cell in group)
    originals = [original_path("runs", original) for original, _ in groups]
    assert len(set(originals)) == len(groups)
    for original, group in groups:
        assert {original_path("runs", original_of(cell)) for cell in group} == {original_path("runs", original)}


def test_ranks_share_the_work():
    """R4: every group has one rank, and no rank has more than its part of the cells by more than a group."""
    groups = by_original(expand_axes({"method": "all", "task": "all", "etd": "both", "seed": "0,1,2"}))
    for world in (1, 2, 3, 4, 6, 8):
        parts = [grid.shard_cells(groups, rank, world) for rank in range(world)]
        assert sorted(map(id, sum(parts, []))) == sorted(map(id, groups))
        loads = [sum(len(cells) for _, cells in part) for part in parts]
        assert max(loads) <= sum(loads) / world + max(len(cells) for _, cells in groups)


# --- What there is to do ----------------------------------------------------------------------------------------------


def test_dry_run_tells_cells_apart():
    """R2: a cell's line names what it differs in from others, where its method depends on it, and how it stands."""
    groups = by_original(expand_axes({"method": "cf,scrub,rem", "alpha": "0.1,1", "unlearn_lr": "0.1,0.2",
                                      "p_mem": "0.2,0.05"}))
    ((original, cells),) = groups
    ok, bad = {"status": "ok"}, {"status": "failed"}
    rows = {cell_key(c): bad if c.unlearn_lr == 0.1 else ok for c in cells if c.method == "cf"}
    for retried, state in ((True, "failed, left"), (False, "failed")):
        left = [(original, [c for c in cells if cell_key(c) not in rows or retried and rows[cell_key(c)] == bad])]
        head, *texts = plan.overview(groups, left, rows, every=True).splitlines()[1:]
        assert head.split()[-4:] == texts.pop().split()[1:] == ["10", "1", "1", "9" if retried else "8"]
        lines = [line.split(maxsplit=2) for line in texts]
        assert [line[:2] for line in lines] == [["0.5", c.method] for c in cells]
        found = Counter(" ".join(line[2].split()) for line in lines)
        assert found == Counter([f"unlearn-lr 0.1 {state}", "unlearn-lr 0.2 done",
                                 *(f"unlearn-lr {lr} alpha {a} left" for lr in (0.1, 0.2) for a in (0.1, 1.0)),
                                 *(f"p-mem {p} unlearn-lr {lr} left" for lr in (0.1, 0.2) for p in (0.05, 0.2))])


def test_dry_run_tells_originals_apart():
    """R2: an original's line names what differs from others of its task and seed, a cell's what differs in its group.
    """
    blocks = [{"n": "20,30", "lr": "0.1,0.2", "capacity": "0.125", "method": "no-ul", "discovery": "0.125"},
              {"task": "random", "method": "examples/my_method.py:relabel"}]
    groups = by_original([cell for block in blocks for cell in expand_axes(block)])
    lines = plan.overview(groups, groups, {}, every=True).splitlines()
    heads = [" ".join(line.split()[2:-5]) for line in lines[1:-1] if line[0] != " "]
    assert heads == [*(f"resnet9 12.5% n {n} lr {lr}" for n in (20, 30) for lr in (0.1, 0.2)),
                     "resnet9 50% n 120 lr 0.05"]
    cells = [line.split() for line in lines[1:-1] if line[0] == " "]
    assert cells == [["0.125", "no-ul", "left"]] * 4 + [["0.5", "my_method.py:relabel", "left"]]
