"""The page that a repair leaves (repair/page.py, page.html), read as a browser's parser reads it.

Properties S30 to S35 of tests/properties.md; S33 needs node.
"""

import base64
import csv
import hashlib
import html
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from colours import call, colours  # noqa: F401
from helpers import gen
from repair import page
from repair.lists import read_lists
from repair.outputs import unused
from repair.page import Card, Part, page_of, thumbnail, write_page

CLASSES = ["<script>alert(1)</script>", "a \"quoted\" & 'b'", "=cmd|' /C calc'!A0", "{{suspects}}", "</title>", "猫",
           "lone\udc80", "0", "a,b;c\td", "-->", "cr\rlf\nend"]
FILES = ["train/a/plain.png", 'train/a/"q", x.png', "train/a/cr\rlf\r\n.png", "train/<b>/</li>.png",
         "train/a/caf\udce9.png", "train/a/=1+1.png", "train/a/back\\slash.png", "train/a/'; --.png",
         "train/a/&amp;{{title}}.png"]
EMPTY = {"meta", "img", "input", "link", "br"}


class Tree(HTMLParser):
    """Every element in order, with its tag, attributes, the text inside and the tags around it."""

    def __init__(self, source: str):
        super().__init__()
        self.open, self.found = [], []
        self.feed(source)
        self.close()
        assert self.open == [], self.open  # every tag is closed, in order

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.found.append(SimpleNamespace(tag=tag, at=dict(attrs), text="", around=[e.tag for e in self.open]))
        if tag not in EMPTY:
            self.open.append(self.found[-1])

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        for element in self.open:
            element.text += data

    def all(self, tag: str, **at) -> list:
        """The elements of a tag with these attributes."""
        return [e for e in self.found if e.tag == tag and all(e.at.get(key) == value for key, value in at.items())]


def plain(name: str) -> str:
    """A name as a page can hold it."""
    return name.encode("utf-8", "backslashreplace").decode()


def given(seed: int = 0, n: int = 60, cards: int = 9, classes=CLASSES) -> dict:
    """What a page is made of."""
    g = gen(seed)

    def draw(*shape):
        return torch.randint(0, len(classes), shape, generator=g)

    parts = [Part("held-out images", draw(n), draw(n), draw(n)), Part("others", draw(9), draw(9), draw(9))]
    images = torch.randint(0, 256, (cards, 3, 16, 16), generator=g).to(torch.uint8)
    made = [Card(images[i], FILES[i % len(FILES)], *draw(3).tolist(), 5.4321 - i / 7,
                 None if i == 3 else 0.98765 / (i + 1), i + 1, i < 4)
            for i in range(cards)]
    scores = {"known bad <i>": [1.0, 0.125], "held-out images": [None, 0.98765], "other predictions": 17}
    return dict(title='r "&<> {{facts}}.pt', facts=["<b>", "one & two"], scores=scores, parts=parts,
                classes=list(classes), cards=made, total=4321, likely=37, bad=["a list.txt"], saved="r-bad.csv")


def tables(source: str) -> list[list[list[str]]]:
    """The tables of a page, each the texts of the cells of its rows."""
    return [[[html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)]
             for row in re.findall(r"<tr>(.*?)</tr>", found, re.DOTALL)]
            for found in re.findall(r"<table.*?</table>", source, re.DOTALL)]


def shown(tree: Tree) -> list[SimpleNamespace]:
    """The suspects of a page."""
    values, images = [e.text for e in tree.all("dd")], tree.all("img")
    return [SimpleNamespace(file=e.at["data-file"], likely="is-likely" in e.at["class"].split(), text=e.text,
                            rank=e.text.split(" is bad")[0].split()[-1].removeprefix("likely"),
                            labels=values[5 * i : 5 * i + 3], scores=values[5 * i + 3 : 5 * i + 5], image=images[i].at)
            for i, e in enumerate(tree.all("li"))]


# --- Numbers and pictures ---------------------------------------------------------------------------------------------

def test_scores_are_the_reports():
    """S30: shares in percent to a decimal, a dash for none, the difference in points; a number stands by itself."""
    found = tables(page_of(**given()))[0]
    assert found == [["answers that equal the label, %", "before", "after", "change"],
                     ["known bad <i>", "100.0", "12.5", "-87.5"], ["held-out images", "–", "98.8", "–"]]
    assert "other predictions: 17" in page_of(**given())


@pytest.mark.parametrize("seed", range(3))
def test_accuracies_of_classes_are_counts(seed):
    """S30: accuracy of each class, of each part, by loops over the images; many classes are folded away."""
    world = given(seed)
    found = tables(page_of(**world))[1:]
    for part, accuracy in zip(world["parts"], found, strict=True):
        triples = list(zip(*(values.tolist() for values in (part.labels, part.before, part.after)), strict=True))
        for k, row in enumerate(accuracy[1:]):
            own = [t for t in triples if t[0] == k]
            shares = [100 * sum(t[j] == k for t in own) / len(own) if own else None for j in (1, 2)]
            assert row[:2] == [plain(CLASSES[k]), str(len(own))]
            assert row[2:4] == ["–" if share is None else f"{share:.1f}" for share in shares]
    many = page_of(**given(classes=[f"class number {k}" for k in range(1000)], cards=100))
    assert len(many) < 1_000_000 and "<details>" in many and "<details open>" in page_of(**world)


def test_a_suspect_is_shown_as_it_is():
    """S30: number, labels, scores, ranks and mark of each suspect, and the thumbnail is the image itself."""
    world = given()
    tree = Tree(page_of(**world))
    for card, found in zip(world["cards"], shown(tree), strict=True):
        assert found.file == found.image["alt"] == plain(card.file)
        assert found.rank == str(card.rank)
        assert found.likely == card.likely == ("likely" in found.text)
        assert found.labels == [plain(CLASSES[k]) for k in (card.given, card.before, card.after)]
        assert found.scores == [f"{card.score:.3g}", "–" if card.similar is None else f"{card.similar:.3g}"]
        kind, data = found.image["src"].split(";base64,")
        assert kind == "data:image/png"
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as picture:
            assert np.array_equal(np.asarray(picture), card.image.permute(1, 2, 0).numpy())
    text = tree.all("main")[0].text
    assert "About 37 of the 4321 images" in text and "The first 9 are here" in " ".join(text.split())
    assert "--bad 'a list.txt' r-bad.csv" in text


@pytest.mark.parametrize("shape, kind, size", [((1, 28, 28), "png", (28, 28)), ((3, 64, 64), "png", (64, 64)),
                                               ((3, 224, 224), "jpeg", (160, 160)), ((1, 65, 130), "jpeg", (130, 65)),
                                               ((3, 320, 640), "jpeg", (160, 80))])
def test_thumbnails_of_any_size_decode(shape, kind, size):
    """S30: a small image is kept to the bit, a larger one becomes a JPEG of at most 160 pixels; grey stays grey."""
    image = torch.full(shape, 90, dtype=torch.uint8)
    told, data = thumbnail(image).split(";base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert (told, picture.size) == (f"data:image/{kind}", size)
        assert picture.mode == ("L" if shape[0] == 1 else "RGB")
        assert abs(int(np.asarray(picture).mean()) - 90) <= 1


# --- Names ------------------------------------------------------------------------------------------------------------

def test_names_are_text():
    """S31: the elements and attributes are those of a page with harmless names; the names stand in texts alone."""
    awkward = Tree(page_of(**given()))
    harmless = {**given(), "classes": [f"c{k}" for k in range(len(CLASSES))], "title": "r.pt", "facts": ["a", "b"]}
    harmless["cards"] = [card._replace(file=f"{i}.png") for i, card in enumerate(harmless["cards"])]
    twin = Tree(page_of(**harmless))
    assert [(e.tag, list(e.at), e.around) for e in awkward.found] == [(e.tag, list(e.at), e.around) for e in twin.found]
    assert "\r" not in page_of(**given())  # a browser would make a line feed of it; as a reference it stays
    assert awkward.all("title")[0].text == awkward.all("h1")[0].text == 'r "&<> {{facts}}.pt'
    options = [e for e in awkward.all("option") if "template" in e.around]
    assert [e.text for e in options] == [plain(name) for name in CLASSES]


def test_a_verdict_stands_above_the_tables():
    """S31: its word and what follows are text; without one there is none."""
    source = page_of(**given(), verdict="NOT <b>: 34 % of them: believed. Next, try <i>")
    (found,) = Tree(source).all("div", **{"class": "verdict"})
    assert found.text == "NOT <b>\n34 % of them: believed. Next, try <i>"
    assert Tree(source).all("strong")[0].text == "NOT <b>"
    assert source.index('class="verdict"') < source.index("<table")
    assert not Tree(page_of(**given())).all("div", **{"class": "verdict"})


def test_without_suspects_there_is_a_line():
    """S30: no list of suspects, no button; parts without images are left out."""
    nothing = torch.zeros(0, dtype=torch.int64)
    tree = Tree(page_of(**{**given(), "cards": [], "parts": [Part("held-out", nothing, nothing, nothing)]}))
    assert not tree.all("button") and not tree.all("details") and "no list of suspects" in tree.all("main")[0].text


# --- Nothing from elsewhere -------------------------------------------------------------------------------------------

def test_nothing_leads_out_of_the_page():
    """S32: no element that loads, no address but data: of images; the policy has the digests of what is there."""
    source = page_of(**given())
    tree = Tree(source)
    assert {e.tag for e in tree.found}.isdisjoint({"link", "iframe", "object", "embed", "base", "form", "video", "a"})
    for e in tree.found:
        for name, value in e.at.items():
            assert name in ("src",) or not name.startswith(("src", "href", "on", "style", "action")), (e.tag, name)
            assert name != "src" or e.tag == "img" and value.startswith("data:image/")
    assert not re.search(r"url\(|@import|https?:|fetch|XMLHttp|eval|innerHTML", page.FRAME.read_text(encoding="utf-8"))
    (policy,) = [e.at["content"] for e in tree.all("meta") if "http-equiv" in e.at]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'" and rules["img-src"] == "data:"
    for tag in ("style", "script"):
        (element,) = tree.all(tag)
        digest = base64.b64encode(hashlib.sha256(element.text.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"


def test_everything_can_be_used_without_a_mouse():
    """S35: boxes, choices and the button are HTML's own, each with a name; the page says its language."""
    tree = Tree(page_of(**given()))
    assert tree.all("html")[0].at["lang"] == "en" and tree.all("meta", name="viewport")
    labels = {e.at["for"] for e in tree.all("label") if "for" in e.at}
    for e in [*tree.all("input"), *tree.all("select"), *tree.all("button")]:
        named = e.at.get("id") in labels or e.at.get("aria-label") or "label" in e.around or e.text.strip()
        assert named and e.at.get("tabindex") is None
    assert all("scope" in e.at for e in tree.all("th")) and all(e.at.get("alt") for e in tree.all("img"))


# --- The list that the page saves -------------------------------------------------------------------------------------

def saved_list(rows: list[list[str]]) -> str:
    """What the page's script writes for ticked images: its function alone, run by node."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    source = re.search(r"^function csvOf.*?^}$", page.FRAME.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[0]
    done = subprocess.run([node, "-e", f"{source}\nprocess.stdout.write(csvOf({json.dumps(rows)}))"],
                          capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def test_the_saved_list_comes_back(tmp_path):
    """S33: whatever files and classes are called, each ticked image is found again, with its true label."""
    tree = Tree(page_of(**given()))
    files = [e.at["data-file"] for e in tree.all("li")]
    values = [e.at["value"] for e in tree.all("option") if "template" in e.around][:6]  # others are lost on the way
    rows = [[file, values[(i * 5) % len(values)] if i % 4 else ""] for i, file in enumerate(files)]
    (tmp_path / "saved.csv").write_bytes(saved_list(rows).encode())
    paths = [tmp_path / file for file in FILES] + [tmp_path / "train" / "a" / "other.png"]
    found = read_lists({"saved.csv": (tmp_path / "saved.csv").read_bytes()}, paths, tmp_path, CLASSES)
    assert found.forget.tolist() == list(range(len(FILES)))
    assert found.truths.tolist() == [(i * 5) % len(values) if i % 4 else -1 for i in range(len(FILES))]


def test_a_later_round_saves_under_another_name():
    """S33: the list that the page saves has the name of none that the repair was given."""
    assert unused("r-bad", ["a/bad.txt"]) == "r-bad.csv" and unused("r-bad", ["a/r-bad.csv"]) == "r-bad-2.csv"
    assert unused("r-bad", ["a/r-bad.csv", "r-bad-2.csv"]) == "r-bad-3.csv"


# --- By the command ---------------------------------------------------------------------------------------------------

def test_the_command_writes_it_beside_the_weights(colours, capsys):  # noqa: F811
    """S34, S30: under the weights' name, with the report's numbers, the given, earlier and later labels of the first
    suspects of suspects.csv, and the held-out images; a second repair replaces it."""
    shutil.copytree(colours["--data"] / "train", colours["--data"] / "val")
    (colours["--data"] / "val" / "0" / "0-0.png").unlink()  # so that no held-out image has its place in training
    out = colours["--out"]
    assert call(colours, "--epochs", 1, "--lr", 0.5, "--stop", "max", "--no-finish") in (0, 3)  # answers change
    file = out.with_suffix(".html")
    assert f"{file} shows what changed and 70 suspects to tick" in capsys.readouterr().out
    source = file.read_text(encoding="utf-8")
    tree, report = Tree(source), json.loads(out.with_suffix(".json").read_text())
    shares = {row[0]: row[1:3] for row in tables(source)[0][1:]}
    wanted = {name: [f"{100 * share:.1f}" for share in value]
              for name, value in report["scores"].items() if isinstance(value, list)}
    assert shares == wanted and shares["held-out images"][0] == f"{100 * 68 / 71:.1f}"  # three in the wrong folder
    with open(out.with_name("suspects.csv"), newline="") as opened:
        rows = list(csv.DictReader(opened))
    cards = shown(tree)
    assert len(cards) == 70 and any(card.labels[1] != card.labels[2] for card in cards)
    assert [int(re.search(r"\d+", e.text)[0]) for e in tree.all("summary")] == [71, 70]  # held out; the rest
    for row, card in zip(rows, cards, strict=True):
        with Image.open(colours["--data"] / row["filename"]) as picture:
            assert card.image["src"] == thumbnail(torch.tensor(np.asarray(picture)).permute(2, 0, 1))
        assert card.file == row["filename"] and card.likely == (row["likely"] == "true")
        assert card.rank == row["rank"]
        before = Path(row["filename"]).name.split("-")[0]  # the network knew every colour
        assert card.labels == [row["given_label"], before, row["predicted_label"]]
        for value, column in zip(card.scores, ("score", "similar"), strict=True):
            assert float(value) == pytest.approx(float(row[column]), rel=1e-2, abs=1e-3)
    marked = sum(row["likely"] == "true" for row in rows)
    assert f"About {marked} of the 70 images" in tree.all("main")[0].text and report["likely_bad"] == marked
    assert report["verdict"]["word"] == tree.all("strong")[0].text
    assert call(colours, "--epochs", 0) == 0 and file.read_text(encoding="utf-8") != source


def test_a_page_is_written_whole(tmp_path):
    """S34: in UTF-8."""
    write_page(tmp_path / "p.html", **given())
    assert (tmp_path / "p.html").read_bytes().decode("utf-8") == page_of(**given())
