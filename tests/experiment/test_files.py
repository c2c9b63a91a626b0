"""A task in a file (experiment/stored_tasks.py), with the labels that training saw (A.3); nothing in a file is run."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tasks
from experiment import pickles
from experiment.pickles import asks_for_code
from experiment.datasets import fingerprints
from experiment.stored_tasks import load_task, save_task
from helpers import Evil, make_dataset, seeds
from tasks import discover, make_task
from test_tasks import assert_same_task, balanced, cases

ROOT = Path(tasks.__file__).parent


@given(cases())
def test_t16_round_trip(tmp_path_factory, case):
    """T16: a saved task loads with its very labels, clean labels, D_c and images, whatever labels the data have; saved
    once more it still belongs to the images before corruption."""
    task, dataset, path = make_task(*case), case[1], tmp_path_factory.mktemp("task") / "deep" / "er" / "task.pt"
    save_task(task, path)
    assert [p.name for p in path.parent.iterdir()] == ["task.pt"]
    redrawn = replace(dataset, train=replace(dataset.train, labels=dataset.train.labels.roll(1)))
    for state, onto in enumerate((dataset, redrawn)):
        torch.manual_seed(state)  # another process has another one
        found = load_task(path, onto)
        assert_same_task(found, task)
        assert found.test is dataset.test
        assert torch.equal(discover(found, 1.0, 3), discover(task, 1.0, 3))
        save_task(found, path)


@pytest.mark.parametrize("part", ["train", "test"])
@given(seeds, st.integers(0, 5), st.integers(1, 255))
def test_t16_other_images(tmp_path_factory, part, seed, where, step):
    """T16: of training or test images one other pixel, images left out or in another order, and another test label ->
    ValueError; so is a missing file. A file from before test sets were noted loads."""
    dataset, path = balanced(seed), tmp_path_factory.mktemp("task") / "task.pt"
    save_task(make_task("poison", dataset, 5, seed), path)
    data = getattr(dataset, part)
    images, labels = data.images.clone(), data.labels.clone()
    images[where, 0, 1, 2] = (int(images[where, 0, 1, 2]) + step) % 256
    labels[where] = (labels[where] + 1) % data.classes
    others = [dict(images=images), dict(images=data.images.flip(0)), dict(images=data.images[1:], labels=labels[1:])]
    for change in [*others, dict(labels=labels)] if part == "test" else others:
        with pytest.raises(ValueError, match=f"made from other {'training' if part == 'train' else part} images"):
            load_task(path, replace(dataset, **{part: replace(data, **change)}))
    with pytest.raises(ValueError, match="no task file at"):
        load_task(path.with_name("absent.pt"), dataset)
    content = torch.load(path, weights_only=True)
    del content["test"]
    torch.save(content, path)
    load_task(path, replace(dataset, test=replace(dataset.test, labels=(dataset.test.labels + 1) % 4)))


def test_t16_layout_and_shape_of_images(tmp_path):
    """T16: the memory format makes no other data of the images, another shape of the same bytes does."""
    dataset = balanced(0, channels=3, size=6)
    save_task(make_task("random", dataset, 5, 0), tmp_path / "task.pt")
    images = dataset.train.images
    last = replace(dataset.train, images=images.contiguous(memory_format=torch.channels_last))
    load_task(tmp_path / "task.pt", replace(dataset, train=last))
    with pytest.raises(ValueError, match="made from other training images"):
        wide = replace(dataset.train, images=images.view(24, 3, 4, 9))
        load_task(tmp_path / "task.pt", replace(dataset, train=wide))


def test_fingerprints_differ():
    """R3: another pixel or label, of the training or the test set, makes other images in a row."""
    one = make_dataset(0)
    pixels, labels = one.test.images.clone(), (one.train.labels + 1) % 4
    pixels[0, 0, 0, 0] ^= 1
    others = replace(one, test=replace(one.test, images=pixels)), replace(one, train=replace(one.train, labels=labels))
    assert len({fingerprints(each) for each in (one, make_dataset(0), *others)}) == 3


def test_a_task_that_asks_for_code(tmp_path):
    """A8: it is called that, and nothing runs; what is cut short is called damaged."""
    dataset, path = make_dataset(0), tmp_path / "x.task"
    torch.save({"name": "poison", "x": Evil(tmp_path / "ran")}, path)
    words = r"x.task is no task of ours: it asks for code to be run \(.*delete it"
    with pytest.raises(ValueError, match=words) as told:
        load_task(path, dataset)
    assert "weights_only" not in str(told.value) and not (tmp_path / "ran").exists()
    save_task(make_task("random", dataset, 4, 0), path)
    whole = path.read_bytes()
    assert load_task(path, dataset).name == "random"
    for content in (b"", whole[:100], b"hello", b"images\nbad\ntones.", b"import torch\nclass\nname\n", whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="x.task is no task of ours: it is damaged"):
            load_task(path, dataset)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="no task of ours"):
        load_task(path, dataset)


def test_what_is_looked_at_of_a_pickle(tmp_path, monkeypatch):
    """A8: a pickle is looked at as far as STEPS opcodes, and its notes; names neither flood a terminal nor steer it."""
    (tmp_path / "long").write_bytes(b"\x80\x02" + b"N" * 97 + b"cos\nsystem\n.")  # 100 opcodes
    for steps, found in ((pickles.STEPS, "os.system"), (100, "os.system"), (99, None)):
        with monkeypatch.context() as patch:
            patch.setattr(pickles, "STEPS", steps)
            assert asks_for_code(tmp_path / "long", ValueError()) == found
    (tmp_path / "noted").write_bytes(b"\x80\x04\x8c\x01b\x8c\x01a\x94\x8c\x02os\x94h\x01\x8c\x06system\x93.")
    assert asks_for_code(tmp_path / "noted", ValueError()) == "os.system"  # by a name that was noted before
    (tmp_path / "cut").write_bytes(b"\x80\x02cos\nsystem\nN")
    assert asks_for_code(tmp_path / "cut", ValueError()) == "os.system"
    (tmp_path / "odd").write_bytes(b"\x80\x02cos\x1b[2J\n" + b"s" * 5000 + b"\n.")
    asked = asks_for_code(tmp_path / "odd", ValueError())
    assert asked.startswith("os?[2J.sss") and asked.isprintable() and len(asked) < 100


def test_files_run_no_code():
    """A8, T16: every torch.load of the shipped code says weights_only=True."""
    loads = 0
    folders = (".", "engine", "experiment", "study", "repair", "benchmarks", "examples", "results")
    for path in [path for folder in folders for path in (ROOT / folder).glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                words = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert words.get("weights_only") == "True", f"{path}:{node.lineno}"
                loads += 1
    assert loads
