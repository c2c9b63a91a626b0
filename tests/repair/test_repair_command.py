"""`run.py repair` from end to end (repair/command.py): what it writes, what it says, what it refuses.

Of outputs.py the list of suspects is in test_outputs.py, the page in test_page.py.
"""

import functools
import hashlib
import itertools
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import torchvision
from torch import nn

import run
from colours import IMAGENET, add_to_net, began, call, colours, report_of  # noqa: F401
from experiment.data import Data
from helpers import gen, small_net
from metrics import accuracy
from repair import checkpoints, command, inputs, network, outputs, pipeline
from repair.inputs import Folder
from repair.network import choose_settings
from repair.networks_by_name import build_network
from repair.outputs import before_and_after, beside_weights, share_of, table_of_changes
from shapes import draw_shapes, write_images

pytestmark = pytest.mark.filterwarnings("ignore:Acc")  # rounding decides whether a cap is reached


# --- End to end -------------------------------------------------------------------------------------------------------

def test_resnet18_end_to_end(tmp_path, capsys):
    """P1, P6, K1: torchvision's resnet18 from a training state: keys as stored, report, table."""
    data = Data(*draw_shapes(24, gen(0)), 3, (0.5,) * 3, (0.5,) * 3)
    paths = write_images(tmp_path / "train", data)
    write_images(tmp_path / "val", data)
    (tmp_path / "bad.txt").write_text("\n".join(path.name for path in paths[:4]))
    torch.manual_seed(0)
    last = torchvision.models.resnet18(num_classes=3).state_dict()
    stored = {f"module.{name}": t for name, t in last.items()}
    torch.save({"state_dict": stored, "epoch": 1}, tmp_path / "model.pt")
    world = {"--data": tmp_path, "--model": "resnet18", "--checkpoint": tmp_path / "model.pt",
             "--bad": tmp_path / "bad.txt", "--out": tmp_path / "new.pt", "--image-size": 32}
    assert call(world, "--epochs", 1, "--force", "--batch-size", 12, "--no-finish") in (0, 3)  # untrained
    told = capsys.readouterr().out
    assert "theta_o2 beside all convolutions (20 layers)" in told and "epoch   1/1" in told and "s left" in told
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


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_changes_no_weight(colours, suffix):
    """P1, P7, K8: a file's function may give a network wrapped, and weights may come and go as safetensors: they are
    bit for bit the same, under the names that the checkpoint has."""
    if suffix == ".safetensors":
        pytest.importorskip("safetensors", reason="the library safetensors is not installed")
    assert call(colours, "--epochs", 1) == 0
    plain, scores = checkpoints.read(colours["--out"]), report_of(colours)["scores"]
    path = add_to_net(colours, "def wrapped(): return nn.DataParallel(colours(12))\n")
    source = colours["--data"] / f"again{suffix}"
    checkpoints.write(source, checkpoints.read(colours["--checkpoint"]), nn.Identity(), {})
    world = {**colours, "--model": f"{path}:wrapped", "--checkpoint": source,
             "--out": colours["--out"].with_name(f"again{suffix}")}
    assert call(world, "--epochs", 1) == 0
    found = checkpoints.read(world["--out"])
    assert set(found) == set(plain) and all(torch.equal(found[name], t) for name, t in plain.items())
    assert report_of(world)["scores"] == scores


def test_a_network_of_grey_images(colours, capsys):
    """P2, P1: one whose first convolution takes one channel gets grey images; the stored shapes come back."""
    path = add_to_net(colours, "def grey(classes):\n    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), "
                               "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))\n")
    stored = grey_net(path).state_dict()
    torch.save(stored, colours["--checkpoint"])
    assert call({**colours, "--model": f"{path}:grey"}, "--mean", 0.5, "--std", 0.5, "--epochs", 1) in (0, 3)
    assert "the network takes one channel: images are read as grey ones" in capsys.readouterr().out
    report, found = report_of(colours), checkpoints.read(colours["--out"])
    assert report["reading"]["channels"] == 1 and report["reading"]["mean"] == [0.5]
    assert [(name, t.shape) for name, t in found.items()] == [(name, t.shape) for name, t in stored.items()]


def grey_net(path: str) -> nn.Module:
    """The network that a file's function `grey` makes."""
    return build_network(f"{path}:grey", 12, 32)[0]


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
    ({"--out": "x.pt", "--bad": ["none", "x.state"]}, (), "would replace the input"),
    ({"--out": "train/1/1-1.png"}, (), "would lie among the images"),
    ({"--out": "two/x.pt", "--bad": "two/suspects.csv"}, (), "would replace the input"),
    ({"--out": "two/x.pt"}, (), "has a column `bad`, which would be lost"),
    ({"--out": "y.html"}, (), "a name of another output; give a file that ends in .pt"),
    ({"--out": "page/other.pt"}, (), "other.pt exists, and no report of a repair lies beside it"),
    ({"--out": "page/x.pt"}, (), "x.html exists, and no report of a repair"),
    *(({"--out": f"page/{name}.pt"}, (), f"{name}.json exists, and no report") for name in ("list", "torn")),
    ({"--out": "train"}, (), "cannot write"),
    ({"--out": ""}, (), "--out is ''; give a file that ends in .pt"),
    ({"--out": "o/"}, (), "--out"),
    ({"--out": 250 * "a" + ".pt"}, (), "--out"),  # its report's name would be too long
    ({"--class-map": "model.pt"}, (), "it must be a text file"),
    ({"--data": "none"}, (), "no folder"),
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
    monkeypatch.setattr(inputs, "decode_image", lambda *args: pytest.fail("an image was decoded"))
    folder = colours["--data"]
    monkeypatch.chdir(folder)
    (folder / "LINK").symlink_to(folder / "model.pt")
    (folder / "two").mkdir()
    (folder / "two" / "suspects.csv").write_text("rank,filename,bad\n1,0-5.png,true\n")
    (folder / "page").mkdir()
    for name, content in (("x.html", ""), ("list.json", "[]"), ("torn.json", "{"), ("other.pt", "")):
        (folder / "page" / name).write_text(content)
    (folder / "x.state").write_text("0-5.png\n")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert call({**colours, **changed}, *more) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning")]
    assert len(lines) == 1 and words in lines[0]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("flag", ["--checkpoint", "--bad", "--class-map"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, functools.partial(os.symlink, "/dev/zero")],
                         ids=["pipe", "folder", "device"])
def test_only_regular_files_are_read(colours, capsys, flag, make):
    """P3: a named pipe, a device without an end and a folder are refused by name, and none is waited for."""
    path = colours["--data"] / "odd"
    make(path)
    assert call({**colours, flag: path}) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line and ("regular file" in line or "directory" in line or "a folder" in line)


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="this system has no /dev/fd")
def test_lists_from_a_shell_are_read_once(colours, capsys):
    """P3: --bad <(...), two of them too; the report has the digest of what was read."""
    paths = []
    for content in (b"0-5.png\n", b"1-5.png\n"):
        end, begin = os.pipe()
        os.write(begin, content)
        os.close(begin)
        paths.append(f"/dev/fd/{end}")
    try:
        assert call({**colours, "--bad": paths}, "--epochs", 0) == 0
        assert "2 known bad" in capsys.readouterr().out
        assert report_of(colours)["sha256"][paths[0]] == hashlib.sha256(b"0-5.png\n").hexdigest()
    finally:
        for path in paths:
            os.close(int(path.rpartition("/")[2]))


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


def test_a_rate_that_is_too_high_is_told_as_the_flag(colours, capsys):
    """P3: where training ends in numbers that are not finite, one line names --lr, and nothing is written."""
    assert call(colours, "--epochs", 2, "--lr", 1e30, "--batch-size", 8) == 2
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
    """P6: accuracies on D_f and the rest against given labels, on D_f against true ones, and changed predictions."""
    images = torch.zeros(6, 1, 2, 2, dtype=torch.uint8)
    data = Data(images, torch.tensor([0, 0, 0, 1, 1, 2]), 3, (0.0,), (1.0,))
    heldout = replace(data, images=images[:4], labels=torch.tensor([0, 1, 1, 1]))
    before, after = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([1, 0, 2, 1, 1, 1])
    found = SimpleNamespace(before=[before, before[:4]], after=[after, after[:4]])
    forget, truths = torch.tensor([0, 1]), torch.tensor([1, -1])
    folder = Folder(tmp_path, ["a", "b", "c"], [], data.labels, forget, truths, None, "", {})
    scores = before_and_after(found, data, heldout, folder)
    assert scores == {"known bad, their given labels": [1.0, 0.5], "known bad, their true labels": [0.0, 1.0],
                      "other training images, given labels": [0.75, 0.5], "held-out images": [0.5, 0.25],
                      "training images with another prediction": 2}
    lines = table_of_changes(scores).splitlines()
    assert lines[1].split()[-2:] == ["100.0", "50.0"] and lines[-1].split()[-1] == "2"
    assert share_of(torch.zeros(0)) is None
    rows = before_and_after(found, data, None, replace(folder, truths=None))
    assert "held-out images" not in rows and "known bad, their true labels" not in rows


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
def test_a_damaged_image_is_refused_before_any_work(colours, capsys, part, memory):
    """P1, P8: it ends the run with a line that names it, in memory or streamed, held out or not, and nothing is
    written."""
    shutil.copytree(colours["--data"] / "train", colours["--data"] / "val")
    (colours["--data"] / part / "3" / "3-0.png").write_bytes(b"\x89PNG")
    assert call(colours, "--epochs", 0, "--max-memory", memory, "--workers", 1) == 2
    told = capsys.readouterr()
    assert len(told.err.splitlines()) == 1 and "3-0.png cannot be decoded" in told.err and not began(told.out)
    assert not colours["--out"].exists()


def test_what_fails_after_the_repair_costs_no_weights(colours, capsys, monkeypatch):
    """P1, Q4, S34: where suspects or page fail, weights, report and verdict are there, and a line says why."""
    def fail(*args, **more):  # in place of what can only fail on a larger machine's data
        raise MemoryError("no room")

    def told_without(*names) -> str:
        with monkeypatch.context() as patched:
            for name in names:
                patched.setattr(outputs if name == "write_page" else pipeline, name, fail)
            assert call(colours, "--epochs", 0) == 0
        return capsys.readouterr().out

    folder, told = colours["--out"].parent, told_without("probe", "write_page")
    assert "\nREPAIRED: " in told
    assert all(f"no {what} (MemoryError: no room)\n" in told for what in ("list of suspects", "page to open"))
    assert {path.name for path in folder.iterdir()} == {"repaired.pt", "repaired.json"}
    assert "suspects.csv ranks the 70" in told_without()
    assert re.search("no room\\); \\S*suspects.csv is of an earlier repair", told_without("probe"))
    assert "There is no list of suspects." in colours["--out"].with_suffix(".html").read_text(encoding="utf-8")
    assert re.search("no room\\); \\S*repaired.html is of an earlier repair", told_without("write_page"))
    for broken in ("logits", "judge"):  # before the verdict
        with monkeypatch.context() as patched:
            patched.setattr(pipeline, broken, Mock(side_effect=ArithmeticError("logits are not finite")))
            assert call(colours, "--epochs", 0) == 2
        assert "has these weights" in capsys.readouterr().err and colours["--out"].is_file()


def test_inputs_that_go_away_cost_nothing(colours, monkeypatch):
    """P3: the report's digests are of what was read, so that lists and weights may change or go meanwhile."""
    digest, unlearn = hashlib.sha256(colours["--checkpoint"].read_bytes()).hexdigest(), pipeline.unlearn

    def gone(*args, **more):
        colours["--checkpoint"].unlink()
        colours["--bad"].unlink()
        return unlearn(*args, **more)

    monkeypatch.setattr(pipeline, "unlearn", gone)
    assert call(colours, "--epochs", 1) == 0
    assert report_of(colours)["sha256"][str(colours["--checkpoint"])] == digest


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
        streams = "the images take 0.000221 GB, and --max-memory is 0.0001: they are decoded again" in told
        assert streams == (room < 1)
    assert found[0] == found[1]
