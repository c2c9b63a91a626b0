"""How outcomes spread over machines: the measurements of claims.py per CPU capability and threads.

    python tests/spread.py --out runs/spread.jsonl            # 3 capabilities x {1, 2} threads x seeds 0-4
    python tests/spread.py --out runs/spread.jsonl --table    # the table alone

It goes on where it stopped. Each run is a process of its own with ONEDNN_MAX_CPU_ISA and OMP_NUM_THREADS set, and
appends a line of JSON. Under a capability that the CPU lacks oneDNN takes the best that it has, so the table says what
the CPU's own is.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

import torch

ROOT = Path(__file__).resolve().parent.parent
ISAS = ("SSE41", "AVX2", "default")
KINDS = ("rem", "rem-plus", "lasting", "etd", "sticker", "score")  # of claims.py
K = 5  # standard errors between the mean and a bound, see README.md
FEWER = {"rem": 4}  # Choice: REM as printed heals one network more than another, so that its SD is mostly that of seeds
TESTED = 3  # seeds that a test takes the mean of


def environment(isa: str, threads: int) -> dict[str, str]:
    """Variables of a run. Threads that wait do not spin: it changes no number, and busy machines are not held up."""
    clean = {name: value for name, value in os.environ.items() if name != "ONEDNN_MAX_CPU_ISA"}
    more = {} if isa == "default" else {"ONEDNN_MAX_CPU_ISA": isa}
    more |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "PYTHONDONTWRITEBYTECODE": "1"}
    return clean | more


def claims_of(kinds: list[str], isa: str, threads: int, seed: int) -> list[dict]:
    """Rows of the outcome measurements of a seed."""
    argv = [sys.executable, ROOT / "tests/claims.py", str(seed), *kinds]
    done = subprocess.run(argv, env=environment(isa, threads), capture_output=True, text=True)
    print(done.stderr, end="", file=sys.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


def rows_of(path: Path) -> list[dict]:
    """Rows of a file; a last line that a kill cut short is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            print(f"left out of {path}: {line[:60]!r}", file=sys.stderr)
    return rows


def collect(asked) -> bool:
    """Make the runs that the file lacks; whether all of them are there."""
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    have = {(row["kind"], row["isa"], row["threads"], row["seed"]) for row in rows_of(asked.out)}
    if asked.out.exists() and not asked.out.read_text().endswith("\n"):
        asked.out.write_text(asked.out.read_text() + "\n")
    complete = True
    for seed in asked.seeds:
        for threads in asked.threads:
            for isa in asked.isa:
                kinds = [kind for kind in asked.kinds if (kind, isa, threads, seed) not in have]
                if not kinds:
                    continue
                began = time.time()
                made = claims_of(kinds, isa, threads, seed)
                origin = {"isa": isa, "threads": threads, "seed": seed, "torch": torch.__version__,
                          "native": torch.backends.cpu.get_cpu_capability(), "seconds": round(time.time() - began, 1)}
                with asked.out.open("a") as file:
                    file.writelines(json.dumps(row | origin) + "\n" for row in made)
                complete &= {row["kind"] for row in made} == set(kinds)
                print(f"seed {seed}  {threads} threads  {isa:7s}  {origin['seconds']:6.1f} s", file=sys.stderr)
    return complete


ORIGIN = {"kind", "isa", "threads", "seed", "torch", "native", "seconds"}


def table(rows: list[dict]) -> str:
    """Markdown: each number's mean, SD and range over all runs, the most that one seed's moves, and bounds."""
    values = defaultdict(dict)  # (kind, name) -> (isa, threads, seed) -> number
    for row in rows:
        for name in row.keys() - ORIGIN:
            values[row["kind"], name][row["isa"], row["threads"], row["seed"]] = row[name]
    lines = [f"| measured | runs | mean | SD | least | most | one seed moves by | mean of {TESTED} +- {K} SEM |",
             "|---|---|---|---|---|---|---|---|"]
    for kind, name in sorted(values):
        cells = values[kind, name]
        of_seed = defaultdict(list)
        for (_, _, seed), value in cells.items():
            of_seed[seed].append(value)
        moves = max(max(part) - min(part) for part in of_seed.values())
        mean, sd = fmean(cells.values()), stdev(cells.values()) if len(cells) > 1 else math.nan
        low, high = (mean + sign * K * sd / TESTED**0.5 for sign in (-1, 1))
        lines.append(f"| {kind}: {name} | {len(cells)} | {mean:.3f} | {sd:.3f} | {min(cells.values()):.3f} | "
                     f"{max(cells.values()):.3f} | {moves:.3f} | {low:.2f} to {high:.2f} |")
    return "\n".join(lines)


def machines(rows: list[dict]) -> str:
    """What the rows were made on."""
    made = {f"{row['native']}, torch {row['torch']}" for row in rows}
    return f"Made on: {'; '.join(sorted(made))}. ISA: {', '.join(sorted({row['isa'] for row in rows}))}."


def parse(argv=None) -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file of rows, appended to")
    parser.add_argument("--isa", nargs="+", choices=ISAS, default=list(ISAS), help="ONEDNN_MAX_CPU_ISA")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="OMP_NUM_THREADS")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--table", action="store_true", help="print the table of the file and run nothing")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    """Collect, then print; 1 where a run failed."""
    asked = parse(argv)
    complete = asked.table or collect(asked)
    rows = rows_of(asked.out)
    if rows:
        print(f"{machines(rows)}\n\n{table(rows)}")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
