"""engine/batches.py: what REM asks of a data source, and batches of at least two."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from engine.batches import batches_of, count_batches
from engine.modes import refresh_batchnorm
from helpers import assert_close, assert_same_state, gen, make_data, seeds, small_net
from rem import rem
from rem_plus import rem_plus
from states import SMALL_PLUS, Loose, make_state, small, unlearn

PLUS = dict(method=rem_plus, base=SMALL_PLUS)


@given(seeds, st.integers(1, 40), st.integers(1, 12))
@example(0, 41, 10)
@example(0, 1, 3)
def test_the_number_of_batches(seed, n, size):
    """A7: count_batches is that of a shuffled pass; no batch of several holds one example, unless all do."""
    data, state = make_data(seed, n=n + 1), make_state(seed, n=n + 1, size=1, batch=size)
    parts = [len(rows) for rows, _, _ in data.batches(torch.arange(n), size, gen(seed))]
    assert len(parts) == count_batches(n, size) and sum(parts) == n
    assert 1 not in parts or size == 1 or n == 1
    state.data = Loose(data)  # of one's own: the same sizes
    assert [len(rows) for rows, _, _ in batches_of(state, torch.arange(n))] == parts


@pytest.mark.filterwarnings("ignore:Acc")  # step 2 may give up
@pytest.mark.parametrize("more", [dict(gamma=1.0), dict(gamma=0.3), dict(gamma=1.0, **PLUS),
                                  dict(gamma=0.3, reach=0.5, disbelieved=1.4, **PLUS)])
def test_the_same_weights_from_a_source_of_ones_own(more):
    """A29, A38: a source with 171 rows at batch 10, whose last batch is one example, gives the weights and statistics
    that Data gives: the refresh of BatchNorm merges it too. Its length and its batches are all that is read of it, with
    REM+ too."""
    data = make_data(0, n=171)
    forget = torch.arange(9)  # so that step 3 trains on 163 or 171 examples
    how = dict(forget=forget, batch=10, net=small_net(0, dtype=torch.float64), **more)
    nets = [unlearn(data=source, **how) for source in (data, Loose(data))]
    for a, b in zip(*(net.state_dict().values() for net in nets), strict=True):
        assert_close(a.double(), b.double(), 1e-9)  # Data's reference is computed once, in batches of another size
    for index, passed in ((None, 17), (torch.arange(31), 3)):
        nets = [small_net(0), small_net(0)]
        for net, source in zip(nets, (data, Loose(data)), strict=True):
            refresh_batchnorm(net, source, size=10, index=index)
        assert_same_state(*nets)
        assert nets[1].norm1.num_batches_tracked == passed


class Reusing(Loose):
    """Every batch lives in the memory of the one before, as some fast loaders have it."""

    def batches(self, *given, **more):
        held = None
        for batch in super().batches(*given, **more):
            held = [part.clone() for part in batch] if held is None else held
            for place, part in zip(held, batch, strict=True):
                place[: len(part)] = part
            yield tuple(place[: len(batch[0])] for place in held)


@pytest.mark.filterwarnings("ignore:Acc")  # step 2 may give up
@pytest.mark.parametrize("n", [12, 13])
@pytest.mark.parametrize("how", [{}, PLUS])
def test_batches_may_be_used_again(n, how):
    """A7: a source that gives every batch in the same memory trains the same network, also with a last batch of one."""
    data = make_data(0, n=n)
    nets = [unlearn(data=source(data), gamma=0.3, **how) for source in (Loose, Reusing)]
    assert_same_state(*nets)
    assert not torch.equal(nets[0].head.weight, small_net(0).head.weight)


class Odd(Loose):
    """Data whose batches are not what was asked for."""

    def __init__(self, data, spoil):
        super().__init__(data)
        self.spoil = spoil

    def batches(self, index=None, **more):
        for i, (at, x, y) in enumerate(self.data.batches(index, **more)):
            if self.spoil == "positions":
                yield torch.arange(len(at)), x, y
            elif self.spoil == "short" and i == 0:
                yield at[1:], x[1:], y[1:]
            elif self.spoil == "turned":
                yield at.flip(0), x.flip(0), y.flip(0)
            else:
                yield at, x, y
            if self.spoil == "twice" and i == 0:
                yield at, x, y


@pytest.mark.parametrize("spoil", ["positions", "short", "twice", "turned"])
def test_foreign_batches_must_be_those_asked_for(spoil):
    """A7, M13: batch positions in place of dataset indices, an example left out or given twice, or another order where
    a plain pass is asked for, are refused in words; a shuffled pass may have any order."""
    data = Odd(make_data(0), spoil)
    with pytest.raises(ValueError, match="must yield the indices that are asked for, each once"):
        unlearn(data=data, forget=torch.tensor([2, 5, 7]))
    if spoil == "turned":
        rows = [at for at, _, _ in batches_of(make_state(data=data), torch.tensor([2, 5, 7]))]
        assert torch.cat(rows).sort().values.tolist() == [2, 5, 7]


class Giving:
    """Data whose batches are what a function makes of others'."""

    def __init__(self, make):
        self.data, self.make = make_data(0), make

    def __len__(self):
        return len(self.data)

    def batches(self, *args, **more):
        return (self.make(*batch) for batch in self.data.batches(*args, **more))


@pytest.mark.parametrize("make, error, text", [
    (lambda rows, x, y: (x, y), TypeError, r"yields \(Tensor, Tensor\); it must yield tensors \(index, x, y\)"),
    (lambda rows, x, y: x, TypeError, "yields a Tensor; it must"),
    (lambda rows, x, y: (rows.tolist(), x, y), TypeError, r"yields \(list, Tensor, Tensor\); it must"),
    (lambda rows, x, y: (rows, x, y.int()), ValueError, r"labels of torch.int32 and shape \(2,\) for 2 inputs"),
    (lambda rows, x, y: (rows, x, y[:, None]), ValueError, r"shape \(2, 1\) for 2 inputs.* int64 of shape \(2,\)"),
    (lambda rows, x, y: (rows, x, y[:1]), ValueError, r"shape \(1,\) for 2 inputs and 2 indices"),
    (lambda rows, x, y: (rows[:1], x, y), ValueError, "for 2 inputs and 1 indices"),
    (lambda rows, x, y: (rows, x, y - 100), ValueError, "the label -(99|100|9[0-9]); labels are classes from 0"),
])
def test_what_data_must_give(make, error, text):
    """A16: a batch of something else is refused before anything is expanded or trained, by what was found; so is a
    label of -100, which cross_entropy would pass over in silence."""
    with pytest.raises(error, match=text):
        unlearn(data=Giving(make), forget=torch.tensor([2, 5]))


@pytest.mark.parametrize("model, data, text", [
    (lambda x: x, make_data(0), "model is a function; give the trained torch.nn.Module"),
    (small_net(0).state_dict(), make_data(0), "model is a OrderedDict"),
    (small_net(0), torch.zeros(12, 1, 8, 8), r"data is a Tensor without batches\(\); wrap it"),
    (small_net(0), [(torch.zeros(1, 8, 8), 0)] * 12, r"data is a list without batches\(\)"),
])
def test_what_is_no_model_or_no_data(model, data, text):
    """A16: it is a TypeError that says what was found."""
    with pytest.raises(TypeError, match=text):
        rem(model, data, torch.tensor([2, 5]), small(), gen(0))


def test_a_later_label_is_looked_at_too():
    """A16: not the first batch's alone."""
    data = Giving(lambda rows, x, y: (rows, x, torch.where(rows == 9, -1, y)))
    with pytest.raises(ValueError, match="the label -1; labels are classes from 0"):
        unlearn(data=data, forget=torch.tensor([2, 5]))
