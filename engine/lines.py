"""How far weights have moved from where they were, further along that line, and so how far a removal goes."""

import torch


class Line:
    """How far one step 2 takes theta_o1: its strength is chosen, in place of what momentum makes of it inside step 3.

    Choice: at gamma the known images are forgotten, but what they share is not; distance in weight space takes that
    out. The first step 2 goes on along its line until theta_o1 is `reach` of its norm away; a later one ends at gamma,
    and no pass begins that far out. The optimiser then forgets its state, so that no momentum of step 2 runs on into
    step 3. With reach 0 nothing of this happens: Algorithm 1 as printed, its momentum carried over.
    """

    def __init__(self, s, reach: float):
        """Args: s: Algorithm 1's state as step 2 begins; reach: >= 0, over the norm of theta_o1."""
        self.s, self.reach = s, reach
        self.theta_o1 = s.expanded.theta_o1()
        self.begin = copies(self.theta_o1) if reach else []

    def ended(self) -> bool:
        """Whether theta_o1 is `reach` away, so that no further pass begins."""
        return 0 < self.reach <= moved(self.theta_o1, self.begin)

    def went_on(self, passes: int) -> bool:
        """After `passes` passes over D_f go on along the line; returns whether theta_o1 may have moved."""
        if not self.reach or not passes:
            return False
        self.s.optimizer.state.clear()
        if self.s.epoch == 1:
            carry_on(self.theta_o1, self.begin, self.reach)
        return self.s.epoch == 1


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
    """Go on along theta - theta_begin until it is `reach` times as long as theta_begin; weights that are there stay."""
    # theta <- theta_begin + reach ||theta_begin|| d / ||d||,  d = theta - theta_begin
    far = moved(parameters, begin)
    if 0 < far < reach:
        for p, b in zip(parameters, begin, strict=True):
            p.copy_(b + (p - b) * (reach / far))
