"""Algorithm 1 and ETD training once more, as plainly as they can be written: read this first, beside the paper.

What of the paper stands here, line by line:

- Sec. 5, Algorithm 1, steps 2 to 4: `rem`; "while current epoch <= max epochs" and "while Acc(D_f) > gamma" are its two
  loops, 2.1 and 2.2 the body of the inner one, 3.1 to 3.3 `step3_loss` and the update by it.
- Eq. 2: `RemTwin.h`, (2 / beta) log sigmoid(beta (CE - CE_ref)), the ratio being one of likelihoods; "ref" are the
  weights that step 1 has made.
- Sec. 2, ETD: a mask for each example, `mask_row`, and `train_etd`; Table 3's caption, the rate that ends at a fifth of
  where it began: `linear`.
- A.3, ResNet-9's optimiser, SGD: `RemTwin.step`.

    net = RemTwin(weights, lr=0.005, momentum=0.9, decay=5e-4, beta=1.0)      # step 1 is done: theta_o1 beside theta_o2
    epochs = rem(net, passes, plain, masks, forget, images, labels, epochs=10, gamma=0.2, max_passes=100)
    epochs[-1]                                                               # theta_o1 after the last: Algorithm 1

Nothing here is the project's: plain tensors in float64, one network, SGD written out. test_twins.py asks the project
for the same numbers.
"""

import torch


# --- Algorithm 1 ------------------------------------------------------------------------------------------------------

def rem(net, passes, plain, masks, forget, images, labels, *, epochs, gamma, max_passes, step3=None):
    """Algorithm 1 after its step 1; returns theta_o1 as it is after each epoch.

    Args:
        net: RemTwin, whose first weights are "ref" of Eq. 2.
        passes: passes(index) is a list of the batches (rows, x, y) of the next pass over `index`; None: all of D_tr.
        plain: a list of batches of D_tr from which theta_o1's statistics are made anew after each epoch.
        masks: (N, width) of 0 and 1, the same row for all of D_f; forget: (k,) indices, D_f.
        images, labels: D_f without augmentation, by which Acc(D_f) is measured.
        step3: another loss of step 3, for the ablations.
    """
    step3, after = step3 or step3_loss, []
    for _ in range(epochs):  # while current epoch <= max epochs
        # Step 2: remove, in evaluation mode
        tries = 0
        while net.accuracy(images, labels) > gamma and tries < max_passes:  # while Acc(D_f) > gamma
            for _, x, y in passes(forget):
                net.step(-net.h(x, y).mean())  # theta_o1 <- theta_o1 - epsilon grad(-L_remove)
            tries += 1
        # Step 3: redirect, in training mode
        for rows, x, y in passes(None):
            in_forget = torch.isin(rows, forget).double()  # 1{i in D_f}
            net.step(step3(net, x, y, masks[rows], in_forget))  # theta <- theta - epsilon grad L_step3
        net.refresh(plain)  # not in the paper: statistics that belong to the weights
        # Step 4: keep theta_o1 only
        after.append({name: value.detach().clone() for name, value in net.w.items()})
    return after


def step3_loss(net, x, y, mask, in_forget, weight=1.0):
    """L_redirect - L_remove of a batch (Eq. 2); weight: of each example of D_f, N / |D_f| for a mean over D_f."""
    redirect = net.h(x, y, mask, training=True).mean()  # theta_o1 and theta_o2
    remove = (weight * in_forget * net.h(x, y, training=True)).mean()  # theta_o1 alone
    return redirect - remove


# --- ETD --------------------------------------------------------------------------------------------------------------

def mask_row(seed: int, i: int | None, width: int, p_mem: float) -> list[bool]:
    """Example i's row (None: the one that D_f shares), read off one stream of uniform numbers that begins with the
    shared row."""
    row = 0 if i is None else i + 1
    numbers = torch.rand((row + 1) * width, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)
    return [number < p_mem for number in numbers.tolist()[row * width:]]


def train_etd(net, passes, plain, masks, rates):
    """Example-tied dropout (Sec. 2): every example through theta_o1 and its own path in theta_o2, then refresh.

    Args: passes: lists of batches (rows, x, y); plain: a list of batches from which theta_o1's own statistics are made
        in the end; masks: (N, width); rates: one an update.
    """
    for (rows, x, y), net.lr in zip([batch for one in passes for batch in one], rates, strict=True):
        net.step(net.losses(net.w, x, y, masks[rows], training=True).mean())
    net.refresh(plain)


def linear(peak, steps, floor=0.2):
    """Rates: up over 1 % of the steps (at least one), then down to `floor` of the peak (Table 3's caption)."""
    warm = max(1, round(0.01 * steps))
    up = [peak * (step + 1) / warm for step in range(warm)]
    return up + [peak * (floor + (1 - floor) * (steps - 1 - step) / (steps - warm)) for step in range(warm, steps)]


# --- The network that they train --------------------------------------------------------------------------------------

class RemTwin:
    """helpers.small_net with BatchNorm and theta_o2 in plain tensors: wide weights, masks, losses and SGD written out.

    `w` holds theta_o1 under the plain network's names and theta_o2 as conv1.to_extra, norm1.extra_weight, head.to_base;
    "norm1.running_mean" are theta_o1's statistics, "norm1.wide_mean" those of masked passes. All float64.
    """

    def __init__(self, w: dict, lr: float, momentum: float, decay: float, beta: float):
        self.w = {name: t.clone().requires_grad_("running" not in name and "wide" not in name) for name, t in w.items()}
        self.first = {name: t.clone() for name, t in w.items()}  # the reference, and the original network
        self.speed, self.lr, self.momentum, self.decay, self.beta = {}, lr, momentum, decay, beta

    def norm(self, w, x, name, mask, training):
        """BatchNorm and, after it, the mask: 1 for theta_o1's channels, the example's bits for theta_o2's."""
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
            return torch.celu(x, 0.075)  # max(0, x) + min(0, a (exp(x / a) - 1)), a = 0.075

        x = act(self.norm(w, torch.conv2d(x, *wide("conv1"), padding=1), "norm1", mask, training))
        x = x + act(self.norm(w, torch.conv2d(x, *wide("conv2"), padding=1), "norm2", mask, training))
        return x.amax(dim=(2, 3)) @ wide("head", bias=False).T

    def losses(self, w, x, y, mask=None, training=False):
        """(B,) cross-entropies, of theta_o1 alone without masks."""
        logits = self.logits(w, x, mask, training)
        return logits.logsumexp(dim=1) - logits.gather(1, y[:, None])[:, 0]

    def h(self, x, y, mask=None, training=False):
        """(B,) (2 / beta) log sigmoid(beta (CE - CE_ref)) of Eq. 2, the reference in eval mode."""
        u = self.losses(self.w, x, y, mask, training) - self.losses(self.first, x, y, mask).detach()
        return 2 / self.beta * torch.log(torch.sigmoid(self.beta * u))

    def accuracy(self, x, y, w=None):
        """Share of the labels as given that theta_o1 alone answers."""
        return float((self.logits(self.w if w is None else w, x).argmax(dim=1) == y).double().mean())

    def step(self, loss):
        """SGD on every parameter that the loss reaches."""
        names = [name for name, t in self.w.items() if t.requires_grad]
        grads = torch.autograd.grad(loss, [self.w[name] for name in names], allow_unused=True)
        with torch.no_grad():
            for name, grad in zip(names, grads, strict=True):
                if grad is not None:
                    self.speed[name] = self.momentum * self.speed.get(name, 0) + grad + self.decay * self.w[name]
                    self.w[name] -= self.lr * self.speed[name]

    def refresh(self, batches):
        """Base statistics anew: means over images of what each batch has, theta_o1 alone with its own statistics."""
        sums, total = {}, sum(len(rows) for rows, _, _ in batches)
        for rows, x, _ in batches:
            for name in ("norm1", "norm2"):  # a momentum of 0.1 from 0 leaves a tenth of the batch's
                for kind in ("mean", "var"):
                    self.w[f"{name}.running_{kind}"] = torch.zeros_like(self.w[f"{name}.running_{kind}"])
            scratch = dict(self.w)
            self.logits(scratch, x, training=True)
            for key in (key for key in scratch if "running" in key):
                sums[key] = sums.get(key, 0) + scratch[key] / 0.1 * len(rows) / total
        self.w.update(sums)


def weights_of(state_dict: dict) -> dict:
    """The weights of an expanded or a plain small_net by the names that RemTwin has for them."""
    w = {}
    for key, value in state_dict.items():
        name = key.removeprefix("net.")
        if "num_batches" in name:
            continue
        if ".base." in name:
            w[name.replace(".base", "")] = value
        elif name.endswith(("running_mean", "running_var")) and key != name:
            w[name.replace("running", "wide")] = value
        else:
            w[name] = value
    return w
