"""States of Algorithm 1 to test it on: step 1 on small data, data whose images are numbered, Acc(D_f) by a script."""

import contextlib
from dataclasses import replace
from unittest import mock

import torch

import rem as rem_module
import rem_plus
from etd import ExpandedWeight
from experiment.data import Data
from helpers import gen, make_data, small_net

SMALL = rem_module.Settings(unlearn_epochs=2, batch=4, unlearn_lr=0.02, max_passes=5, gamma=0.2, precision="float32",
                            p_mem=0.5)
# REM+ with early stopping and, once there is a distance, restarts alone; tests in tests/rem_plus switch the rest on.
SMALL_PLUS = rem_plus.Settings(**vars(SMALL), reach=0.0, disbelieved=0.0)


def small(**changes) -> rem_module.Settings:
    """Settings that unlearn small_net on a dozen images in a blink."""
    return replace(SMALL, **changes)


def draw_forget(seed: int, n: int = 12, size: int = 4) -> torch.Tensor:
    """D_f: `size` of n indices in no order."""
    return torch.randperm(n, generator=gen(seed))[:size]


def make_state(seed: int = 0, *, data=None, net=None, forget=None, n: int = 12, size: int = 4, shared=None,
               base=SMALL, **changes):
    """The state after step 1; small_net, random data and four examples in D_f unless they are given; base: settings."""
    data = make_data(seed, n=n) if data is None else data
    net = small_net(seed) if net is None else net
    forget = draw_forget(seed, len(data), size) if forget is None else forget
    return rem_module.add_capacity(net, data, forget, replace(base, **changes), gen(seed), shared)


def plus_state(seed: int = 0, **more):
    """`make_state` with the settings of REM+."""
    return make_state(seed, **{"base": SMALL_PLUS} | more)


def unlearn(seed: int = 0, *, data=None, net=None, forget=None, n: int = 12, size: int = 4, generator: int = 7,
            method=rem_module.rem, base=SMALL, step3=None, log=None, shared=None, **changes):
    """One run of rem, or of another `method` like it, on a dozen images."""
    data = make_data(seed, n=n) if data is None else data
    net = small_net(seed) if net is None else net
    forget = draw_forget(seed, len(data), size) if forget is None else forget
    return method(net, data, forget, replace(base, **changes), gen(generator), step3=step3, log=log, shared=shared)


def unlearn_plus(seed: int = 0, **more):
    """One run of REM+ on a dozen images, of which early stopping holds none out."""
    return unlearn(seed, method=rem_plus.rem_plus, base=SMALL_PLUS, **more)


def extra_tensors(expanded) -> dict[str, torch.Tensor]:
    """theta_o2: parameters and buffers that are not the network's own, by name."""
    found = {}
    for name, layer in expanded.layers().items():
        own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
        found |= {f"{name}.{part}": t.detach() for part, t in own}
    return found


def channel_slices(expanded):
    """(name, parameter, dimension, first entry): the slices of each parameter that belong to extra channels, one per
    channel; in small_net every extra channel j of every layer has the mask bit j."""
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


@contextlib.contextmanager
def acc_forget(*values: float):
    """Step 2 finds these values of Acc(D_f), one after another, then the last one for ever; yields how often it asked.

    A mock of an inner function, because when step 2 stops must not depend on what a drawn network happens to know;
    test_scores.py holds what is measured. Early stopping measures for itself.
    """
    asked, real = [], rem_plus.remove_to_distance

    def answer(state, index):
        asked.append(index)
        return values[min(len(asked), len(values)) - 1]

    def remove_to_distance(state):
        with mock.patch.object(rem_plus, "accuracy_of", answer):
            real(state)

    with (mock.patch.object(rem_module, "accuracy_of", answer),
          mock.patch.object(rem_plus, "remove_to_distance", remove_to_distance)):
        yield asked


def numbered(n: int, size: int = 4, classes: int = 4, seed: int = 0, **more) -> Data:
    """n <= 256 images, image i all of value i, so that a batch tells which examples it holds."""
    data = make_data(seed, n=n, size=size, classes=classes, **more)
    data.images.copy_(torch.arange(n, dtype=torch.uint8).view(-1, 1, 1, 1).expand_as(data.images))
    return data


def numbers(data: Data, x: torch.Tensor) -> list[int]:
    """The examples of a batch of `numbered` data."""
    return (255 * (x[:, 0, 0, 0].double() * data.std[0] + data.mean[0])).round().long().tolist()


class Loose:
    """A data source of one's own around Data, as a DataLoader gives it: its last batch may be one example alone.

    It says nothing about augmentation.
    """

    def __init__(self, data: Data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def batches(self, index=None, size=512, generator=None, augment=False, dtype=torch.float32):
        index = torch.arange(len(self)) if index is None else index
        order = index if generator is None else index[torch.randperm(len(index), generator=generator)]
        for part in order.split(size):
            yield next(iter(self.data.batches(part, len(part), dtype=dtype)))
