"""Lists of known bad images and their true labels (repair/lists.py, B1 to B3, Y4), and the folder (inputs.py, B4)."""

import pytest
import torch
from PIL import Image

from image_tree import CLASSES, root, training, written  # noqa: F401
from repair import lists
from repair.inputs import Reading, load, open_folder
from repair.lists import read_file, read_lists


def listed(root, *files, classes=CLASSES, ordered=True):
    """What such lists say of the ten training images."""
    return read_lists({str(file): read_file(file) for file in files}, training(root), root, list(classes), ordered)


# --- Lists of bad images ----------------------------------------------------------------------------------------------

WANTED = [1, 6, 9]  # ant/1.png, bee/1.png, bee/alone.png
LISTS = {
    "to the folder.txt": "train/ant/1.png\n\ntrain/bee/1.png\ntrain/bee/alone.png\n",
    "to train.txt": "ant/1.png\r\n./bee/1.png\r\nbee/../bee/alone.png",
    "mixed.txt": "ant\\1.png\nROOT/train/bee/1.png\nalone.png\n",
    "with a mark.txt": "\ufeffant/1.png\nbee/1.png\nalone.png\n",
    "twice.txt": "alone.png\nant/1.png\nbee/1.png\nalone.png\n",
    "indices.txt": "9\n1\n6\n",
    "no suffix": "9\n1\n6\n",
    **{f"{column}.csv": f"n,{column}\n1,ant/1.png\n2, bee/1.png\n3,alone.png\n"
       for column in ("filename", "filepath", "path", "image", "file")},
    "cleanlab.csv": ",is_label_issue,label_score\n0,False,1\n1,True,0\n6,True,0\n9,TRUE,0\n",
    "Capitals.CSV": "Path,BAD\nant/0.png,\nant/1.png,true\nbee/1.png,TRUE\nalone.png,1\n",
    "semicolons.csv": "rank;filename;label_score;Bad\r\n1;ant/0.png;0,5;\r\n2;ant/1.png;0,1;TRUE\r\n"
                      "3;bee/1.png;0,1;true\r\n4;alone.png;0;true\r\n",
    "tabs.csv": "filename\tbad\nant/1.png\ttrue\nant/2.png\tfalse\nbee/1.png\ttrue\nalone.png\ttrue\n",
    "index and path.csv": ",path\n0,ant/1.png\n1,bee/1.png\n2,alone.png\n",  # as pandas writes it: the path counts
}


@pytest.mark.parametrize("name", LISTS)
def test_every_kind_of_list_finds_the_same_images(tmp_path, root, name):
    """B1: paths of every kind, indices and CSV columns give the same D_f, and say how many lines matched."""
    found = listed(root, written(tmp_path, name, LISTS[name], root))
    assert found.forget.dtype == torch.int64 and found.forget.tolist() == WANTED and found.truths is None
    lines = 4 if name == "twice.txt" else 3
    assert f"{lines} lines, 3 images: train/ant/1.png to train/bee/alone.png" in found.said


@pytest.mark.parametrize("name, content, words", [
    ("a.txt", "ant/1.png\nant/77.png\nval/bee/9.png\n", r"3 lines, 1 matched.*'ant/77.png', 'val/bee/9.png'; paths "),
    ("a.txt", "1\n10\n", r"2 lines, 1 matched.* for 10;"),
    ("a.txt", "1.png\n", r"'1.png' \(2 images have this name\)"),
    ("a.txt", "\n \n", "lists no image"),
    ("a.txt", "\n".join(str(i) for i in range(100, 130)), "and 10 more"),
    ("a.txt", "0\n1\n0\n1\n", "list of 0 and 1"),
    ("a.txt", "1\n5\n007\n", "for '1', '5', '007'"),  # names, since one of them is no index
    ("a.txt", "1" * 20, " for 1{20};"), ("a.txt", "1" * 21, " for '1{21}';"),  # a number, and a name
    ("a.txt", "9" * 5000, r"a.txt: 1 lines, 0 matched.*999\.\.\. \(5,000 letters\)"),
    ("a.csv", "name,score\na,1\n", "columns name, score; one must be filename"),
    ("a.csv", "path,is_label_issue\nant/1.png,maybe\n", "column is_label_issue has 'maybe'; it must be true, false"),
    ("a.csv", 'path,bad\n"a\nb",true\nant/2.png\n', "a line of 1 values for 2 columns, it begins with 'ant/2.png'"),
    ("a.csv", "path,is_label_issue\nant/1.png,False\n", "lists no image"),
    ("a.csv", "", "has the columns"),
    ("a.csv", "rank,filename,label_score\n1,ant/1.png,0.1\n", "lists suspects, bad or not; add a column `bad`"),
    ("a.csv", "path,bad,Bad\nant/1.png,true,\n", "the column 'bad' twice"),
    ("a.npy", b"\x93NUMPY", r"a.npy is no list; give a .txt file .*numpy.savetxt"),
    ("a.txt", b"\xff\xfe\x00", "cannot read .*it must be a text file in UTF-8"),
    ("none.txt", None, "cannot read"),
])
def test_what_matches_nothing_stops(tmp_path, root, name, content, words):
    """B2: every line that is no training image is named; a list that is none is refused."""
    path = tmp_path / name if content is None else written(tmp_path, name, content)
    with pytest.raises(ValueError, match=words):
        listed(root, path)


def test_a_list_is_bounded(tmp_path, monkeypatch):
    """B2: no more than LARGEST bytes are read."""
    monkeypatch.setattr(lists, "LARGEST", 9)
    assert read_file(written(tmp_path, "a.txt", b"ant/1.png")) == b"ant/1.png"
    with pytest.raises(ValueError, match="a.txt has more than 0 MB"):
        read_file(written(tmp_path, "a.txt", b"ant/1.png\n"))


def test_paths_from_here(tmp_path, root, monkeypatch):
    """B1: what find writes, a path from the present folder or through a linked one, is found; a path from the folder
    comes before one from here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "linked").symlink_to(root, target_is_directory=True)
    file = written(tmp_path, "x.txt", f"pictures/train/ant/1.png\n./pictures/train/bee/1.png\n{tmp_path}/linked/train/"
                                      "bee/alone.png\n")
    assert listed(root, file).forget.tolist() == WANTED
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "1.png").symlink_to(root / "train" / "bee" / "3.png")
    assert listed(root, written(tmp_path, "y.txt", "ant/1.png\n")).forget.tolist() == [1]


def test_lists_together(tmp_path, root):
    """B1, S15: lists count together, each image once; one that lists nothing is passed over beside others, which is
    said, and refused alone."""
    first, second = written(tmp_path, "a.txt", "alone.png\nant/1.png\n"), written(tmp_path, "b.txt", "6\n1\n")
    nothing = written(tmp_path, "n.csv", "path,bad\nant/0.png,\n")
    found = listed(root, second, nothing, first)
    assert found.forget.tolist() == WANTED and f"{nothing}: nothing bad in it" in found.said
    with pytest.raises(ValueError, match="n.csv lists no image"):
        listed(root, nothing)


# --- True labels ------------------------------------------------------------------------------------------------------

CASES = {  # by names or numbers, of all or some of the bad rows; rows that are not bad count for nothing
    "all": ("path,true_label\nant/1.png,bee\nbee/1.png,ant\n", {1: "bee", 6: "ant"}),
    "some": ("path,bad,true_label\nant/1.png,true,1\nbee/1.png,true,\nant/0.png,,\n", {1: "bee"}),
    "good rows": ("path,bad,true_label\nant/1.png,true,bee\nant/0.png,false,bee\n", {1: "bee"}),
    "twice": ("path,true_label\nant/1.png,1\nant/1.png,bee\nant/1.png,\n", {1: "bee"}),
    "indices": (",true_label\n1,bee\n6,0\n", {1: "bee", 6: "ant"}),
    "nothing": ("path,true_label\nant/1.png,\n", None),
    "no column": ("path,given_label\nant/1.png,ant\n", None)}


@pytest.mark.parametrize("name", CASES)
def test_a_column_of_true_labels(tmp_path, root, name):
    """Y4, B3: true labels by class names or numbers, of all or some listed images."""
    content, wanted = CASES[name]
    folder = open_folder(root, [written(tmp_path, "bad.csv", content)])
    if wanted is None:
        assert folder.truths is None and "true label" not in folder.said
        return
    found = {i: folder.classes[y] for i, y in zip(folder.forget.tolist(), folder.truths.tolist()) if y >= 0}
    assert found == wanted and f"{len(wanted)} of these with a true label" in folder.said


@pytest.mark.parametrize("classes, label, place", [
    (("0", "1", "10", "11", "2"), "2", 4), (("0", "1", "10", "11", "2"), "10", 2),  # folders as strings sort
    (("2", "1", "0"), "0", 2), (("bee", "ant"), "0", 0), (("bee", "ant"), "ant", 1),  # a class map in another order
    (("1", "bee", "ant"), "1", 0), (("1", "bee", "ant"), "2", 2)])
def test_a_label_that_is_a_name_means_that_class(tmp_path, root, classes, label, place):
    """B3: a label that is a class's name is that class, whatever place it has; only others are places."""
    file = written(tmp_path, "c.csv", f"path,true_label\nant/1.png,{label}\n")
    assert listed(root, file, classes=classes).truths.tolist() == [place]


def test_true_labels_that_contradict(tmp_path, root):
    """Y4: a true label that is the given one or no class is refused with the image, and two lists that contradict each
    other are; a class without images may be a true one."""
    for label, words in (("ant", "1.png is listed as bad, but its true label is the label that it has"),
                         ("wasp", "the true_label 'wasp' of 1.png is no class; they are ant, bee")):
        with pytest.raises(ValueError, match=words):
            open_folder(root, [written(tmp_path, "bad.csv", f"path,true_label\nant/1.png,{label}\n")])
    one, two = written(tmp_path, "a.csv", "path,true_label\nant/1.png,bee\n"), written(tmp_path, "b.txt", "bee/1.png\n")
    order = written(tmp_path, "order.txt", "ant\nbee\ncat\n")
    folder = open_folder(root, [one, two], order)
    assert folder.forget.tolist() == [1, 6] and folder.truths.tolist() == [1, -1]
    other = written(tmp_path, "c.csv", "path,true_label\nant/1.png,cat\n")
    with pytest.raises(ValueError, match="1.png has the true labels 'bee' and 'cat'"):
        open_folder(root, [one, other], order)


# --- The folder -------------------------------------------------------------------------------------------------------

def test_the_folder(tmp_path, root):
    """B4: images, labels and held-out images as the folders say, by the training images' mean; nothing is written.
    Held out is test/ before val/."""
    before, bad = sorted(root.rglob("*")), [written(tmp_path, "b.txt", "9")]
    folder = open_folder(root, bad)
    assert (folder.classes, folder.paths, folder.forget.tolist()) == (list(CLASSES), training(root), [9])
    train, heldout = load(folder, Reading(8))
    assert (train.labels.tolist(), heldout.labels.tolist()) == ([0] * 5 + [1] * 5, [1])
    assert train.images[3, :, 0, 0].tolist() == [30, 0, 200] and heldout.images[0, 0].eq(90).all()
    assert train.mean[0] == pytest.approx(160 / 2550) and train.mean == heldout.mean
    assert sorted(root.rglob("*")) == before
    (root / "test" / "ant").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "test" / "ant" / "7.png")
    folder = open_folder(root, bad)
    assert folder.heldout == [(root / "test" / "ant" / "7.png", 0)] and "held out" not in folder.said
    for part in ("test", "val"):
        (root / part).rename(tmp_path / part)
    assert load(open_folder(root, bad), Reading(8))[1] is None


def test_the_class_map(tmp_path, root):
    """B4: a class map gives the order, may name more classes, and must name every folder; a single class is refused."""
    def opened(text, bad="alone.png"):
        return open_folder(root, [written(tmp_path, "b.txt", bad)], written(tmp_path, "m.txt", text))

    train, heldout = load(opened("cat\nbee\nant\n"), Reading(8))
    assert (train.labels.tolist(), train.classes, heldout.labels.tolist()) == ([2] * 5 + [1] * 5, 3, [1])
    for text, words in (("ant\n", "does not name the folder 'bee'"), ("ant\nbee\nant\n", "names a class twice")):
        with pytest.raises(ValueError, match=words):
            opened(text)
    assert opened("ant\ncat\nbee\n", "9").forget.tolist() == [9]
    with pytest.raises(ValueError, match="b.txt has indices, and --class-map another order.*give paths"):
        opened("bee\nant\n", "9")  # the tenth of ant, bee or of bee, ant?
    (root / "train" / "ant").rename(tmp_path / "ant")
    with pytest.raises(ValueError, match="train has one class, 'bee'; a classifier has two at least: .* --class-map"):
        open_folder(root, [tmp_path / "b.txt"])


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
    folder = open_folder(root, [written(tmp_path, "b.txt", "9")])
    assert folder.heldout == [(root / "val" / "bee" / "9.png", 1)] and f"held out is {root / 'val'}: " in folder.said
    (root / "val").rename(tmp_path / "away")
    with pytest.raises(ValueError, match=f"{words}; move it away if nothing shall be held out"):
        open_folder(root, [tmp_path / "b.txt"])
