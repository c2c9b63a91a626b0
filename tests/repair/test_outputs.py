"""The list of suspects that a user gets, fills in and gives back (outputs.py, the column `bad` of lists.py).

S15: it says what the network believes and comes back whatever the names hold; answers are never lost.
"""

import csv
import math
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from colours import call as run_repair, report_of
from engine.features import features
from helpers import make_data, small_net
from models import build
from repair import networks_by_name, outputs
from repair.finish import logits
from repair.inputs import Folder, load, open_folder
from repair.looks import crossed, probe
from repair.suspects import rank

NAMES = ["plain.png", 'a "quoted", name.png', "Ünïcode 猫 – ñ.png", "comma, semi; tab.png", "line\nend.png",
         "cr\rlf\r\n.png", " blank.png", "=1+1.png", "back\\slash.png", os.fsdecode(b"no UTF-8 \xe9.png")]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict:
    """train/{"ant, red", "bëe"}/* under awkward names, an untrained network, one known bad image; repaired once."""
    tmp_path, paths = tmp_path_factory.mktemp("world"), []
    for k, label in enumerate(("ant, red", "bëe")):
        for i, name in enumerate(NAMES):
            paths.append(tmp_path / "train" / label / name)
            paths[-1].parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 12), (20 * i, 100 * k, 50)).save(paths[-1])
    (tmp_path / "bad.txt").write_text("train/bëe/plain.png\n", encoding="utf-8")
    torch.save(build("resnet9", 0.05, classes=2, image_size=12, seed=0).state_dict(), tmp_path / "model.pt")
    found = {"--data": tmp_path, "--model": "resnet9:0.05", "--image-size": 12, "--checkpoint": tmp_path / "model.pt",
             "--bad": tmp_path / "bad.txt", "--out": tmp_path / "one" / "repaired.pt"}
    assert call(found) == 0
    return found


def call(world: dict, *more) -> int:
    """run.py repair with few epochs, whatever the network knows and the verdict on it is (3)."""
    code = run_repair(world, "--epochs", 1, "--force", *more)
    return 0 if code == 3 else code


def rows_of(path: Path) -> list[dict]:
    """A CSV file's rows as Python's csv module reads them."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def answer(path: Path, out: Path, bad: dict[str, str]) -> Path:
    """What a user does: adds a column `bad`, filled in where the filename is named."""
    rows = rows_of(path)
    with open(out, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, [*rows[0], "bad"])
        table.writeheader()
        table.writerows({**row, "bad": bad.get(row["filename"], "")} for row in rows)
    return out


def test_the_list_says_what_the_network_believes(world):
    """S15: each image but D_f once, in overall order; every column is what it is called."""
    rows = rows_of(world["--out"].parent / "suspects.csv")
    assert list(rows[0]) == list(outputs.COLUMNS)
    assert [row["rank"] for row in rows] == [str(i) for i in range(1, 20)]
    folder = open_folder(world["--data"], [world["--bad"]])
    net, reading = networks_by_name.build_network("resnet9:0.05", 2, 12)
    net.load_state_dict(torch.load(world["--out"], weights_only=True))
    train, _ = load(folder, reading)
    z, labels = logits(net, train), train.labels
    net.load_state_dict(torch.load(world["--checkpoint"], weights_only=True))
    h = features(net, train)
    similar = probe(h, folder.forget)
    ranking = rank(z, labels, folder.forget, similar, crossed(h, folder.forget))
    assert [int(row["index"]) for row in rows] == ranking.index.tolist()
    assert [row["likely"] for row in rows] == ["true"] * ranking.likely + ["false"] * (19 - ranking.likely)
    for row in rows:
        i = int(row["index"])
        name = folder.paths[i].relative_to(folder.root).as_posix()
        assert name.encode("utf-8", "backslashreplace").decode() == row["filename"]
        named = folder.classes[labels[i]], folder.classes[z[i].argmax()]
        assert (row["given_label"], row["predicted_label"]) == named
        assert float(row["score"]) == pytest.approx(float(F.cross_entropy(z[i], labels[i])), rel=1e-4, abs=1e-5)
        assert float(row["label_score"]) == pytest.approx(math.exp(-float(row["score"])), rel=1e-4)
        assert 0 <= float(row["label_score"]) <= 1
        assert float(row["similar"]) == pytest.approx(float(similar[i]), rel=1e-3, abs=1e-5)
    for column in ("score", "similar"):
        values = [float(row[column]) for row in sorted(rows, key=lambda row: int(row[f"rank_by_{column}"]))]
        assert values == sorted(values, reverse=True)
    assert b"\r\n" in (world["--out"].parent / "suspects.csv").read_bytes()


def test_the_list_comes_back(world):
    """S15: whatever the names hold, each row that the user calls bad is that image, which joins the first list."""
    listed = world["--out"].parent / "suspects.csv"
    folder = open_folder(world["--data"], [world["--bad"]])
    for row in rows_of(listed):
        given = {"train/bëe/=1+1.png": "false", row["filename"]: "TRUE"}
        file = answer(listed, world["--data"] / "answers.csv", given)
        forget = open_folder(world["--data"], [world["--bad"], file]).forget
        assert set(forget.tolist()) == {int(folder.forget[0]), int(row["index"])}, row["filename"]


def test_the_second_round_starts_from_the_original(world, capsys):
    """S15: --bad takes the first list and the answers; nothing confirmed gives the first round's bits; a list that
    holds answers is not written over."""
    listed, first = world["--out"].parent / "suspects.csv", world["--out"].read_bytes()
    nothing = answer(listed, world["--data"] / "nothing.csv", {})
    second = {**world, "--out": world["--data"] / "two" / "repaired.pt"}
    assert call({**second, "--bad": [world["--bad"], nothing]}) == 0
    likely = [row["likely"] for row in rows_of(listed)].count("true")
    told = capsys.readouterr().out
    assert f"{second['--out'].parent / 'suspects.csv'} ranks the 19 images" in told
    assert f"about {likely} of them are likely bad" in told
    assert second["--out"].read_bytes() == first
    some = answer(listed, world["--data"] / "some.csv", {"train/ant, red/plain.png": "true"})
    assert call({**second, "--bad": [world["--bad"], some]}) == 0
    report = report_of(second)
    assert str(some) in report["sha256"] and second["--out"].read_bytes() != first
    assert {"train/ant, red/plain.png", "train/bëe/plain.png"}.isdisjoint(
        row["filename"] for row in rows_of(second["--out"].parent / "suspects.csv"))
    filled = answer(listed, second["--out"].parent / "suspects.csv", {"train/ant, red/plain.png": "true"})
    before = filled.read_bytes()
    assert call(second) == 2 and "has a column `bad`, which would be lost" in capsys.readouterr().err
    assert filled.read_bytes() == before


def test_a_list_where_some_things_are_missing(tmp_path):
    """S15: where nothing says what looks like D_f, both of its columns are empty; as many are marked as are likely. A
    class's name that a spreadsheet would compute stands behind an apostrophe, others as they are."""
    data, net = make_data(0, channels=3, classes=2), small_net(1, channels=3, classes=2)
    paths = [tmp_path / "train" / "a" / f"{i}.png" for i in range(12)]
    folder = Folder(tmp_path, ['=HYPERLINK("x")', "a=b"], paths, data.labels, torch.tensor([2, 5]), None, None, "", {})
    ranking = rank(logits(net, data), data.labels, folder.forget)._replace(likely=3)
    outputs.write_suspects(tmp_path / "suspects.csv", ranking, data.labels, folder)
    rows = rows_of(tmp_path / "suspects.csv")
    assert [row["likely"] for row in rows] == ["true"] * 3 + ["false"] * 7
    assert len(rows) == 10 and all(row["filename"] == f"train/a/{row['index']}.png" for row in rows)
    assert {row["similar"] for row in rows} == {row["rank_by_similar"] for row in rows} == {""}
    assert sorted(int(row["rank_by_score"]) for row in rows) == list(range(1, 11))
    labels = {row[key] for row in rows for key in ("given_label", "predicted_label")}
    assert labels == {"'=HYPERLINK(\"x\")", "a=b"}
