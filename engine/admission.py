"""Which networks can be expanded: a few kinds are refused by name, all others by a check that compares outputs.

    check_network(model)                               # a TypeError that names the module
    with naming_errors(net, bases):                    # an error of the forward pass names the module that was running
        ...
    problem = self_check(expanded, example.shape[1:])  # None, or why extra channels do not stay apart
    check_same(expanded, model, example.shape[1:])     # a TypeError unless theta_o1 alone is the network
"""

import contextlib

import torch
from torch import nn

from engine.checks import out_of_memory
from engine.modes import copy_of

TOLERANCE = 1e-8  # float64 rounding grows to 1e-10 of the spread in 150 layers; errors are > 1e-3
EXAMPLES = 6  # of the checks: over three numbers of 1x1 maps BatchNorm magnifies rounding a thousandfold
# Subclasses that compute what their base class does (the norm, then its own activation), by name: no import is needed.
SAME_AS_LINEAR = "timm.layers.linear.Linear"
SAME_AS_NORM = "timm.layers.norm_act.BatchNormAct2d"
# What a network's forward pass raises where extra channels do not fit. Anything else is a bug of ours and goes through.
MISFIT = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)


# --- By name ----------------------------------------------------------------------------------------------------------

def check_network(model: nn.Module) -> None:
    """Raise a TypeError for a network that cannot be copied, or that has what no comparison of outputs would show."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        where = repr(name) if name else f"the network {kind}"
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise TypeError(f"cannot expand {where}: it is a {kind}; take the network inside, .module")
        if hasattr(module, "_orig_mod"):
            raise TypeError(f"cannot expand {where}: it is compiled; take the network before compiling, ._orig_mod")
        if not is_norm(module) and getattr(module, "running_mean", None) is not None:
            raise TypeError(f"cannot expand {where}: masked passes would move the running statistics of {kind}; "
                            "build it with nn.BatchNorm1d or nn.BatchNorm2d")
        if isinstance(module, (nn.AlphaDropout, nn.FeatureAlphaDropout)):
            raise TypeError(f"cannot expand {where}: {kind} turns masked zeros into other values in training")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise TypeError(f"cannot expand the network {type(model).__name__}: {name!r} is on the meta device, "
                            "without values; give it some with to_empty and load_state_dict first")
    copy_of(model)


def is_weight(module: nn.Module) -> bool:
    """Whether it is a Conv2d or Linear and computes nothing else than one with its own weight.

    A subclass may compute something else; weight norm, pruning and parametrisations make the weight of other tensors.
    """
    kind = type(module)
    known = kind in (nn.Conv2d, nn.Linear) or f"{kind.__module__}.{kind.__qualname__}" == SAME_AS_LINEAR
    return known and "weight" in module._parameters


def is_norm(module: nn.Module) -> bool:
    """The same for BatchNorm over (B, C) or (B, C, H, W)."""
    kind = type(module)
    return kind in (nn.BatchNorm1d, nn.BatchNorm2d) or f"{kind.__module__}.{kind.__qualname__}" == SAME_AS_NORM


@contextlib.contextmanager
def naming_errors(net: nn.Module, bases):
    """Turn what a forward pass raises inside the block into a TypeError that names the module that was running.

    bases: the layers inside wrappers; a wrapper has the name that its base has in the original network.
    """
    inside, bases = [], set(bases)
    with contextlib.ExitStack() as hooks:
        for name, module in net.named_modules():
            if module not in bases:
                where = repr(name) if name else f"the network {type(module).__name__}"
                hooks.enter_context(module.register_forward_pre_hook(lambda m, x, where=where: inside.append(where)))
                hooks.enter_context(module.register_forward_hook(lambda m, x, out: inside.pop() and None))
        try:
            yield
        except MISFIT as error:
            if out_of_memory(error):
                raise
            raise TypeError(f"cannot expand {inside[-1] if inside else 'the network'}: {error}") from error


# --- By its outputs ---------------------------------------------------------------------------------------------------

def self_check(expanded: nn.Module, shape: torch.Size) -> str | None:
    """Say why the extra channels do not stay apart from the base ones, or None if they do.

    With all-zero masks every layer must give its base pass's outputs, each example must meet its own mask, and with
    all-one masks every weight of theta_o2 must reach the output. Strict, because some networks that concatenate pass a
    loose test: in float64, differences relative to each layer's outputs, with weights drawn at random and batch
    statistics, so that no signal vanishes. The last draw is positive, so that no ReLU is shut; the others keep gates
    open.
    Raises: TypeError: a pass fails, which names the module; ValueError: in training it gives more than logits.
    """
    generator = torch.Generator().manual_seed(0)
    probe = copy_of(expanded).to("cpu", torch.float64)
    for module in probe.modules():  # batch statistics, and nothing else of training mode
        module.training = isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))
    x = torch.randn((EXAMPLES, *shape), generator=generator, dtype=torch.float64, device="cpu")
    unreached = {name for name in probe.theta_o2() if name.endswith((".to_base", ".to_extra"))}
    bases = [layer.base for layer in probe.layers().values()]
    with naming_errors(probe.net, bases), torch.enable_grad(), torch.random.fork_rng([]):
        for draw, positive in enumerate((False, False, True)):
            if draw == 1 and not unreached:
                continue  # the second draw is for small networks, where ReLUs may shut a whole layer off
            redraw(probe, generator, positive)
            x = x.abs() if positive else x
            if problem := leak(probe, x, positive):
                return problem
            unreached -= reached(probe, x, generator)
        out = probe.train()(x, masks_of(probe, x, True))
    if unreached:
        cut_off = min(unreached).rpartition(".")[0]
        return f"cannot expand {cut_off!r}: its extra channels reach no output, so the network cuts them off"
    if not isinstance(out, torch.Tensor):
        raise ValueError(f"in training the network gives a {type(out).__name__} instead of logits; switch its "
                         "auxiliary heads off, in torchvision with aux_logits=False")
    try:
        return mixed_up(probe.eval(), x)
    except MISFIT as error:  # no hooks are on here: with them a network may take another path
        if out_of_memory(error):
            raise
        return f"cannot expand the network {type(probe.net).__name__}: {error}"


def check_same(expanded: nn.Module, model: nn.Module, shape: torch.Size) -> None:
    """Raise TypeError unless theta_o1 alone is the network, in eval mode and float64.

    A network that asks its layers for their class finds wrappers there, and would silently be another one.
    """
    x = torch.randn((EXAMPLES, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
    with torch.no_grad():
        own, found = (copy_of(net).to("cpu", torch.float64).eval()(x) for net in (model, expanded))
    if differ(own, found, own.abs().max()):
        raise TypeError(f"cannot expand the network {type(model).__name__}: with wrapped layers theta_o1 computes "
                        "something else, as where a network asks its layers for their class (isinstance, type); write "
                        "it so that it need not")


def masks_of(probe: nn.Module, x: torch.Tensor, on: bool) -> torch.Tensor:
    """(B, width) bool, all on or all off."""
    return torch.full((len(x), probe.width), on, device="cpu")


def leak(probe: nn.Module, x: torch.Tensor, positive: bool) -> str | None:
    """Where base outputs change although every mask is 0."""
    with torch.no_grad():
        base, zero = layer_outputs(probe, x, None), layer_outputs(probe, x, masks_of(probe, x, False))
    for (name, a), (_, b) in zip(base, zero):
        scale = a.abs().max() if positive else a.std()  # of positive numbers the spread may be next to nothing
        if differ(a, b, scale):
            return (f"cannot expand {name}: with every mask at 0 its base outputs still change, so extra channels do "
                    "not stay apart")
    return None


def differ(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor) -> bool:
    """Whether two outputs are further apart than rounding in float64 explains; NaN is apart from everything."""
    return not (a - b).abs().max() <= TOLERANCE * scale


def reached(probe: nn.Module, x: torch.Tensor, generator: torch.Generator) -> set[str]:
    """The weights of theta_o2, by name, that have a gradient with all masks on."""
    probe.zero_grad()
    out = probe(x, masks_of(probe, x, True))
    (out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum().backward()
    return {name for name, p in probe.theta_o2().items() if p.grad is not None and p.numel() and p.grad.abs().max() > 0}


@torch.no_grad()
def mixed_up(probe: nn.Module, x: torch.Tensor) -> str | None:
    """Whether examples miss their masks, in eval mode: with one row on, others off, each must run as if alone."""
    norms = (m for m in probe.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)))
    if any(norm.running_mean is None for norm in norms):
        return None  # batch statistics in eval mode tie the examples together, so nothing can be told from them
    mask = masks_of(probe, x, False)
    mask[0] = True
    on, off, out = probe(x[:1], mask[:1]), probe(x[1:], mask[1:]), probe(x, mask)
    with torch.enable_grad():
        slow = probe(x[:1], mask[:1])
    size = on.abs().max()  # with masks on, outputs can be far larger
    if differ(out[:1], on, size) or differ(out[1:], off, off.std()):
        return "cannot expand the network: examples do not meet their own masks, so the batch is not the first axis"
    if differ(slow, on, size):
        return "cannot expand the network: without gradients it reads weights past its layers, which skips theta_o2"
    return None


def redraw(probe: nn.Module, generator: torch.Generator, positive: bool) -> None:
    """Draw every parameter: matrices at 1 / sqrt(fan-in), vectors near 0 (biases) or 1."""
    with torch.no_grad():
        for name, p in probe.named_parameters():
            values = torch.randn(p.shape, generator=generator, dtype=torch.float64, device="cpu")
            if p.dim() >= 2 and p.numel():
                p.copy_(values.abs() if positive else values).div_(p[0].numel() ** 0.5)
            elif p.dim() == 1:
                p.copy_(0.1 * values + (0 if name.endswith("bias") else 1))


def layer_outputs(probe: nn.Module, x: torch.Tensor, mask: torch.Tensor | None) -> list[tuple[str, torch.Tensor]]:
    """The base part of each expanded layer's output, in running order, the network's last."""
    outputs = []
    with contextlib.ExitStack() as hooks:
        for name, layer in probe.layers().items():
            def keep(layer, args, out, name=name):
                outputs.append((repr(name), out.narrow(layer.channel_dim, 0, layer.outputs).clone()))
            hooks.enter_context(layer.register_forward_hook(keep))
        outputs.append(("the network", probe(x, mask)))
    return outputs
