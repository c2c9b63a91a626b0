"""What goes wrong around one cell: outputs that cannot be written, disks and terminals that are full, absurd sizes.

Each test has in its first line the point of the issue "Nothing mixed, nothing lost, nothing without a word" it holds.
"""

import errno
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import run
from experiment import cell, datasets, devices, files, processes, rows
from experiment.console import clipped, tell
from experiment.settings import Config, resolve
from helpers import Evil, make_dataset, small_net
from tasks import make_task


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Tests run in a folder of their own, so that what a command makes where it runs is not in the checkout."""
    monkeypatch.chdir(tmp_path)


ROOT = Path(run.__file__).resolve().parent


def refused(capsys, *argv) -> str:
    """What stderr says of a command that must end with exit code 2 and one line."""
    assert run.main([str(word) for word in argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("run.py") and len(lines[0]) < 1000, lines
    return lines[0]


@pytest.fixture
def no_work(monkeypatch):
    """Nothing may be trained."""
    monkeypatch.setattr(run, "train_original", lambda *args: pytest.fail("work began"))


# --- 2. A full disk ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("write", [lambda file: torch.save({"w": torch.zeros(9000)}, file),
                                   lambda file: file.write(bytes(9000))])
def test_a_write_that_fails_names_its_file(tmp_path, write):
    """Point 2: an OSError with the file, of torch.save too, which makes a RuntimeError of it; the old file stays."""
    path, before = tmp_path / "x.pt", resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_text("old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))  # as a disk that fills up; no root is needed
    try:
        with pytest.raises(OSError) as told:
            files.write_whole(path, write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert told.value.errno == errno.EFBIG and told.value.filename == str(path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x.pt", "old")]


def test_a_full_disk_is_an_os_error(tmp_path):
    """Point 2: the same on a file system that is full."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16384", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        with pytest.raises(OSError) as told:
            files.write_whole(place / "x.pt", lambda file: torch.save({"w": torch.zeros(9000)}, file))
        assert told.value.errno == errno.ENOSPC and told.value.filename == str(place / "x.pt")
        assert not list(place.iterdir())
        (place / "other").write_bytes(bytes(16384))
        with pytest.raises(OSError, match="rows.jsonl"):
            rows.append_row(str(place / "rows.jsonl"), {"a": 1})
        assert (place / "rows.jsonl").read_bytes() == b""
    finally:
        subprocess.run(["umount", place], check=True)


def test_an_error_of_our_own_stays_what_it_is(tmp_path):
    """Point 2: a RuntimeError that no write has caused."""
    def fail(file):
        file.write(b"1")
        raise RuntimeError("another one")

    with pytest.raises(RuntimeError, match="another one"):
        files.write_whole(tmp_path / "x", fail)
    assert not list(tmp_path.iterdir())


# --- 3. Rows know their images and their machine ----------------------------------------------------------------------

def test_a_row_knows_its_images_and_processor(tmp_path):
    """Point 3: the fingerprint is of images and labels before the corruption, of training and of test set."""
    asked = ["--n", "4", "--epochs", "0", "--quiet", "--method", "no-ul", "--out", str(tmp_path / "x.jsonl")]
    for task in ("poison", "random"):
        assert run.main(["--task", task, *asked]) == 0
    found = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert found[0]["images"] == found[1]["images"] == files.fingerprints(datasets.load("fashion-mini"))
    assert all(row["cpu"] and row["isa"] == torch.backends.cpu.get_cpu_capability() for row in found)


def test_fingerprints_differ():
    """Point 3: a pixel or a label of either set."""
    one = make_dataset(0)
    pixels, labels = one.test.images.clone(), (one.train.labels + 1) % 4
    pixels[0, 0, 0, 0] ^= 1
    others = replace(one, test=replace(one.test, images=pixels)), replace(one, train=replace(one.train, labels=labels))
    assert len({files.fingerprints(each) for each in (one, make_dataset(0), *others)}) == 3


def test_the_processor_in_rows(monkeypatch):
    """Point 3: oneDNN's limit is told where one is set; a system without /proc/cpuinfo has a name, too."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert devices.processor()["isa"].endswith(", ONEDNN_MAX_CPU_ISA=AVX2")
    monkeypatch.setattr(devices, "Path", lambda name: Path("/nowhere"))
    assert devices.processor()["cpu"]


# --- 4. Names of outputs ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["o/", "a" * 256, ".", "", "dir", "pipe"])
def test_a_bad_out_is_told_before_the_work(tmp_path, capsys, no_work, name):
    """Point 4: the very name is looked at; nothing is left behind."""
    (tmp_path / "dir").mkdir()
    os.mkfifo(tmp_path / "pipe")
    out = f"{tmp_path}/{name}" if name else name
    assert "give another --out" in refused(capsys, "--n", 4, "--out", out)
    assert {path.name for path in tmp_path.iterdir()} == {"dir", "pipe"}


def test_temporary_names_fit(tmp_path):
    """Point 4: of the longest name that a file can have, too; looking creates nothing."""
    for length in (1, 240, 246, 255):
        path = tmp_path / ("a" * length)
        files.check_writable(str(path))
        assert not list(tmp_path.iterdir())
        files.write_whole(path, lambda file: file.write(b"x"))
        assert [found.name for found in tmp_path.iterdir()] == [path.name]
        path.unlink()
    with pytest.raises(ValueError, match="too long"):
        files.check_writable(str(tmp_path / ("é" * 128)))


# --- 5. What never ends, what is too large ----------------------------------------------------------------------------

def test_a_pipe_is_no_image(tmp_path):
    """Point 5: it is not opened, which would wait for ever."""
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"cannot decode \S*x.png \(it is no regular file\)"):
        datasets._decode_one(tmp_path / "x.png", 8)
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="no regular file"):
        datasets._decode_one(tmp_path / "zero.png", 8)


@pytest.mark.parametrize("size, words", [(200000, "at most 4096"), (10**30, "at most 4096"),
                                         (4000, "give a smaller --image-size")])
def test_image_sizes_are_bounded(capsys, no_work, monkeypatch, size, words):
    """Points 5, 8: by a number, and by the memory of the machine, before an image is made."""
    monkeypatch.setattr(datasets.F, "interpolate", lambda *args, **more: pytest.fail("an image was made"))
    monkeypatch.setattr(os, "sysconf", lambda name: 2**10)  # 1 MB
    assert words in refused(capsys, "--n", 4, "--image-size", size)


# --- 6. Hostile tasks -------------------------------------------------------------------------------------------------

def test_a_task_that_asks_for_code(tmp_path):
    """Point 6: it is called that, and nothing runs; what is cut short is called damaged."""
    dataset, path = make_dataset(0), tmp_path / "x.task"
    torch.save({"name": "poison", "x": Evil(tmp_path / "ran")}, path)
    words = r"x.task is no task of ours: it asks for code to be run \(.*delete it"
    with pytest.raises(ValueError, match=words) as told:
        files.load_task(path, dataset)
    assert "weights_only" not in str(told.value) and not (tmp_path / "ran").exists()
    files.save_task(make_task("random", dataset, 4, 0), path)
    whole = path.read_bytes()
    assert files.load_task(path, dataset).name == "random"
    for content in (b"", whole[:100], b"hello", b"images\nbad\nones.", b"import torch\nclass\nname\n", whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="x.task is no task of ours: it is damaged"):
            files.load_task(path, dataset)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="no task of ours"):
        files.load_task(path, dataset)


def test_a_long_pickle_is_not_looked_through(tmp_path):
    """Points 5, 6: what would take minutes to look through ends soon; names neither flood a terminal nor steer it."""
    (tmp_path / "long").write_bytes(b"\x80\x02" + b"N0" * 2**25)
    begin = time.process_time()
    assert files.asks_for_code(tmp_path / "long", ValueError()) is None
    assert time.process_time() - begin < 20
    (tmp_path / "odd").write_bytes(b"\x80\x02cos\x1b[2J\n" + b"s" * 5000 + b"\n.")
    asked = files.asks_for_code(tmp_path / "odd", ValueError())
    assert asked.startswith("os?[2J.sss") and asked.isprintable() and len(asked) < 100


# --- 8. Messages ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "MASTER_PORT"])
@pytest.mark.parametrize("value", ["abc", "", "-1", "1.5", "9" * 5000, "²"])
def test_what_torchrun_sets(capsys, no_work, monkeypatch, name, value):
    """Point 8: the variable is named, in the grid too."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, value)
    assert f"{name} is " in refused(capsys, "--n", 4)
    if name != "MASTER_PORT":
        assert f"{name} is " in refused(capsys, "grid", "--dry-run")
    monkeypatch.setenv(name, "3")
    assert processes.from_torchrun(name, 0) == 3


@pytest.mark.parametrize("argv, words", [
    (["--ratio", 1e300], "ratio is 1e+300; theta_o2 would take inf GB"),
    (["--ratio", 1e5], "ratio is 100000; theta_o2 would take"),
    (["--capacity", 1e-300], "capacity is 1e-300 and so ratio 1e+300"),
    (["--width", 1e300], "resnet9 of width 1e+300 at capacity 0.5 cannot be built"),
    (["--pair", "9" * 5000 + ",1", "--task", "confusion"], "(5,002 letters)' ; give".replace(" ;", ";")),
])
def test_absurd_numbers_are_told_before_the_work(capsys, no_work, argv, words):
    """Point 8: each by the name of its flag."""
    assert words in refused(capsys, "--n", 4, *argv)


def test_a_capacity_counts_where_theta_o2_is_made(monkeypatch):
    """Point 8: methods without theta_o2 run at any capacity; the usual ones fit."""
    net = small_net(0)
    devices.check_room(resolve({"capacity": 1e-300, "method": "no-ul,cf"}), net)
    devices.check_room(Config(), net)
    with pytest.raises(ValueError, match="capacity is"):
        devices.check_room(resolve({"capacity": 1e-300, "method": "all"}), net)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("argv", [["--n", "0"], ["--no-such-flag"]])
def test_a_full_stderr_changes_no_exit_code(argv):
    """Point 8: an error that cannot be told is an error of the same kind."""
    with open("/dev/full", "w") as full:
        command = [sys.executable, str(ROOT / "run.py"), *argv]
        assert subprocess.run(command, stderr=full, stdout=subprocess.DEVNULL).returncode == 2


def test_a_closed_stderr_is_not_stdout(capsys, monkeypatch):
    """Point 8: print to a stderr that is None would take stdout."""
    monkeypatch.setattr(sys, "stderr", None)
    assert run.main(["--n", "0"]) == 2
    assert capsys.readouterr().out == ""


def test_a_warning_that_cannot_be_told_ends_nothing(monkeypatch):
    """Point 8: in the middle of the work."""
    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, "full")

        flush = write

        def fileno(self):
            raise OSError("none")

    monkeypatch.setattr(sys, "stderr", Full())
    tell("anything")
    monkeypatch.setattr(run, "command", lambda argv: warnings.warn("in between", stacklevel=1) or 0)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run.main([]) == 0


def test_clipped():
    """Point 8: a long text is cut, and says how long it was."""
    assert clipped("a" * 80) == "a" * 80 and clipped("a" * 5000) == "a" * 40 + "... (5,000 letters)"
    assert cell.clipped is clipped
