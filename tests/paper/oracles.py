"""Naive twins in plain loops, which import nothing of the project: mask rows, the masked forward pass.

    expected = masked_small_net(x, mask, weights)      # one example at a time, every pixel and channel on its own
"""

import numpy as np
import torch

# --- Masks ------------------------------------------------------------------------------------------------------------


def mask_row(seed: int, i: int | None, width: int, p_mem: float) -> list[bool]:
    """Example i's row (None: the shared row), read off one long stream of uniform numbers of which row 0 is the shared
    one."""
    row = 0 if i is None else i + 1
    numbers = torch.rand((row + 1) * width, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)
    return [number < p_mem for number in numbers.tolist()[row * width:]]


def mask_channels(x: np.ndarray, row: np.ndarray, base: int, axis: int) -> np.ndarray:
    """One example's activations with every extra channel switched by its bit, entry by entry."""
    out = x.copy()
    for where in np.ndindex(*x.shape):
        channel = where[axis]
        if channel >= base and not row[channel - base]:
            out[where] = 0.0
    return out


# --- Forward ----------------------------------------------------------------------------------------------------------


def conv2d(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, padding: int) -> np.ndarray:
    """(C, H, W) -> (O, H', W'), stride 1, one output pixel at a time."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    k = weight.shape[2]
    height, width = x.shape[1] - k + 1, x.shape[2] - k + 1
    out = np.zeros((len(weight), height, width))
    for i in range(height):
        for j in range(width):
            out[:, i, j] = np.einsum("ocab,cab->o", weight, x[:, i : i + k, j : j + k]) + bias
    return out


def batchnorm(x: np.ndarray, mean, var, weight, bias, eps: float = 1e-5) -> np.ndarray:
    """Eval mode: each channel by its running statistics."""
    return np.stack([(x[c] - mean[c]) / np.sqrt(var[c] + eps) * weight[c] + bias[c] for c in range(len(x))])


def celu(x: np.ndarray, alpha: float) -> np.ndarray:
    """max(0, x) + min(0, alpha (exp(x / alpha) - 1))."""
    return np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(np.minimum(x, 0) / alpha))


def wide_weight(w: dict, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Base, extra->base and base+extra->extra blocks of one layer put side by side, entry by entry."""
    if f"{name}.base.weight" not in w:  # no extra channel concerns this layer
        return w[f"{name}.weight"], w.get(f"{name}.bias")
    base, to_base, to_extra = w[f"{name}.base.weight"], w.get(f"{name}.to_base"), w.get(f"{name}.to_extra")
    extra_in, extra_out = (0 if t is None else t.shape[d] for t, d in ((to_base, 1), (to_extra, 0)))
    weight = np.zeros((base.shape[0] + extra_out, base.shape[1] + extra_in, *base.shape[2:]))
    for o, i in np.ndindex(*weight.shape[:2]):
        if o >= base.shape[0]:
            weight[o, i] = to_extra[o - base.shape[0], i]
        else:
            weight[o, i] = base[o, i] if i < base.shape[1] else to_base[o, i - base.shape[1]]
    bias = w.get(f"{name}.base.bias")
    if bias is not None and extra_out:
        bias = np.array([*bias, *w[f"{name}.extra_bias"]])
    return weight, bias


def masked_small_net(x: np.ndarray, mask: np.ndarray, w: dict, norm: bool = True) -> np.ndarray:
    """helpers.small_net with theta_o2 under masks, eval mode, in float64.

    Args:
        x: (B, C, H, W).
        mask: (B, width) of 0 and 1.
        w: arrays by the names of the expanded network's state dict, without the leading "net.".
        norm: whether BatchNorm follows each convolution.

    Returns:
        (B, classes)
    """
    logits = []
    for image, row in zip(x, mask, strict=True):
        image = branch(image, row, w, "1", norm)
        image = image + branch(image, row, w, "2", norm)
        head, _ = wide_weight(w, "head")
        logits.append(head @ np.array([channel.max() for channel in image]))
    return np.stack(logits)


def branch(image: np.ndarray, row: np.ndarray, w: dict, number: str, norm: bool) -> np.ndarray:
    """CELU(mask * BatchNorm(conv(image))) of one example."""
    weight, bias = wide_weight(w, f"conv{number}")
    image = conv2d(image, weight, bias, padding=1)
    if norm:
        name = f"norm{number}"
        scale = np.array([*w[f"{name}.base.weight"], *w[f"{name}.extra_weight"]])
        shift = np.array([*w[f"{name}.base.bias"], *w[f"{name}.extra_bias"]])
        image = batchnorm(image, w[f"{name}.running_mean"], w[f"{name}.running_var"], scale, shift)
    return celu(mask_channels(image, row, image.shape[0] - len(row), axis=0), 0.075)
