"""Cross-entropy and accuracy of the network that Algorithm 1 carries."""

import torch
from torch.nn import functional as F

from engine.batches import batches_of
from engine.checks import NonFiniteLoss
from engine.modes import eval_mode
from engine.ranks import over_ranks
from engine.updates import logits_of


def cross_entropy(s, x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """(B,) cross-entropy of each example in float32 at least; of theta_o1 alone without a mask, (B, width) bool."""
    logits = logits_of(s.expanded, x, s.config.precision, mask)  # (B, classes)
    return F.cross_entropy(logits, y, reduction="none")


@torch.no_grad()
def accuracy_of(s, index: torch.Tensor) -> float:
    """Accuracy on the examples of `index`, a fraction: theta_o1 alone, labels as given, eval mode, no augmentation."""
    counts = torch.zeros(3, dtype=torch.int64, device=s.device)  # looked at once, at the end
    with eval_mode(s.expanded):
        for _, x, y in batches_of(s, index, augment=False, size=min(1024, 4 * s.config.batch)):
            logits = s.expanded(x)  # (B, classes)
            counts[:2] += torch.stack([(logits.argmax(dim=1) == y).sum(), (~logits.isfinite()).sum()])
            counts[2] += len(y)
    over_ranks([counts])  # each rank may give its share or all examples
    hits, odd, number = counts.tolist()
    if odd:
        raise NonFiniteLoss(f"{odd} logits are not finite; lower the rate, or if no update was made look at the inputs")
    return hits / number
