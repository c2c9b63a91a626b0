"""The whole grid: many cells, each original network trained once, killed and resumed at will, over jobs, GPUs and machines.

    python run.py grid --tasks all --discovery 0.1:1.0:0.1 --methods all --seeds 0,1,2 --out runs/all
    python run.py grid --preset table1 --data-dir data --dry-run                # what there is to do, and how long it takes
    torchrun --nproc-per-node 8 -- run.py grid --preset table1 --out runs/t1    # each rank its own originals, device and file
    python run.py report runs/all                                                   # tables and figures out of the rows

A cell that has its row in --out is skipped, so the same command goes on where it was killed.
"""

import argparse
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from pathlib import Path

import torch

from baselines import no_ul
from experiment import NO_SCORES, append_row, attempt, check_writable, corrupt, find, new_model, provenance, unlearn
from methods import METHODS, code_of, load_method
from study.forecast import Lines, overview
from study.originals import dataset_of, device_of, load_original, make_original
from study.plan import (PRESETS, by_original, cell_key, expand_axes, flag, original_of, preset, read_rows,
                  rows_by_cell)
from settings import Config

PLURAL = {"task": "tasks", "method": "methods", "seed": "seeds"}  # either is a flag
ONE_VALUE = ("data_dir", "download", "device", "out", "quiet")  # of the whole grid
DIED = "the worker process died (killed, or out of memory)"


# --- Command line -----------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """A flag an axis, each taking a list; only what was given ends up in the namespace."""
    p = argparse.ArgumentParser(prog="run.py grid", description=__doc__.splitlines()[0], allow_abbrev=False,
                                argument_default=argparse.SUPPRESS,
                                epilog="Lists: 1,2 or first:last:step; all for tasks and methods; on, off or both for switches.")
    p.error = lambda message: p.exit(2, f"run.py grid: {message}\n")  # one line, without the usage
    p.add_argument("--preset", help=f"the cells of a table or figure of the paper: {', '.join(PRESETS)}")
    for f in fields(Config):
        names = [f"--{flag(name)}" for name in (f.name, PLURAL.get(f.name)) if name]
        text = "folder of the grid (default: runs/grid)" if f.name == "out" else f.metadata["help"].replace("%", "%%")
        if f.name in ("download", "quiet"):
            p.add_argument(*names, action="store_true", help=text)
        else:
            p.add_argument(*names, dest=f.name, metavar=f.name.upper() if f.name in ONE_VALUE else "LIST", help=text)
    p.add_argument("--jobs", type=int, default=1, help="cells at a time on this device (default: 1)")
    p.add_argument("--dry-run", action="store_true", default=False, help="show what there is to do and train nothing")
    p.add_argument("--retry-failed", action="store_true", default=False, help="do cells anew that failed before")
    return p


def main(argv: list[str]) -> int:
    """Run `run.py grid`; returns the exit code: 0, 1 if a cell failed, now or before. Bad input raises ValueError."""
    given = vars(parser().parse_args(argv))
    jobs, dry, retry, name = (given.pop(key, None) for key in ("jobs", "dry_run", "retry_failed", "preset"))
    if jobs < 1:
        raise ValueError(f"--jobs is {jobs}; it must be at least 1")
    place = {key: given.pop(key) for key in ONE_VALUE if key in given}
    folder, rank, world = Path(place.pop("out", "runs/grid")), *place_in_world()
    cells = preset(name, given) if name else expand_axes(given)
    cells = [replace(cell, **{**place, "quiet": True}, out=str(folder / result_file(rank, world))) for cell in cells]
    check_cells(cells)
    groups = dealt_out(by_original(cells), rank, world)
    rows = rows_by_cell(read_rows(folder))
    remaining = left_to_do(groups, rows, retry)
    quiet = place.get("quiet", False)
    say = (lambda text: None) if quiet else (lambda text: print(text, flush=True))
    if not dry:
        check_writable(cells[0].out)
    if dry or not quiet:
        print(overview(groups, remaining, rows, folder, jobs, every=dry), flush=True)
    if dry:
        return 0
    keys = {cell_key(cell) for _, group in groups for cell in group} - {cell_key(cell) for _, group in remaining for cell in group}
    origin = provenance(device_of(cells[0]), ["grid", *argv])
    warn_of_other_code([rows[key] for key in keys], origin)
    failed = work_through(remaining, folder, jobs, origin, say)
    before = sum(rows[key]["status"] != "ok" for key in keys)
    print(f"{sum(len(group) for _, group in remaining)} cells done, {failed} of them failed"
          + (f", {before} failed before (--retry-failed does them anew)" if before else "") + f"; rows in {folder}")
    meet_ranks(stay=bool(failed or before))
    return 1 if failed or before else 0


def warn_of_other_code(rows: list[dict], origin: dict) -> None:
    """Say on stderr which other commits made the rows that count as done."""
    others = {str(row.get("git"))[:7] for row in rows} - {str(origin["git"])[:7]}
    if others:
        print(f"warning: done cells come from other commits of the code, {', '.join(sorted(others))}; to do them anew, take "
              "another --out", file=sys.stderr)


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
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not 0 <= rank < world:
        raise ValueError(f"RANK is {rank} and WORLD_SIZE {world}; start the grid with torchrun or without both")
    return rank, world


def dealt_out(groups: list, rank: int, world: int) -> list:
    """A rank's part of the groups (original, cells): dealt in turn, those of most cells first, so that no rank gets all of them.

    It depends on the whole list alone: ranks need not talk to each other.
    """
    return groups if world == 1 else sorted(groups, key=lambda group: -len(group[1]))[rank::world]


def result_file(rank: int, world: int) -> str:
    """Each rank writes a file of its own."""
    return "cells.jsonl" if world == 1 else f"cells-{rank}.jsonl"


def check_cells(cells: list[Config]) -> None:
    """Look at everything that can be wrong with the input before any training."""
    for method in dict.fromkeys(cell.method for cell in cells if cell.method not in METHODS):
        load_method(method)
    device_of(cells[0])
    for cell in {(c.dataset, c.image_size, c.task, c.n, c.pair, c.discovery): c for c in cells}.values():
        find(cell, corrupt(cell, dataset_of(cell)))
    for cell in {(c.dataset, c.image_size, c.arch, c.width, c.capacity): c for c in cells}.values():
        new_model(cell, dataset_of(cell))


# --- What there is to do ----------------------------------------------------------------------------------------------------


def left_to_do(groups, rows: dict[str, dict], retry: bool) -> list[tuple[Config, list[Config]]]:
    """The groups without the cells that have a row; a failed one counts as done unless `retry`."""
    def open_(cell):
        row = rows.get(cell_key(cell))
        return row is None or (retry and row["status"] != "ok")

    left = [(original, [cell for cell in cells if open_(cell)]) for original, cells in groups]
    return [(original, cells) for original, cells in left if cells]


# --- Doing it ---------------------------------------------------------------------------------------------------------------


@dataclass
class Group:
    """An original network and the cells that wait for it."""

    original: Config
    cells: deque
    state: str = "new"  # then "training", then "ready"


def work_through(remaining, folder: Path, jobs: int, origin: dict, say) -> int:
    """Train the originals and run the cells, up to `jobs` at a time; a row for each as it ends.

    Args:
        remaining: [(original, cells)].
        folder: of the grid.
        jobs: 1 runs everything in this process, more in worker processes.
        origin: where the rows come from, see experiment.provenance.
        say: prints a line.

    Returns:
        The number of cells that failed.
    """
    queue, running, failed = [Group(original, deque(cells)) for original, cells in remaining], {}, 0
    lines = Lines(sum(len(cells) for _, cells in remaining), say)
    with Workers(jobs) as workers:
        while True:
            while len(running) < jobs and (item := next_ready(queue)):
                group, cell = item
                work = (make_original, group.original, str(folder)) if cell is None else (run_cell, cell, str(folder), origin)
                running[workers.submit(*work)] = item
            if not running:
                return failed
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                group, cell = running.pop(future)
                for row in rows_of(future, group, cell, origin, lines):
                    append_row(row["out"], row)
                    failed += row["status"] != "ok"
                    lines.cell(row)


def next_ready(queue: list[Group]) -> tuple[Group, Config | None] | None:
    """The next piece of work, first come first: (group, None) for its original, (group, cell), or None while all wait."""
    for group in queue:
        if group.state == "new":
            group.state = "training"
            return group, None
        if group.state == "ready" and group.cells:
            return group, group.cells.popleft()
    return None


def rows_of(future: Future, group: Group, cell: Config | None, origin: dict, lines) -> list[dict]:
    """The rows that a finished piece of work gives: none for an original that trained, else one a cell."""
    error = future.exception()
    failure = None if error is None else DIED if isinstance(error, BrokenProcessPool) else f"{type(error).__name__}: {error}"
    if cell is not None:
        return [future.result() if failure is None else failed_row(cell, origin, failure)]
    seconds, problem = (None, failure) if failure else future.result()
    if problem is None:
        group.state = "ready"
        lines.original(group.original, seconds)
        return []
    cells, group.cells = group.cells, deque()
    return [failed_row(cell, origin, f"training: {problem}") for cell in cells]


def failed_row(cell: Config, origin: dict, error: str) -> dict:
    """The row of a cell that gave no numbers."""
    return {**asdict(cell), "method": Path(cell.method).name, "code": code_of(cell.method), **origin, "train_seconds": None,
            "status": "failed", "error": error, **NO_SCORES, "seconds": None}


def run_cell(cell: Config, folder: str, origin: dict) -> dict:
    """One cell: its original from the file, the method, the scores; whatever goes wrong is in the row."""
    row, _, failure = attempt(lambda: measure(cell, folder))
    if failure:
        return failed_row(cell, origin, failure)
    return {**asdict(cell), "method": Path(cell.method).name, "code": code_of(cell.method), **origin,
            "threads": torch.get_num_threads(), **row}


def measure(cell: Config, folder: str) -> dict:
    """The measured half of a cell's row. What a method that trains alone makes is there already."""
    original = original_of(cell)
    task, network, seconds = load_original(original, folder)
    forget = find(cell, task)
    if original.method:
        return {"train_seconds": None, **unlearn(cell, cell.method, no_ul, network, task, forget), "seconds": seconds}
    name, method = (cell.method, METHODS[cell.method].function) if cell.method in METHODS else load_method(cell.method)
    return {"train_seconds": seconds, **unlearn(cell, name, method, network, task, forget)}


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
            while self.idle:
                with contextlib.suppress(BrokenProcessPool):  # its process is dead: the next one
                    return self.put(self.idle.pop(), work, *args)
            return self.put(self.new_pool(), work, *args)
        future = Future()
        try:
            future.set_result(work(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def put(self, pool: ProcessPoolExecutor, work, *args) -> Future:
        """Hand the work to that pool."""
        future = pool.submit(work, *args)
        self.busy[future] = pool
        return future

    def new_pool(self) -> ProcessPoolExecutor:
        """A process with its share of the cores."""
        threads = max(1, torch.get_num_threads() // self.jobs)
        return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), begin_work, (threads,))


def begin_work(threads: int) -> None:
    """Make a process a worker: its share of the cores, deaf to the Ctrl-C that its parent answers, gone when that is gone."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
