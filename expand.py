"""Step 1 of Algorithm 1 for any network: put theta_o2 beside theta_o1, and refuse what cannot be expanded (Sec. 5).

    expanded = expand(model, example, ratio=1.0)      # theta_o2 beside a copy of theta_o1
    logits = expanded(x, masks[index])                # theta_o1 and theta_o2, one mask row per example
"""

import contextlib
import copy

import torch
from torch import nn

from etd import Expanded, ExpandedBatchNorm, ExpandedWeight, eval_mode, run_masked, swap

SPREAD_TOLERANCE = 1e-8  # float64 rounding grows to about 1e-12 of the spread in deep networks; structure errors are > 1e-3


def expand(model: nn.Module, example: torch.Tensor, ratio: float = 1.0, layers=None, generator=None) -> Expanded:
    """Put newly initialised theta_o2 beside a copy of a network (Alg. 1, step 1; Sec. 2's memorisation partition).

    Every Conv2d gets round(ratio * width) extra channels; BatchNorm and Linear follow what arrives. The last Linear takes
    extra inputs and gives no extra output, so no mask touches a logit. One dry run of `example` measures what arrives
    where, and a check in float64 refuses every architecture in which extra channels do not stay apart.

    Args:
        model: any network of Conv2d (groups 1 or depthwise), BatchNorm, Linear and layers that act on each channel alone.
        example: (B, ...) a batch of inputs, B >= 1; only its shape matters.
        ratio: extra / base width, >= 0 and finite; 0 adds nothing.
        layers: names of the Conv2d or Linear layers that get extra outputs. None: the network's own `expandable`, else
            every Conv2d.
        generator: torch.Generator on the CPU for theta_o2's weights; None: one seeded with 0.

    Returns:
        An `Expanded` on the model's device, with its dtypes, training flags and memory formats. The model is untouched.

    Raises:
        ValueError: a ratio, example or layer name that cannot be used.
        TypeError: the network cannot be expanded; the text names the module.
    """
    if not 0 <= ratio < float("inf"):
        raise ValueError(f"ratio is {ratio}; it must be extra width over base width, a finite number of at least 0")
    if not isinstance(example, torch.Tensor) or example.dim() < 2 or len(example) < 1:
        raise ValueError("example must be a batch of inputs, a tensor of shape (B, ...) with B at least 1")
    if isinstance(model, Expanded):
        raise TypeError("the network is expanded already; drop it first or use it as it is")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    state = generator.get_state()
    for mask_everywhere in (False, True):  # True where a convolution feeds more than the BatchNorm that masks for it
        expanded = wrap(copy.deepcopy(model), ratio, layers)
        generator.set_state(state)
        grow_to_fit(expanded, example, generator, mask_everywhere)
        problem = self_check(expanded, example.shape[1:])
        if problem is None:
            return expanded
    raise TypeError(problem)


def wrap(net: nn.Module, ratio: float, layers) -> Expanded:
    """Wrap every layer of `net` that extra channels may reach; the named ones get extra outputs."""
    modules, wrappers = dict(net.named_modules()), {}
    layers = getattr(net, "expandable", None) if layers is None else layers
    names = {name for name, m in modules.items() if isinstance(m, nn.Conv2d)} if layers is None else set(layers)
    if not names:
        raise TypeError(f"cannot expand {type(net).__name__}: it has no Conv2d; name the layers to expand with layers=[...]")
    for name in sorted(names):
        if name not in modules:
            raise ValueError(f"the network has no layer {name!r}; it has {', '.join(k for k in modules if k)}")
        if type(modules[name]) not in (nn.Conv2d, nn.Linear):
            raise TypeError(f"cannot expand {name!r}: {type(modules[name]).__name__} is neither a plain Conv2d nor a plain Linear")
    for name, module in modules.items():
        if type(module) in (nn.Conv2d, nn.Linear):
            wrappers[module] = ExpandedWeight(module, ratio if name in names else 0)
        elif type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
            wrappers[module] = ExpandedBatchNorm(module)
        elif getattr(module, "running_mean", None) is not None:
            raise TypeError(f"cannot expand {name!r}: masked passes would move the running statistics of {type(module).__name__}")
        elif isinstance(module, (nn.AlphaDropout, nn.FeatureAlphaDropout)):
            raise TypeError(f"cannot expand {name!r}: {type(module).__name__} turns masked zeros into other values in training")
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        if module in wrappers and any(hooks):
            raise TypeError(f"cannot expand {name!r}: it has hooks, which a masked pass would not run")
    for base, wrapper in wrappers.items():
        wrapper.training = base.training
    expanded = Expanded(net)
    expanded.training = net.training
    swap(expanded, wrappers)
    return expanded


def grow_to_fit(expanded: Expanded, example: torch.Tensor, generator: torch.Generator, mask_everywhere: bool) -> None:
    """Run `example` once with all masks on and grow each layer to the extra channels that arrive at it."""
    layers, made_by = expanded.layers(), {}
    weight = next(expanded.parameters())
    x = example[:2].detach().to(weight.device, weight.dtype)

    def arrive(layer, args):
        extra_in, source = args[0].shape[layer.channel_dim] - layer.inputs, made_by.get(id(args[0]))
        if layer.extra_in is None:
            layer.grow(extra_in, generator)
        elif extra_in != layer.extra_in:
            raise TypeError("it runs twice with different numbers of extra channels")
        if isinstance(layer, ExpandedBatchNorm) and source and not mask_everywhere:
            source[1].mask_output = False  # the mask acts after BatchNorm, and BatchNorm applies it

    def leave(layer, args, out):
        if isinstance(layer, ExpandedWeight):
            made_by[id(out)] = (out, layer)  # holding `out` keeps its id from going to another tensor

    with eval_mode(expanded), torch.no_grad():
        everything_on = x.new_ones((len(x), 1), dtype=torch.bool).expand(-1, 2**40)
        with naming_errors(expanded.net):
            plain = expanded(x)
            hooks = [layer.register_forward_pre_hook(arrive) for layer in layers.values()]
            hooks += [layer.register_forward_hook(leave) for layer in layers.values()]
            try:
                wide = run_masked(expanded.net, x, everything_on, layers.values())
            finally:
                for hook in hooks:
                    hook.remove()
            if wide.shape != plain.shape:
                raise TypeError(f"with extra channels it gives {tuple(wide.shape)} instead of {tuple(plain.shape)}; "
                                "name the layers to expand, without the one that makes the logits, with layers=[...]")
    settle(expanded)


def settle(expanded: Expanded) -> None:
    """Unwrap the weights that no extra channel concerns and note the width; a layer that never ran cannot be expanded."""
    layers = expanded.layers()
    for name, layer in layers.items():
        if layer.extra_in is None and layer.extra_out:
            raise TypeError(f"cannot expand {name!r}: it did not run on the example; leave it out with layers=[...]")
    idle = [m for m in layers.values() if isinstance(m, ExpandedWeight) and not m.extra_in and not m.extra_out]
    idle += [m for m in layers.values() if m.extra_in is None and m not in idle]
    swap(expanded, {layer: layer.base for layer in idle})
    expanded.width = max((layer.extra_out for layer in expanded.layers().values()), default=0)


# --- Self-check ---------------------------------------------------------------------------------------------------------


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
