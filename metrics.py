"""What the paper reports: accuracy, Healed, Utility, their product, mean and standard error (Sec. 4, Sec. 6).

    scores = evaluate(model, task, forget)    # healed, utility, product and more, in [0, 1]
    mean, error = mean_sem([run["product"] for run in runs])
"""

import contextlib
import math

import torch
from torch import nn

from data import Data, batches
from tasks import like_corrupted


class NonFiniteLoss(ArithmeticError):
    """A loss or a logit is not a finite number any more; the text says where."""


@contextlib.contextmanager
def eval_mode(model: nn.Module):
    """Put a network in eval mode and, at the end of the block, each of its modules back in the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


def predict(model: nn.Module, data: Data, index: torch.Tensor | None = None, masks: torch.Tensor | None = None,
            size: int = 1024) -> torch.Tensor:
    """Classes that a network gives, in eval mode, without augmentation, trigger on where the data has it.

    Args:
        model: plain or Expanded network.
        data: N examples.
        index: (B,) int64 dataset indices, None for all.
        masks: (N, width) bool table for a masked pass of an Expanded; None for the base-only pass.
        size: batch size; it changes nothing but memory and speed.

    Returns:
        (B,) int64 on the CPU; among equal logits the lowest class. Parameters, buffers, modes and random states stay.

    Raises:
        ValueError: an empty index or one out of range.
        NonFiniteLoss: a logit that is not finite, since argmax would make a class of it.
    """
    classes, sound = [], True
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    with eval_mode(model), torch.inference_mode():
        for rows, x, _ in batches(data, index, size, dtype=dtype):
            logits = model(x) if masks is None else model(x, masks[rows].to(x.device))  # (b, classes)
            classes.append(logits.argmax(dim=1))
            sound = logits.isfinite().all() & sound  # looked at once, at the end
    if not sound:
        raise NonFiniteLoss("the network's logits are not finite; lower the rate")
    return torch.cat(classes).cpu()


def share(hits: torch.Tensor) -> float:
    """Fraction of true entries, in [0, 1]; a ValueError for none at all, since no number would be right."""
    if len(hits) == 0:
        raise ValueError("accuracy of an empty set is undefined; give at least one example")
    return int(hits.sum()) / len(hits)


def accuracy(model: nn.Module, data: Data, index: torch.Tensor | None = None, labels: torch.Tensor | None = None,
             masks: torch.Tensor | None = None) -> float:
    """Fraction of examples whose predicted class is their label.

    Args:
        model, data, index, masks: as in `predict`.
        labels: (N,) int64 labels of the whole data set to compare with; None for the labels as given.

    Returns:
        A fraction in [0, 1]: correct examples over all examples, whatever the batches.
    """
    labels = (data.labels if labels is None else labels).cpu()
    return share(predict(model, data, index, masks) == (labels if index is None else labels[index]))


def evaluate(model: nn.Module, task, forget: torch.Tensor) -> dict[str, float | None]:
    """Healed and Utility of one network (Sec. 6 "Metrics").

    Healed: accuracy of clean labels on D_c's inputs as they were trained on. Utility: accuracy on the clean test set, over
    all classes. This and no method may read the clean labels.

    Args:
        model: plain network.
        task: tasks.Task.
        forget: (k,) int64, D_f within D_c.

    Returns:
        healed, healed_forget (over D_f), healed_undiscovered (over the rest of D_c; None when there is none), healed_test
        (over test images corrupted alike, see tasks.like_corrupted; None when there is none), utility and product =
        healed * utility, all fractions.
    """
    hits = predict(model, task.train, task.corrupted) == task.clean[task.corrupted]  # (|D_c|,)
    found = torch.isin(task.corrupted, forget)
    healed, utility = share(hits), accuracy(model, task.test)
    return {
        "healed": healed,
        "healed_forget": share(hits[found]),
        "healed_undiscovered": share(hits[~found]) if (~found).any() else None,
        "healed_test": utility if task.name == "random" else healing_on_test(model, task),
        "utility": utility,
        "product": healed * utility,
    }


def healing_on_test(model: nn.Module, task) -> float | None:
    """Accuracy on the test images that the corruption would concern (Sec. A.2, Fig. 6); None where there is none."""
    test, index = like_corrupted(task)
    return None if index is not None and len(index) == 0 else accuracy(model, test, index)


def mean_sem(values) -> tuple[float, float | None]:
    """Mean over runs and its standard error std(ddof=1) / sqrt(n), as in the paper's "mean +- SEM".

    Args:
        values: one finite number a run, at least one.

    Returns:
        (mean, sem); sem is None for a single run.

    Raises:
        ValueError: no value.
    """
    values = [float(v) for v in values]
    if not values:
        raise ValueError("mean of no runs is undefined; give at least one value")
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
