"""Every method of the paper's tables, each one function of one signature, in the order of Sec. 3 (Table 1).

    unlearned = fine_tune(model, task.train, forget, config, generator)
    unlearned = rem_ideal(model, task.train, forget, config, generator, corrupted=task.corrupted)

Every method takes (model, data, forget, config, generator): the trained network, D_tr with its labels as given, D_f as
int64 dataset indices, the settings, and the generator of order and augmentation. It returns a plain network and leaves
what it was given as it was. Choice: rates are constant at `unlearn_lr` unless a docstring says otherwise.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from data import Data, batches, count_batches
from etd import (Expanded, descend, drop, eval_mode, finite, finite_weights, logits_of, make_optimizer,
                 stream)
from metrics import accuracy
from models import reinitialise
from rem import check_forget, finish, rem, remove, start, trains_on_forget
from settings import Config
from train import fit, train_etd

SCRUB_TEMPERATURE = 4.0
SCRUB_STEPS = 100  # passes over D_f stop once this many updates are done: two passes at CIFAR-10's 98 per epoch
SSD_ALPHA = 10.0  # Foster et al. 2024: a weight is dampened where it matters this many times more for D_f than for D_tr
SSD_LAMBDA = 1.0  # and by how much
POTION_GROWTH = 1.1  # Schoepf et al. 2024b: the share of weights grows by 10 % per try
POTION_TRIES = 50


def no_ul(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator) -> nn.Module:
    """No unlearning: a copy of the trained network (Table 1 "No UL"; with ETD training, ETD alone)."""
    check_forget(forget, len(data))
    return copy.deepcopy(model)


# --- Distillation -----------------------------------------------------------------------------------------------------

def bad_teacher(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator,
                log=None) -> nn.Module:
    """BadT (Chundawat et al. 2023): D_f learns a freshly initialised network's answers, D_r the original's.

    Loss: KL(teacher || student) on D_tr, temperature 1, `unlearn_epochs` epochs. Both teachers in eval mode.
    """
    forget, student = check_forget(forget, len(data)), copy.deepcopy(model)
    in_forget = torch.zeros(len(data), dtype=torch.bool).index_fill_(0, forget, True)
    original, bad = teacher(model, data, config), teacher(fresh(model, config), data, config, forget)
    optimizer = make_optimizer(student, config, config.unlearn_lr)

    def loss(logits, rows, x, y):
        target = original(rows, x)  # (B, classes)
        found = in_forget[rows].nonzero().flatten()  # on the CPU: known without waiting for the device
        if len(found):
            here = found.to(x.device, non_blocking=True)
            target[here] = bad(rows[found], x[here])
        return distillation(logits, target)

    for epoch in range(1, config.unlearn_epochs + 1):
        mean = run_epoch(student, optimizer, data, None, loss, config, generator, f"BadT epoch {epoch}")
        if log is not None:
            log(epoch, config.unlearn_epochs, student, loss=mean)
    return restore_modes(model, student)


def scrub(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator,
          log=None) -> nn.Module:
    """SCRUB (Kurmanji et al. 2023): towards the original network on D_r, away from it on D_f.

    Loss on D_r: CE + alpha KD(original), KD at temperature 4; on D_f: minus the same sum. A pass over D_f comes before
    the pass over D_r while fewer than SCRUB_STEPS updates are done; `unlearn_epochs` epochs; alpha of A.3.
    Choice: updates of both kinds of pass count; all run in training mode, `forget_norm` has no part in it.
    """
    retain, student, steps = retain_set(forget, len(data)), copy.deepcopy(model), 0
    optimizer, original = make_optimizer(student, config, config.unlearn_lr), teacher(model, data, config)

    def towards(logits, rows, x, y):
        return F.cross_entropy(logits, y) + config.alpha * distillation(logits, original(rows, x), SCRUB_TEMPERATURE)

    def away(*batch):
        return -towards(*batch)

    for epoch in range(1, config.unlearn_epochs + 1):
        if steps < SCRUB_STEPS:
            run_epoch(student, optimizer, data, forget, away, config, generator, f"SCRUB's D_f pass {epoch}")
            steps += count_batches(len(forget), config.batch)
        mean = run_epoch(student, optimizer, data, retain, towards, config, generator, f"SCRUB's D_r pass {epoch}")
        steps += count_batches(len(retain), config.batch)
        if log is not None:
            log(epoch, config.unlearn_epochs, student, loss=mean)
    return restore_modes(model, student)


def distillation(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """KL(teacher || student) of (B, classes) logits at a temperature; gradients flow into the student's alone."""
    # T^2 / B  sum_i sum_c  p_ic (log p_ic - log q_ic),  p = softmax(teacher / T), q = softmax(student / T)
    log_q, log_p = F.log_softmax(student / temperature, dim=1), F.log_softmax(teacher.detach() / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


def teacher(net: nn.Module, data: Data, config: Config, index: torch.Tensor | None = None):
    """A function (rows, x) -> logits (B, classes) of a frozen copy in eval mode.

    Without augmentation the answers never change: then they are computed once, for the examples of `index` (None: all).
    """
    frozen = copy.deepcopy(net).requires_grad_(False).eval()

    @torch.no_grad()
    def answer(rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return logits_of(frozen, x, config.precision)

    if data.augments or data.part[1] > 1:  # of several processes each has seen its share alone
        return answer
    seen = [(rows, answer(rows, x)) for rows, x, _ in batches(data, index, dtype=next(frozen.parameters()).dtype)]
    rows, logits = (torch.cat(part) for part in zip(*seen, strict=True))
    known = logits.new_zeros((len(data), logits.shape[1])).index_copy_(0, rows.to(logits.device), logits)
    return lambda rows, x: known[rows.to(known.device, non_blocking=True)]


# --- Dampening --------------------------------------------------------------------------------------------------------

def ssd(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator) -> nn.Module:
    """SSD, selective synaptic dampening (Foster et al. 2024): shrink the weights that matter much more for D_f.

    Importance I on D_tr and I_f on D_f: mean over batches of the squared gradient of CE, in eval mode. One shot: where
    I_f > alpha I, weight *= min(1, lambda I / I_f); alpha 10, lambda 1. Choice: no augmentation, so nothing is drawn.
    """
    forget, net = check_forget(forget, len(data)), copy.deepcopy(model)
    of_all, of_forget = (importance(net, losses(net, data, index, config, F.cross_entropy)) for index in (None, forget))
    dampen(net, model, of_forget, of_all, SSD_ALPHA, SSD_LAMBDA)
    return restore_modes(model, net)


def potion(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator,
           log=None) -> nn.Module:
    """Potion (Schoepf et al. 2024b): dampen more and more weights until Acc(D_f) <= gamma.

    Importance on D_r and D_f of the original network: mean over batches of the absolute gradient of the mean L2 norm of
    the logits, which needs no labels. Cut c: percentile 100 - ln(1 + 100 f) of I_f / I_r; where I_f > c I_r, weight *=
    min(1, I_r / I_f). f starts at |D_f| / |D_tr| and grows by 10 % per try, each from the original weights; 50 tries,
    then a warning. Choice: a network at or below gamma is left as it is; no augmentation, so nothing is drawn.
    """
    retain, net = retain_set(forget, len(data)), copy.deepcopy(model)
    acc = accuracy(net, data, forget)
    if acc <= config.gamma:
        say_end(log, net, config, 0, "tries of Potion", acc)
        return restore_modes(model, net)
    of_retain, of_forget = (importance(net, losses(net, data, index, config, output_norm), torch.abs)
                            for index in (retain, forget))
    ratios, fraction, tries = sorted_ratios(of_forget, of_retain), len(forget) / len(data), 0
    while acc > config.gamma and tries < POTION_TRIES:
        dampen(net, model, of_forget, of_retain, percentile(ratios, 100 - math.log1p(100 * fraction)))
        acc = accuracy(net, data, forget)
        fraction, tries = fraction * POTION_GROWTH, tries + 1
    say_end(log, net, config, tries, "tries of Potion", acc)
    return restore_modes(model, net)


def output_norm(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of the L2 norm of the logits; the labels are not read."""
    return torch.linalg.vector_norm(logits, dim=1).mean()


def losses(net: nn.Module, data: Data, index: torch.Tensor | None, config: Config, loss_of):
    """loss_of(logits, y) of one batch after another, in order, without augmentation; of several processes each has all.
    """
    for _, x, y in batches(replace(data, part=(0, 1)), index, config.batch, dtype=next(net.parameters()).dtype):
        yield loss_of(logits_of(net, x, config.precision), y)


def importance(net: nn.Module, losses: Iterable[torch.Tensor], measure: Callable = torch.square) -> list[torch.Tensor]:
    """Mean over batches of measure(gradient of the batch's loss), >= 0, for every trainable parameter in its shape.

    Args:
        net: network that the losses run; in eval mode meanwhile, so BatchNorm gives each example its own gradient.
        losses: one scalar per batch, made lazily: one backward pass each.
        measure: torch.square for SSD (the diagonal of the Fisher matrix), torch.abs for Potion.
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    totals, steps = [torch.zeros_like(p) for p in parameters], 0
    with eval_mode(net):
        for loss in losses:
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
            for total, gradient in zip(totals, gradients, strict=True):
                total += measure(gradient)
            steps += 1
    return [total / steps for total in totals]


@torch.no_grad()
def dampen(net: nn.Module, original: nn.Module, of_forget: list[torch.Tensor], of_rest: list[torch.Tensor],
           threshold: float, strength: float = 1.0) -> None:
    """Write the original's trainable weights into `net`, those that matter much more for D_f than elsewhere made
    smaller.

    Args:
        of_forget, of_rest: importances I_f and I from `importance`.
        threshold, strength: alpha >= 0 and lambda > 0 of SSD; the cut c and 1 in Potion.
    """
    pairs = [(p, q) for p, q in zip(net.parameters(), original.parameters(), strict=True) if p.requires_grad]
    for (weight, before), i_f, i in zip(pairs, of_forget, of_rest, strict=True):
        # where I_f > alpha I:  weight *= min(1, lambda I / I_f)
        factor = torch.where(i_f > threshold * i, (strength * i / i_f).clamp(max=1), 1)
        weight.copy_(before * factor)


def sorted_ratios(of_forget: list[torch.Tensor], of_rest: list[torch.Tensor]) -> torch.Tensor:
    """I_f / I of all weights in one sorted vector, without those that are not finite (I = 0)."""
    ratios = torch.cat([(i_f / i).flatten() for i_f, i in zip(of_forget, of_rest, strict=True)])
    return ratios[ratios.isfinite()].sort().values


def percentile(values: torch.Tensor, q: float) -> float:
    """The q-th percentile of a sorted vector, linear between neighbours; inf, which nothing exceeds, for none."""
    # numpy's differs in the last bit: past the middle it comes down from the upper neighbour; torch's has a size limit
    if not 0 <= q <= 100:
        raise ValueError(f"percentile {q} does not exist; it must be in [0, 100]")
    if len(values) == 0:
        return float("inf")
    position = q / 100 * (len(values) - 1)
    low = min(int(position), max(0, len(values) - 2))
    a, b = float(values[low]), float(values[min(low + 1, len(values) - 1)])
    return a + (b - a) * (position - low)


# --- Training on D_r --------------------------------------------------------------------------------------------------

def fine_tune(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator,
              log=None) -> nn.Module:
    """CF, catastrophic forgetting: go on training on D_r for `unlearn_epochs` epochs (Sec. 3 "Fine-tuning").

    Loss: CE on D_r, undiscovered corruption included. The rate warms up to `unlearn_lr` and falls to one fifth of it.
    """
    retain = retain_set(forget, len(data))
    tuned = copy.deepcopy(model)
    fit(tuned, data, retain, config, generator, epochs=config.unlearn_epochs, lr=config.unlearn_lr, log=log)
    return restore_modes(model, tuned)


def retrain(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator,
            log=None) -> nn.Module:
    """Train a fresh network on D_r with the full recipe: `epochs` at peak rate `lr` (Sec. 3 "Retraining from scratch").

    Loss: CE on D_r, undiscovered corruption included. Choice: fresh weights as `fresh` draws them.
    """
    retain = retain_set(forget, len(data))
    anew = fresh(model, config)
    fit(anew, data, retain, config, generator, log=log)
    return restore_modes(model, anew)


# --- Away from D_f ----------------------------------------------------------------------------------------------------

def ascent(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator,
           log=None) -> nn.Module:
    """Gradient ascent on D_f (Sec. 3 "Ascent").

    Loss: -CE on D_f, whole passes until Acc(D_f) <= gamma, at most `max_passes`, then a warning. Acc(D_f) is against
    the labels as given, in eval mode, before the first pass and after each.
    The passes run in training mode unless `forget_norm` says otherwise (see rem.trains_on_forget).
    """
    forget, net, passes = check_forget(forget, len(data)), copy.deepcopy(model), 0
    optimizer, training = make_optimizer(net, config, config.unlearn_lr), trains_on_forget(config, forget)

    def loss(logits, rows, x, y):
        return -F.cross_entropy(logits, y)

    while (acc := accuracy(net, data, forget)) > config.gamma and passes < config.max_passes:
        run_epoch(net, optimizer, data, forget, loss, config, generator, "a pass of ascent", training)
        passes += 1
    say_end(log, net, config, passes, "passes", acc)
    return restore_modes(model, net)


def npo(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator,
        log=None) -> nn.Module:
    """NPO (Zhang et al. 2024a): Algorithm 1's step 2 alone, without theta_o2 (Table 2: no 3.1 and no 3.2).

    Loss: -h(CE - CE_ref) on D_f, whole passes until Acc(D_f) <= gamma, in training mode unless `forget_norm` says
    otherwise. Being REM's own step 2, it takes the networks that `expand.expand` takes and no other (TypeError).
    """
    state = start(model, data, forget, replace(config, ratio=0.0, step31=False, step32=False), generator)
    remove(state)
    if log is not None:
        log(0, 0, state.expanded, **state.record)
    return finish(state)


# --- ETD, and REM by other names --------------------------------------------------------------------------------------

def etd(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator,
        log=None) -> nn.Module:
    """ETD alone: train a fresh network with example-tied dropout on D_tr and drop theta_o2; D_f plays no part (Sec. 3).

    Loss: CE under each example's mask, the full training recipe.
    """
    check_forget(forget, len(data))
    return restore_modes(model, drop(train_etd(fresh(model, config), data, config, generator, log=log)))


def etd_ideal(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator, *,
              corrupted: torch.Tensor, log=None) -> nn.Module:
    """ETD (IDEAL), Fig. 9: as `etd`, with one mask row for all of D_c from the start; an oracle, since it reads D_c."""
    check_forget(forget, len(data))
    expanded = train_etd(fresh(model, config), data, config, generator, shared=corrupted, log=log)
    return restore_modes(model, drop(expanded))


def rem_on_etd(model: Expanded, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator,
               log=None) -> nn.Module:
    """REM on ETD (Table 1, ETD tick): REM whose theta_o2 is the memorisation partition of an ETD-trained network."""
    if not isinstance(model, Expanded):
        raise ValueError("rem-on-etd works on an ETD-trained network with its theta_o2; "
                         "add --etd or pass train_etd's result")
    return rem(model, data, forget, config, generator, log=log)


def rem_ideal(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator, *,
              corrupted: torch.Tensor, log=None) -> nn.Module:
    """REM (IDEAL), Fig. 3: all of D_c shares a mask row, while D_f alone is removed; an oracle, since it reads D_c."""
    return rem(model, data, forget, config, generator, shared=corrupted, log=log)


def ablation(**fixed):
    """REM with some of its settings fixed (Table 2, Fig. 7): a method of the same signature as the others."""
    def rem_ablation(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator,
                     log=None) -> nn.Module:
        return rem(model, data, forget, replace(config, **fixed), generator, log=log)

    return rem_ablation


# --- What they share --------------------------------------------------------------------------------------------------

def run_epoch(net: nn.Module, optimizer: torch.optim.Optimizer, data: Data, index: torch.Tensor | None,
              loss_of: Callable, config: Config, generator: torch.Generator, where: str, training=True) -> float:
    """One augmented pass over D_tr or the examples of `index`, an update per batch; returns the mean loss over batches.

    loss_of(logits, rows, x, y) gives the scalar to go down; `where` names a loss that is not finite; without `training`
    the network stays in eval mode. A method keeps one optimiser for all of its passes.
    """
    # One example has no batch statistics: its passes use the running ones.
    net.train(training and (index is None or len(index) > 1))
    total, steps = torch.zeros((), device=data.device), 0
    for rows, x, y in batches(data, index, config.batch, generator, augment=True, dtype=next(net.parameters()).dtype):
        loss = loss_of(logits_of(net, x, config.precision), rows, x, y)
        total += descend(optimizer, loss, len(rows))
        steps += 1
    return finite(total, steps, where)


def say_end(log, net: nn.Module, config: Config, done: int, what: str, acc: float) -> None:
    """Warn where a method without epochs has given up, and log it as epoch 0 of 0: `done` passes or tries, Acc(D_f)."""
    if acc > config.gamma:
        warnings.warn(f"Acc(D_f) is {acc:.2f} after {done} {what}, still above gamma = {config.gamma}", stacklevel=3)
    if log is not None:
        log(0, 0, net, acc_forget=acc, passes=done)


def retain_set(forget: torch.Tensor, n: int) -> torch.Tensor:
    """D_r, the (n - k,) sorted indices of D_tr that are not in D_f; ValueError for a D_f that makes no sense."""
    return torch.ones(n, dtype=torch.bool).index_fill_(0, check_forget(forget, n), False).nonzero().flatten()


def fresh(model: nn.Module, config: Config) -> nn.Module:
    """The network's architecture with weights drawn anew from the settings' seed (see models.reinitialise)."""
    return reinitialise(model, stream(config.seed, "fresh weights").initial_seed())


def restore_modes(source: nn.Module, net: nn.Module) -> nn.Module:
    """Give each module of `net` its twin's mode, let go of gradients, return it; NonFiniteLoss if it is ruined."""
    for a, b in zip(source.modules(), net.modules(), strict=True):
        b.training = a.training
    net.zero_grad(set_to_none=True)
    return finite_weights(net)
