"""examples/repair.py, a repair from Python, on few small images."""

import copy
import re

import pytest
import torch

import claims
from examples import repair as example
from helpers import assert_same_state

QUICK = dict(n=100, width=0.25, epochs=6, batch=50, lr=0.05)  # of the 1,000 images of claims.small_world


@pytest.mark.filterwarnings("ignore:(NOT REPAIRED|HARMED|Acc)")  # which depends on rounding
def test_the_example_repairs(monkeypatch, capsys):
    """P1: it trains, repairs the network from half of the bad images, prints both networks' scores; the network that it
    repairs stays as it was."""
    monkeypatch.setattr(example, "load", lambda name: claims.small_world())
    example_repair, given = example.repair, []

    def repaired(model, data, forget, **more):
        before = copy.deepcopy(model)
        given.append((model, before, forget, example_repair(model, data, forget, **more)))
        return given[0][-1]

    monkeypatch.setattr(example, "repair", repaired)
    assert example.main(**QUICK) == 0
    ((model, before, forget, found),) = given
    assert len(forget) == 50 and not all(map(torch.equal, found.network.parameters(), model.parameters()))
    assert_same_state(model, before)
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split()[0] for line in lines] == ["before", "after"]
    scores = [[float(number) for number in re.findall(r"[\d.]+(?= %)", line)] for line in lines]
    assert all(0 <= score <= 100 for line in scores for score in line) and scores[0] != scores[1]
