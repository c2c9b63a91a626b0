"""Tests of the masks: the table, the look-up by dataset index, and what a mask does to activations (M1-M18).

Each `prop_*` takes the module under test first, so that test_mutants.py can run it on a changed one.
"""

import contextlib
import math
import random
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import etd
import expand
import oracles
import rem
import train
from experiment.data import batches
from helpers import assert_close, gen, make_data, seeds, small_net, tiny
from models import build

sizes = st.integers(0, 17)
widths = st.integers(0, 9)
rates = st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0])


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
    order = torch.randperm(n, generator=gen(seed))
    return order[: round(share * n)]


@contextlib.contextmanager
def masked_calls(expanded, data):
    """Collect (dataset index, mask row) of every example in every masked call of `expanded`, by recognising its
    image."""
    images = next(batches(data, size=len(data), dtype=next(expanded.parameters()).dtype))[1]
    assert len({bytes(x.contiguous().numpy()) for x in images}) == len(images), "the images must differ"
    seen = []

    def watch(module, args, kwargs):
        x, mask = args[0], args[1] if len(args) > 1 else kwargs.get("mask")
        if mask is not None:
            for image, row in zip(x, mask, strict=True):
                (index,) = [i for i, known in enumerate(images) if torch.equal(image, known)]
                seen.append((index, row.clone()))

    hook = expanded.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


# --- The table --------------------------------------------------------------------------------------------------------


@given(n=sizes, width=widths, p=rates, seed=seeds, share=st.sampled_from([0.0, 0.5, 1.0]))
def test_shape_dtype_and_storage(n, width, p, seed, share):
    """M1, M16: bool rows of shape (n, width), on the CPU, a bit a channel in storage and one row more."""
    table = etd.mask_table(n, width, p, seed, subset(seed, n, share))
    assert len(table.packed) == n and table[:].shape == (n, width) and table[:].dtype == torch.bool
    assert table.packed.device.type == "cpu"
    assert table.packed.untyped_storage().nbytes() == (n + 1) * math.ceil(width / 8)


def test_a_table_is_drawn_in_parts():
    """M3, M16: a table of many draws is the one stream's, and no more than DRAWS numbers are in memory at a time."""
    real, sizes = torch.rand, []
    with mock.patch.object(torch, "rand", lambda shape, **more: sizes.append(math.prod(shape)) or real(shape, **more)):
        with mock.patch.object(etd, "DRAWS", 1000):
            table = etd.mask_table(301, 19, 0.3, seed=4, shared=torch.tensor([2, 300]))
    assert len(sizes) == math.ceil(302 / 52) and max(sizes) == 52 * 19  # 52 rows of 19 numbers are below 1000
    rows = torch.rand((302, 19), generator=gen(4)) < 0.3
    rows[[3, 301]] = rows[0].clone()
    assert torch.equal(table[:], rows[1:])
    sizes.clear()
    with mock.patch.object(torch, "rand", lambda shape, **more: sizes.append(math.prod(shape)) or real(shape, **more)):
        etd.mask_table(2200, 1000, 0.3, seed=4)
    assert 2 < len(sizes) and max(sizes) < 2**21  # 8 MB in float32, however large the table


@given(n=st.integers(1, 17), width=widths, seed=seeds)
def test_rows_by_whatever_indexes_a_tensor(n, width, seed):
    """M13: an index, several, a slice or a mask give what they give of a plain tensor of the rows."""
    table, order = etd.mask_table(n, width, 0.5, seed), torch.randperm(n, generator=gen(seed))
    plain = torch.stack([table[i] for i in range(n)])
    for rows in (n - 1, -1, torch.tensor(n - 1), order, order.view(1, -1), slice(None, None, 2), order > 2, [0, 0]):
        assert torch.equal(table[rows], plain[rows])


@given(n=sizes, width=widths, p=rates, seed=seeds)
def test_rows_equal_an_independent_derivation(n, width, p, seed):
    """M3, M9: row i is the (i + 1)-th stretch of one stream of uniform numbers, the shared row the first."""
    table = etd.mask_table(n, width, p, seed)
    for i, row in enumerate(table[:].tolist()):
        assert row == oracles.mask_row(seed, i, width, p)
    shared = etd.mask_table(n, width, p, seed, torch.arange(n))
    assert all(row == oracles.mask_row(seed, None, width, p) for row in shared[:].tolist())


@pytest.mark.parametrize("p", [0.05, 0.2, 0.5, 0.9])
def test_active_share_of_a_bernoulli_table(p):
    """M2: bits are on with probability p_mem, in the whole table and in every column."""
    n, width, sd = 2000, 50, math.sqrt(p * (1 - p))
    table = etd.mask_table(n, width, p, seed=7)[:].double()
    # 5 sd: error rate 6e-7, and the seed is fixed
    assert abs(table.sum() - n * width * p) < 5 * sd * math.sqrt(n * width)
    assert (table.sum(0) - n * p).abs().max() < 5 * sd * math.sqrt(n)  # 50 columns: 3e-5
    assert len({int(s) for s in table.sum(1)}) > 1  # Bernoulli, not an exact number a row


def prop_m3(etd, seed, n, width, p=0.5):
    """Row i depends on (seed, i) alone: not on how often, in what order or among which others it is asked for."""
    table = etd.mask_table(n, width, p, seed)
    etd.mask_table(n + 3, width, p, seed + 1)
    torch.rand(3, generator=gen(seed))
    assert torch.equal(table[:], etd.mask_table(n, width, p, seed)[:])
    order = torch.randperm(n, generator=gen(seed))
    rows = etd.mask_rows(table, order)
    for i, row in zip(order.tolist(), rows, strict=True):
        assert torch.equal(row, table[i]) and torch.equal(row, etd.mask_rows(table, torch.tensor([i]))[0])


@given(n=sizes, width=widths, seed=st.integers(0, 2**31 - 2), p=rates)
def test_row_depends_on_seed_and_index_alone(n, width, seed, p):
    """M3: the same row at every call, order, batch and shuffling."""
    prop_m3(etd, seed, n, width, p)


def test_default_dtype_changes_no_row():
    """M3: a global default dtype of float64 gives the very same masks."""
    table = etd.mask_table(6, 5, 0.5, seed=3)
    torch.set_default_dtype(torch.float64)
    try:
        again = etd.mask_table(6, 5, 0.5, seed=3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(table[:], again[:])


def test_default_device_changes_no_row():
    """M5: the table is drawn on the CPU whatever torch's default device is."""
    with torch.device("meta"):
        table = etd.mask_table(6, 5, 0.5, seed=3)
    assert table.packed.device.type == "cpu" and torch.equal(table[:], etd.mask_table(6, 5, 0.5, seed=3)[:])


def prop_m3_redirect(rem, seed, n=9, epochs=2):
    """REM: every masked example, in every epoch, runs under its own row of the first table, wherever it stands in a
    batch."""
    data, forget = make_data(seed, n=n), subset(seed, n, 0.4)
    state = rem.start(small_net(seed), data, forget, tiny(batch=4, p_mem=0.5, seed=seed % 1000), gen(seed))
    table = etd.mask_table(n, state.expanded.width, 0.5, seed % 1000, forget)
    with masked_calls(state.expanded, data) as seen:
        for _ in range(epochs):
            rem.redirect(state)
    assert len(seen) == epochs * n
    for index, row in seen:
        assert torch.equal(row, table[index]), index


def prop_m3_fit(train, seed, n=9, epochs=2):
    """ETD training: every example, in every epoch, runs under its own row of the table, wherever it stands in a
    batch."""
    data = make_data(seed, n=n)
    expanded = expand.expand(small_net(seed), torch.zeros(2, 1, 8, 8))
    table = etd.mask_table(n, expanded.width, 0.5, seed)
    with masked_calls(expanded, data) as seen:
        train.fit(expanded, data, None, tiny(epochs=epochs), gen(seed), masks=table)
    assert len(seen) == epochs * n
    for index, row in seen:
        assert torch.equal(row, table[index]), index


@given(seed=seeds)
def test_masks_are_fixed_over_epochs_and_follow_the_example(seed):
    """M3, M13: in ETD training and in step 3 each example meets its own row, in every epoch and at every batch
    position."""
    prop_m3_redirect(rem, seed)
    prop_m3_fit(train, seed)


def prop_m4(etd, seed, n, more, width, p=0.5):
    """Row i stays when N grows, with and without a shared row."""
    small, large = etd.mask_table(n, width, p, seed)[:], etd.mask_table(n + more, width, p, seed)
    assert torch.equal(small, large[:n])
    shared = subset(seed, n)
    few, many = (etd.mask_table(size, width, p, seed, shared) for size in (n, n + more))
    assert torch.equal(few[:], many[:n])


@given(n=sizes, more=sizes, width=widths, seed=seeds, p=rates)
def test_rows_stay_when_n_grows(n, more, width, seed, p):
    """M4, M3: row i stays when N grows."""
    prop_m4(etd, seed, n, more, width, p)


def test_rows_stay_when_a_large_n_grows():
    """M4: also beyond the sizes at which torch changes its ways of drawing."""
    large = etd.mask_table(3000, 257, 0.2, seed=1)
    for n in (0, 1, 15, 16, 17, 1000, 2999):
        assert torch.equal(etd.mask_table(n, 257, 0.2, seed=1)[:], large[:n])


@given(n=st.integers(1, 17), width=widths, seed=seeds)
def test_moving_keeps_rows(n, width, seed):
    """M5: rows are the same after .to(device) and .to(dtype)."""
    table, index = etd.mask_table(n, width, 0.5, seed), subset(seed, n)
    moved = table.to("meta")
    assert moved.packed.is_meta and moved[:].shape == (n, width) and not table.packed.is_meta
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int64):
        assert torch.equal(table.to("cpu")[index].to(dtype).bool(), etd.mask_rows(table, index))


@pytest.mark.gpu
def test_rows_are_the_same_on_cuda():
    """M5: a table moved to the GPU gives the rows of the CPU, for indices that stay on the CPU."""
    table, index = etd.mask_table(50, 33, 0.2, seed=0, shared=torch.tensor([3, 4])), torch.tensor([49, 0, 3, 3, 7])
    rows = etd.mask_rows(table.to("cuda"), index)
    assert rows.is_cuda and torch.equal(rows.cpu(), etd.mask_rows(table, index))
    with torch.device("cuda"):
        assert torch.equal(etd.mask_table(50, 33, 0.2, 0, torch.tensor([3, 4], device="cpu"))[:], table[:])
        assert torch.equal(etd.mask_table(50, 33, 0.2, 0, torch.tensor([3, 4]))[:], table[:])  # indices there, too


def prop_m6(etd, seed):
    """Neither drawing, looking up nor applying masks touches a global random state."""
    net, x = small_net(seed), torch.rand(3, 1, 8, 8, generator=gen(seed))
    expanded = expand.expand(net, torch.zeros(2, 1, 8, 8))
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed + 1)
    with untouched_rng():
        table = etd.mask_table(9, expanded.width, 0.5, seed, torch.tensor([2]))
        expanded.train()(x, etd.mask_rows(table, torch.tensor([1, 2, 8])))
        expanded.eval()(x, etd.mask_rows(table, torch.tensor([1, 2, 8])))
        etd.drop(expand.expand(net, torch.zeros(2, 1, 8, 8)))


@given(seed=seeds)
def test_masks_leave_global_random_states(seed):
    """M6: torch's, numpy's and Python's global generators stay as they are."""
    prop_m6(etd, seed)


def prop_m7(etd, seed, n, width):
    """All rows of D_f are one; D_f empty changes nothing; D_f everything leaves one distinct row."""
    own = etd.mask_table(n, width, 0.5, seed)[:]
    forget = subset(seed, n)
    table = etd.mask_table(n, width, 0.5, seed, forget)
    shared = torch.tensor(oracles.mask_row(seed, None, width, 0.5), dtype=torch.bool)
    assert all(torch.equal(row, shared) for row in etd.mask_rows(table, forget))
    assert torch.equal(etd.mask_table(n, width, 0.5, seed, forget[:0])[:], own)
    everything = etd.mask_table(n, width, 0.5, seed, torch.arange(n))[:]
    assert all(torch.equal(row, shared) for row in everything)


def prop_m8(etd, seed, n, width):
    """Choosing D_f changes D_f's rows only."""
    forget = subset(seed, n)
    rest = torch.ones(n, dtype=torch.bool)
    rest[forget] = False
    assert torch.equal(etd.mask_table(n, width, 0.5, seed, forget)[rest], etd.mask_table(n, width, 0.5, seed)[rest])


@given(n=sizes, width=widths, seed=seeds)
def test_forget_set_shares_one_row(n, width, seed):
    """M7, M8: D_f's rows are one shared row, the others stay what they were."""
    prop_m7(etd, seed, n, width)
    prop_m8(etd, seed, n, width)


def prop_m7_start(rem, seed, n=9):
    """Alg. 1, step 1: in the state D_f shares one row and the others keep those of the table without D_f."""
    data, forget = make_data(seed, n=n), subset(seed, n, 0.4)
    state = rem.start(small_net(seed), data, forget, tiny(p_mem=0.5, seed=seed % 1000), gen(seed))
    width = state.expanded.width
    shared = torch.tensor(oracles.mask_row(seed % 1000, None, width, 0.5))
    own = etd.mask_table(n, width, 0.5, seed % 1000)
    for i in range(n):
        assert torch.equal(state.masks[i], shared if i in forget.tolist() else own[i]), i


@given(seed=seeds)
def test_rem_gives_the_forget_set_one_row(seed):
    """M7, M8: rem's state holds D_f's shared row and everyone else's own."""
    prop_m7_start(rem, seed)


def prop_m14(rem, seed, n=10):
    """REM (IDEAL): exactly the rows of D_c are the shared one."""
    data, corrupted = make_data(seed, n=n), subset(seed, n, 0.5)
    # 60 bits: no row equals the shared one by chance (10 * 2^-60)
    config = tiny(p_mem=0.5, seed=seed % 1000, ratio=20.0)
    state = rem.start(small_net(seed), data, corrupted[:2], config, gen(seed), shared=corrupted)
    shared = torch.tensor(oracles.mask_row(seed % 1000, None, state.expanded.width, 0.5))
    same = [i for i in range(n) if torch.equal(state.masks[i], shared)]
    assert same == sorted(corrupted.tolist())


def test_ideal_shares_all_of_the_corrupted_set():
    """M14: with shared=D_c exactly D_c's rows are equal, not D_f's only."""
    for seed in range(5):
        prop_m14(rem, seed)


def test_shared_row_has_the_marginal_of_the_others():
    """M9: over seeds the shared row's bits are on with probability p, it changes with the seed, and no example owns
    it."""
    n, width, p, runs = 6, 40, 0.2, 300
    total, rows = 0, set()
    for seed in range(runs):
        shared = etd.mask_table(n, width, p, seed, torch.tensor([4]))[4]
        own = etd.mask_table(n, width, p, seed)[:]
        total += int(shared.sum())
        rows.add(tuple(shared.tolist()))
        # two independent rows agree with probability 0.68^40 = 2e-7; 1800 pairs: 4e-4, and the seeds are fixed
        assert not (own == shared).all(dim=1).any(), seed
    assert abs(total - runs * width * p) < 5 * math.sqrt(runs * width * p * (1 - p))  # 5 sd: 6e-7
    assert len(rows) == runs


def prop_m10(etd, seed=5):
    """Rows of D_r are independent: pairs overlap in p^2 of the bits, and no two are equal."""
    n, width, p = 40, 600, 0.2
    table = etd.mask_table(n, width, p, seed)[:].double()
    pairs = (table.sum(0) * (table.sum(0) - 1) / 2).sum()  # overlapping pairs, over all columns
    k = torch.arange(n + 1, dtype=torch.float64)
    choose = torch.tensor([math.comb(n, i) for i in range(n + 1)], dtype=torch.float64)
    chance = choose * p**k * (1 - p) ** (n - k)  # of k active rows in one column
    mean, square = (chance * k * (k - 1) / 2).sum(), (chance * (k * (k - 1) / 2) ** 2).sum()
    assert abs(pairs - width * mean) < 5 * (width * (square - mean**2)).sqrt()  # 5 sd: 6e-7, fixed seed
    assert len(table.unique(dim=0)) == n  # birthday bound: 780 pairs * 0.68^600 < 1e-90
    overlap = table @ table.T
    far = (overlap - width * p**2).abs()[~torch.eye(n, dtype=torch.bool)]
    assert far.max() < 7 * math.sqrt(width * p**2 * (1 - p**2))  # each pair; 7 sd: 780 * 3e-12


def test_rows_of_the_others_are_independent():
    """M10: D_r's rows overlap by chance only; one mask for a batch or a bucket of examples would not."""
    prop_m10(etd)


@given(n=sizes, width=widths, seed=seeds)
def test_extreme_probabilities_and_empty_rows(n, width, seed):
    """M15: p = 0 is all zeros, p = 1 all ones, also for the shared row."""
    forget = subset(seed, n)
    assert not etd.mask_table(n, width, 0.0, seed, forget)[:].any()
    assert etd.mask_table(n, width, 1.0, seed, forget)[:].all()


def test_p_mem_0_is_off_whatever_is_drawn():
    """M15: a bit is on where its draw is below p, so p = 0 is all zeros even where the draw is exactly 0."""
    with mock.patch.object(torch, "rand", lambda shape, **more: torch.zeros(shape)):
        assert not etd.mask_table(3, 5, 0.0, 0)[:].any() and etd.mask_table(3, 5, 0.2, 0)[:].all()


def test_rows_without_a_bit_are_allowed():
    """M15: Bernoulli rows may be empty; nothing redraws them."""
    table = etd.mask_table(2000, 4, 0.2, seed=0)[:]
    empty, p = int((~table.any(dim=1)).sum()), 0.8**4
    assert abs(empty - 2000 * p) < 5 * math.sqrt(2000 * p * (1 - p))  # 5 sd: 6e-7, fixed seed


BAD_INDICES = [
    (torch.tensor([0, -1]), "-1"), (torch.tensor([5]), "5"), (torch.tensor([2, 7, 9]), "7"),
    (torch.tensor([1.0]), "float32"),
    (torch.tensor([1], dtype=torch.int32), "int32"), (torch.tensor([True]), "bool"), (torch.tensor([[1]]), r"\(1, 1\)"),
    (torch.tensor(1), r"\(\)"), ([1, 2], "list"), (3, "int"), (torch.tensor([]), "float32"),
]


@pytest.mark.parametrize("index, named", BAD_INDICES)
def test_bad_indices_are_refused(index, named):
    """M18: a negative, too large or wrongly typed index raises a ValueError that names it, and never wraps."""
    with pytest.raises(ValueError, match=named):
        etd.mask_rows(etd.mask_table(5, 3, 0.2, 0), index)
    with pytest.raises(ValueError, match=named):
        etd.mask_table(5, 3, 0.2, 0, shared=index)


@pytest.mark.parametrize("n, width, p", [(3, 3, -0.1), (3, 3, 1.1), (3, 3, math.nan), (-1, 3, 0.2), (3, -1, 0.2)])
def test_bad_sizes_are_refused(n, width, p):
    """M1, M15: sizes below 0 and probabilities outside [0, 1] raise a ValueError."""
    with pytest.raises(ValueError):
        etd.mask_table(n, width, p, 0)


# --- What a mask does -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def outputs_of(expanded):
    """Collect the output of each expanded layer, by name, of the last pass."""
    found, hooks = {}, []
    for name, layer in expanded.layers().items():
        hooks.append(layer.register_forward_hook(lambda m, args, out, name=name: found.__setitem__(name,
            out.detach().clone())))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def prop_m11(etd, seed, width=3, norm=True, train_mode=False):
    """Base channels are multiplied by 1 for every example and every row: extra channels off, each layer gives its base
    output.

    The extra channels of each masking layer are the unmasked ones times the row's bits, at every pixel (M12).
    """
    net = small_net(seed, width=width, norm=norm, dtype=torch.float64)
    expanded = expand.expand(net, torch.zeros(2, 1, 8, 8)).train(train_mode)
    x = torch.randn(5, 1, 8, 8, generator=gen(seed), dtype=torch.float64)
    mask = torch.rand(5, expanded.width, generator=gen(seed + 1)) < 0.5
    first = "norm1" if norm else "conv1"
    with outputs_of(expanded) as out:
        expanded(x, torch.ones_like(mask))
        on = dict(out)
        expanded(x, mask)
        some = dict(out)
        expanded(x, torch.zeros_like(mask))
        off = dict(out)
        expanded(x)
        base = dict(out)
    # the first layer sees the same input whatever the mask, so its base channels are equal bit for bit
    assert torch.equal(some[first][:, :width], on[first][:, :width])
    assert torch.equal(some[first][:, width:], on[first][:, width:] * mask[:, :, None, None])
    for image, masked, row in zip(on[first], some[first], mask, strict=True):
        assert np.array_equal(masked.numpy(), oracles.mask_channels(image.numpy(), row.numpy(), width, axis=0))
    for name, expected in base.items():  # deeper ones: the base output, up to the order of sums
        dim = expanded.layers()[name].channel_dim
        assert_close(off[name].narrow(dim, 0, expected.shape[dim]), expected)


@given(seed=seeds, width=st.integers(1, 5), norm=st.booleans(), train_mode=st.booleans())
def test_base_channels_are_never_masked(seed, width, norm, train_mode):
    """M11, M12: theta_o1's channels are 1 for every example; a bit is constant over height and width."""
    prop_m11(etd, seed, width, norm, train_mode)


def test_mask_of_tokens_acts_on_features():
    """M12, M17: in the ViT the mask acts on hidden units, the same for every token, as the loop does."""
    net = build("vit", channels=1, image_size=8, patch=4, dim=8, depth=2, heads=2, head_dim=4, hidden=5,
                seed=0).double()
    expanded = expand.expand(net, torch.zeros(2, 1, 8, 8), ratio=0.6)
    x = torch.randn(3, 1, 8, 8, generator=gen(0), dtype=torch.float64)
    mask = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 1]], dtype=torch.bool)
    with outputs_of(expanded) as out:
        expanded(x, torch.ones_like(mask))
        on = out["ff.0.1"]
        expanded(x, mask)
        some = out["ff.0.1"]
    assert on.shape == (3, 5, 5 + 3)  # 4 patches and the class token
    for tokens, masked, row in zip(on, some, mask, strict=True):
        assert np.array_equal(masked.numpy(), oracles.mask_channels(tokens.numpy(), row.numpy(), 5, axis=1))


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


def prop_m13(etd, seed, n=8):
    """f(x[p], i[p]) is f(x, i)[p]: rows follow the dataset index."""
    expanded = expand.expand(small_net(seed, dtype=torch.float64), torch.zeros(2, 1, 8, 8)).eval()
    table = etd.mask_table(3 * n, expanded.width, 0.5, seed)
    g = gen(seed)
    index, order = torch.randperm(3 * n, generator=g)[:n], torch.randperm(n, generator=g)
    x = torch.randn(n, 1, 8, 8, generator=g, dtype=torch.float64)
    out = expanded(x, etd.mask_rows(table, index)).detach()
    assert_close(expanded(x[order], etd.mask_rows(table, index[order])).detach(), out[order])
    assert torch.equal(etd.mask_rows(table, index), torch.stack([table[i] for i in index.tolist()]))


@given(seed=seeds)
def test_rows_follow_the_dataset_index(seed):
    """M13: permuting a batch with its indices permutes the outputs."""
    prop_m13(etd, seed)


def test_masks_of_a_large_network_stay_small():
    """M16: the state's table is N x width bits, whatever the maps' sizes; a pass keeps nothing."""
    data, config = make_data(0, n=30, size=16), tiny()
    state = rem.start(small_net(0, width=7), data, torch.tensor([1, 2]), config, gen(0))
    assert state.masks.packed.nbytes == 30  # seven bits of a byte
    state.expanded(torch.zeros(30, 1, 16, 16), state.masks[:])
    assert all(layer.keep is None for layer in state.expanded.layers().values())
