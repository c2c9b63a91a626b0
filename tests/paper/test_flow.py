"""Tests of gradient flow: which loss moves which parameters, under which mask (F1-F12).

Each `prop_*` takes the module under test first, so that test_mutants.py can run it on a changed one.
"""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import etd
import expand
import metrics
import oracles
import rem
import train
from helpers import assert_close, assert_same_state, gen, make_data, randomise, rows, run, seeds, small_net, tiny
from experiment.data import Data
from etd import ExpandedBatchNorm, ExpandedWeight
from models import build
from test_drop import draw, theta_o2

IMAGE = torch.zeros(2, 1, 8, 8)


def fresh(etd, seed, norm=True, ratio=1.0, width=3):
    """An expanded small_net in float64, theta_o2 and all statistics drawn."""
    return randomise(expand.expand(small_net(seed, width=width, norm=norm, dtype=torch.float64), IMAGE, ratio), seed)


def extra_parameters(expanded) -> dict[str, nn.Parameter]:
    return {name: p for name, p in theta_o2(expanded).items() if isinstance(p, nn.Parameter)}


def channel_slices(expanded):
    """(name, parameter, dimension, first entry): the slices of each parameter that belong to extra channels, one per
    channel.

    In small_net every extra channel j of every layer has the mask bit j.
    """
    for name, layer in expanded.layers().items():
        if isinstance(layer, ExpandedWeight):
            if layer.extra_in:
                yield f"{name}.to_base", layer.to_base, 1, 0
                if layer.extra_out:
                    yield f"{name}.to_extra", layer.to_extra, 1, layer.inputs
            if layer.extra_out:
                yield f"{name}.to_extra", layer.to_extra, 0, 0
                yield f"{name}.extra_bias", layer.extra_bias, 0, 0
        elif layer.extra_out:
            yield f"{name}.extra_weight", layer.extra_weight, 0, 0
            yield f"{name}.extra_bias", layer.extra_bias, 0, 0


def loss_of(expanded, seed, batch, mask=None):
    x, y = draw(seed, batch, 1, 8, 8, dtype=torch.float64), torch.randint(4, (batch,), generator=gen(seed))
    return F.cross_entropy(expanded(x, mask), y, reduction="sum")


def prop_f1(etd, seed, norm=True, train_mode=True):
    """A base-only loss gives theta_o2 no gradient at all, and theta_o1 some."""
    expanded = fresh(etd, seed, norm).train(train_mode)
    loss_of(expanded, seed, 4).backward()
    for name, p in extra_parameters(expanded).items():
        assert p.grad is None or not p.grad.any(), name
    for name, layer in expanded.layers().items():
        assert layer.base.weight.grad.any(), name


@given(seed=seeds, norm=st.booleans(), train_mode=st.booleans())
def test_base_only_loss_moves_theta_o1_alone(seed, norm, train_mode):
    """F1: gradient on every theta_o2 entry is 0 or None; nonzero on theta_o1."""
    prop_f1(etd, seed, norm, train_mode)


def prop_f2(etd, seed, batch=1, norm=True, train_mode=False):
    """Channels that no example of the batch has on get a gradient of exactly 0; those that one has on get some."""
    expanded = fresh(etd, seed, norm, width=5).train(train_mode)
    mask = rows(seed, expanded, batch, 0.3)
    loss_of(expanded, seed, batch, mask).backward()
    union = mask.any(dim=0)
    for name, p, dim, start in channel_slices(expanded):
        for j, active in enumerate(union):
            part = p.grad.select(dim, start + j)
            assert active or not part.any(), (name, j)
    if union.any():
        assert expanded.layers()["head"].to_base.grad[:, union].any()
    # one example's own share of a batch: its gradient under its own row is 0 off its row, whatever the others' rows are
    for i in range(batch):
        expanded.zero_grad()
        x, y = draw(seed, batch, 1, 8, 8, dtype=torch.float64), torch.randint(4, (batch,), generator=gen(seed))
        F.cross_entropy(expanded.eval()(x, mask)[i], y[i]).backward()
        for name, p, dim, start in channel_slices(expanded):
            for j in torch.nonzero(~mask[i]).flatten().tolist():
                assert not p.grad.select(dim, start + j).any(), (i, name, j)


@given(seed=seeds, batch=st.integers(1, 3), norm=st.booleans())
def test_masked_channels_get_no_gradient(seed, batch, norm):
    """F2: zero gradient for channels with mask 0; in a batch, for each example's loss, outside its own row."""
    prop_f2(etd, seed, batch, norm)


@given(seed=seeds, batch=st.integers(2, 3))
def test_masked_channels_get_no_gradient_in_training_mode(seed, batch):
    """F2: with batch statistics too, nothing flows into channels outside the union of the rows."""
    prop_f2(etd, seed, batch, norm=True, train_mode=True)


@given(seed=seeds, batch=st.integers(1, 4), norm=st.booleans())
def test_batch_gradient_is_the_sum_of_single_ones(seed, batch, norm):
    """F3: the gradient of a batch is the sum of the single examples' gradients under their own masks (eval mode)."""
    expanded = fresh(etd, seed, norm).eval()
    mask, x = rows(seed, expanded, batch), draw(seed, batch, 1, 8, 8, dtype=torch.float64)
    y = torch.randint(4, (batch,), generator=gen(seed))
    F.cross_entropy(expanded(x, mask), y, reduction="sum").backward()
    whole = [p.grad.clone() for p in expanded.parameters()]
    expanded.zero_grad()
    for i in range(batch):  # .grad adds up
        F.cross_entropy(expanded(x[i : i + 1], mask[i : i + 1]), y[i : i + 1], reduction="sum").backward()
    for expected, p in zip(whole, expanded.parameters(), strict=True):
        assert_close(p.grad, expected)


@pytest.mark.parametrize("norm, train_mode", [(False, False), (True, False), (True, True)])
def test_gradcheck_of_the_masked_pass(norm, train_mode):
    """F4: gradients of the masked pass agree with finite differences, for the input and every parameter."""
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2) if norm else nn.Identity(), nn.CELU(),
                        nn.Conv2d(2, 1, 2), nn.CELU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)).double()
    expanded = randomise(expand.expand(net, torch.zeros(2, 1, 4, 4)), 0).train(train_mode)
    names, values = zip(*expanded.named_parameters(), strict=True)
    mask, x = torch.tensor([[True, False], [False, True], [True, True]]), draw(1, 3, 1, 4, 4, dtype=torch.float64)

    def masked(x, *values):
        twin = copy.deepcopy(expanded)  # statistics move in training mode: a copy each time
        return torch.func.functional_call(twin, dict(zip(names, values, strict=True)), (x, mask))

    inputs = (x.requires_grad_(), *(v.detach().clone().requires_grad_() for v in values))
    assert torch.autograd.gradcheck(masked, inputs)


@given(seed=seeds, decay=st.sampled_from([0.0, 0.01]))
def test_inactive_channels_under_sgd(seed, decay):
    """F5: without decay inactive channels stay bit for bit; with decay they shrink by 1 - lr wd: zero is not "no
    change"."""
    expanded = fresh(etd, seed, width=4).train()
    config = tiny(momentum=0.0, weight_decay=decay)
    optimizer = train.make_optimizer(expanded, config, lr=0.1)
    mask = rows(seed, expanded, 3)
    mask[:, 1] = False
    before = {name: p.detach().clone() for name, p in extra_parameters(expanded).items()}
    for _ in range(2):
        train.descend(optimizer, loss_of(expanded, seed, 3, mask))
    inactive = torch.nonzero(~mask.any(dim=0)).flatten().tolist()
    for name, p, dim, start in channel_slices(expanded):
        for j in inactive:
            old, new = before[name].select(dim, start + j), p.detach().select(dim, start + j)
            if decay:
                assert_close(new, old * (1 - 0.1 * decay) ** 2, 1e-15)
            else:
                assert torch.equal(new, old), name
    active = mask.any(dim=0)
    head = expanded.layers()["head"].to_base
    assert not active.any() or not torch.equal(head[:, active], before["head.to_base"][:, active])


# --- Algorithm 1 ------------------------------------------------------------------------------------------------------


def make_state(rem, seed, n=10, augment=False, **changes):
    """The state after step 1 on random data; D_f is three examples."""
    data = make_data(seed, n=n, flip=augment)
    forget = torch.randperm(n, generator=gen(seed))[:3]
    config = tiny(**{**dict(p_mem=0.5, seed=seed % 1000, momentum=0.9, max_passes=2, beta=2.0), **changes})
    return rem.start(small_net(seed), data, forget, config, gen(seed))


def snapshot(tensors):
    return {name: t.detach().clone() for name, t in tensors.items()}


def passes(rem, state):
    """Step 2 whose accuracy never falls, so that it makes all its passes."""
    with pytest.warns(UserWarning, match="after 2 passes"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(rem, "acc_forget", lambda *args, **kwargs: 1.0)
        rem.remove(state)


def prop_f6(rem, seed, augment=False, mode="auto"):
    """Step 2 leaves theta_o2 and its buffers bit for bit, whatever momentum and weight decay, and moves theta_o1.

    The running statistics of theta_o1 stay bit for bit too, unless the passes are asked to use those of each batch.
    """
    state = make_state(rem, seed, augment=augment, forget_norm=mode)
    rem.redirect(state)  # so that theta_o2 has momentum
    extra, base = snapshot(theta_o2(state.expanded)), etd.drop(state.expanded)
    passes(rem, state)
    for name, t in theta_o2(state.expanded).items():
        assert torch.equal(t, extra[name]), name
    after = etd.drop(state.expanded)
    assert not torch.equal(after.conv1.weight, base.conv1.weight)
    assert not torch.equal(after.head.weight, base.head.weight)
    for (name, a), (_, b) in zip(after.named_buffers(), base.named_buffers(), strict=True):
        assert torch.equal(a, b) == (mode != "batch"), name


@given(seed=seeds, augment=st.booleans(), mode=st.sampled_from(["auto", "running", "batch"]))
def test_step_2_moves_theta_o1_alone(seed, augment, mode):
    """F6, A20: step 2 moves the weights of theta_o1 and nothing else; with batch statistics its running ones too."""
    prop_f6(rem, seed, augment, mode)


def prop_a20(rem, seed, beta=2.0, size=3, batch=2):
    """Before its first update step 2 sees the reference itself: u = 0, so its loss is 2 log 2 / beta on any network."""
    data = make_data(seed, n=10)
    forget, losses, update = torch.randperm(10, generator=gen(seed))[:size], [], rem.descend
    config = tiny(beta=beta, batch=batch, unlearn_lr=0.0, max_passes=2)
    state = rem.start(small_net(seed), data, forget, config, gen(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rem, "descend", lambda *given: losses.append(float(given[1].detach())) or update(*given))
        passes(rem, state)
    assert_close(torch.tensor(losses), torch.full((len(losses),), 2 * math.log(2) / beta), 1e-5)  # float32


@given(seed=seeds, beta=st.sampled_from([0.5, 1.0, 2.0]), size=st.integers(1, 9), batch=st.sampled_from([2, 4, 64]))
def test_step_2_starts_at_the_reference(seed, beta, size, batch):
    """A20: at rate 0 each batch of step 2 has u = 0, whatever its examples share; batch statistics would shift it."""
    prop_a20(rem, seed, beta, size, batch)


class Trigger(nn.Module):
    """conv 1x1 - BatchNorm - Linear on one pixel: class 0 where the pixel is white; the convolution alone trains."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1), nn.Linear(1, 2)
        with torch.no_grad():
            self.conv.weight.fill_(1.0)
            self.head.weight.copy_(torch.tensor([[4.0], [-4.0]]))
            self.head.bias.copy_(torch.tensor([-2.0, 2.0]))  # class 0 above 1/2
        for p in (*self.norm.parameters(), *self.head.parameters()):
            p.requires_grad_(False)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).amax(dim=(2, 3)))


def test_step_2_must_unlearn_with_weights():
    """A20: where all of D_f shares one trigger, passes with batch statistics misread D_f before any update; step 2's do
    not.

    Exact: D_f's images are equal, so their batch statistics subtract all of it and no gradient reaches the convolution;
    Acc(D_f) falls because the running mean moves. With running statistics the weight falls until the trigger is not
    seen.
    """
    images = torch.zeros(12, 1, 1, 1, dtype=torch.uint8)
    forget = torch.arange(4)
    images[forget] = 255
    data = Data(images, (images.flatten() == 0).long(), 2, (0.0,), (1.0,))
    before, weights, seen = Trigger().double().eval(), {}, {}
    assert metrics.accuracy(before, data) == 1
    for mode in ("running", "batch"):
        config = tiny(forget_norm=mode, gamma=0.2, batch=64, unlearn_lr=0.01, max_passes=100, momentum=0.0,
                      weight_decay=0.0)
        state = rem.start(before, data, forget, config, gen(0))
        assert rem.remove(state) == 0 and state.record["updates"] > 1  # both modes say that D_f is forgotten
        left = etd.drop(state.expanded)
        weights[mode] = float(left.conv.weight.detach())
        left.norm.load_state_dict(before.norm.state_dict())  # the weights of step 2 with the statistics of before
        seen[mode] = metrics.accuracy(left, data, forget)
    assert seen == {"running": 0, "batch": 1} and weights["running"] <= 0.5 and abs(weights["batch"] - 1) < 1e-9


def prop_f7(rem, seed, step32=True):
    """Step 3 moves theta_o1 and the channels of D_f's row, and no channel that is off in every row."""
    state = make_state(rem, seed, weight_decay=0.0, step32=step32, p_mem=0.3, ratio=2.0)
    bits = state.masks[:]
    bits[:, 0], bits[:, 1] = False, torch.arange(len(bits)).eq(-1)
    bits[:, 2] = state.in_forget  # bit 2 is D_f's alone: what moves there moves for D_f's sake
    eights = nn.functional.pad(bits, (0, -bits.shape[1] % 8)).view(len(bits), -1, 8)
    packed = (eights * 2 ** torch.arange(8)).sum(dim=2).to(torch.uint8)
    state.masks = etd.MaskTable(packed, bits.shape[1])
    assert torch.equal(state.masks[:], bits)
    state.known = rem.known_reference(state) if state.known is not None else None
    extra, base = snapshot(theta_o2(state.expanded)), etd.drop(state.expanded)
    rem.redirect(state)
    for name, p, dim, start in channel_slices(state.expanded):
        for j in (0, 1):
            assert torch.equal(p.select(dim, start + j), extra[name].select(dim, start + j)), (name, j)
    head = state.expanded.layers()["head"].to_base
    assert not torch.equal(head[:, 2], extra["head.to_base"][:, 2])
    assert not torch.equal(etd.drop(state.expanded).conv1.weight, base.conv1.weight)
    norm = state.expanded.layers()["norm1"]
    assert not torch.equal(norm.running_mean, extra["norm1.running_mean"])


@given(seed=seeds, step32=st.booleans())
def test_step_3_moves_the_channels_of_the_forget_row(seed, step32):
    """F7: step 3 moves theta_o1 and theta_o2, D_f's channels among it, and nothing that is off for all."""
    prop_f7(rem, seed, step32)


def prop_f8(rem, seed, augment=False, epochs=2):
    """The reference is what step 1 made, bit for bit, in eval mode and without gradients, over the whole algorithm."""
    state = make_state(rem, seed, augment=augment)
    made = copy.deepcopy(state.expanded)
    assert_same_state(state.reference, made)
    reference, watched = state.reference, []
    def watch(m, args):
        watched.append((torch.is_grad_enabled(), any(k.training for k in m.modules())))

    state.reference.register_forward_pre_hook(watch)
    for _ in range(epochs):
        passes(rem, state)
        rem.redirect(state)
        assert state.reference is reference
        assert_same_state(reference, made)
        assert not any(m.training for m in reference.modules())
        assert not any(p.requires_grad or p.grad is not None for p in reference.parameters())
    assert not any(grad or training for grad, training in watched) and bool(watched) == augment
    assert not {p.data_ptr() for p in reference.parameters()} & {p.data_ptr() for p in state.expanded.parameters()}
    moved = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert not moved & {id(p) for p in reference.parameters()}
    if state.known is not None:  # the stored values are the reference's, under each example's mask and base-only
        images = next(state.data.batches(size=len(state.data)))[1]
        for known, mask in zip(state.known, (state.masks[:], None), strict=True):
            assert not known.requires_grad
            again = F.cross_entropy(run(made.eval(), images, mask), state.data.labels, reduction="none")
            assert_close(known, again, 1e-5)  # float32


@given(seed=seeds, augment=st.booleans())
def test_reference_never_moves(seed, augment):
    """F8: the reference is bitwise constant, has no gradients and stays in eval mode, with stored values or without."""
    prop_f8(rem, seed, augment)


def test_gradients_do_not_reach_the_reference():
    """F8: no gradient flows into the reference cross-entropies that a step uses."""
    for augment in (False, True):
        state = make_state(rem, 3, augment=augment)
        indices, x, y = next(rem.loader(state, None))
        assert not any(ce.requires_grad for ce in rem.reference_ce(state, indices, x, y, full=True))


# --- Examples stay apart ----------------------------------------------------------------------------------------------


def prop_f9(etd, seed, batch=6, norm=True):
    """Permuting or splitting a batch with its rows permutes or splits the outputs (eval mode)."""
    expanded = fresh(etd, seed, norm).eval()
    x, mask, g = draw(seed, batch, 1, 8, 8, dtype=torch.float64), rows(seed, expanded, batch), gen(seed)
    order, cut = torch.randperm(batch, generator=g), int(torch.randint(1, batch, (), generator=g))
    for args in ((mask,), ()):
        pick = lambda rows: [a[rows] for a in args]  # noqa: E731
        whole = run(expanded, x, *args)
        assert_close(run(expanded, x[order], *pick(order)), whole[order])
        parts = [run(expanded, x[part], *pick(part)) for part in (slice(0, cut), slice(cut, None))]
        assert_close(torch.cat(parts), whole)


@given(seed=seeds, batch=st.integers(2, 6), norm=st.booleans())
def test_batches_can_be_permuted_and_split(seed, batch, norm):
    """F9: permutation equivariance and split invariance in eval mode, masked and base-only."""
    prop_f9(etd, seed, batch, norm)


def prop_f10(etd, seed, batch=4):
    """Editing one example's image or row leaves every other output; padding the batch leaves all of them."""
    expanded = fresh(etd, seed).eval()
    x, mask = draw(seed, batch, 1, 8, 8, dtype=torch.float64), rows(seed, expanded, batch)
    whole, j = run(expanded, x, mask), seed % batch
    others = torch.arange(batch) != j
    edited, flipped = x.clone(), mask.clone()
    edited[j], flipped[j] = -3 * x[j] + 1, ~mask[j]
    assert_close(run(expanded, edited, mask)[others], whole[others])
    assert_close(run(expanded, x, flipped)[others], whole[others])
    assert not torch.allclose(run(expanded, edited, mask)[j], whole[j])
    more, bits = draw(seed + 1, 3, 1, 8, 8, dtype=torch.float64), rows(seed + 1, expanded, 3)
    assert_close(run(expanded, torch.cat([more, x]), torch.cat([bits, mask]))[3:], whole)
    assert_close(run(expanded, torch.cat([x, more]), torch.cat([mask, bits]))[:batch], whole)


@given(seed=seeds, batch=st.integers(1, 5))
def test_examples_do_not_meet(seed, batch):
    """F10, F12: in eval mode an example's output depends on its own image and row alone."""
    prop_f10(etd, seed, batch)


@given(seed=seeds)
def test_a_row_changes_its_own_output(seed):
    """F10: with theta_o2 at work, all bits on and all bits off give different outputs."""
    expanded = fresh(etd, seed).eval()
    x = draw(seed, 2, 1, 8, 8, dtype=torch.float64)
    on, off = (run(expanded, x, torch.full((2, expanded.width), fill)) for fill in (True, False))
    assert (on - off).abs().amax(dim=1).min() > 1e-9


@given(seed=seeds, fails=st.booleans())
def test_evaluation_restores_every_mode(seed, fails):
    """F11: accuracy, predict and eval_mode put every module back in the mode it had, also after an exception."""
    expanded, data, g = expand.expand(small_net(seed), IMAGE), make_data(seed), gen(seed)
    modes = [bool(torch.randint(2, (), generator=g)) for _ in expanded.modules()]
    for module, mode in zip(expanded.modules(), modes, strict=True):
        module.training = mode
    if fails:
        with pytest.raises(ZeroDivisionError), metrics.eval_mode(expanded):
            assert not any(m.training for m in expanded.modules())
            raise ZeroDivisionError
    else:
        metrics.accuracy(expanded, data)
        metrics.predict(expanded, data, masks=torch.ones(len(data), expanded.width, dtype=torch.bool))
    assert [m.training for m in expanded.modules()] == modes


@pytest.mark.parametrize("mode, step3, training", [
    ("auto", True, False), ("running", True, False), ("batch", True, True),
    ("auto", False, True), ("running", False, False), ("batch", False, True)])
def test_mode_of_step_2(mode, step3, training):
    """F11, A20: accuracy is in eval mode; the passes run in training mode where asked, or where no step 3 repairs
    (NPO)."""
    state, modes = make_state(rem, 0, forget_norm=mode, step31=step3, step32=step3), []
    state.expanded.register_forward_pre_hook(lambda m, args: modes.append((torch.is_grad_enabled(), m.training)))
    passes(rem, state)
    assert set(modes) == {(True, training)}
    modes.clear()
    metrics.accuracy(state.expanded, state.data)
    assert set(modes) == {(False, False)} and state.expanded.training == training


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flow_on_cuda(dtype):
    """F1, F2, X1: on the GPU too base-only passes leave theta_o2, and channels off in every row get no gradient."""
    net = randomise(build("resnet9", 0.1, seed=0), 0).to("cuda", dtype, memory_format=torch.channels_last)
    expanded = expand.expand(net, torch.zeros(2, 3, 32, 32)).train()
    x = draw(0, 8, 3, 32, 32, dtype=dtype).cuda().to(memory_format=torch.channels_last)
    expanded(x).float().square().mean().backward()
    assert all(p.grad is None for p in extra_parameters(expanded).values())
    mask = torch.zeros(8, expanded.width, dtype=torch.bool, device="cuda")
    mask[:, ::2] = True
    expanded(x, mask).float().square().mean().backward()
    for name, layer in expanded.layers().items():
        if isinstance(layer, ExpandedBatchNorm):
            assert not layer.extra_weight.grad[1::2].any() and layer.extra_weight.grad[::2].any(), name
        elif layer.extra_out:
            assert not layer.to_extra.grad[1::2].any(), name


def test_oracle_rows_are_those_of_the_state():
    """F7, M7: the rows that the step uses are the oracle's, so the properties above speak of D_f's real channel."""
    state = make_state(rem, 4)
    row = torch.tensor(oracles.mask_row(4, None, state.expanded.width, 0.5))
    assert all(torch.equal(state.masks[i], row) for i in state.forget.tolist())
