"""Which labels of D_r theta_o1 believes, so that step 3 may teach them."""

import torch

from engine.batches import batches_of, trusted
from engine.modes import eval_mode
from engine.ranks import over_ranks
from engine.scores import cross_entropy


@torch.no_grad()
def believed(s, index: torch.Tensor | None) -> torch.Tensor | None:
    """The examples of `index`, or of D_tr, without the suspects, images of D_r whose label theta_o1 disbelieves.

    Choice: after an epoch an image of D_r is a suspect where CE of its label is above `disbelieved`; from epoch 2 on
    step 3 leaves it out, so that it cannot teach theta_o1 what step 2 has removed. It is looked at before step 2: after
    a removal whole classes are disbelieved. What somebody has looked at (`trusted`) is no suspect. In epoch 1, or where
    `disbelieved` is 0, none is left out, and none either where more than half of D_r would be: then it is the network
    that is wrong.
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
