"""Several processes of one run on this machine, as torchrun starts them."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def start(folder: Path, *command: str, ranks: int = 2) -> list[subprocess.Popen]:
    """Start `python -B COMMAND` in a folder, once for each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks),
             "OMP_NUM_THREADS": "1"}
    return [subprocess.Popen([sys.executable, "-B", *command], cwd=folder, text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, env={**world, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(ranks)]


def ended(processes: list[subprocess.Popen]) -> list[tuple[int, str, list[str]]]:
    """Exit code, stdout and lines of stderr of each."""
    outputs = [process.communicate(timeout=300) for process in processes]
    return [(process.returncode, out, err.splitlines()) for process, (out, err) in zip(processes, outputs, strict=True)]
