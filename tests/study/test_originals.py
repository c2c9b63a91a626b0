"""study/originals.py: original networks are trained once, kept in files, and never taken for one another."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from engine.streams import stream
from etd import Expanded
from experiment import cell as experiment
from experiment.methods import METHODS
from experiment.settings import Config
from few_images import AXES, do, few, fresh, numbers  # noqa: F401
from helpers import assert_same_state
from study import grid, originals
from study.originals import load_original, make_original
from study.plan import expand_axes, original_of
from study.rows import cell_key, read_rows

# Two passes do not always remove D_f.
pytestmark = [pytest.mark.usefixtures("few"), pytest.mark.filterwarnings("ignore:Acc")]


@pytest.fixture
def trained(monkeypatch):
    """Counts the networks that are trained, by task, seed, ETD and method: a count that no output tells."""
    count, inner = Counter(), originals.train

    def counting(config, *args):
        count[config.task, config.seed, config.etd, config.method] += 1
        return inner(config, *args)

    monkeypatch.setattr(originals, "train", counting)
    return count


def settings(**axes) -> Config:
    """The settings of the one cell that these axes name, on few images."""
    (cell,) = expand_axes({**AXES, **axes})
    return cell


# --- Which network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("etd", [False, True])
def test_the_network_kept_is_that_of_its_settings(tmp_path, etd):
    """R9, T16: the file of an original gives the network of a training at its settings, bit for bit, with the labels
    that it saw, whichever other one was read before; that of ETD training knows its seed and p_mem."""
    found = {}
    for seed in (0, 1):
        config = settings(method="rem", task="random", seed=str(seed), etd="on" if etd else "off", p_mem="0.3")
        found[seed] = config, original_of(config)
        assert make_original(found[seed][1], tmp_path)[1] is None
    for seed in (0, 1, 0):
        config, original = found[seed]
        dataset = originals.dataset_of(config)
        task = experiment.corrupt(config, dataset)
        again = experiment.train_original(config, task, experiment.new_model(config, dataset))
        kept, network, _ = load_original(original, str(tmp_path))
        assert_same_state(network, again)
        assert torch.equal(kept.train.labels, task.train.labels) and torch.equal(kept.corrupted, task.corrupted)
        assert isinstance(network, Expanded) == etd
        assert getattr(network, "trained_under", None) == ((seed, 0.3) if etd else None)


@pytest.mark.parametrize("method", ["etd", "etd-ideal"])
def test_what_trains_alone_is_the_methods_own_network(tmp_path, method):
    """R9: the network kept for etd and etd-ideal is the method's, bit for bit, and its seconds are the rows'; also
    where all images are corrupted."""
    config = settings(task="poison", method=method, epochs="2", batch="16", n="128")
    original = original_of(config)
    seconds, failure = make_original(original, tmp_path)
    task, network, kept = load_original(original, str(tmp_path))
    more = {"corrupted": task.corrupted} if method == "etd-ideal" else {}
    fresh = experiment.new_model(config, originals.dataset_of(config))
    again = METHODS[method].function(fresh, task.train, task.corrupted[5:9], config,
                                     stream(config.seed, "unlearning"), **more)
    assert_same_state(network, again)
    assert failure is None and grid.measure(config, str(tmp_path))["seconds"] == kept == seconds > 0


# --- Trained once -----------------------------------------------------------------------------------------------------


def test_originals_are_trained_once(tmp_path, trained):
    """R9: one training for each task, seed, ETD and method that trains alone, whatever the rates and other methods; a
    second grid in the folder reads them; another seed or another setting of training is another network."""
    axes = ["--tasks", "poison,random", "--etd", "both"]
    assert do(tmp_path, *axes, "--discovery", "0.5,1", "--methods", "no-ul,npo,etd") == 0
    assert set(trained.values()) == {1} and len(trained) == 6
    files = list((tmp_path / "originals").iterdir())
    assert Counter(path.suffix for path in files) == {".pt": 6, ".task": 6}
    times = {path: path.stat().st_mtime_ns for path in files}
    assert do(tmp_path, *axes, "--discovery", "0.1", "--methods", "no-ul,etd", "--unlearn-lr", "0.5") == 0
    assert trained.total() == 6 and {path: path.stat().st_mtime_ns for path in files} == times
    assert do(tmp_path, "--task", "random", "--methods", "no-ul", "--seed", "0,1") == 0 and trained.total() == 7
    assert do(tmp_path, "--task", "random", "--methods", "no-ul", "--weight-decay", "0") == 0 and trained.total() == 8


def test_a_last_update_that_ruins_the_weights_is_a_failed_training(tmp_path):
    """R3: though every loss was finite, since the only batch came before it."""
    assert do(tmp_path, "--task", "random", "--method", "no-ul", "--lr", "1e37", "--weight-decay", "1e6", "--batch",
              "128") == 1
    (row,) = read_rows(tmp_path)
    assert row["error"].startswith("training: NonFiniteLoss") and not list((tmp_path / "originals").glob("*"))


def test_failed_training_fails_its_cells_alone(tmp_path, trained):
    """R3: an original that diverges gives failed rows and no file; other cells go on; a retry trains it."""
    axes = ["--task", "random", "--method", "no-ul,npo", "--lr", "1e30,0.05", "--epochs", "2"]
    assert do(tmp_path, *axes) == 1
    rows = read_rows(tmp_path)
    assert [(row["lr"], row["status"]) for row in rows] == [(1e30, "failed")] * 2 + [(0.05, "ok")] * 2
    assert all(row["error"].startswith("training: NonFiniteLoss") for row in rows[:2])
    assert len(list((tmp_path / "originals").glob("*.pt"))) == 1 and trained.total() == 2
    assert do(tmp_path, *axes, "--retry-failed") == 1 and trained.total() == 3 and len(read_rows(tmp_path)) == 6


def test_a_damaged_original_says_what_to_do(tmp_path):
    """R12, R9: a file of an original that was cut, garbled, swapped or made elsewhere fails its cells, which name it;
    its weights are never used, and --retry-failed makes it anew. Without its task's file it is trained again."""
    assert do(tmp_path, "--method", "no-ul,cf") == 0
    (kept,) = (tmp_path / "originals").glob("*.pt")
    good = numbers(tmp_path)
    assert do(tmp_path / "other", "--method", "no-ul", "--seed", "1") == 0
    (other,) = (tmp_path / "other" / "originals").glob("*.pt")
    whole = kept.read_bytes()
    half = len(whole) // 2
    for path, content in ((kept, whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1:]), (kept, b""),
                          (kept, other.read_bytes()), (kept.with_suffix(".task"), b"x" * 100),
                          (kept.with_suffix(".task"), other.with_suffix(".task").read_bytes())):
        path.write_bytes(content)
        (tmp_path / "cells.jsonl").unlink(missing_ok=True)
        load_original.cache_clear()
        assert do(tmp_path, "--method", "no-ul,cf") == 1
        words = (f"{kept} or its .task is damaged or another network's; --retry-failed in a grid makes both anew, "
                 "elsewhere delete both and give the same command again")
        assert all(words in row["error"] for row in read_rows(tmp_path))
        assert do(tmp_path, "--method", "no-ul,cf", "--retry-failed") == 0 and numbers(tmp_path) == good
        assert kept.read_bytes().partition(b"\n")[0].endswith(cell_key(original_of(settings(method="cf"))).encode())
    kept.with_suffix(".task").unlink()
    (tmp_path / "cells.jsonl").unlink()
    load_original.cache_clear()
    assert do(tmp_path, "--method", "no-ul,cf") == 0 and numbers(tmp_path) == good


# --- Where ------------------------------------------------------------------------------------------------------------


def test_data_are_read_where_the_process_stands(tmp_path, monkeypatch):
    """R9: the data set that is kept in memory is that of the whole path."""
    monkeypatch.chdir(tmp_path)
    where = originals.where_of(Config(dataset="folder", data_dir="images"))
    assert where[:2] == ("folder", str(tmp_path / "images"))


def test_each_rank_has_its_gpu(monkeypatch):
    """R9: under torchrun "auto" and "cuda" are the rank's own GPU, wrapping round; a named one is not."""
    config = expand_axes({"method": "rem"})[0]
    assert originals.device_of(replace(config, device="cpu")) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv("LOCAL_RANK", "5")
    assert originals.device_of(config) == originals.device_of(replace(config, device="cuda")) == torch.device("cuda", 1)
    assert originals.device_of(replace(config, device="cpu")) == torch.device("cpu")
