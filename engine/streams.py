"""Random numbers, a stream per purpose and seed, and torch's global state, which is left as it was found.

    @undisturbed                                # a method gives the same whatever surrounds the call
    def rem(model, data, forget, config, generator): ...
"""

import contextlib
import functools
import hashlib
import inspect
import os
import warnings

import torch


def stream(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose, such as "weights" or "task", so that its draws never shift those for another."""
    digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)  # 63 bits: a signed integer


@contextlib.contextmanager
def forked_rng(generator: torch.Generator, device: torch.device):
    """Global random numbers, dropout's, that depend on `generator`; afterwards the global state is as before.

    The seed is what `generator` would draw next, read off a twin: its own stream, of order and augmentation, stays.
    """
    seed = int(torch.randint(2**62, (), generator=generator.clone_state()))
    cuda = [device.index if device.index is not None else torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        for source in [torch.default_generator, *(torch.cuda.default_generators[index] for index in cuda)]:
            source.manual_seed(seed)
        yield


def undisturbed(method):
    """Decorate a method that takes a `generator`: its result does not depend on the caller's autocast, grad mode,
    inference mode or global random state, and it leaves all of these as they were.

    Autocast is off because its cache would outlive updates; the global state is put back because a data set may draw.

    Raises (the decorated method): TypeError or ValueError for a generator that cannot be used.
    """
    named = inspect.signature(method)

    @functools.wraps(method)
    def run(*given, **more):
        asked = named.bind(*given, **more).arguments
        state = asked.get("state")  # of an earlier call, which has one
        check_generator(generator := asked["generator"] if state is None else state.generator)
        with contextlib.ExitStack() as world:
            world.enter_context(torch.inference_mode(False))  # which switches gradients on as well
            for kind in ("cpu", "cuda"):
                world.enter_context(torch.autocast(kind, enabled=False))
            world.enter_context(forked_rng(generator, torch.device("cpu")))
            return method(*given, **more)

    return run


def check_generator(generator) -> None:
    """Raise TypeError or ValueError unless it is a generator on the CPU, and not the global one, which dropout reseeds.
    """
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator is {generator!r}; give torch.Generator().manual_seed(seed)")
    if generator.device.type != "cpu" or generator is torch.default_generator:
        where = "torch's global one" if generator is torch.default_generator else f"on {generator.device}"
        raise ValueError(f"generator is {where}; give one of its own on the CPU, torch.Generator().manual_seed(seed)")


@contextlib.contextmanager
def same_world():
    """Put back what a method or the import of its file may leave changed, and what would change the next method.

    Folder, default dtype and device, grad mode, threads, random state, which warnings are shown, precision of products
    of matrices, and how deterministic kernels are chosen.
    """
    folder, dtype, device = os.getcwd(), torch.get_default_dtype(), torch.get_default_device()
    grad, threads, state = torch.is_grad_enabled(), torch.get_num_threads(), torch.get_rng_state()
    precision, strict = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    strict_warns, kernels = torch.is_deterministic_algorithms_warn_only_enabled(), torch.backends.cudnn
    chosen = {name: getattr(kernels, name) for name in ("benchmark", "deterministic", "allow_tf32")}
    try:
        with warnings.catch_warnings():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(strict, warn_only=strict_warns)
        for name, value in chosen.items():
            setattr(kernels, name, value)
        os.chdir(folder)
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
        torch.set_grad_enabled(grad)
        torch.set_rng_state(state)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
