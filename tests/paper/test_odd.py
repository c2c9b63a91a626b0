"""Networks and data out of the ordinary: skipped blocks, kept activations, buffers used again, heads of training."""

import copy
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import baselines
import train
from experiment.data import Data
from engine.modes import copy_of
from expand import expand
from helpers import assert_close, assert_same_state, gen, make_data, randomise, small_net, tiny
from metrics import predict
from rem import rem
from engine.features import features
from repair.suspects import logits, suspects

pytestmark = pytest.mark.filterwarnings("ignore:Acc")  # step 2 may give up

FORGET = torch.tensor([2, 5, 7])
IMAGE = torch.zeros(2, 1, 8, 8)
CONFIG = tiny(gamma=1.0, unlearn_epochs=2)  # step 2 has nothing to do


class Around(nn.Module):
    """small_net, of which a test changes one thing."""

    def __init__(self, norm=True):
        super().__init__()
        self.net = small_net(0, norm=norm)

    def forward(self, x):
        return self.net(x)


# --- Networks ---------------------------------------------------------------------------------------------------------


class Skipping(nn.Module):
    """conv - blocks that training skips at random - pool - Linear."""

    def __init__(self, share, blocks=3):
        super().__init__()
        self.share, self.stem, self.head = share, nn.Conv2d(1, 3, 3), nn.Linear(3, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Tanh(), nn.Conv2d(3, 3, 1))
                                    for _ in range(blocks))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            if not self.training or torch.rand(()) >= self.share:
                x = x + block(x)
        return self.head(x.amax(dim=(2, 3)))


def test_a_block_that_one_batch_skips_is_no_obstacle():
    """A21: stochastic depth that leaves a block out of the first batch, and brings it in later, is redirected through;
    a block that no batch of the first epoch runs is named."""
    skipped = 0
    for seed in range(6):
        generator, spied = gen(seed), []
        net = randomise(Skipping(0.4), 0)
        hook = lambda module, inputs: spied.append(module.training)  # noqa: E731
        net.blocks[0].register_forward_pre_hook(hook)
        out = rem(net, make_data(0, n=40), FORGET, CONFIG, generator)
        skipped += spied.count(True) < 2 * 2 * 10  # two passes a batch, ten batches an epoch
        assert not torch.equal(out.stem.weight, net.stem.weight)
    assert skipped == 6
    with pytest.raises(TypeError, match="cannot redirect through 'blocks.0.0'"):
        rem(randomise(Skipping(1.0), 0), make_data(0), FORGET, CONFIG, gen(0))


class Keeping(Around):
    """It keeps its last activation, with the history that torch cannot copy."""

    def forward(self, x):
        self.seen = self.net(x)
        return self.seen


@pytest.mark.parametrize("stop", ["max", "repaired"])
def test_a_kept_activation_is_let_go_of(stop):
    """D1, X1: a network that keeps an activation is expanded, unlearned and dropped as one that keeps none."""
    data, forget, net = make_data(0), torch.arange(9), Keeping(norm=False)
    net(next(data.batches(FORGET))[1])  # one with a history, before anything starts
    kept, plain = (rem(model, data, forget, tiny(stop=stop), gen(0)) for model in (net, Around(norm=False)))
    assert_same_state(kept, plain)
    assert_same_state(*(train.train_etd(model, data, tiny(), gen(0)).net for model in (net, Around(norm=False))))
    tuned = (baselines.fine_tune(model, data, FORGET, tiny(), gen(0)) for model in (net, Around(norm=False)))
    assert_same_state(*tuned)
    assert_same_state(*(baselines.fresh(model, tiny()) for model in (net, Around(norm=False))))
    assert net.seen.grad_fn is not None and copy_of(net).seen.grad_fn is None


class Extras(Around):
    """A buffer that holds -inf, as an attention's mask does, and a state that is no tensor."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.full((4, 4), -torch.inf))

    def get_extra_state(self): return {"version": 3}

    def set_extra_state(self, state): assert state == {"version": 3}


@pytest.mark.parametrize("stop", ["max", "repaired"])
def test_what_a_network_had_from_the_first_is_no_ruin(stop):
    """-inf in a buffer that no update moves, and extra state, come through; a NaN there does not."""
    net, data = Extras(), make_data(0, n=40)
    tuned = baselines.fine_tune(net, data, FORGET, tiny(), gen(0))
    for out in (rem(net, data, FORGET, tiny(stop=stop), gen(0)), tuned):
        assert torch.equal(out.mask, net.mask) and out.get_extra_state() == {"version": 3}
        assert not torch.equal(out.net.head.weight, net.net.head.weight)
    net.mask[0, 0] = torch.nan
    with pytest.raises(ArithmeticError, match="mask is not finite"):
        baselines.fine_tune(net, data, FORGET, tiny(), gen(0))


class Headed(Around):
    """With an auxiliary head, which runs in training alone."""

    def __init__(self, how):
        super().__init__()
        self.how, self.aux = how, nn.Linear(3, 4)

    def forward(self, x):
        if not self.training:
            return self.net(x)
        if self.how == "tuple":
            return namedtuple("Outputs", "logits aux")(self.net(x), self.net(x))
        return self.net(x) + self.aux(self.net.conv1(x).mean(dim=(2, 3)))


def test_heads_of_training_are_told_before_any_work():
    """X10: another output in training is a ValueError of `expand`, a layer that then gets extra channels it did not
    grow for a TypeError that names it; training such a network says what it gives."""
    with pytest.raises(ValueError, match="in training the network gives a Outputs .*aux_logits=False"):
        expand(Headed("tuple"), IMAGE)
    with pytest.raises(TypeError, match="cannot expand 'aux'"):
        expand(Headed("sum"), IMAGE)
    with pytest.raises(TypeError, match="gives a Outputs, not logits; switch auxiliary heads off"):
        train.fit(Headed("tuple"), make_data(0), None, tiny(), gen(0))
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Dropout(), nn.Flatten(), nn.Linear(108, 4))
    state = torch.random.get_rng_state()
    expand(net, IMAGE)
    assert torch.equal(torch.random.get_rng_state(), state)


class Lazy(Around):
    """It makes a tensor in its first pass and uses it in all others."""

    grid = None

    def forward(self, x):
        if self.grid is None:
            self.grid = x.new_ones(1, 4)
        return self.net(x) * self.grid


def test_predictions_leave_nothing_that_gradients_refuse():
    """A network that keeps what it made while predicting can be differentiated afterwards."""
    net, data = Lazy(), make_data(0)
    predict(net, data)
    assert not net.grid.is_inference()
    net(next(data.batches(FORGET))[1]).sum().backward()
    baselines.ascent(Lazy(), data, FORGET, tiny(gamma=0.0), gen(0))


def test_importances_of_half_precision():
    """Squares of small gradients are summed in float32 at least: in float16 they would vanish."""
    data, config = make_data(0), tiny(batch=2)

    def loss(z, y):
        return 1e-3 * F.cross_entropy(z, y)

    half, single = (baselines.importance(small_net(0, dtype=dtype), data, None, config, loss, torch.square)
                    for dtype in (torch.float16, torch.float32))
    for a, b in zip(half, single, strict=True):
        assert a.dtype == torch.float32
        assert (a.sum() - b.sum()).abs() <= 0.05 * b.sum() > 0


# --- Data -------------------------------------------------------------------------------------------------------------


class Source:
    """A plain data source; its batches are new tensors, or live in the same memory, as some fast loaders have it."""

    def __init__(self, data: Data, reuses: bool):
        self.data, self.reuses = data, reuses

    def __len__(self):
        return len(self.data)

    def batches(self, index=None, size=512, generator=None, augment=False, dtype=torch.float32):
        index = torch.arange(len(self)) if index is None else index
        rows = index if generator is None else index[torch.randperm(len(index), generator=generator)]
        held = None
        for part in rows.split(size):
            batch = next(self.data.batches(part, size=size, dtype=dtype))
            held = [tensor.clone() for tensor in batch] if held is None or not self.reuses else held
            for place, tensor in zip(held, batch, strict=True):
                place[: len(part)] = tensor
            yield tuple(place[: len(part)] for place in held)


@pytest.mark.parametrize("n", [12, 13])
@pytest.mark.parametrize("stop", ["max", "repaired"])
def test_batches_may_be_used_again(n, stop):
    """A7: a source that gives every batch in the same memory trains the same network, also with a last batch of one."""
    data, net = make_data(0, n=n), small_net(0)
    config = tiny(gamma=0.3, stop=stop)
    fresh, used = (rem(net, Source(data, reuses), FORGET, config, gen(0)) for reuses in (False, True))
    assert_same_state(fresh, used)
    assert not torch.equal(fresh.head.weight, net.head.weight)


class Turned:
    """The examples that are asked for, in another order, or half of them."""

    def __init__(self, data, share=1):
        self.data, self.share = data, share

    def __len__(self):
        return len(self.data)

    def batches(self, index=None, **more):
        index = torch.arange(len(self)) if index is None else index
        yield from self.data.batches(index.flip(0)[: len(index) // self.share], **more)


def test_suspects_belong_to_the_index_that_the_data_gives():
    """S10, S13: scores and features stand at the index that comes with the image, whatever the order; images that are
    left out are refused, not numbered anew."""
    data, net = make_data(0, n=300), small_net(0)
    for a, b in zip(suspects(net, data, FORGET), suspects(net, Turned(data), FORGET), strict=True):
        assert_close(a, b, 1e-6)
    assert_close(features(net, data), features(net, Turned(data)), 1e-6)
    some = torch.tensor([7, 250, 3])
    assert_close(features(net, data)[some], features(net, Turned(data), some), 1e-6)
    assert torch.equal(logits(net, data)[1], data.labels)
    with pytest.raises(ValueError, match="must yield all the examples"):
        suspects(net, Turned(data, 2), FORGET)


@pytest.mark.parametrize("size", [(), (5,), (5, 6)])
def test_features_of_a_linear_layer_are_its_last_axis(size):
    """S13: what a Linear is given is averaged over all axes between the first and the last."""
    given = torch.randn(12, *size, 3, generator=gen(0))
    head = nn.Linear(3, 4)
    net = nn.Sequential(nn.Flatten(), nn.Identity())
    net.forward = lambda x: head(given[: len(x)]).flatten(1)
    net.add_module("head", head)
    expected = given.double().flatten(1, -2).mean(dim=1) if size else given.double()
    assert_close(features(copy.copy(net), make_data(0)), expected, 1e-6)
