"""What benchmarks/cut.py counts of a ranking and its cut.

S26: rows are naive counts, confident learning is by its definition, and the tables are means over seeds.
"""

import sys

import pytest
import torch

from benchmarks import cut
from helpers import gen, rows_of
from repair.ranking import rank
from repair.suspects import crossed, probe

CELL = {"images": "poison", "network": "resnet9", "share": 0.02, "discovery": 0.5, "seed": 0}


def said(seed: int = 0) -> dict[str, torch.Tensor]:
    """What networks say of 200 images of four classes, the first 30 of them bad, 10 of those in D_f."""
    g = gen(seed)
    labels = torch.randint(0, 4, (200,), generator=g)
    z = torch.randn(200, 4, generator=g)
    z[torch.arange(30, 200), labels[30:]] += 5
    z[torch.arange(30), labels[:30]] -= 3
    return {"before": z, "after": z, "features": torch.randn(200, 5, generator=g), "labels": labels,
            "forget": torch.arange(10), "corrupted": torch.arange(30)}


@pytest.mark.parametrize("seed", range(3))
def test_a_row_counts(seed):
    """S26: how many are bad, marked, and both; recall of each ranking when as many are looked at as are to be found."""
    given = said(seed)
    row, h = cut.row_of(CELL, given), given["features"].double()
    z, labels = given["after"].double(), given["labels"]
    found = rank(z, labels, given["forget"], probe(h, given["forget"]), crossed(h, given["forget"]))
    order = found.index.tolist()
    assert (row["n"], row["known"], row["undiscovered"], row["likely"]) == (200, 10, 20, found.likely)
    assert row["right"] == sum(i < 30 for i in order[: found.likely])
    places = list(range(len(order)))
    by = {"overall": places, "by score": found.by_score.tolist(), "by similar": found.by_similar.tolist()}
    by["better rank"] = [min(pair) for pair in zip(by["by score"], by["by similar"], strict=True)]
    for name, values in by.items():
        first = sorted(places, key=lambda k, values=values: (values[k], k))[:20]
        assert row["recall"][name] == pytest.approx(sum(order[k] < 30 for k in first) / 20)
    p = z.softmax(1)
    doubt = [1 - float(p[i, labels[i]]) for i in range(200)]
    assert row["others"]["sum of 1 - p"] == round(sum(doubt[10:]))
    assert row["others"]["sum of 1 - p over its mean in D_f"] == round(sum(doubt[10:]) / (sum(doubt[:10]) / 10))
    assert row["others"]["other answers"] == sum(int(z[i].argmax() != labels[i]) for i in range(10, 200))
    assert row["others"]["labels alone"] == rank(z, labels, given["forget"]).likely


def test_confident_learning_is_by_its_definition():
    """S26: thresholds are means of the own class's probability; of the classes above theirs the likeliest counts; a
    class without images has none."""
    given = said()
    z, labels = given["after"].double(), given["labels"].clone()
    labels[labels == 3] = 2
    p, flagged = z.softmax(1).tolist(), cut.confident(z, labels)
    least = {k: sum(p[i][k] for i in range(200) if labels[i] == k) / labels.tolist().count(k)
             for k in range(3)}
    for i in range(200):
        over = [k for k in least if p[i][k] >= least[k]]
        assert bool(flagged[i]) == (bool(over) and max(over, key=lambda k: p[i][k]) != int(labels[i]))
    assert 0 < int(flagged.sum()) < 60


def test_rows_and_tables(tmp_path, monkeypatch, capsys):
    """S26: a row for each cell, once; kept words are read and not made again; two tables of means over seeds."""
    cells = [{**CELL, "seed": seed} for seed in (0, 1)]
    monkeypatch.setattr(cut, "cells", lambda seeds: cells)  # few of them
    monkeypatch.setattr(cut, "play", lambda cell, keep: said(cell["seed"]))  # in place of training
    argv = ["cut.py", "--keep", str(tmp_path / "keep"), "--out", str(tmp_path / "rows.jsonl")]
    monkeypatch.setattr(sys, "argv", argv)
    assert cut.main() == 0
    monkeypatch.setattr(cut, "play", None)
    assert cut.main() == 0
    rows = rows_of(tmp_path / "rows.jsonl")
    assert [row["seed"] for row in rows] == [0, 1]
    (tmp_path / "rows.jsonl").unlink()
    assert cut.main() == 0
    assert rows_of(tmp_path / "rows.jsonl") == rows
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["cut.py", "--table", str(tmp_path / "rows.jsonl")])
    assert cut.main() == 0
    first, second = capsys.readouterr().out.split("\n\n")
    cells = [cell.strip() for cell in first.splitlines()[-1].strip("|").split("|")]
    precision = sum(row["right"] / row["likely"] for row in rows) / 2
    assert cells[:7] == ["poison", "2 %", "0.5", "2", "20", f"{rows[0]['likely']} / {rows[1]['likely']}",
                         f"{precision:.2f}"]
    assert len(second.splitlines()) == 3
