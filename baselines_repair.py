"""Four more rivals, which a backdoor researcher would reach for first to repair a network; none is in the paper.

    repaired = abl(model, task.train, forget, config, generator)            # the arguments are those of baselines.py
    repaired = sap(alpha=100)(model, task.train, forget, config, generator)

They are written from the equations of their papers, whose constants stand below; `results/repair/rivals/README.md`
compares them with `repair`. Choice: rates are constant at `unlearn_lr` where no docstring speaks of `schedule`.
"""

from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.nn import Conv2d, Linear, Module, functional as F

from baselines import fine_tune, forget_in_training_mode, restore_modes, retain_set, run_epoch
from engine.batches import per_example
from engine.checks import check_forget
from engine.modes import copy_of, eval_mode
from engine.updates import logits_of, make_optimizer
from rem import add_capacity, discard, remove

ABL_PASSES = 5  # over D_f; Li et al. 2021: "a few epochs"
DBR_TRUSTED = 0.2  # share of D_r that is trusted; Chen et al. 2022 trust a fifth of the training images
SAP_IMAGES = 1000  # trusted images at most
SAP_SHARE = 0.5  # of D_tr that is trusted at most


# --- Away from the listed images --------------------------------------------------------------------------------------

def abl(model: Module, data, forget: Tensor, config, generator: Generator, log=None) -> Module:
    """ABL's unlearning (Li et al. 2021, "Anti-Backdoor Learning", the second stage): gradient ascent on D_f.

    Loss: -CE on D_f, ABL_PASSES passes, in training mode unless `forget_norm` is "running".
    Choice: D_f is the user's list; in the paper it is the 1 % of the images that were learnt first. Nothing stops it
    early: `baselines.ascent` is the same with a stop at Acc(D_f) <= gamma.
    """
    forget, net = check_forget(forget, len(data)), copy_of(model)
    optimizer, training = make_optimizer(net, config, config.unlearn_lr), forget_in_training_mode(config)
    for number in range(1, ABL_PASSES + 1):
        where = f"pass {number} of ABL over D_f"
        run_epoch(net, optimizer, data, forget, away, config, generator, where, training)
    if log is not None:
        log(0, 0, net, passes=ABL_PASSES, gave_up=False)
    return restore_modes(model, net)


def d_br(trusted: float = DBR_TRUSTED):
    """D-BR (Chen et al. 2022, "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples").

    Loss: in each of `unlearn_epochs` epochs -CE on D_f, then CE on the trusted part of D_r; one optimiser for both.
    Trusted are the images of D_r whose penultimate features change least when the image is transformed.
    Choice: D_f is the user's list, where the paper takes the images that change most; the transformation is a rotation
    by 180 degrees, which is exact and draws nothing; both losses go at one rate.
    Args: trusted: share of D_r that is trusted, in (0, 1]. Returns: a method of the same signature as the others.
    Raises: ValueError for another share.
    """
    if not 0 < trusted <= 1:
        raise ValueError(f"trusted is {trusted}; give the share of D_r that is trusted, in (0, 1]")

    def unlearn_and_relearn(model: Module, data, forget: Tensor, config, generator: Generator, log=None) -> Module:
        retain, net, epochs = retain_set(forget, len(data)), copy_of(model), config.unlearn_epochs
        optimizer = make_optimizer(net, config, config.unlearn_lr)
        steady = least_sensitive(model, data, retain, max(1, round(trusted * len(retain))))
        for epoch in range(1, epochs + 1):
            run_epoch(net, optimizer, data, forget, away, config, generator, f"D-BR's pass {epoch} over D_f")
            where = f"D-BR's pass {epoch} over the trusted images"
            mean = run_epoch(net, optimizer, data, steady, towards, config, generator, where)
            if log is not None:
                log(epoch, epochs, net, loss=mean)
        return restore_modes(model, net)

    return unlearn_and_relearn


def towards(logits: Tensor, rows: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of a batch on its labels as given."""
    return F.cross_entropy(logits, y)


def away(logits: Tensor, rows: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Minus the mean cross-entropy of a batch."""
    return -F.cross_entropy(logits, y)


def least_sensitive(model: Module, data, index: Tensor, count: int) -> Tensor:
    """The (count,) sorted images of `index` whose features change least when the image is turned by 180 degrees."""
    from engine.features import gather, penultimate  # here, because no other method needs them

    with penultimate(model) as both:
        # ||f(turn(x)) - f(x)||^2
        change = gather(model, data, index, lambda x, y: both(turned(x))[1] - both(x)[1])  # (n, d)
    order = change.square().sum(dim=1).argsort(stable=True)
    return index[order[:count]].sort().values


def turned(x: Tensor) -> Tensor:
    """Images (B, C, H, W) turned by 180 degrees; ValueError for inputs that are no images."""
    if x.dim() != 4:
        raise ValueError(f"inputs are of shape {tuple(x.shape)}; D-BR turns images, (B, C, H, W)")
    return x.flip(dims=(2, 3))


# --- Projection -------------------------------------------------------------------------------------------------------

def sap(alpha: float):
    """SAP, scaled activation projection (Kodge et al., AAAI 2025, arXiv 2403.08618): no list is needed, nor training.

    Trusted are the images of D_tr of the smallest CE. With U and sigma_i from the SVD of what a layer is given of them,
    the directions that they hardly use are taken out of the layer's weights: W <- W U diag(lambda) U^T with
    lambda_i = alpha s_i / ((alpha - 1) s_i + 1), s_i = sigma_i^2 / sum_j sigma_j^2. All layers at once, of the inputs
    that the untouched network gives them.
    Choice: SAP_IMAGES images or, of a small D_tr, SAP_SHARE of it; trainable linear layers and convolutions of one
    group that pad with zeros are projected, others stay; so do biases and BatchNorm's statistics; D_f plays no part.
    Args: alpha: the scale, >= 1: at 1 lambda_i = s_i, and the larger it is the less is taken out.
    Returns: a method of the same signature as the others. Raises: ValueError for an alpha below 1.
    """
    if not 1 <= alpha < float("inf"):
        raise ValueError(f"alpha is {alpha}; SAP's scale is a number of at least 1")

    def project(model: Module, data, forget: Tensor, config, generator: Generator) -> Module:
        check_forget(forget, len(data))
        net = copy_of(model)
        trusted = smallest_loss(net, data, min(SAP_IMAGES, max(1, int(SAP_SHARE * len(data)))), config)
        for layer, products in input_products(net, data, trusted, config).items():
            with torch.no_grad():
                weight = layer.weight.flatten(1).double() @ projection(products, alpha)  # (outputs, d)
                layer.weight.copy_(weight.view(layer.weight.shape))
        return restore_modes(model, net)

    return project


def smallest_loss(net: Module, data, count: int, config) -> Tensor:
    """The (count,) sorted images of D_tr whose labels as given have the smallest cross-entropy."""
    def losses(rows: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits_of(net, x, config.precision).float(), y, reduction="none")

    with torch.no_grad(), eval_mode(net):
        found = per_example(data.batches(dtype=next(net.parameters()).dtype), losses, len(data))
    return found.argsort(stable=True)[:count].sort().values.cpu()


def input_products(net: Module, data, index: Tensor, config) -> dict[Module, Tensor]:
    """R R^T of each layer that can be projected, (d, d) float64, R being what `index` gives it: a column an image, and
    of a convolution a column an image and place, (inputs x height x width of the kernel) long."""
    products = {}

    def add(layer: Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].double()
        if isinstance(layer, Conv2d):
            x = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride).transpose(1, 2)
        columns = x.reshape(-1, x.shape[-1])  # (images and places, d)
        products[layer] = products.get(layer, 0) + columns.T @ columns

    hooks = [layer.register_forward_pre_hook(add) for layer in net.modules() if can_be_projected(layer)]
    try:
        with torch.no_grad(), eval_mode(net):
            for _, x, _ in data.batches(index, config.batch, dtype=next(net.parameters()).dtype):
                logits_of(net, x, "float32")
    finally:
        for hook in hooks:
            hook.remove()
    return products


def can_be_projected(layer: Module) -> bool:
    """Whether it is a trainable linear layer, or such a convolution of one group that pads with zeros."""
    if not isinstance(layer, (Linear, Conv2d)) or not layer.weight.requires_grad:
        return False
    if isinstance(layer, Linear):
        return True
    return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def projection(products: Tensor, alpha: float) -> Tensor:
    """U diag(lambda) U^T, (d, d), from R R^T = U diag(sigma^2) U^T; see `sap`. Of inputs that are all 0 it is 1."""
    squares, u = torch.linalg.eigh(products)  # sigma^2, which may be -1e-17
    if squares.sum() <= 0:
        return torch.eye(len(products), dtype=products.dtype, device=products.device)
    s = squares.clamp(min=0) / squares.clamp(min=0).sum()
    # lambda_i = alpha s_i / ((alpha - 1) s_i + 1)
    return u * (alpha * s / ((alpha - 1) * s + 1)) @ u.T


# --- Half of Algorithm 1 ----------------------------------------------------------------------------------------------

def step2_then_fine_tune(model: Module, data, forget: Tensor, config, generator: Generator, log=None) -> Module:
    """Step 2 of Algorithm 1 once, then plain training on D_r: what is left of REM without theta_o2 and redirection.

    Loss: -h(CE - CE_ref) on D_f, whole passes until Acc(D_f) <= gamma, as `rem.remove`; then CE on D_r as given for
    `unlearn_epochs` epochs at rates of `schedule`, as `baselines.fine_tune`. It takes the networks that
    `expand.expand` takes and no other (TypeError).
    """
    state = add_capacity(model, data, forget, replace(config, ratio=0.0), generator)
    remove(state, training=config.forget_norm == "batch")
    return restore_modes(model, fine_tune(discard(state), data, forget, config, generator, log=log))
