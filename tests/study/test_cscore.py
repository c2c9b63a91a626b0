"""The C-score of a corruption (Eq. 1, Sec. 4): `metrics.c_score`, and study/cscore.py, its command.

V13  the score is Eq. 1's loops; V14  over examples that the network did not learn from; V15  closed forms; V16  what it
depends on; V17  what cannot be scored is refused; V18  random < confusion < poison; R1-R4  the command.
Most tests script `learn`, so that the networks' answers are known and only the estimator is looked at.
"""

import json
import random
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import claims
import run
from engine.streams import stream
from experiment import cell as experiment
from experiment.data import Data
from experiment.datasets import load
from experiment.settings import Config
from helpers import assert_same_state, gen, seeds, tiny
from metrics import accuracy, c_score, held_out
from study import cscore
from tasks import TASKS, make_task
from train import fit


def numbered(labels, classes=4) -> Data:
    """Image i says i in its first two pixels, base 200, to whom reads it without normalisation."""
    n = len(labels)
    images = torch.zeros(n, 1, 4, 4, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = torch.arange(n) // 200, torch.arange(n) % 200
    return Data(images, labels, classes, (0.0,), (1 / 255,))  # x is the pixel value


class Answers(nn.Module):
    """A network that answers example i of `numbered` data with guesses[i]."""

    def __init__(self, guesses, classes=4):
        super().__init__()
        self.logits = nn.functional.one_hot(guesses, classes).float()

    def forward(self, x):
        return self.logits[(x[:, 0, 0, 0] * 200 + x[:, 0, 0, 1]).round().long()]


def case(seed, m, others=5, classes=4):
    """Labels of m + others examples, m of which are D_c."""
    g = gen(seed)
    labels = torch.randint(0, classes, (m + others,), generator=g)
    return numbered(labels, classes), torch.randperm(m + others, generator=g)[:m].sort().values


# Scripted networks: (labels, index of the subset, seed) -> what each example of the data set is taken for.


def by_chance(labels, index, seed):
    """Anything, but what it was taught."""
    guesses = torch.randint(0, 4, labels.shape, generator=gen(seed))
    guesses[index] = labels[index]
    return guesses


def nearest(labels, index, seed):
    """The label of the example of the subset with the nearest number, the lower one of two; 0 without any."""
    if len(index) == 0:
        return torch.zeros_like(labels)
    return labels[index[(torch.arange(len(labels))[:, None] - index).abs().argmin(dim=1)]]


def majority(labels, index, seed):
    """The most frequent label of the subset, the lowest among equals."""
    return torch.full_like(labels, int(torch.bincount(labels[index], minlength=4).argmax()))


def scripted(script, data, calls=None):
    """A `learn` that answers by a script and notes its calls."""
    def learn(index, seed):
        if calls is not None:
            calls.append((index.tolist(), seed))
        return Answers(script(data.labels, index, seed))

    return learn


def naive_scores(script, labels, corrupted, calls, sizes):
    """Eq. 1 in loops: over examples, over sizes, over the networks of that size that the example was no part of."""
    scores = []
    for i in corrupted.tolist():
        means = []
        for size in sizes:
            hits = [float(script(labels, torch.tensor(index, dtype=torch.int64), seed)[i] == labels[i])
                    for index, seed in calls if len(index) == size and i not in index]
            means.append(sum(hits) / len(hits))
        scores.append(sum(means) / len(means))
    return scores


@st.composite
def plans(draw):
    """(m, sizes, runs) that `c_score` takes."""
    m = draw(st.integers(1, 9))
    sizes = draw(st.lists(st.integers(0, m - 1), min_size=1, max_size=4, unique=True))
    least = -(-m // (m - max(sizes)))
    return m, sizes, draw(st.integers(least, least + 3))


# --- The estimator ----------------------------------------------------------------------------------------------------


@given(seeds, plans(), st.sampled_from([by_chance, nearest, majority]))
def test_equals_the_naive_loops(seed, plan, script):
    """V13: every score equals the loops over the networks that did not see the example, and lies in [0, 1]."""
    (m, sizes, runs), calls = plan, []
    data, corrupted = case(seed, m)
    scores, rates = c_score(data, corrupted, scripted(script, data, calls), sizes, runs, seed)
    expected = naive_scores(script, data.labels, corrupted, calls, sizes)
    assert scores.shape == (m,) and scores.dtype == torch.float64 and 0 <= scores.min() <= scores.max() <= 1
    assert (scores - torch.tensor(expected, dtype=torch.float64)).abs().max() < 1e-12
    for (index, network), rate in zip(calls, rates.flatten().tolist(), strict=True):
        guesses = script(data.labels, torch.tensor(index, dtype=torch.int64), network)
        held = [i for i in corrupted.tolist() if i not in index]
        assert rate == sum(bool(guesses[i] == data.labels[i]) for i in held) / len(held)


@given(seeds, plans())
def test_what_is_asked_of_learn(seed, plan):
    """V14: runs networks of each size, each on that many different examples of D_c, in their order, each with a seed of
    its own; the log counts them."""
    (m, sizes, runs), calls, logged = plan, [], []
    data, corrupted = case(seed, m)
    _, rates = c_score(data, corrupted, scripted(by_chance, data, calls), sizes, runs, seed,
                       log=lambda *a: logged.append(a))
    assert [len(index) for index, _ in calls] == [size for size in sizes for _ in range(runs)]
    assert all(index == sorted(set(index)) and set(index) <= set(corrupted.tolist()) for index, _ in calls)
    assert len({network for _, network in calls}) == len(calls)
    assert logged == [(k + 1, len(calls), sizes[k // runs], float(rates.flatten()[k])) for k in range(len(calls))]


@given(seeds, plans())
def test_held_out_sets_are_balanced(seed, plan):
    """V14: each network leaves out m - n examples; none is left out more than once more often than another."""
    m, sizes, runs = plan
    for size in sizes:
        held = held_out(m, size, runs, seed)
        assert held.shape == (runs, m) and (held.sum(dim=1) == m - size).all()
        times = held.sum(dim=0)
        assert times.min() >= 1 and times.max() - times.min() <= 1


@pytest.mark.parametrize("row", [0, 2])
def test_each_subset_is_a_uniform_draw(row):
    """V14: over 2,000 seeds each of 10 examples is left out of a subset of 6 in 40 % of the draws, and each pair of
    them together in 4/10 * 3/9 (within 5 standard errors; chance of a false alarm below 1e-4)."""
    held = torch.stack([held_out(10, 6, 3, seed)[row] for seed in range(2000)]).double()
    together = held.T @ held / len(held)  # (10, 10)
    expected = torch.full((10, 10), 4 / 10 * 3 / 9, dtype=torch.float64).fill_diagonal_(4 / 10)
    assert ((together - expected).abs() <= 5 * (expected * (1 - expected) / len(held)).sqrt()).all()


# --- Closed forms -----------------------------------------------------------------------------------------------------


@given(seeds, plans(), st.integers(0, 3))
def test_constant_networks(seed, plan, answer):
    """V15: networks that always give one class score 1 on that label's examples and 0 on the others, so the mean is the
    label's share of D_c; where all labels are alike, as in poison, it is 1."""
    m, sizes, runs = plan
    data, corrupted = case(seed, m)
    same = Answers(torch.full_like(data.labels, answer))
    scores, _ = c_score(data, corrupted, lambda *args: same, sizes, runs, seed)
    assert torch.equal(scores, (data.labels[corrupted] == answer).double())
    alike = replace(data, labels=torch.full_like(data.labels, answer))
    scores, _ = c_score(alike, corrupted, scripted(majority, alike), [n for n in sizes if n] or [0], runs, seed)
    assert (scores == float(bool(any(sizes)) or answer == 0)).all()  # without a subset `majority` says 0


@pytest.mark.parametrize("half", [1, 2, 7])
def test_majority_on_leave_one_out(half):
    """V15: of two equally frequent labels, the majority of the others is always the other one: the score is 0."""
    data = numbered(torch.arange(2 * half) % 2)
    scores, _ = c_score(data, torch.arange(2 * half), scripted(majority, data), [2 * half - 1], 2 * half, seed=0)
    assert (scores == 0).all()


def test_regular_and_irregular_labels():
    """V15: the nearest neighbour knows labels that come in two blocks, but for the border, and none that alternate."""
    corrupted = torch.arange(40)
    for labels, low, high in ((corrupted // 20, 0.95, 1.0), (corrupted % 2, 0.0, 0.0)):
        data = numbered(labels)
        scores, _ = c_score(data, corrupted, scripted(nearest, data), [39], 40, seed=3)
        assert low <= scores.mean() <= high


def test_sizes_weigh_alike():
    """V15: networks that are wrong untrained, at size 0, and right once trained score 3/4 over four sizes."""
    data, corrupted = case(1, 8)

    def untrained(index, seed):
        return Answers((data.labels + (len(index) == 0)) % 4)

    scores, _ = c_score(data, corrupted, untrained, [0, 2, 4, 6], 4, seed=5)
    assert (scores == 0.75).all()


# --- Seeds and inputs -------------------------------------------------------------------------------------------------


@given(seeds)
def test_same_seed_same_scores(seed):
    """V16: a seed gives the same subsets, networks' seeds and scores again; another one gives others."""
    data, corrupted = case(seed, 9)
    kept = []
    for s in (seed, seed, seed + 1):
        calls = []
        scores, rates = c_score(data, corrupted, scripted(by_chance, data, calls), [0, 3, 6], 4, s)
        kept.append((calls, scores.tolist(), rates.tolist()))
    assert kept[0] == kept[1]
    assert {s for _, s in kept[0][0]}.isdisjoint(s for _, s in kept[2][0])
    assert [index for index, _ in kept[0][0]] != [index for index, _ in kept[2][0]]


def test_sizes_are_drawn_apart():
    """V16: a size's subsets and networks do not depend on which other sizes there are; each size has an order of its
    own."""
    data, corrupted = case(2, 9)
    alone, among = [], []
    c_score(data, corrupted, scripted(by_chance, data, alone), [5], 3, seed=0)
    c_score(data, corrupted, scripted(by_chance, data, among), [0, 5, 2], 3, seed=0)
    assert alone == among[3:6]
    nested = [bool((held_out(20, 15, 1, seed) <= held_out(20, 5, 1, seed)).all()) for seed in range(8)]
    assert not all(nested)  # one order for all sizes would leave out 5 of the same 15


@given(seeds)
def test_labels_of_other_examples_do_not_matter(seed):
    """V16: examples outside D_c are neither learned from nor scored: other labels there change nothing."""
    data, corrupted = case(seed, 6)
    labels = (data.labels + 1) % 4
    labels[corrupted] = data.labels[corrupted]
    other = replace(data, labels=labels)
    (a, _), (b, _) = (c_score(d, corrupted, scripted(nearest, d), [0, 2, 4], 3, seed) for d in (data, other))
    assert torch.equal(a, b)


def test_inputs_and_random_states_stay():
    """V16: labels, images, D_c, sizes and the global random states are as before, with real networks too."""
    dataset = cut(load("fashion-mini"))
    task = make_task("random", dataset, 12, seed=0)
    before = [t.clone() for t in (task.train.images, task.train.labels, task.corrupted)]
    states = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    sizes = [0, 6]
    learn = cscore.learner(small(), dataset, task.train, 2, {n: [] for n in sizes})
    c_score(task.train, task.corrupted, learn, sizes, 2, seed=0)
    for was, now in zip(before, (task.train.images, task.train.labels, task.corrupted), strict=True):
        assert torch.equal(was, now)
    assert sizes == [0, 6] and torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), repr(np.random.get_state()))


BAD = [
    (dict(corrupted=[]), "D_c is empty"),
    (dict(corrupted=[0, 1, 1, 2]), "1 repeated"),
    (dict(corrupted=[0, 1, 1, 1, 1, 2]), "from 0 to 2 with 3 repeated"),
    (dict(corrupted=[0, 1, 2, 12]), "different indices from 0 to 11; it runs from 0 to 12"),
    (dict(corrupted=[0, 1, 2, 99]), "it runs from 0 to 99"),
    (dict(corrupted=[-1, 0, 1, 2]), "it runs from -1 to 2"),
    (dict(sizes=[]), r"sizes are \[\]"),
    (dict(sizes=[0, 4]), r"sizes are \[0, 4\]; they must be one or more different numbers from 0 to 3"),
    (dict(sizes=[0, 9]), r"sizes are \[0, 9\]"),
    (dict(sizes=[-1, 2]), r"sizes are \[-1, 2\]"),
    (dict(sizes=[2, 2]), r"sizes are \[2, 2\]"),
    (dict(runs=0), "runs is 0; at 2 of 4 examples it takes at least 2 for each"),
    (dict(runs=-1), "runs is -1"),
    (dict(sizes=[0, 3], runs=3), "runs is 3; at 3 of 4 examples it takes at least 4"),
    (dict(corrupted=list(range(10)), sizes=[7], runs=3), "runs is 3; at 7 of 10 examples it takes at least 4"),
]


@pytest.mark.parametrize("changes, words", BAD, ids=[words for _, words in BAD])
def test_bad_arguments(changes, words):
    """V17: D_c, sizes or runs that cannot be scored are refused before any network is trained."""
    data, _ = case(0, 12, others=0)
    plan = dict(corrupted=[0, 1, 2, 3], sizes=[0, 2], runs=2) | changes
    plan["corrupted"] = torch.tensor(plan["corrupted"], dtype=torch.int64)
    with pytest.raises(ValueError, match=words):
        c_score(data, **plan, learn=lambda *a: pytest.fail("training began"), seed=0)


# --- Real networks ----------------------------------------------------------------------------------------------------


def cut(dataset, n=200, tests=50):
    """The first images of a data set."""
    def first(data, k):
        return replace(data, images=data.images[:k], labels=data.labels[:k])

    return replace(dataset, train=first(dataset.train, n), test=first(dataset.test, tests))


def small(**changes) -> Config:
    """Settings for tiny networks on fashion-mini."""
    return tiny(**dict(dataset="fashion-mini", width=0.1, batch=16, n=12) | changes)


@pytest.mark.parametrize("seed", [11, 12])
def test_a_learned_network_is_a_plain_training(seed):
    """V15, V16, R4: the network's own seed draws its weights and the order of its training, which is on the subset
    alone, for `updates` steps or the rest of an epoch; an empty subset leaves it untrained. What it learned is
    noted."""
    dataset, config = cut(load("fashion-mini")), small(batch=16)
    task, fits = make_task("random", dataset, 40, seed=0), {0: [], 20: []}
    learn, index = cscore.learner(config, dataset, task.train, 7, fits), task.corrupted[::2]
    twin = experiment.new_model(small(batch=16, seed=seed), dataset)
    assert_same_state(learn(index[:0], seed), twin)
    fit(twin, task.train, index, config, stream(seed, "training"), epochs=4)  # 2 batches an epoch: 8 updates
    assert_same_state(learn(index, seed), twin)
    assert fits == {0: [], 20: [accuracy(twin, task.train, index)]}


def test_a_tasks_row_is_the_estimators():
    """V16, R4: subsets and networks follow the settings' seed; score, rates, SEM over runs and what was learned are
    those of the estimator."""
    dataset, found = cut(load("fashion-mini")), []
    task = make_task("random", dataset, 12, seed=0)
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


class Blind(SimpleNamespace):
    """A task that nobody may ask for its clean labels or test images."""

    @property
    def clean(self):
        raise AssertionError("the clean labels were read")

    @property
    def test(self):
        raise AssertionError("the test images were read")


@pytest.mark.parametrize("name", TASKS)
def test_clean_labels_are_never_read(name):
    """V16: a task's score comes from its labels as given alone."""
    dataset = cut(load("fashion-mini"))
    task = make_task(name, dataset, 12, seed=0)
    row = cscore.score_task(small(), dataset, Blind(name=name, train=task.train, corrupted=task.corrupted),
                            torch.device("cpu"),
                            [0, 6], 2, 2, lambda *a: None)
    assert row["status"] == "ok" and 0 <= row["score"] <= 1 and row["learned"][0] is None


@pytest.mark.outcome("score")
def test_the_order_of_the_tasks():
    """V18: on fashion-mini random labels score below confusion, and confusion below poison."""
    assert claims.mean("score", "confusion over random") >= 0.3  # 0.62, SD 0.10: k = 5.6, see the README here
    assert claims.mean("score", "poison over confusion") >= 0.05  # 0.29, SD 0.08: k = 5.2
    assert claims.mean("score", "poison") >= 0.9  # 1.00 in every run


# --- The command ------------------------------------------------------------------------------------------------------

QUICK = ["--n", "12", "--width", "0.1", "--batch", "16", "--updates", "2", "--sizes", "0,0.5", "--runs", "2",
         "--device", "cpu"]


@pytest.fixture
def few(monkeypatch):
    """The built-in data, cut short."""
    monkeypatch.setattr(cscore, "load", lambda *args: cut(load(*args)))


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_command(few, tmp_path, capsys):
    """R1, R3: a line a network with the time left, an aligned table, and a row a task with all that reproduces it."""
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
        assert len(line) == len(lines[13])
        assert (row["sizes"], row["runs"], row["updates"], row["seed"], row["argv"]) == ([0, 6], 2, 2, 3, argv)
        assert row["torch"] == torch.__version__ and {"git", "version", "threads", "device", "lr", "arch"} <= set(row)
        rates = torch.tensor(row["rates"], dtype=torch.float64)
        assert row["by_size"] == rates.mean(dim=1).tolist() and row["networks"] == 2
        # 2 runs hold each example out equally often
        assert row["score"] == pytest.approx(float(rates.mean()), abs=1e-12)
        assert row["sem"] == pytest.approx(float(rates.mean(dim=0).diff().abs() / 2), abs=1e-12)


def test_a_quiet_run_of_one_task(few, tmp_path, capsys):
    """R1, R3, V7: --quiet leaves the table alone on stdout; what a row says of the training is a Config's, and no
    unlearning setting is in it; one run gives no SEM: null in the row, a dash in the table."""
    out = tmp_path / "x"
    argv = ["--task", "confusion", "--quiet", "--out", str(out), *QUICK, "--sizes", "0", "--runs", "1"]
    assert run.main(["cscore", *argv]) == 0
    ([row], (told, err)) = rows_of(out), capsys.readouterr()
    assert [line.split()[0] for line in told.splitlines() if line] == ["task", "confusion"] and err == ""
    assert row["sem"] is None and told.split()[8] == "-"
    assert set(cscore.FLAGS) <= set(row) & set(asdict(Config())) and not {"method", "gamma", "epochs"} & set(row)
    assert row["batch"] == 16 and row["lr"] == 0.05  # the preset of fashion-mini


def test_sizes_are_shares_of_the_data_sets_number(few, tmp_path):
    """V17, R1: shares are rounded down, and not by the error of a product of floats; without --n they are of the data
    set's own number."""
    assert cscore.subset_sizes("0,0.29,0.999", 100) == [0, 29, 99] and cscore.subset_sizes("0.5", 1) == [0]
    argv = ["--updates", "1", "--width", "0.05", "--sizes", "0,0.5", "--runs", "2", "--quiet", "--device", "cpu"]
    assert run.main(["cscore", *argv, "--task", "poison", "--out", str(tmp_path / "c")]) == 0
    assert [(row["n"], row["sizes"]) for row in rows_of(tmp_path / "c")] == [(120, [0, 60])]


def test_same_command_same_numbers(few, tmp_path):
    """R4: the same command twice gives the same rows, times aside; another seed does not; one task alone is the
    same."""
    kept = []
    for name, seed, task in (("a", "1", "all"), ("b", "1", "all"), ("c", "2", "all"), ("d", "1", "confusion")):
        out = tmp_path / name
        assert run.main(["cscore", "--task", task, "--seed", seed, "--out", str(out), "--quiet", *QUICK]) == 0
        kept.append([{k: v for k, v in row.items() if k not in ("seconds", "argv", "out", "seed")}
                     for row in rows_of(out)])
    assert kept[0] == kept[1] and kept[3] == [kept[0][1]]
    assert [row["rates"] for row in kept[0]] != [row["rates"] for row in kept[2]]


def test_diverging_training_is_recorded(few, tmp_path, capsys):
    """R3: a task whose networks fail leaves a row that says so; exit code 1."""
    out = tmp_path / "x"
    assert run.main(["cscore", "--task", "random", "--lr", "1e30", "--quiet", "--out", str(out), *QUICK, "--updates",
                     "9"]) == 1
    [row] = rows_of(out)
    assert row["status"] == "failed" and "NonFiniteLoss" in row["error"] and row["score"] is None
    assert "NonFiniteLoss" in capsys.readouterr().out


BAD_FLAGS = [
    (["--task", "poisn"], "invalid choice: 'poisn'"),
    (["--sizes", "0,1"], "sizes is '0,1'; give shares of D_c from 0 to below 1, such as 0,0.2,0.8"),
    (["--sizes", "0,-0.1"], "sizes is '0,-0.1'"),
    (["--sizes", "half"], "sizes is 'half'"),
    (["--sizes", ""], "sizes is ''"),
    (["--sizes", "0,nan"], "sizes is '0,nan'"),
    (["--sizes", "0.5,0.51"], "sizes is '0.5,0.51', which are 6, 6 of 12 corrupted examples; give shares that differ"),
    (["--runs", "1"], "runs is 1; at 6 of 12 examples it takes at least 2"),
    (["--runs", "many"], "invalid int value: 'many'"),
    (["--updates", "0"], "updates is 0; it must be at least 1"),
    (["--batch", "1"], "batch is 1"),
    (["--n", "0"], "n is 0"),
    (["--n", "11"], "n is 11; confusion swaps n / 2"),
    (["--dataset", "mnist"], "unknown data set 'mnist'"),
    (["--arch", "vit", "--image-size", "20"], "image size 20 and patch size 8"),
    (["--device", "toaster"], "device 'toaster' is not there"),
    (["--out", "."], "cannot write results to ."),
    (["--gamma", "0.1"], "unrecognized arguments: --gamma 0.1"),
    (["--epochs", "3"], "unrecognized arguments: --epochs 3"),
]


@pytest.mark.parametrize("argv, words", BAD_FLAGS, ids=[" ".join(argv) for argv, _ in BAD_FLAGS])
def test_bad_input(monkeypatch, tmp_path, capsys, argv, words):
    """R2: one line on stderr, exit code 2, before any training."""
    monkeypatch.setattr(cscore, "fit", lambda *a, **more: pytest.fail("training began"))
    argv = [*QUICK, "--out", str(tmp_path / "x"), *argv]
    try:
        code = run.main(["cscore", *argv])
    except SystemExit as stop:  # argparse's own errors
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2 and words in err and len(err.splitlines()) == 1 and out == "", err
    assert not (tmp_path / "x").exists()


def test_help(capsys):
    """R2: --help names every flag that plays a part, with its default, and no other."""
    with pytest.raises(SystemExit) as stop:
        run.main(["cscore", "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for name in (*cscore.FLAGS, "task", "sizes", "runs", "updates", "batch", "out"):
        assert "--" + name.replace("_", "-") in text
    assert "--gamma" not in text and "(default: 0,0.2,0.4,0.6,0.8)" in " ".join(text.split())
