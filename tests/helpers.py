"""Small data, networks, settings and assertions that the tests share; every tensor is drawn from a seeded generator."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from hypothesis import strategies as st
from torch import nn

from experiment.data import Data, Dataset, Streamed
from experiment.settings import Config
from tasks import put_trigger

seeds = st.integers(0, 2**31 - 1)


def gen(seed: int) -> torch.Generator:
    """A CPU generator."""
    return torch.Generator().manual_seed(seed)


def make_data(seed, n=12, channels=1, size=8, classes=4, trigger=False, **more) -> Data:
    """n random images of size x size with random labels; trigger=True marks about half of them."""
    g = gen(seed)
    images = torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=g)
    labels = torch.randint(0, classes, (n,), generator=g)
    data = Data(images, labels, classes, (0.5,) * channels, (0.25,) * channels, **more)
    return put_trigger(data, (torch.rand(n, generator=g) < 0.5).nonzero().flatten()) if trigger else data


def make_dataset(seed, n=24, tests=8, **more) -> Dataset:
    """A training and a test set from make_data."""
    train = make_data(seed, n=n, **more)
    return Dataset("made", train, make_data(seed + 1, n=tests, **more), tuple(str(c) for c in range(train.classes)))


def streamed(data: Data) -> Streamed:
    """The same data, read sample by sample."""
    pairs = list(zip(data.images, data.labels.tolist(), strict=True))
    return Streamed(pairs, data.classes, data.mean, data.std, data.labels, pad=data.pad, flip=data.flip)


def small_net(seed, channels=1, width=3, classes=4, norm=True, dtype=torch.float32) -> nn.Module:
    """conv - norm - CELU - residual conv - pool - Linear, all parameters and BatchNorm buffers drawn from the seed."""
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
            self.norm1 = nn.BatchNorm2d(width) if norm else nn.Identity()
            self.norm2 = nn.BatchNorm2d(width) if norm else nn.Identity()
            self.act, self.head = nn.CELU(0.075), nn.Linear(width, classes, bias=False)

        def forward(self, x):
            x = self.act(self.norm1(self.conv1(x)))
            x = x + self.act(self.norm2(self.conv2(x)))
            return self.head(x.amax(dim=(2, 3)))

    return randomise(Net(), seed).to(dtype)


def randomise(net: nn.Module, seed: int) -> nn.Module:
    """Draw every parameter and floating buffer of a network anew, running variances positive; returns the network."""
    g = gen(seed)
    with torch.no_grad():
        for name, t in [*net.named_parameters(), *net.named_buffers()]:
            if t.is_floating_point():
                values = torch.randn(t.shape, generator=g, dtype=torch.float64)
                scale = t[0].numel() ** -0.5 if t.dim() > 1 else 0.3
                shift = 1.0 if t.dim() == 1 and not name.endswith(("bias", "running_mean")) else 0.0
                values = values * scale + shift
                t.copy_(values.abs() + 0.1 if name.endswith("running_var") else values)
    return net


def tiny(**changes) -> Config:
    """Settings that train and unlearn small_net on make_data in a blink, with Algorithm 1 as printed."""
    base = Config(epochs=2, batch=4, lr=0.05, unlearn_epochs=2, unlearn_lr=0.02, n=4, ratio=1.0, capacity=1.0,
                  max_passes=5, reach=0.0, disbelieved=0.0, gamma=0.0, stop="max", device="cpu", precision="float32",
                  quiet=True)
    return replace(base, **changes)


def rows(seed, expanded, batch, share=0.5) -> torch.Tensor:
    """Random mask rows of an expanded network, (batch, width) bool."""
    return torch.rand(batch, expanded.width, generator=gen(seed)) < share


def run(net, *args) -> torch.Tensor:
    """Output without a graph, in the mode that the network is in."""
    with torch.no_grad():
        return net(*args)


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    """Both state dicts have equal keys in equal order, shapes, dtypes and bits."""
    for (ka, va), (kb, vb) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert ka == kb and va.shape == vb.shape and va.dtype == vb.dtype, (ka, kb)
        assert torch.equal(va, vb), ka


def assert_close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-12) -> None:
    """Equal shapes, and values that differ by at most `tolerance` times the larger scale (fp64: 1e-12, fp32: 1e-5)."""
    a, b = a.detach(), b.detach()
    assert a.shape == b.shape, (a.shape, b.shape)
    scale = max(1.0, float(a.abs().max()) if a.numel() else 1.0)
    assert a.numel() == 0 or float((a - b).abs().max()) <= tolerance * scale, float((a - b).abs().max())


def rows_of(path) -> list[dict]:
    """The rows of a result file, which has nothing else in it."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


class Called:
    """Its pickle is a call of a function: what a checkpoint from elsewhere could do."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Evil(Called):
    """Unpickling it makes a file."""

    def __init__(self, path):
        super().__init__(Path.touch, path)


class Trusting:
    """Data of which somebody has looked at some labels: (m,) int64 `trusted`; everything else is the data's own."""

    def __init__(self, data, trusted: torch.Tensor):
        self.data, self.trusted = data, trusted

    def __len__(self):
        return len(self.data)

    def __getattr__(self, name: str):
        return getattr(self.data, name)
