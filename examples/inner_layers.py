"""Does healing survive where theta_o2 stands beside inner layers alone? A small ViT, ConvNeXt and ResNet on the shapes.

    python examples/inner_layers.py --out runs/inner.jsonl      # a JSON line per network, choice of layers and seed
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from torchvision import models

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before this file's own folder

import repair as command  # noqa: E402
from examples.repair import make, right  # noqa: E402
from settings import Config, stream  # noqa: E402
from train import fit  # noqa: E402

BLOCK = models.convnext.CNBlockConfig
NETWORKS = {  # name: (constructor, choices of layers, rate and epochs of training)
    "vit": (lambda: models.VisionTransformer(32, 4, 3, 4, 64, 128, num_classes=3), ["*.mlp.0"], 1e-3, 40),
    "convnext": (lambda: models.ConvNeXt([BLOCK(32, 64, 2), BLOCK(64, None, 2)], num_classes=3), ["*.block.3"], 1e-3, 40),
    "resnet": (lambda: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3, width_per_group=64),
               [None, "layer*.conv1"], 1e-3, 12),
}


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--networks", default=",".join(NETWORKS), help="which of them (default: all)")
    p.add_argument("--seeds", default="0,1,2")
    p.add_argument("--n", type=int, default=600, help="training images, 5 %% of them stickered (default: 600)")
    p.add_argument("--out", type=Path, required=True, help="file of JSON lines, appended to")
    args = p.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name in args.networks.split(","):
        build, choices, lr, epochs = NETWORKS[name]
        for seed in map(int, args.seeds.split(",")):
            train, bad, known, clean, stickered = make(seed, args.n)
            torch.manual_seed(seed)
            model = build()
            fit(model, train, None, Config(epochs=epochs, batch=32, lr=lr, optimizer="adam"), stream(seed, "training"))
            before = right(model, clean)[0], right(model, stickered)[0]
            for layers in choices:
                begin = time.perf_counter()
                repaired = command.repair(model, train, known, seed=seed, layers=layers and [layers])
                row = {"network": name, "layers": layers or "all convolutions", "seed": seed, "n": args.n, "bad": len(bad),
                       "known": len(known), "clean_before": before[0], "clean_after": right(repaired, clean)[0],
                       "stickered_before": before[1], "stickered_after": right(repaired, stickered)[0],
                       "seconds": round(time.perf_counter() - begin, 1), "torch": torch.__version__}
                print(json.dumps(row), flush=True)
                with open(args.out, "a") as file:
                    file.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
