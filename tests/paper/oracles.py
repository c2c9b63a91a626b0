"""Naive twins in plain loops, which import nothing of the project: mask rows, the masked forward pass, every method.

    expected = masked_small_net(x, mask, weights)      # one example at a time, every pixel and channel on its own
"""

import numpy as np
import torch

from twins import RemTwin

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


# --- The methods that REM is compared with, on the same twin ----------------------------------------------------------


class Twin(RemTwin):
    """The other methods on the same network; a pass is a list of batches (rows, x, y), rows being dataset indices."""

    def train(self, passes, rates, loss_of):
        """One SGD over passes, in training mode: loss_of(rows, x, y) is a scalar, `rates` has one rate an update."""
        rates = iter(rates)
        for rows, x, y in (batch for one in passes for batch in one):
            self.lr = next(rates)
            self.step(loss_of(rows, x, y))

    def ce(self, rows, x, y):
        return self.losses(self.w, x, y, training=True).mean()

    def masked_ce(self, masks):
        """CE under each example's mask, of a table (N, width)."""
        return lambda rows, x, y: self.losses(self.w, x, y, masks[rows], training=True).mean()

    def scrub(self, alpha, sign):
        """sign (CE + alpha KD), KD at temperature 4."""
        def loss(rows, x, y):
            logits = self.logits(self.w, x, training=True)
            ce = -(logits.softmax(1).gather(1, y[:, None])).log().mean()
            return sign * (ce + alpha * kl(self.logits(self.first, x), logits, 4.0))
        return loss

    def badt(self, bad, forget, scale):
        """scale KL of the mixed teacher, `bad` being the weights of the one of D_f."""
        def loss(rows, x, y):
            found = torch.tensor([row in forget for row in rows.tolist()])
            target = torch.where(found[:, None], self.logits(bad, x), self.logits(self.first, x))
            return scale * kl(target, self.logits(self.w, x, training=True), 1.0)
        return loss

    def accuracy(self, x, y, w=None):
        return float((self.logits(self.w if w is None else w, x).argmax(dim=1) == y).double().mean())

    def importance(self, batches, loss_of, power):
        """Mean over batches of |gradient|^power at the original, by name."""
        w = {name: t.clone().requires_grad_("running" not in name) for name, t in self.first.items()}
        names, totals = [name for name in w if "running" not in name], {}
        for rows, x, y in batches:
            for name, g in zip(names, torch.autograd.grad(loss_of(w, x, y), [w[name] for name in names]), strict=True):
                totals[name] = totals.get(name, 0) + g.abs() ** power / len(batches)
        return totals

    def dampen(self, of_forget, of_rest, alpha):
        """The original's weights, times min(1, I / I_f) where I_f > alpha I."""
        for name, i_f in of_forget.items():
            factor = [min(1.0, i / f) if f > alpha * i else 1.0
                      for f, i in zip(i_f.flatten().tolist(), of_rest[name].flatten().tolist(), strict=True)]
            self.w[name] = self.first[name] * torch.tensor(factor, dtype=torch.float64).view(i_f.shape)

    def ssd(self, all_batches, forget_batches, alpha):
        def ce(w, x, y):
            return self.losses(w, x, y).mean()
        self.dampen(self.importance(forget_batches, ce, 2), self.importance(all_batches, ce, 2), alpha)

    def potion(self, retain_batches, forget_batches, share, bound, tries):
        """Returns the tries that were made."""
        def norm(w, x, y):
            return self.logits(w, x).pow(2).sum(dim=1).sqrt().mean()
        of_forget, of_retain = (self.importance(batches, norm, 1) for batches in (forget_batches, retain_batches))
        ratios = np.concatenate([(of_forget[name] / of_retain[name]).flatten().numpy() for name in of_forget])
        x, y = (torch.cat(part) for part in list(zip(*forget_batches, strict=True))[1:])
        for done in range(tries + 1):
            if self.accuracy(x, y) <= bound or done == tries:
                return done
            cut = np.percentile(ratios[np.isfinite(ratios)], 100 - np.log(1 + 100 * share * 1.1**done))
            self.dampen(of_forget, of_retain, cut)

    def cuts(self, x, classes, k):
        """Back along the way from the first weights to today's, chosen on images x; returns the step."""
        w, best = self.first, None  # what conv2, the layer before the head, is given, averaged over places:
        h = self.norm(w, torch.conv2d(x, w["conv1.weight"], w["conv1.bias"], padding=1), "norm1", None, False)
        h = torch.celu(h, 0.075).mean(dim=(2, 3)).numpy()
        near = [sorted((j for j in range(len(h)) if j != i), key=lambda j: -h[i] @ h[j] / np.linalg.norm(h[j]))[:k]
                for i in range(len(h))]
        for step in [-0.05 * i for i in range(21)]:
            w = {name: self.first[name] if "running" in name else
                 self.first[name] + step * (t.detach() - self.first[name]) for name, t in self.w.items()}
            c = self.logits(w, x).argmax(dim=1).tolist()
            alike = np.mean([np.mean([c[i] == c[j] for j in near[i]]) for i in range(len(c))])
            shares = [c.count(label) / len(c) for label in set(c)]
            score = alike - 2 * (1 + sum(p * np.log(p) for p in shares) / np.log(classes))
            if best is None or score > best[0] + 1e-12:
                best = score, step, w
        self.w = best[2]
        return best[1]

    def refresh(self, batches):
        """Base statistics anew: means over images of what each batch has, theta_o1 alone with its own statistics."""
        sums, total = {}, sum(len(rows) for rows, _, _ in batches)
        for rows, x, y in batches:
            for name in ("norm1", "norm2"):  # a momentum of 0.1 from 0 leaves a tenth of the batch's
                for kind in ("mean", "var"):
                    self.w[f"{name}.running_{kind}"] = torch.zeros_like(self.w[f"{name}.running_{kind}"])
            scratch = dict(self.w)
            self.logits(scratch, x, training=True)
            for key in (key for key in scratch if "running" in key):
                sums[key] = sums.get(key, 0) + scratch[key] / 0.1 * len(rows) / total
        self.w.update(sums)


def kl(teacher, student, temperature):
    """T^2 / B sum p log(p / q)."""
    p, q = (torch.softmax(v / temperature, dim=1) for v in (teacher, student))
    return (p * (p / q).log()).sum() / len(p) * temperature**2


def linear(peak, steps, floor=0.2):
    """Up over 1 % of the steps (at least one), then down to `floor` of the peak."""
    warm = max(1, round(0.01 * steps))
    return [peak * (step + 1) / warm if step < warm else
            peak * (floor + (1 - floor) * (steps - 1 - step) / (steps - warm)) for step in range(steps)]
