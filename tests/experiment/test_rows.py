"""A row of results (experiment/rows.py): what it holds, and how it gets into a file that others write, too.

What a kill leaves is in study/test_grid.py.
"""

import errno
import os
import re
import shutil
import subprocess
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from experiment import rows
from experiment.rows import NO_SCORES, append_row, failure_of, git_hash, provenance, row_of
from experiment.settings import VERSION, Config
from full_disk import files_of_at_most
from helpers import rows_of

ROOT = Path(rows.__file__).resolve().parents[1]


# --- What a row holds -------------------------------------------------------------------------------------------------


def test_what_a_row_is_made_of():
    """R3: settings, the method's short name and code, the origin, the outcome; an outcome of a setting's name wins."""
    config = Config(method="methods/mine.py:f", epochs=3)
    row = row_of(config, "abc", {"torch": "2", "argv": ["x"]}, {"healed": 0.5, "epochs": 4})
    assert row == {**asdict(config), "method": "mine.py:f", "code": "abc", "torch": "2", "argv": ["x"], "healed": 0.5,
                   "epochs": 4}
    failed = row_of(replace(config, method="rem"), None, {}, failure_of("why"))
    assert (failed["method"], failed["code"], failed["status"], failed["error"]) == ("rem", None, "failed", "why")
    assert failed["seconds"] is None and {failed[name] for name in NO_SCORES} == {None}


def test_where_a_row_comes_from():
    """R3: device, CPU, instruction set, threads, versions and the command as it was given."""
    argv = ["--task", "random"]
    origin = provenance(torch.device("cpu"), argv)
    cpu, isa = origin.pop("cpu"), origin.pop("isa")
    assert cpu and isa.startswith(torch.backends.cpu.get_cpu_capability())
    assert {**origin, "git": None} == {"device": "cpu", "threads": torch.get_num_threads(), "torch": torch.__version__,
                                       "version": VERSION, "git": None, "argv": argv}
    assert origin["argv"] is not argv  # what the caller adds later is not in the row


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
def test_the_commit_of_the_code(tmp_path, monkeypatch):
    """R3: HEAD's commit, tagged or not, "-dirty" once a tracked file differs; None outside a checkout."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # a hook's point to the repository that it is of
    for name, value in dict(CEILING_DIRECTORIES=str(tmp_path.parent), CONFIG_GLOBAL=os.devnull,
                            CONFIG_NOSYSTEM="1").items():
        monkeypatch.setenv(f"GIT_{name}", value)

    def git(*arguments):
        settings = ["-c", "user.name=T", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *settings, *arguments], cwd=tmp_path, check=True, capture_output=True,
                              text=True).stdout.strip()

    code = tmp_path / "rows.py"
    code.write_text("first\n")
    monkeypatch.setattr(rows, "__file__", str(code))  # this checkout's own state is not the test's to change
    assert git_hash() is None
    git("init", "-q")
    git("add", "rows.py")
    git("commit", "-q", "-m", "first")
    head = git("rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", head) and git_hash() == head
    git("tag", "-a", "v1", "-m", "first")
    (tmp_path / "untracked").touch()
    assert git_hash() == head == provenance(torch.device("cpu"), [])["git"]
    code.write_text("second, and longer\n")
    assert git_hash() == head + "-dirty"
    git("commit", "-q", "-a", "-m", "second")
    assert git_hash() == git("rev-parse", "HEAD") != head


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10)])
def test_no_git_is_no_error(monkeypatch, error):
    """R3: without git, or with one that hangs, a row's commit is None."""
    def fail(*args, **more):
        raise error

    monkeypatch.setattr(subprocess, "run", fail)  # a git that hangs is at hand nowhere
    assert git_hash() is None


# --- How it gets into the file ----------------------------------------------------------------------------------------


def test_a_row_is_appended(tmp_path):
    """R10: a row goes behind those that are there, in the very same file; a link is followed and stays one."""
    out, link = tmp_path / "x", tmp_path / "link"
    link.symlink_to(out)
    append_row(str(link), {"a": 0})
    before = out.stat().st_ino, out.read_bytes()
    for number in (1, 2):
        append_row(str(link), {"a": number})
    assert link.is_symlink() and out.stat().st_ino == before[0] and out.read_bytes().startswith(before[1])
    assert rows_of(out) == [{"a": number} for number in range(3)] and sorted(tmp_path.iterdir()) == [link, out]


def test_a_number_that_json_lacks_is_refused(tmp_path):
    """R3: a row with a number that is not finite is no JSON; nothing of it is written."""
    with pytest.raises(ValueError, match="JSON"):
        append_row(str(tmp_path / "x"), {"a": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("torn", ['{"a": 1}\n{"torn": ', "{"])
def test_a_torn_line_is_kept_apart(tmp_path, torn):
    """R3: a file that ends without a newline, be it of one letter, does not swallow the next row."""
    out = tmp_path / "x"
    out.write_text(torn)
    append_row(str(out), {"a": 2})
    assert out.read_text() == torn + '\n{"a": 2}\n'


@pytest.mark.parametrize("room, code", [(10, errno.ENOSPC), (0, errno.EFBIG)])
def test_a_row_that_does_not_reach_the_disk_is_taken_back(tmp_path, room, code):
    """R3, R10: a row of which the disk takes a part alone, or none, is an error that names the file; none of it stays,
    nothing lies beside, and the next row is appended."""
    out = tmp_path / "x"
    append_row(str(out), {"a": 1})
    before = out.read_bytes()
    with files_of_at_most(len(before) + room), pytest.raises(OSError) as told:
        append_row(str(out), {"b": "x" * 100})
    assert (told.value.errno, told.value.filename) == (code, str(out))
    assert out.read_bytes() == before and list(tmp_path.iterdir()) == [out]
    append_row(str(out), {"a": 3})
    assert rows_of(out) == [{"a": 1}, {"a": 3}]


def test_a_row_waits_for_another_writer(tmp_path):
    """R3: while another process holds the file; then it goes behind what that one wrote."""
    fcntl = pytest.importorskip("fcntl")
    out = tmp_path / "x"
    writer = threading.Thread(target=append_row, args=(str(out), {"a": 1}))
    with open(out, "ab") as held:
        fcntl.flock(held, fcntl.LOCK_SH)  # for which a writer waits unless it shares its own lock, too
        writer.start()
        writer.join(0.3)  # without the lock it is done long before
        assert out.read_bytes() == b""
        os.write(held.fileno(), b'{"a": 0}\n')
    writer.join()
    assert out.read_bytes() == b'{"a": 0}\n{"a": 1}\n'
