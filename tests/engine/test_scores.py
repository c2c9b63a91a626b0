"""engine/scores.py: accuracy of the network that Algorithm 1 carries; its cross-entropy is in paper/test_eq2.py."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracles_loss as oracle
from engine.checks import NonFiniteLoss
from engine.modes import modes_of
from engine.scores import accuracy_of, right_on
from etd import drop
from helpers import gen, make_data, run, seeds, small_net
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
