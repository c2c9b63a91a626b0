"""BackdoorBench's attack_result.pt, built by hand: its network and its poisoned images (B7, K5)."""

import numpy as np
import pytest
import torch

from colours import call, colours, report_of  # noqa: F401
from helpers import Called, Evil, small_net
from image_tree import CLASSES, root, training  # noqa: F401
from repair.checkpoints import ALLOWED, Numbers, array, read
from repair.inputs import open_folder
from repair.lists import read_file, read_lists

POISONED = (1, 6)


def result(marks, names: dict[int, str] | None = None, weights: dict | None = None, **more) -> dict:
    """What BackdoorBench's attacks save; names: of the poisoned images by index, None where the file has none."""
    saved = {np.int64(i): {"path": f"./record/x/bd_train_dataset/0/{name}", "other_info": (np.int64(0), 1)}
             for i, name in (names or {}).items()}
    training = {"bd_data_container": {"data_dict": saved, "save_folder_path": "./record/x/bd_train_dataset"},
                "getitem_all": True, "original_index_array": np.arange(10), "poison_indicator": marks}
    return {"model_name": "preactresnet18", "num_classes": 4, "model": weights or small_net(0).state_dict(),
            "data_path": "../data/cifar10", "img_size": (32, 32, 3), "clean_data": "cifar10", "bd_train": training,
            "bd_test": None, **more}


def marks_of(n: int, dtype=np.float64) -> np.ndarray:
    """poison_indicator of n images, of which POISONED are 1."""
    return np.isin(np.arange(n), POISONED).astype(dtype)


@pytest.fixture
def named(root):  # noqa: F811
    """The folder, with its images called 0.png to 9.png as BackdoorBench counts them: the poisoned ones are bees."""
    order = [0, 2, 3, 4, 5, 1, 6, 7, 8, 9]
    for i, path in zip(order, training(root), strict=True):
        path.rename(path.with_name(f"new-{i}.png"))
    for path in root.glob("train/*/new-*.png"):
        path.rename(path.with_name(path.name.removeprefix("new-")))
    return root


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("marks", [marks_of(10), marks_of(10, np.int64), marks_of(10, bool), marks_of(10).tolist(),
                                   torch.tensor(marks_of(10))], ids=["float", "int", "bool", "list", "tensor"])
def test_poisoned_images_are_found_by_their_names(tmp_path, named, marks, zipped):
    """B7: whatever kind the indicator has, the images of the names that BackdoorBench gives are D_f, not those of
    its indices in the folder's order; the same file gives the network."""
    file = tmp_path / "attack_result.pt"
    for names in (None, {1: "1.png", 6: "6.png"}):
        torch.save(result(marks, names), file, _use_new_zipfile_serialization=zipped)
        folder = open_folder(named, [str(file)])
        assert [folder.name(i) for i in folder.forget] == ["train/bee/1.png", "train/bee/6.png"]
        assert "2 lines, 2 images" in folder.said and folder.forget.tolist() != list(POISONED)
    for name, value in small_net(0).state_dict().items():
        assert torch.equal(read(file)[name], value)


def test_another_name_is_looked_for(tmp_path, root):  # noqa: F811
    """B7: the name is the one in the file, whatever separates its folders, where an index would find nothing."""
    names = {1: "alone.png", 6: "y\\4.png"}
    torch.save(result(marks_of(50), names), tmp_path / "attack_result.pt")
    assert open_folder(root, [str(tmp_path / "attack_result.pt")]).forget.tolist() == [4, 9]


REFUSED = {
    "name": (result(marks_of(8)), r"2 lines, 0 matched; no training image .* for '1.png' \(2 images have this name\)"),
    "lost": (result(marks_of(8), {1: "alone.png", 6: "77.png"}), r"2 lines, 1 matched; .* for '77.png'"),
    "none poisoned": (result(np.zeros(4)), "lists no image"),
    "weights alone": (small_net(0).state_dict(), "no bd_train.poison_indicator of 0 and 1"),
    "list": ([1], "no bd_train.poison_indicator"),
    "no training": (result(marks_of(4), bd_train=None), "no bd_train.poison_indicator"),
    "no indicator": (result([]), "no bd_train.poison_indicator"),
    "indices": (result(np.array([1, 6])), "no bd_train.poison_indicator of 0 and 1"),
    "images": (result(marks_of(4), image=Called(np.zeros, 3)), "holds a pickled numpy.*zeros.* was not read; "
               r"where it was made, run: numpy.savetxt\('bad.txt'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_names_no_poisoned_image_is_refused(tmp_path, root, name):  # noqa: F811
    """B7: names that are no training image's or several images', files without an indicator, and what needs more than
    weights_only allows: one line that says what to do."""
    content, words = REFUSED[name]
    path = tmp_path / "attack_result.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=words) as caught:
        read_lists({str(path): read_file(path)}, training(root), root, list(CLASSES))
    assert "\n" not in str(caught.value)


def objects(evil) -> np.ndarray:
    """An array that holds an object."""
    made = np.empty(1, object)
    made[0] = evil
    return made


def test_an_array_runs_nothing(tmp_path, root):  # noqa: F811
    """K5: a call beside the arrays or within one is not made, whether weights or a list are read."""
    mark, path = tmp_path / "ran", tmp_path / "attack_result.pt"
    for content in (result(marks_of(4), more=Evil(mark)), result(objects(Evil(mark)))):
        torch.save(content, path)
        for use in (read, lambda file: open_folder(root, [str(file)])):
            with pytest.raises(ValueError, match="was not read|can be read safely"):
                use(path)
    assert not mark.exists()


@pytest.mark.parametrize("value", [Called(np.ndarray, (10**6,)), np.array(["a"]), np.array([1j]), objects(None),
                                   np.zeros(3, [("a", float)])],
                         ids=["call", "text", "complex", "objects", "fields"])
def test_only_rows_of_numbers_are_read(tmp_path, value):
    """K5: arrays of anything but plain numbers are refused, and so is numpy's own way to make an array of any size."""
    torch.save({"state_dict": small_net(0).state_dict(), "x": value}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="model.pt (is no whole file|holds a pickled)"):
        read(tmp_path / "model.pt")


def test_an_array_takes_the_bytes_that_the_file_has():
    """K5: a claimed shape is not believed, and numpy's own arrays are not among what is allowed."""
    assert np.ndarray not in ALLOWED and isinstance(array(np.ndarray, (10**12,), b"b"), Numbers)
    made = array()
    made.__setstate__((1, (10**12,), np.dtype("i2"), False, b"\1\0\2\0"))
    assert made.values.tolist() == [1, 2]


def test_the_command_takes_one_file_for_both(colours):  # noqa: F811
    """B7: the same file as --checkpoint and --bad gives what weights and a text file give; its digest is the file's."""
    assert call(colours, "--epochs", 0) in (0, 3)
    wanted = report_of(colours)
    names = {1: "0-5.png", 6: "1-5.png"}
    file = colours["--data"] / "attack_result.pt"
    torch.save(result(marks_of(72), names, torch.load(colours["--checkpoint"])), file)
    assert call({**colours, "--checkpoint": file, "--bad": file}, "--epochs", 0) in (0, 3)
    found = report_of(colours)
    assert found["scores"] == wanted["scores"] and found["images"] == wanted["images"]
    assert set(found["sha256"]) == {str(file), str(colours["--out"])}
