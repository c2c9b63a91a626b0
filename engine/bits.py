"""A table of bits, eight to a byte: every example's mask. 1.28 million rows of 512 bits take 82 MB."""

from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

BLOCK = 2**20  # bits that are in memory unpacked at a time while a table is filled


@dataclass(frozen=True, eq=False)
class MaskTable:
    """Rows of bits; table[rows] is (..., width) bool, for all `rows` that a tensor takes."""

    packed: torch.Tensor  # (N, ceil(width / 8)) uint8, the lowest bit first
    width: int

    def __getitem__(self, rows) -> torch.Tensor:
        places = torch.arange(8, dtype=torch.uint8, device=self.packed.device)
        bits = self.packed[rows][..., None] >> places & 1  # (..., ceil(width / 8), 8)
        return bits.flatten(-2)[..., : self.width].bool()

    def to(self, device) -> "MaskTable":
        """The same table on a device."""
        return replace(self, packed=self.packed.to(device))


def draw_bits(n: int, width: int, draw) -> MaskTable:
    """A table of n rows on the CPU; draw(rows) gives the bits of the next `rows` rows, (rows, width) bool."""
    columns = -(-width // 8)
    packed = torch.zeros((n, columns), dtype=torch.uint8, device="cpu")
    places = torch.arange(8, dtype=torch.uint8, device="cpu")
    for block in packed.split(max(1, BLOCK // max(1, width))):
        bits = F.pad(draw(len(block)), (0, 8 * columns - width))  # (rows, 8 columns)
        block |= (bits.view(len(block), columns, 8).to(torch.uint8) << places).sum(dim=2, dtype=torch.uint8)
    return MaskTable(packed, width)
