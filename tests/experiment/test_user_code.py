"""A function out of a user's file (experiment/user_code.py, experiment/methods.py), "path/to/file.py:function"."""

import os
import sys
import warnings

import pytest
import torch

import run
from engine.streams import same_world
from experiment.methods import check_names, check_signature, code_of, load_method
from experiment.user_code import function_of
from few_images import FEW, few, fresh  # noqa: F401
from helpers import rows_of
from repair.networks_by_name import file_network

# In a few passes rounding decides whether gamma is reached.
pytestmark = pytest.mark.filterwarnings("ignore:Acc")

METHOD = "def f(model, data, forget, config, generator): return model\n"


def of_a_method(path, name):
    """What --method FILE.py:FUNCTION gets."""
    return load_method(f"{path}:{name}")[1]


def of_a_model(path, name):
    """What --model FILE.py:FUNCTION of a repair calls to make a network."""
    make, _ = file_network(str(path), name)
    return make


# --- How a file is imported -------------------------------------------------------------------------------------------

WRONG_FILES = {  # contents, and what is told of the function f in it
    "raises": ("1 / 0\n", "{path} does not import (ZeroDivisionError: division by zero)"),
    "exits": ("import sys\nsys.exit(3)\n", "{path} does not import (SystemExit: 3)"),
    "no Python": ("def f(:\n", "{path} does not import (SyntaxError: "),
    "no function": ("g = 1\n", "{path} has no function 'f' for "),
    "no callable": ("f = 1\n", "{path} has no function 'f' for "),
    "nothing": (None, "no file {path} for "),
}


@pytest.mark.parametrize("kind", WRONG_FILES)
@pytest.mark.parametrize("get, purpose", [(of_a_method, "method {}:f"), (of_a_model, "--model {}:f")])
def test_what_is_wrong_with_a_file(tmp_path, get, purpose, kind):
    """R16, R2: no file, no such function, or a file that does not import: one line that names it and what it is for."""
    path, (content, words) = tmp_path / "mine.py", WRONG_FILES[kind]
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError) as caught:
        get(path, "f")
    told = str(caught.value)
    assert told.startswith(words.format(path=path)) and "\n" not in told
    assert purpose.format(path) in told or "does not import" in told


def world():
    """What `same_world` puts back."""
    kernels = torch.backends.cudnn
    return (os.getcwd(), torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(),
            torch.get_num_threads(), torch.get_rng_state().tolist(), torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
            kernels.benchmark, kernels.deterministic, kernels.allow_tf32, list(warnings.filters))


CHANGES = """import os, torch
os.chdir("/")
torch.set_default_dtype(torch.float64)
torch.set_default_device("meta")
torch.set_grad_enabled(not torch.is_grad_enabled())
torch.set_num_threads(3)
torch.manual_seed(5)
torch.set_float32_matmul_precision("medium")
torch.use_deterministic_algorithms(True, warn_only=True)
torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = True
torch.backends.cudnn.allow_tf32 = False
import warnings
warnings.simplefilter("ignore")
"""


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_world_is_as_it_was_found(device):
    """R11: folder, dtype, device, gradients, threads, random numbers, filters of warnings, precision and choice of
    kernels are put back, after an error too."""
    torch.set_default_device(device)
    torch.set_grad_enabled(device == "cpu")
    torch.set_num_threads(1 if device == "cpu" else 4)
    before = world()
    with pytest.raises(ZeroDivisionError), same_world():
        exec(CHANGES.replace("meta", "cpu" if device == "meta" else "meta") + "1 / 0")
    assert world() == before
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    torch.set_num_threads(1)  # as conftest.py sets it


@pytest.mark.parametrize("get", [of_a_method, of_a_model])
def test_importing_a_file_leaves_the_world_alone(tmp_path, get):
    """R16, R11: what a file changes where it is imported is put back, whether it imports or not."""
    path, before = tmp_path / "mine.py", world()
    path.write_text(CHANGES + METHOD)
    assert callable(get(path, "f")) and world() == before
    path.write_text(CHANGES + "1 / 0\n")
    with pytest.raises(ValueError, match="does not import"):
        get(path, "f")
    assert world() == before


def test_a_file_may_have_dataclasses(tmp_path):
    """R16: a dataclass, which looks its module up by name, may be what is asked for."""
    path = tmp_path / "mine.py"
    path.write_text("from __future__ import annotations\nfrom dataclasses import dataclass\n"
                    "@dataclass\nclass Kept:\n    value: int = 3\n")
    assert function_of(f"{path}:Kept", "a test")().value == 3


def test_a_file_that_wants_its_neighbour_is_told_how(tmp_path, monkeypatch):
    """R16, R2: a file that imports one beside it is told of PYTHONPATH, which then helps."""
    (tmp_path / "mine.py").write_text("from near_by_odd import f\n")
    (tmp_path / "near_by_odd.py").write_text(METHOD)
    with pytest.raises(ValueError, match=rf"'near_by_odd'\); what lies beside it .* PYTHONPATH={tmp_path.resolve()}"):
        load_method(f"{tmp_path / 'mine.py'}:f")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_method(f"{tmp_path / 'mine.py'}:f")[0] == "mine.py:f"
    monkeypatch.delitem(sys.modules, "near_by_odd")


def test_files_of_one_name(tmp_path):
    """R16: of two files of one name each function is its own file's; a module of ours is not replaced."""
    found, ours = [], sys.modules["rem"]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rem.py").write_text(f"NAME = '{folder}'\ndef f(): return NAME\n")
        found.append(function_of(f"{tmp_path / folder / 'rem.py'}:f", "a test"))
    assert [f() for f in found] == ["a", "b"] and sys.modules["rem"] is ours


# --- Names and parameters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names, text", [
    ([], "no method given; choose from no-ul"), (["rme"], "unknown method 'rme'; choose from no-ul.*FILE.py:FUNCTION"),
    (["cf", "a/x.py:f", "b/x.py:f"], "two methods are called x.py:f; give one of the files another name"),
    (["b/x.py:f", "a/x.py:f"], "two methods are called x.py:f")])
def test_names_that_a_row_could_not_tell_apart(names, text):
    """R2: no method, an unknown one, or two files of one name and function."""
    with pytest.raises(ValueError, match=text):
        check_names(names)
    check_names(["cf", "a/x.py:f", "b/x.py:g", "b/y.py:f", "a/x.py:f"])


class Callable:
    """A method that is no function."""

    def __call__(self, model, data, forget, config, generator, log=None, corrupted=None):
        return model


def test_which_parameters_a_method_may_have():
    """R2: five arguments, log= and corrupted= if it likes, others only with a default."""
    for good in (Callable(), lambda m, d, f, c, g: m, lambda m, d, f, c, g, log=None, corrupted=None: m,
                 lambda *all: all[0], lambda m, d, f, c, g, *, corrupted: m, lambda m, d, f, c, g, tries=3: m):
        check_signature("mine.py:f", good)
    for bad in (lambda m, d, f, c: m, lambda m, d, f, c, g, more: m, lambda m, d, f, c, g, *, more: m):
        with pytest.raises(ValueError, match=r"^mine.py:f takes \(m, d, .*; a method takes \(model, data, "):
            check_signature("mine.py:f", bad)


def test_the_code_of_a_file(tmp_path):
    """R9: code is told by the contents of the file, not by its name; a method of ours, or no file, has none."""
    for name, content in (("a.py", METHOD), ("b.py", METHOD), ("c.py", METHOD + "\n")):
        (tmp_path / name).write_text(content)
    codes = [code_of(f"{tmp_path / name}:f") for name in ("a.py", "b.py", "c.py")]
    assert codes[0] == codes[1] != codes[2] and len(codes[0]) == 16 and int(codes[0], 16) >= 0
    assert code_of("cf") is code_of(str(tmp_path / "a.py")) is code_of(f"{tmp_path}/none.py:f") is None


# --- From the command line --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word, body", [([], "path.write_text('')"), (["grid"], "path.unlink()")],
                         ids=["run, changed", "grid, deleted"])
def test_the_code_of_a_row_is_the_code_that_ran(few, tmp_path, monkeypatch, word, body):  # noqa: F811
    """R3, R9: a row names the contents that a method's file had when it was loaded, though it has changed since."""
    monkeypatch.chdir(tmp_path)
    path, out = tmp_path / "methods" / "odd.py", tmp_path / "out"  # not where the command runs
    path.parent.mkdir()
    path.write_text("from pathlib import Path\ndef f(model, data, forget, config, generator):\n"
                    f"    path = Path({str(path)!r})\n    {body}\n    return model\n")
    code = code_of(f"{path}:f")
    assert run.main([*word, "--method", f"no-ul, {path}:f", "--out", str(out), *FEW]) == 0
    ours, mine = rows_of(out / "cells.jsonl" if word else out)
    assert (ours["code"], mine["code"], mine["method"]) == (None, code, "odd.py:f") and code_of(f"{path}:f") != code
