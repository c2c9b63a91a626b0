"""The finish of a repair (repair/finish.py): what is dropped, what is learnt, and when the repair stays as it was.

The loss is that of a naive loop; D_f is never dropped and always pushed off its labels, or taught its true ones; looks
that tell nothing apart drop nothing; what the first training believes again comes back; what goes in stays as it is.
The world is flat colours with a white corner on the bad ones, and a small network that has learnt them.
"""

import copy
import math
from dataclasses import replace

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
from repair import account, command
from repair import finish as finish_module
from repair.finish import (RATES, called_otherwise, finish, finish_loss, gone_elsewhere, same_answers,
                           what_it_says)
from repair.looks import looking_alike
from repair.network import UNLEARN_LR, choose_settings, repair
from repair.progress import Watch
from repair.verdict import undoubted
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
    return data, bad, known, stamped, model, repair(model, data, known, unlearn_epochs=2).eval()


@pytest.fixture(scope="module")
def finished(learnt):
    """The finish of that repair."""
    data, bad, known, stamped, model, repaired = learnt
    return finish(model, repaired, data, known, CONFIG)


# --- The loss ---------------------------------------------------------------------------------------------------------

def test_the_loss_is_that_of_a_loop():
    """-log p of the label, of the true one where D_f has one, else -log(1 - p) of the wrong one; a mean. Outside D_f
    the label as given is learnt, whatever stands in `truths`."""
    generator = gen(0)
    z = torch.randn(12, 4, generator=generator, dtype=torch.float64) * 3
    y = torch.randint(0, 4, (12,), generator=generator)
    in_forget = torch.arange(12) % 2 == 0
    truths = torch.where(torch.arange(12) % 3 == 0, (y + 1) % 4, -1)
    total = 0.0
    for i in range(12):
        exp = [math.exp(value) for value in z[i].tolist()]
        p = [value / sum(exp) for value in exp]
        if in_forget[i] and truths[i] < 0:
            total -= math.log(1 - p[y[i]])
        else:
            total -= math.log(p[truths[i] if in_forget[i] else y[i]])
    assert float(finish_loss(z, y, in_forget, truths)) == pytest.approx(total / 12, rel=1e-12)


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

def test_a_finish_heals_and_changes_nothing_else(learnt):
    """The listed images are believed no more, images with the corner get their own class, others stay; the inputs and
    the random state stay as they are; the same call gives the same weights, and tells each epoch of both trainings."""
    data, bad, known, stamped, model, repaired = learnt
    told = []
    before = [{name: t.clone() for name, t in net.state_dict().items()} for net in (model, repaired)]
    state = torch.get_rng_state()
    found = finish(model, repaired, data, known, CONFIG)
    assert found.taken and torch.equal(torch.get_rng_state(), state)
    for net, kept in zip((model, repaired), before, strict=True):
        assert all(torch.equal(t, kept[name]) for name, t in net.state_dict().items())
    assert list(found.model.state_dict()) == list(model.state_dict()) and not found.model.training
    assert accuracy(model, data, bad) >= 0.8 and accuracy(found.model, data, known) <= 0.2
    assert accuracy(found.model, stamped) >= accuracy(model, stamped) + 0.5
    good = torch.ones(len(data), dtype=torch.bool).index_fill_(0, bad, False).nonzero()[:, 0]
    assert accuracy(found.model, data, good) >= accuracy(model, data, good) - 0.05
    again = finish(model, copy.deepcopy(repaired).train(), data, known, CONFIG,  # the modes are those of `model`
                   log=lambda *epochs: told.append(epochs))
    assert told == [(done, 16) for done in range(1, 17)]
    assert all(torch.equal(t, again.model.state_dict()[name]) for name, t in found.model.state_dict().items())
    assert not again.model.training


def test_statistics_are_made_anew(learnt, monkeypatch):
    """A training ends with BatchNorm's statistics of its own weights, over the images as it was trained on them; those
    of a frozen norm stay."""
    data, bad, known, stamped, model, repaired = learnt
    passed = []
    monkeypatch.setattr(finish_module, "fit", lambda net, data, index, *rest, **more: passed.append(index) or
                        fit(net, data, index, *rest, **more))
    found = finish(model, repaired, data, known, CONFIG)
    anew = copy.deepcopy(found.model)
    refresh_batchnorm(anew, data, CONFIG.batch, index=passed[1])
    assert_same_state(found.model, anew)
    frozen, nothing = copy.deepcopy(model), torch.zeros(len(data), dtype=torch.bool)
    name, norm = next((name, m) for name, m in frozen.named_modules() if isinstance(m, torch.nn.BatchNorm2d))
    norm.requires_grad_(False)
    net = finish_module.taught(frozen, data, nothing, known, torch.full((len(known),), -1), CONFIG)
    stayed = [torch.equal(kept, frozen.get_buffer(other)) for other, kept in net.named_buffers() if "mean" in other]
    assert torch.equal(net.get_buffer(f"{name}.running_mean"), norm.running_mean) and stayed.count(True) == 1


def test_what_both_signs_call_bad_is_treated_as_listed(learnt, monkeypatch):
    """Images that the repaired network disbelieves and that look like D_f are left out of the first training and stand
    behind D_f in the second, whatever the second opinion says of them, their true labels unknown. The end is by all of
    these."""
    data, bad, known, stamped, model, repaired = learnt
    truths, seen, judged = torch.full((len(known),), -1), [], []
    truths[::2] = (data.labels[known][::2] + 1) % 3
    wrong = (predict(repaired, data) != data.labels).index_fill(0, known, False)
    both = (wrong & looking_alike(features(model, data), data.labels, known, CONFIG.seed)).nonzero()[:, 0]
    assert len(both) and (predict(model, data, both) == data.labels[both]).any()  # believed by the first training's
    monkeypatch.setattr(finish_module, "taught", lambda *args: seen.append(args) or copy.deepcopy(model))
    monkeypatch.setattr(finish_module, "gone_elsewhere", lambda *_: False)
    monkeypatch.setattr(finish_module, "believed_share", lambda *args: judged.append(args[2]) or 0.0)
    found = finish(model, repaired, data, known, CONFIG, true_labels=truths)
    assert torch.equal(seen[0][3], known) and torch.equal(seen[0][4], truths)
    assert all(torch.equal(bad, torch.cat([known, both])) for bad in (seen[1][3], *judged)) and len(judged) == 2
    assert torch.equal(seen[1][4], torch.cat([truths, torch.full_like(both, -1)]))
    assert found.both == found.report()["both"] == len(both) and torch.isin(both, found.dropped).all()
    monkeypatch.setattr(finish_module, "FEW", len(known))  # these are enough
    assert finish(model, repaired, data, known, CONFIG).both == 0 and torch.equal(seen[3][3], known)
    assert found.line.endswith(f"kept off the labels of the listed ones and of {len(both)} that both signs call bad")
    assert found._replace(both=0).line.endswith("kept off the labels of the listed ones")


def test_what_is_dropped(learnt, finished, monkeypatch):
    """First the images outside D_f that the repaired network gives another class, and those that look like D_f to the
    network before the repair; in the second training, of the former those that the first one's network does not believe
    either: these are returned, counted by what they were found by."""
    data, bad, known, stamped, model, repaired = learnt
    wrong = (predict(repaired, data) != data.labels).index_fill(0, known, False)
    alike = looking_alike(features(model, data), data.labels, known, 0)
    opinion, seen = copy.deepcopy(model), []  # the network before the repair, which believes the bad ones
    monkeypatch.setattr(finish_module, "taught", lambda *args: seen.append(args) or opinion)
    monkeypatch.setattr(finish_module, "gone_elsewhere", lambda *_: False)
    found = finish(model, repaired, data, known, CONFIG, alike=torch.zeros(len(data), dtype=torch.bool))
    left = wrong & (predict(opinion, data) != data.labels)
    assert 0 < int(wrong.sum()) and not torch.equal(left, wrong)
    assert torch.equal(seen[0][2], wrong) and torch.equal(seen[1][2], left) and len(seen) == 2
    assert torch.equal(found.dropped, left.nonzero()[:, 0]) and found.disbelieved == int(left.sum())
    assert found.alike == 0
    monkeypatch.undo()
    assert torch.isin(alike.nonzero()[:, 0], finished.dropped).all() and finished.alike == int(alike.sum()) > 0
    assert torch.isin(finished.dropped, (wrong | alike).nonzero()[:, 0]).all()
    assert not torch.isin(finished.dropped, known).any()
    assert finished.report() == {"taken": True, "dropped": len(finished.dropped), "disbelieved": finished.disbelieved,
                                 "alike": finished.alike, "both": finished.both, "answers": False,
                                 "ruined": False}
    assert f"without {len(finished.dropped)} likely bad images" in finished.line


def test_dropped_images_are_left_out_of_training(learnt, finished, monkeypatch):
    """The passes go over what is left once, and over each listed image and those that both signs call bad five times,
    and over nothing else, from the network before the repair on; that one is taken unless it believes more of D_f than
    the repaired one."""
    data, bad, known, stamped, model, repaired = learnt
    seen, healed = [], finished.model
    monkeypatch.setattr(finish_module, "fit",
                        lambda net, data, index, *rest, **more: seen.append((index, copy.deepcopy(net))))
    monkeypatch.setattr(finish_module, "gone_elsewhere", lambda *_: False)
    assert finish(model, model, data, known, CONFIG).taken  # as much of it
    blank = copy.deepcopy(repaired)
    for parameter in blank.parameters():
        parameter.data.zero_()
    assert finish(model, blank, data, known, CONFIG).alike > 0  # looks are those of the network before the repair
    found = finish(model, healed, data, known, CONFIG)
    index, net = seen[-1]
    assert_same_state(net, model)
    times = torch.bincount(index, minlength=len(data))
    both = found.dropped[predict(healed, data, found.dropped) != data.labels[found.dropped]]
    both = both[looking_alike(features(model, data), data.labels, known, CONFIG.seed)[both]]
    expected = torch.ones(len(data), dtype=torch.int64).index_fill_(0, found.dropped, 0)
    assert torch.equal(times, expected.index_fill_(0, torch.cat([known, both]), 5)) and len(both) == found.both
    assert not found.taken and found.model is healed  # untrained, it believes more of D_f than the healed network
    assert found.line.startswith("not finished: ")


def test_known_labels_are_taught(learnt, monkeypatch):
    """The listed images whose true label is given get it, and those with -1 get anything but the wrong one, whatever
    order they are listed in."""
    data, bad, known, stamped, model, repaired = learnt
    known, truth = known.flip(0), torch.arange(len(data)) % 3
    told = truth[known].clone()
    told[::2] = -1
    found = finish(model, repaired, data, known, CONFIG, true_labels=told)
    hits = predict(found.model, data)[known]
    assert (hits == truth[known])[told >= 0].double().mean() >= 0.7
    assert (hits != data.labels[known]).double().mean() >= 0.7
    losses, ((rows, x, y),) = [], data.batches(known)
    with monkeypatch.context() as patched:  # each label is that of its image
        patched.setattr(finish_module, "fit", lambda *args, loss, **more: losses.append(loss(rows, x, y)))
        finish(model, repaired, data, known, CONFIG, true_labels=told)
    with torch.no_grad():
        wanted = finish_loss(model(x), y, torch.ones(len(known), dtype=torch.bool), told)
        assert_close(losses[0], wanted, 1e-5)
    silent, nothing = (finish(model, repaired, data, known, CONFIG, true_labels=labels).model.state_dict()
                       for labels in (None, torch.full_like(told, -1)))
    assert all(torch.equal(t, nothing[name]) for name, t in silent.items())
    with pytest.raises(ValueError, match="3 true labels for 8 known bad images; give one for each"):
        finish(model, repaired, data, known, CONFIG, true_labels=told[:3])


@pytest.mark.parametrize("truths, wanted", [([-1, -1, -1], [2, -1, 0]), ([-1, 2, 1], [2, 2, 1])])
def test_what_the_repaired_network_says(truths, wanted):
    """The true label wins over the repaired network's answer, and the label as given is no answer."""
    z, given = torch.tensor([[0.0, 1.0, 2.0], [0.0, 3.0, 2.0], [5.0, 1.0, 4.0]]), torch.tensor([1, 1, 2])
    assert what_it_says(z, given, torch.tensor(truths)).tolist() == wanted


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


@pytest.mark.parametrize("third", [True, False])
def test_a_third_class_is_no_finish(learnt, monkeypatch, third):
    """Where the first training sends D_f to a class that the repaired network does not name, the second one has the
    repaired network's answers, for D_f alone; else, like the first, none, and what both signs call bad stands beside
    D_f. Both begin with the network before the repair, and the second one with what a second opinion brings back. What
    each names is dictated, so that of D_f some get the label as given."""
    data, bad, known, stamped, model, repaired = learnt
    data = replace(data, labels=data.labels.index_fill(0, torch.tensor([0, 3]), 1))  # not of D_f, and not its label
    named, seen, judged = data.labels.index_copy(0, known, torch.arange(len(known)) % 3), [], []
    named[[0, 3]] = 0  # disbelieved by the repaired network, and not by the first training's
    says, beside = torch.where(named == data.labels, -1, named)[known], torch.cat([known, torch.tensor([3])])
    assert 0 < int((says < 0).sum()) < len(known)
    first = data.labels.index_copy(0, known, torch.full_like(known, 9) if third else named[known])
    monkeypatch.setattr(finish_module, "logits", lambda network, data: (torch.eye(3)[named].double(), data.labels))
    monkeypatch.setattr(finish_module, "taught", lambda *args: seen.append(args) or copy.deepcopy(model))
    monkeypatch.setattr(finish_module, "predict", lambda network, data, index=slice(None): first[index])
    monkeypatch.setattr(finish_module, "believed_share", lambda *args: judged.append(args[2]) or 0.0)
    done = finish(model, repaired, data, known, CONFIG, alike=torch.arange(len(data)) == 3)
    assert len(seen) == 2 and done.answers == third and done.report()["answers"] == third
    assert (seen[0][4] == -1).all() and all(args[0] is model for args in seen)
    assert all(torch.equal(bad, known if third else beside) for bad in (seen[1][3], *judged)) and len(judged) == 2
    assert torch.equal(seen[1][4], says if third else torch.full_like(beside, -1))
    assert seen[0][2][[0, 3]].all() and seen[1][2][[0, 3]].tolist() == [False, True]
    ends = "of the listed ones" if third else "of the listed ones and of 1 that both signs call bad"
    assert done.line.endswith(ends) and ("was taught what the repaired network says" in done.line) == third


@pytest.mark.parametrize("before, after, taken", [(0.0, 0.1, True), (0.0, 0.11, False), (0.5, 0.5, True),
                                                  (0.5, 0.6, False)])
def test_when_a_finish_is_taken(learnt, monkeypatch, before, after, taken):
    """It may believe as much of D_f as the repaired network does, or a tenth, which a repair may leave."""
    data, bad, known, stamped, model, repaired = learnt
    shares = iter([before, after])
    monkeypatch.setattr(finish_module, "taught", lambda *args: copy.deepcopy(model))
    monkeypatch.setattr(finish_module, "believed_share", lambda *_: next(shares))
    found = finish(model, repaired, data, known, CONFIG, alike=torch.zeros(len(data), dtype=torch.bool))
    assert found.taken == taken and (found.model is repaired) != taken


def test_a_finish_that_is_not_finite_leaves_the_repair(learnt, monkeypatch):
    """Rates at which the loss explodes cost no repair."""
    data, bad, known, stamped, model, repaired = learnt
    monkeypatch.setitem(finish_module.RATES, "sgd", 1e30)
    found = finish(model, repaired, data, known, replace(CONFIG, momentum=0.0))
    assert found.model is repaired and not found.taken
    assert "lost what it knew at each of the rates" in found.line and found.report()["ruined"]


@pytest.mark.parametrize("ends, tried", [
    ([0.8], 1), ([0.79, 0.8], 2), ([0.79, 0.79, 0.8], 3), ([None, 0.8], 2), ([None, None, 0.79], 0), ([None] * 3, 0)])
def test_a_rate_that_is_too_high_is_lowered(learnt, monkeypatch, ends, tried):
    """Where the loss is not finite, or more than a tenth fewer of the images that are learnt are right than before, the
    training begins anew at a third of the rate; after the third one there is none. What counts is what is learnt:
    neither D_f nor what is dropped."""
    data, bad, known, stamped, model, repaired = learnt
    dropped = torch.arange(len(data)) % 5 == 0
    asked, rates, nets, shares = [], [], [], iter([0.9, *[end for end in ends if end is not None]])

    def taught_at(rate, given, *rest):
        assert given is model
        rates.append(rate)
        if ends[len(rates) - 1] is None:
            raise NonFiniteLoss("at this rate")
        nets.append(copy.deepcopy(model))
        return nets[-1]

    monkeypatch.setattr(finish_module, "taught_at", taught_at)
    monkeypatch.setattr(finish_module, "believed_share", lambda net, data, index: asked.append(index) or next(shares))
    nothing = torch.full((len(known),), -1)
    found = finish_module.taught(model, data, dropped, known, nothing, CONFIG)
    assert found is (nets[-1] if tried else None) and rates == pytest.approx([0.03, 0.01, 0.03 / 9][:tried or 3])
    left = (~dropped).index_fill(0, known, False).nonzero()[:, 0]
    assert all(torch.equal(index, left) for index in asked)


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
    chosen = choose_settings(torch.nn.Linear(1, 1), 60, {"optimizer": optimizer})[0].unlearn_lr
    assert RATES[optimizer] * (chosen / UNLEARN_LR[optimizer]) == {"sgd": 0.03, "adam": 1.5e-3}[optimizer]


def test_what_is_believed(learnt):
    """A share of those asked for, by labels as given; 1 of none; a logit that is not finite is told wherever it is."""
    data, bad, known, stamped, model, repaired = learnt
    hits = predict(model, data) == data.labels
    for index in (known, torch.arange(9)):
        assert finish_module.believed_share(model, data, index) == pytest.approx(float(hits[index].double().mean()))
    assert finish_module.believed_share(repaired, data, known) < 1
    assert finish_module.believed_share(repaired, data, known[:0]) == 1
    far = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 3))
    torch.nn.init.constant_(far[1].weight, torch.inf)
    with pytest.raises(NonFiniteLoss):
        finish_module.believed_share(far, data, known[:0])


def test_a_high_rate_costs_nothing(learnt, monkeypatch):
    """At a hundred times the rate, which mostly ruins this network, the finish is as good as ever: a lower one does
    it."""
    data, bad, known, stamped, model, repaired = learnt
    good = torch.ones(len(data), dtype=torch.bool).index_fill_(0, bad, False).nonzero()[:, 0]
    monkeypatch.setitem(finish_module.RATES, "sgd", 3.0)
    found = finish(model, repaired, data, known, CONFIG)
    assert found.taken and accuracy(found.model, data, good) >= accuracy(model, data, good) - 0.1


# --- The command ------------------------------------------------------------------------------------------------------

def test_the_command_finishes_unless_told_not_to(colours, capsys, monkeypatch):  # noqa: F811
    """A line says how many were dropped, and so does the report; --no-finish writes what REM leaves, and says none.
    The lines of progress know the epochs."""
    weights, reports, told, epochs = [], [], [], []
    monkeypatch.setattr(Watch, "epoch", lambda watch, *passed: epochs.append((watch.what, *passed)))
    for more in ((), ("--no-finish",)):
        assert call(colours, "--epochs", 1, *more) in (0, 3)
        weights.append(torch.load(colours["--out"], weights_only=True))
        reports.append(report_of(colours))
        told.append(capsys.readouterr().out)
    assert "finished: " in told[0] and "finished: " not in told[1]
    assert epochs == [("the finish", done, 16) for done in range(1, 17)]
    assert reports[1]["finish"] is None
    dropped = reports[0]["finish"]["dropped"]
    assert f"without {dropped} likely bad images" in told[0]
    same = all(torch.equal(t, weights[1][name]) for name, t in weights[0].items())
    assert same != reports[0]["finish"]["taken"]


def test_looks_are_found_once_for_all(colours, monkeypatch):  # noqa: F811
    """The finish and the verdict have the same ones, of the settings' seed. Where they cannot be had, for want of room
    or by any failure, the finish drops none for its looks, reads no features, and the repair ends as ever."""
    dropped, seen = torch.arange(72) % 9 == 4, []

    def alike(h, labels, forget, seed):
        seen.append(seed)
        return dropped.clone()

    def fail(*args):
        raise MemoryError("no room")

    def ended(expected) -> bool:
        """Whether the finish and the verdict had these."""
        given = []
        with monkeypatch.context() as patched:
            patched.setattr(command, "finish",
                            lambda *args, **more: given.append(more["alike"]) or finish(*args, **more))
            patched.setattr(account, "undoubted", lambda *args: given.append(args[4]) or undoubted(*args))
            assert call(colours, "--epochs", 1, "--seed", 7) in (0, 3)
        return [torch.equal(mask, expected) for mask in given] == [True, True]

    monkeypatch.setattr(account, "looking_alike", alike)
    monkeypatch.setattr(finish_module, "features", fail)
    assert ended(dropped) and seen == [7]
    monkeypatch.setattr(account, "looking_alike", fail)
    assert ended(torch.zeros(72, dtype=torch.bool))
    monkeypatch.setattr(account, "room_for_images", lambda device: 0)
    assert ended(torch.zeros(72, dtype=torch.bool))
    monkeypatch.setattr(account, "ranks", lambda: (0, 2))
    with pytest.raises(MemoryError):  # of two processes the other one would wait for this one
        account.looks_if_any(fail, None)
