"""study/rows.py, `named`: what versions before 0.7 called `rem`, and that no stored row loses a number by it."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiment.methods import METHODS
from experiment.settings import VERSION, Config
from made_rows import ROOT, load, make_row
from study.rows import LATER, named, read_file

OFF = dict(stop="max", reach=0.0, disbelieved=0.0)  # nothing is left from which the fourth change could start over
OF_REM = {"rem": "rem-plus", "rem-on-etd": "rem-plus", "rem-ideal": "rem-plus-ideal", "rem-no31": "rem-plus-no31",
          "rem-no32": "rem-plus-no32", "rem-ce": "rem-plus-ce"}  # before 0.7, and what ran under that name
BEFORE = [None, "0.1", "0.2.0", "0.6.0", "0.6.6", "0.6.10"]
SINCE = ["0.7.0", "0.7.12", "0.10.0", "1.0.0", "1.0", VERSION]
LINES = {str(path.relative_to(ROOT)): path for path in sorted((ROOT / "results").rglob("*.jsonl"))}


def old(method="rem", version="0.6.6", **settings) -> dict:
    """A row of an earlier version."""
    return {**make_row(method, **settings), "version": version}


@given(st.sampled_from(sorted(METHODS)), st.sampled_from(BEFORE), st.sampled_from(["max", "repaired"]),
       st.sampled_from([0, 0.0, 0.02, 0.07]), st.sampled_from([0.0, 2.0]), st.integers(0, 2))
def test_before_0_7_the_settings_name_a_row(method, version, stop, reach, disbelieved, farther):
    """R9: all changes of REM+ off: the row is of what it says; any of them on: of REM+, and so for ablations and
    REM (IDEAL). Other methods keep their names, and nothing but the name changes."""
    row = old(method, version, stop=stop, reach=float(reach), disbelieved=disbelieved, farther=farther)
    off = stop == "max" and reach == 0 and disbelieved == 0
    expected = method if off or method not in OF_REM else OF_REM[method]
    if not method.startswith("rem-plus"):  # which no earlier version knew
        assert named(row) == {**row, "method": expected}


@given(st.sampled_from(sorted(METHODS)), st.sampled_from(SINCE), st.sampled_from(["max", "repaired"]),
       st.sampled_from([0.0, 0.07]), st.sampled_from([0.0, 2.0]))
def test_from_0_7_on_a_row_says_what_it_is(method, version, stop, reach, disbelieved):
    """R9: whatever the settings are, which `rem` does not read."""
    row = old(method, version, stop=stop, reach=reach, disbelieved=disbelieved)
    assert named(row) == row


@pytest.mark.parametrize("method", ["rem.py:rem", "remote.py:f", "rem-of-mine", "removed"])
def test_a_name_of_somebody_else_stays(method):
    """R9: a user's method and a name that is no method's are not REM's, however they begin."""
    assert named(old(method)) == old(method)


def test_old_and_new_rows_of_one_run_are_one(tmp_path):
    """R3, R9: a row of REM+ from before 0.7 and one of rem-plus are of one run, and so are an old row without the
    changes and a new one of rem, whose settings of REM+ do not matter; REM and REM+ are never one."""
    found = load(tmp_path, [old(healed=0.1), make_row("rem-plus", 0.2), old(healed=0.3, **OFF), make_row("rem", 0.4),
                            make_row("rem", 0.5, reach=0.3)])
    assert {row["method"]: row["healed"] for row in found} == {"rem-plus": 0.2, "rem": 0.5} and len(found) == 2
    etd = load(tmp_path, [old("rem-on-etd", etd=True), old("rem", etd=True)])  # two names of one run
    assert [(row["method"], row["etd"]) for row in etd] == [("rem-plus", True)]


@pytest.mark.parametrize("name", LINES)
def test_stored_rows_keep_their_numbers(name):
    """R3, R9: every line of results/ that is a method's row is read, and all that it holds but the name of the method
    is what is written there; REM's changes name by the rule."""
    written = [json.loads(line) for line in LINES[name].read_text(encoding="utf-8").splitlines() if line.strip()]
    written = [{**LATER, **row} for row in written]  # settings that are younger than the row have one value
    written = [row for row in written if asdict(Config()).keys() <= row.keys()]
    found = read_file(Path(LINES[name]))
    assert len(found) == len(written)
    for before, after in zip(written, found, strict=True):
        assert {**after, "method": before["method"]} == before
        version = [int(part) for part in before["version"].split(".")]
        off = all(before[setting] == value for setting, value in OFF.items())
        renamed = version < [0, 7] and before["method"] in OF_REM and not off
        assert after["method"] == (OF_REM[before["method"]] if renamed else before["method"])
