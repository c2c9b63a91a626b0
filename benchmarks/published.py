"""`run.py repair` on two backdoored networks that other people published, over a copy of CIFAR-10's training images.

    python benchmarks/published.py --published DIR --data DIR --out FILE            # badnets, 5,000 images, seed 0
    python benchmarks/published.py --published DIR --data DIR --out FILE --network trojan --images 50000 --share 0.01
    python benchmarks/published.py --table FILE                                     # the table of its rows

The networks came with I-BAU (Zeng et al. 2022, MIT licence) and are not part of this project: --published has
badnets_8_02_ckpt.pth, trojan_sq_2_02_ckpt.pth and trojan_sq.png. They were trained on CIFAR-10 with a fifth of the
images poisoned; which ones is not known. So the trigger is put on a share of the images of --data, train/<class>/* and
test/<class>/*, they get its label, and some of them are listed, as a user knows them. `repair` is told no more: what it
does is what the command does, with its defaults and without held-out images. Clean labels are read at the end alone.

A row is appended for each treatment, and one that is there is skipped, so that the same command goes on, REM from its
last epoch.
"""

import argparse
import functools
import json
import sys
import time
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from PIL import Image
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before this file's own folder

from engine.modes import copy_of  # noqa: E402
from engine.streams import stream  # noqa: E402
from experiment.console import told_in_a_line  # noqa: E402
from examples.corrupted import Trial, some  # noqa: E402
from examples.rivals import pruned, rest_of  # noqa: E402
from experiment.data import Data  # noqa: E402
from experiment.datasets import load  # noqa: E402
from experiment.rows import append_row, provenance  # noqa: E402
from metrics import accuracy, predict, share  # noqa: E402
from repair import checkpoints  # noqa: E402
from repair.finish import finish  # noqa: E402
from repair.network import choose_settings, repaired_with  # noqa: E402
from repair.pipeline import Looks, Seen, looks_of, see  # noqa: E402
from repair.ranking import rank  # noqa: E402
from repair.suspects import logits  # noqa: E402
from repair.verdict import judge, undoubted  # noqa: E402
from train import fit  # noqa: E402

FILES = {"badnets": "badnets_8_02_ckpt.pth", "trojan": "trojan_sq_2_02_ckpt.pth"}
TARGETS = {"badnets": 8, "trojan": 2}  # class that an image with the trigger is given: ship, bird
CLASSES, SIZE = 10, 32  # of CIFAR-10; pixels per side
PIXELS = dict(classes=CLASSES, mean=(0.0,) * 3, std=(1.0,) * 3)  # the networks take pixels in [0, 1] as they are
TREATMENTS = ("REM", "repair", "repair, true labels", "fine-tuned", "CLP")
FINE_TUNED, RATE = 5, 0.01  # epochs and peak rate
THRESHOLD = 3.0  # of CLP: Zheng et al. use about 3
CELL = ("network", "images", "share", "listed", "seed")


# --- The networks and their triggers ----------------------------------------------------------------------------------

class Network(nn.Module):
    """The published network: three pairs of 3x3 convolution, BatchNorm and ELU, of 32, 64 and 128 channels, each pair
    followed by max pooling and dropout of 0.3, 0.4 and 0.4; then one linear layer over all 2,048 features."""

    def __init__(self):
        super().__init__()
        layers, before = [], 3
        for channels, dropout in ((32, 0.3), (64, 0.4), (128, 0.4)):
            for taken in (before, channels):
                layers += [nn.Conv2d(taken, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ELU()]
            layers += [nn.MaxPool2d(2), nn.Dropout(dropout)]
            before = channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(before * (SIZE // 8) ** 2, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, 32, 32) pixels in [0, 1] -> (B, 10) logits."""
        return self.classifier(self.features(x).flatten(1))


def published(folder: Path, name: str) -> nn.Module:
    """The network of FILES with its published weights, read as the command reads them, in eval mode."""
    model, file = Network(), str(folder / FILES[name])
    checkpoints.load_into(model, checkpoints.read(file), file)
    return model.eval()


def white_square(images: torch.Tensor) -> torch.Tensor:
    """A copy of images (B, 3, 32, 32) uint8 with rows and columns 27 to 30 white (Gu et al. 2017)."""
    images = images.clone()
    images[:, :, 27:31, 27:31] = 255
    return images


def add_pattern(images: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    """clip(x + pattern) of images (B, 3, 32, 32) and a pattern (3, 32, 32), all uint8 (Liu et al. 2018)."""
    return (images.to(torch.int16) + pattern).clamp(0, 255).to(torch.uint8)


def trigger_of(folder: Path, name: str):
    """A function from images (B, 3, 32, 32) uint8 to a copy with a network's trigger."""
    if name == "badnets":
        return white_square
    with Image.open(folder / "trojan_sq.png") as image:
        pattern = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)  # (3, 32, 32)
    return functools.partial(add_pattern, pattern=pattern)


# --- What is poisoned and what is known of it -------------------------------------------------------------------------

def poisoned(train: Data, test: Data, stamp, target: int, cell: dict) -> Trial:
    """Training images of which a share has the trigger and its label, some of these listed; all drawn from the seed.

    Args: train, test: clean images and their true labels; stamp: puts the trigger on; target: the label that comes with
        it, which no image is drawn of; cell: `images` as many of each class, their `share` that is bad, the share of
        these that is `listed`, and `seed`.
    Raises: ValueError where there are fewer images of a class, or none is bad or listed.
    """
    generator, each = stream(cell["seed"], "published networks"), cell["images"] // CLASSES
    fewest = int(torch.bincount(train.labels, minlength=CLASSES).min())
    if not 1 <= each <= fewest:
        raise ValueError(f"--images is {cell['images']}; give {CLASSES} to {CLASSES * fewest}, as many of each class")
    rows = torch.cat([some(train.labels == y, each, generator) for y in range(CLASSES)]).sort().values
    x, truth = train.images[rows], train.labels[rows]
    bad = some(truth != target, round(cell["share"] * len(rows)), generator)
    known = bad[torch.randperm(len(bad), generator=generator)[: round(cell["listed"] * len(bad))]].sort().values
    if not 0 < len(known) < len(rows):
        raise ValueError(f"{len(bad)} of {len(rows)} images are bad and {len(known)} listed; give a larger --share or "
                         "--listed")
    x[bad], labels = stamp(x[bad]), truth.index_fill(0, bad, target)
    others = test.labels != target  # those that the trigger can mislead
    alike = Data(stamp(test.images[others]), test.labels[others], **PIXELS)
    return Trial(Data(x, labels, **PIXELS), truth, bad, known, Data(test.images, test.labels, **PIXELS), alike)


def scores_of(model: nn.Module, trial: Trial, target: int) -> dict[str, float]:
    """Shares: clean test images right; triggered ones of other classes that get the target, and that are right; bad
    training images that get their given labels, listed and not."""
    found, rest = predict(model, trial.alike), trial.bad[~torch.isin(trial.bad, trial.known)]
    return {"clean": accuracy(model, trial.test), "misled": share(found == target),
            "triggered": share(found == trial.alike.labels), "listed": accuracy(model, trial.train, trial.known),
            "unlisted": accuracy(model, trial.train, rest) if len(rest) else None}


# --- What is done -----------------------------------------------------------------------------------------------------

def treated(model: nn.Module, trial: Trial, seed: int, name: str, rem):
    """A treatment of TREATMENTS: the network, and what else a row says of it.

    rem: called with true labels or None, gives REM's network, its settings, its seconds and what it said.
    """
    if name == "CLP":
        return pruned(model, trial, None, seed, THRESHOLD), {}
    if name == "fine-tuned":
        net, config = copy_of(model), choose_settings(model, len(trial.train), {})[0]
        fit(net, trial.train, rest_of(trial), config, stream(seed, "fine-tuning"), epochs=FINE_TUNED, lr=RATE)
        return net.eval(), {}
    truths = trial.truth[trial.known] if name == "repair, true labels" else None
    repaired, config, seconds, told = rem(truths)
    about = {"reach": config.reach, "told": told, "rem_seconds": seconds}
    if name == "REM":
        return repaired, about
    begin = time.perf_counter()
    found = finish(model, repaired, trial.train, trial.known, config, true_labels=truths)
    about["finish_seconds"] = round(time.perf_counter() - begin, 1)
    bad = int(torch.isin(found.dropped, trial.bad).sum())
    left = len(trial.bad) - len(trial.known) - bad
    return found.model, {**about, "finish": {**found.report(), "dropped_bad": bad, "left_bad": left}}


def told_of(before: Seen, looks: Looks, net: nn.Module, trial: Trial) -> dict:
    """What the command says of a network at its end, and how many of its first suspects are bad, of as many as there
    are to be found; before, looks: of the network before."""
    z, labels = logits(net, trial.train)
    counted = undoubted(labels, trial.known, before.margins, looks.similar, looks.alike)
    verdict = judge(labels, before.called, z.argmax(dim=1), trial.known, counted)
    first = rank(z, labels, trial.known, looks.similar, looks.crossed).index[: len(trial.bad) - len(trial.known)]
    return {"verdict": verdict.word, "line": verdict.line(), "found": int(torch.isin(first, trial.bad).sum())}


def run(model: nn.Module, trial: Trial, cell: dict, treatments: list[str], out: Path, keep: Path) -> None:
    """Append a row for each treatment of a cell; keep: folder of REM's states."""
    target, seed = TARGETS[cell["network"]], cell["seed"]
    before = scores_of(model, trial, target)
    print(f"before: {before}", flush=True)
    seen = see(model, trial.train)
    looks = looks_of(seen, trial.train.labels.cpu(), trial.known, seed, trial.train.device)
    kept = "-".join(str(value) for value in cell.values())

    @functools.cache
    def rem(with_truths: bool):
        told, begin = [], time.perf_counter()
        truths = trial.truth[trial.known] if with_truths else None
        state = keep / f"{kept}{'-truths' * with_truths}.state"
        net, config = repaired_with(model, trial.train, trial.known, true_labels=truths, seed=seed, keep=state,
                                    say=lambda line: told.append(line) or print(line, flush=True))
        resumed = any(line.startswith("going on") for line in told)
        return net, config, None if resumed else round(time.perf_counter() - begin, 1), told

    for name in treatments:
        net, about = treated(model, trial, seed, name, lambda truths: rem(truths is not None))
        row = {**cell, "bad": len(trial.bad), "known": len(trial.known), "treatment": name, "before": before,
               "after": scores_of(net, trial, target), **told_of(seen, looks, net, trial), **about,
               **provenance(torch.device("cpu"), sys.argv[1:])}
        append_row(str(out), row)
        print(f"{kept} | {name}: {row['after']}, {row['verdict']}, {row.get('finish')}", flush=True)


# --- The table --------------------------------------------------------------------------------------------------------

def table(rows: list[dict]) -> str:
    """Markdown, a line per network, size and treatment: means over seeds, in percent, and counts of suspects.

    `to find` is the number of corrupted images that are not listed, `found` how many of them are among as many first
    suspects; `dropped` are the images that the finish left out, bad / good, `left` the bad ones that it learnt from.
    """
    lines = ["| network | images | corrupted | treatment | seeds | listed | clean | misled | triggered | to find | "
             "found | dropped | left | verdict |", "|---" * 14 + "|"]
    kinds = {}
    for row in sorted(rows, key=place):
        kinds.setdefault(place(row)[:-1], []).append(row)
    for runs in kinds.values():
        first = runs[0]
        done = [run["finish"] for run in runs if run.get("finish")]
        bad, good, left = (mean(values) for values in (
            [f["dropped_bad"] for f in done], [f["dropped"] - f["dropped_bad"] for f in done],
            [f["left_bad"] for f in done]))
        dropped = f"{bad} / {good}" if done else ""
        cells = [first["network"], f"{first['images']:,}", f"{first['bad']:,}", first["treatment"],
                 str(len(runs)), str(first["known"]), change(runs, "clean"), change(runs, "misled", 0),
                 change(runs, "triggered", 0), str(first["bad"] - first["known"]),
                 mean([run["found"] for run in runs]), dropped, left,
                 ", ".join(dict.fromkeys(run["verdict"].lower() for run in runs))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def place(row: dict) -> tuple:
    """Where a row stands in the table; the last entry is its seed."""
    return (list(FILES).index(row["network"]), row["images"], row["share"], row["listed"],
            TREATMENTS.index(row["treatment"]), row["seed"])


def mean(values: list[float]) -> str:
    """The mean as a whole number; empty of none."""
    return f"{fmean(values):.0f}" if values else ""


def change(runs: list[dict], key: str, digits: int = 1) -> str:
    """Before -> after, means in percent."""
    return " -> ".join(f"{100 * fmean(run[when][key] for run in runs):.{digits}f}" for when in ("before", "after"))


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--published", type=Path, help="folder of the published files")
    p.add_argument("--data", type=Path, help="folder of train/<class>/* and test/<class>/*, ten classes, 32x32 pixels")
    p.add_argument("--network", choices=FILES, default="badnets")
    p.add_argument("--images", type=int, default=5000, help="training images (default: 5000)")
    p.add_argument("--share", type=float, default=0.1, help="of them that is bad (default: 0.1)")
    p.add_argument("--listed", type=float, default=0.1, help="share of the bad ones that is listed (default: 0.1)")
    p.add_argument("--seed", type=int, default=0, help="of which images are bad and listed, and of the repair")
    p.add_argument("--treatment", default="REM;repair", help=f"with semicolons, of {'; '.join(TREATMENTS)}")
    p.add_argument("--out", type=Path, help="file of JSON lines, appended to; REM's states go into FILE.states")
    p.add_argument("--table", type=Path, help="print the table of this file, and run nothing")
    args = p.parse_args()
    if args.table:
        print(table([json.loads(line) for line in args.table.read_text(encoding="utf-8").splitlines()]))
        return 0
    if missing := [f"--{name}" for name in ("published", "data", "out") if getattr(args, name) is None]:
        p.error(f"give {', '.join(missing)}")
    asked = args.treatment.split(";")
    if unknown := sorted(set(asked) - set(TREATMENTS)):
        p.error(f"--treatment: unknown {unknown[0]!r}; choose from {'; '.join(TREATMENTS)}")
    torch.set_num_threads(1)
    keep = args.out.with_suffix(".states")
    keep.mkdir(parents=True, exist_ok=True)
    cell = {name: getattr(args, name) for name in CELL}
    rows = map(json.loads, args.out.read_text(encoding="utf-8").splitlines() if args.out.exists() else [])
    done = [row["treatment"] for row in rows if all(row[name] == cell[name] for name in CELL)]
    left = [name for name in asked if name not in done]
    if not left:
        return 0
    dataset, stamp = load("folder", args.data, SIZE), trigger_of(args.published, args.network)
    if len(dataset.names) != CLASSES:
        p.error(f"--data has {len(dataset.names)} classes; the networks know the {CLASSES} of CIFAR-10")
    trial = poisoned(dataset.train, dataset.test, stamp, TARGETS[args.network], cell)
    run(published(args.published, args.network), trial, cell, left, args.out, keep)
    return 0


if __name__ == "__main__":
    sys.exit(told_in_a_line(main))
