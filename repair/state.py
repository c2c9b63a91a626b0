"""The state of a repair after an epoch, from which the same command goes on."""

import errno
import hashlib
import os
import pickle
import re
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import torch

from engine.checks import first_line
from engine.modes import modes_of
from experiment.data import Data
from experiment.files import check_readable, write_whole
from experiment.pickles import asks_for_code
from experiment.settings import VERSION
from experiment.user_code import USERS
from repair.images import Files
from rem import State
from rem_plus import put_back, snapshot

LOOKED_AT = 32  # images, evenly spaced, by which a state knows its data, however it is read
BESIDE = 2**10  # bytes of a file for each tensor beside its values, and 64 times as many for the whole


# --- Writing ----------------------------------------------------------------------------------------------------------

def save_state(state: State, end, path: str | Path, *, leave: int = 0, **notes) -> None:
    """Write all that REM's next epoch depends on, and `notes`, so that it can go on elsewhere; whole or not at all.

    The reference is not among it: step 1 makes it anew from the same network. end: EarlyStopping of rem_plus.py.
    Args: leave: bytes that must be free beside the state, for the repaired weights.
    Raises: OSError: there is no room for both, or the file cannot be written.
    """
    content = notes | {"expanded": snapshot(state.expanded), "optimizer": state.optimizer.state_dict(),
                       "epoch": state.epoch, "reach": state.config.reach, "end": end.state_dict(),
                       "draws": state.generator.get_state()}
    check_disk(Path(path), bytes_of(content), leave)
    write_whole(path, lambda file: torch.save(content, file))


def check_disk(path: Path, size: int, leave: int) -> None:
    """Raise OSError unless a file system has room for a file, beside the older one, and then for `leave` bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    older = path.stat().st_size if path.exists() else 0  # goes once the new one is whole
    if free < max(size, size - older + leave):
        told = f"{free / 1e6:,.1f} MB are free, the state takes {size / 1e6:,.1f} and the weights {leave / 1e6:,.1f}"
        raise OSError(errno.ENOSPC, told, str(path))


def bytes_of(content) -> int:
    """What a file of tensors takes, in dicts and lists of any depth, with what stands beside their values."""
    found, left = 64 * BESIDE, [content]
    while left:
        part = left.pop()
        left += part.values() if isinstance(part, dict) else part if isinstance(part, list | tuple) else ()
        found += part.nbytes + BESIDE if isinstance(part, torch.Tensor) else 0
    return found


# --- Going on ---------------------------------------------------------------------------------------------------------


def load_state(state: State, end, path: str | Path) -> None:
    """Put what `save_state` wrote into a state of rem.add_capacity, of the same network, data and settings."""
    content = torch.load(path, weights_only=True, map_location=state.device)
    put_back(state.expanded, content["expanded"])  # buffers that a state dict leaves out, too
    state.optimizer.load_state_dict(content["optimizer"])
    end.load_state_dict(content["end"])
    state.epoch = content["epoch"]
    state.config = replace(state.config, reach=content["reach"])  # which a repair may have halved
    state.generator.set_state(content["draws"].cpu())


def repair_key(model, data, forget: torch.Tensor, *settings) -> str:
    """SHA-256 of what decides a repair: the version of the code; the network and its weights, modes, what is frozen in
    it and the user's file that it is of; how images are read, LOOKED_AT of them, labels, D_f and settings.

    It is the same for images in memory and for streamed ones, which a rerun may need where less memory is free; all of
    the images count in `marks_of`.
    """
    reading = tuple(data.shape), tuple(data.mean), tuple(data.std), data.pad, data.flip
    kind = re.sub(r" at 0x[0-9a-f]+", "", str(model)), modes_of(model), [p.requires_grad for p in model.parameters()]
    key = hashlib.sha256(repr((VERSION, kind, reading, settings)).encode())
    for path in files_of(model):
        key.update(path.read_bytes())
    few = torch.arange(LOOKED_AT) * (len(data) - 1) // (LOOKED_AT - 1)
    ((images, _),) = data._read(few, [slice(0, len(few))], None)  # as they are stored, the same on every device
    for value in (*model.state_dict().values(), images, data.labels, forget):
        key.update(raw(value) if isinstance(value, torch.Tensor) else repr(value).encode())  # what modules keep besides
    return key.hexdigest()


def files_of(model) -> list[Path]:
    """The users' files (experiment/user_code.py) that a network's modules are of, each once."""
    names = sorted({type(module).__module__ for module in model.modules()})
    return [Path(sys.modules[name].__file__) for name in names if name.startswith(USERS) and name in sys.modules]


def raw(value: torch.Tensor):
    """The bytes of a tensor."""
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def marks_of(data, files=None) -> dict[str, str]:
    """What tells all images of a repair from others: SHA-256 of the pixels, of the files, or of both.

    Pixels: of images in memory, every byte of them (0.56 s a GB on one core with SHA instructions, an EPYC; some 2.5 s
    without). Files: path, size and time of each, of `files`, or of streamed images that are files, and how those that
    are not square become so. Another streamed data set has neither: there labels and the LOOKED_AT images of
    `repair_key` are all that is compared.
    Args: files: images.Files, or paths alone.
    """
    marks = {}
    if isinstance(data, Data):
        pixels = hashlib.sha256()
        for part in data.images.split(256):  # a copy of them all, off a GPU, may have no room
            pixels.update(raw(part))
        marks["pixels"] = pixels.hexdigest()
    elif files is None and isinstance(data.dataset, Files):
        files = data.dataset
    if files is not None:
        squashed = isinstance(files, Files) and files.reading.resize == "squash"
        found = hashlib.sha256(b"squash" if squashed else b"")
        for path in files.paths if isinstance(files, Files) else files:
            status = os.stat(path)
            found.update(repr((os.path.abspath(path), status.st_size, status.st_mtime_ns)).encode())
        marks["files"] = found.hexdigest()
    return marks


def same_images(one: dict[str, str], other: dict[str, str]) -> bool:
    """Whether the marks of two runs are of the same images: by their pixels where both had them in memory."""
    both = [name for name in ("pixels", "files") if name in one and name in other]
    return one[both[0]] == other[both[0]] if both else not one and not other


def resume(state, end, path: str | Path, key: str, marks: dict[str, str]) -> str | None:
    """Put what an earlier run of the same repair, by `repair_key` and `marks_of`, has kept into a state and its end.

    Returns: a line of text; None where there is no file. Raises: ValueError for a file that is no such state.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        check_readable(path)
        content = torch.load(path, weights_only=True, mmap=True)
        same = content["key"] == key
        alike = same_images(content["marks"], marks)  # which states of older versions have not
        del content  # it is mapped to the file, which may be replaced
        if same and alike:
            check_whole(path)
            load_state(state, end, path)
    except Exception as error:  # a file of something else can raise anything
        raise ValueError(f"{path} is no state of this repair ({why_refused(path, error)}); move it away to begin "
                         "anew") from error
    if not same:
        return f"{path} is the state of another repair and will be replaced"
    if not alike:
        return f"{path} is the state of a repair of other images and will be replaced: some have changed since"
    return f"going on after epoch {state.epoch}, from {path}"


def check_whole(path: Path) -> None:
    """Raise ValueError unless a file of torch.save is as it was written, by its checksums, which torch ignores."""
    with zipfile.ZipFile(path) as archive:
        if name := archive.testzip():
            raise ValueError(f"{name} in it is damaged")


def why_refused(path: Path, error: Exception) -> str:
    """Why a file is no state, in words that advise nothing unsafe as torch's own do."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, KeyError):
        return f"it lacks {error}, perhaps of an older version"
    if asked := asks_for_code(path, error):
        return f"it asks for code to be run, {asked}, and was not read"
    if isinstance(error, (pickle.UnpicklingError, RuntimeError, EOFError)):
        return "it is cut short, or no file that torch.save wrote"
    return first_line(error, kind=False)
