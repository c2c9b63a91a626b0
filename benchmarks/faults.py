"""Kill repair, grid and suspects at random moments, give the same command again, compare with an uninterrupted run.

    python benchmarks/faults.py                                     # 27 kills of repair, 17 of grid, 6 of suspects
    python benchmarks/faults.py --repair 2 --grid 0 --suspects 0 --seed 7
    python benchmarks/faults.py --stop SIGTERM                      # as a batch system does; SIGINT is Ctrl-C

Each command runs once to its end on small drawn images. Then, for each kill, it begins in a folder of its own, is
killed at a moment drawn from the time between its first line and its end, with all of its processes, and given again to
its end. What is left is compared: the weights byte by byte, the list of suspects, the scores and settings of the
report; each row but for its times and places, each cell once. A line per kill, then a sum; exit code 1 if anything
differs, or ends otherwise than well.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from engine.streams import stream  # noqa: E402
from experiment.console import told_in_a_line  # noqa: E402
from examples.repair import draw_shapes, put_sticker, write_images  # noqa: E402
from experiment.data import Data  # noqa: E402
from experiment.settings import Config  # noqa: E402
from models import build  # noqa: E402
from train import fit  # noqa: E402

SIZE, KNOWN = 16, 6  # pixels per side; known bad images
TIMES = {"seconds", "train_seconds", "argv", "out", "threads"}  # of a row: what two runs may differ in
WORDS = ("repair", "grid", "suspects")


# --- A small world ----------------------------------------------------------------------------------------------------

def draw_world(folder: Path, seed: int) -> None:
    """Images with stickers and wrong labels, a network that was trained on them, a list of the known ones."""
    generator = stream(seed, "faults")
    images, labels = draw_shapes(240, generator, SIZE)
    bad = (labels != 0).nonzero()[:, 0][: 2 * KNOWN]
    images[bad], labels[bad] = put_sticker(images[bad], generator), 0
    look = dict(classes=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    data = Data(images, labels, **look)
    paths = write_images(folder / "train", data)
    write_images(folder / "test", Data(*draw_shapes(60, generator, SIZE), **look))
    model = build("resnet9", 0.125, classes=3, image_size=SIZE, seed=seed)
    fit(model, data, None, Config(epochs=10, batch=16, lr=0.02), stream(seed, "training"))
    torch.save(model.state_dict(), folder / "model.pt")
    (folder / "bad.txt").write_text("".join(f"{paths[i].relative_to(folder)}\n" for i in bad[:KNOWN]))


def command(word: str, world: Path, out: Path, number: int) -> list[str]:
    """The command of a trial; every third grid has two cells at a time."""
    if word == "repair":
        given = ["--data", world, "--model", "resnet9:0.125", "--image-size", SIZE, "--checkpoint", world / "model.pt",
                 "--bad", world / "bad.txt", "--out", out / "repaired.pt", "--epochs", 4, "--batch-size", 16, "--force",
                 "--device", "cpu", "--mean", 0.485, 0.456, 0.406, "--std", 0.229, 0.224, 0.225]
    else:
        given = ["--dataset", "folder", "--data-dir", world, "--image-size", SIZE, "--n", 12, "--width", 0.25,
                 "--epochs", 4, "--batch", 32, "--unlearn-epochs", 2, "--discovery", 0.5, "--seeds", "0,1",
                 "--device", "cpu"]
    if word == "grid":
        given += ["--tasks", "poison,random", "--methods", "no-ul,cf,npo,rem", "--out", out]
        given += ["--jobs", 2] if number % 3 == 2 else []
    if word == "suspects":
        given += ["--task", "poison,random", "--rounds", 2, "--out", out / "scores.jsonl"]
    return [sys.executable, str(ROOT / "run.py"), word, *map(str, given)]


# --- One run ----------------------------------------------------------------------------------------------------------

class Run:
    """A command in a group of its own; its lines and when they came."""

    def __init__(self, argv: list[str], threads: int):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        self.begin, self.lines, self.times, self.first = time.perf_counter(), [], [], threading.Event()
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                        errors="replace", env=environment, start_new_session=True)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self) -> None:
        for line in self.process.stdout:
            self.times.append(time.perf_counter() - self.begin)
            self.lines.append(line.rstrip())
            self.first.set()
        self.first.set()  # of a command that prints nothing, too

    def end(self) -> int:
        """Wait for its end; the exit code."""
        code = self.process.wait()
        self.reader.join()
        return 0 if code == 3 else code  # the verdict on a repair is no failure

    def kill(self, kind: int) -> bool:
        """Send a signal to all of its processes; whether it was still running."""
        if self.process.poll() is not None:
            return False
        os.killpg(self.process.pid, kind)
        self.end()
        return True


def left_by(word: str, out: Path) -> dict:
    """What a command has left, without what two runs may differ in."""
    if word == "repair":
        report = json.loads((out / "repaired.json").read_text())
        return {"weights": hashlib.sha256((out / "repaired.pt").read_bytes()).hexdigest(),
                "suspects.csv": hashlib.sha256((out / "suspects.csv").read_bytes()).hexdigest(),
                "report": {name: report[name] for name in ("scores", "settings", "images", "classes")}}
    found = {}
    for line in (out / ("cells.jsonl" if word == "grid" else "scores.jsonl")).read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # torn by the kill; the row that follows it is whole
            continue
        key = tuple(row.get(name) for name in ("task", "method", "seed", "discovery", "score", "round", "user"))
        place = f"row {', '.join(str(part) for part in key if part is not None)}"
        found[f"{place} (again)" if place in found else place] = {k: v for k, v in row.items() if k not in TIMES}
    return found


def differences(whole: dict, found: dict) -> list[str]:
    """The names of what differs."""
    return [name for name in whole | found if whole.get(name) != found.get(name)]


# --- Trials -----------------------------------------------------------------------------------------------------------

def trial(word: str, number: int, world: Path, out: Path, work: float, draws: random.Random, kind: int,
          threads: int) -> tuple[str, bool, dict | None]:
    """Kill one run and give its command again: words about it, whether it went on from something, what is left."""
    argv, share = command(word, world, out, number), draws.random()
    while True:
        out.mkdir(exist_ok=True)
        first = Run(argv, threads)
        first.first.wait()
        time.sleep(share * work)
        if first.kill(kind):
            break
        share *= 0.8  # it was faster this time, and has ended: once more from the beginning
        for path in sorted(out.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    kept = sorted(path.name for path in out.rglob("*") if path.is_file())
    where = first.lines[-1][:40] if first.lines else ""
    again = Run(argv, threads)
    code = again.end()
    words = f"killed at {share:4.0%} of the work, after {len(first.lines)} lines ({where}); {len(kept)} files then"
    if code:
        return f"{words}; again: exit {code}: {again.lines[-1] if again.lines else ''}", False, None
    went_on = any("going on after" in line for line in again.lines) if word == "repair" else any(
        name.endswith((".jsonl", ".task")) for name in kept)
    return words, went_on, left_by(word, out)


def play(word: str, kills: int, world: Path, folder: Path, seed: int, kind: int, threads: int) -> int:
    """All kills of one command; the number of those after which something differs."""
    folder.mkdir()
    whole_run = Run(command(word, world, folder / "whole", 0), threads)
    if whole_run.end():
        print(f"{word}: the uninterrupted run failed: {whole_run.lines[-1]}")
        return 1
    whole, work = left_by(word, folder / "whole"), whole_run.times[-1] - whole_run.times[0]
    print(f"{word}: uninterrupted {whole_run.times[-1]:.1f} s, {work:.1f} s from its first line", flush=True)
    draws, wrong, on, torn = random.Random(f"{seed} {word}"), 0, 0, 0
    for number in range(kills):
        out = folder / str(number)
        words, went_on, found = trial(word, number, world, out, work, draws, kind, threads)
        odd = ["the exit code"] if found is None else differences(whole, found)
        wrong, on = wrong + bool(odd), on + went_on
        torn += sum(1 for _ in out.rglob("*.tmp"))
        print(f"{word:<9}{number + 1:>3}/{kills}  {words}; {'went on' if went_on else 'began anew'}: "
              f"{'DIFFERS in ' if odd else 'the same'}{', '.join(odd[:3])}", flush=True)
    print(f"{word}: {kills} kills, {on} went on and {kills - on} began anew, {wrong} differ; {torn} temporary files "
          "left", flush=True)
    return wrong


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for word, kills in zip(WORDS, (27, 17, 6), strict=True):
        text = f"kills of {word} (default: {kills})"
        p.add_argument(f"--{word}", type=int, default=kills, metavar="KILLS", help=text)
    p.add_argument("--seed", type=int, default=0, help="of the images and the moments (default: 0)")
    p.add_argument("--threads", type=int, default=1, help="of each process (default: 1)")
    p.add_argument("--stop", default="SIGKILL", help="the signal: SIGKILL, SIGTERM or SIGINT (default: SIGKILL)")
    args = p.parse_args()
    if args.stop not in ("SIGKILL", "SIGTERM", "SIGINT"):
        p.error(f"--stop is {args.stop}; give SIGKILL, SIGTERM or SIGINT")
    torch.set_num_threads(1)
    asked = {word: getattr(args, word) for word in WORDS if getattr(args, word) > 0}
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        world = Path(folder, "world")
        draw_world(world, args.seed)
        wrong = sum(play(word, kills, world, Path(folder, word), args.seed, getattr(signal, args.stop), args.threads)
                    for word, kills in asked.items())
    print(f"{sum(asked.values())} kills, seed {args.seed}, {args.stop}: {wrong} differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(told_in_a_line(main))
