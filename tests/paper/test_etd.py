"""Tests of example-tied dropout: training with masks, inference without, and what it shares with REM (E1-E6).

Each `prop_*` takes the module under test first, so that test_mutants.py can run it on a changed one.
"""

import copy
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import etd
import train
import expand
import metrics
import oracles
import rem
from experiment.data import batches
from helpers import assert_close, assert_same_state, gen, make_data, randomise, rows, run, seeds, small_net, tiny
from metrics import predict
from models import build
from test_drop import draw, theta_o2
from test_masks import masked_calls, outputs_of, prop_m3_fit, untouched_rng

IMAGE = torch.zeros(2, 1, 8, 8)


def tensors(expanded):
    return {name: t.detach().clone() for name, t in expanded.state_dict().items()}


@given(seed=seeds)
def test_memorisation_is_masked_by_index(seed):
    """E1: in training theta_o1's channels pass for all, theta_o2's by the example's row: the naive loop agrees."""
    net, data = small_net(seed, dtype=torch.float64), make_data(seed, n=6)
    expanded = randomise(expand.expand(net, IMAGE), seed).eval()
    table = etd.mask_table(6, expanded.width, 0.5, seed)
    weights = {key.removeprefix("net."): value.numpy() for key, value in expanded.state_dict().items()}
    for index, x, _ in batches(data, size=4, generator=gen(seed), dtype=torch.float64):
        x = x[:, :, :3, :3]
        expected = [oracles.masked_small_net(image[None].numpy(), table[i][None].numpy(), weights)[0]
                    for i, image in zip(index.tolist(), x, strict=True)]
        assert_close(run(expanded, x, etd.mask_rows(table, index)), torch.from_numpy(np.stack(expected)), 1e-11)


def test_training_uses_every_examples_row():
    """E1, M3: train_etd runs every example under its own row of mask_table(config.seed), in every epoch."""
    prop_m3_fit(train, 0)
    data, config, seen = make_data(1, n=9), tiny(epochs=2, p_mem=0.5, seed=3), []
    with pytest.MonkeyPatch.context() as patch:
        fit = train.fit

        def watched(model, *args, **kwargs):
            with masked_calls(model, data) as calls:
                fit(model, *args, **kwargs)
            seen.extend(calls)

        patch.setattr(train, "fit", watched)
        expanded = train.train_etd(small_net(1), data, config, gen(1), shared=torch.tensor([2, 5]))
    assert len(seen) == 18
    for index, row in seen:
        expected = oracles.mask_row(3, None if index in (2, 5) else index, expanded.width, 0.5)
        assert row.tolist() == expected


@given(seed=seeds)
def test_inference_knows_no_index(seed):
    """E2: base-only predictions are the same wherever in the data set an example stands, and whatever the masks
    were."""
    data, expanded = make_data(seed, n=8), expand.expand(small_net(seed), IMAGE)
    order = torch.randperm(8, generator=gen(seed))
    moved = make_data(seed, n=8)
    moved = type(moved)(moved.images[order], moved.labels[order], moved.classes, moved.mean, moved.std)
    assert torch.equal(predict(expanded, moved), predict(expanded, data)[order])
    x = draw(seed, 3, 1, 8, 8)
    before = run(expanded.eval(), x)
    run(expanded, x, rows(seed, expanded, 3))
    assert torch.equal(run(expanded, x), before)


@given(seed=seeds, p=st.sampled_from([0.0, 0.2, 1.0]))
def test_nothing_is_rescaled(seed, p):
    """E3: masks are 0 or 1 with no 1 / p factor, and drop leaves theta_o1 as trained, bit for bit."""
    data, config = make_data(seed, n=8), tiny(epochs=1, p_mem=p, seed=seed % 1000)
    expanded = train.train_etd(small_net(seed), data, config, gen(seed))
    dropped = etd.drop(expanded)
    for name, layer in expanded.layers().items():
        assert_same_state(dict(dropped.named_modules())[name], layer.base)
    on = torch.ones(2, expanded.width, dtype=torch.bool)
    with outputs_of(expanded) as found:  # conv1 feeds norm1, which masks: all bits on is the plain batch_norm
        run(expanded.eval(), draw(seed, 2, 1, 8, 8), on)
        norm, x = expanded.layers()["norm1"], found["conv1"]
        weight, bias = (torch.cat([getattr(norm.base, k), getattr(norm, f"extra_{k}")]).detach()
                        for k in ("weight", "bias"))
        assert torch.equal(found["norm1"], F.batch_norm(x, norm.running_mean, norm.running_var, weight, bias))


def prop_e4(etd, seed, train_mode=True):
    """Masked and base-only passes write neither into their inputs nor into a global random state, and touch no
    weight."""
    expanded = expand.expand(small_net(seed), IMAGE).train(train_mode)
    x = torch.randn(4, 1, 8, 8, generator=gen(seed))
    mask = rows(seed, expanded, 4)
    weights = {name: p.detach().clone() for name, p in expanded.named_parameters()}
    copies = x.clone(), mask.clone()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed + 1)
    with untouched_rng():
        expanded(x, mask)
        expanded(x)
    assert torch.equal(x, copies[0]) and torch.equal(mask, copies[1])
    assert all(torch.equal(p, weights[name]) for name, p in expanded.named_parameters())
    assert (x._version, mask._version) == (0, 0)


@given(seed=seeds, train_mode=st.booleans())
def test_forward_writes_nothing(seed, train_mode):
    """E4: forward never writes into its input and never touches a global random state."""
    prop_e4(etd, seed, train_mode)


@given(seed=seeds)
def test_training_leaves_inputs_and_global_states(seed):
    """E4, M6: train_etd leaves the model, the data and every global random state."""
    net, data = small_net(seed), make_data(seed, n=8)
    before, images, labels = copy.deepcopy(net), data.images.clone(), data.labels.clone()
    with untouched_rng():
        train.train_etd(net, data, tiny(epochs=1), gen(seed))
    assert_same_state(net, before)
    assert torch.equal(data.images, images) and torch.equal(data.labels, labels)


@given(seed=seeds, p=st.sampled_from([0.0, 0.2, 1.0]))
def test_no_memorisation_partition(seed, p):
    """E5: at 100 % capacity there is no theta_o2: the masked pass is the plain network's, and ETD is plain training."""
    data, config = make_data(seed, n=8), tiny(epochs=2, ratio=None, capacity=1.0, p_mem=p)
    expanded = train.train_etd(small_net(seed, norm=False), data, config, gen(seed))
    assert expanded.width == 0
    plain = copy.deepcopy(small_net(seed, norm=False))
    train.fit(plain, data, None, config, gen(seed))
    assert_same_state(etd.drop(expanded), plain)


@pytest.mark.parametrize("width, ratio, extra", [(3, 0.5, 2), (1, 0.5, 0), (5, 0.5, 2), (7, 0.5, 4),
                                                 (3, 1 / 0.9 - 1, 0), (9, 1 / 0.9 - 1, 1),
                                                 (3, 3.0, 9)])
def test_odd_widths_round_half_to_even(width, ratio, extra):
    """E5, X3: a layer of width w gets round(ratio w) extra channels, halves to the even number."""
    assert expand.expand(small_net(0, width=width), IMAGE, ratio).width == extra


@given(seed=seeds)
def test_etd_and_rem_share_their_masks(seed):
    """E6: REM on ETD keeps ETD's rows for D_r and gives D_f a new one, of the same table."""
    data, config = make_data(seed, n=9), tiny(epochs=1, p_mem=0.5, seed=seed % 1000)
    expanded = train.train_etd(small_net(seed), data, config, gen(seed))
    forget = torch.randperm(9, generator=gen(seed))[:3]
    state = rem.start(expanded, data, forget, config, gen(seed))
    assert_same_state(state.expanded, expanded)
    for i in range(9):
        expected = oracles.mask_row(config.seed, None if i in forget.tolist() else i, expanded.width, 0.5)
        assert state.masks[i].tolist() == expected
    plain = rem.start(etd.drop(expanded), data, forget, config, gen(seed))
    assert torch.equal(plain.masks[:], state.masks[:])


# --- Refreshed statistics ---------------------------------------------------------------------------------------------


@given(seed=seeds, n=st.integers(5, 12))
def test_refreshed_statistics_are_the_data_sets(seed, n):
    """E1, D7: after ETD the first norm's base statistics are those of the training images, whatever they were
    before."""
    data, net = make_data(seed, n=n), small_net(seed)
    expanded = expand.expand(net, IMAGE)
    extra = tensors(expanded)
    train.refresh_batchnorm(expanded, data, size=n)
    norm = expanded.layers()["norm1"].base
    x = run(net.conv1, next(batches(data, size=n))[1])
    assert_close(norm.running_mean, x.mean(dim=(0, 2, 3)), 1e-5)  # float32
    assert_close(norm.running_var, x.var(dim=(0, 2, 3)), 1e-5)
    assert norm.num_batches_tracked == 1 and norm.momentum == 0.1
    after = expanded.state_dict()
    for name, value in extra.items():
        if ".base.running" not in name and ".base.num_batches" not in name:
            assert torch.equal(value, after[name]), name


def test_refresh_reads_no_label_and_keeps_modes():
    """E1, F11: the refresh gives the same for any labels and puts modes and momenta back, mixed ones too."""
    data, results = make_data(0, n=9), []
    for labels in (data.labels, torch.zeros_like(data.labels)):
        expanded = expand.expand(small_net(0), IMAGE)
        expanded.net.act.eval(), expanded.layers()["norm2"].eval()
        expanded.layers()["norm2"].base.momentum = 0.3
        modes = [m.training for m in expanded.modules()]
        train.refresh_batchnorm(expanded, type(data)(data.images, labels, 4, data.mean, data.std), size=4)
        assert [m.training for m in expanded.modules()] == modes and expanded.layers()["norm2"].base.momentum == 0.3
        results.append(expanded)
    assert_same_state(*results)


def test_train_etd_refreshes_the_statistics():
    """E1, D7: what train_etd returns is refreshed: base statistics are those of a base-only pass over its data."""
    data, config = make_data(0, n=8), tiny(epochs=1)
    expanded = train.train_etd(small_net(0), data, config, gen(0))
    twin = copy.deepcopy(expanded)
    train.refresh_batchnorm(twin, data, config.batch)
    assert_same_state(twin, expanded)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_train_etd_keeps_other_dtypes(dtype):
    """X6, E1: ETD trains networks of any floating dtype to the end."""
    expanded = train.train_etd(small_net(0, dtype=dtype), make_data(0), tiny(epochs=1), gen(0))
    assert {p.dtype for p in expanded.parameters()} == {dtype}


def test_a_refresh_that_fails_puts_momenta_back():
    """E1, F11: an exception in the middle of the refresh leaves no norm with another momentum."""
    expanded = expand.expand(small_net(0), IMAGE)
    expanded.net.head.register_forward_pre_hook(lambda m, args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.refresh_batchnorm(expanded, make_data(0))
    assert expanded.layers()["norm1"].base.momentum == 0.1


class Idle(torch.nn.Module):
    """A network with a norm that never runs and one that runs twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.idle, self.twice = torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.conv(x)
        return self.twice(x) + self.twice(2 * x)


def test_a_refresh_of_norms_that_run_never_or_twice():
    """E1, D7: a norm that does not run keeps its statistics; one that runs twice has the means over all that it saw."""
    net, data = Idle(), make_data(0, n=6)
    net.idle.running_mean.fill_(3), net.idle.running_var.fill_(2), net.idle.num_batches_tracked.fill_(77)
    train.refresh_batchnorm(net, data, size=4)
    assert net.idle.running_mean.tolist() == [3] * 3 and net.idle.running_var.tolist() == [2] * 3
    assert net.idle.num_batches_tracked == 77 and net.idle.training and net.idle.momentum == 0.1
    x = run(net.conv, next(batches(data, size=6))[1])
    assert_close(net.twice.running_mean, 1.5 * x.mean(dim=(0, 2, 3)), 1e-5)  # float32
    assert net.twice.num_batches_tracked == 4


def test_etd_of_the_papers_network():
    """E1, E6: ResNet-9 at 50 % trains with masks and drops back to its 50 % self, moved."""
    net = build("resnet9", 0.1, channels=1, image_size=8, seed=0)
    expanded = train.train_etd(net, make_data(0), tiny(epochs=1), gen(0))
    dropped = etd.drop(expanded)
    assert [(k, v.shape) for k, v in dropped.state_dict().items()] == [(k, v.shape) for k,
        v in net.state_dict().items()]
    assert not torch.equal(dropped.head.weight, net.head.weight)
    assert all(t.isfinite().all() for t in theta_o2(expanded).values())


def test_what_is_there_before_theta_o2_grows():
    """E5: a network that is not expanded yet has masks of no bit; mask tables are told apart as objects, not by their
    bits, so they can be compared and be keys."""
    assert etd.Expanded(small_net(0)).width == 0 == etd.ExpandedBatchNorm(torch.nn.BatchNorm2d(3)).extra_out
    one, same = (etd.mask_table(6, 4, 0.2, seed=0) for _ in range(2))
    assert one == one and one != same and len({one, same}) == 2
    assert torch.equal(one.packed, same.packed)


def test_default_batches_of_passes_without_a_gradient(monkeypatch):
    """E1: a refresh runs in batches of 512, the paper's, a prediction in 1,024, unless told otherwise."""
    asked, data, ours, theirs = [], make_data(0), type(make_data(0)).batches, metrics.batches

    def noting(how):
        return lambda data, index=None, size=512, **more: asked.append(size) or how(data, index, size, **more)

    for size in ({}, {"size": 7}):
        with monkeypatch.context() as m:
            m.setattr(type(data), "batches", noting(ours))
            train.refresh_batchnorm(small_net(0), data, **size)
        with monkeypatch.context() as m:
            m.setattr(metrics, "batches", noting(theirs))
            predict(small_net(0), data, **size)
    assert asked == [512, 1024, 7, 7]
