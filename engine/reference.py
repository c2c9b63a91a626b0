"""The reference of Eq. 2: the network as step 1 made it, frozen, and the cross-entropies that it gives."""

import torch
from torch.nn import functional as F

from engine.batches import batches_of, per_example
from engine.modes import copy_of
from engine.updates import logits_of


class Reference:
    """Cross-entropies under a frozen copy in eval mode; asked for by dataset index where no augmentation moves them."""

    def __init__(self, expanded, masks, precision: str):
        """Args: expanded: what step 1 made; masks: MaskTable of N rows on the device; precision: as in logits_of."""
        self.net = copy_of(expanded).requires_grad_(False).eval()
        self.masks = masks
        self.precision = precision
        self.known = None  # (2, N): CE_ref full and base, by dataset index; None where augmentation changes the images

    def full(self, rows: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """(B,) CE_ref of theta_o1 and theta_o2 under each example's mask; rows: (B,) int64 on the CPU."""
        rows = rows.to(x.device, non_blocking=True)
        return self.ce(x, y, self.masks[rows]) if self.known is None else self.known[0, rows]

    def base(self, rows: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """(B,) CE_ref of theta_o1 alone."""
        return self.ce(x, y) if self.known is None else self.known[1, rows.to(x.device, non_blocking=True)]

    @torch.no_grad()
    def ce(self, x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B,) cross-entropies in float32 at least."""
        return F.cross_entropy(logits_of(self.net, x, self.precision, mask), y, reduction="none")

    def remember(self, s) -> None:
        """Compute both for all examples now, where no augmentation moves them; s: Algorithm 1's state."""
        if self.known is not None or getattr(s.data, "augments", True):
            return

        def full_and_base(rows, x, y):
            return torch.stack([self.full(rows, x, y), self.base(rows, x, y)], dim=1)  # (B, 2)

        self.known = per_example(batches_of(s, None, augment=False), full_and_base, len(s.data)).T
