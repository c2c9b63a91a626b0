"""Several processes of one run (experiment/processes.py), as torchrun starts them."""

import os
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from torch import distributed as dist

import run
from experiment.processes import arrived, first_to_tell, from_torchrun, joined
from helpers import rows_of
from several import ended, start

ROOT = Path(run.__file__).resolve().parent


@pytest.mark.parametrize("size, argv", [("1", []), (None, ["report"]), ("2", ["grid", "--dry-run"])])
def test_where_nothing_is_joined(monkeypatch, size, argv):
    """G4: one process alone, and each of grid's, joins nothing: no process group, no handler, errors as they are."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size:
        monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    handler, stdout = signal.getsignal(signal.SIGTERM), sys.stdout
    with pytest.raises(KeyError, match="mine"):
        with joined(argv, run.SINGLE):
            assert not dist.is_initialized() and sys.stdout is stdout
            assert signal.getsignal(signal.SIGTERM) is handler
            raise KeyError("mine")


def test_what_torchrun_sets(capsys, monkeypatch):
    """G4, R2: what is no whole number is named, of one cell and of grid's processes, before any work."""
    for value in ("abc", "", "-1", "1.5", "9" * 5000, "\u00b2"):
        monkeypatch.setenv("LOCAL_RANK", value)
        with pytest.raises(ValueError, match="^LOCAL_RANK is .* in the environment; torchrun sets it to a whole"):
            from_torchrun("LOCAL_RANK", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert from_torchrun("LOCAL_RANK", 0) == 3 and from_torchrun("NO_SUCH_NAME", 7) == 7
    for name, argv in (("WORLD_SIZE", []), ("RANK", []), ("MASTER_PORT", []), ("WORLD_SIZE", ["grid", "--dry-run"]),
                       ("RANK", ["grid", "--dry-run"])):
        with monkeypatch.context() as patch:
            patch.setenv("WORLD_SIZE", "3")
            patch.setenv(name, "abc")
            assert run.main(argv) == 2
        told = capsys.readouterr()
        assert told.out == "" and told.err.startswith(f"run.py: {name} is 'abc'") and told.err.count("\n") == 1


def test_who_tells():
    """G4: the first that asks tells, whoever it is; the first process, which may hold the store, stays until all have
    asked, or for its patience, and torchrun's SIGTERM ends none of them before. Where there is no store, each tells."""
    handler, store = signal.getsignal(signal.SIGTERM), dist.HashStore()
    try:
        told = [first_to_tell(store, 1, 3)]
        threading.Timer(0.3, lambda: told.append(store.add("told", 1))).start()  # the third process is late
        told.append(first_to_tell(store, 0, 3))
        assert told == [True, 3, False] and signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        gone = SimpleNamespace(add=Mock(side_effect=RuntimeError("no one is there")))  # its process was killed
        assert first_to_tell(gone, 1, 2)
        assert arrived(dist.HashStore(), "told", 2, patience=0.1) == 1  # the other one was killed
    finally:
        signal.signal(signal.SIGTERM, handler)


LATE = """
import os, pathlib, sys, time
sys.path.insert(0, "ROOT")
from experiment.processes import joined
mark = pathlib.Path("MARK")
with joined(["one cell"], ()):
    if os.environ["RANK"] == "1":
        time.sleep(2)
        mark.touch()
sys.exit(0 if mark.exists() else 7)
"""


@pytest.mark.slow
def test_none_ends_before_all_have_come_to_the_end(tmp_path):
    """G4: a process that is done waits for a slower one, whose connections it would close."""
    (tmp_path / "late.py").write_text(LATE.replace("ROOT", str(ROOT)).replace("MARK", str(tmp_path / "mark")))
    assert [code for code, *_ in ended(start(ROOT, str(tmp_path / "late.py")))] == [0, 0]


@pytest.mark.slow
def test_a_cell_of_two_processes(tmp_path):
    """G3: they train and unlearn together, each on its share; the first alone prints and appends rows."""
    method, out = tmp_path / "note.py", tmp_path / "rows.jsonl"
    method.write_text("import os\nfrom pathlib import Path\ndef f(model, data, forget, config, generator):\n"
                      "    Path(__file__).with_name(os.environ['RANK']).write_text(repr((data.part, len(data))))\n"
                      "    return model\n")
    argv = ["--task", "random", "--per-class", "100", "--per-class-test", "20", "--epochs", "3", "--batch", "32",
            "--capacity", "0.2", "--device", "cpu", "--method", f"no-ul,cf,{method}:f", "--unlearn-epochs", "1",
            "--out", str(out)]
    (code, table, errors), (other, nothing, _) = ended(start(ROOT, "run.py", *argv))
    told = [line for line in nothing.splitlines() if not line.startswith("[Gloo]")]  # as some versions of torch say
    assert code == other == 0 and not told, errors
    rows = rows_of(out)
    assert [(row["method"], row["status"]) for row in rows] == [(name, "ok") for name in ("no-ul", "cf", "note.py:f")]
    assert table.count("no-ul") == 1 and rows[0]["utility"] > 0.3  # one of ten by chance: both have trained one network
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["((0, 2), 1000)", "((1, 2), 1000)"]
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "note.py", "rows.jsonl"]


@pytest.mark.slow
def test_processes_with_networks_of_their_own(tmp_path):
    """G3: a method that trains on its share by itself leaves another network in each process: nothing is measured, and
    one line says so; the rows before it are there, and say how many processes made them."""
    (tmp_path / "own.py").write_text("import copy, torch\ndef f(model, data, forget, config, generator):\n"
                                     "    net = copy.deepcopy(model)\n    net.head.weight.data += data.part[0]\n"
                                     "    return net\n")
    argv = ["--task", "random", "--per-class", "40", "--per-class-test", "10", "--epochs", "1", "--batch", "32",
            "--width", "0.05", "--device", "cpu", "--method", f"no-ul,{tmp_path / 'own.py'}:f",
            "--out", str(tmp_path / "rows.jsonl")]
    found = ended(start(ROOT, "run.py", *argv))
    told = [line for _, _, errors in found for line in errors if "own.py:f" in line or "Traceback" in line]
    assert all(code for code, _, _ in found) and len(told) == 1
    assert "own.py:f left another network in each of 2 processes: take its steps with engine.updates.descend" in told[0]
    assert [(row["method"], row["processes"]) for row in rows_of(tmp_path / "rows.jsonl")] == [("no-ul", 2)]


@pytest.mark.slow
def test_bad_input_is_one_line_of_all_processes(tmp_path):
    """G4, R2: what all processes refuse one alone tells, in one line; all exit with code 2; nothing is written."""
    found = ended(start(tmp_path, str(ROOT / "run.py"), "cscore"))
    told = [line for _, _, errors in found for line in errors]
    lines = [line for line in told if line.startswith("run.py") or "Traceback" in line]  # others are torch's own log
    said = [line for _, out, _ in found for line in out.splitlines() if not line.startswith("[Gloo]")]  # old torch's
    assert [code for code, _, _ in found] == [2, 2] and not said
    assert len(lines) == 1 and lines[0].startswith("run.py: ") and "cscore runs in one process; torchrun is" in lines[0]
    assert not list(tmp_path.iterdir())
