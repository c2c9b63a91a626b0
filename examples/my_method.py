"""A user-supplied method: `python run.py --method cf,rem,examples/my_method.py:relabel` compares it with the others.

    from contract import assert_contract      # tests/contract.py, with PYTHONPATH=tests
    assert_contract(relabel)                   # what every method of this repository promises
"""

import copy
from dataclasses import replace

import torch

from baselines import restore_modes
from engine.checks import check_forget
from train import fit


def relabel(model, data, forget, config, generator):
    """Give D_f random labels and go on training on D_tr for `unlearn_epochs` epochs."""
    forget, tuned = check_forget(forget, len(data)), copy.deepcopy(model)
    labels = data.labels.clone()
    labels[forget] = torch.randint(data.classes, forget.shape, generator=generator).to(labels.device)
    data = replace(data, labels=labels)
    fit(tuned, data, None, config, generator, epochs=config.unlearn_epochs, lr=config.unlearn_lr)
    return restore_modes(model, tuned)
