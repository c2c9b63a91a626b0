"""The core by itself: three files without the rest, REM against a plain twin, recomputation, dropout, ruined weights.

Each `prop_*` takes the module under test first, so that test_mutants.py can run it on a changed one.
"""

import shutil
import subprocess
import sys
import types
import warnings
from dataclasses import fields
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import etd
import expand
import oracles
import rem
import train
from engine.batches import count_batches
from experiment.data import batches
from helpers import assert_close, assert_same_state, gen, make_data, randomise, rows, seeds, small_net, tiny
from experiment.settings import Config

ROOT = Path(rem.__file__).parent
IMAGE = torch.zeros(2, 1, 8, 8)

# --- Three files ------------------------------------------------------------------------------------------------------

SNIPPET = """\
import torch
from torch.utils.data import DataLoader, Subset
from rem import Settings, rem

class Mine:  # D_tr: any Dataset that gives (x, y), labels as they are
    def __init__(self, dataset): self.dataset = dataset
    def __len__(self): return len(self.dataset)
    def batches(self, index=None, size=512, generator=None, augment=False, dtype=torch.float32):
        index = torch.arange(len(self)) if index is None else index
        rows = index if generator is None else index[torch.randperm(len(index), generator=generator)]
        loader = DataLoader(Subset(self.dataset, rows.tolist()), batch_size=size)
        for part, (x, y) in zip(rows.split(size), loader):
            yield part, x.to(dtype), y

unlearned = rem(model, Mine(dataset), forget, Settings(unlearn_epochs=2), torch.Generator().manual_seed(0))
"""

BEFORE = """\
import torch
from torch import nn
from torch.utils.data import TensorDataset
torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)
dataset = TensorDataset(torch.randn(21, 1, 6, 6, generator=g), torch.randint(0, 3, (21,), generator=g))
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
                      nn.Linear(4, 3))
forget = torch.tensor([3, 8, 11])
"""

AFTER = """
import sys, types
assert [k for k in unlearned.state_dict()] == [k for k in model.state_dict()]
assert not torch.equal(unlearned[0].weight, model[0].weight)
again = rem(model, Mine(dataset), forget, types.SimpleNamespace(unlearn_epochs=2), torch.Generator().manual_seed(0))
assert all(torch.equal(a, b) for a, b in zip(unlearned.state_dict().values(), again.state_dict().values()))
assert {"etd", "expand", "rem"} <= set(sys.modules) and not {"data", "train", "settings", "metrics"} & set(sys.modules)
"""


def test_the_core_stands_alone(tmp_path):
    """A11, A18: etd.py, expand.py and rem.py in a folder of their own, beside somebody else's data.py and train.py,
    unlearn from a user's class around a DataLoader, with a Settings or any object with some of its attributes."""
    for name in ("etd.py", "expand.py", "rem.py"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("data.py", "train.py", "settings.py", "metrics.py"):
        (tmp_path / name).write_text("raise ImportError('this is somebody else\\'s')\n")
    (tmp_path / "mine.py").write_text(BEFORE + SNIPPET + AFTER)
    done = subprocess.run([sys.executable, "-B", "-W", "error::UserWarning:rem", "mine.py"], cwd=tmp_path,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(SNIPPET.splitlines()) <= 15


def test_settings_of_both_kinds_agree():
    """A9: what Algorithm 1 reads has the same defaults in rem.Settings and in Config, and is checked."""
    for f in fields(rem.Settings):
        assert f.default == getattr(Config(), f.name), f.name
    for bad in (dict(stop="no"), dict(redirect="foo"), dict(optimizer="adamw"), dict(forget_norm="no"),
                dict(precision="fp8")):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} is .*; choose from"):
            rem.start(small_net(0), make_data(0), torch.tensor([1]), types.SimpleNamespace(**bad), gen(0))
    for gamma in (5, 1.001, -0.001):
        with pytest.raises(ValueError, match=f"gamma is {gamma}"):
            rem.Settings(gamma=gamma)
    for bad in (dict(unlearn_epochs=-1), dict(max_passes=-1), dict(batch=0)):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} is -?[01]; it must be from [01] to inf"):
            rem.Settings(**bad)


def test_precision_of_the_cpu():
    """L11: on the CPU "auto" is float32, bit for bit; "bf16" computes in bf16; the logits are float32 either way."""
    net, x = small_net(0, dtype=torch.float32).eval(), torch.randn(5, 1, 8, 8, generator=gen(0))
    plain, auto, bf16 = net(x), etd.logits_of(net, x, "auto"), etd.logits_of(net, x, "bf16")
    assert torch.equal(auto, plain) and torch.equal(etd.logits_of(net, x, "float32"), plain)
    assert bf16.dtype == auto.dtype == torch.float32
    assert 0 < (bf16 - plain).abs().max() < 0.05 and torch.equal(bf16, bf16.bfloat16().float())
    half = small_net(0, dtype=torch.float16).eval()  # autocast to bf16 and weights of float16 do not go together
    assert torch.equal(etd.logits_of(half, x.half(), "bf16"), half(x.half()).float())


def test_both_ways_to_step_1_agree():
    """A9, E6: rem.start and train.expand_for draw the same theta_o2 from the same settings."""
    net, data, config = small_net(0), make_data(0), tiny(seed=5)
    state = rem.start(net, data, torch.tensor([1]), config, gen(0))
    assert_same_state(state.expanded, train.expand_for(net, data, config))


class Odd:
    """Data whose batches are not what was asked for."""

    def __init__(self, data, spoil):
        self.data, self.spoil = data, spoil

    def __len__(self):
        return len(self.data)

    def batches(self, index=None, **more):
        for i, (at, x, y) in enumerate(batches(self.data, index, **more)):
            if self.spoil == "positions":
                yield torch.arange(len(at)), x, y
            elif self.spoil == "short" and i == 0:
                yield at[1:], x[1:], y[1:]
            else:
                yield at, x, y


@pytest.mark.parametrize("spoil", ["positions", "short"])
def test_foreign_batches_must_be_those_asked_for(spoil):
    """A7, M13: batch positions in place of dataset indices, or an example left out, are refused in words."""
    with pytest.raises(ValueError, match="must yield the indices that are asked for, each once"):
        rem.rem(small_net(0), Odd(make_data(0), spoil), torch.tensor([2, 5, 7]), tiny(), gen(0))


class Loose:
    """Data whose last batch may be one example, as a DataLoader's."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def batches(self, index=None, size=512, generator=None, augment=False, dtype=torch.float32):
        index = torch.arange(len(self)) if index is None else index
        order = index if generator is None else index[torch.randperm(len(index), generator=generator)]
        for part in order.split(size):
            yield part, *next(iter(batches(self.data, part, len(part), dtype=dtype)))[1:]


def test_data_that_says_nothing_may_augment():
    """L16: without `augments` the reference runs on each batch as it comes; no cross-entropy is kept from before."""
    data, forget = make_data(0), torch.tensor([1])
    assert rem.start(small_net(0), Loose(data), forget, tiny(), gen(0)).known is None
    assert rem.start(small_net(0), data, forget, tiny(), gen(0)).known.shape == (2, 12)


@pytest.mark.parametrize("n, more", [(41, {}), (43, {}), (44, dict(forget_norm="batch"))])
def test_a_last_batch_of_one_example(n, more):
    """A7, A16: BatchNorm on 1x1 maps takes a last batch of one of D_tr, of what step 3 trains on, or of D_f: it joins
    the one before, and each example comes once."""
    net = nn.Sequential(nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 4))
    data, forget = Loose(make_data(0, n=n)), torch.arange(9 if more else 3)
    config = tiny(batch=8, stop="repaired", max_passes=2, **more)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # step 2 may give up
        assert rem.rem(randomise(net, 0), data, forget, config, gen(0)).state_dict().keys() == net.state_dict().keys()
    state = rem.start(net, data, forget, config, gen(0))
    last = {41: None, 43: state.taught, 44: forget}[n]
    sizes = [len(rows) for rows, _, _ in rem.loader(state, last)]
    assert sizes[-1] == 9 and set(sizes[:-1]) <= {8} and len(rem.check_index(last, n) if n > 41 else range(n)) % 8 == 1
    state.config = rem.Settings(batch=1)
    assert [len(rows) for rows, _, _ in rem.loader(state, forget)] == [1] * len(forget)


def test_a_shared_row_without_all_of_d_f_is_refused():
    """M8, A16: what shares a mask row (step 3.1) must hold all of D_f."""
    with pytest.raises(ValueError, match="shared lacks examples of D_f"):
        rem.start(small_net(0), make_data(0), torch.tensor([1, 5]), tiny(), gen(0), shared=torch.tensor([1, 2]))
    rem.start(small_net(0), make_data(0), torch.tensor([1, 5]), tiny(), gen(0), shared=torch.tensor([5, 2, 1]))


# --- Algorithm 1 against a plain twin ---------------------------------------------------------------------------------


def twin_weights(expanded):
    """The weights of an expanded small_net under the oracle's names."""
    w = {}
    for key, value in expanded.state_dict().items():
        name = key.removeprefix("net.")
        if "num_batches" in name:
            continue
        if ".base." in name:
            w[name.replace(".base", "")] = value
        elif name.endswith(("running_mean", "running_var")):
            w[name.replace("running", "wide")] = value
        else:
            w[name] = value
    return w


def prop_a23(rem, seed=0, flip=False, epochs=2, batch=5, beta=2.0):
    """Two epochs of REM, two passes of step 2 each, are the twin's: one optimiser, whose momentum carries over."""
    data, forget = make_data(seed, n=12, flip=flip), torch.randperm(12, generator=gen(seed))[:4]
    config = tiny(batch=batch, beta=beta, unlearn_epochs=epochs, unlearn_lr=0.05, momentum=0.9, weight_decay=0.01,
                  p_mem=0.5, gamma=0.2, seed=seed % 1000)
    net = small_net(seed, dtype=torch.float64)
    state = rem.start(net, data, forget, config, gen(seed))
    twin, order = oracles.RemTwin(twin_weights(state.expanded), 0.05, 0.9, 0.01, beta), gen(seed)
    for _ in range(epochs):
        for _ in range(2):
            twin.remove([(x, y) for _, x, y in data.batches(forget, batch, order, augment=True, dtype=torch.float64)])
        twin.redirect([(x, y, state.masks[at].double(), torch.isin(at, forget).double())
                       for at, x, y in data.batches(None, batch, order, augment=True, dtype=torch.float64)])
    answers = iter([0.9, 0.9, 0.1] * epochs)
    with mock.patch.object(rem, "acc_forget", lambda state: next(answers)):
        found = rem.rem(net, data, forget, config, gen(seed))
    for name, value in found.state_dict().items():
        if "num_batches" not in name:
            assert_close(value, twin.w[name], 1e-9)  # sums in another order, through a dozen updates


@given(seed=seeds, flip=st.booleans(), batch=st.sampled_from([4, 5, 64]), beta=st.sampled_from([0.5, 1.0, 2.0]))
def test_rem_equals_a_plain_twin(seed, flip, batch, beta):
    """A23, L16, D7: two epochs of REM in float64 on a network with BatchNorm and a residual sum equal the twin's."""
    prop_a23(rem, seed, flip, batch=batch, beta=beta)


def prop_a23_fit(train, seed=0, epochs=3, batch=5):
    """Epochs of `fit` are one SGD with one momentum, written out."""
    data, lr, size = make_data(seed, flip=True), 0.1, len(make_data(seed))
    net, twin = small_net(seed, dtype=torch.float64), small_net(seed, dtype=torch.float64)
    config, order, speed = tiny(batch=batch, momentum=0.9, weight_decay=0.01, epochs=epochs, lr=lr), gen(seed), {}
    train.fit(net, data, None, config, gen(seed))
    twin.train()
    steps, step = epochs * count_batches(size, batch), 0
    for _ in range(epochs):
        for _, x, y in data.batches(None, batch, order, augment=True, dtype=torch.float64):
            grads = torch.autograd.grad(F.cross_entropy(twin(x), y), list(twin.parameters()))
            with torch.no_grad():
                for (name, p), grad in zip(twin.named_parameters(), grads, strict=True):
                    speed[name] = 0.9 * speed.get(name, 0) + grad + 0.01 * p
                    p -= lr * train.rate(step, steps) * speed[name]
            step += 1
    for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True):
        assert_close(a.double(), b.double(), 1e-10)


@given(seed=seeds, epochs=st.integers(2, 3), batch=st.sampled_from([4, 5, 64]))
def test_fit_equals_a_plain_loop_over_epochs(seed, epochs, batch):
    """A23, L16: momentum carries over epochs in `fit`."""
    prop_a23_fit(train, seed, epochs, batch)


def prop_a20_bf16(rem, seed=0, beta=2.0):
    """Under bf16 autocast too, u = 0 before the first update: the reference runs in the network's precision."""
    data, forget, losses = make_data(seed, flip=True), torch.tensor([1, 4, 6]), []
    config = tiny(precision="bf16", unlearn_lr=0.0, beta=beta, gamma=0.2, batch=64, max_passes=1)
    state = rem.start(small_net(seed, norm=False), data, forget, config, gen(seed))
    answers = iter([0.9, 0.1])

    def note(optimizer, loss, *more):
        losses.append(float(loss.detach()))
        return loss.detach()

    with mock.patch.object(rem, "descend", note), \
            mock.patch.object(rem, "acc_forget", lambda state: next(answers)), \
            mock.patch.object(rem, "extra_parts", lambda *expanded, **which: set()):
        rem.remove(state)
        rem.redirect(state)
    zero = 2 / beta * torch.log(torch.tensor(2.0))
    assert_close(torch.tensor(losses), torch.stack([zero, -zero * 9 / 12]), 1e-6)  # float32; a bf16 apart is 4e-3


@given(seed=seeds, beta=st.sampled_from([0.5, 1.0, 2.0]))
def test_the_reference_has_the_networks_precision(seed, beta):
    """A20, L11: u = 0 before the first update in bf16."""
    prop_a20_bf16(rem, seed, beta)


# --- Recomputed passes ------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """conv - ReLU - a block that training may recompute in the backward pass - pool - Linear."""

    def __init__(self, how):
        super().__init__()
        self.how, self.stem, self.inner = how, nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.other, self.head = nn.Conv2d(3, 3, 1), nn.Linear(3, 4)

    def body(self, x):
        return self.other(self.inner(x).relu())

    def forward(self, x):
        x = self.stem(x).relu()
        if self.how is None or not self.training:
            x = x + self.body(x)
        elif self.how != "skipped":
            x = x + checkpoint(self.body, x, use_reentrant=self.how == "reentrant")
        return self.head(x.amax(dim=(2, 3)))


@pytest.mark.parametrize("how", ["reentrant", "not reentrant"])
@pytest.mark.parametrize("method", ["rem", "etd"])
def test_masked_passes_survive_recomputation(how, method):
    """A21: with activation checkpointing in training, REM and ETD give the very weights that they give without it."""
    outs, data = [], make_data(0)
    warnings.filterwarnings("ignore", message="None of the inputs have requires_grad")  # in passes without
    for kind in (None, how):
        net = randomise(Block(kind), 0).double()
        if method == "rem":
            outs.append(rem.rem(net, data, torch.tensor([2, 5, 7]), tiny(gamma=1.0, p_mem=0.5), gen(0)))
        else:
            outs.append(train.train_etd(net, data, tiny(p_mem=0.5), gen(0)))
    for a, b in zip(outs[0].state_dict().values(), outs[1].state_dict().values(), strict=True):
        assert_close(a, b)
    weights = [list(net.state_dict().values())[-1] for net in (outs[0], randomise(Block(None), 0).double())]
    assert not torch.equal(*weights)


def test_no_mask_is_left_after_a_backward_pass():
    """A21, E2: after the backward pass, also one that failed, base-only passes are the original's."""
    net = randomise(Block("reentrant"), 0)
    expanded, x = expand.expand(net, IMAGE).train(), torch.rand(3, 1, 8, 8, generator=gen(0))
    expanded(x, rows(0, expanded, 3)).sum().backward()
    assert all(layer.keep is None for layer in expanded.layers().values())
    out = expanded(x, rows(0, expanded, 3))
    expanded.layers()["stem"].base.weight.register_hook(lambda grad: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        out.sum().backward()
    assert torch.equal(expanded(x), net.train()(x))


def test_theta_o2_without_a_gradient_is_named():
    """A21: a network that skips a block in training leaves theta_o2 without a gradient: a TypeError says so."""
    with pytest.raises(TypeError, match="cannot redirect through 'inner'"):
        rem.rem(randomise(Block("skipped"), 0), make_data(0), torch.tensor([2, 5, 7]), tiny(gamma=1.0), gen(0))


# --- Dropout ----------------------------------------------------------------------------------------------------------


def dropping(p=0.5):
    """A network with both kinds of dropout."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout2d(p), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
                        nn.Dropout(p), nn.Linear(4, 4))
    return randomise(net, 0)


@pytest.mark.parametrize("method", ["rem", "npo", "fit"])
def test_dropout_comes_from_the_generator(method):
    """A9, M6: with dropout too the same generator gives the same weights; the global state has no part and stays."""
    data, forget, outs = make_data(0, flip=True), torch.tensor([2, 5, 7]), []
    config = tiny(gamma=0.0, max_passes=2, step31=method == "rem", step32=method == "rem", unlearn_epochs=2)
    for world, generator in ((0, 7), (1, 7), (0, 8)):
        net, before = dropping(), torch.manual_seed(world).get_state()
        answers = iter([0.9, 0.9, 0.0] * 2)
        with mock.patch.object(rem, "acc_forget", lambda state, answers=answers: next(answers)):
            if method == "fit":
                train.fit(net, data, None, config, gen(generator))
            else:
                net = rem.rem(net, data, forget, config, gen(generator))
        assert torch.equal(torch.get_rng_state(), before)
        outs.append(net)
    assert_same_state(outs[0], outs[1])
    assert not torch.equal(outs[0][0].weight, outs[2][0].weight)


def test_dropout_draws_anew_each_epoch():
    """A9: forked random numbers follow the generator's stream, and leave it where it is."""
    generator, seen = gen(3), []
    for draws in (0, 0, 2):
        torch.rand(draws, generator=generator)
        before = generator.get_state()
        with etd.forked_rng(generator, torch.device("cpu")):
            seen.append(torch.rand(4))
        assert torch.equal(generator.get_state(), before)
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_dropout_is_each_process_own():
    """G1, A9: of several processes each drops by numbers of its own, the same each time."""
    seen = []
    for rank in (0, 1, 1):
        with mock.patch.object(etd, "ranks", lambda: (rank, 2)), etd.forked_rng(gen(3), torch.device("cpu")):
            seen.append(torch.rand(4))
    assert torch.equal(seen[1], seen[2]) and not torch.equal(seen[0], seen[1])


@pytest.mark.gpu
def test_forked_random_numbers_on_cuda():
    """A9, M6: on the GPU too they come from the generator, and its global state is as before."""
    before, seen = torch.cuda.get_rng_state(), []
    for _ in range(2):
        with etd.forked_rng(gen(3), torch.device("cuda")):
            seen.append(torch.rand(4, device="cuda"))
        torch.rand(1, device="cuda")
    assert torch.equal(*seen)
    torch.cuda.set_rng_state(before)
    with etd.forked_rng(gen(3), torch.device("cuda")):
        torch.rand(4, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), before)


# --- Weights that no method can use -----------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["weight", "statistic"])
def test_ruined_weights_are_told(part):
    """A3: step 4 raises NonFiniteLoss where the last update made theta_o1 non-finite though its loss was finite."""
    state = rem.start(small_net(0), make_data(0), torch.tensor([1]), tiny(), gen(0))
    layer = state.expanded.layers()["norm1"].base
    with torch.no_grad():
        (layer.weight if part == "weight" else layer.running_var)[0] = float("inf")
    name = "norm1.weight" if part == "weight" else "norm1.running_var"
    with pytest.raises(etd.NonFiniteLoss, match=f"{name} is not finite any more"):
        rem.finish(state)


def test_the_last_update_of_rem_is_looked_at():
    """A3: a whole run whose very last update overflows raises, with every loss before it finite."""
    real, count = rem.descend, [0]

    def last_is_wild(optimizer, loss, *share):
        count[0] += 1
        real(optimizer, loss * (1e38 if count[0] == 6 else 1), *share)
        return loss.detach()

    with mock.patch.object(rem, "descend", last_is_wild), pytest.raises(etd.NonFiniteLoss, match="not finite any more"):
        rem.rem(small_net(0), make_data(0), torch.tensor([1, 2]), tiny(gamma=1.0, unlearn_lr=1e5), gen(0))
    assert count[0] == 6


def test_theta_o2_may_be_ruined():
    """D9: theta_o2 is thrown away, so what it is does not matter to step 4."""
    state = rem.start(small_net(0), make_data(0), torch.tensor([1]), tiny(), gen(0))
    with torch.no_grad():
        state.expanded.layers()["conv2"].to_extra.fill_(float("nan"))
    assert_same_state(rem.finish(state), small_net(0))


def test_frozen_networks_are_refused():
    """A17: a network without a trainable parameter cannot be trained or unlearned from: a ValueError says so."""
    net = small_net(0).requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter of the network is frozen"):
        rem.rem(net, make_data(0), torch.tensor([1]), tiny(), gen(0))
    with pytest.raises(ValueError, match="every parameter of the network is frozen"):
        train.fit(net, make_data(0), None, tiny(), gen(0))
    with pytest.raises(ValueError, match="every parameter of the network is frozen"):  # theta_o2 alone does not count
        rem.rem(expand.expand(net, IMAGE), make_data(0), torch.tensor([1]), tiny(), gen(0))
    net.head.weight.requires_grad_(True)  # one parameter is enough
    rem.rem(net, make_data(0), torch.tensor([1]), tiny(gamma=1.0), gen(0))
