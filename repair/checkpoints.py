"""Checkpoints: read without running anything in them, fitted to a network, written back as they were stored.

    stored = read("model.pt")                       # stored name -> tensor; nothing in the file is run
    names = load_into(model, stored)                # stored name -> the network's name, every weight in its place
    write("repaired.pt", stored, model, names)      # the keys, shapes and dtypes of `stored`, whole or not at all
"""

import argparse
import contextlib
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

CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "weights", "params", "module", "state",
              "state_dict_ema", "model_ema", "ema_state_dict", "ema")  # averaged weights where there are no others
DEEPEST = 4  # containers in each other; a file may hold a dict that holds itself
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.", "_module.", "timm_model.")
ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # of wrapped parts of a network
HEADS = {"aux1", "aux2", "AuxLogits"}  # of GoogLeNet and Inception, which are built without
EXTRAS = ("n_averaged", "total_ops", "total_params")  # weight averaging and the profiler thop leave these behind
SAFE_TORCH = (2, 10)  # before it weights_only=True could be broken (CVE-2025-32434, CVE-2026-24747)
SAVE = "where it was made, run: state = model.state_dict(); torch.save(state, 'weights.pt')"
REAL = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # what a repair can write back as it was stored
NUMPY = [getattr(np.dtypes, f"{kind}DType") for kind in ("Float64", "Float32", "Float16", "Int64", "Int32", "Bool")]
SCALAR = np.float64(0).__reduce__()[0]  # what makes a numpy scalar out of a dtype and bytes


def number(dtype: np.dtype, value: bytes) -> np.generic:
    """SCALAR for numbers alone: it makes scalars of any size that a dtype claims."""
    if dtype.itemsize > 32 or len(value) != dtype.itemsize:
        raise ValueError(f"a numpy scalar of {dtype.itemsize} bytes")
    return SCALAR(dtype, value)


class Numbers:
    """Stands for a numpy array in a file: `values` (n,), in the order in which they are stored.

    numpy's own arrays take as much memory as a file claims, or hold objects; this one has the file's bytes alone.
    """

    values = np.zeros(0)

    def __setstate__(self, state: tuple):
        dtype, content = state[2], state[4]
        if not isinstance(dtype, np.dtype) or dtype.kind not in "biuf" or not isinstance(content, bytes):
            raise ValueError(f"a numpy array of {dtype}")
        self.values = np.frombuffer(content, dtype)


def array(*claimed) -> Numbers:
    """The array that numpy makes before its state fills it, whatever shape is claimed."""
    return Numbers()


ALLOWED = [argparse.Namespace, np.dtype, *NUMPY, (Numbers, "numpy.ndarray"),
           *((made, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core")
             for made, name in ((number, "scalar"), (array, "_reconstruct")))]


# --- Reading ----------------------------------------------------------------------------------------------------------

def read(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict in a file, on the CPU, under the names it was stored with.

    Args: path: what torch.save wrote, a state dict or a training state that holds one, or a .safetensors file.
    Returns: Stored name -> tensor, at least one.
    Raises: ValueError where the file holds no weights or cannot be read without running what is in it.
    """
    path = Path(path)
    try:
        check_readable(path)
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise ValueError(f"cannot open the checkpoint {path} ({error.strerror}); give a file of weights") from error
    if path.suffix.lower() == ".safetensors":
        stored = read_safetensors(path)
    else:
        content = read_pickle(path, head)
        stored = state_dict_in(content)
        if stored is None:
            found = ", ".join(sorted(map(str, content))[:8]) if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"{path} holds no state dict, but: {found or 'an empty dict'}; {SAVE}")
    for name, tensor in stored.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise ValueError(f"{path}: {name} is sparse, quantised or without values; save the plain float network")
    return stored


def read_pickle(path: Path, head: bytes, advice: str = SAVE) -> object:
    """What torch.save wrote, by weights_only=True and a few harmless names more; nothing else is ever tried.

    advice: how the file's owner saves what is wanted of it, for the messages.
    """
    if tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2]) < SAFE_TORCH:
        raise ValueError(f"torch {torch.__version__} cannot read a foreign {path.name} safely; install torch 2.10 or "
                         "newer, or convert the file to .safetensors")
    if why := claims_memory(path, head):
        raise ValueError(f"{path} {why}, which no weights need and which could fill the memory; {advice}")
    try:
        with torch.serialization.safe_globals(ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch 2.15 warns that sparse tensors take long; they are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or broken pickle can raise anything; all of it means the same
        if asked := asks_for_code(path, error):
            raise ValueError(f"{path} holds a pickled {asked}, alone or beside weights: it asks for code to be run and "
                             f"was not read; {advice}") from error
        raise ValueError(f"{path} is no whole file of weights that can be read safely: {path.stat().st_size:,} bytes, "
                         f"beginning with {head!r}; {advice}") from error


def claims_memory(path: Path, head: bytes) -> str | None:
    """How a small file could fill the memory, by what torch.load takes and torch.save never writes; None: it could not.
    """
    if head.startswith(b"PK"):
        with contextlib.suppress(zipfile.BadZipFile, ValueError, NotImplementedError):  # torch says what is wrong
            with zipfile.ZipFile(path) as archive:
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    return "is compressed"
    if head:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"bytearray") >= 0:  # it takes as much memory as it says
                return "holds a bytearray"
    return None


def state_dict_in(content: object, depth: int = DEEPEST) -> dict[str, torch.Tensor] | None:
    """The content, if it is a dict of tensors by name, else the first one that lies under one of CONTAINERS."""
    if not isinstance(content, dict) or not content:
        return None
    if all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()):
        return dict(content)
    parts = [content[key] for key in CONTAINERS if key in content] if depth else []
    return next((found for part in parts if (found := state_dict_in(part, depth - 1)) is not None), None)


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file, by the library of that name."""
    library = safetensors()
    try:
        return library.load_file(path)
    except Exception as error:  # SafetensorError is no ValueError
        raise ValueError(f"{path} is no whole .safetensors file ({error}); fetch or save it again") from error


def safetensors():
    """The part of the library `safetensors` that reads and writes; ValueError where it is not installed."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise ValueError("files of .safetensors need the library: pip install safetensors, or save the weights as .pt"
                         ) from error
    return safetensors.torch


# --- Into the network and back ----------------------------------------------------------------------------------------

def load_into(model: nn.Module, stored: dict[str, torch.Tensor], file: str = "the checkpoint") -> dict[str, str]:
    """Put stored weights into a network, in place and all of them.

    Args: model: a plain network; its dtypes stay; stored: what `read` returned; file: what the messages call the
        checkpoint.
    Returns: Stored name -> the network's name, without the extras that mean nothing to it.
    Raises: ValueError for missing, unknown or misshapen weights, or values that are not finite; the text names the
        first.
    """
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    names = network_names(stored, set(own))
    found = set(names.values())
    tied = {own[name].data_ptr() for name in found if name in own and own[name].numel()}  # stored once, under one name
    missing = [name for name in own if name not in found and not name.endswith("num_batches_tracked")
               and own[name].data_ptr() not in tied]
    unknown = [name for name in found if name not in own]
    if missing or unknown or len(found) < len(names):
        parts = [f"{len(rest)} {what} ({', '.join(sorted(rest)[:3])}{', ...' if len(rest) > 3 else ''})"
                 for what, rest in (("missing", missing), ("unknown", unknown)) if rest]
        which = " and ".join(parts) or "several names for the same weight"
        raise ValueError(f"{file} is not of this network: {which}; check --model, or give FILE.py:FUNCTION for it")
    check_shapes({name: (stored[key].shape, own[name].shape) for key, name in names.items()}, file)
    trained = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    trained |= {name for name in own if "running_" in name}
    for key, name in names.items():
        value = stored[key]
        if value.dtype not in REAL and (name in trained or value.is_complex() and not own[name].is_complex()):
            raise ValueError(f"{file} has {key} as {value.dtype}, which a repair cannot keep; save the network's real "
                             f"weights, {', '.join(str(kind).removeprefix('torch.') for kind in REAL)}")
        if (~value.isfinite() if name in trained else value.isnan()).any():  # a buffer that is a mask may hold -inf
            raise ValueError(f"{file} has values in {key} that are not finite; this network cannot be repaired")
    model.load_state_dict({name: stored[key] for key, name in names.items()}, strict=False)
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


def check_shapes(shapes: dict[str, tuple[torch.Size, torch.Size]], file: str) -> None:
    """Raise ValueError where stored and own shapes differ; a head of other classes has its own message."""
    odd = {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}
    if not odd:
        return
    name, (found, wanted) = next(iter(odd.items()))
    widths = {(a[0], b[0]) if a and b and a[1:] == b[1:] else None for a, b in odd.values()}
    if len(widths) == 1 and None not in widths:  # nothing but the outputs of one layer differ
        raise ValueError(other_classes(file, found[0], name, wanted[0]))
    raise ValueError(f"{file} has {name} of shape {tuple(found)}, this network {tuple(wanted)}; check --model and "
                     "--image-size, or give FILE.py:FUNCTION that builds the network, with the stem and the channels "
                     "of its images")


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
    content = {key: (own[names[key]] if key in names else old).detach().cpu().to(old.dtype)
               .clone(memory_format=torch.contiguous_format) for key, old in stored.items()}
    if Path(path).suffix.lower() == ".safetensors":
        content = safetensors().save(content, {"format": "pt"})
        write_whole(path, lambda file: file.write(content))
    else:
        write_whole(path, lambda file: torch.save(content, file))
