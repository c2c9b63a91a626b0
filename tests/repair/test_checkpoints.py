"""Checkpoints as they are in the wild (repair/checkpoints.py, K1 to K8): no code is run; written back as stored."""

import argparse
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from repair import checkpoints
from repair.checkpoints import load_into, read, write
from helpers import Called, seeds, small_net


def saved(tmp_path, content, name="model.pt", **more) -> Path:
    """A file that torch.save wrote."""
    torch.save(content, tmp_path / name, **more)
    return tmp_path / name


def assert_same(found: dict, wanted: dict) -> None:
    """The same names in the same order, tensors bit for bit."""
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


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
    "numpy": {"state_dict": WEIGHTS, "a": np.float32(1), "b": np.int64(3), "c": np.bool_(True), "d": np.float16(1)},
    **{name: {name: WEIGHTS} for name in ("model_state_dict", "net", "weights", "params")},
}


@pytest.mark.filterwarnings("ignore:.*averaged weights too")
@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_its_weights(tmp_path, name):
    """K1: the state dict comes out of every container, of the time before zip archives too, under its stored names."""
    for zipped in (True, False):
        path = saved(tmp_path, CONTAINERS[name], _use_new_zipfile_serialization=zipped)
        assert_same(read(path), WEIGHTS)


def test_a_dict_that_holds_itself(tmp_path):
    """K2: it holds no weights, which is told at once."""
    content = {"epoch": 1}
    content |= dict.fromkeys(("model", "net", "state_dict", "ema"), content)
    for ema in (False, True):
        with pytest.raises(ValueError, match="holds no"):
            read(saved(tmp_path, content), ema)


def test_settings_are_no_averaged_weights(tmp_path, recwarn):
    """K1: a dict of settings under a key of averaged weights is not offered, and not taken."""
    path = saved(tmp_path, CONTAINERS["averaged settings"])
    assert_same(read(path), WEIGHTS)
    assert not recwarn
    with pytest.raises(ValueError, match="no averaged weights.*leave out --ema"):
        read(path, ema=True)


@pytest.mark.parametrize("key", checkpoints.EMA)
def test_averaged_weights_if_asked_alone(tmp_path, key):
    """K1: averaged weights are taken with ema, the last ones without, and timm's before all others; what the file has
    else, or has not, is told."""
    averaged = {"module." + name: t for name, t in OTHERS.items()}
    path = saved(tmp_path, {"model": WEIGHTS, key: averaged})
    with pytest.warns(UserWarning, match="averaged weights too, which --ema takes"):
        assert_same(read(path), WEIGHTS)
    assert_same(read(path, ema=True), averaged)
    with pytest.raises(ValueError, match="averaged weights alone; add --ema"):
        read(saved(tmp_path, {key: averaged, "epoch": 1}))
    path = saved(tmp_path, {"model": WEIGHTS, key: None})
    assert_same(read(path), WEIGHTS)
    with pytest.raises(ValueError, match="no averaged weights.*leave out --ema"):
        read(path, ema=True)
    assert_same(read(saved(tmp_path, {"model": OTHERS, key: {"model": WEIGHTS}}), ema=True), WEIGHTS)
    path = saved(tmp_path, {key: WEIGHTS, "state_dict_ema": OTHERS})
    assert_same(read(path, ema=True), OTHERS)


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
    "stem": ({**WEIGHTS, "conv1.weight": torch.zeros(3, 1, 5, 5)}, r"\(3, 1, 5, 5\).*stem for small images"),
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
    """Two layers of one weight, a third one that keeps a state of its own, and the place of each of some tokens."""

    def __init__(self, seed: int, tokens: int = 4):
        super().__init__()
        gen = torch.Generator().manual_seed(seed)
        self.first, self.second, self.third = nn.Linear(3, 3), nn.Linear(3, 3, bias=False), Keeping(3, 2)
        self.second.weight = self.first.weight
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, 3))
        with torch.no_grad():
            for p in self.parameters():
                p.normal_(generator=gen)


class Keeping(nn.Linear):
    """A layer that keeps what is no tensor beside its weights."""

    kept = "nothing"

    def get_extra_state(self):
        return {"kept": self.kept}

    def set_extra_state(self, state):
        self.kept = state["kept"]


@pytest.mark.parametrize("kept, other", [("first.weight", "second.weight"), ("second.weight", "first.weight")])
def test_tied_weights_are_looked_at_under_either_name(kept, other):
    """K4: a tied weight that is stored once must be finite and real under whichever of its names it lies."""
    stored = {name: t for name, t in Tied(1).state_dict().items() if name != other and "extra" not in name}
    for value, words in ((torch.full((3, 3), torch.inf), "that are not finite"),
                         (torch.ones(3, 3, dtype=torch.int64), "which a repair cannot keep")):
        with pytest.raises(ValueError, match=words):
            load_into(Tied(0), {**stored, kept: value})


def test_tied_weights_that_are_stored_once():
    """K4: what safetensors stores once under one of its names is whole, if the network ties it; nothing else is."""
    model, source = Tied(0), Tied(1)
    stored = {name: t for name, t in source.state_dict().items() if name != "second.weight" and "extra" not in name}
    assert "second.weight" not in load_into(model, stored)
    assert model.second.weight is model.first.weight and torch.equal(model.second.weight, source.first.weight)
    model.second.weight = nn.Parameter(model.second.weight.clone())
    with pytest.raises(ValueError, match=r"1 missing \(second.weight\)"):
        load_into(model, stored)


def test_what_modules_keep_beside_their_tensors(tmp_path):
    """K1, K6: a state of a module's own is read, put in and written; it is no tensor: no safetensors file has it."""
    model, source = Tied(0), Tied(1)
    source.third.kept = [1, "two"]
    stored = read(saved(tmp_path, {"state_dict": {f"module.{name}": t for name, t in source.state_dict().items()}}))
    names = load_into(model, stored)
    assert model.third.kept == [1, "two"] and torch.equal(model.third.weight, source.third.weight)
    model.third.kept = "later"
    write(tmp_path / "out.pt", stored, model, names)
    found = read(tmp_path / "out.pt")
    assert list(found) == list(stored) and found["module.third._extra_state"] == {"kept": "later"}
    assert torch.equal(found["module.third.weight"], model.third.weight)
    with pytest.raises(ValueError, match="third._extra_state is a dict, which .safetensors does not hold"):
        write(tmp_path / "out.safetensors", stored, model, names)
    with pytest.raises(ValueError, match="holds no state dict"):
        read(saved(tmp_path, {"third._extra_state": {"kept": 1}}))


def test_another_number_of_tokens_is_another_size_of_images():
    """K4: the flag that is at fault is named."""
    with pytest.raises(ValueError, match="has pos_embed for 9 tokens, this network 4: .* give that with --image-size"):
        load_into(Tied(0), Tied(0, tokens=9).state_dict())


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


def archive(kind: int, *members: str) -> bytes:
    """A zip archive of such members."""
    with io.BytesIO() as content:
        with zipfile.ZipFile(content, "w", kind) as file:
            for member in members:
                file.writestr(member, "x" * 100)
        return content.getvalue()


STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
LOG = "epoch 1, loss 0.3\n".encode() * 300
REFUSED = {  # None for no file, its bytes, or what torch.save makes one of
    "none.pt": (None, "cannot open the checkpoint .*none.pt"),
    "nothing.pt": (b"", "is an empty file; the download"),
    "lfs.pt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git-LFS pointer.*git lfs pull"),
    "page.pt": (b"\n<!DOCTYPE html><html></html>", "web page"),
    "page with a remark.pt": (b"<!-- x --><HTML></HTML>", "web page"),
    "text.pt": (LOG + "\u00e9".encode(), "is a text file, no file of weights"),
    "text.safetensors": (LOG, "text.safetensors is a text file, no file of weights"),
    "zip.pt": (b"PK\x03\x04 and no more", "cut short or damaged: 16 bytes"),
    "script.pt": (archive(STORED, "s/constants.pkl", "s/data.pkl"), "TorchScript program.*state_dict"),
    "export.pt2": (archive(STORED, "e/models/model.json"), "torch.export.*state_dict"),
    "export.pt": (archive(STORED, "e/archive_format"), "torch.export.*state_dict"),
    "archive.pt": (archive(STORED, "a.txt"), "a zip archive, not weights"),
    "compressed.pt": (archive(DEFLATED, "c/data.pkl"), "is compressed, which torch.save never"),
    "two networks": ({"student": WEIGHTS, "teacher": WEIGHTS}, "no state dict, but: student, teacher"),
    "empty": ({}, "no state dict, but: an empty dict"),
    "list": ([1], "no state dict, but: list"),
    "empty inside": ({"state_dict": {}}, "no state dict, but: an empty dict"),
    "epoch": ({"epoch": 3}, "no state dict, but: epoch"),
    "sparse": ({"head.weight": torch.eye(3).to_sparse()}, "sparse, quantised or without values"),
    "meta": ({"head.weight": torch.empty(3, device="meta")}, "sparse, quantised or without values"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_checkpoint_is_refused_in_words(tmp_path, name):
    """K3: bytes of something else, programs, archives, files without weights or with other tensors: what it is."""
    content, words = REFUSED[name]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        saved(tmp_path, content, name)
    with pytest.raises(ValueError, match=words):
        read(tmp_path / name)


@pytest.mark.parametrize("suffix", [".pt", ".old", ".safetensors"])
def test_a_file_cut_anywhere_is_refused(tmp_path, suffix):
    """K3, K8: cut anywhere, a file is refused and never half read; one that lacks its end is called cut short."""
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".old":
        torch.save(WEIGHTS, whole, _use_new_zipfile_serialization=False)
    else:
        write(whole, WEIGHTS, small_net(0), {})
    content, part = whole.read_bytes(), tmp_path / f"part{suffix}"
    for end in [*range(1, 12), *range(12, len(content), max(1, len(content) // 40)), len(content) - 1]:
        part.write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"part\.\w+" if end < len(content) - 1 else r"part\.\w+ is cut short"):
            read(part)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@given(st.data())
def test_a_file_with_a_flipped_byte_is_read_or_refused(tmp_path_factory, suffix, data):
    """K3, K8: whatever byte is wrong, the answer is tensors or one ValueError."""
    path = tmp_path_factory.getbasetemp() / f"flipped{suffix}"
    write(path, WEIGHTS, small_net(0), {})
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        assert all(isinstance(tensor, torch.Tensor) for tensor in read(path).values())
    except ValueError as error:
        assert path.name in str(error)


VOID = Called(checkpoints.SCALAR, Called(np.dtype, "V1000000"))  # a dtype without the state that torch would refuse


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("value, words", [(bytearray(5), "holds a bytearray"), (VOID, "can be read safely")])
def test_a_small_file_cannot_claim_memory(tmp_path, value, words, old):
    """K5: what torch's own list allows, or numpy's scalars, to take as many bytes as they say is refused."""
    with pytest.raises(ValueError, match=words):
        read(saved(tmp_path, {"state_dict": WEIGHTS, "x": value}, _use_new_zipfile_serialization=not old))
    with pytest.raises(ValueError, match="numpy scalar of 33 bytes"):
        checkpoints.number(np.dtype("V33"), bytes(33))
    assert checkpoints.number(np.dtype("V32"), bytes(32)).nbytes == 32  # as much as two long doubles
    assert len(bytes(pickle.loads(pickle.dumps(value)))) in (5, 10**6)  # as an unsafe load has it


@pytest.mark.parametrize("version, safe", [("2.9.1", False), ("2.4.0+cu1", False), ("2.10.0", True), ("3.0.0", True)])
def test_old_torch_reads_no_foreign_pickle(tmp_path, monkeypatch, version, safe):
    """K5: a torch whose weights_only can be broken reads no pickle, but safetensors."""
    path = saved(tmp_path, WEIGHTS)
    write(tmp_path / "model.safetensors", WEIGHTS, small_net(0), {})
    monkeypatch.setattr(checkpoints.torch, "__version__", version)
    assert_same(read(tmp_path / "model.safetensors"), WEIGHTS)
    if safe:
        assert_same(read(path), WEIGHTS)
    else:
        with pytest.raises(ValueError, match="install torch 2.10"):
            read(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_output_has_the_stored_keys_shapes_and_dtypes(tmp_path, suffix, dtype):
    """K6, K1: the network's values come back under the stored names, order, shapes and dtypes, extras as they were;
    neither memory layout nor sharing gets into the file; no random number is drawn."""
    stored = {f"module.{name}": t.to(dtype) if t.is_floating_point() else t for name, t in WEIGHTS.items()}
    stored["n_averaged"] = torch.tensor(7)
    model, other = small_net(1), small_net(2).to(memory_format=torch.channels_last)
    state = torch.get_rng_state()
    names = load_into(model, stored)
    stored["again"] = stored["n_averaged"]
    write(tmp_path / f"out{suffix}", stored, other, names)
    found = read(tmp_path / f"out{suffix}")
    assert torch.equal(torch.get_rng_state(), state)
    assert list(found) == list(stored)
    assert [(t.dtype, t.shape) for t in found.values()] == [(t.dtype, t.shape) for t in stored.values()]
    for key, name in names.items():
        assert torch.equal(found[key], other.state_dict()[name].to(found[key].dtype))
    assert found["n_averaged"] == found["again"] == 7 and found["n_averaged"].data_ptr() != found["again"].data_ptr()
    assert all(t.is_contiguous() for t in found.values())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    """K7: an error during the write leaves the old file and no temporary one."""
    (tmp_path / "out.safetensors").write_text("old")
    with pytest.raises(ValueError, match="complex64"):
        write(tmp_path / "out.safetensors", {"x": torch.zeros(1, dtype=torch.complex64)}, nn.Identity(), {})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_safetensors_as_its_description_says(tmp_path):
    """K8: length, JSON header, values from a multiple of eight bytes on: read from bytes made here, and written so."""
    values = np.arange(6, dtype="<f4")
    header = json.dumps({"__metadata__": {"a": "b"}, "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [1, 25]},
                         "b": {"dtype": "U8", "shape": [], "data_offsets": [0, 1]}}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\x05" + values.tobytes())
    found = read(path)
    assert_same(found, {"w": torch.arange(6.0).view(2, 3), "b": torch.tensor(5, dtype=torch.uint8)})
    write(path, {"w": found["w"], "empty": torch.zeros(0, 3)}, nn.Identity(), {})
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert header["w"] == {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} and length % 8 == 0
    assert np.array_equal(np.frombuffer(data[8 + length :], "<f4"), values)
    assert read(path)["empty"].shape == (0, 3)


def test_a_header_of_any_length_is_no_web_page(tmp_path):
    """K8: a length that reads as "<" or " <" is a length."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    for length in (ord("<") + 256, ord(" ") + 256 * ord("<")):
        (tmp_path / "m.safetensors").write_bytes(length.to_bytes(8, "little") + header.ljust(length) + b"\x05")
        assert read(tmp_path / "m.safetensors")["w"].tolist() == [5]


WEIGHT = {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}
LIES = [{"dtype": "F99"}, {"dtype": "F8_E4M3"}, {"dtype": []}, {"shape": [2**40, 2**40]}, {"shape": [-1, -6]},
        {"shape": [5]}, {"shape": "x"}, {"shape": None}, {"shape": [float("inf")]}, {"data_offsets": [0]},
        {"data_offsets": [4, 28]}, {"data_offsets": [0, 2**60]}, {"data_offsets": [-24, 0]},
        {"shape": [5], "data_offsets": [0, 20]}]  # four bytes are of no weight


@pytest.mark.parametrize("header", [*({"w": {**WEIGHT, **lie}} for lie in LIES), {"w": WEIGHT, "v": WEIGHT}])
def test_a_lying_safetensors_header_is_refused(tmp_path, header):
    """K8: a header that does not fit the bytes, or gives them to two weights, is refused before any allocation."""
    text = json.dumps(header).encode()
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(24))
    with pytest.raises(ValueError, match="m.safetensors (has an unusable safetensors header|is damaged|is cut short)"):
        read(tmp_path / "m.safetensors")
