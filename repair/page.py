"""The page of a repair: one HTML file that shows what changed and the first suspects, to be ticked and saved as a list.

    write_page("out/repaired.html", title="repaired.pt", facts=[...], scores=scores, parts=[Part(...)],
               classes=folder.classes, cards=[Card(...)])

page.html is the frame, with its style and its script; {{names}} in it stand for what this file makes. Names of classes
and files are a user's: every one goes through `text`. The page loads nothing: its Content-Security-Policy allows images
within the file, and the one style and the one script of the frame by their digests.
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
CARDS = 100  # suspects on a page
SIDE = 160  # pixels of a thumbnail at most
SMALL = 64  # pixels up to which an image is kept as it is, as a PNG, and drawn in squares
SHOWN = 20  # classes up to which the tables by class are unfolded


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
    rank: int  # overall, from 1
    likely: bool


def write_page(path: str | Path, **given) -> None:
    """Write a page; given: the arguments of `page_of`."""
    content = page_of(**given).encode()
    write_whole(path, lambda file: file.write(content))


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
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], frame)  # in one go: values may hold {{names}}


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


def table(header: list[str], lines: list[str]) -> str:
    """A table; header: texts; lines: HTML of the rows."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in header)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return (f'<div class="wide" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>'
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
    """Accuracy of each class, folded away where there are many; nothing where there are no images."""
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
    opened = " open" if len(classes) <= SHOWN else ""
    summary = f"Accuracy by class, %: {len(part.labels)} {text(part.name)}"
    return (f"<details{opened}><summary>{summary}</summary>\n"
            f'{table(["class", "images", "before", "after", "change"], lines)}</details>')


# --- Suspects ---------------------------------------------------------------------------------------------------------

def gallery(cards: list[Card], classes: list[str], total: int, likely: int, bad: list[str], saved: str) -> str:
    """The suspects as thumbnails to tick, and the button that saves; a line where there are none."""
    if not cards:
        return "<p>There is no list of suspects.</p>"
    lists = shlex.join(map(str, [*bad, saved]))
    options = "".join(f'<option value="{text(name)}">{text(name)}</option>' for name in classes)
    shown = "\n".join(card_of(card, classes) for card in cards)
    return f"""<p>About <strong>{likely}</strong> of the {total} images that no list names are likely bad, an estimate
that is too low rather than too high. The first {len(cards)} are here, as the network sees them; suspects.csv has all.
<em>score</em> is the cross-entropy of the given label under the repaired network; <em>similar</em> is how much an image
looks like the listed ones to the network before the repair, whatever its score. Neither is a proof.</p>
<p>Tick what is bad, name the true label where you know it, save the list, and repair the <em>original</em> network
again with all lists: <code>--bad {text(lists)}</code></p>
<div class="tools"><label><input type="checkbox" id="only"> likely ones only</label></div>
<noscript><p>Without JavaScript no list can be saved; fill in a column <code>bad</code> of suspects.csv.</p></noscript>
<template id="classes">{options}</template>
<ul id="cards">
{shown}
</ul>
<div class="bar" id="bar" hidden><span id="count" aria-live="polite"></span>
<button class="main" id="save" type="button" data-name="{text(saved)}">Save list</button></div>"""


def card_of(card: Card, classes: list[str]) -> str:
    """One suspect; the script fills in the classes that its true label can be."""
    similar = "–" if card.similar is None else f"{card.similar:.3g}"
    facts = {"given": classes[card.given], "before": classes[card.before], "after": classes[card.after],
             "score": f"{card.score:.3g}", "similar": similar}
    lines = "".join(f"<dt>{name}</dt><dd>{text(value)}</dd>" for name, value in facts.items())
    small = ' class="small"' if max(card.image.shape[1:]) <= SMALL else ""
    mark, kind = ('<span class="likely">likely</span>', "card is-likely") if card.likely else ("", "card")
    return (f'<li class="{kind}" data-file="{text(card.file)}">\n'
            f'<label><img{small} src="{thumbnail(card.image)}" alt="{text(card.file)}">'
            f'{mark}<input type="checkbox">{card.rank} is bad</label>\n<dl>{lines}</dl>\n'
            f'<select aria-label="true label of {card.rank}" disabled><option value="">true label?</option></select>\n'
            f'<span class="file">{text(card.file)}</span></li>')


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
