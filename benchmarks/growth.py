"""How the cost of training, of `expand` and of each method grows: seconds and peak memory, one thread.

    python benchmarks/growth.py                              # rows, table and picture in results/growth
    python benchmarks/growth.py --axes ratio --out runs/growth

One of four things grows, the others stay as in BASE: the number of images, the network's width, theta_o2's width over
theta_o1's, the number of parameters (ResNets of torchvision). An epoch each, of images that are drawn at random: what
they show changes no cost but that of passes over D_f, a hundredth of the images, and of Potion's tries, which end where
no label of D_f is met any more, or after ten (fifty tries). A slope is that of the logarithms between the two largest
values: 1 is linear.
"""

import argparse
import json
import math
import multiprocessing
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.scale import logarithmic, peak  # noqa: E402
from experiment.console import told_in_a_line  # noqa: E402
from experiment.data import Data  # noqa: E402
from expand import expand  # noqa: E402
from repair.networks_by_name import build_network  # noqa: E402
from experiment.methods import METHODS  # noqa: E402
from metrics import predict  # noqa: E402
from models import build  # noqa: E402
from engine.streams import stream  # noqa: E402
from experiment.settings import Config  # noqa: E402
from experiment.files import write_whole  # noqa: E402
from train import fit  # noqa: E402

BASE = {"images": 1500, "width": 0.125, "ratio": 1.0, "network": "resnet9"}
AXES = {"images": (1500, 6000, 15000, 60000), "width": (0.125, 0.25, 0.5, 1.0), "ratio": (0.25, 0.5, 1.0, 2.0),
        "network": ("resnet18", "resnet50", "resnet101")}
ALL = ["training", "expand"] + [name for name, method in METHODS.items() if name == "etd" or method.part == "compared"
                                and not method.twin and name not in ("no-ul", "retrain")]
WIDE = ["training", "expand", "etd", "rem"]  # what theta_o2's width and large networks are asked of
WHAT = {"images": ALL, "width": ALL, "ratio": WIDE[1:], "network": ["training", "expand", "npo", "rem"]}
GROWS = {"images": "images", "width": "width, over the paper's", "ratio": "theta_o2's width over theta_o1's",
         "network": "network, by its parameters"}
CLASSES, SIDE = 10, 16
LARGE = {"images": 300, "side": 32}  # of torchvision's networks


def subject(axis: str, value) -> dict:
    """Network, data, D_f and settings where one thing of BASE is changed."""
    at = {**BASE, axis: value}
    side, n = (LARGE["side"], LARGE["images"]) if axis == "network" else (SIDE, at["images"])
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)
    data = Data(images, torch.arange(n) % CLASSES, classes=CLASSES, mean=(0.5,) * 3, std=(0.25,) * 3)
    if axis == "network":
        model = build_network(value, CLASSES, side)[0]
    else:
        model = build("resnet9", at["width"], classes=CLASSES, image_size=side, seed=0)
    forget = torch.arange(0, n, 100)
    data.labels[forget] = predict(model, data, forget)  # as learnt, so that there is something to unlearn
    config = Config(width=at["width"], capacity=1.0, ratio=at["ratio"], epochs=1, unlearn_epochs=1, batch=256,
                    gamma=0.0, max_passes=10, lr=0.01, unlearn_lr=1e-4)
    return {"model": model, "data": data, "forget": forget, "config": config}


def work(what: str, model, data: Data, forget: torch.Tensor, config: Config) -> None:
    """An epoch of training, `expand`, or a method."""
    generator = stream(0, "growth")
    if what == "training":
        fit(model, data, None, config, generator)
    elif what == "expand":
        x = next(data.batches(torch.arange(2), dtype=torch.float32))[1]
        expand(model, x, config.extra_ratio, generator=generator)
    else:
        METHODS[what].function(model, data, forget, config, generator)


def child(pipe, what: str, of: dict) -> None:
    """Do the work in a process of its own and send what it took."""
    start, begin = peak(), time.perf_counter()
    work(what, **of)
    pipe.send({"seconds": time.perf_counter() - begin, "start": start, "peak": peak()})


def measure(what: str, axis: str, value, of: dict) -> dict:
    """A row: seconds and peak memory of a process that does one thing alone."""
    context = multiprocessing.get_context("fork")  # with the libraries there, so that no import is measured
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(theirs, what, of))
    process.start()
    theirs.close()
    try:
        found = mine.recv()
    except EOFError:
        raise RuntimeError(f"{what} at {axis} {value} failed, see above") from None
    finally:
        process.join()
    size = sum(p.numel() for p in of["model"].parameters())
    return {"axis": axis, "value": value, "x": size if axis == "network" else value, "what": what, **found}


def slope(rows: list[dict], key) -> float | None:
    """That of the logarithms between the two largest values; None where there is one, or nothing was taken."""
    points = sorted((row["x"], key(row)) for row in rows)[-2:]
    if len(points) < 2 or min(y for _, y in points) <= 0:
        return None
    (x, y), (larger, more) = points
    return math.log(more / y) / math.log(larger / x)


def seconds(row: dict) -> float:
    """What the work took."""
    return row["seconds"]


def memory(row: dict) -> float:
    """MB at the peak, above what the process held before the work."""
    return row["peak"] - row["start"]


def lines_of(rows: list[dict]):
    """Give (axis, what, its rows by growing value) for each line of table and picture."""
    for axis, what in dict.fromkeys((row["axis"], row["what"]) for row in rows):
        own = [row for row in rows if (row["axis"], row["what"]) == (axis, what)]
        yield axis, what, sorted(own, key=lambda row: row["x"])


def values_of(rows: list[dict]) -> list[str]:
    """What has grown, in words."""
    return [f"{row['value']:,}" if row["axis"] == "images" else str(row["value"]) for row in rows]


def table(rows: list[dict]) -> str:
    """The measurements as a Markdown table, values of the axis from left to right."""
    lines = ["| what grows | of | seconds | slope | MB above the start | slope |", "|---|---|---|---|---|---|"]
    for axis, what, own in lines_of(rows):
        cells = [f"{axis} {' / '.join(values_of(own))}", what]
        for key, digits in ((seconds, 2), (memory, 0)):
            found = slope(own, key)
            cells += [" / ".join(f"{key(row):.{digits}f}" for row in own), "" if found is None else f"{found:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(path: Path, rows: list[dict]) -> bool:
    """Seconds and memory against what grows, logarithmic, a column per axis; False where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    axes_there = list(dict.fromkeys(row["axis"] for row in rows))
    figure = Figure(figsize=(3.6 * len(axes_there) + 1.6, 6.4), dpi=110)
    panels = figure.subplots(2, len(axes_there), squeeze=False, sharex="col")
    names = list(dict.fromkeys(row["what"] for row in rows))
    for axis, what, own in lines_of(rows):
        column, style = axes_there.index(axis), names.index(what)
        for panel, key in zip(panels[:, column], (seconds, memory), strict=True):
            panel.plot([row["x"] for row in own], [max(key(row), 0.1 if key is memory else 0) for row in own],
                       marker="os^vD*"[style % 6], color=f"C{style % 10}", linestyle="-" if style < 10 else "--",
                       markersize=4, linewidth=1, label=what)
            logarithmic(panel, [row["x"] for row in own], values_of(own))
        panels[1, column].set_xlabel(GROWS[axis])
    panels[0, 0].set_ylabel("seconds of an epoch")
    panels[1, 0].set_ylabel("peak memory above the start, MB")
    every = {label: handle for panel in panels.flat
             for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(every.values(), every.keys(), loc="center right", fontsize=8)
    figure.tight_layout(rect=(0, 0, 1 - 1.4 / figure.get_figwidth(), 1))
    write_whole(path, lambda file: FigureCanvasAgg(figure).print_png(file))
    return True


def main(argv: list[str] | None = None) -> int:
    """Run the measurements that are not in the file of rows yet, and write table and picture anew."""
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), metavar="AXIS", help=", ".join(AXES))
    p.add_argument("--most", type=float, default=math.inf, help="leave out larger values (default: none)")
    p.add_argument("--what", nargs="+", choices=ALL, default=ALL, metavar="WHAT", help=", ".join(ALL))
    p.add_argument("--out", type=Path, default=ROOT / "results" / "growth", help="folder of rows, table and picture")
    args = p.parse_args(argv)
    torch.set_num_threads(1)  # one thread can be forked
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "growth.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    known = {(row["axis"], row["value"], row["what"]) for row in rows}
    work("rem", **subject("images", 300))  # whatever is imported or built at first use
    for axis in args.axes:
        for value in (value for value in AXES[axis] if axis == "network" or value <= args.most):
            wanted = [what for what in WHAT[axis] if what in args.what and (axis, value, what) not in known]
            of = subject(axis, value) if wanted else {}
            for what in wanted:
                rows.append(measure(what, axis, value, of))
                with open(file, "a") as lines:
                    lines.write(json.dumps(rows[-1]) + "\n")
                print(f"{axis} {value}, {what}: {rows[-1]['seconds']:.2f} s", flush=True)
    (args.out / "growth.md").write_text(table(rows))
    drawn = draw(args.out / "growth.png", rows)
    print(table(rows) + ("" if drawn else "no picture: matplotlib is not installed\n"), end="")
    return 0


if __name__ == "__main__":
    sys.exit(told_in_a_line(main))
