"""Labels that people gave to a data set's training images: read from a file, put into the images' order (Sec. 4).

    people = read_people("CIFAR-10_human.pt", "aggre")     # CIFAR-10N (Wei et al. 2022), its authors' file
    labels = in_order(people, load("cifar10"))             # (N,) int64, of the data set's training images
"""

import csv
import warnings
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from engine.checks import first_line
from experiment.console import tell
from experiment.data import Dataset
from experiment.files import check_readable
from experiment.pickles import asks_for_code

# Of --human-column: the keys of the authors' .pt, and the names in a .csv.
COLUMNS = {"aggre": ("aggre_label", "aggregate"), "worse": ("worse_label", "worst"),
           "random1": ("random_label1", "random1"), "random2": ("random_label2", "random2"),
           "random3": ("random_label3", "random3")}
CLEAN = ("clean_label", "clean", "true")
KINDS = [getattr(np.dtypes, f"{kind}DType") for kind in (
    "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float32", "Float64")]  # as torch asks
RECONSTRUCT = np.zeros(0).__reduce__()[0]  # what makes an empty array, which its state then fills
ALLOWED = [np.ndarray, np.dtype, *KINDS, (RECONSTRUCT, "numpy.core.multiarray._reconstruct"),
           (RECONSTRUCT, "numpy._core.multiarray._reconstruct")]
WANTED = "give CIFAR-10N's .pt, a .npy of whole numbers, or a .csv with the columns path, clean and aggregate"


@dataclass(frozen=True)
class People:
    """Labels by people as a file has them, in its order."""

    path: str
    labels: torch.Tensor  # (M,) int64
    clean: torch.Tensor | None  # (M,) int64, the data set's own labels as the file has them; None: it has none
    images: list[str] | None = None  # (M,) paths, in their order; None: the file names no images


# --- Files ------------------------------------------------------------------------------------------------------------

def read_people(path: str | Path, column: str = "aggre") -> People:
    """Labels that people gave, and the data set's own beside them.

    Args: path: a .pt of the form of CIFAR-10N's (a dict of whole-number arrays, clean_label among them; nothing else in
        the file is run), a .npy of one array, which has no clean labels to check the order by, or a .csv with a header
        (clean or true; aggregate, worst, random1 to random3; with a column path the lines are put in its order);
        column: of COLUMNS: by majority, the worst of three, or one of three people. A .npy has but one.
    Raises: ValueError for a file that cannot be read, or not without running what is in it.
    """
    if column not in COLUMNS:
        raise ValueError(f"human-column is {column!r}; choose from {', '.join(COLUMNS)}")
    path = Path(path)
    reader = {".pt": read_pickle, ".pth": read_pickle, ".npy": read_array, ".csv": read_table}.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path} does not end in .pt, .npy or .csv; {WANTED}")
    try:
        check_readable(path)
        found = reader(path)
    except ValueError:
        raise
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror or error}); {WANTED}") from error
    name = next((name for name in COLUMNS[column] if name in found), None)
    if path.suffix.lower() == ".npy":
        name = "labels"
    if name is None:
        raise ValueError(f"{path} has no {' or '.join(COLUMNS[column])}, only {', '.join(map(str, found))}; choose "
                         "another --human-column")
    clean = next((whole_numbers(path, key, found[key]) for key in CLEAN if key in found), None)
    labels = whole_numbers(path, name, found[name])
    if clean is not None and len(clean) != len(labels):
        raise ValueError(f"{path} has {len(labels)} labels by people and {len(clean)} clean ones; it is damaged")
    return People(str(path), labels, clean, found.get("path") if path.suffix.lower() == ".csv" else None)


def read_pickle(path: Path) -> dict:
    """The arrays of a file of torch.save or pickle; what is anything but an array of whole numbers is refused."""
    try:
        with torch.serialization.safe_globals(ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or broken pickle can raise anything
        asked = asks_for_code(path, error)
        reason = f"it asks for code to be run ({asked}) and was not read" if asked else first_line(error)[:120]
        raise ValueError(f"{path} holds no labels that can be read safely: {reason}; {WANTED}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, expected a dict of arrays; {WANTED}")
    return found


def read_array(path: Path) -> dict:
    """The array of a .npy file."""
    try:
        return {"labels": np.load(path, allow_pickle=False)}
    except Exception as error:  # damaged files make numpy raise anything
        raise ValueError(f"{path} holds no array of numbers ({first_line(error)[:120]}); {WANTED}") from error


def read_table(path: Path) -> dict:
    """The columns of a .csv, in the order of its paths, as a folder's images are in the order of theirs."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = list(csv.DictReader(file, strict=True))
        if lines and "path" in lines[0]:
            lines.sort(key=lambda line: line["path"].split("/"))
        names = [name for name in (lines[0] if lines else ()) if name not in (None, "path")]
        images = {"path": [line["path"] for line in lines]} if lines and "path" in lines[0] else {}
        return images | {name: np.array([int(line[name]) for line in lines]) for name in names}
    except (ValueError, TypeError, AttributeError, OverflowError, csv.Error) as error:
        raise ValueError(f"{path} is no table of labels ({first_line(error)[:120]}); {WANTED}") from error


def whole_numbers(path: Path, name: str, values) -> torch.Tensor:
    """Labels (M,) int64; ValueError for anything else."""
    values = values.numpy() if isinstance(values, torch.Tensor) else values
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iu" or values.ndim != 1:
        what = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
        raise ValueError(f"{name} in {path} is {what}, expected one whole number per training image")
    return torch.from_numpy(values.astype(np.int64))


# --- Order ------------------------------------------------------------------------------------------------------------

def of_files(people: People, files: list[str]) -> People:
    """Labels of a file that names its images, in the order of a folder's; ValueError unless it names just these.

    Suffixes may differ, and a path may begin below the folder: what it has of `files` is compared.
    """
    places = {named_parts(own): place for place, own in enumerate(people.images)}
    lengths = sorted({len(parts) for parts in places}, reverse=True)
    order = []
    for file in files:
        parts = named_parts(Path(file).as_posix())
        found = next((places[parts[-n:]] for n in lengths if parts[-n:] in places), None)
        if found is None:
            raise ValueError(f"{people.path} has no labels of {file}, but of such as {people.images[0]}; give the "
                             "labels of these images")
        order.append(found)
    if sorted(order) != list(range(len(people.images))):
        missing = sorted(set(range(len(people.images))) - set(order))
        which = f"labels of {people.images[missing[0]]}, which the folder has not" if missing else "one image twice"
        raise ValueError(f"{people.path} has {which}; give the labels of the folder's images")
    index = torch.tensor(order)
    clean = None if people.clean is None else people.clean[index]
    return replace(people, labels=people.labels[index], clean=clean, images=[people.images[place] for place in order])


def named_parts(path: str) -> tuple[str, ...]:
    """The parts of a path without its suffix, whichever way its slashes lean."""
    return PurePosixPath(path.replace("\\", "/")).with_suffix("").parts


def in_order(people: People, dataset: Dataset) -> torch.Tensor:
    """The labels by people of a data set's training images, (N,) int64 on the CPU.

    A file's clean labels say whether its order is that of the images. A `folder` has its images in the order of class
    and file name. Where its clean labels are those of the file in another order, and the file is not ordered by class,
    the k-th image of a class is taken for the k-th image with that clean label in the file. This holds for a tree into
    which a data set was unpacked in its order, with classes in the order of their numbers; nothing here can show it.
    Where a part of each class was drawn, the file is of the whole training set.
    Raises: ValueError for another number of labels than there are images, one that is no class, or another order.
    """
    index = dataset.index
    given = dataset.train.labels.cpu() if index is None else dataset.whole
    if len(people.labels) != len(given) or len(given) == 0:
        raise ValueError(f"{people.path} has {len(people.labels)} labels and the data set {len(given)} training "
                         "images; give the labels of this data set")
    low, high = map(int, people.labels.aminmax())
    if low < 0 or high >= dataset.train.classes:
        raise ValueError(f"the labels in {people.path} run from {low} to {high}, expected 0 to "
                         f"{dataset.train.classes - 1}")
    labels = people.labels
    if people.clean is not None and not torch.equal(people.clean, given):
        by_class = dataset.name == "folder" and torch.equal(people.clean.sort().values, given.sort().values)
        if not by_class:
            differ = int((people.clean != given).sum())
            raise ValueError(f"the clean labels in {people.path} differ from the data set's at {differ} of "
                             f"{len(given)} images, so its order is another; give the file of this very data set")
        labels = torch.empty_like(people.labels)
        labels[given.argsort(stable=True)] = people.labels[people.clean.argsort(stable=True)]
    wrong = int((labels != given).sum())
    if people.clean is None and 2 * wrong > len(given):
        tell(f"warning: {people.path} has no clean labels to check its order by, and {wrong} of its {len(given)} "
             "labels differ from the data set's: is it in the order of the images?")
    return labels if index is None else labels[index]
