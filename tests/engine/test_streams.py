"""engine/streams.py: random numbers, a stream per purpose and seed, and a global state that is left as it was."""

import hashlib

import pytest
import torch
from hypothesis import given

from engine.streams import forked_rng, stream
from helpers import assert_same_state, gen, make_data, seeds, small_net
from rem import rem
from rem_plus import rem_plus
from states import SMALL_PLUS, small, unlearn

CPU = torch.device("cpu")


@given(seeds)
def test_streams(seed):
    """A9, T10: seed and purpose determine the numbers, everywhere those behind every table's rows; seed 1 with purpose
    "1:a" is not seed 11 with "a". Nothing global is drawn from or moved."""
    before = torch.get_rng_state()
    digest = hashlib.sha256(f"{seed}:weights".encode()).digest()
    assert stream(seed, "weights").initial_seed() == int.from_bytes(digest[:8], "little") >> 1
    assert stream(1, "1:a").initial_seed() != stream(11, "a").initial_seed()
    drawn = [torch.rand(8, generator=stream(*of)) for of in ((seed, "a"), (seed, "a"), (seed + 1, "a"), (seed, "b"))]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[3])
    assert torch.equal(torch.get_rng_state(), before)


def test_forked_numbers_follow_the_generator():
    """A9, M6: they follow the generator's place in its stream; it and the global state stay, after an error too."""
    generator, seen = gen(3), []
    for draws in (0, 0, 2):
        torch.rand(draws, generator=generator)
        before = generator.get_state(), torch.get_rng_state()
        with pytest.raises(ZeroDivisionError), forked_rng(generator, CPU):
            seen.append(torch.rand(4))
            raise ZeroDivisionError
        assert torch.equal(generator.get_state(), before[0]) and torch.equal(torch.get_rng_state(), before[1])
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


@pytest.mark.gpu
def test_forked_numbers_on_the_gpu():
    """A9, M6: on the GPU too they come from the generator, and its global state is as before."""
    before, seen = torch.cuda.get_rng_state(), []
    for _ in range(2):
        with forked_rng(gen(3), torch.device("cuda")):
            seen.append(torch.rand(4, device="cuda"))
        torch.rand(1, device="cuda")
    assert torch.equal(*seen)
    torch.cuda.set_rng_state(before)
    with forked_rng(gen(3), torch.device("cuda")):
        torch.rand(4, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), before)


# --- Whatever surrounds a call ----------------------------------------------------------------------------------------

class Drawing:
    """Data that draws global random numbers in every pass, as a transform does; everything else is the data's own."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getattr__(self, name: str):
        return getattr(self.data, name)

    def batches(self, *args, **more):
        for rows, x, y in self.data.batches(*args, **more):
            yield rows, x + 0.1 * torch.rand(()), y


SURROUNDINGS = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "other random numbers": lambda: torch.random.fork_rng([]),
}


@pytest.mark.filterwarnings("ignore:Acc")
@pytest.mark.parametrize("how", [{}, dict(method=rem_plus, base=SMALL_PLUS, reach=0.05, disbelieved=1.5)])
@pytest.mark.parametrize("around", SURROUNDINGS)
def test_a_call_is_the_same_in_all_surroundings(around, how):
    """A9: REM's network, and REM+'s, is the same bit for bit in the caller's autocast, without gradients, in inference
    mode and with other global random numbers, which a data set may draw; all of it is as it was afterwards."""
    how = dict(net=small_net(0), unlearn_epochs=3, unlearn_lr=0.1, **how)
    how["data"] = Drawing(make_data(0, n=48, flip=True))
    torch.manual_seed(0)
    wanted = unlearn(**how)
    with SURROUNDINGS[around]():
        torch.manual_seed(1)
        state = torch.get_rng_state(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
        found = unlearn(**how)
        assert torch.equal(torch.get_rng_state(), state[0])
        assert (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")) == state[1:]
    assert_same_state(found, wanted)


@pytest.mark.parametrize("generator, error, text", [
    (None, TypeError, "generator is None; give torch.Generator"), (0, TypeError, "generator is 0; give"),
    (torch.default_generator, ValueError, "generator is torch's global one; give one of its own on the CPU")])
def test_generators_that_cannot_be_used(generator, error, text):
    """A9: the global one would be reseeded by what it seeds, so that every epoch had the same order."""
    with pytest.raises(error, match=text):
        rem(small_net(0), make_data(0), torch.tensor([1]), small(), generator)
