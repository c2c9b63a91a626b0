"""Going on after an interruption (repair/state.py): the state is all that the next epoch of REM+ depends on."""

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import rem_plus
from colours import ROOT, add_to_net, call, colours, words  # noqa: F401
from experiment.settings import Config
from helpers import assert_same_state, make_data, small_net, streamed
from repair import network, state
from repair.inputs import Files, Reading
from repair.network import unlearn
from repair.state import repair_key

pytestmark = pytest.mark.filterwarnings("ignore:Acc")  # rounding decides whether a cap is reached

FORGET = torch.tensor([1, 5])
SETTINGS = dict(unlearn_epochs=4, batch=16, gamma=0.2, max_passes=3, unlearn_lr=0.02)


@contextlib.contextmanager
def cut_after(writes: int):
    """Interrupt the process right after it has written its state so many times."""
    def save_state(*args, inner=network.save_state):
        inner(*args)
        written.append(args)
        if len(written) == writes:
            raise KeyboardInterrupt

    written = []
    with mock.patch.object(network, "save_state", save_state):
        yield


def epochs_of(printed: str) -> list[str]:
    """The lines of REM+'s epochs, without the time that they tell."""
    return [re.sub(r" +[\d.]+ s .*", "", line) for line in printed.splitlines() if line.startswith("REM+ ")]


# --- One repair, cut off ----------------------------------------------------------------------------------------------

class Counting(nn.Module):
    """A scale that training moves and that a state dict leaves out."""

    def __init__(self, seed):
        super().__init__()
        self.net = small_net(seed)
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.scale = self.scale * 0.99
        return self.net(x) * self.scale


@pytest.mark.parametrize("make_net, more, augmentation", [
    (small_net, {}, {}), (Counting, {"stop": "max"}, {"pad": 1, "flip": True}),
    (small_net, {"optimizer": "adam"}, {"pad": 1})])
def test_a_repair_that_is_cut_off_anywhere_goes_on(tmp_path, capsys, make_net, more, augmentation):
    """A8, P9: cut off after any epoch, the last one too, or after several, a repair ends as the one that was not does:
    weights and buffers bit for bit, those too that a state dict leaves out, lines of the epochs that are left, no
    further epoch once it was done."""
    data, keep, settings, said = make_data(0, n=60, **augmentation), tmp_path / "x.state", SETTINGS | more, []
    wanted, _ = unlearn(make_net(0), data, FORGET, say=said.append, **settings)
    lines = epochs_of(capsys.readouterr().out)
    for cuts in (*([k] for k in range(1, len(lines) + 1)), [1, 1]):
        keep.unlink(missing_ok=True)
        for writes in cuts:
            with cut_after(writes), pytest.raises(KeyboardInterrupt):
                unlearn(make_net(0), data, FORGET, keep=keep, **settings)
        assert [path.name for path in tmp_path.iterdir()] == ["x.state"]
        torch.manual_seed(sum(cuts))  # the global random state decides nothing
        found, _ = unlearn(make_net(0), data, FORGET, keep=keep, say=said.append, **settings)
        assert_same_state(found, wanted)
        assert all(map(torch.equal, found.buffers(), wanted.buffers()))
        assert f"going on after epoch {sum(cuts)}, from {keep}" in said
        assert epochs_of(capsys.readouterr().out) == lines[sum(cuts):]


def test_the_epoch_that_comes_back_is_carried_over(tmp_path, monkeypatch):
    """A8, A24: where that epoch came before the cut, it is what the repair gives back after it."""
    data, keep = make_data(0, n=200), tmp_path / "x.state"
    settings = dict(unlearn_epochs=6, batch=32, unlearn_lr=0.3, gamma=1.0)

    def right_on(s, index):  # training meets no epoch that is better than all that follow on every machine
        return torch.arange(len(index)) < (len(index) if s.epoch == 1 else 0)

    monkeypatch.setattr(rem_plus, "right_on", right_on)
    wanted, _ = unlearn(small_net(0), data, FORGET, **settings)
    with cut_after(2), pytest.raises(KeyboardInterrupt):
        unlearn(small_net(0), data, FORGET, keep=keep, **settings)
    last = torch.load(keep, weights_only=True)["expanded"]
    assert not any(torch.equal(wanted.head.weight, t) for t in last.values())
    assert_same_state(unlearn(small_net(0), data, FORGET, keep=keep, **settings)[0], wanted)


def test_a_repair_that_went_less_far_goes_on_as_far(tmp_path, monkeypatch):
    """A8, P4: cut off after an epoch that was begun again at half the distance, twice, a repair has that distance in
    the epochs that are left and in its settings, does not begin again, and ends as the one that was not cut off."""
    data, keep, said = make_data(0, n=60), tmp_path / "x.state", []
    monkeypatch.setattr(network, "TOO_FAR", -2.0)  # whatever Acc(held out) is
    monkeypatch.setattr(network, "TOO_NEAR", 1.0)
    wanted, _ = unlearn(small_net(0), data, FORGET, **SETTINGS)
    with cut_after(1), pytest.raises(KeyboardInterrupt):
        unlearn(small_net(0), data, FORGET, keep=keep, **SETTINGS)
    found, used = unlearn(small_net(0), data, FORGET, keep=keep, say=said.append, **SETTINGS)
    assert used.reach == 0.0175
    assert f"going on after epoch 1, from {keep}" in said and not any("once more" in line for line in said)
    assert_same_state(found, wanted)


@pytest.mark.parametrize("error, words", [(OSError(errno.ENOSPC, "No space left"), "(No space left)"),
                                          (RuntimeError("enforce fail at container.cc:672"), "enforce fail")])
def test_a_state_that_cannot_be_written_costs_no_repair(tmp_path, monkeypatch, error, words):
    """P9: whatever writing it raises costs a line an epoch; the network is the one that it would have been."""
    data, said, settings = make_data(0, n=24), [], SETTINGS | {"stop": "max", "unlearn_epochs": 2}
    whole, _ = unlearn(small_net(0), data, FORGET, **settings)
    monkeypatch.setattr(state, "write_whole", mock.Mock(side_effect=error))
    found, _ = unlearn(small_net(0), data, FORGET, keep=tmp_path / "x.state", say=said.append, **settings)
    assert_same_state(found, whole)
    lines = [line for line in said if line.startswith("the state of epoch")]
    assert len(lines) == 2 and all(words in line for line in lines)
    assert not list(tmp_path.iterdir())


LINGERING = """
import os, time
class Lingering(nn.Module):
    def forward(self, x):
        time.sleep(1 if os.path.exists("STATE") else 0.05)  # it does not end before it is interrupted
        return x
def lingering(classes): return colours(classes, Lingering())
"""


@pytest.mark.slow
@pytest.mark.parametrize("after, kept", [("training images of", False), ("REM+ ", True)])
def test_an_interrupt_is_one_line_and_keeps_the_state(colours, capsys, monkeypatch, after, kept):
    """P1, P9, A8: Ctrl-C is one line and exit code 130; the state of the last epoch stays, from which
    another process goes on, bit for bit, and is gone at the end."""
    file = colours["--out"].with_suffix(".state")
    path = add_to_net(colours, LINGERING.replace("STATE", str(file)))
    world = {**colours, "--model": f"{path}:lingering"}
    more = ("--epochs", 3, "--stop", "max", "--no-finish", "--batch-size", 8, "--device", "cpu")
    process = subprocess.Popen([sys.executable, "-B", "-u", "run.py", *words(world, *more)], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        while after not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        while kept and not file.exists():  # it is written after the line
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130, process.stdout.read() + process.stderr.read()
        lines = [line for line in process.stderr.read().splitlines() if not line.startswith("warning: ")]
    finally:
        process.kill()
        process.communicate()
    assert len(lines) == 1 and lines[0].startswith("run.py: interrupted; ")
    assert [path.name for path in file.parent.iterdir()] == [file.name] * kept
    if kept:
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        assert call(world, *more) in (0, 3) and "going on after epoch" in capsys.readouterr().out
        assert not file.exists()
        whole = file.with_name("whole.pt")
        assert call({**world, "--out": whole}, *more) in (0, 3) and "going on" not in capsys.readouterr().out
        assert whole.read_bytes() == colours["--out"].read_bytes()


# --- Whose state it is ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("other", [{"model": small_net(1)}, {"forget": FORGET.flip(0)}, {"seed": 1},
                                   {"layers": ["conv1", "conv2"]}, {"true_labels": torch.tensor([-1, 3])}])
def test_the_state_of_another_repair_is_not_used(tmp_path, other):
    """P9, Y5: what decides another repair begins again, says so, and ends as without a file."""
    keep, said, data = tmp_path / "x.state", [], make_data(0, n=24)
    data.labels[5] = 0
    same = dict(model=small_net(0), data=data, forget=FORGET, **SETTINGS)
    unlearn(**same, keep=keep)
    kept = keep.read_bytes()
    found, _ = unlearn(**{**same, **other}, keep=keep, say=said.append)
    assert f"{keep} is the state of another repair, or of images that have changed, and will be replaced" in said
    assert_same_state(found, unlearn(**{**same, **other})[0])
    assert keep.read_bytes() != kept


@pytest.mark.parametrize("damage", ["less", "cut", "text", "folder", "pipe"])
def test_what_is_no_state_is_refused(tmp_path, damage):
    """P9, P3: a state that lacks a part is refused and not half used; so are other files, and none is waited for. Code
    in one is in test_checkpoints.py."""
    keep = tmp_path / "x.state"
    unlearn(small_net(0), make_data(0, n=24), FORGET, keep=keep, **SETTINGS)
    whole = torch.load(keep, weights_only=True)
    content = keep.read_bytes()
    keep.unlink()
    if damage == "folder":
        keep.mkdir()
    elif damage == "pipe":
        os.mkfifo(keep)
    elif damage == "less":
        torch.save({name: value for name, value in whole.items() if name != "draws"}, keep)
    else:
        keep.write_bytes(content[:-100] if damage == "cut" else b"epoch 1\n")
    with pytest.raises(ValueError, match="x.state is no state of this repair .*; move it away") as caught:
        unlearn(small_net(0), make_data(0, n=24), FORGET, keep=keep, **SETTINGS)
    assert "weights_only" not in str(caught.value)


class Addressed(nn.ReLU):
    """A layer that shows an object of its own, by its address."""

    def __init__(self):
        super().__init__()
        self.function = object()

    def extra_repr(self):
        return f"function={self.function}"


def test_the_key_tells_repairs_apart(monkeypatch):
    """P9: each other version, network, data set, D_f or setting has a key of its own; every pixel counts; where objects
    lie in memory does not."""
    data = make_data(0, n=600)
    images = data.images.clone()
    images[590, 0, 3, 3] ^= 1
    others = [replace(data, images=images), replace(data, images=data.images.view(600, 1, 4, 16)),
              replace(data, mean=(0.4,)), replace(data, std=(0.5,)), replace(data, labels=(data.labels + 1) % 4),
              replace(data, flip=True), replace(data, pad=1)]
    nets = [small_net(1), *(small_net(0) for _ in range(3))]
    nets[1].norm1.eval()
    nets[2].conv1.weight.requires_grad_(False)
    nets[3].act = nn.ReLU()
    same = repair_key(small_net(0), data, FORGET, None, Config(), None)
    assert same == repair_key(small_net(0), replace(data), FORGET, None, Config(), None)
    keys = [*(repair_key(small_net(0), other, FORGET, None, Config(), None) for other in others),
            *(repair_key(net, data, FORGET, None, Config(), None) for net in nets),
            repair_key(small_net(0), data, FORGET[:1], None, Config(), None),
            repair_key(small_net(0), data, FORGET, None, Config(seed=1), None),
            repair_key(small_net(0), data, FORGET, None, Config(), ["conv1"]),
            repair_key(small_net(0), streamed(data), FORGET, None, Config(), None)]
    monkeypatch.setattr(state, "VERSION", "0.0.1")
    keys.append(repair_key(small_net(0), data, FORGET, None, Config(), None))
    assert len({same, *keys}) == len(keys) + 1
    for net in nets[:2]:
        net.load_state_dict(small_net(0).state_dict())
        net.train()
        net.act = Addressed()
    assert str(nets[0]) != str(nets[1])
    assert repair_key(nets[0], data, FORGET, None) == repair_key(nets[1], data, FORGET, None)


def test_the_key_knows_files(tmp_path):
    """P9: path, size and time of every file, and how it is read, whether the images are in memory or streamed."""
    paths = [tmp_path / f"{i}.png" for i in range(24)]
    for path in paths:
        path.write_bytes(b"x")
    data, files = make_data(0, n=24), Files(paths, torch.zeros(24), Reading(8))

    def key(files=files, data=data):
        return repair_key(small_net(0), data, FORGET, files)

    found, status = [key()], paths[17].stat()
    assert key(data=replace(data, images=255 - data.images)) == found[0]
    for content, later in ((b"x", 1000), (b"xx", 0), (b"x", 0)):
        paths[17].write_bytes(content)
        os.utime(paths[17], ns=(status.st_atime_ns, status.st_mtime_ns + later))
        found.append(key())
    assert found[3] == found[0]
    found.append(key(Files(paths, torch.zeros(24), Reading(8, resize="squash"))))
    paths[3] = paths[3].rename(tmp_path / "x.png")
    found.append(key())
    assert len(set(found)) == 5


@pytest.mark.parametrize("memory", [1, 0])
def test_the_command_goes_on_with_the_same_files_alone(colours, capsys, memory):
    """P9: cut off after epoch 1, the same files go on, read anew where there is no room for them any more; where one
    was overwritten, it begins again."""
    file, more = colours["--out"].with_suffix(".state"), ("--epochs", 2, "--batch-size", 16, "--workers", 0)
    with cut_after(1):
        assert call(colours, *more, "--max-memory", memory) == 130
    kept = file.read_bytes()
    assert call(colours, *more, "--max-memory", 0) == 0
    assert "going on after epoch 1" in capsys.readouterr().out
    Image.fromarray(np.full((32, 32, 3), 99, np.uint8)).save(colours["--data"] / "train" / "0" / "0-1.png")
    file.write_bytes(kept)
    assert call(colours, *more, "--max-memory", memory) == 0
    printed = capsys.readouterr().out
    assert "or of images that have changed, and will be replaced" in printed
    assert "going on" not in printed and "epoch   1/2" in printed
