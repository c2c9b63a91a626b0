"""One update, and one pass of updates.

    with one_pass(state, "step 3 of epoch 1") as update:
        for index, x, y in batches_of(state, None):
            update(loss)                # one step down the loss
    update.mean, update.steps           # NonFiniteLoss at the end of the block unless the mean is a finite number
"""

import contextlib

import torch
from torch import nn

from engine.checks import finite
from engine.streams import forked_rng


def logits_of(net: nn.Module, x: torch.Tensor, precision: str, mask: torch.Tensor | None = None) -> torch.Tensor:
    """(B, classes) logits in float32 at least, computed in "bf16", "float32" or with "auto" in bf16 on GPUs alone."""
    bf16 = precision == "bf16" or (precision == "auto" and x.device.type == "cuda")
    # without a cache: it would outlive an update where the caller's autocast is on
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16 and x.dtype != torch.float16, cache_enabled=False):
        logits = net(x) if mask is None else net(x, mask)
    return check_logits(logits, x).to(torch.promote_types(logits.dtype, torch.float32))


def check_logits(logits, x: torch.Tensor) -> torch.Tensor:
    """The logits themselves, if they are (B, classes) of B inputs; else a TypeError or ValueError."""
    if not isinstance(logits, torch.Tensor):
        raise TypeError(f"the network gives a {type(logits).__name__}, not logits; switch auxiliary heads off")
    if logits.dim() != 2 or len(logits) != len(x):
        raise ValueError(f"the network gives {tuple(logits.shape)} for {len(x)} inputs; logits must be "
                         f"({len(x)}, classes)")
    return logits


def make_optimizer(model: nn.Module, config, lr: float) -> torch.optim.Optimizer:
    """SGD (Table 3) with momentum and weight decay, or Adam without, over every trainable parameter, each once.

    Raises: ValueError where no parameter is trainable, or of an Expanded's theta_o1 none.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    own = model.theta_o1() if hasattr(model, "theta_o1") else parameters
    if not any(p.requires_grad for p in own):
        raise ValueError("every parameter of the network is frozen; set requires_grad where it may change")
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=lr, foreach=True)
    return torch.optim.SGD(parameters, lr=lr, momentum=config.momentum, weight_decay=config.weight_decay, foreach=True)


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> torch.Tensor:
    """One step down `loss`, which comes back without its graph; parameters that no gradient reaches stay."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


class Pass:
    """The updates of one pass: their number, their mean loss, and which parameters a gradient has reached."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device, must_reach: dict[str, nn.Parameter]):
        self.optimizer = optimizer
        self.total = torch.zeros((), device=device)  # looked at once, at the end
        self.steps = 0
        self.mean = None  # at the end of the pass
        self.waiting = {name: p for name, p in must_reach.items() if p.requires_grad and p.numel()}

    def __call__(self, loss: torch.Tensor) -> None:
        """One step down `loss`, the scalar of a batch."""
        self.total += descend(self.optimizer, loss)
        self.steps += 1
        if self.waiting:
            self.waiting = {name: p for name, p in self.waiting.items() if p.grad is None}


@contextlib.contextmanager
def one_pass(s, where: str, must_reach: dict[str, nn.Parameter] | None = None,
             optimizer: torch.optim.Optimizer | None = None):
    """One pass of updates of Algorithm 1's state, dropout drawn from its generator: yields a `Pass`.

    Args: where: names a loss that is not finite; must_reach: parameters, by name, that a gradient must reach, unless
        they are frozen; optimizer: None: the state's.
    The mean loss goes into the state's record. Raises: NonFiniteLoss; TypeError for a parameter that no gradient has
    reached, such as one of a block that the network skips in training.
    """
    update = Pass(optimizer or s.optimizer, s.device, must_reach or {})
    with forked_rng(s.generator, s.device):
        yield update
    if update.waiting and update.steps:
        name = min(update.waiting).rpartition(".")[0]
        raise TypeError(f"cannot redirect through {name!r}: in training no gradient reaches its theta_o2")
    s.record["loss"] = update.mean = finite(update.total, update.steps, where)


def report(log, s) -> None:
    """Tell `log`, if there is one, of the epoch that has just run: log(epoch, epochs, model, **record)."""
    if log is not None:
        log(s.epoch, s.config.unlearn_epochs, s.expanded, **s.record)
