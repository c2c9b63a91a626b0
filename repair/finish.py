"""Finish a repair: train the network from before it again for a little, without what is likely bad, away from D_f.

    found = finish(model, repaired, data, forget, config)      # found.model, found.dropped

REM takes out what D_f and the undiscovered bad images share, at a cost in accuracy; what it leaves is worth more as a
list than as weights. So two kinds of images are dropped: label issues, which the repaired network gives another class
than their label, and look-alikes of D_f (looks.py). The *original* network, which has lost nothing, learns the rest
once more, while D_f is pushed off its labels as given (or taught its true ones), so that an unlisted trigger is not
learnt again. Then it does so a second time, from the beginning, on more images: a label issue that the first training's
network gives its label was one only because REM had lost accuracy, and comes back. results/repair measures it.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from engine.batches import among
from engine.checks import NonFiniteLoss, check_forget
from engine.features import features, gather
from engine.modes import copy_of, modes_of, put_modes, refresh_batchnorm
from engine.streams import stream
from engine.updates import logits_of
from metrics import predict, share
from repair.looks import looking_alike
from repair.network import UNLEARN_LR
from repair.truths import COPIES, check_truths
from repair.verdict import KEPT, gone_together
from train import fit

EPOCHS = 8  # over what is left, of each training
RATES = {"sgd": 0.03, "adam": 1.5e-3}  # peak, down to a fifth; 0.01, 5e-4 and four epochs: 1.9 points of product less
TRIES = 3  # rates at most, each a third of the one before
RUINED = 0.1  # of what is left: where so many more are wrong after it, the rate was too high
GONE = 0.9  # share of a label's images: where more are called another class, the repaired network has lost that class
FEW, OF = 30, 200  # members of D_f: fewer, or than one image in OF, cannot keep off by themselves what was missed
SAME = 1 / 3  # of D_f: where fewer get the repaired network's answers they may have gone to some third class


class Finished(NamedTuple):
    """The finished network, and what it did not learn from."""

    model: nn.Module
    dropped: torch.Tensor  # (m,) int64, dataset indices outside D_f: label issues, look-alikes or both
    issues: int  # label issues among them, by the repaired network and by the first training
    alike: int  # look-alikes of D_f among them
    both: int  # how many are both, where D_f has few: these are treated as D_f is
    taken: bool  # False: `model` is the repaired network, since more of D_f got its labels after the finish
    answers: bool = False  # whether D_f was taught what the repaired network says of it
    ruined: bool = False  # or, if not taken, since no rate left the network what it knew

    @property
    def line(self) -> str:
        """What was done, for people."""
        what = (f"{len(self.dropped)} likely bad images ({self.issues} that are called another class, "
                f"{self.alike} that look like the listed ones)")
        if self.ruined:
            return (f"not finished: the network from before the repair, trained without {what}, lost what it knew at "
                    "each of the rates that were tried; REM's network stays")
        if not self.taken:
            return (f"not finished: without {what} more of the listed images would get their labels; REM's network "
                    "stays")
        kept = "taught what REM's network says" if self.answers else "kept off the labels"
        more = f" and of {self.both} that both signs call bad" if self.both and not self.answers else ""
        return (f"finished: the network from before the repair learnt the rest once more, without {what}, and was "
                f"{kept} of the listed ones{more}")

    def report(self) -> dict:
        """For a report in JSON."""
        return {"taken": self.taken, "dropped": len(self.dropped), "disbelieved": self.issues,
                "alike": self.alike, "both": self.both, "answers": self.answers, "ruined": self.ruined}


def finish(model: nn.Module, repaired: nn.Module, data, forget: torch.Tensor, config, *,
           true_labels: torch.Tensor | None = None, alike: torch.Tensor | None = None, log=None) -> Finished:
    """Train a copy of `model` on what is left of D_r, with D_f pushed off its labels or taught its true ones; twice.

    Choice: suspects are dropped, neither pushed away nor given another label, since some of them are good. An image of
    D_f whose true label is unknown may go to any class but its own.
    Two cases change the second training. Where the first has sent D_f to some third class (`gone_elsewhere`), as a
    trigger does that means another label now, D_f is taught what the repaired network says of it. (A published network,
    `trojan` in results/repair/published, gets 13 % of its triggered images right without that and 75 % with it.) Else,
    where fewer than FEW are listed, or than one image in OF, images that both signs call bad are treated as D_f is.
    (With 5 of 50 listed and 6 missed a trigger came back otherwise, and with 50 of 500 among 50,000 images its attack
    success rate was 8 % in place of 0.4. With 50 listed among 5,000 it costs 0.9 points of accuracy for nothing.)
    The finished network is taken unless more of D_f and what is treated so get their labels as given than from the
    repaired one, and more than a repair may leave (KEPT).
    Args:
        model: the network before the repair, repaired: after it, plain both; left as they are.
        data: D_tr, N examples, labels as given, Data or Streamed; forget: (k,) int64, D_f.
        config: optimiser, batch, momentum, weight decay, precision and seed, such as those of the repair.
        true_labels: (k,) int64 in the order of `forget`, -1 where unknown; None: none is known.
        alike: (N,) bool, the images that look like D_f; None: as `looking_alike` finds them by features of `model`.
        log: called as log(epoch, epochs, net, **record) after each epoch of both trainings, which count together; one
            that begins again at a lower rate goes back; None: silent.
    Returns: the finished network in the modes of `model`, or the repaired one; what was dropped.
    Raises: ValueError: D_f or its true labels cannot be used; NonFiniteLoss, where `repaired` has such logits.
    """
    forget, labels = check_forget(forget, len(data)).cpu(), data.labels.cpu()
    z = logits(repaired, data)  # (N, C)
    issues = called_otherwise(z, labels, forget)
    if alike is None:
        alike = looking_alike(features(model, data), labels, forget, config.seed)
    truths = check_truths(true_labels, forget, labels, data.classes)
    truths = torch.full((len(forget),), -1) if truths is None else truths
    few = len(forget) < max(FEW, len(data) / OF)
    both = (issues & alike & few).nonzero()[:, 0]  # (b,) as good as listed
    says = what_it_says(z[forget], labels[forget], truths)

    def found(net: nn.Module = repaired, **more) -> Finished:
        dropped = (issues | alike).nonzero()[:, 0]
        return Finished(net, dropped, int(issues.sum()), int(alike.sum()), len(both), net is not repaired, **more)

    first = taught(model, data, issues | alike, forget, truths, config, counted_from(0, log))
    if first is None:
        return found(ruined=True)
    said = predict(first, data)  # (N,)
    issues = issues & (said != labels)  # a second opinion
    elsewhere = gone_elsewhere(said, says, labels, forget, truths)
    if elsewhere:
        bad, answers = forget, says
    else:
        bad, answers = torch.cat([forget, both]), torch.cat([truths, both.new_full(both.shape, -1)])  # (k + b,) both
    net = taught(model, data, issues | alike, bad, answers, config, counted_from(EPOCHS, log))
    if net is None:
        return found(ruined=True)
    before, after = (share_right(network, data, bad) for network in (repaired, net))
    if after > max(before, KEPT):
        return found()
    put_modes(net, modes_of(model))
    return found(net, answers=elsewhere)


def counted_from(before: int, log):
    """What `fit` calls after an epoch, where so many epochs came before this training; None where nobody listens."""
    return log and (lambda epoch, epochs, net, **record: log(before + epoch, 2 * EPOCHS, net, **record))


def logits(model: nn.Module, data) -> torch.Tensor:
    """Logits (N, C) of all images, float64 on the CPU, in eval mode and without augmentation; NonFiniteLoss where one
    is not finite."""
    z = gather(model, data, None, lambda x, y: model(x).double())
    if not z.isfinite().all():
        raise NonFiniteLoss("the network's logits are not finite; lower the rate")
    return z


def taught(model: nn.Module, data, dropped: torch.Tensor, bad: torch.Tensor, answers: torch.Tensor, config, log=None
           ) -> nn.Module | None:
    """A copy of `model` that has learnt the images that are not dropped, (N,) bool, at their labels as given, and the
    bad ones, (b,) int64, COPIES times an epoch at their answers, (b,) int64; -1 is any class but their own.

    The rate is that of RATES, or a third of it, or a ninth, where at a higher one the loss or a logit is not finite, or
    the share of right ones among the images that it learns has fallen by more than RUINED: so high a rate has cost it
    what it knew. None where each of them has. The rates are in proportion to the unlearning rate, so that a lower --lr,
    which is advised where a repair did harm, lowers both.
    """
    left = (~dropped).index_fill(0, bad, False).nonzero()[:, 0]  # (n,)
    least = share_right(model, data, left) - RUINED
    highest = RATES[config.optimizer] * (config.unlearn_lr / UNLEARN_LR[config.optimizer])
    for tries in range(TRIES):
        try:
            net = taught_at(highest / 3**tries, model, data, left, bad, answers, config, log)
            if share_right(net, data, left) >= least:
                return net
        except NonFiniteLoss:
            continue
    return None


def taught_at(rate: float, model: nn.Module, data, left: torch.Tensor, bad: torch.Tensor, answers: torch.Tensor, config,
              log=None) -> nn.Module:
    """The same at one rate, `left` being the images that are learnt at their labels as given, (n,) int64.

    It ends with new statistics of BatchNorm, as each epoch of REM does, over the images as it learnt them: with those
    of the last small batches one network of the trials is right on 62 % of its test images, with new ones on 96 %.
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
    label to one class beyond chance. The first condition alone would heed a repaired network that is wrong itself: in
    one trial Utility fell from 80 to 67 % by that.
    Args: said: (N,) int64, predicted after that training; says: (k,) int64 as `what_it_says` gives them; labels: (N,)
        as given; forget: (k,); truths: (k,) true labels, -1 where unknown: images that were taught these do not count.
    """
    unknown = forget[truths < 0]
    together = sum(found.images for found in gone_together(labels, said, unknown))
    return same_answers(said[forget], says) < SAME and 2 * together > len(unknown)


def same_answers(found: torch.Tensor, says: torch.Tensor) -> float:
    """The share of images that get the answer in `says`, (b,) both, among those that have one; 1 where none has."""
    has_one = says >= 0
    return share(found[has_one] == says[has_one]) if has_one.any() else 1.0


def share_right(model: nn.Module, data, index: torch.Tensor) -> float:
    """The share of images, (n,) int64, that a network gives their labels as given; 1 of none.

    Raises: NonFiniteLoss, also for other images.
    """
    right = predict(model, data) == data.labels.cpu()  # (N,)
    return share(right[index]) if len(index) else 1.0


def finish_loss(z: torch.Tensor, y: torch.Tensor, is_bad: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """The mean over a batch of -log p(y); of bad images -log p(answer), or -log(1 - p(y)) where there is none.

    Args: z: (B, C) logits; y: (B,) labels as given; is_bad: (B,) bool; answers: (B,), -1 where none.
    """
    wanted = torch.where(is_bad & (answers >= 0), answers, y)
    ce = F.cross_entropy(z, wanted, reduction="none")
    # -log(1 - p_y) = log sum_k e^z_k - log sum_{k != y} e^z_k
    off = z.logsumexp(dim=1) - z.scatter(1, y[:, None], -torch.inf).logsumexp(dim=1)
    return torch.where(is_bad & (answers < 0), off, ce).mean()


# --- What is dropped --------------------------------------------------------------------------------------------------

def called_otherwise(z: torch.Tensor, labels: torch.Tensor, forget: torch.Tensor) -> torch.Tensor:
    """Label issues, (N,) bool: images outside D_f that the repaired network, of logits z (N, C), gives another class.

    None of a label of which more than GONE get another class: the network has lost that class, as one repair of a small
    ViT has (Utility 0.65 without that class's images, 0.89 with them); no less, since of the target label of a backdoor
    66 % may be bad. And none at all where they would be more than half of the images: then the network is wrong, as in
    `rem_plus.small_loss`.
    """
    found = (z.argmax(dim=1) != labels).index_fill(0, forget, False)
    others = torch.ones_like(found).index_fill_(0, forget, False)
    images, wrong = (torch.bincount(labels[part], minlength=z.shape[1]) for part in (others, found))
    found &= (wrong <= GONE * images)[labels]
    return found & (2 * int(found.sum()) <= int(others.sum()))
