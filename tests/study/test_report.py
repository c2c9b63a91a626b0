"""The command `run.py report`, and a table of study/tables.py in Markdown and LaTeX."""

import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("pandas", reason="tables need pandas: pip install -r requirements-optional.txt")

from few_images import refusal  # noqa: E402
from made_rows import ROOT, grid, head, lines, load, main, make_row, one, row_of, write  # noqa: E402
from study import tables  # noqa: E402


# --- Formats ----------------------------------------------------------------------------------------------------------


def parse_markdown(text) -> list[list[str]]:
    found = [line for line in text.splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in (found[0], *found[2:])]
    return [[cell.strip().replace("\\|", "|") for cell in row] for row in cells]


def parse_latex(text) -> list[list[str]]:
    for written, plain in ((r"$\pm$", "±"), (r"$\times$", "×"), (r"$\checkmark$", "✓"), (r"\_", "_"), (r"\%", "%"),
                           (r"\&", "&"), ("$|$", "|")):
        text = text.replace(written, plain)
    return [[cell.strip() for cell in line[:-3].split(" & ")] for line in text.splitlines() if line.endswith(r" \\")]


@pytest.mark.parametrize("name", ["mean", "1", "2", "plane"])
def test_formats_say_the_same(tmp_path, name):
    """V6: Markdown and LaTeX parse back to the same cells, in the table's decimals, ticks and empty ones too."""
    rows = load(tmp_path, grid(["rem", "npo", "rem-no31", "my_a|b.py:f_1"], seeds=(0, 1)) + [make_row("cf", 0.25, 0.5)])
    table = one(name, rows)
    assert len(set(head(table))) == len(head(table))
    want = [[tables.shown(cell, table.digits) for cell in row] for row in (head(table), *lines(table))]
    assert parse_markdown(tables.markdown(table)) == want
    assert parse_latex(tables.latex(table)) == want
    assert any("±" in cell for row in want for cell in row)


def test_shown_numbers():
    """V6: two decimals; no ± for a single run; nothing for what was not run."""
    assert [tables.shown(c) for c in ((1.005, None), (66.666, 0.5), None, True, False, 0, "OOM", (0.0, 0.0))] == [
        "1.00", "66.67 ± 0.50", "", "✓", "", "0", "OOM", "0.00 ± 0.00"]


def test_latex_escapes():
    """V6: every special character of LaTeX in a method's name or a caption is escaped."""
    text = tables.latex(tables.table_of("A&B", "50 % of #1 {x}", [{"method": "a_b~c^d\\e$.py:f"}]))
    assert r"a\_b\textasciitilde{}c\textasciicircum{}d\textbackslash{}e\$.py:f \\" in text
    assert r"\caption{A\&B. 50 \% of \#1 \{x\}}" in text


def test_decimals(tmp_path):
    """V6: one in the plane and of the ablations, and two in the others; a mean of 0 is a number too."""
    rows = load(tmp_path, [row_of(p, m, seed=s) for m in ("rem", "rem-ce") for s, p in enumerate((0.50068, 0.0))])
    for name, shown in (("mean", "25.03"), ("plane", "25.0"), ("ablations", "25.0")):
        assert f"| {shown} ± {shown} |" in tables.markdown(one(name, rows))
    assert tables.markdown(one("mean", load(tmp_path, [row_of(0.0)]))).splitlines()[-1].count("| 0.00 ") == 3


# --- The command ------------------------------------------------------------------------------------------------------


def test_written_files(tmp_path, capsys):
    """R4, R9: --out has a file of each table in Markdown and LaTeX, with every data set's, and nothing else; the same
    call writes the same bytes."""
    other = dict(dataset="folder", data_dir="/pictures\udcff", image_size=16)  # a byte that is no letter
    source = write(tmp_path / "x.jsonl", grid(["rem", "npo"]) + grid(["rem"], **other))
    argv = [str(source), "--table", "mean,4", "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    assert capsys.readouterr() == (f"4 files of tables and 0 of figures in {tmp_path / 'out'}\n", "")
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(files) == {f"table-{name}.{kind}" for name in ("mean", "4") for kind in ("md", "tex")}
    for name, content in files.items():
        titles = re.findall(rb"(?:Means|Table 4): (?:cifar10|folder /pictures)", content)
        assert len(titles) == len(set(titles)) == 2, name
    assert main(argv) == 0 and files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


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
     "unknown table '3'; choose from mean, plane, ablations, 1, 2, 4, 5, 6, 7, 8, 9 or all"),
    (["{file}", "--figure", "2", "--out", "o"], "unknown figure '2'; choose from 1, 3, 4"),
    (["{file}", "--table", " ,"], "table is ' ,', without a name; choose from mean, plane"),
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


def test_the_command_itself():
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
