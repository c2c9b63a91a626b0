"""The list of suspects that a user gets, a CSV file beside the weights.

    print(write_suspects("out/repaired.pt", ranking, data, folder, places))

lists.read_bad reads it back, with a column `bad` that the user has added.
"""

import csv
import io
import math
from pathlib import Path

from experiment.files import write_whole
from repair.inputs import Folder
from repair.lists import csv_lines
from repair.ranking import Ranking

OLDER = ("rank", "filename", "index", "given_label", "predicted_label", "score", "label_score", "similar")
COLUMNS = (*OLDER, "rank_by_score", "rank_by_similar", "likely")


def beside(out: str | Path) -> Path:
    """Where the list goes: suspects.csv beside the repaired weights."""
    return Path(out).with_name("suspects.csv")


def write_suspects(out: str | Path, ranking: Ranking, data, folder: Folder, places) -> str:
    """Write suspects.csv, a row per image outside D_f in overall order; returns a line that says so.

    Args:
        out: file of the repaired weights.
        ranking: of the images outside D_f.
        data, folder: the training images that were read, with D_f.
        places: index by path of each image in the order of its folder, in which --bad counts.
    """
    rows, names, given, listed = [], folder.classes, data.labels.cpu(), beside(out)
    for rank, suspect in enumerate(ranking.suspects(), 1):
        labels = as_text(names[given[suspect.index]]), as_text(names[suspect.predicted])
        similar, by_similar = ("", "") if suspect.similar is None else (f"{suspect.similar:.6g}", suspect.by_similar)
        rows.append((rank, named(folder, suspect.index), places[folder.paths[suspect.index]], *labels,
                     f"{suspect.score:.6g}", f"{math.exp(-suspect.score):.6g}", similar, suspect.by_score, by_similar,
                     "true" if rank <= ranking.likely else "false"))
    write_csv(listed, COLUMNS, rows)
    return (f"{listed} ranks the {len(rows)} images that no list names, most suspect first; about {ranking.likely} of "
            "them are likely bad, an estimate that is too low rather than too high")


def named(folder: Folder, i: int) -> str:
    """The path of a training image from the folder of all, as lists have it."""
    return folder.paths[i].relative_to(folder.root).as_posix()


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
    width = len(OLDER) if lines[:1] == [list(OLDER)] else len(COLUMNS)
    return any(len(line) != width for line in lines) or lines[:1] not in ([], [list(COLUMNS)], [list(OLDER)])
