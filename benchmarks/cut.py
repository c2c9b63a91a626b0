"""How well suspects.csv is ranked and cut: precision and recall of what it calls likely bad, its estimate of how many.

    python benchmarks/cut.py --keep runs/cut --out results/repair/suspects/cut.jsonl    # a JSON line per cell; an hour
    python benchmarks/cut.py --table results/repair/suspects/cut.jsonl                  # its tables

Cells are the three tasks on fashion-mini at two shares of corrupted images and two discovery rates, repaired by REM as
run.py does it, and the shapes and clothes of examples/inner_layers.py, repaired as `run.py repair` does it. What the
networks say of each image is kept in --keep, so that another cut costs no training. Clean labels are read at the end
alone, to count.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before this file's own folder

from baselines import rem_plus_by_config  # noqa: E402
from engine.features import features  # noqa: E402
from engine.streams import stream  # noqa: E402
from examples.repair import draw_shapes, make  # noqa: E402
from examples.inner_layers import NETWORKS, clothes  # noqa: E402
from experiment.cell import corrupt, draw_forget, new_model, train_original  # noqa: E402
from experiment.console import told_in_a_line  # noqa: E402
from experiment.datasets import load  # noqa: E402
from experiment.devices import processor  # noqa: E402
from experiment.settings import Config, resolve  # noqa: E402
from repair.network import repair_quietly  # noqa: E402
from repair.ranking import rank  # noqa: E402
from repair.suspects import crossed, logits, probe  # noqa: E402
from tasks import TASKS  # noqa: E402
from train import fit  # noqa: E402

SHARES, RATES = (0.02, 0.1), (0.1, 0.5)  # corrupted over all images; discovered over corrupted ones
DRAWN = ("shapes", "clothes")
CELL = ("images", "network", "share", "discovery", "seed")
RANKINGS = ("overall", "by score", "by similar", "better rank")


def cells(seeds: list[int]) -> list[dict]:
    """What is computed: images (a task, or a drawn set), network, share, discovery and seed of each cell."""
    small, large = ([dict(images=task, network="resnet9", share=share, discovery=rate) for task in TASKS
                     for rate in RATES] for share in SHARES)
    drawn = [dict(images=images, network="resnet9", share=0.05, discovery=0.4) for images in DRAWN]
    return [{**cell, "seed": seed} for seed in seeds for cell in (*small, *drawn, *large)]


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
        data, corrupted, forget = task.train, task.corrupted, draw_forget(config, task)
        repaired = rem_plus_by_config(model, data, forget, config, stream(config.seed, "unlearning"))
    else:
        network, _, size, epochs = NETWORKS[cell["network"]]
        draw = clothes() if cell["images"] == "clothes" else draw_shapes
        data, corrupted, forget, *_ = make(cell["seed"], size=size, draw=draw)
        torch.manual_seed(cell["seed"])
        model = network()
        fit(model, data, None, Config(epochs=epochs, batch=32, lr=0.01), stream(cell["seed"], "training"))
        repaired = repair_quietly(model, data, forget, seed=cell["seed"])
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


# --- What is counted --------------------------------------------------------------------------------------------------

def row_of(cell: dict, said: dict[str, torch.Tensor]) -> dict:
    """A cell's row: the real number, the estimate and how many of those that it marks are bad; of each ranking the
    recall when as many are looked at as are to be found; and what other estimators give."""
    z, labels, forget = said["after"].double(), said["labels"], said["forget"]
    h = said["features"].double()
    similar, looks = probe(h, forget), crossed(h, forget)
    found, labels_alone = rank(z, labels, forget, similar, looks), rank(z, labels, forget)
    wanted = torch.isin(found.index, said["corrupted"])
    real = int(wanted.sum())
    better = torch.minimum(found.by_score, found.by_similar)
    recalls = {name: round(float(wanted[order[:real]].double().sum()) / real, 4) for name, order in (
        ("overall", torch.arange(len(wanted))), ("by score", found.by_score.argsort()),
        ("by similar", found.by_similar.argsort()), ("better rank", better.argsort(stable=True)))}
    given = (-found.score).exp()
    known = z.softmax(dim=1)[forget].gather(1, labels[forget][:, None])
    others = {"labels alone": labels_alone.likely, "sum of 1 - p": round(float((1 - given).sum())),
              "sum of 1 - p over its mean in D_f": round(float((1 - given).sum() / (1 - known).mean())),
              "other answers": int((found.predicted != labels[found.index]).sum()),
              "confident learning": int(confident(z, labels)[found.index].sum())}
    return {**cell, "n": len(z), "known": len(forget), "undiscovered": real, "likely": found.likely,
            "right": int(wanted[: found.likely].sum()), "recall": recalls, "others": others,
            "torch": torch.__version__, **processor()}


def confident(z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(N,) bool: off the diagonal of confident learning's joint (Northcutt et al. 2021): some class is at least as
    likely as it is on average among its own images, and the likeliest such class is not the given one."""
    p = z.softmax(dim=1)
    classes = range(p.shape[1])
    least = torch.stack([p[labels == k, k].mean() if (labels == k).any() else torch.tensor(2.0) for k in classes])
    over = p >= least
    return over.any(dim=1) & (p.where(over, torch.tensor(-1.0)).argmax(dim=1) != labels)


def table(rows: list[dict]) -> str:
    """Two Markdown tables, means over seeds: the cut of each kind of cell, and the other estimators' numbers."""
    kinds = {}
    for row in rows:
        kinds.setdefault((row["images"], row["share"], row["discovery"]), []).append(row)
    cut, numbers = [], []
    for kind, runs in sorted(kinds.items(), key=lambda pair: place_of(*pair[0])):
        images, share, rate = kind
        label = [images, f"{100 * share:g} %", f"{rate:g}"]
        found = " / ".join(str(run["likely"]) for run in runs)
        shares = [fmean(run["right"] / max(1, run["likely"]) for run in runs),
                  fmean(run["right"] / run["undiscovered"] for run in runs),
                  *(fmean(run["recall"][name] for run in runs) for name in RANKINGS)]
        cut.append([*label, str(len(runs)), f"{fmean(run['undiscovered'] for run in runs):.0f}", found,
                    *(f"{value:.2f}" for value in shares)])
        numbers.append([*label, f"{fmean(run['undiscovered'] for run in runs):.0f}",
                        f"{fmean(run['likely'] for run in runs):.0f}",
                        *(f"{fmean(run['others'][name] for run in runs):.0f}" for name in runs[0]["others"])])
    first = ["images", "corrupted", "discovery"]
    return "\n\n".join((markdown([*first, "runs", "to find", "estimate", "precision", "recall", *RANKINGS], cut),
                        markdown([*first, "to find", "estimate", *rows[0]["others"]], numbers))) + "\n"


def place_of(images: str, share: float, rate: float) -> tuple:
    """Where a kind of cell stands in the tables."""
    return (*TASKS, *DRAWN).index(images), share, rate


def markdown(header: list[str], lines: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *lines))


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--seeds", default="0,1,2")
    p.add_argument("--keep", type=Path, default=Path("runs/cut"), help="folder of what the networks say of each image")
    p.add_argument("--out", type=Path, help="file of JSON lines, appended to; a cell that is there is left out")
    p.add_argument("--table", type=Path, help="print the tables of this file, and compute nothing")
    args = p.parse_args()
    if args.table:
        print(table([json.loads(line) for line in args.table.read_text().splitlines()]), end="")
        return 0
    args.keep.mkdir(parents=True, exist_ok=True)
    lines = args.out.read_text().splitlines() if args.out and args.out.exists() else []
    done = [name_of({key: row[key] for key in CELL}) for row in map(json.loads, lines)]
    for cell in cells([int(seed) for seed in args.seeds.split(",")]):
        if name_of(cell) not in done:
            line = json.dumps(row_of(cell, kept(cell, args.keep)))
            print(line, flush=True)
            if args.out:
                with open(args.out, "a") as file:
                    file.write(line + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(told_in_a_line(main))
