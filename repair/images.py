"""Image files: decoded into memory, or each anew when a pass asks for it where there is no room for all.

    data, kept = load_images(paths, labels, classes, Reading(224), room=room_for_images(device))
"""

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine.checks import first_line
from experiment.data import MOST_PIXELS, Data, Streamed
from experiment.files import check_readable
from experiment.image_files import FORMATS, MOST_RESIZED, decode_image, mean_and_std
from repair.progress import Watch, tell_here

MANY = 10_000  # files, at most, of which the shapes are looked at
PART = 256  # files that are decoded at a time where none is kept
DAMAGED = (1, 1), "L"  # of a file without a head


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


def pixels(path: Path, reading: Reading) -> np.ndarray:
    """Decode one file: (channels, size, size) uint8; ValueError that names it."""
    size, resized = reading.size, round(reading.size / reading.crop_pct)
    edge = (resized - size) // 2
    try:
        squashed = reading.resize == "squash"
        image = decode_image(path, resized, squashed)[edge : edge + size, edge : edge + size]
        return grey_of(image)[None] if reading.channels == 1 else image.transpose(2, 0, 1)
    except Exception as error:  # decoders raise anything on damaged or hostile files
        cause = error.__cause__ or error
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else first_line(cause, kind=False)
        raise ValueError(f"{path} ({reason})") from error


def grey_of(image: np.ndarray) -> np.ndarray:
    """(H, W) grey values of an image (H, W, 3); those of an image that is grey already stay as they are."""
    from PIL import Image

    return np.asarray(Image.fromarray(image).convert("L"))


def decode(paths: list[Path], reading: Reading, workers: int | None = None, skip: bool = False):
    """Decode image files.

    Returns: (n, channels, size, size) uint8 and (n,) int64 positions in `paths`: all of them, or with `skip` those that
        decode.
    """
    images, bad = np.zeros((len(paths), reading.channels, reading.size, reading.size), np.uint8), {}

    def fill(i: int) -> None:
        try:
            images[i] = pixels(paths[i], reading)
        except ValueError as error:
            bad[i] = str(error)

    with Watch("decoding the images", tell_here) as watch:
        watch.begin(len(paths), " images")
        in_threads(fill, len(paths), workers, watch.step)
    if bad and not skip:
        raise ValueError(f"{len(bad)} images cannot be decoded, {bad[min(bad)]} first; try --skip-bad-images")
    kept = torch.tensor([i for i in range(len(paths)) if i not in bad], dtype=torch.int64)
    images = torch.from_numpy(images)
    return images[kept] if bad else images, kept  # a copy would take their memory again


def changed_by_reading(paths: list[Path], reading: Reading, workers: int | None = None) -> list[str]:
    """Lines on what reading takes from the images: borders that a centre crop cuts off, and more than 8 bits.

    At most MANY files are looked at, evenly spaced, and only the head of each is read.
    """
    looked = paths[:: -(-len(paths) // MANY) or 1]
    heads = [DAMAGED] * len(looked)

    def look(i: int) -> None:
        heads[i] = head_of(looked[i])

    with Watch("looking at the images' shapes", tell_here) as watch:
        watch.begin(len(looked), " images")
        in_threads(look, len(looked), workers, watch.step)
    images = f"{len(looked):,} images" + (f", evenly spaced among {len(paths):,}," if len(looked) < len(paths) else "")
    return [*cut_off([size for size, _ in heads], reading, images), *deep([mode for _, mode in heads], images)]


def cut_off(sizes: list[tuple[int, int]], reading: Reading, images: str) -> list[str]:
    """The line on images that are not square, by their widths and heights, if any loses a part of its longer side."""
    if reading.resize != "crop":
        return []
    resized = round(reading.size / reading.crop_pct)
    sides = [sorted(size) for size in sizes]
    kept = [resized / max(resized, round(long * resized / max(1, short))) for short, long in sides]
    found = np.sort([100 * (1 - share) for share in kept if share < 1])
    if not len(found):
        return []
    shares = f"{found[0]:.0f} to {found[-1]:.0f} %, in the median {np.median(found):.0f} %,"
    return [f"{len(found):,} of {images} are not square: {shares} of their longer side is cut off at the borders; if "
            "the network was trained on whole images: --resize squash"]


def deep(modes: list[str], images: str) -> list[str]:
    """The line on grey images of more than 8 bits, by Pillow's modes, if there are any."""
    found = sum(mode.startswith("I") for mode in modes)
    return [f"{found:,} of {images} have more than 8 bits per pixel: 65535 becomes 255, so that those of 12 bits are "
            "dark, and one whose values are all below 256 stays as it is; if the network was trained on other values, "
            "give images of 8 bits"] if found else []


def head_of(path: Path) -> tuple[tuple[int, int], str]:
    """Width and height, and Pillow's mode, by a file's head; DAMAGED where there is none, which decoding tells of."""
    from PIL import Image

    try:
        check_readable(path)
        with Image.open(path, formats=FORMATS) as image:
            return image.size, image.mode
    except Exception:  # decoders raise anything
        return DAMAGED


def in_threads(work, n: int, workers: int | None, step) -> None:
    """work(i) for each i below n, in threads, step() after each; at an error or interrupt those begun are the last."""
    left, stopped = iter(range(n)), threading.Event()  # each thread takes the next number

    def take() -> None:
        for i in left:
            if stopped.is_set():
                return
            try:
                work(i)
            except BaseException:
                stopped.set()  # for the others too
                raise
            step()

    with ThreadPoolExecutor(count := max(1, min(cores() if workers is None else workers, n))) as pool:
        try:
            for task in [pool.submit(take) for _ in range(count)]:
                task.result()
        finally:
            stopped.set()


def load_images(paths: list[Path], labels: torch.Tensor, classes: int, reading: Reading, workers: int | None = None,
                skip: bool = False, room: float = math.inf) -> tuple[Data | Streamed, torch.Tensor]:
    """Data of image files where they take at most `room` bytes, else Streamed, which gives the same numbers.

    Args: paths, labels: of n files; workers: threads or, of Streamed, processes that decode, 0: none beside this
        one; None: one a core; skip: leave out what cannot be decoded, which a Streamed otherwise tells in a pass.
    Returns: the data and the (n,) int64 positions in `paths` of its images.
    Raises: ValueError for a file that cannot be decoded, without `skip`; where none can.
    """
    if reading.size_of(len(paths)) <= room:
        images, kept = decode(paths, reading, workers, skip)
        check_some(kept, paths)
        mean, std = (reading.mean, reading.std) if reading.mean else mean_and_std(images)
        return Data(images, labels[kept], classes, tuple(mean), tuple(std)), kept
    mean, std, kept = reading.mean, reading.std, torch.arange(len(paths))
    if skip or mean is None:
        *moments, kept = survey(paths, reading, workers, skip)
        check_some(kept, paths)
        mean, std = (mean, std) if mean else moments
    files = Files([paths[i] for i in kept], labels[kept], reading)
    workers = cores() if workers is None else workers
    return Streamed(files, classes, tuple(mean), tuple(std), labels[kept], workers=workers), kept


def check_some(kept: torch.Tensor, paths: list[Path]) -> None:
    """ValueError where of some files none is kept, so that a part of a folder without one image is told at once."""
    if not len(kept):
        raise ValueError(f"none of {len(paths)} images can be decoded, {paths[0]} first; check the files, or take away "
                         "the folder of held-out ones if it is that")


def survey(paths: list[Path], reading: Reading, workers: int | None, skip: bool):
    """Mean and std per channel and the positions of the files that decode, by one pass that keeps no image."""
    kept = []

    def parts():
        for a in range(0, len(paths), PART):
            images, found = decode(paths[a : a + PART], reading, workers, skip)
            kept.append(found + a)
            yield images

    return *mean_and_std(parts()), torch.cat(kept)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def room_for_images(device: torch.device, given: float | None = None) -> float:
    """Bytes that a process may fill with images: `given` GB, or half of what is free.

    Free is what the machine, or a container's limit, can give without swapping and, for a GPU, what is free on it as
    well. Where the system does not say, as on Windows, there is no bound.
    """
    if given is not None:
        if not given >= 0:
            raise ValueError(f"--max-memory is {given}; it must be a number of GB, 0 to keep no image in memory")
        return given * 1e9
    free = [math.inf]
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free.append(min(int(lines["MemAvailable"].split()[0]) * 1024, free_in_group()))
    except (OSError, KeyError, ValueError):
        pass
    if device.type == "cuda":
        free.append(torch.cuda.mem_get_info(device)[0])
    return min(free) / 2


def free_in_group(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that the limits on this process's control group and those above it leave, file caches counted as free;
    inf where there is none (Linux, cgroup 2: Docker, Kubernetes, Slurm)."""
    free = [math.inf]
    try:
        own = next(line[3:] for line in groups.read_text().splitlines() if line.startswith("0::"))
        folder = root / own.lstrip("/")
    except (OSError, StopIteration):
        return math.inf
    for place in (folder, *folder.parents)[: len(folder.relative_to(root).parts) + 1]:
        try:
            limit, used = (int((place / name).read_text()) for name in ("memory.max", "memory.current"))
            caches = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
            free.append(max(0, limit - used + int(caches["inactive_file"])))
        except (OSError, KeyError, ValueError):  # no file of this name, or "max": no limit here
            continue
    return min(free)
