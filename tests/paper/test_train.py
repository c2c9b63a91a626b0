"""A.3: the one training loop and its schedule, of original models, retraining, fine-tuning and ETD.

    N2   Table 3 and its caption    the rate ends at one fifth of its peak, 0.005 of 0.025; Goel et al.'s warm-up
    L16                             in whatever mode and precision
    A9, A10                         what is logged of each epoch, and that none changes nothing
    A3                              a loss that is no number is an error

That it is plain SGD on augmented images, one schedule and one momentum over all epochs, with cross-entropy or one's own
loss, is what retraining, fine-tuning and ETD show in test_rivals_twins.py; that the generator decides alone, dropout
included, is in contract.py.
"""

import warnings

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import train
from engine.batches import count_batches
from engine.checks import NonFiniteLoss
from experiment.data import batches
from experiment.settings import Config
from helpers import assert_same_state, gen, make_data, small_net, tiny


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


# --- The loop ---------------------------------------------------------------------------------------------------------

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
