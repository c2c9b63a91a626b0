"""The paper's claims at a size that runs in seconds: 2,000 images of fashion-mini, ResNet-9 at an eighth of its width.

Seeds are fixed and everything runs on one thread, so a bound is either met or not on a given library version; the bounds lie
far from what three seeds gave (in the comments), so that another version's rounding does not decide.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from baselines import METHODS
from cell import new_model, train_original
from data import load
from etd import drop, mask_table
from metrics import accuracy, evaluate
from settings import resolve, stream
from tasks import discover, make_task

SEEDS = (0, 1, 2)
pytestmark = pytest.mark.slow


@cache
def small():
    """fashion-mini cut to 2,000 training and 1,000 test images."""
    dataset = load("fashion-mini")

    def cut(data, n):
        return replace(data, images=data.images[:n], labels=data.labels[:n])

    return replace(dataset, train=cut(dataset.train, 2000), test=cut(dataset.test, 1000))


@cache
def trained(name, seed, etd=False):
    """Settings, task and trained network; 10 % of the images are corrupted."""
    config = resolve(dict(task=name, seed=seed, etd=etd, n=200, width=0.25, epochs=10, batch=64, unlearn_epochs=5,
                          unlearn_lr=0.01, device="cpu", quiet=True))
    task = make_task(name, small(), config.n, seed)
    return config, task, train_original(config, task, new_model(config, small()))


@cache
def unlearned(seed):
    """REM at discovery 0.5 on the poisoned network: scores before and after, and Fig. 5's curve, one pair an epoch."""
    config, task, original = trained("poison", seed)
    forget, curve = discover(task, 0.5, seed), []

    def log(epoch, epochs, net, **values):
        channel = mask_table(len(task.train), net.width, config.p_mem, config.seed, forget)[forget[:1]].expand(len(task.train), -1)
        curve.append((accuracy(net, task.train, task.corrupted), accuracy(net, task.train, task.corrupted, masks=channel)))

    net = METHODS["rem"](original, task.train, forget, config, stream(seed, "unlearning"), log=log)
    return evaluate(original, task, forget), evaluate(net, task, forget), curve


def test_rem_heals_the_poison():
    """S1: the trigger is learnt before; after REM most images are healed, the undiscovered ones too, at the same utility."""
    for seed in SEEDS:
        _, task, original = trained("poison", seed)
        before, after, _ = unlearned(seed)
        assert accuracy(original, task.train, task.corrupted) >= 0.9  # 1.00 on every seed
        assert before["healed"] <= 0.2  # 0.08 to 0.10
        assert after["utility"] >= before["utility"] - 0.05  # 0.83 to 0.84, against 0.82 to 0.84
    healed = [unlearned(seed)[1] for seed in SEEDS]
    assert sum(scores["healed"] for scores in healed) / 3 >= 0.4
    assert sum(scores["healed_undiscovered"] for scores in healed) / 3 >= 0.4


def test_corruption_moves_to_the_channel():
    """S3: Fig. 5: on D_c's given labels theta_o1 loses its accuracy while theta_o1 with D_f's mask keeps it."""
    for seed in SEEDS:
        curve = unlearned(seed)[2]
        base, through_the_mask = curve[-1]
        assert len(curve) == 5 and through_the_mask >= 0.9  # 0.99 to 1.00
        assert through_the_mask - base >= 0.3


def scores_of(method, config, task, original, rate):
    """Scores of one method at a discovery rate."""
    forget = discover(task, rate, config.seed)
    return evaluate(METHODS[method](original, task.train, forget, config, stream(config.seed, "unlearning")), task, forget)


def test_healing_does_not_fall_with_discovery():
    """S5: Healed of REM rises with the discovery rate: mean rank correlation over seeds, and no loss from 0.1 to 1."""
    correlations = []
    for seed in SEEDS:
        config, task, original = trained("poison", seed)
        few, half, all_ = (scores_of("rem", config, task, original, 0.1)["healed"], unlearned(seed)[1]["healed"],
                           scores_of("rem", config, task, original, 1.0)["healed"])
        assert all_ >= few + 0.2  # 0.52 to 0.67 against 0.09 to 0.14
        correlations.append(np.corrcoef([0, 1, 2], np.argsort(np.argsort([few, half, all_])))[0, 1])
    assert np.mean(correlations) >= 0.5  # 0.83; by chance in 15 % of cases, hence the bound above


def test_rem_beats_training_on_what_is_left():
    """S2: at discovery 0.2 REM heals poison that fine-tuning and retraining on D_r, four fifths of it included, bring back.

    On all 6,000 images: among 2,000 the trigger comes back to REM too (README, "Small data"). One seed, since it takes long.
    """
    config = resolve(dict(task="poison", seed=0, width=0.25, unlearn_lr=0.03, device="cpu", quiet=True))
    dataset = load("fashion-mini")
    task = make_task("poison", dataset, config.n, 0)
    original = train_original(config, task, new_model(config, dataset))
    rem, cf, retrain = (scores_of(name, config, task, original, 0.2) for name in ("rem", "cf", "retrain"))
    assert rem["healed"] >= max(cf["healed"], retrain["healed"]) + 0.15  # 0.69 against 0.11; seeds 1 and 2: 0.51, 0.55
    assert rem["utility"] >= 0.8  # 0.84 to 0.85


def test_etd_heals_the_irregular_alone():
    """S4: ETD without unlearning heals random labels, not the poison."""
    _, task, network = trained("random", 0, etd=True)
    _, _, plain = trained("random", 0)
    forget = discover(task, 0.5, 0)
    etd_scores, plain_scores = evaluate(drop(network), task, forget), evaluate(plain, task, forget)
    assert etd_scores["healed"] >= plain_scores["healed"] + 0.08  # 0.80 against 0.59
    _, task, network = trained("poison", 0, etd=True)
    assert evaluate(drop(network), task, discover(task, 0.5, 0))["healed"] <= 0.2  # 0.10


def test_no_unlearning_changes_nothing():
    """S6: "no unlearning" is the trained network, bit for bit."""
    config, task, original = trained("poison", 0)
    same = METHODS["no-ul"](original, task.train, discover(task, 0.5, 0), config, torch.Generator())
    for (key, a), (other, b) in zip(original.state_dict().items(), same.state_dict().items(), strict=True):
        assert key == other and torch.equal(a, b)
