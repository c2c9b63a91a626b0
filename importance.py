"""How much each weight matters for a set of examples, and the methods that dampen those that matter for D_f (Sec. 3).

    unlearned = ssd(model, task.train, forget, config, generator)
    of_forget = importance(net, losses(net, data, forget, config, F.cross_entropy), torch.square)
    dampen(net, model, of_forget, of_all, threshold=10, strength=1)   # weights shrink, none changes its sign
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn import functional as F

from data import Data, batches
from metrics import accuracy, eval_mode
from passes import dtype_of, hand_back, logits_of, retain_set
from rem import check_forget
from settings import Config

SSD_ALPHA, SSD_LAMBDA = 10.0, 1.0  # Foster et al. 2024: which weights are dampened, and how much
POTION_GROWTH, POTION_TRIES = 1.1, 50  # Schoepf et al. 2024b: the share of weights grows by 10 % a try


# --- The two methods ------------------------------------------------------------------------------------------------------


def ssd(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator) -> nn.Module:
    """SSD, selective synaptic dampening (Foster et al. 2024): shrink the weights that matter much more for D_f.

    Importance: mean over batches of the squared gradient of CE, on D_tr and on D_f, in eval mode. One shot: where
    I_f > alpha I, weight *= min(1, lambda I / I_f) with alpha 10, lambda 1. Choice: no augmentation, so nothing is drawn.
    """
    forget, net = check_forget(forget, len(data)), copy.deepcopy(model)
    of_all, of_forget = (importance(net, losses(net, data, index, config, F.cross_entropy)) for index in (None, forget))
    dampen(net, model, of_forget, of_all, SSD_ALPHA, SSD_LAMBDA)
    return hand_back(model, net)


def potion(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator) -> nn.Module:
    """Potion (Schoepf et al. 2024b): dampen more and more weights until Acc(D_f) <= gamma.

    Importance: mean over batches of the absolute gradient of the mean L2 norm of the logits, which needs no labels, on D_r
    and on D_f of the original network. Cut c: percentile 100 - ln(1 + 100 f) of I_f / I_r; where I_f > c I_r, weight *=
    min(1, I_r / I_f). f starts at |D_f| / |D_tr| and grows by 10 % a try, each from the original weights; 50 tries, then a
    warning. Choice: a network at or below gamma is left as it is; no augmentation, so nothing is drawn.
    """
    retain, net = retain_set(forget, len(data)), copy.deepcopy(model)
    acc = accuracy(net, data, forget)
    if acc <= config.gamma:
        return hand_back(model, net)
    of_retain, of_forget = (importance(net, losses(net, data, index, config, output_norm), torch.abs)
                            for index in (retain, forget))
    ratios, fraction, tries = sorted_ratios(of_forget, of_retain), len(forget) / len(data), 0
    while acc > config.gamma and tries < POTION_TRIES:
        dampen(net, model, of_forget, of_retain, percentile(ratios, 100 - math.log1p(100 * fraction)))
        acc = accuracy(net, data, forget)
        fraction, tries = fraction * POTION_GROWTH, tries + 1
    if acc > config.gamma:
        warnings.warn(f"Acc(D_f) is {acc:.2f} after {tries} tries of Potion, still above gamma = {config.gamma}", stacklevel=2)
    return hand_back(model, net)


# --- Importance -----------------------------------------------------------------------------------------------------------


def output_norm(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of the L2 norm of the logits; the labels are not read."""
    return torch.linalg.vector_norm(logits, dim=1).mean()


def losses(net: nn.Module, data: Data, index: torch.Tensor | None, config: Config, loss_of):
    """loss_of(logits, y) of one batch after another, in order, without augmentation."""
    for _, x, y in batches(data, index, config.batch, dtype=dtype_of(net)):
        yield loss_of(logits_of(net, x, config), y)


def importance(net: nn.Module, losses: Iterable[torch.Tensor], measure: Callable = torch.square) -> list[torch.Tensor]:
    """Mean over batches of measure(gradient of the batch's loss), for every trainable parameter.

    Args:
        net: network that the losses run; in eval mode meanwhile, so BatchNorm gives each example its own gradient.
        losses: one scalar a batch, made lazily: one backward pass each.
        measure: torch.square for SSD (the diagonal of the Fisher matrix), torch.abs for Potion.

    Returns:
        A tensor >= 0 of the parameter's shape for each trainable parameter, in the network's order.
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    totals, steps = [torch.zeros_like(p) for p in parameters], 0
    with eval_mode(net):
        for loss in losses:
            for total, gradient in zip(totals, torch.autograd.grad(loss, parameters, materialize_grads=True), strict=True):
                total += measure(gradient)
            steps += 1
    return [total / steps for total in totals]


@torch.no_grad()
def dampen(net: nn.Module, original: nn.Module, of_forget: list[torch.Tensor], of_rest: list[torch.Tensor],
           threshold: float, strength: float = 1.0) -> None:
    """Write the original's weights into `net`, those that matter much more for D_f than for the rest made smaller.

    Args:
        net, original: of one architecture; only trainable parameters of `net` change.
        of_forget, of_rest: importances I_f and I from `importance`.
        threshold: alpha in SSD, the cut c in Potion; >= 0.
        strength: lambda in SSD, > 0.
    """
    pairs = [(p, q) for p, q in zip(net.parameters(), original.parameters(), strict=True) if p.requires_grad]
    for (weight, before), i_f, i in zip(pairs, of_forget, of_rest, strict=True):
        # where I_f > alpha I:  weight *= min(1, lambda I / I_f)
        factor = torch.where(i_f > threshold * i, (strength * i / i_f).clamp(max=1), 1)
        weight.copy_(before * factor)


def sorted_ratios(of_forget: list[torch.Tensor], of_rest: list[torch.Tensor]) -> torch.Tensor:
    """I_f / I of all weights in one sorted vector, without those that are not finite (I = 0)."""
    ratios = torch.cat([(i_f / i).flatten() for i_f, i in zip(of_forget, of_rest, strict=True)])
    return ratios[ratios.isfinite()].sort().values


def percentile(values: torch.Tensor, q: float) -> float:
    """The q-th percentile of a sorted vector, linear between neighbours; inf, which nothing exceeds, for an empty one.

    Raises:
        ValueError: q outside [0, 100].
    """
    if not 0 <= q <= 100:
        raise ValueError(f"percentile {q} does not exist; it must be in [0, 100]")
    if len(values) == 0:
        return float("inf")
    position = q / 100 * (len(values) - 1)
    low = min(int(position), max(0, len(values) - 2))
    a, b = float(values[low]), float(values[min(low + 1, len(values) - 1)])
    return a + (b - a) * (position - low)
