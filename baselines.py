"""Every other method, each one function of one signature, and the dict of all of them (Sec. 3, Table 1).

    unlearned = METHODS["cf"](model, task.train, forget, config, generator)
"""

import copy
from dataclasses import replace

import torch
from torch import nn

from data import Data
from rem import check_forget, finish, rem, remove, start
from settings import Config
from train import fit


def no_ul(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator) -> nn.Module:
    """No unlearning: a copy of the trained network (Table 1 "No UL"; with ETD training, ETD alone)."""
    check_forget(forget, len(data))
    return copy.deepcopy(model)


def fine_tune(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator,
              log=None) -> nn.Module:
    """CF, catastrophic forgetting: go on training on D_r for `unlearn_epochs` epochs (Sec. 3 "Fine-tuning").

    Loss: CE on D_r, undiscovered corruption included. The rate warms up to `unlearn_lr` and falls to one fifth of it.
    """
    forget = check_forget(forget, len(data))
    retain = torch.ones(len(data), dtype=torch.bool).index_fill_(0, forget, False).nonzero().flatten()
    tuned = copy.deepcopy(model)
    fit(tuned, data, retain, config, generator, epochs=config.unlearn_epochs, lr=config.unlearn_lr, log=log)
    return copy_modes(model, tuned)


def npo(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator) -> nn.Module:
    """NPO (Zhang et al. 2024a): Algorithm 1's step 2 alone, without theta_o2 (Table 2: no 3.1 and no 3.2).

    Loss: -h(CE - CE_ref) on D_f, whole passes until Acc(D_f) <= gamma.
    """
    state = start(model, data, forget, replace(config, ratio=0.0, step31=False), generator)
    remove(state)
    return finish(state)


def copy_modes(source: nn.Module, target: nn.Module) -> nn.Module:
    """Give each module of `target` the training flag of its twin in `source`; returns target."""
    for a, b in zip(source.modules(), target.modules(), strict=True):
        b.training = a.training
    return target


METHODS = {"no-ul": no_ul, "cf": fine_tune, "npo": npo, "rem": rem}
