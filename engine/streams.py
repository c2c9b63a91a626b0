"""Random numbers: a stream per purpose and seed, and a global state that is left as it was found."""

import contextlib
import hashlib

import torch

from engine.ranks import ranks


def stream(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose, such as "weights" or "task", so that its draws never shift those for another."""
    digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)  # manual_seed takes 63 bits


@contextlib.contextmanager
def forked_rng(generator: torch.Generator, device: torch.device):
    """Global random numbers, dropout's, that depend on `generator` and rank; afterwards the global state is as before.

    The seed is what `generator` would draw next, read off a twin: its own stream, of order and augmentation, stays.
    """
    seed = int(torch.randint(2**62, (), generator=generator.clone_state())) + ranks()[0]
    cuda = [device.index if device.index is not None else torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        for source in [torch.default_generator, *(torch.cuda.default_generators[index] for index in cuda)]:
            source.manual_seed(seed)
        yield
