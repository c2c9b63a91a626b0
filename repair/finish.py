"""Finish a repair: train the network from before it again for a little, without what is likely bad, away from D_f.

    found = finish(model, repaired, data, forget, config)      # found.model, found.dropped

REM takes out what D_f and the undiscovered bad images share, at a cost in accuracy; what it leaves is worth more as a
list than as weights. So the images that it disbelieves, and those that look like D_f, are dropped, and the *original*
network, which has lost nothing, learns the rest once more, while D_f is pushed off its labels as given (or taught its
true ones), so that a trigger that is still in the rest is not learnt again. That network is asked for a second opinion:
what it believes again was disbelieved for the accuracy that REM had lost, and comes back for a second such training,
which gives the network that is returned. In that one, where few are listed, the images that both signs call bad, which
REM disbelieves and which look like D_f, are treated as D_f is; and where the first one has sent D_f to some third
class, it is taught what the repaired network says of it. Measured in results/repair; what else was tried stands in
results/repair/finish.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from engine.batches import among
from engine.checks import NonFiniteLoss, check_forget
from engine.features import features
from engine.modes import copy_of, modes_of, put_modes, refresh_batchnorm
from engine.streams import stream
from engine.updates import logits_of
from metrics import predict, share
from repair.looks import looking_alike
from repair.network import UNLEARN_LR
from repair.suspects import logits
from repair.truths import COPIES, check_truths
from repair.verdict import BELIEVED, gone_together
from train import fit

EPOCHS = 8  # over what is left, of each training
RATES = {"sgd": 0.03, "adam": 1.5e-3}  # peak, down to a fifth; 0.01, 5e-4 and four epochs: 1.9 points of product less
TRIES = 3  # rates at most, each a third of the one before
RUINED = 0.1  # of what is left: where so many more are wrong after it, the rate was too high
GONE = 0.9  # share of a label's images: where more are called another class, the repaired network has lost that class
FEW, OF = 30, 200  # members of D_f: fewer, or than one image in OF, cannot hold off by themselves what was missed
SAME = 1 / 3  # of D_f: where fewer get the repaired network's answers they may have gone to some third class


class Finished(NamedTuple):
    """The finished network, and what it did not learn from."""

    model: nn.Module
    dropped: torch.Tensor  # (m,) int64, dataset indices outside D_f: disbelieved, alike or both
    disbelieved: int  # how many of them are called another class, by the repaired network and by the first training
    alike: int  # how many of them look like D_f
    both: int  # how many are both, where D_f has few: these are treated as D_f is
    taken: bool  # False: `model` is the repaired network, since more of D_f was believed after the finish
    answers: bool = False  # whether D_f was taught what the repaired network says of it
    ruined: bool = False  # or, if not taken, since no rate left the network what it knew

    @property
    def line(self) -> str:
        """What was done, for people."""
        what = (f"{len(self.dropped)} likely bad images ({self.disbelieved} that are called another class, "
                f"{self.alike} that look like the listed ones)")
        if self.ruined:
            return (f"not finished: the network from before the repair, trained without {what}, lost what it knew at "
                    "each of the rates that were tried; the repair stays as it was")
        if not self.taken:
            return (f"not finished: without {what} it would believe more of the listed images; the repair stays as it "
                    "was")
        kept = "taught what the repaired network says" if self.answers else "kept off the labels"
        more = f" and of {self.both} that both signs call bad" if self.both and not self.answers else ""
        return (f"finished: the network from before the repair learnt the rest once more, without {what}, and was "
                f"{kept} of the listed ones{more}")

    def report(self) -> dict:
        """For a report in JSON."""
        return {"taken": self.taken, "dropped": len(self.dropped), "disbelieved": self.disbelieved,
                "alike": self.alike, "both": self.both, "answers": self.answers, "ruined": self.ruined}


def finish(model: nn.Module, repaired: nn.Module, data, forget: torch.Tensor, config, *,
           true_labels: torch.Tensor | None = None, alike: torch.Tensor | None = None, log=None) -> Finished:
    """Train a copy of `model` on what is left of D_r, with D_f pushed off its labels or taught its true ones; twice.

    Choice: from the original network, not from the repaired one, which has lost accuracy; suspects are dropped, neither
    pushed away nor given another label, since some of them are good. An image of D_f whose true label is unknown may
    go to any class but its own.
    The second training begins with the original again, on what was left and what a second opinion brings back: what the
    repaired network disbelieves is dropped only where the first training's network, which has lost less, does so too.
    Where D_f has gone to some third class by then (`gone_elsewhere`), as a trigger does that means another label now,
    it is taught what the repaired network says of it. (A published network, `trojan` in results/repair/published, gets
    13 % of its triggered images right without that and 75 % with it; elsewhere it is level or worse, since such answers
    err.)
    And what both signs call bad, its label to the repaired network and its looks, is as good as listed where fewer than
    FEW are, or than one image in OF: in the second training it is treated as D_f is, so that bad images that neither
    sign tells meet more than these few. (With five of 50 listed and six missed a trigger came back otherwise, and with
    50 of 500 among 50,000 images 8 % stayed misled in place of 0.4. Of 50 listed among 5,000 it costs: 386 such images
    of the same network 0.9 points of accuracy, for nothing.) Not where D_f is taught answers, which err.
    The end is by D_f and what is treated so: the network is taken unless more of them get their labels as given than
    from the repaired one, and more than a repair may leave (BELIEVED).
    Args:
        model: the network before the repair, repaired: after it, plain both; left as they are.
        data: D_tr, N examples, labels as given, Data or Streamed; forget: (k,) int64, D_f.
        config: optimiser, batch, momentum, weight decay, precision and seed, such as those of the repair.
        true_labels: (k,) int64 in the order of `forget`, -1 where unknown; None: none is known.
        alike: (N,) bool, the images that look like D_f; None: as `looking_alike` finds them by features of `model`.
        log: called as log(done, of) after each epoch of both trainings; one that begins anew goes back; None: silent.
    Returns: the finished network in the modes of `model`, or the repaired one; what was dropped.
    Raises: ValueError: D_f or its true labels cannot be used; NonFiniteLoss, where `repaired` has such logits.
    """
    forget, labels = check_forget(forget, len(data)).cpu(), data.labels.cpu()
    z = logits(repaired, data)[0]  # (N, C)
    disbelieved = called_otherwise(z, labels, forget)
    if alike is None:
        alike = looking_alike(features(model, data), labels, forget, config.seed)
    truths = check_truths(true_labels, forget, data)
    truths = torch.full((len(forget),), -1) if truths is None else truths
    few = len(forget) < max(FEW, len(data) / OF)
    both = (disbelieved & alike & few).nonzero()[:, 0]  # (b,) as good as listed
    says = what_it_says(z[forget], labels[forget], truths)
    first = taught(model, data, disbelieved | alike, forget, truths, config, logged(log, 0))
    if first is None:
        return Finished(repaired, *dropped_counts(disbelieved, alike), len(both), taken=False, ruined=True)
    said = predict(first, data)  # (N,)
    disbelieved = disbelieved & (said != labels)  # a second opinion
    elsewhere = gone_elsewhere(said, says, labels, forget, truths)
    if elsewhere:
        bad, answers = forget, says
    else:
        bad, answers = torch.cat([forget, both]), torch.cat([truths, both.new_full(both.shape, -1)])  # (k + b,) both
    net = taught(model, data, disbelieved | alike, bad, answers, config, logged(log, EPOCHS))
    if net is None:
        return Finished(repaired, *dropped_counts(disbelieved, alike), len(both), taken=False, ruined=True)
    before, after = (believed_share(network, data, bad) for network in (repaired, net))
    if after > max(before, BELIEVED):
        return Finished(repaired, *dropped_counts(disbelieved, alike), len(both), taken=False)
    put_modes(net, modes_of(model))
    return Finished(net, *dropped_counts(disbelieved, alike), len(both), taken=True, answers=elsewhere)


def dropped_counts(disbelieved: torch.Tensor, alike: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """Which images are in either, (m,) int64, and how many are in each, (N,) bool both."""
    return (disbelieved | alike).nonzero()[:, 0], int(disbelieved.sum()), int(alike.sum())


def logged(log, before: int):
    """What `fit` calls after an epoch, where so many epochs came before this training; None where nobody listens."""
    return log and (lambda epoch, epochs, net, **record: log(before + epoch, 2 * EPOCHS))


def taught(model: nn.Module, data, dropped: torch.Tensor, bad: torch.Tensor, answers: torch.Tensor, config, log=None
           ) -> nn.Module | None:
    """A copy of `model` that has learnt the images that are not dropped, (N,) bool, at their labels as given, and the
    bad ones, (b,) int64, COPIES times an epoch at their answers, (b,) int64; -1 is any class but their own.

    The rate is that of RATES, or a third of it, or a ninth, where at a higher one the loss or a logit is not finite, or
    the share of right ones among the images that it learns has fallen by more than RUINED: so high a rate has cost it
    what it knew. None where each of them has. At another unlearning rate than the one that a repair chooses by itself
    they are in proportion: where a repair did harm a lower --lr is advised, and shall lower both.
    """
    left = (~dropped).index_fill(0, bad, False).nonzero()[:, 0]  # (n,)
    least = believed_share(model, data, left) - RUINED
    highest = RATES[config.optimizer] * (config.unlearn_lr / UNLEARN_LR[config.optimizer])
    for tries in range(TRIES):
        try:
            net = taught_at(highest / 3**tries, model, data, left, bad, answers, config, log)
            if believed_share(net, data, left) >= least:
                return net
        except NonFiniteLoss:
            continue
    return None


def taught_at(rate: float, model: nn.Module, data, left: torch.Tensor, bad: torch.Tensor, answers: torch.Tensor, config,
              log=None) -> nn.Module:
    """The same at one rate, `left` being the images that are learnt at their labels as given, (n,) int64.

    It ends with new statistics of BatchNorm, as each epoch of REM does, over the images as it learnt them. Those of the
    last small batches can be far from what the weights need: with them one network of the trials is right on 62 % of
    its test images, with new ones on 96 %.
    """
    net = copy_of(model)
    index = torch.cat([left, *[bad] * COPIES])
    is_bad = among(bad, len(data))
    answer = torch.full((len(data),), -1).index_copy_(0, bad, answers)

    def loss(rows: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        z = logits_of(net, x, config.precision)  # (B, C)
        return finish_loss(z, y, is_bad[rows].to(x.device), answer[rows].to(x.device))

    fit(net, data, index, config, stream(config.seed, "finish"), epochs=EPOCHS, lr=rate, loss=loss, log=log)
    refresh_batchnorm(net, data, config.batch, index=index)
    return net


def what_it_says(z: torch.Tensor, given: torch.Tensor, truths: torch.Tensor) -> torch.Tensor:
    """What bad images are taught where they are taught all: the true label, else what the repaired network says.

    Args: z: (b, C) its logits of them; given: (b,) labels as given, no answers; truths: (b,), -1 where unknown.
    Returns: (b,) int64 labels, -1 for none.
    """
    answers = z.argmax(dim=1)
    return torch.where(truths >= 0, truths, torch.where(answers == given, -1, answers))


def gone_elsewhere(said: torch.Tensor, says: torch.Tensor, labels: torch.Tensor, forget: torch.Tensor,
                   truths: torch.Tensor) -> bool:
    """Whether a training that pushed D_f off its labels has sent it to some third class.

    Fewer than SAME of D_f get what the repaired network says, and more than half has gone together, the images of a
    label to one class beyond chance. Without the latter a repaired network that is wrong itself, on a third of all
    images of one trial, would be heeded: Utility fell from 80 to 67 % there, and is 80 % where it is not.
    Args: said: (N,) int64, predicted after that training; says: (k,) int64 as `what_it_says` gives them; labels: (N,)
        as given; forget: (k,); truths: (k,) true labels, -1 where unknown: images that were taught these do not count.
    """
    unknown = forget[truths < 0]
    together = sum(found.images for found in gone_together(labels, said, unknown))
    return same_answers(said[forget], says) < SAME and 2 * together > len(unknown)


def same_answers(found: torch.Tensor, says: torch.Tensor) -> float:
    """The share of images that get the answer in `says`, (b,) both, among those that have one; 1 where none has."""
    told = says >= 0
    return share(found[told] == says[told]) if told.any() else 1.0


def believed_share(model: nn.Module, data, index: torch.Tensor) -> float:
    """The share of images, (n,) int64, that a network gives their labels as given; 1 of none.

    Raises: NonFiniteLoss, also for other images.
    """
    believed = predict(model, data) == data.labels.cpu()  # (N,)
    return share(believed[index]) if len(index) else 1.0


def finish_loss(z: torch.Tensor, y: torch.Tensor, is_bad: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """The mean over a batch of -log p(y); of bad images -log p(answer), or -log(1 - p(y)) where there is none.

    Args: z: (B, C) logits; y: (B,) labels as given; is_bad: (B,) bool; answers: (B,), -1 where none.
    """
    wanted = torch.where(is_bad & (answers >= 0), answers, y)
    ce = F.cross_entropy(z, wanted, reduction="none")
    # -log(1 - p_y) = log sum_k e^z_k - log sum_{k != y} e^z_k
    off = z.logsumexp(dim=1) - z.scatter(1, y[:, None], -torch.inf).logsumexp(dim=1)
    return torch.where(is_bad & (answers < 0), off, ce).mean()


# --- What is dropped: (N,) bool, False for D_f ------------------------------------------------------------------------

def called_otherwise(z: torch.Tensor, labels: torch.Tensor, forget: torch.Tensor) -> torch.Tensor:
    """The images that the repaired network, of logits z (N, C), gives another class than their label as given.

    None of a label of which more than GONE get another class: the network has lost that class, as one repair of a small
    ViT has (Utility 0.91, then 0.64, and 0.65 without that class's images, 0.89 with them), since a label with nine
    wrong images for each right one is not what training would have made a classifier of. No less than GONE: of the
    label of a published backdoor 66 % may be bad (a fifth of all images), and those that look like D_f are not all.
    And none at all where the rest are more than half of them: then it is the network that is wrong, as in
    `rem_plus.small_loss`.
    """
    found = (z.argmax(dim=1) != labels).index_fill(0, forget, False)
    others = torch.ones_like(found).index_fill_(0, forget, False)
    images, wrong = (torch.bincount(labels[part], minlength=z.shape[1]) for part in (others, found))
    found &= (wrong <= GONE * images)[labels]
    return found & (2 * int(found.sum()) <= int(others.sum()))
