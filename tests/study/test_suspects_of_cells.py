"""study/on_cells.py: does a repaired network find what was not discovered (Sec. 4)? Scores, rounds, the command."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import run
from baselines import rem_plus_by_config
from engine.features import features
from engine.streams import stream
from etd import mask_table
from experiment.settings import resolve
from few_images import few, fresh, refusal  # noqa: F401
from helpers import assert_same_state, gen, make_data, make_dataset, rows_of, small_net, tiny
from metrics import evaluate, predict
from repair.suspects import given_loss, logits, margin, nearest, probe, suspects, tracin
from study import suspects as on_cells
from study.rows import load_rows
from tasks import discover, make_task

pytestmark = pytest.mark.filterwarnings("ignore:Acc")  # a repair of networks that hardly learnt may give up, or harm


# --- Scores and what they find ----------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=15), st.integers(0, 16))
def test_auroc_and_recall_equal_naive_twins(pairs, looked):
    """S14: AUROC over all pairs, half for ties; recall among the first K; neither is defined without both kinds."""
    score, wanted = torch.tensor([s for s, _ in pairs]).double(), torch.tensor([w for _, w in pairs])
    yes, no = [s for s, w in pairs if w], [s for s, w in pairs if not w]
    if yes and no:
        twin = sum((a > b) + (a == b) / 2 for a in yes for b in no) / (len(yes) * len(no))
        assert on_cells.auroc(score, wanted) == pytest.approx(twin, abs=1e-12)
    else:
        with pytest.raises(ValueError, match="undefined"):
            on_cells.auroc(score, wanted)
    if yes:
        order = sorted(range(len(pairs)), key=lambda i: -pairs[i][0])
        ranks = [place for place, i in enumerate(order, 1) if pairs[i][1]]
        assert on_cells.recall(ranks, looked) == sum(pairs[i][1] for i in order[:looked]) / len(yes)


def test_rows_of_scores_count_the_undiscovered_alone():
    """S14: ranks among the images outside D_f; recall at as many as are undiscovered; none at discovery 1."""
    task = make_task("random", make_dataset(0, n=24), 6, 0)
    forget = discover(task, 0.5, 0)
    score = torch.zeros(24).index_fill_(0, task.corrupted, 1.0).double()
    row, = on_cells.rows_of_scores({"perfect": score}, task, forget)
    assert (row["auroc"], row["recall"], row["ranks"]) == (1.0, 1.0, [1, 2, 3])
    assert (row["undiscovered"], row["images"]) == (3, 21)
    row, = on_cells.rows_of_scores({"worst": -score}, task, forget)
    assert (row["auroc"], row["recall"], row["ranks"]) == (0.0, 0.0, [19, 20, 21])
    assert on_cells.rows_of_scores({"perfect": score}, task, task.corrupted) == []


def test_every_score_stands_under_its_name():
    """S13, S17: before and after, given label and channel, are not taken for each other."""
    data, forget = make_data(3, n=20), torch.tensor([1, 4, 7])
    model, repaired, through = small_net(0), small_net(1), torch.randn(20, 4, generator=gen(2)).double()
    found = on_cells.every_score(model, repaired, through, data, forget)
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


# --- Rounds -----------------------------------------------------------------------------------------------------------


def setting(seed=0, rate=0.34, **changes):
    """(settings, task, original) of a small cell whose test set tells networks apart; 6 of 40 images are corrupted."""
    dataset = replace(make_dataset(seed, n=40), test=make_data(seed + 100, n=200))
    config = tiny(n=6, seed=seed, discovery=rate, unlearn_lr=0.1, **{"gamma": 1.0, **changes})
    return config, make_task("random", dataset, 6, seed), small_net(seed)


def repaired(config, task, original, forget):
    """The network of the method rem-plus, as a cell runs it."""
    return rem_plus_by_config(original, task.train, forget, config, stream(config.seed, "unlearning"))


def twin_of_rounds(config, task, original, rounds: int, users) -> list[dict]:
    """`play` in a plain loop: what is known, the network repaired from it, and the suspects that this one names."""
    known = discover(task, config.discovery, config.seed)
    _, through = on_cells.repair_cell(config, original, task.train, known)
    network = repaired(config, task, original, known)
    scores = on_cells.every_score(original, network, through, task.train, known)
    rows = [(1, "", 0, known)]
    for user, looked in users:
        more = known
        for number in range(2, rounds + 1):
            network = repaired(config, task, original, more)
            found = suspects(network, task.train, more).index[:looked].tolist()
            if user == "looks":
                found = [index for index in found if index in task.corrupted.tolist()]
            more = torch.tensor(sorted({*more.tolist(), *found}))
            rows.append((number, user, looked, more))
    return on_cells.rows_of_scores(scores, task, known) + [
        {"round": number, "user": user, "looked": looked, "known": len(more),
         "known_bad": sum(index in task.corrupted.tolist() for index in more.tolist()),
         **evaluate(repaired(config, task, original, more), task, more, original)}
        for number, user, looked, more in rows]


@pytest.mark.parametrize("seed, changes", [(0, {}), (1, {"stop": "repaired", "gamma": 0.5})])
def test_rounds_equal_the_plain_loop(seed, changes):
    """S16: every round repairs the original anew from what is known by then, and the next suspects are those of its own
    network, in round 3 of round 2's; a user adds the corrupted of the first K, nobody all K, both from round 1 on.
    Where nothing joins D_f the scores are exactly the first round's. The nine scores are of the original and of the
    network repaired from D_f, and the undiscovered those of this D_f."""
    cell, users = setting(seed, **changes), [("looks", 12), ("none", 5), ("none", 0)]
    rows = list(on_cells.play(*cell, 3, users))
    assert rows == twin_of_rounds(*cell, 3, users)
    assert [row["known"] for row in rows[9:] if row["user"] == "none"] == [7, 12, 2, 2]
    assert all({**row, "round": 1, "user": ""} == rows[9] for row in rows[-2:])


ENDS = {"an epoch before the last": (4, {"stop": "repaired", "gamma": 0.5, "unlearn_lr": 0.02}),
        "the last of all": (1, {"stop": "max", "gamma": 0.5, "unlearn_lr": 0.3}),
        "the last where no epoch is below gamma": (1, {"stop": "repaired", "gamma": 0.0, "unlearn_lr": 1e-4,
                                                    "max_passes": 1})}


@pytest.mark.parametrize("end", ENDS)
def test_the_channel_is_that_of_the_epoch_that_is_returned(end):
    """S16: the network is that of the method rem-plus, and the logits through D_f's channel are of the epoch that it
    returns."""
    seed, changes = ENDS[end]
    task, original, seen = make_task("random", make_dataset(seed, n=40), 6, seed), small_net(seed), []
    forget = discover(task, 0.5, seed)
    data = replace(task.train, labels=predict(original, task.train, torch.arange(40)))  # it knows them all
    config = tiny(n=6, unlearn_epochs=4, **changes)

    def log(epoch, epochs, expanded, **record):
        mask = mask_table(40, expanded.width, config.p_mem, config.seed, forget)[forget[0]]
        seen.append((logits(expanded, data)[0], logits(expanded, data, mask)[0], record.get("best")))

    wanted = rem_plus_by_config(original, data, forget, config, stream(0, "unlearning"), log=log)
    network, through = on_cells.repair_cell(config, original, data, forget)
    assert_same_state(network, wanted)
    (epoch,) = [k for k, (base, _, _) in enumerate(seen) if torch.equal(base, logits(network, data)[0])]
    assert torch.equal(through, seen[epoch][1])
    assert not any(torch.equal(through, other) for k, (_, other, _) in enumerate(seen) if k != epoch)
    if end == "an epoch before the last":
        assert epoch == max(k for k, (_, _, best) in enumerate(seen) if best) < len(seen) - 1
    else:
        assert epoch == 3 == len(seen) - 1


# --- Tables and picture -----------------------------------------------------------------------------------------------


def test_tables_are_means_over_seeds():
    """S17: mean ± SEM over seeds, of each seed's mean over its cells; one seed has no SEM; rounds apart by user."""
    rows = [{"score": "s", "task": task, "discovery": 0.5, "seed": seed, "auroc": auroc, "recall": auroc / 2}
            for task, seed, auroc in (("poison", 0, 0.8), ("random", 0, 0.4), ("poison", 1, 1.0), ("random", 1, 1.0))]
    first, *_, last = on_cells.suspects_table(rows).splitlines()
    assert first == "AUROC / recall when |undiscovered| are flagged, mean ± SEM; seeds 0, 1"
    assert last == "| s | 0.90 ± 0.10 / 0.45 ± 0.05 | 0.70 ± 0.30 / 0.35 ± 0.15 | 0.80 ± 0.20 / 0.40 ± 0.10 |"
    rows = [{"round": number, "user": user, "looked": k, "task": "poison", "discovery": 0.1, "seed": 0, "known": known,
             "known_bad": 9, "healed": 0.5, "utility": 0.8, "product": 0.4}
            for number, user, k, known in ((1, "", 0, 9), (2, "looks", 5, 10), (2, "none", 5, 14))]
    assert on_cells.round_table(rows).splitlines()[-3:] == [
        "| 0.1 | 1 |  | 9 / 9 | 50.0 / 80.0 / 40.0 |  |  |",
        "| 0.1 | 2 | looks at 5 | 10 / 9 | 50.0 / 80.0 / 40.0 |  |  |",
        "| 0.1 | 2 | none, top 5 | 14 / 9 | 50.0 / 80.0 / 40.0 |  |  |"]
    assert on_cells.suspects_table([]) == on_cells.round_table([]) == ""
    rows = [{"score": score, "task": task, "discovery": 0.5, "seed": 0, "auroc": 0.5, "recall": 0.25}
            for score, task in (("s", "poison"), ("s", "random"), ("t", "random"))]
    assert on_cells.suspects_table(rows).splitlines()[-1] == "| t |  | 0.50 / 0.25 | 0.50 / 0.25 |"  # one was not run


def test_tables_of_seeds_that_lack_cells():
    """S17: over all are the cells that every seed has, and what has fewer seeds than the others says so."""
    rows = [{"score": "s", "task": task, "discovery": 0.5, "seed": seed, "auroc": auroc, "recall": 0.5}
            for task, seed, auroc in (("poison", 0, 0.1), ("random", 0, 0.4), ("random", 1, 1.0))]
    assert on_cells.suspects_table(rows).splitlines()[-1] == (
        "| s | 0.10 / 0.50 (seeds: 1) | 0.70 ± 0.30 / 0.50 ± 0.00 | 0.70 ± 0.30 / 0.50 ± 0.00 |")
    assert on_cells.suspects_table(rows[::2]).splitlines()[-1].endswith(" | 1.00 / 0.50 (seeds: 1) |  |")  # none
    rows = [{"round": 1, "user": "", "looked": 0, "task": task, "discovery": 0.1, "seed": seed, "known": 9,
             "known_bad": 9, "healed": 0.5, "utility": 0.8, "product": 0.4}
            for task, seed in (("poison", 0), ("random", 0), ("random", 1))]
    assert " | 50.0 / 80.0 / 40.0 (seeds: 1) |  | 50.0 ± 0.0 / " in on_cells.round_table(rows)


def test_the_picture_draws_the_scores_it_names():
    """S17: a line per score, recall over the images looked at, mean over seeds."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure
    common = {"task": "poison", "discovery": 0.5, "undiscovered": 2}
    rows = [{**common, "score": score, "seed": seed, "ranks": ranks} for score, seed, ranks in
            ((on_cells.REPAIRED, 0, [1, 2]), (on_cells.REPAIRED, 1, [1, 3]), (on_cells.UNTOUCHED, 0, [5, 6]))]
    figure = on_cells.draw_recall(Figure(layout="constrained"), rows)
    lines = {one.get_label(): list(one.get_ydata()) for one in figure.axes[0].get_lines()}
    assert lines[on_cells.REPAIRED] == [0.0, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]
    assert lines[on_cells.UNTOUCHED] == [0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 1.0]
    assert lines["the best there can be"] == [0, 1, 1] and len(lines) == 3


# --- The command ------------------------------------------------------------------------------------------------------

QUICK = ["--n", "10", "--width", "0.05", "--epochs", "1", "--unlearn-epochs", "1", "--gamma", "1", "--image-size", "8",
         "--quiet"]


def command(*argv) -> int:
    """run.py suspects on a small network, in this process."""
    return run.main(["suspects", *map(str, argv), *QUICK])


def test_what_is_there_is_not_made_again(few, tmp_path, capsys, monkeypatch):
    """S17: a row per cell and score and round, from which a second call makes the same tables."""
    out = tmp_path / "s.jsonl"
    argv = ("--task", "random,poison", "--discovery", "0.5,1.0", "--seeds", "0", "--out", out)
    assert command(*argv) == 0
    told, rows = capsys.readouterr().out, rows_of(out)
    assert len([row for row in rows if "score" in row]) == 2 * 9 and len([row for row in rows if "round" in row]) == 4
    assert "| score | poison 0.5 | random 0.5 | all |" in told and "| 1 | 1 |  | 10 / 10 |" in told
    assert {"git", "argv", "threads", "torch", "seed", "n", "gamma"} <= set(rows[0]) and "method" not in rows[0]
    assert len(list((tmp_path / "originals").glob("*.pt"))) == 2
    with open(out, "a") as file:  # of a call with rounds and another user
        file.write(json.dumps({**rows[9], "round": 2, "user": "none", "looked": 3}) + "\n")
    monkeypatch.setattr(on_cells, "play", lambda *args: pytest.fail("done already"))
    assert command(*argv) == 0
    assert capsys.readouterr().out == told
    with pytest.raises(ValueError, match="no rows"):  # `report` passes over them without a warning
        load_rows([tmp_path])
    assert capsys.readouterr().err == ""


def test_rows_that_are_damaged_are_made_again(few, tmp_path, capsys):
    """S17, R5: a row of a score or round that is gone or lacks a number is made again, also after a kill in the middle
    of a line, and no table averages it; one that is there twice counts once."""
    out = tmp_path / "s.jsonl"
    argv = ("--task", "poison,random", "--discovery", "0.5", "--out", out)
    assert command(*argv) == 0
    told, rows = capsys.readouterr().out, rows_of(out)
    score, round_1 = rows[3], rows[9]
    lacks = [{name: value for name, value in row.items() if name not in ("auroc", "known")} for row in (score, round_1)]
    damaged = [[*rows[:k], *broken, *rows[k + 1:]] for k, broken in (
        (3, []), (3, [{**score, "ranks": None}]), (3, lacks[:1]), (9, lacks[1:]), (9, ["{"]),
        (3, ["[" * 100_000, "7"]), (9, [{**round_1, "healed": None}]), (9, [{**round_1, "utility": 1.5}]),
        (3, [{**score, "ranks": [0, *score["ranks"][1:]]}]))]
    for lines in [*damaged, [*rows[:4], json.dumps(rows[4])[:30]]]:
        text = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
        out.write_text(text + "\n" * (lines in damaged))
        assert command(*argv) == 0
        assert sorted(capsys.readouterr().out.splitlines()) == sorted(told.splitlines())
        again = len(rows) - sum(each in rows for each in lines)
        assert len(out.read_text().splitlines()) == len(lines) + again
    lines = [json.dumps(row) + "\n" for row in [*rows, *(row for row in rows if row["task"] == "poison")]]
    out.write_text("".join(lines))  # as two processes leave it that have played one cell at once
    assert command(*argv) == 0 and capsys.readouterr().out == told and len(out.read_text().splitlines()) == len(lines)


def test_a_cell_that_fails_is_told_and_the_others_go_on(few, tmp_path, capsys):
    """S17, R12: a damaged original fails its own cells, whose rows stay away; without its files they are played."""
    out = tmp_path / "s.jsonl"
    argv = ("--task", "poison,random", "--discovery", "0.5", "--out", out)
    assert command(*argv) == 0
    (kept,) = (tmp_path / "originals").glob("poison*.pt")
    kept.write_bytes(b"x")
    whole = out.read_bytes()
    out.unlink()
    capsys.readouterr()
    assert command(*argv) == 1
    assert f"poison at discovery 0.5, seed 0: failed: {kept} or its .task is damaged" in capsys.readouterr().out
    assert {row["task"] for row in rows_of(out)} == {"random"}
    kept.unlink()
    kept.with_suffix(".task").unlink()
    assert command(*argv) == 0 and len(out.read_bytes().splitlines()) == len(whole.splitlines())


def test_a_picture_of_nothing_is_told(few, tmp_path, capsys):
    """S17: that nothing is left to find at discovery 1 is said; a picture does not take the place of the rows."""
    pytest.importorskip("matplotlib")
    assert command("--discovery", "1", "--figure", "--out", tmp_path / "s.jsonl") == 0
    assert "no figure: nothing was left to find" in capsys.readouterr().out
    told = refusal(capsys, "suspects", "--figure", "--out", tmp_path / "x.png", *QUICK)
    assert f"--out is {tmp_path / 'x.png'}, the name of the figure" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["originals", "s.jsonl"]


def test_rounds_and_picture_of_the_command(few, tmp_path, capsys):
    """S17: --look-at and --flag-top add a round each, beside the same first one; --figure draws recall."""
    pytest.importorskip("matplotlib")
    out, argv = tmp_path / "s.jsonl", ("--discovery", "0.5", "--out", tmp_path / "s.jsonl")
    assert command(*argv, "--rounds", "2") == 0
    assert command(*argv, "--look-at", "10", "--flag-top", "3", "--figure") == 0
    rows = rows_of(out)
    assert [(row["round"], row["user"], row["looked"]) for row in rows if "round" in row] == [
        (1, "", 0), (2, "looks", 10), (2, "none", 3)]
    assert rows[-1]["known"] == 8 and "| 0.5 | 2 | none, top 3 | 8 /" in capsys.readouterr().out
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize("argv, words", [
    (("--rounds", "0"), "at least 1"), (("--look-at", "-1"), "0 or more"),
    (("--look-at", "3", "--rounds", "1"), "2 rounds"),
    (("--discovery", "0"), "discovery is 0"), (("--out", ""), "--out is empty"), (("--out", "."), "results to ."),
    (("--seeds", "a"), "int values"), (("--unlearn-epochs", "0"), "no suspects"),
    (("--discovery", "0.5,0.001"), "finds none"),
    (("--task", "poison,confusion", "--pair", "3,10"), "pair is 3,10"),  # of the last task
    (("--discovery", "0.5,1.0", "--look-at", "5", "--flag-top", "5880"),
     "--flag-top is 5880, by which all 6000 images can be in D_f by round 2; give at most 5879"),
    (("--n", "6000", "--discovery", "0.5", "--rounds", "4", "--look-at", "1000"), "--look-at is 1000, by which all"),
])
def test_bad_input_is_one_line(argv, words, capsys, tmp_path):
    """S17: one line on stderr and exit code 2, before any training."""
    assert words in refusal(capsys, "suspects", "--out", tmp_path / "s.jsonl", *argv) and not list(tmp_path.iterdir())


def test_a_rate_that_finds_all_leaves_no_scores_to_wait_for(monkeypatch):
    """S17, R5: 0.96 of ten is ten: the row of the round is all that there will be."""
    monkeypatch.setattr(on_cells, "rows_there", lambda cells: [{"round": 1, "user": "", "looked": 0}])
    for rate, done in ((1.0, True), (0.96, True), (0.9, False)):
        assert on_cells.is_done(resolve({"n": 10, "discovery": rate}), (1, [])) == done
