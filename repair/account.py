"""What a repair tells at its end: what changed, the list of suspects and the page that shows all of it.

    scores = before_and_after(found.before, found.after, data, heldout, folder)     # found: pipeline.Repaired
    print(table_of_changes(scores), list_suspects(out, found, data, folder, places))

Whatever fails here costs no repair: its weights are there, and a line says what is missing.
"""

import argparse
import itertools
from pathlib import Path

import torch

from engine.batches import among
from engine.checks import first_line
from repair.inputs import Folder
from repair.mismatch import share_of
from repair.outputs import beside_weights
from repair.page import CARDS, Card, Part, write_page
from repair.pipeline import Repaired
from repair.ranking import Ranking
from repair.suspects_list import beside, named, write_suspects


def list_suspects(out: str, found: Repaired, data, folder: Folder, places: dict) -> str:
    """Write the list of suspects; a line that says so, or why there is none."""
    why = found.unranked
    try:
        if found.ranking is not None:
            return write_suspects(out, found.ranking, data, folder, places)
    except Exception as error:
        why = first_line(error)
    stale = f"; {beside(out)}: of an earlier repair" if beside(out).exists() else ""
    return f"no list of suspects ({why}){stale}"


def show_changes(args: argparse.Namespace, scores: dict, before: list, after: list, data, heldout, folder: Folder,
                 ranking: Ranking | None, verdict: str | None = None) -> str:
    """Write the page that shows what changed and the first suspects; a line that says so, or why there is none.

    Args: scores: of `before_and_after`; before, after: predictions of `data` and of `heldout`, where there is any;
        verdict: see `page.page_of`.
    """
    file, labels = beside_weights(args.out, ".html"), data.labels.cpu()
    try:
        others = ~among(folder.forget, len(data))
        parts = [] if heldout is None else [Part("held-out images", heldout.labels.cpu(), before[1], after[1])]
        parts.append(Part("other training images, given labels", labels[others], before[0][others], after[0][others]))
        first = [] if ranking is None else list(itertools.islice(ranking.suspects(), CARDS))
        images = data.some(torch.tensor([suspect.index for suspect in first])).images.cpu() if first else []
        cards = [Card(image, named(folder, s.index), int(labels[s.index]), int(before[0][s.index]), s.predicted,
                      s.score, s.similar, (number, s.by_score, s.by_similar), number <= ranking.likely)
                 for number, (s, image) in enumerate(zip(first, images, strict=True), 1)]
        facts = [f"{args.model}, {args.checkpoint}, repaired from {len(folder.forget)} known bad images",
                 f"{len(data)} training images below {args.data}, {len(heldout or ())} held out"]
        write_page(file, title=Path(args.out).name, facts=facts, scores=scores, parts=parts, classes=folder.classes,
                   cards=cards, total=0 if ranking is None else len(ranking.index),
                   likely=0 if ranking is None else ranking.likely, bad=args.bad,
                   saved=unused(f"{file.stem}-bad", args.bad), verdict=verdict)
    except Exception as error:  # the weights and the report are there all the same
        stale = f"; {file} is of an earlier repair" if file.exists() else ""
        return f"no page to open ({first_line(error)}){stale}"
    return f"{file} shows what changed and {len(cards)} suspects to tick: open it in a browser"


def unused(stem: str, lists: list[str]) -> str:
    """The name of a new list: STEM.csv, or STEM-2.csv, STEM-3.csv, ... where a list of this repair has that name."""
    taken = {Path(name).name for name in lists}
    names = itertools.chain([f"{stem}.csv"], (f"{stem}-{k}.csv" for k in itertools.count(2)))
    return next(name for name in names if name not in taken)


def before_and_after(before: list, after: list, data, heldout, folder: Folder) -> dict:
    """What the repair changed: [before, after] by the name of the row, and how many predictions changed.

    Args: before, after: what was predicted of `data` and of `heldout`, where there is any.
    """
    pair, labels = (before[0], after[0]), data.labels.cpu()
    known = among(folder.forget, len(data))
    rows = {"known bad, their given labels": [share_of((p == labels)[known]) for p in pair]}
    if folder.truths is not None:
        rows["known bad, their true labels"] = [share_of((p == folder.truths)[folder.truths >= 0]) for p in pair]
    rows["other training images, given labels"] = [share_of((p == labels)[~known]) for p in pair]
    if heldout is not None:
        rows["held-out images"] = [share_of(p == heldout.labels.cpu()) for p in (before[1], after[1])]
    if folder.clean is not None:
        wrong = (folder.clean >= 0) & (known | (folder.clean != labels))
        rows["Healed: bad images, true labels"] = [share_of((p == folder.clean)[wrong]) for p in pair]
    return {**rows, "training images with another prediction": int((pair[0] != pair[1]).sum())}


def table_of_changes(scores: dict) -> str:
    """The comparison, in percent."""
    lines = [f"{'':<44}{'before':>8}{'after':>8}"]
    for name, value in scores.items():
        pair = value if isinstance(value, list) else []
        cells = "".join(f"{'-' if v is None else f'{100 * v:.1f}':>8}" for v in pair) or f"{value:>16}"
        lines.append(f"{name:<44}{cells}")
    return "\n".join(lines)
