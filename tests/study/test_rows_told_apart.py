"""study/rows.py: result files are read whole, cells are told apart, and one row stands for one run."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given

from experiment.methods import code_of, reads_setting
from experiment.settings import VERSION, Config
from made_cells import cells
from made_rows import column, grid, line, load, make_row, one, tables_of, write
from study.plan import expand_axes
from study.rows import cell_key, load_rows, measured, networks, read_rows, rows_by_cell, without_extra_curves

POINTS = [{"epoch": 0, "base": 1.0, "full": 0.5}]


def ran(cell: Config, status="ok", **more) -> dict:
    """The parts of a cell's row that the grid reads."""
    return {**asdict(cell), "method": Path(cell.method).name, "status": status, "error": None, "version": VERSION,
            "healed": 0.5, "utility": 0.5, "product": 0.25, "seconds": 1.0, "train_seconds": 1.0, **more}


# --- The row of a cell ------------------------------------------------------------------------------------------------


@given(cells())
def test_key_survives_the_file(cell):
    """R5: a row read back from JSON is taken for the cell that it came from."""
    assert set(rows_by_cell([json.loads(json.dumps(ran(cell)))])) == {cell_key(cell)}


def test_a_good_row_is_kept_before_a_failed_one():
    """R5: a cell with several rows has its good one, else the last."""
    cell = Config(method="rem")
    for statuses, kept in (("failed ok", 1), ("ok failed", 0), ("failed failed", 1), ("ok ok", 1)):
        rows = [ran(cell, status, number=i) for i, status in enumerate(statuses.split())]
        assert [row["number"] for row in rows_by_cell(rows).values()] == [kept]


def test_rows_of_another_version_are_not_done():
    """R5: rows of another version of the code, of none, or of other images than their cell's do not count."""
    rem, npo = Config(method="rem"), Config(method="npo")
    rows = [ran(rem, version="0.0.0"), ran(npo, version=None)]
    assert rows_by_cell(rows) == {} and len(rows_by_cell([*rows, ran(npo)])) == 1
    images, others = {cell_key(rem): "1" * 8, cell_key(npo): "2" * 8}, []
    found = rows_by_cell([ran(cell, images="2" * 8) for cell in (rem, npo)], images, others)
    assert set(found) == {cell_key(npo)} and others == [cell_key(rem)]
    assert set(rows_by_cell([ran(rem)], images)) == {cell_key(rem)}  # an older row, which does not say


def test_own_method_is_told_by_its_code(tmp_path):
    """R9, R5: a cell of one's own method is another cell once the file changes, and its row is that of the old file;
    the file's place does not count, the function's name does."""
    path = tmp_path / "mine.py"
    path.write_text("def f(model, data, forget, config, generator): return model\n")
    found = expand_axes({"method": f"{path}:f,no-ul"})
    before, row = [cell_key(cell) for cell in found], ran(found[0], code=code_of(found[0].method))
    assert set(rows_by_cell([row])) == {before[0]}
    path.write_text("def f(model, data, forget, config, generator): return None\n")
    after = [cell_key(cell) for cell in found]
    assert after[0] not in before and after[1] == before[1] and set(rows_by_cell([row])) == {before[0]}
    assert cell_key(Config(method="some/where/m.py:f")) == cell_key(Config(method="m.py:f"))
    assert cell_key(Config(method="m.py:f")) != cell_key(Config(method="m.py:g"))


def test_a_relative_path_is_another_one_elsewhere(tmp_path, monkeypatch):
    """R9, R5: one relative data path in two working directories is two data sets of images, each the one of its whole
    path, which a grid's rows hold (see test_cells_of_folders.py); so a row of the one is no row of the other."""
    cell, keys = Config(method="rem", dataset="folder", data_dir="images"), []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        keys.append(cell_key(cell))
        assert set(rows_by_cell([ran(replace(cell, data_dir=str(tmp_path / name / "images")))])) == {keys[-1]}
    assert keys[0] != keys[1]


def test_what_auto_and_the_own_size_come_to(tmp_path):
    """R9: float32 on the CPU and bf16 on a GPU are different cells, however they are asked for; --image-size 16 is
    fashion-mini's own, of CIFAR-10 another data set. Tables take for one what the grid takes for one."""
    cell = expand_axes({"method": "no-ul", "device": "cpu"})[0]
    gpu = replace(cell, device="cuda")
    assert cell_key(cell) == cell_key(replace(cell, precision="float32")) != cell_key(gpu)
    assert cell_key(gpu) == cell_key(replace(gpu, precision="bf16")) == cell_key(replace(gpu, device="NVIDIA H100"))
    for name, own, other in (("fashion-mini", 16, 32), ("cifar10", 32, 16)):
        cell = expand_axes({"method": "no-ul", "dataset": name})[0]
        assert cell_key(cell) == cell_key(replace(cell, image_size=own)) != cell_key(replace(cell, image_size=other))
    rows = [make_row(seed=0), make_row(seed=1, precision="float32"), make_row(seed=2, image_size=32)]
    rows += [make_row(seed=0, precision="float32", image_size=32)]
    found = load(tmp_path, rows)
    assert len(found) == 3 and {row["data"] for row in found} == {"cifar10"}
    assert "NOT ONE EXPERIMENT" not in one("mean", found).caption
    apart = load(tmp_path, [make_row(seed=0), {**make_row(seed=1), "device": "NVIDIA H100"}])
    assert "differ in precision (bf16, float32)" in one("mean", apart).caption
    assert "; NVIDIA H100, torch 2.6.0; cpu, threads 2, torch 2.6.0." in one("mean", apart).caption


# --- Files ------------------------------------------------------------------------------------------------------------


def test_folders_of_results(tmp_path, capsys):
    """R3: `report` takes every *.jsonl below a folder, the grid those in it; a folder of such a name is no file, a
    temporary file no result, the C-scores of run.py cscore no damage; old rows lack some scores."""
    old = {key: value for key, value in make_row(seed=1).items() if key not in ("healed_test", "threads")}
    write(tmp_path / "a" / "x.jsonl", [make_row(seed=0)])
    write(tmp_path / "a" / "b.jsonl" / "y.jsonl", [old])
    write(tmp_path / "a" / "z.txt", [make_row(seed=2)])
    write(tmp_path / "a" / "x.jsonl.99.tmp", ["{"])
    write(tmp_path / "a" / "cscore.jsonl", [{"task": "poison", "sizes": [0], "runs": 3, "score": 0.5, "status": "ok"}])
    assert {row["seed"] for row in load_rows([tmp_path / "a"])} == {0, 1}
    assert [row["seed"] for row in read_rows(tmp_path / "a")] == [0]
    for place, healed in (("a/z.jsonl", 0.1), ("c/a.jsonl", 0.2)):  # the later is that of the later path
        write(tmp_path / "b" / place, [make_row(healed=healed)])
    assert [row["healed"] for row in load_rows([tmp_path / "b"])] == [0.2]
    assert read_rows(tmp_path / "none") == [] and rows_by_cell([]) == {}  # a grid begins with nothing
    assert capsys.readouterr().err == ""


POINT = {"epoch": 0, "base": 0.5, "full": 0.5, "healed": 0.5}
BROKEN = [dict(product=None), dict(healed=float("nan")), dict(task="other"), dict(lr=[1]), dict(curve=[1]),
          dict(etd=None), dict(ratio="1"), dict(discovery="0.5"), dict(status="half"), dict(seed=10**400),
          dict(healed=10**400), dict(method=["rem"]), dict(method=3), dict(seconds="12"), dict(train_seconds="12"),
          dict(healed_test="12"), dict(points=[{"epoch": 0}]), dict(points=[1, 2]), dict(gamma=5), dict(learnt="1"),
          *(dict(points=[{**POINT, key: "1"}]) for key in POINT), dict(points=[{**POINT, "full": 1.5}]),
          dict(acc_forget=[1]), dict(passes=True), dict(passes=float("inf")), dict(gave_up=2), dict(gave_up="yes"),
          dict(product=5.0), dict(healed=1.01), dict(utility=-0.1), dict(acc_forget=2), dict(learnt=1.5),
          dict(misled=1.5), dict(seconds=-1), dict(images=5), dict(method="\ud800"), dict(data_dir="\ud800")]
TORN = ['{"method": "rem", "status"', "[1]", "7", "null", "\x00", '{"status": "ok"}', "[" * 5000,
        *(json.dumps({**make_row(), **change}) for change in BROKEN)]


@pytest.mark.parametrize("text", TORN, ids=[*map(str, range(7)), *map(str, BROKEN)])
def test_torn_lines_are_skipped_with_one_warning(tmp_path, capsys, text):
    """R3: a line that is no whole row, or lacks a number where one belongs, costs a line on stderr; others count."""
    rows = load(tmp_path, [make_row(seed=0), text, "", make_row(seed=1)])
    assert [row["seed"] for row in rows] == [0, 1]
    told = f"warning: {tmp_path / 'rows.jsonl'}: line 2 is not a whole row; left out\n"
    assert capsys.readouterr().err == told


def test_what_a_row_may_lack(tmp_path, capsys):
    """R3: what a run need not note may be None, and shares and seconds may be 0 or as large as can be."""
    none = ("seconds", "train_seconds", "healed_test", "misled", "learnt", "acc_forget", "passes", "gave_up", "images")
    rows = [{**make_row(), key: None} for key in (*none, "ratio")]
    rows += [{**make_row(), "seconds": 1e9, "passes": 100, "misled": 1, "learnt": 0, "points": [POINT]}]
    assert all(len(load(tmp_path, [row])) == 1 for row in rows) and capsys.readouterr().err == ""


def test_many_torn_lines_are_one_warning(tmp_path, capsys):
    """R3: a damaged file does not flood the screen, bytes that are no text included; every other file is read."""
    good = json.dumps(make_row()).encode()
    (tmp_path / "cells-0.jsonl").write_bytes(b"\n".join([good, good[:50], b"\xff\xfe", good, good[:90]]))
    (tmp_path / "cells-1.jsonl").write_bytes(good)
    assert len(read_rows(tmp_path)) == 3
    assert capsys.readouterr().err == (f"warning: {tmp_path / 'cells-0.jsonl'}: 3 lines, the first of them 2, are not "
                                       "a whole row; left out\n")


# --- One row per run --------------------------------------------------------------------------------------------------


def test_the_later_of_two_rows_counts(tmp_path):
    """R3: the same settings twice are one run: the later one, unless it failed; place, device and command make no
    difference. Rows have no date: between files the order of names decides, or that in which they are given."""
    rows = [make_row(healed=0.1), make_row(healed=0.2, out="elsewhere", quiet=True, data_dir="there"),
            make_row(status="failed"), make_row("npo", status="failed"), make_row("npo", 0.3)]
    got = {row["method"]: row for row in load(tmp_path / "one", rows)}
    assert len(got) == 2 and got["rem"]["healed"] == 0.2 and got["npo"]["healed"] == 0.3
    early = write(tmp_path / "a.jsonl", [make_row(healed=0.1), make_row(healed=0.2)])
    late = write(tmp_path / "b.jsonl", [make_row(healed=0.3)])
    os.utime(early, (2e9, 2e9))  # written last: it makes no difference
    for paths, healed in (([early, late], 0.3), ([late, early], 0.2)):
        assert [row["healed"] for row in load_rows(paths)] == [healed]


def test_the_last_version_of_an_own_method_counts(tmp_path):
    """R3: of a user's method the rows of the file that ran last: where that failed, no older version's row or points
    stand in for it; a row of the same version that ended well still does."""
    old = {**make_row("a.py:f", 0.3, curve=True), "code": "1" * 16, "points": POINTS}
    bad = {**make_row("a.py:f", status="failed", curve=True), "code": "2" * 16}
    (row,) = load(tmp_path, [old, bad])
    assert (row["status"], row["code"]) == ("failed", "2" * 16) and "points" not in row
    good = {**make_row("a.py:f", 0.4, curve=True), "code": "2" * 16}
    for rows in ([old, bad, good], [old, good, bad]):
        (row,) = load(tmp_path, rows)
        assert row["healed"] == 0.4 and "points" not in row
    assert load(tmp_path, [bad, good, old])[0]["healed"] == 0.3  # the file was put back


def test_rows_of_another_version_are_told(tmp_path, capsys):
    """R3: what `report` leaves out for the version of a user's file, or for the images, is a warning."""
    first, second = ({**make_row("a.py:f"), "code": str(k) * 16} for k in (1, 2))
    other = {**make_row("a.py:f", seed=1), "code": "1" * 16}
    assert len(load(tmp_path, [first, second, other])) == 2
    assert capsys.readouterr().err == ("warning: a.py:f: 1 row of another file or version (11111111) left out; of each "
                                       "cell the version of the last row counts, in the order of the files\n")
    assert len(load(tmp_path, [first, first, other, make_row(), make_row(healed=0.1)])) == 3
    assert capsys.readouterr().err == ""
    assert len(load(tmp_path, [{**make_row(), "images": name * 8} for name in "ab"])) == 1
    assert capsys.readouterr().err == ("warning: cifar10: 1 row of other images (aaaaaaaa) left out; of each cell the "
                                       "images of the last row count, in the order of the files\n")


def test_a_run_has_the_points_of_any_good_row(tmp_path):
    """R3: a run has Fig. 5's points if one of its good rows has, of several the last; the numbers are those of a row
    timed without them. Points of a failed row are nobody's."""
    other = [{**POINTS[0], "base": 0.25}]
    plain, slow = {**make_row(healed=0.1), "seconds": 4.0}, {**make_row(curve=True), "seconds": 50.0}
    for rows, points in (([{**slow, "points": POINTS}, plain], POINTS),
                         ([plain, {**slow, "points": POINTS}, {**slow, "points": other}], other)):
        (row,) = load(tmp_path, rows)
        assert (row["points"], row["healed"], row["seconds"]) == (points, 0.1, 4.0) and not measured(row)
    (row,) = load(tmp_path, [{**make_row(curve=True, status="failed"), "points": POINTS}, plain])
    assert "points" not in row
    (row,) = load(tmp_path, [{**slow, "points": POINTS}, make_row(status="failed")])
    assert (row["status"], row["points"]) == ("ok", POINTS)  # a measured run before one that failed


def test_the_curve_of_figure_5_stays_out_of_the_tables(tmp_path):
    """V6: a run of 5 epochs with --curve is not averaged with the table's run of 10 of the same cell, nor where that
    has a row with points too; alone it counts."""
    curve = {**make_row(healed=0.1, unlearn_epochs=5), "curve": True, "points": POINTS}
    for others in ([], [{**curve, "unlearn_epochs": 10, "healed": 0.3}]):
        rows = load(tmp_path, [curve, *others, make_row(healed=0.8)])
        assert line(one("mean", rows), method="rem")["Healed"] == (pytest.approx(80.0), None)
    alone = load(tmp_path, [curve, make_row(seed=1)])  # of another cell
    assert len(without_extra_curves(alone)) == 2 and line(one("mean", alone[:1]), method="rem")["n"] == 1


# --- One experiment, one algorithm ------------------------------------------------------------------------------------


def test_folders_of_images_are_told_by_their_path(tmp_path, monkeypatch):
    """R9: two folders are two data sets, and so are two sizes of one; the grid notes whole paths, a single run the path
    as given: one data set, named from where we are."""
    monkeypatch.chdir(tmp_path)

    def data(*places) -> list[str]:
        rows = load(tmp_path, [make_row(seed=k, dataset="folder", **place) for k, place in enumerate(places)])
        return [row["data"] for row in rows]

    sizes = data(dict(data_dir="a"), dict(data_dir="b"), dict(data_dir="a", image_size=8))
    assert sizes == ["folder a", "folder b", "folder a at 8 px"]
    whole = str(tmp_path / "a")
    assert data(dict(data_dir="a"), dict(data_dir="./b/../a"), dict(data_dir=whole)) == ["folder a"] * 3
    monkeypatch.chdir("/")
    assert data(dict(data_dir="/elsewhere/a")) == ["folder elsewhere/a"]
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "deeper")
    assert data(dict(data_dir=whole)) == [f"folder {whole}"]


def test_rem_on_etd_counts_once(tmp_path):
    """R9: rem with --etd and rem-on-etd are one algorithm: of both, the later counts, unless it failed."""
    both = [make_row("rem", 0.9, etd=True), make_row("rem-on-etd", 0.6, etd=True),
            make_row("rem", 0.3, etd=True, seed=1)]
    rows = load(tmp_path, both)
    got = line(one("4", rows), method="rem", ETD=True)
    assert got["n"] == 2 and got["Healed"][0] == pytest.approx(45.0) and len(rows) == 2
    assert sum(n for n in column(one("4", rows), "n") if n) == 2
    failed = load(tmp_path, [make_row("rem", 0.9, etd=True), make_row("rem-on-etd", status="failed", etd=True)])
    assert [row["ran"] for row in failed] == ["rem"]


def test_etd_alone_is_no_ul_with_etd(tmp_path):
    """R9: the method etd fills the paper's "No UL" with ETD unless that was run itself, in whichever order."""
    alone = load(tmp_path, [make_row("etd", 0.3)])
    assert line(one("4", alone), method="no-ul", ETD=True)["Healed"] == (pytest.approx(30.0), None)
    rows = [make_row("no-ul", 0.5, etd=True), make_row("etd", 0.3), make_row("etd", 0.7, seed=1)]
    for order in (rows, rows[::-1]):
        both = load(tmp_path, order)
        got = line(one("4", both), method="no-ul", ETD=True)
        assert got["n"] == 2 and got["Healed"][0] == pytest.approx(60.0)
    assert "etd" in column(tables_of("mean", both)[0], "method")


def test_a_step_left_out_by_flag_is_the_ablation(tmp_path):
    """R9: rem --no-step31 is rem-no31, and so on: none of them is averaged with REM."""
    flags = [dict(step31=False), dict(step32=False), dict(step31=False, step32=False), dict(redirect="ce"), {},
             dict(step32=False, redirect="ce")]
    nothing_to_redirect = [make_row(step31=False), make_row(step31=False, redirect="ce")]
    assert len(load(tmp_path, nothing_to_redirect)) == 1
    rows = load(tmp_path, [make_row(**more) for more in flags])
    assert [row["method"] for row in rows] == ["rem-no31", "rem-no32", "rem-no31-no32", "rem-ce", "rem", "rem-no32-ce"]
    ran_in = {number: [n for n in column(one(number, rows), "n") if n] for number in ("2", "4")}
    assert ran_in == {"2": [1] * 5, "4": [1]}


def test_settings_that_do_not_matter(tmp_path):
    """R9: SCRUB's alpha is no setting of the others, the default's ratio is the default, REM without step 3.1 reads
    masks only on a network trained with them; one's own method may read any. None of it makes another experiment."""
    rows = load(tmp_path, [make_row("cf", alpha=0.1), make_row("cf", alpha=10.0), make_row(ratio=1.0), make_row(),
                           make_row("no-ul", gamma=0.1), make_row("no-ul", gamma=0.3),
                           make_row("rem-no31", p_mem=0.05), make_row(step31=False, ratio=3.0),
                           make_row("a.py:f", alpha=0.1), make_row("a.py:f", alpha=10.0)])
    assert [row["method"] for row in rows] == ["cf", "rem", "no-ul", "rem-no31", "a.py:f", "a.py:f"]
    assert "NOT ONE EXPERIMENT" not in one("mean", rows[:4]).caption
    for field in ("p_mem", "ratio"):
        reads = [reads_setting(field, {"method": "rem", "step31": on, "etd": etd}) for on in (True, False)
                 for etd in (False, True)]
        assert reads == [True, True, False, True]


def test_statistics_in_passes_over_forget(tmp_path):
    """R9: what forget_norm's "auto" comes to is no second run, and the other kind is; where no such pass is made the
    setting is of no concern."""
    for method, other in (("rem", "batch"), ("rem-no31-no32", "running"), ("npo", "running"), ("ascent", "running")):
        ran = dict(method="rem", step31=False, step32=False) if method == "rem-no31-no32" else dict(method=method)
        rows = load(tmp_path, [make_row(**ran), *(make_row(**ran, forget_norm=norm) for norm in ("running", "batch"))])
        assert [(row["method"], row["forget_norm"]) for row in rows] == [(method, "auto"), (method, other)]
    assert len(load(tmp_path, [make_row("cf"), make_row("cf", forget_norm="batch")])) == 1
    assert len(load(tmp_path, [make_row("a.py:f"), make_row("a.py:f", forget_norm="batch")])) == 2


def test_the_pair_of_confusion(tmp_path):
    """R9: other confused classes are another experiment; the customary pair may be named; poison confuses none."""
    def got(*rows):
        loaded = load(tmp_path, rows)
        return len(loaded), "differ in pair" in one("mean", loaded).caption

    swap = dict(task="confusion")
    assert got(make_row(**swap), make_row(**swap, pair="1,2", seed=1)) == (2, True)
    assert got(make_row(**swap), make_row(**swap, pair="3, 5")) == (1, False)
    assert got(make_row(**swap), make_row(**swap, pair="5,3", seed=1)) == (2, False)
    mini = dict(swap, dataset="fashion-mini")  # which has no customary pair
    assert got(make_row(**mini), make_row(**mini, pair="3,5", seed=1)) == (2, True)
    assert got(make_row(), make_row(pair="1,2")) == (1, False)
    assert got(make_row(), make_row(**swap, pair="1,2")) == (2, False)


def test_networks_that_are_not_the_same(tmp_path):
    """V6: another setting at another rate is another network; one that failed at a rate and not at another is no
    failure; of one at two rates the later row counts."""
    rows = load(tmp_path, [make_row("no-ul", discovery=0.1), make_row("no-ul", discovery=0.5, lr=0.1),
                           make_row("no-ul", discovery=1.0, lr=0.1, status="failed")])
    got = line(one("mean", rows), method="no-ul")
    assert (got["n"], got["failed"]) == (2, 0)
    rows = load(tmp_path, [make_row("no-ul", 0.3, discovery=1.0), make_row("no-ul", 0.6, discovery=0.1)])
    assert [row["healed"] for row in networks(rows)] == [0.6]
    assert len(networks(load(tmp_path, grid(["no-ul"], rates=(0.1, 0.5))))) == 3  # a task each
