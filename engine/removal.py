"""How far step 2 moves theta_o1: updates of one length, and the way on along their line."""

import torch

from engine.batches import count_batches

STEP = 0.0025  # length of an update of step 2 with `reach`, over the norm of theta_o1
FEWEST = 4  # passes that such updates take to `reach` at least
FAINT = 1e-15  # norm of a gradient below which squares of its entries are lost in float32


class Removal:
    """How far one step 2 takes theta_o1, and by which steps: its strength is chosen, whatever rate and momentum are.

    Choice: at gamma the known images are forgotten, but what they share is not; distance in weight space takes that
    out. So the first step 2 goes on along its line until theta_o1 is `reach` of its norm away; a later step 2 ends at
    gamma. In neither does a pass begin once theta_o1 is `reach` away. Where little of D_f was learnt there is little to
    take out, and going as far does harm (results/tuning): below Acc(D_f) = 2 gamma it goes on by the share
    Acc(D_f) / gamma - 1 of `reach` alone.
    Its updates have one length, STEP, and no momentum: where the network is sure of D_f the gradient is next to
    nothing, and a hundred updates at the rate of step 3 move nothing; where it is not, the first such update goes so
    far that of two confused classes one swallows the other, and there its gradient is nothing too. The optimiser of
    step 3 begins anew after it. Acc(D_f) and the distance are looked at between passes; so that a pass over a D_f of
    many batches does not go far beyond, updates are shorter there, and a pass is a quarter of `reach` long at most.
    With reach 0 nothing of this happens: Algorithm 1 as printed, one optimiser for both steps, momentum carried over.
    """

    def __init__(self, s, reach: float, acc_forget: float):
        """Args: s: Algorithm 1's state as step 2 begins; reach: >= 0, over the norm of theta_o1; acc_forget: Acc(D_f),
        a fraction."""
        gamma = s.config.gamma
        self.s, self.reach = s, reach
        # goal = reach min(1, (Acc(D_f) - gamma) / gamma)
        part = min(1.0, (acc_forget - gamma) / gamma) if gamma else 1.0
        self.goal = reach * part
        self.theta_o1 = [p for p in s.expanded.theta_o1() if p.requires_grad]
        self.theta_begin = copies(self.theta_o1) if reach else []
        # length = min(STEP, reach / (FEWEST updates of a pass))
        length = min(STEP, reach / (FEWEST * count_batches(len(s.forget), s.config.batch)))
        self.optimizer = steps_of(self.theta_o1, length) if reach else s.optimizer  # of the passes over D_f

    def far_enough(self) -> bool:
        """Whether theta_o1 is `reach` away, so that no further pass begins."""
        return 0 < self.reach <= moved(self.theta_o1, self.theta_begin)

    def carry_on(self, passes: int) -> bool:
        """After `passes` passes over D_f let step 3's optimiser begin anew and, in the first epoch, go on along the
        line; returns whether theta_o1 may have moved."""
        if not self.reach or not passes:
            return False
        self.s.optimizer.state.clear()
        if self.s.epoch == 1:
            move_along(self.theta_o1, self.theta_begin, self.goal)
        return self.s.epoch == 1


def steps_of(parameters: list[torch.Tensor], length: float) -> torch.optim.Optimizer:
    """An optimiser whose updates go down the gradient and are `length` times as long as the parameters are now."""
    # theta <- theta - length ||theta_begin|| g / ||g||; a gradient of 0 moves nothing
    whole = length * norm_of(parameters)
    optimizer = torch.optim.SGD(parameters, lr=1.0, foreach=True)

    @torch.no_grad()
    def scale(*_) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        # a network whose logits lead by 70 has gradients of 1e-28, whose squares are 0: they are brought near 1 first
        largest = torch.stack([gradient.abs().max() for gradient in gradients]).max().float()
        near_1 = torch.where((norm_of(gradients) < FAINT) & (largest > 0), 1 / largest.clamp(min=1e-38), 1)
        for gradient in gradients:
            gradient.mul_(near_1)
        norm = norm_of(gradients)
        factor = torch.where(norm > 0, whole / norm, 0)
        for gradient in gradients:
            gradient.mul_(factor)

    optimizer.register_step_pre_hook(scale)
    return optimizer


@torch.no_grad()
def norm_of(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The norm of all entries, taken as one vector."""
    return torch.stack([t.norm() for t in tensors]).norm()


def copies(parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    """The parameters as they are now."""
    return [p.detach().clone() for p in parameters]


@torch.no_grad()
def moved(parameters: list[torch.Tensor], begin: list[torch.Tensor]) -> float:
    """||theta - theta_begin|| / ||theta_begin||, all parameters taken as one vector; 0 of none."""
    if not begin:
        return 0.0
    line = norm_of([p - b for p, b in zip(parameters, begin, strict=True)])
    return float(line / norm_of(begin))


@torch.no_grad()
def move_along(parameters: list[torch.Tensor], begin: list[torch.Tensor], reach: float) -> None:
    """Go on along theta - theta_begin until it is `reach` times as long as theta_begin; weights that are there stay."""
    # theta <- theta_begin + reach ||theta_begin|| d / ||d||,  d = theta - theta_begin
    far = moved(parameters, begin)
    if 0 < far < reach:
        for p, b in zip(parameters, begin, strict=True):
            p.copy_(b + (p - b) * (reach / far))
