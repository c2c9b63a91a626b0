"""The one training loop: original models, retraining, fine-tuning and ETD all run through `fit` (A.3, Table 3).

    model = build("resnet9", 0.5, seed=0)
    fit(model, data, None, config, generator)         # in place: SGD, warm-up over 1 % of the steps, down to one fifth
    fit(model, data, retain, config, generator, epochs=10, lr=0.005)
"""

import torch
from torch import nn
from torch.nn import functional as F

from data import Data, count_batches
from etd import (Expanded, MaskTable, descend, finite, forked_rng, logits_of, make_optimizer, mask_rows, mask_table,
                 refresh_batchnorm, stream)
from expand import expand
from settings import Config

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


def fit(model: nn.Module, data: Data, index: torch.Tensor | None, config: Config, generator: torch.Generator, *,
        epochs: int | None = None, lr: float | None = None, masks: MaskTable | None = None, log=None,
        schedule: str = "linear") -> None:
    """Train a network in place with cross-entropy on the labels as given.

    Args:
        model: plain network, or Expanded when `masks` is given, left in training mode; data: D_tr.
        index: (k,) int64 examples to train on (D_r for fine-tuning), None for all.
        config: batch size, optimiser, precision; generator: on the CPU, of order, augmentation and dropout.
        epochs: None for config.epochs; lr: peak rate, None for config.lr; schedule: of the rate, see `rate`.
        masks: of N rows: row i masks theta_o2 for example i (ETD).
        log: called as log(epoch, epochs, model, loss=...) after each epoch.
    Raises: NonFiniteLoss at the end of the epoch in which the loss stopped being finite.
    """
    epochs, lr = config.epochs if epochs is None else epochs, config.lr if lr is None else lr
    device, dtype = data.device, next(model.parameters()).dtype
    masks = None if masks is None else masks.to(device)
    optimizer, step = make_optimizer(model, config, lr), 0
    model.train()
    for epoch in range(1, epochs + 1):
        total, start = torch.zeros((), device=device), step
        per_epoch = count_batches(len(data) if index is None else len(index), config.batch)
        with forked_rng(generator, device):
            for rows, x, y in data.batches(index, config.batch, generator, augment=True, dtype=dtype):
                optimizer.param_groups[0]["lr"] = lr * rate(step, epochs * per_epoch, schedule)
                mask = None if masks is None else mask_rows(masks, rows)
                loss = F.cross_entropy(logits_of(model, x, config.precision, mask), y)
                total += descend(optimizer, loss, len(rows))
                step += 1
        mean = finite(total, step - start, f"training epoch {epoch}")
        if log is not None:
            log(epoch, epochs, model, loss=mean)


# --- ETD training -----------------------------------------------------------------------------------------------------

def train_etd(model: nn.Module, data: Data, config: Config, generator: torch.Generator, shared=None,
              log=None) -> Expanded:
    """Train theta_o1 and theta_o2 together with example-tied masks (Sec. 2, "Example-Tied Dropout").

    Args: model: freshly initialised network, left as it is; data, generator, log: as in `fit`; config: training
        settings; `ratio`, `p_mem` and `seed` shape theta_o2 and the masks; shared: indices that share one row: D_c for
        ETD (IDEAL) of Fig. 9, an oracle; None: each its own.
    Returns: the trained Expanded, base statistics refreshed; `drop` it for ETD alone, or hand it to rem.
    Raises: TypeError: the network cannot be expanded; NonFiniteLoss: the rate is too high.
    """
    expanded = expand_for(model, data, config)
    masks = mask_table(len(data), expanded.width, config.p_mem, config.seed, shared)
    fit(expanded, data, None, config, generator, masks=masks, log=log)
    refresh_batchnorm(expanded, data, config.batch)
    return expanded


def expand_for(model: nn.Module, data: Data, config: Config) -> Expanded:
    """`expand` at the settings' ratio for the data's image shape, theta_o2 drawn from the settings' seed."""
    weight = next(model.parameters())
    example = torch.zeros((2, *data.shape), device=weight.device)
    return expand(model, example, config.extra_ratio, generator=stream(config.seed, "theta_o2"))
