"""study/tables.py and captions.py: means and SEM over runs, the paper's numbers beside ours (Tables 1, 2 and 4-9)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pandas", reason="tables need pandas: pip install -r requirements-optional.txt")

from experiment.methods import METHODS  # noqa: E402
from made_rows import (column, every_cell, grid, head, line, lines, load, make_row, mean_and_sem, noting,  # noqa: E402
                       one, row_of)
from study.tables import PAPER, frame_of, make_tables, summary  # noqa: E402

scores = st.floats(0, 1)


# --- Means ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(scores, scores), min_size=1, max_size=12))
def test_means_against_the_plain_formula(runs):
    """V6, V7: n, mean and stdev / sqrt(n) of the per-run values of each score, times 100."""
    got = summary(frame_of([make_row(healed=h, utility=u, seed=k) for k, (h, u) in enumerate(runs)]))
    plain = {"healed": [h for h, _ in runs], "utility": [u for _, u in runs], "product": [h * u for h, u in runs]}
    assert got == {"n": len(runs), "failed": 0, **{key: mean_and_sem(values) for key, values in plain.items()}}


def test_failed_runs_are_counted_and_named(tmp_path):
    """V19: a failed run is in no mean and in no n; the caption and the column of failures have it."""
    rows = load(tmp_path, [make_row(seed=0), make_row(seed=1, status="failed"),
                           make_row("npo", status="failed", seed=2)])
    table = one("mean", rows)
    got = line(table, method="rem")
    assert (got["n"], got["failed"]) == (1, 1) and got["product"] == (pytest.approx(72.0), None)
    assert "Failed, not averaged: 2 of 3 runs (rem poison 0.5 seed 1; npo poison 0.5 seed 2)" in table.caption
    assert "; 1 run; " in table.caption
    on_etd = one("4", load(tmp_path, [make_row(), make_row(etd=True, status="failed")]))
    assert "1 of 2 runs (rem with ETD poison 0.5 seed 0)" in on_etd.caption
    empty = dict.fromkeys(head(table))
    assert line(table, method="npo") == {**empty, "method": "npo", "n": 0, "failed": 1, "time % (paper)": "0.2"}


def test_descending_order_then_what_was_not_run(tmp_path):
    """V20: ours come in descending order of product, then, empty and in the paper's order, what was not run."""
    runs = [make_row("npo", 0.5), make_row("rem", 0.4), make_row("cf", 0.0), make_row("ascent", status="failed")]
    rows = load(tmp_path, runs)
    table = one("4", rows)
    assert column(table, "method")[:3] == ["npo", "rem", "cf"]
    rest = [(f"{100 * r['capacity']:g}", r["etd"], r["method"]) for r in PAPER["tables"]["4"]["rows"]]
    ran = {row[:3] for row in lines(table)[:3]}
    assert [row[:3] for row in lines(table)[3:]] == [key for key in rest if key not in ran]
    assert all(set(row[4:10:2]) == {None} and row[10] is None and row[9] is not None for row in lines(table)[3:])
    assert line(table, method="ascent", ETD=False, capacity="50")["n"] == 0


@pytest.mark.parametrize("method, etd", [("no-ul", False), ("no-ul", True), ("etd", False), ("etd-ideal", False)])
def test_a_network_counts_once_for_all_rates(tmp_path, method, etd):
    """V6, V19: what reads no D_f is one network a task and seed, not one a rate: n and SEM are of three networks."""
    seeds = [make_row(method, h, 1.0, seed=s, etd=etd, discovery=d) for s, h in enumerate((0.2, 0.4, 0.9))
             for d in (0.1, 0.5, 1.0)]
    rows = load(tmp_path, seeds + [make_row("npo", discovery=d, seed=s, etd=etd) for d in (0.1, 0.5, 1.0)
                                   for s in range(3)])
    want = mean_and_sem((0.2, 0.4, 0.9))
    table = one("mean", rows)
    got = line(table, method=method)
    assert (got["n"], got["product"]) == (3, want) and line(table, method="npo")["n"] == 9
    assert f"{method}: the same network at every discovery rate, counted once." in table.caption
    assert "compare with care" not in table.caption and "; 12 runs;" in table.caption
    if method != "etd-ideal":
        paper = line(one("4", rows), method="no-ul", ETD=etd or method == "etd", capacity="50")
        assert (paper["n"], paper["product"]) == (3, want) and "counted once" in one("4", rows).caption
        alone = "ETD alone" if etd or method == "etd" else "no-ul"
        assert line(one("plane", rows), method=alone)["mean"] == want


def test_the_times(tmp_path):
    """V6: A.8's seconds, and seconds over training seconds, each averaged over the runs that know them, beside the
    paper's. Runs with Fig. 5's points are timed with their measuring: they count where there is no other."""
    def got(rows, method="rem"):
        return [line(one("mean", load(tmp_path, rows)), method=method)[name] for name in ("seconds", "time %")]

    rows = [{**make_row(seed=0), "seconds": 2.0}, {**make_row(seed=1), "seconds": 6.0, "train_seconds": 40.0}]
    assert got(rows) == ["4.0", "12.5"] and got(rows + [{**make_row(seed=2), "seconds": None}]) == ["4.0", "12.5"]
    table = one("mean", load(tmp_path, rows + [make_row("cf")]))
    assert line(table, method="rem")["time % (paper)"] == "10.7" and line(table, method="cf")["time % (paper)"] is None
    assert got([{**make_row("etd"), "seconds": 80.0, "train_seconds": None}], "etd") == ["80.0", None]
    slow = {**noting(make_row(seed=0), base=[1.0]), "seconds": 50.0}
    plain, other = {**make_row(seed=0), "seconds": 4.0}, {**make_row(seed=1), "seconds": 6.0}
    for rows, seconds in (([slow, other], "6.0"), ([slow, plain], "4.0"), ([slow], "50.0")):
        assert got(rows)[0] == seconds


def test_mean_tables_by_group(tmp_path):
    """V19: networks, capacities, ETD, masks, data and numbers of corrupted images are never averaged together."""
    other = [dict(arch="vit"), dict(capacity=1.0), dict(etd=True), dict(p_mem=0.05), dict(dataset="svhn"), dict(n=500)]
    found = make_tables("mean", load(tmp_path, [make_row(), *(make_row(**more) for more in other)]))
    assert len(found) == 7 == len({t.title for t in found}) and all(column(t, "n") == [1] for t in found)
    assert "Means: cifar10, 1000 corrupted, resnet9, capacity 100 %, no ETD, p_mem 0.2" in {t.title for t in found}


def test_networks_without_masks_stand_beside_every_p_mem(tmp_path):
    """V19: what has no mask is one run whatever its p_mem and ratio, compared with REM at each p_mem."""
    rows = [make_row("cf", 0.7), make_row("cf", 0.6, p_mem=0.05, ratio=0.5), make_row("rem", p_mem=0.2),
            make_row("rem", p_mem=0.05)]
    tables = make_tables("mean", load(tmp_path, rows))
    assert [t.title.split()[-1] for t in tables] == ["0.05", "0.2"] and all(column(t, "n") == [1, 1] for t in tables)
    assert all(line(t, method="cf")["Healed"] == (pytest.approx(60.0), None) for t in tables)
    assert not any("NOT ONE EXPERIMENT" in t.caption for t in tables)
    trained = make_tables("mean", load(tmp_path, [make_row("cf", etd=True), make_row("cf", etd=True, p_mem=0.05)]))
    assert [column(t, "n") for t in trained] == [[1], [1]]


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
    """V19: each table takes the rows of its network, capacity, ETD and mask size, and no others."""
    mine, others = PLACES[number]
    rows = load(tmp_path, [make_row(**mine), make_row(seed=1, **mine),
                           *(make_row(healed=0.1, **more) for more in others)])
    table = one(number, rows)
    assert [n for n in column(table, "n") if n] == [2] and [h for h in column(table, "Healed") if h] == [(80.0, 0.0)]
    assert make_tables(number, load(tmp_path, [make_row(**more) for more in others])) == []
    # any data may be in its place
    assert make_tables(number, load(tmp_path, [make_row(**{**mine, "dataset": "fashion-mini"})]))


def test_which_methods_a_table_compares(tmp_path):
    """V19: Tables 1 and 4 have every method but ablations and those that know D_c; Table 2 has the ablations of REM as
    printed."""
    rows = load(tmp_path, grid([*METHODS, "my_file.py:fit"]))

    def ran(number):
        table = one(number, rows)
        return {method for method, n in zip(column(table, "method"), column(table, "n"), strict=True) if n}

    hidden = {"rem-ideal", "rem-no31", "rem-no32", "rem-ce", "etd", "etd-ideal", "rem-on-etd"}
    hidden |= {"rem-plus-ideal", "rem-plus-no31", "rem-plus-no32", "rem-plus-ce"}  # REM+ itself stands beside REM
    assert ran("4") == ran("1") == ({*METHODS} - hidden) | {"my_file.py:fit"}
    assert ran("2") == {"rem", "rem-no31", "rem-no32", "rem-ce"}
    got = line(one("2", rows), method="rem-no31", ETD=False)
    assert (got["3.1"], got["3.2"], got["n"]) == (False, True, 6)


def test_table_1_has_svhn_beside_cifar10(tmp_path):
    """V20: the ViT column is SVHN's where ResNet-9 is CIFAR-10's; other data stay apart; Potion's is the paper's OOM.
    """
    vit = make_row(healed=0.7, arch="vit", dataset="svhn")
    table = one("1", load(tmp_path, [make_row(), *every_cell("rem", 0.7, 0.9, arch="vit", dataset="svhn")]))
    got = line(table, method="rem", ETD=False)
    assert (got["n"], got["ViT n"], got["ViT product"][0]) == (1, 30, pytest.approx(63.0)) and got["difference"] is None
    assert got["ViT difference"] == "-10.27" and line(table, method="potion", ETD=True)["ViT product (paper)"] == "OOM"
    assert "svhn" in table.caption and table.title.startswith("Table 1: cifar10")
    both = one("1", load(tmp_path, [{**make_row(), "images": "1" * 8}, {**vit, "images": "2" * 8}]))
    few = line(both, method="rem", ETD=False)
    assert few["ViT product"] == (pytest.approx(63.0), None) and few["ViT difference"] is None
    assert "NOT ONE" not in both.caption  # other images are those of the other data set
    alone = one("1", load(tmp_path, [vit, make_row("npo", arch="vit", dataset="svhn")]))
    assert alone.title.startswith("Table 1: svhn") and line(alone, method="rem", ETD=False)["n"] is None
    others = [make_row(dataset="fashion-mini", n=1000), make_row(dataset="svhn"), make_row(arch="vit")]
    titles = [table.title.split()[2] for table in make_tables("1", load(tmp_path, [make_row(), *others, vit]))]
    assert titles == ["cifar10,", "fashion-mini,", "svhn,"]
    assert len(make_tables("5", load(tmp_path, [*others, vit]))) == 2  # other tables have one data set each


def test_plain_retrain_in_tables_7_to_9(tmp_path):
    """V20: retrain trains no ETD network: it stands in Tables 7-9 as a plain one, and no other method does; alone it
    makes no table. In Tables 8 and 9 the paper's is less useful than in Tables 4 and 5, which the caption says."""
    places = {"7": dict(dataset="imagenette", capacity=0.9), "8": {}, "9": dict(arch="vit", dataset="svhn")}
    for number, place in places.items():
        plain = [make_row(method, **place) for method in ("retrain", "cf")]
        assert not make_tables(number, load(tmp_path, plain))
        trained = make_row("scrub", etd=True, p_mem=PAPER["tables"][number]["p_mem"], **place)
        table = one(number, load(tmp_path, [*plain, trained]))
        assert line(table, method="retrain")["n"] == 1 and [n for n in column(table, "n") if n] == [1, 1]
        assert "the paper does not say how its is trained" in table.caption
        before = {"8": "4", "9": "5"}.get(number, number)
        below, above = (next(r["utility"][0] for r in PAPER["tables"][name]["rows"] if r["method"] == "retrain")
                        for name in (number, before))
        assert (f"its Utility is below that of Table {before}, which may mean" in table.caption) == (below < above)


def test_one_table_for_each_data_set(tmp_path):
    """V12: data sets and numbers of images stay apart; the caption names the runs, and what Utility is."""
    rows = load(tmp_path, grid(["rem"], seeds=(0, 2)) + grid(["rem"], dataset="fashion-mini") + grid(["rem"], n=500))
    found = make_tables("4", rows)
    assert [t.title for t in found] == ["Table 4: cifar10, 500 corrupted", "Table 4: cifar10, 1000 corrupted",
                                        "Table 4: fashion-mini, 120 corrupted"]
    for words in ("cifar10, 1000 corrupted", "confusion, poison, random", "discovery 0.1, 1;", "seeds 0, 2;", "12 runs",
                  "cpu, threads 2, torch 2.6.0", "CIFAR10", "Healed × Utility (over all classes)."):
        assert words in found[1].caption, words
    # of --table all: Imagenette's own, and data of no table
    assert [t.title for t in make_tables("6", rows, own=True)] == [t.title for t in make_tables("6", rows)[2:]]


# --- What a caption warns of ------------------------------------------------------------------------------------------


A, B = ({"method": f"{name}.py:f", "code": name * 16} for name in "ab")
MIXTURES = [  # what runs have beside the defaults, and what they differ in
    ([{}, dict(discovery=0.1), dict(method="npo"), dict(task="random")], ""),
    ([{}, dict(lr=0.05), dict(beta=2.0)], "lr (0.025, 0.05); beta (1.0, 2.0)"),
    ([A, B, {}], ""),  # two methods of two files
    ([A, {**A, "code": "c" * 16}], f"code ({'a' * 16}, {'c' * 16})"),
    ([dict(images="1" * 8), dict(images=None)], ""),  # an older row does not say
    ([dict(images="1" * 8), dict(images=None), dict(images="2" * 8)], "images (11111111, 22222222)"),
    ([dict(method="rem-ideal"), dict(method="rem-ideal", step32=False)], "step32 (False, True)"),
    ([dict(method="cf"), dict(ratio=0.5), dict(method="rem-ideal", ratio=1.0)], "ratio (0.5, 1.0)"),
    ([dict(method="cf", etd=True, ratio=ratio) for ratio in (0.5, 0.7)], "ratio (0.5, 0.7)"),
    ([dict(method="cf"), dict(method="npo", forget_norm="running"), {}], ""),
    ([dict(method="cf"), dict(method="npo", forget_norm="running"), dict(method="npo")], "forget_norm (auto, running)"),
]


@pytest.mark.parametrize("changes, differ", MIXTURES)
def test_captions_warn_of_mixtures(tmp_path, changes, differ):
    """V19: runs with other settings, on other images, or of one method from two versions of its file are pointed out;
    seeds, rates, tasks and methods are not.
    """
    rows = load(tmp_path, [{**make_row(seed=seed), **change} for seed, change in enumerate(changes)])
    warning = one("mean", rows).caption.partition("NOT ONE EXPERIMENT: the runs differ in ")[2]
    assert warning.partition(". ")[0] == differ


def test_other_cells_are_told(tmp_path):
    """V19: methods that did not run in the same cells are pointed out, and so is a rate with more seeds than another;
    a method that reads no D_f has no rates: at one it covers what the others cover at three."""
    def told(rows) -> tuple[bool, bool]:
        text = one("mean", load(tmp_path, rows)).caption
        return "compare with care" in text, "Not every task and discovery rate has the same seeds" in text

    rows = grid(["rem", "npo"], seeds=(0, 1))
    assert told(rows) == (False, False) and told(rows[:-1]) == (True, True)
    assert told(grid(["rem"]) + grid(["npo"], rates=(0.1, 0.5))) == (True, False)
    rows = grid(["rem"], seeds=(0, 1), rates=(0.1, 0.5, 1.0)) + grid(["no-ul"], seeds=(0, 1), rates=(1.0,))
    assert told(rows) == (False, False) and told(rows[:-1])[0]
    assert told([make_row("no-ul", discovery=0.1), make_row("no-ul", discovery=0.5, seed=1)]) == (False, False)


def test_captions_name_the_commits(tmp_path):
    """V19: rows of more than one commit are pointed out by its first seven characters."""
    rows = [{**make_row(seed=k), "git": git} for k, git in enumerate(("1234567890", "abcdefghij-dirty", None,
                                                                      "1234567890"))]
    assert "Commits: 1234567, abcdefg-dirty, unknown." in one("mean", load(tmp_path, rows)).caption
    assert "Commits" not in one("mean", load(tmp_path, rows[::3])).caption


# --- The paper's numbers ----------------------------------------------------------------------------------------------


def test_no_difference_from_other_data_or_cells(tmp_path):
    """V20: ours less the paper's, not over other data, not where one cell less, one more or one that failed makes it a
    mean over other cells than the paper's 30, nor where the paper has none; more seeds are no other cells."""
    def got(rows, method="rem"):
        table = one("4", load(tmp_path, rows))
        assert "CIFAR10, 1000 corrupted, over its 30 cells (3 tasks × 10 discovery rates); no diff" in table.caption
        return line(table, method=method, ETD=False, capacity="50")["difference"]

    for other in (dict(dataset="svhn"), dict(n=500), dict(image_size=16)):
        assert got(every_cell(**other)) is None
    fewer = line(one("4", load(tmp_path, every_cell(n=500))), method="rem", ETD=False, capacity="50")
    assert (fewer["n"], fewer["product (paper)"]) == (30, (73.40, 1.43))
    whole = every_cell()
    assert got(whole) == "-1.40" == got(whole + every_cell(seed=1)[:5])
    assert got(whole[1:]) is None and got([*whole, make_row(discovery=0.05)]) is None
    assert got([*whole[1:], {**whole[0], "status": "failed"}]) is None
    assert got(every_cell("no-ul")[9::10], "no-ul") == "+40.28"  # has no rates, so the tasks are enough
    assert got(every_cell("no-ul")[:20], "no-ul") is None
    assert got(every_cell("cf")[9::10], "cf") is None and got(every_cell("ssd"), "ssd") is None


SAMPLE = [  # copied by hand from the paper: table, capacity, ETD, method, Healed, Utility, product
    ("1", 0.5, True, "potion", [62.74, 3.73], [62.86, 3.62], [51.30, 3.64]),
    ("2", 0.5, False, "rem-no31", [77.31, 2.07], [90.39, 0.14], [69.82, 1.85]),
    ("4", 1.0, False, "no-ul", [15.24, 0.60], [90.87, 0.15], [13.78, 0.52]),
    ("5", 1.0, False, "ascent", [79.96, 1.16], [82.99, 0.78], [66.56, 1.47]),
    ("6", 0.5, False, "scrub", [67.63, 3.63], [80.66, 0.17], [54.52, 2.89]),
    ("7", 0.9, True, "no-ul", [45.33, 8.25], [78.50, 0.44], [35.53, 6.30]),
    ("8", 0.5, True, "rem", [85.37, 1.77], [89.56, 0.26], [76.38, 1.48]),
    ("9", 0.5, True, "npo", [59.58, 6.42], [84.40, 0.12], [50.37, 5.43]),
]


@pytest.mark.parametrize("number, capacity, etd, method, healed, utility, product", SAMPLE)
def test_numbers_of_the_paper(number, capacity, etd, method, healed, utility, product):
    """V20: paper.json has the numbers that are printed in the paper."""
    (row,) = [r for r in PAPER["tables"][number]["rows"] if (r["capacity"], r["etd"], r["method"]) == (capacity, etd,
        method)]
    assert (row["healed"], row["utility"], row["product"]) == (healed, utility, product)


def test_shape_of_the_papers_tables():
    """V20: every table has all its rows, known methods, descending products, and means with an SEM."""
    sizes = {name: len(table["rows"]) for name, table in PAPER["tables"].items()}
    assert sizes == {"1": 15, "2": 6, "4": 26, "5": 17, "6": 7, "7": 7, "8": 8, "9": 7}
    for table in PAPER["tables"].values():
        products = [row["product"][0] for row in table["rows"]]
        assert products == sorted(products, reverse=True)
        for row in table["rows"]:
            assert row["method"] in METHODS
            for mean, error in (row["healed"], row["utility"], row["product"]):
                assert 0 < mean < 100 and 0 < error < 25


def test_papers_tables_agree_with_each_other():
    """V20: Table 1 is Table 4's 50 % rows without CF and Table 5's products; Table 2's whole REM is Table 1's."""
    def keyed(number, **more):
        keep = [r for r in PAPER["tables"][number]["rows"] if all(r[k] == v for k, v in more.items())]
        return {(r["etd"], r["method"]): (r["healed"], r["utility"], r["product"]) for r in keep}

    first = PAPER["tables"]["1"]["rows"]
    assert keyed("1") == {key: value for key, value in keyed("4", capacity=0.5).items() if key[1] != "cf"}
    assert {(r["etd"], r["method"]): r["vit"] for r in first if r["vit"] != "OOM"} == {
        key: value[2] for key, value in keyed("5", capacity=0.5).items() if key[1] != "cf"}
    assert keyed("2", method="rem") == keyed("1", method="rem")


def test_rem_without_etd_is_of_the_same_p_mem(tmp_path):
    """V19: beside runs on ETD stand those of REM without it that have the same p_mem."""
    rows = load(tmp_path, [row_of(0.6, p_mem=0.2), row_of(0.2, p_mem=0.05), row_of(0.7, "npo", etd=True, p_mem=0.2)])
    (table,) = (table for table in make_tables("mean", rows) if ", with ETD, p_mem 0.2" in table.title)
    assert line(table, method="npo")["minus REM"] == (pytest.approx(10.0), None)


def test_the_time_of_a_failed_run_is_in_no_mean(tmp_path):
    """V19: a failed run has seconds, which do not count."""
    rows = load(tmp_path, [make_row(seed=0), make_row(seed=1, status="failed")])
    got = line(one("mean", rows), method="rem")
    assert (got["seconds"], got["time %"]) == ("5.0", "25.0")
