"""Pickles that want more than weights: what a refused one asks for, found without running anything in it.

    try:
        content = torch.load(path, weights_only=True)
    except Exception as error:
        asked = asks_for_code(path, error)      # "os.system", or None: it was refused for another reason
"""

import io
import itertools
import pickletools
import re
import zipfile
from pathlib import Path

from experiment.console import clipped
from experiment.files import check_readable

CALLS = ("INST", "EXT1", "EXT2", "EXT4")  # opcodes that call what they name, by number too
# names that a file of weights asks for, with the harmless ones of repair/checkpoints.py
WEIGHTS = (r"torch\.(_utils\.\w+|\w+)|collections\.OrderedDict|argparse\.Namespace|numpy\.(dtype|dtypes\.\w+)|"
           r"numpy\._?core\.multiarray\.(scalar|_reconstruct)|numpy\.ndarray|_codecs\.encode")
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
