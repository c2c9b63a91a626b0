"""examples/trials.py: seven corruptions, the rivals, rows that are skipped once they are there, the tables of them."""

import copy
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.models import ResNet18_Weights

from engine.modes import refresh_batchnorm
from examples import rivals, trials
from examples.corrupted import CORRUPTIONS, IMAGES, TARGET, TRIGGERS, corrupt
from examples.rivals import RIVALS, pruned
from examples.zoo import SUBJECTS
from helpers import assert_same_state, gen, randomise, rows_of
from metrics import accuracy
from repair.finish import Finished
from repair.network import repair_quietly

IMAGENET = ResNet18_Weights.DEFAULT.transforms()


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_labels_are_wrong_where_an_image_is_bad(name, images):
    """Given and true labels differ at D_c alone; a trigger's wrong label is one; of D_c two in five are known. `alike`
    has the clean test images of the other classes, each changed by the trigger and true to its label; without a trigger
    D_c's own images at their true labels. A seed draws the same again, another seed something else."""
    trial = corrupt(name, images, 0, n=120)
    assert torch.equal((trial.train.labels != trial.truth).nonzero()[:, 0], trial.bad)
    assert len(trial.bad) == (6 if name in TRIGGERS else 12) and len(trial.known) == round(0.4 * len(trial.bad))
    assert torch.isin(trial.known, trial.bad).all() and len(trial.known.unique()) == len(trial.known)
    if name in TRIGGERS:
        others = trial.test.labels != TARGET
        assert (trial.train.labels[trial.bad] == TARGET).all()
        assert torch.equal(trial.alike.labels, trial.test.labels[others])
        clean = trial.test.images[others]
        assert (clean != trial.alike.images).flatten(1).any(dim=1).float().mean() >= 0.95
    else:
        assert torch.equal(trial.alike.images, trial.train.images[trial.bad])
        assert torch.equal(trial.alike.labels, trial.truth[trial.bad])
    if name == "labels":  # images of every class
        assert trial.truth[trial.bad].unique().tolist() == list(range(trial.train.classes))
    if name == "pair":
        assert trial.train.labels[trial.bad].unique().tolist() == [1, 2]
        assert torch.equal(trial.train.labels[trial.bad] + trial.truth[trial.bad], torch.full((12,), 3))
    for data in (trial.train, trial.test, trial.alike, trial.heldout):
        assert (list(data.mean), list(data.std)) == (IMAGENET.mean, IMAGENET.std)
    *others, held = (set(map(bytes, data.images.flatten(1).numpy()))
                     for data in (trial.train, trial.test, trial.heldout))
    assert len(trial.heldout) == 200 and not held & set.union(*others)
    again, other = corrupt(name, images, 0, n=120), corrupt(name, images, 1, n=120)
    assert torch.equal(again.train.images, trial.train.images) and torch.equal(again.known, trial.known)
    assert not torch.equal(other.bad, trial.bad)


def test_pruning_is_that_of_a_loop():
    """CLP: channels whose bound is above mean + u std of their layer have a norm of 0, the others stay."""
    net = randomise(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 1),
                                  nn.BatchNorm2d(8)), 0)
    with torch.no_grad():
        for norm in (net[1], net[4]):
            norm.running_var.copy_(0.5 + torch.rand(len(norm.weight), generator=gen(1)))
        net[0].weight[2] *= 9
        net[4].weight[5] = -30
    found = pruned(net, None, None, 0, 1.5)
    for convolution, norm, mine in ((net[0], net[1], found[1]), (net[3], net[4], found[4])):
        bounds = []
        for k in range(len(norm.weight)):
            matrix = convolution.weight[k].detach().reshape(convolution.in_channels, -1)
            scale = abs(float(norm.weight[k].detach())) / float(norm.running_var[k] + norm.eps) ** 0.5
            bounds.append(scale * float(torch.linalg.svdvals(matrix)[0]))
        mean = sum(bounds) / len(bounds)
        std = (sum((b - mean) ** 2 for b in bounds) / (len(bounds) - 1)) ** 0.5
        above = [k for k, b in enumerate(bounds) if b > mean + 1.5 * std]
        assert above and above == ((mine.weight == 0) & (mine.bias == 0)).nonzero()[:, 0].tolist()
        stay = [k for k in range(len(bounds)) if k not in above]
        assert torch.equal(mine.weight[stay], norm.weight[stay]) and (norm.weight != 0).all()
    assert pruned(nn.Sequential(nn.Conv2d(3, 4, 1)), None, None, 0, 1.0) is None


@pytest.mark.parametrize("name, epochs, times", [("fine-tuned", 5, 0), ("taught", 5, 5), ("retrained", None, 0)])
def test_what_rivals_train_on(monkeypatch, name, epochs, times):
    """Every image but the listed ones once, at its given label, at half the training's rate where that is asked for;
    `taught` has the listed ones five times each, at their true labels. Retraining begins with other weights than the
    training did and takes as many epochs, the others go on from the network for five. BatchNorm is made anew at the end
    over what they were trained on, as the repair's is. What is given stays."""
    trial, subject, seen = corrupt("labels", "clothes", 0, n=60), SUBJECTS["VGG, BatchNorm"], []
    model, labels = subject.network(0), trial.train.labels.clone()

    def fit(net, data, index, config, generator, epochs=None, lr=None):  # in place of training, which hides all of it
        seen.append((copy.deepcopy(net), index, data.labels, config, epochs, lr))
        net[-1].bias.data.fill_(9.0)

    monkeypatch.setattr(rivals, "fit", fit)
    found = RIVALS[name][0](model, trial, subject, 0, 0.5)
    (net, index, given, *how), = seen
    assert how == [subject.training, epochs, 0.5 * subject.training.lr]
    count = torch.ones(60, dtype=torch.int64).index_fill_(0, trial.known, times)
    assert torch.equal(torch.bincount(index, minlength=60), count)
    assert torch.equal(given, labels.scatter(0, trial.known, trial.truth[trial.known]) if times else labels)
    assert torch.equal(trial.train.labels, labels) and not torch.equal(found[-1].bias, model[-1].bias)
    assert not found.training and torch.equal(net[-1].weight, model[-1].weight) == (name != "retrained")
    assert len(RIVALS[name][1]) == 3
    anew = copy.deepcopy(found)
    refresh_batchnorm(anew, trial.train, subject.training.batch, index=index)
    assert_same_state(found, anew)


def test_rem_among_the_rivals_is_the_repair():
    """At rate 1 it is what `repair` gives with its own settings and that seed; at another rate it is not."""
    trial, subject = corrupt("labels", "clothes", 0, n=60), SUBJECTS["VGG"]
    model = subject.network(0)
    found, faster = (rivals.rem_alone(model, trial, subject, 1, rate) for rate in (1.0, 2.0))
    assert_same_state(found, repair_quietly(model, trial.train, trial.known, seed=1))
    assert not torch.equal(found[-1].weight, faster[-1].weight)


@pytest.mark.parametrize("name", [name for name in SUBJECTS if not name.startswith("timm")])
def test_a_subject_is_drawn_from_its_seed(name):
    """The same seed gives the same weights and leaves the random state; another seed gives others."""
    state = torch.get_rng_state()
    one, same, other = (SUBJECTS[name].network(seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, same[key]) for key, t in one.items())
    assert any(not torch.equal(t, other[key]) for key, t in one.items())


def test_rows_that_are_there_are_skipped(tmp_path, monkeypatch, capsys):
    """A second call with one treatment more appends that one alone, from the network that was kept."""
    out = tmp_path / "rows.jsonl"
    words = ["trials.py", "--out", str(out), "--networks", "ViT", "--corruptions", "patch", "--seeds", "0",
             "--n", "60", "--treatments"]
    quick = replace(SUBJECTS["ViT"], training=replace(SUBJECTS["ViT"].training, epochs=1))
    monkeypatch.setitem(trials.SUBJECTS, "ViT", quick)
    for treatments in ("CLP", "CLP;fine-tuned"):
        monkeypatch.setattr(sys, "argv", [*words, treatments])
        assert trials.main() == 0
    rows = rows_of(out)
    assert [row["treatment"] for row in rows] == ["CLP", "fine-tuned"]
    assert rows[0]["before"] == rows[1]["before"] and len(rows[1]["tried"]) == 3
    best = max(rows[1]["tried"], key=lambda one: one["product"])
    assert (rows[1]["product"], rows[1]["rate"]) == (best["product"], best["rate"])
    assert rows[0]["product"] is None and rows[1]["product"] == rows[1]["healed"] * rows[1]["utility"]
    assert {"cpu", "git", "torch", "argv", "seconds"} <= rows[1].keys()


def test_a_row_has_the_verdict_of_the_command(monkeypatch):
    """An unchanged network is NOT REPAIRED; one that gives every listed image another label and keeps the others is
    REPAIRED; one that gives all images one class is HARMED as well. Where images are held out they decide, with their
    true labels; `judging` reads no other one. Listed images of one label that go to one class are told."""
    def judged(corruption, n):
        """Labels of training and held-out images, and a function from a network's answers to what is told of it."""
        trial = replace(corrupt(corruption, "clothes", 0, n=n), truth=None, test=None, alike=None)
        labels, held = trial.train.labels, trial.heldout.labels
        judging = trials.judging((labels, held), trial, 0)
        return trial.known, labels, held, lambda *answers: judging(answers)

    def verdict(*answers):
        found = told(*answers)
        return found["verdict"], found["verdict, held out"]

    # a network is its answers on the training images and on the 200 held-out ones, all of them equally sure
    monkeypatch.setattr(trials, "looked_at", lambda answers, data: (answers[len(data) == 200], torch.zeros(len(data))))
    monkeypatch.setattr(trials, "features", lambda answers, data: torch.zeros(len(data), 1, dtype=torch.float64))
    known, labels, held, told = judged("labels", 60)
    mended = labels.index_copy(0, known, (labels[known] + 1) % 5)
    one_class = torch.full((60,), int(labels[known][0]))
    assert verdict(labels, held) == ("NOT REPAIRED",) * 2 and verdict(mended, held) == ("REPAIRED",) * 2
    assert verdict(one_class, held) == ("NOT REPAIRED, HARMED", "NOT REPAIRED")
    assert verdict(mended, held.index_fill(0, torch.arange(20), 0)) == ("REPAIRED", "HARMED")
    assert told(mended, held)["gone together"] == 0
    known, labels, held, told = judged("patch", 300)  # 6 listed, all TARGET
    assert told(labels.index_fill(0, known, TARGET + 1), held)["gone together"] == 1
    assert told(labels, held)["gone together"] == 0


def test_what_a_row_of_the_finish_counts(monkeypatch):
    """Of the images that the finish drops and of as many first suspects as are likely bad those that are bad, though
    not listed; the listed ones' true labels are told where they are asked for, and the verdict is on the finished
    network. Both lists are dictated."""
    trial, subject = corrupt("labels", "clothes", 0, n=200), SUBJECTS["VGG"]
    model, done, seen = subject.network(0), subject.network(1), []
    hidden = trial.bad[~torch.isin(trial.bad, trial.known)]
    good = torch.arange(200)[~torch.isin(torch.arange(200), trial.bad)]
    dropped, first = torch.cat([hidden[:5], good[:3]]), torch.cat([hidden[2:6], good[5:7], hidden[:2], trial.known])

    def finish(*given, true_labels):
        seen.append((*given[:2], given[3], true_labels))
        return Finished(done, dropped, disbelieved=6, alike=2, both=1, taken=True)

    monkeypatch.setattr(trials, "rem_alone", lambda *args: "repaired")
    monkeypatch.setattr(trials, "finish", finish)
    monkeypatch.setattr(trials, "rank", lambda *args: SimpleNamespace(index=first, likely=6))
    monkeypatch.setattr(trials, "judging", lambda *args: lambda network: {
        "verdict": f"verdict of {network is done}", "verdict, held out": "other", "gone together": 3})
    names = "finished", "finished, true labels"
    row, told = (trials.treat(name, model, trial, subject, "labels", 0) for name in names)
    assert (row["hidden"], row["dropped"], row["dropped_bad"]) == (len(hidden), 8, 5)
    assert (row["likely"], row["likely_bad"], row["verdict"]) == (6, 4, "verdict of True")
    assert (row["verdict, held out"], row["gone together"]) == ("other", 3)
    assert row["utility"] == told["utility"] == accuracy(done, trial.test)
    (network, repaired, forget, nothing), (*_, truths) = seen
    assert network is model and repaired == "repaired" and torch.equal(forget, trial.known) and nothing is None
    assert torch.equal(truths, trial.truth[trial.known])


def test_the_tables_are_those_of_their_rows():
    """Means over trials; the lead of the finish where both are there; a treatment without a network changes nothing,
    nor does a rate that gave none; what the finish dropped and what is marked, bad and good."""
    def row(treatment, seed, healed, utility, verdict="REPAIRED"):
        product = None if healed is None else healed * utility
        return {"network": "VGG", "corruption": "warp", "seed": seed, "n": 600, "treatment": treatment,
                "healed": healed, "utility": utility, "product": product, "verdict": verdict,
                "before": {"healed": 0.5, "utility": 0.9, "product": 0.45, "learnt": 1.0}}

    def at(rates):
        return {"tried": [{"rate": rate, "product": product} for rate, product in rates.items()]}

    found = dict(hidden=20, dropped=30, dropped_bad=12, likely=25, likely_bad=15)
    rows = [{**row("REM", 0, 0.5, 0.8, "HARMED"), **at({0.5: 0.4, 1.0: 0.3})},
            {**row("REM", 1, 0.7, 1.0), **at({1.0: 0.7})}, {**row("finished", 0, 0.8, 1.0), **found},
            row("CLP", 0, None, None), row("taught", 0, 0.3, 0.87), row("taught", 1, 0.4, 0.89, "NOT REPAIRED")]
    rows[4]["gone together"], rows[5]["gone together"] = 0, 2
    rows[0]["verdict, held out"], rows[1]["verdict, held out"] = "REPAIRED", "HARMED"
    means, cells, cuts = (part.splitlines() for part in trials.table(rows).split("\n\n"))
    assert means[2] == "| untouched | 2 | 50.0 | 90.0 | 45.0 |  | 35.0 | 0.0 | 0.0 | 0 (0, 0) | 0 (0, 0, 0) |"
    assert means[3] == "| REM | 2 | 60.0 | 90.0 | 55.0 | 50.0 | 40.0 | 0.0 | 10.0 | 1 (1, 0) | 0 (0, 0, 0) |"
    assert means[4] == "| finished | 1 | 80.0 | 100.0 | 80.0 |  |  | -10.0 | -10.0 | 0 (0, 0) | 0 (0, 0, 0) |"
    assert means[5] == "| taught | 2 | 35.0 | 88.0 | 30.9 |  | 53.9 | 2.0 | 3.0 | 1 (0, ?) | 2 (1, ?, 1) |"
    assert means[6] == "| CLP | 1 | 50.0 | 90.0 | 45.0 |  | 35.0 | 0.0 | 0.0 | 0 (0, 0) | 0 (0, 0, 0) |"
    assert cells[2] == "| VGG | warp | 2 | 100 | 50 / 90 | 60 / 90 | 80 / 100 | 35 / 88 | 50 / 90 |"
    assert cuts[2:] == ["| warp | 1 | 20.0 | 12.0 | 18.0 | 15.0 | 10.0 | 25 | 0 of 0 |"]
    fewer = {**rows[2], "likely": 15, "seed": 1, "gone together": 1}  # an error counts in either direction
    assert trials.cuts([*rows, fewer])[2] == "| warp | 2 | 20.0 | 12.0 | 18.0 | 15.0 | 5.0 | 25 | 1 of 1 |"
    level = trials.table([row("taught", 0, 0.5, 0.88)]).splitlines()[3]  # two points, though 0.9 - 0.88 > 0.02
    assert level.endswith("| 2.0 | 2.0 | 0 (0, 0) | 0 (0, 0, 0) |")
