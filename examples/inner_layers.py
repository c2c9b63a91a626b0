"""How well `repair` heals with the settings that it chooses, also where theta_o2 stands beside inner layers alone.

    python examples/inner_layers.py --out runs/trials.jsonl     # a JSON line per network, choice of layers and seed

30 of 600 images in three classes carry a sticker and a wrong label; 12 of the 30 are known.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from torchvision import models

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before this file's own folder

from experiment.console import told_in_a_line
from repair.network import repair_quietly
from experiment.datasets import load  # noqa: E402
from examples.repair import draw_shapes, make, right  # noqa: E402
from models import build  # noqa: E402
from engine.streams import stream  # noqa: E402
from experiment.settings import Config  # noqa: E402
from train import fit  # noqa: E402

BLOCK = models.convnext.CNBlockConfig
NETWORKS = {  # name: constructor, choices of layers (None: what repair chooses), pixels per side, epochs of training
    "resnet18": (lambda: models.resnet18(num_classes=3), [None], 64, 12),
    "resnet9": (lambda: build("resnet9", 0.25, classes=3), [None, "*.block.0.0"], 32, 12),
    "vit": (lambda: models.VisionTransformer(32, 4, 3, 4, 64, 128, num_classes=3), [None], 32, 30),
    "convnext": (lambda: models.ConvNeXt([BLOCK(32, 64, 2), BLOCK(64, None, 2)], num_classes=3), [None], 32, 70),
}
CLOTHES = (1, 3, 4)  # trousers, dresses and coats of fashion-mini


def clothes():
    """A function like `draw_shapes` that gives images of fashion-mini: at its first call to train on, then to test."""
    dataset = load("fashion-mini")
    parts = iter((dataset.train, dataset.test))

    def draw(n: int, generator: torch.Generator, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
        data = next(parts)
        kind = (data.labels[:, None] == torch.tensor(CLOTHES)).nonzero()  # (m, 2): image, class
        kind = kind[torch.randperm(len(kind), generator=generator)[:n]]
        images = F.interpolate(data.images[kind[:, 0]].float(), (size, size), mode="bilinear", align_corners=False)
        return images.round().to(torch.uint8).repeat(1, 3, 1, 1), kind[:, 1]  # (n, 3, size, size), (n,)

    return draw


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--networks", default=",".join(NETWORKS), help="which of them (default: all)")
    p.add_argument("--images", choices=("shapes", "clothes"), default="shapes", help="drawn, or fashion-mini's")
    p.add_argument("--seeds", default="0,1,2")
    p.add_argument("--n", type=int, default=600, help="training images, 5 %% of them stickered (default: 600)")
    p.add_argument("--out", type=Path, required=True, help="file of JSON lines, appended to: [before, after]")
    args = p.parse_args()
    if unknown := sorted(set(args.networks.split(",")) - set(NETWORKS)):
        p.error(f"unknown network {unknown[0]!r}; choose from {', '.join(NETWORKS)}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name in args.networks.split(","):
        make_network, choices, size, epochs = NETWORKS[name]
        for seed in map(int, args.seeds.split(",")):
            draw = clothes() if args.images == "clothes" else draw_shapes
            train, bad, known, clean, stickered = make(seed, args.n, size, draw)
            torch.manual_seed(seed)
            model = make_network()
            norm = name.startswith("resnet")  # Table 3: SGD for networks with BatchNorm, Adam for transformers
            config = Config(epochs=epochs, batch=32, lr=0.01 if norm else 1e-3, optimizer="sgd" if norm else "adam")
            fit(model, train, None, config, stream(seed, "training"))
            before, told = (right(model, clean)[0], *right(model, stickered)), []
            for layers in choices:
                begin = time.perf_counter()
                repaired = repair_quietly(model, train, known, seed=seed, layers=layers and [layers], say=told.append)
                chosen = [line.removeprefix("theta_o2 beside ") for line in told if line.startswith("theta_o2")]
                after = (right(repaired, clean)[0], *right(repaired, stickered))
                optimizer = next(line.split()[1] for line in reversed(told) if line.startswith("optimizer"))
                row = {"network": name, "images": args.images, "size": size, "optimizer": optimizer,
                       "layers": layers or chosen[0], "seed": seed, "n": args.n, "bad": len(bad), "known": len(known),
                       "clean": (before[0], after[0]), "stickered": (before[1], after[1]),
                       "misled": (before[2], after[2]), "seconds": round(time.perf_counter() - begin, 1),
                       "torch": torch.__version__}
                print(json.dumps(row), flush=True)
                with open(args.out, "a") as file:
                    file.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(told_in_a_line(main))
