"""Every method of the paper's tables, each one function of one signature; methods.py has the dict of all (Sec. 3, Table 1).

    unlearned = fine_tune(model, task.train, forget, config, generator)
    unlearned = rem_ideal(model, task.train, forget, config, generator, corrupted=task.corrupted)

Every method takes (model, data, forget, config, generator): the trained network, D_tr with its labels as given, D_f as
int64 dataset indices, the settings, and the generator of order and augmentation. It returns a plain network and leaves what
it was given as it was. Choice: rates are constant at `unlearn_lr` unless a docstring says otherwise.
"""

import copy
import warnings
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from data import Data, count_batches
from etd import drop
from train import train_etd
from importance import potion, ssd  # noqa: F401 (methods of the tables)
from etd import Expanded
from metrics import accuracy
from passes import fresh, hand_back, passing, retain_set, teacher
from rem import check_forget, finish, rem, remove, start, trains_on_forget
from settings import Config
from train import fit

SCRUB_TEMPERATURE = 4.0
SCRUB_STEPS = 100  # passes over D_f stop once this many updates are done: two passes at CIFAR-10's 98 an epoch


# --- Training on ----------------------------------------------------------------------------------------------------------


def no_ul(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator) -> nn.Module:
    """No unlearning: a copy of the trained network (Table 1 "No UL"; with ETD training, ETD alone)."""
    check_forget(forget, len(data))
    return copy.deepcopy(model)


def retrain(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator,
            log=None) -> nn.Module:
    """Train a fresh network on D_r with the full recipe: `epochs` at peak rate `lr` (Sec. 3 "Retraining from scratch").

    Loss: CE on D_r, undiscovered corruption included. Choice: fresh weights as `fresh` draws them.
    """
    retain = retain_set(forget, len(data))
    anew = fresh(model, config)
    fit(anew, data, retain, config, generator, log=log)
    return hand_back(model, anew)


def fine_tune(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator,
              log=None) -> nn.Module:
    """CF, catastrophic forgetting: go on training on D_r for `unlearn_epochs` epochs (Sec. 3 "Fine-tuning").

    Loss: CE on D_r, undiscovered corruption included. The rate warms up to `unlearn_lr` and falls to one fifth of it.
    """
    retain = retain_set(forget, len(data))
    tuned = copy.deepcopy(model)
    fit(tuned, data, retain, config, generator, epochs=config.unlearn_epochs, lr=config.unlearn_lr, log=log)
    return hand_back(model, tuned)


# --- Away from D_f --------------------------------------------------------------------------------------------------------


def ascent(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator) -> nn.Module:
    """Gradient ascent on D_f (Sec. 3 "Ascent").

    Loss: -CE on D_f, whole passes until Acc(D_f) <= gamma, at most `max_passes`, then a warning. Acc(D_f) is against the
    labels as given, in eval mode, before the first pass and after each.
    The passes run in training mode unless `forget_norm` says otherwise (see rem.trains_on_forget).
    """
    forget, net, passes = check_forget(forget, len(data)), copy.deepcopy(model), 0
    one_pass, training = passing(net, data, config, generator), trains_on_forget(config, forget)
    while (acc := accuracy(net, data, forget)) > config.gamma and passes < config.max_passes:
        one_pass(forget, lambda logits, rows, x, y: -F.cross_entropy(logits, y), "a pass of ascent", training)
        passes += 1
    if acc > config.gamma:
        warnings.warn(f"Acc(D_f) is {acc:.2f} after {passes} passes, still above gamma = {config.gamma}", stacklevel=2)
    return hand_back(model, net)


def npo(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator) -> nn.Module:
    """NPO (Zhang et al. 2024a): Algorithm 1's step 2 alone, without theta_o2 (Table 2: no 3.1 and no 3.2).

    Loss: -h(CE - CE_ref) on D_f, whole passes until Acc(D_f) <= gamma, in training mode unless `forget_norm` says otherwise.
    Being REM's own step 2, it takes the networks that `expand.expand` takes and no other (TypeError).
    """
    state = start(model, data, forget, replace(config, ratio=0.0, step31=False, step32=False), generator)
    remove(state)
    return finish(state)


# --- Distillation ---------------------------------------------------------------------------------------------------------


def scrub(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator,
          log=None) -> nn.Module:
    """SCRUB (Kurmanji et al. 2023): towards the original network on D_r, away from it on D_f.

    Loss on D_r: CE + alpha KD(original), KD at temperature 4; on D_f: minus the same sum. A pass over D_f comes before the
    pass over D_r while fewer than SCRUB_STEPS updates are done; `unlearn_epochs` epochs; alpha of A.3.
    Choice: updates of both kinds of pass count; all run in training mode, `forget_norm` has no part in it.
    """
    retain, student, steps = retain_set(forget, len(data)), copy.deepcopy(model), 0
    one_pass, original = passing(student, data, config, generator), teacher(model, data, config)

    def loss(logits, rows, x, y):
        return F.cross_entropy(logits, y) + config.alpha * distillation(logits, original(rows, x), SCRUB_TEMPERATURE)

    for epoch in range(1, config.unlearn_epochs + 1):
        if steps < SCRUB_STEPS:
            one_pass(forget, lambda *batch: -loss(*batch), f"SCRUB's pass over D_f in epoch {epoch}")
            steps += count_batches(len(forget), config.batch)
        mean = one_pass(retain, loss, f"SCRUB's pass over D_r in epoch {epoch}")
        steps += count_batches(len(retain), config.batch)
        if log is not None:
            log(epoch, config.unlearn_epochs, student, loss=mean)
    return hand_back(model, student)


def bad_teacher(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator,
                log=None) -> nn.Module:
    """BadT (Chundawat et al. 2023): D_f learns a freshly initialised network's answers, D_r the original's.

    Loss: KL(teacher || student) on D_tr, temperature 1, `unlearn_epochs` epochs. Both teachers in eval mode.
    """
    forget, student = check_forget(forget, len(data)), copy.deepcopy(model)
    in_forget = torch.zeros(len(data), dtype=torch.bool).index_fill_(0, forget, True)
    original, bad = teacher(model, data, config), teacher(fresh(model, config), data, config, forget)
    one_pass = passing(student, data, config, generator)

    def loss(logits, rows, x, y):
        target = original(rows, x)  # (B, classes)
        found = in_forget[rows].nonzero().flatten()  # on the CPU: known without waiting for the device
        if len(found):
            here = found.to(x.device, non_blocking=True)
            target[here] = bad(rows[found], x[here])
        return distillation(logits, target)

    for epoch in range(1, config.unlearn_epochs + 1):
        mean = one_pass(None, loss, f"BadT epoch {epoch}")
        if log is not None:
            log(epoch, config.unlearn_epochs, student, loss=mean)
    return hand_back(model, student)


def distillation(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """KL(teacher || student) at a temperature, summed over classes, mean over the batch, times temperature squared.

    Args:
        student, teacher: (B, classes) logits; gradients flow into the student's alone.
        temperature: > 0.
    """
    # T^2 / B  sum_i sum_c  p_ic (log p_ic - log q_ic),  p = softmax(teacher / T), q = softmax(student / T)
    log_q, log_p = F.log_softmax(student / temperature, dim=1), F.log_softmax(teacher.detach() / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


# --- ETD, and REM by other names ------------------------------------------------------------------------------------------


def etd(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator, log=None) -> nn.Module:
    """ETD alone: train a fresh network with example-tied dropout on D_tr and drop theta_o2; D_f plays no part (Sec. 3).

    Loss: CE under each example's mask, the full training recipe.
    """
    check_forget(forget, len(data))
    return hand_back(model, drop(train_etd(fresh(model, config), data, config, generator, log=log)))


def etd_ideal(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator, *,
              corrupted: torch.Tensor, log=None) -> nn.Module:
    """ETD (IDEAL), Fig. 9: as `etd`, with one mask row for all of D_c from the start; it knows more than it may."""
    check_forget(forget, len(data))
    return hand_back(model, drop(train_etd(fresh(model, config), data, config, generator, shared=corrupted, log=log)))


def rem_on_etd(model: Expanded, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator,
               log=None) -> nn.Module:
    """REM on ETD (Table 1, ETD tick): REM whose theta_o2 is the memorisation partition of an ETD-trained network."""
    if not isinstance(model, Expanded):
        raise ValueError("rem-on-etd works on an ETD-trained network with its theta_o2; add --etd or pass train_etd's result")
    return rem(model, data, forget, config, generator, log=log)


def rem_ideal(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator, *,
              corrupted: torch.Tensor, log=None) -> nn.Module:
    """REM (IDEAL), Fig. 3: all of D_c shares a mask row, while D_f alone is removed; it knows more than it may."""
    return rem(model, data, forget, config, generator, shared=corrupted, log=log)


def rem_no31(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator,
             log=None) -> nn.Module:
    """REM without 3.1 (Table 2, Fig. 7): theta_o1 is fine-tuned on D_r in place of the redirection."""
    return rem(model, data, forget, replace(config, step31=False, step32=True), generator, log=log)


def rem_no32(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator,
             log=None) -> nn.Module:
    """REM without 3.2 (Table 2, Fig. 7): redirection without the barrier that keeps D_f out of theta_o1."""
    return rem(model, data, forget, replace(config, step31=True, step32=False), generator, log=log)


def rem_ce(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator,
           log=None) -> nn.Module:
    """REM that redirects by plain cross-entropy in place of Eq. 2's term in 3.1; an ablation that the paper does not have."""
    return rem(model, data, forget, replace(config, redirect="ce"), generator, log=log)
