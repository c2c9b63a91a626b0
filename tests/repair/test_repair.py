"""repair.py: the command end to end, traps told before any work, choices of layers and settings, the report."""

import csv
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from repair import checkpoints
from repair import mismatch as fitting
from repair import images
from repair import inputs
from repair import networks
from repair import outputs
from repair import sheets
import claims
from repair import command as repair
import run
import test_ranks
from experiment.data import Data, Streamed
from examples import repair as example_repair
from examples import trials
from examples.repair import draw_shapes, put_sticker, write_images
from helpers import assert_close, assert_same_state, gen, make_data, small_net
from expand import expand
from metrics import accuracy
from models import build
from rem import go_on
from experiment.console import Parser
from experiment.settings import Config

ROOT = Path(repair.__file__).resolve().parent
pytestmark = pytest.mark.filterwarnings(r"ignore:Acc\(D_f\) is")  # rounding decides whether a cap is reached
SMALL = ["--mean", "0.485", "0.456", "0.406", "--std", "0.229", "0.224", "0.225"]


def command(*argv) -> int:
    """run.py repair, in this process."""
    return run.main(["repair", *map(str, argv)])


# --- A world of flat colours whose network is known exactly -----------------------------------------------------------

COLOURS = torch.tensor([[r, g, b] for r in (40, 120, 200) for g in (60, 180) for b in (30, 230)])  # class k is colour k
NET = """
import torch
from torch import nn
COLOURS = torch.tensor({colours}) / 255
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
class Middle(nn.Module):
    def forward(self, x): return x[:, :, 20:24, 20:24]
def colours(classes, size=None):
    "Nearest colour, written as a convolution and a linear layer."
    net = nn.Sequential(Middle() if size else nn.Identity(), nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(3, classes))
    with torch.no_grad():
        net[1].weight.copy_(torch.diag(STD)[:, :, None, None])
        net[1].bias.copy_(MEAN)
        net[4].weight.copy_(2 * COLOURS)
        net[4].bias.copy_(-(COLOURS**2).sum(1))
    return net
def at_the_middle(classes): return colours(classes, 32)
"""


@pytest.fixture
def colours(tmp_path) -> dict:
    """Folders "0".."11" of flat images whose network has its classes in natural order; a wrong label on three."""
    (tmp_path / "net.py").write_text(NET.format(colours=COLOURS.tolist()))
    sys.path.insert(0, str(tmp_path))
    paths = []
    for k, colour in enumerate(COLOURS.tolist()):
        for i in range(6):
            where = (k + 1) % 12 if i == 5 and k < 3 else k  # three are in the wrong folder
            paths.append(tmp_path / "train" / str(where) / f"{k}-{i}.png")
            paths[-1].parent.mkdir(parents=True, exist_ok=True)
            shade = np.clip(np.array(colour) + i - 2, 0, 255).astype(np.uint8)
            Image.fromarray(np.broadcast_to(shade, (32, 32, 3)).copy()).save(paths[-1])
    (tmp_path / "bad.txt").write_text("0-5.png\n1-5.png\n")
    (tmp_path / "order.txt").write_text("\n".join(map(str, range(12))))
    torch.save(networks.build_network(f"{tmp_path / 'net.py'}:colours", 12, 32)[0].state_dict(), tmp_path / "model.pt")
    sys.path.remove(str(tmp_path))
    return {"--data": tmp_path, "--model": f"{tmp_path / 'net.py'}:colours", "--checkpoint": tmp_path / "model.pt",
            "--bad": tmp_path / "bad.txt", "--class-map": tmp_path / "order.txt", "--image-size": 32,
            "--out": tmp_path / "out" / "repaired.pt"}


def call(world: dict, *more) -> int:
    """The command in the world of colours."""
    return command(*(part for pair in world.items() if pair[1] is not None for part in pair), *more)


def test_what_fits_is_repaired(colours, capsys):
    """P2: the right reading passes without a word; the accuracies told first are exact."""
    assert call(colours, "--epochs", 0) == 0
    told = capsys.readouterr()
    assert "accuracy on the labels as given: 0.986 without the known bad, 0.000 on these" in told.out  # 69 of 70
    assert told.err == "warning: the network has not learnt the known bad labels, so there is little to repair\n"
    assert "2 lines, 2 matched" in told.out


TRAPS = {
    "order": ({"--class-map": None}, (), "98.6% with timm's order of classes (--class-map with 0, 1, 2, 3, ...)"),
    "mean": ({}, ("--mean", 0, 0, 0, "--std", 1, 1, 1), "98.6% with --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225"),
    "size": ({"--model": "at_the_middle", "--image-size": 64}, (), "98.6% with --image-size 32 --crop-pct 1"),
    "bgr": ({}, (), "98.6% with BGR images"),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_traps_are_told_before_any_work(colours, capsys, trap, monkeypatch):
    """P2: another class order, mean and std, image size or colour order stops the run, which says what fits."""
    changed, more, words = TRAPS[trap]
    changed = {**changed, **({"--model": f"{colours['--data'] / 'net.py'}:at_the_middle"} if trap == "size" else {})}
    for path in (colours["--data"] / "train").rglob("*.png"):
        image = np.asarray(Image.open(path))
        if trap == "bgr":
            image = image[:, :, ::-1]
        if trap == "size":  # the colour is in the middle alone
            image = np.pad(image[20:24, 20:24], ((20, 8), (20, 8), (0, 0)))
        Image.fromarray(np.ascontiguousarray(image)).save(path)
    monkeypatch.setattr(repair, "start", lambda *args, **kwargs: pytest.fail("work began"))
    assert call({**colours, **changed}, *more) == 2
    told = capsys.readouterr()
    assert "accuracy on the labels as given: 0." in told.out
    assert told.err.count("run.py: the network gives") == 1 and words in told.err and "--force" in told.err
    assert not colours["--out"].exists()


def test_what_fits_nothing_stops_and_can_be_forced(colours, capsys):
    """P2: images of something else stop the run too; --force goes on."""
    for path in (colours["--data"] / "train").rglob("*.png"):
        Image.new("RGB", (32, 32)).save(path)
    assert call(colours) == 2
    assert "it was trained on other images" in capsys.readouterr().err
    assert call(colours, "--force", "--epochs", 0) == 0


def test_natural_order():
    """P2: timm's order: numbers by value, letters without case."""
    assert sorted(["10", "2", "b10", "B9", "ant", "Cat"], key=fitting.natural) == ["2", "10", "ant", "B9", "b10", "Cat"]


@pytest.mark.parametrize("known, best, refused", [(0.92, 1.0, False), (0.7, 0.75, False), (0.7, 0.85, True),
                                                  (0.55, 0.6, False), (0.45, 0.1, True)])
def test_when_a_network_is_refused(monkeypatch, capsys, known, best, refused):
    """P2: above nine of ten labels nothing is asked; below, another reading must be better by a tenth, and half of the
    labels must be known anyhow; --force goes on."""
    labels, before = torch.zeros(102, dtype=torch.int64), torch.zeros(102, dtype=torch.int64)
    before[2 : 102 - round(100 * known)] = 1
    data = Data(torch.zeros(102, 1, 2, 2, dtype=torch.uint8), labels, 2, (0.5,), (0.5,))
    folder = inputs.Folder(Path(), ["a", "b"], [Path()] * 102, labels, torch.tensor([0, 1]), None, "")
    monkeypatch.setattr(fitting, "readings", lambda *args: [(best, "another size"), (0.0, "BGR")])
    for force in (False, True):
        if refused and not force:
            with pytest.raises(ValueError, match=r"--force" if best < known else f"{best:.1%} with another size"):
                fitting.look_first(None, data, before, folder, images.Reading(2), force)
        else:
            fitting.look_first(None, data, before, folder, images.Reading(2), force)
        assert f"given: {known:.3f} without the known bad, 1.000 on these" in capsys.readouterr().out


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed, more, words", [
    ({"--checkpoint": "MODEL", "--model": "model.pt"}, (), "swapped"),
    ({"--bad": "MODEL"}, (), "cannot read"),
    ({"--out": "MODEL"}, (), "would replace the input"),
    ({"--out": "LINK"}, (), "would replace the input"),
    ({"--out": "net.py"}, (), "would replace the input"),
    ({"--out": "order.txt"}, (), "would replace the input"),
    ({"--out": "true.csv", "--clean": "true.csv"}, (), "would replace the input"),
    ({"--out": "train/0/0-1.png"}, (), "would lie among the images"),
    ({"--out": "two/x.pt", "--bad": "two/suspects.csv"}, (), "give another folder with --out"),
    ({"--bad": "many.npz"}, (), "it must be a text file"),
    ({"--bad": "many.npy"}, (), "give a vector of indices"),
    ({"--bad": "torn.npy"}, (), "cannot read the list"),
    ({"--model": "vit_b_16", "--image-size": 33}, (), "vit_b_16 cannot be built at 33 pixels, --image-size"),
    ({"--model": "resnet18:2"}, (), "unknown --model 'resnet18:2'"),
    *(({"--model": f"resnet9:{widths}"}, (), "such as resnet9:0.5") for widths in ("half", "1e-1", ".", "1.2.3", "-1")),
    ({}, ("--crop-pct", 0), "--crop-pct 0.0"),
    ({"--class-map": "MODEL"}, (), "it must be a text file"),
    ({"--out": "x.json"}, (), "the report's name"),
    ({"--out": "x.state"}, (), "the state's name"),
    ({"--out": "suspects.csv"}, (), "the list's name"),
    ({"--out": "suspects.png"}, (), "the sheet's name"),
    ({}, ("--checkpoint-every", -1), "--checkpoint-every is -1"),
    ({}, ("--max-memory", -1), "--max-memory is -1"),
    ({"--out": "FOLDER"}, (), "cannot write"),
    ({"--out": ""}, (), "--out is ''; give a file that ends in .pt"),
    ({}, ("--workers", -1), "--workers is -1; give a number"),
    ({}, ("--lr", -1), "--lr is -1.0; it must be"),
    ({}, ("--epochs", -1), "--epochs is -1; it must be"),
    ({}, ("--layers", ""), "no layer is called ''"),
    ({"--out": "sheet/x.pt"}, (), "suspects.png is not from a repair, or its suspects.csv was moved"),
    ({"--data": "none"}, (), "no folder"),
    ({}, ("--batch-size", 1), "batch is 1"),
    ({}, ("--ratio", -1), "ratio is -1"),
    ({}, ("--layers", "9,1"), "no layer is called '9'"),
    ({}, ("--device", "cuda:99"), "device"),
    ({}, ("--epochs", "2.5"), "invalid int value"),
    ({}, ("--what",), "unrecognized arguments"),
])
def test_bad_input_is_one_line_before_any_work(colours, capsys, monkeypatch, changed, more, words):
    """P3: one line on stderr, exit code 2, nothing written, no training."""
    folder = colours["--data"]
    (folder / "LINK").symlink_to(folder / "model.pt")
    places = {"MODEL": folder / "model.pt", "LINK": folder / "LINK", "FOLDER": folder / "train",
              "none": folder / "none",
              **{name: folder / name for name in (
                 "order.txt", "true.csv", "x.json", "x.state", "suspects.csv", "suspects.png", "net.py", "torn.npy",
                 "train/0/0-1.png", "two/x.pt", "sheet/x.pt", "two/suspects.csv", "many.npz", "many.npy")}}
    monkeypatch.setattr(repair, "start", lambda *args, **kwargs: pytest.fail("work began"))
    before = (folder / "model.pt").read_bytes()
    (folder / "true.csv").write_text("path,label\n0-5.png,0\n")
    for name in ("two", "sheet"):
        (folder / name).mkdir()
    (folder / "sheet" / "suspects.png").touch()
    (folder / "two" / "suspects.csv").write_text("0-5.png\n")
    np.savez(folder / "many.npz", a=[1], b=[2])
    (folder / "many.npz").rename(folder / "many.npy")
    np.savez(folder / "many.npz", a=[1], b=[2])
    (folder / "torn.npy").write_bytes(b"PK\x03\x04" + bytes(range(200)))
    try:
        code = call({**colours, **{key: places.get(value, value) for key, value in changed.items()}}, *more)
    except SystemExit as leave:
        code = leave.code
    told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning")]
    assert code == 2 and len(told) == 1 and words in told[0]
    assert (folder / "model.pt").read_bytes() == before and not colours["--out"].exists()


ODD = """
class Odd(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change = change
    def forward(self, x): return self.change(x)
def odd(change): return nn.Sequential(*colours(12), Odd(change))
def wide(): return odd(lambda z: torch.cat([z, z[:, :1]], 1))
def narrow(): return odd(lambda z: z[:, 1:])
def tuples(): return odd(lambda z: (z, z))
def dicts(): return odd(lambda z: {"logits": z})
def maps(): return odd(lambda z: z[:, :, None, None])
def sized(): return odd(lambda z: z.no_such_thing)
def grey():
    net = colours(12)
    net.register_forward_pre_hook(lambda module, args: (nn.functional.conv2d(args[0], torch.ones(1, 1, 1, 1)),))
    return net
def hungry(): return odd(lambda z: exec("raise torch.OutOfMemoryError('all of it is used')"))
def strict():
    def check(module, args):
        assert args[0].shape[-1] == 64, "images must be 64 pixels wide"
    net = colours(12)
    net.register_forward_pre_hook(check)
    return net
"""


@pytest.mark.parametrize("name, words", [
    ("wide", r"model.pt was trained on 13 classes \(outputs of \S*net.py:wide\), the data has 12; .* --class-map"),
    ("narrow", r"model.pt was trained on 11 classes \(outputs of \S*net.py:narrow\), the data has 12; .* --class-map"),
    ("tuples", r"net.py:tuples gives a tuple for 2 images, not logits \(2, 12\)"),
    ("dicts", r"net.py:dicts gives a dict for 2 images, not logits \(2, 12\)"),
    ("maps", r"net.py:maps gives a Tensor of shape \(2, 12, 1, 1\) for 2 images, not logits"),
    ("sized", r"net.py:sized does not run on images of 3x32x32 \(AttributeError: .*no_such_thing"),
    ("strict", r"net.py:strict does not run on images of 3x32x32 \(AssertionError: images must be 64 .* --image-size"),
    ("grey", r"expected input.* to have 1 channels.*a network of grey images: self.net\(x.mean\(1, keepdim=True\)\)"),
    ("hungry", "^run.py: all of it is used$"),
    ("colours", "model.pt gives logits that are not finite on these images; check the file, --mean and --std$"),
])
def test_a_network_that_gives_no_logits_is_told_before_any_work(colours, capsys, monkeypatch, name, words):
    """P3: outputs of another number or kind, a forward pass that raises, logits that overflow: one line."""
    path = colours["--data"] / "net.py"
    path.write_text(path.read_text() + ODD)
    if name == "colours":  # finite weights, infinite logits
        stored = torch.load(colours["--checkpoint"], weights_only=True)
        torch.save({**stored, "4.weight": stored["4.weight"] * 1.5e38}, colours["--checkpoint"])
    monkeypatch.setattr(repair, "start", lambda *args, **kwargs: pytest.fail("work began"))
    assert call({**colours, "--model": f"{path}:{name}"}, "--force") == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and re.search(words, told[0]) and "rate" not in told[0]
    assert not colours["--out"].exists()


def test_another_reading_may_overflow(colours):
    """P2: where logits are finite as given, those of another reading need not be; it fits nothing then."""
    data, folder = make_data(0, channels=3, classes=2), inputs.Folder(Path(), ["a", "b"], [], None, None, None, "")
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    nn.init.constant_(net[2].weight, 3e38)
    found = dict((words, share) for share, words in fitting.readings(net, data, [], folder.classes, images.Reading(8)))
    assert found["--mean 0 0 0 --std 1 1 1"] == 0.0


@pytest.mark.parametrize("content", ["rank,filename,Bad\n1,0-0.png,true\n", "rank;filename; BAD\n1;0-0.png;true\n",
                                     "rank\tfilename\tbad\n1\t0-0.png\ttrue\n", "OURS,wrong\n1,,,,,,,,x\n",
                                     "OURS\n1,,,,,,,,true\n", b"rank,filename,b\xe4d\n",
                                     "rank,filename,bad\n".encode("utf-16")],
                         ids=["Bad", "semicolons", "tabs", "wrong", "unnamed", "latin", "utf-16"])
def test_answers_are_never_written_over(colours, capsys, content):
    """S15: a suspects.csv with typed answers stays, whatever the case, delimiter or encoding; one without does not."""
    listed = colours["--out"].with_name("suspects.csv")
    listed.parent.mkdir()
    ours = ",".join(sheets.COLUMNS)
    content = content if isinstance(content, bytes) else content.replace("OURS", ours).encode()
    listed.write_bytes(content)
    assert call(colours, "--epochs", 0) == 2
    assert "suspects.csv has a column `bad`, which would be lost, or another" in capsys.readouterr().err
    assert listed.read_bytes() == content and not colours["--out"].exists()
    listed.write_text(ours.replace(",", ";") + "\n" + 7 * ";" + "\n")  # a spreadsheet's, without an answer
    assert not sheets.answered(listed)


# --- End to end -------------------------------------------------------------------------------------------------------


def test_resnet18_end_to_end(tmp_path, capsys):
    """P1, P6: torchvision's resnet18 from a training state on its owner's terms: keys as stored, report, table."""
    images, labels = draw_shapes(24, gen(0))
    data = Data(images, labels, 3, (0.5,) * 3, (0.5,) * 3)
    paths = write_images(tmp_path / "train", data)
    write_images(tmp_path / "val", data)
    (tmp_path / "bad.txt").write_text("\n".join(path.name for path in paths[:4]))
    torch.manual_seed(0)
    stored = {f"module.{name}": t for name, t in torchvision.models.resnet18(num_classes=3).state_dict().items()}
    torch.save({"state_dict": stored, "epoch": 1}, tmp_path / "model.pt")
    code = command("--data", tmp_path, "--model", "resnet18", "--checkpoint", tmp_path / "model.pt",
                   "--bad", tmp_path / "bad.txt", "--out", tmp_path / "new.pt", "--image-size", 32, "--epochs", 1,
                   "--force", "--batch-size", 12)
    told = capsys.readouterr().out
    assert code == 0
    assert "theta_o2 beside all convolutions (20 layers)" in told and "epoch 1/1: " in told and "s left" in told
    found = torch.load(tmp_path / "new.pt", weights_only=True)
    assert list(found) == list(stored) and [t.shape for t in found.values()] == [t.shape for t in stored.values()]
    assert any(not torch.equal(found[key], t) for key, t in stored.items())
    net = nn.DataParallel(torchvision.models.resnet18(num_classes=3))
    net.load_state_dict(found)
    report = json.loads((tmp_path / "new.json").read_text())
    look = replace(data, mean=tuple(report["reading"]["mean"]), std=tuple(report["reading"]["std"]))
    assert report["scores"]["held-out images"][1] == pytest.approx(accuracy(net.module, look), abs=1e-4)
    assert report["settings"]["batch"] == 12 and report["images"] == 24
    assert report["classes"] == ["circle", "square", "triangle"]
    assert report["sha256"] == {str(path): hashlib.sha256(path.read_bytes()).hexdigest()
                                for path in (tmp_path / "model.pt", tmp_path / "bad.txt", tmp_path / "new.pt")}
    assert {"torch", "torchvision", "device", "git", "argv", "seconds"} <= set(report)


VIT = """
from torchvision.models import VisionTransformer
def small(num_classes): return VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=num_classes)
"""


def test_a_vit_of_a_file_end_to_end(tmp_path, capsys):
    """P1: a transformer from FILE.py:FUNCTION, safetensors in and out, by its inner layers."""
    images, labels = draw_shapes(24, gen(0))
    paths = write_images(tmp_path / "train", Data(images, labels, 3, (0.5,) * 3, (0.5,) * 3))
    (tmp_path / "bad.json").write_text(json.dumps([str(path) for path in paths[:4]]))
    (tmp_path / "net.py").write_text(VIT)
    model, _ = networks.build_network(f"{tmp_path / 'net.py'}:small", 3, 32)
    stored = model.state_dict()
    checkpoints.write(tmp_path / "model.safetensors", stored, model, {})
    code = command("--data", tmp_path, "--model", f"{tmp_path / 'net.py'}:small", "--bad", tmp_path / "bad.json",
                   "--checkpoint", tmp_path / "model.safetensors", "--out", tmp_path / "new.safetensors",
                   "--image-size", 32, "--epochs", 1, "--force")
    told = capsys.readouterr().out
    assert code == 0 and "theta_o2 beside the inner layers *mlp.0" in told
    assert "optimizer adam (the network has no BatchNorm" in told
    found = checkpoints.read(tmp_path / "new.safetensors")
    assert list(found) == list(stored) and any(not torch.equal(found[key], t) for key, t in stored.items())


@pytest.mark.outcome("sticker")
def test_a_sticker_no_longer_decides():
    """P1, P4: images with a sticker are healed by the chosen defaults from 40 % of the bad ones; clean ones stay."""
    assert claims.mean("sticker", "healed more") >= 0.5  # 0.82, SD 0.06: k = 10
    assert claims.mean("sticker", "clean lost") <= 0.08  # 0.01, SD 0.02: k = 6


# --- Choices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, batch", [(40, 16), (600, 32), (1300, 64), (9000, 512), (10**6, 512)])
def test_batch_from_the_number_of_images(n, batch):
    """P4: about 20 steps per epoch, at most the paper's batch; what is given stays, with its reason left out."""
    config, reasons = repair.choose_settings(small_net(0), n, {})
    assert config.batch == batch and config.optimizer == "sgd"
    assert any(f"batch {batch} (" in line and str(n) in line for line in reasons)
    config, reasons = repair.choose_settings(small_net(0, norm=False), n, {"batch": 7, "seed": 3})
    assert (config.batch, config.seed, config.optimizer) == (7, 3, "adam")
    assert not any("batch 7" in line for line in reasons)
    for norm, optimizer, rate in ((True, "adam", 1e-4), (False, "sgd", 0.004)):  # the rate is the optimiser's
        config, reasons = repair.choose_settings(small_net(0, norm=norm), n, {"optimizer": optimizer})
        assert (config.optimizer, config.unlearn_lr) == (optimizer, rate)
    config, _ = repair.choose_settings(small_net(0), n, {"optimizer": "sgd"}, sure=True)
    assert (config.optimizer, config.unlearn_lr) == ("sgd", 0.004)


def test_a_network_too_sure_gets_adam():
    """P4: where the known bad images have next to no gradient the optimiser is Adam, with the reason; else SGD."""
    data, net, forget = make_data(0, n=12, classes=4), small_net(0), torch.tensor([1, 5, 7])
    assert not repair.too_sure(net, data, forget)
    head = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        head.weight.zero_()
        head.bias = nn.Parameter(torch.tensor([30.0, 0.0, 0.0, 0.0]))
    data.labels[forget[:2]], data.labels[forget[2:]] = 0, 1
    assert not repair.too_sure(net, data, forget)  # one of three has a gradient
    data.labels[forget] = 0
    for ce, sure in ((5e-7, True), (2e-6, False), (1e-12, True)):  # a mean of 1e-6 decides; CE is next to 3 exp(-z)
        with torch.no_grad():
            head.bias[0] = math.log(3 / ce)
        assert repair.too_sure(net, data, forget) is sure
    assert net.training
    config, reasons = repair.choose_settings(net, len(data), {}, sure=True)
    assert (config.optimizer, config.unlearn_lr) == ("adam", 1e-4) and any("so sure" in line for line in reasons)
    told = []
    repair.repair(net, data, forget, unlearn_epochs=1, gamma=1.0, say=told.append)
    assert any(line.startswith("optimizer adam") for line in told)


def convnext():
    setting = torchvision.models.convnext.CNBlockConfig
    return torchvision.models.ConvNeXt([setting(8, 16, 1), setting(16, None, 1)], num_classes=3)


def resnext():
    return torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], 3, groups=2, width_per_group=4)


NETWORKS = {
    "convnext": (convnext, "inner layers *block.3"),
    "vit": (lambda: torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=3), "inner layers *mlp.0"),
    "densenet": (lambda: torchvision.models.DenseNet(4, (2, 2), 8, num_classes=3), "inner layers *denselayer*.conv1"),
    "regnet": (lambda: torchvision.models.regnet_y_400mf(num_classes=3), "all convolutions but grouped ones"),
    "squeezenet": (lambda: torchvision.models.squeezenet1_1(num_classes=3), "inner layers *squeeze"),
    "shufflenet": (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=3), "inner layers *branch2.0"),
    "resnext": (resnext, "all convolutions but grouped ones"),
    "resnet9": (lambda: build("resnet9", 0.1, classes=3), "all convolutions"),
    "own": (lambda: build("vit", 0.02, classes=3, dim=16, depth=1, heads=2, head_dim=8), "layers of its own choice"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_are_chosen_where_the_default_is_refused(name):
    """P5: a choice that the self-check accepts, printed."""
    make_net, words = NETWORKS[name]
    told = []
    expanded = repair.expand_any(make_net(), torch.zeros(2, 3, 32, 32), Config(ratio=0.5), None, told.append)
    assert expanded.width > 0 and len(told) == 1 and words in told[0]


def test_layers_that_are_named_overrule():
    """P5: patterns name the layers; none that the network has is an error that lists them."""
    net = convnext()
    expanded = repair.expand_any(net, torch.zeros(2, 3, 32, 32), Config(ratio=0.5), ["features.1.*.block.3"], None)
    assert {name for name, m in expanded.layers().items() if m.extra_out} == {"features.1.0.block.3"}
    with pytest.raises(ValueError, match="no layer is called 'nothing'; the network has features.0.0"):
        repair.expand_any(net, torch.zeros(2, 3, 32, 32), Config(ratio=0.5), ["*.block.3", "nothing"], None)


def test_a_network_without_any_choice_is_refused():
    """P5: the refusal is the first one, and says how many choices were tried and what to do."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4 * 900, 3))
    example, names = torch.zeros(2, 3, 32, 32), ["0", "3"]
    with pytest.raises(TypeError) as first:
        expand(net, example, 0.5)
    more = len(list(repair.layer_choices(net, names, example))) - 1
    with pytest.raises(TypeError, match=f"^{re.escape(str(first.value))}; {more} other choices .* too: try --layers$"):
        repair.expand_any(net, example, Config(ratio=0.5), None, None)


def test_wrapped_networks_and_inputs_stay(capsys):
    """P7: DataParallel and compiled networks are unwrapped; network, data and modes stay; nothing is printed."""
    data, net = make_data(0, n=24, classes=4), small_net(0).eval()
    forget, before = torch.tensor([1, 5]), {name: t.clone() for name, t in net.state_dict().items()}
    labels = data.labels.clone()
    plain = repair.repair(net, data, forget, unlearn_epochs=1)
    for wrapped in (nn.DataParallel(net), nn.DataParallel(torch.compile(net, backend="eager"))):
        other = repair.repair(wrapped, data, forget, unlearn_epochs=1)
        pairs = zip(plain.state_dict().values(), other.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert all(torch.equal(net.state_dict()[name], t) for name, t in before.items())
    assert torch.equal(data.labels, labels)
    assert list(plain.state_dict()) == list(before) and not any(m.training for m in plain.modules())
    assert capsys.readouterr().out == ""


def test_a_wrapped_network_of_a_file(colours, capsys):
    """P7: a file's function may give it wrapped; the weights are written under the names that the checkpoint has."""
    path = colours["--data"] / "net.py"
    path.write_text(path.read_text() + "def wrapped(): return nn.DataParallel(colours(12))\n")
    assert call(colours, "--epochs", 1) == 0
    plain = checkpoints.read(colours["--out"])
    assert call({**colours, "--model": f"{path}:wrapped"}, "--epochs", 1) == 0
    found = checkpoints.read(colours["--out"])
    assert all(torch.equal(found[name], t) for name, t in plain.items()) and list(found) == list(plain)


def test_streamed_float_images_are_repaired():
    """P7, U1: samples that the user's transforms have normalised are repaired as uint8 ones are."""
    data, net, forget = make_data(0, n=24, classes=4), small_net(0), torch.tensor([1, 5])
    whole = next(data.batches(size=24))[1]
    floats = Streamed([(x.clone(), int(y)) for x, y in zip(whole, data.labels)], 4)
    pairs = Streamed([(image, int(y)) for image, y in zip(data.images, data.labels)], 4, data.mean, data.std)
    found, wanted = (repair.repair(net, source, forget, unlearn_epochs=2, gamma=1.0) for source in (floats, pairs))
    assert_same_state(found, wanted)


def test_progress_says_what_each_step_did():
    """P1: a line per epoch with the updates of step 2 and the time left, with or without a watched share."""
    data, told = make_data(0, n=24, classes=4), []
    for stop in ("max", "repaired"):
        repair.repair(small_net(0), data, torch.tensor([1, 5]), unlearn_epochs=2, stop=stop, say=told.append)
    lines = [line for line in told if line.startswith("epoch ")]
    assert lines[0].startswith("epoch 1/2: ") and lines[1].startswith("epoch 2/2: ") and len(lines) >= 3
    assert all("updates of step 2, Acc(D_f)" in line and "s left" in line for line in lines)
    assert "watched) nan" in lines[0] and "nan" not in lines[2]


def test_running_statistics_are_those_of_the_repaired_weights():
    """P7: BatchNorm's statistics are computed anew, so that they are those of the weights that are returned."""
    data, net = make_data(0, n=32, classes=4), small_net(0)
    repaired = repair.repair(net, data, torch.tensor([1, 5]), unlearn_epochs=1, batch=16)  # two batches of one size
    x = (data.images / 255 - data.mean[0]) / data.std[0]
    out = repaired.conv1(x)
    assert torch.allclose(repaired.norm1.running_mean, out.mean(dim=(0, 2, 3)), atol=1e-5)


class Viewed(nn.Module):
    """A classic: maps are flattened by x.view, which takes contiguous ones alone."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4 * 64, 4)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        return self.head(x.view(x.size(0), -1))


def test_networks_that_flatten_by_view():
    """P7: a network that no channels_last batch fits is given contiguous ones, in memory and streamed, and repaired;
    others keep the faster format."""
    torch.manual_seed(0)
    data, net, forget = make_data(0, n=24, classes=4), Viewed(), torch.tensor([1, 5])
    pairs = [(image, int(label)) for image, label in zip(data.images, data.labels)]
    streamed = Streamed(pairs, 4, data.mean, data.std)
    for source in (data, streamed):
        assert fitting.memory_format_of(net, source) == torch.contiguous_format
        assert fitting.memory_format_of(small_net(0), source) == torch.channels_last
        found = repair.repair(net, source, forget, unlearn_epochs=1, gamma=1.0)
        assert list(found.state_dict()) == list(net.state_dict())
        assert not torch.equal(found.head.weight, net.head.weight)
    assert data.memory_format == torch.channels_last
    assert replace(data, memory_format=torch.contiguous_format).some(torch.arange(3)).memory_format != data.memory_format


def test_settings_that_a_repair_does_not_read_are_refused():
    """P3: the names of training's settings are not taken for REM's and passed over in silence."""
    data, net, forget = make_data(0, n=24, classes=4), small_net(0), torch.tensor([1, 5])
    for name, value, hint in (("epochs", 1, "unlearn_epochs"), ("lr", 1e-9, "unlearn_lr"), ("alpha", 1.0, "batch, ")):
        with pytest.raises(ValueError, match=f"a repair reads no {name}; give {hint}"):
            repair.repair(net, data, forget, **{name: value})
    with pytest.raises(TypeError, match="steps"):
        repair.repair(net, data, forget, steps=3)
    assert repair.choose_settings(net, 24, {"forget_norm": "batch", "stop": "max"})[0].forget_norm == "batch"


def test_a_state_that_cannot_be_written_costs_no_repair(tmp_path, monkeypatch):
    """P9: a full disk is told, and the repair ends as it would have; every=0 keeps no state."""
    data, net, forget = make_data(0, n=24, classes=4), small_net(0), torch.tensor([1, 5])
    whole = repair.repair(net, data, forget, unlearn_epochs=1)
    assert_same_state(repair.repair(net, data, forget, unlearn_epochs=1, keep=tmp_path / "s", every=0), whole)
    assert not list(tmp_path.iterdir())

    def full(*args, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(repair, "save_state", full)
    told = []
    found = repair.repair(net, data, forget, unlearn_epochs=1, keep=tmp_path / "s", say=told.append)
    assert_same_state(found, whole)
    assert any(line.startswith("the state of epoch 1 could not be written") and "No space" in line for line in told)


def test_what_fails_after_the_repair_costs_no_weights(colours, capsys, monkeypatch):
    """P1: where the suspects fail the weights and the report are there, and a line says why; features that would fill
    the memory are left out of the list alone."""
    def fail(*args):
        raise MemoryError("no room for features")

    with monkeypatch.context() as patched:
        patched.setattr(repair, "probe", fail)
        assert call(colours, "--epochs", 0) == 0
    assert "no list of suspects (MemoryError: no room for features)" in capsys.readouterr().out
    folder = colours["--out"].parent
    assert {path.name for path in folder.iterdir()} == {"repaired.pt", "repaired.json"}
    with monkeypatch.context() as patched:
        patched.setattr(sheets, "draw_sheet", fail)
        assert call(colours, "--epochs", 0) == 0
    told = capsys.readouterr().out
    assert "suspects.csv ranks the 70" in told and "no picture of them (MemoryError: no room for features)" in told
    with monkeypatch.context() as patched:
        patched.setattr(repair, "probe", fail)
        assert call(colours, "--epochs", 0) == 0
    assert re.search("features\\); \\S*suspects.csv: of an earlier repair", capsys.readouterr().out)
    room = repair.room_for_images
    monkeypatch.setattr(repair, "room_for_images", lambda device, *given: room(device, *given) if given else 0)
    assert call(colours, "--epochs", 0) == 0
    header, first, *_ = (folder / "suspects.csv").read_text().splitlines()
    assert header.endswith(",similar") and first.endswith(",")


def test_names_with_a_dot_have_reports_of_their_own(colours):
    """P3: v1.2 and v1.3 are names, not endings."""
    for name in ("net_v1.2", "net_v1.3"):
        assert call({**colours, "--out": colours["--out"].with_name(name)}, "--epochs", 0) == 0
    found = {path.name for path in colours["--out"].parent.iterdir() if not path.name.startswith("suspects")}
    assert found == {"net_v1.2", "net_v1.2.json", "net_v1.3", "net_v1.3.json"}
    assert [outputs.beside_weights(name, ".json").name for name in ("a.pt", "a.pth.tar", "b.safetensors")] == [
        "a.json", "a.pth.json", "b.json"]


def test_the_report_of_another_is_not_replaced(colours, capsys):
    """P3: a .json beside --out that no repair has written stays; a report does not stop a second repair."""
    other = colours["--out"].with_suffix(".json")
    other.parent.mkdir()
    for content in ('{"lr": 1}', "[]", "{"):
        other.write_text(content)
        assert call(colours, "--epochs", 0) == 2
        assert "is no report of a repair and would be replaced" in capsys.readouterr().err
        assert other.read_text() == content
    other.unlink()
    assert call(colours, "--epochs", 0) == call(colours, "--epochs", 0) == 0


def test_nothing_is_written_beside_images_that_a_link_leads_to(colours, capsys):
    """P3: nor into a folder of images that lies elsewhere and is linked into train/."""
    folder = colours["--data"]
    (folder / "train" / "0").rename(folder / "elsewhere")
    (folder / "train" / "0").symlink_to(folder / "elsewhere")
    assert call({**colours, "--out": folder / "elsewhere" / "x.pt"}) == 2
    assert "would lie among the images" in capsys.readouterr().err
    assert not (folder / "elsewhere" / "x.pt").exists()


def test_names_in_another_encoding_come_back(tmp_path):
    """S15: a file's name that is no UTF-8 stands in suspects.csv by its bytes, and is found by that."""
    paths = [tmp_path / "train" / "a" / os.fsdecode(name) for name in (b"caf\xe9.png", b"plain.png")]
    sheets.write_csv(tmp_path / "s.csv", ("filename", "bad"), [(str(paths[0].relative_to(tmp_path)), "true")])
    assert inputs.read_bad(tmp_path / "s.csv", paths, tmp_path)[0].tolist() == [0]


# --- The report -------------------------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """Predicts what it is told, by the first pixel."""

    def __init__(self, classes):
        super().__init__()
        self.table = nn.Parameter(nn.functional.one_hot(torch.tensor(classes), 3).float())

    def forward(self, x):
        return self.table[(x[:, 0, 0, 0] * 255).round().long()]


def test_the_report_counts(tmp_path):
    """P6: accuracies on D_f and the rest against given labels, Healed against true ones, and changed predictions."""
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 2, 2).contiguous()
    data = Data(images, torch.tensor([0, 0, 0, 1, 1, 2]), 3, (0.0,) * 3, (1.0,) * 3)
    truth = torch.tensor([1, 0, 2, 1, -1, -1])  # the second is known bad for another reason than its label
    folder = inputs.Folder(tmp_path, ["a", "b", "c"], [], data.labels, torch.tensor([0, 1]), truth, "")
    old, new = Fixed([0, 0, 0, 1, 1, 2]), Fixed([1, 0, 2, 1, 0, 2])
    found = repair.predicted(old, data)
    scores = repair.before_and_after([found, found], new, data, data, folder)
    assert scores == {"known bad, their given labels": [1.0, 0.5],
                      "other training images, given labels": [1.0, 0.5],
                      "held-out images": [1.0, 0.5], "Healed: bad images, true labels": [0.3333, 1.0],
                      "training images with another prediction": 3}
    lines = repair.table_of_changes(scores).splitlines()
    assert lines[1].split()[-2:] == ["100.0", "50.0"] and lines[-1].split()[-1] == "3"
    assert repair.share_of(torch.zeros(0)) is None


def test_true_labels_change_nothing_but_the_report(colours):
    """P6: with --clean the repaired weights are bit for bit the same, and the report has Healed."""
    (colours["--data"] / "clean.csv").write_text("path,label\n0-5.png,0\n2-5.png,2\n3-0.png,3\n")
    assert call(colours, "--epochs", 1) == 0
    plain, first = colours["--out"].read_bytes(), json.loads(colours["--out"].with_suffix(".json").read_text())
    assert call({**colours, "--clean": colours["--data"] / "clean.csv"}, "--epochs", 1) == 0
    report = json.loads(colours["--out"].with_suffix(".json").read_text())
    assert colours["--out"].read_bytes() == plain
    assert report["scores"].pop("Healed: bad images, true labels") == [1.0, 1.0]  # the wrong ones were never learnt
    assert report["scores"] == first["scores"]


def test_images_left_out_are_told(colours, capsys):
    """P1: with --skip-bad-images the run goes on and says what it left out."""
    (colours["--data"] / "train" / "3" / "3-0.png").write_bytes(b"\x89PNG")
    assert call(colours, "--epochs", 0) == 2
    assert "try --skip-bad-images" in capsys.readouterr().err
    assert call(colours, "--epochs", 0, "--skip-bad-images") == 0
    assert "1 images cannot be decoded and are left out" in capsys.readouterr().out
    report = json.loads(colours["--out"].with_suffix(".json").read_text())
    assert [Path(name).name for name in report["skipped"]] == ["3-0.png"]
    listing = [path.relative_to(colours["--data"]).as_posix()
               for path in inputs.open_folder(colours["--data"], colours["--bad"]).paths]
    rows = list(csv.DictReader((colours["--out"].parent / "suspects.csv").read_text().splitlines()))
    assert len(rows) == 69 and all(listing[int(row["index"])] == row["filename"] for row in rows)  # of all images


# --- Images that are not kept in memory -------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_images_above_max_memory_are_streamed_with_the_same_result(colours, capsys, workers):
    """P8: above --max-memory every pass decodes anew, the run says so; weights, report and suspects are the same."""
    (colours["--data"] / "val").symlink_to(colours["--data"] / "train")
    mean = () if workers else SMALL
    out, found = colours["--out"], []
    for room in (1, 0.0001):
        assert call(colours, "--epochs", 1, "--max-memory", room, "--workers", workers, *mean) == 0
        found.append((out.read_bytes(), json.loads(out.with_suffix(".json").read_text())["scores"],
                      out.with_name("suspects.csv").read_bytes()))
        told = capsys.readouterr().out
        streams = "the images take 0.000221 GB, and --max-memory is 0.0001: they are decoded anew in every pass" in told
        assert streams == (room < 1)
    assert found[0] == found[1]


def test_streamed_images_that_cannot_be_decoded(colours, capsys):
    """P8: a damaged file ends the run with a line that names it, or is left out as in memory."""
    (colours["--data"] / "train" / "3" / "3-0.png").write_bytes(b"\x89PNG")
    streamed = ("--epochs", 0, "--max-memory", 0, "--workers", 1)
    assert call(colours, *streamed) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "cannot be read" in told[0] and "3-0.png" in told[0] and not colours["--out"].exists()
    assert call(colours, *streamed, "--skip-bad-images") == 0
    assert "1 images cannot be decoded and are left out" in capsys.readouterr().out


def test_a_damaged_held_out_image_is_told_before_any_work(colours, capsys, monkeypatch):
    """P8: held-out images are decoded once before the repair, streamed ones too."""
    shutil.copytree(colours["--data"] / "train", colours["--data"] / "val")
    (colours["--data"] / "val" / "3" / "3-0.png").write_bytes(b"\x89PNG")
    monkeypatch.setattr(repair, "start", lambda *args, **kwargs: pytest.fail("work began"))
    for room in (0, 1):
        assert call(colours, "--max-memory", room, "--workers", 0) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert "3-0.png" in told and not colours["--out"].exists()


def test_room_for_images(monkeypatch):
    """P8: half of what is free, shared by the processes, or the given number of GB; a bad number is refused."""
    cpu = torch.device("cpu")
    monkeypatch.setattr(images.Path, "read_text", lambda path: "MemFree: 1 kB\nMemAvailable:   4000 kB\n")
    assert images.room_for_images(cpu) == 4000 * 1024 / 2 and images.room_for_images(cpu, None, 4) == 4000 * 1024 / 8
    monkeypatch.setattr(images.Path, "read_text", lambda path: "what")
    assert images.room_for_images(cpu) == float("inf") and images.room_for_images(cpu, 1.5) == 1.5e9
    with pytest.raises(ValueError, match="--max-memory is -1"):
        images.room_for_images(cpu, -1.0)


def test_room_in_a_container(tmp_path):
    """P8: the least that a limit on the own group or one above it leaves, file caches counted as free."""
    root, own = tmp_path / "cgroup", tmp_path / "self"
    (root / "a" / "b").mkdir(parents=True)
    own.write_text("4:memory:/x\n0::/a/b\n")
    assert images.free_in_group(own, root) == images.free_in_group(tmp_path / "none", root) == float("inf")
    for place, limit in ((root / "a", 1000), (root / "a" / "b", "max"), (root, 700)):
        (place / "memory.max").write_text(f"{limit}\n")
        (place / "memory.current").write_text("500\n")
        (place / "memory.stat").write_text("anon 300\ninactive_file 150\n")
    assert images.free_in_group(own, root) == 350
    (root / "memory.max").unlink()
    assert images.free_in_group(own, root) == 650
    own.write_text("4:memory:/x\n")
    assert images.free_in_group(own, root) == float("inf")


# --- Repairs that are cut off -----------------------------------------------------------------------------------------


def test_a_repair_that_is_cut_off_goes_on(colours, capsys, monkeypatch):
    """P9, A8: a run that ends after an epoch goes on from there when the command is repeated, bit for bit, and leaves
    no state; one state is one file, and nothing else is written."""
    state, out, save = colours["--out"].with_suffix(".state"), colours["--out"], repair.save_state
    many = ("--epochs", 3, "--batch-size", 16, "--lr", 0.01)
    assert call(colours, *many) == 0
    whole, lines = out.read_bytes(), [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) >= 2 and not state.exists()
    out.unlink()
    before = set(out.parent.iterdir())

    def cut(*args, **notes):
        save(*args, **notes)
        raise KeyboardInterrupt

    monkeypatch.setattr(repair, "save_state", cut)
    assert call(colours, *many) == 130
    assert set(out.parent.iterdir()) == before | {state} and not out.exists()
    monkeypatch.setattr(repair, "save_state", save)
    capsys.readouterr()
    assert call(colours, *many) == 0
    told = capsys.readouterr().out
    assert f"going on after epoch 1, from {state}" in told
    again = [line for line in told.splitlines() if line.startswith("epoch")]
    assert [line.split(" s,")[0].rsplit(";", 1)[0] for line in again] == [line.rsplit(";", 1)[0] for line in lines[1:]]
    assert out.read_bytes() == whole and not state.exists()


def test_the_state_of_another_repair_is_not_used(colours, capsys, tmp_path):
    """P9: another D_f, setting or network begins anew and says so; a file of something else is refused; 0 keeps
    none."""
    data, net, forget, told = make_data(0, n=24, classes=4), small_net(0), torch.tensor([1, 5]), []
    keep, settings = tmp_path / "x.state", dict(unlearn_epochs=2, stop="max", say=told.append)
    plain = repair.repair(net, data, forget, **settings)
    assert_same_state(repair.repair(net, data, forget, keep=keep, every=2, **settings), plain)
    kept, seen = keep.read_bytes(), len(told)
    assert_same_state(repair.repair(net, data, forget, keep=keep, **settings), plain)
    assert any("going on after epoch 2" in line for line in told[seen:])
    assert not any(line[:6] == "epoch " for line in told[seen:])
    for changed in ((small_net(1), data, forget, {}), (net, data, forget[:1], {}), (net, data, forget, {"seed": 1}),
                    (net, replace(data, labels=(data.labels + 1) % 4), forget, {})):
        keep.write_bytes(kept)
        told.clear()
        other = repair.repair(*changed[:3], keep=keep, **settings, **changed[3])
        assert "is the state of another repair and will be replaced" in " ".join(told)
        assert_same_state(other, repair.repair(*changed[:3], **settings, **changed[3]))
        assert keep.read_bytes() != kept
    keep.write_bytes(b"PK")
    with pytest.raises(ValueError, match="x.state is no state of this repair .*; move it away"):
        repair.repair(net, data, forget, keep=keep, **settings)
    assert call(colours, "--epochs", 1, "--checkpoint-every", 0) == 0
    state = colours["--out"].with_suffix(".state")
    state.write_text("something else")
    assert call(colours, "--epochs", 1) == 2
    assert "move it away" in capsys.readouterr().err and state.read_text() == "something else"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_state_knows_how_images_were_read(tmp_path, streamed):
    """P9: a state made with another size, mean or std, or of other pixels, is not gone on from; the same is."""
    def key(data):
        if streamed:
            pairs = list(zip(data.images, data.labels.tolist(), strict=True))
            data = Streamed(pairs, data.classes, data.mean, data.std, data.labels)
        return outputs.repair_key(net, data, torch.tensor([1, 5]), Config(), None)

    data, net = make_data(0, n=24, classes=4), small_net(0)
    images = data.images.clone()
    images[-1, 0, 3, 3] += 1
    others = [replace(data, images=images), replace(data, images=data.images[:, :, 1:, 1:].contiguous()),
              replace(data, images=data.images.view(24, 1, 4, 16)), replace(data, mean=(0.4,)),
              replace(data, std=(0.5,)), replace(data, labels=(data.labels + 1) % 4)]
    assert key(data) == key(replace(data)) == outputs.repair_key(net, data, torch.tensor([1, 5]), Config(), None)
    assert len({key(data), *map(key, others)}) == len(others) + 1


# --- Several processes ------------------------------------------------------------------------------------------------


def words(world: dict, *more) -> list[str]:
    """The command's words in the world of colours."""
    return ["repair", *(str(part) for pair in world.items() for part in pair), *map(str, more)]


@pytest.mark.slow
def test_torchrun_repairs_as_one_process_does(colours):
    """G3: under torchrun two processes write one set of files: the weights, scores and suspects of one process, within
    float32 rounding, with images streamed; each line is printed once."""
    more = ("--epochs", 2, "--batch-size", 16, "--max-memory", 0, "--workers", 1, "--device", "cpu")
    assert call(colours, *more) == 0
    whole = torch.load(colours["--out"], weights_only=True)
    scores = json.loads(colours["--out"].with_suffix(".json").read_text())["scores"]
    two = {**colours, "--out": colours["--data"] / "two" / "repaired.pt"}
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                           ROOT / "run.py", *words(two, *more)], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    for name, value in torch.load(two["--out"], weights_only=True).items():
        assert_close(value, whole[name], 1e-4)
    assert json.loads(two["--out"].with_suffix(".json").read_text())["scores"] == scores
    assert {path.name for path in two["--out"].parent.iterdir()} >= {"repaired.pt", "repaired.json", "suspects.csv"}
    assert not list(two["--out"].parent.glob("*.tmp")) and not two["--out"].with_suffix(".state").exists()
    assert done.stdout.count("known bad, their given labels") == 1 and done.stdout.count("epoch 1/2") == 1


@pytest.mark.slow
def test_torchrun_repairs_a_network_with_batchnorm(colours, tmp_path):
    """G3: with BatchNorm, whose statistics each process sends around before it looks, none waits for one that is done:
    two processes end well and write every file."""
    torch.save(build("resnet9", 0.1, classes=12, image_size=8, seed=0).state_dict(), tmp_path / "resnet9.pt")
    files = {"--checkpoint": tmp_path / "resnet9.pt", "--out": tmp_path / "two" / "r.pt"}
    world = {**colours, **files, "--model": "resnet9:0.1"}
    more = ("--image-size", 8, "--epochs", 1, "--batch-size", 16, "--device", "cpu", "--force")
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                           ROOT / "run.py", *words(world, *more)], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "two").iterdir()} - {"suspects.png"} == {"r.pt", "r.json", "suspects.csv"}


DYING = """
import os
CALLS = []
class Dying(nn.Module):
    def forward(self, x):
        CALLS.append(1)
        if os.environ.get("RANK") == "1" and len(CALLS) == 60: os._exit(9)
        return x
def dying(classes): return nn.Sequential(Dying(), *colours(classes))
"""


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_with_one_line(colours):
    """G4: where one of two processes is killed, the other says so in one line; no output is there, whole or half."""
    path = colours["--data"] / "net.py"
    path.write_text(path.read_text() + DYING)
    stored = torch.load(colours["--checkpoint"], weights_only=True)
    shifted = {re.sub(r"^\d+", lambda m: str(int(m[0]) + 1), k): v for k, v in stored.items()}
    torch.save(shifted, colours["--checkpoint"])
    world = {**colours, "--model": f"{path}:dying"}
    for _ in range(3):  # now and then gloo itself aborts a process whose peer has gone, before Python is told
        (code, told, errors), (killed, _, last) = test_ranks.ended(test_ranks.start(
            ROOT, "run.py", *words(world, "--epochs", 9, "--device", "cpu", "--checkpoint-every", 0, "--batch-size",
                                   4)))
        if code != -signal.SIGABRT:
            break
    assert killed == 9 and code == 2 and last == [], errors
    assert "theta_o2 beside" in told and "known bad, their given labels" not in told  # it was in training
    lines = [line for line in errors if not line.startswith(("[W", "warning: the network has not learnt"))]
    assert [line[:41] for line in lines] == ["run.py: a process of this run has ended ("]
    assert list(colours["--out"].parent.iterdir()) == []


@pytest.mark.slow
def test_bad_input_is_one_line_of_all_processes(colours):
    """G4, P3: what all processes refuse one alone tells; other words than repair are refused."""
    for command, told in ((words(colours, "--batch-size", 1), "batch is 1"), (["repair", "--what"], "required"),
                          (["report", "x"], "report runs in one process; torchrun is for one cell, grid and repair")):
        found = test_ranks.ended(test_ranks.start(ROOT, "run.py", *command))
        lines = [line for _, _, errors in found for line in errors if not line.startswith("[W")]
        assert [code for code, _, _ in found] == [2, 2]
        assert len(lines) == 1 and told in lines[0]


def test_synchronised_batchnorm(monkeypatch):
    """G2: --sync-batchnorm runs every BatchNorm as torch's SyncBatchNorm and gives the network's own kind back; in one
    process the numbers are those without; what is more than a BatchNorm is refused, and so are CPUs."""
    data, net, forget = make_data(0, n=24, classes=4), small_net(0), torch.tensor([1, 5])
    kinds = []

    def note(state, log):
        kinds.extend(map(type, state.expanded.modules()))
        return go_on(state, log)

    monkeypatch.setattr(repair, "go_on", note)
    synced = repair.repair(net, data, forget, unlearn_epochs=1, sync_batchnorm=True)
    assert kinds.count(nn.SyncBatchNorm) == 2 and nn.BatchNorm2d not in kinds
    assert type(synced.norm1) is nn.BatchNorm2d
    assert_same_state(synced, repair.repair(net, data, forget, unlearn_epochs=1))
    expanded = repair.expand_any(net, torch.zeros(2, 1, 8, 8), Config(ratio=0.5), None, lambda text: None)
    monkeypatch.setattr(repair, "ranks", lambda: (0, 2))
    with pytest.raises(ValueError, match="needs GPUs"):
        repair.synchronised(expanded)
    expanded.net.more = type("Act", (nn.BatchNorm2d,), {})(3)
    with pytest.raises(TypeError, match="cannot synchronise 'net.more': Act"):
        repair.synchronised(expanded)


def test_help_and_the_example(tmp_path, monkeypatch, capsys):
    """P1: --help lists every flag and the defaults that are chosen; the example writes images that the printed command
    repairs, in a folder of any name, but not beside others."""
    done = subprocess.run([sys.executable, ROOT / "run.py", "repair", "--help"], capture_output=True, text=True)
    flags = Parser()
    repair.add_arguments(flags)
    names = [name for action in flags._actions for name in action.option_strings]
    assert done.returncode == 0 and len(names) > 25 and all(name in done.stdout for name in names)
    chosen, text = repair.choose_settings(small_net(0), 100, {})[0], " ".join(done.stdout.split())
    assert (chosen.gamma, chosen.ratio, chosen.unlearn_epochs, chosen.seed) == (0.05, 0.25, 4, 0)
    assert "most epochs of REM (default: 4)" in text and "over the network's (default: 0.25)" in text
    folder = tmp_path / "a folder"
    monkeypatch.setattr(sys, "argv", ["repair.py", "--write", str(folder)])
    monkeypatch.setattr(example_repair, "fit", lambda *args: None)
    assert example_repair.main() == 0
    printed = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert printed[:3] == ["python", "run.py", "repair"]
    assert run.main([*printed[2:], "--force", "--epochs", "0"]) == 0
    assert checkpoints.read(folder / "repaired.pt").keys() == checkpoints.read(folder / "model.pt").keys()
    with pytest.raises(SystemExit):
        example_repair.main()
    assert "has images already" in capsys.readouterr().err
    images, labels = draw_shapes(9, gen(0))
    assert images.shape == (9, 3, 32, 32) and labels.tolist() == [0, 1, 2] * 3
    stuck = put_sticker(images, gen(1))
    changed = (stuck != images).any(1)
    assert changed.sum(dim=(1, 2)).eq(64).all()  # a quarter of each side


@pytest.mark.parametrize("images", ["shapes", "clothes"])
def test_trials_note_every_choice_of_layers(images, monkeypatch, tmp_path, capsys):
    """P4: examples/trials.py writes a row per network, choice of layers and seed, with scores before and after."""
    monkeypatch.setattr(sys, "argv", ["trials.py", "--networks", "resnet9", "--images", images, "--seeds", "0", "--n",
                                      "60", "--out", str(tmp_path / "new" / "rows.jsonl")])
    assert trials.main() == 0
    rows = [json.loads(line) for line in (tmp_path / "new" / "rows.jsonl").read_text().splitlines()]
    assert [row["layers"] for row in rows] == ["all convolutions (8 layers)", "*.block.0.0"]
    for row in rows:
        assert (row["images"], row["seed"], row["n"], row["bad"], row["known"]) == (images, 0, 60, 3, 1)
        assert all(0 <= share <= 1 for key in ("clean", "stickered", "misled") for share in row[key])
        assert all(row[key][0] == rows[0][key][0] for key in ("clean", "stickered", "misled"))  # one network before
