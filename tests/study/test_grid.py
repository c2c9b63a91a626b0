"""study/grid.py: many cells, killed and resumed at will, over jobs, ranks and processes, with equal numbers."""

import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import run
from experiment.methods import METHODS
from few_images import AXES, FEW, LOUD, QUICK, do, few, fresh, numbers, refusal, statuses  # noqa: F401
from study import grid, originals
from study.grid import Workers, from_torchrun
from study.originals import original_path
from study.plan import by_original, expand_axes
from study.rows import read_rows

ROOT = Path(run.__file__).resolve().parent
REAL = [*QUICK, "--batch", "512"]  # on all of fashion-mini, as other processes see it
# REM and NPO warn: two passes do not always remove D_f.
pytestmark = [pytest.mark.usefixtures("fresh"), pytest.mark.filterwarnings("ignore:Acc")]

OWN = '''
import fcntl, os, signal, time

def fragile(model, data, forget, config, generator):
    if "REM_TEST_DIE" in os.environ and config.seed == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return model

def hanging(model, data, forget, config, generator):
    if "REM_TEST_HANG" in os.environ:
        with open(os.path.join(os.environ["REM_TEST_HANG"], f"{config.seed}.lock"), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write("here")
            file.flush()
            time.sleep(600)
    return model

def picky(model, data, forget, config, generator):
    if config.task == "poison":
        raise RuntimeError("no poison")
    return model
'''


@pytest.fixture
def own(tmp_path):
    """A file of one's own methods."""
    path = tmp_path / "methods" / "own.py"
    path.parent.mkdir()
    path.write_text(OWN)
    yield path
    sys.modules.pop("method_own", None)


# --- Equal numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("etd", ["off", "on"])
def test_rows_are_those_of_a_single_run(few, tmp_path, etd):
    """R4: every method's row in a grid is that of the single command, times aside."""
    axes = ["--task", "random", "--discovery", "0.3", "--method", "all", "--batch", "128"]
    assert do(tmp_path / "grid", *axes, "--etd", etd) == 0
    single = [*FEW, *axes, "--etd" if etd == "on" else "--no-etd", "--out", str(tmp_path / "single")]
    assert run.main(single) == 0
    ours, theirs = numbers(tmp_path / "grid"), numbers(tmp_path / "single")
    assert {row["method"] for row in theirs.values()} - {row["method"] for row in ours.values()} <= {"rem-on-etd"}
    for key, row in ours.items():
        assert json.dumps(row, sort_keys=True) == json.dumps(theirs[key], sort_keys=True)
    assert all(row["status"] == "ok" for row in ours.values()) and len(ours) >= 13


def test_ranks_share_the_work(few, tmp_path, capsys, monkeypatch):
    """R4: each rank trains its own originals and writes its own file; together they are the whole grid, number for
    number, and another number of ranks does nothing again."""
    axes = ["--tasks", "all", "--seeds", "0,1", "--method", "no-ul,npo"]
    assert do(tmp_path / "one", *axes) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert do(tmp_path / "two", *axes) == 0
        assert len(list((tmp_path / "two" / "originals").glob("*.pt"))) == 3 * (int(rank) + 1)
    assert sorted(path.name for path in (tmp_path / "two").glob("*.jsonl")) == ["cells-0.jsonl", "cells-1.jsonl"]
    assert numbers(tmp_path / "two") == numbers(tmp_path / "one") and len(read_rows(tmp_path / "two")) == 12
    before = {path: path.read_bytes() for out in ("one", "two") for path in (tmp_path / out).glob("*.jsonl")}
    capsys.readouterr()
    for world in (1, 3):
        monkeypatch.setenv("WORLD_SIZE", str(world))
        for rank in range(world):
            monkeypatch.setenv("RANK", str(rank))
            assert do(tmp_path / "two", *axes) == do(tmp_path / "one", *axes) == 0
    assert all(line.startswith("0 cells done, 0 of them failed") for line in capsys.readouterr().out.splitlines())
    assert before == {path: path.read_bytes() for out in ("one", "two") for path in (tmp_path / out).glob("*.jsonl")}


# --- Killed, resumed, and beside another ------------------------------------------------------------------------------


def in_a_copy(argv, **calls) -> int:
    """Run the command in a fork of this process in which functions of `os` are other ones; returns the fork's id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of forks beside threads
        child = os.fork()
    if not child:
        try:
            for name, function in calls.items():
                setattr(os, name, function)
            torch.cuda.is_available = lambda: False  # CUDA does not outlive a fork
            os._exit(run.main(argv))
        finally:
            os._exit(99)
    return child


def killed(function, number, argv) -> bool:
    """Run the command in a copy of this process that SIGKILLs itself in its nth call of os.fsync, with the end of the
    file not on the disk yet, or right after its nth os.replace; True if it came to that."""
    inner, calls = getattr(os, function), []

    def deadly(*args):
        inner(*args)
        calls.append(args)
        if len(calls) == number:
            if function == "fsync":
                size = os.fstat(args[0]).st_size
                os.ftruncate(args[0], size - min(size // 2, 150))  # of a file of rows less than its last line
            os.kill(os.getpid(), signal.SIGKILL)

    return os.WIFSIGNALED(os.waitpid(in_a_copy(argv, **{function: deadly}), 0)[1])


def test_killed_at_every_write_and_resumed(few, tmp_path, capsys):
    """R5, R3: SIGKILL in the middle of any write or after it leaves every file readable and loses no finished cell; in
    the end every number is that of an uninterrupted grid."""
    out, axes = tmp_path / "killed", ["--task", "random", "--etd", "both", "--method", "no-ul,npo"]
    argv = ["grid", *FEW, *axes, "--out", str(out)]
    originals.dataset_of(expand_axes({"method": "npo"})[0])  # read once for all copies
    # an original's two files, then rows
    seen, kills = [0], [("fsync", 1), ("replace", 1), ("fsync", 2), ("replace", 2)] * 3
    while killed(*kills.pop(0), argv):
        seen.append(len(read_rows(out)))
        assert seen[-2] <= seen[-1] <= seen[-2] + 2
        assert all("not a whole row" in line for line in capsys.readouterr().err.splitlines())
        for path in (out / "originals").glob("*.task"):
            torch.load(path, weights_only=True)
        for path in (out / "originals").glob("*.pt"):
            originals.read_checked(path, path.stem[-16:])
        assert [path.name for path in out.iterdir() if path.is_file()] in ([], ["cells.jsonl"])
    assert len(read_rows(out)) == 4 and 0 < seen[-1] and len(seen) > 8
    assert do(tmp_path / "whole", *axes) == 0 and numbers(out) == numbers(tmp_path / "whole")


def test_two_grids_on_one_folder(few, tmp_path):
    """R4, R5, R10: two processes that run one command on one folder at once, their files open at the same time, both
    end well; every file is whole, nothing temporary is left, and the numbers are those of one grid."""
    out, axes = tmp_path / "two", ["--task", "random", "--etd", "both", "--method", "no-ul,npo"]
    argv, waiting = ["grid", *FEW, *axes, "--out", str(out)], multiprocessing.get_context("fork").Barrier(2)

    def together(inner):
        """The first two files, an original's, reach the disk in both at once: only so are they surely open at once."""
        calls = []

        def fsync(*args):
            calls.append(args)
            if len(calls) <= 2:
                waiting.wait(60)
            return inner(*args)

        return fsync

    originals.dataset_of(expand_axes({"method": "npo"})[0])  # read once for both
    children = [in_a_copy(argv, fsync=together(os.fsync)) for _ in range(2)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert do(tmp_path / "one", *axes) == 0 and numbers(out) == numbers(tmp_path / "one")
    assert set(statuses(out)) == {("no-ul", "ok"), ("npo", "ok")} and 4 <= len(read_rows(out)) <= 8
    assert Counter(path.suffix for path in (out / "originals").iterdir()) == {".pt": 2, ".task": 2}
    for path in (out / "originals").glob("*.pt"):
        originals.read_checked(path, path.stem[-16:])


def test_done_cells_are_skipped(few, tmp_path, capsys):
    """R5, R8: a wider command does what is new. A preset's cells are done, at the values of the command line where it
    names some."""
    axes = ["--preset", "quick", "--task", "random", "--method", "no-ul,npo"]
    assert do(tmp_path, *axes, "--discovery", "0.5") == 0
    bytes_before = (tmp_path / "cells.jsonl").read_bytes()
    assert do(tmp_path, *axes, "--discovery", "0.5,1") == 0
    assert (tmp_path / "cells.jsonl").read_bytes().startswith(bytes_before)
    assert statuses(tmp_path) == {("no-ul", "ok"): 2, ("npo", "ok"): 2}
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == ["2 cells done"] * 2


def test_rows_of_other_code_are_named(capsys):
    """R5: rows of another commit count as done with one warning that names it; those of this one without a word."""
    origin, dirty = {"git": "a" * 40}, {"git": "a" * 40 + "-dirty"}
    grid.warn_of_other_code([origin, dirty], origin)
    assert capsys.readouterr().err == ""
    grid.warn_of_other_code([origin, {"git": "c" * 40}, {"git": "b" * 40}, {}], origin)
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and ", None, bbbbbbb, ccccccc;" in err


# --- Failures ---------------------------------------------------------------------------------------------------------


def test_a_failed_cell_is_a_row_and_the_grid_goes_on(few, tmp_path, monkeypatch, capsys):
    """R3: out of memory, numbers that are not finite, any exception: a row says so, the rest is done, exit 1. The cell
    counts as done until --retry-failed."""
    axes = ["--task", "random", "--method", "ascent,cf,scrub,npo"]
    with monkeypatch.context() as patch:
        for name, error in (("ascent", torch.OutOfMemoryError("CUDA out of memory")), ("scrub", MemoryError()),
                            ("cf", ZeroDivisionError("oh\nno"))):
            def fail(*args, error=error, **more):
                raise error
            patch.setitem(METHODS, name, replace(METHODS[name], function=fail))
        assert do(tmp_path, *axes) == 1
    rows = {row["method"]: row for row in read_rows(tmp_path)}
    assert [row["status"] for row in rows.values()] == ["failed"] * 3 + ["ok"]
    assert rows["ascent"]["error"].startswith("OutOfMemoryError: CUDA out of memory (test_grid.py:")
    assert rows["cf"]["error"] == "ZeroDivisionError: oh" + rows["cf"]["error"][21:] and rows["cf"]["healed"] is None
    capsys.readouterr()
    assert do(tmp_path, *axes) == 1  # says so again, does nothing
    assert "0 cells done, 0 of them failed, 3 failed before (--retry-failed does them anew)" in capsys.readouterr().out
    assert do(tmp_path, *axes, "--retry-failed") == 0 and len(read_rows(tmp_path)) == 7
    assert {row["status"] for row in numbers(tmp_path).values()} == {"ok"} and do(tmp_path, *axes) == 0


def test_a_process_that_dies_in_training(few):
    """R3: a worker that is killed while it trains leaves a failed row for each cell of this original."""
    ((original, cells),) = by_original(expand_axes({**AXES, "method": "no-ul,npo"}))
    dead = Future()
    dead.set_exception(BrokenProcessPool())
    rows = grid.rows_of(dead, original, cells, {}, None)
    assert [(row["method"], row["error"]) for row in rows] == [(c.method, f"training: {grid.DIED}") for c in cells]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), BrokenPipeError("closed")])
def test_what_no_row_could_tell_ends_a_grid(few, error):
    """R3, R12: an original that cannot be kept, and an output that nobody hears, leave no failed rows."""
    ((original, cells),) = by_original(expand_axes({**AXES, "method": "no-ul,npo"}))
    ended = Future()
    ended.set_exception(error)
    with pytest.raises(type(error)):
        grid.rows_of(ended, original, cells, {}, None)
    if not isinstance(error, BrokenPipeError):  # of a cell it is an outcome
        assert [row["status"] for row in grid.rows_of(ended, None, cells[:1], {}, None)] == ["failed"]


# --- What is printed --------------------------------------------------------------------------------------------------


def test_dry_run_shows_and_leaves_nothing(few, tmp_path, capsys):
    """R2: --dry-run prints every cell below its original and does none."""
    out, axes = tmp_path / "grid", ["--task", "random", "--etd", "both", "--method", "no-ul,npo,etd"]
    assert do(out, *axes, "--dry-run", size=LOUD) == 0 and not out.exists()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-4:] for line in lines[1:] if line[0] != " "] == [  # plain, etd, with ETD
        ["2", "0", "0", "2"], ["1", "0", "0", "1"], ["2", "0", "0", "2"], ["5", "0", "0", "5"]]
    assert [line.split()[1:] for line in lines[1:] if line[0] == " "] == [
        [method, "left"] for method in ("no-ul", "npo", "etd", "no-ul", "npo")]
    assert do(out, "--task", "random", "--method", "no-ul") == 0
    capsys.readouterr()
    assert do(out, *axes, "--dry-run", "--quiet") == 0 and len(read_rows(out)) == 1
    assert capsys.readouterr().out.splitlines()[-1].split() == ["all", "5", "1", "0", "4"]


def test_lines_of_a_grid(few, tmp_path, capsys):
    """R2, R3: originals are listed, without their cells; a line an original and one a cell follow, with scores and the
    time left; the rows hold the whole command."""
    assert do(tmp_path, "--task", "random", "--method", "no-ul,etd", size=LOUD) == 0
    printed = capsys.readouterr().out.splitlines()
    listed, lines = printed[:-5], printed[-5:]
    assert listed and not any(line.startswith("  0.5") for line in listed)
    assert [line.split()[:3] for line in lines[:2]] == [["random", "trained", "the"], ["[", "1/2", "]"]]
    assert lines[2].split()[1:3] == ["trained", "etd,"]
    assert lines[3].split()[:6] == ["[", "2/2", "]", "random", "0.5", "etd"]
    row = read_rows(tmp_path)[0]
    assert f"healed {100 * row['healed']:5.1f}  utility {100 * row['utility']:5.1f}" in lines[1]
    assert row["argv"][0] == "grid" and row["out"] == str(tmp_path / "cells.jsonl")


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_signs_of_life(few, tmp_path, capsys, monkeypatch, quiet):
    """R2: an original, a method that trains alone and a cell that take long tell their epochs under the cell's task;
    what is short, or --quiet, tells none."""
    size = [*LOUD, "--epochs", "2", *quiet]
    axes = ["--task", "random", "--method", "no-ul,retrain,etd,rem", "--discovery", "0.5"]
    assert do(tmp_path / "short", *axes, size=size) == 0
    assert " epoch " not in capsys.readouterr().out
    for module in (grid, originals):
        monkeypatch.setattr(module, "LONG", 0.0)
    assert do(tmp_path / "long", *axes, size=size) == 0
    names = {line.split(" epoch ")[0] for line in capsys.readouterr().out.splitlines() if " epoch " in line}
    told = {"train the original, seed 0", "train etd, seed 0", "0.5   retrain, seed 0", "0.5   rem, seed 0"}
    assert names == (set() if quiet else {f"random     {words}" for words in told})
    assert numbers(tmp_path / "long") == numbers(tmp_path / "short")


# --- Bad input --------------------------------------------------------------------------------------------------------

BAD = [
    (["--jobs", "0"], "--jobs is 0; it must be at least 1"),
    (["--out", ""], "--out is empty; name the folder of the grid"),
    (["--method", "no-ul,run.py:nothing"], "run.py has no function 'nothing'"),
    (["--discovery", "0.01,0.5"], "discovery 0.01 of 20 corrupted examples finds none"),
    (["--n", "20,6001"], "n is 6001; it must be from 1 to 6000"),
    (["--tasks", "all", "--pair", "3"], "pair is '3'"),
    (["--dataset", "fashion-mini,cifar10", "--data-dir", "no/such"], "--download"),
    (["--image-size", "16,6"], "smaller than ResNet-9 takes"),
    (["--method", "no-ul,rem", "--ratio", "1e300"], "ratio is 1e+300"),
    (["--device", "toaster"], "device 'toaster' is not there"),
    (["--out", "run.py"], "cannot write results to run.py"),
]


@pytest.mark.parametrize("argv, words", BAD, ids=[" ".join(argv) for argv, _ in BAD])
def test_bad_input(monkeypatch, tmp_path, capsys, argv, words):
    """R2, R7, T14: one line on stderr, exit 2, before any training, and no folder is left."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(originals, "train_original", lambda *args: pytest.fail("training began"))
    err = refusal(capsys, "grid", *QUICK, "--out", tmp_path / "x", *argv)
    assert err.startswith("run.py") and words in err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("rank, world", [("2", "2"), ("1", None), ("-1", "2"), ("one", "2")])
def test_ranks_out_of_the_world(monkeypatch, tmp_path, capsys, rank, world):
    """R2: a rank that no torchrun gives is refused: its cells would be nobody's."""
    monkeypatch.setenv("RANK", rank)
    if world:
        monkeypatch.setenv("WORLD_SIZE", world)
    assert refusal(capsys, "grid", "--out", tmp_path / "x").startswith("run.py: ") and not (tmp_path / "x").exists()


def test_originals_that_cannot_be_written(few, tmp_path, monkeypatch, capsys):
    """R2: what lies in the place of their folder, or of a task's file, is told before training."""
    monkeypatch.setattr(originals, "train_original", lambda *args: pytest.fail("training began"))
    (original,) = [original for original, _ in by_original(expand_axes({**AXES, "method": "no-ul"}))]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "originals").touch()
    original_path(tmp_path / "b", original).with_suffix(".task").mkdir(parents=True)
    for name in "ab":
        told = refusal(capsys, "grid", *FEW, "--method", "no-ul", "--out", tmp_path / name)
        assert f"cannot write results to {tmp_path / name / 'originals'}" in told


# --- Processes --------------------------------------------------------------------------------------------------------


def process(*arguments, **environment):
    """A real `run.py grid`, begun."""
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE,
                            env=dict(os.environ, OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1", **environment))


def within(seconds, what):
    """Wait until what() is true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "too late"
        time.sleep(0.05)


def locked(path):
    """Whether a process that has written to the file still holds its lock."""
    if not path.exists() or not path.read_text():
        return None
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.slow
def test_jobs_give_the_same_numbers_and_outlive_a_worker(tmp_path, own, monkeypatch):
    """R4, R3: --jobs 2 gives the rows of --jobs 1, for one's own method too; a worker that is killed leaves a failed
    row for the cell it had and takes nothing else with it."""
    axes = ["--task", "random", "--seeds", "0,1", "--method", f"npo,{own}:fragile", "--quiet",
            "--epochs", "0"]
    assert do(tmp_path / "one", *axes, size=REAL) == 0
    monkeypatch.setenv("REM_TEST_DIE", "1")
    assert do(tmp_path / "two", *axes, "--jobs", "2", size=REAL) == 1
    one, two = numbers(tmp_path / "one"), numbers(tmp_path / "two")
    assert set(one) == set(two) and len(one) == 4
    for key, row in two.items():
        if row["method"] == "own.py:fragile" and row["seed"] == 0:
            assert (row["status"], row["error"], row["healed"]) == ("failed", grid.DIED, None)
        else:
            assert row == one[key] and row["status"] == "ok"
    monkeypatch.delenv("REM_TEST_DIE")
    assert do(tmp_path / "two", *axes, "--retry-failed", size=REAL) == 0 and numbers(tmp_path / "two") == one


@pytest.mark.slow
def test_no_worker_outlives_its_parent(tmp_path, own):
    """R3, R5: when the parent is killed its workers end too, and the grid goes on from the rows it has."""
    out, lock = tmp_path / "x", tmp_path / "0.lock"  # held by the worker until it ends
    axes = ["--task", "random", "--method", f"{own}:hanging,no-ul", "--epochs", "0"]
    parent = process("run.py", "grid", *REAL, *axes, "--jobs", "2", "--out", str(out), REM_TEST_HANG=str(tmp_path))
    within(300, lambda: locked(lock) and statuses(out))  # one worker hangs, the other has done its cell
    parent.kill()
    parent.communicate(timeout=300)
    within(300, lambda: not locked(lock))
    assert statuses(out) == {("no-ul", "ok"): 1}
    assert do(out, *axes, "--quiet", size=REAL) == 0
    assert statuses(out) == {("no-ul", "ok"): 1, ("own.py:hanging", "ok"): 1}


@pytest.mark.slow
def test_torchrun(tmp_path, own):
    """R4, R3: torchrun's ranks part the cells; one with a failed cell leaves last and ends no other, with exit code 1.
    """
    out, axes = tmp_path / "x", ["--tasks", "poison,random", "--method", f"no-ul,npo,{own}:picky", "--epochs", "0"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--"]
    ranks = process(*torchrun, "run.py", "grid", *REAL, *axes, "--out", str(out))
    printed, err = ranks.communicate(timeout=600)
    assert ranks.returncode == 1, err
    assert sorted(path.name for path in out.glob("*.jsonl")) == ["cells-0.jsonl", "cells-1.jsonl"]
    trained = [line.split()[0] for line in printed.splitlines() if " trained the original" in line]
    assert sorted(trained) == ["poison", "random"] and len(list((out / "originals").glob("*.pt"))) == 2
    cells = [line for line in printed.splitlines() if line.startswith("[")]
    assert len(cells) == 6 and all(line.endswith(" min left") for line in cells)  # no line in another's midst
    assert statuses(out) == {("no-ul", "ok"): 2, ("npo", "ok"): 2, ("own.py:picky", "ok"): 1,
                             ("own.py:picky", "failed"): 1}


@pytest.mark.slow
def test_a_worker_has_its_share_and_an_interrupt_waits_for_none(tmp_path):
    """R3: a worker has its share of the cores, which its rows name, whatever the parent has; an interrupt ends the
    workers at once, whatever they do."""
    before, cell = torch.get_num_threads(), expand_axes({**AXES, "method": "no-ul"})[0]
    try:
        torch.set_num_threads(4)
        with pytest.raises(KeyboardInterrupt), Workers(2) as workers:
            row = workers.submit(grid.run_cell, cell, str(tmp_path), {"threads": 4}).result()
            assert (row["threads"], row["status"]) == (2, "failed")  # there is no original
            future = workers.submit(time.sleep, 3600)
            within(300, future.running)
            raise KeyboardInterrupt
    finally:
        torch.set_num_threads(before)
    assert not multiprocessing.active_children()


def test_what_torchrun_sets(capsys, monkeypatch, tmp_path):
    """R2: what is no whole number is named, before any work."""
    for value in ("abc", "", "-1", "1.5", "9" * 5000, "\u00b2"):
        monkeypatch.setenv("LOCAL_RANK", value)
        with pytest.raises(ValueError, match="^LOCAL_RANK is .* in the environment; torchrun sets it to a whole"):
            from_torchrun("LOCAL_RANK", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert from_torchrun("LOCAL_RANK", 0) == 3 and from_torchrun("NO_SUCH_NAME", 7) == 7
    for name in ("WORLD_SIZE", "RANK"):
        with monkeypatch.context() as patch:
            patch.setenv("WORLD_SIZE", "3")
            patch.setenv(name, "abc")
            assert run.main(["grid", "--dry-run", "--out", str(tmp_path / "x")]) == 2
        assert capsys.readouterr().err.startswith(f"run.py: {name} is 'abc'")
