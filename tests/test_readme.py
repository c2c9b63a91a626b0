"""The READMEs of the root, of results/, study/ and tests/, and .ci/run: commands run, numbers are those of the result
files, links exist, every property has its tests."""

import itertools
import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from statistics import fmean, stdev

import pytest

import index
import run
from benchmarks import growth, scale
from metrics import mean_sem
from experiment.methods import METHODS
from study.rows import SCORES, etd_alone, load_rows, networks, pick, products
from experiment.settings import Config, PLACE, resolve
from tasks import TASKS
from study import discovery, plan, report
from study.tables import PAPER, make_tables

ROOT = Path(run.__file__).resolve().parent
DOCS = {name: (ROOT / name).read_text(encoding="utf-8")
        for name in ("README.md", "results/README.md", "study/README.md")}
README, RESULTS = DOCS["README.md"], DOCS["results/README.md"]
FLAT = " ".join(README.split())  # without line breaks
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
INSTALL = "python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt && "
PYTHON = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if "run.py" in line]
EVERY = [line for text in DOCS.values() for kind, block in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
         if kind == "bash" for line in block.replace("\\\n", " ").splitlines() if "run.py" in line]
SMALL = ["--epochs", "1", "--unlearn-epochs", "1", "--n", "20", "--width", "0.1", "--max-passes", "1", "--gamma", "1",
         "--quiet"]


def commands():
    """Every call of run.py in the READMEs, as argument lists that begin with the program."""
    lines = EVERY + [found for text in DOCS.values() for found in re.findall(r"python (run\.py [^`;]*)[`;]", text)]
    found = [re.search(r"run\.py.*", line)[0].split("#")[0].split() for line in lines]
    return [argv for argv in found if argv[1:] != ["--help"]]


@pytest.mark.parametrize("argv", commands(), ids=" ".join)
def test_every_command_is_understood(argv):
    """R6: every command in the README parses, flags and values; a grid's cells and its preset exist."""
    program, *argv = [{"$seed": "0", "N": "120", "D": "0.5"}.get(word, word) for word in argv]
    words = not argv[0].startswith("-")
    given = vars(run.parser(words=words).parse_args(argv))
    if not words:
        run.choose_methods(resolve(given))
    elif given.pop("word") == "grid":
        axes = {name: text for name, text in given.items() if name in {f.name for f in fields(Config)} - PLACE}
        assert plan.preset(given["preset"], axes) if given.get("preset") else plan.expand_axes(axes)


def test_the_first_command_runs(tmp_path):
    """R6, R1: the README's main command, word for word but for its size, ends well."""
    line = PYTHON[0]
    assert line.startswith(INSTALL)
    argv = line.split("run.py", 1)[1].split()
    done = subprocess.run([sys.executable, ROOT / "run.py", *argv, *SMALL, "--out", tmp_path / "x"],
                          capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [words.split()[0] for words in done.stdout.splitlines()[2:]] == ["no-ul", "cf", "npo", "rem"]


def test_python_blocks_run(monkeypatch):
    """R6: the README's Python runs as it stands."""
    blocks = [block for kind, block in BLOCKS if kind == "python"]
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_the_printed_table_is_one_that_run_prints():
    """R6: the output that the README shows has the columns and methods that run.py prints."""
    shown = re.search(r"<!-- output -->\n```\n(.*?)```\n<!-- /output -->", README, re.DOTALL)[1].splitlines()
    start = next(i for i, line in enumerate(shown) if line.startswith("method"))
    assert shown[start] == run.table([]).strip()
    assert [line.split()[0] for line in shown[start + 1 : start + 5]] == ["no-ul", "cf", "npo", "rem"]


def test_ci_runs_the_test_command_word_for_word():
    """R6: .ci/run holds the README's test command."""
    tests = next(block.strip() for kind, block in BLOCKS if kind == "bash" and "pytest" in block)
    assert tests == INSTALL + ".venv/bin/python -m pytest"
    assert tests in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("doc", DOCS)
def test_names_in_the_readmes_exist(doc):
    """R6: every file, module, function and link that a README names is there."""
    text = DOCS[doc]
    for module, name in re.findall(r"`(\w+)\.(\w+(?:\.\w+)*)`", text):
        if (ROOT / f"{module}.py").exists() and name not in ("py", "csv", "png"):
            found = __import__(module)
            for part in name.split("."):
                found = getattr(found, part)
    for path in re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|md|jsonl|txt|cff))`", text):
        places = ROOT, (ROOT / doc).parent, ROOT / "tests"
        assert any((at / path).exists() for at in places) or path.startswith("runs/"), path
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert ((ROOT / doc).parent / link).exists(), link


def test_the_readme_is_short():
    """R6: the README has at most 12 KB; what is longer has a README of its own."""
    assert len(README.encode()) <= 12 * 1024


# --- Figures ----------------------------------------------------------------------------------------------------------

RATES = (0.1, 0.5, 1.0)
ABLATIONS = {"rem-no31", "rem-no32", "rem-ce", "rem-ideal", "etd-ideal"}


def table(heading: str, number: int = 0) -> list[list[str]]:
    """The body of a table of a section of results/README.md, as cells."""
    section = RESULTS.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = [block for block in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[number].splitlines()[2:]]


def scores(rows: list[dict]) -> str:
    """Healed / Utility / product, means in percent."""
    return " / ".join(f"{100 * mean_sem(row[key] for row in rows)[0]:.0f}" for key in SCORES)


def plus_minus(rows: list[dict], key: str) -> str:
    """Mean and SEM in percent."""
    mean, sem = mean_sem(row[key] for row in rows)
    return f"{100 * mean:.1f} ± {100 * sem:.1f}"


def best_values(rows: list[dict]) -> list[dict]:
    """Of the runs in one cell those at the values of the settings that have the best mean product."""
    parts = {}
    for row in rows:
        parts.setdefault((row["alpha"], row["ssd_alpha"]), []).append(row)
    return max(parts.values(), key=lambda part: fmean(row["product"] for row in part))


def over_seeds(values: list[tuple]) -> str:
    """Mean and SEM over seeds of each seed's mean, in percent, of (seed, fraction)."""
    means = [100 * fmean(value for own, value in values if own == seed) for seed in sorted({own for own, _ in values})]
    return f"{fmean(means):.1f} ± {stdev(means) / len(means)**0.5:.1f}"


def test_the_tables_of_methods_are_what_report_prints():
    """R6: the tables of all methods and of the ablations are those that `run.py report` makes of the result files."""
    section = RESULTS.split("\n## All methods on fashion-mini\n")[1].split("\n## ")[0]
    rows = load_rows([ROOT / "results" / "fashion-mini" / "grid"])
    for name in ("plane", "ablations"):
        (made,) = make_tables(name, rows)
        printed = report.markdown(made).split("\n\n", 1)[1]
        assert printed in section, f"run.py report --table {name} prints another table"


def test_the_table_of_methods_is_that_of_the_results():
    """R6: every number of the table of all methods by its definition, and the paper's beside it."""
    rows = load_rows([ROOT / "results" / "fashion-mini" / "grid"])
    places = [(task, rate) for task in ("poison", "confusion", "random") for rate in RATES]
    shown, means = table("All methods on fashion-mini"), []
    paper = {(r["method"], r["etd"]): r["product"][0] for r in PAPER["tables"]["4"]["rows"] if r["capacity"] == 0.5}
    rem = {(r["task"], r["discovery"], r["seed"]): r["product"] for r in pick(rows, method="rem", etd=False)}
    for name, *cells, mean, seeds, count, less, pairs, learnt, best, ended, theirs in shown:
        method, etd = name.removesuffix(" on ETD"), name.endswith(" on ETD")
        method, etd = ("no-ul", True) if name == "ETD alone" else (method, etd)
        every = pick(etd_alone(rows), method=method, etd=etd, discovery=RATES)
        runs = pick(every, alpha=Config.alpha, ssd_alpha=Config.ssd_alpha)
        n = len({row["seed"] for row in runs})
        assert n == 5 and len(runs) == 9 * n and len(every) % (9 * n) == 0, name
        for (task, rate), cell in zip(places, cells, strict=True):
            product, _ = mean_sem(r["product"] for r in pick(runs, task=task, discovery=rate))
            assert cell == f"{100 * product:.0f}", (name, task, rate)
        assert mean == plus_minus(networks(runs), "product"), name
        assert seeds == over_seeds([(r["seed"], r["product"]) for r in runs]), name
        minus = over_seeds([(r["seed"], r["product"] - rem[r["task"], r["discovery"], r["seed"]]) for r in runs])
        assert (less, pairs) == (("", "") if name == "rem" else (minus, f"{n} × 9")), name
        assert count == (f"{n} × 3" if method == "no-ul" else f"{n} × 9")
        assert theirs == (f"{paper[method, etd]:.1f}" if (method, etd) in paper else ""), name
        if method == "no-ul":
            parts = [[r["learnt"] for r in pick(networks(runs), task=task)] for task in TASKS]
            assert learnt == " / ".join(f"{100 * fmean(part):.0f}" for part in parts), name
        else:
            assert learnt == "", name
        tops = [best_values(pick(every, task=task, discovery=rate)) for task, rate in places]
        assert best == (plus_minus(sum(tops, []), "product") if len(every) > len(runs) else ""), name
        own = networks(runs)
        idle = sum(r["passes"] == 0 for r in own) if METHODS[method].part in ("compared", "variant") else 0
        idle = 0 if method == "rem" else idle
        assert ended == f"{sum(r['gave_up'] for r in own)} / {idle}", name
        means.append(float(mean.split()[0]))
    compared = {key for key in ((r["method"], r["etd"]) for r in etd_alone(rows)) if key[0] not in ABLATIONS}
    assert means == sorted(means, reverse=True) and len(shown) == len(compared)


def test_the_table_of_ablations_is_that_of_the_results():
    """R6: every number of the table of ablations by its definition, over all runs on file."""
    rows = load_rows([ROOT / "results" / "fashion-mini" / "grid"])
    lines = table("All methods on fashion-mini", 1)
    assert {line[0] for line in lines} == {"rem", "rem on ETD", *ABLATIONS}
    rem = {(r["task"], r["discovery"], r["seed"]): r["product"] for r in pick(rows, method="rem", etd=False)}
    for method, n, *cells, mean, less, paired, seeds, _ in lines:
        runs = pick(rows, method=method.removesuffix(" on ETD"), etd=method.endswith(" on ETD"))
        assert len(runs) == 45 and int(n) == len(networks(runs)), method
        assert cells == [plus_minus(networks(pick(runs, task=task)), "product") for task in TASKS], method
        assert mean == plus_minus(networks(runs), "product"), method
        more = [(r, rem[r["task"], r["discovery"], r["seed"]] - r["product"]) for r in runs]
        more = [] if method.startswith("rem on") or method == "rem" else more
        assert less == (plus_minus([{"more": value} for _, value in more], "more") if more else ""), method
        assert paired == (f"{len(more)}" if more else ""), method
        shared = [(r["seed"], value) for r, value in more if r["discovery"] in RATES]
        assert seeds == (over_seeds(shared) if more else ""), method


def beside_the_papers(number: str, rows: list[dict]) -> list[list[str]]:
    """The lines with runs of a table of the paper as `run.py report` makes it: the scores and the paper's alone."""
    (made,) = make_tables(number, rows)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.markdown(made).splitlines()
             if line.startswith("|")]
    scores = [name + more for name in ("Healed", "Utility", "product") for more in ("", " (paper)")]
    places = [lines[0].index(name) for name in ("ETD", "method", "n", *scores)]
    return [[line[k] for k in places] for line in lines[2:] if line[places[2]]]


def test_the_tables_on_natural_images_are_those_of_the_results():
    """R6: Table 1's columns over the cells that were run on the copy of CIFAR-10, a column per cell, and ten rates."""
    rows = load_rows([ROOT / "results" / "cifar10-jpeg-16px"])
    assert table("CIFAR-10 at 16x16") == beside_the_papers("1", rows)
    (made,) = make_tables("plane", rows)
    printed = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.markdown(made).splitlines()
               if line.startswith("|")]
    shown = table("CIFAR-10 at 16x16", 1)
    names = ["method", *(f"{task} {rate:g}" for task in ("poison", "confusion", "random") for rate in RATES),
             "over seeds", "seeds", "minus REM", "learnt", "gave up / idle"]
    places = [printed[0].index(name) for name in names]
    assert shown == [[line[k] for k in places] for line in printed[2:]]
    lead, second = (re.fullmatch(r"-(.* ± .*)", line[names.index("minus REM")])[1] for name in ("npo", "ascent")
                    for line in shown if line[0] == name)
    words, readme = " ".join(RESULTS.split()), " ".join(README.split())
    assert f"in every seed, by {lead} over NPO and {second} over Ascent" in words
    assert f"at quarter width by {lead} (3 seeds)" in readme
    assert {(r["method"], r["seed"]) for r in rows} >= set(itertools.product(("rem", "no-ul", "npo"), (0, 1, 2)))
    at = {(row["method"], row["discovery"], row["seed"]): 100 * row["product"]
          for row in pick(rows, task="confusion", etd=False)}
    won = [[at[key] - at["no-ul", key[1], key[2]] for key in at if key[0] == name] for name in ("cf", "scrub")]
    (least, most), (low, high) = ((min(found), max(found)) for found in won)
    rem = products(pick(rows, method="rem", etd=False))
    behind = [row for row in pick(rows, method="rem", etd=True)
              if row["product"] < rem[row["task"], row["discovery"], row["seed"]]]
    less = next(line[names.index("minus REM")].removeprefix("-") for line in shown if line[0] == "rem on ETD")
    assert f"REM on ETD behind REM in all {len(behind)} runs, by {less} points" in words and len(behind) == 27
    assert f"in all nine runs, by {least:.1f} to {most:.1f} and {low:.1f} to {high:.1f} points" in words and least > 0
    first = networks(pick(rows, method="no-ul", etd=False, seed=0))
    ends = (fmean(100 * row[key] for row in first) for key in ("utility", "product"))
    assert "have Utility {:.1f}, product {:.1f}.".format(*ends) in words
    rows = [row for row in [*rows, *load_rows([ROOT / "results" / "rates" / "cifar10-jpeg-16px"])]
            if row["seed"] == 0]
    assert table("CIFAR-10 at 16x16", 2) == beside_the_papers("4", rows) and {row["width"] for row in rows} == {0.5}
    at = {(row["method"], row["task"], row["discovery"]): 100 * row["product"] for row in rows if not row["etd"]}
    rem = {task: [at[key] for key in at if key[:2] == ("rem", task)] for task in ("poison", "confusion", "random")}
    ends = [f"{min(found):.1f} to {max(found):.1f}" for found in rem.values()]
    assert "{} on poison, {} on confusion and {} on random labels".format(*ends) in words
    ahead = sum(at["rem", key[1], key[2]] > at[key] for key in at if key[0] == "npo")
    assert f"above NPO's in {ahead} of the 30 cells" in words and all(len(found) == 10 for found in rem.values())
    below = [[at[key] for key in at if key[:2] == (name, "poison") and key[2] < 1] for name in ("scrub", "retrain")]
    ends = [f"{min(found):.0f} to {max(found):.0f}" for found in below]
    assert "SCRUB's is {} on poison below discovery 1".format(ends[0]) in words
    assert f"and retraining's {ends[1]}: what D_r" in words and {len(found) for found in below} == {9}
    on_etd = [[100 * row["product"] for row in pick(rows, method="rem", task=task, etd=True)] for task in rem]
    assert {len(found) for found in on_etd} == {10}
    assert "REM on ETD's, {}, {} and {},".format(*(f"{min(f):.1f} to {max(f):.1f}" for f in on_etd)) in words
    assert all(100 * row["product"] < at["rem", row["task"], row["discovery"]]
               for row in pick(rows, method="rem", etd=True))


def in_float32() -> list[list[str]]:
    """The lines on the copy of CIFAR-10 in float32 and, after a stroke, in bf16: product in percent by rate."""
    folders = ("float32",), (".", "rates")
    both = [[row for name in names for row in load_rows([ROOT / "results" / name / "cifar10-jpeg-16px"])]
            for names in folders]
    lines = []
    for task, method in itertools.product(("poison", "confusion", "random"), ("no-ul", "npo", "rem", "badt")):
        cells = []
        for rate in [k / 10 for k in range(1, 11)]:
            found = [pick(rows, task=task, method=method, discovery=rate, etd=False, seed=0) for rows in both]
            cells.append(" / ".join(f"{100 * part[0]['product']:.1f}" if part else "" for part in found).strip())
        if not all(cell.startswith("/") for cell in cells):
            lines.append([task, method, *cells])
    return lines


def test_the_table_in_float32_is_that_of_the_results():
    """R6: the same cells in float32 and in bf16, and what the text says of them."""
    lines, words = in_float32(), " ".join(RESULTS.split())
    assert table("CIFAR-10 at 16x16", 3) == lines
    rows = load_rows([ROOT / "results" / "float32" / "cifar10-jpeg-16px"])
    assert {(row["precision"], row["seed"], row["width"], row["status"]) for row in rows} == {("float32", 0, 0.5, "ok")}
    half = load_rows([ROOT / "results" / "cifar10-jpeg-16px"])
    ends = []
    for wanted in (dict(method="no-ul"), dict(method="npo"), dict(method="rem", task="random")):
        runs = [pick(rows, discovery=RATES, **wanted)]
        runs += [pick(half, etd=False, seed=seed, **wanted) for seed in range(3)]
        assert {len(part) for part in runs} == {3 if "task" in wanted else 9}
        ends += [f"{100 * fmean(row['product'] for row in part):.1f}" for part in runs]
    assert "has {} in float32 and {} in bf16, ".format(*ends) in words
    assert "NPO {} and {} (bf16, seeds 1 and 2: {}, {})".format(*ends[4:]) in words
    assert "REM on random labels {} and {} ({}, {})".format(*ends[8:]) in words
    others = load_rows([ROOT / "results" / "rates" / "cifar10-jpeg-16px"])
    climb, level, single = ({row["discovery"]: 100 * row["product"] for row in sorted(
        pick([*rows, *half, *others], method=method, task="poison", seed=0, precision=precision),
        key=lambda row: row["discovery"])}
        for method, precision in (("badt", "bf16"), ("npo", "bf16"), ("badt", "float32")))
    assert list(climb.values()) == sorted(climb.values()) and len(climb) == len(level) == 10 and len(single) == 7
    assert f"in bf16 from {climb[0.1]:.0f} to {climb[1.0]:.0f}, below NPO up to 0.8 and level with it" in words
    assert all(climb[rate] < 0.98 * level[rate] for rate in climb if rate < 0.9)
    assert all(abs(climb[rate] - level[rate]) < 1 for rate in (0.9, 1.0))
    assert max(abs(climb[rate] - single[rate]) for rate in single) < 2


def test_the_table_of_ten_rates_is_that_of_the_results():
    """R6: the columns shown of Table 4 over the paper's 30 cells are those that `run.py report` makes; REM's range."""
    rows = load_rows([ROOT / "results" / "fashion-mini" / "rates"])
    ran = beside_the_papers("4", rows)
    assert table("All methods on fashion-mini", 2) == ran
    assert {line[2] for line in ran} == {"30", "3"}  # 3: what reads no D_f
    found = [round(100 * row["product"]) for row in pick(rows, method="rem", etd=False)]
    assert f"between {min(found)} and {max(found)} in all {len(found)} cells" in " ".join(RESULTS.split())


def test_the_table_of_precisions_is_that_of_the_results():
    """R6: bf16 against float32, and the difference of the same cells and seeds."""
    both = [load_rows([ROOT / "results" / "fashion-mini" / name]) for name in ("grid", "bf16")]
    shown = table("Precision")
    assert len(shown) == 8
    for method, task, *cells in shown:
        wanted = dict(method=method, etd=False, discovery=RATES, task=TASKS if task == "all" else task)
        single, half = (networks(pick(rows, **wanted)) for rows in both)
        at = {(r["task"], r["discovery"], r["seed"]): r["product"] for r in single}
        less = over_seeds([(r["seed"], r["product"] - at[r["task"], r["discovery"], r["seed"]]) for r in half])
        assert cells == [plus_minus(single, "product"), plus_minus(half, "product"), less], (method, task)
        assert {r["precision"] for r in half} == {"bf16"} and len(half) == len(single)


def test_the_other_tables_are_those_of_the_results():
    """R6: the tables on step 2's mode and on the share of corrupted images."""
    folder = ROOT / "results" / "fashion-mini"
    both = load_rows([folder / "grid", folder / "forget-norm"])
    shown = table("Step 2's mode")
    for method, *cells in shown:
        for norm, cell in zip(("running", "batch"), cells, strict=True):
            norm = "auto" if norm == ("running" if method == "rem" else "batch") else norm
            seeds, count = (0, 9) if method == "rem" else ((0, 1, 2), 27)
            runs = pick(both, method=method, etd=False, discovery=RATES, forget_norm=norm, seed=seeds)
            words = f"{count - len(runs)} of {method}"  # which diverged, as the text says
            assert cell == scores(runs) and (len(runs) == count or words in RESULTS), (method, norm)
    assert [line[0] for line in shown] == ["rem", "npo", "ascent"]
    share = load_rows([folder / "share"])
    for n, untouched, *cells in table("Small data: results and limits"):
        runs = pick(share, n=int(n.split()[0]))
        assert untouched == scores(networks(pick(runs, method="no-ul")))
        for (method, rate), cell in zip(itertools.product(("rem", "npo"), RATES), cells, strict=True):
            assert cell == scores(pick(runs, method=method, discovery=rate)), (n, method, rate)


def test_the_tables_on_lasting_healing_are_those_of_the_results():
    """R6: what REM is worth after how many epochs, on fashion-mini and on the copy of CIFAR-10."""
    rows = load_rows([ROOT / "results" / "lasting" / "fashion-mini"])
    for name, seeds, *cells, mean in table("Healing that lasts"):
        epochs, stop = re.match(r"\d*", name)[0], "max" if "stop max" in name else "repaired"
        axes = dict(unlearn_epochs=int(epochs), stop=stop, method="rem") if epochs else dict(method=name.strip("`"))
        runs = pick(rows, **axes, seed=(0, 1, 2) if seeds == "0-2" else 0)
        for (task, rate), cell in zip(itertools.product(("poison", "confusion", "random"), RATES), cells, strict=True):
            part = pick(runs, task=task, discovery=rate)
            assert len(part) == (3 if seeds == "0-2" else 1) if cell else not part, (name, task, rate)
            assert not cell or cell == f"{100 * mean_sem(row['product'] for row in part)[0]:.1f}", (name, task, rate)
        assert mean == (plus_minus(networks(runs), "product") if all(cells) else ""), name
    ended = {row["points"][-1]["epoch"] for row in pick(rows, method="rem", stop="repaired")}
    assert max(ended) < 8
    widths = {"half": ("lasting", 1.0), "quarter": ("", 0.5)}
    rows = {name: load_rows([ROOT / "results" / folder / "cifar10-jpeg-16px"]) for name, (folder, _) in widths.items()}
    shown = table("Healing that lasts", 1)
    for width, place, learnt, *cells, lead, epochs, best in shown:
        (task, rate), wanted = place.split(), dict(etd=False, stop="repaired", width=widths[width][1], seed=0)
        runs = [pick(rows[width], task=task, discovery=float(rate), method=name, **wanted)[0]
                for name in ("no-ul", "npo", "rem")]
        assert [learnt, *cells] == [f"{100 * runs[0]['learnt']:.1f}",
                                    *(" / ".join(f"{100 * row[key]:.1f}" for key in SCORES) for row in runs)], place
        assert lead == f"{100 * (runs[2]['product'] - runs[1]['product']):+.1f}", place
        points = runs[2]["points"][1:]
        assert (int(epochs), best) == (len(points), f"{100 * max(p['healed'] * p['utility'] for p in points):.1f}")
    there = {(name, r["task"], r["discovery"]) for name, some in rows.items()
             for r in pick(some, method="rem", etd=False, stop="repaired")}
    assert there == {(line[0], line[1].split()[0], float(line[1].split()[1])) for line in shown}
    ends = [" / ".join(f"{100 * row[key]:.1f}" for key in SCORES) for name in ("rem", "npo")
            for row in pick(rows["half"], seed=1, method=name)]
    assert f"end at {ends[0]}, NPO at {ends[1]}." in " ".join(RESULTS.split()) and len(ends) == 2
    (row,) = pick(rows["half"], stop="max")
    healed = {p["epoch"]: f"{100 * p['healed']:.1f}" for p in row["points"]}
    best = max(100 * p["healed"] * p["utility"] for p in row["points"])
    leads = {width: [float(line[6]) for line in shown if line[0] == width] for width in widths}
    least, most = (f"{value(leads['half']):.1f}" for value in (min, max))
    words, readme = " ".join(RESULTS.split()), " ".join(README.split())
    assert f"by {least} to {most} points" in words and f"by {least} to {most} points in nine cells (1 seed)" in readme
    assert f"Healed is {healed[1]} after epoch 1, {healed[5]} after epoch 5, {healed[6]} after step 2" in words
    ends = " / ".join(f"{100 * row[key]:.1f}" for key in SCORES)
    assert f"end at {ends}, and the best of them has {best:.1f}" in words


def test_the_table_of_repairs_is_that_of_the_results():
    """R6: what repair heals of each network, every seed."""
    runs = [json.loads(line) for line in (ROOT / "results" / "repair" / "trials.jsonl").read_text().splitlines()]
    shown = table("Repair: other networks, inner layers")
    for network, images, layers, *cells in shown:
        part = [run for run in runs if (run["network"], run["images"]) == (network, images)
                and run["layers"].startswith(layers.replace("`", ""))]
        assert [run["seed"] for run in part] == [0, 1, 2]
        before, after = ([" / ".join(f"{100 * run[key][k]:.0f}" for run in part) for key in ("stickered", "clean")]
                         for k in (0, 1))
        misled = " / ".join(f"{100 * run['misled'][1]:.0f}" for run in part)
        assert cells == [*(" -> ".join(pair) for pair in zip(before, after, strict=True)), misled], (network, images)
    assert 3 * len(shown) == len(runs)
    assert all(run["clean"][0] - run["clean"][1] <= 0.03 + 1e-9 for run in runs)


def test_the_tables_of_suspects_are_those_of_the_results():
    """R6: the tables of suspects and rounds are what run.py prints of the result files; and README's two numbers."""
    folder = ROOT / "results" / "fashion-mini" / "suspects"
    for name, make in (("scores", discovery.suspects_table), ("rounds", discovery.round_table)):
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        shown = make(rows).split("\n\n")[1]
        assert shown in RESULTS, name
        means = {line.split(" | ")[0][2:]: line.split(" | ")[-1].split(" / ")[0] for line in shown.splitlines()[2:]}
        if name == "scores":
            assert f"AUROC {means['CE, repaired network']} of the undiscovered" in FLAT
            (poison,) = (line.split(" | ")[1][:4] for line in shown.splitlines() if line.startswith("| CE, untouched"))
            assert f"the untouched network has {means['CE, untouched network']}, on poison {poison} (" in FLAT


def test_the_short_table_is_that_of_the_results():
    """R6: the lines of the README's table are those of results/README.md."""
    whole = {name: (cells[10], cells[12]) for name, *cells in table("All methods on fashion-mini")}
    section = README.split("## Results")[1].split("\n## ")[0]
    lines = re.findall(r"^\| `([\w-]+)` \| (.*) \| (.*) \|$", section, re.MULTILINE)
    assert len(lines) >= 5 and lines[0][0] == "rem"
    assert all((seeds, less) == whole[name] for name, seeds, less in lines)


def test_the_spread_over_machines_is_that_of_the_results():
    """R6: the main job's spread, and what the README says of it."""
    runs = [json.loads(line) for line in (ROOT / "results" / "spread" / "main.jsonl").read_text().splitlines()]
    assert f"({len(runs)} runs;" in RESULTS
    keys = ("rem healed", "rem utility", "rem product", "npo product", "product over npo", "utility lost")
    for key, (_, *cells) in zip(keys, table("The main job on other machines"), strict=True):
        values = [100 * run[key] for run in runs]
        assert cells == [f"{found:.1f}" for found in (fmean(values), stdev(values), min(values), max(values))], key
    keys = "rem healed", "product over npo", "utility lost"
    healed, over, lost = ([100 * run[key] for run in runs] for key in keys)
    assert f"Over {len(runs)} runs" in FLAT
    assert (f"Healed is {fmean(healed):.1f} on average and {min(healed):.1f} at least, its product {fmean(over):.1f} "
            f"points above NPO's ({min(over):.1f} in the worst run), its Utility at most {max(lost):.2f} "
            "below the untouched network's" in FLAT)
    intel = [json.loads(line) for line in (ROOT / "results" / "spread" / "intel.jsonl").read_text().splitlines()]
    healed, over = ([100 * run[key] for run in intel] for key in ("rem healed", "product over npo"))
    assert (f"{len(intel)} runs): REM's Healed is {fmean(healed):.1f} on average and {min(healed):.1f} at least, its "
            f"product {fmean(over):.1f} above NPO's on average and {min(over):.1f} at least."
            in " ".join(RESULTS.split()))


@pytest.mark.parametrize("benchmark", [scale, growth], ids=["scale", "growth"])
def test_the_tables_of_benchmarks_are_those_of_the_results(benchmark):
    """R6: the table of a benchmark is that of its rows, and of its folder's table."""
    name = benchmark.__name__.split(".")[-1]
    folder = ROOT / "results" / name
    made = benchmark.table([json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()])
    assert made == (folder / f"{name}.md").read_text(encoding="utf-8") and made in RESULTS


def test_the_printed_output_is_that_of_the_results():
    """R6: the numbers that the README shows of its first command are those of the result file's seed 0, not seconds."""
    found = re.search(r"<!-- output -->\n```\n(.*?)```\n<!-- /output -->", README, re.DOTALL)[1].splitlines()
    rows = {row["method"]: row for row in load_rows([ROOT / "results" / "spread" / "seed0.jsonl"])}
    words = [line.split() for line in found if line and "epoch" not in line]
    lines = {name: cells[:-1] for name, *cells in words if name in rows}
    assert lines == {name: [f"{100 * row[key]:.1f}" for key in ("healed", "healed_undiscovered", "utility", "product")]
                     for name, row in rows.items()}


def test_requirements_are_ranges():
    """R6: five packages, as ranges, and nothing else."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert [re.match(r"\w+", line)[0] for line in lines] == ["torch", "torchvision", "numpy", "pytest", "hypothesis"]
    assert all(">=" in line and "==" not in line for line in lines)


def test_every_property_has_its_tests():
    """R6: the table of tests/README.md is what the docstrings say: no id without a test, unknown id or stale status."""
    held, rows = index.held(), index.rows()
    assert len(rows) == 199 and set(held) <= set(rows), set(held) - set(rows)
    for name, (_, status) in rows.items():
        assert name in held and status == index.status(held[name]), f"{name} is stale: run python tests/index.py"
