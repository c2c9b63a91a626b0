"""Suspects of a data source that yields its examples in an order of its own (S10, S13)."""

import pytest
import torch

from engine.features import features
from helpers import assert_close, make_data, small_net
from repair.suspects import logits, suspects

FORGET = torch.tensor([2, 5, 7])


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
