"""spread.py: runs are made once, a killed run is made again, and the table's numbers are those of the rows."""

import itertools
import json
import math
import re
from pathlib import Path
from statistics import fmean, stdev

import spread


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def test_runs_are_made_once(tmp_path, monkeypatch, capsys):
    """Every kind, capability, number of threads and seed has one row; a second call makes those alone that are
    missing."""
    made = []

    def scripted(kinds, isa, threads, seed):
        made.append((tuple(kinds), isa, threads, seed))
        return [{"kind": kind, "healed": seed / 10} for kind in kinds if (kind, seed) != ("etd", 1) or len(made) > 4]

    monkeypatch.setattr(spread, "claims_of", scripted)
    out = tmp_path / "new" / "rows.jsonl"
    argv = ["--out", str(out), "--isa", "AVX2", "default", "--threads", "1", "--seeds", "0", "1",
            "--kinds", "poison", "etd"]
    assert spread.main(argv) == 1 and len(made) == 4 and len(rows(out)) == 6  # etd failed at seed 1
    out.write_text(out.read_text(encoding="utf-8") + '{"kind": "poi')  # a kill in the middle of a line
    assert spread.main(argv) == 0
    assert made[4:] == [(("etd",), "AVX2", 1, 1), (("etd",), "default", 1, 1)]
    assert len(rows(out)) == 8
    assert spread.main(argv) == 0 and len(made) == 6
    assert "left out of" in capsys.readouterr().err


def test_the_table(tmp_path, capsys):
    """Mean, SD, range, what one seed moves by between machines, and the mean of three seeds with K standard errors."""
    values = {("AVX2", 0): 0.5, ("AVX2", 1): 0.9, ("default", 0): 0.7, ("default", 1): 0.8}
    origin = {"threads": 1, "torch": "2.13.0", "native": "AVX512", "seconds": 1.0}
    out = tmp_path / "rows.jsonl"
    out.write_text("".join(json.dumps({"kind": "poison", "healed": value, "isa": isa, "seed": seed} | origin) + "\n"
                           for (isa, seed), value in values.items()))
    assert spread.main(["--out", str(out), "--table"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("Made on: AVX512, torch 2.13.0. ISA: AVX2, default.")
    mean, sd = fmean(values.values()), stdev(values.values())
    half = spread.K * sd / math.sqrt(spread.TESTED)
    assert told.splitlines()[-1] == (f"| poison: healed | 4 | {mean:.3f} | {sd:.3f} | 0.500 | 0.900 | 0.200 | "
                                     f"{mean - half:.2f} to {mean + half:.2f} |")


def test_a_run_is_another_machine(monkeypatch):
    """A run's process has its own capability and threads, whatever this one has."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert "ONEDNN_MAX_CPU_ISA" not in spread.environment("default", 2)
    found = spread.environment("AVX2", 1)
    assert (found["ONEDNN_MAX_CPU_ISA"], found["OMP_NUM_THREADS"]) == ("AVX2", "1")


BOUND = re.compile(r'mean\("(\w+)", "([^"]+)"\) (>=|<=) (-?[\d.]+)')


def test_no_bound_is_within_reach_of_the_spread():
    """Every bound on an outcome lies at least K standard errors of the measured spread from its mean, on the right
    side; the table of tests/README.md is that of the measurements: all kinds, capabilities, threads and seeds."""
    found = rows(spread.ROOT / "results" / "spread" / "outcomes.jsonl")
    asked = spread.parse(["--out", "x"])
    assert sorted((row["kind"], row["isa"], row["threads"], row["seed"]) for row in found) == sorted(
        itertools.product(asked.kinds, asked.isa, asked.threads, asked.seeds))
    assert spread.table(found) in (spread.ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    others = [path for path in (spread.ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    text = "".join(path.read_text(encoding="utf-8") for path in others)
    bounds = BOUND.findall(text)
    assert len(bounds) == text.count('mean("') > 15  # none is written in a way that this test does not read
    for kind, name, sign, bound in bounds:
        values = [row[name] for row in found if row["kind"] == kind]
        distance = (fmean(values) - float(bound)) * (1 if sign == ">=" else -1)
        assert distance > 0 and distance >= spread.K * stdev(values) / math.sqrt(spread.TESTED), (kind, name)
