"""The methods of Table 1 on an ETD-trained network: each runs, from theta_o1 alone, and has a line of its own.

"Other unlearning methods show an increased combined score when combined with ETD" (Sec. 6): they get the network that
is used at inference, without the memorisation partition; REM alone goes on with it.
"""

import warnings

import pytest
import torch
from torch import nn

from baselines import with_theta_o2
from etd import Expanded
from experiment.cell import unlearn
from experiment.methods import METHODS
from helpers import make_dataset, small_net, tiny
from made_rows import column, load, make_row, one
from tasks import make_task

ON_ETD = ("no-ul", "cf", "npo", "ascent", "scrub", "badt", "ssd", "potion", "rem")


@pytest.mark.parametrize("name", ON_ETD)
def test_each_runs_from_theta_o1(name):
    """A cell with --etd ends well with finite scores; the method saw a plain network of theta_o1's shapes, REM the
    expanded one."""
    config, seen = tiny(etd=True, method=name, gamma=0.2, max_passes=2), []
    task = make_task("poison", make_dataset(0), 8, 0)
    net = small_net(0, width=4)
    original = with_theta_o2(net, task.train, config)
    original.trained_under = config.seed, config.p_mem

    def method(model, data, forget, config, generator, **more):
        seen.append(model)
        return METHODS[name].function(model, data, forget, config, generator, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gamma is not reached
        row = unlearn(config, name, method, original, task, task.corrupted[:4])
    assert row["status"] == "ok" and 0 <= row["product"] <= 1, row["error"]
    assert isinstance(seen[0], Expanded) == (name == "rem")
    if name != "rem":
        assert isinstance(seen[0], nn.Module)
        shapes = {key: value.shape for key, value in seen[0].state_dict().items()}
        assert shapes == {key: value.shape for key, value in net.state_dict().items()}
        assert all(torch.equal(value, net.state_dict()[key]) for key, value in seen[0].state_dict().items())


def test_lines_beside_each_other(tmp_path):
    """The plane has "npo on ETD" beside "npo", with its difference to REM without ETD."""
    rows = [make_row(name, 0.5 + 0.04 * k + 0.02 * etd, 0.9, task="poison", discovery=0.5, etd=etd)
            for k, name in enumerate(ON_ETD) for etd in (False, True)]
    rows = load(tmp_path, rows)
    found = one("plane", rows)
    wanted = {name + more for name in ON_ETD for more in ("", " on ETD")} - {"no-ul on ETD"} | {"ETD alone"}
    assert set(column(found, "method")) == wanted
    less = dict(zip(column(found, "method"), column(found, "minus REM"), strict=True))
    k = ON_ETD.index("npo") - ON_ETD.index("rem")
    assert less["npo on ETD"] == (pytest.approx(90 * (0.04 * k + 0.02)), None)
