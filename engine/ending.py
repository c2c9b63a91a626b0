"""When Algorithm 1 ends, and which epoch it returns: one object, made from the state and asked after each epoch.

    end = until(state)                    # Never or Repaired
    while epochs are left and not end.reached:
        ...                               # steps 2 and 3, the latter on end.trained_on
        end.look(state)
    state.expanded = end.best(state)      # what step 4 drops theta_o2 from
"""

import torch

from engine.scores import accuracy_of
from engine.streams import stream

HELD_OUT = 0.05  # share of D_r that step 3 leaves out for `Repaired`


class Never:
    """Algorithm 1 as printed: all of its epochs run, on all of D_tr, and the last one's network is returned."""

    reached = False
    trained_on = None  # all of D_tr

    def __init__(self, s):
        pass

    def look(self, s) -> None:
        """Nothing is looked at."""

    def best(self, s):
        """The network after the last epoch."""
        return s.expanded

    def state_dict(self) -> dict:
        """What the next epoch depends on: nothing."""
        return {}

    def load_state_dict(self, content: dict) -> None:
        """Nothing is kept."""


class Repaired:
    """End when the repair is done, and return the best epoch.

    Choice: step 3 is there to restore utility. Once it has, further epochs cost healing.
    An epoch's score is Acc(W) (1 - max(Acc(D_f), gamma)): theta_o1 alone, labels as given, W being a twentieth of D_r
    that step 3 leaves out. The first epoch that does not beat the best score so far by a standard error is the last.
    While nothing is forgotten every score is 0: then the loop goes on, and the last epoch counts as the best. At gamma
    1 nothing is to be forgotten, so there the score is Acc(W). Of ten examples of D_r or fewer none is left out: then
    all epochs run and the last is returned, as by `Never`.
    """

    def __init__(self, s):
        retain = (~s.in_forget).nonzero().flatten()
        few = round(HELD_OUT * len(retain))
        order = torch.randperm(len(retain), generator=stream(s.config.seed, "watched"))
        self.held_out = retain[order[:few]].sort().values if few else None  # W, (w,) int64
        self.trained_on = torch.cat([s.forget, retain[order[few:]]]).sort().values if few else None
        self.reached = False
        self.score = -1.0  # of the best epoch so far
        self.kept = None  # its weights and statistics, see `snapshot`

    def look(self, s) -> None:
        """Judge the epoch that has just run; adds acc_forget_end, acc_held_out and score to its record."""
        if self.held_out is None:
            return
        acc, forgotten = accuracy_of(s, self.held_out), accuracy_of(s, s.forget)
        kept = 1 - max(forgotten, s.config.gamma) if s.config.gamma < 1 else 1.0
        score, error = acc * kept, (acc * (1 - acc) / len(self.held_out)) ** 0.5 * kept
        self.reached = 0 < self.score and score <= self.score + error
        if score > self.score or score == self.score == 0:
            self.kept, self.score = snapshot(s.expanded), score
        s.record |= {"acc_forget_end": forgotten, "acc_held_out": acc, "score": score}

    def best(self, s):
        """The network after the best epoch, in place of that after the last."""
        if self.kept is not None:
            put_back(s.expanded, self.kept)
        return s.expanded

    def state_dict(self) -> dict:
        """What the next epoch depends on."""
        return {"reached": self.reached, "score": self.score, "kept": self.kept}

    def load_state_dict(self, content: dict) -> None:
        """Go on from what `state_dict` gave."""
        self.reached, self.score, self.kept = content["reached"], content["score"], content["kept"]


def snapshot(net) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer by name, those that a state dict leaves out too."""
    return {name: value.detach().clone() for name, value in [*net.named_parameters(), *net.named_buffers()]}


@torch.no_grad()
def put_back(net, kept: dict[str, torch.Tensor]) -> None:
    """Write what `snapshot` copied into the network again."""
    for name, value in [*net.named_parameters(), *net.named_buffers()]:
        value.copy_(kept[name])
