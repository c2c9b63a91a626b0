"""What `repair` costs against the number of images: seconds and peak memory, in memory and streamed.

    python benchmarks/scale.py                       # 1,500 to 60,000 images: rows, table, picture in results/scale
    python benchmarks/scale.py --sizes 1500 --out runs/scale

Every measurement is a process of its own that reads image files, repairs an untrained network for
one epoch and says what it took. The images are drawn: what they show changes neither time nor memory.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from experiment.console import told_in_a_line  # noqa: E402
from repair.images import Reading, load_images  # noqa: E402
from models import build  # noqa: E402
from repair.network import repair_quietly  # noqa: E402
from experiment.files import write_whole  # noqa: E402

SIZES = (1500, 6000, 15000, 60000)
# name: workers; None: in memory
MODES = {"in memory": None, "streamed, 0 workers": 0, "streamed, 1 worker": 1, "streamed, 2 workers": 2}
CLASSES, SIDE = 10, 32
COLUMNS = ("images", "mode", "load s", "repair s", "peak MB", "above the start MB")


def draw_files(folder: Path, n: int) -> None:
    """n PNG files of SIDE x SIDE smooth noise, named by number."""
    generator = torch.Generator().manual_seed(0)
    for i in range(n):
        coarse = torch.randint(0, 256, (1, 3, 8, 8), generator=generator).float()
        image = torch.nn.functional.interpolate(coarse, size=SIDE, mode="bilinear")[0].round().to(torch.uint8)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:06d}.png")


def peak() -> float:
    """Most memory of this process so far, in MB; without its workers."""
    unit = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, kB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure(folder: Path, n: int, workers: int | None, capacity: float) -> dict:
    """Read n files and repair a network for one epoch: seconds, peak memory, and a sum that tells the result.

    Args: workers: of Streamed; None: images in memory. Returns: of this process, whose peak is told.
    """
    torch.set_num_threads(1)
    start, begin = peak(), time.perf_counter()
    paths, labels = sorted(folder.glob("*.png"))[:n], torch.arange(n) % CLASSES
    reading = Reading(SIDE, mean=(0.5,) * 3, std=(0.25,) * 3)
    data, _ = load_images(paths, labels, CLASSES, reading, workers, room=float("inf") if workers is None else 0)
    model = build("resnet9", capacity, classes=CLASSES, image_size=SIDE, seed=0).eval()
    loaded = time.perf_counter()
    forget = torch.arange(0, n, 50)
    repaired = repair_quietly(model, data, forget, unlearn_epochs=1, max_passes=2)
    done = time.perf_counter()
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    total = sum(float(p.double().abs().sum()) for p in repaired.parameters())
    return {"load_seconds": loaded - begin, "seconds": done - loaded, "peak": peak(), "start": start,
            "worker_peak": children if workers else 0.0, "sum": total}


def run_mode(folder: Path, n: int, mode: str, capacity: float) -> dict:
    """One measurement, in a process of its own."""
    workers = MODES[mode]
    words = [str(Path(__file__).resolve()), "--measure", str(folder), "--sizes", str(n), "--capacity", str(capacity)]
    words += [] if workers is None else ["--workers", str(workers)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(f"{mode} at {n} images failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("{"))
    return {"n": n, "mode": mode, "workers": workers, "capacity": capacity, **json.loads(line)}


def table(rows: list[dict]) -> str:
    """The measurements as a Markdown table; memory of the first process, and of its workers the largest times their
    number."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        memory = row["peak"] + (row["workers"] or 0) * row["worker_peak"]
        cells = (f"{row['n']:,}", row["mode"], f"{row['load_seconds']:.1f}", f"{row['seconds']:.1f}", f"{memory:.0f}",
                 f"{row['peak'] - row['start']:.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def logarithmic(axes, values: list, labels: list[str]) -> None:
    """Both axes logarithmic; ticks at these values of x and at 1, 2, 5, 10 ... of y."""
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(values, labels)
    axes.set_xticks([], minor=True)
    axes.yaxis.get_minor_locator().set_params(subs=(2, 5))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(which="both", labelsize=8)


def draw(path: Path, rows: list[dict]) -> bool:
    """Seconds and memory above the start against N, a line a mode; False where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(9, 4), dpi=120)
    for axes, title, value in zip(figure.subplots(1, 2), ("seconds of an epoch", "peak memory above the start, MB"),
                                  (lambda row: row["seconds"], lambda row: row["peak"] - row["start"]), strict=True):
        for style, mode in enumerate(dict.fromkeys(row["mode"] for row in rows)):
            part = [row for row in rows if row["mode"] == mode]
            axes.plot([row["n"] for row in part], [value(row) for row in part], label=mode, marker="os^vD*"[style],
                      linestyle="-" if part[0]["workers"] is None else "--")
        sizes = sorted({row["n"] for row in rows})
        logarithmic(axes, sizes, [f"{n:,}" for n in sizes])
        axes.set_xlabel("images")
        axes.set_title(title, fontsize=10)
    axes.legend(fontsize=7)
    figure.tight_layout()
    write_whole(path, lambda file: FigureCanvasAgg(figure).print_png(file))
    return True


def main(argv: list[str] | None = None) -> int:
    """Run the measurements that are not in the file of rows yet, and write table and picture anew."""
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of images")
    p.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), metavar="MODE", help=", ".join(MODES))
    p.add_argument("--capacity", type=float, default=0.1, help="width of ResNet-9 (default: 0.1)")
    p.add_argument("--out", type=Path, default=ROOT / "results" / "scale", help="folder of rows, table and picture")
    p.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    p.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.measure:
        found = measure(args.measure, args.sizes[0], args.workers, args.capacity)
        print(json.dumps(found))
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "scale.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    known = {(row["n"], row["mode"], row["capacity"]) for row in rows}
    left = [(n, mode) for n in args.sizes for mode in args.modes if (n, mode, args.capacity) not in known]
    with tempfile.TemporaryDirectory() as folder:
        draw_files(Path(folder), max((n for n, _ in left), default=0))
        for n, mode in left:
            rows.append(run_mode(Path(folder), n, mode, args.capacity))
            with open(file, "a") as lines:
                lines.write(json.dumps(rows[-1]) + "\n")
            print(f"{n} images, {mode}: {rows[-1]['seconds']:.1f} s", flush=True)
    rows = [row for row in rows if row["capacity"] == args.capacity]  # a table and a picture are of one width
    (args.out / "scale.md").write_text(table(rows))
    drawn = draw(args.out / "scale.png", rows)
    print(table(rows) + ("" if drawn else "no picture: matplotlib is not installed\n"), end="")
    return 0


if __name__ == "__main__":
    sys.exit(told_in_a_line(main))
