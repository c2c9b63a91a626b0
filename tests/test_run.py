"""run.py and settings.py: the command line, its errors, its result rows (Table 3, A.3)."""

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import experiment
import run
from datasets import load
from methods import METHODS
from helpers import assert_same_state, make_dataset, small_net, tiny
from settings import ARCH_PRESETS, DATASET_PRESETS, TASKS, Config, check, resolve, stream

ROOT = Path(run.__file__).resolve().parent
QUICK = ["--epochs", "1", "--unlearn-epochs", "1", "--n", "20", "--width", "0.1", "--batch", "64", "--max-passes", "2",
         "--device", "cpu"]
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


def rows_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def command(*arguments, **more):
    """Run the real command line in its own process."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    return subprocess.run([sys.executable, ROOT / "run.py", *arguments], capture_output=True, text=True, env=environment,
                          timeout=300, **more)


# --- Running ------------------------------------------------------------------------------------------------------------


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
    done = command("--task", "poison", "--discovery", "0.5", *QUICK, "--n", "60", "--out", str(out), cwd=tmp_path)
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


# --- Seeds --------------------------------------------------------------------------------------------------------------


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
        monkeypatch.setattr(experiment, "train_etd", lambda model, data, config, *args, inner=experiment.train_etd, **more: inner(
            model, data, replace(config, seed=0), *args, **more))
    task = experiment.corrupt(*seeded(1))
    first, again, other = (experiment.train_original(seeded(seed, etd=etd)[0], task, small_net(0, width=4)) for seed in (1, 1, 2))
    assert_same_state(first, again)
    assert not same_state(first, other)


def test_the_seed_draws_the_unlearning():
    """R4: from the same network, data and D_f, unlearning follows the seed; every method has the same draws."""
    task, original, kept = experiment.corrupt(*seeded(1)), small_net(0), []
    before = copy.deepcopy(original)

    def method(model, data, forget, config, generator):
        kept.append((METHODS["cf"].function(model, data, forget, config, generator), torch.rand(4, generator=generator).tolist()))
        return kept[-1][0]

    forget = experiment.find(seeded(1)[0], task)
    for name, seed in (("cf", 1), ("npo", 1), ("cf", 2)):
        assert experiment.unlearn(seeded(seed)[0], name, method, original, task, forget)["status"] == "ok"
    assert_same_state(original, before)
    assert_same_state(kept[0][0], kept[1][0])
    assert kept[0][1] == kept[1][1] != kept[2][1] and not same_state(kept[0][0], kept[2][0])


# --- Where a row comes from ---------------------------------------------------------------------------------------------


def test_row_holds_what_reproduces_it(few, tmp_path):
    """R3: a row has every setting, the versions, the commit, the command; the settings read back make the same Config."""
    out = tmp_path / "cells.jsonl"
    argv = ["--task", "random", "--discovery", "0.3", "--method", "no-ul", "--out", str(out), *QUICK]
    assert run.main(argv) == 0
    row = rows_of(out)[0]
    wanted = "dataset task discovery n arch capacity etd p_mem method seed healed healed_undiscovered utility product seconds"
    assert set(wanted.split() + "status error device torch version git argv".split()) <= set(row)
    assert row["torch"] == torch.__version__ and row["version"] == experiment.VERSION and row["argv"] == argv
    names = {f.name for f in fields(Config)}
    again = resolve({key: value for key, value in row.items() if key in names})
    assert asdict(again) == asdict(resolve(vars(run.parser().parse_args(argv))))  | {"device": "cpu"}


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
def test_the_commit_of_the_code(tmp_path, monkeypatch):
    """R3: a row names the commit that HEAD is, tagged or not, "-dirty" once a tracked file differs; outside a checkout None."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:  # a hook's point to the repository that it is of
        monkeypatch.delenv(name)
    for name, value in dict(CEILING_DIRECTORIES=str(tmp_path.parent), CONFIG_GLOBAL=os.devnull, CONFIG_NOSYSTEM="1").items():
        monkeypatch.setenv(f"GIT_{name}", value)

    def git(*arguments):
        settings = ["-c", "user.name=T", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *settings, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

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


# --- What is printed ----------------------------------------------------------------------------------------------------


def test_quiet_prints_the_table_only(few, tmp_path, capsys):
    """R1: --quiet leaves the table alone on stdout."""
    assert run.main(["--quiet", "--method", "no-ul", "--out", str(tmp_path / "x"), *QUICK]) == 0
    out, err = capsys.readouterr()
    assert out.split()[:6] == "method Healed undiscovered Utility product seconds".split() and len(out.splitlines()) == 3
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
    monkeypatch.setattr(run, "train_original", lambda *a, inner=run.train_original: seen.setdefault("trained", inner(*a)))
    monkeypatch.setattr(experiment, "evaluate", lambda m, *a, inner=experiment.evaluate: inner(seen.setdefault("measured", m), *a))
    assert run.main(["--method", "no-ul", "--quiet", "--out", str(tmp_path / "x"), *QUICK]) == 0
    for a, b in zip(seen["trained"].state_dict().values(), seen["measured"].state_dict().values(), strict=True):
        assert torch.equal(a, b)


# --- Failures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [QUICK, [*QUICK, "--method", "no-ul", "--quiet"], ["grid", *QUICK, "--dry-run"]],
                         ids=["cell", "quiet", "grid"])
def test_a_reader_that_has_enough(tmp_path, argv):
    """R2: a pipe that closes before anything is printed, as head may close it, ends the run with exit code 1 and no words."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-B", ROOT / "run.py", *argv, "--out", tmp_path / "x"], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == ("", 1)
    assert "--quiet" in argv or not list(tmp_path.iterdir())  # a quiet run prints when it is done


def test_a_reader_that_has_enough_is_no_failure(tmp_path):
    """R2, R3: a pipe that closes in the middle of training leaves no row that says a method failed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-B", ROOT / "run.py", *QUICK, "--epochs", "9", "--out", tmp_path / "x"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
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


def test_failed_write_leaves_the_old_rows(tmp_path, monkeypatch):
    """R3: if the new file cannot be put in place, the old one stands and nothing lies beside it."""
    out = tmp_path / "x"
    experiment.append_row(str(out), {"a": 1})

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        experiment.append_row(str(out), {"a": 2})
    assert rows_of(out) == [{"a": 1}] and list(tmp_path.iterdir()) == [out]


def test_torn_line_of_another_program_is_kept_apart(tmp_path):
    """R3: a file that ends without a newline does not swallow the next row."""
    out = tmp_path / "x"
    out.write_text('{"a": 1}\n{"torn": ')
    experiment.append_row(str(out), {"a": 2})
    assert out.read_text().splitlines()[2] == '{"a": 2}'


APPENDER = "import cell, sys\nfor i in range(int(sys.argv[2])): experiment.append_row(sys.argv[1], {'i': i, 'pad': 'x' * 3000})"


def test_killed_writer_tears_nothing(tmp_path):
    """R3: SIGKILL at any moment leaves whole rows, in order, without a gap."""
    out = tmp_path / "x"
    for delay in (0.05, 0.15, 0.3):
        out.unlink(missing_ok=True)
        writer = subprocess.Popen([sys.executable, "-c", APPENDER, str(out), "100000"], cwd=ROOT)
        while not out.exists():
            time.sleep(0.01)
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        numbers = [row["i"] for row in rows_of(out)]
        assert numbers == list(range(len(numbers))) and numbers


def test_two_writers_lose_no_row(tmp_path):
    """R3: runs that share a result file keep every row of both."""
    out = tmp_path / "x"
    writers = [subprocess.Popen([sys.executable, "-c", APPENDER, str(out), "30"], cwd=ROOT) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert sorted(row["i"] for row in rows_of(out)) == sorted([*range(30)] * 2)


# --- Bad input ----------------------------------------------------------------------------------------------------------

BAD = [
    (["--discovery", "0"], "discovery is 0.0; it must be a rate in (0, 1]"),
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
    (["--width", "1e12"], "bytes"),  # more memory than there is: torch's own text, the first line of it
    (["--width", "1e300"], "run.py: "),
    (["--image-size", "1000000"], "bytes"),
    (["--out", "."], "cannot write results to ."),
    (["--out", "run.py/x"], "cannot write results to run.py/x"),
    (["--gamma", "2"], "gamma is 2.0"),
    (["--beta", "0"], "beta is 0.0"),
    (["--p-mem", "-0.1"], "p-mem is -0.1"),
    (["--capacity", "2"], "capacity is 2.0"),
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


def test_unwritable_folder(tmp_path, monkeypatch, capsys):
    """R2: a folder without write permission is refused before training (root may write anywhere, so the check is asked)."""
    monkeypatch.setattr(experiment.os, "access", lambda *a: False)
    assert run.main(["--out", str(tmp_path / "x")]) == 2
    assert "permission denied" in capsys.readouterr().err


def test_bad_input_of_a_real_process(tmp_path):
    """R2: no traceback reaches the user."""
    done = command("--task", "nonsense", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert all(name in done.stderr for name in TASKS) and not list(tmp_path.iterdir())


def test_help_shows_every_setting_and_default(capsys):
    """R2: --help names every flag with its default and the presets that change it."""
    with pytest.raises(SystemExit) as stop:
        run.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for f in fields(Config):
        assert "--" + f.name.replace("_", "-") in text
        assert f.default is None or f"(default: {f.default}" in text
    for name, preset in {**ARCH_PRESETS, **DATASET_PRESETS}.items():
        assert all(f"{name}: {value}" in text for value in preset.values())


# --- Settings -----------------------------------------------------------------------------------------------------------


def test_table_3():
    """R8: the default of every hyperparameter of Table 3 is the paper's value."""
    paper = dict(lr=0.025, epochs=40, batch=512, optimizer="sgd", gamma=0.2, beta=1.0, unlearn_lr=0.005, unlearn_epochs=10,
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
    draw = [torch.rand(4, generator=stream(*key)).tolist() for key in ((seed, purpose), (seed, purpose), (seed + 1, purpose), (seed, purpose + "x"))]
    assert draw[0] == draw[1] and len({tuple(d) for d in draw}) == 3


@pytest.mark.parametrize("name", [f.name for f in fields(Config) if f.metadata.get("choices")])
def test_choices_are_checked(name):
    """R2: a Config made in code is held to the same choices as the command line."""
    with pytest.raises(ValueError, match="choose from"):
        check(replace(Config(), **{name: "nonsense"}))


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
opened = [(Path(os.fsdecode(args[0])), args[2]) for event, args in events if event == "open" and not isinstance(args[0], int)]
print(*{event for event, args in events if event not in ("open", "os.listdir", "os.scandir", "os.putenv", "os.unsetenv")})
print(*[path for path, flags in opened if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)])
print(*[path for path, flags in opened if path.suffix in (".npz", ".jsonl", ".pt", ".gz") or root / "data" in path.parents])
print(*{path.relative_to(root) for path, flags in opened if path.is_relative_to(root) and path.suffix not in (".py", ".pyc")
        and "site-packages" not in path.parts})
listed = [str(args[0]) for event, args in events if event in ("os.listdir", "os.scandir")]
print(*[folder for folder in listed if folder.startswith(str(root / "data"))])
print(len(opened))
"""


def test_import_reads_and_writes_nothing(tmp_path):
    """R7: importing every shipped module, in one process, opens no data, writes nothing and starts nothing."""
    names = sorted([path.stem for path in ROOT.glob("*.py")] + [f"study.{path.stem}" for path in ROOT.glob("study/*.py")])
    assert {"run", "study.report", "study.figures", "study.tables", "data", "experiment", "study.grid"} <= set(names)
    environment = dict(os.environ, PYTHONPATH=str(ROOT), PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
    done = subprocess.run([sys.executable, "-c", WATCHED_IMPORT, ROOT, *names], cwd=tmp_path, capture_output=True, text=True,
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
