"""suspects.py, what `repair` writes of it, and `run.py suspects`: naive twins, the list and back, rounds."""

import copy
import csv
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image
from torch import nn

import run
from contract import blind, global_random_states_stay, inputs_stay
from experiment.data import Data
from engine.checks import NonFiniteLoss
from engine.streams import forked_rng
from etd import mask_table
from repair import inputs, networks, sheets
from helpers import assert_close, assert_same_state, gen, make_data, make_dataset, seeds, small_net, tiny
from models import build
from rem import rem
from engine.streams import stream
from study import discovery
from study.rows import load_rows
from engine.features import features
from repair.suspects import given_loss, logits, margin, nearest, probe, ranked, suspects, tracin
from tasks import discover, make_task


def everything(model, data, forget, config, generator):
    """A method in form: looks for suspects by every score, and returns the network as it is."""
    suspects(model, data, forget)
    z = logits(model, data)[0]
    discovery.every_score(model, model, z, data, forget)
    return copy.deepcopy(model)


# --- The ranking ------------------------------------------------------------------------------------------------------


@given(seeds, st.integers(2, 20), st.data())
def test_the_score_is_the_loss_of_the_given_label(seed, n, draw):
    """S10, S11: score = -log p(given label) of the network alone, by loops over images; predicted is its class."""
    data, net = make_data(seed, n=n, trigger=True, pad=1, flip=True), small_net(seed)
    forget = torch.tensor(draw.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n - 1, unique=True)))
    found, twin = suspects(net, data, forget), {}
    for i in range(n):
        x = (data.images[i : i + 1] / 255 - 0.5) / 0.25
        z = net.eval()(x).detach().double().numpy()[0]
        twin[i] = np.log(np.exp(z - z.max()).sum()) + z.max() - z[data.labels[i]], int(z.argmax())
    assert sorted(found.index.tolist()) == sorted(set(range(n)) - set(forget.tolist()))
    for i, score, predicted in zip(*(part.tolist() for part in found), strict=True):
        assert score == pytest.approx(twin[i][0], abs=1e-4) and predicted == twin[i][1] and score >= 0
    assert found.score.tolist() == sorted(found.score.tolist(), reverse=True)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.data())
def test_ranks_leave_out_what_is_known_and_keep_ties_in_order(values, draw):
    """S11: D_f is never named, every other image once; falling scores, ties in the order of the data."""
    known = draw.draw(st.sets(st.integers(0, len(values) - 1), max_size=len(values) - 1))
    index, score = ranked(torch.tensor(values).double(), torch.tensor(sorted(known), dtype=torch.int64))
    twin = sorted((i for i in range(len(values)) if i not in known), key=lambda i: (-values[i], i))
    assert index.tolist() == twin and score.tolist() == [values[i] for i in twin]


@pytest.mark.parametrize("keeps", [blind, inputs_stay, global_random_states_stay])
def test_nothing_hidden_is_read_and_nothing_changes(keeps):
    """S12: no clean label, test set or D_c is read; network, data, D_f, modes and random states stay."""
    keeps(everything)


def test_what_cannot_be_ranked_is_refused():
    """S12: D_f empty, all of D_tr or out of range -> ValueError; logits that are not finite -> NonFiniteLoss."""
    data, net = make_data(0), small_net(0)
    for forget, words in (([], "empty"), (range(12), "all 12"), ([12], "out of range"), ([1, 1], "twice")):
        with pytest.raises(ValueError, match=words):
            suspects(net, data, torch.tensor(list(forget), dtype=torch.int64))
    net.head.weight.data[0, 0] = math.nan
    with pytest.raises(NonFiniteLoss, match="not finite"):
        suspects(net, data, torch.tensor([0]))


# --- The other scores -------------------------------------------------------------------------------------------------


def drawn(seed: int, n: int = 9, classes: int = 4, d: int = 5):
    """Logits, labels, features and D_f."""
    g = gen(seed)
    z, h = torch.randn(n, classes, generator=g).double(), torch.randn(n, d, generator=g).double()
    return 3 * z, torch.randint(0, classes, (n,), generator=g), h, torch.randperm(n, generator=g)[: 1 + seed % (n - 1)]


@given(seeds)
def test_scores_equal_naive_twins(seed):
    """S13: margin, nearest and TracIn, by loops as their formulas are printed; CE ranks as 1 - self-confidence does."""
    z, labels, h, forget = drawn(seed)
    p = np.exp(z.numpy()) / np.exp(z.numpy()).sum(1, keepdims=True)
    error = p - np.eye(4)[labels.numpy()]
    unit = h.numpy() / np.linalg.norm(h.numpy(), axis=1, keepdims=True)
    twins = {"margin": [], "nearest": [], "tracin": []}
    for i, y in enumerate(labels.tolist()):
        twins["margin"].append(max(float(z[i, k]) for k in range(4) if k != y) - float(z[i, y]))
        near = sorted((float(unit[i] @ unit[j]) for j in forget.tolist()), reverse=True)[:5]
        twins["nearest"].append(sum(near) / len(near))
        twins["tracin"].append(sum(float(h[i] @ h[j]) * float(error[i] @ error[j]) for j in forget.tolist()))
    assert_close(margin(z, labels), torch.tensor(twins["margin"], dtype=torch.float64))
    assert_close(nearest(h, forget), torch.tensor(twins["nearest"], dtype=torch.float64))
    assert_close(tracin(z, labels, h, forget), torch.tensor(twins["tracin"], dtype=torch.float64))
    confidence = torch.from_numpy(p[np.arange(9), labels.numpy()])
    assert torch.equal(given_loss(z, labels).argsort(), (1 - confidence).argsort())
    assert_close((-given_loss(z, labels)).exp(), confidence)


def test_self_confidence_is_that_of_cleanlab():
    """S13: exp(-CE) is cleanlab's self-confidence, where the package is installed."""
    rank = pytest.importorskip("cleanlab.rank")
    z, labels, *_ = drawn(3)
    theirs = rank.get_self_confidence_for_each_label(labels.numpy(), z.softmax(1).numpy())
    assert_close((-given_loss(z, labels)).exp(), torch.from_numpy(theirs))


@given(seeds)
def test_the_probe_is_at_its_minimum(seed):
    """S13: no step away from the probe's weights lowers its loss, computed in numpy; scale of features is no matter."""
    _, _, h, forget = drawn(seed, n=20)
    found = probe(h, forget)
    x = (h.numpy() - h.numpy().mean(0)) / h.numpy().std(0)
    known = np.isin(np.arange(20), forget.numpy())
    f = np.log(found.numpy()) - np.log1p(-found.numpy())
    w = np.linalg.lstsq(np.c_[x, np.ones(20)], f, rcond=None)[0]

    def loss(w):
        f = np.c_[x, np.ones(20)] @ w
        return (np.logaddexp(0, -f[known]).mean() + np.logaddexp(0, f[~known]).mean() + w[:-1] @ w[:-1] / 20) / 2

    for k in range(6):
        for step in (-1e-2, 1e-2):
            assert loss(w) <= loss(w + step * np.eye(6)[k]) + 1e-9
    assert_close(probe(7 * h + 3, forget), found, 1e-3)
    assert_close(probe(torch.cat([h, torch.ones(20, 1)], 1), forget), found, 1e-3)  # a constant says nothing


HEADS = {
    "resnet9": (lambda: build("resnet9", 0.1, channels=1, classes=4, image_size=8), lambda net, x: net.features(x)),
    "own": (lambda: small_net(0), None),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1),
                                          nn.Flatten()), lambda net, x: net[1](net[0](x)).mean(dim=(2, 3))),
    "tokens": (lambda: nn.Sequential(nn.Flatten(2), nn.Linear(64, 5), nn.GELU(), nn.Linear(5, 4), nn.Flatten()),
               lambda net, x: net[2](net[1](net[0](x))).mean(dim=1)),
}


@pytest.mark.parametrize("name", HEADS)
def test_features_are_what_the_last_layer_is_given(name):
    """S13: the penultimate layer, averaged over places and tokens; no hook stays, augmentation is off."""
    make_net, twin = HEADS[name]
    with forked_rng(gen(0), torch.device("cpu")):
        net = make_net()
    data = make_data(0, pad=2, flip=True)
    found = features(net, data)
    x = (data.images / 255 - 0.5) / 0.25
    with torch.no_grad():
        if twin is None:  # small_net's head has no bias
            assert_close(found @ net.head.weight.T.double(), net.eval()(x).double(), 1e-5)
        else:
            assert_close(found, twin(net.eval(), x).double(), 1e-5)
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_features_of_a_dense_head():
    """S13: where the last layer is given a row per place, an image's features are the mean of its rows."""
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 3, 1), nn.Linear(3, 4)

        def forward(self, x):
            rows = self.conv(x).flatten(2).transpose(1, 2).flatten(0, 1)  # (B H W, 3)
            return self.head(rows).view(len(x), -1, 4).amax(dim=1)

    data, net = make_data(3, n=5), Dense()
    x = next(data.batches())[1]
    assert_close(features(net, data), net.conv(x).detach().double().mean(dim=(2, 3)), 1e-6)


def test_features_of_the_layer_before():
    """S13: layer -2 is what the last layer but one is given; some images are some rows; the first layer where there are
    fewer."""
    net, data, index = small_net(0), make_data(0), torch.tensor([7, 2, 5])
    x = (data.images / 255 - 0.5) / 0.25
    with torch.no_grad():
        first = net.eval().act(net.norm1(net.conv1(x)))
    assert_close(features(net, data, layer=-2), first.double().mean(dim=(2, 3)), 1e-5)
    assert_close(features(net, data, index, layer=-2), features(net, data, layer=-2)[index])
    assert_close(features(net, data, layer=-9), x.double().mean(dim=(2, 3)), 1e-5)


# --- AUROC and recall -------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=15), st.integers(0, 16))
def test_auroc_and_recall_equal_naive_twins(pairs, looked):
    """S14: AUROC over all pairs, half for ties; recall among the first K; neither is defined without both kinds."""
    score, wanted = torch.tensor([s for s, _ in pairs]).double(), torch.tensor([w for _, w in pairs])
    yes, no = [s for s, w in pairs if w], [s for s, w in pairs if not w]
    if yes and no:
        twin = sum((a > b) + (a == b) / 2 for a in yes for b in no) / (len(yes) * len(no))
        assert discovery.auroc(score, wanted) == pytest.approx(twin, abs=1e-12)
    else:
        with pytest.raises(ValueError, match="undefined"):
            discovery.auroc(score, wanted)
    if yes:
        order = sorted(range(len(pairs)), key=lambda i: -pairs[i][0])
        ranks = [place for place, i in enumerate(order, 1) if pairs[i][1]]
        assert discovery.recall(ranks, looked) == sum(pairs[i][1] for i in order[:looked]) / len(yes)


def test_rows_of_scores_count_the_undiscovered_alone():
    """S14: ranks among the images outside D_f; recall at as many as are undiscovered; none at discovery 1."""
    task = make_task("random", make_dataset(0, n=24), 6, 0)
    forget = discover(task, 0.5, 0)
    score = torch.zeros(24).index_fill_(0, task.corrupted, 1.0).double()
    row, = discovery.rows_of_scores({"perfect": score}, task, forget)
    assert (row["auroc"], row["recall"], row["ranks"], row["images"]) == (1.0, 1.0, [1, 2, 3], 21)
    row, = discovery.rows_of_scores({"worst": -score}, task, forget)
    assert (row["auroc"], row["recall"], row["ranks"]) == (0.0, 0.0, [19, 20, 21])
    assert discovery.rows_of_scores({"perfect": score}, task, task.corrupted) == []


def test_every_score_stands_under_its_name():
    """S13, S17: before and after, given label and channel, are not taken for each other."""
    data, forget = make_data(3, n=20), torch.tensor([1, 4, 7])
    model, repaired, through = small_net(0), small_net(1), torch.randn(20, 4, generator=gen(2)).double()
    found = discovery.every_score(model, repaired, through, data, forget)
    (before, labels), (after, _), h = logits(model, data), logits(repaired, data), features(model, data)
    ce = [given_loss(z, labels) for z in (before, after, through)]
    wanted = {"CE, untouched network": ce[0], "CE, repaired network": ce[1],
              "CE repaired - CE untouched": ce[1] - ce[0], "CE repaired - CE through D_f's channel": ce[1] - ce[2],
              "cosine to the 5 nearest of D_f": nearest(h, forget),
              "logistic probe, D_f against the rest": probe(h, forget),
              "last-layer TracIn to D_f, untouched": tracin(before, labels, h, forget),
              "logit margin, untouched network": margin(before, labels),
              "logit margin, repaired network": margin(after, labels)}
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], score) for name, score in wanted.items())
    assert len({tuple(score.tolist()) for score in wanted.values()}) == 9


def test_scores_of_a_round_are_those_of_its_networks(monkeypatch):
    """S16: a cell's scores have the original for the untouched network, and the repaired one for the other."""
    seen = []
    monkeypatch.setattr(discovery, "every_score", lambda model, repaired, *rest: seen.append((model, repaired)) or {})
    task, original = make_task("random", make_dataset(0, n=30), 6, 0), small_net(0)
    config = tiny(n=6, discovery=0.34, gamma=1.0)
    list(discovery.play(config, task, original, 1, []))
    (model, repaired), known = seen[0], discovery.find(config, task)
    assert model is original
    assert_same_state(repaired, rem(original, task.train, known, config, stream(config.seed, "unlearning")))


def test_the_picture_draws_the_scores_it_names():
    """S17: a line per score, recall over the images looked at, mean over seeds."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure
    common = {"task": "poison", "discovery": 0.5, "undiscovered": 2}
    rows = [{**common, "score": score, "seed": seed, "ranks": ranks} for score, seed, ranks in
            ((discovery.REPAIRED, 0, [1, 2]), (discovery.REPAIRED, 1, [1, 3]), (discovery.UNTOUCHED, 0, [5, 6]))]
    figure = discovery.draw_recall(Figure(layout="constrained"), rows)
    lines = {one.get_label(): list(one.get_ydata()) for one in figure.axes[0].get_lines()}
    assert lines[discovery.REPAIRED] == [0.0, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]
    assert lines[discovery.UNTOUCHED] == [0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 1.0]
    assert lines["the best there can be"] == [0, 1, 1] and len(lines) == 3


# --- The list that a user gets, and gives back ------------------------------------------------------------------------

NAMES = ["plain.png", 'a "quoted", name.png', "Ünïcode 猫 – ñ.png", "comma, semi; tab.png", "line\nend.png",
         "cr\rlf\r\n.png", " blank.png", "=1+1.png", "back\\slash.png"]


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
    """run.py repair with few epochs, whatever the network knows."""
    argv = [part for name, value in world.items() for part in (name, *(value if isinstance(value, list) else [value]))]
    return run.main(["repair", *map(str, argv), "--epochs", "1", "--force", *map(str, more)])


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
    """S15: each image but D_f once, by falling score; every column is what it is called."""
    rows = rows_of(world["--out"].parent / "suspects.csv")
    columns = "rank, filename, index, given_label, predicted_label, score, label_score, similar"
    assert list(rows[0]) == columns.split(", ")
    assert [row["rank"] for row in rows] == [str(i) for i in range(1, 18)]
    folder = inputs.open_folder(world["--data"], world["--bad"])
    assert {row["filename"] for row in rows} == {path.relative_to(folder.root).as_posix() for path in folder.paths} - {
        "train/bëe/plain.png"}
    net, reading = networks.build_network("resnet9:0.05", 2, 12)
    net.load_state_dict(torch.load(world["--out"], weights_only=True))
    train, *_ = folder.load(reading)
    z, labels = logits(net, train)
    net.load_state_dict(torch.load(world["--checkpoint"], weights_only=True))
    similar = probe(features(net, train), folder.forget)
    for row in rows:
        i = int(row["index"])
        assert folder.paths[i].relative_to(folder.root).as_posix() == row["filename"]
        named = folder.classes[labels[i]], folder.classes[z[i].argmax()]
        assert (row["given_label"], row["predicted_label"]) == named
        assert float(row["score"]) == pytest.approx(float(given_loss(z, labels)[i]), rel=1e-4, abs=1e-5)
        assert float(row["label_score"]) == pytest.approx(math.exp(-float(row["score"])), rel=1e-4)
        assert 0 <= float(row["label_score"]) <= 1
        assert float(row["similar"]) == pytest.approx(float(similar[i]), rel=1e-3, abs=1e-5)
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert b"\r\n" in (world["--out"].parent / "suspects.csv").read_bytes()


def test_the_list_comes_back(world):
    """S15: whatever the names hold, each row that the user calls bad is that image, which joins the first list."""
    listed = world["--out"].parent / "suspects.csv"
    folder = inputs.open_folder(world["--data"], world["--bad"])
    for row in rows_of(listed):
        given = {"train/bëe/=1+1.png": "false", row["filename"]: "TRUE"}
        file = answer(listed, world["--data"] / "answers.csv", given)
        forget = inputs.open_folder(world["--data"], [world["--bad"], file]).forget
        assert set(forget.tolist()) == {int(folder.forget[0]), int(row["index"])}, row["filename"]


def test_the_second_round_starts_from_the_original(world, capsys):
    """S15: --bad takes the first list and the answers; nothing confirmed gives the first round's bits; the list that is
    given, or one that holds answers, is not written over."""
    listed, first = world["--out"].parent / "suspects.csv", world["--out"].read_bytes()
    nothing = answer(listed, world["--data"] / "nothing.csv", {})
    second = {**world, "--out": world["--data"] / "two" / "repaired.pt"}
    assert call({**second, "--bad": [world["--bad"], nothing]}) == 0
    told = capsys.readouterr().out
    assert f"{nothing}: nothing bad in it" in told
    assert f"{second['--out'].parent / 'suspects.csv'} ranks the 17 images that no list names, most suspect" in told
    assert second["--out"].read_bytes() == first
    some = answer(listed, world["--data"] / "some.csv", {"train/ant, red/plain.png": "true"})
    assert call({**second, "--bad": [world["--bad"], some]}) == 0
    report = json.loads(second["--out"].with_suffix(".json").read_text())
    assert str(some) in report["sha256"] and second["--out"].read_bytes() != first
    assert {"train/ant, red/plain.png", "train/bëe/plain.png"}.isdisjoint(
        row["filename"] for row in rows_of(second["--out"].parent / "suspects.csv"))
    filled = answer(listed, second["--out"].parent / "suspects.csv", {"train/ant, red/plain.png": "true"})
    before = filled.read_bytes()
    assert call({**second, "--bad": [world["--bad"], filled]}) == 2
    assert "would replace the input" in capsys.readouterr().err
    assert call(second) == 2 and "has a column `bad`, which would be lost" in capsys.readouterr().err
    assert filled.read_bytes() == before


@pytest.mark.parametrize("word", ["maybe", "1", "yes", "x", "truefalse"])
def test_answers_that_are_none_are_refused_by_line(world, capsys, word):
    """S15: a value of `bad` but true, false or nothing is an error that names the line; a list of none is one too."""
    rows = f"train/bëe/plain.png,True\ntrain/bëe/=1+1.png,\nplain.png,{word}\n"
    (world["--data"] / "s.csv").write_text("filename,bad\n" + rows, encoding="utf-8")
    assert call({**world, "--bad": world["--data"] / "s.csv"}) == 2
    assert f"s.csv, line 4: bad is {word!r}; it must be True or False" in capsys.readouterr().err
    (world["--data"] / "s.csv").write_text("filename,bad\nplain.png,false\n")
    assert call({**world, "--bad": world["--data"] / "s.csv"}) == 2
    assert "lists no image" in capsys.readouterr().err


def test_without_matplotlib_there_is_the_list_alone(tmp_path, monkeypatch):
    """S15: no sheet without matplotlib, which is said; with it any number of pictures and any class names."""
    data, net, paths = make_data(0, channels=3, classes=2), small_net(0, channels=3, classes=2), []
    paths = [tmp_path / "train" / "a" / f"{i}.png" for i in range(12)]
    folder = inputs.Folder(tmp_path, ["$x^", "猫" * 40], paths, data.labels, torch.tensor([2, 5]), None, "")
    places, drawn = {path: 2 * i for i, path in enumerate(paths)}, []  # every second file cannot be decoded
    for missing, words in ((True, "no picture of them: matplotlib is not installed"), (False, "suspects.png shows 10")):
        if missing:
            monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
        else:
            monkeypatch.undo()
            pytest.importorskip("matplotlib")
        repaired = small_net(1, channels=3, classes=2)
        found, similar = suspects(repaired, data, folder.forget), probe(features(net, data), folder.forget)
        if not missing:
            monkeypatch.setattr(sheets, "draw_sheet", lambda path, images, labels, inner=sheets.draw_sheet: (
                drawn.append((images, labels)), inner(path, images, labels))[1])
        assert words in sheets.write_suspects(tmp_path / "r.pt", found, similar, data, folder, places)
        assert (tmp_path / "suspects.png").exists() != missing
        rows = rows_of(tmp_path / "suspects.csv")
        assert all(row["filename"] == f"train/a/{int(row['index']) // 2}.png" for row in rows) and len(rows) == 10
    (shown, named), = drawn
    assert torch.equal(shown, data.images[found.index]) and named == [
        (folder.classes[data.labels[i]], folder.classes[p]) for i, p in zip(found.index, found.predicted)]
    labels = [("a\udc80", ""), ("x" * 30, "y"), ("$x^", "$")]
    for k, channels in ((0, 3), (1, 1), (3, 3), (70, 1)):
        images = torch.zeros(k, channels, 4, 4, dtype=torch.uint8)
        assert sheets.draw_sheet(tmp_path / "s.png", images, (labels * 24)[:k])
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.format == "PNG" and sheet.size == (1200, 1400)


def test_a_name_is_no_formula(tmp_path):
    """S15: a folder's name that a spreadsheet would compute stands behind an apostrophe, others as they are."""
    data, paths = make_data(0, channels=3, classes=2), [tmp_path / "train" / "a" / f"{i}.png" for i in range(12)]
    folder = inputs.Folder(tmp_path, ['=HYPERLINK("x")', "a=b"], paths, data.labels, torch.tensor([2, 5]), None, "")
    found = suspects(small_net(1, channels=3, classes=2), data, folder.forget)
    sheets.write_suspects(tmp_path / "r.pt", found, None, data, folder, {path: 0 for path in paths})
    labels = {row[key] for row in rows_of(tmp_path / "suspects.csv") for key in ("given_label", "predicted_label")}
    assert labels == {"'=HYPERLINK(\"x\")", "a=b"}


# --- Rounds and the command -------------------------------------------------------------------------------------------


def played(task, config=tiny(n=6, discovery=0.34, gamma=1.0), seed=0, **plan) -> list[dict]:
    """The rows of rounds on a small task."""
    return list(discovery.play(config, task, small_net(seed), **{"rounds": 2, "users": [("looks", 6)], **plan}))


SCORES = ("healed", "utility", "product", "healed_undiscovered")


def test_two_rounds_with_nothing_confirmed_equal_one():
    """S16: where nothing joins D_f, the second round's scores are exactly the first's."""
    task = make_task("random", make_dataset(0, n=30), 6, 0)
    one, = (row for row in played(task, rounds=1) if "round" in row)
    first, *others = (row for row in played(task, users=[("looks", 0), ("none", 0)]) if "round" in row)
    assert first == one and [row["user"] for row in others] == ["looks", "none"]
    assert all(row[name] == one[name] for row in others for name in (*SCORES, "known"))


def test_what_joins_d_f_and_what_rounds_start_from(monkeypatch):
    """S16: a user adds the corrupted of the first suspects, nobody all of them; REM starts from the original."""
    task, calls = make_task("random", make_dataset(0, n=30), 6, 0), []

    def watched(model, data, forget, config, generator, log=None):
        calls.append(({k: v.clone() for k, v in model.state_dict().items()}, forget, generator.get_state()))
        return rem(model, data, forget, config, generator, log=log)

    monkeypatch.setattr(discovery, "rem", watched)
    rows = [row for row in played(task, users=[("looks", 9), ("none", 9)]) if "round" in row]
    before, known, state = calls[0]
    repaired = rem(small_net(0), task.train, known, tiny(n=6, gamma=1.0), stream(0, "unlearning"))
    first = suspects(repaired, task.train, known).index[:9]
    for (after, more, other), row, user in zip(calls[1:], rows[1:], ("looks", "none"), strict=True):
        joined = first if user == "none" else first[torch.isin(first, task.corrupted)]
        assert set(more.tolist()) == set(known.tolist()) | set(joined.tolist())
        assert all(torch.equal(before[k], after[k]) for k in before) and torch.equal(state, other)
        assert (row["user"], row["looked"], row["known"], rows[0]["known"]) == (user, 9, len(more), len(known))
        assert row["known_bad"] == 2 + int(torch.isin(joined, task.corrupted).sum())


def test_the_channel_is_that_of_the_epoch_that_is_returned():
    """S16: logits through D_f's channel come from the epoch whose theta_o1 REM returns."""
    task = make_task("random", make_dataset(1, n=40), 6, 1)
    forget, seen = discover(task, 0.5, 1), []
    config = tiny(n=6, unlearn_epochs=4, stop="repaired", unlearn_lr=0.3, gamma=0.5)

    def log(epoch, epochs, expanded, **record):
        mask = mask_table(40, expanded.width, config.p_mem, config.seed, forget)[forget[0]]
        seen.append((record["score"], logits(expanded, task.train)[0], logits(expanded, task.train, mask)[0]))

    rem(small_net(1), task.train, forget, config, stream(0, "unlearning"), log=log)
    network, through = discovery.repair_cell(config, small_net(1), task.train, forget)
    best = max(range(len(seen)), key=lambda i: (seen[i][0], -i))
    assert torch.equal(logits(network, task.train)[0], seen[best][1])
    assert torch.equal(through, seen[best][2]) and not torch.equal(through, seen[best][1])
    assert best < len(seen) - 1 and not torch.equal(through, seen[-1][2])  # it is not just the last


def test_tables_are_means_over_seeds():
    """S17: mean ± SEM over seeds, of each seed's mean over its cells; one seed has no SEM; rounds apart by user."""
    rows = [{"score": "s", "task": task, "discovery": 0.5, "seed": seed, "auroc": auroc, "recall": auroc / 2}
            for task, seed, auroc in (("poison", 0, 0.8), ("random", 0, 0.4), ("poison", 1, 1.0), ("random", 1, 1.0))]
    first, *_, last = discovery.suspects_table(rows).splitlines()
    assert first == "AUROC / recall when |undiscovered| are flagged, mean ± SEM; seeds 0, 1"
    assert last == "| s | 0.90 ± 0.10 / 0.45 ± 0.05 | 0.70 ± 0.30 / 0.35 ± 0.15 | 0.80 ± 0.20 / 0.40 ± 0.10 |"
    rows = [{"round": number, "user": user, "looked": k, "task": "poison", "discovery": 0.1, "seed": 0, "known": known,
             "known_bad": 9, "healed": 0.5, "utility": 0.8, "product": 0.4}
            for number, user, k, known in ((1, "", 0, 9), (2, "looks", 5, 10), (2, "none", 5, 14))]
    assert discovery.round_table(rows).splitlines()[-3:] == [
        "| 0.1 | 1 |  | 9 / 9 | 50.0 / 80.0 / 40.0 |  |  |",
        "| 0.1 | 2 | looks at 5 | 10 / 9 | 50.0 / 80.0 / 40.0 |  |  |",
        "| 0.1 | 2 | none, top 5 | 14 / 9 | 50.0 / 80.0 / 40.0 |  |  |"]
    assert discovery.suspects_table([]) == discovery.round_table([]) == ""


QUICK = ["--n", "10", "--width", "0.05", "--epochs", "1", "--unlearn-epochs", "1", "--gamma", "1", "--quiet"]


def command(*argv) -> int:
    """run.py suspects on a small network, in this process."""
    return run.main(["suspects", *map(str, argv), *QUICK])


@pytest.fixture
def small(monkeypatch):
    """fashion-mini's first 200 images."""
    from experiment.datasets import load
    from study import originals
    whole = load("fashion-mini")
    few = Data(whole.train.images[:200], whole.train.labels[:200], 10, whole.train.mean, whole.train.std)
    mini = type(whole)(whole.name, few, few, whole.names)
    monkeypatch.setattr(originals, "dataset_of", lambda config: mini)
    originals.load_original.cache_clear()
    yield
    originals.load_original.cache_clear()


def test_the_command_goes_on_where_it_was_killed(small, tmp_path, capsys, monkeypatch):
    """S17: a row per cell and score and round, tables and picture from the rows; what is there is not made again."""
    out = tmp_path / "s.jsonl"
    argv = ("--task", "random,poison", "--discovery", "0.5,1.0", "--seeds", "0", "--out", out)
    assert command(*argv) == 0
    told, lines = capsys.readouterr().out, out.read_bytes().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines]
    assert len([row for row in rows if "score" in row]) == 2 * 9 and len([row for row in rows if "round" in row]) == 4
    assert "| score | poison 0.5 | random 0.5 | all |" in told and "| 1 | 1 |  | 10 / 10 |" in told
    assert {"git", "argv", "threads", "torch", "seed", "n", "gamma"} <= set(rows[0]) and "method" not in rows[0]
    assert len(list((tmp_path / "originals").glob("*.pt"))) == 2
    out.write_bytes(b"".join(lines[:4]) + lines[4][:30])  # killed while it wrote
    assert command(*argv) == 0
    whole = [json.loads(line) for line in out.read_bytes().splitlines() if line.endswith(b"}")]
    volatile = {"seconds", "argv"}
    assert sorted(str({k: v for k, v in row.items() if k not in volatile}) for row in whole) == sorted(
        str({k: v for k, v in row.items() if k not in volatile}) for row in rows)
    monkeypatch.setattr(discovery, "play", lambda *args: pytest.fail("done already"))
    capsys.readouterr()
    assert command(*argv) == 0
    assert capsys.readouterr().out == told
    out.write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match="no rows"):  # `report` passes over them without a warning
        load_rows([tmp_path])
    assert capsys.readouterr().err == ""


def test_rows_that_are_damaged_are_made_again(small, tmp_path, capsys):
    """S17: a row of a score or round that is gone or lacks a number is made again, and no table averages it."""
    out = tmp_path / "s.jsonl"
    argv = ("--task", "poison,random", "--discovery", "0.5", "--out", out)
    assert command(*argv) == 0
    told, rows = capsys.readouterr().out, [json.loads(line) for line in out.read_text().splitlines()]
    for k in (3, 9):  # a score, a round
        for broken in ([], [{name: value for name, value in rows[k].items() if name not in ("auroc", "known")}],
                       [{**rows[k], "ranks": None, "healed": None}], ["{"]):
            lines = [*rows[:k], *broken, *rows[k + 1:]]
            out.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in lines))
            assert command(*argv) == 0
            assert sorted(capsys.readouterr().out.splitlines()) == sorted(told.splitlines())
            assert len(out.read_text().splitlines()) == len(lines) + 1
    some = [row for row in rows if row["task"] == "poison" or row.get("score") != "logit margin, untouched network"]
    assert "| logit margin, untouched network | " in discovery.suspects_table(some)  # a column without a run is empty


def test_every_cell_is_looked_at_before_any_training(small, tmp_path, monkeypatch, capsys):
    """S17, R2: what is wrong with the last task is told before the first one's network trains."""
    monkeypatch.setattr(discovery, "make_original", lambda *args: pytest.fail("it began"))
    assert command("--task", "poison,confusion", "--pair", "3,10", "--out", tmp_path / "s.jsonl") == 2
    assert "pair is 3,10" in capsys.readouterr().err


def test_a_picture_of_nothing_is_told(small, tmp_path, capsys):
    """S17: at discovery 1 nothing is left to find, so that there is no picture, which is said."""
    pytest.importorskip("matplotlib")
    assert command("--discovery", "1", "--figure", "--out", tmp_path / "s.jsonl") == 0
    assert "no figure: nothing was left to find" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["originals", "s.jsonl"]


def test_rounds_and_picture_of_the_command(small, tmp_path, capsys):
    """S17: --look-at and --flag-top add a round each, beside the same first one; --figure draws recall."""
    pytest.importorskip("matplotlib")
    out, argv = tmp_path / "s.jsonl", ("--discovery", "0.5", "--out", tmp_path / "s.jsonl")
    assert command(*argv, "--rounds", "2") == 0
    assert command(*argv, "--look-at", "10", "--flag-top", "3", "--figure") == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["round"], row["user"], row["looked"]) for row in rows if "round" in row] == [
        (1, "", 0), (2, "looks", 10), (2, "none", 3)]
    assert rows[-1]["known"] == 8 and "| 0.5 | 2 | none, top 3 | 8 /" in capsys.readouterr().out
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize("argv, words", [
    (("--rounds", "0"), "at least 1"), (("--look-at", "-1"), "0 or more"),
    (("--look-at", "3", "--rounds", "1"), "2 rounds"),
    (("--discovery", "0"), "discovery is 0"), (("--task", "none"), "choose from"), (("--out", ""), "--out is empty"),
    (("--seeds", "a"), "int values"), (("--unlearn-epochs", "0"), "no suspects"), (("--etd",), "unrecognized"),
    (("--discovery", "0.5,0.001"), "finds none"),
    (("--discovery", "0.5,1.0", "--look-at", "5", "--flag-top", "5880"),
     "--flag-top is 5880, by which all 6000 images can be in D_f by round 2; give at most 5879"),
    (("--n", "6000", "--discovery", "0.5", "--rounds", "4", "--look-at", "1000"), "--look-at is 1000, by which all"),
])
def test_bad_input_is_one_line(argv, words, capsys, tmp_path):
    """S17: one line on stderr and exit code 2, before any training."""
    try:
        code = run.main(["suspects", "--out", str(tmp_path / "s.jsonl"), *argv])
    except SystemExit as leave:
        code = leave.code
    told = capsys.readouterr().err.splitlines()
    assert code == 2 and len(told) == 1 and words in told[0] and not list(tmp_path.iterdir())
