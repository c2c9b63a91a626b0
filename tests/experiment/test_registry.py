"""How methods are found: those of METHODS by name, and one's own by FILE.py:FUNCTION.

The methods themselves, and which variant a name stands for, are in tests/paper.
"""

from pathlib import Path

import pytest

import run
from experiment.cell import choose_methods
from experiment.methods import METHODS, allowed_with
from experiment.settings import Config, resolve
from few_images import refusal

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "my_method.py") + ":relabel"


def chosen(method, etd=False):
    """Names that the command line would run."""
    return list(choose_methods(resolve({"method": method, "etd": etd})))


def test_choose_methods():
    """R2: a,b,c in order and once; all is every method that has meaning with or without --etd, IDEAL included."""
    assert chosen("cf, rem,cf,,no-ul") == ["cf", "rem", "no-ul"]
    variants = {"badt-sum", "potion-500", "rem-plus-ideal", "rem-plus-no31", "rem-plus-no32", "rem-plus-ce",
                "abl", "d-br", "sap", "step2-cf"}
    assert {name for name in METHODS if not allowed_with(name, False)} == {"rem-on-etd"}
    assert set(METHODS) - set(chosen("all")) == {"rem-on-etd", *variants}
    assert set(METHODS) - set(chosen("all", etd=True)) == {"rem-on-etd", "retrain", "etd", "etd-ideal", *variants}
    assert chosen("all,potion-500,badt-sum")[-2:] == ["potion-500", "badt-sum"]
    assert chosen("all,rem-on-etd", etd=True)[-1] == "rem-on-etd"
    assert chosen(f"{EXAMPLE},cf") == ["my_method.py:relabel", "cf"]
    assert chosen(f"all,{EXAMPLE}")[-1] == "my_method.py:relabel"
    assert choose_methods(resolve({"method": "all", "etd": True}))["rem"] is METHODS["rem"].function
    assert chosen(Config.method) == ["no-ul", "cf", "npo", "rem", "rem-plus"]  # the default


@pytest.mark.parametrize("method, etd, text", [
    ("rem-on-etd", False, "rem-on-etd works on an ETD-trained network; add --etd"),
    ("cf,retrain", True, "retrain trains a network of its own; leave out --etd"),
    ("nowhere/mine.py:f", False, "no file nowhere/mine.py for method nowhere/mine.py:f"),
])
def test_refused_methods(method, etd, text, tmp_path, capsys, monkeypatch):
    """R2: a method that cannot run is one line on stderr and exit code 2, before any data is loaded."""
    monkeypatch.setattr(run, "load", lambda *args: pytest.fail("too late"))
    told = refusal(capsys, "--method", method, "--etd" if etd else "--no-etd", "--out", tmp_path / "rows.jsonl")
    assert told.startswith(f"run.py: {text}")
