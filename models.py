"""The two plain networks of the paper: ResNet-9 and a small-data ViT (Sec. 4, A.3, Table 3).

They know nothing of unlearning: expand.expand wraps them, etd.drop gives them back.

    model = build("resnet9", capacity=0.5, channels=3, classes=10, image_size=32)
    logits = model(x)                        # (B, 3, 32, 32) -> (B, 10)
"""

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F


def conv_block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> nn.Sequential:
    """Convolution with bias -> BatchNorm -> CELU(0.075), the unit of ResNet-9 (biases start at 0)."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding)
    nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.CELU(alpha=0.075))


class Residual(nn.Module):
    """x + block(x)."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.block(x)


class ResNet9(nn.Module):
    """ResNet-9 of the paper's reference (Goel et al. 2024), every width times `capacity` (Sec. 4, Table 3).

    Args: capacity: factor of every width, > 0; 1 is 64-128-256-128 (2.276 M parameters), 0.5 half of each (571 k);
        channels, classes: of the images, >= 1; image_size: height and width in pixels, >= 8. The last convolution has
        no padding; below 11 pixels its map would vanish, so there it is padded by 1.
    Raises: ValueError for a size out of range.
    """

    def __init__(self, capacity: float = 1.0, channels: int = 3, classes: int = 10, image_size: int = 32):
        super().__init__()
        check_sizes(capacity, channels, classes)
        if image_size < 8:
            raise ValueError(f"images of {image_size}x{image_size} are smaller than ResNet-9 takes; use 8x8 or more")
        a, b, c = (max(1, round(width * capacity)) for width in (64, 128, 256))
        padding = 1 if (image_size + 1) // 2 // 2 < 3 else 0  # the map before the last convolution
        self.features = nn.Sequential(
            conv_block(channels, a),  # (B, a, H, W)
            conv_block(a, b, kernel=5, stride=2, padding=2),  # (B, b, H/2, W/2)
            Residual(nn.Sequential(conv_block(b, b), conv_block(b, b))),
            conv_block(b, c),  # (B, c, H/2, W/2)
            nn.MaxPool2d(2),  # (B, c, H/4, W/4)
            Residual(nn.Sequential(conv_block(c, c), conv_block(c, c))),
            conv_block(c, b, padding=padding),  # (B, b, H/4 - 2, W/4 - 2)
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(b, classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))  # (B, classes)


class ShiftedPatches(nn.Module):
    """Shifted patch tokenisation (Lee et al. 2021): the image and its four half-patch diagonal shifts, zero filled."""

    def __init__(self, channels: int, patch: int, dim: int):
        super().__init__()
        self.patch = patch
        self.norm = nn.LayerNorm(5 * channels * patch * patch)
        self.project = nn.Linear(5 * channels * patch * patch, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        s = self.patch // 2
        shifts = [F.pad(x, (i, -i, j, -j)) for i in (s, -s) for j in (s, -s)]
        x = torch.cat([x, *shifts], dim=1)  # (B, 5C, H, W)
        x = F.unfold(x, self.patch, stride=self.patch).transpose(1, 2)  # (B, T, 5C patch^2)
        return self.project(self.norm(x))  # (B, T, dim)


class LocalityAttention(nn.Module):
    """Self-attention with a learnt temperature and the diagonal masked (LSA, Lee et al. 2021)."""

    def __init__(self, dim: int, heads: int, head_dim: int):
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.tensor(head_dim**-0.5).log())
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim)

    def reset_parameters(self) -> None:
        """Put the temperature back to its first value; the layers below draw their own weights."""
        head_dim = self.qkv.out_features // (3 * self.heads)
        nn.init.constant_(self.temperature, math.log(head_dim**-0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, tokens, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, head_dim)
        others = ~torch.eye(tokens, dtype=torch.bool, device=x.device)  # a token does not attend to itself
        x = F.scaled_dot_product_attention(q * self.temperature.exp(), k, v, attn_mask=others, scale=1.0)
        return self.out(x.transpose(1, 2).reshape(batch, tokens, -1))  # (B, T, dim)


def feed_forward(dim: int, hidden: int) -> nn.Sequential:
    """LayerNorm -> Linear -> GELU -> Linear; theta_o2 is extra hidden units here, never the residual stream."""
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


class ViT(nn.Module):
    """Vision transformer for small data sets (Table 3); `capacity` scales the feed-forward hidden width.

    `expandable` names the layers that get theta_o2: the first Linear of each feed-forward layer. Choice: hidden units
    inside it, where Table 3 says "before/after FF in transformer blocks": masks there act on the residual stream.
    Args: capacity: factor of the MLP hidden dimension, > 0; 1 is 1536; channels, classes: of the images, >= 1;
        image_size: height and width in pixels, a multiple of `patch` and at least two patches; patch, dim, depth,
        heads, head_dim, hidden: Table 3's patch size, embedding dimension, transformer depth, attention heads, head and
        MLP hidden dimension.
    Raises: ValueError for a size out of range or an image size that the patch size does not divide.
    """

    def __init__(self, capacity: float = 1.0, channels: int = 3, classes: int = 10, image_size: int = 32, *,
                 patch: int = 8, dim: int = 512, depth: int = 4, heads: int = 8, head_dim: int = 64,
                 hidden: int = 1536):
        super().__init__()
        check_sizes(capacity, channels, classes)
        if image_size % patch or image_size < 2 * patch:
            raise ValueError(f"image size {image_size} and patch size {patch} do not fit; "
                             f"use a multiple of {patch}, at least {2 * patch}")
        hidden = max(1, round(hidden * capacity))
        self.patches = ShiftedPatches(channels, patch, dim)
        self.token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.position = nn.Parameter(torch.randn(1, (image_size // patch) ** 2 + 1, dim) * 0.02)
        self.attention = nn.ModuleList(LocalityAttention(dim, heads, head_dim) for _ in range(depth))
        self.ff = nn.ModuleList(feed_forward(dim, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)
        self.expandable = tuple(f"ff.{i}.1" for i in range(depth))

    def reset_parameters(self) -> None:
        """Draw the class token and the positions again; the layers below draw their own weights."""
        for p in (self.token, self.position):
            nn.init.normal_(p, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x)  # (B, T, dim)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.position  # (B, 1 + T, dim)
        for attention, ff in zip(self.attention, self.ff, strict=True):
            x = x + attention(x)
            x = x + ff(x)
        return self.head(self.norm(x[:, 0]))  # (B, classes)


ARCHITECTURES = {"resnet9": ResNet9, "vit": ViT}


def check_sizes(capacity: float, channels: int, classes: int) -> None:
    """Raise ValueError unless capacity > 0, channels >= 1 and classes >= 1."""
    for name, value, least in (("channels", channels, 1), ("classes", classes, 1)):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    if not 0 < capacity < float("inf"):
        raise ValueError(f"capacity is {capacity}; it must be a factor above 0, 1 being the full width")


def build(name: str, capacity: float = 1.0, *, channels: int = 3, classes: int = 10, image_size: int = 32,
          seed: int | None = None, **sizes) -> nn.Module:
    """Make a network by name with weights drawn from `seed`, leaving the global random state as it was.

    Args: name: "resnet9" or "vit"; capacity: factor of the widths, > 0 (Table 4's "Capacity" is 100 times this);
        channels, classes, image_size: shape of the data, as in the classes above; seed: of the initial weights, None
        draws from the global generator as torch's own constructors do; sizes: more keyword arguments of the class (ViT:
        patch, dim, depth, ...).
    Returns: the network on the CPU in float32, in training mode.
    Raises: ValueError for an unknown name or a size that does not fit.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}; choose one of {', '.join(ARCHITECTURES)}")
    shape = dict(channels=channels, classes=classes, image_size=image_size, **sizes)
    if seed is None:
        return ARCHITECTURES[name](capacity, **shape)
    with torch.random.fork_rng(devices=[]):  # torch's initialisers draw from the global generator: lend it, put it back
        torch.random.default_generator.manual_seed(seed)
        return ARCHITECTURES[name](capacity, **shape)


def reinitialise(model: nn.Module, seed: int) -> nn.Module:
    """A copy of any network with fresh weights, drawn from `seed`, leaving the global random state as it was.

    Choice: each module that owns parameters draws them by its own `reset_parameters`, children first, as torch's layers
    do, then convolution biases are 0; so ResNet-9 gets what `build` draws from the seed. Values are drawn on the CPU.
    Args: model: plain network on any device; left as it is; seed: of the new weights.
    Returns: the copy, BatchNorm statistics reset too, with the model's device, dtypes, modes and requires_grad.
    Raises: TypeError where a module owns parameters and has no `reset_parameters`; the text names it.
    """
    drawn, fresh = copy.deepcopy(model).cpu(), copy.deepcopy(model)
    names = {module: name for name, module in drawn.named_modules()}

    def draw(module: nn.Module) -> None:
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if reset is not None:
            reset()
        elif next(module.parameters(recurse=False), None) is not None:
            raise TypeError(f"cannot draw fresh weights: {names[module] or 'the network'!r} ({type(module).__name__}) "
                            "owns parameters and has no reset_parameters()")
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)

    for p in drawn.parameters():
        p.data = p.data.clone(memory_format=torch.contiguous_format)  # some versions draw in the order of the memory
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.random.default_generator.manual_seed(seed)
        drawn.apply(draw)
    fresh.load_state_dict(drawn.state_dict())
    return fresh
