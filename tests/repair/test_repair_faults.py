"""What goes wrong around a repair: disks that are full, names, files that never end or are hostile, odd weights.

P9: a state that cannot be written costs no repair, and makes room for the weights.
P3: bad input is one line and exit code 2 before any work; what fails or goes away afterwards costs no weights.
K5: code in a checkpoint or a state is called code, and never run; no advice of torch to run it is passed on.
K4: networks without weights, and weights that could not be kept, are refused by name.
"""

import collections
import contextlib
import errno
import json
import os
import pickle
import re
import resource
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import run
from helpers import Evil, assert_same_state, gen, make_data, small_net
from repair import checkpoints, command, images, inputs, network, networks, outputs, state


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


# --- A full disk ------------------------------------------------------------------------------------------------------

def test_a_state_that_cannot_be_written_costs_no_repair(tmp_path, monkeypatch):
    """P9: whatever writing it raises, torch's RuntimeError of a disk that fills up too, costs a line an epoch; the
    network is the one that it would have been, and nothing is left behind."""
    def fail(*args, **more):
        raise RuntimeError("enforce fail at inline_container.cc:672")

    data, net = make_data(0, n=24), small_net(0)
    whole, before = network.repair(net, data, FORGET, **settings()), resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit, words in ((3000, "too large"), (before[0], "enforce fail")):
        told = []
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))  # as on a full disk; no root is needed
        try:
            found = network.repair(net, data, FORGET, keep=tmp_path / "x.state", say=told.append, **settings())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert_same_state(found, whole)
        assert sum(line.startswith("the state of epoch") and words in line for line in told) == 2
        assert not list(tmp_path.iterdir())
        monkeypatch.setattr(state, "write_whole", fail)


@pytest.mark.parametrize("leave", [None, 10**6])
def test_states_leave_room_for_the_weights(tmp_path, monkeypatch, leave):
    """P9: a state is written where it fits beside an older one and leaves so many bytes, by default what the network's
    weights take; one byte less, and it is not."""
    written, free, sizes = [], [0], []
    monkeypatch.setattr(state.shutil, "disk_usage", lambda place: types.SimpleNamespace(free=free[0]))
    monkeypatch.setattr(state, "write_whole", lambda *args: written.append(1))
    check_disk = state.check_disk
    monkeypatch.setattr(state, "check_disk", lambda path, size, rest: sizes.append((size, rest)) or check_disk(
        path, size, rest))
    net, keep, told = small_net(0), tmp_path / "x.state", []

    def written_with(room: int) -> bool:
        written.clear()
        free[0] = room
        network.repair(net, make_data(0, n=24), FORGET, keep=keep, leave=leave, say=told.append,
                       **settings() | {"unlearn_epochs": 1})
        keep.unlink(missing_ok=True)
        return bool(written)

    assert not written_with(0) and "MB are free, the state takes" in told[-1]
    (size, rest), = sizes
    assert rest == (state.bytes_of(net.state_dict()) if leave is None else leave)
    assert written_with(size + rest) and not written_with(size + rest - 1)
    keep.write_bytes(bytes(500))  # an older one, which goes once the new one is whole
    for rest, need in ((1000, size + 500), (100, size)):
        free[0] = need
        check_disk(keep, size, rest)
        free[0] -= 1
        with pytest.raises(OSError, match="MB are free"):
            check_disk(keep, size, rest)


def test_a_state_makes_room_for_the_weights(folder, cut_after_one, monkeypatch, capsys):
    """P9: where a disk has filled up since, the state goes and the weights come; where there is nothing more to remove,
    it is exit code 1 and one line with the file."""
    def write(path, *args, inner=checkpoints.write):
        if always or folder["--out"].with_suffix(".state").exists():
            raise OSError(errno.ENOSPC, "No space left on device", str(path))  # as `write_whole` tells it
        inner(path, *args)

    assert call(folder, "--checkpoint-every", 0) == 0
    whole, always = folder["--out"].read_bytes(), False
    folder["--out"].unlink()
    with cut_after_one():
        assert call(folder) == 130
    monkeypatch.setattr(checkpoints, "write", write)
    capsys.readouterr()
    assert call(folder) == 0
    told = capsys.readouterr().out
    assert "going on after epoch 1" in told and "repaired.state is removed to make room" in told
    assert folder["--out"].read_bytes() == whole
    always = True
    assert call(folder) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("run.py: OSError: [Errno 28] No space left on device: ")


def test_room_is_made_once(tmp_path):
    """P9: a second failure is told; without a state there is nothing to remove."""
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
    """P3: what fails after the repair, its scores too, costs no weights."""
    def fail(*args):
        raise ArithmeticError("logits are not finite")

    monkeypatch.setattr(command, "before_and_after", fail)
    assert "has these weights" in refused(folder, capsys)
    assert folder["--out"].is_file()


def test_the_room_of_a_state_is_not_underrated(tmp_path):
    """P9: the estimate is at least the file, and not far above it."""
    content = {"a": {"b": [torch.zeros(1000), torch.zeros(3, dtype=torch.int64)]}, "c": torch.zeros(50_000), "d": "x"}
    torch.save(content, tmp_path / "x")
    size = (tmp_path / "x").stat().st_size
    assert size <= state.bytes_of(content) <= size + 2**17


# --- Bad names of outputs ---------------------------------------------------------------------------------------------

def test_long_names_are_written(folder):
    """P3: where the name itself fits, the temporary one is no longer."""
    out = folder["--data"] / "out" / ("a" * 243 + ".pt")  # 246 letters
    assert call({**folder, "--out": out, "--epochs": 1}) == 0
    assert out.is_file() and out.with_suffix(".json").is_file() and not list(out.parent.glob("*.tmp"))


# --- What never ends --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("flag", ["--checkpoint", "--bad", "--clean", "--class-map", "the state"])
def test_only_regular_files_are_read(folder, capsys, flag):
    """P3: a named pipe, a device without an end and a folder are refused by name, and none is waited for."""
    state_file = folder["--out"].with_suffix(".state")
    state_file.parent.mkdir()
    for kind in ("pipe", "device", "folder"):
        path = state_file if flag == "the state" else folder["--data"] / kind
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero")
        told = refused(folder if flag == "the state" else {**folder, flag: path}, capsys)
        assert str(path) in told and ("regular file" in told or "directory" in told or "folder" in told)
        path.rmdir() if kind == "folder" else path.unlink()


def test_a_pipe_among_the_images(folder, capsys):
    """P3: it is named as an image that cannot be decoded, and left out like one."""
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
    """P3: --bad <(...), two of them too; the report has the digest of what was read."""
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
    """P3: no more than LARGEST bytes are read, of what a shell gives too."""
    monkeypatch.setattr(inputs, "LARGEST", 10)
    assert "has more than 0 MB" in refused(folder, capsys)


@pytest.mark.parametrize("flags, words", [
    ({"--crop-pct": 0.0005}, "--crop-pct 0.0005 of 8 pixels asks for images resized to 16,000, at most 8192"),
    ({"--crop-pct": 5e-324}, "resized to inf"), ({"--image-size": 200000}, "the image size is 200000"),
    ({"--image-size": 4097}, "from 1 to 4096 pixels"), ({"--image-size": 10**30}, "from 1 to 4096 pixels")])
def test_sizes_are_bounded_before_anything_is_decoded(folder, capsys, monkeypatch, flags, words):
    """P3: --crop-pct and --image-size."""
    monkeypatch.setattr(images, "_decode_one", lambda *args: pytest.fail("an image was decoded"))
    assert words in refused({**folder, **flags}, capsys)


def test_the_bounds_themselves_are_taken():
    """P3: the largest size and the smallest crop that are allowed."""
    assert images.Reading(4096, 0.5).size == 4096 and images.Reading(32, 32 / 8192).crop_pct == 32 / 8192
    with pytest.raises(ValueError, match="at most 8192"):
        images.Reading(4096, 0.4999)


# --- Hostile files ----------------------------------------------------------------------------------------------------

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


def refusals(path: Path) -> list[str]:
    """What is said of a file as a checkpoint and as a state."""
    with pytest.raises(ValueError) as read:
        checkpoints.read(path)
    with pytest.raises(ValueError) as resumed:
        state.resume(None, None, path, "key", {})
    return [str(read.value), str(resumed.value)]


HOSTILE = ["system zip", "path zip", "system legacy", "inst", "obj", *(f"{name} {k}" for name in ("system", "path")
                                                                       for k in (0, 2, 4, 5))]


@pytest.mark.parametrize("kind", HOSTILE)
def test_code_is_called_code(tmp_path, kind):
    """K5: of a checkpoint and of a state: that it asks for code to be run, what, and that it was not read."""
    path, mark = tmp_path / "model.pt", tmp_path / "ran"
    hostile(kind, path, mark)
    name = r"(posix|nt|os)\.system" if kind in ("inst", "obj") or "system" in kind else (
        "(pathlib|getattr|builtins|__builtin__)")
    read, resumed = refusals(path)
    assert re.search(f"holds a pickled {name}.* asks for code to be run and was not read", read)
    assert re.search(f"no state of this repair .it asks for code to be run, {name}.* move it away", resumed)
    assert "weights_only" not in read + resumed and not mark.exists()
    if kind == "path 2":  # a control: what an unsafe load does
        pickle.loads(path.read_bytes())
        assert mark.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}q\x00.", b"epoch 1\n", bytes(range(256)) * 9])
def test_no_advice_of_torch_is_passed_on(tmp_path, content):
    """K5: whatever else stands in a file, nobody is told to set weights_only to False."""
    (tmp_path / "x.pt").write_bytes(content)
    for told in refusals(tmp_path / "x.pt"):
        assert "weights_only" not in told and "Weights only" not in told and str(tmp_path / "x.pt") in told


# --- Networks without weights, weights that are not real --------------------------------------------------------------

def test_a_network_without_parameters(folder, capsys):
    """K4: named at once, in the library too."""
    told = refused({**folder, "--model": f"{folder['--data'] / 'net.py'}:bare"}, capsys)
    assert "net.py:bare has no parameters, so a repair can change nothing" in told
    with pytest.raises(ValueError, match="the network has no parameters"):
        network.repair(nn.AdaptiveAvgPool2d(1), make_data(0, n=24), FORGET)
    assert "complex parameters" in refused({**folder, "--model": f"{folder['--data'] / 'net.py'}:turned"}, capsys)


@pytest.mark.parametrize("kind", [torch.complex64, torch.int64, torch.float8_e4m3fn])
def test_weights_that_could_not_be_kept(tmp_path, kind):
    """K4: complex, whole and 8-bit weights, of which a repair would lose something, are refused by name."""
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


# --- Messages that name the file and the cure -------------------------------------------------------------------------

@pytest.mark.parametrize("more, words", [(("--ratio", 1e300), "ratio is 1e+300; theta_o2 would take inf GB"),
                                         (("--model", "resnet9:" + "9" * 60), "cannot be built at 8 pixels")])
def test_widths_that_no_machine_has(folder, capsys, monkeypatch, more, words):
    """P3: told before any image is decoded."""
    monkeypatch.setattr(images, "_decode_one", lambda *args: pytest.fail("an image was decoded"))
    assert words in refused(folder, capsys, *more)


def test_inputs_that_go_away_cost_nothing(folder, monkeypatch, capsys):
    """P3: the report's digests are of what was read, so that lists and weights may change or go meanwhile."""
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
    """K5: a state dict that was pickled plainly is refused, but not as code; one of torch.save is read."""
    (tmp_path / "x.pt").write_bytes(pickle.dumps(collections.OrderedDict(a=1), protocol=4))
    with pytest.raises(ValueError) as told:
        checkpoints.read(tmp_path / "x.pt")
    assert "asks for code" not in str(told.value)
    torch.save(small_net(0).state_dict(), tmp_path / "y.pt")
    assert checkpoints.read(tmp_path / "y.pt") and gen(0)
