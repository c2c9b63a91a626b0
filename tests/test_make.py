"""results/make.py, kinds.py: markers are read, tables are what their rows give, each mistake is told, a page is made
once."""

import re
from collections import defaultdict
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pandas", reason="tables need pandas: pip install -r requirements-optional.txt")

from made_rows import grid, make_row, noting, write  # noqa: E402
from results import kinds, make  # noqa: E402

TRIAL = {"network": "n", "corruption": "patch", "seed": 0, "healed": 0.5, "utility": 0.8}
SCORES = st.integers(0, 1000).map(lambda value: value / 1000)


def page(tmp_path, marker: str, rows=None, name="rows.jsonl"):
    """A page with one table, and the file of its rows beside it."""
    path = tmp_path / "README.md"
    if rows is not None:
        write(tmp_path / name, rows)
    marker = marker.replace("ROWS", str(tmp_path / name))
    path.write_text(f"# Title\n\n<!-- table: {marker} -->\n<!-- end -->\n\nMore.\n")
    return path


def made(tmp_path, marker: str, rows) -> list[list[str]]:
    """The header and the lines of the table that a marker makes."""
    kinds.frame_at.cache_clear()
    write(tmp_path / "rows.jsonl", rows)
    text = kinds.table_of(marker.replace("ROWS", str(tmp_path / "rows.jsonl")))
    lines = [line for line in text if line.startswith("|")]
    header, _, *rest = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [header, *rest]


@pytest.fixture(autouse=True)
def fresh():
    """No rows that another test has read."""
    kinds.frame_at.cache_clear()


# --- Pages ------------------------------------------------------------------------------------------------------------


def test_a_page_is_made_once(tmp_path, capsys):
    """R18: a page is written anew, what stands between markers alone changes, and a second run changes nothing."""
    path = page(tmp_path, "product ROWS against=rem", grid(["rem", "npo"], seeds=(0, 1)))
    assert make.main(["--check", str(path)]) == 1 and "line 4" in capsys.readouterr().out
    assert make.main([str(path)]) == 0
    text = path.read_text()
    assert text.startswith("# Title\n\n<!-- table: product ") and text.endswith("\n<!-- end -->\n\nMore.\n")
    assert "| method | product | seeds × cells | minus rem |" in text and "<sub>seeds 0, 1" in text
    assert make.rewritten(text) == text and make.main(["--check", str(path)]) == 0
    capsys.readouterr()


def test_a_changed_row_changes_the_table(tmp_path, capsys):
    """R18: --check names the page and the first line that the rows do not give, and writes nothing."""
    rows = grid(["rem", "npo"])
    path = page(tmp_path, "product ROWS", rows)
    assert make.main([str(path)]) == 0
    before = path.read_text()
    kinds.frame_at.cache_clear()
    write(tmp_path / "rows.jsonl", [{**row, "product": 0.5} for row in rows])
    capsys.readouterr()
    assert make.main(["--check", str(path)]) == 1
    said = capsys.readouterr().out
    assert str(path) in said and "| 50.0 |" in said and said.count("\n") == 1 and path.read_text() == before


MISTAKES = {
    "chart ROWS": "unknown kind of table 'chart'",
    "product": "names no file",
    "product results/nowhere": "no file or folder results/nowhere",
    "product ROWS:scrub": "no row of scrub",
    "product ROWS method=scrub": "no row has method=scrub",
    "product ROWS colour=red": "'colour' is neither an option of this kind of table",
    "product ROWS against=scrub": "against=scrub is no line",
    "product ROWS columns=product,colour": "unknown column 'colour'",
    "product ROWS by=arch": "rows differ in one cell",
    "product ROWS by=colour": "no row has the field 'colour'",
    "product ROWS names=rem": "write \"old: new; old: new\"",
    "product ROWS names='scrub: x'": "names has 'scrub', which is not in the table",
    "product 'ROWS": "does not parse",
    "means ROWS": "needs show=...",
    "means ROWS show=colour": "no row has a score 'colour'",
    "pairs ROWS first=rem": "needs less=...",
    "pairs ROWS first=rem less=scrub": "no cell has method rem and scrub",
}


@pytest.mark.parametrize("marker", MISTAKES)
def test_a_mistake_is_one_line(tmp_path, capsys, marker):
    """R18: a marker with a mistake ends with exit 2 and one line with page, line and mistake; nothing is written."""
    path = page(tmp_path, marker, grid(["rem", "npo"]))
    before = path.read_text()
    assert make.main([str(path)]) == 2
    said = capsys.readouterr().err
    assert re.search(r"README.md: line 3: ", said) and MISTAKES[marker] in said and said.count("\n") == 1
    assert path.read_text() == before


@pytest.mark.parametrize("text, message", [
    ("<!-- table: product ROWS -->\n", "line 1: the table is not closed"),
    ("<!-- table: product ROWS -->\n<!-- table: product ROWS -->\n<!-- end -->\n", "line 1: the table is not closed"),
    ("text\n<!-- end -->\n", "line 2: an end without a table"),
    ("<!-- table product ROWS -->\n<!-- end -->\n", "line 1: '<!-- table product"),
])
def test_markers_are_closed(tmp_path, text, message):
    """R18: an end without a table, a table without an end and half a marker are mistakes."""
    write(tmp_path / "rows.jsonl", grid(["rem"]))
    with pytest.raises(ValueError, match=re.escape(message)):
        make.rewritten(text.replace("ROWS", str(tmp_path / "rows.jsonl")))


# --- Numbers ----------------------------------------------------------------------------------------------------------


def numbers(cell: str):
    """The numbers in a cell, to within what one decimal rounds."""
    return pytest.approx([float(found) for found in re.findall(r"[+-]?[\d.]+", cell)], abs=0.0501)


def percent(values) -> list[float]:
    """Mean and SEM in percent, from the definition; no SEM of one value."""
    errors = [100 * stdev(values) / len(values) ** 0.5] if len(values) > 1 else []
    return [100 * fmean(values), *errors]


@given(st.lists(st.tuples(*[SCORES] * 4), min_size=1, max_size=4))
def test_means_and_differences_over_seeds(tmp_path_factory, seeds):
    """R18: product's means, SEM and paired differences are those of each seed's mean over its cells."""
    cells = [("poison", 0.1), ("poison", 1.0)]
    rows = [make_row(method, scores[2 * k + c], 1.0, task=task, discovery=rate, seed=seed)
            for seed, scores in enumerate(seeds) for k, method in enumerate(("rem", "npo"))
            for c, (task, rate) in enumerate(cells)]
    folder = tmp_path_factory.mktemp("rows")
    own = {m: [fmean(scores[2 * k : 2 * k + 2]) for scores in seeds] for k, m in enumerate(("rem", "npo"))}
    less = [a - b for a, b in zip(own["npo"], own["rem"], strict=True)]
    header, *lines = made(folder, "product ROWS against=rem columns=product,seeds,minus", rows)
    found = {line[0]: dict(zip(header, line, strict=True)) for line in lines}
    count = f"{len(seeds)} × 2"
    for name in own:
        assert percent(own[name]) == numbers(found[name]["product"]) and found[name]["seeds × cells"] == count
    assert percent(less) == numbers(found["npo"]["minus rem"]) and found["rem"]["minus rem"] == ""
    _, line = made(folder, "pairs ROWS by=task first=npo less=rem", rows)
    for values, cell in zip((own["npo"], own["rem"], less), line[1:4], strict=True):
        assert percent(values) == numbers(cell)
    assert line[0] == "poison" and line[4] == count and line[3][0] in "+-"


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), SCORES, SCORES), min_size=1, max_size=12))
def test_means_of_any_lines(tmp_path_factory, drawn):
    """R18: means over the lines of a file, a line and a column for each value, in percent or as they are."""
    rows = [{"network": a, "kind": b, "healed": h, "before": {"healed": u}} for a, b, h, u in drawn]
    parts = defaultdict(list)
    for row in rows:
        parts[row["network"], row["kind"]].append(row)
    marker = "means ROWS by=network across=kind show=before.healed#1>healed%1 all=yes count=runs"
    header, *lines = made(tmp_path_factory.mktemp("rows"), marker, rows)
    assert header[:2] == ["network", "runs"] and header[-1] == "all"
    assert len(header) == 3 + len({row["kind"] for row in rows})
    for name, runs, *cells in lines:
        mine = {kind: parts.get((name, kind), []) for kind in header[2:-1]}
        mine["all"] = sum(mine.values(), [])
        assert int(runs) == len(mine["all"])
        for part, cell in zip(mine.values(), cells, strict=True):
            found = [[row["before"]["healed"] for row in part], [100 * row["healed"] for row in part]]
            both = [fmean(values) for values in found if values]
            assert both == numbers(cell) and (" -> " in cell) == bool(part)


def test_an_error_over_a_field(tmp_path):
    """R18: means with sem give the SEM over the values of a field, of each value's mean."""
    rows = [make_row("rem", healed, 1.0, seed=seed, discovery=rate)
            for seed, rate, healed in ((0, 0.1, 0.2), (0, 1.0, 0.4), (1, 0.1, 0.5), (1, 1.0, 0.7))]
    assert made(tmp_path, "means ROWS show=healed%1 sem=seed", rows)[1] == ["rem", "45.0 ± 15.0"]


def test_differences_are_of_the_cells_that_both_have(tmp_path):
    """R18: a method with fewer seeds is compared in its own; what reads no D_f is the same at every rate."""
    rows = [row for row in grid(["rem", "npo", "no-ul"], seeds=(0, 1)) if row["method"] != "npo" or row["seed"] == 1]
    lines = made(tmp_path, "product ROWS against=rem columns=seeds,minus", rows)[1:]
    found = {line[0]: line[1:] for line in lines}
    assert found["npo"][0] == "1 × 6" and "±" not in found["npo"][1] and found["no-ul"][0] == "2 × 3"
    for name, cells in (("npo", "1 × 6"), ("no-ul", "2 × 6")):
        (line,) = made(tmp_path, f"pairs ROWS by=arch first={name} less=rem", rows)[1:]
        assert (line[3].lstrip("+"), line[4]) == (found[name][1], cells)


def test_how_much_of_the_way_to_the_oracle(tmp_path):
    """R18: reachable is each seed's gain over the untouched network, over that of retraining at discovery 1."""
    scores = {("no-ul", 1.0): (0.1, 0.2), ("retrain", 0.5): (0.3, 0.2), ("retrain", 1.0): (0.9, 0.6),
              ("rem", 0.5): (0.5, 0.4), ("rem", 1.0): (0.5, 0.64)}
    rows = [make_row(method, healed, 1.0, seed=seed, discovery=rate)
            for (method, rate), both in scores.items() for seed, healed in enumerate(both)]
    found = {line[0]: line[1] for line in made(tmp_path, "product ROWS columns=reachable", rows)[1:]}
    # seed 0: (0.5 - 0.1) / (0.9 - 0.1) = 0.5;  seed 1: ((0.4 + 0.64) / 2 - 0.2) / (0.6 - 0.2) = 0.8
    assert found == {"rem": "65 ± 15", "retrain": "56 ± 6", "no-ul": "0 ± 0"}


def test_variants_are_named_by_their_settings(tmp_path):
    """R18: a variant is its method with the changes of REM+ that are off, and others where a method has several values;
    rows of `rem` before 0.7 are of REM+."""
    rows = [make_row("rem-plus", dataset="fashion-mini", **more) for more in (
        {}, {"reach": 0.0}, {"reach": 0.0, "stop": "max"}, {"unlearn_epochs": 5})]
    rows += [{**make_row("rem", dataset="fashion-mini", seed=1), "version": "0.6.3"},
             make_row("npo", dataset="fashion-mini")]
    names = [line[0] for line in made(tmp_path, "means ROWS by=variant show=product", rows)[1:]]
    assert names == ["rem-plus", "rem-plus --reach 0", "rem-plus --reach 0 --stop max", "rem-plus --unlearn-epochs 5",
                     "npo"]
    assert [line[0] for line in made(tmp_path, "each ROWS by=method show=product", rows[4:])[1:]] == ["rem-plus", "npo"]


def test_every_seed_spread_and_growth(tmp_path):
    """R18: each lists the seeds' values, spread has mean, SD, least and most, growth a slope of 2 for a square."""
    rows = [noting(make_row("rem", 0.1 * seed, seed=seed), base=(1.0, 0.5), healed=(0.0, 0.2)) for seed in (2, 1)]
    line = made(tmp_path, "each ROWS show=healed,after:points.1.healed", rows)[1]
    assert line == ["rem", "10 / 20", "15.0", "20 / 20", "20.0"]
    plain = [{"kind": "a", "size": k, "seconds": k**2, "share": k / 10} for k in (4, 1, 2)]
    assert made(tmp_path, "spread ROWS show=part:share", plain)[1] == ["part", "23.3", "15.3", "10.0", "40.0"]
    line = made(tmp_path, "growth ROWS by=kind along=size show=seconds#0", plain)[1]
    assert line == ["a", "1 / 2 / 4", "1 / 4 / 16", "2.00"]


def test_lines_that_are_no_runs(tmp_path):
    """R18: trials count as cells of a network and corruption; `open` makes rows of the entries of a list; of rows alike
    in `last` the last one counts."""
    rows = [{**TRIAL, "treatment": name, "healed": h, "tried": [{"rate": 1, "healed": h}, {"rate": 2, "healed": 1.0}]}
            for name, h in (("a", 0.5), ("b", 0.25), ("b", 0.75))]
    lines = made(tmp_path, "product ROWS by=treatment cell=network,corruption against=a last=treatment,seed", rows)
    assert lines[1:] == [["b", "60.0", "1 × 1", "20.0"], ["a", "40.0", "1 × 1", ""]]
    opened = made(tmp_path, "means ROWS open=tried by=treatment,rate show=healed treatment=a names='a: method a'", rows)
    assert opened[1:] == [["method a", "1", "50"], ["method a", "2", "100"]]


def test_the_pages_have_tables_alone(capsys):
    """R18: every page of the repository with tables of rows has markers, and pages that tell of results have some."""
    found = {str(path.relative_to(make.ROOT)): path.read_text(encoding="utf-8") for path in make.pages()}
    assert "README.md" in found and sum("<!-- table: " in text for text in found.values()) > 20
    for name, text in found.items():
        if name.startswith("results/") and name != "results/rivals/README.md":
            bare = re.sub(r"<!-- table: .*?<!-- end -->", "", text, flags=re.DOTALL)
            assert "<!-- table: " in text and not re.search(r"^\|", bare, re.MULTILINE), name
            assert len(text) < 11_000, name
