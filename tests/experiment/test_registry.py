"""R1, R2: how methods are found and run: those of METHODS by name, and one's own by FILE.py:FUNCTION.

The methods themselves are in tests/paper/test_baselines.py.
"""

import inspect
import warnings
from pathlib import Path

import pytest

import run
from experiment.cell import choose_methods, unlearn
from experiment.methods import METHODS, allowed_with
from experiment.settings import Config, resolve
from helpers import tiny
from tasks import Task
from test_baselines import stubborn

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "my_method.py") + ":relabel"


def chosen(method, etd=False):
    """Names that the command line would run."""
    return list(choose_methods(resolve({"method": method, "etd": etd})))


@pytest.mark.parametrize("name, made_with", [
    ("potion", {"tries": 50, "part": 1, "relative": False}),
    ("potion-500", {"tries": 500, "part": 25, "relative": True}),
    ("badt", {"over_classes": True}), ("badt-sum", {"over_classes": False}),
    ("rem-no31", {"fixed": {"step31": False, "step32": True}}),
    ("rem-no32", {"fixed": {"step31": True, "step32": False}}), ("rem-ce", {"fixed": {"redirect": "ce"}}),
])
def test_a_name_is_its_variant(name, made_with):
    """R2: a name stands for the variant that the pages describe; networks so small seldom tell one from another."""
    assert inspect.getclosurevars(METHODS[name].function).nonlocals == made_with


def test_choose_methods():
    """R2: a,b,c in order and once; all is every method that has meaning with or without --etd, IDEAL included."""
    assert chosen("cf, rem,cf,,no-ul") == ["cf", "rem", "no-ul"]
    variants = {"badt-sum", "potion-500"}
    assert {name for name in METHODS if not allowed_with(name, False)} == {"rem-on-etd"}
    assert set(METHODS) - set(chosen("all")) == {"rem-on-etd", *variants}
    assert set(METHODS) - set(chosen("all", etd=True)) == {"rem-on-etd", "retrain", "etd", "etd-ideal", *variants}
    assert chosen("all,potion-500,badt-sum")[-2:] == ["potion-500", "badt-sum"]
    assert chosen("all,rem-on-etd", etd=True)[-1] == "rem-on-etd"
    assert chosen(f"{EXAMPLE},cf") == ["my_method.py:relabel", "cf"]
    assert chosen(f"all,{EXAMPLE}")[-1] == "my_method.py:relabel"
    assert choose_methods(resolve({"method": "all", "etd": True}))["rem"] is METHODS["rem"].function
    assert set(chosen(Config.method)) <= set(METHODS)


@pytest.mark.parametrize("method, etd, text", [
    ("rem-on-etd", False, "rem-on-etd works on an ETD-trained network; add --etd"),
    ("cf,retrain", True, "retrain trains a network of its own; leave out --etd"),
    ("etd", True, "etd trains a network of its own"), ("etd-ideal", True, "etd-ideal trains a network of its own"),
    ("nowhere/mine.py:f", False, "no file nowhere/mine.py for method nowhere/mine.py:f"),
])
def test_refused_methods(method, etd, text, tmp_path, capsys, monkeypatch):
    """R2: a method that cannot run is one line on stderr and exit code 2, before any data is loaded."""
    monkeypatch.setattr(run, "load", lambda *args: pytest.fail("too late"))
    code = run.main(["--method", method, "--etd" if etd else "--no-etd", "--out", str(tmp_path / "rows.jsonl")])
    error = capsys.readouterr().err
    assert code == 2 and error.startswith(f"run.py: {text}") and error.count("\n") == 1


@pytest.mark.parametrize("name, gamma, gave_up", [("potion", 0.5, False), ("potion", 0.4, True), ("ascent", 0.5, False),
                                                  ("potion-500", 0.5, True), ("potion-500", 1.0, False)])
def test_gave_up_by_the_bound_that_holds(name, gamma, gave_up):
    """R1: a row says that a method gave up where its own stop was not met: Potion's, as released, is gamma times what
    the original network had, which here is one half and stays it."""
    net, data, forget = stubborn()
    task = Task("random", 0, data, data, data.labels, forget.sort().values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = unlearn(tiny(gamma=gamma, max_passes=3), name, METHODS[name].function, net, task, forget)
    assert row["status"] == "ok" and row["gave_up"] == gave_up and (row["passes"] == 0) == (not gave_up)
