"""The READMEs and .ci/run: their commands run, the names in them exist, every property has its tests (R6).

Their tables are compared with the rows by `results/make.py --check`, which .ci/run calls.
"""

import importlib
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import conftest
import index
import run
from experiment.settings import OF_THE_RUN, Config, resolve
from study import plan

ROOT = Path(run.__file__).resolve().parent
PAGES = [*(ROOT / place / "README.md" for place in ("", "repair", "study")), *sorted(ROOT.glob("results/**/README.md"))]
DOCS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}
README = DOCS["README.md"]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
INSTALL = "python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt && "
SMALL = ["--epochs", "1", "--unlearn-epochs", "1", "--n", "20", "--width", "0.1", "--max-passes", "1", "--gamma", "1",
         "--quiet"]


def commands():
    """Every call of run.py in the READMEs, each once, as argument lists that begin with the program."""
    lines = [line for text in DOCS.values() for kind, block in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
             if kind == "bash" for line in block.replace("\\\n", " ").splitlines() if "run.py" in line]
    for text in DOCS.values():
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        lines += [" ".join(found.split()) for found in re.findall(r"python (run\.py [^`;]*)[`;]", prose)]
    found = [tuple(re.search(r"run\.py.*", line)[0].split("#")[0].split()) for line in lines]
    return [argv for argv in dict.fromkeys(found) if argv[1:] != ("--help",)]


@pytest.mark.parametrize("argv", commands(), ids=" ".join)
def test_every_command_is_understood(argv):
    """R6: every command in the READMEs parses, flags and values; a grid's cells and its preset exist."""
    program, *argv = [{"$seed": "0", "N": "120", "D": "0.5"}.get(word, word) for word in argv]
    word = None if argv[0].startswith("-") else argv[0]
    given = vars(run.parser(word).parse_args(argv))
    if word is None:
        run.choose_methods(resolve(given))
    elif given.pop("word") == "grid":
        axes = {name: text for name, text in given.items() if name in {f.name for f in fields(Config)} - OF_THE_RUN}
        assert plan.preset(given["preset"], axes) if given.get("preset") else plan.expand_axes(axes)


def test_the_first_command_runs(tmp_path):
    """R6, R1: the README's main command, word for word but for its size, ends well; the output that the README shows
    has the columns and methods that it prints."""
    line = next(line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if "run.py" in line)
    assert line.startswith(INSTALL)
    argv = line.split("run.py", 1)[1].split()
    done = subprocess.run([sys.executable, ROOT / "run.py", *argv, *SMALL, "--out", tmp_path / "x"],
                          capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    printed = done.stdout.splitlines()[1:]
    shown = re.search(r"<!-- output -->\n```\n(.*?)```\n<!-- /output -->", README, re.DOTALL)[1].splitlines()
    start = shown.index(printed[0].strip())
    names = [row.split()[0] for row in printed]
    assert names == ["method", *Config.method.split(",")]
    assert [row.split()[0] for row in shown[start : start + len(names)]] == names


@pytest.mark.filterwarnings("ignore:(NOT REPAIRED|HARMED)")  # the network of the example is untrained
def test_python_blocks_run():
    """R6: the READMEs' Python runs as it stands."""
    blocks = {name: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for name, text in DOCS.items()}
    assert blocks["README.md"] and blocks["repair/README.md"]
    for name, block in ((name, block) for name, found in blocks.items() for block in found):
        exec(compile(block, name, "exec"), {})


def test_ci_runs_the_test_command_word_for_word():
    """R6: .ci/run holds the README's test command, and checks the tables."""
    tests = next(block.strip() for kind, block in BLOCKS if kind == "bash" and "pytest" in block)
    assert tests == INSTALL + ".venv/bin/python -m pytest"
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert tests in script.splitlines()
    assert "results/make.py --check" in script


@pytest.mark.parametrize("doc", DOCS)
def test_names_in_the_readmes_exist(doc):
    """R6: every file, module, function and link that a README names is there."""
    text = DOCS[doc]
    for module, name in re.findall(r"`(\w+)\.(\w+(?:\.\w+)*)`", text):
        if (ROOT / f"{module}.py").exists() and name not in ("py", "csv", "png"):
            found = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
    for path in re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|md|jsonl|txt|cff))`", text):
        if "dd24505" in text and path.startswith(("benchmarks/", "examples/")):  # the commit that holds what has left
            continue
        places = ROOT, (ROOT / doc).parent, ROOT / "tests", ROOT / "tests" / "paper"
        assert any((at / path).exists() for at in places) or path.startswith("runs/"), path
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert ((ROOT / doc).parent / link).exists(), link


def test_every_property_has_its_tests():
    """R6: no property of tests/properties.md without a test, and no test that names another; an auditor's hour in
    tests/README.md has the lines that its files have."""
    assert set(index.held()) == set(index.stated()), set(index.held()) ^ set(index.stated())
    assert index.hour() in index.README.read_text(encoding="utf-8"), "run python tests/index.py --write"


def test_every_test_file_is_run_once():
    """R6: the parts that `python -m pytest` gives to other processes are the files of these rooms, each once."""
    found = [ROOT / name for names in conftest.parts().values() for name in names]
    tests = [path for place in found for path in ([place] if place.is_file() else place.rglob("test_*.py"))]
    rooms = [path for room in conftest.BESIDE for path in (ROOT / "tests" / room).rglob("test_*.py")]
    assert sorted(tests) == sorted(rooms) and len(rooms) > 50
