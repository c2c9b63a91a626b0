"""Example-tied dropout and the expansion that REM shares with it: masks, expand, drop, ETD training (Sec. 2, Sec. 5).

    expanded = expand(model, example, ratio=1.0)      # theta_o2 beside theta_o1
    logits = expanded(x, masks[index])                # theta_o1 and theta_o2, one mask row per example
    model = drop(expanded)                            # theta_o1: the very layers, names and shapes of before
"""

import copy

import torch
from torch import nn

import train
from data import Data, batches
from layers import Expanded, ExpandedBatchNorm, ExpandedWeight, run_masked
from metrics import eval_mode
from selfcheck import naming_errors, self_check
from settings import Config, stream


# --- Masks ------------------------------------------------------------------------------------------------------------


def mask_table(n: int, width: int, p_mem: float, seed: int, shared=None) -> torch.Tensor:
    """Draw every example's mask of theta_o2, once (Sec. 2 "randomly determined ahead of training and then fixed").

    Choice: each bit is Bernoulli(p_mem); row i depends on (seed, i) and never on n, call order or epoch; a layer with c
    extra channels uses the first c bits of a row, so layers joined by a residual sum agree.

    Args:
        n: number of training examples, >= 0.
        width: bits of a row, the widest extra part of the network (`Expanded.width`), >= 0.
        p_mem: probability that a bit is on, in [0, 1]; 0.2 in A.3.
        seed: of the table.
        shared: (k,) int64 dataset indices that get one more row, drawn from the same seed and owned by no one else:
            D_f in REM (Alg. 1, step 3.1), all of D_c in REM (IDEAL). None or empty: no shared row.

    Returns:
        (n, width) bool on the CPU, n * width bytes.

    Raises:
        ValueError: p_mem outside [0, 1], a negative size or an index out of range.
    """
    if not 0 <= p_mem <= 1:
        raise ValueError(f"p_mem is {p_mem}; it must be a probability in [0, 1]")
    if n < 0 or width < 0:
        raise ValueError(f"a mask table of {n} rows and {width} bits cannot be made; both must be at least 0")
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand((n + 1, width), generator=generator, dtype=torch.float32, device="cpu")
    table = draws < p_mem  # row 0 is the shared row, row i + 1 example i's
    shared_row, table = table[0], table[1:].clone()
    if shared is not None:
        table[check_index(shared, n)] = shared_row
    return table  # (n, width)


def mask_rows(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Look up mask rows by dataset index.

    Args:
        table: (N, width) bool.
        index: (B,) int64 dataset indices on the CPU.

    Returns:
        (B, width) bool on the table's device.

    Raises:
        ValueError: an index that is not an int64 vector, is negative or is at least N.
    """
    return table[check_index(index, len(table)).to(table.device, non_blocking=True)]  # (B, width)


def check_index(index: torch.Tensor, n: int) -> torch.Tensor:
    """Return `index` if it is an int64 vector with values in [0, n), else raise a ValueError that names the first bad one."""
    if not isinstance(index, torch.Tensor) or index.dtype != torch.int64 or index.dim() != 1:
        found = f"{index.dtype} of shape {tuple(index.shape)}" if isinstance(index, torch.Tensor) else type(index).__name__
        raise ValueError(f"dataset indices are {found}; they must be an int64 tensor of shape (k,)")
    outside = index[(index < 0) | (index >= n)]
    if len(outside):
        raise ValueError(f"index {outside[0].item()} out of range for {n} examples")
    return index


# --- Expand and drop ----------------------------------------------------------------------------------------------------


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


def swap(root: nn.Module, new: dict[nn.Module, nn.Module]) -> None:
    """Put new[child] wherever child stands below root; the keys of state dicts keep their order."""
    for parent in list(root.modules()):
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]


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


def drop(expanded: Expanded) -> nn.Module:
    """Discard theta_o2 and return theta_o1 (Alg. 1, step 4): the original network's keys, order, shapes and dtypes.

    Args:
        expanded: made by `expand`; it is left as it is.

    Returns:
        A plain network of its own storage, without masks, hooks or wrappers.

    Raises:
        TypeError: `expanded` is not an Expanded.
    """
    if not isinstance(expanded, Expanded):
        raise TypeError(f"drop takes the Expanded that expand returns, not a {type(expanded).__name__}")
    expanded = copy.deepcopy(expanded)
    swap(expanded, {layer: layer.base for layer in expanded.layers().values()})
    return expanded.net


# --- ETD training -------------------------------------------------------------------------------------------------------


def refresh_batchnorm(model: nn.Module, data: Data, size: int = 512, generator: torch.Generator | None = None) -> None:
    """Recompute base running statistics, in place, from base-only passes over the training images; no label is read.

    Training with masks alone never moves them. Choice: cumulative means over one shuffled pass without augmentation.

    Args:
        model: Expanded or plain network.
        data: the training images.
        size: batch size.
        generator: of the order; None: one seeded with 0.
    """
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) and m.running_mean is not None]
    momenta = [m.momentum for m in norms]
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    dtype = next(model.parameters()).dtype
    try:
        with eval_mode(model), torch.no_grad():
            for norm in norms:
                norm.reset_running_stats()
                norm.training, norm.momentum = True, None  # None: a cumulative mean instead of an exponential one
            for _, x, _ in batches(data, size=size, generator=generator, dtype=dtype):
                model(x)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def train_etd(model: nn.Module, data: Data, config: Config, generator: torch.Generator, shared=None, log=None) -> Expanded:
    """Train theta_o1 and theta_o2 together with example-tied masks (Sec. 2, "Example-Tied Dropout").

    Args:
        model: freshly initialised network; left as it is.
        data: D_tr with its labels as given.
        config: training settings; `ratio`, `p_mem` and `seed` shape theta_o2 and the masks.
        generator: of order and augmentation.
        shared: indices that share one row: D_c for ETD (IDEAL) of Fig. 9, which knows more than it may. None: each its own.
        log: called once an epoch, see train.fit.

    Returns:
        The trained Expanded, base statistics refreshed; `drop` it for ETD alone, or hand it to rem.
    """
    expanded = expand_for(model, data, config)
    masks = mask_table(len(data), expanded.width, config.p_mem, config.seed, shared)
    train.fit(expanded, data, None, config, generator, masks=masks, log=log)
    refresh_batchnorm(expanded, data, config.batch)
    return expanded


def expand_for(model: nn.Module, data: Data, config: Config) -> Expanded:
    """`expand` at the settings' ratio for the data's image shape, theta_o2 drawn from the settings' seed."""
    weight = next(model.parameters())
    example = torch.zeros((2, *data.images.shape[1:]), device=weight.device)
    return expand(model, example, config.extra_ratio, generator=stream(config.seed, "theta_o2"))
