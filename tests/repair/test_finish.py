"""The finish of a repair (repair/finish.py): what is dropped, what is learnt, and when the repair stays as it was.

The loss is that of a naive loop; D_f is never dropped and always pushed off its labels, or taught its true ones; looks
that tell nothing apart drop nothing; what goes in stays as it is. The world is flat colours with a white corner on the
bad ones, and a small network that has learnt them.
"""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch

from colours import call, colours  # noqa: F401
from engine.features import features
from engine.streams import stream
from experiment.data import Data
from experiment.settings import Config
from helpers import assert_close, assert_same_state, gen
from metrics import accuracy, predict
from models import build
from repair import finish as finish_module
from repair.finish import MOST, called_otherwise, finish, finish_loss, looking_alike
from repair.network import repair
from train import fit

pytestmark = pytest.mark.filterwarnings(r"ignore:Acc\(D_f\) is")  # REM alone does not forget this corner

CONFIG = Config(batch=16, lr=0.05, epochs=15, optimizer="sgd", unlearn_epochs=2)


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


# --- The loss ---------------------------------------------------------------------------------------------------------

def test_the_loss_is_that_of_a_loop():
    """-log p of the label, of the true one where D_f has one, else -log(1 - p) of the wrong one; a mean."""
    generator = gen(0)
    z = torch.randn(12, 4, generator=generator, dtype=torch.float64) * 3
    y = torch.randint(0, 4, (12,), generator=generator)
    in_forget = torch.arange(12) % 2 == 0
    truths = torch.where(torch.arange(12) % 4 == 0, (y + 1) % 4, -1)
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


def test_true_labels_of_others_are_not_read():
    """Outside D_f the label as given is learnt, whatever stands in `truths`."""
    z, y = torch.randn(6, 3, generator=gen(1)), torch.tensor([0, 1, 2, 0, 1, 2])
    nobody = torch.zeros(6, dtype=torch.bool)
    assert torch.equal(finish_loss(z, y, nobody, (y + 1) % 3), torch.nn.functional.cross_entropy(z, y))


# --- What is dropped --------------------------------------------------------------------------------------------------

def test_images_that_get_another_class_are_dropped():
    """Those outside D_f whose largest logit is not the given label's; none where they are more than half."""
    z = torch.eye(3, dtype=torch.float64)[torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])]
    labels = torch.tensor([0, 1, 2, 1, 1, 2, 1, 0])  # 3, 6 and 7 differ
    assert called_otherwise(z, labels, torch.tensor([6])).nonzero()[:, 0].tolist() == [3, 7]
    labels = (z.argmax(dim=1) + 1) % 3
    assert not called_otherwise(z, labels, torch.tensor([6])).any()
    half = torch.where(torch.arange(8) % 2 == 0, labels, z.argmax(dim=1))  # 0, 2, 4, 6 differ
    assert called_otherwise(z, half, torch.tensor([6, 7])).nonzero()[:, 0].tolist() == [0, 2, 4]  # half of six
    assert not called_otherwise(z, half, torch.tensor([1, 3, 7])).any()  # four of five


@pytest.mark.parametrize("seed", range(4))
def test_a_cluster_is_found_from_half_of_it(seed):
    """Thirty of 300 images lie apart, fifteen are known: most others are found, and one in twenty good ones at most."""
    h = torch.randn(300, 8, generator=gen(seed), dtype=torch.float64)
    h[:30, 0] += 8
    found = looking_alike(h, torch.arange(0, 30, 2), 0)
    assert not found[torch.arange(0, 30, 2)].any()
    assert found[torch.arange(1, 30, 2)].sum() >= 8 and found[30:].sum() <= 270 // 20


@pytest.mark.parametrize("seed", range(4))
def test_looks_that_say_nothing_drop_nothing(seed):
    """Known images that look like all others: as many lie above any similarity as below, so none is dropped."""
    h = torch.randn(300, 8, generator=gen(seed), dtype=torch.float64)
    assert int(looking_alike(h, torch.arange(0, 30, 2), 0).sum()) <= MOST * 300 / 2
    assert not looking_alike(torch.ones(300, 8, dtype=torch.float64), torch.arange(12), 0).any()


def test_few_known_images_have_no_looks():
    """Fewer than four cannot be held out in turn."""
    h = torch.randn(60, 4, generator=gen(0), dtype=torch.float64)
    h[:20] += 9
    assert not looking_alike(h, torch.arange(3), 0).any() and looking_alike(h, torch.arange(8), 0).any()


# --- The whole --------------------------------------------------------------------------------------------------------

def test_a_finish_heals_and_changes_nothing_else(learnt):
    """The listed images are believed no more, images with the corner get their own class, others stay; the inputs and
    the random state stay as they are; the same call gives the same weights."""
    data, bad, known, stamped, model, repaired = learnt
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
    again = finish(model, copy.deepcopy(repaired).train(), data, known, CONFIG)  # the modes are those of `model`
    assert all(torch.equal(t, again.model.state_dict()[name]) for name, t in found.model.state_dict().items())
    assert not again.model.training


def test_what_is_dropped_teaches_nothing(learnt):
    """Dropped images are outside D_f, counted by what they were found by; their pixels do not matter to the result."""
    data, bad, known, stamped, model, repaired = learnt
    wrong = predict(repaired, data) != data.labels
    wrong[known] = False
    found = finish(model, repaired, data, known, CONFIG, looks=False)
    assert torch.equal(found.dropped, wrong.nonzero()[:, 0]) and found.alike == 0
    assert found.disbelieved == int(wrong.sum()) == len(found.dropped)
    looked, alike = finish(model, repaired, data, known, CONFIG), looking_alike(features(model, data), known, 0)
    assert torch.equal(looked.dropped, (wrong | alike).nonzero()[:, 0]) and looked.alike == int(alike.sum()) > 0
    assert not torch.isin(looked.dropped, known).any() and looked.disbelieved == found.disbelieved
    assert looked.report() == {"taken": True, "dropped": len(looked.dropped), "disbelieved": looked.disbelieved,
                               "alike": looked.alike}
    assert f"without {len(looked.dropped)} likely bad images" in looked.line


def test_dropped_images_are_left_out_of_training(learnt, monkeypatch):
    """The passes go over what is left once and over each listed image five times, and over nothing else, from the
    network before the repair on; that one is taken unless it believes more of D_f than the repaired one."""
    data, bad, known, stamped, model, repaired = learnt
    seen, healed = [], finish(model, repaired, data, known, CONFIG).model
    monkeypatch.setattr(finish_module, "fit", lambda net, data, index, *rest, **more: seen.append((index, net)))
    assert finish(model, model, data, known, CONFIG).taken  # as much of it
    blank = copy.deepcopy(repaired)
    for parameter in blank.parameters():
        parameter.data.zero_()
    assert finish(model, blank, data, known, CONFIG).alike > 0  # looks are those of the network before the repair
    found = finish(model, healed, data, known, CONFIG)
    index, net = seen[-1]
    assert_same_state(net, model)
    times = torch.bincount(index, minlength=len(data))
    expected = torch.ones(len(data), dtype=torch.int64).index_fill_(0, found.dropped, 0).index_fill_(0, known, 5)
    assert torch.equal(times, expected)
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
        patched.setattr(finish_module, "fit", lambda *args, loss, **more: losses.append(loss))
        finish(model, repaired, data, known, CONFIG, true_labels=told)
    with torch.no_grad():
        wanted = finish_loss(model(x), y, torch.ones(len(known), dtype=torch.bool), told)
        assert_close(losses[0](rows, x, y), wanted, 1e-5)
    silent, nothing = (finish(model, repaired, data, known, CONFIG, true_labels=labels).model.state_dict()
                       for labels in (None, torch.full_like(told, -1)))
    assert all(torch.equal(t, nothing[name]) for name, t in silent.items())
    with pytest.raises(ValueError, match="3 true labels for 8 known bad images; give one for each"):
        finish(model, repaired, data, known, CONFIG, true_labels=told[:3])


def test_a_finish_that_is_not_finite_leaves_the_repair(learnt, monkeypatch):
    """A rate at which the loss explodes costs no repair."""
    data, bad, known, stamped, model, repaired = learnt
    monkeypatch.setitem(finish_module.RATES, "sgd", 1e30)
    found = finish(model, repaired, data, known, replace(CONFIG, momentum=0.0))
    assert found.model is repaired and not found.taken


# --- The command ------------------------------------------------------------------------------------------------------

def test_the_command_finishes_unless_told_not_to(colours, capsys):  # noqa: F811
    """A line says how many were dropped, and so does the report; --no-finish writes what REM leaves, and says none."""
    weights, reports, told = [], [], []
    for more in ((), ("--no-finish",)):
        assert call(colours, "--epochs", 1, *more) in (0, 3)
        weights.append(torch.load(colours["--out"], weights_only=True))
        reports.append(json.loads(colours["--out"].with_suffix(".json").read_text()))
        told.append(capsys.readouterr().out)
    assert "finished: " in told[0] and "finished: " not in told[1]
    assert reports[1]["finish"] is None
    dropped = reports[0]["finish"]["dropped"]
    assert f"without {dropped} likely bad images" in told[0]
    same = all(torch.equal(t, weights[1][name]) for name, t in weights[0].items())
    assert same != reports[0]["finish"]["taken"]
