"""report.py, tables.py and rows.py: rows told apart, means and SEM over runs, the paper's numbers beside ours (Tables
1-9)."""

import csv
import io
import json
import math
import os
import re
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import run
from experiment.methods import METHODS
from experiment.settings import VERSION, resolve
from tasks import TASKS
from study import report, tables
from study.rows import load_rows, read_rows
from study.stats import summary
from study.tables import PAPER, make_tables

ROOT = Path(report.__file__).resolve().parent.parent


def make_row(method="rem", healed=0.8, utility=0.9, status="ok", **settings) -> dict:
    """A result row as run.py writes it."""
    good = status == "ok"
    row = {**asdict(resolve({"dataset": "cifar10", **settings})), "method": method, "device": "cpu", "threads": 2,
           "torch": "2.6.0", "version": VERSION, "git": "abc", "argv": [], "train_seconds": 20.0, "status": status,
           "error": None if good else "boom"}
    scores = {"healed": healed, "utility": utility, "product": healed * utility, "healed_test": healed, "seconds": 5.0}
    return {**row, **(scores if good else dict.fromkeys(scores))}


def write(path: Path, rows: list) -> Path:
    """A result file of these rows; a str is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def load(tmp_path, rows) -> list[dict]:
    return load_rows([write(tmp_path / "rows.jsonl", rows)])


def main(argv) -> int:
    """Run `run.py report`."""
    return run.main(["report", *argv])


def one(name, rows) -> tables.Table:
    """The only table of a name."""
    (table,) = make_tables(name, rows)
    return table


def column(table, name) -> list:
    return [row[table.header.index(name)] for row in table.rows]


def line(table, **wanted) -> dict:
    """The only line of a table with these values, by column."""
    lines = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    (found,) = [row for row in lines if all(row[key] == value for key, value in wanted.items())]
    return found


def grid(methods, seeds=(0,), rates=(0.1, 1.0), **settings) -> list[dict]:
    """A row a method, task, rate and seed, every score different."""
    places = [(m, t, d, s) for m in methods for t in TASKS for d in rates for s in seeds]
    return [make_row(m, 0.2 + 0.6 * k / len(places), 0.8 + 0.1 * k / len(places), task=t, discovery=d, seed=s,
                     **settings)
            for k, (m, t, d, s) in enumerate(places)]


# --- Means ------------------------------------------------------------------------------------------------------------


def test_product_is_the_mean_of_products(tmp_path):
    """V6: one run heals and ruins, one does neither: the products are 0 and 0, their mean 0, not the product of the
    means."""
    rows = load(tmp_path, [make_row(healed=1.0, utility=0.0, seed=0), make_row(healed=0.0, utility=1.0, seed=1)])
    got = line(one("mean", rows), method="rem")
    assert got["product"] == (0.0, 0.0) and got["Healed"][0] == got["Utility"][0] == 50.0
    assert line(one("4", rows), method="rem", ETD=False, capacity="50")["product"] == (0.0, 0.0)


scores = st.floats(0, 1)


@given(st.lists(st.tuples(scores, scores), min_size=1, max_size=12))
def test_means_against_the_plain_formula(runs):
    """V6, V7: n, mean and SEM of each score are statistics.mean and stdev / sqrt(n) of the per-run values, times
    100."""
    got = summary([make_row(healed=h, utility=u, seed=k) for k, (h, u) in enumerate(runs)])
    assert got["n"] == len(runs) and got["failed"] == 0
    plain = {"healed": [h for h, _ in runs], "utility": [u for _, u in runs], "product": [h * u for h, u in runs]}
    for key, values in plain.items():
        mean, error = got[key]
        assert mean == pytest.approx(100 * statistics.mean(values), abs=1e-9)
        if len(runs) == 1:
            assert error is None
        else:
            assert error == pytest.approx(100 * statistics.stdev(values) / math.sqrt(len(runs)), abs=1e-6)


def test_failed_runs_are_counted_and_named(tmp_path):
    """A failed run is in no mean and in no n; the caption and the column of failures have it."""
    rows = load(tmp_path, [make_row(seed=0), make_row(seed=1, status="failed"),
                           make_row("npo", status="failed", seed=2)])
    table = one("mean", rows)
    got = line(table, method="rem")
    assert (got["n"], got["failed"]) == (1, 1) and got["product"] == (pytest.approx(72.0), None)
    assert "Failed, not averaged: 2 of 3 runs (rem poison 0.5 seed 1; npo poison 0.5 seed 2)" in table.caption
    empty = dict.fromkeys(table.header)
    assert line(table, method="npo") == {**empty, "method": "npo", "n": 0, "failed": 1, "time % (paper)": "0.2"}


def test_descending_order_then_what_was_not_run(tmp_path):
    """Ours come in descending order of product; rows that were not run come after them, empty, in the paper's order."""
    runs = [make_row("npo", 0.5), make_row("rem", 0.4), make_row("cf", 0.0), make_row("ascent", status="failed")]
    rows = load(tmp_path, runs)
    table = one("4", rows)
    assert column(table, "method")[:3] == ["npo", "rem", "cf"]
    rest = [(r["capacity"], r["etd"], r["method"]) for r in PAPER["tables"]["4"]["rows"]]
    rest = [(f"{100 * c:g}", e, m) for c, e, m in rest if (c, e, m) not in {(0.5, False, m)
        for m in ("npo", "rem", "cf")}]
    assert [row[:3] for row in table.rows[3:]] == rest
    assert all(set(row[4:10:2]) == {None} and row[10] is None and row[9] is not None for row in table.rows[3:])
    assert line(table, method="ascent", ETD=False, capacity="50")["n"] == 0


def every_cell(method="rem", *scores, **settings) -> list[dict]:
    """A row for each of the paper's cells, all scores alike."""
    return [make_row(method, *scores, task=t, discovery=d, **settings) for t in TASKS for d in PAPER["discovery"]]


def test_difference_is_ours_minus_the_papers(tmp_path):
    """The difference is signed, of the product, and empty where either is missing."""
    table = one("4", load(tmp_path, every_cell("rem", 0.5, 0.8, seed=7) + every_cell("ssd")))
    got = line(table, method="rem", ETD=False, capacity="50")
    assert got["product (paper)"] == (73.40, 1.43) and got["difference"] == "-33.40"
    assert line(table, method="ssd")["difference"] is None
    assert line(table, method="rem", ETD=True)["difference"] is None


OTHERS = [dict(dataset="fashion-mini", n=1000), dict(dataset="svhn"), dict(n=500), dict(image_size=16)]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_no_difference_from_other_data(tmp_path, other):
    """The paper's mean over its data set is not subtracted from one over another; the caption says why."""
    table = one("4", load(tmp_path, every_cell(**other)))
    got = line(table, method="rem", ETD=False, capacity="50")
    assert got["n"] == 30 and got["product (paper)"] == (73.40, 1.43) and got["difference"] is None
    assert "CIFAR10, 1000 corrupted, over its 30 cells (3 tasks × 10 discovery rates); no diff" in table.caption


def test_no_difference_from_other_cells(tmp_path):
    """Three runs at one rate are not the paper's mean over 30 cells; nor is one cell less, one more or one that
    failed."""
    def got(rows, method="rem"):
        return line(one("4", load(tmp_path, rows)), method=method, ETD=False, capacity="50")["difference"]

    whole = every_cell()
    assert got(whole) == "-1.40" == got(whole + every_cell(seed=1)[:5])
    assert got([make_row(seed=seed) for seed in range(3)]) is None
    assert got(whole[1:]) is None and got([*whole, make_row(discovery=0.05)]) is None
    assert got([*whole[1:], {**whole[0], "status": "failed"}]) is None
    assert got(every_cell("no-ul")[9::10], "no-ul") == "+40.28"  # has no rates, so the tasks are enough
    assert got(every_cell("no-ul")[:20], "no-ul") is None
    assert got(every_cell("cf")[9::10], "cf") is None


@pytest.mark.parametrize("method, etd", [("no-ul", False), ("no-ul", True), ("etd", False), ("etd-ideal", False)])
def test_a_network_counts_once_for_all_rates(tmp_path, method, etd):
    """What reads no D_f is one network a task and seed, not one a rate: n and SEM are those of three networks."""
    seeds = [make_row(method, h, 1.0, seed=s, etd=etd, discovery=d) for s, h in enumerate((0.2, 0.4, 0.9))
             for d in (0.1, 0.5, 1.0)]
    rows = load(tmp_path, seeds + [make_row("npo", discovery=d, seed=s, etd=etd) for d in (0.1, 0.5, 1.0)
                                   for s in range(3)])
    want = (pytest.approx(50.0), pytest.approx(100 * statistics.stdev((0.2, 0.4, 0.9)) / math.sqrt(3)))
    table = one("mean", rows)
    got = line(table, method=method)
    assert (got["n"], got["product"]) == (3, want) and line(table, method="npo")["n"] == 9
    assert f"{method}: the same network at every discovery rate, counted once." in table.caption
    assert "compare with care" not in table.caption and "12 runs" in table.caption
    cell = line(one("cells", rows), task="poison", method=method)
    assert cell["0.1"] == cell["1"] == want and "counted once" not in one("cells", rows).caption
    if method != "etd-ideal":
        paper = line(one("4", rows), method="no-ul", ETD=etd or method == "etd", capacity="50")
        assert (paper["n"], paper["product"]) == (3, want) and "counted once" in one("4", rows).caption


def test_networks_that_are_not_the_same(tmp_path):
    """Another setting at another rate is another network; a network that failed at one rate and not at another is no
    failure."""
    rows = load(tmp_path, [make_row("no-ul", discovery=0.1), make_row("no-ul", discovery=0.5, lr=0.1),
                           make_row("no-ul", discovery=1.0, lr=0.1, status="failed")])
    got = line(one("mean", rows), method="no-ul")
    assert (got["n"], got["failed"]) == (2, 0) and "differ in lr" in one("mean", rows).caption


def test_rates_that_a_method_does_not_read_are_no_gap(tmp_path):
    """no-ul at one rate alone covers what the others cover at three; without one of the seeds it does not."""
    rows = grid(["rem"], seeds=(0, 1), rates=(0.1, 0.5, 1.0)) + grid(["no-ul"], seeds=(0, 1), rates=(1.0,))
    assert "compare with care" not in one("mean", load(tmp_path, rows)).caption
    assert "compare with care" in one("mean", load(tmp_path, rows[:-1])).caption


def test_mean_table_has_the_times(tmp_path):
    """A.8: seconds and seconds over training seconds, each averaged over runs, beside the paper's."""
    rows = [{**make_row(seed=0), "seconds": 2.0}, {**make_row(seed=1), "seconds": 6.0, "train_seconds": 40.0},
            {**make_row("cf"), "train_seconds": None}]
    table = one("mean", load(tmp_path, rows))
    got = line(table, method="rem")
    assert (got["seconds"], got["time %"], got["time % (paper)"]) == ("4.0", "12.5", "10.7")
    assert line(table, method="cf")["time %"] is None and line(table, method="cf")["time % (paper)"] is None


def test_times_without_the_measuring_of_figure_5(tmp_path):
    """Runs with Fig. 5's points are timed with their measuring: they count where there is no other, and the caption
    says so."""
    points = [{"epoch": 0, "base": 1.0, "full": 0.5}]
    slow = {**make_row(seed=0), "curve": True, "points": points, "seconds": 50.0}
    plain = {**make_row(seed=0), "seconds": 4.0}
    other = {**make_row(seed=1), "seconds": 6.0}
    for rows, seconds in (([slow, other], "6.0"), ([plain, slow], "4.0"), ([slow, plain], "4.0"), ([slow], "50.0")):
        loaded = load(tmp_path, rows)
        assert line(one("mean", loaded), method="rem")["seconds"] == seconds
        assert [row["points"] for row in loaded if row["seed"] == 0] == [points]
    caption = one("mean", loaded).caption
    assert "With --jobs the seconds include waiting for each other." in caption
    assert "timed with their measuring" in caption


def test_mean_tables_by_group(tmp_path):
    """Networks, capacities, ETD, masks, data and numbers of corrupted images are never averaged together."""
    other = [dict(arch="vit"), dict(capacity=1.0), dict(etd=True), dict(p_mem=0.05), dict(dataset="svhn"), dict(n=500)]
    found = make_tables("mean", load(tmp_path, [make_row(), *(make_row(**more) for more in other)]))
    assert len(found) == 7 == len({t.name for t in found}) and all(column(t, "n") == [1] for t in found)


def test_networks_without_masks_stand_beside_every_p_mem(tmp_path):
    """What has no mask is one run whatever its p_mem and ratio say, compared with REM at each p_mem; what has, is
    not."""
    rows = [make_row("cf", 0.7), make_row("cf", 0.6, p_mem=0.05, ratio=0.5), make_row("rem", p_mem=0.2),
            make_row("rem", p_mem=0.05)]
    tables = make_tables("mean", load(tmp_path, rows))
    assert [t.title.split()[-1] for t in tables] == ["0.05", "0.2"] and all(column(t, "n") == [1, 1] for t in tables)
    assert all(line(t, method="cf")["Healed"] == (pytest.approx(60.0), None) for t in tables)
    assert not any("NOT ONE EXPERIMENT" in t.caption for t in tables)
    mixed = make_tables("mean", load(tmp_path, [make_row("cf"), make_row("rem", ratio=0.5),
                                                make_row("rem-ideal", ratio=1.0)]))
    assert "NOT ONE EXPERIMENT: the runs differ in ratio (0.5, 1.0)." in mixed[0].caption
    trained = make_tables("mean", load(tmp_path, [make_row("cf", etd=True), make_row("cf", etd=True, p_mem=0.05)]))
    assert [column(t, "n") for t in trained] == [[1], [1]]


def test_settings_of_no_concern_split_no_rows(tmp_path):
    """One network run under several gammas is one run of the methods that read none, and no other experiment."""
    rows = [make_row(m, gamma=gamma) for m in ("no-ul", "retrain", "cf", "rem") for gamma in (0.1, 0.2)]
    (table,) = make_tables("mean", load(tmp_path, rows))
    assert {m: line(table, method=m)["n"] for m in ("no-ul", "retrain", "cf", "rem")} == {"no-ul": 1, "retrain": 1,
        "cf": 1, "rem": 1}
    assert "one for all cells: rem gamma 0.2 (of 0.1, 0.2)." in table.caption and "NOT ONE" not in table.caption
    (table,) = make_tables("mean", load(tmp_path, [{**row, "seed": int(10 * row["gamma"])} for row in rows[-2:]]))
    assert line(table, method="rem")["n"] == 2 and "the runs differ in gamma (0.1, 0.2)." in table.caption
    (same,) = make_tables("mean", load(tmp_path, [make_row("cf", gamma=0.1), make_row("rem", gamma=0.3),
                                                  make_row("no-ul", beta=2)]))
    assert "NOT ONE EXPERIMENT" not in same.caption
    (off,) = make_tables("mean", load(tmp_path, [make_row("rem-no31", p_mem=0.05),
                                                 make_row("rem", step31=False, ratio=3.0)]))
    assert line(off, method="rem-no31")["n"] == 1


def test_unequal_seeds_are_told(tmp_path):
    """Where one rate has more seeds than another the caption says so; methods that read no D_f have no rates."""
    words = "Not every task and discovery rate has the same seeds"
    rows = grid(["rem"], seeds=(0, 1))
    assert words not in make_tables("mean", load(tmp_path, rows))[0].caption
    assert words in make_tables("mean", load(tmp_path, rows[:-1]))[0].caption
    fixed = [make_row("no-ul", discovery=0.1, seed=0), make_row("no-ul", discovery=0.5, seed=1)]
    assert words not in make_tables("mean", load(tmp_path, fixed))[0].caption


def test_seconds_without_training(tmp_path):
    """Runs that know no training time, such as etd in a grid, have their seconds and no percentage."""
    (table,) = make_tables("mean", load(tmp_path, [{**make_row("etd"), "seconds": 80.0, "train_seconds": None}]))
    assert line(table, method="etd")["seconds"] == "80.0" and line(table, method="etd")["time %"] is None


@pytest.mark.parametrize("key", ["seconds", "train_seconds", "healed_test", "ratio"])
def test_numbers_are_numbers(tmp_path, capsys, key):
    """R3: text where a number belongs makes a line no row; None may stand there."""
    rows = load(tmp_path, [make_row(), {**make_row(seed=1), key: "12"}, {**make_row(seed=2), key: None}])
    assert sorted(row["seed"] for row in rows) == [0, 2] and "line 2 is not a whole row" in capsys.readouterr().err


def test_a_reader_that_has_enough(tmp_path):
    """R2: a pipe that closes early, as head closes it, is no error and leaves no traceback."""
    write(tmp_path / "rows.jsonl", [make_row(seed=seed) for seed in range(3000)])
    command = [sys.executable, "-B", str(ROOT / "run.py"), "report", str(tmp_path), "--table", "all"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        process.stdout.close()
        assert b"Broken" not in process.stderr.read() and process.wait(60) == 0


def test_cells(tmp_path):
    """The product of each method in each task at each rate; what was not run is empty."""
    rows = [make_row(healed=h, task=t, discovery=d, seed=s) for t, d, s, h in
            [("poison", 0.1, 0, 0.1), ("poison", 0.1, 1, 0.3), ("poison", 1.0, 0, 0.5), ("random", 1.0, 0, 0.7)]]
    table = one("cells", load(tmp_path, [*rows, make_row("cf", 0.9, task="poison", discovery=1.0)]))
    assert [row[:2] for row in table.rows] == [("poison", "cf"), ("poison", "rem"), ("random", "rem")]
    got = line(table, task="poison", method="rem")
    assert got["0.1"] == pytest.approx((18.0, 9.0)) and got["1"] == (pytest.approx(45.0), None)
    assert line(table, task="random", method="rem")["0.1"] is None and "runs per cell: 1 to 2" in table.caption


# --- Rows -------------------------------------------------------------------------------------------------------------


def test_the_later_of_two_rows_counts(tmp_path):
    """The same settings twice are one run: the later one, unless it failed; place, device and command make no
    difference."""
    rows = [make_row(healed=0.1), make_row(healed=0.2, out="elsewhere", quiet=True, data_dir="there"),
            make_row(status="failed"), make_row("npo", status="failed"), make_row("npo", 0.3)]
    got = {row["method"]: row for row in load(tmp_path, rows)}
    assert len(got) == 2 and got["rem"]["healed"] == 0.2 and got["npo"]["healed"] == 0.3


def test_which_row_counts_between_files(tmp_path):
    """Rows have no date: between files the order of names decides, or that in which they are given; the place in a file
    else."""
    early = write(tmp_path / "a.jsonl", [make_row(healed=0.1), make_row(healed=0.2)])
    late = write(tmp_path / "b.jsonl", [make_row(healed=0.3)])
    os.utime(early, (2e9, 2e9))  # written last: it makes no difference
    for paths, healed in (([tmp_path], 0.3), ([late, early], 0.2)):
        assert [row["healed"] for row in load_rows(paths)] == [healed]


def test_the_last_version_of_an_own_method_counts(tmp_path):
    """R3: of a user's method the rows of the file that ran last: where that failed, no older version's row or points
    stand in for it; a row of the same version that ended well still does."""
    old = {**make_row("a.py:f", 0.3, curve=True), "code": "1" * 16, "points": [{"epoch": 0, "base": 0.5}]}
    bad = {**make_row("a.py:f", status="failed", curve=True), "code": "2" * 16}
    (row,) = load(tmp_path, [old, bad])
    assert (row["status"], row["code"]) == ("failed", "2" * 16) and "points" not in row
    good = {**make_row("a.py:f", 0.4, curve=True), "code": "2" * 16}
    for rows in ([old, bad, good], [old, good, bad]):
        (row,) = load(tmp_path, rows)
        assert row["healed"] == 0.4 and "points" not in row
    assert load(tmp_path, [bad, good, old])[0]["healed"] == 0.3  # the file was put back


def test_rows_of_another_version_are_told(tmp_path, capsys):
    """R3: what `report` leaves out for the version of a user's file, or another file of its name, is a warning."""
    one, two = ({**make_row("a.py:f", seed=seed), "code": str(k) * 16} for k, seed in ((1, 0), (2, 0)))
    other = {**make_row("a.py:f", seed=1), "code": "1" * 16}
    assert len(load(tmp_path, [one, two, other])) == 2
    assert capsys.readouterr().err == ("warning: a.py:f: 1 row of another file or version (11111111) left out; of each "
                                       "cell the version of the last row counts, in the order of the files\n")
    assert len(load(tmp_path, [one, one, other, make_row(), make_row(healed=0.1)])) == 3
    assert capsys.readouterr().err == ""


def test_precision_and_size_by_another_name(tmp_path):
    """"auto" on the CPU is float32 and --image-size 32 is CIFAR-10's own: one experiment, as in the grid."""
    rows = [make_row(seed=0), make_row(seed=1, precision="float32"), make_row(seed=2, image_size=32)]
    rows += [make_row(seed=0, precision="float32", image_size=32)]
    found = load(tmp_path, rows)
    assert len(found) == 3 and {row["data"] for row in found} == {"cifar10"}
    assert "NOT ONE EXPERIMENT" not in one("mean", found).caption
    apart = load(tmp_path, [make_row(seed=0), {**make_row(seed=1), "device": "NVIDIA H100"}])
    assert "differ in precision (bf16, float32)" in one("mean", apart).caption


def test_folders_of_images_are_told_by_their_path(tmp_path):
    """Two folders are two data sets, and so are two sizes of one."""
    places = [dict(data_dir="a"), dict(data_dir="b"), dict(data_dir="a", image_size=8)]
    rows = load(tmp_path, [make_row(**{**place, "dataset": "folder"}) for place in places])
    assert sorted(row["data"] for row in rows) == ["folder a", "folder a at 8 px", "folder b"]


def test_a_folder_of_images_is_one_however_it_is_named(tmp_path, monkeypatch):
    """The grid notes whole paths, older rows have the path as it was given: one data set, named from where we are."""
    monkeypatch.chdir(tmp_path)
    names = ["a", "./b/../a", str(tmp_path / "a")]
    rows = load(tmp_path, [make_row(seed=seed, dataset="folder", data_dir=name) for seed, name in enumerate(names)])
    assert {row["data"] for row in rows} == {"folder a"} and len(rows) == 3
    monkeypatch.chdir("/")
    assert {row["data"] for row in load(tmp_path, [make_row(dataset="folder", data_dir="/elsewhere/a")])} == {
        "folder elsewhere/a"}
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "deeper")
    (row,) = load(tmp_path, [make_row(dataset="folder", data_dir=str(tmp_path / "a"))])
    assert row["data"] == f"folder {tmp_path / 'a'}"


def test_a_folder_is_no_file_whatever_its_name(tmp_path, capsys):
    """R2: a folder called x.jsonl is looked into, and read as a file by nobody."""
    write(tmp_path / "x.jsonl" / "y.jsonl", [make_row()])
    assert len(load_rows([tmp_path])) == 1 and read_rows(tmp_path) == [] and capsys.readouterr().err == ""


def test_folders_of_results(tmp_path, capsys):
    """A folder stands for every *.jsonl below it; not every row has the scores of Fig. 6."""
    old = make_row(seed=1)
    for key in ("healed_test", "threads"):
        old.pop(key, None)
    write(tmp_path / "a" / "x.jsonl", [make_row(seed=0)])
    write(tmp_path / "a" / "b" / "y.jsonl", [old])
    write(tmp_path / "a" / "z.txt", [make_row(seed=2)])
    write(tmp_path / "a" / "cscore.jsonl", [{"task": "poison", "sizes": [0, 5], "runs": 3, "score": 0.5,
                                             "status": "ok"}])
    assert {row["seed"] for row in load_rows([tmp_path / "a"])} == {0, 1}
    assert capsys.readouterr().err == ""  # the C-scores of run.py cscore are no damage


TORN = ['{"method": "rem", "status"', "[1]", "7", "null", "\x00", json.dumps({"status": "ok"}),
        json.dumps({**make_row(), "product": None}), json.dumps({**make_row(), "healed": float("nan")}),
        json.dumps({**make_row(), "task": "other"}), json.dumps({**make_row(), "lr": [1]}),
        json.dumps({**make_row(), "curve": [1]}),
        json.dumps({**make_row(), "etd": None}), json.dumps({**make_row(), "ratio": "1"}),
        json.dumps({**make_row(), "discovery": "0.5"}), json.dumps({**make_row(), "status": "half"}), "[" * 5000,
        json.dumps({**make_row(), "seed": 10**400}), json.dumps({**make_row(), "healed": 10**400}),
        json.dumps({**make_row(), "method": ["rem"]}), json.dumps({**make_row(), "seconds": "long"}),
        json.dumps({**make_row(), "points": [{"epoch": 0}]}), json.dumps({**make_row(), "gamma": 5})]


@pytest.mark.parametrize("text", TORN)
def test_torn_lines_are_skipped_with_one_warning(tmp_path, capsys, text):
    """A line that is no whole row costs one line on stderr; the rows around it count."""
    rows = load(tmp_path, [make_row(seed=0), text, "", make_row(seed=1)])
    assert [row["seed"] for row in rows] == [0, 1]
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0] == f"warning: {tmp_path / 'rows.jsonl'}: line 2 is not a whole row; left out"


def test_many_torn_lines_are_one_warning(tmp_path, capsys):
    """A damaged file does not flood the screen."""
    load(tmp_path, ["{", make_row(), "{", "{"])
    assert re.search(r": 3 lines, the first of them 1, are not a whole row; left out\n$", capsys.readouterr().err)


def test_rem_on_etd_counts_once(tmp_path):
    """rem with --etd and rem-on-etd are one algorithm: of both, the later counts; either alone does."""
    both = [make_row("rem", 0.9, etd=True), make_row("rem-on-etd", 0.6, etd=True),
            make_row("rem", 0.3, etd=True, seed=1)]
    rows = load(tmp_path, both)
    got = line(one("4", rows), method="rem", ETD=True)
    assert got["n"] == 2 and got["Healed"][0] == pytest.approx(45.0) and len(rows) == 2
    assert sum(n for n in column(one("4", rows), "n") if n) == 2
    failed = load(tmp_path, [make_row("rem", 0.9, etd=True), make_row("rem-on-etd", status="failed", etd=True)])
    assert [row["ran"] for row in failed] == ["rem"]


def test_etd_alone_is_no_ul_with_etd(tmp_path):
    """The method etd fills the paper's "No UL" with ETD, unless that was run itself; never both."""
    alone = load(tmp_path, [make_row("etd", 0.3)])
    assert line(one("4", alone), method="no-ul", ETD=True)["Healed"] == (pytest.approx(30.0), None)
    both = load(tmp_path, [make_row("no-ul", 0.5, etd=True), make_row("etd", 0.3), make_row("etd", 0.7, seed=1)])
    got = line(one("4", both), method="no-ul", ETD=True)
    assert got["n"] == 2 and got["Healed"][0] == pytest.approx(60.0)
    assert "etd" in column(make_tables("mean", both)[0], "method")


def test_a_step_left_out_by_flag_is_the_ablation(tmp_path):
    """rem --no-step31 is rem-no31, and so on: none of them is averaged with REM."""
    flags = [dict(step31=False), dict(step32=False), dict(step31=False, step32=False), dict(redirect="ce"), {},
             dict(step32=False, redirect="ce")]
    # nothing to redirect
    assert len(load(tmp_path, [make_row(step31=False), make_row(step31=False, redirect="ce")])) == 1
    rows = load(tmp_path, [make_row(**more) for more in flags])
    assert [row["method"] for row in rows] == ["rem-no31", "rem-no32", "rem-no31-no32", "rem-ce", "rem", "rem-no32-ce"]
    assert [n for n in column(one("4", rows), "n") if n] == [1] and len([n for n in column(one("2", rows), "n")
        if n]) == 5
    ideal = load(tmp_path, [make_row("rem-ideal"), make_row("rem-ideal", step32=False)])
    assert "differ in step32" in one("mean", ideal).caption


def test_settings_that_do_not_matter(tmp_path):
    """SCRUB's alpha is no setting of the others, and a ratio that is the default's value is the default."""
    rows = load(tmp_path, [make_row("cf", alpha=0.1), make_row("cf", alpha=10.0), make_row(ratio=1.0), make_row(),
                           make_row("a.py:f", alpha=0.1), make_row("a.py:f", alpha=10.0)])
    assert [row["method"] for row in rows] == ["cf", "rem", "a.py:f", "a.py:f"]


def test_forget_norm_is_one_experiment_where_all_that_read_it_agree(tmp_path):
    """Methods that do not read the setting keep its default, which is no difference; one method in two ways is."""
    rows = [make_row("cf"), make_row("npo", forget_norm="running"), make_row("rem")]
    assert "NOT ONE EXPERIMENT" not in one("mean", load(tmp_path, rows)).caption
    rows.append(make_row("npo", task="random"))
    assert "differ in forget_norm (auto, running)" in one("mean", load(tmp_path, rows)).caption


def test_statistics_in_passes_over_forget(tmp_path):
    """What "auto" comes to is no second run; where no such pass is made the setting is of no concern."""
    usual = {"rem": "running", "rem-no31": "running", "npo": "batch", "ascent": "batch"}
    other = {"running": "batch", "batch": "running"}
    for method, norm in usual.items():
        rows = load(tmp_path, [make_row(method), make_row(method, forget_norm=norm),
                               make_row(method, forget_norm=other[norm])])
        assert sorted(row["forget_norm"] for row in rows) == sorted(["auto", other[norm]])
    assert len(load(tmp_path, [make_row("cf"), make_row("cf", forget_norm="batch"),
                               make_row("scrub", forget_norm="running")])) == 2
    assert len(load(tmp_path, [make_row("a.py:f"), make_row("a.py:f", forget_norm="batch")])) == 2


def test_the_pair_of_confusion(tmp_path):
    """Other confused classes are another experiment, which the caption says; the customary pair may be named or not."""
    def got(*rows):
        loaded = load(tmp_path, rows)
        return len(loaded), "differ in pair" in one("mean", loaded).caption

    swap = dict(task="confusion")
    assert got(make_row(**swap), make_row(**swap, pair="1,2", seed=1)) == (2, True)
    assert got(make_row(**swap), make_row(**swap, pair="3, 5")) == (1, False)
    assert got(make_row(**swap), make_row(**swap, pair="3,5", seed=1)) == (2, False)
    mini = dict(swap, dataset="fashion-mini")  # which has no customary pair
    assert got(make_row(**mini), make_row(**mini, pair="3,5", seed=1)) == (2, True)
    assert got(make_row(), make_row(pair="1,2")) == (1, False)  # poison confuses no classes
    assert got(make_row(), make_row(**swap, pair="1,2")) == (2, False)


def test_the_curve_of_figure_5_stays_out_of_the_tables(tmp_path):
    """A run of 5 epochs with --curve is not averaged with the table's run of 10 of the same cell; alone it counts."""
    points = [{"epoch": 0, "base": 1.0, "full": 0.5}]
    curve = {**make_row(healed=0.1, unlearn_epochs=5), "curve": True, "points": points}
    assert line(one("mean", load(tmp_path, [curve, make_row()])), method="rem")["Healed"][0] == pytest.approx(80.0)
    assert line(one("mean", load(tmp_path, [curve])), method="rem")["n"] == 1
    same = load(tmp_path, [{**curve, "unlearn_epochs": 10}, make_row(healed=0.1)])
    assert len(same) == 1 and same[0]["points"] == points
    both = load(tmp_path, [curve, {**curve, "unlearn_epochs": 10, "healed": 0.3}, make_row(healed=0.8)])
    assert line(one("mean", both), method="rem")["Healed"] == (pytest.approx(80.0), None)


# --- Which rows go where ----------------------------------------------------------------------------------------------

PLACES = {  # table: (settings that belong to it, settings that do not)
    "1": [dict(), [dict(capacity=1.0), dict(p_mem=0.05)]],
    "2": [dict(etd=True), [dict(arch="vit"), dict(capacity=1.0)]],
    "4": [dict(capacity=1.0), [dict(arch="vit"), dict(p_mem=0.05), dict(capacity=0.9), dict(capacity=1.0, etd=True)]],
    "5": [dict(arch="vit", dataset="svhn"), [dict(), dict(arch="vit", p_mem=0.05, dataset="svhn")]],
    "6": [dict(dataset="imagenette"), [dict(etd=True), dict(capacity=0.9)]],
    "7": [dict(dataset="imagenette", capacity=0.9, etd=True), [dict(capacity=0.9), dict(etd=True)]],
    "8": [dict(p_mem=0.05, etd=True), [dict(p_mem=0.05), dict(etd=True)]],
    "9": [dict(arch="vit", dataset="svhn", p_mem=0.05, etd=True), [dict(arch="vit", p_mem=0.05),
                                                                   dict(p_mem=0.05, etd=True)]],
}


@pytest.mark.parametrize("number", PLACES)
def test_selection_of_each_table(tmp_path, number):
    """Each table takes the rows of its network, capacity, ETD and mask size, and no others."""
    mine, others = PLACES[number]
    rows = load(tmp_path, [make_row(**mine), make_row(seed=1, **mine),
                           *(make_row(healed=0.1, **more) for more in others)])
    table = one(number, rows)
    assert [n for n in column(table, "n") if n] == [2] and [h for h in column(table, "Healed") if h] == [(80.0, 0.0)]
    assert make_tables(number, load(tmp_path, [make_row(**more) for more in others])) == []
    # any data may be in its place
    assert make_tables(number, load(tmp_path, [make_row(**{**mine, "dataset": "fashion-mini"})]))


def test_which_methods_a_table_compares(tmp_path):
    """Tables 1 and 4 have every method but ablations and those that know D_c; Table 2 has the ablations."""
    rows = load(tmp_path, grid([*METHODS, "my_file.py:fit"]))

    def ran(number):
        table = one(number, rows)
        return {method for method, n in zip(column(table, "method"), column(table, "n"), strict=True) if n}

    hidden = {"rem-ideal", "rem-no31", "rem-no32", "rem-ce", "etd", "etd-ideal", "rem-on-etd"}
    assert ran("4") == ran("1") == ({*METHODS} - hidden) | {"my_file.py:fit"}
    assert ran("2") == {"rem", "rem-no31", "rem-no32", "rem-ce"}
    got = line(one("2", rows), method="rem-no31", ETD=False)
    assert (got["3.1"], got["3.2"], got["n"]) == (False, True, 6)


def test_table_1_has_svhn_beside_cifar10(tmp_path):
    """The ViT column is SVHN's where ResNet-9 is CIFAR-10's; other data stay by themselves; Potion's is the paper's
    OOM."""
    vit = make_row(healed=0.7, arch="vit", dataset="svhn")
    table = one("1", load(tmp_path, [make_row(), *every_cell("rem", 0.7, 0.9, arch="vit", dataset="svhn")]))
    got = line(table, method="rem", ETD=False)
    assert (got["n"], got["ViT n"], got["ViT product"][0]) == (1, 30, pytest.approx(63.0)) and got["difference"] is None
    assert got["ViT difference"] == "-10.27" and line(table, method="potion", ETD=True)["ViT product (paper)"] == "OOM"
    assert "svhn" in table.caption and table.title.startswith("Table 1: cifar10")
    few = line(one("1", load(tmp_path, [make_row(), vit])), method="rem", ETD=False)
    assert few["ViT product"] == (pytest.approx(63.0), None) and few["ViT difference"] is None
    alone = one("1", load(tmp_path, [vit, make_row("npo", arch="vit", dataset="svhn")]))
    assert alone.title.startswith("Table 1: svhn") and line(alone, method="rem", ETD=False)["n"] is None
    assert len(make_tables("1", load(tmp_path, [make_row(), make_row(dataset="fashion-mini", n=1000), vit]))) == 2


def test_plain_retrain_in_tables_7_to_9(tmp_path):
    """retrain trains no ETD network: it stands in Tables 7-9 as a plain one, and no other method does."""
    plain = [make_row(m, dataset="imagenette", capacity=0.9) for m in ("retrain", "cf")]
    # no ETD, no table
    assert not make_tables("7", load(tmp_path, plain)) and not make_tables("8", load(tmp_path, [make_row("retrain")]))
    plain.append(make_row("no-ul", dataset="imagenette", capacity=0.9, etd=True))
    got = line(one("7", load(tmp_path, plain)), method="retrain")
    assert got["n"] == 1 and got["product (paper)"] == (50.14, 2.26)
    assert [n for n in column(one("7", load(tmp_path, plain)), "n") if n] == [1, 1]
    assert "does not say how its is trained)." in one("7", load(tmp_path, plain)).caption
    # whose masks are smaller
    for number, before, settings in (("8", "4", {}), ("9", "5", dict(arch="vit", dataset="svhn"))):
        small, large = ({r["method"]: r["utility"][0] for r in PAPER["tables"][t]["rows"] if r["capacity"] == 0.5 and
                         r["method"] == "retrain"} for t in (number, before))
        trained = make_row("cf", p_mem=0.05, etd=True, **settings)
        text = one(number, load(tmp_path, [make_row("retrain", **settings), trained])).caption
        assert small["retrain"] < large["retrain"]
        assert f"its Utility is below that of Table {before}, which may mean" in text


def test_one_table_for_each_data_set(tmp_path):
    """V12: data sets and numbers of images stay apart; the caption names data, rates, seeds, hardware, and what Utility
    is."""
    rows = load(tmp_path, grid(["rem"], seeds=(0, 2)) + grid(["rem"], dataset="fashion-mini") + grid(["rem"], n=500))
    found = make_tables("4", rows)
    assert [t.title for t in found] == ["Table 4: cifar10, 500 corrupted", "Table 4: cifar10, 1000 corrupted",
                                        "Table 4: fashion-mini, 120 corrupted"]
    for words in ("cifar10, 1000 corrupted", "confusion, poison, random", "discovery 0.1, 1;", "seeds 0, 2;", "12 runs",
                  "cpu, threads 2, torch 2.6.0", "CIFAR10", "Healed × Utility (over all classes)."):
        assert words in found[1].caption, words
    # of --table all: Imagenette's own, and data of no table
    assert make_tables("6", rows, own=True) == make_tables("6", rows)[2:]


def test_captions_warn(tmp_path):
    """Runs with other settings, and methods that did not run in the same cells, are pointed out; seeds and rates are
    not."""
    rows = grid(["rem", "npo"], seeds=(0, 1))
    clean = one("mean", load(tmp_path, rows)).caption
    assert "compare with care" not in clean and "NOT ONE" not in clean
    assert "compare with care" in one("mean", load(tmp_path, rows[:-1])).caption
    mixed = one("mean", load(tmp_path, [make_row(), make_row(lr=0.05, seed=1), make_row(beta=2.0, seed=2)])).caption
    assert "NOT ONE EXPERIMENT: the runs differ in lr (0.025, 0.05); beta (1.0, 2.0)." in mixed


def test_captions_warn_of_two_versions_of_an_own_method(tmp_path):
    """Runs of one method from two versions of its file are pointed out; two methods of two files are not."""
    a, b = ({**make_row(f"{name}.py:f", seed=k), "code": name * 16} for k, name in enumerate("ab"))
    assert "NOT ONE" not in one("mean", load(tmp_path, [a, b, make_row()])).caption
    caption = one("mean", load(tmp_path, [a, {**a, "seed": 1, "code": "c" * 16}])).caption
    assert f"NOT ONE EXPERIMENT: the runs differ in code ({'a' * 16}, {'c' * 16})." in caption


def test_captions_name_the_commits(tmp_path):
    """Rows of more than one commit are pointed out by its first seven characters."""
    rows = [{**make_row(seed=k), "git": git} for k, git in enumerate(("1234567890", "abcdefghij-dirty", None,
                                                                      "1234567890"))]
    assert "Commits: 1234567, abcdefg-dirty, unknown." in one("mean", load(tmp_path, rows)).caption
    assert "Commits" not in one("mean", load(tmp_path, rows[::3])).caption


# --- The paper's numbers ----------------------------------------------------------------------------------------------

SAMPLE = [  # copied by hand from the paper: table, capacity, ETD, method, Healed, Utility, product
    ("1", 0.5, False, "rem", [81.16, 1.62], [90.54, 0.15], [73.40, 1.43]),
    ("1", 0.5, True, "potion", [62.74, 3.73], [62.86, 3.62], [51.30, 3.64]),
    ("2", 0.5, True, "rem-no32", [83.70, 0.89], [88.16, 0.16], [73.69, 0.69]),
    ("2", 0.5, False, "rem-no31", [77.31, 2.07], [90.39, 0.14], [69.82, 1.85]),
    ("4", 1.0, False, "rem", [65.35, 3.28], [91.33, 0.16], [59.65, 2.99]),
    ("4", 0.5, True, "cf", [60.24, 3.07], [89.83, 0.13], [54.13, 2.75]),
    ("4", 1.0, False, "no-ul", [15.24, 0.60], [90.87, 0.15], [13.78, 0.52]),
    ("5", 1.0, False, "ascent", [79.96, 1.16], [82.99, 0.78], [66.56, 1.47]),
    ("5", 0.5, True, "badt", [61.20, 3.65], [85.87, 0.02], [52.50, 3.13]),
    ("6", 0.5, False, "scrub", [67.63, 3.63], [80.66, 0.17], [54.52, 2.89]),
    ("7", 0.9, True, "no-ul", [45.33, 8.25], [78.50, 0.44], [35.53, 6.30]),
    ("8", 0.5, True, "rem", [85.37, 1.77], [89.56, 0.26], [76.38, 1.48]),
    ("9", 0.5, True, "npo", [59.58, 6.42], [84.40, 0.12], [50.37, 5.43]),
]


@pytest.mark.parametrize("number, capacity, etd, method, healed, utility, product", SAMPLE)
def test_numbers_of_the_paper(number, capacity, etd, method, healed, utility, product):
    """paper.json has the numbers that are printed in the paper."""
    (row,) = [r for r in PAPER["tables"][number]["rows"] if (r["capacity"], r["etd"], r["method"]) == (capacity, etd,
        method)]
    assert (row["healed"], row["utility"], row["product"]) == (healed, utility, product)


def test_shape_of_the_papers_tables():
    """Every table has all its rows, known methods, descending products, and means with an SEM."""
    sizes = {name: len(table["rows"]) for name, table in PAPER["tables"].items()}
    assert sizes == {"1": 15, "2": 6, "4": 26, "5": 17, "6": 7, "7": 7, "8": 8, "9": 7}
    for table in PAPER["tables"].values():
        products = [row["product"][0] for row in table["rows"]]
        assert products == sorted(products, reverse=True)
        for row in table["rows"]:
            assert row["method"] in METHODS and row["capacity"] in (0.5, 0.9, 1.0)
            for value in (row["healed"], row["utility"], row["product"], row.get("vit", [50, 1])):
                assert value == "OOM" or (len(value) == 2 and 0 < value[0] < 100 and 0 < value[1] < 25)
    assert sum(row.get("vit") == "OOM" for row in PAPER["tables"]["1"]["rows"]) == 2


def test_papers_tables_agree_with_each_other():
    """Table 1 is Table 4's 50 % rows without CF, its ViT column Table 5's, and Table 2's whole REM is Table 1's."""
    def keyed(number, **more):
        keep = [r for r in PAPER["tables"][number]["rows"] if all(r[k] == v for k, v in more.items())]
        return {(r["etd"], r["method"]): (r["healed"], r["utility"], r["product"]) for r in keep}

    first = PAPER["tables"]["1"]["rows"]
    assert keyed("1") == {key: value for key, value in keyed("4", capacity=0.5).items() if key[1] != "cf"}
    assert {(r["etd"], r["method"]): r["vit"] for r in first if r["vit"] != "OOM"} == {
        key: value[2] for key, value in keyed("5", capacity=0.5).items() if key[1] != "cf"}
    assert keyed("2", method="rem") == keyed("1", method="rem")


def test_appendix_numbers():
    """A.3's three seeds and A.8's relative times."""
    assert PAPER["A.3"] == {"task": "random", "discovery": 0.5, "seeds": [0, 1, 2], "healed": [0.772, 0.774, 0.752],
                            "utility": [0.891, 0.888, 0.896]}
    assert PAPER["A.8"] == {"training": 100, "badt": 24.7, "scrub": 14.0, "rem": 10.7, "potion": 9.1, "npo": 0.2,
                            "ascent": 0.2}


# --- Formats ----------------------------------------------------------------------------------------------------------


def parse_markdown(text) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in (lines[0], *lines[2:])]
    return [[cell.strip().replace("\\|", "|") for cell in row] for row in cells]


def parse_latex(text) -> list[list[str]]:
    for written, plain in ((r"$\pm$", "±"), (r"$\times$", "×"), (r"$\checkmark$", "✓"), (r"\_", "_"), (r"\%", "%"),
                           (r"\&", "&"), ("$|$", "|")):
        text = text.replace(written, plain)
    return [[cell.strip() for cell in line[:-3].split(" & ")] for line in text.splitlines() if line.endswith(r" \\")]


def parse_csv(text, stats) -> list[list[str]]:
    """The file's lines with mean and SEM put together again."""
    header, *lines = list(csv.reader(io.StringIO(text)))
    keep = [k for k, name in enumerate(header) if not name.endswith(" SEM")]

    def cell(row, k):
        return row[k] + (f" ± {row[k + 1]}" if header[k] in stats and row[k + 1] else "")

    return [[header[k] for k in keep], *([cell(row, k) for k in keep] for row in lines)]


@pytest.mark.parametrize("name", ["mean", "cells", "1", "2", "4"])
def test_formats_say_the_same(tmp_path, name):
    """Markdown, LaTeX and CSV parse back to the same cells, two decimals, ticks and empty ones included."""
    rows = load(tmp_path, grid(["rem", "npo", "rem-no31", "my_a|b.py:f_1"], seeds=(0, 1)) + [make_row("cf", 0.25, 0.5)])
    table = one(name, rows)
    want = [[report.show(cell) for cell in row] for row in (table.header, *table.rows)]
    assert parse_markdown(report.markdown(table)) == want
    assert parse_latex(report.latex(table)) == want
    got = parse_csv(report.as_csv(table), table.stats)
    ticks = {"1": "✓", "0": ""}
    flags = [k for k, column_name in enumerate(table.header) if column_name in ("ETD", "3.1", "3.2")]
    assert [[ticks[c] if k in flags and r else c for k, c in enumerate(row)] for r, row in enumerate(got)] == want
    assert any("±" in cell for row in want for cell in row)


def test_shown_numbers():
    """Two decimals; no ± for a single run; nothing for what was not run."""
    assert [report.show(c) for c in ((1.005, None), (66.666, 0.5), None, True, False, 0, "OOM", (0.0, 0.0))] == [
        "1.00", "66.67 ± 0.50", "", "✓", "", "0", "OOM", "0.00 ± 0.00"]


def test_latex_escapes():
    """Every special character of LaTeX in a method's name or a caption is escaped."""
    table = tables.Table("x", "A&B", "50 % of #1 {x}", ("method",), [("a_b~c^d\\e$.py:f",)], ())
    text = report.latex(table)
    assert r"a\_b\textasciitilde{}c\textasciicircum{}d\textbackslash{}e\$.py:f \\" in text
    assert r"\caption{A\&B. 50 \% of \#1 \{x\}}" in text


# --- Command line -----------------------------------------------------------------------------------------------------


def test_default_prints_the_means(tmp_path, capsys):
    """Without anything asked for the means are printed in Markdown, exit code 0."""
    assert main([str(write(tmp_path / "x.jsonl", [make_row()]))]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("**Means: cifar10") and "| rem " in out and err == ""


def test_written_files(tmp_path, capsys):
    """--out has each table in each format asked for, and nothing else; the same call writes the same bytes."""
    source = write(tmp_path / "x.jsonl", grid(["rem", "npo"]))
    argv = [str(source), "--table", "mean,4", "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(files) == {f"{name}.{kind}" for name in ("mean-cifar10-n1000-resnet9-c50-p0.2", "table-4-cifar10-n1000")
                          for kind in ("md", "tex", "csv")}
    assert main(argv) == 0 and files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert main([str(source), "--format", "csv", "--out", str(tmp_path / "one")]) == 0
    assert [path.suffix for path in (tmp_path / "one").iterdir()] == [".csv"]


@pytest.mark.parametrize("text, kept", [("0", (0,)), ("2,0", (0, 2)), ("1:2:1", (1, 2)), ("0:2:1", (0, 1, 2))])
def test_seeds_that_are_asked_for(tmp_path, capsys, text, kept):
    """--seeds makes of several seeds' rows what is made of those seeds' rows alone."""
    rows = grid(["rem", "npo"], seeds=(0, 1, 2))
    some = [row for row in rows if row["seed"] in kept]
    whole, alone = str(write(tmp_path / "all.jsonl", rows)), str(write(tmp_path / "some.jsonl", some))
    assert main([whole, "--table", "1,mean,plane", "--seeds", text]) == 0
    printed = capsys.readouterr().out
    assert main([alone, "--table", "1,mean,plane"]) == 0
    assert printed == capsys.readouterr().out
    assert main([whole, "--table", "1,mean,plane"]) == 0
    assert (printed == capsys.readouterr().out) == (len(kept) == 3)


def test_no_file_takes_the_place_of_another(tmp_path, capsys):
    """R9: data sets whose names come to one file name have a file each."""
    rows = [make_row(healed=0.1 * k, dataset="folder", data_dir=str(tmp_path / name), image_size=16)
            for k, name in enumerate(("a b", "a-b", "A-B"), 1)]
    source = write(tmp_path / "x.jsonl", rows)
    assert main([str(source), "--table", "mean", "--format", "csv", "--out", str(tmp_path / "o")]) == 0
    found = sorted((tmp_path / "o").iterdir())
    assert len({path.name.lower() for path in found}) == 3 and "3 files" in capsys.readouterr().out
    assert {",9.00," in path.read_text() for path in found} == {True, False}  # 0.1 x 0.9, in one of them
    assert report.apart(["a", "b", "A", "a-2", "a"]) == ["a", "b", "A-2", "a-2-2", "a-3"]


def test_all_tables_skip_what_has_no_rows(tmp_path, capsys):
    """--table all makes what can be made and names the rest on stderr; by number the same is an error."""
    source = str(write(tmp_path / "x.jsonl", grid(["rem", "npo"])))
    assert main([source, "--table", "all"]) == 0
    out, err = capsys.readouterr()
    assert re.findall(r"^\*\*Table (\d)", out, re.MULTILINE) == ["1", "2", "4"]
    assert re.findall(r"^run.py report: skipped: table (\d) ", err, re.MULTILINE) == ["5", "6", "7", "8", "9"]


BAD = [
    (["no/such"], "no file or folder no/such"),
    (["{file}", "--table", "3"],
     "unknown table '3'; choose from mean, cells, plane, ablations, 1, 2, 4, 5, 6, 7, 8, 9 or all"),
    (["{file}", "--figure", "2", "--out", "o"], "unknown figure '2'; choose from 1, 3, 4"),
    (["{file}", "--format", "pdf"], "unknown format 'pdf'; choose from markdown, latex, csv or all"),
    (["{file}", "--seeds", "1,4"], "no row has seed 1; there are 0"),
    (["{file}", "--seeds", "x"], "--seed is 'x'; it takes int values such as 1,2 or 1:3:1"),
    (["{file}", "--seed", ""], "--seed is empty; give at least one value"),
    (["{file}", "--table", "5"], "table 5 has no rows in these results"),
    (["{empty}"], "no rows in "),
    (["{file}", "--out", ""], "--out is empty"),
    (["{file}", "--figure", "4"], "give a folder with --out"),
    (["{file}", "--out", "{file}"], "{file}"),
    ([], "the following arguments are required: results"),
    (["{file}", "--tables", "1"], "unrecognized arguments"),
]


@pytest.mark.parametrize("argv, words", BAD, ids=[" ".join(argv) for argv, _ in BAD])
def test_bad_input(tmp_path, capsys, monkeypatch, argv, words):
    """R2: one line on stderr that names what is wrong, exit code 2, nothing on stdout and nothing written."""
    monkeypatch.chdir(tmp_path)
    names = {"file": str(write(tmp_path / "x.jsonl", [make_row()])), "empty": str(write(tmp_path / "empty.jsonl", []))}
    try:
        code = main([text.format(**names) for text in argv])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and err.startswith("run.py report: "), err
    assert words.format(**names) in err and len(list(tmp_path.iterdir())) == 2


def test_without_matplotlib(tmp_path, capsys, monkeypatch):
    """R2: figures without matplotlib are one line that names the command, exit code 2; tables do not need it."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    source = str(write(tmp_path / "x.jsonl", [make_row()]))
    assert main([source, "--figure", "3", "--out", str(tmp_path / "o")]) == 2
    err = capsys.readouterr().err
    assert err == "run.py report: figures need matplotlib: pip install -r requirements-figures.txt\n"
    assert not (tmp_path / "o").exists()
    assert main([source, "--table", "4"]) == 0


def test_requirements_of_figures():
    """matplotlib alone, as a range."""
    assert re.fullmatch(r"matplotlib>=[\d.]+\n", (ROOT / "requirements-figures.txt").read_text())


def test_the_command_itself(tmp_path):
    """A real process on the results of this repository prints its tables, without matplotlib."""
    code = f"import runpy, sys; sys.argv = ['run.py', 'report', {str(ROOT / 'results')!r}]\n" \
           "try: runpy.run_path('run.py', run_name='__main__')\n" \
           "except SystemExit as stop: assert stop.code == 0 and 'matplotlib' not in sys.modules"
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True,
                          env=environment)
    assert (done.returncode, done.stderr) == (0, "") and "**Means: fashion-mini, 120 corrupted" in done.stdout


def test_three_thousand_rows(tmp_path, capsys):
    """A whole grid: 3,000 rows, every mean over the right ones."""
    rows = grid(["no-ul", "cf", "npo", "scrub", "rem"], seeds=range(20), rates=[k / 10 for k in range(1, 11)])
    assert len(rows) == 3000
    assert main([str(write(tmp_path / "x.jsonl", rows)), "--table", "all"]) == 0
    loaded = load_rows([tmp_path / "x.jsonl"])
    want = statistics.mean(row["product"] for row in rows if row["method"] == "npo")
    got = line(one("mean", loaded), method="npo")
    assert got["n"] == 600 and got["product"][0] == pytest.approx(100 * want)
