"""Redirection for Erasing Memory: Eq. 2 and Algorithm 1, top to bottom in the order of Sec. 5.

    unlearned = rem(model, data, forget, Settings(), generator)      # model in and out are plain networks
    unlearned = rem(expanded, data, forget, Settings(), generator)   # REM on ETD: theta_o2 is its memorisation part
    unlearned = rem(model, data, forget, Settings(), generator, shared=corrupted)   # REM (IDEAL), Fig. 3

This is the algorithm as the paper prints it; what we changed is in rem_plus.py and nowhere else. rem.py, rem_plus.py,
etd.py, expand.py and engine/ need torch and nothing else; engine/batches.py says what they need of `data`.
"""

from dataclasses import dataclass, field

import torch

from engine import (MaskTable, Reference, accuracy_of, among, batches_of, check_sets, check_settings, copy_of,
                    cross_entropy, finite_weights, first_inputs, make_optimizer, mode_over_forget, modes_of, one_pass,
                    positive, put_modes, refresh_batchnorm, report, settings_from, stream, training_mode, undisturbed,
                    warn_above)
from etd import Expanded, drop, mask_rows, mask_table
from expand import expand

# --- Eq. 2 ------------------------------------------------------------------------------------------------------------

def npo_term(ce: torch.Tensor, ce_ref: torch.Tensor, beta: float = 1.0) -> torch.Tensor:
    """The NPO term of Eq. 2, per example: h(CE - CE_ref) with h(u) = (2 / beta) log sigmoid(beta u).

    Choice: the ratio inside the log of Eq. 2 is the ratio of likelihoods, as in NPO: log(p / p_ref) = -(CE - CE_ref).
    The literal ratio of cross-entropies ruins the model (README, "Choices").
    Args: ce, ce_ref: (B,) cross-entropies of network and (without gradient) reference; beta: > 0, or a ValueError.
    Returns: (B,) values in (-inf, 0), rising with ce; the slope is 2 sigmoid(-beta (ce - ce_ref)), between 0 and 2.
    """
    positive(beta=beta)
    # h = (2 / beta) log sigmoid(-beta log(p / p_ref)) = (2 / beta) log sigmoid(beta (CE - CE_ref))
    return (2 / beta) * torch.nn.functional.logsigmoid(beta * (ce - ce_ref.detach()))


def step2_loss(ce: torch.Tensor, ce_ref: torch.Tensor, beta: float = 1.0) -> torch.Tensor:
    """Step 2.2: L_step2 = -L_remove over a batch of D_f, (B,) CE of theta_o1 alone; going down it raises CE on D_f."""
    # L_step2 = -(2 / beta) E log sigmoid(beta (CE_o1 - CE_ref))
    return -npo_term(ce, ce_ref, beta).mean()


def step3_loss(ce_full, ce_full_ref, ce_base, ce_base_ref, in_forget, beta: float = 1.0,
               weight: float = 1.0) -> torch.Tensor:
    """Step 3.3: L_step3 = L_redirect - L_remove, the mean over a batch of D_tr (Eq. 2).

    Choice: D_f has its natural share of the batch, so both terms are divided by the batch size. Eq. 2 prints a mean
    over D_f: `remove_weight` "mean" (README, "Choices").
    Args:
        ce_full, ce_full_ref: (B,) cross-entropies of theta_o1 and theta_o2 under masks, model and reference.
        ce_base, ce_base_ref: (B,) cross-entropies of theta_o1 alone, or None to leave the removal term (3.2) out.
        in_forget: (B,) bool, D_f; beta: > 0, or a ValueError; weight: of each example of D_f in the removal term, 1 for
            its natural share, N / |D_f| for a mean over D_f.
    Returns: a scalar; going down it lowers CE of the full network on D_tr and raises CE of theta_o1 on D_f.
    """
    # L_redirect = (2 / beta) E_{D_tr} log sigmoid(beta (CE_{o1 and o2} - CE_ref))
    loss = npo_term(ce_full, ce_full_ref, beta)  # (B,)
    if ce_base is not None:
        # - L_remove = -(2 / beta) E_{D_tr} weight 1{i in D_f} log sigmoid(beta (CE_o1 - CE_ref))
        loss = loss - torch.where(in_forget, weight * npo_term(ce_base, ce_base_ref, beta), 0)
    return loss.mean()


# --- What Algorithm 1 carries -----------------------------------------------------------------------------------------

ALLOWED = dict(gamma="[0, 1]", p_mem="[0, 1]", momentum="[0, 1]", batch="[1, 1000000000]",
               optimizer=("sgd", "adam"), precision=("auto", "float32", "bf16"),
               forget_norm=("auto", "running", "batch"), remove_weight=("share", "mean"))  # values of Settings


@dataclass(frozen=True)
class Settings:
    """What Algorithm 1 reads: Table 3's values for ResNet-9 and A.3's, then what the paper leaves to whoever writes it
    down (README, "Choices")."""

    unlearn_epochs: int = 10  # max epochs
    unlearn_lr: float = 0.005  # epsilon
    gamma: float = 0.2  # step 2 stops once Acc(D_f) <= gamma
    beta: float = 1.0  # of Eq. 2
    p_mem: float = 0.2  # share of theta_o2 that an example's mask turns on
    extra_ratio: float = 1.0  # theta_o2's width over theta_o1's
    batch: int = 512
    optimizer: str = "sgd"  # or "adam"
    seed: int = 0  # of theta_o2 and the masks
    # The paper does not say:
    momentum: float = 0.9  # of SGD; one optimiser for steps 2 and 3
    weight_decay: float = 5e-4  # of SGD
    remove_weight: str = "share"  # of 3.2: D_f has its "share" of the batch, or the "mean" over D_f counts (Eq. 2)
    max_passes: int = 100  # most passes over D_f in one step 2, then a warning
    forget_norm: str = "auto"  # BatchNorm in step 2: "running" statistics (auto) or those of each "batch"
    precision: str = "auto"  # bf16 autocast on GPUs, float32 on the CPU; or "float32", "bf16"

    def __post_init__(self):
        check_settings(self, ALLOWED)


@dataclass
class State:
    """What Algorithm 1 carries from step to step."""

    expanded: Expanded  # theta_o1 and theta_o2
    reference: Reference  # both as step 1 made them, frozen: "ref" of Eq. 2
    data: object  # D_tr, labels as given
    forget: torch.Tensor  # (k,) int64, D_f
    in_forget: torch.Tensor  # (N,) bool on the CPU
    masks: MaskTable  # of N rows, on the device
    optimizer: torch.optim.Optimizer  # one for steps 2 and 3
    config: Settings
    generator: torch.Generator  # of order, augmentation and dropout
    modes: list[bool]  # the training flags that the network came with
    device: torch.device  # of the network
    epoch: int = 0  # epochs begun
    record: dict = field(default_factory=dict)  # what the epoch in progress measured, for `log`


# --- Algorithm 1 ------------------------------------------------------------------------------------------------------

@undisturbed
def rem(model: torch.nn.Module, data, forget: torch.Tensor, config, generator: torch.Generator, *,
        shared: torch.Tensor | None = None, step3=None, log=None, state: State | None = None) -> torch.nn.Module:
    """Unlearn with Algorithm 1: expand, then remove and redirect for `unlearn_epochs` epochs, then drop.

    Args:
        model: trained plain network, or an Expanded: of ETD training (REM on ETD), seed and p_mem as there, or of
            `expand` with layers of your choice; left as it is.
        data: D_tr with its labels as given, see engine/batches.py; config: Settings, or a record that has them.
        forget: (k,) int64 dataset indices, D_f; neither empty nor all of D_tr; on any device.
        generator: on the CPU, of order, augmentation and dropout; theta_o2 and the masks are drawn from config.seed.
        shared: (k,) int64 indices that share one mask row, all of D_f among them; None: D_f; REM (IDEAL): D_c.
        step3: loss of step 3 for a batch, (state, index, x, y) -> scalar; None: `step3_batch`; ablations pass others.
        log: called as log(epoch, epochs, model, **record) after each epoch. The record holds the loss of step 3,
            Acc(D_f) before and after step 2 (acc_forget_before, acc_forget), updates and passes of step 2; never a
            clean label or a test image's score.
        state: made by `add_capacity`, or between two epochs; the arguments up to `shared` are then not read.
    Returns: theta_o1 after the last epoch: a plain network of the original's keys, shapes and modes.
    Raises: ValueError for a forget set or setting that cannot be used; TypeError where the network cannot be expanded;
        NonFiniteLoss.
    """
    s = state or add_capacity(model, data, forget, config, generator, shared)  # Step 1
    while s.epoch < s.config.unlearn_epochs:  # while current epoch <= max epochs
        s.epoch += 1
        s.reference.remember(s)  # CE_ref of all examples, computed once, if no augmentation changes them
        remove(s, training=s.config.forget_norm == "batch")  # Step 2
        redirect(s, step3)  # Step 3
        refresh_batchnorm(s.expanded, s.data, s.config.batch, modes=s.modes)  # Choice: see engine/modes.py
        report(log, s)
    return discard(s)  # Step 4


def add_capacity(model: torch.nn.Module, data, forget: torch.Tensor, config, generator: torch.Generator,
                 shared: torch.Tensor | None = None) -> State:
    """Step 1: put theta_o2 beside theta_o1, give every example its mask, D_f (or `shared`) one; args: `rem`'s."""
    config = settings_from(config, Settings)
    forget, shared = check_sets(forget, shared, len(data))
    # theta_o2 is drawn at random; on ETD it is there, and so are D_r's masks
    if isinstance(model, Expanded):
        expanded = copy_of(model).under(config.seed, config.p_mem)
    else:
        example = first_inputs(model, data, forget)  # (2, ...)
        expanded = expand(model, example, config.extra_ratio, generator=stream(config.seed, "theta_o2"))
    device = next(expanded.parameters()).device
    masks = mask_table(len(data), expanded.width, config.p_mem, config.seed, shared).to(device)
    # "ref" corresponds to the initialization of the respective weights
    reference = Reference(expanded, masks, config.precision)
    in_forget = among(forget, len(data))
    optimizer = make_optimizer(expanded, config, config.unlearn_lr)
    return State(expanded, reference, data, forget, in_forget, masks, optimizer, config, generator, modes_of(expanded),
                 device)


def remove(s: State, training: bool = False) -> None:
    """Step 2: while Acc(D_f) > gamma, pass over D_f and update theta_o1 with L_step2 = -L_remove.

    Choice: Acc(D_f) is measured before the first pass and after each whole pass; after max_passes a warning ends it.
    Args: training: see `pass_over_forget`. Raises: NonFiniteLoss.
    """
    before = acc = accuracy_of(s, s.forget)
    passes = updates = 0
    while acc > s.config.gamma and passes < s.config.max_passes:  # while Acc(D_f) > gamma
        updates += pass_over_forget(s, s.optimizer, training)  # 2.1 and 2.2
        passes += 1
        acc = accuracy_of(s, s.forget)
    warn_above(acc, s.config.gamma, passes)
    s.record = dict(acc_forget_before=before, acc_forget=acc, passes=passes, updates=updates)


def pass_over_forget(s: State, optimizer: torch.optim.Optimizer, training: bool = False) -> int:
    """2.1 and 2.2 for each batch of one pass over D_f; returns the number of updates.

    Choice: passes run in eval mode. Batch statistics of D_f alone subtract what its examples share, such as a trigger,
    and running statistics that follow D_f lower Acc(D_f) until D_tr moves those back.
    Args: optimizer: the state's, or another one over theta_o1; training: pass in training mode all the same, as NPO
        does, which no step 3 follows; a D_f of one example stays in eval mode, since it has no batch statistics.
    """
    mode_over_forget(s, training)
    with one_pass(s, "step 2", optimizer=optimizer) as update:
        for index, x, y in batches_of(s, s.forget):
            # 2.1  L_remove(D_f) = (2 / beta) E log sigmoid(beta (CE_o1 - CE_ref)), theta_o1 alone
            ce, ce_ref = cross_entropy(s, x, y), s.reference.base(index, x, y)  # (B,), (B,)
            # 2.2  theta_o1 <- theta_o1 - epsilon grad L_step2,  L_step2 = -L_remove; theta_o2 has no gradient here
            update(step2_loss(ce, ce_ref, s.config.beta))
    return update.steps


def redirect(s: State, step3=None, index: torch.Tensor | None = None) -> None:
    """Step 3: one pass over D_tr, theta_o1's utility repaired and D_c redirected into theta_o2.

    Args: step3: loss of a batch, (state, index, x, y) -> scalar, None: `step3_batch`; index: (m,) int64 examples to
        pass over, None: all of D_tr.
    Raises: NonFiniteLoss; TypeError where no gradient reaches a part of theta_o2.
    """
    step3 = step3 or step3_batch
    training_mode(s.expanded, s.modes)
    with one_pass(s, f"step 3 of epoch {s.epoch}", must_reach=s.expanded.theta_o2()) as update:
        for i, x, y in batches_of(s, index):
            # 3.3  theta <- theta - epsilon grad L_step3, both parts
            update(step3(s, i, x, y))


def step3_batch(s: State, index: torch.Tensor, x: torch.Tensor, y: torch.Tensor, removes: bool = True) -> torch.Tensor:
    """3.1, 3.2 and the loss of 3.3 for one batch of D_tr; without `removes` 3.2 is left out (Table 2)."""
    in_forget = s.in_forget[index]  # (B,) on the CPU: known without waiting for the device
    removes = removes and bool(in_forget.any())
    # 3.1  L_redirect = (2 / beta) E log sigmoid(beta (CE_{o1 and o2} - CE_ref)), D_f under one mask that it shares
    full_ref = s.reference.full(index, x, y)
    full = cross_entropy(s, x, y, mask_rows(s.masks, index))
    # 3.2  L_remove(D_f) = (2 / beta) E 1{i in D_f} log sigmoid(beta (CE_o1 - CE_ref)), theta_o1 alone,
    #      on the whole batch, so that BatchNorm normalises by its statistics, though the loss counts D_f only
    base = base_ref = None
    if removes:
        base, base_ref = cross_entropy(s, x, y), s.reference.base(index, x, y)
    # 3.3  L_step3 = L_redirect - L_remove
    in_forget = in_forget.to(s.device, non_blocking=True)
    weight = len(s.data) / len(s.forget) if s.config.remove_weight == "mean" else 1.0
    return step3_loss(full, full_ref, base, base_ref, in_forget, s.config.beta, weight)


def discard(s: State) -> torch.nn.Module:
    """Step 4: discard theta_o2 and keep only theta_o1, in its old modes; NonFiniteLoss if the last update ruined it."""
    return finite_weights(drop(put_modes(s.expanded, s.modes)))
