"""Every method against a plain twin that imports nothing of the project: two epochs in float64, to 1e-9."""

import warnings

import pytest
import torch
from hypothesis import example, given, settings

import baselines
from experiment import methods
import oracles
from experiment.data import batches
from etd import Expanded, drop
from helpers import assert_close, gen, make_data, seeds, small_net, tiny
from metrics import accuracy
from models import reinitialise
from rem import start
from engine.streams import stream
from test_core import twin_weights
from train import expand_for

few = settings(max_examples=max(2, settings().max_examples // 5))
METHODS = {name: method.function for name, method in methods.METHODS.items()}
MADE = {"badt": lambda: baselines.bad_teacher(over_classes=True),  # anew, so that a changed module makes a changed one
        "potion-500": lambda: baselines.potion(tries=500, part=25, relative=True)}
N, BATCH = 14, 4


def weights(net):
    """Arrays under the oracle's names."""
    if isinstance(net, Expanded):
        return twin_weights(net)
    return {name: value for name, value in net.state_dict().items() if "num_batches" not in name}


class Run:
    """One method on one draw of data and network: what the project gives, and all that a twin is made of."""

    def __init__(self, name, seed, schedule="linear"):
        self.data = make_data(seed, n=N, pad=1, flip=True)
        self.forget = torch.randperm(N, generator=gen(seed))[:5]
        self.retain = torch.tensor([i for i in range(N) if i not in self.forget.tolist()])
        self.shared = torch.cat([self.forget, self.retain[:3]])  # D_c, of the IDEAL methods
        self.config = tiny(seed=seed % 1000, schedule=schedule, lr=0.01, unlearn_lr=0.005, gamma=0.3, max_passes=3,
                           p_mem=0.5, alpha=0.5, ssd_alpha=1.5, weight_decay=0.01, beta=2.0, batch=BATCH)
        self.net, self.order = small_net(seed, dtype=torch.float64), gen(seed)
        if name == "rem-on-etd":
            self.net = expand_for(self.net, self.data, self.config)
        more = {"corrupted": self.shared} if name.endswith("ideal") else {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Acc")
            method = MADE[name]() if name in MADE else METHODS[name]
            self.found = method(self.net, self.data, self.forget, self.config, gen(seed), **more)

    def passed(self, index=None, order=None, size=BATCH):
        """A pass as a list, augmented in the order that comes next, or plain."""
        more = {} if order is None else dict(generator=order, augment=True)
        return list(batches(self.data, index, size, **more, dtype=torch.float64))

    def next(self, index=None):
        return self.passed(index, self.order)

    def twin(self, w=None):
        config = self.config
        return oracles.Twin(weights(self.net) if w is None else w, config.unlearn_lr, config.momentum,
                            config.weight_decay, config.beta)

    def fresh(self):
        return reinitialise(small_net(0, dtype=torch.float64), stream(self.config.seed, "fresh weights").initial_seed())

    def rates(self, peak, steps):
        return oracles.linear(peak, steps) if self.config.schedule == "linear" else [peak] * steps


def steps_of(passes):
    return sum(map(len, passes))


def no_ul(run):
    return run.twin()


def cf(run):
    twin, passes = run.twin(), [run.next(run.retain) for _ in range(2)]
    twin.train(passes, run.rates(0.005, steps_of(passes)), twin.ce)
    return twin


def retrain(run):
    twin, passes = run.twin(weights(run.fresh())), [run.next(run.retain) for _ in range(2)]
    twin.train(passes, oracles.linear(0.01, steps_of(passes)), twin.ce)
    return twin


def etd(run, shared=None):
    expanded = expand_for(run.fresh(), run.data, run.config)
    table = [oracles.mask_row(run.config.seed, None if shared is not None and i in shared.tolist() else i,
                              expanded.width, 0.5) for i in range(N)]
    twin, passes = run.twin(weights(expanded)), [run.next() for _ in range(2)]
    twin.train(passes, oracles.linear(0.01, steps_of(passes)), twin.masked_ce(torch.tensor(table).double()))
    twin.refresh(list(batches(run.data, None, BATCH, gen(0), augment=True, dtype=torch.float64)))
    return twin


def ascent(run):
    twin, (_, x, y) = run.twin(), run.passed(run.forget, size=N)[0]
    for _ in range(3):
        if twin.accuracy(x, y) > 0.3:
            twin.train([run.next(run.forget)], [0.005] * N, lambda *batch: -twin.ce(*batch))
    return twin


def npo(run):
    twin, (_, x, y) = run.twin(), run.passed(run.forget, size=N)[0]
    for _ in range(3):
        if twin.accuracy(x, y) > 0.3:
            for _, images, labels in run.next(run.forget):
                twin.step(-twin.h(images, labels, training=True).mean())
    return twin


def scrub(run):
    twin, passes = run.twin(), []
    for _ in range(2):  # 100 steps are far away
        passes += [(run.next(run.forget), -1), (run.next(run.retain), 1)]
    rates = run.rates(0.005, steps_of([one for one, _ in passes]))
    for one, sign in passes:
        twin.train([one], rates, twin.scrub(0.5, sign))
        rates = rates[len(one):]
    return twin


def badt(run, scale):
    twin, passes = run.twin(), [run.next() for _ in range(2)]
    loss = twin.badt(weights(run.fresh()), run.forget.tolist(), scale)
    twin.train(passes, run.rates(0.005, steps_of(passes)), loss)
    return twin


def ssd(run):
    twin = run.twin()
    twin.ssd(run.passed(size=64), run.passed(run.forget, size=64), 1.5)
    return twin


def potion(run, share, relative, tries):
    twin = run.twin()
    bound = 0.3 * (accuracy(run.net, run.data, run.forget) if relative else 1)
    twin.potion(run.passed(run.retain), run.passed(run.forget), share, bound, tries)
    return twin


def cuts(run):
    twin, sample = run.twin(), torch.randperm(N, generator=run.order)
    passes = [run.next(run.forget) for _ in range(baselines.CUTS_PASSES)]
    twin.train(passes, [0.005] * steps_of(passes), twin.ce)
    twin.cuts(run.passed(sample, size=N)[0][1], 4, baselines.CUTS_NEAREST)
    return twin


def rem(run, shared=None, step31=True, step32=True, redirect="npo"):
    expanded = start(run.net, run.data, run.forget, run.config, gen(0)).expanded
    shared = run.forget if shared is None else shared
    table = torch.tensor([oracles.mask_row(run.config.seed, None if i in shared.tolist() else i, expanded.width, 0.5)
                          for i in range(N)]).double()
    twin, (_, x, y) = run.twin(weights(expanded)), run.passed(run.forget, size=N)[0]
    for _ in range(2):
        for _ in range(3):
            if twin.accuracy(x, y) > 0.3:
                twin.remove([(images, labels) for _, images, labels in run.next(run.forget)])
        for at, images, labels in run.next():
            found = torch.isin(at, run.forget).double()
            if step31 and redirect == "npo":
                full = twin.h(images, labels, table[at], training=True)
            elif step31:
                full = twin.losses(twin.w, images, labels, table[at], training=True)
            base = twin.h(images, labels, training=True)  # without 3.2 too, for its statistics
            removal = (base * found).mean() if step32 else 0
            twin.step(full.mean() - removal if step31 else (base * (1 - found)).mean() - removal)
    return twin


TWINS = {
    "no-ul": no_ul, "retrain": retrain, "cf": cf, "ascent": ascent, "npo": npo, "scrub": scrub,
    "badt": lambda run: badt(run, 1 / 4), "badt-sum": lambda run: badt(run, 1.0), "ssd": ssd,
    "potion-500": lambda run: potion(run, 5 / N / 25, True, 500), "potion": lambda run: potion(run, 5 / N, False, 50),
    "cuts": cuts, "etd": etd, "etd-ideal": lambda run: etd(run, run.shared),
    "rem": rem, "rem-on-etd": rem, "rem-ideal": lambda run: rem(run, run.shared),
    "rem-no31": lambda run: rem(run, step31=False), "rem-no32": lambda run: rem(run, step32=False),
    "rem-ce": lambda run: rem(run, redirect="ce"),
}


def test_every_method_has_a_twin():
    """A23: no method goes without."""
    assert TWINS.keys() == METHODS.keys()


def prop_a23_method(name, seed=1, schedule="linear"):
    """All weights and statistics are the twin's."""
    run = Run(name, seed, schedule)
    twin = TWINS[name](run)
    for key, value in run.found.state_dict().items():
        if "num_batches" not in key:
            assert_close(value, twin.w[key], 1e-9)


@few
@pytest.mark.parametrize("name", TWINS)
@given(seeds)
@example(1)
def test_against_a_plain_twin(name, seed):
    """A23, L16: two epochs of each method in float64, on a network with BatchNorm and residual sum, are the twin's."""
    prop_a23_method(name, seed)
    if name in ("cf", "scrub", "badt", "badt-sum"):
        prop_a23_method(name, seed, "constant")


@pytest.mark.parametrize("name", sorted(TWINS.keys() - {"no-ul"}))
def test_no_twin_stands_still(name):
    """Each method moves the weights in some draw, so that its twin has something to agree with."""
    def moved(seed):
        run = Run(name, seed)
        before = (drop(run.net) if isinstance(run.net, Expanded) else run.net).state_dict()
        return any(not torch.equal(value, before[key]) for key, value in run.found.state_dict().items())

    assert any(moved(seed) for seed in range(20))
