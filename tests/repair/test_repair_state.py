"""Going on after an interruption (repair/state.py): the state is all that REM's next epoch depends on.

That another process goes on is in test_progress.py.
"""

import contextlib
import os
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import rem_plus
from colours import call, colours  # noqa: F401
from experiment.settings import Config
from experiment.user_code import function_of
from helpers import assert_same_state, make_data, small_net, streamed
from repair import network
from repair.network import repair_quietly
from repair.state import marks_of, repair_key, same_images

pytestmark = pytest.mark.filterwarnings("ignore:Acc")  # rounding decides whether a cap is reached

FORGET = torch.tensor([1, 5])
SETTINGS = dict(unlearn_epochs=4, batch=16, gamma=0.2, max_passes=3, unlearn_lr=0.02)


@contextlib.contextmanager
def cut_after(writes: int):
    """Interrupt the process right after it has written its state so many times.

    In place of save_state, since a line of progress comes before the state is written and nothing comes after it.
    """
    def save_state(*args, inner=network.save_state, **notes):
        inner(*args, **notes)
        written.append(args)
        if len(written) == writes:
            raise KeyboardInterrupt

    written = []
    with mock.patch.object(network, "save_state", save_state):
        yield


def cut_off(writes: int, net, data, **more) -> None:
    """Begin a repair that is interrupted right after it has written its state so many times."""
    with cut_after(writes), pytest.raises(KeyboardInterrupt):
        repair_quietly(net, data, FORGET, **more)


def epochs_of(lines: list[str]) -> list[str]:
    """The lines of epochs, without the time that they tell."""
    return [line.rpartition("; ")[0] for line in lines if line.startswith("epoch ")]


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
def test_a_repair_that_is_cut_off_anywhere_goes_on(tmp_path, make_net, more, augmentation):
    """A8, P9: cut off after any epoch, the last one too, or after several, a repair ends as the one that was not does:
    weights and buffers bit for bit, those too that a state dict leaves out, lines of the epochs that are left, no
    further epoch once it was done."""
    data, keep, settings, whole = make_data(0, n=60, **augmentation), tmp_path / "x.state", SETTINGS | more, []
    wanted = repair_quietly(make_net(0), data, FORGET, say=whole.append, **settings)
    lines = epochs_of(whole)
    for cuts in (*([k] for k in range(1, len(lines) + 1)), [1, 1]):
        keep.unlink(missing_ok=True)
        for writes in cuts:
            cut_off(writes, make_net(0), data, keep=keep, **settings)
        assert [path.name for path in tmp_path.iterdir()] == ["x.state"]
        torch.manual_seed(sum(cuts))  # the global random state decides nothing
        told = []
        found = repair_quietly(make_net(0), data, FORGET, keep=keep, say=told.append, **settings)
        assert_same_state(found, wanted)
        assert all(map(torch.equal, found.buffers(), wanted.buffers()))
        assert f"going on after epoch {sum(cuts)}, from {keep}" in told and epochs_of(told) == lines[sum(cuts):]


def test_the_epoch_that_comes_back_is_carried_over(tmp_path, monkeypatch):
    """A8, A24: where that epoch came before the cut, it is what the repair gives back after it."""
    data, keep = make_data(0, n=200), tmp_path / "x.state"
    settings, told = dict(unlearn_epochs=6, batch=32, unlearn_lr=0.3, gamma=1.0), []

    def right_on(s, index):  # training meets no epoch that is better than all that follow on every machine
        return torch.arange(len(index)) < (len(index) if s.epoch == 1 else 0)

    monkeypatch.setattr(rem_plus, "right_on", right_on)
    wanted = repair_quietly(small_net(0), data, FORGET, say=told.append, **settings)
    assert len(epochs_of(told)) == 3  # two that are worse
    cut_off(2, small_net(0), data, keep=keep, **settings)
    last = torch.load(keep, weights_only=True)["expanded"]
    assert not any(torch.equal(wanted.head.weight, t) for t in last.values())
    assert_same_state(repair_quietly(small_net(0), data, FORGET, keep=keep, **settings), wanted)


def test_a_repair_that_went_less_far_goes_on_as_far(tmp_path, monkeypatch):
    """A8, P4: cut off after an epoch that was begun again at half the distance, twice, a repair has that distance in
    the epochs that are left and in its settings, does not begin again, and ends as the one that was not cut off."""
    data, keep, told = make_data(0, n=60), tmp_path / "x.state", []
    monkeypatch.setattr(network, "TOO_FAR", -2.0)  # whatever Acc(held out) is
    monkeypatch.setattr(network, "TOO_NEAR", 1.0)
    wanted = repair_quietly(small_net(0), data, FORGET, **SETTINGS)
    cut_off(1, small_net(0), data, keep=keep, **SETTINGS)
    found, used = network.repaired_with(small_net(0), data, FORGET, keep=keep, say=told.append, **SETTINGS)
    assert used.reach == 0.0175
    assert f"going on after epoch 1, from {keep}" in told and not any("once more" in line for line in told)
    assert_same_state(found, wanted)


def test_a_command_that_is_cut_off_goes_on(colours, capsys):
    """P9: the command repeated goes on from its state, one file, ends with the same weights and leaves no state;
    --checkpoint-every 2 writes one every second epoch, 0 neither reads nor writes one."""
    state, out = colours["--out"].with_suffix(".state"), colours["--out"]
    many = ("--epochs", 3, "--batch-size", 16, "--lr", 0.01)
    assert call(colours, *many) == 0
    whole, lines = out.read_bytes(), epochs_of(capsys.readouterr().out.splitlines())
    assert len(lines) >= 2 and not state.exists()
    out.unlink()
    before = set(out.parent.iterdir())
    with cut_after(1), pytest.raises(KeyboardInterrupt):
        call(colours, *many, "--checkpoint-every", 2)
    assert set(out.parent.iterdir()) == before | {state}
    kept = state.read_bytes()
    capsys.readouterr()
    assert call(colours, *many, "--checkpoint-every", 0) == 0
    assert epochs_of(capsys.readouterr().out.splitlines()) == lines
    assert out.read_bytes() == whole and state.read_bytes() == kept
    out.unlink()
    assert call(colours, *many) == 0
    told = capsys.readouterr().out
    assert f"going on after epoch 2, from {state}" in told and epochs_of(told.splitlines()) == lines[2:]
    assert out.read_bytes() == whole and not state.exists()


# --- Whose state it is ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("other", [{"model": small_net(1)}, {"forget": FORGET.flip(0)}, {"seed": 1},
                                   {"unlearn_lr": 0.01}, {"layers": ["conv1", "conv2"]}])
def test_the_state_of_another_repair_is_not_used(tmp_path, other):
    """P9: what decides another repair begins anew, says so, and ends as without a file."""
    keep, told = tmp_path / "x.state", []
    same = dict(model=small_net(0), data=make_data(0, n=24), forget=FORGET, **SETTINGS)
    repair_quietly(**same, keep=keep)
    kept = keep.read_bytes()
    found = repair_quietly(**{**same, **other}, keep=keep, say=told.append)
    assert f"{keep} is the state of another repair and will be replaced" in told
    assert_same_state(found, repair_quietly(**{**same, **other}))
    assert keep.read_bytes() != kept


@pytest.mark.parametrize("what", ["version", "file"])
def test_the_state_of_other_code_is_not_used(tmp_path, monkeypatch, what):
    """P9: nor is a state of another version, or of a network whose user has changed its file since."""
    path, keep, told = tmp_path / "mine.py", tmp_path / "x.state", []

    def again(text: str) -> None:
        path.write_text("from helpers import small_net\nclass Net(type(small_net(0))):\n    pass\n" + text)
        net = function_of(f"{path}:Net", "a test")()
        net.load_state_dict(small_net(0).state_dict())
        repair_quietly(net, make_data(0, n=24), FORGET, keep=keep, say=told.append, **SETTINGS)

    again("")
    again("")
    assert not any("another repair" in line for line in told) and any("going on after" in line for line in told)
    if what == "version":
        monkeypatch.setattr("repair.state.VERSION", "0.0.1")
    again("# other\n" if what == "file" else "")
    assert any("is the state of another repair and will be replaced" in line for line in told)


def test_a_state_that_was_altered_is_refused(tmp_path):
    """P9: one bit of one weight is enough, which torch itself does not notice."""
    keep = tmp_path / "x.state"
    repair_quietly(small_net(0), make_data(0, n=24), FORGET, keep=keep, **SETTINGS)
    content = bytearray(keep.read_bytes())
    at = content.find(torch.load(keep, weights_only=True)["expanded"]["net.head.base.weight"].numpy().tobytes())
    content[at + 3] ^= 64
    keep.write_bytes(content)
    with pytest.raises(ValueError, match="x.state is no state of this repair .* in it is damaged.*; move it away"):
        repair_quietly(small_net(0), make_data(0, n=24), FORGET, keep=keep, **SETTINGS)


def test_a_state_with_this_repairs_key_and_less_in_it_is_refused(tmp_path):
    """P9: a state that lacks a part, such as one of an older version, is refused and not half used."""
    keep = tmp_path / "x.state"
    repair_quietly(small_net(0), make_data(0, n=24), FORGET, keep=keep, **SETTINGS)
    whole = torch.load(keep, weights_only=True)
    for part in set(whole) - {"key"}:
        torch.save({name: value for name, value in whole.items() if name != part}, keep)
        with pytest.raises(ValueError, match=f"x.state is no state of this repair .*{part}.*; move it away"):
            repair_quietly(small_net(0), make_data(0, n=24), FORGET, keep=keep, **SETTINGS)


class Addressed(nn.ReLU):
    """A layer that shows an object of its own, by its address."""

    def __init__(self):
        super().__init__()
        self.function = object()

    def extra_repr(self):
        return f"function={self.function}"


def test_an_address_is_no_other_network():
    """P9: where objects lie in memory, which another process has elsewhere, is not of the key."""
    data, nets = make_data(0, n=24), [small_net(0), small_net(0)]
    for net in nets:
        net.act = Addressed()
    assert str(nets[0]) != str(nets[1])
    assert repair_key(nets[0], data, FORGET, Config(), None) == repair_key(nets[1], data, FORGET, Config(), None)


@pytest.mark.parametrize("read", [lambda data: data, streamed])
def test_the_key_tells_repairs_apart(read):
    """P9: each other network, data set, D_f or setting has a key of its own; one repair the same, streamed or not. The
    last image is one of those that are looked at."""
    data = make_data(0, n=100)
    images = data.images.clone()
    images[-1, 0, 3, 3] += 1
    others = [replace(data, images=images), replace(data, images=data.images[:, :, 1:, 1:].contiguous()),
              replace(data, images=data.images.view(100, 1, 4, 16)), replace(data, mean=(0.4,)),
              replace(data, std=(0.5,)), replace(data, labels=(data.labels + 1) % 4), replace(data, flip=True),
              replace(data, pad=1)]
    nets = [small_net(1), *(small_net(0) for _ in range(3))]
    nets[1].norm1.eval()
    nets[2].conv1.weight.requires_grad_(False)
    nets[3].act = nn.ReLU()
    same = repair_key(small_net(0), data, FORGET, Config(), None)
    assert same == repair_key(small_net(0), read(replace(data)), FORGET, Config(), None)
    keys = [*(repair_key(small_net(0), read(other), FORGET, Config(), None) for other in others),
            *(repair_key(net, read(data), FORGET, Config(), None) for net in nets),
            repair_key(small_net(0), read(data), FORGET[:1], Config(), None),
            repair_key(small_net(0), read(data), FORGET, Config(), ["conv1"])]
    assert len({same, *keys}) == len(keys) + 1


# --- Whose images -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("memory", [1, 0])
def test_the_command_goes_on_with_the_same_files_alone(colours, capsys, memory):
    """P9: killed after epoch 1, the same files go on, read anew where there is no room for them any more; where one was
    overwritten, at which the key does not look, they do not: in memory its pixels tell, streamed its time."""
    state, more = colours["--out"].with_suffix(".state"), ("--epochs", 2, "--batch-size", 16, "--workers", 0)
    with cut_after(1), pytest.raises(KeyboardInterrupt):
        call(colours, *more, "--max-memory", memory)
    kept = state.read_bytes()
    assert call(colours, *more, "--max-memory", 0) == 0
    assert "going on after epoch 1" in capsys.readouterr().out
    Image.fromarray(np.full((32, 32, 3), 99, np.uint8)).save(colours["--data"] / "train" / "0" / "0-1.png")
    state.write_bytes(kept)
    assert call(colours, *more, "--max-memory", memory) == 0
    told = capsys.readouterr().out
    assert "of a repair of other images and will be replaced" in told
    assert "going on" not in told and "epoch 1/2: " in told  # it begins anew


def test_marks_of_images():
    """P9: pixels count where both runs had them, else files; a state that says nothing is of other images. Of images in
    memory every byte counts, also of those that the key does not look at."""
    pixels, files = {"pixels": "p", "files": "f"}, {"files": "f"}
    assert same_images(pixels, {"pixels": "p", "files": "touched"})
    assert not same_images(pixels, {"pixels": "q", "files": "f"})
    assert same_images(pixels, files) and not same_images(files, {"files": "g"})
    assert same_images({}, {}) and not same_images({}, pixels)
    assert marks_of(streamed(make_data(0, n=24))) == {}
    data = make_data(0, n=600)
    changed = data.images.clone()
    changed[590, 0, 2, 3] ^= 1
    other = replace(data, images=changed)
    assert repair_key(small_net(0), data, FORGET) == repair_key(small_net(0), other, FORGET)
    assert set(marks_of(data)) == {"pixels"} and marks_of(data) == marks_of(replace(data)) != marks_of(other)


def test_marks_of_files(tmp_path):
    """P9: path, size and time of every file; of Files the marks are in test_borders.py."""
    paths = [tmp_path / f"{i}.png" for i in range(40)]
    for path in paths:
        path.write_bytes(b"x")
    found, status = [marks_of(make_data(0, n=24), paths)["files"]], paths[17].stat()
    for content, later in ((b"x", 1000), (b"xx", 0), (b"x", 0)):
        paths[17].write_bytes(content)
        os.utime(paths[17], ns=(status.st_atime_ns, status.st_mtime_ns + later))
        found.append(marks_of(make_data(0, n=24), paths)["files"])
    paths[3] = paths[3].rename(tmp_path / "x.png")
    found.append(marks_of(make_data(0, n=24), paths)["files"])
    assert found[3] == found[0] and len(set(found)) == 4
