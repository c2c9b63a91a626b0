"""What a repair writes, each file whole or not at all: where its files go, and what they must not replace."""

import argparse
import errno
import hashlib
import json
from pathlib import Path

from experiment.files import check_writable
from repair.inputs import Folder
from repair.networks_by_name import FILES
from repair.page import is_page
from repair.suspects_list import answered, beside

FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # of a disk, or of what one user may have of it
ENDINGS = (*FILES, ".tar", ".json", ".state", ".html")  # what a file's name may end in; the last three are refused


def beside_weights(out: str | Path, ending: str) -> Path:
    """The report (.json), page (.html) or state (.state) beside the repaired weights; net_v1.2 has no ending to
    take away."""
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
    listed, page = beside(args.out), beside_weights(args.out, ".html")
    others = {"report": report_file, "state": state, "list": listed, "page": page}
    check_writable(args.out)  # the very name: Path("folder/") is a file's
    for what, out in {"weights": Path(args.out), **others}.items():
        check_writable(str(out))
        if any(out.resolve().is_relative_to(folder) for folder in images):
            raise ValueError(f"{out} would lie among the images of --data {args.data}; give --out elsewhere")
        if what in others and out.resolve() == Path(args.out).resolve():
            raise ValueError(f"--out is {args.out}, the {what}'s name; give a file that ends in .pt or .safetensors")
        for name in filter(None, inputs):
            if out.exists() and Path(name).exists() and out.samefile(name):
                other = "folder" if what == "list" else "file"  # a list has one name in each folder
                raise ValueError(f"{out} would replace the input {name}; give another {other} with --out")
    if Path(args.out).exists() and not report_file.exists() and not state.exists():
        raise ValueError(f"{args.out} exists, and no report of a repair lies beside it: it may be other weights, which "
                         "would be replaced; give another name with --out, or remove it")
    if report_file.exists() and not is_report(report_file):
        raise ValueError(f"{report_file} is no report of a repair and would be replaced; give another name with --out")
    if page.exists() and not is_page(page):
        raise ValueError(f"{page} is no page of a repair and would be replaced; give another name with --out")
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


def digest(path: str) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            found.update(part)
    return found.hexdigest()


def written(write, state: Path | None, say) -> None:
    """Call write(); where the disk is full and a state lies beside, make room by removing that, and try once more."""
    try:
        write()
    except OSError as error:
        if error.errno not in FULL or state is None or not state.exists():
            raise
        say(f"{error.strerror or error}: {state} is removed to make room")
        state.unlink()
        write()
