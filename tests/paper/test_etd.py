"""Example-tied dropout: the masks, the layers under a mask, and ETD training (Sec. 2; Sec. 5 for the masks of REM).

In the paper's order:
- Sec. 2, "when it comes to the memorization partition, each example only passes through its dedicated path, based on an
  example-tied dropout mask": M1, M13, M18; "randomly determined ahead of training and then fixed": M2 - M6, M10, M15; a
  table of bits, not of activations: M16.
- Sec. 5 and line 3.1, "all examples in D_f are assigned the same (randomly-determined) mask": M7, M8, M9.
- Sec. 2, "the generalization neurons are never dropped out", and Sec. 5, "all examples pass through all of theta_o1 but
  each example will only pass through its assigned path in theta_o2": M11, M12, M17, E4.
- Sec. 2, training: E1, E5; "at inference time, the memorization neurons are dropped out": E2.
The numbers of ETD training, of ETD (IDEAL), of drop and of REM on ETD, which has "ETD's existing masks for the examples
in D_r (assigning a new one for examples in D_f)", are the twins' in test_rivals_twins.py: E1, E3, E6.
"""

import contextlib
import math
import random
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import baselines
import etd
import expand
import train
import twins
from architectures import IMAGE, draw
from helpers import assert_same_state, gen, make_data, rows, run, seeds, small_net, tiny
from models import build

sizes = st.integers(0, 17)
widths = st.integers(0, 9)
rates = st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0])
few = settings(max_examples=max(2, settings().max_examples * 2 // 5))  # a training in each example


@contextlib.contextmanager
def untouched_rng():
    """Whatever runs inside leaves the global states of torch, numpy and random as they are."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    yield
    after = np.random.get_state()
    assert torch.equal(before[0], torch.get_rng_state()), "torch's global generator moved"
    assert np.array_equal(before[1][1], after[1]) and before[1][2:] == after[2:], "numpy's global generator moved"
    assert before[2] == random.getstate(), "Python's global generator moved"


def subset(seed, n, share=0.5):
    """Distinct indices below n, about `share` of them, shuffled."""
    return torch.randperm(n, generator=gen(seed))[: round(share * n)]


@contextlib.contextmanager
def outputs_of(expanded):
    """Collect the output of each expanded layer, by name, of the last pass."""
    found, hooks = {}, []
    for name, layer in expanded.layers().items():
        def note(module, args, out, name=name):
            found[name] = out.detach().clone()
        hooks.append(layer.register_forward_hook(note))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def switched(x, row, base, axis):
    """One example's activations with every extra channel switched by its bit, entry by entry."""
    out = x.copy()
    for where in np.ndindex(*x.shape):
        channel = where[axis]
        if channel >= base and not row[channel - base]:
            out[where] = 0.0
    return out


def trained(net, data, config, generator, **more):
    """ETD training of a network, theta_o2 made as the experiments make it."""
    return etd.train_etd(baselines.with_theta_o2(net, data, config), data, config, generator, train.fit, **more)


# --- Sec. 2: each example has a mask, drawn once ----------------------------------------------------------------------

@given(n=sizes, width=widths, p=rates, seed=seeds, share=st.sampled_from([None, 0.0, 0.5, 1.0]))
def test_rows_equal_an_independent_derivation(n, width, p, seed, share):
    """M1, M3, M4, M7, M8, M9, M10, M15, M16: row i is the (i + 1)-th stretch of one stream of uniform numbers below p,
    whatever N is, and the examples that share a row have the first, which is no one's own; no one shares where none are
    named. Rows are bool, on the CPU, a bit a channel in storage and one row more."""
    shared = None if share is None else subset(seed, n, share)
    table, together = etd.mask_table(n, width, p, seed, shared), [] if shared is None else shared.tolist()
    for i in range(n):
        assert table[i].tolist() == twins.mask_row(seed, None if i in together else i, width, p)
    assert len(table.packed) == n and table[:].shape == (n, width) and table[:].dtype == torch.bool
    assert table.packed.device.type == "cpu"
    assert table.packed.untyped_storage().nbytes() == (n + 1) * math.ceil(width / 8)


@pytest.mark.parametrize("n, width, p", [(3, 3, -0.1), (3, 3, 1.1), (3, 3, math.nan), (-1, 3, 0.2), (3, -1, 0.2)])
def test_bad_sizes_are_refused(n, width, p):
    """M1, M15: sizes below 0 and probabilities outside [0, 1] raise a ValueError that says them."""
    with pytest.raises(ValueError, match=f"no mask table of {n} rows and {width} bits at p_mem {p}"):
        etd.mask_table(n, width, p, 0)


@pytest.mark.parametrize("index, named", [(torch.tensor([0, -1]), "-1"), (torch.tensor([2, 7, 9]), "7"),
                                          (torch.tensor([1.0]), "float32")])
def test_bad_indices_are_refused(index, named):
    """M18: a negative, too large or wrongly typed index raises a ValueError that names it, and never wraps."""
    with pytest.raises(ValueError, match=named):
        etd.mask_rows(etd.mask_table(5, 3, 0.2, 0), index)
    with pytest.raises(ValueError, match=named):
        etd.mask_table(5, 3, 0.2, 0, shared=index)


@pytest.mark.parametrize("p", [0.05, 0.2, 0.5, 0.9])
def test_active_share_of_a_bernoulli_table(p):
    """M2: bits are on with probability p_mem, in the whole table and in every column, and rows differ in number."""
    n, width, sd = 2000, 50, math.sqrt(p * (1 - p))
    table = etd.mask_table(n, width, p, seed=7)[:].double()
    # 5 sd: error rate 6e-7, and the seed is fixed
    assert abs(table.sum() - n * width * p) < 5 * sd * math.sqrt(n * width)
    assert (table.sum(0) - n * p).abs().max() < 5 * sd * math.sqrt(n)  # 50 columns: 3e-5
    assert len(table.sum(1).unique()) > 1  # Bernoulli, not an exact number a row


def test_p_mem_0_is_off_whatever_is_drawn():
    """M15: a bit is on where its draw is below p, so p = 0 is all zeros even where the draw is exactly 0."""
    # torch.rand gives an exact 0 once in 2^24 draws, so it is put in place of the draws
    with mock.patch.object(torch, "rand", lambda shape, **more: torch.zeros(shape)):
        assert not etd.mask_table(3, 5, 0.0, 0)[:].any() and etd.mask_table(3, 5, 0.2, 0)[:].all()


def test_a_large_table_is_one_stream():
    """M3, M4, M16: a table that is drawn in parts, more than a million numbers, and one of any smaller N have the rows
    of one draw of all; so have those beyond the sizes at which torch changes its ways of drawing."""
    rows = torch.rand((2201, 1000), generator=gen(4)) < 0.3
    for n in (0, 1, 15, 16, 17, 1000, 2200):
        assert torch.equal(etd.mask_table(n, 1000, 0.3, seed=4)[:], rows[1 : n + 1])


@given(n=sizes, width=widths, seed=seeds, p=rates)
def test_rows_are_the_same_at_every_look(n, width, seed, p):
    """M3, M13: the same row in every order and batch, and drawn again after other tables, under another default
    dtype."""
    table, order = etd.mask_table(n, width, p, seed), torch.randperm(n, generator=gen(seed))
    for i, row in zip(order.tolist(), etd.mask_rows(table, order), strict=True):
        assert torch.equal(row, table[i]) and torch.equal(row, etd.mask_rows(table, torch.tensor([i]))[0])
    etd.mask_table(n + 3, width, p, seed ^ 1)
    torch.set_default_dtype(torch.float64)
    try:
        again = etd.mask_table(n, width, p, seed)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(table[:], again[:])


@given(n=st.integers(1, 17), width=widths, seed=seeds)
def test_moving_keeps_rows(n, width, seed):
    """M5: rows are the same after .to(device) and .to(dtype), and drawn on the CPU whatever the default device is."""
    table, index = etd.mask_table(n, width, 0.5, seed), subset(seed, n)
    moved = table.to("meta")
    assert moved.packed.is_meta and moved[:].shape == (n, width) and not table.packed.is_meta
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int64):
        assert torch.equal(table.to("cpu")[index].to(dtype).bool(), etd.mask_rows(table, index))
    with torch.device("meta"):
        elsewhere = etd.mask_table(n, width, 0.5, seed)
    assert elsewhere.packed.device.type == "cpu" and torch.equal(elsewhere[:], table[:])


@pytest.mark.gpu
def test_rows_are_the_same_on_cuda():
    """M5: a table moved to the GPU gives the rows of the CPU, for indices that stay on the CPU."""
    table, index = etd.mask_table(50, 33, 0.2, seed=0, shared=torch.tensor([3, 4])), torch.tensor([49, 0, 3, 3, 7])
    rows = etd.mask_rows(table.to("cuda"), index)
    assert rows.is_cuda and torch.equal(rows.cpu(), etd.mask_rows(table, index))
    with torch.device("cuda"):
        assert torch.equal(etd.mask_table(50, 33, 0.2, 0, torch.tensor([3, 4], device="cpu"))[:], table[:])
        assert torch.equal(etd.mask_table(50, 33, 0.2, 0, torch.tensor([3, 4]))[:], table[:])  # indices there, too


@given(seed=seeds, train_mode=st.booleans())
def test_masks_leave_global_states_and_inputs(seed, train_mode):
    """M6, E4: drawing, looking up, applying and dropping masks leaves torch's, numpy's and Python's generators; a pass
    writes into none of its inputs and touches no weight."""
    net, x = small_net(seed), draw(seed, 3, 1, 8, 8)
    with untouched_rng():
        expanded = expand.expand(net, IMAGE).train(train_mode)
        table = etd.mask_table(9, expanded.width, 0.5, seed, torch.tensor([2]))
        mask = etd.mask_rows(table, torch.tensor([1, 2, 8]))
        weights = {name: p.detach().clone() for name, p in expanded.named_parameters()}
        copies = x.clone(), mask.clone()
        expanded(x, mask)
        expanded(x)
        etd.drop(expanded)
    assert torch.equal(x, copies[0]) and torch.equal(mask, copies[1]) and (x._version, mask._version) == (0, 0)
    assert all(torch.equal(p, weights[name]) for name, p in expanded.named_parameters())


# --- Sec. 2 and 5: theta_o1 is never masked, theta_o2 by the example's mask -------------------------------------------

def test_mask_of_tokens_acts_on_features():
    """M12, M17: in the ViT the mask acts on hidden units, the same for every token, as the loop does."""
    net = build("vit", channels=1, image_size=8, patch=4, dim=8, depth=2, heads=2, head_dim=4, hidden=5,
                seed=0).double()
    expanded = expand.expand(net, IMAGE, ratio=0.6)
    x = draw(0, 3, 1, 8, 8, dtype=torch.float64)
    mask = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 1]], dtype=torch.bool)
    with outputs_of(expanded) as out:
        expanded(x, torch.ones_like(mask))
        on = out["ff.0.1"]
        expanded(x, mask)
        some = out["ff.0.1"]
    assert on.shape == (3, 5, 5 + 3)  # 4 patches and the class token
    for tokens, masked, row in zip(on, some, mask, strict=True):
        assert np.array_equal(masked.numpy(), switched(tokens.numpy(), row.numpy(), 5, axis=1))


@given(seed=seeds, share=st.sampled_from([0.0, 0.5, 1.0]))
def test_layers_use_a_prefix_of_the_row(seed, share):
    """M17: a layer with c extra channels uses the first c bits, so layers of a residual sum agree."""
    g = gen(seed)
    a, b = torch.randint(1, 6, (2,), generator=g).tolist()
    net = nn.Sequential(nn.Conv2d(1, a, 1), nn.Conv2d(a, b, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(b, 2))
    expanded = expand.expand(net, torch.zeros(2, 1, 4, 4))
    mask = torch.rand(3, expanded.width, generator=g) < share
    assert expanded.width == max(a, b)
    with outputs_of(expanded) as out:
        expanded(torch.randn(3, 1, 4, 4, generator=g), mask)
    for name, width in (("0", a), ("1", b)):
        extra = out[name][:, width:]
        assert extra.shape[1] == width
        assert torch.equal((extra != 0).flatten(2).any(2), mask[:, :width])


@given(seed=seeds, batch=st.integers(1, 4))
def test_wrong_mask_shapes_are_refused(seed, batch):
    """M1: a mask that is not (B, width) raises a ValueError that says what it must be, and never broadcasts."""
    expanded, x = expand.expand(small_net(seed), IMAGE), draw(seed, batch, 1, 8, 8)
    for shape in [(batch, 2), (batch, 4), (batch + 1, 3), (3,), (batch, 3, 1), (batch, 1), (0, 3)]:
        with pytest.raises(ValueError, match=rf"the mask has shape .*; it must be \({batch}, 3\)"):
            expanded(x, torch.ones(shape, dtype=torch.bool))


# --- Sec. 2: training -------------------------------------------------------------------------------------------------

@few
@given(seed=seeds, p=st.sampled_from([0.0, 0.2, 1.0]))
def test_no_memorisation_partition(seed, p):
    """E5: at 100 % capacity there is no theta_o2: the masked pass is the plain network's, and ETD is plain training."""
    data, config = make_data(seed, n=8), tiny(epochs=2, ratio=None, capacity=1.0, p_mem=p)
    expanded = trained(small_net(seed, norm=False), data, config, gen(seed))
    assert expanded.width == 0
    plain = small_net(seed, norm=False)
    train.fit(plain, data, None, config, gen(seed))
    assert_same_state(etd.drop(expanded), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_etd_of_the_papers_network(dtype):
    """E1, E6, X6: ResNet-9 of any floating dtype trains with masks, tells its log of each epoch, and drops back to its
    own shapes, moved."""
    net, told = build("resnet9", 0.1, channels=1, image_size=8, seed=0).to(dtype), []
    expanded = trained(net, make_data(0), tiny(epochs=2), gen(0),
                       log=lambda epoch, epochs, model, loss: told.append((epoch, epochs, math.isfinite(loss))))
    assert told == [(1, 2, True), (2, 2, True)]
    assert {p.dtype for p in expanded.parameters()} == {dtype}
    assert all(t.isfinite().all() for t in expanded.state_dict().values())
    dropped = etd.drop(expanded)
    assert [(k, v.shape) for k, v in dropped.state_dict().items()] == [
        (k, v.shape) for k, v in net.state_dict().items()]
    assert not torch.equal(dropped.head.weight, net.head.weight)


def test_precision():
    """L16: ETD trains in the precision of the settings; float64 stays float64 under bf16."""
    for dtype, alike in ((torch.float32, False), (torch.float64, True)):
        nets = [trained(small_net(0, dtype=dtype), make_data(0), tiny(precision=precision), gen(0))
                for precision in ("float32", "bf16")]
        assert torch.equal(nets[0].net.head.weight, nets[1].net.head.weight) == alike


# --- Sec. 2: "at inference time, the memorization neurons are dropped out" --------------------------------------------

def test_an_exception_in_a_masked_pass_leaves_no_mask_behind():
    """E2, F10: after a masked pass, also one that failed, a base-only pass is still the original's."""
    net = small_net(0)
    expanded, x = expand.expand(net, IMAGE).eval(), draw(0, 2, 1, 8, 8)
    run(expanded, x, rows(0, expanded, 2))
    assert torch.equal(run(expanded, x), run(net.eval(), x))
    hook = expanded.net.head.register_forward_pre_hook(lambda m, args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        expanded(x, rows(0, expanded, 2))
    hook.remove()
    assert torch.equal(run(expanded, x), run(net.eval(), x))
