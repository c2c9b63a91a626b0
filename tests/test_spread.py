"""spread.py: runs are made once, a killed run is made again, and the bounds of outcomes lie out of its reach."""

import itertools
import math
import re
from pathlib import Path
from statistics import fmean, stdev

import spread


def test_runs_are_made_once(tmp_path, monkeypatch, capsys):
    """Every kind, capability, number of threads and seed has one row; a second call makes what is missing."""
    made = []

    def scripted(kinds, isa, threads, seed):
        made.append((tuple(kinds), isa, threads, seed))
        return [{"kind": kind, "healed": seed / 10} for kind in kinds if (kind, seed) != ("etd", 1) or len(made) > 4]

    monkeypatch.setattr(spread, "claims_of", scripted)
    out = tmp_path / "new" / "rows.jsonl"
    argv = ["--out", str(out), "--isa", "AVX2", "default", "--threads", "1", "--seeds", "0", "1",
            "--kinds", "rem", "etd"]
    assert spread.main(argv) == 1 and len(made) == 4 and len(spread.rows_of(out)) == 6  # etd failed at seed 1
    out.write_text(out.read_text(encoding="utf-8") + '{"kind": "re')  # a kill in the middle of a line
    assert spread.main(argv) == 0
    assert made[4:] == [(("etd",), "AVX2", 1, 1), (("etd",), "default", 1, 1)]
    assert "left out of" in capsys.readouterr().err
    assert len(spread.rows_of(out)) == 8
    assert spread.main(argv) == 0 and len(made) == 6


def test_a_run_is_another_machine(monkeypatch):
    """A run's process has its own capability and threads, whatever this one has."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert "ONEDNN_MAX_CPU_ISA" not in spread.environment("default", 2)
    found = spread.environment("AVX2", 1)
    assert (found["ONEDNN_MAX_CPU_ISA"], found["OMP_NUM_THREADS"]) == ("AVX2", "1")


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
