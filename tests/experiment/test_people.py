"""Labels by people: files of CIFAR-10N's form, made here, their order against the images', and the task they make.

Nothing in a file is run, and a file of another data set or order is refused before any training.
"""

import csv
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import run
from experiment.data import Dataset
from experiment.datasets import part_of
from experiment.corruptions import people
from experiment.people import COLUMNS, People, in_order, of_files, read_people
from few_images import few, fresh, load_few, refusal  # noqa: F401
from helpers import Evil, gen, make_dataset, rows_of, seeds
from tasks import discover, like_corrupted

KEYS = ("aggre_label", "worse_label", "random_label1", "random_label2", "random_label3")


def of_the_authors(clean, seed=0, classes=4, kind=np.int64) -> dict:
    """A dict of arrays in the form of CIFAR-10N's: each annotation wrong at about a third of the images."""
    rng, found = np.random.default_rng(seed), {"clean_label": np.asarray(clean, kind)}
    for key in KEYS:
        other = rng.integers(0, classes, len(clean))
        found[key] = np.where(rng.random(len(clean)) < 0.4, other, clean).astype(kind)
    return found


def by_people(clean, seed=0) -> People:
    """Labels by people and the clean ones beside them, as they are read from a file."""
    found = of_the_authors(clean, seed)
    return People("x.pt", torch.from_numpy(found["aggre_label"]), torch.from_numpy(found["clean_label"]))


def dataset_of(labels, name="made", classes=4) -> Dataset:
    """A data set with these training labels."""
    made = make_dataset(0, n=len(labels), classes=classes)
    return replace(made, name=name, train=replace(made.train, labels=torch.as_tensor(labels)))


# --- Files ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("save", [
    torch.save, lambda found, path: torch.save(found, path, _use_new_zipfile_serialization=False)],
    ids=["zip", "before zip"])
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_the_authors_form(save, kind, tmp_path):
    """Each column of a torch pickle of numpy arrays is read as it is, with the clean labels beside it."""
    found = of_the_authors(np.arange(20) % 4, kind=kind)
    save(found, tmp_path / "x.pt")
    for column, key in zip(COLUMNS, KEYS, strict=True):
        read = read_people(tmp_path / "x.pt", column)
        assert read.labels.dtype == torch.int64 and read.labels.tolist() == found[key].tolist()
        assert read.clean.tolist() == found["clean_label"].tolist()


def test_tables_and_arrays(tmp_path):
    """A .csv is read by its header, in the order of its paths if it has them; a .npy has labels alone."""
    lines = [("train/b/10.jpg", 1, 0), ("train/b/1.jpg", 1, 1), ("train/a-b/0.jpg", 2, 2), ("train/a/0.jpg", 0, 1)]
    for header in (("path", "clean", "aggregate"), ("path", "true", "aggregate")):
        with open(tmp_path / "x.csv", "w", newline="") as file:
            csv.writer(file).writerows([header, *lines])
        read = read_people(tmp_path / "x.csv")
        assert (read.clean.tolist(), read.labels.tolist()) == ([0, 2, 1, 1], [1, 2, 1, 0])  # class "a" before "a-b"
    np.save(tmp_path / "x.npy", np.array([3, 1, 2]))
    read = read_people(tmp_path / "x.npy", "worse")
    assert read.clean is None and read.labels.tolist() == [3, 1, 2]


@pytest.mark.parametrize("write", [torch.save, lambda what, path: path.write_bytes(pickle.dumps(what))],
                         ids=["torch.save", "pickle"])
@pytest.mark.parametrize("where", ["alone", "beside", "within"])
def test_nothing_is_run(write, where, tmp_path):
    """A pickle that asks for code, alone, beside the arrays or in one of them, is refused, and runs nothing."""
    evil, found = Evil(tmp_path / "touched"), of_the_authors(np.zeros(3, int))
    objects = np.empty(1, object)
    objects[0] = evil
    what = {"alone": evil, "beside": {**found, "more": evil}, "within": {**found, "aggre_label": objects}}[where]
    write(what, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="it asks for code to be run|cannot be read|read safely"):
        read_people(tmp_path / "x.pt")
    np.save(tmp_path / "x.npy", objects, allow_pickle=True)
    with pytest.raises(ValueError, match="holds no array of numbers"):
        read_people(tmp_path / "x.npy")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("name, content, text", [
    ("x.txt", b"1 2", "does not end in .pt, .npy or .csv"),
    ("x.pt", b"", "holds no labels that can be read safely"),
    ("x.pt", [1, 2], "holds a list, expected a dict of arrays"),
    ("x.pt", {"clean_label": np.arange(3)}, "has no aggre_label or aggregate, only clean_label"),
    ("x.pt", {"aggre_label": np.ones(3)}, r"aggre_label in .* is float64 \(3,\), expected one whole number"),
    ("x.pt", {"aggre_label": np.ones((3, 2), int)}, r"is int64 \(3, 2\)"),
    ("x.pt", {"aggre_label": [1, 2]}, "is list, expected one whole number"),
    ("x.pt", {"aggre_label": np.arange(3), "clean_label": np.arange(4)}, "3 labels by people and 4 clean ones"),
    ("x.csv", b"path,clean,aggregate\na,1,x\n", "is no table of labels"),
    ("x.csv", b"path,clean,aggregate\na,1\n", "is no table of labels"),
    ("x.csv", b'path,clean,aggregate\n"a"b,1,1\n', "is no table of labels"),
    ("x.csv", b"", "has no aggre_label or aggregate"),
    ("x.csv", b"\xff\xfe", "is no table of labels"),
    ("x.npy", b"abc", "holds no array of numbers"),
    ("none.pt", None, "cannot read .*none.pt .No such file"),
])
def test_odd_files(name, content, text, tmp_path):
    """A file of something else is an error that says what it is and what is wanted; so is a column that none has."""
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / name)
    with pytest.raises(ValueError, match=text):
        read_people(tmp_path / name)
    with pytest.raises(ValueError, match="human-column is 'best'; choose from aggre, worse, random1"):
        read_people(tmp_path / name, "best")


# --- Order ------------------------------------------------------------------------------------------------------------

@given(seeds, st.integers(1, 12))
def test_a_folder_is_in_the_order_of_its_classes(seed, n):
    """In a folder the k-th image of a class has the label of the k-th one with that clean label, by a loop."""
    clean = torch.randint(0, 4, (n,), generator=gen(seed))
    read = by_people(clean.numpy(), seed)
    tree = dataset_of(clean.sort().values, name="folder")
    wanted = [int(read.labels[i]) for c in range(4) for i in range(n) if clean[i] == c]
    assert in_order(read, tree).tolist() == wanted
    assert torch.equal(in_order(read, dataset_of(clean)), read.labels)
    if not torch.equal(tree.train.labels, clean):
        with pytest.raises(ValueError, match="differ from the data set's at .* its order is another"):
            in_order(read, replace(tree, name="cifar10"))


def test_an_order_that_nothing_checks_is_doubted(capsys):
    """A file without clean labels most of whose labels are others than the data set's may be in another order."""
    data = dataset_of([0, 1, 2, 3])
    for labels, doubted in (([0, 1, 3, 2], False), ([1, 0, 3, 3], True)):
        assert in_order(People("x.npy", torch.tensor(labels), None), data).tolist() == labels
        assert ("3 of its 4 labels differ" in capsys.readouterr().err) == doubted
    in_order(replace(by_people(np.array([0, 1, 2, 3])), labels=torch.tensor([1, 0, 3, 2])), data)
    assert capsys.readouterr().err == ""


def test_labels_are_of_the_images_that_they_name(tmp_path):
    """Where a table names its images it must name those of the folder, whatever their suffix and above which folder;
    they come in the folder's order, in which what lies in a class comes before what lies deeper."""
    (tmp_path / "x.csv").write_text("path,clean,aggregate\ntrain/bee/b.png,1,3\ntrain/ant/z/a.png,0,2\n"
                                    "train/ant/z.png,0,1\n")
    read, files = read_people(tmp_path / "x.csv"), ["/s/train/ant/z.jpg", "/s/train/ant/z/a.png", "/s/train/bee/b.png"]
    found = of_files(read, files)
    assert found.images == [file.removeprefix("/s/").replace("jpg", "png") for file in files]
    assert (found.labels.tolist(), found.clean.tolist()) == ([1, 2, 3], [0, 0, 1])
    short = replace(read, images=["z\\a.png", "ant/z.png", "b"], clean=None, labels=torch.tensor([2, 1, 3]))
    assert of_files(short, files).labels.tolist() == [1, 2, 3]
    for names, text in ((["train/ant/y.png", *files[1:]], "has no labels of train/ant/y.png, but of such as train/ant"),
                        (files[:2], "has labels of train/bee/b.png, which the folder has not"),
                        ([*files, files[0]], "has one image twice")):
        with pytest.raises(ValueError, match=text):
            of_files(read, names)


def test_a_folder_has_the_images_that_its_labels_name(tmp_path, capsys):
    """By the command, too: labels of other files, as many and of the same classes, are refused before any training."""
    for part in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(tmp_path / part / name / f"{i}.png")
    argv = ["--task", "human", "--dataset", "folder", "--data-dir", str(tmp_path), "--image-size", "16", "--epochs",
            "1", "--width", "0.05", "--method", "no-ul", "--device", "cpu", "--out", str(tmp_path / "x.jsonl"),
            "--human-labels", str(tmp_path / "x.csv")]
    for shift, code in ((0, 0), (1, 2)):
        lines = [f"{name}/{i + shift}.png,{y},{int(i == 2) ^ y}" for y, name in enumerate(("ant", "bee"))
                 for i in range(4)]
        (tmp_path / "x.csv").write_text("path,clean,aggregate\n" + "\n".join(lines))
        assert run.main(argv) == code
    assert "train/ant/0.png, but of such as ant/1.png; give the labels of these images" in capsys.readouterr().err


@given(seeds)
def test_a_part_has_its_own_labels(seed):
    """The images of a part keep the labels that they have in the whole set, in a folder too."""
    clean = (torch.arange(40) % 4)[torch.randperm(40, generator=gen(seed))]
    read = by_people(clean.numpy(), seed)
    for name, whole in (("made", clean), ("folder", clean.sort().values)):
        dataset = dataset_of(whole, name=name)
        part = part_of(dataset, per_class=3)
        assert torch.equal(in_order(read, part), in_order(read, dataset)[part.index])


@pytest.mark.parametrize("labels, clean, text", [
    (torch.arange(19) % 4, torch.arange(19) % 4, "has 19 labels and the data set 20 training"),
    (torch.arange(20) % 4 + 1, torch.arange(20) % 4, "run from 1 to 4, expected 0 to 3"),
    (torch.arange(20) % 4 - 1, torch.arange(20) % 4, "run from -1 to 2, expected 0 to 3"),
    (torch.arange(20) % 4, torch.arange(20) % 3, "differ from the data set's at 14 of 20"),
    (torch.arange(20) % 4, torch.zeros(20, dtype=torch.int64), "differ from the data set's at 15 of 20"),
])
@pytest.mark.parametrize("name", ["made", "folder"])
def test_labels_of_other_images(name, labels, clean, text):
    """Labels of another number, class or order of images are refused, with both numbers."""
    with pytest.raises(ValueError, match=text):
        in_order(People("x.pt", labels, clean), dataset_of(torch.arange(20) % 4, name=name))


# --- The task ---------------------------------------------------------------------------------------------------------

@given(seeds)
def test_people_make_a_task(seed):
    """D_c is where people's labels differ from the data set's; labels as given are theirs; images stay."""
    dataset = make_dataset(seed, n=40)
    labels = torch.tensor(of_the_authors(dataset.train.labels.numpy(), seed)["worse_label"])
    if torch.equal(labels, dataset.train.labels):
        labels[0] = (labels[0] + 1) % 4
    task = people(dataset, labels, seed)
    assert task.name == "human" and torch.equal(task.train.labels, labels) and task.train.images is dataset.train.images
    assert torch.equal(task.clean, dataset.train.labels)
    assert task.corrupted.tolist() == [i for i in range(40) if labels[i] != task.clean[i]]
    assert torch.equal(discover(task, 1.0, seed), task.corrupted) and like_corrupted(task) is dataset.test
    labels += 1
    assert int(task.train.labels.max()) < 4  # a copy


@pytest.mark.parametrize("labels, text", [(torch.arange(24) % 4, "no label by people differs"),
                                          (torch.zeros(23, dtype=torch.int64), "23 labels by people for 24")])
def test_nothing_to_unlearn(labels, text):
    """Labels without a mistake, or of another number, make no task."""
    with pytest.raises(ValueError, match=text):
        people(dataset_of(torch.arange(24) % 4), labels, 0)


def test_command_line(few, tmp_path, monkeypatch, capsys):  # noqa: F811
    """`--task human` trains on people's labels and writes their number, column and file into the row."""
    monkeypatch.chdir(tmp_path)
    found = of_the_authors(load_few("fashion-mini").train.labels.numpy(), classes=10)
    torch.save(found, "people.pt")
    argv = ["--task", "human", "--epochs", "1", "--width", "0.05", "--method", "no-ul,npo", "--device", "cpu",
            "--max-passes", "1", "--gamma", "1", "--out", "x.jsonl"]
    assert run.main([*argv, "--human-labels", "people.pt", "--human-column", "random2"]) == 0
    wrong = int((found["random_label2"] != found["clean_label"]).sum())
    rows = rows_of("x.jsonl")
    assert [(row["task"], row["n"], row["human_column"], row["misled"]) for row in rows] == [
        ("human", wrong, "random2", None)] * 2
    assert rows[0]["human_labels"] == str(tmp_path.resolve() / "people.pt")
    assert f"human (random2) on fashion-mini: 128 images of 16x16, {wrong} corrupted" in capsys.readouterr().out
    assert "name their file with --human-labels" in refusal(capsys, *argv)


def test_a_table_that_was_written_on_windows_names_its_images():
    """Its lines are put in the folder's order with their clean labels, though class "a-b" came before "a"."""
    names = ["a-b\\0.png", "a\\0.png", "a\\1.png"]
    read = People("x.csv", torch.tensor([1, 0, 1]), torch.tensor([1, 0, 0]), names)
    found = of_files(read, ["/s/train/a/0.png", "/s/train/a/1.png", "/s/train/a-b/0.png"])
    assert (found.labels.tolist(), found.clean.tolist()) == ([0, 1, 1], [0, 0, 1])
    dataset = dataset_of(found.clean, name="folder", classes=2)
    assert torch.equal(in_order(found, dataset), found.labels)
