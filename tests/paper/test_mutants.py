"""Mistakes that a person makes: each is a function put in place of the right one, and a test named for it notices.

The control is the suite itself, in which every one of these tests
passes on the functions as they are. A tool's mutants of every line are tried by hand (tests/README.md).
"""

import contextlib
import sys
import warnings
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import Phase, settings
from torch import nn
from torch.nn import functional as F

import baselines
import etd
import metrics
import rem
import tasks
import test_algorithm
import test_eq2
import test_etd
import test_metrics
import test_rivals_twins
import test_step1_expand
import test_step2_remove
import test_step3_redirect
import test_step4_drop
import test_tasks
import test_twins
import rem_plus
import test_rem_plus
from engine import admission, batches, checks, masks, modes, scores, streams, updates

ROOT = Path(__file__).resolve().parent.parent.parent


@contextlib.contextmanager
def instead(owner, name: str, mutant):
    """Put a function in place of another, in every module of the checkout that holds it under its name."""
    original = vars(owner)[name]
    ours = [module for module in list(sys.modules.values())
            if str(getattr(module, "__file__", None) or "").startswith(str(ROOT))]
    holders = [owner, *(module for module in ours if module is not owner and vars(module).get(name) is original)]
    with contextlib.ExitStack() as stack:
        for holder in holders:
            stack.enter_context(mock.patch.object(holder, name, mutant))
        if owner in (etd, masks, etd.Expanded, etd.ExpandedBatchNorm, masks.MaskedPass):
            for module in (admission, sys.modules["expand"]):  # whose check would refuse such layers
                stack.enter_context(mock.patch.object(module, "self_check", lambda *args: None))
        yield


# --- Eq. 2 ------------------------------------------------------------------------------------------------------------


def no_two_over_beta(ce, ce_ref, beta=1.0):
    return F.logsigmoid(beta * (ce - ce_ref.detach()))


def beta_outside_alone(ce, ce_ref, beta=1.0):
    return (2 / beta) * F.logsigmoid(ce - ce_ref.detach())


def ratio_of_cross_entropies(ce, ce_ref, beta=1.0):
    return (2 / beta) * F.logsigmoid(-beta * torch.log(ce / ce_ref.detach()))


def u_inverted(ce, ce_ref, beta=1.0):
    return (2 / beta) * F.logsigmoid(beta * (ce_ref.detach() - ce))


def reference_with_a_gradient(ce, ce_ref, beta=1.0):
    return (2 / beta) * F.logsigmoid(beta * (ce - ce_ref))


def log_of_sigmoid(ce, ce_ref, beta=1.0):
    return (2 / beta) * torch.sigmoid(beta * (ce - ce_ref.detach())).log()


def step_2_downhill(ce, ce_ref, beta=1.0):
    return rem.npo_term(ce, ce_ref, beta).mean()


def removal_of_all_examples(ce_full, ce_full_ref, ce_base, ce_base_ref, in_forget, beta=1.0):
    loss = rem.npo_term(ce_full, ce_full_ref, beta)
    if ce_base is not None:
        loss = loss - rem.npo_term(ce_base, ce_base_ref, beta)
    return loss.mean()


def removal_over_its_own_examples(ce_full, ce_full_ref, ce_base, ce_base_ref, in_forget, beta=1.0):
    loss = rem.npo_term(ce_full, ce_full_ref, beta).mean()
    if ce_base is not None:
        loss = loss - rem.npo_term(ce_base, ce_base_ref, beta)[in_forget].mean()
    return loss


# --- Algorithm 1 ------------------------------------------------------------------------------------------------------


def reference_that_moves(self, expanded, masks, precision):
    self.net, self.masks, self.precision, self.known = expanded, masks, precision, None


def always_through_theta_o2(s, x, y, mask=None):
    mask = torch.ones((len(x), s.expanded.width), dtype=torch.bool) if mask is None else mask
    return F.cross_entropy(updates.logits_of(s.expanded, x, s.config.precision, mask), y, reduction="none")


def never_through_theta_o2(s, x, y, mask=None):
    off = None if mask is None else torch.zeros_like(mask)
    return F.cross_entropy(updates.logits_of(s.expanded, x, s.config.precision, off), y, reduction="none")


def modes_stay_as_they_are(net, modes):
    pass


def without_momentum(optimizer, loss, count=1):
    optimizer.state.clear()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def the_same_order_each_time(s, index, augment=True, size=None):
    asked = torch.arange(len(s.data)) if index is None else index
    dtype = next(s.expanded.parameters()).dtype
    for rows, x, y in s.data.batches(asked, size=size or s.config.batch, dtype=dtype):
        yield rows, x.to(s.device), y.to(s.device)


def the_last_epoch(self, s):
    return s.expanded


# --- Masks, layers, drop ----------------------------------------------------------------------------------------------


def by_place_in_the_batch(table, index):
    return table[: len(index)]


def each_its_own_row(forget, shared, n):
    return checks.check_forget(forget, n), None


def theta_o1_masked_too(self, outputs, extra, dtype):
    bits_ = self.mask[:, :extra]
    return torch.cat([bits_[:, :1].expand(-1, outputs), bits_], dim=1).to(dtype)


def one_mask_for_the_batch(self, outputs, extra, dtype):
    bits_ = self.mask[:1, :extra].expand(len(self.mask), -1)
    return torch.cat([bits_.new_ones((len(bits_), outputs)), bits_], dim=1).to(dtype)


def theta_o2_in_every_pass(self, x, mask=None):
    alone = mask is None and self.width and self.training  # in eval mode expand itself refuses it
    mask = torch.ones((len(x), self.width), dtype=torch.bool) if alone else mask
    active = None if mask is None else masks.MaskedPass(mask)
    return masks.run_pass(self.net, x, active, list(self.layers().values()))


def base_statistics_move(self, x, real=etd.ExpandedBatchNorm.forward):
    out = real(self, x)
    if self.active is not None and self.base.running_mean is not None:
        self.base.running_mean.copy_(self.running_mean[: self.outputs])
    return out


def keeps_the_wide_norm(expanded, real=etd.drop):
    expanded = modes.copy_of(expanded)
    for layer in expanded.layers().values():
        if isinstance(layer, etd.ExpandedBatchNorm) and layer.extra_bias is not None:
            layer.base.bias = nn.Parameter(torch.cat([layer.base.bias, layer.extra_bias]))
    return real(expanded)


# --- Tasks, metrics, the other methods --------------------------------------------------------------------------------


def may_be_the_true_label(dataset, n, seed, generator):
    labels, classes = dataset.train.labels.cpu().clone(), dataset.train.classes
    corrupted = tasks.sample(torch.arange(len(labels)), n, generator)
    labels[corrupted] = torch.randint(0, classes, (n,), generator=generator)
    return tasks.assemble("random", seed, dataset, labels, corrupted)


def another_draw_for_each_rate(task, rate, seed):
    order = torch.randperm(len(task.corrupted), generator=streams.stream(seed, f"discovery {rate}"))
    return task.corrupted[order[: round(rate * len(task.corrupted))]].sort().values


def mean_of_batches(model, data, index=None, labels=None, masks=None):
    labels = (data.labels if labels is None else labels).cpu()
    hits = metrics.predict(model, data, index, masks) == (labels if index is None else labels[index.cpu()])
    parts = hits.split(1024)
    return sum(metrics.share(part) for part in parts) / len(parts)


def healed_by_given_labels(model, task, forget, original=None, real=metrics.evaluate):
    found = real(model, task, forget, original)
    hits = metrics.predict(model, task.train, task.corrupted) == task.train.labels[task.corrupted]
    return found | {"healed": metrics.share(hits)}


def healed_over_d_f(model, task, forget, original=None, real=metrics.evaluate):
    found = real(model, task, forget, original)
    return found | {"healed": found["healed_forget"]}


def scrub_towards_d_f(logits, teacher, temperature=1.0, real=baselines.distillation):
    return -real(logits, teacher, temperature)


# --- The list ---------------------------------------------------------------------------------------------------------

MUTANTS = [  # number, where, name, mutant, the property, its test
    (rem, "step2_loss", step_2_downhill, "L9", test_eq2.test_directions),
    (rem, "npo_term", no_two_over_beta, "L1", test_eq2.test_nine_values_of_h),
    (rem, "npo_term", beta_outside_alone, "L1", test_eq2.test_nine_values_of_h),
    (rem, "npo_term", ratio_of_cross_entropies, "L7", test_eq2.test_h_reads_the_ratio_of_likelihoods),
    (rem, "npo_term", u_inverted, "L3", test_eq2.test_the_pull),
    (rem, "npo_term", reference_with_a_gradient, "L10", test_eq2.test_gradients),
    (rem, "npo_term", log_of_sigmoid, "L11", test_eq2.test_finite_at_the_ends),
    (rem, "step3_loss", removal_of_all_examples, "L18", test_eq2.test_losses_are_the_numpy_twins),
    (rem, "step3_loss", removal_over_its_own_examples, "L18", test_eq2.test_losses_are_the_numpy_twins),
    (scores.Reference, "__init__", reference_that_moves, "F8", test_algorithm.test_the_reference_never_moves),
    (scores, "cross_entropy", always_through_theta_o2, "F6", test_step2_remove.test_theta_o1_alone_moves),
    (scores, "cross_entropy", never_through_theta_o2, "F7", test_step3_redirect.test_the_channels_of_d_f_move),
    (modes, "put_modes", modes_stay_as_they_are, "F11", test_metrics.test_v9_leaves_no_trace),
    (batches, "batches_of", the_same_order_each_time, "A7",
     test_step3_redirect.test_each_example_of_d_tr_once_an_epoch),
    (updates, "descend", without_momentum, "A23", test_twins.test_rem_is_the_plain_loop),
    (rem_plus.EarlyStopping, "best", the_last_epoch, "A24", test_rem_plus.test_rem_plus_is_the_plain_loop),
    (etd, "mask_rows", by_place_in_the_batch, "M3", test_etd.test_rows_are_the_same_at_every_look),
    (checks, "check_sets", each_its_own_row, "A23", test_twins.test_rem_is_the_plain_loop),
    (masks.MaskedPass, "over", one_mask_for_the_batch, "M17", test_etd.test_layers_use_a_prefix_of_the_row),
    (masks.MaskedPass, "over", theta_o1_masked_too, "M11", test_etd.test_base_channels_are_never_masked),
    (etd.Expanded, "forward", theta_o2_in_every_pass, "X1", test_step1_expand.test_base_only_is_the_original),
    (etd.ExpandedBatchNorm, "forward", base_statistics_move, "D7",
     test_step4_drop.test_masked_passes_leave_base_statistics),
    (etd, "drop", keeps_the_wide_norm, "D1", test_step4_drop.test_drop_undoes_expand),
    (metrics, "evaluate", healed_over_d_f, "V5", test_metrics.test_v5_parts),
    (metrics, "evaluate", healed_by_given_labels, "V4", test_metrics.test_v5_parts),
    (tasks, "random_labels", may_be_the_true_label, "T2", test_tasks.test_t1_exactly_n),
    (tasks, "discover", another_draw_for_each_rate, "T8", test_tasks.test_t8_nested),
    (metrics, "accuracy", mean_of_batches, "V2", test_metrics.test_v2_the_last_batch_weighs_by_its_examples),
    (baselines, "distillation", scrub_towards_d_f, "A23",
     partial(test_rivals_twins.test_against_a_plain_twin, "scrub")),
]


def noticed(test) -> bool:
    """Whether a test fails by its assertions; hypothesis may have found several of them, and need not shrink any."""
    name = "_hypothesis_internal_use_settings"  # of a test that hypothesis draws for
    quick = settings(getattr(test, name, None), phases=(Phase.explicit, Phase.generate))
    try:
        with mock.patch.object(test, name, quick, create=True):
            test()
    except Exception as error:
        found = getattr(error, "exceptions", [error])
        return all(isinstance(each, AssertionError) for each in found)
    return False


@pytest.mark.parametrize("owner, name, mutant, test", [
    pytest.param(owner, name, mutant, test, id=f"{mutant.__name__}-{prop}")
    for owner, name, mutant, prop, test in MUTANTS])
def test_mutants_die(owner, name, mutant, test):
    """R17: each seeded bug makes the test that is named for it fail."""
    with instead(owner, name, mutant), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert noticed(test)
