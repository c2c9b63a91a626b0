"""Naive twins in plain loops, which import nothing of the project: mask rows, the masked forward pass, every method.

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


# --- Algorithm 1 ------------------------------------------------------------------------------------------------------


class RemTwin:
    """REM on helpers.small_net with BatchNorm, in plain tensors: wide weights, masks, losses and SGD written out.

    `w` holds theta_o1 under the plain network's names and theta_o2 as conv1.to_extra, norm1.extra_weight, head.to_base;
    "norm1.running_mean" are theta_o1's statistics, "norm1.wide_mean" those of masked passes. All float64.
    """

    def __init__(self, w: dict, lr: float, momentum: float, decay: float, beta: float):
        self.w = {name: t.clone().requires_grad_("running" not in name and "wide" not in name) for name, t in w.items()}
        self.first = {name: t.clone() for name, t in w.items()}  # the reference, and the original network
        self.speed, self.lr, self.momentum, self.decay, self.beta = {}, lr, momentum, decay, beta

    def norm(self, w, x, name, mask, training):
        weight, bias, kind = w[f"{name}.weight"], w[f"{name}.bias"], "running" if mask is None else "wide"
        if mask is not None:
            weight, bias = torch.cat([weight, w[f"{name}.extra_weight"]]), torch.cat([bias, w[f"{name}.extra_bias"]])
        mean, var = w[f"{name}.{kind}_mean"], w[f"{name}.{kind}_var"]
        if training:
            count = x.numel() // x.shape[1]
            mean, var = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), unbiased=False)
            for old, new in (("mean", mean), ("var", var * count / (count - 1))):
                w[f"{name}.{kind}_{old}"] = 0.9 * w[f"{name}.{kind}_{old}"] + 0.1 * new.detach()
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt() * weight[:, None, None] + bias[:, None, None]
        if mask is not None:
            x = x * torch.cat([torch.ones(len(x), x.shape[1] - mask.shape[1]), mask], dim=1)[:, :, None, None]
        return x

    def logits(self, w, x, mask=None, training=False):
        """(B, classes), of theta_o1 alone without masks."""
        def wide(name, bias=True):
            rows = w[f"{name}.weight"]
            if mask is None:
                return (rows, w[f"{name}.bias"]) if bias else rows
            rows = torch.cat([rows, w[f"{name}.to_base"]], dim=1) if f"{name}.to_base" in w else rows
            if not bias:
                return rows
            return torch.cat([rows, w[f"{name}.to_extra"]]), torch.cat([w[f"{name}.bias"], w[f"{name}.extra_bias"]])

        def act(x):
            return torch.celu(x, 0.075)  # `celu` above, but with torch's gradient, which is off by 1e-8

        x = act(self.norm(w, torch.conv2d(x, *wide("conv1"), padding=1), "norm1", mask, training))
        x = x + act(self.norm(w, torch.conv2d(x, *wide("conv2"), padding=1), "norm2", mask, training))
        return x.amax(dim=(2, 3)) @ wide("head", bias=False).T

    def losses(self, w, x, y, mask=None, training=False):
        """(B,) cross-entropies, of theta_o1 alone without masks."""
        logits = self.logits(w, x, mask, training)
        return logits.logsumexp(dim=1) - logits.gather(1, y[:, None])[:, 0]

    def h(self, x, y, mask=None, training=False):
        """(B,) (2 / beta) log sigmoid(beta (CE - CE_ref)), the reference in eval mode."""
        u = self.losses(self.w, x, y, mask, training) - self.losses(self.first, x, y, mask).detach()
        return 2 / self.beta * torch.log(torch.sigmoid(self.beta * u))

    def step(self, loss):
        """SGD on every parameter that the loss reaches."""
        names = [name for name, t in self.w.items() if t.requires_grad]
        grads = torch.autograd.grad(loss, [self.w[name] for name in names], allow_unused=True)
        with torch.no_grad():
            for name, grad in zip(names, grads, strict=True):
                if grad is not None:
                    self.speed[name] = self.momentum * self.speed.get(name, 0) + grad + self.decay * self.w[name]
                    self.w[name] -= self.lr * self.speed[name]

    def remove(self, batches):
        """One pass of step 2, eval mode."""
        for x, y in batches:
            self.step(-self.h(x, y).mean())

    def redirect(self, batches):
        """Step 3, training mode: batches of (x, y, masks, in_forget)."""
        for x, y, mask, in_forget in batches:
            full, base = self.h(x, y, mask, training=True), self.h(x, y, training=True)
            self.step(full.mean() - (base * in_forget).mean())
