"""Step 1 of Algorithm 1 for any network: put theta_o2 beside theta_o1, and refuse what cannot be expanded (Sec. 5).

    expanded = expand(model, example, ratio=1.0)      # theta_o2 beside a copy of theta_o1
    logits = expanded(x, masks[index])                # theta_o1 and theta_o2, one mask row per example
    expanded = expand(vit, example, layers=["blocks.0.mlp.0"])    # where the default layers are refused

`wrap` puts a wrapper around every layer that extra channels may reach, `grow_to_fit` runs the network once and gives
each as many extra inputs as arrive at it, and `self_check` refuses networks in which extra channels do not stay apart.
"""

import contextlib

import torch
from torch import nn

from engine import (MaskedPass, check_network, check_same, copy_of, eval_mode, is_norm, is_weight, naming_errors,
                    run_pass, self_check, swap)
from etd import Expanded, ExpandedBatchNorm, ExpandedWeight

WIDEST = 2**40  # bits of a mask row in the dry run, in which the widest layer is not known yet; they take no memory
ADVICE = ("where some layers may get extra outputs, such as the first Linear of a feed-forward block, name them with "
          "layers=[...]")


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
        layers: names of the Conv2d or Linear layers that get extra outputs; they fit where the next layer takes all of
            a layer's outputs, as in a feed-forward block. None: the network's own `expandable`, else every Conv2d.
        generator: torch.Generator on the CPU for theta_o2's weights; None: one seeded with 0.
    Returns: an `Expanded` on the model's device, with its dtypes, training flags and memory formats; the model stays.
    Raises: ValueError: a ratio, example or layer name that cannot be used, or in training the network gives more than
        logits; TypeError: the network cannot be expanded; the text names the module.
    """
    check_arguments(ratio, example)
    if isinstance(model, Expanded):
        raise TypeError("the network is expanded already; drop it first or use it as it is")
    check_network(model)
    layers = None if layers is None else list(layers)  # read once for each try
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    state = generator.get_state()
    try:
        for mask_everywhere in (False, True):  # True: where a convolution feeds more than the norm that masks for it
            expanded = wrap(copy_of(model), ratio, layers)
            generator.set_state(state)
            grow_to_fit(expanded, example, generator, mask_everywhere)
            problem = self_check(expanded, example.shape[1:])
            if problem is None:
                break
        else:
            raise TypeError(problem)
    except TypeError as error:
        if layers is not None or hasattr(model, "expandable"):
            raise
        raise TypeError(f"{error}; {ADVICE}") from error
    check_same(expanded, model, example.shape[1:])
    return expanded


def check_arguments(ratio: float, example: torch.Tensor) -> None:
    """Raise a ValueError unless `ratio` is a width that can be made, and `example` a batch of inputs."""
    if not 0 <= ratio < float("inf"):
        raise ValueError(f"ratio is {ratio}; it must be extra width over base width, a finite number of at least 0")
    if not isinstance(example, torch.Tensor) or example.dim() < 2 or len(example) < 1:
        found = getattr(example, "shape", type(example).__name__)
        raise ValueError(f"example is {found}; it must be a batch of inputs, a tensor (B, ...) with B at least 1")


# --- Wrapping ---------------------------------------------------------------------------------------------------------

def wrap(net: nn.Module, ratio: float, layers) -> Expanded:
    """Wrap every layer of `net` that extra channels may reach; the named ones get extra outputs."""
    modules, wrappers = dict(net.named_modules()), {}
    layers = getattr(net, "expandable", None) if layers is None else layers
    names = {name for name, m in modules.items() if isinstance(m, nn.Conv2d)} if layers is None else set(layers)
    if not names:
        why = "it has no Conv2d" if layers is None else "no layer is named"
        raise TypeError(f"cannot expand {type(net).__name__}: {why}, so the layers to expand must be named")
    for name in sorted(names):
        if name not in modules:
            raise ValueError(f"the network has no layer {name!r}; it has {', '.join(k for k in modules if k)}")
        if not is_weight(modules[name]):
            kind = type(modules[name]).__name__
            raise TypeError(f"cannot expand {name!r}: this {kind} is no plain Conv2d or Linear with a weight of its "
                            "own; take off weight norm, pruning and the like")
    for name, module in modules.items():
        if is_weight(module):
            wrappers[module] = ExpandedWeight(module, ratio if name in names else 0)
        elif is_norm(module):
            wrappers[module] = ExpandedBatchNorm(module)
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
    own. After a layer has run, `leave` notes id(output): where that very tensor is what a BatchNorm reads, the norm
    masks for the layer, since the mask acts after BatchNorm.
    """
    layers, source_of = expanded.layers(), {}
    weight = next(expanded.parameters())
    x = example[:2].detach().to(weight.device, weight.dtype)

    def arrive(layer, args):
        extra_in, source = args[0].shape[layer.channel_dim] - layer.inputs, source_of.get(id(args[0]))
        if layer.extra_in is None:
            layer.grow(extra_in, generator)
        elif extra_in != layer.extra_in:
            raise TypeError("it runs twice with different numbers of extra channels")
        if isinstance(layer, ExpandedBatchNorm) and source and not mask_everywhere:
            source[1].mask_output = False

    def leave(layer, args, out):
        if isinstance(layer, ExpandedWeight):
            source_of[id(out)] = (out, layer)  # holding `out` keeps its id from going to another tensor

    with eval_mode(expanded), torch.no_grad():
        everything_on = MaskedPass(x.new_ones((len(x), 1), dtype=torch.bool).expand(-1, WIDEST))
        with naming_errors(expanded.net, [layer.base for layer in layers.values()]):
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
