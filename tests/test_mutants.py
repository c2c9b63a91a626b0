"""Seeded bugs: each patch of the code is noticed by the properties named for it, and the code as it is passes them.

A patch is text of a module to replace. The module's functions get the code of the patched text for the length of a
test, so everyone who imported them, tests included, runs the bug.
"""

import contextlib
import inspect
import types
import warnings
from pathlib import Path
from unittest import mock

import pytest

import baselines
from experiment import data
import etd
import expand
import metrics
import rem
from study import stats
import tasks
import test_algorithm
import test_baselines
import test_core
import test_drop
import test_etd
import test_expand
import test_flow
import test_lasting
import test_loss
import test_masks
import test_metrics
import test_oracles
import test_report
import test_tasks
import train
from helpers import small_net

IMAGE = test_drop.IMAGE

PROPERTIES = {
    "L1": lambda: test_loss.prop_l1(rem, ce_ref=2.0),
    "L3": lambda: test_loss.prop_l3(rem),
    "L4": lambda: test_loss.prop_l4(rem),
    "L7": lambda: test_loss.prop_l7(rem),
    "L9": lambda: test_loss.prop_l9(rem),
    "L10": lambda: test_loss.prop_l10(rem),
    "L11": lambda: test_loss.prop_l11(rem),
    "L14": lambda: test_loss.prop_l14(rem),
    "L18": lambda: test_loss.prop_l18(rem),
    "A1": lambda: test_algorithm.prop_a1(rem),
    "A2": lambda: test_algorithm.prop_a2(rem),
    "A4": lambda: test_algorithm.prop_a4(rem),
    "A5": lambda: test_algorithm.prop_a5(rem),
    "A7": lambda: test_algorithm.prop_a7(rem),
    "A7 step 2": lambda: test_algorithm.prop_a7_step2(rem),
    "F8": lambda: test_flow.prop_f8(rem, 0, augment=True),
    "F8 whole": lambda: test_algorithm.prop_f8(rem),
    "F1": lambda: test_flow.prop_f1(etd, 0),
    "F2": lambda: test_flow.prop_f2(etd, 0, batch=3),
    "F6": lambda: test_flow.prop_f6(rem, 0),
    "F7": lambda: test_flow.prop_f7(rem, 0),
    "A20": lambda: test_flow.prop_a20(rem, 0),
    "A20 bf16": lambda: test_core.prop_a20_bf16(rem),
    "A23": lambda: test_core.prop_a23(rem),
    "A24": lambda: quietly(test_lasting.prop_a24),
    "A25": lambda: quietly(test_lasting.prop_a25),
    "A23 fit": lambda: test_core.prop_a23_fit(train),
    **{f"A23 {name}": lambda name=name: [test_oracles.prop_a23_method(name, seed) for seed in range(9)] for name in
       ("scrub", "badt", "ssd", "potion-500", "cuts", "ascent")},
    "agreement": test_baselines.test_agreement_by_hand,
    "X10": lambda: test_expand.prop_x10_draws(expand),
    "F11": lambda: test_metrics.prop_f11(metrics),
    "E4": lambda: test_etd.prop_e4(etd, 0),
    "M3 step 3": lambda: test_masks.prop_m3_redirect(rem, 0),
    "M3 fit": lambda: test_masks.prop_m3_fit(train, 0),
    "M6": lambda: test_masks.prop_m6(etd, 0),
    "M7": lambda: test_masks.prop_m7(etd, 0, n=9, width=7),
    "M7 start": lambda: test_masks.prop_m7_start(rem, 0),
    "M10": lambda: test_masks.prop_m10(etd),
    "M11": lambda: test_masks.prop_m11(etd, 0),
    "M13": lambda: test_masks.prop_m13(etd, 0),
    "M14": lambda: test_masks.prop_m14(rem, 0),
    "X1": lambda: test_expand.prop_x1(etd, 0, small_net(0), IMAGE),
    "D1": lambda: test_drop.prop_d1(etd, 0),
    "D3": lambda: test_drop.prop_d3(etd, 0),
    "D7": lambda: test_drop.prop_d7(etd, 0),
    "T2": lambda: test_tasks.prop_t2(tasks),
    "T4": lambda: test_tasks.prop_t4(tasks),
    "T8": lambda: test_tasks.prop_t8(tasks),
    "V2": lambda: test_metrics.prop_v2(metrics),
    "V4": lambda: test_metrics.prop_v4(metrics),
    "V5": lambda: test_metrics.prop_v5(metrics),
    "V6": lambda: test_metrics.prop_v6(metrics),
    "V6 table": lambda: prop_v6_table(stats),
}



def prop_v6_table(stats):
    """A table's product is the mean over runs of their products: 0 where each run has one score at 0."""
    runs = [test_report.make_row(healed=h, utility=1 - h, seed=seed) for seed, h in enumerate((0.0, 1.0, 0.0))]
    assert stats.summary(runs)["product"] == (0.0, 0.0)


def quietly(prop):
    """A property of rem on random data, where step 2 may end at its cap with a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Acc")
        prop(rem)


H = "(2 / beta) * F.logsigmoid(beta * (ce - ce_ref.detach()))"
REDRAW = "mask_table(len(state.data), state.expanded.width, state.config.p_mem, state.config.seed + 1, state.forget)"
AVERAGE = """expanded = copy_of(expanded)
    for layer in expanded.layers().values():
        if getattr(layer, "to_extra", None) is not None:
            layer.base.weight.data = (layer.base.weight.data + layer.to_extra.data[: layer.outputs, : layer.inputs]) / 2
"""
WIDE_NORMS = """expanded = copy_of(expanded)
    for layer in expanded.layers().values():
        if isinstance(layer, ExpandedBatchNorm):
            layer.base.bias = nn.Parameter(torch.cat([layer.base.bias, layer.extra_bias]))
"""

MUTANTS = [  # number, bug, module, text, text in its place, the properties that each notice it
    (1, "sign of step 2 flipped", rem, "return -npo_term(ce, ce_ref, beta).mean()",
     "return npo_term(ce, ce_ref, beta).mean()",
     ["L9", "A7 step 2"]),
    (2, "sign of step 3's second term flipped", rem, "loss = loss - torch.where(", "loss = loss + torch.where(",
     ["L9", "L14", "L18", "A7"]),
    (3, "2 over b missing", rem, H, "F.logsigmoid(beta * (ce - ce_ref.detach()))", ["L1"]),
    (4, "b only outside", rem, H, "(2 / beta) * F.logsigmoid(ce - ce_ref.detach())", ["L1"]),
    (5, "ratio of cross-entropies", rem, H, "(2 / beta) * F.logsigmoid(-beta * torch.log(ce / ce_ref.detach()))",
     ["L1", "L7", "L9", "L11"]),
    (5, "ratio of cross-entropies, downhill", rem, H,
     "(2 / beta) * F.logsigmoid(beta * torch.log(ce / ce_ref.detach()))",
     ["L1", "L7", "L11"]),
    (6, "u inverted", rem, "beta * (ce - ce_ref.detach())", "beta * (ce_ref.detach() - ce)", ["L1", "L3", "L4", "L9"]),
    (7, "sigmoid for log-sigmoid", rem, "F.logsigmoid(", "F.sigmoid(", ["L1", "L4"]),
    (8, "reference not detached", rem, "ce_ref.detach()", "ce_ref", ["L10"]),
    (8, "reference taken anew each epoch", rem, "    state.expanded.train()\n",
     "    state.expanded.train()\n    state.reference = copy_of(state.expanded).requires_grad_(False).eval()\n",
     ["F8", "F8 whole"]),
    (9, "reference is the current model", rem, "copy_of(expanded).requires_grad_(False).eval()",
     "expanded", ["F8", "F8 whole"]),
    (10, "log of sigmoid", rem, "F.logsigmoid(beta * (ce - ce_ref.detach()))",
     "torch.log(torch.sigmoid(beta * (ce - ce_ref.detach())))", ["L11"]),
    (11, "step 2 through the expanded model", rem, "ce, (_, ce_ref) = cross_entropy(state, x, y),",
     "ce, (_, ce_ref) = cross_entropy(state, x, y, state.masks[rows]),", ["F6", "A7 step 2"]),
    (11, "accuracy of the expanded model", rem,
     "for _, x, y in loader(state, index, augment=False, size=min(1024, 4 * state.config.batch)):\n"
     "            logits = state.expanded(x)",
     "for rows, x, y in loader(state, index, augment=False, size=min(1024, 4 * state.config.batch)):\n"
     "            logits = state.expanded(x, state.masks[rows])", ["A5"]),
    (12, "step 3.1 through the base model", rem,
     "full = cross_entropy(state, x, y, mask_rows(state.masks, rows))",
     "full = cross_entropy(state, x, y, torch.zeros_like(state.masks[rows]))", ["F7", "A7"]),
    (13, "3.1 on D_r", rem, 'loss = ce_full if redirect == "ce" else npo_term(ce_full, ce_full_ref, beta)',
     'loss = torch.where(in_forget, 0, ce_full if redirect == "ce" else npo_term(ce_full, ce_full_ref, beta))',
     ["L14", "A7"]),
    (13, "removal on all of D_tr", rem, "torch.where(in_forget, npo_term(ce_base, ce_base_ref, beta), 0)",
     "npo_term(ce_base, ce_base_ref, beta)", ["L14", "L18", "A7"]),
    (13, "removal divided by its own examples", rem, "npo_term(ce_base, ce_base_ref, beta), 0)",
     "npo_term(ce_base, ce_base_ref, beta) * len(in_forget) / in_forget.sum(), 0)", ["L14", "L18", "A7"]),
    (14, "no stop at equality", rem, "while (acc := acc_forget(state)) > config.gamma:",
     "while (acc := acc_forget(state)) >= config.gamma:", ["A2"]),
    (14, "one pass per epoch", rem, "while (acc := acc_forget(state)) > config.gamma:",
     "while (acc := acc_forget(state)) > config.gamma and passes < 1:", ["A1"]),
    (15, "eval mode left on", etd, "            module.training = training\n", "            pass\n", ["F11", "A5"]),
    (16, "one epoch too many", rem, "while state.epoch < state.config.unlearn_epochs and",
     "while state.epoch <= state.config.unlearn_epochs and", ["A4"]),
    (17, "frozen batches of D_f", rem, "in loader(state, state.forget):",
     'in vars(state).setdefault("frozen", list(loader(state, state.forget))):', ["A7 step 2"]),
    (18, "batch position for index, step 3", rem, "mask_rows(state.masks, rows)",
     "state.masks[: len(rows)]", ["M3 step 3", "A7"]),
    (18, "batch position for index, training", train, "mask_rows(masks, rows)", "masks[: len(rows)]",
     ["M3 fit"]),
    (18, "batch position for index, look-up", etd,
     "return table[check_index(index, len(table.packed)).to(table.packed.device, non_blocking=True)]",
     "return table[: len(index)]", ["M13"]),
    (19, "D_f keeps its own rows, table", etd, "table[check_index(shared, n).cpu()] = shared_row",
     "check_index(shared, n).cpu()",
     ["M7", "M7 start", "M14"]),
    (19, "D_f keeps its own rows, start", rem, "config.seed, forget if shared is None else shared)",
     "config.seed, shared)",
     ["M7 start"]),
    (20, "one mask for the batch", etd, "bits, wide = layer.keep.mask[:, : layer.extra_out],",
     "bits, wide = layer.keep.mask[:1, : layer.extra_out].expand(len(layer.keep.mask), -1),", ["F2", "M11"]),
    (20, "one mask for each four examples", etd, "table[0], table[1:]",
     "table[0], table[torch.arange(n) // 4 * 4 + 1]", ["M10"]),
    (21, "masks redrawn each epoch, step 3", rem, "    state.expanded.train()\n",
     f"    state.expanded.train()\n    state.masks = {REDRAW}\n", ["M3 step 3", "A7"]),
    (21, "masks redrawn each epoch, training", train, "    for epoch in range(1, epochs + 1):\n",
     "    for epoch in range(1, epochs + 1):\n"
     "        masks = masks and type(masks)(masks.packed.roll(1, 0), masks.width)\n",
     ["M3 fit"]),
    (22, "global seed set in forward", etd, "        return run_pass(self.net, x, None if mask",
     "        torch.manual_seed(0)\n        return run_pass(self.net, x, None if mask", ["M6", "E4"]),
    (22, "global seed set for the table", etd, "torch.Generator().manual_seed(seed)", "torch.manual_seed(seed)",
     ["M6"]),
    (23, "theta_o1 masked too", etd, "bits.new_ones((len(bits), layer.outputs))",
     "bits[:, :1].expand(-1, layer.outputs)", ["M11"]),
    (24, "drop keeps theta_o2's BatchNorm", etd,
     "swap(expanded, {layer: layer.base for layer in expanded.layers().values()})",
     "swap(expanded, {layer: layer.base for layer in expanded.layers().values() if isinstance(layer, ExpandedWeight)})",
     ["D1"]),
    (24, "drop keeps theta_o2's biases", etd, "expanded = copy_of(expanded)\n", WIDE_NORMS, ["D1"]),
    (25, "drop averages", etd, "expanded = copy_of(expanded)\n", AVERAGE, ["D1", "D3"]),
    (26, "theta_o2 active in base-only passes", etd, "        return run_pass(self.net, x, None if mask",
     "        if mask is None and self.width:\n            mask = torch.ones(len(x), self.width, dtype=torch.bool)\n"
     "        return run_pass(self.net, x, None if mask", ["X1", "F1"]),
    (27, "masked passes move base statistics", etd,
     "        return masked(torch.func.functional_call(base, wide, x), self)",
     "        x = torch.func.functional_call(base, wide, x)\n"
     "        base.running_mean.copy_(self.running_mean[: self.outputs])\n        return masked(x, self)",
     ["D7"]),
    (28, "Healed over D_f only", metrics, "healed, utility = share(hits),", "healed, utility = share(hits[found]),",
     ["V5"]),
    (29, "Healed against corrupted labels", metrics, "== task.clean[task.corrupted]",
     "== task.train.labels[task.corrupted]",
     ["V4", "V5"]),
    (30, "product of means for mean of products", stats,
     "return counts | {key: percent(row[key] for row in good) for key in SCORES}",
     "healed, utility, product = (percent(row[key] for row in good) for key in SCORES)\n"
     "    product = healed[0] * utility[0] / 100, product[1]\n"
     "    return counts | {'healed': healed, 'utility': utility, 'product': product}",
     ["V6 table"]),
    (30, "mean for product", metrics, "healed * utility,\n", "(healed + utility) / 2,\n", ["V6"]),
    (31, "random label may be the true one", tasks, "torch.randint(1, classes,", "torch.randint(0, classes,", ["T2"]),
    (31, "one wrong label never drawn", tasks, "torch.randint(1, classes,", "torch.randint(1, classes - 1,", ["T2"]),
    (32, "trigger top left", tasks, "images[:, :, -TRIGGER_SIZE:, -TRIGGER_SIZE:] = TRIGGER_VALUE",
     "images[:, :, :TRIGGER_SIZE, :TRIGGER_SIZE] = TRIGGER_VALUE",
     ["T4"]),
    (32, "trigger off by one pixel", tasks, "images[:, :, -TRIGGER_SIZE:, -TRIGGER_SIZE:] = TRIGGER_VALUE",
     "images[:, :, -TRIGGER_SIZE:, -TRIGGER_SIZE - 1 : -1] = TRIGGER_VALUE", ["T4"]),
    (33, "D_f drawn independently per rate", tasks, 'stream(seed, "discovery")', 'stream(seed, f"discovery {rate}")',
     ["T8"]),
    (34, "accuracy averaged over batches", metrics,
     "return share(predict(model, data, index, masks) == (labels if index is None else labels[index.cpu()]))",
     "hits = (predict(model, data, index, masks) == (labels if index is None else labels[index.cpu()])).split(1024)\n"
     "    return sum(share(part) for part in hits) / len(hits)", ["V2"]),
    (35, "step 2 with the statistics of D_f's batches", rem, "state.expanded.train(training)",
     "state.expanded.train(bool(state))", ["A20", "F6"]),
    (36, "momentum lost each epoch, training", train, "        with forked_rng(generator, device):\n",
     "        optimizer = make_optimizer(model, config, lr)\n        with forked_rng(generator, device):\n",
     ["A23 fit"]),
    (36, "momentum lost each pass, step 2", rem, "        finite(total, 1, \"step 2\")\n",
     "        finite(total, 1, \"step 2\")\n        state.optimizer.state.clear()\n", ["A23"]),
    (36, "momentum lost each epoch, step 3", rem, "    state.expanded.train()\n",
     "    state.expanded.train()\n    state.optimizer.state.clear()\n", ["A23"]),
    (37, "reference in float32", rem, "state.config.precision, mask)",
     'state.config.precision if net is None else "float32", mask)', ["A20 bf16"]),
    (38, "leaks looked for in positive draws alone", expand, "enumerate((False, False, True))",
     "enumerate((True, True, True))", ["X10"]),
    (38, "leaks looked for in signed draws alone", expand, "if problem := leak(probe, x, positive):",
     "if not positive and (problem := leak(probe, x, positive)):", ["X10"]),
    (38, "gradients looked for in one draw", expand, "            if unreached:\n                unreached -= reached(",
     "            if positive:\n                unreached -= reached(", ["X10"]),
    (39, "max epochs are a maximum for stop=max too", rem, 'if config.stop == "repaired" and (', "if (", ["A25"]),
    (39, "the loop never ends early", rem, "state.repaired = 0 < state.best_score and", "state.repaired = False and",
     ["A24"]),
    (39, "the last epoch for the best", rem, "        unlearned.load_state_dict(state.best)\n", "        pass\n",
     ["A24"]),
    (39, "an epoch that is worse for the best", rem, "    if score > state.best_score:", "    if True:", ["A24"]),
    (40, "schedule of SCRUB without its passes over D_f", baselines,
     "rates = pace(config, most * per_max + epochs * per_min)",
     "rates = iter([*pace(config, epochs * per_min), *[config.unlearn_lr] * most * per_max])", ["A23 scrub"]),
    (40, "one pass of SCRUB over D_f", baselines, "most = min(epochs, math.ceil(SCRUB_STEPS / (per_max + per_min)))",
     "most = 1", ["A23 scrub"]),
    (40, "towards D_f", baselines, "        return -towards(*batch)\n", "        return towards(*batch)\n",
     ["A23 scrub"]),
    (41, "BadT at the formula's scale", baselines, " / (logits.shape[1] if over_classes else 1)", "", ["A23 badt"]),
    (41, "the same teacher for all", baselines, "            if len(found):\n", "            if False:\n",
     ["A23 badt"]),
    (42, "SSD's importances in batches of training", baselines, "batch=SSD_BATCH", "batch=config.batch", ["A23 ssd"]),
    (42, "SSD at one alpha", baselines, "of_all, config.ssd_alpha, SSD_LAMBDA", "of_all, 1e9, SSD_LAMBDA",
     ["A23 ssd"]),
    (43, "Potion's end is gamma itself", baselines, "(acc if relative else 1)", "1", ["A23 potion-500"]),
    (43, "Potion starts at D_f's share", baselines, "len(forget) / len(data) / part", "len(forget) / len(data)",
     ["A23 potion-500"]),
    (44, "CUTS goes on along the task vector", baselines, "walk(net, model, tuned, -max(",
     "walk(net, model, tuned, max(", ["A23 cuts"]),
    (44, "CUTS at the least agreement", baselines, "-max(scores, key=scores.get)", "-min(scores, key=scores.get)",
     ["A23 cuts"]),
    (44, "no penalty", baselines, "CUTS_DIVERSITY * (1 - entropy / math.log(data.classes))", "0", ["agreement"]),
    (45, "descent on D_f", baselines, "        return -F.cross_entropy(logits, y)\n",
     "        return F.cross_entropy(logits, y)\n", ["A23 ascent"]),
]  # fmt: skip


# --- The patching -----------------------------------------------------------------------------------------------------


def functions(holder, module: str) -> dict[str, types.FunctionType]:
    """Functions and methods that the module named `module` defines, by their place in it, without their decorators."""
    found = {}
    for name, value in vars(holder).items():
        value = inspect.unwrap(value) if callable(value) else value
        if getattr(value, "__module__", None) == module and isinstance(value, types.FunctionType):
            found[name] = value
        elif getattr(value, "__module__", None) == module and isinstance(value, type):
            found.update({f"{name}.{inner}": f for inner, f in functions(value, module).items()})
    return found


def patched(module, old: str, new: str) -> dict[str, types.CodeType]:
    """Code of each of the module's functions if `new` stood in its text in place of `old`."""
    source = Path(module.__file__).read_text()
    if source.count(old) != 1:
        raise LookupError(f"{module.__name__}.py has {source.count(old)} times, not once: {old!r}; "
                          "adapt the mutant to the code")
    twin = types.ModuleType(module.__name__)
    twin.__file__ = module.__file__
    exec(compile(source.replace(old, new), f"<{module.__name__}.py with {new!r}>", "exec"), vars(twin))
    return {name: f.__code__ for name, f in functions(twin, module.__name__).items()}


@contextlib.contextmanager
def running(module, codes):
    """The module's functions run `codes` for the length of the block; expand then does without its own check of
    layers."""
    real = functions(module, module.__name__)
    assert real.keys() == codes.keys()
    kept = {name: f.__code__ for name, f in real.items()}
    with contextlib.ExitStack() as stack:
        if module is etd:
            stack.enter_context(mock.patch.object(expand, "self_check", lambda *args: None))
        try:
            for name, f in real.items():
                f.__code__ = codes[name]
            yield
        finally:
            for name, f in real.items():
                f.__code__ = kept[name]


CASES = [pytest.param(module, old, new, killer, id=f"{number:02d}-{bug}-{killer}")
         for number, bug, module, old, new, killers in MUTANTS for killer in killers]


@pytest.mark.parametrize("module, old, new, killer", CASES)
def test_mutants_are_killed(module, old, new, killer):
    """Each seeded bug makes each property named for it fail with an AssertionError, and with no other exception."""
    codes = patched(module, old, new)
    with running(module, codes), pytest.raises(AssertionError):
        PROPERTIES[killer]()


@pytest.mark.parametrize("name", PROPERTIES)
def test_properties_hold_on_the_code_as_it_is(name):
    """The control: each property passes on the shipped modules, all of them put through an empty patch."""
    with contextlib.ExitStack() as stack:
        # etd: without self_check
        for module in (baselines, data, expand, metrics, rem, stats, tasks, train, *[etd] * (name != "X10")):
            text = f'"""{module.__doc__}"""'
            stack.enter_context(running(module, patched(module, text, text)))
        PROPERTIES[name]()


def test_every_mutant_is_there():
    """Numbers 1 to 45, each bug once."""
    assert {mutant[0] for mutant in MUTANTS} == set(range(1, 46))
    assert len({mutant[:2] for mutant in MUTANTS}) == len(MUTANTS)
    assert {killer for mutant in MUTANTS for killer in mutant[5]} == PROPERTIES.keys()


def test_a_patch_that_does_not_fit_is_refused():
    """Text that is missing or there twice is an error that says so, and a patch is gone after its block."""
    for old in ("no such line", "return"):
        with pytest.raises(LookupError, match="adapt the mutant"):
            patched(rem, old, "")
    with running(rem, patched(rem, "return -npo_term(", "return undefined(")), pytest.raises(NameError):
        PROPERTIES["L9"]()
    PROPERTIES["L9"]()
