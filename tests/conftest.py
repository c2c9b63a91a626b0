"""Profiles, marks and fixtures of the suite.

REM_PROFILE=dev|ci|deep chooses how many examples hypothesis draws (default ci, derandomised; deep: 5,000). The whole
suite runs in five processes where there are two cores, unless REM_ONE_CORE is set.
"""

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

import claims

ROOT = Path(__file__).resolve().parent.parent

common = dict(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
settings.register_profile("dev", max_examples=10, **common)
settings.register_profile("ci", max_examples=20, derandomize=True, **common)
settings.register_profile("deep", max_examples=5000, **common)
settings.load_profile(os.environ.get("REM_PROFILE", "ci"))

# it keeps the constants of the code there, whatever `database` is
HOME = tempfile.TemporaryDirectory(prefix="hypothesis-")
set_hypothesis_home_dir(HOME.name)

torch.set_num_threads(1)  # the networks here are tiny: more threads only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")  # and so they do in the processes that tests start


def pytest_collection_modifyitems(items):
    """Skip gpu tests where there is no GPU, and say so."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


# --- Two cores --------------------------------------------------------------------------------------------------------

BESIDE = "experiment", "engine", "study", "repair"  # rooms that other processes run; they often wait for others
beside = []  # (a pytest process, its output, its part), where there are any


def parts() -> dict[str, list[str]]:
    """What each process beside this one runs: folders, or every second file of repair's, which take the longest."""
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "repair").glob("test_*.py"))
    return {"experiment, engine": ["tests/experiment", "tests/engine"], "study": ["tests/study"],
            "repair, first half": files[::2], "repair, second half": files[1::2]}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pytest_collection_finish(session):
    """Let other processes run the rooms of BESIDE where the whole suite was asked for, and measure outcomes."""
    option, config = session.config.option, session.config
    if option.collectonly:
        return
    narrowed = ("keyword", "markexpr", "ignore", "ignore_glob", "deselect", "xmlpath")  # these the other would not know
    whole = config.args_source.name == "TESTPATHS" and not any(getattr(option, name, None) for name in narrowed)
    alone = "REM_ONE_CORE" in os.environ or config.pluginmanager.hasplugin("xdist")  # which has its own processes
    if whole and not alone and cores() > 1:
        session.items[:] = [item for item in session.items if item.path.parent.name not in BESIDE]
        more = [f"--maxfail={option.maxfail or 0}"] + [f"--durations={option.durations}"] * bool(option.durations)
        for part, paths in parts().items():
            output = tempfile.TemporaryFile("w+")
            command = [sys.executable, "-m", "pytest", "-q", *paths, *more]
            beside.append((subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output), output, part))
    claims.begin({kind for item in session.items for mark in item.iter_markers("outcome") for kind in mark.args})


def pytest_sessionfinish(session):
    """What nobody waited for need not begin; what the other core has found is told, and counts."""
    claims.end()
    for process, output, part in beside:
        if session.exitstatus == pytest.ExitCode.INTERRUPTED:
            process.kill()
        failed = process.wait()
        output.seek(0)
        print(f"\n\nbeside it: tests of {part}\n{output.read()}", end="")
        output.close()
        session.exitstatus = session.exitstatus or failed


def pytest_unconfigure():
    """Hypothesis has written its last."""
    HOME.cleanup()


def names() -> set[str]:
    """Files and folders of the checkout but bytecode, what an editor leaves or makes, and what is in git, environments,
    runs/."""
    found = set()
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found |= {os.path.join(folder, name) for name in folders}
        found |= {os.path.join(folder, name) for name in files if name[0] != "." and not name.endswith((".py", "~"))}
        folders[:] = [name for name in folders if name not in (".git", ".venv", "venv", "runs")]
    return found


BEFORE = names()


@pytest.fixture(scope="session", autouse=True)
def nothing_left():
    """The suite leaves no new file in the checkout; what does is named in an error after the last test."""
    yield
    assert not (left := sorted(names() - BEFORE)), f"new in the checkout since the tests began: {left}"


@pytest.fixture(autouse=True)
def same_world():
    """Every test leaves the global random states, the default dtype and torch's flags as it found them."""
    torch.manual_seed(12345)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    flags = world()
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])
    assert world() == flags


def world():
    """Torch's global flags and the working directory."""
    return torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), os.getcwd()
