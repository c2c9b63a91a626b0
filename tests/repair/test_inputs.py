"""formats/inputs.py, networks.py: the folder, bad lists of every kind, true labels, networks by name."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from torch import nn

from experiment.data import Streamed
from repair import images
from repair.images import Reading, decode
from repair.inputs import Folder, open_folder, read_bad, read_labels
from repair.networks import build_network

CLASSES = ("ant", "bee")


@pytest.fixture
def root(tmp_path) -> Path:
    """pictures/train/{ant,bee}/{0..4}.png, one of them called alone.png, and pictures/val/bee/9.png."""
    root = tmp_path / "pictures"
    for split, name, files in (("train", "ant", "01234"), ("train", "bee", "0123"), ("val", "bee", "9")):
        for i in files:
            path = root / split / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (10 * int(i), 0, 200)).save(path)
    Image.new("RGB", (8, 8)).save(root / "train" / "bee" / "alone.png")
    return root


def training(root: Path) -> list[Path]:
    """The training images in ImageFolder order."""
    return [root / "train" / name for name in [f"ant/{i}.png" for i in range(5)] + [f"bee/{i}.png" for i in range(4)]
            + ["bee/alone.png"]]


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
    "Capitals.csv": "Path,BAD\nant/0.png,\nant/1.png,true\nbee/1.png,TRUE\nalone.png,True\n",
    "semicolons.csv": "rank;filename;label_score;Bad\r\n1;ant/0.png;0,5;\r\n2;ant/1.png;0,1;TRUE\r\n"
                      "3;bee/1.png;0,1;true\r\n4;alone.png;0;true\r\n",
    "tabs.csv": "filename\tbad\nant/1.png\ttrue\nant/2.png\tfalse\nbee/1.png\ttrue\nalone.png\ttrue\n",
    "indices.npy": np.array([6, 1, 9]),
    "a score.csv": "path,score,label,is_bad\nant/1.png,0.5,0,\nbee/1.png,1,1,true\nalone.png,0,0,1\n",  # no verdict
}


def written(folder: Path, name: str, content, root: Path = Path()) -> Path:
    """A list in a file."""
    path = folder / name
    if isinstance(content, np.ndarray):
        np.save(path, content)
    else:
        path.write_text(content.replace("ROOT", str(root)), encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize("name", LISTS)
def test_every_kind_of_list_finds_the_same_images(tmp_path, root, name):
    """B1: paths of every kind, indices, CSV columns and JSON give the same D_f, and say how many lines matched."""
    forget, said = read_bad(written(tmp_path, name, LISTS[name], root), training(root), root)
    assert forget.dtype == torch.int64 and forget.tolist() == WANTED
    lines = 4 if name == "twice.txt" else 3
    assert f"{lines} lines, {lines} matched" in said and said.endswith("train/ant/1.png to train/bee/alone.png")
    assert ("1 of them twice" in said) == (lines == 4)


@pytest.mark.parametrize("name, content, words", [
    ("a.txt", "ant/1.png\nant/77.png\nval/bee/9.png\n", r"3 lines, 1 matched.*'ant/77.png', 'val/bee/9.png'"),
    ("a.txt", "1\n10\n", r"2 lines, 1 matched.* for 10$"),
    ("a.txt", "1.png\n", r"'1.png' \(2 images have this name\)"),
    ("a.txt", "\n \n", "lists no image"),
    ("a.txt", "\n".join(str(i) for i in range(100, 130)), "and 10 more"),
    ("a.txt", "0\n1\n0\n1\n", "list of 0 and 1"),
    ("a.csv", "name,score\na,1\n", "columns name, score; one must be filename"),
    ("a.csv", "path,is_label_issue\nant/1.png,maybe\n", "line 2: is_label_issue is 'maybe'"),
    ("a.csv", "path,is_label_issue\nant/1.png\n", "line 2: 1 values for 2 columns"),
    ("a.csv", "path,bad\n\n\nant/1.png,true\n\nant/2.png,?\n", r"line 6: bad is '\?'"),
    ("a.csv", 'path,bad\n"a\nb",true\nant/2.png\n', "line 4: 1 values for 2 columns"),
    ("a.csv", "path,is_label_issue\nant/1.png,False\n", "lists no image"),
    ("a.csv", "", "has the columns"),
    ("a.csv", "rank,filename,label_score\n1,ant/1.png,0.1\n", "lists suspects, bad or not; add a column `bad`"),
    ("a.csv", "Rank;Filename;Label_score;similar\n1;ant/1.png;0,1;0\n", "add a column `bad`"),
    ("a.csv", "path,bad,Bad\nant/1.png,true,\n", "the column 'bad' twice"),
    ("a.csv", "path,mine\nant/1.png,True\nant/2.png,False\n", "column 'mine' seems to say which are bad; call it bad"),
    ("a.csv", "path,mislabeled\nant/1.png,1\nant/2.png,0\n", "column 'mislabeled' seems"),
    ("a.csv", "path,poison_indicator\nant/1.png,0\n", "column 'poison_indicator' seems"),
    ("a.csv", "path,is_flagged\nant/1.png,yes\nant/3.png,\nant/2.png,no\n", "column 'is_flagged' seems"),
    ("a.txt", "1\n5\n007\n", r"for '1' \(2 images have this name\), '5', '007'"),  # 1.png is there twice
    ("a.json", "{", "is no JSON"),
    ("a.json", '{"files": []}', "neither a list of paths"),
    ("a.json", "[1.5]", "neither a list of paths"),
    ("a.json", "[true]", "neither a list of paths"),
    ("a.json", "[-1]", "0 matched.*-1"),
    ("a.json", "[" * 100_000, "is no JSON"),
    ("a.npy", np.array([True, False]), "holds bool of shape"),
    ("a.npy", np.array([[1]]), r"shape \(1, 1\)"),
    ("a.npy", np.array(["x"], dtype=object), "cannot read the list"),
    ("none.txt", None, "cannot read"),
])
def test_a_line_that_matches_nothing_stops(tmp_path, root, name, content, words):
    """B2: every line that is no training image is named; a list that is none is refused, a pickle in .npy too."""
    path = tmp_path / name if content is None else written(tmp_path, name, content)
    with pytest.raises(ValueError, match=words):
        read_bad(path, training(root), root)


def test_numbers_that_are_names(tmp_path):
    """B1, B2: a number with a leading zero is a file's name without its suffix; one that is an index and the name of
    another image is refused, in a text file, and an index elsewhere."""
    paths = [tmp_path / "train" / "a" / name for name in ("0002.png", "0001.png", "3.png", "2.png")]
    def read(name, content):
        return read_bad(written(tmp_path, name, content), paths, tmp_path)[0].tolist()

    assert read("b.txt", "0001\n0002") == [0, 1] and read("b.txt", "0001\n3") == [1, 2]  # not all are indices
    assert read("b.txt", "0\n1") == [0, 1]
    with pytest.raises(ValueError, match=r"b.txt: 3 may be an index or 3.png; give names with their suffix, or indices"):
        read("b.txt", "3\n0")
    assert read("b.txt", "3.png\n0002.png") == [0, 2] and read("b.json", "[3, 0]") == [0, 3]


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


def test_true_labels(tmp_path, root):
    """B3: class names, or numbers where they are no names; -1 where the file says nothing."""
    for label in ("label", "true_label", "clean_label", "class"):
        path = written(tmp_path, "c.csv", f"path,{label}\nant/1.png,bee\nalone.png,0\n")
        assert read_labels(path, training(root), root, CLASSES).tolist() == [-1, 1] + [-1] * 7 + [0]
    path = written(tmp_path, "i.csv", ",label\n1,bee\n9,ant\n")
    assert read_labels(path, training(root), root, CLASSES).tolist() == [-1, 1] + [-1] * 7 + [0]
    assert read_labels(path, training(root), root, ("1", "bee", "ant"))[9] == 2
    path = written(tmp_path, "both.csv", "filename,label,true_label\nant/1.png,ant,bee\n")  # label: as in the folder
    assert read_labels(path, training(root), root, CLASSES)[1] == 1
    for content, words in (("path,label\nant/1.png,cat\n", "'cat' is no class; they are ant, bee"),
                           ("path,label\nant/9.png,ant\n", "no training image for 'ant/9.png'"),
                           ("path,label\nant/1.png,ant\n1.png,bee\nant/1.png,bee\n", "no training image"),
                           ("path,label\nant/1.png,ant\nant/1.png,bee\n", "calls 1.png 'ant' and 'bee'; leave one"),
                           ("path,truth\nant/1.png,ant\n", "one must be true_label")):
        with pytest.raises(ValueError, match=words):
            read_labels(written(tmp_path, "bad.csv", content), training(root), root, CLASSES)


def test_the_folder(tmp_path, root):
    """B4: images, labels and held-out images as the folders say; a normalisation of their own if none is given."""
    folder = open_folder(root, written(tmp_path, "b.txt", "9"))
    assert (folder.classes, folder.paths, folder.forget.tolist()) == (list(CLASSES), training(root), [9])
    train, heldout, skipped = folder.load(Reading(8))
    assert (train.labels.tolist(), heldout.labels.tolist(), skipped) == ([0] * 5 + [1] * 5, [1], [])
    assert train.images[3, :, 0, 0].tolist() == [30, 0, 200] and heldout.images[0, 0].eq(90).all()
    assert train.mean[0] == pytest.approx(160 / 2550) and train.mean == heldout.mean
    assert folder.load(Reading(8, mean=(0.5,) * 3, std=(0.2,) * 3))[0].mean == (0.5,) * 3


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


def test_without_and_with_strange_held_out_images(tmp_path, root):
    """B4: no held-out part is fine; a held-out class that is not trained on is not."""
    (root / "val" / "bee").rename(root / "val" / "cat")
    with pytest.raises(ValueError, match="class 'cat'.*; move it away if nothing shall be held out"):
        open_folder(root, written(tmp_path, "b.txt", "9"))
    (root / "val").rename(tmp_path / "away")
    assert open_folder(root, written(tmp_path, "b.txt", "9")).load(Reading(8))[1] is None
    with pytest.raises(ValueError, match="no folder"):
        open_folder(tmp_path / "away", tmp_path / "b.txt")


@pytest.mark.parametrize("name", ["", "1.png", "unknown/1.png"])
def test_a_test_folder_without_labels_is_passed_over(tmp_path, root, name):
    """B4: where test/ has no classes or strange ones, as challenges give it, val/ is held out, which is said; without
    a val/ it is refused before any image is decoded."""
    (root / "test" / name).parent.mkdir(parents=True, exist_ok=True)
    if name:
        Image.new("RGB", (8, 8)).save(root / "test" / name)
    else:
        (root / "test").mkdir(exist_ok=True)
    folder = open_folder(root, written(tmp_path, "b.txt", "9"))
    assert folder.heldout == [(root / "val" / "bee" / "9.png", 1)] and f"held out is {root / 'val'}: " in folder.said
    (root / "val").rename(tmp_path / "away")
    with pytest.raises(ValueError, match="move it away"):
        open_folder(root, tmp_path / "b.txt")


def damage(root: Path) -> None:
    """Make four training images undecodable, each in its way, one of them in D_f, and a held-out one."""
    whole = (root / "train/ant/0.png").read_bytes()
    (root / "train/ant/0.png").write_bytes(whole[:40])
    (root / "train/ant/1.png").write_bytes(b"")
    (root / "train/bee/1.png").write_bytes(b"no image at all")
    Image.new("1", (20_000, 20_000)).save(root / "train/bee/2.png")  # 50 kB that would be 1.2 GB
    (root / "val/bee/8.png").write_bytes(whole[:40])


def test_images_that_cannot_be_decoded(tmp_path, root, monkeypatch):
    """B5: truncated, empty, foreign and monstrous images are refused by name, or left out of everything if asked."""
    damage(root)
    bad = written(tmp_path, "b.txt", "1\n4\n9")
    clean = written(tmp_path, "c.csv", "path,label\nalone.png,ant\nant/1.png,bee\n")
    with pytest.raises(ValueError, match=r"4 images cannot be decoded, .*ant/0.png .* first; .*--skip-bad-images"):
        open_folder(root, bad).load(Reading(8))
    folder = open_folder(root, bad, clean)
    train, heldout, skipped = folder.load(Reading(8), skip=True)
    kept = [path for path in training(root) if path.relative_to(root / "train").as_posix() not in
            ("ant/0.png", "ant/1.png", "bee/1.png", "bee/2.png")]
    assert folder.paths == kept and len(train) == 6 and len(heldout) == 1 and len(skipped) == 5
    assert [kept[i].name for i in folder.forget] == ["4.png", "alone.png"]
    assert folder.clean.tolist() == [-1] * 5 + [0]
    assert train.images[0, 0].eq(20).all()  # ant/2.png is first now
    assert train.labels.tolist() == [0] * 3 + [1] * 3 and heldout.labels.tolist() == [1]
    monkeypatch.setattr(images, "PART", 4)  # files that are decoded at a time where none is kept
    folder = open_folder(root, bad, clean)
    streamed, _, left_out = folder.load(Reading(8), workers=0, skip=True, room=0)
    assert isinstance(streamed, Streamed) and folder.paths == kept and left_out == skipped
    assert torch.equal(streamed.labels, train.labels) and streamed.mean == pytest.approx(train.mean)
    assert torch.equal(streamed.some(torch.arange(6)).images, train.images)


def test_no_program_is_started_for_an_image(tmp_path, root, monkeypatch):
    """B5: what is PostScript behind an image's name, for which Pillow starts Ghostscript, is no image."""
    started, im = [], Image.new("RGB", (8, 8)).im
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **more: started.append(1) or im)
    path = root / "train" / "ant" / "0.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(ValueError, match="ant/0.png .*cannot identify image file"):
        decode([path], Reading(8))
    assert not started
    with Image.open(path) as image:  # a control
        image.load()
    assert started


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "jp2", "png", "ppm", "pgm", "tif", "webp"])
def test_images_of_every_kind_that_is_read(tmp_path, suffix):
    """B4: each kind of image that a folder may hold is decoded by its contents, whatever the suffix."""
    Image.new("L" if suffix == "pgm" else "RGB", (8, 8), 200 if suffix == "pgm" else (200,) * 3).save(
        tmp_path / f"x.{suffix}")
    (tmp_path / f"x.{suffix}").rename(tmp_path / "x.png")
    images, _ = decode([tmp_path / "x.png"], Reading(8))
    assert (images.int() - 200).abs().max() <= 2


def test_the_crop(tmp_path):
    """B4: with crop_pct 0.5 the middle half of each side is left."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[4:12, 4:12] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    images, kept = decode([tmp_path / "a.png"], Reading(8, 0.5))
    assert images.shape == (1, 3, 8, 8) and images.eq(255).all() and kept.tolist() == [0]
    assert decode([tmp_path / "a.png"], Reading(16))[0].float().mean() == 255 / 4


FILE = """
from torch import nn
def sized(num_classes): return nn.Linear(2, num_classes)
def named(classes): return nn.Linear(2, classes)
def fixed(): return nn.Linear(2, 7)
value = 3
"""


def test_networks_by_name(tmp_path):
    """B6: ours, torchvision's and a file's, and what images they want unless it is given."""
    model, reading = build_network("resnet9:0.125", 3, 16)
    assert reading == Reading(16) and model.head.weight.shape == (3, 16)
    model, reading = build_network("resnet18", 5)
    assert model.fc.out_features == 5 and reading.size == 224 and reading.crop_pct == 224 / 256
    assert reading.mean == (0.485, 0.456, 0.406) and reading.std == (0.229, 0.224, 0.225)
    assert build_network("resnet18", 5, 64)[1] == Reading(64, 1.0, reading.mean, reading.std)
    (tmp_path / "a:b").mkdir()
    (tmp_path / "a:b" / "net.py").write_text(FILE)
    assert build_network(f"{tmp_path / 'a:b' / 'net.py'}:fixed", 4, 32)[0].out_features == 7
    given = build_network("resnet18", 5, 64, 0.875, [0.5] * 3, [0.2] * 3)[1]
    assert given == Reading(64, 0.875, (0.5,) * 3, (0.2,) * 3)
    path = tmp_path / "net.py"
    path.write_text(FILE)
    for name, outputs in (("sized", 4), ("named", 4), ("fixed", 7)):
        model, reading = build_network(f"{path}:{name}", 4, 32)
        assert model.out_features == outputs and reading.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("name, more, words", [
    ("model.pt", {}, r"--model is the file model.pt.*swapped"),
    ("resnet1", {}, "unknown --model 'resnet1'; give resnet9, vit, .*FILE.py:FUNCTION"),
    ("none.py:make", {}, "no file none.py"),
    ("FILE:absent", {}, "no function 'absent'"),
    ("FILE:value", {}, "no function 'value'"),
    ("resnet9", {}, "image size is None; give --image-size"),
    ("resnet18", {"size": 0}, "image size is 0"),
    ("resnet18", {"crop_pct": 1.5}, "--crop-pct 1.5"),
    ("resnet18", {"mean": (0.5,) * 3}, "--std None"),
    ("resnet18", {"mean": (0.5,) * 3, "std": (0.5,)}, "three numbers each"),
    ("resnet18", {"mean": (9.0,) * 3, "std": (0.5,) * 3}, "three numbers each, for pixels in"),
    ("resnet18", {"mean": (0.5,) * 3, "std": (0.5, 0.5, 0.0)}, "std above 0"),
    ("vit", {"size": 30}, "patch size 8 do not fit"),
    ("timm:resnet18", {}, "needs timm: pip install timm"),
])
def test_networks_that_cannot_be_built(tmp_path, monkeypatch, name, more, words):
    """B6: a swapped file, an unknown name, a missing or impossible size: one sentence each."""
    monkeypatch.setitem(sys.modules, "timm", None)
    (tmp_path / "net.py").write_text(FILE)
    with pytest.raises(ValueError, match=words):
        build_network(name.replace("FILE", str(tmp_path / "net.py")), 3, **more)


@pytest.mark.parametrize("source, words", [
    ("import not_there\ndef make(): pass", r"does not import \(ModuleNotFoundError: .*'not_there'\).*PYTHONPATH="),
    ("def make(:", r"does not import \(SyntaxError: invalid syntax \(net.py, line 1\)\)"),
    ("raise SystemExit(3)", r"does not import \(SystemExit: 3\)"),
    ("def make(): raise KeyError('what')", r"make of \S*net.py does not run \(KeyError: 'what'\)"),
    ("def make(depth): pass", r"make of \S*net.py does not run \(TypeError: .*depth.*\); it is called with"),
    ("def make(): return 'resnet'", "make of .*net.py returns a str, not a torch.nn.Module"),
    ("def make(): pass", "make of .*net.py returns a NoneType, not a torch.nn.Module"),
])
def test_files_that_build_no_network(tmp_path, source, words):
    """B6: a file that does not import and a function that raises or makes something else: one line with both names."""
    (tmp_path / "net.py").write_text(source)
    with pytest.raises(ValueError, match=words) as caught:
        build_network(f"{tmp_path / 'net.py'}:make", 3, 32)
    assert "\n" not in str(caught.value) and "make" in str(caught.value)


def test_memory_that_runs_out_is_told_as_such(tmp_path):
    """B6: a function for which there is no memory is no wrong function; dataclasses know the file by name."""
    source = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Made: n: int\n"
    (tmp_path / "net.py").write_text(f"{source}def make(): raise MemoryError('all of it')")
    with pytest.raises(MemoryError, match="all of it"):
        build_network(f"{tmp_path / 'net.py'}:make", 3, 32)


def test_googlenet_has_no_auxiliary_heads():
    """B6: they run in training alone, where a network must give logits."""
    model, _ = build_network("googlenet", 3, 64)
    assert model.aux1 is None and model.aux2 is None and model.fc.out_features == 3


def test_a_network_of_timm(monkeypatch):
    """B6: timm's network with its own mean, std, size and crop, the size handed on only to those that take it."""
    def create_model(name, pretrained, num_classes, **more):
        assert pretrained is False
        if name == "conv" and more:
            raise TypeError("unexpected keyword")
        return nn.Linear(more.get("img_size", 1), num_classes)

    cfg = types.SimpleNamespace(input_size=(3, 160, 160), crop_pct=0.95, mean=(0.5,) * 3, std=(0.4,) * 3)
    fake = types.SimpleNamespace(list_models=lambda: ["conv", "vit"], get_pretrained_cfg=lambda name: cfg,
                                 create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", fake)
    model, reading = build_network("timm:vit", 6)
    assert reading == Reading(160, 0.95, (0.5,) * 3, (0.4,) * 3) and model.weight.shape == (6, 160)
    assert build_network("timm:conv", 6)[0].weight.shape == (6, 1)
    assert build_network("timm:vit.a1_in1k", 6)[0].weight.shape == (6, 160)  # a tag, as timm's scripts take it
    with pytest.raises(ValueError, match="timm has no network 'other'"):
        build_network("timm:other", 6)


def test_a_folder_is_plain_data(root, tmp_path):
    """B4: listing a folder writes nothing into it."""
    before = sorted(root.rglob("*"))
    assert isinstance(open_folder(root, written(tmp_path, "b.txt", "9")), Folder)
    open_folder(root, tmp_path / "b.txt").load(Reading(8))
    assert sorted(root.rglob("*")) == before
