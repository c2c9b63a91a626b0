"""Penultimate features (engine/features.py): what the last layer that runs is given, by dataset index."""

import pytest
import torch
from torch import nn

from engine.features import features
from engine.modes import modes_of, refresh_batchnorm
from engine.streams import forked_rng
from helpers import assert_close, gen, make_data, small_net
from metrics import predict
from models import build
from repair.finish import logits, share_right
from repair.pipeline import look

# --- What a layer is given --------------------------------------------------------------------------------------------


class Dense(nn.Module):
    """A network whose last linear layer is given a row per place, (B H W, 3), or with `axes` (B, H, W, 3)."""

    def __init__(self, axes=False):
        super().__init__()
        self.head, self.conv, self.axes = nn.Linear(3, 4), nn.Conv2d(1, 3, 1), axes  # the last to run is named first

    def forward(self, x):
        rows = self.conv(x).permute(0, 2, 3, 1)
        z = self.head(rows if self.axes else rows.reshape(-1, 3))
        return z.reshape(len(x), -1, 4).amax(dim=1)


HEADS = {
    "resnet9": (lambda: build("resnet9", 0.1, channels=1, classes=4, image_size=8), lambda net, x: net.features(x)),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1),
                                          nn.Flatten()), lambda net, x: net[1](net[0](x)).mean(dim=(2, 3))),
    "tokens": (lambda: nn.Sequential(nn.Flatten(2), nn.Linear(64, 5), nn.GELU(), nn.Linear(5, 4), nn.Flatten()),
               lambda net, x: net[2](net[1](net[0](x))).mean(dim=1)),
    "rows": (Dense, lambda net, x: net.conv(x).mean(dim=(2, 3))),
    "axes": (lambda: Dense(axes=True).double(), lambda net, x: net.conv(x).mean(dim=(2, 3))),
    "dropout": (lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 4)), lambda net, x: x.flatten(1)),
}


@pytest.mark.parametrize("name", HEADS)
def test_features_are_what_the_last_layer_is_given(name):
    """S13, S12: averaged over places and tokens, in eval mode, not augmented; modes and random states stay, no hook."""
    make_net, twin = HEADS[name]
    with forked_rng(gen(0), torch.device("cpu")):
        net = make_net()
    list(net.modules())[-1].eval()
    modes, state, data = modes_of(net), torch.get_rng_state(), make_data(0, pad=2, flip=True)
    found = features(net, data)
    assert found.dtype == torch.float64 and not found.requires_grad
    assert modes_of(net) == modes and torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_pre_hooks for m in net.modules())
    x = ((data.images / 255 - 0.5) / 0.25).to(next(net.parameters()).dtype)
    with torch.no_grad():
        assert_close(found, twin(net.eval(), x).double(), 1e-5)


def test_features_of_the_layer_before():
    """S13: layer -2 is what the last layer but one is given; the first layer where there are fewer."""
    net, data = small_net(0), make_data(0, n=300)  # several batches
    x = (data.images / 255 - 0.5) / 0.25
    with torch.no_grad():
        first = net.eval().act(net.norm1(net.conv1(x)))
    assert_close(features(net, data, layer=-2), first.double().mean(dim=(2, 3)), 1e-5)
    assert_close(features(net, data, layer=-9), x.double().mean(dim=(2, 3)), 1e-5)


def test_no_hook_stays_after_an_error():
    """S12: where a network raises, its hooks are gone and its modes are back all the same."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(5, 4))
    with pytest.raises(RuntimeError, match="shape"):
        features(net, make_data(0))
    assert not any(m._forward_pre_hooks for m in net.modules()) and all(modes_of(net))


# --- By dataset index -------------------------------------------------------------------------------------------------

class Turned:
    """The examples that are asked for, in another order, or the first of them, or all of them several times."""

    def __init__(self, data, share=1, times=1):
        self.data, self.share, self.times = data, share, times

    def __len__(self):
        return len(self.data)

    def batches(self, index=None, **more):
        index = torch.arange(len(self)) if index is None else index
        for _ in range(self.times):
            yield from self.data.batches(index.flip(0)[: len(index) // self.share], **more)


def test_rows_belong_to_the_index_that_the_data_gives():
    """S10, S13: scores and features stand at the index that comes with the image, whatever the order and however often
    it comes; images that are left out are refused, not numbered anew."""
    data, net = make_data(0, n=300), small_net(0)
    whole, some = features(net, data), torch.tensor([7, 250, 3])
    for source in (data, Turned(data), Turned(data, times=2)):
        assert_close(features(net, source), whole, 1e-6)
        assert_close(features(net, source, some), whole[some], 1e-6)
    with pytest.raises(ValueError, match="must yield all the examples"):
        logits(net, Turned(data, 2))
    with pytest.raises(ValueError, match="index 300 out of range"):
        features(net, data, torch.tensor([300]))


@pytest.mark.parametrize("read", [features, logits, look, predict, refresh_batchnorm, share_right],
                         ids=lambda read: read.__name__)
def test_a_pass_that_trains_nothing_keeps_no_graph(read):
    """S10: a graph would hold what each layer gave of every image, gigabytes of a usual training set. Gradients are off
    while the network runs, and nothing that comes of it asks for them."""
    data, net, on = make_data(0), small_net(0), []
    net.act.register_forward_hook(lambda *_: on.append(torch.is_grad_enabled()))
    found = read(net, data, *{look: (True,), share_right: (torch.arange(3),)}.get(read, ()))
    assert torch.is_grad_enabled() and on and not any(on)
    for part in found if isinstance(found, tuple) else (found,):
        assert not isinstance(part, torch.Tensor) or not part.requires_grad
