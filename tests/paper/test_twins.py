"""Algorithm 1 against the plain loop of twins.py, number by number. What the paper says, and what holds it:

- Algorithm 1 (Sec. 5), steps 2 to 4 as printed: after any number of epochs theta_o1 is the plain loop's, for any beta,
  gamma and batch, with and without augmentation, and with either weight of D_f in 3.2; each example's gradient flows
  through its own path in theta_o2.                                              A23, A35, L16, L18, D7, F3, F4, F5
- Sec. 5: "independence from the retain set during this step is essential": the loop's step 2 is given D_f alone.    A6

All in float64, to 1e-9: sums run in another order through some dozens of updates. Beside this path: the ablations, REM
on ETD, REM (IDEAL), ETD training and the other methods in test_rivals_twins.py, REM+ in tests/rem_plus.
"""

import warnings
from functools import partial

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import twins
from helpers import assert_close, gen, make_data, seeds, small_net
from rem import Settings, add_capacity, rem

N = 14
few = settings(max_examples=max(3, settings().max_examples // 3))  # whole unlearning runs in each example


class Case:
    """One draw of data, network and D_f; what the project makes of them, and what the twin does."""

    def __init__(self, seed, *, n=N, augments=True, **changes):
        self.data = make_data(seed, n=n, pad=int(augments), flip=augments)
        self.forget = torch.randperm(n, generator=gen(seed))[:5]
        self.config = Settings(**{**dict(seed=seed % 1000, unlearn_epochs=2, unlearn_lr=0.02, gamma=0.3, max_passes=3,
                                         p_mem=0.5, weight_decay=0.01, beta=2.0, batch=4),
                                  **changes})
        self.net, self.seed = small_net(seed, dtype=torch.float64), seed

    def found(self, log=None):
        """rem's answer, under the twin's names."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Acc")  # step 2 may give up
            out = rem(self.net, self.data, self.forget, self.config, gen(self.seed), log=log)
        return twins.weights_of(out.state_dict())

    def state(self):
        """What step 1 makes."""
        return add_capacity(self.net, self.data, self.forget, self.config, gen(self.seed))

    def expected(self):
        """The twin's theta_o1 after each epoch."""
        config, order, expanded = self.config, gen(self.seed), self.state().expanded

        def passes(index):
            return list(self.data.batches(index, config.batch, order, augment=True, dtype=torch.float64))

        masks = torch.tensor([twins.mask_row(config.seed, None if i in self.forget.tolist() else i, expanded.width,
                                               config.p_mem) for i in range(len(self.data))]).double()
        _, x, y = next(self.data.batches(self.forget, dtype=torch.float64))
        net = twins.RemTwin(twins.weights_of(expanded.state_dict()), config.unlearn_lr, config.momentum,
                            config.weight_decay, config.beta)
        plain = list(self.data.batches(None, config.batch, gen(0), augment=True, dtype=torch.float64))
        weight = len(self.data) / len(self.forget) if config.remove_weight == "mean" else 1.0
        return twins.rem(net, passes, plain, masks, self.forget, x, y, epochs=config.unlearn_epochs,
                         gamma=config.gamma, max_passes=config.max_passes,
                         step3=partial(twins.step3_loss, weight=weight))


def assert_weights(found, expected):
    """theta_o1, parameters and running statistics, is the twin's."""
    for name, value in found.items():
        assert_close(value, expected[name], 1e-9)


# --- Algorithm 1 as printed -------------------------------------------------------------------------------------------


@few
@given(seeds, st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([0.0, 0.3, 0.8, 1.0]), st.integers(1, 3),
       st.sampled_from([4, 5, 64]), st.booleans(), st.sampled_from(["share", "mean"]))
@example(1, 2.0, 0.3, 3, 4, True, "mean")
def test_rem_is_the_plain_loop(seed, beta, gamma, epochs, batch, augments, weight):
    """A23, L16, L18, A6, A35, D7, F3, F4, F5: REM is the plain loop of Algorithm 1, one optimiser whose momentum carries
    over steps and epochs, D_f alone in step 2 and all of D_tr in step 3, where D_f has its share of the batch or counts
    as its mean; gradients flow as in a plain wide network, and SGD decays what is off."""
    case = Case(seed, augments=augments, beta=beta, gamma=gamma, unlearn_epochs=epochs, batch=batch,
                remove_weight=weight)
    assert_weights(case.found(), case.expected()[-1])


def test_no_twin_stands_still():
    """A23: in the cases above step 2 makes passes and weights move, so that there is something to agree with."""
    passes, moved = [], 0
    for seed in range(5):
        case = Case(seed)
        found = case.found(log=lambda epoch, epochs, model, **record: passes.append(record["passes"]))
        moved += not torch.allclose(found["conv1.weight"], case.net.conv1.weight)
    assert sum(passes) >= 5 and moved == 5
