"""The device that a run computes on."""

import torch


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
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"device {name!r} is not there ({reason}); use cpu, cuda or auto") from error
    return device
