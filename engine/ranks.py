"""Several processes of one run (torch.distributed): who this one is, and sums over all of them."""

import torch
from torch import distributed as dist


def ranks() -> tuple[int, int]:
    """Rank of this process and number of processes of the run, (0, 1) without torch.distributed."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def over_ranks(values: list[torch.Tensor], weight: float | None = None) -> None:
    """Sum tensors over the processes of the run, in place; with `weight` take their weighted means."""
    if ranks()[1] > 1:
        flat = torch.cat([*(value.flatten() for value in values), values[0].new_ones(1)])
        flat = flat if weight is None else flat * weight
        dist.all_reduce(flat)
        parts = (flat if weight is None else flat / flat[-1]).split([*(value.numel() for value in values), 1])
        for value, part in zip(values, parts, strict=False):
            value.copy_(part.view_as(value))
