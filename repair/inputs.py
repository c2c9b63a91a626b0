"""What a user brings to a repair: a folder of images, and lists of the bad ones among them.

    folder = open_folder("pictures", ["bad.txt"])            # pictures/train/<class>/*; every line must match
    train, heldout = load(folder, Reading(224))              # Data or Streamed, uint8 images
"""

import hashlib
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from engine.checks import first_line
from experiment.data import MOST_PIXELS, Data, Streamed
from experiment.image_files import MOST_RESIZED, check_apart, decode_image, list_images, mean_and_std
from repair.lists import as_text, read_file, read_lists
from repair.truths import check_truths

PART = 256  # files that are decoded at a time where none is kept
TASK = 16  # files that a thread decodes before it asks for more


# --- Which images there are -------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Folder:
    """The training images below root/train, what is known of them, and the classes in the network's order."""

    root: Path
    classes: list[str]
    paths: list[Path]  # (N,) training images
    labels: torch.Tensor  # (N,) int64, as the folders say
    forget: torch.Tensor  # (k,) int64, D_f
    truths: torch.Tensor | None  # (k,) int64 true labels of D_f, -1 where unknown; None: none is known
    heldout: list[tuple[Path, int]] | None  # held-out images and their classes; None: there are none
    said: str  # how many lines of the lists matched, and which held-out part was passed over
    sha256: dict[str, str]  # of the lists, as they were read

    def name(self, i: int) -> str:
        """The path of a training image from the folder, as lists have it."""
        return self.paths[i].relative_to(self.root).as_posix()


def open_folder(root: str | Path, bad: list[str], class_map: str | Path | None = None) -> Folder:
    """List a folder and match the user's lists to it; no image is decoded.

    Args:
        root: holds train/<class>/* and perhaps test/ or val/.
        bad: lists of known bad training images, which count together, see lists.py.
        class_map: text file with one class per line in the network's order; None: the folders' names sorted as strings.
    Raises: ValueError for no images, a line that matches nothing, a class that is not in the class map, held-out images
        of a class that is no training class, a true label that is the label as given.
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
    contents = {str(file): read_file(file) for file in bad}
    listed = read_lists(contents, paths, root, classes, ordered)
    check_truths(listed.truths, listed.forget, labels, len(classes), [path.name for path in paths])
    heldout, passed_over = list_heldout(root, classes, found)
    digests = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
    said = [listed.said, *passed_over]
    if listed.truths is not None:
        said.append(f"{int((listed.truths >= 0).sum())} of these with a true label, which the network is taught")
    return Folder(root, classes, paths, labels, listed.forget, listed.truths, heldout, "\n".join(said), digests)


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
    classes = [line.strip() for line in as_text(file, read_file(file)).splitlines() if line.strip()]
    if lost := [name for name in folders if name not in classes]:
        raise ValueError(f"the class map {file} does not name the folder {lost[0]!r}")
    if len(set(classes)) < len(classes):
        raise ValueError(f"the class map {file} names a class twice")
    return classes


# --- How they are read ------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Reading:
    """How image files become what the network sees."""

    size: int  # pixels per side
    crop_pct: float = 1.0  # the centre crop over the resized shorter side
    mean: tuple[float, ...] | None = None  # per channel, in [0, 1]; None, with std: the training images' own
    std: tuple[float, ...] | None = None
    resize: str = "crop"  # of images that are not square: "crop" their borders, or "squash" them whole into a square
    channels: int = 3  # 1: grey, as Pillow makes it of colours

    def __post_init__(self):
        if not 1 <= self.size <= MOST_PIXELS:
            raise ValueError(f"the image size is {self.size}; give --image-size, from 1 to {MOST_PIXELS} pixels")
        if self.size > MOST_RESIZED * self.crop_pct:
            raise ValueError(f"--crop-pct {self.crop_pct:g} of {self.size} pixels asks for images resized to "
                             f"{self.size / self.crop_pct:,.0f}, at most {MOST_RESIZED} are; give a larger share")

    def size_of(self, n: int) -> int:
        """Bytes of n images."""
        return self.channels * self.size**2 * n


@dataclass
class Files:
    """Image files as a torch Dataset: (image, label), decoded when asked for; (channels, size, size) uint8."""

    paths: list[Path]
    labels: torch.Tensor
    reading: Reading

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i: int):
        return torch.from_numpy(pixels(self.paths[i], self.reading).copy()), int(self.labels[i])


def load(folder: Folder, reading: Reading, workers: int | None = None, room: float = math.inf):
    """The training images, and the held-out ones or None: Data where they take at most `room` bytes, else Streamed.

    Args: workers: threads or, of Streamed, processes that decode; None: one a core.
    Raises: ValueError for a file that cannot be decoded, of Streamed in the first pass.
    """
    train = load_images(Files(folder.paths, folder.labels, reading), len(folder.classes), workers, room)
    if folder.heldout is None:
        return train, None
    paths, labels = [path for path, _ in folder.heldout], torch.tensor([y for _, y in folder.heldout])
    heldout = Files(paths, labels, replace(reading, mean=train.mean, std=train.std))
    return train, load_images(heldout, len(folder.classes), workers, room - reading.size_of(len(train)))


def load_images(files: Files, classes: int, workers: int | None, room: float) -> Data | Streamed:
    """Data of image files where they take at most `room` bytes, else Streamed, which gives the same numbers."""
    reading = files.reading
    if reading.size_of(len(files)) <= room:
        images = decode(files.paths, reading, workers)
        mean, std = (reading.mean, reading.std) if reading.mean else mean_and_std(images)
        return Data(images, files.labels, classes, tuple(mean), tuple(std))
    mean, std = reading.mean, reading.std
    if mean is None:  # by one pass that keeps no image
        spans = range(0, len(files), PART)
        mean, std = mean_and_std(decode(files.paths[a : a + PART], reading, workers) for a in spans)
    workers = cores() if workers is None else workers
    return Streamed(files, classes, tuple(mean), tuple(std), files.labels, workers=workers)


def decode(paths: list[Path], reading: Reading, workers: int | None = None) -> torch.Tensor:
    """Decode image files in threads: (n, channels, size, size) uint8; ValueError that names the first that fails."""
    images = np.zeros((len(paths), reading.channels, reading.size, reading.size), np.uint8)

    def fill(begin: int) -> None:
        for i in range(begin, min(begin + TASK, len(paths))):
            images[i] = pixels(paths[i], reading)

    pool = ThreadPoolExecutor(max(1, cores() if workers is None else workers))
    try:
        for task in [pool.submit(fill, begin) for begin in range(0, len(paths), TASK)]:
            task.result()
    finally:
        pool.shutdown(cancel_futures=True)
    return torch.from_numpy(images)


def pixels(path: Path, reading: Reading) -> np.ndarray:
    """Decode one file: (channels, size, size) uint8; ValueError that names it."""
    from PIL import Image

    size, resized = reading.size, round(reading.size / reading.crop_pct)
    edge = (resized - size) // 2
    try:
        squashed = reading.resize == "squash"
        image = decode_image(path, resized, squashed)[edge : edge + size, edge : edge + size]  # (size, size, 3)
        if reading.channels == 1:  # values of an image that is grey already stay
            return np.asarray(Image.fromarray(image).convert("L"))[None]
        return image.transpose(2, 0, 1)
    except Exception as error:  # decoders raise anything on damaged or hostile files
        cause = error.__cause__ or error
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else first_line(cause, kind=False)
        raise ValueError(f"{path} cannot be decoded ({reason}); remove or replace it") from error


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def room_for_images(device: torch.device, given: float | None = None) -> float:
    """Bytes that a process may fill with images: `given` GB, or half of what the machine and a GPU have free.

    Where the system does not say, as on Windows, there is no bound.
    """
    if given is not None:
        if not given >= 0:
            raise ValueError(f"--max-memory is {given}; it must be a number of GB, 0 to keep no image in memory")
        return given * 1e9
    free = [math.inf]
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pass
    if device.type == "cuda":
        free.append(torch.cuda.mem_get_info(device)[0])
    return min(free) / 2
