"""engine/ranks.py and what the engine does with it, in two processes that are two threads of this one.

- Sums and weighted means over processes                                                              G1
- An update: one step down the mean over all examples, the same in each process                       G1, F6
- Of several processes nobody can tell here which examples the others have seen                       G1, A7
- Each evaluates with the first one's statistics, and has references and features of all examples     G1

test_several_processes.py has two real processes, with accuracy, reference and evaluation in them.
"""

import threading
from dataclasses import replace

import pytest
import torch
from torch import distributed as dist, nn

from engine.batches import batches_of
from engine.features import features, gather
from engine.modes import eval_mode
from engine.ranks import over_ranks, ranks
from engine.updates import descend
from helpers import assert_close, make_data, small_net
from states import make_state

here = threading.local()


@pytest.fixture
def two(monkeypatch):
    """two(f) runs f(0) and f(1) in two threads, between which torch.distributed's collectives work; returns both.

    A mock, because two real processes take seconds to start, and a test of each function wants many.
    """
    barrier, given = threading.Barrier(2, timeout=20), {}

    def gather(tensor):
        given[here.rank] = tensor.clone()
        barrier.wait()
        parts = [given[rank] for rank in (0, 1)]
        barrier.wait()
        return parts

    def all_reduce(tensor):
        tensor.copy_(sum(gather(tensor)))

    def broadcast(tensor, source):
        tensor.copy_(gather(tensor)[source])

    for name, new in dict(is_available=lambda: True, is_initialized=lambda: hasattr(here, "rank"),
                          get_rank=lambda: here.rank, get_world_size=lambda: 2, all_reduce=all_reduce,
                          broadcast=broadcast).items():
        monkeypatch.setattr(dist, name, new)

    def run(function):
        found = {}

        def one(rank):
            here.rank = rank
            try:
                found[rank] = function(rank)
            except BaseException as error:
                found[rank] = error
                barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for rank in (0, 1):
            if isinstance(found[rank], BaseException):
                raise found[rank]
        return found[0], found[1]

    return run


def test_who_is_who(two):
    """G1: rank and number of processes, (0, 1) without torch.distributed."""
    assert two(lambda rank: ranks()) == ((0, 2), (1, 2))
    assert ranks() == (0, 1)


@pytest.mark.parametrize("weights, expected", [(None, (4.0, 14.0)), ((3, 5), (18 / 8, 62 / 8))])
def test_sums_and_means(two, weights, expected):
    """G1: without weights sums, with weights means that count each process by its own; in place, each in its shape."""
    def one(rank):
        values = [torch.tensor([[1.0, 1.0], [3.0, 3.0]][rank]), torch.tensor([4.0, 10.0][rank], dtype=torch.float64),
                  torch.full((2, 0, 3), 1.0)]
        over_ranks(values, None if weights is None else weights[rank])
        return values

    for values in two(one):
        assert_close(values[0], torch.full((2,), expected[0]), 1e-6)
        assert_close(values[1], torch.tensor(expected[1], dtype=torch.float64), 1e-6)
        assert values[2].shape == (2, 0, 3) and values[1].dtype == torch.float64


def test_one_step_down_the_mean_of_all(two):
    """G1, F6: each process takes the step of the mean loss over all examples; a parameter that one process alone
    reaches moves in both, one that none reaches in neither."""
    def one(rank):
        both, mine, none = (nn.Parameter(torch.tensor([1.0])) for _ in range(3))
        optimizer = torch.optim.SGD([both, mine, none], lr=1.0, weight_decay=0.5)
        loss = descend(optimizer, (both * [2.0, 6.0][rank] + (mine if rank else 0)).sum(), [3, 1][rank])
        return [float(p.detach()) for p in (both, mine, none)], float(loss), none.grad

    first, second = two(one)
    assert first == second
    # mean gradient (3 * 2 + 1 * 6) / 4 = 3 and 1 / 4, and 1/2 of decay
    assert first[0] == pytest.approx([1 - 3.5, 1 - 0.75, 1]) and first[1] == pytest.approx(3.25) and first[2] is None


def test_shares_are_no_wrong_batches(two):
    """G1, A7: a share is not refused for what it lacks, and no lone example of a share is joined to another batch."""
    data = make_data(0, n=9)

    def one(rank):
        state = make_state(data=data, size=3, batch=4)
        state.data = replace(data, part=(rank, 2))
        return [rows.tolist() for rows, _, _ in batches_of(state, torch.arange(9), augment=False, size=3)]

    first, second = two(one)
    assert first == [[0, 2], [3, 5], [6, 8]] and second == [[1], [4], [7]]


def test_evaluation_has_the_first_ones_statistics(two):
    """G1: in evaluation mode every process has the running statistics of the first."""
    def one(rank):
        norm = nn.BatchNorm1d(2)
        norm.running_mean.fill_(rank + 1)
        with eval_mode(norm):
            return norm.running_mean.tolist()

    assert two(one) == ([1, 1], [1, 1])


@pytest.mark.parametrize("processes", [1, 2])
def test_references_of_all_examples(two, processes):
    """G1: each process computes the reference's cross-entropies of its share, or of all examples, and has those of
    all."""
    data = make_data(0, n=9)

    def stored(part):
        state = make_state(data=replace(data, part=part), size=3)
        state.reference.remember(state)
        return state.reference.known

    alone = stored((0, 1))
    for found in two(lambda rank: stored((rank % processes, processes))):
        assert_close(found, alone, 1e-6)


def test_features_of_all_examples(two):
    """G1: each process computes the features of its share, and has those of all; what is 0 is not what nobody saw."""
    data = make_data(0, n=9)
    alone = features(small_net(0), data)
    assert not gather(small_net(0), data, None, lambda x, y: x.new_zeros(len(x), 2)).any()
    for found in two(lambda rank: features(small_net(0), replace(data, part=(rank, 2)))):
        assert_close(found, alone, 1e-6)
