"""Mistakes that a person makes: each is one change in the text of a function, and a test named for it notices.

The control is the suite itself, in which every one of these tests passes on the functions as they are. More bugs were
put in by hand, see tests/README.md.
"""

import contextlib
import inspect
import sys
import textwrap
import warnings
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import Phase, settings

import baselines
import etd
import metrics
import rem
import rem_plus
import tasks
import test_algorithm
import test_eq2
import test_etd
import test_metrics
import test_rem_plus
import test_rivals_twins
import test_step1_expand
import test_step2_remove
import test_step3_redirect
import test_step4_drop
import test_tasks
import test_twins
from engine import admission, batches, checks, modes, scores, updates

ROOT = Path(__file__).resolve().parent.parent.parent

U = "beta * (ce - ce_ref.detach())"
REMOVAL = "torch.where(in_forget, weight * npo_term(ce_base, ce_base_ref, beta), 0)"
SHARED = "None if mask is None else MaskedPass(mask)"
RIGHT = "share(predict(model, data, index, masks) == (labels if index is None else labels[index.cpu()]))"

MUTANTS = [  # what it does, whose, which function, its text, other text, the property, its test
    # --- Eq. 2 ---
    ("down the removal loss", rem, "step2_loss", "-npo_term", "npo_term", "L9", test_eq2.test_directions),
    ("no 2 / beta", rem, "npo_term", "return (2 / beta) * ", "return ", "L1", test_eq2.test_nine_values_of_h),
    ("beta outside alone", rem, "npo_term", U, "ce - ce_ref.detach()", "L1", test_eq2.test_nine_values_of_h),
    ("ratio of cross-entropies", rem, "npo_term", U, "-beta * torch.log(ce / ce_ref.detach())", "L7",
     test_eq2.test_h_reads_the_ratio_of_likelihoods),
    ("u inverted", rem, "npo_term", U, "beta * (ce_ref.detach() - ce)", "L3", test_eq2.test_the_pull),
    ("reference with a gradient", rem, "npo_term", "ce_ref.detach()", "ce_ref", "L10", test_eq2.test_gradients),
    ("log of sigmoid", rem, "npo_term", f"torch.nn.functional.logsigmoid({U})", f"torch.sigmoid({U}).log()", "L11",
     test_eq2.test_finite_at_the_ends),
    ("removal of all examples", rem, "step3_loss", REMOVAL, "npo_term(ce_base, ce_base_ref, beta)", "L18",
     test_eq2.test_losses_are_the_numpy_twins),
    ("removal over its own examples", rem, "step3_loss", REMOVAL,
     "npo_term(ce_base, ce_base_ref, beta)[in_forget].mean()", "L18", test_eq2.test_losses_are_the_numpy_twins),
    # --- Algorithm 1 ---
    ("reference that moves", scores.Reference, "__init__", "copy_of(expanded).requires_grad_(False).eval()", "expanded",
     "F8", test_algorithm.test_the_reference_never_moves),
    ("always through theta_o2", scores, "cross_entropy", "s.config.precision, mask)",
     "s.config.precision, torch.ones((len(x), s.expanded.width), dtype=torch.bool) if mask is None else mask)", "F6",
     test_step2_remove.test_theta_o1_alone_moves),
    ("never through theta_o2", scores, "cross_entropy", "s.config.precision, mask)",
     "s.config.precision, None if mask is None else torch.zeros_like(mask))", "F7",
     test_step3_redirect.test_the_channels_of_d_f_move),
    ("modes stay as they are", modes, "put_modes", "module.training = training", "pass", "F11",
     test_metrics.test_v9_leaves_no_trace),
    ("the same order each time", batches, "batches_of", "generator=generator, augment=augment",
     "generator=None, augment=False", "A7", test_step3_redirect.test_each_example_of_d_tr_once_an_epoch),
    ("without momentum", updates, "descend", "optimizer.zero_grad(", "optimizer.state.clear(); optimizer.zero_grad(",
     "A23", test_twins.test_rem_is_the_plain_loop),
    ("the last epoch", rem_plus.EarlyStopping, "best", "put_back(s.expanded, self.kept)", "pass", "A24",
     test_rem_plus.test_rem_plus_is_the_plain_loop),
    ("no row for D_f", checks, "check_sets", "return forget, forget", "return forget, None", "A23",
     test_twins.test_rem_is_the_plain_loop),
    # --- Masks, layers, drop ---
    ("by place in the batch", etd, "mask_rows", "check_index(index, len(table.packed))", "torch.arange(len(index))",
     "M3", test_etd.test_rows_are_the_same_at_every_look),
    ("one mask for the batch", etd.MaskedPass, "over", "self.mask[:, :extra]",
     "self.mask[:1, :extra].expand(len(self.mask), -1)", "M17", test_etd.test_layers_use_a_prefix_of_the_row),
    ("theta_o1 masked too", etd.MaskedPass, "over", "bits.new_ones((len(bits), outputs))",
     "bits[:, :1].expand(-1, outputs)", "M11", test_step1_expand.test_masked_pass_is_the_twins),
    ("theta_o2 in every pass of training", etd.Expanded, "forward", SHARED,
     f"MaskedPass(x.new_ones((len(x), self.width))) if mask is None and self.width and self.training else {SHARED}",
     "X1", test_step1_expand.test_base_only_is_the_original),
    ("base statistics move", etd.ExpandedBatchNorm, "forward", "return masked(run_with(self.base, wide, x), self)",
     "out = run_with(self.base, wide, x)\n    self.base.running_mean.copy_(self.running_mean[: self.outputs])\n"
     "    return masked(out, self)", "D7", test_step4_drop.test_masked_passes_leave_base_statistics),
    ("keeps the wide norms", etd, "drop", "in expanded.layers().values()}",
     "in expanded.layers().values() if isinstance(layer, ExpandedWeight)}", "D1",
     test_step4_drop.test_drop_undoes_expand),
    # --- Tasks, metrics, the other methods ---
    ("Healed over D_f", metrics, "evaluate", '"healed": healed,', '"healed": share(hits[found]),', "V5",
     test_metrics.test_v5_parts),
    ("Healed by given labels", metrics, "evaluate", "== task.clean[", "== task.train.labels[", "V4",
     test_metrics.test_v5_parts),
    ("mean of batches", metrics, "accuracy", f"return {RIGHT}",
     f"parts = {RIGHT[6:-1]}\n    parts = parts.split(1024)\n    return sum(map(share, parts)) / len(parts)", "V2",
     test_metrics.test_v2_the_last_batch_weighs_by_its_examples),
    ("may be the true label", tasks, "random_labels", "torch.randint(1,", "torch.randint(0,", "T2",
     test_tasks.test_t1_exactly_n),
    ("another draw for each rate", tasks, "discover", 'stream(seed, "discovery")', 'stream(seed, f"{rate}")', "T8",
     test_tasks.test_t8_nested),
    ("SCRUB towards D_f", baselines, "distillation", "* temperature**2", "* -(temperature**2)", "A23",
     partial(test_rivals_twins.test_against_a_plain_twin, "scrub")),
]


def changed(function, old: str, new: str):
    """The function with other text in the place of `old`, which stands there once."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__qualname__} has changed; it has {old!r} {source.count(old)} times"
    found = {}
    exec(source.replace(old, new), function.__globals__, found)
    return found[function.__name__]


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
        if owner in (etd, etd.Expanded, etd.ExpandedBatchNorm, etd.MaskedPass):
            for module in (admission, sys.modules["expand"]):  # whose check would refuse such layers
                stack.enter_context(mock.patch.object(module, "self_check", lambda *args: None))
        yield


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


@pytest.mark.parametrize("owner, name, old, new, test", [
    pytest.param(owner, name, old, new, test, id=f"{what}, {held}")
    for what, owner, name, old, new, held, test in MUTANTS])
def test_mutants_die(owner, name, old, new, test):
    """R17: each seeded bug makes the test that is named for it fail."""
    with instead(owner, name, changed(vars(owner)[name], old, new)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert noticed(test)
