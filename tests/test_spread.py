"""spread.py: the bounds of the outcome tests lie out of reach of the spread over machines."""

import itertools
import math
import re
from pathlib import Path
from statistics import fmean, stdev

import spread

BOUND = re.compile(r'mean\("([\w-]+)", "([^"]+)"\) (>=|<=) (-?[\d.]+)')


def test_no_bound_is_within_reach_of_the_spread():
    """Every bound on an outcome lies at least K standard errors of the measured spread from its mean, on the right
    side; the table of tests/README.md is that of the measurements: all kinds, capabilities, threads (of "rem" one) and
    seeds."""
    found = spread.rows_of(spread.ROOT / "results" / "spread" / "outcomes.jsonl")
    asked = spread.parse(["--out", "x"])
    runs = [(row["kind"], row["isa"], row["threads"], row["seed"]) for row in found]
    wanted = set(itertools.product(asked.kinds, asked.isa, asked.threads, asked.seeds))
    assert len(set(runs)) == len(runs) and wanted - set(runs) <= {
        run for run in wanted if run[0] == "rem" and run[2] > 1}
    assert spread.table(found) in (spread.ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    others = [path for path in (spread.ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    text = "".join(path.read_text(encoding="utf-8") for path in others)
    bounds = BOUND.findall(text)
    assert len(bounds) == text.count('mean("') > 15  # none is written in a way that this test does not read
    for kind, name, sign, bound in bounds:
        values = [row[name] for row in found if row["kind"] == kind]
        distance = (fmean(values) - float(bound)) * (1 if sign == ">=" else -1)
        least = spread.FEWER.get(kind, spread.K) * stdev(values) / math.sqrt(spread.TESTED)
        assert distance > 0 and distance >= least, (kind, name)
