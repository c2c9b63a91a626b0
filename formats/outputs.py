"""What a repair writes, each file whole or not at all: the report, and the state that a rerun goes on from."""

import argparse
import hashlib
from pathlib import Path

from experiment import check_writable
from formats.sheets import answered, beside


def check_replaced(args: argparse.Namespace, report_file: Path) -> None:
    """Raise ValueError unless all outputs can be written and none replaces an input, or what a user typed."""
    if report_file == Path(args.out):
        raise ValueError(f"--out is {args.out}, the report's name; give a file that ends in .pt or .safetensors")
    for out in (Path(args.out), report_file, *beside(args.out)):
        check_writable(str(out))
        for name in (args.checkpoint, *args.bad, args.clean, args.class_map):
            if name and out.exists() and Path(name).exists() and out.samefile(name):
                raise ValueError(f"{out} would replace the input {name}; give another file with --out")
    if answered(listed := beside(args.out)[0]):
        raise ValueError(f"{listed} has a column `bad`, which would be lost; choose another folder for --out")


def digest(path: str) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
