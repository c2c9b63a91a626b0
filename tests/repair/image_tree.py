"""A small folder of images, and lists of some of them in files.

    from image_tree import CLASSES, root, training, written      # the fixture `root`, by its name
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = ("ant", "bee")


@pytest.fixture
def root(tmp_path) -> Path:
    """pictures/train/{ant,bee}/{0..4}.png, one of them called alone.png, and pictures/val/bee/9.png."""
    root = tmp_path / "pictures"
    for split, name, files in (("train", "ant", "01234"), ("train", "bee", "0123"), ("val", "bee", "9")):
        for i in files:
            path = root / split / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (10 * int(i), 0, 200)).save(path)
    Image.new("RGB", (8, 8)).save(root / "train" / "bee" / "alone.png")
    return root


def training(root: Path) -> list[Path]:
    """The training images in ImageFolder order."""
    return [root / "train" / name for name in [f"ant/{i}.png" for i in range(5)] + [f"bee/{i}.png" for i in range(4)]
            + ["bee/alone.png"]]


def written(folder: Path, name: str, content, root: Path = Path()) -> Path:
    """A list in a file."""
    path = folder / name
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content.replace("ROOT", str(root)), encoding="utf-8", newline="")
    return path
