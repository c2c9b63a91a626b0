"""Checkpoints (repair/checkpoints.py, K1 to K8): read without running code, fitted, written back as stored."""

import argparse
import io
import os
import pickle
import re
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from repair import checkpoints, state
from repair.checkpoints import load_into, read, write
from helpers import Called, Evil, seeds, small_net


def saved(tmp_path, content, name="model.pt", **more) -> Path:
    """A file that torch.save wrote."""
    torch.save(content, tmp_path / name, **more)
    return tmp_path / name


def assert_same(found: dict, wanted: dict) -> None:
    """The same names in the same order, tensors bit for bit."""
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def needs_safetensors():
    """Skip a test where the library is not installed."""
    pytest.importorskip("safetensors", reason="the library safetensors is not installed")


WEIGHTS = small_net(0).state_dict()
OTHERS = small_net(1).state_dict()
NO_HEAD = {name: t for name, t in WEIGHTS.items() if name != "head.weight"}
CONTAINERS = {
    "bare": WEIGHTS,
    "timm": {"epoch": 3, "arch": "x", "state_dict": WEIGHTS, "state_dict_ema": OTHERS, "args": argparse.Namespace(lr=1),
             "metric": np.float64(0.5)},
    "torchvision": {"model": WEIGHTS, "optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(data="x")},
    "imagenet": {"epoch": 1, "arch": "resnet18", "state_dict": WEIGHTS, "best_acc1": torch.tensor(70.0)},
    "lightning": {"epoch": 1, "global_step": 5, "pytorch-lightning_version": "2", "state_dict": WEIGHTS, "loops": {}},
    "deepspeed": {"module": WEIGHTS, "dp_world_size": 1},
    "composer": {"state": {"model": WEIGHTS, "timestamp": {}}, "rng": []},
    "nested": {"model": {"state_dict": WEIGHTS}},
    "two": {"model": OTHERS, "state_dict": WEIGHTS},  # as timm and Lightning have it
    "two, nested": {"model": {"net": OTHERS, "state_dict": WEIGHTS}, "params": OTHERS},
    "settings first": {"model": {"name": "x", "width": 64}, "weights": WEIGHTS},
    "settings in two": {"net": {"model": {"lr": 1}}, "params": {"state_dict": {}, "model": WEIGHTS}},
    "averaged settings": {"ema": {"decay": 0.9}, "model": WEIGHTS},
    "averaged alone": {"model_ema": WEIGHTS, "epoch": 1},
    "numpy": {"state_dict": WEIGHTS, "a": np.float32(1), "b": np.int64(3), "c": np.bool_(True), "d": np.float16(1)},
    **{name: {name: WEIGHTS} for name in ("model_state_dict", "net", "weights", "params")},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_its_weights(tmp_path, name):
    """K1: the state dict comes out of every container, of the time before zip archives too, under its stored names; the
    last weights come before averaged ones."""
    for zipped in (True, False):
        path = saved(tmp_path, CONTAINERS[name], _use_new_zipfile_serialization=zipped)
        assert_same(read(path), WEIGHTS)


@given(prefixes=st.lists(st.sampled_from(checkpoints.PREFIXES), max_size=4), extra=st.booleans(), old=st.booleans(),
       seed=seeds)
def test_prefixes_are_stripped_while_all_carry_them(prefixes, extra, old, seed):
    """K2, K4: any pile of prefixes that all names carry is stripped; extras count as nothing; files of old versions of
    torch have no num_batches_tracked."""
    source, model = small_net(seed), small_net(seed + 1)
    stored = {"".join(prefixes) + name: t for name, t in source.state_dict().items()
              if not (old and name.endswith("num_batches_tracked"))}
    more = {"n_averaged": torch.tensor(3), "conv1.total_ops": torch.zeros(1)} if extra else {}
    names = load_into(model, {**more, **stored})
    assert_same(model.state_dict(), source.state_dict())
    assert list(names) == list(stored) and not set(more) & set(names)


@pytest.mark.parametrize("where", ["conv1._orig_mod.weight", "_orig_mod.conv1.weight", "module._orig_mod.conv1.weight",
                                   "module.conv1._fsdp_wrapped_module.weight"])
def test_wrapped_parts_in_the_middle(where):
    """K2: the mark of a compiled or sharded part goes wherever it stands."""
    source, model = small_net(0), small_net(1)
    before = "module." if where.startswith("module.") else ""
    stored = {where if name == "conv1.weight" else before + name: t for name, t in source.state_dict().items()}
    assert load_into(model, stored)[where] == "conv1.weight"
    assert_same(model.state_dict(), source.state_dict())


class Inside(nn.Module):
    """A network under a name, or beside a number of its own."""

    def __init__(self, name, seed):
        super().__init__()
        self.add_module("net" if name == "n_averaged" else name, small_net(seed))
        if name == "n_averaged":
            self.register_buffer(name, torch.tensor(seed))
        if name == "_orig_mod":  # of a part
            self.head = nn.Linear(2, 2)


def test_old_files_fit_a_wrapper_and_have_something_beside_them():
    """K2: files of old versions of torch, without num_batches_tracked, are told from wrappers and extras, too."""
    old = {name: t for name, t in small_net(0).state_dict().items() if not name.endswith("num_batches_tracked")}
    for before in ("", "module."):
        stored = {before + name: t for name, t in old.items()}
        assert load_into(Inside("net", 1), stored) == {before + name: "net." + name for name in old}
    stored = {"model." + name: t for name, t in old.items()}
    assert set(load_into(small_net(1), {**stored, "criterion.weight": torch.ones(4)})) == set(stored)


@pytest.mark.parametrize("name, before", [("model", ""), ("model", "module."), ("model", "net.module."),
                                          ("module", "module."), ("_orig_mod", ""), ("n_averaged", "")])
def test_a_network_whose_own_names_are_such_keeps_them(name, before):
    """K2: a prefix, the mark of a compiled part or an extra's name that the network's own names carry is none."""
    source, model = Inside(name, 3), Inside(name, 4)
    load_into(model, {before + key: t for key, t in source.state_dict().items()})
    assert_same(model.state_dict(), source.state_dict())


def test_what_lies_beside_a_whole_network_is_left_as_it_is():
    """K2: what lies beside a whole network, a loss's weights or averaged ones, is left out."""
    source, model = small_net(0), small_net(1)
    more = {"criterion.weight": torch.ones(4), **{"ema.module." + name: t + 1 for name, t in OTHERS.items()}}
    stored = {**{"model." + name: t for name, t in source.state_dict().items()}, **more}
    names = load_into(model, stored)
    assert_same(model.state_dict(), source.state_dict())
    assert not set(more) & set(names) and set(names.values()) == set(WEIGHTS)
    with pytest.raises(ValueError, match="is not of this network"):
        load_into(model, {key: t for key, t in stored.items() if key != "model.head.weight"})


def test_a_network_that_wraps_the_stored_one():
    """K2: of a wrapper, which FILE.py:FUNCTION gives to flip colours, the weights go to what it wraps."""
    source, model = small_net(0), Inside("net", 1)
    for before in ("", "module.", "model."):
        stored = {before + name: t for name, t in source.state_dict().items()}
        assert load_into(model, stored) == {before + name: "net." + name for name in source.state_dict()}
        assert_same(model.net.state_dict(), source.state_dict())
    with pytest.raises(ValueError, match="is not of this network"):
        load_into(model, NO_HEAD)


UNFIT = {
    "missing": (NO_HEAD, r"1 missing \(head.weight\); check --model"),
    "unknown": ({**WEIGHTS, "more.weight": torch.zeros(1)}, r"1 unknown \(more.weight\)"),
    "twice": ({**WEIGHTS, "conv1._orig_mod.weight": WEIGHTS["conv1.weight"]}, "same weight"),
    "no extra": ({**WEIGHTS, "n_averaged": torch.zeros(5)}, r"unknown \(n_averaged\)"),
    "classes": (small_net(0, classes=7).state_dict(), r"trained on 7 classes \(head.weight\), the data has 4"),
    "sigmoid": (small_net(0, classes=1).state_dict(), r"one output \(head.weight\), a sigmoid's"),
    "width": (small_net(0, width=5).state_dict(),
              r"conv1.weight of shape \(5, 1, 3, 3\), this network \(3, 1, 3, 3\); check"),
    "inputs": ({**WEIGHTS, "head.weight": torch.zeros(4, 1)},
               r"head.weight of shape \(4, 1\), this network \(4, 3\); check"),
    "two layers": ({**WEIGHTS, "conv1.bias": torch.zeros(5), "head.weight": torch.zeros(7, 3)},
                   r"conv1.bias of shape \(5,\), this network \(3,\)"),
    "more than the memory": ({**WEIGHTS, "conv1.weight": torch.zeros(1).expand(10**6, 10**6)}, "shape"),
    "a number": ({**WEIGHTS, "conv1.bias": torch.tensor(0.0)}, r"conv1.bias of shape \(\), this network \(3,\)"),
    "not finite": ({**WEIGHTS, **{name: torch.full_like(WEIGHTS[name], torch.nan)
                                  for name in ("conv1.bias", "head.weight")}}, "conv1.bias that are not finite"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_explained(name):
    """K4: what is missing, unknown, misshapen or not finite is named, other classes are told; the network stays."""
    stored, words = UNFIT[name]
    model = small_net(1)
    with pytest.raises(ValueError, match=words):
        load_into(model, stored)
    assert_same(model.state_dict(), OTHERS)


@pytest.mark.parametrize("kind", [torch.complex64, torch.int64, torch.float8_e4m3fn])
def test_weights_that_could_not_be_kept(kind):
    """K4: weights of which a repair would lose something are refused by name; frozen ones only where complex."""
    net, frozen = small_net(0), small_net(0)
    frozen.head.weight.requires_grad_(False)
    stored = {**WEIGHTS, "head.weight": WEIGHTS["head.weight"].to(kind)}
    for model in (net, frozen) if kind.is_complex else (net,):
        with pytest.raises(ValueError, match=f"head.weight as {kind}, which a repair cannot keep"):
            load_into(model, stored)
    if not kind.is_complex:
        load_into(frozen, stored)
    load_into(net, {**WEIGHTS, "head.weight": WEIGHTS["head.weight"].to(torch.bfloat16)})


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self, seed: int):
        super().__init__()
        gen = torch.Generator().manual_seed(seed)
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        with torch.no_grad():
            for p in self.parameters():
                p.normal_(generator=gen)


@pytest.mark.parametrize("kept, other", [("first.weight", "second.weight"), ("second.weight", "first.weight")])
def test_tied_weights_are_looked_at_under_either_name(kept, other):
    """K4: a tied weight that is stored once must be finite and real under whichever of its names it lies."""
    stored = {name: t for name, t in Tied(1).state_dict().items() if name != other}
    for value, words in ((torch.full((3, 3), torch.inf), "that are not finite"),
                         (torch.ones(3, 3, dtype=torch.int64), "which a repair cannot keep")):
        with pytest.raises(ValueError, match=words):
            load_into(Tied(0), {**stored, kept: value})


def test_tied_weights_that_are_stored_once():
    """K4: what safetensors stores once under one of its names is whole, if the network ties it; nothing else is."""
    model, source = Tied(0), Tied(1)
    stored = {name: t for name, t in source.state_dict().items() if name != "second.weight"}
    assert "second.weight" not in load_into(model, stored)
    assert model.second.weight is model.first.weight and torch.equal(model.second.weight, source.first.weight)
    model.second.weight = nn.Parameter(model.second.weight.clone())
    with pytest.raises(ValueError, match=r"1 missing \(second.weight\)"):
        load_into(model, stored)


def test_only_a_mask_may_hold_infinities():
    """K4: a mask and a frozen parameter may hold -inf but no NaN; weights and running statistics must be finite."""
    def masked(seed):
        net = small_net(seed)
        net.register_buffer("mask", torch.zeros(3))
        net.register_parameter("bias", nn.Parameter(torch.zeros(3), requires_grad=False))
        return net

    stored, model = masked(0).state_dict(), masked(1)
    odd = {name: torch.tensor([0, -torch.inf, 0]) for name in ("mask", "bias", "conv1.bias", "norm1.running_mean")}
    load_into(model, {**stored, "mask": odd["mask"], "bias": odd["bias"]})
    assert torch.equal(model.mask, odd["mask"]) and torch.equal(model.bias, odd["bias"])
    for name, value in odd.items():
        value = value * 0 if name in ("mask", "bias") else value  # NaN
        with pytest.raises(ValueError, match=f"{name} that are not finite"):
            load_into(model, {**stored, name: value})


@pytest.mark.parametrize("prefix", ["", "module."])
def test_auxiliary_heads_are_extras(prefix):
    """K2: GoogLeNet's and Inception's auxiliary heads are left out, unless the network has a layer of such a name."""
    extras = {f"{prefix}{name}": torch.full((2,), 7.0) for name in ("aux1.conv.weight", "aux2.fc.bias", "AuxLogits.b")}
    stored, model = {**{f"{prefix}{name}": t for name, t in WEIGHTS.items()}, **extras}, small_net(1)
    names = load_into(model, stored)
    assert_same(model.state_dict(), WEIGHTS)
    assert set(names.values()) == set(WEIGHTS)
    for net in (model, small_net(3)):
        net.aux1 = nn.Linear(2, 1)
    stored = {f"{prefix}{name}": t for name, t in model.state_dict().items()}
    load_into(net, stored)
    assert_same(net.state_dict(), model.state_dict())


def compressed() -> bytes:
    """A zip archive that could unpack to any size."""
    with io.BytesIO() as content:
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("c/data.pkl", "x" * 100)
        return content.getvalue()


UNREADABLE = "no whole file of weights that can be read safely: .* bytes, beginning with .*torch.save"
REFUSED = {  # None for no file, its bytes, or what torch.save makes one of
    "none.pt": (None, "cannot open the checkpoint .*none.pt"),
    "nothing.pt": (b"", "0 bytes, beginning with b''"),
    "lfs.pt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "beginning with b'version https"),
    "page.pt": (b"<!DOCTYPE html><html></html>", "beginning with b'<!DOCTYPE html"),
    "text.pt": ("epoch 1, loss 0.3\n".encode() * 300, UNREADABLE),
    "compressed.pt": (compressed(), "is compressed, which no weights need"),
    "two networks": ({"student": WEIGHTS, "teacher": WEIGHTS}, "no state dict, but: student, teacher"),
    "empty": ({}, "no state dict, but: an empty dict"),
    "list": ([1], "no state dict, but: list"),
    "sparse": ({"head.weight": torch.eye(3).to_sparse()}, "sparse, quantised or without values"),
    "meta": ({"head.weight": torch.empty(3, device="meta")}, "sparse, quantised or without values"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_checkpoint_is_refused(tmp_path, name):
    """K3: bytes of something else, archives, files without weights or with other tensors: what was found, what to do;
    a dict that holds itself holds no weights."""
    content, words = REFUSED[name]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        saved(tmp_path, content, name)
    with pytest.raises(ValueError, match=words) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)
    round_and_round = {"epoch": 1}
    round_and_round["model"] = round_and_round
    with pytest.raises(ValueError, match="holds no state dict"):
        read(saved(tmp_path, round_and_round))


@pytest.mark.parametrize("suffix", [".pt", ".old"])
def test_a_file_cut_anywhere_is_refused(tmp_path, suffix):
    """K3: cut anywhere, a file is refused and never half read."""
    whole, part = tmp_path / f"whole{suffix}", tmp_path / f"part{suffix}"
    torch.save(WEIGHTS, whole, _use_new_zipfile_serialization=suffix == ".pt")
    content = whole.read_bytes()
    for end in [*range(0, 12), *range(12, len(content), max(1, len(content) // 40)), len(content) - 1]:
        part.write_bytes(content[:end])
        with pytest.raises(ValueError, match=rf"part\{suffix}"):
            read(part)


@given(st.data())
def test_a_file_with_a_flipped_byte_is_read_or_refused(tmp_path_factory, data):
    """K3: whatever byte is wrong, the answer is tensors or one ValueError."""
    path = tmp_path_factory.getbasetemp() / "flipped.pt"
    write(path, WEIGHTS, small_net(0), {})
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        assert all(isinstance(tensor, torch.Tensor) for tensor in read(path).values())
    except ValueError as error:
        assert path.name in str(error)


# --- Hostile files ----------------------------------------------------------------------------------------------------

VOID = Called(checkpoints.SCALAR, Called(np.dtype, "V1000000"))  # a dtype without the state that torch would refuse


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("value, words", [(bytearray(5), "holds a bytearray"), (VOID, UNREADABLE)])
def test_a_small_file_cannot_claim_memory(tmp_path, value, words, old):
    """K5: what torch's own list allows, or numpy's scalars, to take as many bytes as they say is refused."""
    with pytest.raises(ValueError, match=words):
        read(saved(tmp_path, {"state_dict": WEIGHTS, "x": value}, _use_new_zipfile_serialization=not old))
    with pytest.raises(ValueError, match="numpy scalar of 33 bytes"):
        checkpoints.number(np.dtype("V33"), bytes(33))
    assert checkpoints.number(np.dtype("V32"), bytes(32)).nbytes == 32  # as much as two long doubles
    assert len(bytes(pickle.loads(pickle.dumps(value)))) in (5, 10**6)  # as an unsafe load has it


class Net(nn.Module):
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


HOSTILE = ["system zip", "path zip", "net zip", "system legacy", "net legacy", "inst", "obj",
           *(f"{name} {k}" for name in ("system", "path") for k in (0, 2, 4, 5))]


@pytest.mark.parametrize("kind", HOSTILE)
def test_code_is_called_code(tmp_path, kind):
    """K5: of a checkpoint and of a state: that it asks for code to be run, what, and that it was not read; torch's
    advice to let it run is not passed on."""
    path, mark = tmp_path / "model.pt", tmp_path / "ran"
    hostile(kind, path, mark)
    names = {"path": "(pathlib|getattr|builtins|__builtin__)", "net": r"test_checkpoints\.Net"}
    name = names.get(kind.split()[0], r"(posix|nt|os)\.system")
    words = f"holds a pickled {name}.* asks for code to be run and was not read; "
    with pytest.raises(ValueError, match=words) as found:
        read(path)
    words = f"no state of this repair .it asks for code to be run, {name}.* move it away"
    with pytest.raises(ValueError, match=words) as resumed:
        state.resume(SimpleNamespace(device="cpu"), None, path, "key")
    assert not re.search("weights_only|Weights only", str(found.value) + str(resumed.value)) and not mark.exists()
    if kind == "path 2":  # a control: what an unsafe load does
        pickle.loads(path.read_bytes())
        assert mark.exists()


@pytest.mark.parametrize("version, safe", [("2.9.1", False), ("2.4.0+cu1", False), ("2.10.0", True), ("3.0.0", True)])
def test_old_torch_reads_no_foreign_pickle(tmp_path, monkeypatch, version, safe):
    """K5: a torch whose weights_only can be broken reads no pickle."""
    path = saved(tmp_path, WEIGHTS)
    monkeypatch.setattr(checkpoints.torch, "__version__", version)
    if safe:
        assert_same(read(path), WEIGHTS)
    else:
        with pytest.raises(ValueError, match="install torch 2.10"):
            read(path)


# --- Written back -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_output_has_the_stored_keys_shapes_and_dtypes(tmp_path, suffix, dtype):
    """K6, K8, K1: the network's values come back under the stored names, shapes and dtypes, extras as they were;
    neither memory layout nor sharing gets into the file; no random number is drawn."""
    if suffix == ".safetensors":
        needs_safetensors()
    stored = {f"module.{name}": t.to(dtype) if t.is_floating_point() else t for name, t in WEIGHTS.items()}
    stored["n_averaged"] = torch.tensor(7)
    model, other = small_net(1), small_net(2).to(memory_format=torch.channels_last)
    random = torch.get_rng_state()
    names = load_into(model, stored)
    stored["again"] = stored["n_averaged"]
    write(tmp_path / f"out{suffix}", stored, other, names)
    found = read(tmp_path / f"out{suffix}")
    assert torch.equal(torch.get_rng_state(), random)
    assert set(found) == set(stored) and (suffix != ".pt" or list(found) == list(stored))
    assert all((t.dtype, t.shape) == (stored[key].dtype, stored[key].shape) for key, t in found.items())
    for key, name in names.items():
        assert torch.equal(found[key], other.state_dict()[name].to(found[key].dtype))
    assert found["n_averaged"] == found["again"] == 7 and found["n_averaged"].data_ptr() != found["again"].data_ptr()
    assert all(t.is_contiguous() for t in found.values())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    """K7: an error during the write leaves the old file and no temporary one."""
    (tmp_path / "out.pt").write_text("old")
    monkeypatch.setattr(torch, "save", lambda content, file: file.write(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "out.pt", WEIGHTS, small_net(0), {})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_damaged_safetensors_file_is_refused(tmp_path):
    """K8: cut anywhere, or text."""
    needs_safetensors()
    path = tmp_path / "m.safetensors"
    write(path, WEIGHTS, small_net(0), {})
    content = path.read_bytes()
    for part in (*(content[:end] for end in (0, 7, 50, len(content) - 1)), b"epoch 1, loss 0.3"):
        path.write_bytes(part)
        with pytest.raises(ValueError, match="m.safetensors is no whole .safetensors file .*; fetch or save it again"):
            read(path)


def test_without_safetensors_there_is_a_line(tmp_path, monkeypatch):
    """K8: it says what to install, and the other way."""
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "m.safetensors").write_bytes(b"")
    for use in (lambda: read(tmp_path / "m.safetensors"),
                lambda: write(tmp_path / "m.safetensors", WEIGHTS, small_net(0), {})):
        with pytest.raises(ValueError, match="pip install safetensors, or save the weights as .pt"):
            use()
