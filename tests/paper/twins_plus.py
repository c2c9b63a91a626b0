"""REM+ once more, as plainly as it can be written: the loop of twins.py with its four changes.

    theta_o1 = rem_plus(net, draw, plain, masks, forget, held_out, images, labels, epochs=3, gamma=0.2, ...)

tests/rem_plus/test_rem_plus.py asks the project for the same numbers. `net` is a twins.RemTwin.
"""

import torch

from twins import step3_loss

STEP, PASSES = 0.0025, 4


def rem_plus(net, draw, plain, masks, forget, held_out, images, labels, *, epochs, gamma, max_passes, batch, reach,
             disbelieved, farther, memorised=0.96):
    """REM+ after its step 1; returns theta_o1, and how many epochs ran since Algorithm 1 started over, if it did.

    Args: as of twins.rem, and draw: draw() gives the function `passes`, its draws from the beginning; held_out: (w,)
        indices, W, none without early stopping; images, labels: D_tr without augmentation.
    """
    start, everything = {name: value.detach().clone() for name, value in net.w.items()}, torch.arange(len(labels))
    retain = everything[~torch.isin(everything, forget)]
    while True:
        net.w = {name: value.clone().requires_grad_(net.w[name].requires_grad) for name, value in start.items()}
        net.speed, passes, kept, waited, epoch = {}, draw(), None, 0, 0
        while epoch < epochs and waited < 2:
            epoch += 1
            # 3. What step 3 passes over: not W and, from epoch 2 on, no image of D_r with a large loss
            taught = everything[~torch.isin(everything, held_out)]
            large = retain[(net.losses(net.w, images, labels) > disbelieved)[retain]]
            if epoch > 1 and disbelieved and 2 * len(large) <= len(retain):
                taught = taught[~torch.isin(taught, large)]
            # 1. Step 2, to a distance
            before = net.accuracy(images[forget], labels[forget])
            tries = remove(net, passes, forget, images, labels, epoch, gamma, max_passes, batch, reach)
            # Step 3, as printed
            for rows, x, y in passes(taught):
                net.step(step3_loss(net, x, y, masks[rows], torch.isin(rows, forget).double()))
            net.refresh(plain)
            now = {name: value.detach().clone() for name, value in net.w.items()}
            if not len(held_out):
                kept = now, None, None
                continue
            # 2. Early stopping: which epoch comes back
            right = net.logits(net.w, images[held_out]).argmax(dim=1) == labels[held_out]
            acc = net.accuracy(images[forget], labels[forget])
            if kept is None:
                better = level = True
            elif acc > gamma or kept[1] > gamma:
                better = level = acc <= gamma or acc <= kept[1]
            else:
                better = int(right.sum()) > int(best.sum())
                level = better or int(best.sum() - right.sum()) ** 2 <= int((best != right).sum())
            waited = 0 if better else waited + (kept[1] <= gamma)
            best = right if better else best
            kept = (now, acc) if level else kept
            # 4. Restart, with twice the distance
            if epoch == 1 and farther and reach and tries and before >= 2 * gamma and right.double().mean() > memorised:
                break
        else:
            return kept[0], epoch
        farther, reach = farther - 1, 2 * reach


def remove(net, passes, forget, images, labels, epoch, gamma, max_passes, batch, reach) -> int:
    """Step 2 of REM+, as printed where `reach` is 0; returns the number of passes."""
    names = [name for name, value in net.w.items() if value.requires_grad and "to_" not in name and "extra" not in name]
    begin, tries = {name: net.w[name].detach().clone() for name in names}, 0
    whole = norm(begin.values())
    length = min(STEP, reach / (PASSES * -(-len(forget) // batch))) * whole
    before = acc = net.accuracy(images[forget], labels[forget])
    while acc > gamma and tries < max_passes and (not reach or far(net, begin) < reach):
        for _, x, y in passes(forget):
            if not reach:
                net.step(-net.h(x, y).mean())
                continue
            down = torch.autograd.grad(-net.h(x, y).mean(), [net.w[name] for name in names])
            with torch.no_grad():
                for name, g in zip(names, down, strict=True):
                    net.w[name] -= length * g / norm(down)
        tries += 1
        acc = net.accuracy(images[forget], labels[forget])
    if reach and tries:
        net.speed = {}
    if reach and tries and epoch == 1:
        goal = reach * (min(1, before / gamma - 1) if gamma else 1)
        moved = far(net, begin)
        if 0 < moved < goal:
            with torch.no_grad():
                for name in names:
                    net.w[name] += (net.w[name] - begin[name]) * (goal / moved - 1)
    return tries


def norm(tensors) -> float:
    """Of all entries, taken as one vector."""
    return float(sum(t.detach().square().sum() for t in tensors)) ** 0.5


def far(net, begin) -> float:
    """How far theta_o1 is from where it began, over the norm there."""
    return norm([net.w[name] - value for name, value in begin.items()]) / norm(begin.values())
