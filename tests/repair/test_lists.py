"""What a user brings to a repair (inputs.py and lists.py, B1 to B4): the folder, lists, true labels, class order."""

import io
import json
import shutil
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

from image_tree import CLASSES, root, training, written  # noqa: F401
from repair import lists as reading
from repair.images import Reading
from repair.inputs import open_folder
from repair.lists import read_bad, read_labels

# --- Lists of bad images ----------------------------------------------------------------------------------------------

WANTED = [1, 6, 9]  # ant/1.png, bee/1.png, bee/alone.png
LISTS = {
    "to the folder.txt": "train/ant/1.png\n\ntrain/bee/1.png\ntrain/bee/alone.png\n",
    "to train.txt": "ant/1.png\r\n./bee/1.png\r\nbee/../bee/alone.png",
    "mixed.txt": "ant\\1.png\nROOT/train/bee/1.png\nalone.png\n",
    "with a mark.txt": "\ufeffant/1.png\nbee/1.png\nalone.png\n",
    "twice.txt": "alone.png\nant/1.png\nbee/1.png\nalone.png\n",
    "indices.txt": "9\n1\n6\n",
    "paths.json": json.dumps(["ant/1.png", "bee/1.png", "alone.png"]),
    "named.json": json.dumps({"paths": ["ant/1.png", "bee/1.png", "alone.png"]}),
    "indices.json": json.dumps({"indices": [1, 6, 9]}),
    "numbers.json": "[9, 6, 1]",
    **{f"{column}.csv": f"n,{column}\n1,ant/1.png\n2, bee/1.png\n3,alone.png\n"
       for column in ("filename", "filepath", "path", "image", "file", "img_filename")},
    "cleanlab.csv": ",is_label_issue,is_outlier_issue,label_score\n0,False,True,1\n1,True,False,0\n6,True,True,0\n"
                    "9,TRUE,False,0\n",
    "cleanvision.csv": "path,is_dark_issue,is_blurry_issue\nant/0.png,0,0\nant/1.png,1,0\nbee/1.png,0,1\n"
                       "alone.png,1,1\n",
    "SUFFIX.CSV": "path,bad\nant/0.png,\nant/1.png,true\nbee/1.png,true\nalone.png,true\n",
    "Suffix.Json": json.dumps(["ant/1.png", "bee/1.png", "alone.png"]),
    "Capitals.csv": "Path,BAD\nant/0.png,\nant/1.png,true\nbee/1.png,TRUE\nalone.png,True\n",
    "semicolons.csv": "rank;filename;label_score;Bad\r\n1;ant/0.png;0,5;\r\n2;ant/1.png;0,1;TRUE\r\n"
                      "3;bee/1.png;0,1;true\r\n4;alone.png;0;true\r\n",
    "an earlier version.csv": "rank,filename,index,given_label,predicted_label,score,label_score,similar,bad\n"
                              "1,alone.png,1,bee,ant,1.5,0.2,0.9,true\n2,ant/2.png,2,ant,bee,1.5,0.2,0.9,\n"
                              "3,bee/1.png,3,bee,ant,1.5,0.2,0.9,TRUE\n4,ant/1.png,4,ant,bee,1.5,0.2,0.9,true\n",
    "tabs.csv": "filename\tbad\nant/1.png\ttrue\nant/2.png\tfalse\nbee/1.png\ttrue\nalone.png\ttrue\n",
    "indices.npy": np.array([6, 1, 9]),
    "index and path.csv": ",path\n0,ant/1.png\n1,bee/1.png\n2,alone.png\n",  # as pandas writes it: the path counts
    "two paths.csv": "img_filename,filename\nant/0.png,ant/1.png\nant/0.png,bee/1.png\nant/0.png,alone.png\n",
    "answers.csv": "path,is_label_issue,bad\nant/0.png,True,\nant/1.png,False,true\nbee/1.png,,true\n"
                   "alone.png,True,true\n",  # what the user typed counts
    "both.json": json.dumps({"indices": [0], "paths": ["ant/1.png", "bee/1.png", "alone.png"]}),
    "a score.csv": "path,score,label,is_bad\nant/1.png,0.5,0,\nbee/1.png,1,1,true\nalone.png,0,0,1\n",  # no verdict
    "no for a class.csv": "path,given_label,predicted_label\nant/1.png,no,yes\nbee/1.png,yes,no\nalone.png,no,no\n",
    "excel.csv": "sep=;\r\npath;score\r\nant/1.png;0,5\r\nbee/1.png;0,1\r\nalone.png;0\r\n",
    "one class.csv": "path,label\nant/1.png,0\nbee/1.png,0\nalone.png,0\n",  # nor is this
}


@pytest.mark.parametrize("name", LISTS)
def test_every_kind_of_list_finds_the_same_images(tmp_path, root, name):
    """B1: paths of every kind, indices, CSV columns and JSON give the same D_f, and say how many lines matched."""
    forget, said = read_bad(written(tmp_path, name, LISTS[name], root), training(root), root)
    assert forget.dtype == torch.int64 and forget.tolist() == WANTED
    lines = 4 if name == "twice.txt" else 3
    assert f"{lines} lines, {lines} matched" in said and said.endswith("train/ant/1.png to train/bee/alone.png")
    assert ("1 of them twice" in said) == (lines == 4)


ARCHIVE = io.BytesIO()  # what numpy saves of two arrays together
np.savez(ARCHIVE, a=[1], b=[2])


@pytest.mark.parametrize("name, content, words", [
    ("a.txt", "ant/1.png\nant/77.png\nval/bee/9.png\n", r"3 lines, 1 matched.*'ant/77.png', 'val/bee/9.png'"),
    ("a.txt", "1\n10\n", r"2 lines, 1 matched.* for 10;"),
    ("a.txt", "1.png\n", r"'1.png' \(2 images have this name\)"),
    ("a.txt", "\n \n", "lists no image"),
    ("a.txt", "\n".join(str(i) for i in range(100, 130)), "and 10 more"),
    ("a.txt", "0\n1\n0\n1\n", "list of 0 and 1"),
    ("a.csv", "name,score\na,1\n", "columns name, score; one must be filename"),
    ("a.csv", "path,is_label_issue\nant/1.png,maybe\n", "line 2: is_label_issue is 'maybe'"),
    ("a.csv", "path,bad\n\n\nant/1.png,true\n\nant/2.png,?\n", r"line 6: bad is '\?'"),
    ("a.csv", 'path,bad\n"a\nb",true\nant/2.png\n', "line 4: 1 values for 2 columns"),
    ("a.csv", "path,is_label_issue\nant/1.png,False\n", "lists no image"),
    ("a.csv", "", "has the columns"),
    ("a.csv", "rank,filename,label_score\n1,ant/1.png,0.1\n", "lists suspects, bad or not; add a column `bad`"),
    ("a.csv", "path,bad,Bad\nant/1.png,true,\n", "the column 'bad' twice"),
    ("a.csv", "path,mine\nant/1.png,True\nant/2.png,False\n", "column 'mine' seems to say which are bad; call it bad"),
    ("a.csv", "path,mislabeled\nant/1.png,1\nant/2.png,0\n", "column 'mislabeled' seems"),
    ("a.csv", "path,is_flagged\nant/1.png,yes\nant/3.png,\nant/2.png,no\n", "column 'is_flagged' seems"),
    ("a.txt", "1\n5\n007\n", r"for '1' \(2 images have this name\), '5', '007'"),  # 1.png is there twice
    ("a.json", "{", "is no JSON"),
    ("a.json", '{"files": []}', "neither a list of paths"),
    ("a.json", "[1.5]", "neither a list of paths"),
    ("a.json", "[true]", "neither a list of paths"),
    ("a.json", "[-1]", "0 matched.*-1"),
    ("a.json", "[" * 100_000, "a.json is no JSON that can be read: it holds too many lists"),
    ("a.json", "[" + "9" * 5000 + "]", "a.json: a number of 5,000 digits, at most 20 are read"),
    ("a.json", "[-" + "9" * 21 + "]", "a.json: a number of 21 digits"),
    ("a.txt", "1" * 20, " for 1{20};"), ("a.txt", "1" * 21, " for '1{21}';"),  # a number, and a name
    ("a.txt", "9" * 5000, r"a.txt: 1 lines, 0 matched.*999\.\.\. \(5,000 letters\)"),
    ("a.csv", ",\n0," + "9" * 5000, r"a.csv has the columns 0, 999\S* \(5,000 letters\)"),
    ("a.csv", "filename,bad\nant/1.png,1\n", "line 2: bad is '1'; it must be True or False"),
    ("a.npy", np.array([True, False]), "holds bool of shape"),
    ("a.npy", np.array([[1]]), r"shape \(1, 1\)"),
    ("a.npy", np.array(["x"], dtype=object), "cannot read the list"),
    ("a.npy", ARCHIVE.getvalue(), "holds <U1 of shape .*give a vector of indices"),
    ("a.npy", ARCHIVE.getvalue()[:99], "cannot read the list"),
    ("a.npz", ARCHIVE.getvalue(), "cannot read .*it must be a text file"),
    ("none.txt", None, "cannot read"),
])
def test_a_line_that_matches_nothing_stops(tmp_path, root, name, content, words):
    """B2: every line that is no training image is named; a list that is none is refused, a pickle in .npy too."""
    path = tmp_path / name if content is None else written(tmp_path, name, content)
    with pytest.raises(ValueError, match=words):
        read_bad(path, training(root), root)


def test_a_list_is_bounded(tmp_path, root, monkeypatch):
    """B2: no more than LARGEST bytes are read, of what a shell gives too."""
    monkeypatch.setattr(reading, "LARGEST", 9)
    assert read_bad(written(tmp_path, "a.txt", b"ant/1.png"), training(root), root)[0].tolist() == [1]
    with pytest.raises(ValueError, match="a.txt has more than 0 MB"):
        read_bad(written(tmp_path, "a.txt", b"ant/1.png\n"), training(root), root)


def test_numbers_that_are_names(tmp_path):
    """B1, B2: a number with a leading zero is a name; one that is an index and another image's name is refused."""
    paths = [tmp_path / "train" / "a" / name for name in ("0002.png", "0001.png", "3.png", "2.png")]

    def read(name, content):
        return read_bad(written(tmp_path, name, content), paths, tmp_path)[0].tolist()

    assert read("b.txt", "0001\n0002") == [0, 1] and read("b.txt", "0001\n3") == [1, 2]  # not all are indices
    assert read("b.txt", "0\n1") == [0, 1]
    with pytest.raises(ValueError, match="b.txt: 3 may be an index or 3.png; give names with their suffix, or ind"):
        read("b.txt", "3\n0")
    assert read("b.txt", "3.png\n0002.png") == [0, 2] and read("b.json", "[3, 0]") == [0, 3]


def test_paths_from_here(tmp_path, root, monkeypatch):
    """B1: what find writes, a path from the present folder or through a linked one, is found, after all other ways."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "linked").symlink_to(root, target_is_directory=True)
    file = written(tmp_path, "x.txt", f"pictures/train/ant/1.png\n./pictures/train/bee/1.png\n{tmp_path}/linked/train/"
                                      "bee/alone.png\n")
    forget, _ = read_bad(file, training(root), root)
    assert forget.tolist() == [1, 6, 9]
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "1.png").symlink_to(root / "train" / "bee" / "3.png")
    assert read_bad(written(tmp_path, "y.txt", "ant/1.png\n"), training(root), root)[0].tolist() == [1]
    with pytest.raises(ValueError, match="'pictures/train/ant/7.png'; paths count from .*pictures, from its train/ or "
                                         "from here"):
        read_bad(written(tmp_path, "z.txt", "pictures/train/ant/7.png\n"), training(root), root)


@pytest.mark.parametrize("own, other", [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_in_either_spelling(tmp_path, root, own, other):
    """B1: a name with an accent is found in either spelling of Unicode; what is spelt exactly so comes first."""
    name = {form: unicodedata.normalize(form, "\u00e4\u00e9.png") for form in ("NFC", "NFD")}
    paths = [*training(root), root / "train" / "bee" / name[own]]
    assert read_bad(written(tmp_path, "x.txt", f"{name[other]}\n"), paths, root)[0].tolist() == [10]
    both = [*paths, root / "train" / "bee" / name[other]]
    assert read_bad(written(tmp_path, "x.txt", f"{name[other]}\n"), both, root)[0].tolist() == [11]


def test_links_are_looked_up_last(tmp_path, root):
    """B1, B2: a path names the image there, not one that links to it; what two link to is ambiguous."""
    (root / "train/bee/link.png").symlink_to(root / "train/ant/1.png")
    blob = tmp_path / "blob.png"
    Image.new("RGB", (8, 8)).save(blob)
    for name in ("ant/x.png", "bee/x.png"):
        (root / "train" / name).symlink_to(blob)
    paths = [root / "train" / "ant" / f"{i}.png" for i in range(2)]
    paths += [root / "train" / name for name in ("bee/link.png", "ant/x.png", "bee/x.png")]
    for entry, wanted in ((root / "train/ant/1.png", 1), ("bee/link.png", 2), (root / "train/bee/x.png", 4)):
        assert read_bad(written(tmp_path, "b.txt", str(entry)), paths, root)[0].tolist() == [wanted]
    with pytest.raises(ValueError, match="2 images have this name"):
        read_bad(written(tmp_path, "b.txt", str(blob)), paths, root)


def test_lists_together(tmp_path, root):
    """B1, S15: lists count together, each image once; one that lists nothing is told, or refused if it is alone."""
    first, second = written(tmp_path, "a.txt", "alone.png\nant/1.png\n"), written(tmp_path, "b.json", "[6, 1]")
    nothing = written(tmp_path, "n.csv", "path,bad\nant/0.png,\n")
    folder = open_folder(root, [second, nothing, first])
    assert folder.forget.tolist() == WANTED and f"{nothing}: nothing bad in it" in folder.said
    assert "2 lines, 2 matched" in folder.said
    for lists in (nothing, [nothing], [nothing, nothing]):
        with pytest.raises(ValueError, match="n.csv lists no image"):
            open_folder(root, lists)


# --- True labels ------------------------------------------------------------------------------------------------------

def labels_of(tmp_path, root, content, classes=CLASSES) -> list[int]:
    """True labels of the ten training images from such a CSV file."""
    return read_labels(written(tmp_path, "c.csv", content), training(root), root, classes).tolist()


@pytest.mark.parametrize("column", ["label", "true_label", "clean_label", "class"])
def test_true_labels(tmp_path, root, column):
    """B3: by class name or number, of images by path or index; -1 where the file says nothing."""
    wanted = [-1, 1] + [-1] * 7 + [0]
    assert labels_of(tmp_path, root, f"path,{column}\nant/1.png,bee\nalone.png,0\n") == wanted
    assert labels_of(tmp_path, root, f",{column}\n1,bee\n9,ant\n") == wanted
    assert labels_of(tmp_path, root, f"path,{column}\nant/1.png,1\nant/1.png,bee\nalone.png,ant\n") == wanted
    assert labels_of(tmp_path, root, f"path,{column}\nant/0.png,\nant/1.png,bee\nalone.png,0\n") == wanted


@pytest.mark.parametrize("classes, label, place", [
    (("0", "1", "10", "11", "2"), "2", 4), (("0", "1", "10", "11", "2"), "10", 2),  # folders as strings sort
    (("2", "1", "0"), "0", 2), (("2", "1", "0"), "2", 0),  # a class map in another order
    (("bee", "ant"), "0", 0), (("bee", "ant"), "ant", 1),  # numbers are in the network's order
    (("1", "bee", "ant"), "1", 0), (("1", "bee", "ant"), "2", 2), (("1", "bee", "ant"), "0", 0)])
def test_a_label_that_is_a_name_means_that_class(tmp_path, root, classes, label, place):
    """B3: a label that is a class's name is that class, whatever place it has; only others are places."""
    assert labels_of(tmp_path, root, f"path,label\nant/1.png,{label}\n", classes)[1] == place


def test_the_truest_column_counts(tmp_path, root):
    """B3: of several columns true_label counts, then clean_label, then label (as in the folder), then class."""
    order = ("true_label", "clean_label", "label", "class")
    for i, first in enumerate(order):
        for second in order[i + 1:]:
            assert labels_of(tmp_path, root, f"path,{second},{first}\nant/1.png,ant,bee\n")[1] == 1


@pytest.mark.parametrize("content, words", [
    ("path,label\nant/1.png,cat\n", "'cat' is no class; they are ant, bee"),
    ("path,label\nant/1.png,2\n", "'2' is no class"),
    ("path,label\nant/1.png,-1\n", "'-1' is no class"),
    ("path,label\nant/9.png,ant\n", "no training image for 'ant/9.png'"),
    ("path,label\nant/1.png,ant\n1.png,bee\nant/1.png,bee\n", "no training image"),
    ("path,label\nant/1.png,ant\nant/1.png,bee\n", "calls 1.png 'ant' and 'bee'; leave one"),
    ("path,truth\nant/1.png,ant\n", "one must be true_label")])
def test_true_labels_that_cannot_be_used(tmp_path, root, content, words):
    """B3: a class or an image that is none, two labels for one image, no column of labels: one line."""
    with pytest.raises(ValueError, match=words):
        labels_of(tmp_path, root, content)


# --- The folder -------------------------------------------------------------------------------------------------------

def test_the_folder(tmp_path, root):
    """B4: images, labels and held-out images as the folders say, by the training images' mean; nothing is written.
    Held out is test/ before val/."""
    before = sorted(root.rglob("*"))
    folder = open_folder(root, written(tmp_path, "b.txt", "9"))
    assert (folder.classes, folder.paths, folder.forget.tolist()) == (list(CLASSES), training(root), [9])
    train, heldout, skipped = folder.load(Reading(8))
    assert (train.labels.tolist(), heldout.labels.tolist(), skipped) == ([0] * 5 + [1] * 5, [1], [])
    assert train.images[3, :, 0, 0].tolist() == [30, 0, 200] and heldout.images[0, 0].eq(90).all()
    assert train.mean[0] == pytest.approx(160 / 2550) and train.mean == heldout.mean
    assert sorted(root.rglob("*")) == before
    (root / "test" / "ant").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "test" / "ant" / "7.png")
    folder = open_folder(root, tmp_path / "b.txt")
    assert folder.heldout == [(root / "test" / "ant" / "7.png", 0)] and "held out" not in folder.said
    for part in ("test", "val"):
        (root / part).rename(tmp_path / part)
    assert open_folder(root, tmp_path / "b.txt").load(Reading(8))[1] is None


def test_a_folder_of_one_class(tmp_path, root):
    """B4: nothing can be told from one class: it is refused, unless a class map names others; a flag that is empty, as
    an unset variable of a shell, is a file that is not there."""
    bad = written(tmp_path, "bad.txt", "alone.png\n")
    with pytest.raises(ValueError, match="cannot read"):
        open_folder(root, bad, clean="")
    shutil.rmtree(root / "train" / "ant")
    with pytest.raises(ValueError, match="train has one class, 'bee'; a classifier has two at least: .* --class-map"):
        open_folder(root, bad)
    assert open_folder(root, bad, None, written(tmp_path, "classes.txt", "ant\nbee\n")).labels.tolist() == [1] * 5


def test_the_class_map(tmp_path, root):
    """B4: a class map gives the order, may name more classes, and must name every folder."""
    def opened(text, bad="alone.png", clean=None):
        lists = written(tmp_path, "b.txt", bad), clean and written(tmp_path, "c.csv", clean)
        return open_folder(root, *lists, written(tmp_path, "m.txt", text))

    folder = opened("cat\nbee\nant\n")
    train, heldout, _ = folder.load(Reading(8))
    assert (train.labels.tolist(), train.classes, heldout.labels.tolist()) == ([2] * 5 + [1] * 5, 3, [1])
    for text, words in (("ant\n", "does not name the folder 'bee'"), ("ant\nbee\nant\n", "names a class twice")):
        with pytest.raises(ValueError, match=words):
            opened(text)
    assert opened("ant\ncat\nbee\n", "9", ",label\n1,bee\n").forget.tolist() == [9]
    for more in (("9",), ("alone.png", ",label\n1,bee\n")):  # the tenth of ant, bee or of bee, ant?
        with pytest.raises(ValueError, match="(b.txt|c.csv) has indices, and --class-map another order.*give paths"):
            opened("bee\nant\n", *more)


@pytest.mark.parametrize("name, words", [("", ""), ("1.png", ""), ("cat/1.png", "has the class 'cat', which .*"),
                                         ("ant/1.png", "is one of the training images below .*")])
def test_a_test_folder_without_labels_is_passed_over(tmp_path, root, name, words):
    """B4: where test/ has no classes or strange ones, or training images by way of links, val/ is held out, which is
    said; without a val/ it is refused."""
    (root / "test" / name).parent.mkdir(parents=True, exist_ok=True)
    (root / "test").mkdir(exist_ok=True)
    if name == "ant/1.png":
        (root / "test" / name).symlink_to(next((root / "train" / "ant").glob("*.png")))
    elif name:
        Image.new("RGB", (8, 8)).save(root / "test" / name)
    folder = open_folder(root, written(tmp_path, "b.txt", "9"))
    assert folder.heldout == [(root / "val" / "bee" / "9.png", 1)] and f"held out is {root / 'val'}: " in folder.said
    (root / "val").rename(tmp_path / "away")
    with pytest.raises(ValueError, match=f"{words}; move it away if nothing shall be held out"):
        open_folder(root, tmp_path / "b.txt")
