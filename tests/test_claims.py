"""results/claims: every verdict by its rule on made rows. That the page is what the command makes is checked by CI."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pandas", reason="tables need pandas: pip install -r requirements-optional.txt")

from made_rows import make_row, row_of  # noqa: E402
from results.claims import statements  # noqa: E402
from results.claims.statements import (PLACES, STATEMENTS, VERDICTS, Check, Statement, above, below,  # noqa: E402
                                       level, made, verdict)
from study.rows import canonical  # noqa: E402
from tasks import TASKS  # noqa: E402

RATES, SEEDS = (0.1, 0.5, 1.0), (0, 1, 2)
EMPTY = {name: [] for name in PLACES}
TEXTS = {statement.text: statement for statement in STATEMENTS}


def statement(words: str) -> Statement:
    """The one statement that has these words."""
    found = [TEXTS[text] for text in TEXTS if words in text]
    assert len(found) == 1
    return found[0]


def rows(scores: dict, seeds=SEEDS, **settings) -> list[dict]:
    """Rows of the nine cells of each method, its product by task or one for all; it varies a little with the seed."""
    found = []
    for method, product in scores.items():
        by_task = product if isinstance(product, dict) else dict.fromkeys(TASKS, product)
        for task, of in by_task.items():
            for rate in RATES:
                value = of(rate) if callable(of) else of
                change = 0.001 * (-1) ** len(method)
                found += [canonical(row_of(value + change * seed, method, task=task, discovery=rate, seed=seed,
                                           **settings)) for seed in seeds]
    return found


def verdict_of(words: str, **places) -> str:
    """The verdict on a statement where these data sets have rows and the others none; _ is written for a space."""
    there = {name.replace("_", " "): part for name, part in places.items()}
    return verdict(statement(words).measure({**EMPTY, **there}))


# --- Rules ------------------------------------------------------------------------------------------------------------


def check(holds) -> Check:
    return Check("made", "number", 1.0, None, 2, holds)


@given(st.lists(st.sampled_from((True, False, None))))
def test_a_verdict_follows_from_the_checks_that_decide(holds):
    """All hold: reproduced; some: partly; none: not reproduced; no check decides: not measured."""
    found = verdict([check(each) for each in holds])
    right, wrong = holds.count(True), holds.count(False)
    assert found == VERDICTS[3 if not right and not wrong else 0 if not wrong else 1 if right else 2]


@given(st.floats(-100, 100), st.floats(0, 100), st.floats(-100, 100))
def test_the_rules_take_two_standard_errors(mean, error, limit):
    """A number is never both above and below; a level one stays level with a smaller error; without an error it can
    only fail."""
    assert not (above(mean, error, limit) and below(mean, error, limit))
    assert level(mean, error) is False or level(mean, error / 2)
    assert above(mean, None, limit) is (None if mean > limit else False)
    assert below(mean, None, limit) is (None if mean < limit else False)
    assert level(mean, None) is (None if abs(mean) < statements.LEVEL else False)


def test_the_rules_at_their_bounds():
    assert above(2.1, 1.0) and not above(2.0, 1.0)
    assert below(7.9, 1.0, 10) and not below(8.0, 1.0, 10)
    assert level(-2.9, 1.0) and not level(3.0, 1.0) and not level(0.0, 2.5)


# --- Statements -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("each", STATEMENTS, ids=lambda each: each.text)
def test_without_rows_a_statement_is_not_measured(each):
    assert verdict(each.measure(EMPTY)) == "not measured"


@pytest.mark.parametrize("words, good, bad", [
    ("REM leads every method without ETD", {"rem": 0.7, "npo": 0.5, "scrub": 0.6},
     {"rem": 0.7, "npo": 0.5, "scrub": 0.8}),
    ("REM is far ahead of NPO", {"rem": 0.7, "npo": 0.5}, {"rem": 0.5, "npo": 0.7}),
    ("no gold standard", {"rem": 0.7, "retrain": 0.5}, {"rem": 0.5, "retrain": 0.7}),
    ("Redirection", {"rem": 0.7, "rem-no31": 0.5}, {"rem": 0.5, "rem-no31": 0.7}),
    ("adds to the score", {"rem": 0.7, "rem-no32": 0.5}, {"rem": 0.5, "rem-no32": 0.7}),
    ("adds healing", {"rem": 0.7, "rem-no32": 0.5}, {"rem": 0.5, "rem-no32": 0.7}),
    ("REM (IDEAL)", {"rem": 0.70, "rem-ideal": 0.71}, {"rem": 0.5, "rem-ideal": 0.7}),
    ("Potion excels", {"potion": {"poison": 0.7, "random": 0.4}}, {"potion": {"poison": 0.4, "random": 0.7}}),
    ("Ascent does worse", {"ascent": {"poison": 0.7, "random": 0.4}}, {"ascent": {"poison": 0.4, "random": 0.7}}),
    ("no sudden breakdown", {"rem": 0.7}, {"rem": {"poison": 0.7, "confusion": 0.1, "random": 0.7}}),
    ("Ascent beats many", {"ascent": 0.7, "badt": 0.3}, {"ascent": 0.3, "badt": 0.7}),
    ("adds stability", {"rem": 0.5, "rem-no32": {"poison": lambda rate: 0.1 + 0.6 * (rate == 0.5)}},
     {"rem": {"poison": lambda rate: 0.1 + 0.6 * (rate == 0.5)}, "rem-no32": 0.5}),
])
def test_a_statement_holds_on_none_one_or_both_data_sets(words, good, bad):
    """Made rows give each of the verdicts; a single seed gives none, and can contradict."""
    both = {"good": rows(good), "bad": rows(bad)}
    places = {"fashion-mini": both["good"], "10,000_images": both["bad"]}
    assert verdict_of(words, **places) == "partly"
    assert verdict_of(words, **dict.fromkeys(places, both["good"])) == "reproduced"
    assert verdict_of(words, **dict.fromkeys(places, both["bad"])) == "not reproduced"
    if words != "REM is far ahead of NPO":
        return
    single = {name: rows(scores, seeds=(0,)) for name, scores in (("good", good), ("bad", bad))}
    assert verdict_of(words, **{"fashion-mini": single["good"]}) == "not measured"
    assert verdict_of(words, **{"fashion-mini": single["bad"]}) == "not measured"
    assert verdict_of(words, **{"fashion-mini": both["good"], "10,000_images": single["good"]}) == "reproduced"
    assert verdict_of(words, **{"fashion-mini": both["good"], "10,000_images": single["bad"]}) == "partly"


@pytest.mark.parametrize("method, words", [("retrain", "Retraining loses"), ("scrub", "SCRUB loses")])
def test_losses_by_regularity(method, words):
    """The loss of a task is its score at the highest rate less that at the lowest."""
    def losing(*shares):
        return rows({method: {task: (lambda rate, share=share: 0.1 + share * rate)
                              for task, share in zip(TASKS, shares, strict=True)}})
    expected = {(0.7, 0.4, 0.1): "reproduced", (0.7, 0.1, 0.4): "partly", (0.1, 0.4, 0.7): "not reproduced"}
    for shares, text in expected.items():
        assert verdict_of(words, **{"fashion-mini": losing(*shares)}) == text


def test_example_tied_dropout():
    """ETD alone, REM on ETD, and rivals on ETD."""
    plain = rows({"no-ul": 0.2, "npo": 0.4, "rem": 0.7})
    good = plain + rows({"no-ul": {"poison": 0.1, "confusion": 0.5, "random": 0.7}, "npo": 0.6, "rem": 0.7}, etd=True)
    bad = plain + rows({"no-ul": {"poison": 0.3, "confusion": 0.1, "random": 0.1}, "npo": 0.3, "rem": 0.2}, etd=True)
    for words in ("ETD alone succeeds", "ETD alone is far better", "level with REM", "REM on ETD leads", "ETD helps",
                  "ETD alone outperforms"):
        assert verdict_of(words, **{"fashion-mini": good}) == "reproduced", words
        assert verdict_of(words, **{"fashion-mini": bad}) == "not reproduced", words


def points(base: float, full: float, healed=(0.8,) * 13) -> list[dict]:
    return [{"epoch": k, "base": base, "full": full, "healed": value} for k, value in enumerate(healed)]


@pytest.mark.parametrize("base, full, text", [(0.05, 0.9, "reproduced"), (0.05, 0.1, "partly"),
                                              (0.9, 0.1, "not reproduced")])
def test_the_channel(base, full, text):
    made_rows = [canonical({**make_row("rem", seed=seed), "points": points(base, full + 0.01 * seed)})
                 for seed in SEEDS]
    assert verdict_of("that of base and channel", **{"fashion-mini,_five_epochs": made_rows}) == text


@pytest.mark.parametrize("last, text", [(0.79, "reproduced"), (0.4, "not reproduced")])
def test_what_comes_back(last, text):
    found = [canonical({**make_row("rem", healed=last, seed=seed), "points": points(0.1, 0.9)}) for seed in SEEDS]
    assert verdict_of("not reintroduced", **{"poison_0.1,_twelve_epochs": found}) == text


@pytest.mark.parametrize("random, poison, text", [("apart", "alike", "reproduced"), ("alike", "alike", "partly"),
                                                  ("alike", "apart", "not reproduced")])
def test_healing_of_train_and_test(random, poison, text):
    """Alike: the test images heal as the training images do; apart: the other way round."""
    found = [canonical({**make_row("npo", healed=rate, task=task, discovery=rate, seed=seed),
                        "healed_test": rate if kind == "alike" else 1 - rate})
             for task, kind in (("random", random), ("poison", poison)) for rate in RATES for seed in SEEDS]
    assert verdict_of("goes together", **{"fashion-mini": found}) == text


@pytest.mark.parametrize("times, text", [((9, 5, 3, 1), "reproduced"), ((5, 9, 3, 1), "partly"),
                                         ((1, 3, 5, 9), "not reproduced")])
def test_the_order_of_costs(times, text):
    found = [canonical({**make_row(method, discovery=rate, seed=seed), "seconds": 1.0 * value}) for rate in RATES
             for seed in SEEDS for method, value in zip(("badt", "scrub", "rem", "npo"), times)]
    assert verdict_of("costs more time", **{"fashion-mini": found}) == text


@pytest.mark.parametrize("healed, text", [((0.77, 0.78, 0.75), "reproduced"), ((0.77, 0.5, 0.75), "not reproduced")])
def test_seeds_of_the_mask(healed, text):
    found = [canonical(make_row("rem", healed=value, task="random", seed=seed)) for seed, value in enumerate(healed)]
    assert verdict_of("seed of the mask", **{"fashion-mini": found}) == text


@pytest.mark.parametrize("by_task, text", [((0.8, 0.6, 0.1), "reproduced"), ((0.8, 0.1, 0.6), "partly"),
                                           ((0.1, 0.6, 0.8), "not reproduced")])
def test_the_order_of_regularity(by_task, text):
    found = [{"task": task, "seed": seed, "score": score} for task, score in zip(TASKS, by_task) for seed in SEEDS]
    assert verdict_of("By the C-score", **{"C-score": found}) == text


@pytest.mark.parametrize("five, text", [(0.71, "reproduced"), (0.5, "not reproduced")])
def test_masks_and_capacities(five, text):
    found = rows({"rem": 0.7}) + rows({"rem": five}, p_mem=0.05)
    assert verdict_of("Masks of 5 %", **{"fashion-mini": found}) == text
    found = rows({"no-ul": five}) + rows({"no-ul": 0.6}, capacity=1.0)
    assert verdict_of("smaller capacity", **{"fashion-mini": found}) == text


# --- Rows that count --------------------------------------------------------------------------------------------------


def test_rem_plus_stands_in_and_is_named():
    """`rem` counts where it was run; else REM+ does and the line says so."""
    plus = rows({"rem-plus": 0.7, "npo": 0.5})
    for part, named in ((plus, True), (plus + rows({"rem": 0.4}), False)):
        found = statement("REM is far ahead of NPO").measure({**EMPTY, "fashion-mini": part})
        assert ("REM+ only" in statements.ours(found)) is named
        assert verdict(found) == ("reproduced" if named else "not reproduced")


def test_a_seed_that_is_half_measured_does_not_count():
    part = rows({"rem": 0.7, "npo": 0.5}) + rows({"rem": {"poison": 0.1}, "npo": {"poison": 0.5}}, seeds=(3,))
    found, = statement("REM is far ahead of NPO").measure({**EMPTY, "fashion-mini": part})
    assert (found.seeds, found.cells) == (3, 9)


# --- The page ---------------------------------------------------------------------------------------------------------


def test_the_four_tables_agree():
    """The count counts the table's verdicts; front and against are parts of it, and each failure has its thought."""
    rows_by = {**EMPTY, "fashion-mini": rows({"rem": 0.5, "npo": 0.7, "rem-no31": 0.3})}
    header, lines = made("all", STATEMENTS, rows_by)
    found = [line[-1] for line in lines]
    counts = [str(found.count(name)) for name in VERDICTS]
    assert made("count", STATEMENTS, rows_by)[1] == [[*counts, str(len(STATEMENTS))]]
    assert len(made("front", STATEMENTS, rows_by)[1]) == 5 + 1
    failed = [line[1] for line in lines if line[-1] == VERDICTS[2]]
    assert [text for text, _ in made("against", STATEMENTS, rows_by)[1]] == failed
    assert all(len(line) == len(header) and "|" not in "".join(line) for line in lines)
    with pytest.raises(ValueError, match="choose from all, count, front, against"):
        made("most", STATEMENTS, rows_by)


def test_what_is_not_reproduced_has_a_thought():
    assert all(all(line) for line in made("against", STATEMENTS, statements.world())[1])
