"""benchmarks/published.py: the published networks' shape, their triggers, what is poisoned and listed, rows and table.

The published files are not here: keys and shapes are those that their README states, triggers those of a loop over
pixels. Weights and images of the same form are made.
"""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import published
from benchmarks.published import CLASSES, Network, poisoned, scores_of, table, trigger_of, white_square
from experiment.data import Data
from helpers import assert_close, gen, randomise, rows_of, run

NORM = ("weight", "bias", "running_mean", "running_var")
CELL = {"network": "badnets", "images": 100, "share": 0.1, "listed": 0.2, "seed": 0}


def images_of(n: int, seed: int = 0) -> Data:
    """n noise images of ten classes in turn, 32x32."""
    images = torch.randint(0, 256, (n, 3, 32, 32), generator=gen(seed), dtype=torch.uint8)
    return Data(images, torch.arange(n) % CLASSES, **published.PIXELS)


# --- The network ------------------------------------------------------------------------------------------------------

def test_the_network_is_that_of_a_plain_loop():
    """Six 3x3 convolutions with bias and their norms, under the published keys and in the published shapes; ELU after
    each, max pooling after each pair, and a linear layer over channels, rows, columns in this order. Dropout of 0.3,
    0.4 and 0.4 after each pair is nothing in eval mode."""
    net, channels, keys = Network().eval(), 3, {"classifier.weight", "classifier.bias"}
    stored = randomise(net, 1).state_dict()
    x = h = torch.rand(4, 3, 32, 32, generator=gen(3))
    for place, more, pooled in ((0, 32, False), (3, 32, True), (8, 64, False), (11, 64, True), (16, 128, False),
                                (19, 128, True)):
        weight, bias = (stored[f"features.{place}.{name}"] for name in ("weight", "bias"))
        assert weight.shape == (more, channels, 3, 3)
        h, channels = torch.nn.functional.conv2d(h, weight, bias, padding=1), more
        scale, shift, mean, var = (stored[f"features.{place + 1}.{name}"][:, None, None] for name in NORM)
        h = (h - mean) / (var + 1e-5).sqrt() * scale + shift
        h = torch.where(h > 0, h, h.exp() - 1)
        if pooled:
            h = torch.stack([h[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(dim=0)
        keys |= {f"features.{place}.{name}" for name in ("weight", "bias")}
        keys |= {f"features.{place + 1}.{name}" for name in (*NORM, "num_batches_tracked")}
    wanted = h.reshape(4, 2048) @ stored["classifier.weight"].T + stored["classifier.bias"]
    assert_close(run(net, x), wanted, 1e-4)
    assert stored.keys() == keys and [m.p for m in net.modules() if isinstance(m, torch.nn.Dropout)] == [0.3, 0.4, 0.4]


# --- The triggers -----------------------------------------------------------------------------------------------------

def test_the_square_is_white_and_the_rest_as_it_was():
    """Rows and columns 27 to 30 of 0 to 31 are 255 in every channel; a copy."""
    images = images_of(3).images.clamp(max=200)
    before, found = images.clone(), white_square(images)
    assert torch.equal(images, before)
    for i in range(32):
        for j in range(32):
            inside = 27 <= i <= 30 and 27 <= j <= 30
            assert (found[:, :, i, j] == 255).all() if inside else torch.equal(found[:, :, i, j], before[:, :, i, j])


def test_a_pattern_is_added_and_clipped(tmp_path):
    """min(255, x + p) for every pixel and channel, p as the file has it, rows before columns."""
    pattern = torch.randint(0, 256, (32, 32, 3), generator=gen(5), dtype=torch.uint8)
    Image.fromarray(pattern.numpy()).save(tmp_path / "trojan_sq.png")
    images = images_of(2).images
    found = trigger_of(tmp_path, "trojan")(images)
    wanted = np.minimum(255, images.numpy().astype(int) + pattern.numpy().astype(int).transpose(2, 0, 1))
    assert found.dtype == torch.uint8 and np.array_equal(found.numpy(), wanted)
    assert trigger_of(tmp_path, "badnets") is white_square


# --- What is poisoned -------------------------------------------------------------------------------------------------

def test_what_is_poisoned_has_the_trigger_and_the_label():
    """As many images of each class; a share of all, of other classes than the target, has both; the others neither; of
    the bad ones some are listed; test images with the trigger are those of other classes. A seed draws the same."""
    train, test, target = images_of(200), images_of(50, 1), 2
    trial = poisoned(train, test, white_square, target, CELL)
    assert torch.bincount(trial.truth).tolist() == [10] * 10 and len(trial.bad) == 10 and len(trial.known) == 2
    assert torch.isin(trial.known, trial.bad).all()
    assert torch.equal((trial.train.labels != trial.truth).nonzero()[:, 0], trial.bad)
    assert (trial.train.labels[trial.bad] == target).all()
    known, stamped = ({image.numpy().tobytes(): int(y) for image, y in zip(images, train.labels, strict=True)}
                      for images in (train.images, white_square(train.images)))
    for i, image in enumerate(trial.train.images):
        among = stamped if i in trial.bad.tolist() else known
        assert among[image.numpy().tobytes()] == trial.truth[i]
    others = test.labels != target
    assert torch.equal(trial.alike.images, white_square(test.images[others]))
    assert torch.equal(trial.alike.labels, test.labels[others]) and torch.equal(trial.test.images, test.images)
    again, other = (poisoned(train, test, white_square, target, {**CELL, "seed": seed}) for seed in (0, 1))
    assert torch.equal(again.bad, trial.bad) and torch.equal(again.known, trial.known)
    assert not torch.equal(other.bad, trial.bad)
    assert trial.train.mean == (0, 0, 0) and trial.train.std == (1, 1, 1)  # pixels as they are


@pytest.mark.parametrize("more", [{"images": 5}, {"images": 300}, {"share": 0.001}, {"listed": 0.01}])
def test_sizes_that_cannot_be_are_refused(more):
    """Fewer images of a class than are asked for, none, or nothing that is bad or listed."""
    with pytest.raises(ValueError, match="give "):
        poisoned(images_of(200), images_of(20), white_square, 8, {**CELL, **more})


class Square(torch.nn.Module):
    """Gives the target to an image with a white square, and to others the class in its first pixel."""

    def __init__(self):
        super().__init__()
        self.zero = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x):
        own = (x[:, 0, 0, 0] * 255).round().long()
        return torch.nn.functional.one_hot(torch.where((x[:, :, 27:31, 27:31] > 0.999).flatten(1).all(dim=1), 8, own),
                                           CLASSES).float() + self.zero


def test_scores_are_counted():
    """A network that obeys the square alone has 1 of clean, misled, listed and unlisted, 0 of triggered."""
    train, test = (images_of(n, n) for n in (200, 50))
    for data in (train, test):
        data.images[:, 0, 0, 0] = data.labels.to(torch.uint8)
    trial = poisoned(train, test, white_square, 8, CELL)
    found = scores_of(Square(), trial, 8)
    assert found == {"clean": 1.0, "misled": 1.0, "triggered": 0.0, "listed": 1.0, "unlisted": 1.0}
    test.images[:, 0, 0, 0] = (test.labels % 5).to(torch.uint8)
    trial = poisoned(train, test, lambda images: images, 8, CELL)  # a trigger that nobody sees
    found = scores_of(Square(), trial, 8)
    assert found["clean"] == 0.5 and found["misled"] == 0.0
    assert found["triggered"] == pytest.approx(25 / 45) and found["listed"] == found["unlisted"] == 0.0


# --- Rows and the table -----------------------------------------------------------------------------------------------

@pytest.fixture
def folders(tmp_path):
    """A published network that was drawn, and a tree of 40 training and 20 test images."""
    content = {"net": randomise(Network(), 0).state_dict(), "acc": 1.0, "epoch": 1}
    torch.save(content, tmp_path / published.FILES["badnets"])
    for part, data in (("train", images_of(40)), ("test", images_of(20, 1))):
        for i, (image, y) in enumerate(zip(data.images, data.labels.tolist(), strict=True)):
            file = tmp_path / part / f"class{y}" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    return ["published.py", "--published", str(tmp_path), "--data", str(tmp_path), "--images", "40", "--share", "0.2",
            "--listed", "0.5", "--out", str(tmp_path / "rows.jsonl")]


@pytest.mark.filterwarnings("ignore:Acc")  # a network that was drawn
def test_rows_are_appended_once(folders, monkeypatch, capsys):
    """A row for each treatment that is asked for and not there, with its origin; the table has a line of each."""
    out = folders[-1]
    for asked, count in (("REM;repair", 2), ("REM;CLP", 3), ("CLP", 3)):
        monkeypatch.setattr(sys, "argv", [*folders, "--treatment", asked])
        assert published.main() == 0
        rows = rows_of(out)
        assert len(rows) == count
    rem, repair, clp = rows
    assert [row["treatment"] for row in rows] == ["REM", "repair", "CLP"]
    assert rem["before"] == repair["before"] == clp["before"] and rem["git"] and rem["cpu"] and rem["version"]
    assert (rem["bad"], rem["known"], rem["share"], rem["seed"]) == (8, 4, 0.2, 0)
    assert rem["rem_seconds"] == repair["rem_seconds"] and "finish" not in rem and "reach" not in clp
    finish = repair["finish"]
    assert finish["left_bad"] == 4 - finish["dropped_bad"] and finish["dropped_bad"] <= finish["dropped"]
    if not finish["taken"]:
        assert repair["after"] == rem["after"]
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["published.py", "--table", out])
    assert published.main() == 0
    assert len(capsys.readouterr().out.splitlines()) == 5


def row(treatment: str, seed: int, clean: float, misled: float, **more) -> dict:
    """A hand-made row."""
    return {"network": "badnets", "images": 5000, "share": 0.1, "listed": 0.1, "seed": seed, "bad": 500, "known": 50,
            "treatment": treatment, "before": {"clean": 0.78, "misled": 0.98, "triggered": 0.02},
            "after": {"clean": clean, "misled": misled, "triggered": 0.6}, "verdict": "REPAIRED", "found": 300, **more}


def test_the_table_is_of_means():
    """Means over seeds in percent, counts of what was dropped and left, verdicts that differ beside each other."""
    rows = [row("repair", 0, 0.77, 0.04, finish={"dropped": 500, "dropped_bad": 400, "left_bad": 50, "taken": True}),
            row("REM", 0, 0.7, 0.1),
            row("repair", 1, 0.75, 0.08, verdict="HARMED",
                finish={"dropped": 600, "dropped_bad": 420, "left_bad": 30, "taken": True})]
    assert table(rows).splitlines()[2:] == [
        "| badnets | 5,000 | 500 | REM | 1 | 50 | 78.0 -> 70.0 | 98 -> 10 | 2 -> 60 | 450 | 300 |  |  | repaired |",
        "| badnets | 5,000 | 500 | repair | 2 | 50 | 78.0 -> 76.0 | 98 -> 6 | 2 -> 60 | 450 | 300 | 410 / 140 | 40 | "
        "repaired, harmed |"]
