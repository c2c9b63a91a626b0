"""Which networks can be expanded: what is refused beforehand, the self-check, and what to try instead.

    check_network(model)                             # a TypeError that names the module
    with naming_errors(net, bases):                  # an error of the forward pass names the module that was running
        ...
    problem = self_check(expanded, example.shape[1:])  # None, or why extra channels do not stay apart
"""

import contextlib

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from engine.modes import copy_of

SPREAD_TOLERANCE = 1e-8  # float64 rounding grows to 1e-10 of the spread in 150 layers; errors are > 1e-3
EXAMPLES = 6  # of the self-check: over three numbers of 1x1 maps BatchNorm magnifies rounding a thousandfold
# How far two passes of one function may differ, over the largest logit: on a GPU, and on a CPU, where they are equal
# but for libraries that sum in another order at another address.
ON_GPU = {torch.float16: 0.05, torch.bfloat16: 0.05, torch.float32: 1e-3, torch.float64: 1e-3}
ON_CPU = {torch.float16: 0.05, torch.bfloat16: 0.05, torch.float32: 1e-5, torch.float64: 1e-12}
POOL = 1_000_003  # numbers drawn for a network of the self-check, used again where it has more weights; a prime
# Subclasses that compute what their base class does (the norm, then its own activation), by name: no import is needed.
SAME_AS_LINEAR = "timm.layers.linear.Linear"
SAME_AS_NORM = "timm.layers.norm_act.BatchNormAct2d"
# What a network's forward pass raises where extra channels do not fit. Anything else is a bug of ours and goes through.
MISFIT = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)


# --- Before anything is wrapped ---------------------------------------------------------------------------------------

def check_expansion(ratio: float, example: torch.Tensor) -> None:
    """Raise a ValueError unless `ratio` is a width that can be made, and `example` a batch of inputs."""
    if not 0 <= ratio < float("inf"):
        raise ValueError(f"ratio is {ratio}; it must be extra width over base width, a finite number of at least 0")
    if not isinstance(example, torch.Tensor) or example.dim() < 2 or len(example) < 1:
        found = getattr(example, "shape", type(example).__name__)
        raise ValueError(f"example is {found}; it must be a batch of inputs, a tensor (B, ...) with B at least 1")


def check_network(model: nn.Module) -> None:
    """Raise a TypeError for a network that cannot be copied, whichever layers are named cannot be wrapped, or that is
    itself a wrapper around another."""
    for name, module in model.named_modules():
        where = repr(name) if name else f"the network {type(module).__name__}"
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise TypeError(f"cannot expand {where}: it is a {type(module).__name__}; take the network inside, .module")
        if hasattr(module, "_orig_mod"):
            raise TypeError(f"cannot expand {where}: it is compiled; take the network before compiling, ._orig_mod")
        pre = module._forward_pre_hooks.values()
        if any(type(hook).__name__ == "WeightNorm" for hook in pre):
            raise TypeError(f"cannot expand {where}: it has hooks of the old weight_norm, which a masked pass would "
                            "not run; take them off with torch.nn.utils.remove_weight_norm first")
        hooks = (pre, module._forward_hooks, module._backward_hooks, module._backward_pre_hooks)
        if (is_weight(module) or is_norm(module)) and any(hooks):
            raise TypeError(f"cannot expand {where}: it has hooks, which a masked pass would not run")
        if not is_norm(module) and getattr(module, "running_mean", None) is not None:
            sync = isinstance(module, nn.SyncBatchNorm)
            hint = "; build it with nn.BatchNorm2d, whose weights have the same names" if sync else ""
            raise TypeError(f"cannot expand {where}: masked passes would move the running statistics of "
                            f"{type(module).__name__}{hint}")
        if isinstance(module, (nn.AlphaDropout, nn.FeatureAlphaDropout)):
            raise TypeError(f"cannot expand {where}: {type(module).__name__} turns masked zeros into other values in "
                            "training")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise TypeError(f"cannot expand the network {type(model).__name__}: {name!r} is on the meta device, "
                            "without values; give it some with to_empty and load_state_dict first")
    copy_of(model)  # raises for what cannot be copied; other layers would not help there


def is_weight(module: nn.Module) -> bool:
    """Whether it is a Conv2d or Linear and computes nothing else than one: subclasses and parametrisations may."""
    kind = type(module)
    return kind in (nn.Conv2d, nn.Linear) or f"{kind.__module__}.{kind.__qualname__}" == SAME_AS_LINEAR


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


def out_of_memory(error: Exception) -> bool:
    """Whether there was no memory, which torch says with a RuntimeError; it tells nothing of the network."""
    said = ("allocate memory", "tried to allocate")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in said)


# --- Self-check -------------------------------------------------------------------------------------------------------

def self_check(expanded: nn.Module, shape: torch.Size) -> str | None:
    """Say why the extra channels do not stay apart from the base ones, or None if they do.

    With all-zero masks every layer must give its base pass's outputs, each example must meet its own mask, and with
    all-one masks every weight of theta_o2 must reach the output. Strict, because some networks that concatenate pass a
    loose test: weights drawn anew and batch statistics so that no signal vanishes, float64, differences relative to
    each layer's outputs. The last draw is positive, so that no ReLU is shut; the others keep gates open.
    """
    generator = torch.Generator().manual_seed(0)
    probe = copy_of(expanded).to("cpu", torch.float64)
    for module in probe.modules():  # batch statistics, and nothing else of training mode
        module.training = isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))
    x = torch.randn((EXAMPLES, *shape), generator=generator, dtype=torch.float64, device="cpu")
    unreached = {name for name in probe.theta_o2() if name.endswith((".to_base", ".to_extra"))}
    bases = [layer.base for layer in probe.layers().values()]
    with naming_errors(probe.net, bases), torch.enable_grad():
        for draw, positive in enumerate((False, False, True)):
            if draw == 1 and not unreached:
                continue  # the second draw is for small networks, where ReLUs may shut a whole layer off
            redraw(probe, generator, positive)
            x = x.abs() if positive else x
            if problem := leak(probe, x, positive):
                return problem
            if unreached:
                unreached -= reached(probe, x, generator)
        if unreached:
            cut_off = min(unreached).rpartition(".")[0]
            return f"cannot expand {cut_off!r}: its extra channels reach no output, so the network cuts them off"
        out = in_training(probe, x)
    if not isinstance(out, torch.Tensor):
        raise ValueError(f"in training the network gives a {type(out).__name__} instead of logits; switch its "
                         "auxiliary heads off, in torchvision with aux_logits=False")
    try:
        with torch.enable_grad():
            return mixed_up(probe.eval(), x)
    except MISFIT as error:  # no hooks are on here: with them a network may take another path
        if out_of_memory(error):
            raise
        return f"cannot expand the network {type(probe.net).__name__}: {error}"


def check_same(expanded: nn.Module, model: nn.Module, example: torch.Tensor) -> None:
    """Raise TypeError unless theta_o1 alone is the network, on inputs drawn in the shape of `example`, in eval mode.

    A network that asks its layers for their class finds wrappers there, and would silently be another one.
    """
    weight = next(model.parameters())
    x = torch.randn(example[:2].shape, generator=torch.Generator().manual_seed(0), device="cpu").to(weight)
    outs = []
    with torch.no_grad():
        for net in (copy_of(model).eval(), copy_of(expanded).eval()):
            with torch.random.fork_rng([]):
                torch.manual_seed(0)
                outs.append(net(x).double())
    own, found = outs
    tolerances = ON_CPU if weight.device.type == "cpu" else ON_GPU
    allowed = tolerances[weight.dtype] * own.abs().max()
    alike = torch.equal(own, found) or (own - found).abs().max() <= allowed  # False where a logit is NaN
    if not alike:
        raise TypeError(f"cannot expand the network {type(model).__name__}: with wrapped layers theta_o1 computes "
                        "something else, as where a network asks its layers for their class (isinstance, type); write "
                        "it so that it need not")


def in_training(probe: nn.Module, x: torch.Tensor):
    """What a masked pass gives in training mode, where auxiliary heads join; global random states stay."""
    with torch.random.fork_rng([]):
        return probe.train()(x, torch.ones((len(x), probe.width), dtype=torch.bool))


def leak(probe: nn.Module, x: torch.Tensor, positive: bool) -> str | None:
    """Where base outputs change although every mask is 0."""
    with torch.no_grad():
        base = layer_outputs(probe, x, None)
        zero = layer_outputs(probe, x, torch.zeros((len(x), probe.width), dtype=torch.bool))
    for (name, a), (_, b) in zip(base, zero):
        scale = a.abs().max() if positive else a.std()  # of positive numbers the spread may be next to nothing
        if differ(a, b, scale):
            return (f"cannot expand {name}: with every mask at 0 its base outputs still change, so extra channels do "
                    "not stay apart")
    return None


def differ(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor) -> bool:
    """Whether two outputs are further apart than rounding in float64 explains; NaN is apart from everything."""
    return not (a - b).abs().max() <= SPREAD_TOLERANCE * scale


def reached(probe: nn.Module, x: torch.Tensor, generator: torch.Generator) -> set[str]:
    """The weights of theta_o2, by name, that have a gradient with all masks on."""
    probe.zero_grad()
    out = probe(x, torch.ones((len(x), probe.width), dtype=torch.bool))
    (out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum().backward()
    return {name for name, p in probe.theta_o2().items() if p.grad is not None and p.numel() and p.grad.abs().max() > 0}


def mixed_up(probe: nn.Module, x: torch.Tensor) -> str | None:
    """Whether examples miss their masks, in eval mode: with one row on, others off, each must run as if alone."""
    norms = (m for m in probe.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)))
    if any(norm.running_mean is None for norm in norms):
        return None  # batch statistics in eval mode tie the examples together, so nothing can be told from them
    mask = torch.zeros((len(x), probe.width), dtype=torch.bool)
    mask[0] = True
    with torch.no_grad():
        on, off, out = probe(x[:1], mask[:1]), probe(x[1:], mask[1:]), probe(x, mask)
    size = on.abs().max()  # with masks on, outputs can be far larger
    if differ(out[:1], on, size) or differ(out[1:], off, off.std()):
        return "cannot expand the network: examples do not meet their own masks, so the batch is not the first axis"
    if differ(probe(x[:1], mask[:1]), on, size):
        return "cannot expand the network: without gradients it reads weights past its layers, which skips theta_o2"
    return None


def redraw(probe: nn.Module, generator: torch.Generator, positive: bool) -> None:
    """Draw every parameter anew: matrices at 1 / sqrt(fan-in), vectors near 0 (biases) or 1."""
    size = max(1, min(POOL, sum(p.numel() for p in probe.parameters())))
    pool, start = torch.randn(size, generator=generator, dtype=torch.float64, device="cpu"), 0
    with torch.no_grad():
        for name, p in probe.named_parameters():
            end = start + p.numel()
            values = (pool if end <= size else pool.repeat(-(-end // size)))[start:end].view(p.shape)
            start = end % size
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


# --- Which layers to name ---------------------------------------------------------------------------------------------

# Modules that keep channels apart, and 0 at 0: what goes in with extra channels comes out with them.
KEEPING = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh,
           nn.Dropout, nn.Dropout2d, nn.Identity, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


def followed_layers(net: nn.Module, example: torch.Tensor) -> list[str]:
    """Layers that another one follows with nothing but activations between, such as the first of a feed-forward block.

    A layer whose output is concatenated, too, is none: extra channels would stand among the others there.
    Args: net: on the meta device, put in eval mode; example: (B, ...) a batch of inputs, B >= 1.
    """
    order, names, before, origins = [], [], None, Origins()

    def leave(name, module, out):
        order.append((name, module))
        if is_weight(module):
            origins.begin(name, out)

    with torch.no_grad(), contextlib.ExitStack() as hooks:
        for name, module in net.named_modules():
            hooks.enter_context(module.register_forward_hook(lambda m, x, out, name=name: leave(name, m, out)))
        with origins:
            net.eval()(example[:2].detach().to("meta", next(net.parameters()).dtype))
    for name, module in order:
        if is_weight(module) and getattr(module, "groups", 1) == 1:
            if before and before[1].weight.shape[0] == module.weight.shape[1] and before[0] not in names:
                names.append(before[0])
            before = name, module
        elif not isinstance(module, (*KEEPING, nn.Sequential)) and not is_norm(module):
            before = before if is_weight(module) and module.groups == module.in_channels else None
    return [name for name in names if name not in origins.joined]


class Origins(TorchFunctionMode):
    """Follows the outputs of layers through torch's functions: `joined` are the layers whose outputs reach a `cat`."""

    def __init__(self):
        super().__init__()
        self.joined, self.of = set(), {}  # of: id of a tensor -> (the tensor, so that its id stays its own, names)

    def begin(self, name: str, out: torch.Tensor) -> None:
        """Note that a tensor is the output of a layer, whatever went in."""
        self.of[id(out)] = out, {name}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        read = [part for value in (*args, *(kwargs or {}).values())
                for part in (value if isinstance(value, (list, tuple)) else [value])]
        names = set().union(*(self.of[id(part)][1] for part in read if id(part) in self.of))
        if function in (torch.cat, torch.concat, torch.concatenate):
            self.joined |= names
        elif names and isinstance(out, torch.Tensor):
            self.of[id(out)] = out, names
        return out
