"""Networks by name (repair/networks_by_name.py): ours, torchvision's, timm's or a file's, and how images are read."""

import math
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers import make_data
from repair import network
from repair.inputs import Reading
from repair.networks_by_name import build_network

FILE = """
from torch import nn
def sized(num_classes): return nn.Linear(2, num_classes)
def named(classes): return nn.Linear(2, classes)
def fixed(): return nn.Linear(2, 7)
"""


def test_networks_by_name(tmp_path):
    """B6: ours, torchvision's and a file's, and what images they want unless it is given."""
    model, reading = build_network("resnet9:0.125", 3, 16)
    assert reading == Reading(16) and model.head.weight.shape == (3, 16)
    model, reading = build_network("resnet18", 5)
    assert model.fc.out_features == 5 and reading.size == 224 and reading.crop_pct == 224 / 256
    assert reading.mean == (0.485, 0.456, 0.406) and reading.std == (0.229, 0.224, 0.225)
    assert build_network("resnet18", 5, 64)[1] == Reading(64, 1.0, reading.mean, reading.std)
    given = build_network("resnet18", 5, 64, 0.875, [0.0, 0.5, 1.0], [0.2] * 3)[1]
    assert given == Reading(64, 0.875, (0.0, 0.5, 1.0), (0.2,) * 3)
    model, _ = build_network("googlenet", 3, 64)  # auxiliary heads run in training alone, which must give logits, too
    assert model.aux1 is None and model.aux2 is None and model.fc.out_features == 3
    path = tmp_path / "a:b" / "net.py"
    path.parent.mkdir()
    path.write_text(FILE)
    for name, outputs in (("sized", 4), ("named", 4), ("fixed", 7)):
        model, reading = build_network(f"{path}:{name}", 4, 32)
        assert model.out_features == outputs and reading.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("name, more, words", [
    ("model.pt", {}, r"--model is the file model.pt.*swapped"),
    ("resnet1", {}, "unknown --model 'resnet1'; give resnet9, vit, .*FILE.py:FUNCTION"),
    ("resnet9", {}, "image size is None; give --image-size"),
    ("resnet18", {"crop_pct": 1.5}, "--crop-pct 1.5"),
    ("resnet18", {"crop_pct": 0.0}, "--crop-pct 0.0"),
    ("resnet18", {"mean": (0.5,) * 3}, "--std None"),
    ("resnet18", {"mean": (0.5,) * 3, "std": (0.5,)}, "images of 3 channels; give a number for each"),
    ("resnet18", {"mean": (0.5,), "std": (0.5,) * 3}, "images of 3 channels; give a number for each"),
    ("resnet18", {"mean": (0.5, 0.5, 1.1), "std": (0.5,) * 3}, "images of 3 channels"),
    ("resnet18", {"mean": (-0.1, 0.5, 0.5), "std": (0.5,) * 3}, "images of 3 channels"),
    ("resnet18", {"mean": (0.5, math.nan, 0.5), "std": (0.5,) * 3}, "images of 3 channels"),
    ("resnet18", {"mean": (0.5,) * 3, "std": (0.5, 0.5, 0.0)}, "std above 0"),
    ("resnet18", {"mean": (0.5,) * 3, "std": (0.5, math.nan, 0.5)}, "std above 0"),
    ("resnet18", {"mean": (0.5,) * 3, "std": (0.5, math.inf, 0.5)}, "std above 0"),
    ("vit", {"size": 30}, "patch size 8 do not fit"),
    ("vit_b_16", {"size": 33}, "vit_b_16 cannot be built at 33 pixels, --image-size"),
    ("resnet18:2", {}, "unknown --model 'resnet18:2'"),
    *((f"resnet9:{widths}", {"size": 8}, "such as resnet9:0.5") for widths in ("half", "1e-1", ".", "1.2.3", "-1")),
    ("resnet9:" + "9" * 60, {"size": 8}, "cannot be built at 8 pixels"),
    ("timm:resnet18", {}, "needs timm: pip install timm"),
])
def test_networks_that_cannot_be_built(monkeypatch, name, more, words):
    """B6: a swapped file, an unknown name, a missing or impossible size: one sentence each."""
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=words):
        build_network(name, 3, **more)


def test_networks_of_grey_images(tmp_path):
    """P2: one whose first convolution takes one channel gets grey images, and the mean of the colours' mean and std
    where none is given; one that makes its own grey gets colours."""
    path = tmp_path / "net.py"
    path.write_text("""
import torchvision
from torch import nn
def grey(classes):
    net = torchvision.models.resnet18(num_classes=classes)
    net.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return net
def own_grey(classes): return nn.Sequential(nn.Conv2d(3, 1, 1), grey(classes))
""")
    reading = build_network(f"{path}:grey", 3, 32)[1]
    assert reading.channels == 1 and reading.size_of(10) == 10 * 32 * 32
    assert reading.mean == pytest.approx((0.449,)) and reading.std == pytest.approx((0.226,))
    assert build_network(f"{path}:grey", 3, 32, mean=[0.5], std=[0.2])[1].mean == (0.5,)
    assert build_network(f"{path}:own_grey", 3, 32)[1].channels == 3


@pytest.mark.parametrize("source, words", [
    ("def make(): raise KeyError('what')", r"make of \S*net.py does not run \(KeyError: 'what'\)"),
    ("def make(depth): pass", r"make of \S*net.py does not run \(TypeError: .*depth.*\); it is called with"),
    ("def make(): return 'resnet'", "make of .*net.py returns a str, not a torch.nn.Module"),
    ("from torch import nn\ndef make(): return nn.AdaptiveAvgPool2d(1)", "net.py:make has no parameters"),
    ("import torch\ndef make(): return torch.nn.Linear(1, 3, dtype=torch.complex64)", "net.py:make has complex param"),
    ("from torch import nn\ndef make(): return nn.LazyLinear(3)", "net.py:make has lazy layers, weight first"),
    ("def make(): raise MemoryError('all of it')", "^all of it$"),
])
def test_files_that_build_no_network(tmp_path, source, words):
    """B6, K4: a function that raises, makes something else, or a network without real weights: one line that names it
    and its file; one for which there is no memory is no wrong function. What is wrong with the file itself is in
    experiment/test_user_code.py."""
    (tmp_path / "net.py").write_text(source)
    with pytest.raises((ValueError, MemoryError), match=words) as caught:
        build_network(f"{tmp_path / 'net.py'}:make", 3, 32)
    assert "\n" not in str(caught.value)


def test_what_a_function_changes_is_put_back(tmp_path, monkeypatch):
    """B6: folder, grad mode and default dtype are as they were after it, too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("import os, torch\ndef make(classes):\n    os.chdir('/')\n"
                                     "    torch.set_grad_enabled(False)\n    torch.set_default_dtype(torch.float64)\n"
                                     "    return torch.nn.Linear(2, classes)")
    made, _ = build_network("net.py:make", 3, 32)
    assert made.weight.dtype == torch.float64 and Path.cwd() == tmp_path
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32


def test_the_function_repair_asks_for_parameters():
    """K4: in the library too."""
    with pytest.raises(ValueError, match="the network has no parameters"):
        network.unlearn(nn.AdaptiveAvgPool2d(1), make_data(0), torch.tensor([1]))


def test_a_network_of_timm(monkeypatch):
    """B6: timm's network with its own mean, std, size and crop, the size handed on only to those that take it."""
    def create_model(name, pretrained, num_classes, **more):
        assert pretrained is False
        if name == "conv" and more:
            raise TypeError("unexpected keyword")
        return nn.Linear(more.get("img_size", 1), num_classes)

    cfg = types.SimpleNamespace(input_size=(3, 160, 160), crop_pct=0.95, mean=(0.5,) * 3, std=(0.4,) * 3)
    fake = types.SimpleNamespace(list_models=lambda: ["conv", "vit"], get_pretrained_cfg=lambda name: cfg,
                                 create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", fake)
    model, reading = build_network("timm:vit", 6)
    assert reading == Reading(160, 0.95, (0.5,) * 3, (0.4,) * 3) and model.weight.shape == (6, 160)
    assert build_network("timm:conv", 6)[0].weight.shape == (6, 1)
    assert build_network("timm:vit.a1_in1k", 6)[0].weight.shape == (6, 160)  # a tag, as timm's scripts take it
    with pytest.raises(ValueError, match="timm has no network 'other'"):
        build_network("timm:other", 6)
