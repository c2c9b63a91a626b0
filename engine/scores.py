"""Cross-entropy and accuracy of the network that Algorithm 1 carries, and of the frozen reference of Eq. 2."""

import torch
from torch.nn import functional as F

from engine.batches import batches_of, per_example
from engine.checks import NonFiniteLoss
from engine.modes import copy_of, eval_mode
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

    def right_and_finite(i, x, y):
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


class Reference:
    """Cross-entropies under a frozen copy in eval mode; asked for by dataset index where no augmentation moves them."""

    def __init__(self, expanded, masks, precision: str):
        """Args: expanded: what step 1 made; masks: MaskTable of N rows on the device; precision: as in logits_of."""
        self.net = copy_of(expanded).requires_grad_(False).eval()
        self.masks = masks
        self.precision = precision
        self.known = None  # (2, N): CE_ref full and base, by dataset index; None where augmentation changes the images

    def full(self, index: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """(B,) CE_ref of theta_o1 and theta_o2 under each example's mask; index: (B,) int64 on the CPU."""
        index = index.to(x.device, non_blocking=True)
        return self.ce(x, y, self.masks[index]) if self.known is None else self.known[0, index]

    def base(self, index: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """(B,) CE_ref of theta_o1 alone."""
        return self.ce(x, y) if self.known is None else self.known[1, index.to(x.device, non_blocking=True)]

    @torch.no_grad()
    def ce(self, x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B,) cross-entropies in float32 at least."""
        return F.cross_entropy(logits_of(self.net, x, self.precision, mask), y, reduction="none")

    def remember(self, s) -> None:
        """Compute both for all examples now, where no augmentation moves them; s: Algorithm 1's state."""
        if self.known is not None or getattr(s.data, "augments", True):
            return

        def full_and_base(index, x, y):
            return torch.stack([self.full(index, x, y), self.base(index, x, y)], dim=1)  # (B, 2)

        self.known = per_example(batches_of(s, None, augment=False), full_and_base, len(s.data)).T
