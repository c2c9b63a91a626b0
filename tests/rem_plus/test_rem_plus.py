"""REM+ as a whole, rem_plus.py: the plain loop of paper/twins_plus.py, number by number, and what is left without it.

- each of its changes and all together are the twin's                                   A24, A27, A32, A33, A37, A40
- without the four of them it is REM, bit for bit                                       A41

Its parts are in test_distance.py, test_early_stopping.py and test_small_loss.py.
"""

import warnings
from dataclasses import replace
from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import rem_plus as module
import twins
import twins_plus
from experiment.settings import Config
from helpers import assert_same_state, gen, make_data, seeds, small_net, tiny
from metrics import predict
from rem import Settings as Printed, add_capacity, rem
from rem_plus import EarlyStopping, Settings, rem_plus
from test_twins import assert_weights

N = 44
OFF = dict(reach=0.0, stop="max", disbelieved=0.0, farther=0)
few = settings(max_examples=max(3, settings().max_examples // 3))  # whole unlearning runs in each example


class Case:
    """One draw of data, network and D_f, which the network has learnt; what the project makes of it, and the twin."""

    def __init__(self, seed: int, augments: bool = True, **changes):
        self.seed, self.net = seed, small_net(seed, dtype=torch.float64)
        self.data = make_data(seed, n=N, pad=int(augments), flip=augments)
        self.forget = torch.randperm(N, generator=gen(seed))[:5]
        self.data.labels[self.forget] = predict(self.net, self.data, self.forget)
        self.config = Settings(**{**dict(seed=seed % 1000, unlearn_epochs=4, unlearn_lr=0.02, gamma=0.3, max_passes=6,
                                         p_mem=0.5, weight_decay=0.01, beta=2.0, batch=16), **changes})

    def state(self):
        """What step 1 makes."""
        return add_capacity(self.net, self.data, self.forget, self.config, gen(self.seed))

    def found(self, memorised: float, **more) -> tuple[dict, int]:
        """REM+'s answer under the twin's names, and the epochs that it was asked to log."""
        epochs = []
        with warnings.catch_warnings(), mock.patch.object(module, "MEMORISED", memorised):
            warnings.filterwarnings("ignore", message="Acc")  # step 2 may give up
            out = rem_plus(self.net, self.data, self.forget, self.config, gen(self.seed),
                           log=lambda epoch, *_, **record: epochs.append(epoch), **more)
        return twins.weights_of(out.state_dict()), epochs[-1]

    def expected(self, memorised: float) -> tuple[dict, int]:
        """The twin's."""
        config, state = self.config, self.state()
        held_out = EarlyStopping(state).held_out

        def draw():
            order = gen(self.seed)
            return lambda index: list(self.data.batches(index, config.batch, order, augment=True, dtype=torch.float64))

        masks = torch.tensor([twins.mask_row(config.seed, None if i in self.forget.tolist() else i,
                                               state.expanded.width, config.p_mem) for i in range(N)]).double()
        _, images, labels = next(self.data.batches(dtype=torch.float64))
        net = twins.RemTwin(twins.weights_of(state.expanded.state_dict()), config.unlearn_lr, config.momentum,
                            config.weight_decay, config.beta)
        plain = list(self.data.batches(None, config.batch, gen(0), augment=True, dtype=torch.float64))
        return twins_plus.rem_plus(net, draw, plain, masks, self.forget,
                                   torch.tensor([], dtype=torch.int64) if held_out is None else held_out, images,
                                   labels, epochs=config.unlearn_epochs, gamma=config.gamma, batch=config.batch,
                                   max_passes=config.max_passes, reach=config.reach, memorised=memorised,
                                   disbelieved=config.disbelieved, farther=config.farther)


@few
@given(seeds, st.sampled_from([0.3, 0.8]), st.sampled_from([0.0, 0.02, 0.3]), st.sampled_from(["repaired", "max"]),
       st.sampled_from([0.0, 1.0, 1.6]), st.integers(0, 2), st.sampled_from([-1.0, 0.5]), st.booleans())
@example(1, 0.3, 0.0, "repaired", 0.0, 0, 0.5, True)
@example(3, 0.3, 0.0, "repaired", 0.0, 0, 0.5, True)  # the last epoch is not the one that comes back
@example(1, 0.3, 0.02, "repaired", 1.6, 1, -1.0, True)
@example(2, 0.3, 0.3, "max", 1.6, 1, -1.0, False)
def test_rem_plus_is_the_plain_loop(seed, gamma, reach, stop, disbelieved, farther, memorised, augments):
    """A24, A27, A32, A33, A37, A40: whatever is on or off, theta_o1 and the number of epochs are the twin's."""
    case = Case(seed, augments, gamma=gamma, reach=reach, stop=stop, disbelieved=disbelieved, farther=farther)
    (found, epochs), (expected, ran) = case.found(memorised), case.expected(memorised)
    assert_weights(found, expected)
    assert epochs == ran


def test_every_change_matters():
    """A41: in the cases above each change moves the network, so that there is something to agree with."""
    moved = dict.fromkeys(OFF, 0)
    for seed in range(6):
        whole, _ = Case(seed, reach=0.05, disbelieved=1.6).found(-1.0)
        for name, off in OFF.items():
            less, _ = Case(seed, **{**dict(reach=0.05, disbelieved=1.6), name: off}).found(-1.0)
            moved[name] += not torch.equal(whole["conv1.weight"], less["conv1.weight"])
    assert min(moved.values()) > 0, moved


@few
@given(seeds, st.sampled_from([0.0, 0.2, 1.0]), st.sampled_from(["sgd", "adam"]), st.booleans(),
       st.sampled_from(["auto", "batch"]), st.integers(0, 3))
def test_without_its_changes_it_is_rem(seed, gamma, optimizer, augments, norm, epochs):
    """A41: with all four off REM+ is REM bit for bit, in weights, statistics, what it logs and what it draws."""
    data, forget, nets, logs, draws = make_data(seed, n=N, flip=augments), torch.arange(5), [], [], []
    net = small_net(seed)
    data.labels[forget] = predict(net, data, forget)
    how = dict(unlearn_epochs=epochs, gamma=gamma, optimizer=optimizer, forget_norm=norm, batch=16, max_passes=3)
    for method, config in ((rem, Printed(**how)), (rem_plus, Settings(**how, **OFF)), (rem, Settings(**how))):
        drawn, log = gen(seed), []
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Acc")
            nets.append(method(net, data, forget, config, drawn, log=lambda *given, **record: log.append(record)))
        logs, draws = [*logs, log], [*draws, drawn.get_state()]
    for other in (1, 2):
        assert_same_state(nets[0], nets[other])
        assert logs[0] == logs[other] and torch.equal(draws[0], draws[other])


@pytest.mark.parametrize("name, off", OFF.items())
def test_each_is_switched_off_alone(name, off):
    """A41: one that is off does nothing, whatever else is on: no distance, no W, no image left out, no restart."""
    case = Case(0, **{**dict(reach=0.05, disbelieved=0.1), name: off})
    taught, records = [], []
    real = module.redirect

    def redirect(state, step3, index):
        taught.append(N if index is None else len(index))
        real(state, step3, index)

    with mock.patch.object(module, "redirect", redirect), mock.patch.object(module, "small_loss", smaller(case)):
        case.found(-1.0)
    held_out = EarlyStopping(case.state()).held_out
    assert (held_out is None) == (name == "stop")
    assert taught[0] == N - (0 if held_out is None else len(held_out))
    assert (min(taught) < taught[0]) == (name != "disbelieved")
    restarts = name not in ("reach", "stop", "farther")
    assert len(taught) >= 2 and (taught[:2] == [taught[0]] * 2) == (restarts or name == "disbelieved"), records


def smaller(case):
    """`small_loss` that leaves out one image from epoch 2 on, where it is on: most of so few have a large loss."""
    def small_loss(state, index):
        if state.epoch < 2 or not state.config.disbelieved:
            return index
        return (torch.arange(N) if index is None else index)[1:]

    return small_loss


def test_settings():
    """A41: REM+ has the settings of REM and one for each of its changes, no other; an experiment's give both."""
    assert set(vars(Settings())) - set(vars(Printed())) == set(OFF)
    assert not set(OFF) & set(vars(Printed()))
    given = tiny(reach=0.03, stop="repaired", disbelieved=1.25, farther=2)
    state = add_capacity(small_net(0), make_data(0), torch.tensor([1]), module.settings_from(given, Settings), gen(0))
    assert {name: getattr(state.config, name) for name in OFF} == {name: getattr(given, name) for name in OFF}
    assert {name: getattr(Config(), name) for name in OFF} == {name: getattr(Settings(), name) for name in OFF}
    with pytest.raises(ValueError, match="stop is 'never'; choose from repaired, max"):
        Settings(stop="never")
    with pytest.raises(TypeError, match="unexpected keyword argument 'reached'"):
        Settings(reached=1.0)
    assert replace(Settings(), reach=0.5).reach == 0.5
