"""True labels of known bad images (repair/truths.py, Y1 to Y5): they are taught. Lists with them: test_lists.py."""

from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch

import claims
from colours import call, colours, report_of  # noqa: F401
from engine.batches import trusted
from engine.streams import stream
from experiment.data import Data
from experiment.settings import Config
from helpers import gen, make_data, small_net, streamed
from metrics import accuracy, predict
from repair import pipeline
from repair.network import unlearn
from repair.truths import COPIES, check_truths, with_truths
from shapes import make
from tasks import put_trigger
from train import fit

pytestmark = pytest.mark.filterwarnings("ignore:Acc")  # what ends a repair has a say of its own

FORGET = torch.tensor([5, 1, 8])
TRUTHS = torch.tensor([2, -1, 0])


def images_of(**more) -> Data:
    """24 images of four classes, in which the true labels of FORGET are others than those given."""
    data = make_data(0, n=24, classes=4, **more)
    labels = data.labels.clone()
    labels[FORGET] = torch.tensor([0, 1, 3])
    return replace(data, labels=labels)


# --- What REM is given ------------------------------------------------------------------------------------------------

def test_what_counts_as_known():
    """Y1: true labels that are all the first class are known; where all are -1 there are none."""
    data, forget, first = images_of(), FORGET[1:], torch.zeros(2, dtype=torch.int64)
    assert torch.equal(check_truths(first, forget, data.labels, 4), first)
    assert len(with_truths(data, forget, first)) == 24 + 2 * COPIES
    assert len(with_truths(data, forget, first + torch.tensor([2, -1]))) == 24 + COPIES  # none of the first class
    for none in (None, first - 1):
        assert check_truths(none, forget, data.labels, 4) is None
        assert with_truths(data, forget, none) is data


@pytest.mark.parametrize("more", [{}, {"pad": 2, "flip": True}], ids=["plain", "augmented"])
def test_taught_data_is_read_as_its_own(more):
    """Y1, Y2: known images come again behind all others, which are as they were, at their true labels: order, crop and
    flip are what a Data that held these copies would give, bit for bit, in memory and streamed."""
    data = images_of(**more)
    again = torch.cat([torch.arange(24), FORGET[TRUTHS >= 0].repeat(COPIES)])
    labels = torch.cat([data.labels, TRUTHS[TRUTHS >= 0].repeat(COPIES)])
    wanted = list(replace(data, images=data.images[again], labels=labels)
                  .batches(size=8, generator=gen(3), augment=True))
    for source in (data, streamed(data)):
        taught = with_truths(source, FORGET, TRUTHS)
        found = list(taught.batches(size=8, generator=gen(3), augment=True))
        assert taught.augments == bool(more)
        for one, other in zip(found, wanted, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_copies_are_trusted():
    """Y1: somebody has looked at the copies' labels, which are neither held out nor left out."""
    taught = with_truths(images_of(), FORGET, TRUTHS)
    copies = torch.arange(24, 24 + 2 * COPIES)
    assert torch.equal(taught.trusted, copies)
    assert torch.equal(trusted(taught).nonzero()[:, 0], copies)
    assert not trusted(images_of()).any()


def test_a_trigger_stays_on_the_copies():
    """Y2: what augmentation must not move on an image, it must not move on the image's copies either."""
    data = put_trigger(images_of(pad=2), FORGET)
    taught = with_truths(data, FORGET, TRUTHS)
    for rows, x, _ in taught.batches(size=40, generator=gen(0), augment=True):
        marked = (x[:, :, -3:, -3:] == x.amax()).flatten(1).all(1)
        assert torch.equal(marked, torch.isin(taught.source[rows], FORGET))


@pytest.mark.parametrize("truths, words", [
    (torch.tensor([0, -1, 1]), "image 5 is listed as bad, but its true label is the label that it has, 0"),
    (torch.tensor([2, -1, 4]), "the true label of image 8 is 4; it must be from 0 to 3, or -1"),
    (torch.tensor([-2, -1, 0]), "the true label of image 5 is -2"),
    (torch.tensor([2, 0]), r"int64 of shape \(2,\); they must be an int64 tensor of shape \(3,\), one for each"),
    (torch.tensor([2.0, 0, 0]), r"true labels are torch.float32 of shape \(3,\)"),
    (torch.zeros((3, 1), dtype=torch.int64), r"int64 of shape \(3, 1\)"), (torch.tensor(2), r"int64 of shape \(\)"),
    ([2, 0, 0], "true labels are list")])
def test_true_labels_that_cannot_be(truths, words):
    """Y4: a true label that is no class, or the one that the image has, is refused by `repair` before any training."""
    with pytest.raises(ValueError, match=words):
        unlearn(small_net(0), images_of(), FORGET, true_labels=truths, say=pytest.fail)
    with pytest.raises(ValueError, match="ant.png is listed as bad"):
        check_truths(torch.tensor([0, -1, -1]), FORGET, images_of().labels, 4, ["x.png"] * 5 + ["ant.png"] * 19)


# --- What it brings ---------------------------------------------------------------------------------------------------

def test_true_labels_are_taught():
    """Y3: the known stickered images get their true labels, more of them than without, and images with a sticker that
    nobody listed are healed as well, within what a run varies by."""
    train, _, known, clean, stickered = make(0, size=16)
    kinds = torch.arange(len(train)) % 3  # what draw_shapes drew
    model = claims.network(0, channels=3, classes=3)
    fit(model, train, None, Config(epochs=8, batch=32, lr=0.01), stream(0, "training"))
    plain, taught = (unlearn(model, train, known, true_labels=truths)[0] for truths in (None, kinds[known]))
    assert bool((train.labels[known] != kinds[known]).all())
    right = [float((predict(net, train, known) == kinds[known]).double().mean()) for net in (plain, taught)]
    assert right[1] >= max(right[0], 0.9)  # 1.0 at seeds 0, 1, 2; without 0.83 on average
    assert accuracy(taught, stickered) >= accuracy(plain, stickered) - 0.05  # 8 points more on average, SEM 3
    assert accuracy(taught, clean) >= accuracy(model, clean) - 0.05  # 1 point less on average


# --- The command ------------------------------------------------------------------------------------------------------

def test_the_command_teaches_them(colours, capsys, monkeypatch):
    """Y4, Y5: a column of true labels of --bad goes to REM+, the finish and the verdict, changes the weights, and adds
    a line to the report."""
    bad, parts = colours["--data"] / "bad.csv", {}
    for name in ("unlearn", "finish_repair", "judge"):  # what they are given shows nowhere else
        parts[name] = Mock(wraps=getattr(pipeline, name))
        monkeypatch.setattr(pipeline, name, parts[name])
    bad.write_text("path,true_label\n0-5.png,0\n1-5.png,\n")
    assert call(colours, "--epochs", 1) in (0, 3)
    plain = colours["--out"].read_bytes()
    assert call({**colours, "--bad": bad}, "--epochs", 1) in (0, 3)
    assert colours["--out"].read_bytes() != plain
    given = [one.kwargs["true_labels"] for name in ("unlearn", "finish_repair") for one in parts[name].call_args_list]
    given += [one.args[-1] for one in parts["judge"].call_args_list]
    assert given[::2] == [None] * 3 and [truths.tolist() for truths in given[1::2]] == [[0, -1]] * 3
    assert "1 of these with a true label" in capsys.readouterr().out
    scores = report_of(colours)["scores"]
    assert list(scores)[:2] == ["known bad, their given labels", "known bad, their true labels"]
    assert scores["known bad, their true labels"][0] == 1.0  # of 0-5.png alone, which the network calls 0
