"""The strict check that extra channels stay apart from the base ones, with the module's name where they do not (Sec. 5).

    with naming_errors(expanded.net):        # an exception inside becomes a TypeError that names the module
        ...
    problem = self_check(expanded, (3, 32, 32))      # None, or the sentence to raise
"""

import contextlib
import copy

import torch
from torch import nn

from layers import Expanded, ExpandedBatchNorm, ExpandedWeight

SPREAD_TOLERANCE = 1e-8  # float64 rounding grows to about 1e-12 of the spread in deep networks; structure errors are > 1e-3


@contextlib.contextmanager
def naming_errors(net: nn.Module):
    """Turn whatever goes wrong inside the block into a TypeError that names the module that was running."""
    inside, hooks = [], []
    bases = {m.base for m in net.modules() if isinstance(m, (ExpandedWeight, ExpandedBatchNorm))}
    for name, module in net.named_modules():
        if module not in bases:  # a wrapper has the name that its base has in the original network
            where = repr(name) if name else f"the network {type(module).__name__}"
            hooks.append(module.register_forward_pre_hook(lambda m, args, where=where: inside.append(where)))
            hooks.append(module.register_forward_hook(lambda m, args, out: inside.pop() and None))
    try:
        yield
    except Exception as error:
        raise TypeError(f"cannot expand {inside[-1] if inside else 'the network'}: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()


def self_check(expanded: Expanded, shape: torch.Size) -> str | None:
    """Say why the extra channels do not stay apart from the base ones, or None if they do.

    With all-zero masks every layer must give its base pass's outputs, each example must meet its own mask, and with all-one
    masks every weight of theta_o2 must reach the output. Strict, because some networks that concatenate pass a loose test:
    weights drawn anew and batch statistics so that no signal vanishes, float64 on the CPU, differences relative to the
    spread of each layer's outputs.
    """
    generator = torch.Generator().manual_seed(0)
    probe = copy.deepcopy(expanded).to("cpu", torch.float64).eval()
    x = torch.randn((4, *shape), generator=generator, dtype=torch.float64, device="cpu")
    with naming_errors(probe.net), torch.enable_grad():
        problem = leak(probe, x, generator) or cut_off(probe, x, generator)
    try:
        with torch.enable_grad():
            return problem or mixed_up(probe, x, generator)
    except Exception as error:  # no hooks are on here: with them nn.TransformerEncoderLayer, for one, takes another path
        return f"cannot expand the network {type(probe.net).__name__}: {error}"


def leak(probe: Expanded, x: torch.Tensor, generator: torch.Generator) -> str | None:
    """Where base outputs change although every mask is 0, in either of two draws; the second is positive, so that no ReLU is
    shut and hides what leaks before it.
    """
    for positive in (False, True):
        redraw(probe, generator, positive)
        x = x.abs() if positive else x
        with batch_statistics(probe), torch.no_grad():
            base, zero = layer_outputs(probe, x, None), layer_outputs(probe, x, 0)
        for (name, a), (_, b) in zip(base, zero, strict=True):
            scale = a.abs().max() if positive else a.std()  # of positive numbers the spread may be next to nothing
            if not (a - b).abs().max() <= SPREAD_TOLERANCE * scale:
                return (f"cannot expand {name}: with every mask at 0 its base outputs still change, so extra channels do not "
                        "stay apart")
    return None


def cut_off(probe: Expanded, x: torch.Tensor, generator: torch.Generator) -> str | None:
    """A layer with a weight of theta_o2 that has no gradient, all masks on, in any of three draws.

    The first is positive, so that no ReLU is shut; the others do not saturate a gate.
    """
    parts = {(name, part): getattr(layer, part, None) for name, layer in probe.layers().items() for part in ("to_base", "to_extra")}
    missed = {key for key, weight in parts.items() if weight is not None}
    for positive in (True, False, False):
        if not missed:
            return None
        redraw(probe, generator, positive)
        probe.zero_grad()
        with batch_statistics(probe):
            out = probe(x.abs() if positive else x, torch.ones((len(x), probe.width), dtype=torch.bool))
        (out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum().backward()
        missed -= {key for key in missed if parts[key].grad is not None and parts[key].grad.abs().max() > 0}
    if missed:
        return f"cannot expand {min(missed)[0]!r}: its extra channels reach no output, so the network cuts them off"
    return None


def mixed_up(probe: Expanded, x: torch.Tensor, generator: torch.Generator) -> str | None:
    """Examples that do not meet their own masks, in eval mode: a row on beside rows off must be as if all were on."""
    norms = [m for m in probe.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    if any(norm.running_mean is None for norm in norms):
        return None  # batch statistics in eval mode tie the examples together, so nothing can be told from them
    redraw(probe, generator, positive=True)  # with positive inputs no ReLU is shut
    x, alone = x.abs(), torch.zeros((len(x), probe.width), dtype=torch.bool)
    alone[0] = True
    with torch.no_grad():
        off, on, out = (probe(x, mask) for mask in (torch.zeros_like(alone), torch.ones_like(alone), alone))
    allowed = SPREAD_TOLERANCE * max(float(off.std()), 1e-12)
    if not max((out[0] - on[0]).abs().max(), (out[1:] - off[1:]).abs().max()) <= allowed:
        return "cannot expand the network: examples do not meet their own masks, so the batch is not its layers' first axis"
    if not (probe(x, torch.ones_like(alone)) - on).abs().max() <= allowed:
        return "cannot expand the network: without gradients it reads weights past its layers, which skips theta_o2"
    return None


@contextlib.contextmanager
def batch_statistics(probe: nn.Module):
    """Every BatchNorm in training mode for the length of the block, nothing else."""
    norms = [m for m in probe.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, ExpandedBatchNorm))]
    for norm in norms:
        norm.training = True
    try:
        yield
    finally:
        for norm in norms:
            norm.training = False


def redraw(probe: nn.Module, generator: torch.Generator, positive: bool = False) -> None:
    """Draw every parameter anew: matrices at 1 / sqrt(fan-in), vectors near 0 (biases) or 1."""
    with torch.no_grad():
        for name, p in probe.named_parameters():
            values = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            if p.dim() >= 2 and p.numel():
                p.copy_((values.abs() if positive else values) / p[0].numel() ** 0.5)
            elif p.dim() == 1:
                p.copy_(0.1 * values + (0 if name.endswith("bias") else 1))


def layer_outputs(probe: Expanded, x: torch.Tensor, fill: int | None) -> list[tuple[str, torch.Tensor]]:
    """The base part of each expanded layer's output, in running order and the network's last, in one pass.

    fill: None for the base-only pass, else the value of all masks.
    """
    outputs, hooks = [], []
    for name, layer in probe.layers().items():
        def keep(layer, args, out, name=name):
            outputs.append((repr(name), out.narrow(layer.channel_dim, 0, layer.outputs).clone()))
        hooks.append(layer.register_forward_hook(keep))
    mask = None if fill is None else torch.full((len(x), probe.width), bool(fill))
    try:
        outputs.append(("the network", probe(x, mask)))
    finally:
        for hook in hooks:
            hook.remove()
    return outputs
