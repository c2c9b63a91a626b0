"""Checkpoints as they are in the wild: read without running anything, fitted to a network, written back as stored.

    stored = read("model.pt")                       # stored name -> tensor; nothing in the file is run
    names = load_into(model, stored)                # stored name -> the network's name, every weight in its place
    write("repaired.pt", stored, model, names)      # the keys, shapes and dtypes of `stored`, whole or not at all
"""

import argparse
import codecs
import json
import math
import mmap
import re
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from experiment.files import check_readable, write_whole
from experiment.pickles import asks_for_code

EMA = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "weights", "params", "module", "state")
DEEPEST = 4  # containers in each other; a file may hold a dict that holds itself
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.", "_module.", "timm_model.")
ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # of wrapped parts of a network
HEADS = {"aux1", "aux2", "AuxLogits"}  # of GoogLeNet and Inception, which are built without
EXTRAS = ("n_averaged", "total_ops", "total_params")  # weight averaging and the profiler thop leave these behind
SAFE_TORCH = (2, 10)  # before it weights_only=True could be broken (CVE-2025-32434, CVE-2026-24747)
OWN_STATE = "_extra_state"  # how a key ends under which a module keeps what it likes (get_extra_state)
SAVE = "where it was made, run: state = model.state_dict(); torch.save(state, 'weights.pt')"
TEXT = "is a text file, no file of weights; give the file that torch.save or safetensors wrote"
REAL = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # what a repair can write back as it was stored
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
          "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}
NUMPY = [getattr(np.dtypes, f"{kind}DType") for kind in ("Float64", "Float32", "Float16", "Int64", "Int32", "Bool")]
SCALAR = np.float64(0).__reduce__()[0]  # what makes a numpy scalar out of a dtype and bytes


def number(dtype: np.dtype, value: bytes) -> np.generic:
    """SCALAR for numbers alone: it makes scalars of any size that a dtype claims."""
    if dtype.itemsize > 32 or len(value) != dtype.itemsize:
        raise ValueError(f"a numpy scalar of {dtype.itemsize} bytes")
    return SCALAR(dtype, value)


ALLOWED = [argparse.Namespace, np.dtype, *NUMPY, (number, "numpy.core.multiarray.scalar"),
           (number, "numpy._core.multiarray.scalar")]


# --- Reading ----------------------------------------------------------------------------------------------------------

def read(path: str | Path, ema: bool = False) -> dict[str, torch.Tensor]:
    """The state dict in a file, on the CPU, under the names it was stored with.

    Args:
        path: what torch.save wrote, a state dict or a training state that holds one, or a .safetensors file.
        ema: take the averaged weights of a training state instead of the last ones.
    Returns: Stored name -> tensor, at least one.
    Raises: ValueError for the file holds no weights or cannot be read without running what is in it; the text says what
        it is.
    """
    path = Path(path)
    try:
        check_readable(path)
        with open(path, "rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise ValueError(f"cannot open the checkpoint {path} ({error.strerror}); give a file of weights") from error
    if not head:
        raise ValueError(f"{path} is an empty file; the download or copy failed")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git-LFS pointer, not the weights; fetch them with: git lfs pull")
    if re.match(rb"(?i)\s*<(!doctype|!--|html|head|\?xml)", head):
        raise ValueError(f"{path} is a web page, not weights; the download needs another address or a login")
    if path.suffix.lower() == ".safetensors" and is_text(head):
        raise ValueError(f"{path} {TEXT}")
    content = read_safetensors(path) if path.suffix.lower() == ".safetensors" else read_pickle(path, head)
    stored = unwrap(content, path, ema)
    for name, tensor in tensors_of(stored).items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise ValueError(f"{path}: {name} is sparse, quantised or without values; save the plain float network")
    return stored


def read_pickle(path: Path, head: bytes) -> object:
    """What torch.save wrote, by weights_only=True and a few harmless names more; nothing else is ever tried."""
    if tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2]) < SAFE_TORCH:
        raise ValueError(f"torch {torch.__version__} cannot read a foreign {path.name} safely; install torch 2.10 or "
                         "newer, or convert the file to .safetensors")
    if head.startswith(b"PK"):
        check_zip(path)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b"bytearray") >= 0:  # torch allows it, and it fills as much memory as it says
            raise ValueError(f"{path} holds a bytearray, which no weights need; {SAVE}")
    try:
        with torch.serialization.safe_globals(ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch 2.15 warns that sparse tensors take long; they are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or broken pickle can raise anything; all of it means the same
        if asked := asks_for_code(path, error):
            raise ValueError(f"{path} holds a pickled {asked}, alone or beside weights: it asks for code to be run and "
                             f"was not read; {SAVE}") from error
        if is_text(head):
            raise ValueError(f"{path} {TEXT}") from error
        cut = isinstance(error, EOFError) or re.search(r"truncated|unexpected EOF|not enough", str(error))
        what = "is cut short" if cut else "is no file of weights that can be read safely"
        reason = re.sub(r"Weights only load failed.*?(?=WeightsUnpickler error|$)", "", " ".join(str(error).split()))
        more = f" ({reason[:120]})" if reason else ""  # without torch's advice to let it run code
        raise ValueError(f"{path} {what}: {path.stat().st_size:,} bytes{more}; {SAVE}") from error


def is_text(head: bytes) -> bool:
    """Whether a file begins as text does: letters and line ends alone."""
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)  # a letter may be cut in two at its end
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter in "\t\r\n\f" for letter in text)


def check_zip(path: Path) -> None:
    """Raise ValueError unless a zip archive is one that torch.save wrote: whole, not compressed, not a program."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise ValueError(f"{path} is cut short or damaged: {path.stat().st_size:,} bytes ({error})") from error
    inside = {member.filename.partition("/")[2] for member in members}
    if "constants.pkl" in inside:
        raise ValueError(f"{path} is a TorchScript program, not weights; {SAVE}")
    if "data.pkl" not in inside:
        what = "a program of torch.export" if path.suffix == ".pt2" or "archive_format" in inside else "a zip archive"
        raise ValueError(f"{path} is {what}, not weights; {SAVE}")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError(f"{path} is compressed, which torch.save never does; {SAVE}")


def unwrap(content: object, path: Path, ema: bool) -> dict[str, torch.Tensor]:
    """The state dict inside a training state, whose containers may lie in each other."""
    averaged, last = under(content, EMA), state_dict_in(content)
    if ema:
        if averaged is None:
            raise ValueError(f"{path} holds no averaged weights ({', '.join(EMA)}); leave out --ema")
        return averaged
    if last is not None:
        if averaged is not None:
            warnings.warn(f"{path} holds averaged weights too, which --ema takes", stacklevel=3)
        return last
    if averaged is not None:
        raise ValueError(f"{path} holds averaged weights alone; add --ema")
    for _ in range(DEEPEST):  # what there is instead, in the first container
        inner = [content[key] for key in CONTAINERS if isinstance(content, dict) and isinstance(content.get(key), dict)]
        content = inner[0] if inner else content
    keys = ", ".join(sorted(map(str, content))[:8]) if isinstance(content, dict) else type(content).__name__
    raise ValueError(f"{path} holds no state dict, but: {keys or 'an empty dict'}; {SAVE}")


def state_dict_in(content: object, depth: int = DEEPEST) -> dict[str, torch.Tensor] | None:
    """The content, if it is a state dict, else what is `under` its containers."""
    if is_state_dict(content):
        return dict(content)
    return under(content, CONTAINERS, depth) if depth else None


def under(content: object, keys: tuple[str, ...], depth: int = DEEPEST) -> dict[str, torch.Tensor] | None:
    """The first state dict under one of these keys; what lies under an earlier one may be settings."""
    parts = [content[key] for key in keys if isinstance(content, dict) and isinstance(content.get(key), dict)]
    return next((found for part in parts if (found := state_dict_in(part, depth - 1)) is not None), None)


def is_state_dict(content: object) -> bool:
    """A dict of tensors by name, at least one, beside which modules may have kept states of their own."""
    return (isinstance(content, dict) and any(isinstance(value, torch.Tensor) for value in content.values())
            and all(isinstance(key, str) and (isinstance(value, torch.Tensor) or key.endswith(OWN_STATE))
                    for key, value in content.items()))


def tensors_of(stored: dict) -> dict[str, torch.Tensor]:
    """The tensors of a state dict."""
    return {key: value for key, value in stored.items() if isinstance(value, torch.Tensor)}


# --- Into the network and back ----------------------------------------------------------------------------------------

def load_into(model: nn.Module, stored: dict[str, torch.Tensor], file: str = "the checkpoint") -> dict[str, str]:
    """Put stored weights into a network, in place and all of them.

    Args: model: a plain network; its dtypes stay; stored: what `read` returned; file: what the messages call the
        checkpoint.
    Returns: Stored name -> the network's name, without the extras that mean nothing to it.
    Raises: ValueError for missing, unknown or misshapen weights, or values that are not finite; the text names the
        first.
    """
    states = model.state_dict()
    own, whole, stored = tensors_of(states), stored, tensors_of(stored)
    names = network_names(stored, set(own))
    found = set(names.values())
    tied = {own[name].data_ptr() for name in found if name in own and own[name].numel()}  # stored once, under one name
    missing = [name for name in own if name not in found and not name.endswith("num_batches_tracked")
               and own[name].data_ptr() not in tied]
    unknown = [name for name in found if name not in own]
    if missing or unknown or len(found) < len(names):
        parts = [f"{len(rest)} {what} ({', '.join(sorted(rest)[:3])}{', ...' if len(rest) > 3 else ''})"
                 for what, rest in (("missing", missing), ("unknown", unknown)) if rest]
        told = " and ".join(parts) or "several names for the same weight"
        raise ValueError(f"{file} is not of this network: {told}; check --model, or give FILE.py:FUNCTION for it")
    shapes = {name: (stored[key].shape, own[name].shape) for key, name in names.items()}
    if odd := {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}:  # before any copy
        raise ValueError(misshapen(odd, file))
    moving = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    moving |= {name for name in own if "running_" in name}
    if other := [key for key, name in names.items() if stored[key].dtype not in REAL
                 and (name in moving or stored[key].is_complex() and not own[name].is_complex())]:
        raise ValueError(f"{file} has {other[0]} as {stored[other[0]].dtype}, which a repair cannot keep; save the "
                         f"network's real weights, {', '.join(str(kind).removeprefix('torch.') for kind in REAL)}")
    if broken := [key for key, name in names.items()  # a buffer that is a mask may hold -inf
                  if (~stored[key].isfinite() if name in moving else stored[key].isnan()).any()]:
        raise ValueError(f"{file} has values in {broken[0]} that are not finite; this network cannot be repaired")
    names |= {key: name for key, name in network_names(whole, set(states)).items()
              if key not in stored and name in states}  # what modules keep beside their tensors
    model.load_state_dict({name: whole[key] for key, name in names.items()}, strict=False)
    return names


def network_names(stored: dict[str, torch.Tensor], own: set[str]) -> dict[str, str]:
    """Stored name -> the network's: without what wrappers put before it, while all names carry it and none fits.

    Where more than the network's lies under such a prefix or beside it, that is left out once the network is whole; a
    network that wraps the stored one under a name of its own gets that name put before.
    """
    extras = {key for key in stored if key.rpartition(".")[2] in EXTRAS and stored[key].numel() == 1}
    heads = HEADS.difference(part for name in own for part in name.split("."))
    extras |= {key for key in stored if heads.intersection(key.split("."))}
    names = {key: key for key in stored if key not in extras or key in own}
    for part in ANYWHERE:
        names = {key: name if name in own else re.sub(rf"(^|\.){part}", r"\1", name) for key, name in names.items()}
    while not own.intersection(names.values()):
        common = [prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in names.values())]
        if not names or not common:
            break
        names = {key: name.removeprefix(common[0]) for key, name in names.items()}
    if own.intersection(names.values()):
        return names
    first, needed = {name.partition(".")[0] for name in own}, {n for n in own if not n.endswith("num_batches_tracked")}
    tries = [{key: n.removeprefix(prefix) for key, n in names.items() if n.startswith(prefix)} for prefix in PREFIXES]
    tries = [{key: n for key, n in part.items() if n in own} for part in tries]
    tries += [{key: f"{part}.{n}" for key, n in names.items()} for part in first if len(first) == 1]
    return next((part for part in tries if needed <= set(part.values()) <= own), names)


def misshapen(odd: dict[str, tuple[torch.Size, torch.Size]], file: str) -> str:
    """What to say of weights of another shape: a head of other classes, or another network."""
    name, (found, wanted) = next(iter(odd.items()))
    widths = {(a[0], b[0]) if a and b and a[1:] == b[1:] else None for a, b in odd.values()}
    if len(widths) == 1 and None not in widths:  # nothing but the outputs of one layer differ
        return other_classes(file, found[0], name, wanted[0])
    if "pos" in name.lower() and len(found) == len(wanted) == 3 and found[::2] == wanted[::2]:
        return (f"{file} has {name} for {found[1]} tokens, this network {wanted[1]}: it was trained on images of "
                "another size; give that with --image-size")
    stem = " (a stem for small images?)" if len(found) == 4 and found[2:] != wanted[2:] else ""
    if len(found) == len(wanted) == 4 and found[1] != wanted[1] and {found[1], wanted[1]} <= {1, 3}:
        takes = {1: "grey images, one channel", 3: "colours, three channels"}
        stem += f" (trained on {takes[found[1]]}; this network takes {takes[wanted[1]]})"
    return (f"{file} has {name} of shape {tuple(found)}, this network {tuple(wanted)}{stem}; check --model, or give "
            "FILE.py:FUNCTION that builds the network")


def other_classes(file: str, found: int, where: str, wanted: int) -> str:
    """What to say of a network of other classes than the data."""
    if found == 1:
        return (f"{file} was trained with one output ({where}), a sigmoid's; give FILE.py:FUNCTION of a network that "
                "returns the logits of both classes, torch.cat([0 * z, z], dim=1)")
    return (f"{file} was trained on {found} classes ({where}), the data has {wanted}; give the folders it was "
            "trained on, or all its classes with --class-map")


def write(path: str | Path, stored: dict[str, torch.Tensor], model: nn.Module, names: dict[str, str]) -> None:
    """Write a network's weights under the stored names, shapes and dtypes; extras as they were. Whole or not at all.

    Args: path: safetensors if it ends so, else torch.save; an old file stays until the new one is whole; stored, names:
        from `read` and `load_into`; model: the network that goes into the file.
    """
    own = model.state_dict()
    content = {key: own[names[key]] if key in names else old for key, old in stored.items()}
    content |= {key: content[key].detach().cpu().to(old.dtype).clone(memory_format=torch.contiguous_format)
                for key, old in tensors_of(stored).items()}
    plain = Path(path).suffix.lower() == ".safetensors"
    write_whole(path, lambda file: file.write(safetensors_bytes(content)) if plain else torch.save(content, file))


# --- safetensors: 8 bytes of length, a JSON header, the values --------------------------------------------------------

def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file; everything in the header is checked against the bytes that are there."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise ValueError(f"{path} is cut short or no safetensors file: {len(data):,} bytes, a header of {length:,}")
    try:
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        entries = []
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            if entry["dtype"] not in DTYPES:
                raise ValueError(f"{name} is {entry['dtype']}, not one of {', '.join(DTYPES)}")
            entries.append((name, DTYPES[entry["dtype"]], [int(n) for n in entry["shape"]], int(begin), int(end)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{path} has an unusable safetensors header ({type(error).__name__}: {error})") from error
    values, expected, tensors = memoryview(data)[8 + length :], 0, {}
    for name, dtype, shape, begin, end in sorted(entries, key=lambda entry: entry[3:]):
        if begin != expected or end - begin != math.prod(shape) * dtype.itemsize or min(shape, default=0) < 0:
            raise ValueError(f"{path} is damaged: {name} of shape {shape} lies at bytes {begin} to {end}")
        if end > len(values):
            raise ValueError(f"{path} is cut short: {name} ends at byte {end:,} of {len(values):,}")
        part = bytearray(values[begin:end])
        tensors[name] = torch.frombuffer(part, dtype=dtype).view(shape) if part else torch.empty(shape, dtype=dtype)
        expected = end
    if expected != len(values):
        raise ValueError(f"{path} is damaged: {len(values) - expected:,} bytes belong to no weight")
    return {name: tensors[name] for name in header}


def safetensors_bytes(tensors: dict[str, torch.Tensor]) -> bytes:
    """The bytes of a safetensors file."""
    kinds = {dtype: kind for kind, dtype in DTYPES.items()}
    header, parts, begin = {"__metadata__": {"format": "pt"}}, [], 0
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{name} is a {type(tensor).__name__}, which .safetensors does not hold; give --out "
                             "another suffix")
        if tensor.dtype not in kinds:
            raise ValueError(f"{name} is {tensor.dtype}, which .safetensors does not hold; give --out another suffix")
        part = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        end = begin + len(part)
        header[name] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        parts.append(part)
        begin = end
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)  # so that the values begin at a multiple of 8
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])
