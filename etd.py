"""Example-tied dropout: masks, the layers that carry theta_o2 beside theta_o1, training, and drop (Sec. 2, Sec. 5).

    masks = mask_table(n=len(data), width=expanded.width, p_mem=0.2, seed=0, shared=forget)
    logits = expanded(x, mask_rows(masks, index))     # theta_o1 and theta_o2, one mask row per example
    logits = expanded(x)                              # theta_o1 alone: what the original network computes
    model = drop(expanded)                            # theta_o1: the very layers, names and shapes of before

    ETD:  expanded = train_etd(expand(model, example), data, config, generator, fit);  model = drop(expanded)
"""

import torch
from torch import nn
from torch.nn import functional as F

from engine import (MaskedPass, MaskTable, channels_of, check_index, copy_of, draw_bits, initialiser, logits_of,
                    refresh_batchnorm, run_pass, run_with, swap, undisturbed)

# --- Masks ------------------------------------------------------------------------------------------------------------

def mask_table(n: int, width: int, p_mem: float, seed: int, shared: torch.Tensor | None = None) -> MaskTable:
    """Draw every example's mask of theta_o2, once (Sec. 2 "randomly determined ahead of training and then fixed").

    Choice: each bit is Bernoulli(p_mem); row i depends on (seed, width, i), never on n, call order or epoch; a layer
    with c extra channels uses the first c bits of a row, so layers joined by a residual sum agree.
    Args: n, width: training examples, and bits of a row (`Expanded.width`), >= 0; p_mem: probability that a bit is on,
        0.2 in A.3; seed: of the table; shared: (k,) int64 dataset indices that get one more row, drawn from the same
        seed and owned by no one else: D_f in REM (step 3.1), D_c in REM (IDEAL); None: no such row. Raises: ValueError.
    """
    if not 0 <= p_mem <= 1 or n < 0 or width < 0:
        raise ValueError(f"no mask table of {n} rows and {width} bits at p_mem {p_mem}: give at least 0, 0 and 0 to 1")
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int) -> torch.Tensor:
        # m_i ~ Bernoulli(p_mem), independently for each channel of theta_o2
        return torch.rand((rows, width), generator=generator, dtype=torch.float32, device="cpu") < p_mem

    drawn = draw_bits(n + 1, width, draw)  # row 0 is the shared one, row i + 1 example i's
    table = drawn.packed[1:]
    if shared is not None:
        table[check_index(shared, n).cpu()] = drawn.packed[0]
    return MaskTable(table, width)


def mask_rows(table: MaskTable, index: torch.Tensor) -> torch.Tensor:
    """Rows (B, width) bool by dataset index, (B,) int64 on the CPU; ValueError for one that is not from 0 to N - 1."""
    return table[check_index(index, len(table.packed)).to(table.packed.device, non_blocking=True)]


# --- Layers -----------------------------------------------------------------------------------------------------------

class ExpandedWeight(nn.Module):
    """A Conv2d or Linear beside its extra part: extra->base (`to_base`), base+extra->extra (`to_extra`, `extra_bias`).

    In a masked pass one wide layer runs, its extra outputs under the mask unless a BatchNorm follows, which masks its
    own (`mask_output`); in any other the base layer runs alone.
    """

    def __init__(self, base: nn.Conv2d | nn.Linear, ratio: float):
        super().__init__()
        self.base = base
        self.inputs, self.outputs, self.channel_dim, self.depthwise, self.grouped = channels_of(base)
        self.extra_in, self.extra_out = None, round(ratio * self.outputs)
        self.mask_output = True
        self.active = None  # the masked pass that lasts

    def grow(self, extra_in: int, generator: torch.Generator) -> None:
        """Make theta_o2 for this layer. Choice: torch's default initialiser at the wide layer's fan-in, biases 0."""
        if self.grouped and (extra_in or self.extra_out):
            raise TypeError("it is a grouped convolution that is not depthwise")
        self.extra_in = extra_in
        if self.depthwise:  # an extra channel brings filters of its own
            self.extra_out = extra_in * (self.outputs // self.inputs)
        wide_in = 1 if self.depthwise else self.inputs + extra_in
        fresh = initialiser(self.base.weight, wide_in, generator)
        self.to_base = fresh(self.outputs, extra_in) if extra_in and not self.depthwise else None
        self.to_extra = fresh(self.extra_out, wide_in) if self.extra_out else None
        has_bias = self.extra_out and self.base.bias is not None
        self.extra_bias = nn.Parameter(self.base.bias.new_zeros(self.extra_out)) if has_bias else None

    weight = property(lambda self: self.base.weight)  # theta_o1's, for a network that reads it instead of calling this
    bias = property(lambda self: self.base.bias)

    def __getattr__(self, name: str):  # out_features and the like are theta_o1's, too
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.active is None:
            return self.base(x)
        # W = [[theta_o1, to_base], [to_extra]],  b = [theta_o1's, extra_bias]
        wide = dict(self.base.named_parameters())  # weight and, if there is one, bias
        if self.to_base is not None:
            wide["weight"] = torch.cat([wide["weight"], self.to_base], dim=1)  # (out, in + extra_in, ...)
        if self.to_extra is not None:
            wide["weight"] = torch.cat([wide["weight"], self.to_extra])  # (out + extra_out, in + extra_in, ...)
        if self.extra_bias is not None:
            wide["bias"] = torch.cat([wide["bias"], self.extra_bias])
        x = run_with(self.base, wide, x, groups=self.extra_in if self.depthwise else 0)
        return masked(x, self) if self.mask_output else x


class ExpandedBatchNorm(nn.Module):
    """A BatchNorm beside the entries of the extra channels; the mask acts on its extra outputs.

    Base running statistics move in base-only passes alone. Masked passes keep statistics of their own for all channels,
    which belong to theta_o2 and go with it.
    """

    def __init__(self, base: nn.BatchNorm1d | nn.BatchNorm2d):
        super().__init__()
        self.base = base
        self.inputs = self.outputs = base.num_features
        self.channel_dim, self.extra_in, self.extra_out = 1, None, 0
        self.active = None  # the masked pass that lasts

    def grow(self, extra_in: int, generator: torch.Generator) -> None:
        """Make the extra entries: weight 1, bias 0, running mean 0, running variance 1; nothing is drawn."""
        base = self.base
        self.extra_in = self.extra_out = extra_in
        self.extra_weight = None if base.weight is None else nn.Parameter(base.weight.new_ones(extra_in))
        self.extra_bias = None if base.bias is None else nn.Parameter(base.bias.new_zeros(extra_in))
        for name, own in base.named_buffers():  # running_mean, running_var (channels,); num_batches_tracked ()
            new = own.new_full((extra_in,), float(name == "running_var"))
            self.register_buffer(name, torch.cat([own, new]) if own.dim() else own.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.active is None:
            return self.base(x)
        wide = dict(self.named_buffers(recurse=False))  # by the names that the base has for its own
        if self.base.weight is not None:
            wide["weight"] = torch.cat([self.base.weight, self.extra_weight])
        if self.base.bias is not None:
            wide["bias"] = torch.cat([self.base.bias, self.extra_bias])
        return masked(run_with(self.base, wide, x), self)


def masked(x: torch.Tensor, layer: ExpandedWeight | ExpandedBatchNorm) -> torch.Tensor:
    """Multiply by the mask: all examples pass through all of theta_o1, each through its own path in theta_o2."""
    if layer.extra_out == 0:
        return x
    mask = layer.active.over(layer.outputs, layer.extra_out, x.dtype)  # (B, outputs + extra_out)
    if len(x) != len(mask):
        raise RuntimeError(f"it runs on {len(x)} rows for {len(mask)} examples, so their masks do not fit")
    between = [1] * (x.dim() - 2)
    shape = (len(mask), -1, *between) if layer.channel_dim == 1 else (len(mask), *between, mask.shape[1])
    return x * mask.view(shape)  # (B, C, H, W) * (B, C, 1, 1), or (B, T, C) * (B, 1, C)


class Expanded(nn.Module):
    """A network with theta_o2 beside theta_o1, made by `expand`.

    `expanded(x)` runs theta_o1 alone: the original layers and nothing else, and gives the original's output.
    `expanded(x, mask)` runs theta_o1 and theta_o2; mask is (B, width) bool, a row per example.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.width = 0  # the widest extra part: bits of a mask row
        self.trained_under = None  # seed and p_mem of the masks of ETD training

    def layers(self) -> dict[str, ExpandedWeight | ExpandedBatchNorm]:
        """The expanded layers by the name that their base layer had in the original network."""
        wrapped = (ExpandedWeight, ExpandedBatchNorm)
        return {name.removeprefix("net").lstrip("."): m for name, m in self.named_modules() if isinstance(m, wrapped)}

    def theta_o2(self) -> dict[str, nn.Parameter]:
        """The extra parameters by layer and part, such as "features.0.to_extra"."""
        return {f"{name}.{part}": p for name, layer in self.layers().items()
                for part, p in layer.named_parameters(recurse=False)}

    def theta_o1(self) -> list[nn.Parameter]:
        """The original network's parameters."""
        extra = set(self.theta_o2().values())
        return [p for p in self.parameters() if p not in extra]

    def under(self, seed: int, p_mem: float) -> "Expanded":
        """Itself, to be masked by seed and p_mem; ValueError where ETD trained it under other masks."""
        if self.trained_under not in (None, (seed, p_mem)):
            raise ValueError(f"seed and p_mem are {seed}, {p_mem}, and ETD training had {self.trained_under[0]}, "
                             f"{self.trained_under[1]}: D_r would get other masks; give the same")
        return self

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if mask is not None and mask.shape != (wanted := (len(x), self.width)):
            raise ValueError(f"the mask has shape {tuple(mask.shape)}; it must be {wanted}, a row per example")
        return run_pass(self.net, x, None if mask is None else MaskedPass(mask), list(self.layers().values()))


# --- Training ---------------------------------------------------------------------------------------------------------

@undisturbed
def train_etd(expanded: Expanded, data, config, generator: torch.Generator, fit, shared: torch.Tensor | None = None,
              log=None) -> Expanded:
    """Train theta_o1 and theta_o2 together, each example through its own path in theta_o2 (Sec. 2).

    Args: expanded: a fresh network with theta_o2 beside it, trained in place; data: D_tr; config: of training, with
        p_mem and seed of the masks, batch and precision; generator: of order, augmentation and dropout; fit: the
        training loop, train.fit; shared: indices that share one row: D_c for ETD (IDEAL) of Fig. 9, an oracle; None:
        each its own; log: as in `fit`.
    Returns: the same network, base statistics refreshed; `drop` it for ETD alone, or hand it to rem.
    Raises: NonFiniteLoss: the rate is too high.
    """
    device = next(expanded.parameters()).device
    masks = mask_table(len(data), expanded.width, config.p_mem, config.seed, shared).to(device)

    def loss(index: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # L = E CE(f(x_i; theta_o1 and m_i theta_o2), y_i), labels as given
        return F.cross_entropy(logits_of(expanded, x, config.precision, mask_rows(masks, index)), y)

    fit(expanded, data, None, config, generator, loss=loss, log=log)
    refresh_batchnorm(expanded, data, config.batch)  # masked passes have left the base statistics behind
    expanded.trained_under = config.seed, config.p_mem
    return expanded


# --- Drop -------------------------------------------------------------------------------------------------------------

def drop(expanded: Expanded) -> nn.Module:
    """Discard theta_o2 (step 4): theta_o1 as a new, plain network of the original's keys, shapes and dtypes.

    Raises: TypeError for anything but an Expanded.
    """
    if not isinstance(expanded, Expanded):
        raise TypeError(f"drop takes the Expanded that expand returns, not a {type(expanded).__name__}")
    expanded = copy_of(expanded)
    swap(expanded, {layer: layer.base for layer in expanded.layers().values()})
    return expanded.net
