"""study/cscore.py, the command that scores how regular a corruption is (Eq. 1, Sec. 4).

The estimator itself, metrics.c_score, is held by tests/paper/test_metrics.py.
"""

from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

import claims
import run
from contract import SealedButCorrupted
from engine.streams import stream
from experiment import cell as experiment
from experiment.settings import Config
from few_images import few, fresh, load_few, refusal  # noqa: F401
from helpers import assert_same_state, rows_of, tiny
from metrics import accuracy, c_score
from study import cscore
from tasks import TASKS, make_task
from train import fit


# --- Real networks ----------------------------------------------------------------------------------------------------


def small(**changes) -> Config:
    """Settings for tiny networks on fashion-mini."""
    return tiny(**dict(dataset="fashion-mini", width=0.1, batch=16, n=12) | changes)


def test_a_learned_network_is_a_plain_training():
    """V15, V16, R4: the network's own seed draws its weights and the order of its training, which is on the subset
    alone, for `updates` steps or the rest of an epoch, and notes what it learned; an empty subset leaves it
    untrained."""
    dataset, config, seed = load_few("fashion-mini"), small(), 11
    task, fits = make_task("random", dataset, 40, seed=0), {0: [], 20: []}
    learn, index = cscore.learner(config, dataset, task.train, 7, fits), task.corrupted[::2]
    twin = experiment.new_model(small(seed=seed), dataset)
    assert_same_state(learn(index[:0], seed), twin)
    fit(twin, task.train, index, config, stream(seed, "training"), epochs=4)  # 2 batches an epoch: 8 updates
    assert_same_state(learn(index, seed), twin)
    assert fits == {0: [], 20: [accuracy(twin, task.train, index)]}


def test_a_tasks_row_is_the_estimators():
    """V16, R4: subsets and networks follow the settings' seed; score, rates, SEM over runs and what was learned are
    those of the estimator, from the labels as given alone and from no test image."""
    dataset, found = load_few("fashion-mini"), []
    task = SealedButCorrupted(**vars(make_task("random", dataset, 12, seed=0)))
    for seed in (3, 4):
        config, fits = small(seed=seed), {0: [], 6: []}
        row = cscore.score_task(config, dataset, task, torch.device("cpu"), [0, 6], 2, 2, lambda *a: None)
        learn = cscore.learner(config, dataset, task.train, 2, fits)
        scores, rates = c_score(task.train, task.corrupted, learn, [0, 6], 2, seed)
        assert (row["score"], row["rates"]) == (float(scores.mean()), rates.tolist())
        assert row["by_size"] == rates.mean(dim=1).tolist() and row["learned"] == [None, sum(fits[6]) / 2]
        assert row["sem"] == pytest.approx(float(rates.mean(dim=0).std() / 2**0.5), abs=1e-12)
        found.append(row["rates"])
    assert found[0] != found[1]


@pytest.mark.outcome("score")
def test_the_order_of_the_tasks():
    """V18: on fashion-mini random labels score below confusion, and confusion below poison."""
    assert claims.mean("score", "confusion over random") >= 0.3  # 0.62, SD 0.10: k = 5.6, see the README here
    assert claims.mean("score", "poison over confusion") >= 0.05  # 0.29, SD 0.08: k = 5.2
    assert claims.mean("score", "poison") >= 0.9  # 1.00 in every run


# --- The command ------------------------------------------------------------------------------------------------------

QUICK = ["--n", "12", "--width", "0.1", "--batch", "16", "--updates", "2", "--sizes", "0,0.5", "--runs", "2",
         "--device", "cpu"]


def test_the_command(few, tmp_path, capsys):
    """R1, R3, R4: a line a network with the time left, a table, and a row a task with all that reproduces it: the same
    command of one task alone gives the same numbers."""
    out = tmp_path / "new" / "cscore.jsonl"
    argv = ["cscore", "--seed", "3", "--out", str(out), *QUICK]
    assert run.main(argv) == 0
    lines, rows = capsys.readouterr().out.splitlines(), rows_of(out)
    assert [row["task"] for row in rows] == list(TASKS)
    assert len(lines) == 12 + 1 + 4 + 1 and lines[-1] == f"rows appended to {out}"
    assert lines[11].startswith("random    network   4/4  n    6  accuracy held out ")
    assert lines[11].endswith("   0.0 s left")
    assert lines[13].split() == ["task", "C-score", "SEM", "n", "networks", "seconds"]
    for row, line in zip(rows, lines[14:17], strict=True):
        assert line.split() == [row["task"], f"{row['score']:.3f}", f"{row['sem']:.3f}", "2", "2",
                                f"{row['seconds']:.1f}"]
        assert (row["sizes"], row["runs"], row["updates"], row["seed"], row["argv"]) == ([0, 6], 2, 2, 3, argv)
        assert row["torch"] == torch.__version__ and {"git", "version", "threads", "device", "lr", "arch"} <= set(row)
    assert run.main([*argv, "--task", "random"]) == 0
    again, first = rows_of(out)[-1], rows[TASKS.index("random")]
    assert {name for name in again if again[name] != first[name]} <= {"seconds", "argv"}


def test_the_time_that_is_left(monkeypatch, capsys):
    """R1: the networks still to train take as long as those trained; one of size 0 takes no time."""
    clock = iter([10.0, 11.0, 14.0, 18.0])  # at the start and after each network
    monkeypatch.setattr(cscore, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    log = cscore.network_progress(4, quiet=False)
    for done, size in ((1, 0), (2, 6), (3, 6)):
        log("poison", done, 6, size, 0.25)
    assert capsys.readouterr().out.splitlines() == [
        "poison    network   1/6  n    0  accuracy held out 0.2500     1.0 s",
        "poison    network   2/6  n    6  accuracy held out 0.2500     4.0 s    12.0 s left",
        "poison    network   3/6  n    6  accuracy held out 0.2500     8.0 s     8.0 s left"]


def test_a_quiet_run_of_one_task(few, tmp_path, capsys):
    """R1, R3, V7: --quiet leaves the table alone on stdout; what a row says of the training is a Config's, and no
    unlearning setting is in it; one run gives no SEM: null in the row, a dash in the table; size 0 trains nothing."""
    out = tmp_path / "x"
    argv = ["--task", "confusion", "--quiet", "--out", str(out), *QUICK, "--sizes", "0", "--runs", "1"]
    assert run.main(["cscore", *argv]) == 0
    ([row], (told, err)) = rows_of(out), capsys.readouterr()
    assert [line.split()[0] for line in told.splitlines() if line] == ["task", "confusion"] and err == ""
    assert row["sem"] is None and told.split()[8] == "-" and row["networks"] == 0
    assert set(cscore.FLAGS) <= set(row) & set(asdict(Config())) and not {"method", "gamma", "epochs"} & set(row)
    assert row["batch"] == 16 and row["lr"] == 0.05  # the preset of fashion-mini


def test_sizes_are_shares_of_the_data_sets_number(few, tmp_path):
    """V17, R1: shares are rounded down, as of exact products; without --n they are of the data set's own number."""
    assert cscore.subset_sizes("0,0.29,0.999", 100) == [0, 29, 99] and cscore.subset_sizes("0.5", 1) == [0]
    argv = ["--updates", "1", "--width", "0.05", "--sizes", "0,0.5", "--runs", "2", "--quiet", "--device", "cpu"]
    assert run.main(["cscore", *argv, "--task", "poison", "--out", str(tmp_path / "c")]) == 0
    assert [(row["n"], row["sizes"]) for row in rows_of(tmp_path / "c")] == [(120, [0, 60])]


@pytest.mark.parametrize("more, augments", [
    (["--dataset", "cifar10-small", "--no-augment"], False), (["--dataset", "cifar10-small"], False),
    (["--dataset", "cifar10-small", "--augment"], True), (["--dataset", "cifar10"], True)])
def test_images_are_augmented_as_in_a_cell(fresh, monkeypatch, tmp_path, more, augments):
    """R3: cropping and flipping are those of the flag or of the preset of the data set, as in run.py; a row says so."""
    data, seen = load_few("fashion-mini"), []
    data = replace(data, train=replace(data.train, flip=True, pad=2))
    monkeypatch.setattr(cscore, "load", lambda *where: data)
    monkeypatch.setattr(cscore, "fit", lambda model, data, *rest, **more: seen.append((data.flip, data.pad)))
    argv = ["--task", "random", *QUICK, *more, "--per-class", "8", "--per-class-test", "1"]
    assert run.main(["cscore", "--quiet", *argv, "--out", str(tmp_path / "c")]) == 0
    assert set(seen) == {(augments, 2 * augments)} and rows_of(tmp_path / "c")[0]["augment"] == augments


def test_diverging_training_is_recorded(few, tmp_path, capsys):
    """R3: a task whose networks fail leaves a row that says so; exit code 1."""
    out = tmp_path / "x"
    assert run.main(["cscore", "--task", "random", "--lr", "1e30", "--quiet", "--out", str(out), *QUICK, "--updates",
                     "9"]) == 1
    [row] = rows_of(out)
    assert row["status"] == "failed" and "NonFiniteLoss" in row["error"] and row["score"] is None
    assert "NonFiniteLoss" in capsys.readouterr().out


BAD_FLAGS = [
    (["--sizes", "0,1"], "sizes is '0,1'; give shares of D_c from 0 to below 1, such as 0,0.2,0.8"),
    (["--sizes", "0,1.5"], "sizes is '0,1.5'"),
    (["--sizes", "0,-0.1"], "sizes is '0,-0.1'"),
    (["--sizes", "half"], "sizes is 'half'"),
    (["--sizes", "0,nan"], "sizes is '0,nan'"),
    (["--sizes", "0.5,0.51"], "sizes is '0.5,0.51', which are 6, 6 of 12 corrupted examples; give shares that differ"),
    (["--runs", "1"], "runs is 1; at 6 of 12 examples it takes at least 2"),
    (["--updates", "0"], "updates is 0; it must be at least 1"),
    (["--n", "11"], "n is 11; confusion swaps n / 2"),
    (["--arch", "vit", "--image-size", "18"], "image size 18 and patch size 4"),
    (["--device", "toaster"], "device 'toaster' is not there"),
    (["--out", "."], "cannot write results to ."),
    (["--gamma", "0.1"], "unrecognized arguments: --gamma 0.1"),  # it is no part of a C-score
]


@pytest.mark.parametrize("argv, words", BAD_FLAGS, ids=[" ".join(argv) for argv, _ in BAD_FLAGS])
def test_bad_input(monkeypatch, tmp_path, capsys, argv, words):
    """R2: one line on stderr, exit code 2, before any training."""
    monkeypatch.setattr(cscore, "fit", lambda *a, **more: pytest.fail("training began"))
    assert words in refusal(capsys, "cscore", *QUICK, "--out", tmp_path / "x", *argv)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("size, epochs", [(16, 7), (17, 7), (18, 4), (32, 4), (33, 4)])
def test_epochs_of_a_subset(monkeypatch, size, epochs):
    """V15: a last batch of one example joins the one before it, so that 17 examples are one batch of 16, too."""
    dataset, passed = load_few("fashion-mini"), []
    task = make_task("random", dataset, 40, seed=0)
    monkeypatch.setattr(cscore, "fit", lambda *args, epochs: passed.append(epochs))
    cscore.learner(small(), dataset, task.train, 7, {size: []})(task.corrupted[:size], 0)
    assert passed == [epochs]
