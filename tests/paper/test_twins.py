"""The shipped code against the plain twins of twins.py, number by number: what an auditor reads first.

- Algorithm 1 (Sec. 5), with Never as printed: theta_o1 after any number of epochs, any beta, gamma and batch, with and
  without augmentation; with and without 3.2, without 3.1, with plain CE in 3.1 (Table 2, Fig. 7)   A23, L14, L16, D7
- REM on ETD (Table 1) and REM (IDEAL), Fig. 3                                                     A14, A23
- With Repaired the same epochs run, on what it trains on, and the best one comes back             A24, A27
- Example-tied dropout (Sec. 2) and its IDEAL form (Fig. 9), statistics refreshed                  A23, E1, D7
- The wide network under masks is the naive loop over pixels and channels                          L16, M12

All in float64, to 1e-9: sums run in another order through some dozens of updates.
"""

import warnings
from functools import partial

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import baselines
import oracles
import twins
from engine.ending import Never, Repaired
from etd import drop, train_etd
from expand import expand
from helpers import assert_close, gen, make_data, randomise, rows, run, seeds, small_net, tiny
from rem import Settings, add_capacity, rem, step3_batch
from train import fit

IMAGE = torch.zeros(2, 1, 8, 8)
N = 14
few = settings(max_examples=max(3, settings().max_examples // 3))  # whole unlearning runs in each example


class Case:
    """One draw of data, network and D_f; what the project makes of them, and what the twin does."""

    def __init__(self, seed, *, n=N, augments=True, shared=0, on_etd=False, **changes):
        self.data = make_data(seed, n=n, pad=int(augments), flip=augments)
        self.forget = torch.randperm(n, generator=gen(seed))[:5]
        retain = [i for i in range(n) if i not in self.forget.tolist()]
        self.shared = torch.cat([self.forget, torch.tensor(retain[:shared], dtype=torch.int64)])
        self.config = Settings(**{**dict(seed=seed % 1000, unlearn_epochs=2, unlearn_lr=0.02, gamma=0.3, max_passes=3,
                                         p_mem=0.5, weight_decay=0.01, beta=2.0, batch=4), **changes})
        self.net, self.seed = small_net(seed, dtype=torch.float64), seed
        if on_etd:
            training = tiny(epochs=1, batch=4, lr=0.05, p_mem=0.5, seed=self.config.seed)
            self.net = train_etd(expand(self.net, IMAGE), self.data, training, gen(seed), fit)

    def found(self, until=Never, step3=None, log=None):
        """rem's answer, under the twin's names."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Acc")  # step 2 may give up
            out = rem(self.net, self.data, self.forget, self.config, gen(self.seed), shared=self.shared, until=until,
                      step3=step3, log=log)
        return twins.weights_of(out.state_dict())

    def state(self):
        """What step 1 makes."""
        return add_capacity(self.net, self.data, self.forget, self.config, gen(self.seed), self.shared)

    def expected(self, epochs=None, trained_on=None, step3=None):
        """The twin's theta_o1 after each epoch."""
        config, order, expanded = self.config, gen(self.seed), self.state().expanded

        def passes(index):
            return list(self.data.batches(index, config.batch, order, augment=True, dtype=torch.float64))

        masks = torch.tensor([oracles.mask_row(config.seed, None if i in self.shared.tolist() else i, expanded.width,
                                               config.p_mem) for i in range(len(self.data))]).double()
        _, x, y = next(self.data.batches(self.forget, dtype=torch.float64))
        net = twins.RemTwin(twins.weights_of(expanded.state_dict()), config.unlearn_lr, config.momentum,
                            config.weight_decay, config.beta)
        plain = list(self.data.batches(None, config.batch, gen(0), augment=True, dtype=torch.float64))
        return twins.rem(net, passes, plain, masks, self.forget, x, y, epochs=epochs or config.unlearn_epochs,
                         gamma=config.gamma, max_passes=config.max_passes, trained_on=trained_on, step3=step3)


def assert_weights(found, expected):
    """theta_o1, parameters and running statistics, is the twin's."""
    for name, value in found.items():
        assert_close(value, expected[name], 1e-9)


# --- Algorithm 1 as printed -------------------------------------------------------------------------------------------


@few
@given(seeds, st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([0.0, 0.3, 0.8, 1.0]), st.integers(1, 3),
       st.sampled_from([4, 5, 64]), st.booleans())
@example(1, 2.0, 0.3, 3, 4, True)
def test_rem_is_the_plain_loop(seed, beta, gamma, epochs, batch, augments):
    """A23, L16, D7: REM is the plain loop of Algorithm 1, one optimiser whose momentum carries over steps and
    epochs."""
    case = Case(seed, augments=augments, beta=beta, gamma=gamma, unlearn_epochs=epochs, batch=batch)
    assert_weights(case.found(), case.expected()[-1])


def without_removal(net, x, y, mask, in_forget):
    """Table 2 without 3.2: L_redirect alone; theta_o1 alone still sees the batch, for its statistics."""
    net.h(x, y, training=True)
    return net.h(x, y, mask, training=True).mean()


def without_redirect(net, x, y, mask, in_forget, removes=True):
    """Table 2 without 3.1: theta_o1 alone is fine-tuned on D_r."""
    base = net.h(x, y, training=True)
    return ((1 - in_forget) * base).mean() - (in_forget * base).mean() * removes


def redirect_by_ce(net, x, y, mask, in_forget):
    """Fig. 7's other redirect term: CE itself."""
    full = net.losses(net.w, x, y, mask, training=True).mean()
    return full - (in_forget * net.h(x, y, training=True)).mean()


ABLATIONS = {
    "rem-no32": (partial(step3_batch, removes=False), without_removal),
    "rem-no31": (baselines.step3_without_redirect, without_redirect),
    "no 3.1, no removal": (partial(baselines.step3_without_redirect, removes=False),
                           partial(without_redirect, removes=False)),
    "rem-ce": (baselines.step3_by_ce, redirect_by_ce),
}


@few
@pytest.mark.parametrize("name", ABLATIONS)
@given(seeds)
@example(1)
def test_ablations_are_the_loop_with_another_loss(name, seed):
    """A23, L14: each ablation changes one term of step 3's loss and nothing else."""
    ours, plain = ABLATIONS[name]
    case = Case(seed)
    if "31" in name or "3.1" in name:  # theta_o2 is unused, so no gradient reaches it
        state = case.state()
        for p in state.expanded.theta_o2().values():
            p.requires_grad_(False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Acc")
            out = rem(None, None, None, None, None, until=Never, step3=ours, state=state)
        found = twins.weights_of(out.state_dict())
    else:
        found = case.found(step3=ours)
    assert_weights(found, case.expected(step3=plain)[-1])


@few
@given(seeds, st.sampled_from([1, 3]))
@example(1, 3)
def test_rem_ideal_is_the_loop_with_one_row_for_d_c(seed, more):
    """A23, A14: in REM (IDEAL) all of D_c has D_f's mask row while D_f alone is removed."""
    case = Case(seed, shared=more)
    assert_weights(case.found(), case.expected()[-1])


@few
@given(seeds)
@example(1)
def test_rem_on_etd_is_the_loop_on_what_etd_made(seed):
    """A23, A14, E6: on ETD both parts, their statistics and D_r's masks are those of ETD training."""
    case = Case(seed, on_etd=True)
    assert_weights(case.found(), case.expected()[-1])


def test_no_twin_stands_still():
    """A23: in the cases above step 2 makes passes and weights move, so that there is something to agree with."""
    passes, moved = [], 0
    for seed in range(5):
        case = Case(seed)
        found = case.found(log=lambda epoch, epochs, model, **record: passes.append(record["passes"]))
        moved += not torch.allclose(found["conv1.weight"], case.net.conv1.weight)
    assert sum(passes) >= 5 and moved == 5


# --- The end of the repair --------------------------------------------------------------------------------------------


@few
@given(seeds, st.sampled_from([0.3, 0.8, 1.0]))
@example(1, 0.3)
def test_repaired_is_the_same_loop(seed, gamma):
    """A24, A27: with Repaired the very same epochs run, on what it trains on; the best one's theta_o1 comes back."""
    case, best = Case(seed, n=44, gamma=gamma, unlearn_epochs=4, batch=16), []
    found = case.found(Repaired, log=lambda epoch, epochs, model, **record: best.append(record["best"]))
    after = case.expected(epochs=len(best), trained_on=Repaired(case.state()).trained_on)
    assert_weights(found, after[max(number for number, is_best in enumerate(best) if is_best)])


# --- ETD --------------------------------------------------------------------------------------------------------------


@few
@pytest.mark.parametrize("shared", [None, torch.tensor([2, 5, 7])], ids=["etd", "etd-ideal"])
@given(seeds)
@example(1)
def test_etd_is_the_plain_loop(shared, seed):
    """A23, E1, D7: ETD training is SGD on CE under each example's fixed mask, then base statistics are made anew; in
    its IDEAL form D_c shares a row."""
    data, config = make_data(seed, n=N, pad=1, flip=True), tiny(epochs=2, lr=0.01, p_mem=0.5, seed=seed % 1000,
                                                                weight_decay=0.01)
    fresh = expand(small_net(seed, dtype=torch.float64), IMAGE)
    net = twins.RemTwin(twins.weights_of(fresh.state_dict()), 0, config.momentum, config.weight_decay, 1)
    order, own = gen(seed), [] if shared is None else shared.tolist()
    passes = [list(data.batches(None, 4, order, augment=True, dtype=torch.float64)) for _ in range(2)]
    masks = [oracles.mask_row(config.seed, None if i in own else i, fresh.width, 0.5) for i in range(N)]
    plain = list(data.batches(None, 4, gen(0), augment=True, dtype=torch.float64))
    twins.train_etd(net, passes, plain, torch.tensor(masks).double(), twins.linear(0.01, 8))
    found = drop(train_etd(fresh, data, config, gen(seed), fit, shared))
    assert_weights(twins.weights_of(found.state_dict()), net.w)


# --- The network ------------------------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 3))
def test_the_wide_network_is_the_naive_loop(seed, batch):
    """L16, M12: theta_o2 under masks, in the project and in the twin, is a loop over examples, pixels and channels."""
    expanded = randomise(expand(small_net(seed, dtype=torch.float64), IMAGE), seed).eval()
    x, mask = torch.randn(batch, 1, 4, 4, generator=gen(seed), dtype=torch.float64), rows(seed, expanded, batch)
    arrays = {key.removeprefix("net."): value.numpy() for key, value in expanded.state_dict().items()}
    naive = torch.from_numpy(oracles.masked_small_net(x.numpy(), mask.numpy(), arrays))
    net = twins.RemTwin(twins.weights_of(expanded.state_dict()), 0, 0, 0, 1)
    assert_close(run(expanded, x, mask), naive, 1e-11)
    assert_close(net.logits(net.w, x, mask.double()), naive, 1e-11)
