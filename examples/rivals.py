"""What examples/trials.py compares a repair with: each a function (model, trial, subject, seed, rate) -> network.

    network = fine_tuned(model, trial, SUBJECTS["vgg"], seed=0, rate=0.3)

`subject` says how the network was made and trained; `rate` is a factor of a rate, for `pruned` the u of its threshold.
What is given is left as it is.
"""

import functools
from dataclasses import replace

import torch
from torch import nn

from engine.batches import among
from engine.modes import NORMS, copy_of, refresh_batchnorm
from engine.streams import stream
from examples.corrupted import Trial
from examples.zoo import Subject
from experiment.settings import Config
from repair.network import choose_settings, repair_quietly
from train import fit

EPOCHS = 5  # of fine-tuning
TIMES = 5  # how often an epoch of `taught` has each listed image


def fine_tuned(model: nn.Module, trial: Trial, subject: Subject, seed: int, rate: float) -> nn.Module:
    """Fine-tuning without the listed images."""
    net, index = copy_of(model), rest_of(trial)
    fit(net, trial.train, index, subject.training, stream(seed, "fine-tuning"), epochs=EPOCHS,
        lr=rate * subject.training.lr)
    return ended(net, trial, index, subject)


def taught(model: nn.Module, trial: Trial, subject: Subject, seed: int, rate: float) -> nn.Module:
    """Fine-tuning with the listed images at their true labels, TIMES each per epoch."""
    labels = trial.train.labels.clone()
    labels[trial.known] = trial.truth[trial.known]
    index = torch.cat([rest_of(trial), *[trial.known] * TIMES])
    net = copy_of(model)
    fit(net, replace(trial.train, labels=labels), index, subject.training, stream(seed, "fine-tuning"),
        epochs=EPOCHS, lr=rate * subject.training.lr)
    return ended(net, trial, index, subject)


def retrained(model: nn.Module, trial: Trial, subject: Subject, seed: int, rate: float) -> nn.Module:
    """Training anew without the listed images, from other weights, for as many epochs as the network was trained."""
    net, index = subject.network(seed + 1000), rest_of(trial)
    fit(net, trial.train, index, subject.training, stream(seed, "retraining"), lr=rate * subject.training.lr)
    return ended(net, trial, index, subject)


def ended(net: nn.Module, trial: Trial, index: torch.Tensor, subject: Subject) -> nn.Module:
    """The network in eval mode, its statistics of BatchNorm made anew over what it was trained on, as in REM and in the
    finish: no difference shall come of those."""
    refresh_batchnorm(net, trial.train, subject.training.batch, index=index)
    return net.eval()


@functools.lru_cache(maxsize=3)  # a repair goes on from the one at rate 1
def rem_alone(model: nn.Module, trial: Trial, subject: Subject, seed: int, rate: float) -> nn.Module:
    """REM, with the settings that `repair` chooses but for a factor of its rate."""
    rate = rate * settings_of(model, trial).unlearn_lr
    return repair_quietly(model, trial.train, trial.known, seed=seed, unlearn_lr=rate)


def settings_of(model: nn.Module, trial: Trial) -> Config:
    """What `repair` chooses."""
    return choose_settings(model, len(trial.train), {})[0]


@torch.no_grad()
def pruned(model: nn.Module, trial: Trial, subject: Subject, seed: int, rate: float) -> nn.Module | None:
    """Pruning by channel Lipschitzness (CLP, Zheng et al. 2022), without data; None of a network without BatchNorm.

    Channel k of a convolution before a BatchNorm has the bound |gamma_k| / sqrt(var_k + eps) times the largest
    singular value of its weight, an (inputs, height x width) matrix. Those above mean + u std of their layer are
    zeroed, weight and bias of the norm; u is `rate`.
    """
    net, convolution, pairs = copy_of(model), None, 0
    for module in net.modules():  # a norm follows its convolution in torchvision's and timm's networks
        if isinstance(module, nn.Conv2d):
            convolution = module
        elif isinstance(module, NORMS) and convolution is not None:
            if len(convolution.weight) != len(module.weight):
                continue
            largest = torch.linalg.matrix_norm(convolution.weight.flatten(2), ord=2)  # (channels,)
            bound = (module.weight / (module.running_var + module.eps).sqrt()).abs() * largest
            outlying = bound > bound.mean() + rate * bound.std()
            module.weight[outlying] = module.bias[outlying] = 0
            convolution, pairs = None, pairs + 1
    return net.eval() if pairs else None


def rest_of(trial: Trial) -> torch.Tensor:
    """(N - k,) int64, the images that are not listed."""
    return (~among(trial.known, len(trial.train))).nonzero()[:, 0]


# name: function, its three rates
RIVALS = {"fine-tuned": (fine_tuned, (0.1, 0.3, 1.0)), "taught": (taught, (0.1, 0.3, 1.0)),
          "retrained": (retrained, (0.5, 1.0, 2.0)), "REM": (rem_alone, (0.5, 1.0, 2.0)),
          "CLP": (pruned, (1.0, 2.0, 3.0))}
