"""The whole grid: many cells, each original trained once, killed and resumed at will, over jobs, GPUs and machines.

    python run.py grid --tasks all --discovery 0.1:1.0:0.1 --methods all --seeds 0,1,2 --out runs/all
    python run.py grid --preset table1 --data-dir data --dry-run              # what there is to do
    torchrun --nproc-per-node 8 -- run.py grid --preset table1 --out runs/t1  # a rank has its own originals and file
    python run.py report runs/all                                             # tables and figures out of the rows

A cell that has its row in --out is skipped, so the same command goes on where it was killed.
"""

import argparse
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch

from baselines import no_ul
from experiment.cell import attempt, with_true_n, draw_forget, unlearn
from experiment.console import LONG, Parser, flag, flags, progress, tell
from experiment.files import check_writable
from experiment.methods import code_of, find_method
from experiment.rows import append_row, failure_of, provenance, row_of
from experiment.settings import Config, OF_THE_RUN
from study.originals import (check_cells, check_originals, dataset_of, device_of, from_torchrun, images_of,
                             load_original, make_original, where_of)
from study.plan import PRESETS, by_original, expand_axes, original_of, overview, preset
from study.rows import cell_key, read_rows, rows_by_cell

PLURAL = {"task": "tasks", "method": "methods", "seed": "seeds"}  # either is a flag
DIED = "the worker process died (killed, or out of memory)"

# --- Command line -----------------------------------------------------------------------------------------------------

def add_arguments(p: Parser) -> None:
    """A flag per axis, each taking a list, and those of the grid; of the axes only what was given gets a value."""
    p.epilog = "Lists: 1,2 or first:last:step; all for tasks and methods; on, off or both for switches."
    p.add_argument("--preset", help=f"the cells of a table or figure of the paper: {', '.join(PRESETS)}")
    p.add_argument("--jobs", type=int, default=1, help="cells at a time on this device (default: 1)")
    p.add_argument("--dry-run", action="store_true", help="show what there is to do and write no row")
    p.add_argument("--retry-failed", action="store_true", help="do failed cells anew, and damaged originals")
    for group, f, text in flags(p):
        names = [flag(name) for name in (f.name, PLURAL.get(f.name)) if name]
        more = {"action": "store_true"} if f.name in ("download", "quiet") else {"metavar": "LIST"}
        if f.name in ("data_dir", "device", "human_labels", "out"):
            more = {"metavar": f.name.split("_")[-1].upper()}
        text = "folder of the grid (default: runs/grid)" if f.name == "out" else text
        group.add_argument(*names, dest=f.name, default=argparse.SUPPRESS, help=text, **more)


def main(given: dict, argv: list[str]) -> int:
    """Run `run.py grid`; returns the exit code: 0, 1 if a cell failed, now or before. Bad input raises ValueError."""
    jobs, dry, retry, name = (given.pop(key) for key in ("jobs", "dry_run", "retry_failed", "preset"))
    if jobs < 1:
        raise ValueError(f"--jobs is {jobs}; it must be at least 1")
    rank, world = place_in_world()
    folder, cells = cells_of(given, name, rank, world)
    cells = [with_true_n(cell, dataset_of(cell)) if cell.task == "human" else cell for cell in cells]
    check_cells(cells)
    groups = shard_cells(by_original(cells), rank, world)
    found = {where: images_of(cell) for where, cell in {where_of(cell): cell for cell in cells}.items()}
    images, others = {cell_key(cell): found[where_of(cell)] for _, group in groups for cell in group}, []
    rows = rows_by_cell(read_rows(folder), images, others)
    warn_of_other_images(set(others) & images.keys() - rows.keys(), folder)
    remaining = left_to_do(groups, rows, retry)
    if not dry:
        check_writable(cells[0].out)
        check_originals(folder, [original for original, _ in remaining])
    if dry or not given.get("quiet"):
        print_line(overview(groups, remaining, rows, every=dry))
    if dry:
        return 0
    left = {cell_key(cell) for _, group in remaining for cell in group}
    done = [rows[key] for _, group in groups for cell in group if (key := cell_key(cell)) not in left]
    origin = provenance(device_of(cells[0]), argv)
    warn_of_other_code(done, origin)
    failed = work_through(remaining, folder, jobs, origin, retry, Lines(len(left), given.get("quiet", False)))
    before = sum(row["status"] != "ok" for row in done)
    print_line(f"{len(left)} cells done, {failed} of them failed"
        + (f", {before} failed before (--retry-failed does them anew)" if before else "") + f"; rows in {folder}")
    meet_ranks(stay=bool(failed or before))
    return 1 if failed or before else 0


def cells_of(given: dict, name: str | None, rank: int, world: int) -> tuple[Path, list[Config]]:
    """The grid's folder, and its cells as the flags or a preset name them; each rank writes a file of its own there."""
    place = {key: value for key, value in given.items() if key in OF_THE_RUN}
    axes = {key: value for key, value in given.items() if key not in OF_THE_RUN}
    folder = place.pop("out", "runs/grid")
    if not folder:
        raise ValueError("--out is empty; name the folder of the grid")
    out = Path(folder) / ("cells.jsonl" if world == 1 else f"cells-{rank}.jsonl")
    if "folder" in map(str.strip, axes.get("dataset", "").split(",")):  # another one in another working directory
        place["data_dir"] = str(Path(place.get("data_dir", Config.data_dir)).resolve())
    if place.get("human_labels"):
        place["human_labels"] = str(Path(place["human_labels"]).resolve())
    cells = expand_axes(axes) if name is None else preset(name, axes)
    return Path(folder), [replace(cell, **{**place, "out": str(out)}) for cell in cells]


def warn_of_other_images(keys: set[str], folder: Path) -> None:
    """Say on stderr how many cells have rows of other images alone, which are not done."""
    if keys:
        tell(f"warning: {len(keys)} cells have rows in {folder} that are of other images, which have changed since; "
             "these do not count as done and the cells are computed again (to keep the two apart, take another --out)")


def warn_of_other_code(rows: list[dict], origin: dict) -> None:
    """Say on stderr which other commits made the rows that count as done."""
    if others := {str(row.get("git"))[:7] for row in rows} - {str(origin["git"])[:7]}:
        tell(f"warning: done cells come from other commits of the code, {', '.join(sorted(others))}; to do them anew, "
             "take another --out")


def meet_ranks(stay: bool) -> None:
    """Under torchrun tell the other ranks that this one is done, and if `stay`, stay until they are too.

    torchrun ends every rank as soon as one exits with an error, so a rank with a failed cell leaves last.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        with contextlib.suppress(RuntimeError):  # the others are gone
            store, rank, world = next(torch.distributed.rendezvous("env://"))
            store.set(f"grid done {rank}", "")
            store.wait([f"grid done {other}" for other in range(world if stay else 0)], timedelta(days=365))


def place_in_world() -> tuple[int, int]:
    """(rank, number of ranks) as torchrun sets them; (0, 1) without it."""
    rank, world = from_torchrun("RANK", 0), from_torchrun("WORLD_SIZE", 1)
    if not 0 <= rank < world:
        raise ValueError(f"RANK is {rank} and WORLD_SIZE {world}; start the grid with torchrun or without both")
    return rank, world


def shard_cells(groups: list, rank: int, world: int) -> list:
    """A rank's part of the groups (original, cells), the same whichever rank asks: dealt in turn, the largest first."""
    return groups if world == 1 else sorted(groups, key=lambda group: -len(group[1]))[rank::world]


# --- What there is to do ----------------------------------------------------------------------------------------------

def left_to_do(groups, rows: dict[str, dict], retry: bool) -> list[tuple[Config, list[Config]]]:
    """The groups without the cells that have a row; a failed one counts as done unless `retry`."""
    done = {key for key, row in rows.items() if row["status"] == "ok" or not retry}
    left = [(original, [cell for cell in cells if cell_key(cell) not in done]) for original, cells in groups]
    return [(original, cells) for original, cells in left if cells]


# --- Doing it ---------------------------------------------------------------------------------------------------------

def work_through(remaining, folder: Path, jobs: int, origin: dict, retry: bool, lines: "Lines") -> int:
    """Train the originals and run the cells, up to `jobs` at a time; a row for each as it ends.

    Args: remaining: [(original, cells)]; folder: of the grid; jobs: 1 runs everything in this process, more in worker
        processes; origin: where the rows come from, see experiment.rows.provenance; retry: make damaged originals again;
        lines: print what is done.
    Returns: the number of cells that failed.
    """
    new, ready, running, failed = deque(remaining), deque(), {}, 0  # ready: (None, [cell]) whose original is there
    with Workers(jobs) as workers:
        while new or ready or running:
            while len(running) < jobs and (new or ready):
                original, cells = ready.popleft() if ready else new.popleft()
                training = make_original, original, str(folder), retry
                work = (run_cell, *cells, str(folder), origin) if original is None else training
                running[workers.submit(*work)] = original, cells
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                original, cells = running.pop(future)
                rows = rows_of(future, original, cells, origin, lines)
                ready.extend((None, [cell]) for cell in cells if not rows)  # the original has trained
                for row in rows:
                    append_row(row["out"], row)
                    failed += row["status"] != "ok"
                    lines.cell(row)
    return failed


def rows_of(future: Future, original: Config | None, cells: list[Config], origin: dict, lines) -> list[dict]:
    """The rows that a finished piece of work gives: none for an original that trained, else one per cell."""
    error = future.exception()
    if isinstance(error, BrokenPipeError) or (original is not None and isinstance(error, OSError)):
        raise error  # nobody reads the output, or what was trained cannot be kept: no row says more
    failure = error and (DIED if isinstance(error, BrokenProcessPool) else f"{type(error).__name__}: {error}")
    if original is None:
        return [failed_row(cells[0], origin, failure) if failure else future.result()]
    seconds, problem = (None, failure) if failure else future.result()
    if problem is None:
        lines.original(original, seconds)
        return []
    return [failed_row(cell, origin, f"training: {problem}") for cell in cells]


def failed_row(cell: Config, origin: dict, error: str) -> dict:
    """The row of a cell that gave no numbers."""
    return row_of(cell, code_of(cell.method), {**origin, "images": images_if_any(cell)},
                  {"train_seconds": None, **failure_of(error)})


def images_if_any(cell: Config) -> str | None:
    """The fingerprint of a cell's images, as they were read here; None where they cannot be read any more."""
    try:
        return images_of(cell)
    except Exception:  # the row tells what is wrong
        return None


def run_cell(cell: Config, folder: str, origin: dict) -> dict:
    """One cell: its original from the file, the method, the scores; whatever goes wrong is in the row."""
    code = code_of(cell.method)  # of what `measure` is about to load
    row, _, failure = attempt(lambda: measure(cell, folder))
    if failure:
        row = {"train_seconds": None, **failure_of(failure)}
    found = {**origin, "threads": torch.get_num_threads(), "images": images_if_any(cell)}
    return row_of(cell, code, found, row)


def measure(cell: Config, folder: str) -> dict:
    """The measured half of a cell's row. What a method that trains alone makes is there already."""
    original = original_of(cell)
    task, network, seconds = load_original(original, folder)
    forget = draw_forget(cell, task)
    if original.method:
        row = unlearn(replace(cell, quiet=True), cell.method, no_ul, network, task, forget)
        return {"train_seconds": None, **row, "seconds": seconds}
    with progress(f"{cell.task:<11}{cell.discovery:<6g}{cell.method}, seed {cell.seed}", cell.quiet, LONG) as log:
        return {"train_seconds": seconds, **unlearn(cell, *find_method(cell.method), network, task, forget, log)}


def print_line(line: str) -> None:
    """Print a line in one write: ranks share a terminal, and an unbuffered print writes its end apart from its text."""
    print(line + "\n", end="", flush=True)


class Lines:
    """One aligned line per finished cell, with the time left at the mean pace so far."""

    def __init__(self, total: int, quiet: bool):
        self.total, self.quiet, self.done, self.begin = total, quiet, 0, time.perf_counter()

    def original(self, original: Config, seconds: float | None) -> None:
        """An original network is there; it took so long, or None where it was there before."""
        if seconds is not None and not self.quiet:
            kind = original.method or "the original"
            etd = ", with ETD" if original.etd else ""
            print_line(f"{'':<13}{original.task:<11}trained {kind}, seed {original.seed}{etd}: {seconds:.1f} s")

    def cell(self, row: dict) -> None:
        """A cell has its row."""
        self.done += 1
        left = (time.perf_counter() - self.begin) / self.done * (self.total - self.done)
        scores = "  ".join(f"{name} {100 * (row[name] or 0):5.1f}" for name in ("healed", "utility", "product"))
        scores = f"{scores}  {row['seconds']:8.1f} s" if row["status"] == "ok" else row["error"]
        task = row["trigger"] if row["task"] == "poison" and row["trigger"] != "patch" else row["task"]
        cell = f"{task:<10} {row['discovery']:<5g} {row['method']:<12} {'etd' if row['etd'] else '':<4}"
        done = f"[{self.done:>5}/{self.total:<5}]"
        if not self.quiet:
            print_line(f"{done} {cell}seed {row['seed']}  {scores}  {left / 60:8.1f} min left")


class Workers:
    """Runs work here (jobs = 1) or in processes of their own; one that dies takes its own work alone with it."""

    def __init__(self, jobs: int):
        self.jobs, self.idle, self.busy = jobs, [], {}  # pools of one process each; Future -> its pool

    def __enter__(self):
        return self

    def __exit__(self, kind, *error):
        if kind is not None:  # Ctrl-C or a full disk: nobody waits for what still runs
            for process in multiprocessing.active_children():
                process.terminate()
        for pool in [*self.idle, *self.busy.values()]:
            pool.shutdown(cancel_futures=True)

    def submit(self, work, *args) -> Future:
        """A Future of work(*args)."""
        if self.jobs > 1:
            self.idle += [self.busy.pop(future) for future in list(self.busy) if future.done()]
            while True:
                pool = self.idle.pop() if self.idle else self.new_pool()
                with contextlib.suppress(BrokenProcessPool):  # its process is dead: the next one
                    future = pool.submit(work, *args)
                    self.busy[future] = pool
                    return future
        future = Future()
        try:
            future.set_result(work(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def new_pool(self) -> ProcessPoolExecutor:
        """A process with its share of the cores."""
        threads = max(1, torch.get_num_threads() // self.jobs)
        return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), begin_work, (threads,))


def begin_work(threads: int) -> None:
    """Make a process a worker: its share of the cores, deaf to Ctrl-C, which its parent answers, gone when that is."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
