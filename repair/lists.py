"""Lists of bad images, and of true labels: read, and matched to the images of a folder.

    forget, said = read_lists(["bad.txt", "more.csv"], paths, root)      # every line must match an image
    truths = read_labels("true.csv", paths, root, classes)               # (N,) int64, -1 where unknown
"""

import csv
import io
import json
import os
import re
import unicodedata
from pathlib import Path

import numpy as np
import torch

from experiment.console import clipped
from experiment.files import check_readable

PATH_COLUMNS = ("filename", "filepath", "path", "image", "file", "img_filename")
LABEL_COLUMNS = ("true_label", "clean_label", "label", "class")  # where there are several, the first
TRUTH_COLUMNS = LABEL_COLUMNS[:3]  # the same in a list of bad images
NAMED_LABELS = ("true_label", "clean_label", "given_label", "predicted_label")  # whatever a class is called
TRUE, FALSE = ("true", "1", "1.0", "yes", "t"), ("false", "0", "0.0", "no", "f", "")
VERDICTS = ("_bad", "corrupt", "error", "_is_", "issue", "mislabel", "noisy", "poison", "wrong")  # in _ and its name
SEPARATOR = re.compile("sep=(.)", re.IGNORECASE)  # a first line
SHOWN = 20  # lines that a message names
LARGEST = 256 * 10**6  # bytes of a list
DIGITS = 20  # of a number in a list; a longer one is a name


def read_lists(lists, paths: list[Path], root: Path, ordered: bool = True) -> tuple[torch.Tensor, str]:
    """D_f of several lists together, as of `read_bad`; all but one may list nothing: suspects of which none is bad.

    lists: files, or their contents by file.
    """
    contents = lists if isinstance(lists, dict) else {file: read_file(Path(file)) for file in lists}
    files = list(contents)
    some = [file for file in files if len(files) == 1 or read_entries(Path(file), contents[file])] or files[:1]
    found = [read_bad(file, paths, root, ordered, contents[file]) for file in some]
    said = [*(text for _, text in found), *(f"{file}: nothing bad in it" for file in files if file not in some)]
    return torch.cat([forget for forget, _ in found]).unique(), "\n".join(said)


def read_bad(file: str | Path, paths: list[Path], root: Path, ordered: bool = True, content: bytes | None = None
             ) -> tuple[torch.Tensor, str]:
    """D_f: the positions of the listed images among the training images.

    Args:
        file: .txt (a path or an index per line), .csv (a column of PATH_COLUMNS, or an unnamed first one of indices;
            with a column bad, is_label_issue or is_*_issue, its true rows alone), .json (a list, or {"paths": [...]}
            or {"indices": [...]}) or .npy (indices).
        paths: the training images in torchvision's ImageFolder order, which indices count.
        root: the folder above train/.
        ordered: False where a class map has the folders in another order, so that indices may count either way.
        content: of the file, where it has been read: what a shell gives for <(...) can be read once.
    Returns: (k,) int64, sorted, each once; and a line that says how many lines matched.
    Raises: ValueError for a file that cannot be read, lists nothing, or has a line that matches no training image or
        several; for indices without `ordered`.
    """
    entries = read_entries(Path(file), content)
    if not entries:
        raise ValueError(f"{file} lists no image; without known bad images there is nothing to repair")
    check_order(file, entries, ordered)
    found, lost = match(entries, paths, root)
    if Path(file).suffix.lower() not in (".csv", ".json", ".npy"):
        check_numbers(file, entries, paths)
    if lost:
        more = "" if len(lost) <= SHOWN else f" and {len(lost) - SHOWN} more"
        raise ValueError(f"{file}: {len(entries)} lines, {len(found)} matched; no training image below "
                         f"{root / 'train'} for {', '.join(lost[:SHOWN])}{more}; paths count from {root}, from its "
                         "train/ or from here")
    forget = torch.tensor(sorted(set(found)))
    twice = f", {len(found) - len(forget)} of them twice" if len(found) > len(forget) else ""
    first, last = (os.path.relpath(paths[i], root) for i in (forget[0], forget[-1]))
    return forget, f"{file}: {len(entries)} lines, {len(found)} matched{twice}: {first} to {last}"


def check_order(file: str | Path, entries: list[str | int], ordered: bool) -> None:
    """Raise ValueError for indices where two orders of the folders could be meant."""
    if not ordered and any(isinstance(entry, int) for entry in entries):
        raise ValueError(f"{file} has indices, and --class-map another order of the folders than their names' own: "
                         "images may be counted either way; give paths")


def check_numbers(file: str | Path, entries: list[str | int], paths: list[Path]) -> None:
    """Raise ValueError for a number of a text file that is one image's index and the name of another one alone."""
    stems = {}
    for i, path in enumerate(paths):
        stems.setdefault(path.stem, []).append(i)
    for entry in entries:
        named = stems.get(str(entry), []) if isinstance(entry, int) else []
        if len(named) == 1 and named != [entry]:
            raise ValueError(f"{file}: {entry} may be an index or {paths[named[0]].name}; give names with their "
                             "suffix, or indices in a .json or .npy file")


def read_entries(path: Path, content: bytes | None = None) -> list[str | int]:
    """The paths or indices that a file lists; content: of the file, where it has been read."""
    content = read_file(path) if content is None else content
    if path.suffix.lower() == ".npy":
        try:
            with io.BytesIO(content) as file:
                entries = np.asarray(np.load(file, allow_pickle=False))  # an .npz gives its names
        except Exception as error:  # a file of something else can raise anything
            raise ValueError(f"cannot read the list {path} ({error}); give text with one path per line") from error
        if entries.ndim != 1 or entries.dtype.kind not in "iu":
            raise ValueError(f"{path} holds {entries.dtype} of shape {entries.shape}; give a vector of indices")
        entries = entries.tolist()
    elif path.suffix.lower() == ".json":
        entries = json_entries(path, content)
    elif path.suffix.lower() == ".csv":
        entries = csv_entries(path, content)
    else:
        entries = numbered([line.strip() for line in as_text(path, content).splitlines() if line.strip()])
    if len(entries) > 2 and set(entries) <= {0, 1}:
        raise ValueError(f"{path} is a list of 0 and 1, which tools take differently; give the indices of bad images")
    return entries


def numbered(entries: list[str]) -> list[str | int]:
    """Entries as indices where all are; 0012 is none, but a file's name without its suffix."""
    numbers = all(e.isdecimal() and len(e) <= DIGITS and str(int(e)) == e for e in entries)
    return [int(e) for e in entries] if numbers else entries


def read_file(path: Path) -> bytes:
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


def read_text(path: Path) -> str:
    """A text file's content."""
    return as_text(path, read_file(path))


def as_text(path: Path, content: bytes) -> str:
    """The content of a text file in letters."""
    try:
        return content.decode("utf-8-sig")  # line ends as they are, which a quoted name may hold
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read {path} ({error}); it must be a text file in UTF-8") from error


def short_int(digits: str) -> int:
    """A whole number of a JSON file; ValueError for one of more than DIGITS digits, which counts no image."""
    if len(digits.lstrip("-")) > DIGITS:
        raise ValueError(f"a number of {len(digits.lstrip('-')):,} digits, at most {DIGITS} are read")
    return int(digits)


def json_entries(path: Path, text: bytes) -> list[str | int]:
    """A JSON list, or the one under "paths" or "indices"."""
    try:
        content = json.loads(as_text(path, text), parse_int=short_int)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}); give a list of paths") from error
    except RecursionError as error:
        raise ValueError(f"{path} is no JSON that can be read: it holds too many lists within each other; give a list "
                         "of paths") from error
    except ValueError as error:
        raise error if str(path) in str(error) else ValueError(f"{path}: {error}; give a list of paths") from error
    if isinstance(content, dict):
        content = content.get("paths", content.get("indices"))
    if not isinstance(content, list) or not all(type(entry) in (str, int) for entry in content):
        raise ValueError(f'{path} is neither a list of paths or indices nor {{"paths": [...]}} or {{"indices": [...]}}')
    return content


def csv_entries(path: Path, content: bytes) -> list[str | int]:
    """The images of a CSV file's bad rows."""
    column, rows = bad_rows(path, content)
    bad = [row[column] for row in rows]
    return numbered(bad) if column == "" else bad


def bad_rows(path: Path, content: bytes) -> tuple[str, list[dict[str, str]]]:
    """The column that names the images, and the rows of a CSV file that list a bad one: all, or those that its column
    bad, is_label_issue or is_*_issue calls bad.

    `bad` is what a user typed into suspects.csv: true, false or nothing.
    """
    columns, rows, numbers = csv_rows(path, content)
    issues = [name for name in columns if name.startswith("is_") and name.endswith("_issue")]
    issues = next(([name] for name in ("bad", "is_label_issue") if name in columns), issues)
    for number, row in zip(numbers, rows, strict=True):
        for name in issues:
            if row[name].lower() not in (("true", "false", "") if name == "bad" else (*TRUE, *FALSE)):
                raise ValueError(f"{path}, line {number}: {name} is {clipped(row[name])!r}; it must be True or False")
    if not issues and {"rank", "label_score"} <= set(columns):
        raise ValueError(f"{path} lists suspects, bad or not; add a column `bad` with true where one is bad")
    column = path_column(path, columns)
    if not issues and (name := verdict(columns, rows, column)):
        raise ValueError(f"{path}: the column {name!r} seems to say which are bad; call it bad, or leave out the "
                         "column and the rows that are good")
    return column, [row for row in rows if not issues or any(row[name].lower() in TRUE for name in issues)]


def verdict(columns: list[str], rows: list[dict[str, str]], column: str) -> str | None:
    """A column, neither of images nor of labels, that says of some rows that they are not bad; None: there is none.

    It has the words true and false alone, or numbers 1 and 0 under a name of VERDICTS (else these may be classes).
    """
    for name in columns:
        values = {row[name].lower() for row in rows} - {""} if name not in (column, *NAMED_LABELS) else set()
        words = values <= {*TRUE, *FALSE} and (not any("0" <= value[0] <= "9" for value in values)
                                               or any(part in f"_{name}" for part in VERDICTS))
        if words and values & {*FALSE}:
            return name
    return None


def csv_rows(path: Path, content: bytes | None = None) -> tuple[list[str], list[dict[str, str]], list[int]]:
    """Column names, in small letters, rows of a CSV file, and the line of the file at which each ends."""
    found = csv_lines(path, content)
    numbers, lines = [number for number, _ in found], [line for _, line in found]
    columns = [name.lower() for name in lines[0]] if lines else []
    if twice := [name for name in columns if name and columns.count(name) > 1]:
        raise ValueError(f"{path} has the column {clipped(twice[0])!r} twice; leave one")
    for number, line in zip(numbers[1:], lines[1:]):
        if len(line) != len(columns):
            raise ValueError(f"{path}, line {number}: {len(line)} values for {len(columns)} columns")
    return columns, [dict(zip(columns, line, strict=True)) for line in lines[1:]], numbers[1:]


def csv_lines(path: Path, content: bytes | None = None) -> list[tuple[int, list[str]]]:
    """The lines of a CSV file by their numbers, without blanks around the values, between which stands what its first
    line has most of, or what a line `sep=;` above it says, as Excel writes it."""
    text = as_text(path, read_file(path) if content is None else content)
    first = text.partition("\n")[0]
    told = SEPARATOR.fullmatch(first.rstrip("\r"))
    try:
        found = csv.reader(io.StringIO(text, newline=""), delimiter=told[1] if told else max(",;\t", key=first.count))
        lines = [(found.line_num, [value.strip() for value in line]) for line in found if any(line)]
        return lines[1:] if told else lines
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV ({error})") from error


def names_of(columns: list[str]) -> str:
    """Column names for a message."""
    more = ["..."] if len(columns) > SHOWN else []
    return ", ".join([*map(clipped, columns[:SHOWN]), *more])


def path_column(path: Path, columns: list[str]) -> str:
    """The column that names the images; "" is the unnamed first one, of indices."""
    found = [name for name in (*PATH_COLUMNS, "") if name in columns]
    if not found:
        raise ValueError(f"{path} has the columns {names_of(columns)}; one must be {', '.join(PATH_COLUMNS)}")
    return found[0]


def match(entries: list[str | int], paths: list[Path], root: Path) -> tuple[list[int], list[str]]:
    """Positions of the entries among the training images, and the entries that are none of them, or several.

    Looked up in turn: a path from the folder, from train/ or from the root of all; what a link points to; a file's
    name; that without its suffix; a path from the present folder, through links. Letters with accents count as the same
    whether they are written as one or as two.
    """
    lookups = places, targets, names, stems = {}, {}, {}, {}
    for i, path in enumerate(paths):
        for place in {os.path.relpath(path, root), os.path.relpath(path, root / "train"), os.path.abspath(path)}:
            places.setdefault(place, []).append(i)
            places.setdefault(place.encode("utf-8", "backslashreplace").decode(), [i])  # as suspects.csv has it
        for lookup, name in ((targets, os.path.realpath(path)), (names, path.name), (stems, path.stem)):
            lookup.setdefault(name, []).append(i)
    found, lost = [], []
    for entry in entries:
        if isinstance(entry, int):
            good = [entry] if 0 <= entry < len(paths) else []
        else:
            spelt = entry, os.path.normpath(entry.replace("\\", "/"))
            spelt += tuple(unicodedata.normalize(form, entry) for form in ("NFC", "NFD"))
            good = next((lookup[e] for lookup in lookups for e in spelt if e in lookup), [])
            good = good or next((targets[e] for e in map(os.path.realpath, spelt) if e in targets), [])
        if len(good) == 1:
            found += good
        else:
            shown = repr(clipped(entry) if isinstance(entry, str) else entry)
            lost.append(shown if not good else f"{shown} ({len(good)} images have this name)")
    return found, lost


def read_labels(file: str | Path, paths: list[Path], root: Path, classes: list[str], ordered=True) -> torch.Tensor:
    """True labels from a CSV file with a column of PATH_COLUMNS and one of LABEL_COLUMNS, of class names or numbers.

    Returns: (N,) int64 in the order of `paths`, -1 where the file says nothing, as where a label is empty.
    Raises: ValueError for a row whose image or class is unknown, or that contradicts another; ordered: as in
        `read_bad`.
    """
    columns, rows, _ = csv_rows(Path(file))
    named = [name for name in LABEL_COLUMNS if name in columns]
    if not named:
        raise ValueError(f"{file} has the columns {names_of(columns)}; one must be {', '.join(LABEL_COLUMNS)}")
    rows, numbers = [row for row in rows if row[named[0]]], numbers_of(classes)
    if strange := [row[named[0]] for row in rows if row[named[0]] not in numbers]:
        raise ValueError(f"{file}: {clipped(strange[0])!r} is no class; they are {', '.join(classes)}")
    column = path_column(Path(file), columns)
    entries = [row[column] for row in rows]
    entries = numbered(entries) if column == "" else entries
    check_order(file, entries, ordered)
    found, lost = match(entries, paths, root)
    if lost:
        raise ValueError(f"{file}: no training image for {', '.join(lost[:SHOWN])}")
    labels = torch.full((len(paths),), -1)
    for i, row in zip(found, rows, strict=True):
        label = numbers[row[named[0]]]
        if labels[i] not in (-1, label):
            raise ValueError(f"{file} calls {paths[i].name} {classes[labels[i]]!r} and {classes[label]!r}; leave one")
        labels[i] = label
    return labels


def numbers_of(classes: list[str]) -> dict[str, int]:
    """The class that each class name and each number in letters means; a number that is a name means the class so
    called."""
    return {**{str(i): i for i in range(len(classes))}, **{name: i for i, name in enumerate(classes)}}


def read_truths(lists: dict, paths: list[Path], root: Path, classes: list[str], labels: torch.Tensor
                ) -> torch.Tensor | None:
    """True labels that lists of bad images have: CSV files with a column of TRUTH_COLUMNS, of class names or numbers.

    A column `label` that has the label as given in every row is what it says, and tells no true ones.
    Args: lists: contents by file, all of whose images match, see `read_bad`; labels: (N,) int64, as the folders say.
    Returns: (N,) int64 in the order of `paths`, -1 where no list says it, as where a value is empty; None: nowhere.
    Raises: ValueError for what is no class, for an image with two true labels, or with the one that it has.
    """
    truths, numbers = torch.full((len(paths),), -1), numbers_of(classes)
    for file, content in lists.items():
        column, rows = bad_rows(Path(file), content) if Path(file).suffix.lower() == ".csv" else ("", [])
        named = next((name for name in TRUTH_COLUMNS if rows and name in rows[0]), None)
        if named is None:
            continue
        entries = [row[column] for row in rows]
        found, _ = match(numbered(entries) if column == "" else entries, paths, root)
        if named == "label" and all(numbers.get(row[named]) == labels[i] for i, row in zip(found, rows, strict=True)):
            continue
        for i, row in zip(found, rows, strict=True):
            if not row[named]:
                continue
            if row[named] not in numbers:
                raise ValueError(f"{file}: the {named} {clipped(row[named])!r} of {paths[i].name} is no class; they "
                                 f"are {', '.join(classes)}")
            label = numbers[row[named]]
            if label == labels[i]:
                raise ValueError(f"{file} lists {paths[i].name} as bad, and its {named} is {classes[label]!r}, the "
                                 f"label that it has; take it from the list, or take out the column {named} if that "
                                 "is the label as given")
            if truths[i] not in (-1, label):
                raise ValueError(f"--bad gives {paths[i].name} the true labels {classes[truths[i]]!r} and "
                                 f"{classes[label]!r}; leave one")
            truths[i] = label
    return truths if (truths >= 0).any() else None
