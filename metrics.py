"""What the paper reports: accuracy, Healed, Utility, product, mean and standard error, regularity (Sec. 4, 6, Eq. 1).

    scores = evaluate(model, task, forget)    # healed, utility, product and more, in [0, 1]
    mean, error = mean_sem([run["product"] for run in runs])
    scores, rates = c_score(task.train, task.corrupted, learn, sizes=[0, 200], runs=3, seed=0)  # scores.mean(): task's
"""

import math
import statistics

import torch
from torch import nn

from engine.batches import per_example
from engine.masks import MaskTable
from engine.checks import NonFiniteLoss
from engine.modes import eval_mode
from engine.streams import stream
from tasks import TARGET, like_corrupted


def predict(model: nn.Module, data, index: torch.Tensor | None = None, masks: MaskTable | None = None,
            size: int = 1024) -> torch.Tensor:
    """Classes that a network gives, in eval mode, without augmentation, trigger on where the data has it.

    Args: model: plain or Expanded network; data: N examples; index: (B,) int64 dataset indices, None for all; masks:
        table of N rows for a masked pass of an Expanded, None for the base-only pass; size: of a batch, it changes
        memory and speed alone.
    Returns: (B,) int64 on the CPU, among equal logits the lowest class; parameters, modes and random states stay.
    Raises: ValueError: an empty index or one out of range; NonFiniteLoss: a logit that is not finite.
    """
    dtype = next((p.dtype for p in model.parameters()), torch.float32)

    def class_and_finite(i, x, y):
        logits = model(x) if masks is None else model(x, masks[i].to(x.device))  # (b, classes)
        return torch.stack([logits.argmax(dim=1), logits.isfinite().all(dim=1).long()], dim=1)  # (b, 2)

    with eval_mode(model), torch.no_grad():
        found = per_example(data.batches(index, size, dtype=dtype), class_and_finite, len(data)).cpu()
    classes, is_finite = found.T if index is None else found[index.cpu()].T
    if not is_finite.all():
        raise NonFiniteLoss("the network's logits are not finite; lower the rate, or look at the inputs")
    return classes


def share(hits: torch.Tensor) -> float:
    """Fraction of true entries, in [0, 1]; a ValueError for none at all, since no number would be right."""
    if len(hits) == 0:
        raise ValueError("accuracy of an empty set is undefined; give at least one example")
    return int(hits.sum()) / len(hits)


def accuracy(model: nn.Module, data, index: torch.Tensor | None = None, labels: torch.Tensor | None = None,
             masks: MaskTable | None = None) -> float:
    """Fraction of examples whose predicted class is their label.

    Args: labels: (N,) int64, of the whole data set, None for those as given; the others are those of `predict`.
    Returns: a fraction in [0, 1]: correct examples over all examples, whatever the batches.
    Raises: ValueError: an empty or wrong index; NonFiniteLoss.
    """
    labels = (data.labels if labels is None else labels).cpu()
    return share(predict(model, data, index, masks) == (labels if index is None else labels[index.cpu()]))


def evaluate(model: nn.Module, task, forget: torch.Tensor,
             original: nn.Module | None = None) -> dict[str, float | None]:
    """Healed and Utility of one network (Sec. 6 "Metrics").

    Healed: accuracy of clean labels on D_c's inputs as they were trained on. Utility: accuracy on the clean test set,
    over all classes. Only metrics may read the clean labels.
    Args: model: plain network; task: tasks.Task; forget: (k,) int64, D_f within D_c; original: the network before
        unlearning, plain or Expanded, for one score more.
    Returns: healed, healed_forget (over D_f), healed_undiscovered (over the rest of D_c; None when there is none),
        healed_test (over test images corrupted alike, see tasks.like_corrupted; None when there is none), misled (of
        poison the attack success rate: the share of triggered test images of other classes that get the target label;
        else None), utility and product = healed * utility, all fractions; acc_forget, Acc(D_f) against labels as given;
        with `original` learnt, its accuracy on D_c's labels as given: what there was to unlearn.
    Raises: ValueError: an empty D_c or test set; NonFiniteLoss: a logit that is not finite.
    """
    hits = predict(model, task.train, task.corrupted) == task.clean[task.corrupted]  # (|D_c|,)
    found = torch.isin(task.corrupted, forget.cpu())
    healed, utility = share(hits), accuracy(model, task.test)
    healed_test, success_rate = over_alike(model, task, utility)
    learnt = {} if original is None else {"learnt": accuracy(original, task.train, task.corrupted)}
    return {
        "healed": healed,
        "healed_forget": share(hits[found]),
        "healed_undiscovered": share(hits[~found]) if (~found).any() else None,
        "healed_test": healed_test,
        "misled": success_rate,
        "utility": utility,
        "product": healed * utility,
        "acc_forget": accuracy(model, task.train, forget),
        **learnt,
    }


def over_alike(model: nn.Module, task, utility: float) -> tuple[float | None, float | None]:
    """healed_test and the attack success rate, by one pass over the test images that the task corrupts alike."""
    alike = like_corrupted(task)
    if alike is task.test:
        return utility, None
    if len(alike) == 0:
        return None, None
    found, labels = predict(model, alike), alike.labels.cpu()
    others = labels != TARGET
    success_rate = share(found[others] == TARGET) if task.name == "poison" and others.any() else None
    return share(found == labels), success_rate


def mean_sem(values) -> tuple[float, float | None]:
    """Mean over runs and its standard error std(ddof=1) / sqrt(n), as in the paper's "mean +- SEM".

    Args: values: one finite number per run, at least one.
    Returns: (mean, sem); sem is None for a single run.
    Raises: ValueError for no value.
    """
    values = [float(v) for v in values]
    if not values:
        raise ValueError("mean of no runs is undefined; give at least one value")
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


# --- Regularity -------------------------------------------------------------------------------------------------------

def c_score(data, corrupted: torch.Tensor, learn, sizes, runs: int, seed: int,
            log=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Consistency score of each example of D_c: how well other examples of D_c predict its label as given (Eq. 1).

    Eq. 1: C_hat(x, y) = E_n E^r_{D ~ D_c, |D| = n} P(f(x; D - {(x, y)}) = y), after Jiang et al. 2020. The mean over
    D_c is the regularity of the corruption.

    Choice: n counts what a network learns from, that is D without (x, y): Eq. 1's n = |D_c| is size |D_c| - 1 here,
    leave one out; size 0 is an untrained network. An example is scored by those networks alone whose subset did not
    hold it, by whether they predict its label. Sizes weigh alike, and so do an example's networks of one size.
    Args:
        data: D_tr, of which no label but D_c's as given is read; corrupted: (m,) int64, D_c.
        learn: learn(index, seed) -> network trained on the dataset indices `index`, (n,) int64 in the order of D_c,
            empty at size 0; `seed` of its weights and order differs from call to call.
        sizes: different numbers n from 0 to m - 1, in the order of learning.
        runs: r, networks of each size; at least m / (m - n) for every n, so that each example is held out once or more.
        seed: of the subsets and of the networks' seeds; log: called as log(done, networks, size, rate) after each.
    Returns: (m,) float64 scores in [0, 1]; (sizes, runs) float64, each network's accuracy on what it was not taught.
    Raises: ValueError where D_c, sizes or runs are not as described.
    """
    sizes = list(sizes)
    check_c_score(data, corrupted, sizes, runs)
    corrupted, n = corrupted.cpu(), len(corrupted)
    labels = data.labels.cpu()[corrupted]
    hits, tries = torch.zeros(2, len(sizes), n, dtype=torch.float64)  # of each example at each size
    rates = torch.zeros(len(sizes), runs, dtype=torch.float64)
    for row, size in enumerate(sizes):
        for run, held in enumerate(held_out(n, size, runs, seed)):
            model = learn(corrupted[~held], stream(seed, f"c-score network {size} {run}").initial_seed())
            hit = predict(model, data, corrupted[held]) == labels[held]  # (n - size,)
            hits[row, held] += hit
            tries[row] += held
            rates[row, run] = share(hit)
            if log is not None:
                log(row * runs + run + 1, rates.numel(), size, float(rates[row, run]))
    return (hits / tries).mean(dim=0), rates  # E^r of each size, then E_n


def held_out(n: int, size: int, runs: int, seed: int) -> torch.Tensor:
    """What each of the networks of one size does not learn from.

    Choice: the r subsets are not independent: the held-out sets follow each other round one random order of D_c. Each
    subset alone is a uniform draw, and all examples are held out equally often, or once more.
    Args: n: |D_c|; size: of the `runs` subsets, from 0 to n - 1; seed: of the order, which depends on `size` too.
    Returns: (runs, n) bool, n - size true entries per row.
    """
    order = torch.randperm(n, generator=stream(seed, f"c-score subsets {size}"))
    places = torch.arange(runs)[:, None] * (n - size) + torch.arange(n - size)  # (runs, n - size)
    return torch.zeros(runs, n, dtype=torch.bool).scatter_(1, order[places % n], True)


def check_c_score(data, corrupted: torch.Tensor, sizes: list[int], runs: int) -> None:
    """Raise a ValueError that says what is wrong with D_c, the sizes or the number of networks of `c_score`."""
    n = len(corrupted)
    if n == 0:
        raise ValueError("D_c is empty; the C-score is a mean over at least one corrupted example")
    if not 0 <= int(corrupted.min()) <= int(corrupted.max()) < len(data) or len(corrupted.unique()) < n:
        lowest, highest, repeated = int(corrupted.min()), int(corrupted.max()), n - len(corrupted.unique())
        raise ValueError(f"D_c must be different indices from 0 to {len(data) - 1}; it runs from {lowest} to {highest} "
                         f"with {repeated} repeated")
    if not sizes or len(set(sizes)) < len(sizes) or not 0 <= min(sizes) <= max(sizes) < n:
        raise ValueError(f"sizes are {sizes}; they must be one or more different numbers from 0 to {n - 1}, since at "
                         f"least one of the {n} corrupted examples is held out")
    least = -(-n // (n - max(sizes)))
    if runs < least:
        raise ValueError(f"runs is {runs}; at {max(sizes)} of {n} examples it takes at least {least} for each to be "
                         "held out")
