"""Training and evaluation mode, copies, and the running statistics of BatchNorm."""

import contextlib
import copy

import torch
from torch import nn

from engine.batches import without_lone_last

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


def copy_of(net: nn.Module) -> nn.Module:
    """A deep copy; torch cannot copy a tensor with its autograd graph, which some networks keep: it is detached.

    Raises: TypeError for a network that cannot be copied.
    """
    kept = [value for module in net.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    try:
        return copy.deepcopy(net, {id(value): value.detach() for value in kept if not value.is_leaf})
    except (RuntimeError, TypeError) as error:  # a graph in a list, a lock, an open file
        raise TypeError(f"cannot copy the network {type(net).__name__}: {error}; clear what it keeps of its passes, "
                        "and what is no tensor and no number") from error


@contextlib.contextmanager
def eval_mode(model: nn.Module):
    """Put a network in eval mode and, at the end of the block, each of its modules back in the mode it had."""
    modes = modes_of(model)
    model.eval()
    try:
        yield model
    finally:
        put_modes(model, modes)


def modes_of(net: nn.Module) -> list[bool]:
    """The training flag of each module, in the order of net.modules()."""
    return [module.training for module in net.modules()]


def put_modes(net: nn.Module, modes: list[bool]) -> nn.Module:
    """Give each module the training flag that `modes_of` noted; returns the network."""
    for module, training in zip(net.modules(), modes, strict=True):
        module.training = training
    return net


def training_mode(net: nn.Module, modes: list[bool]) -> None:
    """Put a network in training mode, all but the BatchNorms that its user froze; modes: as the network came."""
    frozen = frozen_norms(net, modes)
    net.train()
    for norm in frozen:
        norm.eval()


def mode_over_forget(s, training: bool) -> None:
    """Put the network of Algorithm 1's state in the mode in which it passes over D_f alone.

    That is training mode if `training` and D_f has more than one example (one has no batch statistics), else eval mode.
    """
    if training and len(s.forget) > 1:
        training_mode(s.expanded, s.modes)
    else:
        s.expanded.eval()


def frozen_norms(net: nn.Module, modes: list[bool]) -> list[nn.Module]:
    """The BatchNorms whose running statistics must stay, because the network's user froze them.

    A user freezes one by putting it in eval mode in a network that trains, by taking requires_grad from all of its
    parameters, or by a train() of the network's own that leaves it in eval mode. modes: as the network came.
    """
    now = modes_of(net)
    stays = [not training for training in modes_of(net.train())]
    put_modes(net, now)
    found = []
    for module, training, in_eval in zip(net.modules(), modes, stays, strict=True):
        if isinstance(module, NORMS):
            own = list(module.parameters(recurse=False))
            no_gradient = bool(own) and not any(p.requires_grad for p in own)
            if no_gradient or in_eval or (modes[0] and not training):
                found.append(module)
    return found


def refresh_batchnorm(model: nn.Module, data, size: int = 512, modes: list[bool] | None = None,
                      index: torch.Tensor | None = None) -> None:
    """Recompute base running statistics, in place, from base-only passes over the training images; no label is read.

    Training with masks alone never moves them, and an epoch of few steps leaves them behind the weights. So ETD
    training ends with it, and so does every epoch of Algorithm 1, whatever ends the loop: step 2's Acc(D_f), the end
    and the user then see the same network.
    Choice: means over the images of one shuffled pass, whose order is always the same, augmented as in training.
    Args: model: plain or Expanded; data: D_tr, see batches.py; size: of a batch; modes: as the network came, None: as
        it is; frozen BatchNorms keep their statistics (`frozen_norms`); index: (k,) int64 images to pass over, some of
        them more than once, None: all of them once.
    """
    frozen = set(frozen_norms(model, modes_of(model) if modes is None else modes))
    norms = [m for m in model.modules() if isinstance(m, NORMS) and m.running_mean is not None and m not in frozen]
    if not norms:
        return
    seen, weight = dict.fromkeys(norms, 0), next(model.parameters())

    def count(norm, args):  # the mean over images: a short last batch counts for what it holds
        if not seen[norm]:
            norm.reset_running_stats()
        seen[norm] += len(args[0])
        norm.training = True
        norm.momentum = len(args[0]) / seen[norm]

    with contextlib.ExitStack() as after, eval_mode(model), torch.no_grad():
        for norm in norms:
            after.callback(setattr, norm, "momentum", norm.momentum)
            after.enter_context(norm.register_forward_pre_hook(count))
        order = torch.Generator().manual_seed(0)
        given = data.batches(index, size=size, generator=order, augment=True, dtype=weight.dtype)
        for _, x, _ in without_lone_last(given, len(data) if index is None else len(index)):
            model(x.to(weight.device))
