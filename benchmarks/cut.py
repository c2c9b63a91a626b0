"""How well suspects.csv is ranked and cut: precision and recall of what it calls likely bad, its estimate of how many.

    python benchmarks/cut.py --keep runs/cut --out results/repair/suspects.jsonl    # a JSON line per cell; an hour
    python benchmarks/cut.py --table results/repair/suspects.jsonl                  # the table of results/repair

Cells are the three tasks on fashion-mini at two shares of corrupted images and two discovery rates, repaired by REM as
run.py does it, and the two drawn sets of examples/repair.py and examples/trials.py, repaired as `run.py repair` does
it. What the networks say of each image is kept in --keep, so that another cut costs no training. Clean labels are read
at the end alone, to count.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before this file's own folder

from baselines import rem_as_set  # noqa: E402
from engine.features import features  # noqa: E402
from engine.streams import stream  # noqa: E402
from examples.repair import draw_shapes, make  # noqa: E402
from examples.trials import NETWORKS, clothes  # noqa: E402
from experiment.cell import corrupt, find, new_model, train_original  # noqa: E402
from experiment.datasets import load  # noqa: E402
from experiment.settings import Config, resolve  # noqa: E402
from repair.network import repair  # noqa: E402
from repair.suspects import logits  # noqa: E402
from tasks import TASKS  # noqa: E402
from train import fit  # noqa: E402

SHARES, RATES = (0.02, 0.1), (0.1, 0.5)  # corrupted over all images; discovered over corrupted ones
DRAWN = ("shapes", "clothes")


def cells(seeds: list[int]) -> list[dict]:
    """What is computed: images (a task, or a drawn set), network, share, discovery and seed of each cell."""
    tasks = [dict(images=task, network="resnet9", share=share, discovery=rate, seed=seed)
             for seed, share, task, rate in itertools.product(seeds, SHARES, TASKS, RATES)]
    drawn = [dict(images=images, network=network, share=0.05, discovery=0.4, seed=seed)
             for seed, images, network in itertools.product(seeds, DRAWN, ("resnet9", "vit"))]
    return sorted(tasks + drawn, key=lambda cell: cell["seed"])


def name_of(cell: dict) -> str:
    """The file that keeps a cell's networks' words."""
    return "-".join(str(value) for value in cell.values()) + ".pt"


def originals(cell: dict, keep: Path):
    """The trained network and the task of a cell on fashion-mini; kept for the other discovery rate."""
    dataset = load("fashion-mini")
    config = resolve(dict(task=cell["images"], n=round(cell["share"] * len(dataset.train)), seed=cell["seed"],
                          discovery=cell["discovery"], quiet=True))
    task, model = corrupt(config, dataset), new_model(config, dataset)
    file = keep / ("original-" + name_of({k: v for k, v in cell.items() if k != "discovery"}))
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
    else:
        model = train_original(config, task, model)
        torch.save(model.state_dict(), file)
    return config, task, model


def play(cell: dict, keep: Path) -> dict[str, torch.Tensor]:
    """What the networks say in a cell: logits before and after, features, labels, D_f, D_c."""
    if cell["images"] in TASKS:
        config, task, model = originals(cell, keep)
        data, corrupted, forget = task.train, task.corrupted, find(config, task)
        repaired = rem_as_set(model, data, forget, config, stream(config.seed, "unlearning"))
    else:
        network, _, size, epochs = NETWORKS[cell["network"]]
        draw = clothes() if cell["images"] == "clothes" else draw_shapes
        data, corrupted, forget, *_ = make(cell["seed"], size=size, draw=draw)
        torch.manual_seed(cell["seed"])
        model, norm = network(), cell["network"].startswith("resnet")
        config = Config(epochs=epochs, batch=32, lr=0.01 if norm else 1e-3, optimizer="sgd" if norm else "adam")
        fit(model, data, None, config, stream(cell["seed"], "training"))
        repaired = repair(model, data, forget, seed=cell["seed"])
    (before, labels), (after, _) = logits(model, data), logits(repaired, data)
    return {"before": before.float(), "after": after.float(), "features": features(model, data).float(),
            "labels": labels, "forget": forget, "corrupted": corrupted}


def kept(cell: dict, keep: Path) -> dict[str, torch.Tensor]:
    """A cell's words, from its file or computed."""
    file = keep / name_of(cell)
    if not file.exists():
        found = play(cell, keep)
        torch.save(found, file.with_suffix(".part"))
        file.with_suffix(".part").rename(file)
        print(f"{file} kept", flush=True)
    return torch.load(file, weights_only=True)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--seeds", default="0,1,2")
    p.add_argument("--keep", type=Path, default=Path("runs/cut"), help="folder of what the networks say of each image")
    p.add_argument("--out", type=Path, help="file of JSON lines")
    args = p.parse_args()
    args.keep.mkdir(parents=True, exist_ok=True)
    for cell in cells([int(seed) for seed in args.seeds.split(",")]):
        kept(cell, args.keep)
    return 0


if __name__ == "__main__":
    sys.exit(main())
