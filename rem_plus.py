"""REM+: Algorithm 1 with four changes of ours. None of them is in the paper, and none of them is in rem.py.

    unlearned = rem_plus(model, data, forget, Settings(), generator)             # the arguments are those of rem.rem
    unlearned = rem_plus(model, data, forget, Settings(disbelieved=0), generator)      # without the third change
    Settings(reach=0, stop="max", disbelieved=0, farther=0)                      # without all four: `rem`, bit for bit

What the paper prints, what happens here, and what it is for (results/rem-plus/README.md has what each is worth):

1. Relative distance (`reach`, `remove_to_distance`). Printed: step 2 goes down its loss at the rate epsilon and ends at
   Acc(D_f) <= gamma; its momentum runs on into step 3. Here: its updates have one length, and the first step 2 goes on
   along its line until the relative distance ||theta - theta_o1|| / ||theta_o1|| is `reach`; step 3 begins without
   momentum. For: at gamma the known images are forgotten, what they share with the unknown ones is not. Costs: epsilon
   has no effect on step 2.
2. Early stopping (`stop`, `EarlyStopping`). Printed: max epochs run, and the last one's network is returned. Here: step
   3 leaves out W, 5 % of D_r; the loop ends after two epochs that are no better on W, and the latest epoch that is as
   good as the best is returned. For: healing is transient, and later epochs bring the corruption back. Costs: W.
3. Small-loss selection (`disbelieved`, `small_loss`). Printed: step 3 passes over all of D_tr. Here: from epoch 2 on it
   leaves out images of D_r whose label theta_o1 gives a cross-entropy above `disbelieved`, as methods for noisy labels
   do. For: such an image cannot teach theta_o1 again what step 2 has removed. Costs: a pass for the losses, per epoch.
4. Restart (`farther`, `EarlyStopping.starts_over`). Printed: nothing like it. Here: where the first epoch leaves nearly
   all of W right, Algorithm 1 starts over with twice the distance. For: networks that know every image of D_tr, wrong
   labels too. Costs: the first epoch runs twice there. It needs 1 and 2.
"""

import warnings
from dataclasses import dataclass, replace

import torch

import rem
from engine import (accuracy_of, among, batches_of, check_settings, count_batches, cross_entropy, eval_mode,
                    per_example, refresh_batchnorm, report, right_on, settings_from, stream, trusted, undisturbed,
                    warn_above)
from rem import State, add_capacity, discard, pass_over_forget, redirect, remove

STEP = 0.0025  # length of an update of step 2, over the norm of theta_o1
FEWEST_PASSES = 4  # passes that such updates need, at least, for the whole distance
FAINT = 1e-15  # norm of a gradient below which squares of its entries are lost in float32
HELD_OUT = 0.05  # share of D_r that step 3 leaves out, W
LEAST, MOST = 100, 0.25  # images of W at least, unless that is more than this share of D_r
FEWEST_EXAMPLES = 10  # examples of D_r of which none is left out for W
PATIENCE = 2  # epochs in a row that are no better than the best, and the loop ends
BOUND = 0.1  # what Acc(W) may lose before a warning
MEMORISED = 0.96  # Acc(W) after the first epoch above which Algorithm 1 starts over
REACH_FACTOR = 2  # by which the distance grows then
KEPT = ("kept", "right", "acc", "acc_forget", "waited")  # what `EarlyStopping` carries from epoch to epoch


@dataclass(frozen=True)
class Settings(rem.Settings):
    """What REM+ reads: the settings of Algorithm 1 and one for each of the four changes."""

    reach: float = 0.07  # 1: relative distance by which the first step 2 moves theta_o1; 0: off
    stop: str = "repaired"  # 2: early stopping; "max": off
    disbelieved: float = 2.0  # 3: CE of a given label above which step 3 leaves an image of D_r out; 0: off
    farther: int = 1  # 4: how often Algorithm 1 may start over with twice the distance; 0: off

    def __post_init__(self):
        check_settings(self, rem.ALLOWED | {"stop": ("repaired", "max")})


@undisturbed
def rem_plus(model: torch.nn.Module, data, forget: torch.Tensor, config, generator: torch.Generator, *,
             shared: torch.Tensor | None = None, step3=None, log=None, state: State | None = None,
             end=None) -> torch.nn.Module:
    """Unlearn with REM+; arguments, result and errors as of `rem.rem`, but for these:

    Args:
        config: Settings, or a record that has them.
        log: the record has, besides, what `EarlyStopping.look` measured; no call for an epoch after which Algorithm 1
            starts over.
        state: its config has this module's Settings; end: the EarlyStopping made from it, None: a new one.
    Returns: theta_o1 after the epoch that early stopping chose.
    """
    s = state or add_capacity(model, data, forget, settings_from(config, Settings), generator, shared)  # Step 1
    end = end or EarlyStopping(s)
    while s.epoch < s.config.unlearn_epochs and not end.reached:  # change 2: max epochs is an upper bound
        s.epoch += 1
        s.reference.remember(s)
        index = small_loss(s, end.trained_on)  # change 3; before step 2, after which whole classes have a large loss
        remove_to_distance(s)  # Step 2, change 1
        redirect(s, step3, index)  # Step 3
        refresh_batchnorm(s.expanded, s.data, s.config.batch, modes=s.modes)
        end.look(s)
        if end.starts_over(s):  # change 4
            continue
        report(log, s)
    s.expanded = end.best(s)
    return discard(s)  # Step 4


# --- 1. Relative distance ---------------------------------------------------------------------------------------------

def remove_to_distance(s: State) -> None:
    """Step 2 by updates of one length and, in the first epoch, on along its line up to the relative distance `reach`.

    In no epoch does a pass begin once theta_o1 is that far from where this step 2 began. Where little of D_f was learnt
    there is little to take out, and going as far does harm (results/tuning): below Acc(D_f) = 2 gamma it goes on by the
    share Acc(D_f) / gamma - 1 of `reach` alone.
    Updates have one length because where the network is sure of D_f the gradient is next to nothing, and a hundred
    updates at the rate of step 3 move nothing; where it is not, the first such update goes so far that of two confused
    classes one swallows the other. They are at most STEP long, and so short that a pass is a quarter of `reach` at
    most, since Acc(D_f) and the distance are looked at between passes.
    Raises: NonFiniteLoss.
    """
    config = s.config
    if not config.reach:
        return remove(s, training=config.forget_norm == "batch")
    before = acc = accuracy_of(s, s.forget)
    theta_o1 = [p for p in s.expanded.theta_o1() if p.requires_grad]
    begin = copies(theta_o1)
    # length = min(STEP, reach / (FEWEST_PASSES x updates of a pass))
    length = min(STEP, config.reach / (FEWEST_PASSES * count_batches(len(s.forget), config.batch)))
    optimizer = steps_of(theta_o1, length)
    passes = updates = 0
    while acc > config.gamma and passes < config.max_passes and not moved(theta_o1, begin) >= config.reach:
        updates += pass_over_forget(s, optimizer, training=config.forget_norm == "batch")
        passes += 1
        acc = accuracy_of(s, s.forget)
    at_gamma = acc
    if passes:
        s.optimizer.state.clear()  # no momentum goes from step 2 into step 3
    if passes and s.epoch == 1:
        # distance = reach min(1, (Acc(D_f) - gamma) / gamma)
        part = min(1.0, (before - config.gamma) / config.gamma) if config.gamma else 1.0
        move_along(theta_o1, begin, config.reach * part)
        acc = accuracy_of(s, s.forget)
    warn_above(min(at_gamma, acc), config.gamma, passes)
    s.record = dict(acc_forget_before=before, acc_forget=acc, passes=passes, updates=updates)


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
    """Go on along theta - theta_begin up to the relative distance `reach`; weights that are there already stay."""
    # theta <- theta_begin + reach ||theta_begin|| d / ||d||,  d = theta - theta_begin
    far = moved(parameters, begin)
    if 0 < far < reach:
        for p, b in zip(parameters, begin, strict=True):
            p.copy_(b + (p - b) * (reach / far))


# --- 2. Early stopping ------------------------------------------------------------------------------------------------

class EarlyStopping:
    """When the loop ends, and which epoch it returns: asked after each epoch, by accuracy on W.

    An epoch counts from Acc(D_f) <= gamma on, measured after step 3. The best is the first of those that get most of W
    right, the images of D_r that step 3 leaves out; after PATIENCE epochs in a row that get no more of the same images
    right than the best the loop ends.
    What comes back is the latest epoch that is as good as the best: it gets no fewer of W right, within the paired
    standard error, the root of the images that only one of the two gets right. For W flatters early epochs: theta_o1
    was trained on W once, and forgets that from epoch to epoch while it gets better at new images.
    Where no epoch counts, all epochs run, and the one after which Acc(D_f) is lowest is returned, with a warning. A
    warning comes, too, where Acc(W) of the returned epoch is more than BOUND below the untouched network's: that one
    was trained on W, and so is better there than on new images, which is why a smaller loss says nothing.
    All of it is of theta_o1 alone and labels as given. With stop "max", and of FEWEST_EXAMPLES examples of D_r or
    fewer, none is left out: then all epochs run and the last is returned.
    """

    def __init__(self, s: State):
        retain = (~s.in_forget & ~trusted(s.data)).nonzero().flatten()
        self.held_out = self.trained_on = self.untouched = None  # W, (w,) int64; all but W; Acc(W) before the repair
        if s.config.stop != "max" and len(retain) > FEWEST_EXAMPLES:
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
        self.acc_forget = None  # its Acc(D_f)

    @property
    def reached(self) -> bool:
        """Whether the loop ends."""
        return self.waited >= PATIENCE

    def look(self, s: State) -> None:
        """Judge the epoch that has just run; adds acc_forget_end, acc_held_out, best, whether it would come back, and
        where Algorithm 1 has started over `reach`, the distance that it went, to its record."""
        if self.held_out is None:
            return
        right, acc_forget = right_on(s, self.held_out), accuracy_of(s, s.forget)
        gamma, acc = s.config.gamma, float(right.double().mean())
        better = self.beats(right, acc_forget, gamma)
        comes_back = better or self.as_good(right, acc_forget, gamma)
        if better:
            self.right, self.waited = right, 0
        elif self.acc_forget <= gamma:
            self.waited += 1
        if comes_back:
            self.kept, self.acc, self.acc_forget = snapshot(s.expanded), acc, acc_forget
        s.record |= {"acc_forget_end": acc_forget, "acc_held_out": acc, "best": comes_back}
        if self.restarts_left < s.config.farther:
            s.record["reach"] = s.config.reach

    def beats(self, right: torch.Tensor, acc_forget: float, gamma: float) -> bool:
        """Whether an epoch that gets these images of W right is better than the best so far."""
        if self.kept is None:
            return True
        if max(acc_forget, self.acc_forget) > gamma:  # one of them does not count, or neither
            return acc_forget <= max(self.acc_forget, gamma)
        return bool(right.sum() > self.right.sum())

    def as_good(self, right: torch.Tensor, acc_forget: float, gamma: float) -> bool:
        """Whether an epoch that is not better gets as many of W right as the best, within the paired standard error."""
        if max(acc_forget, self.acc_forget) > gamma:
            return False
        lost, changed = int(self.right.sum() - right.sum()), int((self.right != right).sum())
        return lost**2 <= changed

    def best(self, s: State):
        """The network after the returned epoch, in place of that after the last."""
        if self.kept is None:
            return s.expanded
        put_back(s.expanded, self.kept)
        if self.acc_forget > s.config.gamma:
            warnings.warn(f"Acc(D_f) is {self.acc_forget:.2f} after the returned epoch, above gamma = "
                          f"{s.config.gamma:g}", stacklevel=2)
        if self.untouched - self.acc > BOUND:
            warnings.warn(f"Acc(W) fell from {self.untouched:.2f} to {self.acc:.2f}, W being {len(self.held_out)} "
                          "images of D_r that step 3 left out: the network may be better as it was", stacklevel=2)
        return s.expanded

    # --- 4. Restart ---

    def starts_over(self, s: State) -> bool:
        """Put Algorithm 1 back to where step 1 has left it, with REACH_FACTOR times the distance, where `too_near` asks
        for it; returns whether it did.

        It goes on as it would have with that distance from the beginning: weights and statistics are the reference's,
        the generator draws once more what it drew, and the optimiser is new after a removal in any case.
        """
        if not self.too_near(s):
            return False
        put_back(s.expanded, snapshot(s.reference.net))
        s.generator.set_state(self.began)
        s.epoch, s.config = 0, replace(s.config, reach=REACH_FACTOR * s.config.reach)
        self.restarts_left -= 1
        self.clear()
        return True

    def too_near(self, s: State) -> bool:
        """Whether the first epoch has left what theta_o1 has memorised.

        theta_o1 knows an undiscovered bad image as it knows the images of W, which step 3 does not teach. Where nearly
        all of W is still right after the epoch, the bad ones are still known, too. How far a removal has to go depends
        on the network: where it was trained in many small steps, once the distance heals little of what is undiscovered
        (results/tuning, "farther"). So the first removal is then done again from the beginning, at most `farther`
        times; not where step 2 made no pass, or went less than the whole distance.
        """
        if s.epoch != 1 or self.held_out is None or self.restarts_left < 1 or not s.config.reach:
            return False
        made_a_pass = s.record["passes"] > 0
        went_all_the_way = s.record["acc_forget_before"] >= 2 * s.config.gamma  # see `remove_to_distance`
        return made_a_pass and went_all_the_way and s.record["acc_held_out"] > MEMORISED

    # --- To go on from a file ---

    def state_dict(self) -> dict:
        """What the next epoch depends on."""
        return {name: getattr(self, name) for name in KEPT}

    def load_state_dict(self, content: dict) -> None:
        """Go on from what `state_dict` gave."""
        for name in KEPT:
            setattr(self, name, content[name])


def snapshot(net) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer by name, those that a state dict leaves out too."""
    return {name: value.detach().clone() for name, value in [*net.named_parameters(), *net.named_buffers()]}


@torch.no_grad()
def put_back(net, kept: dict[str, torch.Tensor]) -> None:
    """Write what `snapshot` copied into the network again."""
    for name, value in [*net.named_parameters(), *net.named_buffers()]:
        value.copy_(kept[name])


# --- 3. Small-loss selection ------------------------------------------------------------------------------------------

@torch.no_grad()
def small_loss(s: State, index: torch.Tensor | None) -> torch.Tensor | None:
    """The examples of `index`, or of D_tr, without images of D_r whose label has a large loss.

    The loss is CE of the label as given, of theta_o1 alone in eval mode; it is large above `disbelieved`. What somebody
    has looked at (`trusted`) stays. In epoch 1, or where `disbelieved` is 0, none is left out, and none either where
    more than half of D_r would be: then it is the network that is wrong.
    """
    if s.epoch < 2 or not s.config.disbelieved:
        return index

    def is_large(i, x, y):
        return cross_entropy(s, x, y) > s.config.disbelieved  # (B,)

    with eval_mode(s.expanded):
        large = per_example(batches_of(s, None, augment=False), is_large, len(s.data)).cpu()
    doubtful = ~s.in_forget & ~trusted(s.data)
    large &= doubtful
    if 2 * int(large.sum()) > int(doubtful.sum()):
        return index
    index = torch.arange(len(s.data), device="cpu") if index is None else index
    return index[~large[index]]
