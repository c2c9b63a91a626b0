"""`repair` from end to end (repair/pipeline.py): one function, which the command calls, too; how often it passes."""

import json
from unittest.mock import Mock

import pytest
import torch

from colours import call, colours, report_of  # noqa: F401
from experiment.data import Data
from helpers import assert_same_state, make_data, small_net
from metrics import predict
from repair import checkpoints, pipeline, repair
from repair.inputs import open_folder
from repair.networks_by_name import build_network

pytestmark = pytest.mark.filterwarnings("ignore:Acc", "ignore:NOT REPAIRED", "ignore:HARMED")
FORGET = torch.arange(6)


class Counted(Data):
    """Data that counts the passes over all of its images."""

    def batches(self, index=None, *args, **more):
        if index is None or len(index) >= len(self):
            PASSES.append(1)
        return super().batches(index, *args, **more)


PASSES = []


def learnt():
    """A network, and images whose labels it gives."""
    data, net = make_data(0, n=60, classes=4), small_net(0)
    data.labels[:] = predict(net, data)
    return net, Counted(**vars(data))


@pytest.mark.parametrize("finish", [True, False])
@pytest.mark.parametrize("given", [True, False])
def test_two_passes_beside_rem_and_the_finish(monkeypatch, finish, given):
    """One by the network before, which the caller may have made, and one by the network after."""
    net, data = learnt()
    before = pipeline.see(net, data) if given else None
    PASSES.clear()
    monkeypatch.setattr(pipeline, "repaired_with", quietly(pipeline.repaired_with))
    monkeypatch.setattr(pipeline, "finish_repair", quietly(pipeline.finish_repair))
    repair(net, data, FORGET, finish=finish, before=before, unlearn_epochs=1)
    assert len(PASSES) == (1 if given else 2)


def quietly(function):
    """A function whose passes do not count."""
    def run(*args, **more):
        count = len(PASSES)
        found = function(*args, **more)
        del PASSES[count:]
        return found

    return run


@pytest.mark.parametrize("more", [(), ("--no-finish",), ("--seed", 3)])
def test_the_command_and_the_function_give_the_same(colours, more):  # noqa: F811
    """The same network bit for bit, verdict, finish and suspects, on the same images, list and settings."""
    assert call(colours, "--epochs", 2, *more) in (0, 3)
    net, reading = build_network(colours["--model"], 12, 32)
    stored = checkpoints.read(colours["--checkpoint"])
    checkpoints.load_into(net, stored)
    folder = open_folder(colours["--data"], colours["--bad"], class_map=colours["--class-map"])
    data, *_ = folder.load(reading)
    settings = {"seed": 3} if "--seed" in more else {}
    found = repair(net, data, folder.forget, force=True, finish="--no-finish" not in more, unlearn_epochs=2, **settings)
    written = checkpoints.read(colours["--out"])
    assert all(torch.equal(t, found.network.state_dict()[name]) for name, t in written.items())
    report = report_of(colours)
    assert json.loads(json.dumps(found.verdict.report())) == report["verdict"]
    assert report["finish"] == (found.finished and found.finished.report())
    assert report["likely_bad"] == found.ranking.likely
    assert (report["finish"] is None) == ("--no-finish" in more)


def test_networks_are_saved_as_they_come():
    """REM+'s first, then the finished one, which is what comes back."""
    net, data = learnt()
    saved = []
    found = repair(net, data, FORGET, unlearn_epochs=1, save=saved.append)
    assert len(saved) == 2 and saved[1] is found.network
    alone = repair(net, data, FORGET, unlearn_epochs=1, finish=False)
    assert_same_state(saved[0], alone.network)


def test_features_that_fail_cost_no_repair(monkeypatch):
    """A pass without them follows; the record says why there is no ranking, and there is a verdict all the same."""
    net, data = learnt()
    plain = pipeline.see(net, data)
    monkeypatch.setattr(pipeline, "in_room", Mock(side_effect=MemoryError("no room")))
    seen = pipeline.see(net, data)
    assert seen.features is None and seen.missing == "MemoryError: no room"
    assert torch.equal(seen.called, plain.called) and torch.equal(seen.margins, plain.margins)
    found = repair(net, data, FORGET, unlearn_epochs=1, before=seen)
    assert found.ranking is None and found.unranked == seen.missing and found.verdict.words
