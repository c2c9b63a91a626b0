"""What the methods share: passes over examples, teachers, fresh weights, D_r, and handing a network back.

    one_pass = passing(net, data, config, generator)
    loss = one_pass(retain_set(forget, len(data)), lambda logits, rows, x, y: F.cross_entropy(logits, y), "a pass over D_r")
    return hand_back(model, net)
"""

import copy

import torch
from torch import nn

from data import Data, batches
from etd import NonFiniteLoss
from models import reinitialise
from rem import check_forget
from settings import Config, stream
from train import autocast, finite, make_optimizer, update


def passing(net: nn.Module, data: Data, config: Config, generator: torch.Generator):
    """A function (index, loss_of, where, training=True) -> mean loss: one augmented pass over D_tr or some of it, an update a batch.

    loss_of(logits, rows, x, y) gives the scalar to go down; index None is all of D_tr; `where` names a loss that is not
    finite; without `training` the network stays in eval mode. One optimiser at `unlearn_lr` serves all passes.
    """
    optimizer = make_optimizer(net, config, config.unlearn_lr)

    def one_pass(index: torch.Tensor | None, loss_of, where: str, training: bool = True) -> float:
        net.train(training and (index is None or len(index) > 1))  # one example has no batch statistics: the running ones
        total, steps = torch.zeros((), device=data.images.device), 0
        for rows, x, y in batches(data, index, config.batch, generator, augment=True, dtype=dtype_of(net)):
            loss = loss_of(logits_of(net, x, config), rows, x, y)
            update(optimizer, loss)
            total += loss.detach()
            steps += 1
        return finite(total, steps, where)

    return one_pass


def teacher(net: nn.Module, data: Data, config: Config, index: torch.Tensor | None = None):
    """A function (rows, x) -> logits (B, classes) of a frozen copy in eval mode.

    Without augmentation the answers never change: then they are computed once, for the examples of `index` (None: all).
    """
    frozen = copy.deepcopy(net).requires_grad_(False).eval()

    @torch.no_grad()
    def answer(rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return logits_of(frozen, x, config)

    if data.pad or data.flip:
        return answer
    seen = [(rows, answer(rows, x)) for rows, x, _ in batches(data, index, dtype=dtype_of(frozen))]
    rows, logits = (torch.cat(part) for part in zip(*seen, strict=True))
    known = logits.new_zeros((len(data), logits.shape[1])).index_copy_(0, rows.to(logits.device), logits)
    return lambda rows, x: known[rows.to(known.device, non_blocking=True)]


def logits_of(net: nn.Module, x: torch.Tensor, config: Config) -> torch.Tensor:
    """(B, classes) logits in float32 at least, run in the settings' precision."""
    with autocast(config, x.device):
        logits = net(x)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def dtype_of(net: nn.Module) -> torch.dtype:
    """The dtype of a network's weights, which its images must have."""
    return next(net.parameters()).dtype


def retain_set(forget: torch.Tensor, n: int) -> torch.Tensor:
    """D_r, the (n - k,) sorted indices of D_tr that are not in D_f; ValueError for a D_f that makes no sense."""
    return torch.ones(n, dtype=torch.bool).index_fill_(0, check_forget(forget, n), False).nonzero().flatten()


def fresh(model: nn.Module, config: Config) -> nn.Module:
    """The network's architecture with weights drawn anew from the settings' seed (see models.reinitialise)."""
    return reinitialise(model, stream(config.seed, "fresh weights").initial_seed())


def hand_back(source: nn.Module, net: nn.Module) -> nn.Module:
    """Give each module of `net` the training flag of its twin in `source`, let go of gradients, and return it.

    Raises:
        NonFiniteLoss: a weight or statistic is not a finite number, because the last update ruined it.
    """
    for a, b in zip(source.modules(), net.modules(), strict=True):
        b.training = a.training
    net.zero_grad(set_to_none=True)
    for name, value in net.state_dict().items():
        if not value.isfinite().all():
            raise NonFiniteLoss(f"{name} is not finite any more after the last update; lower the rate")
    return net
