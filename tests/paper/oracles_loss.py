"""Naive twins of Eq. 2, of the step-2 and step-3 losses and of the metrics: numpy, loops and probabilities alone."""

import math

import numpy as np


def softmax(logits) -> np.ndarray:
    """(B, classes) probabilities, one row at a time."""
    rows = []
    for row in np.asarray(logits, dtype=np.float64):
        weights = [math.exp(v - max(row)) for v in row]
        rows.append([w / math.fsum(weights) for w in weights])
    return np.array(rows)


def npo(p: float, p_ref: float, beta: float) -> float:
    """The NPO term from probabilities: (2 / beta) log sigmoid(-beta log(p / p_ref)) = -(2 / beta) log(1 + (p /
    p_ref)^beta)."""
    return -2 / beta * math.log1p((p / p_ref) ** beta)


def of_label(logits, labels) -> list[float]:
    """The probability of each example's label."""
    return [float(p[y]) for p, y in zip(softmax(logits), labels, strict=True)]


def step2_loss(base, base_ref, labels, beta: float) -> float:
    """-L_remove: the mean over D_f of -npo(p_base, p_ref), from logits."""
    terms = [npo(p, r, beta) for p, r in zip(of_label(base, labels), of_label(base_ref, labels), strict=True)]
    return -math.fsum(terms) / len(terms)


def step3_loss(full, full_ref, base, base_ref, labels, in_forget, beta: float, redirect=True, remove=True) -> float:
    """L_redirect - L_remove, from logits: over the whole batch, and over its members of D_f, both divided by the batch
    size."""
    total, size = [], len(labels)
    for i in range(size):
        one = slice(i, i + 1)
        if redirect:
            total.append(npo(of_label(full[one], labels[one])[0], of_label(full_ref[one], labels[one])[0], beta))
        if remove and in_forget[i]:
            total.append(-npo(of_label(base[one], labels[one])[0], of_label(base_ref[one], labels[one])[0], beta))
    return math.fsum(total) / size


def predictions(logits) -> list[int]:
    """The first class of the largest logit."""
    out = []
    for row in logits.tolist():
        best = 0
        for c in range(1, len(row)):
            if row[c] > row[best]:
                best = c
        out.append(best)
    return out


def accuracy(guesses, labels) -> float:
    """Share of guesses that are the label."""
    right = 0
    for guess, label in zip(guesses, labels, strict=True):
        right += int(guess) == int(label)
    return right / len(labels)


def update_count(script, gamma: float, batches: int, most: int) -> int:
    """Updates of one step 2 whose accuracies are read from `script` (the last one stays): whole passes until one is <=
    gamma."""
    updates = 0
    for measured in range(most):
        if script[min(measured, len(script) - 1)] <= gamma:
            break
        updates += batches
    return updates
