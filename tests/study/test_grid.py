"""grid.py, originals.py, forecast.py: many cells, killed and resumed at will, over jobs and ranks, with equal
numbers."""

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
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiment import cell as experiment
from study import forecast, grid, originals, plan
import run
from experiment.methods import METHODS
from experiment.cell import point
from experiment.data import batches
from experiment.datasets import load
from etd import mask_table
from train import expand_for
from study.grid import Workers
from helpers import assert_same_state, make_dataset, randomise, small_net, tiny
from helpers import run as run_net
from metrics import accuracy
from study.originals import load_original, original_path
from study.plan import by_original, expand_axes, original_of
from study.rows import cell_key, load_rows, read_rows, rows_by_cell
from engine.streams import stream
from tasks import discover, make_task
from test_data import write_tree

ROOT = Path(run.__file__).resolve().parent
QUICK = ["--epochs", "1", "--unlearn-epochs", "1", "--n", "20", "--width", "0.1", "--max-passes", "2", "--device",
         "cpu"]
FEW = [*QUICK, "--n", "10", "--batch", "64", "--quiet"]  # on the 128 images of `few`
REAL = [*QUICK, "--batch", "512"]  # on all of fashion-mini, as other processes see it
TIMES = {"seconds", "train_seconds", "argv", "out", "quiet", "git"}  # what may differ between two runs of one cell
pytestmark = pytest.mark.filterwarnings(r"ignore:Acc\(D_f\) is")  # of REM and NPO: two passes do not always remove D_f
CACHES = originals.read_dataset, originals.load_original, forecast.timed_epoch

OWN = '''
import fcntl, os, signal, time

def fragile(model, data, forget, config, generator):
    if "REM_TEST_DIE" in os.environ and config.discovery == 0.5:
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

def talking(model, data, forget, config, generator, log=None):
    log(0, 0, model, passes="three" if config.task == "poison" else __import__("numpy").int64(3))
    return model
'''


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch):
    """Nothing is kept from another test, and no rank is set."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for cached in CACHES:
        cached.cache_clear()
    yield
    for cached in CACHES:
        cached.cache_clear()


@pytest.fixture
def few(monkeypatch):
    """The built-in data, cut to its first 128 training and 40 test images."""
    def load_few(*args):
        dataset = load(*args)
        train, test = (replace(data, images=data.images[:n], labels=data.labels[:n])
                       for data, n in ((dataset.train, 128), (dataset.test, 40)))
        return replace(dataset, train=train, test=test)

    monkeypatch.setattr(run, "load", load_few)
    monkeypatch.setattr(originals, "load", load_few)


@pytest.fixture
def trained(monkeypatch):
    """Counts the original networks that are trained, by task, seed and ETD."""
    count, inner = Counter(), originals.train_original

    def counting(config, *args):
        count[config.task, config.seed, config.etd] += 1
        return inner(config, *args)

    monkeypatch.setattr(originals, "train_original", counting)
    return count


@pytest.fixture
def own(tmp_path):
    """A file of one's own methods."""
    path = tmp_path / "methods" / "own.py"
    path.parent.mkdir()
    path.write_text(OWN)
    yield path
    sys.modules.pop("method_own", None)


def do(out, *arguments, size=FEW):
    """Run the grid in this process."""
    return run.main(["grid", *size, *arguments, "--out", str(out)])


def numbers(out):
    """Cell key -> its row without times, of a grid's folder or of run.py's file."""
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else read_rows(out)
    return {key: {name: value for name, value in row.items() if name not in TIMES} for key,
            row in rows_by_cell(rows).items()}


def statuses(out):
    """How many rows there are of each method and status."""
    return Counter((row["method"], row["status"]) for row in read_rows(out))


# --- Equal numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("etd", ["off", "on"])
def test_rows_are_those_of_a_single_run(few, tmp_path, etd):
    """R4: every method's row in a grid is that of the single command, times aside; of another seed it is not."""
    axes = ["--task", "random", "--discovery", "0.3", "--method", "all", "--batch", "128"]
    assert do(tmp_path / "grid", *axes, "--etd", etd) == 0
    single = [*FEW, *axes, "--etd" if etd == "on" else "--no-etd", "--out", str(tmp_path / "single")]
    assert run.main(single) == 0
    ours, theirs = numbers(tmp_path / "grid"), numbers(tmp_path / "single")
    assert {row["method"] for row in theirs.values()} - {row["method"] for row in ours.values()} <= {"rem-on-etd"}
    for key, row in ours.items():
        assert json.dumps(row, sort_keys=True) == json.dumps(theirs[key], sort_keys=True)
    assert all(row["status"] == "ok" for row in ours.values()) and len(ours) >= 13


def test_rows_of_single_runs_are_done(few, tmp_path, trained, capsys):
    """R5: a cell that run.py has put into the folder is not done again."""
    out = tmp_path / "grid"
    assert run.main([*FEW, "--method", "no-ul,npo", "--out", str(out / "cells.jsonl")]) == 0
    assert do(out, "--method", "no-ul,npo") == 0 and not trained
    assert capsys.readouterr().out.splitlines()[-1] == f"0 cells done, 0 of them failed; rows in {out}"


def test_a_folder_of_images_is_one_data_set(tmp_path, monkeypatch):
    """R5: a folder given by a relative path is the same cell and the same data set in a single run and in a grid."""
    write_tree(tmp_path / "pics")
    monkeypatch.chdir(tmp_path)
    axes = ["--dataset", "folder", "--data-dir", "pics", "--image-size", "8", "--n", "4", "--batch", "4"]
    assert run.main([*FEW, *axes, "--method", "no-ul", "--out", "x/cells.jsonl"]) == 0
    assert do("x", *axes, "--method", "no-ul,cf") == 0
    rows = read_rows("x")
    assert [row["method"] for row in rows] == ["no-ul", "cf"]
    assert {row["data_dir"] for row in rows} == {str(tmp_path / "pics")}
    assert len({row["data"] for row in load_rows(["x"])}) == 1


def test_curve_shows_the_redirection(few, tmp_path):
    """S3: --curve on adds Fig. 5's points, from the trained network at epoch 0 on, to REM's rows and changes no
    number."""
    axes = ["--task", "poison", "--method", "no-ul,npo,rem,rem-ideal", "--unlearn-epochs", "2"]
    assert do(tmp_path / "a", *axes, "--curve", "on") == do(tmp_path / "b", *axes) == 0
    with_points = {row["method"]: row for row in numbers(tmp_path / "a").values()}
    for row in numbers(tmp_path / "b").values():
        points = with_points[row["method"]].pop("points", None)
        assert {**with_points[row["method"]], "curve": False} == row
        assert (points is not None) == row["method"].startswith("rem")
        if points:
            assert [one["epoch"] for one in points] == [0, 1, 2]
            assert all(0 <= one[part] <= 1 for one in points for part in ("base", "full"))
            original = original_of(expand_axes({"task": "poison", "method": "rem", "epochs": "1", "n": "10",
                                                "width": "0.1",
                                                "batch": "64"})[0])
            task, network, _ = load_original(replace(original, device="cpu", quiet=True), str(tmp_path / "a"))
            assert points[0]["base"] == accuracy(network, task.train, task.corrupted)


def test_curve_is_of_the_base_and_of_the_shared_mask():
    """S3, M7: a point has the accuracy on D_c's given labels of theta_o1 alone, and through D_f's one row for all of
    D_c."""
    task, config = make_task("random", make_dataset(3, n=60), 40, 3), tiny(seed=3)
    forget, model = discover(task, 0.25, 3), small_net(3, width=6)
    expanded = randomise(expand_for(model, task.train, config), 5)
    found = point(config, expanded, task, forget, 1, loss=0.5)
    row = mask_table(len(task.train), expanded.width, config.p_mem, config.seed, forget)[forget[0]]
    hits = torch.zeros(2)
    expanded.eval()
    for index, x, y in batches(task.train, task.corrupted, 1):
        for k, logits in enumerate((run_net(expanded, x), run_net(expanded, x, row[None]))):
            hits[k] += logits.argmax(dim=1).item() == y.item()
    assert [found[part] for part in ("base", "full")] == [hit / 40 for hit in hits.tolist()] and hits[0] != hits[1]
    assert (found["epoch"], found["loss"]) == (1, 0.5)


# --- Originals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["etd", "etd-ideal"])
def test_what_trains_alone_is_the_methods_own_network(few, tmp_path, method):
    """R9: the network kept for etd and etd-ideal is the method's, bit for bit, in the order of its own generator; its
    seconds are the rows'."""
    config = expand_axes({"task": "poison", "method": method, "epochs": "2", "n": "10", "width": "0.1", "batch": "16",
                          "device": "cpu", "quiet": "on"})[0]
    original = original_of(config)
    seconds, failure = originals.make_original(original, tmp_path)
    task, network, kept = load_original(original, str(tmp_path))
    more = {"corrupted": task.corrupted} if method == "etd-ideal" else {}
    again = METHODS[method].function(experiment.new_model(config, originals.dataset_of(config)), task.train,
                                     task.corrupted, config,
                            stream(config.seed, "unlearning"), **more)
    assert_same_state(network, again)
    assert failure is None and grid.measure(config, str(tmp_path))["seconds"] == kept == seconds > 0


def test_originals_are_trained_once(few, tmp_path, trained):
    """R9: one training for each task, seed and ETD, whatever the rates and methods; a second grid in the folder reads
    them."""
    axes = ["--tasks", "poison,random", "--etd", "both"]
    assert do(tmp_path, *axes, "--discovery", "0.5,1", "--methods", "no-ul,npo") == 0
    assert set(trained.values()) == {1} and len(trained) == 4
    files = list((tmp_path / "originals").iterdir())
    assert Counter(path.suffix for path in files) == {".pt": 4, ".task": 4}
    times = {path: path.stat().st_mtime_ns for path in files}
    assert do(tmp_path, *axes, "--discovery", "0.1", "--methods", "no-ul", "--unlearn-lr", "0.5") == 0
    assert trained.total() == 4 and {path: path.stat().st_mtime_ns for path in files} == times
    assert do(tmp_path, *axes, "--methods", "no-ul", "--seed", "1") == 0
    assert trained.total() == 8 == len(trained)
    assert do(tmp_path, *axes, "--methods", "no-ul", "--weight-decay", "0") == 0  # another training
    assert trained.total() == 12


def test_an_original_without_its_task_is_trained_again(few, tmp_path, trained):
    """R9: the network and the labels that it saw belong together."""
    axes = ["--task", "random", "--method", "no-ul"]
    assert do(tmp_path, *axes) == 0
    before = numbers(tmp_path)
    (tmp_path / "cells.jsonl").unlink()
    next((tmp_path / "originals").glob("*.task")).unlink()
    originals.load_original.cache_clear()
    assert do(tmp_path, *axes) == 0 and trained.total() == 2 and numbers(tmp_path) == before


def test_methods_that_train_alone_do_so_once(few, tmp_path, monkeypatch):
    """R9: etd and etd-ideal read no D_f: one training serves every discovery rate, also where all images are
    corrupted."""
    count = Counter()
    for name in ("etd", "etd-ideal"):
        def counting(*args, name=name, inner=METHODS[name].function, **more):
            count[name] += 1
            return inner(*args, **more)
        monkeypatch.setitem(METHODS, name, replace(METHODS[name], function=counting))
    assert do(tmp_path, "--task", "random", "--discovery", "0.1,0.5", "--method", "etd,etd-ideal", "--n", "128") == 0
    assert count == {"etd": 1, "etd-ideal": 1} and set(statuses(tmp_path)) == {("etd", "ok"), ("etd-ideal", "ok")}


# --- Resume -----------------------------------------------------------------------------------------------------------


def fork_and_kill(function, number, argv):
    """Run the command in a copy of this process that SIGKILLs itself in its nth call of os.fsync, with the end of the
    file not on the disk yet, or right after its nth os.replace; True if it came to that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of forks beside threads
        child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    inner, calls = getattr(os, function), []

    def deadly(*args):
        inner(*args)
        calls.append(args)
        if len(calls) == number:
            if function == "fsync":
                size = os.fstat(args[0]).st_size
                os.ftruncate(args[0], size - min(size // 2, 150))  # of a file of rows less than its last line
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        setattr(os, function, deadly)
        torch.cuda.is_available = lambda: False  # CUDA does not outlive a fork
        os._exit(run.main(argv))
    finally:
        os._exit(99)


def test_killed_at_every_write_and_resumed(few, tmp_path, capsys):
    """R5, R3: SIGKILL in the middle of any write or after it leaves every file readable and loses no finished cell; in
    the end every number is that of an uninterrupted grid, and another seed's differ."""
    out, axes = tmp_path / "killed", ["--task", "random", "--etd", "both", "--method", "no-ul,npo"]
    argv = ["grid", *FEW, *axes, "--out", str(out)]
    originals.dataset_of(expand_axes({"method": "npo"})[0])  # read once for all copies
    # an original's two files, then rows
    seen, kills = [0], [("fsync", 1), ("replace", 1), ("fsync", 2), ("replace", 2)] * 3
    while fork_and_kill(*kills.pop(0), argv):
        seen.append(len(read_rows(out)))
        assert seen[-2] <= seen[-1] <= seen[-2] + 2
        assert all("not a whole row" in line for line in capsys.readouterr().err.splitlines())
        for path in (out / "originals").glob("*.task"):
            torch.load(path, weights_only=True)
        for path in (out / "originals").glob("*.pt"):
            originals.read_checked(path, path.stem[-16:])
        assert [path.name for path in out.iterdir() if path.is_file()] in ([], ["cells.jsonl"])
    assert len(read_rows(out)) == 4 and 0 < seen[-1] and len(seen) > 8
    assert do(tmp_path / "whole", *axes) == 0 and do(tmp_path / "other", *axes, "--seed", "1") == 0
    assert numbers(out) == numbers(tmp_path / "whole")
    scores = [sorted(row["utility"] for row in numbers(tmp_path / name).values()) for name in ("whole", "other")]
    assert scores[0] != scores[1]


def test_done_cells_are_skipped(few, tmp_path, monkeypatch, capsys):
    """R5: the same command again does nothing; a wider one does what is new."""
    axes = ["--task", "random", "--method", "no-ul,npo"]
    assert do(tmp_path, *axes, "--discovery", "0.5") == 0
    bytes_before = (tmp_path / "cells.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(grid, "run_cell", lambda *args: pytest.fail("done again"))
        assert do(tmp_path, *axes, "--discovery", "0.5") == 0
    assert (tmp_path / "cells.jsonl").read_bytes() == bytes_before
    assert do(tmp_path, *axes, "--discovery", "0.5,1") == 0
    assert (tmp_path / "cells.jsonl").read_bytes().startswith(bytes_before)
    assert statuses(tmp_path) == {("no-ul", "ok"): 2, ("npo", "ok"): 2}
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        "2 cells done", "0 cells done", "2 cells done"]


def test_a_torn_line_is_done_again(few, tmp_path, capsys):
    """R5: a half-written last row is done again, alone, with the same numbers."""
    axes = ["--task", "random", "--method", "no-ul,cf,npo"]
    assert do(tmp_path, *axes) == 0
    whole, path = numbers(tmp_path), tmp_path / "cells.jsonl"
    path.write_bytes(path.read_bytes()[:-300])
    capsys.readouterr()
    assert do(tmp_path, *axes) == 0
    out, err = capsys.readouterr()
    assert out.startswith("1 cells done, 0 of them failed")
    assert err == f"warning: {path}: line 3 is not a whole row; left out\n"
    assert numbers(tmp_path) == whole


def test_rows_of_another_version_are_done_again(few, tmp_path):
    """R5: rows of other code do not count."""
    axes = ["--task", "random", "--method", "no-ul"]
    assert do(tmp_path, *axes) == 0
    path = tmp_path / "cells.jsonl"
    path.write_text(path.read_text().replace(f'"version": "{experiment.VERSION}"', '"version": "0.0.0"'))
    assert numbers(tmp_path) == {} and do(tmp_path, *axes) == 0
    assert len(numbers(tmp_path)) == 1 and len(read_rows(tmp_path)) == 2


# --- Failures ---------------------------------------------------------------------------------------------------------


def test_a_failed_cell_is_a_row_and_the_grid_goes_on(few, tmp_path, monkeypatch, capsys):
    """R3: out of memory, numbers that are not finite, any exception: a row says so, the rest is done, exit 1. The cell
    counts as done until --retry-failed."""
    axes, good = ["--task", "random", "--method", "ascent,cf,scrub,npo"], dict(METHODS)
    for name, error in (("ascent", torch.OutOfMemoryError("CUDA out of memory")), ("scrub", MemoryError()),
                        ("cf", ZeroDivisionError("oh\nno"))):
        def fail(*args, error=error, **more):
            raise error
        monkeypatch.setitem(METHODS, name, replace(METHODS[name], function=fail))
    assert do(tmp_path, *axes) == 1
    rows = {row["method"]: row for row in read_rows(tmp_path)}
    assert [row["status"] for row in rows.values()] == ["failed"] * 3 + ["ok"]
    assert rows["ascent"]["error"].startswith("OutOfMemoryError: CUDA out of memory (test_grid.py:")
    assert rows["cf"]["error"] == "ZeroDivisionError: oh" + rows["cf"]["error"][21:] and rows["cf"]["healed"] is None
    for name in axes[3].split(","):
        monkeypatch.setitem(METHODS, name, good[name])
    capsys.readouterr()
    assert do(tmp_path, *axes) == 1  # says so again, does nothing
    assert "0 cells done, 0 of them failed, 3 failed before (--retry-failed does them anew)" in capsys.readouterr().out
    assert do(tmp_path, *axes, "--retry-failed") == 0 and len(read_rows(tmp_path)) == 7
    assert {row["status"] for row in numbers(tmp_path).values()} == {"ok"} and do(tmp_path, *axes) == 0


def test_failed_training_fails_its_cells_alone(few, tmp_path, trained):
    """R3: an original that diverges gives a failed row a cell and no file; other originals' cells go on; a retry trains
    it."""
    axes = ["--task", "random", "--method", "no-ul,npo", "--lr", "1e30,0.05", "--epochs", "2"]
    assert do(tmp_path, *axes) == 1
    rows = read_rows(tmp_path)
    assert [(row["lr"], row["status"]) for row in rows] == [(1e30, "failed")] * 2 + [(0.05, "ok")] * 2
    assert all(row["error"].startswith("training: NonFiniteLoss") for row in rows[:2])
    assert len(list((tmp_path / "originals").glob("*.pt"))) == 1 and trained.total() == 2
    assert do(tmp_path, *axes, "--retry-failed") == 1 and trained.total() == 3 and len(read_rows(tmp_path)) == 6


def test_a_diverging_method_is_a_row(few, tmp_path):
    """R3: a method whose loss stops being finite leaves its own error."""
    assert do(tmp_path, "--task", "random", "--method", "cf,no-ul", "--unlearn-lr", "1e30", "--unlearn-epochs",
              "3") == 1
    assert statuses(tmp_path) == {("cf", "failed"): 1, ("no-ul", "ok"): 1}
    assert "NonFiniteLoss" in read_rows(tmp_path)[0]["error"]


def test_what_a_method_logs_ends_no_grid(few, tmp_path, own):
    """R3: passes that are numpy's are a good row, passes that are no number a failed one; the grid gets past both."""
    axes = ["--tasks", "poison,random", "--method", f"{own}:talking,no-ul"]
    assert do(tmp_path / "x", *axes) == 1
    assert statuses(tmp_path / "x") == {("own.py:talking", "failed"): 1, ("own.py:talking", "ok"): 1,
                                        ("no-ul", "ok"): 2}
    assert {row["passes"] for row in read_rows(tmp_path / "x") if row["method"] != "no-ul"} == {None, 3}
    assert do(tmp_path / "x", *axes) == 1 and len(read_rows(tmp_path / "x")) == 4


# --- What is printed --------------------------------------------------------------------------------------------------


def test_dry_run_shows_and_leaves_nothing(few, tmp_path, monkeypatch, capsys):
    """R2: --dry-run prints every cell below its original, done, failed and left, and hours; it makes no file and does
    no cell."""
    out, axes = tmp_path / "grid", ["--tasks", "poison,random", "--etd", "both", "--method", "no-ul,npo,etd"]
    size = [word for word in FEW if word != "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr(grid, "work_through", lambda *args: pytest.fail("work began"))
        assert do(out, *axes, "--dry-run", size=size) == 0 and not out.exists()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-4:] for line in lines[1:-1] if line[0] != " "] == [
        # plain, etd, with ETD
        *[["2", "0", "0", "2"], ["1", "0", "0", "1"], ["2", "0", "0", "2"]] * 2, ["10", "0", "0", "10"]]
    assert [line.split() for line in lines[1:-1] if line[0] == " "] == [
        ["0.5", method, "left"] for method in ("no-ul", "npo", "etd", "no-ul", "npo") * 2]
    assert len({len(line) for line in lines[:-1]}) == 1  # aligned
    assert lines[-1].startswith("about 0.0") and "hours left with --jobs 1" in lines[-1]
    assert do(out, "--task", "random", "--method", "no-ul") == 0
    capsys.readouterr()
    assert do(out, *axes, "--dry-run", "--jobs", "2", size=size) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].split() == ["all", "10", "1", "0", "9"] and sum(line.endswith(" done") for line in lines) == 1
    assert do(out, "--task", "random", "--method", "no-ul,npo", size=size) == 0
    # a run lists originals alone
    assert not any(line.startswith("  0.5") for line in capsys.readouterr().out.splitlines())


def test_dry_run_tells_cells_apart():
    """A cell's line names what it differs in from others, where its method depends on it, and how it stands."""
    groups = by_original(expand_axes({"method": "cf,scrub,rem", "alpha": "0.1,1", "unlearn_lr": "0.1,0.2",
                                      "p_mem": "0.2,0.05"}))
    ((original, cells),) = groups
    ok = {"status": "ok", "dataset": "fashion-mini", "arch": "resnet9", "capacity": 0.5, "width": 0.5, "epochs": 8,
          "method": "cf",
          "seconds": 1.0, "train_seconds": 8.0, "etd": False}
    bad = {**ok, "status": "failed"}
    rows = {cell_key(c): bad if c.unlearn_lr == 0.1 else ok for c in cells if c.method == "cf"}
    for retried, state in ((True, "failed, left"), (False, "failed")):
        left = [(original, [c for c in cells if cell_key(c) not in rows or retried and rows[cell_key(c)] == bad])]
        text = plan.overview(groups, left, rows, every=True)
        lines = [line.split(maxsplit=2) for line in text.splitlines()[2:-1]]
        assert [line[:2] for line in lines] == [["0.5", c.method] for c in cells]
        found = Counter(" ".join(line[2].split()) for line in lines)
        assert found == Counter([f"unlearn-lr 0.1 {state}", "unlearn-lr 0.2 done",
                                 *(f"unlearn-lr {lr} alpha {a} left" for lr in (0.1, 0.2) for a in (0.1, 1.0)),
                                 *(f"p-mem {p} unlearn-lr {lr} left" for lr in (0.1, 0.2) for p in (0.05, 0.2))])


def test_dry_run_tells_originals_apart():
    """An original's line names what it differs in from others of its task and seed; a cell's, what differs in its group
    alone."""
    blocks = [{"n": "20,30", "lr": "0.1,0.2", "capacity": "0.125", "method": "no-ul", "discovery": "0.125"},
              {"task": "random", "method": "examples/my_method.py:relabel"}]
    groups = by_original([cell for block in blocks for cell in expand_axes(block)])
    lines = plan.overview(groups, groups, {}, every=True).splitlines()
    heads = [" ".join(line.split()[2:-5]) for line in lines[1:-1] if line[0] != " "]
    assert heads == [*(f"resnet9 12.5% n {n} lr {lr}" for n in (20, 30) for lr in (0.1, 0.2)),
                     "resnet9 50% n 120 lr 0.05"]
    cells = [line.split() for line in lines[1:-1] if line[0] == " "]
    assert cells == [["0.125", "no-ul", "left"]] * 4 + [["0.5", "my_method.py:relabel", "left"]]
    assert len({len(line) for line in lines}) == 1  # aligned


def test_estimate_times_what_a_job_has(monkeypatch):
    """With --jobs an epoch is timed with the threads that each job gets; afterwards there are as many as before."""
    groups, seen = by_original(expand_axes({"method": "no-ul"})), []
    monkeypatch.setattr(forecast, "timed_epoch", lambda config: seen.append(torch.get_num_threads()) or 1.0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        for jobs in (1, 2, 3, 8):
            forecast.hours(groups, {}, "nowhere", jobs)
        assert set(seen[:1]) == {4} and sorted(set(seen), reverse=True) == [4, 2, 1] and torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_a_damaged_original_says_what_to_do(few, tmp_path):
    """R12: a file of an original that was cut, garbled, swapped or made elsewhere fails its cells, which name it; its
    weights are never used, and --retry-failed makes it anew."""
    assert do(tmp_path, "--method", "no-ul,cf") == 0
    (kept,) = (tmp_path / "originals").glob("*.pt")

    def scores():
        return sorted((row["method"], row["healed"], row["utility"]) for row in read_rows(tmp_path)
                      if row["status"] == "ok")

    good = scores()
    assert do(tmp_path / "other", "--method", "no-ul", "--seed", "1") == 0
    (other,) = (tmp_path / "other" / "originals").glob("*.pt")
    whole = kept.read_bytes()
    half = len(whole) // 2
    for path, content in ((kept, whole[:100]), (kept, whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1:]),
                          (kept, b""),
                          (kept, other.read_bytes()), (kept, b"elsewhere\n"), (kept.with_suffix(".task"), b"x" * 100),
                          (kept.with_suffix(".task"), other.with_suffix(".task").read_bytes())):
        path.write_bytes(content)
        (tmp_path / "cells.jsonl").unlink(missing_ok=True)
        load_original.cache_clear()
        assert do(tmp_path, "--method", "no-ul,cf") == 1
        words = f"{kept} or its .task is damaged or another network's; --retry-failed in a grid makes both anew"
        assert all(words in row["error"] for row in read_rows(tmp_path))
        assert do(tmp_path, "--method", "no-ul,cf", "--retry-failed") == 0 and scores() == good
        assert kept.read_bytes().partition(b"\n")[0].endswith(cell_key(original_of(expand_axes({
            "method": "cf", "epochs": "1", "n": "10", "width": "0.1", "batch": "64", "device": "cpu"})[0])).encode())


def test_suspects_say_what_to_do_about_a_damaged_original(few, tmp_path, capsys):
    """R12: `suspects`, which has no --retry-failed, says what works there, and it does."""
    argv = ["suspects", *FEW, "--epochs", "0", "--gamma", "1", "--out", str(tmp_path / "s.jsonl")]
    assert run.main(argv) == 0
    (kept,) = (tmp_path / "originals").glob("*.pt")
    (tmp_path / "s.jsonl").unlink()
    kept.write_bytes(b"x")
    capsys.readouterr()
    assert run.main(argv) == 1
    assert f"{kept} or its .task is damaged" in (told := capsys.readouterr().out)
    assert "--retry-failed in a grid makes both anew, elsewhere delete both and give the same command again" in told
    kept.unlink()
    kept.with_suffix(".task").unlink()
    assert run.main(argv) == 0


def test_estimate_follows_the_rows_there_are(tmp_path):
    """The hours left are the folder's own means where it has rows: 9 cells at 100 s and 10 epochs at 40 s."""
    cells = expand_axes({"task": "random", "discovery": "0.1:1.0:0.1", "method": "npo", "epochs": "10"})
    groups = by_original(cells)
    past = {"status": "ok", "dataset": "fashion-mini", "arch": "resnet9", "capacity": 0.5, "width": 0.5, "epochs": 10,
            "method": "npo", "seconds": 100.0, "train_seconds": 400.0, "etd": False, "image_size": None,
            "batch": cells[0].batch, "unlearn_epochs": cells[0].unlearn_epochs}
    remaining = [(groups[0][0], groups[0][1][1:])]
    def estimate(*rows, left=remaining, jobs=1):
        return pytest.approx(3600 * forecast.hours(left, dict(enumerate(rows)), tmp_path, jobs))

    assert 10 * 40.0 + 9 * 200.0 == estimate(past, {**past, "seconds": 300.0})
    assert 0 == estimate(past, left=[]) and (10 * 40.0 + 9 * 100.0) / 2 == estimate(past, jobs=2)
    assert 10 * 40.0 + 9 * 100.0 == estimate(past, {**past, "seconds": 1000.0, "width": 1.0})  # of another network
    timeless = {name: value for name, value in past.items() if name not in ("seconds", "train_seconds")}
    assert 10 * 40.0 + 9 * 100.0 == estimate(past, timeless, {**past, "seconds": None, "train_seconds": None})
    path = original_path(tmp_path, groups[0][0])
    path.parent.mkdir()
    path.touch()
    assert 9 * 100.0 == estimate(past)  # the original is there


def test_estimate_takes_no_rows_of_other_images(tmp_path, monkeypatch):
    """Rows of another image size, batch or folder of images count no more than none do; a folder is told by its place,
    of other data sets the place plays no part."""
    monkeypatch.setattr(forecast, "timed_epoch", lambda config: 1.0)
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)

    def estimate(given, **changes):
        cells = expand_axes({"method": "npo,cf", "epochs": "10", "image_size": "8", **given})
        rows = [{**vars(cell), "status": "ok", "seconds": 1e4, "train_seconds": 1e5, **changes} for cell in cells]
        return 3600 * forecast.hours(by_original(cells), dict(enumerate(rows)), tmp_path, 1)

    for given in ({}, {"dataset": "folder", "data_dir": "there"}):
        assert estimate(given) == pytest.approx(1e5 + 2e4)
        for changes in ({"image_size": 16}, {"image_size": None}, {"batch": 64}):
            assert estimate(given, **changes) < 100, changes
    assert estimate({}, data_dir="elsewhere") == estimate(given, data_dir=str(tmp_path / "there")) == pytest.approx(
        1e5 + 2e4)
    assert estimate(given, data_dir="elsewhere") < 100


@pytest.mark.parametrize("capacity", [0.1, 0.25, 0.5, 1.0])
def test_masked_passes_cost_what_the_whole_network_costs(capacity, monkeypatch, tmp_path):
    """With masks an epoch takes that of the 100 % network, in training with --etd, of etd and in REM beside the plain
    pass."""
    def estimate(method, etd, **more):
        axes = {"method": method, "etd": etd, "capacity": str(capacity), "epochs": "10", "unlearn_epochs": "3", **more}
        return pytest.approx(3600 * forecast.hours(by_original(expand_axes(axes)), {}, tmp_path, 1))

    # seconds; width 0.5
    monkeypatch.setattr(forecast, "timed_epoch", lambda config: 200 * config.width * config.capacity)
    plain = 100 * capacity
    assert estimate("no-ul", "off") == 10 * plain and estimate("no-ul", "on") == 10 * 100
    assert 10 * 100 == estimate("etd", "off") and 10 * 100 == estimate("etd-ideal", "off")
    assert estimate("rem", "off") == 10 * plain + 3 * (plain + 100) and estimate("rem",
        "on") == 10 * 100 + 3 * (plain + 100)
    assert estimate("rem", "off", ratio="0.6") == 10 * plain + 3 * (plain + 1.6 * plain)
    assert estimate("no-ul", "on", ratio="0.6") == 10 * 1.6 * plain
    assert estimate("retrain", "off") == 2 * 10 * plain and estimate("cf", "off") == 13 * plain


def test_lines_of_a_grid(few, tmp_path, capsys):
    """One line an original and one a cell with its scores and the time left; the rows hold the command, the word grid
    too."""
    size = [word for word in FEW if word != "--quiet"]
    assert do(tmp_path, "--task", "random", "--method", "no-ul,etd", size=size) == 0
    lines = capsys.readouterr().out.splitlines()[-5:]
    assert [line.split()[:3] for line in lines[:2]] == [["random", "trained", "the"], ["[", "1/2", "]"]]
    assert lines[2].split()[1:3] == ["trained", "etd,"] and lines[3].split()[:6] == ["[", "2/2", "]", "random", "0.5",
        "etd"]
    row = read_rows(tmp_path)[0]
    assert f"healed {100 * row['healed']:5.1f}  utility {100 * row['utility']:5.1f}" in lines[1]
    assert row["argv"][0] == "grid" and row["out"] == str(tmp_path / "cells.jsonl")


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_signs_of_life(few, tmp_path, capsys, monkeypatch, quiet):
    """R2: an original, a method that trains alone and a cell that take long print a line per epoch with the time left,
    under the cell's task; what is short, or --quiet, prints none."""
    size = [*(word for word in FEW if word != "--quiet"), "--epochs", "2", *quiet]
    axes = ["--task", "random", "--method", "no-ul,retrain,etd,rem", "--discovery", "0.5"]
    assert do(tmp_path / "short", *axes, size=size) == 0
    assert " epoch " not in capsys.readouterr().out
    for module in (grid, originals):
        monkeypatch.setattr(module, "LONG", 0.0)
    assert do(tmp_path / "long", *axes, size=size) == 0
    lines = [line.split(" epoch ") for line in capsys.readouterr().out.splitlines() if " epoch " in line]
    names = Counter(line[0] for line in lines)
    assert (not names) if quiet else names == {
        "random     train the original, seed 0": 2, "random     train etd, seed 0": 2,
        "random     0.5   retrain, seed 0": 2, "random     0.5   rem, seed 0": names["random     0.5   rem, seed 0"]}
    assert quiet or names["random     0.5   rem, seed 0"] >= 1
    assert all(line[1].endswith(" s left") for line in lines)
    assert numbers(tmp_path / "long") == numbers(tmp_path / "short")


# --- Ranks ------------------------------------------------------------------------------------------------------------


def test_ranks_share_the_work(few, tmp_path, trained, monkeypatch):
    """R4: each rank trains its own originals and writes its own file; together they are the whole grid, number for
    number."""
    axes, parts = ["--tasks", "all", "--seeds", "0,1", "--method", "no-ul,npo"], []
    assert do(tmp_path / "one", *axes) == 0
    trained.clear()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        before = set(trained)
        assert do(tmp_path / "two", *axes) == 0
        parts.append(set(trained) - before)
    assert set(trained.values()) == {1} and not parts[0] & parts[1] and [len(part) for part in parts] == [3, 3]
    assert sorted(path.name for path in (tmp_path / "two").glob("*.jsonl")) == ["cells-0.jsonl", "cells-1.jsonl"]
    assert numbers(tmp_path / "two") == numbers(tmp_path / "one") and len(read_rows(tmp_path / "two")) == 12
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert do(tmp_path / "two", *axes) == 0 and trained.total() == 6  # another number of ranks: nothing is done again
    rows = {path: path.read_bytes() for out in ("one", "two") for path in (tmp_path / out).glob("*.jsonl")}
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in "012":  # nor by more ranks, nor by ranks after a single process
        monkeypatch.setenv("RANK", rank)
        assert do(tmp_path / "two", *axes) == do(tmp_path / "one", *axes) == 0
    assert trained.total() == 6
    assert rows == {path: path.read_bytes() for out in ("one", "two") for path in (tmp_path / out).glob("*.jsonl")}


def test_each_rank_has_its_gpu(monkeypatch):
    """Under torchrun "auto" and "cuda" are the rank's own GPU, wrapping round; without it, and for a named one, they
    are not."""
    config = expand_axes({"method": "rem"})[0]
    assert originals.device_of(replace(config, device="cpu")) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv("LOCAL_RANK", "5")
    assert originals.device_of(config) == originals.device_of(replace(config, device="cuda")) == torch.device("cuda", 1)
    assert originals.device_of(replace(config, device="cpu")) == torch.device("cpu")


def test_rows_of_other_code_are_named(capsys):
    """R5: rows of another commit count as done with one warning that names it; those of this one without a word."""
    origin, dirty = {"git": "a" * 40}, {"git": "a" * 40 + "-dirty"}
    grid.warn_of_other_code([origin, dirty], origin)
    assert capsys.readouterr().err == ""
    grid.warn_of_other_code([origin, {"git": "c" * 40}, {"git": "b" * 40}, {}], origin)
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and ", None, bbbbbbb, ccccccc;" in err


# --- Bad input --------------------------------------------------------------------------------------------------------

BAD = [
    (["--no-such-flag"], "run.py grid: unrecognized arguments: --no-such-flag"),
    (["--disc", "0.5"], "run.py grid: unrecognized arguments: --disc 0.5"),
    (["--jobs", "0"], "--jobs is 0; it must be at least 1"),
    (["--jobs", "two"], "run.py grid: argument --jobs: invalid int value: 'two'"),
    (["--preset", ""], "unknown preset ''; choose from table1"),
    (["--out", ""], "--out is empty; name the folder of the grid"),
    (["--seeds", "0:1:1e-9999999"], "a range is first:last:step"),
    (["--preset", "table3"], "unknown preset 'table3'; choose from table1"),
    (["--tasks", "poison,poisn"], "task is 'poisn'; choose from poison"),
    (["--method", "rme"], "unknown method 'rme'"),
    (["--method", "no/such.py:f"], "no file no/such.py for method no/such.py:f"),
    (["--method", "run.py:nothing"], "run.py has no function 'nothing'"),
    (["--discovery", "0.3:0.1:0.1"], "a range rises from first to last"),
    (["--discovery", "0.5,1.5"], "discovery is 1.5"),
    (["--discovery", "0.5,0.01"], "discovery 0.01 of 20 corrupted examples finds none"),
    (["--method", "rem-on-etd"], "rem-on-etd fits none of these cells; add --etd"),
    (["--method", "retrain", "--etd", "on"], "retrain fits none of these cells; it trains anew, so leave out --etd on"),
    (["--etd", "yes"], "--etd is 'yes'; choose on, off or both"),
    (["--n", "20,6001"], "n is 6001; it must be from 1 to 6000"),
    (["--tasks", "all", "--n", "21"], "n is 21; confusion swaps n / 2 examples of each class, so it must be even"),
    (["--task", "confusion", "--n", "1400"], "can be at most 1200"),
    (["--task", "confusion", "--pair", "3"], "pair is '3'"),
    (["--dataset", "mnist"], "unknown data set 'mnist'"),
    (["--dataset", "folder", "--data-dir", "no/such", "--image-size", "16"], "no/such"),
    (["--dataset", "fashion-mini,cifar10", "--data-dir", "no/such"], "--download"),
    (["--image-size", "6,16"], "smaller than ResNet-9 takes"),
    (["--device", "toaster"], "device 'toaster' is not there"),
    (["--out", "run.py"], "cannot write results to run.py"),
    (["--out", "run.py/x"], "cannot write results to run.py/x"),
]


@pytest.mark.parametrize("argv, words", BAD, ids=[" ".join(argv) for argv, _ in BAD])
def test_bad_input(monkeypatch, tmp_path, capsys, argv, words):
    """R2, R7, T14: one line on stderr, exit 2, before any training, and no folder is left."""
    monkeypatch.chdir(ROOT)
    for module in (originals, forecast):
        monkeypatch.setattr(module, "train_original", lambda *args: pytest.fail("training began"))
    try:
        code = run.main(["grid", *QUICK, "--out", str(tmp_path / "x"), *argv])
    except SystemExit as stop:  # argparse's own errors
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2 and words in err and len(err.splitlines()) == 1 and out == "", err
    assert err.startswith("run.py") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("rank, world", [("2", "2"), ("1", None), ("-1", "2"), ("one", "2")])
def test_ranks_out_of_the_world(monkeypatch, tmp_path, capsys, rank, world):
    """R2: a rank that no torchrun gives is refused: its cells would be nobody's."""
    monkeypatch.setenv("RANK", rank)
    if world:
        monkeypatch.setenv("WORLD_SIZE", world)
    assert do(tmp_path / "x") == 2
    assert capsys.readouterr().err.startswith("run.py: ") and not (tmp_path / "x").exists()


def test_unwritable_folder(few, tmp_path, monkeypatch, capsys):
    """R2: a folder without write permission is refused before training (root may write anywhere, so the check is
    asked)."""
    monkeypatch.setattr(experiment.os, "access", lambda *args: False)
    monkeypatch.setattr(forecast, "train_original", lambda *args: pytest.fail("training began"))
    assert do(tmp_path, "--method", "no-ul", size=QUICK) == 2
    assert "permission denied" in capsys.readouterr().err


def test_help_of_the_grid(capsys):
    """R2: --help names every axis, the plurals and the presets."""
    with pytest.raises(SystemExit) as stop:
        run.main(["grid", "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for word in ("--tasks", "--methods", "--seeds", "--discovery", "--capacity", "--p-mem", "--jobs", "--dry-run",
                 "table9"):
        assert word in text


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
    axes = ["--task", "random", "--seeds", "0,1", "--discovery", "0.5,1", "--method", f"npo,{own}:fragile", "--quiet"]
    assert do(tmp_path / "one", *axes, size=REAL) == 0
    monkeypatch.setenv("REM_TEST_DIE", "1")
    assert do(tmp_path / "two", *axes, "--jobs", "2", size=REAL) == 1
    one, two = numbers(tmp_path / "one"), numbers(tmp_path / "two")
    assert set(one) == set(two) and len(one) == 8
    for key, row in two.items():
        if row["method"] == "own.py:fragile" and row["discovery"] == 0.5:
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


def test_each_line_is_one_write(monkeypatch):
    """R4: ranks share a terminal; a line and its end in two writes would let another rank's line in between."""
    class Terminal(list):
        write, flush = list.append, lambda self: None

    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    lines = grid.Lines(1, quiet=False)
    lines.original(tiny(), 1.0)
    lines.cell(tiny().__dict__ | {"status": "failed", "error": "why", "healed": None, "utility": None, "product": None})
    written = [text for text in terminal if text]
    assert len(written) == 2 and all(text.endswith("\n") and text.count("\n") == 1 for text in written)


@pytest.mark.slow
def test_torchrun(tmp_path, own):
    """R4, R3: torchrun's ranks part the cells; one with a failed cell leaves last, so that torchrun does not end the
    others, and the exit code says so."""
    out, axes = tmp_path / "x", ["--tasks", "poison,random", "--discovery", "0.5,1", "--method",
                                 f"no-ul,npo,{own}:picky", "--epochs", "0"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--"]
    ranks = process(*torchrun, "run.py", "grid", *REAL, *axes, "--out", str(out))
    printed, err = ranks.communicate(timeout=600)
    assert ranks.returncode == 1, err
    assert sorted(path.name for path in out.glob("*.jsonl")) == ["cells-0.jsonl", "cells-1.jsonl"]
    trained = [line.split()[0] for line in printed.splitlines() if " trained the original" in line]
    assert sorted(trained) == ["poison", "random"] and len(list((out / "originals").glob("*.pt"))) == 2
    assert do(tmp_path / "one", *axes, "--quiet", size=REAL) == 1
    assert numbers(out) == numbers(tmp_path / "one")
    assert statuses(out) == {("no-ul", "ok"): 4, ("npo", "ok"): 4, ("own.py:picky", "ok"): 2,
                             ("own.py:picky", "failed"): 2}


def test_workers_at_home():
    """One job runs in this process; what it raises is in the future."""
    with Workers(1) as workers:
        assert workers.submit(os.getpid).result() == os.getpid()
        assert isinstance(workers.submit(time.sleep, "long").exception(), TypeError)


@pytest.mark.slow
def test_ctrl_c_waits_for_no_worker():
    """R3: an interrupt ends the workers at once, whatever they do."""
    with pytest.raises(KeyboardInterrupt), Workers(2) as workers:
        future = workers.submit(time.sleep, 3600)
        within(300, future.running)
        raise KeyboardInterrupt
    assert not multiprocessing.active_children()
