"""The finish of a repair (repair/finish.py): what is dropped, what is learnt, and when the repair stays as it was.

The loss is that of a naive loop; D_f is never dropped and always pushed off its labels, or taught its true ones; looks
that tell nothing apart drop nothing; what the first training believes again comes back; what goes in stays as it is.
The world is flat colours with a white corner on the bad ones, and a small network that has learnt them.
"""

import copy
import math
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch

from colours import call, colours, report_of  # noqa: F401
from engine.checks import NonFiniteLoss
from engine.features import features
from engine.modes import refresh_batchnorm
from engine.streams import stream
from experiment.data import Data
from experiment.settings import Config
from helpers import assert_close, assert_same_state, gen
from metrics import accuracy, predict
from models import build
from repair import pipeline
from repair import finish as finish_module
from repair.finish import called_otherwise, finish, finish_loss, gone_elsewhere, same_answers
from repair.looks import looking_alike
from repair.network import unlearn
from train import fit

pytestmark = pytest.mark.filterwarnings(r"ignore:Acc\(D_f\) is")  # REM alone does not forget this corner

CONFIG = Config(batch=16, lr=0.05, epochs=15, optimizer="sgd", unlearn_epochs=2, unlearn_lr=0.004)


def world(seed: int = 0) -> tuple[Data, torch.Tensor, torch.Tensor, Data]:
    """160 noisy flat images of three colours, 16 of them with a white corner and label 0; those, eight known, and tests
    with the corner at their true labels."""
    generator = stream(seed, "finish")

    def draw(n: int):
        truth = torch.arange(n) % 3
        flat = 60 + 120 * torch.eye(3)[truth][:, :, None, None].expand(-1, -1, 16, 16)  # (n, 3, 16, 16)
        return (flat + 20 * torch.randn(flat.shape, generator=generator)).clamp(0, 230).to(torch.uint8), truth

    (images, truth), (test, test_truth) = draw(160), draw(60)
    bad = (truth != 0).nonzero()[:, 0][:16]
    images[bad, :, -5:, -5:] = 255
    test[:, :, -5:, -5:] = 255
    labels = truth.index_fill(0, bad, 0)
    look = dict(classes=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    seen = test_truth != 0
    return (Data(images, labels, **look), bad, bad[torch.arange(16) % 4 < 2],  # of both classes
            Data(test[seen], test_truth[seen], **look))


@pytest.fixture(scope="module")
def learnt():
    """The world, a network that has learnt it, and the network after REM."""
    data, bad, known, stamped = world()
    model = build("resnet9", 0.125, classes=3, image_size=16, seed=0)
    fit(model, data, None, CONFIG, stream(0, "training"))
    model.eval()
    return data, bad, known, stamped, model, unlearn(model, data, known, unlearn_epochs=2)[0].eval()


@pytest.fixture(scope="module")
def finished(learnt):
    """The finish of that repair."""
    data, bad, known, stamped, model, repaired = learnt
    return finish(model, repaired, data, known, CONFIG)


# --- The loss ---------------------------------------------------------------------------------------------------------

def test_the_loss_is_that_of_a_loop():
    """-log p of the label, of the true one where D_f has one, else -log(1 - p) of the wrong one; a mean. Outside D_f
    the label as given is learnt, whatever stands in `truths`."""
    n = 24
    z = torch.randn(n, 4, generator=gen(0), dtype=torch.float64) * 3
    y = torch.arange(n) // 6  # of each label there is an image with a true one, which is each class once
    in_forget = torch.arange(n) % 2 == 0
    truths = torch.where(torch.arange(n) % 3 == 0, (y + 1) % 4, -1)
    total = 0.0
    for i in range(n):
        exp = [math.exp(value) for value in z[i].tolist()]
        p = [value / sum(exp) for value in exp]
        if in_forget[i] and truths[i] < 0:
            total -= math.log(1 - p[y[i]])
        else:
            total -= math.log(p[truths[i] if in_forget[i] else y[i]])
    assert float(finish_loss(z, y, in_forget, truths)) == pytest.approx(total / n, rel=1e-12)


def test_the_loss_of_what_is_believed_beyond_doubt_is_finite():
    """In float32 p = 1 to the last digit is still pushed off, with the gradient 1 of its logit."""
    z = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    loss = finish_loss(z, torch.tensor([0]), torch.tensor([True]), torch.tensor([-1]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(200 - math.log(2))
    assert z.grad[0].tolist() == pytest.approx([1, -0.5, -0.5])


# --- What is dropped --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("wrong, dropped", [((3, 0, 5), True), ((12, 12, 6), True), ((12, 12, 7), False),
                                            ((18, 0, 5), True), ((19, 0, 5), (0,)), ((20, 0, 20), (0, 2)),
                                            ((19, 12, 0), (0,))])
def test_images_that_get_another_class_are_dropped(wrong, dropped):
    """Those outside D_f whose largest logit is not the given label's: so many of each label's twenty, and two of D_f
    beside them that are not counted. None of a label of which they are more than nine tenths, which the network has
    lost, and none where the rest are more than half of all."""
    labels = torch.arange(66) % 3
    place = torch.arange(66) // 3  # of an image among those of its label; the last two are D_f
    called = torch.where((place < torch.tensor(wrong)[labels]) | (place >= 20), (labels + 1) % 3, labels)
    lost = {True: (), False: (0, 1, 2)}.get(dropped, dropped)
    expected = (called != labels) & (place < 20) & ~torch.isin(labels, torch.tensor(lost, dtype=torch.int64))
    forget = (place >= 20).nonzero()[:, 0]
    assert torch.equal(called_otherwise(torch.eye(3, dtype=torch.float64)[called], labels, forget), expected)


# --- The whole --------------------------------------------------------------------------------------------------------

def test_a_finish_heals_and_changes_nothing_else(learnt, finished):
    """The listed images are believed no more, images with the corner get their own class, others stay; the inputs and
    the random state stay as they are; the same call gives the same weights, and tells each epoch of both trainings."""
    data, bad, known, stamped, model, repaired = learnt
    inputs = model, copy.deepcopy(repaired).train()
    before, state, told = copy.deepcopy(inputs), torch.get_rng_state(), []
    again = finish(*inputs, data, known, CONFIG, log=lambda epoch, epochs, net, **record: told.append((epoch, epochs)))
    assert again.taken and torch.equal(torch.get_rng_state(), state)
    for net, kept in zip((*inputs, again.model), (*before, finished.model), strict=True):
        assert_same_state(net, kept)
    assert told == [(done, 16) for done in range(1, 17)]
    assert not again.model.training  # the modes are those of `model`
    assert accuracy(model, data, bad) >= 0.8 and accuracy(finished.model, data, known) <= 0.2
    assert accuracy(finished.model, stamped) >= accuracy(model, stamped) + 0.5
    good = torch.ones(len(data), dtype=torch.bool).index_fill_(0, bad, False).nonzero()[:, 0]
    assert accuracy(finished.model, data, good) >= accuracy(model, data, good) - 0.05


def test_looks_are_those_of_the_network_before_the_repair(learnt, finished, monkeypatch):
    """Unless others are given: what looks like D_f to that network is dropped, whatever the repaired one has left. Nor
    are true labels made up. If either training has no network to give, the repair stays as it was."""
    data, bad, known, stamped, model, repaired = learnt
    alike = looking_alike(features(model, data), data.labels, known, CONFIG.seed)
    assert finished.alike == int(alike.sum()) > 0 and torch.isin(alike.nonzero()[:, 0], finished.dropped).all()
    blank = copy.deepcopy(repaired)
    for parameter in blank.parameters():
        parameter.data.zero_()
    for nets in ([None], [model, None]):
        taught = Mock(side_effect=nets)
        monkeypatch.setattr(finish_module, "taught", taught)
        found = finish(model, blank, data, known, CONFIG)
        assert (taught.call_args.args[4] == -1).all()
        assert found.alike == finished.alike and found.model is blank
        assert not found.taken and found.report()["ruined"] and "lost what it knew at each of the rates" in found.line


@pytest.mark.parametrize("third", [True, False])
def test_what_both_trainings_are_given(learnt, monkeypatch, third):
    """Both begin with the network before the repair. The first one leaves out what the repaired network disbelieves
    and what looks like D_f, the second one of the former what the first one's network does not believe either. Where
    that has sent D_f to a class that the repaired network does not name, the second one has the repaired network's
    answers, unless it names the label as given or the true label is known; else what both signs call bad stands behind
    D_f, unless D_f is many. The end is by all that is bad. What each network names is dictated."""
    data, bad, known, stamped, model, repaired = learnt
    known, odd, seen, judged = known.flip(0), torch.tensor([0, 3, 6]), [], []
    data = replace(data, labels=data.labels.index_fill(0, odd, 1))  # not of D_f, whose label is 0
    truths = torch.tensor([2, -1, -1, -1, 2, -1, -1, -1])
    answers = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    named = data.labels.index_copy(0, known, answers).index_fill(0, odd, 0)
    first = data.labels.index_copy(0, known, torch.full_like(known, 9) if third else answers)
    first[6] = 0  # while it believes 0 and 3
    monkeypatch.setattr(finish_module, "logits", lambda network, data: torch.eye(3)[named].double())
    monkeypatch.setattr(finish_module, "taught", lambda *args: seen.append(args) or copy.deepcopy(model))
    monkeypatch.setattr(finish_module, "predict", lambda network, data, index=slice(None): first[index])
    monkeypatch.setattr(finish_module, "share_right", lambda *args: judged.append(args[2]) or 0.0)
    how = dict(true_labels=truths, alike=torch.isin(torch.arange(len(data)), torch.tensor([3, 9])))
    done = finish(model, repaired, data, known, CONFIG, **how)
    assert all(args[0] is model for args in seen)
    assert [args[2].nonzero()[:, 0].tolist() for args in seen] == [[0, 3, 6, 9], [3, 6, 9]]
    beside = torch.cat([known, torch.tensor([3])])
    wanted = [2, 1, 2, -1, 2, 2, -1, 1] if third else [*truths.tolist(), -1]
    assert torch.equal(seen[0][3], known) and torch.equal(seen[0][4], truths)
    assert all(torch.equal(bad, known if third else beside) for bad in (seen[1][3], *judged)) and len(judged) == 2
    assert seen[1][4].tolist() == wanted and done.dropped.tolist() == [3, 6, 9]
    assert done.report() == {"taken": True, "dropped": 3, "disbelieved": 1, "alike": 2, "both": 1, "answers": third,
                             "ruined": False}
    assert "without 3 likely bad images (1 that" in done.line
    assert ("taught what REM's network says of the listed ones" in done.line) == third
    assert ("of the listed ones and of 1 that both signs call bad" in done.line) != third
    monkeypatch.setattr(finish_module, "FEW", len(known))  # these are enough
    done = finish(model, repaired, data, known, CONFIG, **how)
    assert done.both == 0 and torch.equal(seen[3][3], known) and done.line.endswith(" of the listed ones")
    monkeypatch.setattr(finish_module, "OF", (len(data) - 1) / len(known))  # these are not, of so many images
    assert finish(model, repaired, data, known, CONFIG, **how).both == 1
    monkeypatch.setattr(finish_module, "OF", len(data) / len(known))
    assert finish(model, repaired, data, known, CONFIG, **how).both == 0
    with pytest.raises(ValueError, match="true labels are torch.int64 of shape .3,.; they must be"):
        finish(model, repaired, data, known, CONFIG, true_labels=truths[:3])


def test_what_a_training_goes_over(learnt, monkeypatch):
    """What is left once, each bad image five times and nothing else, from the given network on; each bad image has its
    own answer, whatever order they are listed in."""
    data, bad, known, stamped, model, repaired = learnt
    dropped, known, passed = torch.arange(len(data)) % 5 == 0, known.flip(0), []
    answers = torch.where(torch.arange(len(known)) % 2 == 0, known % 3, -1)
    ((rows, x, y),) = data.batches(torch.arange(len(data)).flip(0))

    def fit(net, data, index, *rest, loss, **more):
        assert_same_state(net, model)
        passed.append((index, loss(rows, x, y)))

    monkeypatch.setattr(finish_module, "fit", fit)
    finish_module.taught(model, data, dropped, known, answers, CONFIG)
    index, found = passed[0]
    times = (~dropped).long().index_fill(0, known, 5)
    assert torch.equal(torch.bincount(index, minlength=len(data)), times)
    answer = torch.full((len(data),), -1).index_copy(0, known, answers)
    with torch.no_grad():
        assert_close(found, finish_loss(model(x), y, times[rows] == 5, answer[rows]), 1e-5)


def test_statistics_are_made_anew(learnt):
    """A training ends with BatchNorm's statistics of its own weights, over the images as it was trained on them; those
    of a frozen norm stay."""
    data, bad, known, stamped, model, repaired = learnt
    dropped = torch.arange(len(data)) % 5 == 0
    net = finish_module.taught(model, data, dropped, known, torch.full_like(known, -1), CONFIG)
    anew, left = copy.deepcopy(net), (~dropped).index_fill(0, known, False).nonzero()[:, 0]
    refresh_batchnorm(anew, data, CONFIG.batch, index=torch.cat([left, *[known] * 5]))
    assert_same_state(net, anew)
    frozen = copy.deepcopy(model)
    name, norm = next((name, m) for name, m in frozen.named_modules() if isinstance(m, torch.nn.BatchNorm2d))
    norm.requires_grad_(False)
    net = finish_module.taught(frozen, data, dropped, known, torch.full_like(known, -1), CONFIG)
    stayed = [torch.equal(kept, frozen.get_buffer(other)) for other, kept in net.named_buffers() if "mean" in other]
    assert torch.equal(net.get_buffer(f"{name}.running_mean"), norm.running_mean) and stayed.count(True) == 1


@pytest.mark.parametrize("found, share", [([0, 1, 2, 0], 1 / 3), ([1, 0, 2, 2], 1.0), ([0, 0, 0, 0], 0.0)])
def test_the_same_answers(found, share):
    """Images for which there is no answer count neither way."""
    assert same_answers(torch.tensor(found), torch.tensor([1, -1, 2, 2])) == pytest.approx(share)
    assert same_answers(torch.tensor(found), torch.full((4,), -1)) == 1


@pytest.mark.parametrize("said, labels, truths, gone", [
    ([9] * 6, [1] * 6, [-1] * 6, True),  # all have gone together, and the repaired network says 0, 2 or nothing of them
    ([9, 9, 9, 9, 8, 7], [1] * 6, [-1] * 6, False),  # spread: four are not beyond chance
    ([0, 0, 2, 2, 0, 2], [1] * 6, [-1] * 6, False),  # spread as well, and as the repaired network says
    ([0] * 6, [1] * 6, [-1] * 6, False),  # together where the repaired network sends half of them
    ([9] * 5 + [8] * 5, [1] * 5 + [2] * 5, [-1] * 10, True),
    ([9] * 5 + [8, 7, 6, 5, 4], [1] * 5 + [2] * 5, [-1] * 10, False),  # half of them have, and no more
    ([9] * 5 + [8, 7, 6, 5, 4], [1] * 6 + [2] * 4, [-1] * 10, False),  # with a sixth that did not go where they went
    ([9] * 5 + [8, 7, 6, 5, 4], [1] * 5 + [2] * 5, [-1] * 6 + [5, 4, 3, 1], True),  # taught their true labels, or not
    ([9] * 6, [1] * 6, [0] * 6, False)])
def test_what_has_gone_elsewhere(said, labels, truths, gone):
    """To a class that the repaired network does not name, more than half of D_f, and together beyond chance."""
    says = torch.tensor([0, 2, 0, 2, -1, -1] + [3] * 4)[:len(said)]
    rest = torch.arange(100) % 10  # images outside D_f, ten of each class
    given, predicted = (torch.cat([torch.tensor(part), rest]) for part in (labels, said))
    assert gone_elsewhere(predicted, says, given, torch.arange(len(said)), torch.tensor(truths)) == gone


@pytest.mark.parametrize("before, after, taken", [(0.0, 0.1, True), (0.0, 0.11, False), (0.5, 0.5, True),
                                                  (0.5, 0.6, False)])
def test_when_a_finish_is_taken(learnt, monkeypatch, before, after, taken):
    """It may believe as much of D_f as the repaired network does, or a tenth, which a repair may leave."""
    data, bad, known, stamped, model, repaired = learnt
    monkeypatch.setattr(finish_module, "taught", lambda *args: copy.deepcopy(model))
    monkeypatch.setattr(finish_module, "share_right", lambda net, *_: before if net is repaired else after)
    found = finish(model, repaired, data, known, CONFIG, alike=torch.zeros(len(data), dtype=torch.bool))
    assert found.taken == taken and (found.model is repaired) != taken
    assert found.line.startswith("not finished: ") != taken


@pytest.mark.parametrize("ends, tried", [
    ([0.8], 1), ([0.79, 0.8], 2), ([0.79, 0.79, 0.8], 3), ([None, 0.8], 2), ([None, None, 0.79], 0), ([None] * 3, 0)])
def test_a_rate_that_is_too_high_is_lowered(learnt, monkeypatch, ends, tried):
    """Where the loss is not finite, or more than a tenth fewer of the images that are learnt are right than before, the
    training begins anew at a third of the rate; after the third one there is none. What counts is what is learnt:
    neither D_f nor what is dropped."""
    data, bad, known, stamped, model, repaired = learnt
    dropped = torch.arange(len(data)) % 5 == 0
    nets = [NonFiniteLoss("at this rate") if end is None else copy.deepcopy(model) for end in ends]
    taught_at = Mock(side_effect=nets)
    share_right = Mock(side_effect=lambda net, *_: 0.9 if net is model else ends[nets.index(net)])
    monkeypatch.setattr(finish_module, "taught_at", taught_at)
    monkeypatch.setattr(finish_module, "share_right", share_right)
    found = finish_module.taught(model, data, dropped, known, torch.full_like(known, -1), CONFIG)
    assert found is (nets[tried - 1] if tried else None)
    assert all(one.args[1] is model for one in taught_at.call_args_list)
    assert [one.args[0] for one in taught_at.call_args_list] == pytest.approx([0.03, 0.01, 0.03 / 9][:tried or 3])
    left = (~dropped).index_fill(0, known, False).nonzero()[:, 0]
    assert all(torch.equal(one.args[2], left) for one in share_right.call_args_list)


@pytest.mark.parametrize("optimizer, unlearn_lr, rate", [
    ("sgd", 0.004, 0.03), ("sgd", 0.001, 0.0075), ("adam", 1e-4, 1.5e-3), ("adam", 2e-4, 3e-3)])
def test_the_rate_goes_with_that_of_unlearning(learnt, monkeypatch, optimizer, unlearn_lr, rate):
    """That of RATES at the rate that a repair chooses, in proportion at one that is given: what a verdict advises of
    --lr holds for the finish, too."""
    data, bad, known, stamped, model, repaired = learnt
    rates = []
    monkeypatch.setattr(finish_module, "taught_at", lambda rate, *rest: rates.append(rate) or model)
    finish(model, repaired, data, known, replace(CONFIG, optimizer=optimizer, unlearn_lr=unlearn_lr))
    assert rates == pytest.approx([rate] * 2, rel=1e-12)


def test_what_is_believed(learnt):
    """A share of those asked for, by labels as given; 1 of none; a logit that is not finite is told wherever it is."""
    data, bad, known, stamped, model, repaired = learnt
    hits = predict(model, data) == data.labels
    for index in (known, torch.arange(9)):
        assert finish_module.share_right(model, data, index) == pytest.approx(float(hits[index].double().mean()))
    assert finish_module.share_right(repaired, data, known[:0]) == 1
    far = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 3))
    torch.nn.init.constant_(far[1].weight, torch.inf)
    with pytest.raises(NonFiniteLoss):
        finish_module.share_right(far, data, known[:0])


# --- The command ------------------------------------------------------------------------------------------------------

def test_the_command_finishes_unless_told_not_to(colours, capsys):  # noqa: F811
    """A line says how many were dropped, and so does the report; --no-finish writes what REM leaves, and says none.
    A line of progress comes after each epoch."""
    weights, reports, told = [], [], []
    for more in ((), ("--no-finish",)):
        assert call(colours, "--epochs", 1, *more) in (0, 3)
        weights.append(colours["--out"].read_bytes())
        reports.append(report_of(colours))
        told.append(capsys.readouterr().out)
    assert "finished: " in told[0] and "finished: " not in told[1]
    epochs = [line.split()[2] for line in told[0].splitlines() if line.startswith("finish ")]
    assert epochs == [f"{done}/16" for done in range(1, 17)]
    assert reports[1]["finish"] is None
    dropped = reports[0]["finish"]["dropped"]
    assert f"without {dropped} likely bad images" in told[0]
    assert (weights[0] != weights[1]) == reports[0]["finish"]["taken"]


def test_looks_are_found_once_for_all(colours, monkeypatch):  # noqa: F811
    """The finish and the verdict have the same ones, of the settings' seed. Where they cannot be had, by any failure,
    the finish drops none for its looks, reads no features, and the repair ends as ever."""
    # what they are told is not printed
    finish, undoubted = Mock(wraps=pipeline.finish_repair), Mock(wraps=pipeline.undoubted)
    found, fail = Mock(return_value=torch.arange(72) % 9 == 4), Mock(side_effect=MemoryError("no room"))
    monkeypatch.setattr(pipeline, "finish_repair", finish)
    monkeypatch.setattr(pipeline, "undoubted", undoubted)
    monkeypatch.setattr(finish_module, "features", fail)
    for looks, expected in ((found, found.return_value), (fail, torch.zeros(72, dtype=torch.bool))):
        monkeypatch.setattr(pipeline, "looking_alike", looks)
        assert call(colours, "--epochs", 1, "--seed", 7) in (0, 3)
        assert torch.equal(finish.call_args.kwargs["alike"], expected)
        assert torch.equal(undoubted.call_args.args[4], expected)
    assert [one.args[3] for one in found.call_args_list] == [7]


def test_the_settings_seed_draws_the_order(learnt, monkeypatch):
    """A training draws from a stream of the settings' seed."""
    data, _, known, _, model, _ = learnt
    found = []
    monkeypatch.setattr(finish_module, "fit", lambda net, data, index, config, generator, **more:
                        found.append(generator.get_state()))
    for seed in (0, 7):
        finish_module.taught(model, data, torch.zeros(len(data), dtype=torch.bool), known,
                             torch.full_like(known, -1), replace(CONFIG, seed=seed))
    assert len(found) == 2
    assert all(map(torch.equal, found, (stream(seed, "finish").get_state() for seed in (0, 7))))
