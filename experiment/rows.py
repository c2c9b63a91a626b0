"""A row of results: settings, what came out, where it comes from; appended to a file as it comes."""

import contextlib
import errno
import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path

import torch

from experiment.devices import processor
from experiment.settings import VERSION, Config

NO_SCORES = dict.fromkeys(("healed", "healed_forget", "healed_undiscovered", "healed_test", "misled", "utility",
                           "product", "acc_forget", "learnt", "passes", "gave_up"))  # of a failed cell


def row_of(cell: Config, code: str | None, origin: dict, outcome: dict) -> dict:
    """A whole row: settings, the method's short name and code, where the row comes from, what came out.

    code: `methods.code_of` from when the method was loaded; its file may be another one by the time that it has run.
    """
    return {**asdict(cell), "method": Path(cell.method).name, "code": code, **origin, **outcome}


def failure_of(error: str) -> dict:
    """What comes out of a cell that gave no numbers."""
    return {"status": "failed", "error": error, **NO_SCORES, "seconds": None}


def append_row(out: str, row: dict) -> None:
    """Append one JSON line in one write, synced to the disk; after a torn line on a line of its own."""
    line = json.dumps(row, allow_nan=False).encode() + b"\n"
    with open(out, "ab+", buffering=0) as file:
        with contextlib.suppress(ImportError):  # Windows
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)  # so that two runs that share the file lose no row; closing it unlocks it
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if file.read(1) not in (b"", b"\n"):
            line = b"\n" + line
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError as error:
            file.truncate(end)  # no half row stays behind
            raise OSError(error.errno, error.strerror or str(error), str(out)) from error


def provenance(device: torch.device, argv) -> dict:
    """Where a row comes from: code, library, device and command."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "threads": torch.get_num_threads(), **processor(),
            "torch": torch.__version__, "version": VERSION, "git": git_hash(), "argv": list(argv)}


def git_hash() -> str | None:
    """The commit of the code, with "-dirty" if tracked files differ from it; None outside a checkout."""
    command = ["git", "-C", Path(__file__).resolve().parent, "describe", "--always", "--dirty", "--abbrev=40",
               "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
