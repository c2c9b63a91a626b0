"""run.py and settings.py: the command line, its errors, its result rows (Table 3, A.3)."""

import copy
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiment import cell as experiment
import run
import metrics
from experiment.datasets import load
from engine.checks import NonFiniteLoss
from etd import mask_table
from helpers import assert_same_state, gen, make_dataset, small_net, tiny
from experiment.methods import METHODS, code_of, load_method
from models import build
from rem import start
from engine.streams import stream
from experiment.settings import ARCH_PRESETS, Config, DATASET_PRESETS, check, resolve
from tasks import TASKS
from tasks import discover
from test_data import write_cifar10, write_tree

ROOT = Path(run.__file__).resolve().parent
QUICK = ["--epochs", "1", "--unlearn-epochs", "1", "--n", "20", "--width", "0.1", "--batch", "64", "--max-passes", "2",
         "--device", "cpu"]
# In a few passes rounding decides whether gamma is reached.
pytestmark = pytest.mark.filterwarnings(r"ignore:Acc\(D_f\) is")
TIMES = {"seconds", "train_seconds", "argv", "out"}  # what may differ between two runs of one command


@pytest.fixture
def few(monkeypatch):
    """The built-in data, cut to its first 200 training and 50 test images."""
    def cut(data, n):
        return replace(data, images=data.images[:n], labels=data.labels[:n])

    def load_few(*args):
        dataset = load(*args)
        return replace(dataset, train=cut(dataset.train, 200), test=cut(dataset.test, 50))

    monkeypatch.setattr(run, "load", load_few)


@pytest.fixture
def made(monkeypatch):
    """24 random images of 4 classes in place of the built-in data."""
    monkeypatch.setattr(run, "load", lambda *args: make_dataset(0, size=8))


def rows_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def command(*arguments, **more):
    """Run the real command line in its own process."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    return subprocess.run([sys.executable, ROOT / "run.py", *arguments], capture_output=True, text=True,
                          env=environment,
                          timeout=300, **more)


# --- Running ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("etd", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_and_method_runs(few, tmp_path, capsys, task, etd):
    """R1: every task and method runs on the built-in data and leaves one good row each."""
    out = tmp_path / "cells.jsonl"
    flags = ["--etd"] if etd else []
    assert run.main(["--task", task, "--method", "all", "--out", str(out), *QUICK, *flags]) == 0
    rows, printed = rows_of(out), capsys.readouterr().out
    assert {row["status"] for row in rows} == {"ok"} and len({row["method"] for row in rows}) == len(rows) >= 4
    for row in rows:
        assert row["task"] == task and row["etd"] is etd
        assert all(0 <= row[key] <= 1 for key in ("healed", "healed_undiscovered", "utility", "product"))
        assert row["product"] == row["healed"] * row["utility"]
        assert re.search(rf"^{re.escape(row['method'])} +{100 * row['healed']:.1f} ", printed, re.MULTILINE)


def test_the_command_itself(tmp_path):
    """R1, R3: a real process on the real built-in data: what it prints and what it leaves."""
    out = tmp_path / "new" / "cells.jsonl"
    done = command("--task", "poison", "--discovery", "0.5", *QUICK, "--n", "60", "--gamma", "1", "--out", str(out),
                   cwd=tmp_path)  # at gamma 1 step 2 makes no pass, so nothing can warn on any CPU
    assert done.returncode == 0 and done.stderr == "", done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "poison on fashion-mini: 6000 images of 16x16, 60 corrupted, 30 of them discovered (50%)"
    assert re.fullmatch(r"train    epoch   1/1  loss +\d+\.\d{4} +\d+\.\d s +0\.0 s left", lines[2])
    assert [row["method"] for row in rows_of(out)] == ["no-ul", "cf", "npo", "rem"]
    assert sorted(tmp_path.rglob("*")) == [out.parent, out]  # nothing else is left behind


def test_same_command_same_numbers(few, tmp_path):
    """R4: the same command twice gives the same bytes in its rows, times aside; another seed does not."""
    kept = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        out = tmp_path / name
        assert run.main(["--seed", seed, "--out", str(out), "--quiet", *QUICK]) == 0
        kept.append([json.dumps({k: v for k, v in row.items() if k not in TIMES | {"seed"}}) for row in rows_of(out)])
    assert kept[0] == kept[1] != kept[2]


# --- Seeds ------------------------------------------------------------------------------------------------------------


def seeded(seed, **changes):
    """Settings that differ in their seed, and the data that all of them read."""
    return tiny(seed=seed, n=20, discovery=0.5, width=0.1, batch=8, **changes), make_dataset(0, n=80, size=16)


def same_state(a, b) -> bool:
    """Whether two networks have the same bits."""
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", TASKS)
def test_the_seed_draws_the_task(name):
    """R4, T10: D_c and what is done to it follow the seed: the same for the same one, another for another."""
    first, again, other = (experiment.corrupt(*seeded(seed, task=name)) for seed in (1, 1, 2))
    assert torch.equal(first.corrupted, again.corrupted) and torch.equal(first.train.labels, again.train.labels)
    assert torch.equal(first.train.images, again.train.images)
    assert not torch.equal(first.corrupted, other.corrupted) and not torch.equal(first.train.labels, other.train.labels)


def test_the_seed_draws_what_is_discovered():
    """R4, T10: D_f of one and the same task follows the seed."""
    task = experiment.corrupt(*seeded(1))
    first, again, other = (experiment.find(seeded(seed)[0], task) for seed in (1, 1, 2))
    assert len(first) == len(other) == 10 and torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("arch", ["resnet9", "vit"])
def test_the_seed_draws_the_weights(arch):
    """R4, N1: every weight matrix of a new network follows the seed."""
    first, again, other = (experiment.new_model(*seeded(seed, arch=arch)) for seed in (1, 1, 2))
    assert_same_state(first, again)
    drawn = [(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True) if a.dim() > 1 and a.std() > 0]
    assert len(drawn) > 5 and not any(torch.equal(a, b) for a, b in drawn)


@pytest.mark.parametrize("etd", [False, True])
def test_the_seed_draws_the_training(monkeypatch, etd):
    """R4: from the same weights on the same data, training follows the seed, though the masks of ETD stay the same."""
    if etd:
        monkeypatch.setattr(experiment, "train_etd", lambda model, data, config, *args, inner=experiment.train_etd,
                            **more: inner(
            model, data, replace(config, seed=0), *args, **more))
    task = experiment.corrupt(*seeded(1))
    first, again, other = (experiment.train_original(seeded(seed, etd=etd)[0], task, small_net(0, width=4))
                           for seed in (1, 1, 2))
    assert_same_state(first, again)
    assert not same_state(first, other)


def test_the_seed_draws_the_unlearning():
    """R4: from the same network, data and D_f, unlearning follows the seed; every method has the same draws."""
    task, original, kept = experiment.corrupt(*seeded(1)), small_net(0), []
    before = copy.deepcopy(original)

    def method(model, data, forget, config, generator):
        kept.append((METHODS["cf"].function(model, data, forget, config, generator),
                     torch.rand(4, generator=generator).tolist()))
        return kept[-1][0]

    forget = experiment.find(seeded(1)[0], task)
    for name, seed in (("cf", 1), ("npo", 1), ("cf", 2)):
        assert experiment.unlearn(seeded(seed)[0], name, method, original, task, forget)["status"] == "ok"
    assert_same_state(original, before)
    assert_same_state(kept[0][0], kept[1][0])
    assert kept[0][1] == kept[1][1] != kept[2][1] and not same_state(kept[0][0], kept[2][0])


# --- Where a row comes from -------------------------------------------------------------------------------------------


def test_row_holds_what_reproduces_it(few, tmp_path):
    """R3: a row has every setting, the versions, the commit, the command; the settings read back make the same
    Config."""
    out = tmp_path / "cells.jsonl"
    argv = ["--task", "random", "--discovery", "0.3", "--method", "no-ul", "--out", str(out), *QUICK]
    assert run.main(argv) == 0
    row = rows_of(out)[0]
    wanted = "dataset task discovery n arch capacity etd p_mem method seed healed healed_undiscovered utility product"
    assert set(wanted.split() + "seconds status error device torch version git argv".split()) <= set(row)
    assert row["torch"] == torch.__version__ and row["version"] == experiment.VERSION and row["argv"] == argv
    names = {f.name for f in fields(Config)}
    again = resolve({key: value for key, value in row.items() if key in names})
    assert asdict(again) == asdict(resolve(vars(run.parser().parse_args(argv))))  | {"device": "cpu"}


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
def test_the_commit_of_the_code(tmp_path, monkeypatch):
    """R3: a row names the commit that HEAD is, tagged or not, "-dirty" once a tracked file differs; outside a checkout
    None."""
    # a hook's point to the repository that it is of
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    for name, value in dict(CEILING_DIRECTORIES=str(tmp_path.parent), CONFIG_GLOBAL=os.devnull,
                            CONFIG_NOSYSTEM="1").items():
        monkeypatch.setenv(f"GIT_{name}", value)

    def git(*arguments):
        settings = ["-c", "user.name=T", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *settings, *arguments], cwd=tmp_path, check=True, capture_output=True,
                              text=True).stdout

    code = tmp_path / "cell.py"
    code.write_text("first\n")
    monkeypatch.setattr(experiment, "__file__", str(code))
    assert experiment.git_hash() is None
    git("init", "-q")
    git("add", "cell.py")
    git("commit", "-q", "-m", "first")
    head = git("rev-parse", "HEAD").strip()
    assert re.fullmatch("[0-9a-f]{40}", head) and experiment.git_hash() == head
    git("tag", "-a", "v1", "-m", "first")
    (tmp_path / "untracked").touch()
    assert experiment.git_hash() == head == experiment.provenance(torch.device("cpu"), [])["git"]
    code.write_text("second, and longer\n")
    assert experiment.git_hash() == head + "-dirty"
    git("commit", "-q", "-a", "-m", "second")
    assert experiment.git_hash() == git("rev-parse", "HEAD").strip() != head


# --- What is printed --------------------------------------------------------------------------------------------------


def test_quiet_prints_the_table_only(few, tmp_path, capsys):
    """R1: --quiet leaves the table alone on stdout."""
    assert run.main(["--quiet", "--method", "no-ul", "--out", str(tmp_path / "x"), *QUICK]) == 0
    out, err = capsys.readouterr()
    assert out.split()[:6] == "method Healed undiscovered Utility product seconds".split()
    assert len(out.splitlines()) == 3
    assert err == ""


def test_full_discovery_has_no_undiscovered(few, tmp_path, capsys):
    """V5, R1: at discovery 1 the undiscovered share is null in the row and a dash in the table."""
    out = tmp_path / "x"
    assert run.main(["--discovery", "1", "--quiet", "--method", "no-ul", "--out", str(out), *QUICK]) == 0
    assert rows_of(out)[0]["healed_undiscovered"] is None
    assert capsys.readouterr().out.splitlines()[2].split()[2] == "-"


def test_no_unlearning_is_the_trained_network(few, tmp_path, monkeypatch):
    """S6: "no-ul" evaluates the trained network itself, bit for bit, and leaves it as it was."""
    seen = {}
    monkeypatch.setattr(run, "train_original", lambda *a, inner=run.train_original: seen.setdefault("trained",
        inner(*a)))
    monkeypatch.setattr(experiment, "evaluate", lambda m, *a,
                        inner=experiment.evaluate: inner(seen.setdefault("measured", m), *a))
    assert run.main(["--method", "no-ul", "--quiet", "--out", str(tmp_path / "x"), *QUICK]) == 0
    for a, b in zip(seen["trained"].state_dict().values(), seen["measured"].state_dict().values(), strict=True):
        assert torch.equal(a, b)


# --- Failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [QUICK, [*QUICK, "--method", "no-ul", "--quiet"], ["grid", *QUICK, "--dry-run"]],
                         ids=["cell", "quiet", "grid"])
def test_a_reader_that_has_enough(tmp_path, argv):
    """R2: a pipe that closes before anything is printed, as head may close it, ends the run with exit code 1 and no
    words."""
    environment = {name: value for name,
                   value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-B", ROOT / "run.py", *argv, "--out", tmp_path / "x"],
                          stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == ("", 1)
    assert "--quiet" in argv or not list(tmp_path.iterdir())  # a quiet run prints when it is done


def test_a_reader_that_has_enough_is_no_failure(tmp_path):
    """R2, R3: a pipe that closes in the middle of training leaves no row that says a method failed."""
    environment = {name: value for name,
                   value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-B", ROOT / "run.py", *QUICK, "--epochs", "9", "--out", tmp_path / "x"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=environment) as process:
        lines = [process.stdout.readline() for _ in range(3)]
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == ("", 1) and lines[2].startswith("train")
    assert not list(tmp_path.iterdir())


def test_diverging_method_is_recorded(few, tmp_path, capsys):
    """R3: a loss that is not finite stops its method with its own error, in a row; the others go on; exit 1."""
    out = tmp_path / "x"
    argv = ["--method", "cf,no-ul", "--unlearn-lr", "1e30", "--weight-decay", "0", "--quiet", "--out", str(out), *QUICK]
    assert run.main([*argv, "--unlearn-epochs", "3"]) == 1
    bad, good = rows_of(out)
    assert bad["status"] == "failed" and "NonFiniteLoss" in bad["error"] and bad["healed"] is None
    assert good["status"] == "ok" and "NonFiniteLoss" in capsys.readouterr().out


def test_diverging_training_is_recorded(few, tmp_path):
    """R3: where the original network fails to train, every method's row says so."""
    out = tmp_path / "x"
    assert run.main(["--lr", "1e30", "--quiet", "--out", str(out), *QUICK, "--epochs", "3"]) == 1
    assert [row["status"] for row in rows_of(out)] == ["failed"] * 4
    assert all(row["error"].startswith("training: NonFiniteLoss") for row in rows_of(out))


def test_interrupt_keeps_the_rows(few, tmp_path, monkeypatch, capsys):
    """R3: an interrupt during the second method leaves the first one's row, one line and exit code 130."""
    def interrupt(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setitem(METHODS, "cf", replace(METHODS["cf"], function=interrupt))
    out = tmp_path / "x"
    assert run.main(["--method", "no-ul,cf", "--quiet", "--out", str(out), *QUICK]) == 130
    assert [row["method"] for row in rows_of(out)] == ["no-ul"] and len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("state, every, words", [(True, "1", "the same command goes on from "),
                                                 (False, "1", "no state is kept, so the same command begins anew"),
                                                 (True, "0", "no state is kept, so the same command begins anew")])
def test_an_interrupted_repair_tells_of_its_state(tmp_path, monkeypatch, capsys, state, every, words):
    """R3: Ctrl-C in a repair names the state that the same command goes on from, where it reads one."""
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(run.repair, "main", interrupt)
    kept = tmp_path / "new.state"
    if state:
        kept.touch()
    argv = ["--data", "d", "--model", "vit", "--checkpoint", "c", "--bad", "b", "--out", str(tmp_path / "new.pt")]
    assert run.main(["repair", *argv, "--checkpoint-every", every]) == 130
    more = f"{kept}, if that is its own" if state and every == "1" else ""
    assert capsys.readouterr().err == f"run.py: interrupted; {words}{more}\n"


def test_an_interrupted_report_promises_no_rows(monkeypatch, capsys):
    """R3: nor does it speak of a result file."""
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(run.report, "main", interrupt)
    assert run.main(["report", "results"]) == 130
    assert capsys.readouterr().err == "run.py: interrupted; what was written is whole\n"


def test_failed_write_leaves_the_old_rows(tmp_path, monkeypatch):
    """R3, R10: a row that does not reach the disk is taken back: the old ones stand and nothing lies beside them."""
    out = tmp_path / "x"
    experiment.append_row(str(out), {"a": 1})

    def fail(*args):
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(os, "fsync", fail)
        experiment.append_row(str(out), {"a": 2})
    assert rows_of(out)[0] == {"a": 1} and list(tmp_path.iterdir()) == [out]
    experiment.append_row(str(out), {"a": 3})
    assert rows_of(out)[-1] == {"a": 3}


def test_a_row_is_appended(tmp_path):
    """R10: a row goes behind those that are there, in the very same file: nothing is written anew, and a link is
    followed."""
    out, link = tmp_path / "x", tmp_path / "link"
    link.symlink_to(out)
    experiment.append_row(str(link), {"a": 0})
    before = out.stat().st_ino, out.read_bytes()
    for number in (1, 2):
        experiment.append_row(str(link), {"a": number})
    assert link.is_symlink() and out.stat().st_ino == before[0] and out.read_bytes().startswith(before[1])
    assert rows_of(out) == [{"a": number} for number in range(3)] and sorted(tmp_path.iterdir()) == [link, out]


@pytest.mark.skipif(os.name == "nt", reason="no pipes and devices there")
@pytest.mark.parametrize("kind", ["pipe", "device", "circle"])
def test_out_is_a_regular_file(tmp_path, capsys, kind):
    """R10: --out that names a pipe, a device or a link to itself is refused in one line, and it stays what it is."""
    out = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(out)
    else:
        out.symlink_to("/dev/null" if kind == "device" else out)
    assert run.main(["--out", str(out), *QUICK]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"run.py: cannot write results to {out}") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [out] and (out.is_fifo() if kind == "pipe" else out.is_symlink())


def test_torn_line_of_another_program_is_kept_apart(tmp_path):
    """R3: a file that ends without a newline does not swallow the next row."""
    out = tmp_path / "x"
    out.write_text('{"a": 1}\n{"torn": ')
    experiment.append_row(str(out), {"a": 2})
    assert out.read_text().splitlines()[2] == '{"a": 2}'


APPENDER = """
import experiment, sys
for i in range(int(sys.argv[2])):
    experiment.append_row(sys.argv[1], {'i': i, 'pad': 'x' * 3000})
"""


def test_killed_writer_tears_nothing(tmp_path):
    """R3, R10: SIGKILL at any moment leaves whole rows, in order, without a gap, a torn one at most behind them, and no
    other file; the next row begins a line."""
    out = tmp_path / "x"
    for delay in (0.05, 0.15, 0.3):
        out.unlink(missing_ok=True)
        writer = subprocess.Popen([sys.executable, "-c", APPENDER, str(out), "100000"], cwd=ROOT)
        while not out.exists() or not out.stat().st_size:
            time.sleep(0.01)
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        *lines, last = out.read_bytes().split(b"\n")
        numbers = [json.loads(line)["i"] for line in lines]
        assert numbers == list(range(len(numbers))) and numbers and list(tmp_path.iterdir()) == [out]
        experiment.append_row(str(out), {"i": -1})
        assert out.read_bytes().split(b"\n")[-2] == b'{"i": -1}'


def test_a_short_write_is_taken_back(tmp_path):
    """R3, R10: a row of which the disk takes a part alone is an error, and none of it stays."""
    resource = pytest.importorskip("resource")
    out = tmp_path / "x"
    out.write_bytes(b'{"a": 1}\n')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (out.stat().st_size + 10, hard))
    try:
        with pytest.raises(OSError):
            experiment.append_row(str(out), {"b": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert out.read_bytes() == b'{"a": 1}\n'


def test_errors_of_one_process_of_several(monkeypatch, capsys):
    """R3: of several processes one that fails may not go on alone; a loss that is not finite is one of all of them."""
    def fail(error):
        raise error

    for processes in (1, 2):
        monkeypatch.setattr(experiment, "ranks", lambda: (0, processes))
        assert "NonFiniteLoss: too high" in experiment.attempt(lambda: fail(NonFiniteLoss("too high")))[2]
    with pytest.raises(RuntimeError, match="mine alone"):
        experiment.attempt(lambda: fail(RuntimeError("mine alone")))
    monkeypatch.setattr(experiment, "ranks", lambda: (0, 1))
    assert "RuntimeError: mine alone" in experiment.attempt(lambda: fail(RuntimeError("mine alone")))[2]


def test_the_printed_comparison():
    """R1: each number of a row stands in its own column, in percent; what no method could find is a dash."""
    row = {"method": "rem", "status": "ok", "healed": 0.9, "healed_undiscovered": 0.8, "utility": 0.7, "product": 0.63,
           "seconds": 4.25}
    lines = run.table([row, {**row, "method": "npo", "healed_undiscovered": None, "seconds": 12.0}]).splitlines()
    assert lines[1].split() == ["method", "Healed", "undiscovered", "Utility", "product", "seconds"]
    assert lines[2].split() == ["rem", "90.0", "80.0", "70.0", "63.0", "4.2"]
    assert lines[3].split() == ["npo", "90.0", "-", "70.0", "63.0", "12.0"]


def test_a_row_costs_the_same_in_a_long_file(tmp_path, monkeypatch):
    """R10: a row is one write and one sync, however many there are before it; of those one byte is read."""
    out, calls = tmp_path / "x", []
    out.write_bytes(b'{"a": 1}\n' * 50_000)
    monkeypatch.setattr(os, "fsync", lambda *args, inner=os.fsync: (calls.append("sync"), inner(*args)))
    inode = out.stat().st_ino
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda *args: pytest.fail("read whole"))
        experiment.append_row(str(out), {"a": 2})
    assert calls == ["sync"] and out.stat().st_ino == inode and out.stat().st_size == 9 * 50_001


@pytest.mark.parametrize("kind", ["/dev/full", "/dev/null", "fifo", "folder", "loop", ""])
def test_results_go_to_regular_files_alone(tmp_path, capsys, monkeypatch, kind):
    """R10: a device, a pipe, a folder, a link to itself or no name at all is refused in one line and left as it is."""
    monkeypatch.chdir(tmp_path)
    if kind == "/dev/full" and not os.path.exists(kind):
        pytest.skip("no such device there")
    out = kind if kind.startswith("/") or not kind else str(tmp_path / kind)
    if kind == "fifo":
        os.mkfifo(out)
    elif kind == "folder":
        Path(out).mkdir()
    elif kind == "loop":
        Path(out).symlink_to(out)
    before = os.lstat(out).st_mode if out else None
    monkeypatch.setattr(run, "train_original", lambda *a: pytest.fail("training began"))
    assert run.main(["--out", out]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"run.py: cannot write results to {out} (") and len(err.splitlines()) == 1
    assert not out or os.lstat(out).st_mode == before


def test_links_are_followed_and_kept(few, tmp_path):
    """R10: rows go to the file that a link points to, which may be new, and the link stays one."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there" / "cells.jsonl")
    for _ in range(2):
        assert run.main(["--method", "no-ul", "--quiet", "--out", str(link), *QUICK]) == 0
    assert link.is_symlink() and len(rows_of(tmp_path / "there" / "cells.jsonl")) == 2


def test_a_full_disk_takes_neither_table_nor_later_methods(few, tmp_path, monkeypatch, capsys):
    """R10: where a row cannot be written the next methods run, the table is printed, and the exit code is 1."""
    def full(out, row):
        if row["method"] == "no-ul":
            raise OSError(28, "No space left on device")
        inner(out, row)

    inner, out = run.append_row, tmp_path / "x"
    monkeypatch.setattr(run, "append_row", full)
    assert run.main(["--method", "no-ul,npo", "--quiet", "--out", str(out), *QUICK]) == 1
    printed, err = capsys.readouterr()
    assert [line.split()[0] for line in printed.splitlines() if line] == ["method", "no-ul", "npo"]
    assert err == f"run.py: no row of no-ul in {out} ([Errno 28] No space left on device)\n"
    assert [row["method"] for row in rows_of(out)] == ["npo"]


def test_two_writers_lose_no_row(tmp_path):
    """R3: runs that share a result file keep every row of both."""
    out = tmp_path / "x"
    writers = [subprocess.Popen([sys.executable, "-c", APPENDER, str(out), "30"], cwd=ROOT) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert sorted(row["i"] for row in rows_of(out)) == sorted([*range(30)] * 2)


# --- Bad input --------------------------------------------------------------------------------------------------------

BAD = [
    (["--discovery", "0"], "discovery is 0.0; it must be in (0, 1]"),
    (["--discovery", "1.5"], "discovery is 1.5"),
    (["--discovery", "nan"], "discovery is nan"),
    (["--n", "6001"], "n is 6001; it must be from 1 to 6000"),
    (["--n", "0"], "n is 0"),
    (["--task", "confusion", "--n", "21"], "n is 21; confusion swaps n / 2 examples of each class, so it must be even"),
    (["--task", "confusion", "--n", "1400"], "can be at most 1200"),
    (["--task", "confusion", "--pair", "3"], "pair is '3'; give two class numbers such as 3,5"),
    (["--task", "confusion", "--pair", "3,3"], "pair is 3,3"),
    (["--task", "confusion", "--pair", "3,10"], "pair is 3,10"),
    (["--discovery", "0.01", "--n", "20"], "discovery 0.01 of 20 corrupted examples finds none"),
    (["--n", "6000", "--discovery", "1"], "all 6000 training examples"),
    (["--task", "poisn"], "invalid choice: 'poisn'"),
    (["--method", "rme"], "unknown method 'rme'; choose from no-ul"),
    (["--method", ","], "no method given"),
    (["--dataset", "mnist"], "unknown data set 'mnist'"),
    (["--dataset", "folder", "--data-dir", "no/such", "--image-size", "16"], "no/such"),
    (["--dataset", "folder"], "image_size"),
    (["--dataset", "cifar10", "--data-dir", "no/such"], "--download"),
    (["--image-size", "2"], "smaller than"),
    (["--image-size", "6"], "smaller than ResNet-9 takes"),
    (["--arch", "vit", "--image-size", "20"], "image size 20 and patch size 8"),
    (["--device", "cuda:99"], "device 'cuda:99' is not there"),
    (["--device", "toaster"], "device 'toaster' is not there"),
    (["--device", "meta"], "device 'meta' is not there"),  # a tensor without values could be made there
    (["--device", "hpu"], "device 'hpu' is not there"),  # torch wants a module of that name
    (["--width", "1e12"], "bytes asked for; take a smaller network"),  # more memory than there is
    (["--width", "1e300"], "run.py: "),
    (["--image-size", "1000000"], "run.py: out of memory, "),
    (["--out", "."], "cannot write results to ."),
    (["--out", "run.py/x"], "cannot write results to run.py/x"),
    (["--gamma", "2"], "gamma is 2.0"),
    (["--beta", "0"], "beta is 0.0"),
    (["--p-mem", "-0.1"], "p-mem is -0.1"),
    (["--capacity", "2"], "capacity is 2.0"),
    (["--ratio", "1e9"], "ratio is 1e+09; theta_o2 would take"),
    (["--batch", "1"], "batch is 1"),
    (["--lr", "-1"], "lr is -1.0"),
    (["--seed", "-1"], "seed is -1"),
    (["--epochs", "two"], "invalid int value: 'two'"),
    (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
    (["--disc", "0.5"], "unrecognized arguments: --disc 0.5"),
]


@pytest.mark.parametrize("argv, words", BAD, ids=[" ".join(argv) for argv, _ in BAD])
def test_bad_input(monkeypatch, tmp_path, capsys, argv, words):
    """R2, R7, T14: one line on stderr that says what was found and what was expected, exit 2, before any training."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(run, "train_original", lambda *a: pytest.fail("training began"))
    argv = argv if "--out" in argv else [*argv, "--out", str(tmp_path / "x")]
    try:
        code = run.main(argv)
    except SystemExit as stop:  # argparse's own errors
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2 and words in err and len(err.splitlines()) == 1 and out == "", err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("text, told", [
    ("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
     "1152 bytes. Error code 12", "out of memory, 1152 bytes asked for; take a smaller network, image size or batch"),
    ("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has", "out of memory, 20.00 MiB asked for; take a smaller "
                                                                   "network, image size or batch"),
    ("\n first\nsecond", "first"), ("", "RuntimeError")])
def test_what_went_wrong(text, told):
    """R2: the first line of an error, in words of ours where torch lacks memory."""
    assert run.what_went_wrong(RuntimeError(text)) == told


def test_unwritable_folder(tmp_path, monkeypatch, capsys):
    """R2: a folder without write permission is refused before training (root may write anywhere, so the check is
    asked)."""
    monkeypatch.setattr(experiment.os, "access", lambda *a: False)
    assert run.main(["--out", str(tmp_path / "x")]) == 2
    assert "permission denied" in capsys.readouterr().err


def test_bad_input_of_a_real_process(tmp_path):
    """R2: no traceback reaches the user."""
    done = command("--task", "nonsense", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert all(name in done.stderr for name in TASKS) and not list(tmp_path.iterdir())


def test_help_fits_on_two_screens(capsys, monkeypatch):
    """R2: on a screen of 80 columns --help has at most 100 lines, its flags below the stage that they belong to."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        run.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 100 and max(map(len, lines)) <= 80
    heads = [k for k, line in enumerate(lines) if line.endswith(":") and line[:1] not in ("", " ")]
    parts = {lines[a].split()[0].rstrip(",:"): lines[a:b] for a, b in zip(heads, [*heads[1:], None], strict=True)}
    assert list(parts)[-5:] == ["task", "network", "training", "unlearning", "the"]
    for f in fields(Config):
        part = parts[f.metadata["stage"].replace("run", "the")]
        assert any(line.startswith(f"  --{f.name.replace('_', '-')}") for line in part), f.name


def test_help_shows_every_setting_and_default(capsys, monkeypatch):
    """R2: --help names every flag with its default and the presets that change it."""
    monkeypatch.setenv("COLUMNS", "300")  # no word is broken at its hyphen
    with pytest.raises(SystemExit) as stop:
        run.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for f in fields(Config):
        assert "--" + f.name.replace("_", "-") in text
        assert f.default is None or f"(default: {f.default}" in text
    for name, preset in {**ARCH_PRESETS, **DATASET_PRESETS}.items():
        assert all(f"{name}: {value}" in text for value in preset.values())


# --- Settings ---------------------------------------------------------------------------------------------------------


def test_table_3():
    """R8: the default of every hyperparameter of Table 3 is the paper's value."""
    paper = dict(lr=0.025, epochs=40, batch=512, optimizer="sgd", gamma=0.2, beta=1.0, unlearn_lr=0.005,
                 unlearn_epochs=10,
                 p_mem=0.2, n=1000, capacity=0.5, arch="resnet9")
    assert {key: getattr(Config(), key) for key in paper} == paper
    vit = resolve({"arch": "vit", "dataset": "svhn"})
    assert (vit.lr, vit.batch, vit.optimizer, vit.unlearn_lr, vit.epochs) == (1e-4, 2048, "adam", 2e-5, 40)
    assert resolve({"dataset": "imagenette"}).n == 100  # A.7
    assert resolve({"dataset": "cifar10"}) == Config(dataset="cifar10")  # no preset touches the paper's main setting


def test_given_settings_win():
    """R3: what the command line names beats both presets; the data set's preset gives way to the architecture's."""
    assert resolve({"epochs": 3, "lr": 0.1}).epochs == 3
    both = resolve({"arch": "vit", "dataset": "fashion-mini"})
    assert (both.optimizer, both.lr, both.n) == ("adam", 1e-4, DATASET_PRESETS["fashion-mini"]["n"])
    with pytest.raises(ValueError, match="unknown setting 'epoch'"):
        resolve({"epoch": 3})


def test_extra_ratio():
    """X3, X7: theta_o2 fills the 100 % network by default: 1 / capacity - 1; none at capacity 1."""
    assert Config(capacity=0.5).extra_ratio == 1 and Config(capacity=0.25).extra_ratio == 3
    assert Config(capacity=1.0).extra_ratio == 0 and Config(capacity=1.0, ratio=0.5).extra_ratio == 0.5


@given(st.integers(0, 2**62), st.sampled_from(["a", "b", "task", "masks"]))
def test_streams_are_independent(seed, purpose):
    """M6, T10: a stream depends on seed and purpose alone and no two of them share their numbers."""
    draw = [torch.rand(4, generator=stream(*key)).tolist() for key in ((seed, purpose), (seed, purpose),
        (seed + 1, purpose), (seed, purpose + "x"))]
    assert draw[0] == draw[1] and len({tuple(d) for d in draw}) == 3


@pytest.mark.parametrize("name", [f.name for f in fields(Config) if f.metadata.get("choices")])
def test_choices_are_checked(name):
    """R2: a Config made in code is held to the same choices as the command line."""
    with pytest.raises(ValueError, match="choose from"):
        check(replace(Config(), **{name: "nonsense"}))


BAD_SETTINGS = [("gamma", 5, ValueError, "gamma is 5; it must be in"),
                ("redirect", "foo", ValueError, "choose from npo, ce"),
                ("optimizer", "adamw", ValueError, "choose from sgd, adam"),
                ("n", 0, ValueError, "a finite number at least 1"),
                ("lr", float("inf"), ValueError, "lr is inf; it must be a finite number at least 0"),
                ("beta", "1", TypeError, "must be float"),
                ("seed", 2**63, ValueError, "seed is 9223372036854775808"), ("n", 2.0, TypeError, "it must be int"),
                ("etd", 1, TypeError, "etd is 1; it must be bool"), ("epochs", True, TypeError,
                                                                     "epochs is True; it must be int"),
                ("width", 10**400, ValueError, "a finite number above 0"), ("method", None, TypeError, "must be str"),
                ("gamma", float("nan"), ValueError, "gamma is nan"), ("out", ["x"], TypeError, "must be str")]


@pytest.mark.parametrize("name, value, kind, words", BAD_SETTINGS)
def test_a_config_checks_itself(name, value, kind, words):
    """R2: settings of a wrong type or out of their range are refused however they are made: by name, by replace, by
    resolve."""
    for make in (lambda: Config(**{name: value}), lambda: replace(Config(), **{name: value}),
                 lambda: resolve({name: value})):
        with pytest.raises(kind, match=re.escape(words)):
            make()


def test_no_ratio_and_a_ratio_of_zero():
    """X7: a ratio of 0 is no theta_o2, not the default of the rest of the 100 % network."""
    assert Config(ratio=0.0).extra_ratio == 0 != Config(ratio=None).extra_ratio == 1


def test_rectangular_images_are_refused(monkeypatch, tmp_path, capsys):
    """R2: images that are not square are refused before training."""
    dataset = make_dataset(0)
    tall = replace(dataset.train, images=torch.cat([dataset.train.images, dataset.train.images], dim=2))
    monkeypatch.setattr(run, "load", lambda *a: replace(dataset, train=tall))
    assert run.main(["--n", "4", "--out", str(tmp_path / "x")]) == 2
    assert "16x8" in capsys.readouterr().err


def test_import_is_quiet():
    """R7: importing every module prints nothing, reads no data and leaves matplotlib alone."""
    code = "import run, sys; assert 'matplotlib' not in sys.modules and 'torchvision' not in sys.modules"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


WATCHED_IMPORT = """
import importlib, os, sys
from pathlib import Path
import numpy, torch, torch.nn.functional

root, names, seen = Path(sys.argv[1]), sys.argv[2:], []
sys.addaudithook(lambda event, args: seen.append((event, args)) if event == "open" or event.startswith((
    "os.", "shutil.", "socket.", "subprocess.", "tempfile.")) else None)
for name in names:
    importlib.import_module(name)
events, seen = seen, []
opened = [(Path(os.fsdecode(args[0])), args[2]) for event, args in events
          if event == "open" and not isinstance(args[0], int)]
print(*{event for event, args in events
        if event not in ("open", "os.listdir", "os.scandir", "os.putenv", "os.unsetenv")})
print(*[path for path, flags in opened if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)])
print(*[path for path, flags in opened
        if path.suffix in (".npz", ".jsonl", ".pt", ".gz") or root / "data" in path.parents])
print(*{path.relative_to(root) for path, flags in opened if path.is_relative_to(root)
        and path.suffix not in (".py", ".pyc") and "site-packages" not in path.parts})
listed = [str(args[0]) for event, args in events if event in ("os.listdir", "os.scandir")]
print(*[folder for folder in listed if folder.startswith(str(root / "data"))])
print(len(opened))
"""


def test_import_reads_and_writes_nothing(tmp_path):
    """R7: importing every shipped module, in one process, opens no data, writes nothing and starts nothing."""
    names = sorted([path.stem for path in ROOT.glob("*.py")] + [f"study.{path.stem}"
                                                                for path in ROOT.glob("study/*.py")])
    assert {"run", "study.report", "study.figures", "study.tables", "data", "experiment", "study.grid"} <= set(names)
    environment = dict(os.environ, PYTHONPATH=str(ROOT), PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
    done = subprocess.run([sys.executable, "-c", WATCHED_IMPORT, ROOT, *names], cwd=tmp_path, capture_output=True,
                          text=True,
                          env=environment, timeout=300)
    assert done.stderr == ""
    others, written, data, read, listed, opened = done.stdout.splitlines()
    assert (others, written, data, listed) == ("", "", "", "")
    assert read in ("", "study/paper.json")  # the paper's numbers, a source of tables.py like its code
    assert int(opened) >= len(names) and not list(tmp_path.iterdir())


def test_own_method_that_works_in_place(few, tmp_path):
    """A11: what one's own method does to the network, the data or D_f that it is given reaches no other method."""
    path, out = tmp_path / "mine.py", tmp_path / "x"
    path.write_text("def spoil(model, data, forget, config, generator):\n"
                    "    for p in model.parameters():\n        p.data.zero_()\n"
                    "    data.labels.zero_()\n    data.images.zero_()\n    forget.zero_()\n"
                    "    return model\n")
    assert run.main(["--method", f"no-ul,npo,{path}:spoil", "--quiet", "--out", str(out), *QUICK]) == 0
    assert run.main(["--method", f"{path}:spoil,no-ul,npo", "--quiet", "--out", str(out), *QUICK]) == 0
    first, second = rows_of(out)[:3], rows_of(out)[3:]
    scores = [{row["method"]: (row["healed"], row["utility"]) for row in rows} for rows in (first, second)]
    assert scores[0] == scores[1] and first[2]["code"] == second[0]["code"] != first[0]["code"] is None


ODD_METHODS = {  # what a user-supplied method does, and the error in its row (None: a good row)
    "leaves": ("sys.exit(0)", "SystemExit: 0"),
    "generator": ("raise GeneratorExit", "GeneratorExit"),
    "base": ("raise BaseException('stop')", "BaseException: stop"),
    "mute": ("raise ValueError", "ValueError"),
    "lines": ("raise ValueError('\\n\\nfirst\\nsecond')", "ValueError: first"),
    "unspeakable": ("raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})", "Odd"),
    "nothing": ("return None", "TypeError: odd.py:f returned NoneType; a method returns the unlearned network"),
    "outputs": ("return torch.nn.Sequential(model, torch.nn.Linear(4, 5))",
                "ValueError: odd.py:f returned a network of 5 outputs; the one that it was given has 4"),
    "folder": ("os.chdir('/')", None),
    "dtype": ("torch.set_default_dtype(torch.float64)", None),
    "device": ("torch.set_default_device('meta')", None),
    "gradients": ("torch.set_grad_enabled(False)", None),
    "threads": ("torch.set_num_threads(3)", None),
    "seed": ("torch.manual_seed(5)", None),
    "all": ("os.chdir('/'); torch.set_default_dtype(torch.float64); torch.set_grad_enabled(False); sys.exit(3)",
            "SystemExit: 3"),
}
SMALL = ["--n", "6", "--width", "0.1", "--epochs", "1", "--unlearn-epochs", "1", "--batch", "8", "--max-passes", "2",
         "--device", "cpu", "--quiet"]
SCORES = ("healed", "healed_undiscovered", "utility", "acc_forget", "learnt", "passes", "gave_up", "error")


@pytest.mark.filterwarnings("ignore:Acc")
@pytest.mark.parametrize("kind", ODD_METHODS)
def test_what_an_odd_method_does_reaches_no_other(made, tmp_path, monkeypatch, kind):
    """R11: a method that exits, raises anything or changes the world is a failed row at most; the next give what they
    give alone."""
    body, error = ODD_METHODS[kind]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.py").write_text(f"import os, sys, torch\ndef f(model, data, forget, config, generator):\n"
                                     f"    {body}\n    return model\n")
    state = torch.get_rng_state()
    assert run.main(["--method", "cf,npo", "--out", "alone", *SMALL]) == 0
    assert run.main(["--method", "odd.py:f,cf,npo", "--out", "after", *SMALL]) == (1 if error else 0)
    odd, *others = rows_of("after")
    assert odd["status"] == ("failed" if error else "ok") and (odd["error"] or "").startswith(error or "")
    if error:
        assert re.fullmatch(rf"{re.escape(error)} \(\w+\.py:\d+\)", odd["error"])
    after, alone = ([[row[key] for key in SCORES] for row in rows] for rows in (others, rows_of("alone")))
    assert after == alone
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.filterwarnings("ignore:Acc")
@pytest.mark.parametrize("word", [[], ["grid"]], ids=["run", "grid"])
def test_what_an_odd_file_does_reaches_no_other(made, tmp_path, monkeypatch, word):
    """R11: nor does what a file does where it is imported, or a method that writes into the D_c that it is given."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.py").write_text("import os, torch\nos.chdir('/')\ntorch.set_default_dtype(torch.float64)\n"
                                     "def f(model, data, forget, config, generator, corrupted):\n"
                                     "    corrupted[:] = corrupted[0]\n    return model\n")
    found = []
    for names in ("no-ul,cf,npo", "odd.py:f,no-ul,cf,npo"):
        out = tmp_path / f"with-{names[0]}"
        assert run.main([*word, "--method", names, "--out", str(out), *SMALL]) == 0
        rows = rows_of(out / "cells.jsonl" if word else out)
        found.append([[row[key] for key in SCORES] for row in rows if row["method"] != "odd.py:f"])
    assert found[0] == found[1] and len(found[0]) == 3
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.filterwarnings("ignore:Acc")
@pytest.mark.parametrize("word", [[], ["grid"]], ids=["run", "grid"])
@pytest.mark.parametrize("body", ["path.write_text('')", "path.unlink()"], ids=["changed", "deleted"])
def test_the_code_of_a_row_is_the_code_that_ran(made, tmp_path, monkeypatch, word, body):
    """R3, R9: a row names the contents that a method's file had when it was loaded, though it has changed since."""
    monkeypatch.chdir(tmp_path)
    path, out = tmp_path / "odd.py", tmp_path / "out"
    path.write_text("from pathlib import Path\ndef f(model, data, forget, config, generator):\n"
                    f"    path = Path({str(path)!r})\n    {body}\n    return model\n")
    code = code_of(f"{path}:f")
    assert run.main([*word, "--method", f"{path}:f", "--out", str(out), *SMALL]) == 0
    (row,) = rows_of(out / "cells.jsonl" if word else out)
    assert row["code"] == code and code_of(f"{path}:f") != code


def test_a_method_that_wants_its_neighbour_is_told_how(tmp_path, monkeypatch):
    """R2: a file that imports one beside it is told of PYTHONPATH, which then helps."""
    (tmp_path / "mine.py").write_text("from near_by_odd import f\n")
    (tmp_path / "near_by_odd.py").write_text("def f(model, data, forget, config, generator): return model\n")
    with pytest.raises(ValueError, match=rf"'near_by_odd'\); what lies beside it .* PYTHONPATH={tmp_path.resolve()}"):
        load_method(f"{tmp_path / 'mine.py'}:f")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_method(f"{tmp_path / 'mine.py'}:f")[0] == "mine.py:f"
    for name in ("method_mine", "near_by_odd"):
        sys.modules.pop(name, None)


def test_rows_tell_what_was_learnt(made, tmp_path):
    """R3: every row has the accuracy on D_c's given labels of the network that its method got, whatever the method did
    to it; None where the method trains anew."""
    (tmp_path / "odd.py").write_text("def f(model, data, forget, config, generator):\n"
                                     "    for p in model.parameters():\n        p.data.zero_()\n    return model\n")
    out, given = tmp_path / "x", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "train_original", lambda *a, inner=run.train_original: given.append(inner(*a)) or given[0])
        assert run.main(["--method", f"no-ul,cf,{tmp_path}/odd.py:f,retrain", "--out", str(out), *SMALL]) == 0
    config = resolve({"n": 6})
    task = experiment.corrupt(config, make_dataset(0, size=8))
    assert [row["learnt"] for row in rows_of(out)] == [metrics.accuracy(given[0], task.train,
        task.corrupted)] * 3 + [None]


@pytest.mark.filterwarnings("ignore:Acc")
def test_rows_tell_how_much_a_method_tried(made, tmp_path):
    """R3: passes over D_f (of REM in all epochs), tries of Potion, the last Acc(D_f), and whether a method gave up."""
    names = ["no-ul", "cf", "ascent", "npo", "potion", "rem"]
    for gamma in ("1", "0"):
        out = tmp_path / gamma
        argv = ["--method", ",".join(names), "--out", str(out), "--gamma", gamma, "--unlearn-lr", "0", *SMALL,
                "--unlearn-epochs", "2", "--stop", "max", "--forget-norm", "running"]
        assert run.main(argv) == 0
    idle, tired = rows_of(tmp_path / "1"), rows_of(tmp_path / "0")
    assert [row["passes"] for row in idle] == [None, None, 0, 0, 0, 0] and not any(row["gave_up"] for row in idle)
    stuck = {row["method"]: (row["passes"], row["gave_up"]) for row in tired if row["acc_forget"] > 0}
    # at a rate of 0 two passes an epoch, each without effect, are all that is allowed
    assert {"ascent": (2, True), "npo": (2, True), "rem": (4, True)}.items() <= stuck.items()
    assert {name: stuck[name] for name in ("no-ul", "cf")} == {"no-ul": (None, False), "cf": (None, False)}
    potion = next(row for row in tired if row["method"] == "potion")
    assert potion["gave_up"] == (potion["acc_forget"] > 0) and potion["passes"] > 0


LOGGED = {  # what a user-supplied method logs, and (passes, gave_up) or the error in its row
    "passes=np.int64(3), acc_forget=np.float32(1)": (3, True),
    "passes=torch.tensor(2), gave_up=np.bool_(False)": (2, False),
    "passes=None": (None, False), "passes=0.5, acc_forget=None, gave_up=None": (1, False),
    "passes='two'": "TypeError: ", "passes=float('nan')": "ValueError: ", "passes=float('inf')": "OverflowError: "}


@pytest.mark.parametrize("logged", LOGGED)
def test_whatever_a_method_logs_makes_a_row(made, tmp_path, logged):
    """R3, R11: numbers of numpy and torch become plain ones in a row, what is no number fails its method alone."""
    (tmp_path / "odd.py").write_text("import numpy as np, torch\n"
                                     "def f(model, data, forget, config, generator, log=None):\n"
                                     f"    log(0, 0, model, {logged})\n    return model\n")
    out, want = tmp_path / "x", LOGGED[logged]
    code = run.main(["--method", f"{tmp_path}/odd.py:f,no-ul", "--out", str(out), *SMALL])
    odd, other = rows_of(out)
    if isinstance(want, str):
        assert (code, odd["status"], odd["passes"]) == (1, "failed", None) and odd["error"].startswith(want)
    else:
        assert (code, odd["error"], odd["passes"], odd["gave_up"]) == (0, None, *want)
    assert other["status"] == "ok"


def test_too_few_outputs_are_told_before_any_work():
    """R2: a network with fewer outputs than the data has classes is a line with both numbers, and no method begins."""
    config, dataset = seeded(1)
    task = experiment.corrupt(config, dataset)
    narrow = small_net(0, classes=3)
    with pytest.raises(ValueError, match="3 outputs for 4 classes"):
        experiment.train_original(config, task, narrow)
    row = experiment.unlearn(config, "cf", lambda *a: pytest.fail("it began"), narrow, task, task.corrupted[:2])
    assert row["status"] == "failed" and "the network has 3 outputs for 4 classes" in row["error"]
    row = experiment.unlearn(config, "cf", METHODS["no-ul"].function, small_net(0, classes=5), task, task.corrupted[:2])
    assert row["status"] == "ok"


def test_a_point_reads_d_c_through_d_fs_row():
    """S3: Fig. 5's points are of all of D_c: theta_o1 alone, and with theta_o2 under D_f's mask row for each of
    them."""
    config, dataset = seeded(1, task="random", p_mem=0.5)
    task = experiment.corrupt(config, dataset)
    forget, seen = discover(task, 0.5, 1), []
    state = start(small_net(3, width=8), task.train, forget, config, gen(0))
    row = mask_table(len(task.train), state.expanded.width, config.p_mem, config.seed, forget)[forget[0]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "accuracy", lambda net, data, index, masks=None: seen.append((index, masks)) or 0.25)
        point = experiment.point(config, state.expanded, task, forget, 1, loss=0.5)
    (base_index, none), (full_index, masks) = seen
    assert torch.equal(base_index, task.corrupted) and torch.equal(full_index, task.corrupted) and none is None
    assert (masks[task.corrupted] == row).all()
    assert (point["epoch"], point["loss"]) == (1, 0.5) and point["base"] == point["full"] == 0.25


# --- Signs of life ----------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


def test_progress_is_silent_about_what_is_short(capsys, monkeypatch):
    """R1: with min_seconds a line is printed once the time so far and the estimate of the rest reach it; quiet prints
    none."""
    clock = [0.0]
    monkeypatch.setattr(experiment.time, "perf_counter", lambda: clock[0])
    for quiet, least, lines in ((False, 0, 2), (False, 60, 0), (True, 0, 0)):
        with experiment.progress("train", quiet, least) as log:
            for epoch in (1, 2):
                clock[0] += 20
                log(epoch, 2, None, loss=0.5)
        assert len(capsys.readouterr().out.splitlines()) == lines
    with experiment.progress("train", False, 60) as log:
        clock[0] += 20
        log(1, 10, None, loss=0.5)
    assert capsys.readouterr().out == "train    epoch   1/10  loss   0.5000    20.0 s   180.0 s left\n"


@pytest.mark.parametrize("stream_of, seen", [(Terminal, True), (io.StringIO, False)])
def test_long_silence_is_told_in_a_terminal(monkeypatch, stream_of, seen):
    """R1: work without a line for long writes one line anew in a terminal, wiped before the next and at the end;
    elsewhere it writes nothing."""
    out = stream_of()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(experiment, "LONG", 0.5)

    def wait_for(text):
        deadline = time.monotonic() + (30 if seen else 1.5)
        while text not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)

    threads = set(threading.enumerate())
    with experiment.progress("train", False) as log:
        wait_for("s since the start")
        log(1, 2, None, loss=0.5)
        wait_for("s since epoch 1")
    assert set(threading.enumerate()) <= threads  # nobody watches any more
    told = re.findall(r"\rtrain +\d+ s since (the start|epoch 1)", out.getvalue())
    assert set(told) == ({"the start", "epoch 1"} if seen else set())
    shown = [line.split("\r")[-1] for line in out.getvalue().split("\n")]  # what a terminal is left with
    assert shown[0].startswith("train    epoch   1/2  loss   0.5000") and shown[1:] == [""]


# --- Where it runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine, amx, bf16, warned", [
    ("x86_64", False, False, True), ("AMD64", True, False, False), ("x86_64", False, True, False),
    ("aarch64", False, False, False)])
def test_slow_bf16_is_told(monkeypatch, capsys, machine, amx, bf16, warned):
    """R2: bf16 on a CPU of Intel's or AMD's without AMX and AVX512_BF16 warns that it is slower; elsewhere nothing is
    said."""
    monkeypatch.setattr(run.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16, raising=False)
    for precision in ("auto", "float32", "bf16"):
        run.check_precision(tiny(precision=precision), torch.device("cpu"))
        assert ("bf16 is slower" in capsys.readouterr().err) is (warned and precision == "bf16")
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")  # a torch that cannot tell
    run.check_precision(tiny(precision="bf16"), torch.device("cpu"))
    assert capsys.readouterr().err == ""


def test_headline_tells_the_cpu():
    """R3: the headline has the CPU's instruction set and the number of threads."""
    capability = torch.backends.cpu.get_cpu_capability()
    assert run.describe(torch.device("cpu")) == f"cpu ({capability}, 1 thread)"  # conftest sets one


TINY = ["--n", "4", "--width", "0.05", "--epochs", "1", "--unlearn-epochs", "1", "--batch", "4", "--max-passes", "1",
        "--device", "cpu", "--image-size", "8"]


@pytest.mark.parametrize("how", ["-OO", "closed", "ascii"])
def test_odd_processes(tmp_path, how):
    """R2: python -OO, a closed stdout and an encoding without the letters of a path all run to the end."""
    folder = tmp_path / "d\u00e4ta"
    write_tree(folder)
    out = tmp_path / "r\u00f6ws"
    argv = [ROOT / "run.py", "--dataset", "folder", "--data-dir", folder, *TINY, "--method", "no-ul,rem", "--out", out]
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    environment |= {"PYTHONIOENCODING": "ascii"} if how == "ascii" else {}
    command = [sys.executable, *(["-OO"] if how == "-OO" else []), *map(str, argv)]
    if how == "closed":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=300)
    assert (done.returncode, done.stderr.replace(b"warning: Acc", b"").count(b"\n") <= 1) == (0, True), done.stderr
    assert [row["status"] for row in rows_of(out)] == ["ok", "ok"]
    assert (b"r\\xf6ws" if how == "ascii" else b"") in done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_ascii_errors(tmp_path, encoding):
    """R2: an error about a path with other letters is one line in any encoding."""
    environment = dict(os.environ, PYTHONIOENCODING=encoding)
    argv = ["--dataset", "folder", "--data-dir", tmp_path / "\u00e4", *TINY, "--out", tmp_path / "x"]
    done = subprocess.run([sys.executable, "-B", ROOT / "run.py", *argv], capture_output=True, env=environment,
                          timeout=300)
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and b"Traceback" not in done.stderr


def test_cifar10_at_16_pixels(tmp_path, monkeypatch):
    """R1: --dataset cifar10 --image-size 16 is one command: images and padding are halved, the row says so."""
    from torchvision.datasets import cifar

    write_cifar10(tmp_path)
    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: os.path.isfile(path))
    kept = []
    monkeypatch.setattr(run, "corrupt", lambda *a, inner=run.corrupt: kept.append(inner(*a)) or kept[0])
    flags = ["--dataset", "cifar10", "--data-dir", str(tmp_path), "--image-size", "16", "--method", "no-ul,cf"]
    assert run.main([*flags, "--out", str(tmp_path / "x"), *SMALL]) == 0
    assert kept[0].train.images.shape == (20, 3, 16, 16) and (kept[0].train.pad, kept[0].train.flip) == (2, True)
    assert [(row["image_size"], row["status"]) for row in rows_of(tmp_path / "x")] == [(16, "ok")] * 2


def test_giving_up_once_is_told():
    """R3: gave_up of a row is whether any epoch gave up, passes the sum over all; notes without passes do not count."""
    notes = [dict(passes=5, acc_forget=0.5), dict(loss=1.0), dict(passes=1, acc_forget=0.1)]
    assert experiment.told_at_end(notes, 0.2) == {"passes": 6, "gave_up": True}
    assert experiment.told_at_end(notes[1:], 0.2) == {"passes": 1, "gave_up": False}


def test_width_and_capacity_both_scale_the_network():
    """X3, N1: the network of a cell is `width` times `capacity` as wide as ResNet-9."""
    config, dataset = seeded(1)
    made = experiment.new_model(replace(config, width=0.5, capacity=0.25), dataset)
    like = build("resnet9", 0.125, channels=1, classes=4, image_size=16)
    assert [p.shape for p in made.parameters()] == [p.shape for p in like.parameters()]
