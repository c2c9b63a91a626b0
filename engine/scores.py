"""Cross-entropy and accuracy of the network that Algorithm 1 carries."""

import torch
from torch.nn import functional as F

from engine.batches import batches_of, trusted
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


@torch.no_grad()
def believed(s, index: torch.Tensor | None) -> torch.Tensor | None:
    """The examples of `index`, or of D_tr, without those of D_r whose label as given theta_o1 disbelieves, and which
    nobody has looked at.

    Choice: after an epoch an image of D_r is a suspect where CE of its label is above `disbelieved`; from epoch 2 on
    step 3 leaves it out, so that it cannot teach theta_o1 what step 2 has removed. It is looked at before step 2: after
    a removal whole classes are disbelieved. In epoch 1, or where `disbelieved` is 0, none is left out, and none either
    where more than half of D_r would be: then it is the network that is wrong.
    """
    if s.epoch < 2 or not s.config.disbelieved:
        return index
    suspect = torch.zeros(len(s.data), device=s.device)
    with eval_mode(s.expanded):
        for rows, x, y in batches_of(s, None, augment=False):
            suspect[rows.to(s.device)] = (cross_entropy(s, x, y) > s.config.disbelieved).to(suspect)
    over_ranks([suspect])  # each process has seen its share
    doubtful = ~s.in_forget & ~trusted(s.data)
    suspect = (suspect.cpu() > 0) & doubtful
    if 2 * int(suspect.sum()) > int(doubtful.sum()):
        return index
    index = torch.arange(len(s.data), device="cpu") if index is None else index
    return index[~suspect[index]]
