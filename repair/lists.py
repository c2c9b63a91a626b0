"""Lists of known bad images, with their true labels where somebody knows them, matched to the images of a folder.

    found = read_lists({"bad.txt": read_file("bad.txt")}, paths, root, classes)
    found.forget, found.truths              # (k,) int64 indices; (k,) int64 true labels, -1 where unknown

A list is a text file, one image a line, or a CSV file with a header line. An image is a path from the folder, from its
train/ or from the present folder, a file's name that only one image has, or an index in the order of the folders' and
files' names. Every line must match an image. BackdoorBench's attack_result.pt is a list of names, too.
"""

import csv
import io
import os
from pathlib import Path
from typing import NamedTuple

import torch

from experiment.console import clipped
from experiment.files import check_readable
from repair.backdoorbench import poisoned_names

IMAGE = ("filename", "filepath", "path", "image", "file", "")  # columns that name images; "": cleanlab's index
BAD = ("bad", "is_label_issue")  # columns by which a list says which of its rows are bad: a user's, cleanlab's
TRUTH = "true_label"  # the column of true labels
TRUE, FALSE = ("true", "1", "yes"), ("false", "0", "no", "")
SUFFIXES = (".txt", ".csv", "")  # of lists; "" is what a shell gives for <(...)
PICKLES = (".pt", ".pth")  # of BackdoorBench's results
SHOWN = 20  # lines that a message names
LARGEST = 256 * 10**6  # bytes of a list
DIGITS = 20  # of an index; a longer number is a name


class Entry(NamedTuple):
    """A line of a list."""

    image: str | int  # a path, a name or an index
    truth: str = ""  # a class's name or number; empty where unknown


class Listed(NamedTuple):
    """What lists say of the training images."""

    forget: torch.Tensor  # (k,) int64, D_f, sorted
    truths: torch.Tensor | None  # (k,) int64 true labels, -1 where unknown; None: none is known
    said: str  # how many lines of each list matched


def read_lists(contents: dict[str, bytes], paths: list[Path], root: Path, classes: list[str], ordered: bool = True
               ) -> Listed:
    """D_f and its true labels, of several lists together.

    Args:
        contents: by file, as `read_file` gives it. One that lists nothing, such as suspects of which none is bad, is
            passed over beside others.
        paths: the training images in torchvision's ImageFolder order, which indices count; root: the folder above
            train/; classes: their names.
        ordered: False where a class map has the folders in another order, so that indices may count either way.
    Raises: ValueError for a list that cannot be read, a line that matches no training image or several, a true label
        that is no class or contradicts another one, indices without `ordered`, or where nothing is listed.
    """
    places, truths, said = places_of(paths, root), {}, []
    numbers = {**{str(k): k for k in range(len(classes))}, **{name: k for k, name in enumerate(classes)}}
    for file, content in contents.items():
        entries = entries_of(Path(file), content)
        if not ordered and any(isinstance(entry.image, int) for entry in entries):
            raise ValueError(f"{file} has indices, and --class-map another order of the folders than their names' own: "
                             "images may be counted either way; give paths")
        found = match(file, entries, places, root)
        for i, entry in zip(found, entries, strict=True):
            if entry.truth and entry.truth not in numbers:
                raise ValueError(f"{file}: the {TRUTH} {clipped(entry.truth)!r} of {paths[i].name} is no class; they "
                                 f"are {', '.join(classes)}")
            truth, known = numbers.get(entry.truth, -1), truths.get(i, -1)
            if -1 not in (truth, known) and truth != known:
                raise ValueError(f"{file}: {paths[i].name} has the true labels {classes[known]!r} and "
                                 f"{classes[truth]!r}; leave one")
            truths[i] = max(truth, known)
        if found:
            first, last = (os.path.relpath(paths[i], root) for i in (min(found), max(found)))
            said.append(f"{file}: {len(entries)} lines, {len(set(found))} images: {first} to {last}")
        else:
            said.append(f"{file}: nothing bad in it")
    if not truths:
        raise ValueError(f"{', '.join(contents)} lists no image; without known bad images there is nothing to repair")
    forget = sorted(truths)
    known = torch.tensor([truths[i] for i in forget])
    return Listed(torch.tensor(forget), known if (known >= 0).any() else None, "\n".join(said))


# --- Files ------------------------------------------------------------------------------------------------------------

def read_file(path: str | Path) -> bytes:
    """What is in a list, of at most LARGEST bytes: of a regular file, or of what a shell gives for <(...)."""
    try:
        check_readable(path, pipe=True)
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror or error}); it must be a text file in UTF-8, or a "
                         "shell's <(...)") from error
    if len(content) > LARGEST:
        raise ValueError(f"{path} has more than {LARGEST // 10**6} MB; give a list of images, one a line")
    return content


def as_text(path: str | Path, content: bytes) -> str:
    """The content of a text file in letters."""
    try:
        return content.decode("utf-8-sig")  # line ends as they are, which a quoted name may hold
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read {path} ({error}); it must be a text file in UTF-8") from error


def entries_of(path: Path, content: bytes) -> list[Entry]:
    """The lines of a list, of a CSV file those that are bad."""
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        return [Entry(name) for name in poisoned_names(path, content[:16])]
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} is no list; give a .txt file with one path or index a line (numpy.savetxt(\"bad.txt\""
                         ", indices, fmt=\"%d\")), a .csv file, or BackdoorBench's attack_result.pt")
    text = as_text(path, content)
    if suffix == ".csv":
        columns, rows = csv_rows(path, text)
        column = next((name for name in IMAGE if name in columns), None)
        if column is None:
            raise ValueError(f"{path} has the columns {', '.join(columns)}; one must be {', '.join(IMAGE[:-1])}")
        entries = [Entry(row[column], row.get(TRUTH, "")) for row in bad_rows(path, columns, rows)]
    else:
        entries = [Entry(line.strip()) for line in text.splitlines() if line.strip()]
    if not all(is_index(entry.image) for entry in entries):
        return entries
    if len(entries) > 2 and {entry.image for entry in entries} <= {"0", "1"}:
        raise ValueError(f"{path} is a list of 0 and 1, which tools take differently; give the indices of bad images")
    return [Entry(int(entry.image), entry.truth) for entry in entries]


def is_index(name: str) -> bool:
    """Whether an entry can be an index; 0012 is none, but a name."""
    return name.isdecimal() and len(name) <= DIGITS and str(int(name)) == name


def csv_rows(path: Path, text: str) -> tuple[list[str], list[dict[str, str]]]:
    """Column names, in small letters, and rows of a CSV file, with commas, semicolons or tabs between the values."""
    header = text.partition("\n")[0]
    try:
        lines = [[value.strip() for value in line]
                 for line in csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count)) if line]
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV ({error})") from error
    columns = [name.lower() for name in lines[0]] if lines else []
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise ValueError(f"{path} has the column {twice[0]!r} twice; leave one")
    for line in lines[1:]:
        if len(line) != len(columns):
            raise ValueError(f"{path}: a line of {len(line)} values for {len(columns)} columns, it begins with "
                             f"{clipped(line[0])!r}")
    return columns, [dict(zip(columns, line, strict=True)) for line in lines[1:]]


def bad_rows(path: Path, columns: list[str], rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows that a column of BAD says are bad; all of them where there is no such column."""
    flags = [name for name in BAD if name in columns]
    if not flags:
        if {"rank", "label_score"} <= set(columns):
            raise ValueError(f"{path} lists suspects, bad or not; add a column `bad` with true where one is bad")
        return rows
    for row in rows:
        for name in flags:
            if row[name].lower() not in (*TRUE, *FALSE):
                raise ValueError(f"{path}: the column {name} has {clipped(row[name])!r}; it must be true, false or "
                                 "empty")
    return [row for row in rows if any(row[name].lower() in TRUE for name in flags)]


# --- Images -----------------------------------------------------------------------------------------------------------

def places_of(paths: list[Path], root: Path) -> dict[str, list[int]]:
    """The training images by what a list may call them: a path of any kind, or a file's name."""
    places = {}
    for i, path in enumerate(paths):
        names = {os.path.relpath(path, root), os.path.relpath(path, root / "train"), os.path.abspath(path),
                 os.path.realpath(path), path.name}
        names |= {name.encode("utf-8", "backslashreplace").decode() for name in names}  # as suspects.csv has them
        for name in names:
            places.setdefault(name, []).append(i)
    return places


def match(file: str, entries: list[Entry], places: dict[str, list[int]], root: Path) -> list[int]:
    """The training image of each entry; ValueError that names the entries that are none, or several."""
    count = 1 + max(max(found) for found in places.values())
    found, lost = [], []
    for image, _ in entries:
        if isinstance(image, int):
            good = [image] if image < count else []
        else:
            path = os.path.normpath(image.replace("\\", "/"))
            good = next((places[name] for name in (image, path, os.path.abspath(path), os.path.realpath(path))
                         if name in places), [])
        if len(good) == 1:
            found += good
        else:
            shown = repr(clipped(image) if isinstance(image, str) else image)
            lost.append(f"{shown} ({len(good)} images have this name)" if good else shown)
    if lost:
        more = "" if len(lost) <= SHOWN else f" and {len(lost) - SHOWN} more"
        raise ValueError(f"{file}: {len(entries)} lines, {len(found)} matched; no training image below "
                         f"{root / 'train'} for {', '.join(lost[:SHOWN])}{more}; paths count from {root}, from its "
                         "train/ or from here")
    return found
