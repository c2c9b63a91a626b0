"""The device that a run computes on: chosen, described, and whether what is asked of it makes sense."""

import os
import platform
import sys

import torch

from engine.checks import first_line
from experiment.settings import Config


def choose_device(name: str) -> torch.device:
    """The device of that name, or for "auto" a GPU where there is one; ValueError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" has no values to give
        if device.type == "cuda":
            torch.cuda.set_device(device)  # the one that `attempt` waits for
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        reason = first_line(error, kind=False)
        raise ValueError(f"device {name!r} is not there ({reason}); use cpu, cuda or auto") from error
    return device


def describe(device: torch.device) -> str:
    """The device for the eye: a GPU's name, or what the CPU computes with, such as "cpu (AVX2, 2 threads)"."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type != "cpu":
        return str(device)
    threads = torch.get_num_threads()
    return f"cpu ({torch.backends.cpu.get_cpu_capability()}, {threads} thread{'s' * (threads > 1)})"


def check_precision(config: Config, device: torch.device) -> None:
    """Warn where bf16 makes a CPU slower: one of Intel's or AMD's without AMX and AVX512_BF16 has to emulate it."""
    if config.precision != "bf16" or device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return
    checks = [getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")]
    if None not in checks and not any(check() for check in checks):
        print("warning: this CPU has neither AMX nor AVX512_BF16, so bf16 is slower than float32 here", file=sys.stderr)


def check_room(config: Config, model) -> None:
    """Raise ValueError for a ratio whose theta_o2 cannot fit into this machine's memory, before hours of training."""
    if config.ratio is None or not hasattr(os, "sysconf"):
        return
    need = 4 * sum(p.numel() for p in model.parameters()) * (1 + config.ratio) ** 2  # bytes: wider both ways
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > room:
        raise ValueError(f"ratio is {config.ratio:g}; theta_o2 would take {need / 1e9:.3g} GB and this machine has "
                         f"{room / 1e9:.3g}; give a smaller one")
