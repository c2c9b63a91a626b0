"""The state of a repair after an epoch, from which the same command goes on."""

import hashlib
from pathlib import Path

import torch

from engine.checks import first_line
from experiment.files import write_whole
from rem import State

LOOKED_AT = 32  # images, evenly spaced, by which a state knows its data
PARTS = ("expanded", "optimizer")  # of a rem.State, with a state dict each


def save_state(state: State, end, path: str | Path, **notes) -> None:
    """Write all that REM's next epoch depends on, and `notes`, so that it can go on elsewhere; whole or not at all.

    The reference is not among it: step 1 makes it anew from the same network. end: of engine/ending.py.
    """
    content = notes | {part: getattr(state, part).state_dict() for part in PARTS}
    content |= {"epoch": state.epoch, "end": end.state_dict(), "draws": state.generator.get_state()}
    write_whole(path, lambda file: torch.save(content, file))


def load_state(state: State, end, path: str | Path) -> None:
    """Put what `save_state` wrote into a state of rem.add_capacity, of the same network, data and settings."""
    content = torch.load(path, weights_only=True, map_location=state.device)
    for part in PARTS:
        getattr(state, part).load_state_dict(content[part])
    end.load_state_dict(content["end"])
    state.epoch = content["epoch"]
    state.generator.set_state(content["draws"].cpu())


def repair_key(model, data, forget: torch.Tensor, *settings) -> str:
    """SHA-256 of what decides a repair: weights, how images are read, LOOKED_AT of them, labels, D_f and settings."""
    reading = tuple(data.shape), tuple(data.mean), tuple(data.std), data.pad, data.flip
    key = hashlib.sha256(repr((reading, settings)).encode())
    few = torch.arange(LOOKED_AT) * (len(data) - 1) // (LOOKED_AT - 1)
    ((images, _),) = data._read(few, [slice(0, len(few))], None)  # as they are stored, the same on every device
    for value in (*model.state_dict().values(), images, data.labels, forget):
        key.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return key.hexdigest()


def resume(state, end, path: str | Path, key: str) -> str | None:
    """Put what an earlier run of the same repair, by `repair_key`, has kept into a state and its end.

    Returns: a line of text; None where there is no file. Raises: ValueError for a file that is no such state.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        found = torch.load(path, weights_only=True, mmap=True)["key"]
        if found == key:
            load_state(state, end, path)
    except Exception as error:  # a file of something else can raise anything
        raise ValueError(f"{path} is no state of this repair ({first_line(error, kind=False)}); move it away to begin anew") from error
    if found != key:
        return f"{path} is the state of another repair and will be replaced"
    return f"going on after epoch {state.epoch}, from {path}"
