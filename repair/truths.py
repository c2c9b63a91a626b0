"""Known bad images whose true labels are known too: they enter D_r as well, at their true labels.

    data = with_truths(data, forget, true_labels)      # D_tr, and behind it COPIES more of each such image
    repaired = rem(model, data, forget, ...)           # Algorithm 1 as printed

In D_f an image is pushed away from its wrong label, under the mask that D_f shares; its copies in D_r, each under a
mask of its own, teach theta_o1 the right one. So rem.py needs no word of it.

Choice: copies, and not a term of step 3 that adds CE of theta_o1 at the true label: that costs a pass more and was no
better in trials with a trigger, with noise and with wrong labels. Somebody has looked at copies, so they are neither
held out nor left out by small-loss selection (`trusted`).
"""

from dataclasses import dataclass

import torch

from experiment.data import Data, Streamed

COPIES = 5  # of each image whose true label is known


@dataclass(frozen=True, eq=False)
class Taught:
    """D_tr with some images again, behind the others and at other labels; read as the data that it is made of is."""

    data: Data | Streamed  # N images
    source: torch.Tensor  # (N + m,) int64 on the CPU, the image of `data` that each is: 0 to N - 1, then any
    labels: torch.Tensor  # (N + m,) int64, where the batches go

    def __len__(self):
        return len(self.source)

    def __getattr__(self, name):  # mean, std, part, ...: how images are read
        return getattr(self.data, name)

    batches = Data.batches

    @property
    def trusted(self):
        """(m,) int64, those at other labels: neither held out nor left out, see engine/batches.py."""
        return torch.arange(len(self.data), len(self.source))

    @property
    def _overlay(self):
        inner = self.data._overlay
        return inner and (lambda images, index, move: inner(images, self.source[index], move))

    def _read(self, index, spans, seed):
        """Yield images (B, C, H, W) and labels (B,) of each span of `index`."""
        where = index.to(self.labels.device)
        for at, (images, _) in zip(spans, self.data._read(self.source[index], spans, seed), strict=True):
            yield images, self.labels.index_select(0, where[at])


def with_truths(data: Data | Streamed, forget: torch.Tensor, true_labels: torch.Tensor | None):
    """D_tr with the images of D_f whose true label is known again, COPIES times each; no image is copied in memory.

    Args: data: D_tr, N examples; forget: (k,) int64, D_f; true_labels: (k,) int64, -1 where unknown; None: none is
        known.
    Returns: `data` itself where no true label is known, else a Taught of N + COPIES * m examples, whose first N are
        those of `data` at their labels as given.
    """
    if true_labels is None or not (true_labels >= 0).any():
        return data
    again, truths = (part[true_labels >= 0].repeat(COPIES) for part in (forget, true_labels))
    labels = torch.cat([data.labels.to(data.device), truths.to(data.device)])
    return Taught(data, torch.cat([torch.arange(len(data)), again]), labels)


def check_truths(true_labels, forget: torch.Tensor, labels: torch.Tensor, classes: int, names=None
                 ) -> torch.Tensor | None:
    """True labels of D_f, on the CPU, None where none is given or known.

    Args: true_labels: (k,) int64 in the order of `forget`, (k,) int64 on the CPU; -1 where unknown; labels: (N,) int64
        as given; names: of the N images, for messages; None: their indices.
    Raises: ValueError for another shape or dtype, a label that is no class, one that is the image's label as given.
    """
    if true_labels is None:
        return None
    if not isinstance(true_labels, torch.Tensor) or true_labels.dtype != torch.int64 or (
            true_labels.shape != forget.shape):
        is_tensor = isinstance(true_labels, torch.Tensor)
        found = f"{true_labels.dtype} of shape {tuple(true_labels.shape)}" if is_tensor else type(true_labels).__name__
        raise ValueError(f"true labels are {found}; they must be an int64 tensor of shape ({len(forget)},), one for "
                         "each known bad image, -1 where it is unknown")
    true_labels = true_labels.cpu()
    for i, label, given in zip(forget.tolist(), true_labels.tolist(), labels.cpu()[forget].tolist(), strict=True):
        name = f"image {i}" if names is None else names[i]
        if not -1 <= label < classes:
            raise ValueError(f"the true label of {name} is {label}; it must be from 0 to {classes - 1}, or -1 where it "
                             "is unknown")
        if label == given:
            raise ValueError(f"{name} is listed as bad, but its true label is the label that it has, {label}; take it "
                             "from the list, or correct the true label")
    return true_labels if (true_labels >= 0).any() else None
