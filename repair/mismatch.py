"""Whether a network fits a folder of images, found out before any work.

    check_logits(model, data, "resnet18", "model.pt")                # ValueError unless it gives logits of all classes
    check_labels(predicted, data.labels, forget, classes)            # ValueError unless it gives the labels as given
"""

import re

import torch
from torch import nn

from engine.checks import first_line
from engine.modes import eval_mode
from repair.checkpoints import other_classes

SURE, LOW, BETTER = 0.9, 0.5, 0.1  # accuracies on the given labels: no doubt; too low to go on; worth a stop


def check_logits(model: nn.Module, data, name: str, file: str) -> None:
    """Raise ValueError unless a network gives logits of all classes for two images; name and file: of the messages."""
    ((_, x, _),) = data.some(torch.arange(min(2, len(data)))).batches(dtype=next(model.parameters()).dtype)
    with eval_mode(model), torch.no_grad():
        try:
            logits = model(x)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # networks raise anything
            raise ValueError(f"--model {name} does not run on images of {'x'.join(map(str, data.shape))} "
                             f"({first_line(error)}); check --image-size, or FILE.py:FUNCTION") from error
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2 or len(logits) != len(x):
        shape = f" of shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else ""
        raise ValueError(f"--model {name} gives a {type(logits).__name__}{shape} for {len(x)} images, not logits "
                         f"({len(x)}, {data.classes}); give FILE.py:FUNCTION of a network that returns them alone")
    if logits.shape[1] != data.classes:
        raise ValueError(other_classes(file, logits.shape[1], f"outputs of {name}", data.classes))


def check_labels(predicted: torch.Tensor, labels: torch.Tensor, forget: torch.Tensor, classes: list[str]) -> None:
    """Raise ValueError where a network gives too few images outside D_f their labels as given, or more of them in
    another order of the classes; args: (N,) predictions and labels, (k,) D_f, the classes' names."""
    others = torch.ones(len(labels), dtype=torch.bool).index_fill_(0, forget, False)
    predicted, labels = predicted[others], labels[others]
    accuracy = float((predicted == labels).double().mean())
    if accuracy >= SURE:
        return
    share, order = max((float((predicted == torch.tensor([order.index(name) for name in classes])[labels])
                              .double().mean()), order) for order in orders(predicted, labels, classes))
    found = f"the network gives {accuracy:.1%} of the images outside --bad their labels"
    if share > accuracy + BETTER and share >= LOW:
        raise ValueError(f"{found}, and {share:.1%} if its classes are in the order {', '.join(order)}: write that, "
                         "one a line, to a file for --class-map; to go on all the same: --force")
    if accuracy < LOW:
        raise ValueError(f"{found}: the images may be read otherwise than in its training; check --image-size, "
                         "--crop-pct, --resize, --mean and --std, BGR (which FILE.py:FUNCTION can flip) and "
                         "--class-map; to go on all the same: --force")


def orders(predicted: torch.Tensor, labels: torch.Tensor, classes: list[str]) -> list[list[str]]:
    """Orders of the classes that are worth a look: torchvision's, timm's, and the one that the predictions suggest, if
    each class has an output of its own that its images get most often."""
    k = len(classes)
    counts = torch.bincount(labels * k + predicted, minlength=k * k).view(k, k)  # label, prediction
    outputs = counts.argmax(dim=1).tolist()  # the network's output for each class
    suggested = [[classes[outputs.index(i)] for i in range(k)]] if len(set(outputs)) == k else []
    return [sorted(classes), sorted(classes, key=natural), *suggested]


def natural(name: str) -> list:
    """Sort key of timm's class order: numbers by value, letters without case."""
    parts = [part for part in re.split(r"(\d+)", name) if part]
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in parts]
