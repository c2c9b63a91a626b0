"""The methods that REM is compared with, and REM by other names, each a function of one signature (Sec. 3, Table 1).

SSD and CUTS are not in the paper's tables; they stand below, under a heading that says so.

    unlearned = fine_tune(model, task.train, forget, config, generator)
    unlearned = potion(tries=50, part=1, relative=False)(model, task.train, forget, config, generator)

Every method takes (model, data, forget, config, generator): the trained network, D_tr with its labels as given, D_f as
int64 dataset indices, the settings, and the generator of order and augmentation. It returns a plain network and leaves
what it was given as it was. Choice: rates are constant at `unlearn_lr` where no docstring speaks of `schedule`.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor
from torch.nn import Module, functional as F

from engine.batches import among, count_batches, per_example
from engine.checks import NonFiniteLoss, check_forget, finite, finite_weights, settings_from
from engine.modes import copy_of, eval_mode, modes_of, put_modes, training_mode
from engine.scores import cross_entropy
from engine.streams import forked_rng, stream
from engine.updates import descend, logits_of, make_optimizer
from etd import Expanded, drop, mask_rows, train_etd
from expand import expand
from metrics import accuracy, predict
from models import reinitialise
from rem import Settings, State, add_capacity, discard, npo_term, rem, remove, step3_batch
from rem_plus import Settings as PlusSettings, rem_plus
from train import fit, rate

SCRUB_TEMPERATURE = 4.0
SCRUB_STEPS = 100  # passes over D_f stop once this many updates are done: two passes at CIFAR-10's 98 per epoch
SSD_LAMBDA = 1.0  # Foster et al. 2024: how much of a weight is left, times I / I_f
SSD_BATCH = 64  # of the importances, as in Goel et al.'s scripts
POTION_GROWTH = 1.1  # Schoepf et al. 2024b: the share of weights grows by 10 % per try
CUTS_PASSES = 10  # over D_f
CUTS_IMAGES = 1000  # of D_tr, on which the step along the task vector is chosen
CUTS_NEAREST = 5  # neighbours of each
CUTS_DIVERSITY = 2.0  # weight of the penalty


def no_ul(model: Module, data, forget: Tensor, config, generator: Generator) -> Module:
    """No unlearning: a copy of the trained network (Table 1 "No UL"; with ETD training, ETD alone)."""
    check_forget(forget, len(data))
    return copy_of(model)


# --- Distillation -----------------------------------------------------------------------------------------------------

def bad_teacher(over_classes: bool):
    """BadT (Chundawat et al. 2023): D_f learns a freshly initialised network's answers, D_r the original's.

    Loss: KL(teacher || student) on D_tr, temperature 1, `unlearn_epochs` epochs at rates of `schedule`. Both teachers
    in eval mode. over_classes: the released scale, a mean over batch and classes, KL / C; without it the formula's.
    """
    def badt(model: Module, data, forget: Tensor, config, generator: Generator, log=None) -> Module:
        forget, student = check_forget(forget, len(data)), copy_of(model)
        in_forget = among(forget, len(data))
        original, bad = teacher(model, data, config), teacher(fresh(model, config), data, config, forget)
        optimizer = make_optimizer(student, config, config.unlearn_lr)
        rates = pace(config, config.unlearn_epochs * count_batches(len(data), config.batch))

        def loss(logits, index, x, y):
            target = original(index, x)  # (B, classes)
            found = in_forget[index].nonzero().flatten()  # on the CPU: known without waiting for the device
            if len(found):
                here = found.to(x.device, non_blocking=True)
                target[here] = bad(index[found], x[here])
            # KL(teacher || student), over C as both releases have it: kl_div's default is the mean over all entries
            return distillation(logits, target) / (logits.shape[1] if over_classes else 1)

        for epoch in range(1, config.unlearn_epochs + 1):
            where = f"BadT epoch {epoch}"
            mean = run_epoch(student, optimizer, data, None, loss, config, generator, where, rates=rates)
            if log is not None:
                log(epoch, config.unlearn_epochs, student, loss=mean)
        return restore_modes(model, student)

    return badt


def scrub(model: Module, data, forget: Tensor, config, generator: Generator, log=None) -> Module:
    """SCRUB (Kurmanji et al. 2023): towards the original network on D_r, away from it on D_f.

    Loss on D_r: CE + alpha KD(original), KD at temperature 4; on D_f: minus the same sum. A pass over D_f comes before
    the pass over D_r while fewer than SCRUB_STEPS updates are done; `unlearn_epochs` epochs at rates of `schedule`.
    Choice: CE and KD are both negated, as in Goel et al. 2024; in Kurmanji et al. the pass over D_f has -KD alone.
    Updates of both kinds of pass count; all run in training mode, `forget_norm` has no part in it.
    """
    retain, student, epochs = retain_set(forget, len(data)), copy_of(model), config.unlearn_epochs
    optimizer, original = make_optimizer(student, config, config.unlearn_lr), teacher(model, data, config)
    per_max, per_min = (count_batches(len(index), config.batch) for index in (forget, retain))
    most = min(epochs, math.ceil(SCRUB_STEPS / (per_max + per_min)))  # epochs that begin with a pass over D_f
    rates = pace(config, most * per_max + epochs * per_min)

    def towards(logits, index, x, y):
        return F.cross_entropy(logits, y) + config.alpha * distillation(logits, original(index, x), SCRUB_TEMPERATURE)

    def away(*batch):
        return -towards(*batch)

    for epoch in range(1, epochs + 1):
        if epoch <= most:
            where = f"SCRUB's pass {epoch} over D_f"
            run_epoch(student, optimizer, data, forget, away, config, generator, where, rates=rates)
        where = f"SCRUB's pass {epoch} over D_r"
        mean = run_epoch(student, optimizer, data, retain, towards, config, generator, where, rates=rates)
        if log is not None:
            log(epoch, epochs, student, loss=mean)
    return restore_modes(model, student)


def distillation(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of (B, classes) logits at a temperature; gradients flow into the student's alone."""
    # T^2 / B  sum_i sum_c  p_ic (log p_ic - log q_ic),  p = softmax(teacher / T), q = softmax(student / T)
    log_q, log_p = F.log_softmax(student / temperature, dim=1), F.log_softmax(teacher.detach() / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


def teacher(net: Module, data, config, index: Tensor | None = None):
    """A function (index, x) -> logits (B, classes) of a frozen copy in eval mode.

    Without augmentation the answers never change: then they are computed once, for the examples of `index` (None: all).
    """
    frozen = copy_of(net).requires_grad_(False).eval()

    @torch.no_grad()
    def answer(index: Tensor, x: Tensor) -> Tensor:
        return logits_of(frozen, x, config.precision)

    if data.augments:
        return answer
    batches = data.batches(index, dtype=next(frozen.parameters()).dtype)
    known = per_example(batches, lambda index, x, y: answer(index, x), len(data))  # (N, classes)
    return lambda index, x: known[index.to(known.device, non_blocking=True)]


# --- Dampening --------------------------------------------------------------------------------------------------------

def potion(tries: int, part: float, relative: bool):
    """Potion (Schoepf et al. 2024b): dampen more and more weights until D_f is forgotten.

    Importance on D_r and D_f of the original network: mean over batches of the absolute gradient of the mean L2 norm of
    the logits, which needs no labels. Cut c: percentile 100 - ln(1 + 100 f) of I_f / I_r; where I_f > c I_r, weight *=
    min(1, I_r / I_f). f grows by 10 % per try, each from the original weights; at most `tries`, then a warning.
    Choice: a network that has forgotten is left as it is; no augmentation, so nothing is drawn.
    Args: part: f starts at |D_f| / |D_tr| / part; relative: stop at Acc(D_f) <= gamma times the original's Acc(D_f), as
        its authors do, else at Acc(D_f) <= gamma.
    Returns: a method of the same signature as the others.
    """
    def dampening(model: Module, data, forget: Tensor, config, generator: Generator, log=None) -> Module:
        retain, net = retain_set(forget, len(data)), copy_of(model)
        acc = accuracy(net, data, forget)
        bound, fraction, done = config.gamma * (acc if relative else 1), len(forget) / len(data) / part, 0
        if acc > bound:
            of_retain, of_forget = (importance(net, data, index, config, output_norm, torch.abs)
                                    for index in (retain, forget))
            ratios = torch.cat([(i_f / i).flatten() for i_f, i in zip(of_forget, of_retain, strict=True)])
            ratios = ratios[ratios.isfinite()].sort().values  # not finite where I_r = 0
        while acc > bound and done < tries:
            dampen(net, model, of_forget, of_retain, percentile(ratios, 100 - math.log1p(100 * fraction)))
            acc = accuracy(net, data, forget)
            fraction, done = fraction * POTION_GROWTH, done + 1
        say_end(log, net, done, "tries of Potion", acc, bound)
        return restore_modes(model, net)

    return dampening


def output_norm(logits: Tensor, y: Tensor) -> Tensor:
    """Mean over the batch of the L2 norm of the logits; the labels are not read."""
    return torch.linalg.vector_norm(logits, dim=1).mean()


def importance(net: Module, data, index: Tensor | None, config, loss_of: Callable,
               measure: Callable) -> list[Tensor]:
    """Mean over batches of measure(gradient of loss_of(logits, y)), >= 0, for every trainable parameter in its shape.

    In eval mode, so BatchNorm gives each example its own gradient; no augmentation.
    Args: index: (n,) int64 examples, None for all; loss_of: gives a scalar; measure: torch.square for SSD (an
        estimate of the diagonal of the empirical Fisher matrix, exact in batches of one), torch.abs for Potion.
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    totals, steps = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters], 0
    with eval_mode(net):
        for _, x, y in data.batches(index, config.batch, dtype=next(net.parameters()).dtype):
            loss = loss_of(logits_of(net, x, config.precision), y)
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
            for total, gradient in zip(totals, gradients, strict=True):
                total += measure(gradient.to(total))
            steps += 1
    return [total / steps for total in totals]


@torch.no_grad()
def dampen(net: Module, original: Module, of_forget: list[Tensor], of_rest: list[Tensor],
           threshold: float, strength: float = 1.0) -> None:
    """Write the original's trainable weights into `net`, smaller where they matter much more for D_f than elsewhere.

    Args: of_forget, of_rest: importances I_f and I from `importance`; threshold, strength: alpha >= 0 and lambda > 0 of
        SSD, the cut c and 1 in Potion.
    """
    pairs = [(p, q) for p, q in zip(net.parameters(), original.parameters(), strict=True) if p.requires_grad]
    for (weight, before), i_f, i in zip(pairs, of_forget, of_rest, strict=True):
        # where I_f > alpha I:  weight *= min(1, lambda I / I_f)
        factor = torch.where(i_f > threshold * i, (strength * i / i_f).clamp(max=1), 1)
        weight.copy_(before * factor)


def percentile(values: Tensor, q: float) -> float:
    """The q-th percentile of a sorted vector, linear between neighbours; inf, which nothing exceeds, for none."""
    # numpy's differs in the last bit: past the middle it comes down from the upper neighbour; torch's has a size limit
    if len(values) == 0:
        return math.inf
    position = q / 100 * (len(values) - 1)  # 0 <= q <= 100
    a, b = values[[math.floor(position), math.ceil(position)]].tolist()
    return a + (b - a) * (position - math.floor(position))


# --- Training on D_r --------------------------------------------------------------------------------------------------

def fine_tune(model: Module, data, forget: Tensor, config, generator: Generator, log=None) -> Module:
    """CF, catastrophic forgetting: go on training on D_r for `unlearn_epochs` epochs (Sec. 3 "Fine-tuning").

    Loss: CE on D_r, undiscovered corruption included; rates of `schedule`, at most `unlearn_lr`.
    """
    retain, tuned = retain_set(forget, len(data)), copy_of(model)
    fit(tuned, data, retain, config, generator, epochs=config.unlearn_epochs, lr=config.unlearn_lr, log=log,
        schedule=config.schedule)
    return restore_modes(model, tuned)


# --- Away from D_f ----------------------------------------------------------------------------------------------------

def ascent(model: Module, data, forget: Tensor, config, generator: Generator, log=None) -> Module:
    """Gradient ascent on D_f (Sec. 3 "Ascent").

    Loss: -CE on D_f, whole passes until Acc(D_f) <= gamma, at most `max_passes`, then a warning. Acc(D_f) is against
    the labels as given, in eval mode. Passes are in training mode unless `forget_norm` says otherwise, see rem.py.
    """
    forget, net, passes = check_forget(forget, len(data)), copy_of(model), 0
    optimizer, training = make_optimizer(net, config, config.unlearn_lr), forget_in_training_mode(config)

    def loss(logits, index, x, y):
        return -F.cross_entropy(logits, y)

    while (acc := accuracy(net, data, forget)) > config.gamma and passes < config.max_passes:
        run_epoch(net, optimizer, data, forget, loss, config, generator, "a pass of ascent", training)
        passes += 1
    say_end(log, net, passes, "passes", acc, config.gamma)
    return restore_modes(model, net)


# --- Training from fresh weights --------------------------------------------------------------------------------------

def retrain(model: Module, data, forget: Tensor, config, generator: Generator, log=None) -> Module:
    """Train a fresh network on D_r with the full recipe: `epochs` at peak rate `lr` (Sec. 3 "Retraining from scratch").

    Loss: CE on D_r, undiscovered corruption included. Choice: fresh weights as `fresh` draws them.
    """
    retain = retain_set(forget, len(data))
    net = fresh(model, config)
    fit(net, data, retain, config, generator, log=log)
    return restore_modes(model, net)


def etd(model: Module, data, forget: Tensor, config, generator: Generator, log=None) -> Module:
    """ETD alone: train a fresh network with example-tied dropout on D_tr and drop theta_o2; D_f plays no part (Sec. 2).

    Loss: CE under each example's mask, the full training recipe.
    """
    check_forget(forget, len(data))
    expanded = with_theta_o2(fresh(model, config), data, config)
    return restore_modes(model, drop(train_etd(expanded, data, config, generator, fit, log=log)))


def etd_ideal(model: Module, data, forget: Tensor, config, generator: Generator, *, corrupted: Tensor,
              log=None) -> Module:
    """ETD (IDEAL), Fig. 9: as `etd`, with one mask row for all of D_c from the start; an oracle, since it reads D_c."""
    check_forget(forget, len(data))
    expanded = with_theta_o2(fresh(model, config), data, config)
    return restore_modes(model, drop(train_etd(expanded, data, config, generator, fit, shared=corrupted, log=log)))


def with_theta_o2(model: Module, data, config) -> Expanded:
    """`expand` at the settings' ratio for the data's image shape, theta_o2 drawn from the settings' seed."""
    weight = next(model.parameters())
    example = torch.zeros((2, *data.shape), device=weight.device)
    return expand(model, example, config.extra_ratio, generator=stream(config.seed, "theta_o2"))


# --- REM by other names -----------------------------------------------------------------------------------------------

def rem_by_config(model: Module, data, forget: Tensor, config, generator: Generator, log=None, shared=None) -> Module:
    """Algorithm 1 as printed, or as an experiment's `step31`, `step32` (Table 2, Fig. 7) and `redirect` change it.

    With neither 3.1 nor 3.2 it is NPO (Table 2's caption). shared: as in `rem`.
    """
    return by_steps(rem, Settings, model, data, forget, config, generator, log, shared)


def rem_plus_by_config(model: Module, data, forget: Tensor, config, generator: Generator, log=None,
                       shared=None) -> Module:
    """REM+, or as `step31`, `step32` and `redirect` change it; args: as of `rem_by_config`."""
    return by_steps(rem_plus, PlusSettings, model, data, forget, config, generator, log, shared)


def by_steps(unlearn: Callable, settings: type, model: Module, data, forget: Tensor, config, generator: Generator, log,
             shared) -> Module:
    """`rem` or `rem_plus` with the loss of step 3 that an experiment's settings ask for."""
    if not config.step31 and not config.step32:
        return npo(model, data, forget, config, generator, log=log)
    state = add_capacity(model, data, forget, settings_from(config, settings), generator, shared)
    if not config.step31:  # theta_o2 is unused
        for p in state.expanded.theta_o2().values():
            p.requires_grad_(False)
        loss = step3_without_redirect
    elif config.redirect == "ce":
        loss = step3_by_ce
    else:
        loss = step3_batch
    return unlearn(model, data, forget, config, generator, step3=partial(loss, removes=config.step32), log=log,
                   state=state)


def step3_without_redirect(s: State, index: Tensor, x: Tensor, y: Tensor, removes: bool = True) -> Tensor:
    """The ablation without 3.1 (Table 2): theta_o1 is fine-tuned on D_r, with the removal term on D_f.

    Choice: fine-tuned by the h of Eq. 2 as in 3.1, so that nothing else differs.
    """
    # L = (2 / beta) E (1{i in D_r} - 1{i in D_f}) log sigmoid(beta (CE_o1 - CE_ref)); without 3.2 the second part is 0
    h = npo_term(cross_entropy(s, x, y), s.reference.base(index, x, y), s.config.beta)  # (B,)
    in_forget = s.in_forget[index].to(s.device, non_blocking=True)
    return torch.where(in_forget, -h if removes else 0, h).mean()


def step3_by_ce(s: State, index: Tensor, x: Tensor, y: Tensor, removes: bool = True) -> Tensor:
    """The ablation whose redirect term is CE itself, whose pull never vanishes; otherwise as rem.step3_batch."""
    in_forget = s.in_forget[index]  # (B,)
    removes = removes and bool(in_forget.any())
    # L = E CE_{o1 and o2} - (2 / beta) E 1{i in D_f} log sigmoid(beta (CE_o1 - CE_ref))
    full = cross_entropy(s, x, y, mask_rows(s.masks, index))  # (B,)
    if removes:
        h = npo_term(cross_entropy(s, x, y), s.reference.base(index, x, y), s.config.beta)
        full = full - torch.where(in_forget.to(s.device, non_blocking=True), h, 0)
    return full.mean()


def npo(model: Module, data, forget: Tensor, config, generator: Generator, log=None) -> Module:
    """NPO (Zhang et al. 2024a): Algorithm 1's step 2 alone, without theta_o2 (Table 2: no 3.1 and no 3.2).

    Loss: -h(CE - CE_ref) on D_f, whole passes until Acc(D_f) <= gamma, in training mode unless `forget_norm` says
    otherwise. Being step 2 of Algorithm 1, it takes the networks that `expand.expand` takes and no other
    (TypeError).
    """
    state = add_capacity(model, data, forget, replace(config, ratio=0.0), generator)
    remove(state, training=forget_in_training_mode(config))
    if log is not None:
        log(0, 0, state.expanded, **state.record)
    return discard(state)


def forget_in_training_mode(config) -> bool:
    """Whether Ascent and NPO pass over D_f in training mode: unless `forget_norm` is "running"."""
    return config.forget_norm != "running"


def rem_on_etd(model: Expanded, data, forget: Tensor, config, generator: Generator, log=None) -> Module:
    """REM on ETD (Table 1, ETD tick): REM whose theta_o2 is the memorisation partition of an ETD-trained network."""
    if not isinstance(model, Expanded):
        raise ValueError("rem-on-etd works on an ETD-trained network with its theta_o2; "
                         "add --etd or pass train_etd's result")
    return rem_by_config(model, data, forget, config, generator, log=log)


def ideal(method: Callable):
    """REM (IDEAL), Fig. 3: all of D_c shares a mask row, while D_f alone is removed; an oracle, since it reads D_c."""
    def unlearn(model: Module, data, forget: Tensor, config, generator: Generator, *, corrupted: Tensor,
                log=None) -> Module:
        return method(model, data, forget, config, generator, log=log, shared=corrupted)

    return unlearn


def ablation(method: Callable, **fixed):
    """REM with some of its settings fixed, for ablations: a method of the same signature as the others."""
    def ablated(model: Module, data, forget: Tensor, config, generator: Generator, log=None) -> Module:
        return method(model, data, forget, replace(config, **fixed), generator, log=log)

    return ablated


# --- Not in the paper: SSD and CUTS -----------------------------------------------------------------------------------
# The paper has Potion in place of SSD; CUTS is later. No table of the paper has either.

def ssd(model: Module, data, forget: Tensor, config, generator: Generator) -> Module:
    """SSD, selective synaptic dampening (Foster et al. 2024): shrink the weights that matter much more for D_f.

    Importance I on D_tr and I_f on D_f: mean over batches of the squared gradient of CE, in eval mode. One shot: where
    I_f > alpha I, weight *= min(1, lambda I / I_f); alpha is `ssd_alpha`, lambda 1.
    Choice: D_tr, as Foster et al. have it, where Sec. 3 says D_r; batches of SSD_BATCH, on which the square of a mean
    gradient depends; no augmentation, so nothing is drawn.
    """
    forget, net = check_forget(forget, len(data)), copy_of(model)
    few = replace(config, batch=SSD_BATCH)
    of_all, of_forget = (importance(net, data, index, few, F.cross_entropy, torch.square) for index in (None, forget))
    dampen(net, model, of_forget, of_all, config.ssd_alpha, SSD_LAMBDA)
    return restore_modes(model, net)


def cuts(model: Module, data, forget: Tensor, config, generator: Generator, log=None) -> Module:
    """CUTS (arXiv 2511.18660): theta = theta_o + a (theta_p - theta_o), away from what D_f's labels teach.

    theta_p: the original after CUTS_PASSES passes down CE on D_f as given, in training mode. a: of 0, -0.05, ..., -1
    the one of the highest `agreement`, the nearest to 0 among equals; no label is read for it.
    Choice: this is our reading. N(i): the CUTS_NEAREST nearest of i among V, CUTS_IMAGES images drawn from D_tr, by
    cosine of what the untouched network's last layer but one is given; the penultimate features hold the given labels,
    so that a = 0 would agree best. Parameters alone move; BatchNorm's running statistics are the original's,
    since they healed no better where they were computed for each step. A step whose network gives numbers that are not
    finite is passed over.
    """
    from engine.features import features  # here, because no other method needs them

    forget, net, tuned = check_forget(forget, len(data)), copy_of(model), copy_of(model)
    sample = torch.randperm(len(data), generator=generator)[:CUTS_IMAGES]  # V
    nearest_of = neighbours(features(model, data, sample, layer=-2))

    optimizer = make_optimizer(tuned, config, config.unlearn_lr)

    def loss(logits, index, x, y):
        return F.cross_entropy(logits, y)

    for number in range(1, CUTS_PASSES + 1):
        where = f"pass {number} of CUTS over D_f"
        run_epoch(tuned, optimizer, data, forget, loss, config, generator, where)
    scores = {}
    for step in range(21):
        walk(net, model, tuned, -step / 20)
        scores[step] = agreement(net, data, sample, nearest_of)
    walk(net, model, tuned, -max(scores, key=scores.get) / 20)
    if log is not None:
        log(0, 0, net, passes=CUTS_PASSES, gave_up=False)
    return restore_modes(model, net)


@torch.no_grad()
def walk(net: Module, start: Module, end: Module, step: float) -> None:
    """Write the parameters start + step (end - start) into `net`."""
    for weight, before, after in zip(net.parameters(), start.parameters(), end.parameters(), strict=True):
        weight.copy_(before + step * (after - before))


def neighbours(h: Tensor) -> Tensor:
    """N(i), the (n, k) places of the k nearest others of each image by cosine; h: (n, d) features."""
    h = F.normalize(h, dim=1)
    return (h @ h.T).fill_diagonal_(-math.inf).topk(min(CUTS_NEAREST, len(h) - 1), dim=1).indices


def agreement(net: Module, data, index: Tensor, nearest_of: Tensor) -> float:
    """How well predictions agree with the neighbours', less what they lack in diversity; -inf if they are not finite.

    Args: index: (n,) int64, V; nearest_of: (n, k) places in `index`, N of each. Returns: a number in [-2, 1].
    """
    try:
        predicted = predict(net, data, index)  # (n,) classes c_i
    except NonFiniteLoss:
        return -math.inf
    share = predicted.bincount(minlength=data.classes).double() / len(predicted)  # of each class
    # 1 / n sum_i 1 / k sum_{j in N(i)} 1{c_i = c_j}  -  2 (1 - H(share) / log C),  H the entropy
    alike, entropy = (predicted[nearest_of] == predicted[:, None]).double().mean(), torch.special.entr(share).sum()
    return float(alike - CUTS_DIVERSITY * (1 - entropy / math.log(data.classes)))


# --- What they share --------------------------------------------------------------------------------------------------

def pace(config, steps: int) -> Iterator[float]:
    """The rate of each of a run's `steps` updates, by `schedule`: Goel et al.'s of peak `unlearn_lr`, or constant."""
    return (config.unlearn_lr * rate(step, steps, config.schedule) for step in range(steps))


def run_epoch(net: Module, optimizer: torch.optim.Optimizer, data, index: Tensor | None,
              loss_of: Callable, config, generator: Generator, where: str, training=True,
              rates: Iterator[float] | None = None) -> float:
    """One augmented pass over D_tr or the examples of `index`, an update per batch; returns the mean loss over batches.

    loss_of(logits, index, x, y) gives the scalar to go down; `where` names a loss that is not finite; without
    `training` the network stays in eval mode; rates: of the updates, None for the optimiser's own, which all passes
    share.
    """
    # One example has no batch statistics: its passes use the running ones.
    if training and (index is None or len(index) > 1):
        training_mode(net, modes_of(net))
    else:
        net.eval()
    total, steps = torch.zeros((), device=data.device), 0
    with forked_rng(generator, data.device):  # dropout's
        for i, x, y in data.batches(index, config.batch, generator, True, next(net.parameters()).dtype):
            if rates is not None:
                optimizer.param_groups[0]["lr"] = next(rates)
            loss = loss_of(logits_of(net, x, config.precision), i, x, y)
            total += descend(optimizer, loss)
            steps += 1
    return finite(total, steps, where)


def say_end(log, net: Module, done: int, what: str, acc: float, bound: float) -> None:
    """Warn where a method without epochs has given up, Acc(D_f) above its bound, and log the end as epoch 0 of 0."""
    if acc > bound:
        warnings.warn(f"Acc(D_f) is {acc:.2f} after {done} {what}, still above {bound:.3g}", stacklevel=3)
    if log is not None:
        log(0, 0, net, acc_forget=acc, passes=done, gave_up=acc > bound)


def retain_set(forget: Tensor, n: int) -> Tensor:
    """D_r, the (n - k,) sorted indices of D_tr that are not in D_f; ValueError for a D_f that makes no sense."""
    return (~among(check_forget(forget, n), n)).nonzero().flatten()


def fresh(model: Module, config) -> Module:
    """The network's architecture with fresh weights, drawn from the settings' seed (see models.reinitialise)."""
    return reinitialise(copy_of(model), stream(config.seed, "fresh weights").initial_seed())


def restore_modes(source: Module, net: Module) -> Module:
    """Give each module of `net` its twin's mode, let go of gradients, return it; NonFiniteLoss if it is ruined."""
    put_modes(net, modes_of(source))
    net.zero_grad(set_to_none=True)
    return finite_weights(net)
