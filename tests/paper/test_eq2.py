"""Eq. 2 and the two losses made of it (Sec. 5). What the paper says of them, and what holds it:

- Eq. 2: (2 / beta) E log sigmoid(-beta log(ratio)). Choice: the ratio is that of likelihoods, as in NPO, which makes it
  h(u) = (2 / beta) log sigmoid(beta u) with u = CE - CE_ref; the ratio of cross-entropies that is printed would teach
  what step 2 removes.                                                                                            L1, L7
- Sec. 3: NPO "overcomes the catastrophic collapses of Gradient Ascent": h rises with CE, and its slope, the pull, lies
  between 0 and 2.                                                                                        L3, L4, L5, L8
- "The reference models correspond to the initialization of the respective weights": a constant.                   L10
- 2.2: "Update theta_o1 model part with loss L_step2 = -L_remove", a mean over D_f.         L6, L9, L12, L13, L15, L16
- 3.3: "L_step3 = L_redirect - L_remove". Choice: both are divided by the batch.  L2, L9, L12, L14, L15, L16, L18
- Table 3: "REM beta 1"; it is above 0, and no value overflows.                                          L11, L16, L17
"""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn import functional as F

import oracles_loss as oracle
import rem
from engine import scores
from helpers import assert_close, gen, seeds, tiny

betas = st.sampled_from([0.1, 0.5, 1.0, 2.0, 3.7, 10.0])
sizes = st.sampled_from([1, 2, 3, 7, 16])
shares = st.sampled_from(["none", "one", "some", "all"])

TABLE = {  # (beta, u): h(u)
    (1.0, math.log(3)): -0.575364, (1.0, 0.0): -1.386294, (1.0, -math.log(3)): -2.772589,
    (2.0, math.log(3)): -0.105361, (2.0, 0.0): -0.693147, (2.0, -math.log(3)): -2.302585,
    (0.5, math.log(3)): -1.822986, (0.5, 0.0): -2.772589, (0.5, -math.log(3)): -4.020210,
}  # fmt: skip


def draw_batch(seed, size, share="some", classes=5):
    """Logits of the four passes (full, full_ref, base, base_ref), labels and membership of D_f, all of one batch."""
    g = gen(seed)
    logits = [3 * torch.randn(size, classes, generator=g, dtype=torch.float64) for _ in range(4)]
    labels = torch.randint(0, classes, (size,), generator=g)
    in_forget = torch.rand(size, generator=g) < 0.5
    if share in ("none", "one", "all"):
        in_forget = torch.full((size,), share == "all")
    if share == "one":
        in_forget[int(torch.randint(0, size, (), generator=g))] = True
    return logits, labels, in_forget


def ces(logits, labels):
    """Cross-entropy of each example, for each of the passes."""
    return [F.cross_entropy(one, labels, reduction="none") for one in logits]


def scalar(value):
    """A float64 tensor."""
    return torch.tensor(value, dtype=torch.float64)


def through_code(logits, labels):
    """The cross-entropies as Algorithm 1 computes them from a network's logits."""
    state = SimpleNamespace(config=tiny(), expanded=lambda x, mask=None: x)
    return [scores.cross_entropy(state, one, labels) for one in logits]


def removal(parts, in_forget, beta):
    """The removal term of step 3: what is left without the redirect term."""
    return rem.step3_loss(*parts, in_forget, beta) - rem.step3_loss(*parts[:2], None, None, in_forget, beta)


# --- h ----------------------------------------------------------------------------------------------------------------


@given(st.floats(1.5, 50))
@example(2.0)
def test_nine_values_of_h(ce_ref):
    """L1: h at u = log 3, 0, -log 3 and beta = 1, 2, 0.5, whatever the reference, with beta != 1 and u != 0
    together."""
    for (beta, u), value in TABLE.items():
        found = rem.npo_term(scalar([ce_ref + u]), scalar([ce_ref]), beta)
        assert found.shape == (1,)
        assert abs(found.item() - value) < 1e-6, (beta, u, found.item())


@given(seeds, betas, st.integers(1, 1000))
@example(0, 2.0, 3)
def test_h_reads_the_ratio_of_likelihoods(seed, beta, shift):
    """L7: one constant added to CE and CE_ref changes nothing, bit for bit, since such sums are exact; the literal
    ratio of cross-entropies would change."""
    ce, ce_ref = torch.randint(1, 8192, (2, 20), generator=gen(seed)).double() / 1024
    assert not torch.equal(ce, ce_ref)
    assert torch.equal(rem.npo_term(ce + shift, ce_ref + shift, beta), rem.npo_term(ce, ce_ref, beta))


@given(seeds, betas)
@example(0, 2.0)
def test_the_printed_ratio_would_learn_what_step_2_removes(seed, beta):
    """L7: with the ratio of cross-entropies that Eq. 2 prints, going down L_step2 lowers CE on D_f; here it raises
    it."""
    ce, ce_ref = 0.1 + 5 * torch.rand(2, 20, generator=gen(seed), dtype=torch.float64)
    ce.requires_grad_()
    # L_step2 = -L_remove,  L_remove = (2 / beta) E log sigmoid(-beta log(CE / CE_ref)), read letter by letter
    printed = -(2 / beta) * torch.nn.functional.logsigmoid(-beta * (ce / ce_ref).log()).mean()
    (uphill,) = torch.autograd.grad(printed, ce)
    (here,) = torch.autograd.grad(rem.step2_loss(ce, ce_ref, beta), ce)
    assert (uphill > 0).all() and (here < 0).all()


@given(seeds, betas)
@example(0, 2.0)
def test_the_pull(seed, beta):
    """L3, L4, L8: h is negative and rises with CE: its slope is 2 sigmoid(-beta u), strictly inside (0, 2), so no
    example pulls harder than 2 dCE; h(u) - h(-u) = 2 u."""
    # |beta u| <= 30: beyond 36 the sigmoid rounds to 1 in float64 and the bound is met with equality
    u = (2 * torch.rand(50, generator=gen(seed), dtype=torch.float64) - 1) * 30 / beta
    ce_ref = torch.full_like(u, 30 / beta + 1)
    ce = (ce_ref + u).requires_grad_()
    h = rem.npo_term(ce, ce_ref, beta)
    (slope,) = torch.autograd.grad(h.sum(), ce)
    assert_close(slope, 2 * torch.sigmoid(-beta * (ce.detach() - ce_ref)))
    assert (slope > 0).all() and (slope < 2).all() and (h < 0).all()
    # 2 / beta multiplies the rounding of u
    assert_close(h - rem.npo_term(ce_ref, ce.detach(), beta), 2 * (ce - ce_ref), 1e-12 * max(1.0, 1 / beta))


@given(st.floats(-5, 5))
@example(0.0)
def test_limits_of_beta(u):
    """L5: beta -> 0 gives h + 2 log 2 / beta -> u, beta -> inf gives h -> 2 min(0, u)."""
    ce, ce_ref = scalar([5 + u]), scalar([5.0])
    small, large = 1e-4, 1e4
    near = rem.npo_term(ce, ce_ref, small) + 2 * math.log(2) / small
    assert_close(near, scalar([u]), 1e-2)  # the next term of the series is beta u^2 / 4
    assert_close(rem.npo_term(ce, ce_ref, large), scalar([2 * min(0.0, u)]), 1e-2)  # at most 2 log 2 / beta away


# --- The losses -------------------------------------------------------------------------------------------------------


@given(seeds, betas)
@example(0, 2.0)
def test_gradients(seed, beta):
    """L10: gradcheck of the term and both losses in float64; the references get no gradient even where they could."""
    g = gen(seed)
    ce, full = (4 * torch.rand(2, 5, generator=g, dtype=torch.float64)).requires_grad_()
    ce_ref, full_ref = (4 * torch.rand(2, 5, generator=g, dtype=torch.float64)).requires_grad_()
    in_forget = torch.tensor([True, False, True, False, False])
    fixed, fixed_full = ce_ref.detach(), full_ref.detach()
    assert torch.autograd.gradcheck(lambda c: rem.npo_term(c, fixed, beta), (ce.detach().requires_grad_(),))
    assert torch.autograd.gradcheck(lambda c: rem.step2_loss(c, fixed, beta), (ce.detach().requires_grad_(),))
    both = (full.detach().requires_grad_(), ce.detach().requires_grad_())
    assert torch.autograd.gradcheck(lambda f, c: rem.step3_loss(f, fixed_full, c, fixed, in_forget, beta), both)
    losses = rem.step2_loss(ce, ce_ref, beta), rem.step3_loss(full, full_ref, ce, ce_ref, in_forget, beta)
    for loss in (*losses, rem.npo_term(ce, ce_ref, beta).sum()):
        for grad in torch.autograd.grad(loss, (ce_ref, full_ref), allow_unused=True, retain_graph=True):
            assert grad is None or not grad.any()


@given(seeds, sizes, shares, betas)
@example(0, 7, "some", 2.0)
def test_losses_are_the_numpy_twins(seed, size, share, beta):
    """L6, L12, L13, L14, L15, L16, L18: both losses are those of the numpy twin on random logits, through the code's
    own cross-entropy. The twin knows probabilities of labels alone, so neither a constant added to the logits nor the
    names of classes count; it adds up the terms of single examples, each over B, so neither order nor repetition counts
    and the removal term weighs #D_f / B; step 3 is L_redirect - L_remove, and None leaves the second term out."""
    logits, labels, in_forget = draw_batch(seed, size, share)
    parts = through_code(logits, labels)
    assert_close(rem.step2_loss(*parts[2:], beta), scalar(oracle.step2_loss(logits[2], logits[3], labels, beta)))
    for found, terms in ((rem.step3_loss(*parts, in_forget, beta), (True, True)),
                         (rem.step3_loss(*parts[:2], None, None, in_forget, beta), (True, False)),
                         (removal(parts, in_forget, beta), (False, True))):
        assert_close(found, scalar(oracle.step3_loss(*logits, labels, in_forget, beta, *terms)))


@given(seeds, sizes, shares, st.sampled_from([0.5, 1.0, 2.0]), st.floats(0.01, 0.4))
@example(0, 7, "some", 2.0, 0.1)
def test_directions(seed, size, share, beta, lr):
    """L9: a step down the implemented loss: step 2 raises base CE on D_f; step 3 lowers full CE on D_tr and raises base
    CE on D_f."""
    logits, labels, in_forget = draw_batch(seed, size, share)
    full, full_ref, base, base_ref = (one / 6 for one in logits)  # so that no pull drowns in rounding
    full_ref, base_ref = ces([full_ref, base_ref], labels)

    base = base.clone().requires_grad_()
    (ce,) = ces([base], labels)
    (down,) = torch.autograd.grad(rem.step2_loss(ce, base_ref, beta), base)
    (after,) = ces([base - lr * size * down], labels)
    assert (after > ce).all()  # CE is convex in the logits: a step up its gradient raises it, however long

    full, base = full.clone().requires_grad_(), base.detach().requires_grad_()
    ce_full, ce_base = ces([full, base], labels)
    loss = rem.step3_loss(ce_full, full_ref, ce_base, base_ref, in_forget, beta)
    down_full, down_base = torch.autograd.grad(loss, (full, base))
    full_after, base_after = ces([full - lr * size * down_full, base - lr * size * down_base], labels)
    assert (full_after < ce_full).all()  # CE is 1-smooth in the logits: a step of less than 2 / smoothness lowers it
    assert (base_after[in_forget] > ce_base[in_forget]).all()
    assert torch.equal(base_after[~in_forget], ce_base[~in_forget])


@given(seeds, sizes, shares, betas)
def test_step_3_at_the_reference(seed, size, share, beta):
    """L2: at u = 0 step 3 is -(2 log 2 / beta)(1 - |D_f| / |batch|), so zero where the whole batch is D_f."""
    logits, labels, in_forget = draw_batch(seed, size, share)
    full, _, base, _ = ces(logits, labels)
    outside = 1 - int(in_forget.sum()) / size
    found = rem.step3_loss(full, full, base, base, in_forget, beta)
    assert_close(found, scalar(-2 * math.log(2) / beta * outside))


# --- Ranges -----------------------------------------------------------------------------------------------------------


def test_finite_at_the_ends():
    """L11: finite losses and gradients for cross-entropies of 0, 1e-45, 1e-30 and 1e4, in float32 and bfloat16."""
    values = [0.0, 1e-45, 1e-30, 1e4]
    pairs = [(a, b) for a in values for b in values]
    for dtype in (torch.float32, torch.bfloat16):
        for beta in (0.5, 1.0, 2.0, 100.0):
            ce_ref = torch.tensor([b for _, b in pairs], dtype=dtype)
            for in_forget in (torch.zeros(16, dtype=torch.bool), torch.ones(16, dtype=torch.bool)):
                ce = torch.tensor([a for a, _ in pairs], dtype=dtype, requires_grad=True)
                step2 = rem.step2_loss(ce, ce_ref, beta)
                step3 = rem.step3_loss(ce * 1, ce_ref, ce, ce_ref, in_forget, beta)
                for loss in (step2, step3, rem.npo_term(ce, ce_ref, beta).sum()):
                    (grad,) = torch.autograd.grad(loss, ce, retain_graph=True)
                    assert torch.isfinite(loss) and torch.isfinite(grad).all(), (dtype, beta)


@pytest.mark.parametrize("beta", [0, 0.0, -1.0, float("nan"), float("-inf")])
def test_beta_is_above_0(beta):
    """L17: beta <= 0 or no number -> ValueError that names it, from each of the three functions."""
    one, hit = torch.ones(2), torch.tensor([True, False])
    for call in (rem.npo_term, rem.step2_loss):
        with pytest.raises(ValueError, match=f"beta is {beta}"):
            call(one, one, beta)
    with pytest.raises(ValueError, match="beta is"):
        rem.step3_loss(one, one, one, one, hit, beta)


@given(seeds, sizes)
def test_beta_left_out(seed, size):
    """L16: left out, beta is Table 3's 1 in each of the three functions."""
    logits, labels, in_forget = draw_batch(seed, size)
    full, full_ref, base, base_ref = ces(logits, labels)
    for call, args in ((rem.npo_term, (base, base_ref)), (rem.step2_loss, (base, base_ref)),
                       (rem.step3_loss, (full, full_ref, base, base_ref, in_forget))):
        assert torch.equal(call(*args), call(*args, 1.0))
    assert rem.Settings().beta == 1
