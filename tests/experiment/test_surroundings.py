"""What lies around a run: a GPU that is not used, no git, no code in files (R1, R3, A8)."""

import ast
import subprocess
from pathlib import Path
from unittest import mock

import pytest
import torch

from experiment import cell, rows

ROOT = Path(cell.__file__).resolve().parent.parent


def test_a_gpu_that_is_not_used_spoils_nothing():
    """R1: a CPU run does not wait for a GPU that it never touched, so a broken one costs no result."""
    # a broken GPU is at hand nowhere, so torch's answers are put in its place
    with mock.patch.object(torch.cuda, "is_available", lambda: True), \
            mock.patch.object(torch.cuda, "is_initialized", lambda: False), \
            mock.patch.object(torch.cuda, "synchronize", side_effect=RuntimeError("CUDA error: device busy")):
        result, _, failure = cell.attempt(lambda: 1)
    assert (result, failure) == (1, None)


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10)])
def test_no_git_is_no_error(error):
    """R3: without git, or with one that hangs, a row's commit is None."""
    with mock.patch.object(subprocess, "run", side_effect=error):
        assert rows.git_hash() is None


SHIPPED = [path for folder in (".", "engine", "experiment", "study", "repair", "benchmarks", "examples", "results")
           for path in sorted((ROOT / folder).glob("*.py"))]


def test_files_run_no_code():
    """A8, T16: every torch.load of the shipped code says weights_only=True."""
    loads = 0
    for path in SHIPPED:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                words = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert words.get("weights_only") == "True", f"{path}:{node.lineno}"
                loads += 1
    assert loads
