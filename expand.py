"""Step 1 of Algorithm 1 for any network: put theta_o2 beside theta_o1, and refuse what cannot be expanded (Sec. 5).

    expanded = expand(model, example, ratio=1.0)      # theta_o2 beside a copy of theta_o1
    logits = expanded(x, masks[index])                # theta_o1 and theta_o2, one mask row per example
    expanded = expand(vit, example, layers=hidden_layers(vit, example))   # where the default layers are refused

`wrap` puts a wrapper around every layer that extra channels may reach, `grow_to_fit` runs the network once and gives
each as many extra inputs as arrive at it, and `self_check` refuses networks in which extra channels do not stay apart.
"""

import contextlib

import torch
from torch import nn

from etd import EXTRA, Expanded, ExpandedBatchNorm, ExpandedWeight, MaskedPass, copy_of, eval_mode, run_pass, swap

SPREAD_TOLERANCE = 1e-8  # float64 rounding grows to about 1e-12 of the spread in deep networks; errors are > 1e-3
EXAMPLES = 3  # of the self-check: with two, BatchNorm makes +1 and -1 of 1x1 maps
POOL = 1_000_003  # numbers drawn for a network of the self-check, used again where it has more weights; a prime
# Subclasses that compute what their base class does (the norm, then its own activation), by name: no import is needed.
SAME_AS_LINEAR = "timm.layers.linear.Linear"
SAME_AS_NORM = "timm.layers.norm_act.BatchNormAct2d"
# What a network's forward pass raises where extra channels do not fit. Anything else is a bug of ours and goes through.
MISFIT = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)


def expand(model: nn.Module, example: torch.Tensor, ratio: float = 1.0, layers=None, generator=None) -> Expanded:
    """Put newly initialised theta_o2 beside a copy of a network (Alg. 1, step 1; Sec. 2's memorisation partition).

    Every Conv2d gets round(ratio * width) extra channels; BatchNorm and Linear follow what arrives. A Linear takes
    extra inputs and gives no extra output unless it is named, so no mask touches a logit. One dry run of `example`
    measures what arrives where, and a check in float64 and eval mode refuses an architecture in which extra channels do
    not stay apart.
    Args:
        model: any network of Conv2d (groups 1 or depthwise), BatchNorm, Linear and layers that act on single channels.
        example: (B, ...) a batch of inputs, B >= 1; only its shape matters.
        ratio: extra / base width, >= 0 and finite; 0 adds nothing.
        layers: names of the Conv2d or Linear layers that get extra outputs, see `hidden_layers`. None: the network's
            own `expandable`, else every Conv2d.
        generator: torch.Generator on the CPU for theta_o2's weights; None: one seeded with 0.
    Returns: an `Expanded` on the model's device, with its dtypes, training flags and memory formats; the model stays.
    Raises: ValueError: a ratio, example or layer name that cannot be used, or in training the network gives more than
        logits; TypeError: the network cannot be expanded; the text names the module.
    """
    if not 0 <= ratio < float("inf"):
        raise ValueError(f"ratio is {ratio}; it must be extra width over base width, a finite number of at least 0")
    if not isinstance(example, torch.Tensor) or example.dim() < 2 or len(example) < 1:
        found = getattr(example, "shape", type(example).__name__)
        raise ValueError(f"example is {found}; it must be a batch of inputs, a tensor (B, ...) with B at least 1")
    check_network(model)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    state = generator.get_state()
    try:
        for mask_everywhere in (False, True):  # True: where a convolution feeds more than the norm that masks for it
            expanded = wrap(copy_of(model), ratio, layers)
            generator.set_state(state)
            grow_to_fit(expanded, example, generator, mask_everywhere)
            problem = self_check(expanded, example.shape[1:])
            if problem is None:
                return expanded
        raise TypeError(problem)
    except TypeError as error:
        if layers is not None or hasattr(model, "expandable"):
            raise
        raise TypeError(f"{error}{suggestion(model, example)}") from error


# --- Wrapping ---------------------------------------------------------------------------------------------------------

def check_network(model: nn.Module) -> None:
    """Raise a TypeError for a network that cannot be copied or wrapped, or that is itself a wrapper around another."""
    if isinstance(model, Expanded):
        raise TypeError("the network is expanded already; drop it first or use it as it is")
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
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise TypeError(f"cannot expand the network {type(model).__name__}: {name!r} is on the meta device, "
                            "without values; give it some with to_empty and load_state_dict first")


def is_weight(module: nn.Module) -> bool:
    """Whether it is a Conv2d or Linear and computes nothing else than one: subclasses and parametrisations may."""
    kind = type(module)
    return kind in (nn.Conv2d, nn.Linear) or f"{kind.__module__}.{kind.__qualname__}" == SAME_AS_LINEAR


def is_norm(module: nn.Module) -> bool:
    """The same for BatchNorm over (B, C) or (B, C, H, W)."""
    kind = type(module)
    return kind in (nn.BatchNorm1d, nn.BatchNorm2d) or f"{kind.__module__}.{kind.__qualname__}" == SAME_AS_NORM


def wrap(net: nn.Module, ratio: float, layers) -> Expanded:
    """Wrap every layer of `net` that extra channels may reach; the named ones get extra outputs."""
    modules, wrappers = dict(net.named_modules()), {}
    layers = getattr(net, "expandable", None) if layers is None else layers
    names = {name for name, m in modules.items() if isinstance(m, nn.Conv2d)} if layers is None else set(layers)
    if not names:
        raise TypeError(f"cannot expand {type(net).__name__}: it has no Conv2d, so the layers to expand must be named")
    for name in sorted(names):
        if name not in modules:
            raise ValueError(f"the network has no layer {name!r}; it has {', '.join(k for k in modules if k)}")
        if not is_weight(modules[name]):
            kind = type(modules[name]).__name__
            raise TypeError(f"cannot expand {name!r}: {kind} is neither a plain Conv2d nor a plain Linear")
    for name, module in modules.items():
        if is_weight(module):
            wrappers[module] = ExpandedWeight(module, ratio if name in names else 0)
        elif is_norm(module):
            wrappers[module] = ExpandedBatchNorm(module)
        elif getattr(module, "running_mean", None) is not None:
            raise TypeError(f"cannot expand {name!r}: masked passes would move the running statistics of "
                            f"{type(module).__name__}")
        elif isinstance(module, (nn.AlphaDropout, nn.FeatureAlphaDropout)):
            raise TypeError(f"cannot expand {name!r}: {type(module).__name__} turns masked zeros into other values in "
                            "training")
    expanded = Expanded(net)
    for base, wrapper in [*wrappers.items(), (net, expanded)]:
        wrapper.training = base.training
    swap(expanded, wrappers)
    return expanded


# --- The dry run ------------------------------------------------------------------------------------------------------

def grow_to_fit(expanded: Expanded, example: torch.Tensor, generator: torch.Generator, mask_everywhere: bool) -> None:
    """Run `example` once with all masks on and grow each layer to the extra channels that arrive at it.

    What travels are activations with base channels first and extra ones behind, so a layer reads off its input how many
    extra ones arrive. Before it runs, its hook `arrive` grows it to that number; then it gives extra channels of its
    own. All masks are on, as rows of 2**40 bits that take no memory: the widest layer is not known before the end.
    After a layer has run, `leave` notes id(output): where that very tensor is what a BatchNorm reads, the norm masks
    for the layer, since the mask acts after BatchNorm.
    """
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
            source[1].mask_output = False

    def leave(layer, args, out):
        if isinstance(layer, ExpandedWeight):
            made_by[id(out)] = (out, layer)  # holding `out` keeps its id from going to another tensor

    with eval_mode(expanded), torch.no_grad():
        everything_on = MaskedPass(x.new_ones((len(x), 1), dtype=torch.bool).expand(-1, 2**40))
        with naming_errors(expanded.net):
            plain = expanded(x)
            with contextlib.ExitStack() as hooks:
                for layer in layers.values():
                    hooks.enter_context(layer.register_forward_pre_hook(arrive))
                    hooks.enter_context(layer.register_forward_hook(leave))
                wide = run_pass(expanded.net, x, everything_on, list(layers.values()))
            if wide.shape != plain.shape:
                raise TypeError(f"with extra channels it gives {tuple(wide.shape)} instead of {tuple(plain.shape)}; "
                                "name the layers to expand, without the one that makes the logits, with layers=[...]")
    settle(expanded)


def settle(expanded: Expanded) -> None:
    """Unwrap the weights that no extra channel concerns and note the width; a layer must have run to be expanded."""
    layers = expanded.layers()
    for name, layer in layers.items():
        if layer.extra_in is None and layer.extra_out:
            raise TypeError(f"cannot expand {name!r}: it did not run on the example; leave it out with layers=[...]")
    idle = [m for m in layers.values() if isinstance(m, ExpandedWeight) and not m.extra_in and not m.extra_out]
    idle += [m for m in layers.values() if m.extra_in is None and m not in idle]
    swap(expanded, {layer: layer.base for layer in idle})
    expanded.width = max((layer.extra_out for layer in expanded.layers().values()), default=0)


@contextlib.contextmanager
def naming_errors(net: nn.Module):
    """Turn what a forward pass raises inside the block into a TypeError that names the module that was running."""
    inside, bases = [], {m.base for m in net.modules() if isinstance(m, (ExpandedWeight, ExpandedBatchNorm))}
    with contextlib.ExitStack() as hooks:
        for name, module in net.named_modules():
            if module not in bases:  # a wrapper has the name that its base has in the original network
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
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


# --- Which layers -----------------------------------------------------------------------------------------------------

# Modules that keep channels apart, and 0 at 0: what goes in with extra channels comes out with them.
KEEPING = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh,
           nn.Dropout, nn.Dropout2d, nn.Identity, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


def hidden_layers(model: nn.Module, example: torch.Tensor) -> list[str]:
    """Names for `layers=` where the default is refused: channels meet in a norm, an attention or a concatenation.

    Args: model, left as it is; example: (B, ...) a batch of inputs, B >= 1.
    Returns: layers that another one follows, such as the first of a feed-forward block, where extra channels fit.
    """
    net = copy_of(model).to("meta")  # shapes are enough, so nothing is computed
    order, names, before = [], [], None
    with torch.no_grad(), contextlib.ExitStack() as hooks:
        for name, module in net.named_modules():
            hooks.enter_context(module.register_forward_hook(lambda m, x, out, name=name: order.append((name, m))))
        net.eval()(example[:2].detach().to("meta", next(net.parameters()).dtype))
    for name, module in order:
        if is_weight(module) and getattr(module, "groups", 1) == 1:
            if before and before[1].weight.shape[0] == module.weight.shape[1] and before[0] not in names:
                names.append(before[0])
            before = name, module
        elif not isinstance(module, (*KEEPING, nn.Sequential)) and not is_norm(module):
            before = before if is_weight(module) and module.groups == module.in_channels else None
    return names if takes_extra(net, example, names) else [name for name in names if takes_extra(net, example, [name])]


def takes_extra(net: nn.Module, example: torch.Tensor, names: list[str]) -> bool:
    """Whether a dry run gets through with one extra channel of each named layer."""
    try:
        expanded = wrap(copy_of(net), 0, names)
        for name in names:
            expanded.layers()[name].extra_out = 1
        grow_to_fit(expanded, example, torch.Generator(), mask_everywhere=False)
    except TypeError:
        return False
    return True


def suggestion(model: nn.Module, example: torch.Tensor) -> str:
    """What to try with layers=[...] where the default layers were refused."""
    try:
        names = hidden_layers(model, example)
    except MISFIT:  # the network does not run on the example, or not on shapes alone
        names = None
    if not names:
        return "; if some layers may get extra outputs, name them with layers=[...]"
    few = ", ".join(map(repr, names[:2])) + ", ..." * (len(names) > 2)
    return ("; name the layers that get extra outputs, for example those of "
            f"hidden_layers(model, example): layers=[{few}]")


# --- Self-check -------------------------------------------------------------------------------------------------------

def self_check(expanded: Expanded, shape: torch.Size) -> str | None:
    """Say why the extra channels do not stay apart from the base ones, or None if they do.

    With all-zero masks every layer must give its base pass's outputs, each example must meet its own mask, and with
    all-one masks every weight of theta_o2 must reach the output. Strict, because some networks that concatenate pass a
    loose test: weights drawn anew and batch statistics so that no signal vanishes, float64, differences relative to
    each layer's outputs. The last draw is positive, so that no ReLU is shut; the others keep gates open.
    """
    generator = torch.Generator().manual_seed(0)
    probe = copy_of(expanded).to("cpu", torch.float64)
    for module in probe.modules():  # batch statistics, and nothing else of training mode
        module.training = isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, ExpandedBatchNorm))
    x = torch.randn((EXAMPLES, *shape), generator=generator, dtype=torch.float64, device="cpu")
    unreached = {(name, part) for name, layer in probe.layers().items() for part in ("to_base", "to_extra")
                 if getattr(layer, part, None) is not None}
    with naming_errors(probe.net), torch.enable_grad():
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
            return (f"cannot expand {min(unreached)[0]!r}: its extra channels reach no output, so the network "
                    "cuts them off")
        out = in_training(probe, x)
    if not isinstance(out, torch.Tensor):
        raise ValueError(f"in training the network gives a {type(out).__name__} instead of logits; switch its "
                         "auxiliary heads off, in torchvision with aux_logits=False")
    try:
        with torch.enable_grad():
            return mixed_up(probe.eval(), x)
    except MISFIT as error:  # no hooks are on here: with them nn.TransformerEncoderLayer, for one, takes another path
        if out_of_memory(error):
            raise
        return f"cannot expand the network {type(probe.net).__name__}: {error}"


def in_training(probe: Expanded, x: torch.Tensor):
    """What a masked pass gives in training mode, where auxiliary heads join; global random states stay."""
    with torch.random.fork_rng([]):
        return probe.train()(x, torch.ones((len(x), probe.width), dtype=torch.bool))


def leak(probe: Expanded, x: torch.Tensor, positive: bool) -> str | None:
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


def reached(probe: Expanded, x: torch.Tensor, generator: torch.Generator) -> set[tuple[str, str]]:
    """The weights of theta_o2, (layer, part), that have a gradient with all masks on."""
    probe.zero_grad()
    out = probe(x, torch.ones((len(x), probe.width), dtype=torch.bool))
    (out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum().backward()
    grads = {(name, part): getattr(getattr(layer, part, None), "grad", None)
             for name, layer in probe.layers().items() for part in EXTRA}
    return {key for key, grad in grads.items() if grad is not None and grad.numel() and grad.abs().max() > 0}


def mixed_up(probe: Expanded, x: torch.Tensor) -> str | None:
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


def layer_outputs(probe: Expanded, x: torch.Tensor, mask: torch.Tensor | None) -> list[tuple[str, torch.Tensor]]:
    """The base part of each expanded layer's output, in running order, the network's last."""
    outputs = []
    with contextlib.ExitStack() as hooks:
        for name, layer in probe.layers().items():
            def keep(layer, args, out, name=name):
                outputs.append((repr(name), out.narrow(layer.channel_dim, 0, layer.outputs).clone()))
            hooks.enter_context(layer.register_forward_hook(keep))
        outputs.append(("the network", probe(x, mask)))
    return outputs


def extra_parts(expanded: Expanded, without_gradient: bool = False) -> set[tuple[str, str]]:
    """The parameters of theta_o2, (layer, part); or those that the last backward pass has left without a gradient."""
    parts = {(name, part): getattr(layer, part, None) for name, layer in expanded.layers().items() for part in EXTRA}
    return {key for key, p in parts.items()
            if p is not None and p.numel() and not (without_gradient and p.grad is not None)}
