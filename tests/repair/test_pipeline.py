"""`repair` from end to end (repair/pipeline.py): one function, which the command calls, too; how often it passes."""

import copy
import json
import warnings
from unittest.mock import Mock

import pytest
import torch

from colours import call, colours, report_of  # noqa: F401
from contract import blind, deterministic, inputs_stay
from engine.checks import NonFiniteLoss
from engine.features import features
from experiment.data import Data
from experiment.settings import Config
from helpers import assert_same_state, make_data, small_net
from metrics import predict
from repair import checkpoints, pipeline, repair
from repair.finish import logits
from repair.inputs import load, open_folder
from repair.looks import probe
from repair.network import unlearn
from repair.networks_by_name import build_network
from repair.pipeline import Seen, look, looks_of, margin, see
from repair.suspects import rank
from repair.verdict import HARMED, judge, undoubted

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
    monkeypatch.setattr(pipeline, "unlearn", quietly(pipeline.unlearn))
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
    folder = open_folder(colours["--data"], [colours["--bad"]], colours["--class-map"])
    data, _ = load(folder, reading)
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


# --- What the parts are given -----------------------------------------------------------------------------------------

def everything(model, data, forget, config, generator):
    """A method in form: ranks suspects by every score, and returns the network as it is."""
    looks = looks_of(see(model, data), data.labels, forget, 0)
    found = rank(logits(model, data), data.labels, forget, looks.similar, looks.crossed)
    assert len(found.index) == len(data) - len(forget) and found.score.isfinite().all()
    return copy.deepcopy(model)


@pytest.mark.parametrize("keeps", [blind, deterministic, inputs_stay])
def test_nothing_hidden_is_read_and_nothing_changes(keeps):
    """S12: no clean label, test set or D_c is read; network, data, D_f, modes and random states stay."""
    keeps(everything)


def test_one_pass_gives_predictions_and_margins():
    """Q2: they are those of all logits, without these being kept; logits that are not finite are told."""
    data, net = make_data(0, n=24, classes=4), small_net(0)
    classes, margins, nothing = look(net, data, False)
    assert torch.equal(classes, predict(net, data)) and nothing is None
    assert torch.equal(margins, margin(logits(net, data), data.labels))
    z = logits(net, data).tolist()
    for i, y in enumerate(data.labels.tolist()):  # max_{k != y} z_k - z_y
        assert float(margins[i]) == pytest.approx(max(z[i][k] for k in range(4) if k != y) - z[i][y], abs=1e-12)
    net.head.weight.data.fill_(torch.inf)
    with pytest.raises(NonFiniteLoss, match="logits are not finite"):
        look(net, data, False)


@pytest.mark.parametrize("missing, similar", [(0, True), (1, False)])
def test_features_that_would_fill_the_memory_are_left_out(monkeypatch, missing, similar):
    """S15: five copies of them, 20 rows of the last layer's three inputs in float64, have to fit into what is free."""
    data, forget = make_data(0, n=20), torch.tensor([2, 5])
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3), torch.nn.Linear(3, 4))
    monkeypatch.setattr(pipeline, "room_for_images", lambda device: 5 * 20 * 3 * 8 - missing)
    found = looks_of(see(net, data), data.labels, forget, 0)
    assert [column is not None for column in found[:3]] == [similar, similar, True]
    assert not found.alike.any() and found.missing == ""


def test_the_function_refuses_and_warns():
    """Q5, Q4: `repair` raises where nothing is learnt, unless it is forced; it warns with the line of its verdict,
    but not of REPAIRED, nor where it is to be quiet; without epochs the network is as it was."""
    data, net, forget = make_data(0, n=60, classes=4), small_net(0), torch.arange(6)
    data.labels[forget] = (predict(net, data)[forget] + 1) % 4
    with pytest.raises(ValueError, match=r"0.0 % of the 6 known bad images .*to go on all the same: force .--force.$"):
        repair(net, data, forget, say=pytest.fail)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        repair(net, data, forget, force=True, unlearn_epochs=0, true_labels=torch.full_like(forget, -1))
    data.labels[forget] = predict(net, data)[forget]
    with pytest.warns(UserWarning, match="^NOT REPAIRED: 100.0 % of the listed .*a higher unlearn_lr "):
        found = repair(net, data, forget, unlearn_epochs=0)
    assert_same_state(found.network, unlearn(net, data, forget, unlearn_epochs=0)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert repair(net, data, forget, unlearn_epochs=0, quiet=True).verdict == found.verdict
    heldout = make_data(1, n=40, classes=4)
    heldout.labels[:] = predict(net, heldout)
    with pytest.warns(UserWarning, match="accuracy on 40 held-out images"):
        repair(net, data, forget, heldout=heldout, unlearn_epochs=0)


@pytest.mark.parametrize("held_out", [False, True])
def test_the_function_compares_with_the_untouched_network(monkeypatch, held_out):
    """Q2, Q4: what counts is what the untouched network gives no reason to doubt, by looks of the repair's seed, and it
    is what was right before."""
    data, net, other, forget = make_data(0, n=240, classes=4), small_net(0), small_net(1), torch.arange(6)
    data.labels[:] = predict(net, data)
    held = make_data(1, n=40, classes=4) if held_out else None
    if held_out:
        held.labels[:] = predict(net, held)
    config = Config(seed=5)
    monkeypatch.setattr(pipeline, "unlearn", lambda *args, **more: (other, config))  # a network known to be worse
    alike, h = Mock(return_value=torch.arange(240) % 3 == 0), features(net, data)
    monkeypatch.setattr(pipeline, "looking_alike", alike)
    counted = undoubted(data.labels, forget, look(net, data, False)[1], probe(h, forget), alike.return_value)
    heldout = held and (held.labels, predict(net, held), predict(other, held))
    wanted = judge(data.labels, predict(net, data), predict(other, data), forget, counted, heldout)
    with pytest.warns(UserWarning) as told:
        repair(net, data, forget, heldout=held, finish=False, seed=5)
    assert all(map(torch.equal, alike.call_args.args, (h, data.labels, forget))) and alike.call_args.args[3] == 5
    assert [str(one.message) for one in told] == [wanted.line()] and HARMED in wanted.words


@pytest.mark.parametrize("truths", [None, torch.ones(12, dtype=torch.int64)])
def test_the_function_knows_what_was_taught(monkeypatch, truths):
    """Q4, Y5: that the listed images now go to one class is said, but not where it is the true one, as was given."""
    data, net, other, forget = make_data(0, n=240, classes=4), small_net(0), small_net(0), torch.arange(12)
    data.labels[:] = torch.arange(240) % 4
    data.labels[forget] = 0
    after = data.labels.index_fill(0, forget, 1)
    after[12:120] = (after[12:120] + 1) % 4  # and much else is wrong, so that a warning comes
    monkeypatch.setattr(pipeline, "unlearn", lambda *args, **more: (other, Config()))
    monkeypatch.setattr(pipeline, "logits", lambda model, data: torch.eye(4).double()[after])
    seen = Seen(data.labels, torch.zeros(240), None)
    with pytest.warns(UserWarning, match="^HARMED") as told:
        repair(net, data, forget, true_labels=truths, before=seen, finish=False)
    assert ("12 of the 12 listed images labelled 0 are now called 1" in str(told[0].message)) == (truths is None)
