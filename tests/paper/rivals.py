"""The methods that REM is compared with, as plain twins that import nothing of the project (Sec. 3, Table 1).

    twin = Twin(weights, lr=0.005, momentum=0.9, decay=0.01, beta=1.0)    # of helpers.small_net, see twins.py
    twin.train(passes, linear(0.005, steps), twin.ce)                     # fine-tuning, on passes over D_r
    twin.w                                                                # what the method's weights must be

A pass is a list of batches (rows, x, y), rows being dataset indices; all is float64, loops and plain tensors.
test_rivals_twins.py says which passes each method makes, and compares.
"""

import numpy as np
import torch

from twins import RemTwin


class Twin(RemTwin):
    """The other methods on the network of RemTwin, whose weights `w`, first weights, losses and SGD they share."""

    # --- Training -----------------------------------------------------------------------------------------------------

    def train(self, passes, rates, loss_of):
        """One SGD over passes, in training mode: loss_of(rows, x, y) is a scalar, `rates` has one rate an update."""
        rates = iter(rates)
        for rows, x, y in (batch for one in passes for batch in one):
            self.lr = next(rates)
            self.step(loss_of(rows, x, y))

    def ce(self, rows, x, y):
        """Mean cross-entropy of a batch."""
        return self.losses(self.w, x, y, training=True).mean()

    # --- Distillation -------------------------------------------------------------------------------------------------

    def scrub(self, alpha, sign):
        """SCRUB's loss: sign (CE + alpha KD), KD at temperature 4."""
        def loss(rows, x, y):
            logits = self.logits(self.w, x, training=True)
            ce = -(logits.softmax(1).gather(1, y[:, None])).log().mean()
            return sign * (ce + alpha * kl(self.logits(self.first, x), logits, 4.0))
        return loss

    def badt(self, bad, forget, scale):
        """BadT's loss: scale KL of the mixed teacher, `bad` being the weights of the one of D_f."""
        def loss(rows, x, y):
            found = torch.tensor([row in forget for row in rows.tolist()])
            target = torch.where(found[:, None], self.logits(bad, x), self.logits(self.first, x))
            return scale * kl(target, self.logits(self.w, x, training=True), 1.0)
        return loss

    # --- Dampening ----------------------------------------------------------------------------------------------------

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
        """SSD: squared gradients of CE, one shot."""
        def ce(w, x, y):
            return self.losses(w, x, y).mean()
        self.dampen(self.importance(forget_batches, ce, 2), self.importance(all_batches, ce, 2), alpha)

    def potion(self, retain_batches, forget_batches, share, bound, tries):
        """Potion: absolute gradients of the norm of the logits; 10 % more weights a try, until Acc(D_f) <= bound."""
        def norm(w, x, y):
            return self.logits(w, x).pow(2).sum(dim=1).sqrt().mean()
        of_forget, of_retain = (self.importance(batches, norm, 1) for batches in (forget_batches, retain_batches))
        ratios = np.concatenate([(of_forget[name] / of_retain[name]).flatten().numpy() for name in of_forget])
        x, y = (torch.cat(part) for part in list(zip(*forget_batches, strict=True))[1:])
        for done in range(tries):
            if self.accuracy(x, y) <= bound:
                return
            cut = np.percentile(ratios[np.isfinite(ratios)], 100 - np.log(1 + 100 * share * 1.1**done))
            self.dampen(of_forget, of_retain, cut)

    # --- Back along a task vector -------------------------------------------------------------------------------------

    def cuts(self, x, classes, k):
        """CUTS: back along the way from the first weights to today's, by the step that is best on images x."""
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
                best = score, w
        self.w = best[1]

    # --- Rivals of a repair -------------------------------------------------------------------------------------------

    def features(self, x):
        """(B, d) what the head is given."""
        w = self.w["conv1.weight"].shape[0]
        return self.logits({**self.w, "head.weight": torch.eye(w, dtype=torch.float64)}, x).detach()

    def sap(self, x, y, count, alpha):
        """SAP: weights times a projection onto what the `count` images of the smallest loss use, layer by layer."""
        w, steps = {name: t.detach() for name, t in self.w.items()}, []
        x = x[self.losses(w, x, y).argsort()[:count]]
        steps.append(("conv1", patches(x)))
        x = torch.conv2d(x, w["conv1.weight"], w["conv1.bias"], padding=1)
        x = torch.celu(self.norm(w, x, "norm1", None, False), 0.075)
        steps.append(("conv2", patches(x)))
        after = torch.conv2d(x, w["conv2.weight"], w["conv2.bias"], padding=1)
        x = x + torch.celu(self.norm(w, after, "norm2", None, False), 0.075)
        steps.append(("head", x.amax(dim=(2, 3)).numpy()))
        for name, r in steps:
            u, sigma, _ = np.linalg.svd(r.T, full_matrices=False)
            s = sigma**2 / (sigma**2).sum()
            p = torch.from_numpy(u @ np.diag(alpha * s / ((alpha - 1) * s + 1)) @ u.T)
            weight = w[f"{name}.weight"]
            self.w[f"{name}.weight"] = (weight.reshape(len(weight), -1) @ p).view(weight.shape)


def patches(x):
    """What a 3x3 convolution that pads by 1 sees: a row an image and place, channels first."""
    x = np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    size = x.shape[2] - 2
    places = [x[:, :, i:i + 3, j:j + 3].reshape(len(x), -1) for i in range(size) for j in range(size)]
    return np.concatenate(places)


def kl(teacher, student, temperature):
    """T^2 / B sum p log(p / q)."""
    p, q = (torch.softmax(v / temperature, dim=1) for v in (teacher, student))
    return (p * (p / q).log()).sum() / len(p) * temperature**2
