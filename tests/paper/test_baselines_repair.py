"""Rivals of a repair that are not in the paper: what each may not touch, and the closed forms of its parts.

    R8          constants of the papers that they come from
    L16         SAP's projection and D-BR's trusted images by their definitions
    A11, A12    which labels each reads, and which weights it leaves
    A2          step 2, then fine-tuning, is fine-tuning where there is nothing to remove

That each is its formula, update by update, is in test_rivals_twins.py; what every method promises, seeds, bad forget
sets and modes among it, in test_baselines.py.
"""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import baselines_repair as r
import contract
from experiment.data import batches
from experiment.methods import METHODS
from helpers import assert_close, assert_same_state, gen, make_data, randomise, seeds, small_net, tiny
from metrics import predict

FORGET = torch.tensor([8, 2, 5, 1])
RETAIN = torch.tensor([0, 3, 4, 6, 7, 9, 10, 11])


def by(name, data, forget=FORGET, **more):
    """A method on a small network."""
    return contract.unlearn(METHODS[name].function, data=data, forget=forget, **more)


def relabelled(data, index):
    """The data with other labels for some examples."""
    labels = data.labels.clone()
    labels[index] = (labels[index] + 1) % data.classes
    return replace(data, labels=labels)


def test_constants_of_the_papers():
    """R8: ABL's passes, D-BR's trusted fifth, SAP's trusted images."""
    assert (r.ABL_PASSES, r.DBR_TRUSTED, r.SAP_IMAGES, r.SAP_SHARE) == (5, 0.2, 1000, 0.5)


# --- What they read and touch -----------------------------------------------------------------------------------------

def test_abl_reads_the_list_alone():
    """A12: labels outside D_f decide nothing, those of D_f do; the loss on D_f goes up."""
    data = make_data(0)
    out = by("abl", data, unlearn_lr=0.01)
    assert_same_state(out, by("abl", relabelled(data, RETAIN), unlearn_lr=0.01))
    assert not torch.equal(out.head.weight, by("abl", relabelled(data, FORGET), unlearn_lr=0.01).head.weight)

    def loss(net):
        _, x, y = next(batches(data, FORGET, 12))
        return nn.functional.cross_entropy(net(x), y)  # in training mode, as the passes run

    assert loss(out) > loss(small_net(0))


def test_d_br_trusts_the_steady_part_of_the_rest():
    """A12: labels of images of D_r that are not trusted decide nothing; with all of D_r trusted they do."""
    data = make_data(0)
    trusted = r.least_sensitive(small_net(0), data, RETAIN, 2)  # a fifth of eight
    others = RETAIN[~torch.isin(RETAIN, trusted)]
    assert_same_state(by("d-br", data), by("d-br", relabelled(data, others)))
    assert not torch.equal(by("d-br", data).head.weight, by("d-br", relabelled(data, trusted)).head.weight)
    outs = [contract.unlearn(r.d_br(1.0), data=each, forget=FORGET) for each in (data, relabelled(data, others))]
    assert not torch.equal(outs[0].head.weight, outs[1].head.weight)


def test_sap_reads_no_list():
    """A11, A12: SAP is the same whatever D_f is and whatever the generator; biases, norms and statistics stay."""
    data, net = make_data(0), small_net(0)
    out = by("sap", data)
    assert_same_state(out, by("sap", data, forget=torch.tensor([0, 3]), generator=8))
    moved = [name for name, value in out.state_dict().items() if not torch.equal(value, net.state_dict()[name])]
    assert sorted(moved) == ["conv1.weight", "conv2.weight", "head.weight"]


def test_sap_leaves_what_it_cannot_project():
    """A11: convolutions in groups, with another padding than zeros or one given by name, and frozen layers stay."""
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.grouped = nn.Conv2d(2, 2, 3, groups=2)
            self.mirrored = nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")
            self.same, self.frozen = nn.Conv2d(2, 2, 3, padding="same"), nn.Conv2d(2, 2, 1)
            self.strided, self.head = nn.Conv2d(2, 3, (2, 3), stride=2, padding=(1, 0)), nn.Linear(3, 4)
            self.frozen.weight.requires_grad_(False)

        def forward(self, x):
            x = self.strided(self.frozen(self.same(self.mirrored(self.grouped(x)))))
            return self.head(x.amax(dim=(2, 3)))

    net = randomise(Net(), 0)
    out = by("sap", make_data(0, channels=2), net=net)
    moved = [name for name, value in out.state_dict().items() if not torch.equal(value, net.state_dict()[name])]
    assert moved == ["strided.weight", "head.weight"]


def test_step_2_has_nothing_to_do():
    """A2: where Acc(D_f) is at most gamma, step 2 and fine-tuning are fine-tuning, bit for bit."""
    data = make_data(0, n=24, pad=1, flip=True)
    net = small_net(0)
    right = predict(net, data, torch.arange(24)) == data.labels
    wrong = (~right).nonzero()[:3, 0]
    outs = [contract.unlearn(METHODS[name].function, net=net, data=data, forget=wrong) for name in ("step2-cf", "cf")]
    assert_same_state(*outs)


def test_step_2_without_epochs_is_npo_on_running_statistics():
    """A2: with no epoch of training the rest of it is NPO in eval mode."""
    data = make_data(0)
    data = replace(data, labels=predict(small_net(0), data, torch.arange(12)))
    outs = [by(name, data, unlearn_epochs=0, gamma=0.3, forget_norm="running") for name in ("step2-cf", "npo")]
    assert_same_state(*outs)
    assert not torch.equal(outs[0].head.weight, small_net(0).head.weight)


# --- Bad input --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan")])
def test_d_br_refuses_a_share(share):
    """A16: a share of trusted images outside (0, 1] is refused, with what was given."""
    with pytest.raises(ValueError, match=f"trusted is {share}; give the share"):
        r.d_br(share)


@pytest.mark.parametrize("alpha", [0.99, -3.0, float("inf"), float("nan")])
def test_sap_refuses_an_alpha(alpha):
    """A16: a scale below 1, or none, is refused, with what was given."""
    with pytest.raises(ValueError, match=f"alpha is {alpha}; SAP's scale"):
        r.sap(alpha)


def test_d_br_turns_images_alone():
    """A16: inputs that are no images are refused, with their shape."""
    with pytest.raises(ValueError, match=r"shape \(5, 7\); D-BR turns images"):
        r.turned(torch.zeros(5, 7))


# --- Their parts ------------------------------------------------------------------------------------------------------

@given(seeds, st.integers(1, 6), st.integers(1, 9), st.floats(1, 1e6))
def test_projection(seed, size, columns, alpha):
    """L16: SAP's projection from products of inputs is that of their SVD, also where they span less than all."""
    inputs = torch.randn(size, columns, generator=gen(seed), dtype=torch.float64)
    u, sigma, _ = np.linalg.svd(inputs.numpy())
    s = np.zeros(size)
    s[:len(sigma)] = sigma**2 / (sigma**2).sum()
    expected = u @ np.diag(alpha * s / ((alpha - 1) * s + 1)) @ u.T
    assert_close(r.projection(inputs @ inputs.T, alpha), torch.from_numpy(expected), 1e-7)


@given(seeds, st.integers(1, 6), st.floats(1, 1e4))
def test_projection_shrinks(seed, size, alpha):
    """L16: it is symmetric, of eigenvalues in [0, 1] that grow with alpha, and takes out what no input has."""
    inputs = torch.randn(size, 1, generator=gen(seed), dtype=torch.float64)
    products = inputs @ inputs.T
    p = r.projection(products, alpha)
    assert_close(p, p.T)
    assert_close(p @ inputs, inputs, 1e-9)  # one direction holds all of it: s = 1
    assert int((torch.linalg.eigvalsh(p) > 1e-6).sum()) == 1
    noise = torch.randn(size, 2 * size, generator=gen(seed + 1), dtype=torch.float64)
    below, above = (torch.linalg.eigvalsh(r.projection(noise @ noise.T, a)) for a in (alpha, 2 * alpha))
    assert below.min() >= 0 and above.max() <= 1 + 1e-12 and (above >= below - 1e-12).all()


def test_projection_of_nothing():
    """L16: a layer that is given zeros alone keeps its weights."""
    assert torch.equal(r.projection(torch.zeros(3, 3, dtype=torch.float64), 10.0), torch.eye(3, dtype=torch.float64))


@given(seeds)
def test_a_large_alpha_keeps_what_trusted_images_give(seed):
    """L16: as alpha grows the network's answers to the trusted images become those from before."""
    net, data = small_net(seed, dtype=torch.float64), make_data(seed)
    outs = [contract.unlearn(r.sap(alpha), net=net, data=data, forget=FORGET) for alpha in (1e14, 1.0)]
    trusted = r.smallest_loss(net, data, 6, tiny())
    _, x, _ = next(batches(data, trusted, 12, dtype=torch.float64))
    far, near = [float((out.eval()(x) - net.eval()(x)).detach().abs().max()) for out in reversed(outs)]
    assert near < 1e-6 and near < far


@given(seeds, st.integers(1, 8))
def test_least_sensitive(seed, count):
    """L16: images that are the same when turned come first; they are sorted, from the given ones, as many as asked."""
    data = make_data(seed)
    images = data.images.clone()
    images[RETAIN[:3]] = 7  # of one colour
    found = r.least_sensitive(small_net(seed), replace(data, images=images), RETAIN, count)
    assert len(found) == count and set(found.tolist()) <= set(RETAIN.tolist())
    assert found.tolist() == sorted(found.tolist())
    first = set(RETAIN[:3].tolist())
    assert len(first & set(found.tolist())) == min(3, count)


def test_smallest_loss():
    """L16: the images of the smallest loss, the first of equal ones; the network keeps its mode."""
    net, data = small_net(0), make_data(0)
    found = r.smallest_loss(net, data, 5, tiny())
    _, x, y = next(batches(data, None, 12))
    with torch.no_grad(), warnings.catch_warnings():
        losses = nn.functional.cross_entropy(small_net(0).eval()(x), y, reduction="none")
    assert found.tolist() == sorted(losses.argsort()[:5].tolist()) and net.training
