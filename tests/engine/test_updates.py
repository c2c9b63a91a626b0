"""engine/updates.py: one update, and one pass of updates.

That a loss which is no number ends it, and what no gradient has reached, is held through REM in tests/paper.
"""

from collections import namedtuple

import pytest
import torch

from engine.scores import accuracy_of
from engine.updates import logits_of, one_pass
from helpers import gen, small_net
from states import make_state


def test_precision_on_the_cpu():
    """L11: on the CPU "auto" is float32, bit for bit; "bf16" computes in bf16; the logits are float32 either way."""
    net, x = small_net(0).eval(), torch.randn(5, 1, 8, 8, generator=gen(0))
    plain, auto, bf16 = net(x), logits_of(net, x, "auto"), logits_of(net, x, "bf16")
    assert torch.equal(auto, plain) and torch.equal(logits_of(net, x, "float32"), plain)
    assert bf16.dtype == auto.dtype == torch.float32
    assert 0 < (bf16 - plain).abs().max() < 0.05 and torch.equal(bf16, bf16.bfloat16().float())
    half = small_net(0, dtype=torch.float16).eval()  # autocast to bf16 and weights of float16 do not go together
    assert torch.equal(logits_of(half, x.half(), "bf16"), half(x.half()).float())
    double = small_net(0, dtype=torch.float64).eval()
    assert torch.equal(logits_of(double, x.double(), "float32"), double(x.double()))


@pytest.mark.gpu
@pytest.mark.parametrize("precision, rounds", [("auto", True), ("bf16", True), ("float32", False)])
def test_precision_on_the_gpu(precision, rounds):
    """L11: on the GPU "auto" computes in bf16."""
    net, x = small_net(0).eval().cuda(), torch.randn(5, 1, 8, 8, generator=gen(0)).cuda()
    found = logits_of(net, x, precision)
    assert found.dtype == torch.float32 and torch.equal(found, found.bfloat16().float()) == rounds


def test_what_is_no_logits_is_told():
    """X10: a network that gives more than logits is a TypeError that says what it gives."""
    net = small_net(0)
    net.register_forward_hook(lambda module, args, out: namedtuple("Outputs", "logits aux")(out, out))
    with pytest.raises(TypeError, match="gives a Outputs, not logits; switch auxiliary heads off"):
        logits_of(net, torch.zeros(2, 1, 8, 8), "float32")


@pytest.mark.parametrize("outer", [True, False])
def test_bf16_is_of_the_weights_as_they_are(outer):
    """A20: inside another autocast region, too, which would keep the casts of weights until it ends."""
    net, x = small_net(0), torch.rand(2, 1, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=outer):
        before = logits_of(net, x, "bf16")
        with torch.no_grad():
            net.head.weight.mul_(2)
        assert torch.equal(logits_of(net, x, "bf16"), 2 * before) and before.any()


@pytest.mark.parametrize("change, shape", [
    (lambda z: z[:, 0], r"\(2,\)"), (lambda z: z[:, :, None, None], r"\(2, 4, 1, 1\)"), (lambda z: z[:1], r"\(1, 4\)")])
def test_logits_of_another_shape(change, shape):
    """X10: a ValueError that says what it gives, where scores are taken, too."""
    net = small_net(0)
    net.register_forward_hook(lambda module, args, out: change(out))
    with pytest.raises(ValueError, match=f"the network gives {shape} for 2 inputs; logits must be"):
        logits_of(net, torch.zeros(2, 1, 8, 8), "float32")
    with pytest.raises(ValueError, match="logits must be"):
        accuracy_of(make_state(), torch.tensor([1, 2]), net)


def test_the_mean_and_the_steps_of_a_pass():
    """A9: a pass counts its updates and has the mean of their losses, of the weights before each; so has the log."""
    state = make_state()
    weight = state.expanded.layers()["head"].base.weight
    expected = []
    with one_pass(state, "here") as update:
        for _ in range(3):
            loss = weight.square().mean()
            expected.append(float(loss.detach()))
            update(loss)
    assert update.steps == 3 and update.mean == pytest.approx(sum(expected) / 3, rel=1e-5)
    assert state.record == {"loss": update.mean}
    assert expected[0] > expected[1] > expected[2]
