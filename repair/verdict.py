"""What came of a repair: REPAIRED, NOT REPAIRED, HARMED, or the last two together.

    check_learnt(labels, before, forget)                         # ValueError where there is nothing to repair
    found = judge(labels, before, after, forget, counted)        # print(found.line()): with what to try next

Only labels as given are read.
"""

from typing import NamedTuple

import torch
from torch.distributions import Binomial

from engine.batches import among

KEPT = 0.1  # share of the listed images that may keep their given labels, if it is no third of that before
LOST = 0.02  # accuracy that a repair may cost, beyond a paired error
TOGETHER, LEAST = 0.5, 5  # share and number of the listed images of a label from which on they go to one other class,
CHANCE = 0.01  # if so many would go there less often than this by the shares of the classes
NOT_REPAIRED, HARMED, REPAIRED = "NOT REPAIRED", "HARMED", "REPAIRED"
NEXT = {  # what to try next, by the words that hold; settings by their names and flags
    (NOT_REPAIRED,): "try a higher unlearn_lr (--lr), optimizer adam, or list more of the bad images",
    (HARMED,): "try a lower unlearn_lr (--lr) or fewer epochs, and check that what is listed is bad",
    (NOT_REPAIRED, HARMED): "check that what is listed is bad; then try a lower unlearn_lr (--lr) or list more of the "
                            "bad images"}


class Change(NamedTuple):
    """What a repair changed on some images, labels as given."""

    images: int  # N
    newly_wrong: int  # right before, wrong after
    newly_right: int
    before: float | None  # accuracy, None of no image
    after: float | None

    @property
    def fall(self) -> float:
        """Accuracy lost, (newly wrong - newly right) / N."""
        return (self.newly_wrong - self.newly_right) / max(1, self.images)

    @property
    def error(self) -> float:
        """Its paired standard error, sqrt(newly wrong + newly right) / N."""
        return (self.newly_wrong + self.newly_right) ** 0.5 / max(1, self.images)

    def harmed(self) -> bool:
        """Whether fall - error > LOST."""
        return self.fall - self.error > LOST + 1e-9  # equal numbers may differ as floats


class Together(NamedTuple):
    """The listed images of one label as given that a repair sends to one other class."""

    label: int  # as given
    called: int  # by the repaired network
    images: int  # how many
    of: int  # listed images of this label


class Verdict(NamedTuple):
    """The words that hold, and what they rest on."""

    words: tuple[str, ...]  # (REPAIRED,), or NOT_REPAIRED, HARMED or both
    listed: Change  # D_f
    counted: Change  # other training images, those that `undoubted` leaves
    heldout: Change | None  # None where nothing is held out
    together: tuple[Together, ...] = ()  # see `gone_together`

    @property
    def word(self) -> str:
        """The words in one, such as "NOT REPAIRED, HARMED"."""
        return ", ".join(self.words)

    def line(self, classes: list[str] | None = None) -> str:
        """The verdict with its numbers, where listed images go together and, unless it is REPAIRED, what to try next;
        classes: their names, None: their numbers."""
        parts = [f"{percent(self.listed.after)} of the listed images get their given labels, "
                 f"{percent(self.listed.before)} before"]
        change, what = (self.counted, "other training") if self.heldout is None else (self.heldout, "held-out")
        parts.append(f"accuracy on {change.images} {what} images {percent(change.after)}, {percent(change.before)} "
                     f"before ({-100 * change.fall + 0.0:+.1f} +- {100 * change.error:.1f} points)")
        if self.heldout is None:
            parts.append("no images are held out (test/, val/ or heldout), so what new ones lose is not seen")
        for label, called, images, of in self.together:
            label, called = (label, called) if classes is None else (classes[label], classes[called])
            parts.append(f"{images} of the {of} listed images labelled {label} are now called {called}: unless that is "
                         "what they show, the repair has only moved them, and needs true labels (true_label)")
        advice = f". Next, {NEXT[self.words]}" if self.words in NEXT else ""
        return f"{self.word}: {'; '.join(parts)}{advice}"

    def report(self) -> dict:
        """For a report in JSON."""
        def numbers(change: Change) -> dict:
            return {**change._asdict(), "fall": change.fall, "error": change.error}

        heldout = {} if self.heldout is None else {"held-out": numbers(self.heldout)}
        return {"word": self.word, "listed": numbers(self.listed), "others that count": numbers(self.counted),
                **heldout, "gone together": [found._asdict() for found in self.together]}


def percent(share: float | None) -> str:
    """A share, for a message."""
    return "none" if share is None else f"{100 * share:.1f} %"


# --- The verdict ------------------------------------------------------------------------------------------------------

def judge(labels: torch.Tensor, before: torch.Tensor, after: torch.Tensor, forget: torch.Tensor, counted: torch.Tensor,
          heldout: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None, truths: torch.Tensor | None = None
          ) -> Verdict:
    """Compare the predictions before and after a repair.

    NOT REPAIRED: more than KEPT of the listed images still get their given label, or more than a third of those
    that did before. HARMED: of N held-out images or, where there are none, of other training images that count,

        (newly wrong - newly right) / N  -  sqrt(newly wrong + newly right) / N  >  LOST

    the accuracy lost less its standard error: predictions are paired, so only images whose prediction became wrong or
    right count, and if neither were likelier their difference had the standard deviation sqrt(their number).

    Choice: of training images those in `counted` alone count, see `undoubted`: a good repair gives the undiscovered bad
    ones, up to several percent of all, other classes, and so "loses" accuracy on labels as given. Where there are
    held-out images they decide alone, since on training images a network also loses what it had memorised: of 12
    repairs that cost held-out images nothing, 7 cost those in `counted` more.
    Args: labels: (N,) int64, as given; before, after: (N,) int64, predicted; forget: (k,) int64, D_f; counted: (N,)
        bool, other training images; heldout: labels, predictions before and after of held-out images, all of which
        count; truths: (k,) int64 true labels of D_f, -1 where unknown: what was taught them needs no `gone_together`.
    """
    unknown = forget if truths is None else forget[truths.to(forget.device) < 0]
    known = among(forget, len(labels))
    listed, others = (changed(*(part[rows] for part in (labels, before, after))) for rows in (known, counted & ~known))
    held = None if heldout is None else changed(*heldout)
    words = []
    if listed.after > KEPT or 3 * listed.after > listed.before + 1e-9:  # 3 k / N may be rounded up
        words.append(NOT_REPAIRED)
    if (others if held is None else held).harmed():
        words.append(HARMED)
    return Verdict(tuple(words) or (REPAIRED,), listed, others, held, gone_together(labels, after, unknown))


def gone_together(labels: torch.Tensor, after: torch.Tensor, forget: torch.Tensor) -> tuple[Together, ...]:
    """The labels of which more listed images are now called one other class than chance would send there.

    k of the n listed images of a label that are called class c are named where k > TOGETHER n, k >= LEAST and

        P(X >= k) < CHANCE,   X ~ Binomial(n, p)

    with p the share of c among the images that are not labelled so: what a repair gives a trigger's images, which
    show all these classes, if it gives each its own. Where there are two classes p is 1, and none is named.
    Choice: the line says it, and it is no word of the verdict. Where two classes were confused it is as it should be;
    of images with a trigger it says that the trigger now means another class. Only a look at them shows which.
    Args: labels: (N,) int64, as given; after: (N,) int64, predicted; forget: (k,) int64, those of D_f whose true labels
        nobody has given.
    """
    found = []
    for label in labels[forget].unique().tolist():
        rows = forget[labels[forget] == label]
        counts = torch.bincount(after[rows])
        counts[label:label + 1] = 0
        images, called = int(counts.max()), int(counts.argmax())
        others = labels[labels != label]
        p = int((others == called).sum()) / max(1, len(others))
        if images >= LEAST and images > TOGETHER * len(rows) and tail(images, len(rows), p) < CHANCE:
            found.append(Together(label, called, images, len(rows)))
    return tuple(found)


def tail(k: int, n: int, p: float) -> float:
    """P(X >= k) of X ~ Binomial(n, p), for 0 <= k <= n and p in [0, 1]."""
    counts = torch.arange(k, n + 1, dtype=torch.float64)  # (n - k + 1,)
    return float(Binomial(n, probs=torch.tensor(p, dtype=torch.float64)).log_prob(counts).logsumexp(dim=0).exp())


def changed(labels: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> Change:
    """The change on (N,) labels and predictions, int64."""
    was, now, n = before == labels, after == labels, len(labels)
    shares = [float(hits.double().mean()) if n else None for hits in (was, now)]
    return Change(n, int((was & ~now).sum()), int((~was & now).sum()), *shares)


def undoubted(labels: torch.Tensor, forget: torch.Tensor, margins: torch.Tensor, similar: torch.Tensor | None,
              alike: torch.Tensor | None = None) -> torch.Tensor:
    """The images outside D_f that can show harm: those that the network before the repair gives no reason to doubt.

    None that looks like D_f to `looking_alike`; of each class as given, the half of the rest that looks least like D_f,
    and of that the third with the largest margin of the given label. A poisoned image looks like D_f; an image that is
    bad for its label alone, a network has learnt with less margin. The *repaired* network has no say: harm would excuse
    itself. By class, since a repair is likeliest to lose the class that the listed images had been given.

    Measured on drawn shapes (poisoned, wrong and noisy labels; network of tests/claims.py, seeds 0 to 2): of 19 repairs
    that cost held-out images nothing all other training images call 18 HARMED, these none. Of 33 repairs that held-out
    images call HARMED, at rates too high or from good images, these call 29 so; of four at the default rate one, so
    held-out images are worth having. On a published backdoored network (`badnets` in results/repair/published) 10 of
    the 755 images that count were poisoned.
    Args: labels: (N,) int64, as given; forget: (k,) int64, D_f; margins: (N,) logit margins z_k - z_y of the untouched
        network, the largest other class's less the label's; similar: (N,) `looks.probe` of its features, and alike:
        (N,) bool, `looking_alike`; None where they are not to be had.
    Returns: (N,) bool.
    """
    left = ~among(forget, len(labels))
    left = left if alike is None else left & ~alike
    for score, part in ((similar, 2), (margins, 3)):
        left = left if score is None else lowest(score, left, labels, part)
    return left


def lowest(score: torch.Tensor, among: torch.Tensor, labels: torch.Tensor, part: int) -> torch.Tensor:
    """(N,) bool: of each class, a `part`-th (rounded up) of `among`, (N,) bool, with the lowest score."""
    kept = torch.zeros_like(among)
    for label in labels[among].unique():
        rows = (among & (labels == label)).nonzero()[:, 0]
        kept[rows[score[rows].argsort(stable=True)[: -(-len(rows) // part)]]] = True
    return kept


def check_learnt(labels: torch.Tensor, before: torch.Tensor, forget: torch.Tensor) -> None:
    """Raise ValueError where under KEPT of the listed images get their given label from the network before the repair:
    it has nothing of them to forget, and step 3 would teach it the corruption."""
    share = float((labels == before)[forget].double().mean())
    if share < KEPT:
        raise ValueError(f"the network gives {100 * share:.1f} % of the {len(forget)} known bad images their labels as "
                         "given: it has not learnt them, so a repair has nothing to remove and may do harm. Check "
                         "the weights, the order of the classes (--class-map) and the list; to go on all the same: "
                         "force (--force)")
