"""How far weights have moved from where they were, and further along that line."""

import torch


def copies(parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    """The parameters as they are now."""
    return [p.detach().clone() for p in parameters]


@torch.no_grad()
def moved(parameters: list[torch.Tensor], begin: list[torch.Tensor]) -> float:
    """||theta - theta_begin|| / ||theta_begin||, all parameters taken as one vector; 0 of none."""
    if not begin:
        return 0.0
    line = torch.stack([(p - b).norm() for p, b in zip(parameters, begin, strict=True)]).norm()
    whole = torch.stack([b.norm() for b in begin]).norm()
    return float(line / whole)


@torch.no_grad()
def carry_on(parameters: list[torch.Tensor], begin: list[torch.Tensor], reach: float) -> None:
    """Go on along theta - theta_begin until that is `reach` times as long as theta_begin; weights that are there stay."""
    far = moved(parameters, begin)
    if 0 < far < reach:
        for p, b in zip(parameters, begin, strict=True):
            p.copy_(b + (p - b) * (reach / far))
