"""When Algorithm 1 ends, and which epoch it returns: one object, made from the state and asked after each epoch.

    end = until(state)                    # Never or Repaired
    while epochs are left and not end.reached:
        ...                               # steps 2 and 3, the latter on end.trained_on
        end.look(state)
        if end.starts_over(state):        # after the first epoch
            continue
    state.expanded = end.best(state)      # what step 4 drops theta_o2 from
"""

import warnings
from dataclasses import replace

import torch

from engine.batches import among, trusted
from engine.scores import accuracy_of, right_on
from engine.streams import stream

HELD_OUT = 0.05  # share of D_r that step 3 leaves out for `Repaired`, W
LEAST, MOST = 100, 0.25  # images of W at least, unless that is more than this share of D_r
PATIENCE = 2  # epochs in a row that are no better than the best, and the loop ends
BOUND = 0.1  # what Acc(W) may lose before `Repaired` warns
BY_HEART = 0.96  # Acc(W) above which theta_o1 still knows by heart what step 3 has not taught it
REACH_FACTOR = 2  # by which `reach` grows where Algorithm 1 starts over for that
FEWEST = 10  # examples of D_r of which none is left out for W
KEPT = ("kept", "right", "acc", "forgotten", "waited")  # what `Repaired` carries from epoch to epoch


class Never:
    """The printed loop: all of its epochs run, nothing of D_tr is held out, and the last one's network is returned."""

    reached = False
    trained_on = None  # all of D_tr

    def __init__(self, s):
        pass

    def look(self, s) -> None:
        """Nothing is looked at."""

    def starts_over(self, s) -> bool:
        """No: `reach` is taken as it is."""
        return False

    def best(self, s):
        """The network after the last epoch."""
        return s.expanded

    def state_dict(self) -> dict:
        """What the next epoch depends on: nothing."""
        return {}

    def load_state_dict(self, content: dict) -> None:
        """Nothing is kept."""


class Repaired:
    """End when the repair is done, and return the latest epoch that is level with the best.

    Choice: step 3 is there to restore utility. Once it has, further epochs cost healing.
    An epoch counts from Acc(D_f) <= gamma on, measured after step 3. The best is the first of those that get most of W
    right, the images of D_r that step 3 leaves out; after PATIENCE epochs in a row that get no more of the same images
    right than the best the loop ends.
    What comes back is the latest epoch that is level with the best: it gets no fewer of W right, within the paired
    standard error, the root of the images that only one of the two gets right. For W flatters early epochs: theta_o1
    was trained on W once, and forgets that from epoch to epoch while it gets better at new images (on a copy of
    CIFAR-10 Acc(W) is 0.793, 0.786 and 0.790 after epochs 1 to 3, and on test images 0.746, 0.751 and 0.753;
    results/tuning).
    Where no epoch counts, all epochs run, and the one after which Acc(D_f) is lowest is returned, with a warning. A
    warning comes, too, where Acc(W) of the returned epoch is more than BOUND below the untouched network's: that one
    was trained on W, and so is better there than on new images; repaired networks that are as good on test images lose
    0.03 to 0.1 (results/tuning).
    All of it is of theta_o1 alone and labels as given. Of FEWEST examples of D_r or fewer none is left out: then all
    epochs run and the last is returned, as by `Never`.
    """

    def __init__(self, s):
        retain = (~s.in_forget & ~trusted(s.data)).nonzero().flatten()
        self.held_out = self.trained_on = self.untouched = None  # W, (w,) int64; all but W; Acc(W) before the repair
        if len(retain) > FEWEST:
            least = min(LEAST, int(MOST * len(retain)))
            size = max(round(HELD_OUT * len(retain)), least)
            order = torch.randperm(len(retain), generator=stream(s.config.seed, "watched"))
            self.held_out = retain[order[:size]].sort().values
            held = among(self.held_out, len(s.data))
            self.trained_on = (~held).nonzero().flatten()
            self.untouched = accuracy_of(s, self.held_out, s.reference.net)
        self.began = s.generator.get_state()
        self.restarts_left = s.config.farther
        self.clear()

    def clear(self) -> None:
        """No epoch has been looked at."""
        self.right = None  # (w,) bool, of which images of W the best epoch so far gets the label right
        self.waited = 0  # epochs since
        self.kept = None  # weights and statistics of the epoch that would come back, see `snapshot`
        self.acc = None  # its Acc(W)
        self.forgotten = None  # its Acc(D_f)

    @property
    def reached(self) -> bool:
        """Whether the loop ends."""
        return self.waited >= PATIENCE

    def look(self, s) -> None:
        """Judge the epoch that has just run; adds acc_forget_end, acc_held_out, best, whether it would come back, and
        where Algorithm 1 has started over `reach`, how far it went, to its record."""
        if self.held_out is None:
            return
        right, forgotten = right_on(s, self.held_out), accuracy_of(s, s.forget)
        gamma, acc = s.config.gamma, float(right.double().mean())
        better = self.beats(right, forgotten, gamma)
        comes_back = better or self.level(right, forgotten, gamma)
        if better:
            self.right, self.waited = right, 0
        elif self.forgotten <= gamma:
            self.waited += 1
        if comes_back:
            self.kept, self.acc, self.forgotten = snapshot(s.expanded), acc, forgotten
        s.record |= {"acc_forget_end": forgotten, "acc_held_out": acc, "best": comes_back}
        if self.restarts_left < s.config.farther:
            s.record["reach"] = s.config.reach

    def starts_over(self, s) -> bool:
        """Start over, farther, where the first epoch has left what theta_o1 knew by heart; returns whether it does."""
        if self.too_near(s):
            start_over(s, self)
            return True
        return False

    def too_near(self, s) -> bool:
        """Whether the first epoch has left what theta_o1 knew by heart.

        Choice: theta_o1 knows an undiscovered bad image as it knows the images of W, which step 3 does not teach. Where
        nearly all of W is still right after the epoch, the bad ones are still known, too. How far a removal has to go
        depends on the network, and `reach` alone is too near where it was trained in many small steps: after 0.07 on
        10,000 images of 32x32 that were learnt by heart Acc(W) is 0.95 to 0.98, with 64 % of the test images right, and
        little of what is undiscovered is healed (results/tuning). So the first removal is then done again from the
        beginning, REACH_FACTOR times as far, at most `farther` times; not where step 2 made no pass, or went less than
        the whole `reach`.
        """
        if s.epoch != 1 or self.held_out is None or self.restarts_left < 1 or not s.config.reach:
            return False
        made_a_pass = s.record["passes"] > 0
        went_all_the_way = s.record["acc_forget_before"] >= 2 * s.config.gamma  # see Removal.goal
        return made_a_pass and went_all_the_way and s.record["acc_held_out"] > BY_HEART

    def beats(self, right: torch.Tensor, forgotten: float, gamma: float) -> bool:
        """Whether an epoch that gets these images of W right is better than the best so far."""
        if self.kept is None:
            return True
        if max(forgotten, self.forgotten) > gamma:  # one of them does not count, or neither
            return forgotten <= max(self.forgotten, gamma)
        return bool(right.sum() > self.right.sum())

    def level(self, right: torch.Tensor, forgotten: float, gamma: float) -> bool:
        """Whether an epoch that is not better gets as many of W right as the best, within the paired standard error."""
        if max(forgotten, self.forgotten) > gamma:
            return False
        lost, changed = int(self.right.sum() - right.sum()), int((self.right != right).sum())
        return lost**2 <= changed

    def best(self, s):
        """The network after the returned epoch, in place of that after the last."""
        if self.kept is None:
            return s.expanded
        put_back(s.expanded, self.kept)
        if self.forgotten > s.config.gamma:
            warnings.warn(f"Acc(D_f) is {self.forgotten:.2f} after the returned epoch, above gamma = "
                          f"{s.config.gamma:g}", stacklevel=2)
        if self.untouched - self.acc > BOUND:
            warnings.warn(f"Acc(W) fell from {self.untouched:.2f} to {self.acc:.2f}, W being {len(self.held_out)} "
                          "images of D_r that step 3 left out: the network may be better as it was", stacklevel=2)
        return s.expanded

    def state_dict(self) -> dict:
        """What the next epoch depends on."""
        return {name: getattr(self, name) for name in KEPT}

    def load_state_dict(self, content: dict) -> None:
        """Go on from what `state_dict` gave."""
        for name in KEPT:
            setattr(self, name, content[name])


def start_over(s, end: Repaired) -> None:
    """Put Algorithm 1 back to where step 1 has left it, with REACH_FACTOR times the `reach`.

    It goes on as it would have with that `reach` from the beginning: weights and statistics are the reference's, the
    generator draws anew what it drew, and the optimiser is new after a removal in any case (engine/removal.py).
    """
    put_back(s.expanded, snapshot(s.reference.net))
    s.generator.set_state(end.began)
    s.epoch, s.config = 0, replace(s.config, reach=REACH_FACTOR * s.config.reach)
    end.restarts_left -= 1
    end.clear()


def snapshot(net) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer by name, those that a state dict leaves out too."""
    return {name: value.detach().clone() for name, value in [*net.named_parameters(), *net.named_buffers()]}


@torch.no_grad()
def put_back(net, kept: dict[str, torch.Tensor]) -> None:
    """Write what `snapshot` copied into the network again."""
    for name, value in [*net.named_parameters(), *net.named_buffers()]:
        value.copy_(kept[name])
