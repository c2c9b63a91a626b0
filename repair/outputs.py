"""What a repair writes beside the weights: where it goes, what it must not replace, and what stands in it.

    check_outputs(args)                                   # before any work
    scores = before_and_after(found, data, heldout, folder)
    print(table_of_changes(scores), list_suspects(args.out, found, data, folder), sep="\n")

Whatever fails here at the end costs no repair: its weights are there, and a line says what is missing.
"""

import argparse
import csv
import hashlib
import io
import itertools
import json
import math
from pathlib import Path

import torch

from engine.batches import among
from engine.checks import first_line
from experiment.files import check_readable, check_writable, write_whole
from repair.checkpoints import safetensors
from repair.inputs import Folder
from repair.networks_by_name import FILES
from repair.page import CARDS, Card, Part, write_page
from repair.pipeline import Repaired

ENDINGS = (*FILES, ".tar", ".json", ".state", ".html")  # what a file's name may end in; the last three are refused
COLUMNS = ("rank", "filename", "index", "given_label", "predicted_label", "score", "label_score", "similar",
           "rank_by_score", "rank_by_similar", "likely")


# --- Where it goes ----------------------------------------------------------------------------------------------------

def beside_weights(out: str | Path, ending: str) -> Path:
    """The report (.json), page (.html) or state (.state) beside the repaired weights; net_v1.2 has no ending to
    take away."""
    path = Path(out)
    if not path.name:
        raise ValueError(f"--out is {str(out)!r}; give a file that ends in .pt or .safetensors")
    return path.with_suffix(ending) if path.suffix in ENDINGS else path.with_name(path.name + ending)


def suspects_file(out: str | Path) -> Path:
    """suspects.csv beside the repaired weights."""
    return Path(out).with_name("suspects.csv")


def check_outputs(args: argparse.Namespace) -> None:
    """Raise ValueError unless all outputs can be written, lie outside the images, and replace no input, nothing that a
    repair has not written, and no list that a user has filled in."""
    inputs = [args.checkpoint, *args.bad, args.class_map, args.model.rpartition(":")[0]]
    images = [(Path(args.data) / part).resolve() for part in ("train", "test", "val")]
    report, page, state = (beside_weights(args.out, ending) for ending in (".json", ".html", ".state"))
    check_writable(args.out)  # the very name: Path("folder/") is a file's
    for out in (Path(args.out), report, page, state, suspects_file(args.out)):
        check_writable(str(out))
        if any(out.resolve().is_relative_to(folder) for folder in images):
            raise ValueError(f"{out} would lie among the images of --data {args.data}; give --out elsewhere")
        for name in filter(None, inputs):
            if out.exists() and Path(name).exists() and out.samefile(name):
                raise ValueError(f"{out} would replace the input {name}; give another --out")
    if Path(args.out).suffix in ENDINGS[-3:]:
        raise ValueError(f"--out is {args.out}, a name of another output; give a file that ends in .pt or .safetensors")
    if Path(args.out).suffix == ".safetensors":
        safetensors()
    known = is_report(report) or state.exists()
    for out in (Path(args.out), report, page):
        if out.exists() and not known:
            raise ValueError(f"{out} exists, and no report of a repair lies beside it: it may be something else, and "
                             "would be replaced; give another --out, or remove it")
    listed = suspects_file(args.out)
    if listed.exists() and not begins_as_suspects(listed):
        raise ValueError(f"{listed} has a column `bad`, which would be lost, or another that is not from here; choose "
                         "another folder for --out")


def is_report(file: Path) -> bool:
    """Whether a file is what a repair writes as its report."""
    try:
        check_readable(file)
        return {"scores", "sha256", "settings"} <= json.loads(file.read_bytes()).keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def begins_as_suspects(file: Path) -> bool:
    """Whether a file begins as `write_suspects` writes it."""
    with open(file, "rb") as opened:
        return opened.readline(1024).strip() == ",".join(COLUMNS).encode()


def digest(path: str) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            found.update(part)
    return found.hexdigest()


# --- What changed -----------------------------------------------------------------------------------------------------

def before_and_after(found: Repaired, data, heldout, folder: Folder) -> dict:
    """What the repair changed: accuracies [before, after] by the name of the row, and how many predictions changed."""
    labels, pair = data.labels.cpu(), (found.before[0], found.after[0])
    forget, known = folder.forget, among(folder.forget, len(data))
    rows = {"known bad, their given labels": [share_of((p == labels)[known]) for p in pair]}
    if folder.truths is not None:
        known_too = folder.truths >= 0
        rows["known bad, their true labels"] = [share_of((p[forget] == folder.truths)[known_too]) for p in pair]
    rows["other training images, given labels"] = [share_of((p == labels)[~known]) for p in pair]
    if heldout is not None:
        rows["held-out images"] = [share_of(p == heldout.labels.cpu()) for p in (found.before[1], found.after[1])]
    return {**rows, "training images with another prediction": int((pair[0] != pair[1]).sum())}


def share_of(hits: torch.Tensor) -> float | None:
    """Fraction of true entries, None of none."""
    return round(float(hits.double().mean()), 4) if len(hits) else None


def table_of_changes(scores: dict) -> str:
    """The comparison, in percent."""
    lines = [f"{'':<44}{'before':>8}{'after':>8}"]
    for name, value in scores.items():
        pair = value if isinstance(value, list) else []
        cells = "".join(f"{'-' if v is None else f'{100 * v:.1f}':>8}" for v in pair) or f"{value:>16}"
        lines.append(f"{name:<44}{cells}")
    return "\n".join(lines)


# --- Suspects ---------------------------------------------------------------------------------------------------------

def list_suspects(out: str, found: Repaired, data, folder: Folder) -> str:
    """Write suspects.csv; a line that says so, or why there is none."""
    file, why = suspects_file(out), found.unranked
    try:
        if found.ranking is not None:
            return write_suspects(file, found.ranking, data.labels.cpu(), folder)
    except Exception as error:
        why = first_line(error)
    stale = f"; {file} is of an earlier repair" if file.exists() else ""
    return f"no list of suspects ({why}){stale}"


def write_suspects(file: Path, ranking, labels: torch.Tensor, folder: Folder) -> str:
    """Write a row per image outside D_f in overall order, which lists.py reads back with a column `bad` that the user
    has added; returns a line that says so."""
    text = io.StringIO(newline="")
    out = csv.writer(text)
    out.writerow(COLUMNS)
    for rank, suspect in enumerate(ranking.suspects(), 1):
        names = [as_text(folder.classes[k]) for k in (int(labels[suspect.index]), suspect.predicted)]
        similar, by_similar = ("", "") if suspect.similar is None else (f"{suspect.similar:.6g}", suspect.by_similar)
        out.writerow((rank, folder.name(suspect.index), suspect.index, *names, f"{suspect.score:.6g}",
                      f"{math.exp(-suspect.score):.6g}", similar, suspect.by_score, by_similar,
                      "true" if rank <= ranking.likely else "false"))
    content = text.getvalue().encode("utf-8", "backslashreplace")  # any file name
    write_whole(file, lambda opened: opened.write(content))
    return (f"{file} ranks the {len(ranking.index)} images that no list names, most suspect first; about "
            f"{ranking.likely} of them are likely bad, an estimate that is too low rather than too high")


def as_text(name: str) -> str:
    """A class's name, behind an apostrophe where a spreadsheet would take it for a formula."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@")) else name


# --- The page ---------------------------------------------------------------------------------------------------------

def show_changes(args: argparse.Namespace, scores: dict, found: Repaired, data, heldout, folder: Folder) -> str:
    """Write the page that shows what changed and the first suspects; a line that says so, or why there is none."""
    file, labels, ranking = beside_weights(args.out, ".html"), data.labels.cpu(), found.ranking
    try:
        others = ~among(folder.forget, len(data))
        parts = [Part("other training images, given labels", labels[others], found.before[0][others],
                      found.after[0][others])]
        if heldout is not None:
            parts.insert(0, Part("held-out images", heldout.labels.cpu(), found.before[1], found.after[1]))
        first = [] if ranking is None else list(itertools.islice(ranking.suspects(), CARDS))
        images = data.some(torch.tensor([suspect.index for suspect in first])).images.cpu() if first else []
        cards = [Card(image, folder.name(s.index), int(labels[s.index]), int(found.before[0][s.index]), s.predicted,
                      s.score, s.similar, number, number <= ranking.likely)
                 for number, (s, image) in enumerate(zip(first, images, strict=True), 1)]
        facts = [f"{args.model}, {args.checkpoint}, repaired from {len(folder.forget)} known bad images",
                 f"{len(data)} training images below {args.data}, {len(heldout or ())} held out"]
        write_page(file, title=Path(args.out).name, facts=facts, scores=scores, parts=parts, classes=folder.classes,
                   cards=cards, total=0 if ranking is None else len(ranking.index),
                   likely=0 if ranking is None else ranking.likely, bad=args.bad,
                   saved=unused(f"{file.stem}-bad", args.bad), verdict=found.verdict.line(classes=folder.classes))
    except Exception as error:  # the weights and the report are there all the same
        stale = f"; {file} is of an earlier repair" if file.exists() else ""
        return f"no page to open ({first_line(error)}){stale}"
    return f"{file} shows what changed and {len(cards)} suspects to tick: open it in a browser"


def unused(stem: str, lists: list[str]) -> str:
    """The name of a new list: STEM.csv, or STEM-2.csv, STEM-3.csv, ... where a list of this repair has that name."""
    taken = {Path(name).name for name in lists}
    names = itertools.chain([f"{stem}.csv"], (f"{stem}-{k}.csv" for k in itertools.count(2)))
    return next(name for name in names if name not in taken)
