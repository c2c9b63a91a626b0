"""What a repair writes, each file whole or not at all: the report, and the state that a rerun goes on from."""

import argparse
import hashlib
import json
from pathlib import Path

import torch

from experiment import check_writable, load_state
from formats.inputs import Folder
from formats.networks import FILES
from formats.sheets import answered, beside

ENDINGS = (*FILES, ".tar", ".json", ".state")  # what a file's name may end in; the last two are refused
LOOKED_AT = 32  # images, evenly spaced, by which a state knows its data


def beside_weights(out: str | Path, ending: str) -> Path:
    """The report (.json) or the state (.state) beside the repaired weights; net_v1.2 has no ending to take away."""
    if not Path(out).name:
        raise ValueError(f"--out is {str(out)!r}; give a file that ends in .pt or .safetensors")
    path = Path(out)
    return path.with_suffix(ending) if path.suffix in ENDINGS else path.with_name(path.name + ending)


def check_replaced(args: argparse.Namespace, report_file: Path, state: Path) -> None:
    """Raise ValueError unless all outputs can be written and none replaces an input, or what a user typed."""
    inputs = [args.checkpoint, *args.bad, args.clean, args.class_map, args.model.rpartition(":")[0]]
    images = [(Path(args.data) / part).resolve() for part in ("train", "test", "val")]
    if args.checkpoint_every < 0:
        raise ValueError(f"--checkpoint-every is {args.checkpoint_every}; give a number of epochs, 0 for no state")
    listed, drawn = beside(args.out)
    others = {"report": report_file, "state": state, "list": listed, "sheet": drawn}
    for what, out in {"weights": Path(args.out), **others}.items():
        check_writable(str(out))
        if any(out.resolve().is_relative_to(folder) for folder in images):
            raise ValueError(f"{out} would lie among the images of --data {args.data}; give --out elsewhere")
        if what in others and out.resolve() == Path(args.out).resolve():
            raise ValueError(f"--out is {args.out}, the {what}'s name; give a file that ends in .pt or .safetensors")
        for name in filter(None, inputs):
            if out.exists() and Path(name).exists() and out.samefile(name):
                other = "folder" if what in ("list", "sheet") else "file"  # these two have one name in each folder
                raise ValueError(f"{out} would replace the input {name}; give another {other} with --out")
    if report_file.exists() and not is_report(report_file):
        raise ValueError(f"{report_file} is no report of a repair and would be replaced; give another name with --out")
    if drawn.exists() and not listed.exists():
        raise ValueError(f"{drawn} is not from a repair, or its suspects.csv was moved, and would be replaced; choose "
                         "another folder for --out")
    if answered(listed):
        raise ValueError(f"{listed} has a column `bad`, which would be lost, or another that is not from here; choose "
                         "another folder for --out")


def is_report(file: Path) -> bool:
    """Whether a file is what a repair writes as its report."""
    try:
        return {"scores", "sha256", "settings"} <= json.loads(file.read_bytes()).keys()
    except (ValueError, AttributeError, RecursionError):
        return False


def check_apart(out: str | Path, folder: Folder) -> None:
    """Raise ValueError where an output would lie beside images, in a folder that a link leads to as well."""
    images = {path.parent.resolve() for path in (*folder.paths, *(path for path, _ in folder.heldout or ()))}
    if Path(out).resolve().parent in images:
        raise ValueError(f"{out} would lie among the images of --data {folder.root}; give --out elsewhere")


def repair_key(model, data, forget: torch.Tensor, *settings) -> str:
    """SHA-256 of what decides a repair: weights, how images are read, LOOKED_AT of them, labels, D_f and settings."""
    reading = tuple(data.shape), tuple(data.mean), tuple(data.std), data.pad, data.flip
    key = hashlib.sha256(repr((reading, settings)).encode())
    few = torch.arange(LOOKED_AT) * (len(data) - 1) // (LOOKED_AT - 1)
    ((images, _),) = data._read(few, [slice(0, len(few))], None)  # as they are stored, the same on every device
    for value in (*model.state_dict().values(), images, data.labels, forget):
        key.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return key.hexdigest()


def resume(state, path: str | Path, key: str) -> str | None:
    """Put what an earlier run of the same repair, by `repair_key`, has kept into a state of rem.start.

    Returns: a line of text; None where there is no file. Raises: ValueError for a file that is no such state.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        found = torch.load(path, weights_only=True, mmap=True)["key"]
        if found == key:
            load_state(state, path)
    except Exception as error:  # a file of something else can raise anything
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{path} is no state of this repair ({reason}); move it away to begin anew") from error
    if found != key:
        return f"{path} is the state of another repair and will be replaced"
    return f"going on after epoch {state.epoch}, from {path}"


def digest(path: str) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
