"""What a user brings to a repair: a folder of images, a list of bad ones, true labels, a network by name.

    folder = open_folder("pictures", "bad.txt")                      # pictures/train/<class>/*; every line must match
    model, reading = build_network("resnet18", classes=3, size=64)   # untrained; size, crop, mean and std to read with
    train, heldout, skipped = folder.load(reading)                   # data.Data or Streamed, uint8 images; paths
"""

import csv
import importlib.util
import inspect
import io
import json
import math
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from datasets import _listing
from formats.images import Reading, load_images
from models import ARCHITECTURES, build

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PATH_COLUMNS = ("filename", "filepath", "path", "image", "file", "img_filename")
LABEL_COLUMNS = ("label", "true_label", "clean_label", "class")
TRUE, FALSE = ("true", "1", "1.0", "yes", "t"), ("false", "0", "0.0", "no", "f", "")
SHOWN = 20  # lines that a message names

# --- The folder -------------------------------------------------------------------------------------------------------

@dataclass
class Folder:
    """The training images below root/train, what is known of them, and the classes in the network's order."""

    root: Path
    classes: list[str]
    paths: list[Path]  # (N,) training images
    labels: torch.Tensor  # (N,) int64, as the folders say
    forget: torch.Tensor  # (k,) int64, D_f
    clean: torch.Tensor | None  # (N,) int64 true labels, -1 where unknown; for the report alone
    said: str  # how many lines of the list matched

    def load(self, reading: Reading, workers: int | None = None, skip: bool = False, room: float = math.inf):
        """Read the images of train/ and, where there is one, of test/ or val/.

        Training images that cannot be decoded are forgotten by `paths`, `labels`, `forget` and `clean` with `skip`.
        Args: room: bytes that images may take in memory; those that take more are Streamed from their files.
        Returns: Data or Streamed of the training images, the same of the held-out ones or None, and the files that were
            left out.
        Raises: ValueError for an image that cannot be decoded, without `skip`; a held-out class that is not a training
            class.
        """
        train, kept = load_images(self.paths, self.labels, len(self.classes), reading, workers, skip, room)
        known = set(kept.tolist())
        skipped = [path for i, path in enumerate(self.paths) if i not in known]
        self.forget = torch.isin(kept, self.forget).nonzero()[:, 0]
        self.paths, self.labels = [self.paths[i] for i in kept], self.labels[kept]
        self.clean = None if self.clean is None else self.clean[kept]
        if not any((self.root / name).is_dir() for name in ("test", "val")):
            return train, None, skipped
        found = _listing(self.root, "test", "val")
        if strange := sorted(set(found.classes) - set(self.classes)):
            raise ValueError(f"{found.root} has the class {strange[0]!r}, which {self.root / 'train'} has not")
        paths, reading = [Path(path) for path, _ in found.samples], replace(reading, mean=train.mean, std=train.std)
        labels = torch.tensor([self.classes.index(found.classes[y]) for y in found.targets])
        room = room - reading.size_of(len(train))
        heldout, kept = load_images(paths, labels, len(self.classes), reading, workers, skip, room)
        known = set(kept.tolist())
        return train, heldout, skipped + [path for i, path in enumerate(paths) if i not in known]


def open_folder(root: str | Path, bad, clean: str | Path | None = None, class_map=None) -> Folder:
    """List a folder and match the user's lists to it; no image is decoded.

    Args:
        root: holds train/<class>/* and perhaps test/ or val/.
        bad: list of known bad training images, see `read_bad`; or several such lists, which count together.
        clean: CSV of true labels, see `read_labels`.
        class_map: text file with one class per line in the network's order; None: the folders' names sorted as strings.
    Raises: ValueError for no images, a line that matches nothing, a class that is not in the class map.
    """
    root = Path(root)
    found = _listing(root, "train")
    classes = list(found.classes) if class_map is None else read_classes(class_map, found.classes)
    paths = [Path(path) for path, _ in found.samples]
    labels = torch.tensor([classes.index(found.classes[y]) for y in found.targets])
    forget, said = read_lists([bad] if isinstance(bad, (str, Path)) else bad, paths, root)
    return Folder(root, classes, paths, labels, forget, clean and read_labels(clean, paths, root, classes), said)


def read_classes(file: str | Path, folders: list[str]) -> list[str]:
    """The classes of a class map, in the network's order; every folder must be one."""
    classes = [line.strip() for line in read_text(Path(file)).splitlines() if line.strip()]
    if lost := [name for name in folders if name not in classes]:
        raise ValueError(f"the class map {file} does not name the folder {lost[0]!r}")
    if len(set(classes)) < len(classes):
        raise ValueError(f"the class map {file} names a class twice")
    return classes


# --- Lists ------------------------------------------------------------------------------------------------------------


def read_lists(files: list, paths: list[Path], root: Path) -> tuple[torch.Tensor, str]:
    """D_f of several lists together, as of `read_bad`; all but one may list nothing: suspects of which none is bad."""
    some = [file for file in files if len(files) == 1 or read_entries(Path(file))] or files[:1]
    lists = [read_bad(file, paths, root) for file in some]
    said = [*(text for _, text in lists), *(f"{file}: nothing bad in it" for file in files if file not in some)]
    return torch.cat([forget for forget, _ in lists]).unique(), "\n".join(said)


def read_bad(file: str | Path, paths: list[Path], root: Path) -> tuple[torch.Tensor, str]:
    """D_f: the positions of the listed images among the training images.

    Args:
        file: .txt (a path or an index per line), .csv (a column of PATH_COLUMNS, or an unnamed first one of indices;
            with a column bad, is_label_issue or is_*_issue, its true rows alone), .json (a list, or {"paths": [...]}
            or {"indices": [...]}) or .npy (indices).
        paths: the training images in torchvision's ImageFolder order, which indices count.
        root: the folder above train/.
    Returns: (k,) int64, sorted, each once; and a line that says how many lines matched.
    Raises: ValueError for a file that cannot be read, lists nothing, or has a line that matches no training image or
        several.
    """
    entries = read_entries(Path(file))
    if not entries:
        raise ValueError(f"{file} lists no image; without known bad images there is nothing to repair")
    found, lost = match(entries, paths, root)
    if lost:
        more = "" if len(lost) <= SHOWN else f" and {len(lost) - SHOWN} more"
        raise ValueError(f"{file}: {len(entries)} lines, {len(found)} matched; no training image below "
                         f"{root / 'train'} for {', '.join(lost[:SHOWN])}{more}")
    forget = torch.tensor(sorted(set(found)))
    twice = f", {len(found) - len(forget)} of them twice" if len(found) > len(forget) else ""
    first, last = (os.path.relpath(paths[i], root) for i in (forget[0], forget[-1]))
    return forget, f"{file}: {len(entries)} lines, {len(found)} matched{twice}: {first} to {last}"


def read_entries(path: Path) -> list[str | int]:
    """The paths or indices that a file lists."""
    if path.suffix == ".npy":
        try:
            with path.open("rb") as file:
                entries = np.asarray(np.load(file, allow_pickle=False))  # of an .npz its names
        except Exception as error:  # a file of something else can raise anything
            raise ValueError(f"cannot read the list {path} ({error}); give text with one path per line") from error
        if entries.ndim != 1 or entries.dtype.kind not in "iu":
            raise ValueError(f"{path} holds {entries.dtype} of shape {entries.shape}; give a vector of indices")
        entries = entries.tolist()
    elif path.suffix == ".json":
        entries = json_entries(path)
    elif path.suffix == ".csv":
        entries = csv_entries(path)
    else:
        entries = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        if all(entry.isdecimal() for entry in entries):
            entries = [int(entry) for entry in entries]
    if len(entries) > 2 and set(entries) <= {0, 1}:
        raise ValueError(f"{path} is a list of 0 and 1, which tools take differently; give the indices of bad images")
    return entries


def read_text(path: Path) -> str:
    """A text file's content."""
    try:
        return path.read_bytes().decode("utf-8-sig")  # line ends as they are, which a quoted name may hold
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path} ({error}); it must be a text file in UTF-8") from error


def json_entries(path: Path) -> list[str | int]:
    """A JSON list, or the one under "paths" or "indices"."""
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); give a list of paths") from error
    if isinstance(content, dict):
        content = content.get("paths", content.get("indices"))
    if not isinstance(content, list) or not all(type(entry) in (str, int) for entry in content):
        raise ValueError(f'{path} is neither a list of paths or indices nor {{"paths": [...]}} or {{"indices": [...]}}')
    return content


def csv_entries(path: Path) -> list[str | int]:
    """The rows of a CSV file: all, or those that its column bad, is_label_issue or is_*_issue calls bad.

    `bad` is what a user typed into suspects.csv: true, false or nothing.
    """
    columns, rows = csv_rows(path)
    issues = [name for name in columns if name.startswith("is_") and name.endswith("_issue")]
    issues = next(([name] for name in ("bad", "is_label_issue") if name in columns), issues)
    for number, row in enumerate(rows, start=2):
        for name in issues:
            if row[name].lower() not in (("true", "false", "") if name == "bad" else (*TRUE, *FALSE)):
                raise ValueError(f"{path}, line {number}: {name} is {row[name]!r}; it must be True or False")
    if not issues and {"rank", "label_score"} <= set(columns):
        raise ValueError(f"{path} lists suspects, bad or not; add a column `bad` with true where one is bad")
    column = path_column(path, columns)
    bad = [row[column] for row in rows if not issues or any(row[name].lower() in TRUE for name in issues)]
    return [int(entry) for entry in bad] if column == "" and all(entry.isdecimal() for entry in bad) else bad


def csv_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Column names, in small letters, and rows of a CSV file."""
    lines = csv_lines(path)
    columns = [name.lower() for name in lines[0]] if lines else []
    if twice := [name for name in columns if name and columns.count(name) > 1]:
        raise ValueError(f"{path} has the column {twice[0]!r} twice; leave one")
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(columns):
            raise ValueError(f"{path}, line {number}: {len(line)} values for {len(columns)} columns")
    return columns, [dict(zip(columns, line, strict=True)) for line in lines[1:]]


def csv_lines(path: Path) -> list[list[str]]:
    """The lines of a CSV file, without blanks around the values; between them what its first line has most of."""
    text = read_text(path)
    first = text.partition("\n")[0]
    try:
        found = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
        return [[value.strip() for value in line] for line in found if any(line)]
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV ({error})") from error


def path_column(path: Path, columns: list[str]) -> str:
    """The column that names the images; "" is the unnamed first one, of indices."""
    found = [name for name in (*PATH_COLUMNS, "") if name in columns]
    if not found:
        raise ValueError(f"{path} has the columns {', '.join(columns)}; one must be {', '.join(PATH_COLUMNS)}")
    return found[0]


def match(entries: list[str | int], paths: list[Path], root: Path) -> tuple[list[int], list[str]]:
    """Positions of the entries among the training images, and the entries that are none of them, or several."""
    places, names = {}, {}
    for i, path in enumerate(paths):
        for base in (root, root / "train"):
            places[os.path.relpath(path, base)] = i
        places[os.path.abspath(path)] = places[os.path.realpath(path)] = i
        names.setdefault(path.name, []).append(i)
    found, lost = [], []
    for entry in entries:
        if isinstance(entry, int):
            good = [entry] if 0 <= entry < len(paths) else []
        else:
            place = places.get(entry, places.get(os.path.normpath(entry.replace("\\", "/"))))
            good = [place] if place is not None else names.get(entry, [])
        if len(good) == 1:
            found += good
        else:
            lost.append(repr(entry) if not good else f"{entry!r} ({len(good)} images have this name)")
    return found, lost


def read_labels(file: str | Path, paths: list[Path], root: Path, classes: list[str]) -> torch.Tensor:
    """True labels from a CSV file with a column of PATH_COLUMNS and one of LABEL_COLUMNS, of class names or numbers.

    Returns: (N,) int64 in the order of `paths`, -1 where the file says nothing.
    Raises: ValueError for a row whose image or class is unknown.
    """
    columns, rows = csv_rows(Path(file))
    named = [name for name in LABEL_COLUMNS if name in columns]
    if not named:
        raise ValueError(f"{file} has the columns {', '.join(columns)}; one must be {', '.join(LABEL_COLUMNS)}")
    numbers = {**{str(i): i for i in range(len(classes))}, **{name: i for i, name in enumerate(classes)}}
    if strange := [row[named[0]] for row in rows if row[named[0]] not in numbers]:
        raise ValueError(f"{file}: {strange[0]!r} is no class; they are {', '.join(classes)}")
    column = path_column(Path(file), columns)
    entries = [int(row[column]) if column == "" and row[column].isdecimal() else row[column] for row in rows]
    found, lost = match(entries, paths, root)
    if lost:
        raise ValueError(f"{file}: no training image for {', '.join(lost[:SHOWN])}")
    labels = torch.full((len(paths),), -1)
    for i, row in zip(found, rows, strict=True):
        labels[i] = numbers[row[named[0]]]
    return labels


# --- The network ------------------------------------------------------------------------------------------------------

def build_network(model: str, classes: int, size: int | None = None, crop_pct: float | None = None, mean=None,
                  std=None) -> tuple[nn.Module, Reading]:
    """An untrained network by name, and how images are read for it: as given, else as its usual weights want them.

    Args: model: resnet9 or vit (`resnet9:0.5`: half the widths), a network of torchvision, timm:NAME, FILE.py:FUNCTION;
        classes: outputs; size, crop_pct, mean, std: see Reading; where a size is given, crop_pct is 1 unless given too.
    Raises: ValueError for an unknown name, a size that is missing, out of range or not one the network takes.
    """
    name, _, detail = model.partition(":")
    if Path(model).suffix in (".pt", ".pth", ".bin", ".ckpt", ".safetensors"):
        raise ValueError(f"--model is the file {model}; it takes a name, and --checkpoint the file (swapped?)")
    kinds = {"timm": timm_network, **dict.fromkeys(ARCHITECTURES, own_network)}
    make, usual = (file_network if name.endswith(".py") else kinds.get(name, torchvision_network))(name, detail)
    if crop_pct is None:
        crop_pct = usual.get("crop_pct", 1.0) if size is None else 1.0
    size = usual.get("size") if size is None else size
    if size is None or size < 1:
        raise ValueError(f"the image size is {size}; give --image-size, the pixels per side {model} was trained on")
    if not 0 < crop_pct <= 1 or (mean is None) != (std is None):
        raise ValueError(f"--crop-pct {crop_pct}, --mean {mean}, --std {std}: give a share in (0, 1], and both "
                         "of the others or neither")
    mean, std = (usual.get("mean"), usual.get("std")) if mean is None else (mean, std)
    reading = Reading(size, crop_pct, mean and tuple(mean), std and tuple(std))
    try:
        return make(classes, size), reading
    except AssertionError as error:  # of torchvision, for a size
        raise ValueError(f"{model} cannot be built at {size} pixels, --image-size ({reason_of(error)})") from error


def own_network(name: str, detail: str):
    """One of models.py; `resnet9:0.5` at half the widths."""
    if detail and not re.fullmatch(r"[0-9]+[.]?[0-9]*|[.][0-9]+", detail):
        raise ValueError(f"--model {name}:{detail}: after the colon stands a factor of the widths, such as {name}:0.5")
    capacity = float(detail or 1)
    return lambda classes, size: build(name, capacity, classes=classes, image_size=size), {}


def file_network(name: str, detail: str):
    """What FUNCTION of FILE.py returns, called with the number of classes where it takes num_classes or classes."""
    if not Path(name).is_file():
        raise ValueError(f"no file {name}; --model takes FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location("repaired_network", name)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # known by name, as dataclasses want it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        more = f"; what lies beside it is found with PYTHONPATH={Path(name).resolve().parent}"
        raise ValueError(f"--model: {name} does not import ({reason_of(error)}), so it gives no {detail!r}"
                         f"{more if isinstance(error, ImportError) else ''}") from error
    function = getattr(module, detail, None)
    if not callable(function):
        raise ValueError(f"{name} has no function {detail!r}; --model takes FILE.py:FUNCTION")

    def make(classes: int, image_size: int) -> nn.Module:
        try:
            asked = [key for key in ("num_classes", "classes") if key in inspect.signature(function).parameters]
            made = function(**dict.fromkeys(asked[:1], classes))
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except (Exception, SystemExit) as error:
            raise ValueError(f"--model: {detail} of {name} does not run ({reason_of(error)}); it is called with "
                             "num_classes or classes, or with nothing") from error
        if not isinstance(made, nn.Module):
            raise ValueError(f"--model: {detail} of {name} returns a {type(made).__name__}, not a torch.nn.Module")
        return made

    return make, dict(mean=IMAGENET[0], std=IMAGENET[1])


def reason_of(error: BaseException) -> str:
    """An error in one line: its kind and what it says first."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def torchvision_network(name: str, detail: str):
    """A classifier of torchvision and what its first weights were trained with."""
    from torchvision import models  # here, because it takes long to import

    if detail or name not in models.list_models(module=models):
        found = f"{name}:{detail}" if detail else name
        raise ValueError(f"unknown --model {found!r}; give {', '.join(ARCHITECTURES)}, "
                         "a classifier of torchvision such as resnet18, timm:NAME or FILE.py:FUNCTION")
    usual = next(iter(models.get_model_weights(name))).transforms()
    size, resized = usual.crop_size[0], usual.resize_size[0]

    def make(classes: int, image_size: int) -> nn.Module:
        more = {"image_size": image_size} if name.startswith("vit_") else {}
        if name in ("googlenet", "inception_v3"):  # without auxiliary heads, which run in training alone
            more = dict(aux_logits=False, init_weights=False)
        return models.get_model(name, weights=None, num_classes=classes, **more)

    return make, dict(size=size, crop_pct=size / resized, mean=usual.mean, std=usual.std)


def timm_network(name: str, detail: str):
    """A network of timm, where that is installed, and what its weights were trained with."""
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"{name}:{detail} needs timm: pip install timm") from error
    if detail not in timm.list_models():
        raise ValueError(f"timm has no network {detail!r}")
    usual = timm.get_pretrained_cfg(detail)

    def make(classes: int, image_size: int) -> nn.Module:
        try:  # transformers need to know it, convolutional networks do not take it
            return timm.create_model(detail, pretrained=False, num_classes=classes, img_size=image_size)
        except TypeError:
            return timm.create_model(detail, pretrained=False, num_classes=classes)

    return make, dict(size=usual.input_size[-1], crop_pct=usual.crop_pct, mean=usual.mean, std=usual.std)
