"""Numbers of study/tables.py and rows.sweep, in the tables made of them: means over seeds, differences to REM in the
same cells, one value of a setting that was swept, runs that gave up (Tables 1-9)."""

import itertools
import statistics
from operator import itemgetter

import pytest

pytest.importorskip("pandas", reason="tables need pandas: pip install -r requirements-optional.txt")

import pandas as pd  # noqa: E402

from experiment.methods import METHODS  # noqa: E402
from made_cells import other  # noqa: E402
from made_rows import (column, every_cell, grid, head, line, lines, load, make_row, mean_and_sem, one,  # noqa: E402
                       row_of)
from study.rows import SWEPT, networks, sweep  # noqa: E402
from study.tables import by_cell, frame_of, learnt, make_tables, over_seeds  # noqa: E402
from tasks import TASKS  # noqa: E402

RATES = (0.1, 0.5, 1.0)
place = itemgetter("task", "discovery", "seed")


# --- Over seeds -------------------------------------------------------------------------------------------------------


def test_over_seeds_counts_the_cells_that_every_seed_has():
    """V6: cells that one seed alone has do not move it; without a cell in common there is no such mean."""
    def over(values):
        index = pd.MultiIndex.from_tuples(values, names=["task", "discovery", "seed"])
        return over_seeds(pd.Series(list(values.values()), index))

    level = {("poison", 0.1, seed): 0.4 + 0.1 * seed for seed in range(3)}
    want = mean_and_sem((0.4, 0.5, 0.6))
    assert over(level) == over({**level, ("random", 0.1, 0): 0.0}) == (want, "3 × 1")
    assert over({("poison", 0.1, 0): 0.5, ("poison", 0.5, 1): 0.5}) == (None, None)
    assert over_seeds(by_cell(frame_of([]))) == (None, None)


def test_what_reads_no_forget_set_is_paired_at_every_rate(tmp_path):
    """V6: one untouched network a task and seed stands against REM at each rate, whichever rate its row names."""
    rem = [row_of(p, discovery=d, seed=s) for s in (0, 1) for d, p in zip(RATES, (0.4, 0.5, 0.9), strict=True)]
    rows = load(tmp_path, [*rem, row_of(0.2, "no-ul", discovery=1.0, seed=0), row_of(0.1, "no-ul", seed=1)])
    got = line(one("mean", rows), method="no-ul")
    assert got["minus REM"] == mean_and_sem([0.2 - 0.6, 0.1 - 0.6]) and got["pairs"] == "2 × 3"
    assert (got["n"], got["seeds"]) == (2, "2 × 1")


def test_minus_rem_in_the_tables(tmp_path):
    """V6: product less REM's over seeds, where there is one; with ETD it is less REM without where that was run."""
    rows = grid(["npo", "rem"], seeds=(0, 1, 2), rates=RATES)
    npo, rem = ({place(row): row["product"] for row in rows if row["method"] == method} for method in ("npo", "rem"))
    want = mean_and_sem([statistics.mean(npo[key] - rem[key] for key in rem if key[2] == s) for s in range(3)])
    for name, more in (("mean", {}), ("4", dict(ETD=False, capacity="50")), ("1", dict(ETD=False)), ("plane", {})):
        table = one(name, load(tmp_path, rows))
        got = line(table, method="npo", **more)
        assert (got["minus REM"], got["pairs"]) == (want, "3 × 9"), name
        got = line(table, method="rem", **more)
        assert (got["minus REM"], got["pairs"], got["seeds"]) == (None, None, "3 × 9"), name
        assert "in the same cell and seed" in table.caption
    assert line(one("mean", load(tmp_path, rows[:27])), method="npo")["minus REM"] is None
    both = load(tmp_path, [row_of(0.7), row_of(0.5, etd=True), row_of(0.4, "npo", etd=True)])
    got = {m: line(one("4", both), method=m, ETD=True, capacity="50")["minus REM"] for m in ("rem", "npo")}
    assert got == {"rem": (pytest.approx(-20.0), None), "npo": (pytest.approx(-30.0), None)}
    assert line(one("plane", both), method="npo on ETD")["minus REM"] == got["npo"]
    _, etd = make_tables("mean", both)  # each training has a table of its own
    assert {m: line(etd, method=m)["minus REM"] for m in ("rem", "npo")} == got
    both = load(tmp_path, [row_of(0.5, etd=True), row_of(0.4, "npo", etd=True)])
    assert line(one("4", both), method="npo", ETD=True)["minus REM"] == (pytest.approx(-10.0), None)
    wide = load(tmp_path, [row_of(0.7), row_of(0.4, "npo", capacity=1.0)])
    assert line(one("4", wide), method="npo", capacity="100")["minus REM"] is None  # of another capacity


# --- One value of a setting that was swept ----------------------------------------------------------------------------


def swept(**more) -> list[dict]:
    """SCRUB with two values of alpha: 10 is far better on poison, the default on random labels and by less."""
    products = {("poison", 0.01): 0.2, ("poison", 10.0): 0.8, ("random", 0.01): 0.5, ("random", 10.0): 0.4}
    return [row_of(p + 0.01 * seed, "scrub", task=task, alpha=alpha, seed=seed, **more)
            for (task, alpha), p in products.items() for seed in (0, 1)]


def test_one_value_for_all_cells_is_compared(tmp_path):
    """V19: a swept method stands in the order, and in every number, by the default in all cells; the best value of each
    cell has a column of its own, and the caption says that nobody could choose so."""
    rows = load(tmp_path, swept() + [row_of(0.5, task=t, seed=s) for t in ("poison", "random") for s in (0, 1)])
    for name in ("mean", "4", "plane"):
        table = one(name, rows)
        got = line(table, method="scrub", **({"ETD": False, "capacity": "50"} if name == "4" else {}))
        assert got["mean" if name == "plane" else "product"] == mean_and_sem([0.2, 0.21, 0.5, 0.51])
        assert got["over seeds"] == mean_and_sem([0.35, 0.36]) and got["minus REM"] == mean_and_sem([-0.15, -0.14])
        assert got["best per cell"] == mean_and_sem([0.8, 0.81, 0.5, 0.51])
        assert column(table, "method")[:2] == ["rem", "scrub"]  # though the best of each cell is above REM
        assert "one for all cells: scrub alpha 0.01 (of 0.01, 10.0)." in table.caption
        assert "not ranked" in table.caption and "which no user could" in table.caption
        assert "NOT ONE" not in table.caption
    plain = one("mean", load(tmp_path, [row for row in swept() if row["alpha"] == 10]))
    assert "best per cell" not in head(plain) and "one for all" not in plain.caption


@pytest.mark.parametrize("number, settings", [
    ("4", {}), ("5", dict(dataset="svhn", arch="vit")), ("6", dict(dataset="imagenette")),
    ("7", dict(dataset="imagenette", capacity=0.9, etd=True))])
def test_the_papers_best_per_cell_is_compared_with_ours(tmp_path, number, settings):
    """V20: Tables 5-7 are of the best values of each cell: there the difference is ours of that kind, elsewhere not."""
    rows = [row for a, h in ((0.01, 0.5), (10.0, 0.7)) for row in every_cell("scrub", h, 1.0, alpha=a, **settings)]
    table = one(number, load(tmp_path, rows))
    got = line(table, method="scrub", **({"ETD": False, "capacity": "50"} if number in "45" else {}))
    assert got["product"][0] == pytest.approx(50.0)
    assert got["difference"] == f"{(50 if number == '4' else 70) - got['product (paper)'][0]:+.2f}"
    assert ("best method for each discovery rate" in table.caption) == (number != "4")


def test_the_best_is_that_of_the_mean_product(tmp_path):
    """V6, V19: in each task and rate by itself, though another value heals more, is more useful, or is faster; one that
    ended well in one seed of two is not the best against one that did in both, however good the one."""
    def best(rows):
        return [sorted({(row["discovery"], row["alpha"]) for row in sweep(load(tmp_path, order)) if row["best"]})
                for order in (rows, rows[::-1])]

    rows = [make_row("scrub", 0.6, 0.6, alpha=0.1), make_row("scrub", 0.9, 0.1, alpha=10.0),
            {**make_row("scrub", 0.1, 0.9, alpha=1.0), "seconds": 1.0}]
    assert best(rows) == [[(0.5, 0.1)]] * 2
    others = [row_of(0.3, "scrub", alpha=0.1, discovery=1.0), row_of(0.4, "scrub", alpha=10.0, discovery=1.0)]
    assert best(rows + others) == [[(0.5, 0.1), (1.0, 10.0)]] * 2
    rows = [make_row("scrub", 0.9, alpha=0.1), make_row("scrub", status="failed", alpha=0.1, seed=1),
            make_row("scrub", 0.3, alpha=10.0), make_row("scrub", 0.3, alpha=10.0, seed=1)]
    assert best(rows) == [[(0.5, 10.0)]] * 2


def test_the_value_compared_is_chosen_by_no_score(tmp_path):
    """V19: the default where it was run, which is that of the data set's preset; else the value with most runs,
    whatever the scores are; values at other seeds or in other cells are no sweep but a mixture, which the caption warns
    of."""
    rows = [row_of(0.9, "scrub", alpha=10.0), row_of(0.1, "scrub", alpha=0.1), row_of(0.1, "scrub", alpha=0.1, seed=1)]
    assert {row["alpha"] for row in sweep(load(tmp_path, rows)) if row["kept"]} == {0.1}
    found = sweep(load(tmp_path, [*rows, row_of(0.0, "scrub", alpha=0.01)]))
    assert [(row["alpha"], row["best"]) for row in found if row["kept"]] == [(0.01, False)]
    assert {row["alpha"] for row in found} == {0.01, 0.1}  # what is neither compared nor the best is left out
    mini = [row_of(0.2, dataset="fashion-mini", unlearn_epochs=epochs) for epochs in (3, 10)]  # 10 is Table 3's
    assert [row["unlearn_epochs"] for row in sweep(load(tmp_path, mini)) if row["kept"]] == [3]
    mixture = load(tmp_path, [row_of(0.9, "scrub", alpha=10.0), row_of(0.1, "scrub", alpha=0.1, seed=1)])
    assert all(row["kept"] and not row["best"] for row in sweep(mixture))
    assert "the runs differ in alpha (0.1, 10.0)" in one("mean", mixture).caption


@pytest.mark.parametrize("name", SWEPT)
def test_every_setting_that_a_method_reads_may_be_swept(tmp_path, name):
    """V19: whatever setting of its own a method reads, the default is compared and the best beside."""
    method = next(method for method in METHODS if name in METHODS[method].reads)
    usual = make_row(method)[name]
    new = "running" if name == "forget_norm" else other(name, usual)  # "batch" is what "auto" comes to there
    found = sweep(load(tmp_path, [row_of(0.2, method), row_of(0.6, method, **{name: new})]))
    assert {(row[name], row["kept"], row["best"]) for row in found} == {(usual, True, False), (new, False, True)}
    assert {key: set(values) for key, values in found[0]["tried"].items()} == {name: {usual, new}}


# --- What a score does not tell ---------------------------------------------------------------------------------------


def test_what_was_learnt_stands_beside_the_untouched_network(tmp_path):
    """V19: accuracy on D_c's labels as given, a number per task of TASKS, on the line of No UL alone; old rows lack it.
    """
    noted = [{**row_of(0.2, "no-ul", task=t, seed=s), "learnt": value + 0.01 * s}
             for t, value in zip(TASKS, (0.97, 0.60, 0.80), strict=True) for s in (0, 2)]
    noted += [{**noted[-2], "discovery": rate} for rate in RATES if rate != 0.5]  # the same network at other rates
    rem = [{**row_of(0.5, task=t), "learnt": 0.1} for t in TASKS]
    rows = load(tmp_path, noted + rem)
    for name in ("mean", "plane", "4"):
        table = one(name, rows)
        more = {"ETD": False, "capacity": "50"} if name == "4" else {}
        assert line(table, method="no-ul", **more)["learnt"] == "98 / 61 / 81"
        assert line(table, method="rem", **more)["learnt"] is None
        assert "before unlearning (poison / confusion / random)" in table.caption
    assert learnt(frame_of(networks(load(tmp_path, noted[2:])))) == "- / 61 / 81"
    assert learnt(frame_of(load(tmp_path, rem))) is None
    two = load(tmp_path, noted[:2] + noted[4:] + rem[::2])
    assert line(one("plane", two), method="no-ul")["learnt"] == "98 / - / 81"  # in the order of the legend
    assert "learnt" not in head(one("mean", load(tmp_path, [row_of(0.2, "no-ul"), row_of(0.5)])))


def ended(method, gave_up, passes, **more) -> dict:
    """A row that notes how the run ended."""
    return {**row_of(0.5, method, **more), "gave_up": gave_up, "passes": passes, "acc_forget": 0.3}


def test_runs_that_gave_up_or_did_nothing_are_counted(tmp_path):
    """R3: by method, of the runs that note it; no pass is nothing done only where there is no more to the method."""
    rows = load(tmp_path, [ended("npo", True, 100), ended("npo", False, 0, seed=1), ended("npo", False, 3, seed=2),
                           row_of(0.5, "npo", seed=3), ended("rem", False, 0), ended("cf", False, None),
                           ended("potion", False, 0), ended("a.py:f", False, 0)])
    words = ("Gave up with Acc(D_f) above gamma (REM: in some step 2): npo 1 of 3 runs. "
             "Did nothing, Acc(D_f) being at most gamma: npo 1 of 3 runs, potion 1 of 1 runs.")
    for name in ("mean", "4", "1", "plane"):
        assert words in one(name, rows).caption, name
    found = dict(zip(column(one("plane", rows), "method"), column(one("plane", rows), "gave up / idle"), strict=True))
    assert found == {"npo": "1 / 1", "rem": "0 / 0", "cf": "0 / 0", "potion": "0 / 1", "a.py:f": "0 / 0"}
    both = one("4", load(tmp_path, [ended("npo", True, 9), ended("npo", False, 9, etd=True)]))
    assert "npo 1 of 1 runs. Did nothing" in both.caption  # of the two trainings each by itself
    none = one("mean", load(tmp_path, [ended("rem", False, 4)]))
    assert ("Gave up with Acc(D_f) above gamma (REM: in some step 2): none. Did nothing, Acc(D_f) being at most gamma: "
            "none.") in none.caption
    old = one("plane", load(tmp_path, [row_of(0.5)]))
    assert "Gave up" not in old.caption and "gave up / idle" not in head(old)


def test_methods_without_passes_are_not_idle(tmp_path):
    """R3: a method that makes no passes over D_f has not done nothing."""
    rows = load(tmp_path, [ended(name, False, None) for name in ("no-ul", "ssd", "retrain")])
    assert "Did nothing, Acc(D_f) being at most gamma: none." in one("mean", rows).caption


# --- The plane, the ablations -----------------------------------------------------------------------------------------


def test_the_plane_has_the_cells_of_all_seeds(tmp_path):
    """V6: a column per cell that every seed has, in the order of TASKS and rates; the mean is over these cells alone,
    pooled over runs and over seeds, and the paper's is Table 4's at this capacity, with ETD or without."""
    rows = grid(["npo", "rem"], seeds=(0, 1), rates=(0.1, 1.0)) + grid(["npo", "rem"], rates=(0.5,))
    rows += [{**row, "method": "no-ul", "etd": True, "product": 0.1} for row in rows if row["method"] == "npo"]
    table = one("plane", load(tmp_path, rows + grid(["rem-no31"], seeds=(0, 1))))
    places = [f"{task} {rate}" for task in TASKS for rate in ("0.1", "1")]
    assert head(table) == ("method", *places, "mean", "over seeds", "seeds", "minus REM", "pairs", "Table 4")
    got = line(table, method="rem")
    mine = [row for row in rows if row["method"] == "rem" and row["discovery"] != 0.5]
    for task, rate in itertools.product(TASKS, (0.1, 1.0)):
        runs = [row["product"] for row in mine if (row["task"], row["discovery"]) == (task, rate)]
        assert len(runs) == 2 and got[f"{task} {rate:g}"] == f"{100 * statistics.mean(runs):.0f}"
    assert got["mean"] == mean_and_sem([row["product"] for row in mine])
    assert got["over seeds"] == mean_and_sem([statistics.mean(row["product"] for row in mine if row["seed"] == s)
                                              for s in (0, 1)])
    assert (got["seeds"], got["Table 4"]) == ("2 × 6", "73.4") and len(lines(table)) == 3
    for number, method, theirs, others in (("4", "potion", "37.1", dict(capacity=1.0)),
                                           ("5", "rem", "73.3", dict(dataset="svhn", arch="vit"))):
        other = one("plane", load(tmp_path, grid(["npo", method], **others)))
        assert line(other, method=method)[f"Table {number}"] == theirs
    alone = line(table, method="ETD alone")
    assert (alone["mean"], alone["Table 4"], alone["pairs"]) == (mean_and_sem([0.1] * 6), "50.1", "2 × 6")
    assert not make_tables("plane", load(tmp_path, [make_row(seed=0), make_row(task="random", seed=1)]))
    assert "Cells left out, which not every seed has: 3 (seed 1 lacks 3)." in table.caption


def test_a_run_that_failed_takes_no_cell_off_the_plane(tmp_path):
    """V6: a seed has the cells in which some method ended well; what is left out is said, and what is counted once."""
    rows = grid(["npo", "rem"], seeds=(0, 1)) + [make_row("no-ul", discovery=0.1, seed=seed) for seed in (0, 1)]
    failed = make_row("rem", status="failed", task="random", discovery=0.1, seed=9)
    whole, more = (one("plane", load(tmp_path, part)) for part in (rows, [*rows, failed]))
    assert head(more) == head(whole) and "left out" not in whole.caption + more.caption
    assert "no-ul: the same network at every discovery rate, counted once." in whole.caption


def test_ablations_are_paired(tmp_path):
    """V6: REM's product less the variant's in the same cell and seed, wherever both ended well; over seeds as
    everywhere; on ETD less REM on ETD; what knows D_c stands beside them and no other method does."""
    rem = grid(["rem"], seeds=(0, 1), rates=RATES)
    less = {place(row): 0.01 * k for k, row in enumerate(rem) if k > 0}  # the first has no partner
    variant = [{**row, "method": "rem-ce", "product": row["product"] - less[place(row)]} for row in rem[1:]]
    more = [row_of(0.2, "rem-ideal", task="poison", discovery=0.1), row_of(0.4, "npo"), row_of(0.4, "etd"),
            row_of(0.6, etd=True), row_of(0.5, "rem-no32", etd=True)]
    more += [row_of(0.9, "rem-ce", task="poison", discovery=0.7, seed=seed) for seed in (0, 1)]  # nor have these
    more += [make_row("rem", status="failed", task="poison", discovery=0.7), row_of(0.1, "etd-ideal", task="poison")]
    table = one("ablations", load(tmp_path, rem + variant + more))
    got = line(table, method="rem-ce")
    assert (got["n"], got["paired runs"]) == (19, 17) and got["REM less it"] == mean_and_sem(less.values())
    both = {key: value for key, value in less.items() if key[:2] != place(rem[0])[:2]}
    assert got["REM less it, over seeds"] == mean_and_sem([statistics.mean(v for k, v in both.items() if k[2] == s)
                                                           for s in (0, 1)]) and got["pairs"] == "2 × 8"
    assert got["random"] == mean_and_sem([row["product"] for row in variant if row["task"] == "random"])
    assert line(table, method="rem")["REM less it"] is None is line(table, method="rem on ETD")["paired runs"]
    assert line(table, method="rem-no32 on ETD")["REM less it"] == (pytest.approx(10.0), None)
    assert line(table, method="rem-ideal")["paired runs"] == 1 and len(lines(table)) == 6
    assert line(table, method="etd-ideal")["paired runs"] == len(RATES)  # reads no D_f
    assert not make_tables("ablations", load(tmp_path, rem))


def test_rem_that_was_swept_is_one_value_beside_the_others(tmp_path):
    """V6, V19: minus REM is less REM at the value that it is compared at, not at the best one as well."""
    rows = load(tmp_path, [row_of(0.5), row_of(0.9, gamma=0.3), row_of(0.4, "npo"), row_of(0.4, "scrub", etd=True)])
    plain, etd = make_tables("mean", rows)
    assert line(plain, method="npo")["minus REM"] == (pytest.approx(-10.0), None)
    assert line(etd, method="scrub")["minus REM"] == (pytest.approx(-10.0), None)
