"""What goes wrong around a repair: disks that are full, files that never end, go away or are hostile.

Properties P3, P9 and K5 of tests/README.md.
"""

import collections
import errno
import functools
import hashlib
import os
import pickle
import re
import types
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from colours import call, colours, report_of  # noqa: F401
from helpers import Called, Evil, assert_same_state, make_data, small_net
from repair import checkpoints, command, network, outputs, pipeline, state

pytestmark = pytest.mark.filterwarnings("ignore:Acc")  # rounding decides whether a cap is reached
FORGET = torch.tensor([1, 5, 9])
SHORT = ("--epochs", 2, "--batch-size", 16)
SETTINGS = dict(unlearn_epochs=2, stop="max", batch=16, max_passes=2)  # by which every epoch runs, of a small network


def refused(world: dict, capsys, *more) -> str:
    """What stderr says of a command that must end with exit code 2 and one line."""
    assert call(world, *more) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].startswith("run.py: ") and len(lines[0]) < 1500, lines
    return lines[0]


# --- A full disk ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("error, words", [(OSError(errno.EFBIG, "File too large"), "(File too large)"),
                                          (RuntimeError("enforce fail at container.cc:672"), "enforce fail")])
def test_a_state_that_cannot_be_written_costs_no_repair(tmp_path, monkeypatch, error, words):
    """P9: whatever writing it raises costs a line an epoch; the network is the one that it would have been."""
    data, net, told = make_data(0, n=24), small_net(0), []
    whole = network.repair_quietly(net, data, FORGET, **SETTINGS)
    monkeypatch.setattr(state, "write_whole", Mock(side_effect=error))
    found = network.repair_quietly(net, data, FORGET, keep=tmp_path / "x.state", say=told.append, **SETTINGS)
    assert_same_state(found, whole)
    lines = [line for line in told if line.startswith("the state of epoch")]
    assert len(lines) == 2 and all(words in line for line in lines)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("leave", [None, 10**6])
def test_states_leave_room_for_the_weights(tmp_path, monkeypatch, leave):
    """P9: by default as much as the network's take; where there is less, a line says so and no state is written."""
    asked, told, net, keep = Mock(wraps=state.check_disk), [], small_net(0), tmp_path / "x.state"
    monkeypatch.setattr(state.shutil, "disk_usage", lambda place: types.SimpleNamespace(free=0))
    monkeypatch.setattr(state, "check_disk", asked)
    network.repair_quietly(net, make_data(0, n=24), FORGET, keep=keep, leave=leave, say=told.append, **SETTINGS)
    assert not keep.exists() and "MB are free, the state takes" in told[-1]
    wanted = state.bytes_of(net.state_dict()) if leave is None else leave
    assert [one.args[2] for one in asked.call_args_list] == [wanted] * 2


@pytest.mark.parametrize("older, leave, need", [(0, 0, 900), (0, 50, 950), (500, 1000, 1400), (500, 100, 900)])
def test_the_room_that_a_state_needs(tmp_path, monkeypatch, older, leave, need):
    """P9: a state of 900 bytes fits beside an older one, which goes once it is whole, and leaves so many bytes."""
    monkeypatch.setattr(state.shutil, "disk_usage", lambda place: types.SimpleNamespace(free=free))
    keep = tmp_path / "x.state"
    keep.write_bytes(bytes(older))
    free = need
    state.check_disk(keep, 900, leave)
    free = need - 1
    with pytest.raises(OSError, match="MB are free"):
        state.check_disk(keep, 900, leave)


def test_a_state_makes_room_for_the_weights(colours, monkeypatch, capsys):
    """P9: where a disk has filled up since, the state goes and the weights come; where there is nothing more to remove,
    it is exit code 1 and one line with the file."""
    def write(path, *args, inner=checkpoints.write):
        if always or colours["--out"].with_suffix(".state").exists():
            raise OSError(errno.ENOSPC, "No space left on device", str(path))  # as `write_whole` tells it
        inner(path, *args)

    assert call(colours, *SHORT, "--checkpoint-every", 0) == 0
    whole, always = colours["--out"].read_bytes(), False
    colours["--out"].unlink()
    monkeypatch.setattr(checkpoints, "write", write)
    assert call(colours, *SHORT) == 0
    assert "repaired.state is removed to make room" in capsys.readouterr().out
    assert colours["--out"].read_bytes() == whole
    always = True
    assert call(colours, *SHORT) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("run.py: OSError: [Errno 28] No space left on device: ")


def test_room_is_made_once(tmp_path):
    """P9: a second failure is told; without a state there is nothing to remove."""
    kept, told, write = tmp_path / "x.state", [], Mock(side_effect=OSError(errno.ENOSPC, "full"))
    kept.write_bytes(b"state")
    for count in (2, 3):  # with a state twice, without once
        with pytest.raises(OSError, match="full"):
            outputs.written(write, kept, told.append)
        assert write.call_count == count and not kept.exists()
    assert told == [f"full: {kept} is removed to make room"]


def test_no_room_is_made_where_room_is_not_what_lacks(tmp_path):
    """P9: what may not be written, on a disk with room, costs no state."""
    kept = tmp_path / "x.state"
    kept.write_bytes(b"state")
    with pytest.raises(PermissionError):
        outputs.written(Mock(side_effect=PermissionError(errno.EACCES, "no")), kept, pytest.fail)
    assert kept.read_bytes() == b"state"


def test_a_repair_without_a_state_that_is_cut_off_begins_anew(colours, monkeypatch, capsys):
    """P9: the weights that lie there are known as a repair's, which has not come to its end, and may be replaced."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, "finish_repair", Mock(side_effect=KeyboardInterrupt))
        call(colours, *SHORT, "--checkpoint-every", 0)
    assert colours["--out"].is_file() and "unfinished" in report_of(colours)
    assert call(colours, *SHORT, "--checkpoint-every", 0) == 0
    assert "unfinished" not in report_of(colours)


def test_the_room_of_a_state_is_not_underrated(tmp_path):
    """P9: the estimate is at least the file, and not far above it; a folder that is not there yet is made."""
    content = {"a": {"b": [torch.zeros(1000), torch.zeros(3, dtype=torch.int64)]}, "c": torch.zeros(50_000), "d": "x"}
    torch.save(content, tmp_path / "x")
    size = (tmp_path / "x").stat().st_size
    assert size <= state.bytes_of(content) <= size + 2**17
    state.check_disk(tmp_path / "a" / "new" / "folder" / "x.state", size, 0)


# --- What never ends, and what goes away ------------------------------------------------------------------------------

@pytest.mark.parametrize("flag", ["--checkpoint", "--bad", "--clean", "--class-map", "the state"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, functools.partial(os.symlink, "/dev/zero")],
                         ids=["pipe", "folder", "device"])
def test_only_regular_files_are_read(colours, capsys, flag, make):
    """P3: a named pipe, a device without an end and a folder are refused by name, and none is waited for."""
    colours["--out"].parent.mkdir()
    path = colours["--out"].with_suffix(".state") if flag == "the state" else colours["--data"] / "odd"
    make(path)
    told = refused(colours if flag == "the state" else {**colours, flag: path}, capsys)
    assert str(path) in told and ("regular file" in told or "directory" in told or "a folder" in told)


def from_shell(content: bytes) -> str:
    """A path as bash gives it for <(...): an open pipe, whose content can be read once."""
    end, begin = os.pipe()
    os.write(begin, content)
    os.close(begin)
    return f"/dev/fd/{end}"


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="this system has no /dev/fd")
@pytest.mark.parametrize("lists", [[b"0-5.png\n1-5.png\n"], [b"0-5.png\n", b"1-5.png\n"]])
def test_lists_from_a_shell_are_read_once(colours, capsys, lists):
    """P3: --bad <(...), two of them too; the report has the digest of what was read."""
    paths = [from_shell(content) for content in lists]
    try:
        code = call({**colours, "--bad": paths}, "--epochs", 0)
        report = report_of(colours)
        assert code == 0 and "2 known bad" in capsys.readouterr().out
        assert {report["sha256"][path] for path in paths} == {hashlib.sha256(content).hexdigest() for content in lists}
    finally:
        for path in paths:
            os.close(int(path.rpartition("/")[2]))


def test_inputs_that_go_away_cost_nothing(colours, monkeypatch):
    """P3: the report's digests are of what was read, so that lists and weights may change or go meanwhile."""
    digest, repaired = hashlib.sha256(colours["--checkpoint"].read_bytes()).hexdigest(), pipeline.repaired_with

    def gone(*args, **more):
        colours["--checkpoint"].unlink()
        colours["--bad"].unlink()
        return repaired(*args, **more)

    monkeypatch.setattr(pipeline, "repaired_with", gone)
    assert call(colours, "--epochs", 1) == 0
    assert report_of(colours)["sha256"][str(colours["--checkpoint"])] == digest


def test_weights_come_before_the_scores(colours, monkeypatch, capsys):
    """P3: what fails after the repair, its scores too, costs no weights."""
    monkeypatch.setattr(command, "before_and_after", Mock(side_effect=ArithmeticError("logits are not finite")))
    assert "has these weights" in refused(colours, capsys, "--epochs", 0)
    assert colours["--out"].is_file()


# --- Hostile files ----------------------------------------------------------------------------------------------------

class Net(torch.nn.Module):
    """Saved whole: no attack, but its class is code."""


def hostile(kind: str, path: Path, mark: Path) -> None:
    """Write a file that would make `mark` if it were unpickled."""
    evil = {"system": Called(os.system, f"touch {mark}"), "net": Net()}.get(kind.split()[0], Evil(mark))
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


HOSTILE = ["system zip", "path zip", "net zip", "system legacy", "net legacy", "inst", "obj",
           *(f"{name} {k}" for name in ("system", "path") for k in (0, 2, 4, 5))]


@pytest.mark.parametrize("kind", HOSTILE)
def test_code_is_called_code(tmp_path, kind):
    """K5: of a checkpoint and of a state: that it asks for code to be run, what, and that it was not read."""
    path, mark = tmp_path / "model.pt", tmp_path / "ran"
    hostile(kind, path, mark)
    names = {"path": "(pathlib|getattr|builtins|__builtin__)", "net": r"test_repair_faults\.Net"}
    name = names.get(kind.split()[0], r"(posix|nt|os)\.system")
    read, resumed = refusals(path)
    assert re.search(f"holds a pickled {name}.* asks for code to be run and was not read; .*'weights.pt'", read)
    assert re.search(f"no state of this repair .it asks for code to be run, {name}.* move it away", resumed)
    assert "weights_only" not in read + resumed and not mark.exists()
    if kind == "path 2":  # a control: what an unsafe load does
        pickle.loads(path.read_bytes())
        assert mark.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}q\x00.", b"epoch 1\n", bytes(range(256)) * 9,
                                     pickle.dumps(collections.OrderedDict(a=1), protocol=4)])
def test_no_advice_of_torch_is_passed_on(tmp_path, content):
    """K5: whatever else stands in a file, it is not called code, and nobody is told to set weights_only to False."""
    (tmp_path / "x.pt").write_bytes(content)
    for told in refusals(tmp_path / "x.pt"):
        assert "weights_only" not in told and "Weights only" not in told and str(tmp_path / "x.pt") in told
        assert "asks for code" not in told
