"""Redirection for Erasing Memory: Eq. 2 and Algorithm 1, step by step (Sec. 5).

    unlearned = rem(model, data, forget, config, generator)      # model in and out are plain networks
    unlearned = rem(expanded, data, forget, config, generator)   # REM on ETD: theta_o2 is the memorisation partition
    unlearned = rem(model, data, forget, config, generator, shared=corrupted)   # REM (IDEAL), Fig. 3

etd.py, expand.py and this file need torch and nothing else. What they need of `data`, D_tr with its labels as given:
    len(data)                   number of training examples, N
    data.batches(index=None, size=512, generator=None, augment=False, dtype=torch.float32)
                                one pass over the examples of `index`, an int64 tensor, or over all of them: yields
                                (index, x, y), (B,) int64 dataset indices on the CPU, inputs of `dtype`, (B,) int64
                                labels; in an order drawn from the generator, without one in that of `index`
    data.augments               optional: False where augment=True changes nothing, so that the reference runs once
and of `config`: any of the attributes of `Settings`; those that it lacks have Table 3's values. In a run of several
processes (torch.distributed) data.batches yields this one's share of each batch, as data.py does.
"""

import math
from dataclasses import dataclass, field, fields
from warnings import warn

import torch
from torch import nn
from torch.nn import functional as F

from etd import (EXTRA, Expanded, MaskTable, NonFiniteLoss, check_index, copy_of, descend, drop, eval_mode, finite,
                 finite_weights, forked_rng, logits_of, make_optimizer, mask_rows, mask_table, over_ranks, ranks,
                 refresh_batchnorm, stream)
from expand import expand, extra_parts

# --- Eq. 2 ------------------------------------------------------------------------------------------------------------

def npo_term(ce: torch.Tensor, ce_ref: torch.Tensor, beta: float = 1.0) -> torch.Tensor:
    """The NPO term of Eq. 2, per example: h(CE - CE_ref) with h(u) = (2 / beta) log sigmoid(beta u).

    Choice: the ratio inside the log of Eq. 2 is the ratio of likelihoods, as in NPO: log(p / p_ref) = -(CE - CE_ref).
    The literal ratio of cross-entropies ruins the model (README, "Choices").
    Args: ce, ce_ref: (B,) cross-entropies of network and (without gradient) reference; beta: > 0, or a ValueError.
    Returns: (B,) values in (-inf, 0), rising with ce; the slope is 2 sigmoid(-beta (ce - ce_ref)), between 0 and 2.
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta}; it must be above 0")
    # h = (2 / beta) log sigmoid(-beta log(p / p_ref)) = (2 / beta) log sigmoid(beta (CE - CE_ref))
    return (2 / beta) * F.logsigmoid(beta * (ce - ce_ref.detach()))


def step2_loss(ce: torch.Tensor, ce_ref: torch.Tensor, beta: float = 1.0) -> torch.Tensor:
    """Step 2.2: L_step2 = -L_remove over a batch of D_f, (B,) CE of theta_o1 alone; going down it raises CE on D_f."""
    # L_step2 = -(2 / beta) E log sigmoid(beta (CE_o1 - CE_ref))
    return -npo_term(ce, ce_ref, beta).mean()


def step3_loss(ce_full, ce_full_ref, ce_base, ce_base_ref, in_forget, beta=1.0, redirect="npo") -> torch.Tensor:
    """Step 3.3: L_step3 = L_redirect - L_remove, the mean over a batch of D_tr (Eq. 2).

    Choice: D_f has its natural share of the batch, so both terms are divided by the batch size.
    Args:
        ce_full, ce_full_ref: (B,) cross-entropies of theta_o1 and theta_o2 under masks, model and reference.
        ce_base, ce_base_ref: (B,) cross-entropies of theta_o1 alone, or None to leave the removal term (3.2) out.
        in_forget: (B,) bool, D_f; beta: > 0; redirect: "npo", or "ce" for CE itself, whose pull never vanishes.
    Returns: a scalar; going down it lowers CE of the full network on D_tr and raises CE of theta_o1 on D_f.
    """
    # L_redirect = (2 / beta) E_{D_tr} log sigmoid(beta (CE_{o1 and o2} - CE_ref))
    loss = ce_full if redirect == "ce" else npo_term(ce_full, ce_full_ref, beta)
    if ce_base is not None:
        # - L_remove = -(2 / beta) E_{D_tr} 1{i in D_f} log sigmoid(beta (CE_o1 - CE_ref))
        loss = loss - torch.where(in_forget, npo_term(ce_base, ce_base_ref, beta), 0)
    return loss.mean()


# --- Algorithm 1 ------------------------------------------------------------------------------------------------------

WATCHED = 0.05  # share of D_r that step 3 leaves out for `judge`; of ten examples or fewer none: then as stop="max"


@dataclass(frozen=True)
class Settings:
    """What Algorithm 1 reads, at the values of Table 3 for ResNet-9 where that has them."""

    unlearn_epochs: int = 10  # max epochs
    stop: str = "repaired"  # end when the repair is done, see `judge`; "max": not before max epochs
    unlearn_lr: float = 0.005  # epsilon
    gamma: float = 0.2  # step 2 stops once Acc(D_f) <= gamma
    beta: float = 1.0  # of Eq. 2
    p_mem: float = 0.2  # share of theta_o2 that an example's mask turns on
    extra_ratio: float = 1.0  # theta_o2's width over theta_o1's
    max_passes: int = 100  # most passes over D_f in one step 2, then a warning
    forget_norm: str = "auto"  # BatchNorm in step 2: "running" or "batch" statistics, see trains_on_forget
    step31: bool = True  # the redirect term; off for Table 2
    step32: bool = True  # the removal term of step 3; off for Table 2
    redirect: str = "npo"  # or "ce", an ablation: see step3_loss
    batch: int = 512
    optimizer: str = "sgd"  # or "adam"
    momentum: float = 0.9  # of SGD
    weight_decay: float = 5e-4  # of SGD
    precision: str = "auto"  # bf16 autocast on GPUs, float32 on the CPU; or "float32", "bf16"
    seed: int = 0  # of theta_o2 and the masks

    def __post_init__(self):
        choices = {"forget_norm": ("auto", "running", "batch"), "redirect": ("npo", "ce"), "optimizer": ("sgd", "adam"),
                   "precision": ("auto", "float32", "bf16"), "stop": ("repaired", "max")}
        for name, among in choices.items():
            if getattr(self, name) not in among:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose from {', '.join(among)}")
        ranges = {"gamma": (0, 1), "unlearn_epochs": (0, math.inf), "max_passes": (0, math.inf), "batch": (1, math.inf)}
        for name, (least, most) in ranges.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from {least} to {most}")


@dataclass
class State:
    """What Algorithm 1 carries from step to step."""

    expanded: Expanded  # theta_o1 and theta_o2
    reference: Expanded  # both as step 1 made them, frozen: "ref" of Eq. 2
    data: object  # D_tr, labels as given
    forget: torch.Tensor  # (k,) int64, D_f
    in_forget: torch.Tensor  # (N,) bool on the CPU
    masks: MaskTable  # of N rows, on the device
    optimizer: torch.optim.Optimizer  # one for steps 2 and 3
    config: Settings
    generator: torch.Generator  # of order and augmentation
    modes: list[bool]  # the training flags that the network came with
    device: torch.device  # of the network
    known: torch.Tensor | None = None  # (2, N) reference CEs, of both parts and of theta_o1, where augmentation is none
    watched: torch.Tensor | None = None  # (w,) int64, examples of D_r that step 3 leaves out; None: none are
    taught: torch.Tensor | None = None  # the others; None: all
    epoch: int = 0  # epochs begun
    best: dict | None = None  # theta_o1 after the best epoch so far, see `judge`
    best_score: float = -1.0
    repaired: bool = False  # whether the loop may end
    record: dict = field(default_factory=dict)  # what the epoch in progress measured, for `log`
    sums: torch.Tensor | None = None  # (2, 3): number, sum of u and sum of the pull over D_r and over D_f, see `weigh`


def rem(model: nn.Module, data, forget: torch.Tensor, config, generator: torch.Generator, *,
        shared: torch.Tensor | None = None, log=None) -> nn.Module:
    """Unlearn with Algorithm 1: expand, then remove and redirect for at most `unlearn_epochs` epochs, then drop.

    Args:
        model: trained plain network, or an Expanded of ETD training (REM on ETD), seed and p_mem as there; left as is.
        data, config: D_tr with its labels as given and settings, see the top of this file.
        forget: (k,) int64 dataset indices, D_f; neither empty nor all of D_tr; on any device.
        generator: on the CPU, of order, augmentation and dropout; theta_o2 and the masks are drawn from config.seed.
        shared: (k,) int64 indices that share one mask row, all of D_f among them; None: D_f; REM (IDEAL): D_c.
        log: called as log(epoch, epochs, model, **record) after each epoch; no clean label or test image is in the
            record: loss of step 3; Acc(D_f) before and after step 2 and at the end (acc_forget_before, acc_forget,
            acc_forget_end); updates and passes of step 2; u_forget, pull_retain, ... of `weigh`; score of `judge`.
    Returns: theta_o1 after the best epoch (`judge`), with stop="max" after the last: a plain network like the original.
    Raises: ValueError for a forget set or setting without sense; TypeError: it cannot be expanded; NonFiniteLoss.
    """
    return go_on(start(model, data, forget, config, generator, shared=shared), log)  # Step 1


def go_on(state: State, log=None) -> nn.Module:
    """Steps 2 to 4 from a state of `start`, or between two epochs. Choice: `judge` may end the loop earlier."""
    while state.epoch < state.config.unlearn_epochs and not state.repaired:  # while current epoch <= max epochs
        state.epoch += 1
        remove(state)  # Step 2
        redirect(state)  # Step 3
        judge(state)
        if log is not None:
            log(state.epoch, state.config.unlearn_epochs, state.expanded, **state.record)
    return finish(state)  # Step 4


def start(model: nn.Module, data, forget: torch.Tensor, config, generator: torch.Generator, *,
          shared: torch.Tensor | None = None) -> State:
    """Step 1: put theta_o2 beside theta_o1, give every example its mask, D_f (or `shared`) one; args: `rem`'s."""
    config = Settings(**{f.name: getattr(config, f.name, f.default) for f in fields(Settings)})
    forget = check_forget(forget, len(data))
    if shared is not None and not torch.isin(forget, check_index(shared, len(data)).cpu()).all():
        raise ValueError("shared lacks examples of D_f, which are under one mask (step 3.1); give all of D_f and more")
    if not any(p.requires_grad for name, p in model.named_parameters() if name.rpartition(".")[2] not in EXTRA):
        raise ValueError("every parameter of the network is frozen; set requires_grad where unlearning may change it")
    if isinstance(model, Expanded):
        expanded = copy_of(model)
    else:
        _, example, _ = next(iter(data.batches(forget[:2], size=2, generator=torch.Generator())))
        expanded = expand(model, example, config.extra_ratio, generator=stream(config.seed, "theta_o2"))
    masks = mask_table(len(data), expanded.width, config.p_mem, config.seed, forget if shared is None else shared)
    in_forget = torch.zeros(len(data), dtype=torch.bool).index_fill_(0, forget, True)
    device = next(expanded.parameters()).device
    state = State(expanded, copy_of(expanded).requires_grad_(False).eval(), data, forget, in_forget,
                  masks.to(device), make_optimizer(expanded, config, config.unlearn_lr), config, generator,
                  [module.training for module in expanded.modules()], device)
    retain = (~in_forget).nonzero().flatten()
    few = round(WATCHED * len(retain))
    if config.stop == "repaired" and (config.step31 or config.step32) and few:
        order = torch.randperm(len(retain), generator=stream(config.seed, "watched"))
        state.watched = retain[order[:few]].sort().values
        state.taught = torch.cat([forget, retain[order[few:]]]).sort().values
    if config.step31 and not getattr(data, "augments", True):
        state.known = known_reference(state)
    return state


def remove(state: State) -> float:
    """Step 2: while Acc(D_f) > gamma, pass over D_f and update theta_o1 with L_step2 = -L_remove; the last Acc(D_f).

    After max_passes it gives up with a warning. NonFiniteLoss. Choice: passes in eval mode, see `trains_on_forget`.
    """
    config, passes, updates, accs = state.config, 0, 0, []
    training = trains_on_forget(config, state.forget, repaired=config.step31 or config.step32)
    while (acc := acc_forget(state)) > config.gamma:  # stop condition: Acc(D_f) <= gamma
        accs.append(acc)
        if passes >= config.max_passes:
            warn(f"Acc(D_f) is {acc:.2f} after {passes} passes, still above gamma = {config.gamma}", stacklevel=2)
            break
        state.expanded.train(training)
        total = torch.zeros((), device=state.device)
        with forked_rng(state.generator, state.device):
            for rows, x, y in loader(state, state.forget):
                # 2.1  L_remove(D_f) = (2 / beta) E log sigmoid(beta (CE_o1 - CE_ref)), theta_o1 alone
                ce, (_, ce_ref) = cross_entropy(state, x, y), reference_ce(state, rows, x, y)
                # 2.2  theta_o1 <- theta_o1 - epsilon grad L_step2,  L_step2 = -L_remove; theta_o2 has no gradient here
                total += descend(state.optimizer, step2_loss(ce, ce_ref, config.beta), len(rows))
                updates += 1
        finite(total, 1, "step 2")
        passes += 1
    state.record = dict(acc_forget_before=[*accs, acc][0], acc_forget=acc, passes=passes, updates=updates)
    return acc


def trains_on_forget(config, forget: torch.Tensor, repaired: bool = False) -> bool:
    """Whether passes over D_f alone run in training mode: dropout, and each batch's statistics in BatchNorm.

    Choice: not where a step 3 follows (`repaired`): statistics of a batch of D_f subtract what its examples share, the
    trigger itself, so Acc(D_f) falls until D_tr moves them back. config.forget_norm decides where it is not "auto".
    """
    batch = config.forget_norm == "batch" or (config.forget_norm == "auto" and not repaired)
    return batch and len(forget) > 1  # one example has no batch statistics


def redirect(state: State) -> float:
    """Step 3: a pass over D_tr with L_step3 = L_redirect - L_remove, its mean loss; without 3.1 and 3.2 REM is NPO."""
    if not (state.config.step31 or state.config.step32):
        return 0.0
    batch_loss = step3 if state.config.step31 else step3_without_redirect
    state.expanded.train()
    total, steps, state.sums = torch.zeros((), device=state.device), 0, torch.zeros((2, 3), device=state.device)
    waiting = extra_parts(state.expanded) if state.config.step31 else set()
    with forked_rng(state.generator, state.device):
        for steps, (rows, x, y) in enumerate(loader(state, state.taught), 1):
            # 3.3  theta <- theta - epsilon grad L_step3, both parts
            total += descend(state.optimizer, batch_loss(state, rows, x, y), len(rows))
            waiting = waiting and waiting & extra_parts(state.expanded, without_gradient=True)
    if waiting and steps:
        raise TypeError(f"cannot redirect through {min(waiting)[0]!r}: in training no gradient reaches its theta_o2")
    state.record["loss"] = finite(total, steps, f"step 3 of epoch {state.epoch}")
    over_ranks([state.sums])
    for name, (number, u, pull) in zip(("retain", "forget"), state.sums.tolist(), strict=True):
        state.record |= {f"u_{name}": u / max(1, number), f"pull_{name}": pull / max(1, number)}
    return state.record["loss"]


def step3(state: State, rows: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """3.1, 3.2 and the loss of 3.3 for one batch of D_tr."""
    config, in_forget = state.config, state.in_forget[rows]  # (B,) on the CPU: known without waiting for the device
    removes = config.step32 and bool(in_forget.any())
    full_ref, base_ref = reference_ce(state, rows, x, y, full=True, base=removes)
    # 3.1  L_redirect = (2 / beta) E log sigmoid(beta (CE_{o1 and o2} - CE_ref)), D_f under one mask that it shares
    full = cross_entropy(state, x, y, mask_rows(state.masks, rows))
    # 3.2  L_remove(D_f) = (2 / beta) E 1{i in D_f} log sigmoid(beta (CE_o1 - CE_ref)), theta_o1 alone,
    #      on the whole batch, so that its BatchNorm statistics are right, though the loss counts D_f only
    with torch.set_grad_enabled(removes):
        base = cross_entropy(state, x, y)
    weigh(state, full.detach() - full_ref, in_forget)
    # 3.3  L_step3 = L_redirect - L_remove
    in_forget = in_forget.to(state.device, non_blocking=True)
    return step3_loss(full, full_ref, base if removes else None, base_ref, in_forget, config.beta, config.redirect)


def step3_without_redirect(state: State, rows: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The ablation without 3.1 (Table 2): theta_o1 is fine-tuned on D_r, with the removal term on D_f.

    Choice: fine-tuned by the h of Eq. 2 as in 3.1, so that nothing else differs.
    L = (2 / beta) E (1{i in D_r} - 1{i in D_f}) log sigmoid(beta (CE_o1 - CE_ref)); without 3.2 the second part is 0.
    """
    ce, ce_ref = cross_entropy(state, x, y), reference_ce(state, rows, x, y)[1]
    h = npo_term(ce, ce_ref, state.config.beta)  # (B,)
    weigh(state, ce.detach() - ce_ref, state.in_forget[rows])
    in_forget = state.in_forget[rows].to(state.device, non_blocking=True)
    return torch.where(in_forget, -h if state.config.step32 else 0, h).mean()


def weigh(state: State, u: torch.Tensor, in_forget: torch.Tensor) -> None:
    """Add u = CE - CE_ref and the slope of h, the pull 2 sigmoid(-beta u), to the sums over D_r and D_f."""
    parts = torch.stack([torch.ones_like(u), u, 2 * torch.sigmoid(-state.config.beta * u)])  # (3, B)
    state.sums += (torch.stack([~in_forget, in_forget]).to(parts) @ parts.T).to(state.sums)  # (2, B) @ (B, 3)


def judge(state: State) -> None:
    """End the loop when the repair is done, and keep the best epoch's theta_o1.

    Choice: step 3 is there to restore utility. Once it has, further epochs cost healing.
    An epoch's score is Acc(W) (1 - max(Acc(D_f), gamma)): theta_o1 alone, labels as given, W being a twentieth of D_r
    that step 3 leaves out. The first epoch that does not beat the best score so far by a standard error is the last.
    """
    if state.watched is None:
        return
    refresh_batchnorm(state.expanded, state.data, state.config.batch)  # in a few steps they lag behind
    acc, forgotten = acc_of(state, state.watched), acc_forget(state)
    kept = 1 - max(forgotten, state.config.gamma) if state.config.gamma < 1 else 1.0  # at 1 nothing is to be forgotten
    score, error = acc * kept, (acc * (1 - acc) / len(state.watched)) ** 0.5 * kept
    state.repaired = 0 < state.best_score and score <= state.best_score + error  # 0: nothing is forgotten yet
    if score > state.best_score:
        state.best, state.best_score = drop(state.expanded).state_dict(), score
    state.record |= {"acc_forget_end": forgotten, "acc_watched": acc, "score": score}


def finish(state: State) -> nn.Module:
    """Step 4: discard theta_o2 and return theta_o1 in its old modes; NonFiniteLoss if the last update ruined it."""
    for module, training in zip(state.expanded.modules(), state.modes, strict=True):
        module.training = training
    unlearned = drop(state.expanded)
    if state.best is not None:
        unlearned.load_state_dict(state.best)
    return finite_weights(unlearned)


# --- Passes -----------------------------------------------------------------------------------------------------------

def check_forget(forget: torch.Tensor, n: int) -> torch.Tensor:
    """Return D_f if it is a set of dataset indices that is neither empty nor all n examples, else raise ValueError."""
    twice = len(check_index(forget, n)) - len(forget.unique())
    if len(forget) == 0:
        raise ValueError("the forget set is empty; nothing was discovered, so there is nothing to unlearn")
    if twice:
        raise ValueError(f"the forget set names {twice} examples twice; give each once")
    if len(forget) == n:
        raise ValueError(f"the forget set is all {n} training examples; the retain set must not be empty")
    return forget.cpu()


def loader(state: State, index: torch.Tensor | None, augment: bool = True, size: int | None = None):
    """Batches of D_tr or of `index`, shuffled and augmented or plain, in the network's dtype, the last not of one."""
    asked, dtype = torch.arange(len(state.data)) if index is None else index, next(state.expanded.parameters()).dtype
    how = dict(size=size or state.config.batch, generator=state.generator if augment else None, augment=augment)
    seen, held, left = [torch.empty(0, dtype=torch.int64)], None, len(asked)
    for batch in state.data.batches(index, **how, dtype=dtype):
        seen.append(batch[0].clone())
        left -= len(batch[0])
        if held is None and left == 1 < len(batch[0]) and ranks()[1] == 1:  # BatchNorm may refuse the last one alone
            held = [part.clone() for part in batch]
            continue
        rows, x, y = batch if held is None else [torch.cat(parts) for parts in zip(held, batch, strict=True)]
        yield rows, x.to(state.device), y.to(state.device)
    seen = torch.cat(seen)
    right = torch.equal(seen.sort().values, asked.sort().values) and (augment or torch.equal(seen, asked))
    if not right and ranks()[1] == 1:  # what other ranks have seen cannot be told from here
        raise ValueError("data.batches must yield the indices that are asked for, each once, in order unless shuffled")


def acc_forget(state: State) -> float:
    """Acc(D_f), a fraction, by `acc_of`."""
    return acc_of(state, state.forget)


@torch.no_grad()
def acc_of(state: State, index: torch.Tensor) -> float:
    """Accuracy on the examples of `index`, a fraction: theta_o1 alone, labels as given, eval mode, no augmentation."""
    counts = torch.zeros(3, dtype=torch.int64, device=state.device)  # looked at once, at the end
    with eval_mode(state.expanded):
        for _, x, y in loader(state, index, augment=False, size=min(1024, 4 * state.config.batch)):
            logits = state.expanded(x)  # (B, classes)
            counts[:2] += torch.stack([(logits.argmax(dim=1) == y).sum(), (~logits.isfinite()).sum()])
            counts[2] += len(y)
    over_ranks([counts])  # each rank may give its share or all examples
    hits, odd, number = counts.tolist()
    if odd:
        raise NonFiniteLoss(f"{odd} logits are not finite; lower the rate, or if no update was made look at the inputs")
    return hits / number


def cross_entropy(state: State, x: torch.Tensor, y: torch.Tensor, mask=None, net: Expanded | None = None):
    """(B,) cross-entropy of each example in float32 at least; theta_o1 alone without a mask."""
    logits = logits_of(state.expanded if net is None else net, x, state.config.precision, mask)  # (B, classes)
    return F.cross_entropy(logits, y, reduction="none")


@torch.no_grad()
def reference_ce(state: State, rows, x, y, full: bool = False, base: bool = True):
    """(B,) cross-entropies of the reference: with theta_o2 under each example's mask, and of theta_o1 alone."""
    rows = rows.to(state.device, non_blocking=True)
    if state.known is not None:
        return tuple(state.known[:, rows])
    return (cross_entropy(state, x, y, state.masks[rows], state.reference) if full else None,
            cross_entropy(state, x, y, None, state.reference) if base else None)


def known_reference(state: State) -> torch.Tensor:
    """Both reference cross-entropies of every example, (2, N): without augmentation an epoch does not change them."""
    dtype = torch.promote_types(next(state.expanded.parameters()).dtype, torch.float32)
    known = torch.zeros((3, len(state.data)), dtype=dtype, device=state.device)
    for rows, x, y in loader(state, None, augment=False):
        known[:, rows.to(state.device)] = torch.stack([*reference_ce(state, rows, x, y, full=True), torch.ones_like(y)])
    over_ranks([known])
    return known[:2] / known[2]  # by how many ranks an example was seen
