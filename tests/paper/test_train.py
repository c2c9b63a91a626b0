"""A.3: the one training loop and its schedule, of original models, retraining, fine-tuning and ETD.

    N2   Table 3 and its caption    the rate ends at one fifth of its peak, 0.005 of 0.025; Goel et al.'s warm-up
    L16                             the loss is cross-entropy, or one's own, in whatever mode and precision
    A9                              the generator decides alone, dropout included
    A3, A17                         a loss that is no number, and a network that cannot be trained, are errors

Each test calls `train.fit` as a user would; the rates of its updates are read off a weight whose gradient is always 1.
That it is plain SGD, momentum over all epochs, is what retraining and fine-tuning show in test_rivals_twins.py.
"""

import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import train
from engine.batches import count_batches
from engine.checks import NonFiniteLoss
from experiment.data import batches
from experiment.settings import Config
from helpers import assert_same_state, gen, make_data, randomise, seeds, small_net, tiny

few = settings(max_examples=max(2, settings().max_examples * 2 // 5))  # several trainings an example


# --- The schedule -----------------------------------------------------------------------------------------------------

@given(st.integers(2, 20000))
@example(2)
@example(149)
@example(150)
@example(3920)
def test_n2_rate(steps):
    """N2: up in equal parts over the first 1 % of the steps, one at least, then down in equal parts to one fifth at the
    last; never 0. A constant rate is 1 throughout."""
    warm = max(1, round(0.01 * steps))
    assert abs(train.rate(steps - 1, steps) - 0.2) < 1e-12 and train.rate(warm - 1, steps) == 1
    asked = range(steps) if steps < 2000 else range(0, steps, 97)
    found = [train.rate(step, steps) for step in asked]
    expected = [(step + 1) / warm if step < warm else 1 - 0.8 * (step + 1 - warm) / (steps - warm) for step in asked]
    assert min(found) > 0 and found == pytest.approx(expected, abs=1e-12)
    assert {train.rate(step, steps, "constant") for step in asked} == {1}


def test_n2_the_papers_numbers():
    """N2, R8: Table 3's 40 epochs of 50,000 images in batches of 512 start at a 39th of 0.025 and end at 0.005, the
    rate of unlearning; a training of one step runs at the peak rate."""
    steps = 40 * count_batches(50000, Config.batch)
    assert (steps, Config.lr, Config.unlearn_lr, Config.epochs) == (3920, 0.025, 0.005, 40)
    assert Config.lr * train.rate(steps - 1, steps) == pytest.approx(Config.unlearn_lr, rel=1e-12)
    assert train.rate(0, steps) == 1 / 39 and train.rate(0, 1) == 1


class Weight(nn.Module):
    """One weight, which `fit` lowers by the rate of each update where its gradient is 1."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros((), dtype=torch.float64))


@given(st.integers(0, 3), st.integers(1, 9), st.sampled_from([2, 4, 64]), st.sampled_from(["linear", "constant", None]))
def test_n2_fit(epochs, size, batch, schedule):
    """N2: fit steps through one schedule over all its epochs, at its own `lr` times the factor; whether it is given its
    own `epochs` and `lr` or has the settings', and linear unless told otherwise."""
    data, index, steps = make_data(0), torch.arange(size), epochs * count_batches(size, batch)
    plain = tiny(batch=batch, momentum=0.0, weight_decay=0.0, epochs=7, lr=0.3)
    more = {} if schedule is None else {"schedule": schedule}
    for config, own in ((plain, dict(epochs=epochs, lr=0.5)), (replace(plain, epochs=epochs, lr=0.5), {})):
        model, seen = Weight(), []

        def loss(rows, x, y, model=model, seen=seen):
            seen.append(model.w.item())
            return model.w * 1

        train.fit(model, data, index, config, gen(0), loss=loss, **own, **more)
        seen.append(model.w.item())
        rates = [a - b for a, b in zip(seen, seen[1:], strict=False)]
        expected = [0.5 * train.rate(step, steps, schedule or "linear") for step in range(steps)]
        assert rates == pytest.approx(expected, abs=1e-12)


# --- The loop ---------------------------------------------------------------------------------------------------------

@given(seeds, st.sampled_from([2, 5, 64]), st.booleans())
def test_l16_the_loss_of_ones_own(seed, batch, part):
    """L16: a loss that is given takes the place of cross-entropy, as in ETD training: it gets dataset indices on the
    CPU with their own images and labels, each once an epoch, in another order each time."""
    data = make_data(seed)
    data.images.copy_(torch.arange(12, dtype=torch.uint8).view(-1, 1, 1, 1).expand_as(data.images))
    index, seen, model = torch.tensor([7, 2, 9, 4, 11, 0, 1]) if part else torch.arange(12), [], Weight()

    def loss(rows, x, y):
        assert rows.device.type == "cpu" and torch.equal(y, data.labels[rows]) and model.training
        assert torch.equal((255 * (x[:, 0, 0, 0] * 0.25 + 0.5)).round().long(), rows)
        seen.extend(rows.tolist())
        return model.w * 1

    train.fit(model.eval(), data, index, tiny(batch=batch), gen(seed), epochs=3, loss=loss)
    epochs = [seen[k:k + len(index)] for k in range(0, len(seen), len(index))]
    assert [sorted(epoch) for epoch in epochs] == [sorted(index.tolist())] * 3
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]


def test_l16_images_are_augmented_anew():
    """L16: each epoch goes over the images as the data augment them for it, drawn from the generator."""
    data, model, seen, generator = make_data(0, pad=2, flip=True), Weight(), [], gen(3)

    def loss(rows, x, y):
        seen.append(x.clone())
        return model.w * 1

    train.fit(model, data, None, tiny(batch=5, epochs=2), gen(3), loss=loss)
    wanted = [x for _ in range(2) for _, x, _ in data.batches(None, 5, generator, augment=True, dtype=torch.float64)]
    assert len(seen) == len(wanted) == 6 and all(map(torch.equal, seen, wanted))
    plain = [x for _, x, _ in data.batches(None, 5, gen(3), dtype=torch.float64)]
    assert not any(map(torch.equal, seen, plain))


def test_l16_whatever_the_mode():
    """L16: a network that comes in eval mode is trained as one in training mode, and left in training mode."""
    nets = [small_net(0).train(mode) for mode in (True, False)]
    for net in nets:
        train.fit(net, make_data(0), None, tiny(), gen(0))
    assert_same_state(*nets)
    assert all(module.training for net in nets for module in net.modules())


def test_l16_precision():
    """L16: the precision of the settings is that of the passes; float64 stays float64 under bf16."""
    for dtype, alike in ((torch.float32, False), (torch.float64, True)):
        nets = [small_net(0, dtype=dtype) for _ in range(2)]
        for net, precision in zip(nets, ("float32", "bf16"), strict=True):
            train.fit(net, make_data(0), None, tiny(precision=precision), gen(0))
        assert torch.equal(nets[0].conv1.weight, nets[1].conv1.weight) == alike
        assert all(p.dtype == dtype for p in nets[1].parameters())


# --- Random numbers and logs ------------------------------------------------------------------------------------------

def dropping(p=0.5):
    """A network with dropout."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.CELU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
                        nn.Dropout(p), nn.Linear(4, 4))
    return randomise(net, 0)


@few
@given(seeds, st.sampled_from([2, 5, 64]), st.sampled_from(["sgd", "adam"]), st.booleans())
def test_a9_fit(seed, batch, optimizer, dropout):
    """A9, M6: fit is deterministic in its generator, with dropout too; the global random state has no part and stays;
    another generator gives another network."""
    data, nets, logs = make_data(seed, pad=1, flip=True), [], []
    for world, generator in ((0, 1), (1, 1), (0, 2)):
        net, seen = dropping() if dropout else small_net(seed), []
        before = torch.manual_seed(world).get_state()
        train.fit(net, data, None, tiny(batch=batch, optimizer=optimizer, epochs=2), gen(generator),
                  log=lambda epoch, epochs, model, loss, seen=seen: seen.append((epoch, epochs, loss)))
        assert torch.equal(torch.get_rng_state(), before)
        nets.append(net)
        logs.append(seen)
    assert_same_state(nets[0], nets[1])
    assert logs[0] == logs[1] and [(a, b) for a, b, _ in logs[0]] == [(1, 2), (2, 2)]
    assert any(not torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[2].parameters(), strict=True))


def test_a9_logs_the_mean_loss_of_each_epoch():
    """A9, A10: at rate 0, which is not the default rate, every epoch logs the loss of the network that came in."""
    data, net, seen = make_data(0), small_net(0, norm=False), []
    _, x, y = next(batches(data))
    before = F.cross_entropy(net(x), y).item()
    train.fit(net, data, None, tiny(batch=4, epochs=3), gen(0), lr=0.0,
              log=lambda epoch, epochs, model, loss: seen.append((model is net, loss)))
    assert all(same for same, _ in seen)
    assert [loss for _, loss in seen] == pytest.approx([before] * 3, rel=1e-5)


def test_a10_no_epoch():
    """A10: zero epochs change nothing but the mode and log nothing; they are not taken for the settings' own."""
    net = small_net(0).eval()
    train.fit(net, make_data(0), None, tiny(epochs=2), gen(0), epochs=0, log=lambda *args, **values: pytest.fail("log"))
    assert_same_state(net, small_net(0))


# --- Errors -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a3_the_epoch_is_named(bad):
    """A3: one wild batch in the second epoch is told at its end, with its number; the first was logged."""
    model, calls, logged = Weight(), [], []

    def loss(rows, x, y):
        calls.append(rows)
        return model.w * (bad if len(calls) == 5 else 1)

    with pytest.raises(NonFiniteLoss, match="training epoch 2"), warnings.catch_warnings():
        train.fit(model, make_data(0), None, tiny(batch=4, epochs=3), gen(0), loss=loss,
                  log=lambda epoch, *args, **values: logged.append(epoch))
    assert logged == [1] and len(calls) == 6


def test_a17_frozen_networks_are_refused():
    """A17: a network without a trainable parameter is a ValueError; a frozen parameter stays, others are trained."""
    net = small_net(0).requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter of the network is frozen"):
        train.fit(net, make_data(0), None, tiny(), gen(0))
    net.head.weight.requires_grad_(True)
    train.fit(net, make_data(0), None, tiny(), gen(0))
    first = dict(small_net(0).named_parameters())
    assert [name for name, p in net.named_parameters() if not torch.equal(p, first[name])] == ["head.weight"]
