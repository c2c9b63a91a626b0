"""pandas and matplotlib are optional: report and make.py say what they need, and nothing else imports them (R2, R7)."""

import subprocess
import sys

import pytest

from made_rows import ROOT, make_row, write

WITHOUT = "import runpy, sys; sys.modules[{0!r}] = None; sys.path.insert(0, {1!r}); sys.argv = {2!r}\n" \
          "runpy.run_path(sys.argv[0], run_name='__main__')"
FIGURE = ["--figure", "3", "--out", "o"]


@pytest.mark.parametrize("package, script, words", [
    ("pandas", "run.py", ["report", "x.jsonl"]), ("matplotlib", "run.py", ["report", "x.jsonl", *FIGURE]),
    ("pandas", "results/make.py", ["--check"])])
def test_without_a_package(tmp_path, package, script, words):
    """R2: a real process without pandas makes no table, and without matplotlib draws no figure: one line that names the
    package and the command that installs it, exit code 2, and nothing is written."""
    write(tmp_path / "x.jsonl", [make_row()])
    code = WITHOUT.format(package, str(ROOT), [str(ROOT / script), *words])
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    name = " ".join([script, *words[:1]]) if script == "run.py" else script
    assert done.stderr == f"{name} needs {package}: pip install -r requirements-optional.txt\n"
    assert {path.name for path in tmp_path.iterdir()} == {"x.jsonl"}


@pytest.mark.parametrize("words", [
    ["--task", "poison", "--discovery", "0.5", "--method", "no-ul", "--epochs", "1", "--n", "20", "--width", "0.1"],
    ["grid", "--preset", "quick", "--dry-run", "--out", "o"], ["repair", "--help"], ["report", "--help"]])
def test_what_asks_for_neither_imports_neither(tmp_path, words):
    """R7: a single cell, a grid, and every help run where neither is installed."""
    code = WITHOUT.format("pandas", str(ROOT), [str(ROOT / "run.py"), *words])
    code = code.replace("import runpy, sys;", "import runpy, sys; sys.modules['matplotlib'] = None;")
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
