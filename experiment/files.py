"""Files that are whole or not there: a task beside its network, whether one can be written, or read without waiting."""

import contextlib
import errno
import hashlib
import io
import itertools
import os
import pickletools
import re
import stat
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import torch

from experiment.console import clipped
from experiment.data import Data, Dataset
from tasks import Task, assemble, fingerprint

LONGEST_NAME = 255  # bytes of a file's name, on most file systems
DESCRIPTORS = ("/dev/fd", "/proc/self/fd")  # folders of what a shell has opened for us, as for <(...)


# --- Before the work --------------------------------------------------------------------------------------------------

def check_writable(out: str) -> None:
    """Raise ValueError unless rows can be appended to the result file, a link's target; makes its folder.

    The name is looked at as it was given, and so is that of the temporary file of `write_whole`. Nothing is created:
    another run may be about to write the same file.
    """
    try:
        path = Path(out).resolve()
        if path.exists() and not path.is_file():
            raise OSError("it is a folder" if path.is_dir() else "it is no regular file")
        if not out or str(out).endswith(tuple(filter(None, (os.sep, os.altsep)))):
            raise OSError("it is no file's name")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise OSError("permission denied")
        for name in (path, partial_of(path)):  # either may be too long for the file system
            with contextlib.suppress(FileNotFoundError):
                os.lstat(name)
    except (OSError, RuntimeError, ValueError) as error:  # a link to itself, a name with a null byte
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot write results to {out} ({reason}); give another --out") from error


def check_folder(out: str) -> None:
    """Raise ValueError unless files can be written into a folder, which is there or can be made; makes none."""
    try:
        path = Path(out).resolve()
        there = next(place for place in (path, *path.parents) if place.exists())
        if not there.is_dir():
            raise OSError("it is a file" if there == path else f"{there} is a file")
        if not os.access(there, os.W_OK):
            raise OSError("permission denied")
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot write into {out} ({reason}); name another folder with --out") from error


def check_readable(path: str | Path, pipe: bool = False) -> None:
    """Raise OSError for what is no regular file: opening a named pipe waits for ever, a device need not end.

    Args: pipe: whether one that is open already will do, as a shell gives it for <(...) and /dev/stdin.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    opened = os.path.dirname(path) in DESCRIPTORS or str(path) == "/dev/stdin"
    if not stat.S_ISREG(mode) and not (pipe and opened and stat.S_ISFIFO(mode)):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


# --- Fingerprints of images -------------------------------------------------------------------------------------------

def of_test(test: Data) -> int:
    """CRC-32 of a test set, labels and all."""
    return zlib.crc32(test.labels.cpu().contiguous().numpy(), fingerprint(test))


def fingerprints(dataset: Dataset) -> str:
    """What tells a data set from another of its name in a row: `of_test` of training and test set before corruption."""
    return f"{of_test(dataset.train):08x}-{of_test(dataset.test):08x}"


# --- A task beside its network ----------------------------------------------------------------------------------------


def save_task(task: Task, path: str | Path) -> None:
    """Write the labels and D_c, so that unlearning sees the very labels that training saw; whole or not at all."""
    source = fingerprint(task.train) if task.source is None else task.source
    content = {"name": task.name, "seed": task.seed, "labels": task.train.labels.cpu(), "clean": task.clean,
               "corrupted": task.corrupted, "images": source, "test": of_test(task.test), "trigger": task.trigger}
    write_whole(path, lambda file: torch.save(content, file))


def load_task(path: str | Path, dataset: Dataset) -> Task:
    """Read what `save_task` wrote and put it on the data set it was made from.

    Raises: ValueError for no such file, or the data set has other images, of training or of testing.
    """
    if not Path(path).is_file():
        raise ValueError(f"no task file at {path}; save_task writes one")
    content = read_task(path)
    if other := other_images(content, dataset):
        raise ValueError(f"the task in {path} was made from other {other[0]} images than {dataset.name}'s; "
                         "load the data it was made from, or begin anew elsewhere")
    clean = replace(dataset, train=replace(dataset.train, labels=content["clean"].to(dataset.train.images.device)))
    trigger = content.get("trigger", "patch")  # older files have the only one that there was
    return assemble(content["name"], content["seed"], clean, content["labels"], content["corrupted"], trigger)


def other_images(content: dict, dataset: Dataset) -> list[str]:
    """Of a task that `read_task` has read, which images are others than a data set's: "training", "test" or none."""
    test = of_test(dataset.test)
    same = {"training": content["images"] == fingerprint(dataset.train),
            "test": content.get("test", test) == test}  # older files have none
    return [part for part, alike in same.items() if not alike]


def read_task(path: str | Path) -> dict:
    """What `save_task` wrote; ValueError for a file of something else."""
    try:
        content = torch.load(path, weights_only=True)
        return {name: content[name] for name in ("name", "seed", "labels", "clean", "corrupted", "images")} | content
    except Exception as error:  # a file of something else can raise anything
        asked = asks_for_code(path, error)
        reason = f"it asks for code to be run ({asked}) and was not read" if asked else "it is damaged"
        raise ValueError(f"{path} is no task of ours: {reason}; delete it and give the same command again") from error


# --- Whole or not at all ----------------------------------------------------------------------------------------------

class Noting(io.BufferedWriter):
    """A file that remembers the error of the operating system by which a write failed.

    torch.save meets it in its own code and tells of a failed check in its place, as a RuntimeError.
    """

    error: OSError | None = None

    def write(self, content) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.error = error
            raise


def partial_of(path: Path) -> Path:
    """The temporary file beside a file; of a long name its digest, so that it is no longer than a name may be."""
    ending = f".{os.getpid()}.tmp"
    name = path.name
    if len(os.fsencode(name)) + len(ending) > LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return path.with_name(name + ending)


def write_whole(path: str | Path, write) -> None:
    """Call write(file) on a temporary file beside `path`, sync it, then put it in place in one step.

    Raises: OSError that names the file, of a full disk too where write(file) makes something else of it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, file = partial_of(path), None
    try:
        with Noting(io.FileIO(partial, "wb")) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        cause = file.error if file is not None and file.error is not None else error
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror or str(cause), str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


# --- Pickles that want more than weights ------------------------------------------------------------------------------

CALLS = ("INST", "EXT1", "EXT2", "EXT4")  # opcodes that call what they name, by number too
# names that a file of weights asks for, with the harmless ones of repair/checkpoints.py
WEIGHTS = (r"torch\.(_utils\.\w+|\w+)|collections\.OrderedDict|argparse\.Namespace|numpy\.(dtype|dtypes\.\w+)|"
           r"numpy\._?core\.multiarray\.scalar|_codecs\.encode")
REFUSED = (r"GLOBAL (\S+) (?:was not an allowed global|whose module)", r"unrecognized function (.+)")  # torch's words
LOOKED_AT, STEPS = 2**26, 10**6  # bytes and opcodes of a refused pickle that are looked at, so that it costs a second


def asks_for_code(path: str | Path, error: Exception) -> str | None:
    """What a pickle that torch.load has refused wants to import or call; None where it was refused for another reason.

    Nothing in the file is run: the text of the refusal and the opcodes of the pickle are looked at.
    """
    matches = [found[1] for words in REFUSED if (found := re.search(words, str(error)))]
    asked = matches[0] if matches else imported_by(path)
    return asked and "".join(letter if letter.isprintable() else "?" for letter in clipped(asked))


def imported_by(path: str | Path) -> str | None:
    """The first name, other than those of WEIGHTS, that a pickle imports or calls; None where it is no pickle."""
    texts, memo = [], {}  # texts on the stack or, in their order, nearly so: two of them name what STACK_GLOBAL imports
    found = None
    try:
        check_readable(path)
        content = pickled(Path(path))
        for opcode, argument, _ in itertools.islice(opcodes(content), STEPS):
            if found and (content[:1] == b"\x80" or opcode.name == "STOP"):
                return found  # without the mark of a pickle it may be a text, which reaches no STOP
            if opcode.name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
                memo[len(memo) if argument is None else argument] = texts[-1] if texts else ""
            elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
                texts.append(memo.get(argument, ""))
            elif opcode.name in ("GLOBAL", "STACK_GLOBAL"):
                name = ".".join(texts[-2:]) if argument is None else argument.replace(" ", ".")
                found = found or (None if re.fullmatch(WEIGHTS, name) else name)
            elif opcode.name in CALLS:
                found = found or str(argument).replace(" ", ".")
            elif isinstance(argument, str):
                texts.append(argument)
    except Exception:  # what is no pickle ends in any kind of error
        return None
    return None


def opcodes(content: bytes):
    """The opcodes of all pickles that follow each other in a file, as an old one of torch.save has several."""
    with io.BytesIO(content) as file:
        while file.tell() < len(content):
            yield from pickletools.genops(file)


def pickled(path: Path) -> bytes:
    """The pickle in a file that torch.save or pickle wrote, or its first part."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            return file.read(LOOKED_AT)
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        with archive.open(name) as file:
            return file.read(LOOKED_AT)
