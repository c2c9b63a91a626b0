"""Several processes of one run, as torchrun starts them."""

import contextlib
import os
import signal
import sys
import time

import torch
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from engine.checks import first_line
from experiment.console import clipped


def from_torchrun(name: str, default: int) -> int:
    """What torchrun has put into the environment under a name: a whole number of at least 0; ValueError."""
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise ValueError(f"{name} is {clipped(text)!r} in the environment; torchrun sets it to a whole number: unset "
                         "it, or start the command by torchrun")
    return int(text)


@contextlib.contextmanager
def joined(argv: list[str], single):
    """Be one of the processes that torchrun has started, for the length of the block.

    In a run of one process nothing changes, nor for `grid`, whose processes have cells of their own. The first process
    prints and writes. Only the first process that meets an error reports it: the others may know no more than that one
    is gone, and leave by way of SystemExit.
    Args: argv: the command line; single: first words that run in one process; under torchrun they raise ValueError.
    """
    if from_torchrun("WORLD_SIZE", 1) < 2 or argv[:1] == ["grid"]:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # torchrun's, when another has died: no file stays half
    if torch.cuda.is_available():
        torch.cuda.set_device(from_torchrun("LOCAL_RANK", 0))
    for name in ("RANK", "MASTER_PORT"):
        from_torchrun(name, 0)
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ValueError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']} in the environment and {missing[0]} is not there; "
                         "unset it, or start the command by torchrun")
    store, rank, size = next(iter(rendezvous("env://")))
    dist.init_process_group(store=store, rank=rank, world_size=size)
    try:
        with contextlib.ExitStack() as quiet:
            if rank:
                nowhere = quiet.enter_context(open(os.devnull, "w"))
                quiet.enter_context(contextlib.redirect_stdout(nowhere))
                quiet.enter_context(contextlib.redirect_stderr(nowhere))
            if argv and argv[0] in single:
                raise ValueError(f"{argv[0]} runs in one process; torchrun is for one cell, grid and repair")
            yield
        with contextlib.suppress(RuntimeError):  # the store may be gone, once all have come
            arrived(store, "ended", size)  # gloo now and then aborts a process whose peer has closed its connections
    except Exception as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            reason = first_line(error, kind=False).rpartition("] ")[2]  # without the line of torch's source
            error = RuntimeError(f"a process of this run has ended ({reason})")
        if not first_to_tell(store, rank, size):
            sys.exit(2)
        raise error
    finally:
        dist.destroy_process_group()


def first_to_tell(store, rank: int, size: int) -> bool:
    """Whether this process is the first of the run to end with an error, so that it is the one which tells.

    The first process may be the one that holds the store, and a slower one still has to ask there, so it waits for all.
    Args: store: torch.distributed's, shared by the `size` processes; rank: this one's.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, once a faster process has left: this one ends by itself
    try:
        return arrived(store, "told", size, waits=rank == 0) == 1
    except RuntimeError:  # the store is gone, with a process that was killed
        return True


def arrived(store, where: str, size: int, waits: bool = True, patience: float = 10.0) -> int:
    """The number of processes that have come to a place, this one included; waits until all `size` have come there, or
    for `patience` seconds, since one that was killed never comes."""
    number, end = store.add(where, 1), time.monotonic() + patience
    while waits and store.add(where, 0) < size and time.monotonic() < end:
        time.sleep(0.02)
    return number
