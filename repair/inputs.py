"""What a user brings to a repair: a folder of images, and what the lists say of them.

    folder = open_folder("pictures", "bad.txt")      # pictures/train/<class>/*; every line must match
    train, heldout, skipped = folder.load(reading)   # data.Data or Streamed, uint8 images; paths; reading: of a network
"""

import hashlib
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from experiment.image_files import check_apart, list_images
from repair.images import Reading, load_images
from repair.lists import read_file, read_labels, read_lists, read_text, read_truths


@dataclass
class Folder:
    """The training images below root/train, what is known of them, and the classes in the network's order."""

    root: Path
    classes: list[str]
    paths: list[Path]  # (N,) training images
    labels: torch.Tensor  # (N,) int64, as the folders say
    forget: torch.Tensor  # (k,) int64, D_f
    clean: torch.Tensor | None  # (N,) int64 true labels, -1 where unknown; for the report alone
    said: str  # how many lines of the list matched, and which held-out part was passed over
    heldout: list[tuple[Path, int]] | None = None  # held-out images and their classes; None: there is no such part
    sha256: dict[str, str] = field(default_factory=dict)  # of the lists of bad images, as they were read
    truths: torch.Tensor | None = None  # (N,) int64 true labels that these lists have, which are taught; -1: unknown

    def load(self, reading: Reading, workers: int | None = None, skip: bool = False, room: float = math.inf):
        """Read the images of train/ and the held-out ones.

        Training images that cannot be decoded are forgotten by `paths`, `labels`, `forget`, `clean` and
        `truths` with `skip`.
        Args: room: bytes that images may take in memory; those that take more are Streamed from their files.
        Returns: Data or Streamed of the training images, the same of the held-out ones or None, and the files that were
            left out.
        Raises: ValueError for an image that cannot be decoded, without `skip`.
        """
        train, kept = load_images(self.paths, self.labels, len(self.classes), reading, workers, skip, room)
        known = set(kept.tolist())
        skipped = [path for i, path in enumerate(self.paths) if i not in known]
        self.forget = torch.isin(kept, self.forget).nonzero()[:, 0]
        self.paths, self.labels = [self.paths[i] for i in kept], self.labels[kept]
        self.clean = None if self.clean is None else self.clean[kept]
        self.truths = None if self.truths is None else self.truths[kept]
        if self.heldout is None:
            return train, None, skipped
        paths, reading = [path for path, _ in self.heldout], replace(reading, mean=train.mean, std=train.std)
        labels = torch.tensor([y for _, y in self.heldout])
        room = room - reading.size_of(len(train))
        heldout, kept = load_images(paths, labels, len(self.classes), reading, workers, skip, room)
        known = set(kept.tolist())
        return train, heldout, skipped + [path for i, path in enumerate(paths) if i not in known]


def open_folder(root: str | Path, bad, clean: str | Path | None = None, class_map=None) -> Folder:
    """List a folder and match the user's lists to it; no image is decoded.

    Args:
        root: holds train/<class>/* and perhaps test/ or val/.
        bad: list of known bad training images, see `read_bad`; or several such lists, which count together; with
            their true labels where they are known, see `read_truths`.
        clean: CSV of true labels, see `read_labels`.
        class_map: text file with one class per line in the network's order; None: the folders' names sorted as strings.
    Raises: ValueError for no images, a line that matches nothing, a class that is not in the class map, held-out images
        of a class that is no training class.
    """
    root = Path(root)
    found = list_images(root, "train")
    classes = list(found.classes) if class_map is None else read_classes(class_map, found.classes)
    paths = [Path(path) for path, _ in found.samples]
    labels = torch.tensor([classes.index(found.classes[y]) for y in found.targets])
    if len(classes) < 2:
        raise ValueError(f"{root / 'train'} has one class, {classes[0]!r}; a classifier has two at least: give the "
                         "folder above all of its classes, or name them with --class-map")
    ordered = [name for name in classes if name in found.classes] == list(found.classes)
    lists = {file: read_file(Path(file)) for file in ([bad] if isinstance(bad, (str, Path)) else bad)}
    digests = {str(file): hashlib.sha256(content).hexdigest() for file, content in lists.items()}
    forget, said = read_lists(lists, paths, root, ordered)
    truths = read_truths(lists, paths, root, classes, labels)
    clean = None if clean is None else read_labels(clean, paths, root, classes, ordered)
    heldout, passed_over = list_heldout(root, classes, found)
    taught = [] if truths is None else [f"{int((truths >= 0).sum())} of these with a true label, which they are taught"]
    said = "\n".join([said, *taught, *passed_over])
    return Folder(root, classes, paths, labels, forget, clean, said, heldout, digests, truths)


def list_heldout(root: Path, classes: list[str], training) -> tuple[list[tuple[Path, int]] | None, list[str]]:
    """Images and classes of root/test or, where that is none, such as a folder without labels, of root/val.

    Returns: None where there is no such folder; and a line if test/ was passed over. Raises: ValueError of both.
    """
    problems = []
    for part in filter(lambda part: (root / part).is_dir(), ("test", "val")):
        try:
            found = list_images(root, part)
            check_apart(training, found)
            if strange := sorted(set(found.classes) - set(classes)):
                raise ValueError(f"{found.root} has the class {strange[0]!r}, which {root / 'train'} has not")
        except ValueError as error:
            problems.append(str(error))
            continue
        pairs = [(Path(path), classes.index(found.classes[y])) for path, y in found.samples]
        return pairs, [f"held out is {found.root}: {problem}" for problem in problems]
    if problems:
        raise ValueError(f"{problems[0]}; move it away if nothing shall be held out")
    return None, []


def read_classes(file: str | Path, folders: list[str]) -> list[str]:
    """The classes of a class map, in the network's order; every folder must be one."""
    classes = [line.strip() for line in read_text(Path(file)).splitlines() if line.strip()]
    if lost := [name for name in folders if name not in classes]:
        raise ValueError(f"the class map {file} does not name the folder {lost[0]!r}")
    if len(set(classes)) < len(classes):
        raise ValueError(f"the class map {file} names a class twice")
    return classes
