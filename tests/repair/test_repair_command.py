"""`run.py repair` from end to end (repair/command.py, outputs.py): what it writes, what it says, what it refuses."""

import csv
import hashlib
import itertools
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn

import run
from colours import (IMAGENET, add_to_net, began, call, colours, report_of,  # noqa: F401
                     words)
from experiment.data import Data
from helpers import gen, small_net
from metrics import accuracy
from repair import account, checkpoints, command, images, network, pipeline
from repair.inputs import Folder, open_folder
from repair.mismatch import share_of
from repair.network import choose_settings
from repair.outputs import beside_weights
from shapes import draw_shapes, write_images

pytestmark = pytest.mark.filterwarnings("ignore:Acc")  # rounding decides whether a cap is reached


# --- End to end -------------------------------------------------------------------------------------------------------

def test_resnet18_end_to_end(tmp_path, capsys):
    """P1, P6, K1: torchvision's resnet18 from a training state on its owner's terms: with --ema the averaged weights,
    keys as stored, report, table."""
    data = Data(*draw_shapes(24, gen(0)), 3, (0.5,) * 3, (0.5,) * 3)
    paths = write_images(tmp_path / "train", data)
    write_images(tmp_path / "val", data)
    (tmp_path / "bad.txt").write_text("\n".join(path.name for path in paths[:4]))
    torch.manual_seed(0)
    last = torchvision.models.resnet18(num_classes=3).state_dict()
    stored = {f"module.{name}": t for name, t in last.items()}
    torch.save({"state_dict": last, "model_ema": stored, "epoch": 1}, tmp_path / "model.pt")
    world = {"--data": tmp_path, "--model": "resnet18", "--checkpoint": tmp_path / "model.pt",
             "--bad": tmp_path / "bad.txt", "--out": tmp_path / "new.pt", "--image-size": 32}
    assert call(world, "--epochs", 1, "--force", "--batch-size", 12, "--no-finish", "--ema") in (0, 3)  # untrained
    told = capsys.readouterr().out
    assert "theta_o2 beside all convolutions (20 layers)" in told and "epoch 1/1: " in told and "s left" in told
    found = torch.load(tmp_path / "new.pt", weights_only=True)
    assert list(found) == list(stored) and [t.shape for t in found.values()] == [t.shape for t in stored.values()]
    assert any(not torch.equal(found[key], t) for key, t in stored.items())
    net = nn.DataParallel(torchvision.models.resnet18(num_classes=3))
    net.load_state_dict(found)
    report = report_of(world)
    look = replace(data, mean=tuple(report["reading"]["mean"]), std=tuple(report["reading"]["std"]))
    assert report["scores"]["held-out images"][1] == pytest.approx(accuracy(net.module, look), abs=1e-4)
    assert report["settings"]["batch"] == 12 and report["images"] == 24
    for name in ("optimizer", "unlearn_lr", "unlearn_epochs", "gamma", "ratio"):  # those that ran
        assert f"{name} {report['settings'][name]} (" in told or name == "unlearn_epochs"
    assert report["settings"]["unlearn_epochs"] == 1 and report["classes"] == ["circle", "square", "triangle"]
    assert report["sha256"] == {str(path): hashlib.sha256(path.read_bytes()).hexdigest()
                                for path in (tmp_path / "model.pt", tmp_path / "bad.txt", tmp_path / "new.pt")}
    assert {"torch", "torchvision", "device", "git", "argv", "seconds", "cpu", "isa", "threads"} <= set(report)


def test_what_changes_no_weight(colours):
    """P1, P6, P7: a file's function may give a network wrapped, weights may come and go as safetensors, and --clean
    adds Healed to the report: the weights are bit for bit the same, under the names that the checkpoint has."""
    assert call(colours, "--epochs", 1) == 0
    plain, scores = checkpoints.read(colours["--out"]), report_of(colours)["scores"]
    path = add_to_net(colours, "def wrapped(): return nn.DataParallel(colours(12))\n")
    source, clean = colours["--data"] / "model.safetensors", colours["--data"] / "clean.csv"
    checkpoints.write(source, checkpoints.read(colours["--checkpoint"]), nn.Identity(), {})
    clean.write_text("path,label\n0-5.png,0\n2-5.png,2\n3-0.png,3\n")
    world = {**colours, "--model": f"{path}:wrapped", "--checkpoint": source, "--clean": clean,
             "--out": colours["--out"].with_suffix(".safetensors")}
    assert call(world, "--epochs", 1) == 0
    found = checkpoints.read_safetensors(world["--out"])
    assert all(torch.equal(found[name], t) for name, t in plain.items()) and list(found) == list(plain)
    healed = {"Healed: bad images, true labels": [1.0, 1.0]}  # the wrong ones were never learnt
    assert report_of(world)["scores"] == scores | healed


def test_help(capsys):
    """P1: --help tells the defaults that are chosen."""
    with pytest.raises(SystemExit):
        run.main(["repair", "--help"])
    chosen, text = choose_settings(small_net(0), 100, {})[0], " ".join(capsys.readouterr().out.split())
    assert (chosen.gamma, chosen.ratio, chosen.unlearn_epochs, chosen.seed) == (0.05, 0.25, 8, 0)
    assert "no repair (default: 8)" in text and "over the network's (default: 0.25)" in text


# --- Bad input --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("changed, more, words", [
    ({"--out": "LINK"}, (), "would replace the input"),
    ({"--out": "net.py"}, (), "would replace the input"),
    ({"--out": "order.txt"}, (), "would replace the input"),
    ({"--out": "true.csv", "--clean": "true.csv"}, (), "would replace the input"),
    ({"--out": "x.pt", "--bad": "x.json"}, (), "would replace the input"),
    ({"--out": "x.pt", "--bad": ["none", "x.state"]}, (), "would replace the input"),
    ({"--out": "train/1/1-1.png"}, (), "would lie among the images"),
    ({"--out": "elsewhere/x.pt"}, (), "would lie among the images"),  # where a link of train/ leads to
    ({"--out": "held/x.pt"}, (), "would lie among the images"),  # or one of val/
    ({"--out": "two/x.pt", "--bad": "two/suspects.csv"}, (), "give another folder with --out"),
    ({"--out": "x.json"}, (), "the report's name"),
    ({"--out": "x.state"}, (), "the state's name"),
    ({"--out": "suspects.csv"}, (), "the list's name"),
    ({"--out": "x.html"}, (), "the page's name"),
    ({"--out": "two/other.pt"}, (), "other.pt exists, and no report of a repair lies beside it"),
    ({"--out": "page/x.pt"}, (), "x.html is no page of a repair and would be replaced"),
    *(({"--out": f"page/{name}.pt"}, (), f"{name}.json is no report of a repair and would be replaced")
      for name in ("list", "other", "torn")),
    ({"--out": "train"}, (), "cannot write"),
    ({"--out": ""}, (), "--out is ''; give a file that ends in .pt"),
    ({"--out": "o/"}, (), "--out"),
    ({"--out": 250 * "a" + ".pt"}, (), "--out"),  # its report's name would be too long
    ({"--class-map": "model.pt"}, (), "it must be a text file"),
    ({"--data": "none"}, (), "no folder"),
    ({}, ("--checkpoint-every", -1), "--checkpoint-every is -1"),
    ({}, ("--workers", -1), "--workers is -1; give a number"),
    ({}, ("--lr", -1), "--lr is -1.0; it must be"),
    ({}, ("--batch-size", 1), "batch is 1"),
    ({}, ("--ratio", 1e300), "ratio is 1e+300; theta_o2 would take inf GB"),
    ({}, ("--device", "cuda:99"), "device"),
    ({}, ("--epochs", "2.5"), "invalid int value"),
    ({}, ("--what",), "unrecognized arguments"),
    *(({flag: None}, (), f"required: {flag}") for flag in ("--data", "--model", "--checkpoint", "--bad", "--out")),
])
def test_bad_input_is_one_line_before_any_image_is_decoded(colours, capsys, monkeypatch, changed, more, words):
    """P3: one line on stderr, exit code 2, nothing written, no work."""
    monkeypatch.setattr(images, "decode_image", lambda *args: pytest.fail("an image was decoded"))
    folder = colours["--data"]
    monkeypatch.chdir(folder)
    (folder / "LINK").symlink_to(folder / "model.pt")
    (folder / "true.csv").write_text("path,label\n0-5.png,0\n")
    (folder / "two").mkdir()
    (folder / "two" / "suspects.csv").write_text("0-5.png\n")
    (folder / "two" / "other.pt").write_bytes(b"")
    (folder / "page").mkdir()
    for name, content in (("x.html", ""), ("list.json", "[]"), ("other.json", '{"lr": 1}'), ("torn.json", "{")):
        (folder / "page" / name).write_text(content)
    (folder / "train" / "0").rename(folder / "elsewhere")
    (folder / "train" / "0").symlink_to(folder / "elsewhere")
    (folder / "held").mkdir()
    shutil.copy(folder / "elsewhere" / "0-0.png", folder / "held" / "new.png")
    (folder / "val").mkdir()
    (folder / "val" / "0").symlink_to(folder / "held")
    for name in ("x.json", "x.state"):
        (folder / name).write_text('["0-5.png"]')
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert call({**colours, **changed}, *more) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning")]
    assert len(lines) == 1 and words in lines[0]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_lists_may_come_one_by_one(colours, capsys):
    """B1: --bad twice is both lists together, as --bad with both is."""
    (colours["--data"] / "more.txt").write_text("2-5.png\n")
    assert call(colours, "--bad", colours["--data"] / "more.txt", "--epochs", 0) == 0
    assert "3 known bad" in capsys.readouterr().out
    assert report_of(colours)["arguments"]["bad"] == [str(colours["--data"] / name) for name in ("bad.txt", "more.txt")]


def test_layers_with_blanks_between(colours, capsys):
    """P3: blanks around the names of layers count for nothing."""
    assert call(colours, "--layers", " 1 , 1*", "--epochs", 0) == 0
    assert call(colours, "--layers", " 1 , none ", "--epochs", 0) == 2
    assert "no layer is called 'none'" in capsys.readouterr().err


def test_listed_images_that_cannot_be_decoded(colours, capsys):
    """P3: what was left out is said, and that none of the listed images is left; not that no image was listed."""
    for name in ("1/0-5.png", "2/1-5.png"):
        (colours["--data"] / "train" / name).write_bytes(b"\x89PNG")
    assert call(colours, "--epochs", 0, "--skip-bad-images") == 2
    told = capsys.readouterr()
    assert "2 images cannot be decoded and are left out" in told.out
    assert "none of the listed images can be decoded" in told.err


def test_a_rate_that_is_too_high_is_told_as_the_flag(colours, capsys):
    """P3: where training ends in numbers that are not finite, one line names --lr, and nothing is written."""
    assert call(colours, "--epochs", 2, "--lr", 1e30, "--batch-size", 8, "--checkpoint-every", 0) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith("(the rate is --lr)") and list(colours["--out"].parent.iterdir()) == []


@pytest.mark.parametrize("name, report", [
    ("a.pt", "a.json"), ("a.pth.tar", "a.pth.json"), ("b.safetensors", "b.json"), ("a.state", "a.json"),
    ("net_v1.2", "net_v1.2.json"), ("net_v1.3", "net_v1.3.json")])
def test_the_name_of_the_report(name, report):
    """P3: v1.2 and v1.3 are names, not endings, so that each has a report of its own."""
    assert beside_weights(Path("out") / name, ".json") == Path("out") / report


# --- The report -------------------------------------------------------------------------------------------------------

def test_the_report_counts(tmp_path):
    """P6: accuracies on D_f and the rest against given labels, Healed against true ones, and changed predictions."""
    images = torch.zeros(6, 1, 2, 2, dtype=torch.uint8)
    data = Data(images, torch.tensor([0, 0, 0, 1, 1, 2]), 3, (0.0,), (1.0,))
    heldout = replace(data, images=images[:4], labels=torch.tensor([0, 1, 1, 1]))
    before, after = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([1, 0, 2, 1, 1, 1])
    truth = torch.tensor([1, 0, 2, 1, -1, -1])  # the second is known bad for another reason than its label
    folder = Folder(tmp_path, ["a", "b", "c"], [], data.labels, torch.tensor([0, 1]), truth, "")
    scores = account.before_and_after([before, before[:4]], [after, after[:4]], data, heldout, folder)
    assert scores == {"known bad, their given labels": [1.0, 0.5],
                      "other training images, given labels": [0.75, 0.5],
                      "held-out images": [0.5, 0.25], "Healed: bad images, true labels": [0.3333, 1.0],
                      "training images with another prediction": 2}
    lines = account.table_of_changes(scores).splitlines()
    assert lines[1].split()[-2:] == ["100.0", "50.0"] and lines[-1].split()[-1] == "2"
    assert share_of(torch.zeros(0)) is None
    assert "held-out images" not in account.before_and_after([before, None], [after, None], data, None, folder)


def test_the_report_has_the_reach_that_was_used_and_the_time(colours, monkeypatch):
    """P6: where the removal was taken back by halves, not the one that was chosen first; the seconds of all of it."""
    ticks = itertools.count(100, step=7)  # a clock that is looked at when it begins and when it ends
    monkeypatch.setattr(command, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    monkeypatch.setattr(network, "TOO_FAR", -2.0)
    monkeypatch.setattr(network, "TOO_NEAR", 1.0)
    assert call(colours, "--epochs", 1) in (0, 3)
    report = report_of(colours)
    assert report["settings"]["reach"] == 0.02 / 2**network.NEARER and report["seconds"] == 7  # 0.02: without BatchNorm


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("memory", [1, 0])
def test_a_damaged_image_is_told_before_any_work(colours, capsys, part, memory):
    """P1, P8: it ends the run with a line that names it, in memory or streamed, held out or not, and nothing is
    written; with --skip-bad-images the run goes on, says what it left out, and counts indices as the folder does."""
    shutil.copytree(colours["--data"] / "train", colours["--data"] / "val")
    (colours["--data"] / part / "3" / "3-0.png").write_bytes(b"\x89PNG")
    more = ("--epochs", 0, "--max-memory", memory, "--workers", 1)
    assert call(colours, *more) == 2
    told = capsys.readouterr()
    assert len(told.err.splitlines()) == 1 and "3-0.png" in told.err and not began(told.out)
    assert ("try --skip-bad-images" if memory else "cannot be read") in told.err and not colours["--out"].exists()
    listing = [path.relative_to(colours["--data"]).as_posix()
               for path in open_folder(colours["--data"], colours["--bad"]).paths]
    assert call(colours, *more, "--skip-bad-images") == 0
    assert "1 images cannot be decoded and are left out" in capsys.readouterr().out
    report, left = report_of(colours), 71 if part == "train" else 72
    assert [Path(name).name for name in report["skipped"]] == ["3-0.png"] and report["images"] == left
    rows = list(csv.DictReader((colours["--out"].parent / "suspects.csv").read_text().splitlines()))
    assert len(rows) == left - 2 and all(listing[int(row["index"])] == row["filename"] for row in rows)


def test_what_fails_after_the_repair_costs_no_weights(colours, capsys, monkeypatch):
    """P1, Q4, S34: where suspects or page fail, weights, report and verdict are there, and a line says why."""
    def fail(*args, **more):  # in place of what can only fail on a larger machine's data
        raise MemoryError("no room")

    def told_without(*names) -> str:
        with monkeypatch.context() as patched:
            for name in names:
                patched.setattr(account if name == "write_page" else pipeline, name, fail)
            assert call(colours, "--epochs", 0) == 0
        return capsys.readouterr().out

    folder, told = colours["--out"].parent, told_without("probe", "write_page")
    assert "\nREPAIRED: " in told
    assert all(f"no {what} (MemoryError: no room)\n" in told for what in ("list of suspects", "page to open"))
    assert {path.name for path in folder.iterdir()} == {"repaired.pt", "repaired.json"}
    assert "suspects.csv ranks the 70" in told_without()
    assert re.search("no room\\); \\S*suspects.csv: of an earlier repair", told_without("probe"))
    assert "There is no list of suspects." in colours["--out"].with_suffix(".html").read_text(encoding="utf-8")
    assert re.search("no room\\); \\S*repaired.html is of an earlier repair", told_without("write_page"))


# --- Images that are not kept in memory -------------------------------------------------------------------------------

@pytest.mark.parametrize("workers, mean", [(0, IMAGENET), (1, ())])
def test_images_above_max_memory_are_streamed_with_the_same_result(colours, capsys, workers, mean):
    """P8: above --max-memory every pass decodes anew, the run says so; weights, report and suspects are the same."""
    shutil.copytree(colours["--data"] / "train", colours["--data"] / "val")
    out, found = colours["--out"], []
    for room in (1, 0.0001):
        assert call(colours, "--epochs", 1, "--max-memory", room, "--workers", workers, *mean) == 0
        found.append((out.read_bytes(), report_of(colours)["scores"], out.with_name("suspects.csv").read_bytes()))
        told = capsys.readouterr().out
        streams = "the images take 0.000221 GB, and --max-memory is 0.0001: they are decoded anew in every pass" in told
        assert streams == (room < 1)
    assert found[0] == found[1]
