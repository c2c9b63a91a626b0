"""Redirection for Erasing Memory: Eq. 2 and Algorithm 1, step by step (Sec. 5).

    unlearned = rem(model, task.train, forget, config, generator)     # model in and out are plain networks
    unlearned = rem(expanded, task.train, forget, config, generator)  # REM on ETD: theta_o2 is the memorisation partition
    unlearned = rem(model, task.train, forget, config, generator, shared=task.corrupted)   # REM (IDEAL), Fig. 3
"""

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from data import Data, batches
from etd import check_index, drop, mask_table
from train import expand_for
from etd import Expanded
from metrics import accuracy
from settings import Config
from tasks import write_whole
from train import autocast, finite, make_optimizer, update

# --- Eq. 2 --------------------------------------------------------------------------------------------------------------


def npo_term(ce: torch.Tensor, ce_ref: torch.Tensor, beta: float = 1.0) -> torch.Tensor:
    """The NPO term of Eq. 2, per example: h(CE - CE_ref) with h(u) = (2 / beta) log sigmoid(beta u).

    Choice: the ratio inside the log of Eq. 2 is the ratio of likelihoods, as in NPO: log(p / p_ref) = -(CE - CE_ref). The
    literal ratio of cross-entropies ruins the model (README, "Reading of Eq. 2").

    Args:
        ce: (B,) cross-entropy of the network at hand, any float dtype.
        ce_ref: (B,) cross-entropy of the reference network; no gradient flows into it.
        beta: > 0.

    Returns:
        (B,) values in (-inf, 0), rising with ce: its slope is 2 sigmoid(-beta (ce - ce_ref)), between 0 and 2.

    Raises:
        ValueError: beta <= 0.
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta}; it must be above 0")
    # h = (2 / beta) log sigmoid(-beta log(p / p_ref)) = (2 / beta) log sigmoid(beta (CE - CE_ref))
    return (2 / beta) * F.logsigmoid(beta * (ce - ce_ref.detach()))


def removal_loss(ce: torch.Tensor, ce_ref: torch.Tensor, beta: float = 1.0) -> torch.Tensor:
    """Step 2.2: L_step2 = -L_remove, the mean over a batch of D_f of -h(CE_base - CE_ref).

    Args:
        ce, ce_ref: (B,) base-only cross-entropies of the model and of the reference.
        beta: > 0.

    Returns:
        A scalar; going down it raises CE on D_f.
    """
    # L_step2 = -(2 / beta) E log sigmoid(beta (CE_o1 - CE_ref))
    return -npo_term(ce, ce_ref, beta).mean()


def redirection_loss(ce_full, ce_full_ref, ce_base, ce_base_ref, in_forget, beta: float = 1.0,
                     plain: bool = False) -> torch.Tensor:
    """Step 3.3: L_step3 = L_redirect - L_remove, the mean over a batch of D_tr (Eq. 2).

    Choice: D_f has its natural share of the batch, so both terms are divided by the batch size.

    Args:
        ce_full, ce_full_ref: (B,) cross-entropies with theta_o1 and theta_o2 under each example's mask, model and
            reference; None leaves the redirect term (3.1) out.
        ce_base, ce_base_ref: (B,) cross-entropies of theta_o1 alone, or None to leave the removal term (3.2) out.
        in_forget: (B,) bool, the examples of D_f.
        beta: > 0.
        plain: redirect by CE itself instead of h(CE - CE_ref), an ablation: it pulls undiscovered corruption back too.

    Returns:
        A scalar; going down it lowers CE of the full network on D_tr and raises CE of theta_o1 on D_f.
    """
    # L_step3 = (2 / beta) E log sigmoid(beta (CE_o1+o2 - CE_ref))  -  (2 / beta) E 1{i in D_f} log sigmoid(beta (CE_o1 - CE_ref))
    loss = torch.zeros(len(in_forget), device=in_forget.device)
    if ce_full is not None:
        redirect = ce_full if plain else npo_term(ce_full, ce_full_ref, beta)
        loss = loss + redirect
    if ce_base is not None:
        loss = loss - torch.where(in_forget, npo_term(ce_base, ce_base_ref, beta), 0)
    return loss.mean()


# --- Algorithm 1 --------------------------------------------------------------------------------------------------------


@dataclass
class State:
    """What Algorithm 1 carries from step to step."""

    expanded: Expanded  # theta_o1 and theta_o2
    reference: Expanded  # both as step 1 made them, frozen: "ref" of Eq. 2
    data: Data  # D_tr, labels as given
    forget: torch.Tensor  # (k,) int64, D_f
    in_forget: torch.Tensor  # (N,) bool on the CPU
    masks: torch.Tensor  # (N, width) bool on the device
    optimizer: torch.optim.Optimizer  # one for steps 2 and 3
    config: Config
    generator: torch.Generator
    modes: list[bool]  # the training flags that the network came with
    known: tuple[torch.Tensor, torch.Tensor] | None = None  # (N,) reference CEs where no augmentation changes them
    epoch: int = 0


def rem(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator, *,
        shared: torch.Tensor | None = None, log=None) -> nn.Module:
    """Unlearn with Algorithm 1: expand, then remove and redirect for `unlearn_epochs` epochs, then drop.

    Args:
        model: trained plain network, or the Expanded of train_etd for REM on ETD; left as it is.
        data: D_tr with its labels as given.
        forget: (k,) int64 dataset indices, D_f; neither empty nor all of D_tr.
        config: gamma, beta, p_mem, unlearn_epochs, unlearn_lr, max_passes, forget_norm, step31, step32, redirect, seed, batch,
            precision and the optimiser's settings; ratio or else capacity for theta_o2's width: at capacity 1 and no ratio
            there is none.
        generator: on the CPU, of order and augmentation; theta_o2 and the masks are drawn from config.seed.
        shared: (k,) int64 indices that share one mask row; None for D_f, all of D_c for REM (IDEAL).
        log: called as log(epoch, epochs, model, loss=..., acc_forget=...) after each epoch.

    Returns:
        theta_o1 after the last epoch, a plain network of the original keys, shapes and dtypes, in the original's mode.

    Raises:
        ValueError: a forget set that is empty, all of D_tr, repeated or out of range.
        TypeError: a network that cannot be expanded.
        NonFiniteLoss: at the end of an epoch with a loss that is not finite.
    """
    state = start(model, data, forget, config, generator, shared=shared)  # Step 1
    while state.epoch < config.unlearn_epochs:
        acc_forget = remove(state)  # Step 2
        loss = redirect(state)  # Step 3
        if log is not None:
            log(state.epoch, config.unlearn_epochs, state.expanded, loss=loss, acc_forget=acc_forget)
    return finish(state)  # Step 4


def start(model: nn.Module, data: Data, forget: torch.Tensor, config: Config, generator: torch.Generator, *,
          shared: torch.Tensor | None = None) -> State:
    """Step 1: put theta_o2 beside theta_o1, give every example its mask and D_f (or `shared`) one of its own."""
    forget = check_forget(forget, len(data))
    expanded = copy.deepcopy(model) if isinstance(model, Expanded) else expand_for(model, data, config)
    modes = [module.training for module in expanded.modules()]
    reference = copy.deepcopy(expanded).requires_grad_(False).eval()
    masks = mask_table(len(data), expanded.width, config.p_mem, config.seed, forget if shared is None else shared)
    in_forget = torch.zeros(len(data), dtype=torch.bool)
    in_forget[forget] = True
    optimizer = make_optimizer(expanded, config, config.unlearn_lr)
    masks = masks.to(data.images.device)
    state = State(expanded, reference, data, forget, in_forget, masks, optimizer, config, generator, modes)
    if not (data.pad or data.flip) and config.step31:
        state.known = known_reference(state)
    return state


def remove(state: State) -> float:
    """Step 2: while Acc(D_f) > gamma, pass over D_f and update theta_o1 with L_step2 = -L_remove.

    Acc(D_f) is against the labels as given, theta_o1 alone, eval mode, without augmentation; measured before the first
    pass and after each. After max_passes passes it gives up with a warning.

    Choice: where a step 3 follows, the passes run in eval mode too (see `trains_on_forget`), so the loss is that of the very
    network which Acc(D_f) and the reference are about, and only weights can bring Acc(D_f) down.

    Returns:
        The last Acc(D_f), a fraction.
    """
    config, net = state.config, state.expanded
    training = trains_on_forget(config, state.forget, repaired=config.step31 or config.step32)
    for passes in range(config.max_passes + 1):
        acc = accuracy(net, state.data, state.forget)
        if acc <= config.gamma:
            return acc
        if passes == config.max_passes:
            break
        net.train(training)
        total = torch.zeros((), device=state.data.images.device)
        for rows, x, y in loader(state, state.forget):
            ce, (_, ce_ref) = cross_entropy(state, x, y), reference_ce(state, rows, x, y)
            loss = removal_loss(ce, ce_ref, config.beta)
            update(state.optimizer, loss)  # theta_o2 has no gradient here, so it stays bit for bit
            total += loss.detach()
        finite(total, 1, "step 2")
    warnings.warn(f"Acc(D_f) is {acc:.2f} after {config.max_passes} passes, still above gamma = {config.gamma}", stacklevel=2)
    return acc


def trains_on_forget(config: Config, forget: torch.Tensor, repaired: bool = False) -> bool:
    """Whether passes over D_f alone run in training mode: dropout, and each batch's statistics in BatchNorm.

    Choice: not where step 3 repairs what they break. Statistics of a batch of D_f alone subtract what its examples share,
    the trigger itself: in training mode most of D_f is misread before any update, so the term has lost its slope, and
    Acc(D_f) falls because the running statistics move towards D_f's. The first batches of D_tr move them back, and the
    trigger with them (README, "Step 2's mode"). NPO and Ascent, which nothing repairs, keep more Utility in training mode.

    Args:
        config: forget_norm, "auto" for the above.
        forget: (k,) int64, D_f.
        repaired: whether a step 3 follows.
    """
    batch = config.forget_norm == "batch" or (config.forget_norm == "auto" and not repaired)
    return batch and len(forget) > 1  # one example has no batch statistics


def redirect(state: State) -> float:
    """Step 3: one pass over D_tr with L_step3 = L_redirect - L_remove; ends the epoch.

    3.1 runs theta_o1 and theta_o2 under each example's mask. 3.2 runs theta_o1 alone: on the whole batch, which keeps its
    BatchNorm statistics right, though its loss counts D_f only. Without 3.1, theta_o1 is fine-tuned on D_r instead; with
    neither, there is no step 3 and REM is NPO (Table 2).

    Returns:
        The mean loss.
    """
    config, device = state.config, state.data.images.device
    state.epoch += 1
    if not (config.step31 or config.step32):
        return 0.0
    state.expanded.train()
    plain = config.step31 and config.redirect == "ce"
    total, steps = torch.zeros((), device=device), 0
    for rows, x, y in loader(state, None):
        hit = state.in_forget[rows]  # (B,) on the CPU: known without waiting for the device
        in_forget = hit.to(device, non_blocking=True)
        # Whether theta_o1 alone has a term in this loss; if not, its pass keeps BatchNorm's statistics right and no more.
        counts = not config.step31 or (config.step32 and bool(hit.any()))
        full_ref, base_ref = reference_ce(state, rows, x, y, full=config.step31, base=counts)
        with torch.set_grad_enabled(counts):
            base = cross_entropy(state, x, y)
        if config.step31:
            full = cross_entropy(state, x, y, state.masks[rows.to(device, non_blocking=True)])
        else:  # D_f's entries become the constant h(0): D_r is left
            full, full_ref = torch.where(in_forget, base_ref, base), base_ref
        removal = (base, base_ref) if config.step32 and counts else (None, None)
        loss = redirection_loss(full, full_ref, *removal, in_forget, config.beta, plain)
        update(state.optimizer, loss)
        total += loss.detach()
        steps += 1
    return finite(total, steps, f"step 3 of epoch {state.epoch}")


def finish(state: State) -> nn.Module:
    """Step 4: discard theta_o2 and return theta_o1, each module in the mode it came with."""
    for module, training in zip(state.expanded.modules(), state.modes, strict=True):
        module.training = training
    return drop(state.expanded)


# --- Passes -------------------------------------------------------------------------------------------------------------


def check_forget(forget: torch.Tensor, n: int) -> torch.Tensor:
    """Return D_f if it is a set of dataset indices that is neither empty nor all n examples, else raise ValueError."""
    forget = check_index(forget, n)
    if len(forget) == 0:
        raise ValueError("the forget set is empty; nothing was discovered, so there is nothing to unlearn")
    if len(forget.unique()) < len(forget):
        raise ValueError(f"the forget set names {len(forget) - len(forget.unique())} examples twice; give each once")
    if len(forget) == n:
        raise ValueError(f"the forget set is all {n} training examples; the retain set must not be empty")
    return forget


def loader(state: State, index: torch.Tensor | None):
    """Augmented batches of D_tr or of the examples in `index`, in the network's dtype."""
    dtype = next(state.expanded.parameters()).dtype
    return batches(state.data, index, state.config.batch, state.generator, augment=True, dtype=dtype)


def cross_entropy(state: State, x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor | None = None, net=None) -> torch.Tensor:
    """(B,) cross-entropy of each example in float32 at least; theta_o1 alone without a mask."""
    with autocast(state.config, x.device):
        logits = (state.expanded if net is None else net)(x, mask)  # (B, classes)
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), y, reduction="none")


@torch.no_grad()
def reference_ce(state: State, rows, x, y, full: bool = False, base: bool = True):
    """(B,) cross-entropies of the reference: with theta_o2 under each example's mask, and of theta_o1 alone."""
    rows = rows.to(x.device, non_blocking=True)
    if state.known is not None:
        return tuple(ce[rows] for ce in state.known)
    return (cross_entropy(state, x, y, state.masks[rows], state.reference) if full else None,
            cross_entropy(state, x, y, None, state.reference) if base else None)


def known_reference(state: State) -> tuple[torch.Tensor, torch.Tensor]:
    """Both reference cross-entropies of every example, once: without augmentation an epoch does not change them."""
    dtype = next(state.reference.parameters()).dtype
    pairs = [reference_ce(state, rows, x, y, full=True) for rows, x, y in batches(state.data, size=512, dtype=dtype)]
    full, base = (torch.cat(part) for part in zip(*pairs, strict=True))
    return full, base  # each (N,)


def save_state(state: State, path: str | Path) -> None:
    """Write everything that the next epoch depends on, so that it can go on in another process."""
    content = {"expanded": state.expanded.state_dict(), "reference": state.reference.state_dict(),
               "optimizer": state.optimizer.state_dict(), "generator": state.generator.get_state(), "epoch": state.epoch}
    write_whole(path, lambda file: torch.save(content, file))


def load_state(state: State, path: str | Path) -> None:
    """Put what `save_state` wrote into a state made by `start` from the same network, data and settings."""
    content = torch.load(path, weights_only=True, map_location=state.data.images.device)
    for part in ("expanded", "reference", "optimizer"):
        getattr(state, part).load_state_dict(content[part])
    state.generator.set_state(content["generator"].cpu())
    state.epoch = content["epoch"]
    if state.known is not None:
        state.known = None  # so that it is computed anew from the reference just loaded
        state.known = known_reference(state)
