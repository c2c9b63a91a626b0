"""Files that are whole or not there (experiment/files.py): write_whole and check_writable."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiment import files
from experiment.files import check_writable, write_whole
from full_disk import files_of_at_most

ROOT = Path(files.__file__).resolve().parents[1]


# --- write_whole ------------------------------------------------------------------------------------------------------


def test_a_file_is_written_with_its_folder(tmp_path):
    """K7: a new file has what was written, in a folder that is made for it; an old one is replaced."""
    path = tmp_path / "new" / "folder" / "x.pt"
    for content in (b"first", b"2nd"):
        write_whole(path, lambda file: file.write(content))
        assert path.read_bytes() == content and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError, RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file(tmp_path, monkeypatch, step, error):
    """K7: what fails or is interrupted in the middle of a write or after it changes nothing, and the error is told."""
    def fail(*args):
        assert path.read_bytes() == b"old"
        raise error("in the middle")

    def half(file):
        file.write(b"half")
        file.flush()
        if step == "write":
            fail()

    path = tmp_path / "x.pt"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch, pytest.raises(error, match="in the middle"):
        if step != "write":
            patch.setattr(os, step, fail)  # no disk is full when a test wants it
        write_whole(path, half)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"old"


@pytest.mark.parametrize("write", [lambda file: torch.save({"w": torch.zeros(9000)}, file),
                                   lambda file: file.write(bytes(9000))])
def test_a_write_that_fails_names_its_file(tmp_path, write):
    """K7: an OSError with the file, of torch.save too, which makes a RuntimeError of it; the old file stays."""
    path = tmp_path / "x.pt"
    path.write_text("old")
    with files_of_at_most(4000), pytest.raises(OSError) as told:
        write_whole(path, write)
    assert told.value.errno == errno.EFBIG and told.value.filename == str(path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x.pt", "old")]


WRITER = """
import sys
from experiment.files import write_whole
write_whole(sys.argv[1], lambda file: file.write(b"theirs" * 1000))
"""


def test_two_processes_write_one_path_at_once(tmp_path):
    """R14: while this process is in the middle of a write another one writes the same path from beginning to end: its
    file is whole, and so is this process's afterwards. So the temporary names of two processes differ."""
    def slowly(file):
        file.write(b"ours" * 1000)
        file.flush()
        (mine,) = tmp_path.iterdir()
        other = subprocess.run([sys.executable, "-B", "-c", WRITER, path], cwd=ROOT, capture_output=True, text=True)
        assert other.returncode == 0, other.stderr
        assert path.read_bytes() == b"theirs" * 1000 and sorted(tmp_path.iterdir()) == sorted([mine, path])
        file.write(b"!")

    path = tmp_path / "x.pt"
    write_whole(path, slowly)
    assert path.read_bytes() == b"ours" * 1000 + b"!" and list(tmp_path.iterdir()) == [path]


# --- check_writable ---------------------------------------------------------------------------------------------------


def test_what_can_be_written(tmp_path):
    """R10: a new file in a new folder, an old file, and a link to either; the check writes nothing but the folder."""
    out, link = tmp_path / "new" / "x", tmp_path / "link"
    link.symlink_to(out)
    check_writable(str(link))
    assert out.parent.is_dir() and not out.exists()
    out.write_bytes(b"old")
    check_writable(str(out))
    check_writable(str(link))
    assert out.read_bytes() == b"old" and link.is_symlink()


@pytest.mark.skipif(os.name == "nt", reason="no pipes and devices there")
@pytest.mark.parametrize("kind", ["device", "link to a device", "pipe", "folder", "below a file", "circle", "", "null",
                                  ".", "new/", "long"])
def test_results_go_to_regular_files_alone(tmp_path, monkeypatch, kind):
    """R10: a device, a pipe, a folder, a link to itself, no name: each is refused in one line and stays as it is."""
    monkeypatch.chdir(tmp_path)
    out = {"device": "/dev/null", "": "", "null": "a\0b", "below a file": "file/x", ".": ".", "new/": "new/",
           "long": "a" * 256}.get(kind, str(tmp_path / "x"))
    make = {"pipe": lambda: os.mkfifo(out), "folder": lambda: os.mkdir(out), "circle": lambda: os.symlink(out, out),
            "link to a device": lambda: os.symlink("/dev/null", out), "below a file": Path("file").touch}
    make.get(kind, lambda: None)()
    before = {path.name: os.lstat(path).st_mode for path in tmp_path.iterdir()}
    with pytest.raises(ValueError) as caught:
        check_writable(out)
    told = str(caught.value)
    assert told.startswith(f"cannot write results to {out} (") and told.endswith("give another --out")
    assert ("it is a folder" in told) == (kind in ("folder", ".", ""))
    assert "\n" not in told and before == {path.name: os.lstat(path).st_mode for path in tmp_path.iterdir()}


def test_names_of_every_length(tmp_path):
    """R10: of the longest name that a file can have the temporary one fits, too; looking creates nothing."""
    edge = 255 - len(f".{os.getpid()}.tmp")  # the longest that its temporary name can hold
    for length in (1, edge, edge + 1, 255):
        path = tmp_path / ("a" * length)
        check_writable(str(path))
        assert not list(tmp_path.iterdir())
        write_whole(path, lambda file: file.write(b"x"))
        assert [found.name for found in tmp_path.iterdir()] == [path.name]
        path.unlink()
    with pytest.raises(ValueError, match="too long"):
        check_writable(str(tmp_path / ("é" * 128)))


@pytest.mark.parametrize("exists", [False, True])
def test_a_place_that_may_not_be_written(tmp_path, monkeypatch, exists):
    """R2: a file or, where there is none, its folder without write permission is refused."""
    out, asked = tmp_path / "x", []
    if exists:
        out.touch()
    # root may write anywhere, so the system's answer is put in its place
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((Path(path), mode)))
    with pytest.raises(ValueError, match="permission denied"):
        check_writable(str(out))
    assert asked == [(out if exists else tmp_path, os.W_OK)]
