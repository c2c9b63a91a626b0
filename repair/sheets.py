"""What a user gets to look at: the suspects as a CSV file, and a sheet of pictures of the first of them.

    print(write_suspects("out/repaired.pt", found, similar, data, folder, places))  # beside the weights

inputs.read_bad reads the CSV file back, with a column `bad` that the user has added.
"""

import csv
import io
import math
import warnings
from pathlib import Path

import torch

from engine.checks import first_line
from experiment.files import write_whole
from repair.inputs import Folder, csv_lines
from repair.suspects import Suspects

COLUMNS = ("rank", "filename", "index", "given_label", "predicted_label", "score", "label_score", "similar")
WIDE, PICTURES, LETTERS = 8, 64, 20  # pictures per line and in all; letters of a class name below one


def beside(out: str | Path) -> tuple[Path, Path]:
    """Where the list and the sheet go: suspects.csv and suspects.png beside the repaired weights."""
    return Path(out).with_name("suspects.csv"), Path(out).with_name("suspects.png")


def write_suspects(out: str | Path, found: Suspects, similar: torch.Tensor | None, data, folder: Folder, places) -> str:
    """Write suspects.csv and, where matplotlib is installed, suspects.png; returns a line that says so.

    Args:
        out: file of the repaired weights.
        found: suspects(repaired, ...); similar: (N,) float64, how much each image looks like D_f, in [0, 1],
            or None.
        data, folder: the training images that were read, with D_f.
        places: index by path of each image in the order of its folder, in which --bad counts.
    """
    rows, labels, names, given, (listed, drawn) = [], [], folder.classes, data.labels.cpu(), beside(out)
    alike = [""] * len(data) if similar is None else [f"{value:.6g}" for value in similar.tolist()]
    for rank, (i, score, predicted) in enumerate(zip(*(part.tolist() for part in found), strict=True), 1):
        path = folder.paths[i]
        labels.append((names[given[i]], names[predicted]))
        rows.append((rank, path.relative_to(folder.root).as_posix(), places[path], *map(as_text, labels[-1]),
                     f"{score:.6g}", f"{math.exp(-score):.6g}", alike[i]))
    write_csv(listed, COLUMNS, rows)
    told, shown = f"{listed} ranks the {len(rows)} images that no list names, most suspect first", labels[:PICTURES]
    try:
        made = draw_sheet(drawn, data.some(found.index[: len(shown)]).images.cpu(), shown)
    except Exception as error:  # the list is there all the same
        return f"{told}; no picture of them ({first_line(error)})"
    return told + (f"; {drawn} shows {len(shown)}" if made else "; no picture of them: matplotlib is not installed")


def as_text(name: str) -> str:
    """A class's name, behind an apostrophe where a spreadsheet would take it for a formula."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@")) else name


def write_csv(path: str | Path, columns, rows) -> None:
    """Write a CSV file as the csv module does, in UTF-8: CRLF at line ends, quotes where a value needs them."""
    text = io.StringIO(newline="")
    out = csv.writer(text)
    out.writerow(columns)
    out.writerows(rows)
    write_whole(path, lambda file: file.write(text.getvalue().encode("utf-8", "backslashreplace")))  # any file name


def answered(path: Path) -> bool:
    """Whether a file holds what write_suspects does not write, such as a column `bad` that a user filled in by hand."""
    try:
        lines = [line for _, line in csv_lines(path)] if path.exists() else []
    except ValueError:  # in letters of another encoding, as a spreadsheet saves it
        return True
    return any(len(line) != len(COLUMNS) for line in lines) or lines[:1] not in ([], [list(COLUMNS)])


def draw_sheet(path: str | Path, images: torch.Tensor, labels: list[tuple[str, str]]) -> bool:
    """Draw up to PICTURES images as a PNG file, given -> predicted under each; False where matplotlib is missing.

    Args:
        images: (k, C, H, W) uint8 on the CPU, grey or RGB.
        labels: k pairs of class names of any length and letters.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    images, labels = images[:PICTURES], labels[:PICTURES]
    lines = max(1, -(-len(images) // WIDE))
    figure = Figure(figsize=(1.5 * WIDE, 1.75 * lines), dpi=100)
    grid = figure.subplots(lines, WIDE, squeeze=False).flat
    for axes in grid:
        axes.set_axis_off()
    for axes, image, (given, predicted) in zip(figure.axes, images, labels, strict=False):
        gap = " " if len(given + predicted) <= LETTERS else "\n"
        caption = f"{shortened(given)}{gap}-> {shortened(predicted)}"
        pixels = image.permute(1, 2, 0).numpy()  # (H, W, C)
        axes.imshow(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
        axes.text(0.5, -0.04, caption, transform=axes.transAxes, ha="center", va="top", fontsize=7, parse_math=False)
    figure.subplots_adjust(0.01, 0.4 / (1.75 * lines), 0.99, 0.99, wspace=0.08, hspace=0.32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font has not are drawn as boxes
        write_whole(path, lambda file: FigureCanvasAgg(figure).print_png(file))
    return True


def shortened(text: str) -> str:
    """At most LETTERS letters of a text, all of which can be written."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"
