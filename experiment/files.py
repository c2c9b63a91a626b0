"""Files: checked before the work, and written whole or not at all."""

import contextlib
import errno
import hashlib
import io
import os
import stat
from pathlib import Path

LONGEST_NAME = 255  # bytes of a file's name, on most file systems
DESCRIPTORS = ("/dev/fd", "/proc/self/fd")  # folders of what a shell has opened for us, as for <(...)


# --- Before the work --------------------------------------------------------------------------------------------------

def check_writable(out: str) -> None:
    """Raise ValueError unless rows can be appended to the result file, a link's target; makes its folder.

    The name is looked at as it was given, and so is that of the temporary file of `write_whole`. Nothing is created:
    another run may be about to write the same file.
    """
    try:
        path = target_of(out)
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
        path = target_of(out)
        there = next(place for place in (path, *path.parents) if place.exists())
        if not there.is_dir():
            raise OSError("it is a file" if there == path else f"{there} is a file")
        if not os.access(there, os.W_OK):
            raise OSError("permission denied")
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot write into {out} ({reason}); name another folder with --out") from error


def target_of(out: str) -> Path:
    """What a path leads to, through links; OSError for a link to itself, which newer Pythons resolve to itself."""
    path = Path(out).resolve()
    if path.is_symlink():
        raise OSError("it is a link to itself")
    return path


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
    """The temporary file beside a file; a name that would be too long is replaced by its digest."""
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
