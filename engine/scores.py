"""Cross-entropy and accuracy of the network that Algorithm 1 carries."""

import torch
from torch.nn import functional as F

from engine.batches import batches_of, per_example
from engine.checks import NonFiniteLoss
from engine.modes import eval_mode
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

    def right_and_finite(rows, x, y):
        logits = check_logits(net(x), x)  # (B, classes)
        return torch.stack([logits.argmax(dim=1) == y, logits.isfinite().all(dim=1)], dim=1)  # (B, 2)

    with eval_mode(net):
        batches = batches_of(s, index, augment=False, size=min(1024, 4 * s.config.batch))
        right, is_finite = per_example(batches, right_and_finite, len(s.data)).cpu()[index.cpu()].T
    if not is_finite.all():
        odd = int((~is_finite).sum())
        raise NonFiniteLoss(f"logits of {odd} examples are not finite; lower the rate, or if no update was made look "
                            "at the inputs")
    return right
