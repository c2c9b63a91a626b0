"""Several processes, one network: two of them on the CPU give the numbers of one (engine/ranks.py and all above it).

As a script, `python test_several_processes.py FOLDER`, this file is one of the processes.
"""

import copy
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("", "tests", "tests/experiment")]  # pytest.ini says so to pytest

from baselines import with_theta_o2  # noqa: E402
from engine.features import features  # noqa: E402
from engine.ranks import ranks  # noqa: E402
from etd import train_etd  # noqa: E402
from experiment.methods import METHODS  # noqa: E402
from helpers import assert_close, gen, make_data, small_net, tiny  # noqa: E402
from metrics import accuracy, predict  # noqa: E402
from rem import rem  # noqa: E402
from rem_plus import rem_plus  # noqa: E402
from repair.network import repair_quietly  # noqa: E402
from repair.suspects import suspects  # noqa: E402
from several import ended, start  # noqa: E402
from train import fit  # noqa: E402

FORGET = torch.tensor([1, 5, 7, 8, 20])
NAMES = [name for name, method in METHODS.items() if method.etd != "only" and not method.twin]


def networks() -> dict:
    """What each process computes, and one alone: state dicts and numbers by name. Batches of 4 leave shares of 2 and 2,
    3 and 2, and for some methods a last batch of 2 that is too small to share."""
    found, data = {}, replace(make_data(1, n=42, pad=1), part=ranks())
    plain = replace(data, pad=0)
    net = small_net(3, norm=False, dtype=torch.float64)
    for name in NAMES:
        more = {"corrupted": torch.tensor([1, 5, 7, 8, 20, 30])} if name.endswith("ideal") else {}
        out = METHODS[name].function(net, data, FORGET, tiny(gamma=0.3), gen(0), **more)
        found[name] = out.state_dict()
    for name in ("badt", "scrub"):  # whose teachers are asked once where nothing augments
        found[f"{name} known"] = METHODS[name].function(net, plain, FORGET, tiny(gamma=0.3), gen(0)).state_dict()
    logs = []
    config = tiny(unlearn_epochs=3, gamma=0.3, disbelieved=1.5, stop="repaired")
    for name, source in (("held out", data), ("known", plain)):
        log = lambda epoch, epochs, net, **record: logs.append(torch.tensor(list(record.values()), dtype=torch.float64))
        found[name] = rem_plus(net, source, FORGET, config, gen(0), log=log).state_dict()
    for name, source in (("all", data), ("all known", plain)):  # every process reads all examples
        found[name] = rem(net, replace(source, part=(0, 1)), FORGET, config, gen(0)).state_dict()
    expanded = train_etd(with_theta_o2(net, data, tiny()), data, tiny(), gen(1), fit)
    found["rem-on-etd"] = rem(expanded, data, FORGET, tiny(gamma=0.3), gen(0)).state_dict()
    found["logs"] = {str(i): values for i, values in enumerate(logs)}
    asked = torch.tensor([3, 3, 40, 0, 3])
    found["numbers"] = {"classes": predict(net, data, asked, size=2), "all": predict(net, data),
                        "accuracy": torch.tensor([accuracy(net, data), accuracy(net, data, FORGET[:1])])}
    norm, more = small_net(3), replace(make_data(2, n=256, classes=4), part=ranks())
    found["norm"] = rem(norm, more, torch.arange(9), tiny(batch=64, gamma=0.2, max_passes=3), gen(0)).state_dict()
    trained = small_net(4)
    fit(trained, more, None, tiny(epochs=1, batch=64), gen(0))
    predict(trained, more)
    found["evaluated"] = trained.state_dict()
    told = []
    found["repair"] = repair_quietly(norm, more, torch.arange(9), say=told.append, unlearn_epochs=2).state_dict()
    found["told"] = {"epochs": torch.tensor(sum("loss of step 3" in line for line in told))}
    listed = suspects(net, data, FORGET)
    found["suspects"] = {"index": listed.index, "score": listed.score, "features": features(net, data),
                         "some": features(net, data, asked.unique())}
    found["suspects, norm"] = {"score": suspects(trained, more, FORGET).score}  # and no process waits for another
    found["skipping"] = train_skipping(data).state_dict()
    return found


def train_skipping(data) -> torch.nn.Module:
    """Blocks that training skips half the time, by numbers of each process's own; and one that never runs."""
    net = small_net(5, norm=False, dtype=torch.float64)
    net.blocks = torch.nn.ModuleList(copy.deepcopy(net.conv2) for _ in range(4))
    net.idle = copy.deepcopy(net.conv2)

    def forward(x):
        x = net.conv1(x)
        for block in net.blocks:
            if torch.rand(()) < 0.5:
                x = x + block(x).tanh()
        return net.head(x.amax(dim=(2, 3)))

    net.forward = forward
    fit(net, data, None, tiny(epochs=3), gen(0))
    return net


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[dict, dict, dict]:
    """What one process and each of two found."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = start(folder, str(Path(__file__).resolve()), str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # step 2 may give up
        alone = networks()
    for code, _, errors in ended(processes):
        assert code == 0, errors
    return alone, *(torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2))


def test_two_processes_give_one_network(found):
    """G1, F6: the same bits in both, also where one process alone reaches a parameter, or none does."""
    _, first, second = found
    assert torch.equal(first["skipping"]["idle.weight"], small_net(5, norm=False, dtype=torch.float64).conv2.weight)
    for name in first:
        for key, value in first[name].items():
            # each batch moves the process's own running statistics; an evaluation begins with the first one's
            if name == "evaluated" or "running" not in key and "tracked" not in key:
                assert torch.equal(value, second[name][key]), (name, key)


@pytest.mark.parametrize("name", [*NAMES, "badt known", "scrub known", "held out", "known", "all", "all known",
                                  "rem-on-etd", "logs", "numbers", "told", "suspects"])
def test_two_processes_give_the_numbers_of_one(found, name):
    """G1: without BatchNorm every method, REM's decisions, logs and predictions are one process's, within rounding."""
    alone, first, _ = found
    assert alone[name].keys() == first[name].keys()
    for key, value in alone[name].items():
        # sums in another order, in float64 but for the logs' totals
        assert_close(first[name][key].double(), value.double(), 1e-6 if name == "logs" else 1e-9)


@pytest.mark.parametrize("name", ["norm", "repair"])
def test_local_batch_statistics_cost_little(found, name):
    """G2: with BatchNorm, of which each process normalises its share alone, the change of the weights is one process's
    within a twentieth of its length (shares of 32; found: 0.001)."""
    alone, first, _ = found
    start = small_net(3).state_dict()
    keys = [key for key in alone[name] if "running" not in key and "tracked" not in key]
    ours, theirs = (torch.cat([(found[key] - start[key]).flatten() for key in keys])
                    for found in (first[name], alone[name]))
    assert theirs.norm() > 0
    assert 0 < (ours - theirs).norm() / theirs.norm() < 1 / 20


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    torch.save(networks(), Path(sys.argv[1]) / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()
