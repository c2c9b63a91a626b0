"""Networks of grey images: those that take one channel, by their checkpoint or by their own first layer.

    reading = with_channels(model, stored, reading)      # reading.channels is what the network takes, 3 or 1
"""

from dataclasses import replace

import torch
from torch import nn

from engine.modes import eval_mode
from repair.checkpoints import network_names
from repair.images import Reading


def with_channels(model: nn.Module, stored: dict[str, torch.Tensor], reading: Reading) -> Reading:
    """How images are read for a network that takes three channels or one, whose mean and std are the colours' mean.

    A network of three whose checkpoint has a first convolution of one gets such a one, in place: what users of a
    known architecture change for grey images.
    Args: stored: weights as they lie in the checkpoint. Raises: ValueError: mean and std are of other channels.
    """
    first = next(((name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)), None)
    if first and first[1].in_channels == 3 and stored_channels(first, model, stored) == 1:
        name, conv = first
        conv.weight = nn.Parameter(conv.weight.detach()[:, :1].clone(), conv.weight.requires_grad)
        conv.in_channels = 1
    grey = (first is None or first[1].in_channels == 1) and not runs(model, 3, reading) and runs(model, 1, reading)
    mean, std = reading.mean, reading.std
    if grey and mean is not None and len(mean) == 3:
        mean, std = ((sum(values) / 3,) for values in (mean, std))
    if mean is not None and len(mean) != (1 if grey else 3):
        raise ValueError(f"--mean {mean}, --std {std}: give three numbers each, for pixels in [0, 1]; the network "
                         "takes three channels")
    return replace(reading, channels=1 if grey else 3, mean=mean, std=std)


def stored_channels(first: tuple[str, nn.Conv2d], model: nn.Module, stored: dict[str, torch.Tensor]) -> int | None:
    """Channels that a convolution has in the checkpoint, where all else of its shape is the network's."""
    name, conv = first
    wanted = f"{name}.weight" if name else "weight"
    found = [stored[key].shape for key, own in network_names(stored, set(model.state_dict())).items() if own == wanted]
    alike = len(found) == 1 and len(found[0]) == 4 and found[0][:1] + found[0][2:] == (
        conv.weight.shape[:1] + conv.weight.shape[2:])
    return found[0][1] if alike else None


def runs(model: nn.Module, channels: int, reading: Reading) -> bool:
    """Whether a network takes images of so many channels."""
    weight = next(model.parameters())
    x = torch.zeros(1, channels, reading.size, reading.size, dtype=weight.dtype, device=weight.device)
    with eval_mode(model), torch.no_grad():
        try:
            model(x)
        except Exception:  # networks raise anything; what is wrong is told when images are there
            return False
    return True
