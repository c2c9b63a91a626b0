"""study/report.py: one table in three formats, and the command `run.py report`."""

import csv
import io
import os
import re
import subprocess
import sys

import pytest

from few_images import refusal
from made_rows import ROOT, grid, load, main, make_row, one, row_of, write
from study import report, tables


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


@pytest.mark.parametrize("name", ["mean", "cells", "1", "2", "plane"])
def test_formats_say_the_same(tmp_path, name):
    """V6: Markdown, LaTeX and CSV parse back to the same cells, in the table's decimals, ticks and empty ones too."""
    rows = load(tmp_path, grid(["rem", "npo", "rem-no31", "my_a|b.py:f_1"], seeds=(0, 1)) + [make_row("cf", 0.25, 0.5)])
    table = one(name, rows)
    assert len(set(table.header)) == len(table.header)
    for k, column_name in enumerate(table.header):  # in CSV columns of means, and no others, have SEMs beside them
        if cells := [row[k] for row in table.rows if row[k] is not None]:
            assert (column_name in table.stats) == any(isinstance(cell, tuple) for cell in cells)
    want = [[report.show(cell, table.digits) for cell in row] for row in (table.header, *table.rows)]
    assert parse_markdown(report.markdown(table)) == want
    assert parse_latex(report.latex(table)) == want
    got = parse_csv(report.as_csv(table), table.stats)
    ticks = {"1": "✓", "0": ""}
    flags = [k for k, column_name in enumerate(table.header) if column_name in ("ETD", "3.1", "3.2")]
    assert [[ticks[c] if k in flags and r else c for k, c in enumerate(row)] for r, row in enumerate(got)] == want
    assert any("±" in cell for row in want for cell in row) and "±" not in report.as_csv(table)


def test_shown_numbers():
    """V6: two decimals; no ± for a single run; nothing for what was not run."""
    assert [report.show(c) for c in ((1.005, None), (66.666, 0.5), None, True, False, 0, "OOM", (0.0, 0.0))] == [
        "1.00", "66.67 ± 0.50", "", "✓", "", "0", "OOM", "0.00 ± 0.00"]


def test_latex_escapes():
    """V6: every special character of LaTeX in a method's name or a caption is escaped."""
    table = tables.Table("x", "A&B", "50 % of #1 {x}", ("method",), [("a_b~c^d\\e$.py:f",)], ())
    text = report.latex(table)
    assert r"a\_b\textasciitilde{}c\textasciicircum{}d\textbackslash{}e\$.py:f \\" in text
    assert r"\caption{A\&B. 50 \% of \#1 \{x\}}" in text


def test_decimals(tmp_path):
    """V6: one in the plane and of the ablations, and two in the others; a mean of 0 is a number too."""
    rows = load(tmp_path, [row_of(p, m, seed=s) for m in ("rem", "rem-ce") for s, p in enumerate((0.50068, 0.0))])
    for name, shown in (("mean", "25.03"), ("plane", "25.0"), ("ablations", "25.0")):
        assert f"| {shown} ± {shown} |" in report.markdown(one(name, rows))
    assert report.as_csv(one("mean", load(tmp_path, [row_of(0.0)]))).splitlines()[1].count(",0.00,") == 3


# --- The command ------------------------------------------------------------------------------------------------------


def test_written_files(tmp_path, capsys):
    """R4: --out has each table in each format asked for, and nothing else; the same call writes the same bytes."""
    source = write(tmp_path / "x.jsonl", grid(["rem", "npo"]))
    argv = [str(source), "--table", "mean,4", "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(files) == {f"{name}.{kind}" for name in ("mean-cifar10-n1000-resnet9-c50-p0.2", "table-4-cifar10-n1000")
                          for kind in ("md", "tex", "csv")}
    assert main(argv) == 0 and files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert main([str(source), "--format", "csv", "--out", str(tmp_path / "one")]) == 0
    assert [path.suffix for path in (tmp_path / "one").iterdir()] == [".csv"]


def test_seeds_that_are_asked_for(tmp_path, capsys):
    """R4: --seeds makes of several seeds' rows what is made of those seeds' rows alone."""
    rows = grid(["rem", "npo"], seeds=(0, 1, 2))
    some = [row for row in rows if row["seed"] > 0]
    whole, alone = str(write(tmp_path / "all.jsonl", rows)), str(write(tmp_path / "some.jsonl", some))
    printed = []
    for argv in ([whole, "--seeds", "1:2:1"], [alone], [whole]):
        assert main([*argv, "--table", "1,mean,plane"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != printed[2]


def test_no_file_takes_the_place_of_another(tmp_path, capsys):
    """R9: data sets whose names come to one file name have a file each, and so have images that lie far down, or in a
    folder whose name has bytes that are no letters."""
    places = *(str(tmp_path / name) for name in ("a b", "a-b", "A-B")), "/" + "b/" * 200, "/pictures\udcff"
    rows = [make_row(healed=0.1 * k, dataset="folder", data_dir=place, image_size=16)
            for k, place in enumerate(places, 1)]
    source = write(tmp_path / "x.jsonl", rows)
    assert main([str(source), "--table", "mean", "--out", str(tmp_path / "o")]) == 0
    found = list((tmp_path / "o").glob("*.csv"))
    assert len({path.name.lower() for path in found}) == 5
    assert capsys.readouterr() == (f"15 files of tables and 0 of figures in {tmp_path / 'o'}\n", "")
    assert {",9.00," in path.read_text() for path in found} == {True, False}  # 0.1 x 0.9, in one of them
    assert report.apart(["a", "b", "A", "a-2", "a"]) == ["a", "b", "A-2", "a-2-2", "a-3"]
    long, most = ["b" * 250, "b" * 249 + "c"], "b" * 200
    cut = report.apart([*long, most])
    assert cut[2] == most and all(name.startswith("b" * 50 + "-") and len(name) == 59 for name in cut[:2])
    assert len(set(cut)) == 3  # by a digest of the whole


def test_rows_from_a_shell(tmp_path, capsys):
    """R2: rows come out of a pipe that is open, as of report <(...); one that nobody has opened would be waited for."""
    source = write(tmp_path / "x.jsonl", [make_row()])
    end, begin = os.pipe()
    os.write(begin, source.read_bytes())
    os.close(begin)
    try:
        assert main([f"/dev/fd/{end}"]) == 0
    finally:
        os.close(end)
    piped = capsys.readouterr().out
    assert main([str(source)]) == 0 and capsys.readouterr().out == piped
    os.mkfifo(tmp_path / "pipe")
    told = refusal(capsys, "report", tmp_path / "pipe")
    assert "pipe (it is no regular file); give a result file" in told and told.startswith("run.py report: cannot read ")


def test_all_tables_skip_what_has_no_rows(tmp_path, capsys):
    """R2: --table all makes what can be made and names the rest on stderr; by number the same is an error."""
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
    (["{file}", "--table", " ,"], "table is ' ,', without a name; choose from mean, cells"),
    (["{file}", "--seeds", "1,4"], "no row has seed 1; there are 0"),
    (["{file}", "--seed", "x"], "--seed is 'x'; it takes int values such as 1,2 or 1:3:1"),
    (["{file}", "--table", "5"], "table 5 has no rows in these results"),
    (["{empty}"], "no rows in "),
    (["{file}", "--out", ""], "--out is empty"),
    (["{file}", "--figure", "4"], "give a folder with --out"),
    (["{file}", "--out", "{file}"], "cannot write into {file} (it is a file); name another folder with --out"),
]


@pytest.mark.parametrize("argv, words", BAD, ids=[" ".join(argv) for argv, _ in BAD])
def test_bad_input(tmp_path, capsys, monkeypatch, argv, words):
    """R2: one line on stderr that names what is wrong, exit code 2, nothing on stdout and nothing written."""
    monkeypatch.chdir(tmp_path)
    names = {"file": str(write(tmp_path / "x.jsonl", [make_row()])), "empty": str(write(tmp_path / "empty.jsonl", []))}
    err = refusal(capsys, "report", *(text.format(**names) for text in argv))
    assert err.startswith("run.py report: ") and words.format(**names) in err and len(list(tmp_path.iterdir())) == 2


def test_without_matplotlib(tmp_path, capsys, monkeypatch):
    """R2: figures without matplotlib are one line that names the command, exit code 2."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    source = str(write(tmp_path / "x.jsonl", [make_row()]))
    err = refusal(capsys, "report", source, "--figure", "3", "--out", tmp_path / "o")
    assert err == "run.py report: figures need matplotlib: pip install -r requirements-figures.txt\n"
    assert not (tmp_path / "o").exists()


def test_the_command_itself(tmp_path):
    """R1: a real process on the results of this repository prints its tables, without matplotlib."""
    code = f"import runpy, sys; sys.argv = ['run.py', 'report', {str(ROOT / 'results')!r}]\n" \
           "try: runpy.run_path('run.py', run_name='__main__')\n" \
           "except SystemExit as stop: assert stop.code == 0 and 'matplotlib' not in sys.modules"
    done = subprocess.run([sys.executable, "-B", "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "**Means: fashion-mini, 120 corrupted" in done.stdout


def test_a_reader_that_has_enough(tmp_path):
    """R2: a pipe that closes early, as head closes it, is no error and leaves no traceback."""
    write(tmp_path / "rows.jsonl", [make_row(seed=seed) for seed in range(30)])
    command = [sys.executable, "-B", str(ROOT / "run.py"), "report", str(tmp_path), "--table", "all"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        process.stdout.close()
        assert b"Broken" not in process.stderr.read() and process.wait(60) == 0
