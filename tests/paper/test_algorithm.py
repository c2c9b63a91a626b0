"""Algorithm 1 as a whole (Sec. 5): what it requires, its loop, its ablations and other forms. What the paper says:

- "Require: Learning rate epsilon, total epochs, D_f removal stop condition gamma": Table 3's values; no other setting
  is taken for one of them.                                                                               A17, A26, R8
- "Step 1": theta_o2, the masks and one optimiser for steps 2 and 3; "ref" is frozen here.              A9, A17, E6, F8
- "while current epoch <= max epochs": steps 2 and 3, exactly that often.                                A4, A10, A25
- "Step 4": theta_o1 as a plain network, of finite numbers.                                                    A3, D9
- Table 2: "No use of 3.1 & 3.2 simplifies to NPO, as theta_o2 is unused"; each can be left out alone.  A13, A36, L14
- "REM on ETD": "ETD's existing masks for the examples in D_r", so other masks are refused.                       A28

Beside this path: what it promises like every other method, such as to leave its inputs alone, in test_baselines.py;
that a run which was cut off goes on in tests/repair/test_repair_state.py.
"""

import copy
import math
import types
from dataclasses import fields, replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import baselines
from architectures import IMAGE
from engine.checks import NonFiniteLoss
from engine.modes import refresh_batchnorm
from etd import Expanded, mask_table, train_etd
from expand import expand
from experiment.settings import Config
from helpers import assert_same_state, gen, make_data, seeds, small_net, tiny
from rem import Settings, add_capacity, discard, rem, step3_batch
from rem_plus import rem_plus
from states import SMALL, acc_forget, draw_forget, make_state, small, unlearn
from train import fit

few = settings(max_examples=max(2, settings().max_examples * 2 // 5))  # several whole unlearning runs an example


# --- Require ----------------------------------------------------------------------------------------------------------


def test_settings_of_the_paper():
    """R8: Table 3's values for ResNet-9 are the defaults, and an experiment's settings take theirs from here."""
    wanted = dict(unlearn_epochs=10, unlearn_lr=0.005, gamma=0.2, beta=1.0, p_mem=0.2, batch=512, optimizer="sgd",
                  momentum=0.9, weight_decay=5e-4)
    assert {name: getattr(Settings(), name) for name in wanted} == wanted
    for f in fields(Settings):
        assert f.default == getattr(Config(), f.name), f.name


@pytest.mark.parametrize("config, kind, text", [
    (dict(unlearn_epoch=2), ValueError, "unknown setting 'unlearn_epoch'; did you mean 'unlearn_epochs'"),
    (types.SimpleNamespace(lr=0.1), ValueError, "unknown setting 'lr'"),
    (dict(optimizer="adamw"), ValueError, "optimizer is 'adamw'; choose from sgd, adam"),
    (types.SimpleNamespace(forget_norm="no"), ValueError, "forget_norm is 'no'; choose from auto, running, batch"),
    (dict(precision="fp8"), ValueError, "precision is 'fp8'; choose from"),
    (dict(gamma=1.001), ValueError, "gamma is 1.001; it must be in ."),
    (dict(gamma=-0.001), ValueError, "gamma is -0.001"),
    (dict(unlearn_epochs=-1), ValueError, "unlearn-epochs is -1; it must be a finite number"),
    (dict(max_passes=-1), ValueError, "max-passes is -1; it must be a finite number"),
    (dict(batch=0), ValueError, "batch is 0; it must be in .1, 1000000000"),
])
def test_settings_without_sense(config, kind, text):
    """A26: a setting that REM does not know is an error that names it and the nearest one that it knows; one outside
    its range or choices is an error that says them. The records may be a dict or any object."""
    with pytest.raises(kind, match=text):
        rem(small_net(0), make_data(0), torch.tensor([1]), config, gen(0))
    with pytest.raises(TypeError, match="unexpected keyword argument 'unlearn_epoch'"):
        Settings(unlearn_epoch=2)


@pytest.mark.parametrize("expanded", [False, True])
def test_frozen_networks(expanded):
    """A17: a network without a trainable parameter cannot be unlearned from, theta_o2 alone does not count; one is
    enough."""
    net = small_net(0).requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter of the network is frozen"):
        unlearn(net=expand(net, IMAGE) if expanded else net)
    net.head.weight.requires_grad_(True)
    unlearn(net=net, gamma=1.0)


# --- Step 1 -----------------------------------------------------------------------------------------------------------


def test_step_1_draws_from_the_settings_seed():
    """A9, E6: theta_o2 and the masks come from config.seed alone, and as ETD training's; another seed, another
    theta_u."""
    net, data, forget = small_net(0), make_data(0), torch.tensor([1])
    states = [add_capacity(net, data, forget, small(seed=seed), gen(generator))
              for seed, generator in ((1, 0), (1, 9), (2, 0))]
    extra = [torch.cat([p.detach().flatten() for p in s.expanded.theta_o2().values()]) for s in states]
    for drawn in (extra, [s.masks[:] for s in states]):
        assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert torch.equal(states[0].masks[:], mask_table(12, states[0].expanded.width, 0.5, 1, forget)[:])
    assert_same_state(states[0].expanded, baselines.with_theta_o2(net, data, tiny(seed=1)))
    outs = [rem(net, data, forget, small(seed=seed, gamma=1.0), gen(0)) for seed in (1, 2)]
    assert not torch.equal(outs[0].conv1.weight, outs[1].conv1.weight)


@given(seeds, st.sampled_from(["sgd", "adam"]), st.booleans(), st.sampled_from([0.0, 1.0]))
def test_one_optimiser(seed, optimizer, frozen, ratio):
    """A17: every trainable parameter, theta_o2's too, is in the optimiser exactly once, and no frozen one; SGD has the
    settings' momentum and decay, Adam none of either."""
    net = small_net(seed)
    net.conv1.weight.requires_grad_(not frozen)
    state = make_state(seed, net=net, optimizer=optimizer, extra_ratio=ratio, unlearn_lr=0.25, momentum=0.7,
                       weight_decay=0.1)
    (group,) = state.optimizer.param_groups
    trainable = {name: p for name, p in state.expanded.named_parameters() if p.requires_grad}
    assert [id(p) for p in group["params"]] == [id(p) for p in trainable.values()]
    assert any(".to_extra" in name or ".to_base" in name for name in trainable) == (ratio > 0)
    wanted = dict(weight_decay=0, betas=(0.9, 0.999)) if optimizer == "adam" else dict(momentum=0.7, weight_decay=0.1,
                                                                                       dampening=0, nesterov=False)
    assert (wanted | {"lr": 0.25}).items() <= group.items()


@few
@given(seeds, st.booleans())
def test_the_reference_never_moves(seed, augment):
    """F8: through all epochs the reference is step 1's copy of both parts, frozen, in evaluation mode and without
    gradients, and it shares no storage."""
    state = make_state(seed, data=make_data(seed, flip=augment))
    begun = copy.deepcopy(state.expanded)
    with acc_forget(0.9, 0.0):
        rem(*[None] * 5, state=state)
    reference = state.reference.net
    assert_same_state(reference, begun)
    assert not any(m.training for m in reference.modules())
    assert all(p.grad is None and not p.requires_grad for p in reference.parameters())
    assert not torch.equal(next(state.expanded.parameters()), next(begun.parameters()))
    own = {t.data_ptr() for t in reference.state_dict().values()}
    assert not own & {t.data_ptr() for t in state.expanded.state_dict().values()}


# --- The loop ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 4))
def test_exactly_max_epochs(epochs):
    """A4, A25: exactly max epochs run, each a step 2 and then a step 3, and each is logged."""
    seen, norms = [], []

    def log(epoch, most, model, **record):
        seen.append((epoch, most, type(model), *sorted(record)))
        norms.append(int(model.layers()["norm1"].num_batches_tracked))

    unlearn(gamma=1.0, unlearn_epochs=epochs, log=log)
    parts = ["acc_forget", "acc_forget_before", "loss", "passes", "updates"]
    assert seen == [(epoch + 1, epochs, Expanded, *parts) for epoch in range(epochs)]
    first = int(small_net(0).norm1.num_batches_tracked)
    assert norms == [first + 3 * (epoch + 1) for epoch in range(epochs)]  # batches of step 3


@few
@given(seeds, st.sampled_from([0.0, 1.0]))
def test_no_epoch(seed, gamma):
    """A10: without an epoch every weight, statistic and counter is the original's, whatever gamma."""
    net = small_net(seed)
    assert_same_state(unlearn(seed, net=net, n=40, unlearn_epochs=0, gamma=gamma), net)


def test_a_finished_run_goes_on_with_nothing():
    """A10: a state whose epochs have all run gives its network at once, without a look at D_tr; where one is left the
    reference looks, once and for all."""
    state = make_state()
    state.epoch, state.data = state.config.unlearn_epochs, types.SimpleNamespace(augments=False)
    assert_same_state(rem(*[None] * 5, state=state), small_net(0))
    other = make_state()
    rem(*[None] * 5, state=other)
    assert state.reference.known is None and other.reference.known is not None


@few
@given(seeds, st.sampled_from(["sgd", "adam"]), st.booleans())
def test_rate_zero(seed, optimizer, norm):
    """A10, D7: at rate 0 the original comes back, bit for bit, with its statistics made anew by one pass over D_tr."""
    data, net = make_data(seed), small_net(seed, norm=norm)
    with acc_forget(0.9, 0.0):
        out = unlearn(seed, data=data, net=net, unlearn_lr=0.0, optimizer=optimizer)
    if norm:
        assert not torch.equal(net.norm1.running_mean, out.norm1.running_mean)
    refresh_batchnorm(net, data, SMALL.batch)
    assert_same_state(out, net)


# --- Step 4 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [rem, rem_plus])
def test_the_last_update_is_looked_at(method):
    """A3: a run whose very last update overflows raises, with every loss before it finite."""
    count = []

    def last_is_wild(*batch):
        count.append(1)
        return step3_batch(*batch) * (1e38 if len(count) == 6 else 1)

    with pytest.raises(NonFiniteLoss, match="not finite any more"):
        unlearn(size=2, gamma=1.0, unlearn_lr=1e5, step3=last_is_wild, method=method)
    assert len(count) == 6


def test_theta_o2_may_be_ruined():
    """D9: theta_o2 is thrown away, so what it is does not matter to step 4."""
    state = make_state()
    with torch.no_grad():
        state.expanded.layers()["conv2"].to_extra.fill_(math.nan)
    assert_same_state(discard(state), small_net(0))


# --- Ablations --------------------------------------------------------------------------------------------------------


@few
@given(seeds, st.integers(1, 3), st.sampled_from([0.0, 0.5, 2.0]), st.sampled_from([0.5, 1.0, 2.0]), st.booleans(),
       st.sampled_from(["auto", "running", "batch"]), st.floats(1e-3, 5.0))
def test_without_3_1_and_3_2_it_is_npo(seed, epochs, ratio, beta, augment, norm, choice):
    """A13, A36: without 3.1 and 3.2 REM is NPO, bitwise, whatever theta_o2's width and the number of epochs (Table 2's
    caption); neither knows `reach` or `disbelieved`, whose REM+ is NPO then, too."""
    data, outs, on = make_data(seed, pad=int(augment), flip=augment), [], dict(reach=choice, disbelieved=choice)
    config = tiny(gamma=0.2, unlearn_epochs=epochs, ratio=ratio, beta=beta, max_passes=9, forget_norm=norm)
    for method, changes in ((baselines.rem_by_config, dict(**on, step31=False, step32=False)), (baselines.npo, {}),
                            (baselines.rem_plus_by_config, dict(**on, step31=False, step32=False)),
                            (baselines.npo, on)):
        with acc_forget(0.9, 0.8, 0.5, 0.0):
            outs.append(method(small_net(seed), data, draw_forget(seed, 12, 5), replace(config, **changes), gen(seed)))
    for out in outs[1:]:
        assert_same_state(outs[0], out)
    assert not torch.equal(outs[0].conv1.weight, small_net(seed).conv1.weight)


@pytest.mark.parametrize("changes, step3", [
    ({}, step3_batch),
    (dict(step32=False), partial(step3_batch, removes=False)),
    (dict(redirect="ce"), baselines.step3_by_ce),
    (dict(redirect="ce", step32=False), partial(baselines.step3_by_ce, removes=False)),
])
@pytest.mark.parametrize("by_config, method", [(baselines.rem_by_config, rem),
                                               (baselines.rem_plus_by_config, rem_plus)])
def test_settings_choose_the_loss(changes, step3, by_config, method):
    """A13, L14: `step32` and `redirect` choose the loss of step 3, of REM and of REM+."""
    data, forget = make_data(0, n=40), draw_forget(0, 40, 6)
    config = tiny(stop="repaired", gamma=1.0, **changes)
    found = by_config(small_net(0), data, forget, config, gen(0))
    assert_same_state(found, method(small_net(0), data, forget, config, gen(0), step3=step3))
    assert not torch.equal(found.conv1.weight, small_net(0).conv1.weight)


# --- On ETD, and with an oracle ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Acc")
@pytest.mark.parametrize("changes", [dict(seed=4), dict(p_mem=0.2), dict(seed=4, p_mem=0.2)])
def test_rem_on_etd_refuses_other_masks(changes):
    """A28: REM on ETD under another seed or p_mem than training's would give D_r other masks: a ValueError says both;
    under the same it runs, and so does a copy of the network."""
    data = make_data(0)
    expanded = train_etd(expand(small_net(0), IMAGE), data, tiny(epochs=1, p_mem=0.5, seed=3), gen(0), fit)
    given = small(seed=3, p_mem=0.5, gamma=1.0)
    wrong = replace(given, **changes)
    text = f"seed and p_mem are {wrong.seed}, {wrong.p_mem}, and ETD training had 3, 0.5"
    with pytest.raises(ValueError, match=text):
        rem(copy.deepcopy(expanded), data, torch.tensor([1]), wrong, gen(0))
    rem(copy.deepcopy(expanded), data, torch.tensor([1]), given, gen(0))
    rem(expand(small_net(0), IMAGE), data, torch.tensor([1]), wrong, gen(0))  # nobody has trained it under masks
