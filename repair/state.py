"""The state of a repair after an epoch, from which the same repair goes on.

    save_state(s, end, "repaired.state", key)             # after each epoch
    line = resume(s, end, "repaired.state", key)          # before the first one: "going on after epoch 2, ..."
"""

import hashlib
import os
import re
from dataclasses import replace
from pathlib import Path

import torch

from engine.modes import modes_of
from experiment.data import Data
from experiment.files import check_readable, write_whole
from experiment.pickles import asks_for_code
from experiment.settings import VERSION
from repair.inputs import Files
from rem import State
from rem_plus import put_back, snapshot


def save_state(s: State, end, path: str | Path, key: str) -> None:
    """Write all that the next epoch of REM+ depends on, whole or not at all.

    The reference is not among it: step 1 makes it again from the same network. end: EarlyStopping of rem_plus.py; key:
    of `repair_key`. Raises: OSError where the file cannot be written.
    """
    content = {"key": key, "expanded": snapshot(s.expanded), "optimizer": s.optimizer.state_dict(), "epoch": s.epoch,
               "reach": s.config.reach, "end": end.state_dict(), "draws": s.generator.get_state()}
    write_whole(path, lambda file: torch.save(content, file))


def resume(s: State, end, path: str | Path, key: str) -> str | None:
    """Put what an earlier run of the same repair, by its `repair_key`, has saved into a state and its end.

    Returns: a line of text; None where there is no file. Raises: ValueError for a file that is no such state.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        check_readable(path)
        content = torch.load(path, weights_only=True, map_location=s.device)
        if content["key"] != key:
            return f"{path} is the state of another repair, or of images that have changed, and will be replaced"
        put_back(s.expanded, content["expanded"])  # buffers that a state dict leaves out, too
        s.optimizer.load_state_dict(content["optimizer"])
        end.load_state_dict(content["end"])
        s.epoch = content["epoch"]
        s.config = replace(s.config, reach=content["reach"])  # which a repair may have halved
        s.generator.set_state(content["draws"].cpu())
    except Exception as error:  # a file of something else can raise anything
        asked = asks_for_code(path, error)
        why = (f"it asks for code to be run, {asked}, and was not read" if asked else
               isinstance(error, OSError) and error.strerror or "it is damaged, or was written by another program")
        raise ValueError(f"{path} is no state of this repair ({why}); move it away to begin again") from error
    return f"going on after epoch {s.epoch}, from {path}"


def repair_key(model, data, forget: torch.Tensor, files: Files | None, *settings) -> str:
    """SHA-256 of what decides a repair: the version of the code; the network, its weights, its modes and what is frozen
    in it; the images and how they are read, their labels, D_f and the settings.

    Of image files count path, size and time of each, so that the key is the same whether they are in memory or
    streamed, which a later run with less free memory may need; of other images in memory every pixel; of another
    streamed data set the labels alone. files: those that `data` was read from, None: unknown.
    """
    if files is None and not isinstance(data, Data) and isinstance(data.dataset, Files):
        files = data.dataset
    reading = tuple(data.shape), tuple(data.mean), tuple(data.std), data.pad, data.flip, files and files.reading
    network = re.sub(r" at 0x[0-9a-f]+", "", str(model)), modes_of(model), [p.requires_grad for p in model.parameters()]
    key = hashlib.sha256(repr((VERSION, network, reading, settings)).encode())
    for value in (*model.state_dict().values(), data.labels, forget):
        key.update(raw(value) if isinstance(value, torch.Tensor) else repr(value).encode())  # what modules keep besides
    if files is not None:
        for path in files.paths:
            status = os.stat(path)
            key.update(repr((os.path.abspath(path), status.st_size, status.st_mtime_ns)).encode())
    elif isinstance(data, Data):
        for part in data.images.split(256):  # a copy of them all, off a GPU, may have no room
            key.update(raw(part))
    return key.hexdigest()


def raw(value: torch.Tensor):
    """The bytes of a tensor."""
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
