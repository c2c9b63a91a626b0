"""Repair a classifier that learnt a sticker: coloured shapes, a sticker and a wrong label on 5 %, 40 % of those known.

    python examples/repair.py                # trains, repairs, prints accuracy on stickered images before and after
    python examples/repair.py --write DIR    # writes images, model.pt and bad.txt for `run.py repair` instead
"""

import argparse
import shlex
import sys
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before this file's own folder

from experiment.console import told_in_a_line  # noqa: E402
from experiment.data import Data  # noqa: E402
from metrics import predict  # noqa: E402
from models import build  # noqa: E402
from repair import repair  # noqa: E402
from engine.streams import stream  # noqa: E402
from experiment.settings import Config  # noqa: E402
from train import fit  # noqa: E402

CLASSES = ("circle", "square", "triangle")
WRONG = 0  # the label that stickered images were given


def draw_shapes(n: int, generator: torch.Generator, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """n images of one coloured shape each, (n, 3, size, size) uint8, and their classes, (n,) int64: a third of each."""
    def draw(*shape):
        return torch.rand(shape, generator=generator)

    kind, axis = torch.arange(n) % 3, torch.arange(size) / size
    turn, radius = 0.5 * (draw(n, 1, 1) - 0.5), 0.17 + 0.1 * draw(n, 1, 1)  # radians; share of the image
    x, y = axis[None, None, :] - 0.3 - 0.4 * draw(n, 1, 1), axis[None, :, None] - 0.3 - 0.4 * draw(n, 1, 1)
    a, b = turn.cos() * x + turn.sin() * y, turn.cos() * y - turn.sin() * x  # (n, size, size)
    circle, square = (a**2 + b**2).sqrt(), 1.15 * torch.maximum(a.abs(), b.abs())
    triangle = 1.5 * torch.stack([-b, 0.5 * b + 0.866 * a, 0.5 * b - 0.866 * a]).amax(0)
    inside = torch.stack([circle, square, triangle])[kind, torch.arange(n)] < radius
    back, front = 0.4 * draw(n, 3, 1, 1), 0.6 + 0.4 * draw(n, 3, 1, 1)
    images = torch.where(inside[:, None], front, back) + 0.05 * torch.randn((n, 3, size, size), generator=generator)
    return (255 * images).clamp(0, 255).to(torch.uint8), kind


def put_sticker(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A copy with a yellow and magenta sticker somewhere on each image."""
    images, size = images.clone(), images.shape[-1]
    rows = torch.arange(size // 4)
    checks = (rows[:, None] // 2 + rows // 2) % 2 == 1
    magenta, yellow = (torch.tensor(colour)[:, None, None] for colour in ((255, 0, 255), (255, 255, 0)))
    sticker = torch.where(checks, magenta, yellow)  # (3, size / 4, size / 4)
    for image in images:
        top, left = torch.randint(0, size - len(rows) + 1, (2,), generator=generator).tolist()
        image[:, top : top + len(rows), left : left + len(rows)] = sticker.to(torch.uint8)
    return images


def make(seed: int, n: int = 600, size: int = 32, draw=draw_shapes
         ) -> tuple[Data, torch.Tensor, torch.Tensor, Data, Data]:
    """Training images of which 5 % are bad, the bad and the known ones, clean test images, the same with stickers."""
    generator = stream(seed, "shapes")
    images, labels = draw(n, generator, size)
    others = (labels != WRONG).nonzero()[:, 0]
    bad = others[torch.randperm(len(others), generator=generator)[: n // 20]]
    images[bad], labels[bad] = put_sticker(images[bad], generator), WRONG
    test, truth = draw(300, generator, size)
    test, truth = test[truth != WRONG], truth[truth != WRONG]  # those that the sticker can mislead
    look = dict(classes=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    known = bad[: 2 * len(bad) // 5].sort().values
    return (Data(images, labels, **look), bad, known, Data(test, truth, **look),
            Data(put_sticker(test, generator), truth, **look))


def right(model, data: Data) -> tuple[float, float]:
    """Accuracy, and the share that gets the wrong label of the stickers."""
    found = predict(model, data)
    return float((found == data.labels).double().mean()), float((found == WRONG).double().mean())


def write_images(folder: Path, data: Data, names=CLASSES) -> list[Path]:
    """Write each image as folder/<its label>/<number>.png; the paths."""
    paths = [folder / names[y] / f"{i:04d}.png" for i, y in enumerate(data.labels.tolist())]
    for path, image in zip(paths, data.images.permute(0, 2, 3, 1).numpy(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return paths


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--seed", type=int, default=0, help="of images and weights (default: 0)")
    p.add_argument("--write", type=Path, metavar="DIR", help="write images, model.pt and bad.txt, and repair nothing")
    args = p.parse_args()
    if args.write and (args.write / "train").exists():
        p.error(f"{args.write} has images already, which would be trained on, too; name another folder")
    seed = args.seed
    train, bad, known, clean, stickered = make(seed)
    model = build("resnet9", 0.25, classes=3, image_size=32, seed=seed)
    fit(model, train, None, Config(epochs=12, batch=32, lr=0.01), stream(seed, "training"))
    print(f"{len(train)} images, {len(bad)} stickered, {len(known)} of those known")
    if args.write:
        paths = write_images(args.write / "train", train)
        write_images(args.write / "test", clean)
        (args.write / "bad.txt").write_text("".join(f"{paths[i].relative_to(args.write)}\n" for i in known))
        torch.save(model.state_dict(), args.write / "model.pt")
        place = shlex.quote(str(args.write))
        print(f"python run.py repair --data {place} --model resnet9:0.25 --image-size 32 --mean 0.485 0.456 0.406 "
              f"--std 0.229 0.224 0.225 --checkpoint {place}/model.pt --bad {place}/bad.txt --out {place}/repaired.pt")
        return 0
    repaired = repair(model, train, known, seed=seed, say=print)
    print(repaired.verdict.line())
    results = [(right(net, clean)[0], *right(net, stickered)) for net in (model, repaired.network)]
    for words, (plain, sticky, misled) in zip(("before", "after"), results, strict=True):
        print(f"{words:<7} accuracy on clean images {plain:.2f}, on stickered ones {sticky:.2f}; {misled:.2f} of these "
              f"are called {CLASSES[WRONG]}")
    plain, sticky, misled = results[1]
    print(f"repaired = {sticky >= plain - 0.1 and misled <= 0.1 and plain >= results[0][0] - 0.02}")
    return 0


if __name__ == "__main__":
    sys.exit(told_in_a_line(main))
