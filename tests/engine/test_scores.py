"""engine/scores.py: cross-entropy and accuracy of the network that Algorithm 1 carries."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import oracles_loss as oracle
from engine.checks import NonFiniteLoss
from engine.modes import modes_of
from engine.scores import accuracy_of, cross_entropy, right_on
from etd import drop, mask_rows
from helpers import assert_close, gen, make_data, run, seeds, small_net
from states import make_state


@given(seeds, st.integers(1, 30), st.sampled_from([2, 3, 64]))
def test_who_is_right(seed, size, batch):
    """V1, V2, A5, F11: an example of `index`, in its order, is right where its label as given is the first class of the
    largest logit of theta_o1 alone, or of another network, in evaluation mode, trigger on and without augmentation;
    accuracy is their share, and small last batches count for what they hold. Modes and generator stay."""
    data, other = make_data(seed, n=31, pad=2, flip=True, trigger=True), small_net(seed + 1)
    state, index = make_state(seed, data=data, batch=batch), torch.randperm(31, generator=gen(seed))[:size]
    state.expanded.train().net.norm1.eval()  # a mixed mode, to be put back
    modes, drawn = modes_of(state.expanded), state.generator.get_state()
    x = next(data.batches(index))[1]
    for net, plain in ((None, drop(state.expanded)), (other, other)):
        seen, asked = [], state.expanded if net is None else net

        def spy(module, args, kwargs):
            assert not any(modes_of(asked)) and not torch.is_grad_enabled() and not kwargs
            seen.append(*args)

        hook = asked.register_forward_pre_hook(spy, with_kwargs=True)
        right = right_on(state, index, net)
        assert torch.equal(torch.cat(seen), x) and len(seen[0]) >= min(size, 4 * batch)  # more than training takes
        hook.remove()
        expected = oracle.predictions(run(plain.eval(), x))
        assert right.dtype == torch.bool and right.tolist() == [a == b for a, b in zip(expected, data.labels[index])]
        assert accuracy_of(state, index, net) == oracle.accuracy(expected, data.labels[index])
    assert modes_of(state.expanded) == modes and torch.equal(state.generator.get_state(), drawn)


@pytest.mark.parametrize("where", [0, 2, 4])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_one_wild_logit(where, value):
    """A3, V8: one logit of one example in any one batch is enough."""
    data = make_data(0)
    state, wild = make_state(data=data, forget=torch.arange(5), batch=1), next(data.batches(torch.tensor([where])))[1]

    def spoil(net, args, out):
        hit = (args[0] == wild).flatten(1).all(dim=1)
        return torch.where(hit[:, None] & (torch.arange(4) == 3), value, out)

    state.expanded.register_forward_hook(spoil)
    with pytest.raises(NonFiniteLoss, match="logits of 1 examples are not finite"):
        accuracy_of(state, state.forget)


@pytest.mark.parametrize("dtype, precision", [(torch.float64, "bf16"), (torch.float32, "float32"),
                                              (torch.bfloat16, "float32")])
def test_cross_entropy(dtype, precision):
    """L16, L11: -log p of the label for each example, of theta_o1 alone or under masks, in float32 at least."""
    data = make_data(0)
    state = make_state(data=data, net=small_net(0, dtype=dtype), precision=precision)
    state.expanded.eval()
    rows, x, y = next(data.batches(dtype=dtype))
    for mask in (None, mask_rows(state.masks, rows)):
        found = cross_entropy(state, x, y, mask)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits = run(state.expanded, x, *([] if mask is None else [mask]))
        assert found.shape == (12,) and found.dtype == torch.promote_types(dtype, torch.float32)
        assert_close(found, F.cross_entropy(logits.to(found.dtype), y, reduction="none"), 1e-6)
