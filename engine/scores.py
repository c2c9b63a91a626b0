"""Cross-entropy and accuracy of the network that Algorithm 1 carries."""

import torch
from torch.nn import functional as F

from engine.batches import batches_of
from engine.checks import NonFiniteLoss
from engine.modes import eval_mode
from engine.ranks import over_ranks
from engine.updates import check_logits, logits_of


def cross_entropy(s, x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """(B,) cross-entropy of each example in float32 at least; of theta_o1 alone without a mask, (B, width) bool."""
    logits = logits_of(s.expanded, x, s.config.precision, mask)  # (B, classes)
    return F.cross_entropy(logits, y, reduction="none")


def accuracy_of(s, index: torch.Tensor, net: torch.nn.Module | None = None) -> float:
    """Accuracy on some examples, a fraction; arguments and errors as of `right_on`."""
    return float(right_on(s, index, net).double().mean())


@torch.no_grad()
def right_on(s, index: torch.Tensor, net: torch.nn.Module | None = None) -> torch.Tensor:
    """Which of some examples get their label as given: eval mode, no augmentation.

    Args: s: Algorithm 1's state; index: (k,) int64 dataset indices; net: None: theta_o1 alone.
    Returns: (k,) bool on the CPU. Raises: NonFiniteLoss: a logit is not finite.
    """
    net = s.expanded if net is None else net
    right = torch.zeros(len(s.data), device=s.device)
    odd = torch.zeros((), dtype=torch.int64, device=s.device)  # looked at once, at the end
    with eval_mode(net):
        for rows, x, y in batches_of(s, index, augment=False, size=min(1024, 4 * s.config.batch)):
            logits = check_logits(net(x), x)  # (B, classes)
            right[rows.to(s.device)] = (logits.argmax(dim=1) == y).to(right)
            odd += (~logits.isfinite()).sum()
    over_ranks([right, odd])  # each process has seen its share, or all
    if odd:
        raise NonFiniteLoss(f"{odd} logits are not finite; lower the rate, or if no update was made look at the inputs")
    return right.cpu()[index.cpu()] > 0
