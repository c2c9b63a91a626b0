"""The device that a run computes on: chosen, described, and whether what is asked of it makes sense."""

import os
import platform
from pathlib import Path

import torch

from engine.checks import first_line
from experiment.console import tell
from experiment.methods import reads_setting
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
    """The device in words: a GPU's name, or what the CPU computes with, such as "cpu (AVX2, 2 threads)"."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type != "cpu":
        return str(device)
    threads = torch.get_num_threads()
    return f"cpu ({torch.backends.cpu.get_cpu_capability()}, {threads} thread{'s' if threads > 1 else ''})"


def check_precision(config: Config, device: torch.device) -> None:
    """Warn where bf16 makes a CPU slower: one of Intel's or AMD's without AMX and AVX512_BF16 has to emulate it."""
    if config.precision != "bf16" or device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return
    checks = [getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")]
    if None not in checks and not any(check() for check in checks):
        tell("warning: this CPU has neither AMX nor AVX512_BF16, so bf16 is slower than float32 here")


def check_room(config: Config, model) -> None:
    """Raise ValueError for a theta_o2 that cannot fit into this machine's memory, before hours of training.

    The ratio is the given one, or follows from the capacity; in the latter case it counts only if a method reads it.
    """
    methods = [name.strip() for name in config.method.split(",")]
    idle = not any(name == "all" or reads_setting("ratio", {**vars(config), "method": name}) for name in methods)
    if not hasattr(os, "sysconf") or config.ratio is None and idle:
        return
    wide = 1 + config.extra_ratio
    need = 4.0 * sum(p.numel() for p in model.parameters()) * wide * wide  # bytes: wider both ways; it may be inf
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > room:
        asked = f"capacity is {config.capacity:g} and so ratio" if config.ratio is None else "ratio is"
        which = "a larger capacity, or a ratio" if config.ratio is None else "a smaller one"
        raise ValueError(f"{asked} {config.extra_ratio:g}; theta_o2 would take {need / 1e9:.3g} GB and this machine "
                         f"has {room / 1e9:.3g}; give {which}")


def processor() -> dict[str, str]:
    """The processor for a row: its model, and the instructions that torch computes with, which change last digits."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name")) or model
    except (OSError, StopIteration):  # another system, or a processor that says no name
        pass
    isa = torch.backends.cpu.get_cpu_capability()
    most = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return {"cpu": model, "isa": f"{isa}, ONEDNN_MAX_CPU_ISA={most}" if most else isa}
