"""What a network computes of every image: its penultimate features."""

import contextlib

import torch
from torch import nn
from torch.nn import functional as F

from engine.batches import per_example
from engine.checks import check_index
from engine.modes import eval_mode

BATCH = 128  # images per batch of a pass


def features(model: nn.Module, data, index: torch.Tensor | None = None, layer: int = -1) -> torch.Tensor:
    """Penultimate features (N, d) of all images or those of `index`, float64 on the CPU: what the last linear or
    convolutional layer that runs is given, averaged over places or tokens; layer -2: what the one before is given."""
    with penultimate(model, layer) as both:
        return gather(model, data, index, lambda x, y: both(x)[1])


@contextlib.contextmanager
def penultimate(model: nn.Module, layer: int = -1):
    """A function of inputs x (B, ...) that gives what the network gives, and the features (B, d) of that very pass."""
    given = []

    def both(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        given.clear()
        out = model(x)
        # of a convolution (B, d, H, W), else (B, d), (B, T, d), ..., or (B T, d) of a dense head
        module, h = given[max(layer, -len(given))]
        h = h.mean(dim=(2, 3)) if isinstance(module, nn.Conv2d) else h.reshape(len(x), -1, h.shape[-1]).mean(dim=1)
        return out, h.double()  # (B, d)

    with contextlib.ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                hooks.enter_context(module.register_forward_pre_hook(lambda m, inputs: given.append((m, inputs[0]))))
        yield both


@torch.no_grad()  # a graph over all batches would hold what every layer gave of every image
def gather(model: nn.Module, data, index: torch.Tensor | None, rows_of) -> torch.Tensor:
    """(n, d) float64 on the CPU: rows_of(x, y), (B, d), for the images of `index`, or for all, in their order.

    Raises: ValueError where data.batches leaves some out.
    """
    index = torch.arange(len(data)) if index is None else check_index(index, len(data)).cpu()
    places = torch.zeros(len(data), dtype=torch.int64).index_put_((index,), torch.arange(len(index)))
    weight = next(model.parameters())

    def values_of(place, x, y):
        h = rows_of(x.to(weight.device), y.to(weight.device)).cpu()
        return F.pad(h, (0, 1), value=1)  # the last column: that it was seen

    with eval_mode(model):
        batches = data.batches(index, size=BATCH, dtype=weight.dtype)
        found = per_example(((places[i], x, y) for i, x, y in batches), values_of, len(index))
    if not found[:, -1].all():
        raise ValueError("data.batches must yield all the examples that are asked for; ask for each once")
    return found[:, :-1]
