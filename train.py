"""The one training loop: original models, retraining, fine-tuning and ETD all run through `fit` (A.3, Table 3).

    model = build("resnet9", 0.5, seed=0)
    fit(model, data, None, config, generator)         # in place: SGD, warm-up over 1 % of the steps, down to one fifth
    fit(model, data, retain, config, generator, epochs=10, lr=0.005)
"""

import torch
from torch import nn
from torch.nn import functional as F

from engine.batches import count_batches
from engine.checks import finite
from engine.modes import modes_of, training_mode
from engine.streams import forked_rng
from engine.updates import descend, logits_of, make_optimizer

WARM_UP = 0.01  # share of the steps; Goel et al. 2024
FINAL = 0.2  # last rate over peak rate: 0.025 -> 0.005 (Table 3's caption)


def rate(step: int, steps: int, schedule: str = "linear") -> float:
    """Training rate over peak rate: linear up over the first 1 % of the steps, then linear down to one fifth.

    The fifth is that of Table 3's caption. Choice: warm-up and straight lines, as in Goel et al. 2024.
    Args: step: number of the step, 0 <= step < steps; steps: of the whole training, >= 1; schedule: "linear", or
        "constant" for 1 at every step.
    Returns: a factor in (0, 1]; FINAL at the last step, 1 where there is but one.
    """
    if schedule == "constant":
        return 1.0
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return FINAL + (1 - FINAL) * (steps - 1 - step) / (steps - warm)


def fit(model: nn.Module, data, index: torch.Tensor | None, config, generator: torch.Generator, *,
        epochs: int | None = None, lr: float | None = None, loss=None, log=None, schedule: str = "linear") -> None:
    """Train a network in place with cross-entropy on the labels as given.

    Args:
        model: plain network, or an Expanded with its `loss`; left in training mode, but for frozen BatchNorms.
        data: D_tr, as experiment/data.py has it.
        index: (k,) int64 examples to train on (D_r for fine-tuning), None for all.
        config: batch size, optimiser, precision; generator: on the CPU, of order, augmentation and dropout.
        epochs: None for config.epochs; lr: peak rate, None for config.lr; schedule: of the rate, see `rate`.
        loss: (index, x, y) -> scalar of a batch, as ETD training gives it; None: cross-entropy of model(x).
        log: called as log(epoch, epochs, model, loss=...) after each epoch.
    Raises: NonFiniteLoss at the end of the epoch in which the loss stopped being finite.
    """
    epochs = config.epochs if epochs is None else epochs
    lr = config.lr if lr is None else lr
    device, dtype = data.device, next(model.parameters()).dtype
    optimizer, step = make_optimizer(model, config, lr), 0
    per_epoch = count_batches(len(data) if index is None else len(index), config.batch)

    def ce(i: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits_of(model, x, config.precision), y)

    loss = loss or ce
    training_mode(model, modes_of(model))
    for epoch in range(1, epochs + 1):
        total, start = torch.zeros((), device=device), step
        with forked_rng(generator, device):
            for i, x, y in data.batches(index, config.batch, generator, augment=True, dtype=dtype):
                optimizer.param_groups[0]["lr"] = lr * rate(step, epochs * per_epoch, schedule)
                total += descend(optimizer, loss(i, x, y))
                step += 1
        mean = finite(total, step - start, f"training epoch {epoch}")
        if log is not None:
            log(epoch, epochs, model, loss=mean)
