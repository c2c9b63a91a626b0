"""The command line (run.py): `python run.py` for one cell, and a first word for everything else."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import run
from experiment.cell import new_model
from experiment.datasets import fingerprints, load
from experiment.rows import provenance
from experiment.settings import Config, resolve
from few_images import few, fresh, refusal  # noqa: F401
from helpers import make_dataset, rows_of
from pictures import write_tree
from tasks import TASKS

ROOT = Path(run.__file__).resolve().parent
QUICK = ["--epochs", "1", "--unlearn-epochs", "1", "--n", "20", "--width", "0.05", "--batch", "64", "--max-passes", "2",
         "--device", "cpu"]
PART = ["--per-class", "30", "--per-class-test", "10"]  # of the built-in data, for a process of its own
TIMES = {"seconds", "train_seconds", "argv", "out"}  # what may differ between two runs of one command
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {
    "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
# In a few passes rounding decides whether gamma is reached.
pytestmark = pytest.mark.filterwarnings("ignore:Acc")


def started(*command, cwd) -> subprocess.Popen:
    """The real command line, in a process of its own."""
    return subprocess.Popen([sys.executable, ROOT / "run.py", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, env=ENVIRONMENT, cwd=cwd)


# --- What is loaded ---------------------------------------------------------------------------------------------------

LOADED = """
import contextlib, sys
import run
with contextlib.suppress(SystemExit):
    run.main(sys.argv[1:])
print(*sorted({name.partition(".")[0] for name in sys.modules} & {"study", "repair"}))
"""


@pytest.mark.parametrize("argv, loaded", [([*QUICK, *PART, "--method", "no-ul", "--out", "x"], ""),
                                          (["repair", "--help"], "repair")])
def test_what_is_loaded(tmp_path, argv, loaded):
    """R15: a cell loads nothing of study/ or repair/, and a repair nothing of study/."""
    done = subprocess.run([sys.executable, "-c", LOADED, *argv], cwd=tmp_path, text=True, capture_output=True,
                          env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)}, timeout=300)
    assert (done.stdout.splitlines()[-1], done.stderr) == (loaded, "")


@pytest.mark.parametrize("word", ["grdi", "Grid", "poison"])
def test_an_unknown_word(capsys, word):
    """R15, R2: an unknown first word is one line on stderr that names those that there are, and exit code 2."""
    err = refusal(capsys, word, "--epochs", "1")
    assert err.startswith("run.py: ") and repr(word) in err and all(known in err for known in run.WORDS)


@pytest.mark.parametrize("word", run.WORDS)
def test_an_unknown_flag_behind_a_word(capsys, word):
    """R2: behind a word, too, an unknown flag is one line that names command and flag, and exit code 2."""
    needed = {"repair": ["--data", "d", "--model", "m", "--checkpoint", "c", "--bad", "b", "--out", "o"]}.get(word, [])
    needed = ["results"] if word == "report" else needed
    told = refusal(capsys, word, *needed, "--no-such-flag")
    assert told == f"run.py {word}: unrecognized arguments: --no-such-flag\n"


# --- Running ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_every_task_and_method_runs(few, tmp_path, capsys, task):  # noqa: F811
    """R1, R3: every task and method runs on the built-in data and leaves one good row each, of which the table shows
    the scores; it knows the images before the corruption. With --etd in tests/study/test_grid.py."""
    out, methods = tmp_path / "cells.jsonl", "all" if task == "random" else "no-ul,cf,npo,rem"
    assert run.main(["--task", task, "--method", methods, "--out", str(out), *QUICK]) == 0
    rows, printed = rows_of(out), capsys.readouterr().out
    assert {row["status"] for row in rows} == {"ok"} and len({row["method"] for row in rows}) == len(rows) >= 4
    for row in rows:
        assert row["task"] == task and row["etd"] is False
        assert row["images"] == fingerprints(run.load("fashion-mini"))
        assert all(0 <= row[key] <= 1 for key in ("healed", "healed_undiscovered", "utility", "product"))
        assert row["product"] == row["healed"] * row["utility"]
        assert re.search(rf"^{re.escape(row['method'])} +{100 * row['healed']:.1f} ", printed, re.MULTILINE)


def test_the_command_itself(tmp_path):
    """R1, R3: a real process on the real built-in data: what it prints and what it leaves."""
    out = tmp_path / "new" / "cells.jsonl"
    # at gamma 1 step 2 makes no pass, so nothing can warn on any CPU
    argv = ["--task", "poison", "--discovery", "0.5", *QUICK, *PART, "--n", "60", "--gamma", "1", "--out", str(out)]
    process = started(*argv, cwd=tmp_path)
    printed, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "")
    first, second, *lines = printed.splitlines()
    size = sum(p.numel() for p in new_model(resolve({"width": 0.05}), load("fashion-mini")).parameters())
    assert first == "poison on fashion-mini: 300 images of 16x16, 60 corrupted, 30 of them discovered (50%)"
    assert second.startswith(f"resnet9 at 50% capacity, {size:,} parameters; seed 0; cpu (")
    assert lines[0].startswith("train    epoch   1/1  loss ")
    assert lines[-1] == f"rows appended to {out}"
    assert [row["method"] for row in rows_of(out)] == ["no-ul", "cf", "npo", "rem", "rem-plus"]
    assert sorted(tmp_path.rglob("*")) == [out.parent, out]  # nothing else is left behind


def test_same_command_same_numbers(few, tmp_path, capsys):  # noqa: F811
    """R4, R1: the same bytes in rows, times aside; another seed gives others. --quiet leaves the table alone."""
    kept = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        out = tmp_path / name
        assert run.main(["--seed", seed, "--out", str(out), "--quiet", *QUICK]) == 0
        kept.append([json.dumps({k: v for k, v in row.items() if k not in TIMES | {"seed"}}) for row in rows_of(out)])
        names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
        assert names == ["method", "no-ul", "cf", "npo", "rem", "rem-plus"]  # of which no flag named any
    assert kept[0] == kept[1] != kept[2]


def test_a_row_holds_what_reproduces_it(tmp_path, monkeypatch):
    """R3: name, folder, size and download reach the data set; a row has where it comes from, the command and both
    times, and its settings read back make the same Config, of a folder with the whole path."""
    asked = []
    monkeypatch.setattr(run, "load", lambda *args: asked.append(args) or make_dataset(0, size=16))
    monkeypatch.chdir(tmp_path)
    argv = ["--task", "random", "--discovery", "0.3", "--method", "no-ul", "--data-dir", "here", "--image-size", "16",
            "--out", "x", *QUICK, "--n", "4"]
    whole, rows = str(tmp_path.resolve() / "here"), []
    for more, place in ((["--dataset", "cifar10", "--download"], "here"), (["--dataset", "folder"], whole)):
        assert run.main([*argv, *more]) == 0
        row, origin = rows_of("x")[-1], provenance(torch.device("cpu"), [*argv, *more])
        assert {**row, **origin} == row and row["seconds"] > 0 and row["train_seconds"] > 0
        again = resolve({key: value for key, value in row.items() if key in {f.name for f in fields(Config)}})
        assert again == replace(resolve(vars(run.parser().parse_args([*argv, *more]))), data_dir=place)
    assert asked == [("cifar10", "here", 16, True), ("folder", whole, 16, False)]


def test_the_printed_comparison():
    """R1: each number of a row stands in its own column, in percent; what no method could find is a dash, a failure its
    error; long names widen their column."""
    row = {"method": "rem", "status": "ok", "healed": 0.9, "healed_undiscovered": 0.8, "utility": 0.7, "product": 0.63,
           "misled": 0.0, "seconds": 4.25}
    failed = {"method": "cf", "status": "failed", "error": "Odd: it (x.py:1)"}
    long = {**row, "method": "a_long_name.py:of_a_method", "healed_undiscovered": None, "misled": None, "seconds": 12.0}
    empty, *lines = run.table([row, long, failed]).splitlines()
    assert empty == "" and lines[0].split() == ["method", "Healed", "undiscovered", "Utility", "product",
                                                       "ASR", "seconds"]
    assert lines[1].split() == ["rem", "90.0", "80.0", "70.0", "63.0", "0.0", "4.2"]
    assert lines[2].split() == ["a_long_name.py:of_a_method", "90.0", "-", "70.0", "63.0", "-", "12.0"]
    assert lines[3].split(maxsplit=1) == ["cf", "Odd: it (x.py:1)"]
    assert len({len(line) for line in lines[:3]}) == 1


# --- Failures ---------------------------------------------------------------------------------------------------------


def test_a_diverging_method_costs_no_other(few, tmp_path, capsys):  # noqa: F811
    """R3: a method whose loss is not finite is a failed row and a line of the table; the others go on; exit code 1."""
    out = tmp_path / "x"
    argv = ["--method", "cf,no-ul", "--unlearn-lr", "1e30", "--weight-decay", "0", "--quiet", "--out", str(out), *QUICK]
    assert run.main([*argv, "--unlearn-epochs", "3"]) == 1
    bad, good = rows_of(out)
    assert bad["status"] == "failed" and "NonFiniteLoss" in bad["error"] and bad["healed"] is None
    assert good["status"] == "ok" and "NonFiniteLoss" in capsys.readouterr().out


def test_a_diverging_training_is_in_every_row(few, tmp_path):  # noqa: F811
    """R3: where the original network fails to train, every method's row says so."""
    out = tmp_path / "x"
    assert run.main(["--lr", "1e30", "--quiet", "--out", str(out), *QUICK, "--epochs", "3"]) == 1
    assert [row["status"] for row in rows_of(out)] == ["failed"] * 5
    assert all(row["error"].startswith("training: NonFiniteLoss") for row in rows_of(out))


def test_a_full_disk_takes_neither_table_nor_later_methods(few, tmp_path, monkeypatch, capsys):  # noqa: F811
    """R10: where a row cannot be written the next methods run, the table is printed, and the exit code is 1."""
    def full(out, row):
        if row["method"] == "no-ul":
            raise OSError(28, "No space left on device")
        inner(out, row)

    inner, out = run.append_row, tmp_path / "x"
    monkeypatch.setattr(run, "append_row", full)  # no disk is full when a test wants it
    assert run.main(["--method", "no-ul,npo", "--quiet", "--out", str(out), *QUICK]) == 1
    printed, err = capsys.readouterr()
    assert [line.split()[0] for line in printed.splitlines() if line] == ["method", "no-ul", "npo"]
    assert err == f"run.py: no row of no-ul in {out} ([Errno 28] No space left on device)\n"
    assert [row["method"] for row in rows_of(out)] == ["npo"]


SLEEPING = """
import time
def rest(model, data, forget, config, generator):
    print("resting", flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGINT is sent as POSIX does")
def test_ctrl_c_is_one_line_and_keeps_the_rows(tmp_path):
    """R3: SIGINT during the second method ends the process with exit code 130 and one line, without a traceback; the
    first method's row is whole."""
    (tmp_path / "rest.py").write_text(SLEEPING)
    out, method = tmp_path / "x", f"no-ul,{tmp_path / 'rest.py'}:rest"
    argv = ["--method", method, "--quiet", "--out", str(out), *QUICK, "--per-class", "20", "--per-class-test", "5"]
    process = subprocess.Popen([sys.executable, "-B", "run.py", *argv], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, preexec_fn=restore_ctrl_c)
    try:
        assert process.stdout.readline() == "resting\n", process.stderr.read()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("run.py: interrupted; ") and "Traceback" not in err
    assert [row["method"] for row in rows_of(out)] == ["no-ul"]


def restore_ctrl_c() -> None:
    """Let SIGINT raise KeyboardInterrupt, whatever the parent made of it: a script's & switches it off."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("argv, read", [
    ([*QUICK, *PART, "--method", "no-ul", "--quiet"], 0), (["grid", *QUICK, "--dry-run"], 0),
    ([*QUICK, *PART, "--epochs", "300"], 3)], ids=["quiet", "grid", "training"])
def test_a_reader_that_has_enough(tmp_path, argv, read):
    """R2, R3: a pipe that closes, as head may close it, before anything is printed or in the middle of training, ends
    the run with exit code 1, no words, and no row that says a method failed."""
    with started(*argv, "--out", tmp_path / "x", cwd=tmp_path) as process:
        lines = [process.stdout.readline() for _ in range(read)]
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == ("", 1)
    assert not read or lines[-1].startswith("train")
    assert "--quiet" in argv or not list(tmp_path.iterdir())  # a quiet run prints when it is done


# --- Bad input --------------------------------------------------------------------------------------------------------

BAD = [  # one for each place that refuses something before training; what else each of them refuses is in its tests
    (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
    (["--disc", "0.5"], "unrecognized arguments: --disc 0.5"),  # no flag may be abbreviated
    (["--seed"], "expected one argument"),
    (["--epochs", "two"], "invalid int value: 'two'"),
    (["--task", "nonsense"], "invalid choice: 'nonsense'"),
    (["--discovery", "1.5"], "discovery is 1.5; it must be in (0, 1]"),
    (["--method", "rme"], "unknown method 'rme'; choose from no-ul"),
    (["--device", "toaster"], "device 'toaster' is not there"),
    (["--out", "run.py/x"], "cannot write results to run.py/x"),
    (["--dataset", "mnist"], "unknown data set 'mnist': choose from fashion-mini, fashion-mnist, "),
    (["--dataset", "cifar10", "--data-dir", "no/such"], "--download"),
    (["--image-size", "4097"], "at most 4096"),
    (["--per-class", "601"], "--per-class is 601; class T-shirt/top has 600 training images"),
    (["--n", "6001"], "n is 6001; it must be from 1 to 6000"),
    (["--task", "confusion", "--pair", "3"], "pair is '3'; give two class numbers such as 3,5"),
    (["--task", "confusion", "--pair", 5000 * "9" + ",1"], "(5,002 letters)'; give"),
    (["--discovery", "0.01", "--n", "20"], "discovery 0.01 of 20 corrupted examples finds none"),
    (["--n", "6000", "--discovery", "1"], "all 6000 training examples"),
    (["--image-size", "6"], "smaller than ResNet-9 takes"),
    (["--width", "1e12"], "bytes asked for; take a smaller network"),  # more memory than there is
    (["--capacity", "1e-300"], "capacity is 1e-300 and so ratio 1e+300; theta_o2 would take inf GB"),
]


@pytest.mark.parametrize("argv, words", BAD, ids=[" ".join(argv)[:60] for argv, _ in BAD])
def test_bad_input(monkeypatch, tmp_path, capsys, argv, words):
    """R2, R7, T14: one short line on stderr that says what was found and what was expected, exit 2, before any
    training."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(run, "train_original", lambda *a: pytest.fail("training began"))
    err = refusal(capsys, "--out", tmp_path / "x", *argv)
    assert err.startswith("run.py: ") and words in err and len(err) < 500
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["closed", "ascii"])
def test_odd_processes(tmp_path, how):
    """R2: a closed stdout and an encoding without the letters of a path both run to the end."""
    folder, out = tmp_path / "d\u00e4ta", tmp_path / "r\u00f6ws"
    write_tree(folder)
    argv = [ROOT / "run.py", "--dataset", "folder", "--data-dir", folder, *QUICK, "--n", "4", "--batch", "4",
            "--image-size", "8", "--method", "no-ul,rem", "--out", out]
    command = [sys.executable, *map(str, argv)]
    if how == "closed":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    environment = ENVIRONMENT | ({"PYTHONIOENCODING": "ascii"} if how == "ascii" else {})
    done = subprocess.run(command, capture_output=True, env=environment, timeout=300)
    assert (done.returncode, done.stderr.replace(b"warning: Acc", b"").count(b"\n") <= 1) == (0, True), done.stderr
    assert [row["status"] for row in rows_of(out)] == ["ok", "ok"]
    assert (b"r\\xf6ws" if how == "ascii" else b"") in done.stdout
