"""A world of flat colours whose network is known exactly, for `run.py repair` in this process or in two.

    from colours import call, colours          # the fixture, by its name
    assert call(colours, "--epochs", 0) == 0
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import run
from repair.networks_by_name import build_network

ROOT = Path(run.__file__).resolve().parent
COLOURS = torch.tensor([[r, g, b] for r in (40, 120, 200) for g in (60, 180) for b in (30, 230)])  # class k is colour k
IMAGENET = ("--mean", 0.485, 0.456, 0.406, "--std", 0.229, 0.224, 0.225)
NET = """
import torch
from torch import nn
COLOURS = torch.tensor({colours}) / 255
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
def colours(classes, first=None):
    "Nearest colour, written as a convolution and a linear layer, of what a first layer leaves of the images."
    net = nn.Sequential(first or nn.Identity(), nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(3, classes))
    with torch.no_grad():
        net[1].weight.copy_(torch.diag(STD)[:, :, None, None])
        net[1].bias.copy_(MEAN)
        net[4].weight.copy_(2 * COLOURS)
        net[4].bias.copy_(-(COLOURS**2).sum(1))
    return net
"""


@pytest.fixture
def colours(tmp_path) -> dict:
    """The flags of a repair: folders "0".."11" of six flat images each, three of them in the next class's folder.

    The network has its classes in natural order and knows every colour; two of the three are known bad. It has not
    learnt these at their labels, which is why --force is among the flags.
    """
    (tmp_path / "net.py").write_text(NET.format(colours=COLOURS.tolist()))
    for k, colour in enumerate(COLOURS.tolist()):
        for i in range(6):
            folder = (k + 1) % 12 if i == 5 and k < 3 else k
            path = tmp_path / "train" / str(folder) / f"{k}-{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shade = np.clip(np.array(colour) + i - 2, 0, 255).astype(np.uint8)
            Image.fromarray(np.broadcast_to(shade, (32, 32, 3)).copy()).save(path)
    (tmp_path / "bad.txt").write_text("0-5.png\n1-5.png\n")
    (tmp_path / "order.txt").write_text("\n".join(map(str, range(12))))
    torch.save(build_network(f"{tmp_path / 'net.py'}:colours", 12, 32)[0].state_dict(), tmp_path / "model.pt")
    return {"--data": tmp_path, "--model": f"{tmp_path / 'net.py'}:colours", "--checkpoint": tmp_path / "model.pt",
            "--bad": tmp_path / "bad.txt", "--class-map": tmp_path / "order.txt", "--image-size": 32,
            "--out": tmp_path / "out" / "repaired.pt", "--force": []}


def add_to_net(world: dict, source: str) -> str:
    """Add a source to the world's net.py; returns the path, for --model PATH:FUNCTION."""
    path = world["--data"] / "net.py"
    path.write_text(path.read_text() + source)
    return str(path)


def words(world: dict, *more) -> list[str]:
    """The command line of a repair in such a world; a flag whose value is None is left out, [] is one without any."""
    given = []
    for flag, value in world.items():
        values = value if isinstance(value, list) else [value]
        given += [] if value is None else [flag, *values]
    return ["repair", *map(str, [*given, *more])]


def call(world: dict, *more) -> int:
    """Run the command in this process; returns its exit code."""
    try:
        return run.main(words(world, *more))
    except SystemExit as leave:  # of argparse
        return leave.code


def report_of(world: dict) -> dict:
    """The report that a repair in such a world has written."""
    return json.loads(world["--out"].with_suffix(".json").read_text())


def began(told: str) -> bool:
    """Whether a repair was begun, by what it printed."""
    return "theta_o2 beside" in told
