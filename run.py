"""The command line: train a network on corrupted data, unlearn with each method, compare (Sec. 4, Sec. 6).

    python run.py --task poison --discovery 0.5
    python run.py --task random --discovery 0.1 --method rem --dataset cifar10 --data-dir data --download
    python run.py grid --tasks all --discovery 0.1:1.0:0.1 --methods all --out runs/all     # many cells, see grid.py
"""

import contextlib
import os
import platform
import re
import signal
import sys
import warnings
from argparse import HelpFormatter
from dataclasses import replace
from pathlib import Path

import torch
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

import repair.command as repair
from engine.ranks import ranks
from experiment.cell import attempt, choose_methods, corrupt, find, new_model, train_original, unlearn
from experiment.console import Parser, add_flags
from experiment.datasets import load
from experiment.devices import choose_device
from experiment.files import check_writable
from experiment.methods import code_of
from experiment.rows import append_row, failure_of, provenance, row_of
from experiment.settings import Config, resolve
from study import cscore, discovery, grid, report
from tasks import Task


# Before torch is imported: waiting threads of GNU OpenMP spin, so two runs that share the cores take each other's time.
# Two runs of 11 s at once took over 150 s, with this 32 s; one alone is as fast as before (results/README.md).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


DESCRIPTION = "Train a network on corrupted data, unlearn with each method, compare."  # python -OO leaves no docstrings
WORDS = {"grid": grid, "report": report, "cscore": cscore, "suspects": discovery, "repair": repair}  # first words

# --- Command line -----------------------------------------------------------------------------------------------------

def parser(words: bool = False) -> Parser:
    """A flag per field of Config, or a parser behind each first word; only what was given ends up in the namespace."""
    p = Parser(prog="run.py", usage="run.py [FLAGS] | run.py {grid,report,cscore,suspects,repair} [--help]",
               description=DESCRIPTION,
               formatter_class=lambda prog: HelpFormatter(prog, max_help_position=23),
               epilog="Many cells: run.py grid. Tables and figures: run.py report. How regular a task is: run.py "
                      "cscore. A model of your own: run.py repair.")
    if not words:
        add_flags(p)
        return p
    behind = p.add_subparsers(dest="word", metavar="WORD", prog="run.py")
    for word, module in WORDS.items():
        module.add_arguments(behind.add_parser(word, description=(module.__doc__ or "").partition("\n")[0]))
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 if a cell or a file failed, 2 for bad input, told in a line."""
    argv = sys.argv[1:] if argv is None else argv
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name that stdout cannot encode ends no run
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *rest, **more: print(f"warning: {message}", file=sys.stderr)
        try:
            with joined(argv):
                code = command(argv)
            if sys.stdout is not None:  # it is None where stdout was closed from the start
                sys.stdout.flush()  # so that a closed pipe is noticed here
            return code
        except (ValueError, TypeError, RuntimeError, MemoryError, OverflowError) as error:  # torch's, for absurd sizes
            print(f"run.py: {what_went_wrong(error)}", file=sys.stderr)
            return 2
        except BrokenPipeError:  # the reader of its output, such as head, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
            return 1
        except OSError as error:  # a disk that is full, a file that went away
            print(f"run.py: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"run.py: interrupted; {what_is_left(argv)}", file=sys.stderr)
            return 130


def what_went_wrong(error: Exception) -> str:
    """The first line of an error; of torch's about memory what it asked for and what to do."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if asked := re.search(r"(?i)tried to allocate (\S+ ?\w*)", text):
        return f"out of memory, {asked[1]} asked for; take a smaller network, image size or batch"
    return text


def what_is_left(argv: list[str]) -> str:
    """What an interrupted command leaves, in words: rows, or the state from which `repair` goes on."""
    if argv[:1] == ["report"]:
        return "what was written is whole"
    if argv[:1] != ["repair"]:
        return "the rows of finished cells are in the result file"
    given, _ = parser(words=True).parse_known_args(argv)
    state = repair.beside_weights(given.out, ".state")
    kept = given.checkpoint_every and state.exists()
    if not kept:
        return "no state is kept, so the same command begins anew"
    return f"the same command goes on from {state}, if that is its own"


def command(argv: list[str]) -> int:
    """Do what the first word says, one of WORDS; where a flag comes first, or nothing, one cell."""
    p = parser(words=bool(argv) and not argv[0].startswith("-"))
    given, unknown = p.parse_known_args(argv)
    word = vars(given).pop("word", None)
    if unknown:
        p.exit(2, f"run.py{' ' + word if word else ''}: unrecognized arguments: {' '.join(unknown)}\n")
    if word:
        return WORDS[word].main(vars(given), argv)
    rows = compare(resolve(vars(given)), argv)
    return 0 if all(row["status"] == "ok" and row["written"] for row in rows) else 1


# --- Several processes ------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def joined(argv: list[str]):
    """Be one of the processes that torchrun has started, for the length of the block; if alone, nothing changes, nor
    for `grid`, whose processes each have cells of their own.

    The first process prints and writes. Of an error, whoever meets it first tells: the others may know no more than
    that one is gone, and leave by way of SystemExit.
    Raises: ValueError for a word that runs in one process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or argv[:1] == ["grid"]:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # torchrun's, when another has died: no file stays half
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, rank, size = next(iter(rendezvous("env://")))
    dist.init_process_group(store=store, rank=rank, world_size=size)
    try:
        with contextlib.ExitStack() as quiet:
            if rank:
                nowhere = quiet.enter_context(open(os.devnull, "w"))
                quiet.enter_context(contextlib.redirect_stdout(nowhere))
                quiet.enter_context(contextlib.redirect_stderr(nowhere))
            if argv and argv[0] in WORDS and argv[0] != "repair":
                raise ValueError(f"{argv[0]} runs in one process; torchrun is for one cell, grid and repair")
            yield
    except Exception as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            reason = str(error).splitlines()[0].rpartition("] ")[2]  # without the line of torch's source
            error = RuntimeError(f"a process of this run has ended ({reason})")
        with contextlib.suppress(RuntimeError):  # the store is gone with the process that had it
            if store.add("told", 1) > 1:
                sys.exit(2)
        raise error
    finally:
        dist.destroy_process_group()


# --- One cell ---------------------------------------------------------------------------------------------------------

def compare(config: Config, argv: list[str] = ()) -> list[dict]:
    """Train one original network and unlearn from it with each method of config.method; one row a method.

    Rows are appended to config.out as they come; one that cannot be written is told after the table.
    Raises: ValueError, TypeError for input that cannot be used, all of it before training.
    """
    if config.dataset == "folder":  # a relative path is another one in another working directory
        config = replace(config, data_dir=str(Path(config.data_dir).resolve()))
    methods = choose_methods(config)
    paths = {Path(path.strip()).name: path.strip() for path in config.method.split(",")}  # of user-supplied methods
    codes = {name: code_of(paths.get(name, name)) for name in methods}
    device = choose_device(config.device)
    check_writable(config.out)
    dataset = load(config.dataset, config.data_dir, config.image_size, config.download)
    task = corrupt(config, dataset)
    forget = find(config, task)
    model = new_model(config, dataset)
    check_precision(config, device)
    check_room(config, model)
    train, test = (replace(data.to(device), part=ranks()) for data in (task.train, task.test))
    task = replace(task, train=train, test=test)
    if not config.quiet:
        print(headline(config, task, forget, model, device), flush=True)
    original, train_seconds, failure = attempt(lambda: train_original(config, task, model.to(device)))
    rows, unwritten = [], []
    for name, method in methods.items():
        outcome = (failure_of(f"training: {failure}") if failure
                   else unlearn(config, name, method, original, task, forget))
        row = row_of(replace(config, method=paths.get(name, name)), codes[name], provenance(device, argv),
                     {"train_seconds": train_seconds, **outcome})
        try:
            if ranks()[0] == 0:
                append_row(config.out, row)
        except OSError as error:  # a full disk costs no method and no table
            unwritten, why = [*unwritten, name], error
        rows.append(row)
    print(table(rows))
    if unwritten:
        print(f"run.py: no row of {', '.join(unwritten)} in {config.out} ({why})", file=sys.stderr)
    if not config.quiet:
        print(f"{len(rows) - len(unwritten)} rows" if unwritten else "rows", "appended to", config.out)
    return [{**row, "written": row["method"] not in unwritten} for row in rows]


def check_precision(config: Config, device: torch.device) -> None:
    """Warn where bf16 makes a CPU slower: one of Intel's or AMD's without AMX and AVX512_BF16 has to emulate it."""
    if config.precision != "bf16" or device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return
    checks = [getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")]
    if None not in checks and not any(check() for check in checks):
        print("warning: this CPU has neither AMX nor AVX512_BF16, so bf16 is slower than float32 here", file=sys.stderr)


def check_room(config: Config, model) -> None:
    """Raise ValueError for a ratio whose theta_o2 cannot fit into this machine's memory, before hours of training."""
    if config.ratio is None or not hasattr(os, "sysconf"):
        return
    need = 4 * sum(p.numel() for p in model.parameters()) * (1 + config.ratio) ** 2  # bytes: wider both ways
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > room:
        raise ValueError(f"ratio is {config.ratio:g}; theta_o2 would take {need / 1e9:.3g} GB and this machine has "
                         f"{room / 1e9:.3g}; give a smaller one")


# --- Output -----------------------------------------------------------------------------------------------------------

def headline(config: Config, task: Task, forget: torch.Tensor, model, device: torch.device) -> str:
    """Two lines that say what is about to run."""
    parameters = sum(p.numel() for p in model.parameters())
    size = task.train.images.shape[-1]
    return (f"{config.task} on {config.dataset}: {len(task.train)} images of {size}x{size}, "
            f"{len(task.corrupted)} corrupted, {len(forget)} of them discovered ({100 * config.discovery:g}%)\n"
            f"{config.arch} at {100 * config.capacity:g}% capacity, {parameters:,} parameters"
            f"{', trained with ETD' if config.etd else ''}; seed {config.seed}; {describe(device)}")


def describe(device: torch.device) -> str:
    """The device for the eye: a GPU's name, or what the CPU computes with, such as "cpu (AVX2, 2 threads)"."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type != "cpu":
        return str(device)
    threads = torch.get_num_threads()
    return f"cpu ({torch.backends.cpu.get_cpu_capability()}, {threads} thread{'s' * (threads > 1)})"


def table(rows: list[dict]) -> str:
    """The comparison, percent where a fraction is meant; a failed cell shows its error."""
    wide = max([14, *(len(row["method"]) + 2 for row in rows)])
    lines = [f"\n{'method':<{wide}}{'Healed':>8}{'undiscovered':>14}{'Utility':>9}{'product':>9}{'seconds':>9}"]
    for row in rows:
        if row["status"] != "ok":
            lines.append(f"{row['method']:<{wide}}  {row['error']}")
            continue
        values = [row[key] for key in ("healed", "healed_undiscovered", "utility", "product")]
        healed, undiscovered, utility, product = ("-" if value is None else f"{100 * value:.1f}" for value in values)
        seconds = f"{row['seconds']:.1f}"
        lines.append(f"{row['method']:<{wide}}{healed:>8}{undiscovered:>14}{utility:>9}{product:>9}{seconds:>9}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
