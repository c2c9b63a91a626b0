"""Example-tied dropout: masks, the layers that carry theta_o2 beside theta_o1, and drop (Sec. 2, Sec. 5).

    masks = mask_table(n=len(data), width=expanded.width, p_mem=0.2, seed=0, shared=forget)
    logits = expanded(x, mask_rows(masks, index))     # theta_o1 and theta_o2, one mask row per example
    logits = expanded(x)                              # theta_o1 alone: what the original network computes
    model = drop(expanded)                            # theta_o1: the very layers, names and shapes of before
"""

import contextlib
import copy
import hashlib
import math
from dataclasses import dataclass, field, replace

import torch
from torch import distributed as dist, nn

EXTRA = ("to_base", "to_extra", "extra_weight", "extra_bias")  # theta_o2: what a layer's extra parameters are called
DRAWS = 2**20  # random numbers of a mask table that are in memory at a time


class NonFiniteLoss(ArithmeticError):
    """A loss, a logit or a weight is not a finite number any more; the text says where."""


# --- Masks ------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True, eq=False)
class MaskTable:
    """Every example's mask of theta_o2, a bit a channel: 1.28 million rows of 512 bits take 82 MB.

    table[rows] is (..., width) bool, for all `rows` that a tensor takes.
    """

    packed: torch.Tensor  # (N, ceil(width / 8)) uint8, the lowest bit first
    width: int

    def __getitem__(self, rows) -> torch.Tensor:
        places = torch.arange(8, dtype=torch.uint8, device=self.packed.device)
        bits = self.packed[rows][..., None] >> places & 1  # (..., ceil(width / 8), 8)
        return bits.flatten(-2)[..., : self.width].bool()

    def to(self, device) -> "MaskTable":
        return replace(self, packed=self.packed.to(device))


def mask_table(n: int, width: int, p_mem: float, seed: int, shared=None) -> MaskTable:
    """Draw every example's mask of theta_o2, once (Sec. 2 "randomly determined ahead of training and then fixed").

    Choice: each bit is Bernoulli(p_mem); row i depends on (seed, width, i), never on n, call order or epoch; a layer
    with c extra channels uses the first c bits of a row, so layers joined by a residual sum agree.
    Args: n, width: training examples, and bits of a row (`Expanded.width`), >= 0; p_mem: probability that a bit is on,
        0.2 in A.3; seed: of the table; shared: (k,) int64 dataset indices that get one more row, drawn from the same
        seed and owned by no one else: D_f in REM (step 3.1), D_c in REM (IDEAL); None: no such row. Raises: ValueError.
    """
    if not 0 <= p_mem <= 1 or n < 0 or width < 0:
        raise ValueError(f"no mask table of {n} rows and {width} bits at p_mem {p_mem}: give at least 0, 0 and 0 to 1")
    generator, columns = torch.Generator().manual_seed(seed), -(-width // 8)
    table = torch.zeros((n + 1, columns), dtype=torch.uint8, device="cpu")  # row 0 is the shared one, i + 1 example i's
    for rows in table.split(max(1, DRAWS // max(1, width))):  # never all N * width numbers at once
        draws = torch.rand((len(rows), width), generator=generator, dtype=torch.float32, device="cpu")
        bits = nn.functional.pad(draws < p_mem, (0, 8 * columns - width)).view(len(rows), columns, 8).to(torch.uint8)
        rows |= (bits << torch.arange(8, dtype=torch.uint8, device="cpu")).sum(dim=2, dtype=torch.uint8)
    shared_row, table = table[0], table[1:]
    if shared is not None:
        table[check_index(shared, n).cpu()] = shared_row
    return MaskTable(table, width)


def mask_rows(table: MaskTable, index: torch.Tensor) -> torch.Tensor:
    """Rows (B, width) bool by dataset index, (B,) int64 on the CPU; ValueError for one that is not from 0 to N - 1."""
    return table[check_index(index, len(table.packed)).to(table.packed.device, non_blocking=True)]


def check_index(index: torch.Tensor, n: int) -> torch.Tensor:
    """Return `index` if it is an int64 vector with values in [0, n); a ValueError names the first that is not."""
    is_tensor = isinstance(index, torch.Tensor)
    if not is_tensor or index.dtype != torch.int64 or index.dim() != 1:
        found = f"{index.dtype} of shape {tuple(index.shape)}" if is_tensor else type(index).__name__
        raise ValueError(f"dataset indices are {found}; they must be an int64 tensor of shape (k,)")
    outside = index[(index < 0) | (index >= n)]
    if len(outside):
        raise ValueError(f"index {outside[0].item()} out of range for {n} examples")
    return index


# --- Layers -----------------------------------------------------------------------------------------------------------

@dataclass(eq=False)
class MaskedPass:
    """What the expanded layers hold while one masked pass lasts; without it (None) the base layers run alone."""

    mask: torch.Tensor  # (B, width) bool, a row per example
    wide: dict[tuple, torch.Tensor] = field(default_factory=dict)  # (outputs, extra, dtype) -> (B, outputs + extra)


class ExpandedWeight(nn.Module):
    """A Conv2d or Linear beside its extra part: extra->base (`to_base`), base+extra->extra (`to_extra`, `extra_bias`).

    With `keep` one wide layer runs, its extra outputs under the mask unless a BatchNorm follows, which masks its own
    (`mask_output`); without, the base layer runs alone.
    """

    def __init__(self, base: nn.Conv2d | nn.Linear, ratio: float):
        super().__init__()
        self.base = base
        self.is_conv = isinstance(base, nn.Conv2d)
        self.depthwise = self.is_conv and 1 < base.groups == base.in_channels
        self.inputs = base.in_channels if self.is_conv else base.in_features
        self.outputs = base.out_channels if self.is_conv else base.out_features
        self.channel_dim = 1 if self.is_conv else -1
        self.extra_in, self.extra_out = None, round(ratio * self.outputs)
        self.mask_output, self.keep = True, None  # keep: the MaskedPass that lasts

    def grow(self, extra_in: int, generator: torch.Generator) -> None:
        """Make theta_o2 for this layer. Choice: torch's default initialiser at the wide layer's fan-in, biases 0."""
        weight, self.extra_in = self.base.weight, extra_in
        if self.depthwise:
            self.extra_out = extra_in * (self.outputs // self.inputs)
        elif self.is_conv and self.base.groups > 1 and (extra_in or self.extra_out):
            raise TypeError("it is a grouped convolution that is not depthwise")
        wide_in = 1 if self.depthwise else self.inputs + extra_in
        bound = (wide_in * weight[0, 0].numel()) ** -0.5  # kaiming_uniform with a = sqrt(5): 1 / sqrt(fan-in)
        nhwc = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if nhwc and not weight.is_contiguous() else torch.contiguous_format

        def fresh(rows: int, columns: int) -> nn.Parameter:
            values = torch.rand((rows, columns, *weight.shape[2:]), generator=generator, dtype=torch.float64)
            values = ((2 * values - 1) * bound).to(weight.dtype).to(weight.device)
            return nn.Parameter(values.contiguous(memory_format=layout))

        self.to_base = fresh(self.outputs, extra_in) if extra_in and not self.depthwise else None
        self.to_extra = fresh(self.extra_out, wide_in) if self.extra_out else None
        has_bias = self.extra_out and self.base.bias is not None
        self.extra_bias = nn.Parameter(self.base.bias.new_zeros(self.extra_out)) if has_bias else None

    weight = property(lambda self: self.base.weight)  # theta_o1's, for a network that reads it instead of calling this
    bias = property(lambda self: self.base.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.keep is None:
            return self.base(x)
        base, wide = self.base, dict(self.base.named_parameters())  # weight and, if there is one, bias
        if self.to_base is not None:
            wide["weight"] = torch.cat([wide["weight"], self.to_base], dim=1)  # (out, in + extra_in, ...)
        if self.to_extra is not None:
            wide["weight"] = torch.cat([wide["weight"], self.to_extra])  # (out + extra_out, in + extra_in, ...)
        if self.extra_bias is not None:
            wide["bias"] = torch.cat([wide["bias"], self.extra_bias])
        if self.depthwise:
            base = copy.copy(base)
            base.groups += self.extra_in
        x = torch.func.functional_call(base, wide, x)  # the base's own stride, padding and dilation
        return masked(x, self) if self.extra_out and self.mask_output else x


class ExpandedBatchNorm(nn.Module):
    """A BatchNorm beside the entries of the extra channels; the mask acts on its extra outputs.

    Base running statistics move in base-only passes alone. Masked passes keep statistics of their own for all channels,
    which belong to theta_o2 and go with it.
    """

    def __init__(self, base: nn.BatchNorm1d | nn.BatchNorm2d):
        super().__init__()
        self.base = base
        self.inputs = self.outputs = base.num_features
        self.channel_dim, self.extra_in, self.extra_out, self.keep = 1, None, 0, None

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
        if self.keep is None:
            return self.base(x)
        base, wide = self.base, dict(self.named_buffers(recurse=False))  # by the names that the base has for its own
        if base.weight is not None:
            wide["weight"] = torch.cat([base.weight, self.extra_weight])
        if base.bias is not None:
            wide["bias"] = torch.cat([base.bias, self.extra_bias])
        return masked(torch.func.functional_call(base, wide, x), self)  # all that the base computes, on all channels


def masked(x: torch.Tensor, layer: ExpandedWeight | ExpandedBatchNorm) -> torch.Tensor:
    """Multiply by the mask: 1 for every base channel, the first bits of the example's row for the extra ones."""
    if layer.extra_out == 0:
        return x
    bits, wide = layer.keep.mask[:, : layer.extra_out], layer.keep.wide
    if len(x) != len(bits):
        raise RuntimeError(f"it runs on {len(x)} rows for {len(bits)} examples, so their masks do not fit")
    key = (layer.outputs, layer.extra_out, x.dtype)
    if key not in wide:
        wide[key] = torch.cat([bits.new_ones((len(bits), layer.outputs)), bits], dim=1).to(x.dtype)
    mask, between = wide[key], [1] * (x.dim() - 2)  # (B, outputs + extra_out)
    shape = (len(bits), -1, *between) if layer.channel_dim == 1 else (len(bits), *between, mask.shape[1])
    return x * mask.view(shape)  # (B, C, H, W) * (B, C, 1, 1), or (B, T, C) * (B, 1, C)


class Expanded(nn.Module):
    """A network with theta_o2 beside theta_o1, made by `expand`.

    `expanded(x)` runs theta_o1 alone: the original layers and nothing else, the original's output bit for bit.
    `expanded(x, mask)` runs theta_o1 and theta_o2; mask is (B, width) bool, a row per example.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.width = 0  # the widest extra part: bits of a mask row

    def layers(self) -> dict[str, ExpandedWeight | ExpandedBatchNorm]:
        """The expanded layers by the name that their base layer had in the original network."""
        wrapped = (ExpandedWeight, ExpandedBatchNorm)
        return {name.removeprefix("net").lstrip("."): m for name, m in self.named_modules() if isinstance(m, wrapped)}

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        layers = list(self.layers().values())
        if mask is not None and mask.shape != (wanted := (len(x), self.width)):
            raise ValueError(f"the mask has shape {tuple(mask.shape)}; it must be {wanted}, a row per example")
        return run_pass(self.net, x, None if mask is None else MaskedPass(mask), layers)


def run_pass(net: nn.Module, x: torch.Tensor, keep: MaskedPass | None, layers: list) -> torch.Tensor:
    """net(x) while every expanded layer holds `keep`; the layers let go of it whatever happens.

    They hold it again while the backward pass goes through this pass: activation checkpointing runs blocks anew there.
    """
    def hold(what: MaskedPass | None) -> None:
        for layer in layers:
            layer.keep = what

    def enter(grad: torch.Tensor) -> None:
        hold(keep)
        torch.autograd.Variable._execution_engine.queue_callback(lambda: hold(None))  # at the end of the backward pass

    try:
        hold(keep)
        out = net(x)
    finally:
        hold(None)
    if isinstance(out, torch.Tensor) and out.requires_grad:
        out.register_hook(enter)  # of several passes in one loss, the backward pass takes the latest first, each whole
    return out


def drop(expanded: Expanded) -> nn.Module:
    """Discard theta_o2 (step 4): theta_o1 as a new, plain network of the original's keys, shapes, dtypes; TypeError."""
    if not isinstance(expanded, Expanded):
        raise TypeError(f"drop takes the Expanded that expand returns, not a {type(expanded).__name__}")
    expanded = copy_of(expanded)
    swap(expanded, {layer: layer.base for layer in expanded.layers().values()})
    return expanded.net


def copy_of(net: nn.Module) -> nn.Module:
    """A deep copy; torch cannot copy a tensor with its autograd graph, which some networks keep: it is detached."""
    kept = [value for module in net.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    return copy.deepcopy(net, {id(value): value.detach() for value in kept if not value.is_leaf})


def swap(root: nn.Module, new: dict[nn.Module, nn.Module]) -> None:
    """Put new[child] wherever child stands below root; the keys of state dicts keep their order."""
    for parent in list(root.modules()):
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]


# --- What training and unlearning share -------------------------------------------------------------------------------

def logits_of(net: nn.Module, x: torch.Tensor, precision: str, mask: torch.Tensor | None = None) -> torch.Tensor:
    """(B, classes) logits in float32 at least, computed in "bf16", "float32" or with "auto" in bf16 on GPUs alone."""
    bf16 = precision == "bf16" or (precision == "auto" and x.device.type == "cuda")
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=bf16 and x.dtype != torch.float16):
        logits = net(x) if mask is None else net(x, mask)
    if not isinstance(logits, torch.Tensor):
        raise TypeError(f"the network gives a {type(logits).__name__}, not logits; switch auxiliary heads off")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def make_optimizer(model: nn.Module, config, lr: float) -> torch.optim.Optimizer:
    """SGD with momentum and weight decay, or Adam without (Table 3), over every trainable parameter, each once."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("every parameter of the network is frozen; set requires_grad where training may change it")
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=lr, foreach=True)
    return torch.optim.SGD(parameters, lr=lr, momentum=config.momentum, weight_decay=config.weight_decay, foreach=True)


def ranks() -> tuple[int, int]:
    """Rank of this process and number of processes of the run, (0, 1) without torch.distributed."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def over_ranks(values: list[torch.Tensor], weight: float | None = None) -> None:
    """Sum tensors over the processes of the run, in place; with `weight` take their weighted means."""
    if ranks()[1] > 1:
        flat = torch.cat([*(value.flatten() for value in values), values[0].new_ones(1)]) * (weight or 1)
        dist.all_reduce(flat)
        parts = (flat / flat[-1] if weight else flat).split([*(value.numel() for value in values), 1])
        for value, part in zip(values, parts, strict=False):
            value.copy_(part.view_as(value))


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor, count: int = 1) -> torch.Tensor:
    """One step down the mean of `loss` over ranks (here over `count` examples); weights no rank reaches stay."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    loss, parameters = loss.detach(), [p for group in optimizer.param_groups for p in group["params"]]
    if ranks()[1] > 1:  # a block that was skipped here may have run elsewhere
        over_ranks([reached := loss.new_tensor([p.grad is not None for p in parameters])])
        for p in (p for p, times in zip(parameters, reached.tolist(), strict=True) if times and p.grad is None):
            p.grad = torch.zeros_like(p)
    over_ranks([loss, *(p.grad for p in parameters if p.grad is not None)], count)
    optimizer.step()
    return loss


def finite(total: torch.Tensor, steps: int, where: str) -> float:
    """Mean loss of a pass as a float; NonFiniteLoss unless it is a finite number."""
    mean = float(total) / max(1, steps)
    if not math.isfinite(mean):
        raise NonFiniteLoss(f"the loss is {mean} in {where}; lower the rate")
    return mean


def finite_weights(net: nn.Module) -> nn.Module:
    """The network itself; NonFiniteLoss if the last update has left a weight or statistic that is not finite."""
    for name, value in [*net.named_parameters(), *net.named_buffers()]:  # a buffer that is a mask may hold -inf
        if (~value.isfinite() if value.requires_grad or "running_" in name else value.isnan()).any():
            raise NonFiniteLoss(f"{name} is not finite any more after the last update; lower the rate")
    return net


def stream(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose, such as "weights" or "task", so that its draws never shift those for another."""
    digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)  # manual_seed takes 63 bits


@contextlib.contextmanager
def eval_mode(model: nn.Module):
    """Put a network in eval mode and, at the end of the block, each of its modules back in the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    for buffer in model.buffers() if ranks()[1] > 1 else ():  # rank 0's running statistics are everyone's
        dist.broadcast(buffer, 0)
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def forked_rng(generator: torch.Generator, device: torch.device):
    """Global random numbers, dropout's, that depend on `generator` and rank; afterwards the global state is as before.

    The seed is what `generator` would draw next, read off a twin: its own stream, of order and augmentation, stays.
    """
    seed = int(torch.randint(2**62, (), generator=generator.clone_state())) + ranks()[0]
    cuda = [device.index if device.index is not None else torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        for source in [torch.default_generator, *(torch.cuda.default_generators[index] for index in cuda)]:
            source.manual_seed(seed)
        yield


def refresh_batchnorm(model: nn.Module, data, size: int = 512, generator: torch.Generator | None = None) -> None:
    """Recompute base running statistics, in place, from base-only passes over the training images; no label is read.

    Training with masks alone never moves them, and an epoch of few steps leaves them behind the weights. Choice: means
    over the images of one shuffled pass, augmented as in training; generator: of the pass, None: seeded with 0.
    """
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
    norms = [m for m in model.modules() if isinstance(m, kinds) and m.running_mean is not None]
    seen, weight = dict.fromkeys(norms, 0), next(model.parameters())

    def count(norm, args):  # the mean over images: a short last batch counts for what it holds
        if not seen[norm]:
            norm.reset_running_stats()
        seen[norm] += len(args[0])
        norm.training, norm.momentum = True, len(args[0]) / seen[norm]

    with contextlib.ExitStack() as after, eval_mode(model), torch.no_grad():
        for norm in norms:
            after.callback(setattr, norm, "momentum", norm.momentum)
            after.enter_context(norm.register_forward_pre_hook(count))
        order = generator or torch.Generator().manual_seed(0)
        for _, x, _ in data.batches(size=size, generator=order, augment=True, dtype=weight.dtype) if norms else ():
            if len(x) > 1 or size == 1:  # BatchNorm may refuse one image alone
                model(x.to(weight.device))
