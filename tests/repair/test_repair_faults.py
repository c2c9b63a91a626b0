"""What goes wrong around a repair: images that change, disks that are full, files that never end, names, hostile files.

Each test has in its first line the point of the issue "Nothing mixed, nothing lost, nothing without a word" it holds.
"""

import collections
import contextlib
import errno
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import run
from experiment.data import Streamed
from helpers import Evil, assert_same_state, gen, make_data, small_net
from repair import checkpoints, command, images, inputs, mismatch, network, networks, outputs, state


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Tests run in a folder of their own, so that what a command makes where it runs is not in the checkout."""
    monkeypatch.chdir(tmp_path)


pytestmark = pytest.mark.filterwarnings("ignore:Acc")  # rounding decides whether a cap is reached
FORGET = torch.tensor([1, 5, 9])
NET = """
import torch
from torch import nn
def make(classes):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
class Bare(nn.Module):
    def forward(self, x): return x.mean((2, 3))
def bare(classes): return Bare()
def turned(classes): return nn.Sequential(nn.Flatten(), nn.Linear(3, classes, dtype=torch.complex64))
"""


def settings(**more) -> dict:
    """Settings by which every epoch runs, of a small network."""
    return dict(unlearn_epochs=2, stop="max", batch=16, max_passes=2, **more)


@pytest.fixture
def folder(tmp_path) -> dict:
    """48 images of two classes, a network, its weights and a list, as flags of run.py repair."""
    (tmp_path / "net.py").write_text(NET)
    generator = np.random.default_rng(0)
    for part, n in (("train", 48), ("test", 4)):
        for i in range(n):
            path = tmp_path / part / "ab"[i % 2] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    (tmp_path / "bad.txt").write_text("01.png\n05.png\n09.png\n")
    model, _ = networks.build_network(f"{tmp_path / 'net.py'}:make", 2, 8)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    return {"--data": tmp_path, "--model": f"{tmp_path / 'net.py'}:make", "--checkpoint": tmp_path / "model.pt",
            "--bad": tmp_path / "bad.txt", "--image-size": 8, "--device": "cpu", "--epochs": 2, "--batch-size": 16,
            "--out": tmp_path / "out" / "repaired.pt"}


def call(flags: dict, *more) -> int:
    """run.py repair in this process; a flag's value may be several. What the verdict on an untrained network is does
    not count: 3 is 0."""
    words = [[name, *(value if isinstance(value, list) else [value])] for name, value in flags.items()]
    code = run.main(["repair", *map(str, sum(words, [])), "--force", *map(str, more)])
    return 0 if code == 3 else code


def refused(flags: dict, capsys, *more) -> str:
    """What stderr says of a command that must end with exit code 2 and one line."""
    assert call(flags, *more) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].startswith("run.py: ") and len(lines[0]) < 1500, lines
    return lines[0]


@pytest.fixture
def cut_after_one(monkeypatch):
    """A context in which a repair is interrupted once the state of its first epoch is written."""
    @contextlib.contextmanager
    def context():
        def cut(*args, **more):
            state.save_state(*args, **more)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(network, "save_state", cut)
            yield

    return context


# --- 1. The state of other images -------------------------------------------------------------------------------------

@pytest.mark.parametrize("changed", [0, 33, 63])
def test_one_changed_pixel_of_any_image_begins_anew(tmp_path, cut_after_one, changed):
    """Point 1: of images in memory every byte counts, also of the half that is not sampled; the same go on."""
    data, net, told = make_data(0, n=64), small_net(0), []
    pixels = data.images.clone()
    pixels[changed, 0, 2, 3] ^= 1
    other, keep = replace(data, images=pixels), tmp_path / "x.state"
    with cut_after_one(), pytest.raises(KeyboardInterrupt):
        network.repair(net, data, FORGET, keep=keep, **settings())
    kept = keep.read_bytes()
    found = network.repair(net, other, FORGET, keep=keep, say=told.append, **settings())
    assert not any("going on" in line for line in told) and any("will be replaced" in line for line in told)
    assert_same_state(found, network.repair(net, other, FORGET, **settings()))
    keep.write_bytes(kept)
    told.clear()
    found = network.repair(net, data, FORGET, keep=keep, say=told.append, **settings())
    assert any("going on after epoch 1" in line for line in told)
    assert_same_state(found, network.repair(net, data, FORGET, **settings()))


@pytest.mark.parametrize("memory", [1, 0])
def test_the_command_goes_on_with_the_same_files_alone(folder, cut_after_one, capsys, memory):
    """Point 1: killed after epoch 1 and ten images overwritten: in memory their pixels tell, streamed their times."""
    few = {**folder, "--max-memory": memory, "--workers": 0}
    with cut_after_one():
        assert call(few) == 130
    kept = folder["--out"].with_suffix(".state").read_bytes()
    assert call(few) == 0
    assert "going on after epoch 1" in capsys.readouterr().out
    for path in sorted((folder["--data"] / "train" / "b").iterdir())[7:17]:
        Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(path)
    folder["--out"].with_suffix(".state").write_bytes(kept)
    assert call(few) == 0
    told = capsys.readouterr().out
    assert "going on" not in told and "will be replaced" in told
    again = folder["--out"].read_bytes()
    assert call(few) == 0 and folder["--out"].read_bytes() == again  # what the changed folder gives by itself


def test_a_rerun_may_have_less_memory(folder, cut_after_one, capsys):
    """Point 1: images in memory at first, streamed when the command is repeated: the same files go on."""
    with cut_after_one():
        assert call(folder, "--max-memory", 1) == 130
    assert call(folder, "--max-memory", 0, "--workers", 0) == 0
    assert "going on after epoch 1" in capsys.readouterr().out


def test_marks_of_images():
    """Point 1: pixels count where both runs had them, else files; a state that says nothing is of other images."""
    pixels, files = {"pixels": "p", "files": "f"}, {"files": "f"}
    assert state.same_images(pixels, {"pixels": "p", "files": "touched"})
    assert not state.same_images(pixels, {"pixels": "q", "files": "f"})
    assert state.same_images(pixels, files) and not state.same_images(files, {"files": "g"})
    assert state.same_images({}, {}) and not state.same_images({}, pixels)
    data = make_data(0, n=40)
    pairs = Streamed(list(zip(data.images, data.labels.tolist(), strict=True)), 4, labels=data.labels)
    assert state.marks_of(pairs) == {} and set(state.marks_of(data)) == {"pixels"}


def test_marks_of_files(tmp_path):
    """Point 1: path, size and time of every file of a streamed folder."""
    paths = [tmp_path / f"{i}.png" for i in range(40)]
    for path in paths:
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    reading = images.Reading(8, mean=(0.5,) * 3, std=(0.5,) * 3)
    data, _ = images.load_images(paths, torch.arange(40) % 2, 2, reading, workers=0, room=0)
    before = state.marks_of(data)
    assert set(before) == {"files"} and state.marks_of(data) == before
    status = paths[17].stat()
    os.utime(paths[17], ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    touched = state.marks_of(data)
    os.utime(paths[17], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert touched != before and state.marks_of(data) == before
    paths[3].rename(tmp_path / "x.png")
    with pytest.raises(FileNotFoundError):
        state.marks_of(data)


# --- 2. A full disk ---------------------------------------------------------------------------------------------------

@pytest.fixture
def disk(tmp_path):
    """A function that makes a file system of so many bytes."""
    made = []

    def make(size: int) -> Path:
        place = tmp_path / f"disk{len(made)}"
        place.mkdir()
        mounted = shutil.which("mount") and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True).returncode == 0
        if not mounted:
            pytest.skip("only root can mount a small file system")
        made.append(place)
        return place

    yield make
    for place in made:
        subprocess.run(["umount", place], check=True)


@contextlib.contextmanager
def files_of_at_most(size: int):
    """No file may grow beyond so many bytes, as on a full disk; no root is needed."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_state_that_does_not_fit_costs_no_repair(tmp_path):
    """Point 2: torch's RuntimeError of a write that fails costs a line, and the network is the one it would have
    been."""
    data, net, told = make_data(0, n=24), small_net(0), []
    whole = network.repair(net, data, FORGET, **settings())
    with files_of_at_most(3000):
        found = network.repair(net, data, FORGET, keep=tmp_path / "x.state", say=told.append, **settings())
    assert_same_state(found, whole)
    assert sum(line.startswith("the state of epoch") and "too large" in line for line in told) == 2
    assert not list(tmp_path.iterdir())


def test_any_error_of_a_state_costs_no_repair(tmp_path, monkeypatch):
    """Point 2: whatever writing a state raises."""
    def fail(*args, **more):
        raise RuntimeError("enforce fail at inline_container.cc:672")

    monkeypatch.setattr(state, "write_whole", fail)
    data, net, told = make_data(0, n=24), small_net(0), []
    found = network.repair(net, data, FORGET, keep=tmp_path / "x.state", say=told.append, **settings())
    assert_same_state(found, network.repair(net, data, FORGET, **settings()))
    assert any("could not be written" in line and "enforce fail" in line for line in told)


def test_states_leave_room_for_the_weights(folder, disk, capsys):
    """Point 2: where the weights alone fit, they are written and no state is; where both fit, both."""
    place = disk(64 * 1024)
    assert call({**folder, "--out": place / "repaired.pt"}) == 0
    told = capsys.readouterr().out
    assert told.count("could not be written") == 2 and "MB are free, the state takes" in told
    assert (place / "repaired.pt").is_file() and (place / "repaired.json").is_file()
    assert not list(place.glob("*.tmp")) and not list(place.glob("*.state"))
    assert call(folder) == 0
    assert (place / "repaired.pt").read_bytes() == folder["--out"].read_bytes()


def test_a_state_makes_room_for_the_weights(folder, disk, cut_after_one, capsys):
    """Point 2: a disk that has filled up since: the state goes, the weights come; what is no repair's stays."""
    place = disk(512 * 1024)
    flags = {**folder, "--out": place / "repaired.pt"}
    with cut_after_one():
        assert call(flags) == 130
    free = shutil.disk_usage(place).free
    (place / "other").write_bytes(bytes(free - 4096))
    assert call(flags) == 0
    told = capsys.readouterr().out
    assert "going on after epoch 1" in told and "repaired.state is removed to make room" in told
    assert call(folder) == 0
    assert (place / "repaired.pt").read_bytes() == folder["--out"].read_bytes()
    assert (place / "other").stat().st_size == free - 4096


def test_a_disk_without_any_room_is_told(folder, disk, capsys):
    """Point 2: where not even the weights fit: exit 1, one line with the file, nothing half written."""
    place = disk(64 * 1024)
    (place / "other").write_bytes(bytes(shutil.disk_usage(place).free))
    assert call({**folder, "--out": place / "repaired.pt"}) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("run.py: OSError: [Errno 28] No space left on device: ")
    assert [path.name for path in place.iterdir()] == ["other"]


def test_room_is_made_once(tmp_path):
    """Point 2: a second failure is told; without a state there is nothing to remove."""
    kept, told, tries = tmp_path / "x.state", [], []

    def write():
        tries.append(1)
        raise OSError(errno.ENOSPC, "full")

    kept.write_bytes(b"state")
    for count in (2, 3):  # with a state twice, without once
        with pytest.raises(OSError, match="full"):
            outputs.written(write, kept, told.append)
        assert len(tries) == count and not kept.exists()
    assert told == [f"full: {kept} is removed to make room"]


def test_weights_come_before_the_scores(folder, monkeypatch, capsys):
    """Point 2: what fails after the repair, its scores too, costs no weights."""
    def fail(*args):
        raise ArithmeticError("logits are not finite")

    monkeypatch.setattr(command, "before_and_after", fail)
    assert "has these weights" in refused(folder, capsys)
    assert folder["--out"].is_file()


def test_the_room_of_a_state_is_not_underrated(tmp_path):
    """Point 2: the estimate is at least the file, and not far above it."""
    content = {"a": {"b": [torch.zeros(1000), torch.zeros(3, dtype=torch.int64)]}, "c": torch.zeros(50_000), "d": "x"}
    torch.save(content, tmp_path / "x")
    size = (tmp_path / "x").stat().st_size
    assert size <= state.bytes_of(content) <= size + 2**17


# --- 4. Bad names of outputs ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["o/", "a" * 251 + ".pt", "a" * 250 + ".pt", "..", "."])
def test_a_bad_out_is_told_before_the_work(folder, capsys, monkeypatch, name):
    """Point 4: a folder's name, a name that is too long, and one whose state's is."""
    monkeypatch.setattr(command, "open_folder", lambda *args: pytest.fail("work began"))
    assert "--out" in refused({**folder, "--out": f"{folder['--data']}/{name}"}, capsys)


def test_long_names_are_written(folder):
    """Point 4: where the name itself fits, the temporary one is no longer."""
    out = folder["--data"] / "out" / ("a" * 243 + ".pt")  # 246 letters
    assert call({**folder, "--out": out, "--epochs": 1}) == 0
    assert out.is_file() and out.with_suffix(".json").is_file() and not list(out.parent.glob("*.tmp"))


# --- 5. What never ends -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("flag", ["--checkpoint", "--bad", "--clean", "--class-map"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_only_regular_files_are_read(folder, capsys, flag, kind):
    """Point 5: a named pipe, a device without an end and a folder are refused by name."""
    path = folder["--data"] / "odd"
    if kind == "pipe":
        os.mkfifo(path)
    if kind == "folder":
        path.mkdir()
    path = "/dev/zero" if kind == "device" else path
    told = refused({**folder, flag: path}, capsys)
    assert str(path) in told and ("regular file" in told or "directory" in told)


def test_a_pipe_among_the_images(folder, capsys):
    """Point 5: it is named as an image that cannot be decoded, and left out like one."""
    os.mkfifo(folder["--data"] / "train" / "a" / "zz.png")
    assert "zz.png (it is no regular file)" in refused(folder, capsys)
    assert call(folder, "--skip-bad-images", "--epochs", 1) == 0
    assert "1 images cannot be decoded and are left out" in capsys.readouterr().out


def from_shell(content: bytes) -> str:
    """A path as bash gives it for <(...): an open pipe, whose content can be read once."""
    end, begin = os.pipe()
    os.write(begin, content)
    os.close(begin)
    return f"/dev/fd/{end}"


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="this system has no /dev/fd")
@pytest.mark.parametrize("lists", [[b"01.png\n05.png\n09.png\n"], [b"01.png\n", b"09.png\n05.png\n"],
                                   [b"", b"1.png\n"]])
def test_lists_from_a_shell_are_read_once(folder, capsys, lists):
    """Point 5: --bad <(...), two of them too; the report has the digest of what was read."""
    paths = [from_shell(content) for content in lists]
    try:
        code = call({**folder, "--bad": paths, "--epochs": 1})
        told = capsys.readouterr()
        if b"1.png\n" in lists:
            assert code == 2 and "1 lines, 0 matched" in told.err
            return
        report = json.loads(folder["--out"].with_suffix(".json").read_text())
        assert code == 0 and "3 known bad" in told.out
        assert {report["sha256"][path] for path in paths} == {
            outputs.hashlib.sha256(content).hexdigest() for content in lists}
    finally:
        for path in paths:
            os.close(int(path.rpartition("/")[2]))


def test_a_list_without_end_is_bounded(folder, capsys, monkeypatch):
    """Point 5: no more than LARGEST bytes are read, of what a shell gives too."""
    monkeypatch.setattr(inputs, "LARGEST", 10)
    assert "has more than 0 MB" in refused(folder, capsys)


@pytest.mark.parametrize("flags, words", [
    ({"--crop-pct": 0.0005}, "--crop-pct 0.0005 of 8 pixels asks for images resized to 16,000, at most 8192"),
    ({"--crop-pct": 5e-324}, "resized to inf"), ({"--image-size": 200000}, "the image size is 200000"),
    ({"--image-size": 4097}, "from 1 to 4096 pixels"), ({"--image-size": 10**30}, "from 1 to 4096 pixels")])
def test_sizes_are_bounded_before_anything_is_decoded(folder, capsys, monkeypatch, flags, words):
    """Points 5, 8: --crop-pct and --image-size."""
    monkeypatch.setattr(images, "_decode_one", lambda *args: pytest.fail("an image was decoded"))
    assert words in refused({**folder, **flags}, capsys)


def test_the_bounds_themselves_are_taken():
    """Point 5: the largest size and the smallest crop that are allowed."""
    assert images.Reading(4096, 0.5).size == 4096 and images.Reading(32, 32 / 8192).crop_pct == 32 / 8192
    with pytest.raises(ValueError, match="at most 8192"):
        images.Reading(4096, 0.4999)


# --- 6. Hostile files -------------------------------------------------------------------------------------------------

class Command:
    """What most attacks are made of."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def hostile(kind: str, path: Path, mark: Path) -> None:
    """Write a file that would make `mark` if it were unpickled."""
    evil = Command(mark) if "system" in kind else Evil(mark)
    if kind.endswith("zip"):
        torch.save({"w": torch.zeros(3), "x": evil}, path)
    elif kind.endswith("legacy"):
        torch.save(evil, path, _use_new_zipfile_serialization=False)
    elif kind == "inst":
        path.write_bytes(f"(S'touch {mark}'\nios\nsystem\n.".encode())
    elif kind == "obj":
        path.write_bytes(f"(cos\nsystem\nS'touch {mark}'\no.".encode())
    else:
        path.write_bytes(pickle.dumps(evil, protocol=int(kind[-1])))


HOSTILE = ["system zip", "path zip", "system legacy", "inst", "obj", *(f"{name} {k}" for name in ("system", "path")
                                                                       for k in (0, 2, 4, 5))]


@pytest.mark.parametrize("kind", HOSTILE)
def test_code_is_called_code(tmp_path, kind):
    """Point 6: of a checkpoint and of a state: that it asks for code to be run, what, and that it was not read."""
    path, mark = tmp_path / "model.pt", tmp_path / "ran"
    hostile(kind, path, mark)
    system = kind in ("inst", "obj") or "system" in kind
    name = r"(posix|nt|os)\.system" if system else "(pathlib|getattr|builtins|__builtin__)"
    with pytest.raises(ValueError, match=f"holds a pickled {name}.* asks for code to be run and was not read") as told:
        checkpoints.read(path)
    assert "weights_only" not in str(told.value)
    with pytest.raises(ValueError, match=f"no state of this repair .it asks for code to be run, {name}") as told:
        network.repair(small_net(0), make_data(0, n=24), FORGET, keep=path, **settings())
    assert "weights_only" not in str(told.value) and "move it away" in str(told.value)
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}q\x00.", b"epoch 1\n", bytes(range(256)) * 9])
def test_no_advice_of_torch_is_passed_on(tmp_path, content):
    """Point 6: whatever else stands in a file, nobody is told to set weights_only to False."""
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError) as told:
        checkpoints.read(path)
    assert "weights_only" not in str(told.value) and "Weights only" not in str(told.value)
    assert str(path) in str(told.value)
    with pytest.raises(ValueError, match="is no state of this repair") as told:
        network.repair(small_net(0), make_data(0, n=24), FORGET, keep=path, **settings())
    assert "weights_only" not in str(told.value) and "Weights only" not in str(told.value)


def test_a_state_that_is_no_file_is_refused(tmp_path):
    """Points 5, 6: a named pipe in place of a state is not waited for."""
    os.mkfifo(tmp_path / "x.state")
    with pytest.raises(ValueError, match="no regular file"):
        network.repair(small_net(0), make_data(0, n=24), FORGET, keep=tmp_path / "x.state", **settings())


# --- 7. Networks without weights, weights that are not real -----------------------------------------------------------

def test_a_network_without_parameters(folder, capsys):
    """Point 7: named at once, in the library too."""
    told = refused({**folder, "--model": f"{folder['--data'] / 'net.py'}:bare"}, capsys)
    assert "net.py:bare has no parameters, so a repair can change nothing" in told
    with pytest.raises(ValueError, match="the network has no parameters"):
        network.repair(nn.AdaptiveAvgPool2d(1), make_data(0, n=24), FORGET)
    assert "complex parameters" in refused({**folder, "--model": f"{folder['--data'] / 'net.py'}:turned"}, capsys)


@pytest.mark.parametrize("kind", [torch.complex64, torch.int64, torch.float8_e4m3fn])
def test_weights_that_could_not_be_kept(tmp_path, kind):
    """Point 7: complex, whole and 8-bit weights, of which a repair would lose something, are refused by name."""
    net = small_net(0)
    stored = net.state_dict()
    stored["head.weight"] = stored["head.weight"].to(kind)
    torch.save(stored, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=f"head.weight as {kind}, which a repair cannot keep"):
        checkpoints.load_into(net, checkpoints.read(tmp_path / "x.pt"))
    stored["head.weight"] = net.head.weight.detach().to(torch.bfloat16)
    assert checkpoints.load_into(net, dict(stored))["head.weight"] == "head.weight"
    frozen = small_net(0)
    frozen.head.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="torch.complex64"):
        checkpoints.load_into(frozen, {**stored, "head.weight": torch.zeros(4, 3, dtype=torch.complex64)})


# --- 8. Messages that name the file and the cure ----------------------------------------------------------------------

@pytest.mark.parametrize("name, content, words", [
    ("bad.txt", "9" * 5000, r"bad.txt: 1 lines, 0 matched.*999\.\.\. \(5,000 letters\)"),
    ("bad.json", "[" + "9" * 5000 + "]", "bad.json: a number of 5,000 digits, at most 20 are read"),
    ("bad.json", "[-" + "9" * 21 + "]", "bad.json: a number of 21 digits"),
    ("bad.json", "[" * 100_000, "bad.json is no JSON that can be read: it holds too many lists"),
    ("bad.csv", "," + "\n" + "0," + "9" * 5000, "bad.csv"),
])
def test_odd_lists(folder, capsys, name, content, words):
    """Point 8: numbers of thousands of digits and lists without end are told with the file's name."""

    (folder["--data"] / name).write_text(content)
    told = refused({**folder, "--bad": folder["--data"] / name}, capsys)
    assert re.search(words, told), told


def test_numbers_of_twenty_digits_are_numbers():
    """Point 8: the bound itself, in lists and in class names."""
    assert inputs.numbered(["1" * 20, "7"]) == [int("1" * 20), 7]
    assert inputs.numbered(["1" * 21, "7"]) == ["1" * 21, "7"]
    assert sorted(["9" * 5000, "10", "9", "a"], key=mismatch.natural) == ["9", "10", "9" * 5000, "a"]


def test_a_text_file_as_checkpoint(folder, capsys):
    """Point 8: it is called one, whatever its suffix."""
    for name in ("log.pt", "log.safetensors"):
        path = folder["--data"] / name
        path.write_text("epoch 1, loss 0.3\n" * 300 + "é")
        assert f"{name} is a text file, no file of weights" in refused({**folder, "--checkpoint": path}, capsys)


@pytest.mark.parametrize("more, words", [(("--ratio", 1e300), "ratio is 1e+300; theta_o2 would take inf GB"),
                                         (("--model", "resnet9:" + "9" * 60), "cannot be built at 8 pixels")])
def test_widths_that_no_machine_has(folder, capsys, monkeypatch, more, words):
    """Point 8: told before any image is decoded."""
    monkeypatch.setattr(images, "_decode_one", lambda *args: pytest.fail("an image was decoded"))
    assert words in refused(folder, capsys, *more)


def test_inputs_that_go_away_cost_nothing(folder, monkeypatch, capsys):
    """Point 8: the report's digests are of what was read, so that lists and weights may change or go meanwhile."""
    digest, repaired = outputs.digest(str(folder["--checkpoint"])), network.repaired_with

    def gone(*args, **more):
        folder["--checkpoint"].unlink()
        folder["--bad"].unlink()
        return repaired(*args, **more)

    monkeypatch.setattr(command, "repaired_with", gone)
    assert call({**folder, "--epochs": 1}) == 0
    report = json.loads(folder["--out"].with_suffix(".json").read_text())
    assert report["sha256"][str(folder["--checkpoint"])] == digest
    assert report["cpu"] and report["isa"] and report["threads"]


def test_harmless_pickles_are_no_code(tmp_path):
    """Point 6: a state dict that was pickled plainly is refused, but not as code; one of torch.save is read."""
    (tmp_path / "x.pt").write_bytes(pickle.dumps(collections.OrderedDict(a=1), protocol=4))
    with pytest.raises(ValueError) as told:
        checkpoints.read(tmp_path / "x.pt")
    assert "asks for code" not in str(told.value)
    torch.save(small_net(0).state_dict(), tmp_path / "y.pt")
    assert checkpoints.read(tmp_path / "y.pt") and gen(0)
