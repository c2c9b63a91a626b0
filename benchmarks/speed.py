"""How fast training and Algorithm 1 are here, as ratios that are measured side by side; one command, on any machine.

    python benchmarks/speed.py                        # a table, a column per device; some minutes on two cores
    python benchmarks/speed.py --out runs/speed.jsonl # appends a row per device, with the machine and the commit

Every repeat runs all the work once, in turn, so that a machine that slows down slows everything; a ratio is the median
over repeats of what is divided within one repeat. Seconds differ from machine to machine, ratios hardly do.
"""

import argparse
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before this file's own folder

from engine.streams import stream  # noqa: E402
from engine.updates import logits_of  # noqa: E402
from experiment.cell import new_model  # noqa: E402
from experiment.datasets import load  # noqa: E402
from experiment.rows import append_row, provenance  # noqa: E402
from experiment.settings import Config, resolve  # noqa: E402
from rem import add_capacity, pass_over_forget, redirect  # noqa: E402
from tasks import discover, make_task  # noqa: E402
from train import fit  # noqa: E402

REPEATS = 3
GEMM = {"cpu": 1024, "cuda": 8192}  # rows and columns of the matrices that the matmul rate is measured with
SHARES = (0.25, 0.5)  # of the training images, beside all of them
TRAINING, CONVENTIONAL, STEP2, STEP3 = "training epoch", "conventional epoch", "step 2, pass", "step 3, epoch"


# --- The work ---------------------------------------------------------------------------------------------------------

class Augmented(Dataset):
    """The same training images for a DataLoader: torchvision's transforms of CPU tensors, one image at a time."""

    def __init__(self, data):
        from torchvision.transforms import v2

        crop = [v2.RandomCrop(tuple(data.shape[1:]), padding=data.pad)] if data.pad else []
        flip = [v2.RandomHorizontalFlip()] if data.flip else []
        self.images = data.images
        self.labels = data.labels
        self.transform = v2.Compose([*crop, *flip, v2.ToDtype(torch.float32, scale=True),
                                     v2.Normalize(data.mean, data.std)])

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.transform(self.images[i]), self.labels[i]


def conventional_epoch(model: nn.Module, loader: DataLoader, config: Config, device: torch.device) -> None:
    """An epoch as most code has it: a DataLoader of this process, SGD with the same settings, a constant rate."""
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum,
                                weight_decay=config.weight_decay)
    model.train()
    for x, y in loader:
        x = x.to(device, memory_format=torch.channels_last)
        loss = F.cross_entropy(logits_of(model, x, config.precision), y.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def all_work(dataset, config: Config, device: torch.device) -> dict:
    """What is measured: functions without arguments by their names, and by (name, share) of a share of the images."""
    task = make_task("poison", dataset, config.n, config.seed)
    data = task.train.to(device)
    model, other, unlearnt = (new_model(config, dataset).to(device) for _ in range(3))
    loader = DataLoader(Augmented(task.train), batch_size=config.batch, shuffle=True)
    generator = stream(config.seed, "training")
    state = add_capacity(unlearnt, data, discover(task, 0.5, config.seed), config, generator)
    state.reference.remember(state)

    def train(index=None) -> None:
        fit(model, data, index, config, generator, epochs=1)

    work = {TRAINING: train, CONVENTIONAL: lambda: conventional_epoch(other, loader, config, device),
            STEP2: lambda: pass_over_forget(state, state.optimizer), STEP3: lambda: redirect(state)}
    order = torch.randperm(len(data), generator=stream(config.seed, "speed"))
    for share in SHARES:
        index = order[: round(share * len(data))]
        work[TRAINING, share] = lambda index=index: train(index)
        work[STEP3, share] = lambda index=index: redirect(state, index=index)
    return work


def matmul(device: torch.device, precision: str, size: int):
    """A function that multiplies two square matrices, in the dtype that training computes in."""
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    a = torch.ones(size, size, dtype=torch.bfloat16 if bf16 else torch.float32, device=device)
    return lambda: a @ a


# --- Measuring --------------------------------------------------------------------------------------------------------

def flops_of(work) -> int:
    """Floating-point operations of matrix products and convolutions, backward ones too, in a call of `work`."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def seconds_of(work, device: torch.device) -> float:
    """Seconds of one call, to the end of what it asked of the device."""
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def peak_memory(device: torch.device) -> float:
    """Most memory so far, in MB: of the process or, on a GPU, of its tensors."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure(dataset, config: Config, device: torch.device, repeats: int, gemm: int) -> dict:
    """Ratios by name, seconds of a training epoch, operations and peak memory on a device.

    Args: dataset: of experiment.datasets; config: n, batch, network and rates; repeats: of all the work, >= 1; gemm:
        rows of the matrices of the matmul rate.
    """
    work = {**all_work(dataset, config, device), "matmul": matmul(device, config.precision, gemm)}
    flops = {name: flops_of(call) for name, call in work.items()}  # a first run of each, which is not timed
    rounds = [{name: seconds_of(call, device) for name, call in work.items()} for _ in range(repeats)]

    def ratio(name, by) -> float:
        return median(seconds[name] / seconds[by] for seconds in rounds)

    n = len(dataset.train)
    ratios = {f"{name} / {TRAINING}": ratio(name, TRAINING) for name in (CONVENTIONAL, STEP2, STEP3)}
    for name in (TRAINING, STEP3):  # operations a second over those of the matmul
        ratios[f"{name}: share of the matmul rate"] = ratio("matmul", name) * flops[name] / flops["matmul"]
    for name in (TRAINING, STEP3):
        for share in SHARES:
            label = f"{name}: time per image, {share:g} of the images / all"
            ratios[label] = ratio((name, share), name) * n / round(share * n)
    return {"ratios": ratios, "seconds": median(seconds[TRAINING] for seconds in rounds),
            "flops": {name: flops[name] for name in (TRAINING, STEP3)}, "peak": peak_memory(device), "images": n,
            "repeats": repeats, "gemm": gemm}


def table(rows: list[dict]) -> str:
    """A Markdown table, a column per row of measurements."""
    lines = [["", *(row["device"] for row in rows)], ["---"] * (1 + len(rows))]
    lines += [[name, *(f"{row['ratios'][name]:.3g}" for row in rows)] for name in rows[0]["ratios"]]
    lines.append([f"{TRAINING}, seconds", *(f"{row['seconds']:.3g}" for row in rows)])
    lines.append(["peak memory, MB", *(f"{row['peak']:.0f}" for row in rows)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(argv: list[str] | None = None) -> int:
    """Measure on the CPU and, where there is one, on the GPU; print the table; append the rows to --out."""
    argv = sys.argv[1:] if argv is None else argv
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--out", help="file to which a JSON line per device is appended (default: none)")
    p.add_argument("--images", type=int, default=6000, help="first training images that are taken (default: all 6000)")
    p.add_argument("--repeats", type=int, default=REPEATS, help=f"of all the work (default: {REPEATS})")
    p.add_argument("--gemm", type=int, help=f"rows of the matrices of the matmul rate (default: {GEMM})")
    args = p.parse_args(argv)
    if args.repeats < 1 or args.images < 100:
        p.error(f"--repeats is {args.repeats} and --images {args.images}; give at least 1 repeat and 100 images")
    dataset, rows = load("fashion-mini"), []
    train = dataset.train
    train = replace(train, images=train.images[: args.images], labels=train.labels[: args.images])
    config = resolve({"task": "poison", "n": len(train) // 50})
    for device in map(torch.device, ["cpu"] + ["cuda"] * torch.cuda.is_available()):
        found = measure(replace(dataset, train=train), config, device, args.repeats, args.gemm or GEMM[device.type])
        rows.append({**provenance(device, argv), **found})
        if args.out:
            append_row(args.out, rows[-1])
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
