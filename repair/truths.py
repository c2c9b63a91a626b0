"""Known bad images whose true labels are known too: beside D_f they enter D_r, at their true labels.

    data = with_truths(data, forget, true_labels)      # D_tr, and behind it COPIES more of each such image
    repaired = rem(model, data, forget, ...)           # Algorithm 1 as printed

In D_f an image is pushed away from its wrong label, under the mask that D_f shares; its copies in D_r, each under a
mask of its own, teach theta_o1 the right one. So rem.py needs no word of it.

Choice: copies, and not a term of step 3 that adds CE of theta_o1 at the true label, which costs a pass more and harmed
some networks. Accuracy in % on triggered / clean test images, mean +- SEM of seeds 0, 1, 2 (600 drawn shapes of
16x16, 40 % of the bad ones known, network of tests/claims.py; "weak": images with noise, `wrong`: 10 % random labels,
where the first number is that of the undiscovered images that end at their true labels):

                           sticker                    weak                       wrong
    before                  4.7         / 98.3         48.7         / 88.8                      / 92.3
    without true labels    86.5 +- 3.4  / 97.9 +- 0.4  86.0 +- 3.6  / 80.1 +- 7.9  73.1 +- 5.2  / 93.1 +- 0.7
    COPIES = 5             94.7 +- 1.1  / 97.2 +- 0.3  86.3 +- 1.2  / 87.3 +- 0.8  81.5 +- 1.9  / 94.1 +- 2.0
    CE, weight 1           94.2 +- 1.1  / 97.7 +- 0.4  83.0 +- 5.1  / 83.0 +- 5.7  75.9 +- 1.9  / 94.4 +- 2.3
    CE, weight 5           93.2 +- 1.4  / 83.2 +- 8.7  87.8 +- 3.6  / 80.1 +- 8.2  77.8 +- 7.3  / 92.3 +- 2.1
    fine-tuning, see below 61.3 +- 3.4  / 97.8 +- 0.6  77.0 +- 1.3  / 91.6 +- 0.4   1.9 +- 0.9  / 94.6 +- 0.9

Fine-tuning is of the untouched network: 5 epochs without D_f, with the same copies. Copies are trusted: neither held
out nor suspected.
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
        """(m,) int64, those at other labels: neither held out nor suspected, see engine/batches.py."""
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

    Args: data: D_tr, N examples; forget: (k,) int64, D_f; true_labels: (k,) int64, -1 where unknown, see
        `check_truths`; None: none is known.
    Returns: `data` itself where no true label is known, else a Taught of N + COPIES * m examples, whose first N are
        those of `data` at their labels as given.
    """
    if true_labels is None or not (true_labels >= 0).any():
        return data
    again, truths = (part[true_labels >= 0].repeat(COPIES) for part in (forget, true_labels))
    labels = torch.cat([data.labels.to(data.device), truths.to(data.device)])
    return Taught(data, torch.cat([torch.arange(len(data)), again]), labels)


def check_truths(true_labels, forget: torch.Tensor, data: Data | Streamed, names=None) -> torch.Tensor | None:
    """True labels of D_f, on the CPU, None where none is given or known.

    Args: true_labels: (k,) int64 in the order of `forget`, (k,) int64 on the CPU; -1 where unknown; names: of the
        images of `data`, for messages; None: their indices.
    Raises: ValueError for another shape or dtype, a label that is no class, one that is the image's label as given.
    """
    if true_labels is None:
        return None
    if not isinstance(true_labels, torch.Tensor) or true_labels.dtype != torch.int64 or true_labels.dim() != 1:
        is_tensor = isinstance(true_labels, torch.Tensor)
        found = f"{true_labels.dtype} of shape {tuple(true_labels.shape)}" if is_tensor else type(true_labels).__name__
        raise ValueError(f"true labels are {found}; they must be an int64 tensor of shape ({len(forget)},)")
    if len(true_labels) != len(forget):
        raise ValueError(f"{len(true_labels)} true labels for {len(forget)} known bad images; give one for each, -1 "
                         "where it is unknown")
    true_labels = true_labels.cpu()
    given = data.labels.cpu()[forget]
    for i, label, wrong in zip(forget.tolist(), true_labels.tolist(), given.tolist(), strict=True):
        name = f"image {i}" if names is None else str(names[i])
        if not -1 <= label < data.classes:
            raise ValueError(f"the true label of {name} is {label}; it must be from 0 to {data.classes - 1}, or -1 "
                             "where it is unknown")
        if label == wrong:
            raise ValueError(f"{name} is listed as bad, but its true label is the label that it has, {label}; take it "
                             "from the list, or correct the true label")
    return true_labels if (true_labels >= 0).any() else None
