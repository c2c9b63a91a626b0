"""Whether another order of the classes explains what a network predicts, found by matching classes with outputs.

    found = another_order(before, labels, classes=10)    # None, or found.outputs: the network's output of each class
    listed = [names[i] for i in found.classes]           # the classes in the network's order: a class map
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from experiment.files import write_whole

EXPLAINS = 0.5  # of the way from chance to every label; a network that knows fewer labels is refused in any order
DEVIATIONS = 4.0  # standard deviations of chance above which a share of hits is no luck: one in 30,000


class Order(NamedTuple):
    """An order of the classes under which a network's predictions are the labels as given."""

    outputs: np.ndarray  # (C,) int64, the network's output for each class
    share: float  # of the labels, in [0, 1], each judged by a matching that has not seen it

    @property
    def classes(self) -> list[int]:
        """The class at each output of the network."""
        return np.argsort(self.outputs).tolist()


def another_order(predicted: torch.Tensor, labels: torch.Tensor, classes: int) -> Order | None:
    """The order of the classes that explains predictions better than the given one; None where none does.

    A matching fits noise too: of C classes and few images each it hits far more than 1 / C of these. So the images are
    split in two halves, alike in their labels; each half is judged by the order that the other one gives.
    Choice: an order explains the predictions if Cohen's kappa is at least EXPLAINS, and its hits are DEVIATIONS above
    what chance gives.
    Args: predicted, labels: (n,) int64 in [0, classes), of images whose labels are not known to be wrong.
    """
    predicted, labels = predicted.cpu().numpy(), labels.cpu().numpy()
    counts, half = confusion(predicted, labels, classes), halves(labels)
    if min(counts.max(axis=0).sum(), counts.max(axis=1).sum()) < EXPLAINS * len(labels):
        return None  # no order can, and a matching of noise takes longest
    hits, expected, variance = 0, 0.0, 0.0
    for side in (0, 1):
        outputs = assignment(confusion(predicted[half != side], labels[half != side], classes))
        given, wanted = predicted[half == side], outputs[labels[half == side]]
        hits += int((given == wanted).sum())
        # what chance gives: P(predicted = k) P(wanted = k), summed over k
        chance = np.bincount(given, minlength=classes) @ np.bincount(wanted, minlength=classes) / max(1, len(given))**2
        expected += chance * len(given)
        variance += chance * (1 - chance) * len(given)
    kappa = (hits - expected) / max(len(labels) - expected, 1e-9)
    if kappa < EXPLAINS or hits - expected < DEVIATIONS * variance**0.5:
        return None
    outputs = assignment(counts)
    return None if (outputs == np.arange(classes)).all() else Order(outputs, hits / len(labels))


def halves(labels: np.ndarray) -> np.ndarray:
    """0 or 1 for each image, drawn so that both halves have the same number of each label, but for one."""
    drawn = np.random.default_rng(0).permutation(len(labels))
    order = drawn[np.argsort(labels[drawn], kind="stable")]
    half = np.empty(len(labels), dtype=np.int64)
    half[order] = np.arange(len(labels)) % 2
    return half


def confusion(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """(C, C) int64: how many images of each label, the row, got each prediction."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def assignment(counts: np.ndarray) -> np.ndarray:
    """The one-to-one matching of rows with columns of the largest sum; of these one that moves the fewest.

    Kuhn's and Munkres's method by shortest augmenting paths with potentials (Jonker and Volgenant 1987), exact, in
    O(C^3) and far less where most rows have a column of their own.
    Args: counts: (C, C) int64, at least 0.
    Returns: (C,) int64, the column of each row: a permutation.
    """
    n = len(counts)
    cost = -(counts.astype(np.int64) * (n + 1) + np.eye(n, dtype=np.int64))  # integers, so that ties are exact
    v = cost.min(axis=0)  # potentials of the columns
    column_of, row_of = np.full(n, -1), np.full(n, -1)
    for column in np.argsort(v, kind="stable"):  # what a column wants most, where that row is free
        row = int(cost[:, column].argmin())
        if column_of[row] < 0:
            column_of[row], row_of[column] = column, row
    u = np.zeros(n, dtype=np.int64)  # potentials of the rows: cost - u - v >= 0, and 0 where they are matched
    for row in np.flatnonzero(column_of < 0):
        augment(cost, u, v, column_of, row_of, int(row))
    return column_of


def augment(cost, u, v, column_of, row_of, start: int) -> None:
    """Match one more row, by the shortest path from it to a free column through matched pairs; all in place.

    u and v are the potentials of rows and columns, column_of and row_of the matching, -1 where there is none.
    """
    n = len(cost)
    least, before = np.full(n, np.iinfo(np.int64).max), np.full(n, start)  # distance of a column; the row before it
    done = np.zeros(n, dtype=bool)
    row, far = start, 0
    while True:
        reached = far + cost[row] - u[row] - v
        nearer = ~done & (reached < least)
        least[nearer], before[nearer] = reached[nearer], row
        open_ = np.where(done, np.iinfo(np.int64).max, least)
        far = int(open_.min())
        ties = np.flatnonzero(open_ == far)
        free = ties[row_of[ties] < 0]
        column = int(free[0] if len(free) else ties[0])
        if len(free):
            break
        done[column] = True
        row = int(row_of[column])
    u[row_of[done]] += far - least[done]
    u[start] += far
    v[done] -= far - least[done]
    while True:  # along the path, each row takes the column after it
        row = int(before[column])
        freed = int(column_of[row])
        column_of[row], row_of[column] = column, row
        if row == start:
            return
        column = freed


# --- For the user -----------------------------------------------------------------------------------------------------

def write_order(names: list[str], file: Path) -> Path | None:
    """Write a class map, one class a line, without replacing any file: name-2.txt, ... where others lie there.

    Returns: the file, which may have been there with this very content; None where it cannot be written, or where a
        name cannot stand in a line.
    """
    if any(name != name.strip() or len(name.splitlines()) != 1 for name in names):
        return None
    try:
        content = ("\n".join(names) + "\n").encode()
        for path in (file, *(file.with_name(f"{file.stem}-{k}{file.suffix}") for k in range(2, 100))):
            if not path.exists():
                write_whole(path, lambda opened: opened.write(content))
                return path
            if path.is_file() and path.read_bytes() == content:
                return path
    except (OSError, UnicodeEncodeError):  # a folder that is read alone; names that are no text
        pass
    return None
