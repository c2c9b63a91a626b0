"""The page of a repair: one HTML file that shows what changed and the first suspects, to be ticked and saved as a list.

    write_page("out/repaired.html", title="repaired.pt", facts=[...], scores=scores, parts=[Part(...)],
               classes=folder.classes, cards=[Card(...)])

page.html is the frame, with its style and its script; {{names}} in it stand for what this file makes. Names of classes
and files are a user's: every one goes through `text`. The page asks nothing of a network: its Content-Security-Policy
allows images within the file, and the one style and the one script of the frame by their digests.
"""

import base64
import hashlib
import html
import io
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import torch

from experiment.files import write_whole

FRAME = Path(__file__).with_name("page.html")
MARK = b'<meta name="generator" content="run.py repair">'  # by which a later repair knows a page that it may replace
CARDS = 100  # suspects on a page
SIDE = 160  # pixels of a thumbnail at most
SMALL = 64  # pixels up to which an image is kept as it is, as a PNG, and drawn in squares
SHOWN = 20  # classes of a confusion matrix, and up to which the tables by class are unfolded
SHADES = 6  # steps of a cell's colour


class Part(NamedTuple):
    """What the network said of some images before and after the repair."""

    name: str  # such as "held-out images"
    labels: torch.Tensor  # (n,) int64, as given
    before: torch.Tensor  # (n,) int64, predicted
    after: torch.Tensor  # (n,) int64


class Card(NamedTuple):
    """A suspect."""

    image: torch.Tensor  # (C, H, W) uint8, grey or RGB, what the network sees
    file: str  # as suspects.csv names it
    given: int  # classes
    before: int
    after: int
    score: float  # CE of the given label, repaired network
    similar: float | None  # in [0, 1]
    ranks: tuple[int, int, int | None]  # overall, by score, by similar
    likely: bool


def write_page(path: str | Path, **given) -> None:
    """Write a page; given: the arguments of `page_of`."""
    content = page_of(**given).encode()
    write_whole(path, lambda file: file.write(content))


def is_page(file: Path) -> bool:
    """Whether a file is what `write_page` writes."""
    with open(file, "rb") as opened:
        return MARK in opened.read(1024)


def page_of(*, title: str, facts: list[str], scores: dict, parts: list[Part], classes: list[str], cards: list[Card],
            total: int = 0, likely: int = 0, bad: list[str] = (), saved: str = "bad.csv",
            verdict: str | None = None) -> str:
    """The page as text.

    Args:
        title, facts: what was repaired, and lines about it.
        scores: as the report has them: [before, after] in [0, 1], or None for no such images, or a number, by name.
        parts: images whose labels and predictions are compared.
        classes: names of the classes.
        cards: the first suspects, in overall order; total, likely: the number of suspects, and of likely bad ones.
        bad: the lists of this repair; saved: the name under which the page saves its own.
        verdict: a line that says what came of the repair, such as "NOT REPAIRED: 34 % ..."; None for none.
    """
    frame = FRAME.read_text(encoding="utf-8")
    style, script = (re.search(f"<{tag}>(.*?)</{tag}>", frame, re.DOTALL)[1] for tag in ("style", "script"))
    values = {"policy": f"default-src 'none'; img-src data:; style-src '{digest_of(style)}'; "
                        f"script-src '{digest_of(script)}'; base-uri 'none'; form-action 'none'",
              "title": text(title), "facts": "<br>\n".join(map(text, facts)), "verdict": banner(verdict),
              "scores": table_of_scores(scores), "parts": "\n".join(section(part, classes) for part in parts),
              "suspects": gallery(cards, classes, total, likely, bad, saved)}
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], frame)  # once: what is put in is not read again


def text(value) -> str:
    """A value for HTML, between tags or in quotes, whatever it holds; a lone surrogate by its number."""
    found = html.escape(str(value), quote=True).encode("utf-8", "backslashreplace").decode()
    return found.replace("\r", "&#13;")  # which HTML would read as a line feed


def digest_of(source: str) -> str:
    """The digest by which a Content-Security-Policy names a style or a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


# --- What changed -----------------------------------------------------------------------------------------------------

def banner(verdict: str | None) -> str:
    """The verdict, its word in front of the first colon; nothing without one."""
    if not verdict:
        return ""
    word, _, more = verdict.partition(": ")
    return f'<div class="verdict"><strong>{text(word)}</strong>\n<p>{text(more)}</p></div>'


def percent(share: float | None) -> str:
    """A share in percent, or a dash for none."""
    return "–" if share is None else f"{100 * share:.1f}"


def change_of(before: float | None, after: float | None) -> str:
    """The difference in points."""
    if before is None or after is None:
        return "–"
    points = round(100 * (after - before), 1)
    return f"{points:+.1f}" if points else "0.0"


def table(header: list[str], lines: list[str], caption: str = "", kind: str = "") -> str:
    """A table; header: texts; lines: HTML of the rows; kind: a class of the style."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in header)
    told = f"<caption>{text(caption)}</caption>\n" if caption else ""
    opened = f'<table class="{kind}">' if kind else "<table>"
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return (f'<div class="wide" tabindex="0">{opened}\n{told}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>'
            "</table></div>")


def table_of_scores(scores: dict) -> str:
    """The report's comparison, in percent, and below it what is one number."""
    lines, notes = [], []
    for name, value in scores.items():
        if isinstance(value, list):
            cells = "".join(f"<td>{percent(share)}</td>" for share in value)
            lines.append(f'<th scope="row">{text(name)}</th>{cells}<td>{change_of(*value)}</td>')
        else:
            notes.append(f'<p class="soft">{text(name)}: {text(value)}</p>')
    return table(["answers that equal the label, %", "before", "after", "change"], lines) + "\n" + "\n".join(notes)


def section(part: Part, classes: list[str]) -> str:
    """Accuracy a class and the confusion matrices of some images, folded away; nothing where there are none."""
    if not len(part.labels):
        return ""
    found = (part.before == part.labels, part.after == part.labels)
    lines = []
    for k, name in enumerate(classes):
        own = part.labels == k
        pair = [float(right[own].double().mean()) if own.any() else None for right in found]
        cells = "".join(f"<td>{percent(share)}</td>" for share in pair)
        lines.append(f'<th scope="row">{text(name)}</th><td>{int(own.sum())}</td>{cells}'
                     f"<td>{change_of(*pair)}</td>")
    accuracies = table(["class", "images", "before", "after", "change"], lines, "accuracy of each class, %")
    opened = " open" if len(classes) <= SHOWN else ""
    return (f"<details{opened}><summary>By class: {len(part.labels)} {text(part.name)}</summary>\n{accuracies}\n"
            '<p class="soft">Number of images by given label (down) and answer (across)</p>\n'
            f'<div class="pair">{matrices(part, classes)}</div></details>')


def matrices(part: Part, classes: list[str]) -> str:
    """The confusion matrices before and after: how many images of each given label are called what.

    Of more than SHOWN classes those with the most wrong answers are shown, the others together as one more.
    """
    wrong = ((part.before != part.labels).long() + (part.after != part.labels).long())
    errors = torch.zeros(len(classes), dtype=torch.int64)
    for answers in (part.labels, part.before, part.after):
        errors.index_add_(0, answers, wrong)
    chosen = errors.argsort(descending=True, stable=True)[:SHOWN].sort().values.tolist()
    place = torch.full((len(classes),), len(chosen)).index_put_((torch.tensor(chosen),), torch.arange(len(chosen)))
    others = ["others"] if len(chosen) < len(classes) else []
    names = [classes[k] for k in chosen] + others
    return "\n".join(matrix(place[part.labels], place[answers], names, when)
                     for when, answers in (("before", part.before), ("after", part.after)))


def matrix(labels: torch.Tensor, answers: torch.Tensor, names: list[str], caption: str) -> str:
    """One confusion matrix; a cell's shade is its share of the row, in another colour off the diagonal."""
    n = len(names)
    counts = torch.zeros(n * n, dtype=torch.int64).index_add_(0, labels * n + answers, torch.ones_like(labels))
    lines = []
    for k, row in enumerate(counts.view(n, n).tolist()):
        cells = [f'<td class="{shade(count / max(1, sum(row)), k == j)}">{count or ""}</td>'
                 for j, count in enumerate(row)]
        lines.append(f'<th scope="row">{text(names[k])}</th>{"".join(cells)}')
    return table(["", *names], lines, caption, kind="matrix")


def shade(share: float, right: bool) -> str:
    """The class of a cell's colour, by the square root of its share, so that few wrong answers are seen."""
    step = min(SHADES, -int(-(SHADES * share**0.5) // 1))
    return f"{'r' if right else 'w'}{step}"


# --- Suspects ---------------------------------------------------------------------------------------------------------

def gallery(cards: list[Card], classes: list[str], total: int, likely: int, bad: list[str], saved: str) -> str:
    """The suspects as thumbnails to tick, the order switch and the button that saves; a line where there are none."""
    if not cards:
        return "<p>There is no list of suspects.</p>"
    lists = shlex.join(map(str, [*bad, saved]))
    options = "".join(f'<option value="{text(word)}">{text(name)}</option>'
                      for word, name in zip(spelt(classes), classes, strict=True))
    shown = "\n".join(card_of(card, classes) for card in cards)
    return f"""<p>About <strong>{likely}</strong> of the {total} images that no list names are likely bad, an estimate
that is too low rather than too high. The first {len(cards)} are here, as the network sees them; suspects.csv has all.
<em>score</em> is how much the repaired network disbelieves the given label; <em>similar</em> is how much an image
looks, to the network before the repair, like the listed ones, though its label may be believed. Neither is a proof.</p>
<p>Tick what is bad, name the true label where you know it, save the list, and repair the <em>original</em> network
again with all lists: <code>--bad {text(lists)}</code></p>
<div class="tools"><span id="sorting" hidden><label for="order">Order</label>
<select id="order"><option value="rank">overall</option><option value="scoreRank">by score</option>
<option value="similarRank">by similar</option></select></span>
<label><input type="checkbox" id="only"> likely ones only</label></div>
<noscript><p>Without JavaScript no list can be saved; fill in a column <code>bad</code> of suspects.csv.</p></noscript>
<template id="classes">{options}</template>
<ul id="cards">
{shown}
</ul>
<div class="bar" id="bar" hidden><span id="count" aria-live="polite"></span>
<button class="main" id="save" type="button" data-name="{text(saved)}">Save list</button></div>"""


def card_of(card: Card, classes: list[str]) -> str:
    """One suspect; the script fills in the classes that its true label can be."""
    overall, by_score, by_similar = card.ranks
    similar = "–" if card.similar is None else f"{card.similar:.3g}"
    facts = {"given": classes[card.given], "before": classes[card.before], "after": classes[card.after],
             "score": f"{card.score:.3g}", "similar": similar}
    lines = "".join(f"<dt>{name}</dt><dd>{text(value)}</dd>" for name, value in facts.items())
    small = ' class="small"' if max(card.image.shape[1:]) <= SMALL else ""
    mark, kind = ('<span class="likely">likely</span>', "card is-likely") if card.likely else ("", "card")
    return (f'<li class="{kind}" data-file="{text(card.file)}" data-rank="{overall}" '
            f'data-score-rank="{by_score}" data-similar-rank="{"" if by_similar is None else by_similar}">\n'
            f'<label><img{small} src="{thumbnail(card.image)}" alt="{text(card.file)}">'
            f'{mark}<input type="checkbox">{overall} is bad</label>\n<dl>{lines}</dl>\n'
            f'<select aria-label="true label of {overall}" disabled><option value="">true label?</option></select>\n'
            f'<span class="file">{text(card.file)}</span></li>')


def spelt(classes: list[str]) -> list[str]:
    """How a CSV file names each class so that lists.read_labels finds it again: its name or, of a name that would be
    changed on the way (blanks around it, letters that are none, a formula of a spreadsheet), its number."""
    found = []
    for k, name in enumerate(classes):
        kept = name == name.strip() and not name.startswith(("=", "+", "-", "@"))
        kept = kept and name == name.encode("utf-8", "replace").decode()
        found.append(name if kept or str(k) in classes else str(k))
    return found


def thumbnail(image: torch.Tensor) -> str:
    """An image, (C, H, W) uint8, as a data: URI: a small one as it is, a larger one as a JPEG of SIDE pixels."""
    from PIL import Image

    pixels = image.permute(1, 2, 0).contiguous().numpy()  # (H, W, C)
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    kind = "png" if max(picture.size) <= SMALL else "jpeg"
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, kind, **({"optimize": True} if kind == "png" else {"quality": 85}))
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()
