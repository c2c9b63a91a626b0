"""Does a repaired network find what was not discovered? Scores of suspects, and rounds of discovery (Sec. 4).

    python run.py suspects --task all --discovery 0.1,0.5 --seeds 0,1,2 --out runs/suspects/scores.jsonl --figure
    python run.py suspects --task all --discovery 0.1 --rounds 2 --look-at 120     # a user looks at 120 suspects
    python run.py suspects --task all --discovery 0.1 --rounds 2 --flag-top 120    # nobody looks; or both at once

A cell trains an original network, repairs it by REM from D_f and ranks the images outside D_f by every score; the clean
labels are read afterwards, to count. Rows that are there are not made again, so the same command goes on where it was
killed; original networks lie in originals/ beside --out.
"""

import itertools
import json
from dataclasses import fields
from pathlib import Path

import torch

from baselines import rem_plus_by_config
from engine.features import features
from engine.streams import stream
from etd import mask_table
from experiment.cell import attempt, with_true_n, draw_forget
from experiment.console import Parser, add_flags, tell
from experiment.files import check_writable
from experiment.rows import append_row, provenance
from experiment.settings import EVERY_TASK, Config, resolve
from metrics import evaluate, mean_sem
from repair.suspects import given_loss, logits, margin, nearest, probe, ranked, suspects, tracin
from study.canvas import import_figure, save
from study.originals import (check_cells, check_originals, dataset_of, device_of, images_of, load_original,
                             make_original)
from study.plan import by_original, parse_axis
from study.rows import SCORES, cell_key, split
from tasks import TASKS, Task

# Those settings of run.py that have a part in it beside task, discovery and seed; the other flags are errors here.
FLAGS = ("dataset", "per_class", "per_class_test", "data_dir", "download", "image_size", "n", "trigger", "human_labels",
         "human_column", "augment", "pair", "arch", "width", "capacity", "patch", "dim", "depth", "p_mem",
         "ratio", "epochs", "batch", "optimizer", "lr", "momentum", "weight_decay", "precision", "unlearn_epochs",
         "stop", "unlearn_lr", "gamma", "beta", "max_passes", "device", "quiet")
AXES = {f.name: f for f in fields(Config) if f.name in ("task", "seed", "discovery")}
REPAIRED, UNTOUCHED, PROBE = "CE, repaired network", "CE, untouched network", "logistic probe, D_f against the rest"
NEAREST, TRACIN = "cosine to the 5 nearest of D_f", "last-layer TracIn to D_f, untouched"
EVERY = (UNTOUCHED, REPAIRED, "CE repaired - CE untouched", "CE repaired - CE through D_f's channel", NEAREST, PROBE,
         TRACIN, "logit margin, untouched network", "logit margin, repaired network")  # score
DRAWN = {REPAIRED: "-", UNTOUCHED: "--", PROBE: ":", NEAREST: "-.", TRACIN: (0, (1, 3))}  # dashes
PARTS = (("score", "auroc", "recall", "undiscovered", "images", "ranks"),  # what a row has: of a score or of a round
         ("round", "user", "looked", "known", "known_bad", *SCORES))
COLOURS = ("#D55E00", "#000000", "#0072B2", "#009E73", "#CC79A7")  # Okabe and Ito's


# --- Scores and what they find ----------------------------------------------------------------------------------------

def every_score(model, repaired, through: torch.Tensor, data, forget: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every score of an image, (N,) float64, higher is more suspect, by its name.

    Args: model, repaired: the network before and after REM; through: (N, C) logits of the repaired network through
        D_f's channel, theta_o2 under D_f's mask; data, forget: D_tr with its labels as given, D_f.
    """
    (before, labels), (after, _), h = logits(model, data), logits(repaired, data), features(model, data)
    untouched, ce = given_loss(before, labels), given_loss(after, labels)
    channel = given_loss(through, labels)
    found = (untouched, ce, ce - untouched, ce - channel, nearest(h, forget), probe(h, forget),
             tracin(before, labels, h, forget), margin(before, labels), margin(after, labels))
    return dict(zip(EVERY, found, strict=True))


def auroc(score: torch.Tensor, wanted: torch.Tensor) -> float:
    """Probability that a wanted one outscores another, half at a tie: (M,), (M,) bool; ValueError for none or all."""
    yes, no = score[wanted], score[~wanted].sort().values
    if len(yes) == 0 or len(no) == 0:
        raise ValueError(f"AUROC of {len(yes)} wanted among {len(score)} is undefined; it takes some of either kind")
    pairs = torch.searchsorted(no, yes) + torch.searchsorted(no, yes, right=True)  # 2 below, 1 level with
    return int(pairs.sum()) / (2 * len(yes) * len(no))


def recall(ranks: list[int], looked: int) -> float:
    """Share of the wanted ones, at these ranks from 1, that are among the first `looked`."""
    return sum(rank <= looked for rank in ranks) / len(ranks)


def rows_of_scores(scores: dict[str, torch.Tensor], task: Task, forget: torch.Tensor) -> list[dict]:
    """A row per score: AUROC, recall when |undiscovered| are flagged, and the ranks from 1 of the undiscovered."""
    rows = []
    for name, score in scores.items():
        index, score = ranked(score, forget)
        wanted = torch.isin(index, task.corrupted)
        if wanted.any():  # none is left at discovery 1
            ranks = (wanted.nonzero().flatten() + 1).tolist()
            rows.append({"score": name, "auroc": auroc(score, wanted), "recall": recall(ranks, len(ranks)),
                         "undiscovered": len(ranks), "images": len(index), "ranks": ranks})
    return rows


# --- Repair, look, repair again ---------------------------------------------------------------------------------------

def repair_cell(config: Config, original, data, forget: torch.Tensor):
    """REM+ as `experiment.cell.unlearn` runs it; returns its network, and its logits (N, C) through D_f's channel."""
    kept = {}

    def log(epoch: int, epochs: int, expanded, best: bool = True, **record) -> None:
        if best:  # of the epochs so far, see rem_plus.EarlyStopping; the last such epoch is what REM+ returns
            mask = mask_table(len(data), expanded.width, config.p_mem, config.seed, forget)[forget[0]]
            kept.update(logits=logits(expanded, data, mask)[0])

    network = rem_plus_by_config(original, data, forget, config, stream(config.seed, "unlearning"), log=log)
    return network, kept["logits"]


def play(config: Config, task: Task, original, rounds: int, users: list[tuple[str, int]]):
    """Rounds of repair from one original network, each from all that is known by then; yields rows as they come.

    Args: config, task: of a cell; its D_f is what is known in round 1, which is the same for all users; original: the
        trained network, from which every round starts; rounds: number of repairs; users: (user, K), what happens to the
        first K suspects between rounds: "looks" takes the corrupted ones into D_f, as one who knows them when they are
        seen; "none" takes all, right or wrong.
    """
    first = draw_forget(config, task)
    repaired, through = repair_cell(config, original, task.train, first)
    yield from rows_of_scores(every_score(original, repaired, through, task.train, first), task, first)
    yield {"round": 1, "user": "", "looked": 0, **scores_of(repaired, task, first, original)}
    for user, looked in users:
        forget, network = first, repaired
        for number in range(2, rounds + 1):
            new = suspects(network, task.train, forget).index[:looked]
            new = new[torch.isin(new, task.corrupted)] if user == "looks" else new
            forget = torch.cat([forget, new]).sort().values
            network, _ = repair_cell(config, original, task.train, forget)
            yield {"round": number, "user": user, "looked": looked, **scores_of(network, task, forget, original)}


def scores_of(network, task: Task, forget: torch.Tensor, original) -> dict:
    """Healed, Utility and product, |D_f|, and how many of D_f are corrupted."""
    bad = int(torch.isin(forget, task.corrupted).sum())
    return {"known": len(forget), "known_bad": bad, **evaluate(network, task, forget, original)}


# --- Command line -----------------------------------------------------------------------------------------------------

def add_arguments(p: Parser) -> None:
    """Lists of tasks, discovery rates and seeds, the flags of run.py in FLAGS, and those of the rounds."""
    p.epilog = "Lists: 1,2 or first:last:step; all for tasks."
    for name, f in AXES.items():
        names = [f"--{name}", *([f"--{name}s"] if name != "discovery" else [])]
        text = f"{f.metadata['help']} (default: {f.default})"
        p.add_argument(*names, dest=name, default=str(f.default), metavar="LIST", help=text)
    p.add_argument("--rounds", type=int, help="repairs, each from a larger D_f (default: 1, or 2 with a K)")
    p.add_argument("--look-at", type=int, metavar="K",
                   help="between rounds a user looks at K suspects and confirms the corrupted ones (default: |D_c|)")
    p.add_argument("--flag-top", type=int, metavar="K",
                   help="K suspects join D_f between rounds, unseen; beside --look-at: once more from round 1")
    p.add_argument("--figure", action="store_true", help="draw recall over images looked at, beside --out (matplotlib)")
    p.add_argument("--out", default="runs/suspects.jsonl",
                   help="result file, a JSON line per cell and score or round is added (default: runs/suspects.jsonl)")
    add_flags(p, FLAGS)


def main(given: dict, argv: list[str]) -> int:
    """Run `run.py suspects`; returns the exit code: 0, or 1 if a cell failed. Bad input raises ValueError."""
    rounds, look_at, flag_top, figure = (given.pop(name) for name in ("rounds", "look_at", "flag_top", "figure"))
    users = [(user, k) for user, k in (("looks", look_at), ("none", flag_top)) if k is not None]
    if rounds is not None and rounds < 1:
        raise ValueError(f"--rounds is {rounds}; it must be at least 1")
    for _, k in users:
        if k < 0 or rounds == 1:
            raise ValueError(f"{k} suspects between {rounds or 2} rounds; give 0 or more, and 2 rounds or more")
    figure = import_figure() if figure else None
    cells = cells_asked(given)
    plan = rounds or 1 + bool(users), users or [("looks", cells[0].n)]
    check_outputs_of(cells[0].out, bool(figure))
    warn_of_other_images(cells)
    if left := [cell for cell in cells if not is_done(cell, plan)]:
        check_cells(left)
        check_rounds(left, *plan)
        check_originals(Path(cells[0].out).parent, [original for original, _ in by_original(left)])
    pairs = [(config, original) for original, group in by_original(cells) for config in group]
    failures = sum(not play_cell(config, original, plan, argv) for config, original in pairs)
    rows = [row for row in rows_there(cells) if part_of(row) in parts_of(plan)]
    print("\n\n".join(filter(None, [suspects_table(rows), round_table(rows)])))
    if figure and any("score" in row for row in rows):
        path = Path(cells[0].out)
        save(str(path.parent), path.stem, draw_recall(figure(layout="constrained"), rows))
        print(f"\n{path.with_suffix('.png')} and .svg show recall over the number of images looked at")
    elif figure:
        print("\nno figure: nothing was left to find, at discovery 1, or no cell has ended well")
    return 1 if failures else 0


def cells_asked(given: dict) -> list[Config]:
    """The settings of each cell: every combination of tasks, discovery rates and seeds."""
    lists = {name: parse_axis(f, given.pop(name)) for name, f in AXES.items()}
    if not given["out"]:
        raise ValueError("--out is empty; name a result file")
    cells = [resolve({**given, "method": "rem-plus", "task": task, "seed": seed, "discovery": rate})
             for seed in lists["seed"] for task in lists["task"] for rate in lists["discovery"]]
    cells = [with_true_n(cell, dataset_of(cell)) if cell.task == "human" else cell for cell in cells]
    if cells[0].unlearn_epochs < 1:
        raise ValueError("--unlearn-epochs is 0; without a repair there are no suspects")
    if none := [cell.discovery for cell in cells if round(cell.discovery * cell.n) == 0]:
        raise ValueError(f"discovery {none[0]} of {cells[0].n} corrupted examples finds none; raise either")
    return cells


def check_outputs_of(out: str, figure: bool) -> None:
    """Raise ValueError unless the rows, and a figure of their name, can be written."""
    check_writable(out)
    for path in (Path(out).with_suffix(ending) for ending in (".png", ".svg") if figure):
        if path == Path(out):
            raise ValueError(f"--out is {out}, the name of the figure; give a result file that ends in .jsonl")
        check_writable(str(path))


def warn_of_other_images(cells: list[Config]) -> None:
    """Say on stderr how many rows of these cells are of other images, which count for nothing here."""
    if left_out := rows_there(cells, other=True):
        tell(f"warning: {len(left_out)} rows in {cells[0].out} are of other images, which have changed since; they are "
             "left out and their cells computed anew (to keep the two apart, take another --out)")


def check_rounds(cells: list[Config], rounds: int, users: list[tuple[str, int]]) -> None:
    """Raise ValueError, before any training, for a K by which D_f of the last round can be all of D_tr."""
    for cell, (user, k) in itertools.product(cells if rounds > 1 else (), users):
        images, first = len(dataset_of(cell).train), round(cell.discovery * cell.n)
        most = images if user == "none" else cell.n  # who looks takes none but corrupted ones
        if first < images == min(most, first + (rounds - 1) * k):
            flag, room = "--flag-top" if user == "none" else "--look-at", (images - first - 1) // (rounds - 1)
            raise ValueError(f"{flag} is {k}, by which all {images} images can be in D_f by round {rounds}; "
                             f"give at most {room}")


def is_done(config: Config, plan: tuple[int, list]) -> bool:
    """Whether a cell's rows are there, for all scores, rounds and users."""
    wanted = parts_of(plan)
    if round(config.discovery * config.n) == config.n:  # there is nothing left to find
        wanted = {part for part in wanted if part[0] is None}
    return wanted <= {part_of(row) for row in rows_there([config])}


def parts_of(plan: tuple[int, list]) -> set[tuple]:
    """The rows of a cell, as `part_of` names them, that a number of rounds and the users ask for."""
    rounds, users = plan
    scores = {(name, None, None, None) for name in EVERY}
    return scores | {(None, 1, "", 0), *((None, i, *user) for user in users for i in range(2, rounds + 1))}


def play_cell(config: Config, original: Config, plan: tuple[int, list], argv: list[str]) -> bool:
    """Play a cell unless its rows are there, and append those that are not; whether it ended well."""
    label = f"{config.task} at discovery {config.discovery:g}, seed {config.seed}"
    if is_done(config, plan):
        return True
    done = {part_of(row) for row in rows_there([config])}
    _, failure = make_original(original, Path(config.out).parent)
    if failure is None:
        task, model, _ = load_original(original, str(Path(config.out).parent))
        rows, seconds, failure = attempt(lambda: list(play(config, task, model, *plan)))
    if failure:
        print(f"{label}: failed: {failure}", flush=True)
        return False
    where = {"cell": cell_key(config), **{name: getattr(config, name) for name in (*AXES, *FLAGS)}, "out": config.out,
             **provenance(device_of(config), argv), "fingerprint": images_of(config), "seconds": seconds}
    for row in rows:
        if part_of(row) not in done:
            append_row(config.out, {**where, **row})
    if not config.quiet:
        print(f"{label}: {seconds:.0f} s", flush=True)
    return True


def part_of(row: dict) -> tuple:
    """What tells the rows of one cell apart."""
    return tuple(row.get(name) for name in ("score", "round", "user", "looked"))


def rows_there(cells: list[Config], other: bool = False) -> list[dict]:
    """The rows of some cells in their result file; a line that is none, torn or without its numbers, is left out.

    Those of other images are left out, too; with `other` they are given in place of the rest.
    """
    path, keys, rows = Path(cells[0].out), {cell_key(cell): cell for cell in cells}, {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            cell = keys[row["cell"]]
            if not any(is_whole(row, part) for part in PARTS):
                continue
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
            continue
        if (row.get("fingerprint") not in (None, images_of(cell))) == other:  # `images` is a number there
            rows[row["cell"], part_of(row)] = row  # two processes may have played one cell at once
    return list(rows.values())


def is_whole(row: dict, part: tuple[str, ...]) -> bool:
    """Whether a row has all of a score or of a round, and shares in [0, 1] where it must; an error for what is none."""
    shares = [row[name] for name in ("auroc", "recall", *SCORES) if name in part and row.get(name) is not None]
    return (all(row.get(name) is not None for name in (*AXES, *part))
            and all(0 <= share <= 1 for share in shares) and all(rank >= 1 for rank in row.get("ranks") or ()))


# --- Output -----------------------------------------------------------------------------------------------------------

def in_every_seed(rows: list[dict]) -> list[dict]:
    """Rows of the cells that every seed has: means over others would differ for that alone."""
    seeds = {row["seed"] for row in rows}
    there = {(row["task"], row["discovery"], row["seed"]) for row in rows}
    return [row for row in rows if all((row["task"], row["discovery"], seed) in there for seed in seeds)]


def note_of_seeds(part: list[dict], rows: list[dict]) -> str:
    """How many seeds a cell has, where they are fewer than a table's rows have."""
    count, most = (len({row["seed"] for row in runs}) for runs in (part, rows))
    return f" (seeds: {count})" if 0 < count < most else ""


def over_seeds(rows: list[dict], key: str, factor: float = 1.0, digits: int = 2) -> str:
    """Mean ± SEM over seeds, of each seed's mean over its rows."""
    seeds = {row["seed"] for row in rows}
    mean, error = mean_sem(mean_sem(row[key] for row in rows if row["seed"] == seed)[0] for seed in seeds)
    return f"{factor * mean:.{digits}f}" + ("" if error is None else f" ± {factor * error:.{digits}f}")


def pipe_table(title: str, rows: list[dict], header: list[str], lines: list[list[str]]) -> str:
    """A table in Markdown below its title with the rows' seeds; empty without a line."""
    seeds = ", ".join(map(str, sorted({row["seed"] for row in rows})))
    table = "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *lines))
    return f"{title}, mean ± SEM; seeds {seeds}\n\n{table}" if lines else ""


def suspects_table(rows: list[dict]) -> str:
    """AUROC / recall at |undiscovered| of each score, mean ± SEM over seeds: per task and rate, and over the cells that
    every seed has."""
    rows = [row for row in rows if "score" in row]
    columns = sorted({(EVERY_TASK.index(row["task"]), row["discovery"]) for row in rows})
    lines = []
    for score in dict.fromkeys(row["score"] for row in rows):
        mine = [row for row in rows if row["score"] == score]
        parts = [[row for row in mine if (row["task"], row["discovery"]) == (EVERY_TASK[t], rate)]
                 for t, rate in columns]
        cells = [" / ".join(over_seeds(part, key) for key in ("auroc", "recall") if part) + note_of_seeds(part, rows)
                 for part in (*parts, in_every_seed(mine))]
        lines.append([score, *cells])
    header = ["score", *(f"{EVERY_TASK[t]} {rate:g}" for t, rate in columns), "all"]
    return pipe_table("AUROC / recall when |undiscovered| are flagged", rows, header, lines)


def round_table(rows: list[dict]) -> str:
    """Healed / Utility / product of each round in each task, mean ± SEM over seeds, in percent."""
    rows, lines = [row for row in rows if "round" in row], []
    shown = TASKS if not any(row["task"] == "human" for row in rows) else EVERY_TASK
    for (rate, number, user, looked), mine in split(rows, "discovery", "round", "user", "looked").items():
        how = {"": "", "looks": f"looks at {looked}", "none": f"none, top {looked}"}[user]
        parts = [[row for row in mine if row["task"] == task] for task in shown]
        cells = [" / ".join(over_seeds(part, name, 100, 1) for name in SCORES if part) + note_of_seeds(part, rows)
                 for part in parts]
        known = " / ".join(f"{mean_sem(row[name] for row in mine)[0]:.0f}" for name in ("known", "known_bad"))
        lines.append([f"{rate:g}", str(number), how, known, *cells])
    header = ["discovery", "round", "user", "known / of them bad", *shown]
    return pipe_table("Healed / Utility / product in percent", rows, header, lines)


def draw_recall(figure, rows: list[dict]):
    """Recall over the number of images looked at, a panel per task and rate, mean over seeds; returns the figure."""
    rows = [row for row in rows if row.get("score") in DRAWN]
    rates = sorted({row["discovery"] for row in rows})
    tasks = [t for t in EVERY_TASK if t in {row["task"] for row in rows}]
    figure.set_size_inches(max(6.5, 1 + 2.6 * len(tasks)), 1.1 + 2.1 * len(rates))
    grid = figure.subplots(len(rates), len(tasks), squeeze=False, sharey=True)
    for (y, rate), (x, task) in ((a, b) for a in enumerate(rates) for b in enumerate(tasks)):
        axes, part = grid[y, x], [row for row in rows if (row["task"], row["discovery"]) == (task, rate)]
        missing = part[0]["undiscovered"] if part else 1
        places = range(3 * missing + 1)
        axes.plot([0, missing, 3 * missing], [0, 1, 1], color="0.8", linewidth=3, label="the best there can be")
        for (score, dashes), colour in zip(DRAWN.items(), COLOURS, strict=True):
            if runs := [row["ranks"] for row in part if row["score"] == score]:
                means = [sum(recall(ranks, k) for ranks in runs) / len(runs) for k in places]
                axes.plot(places, means, linestyle=dashes, color=colour, linewidth=2.4 if score == REPAIRED else 1.4,
                          label=score)
        axes.set_title(f"{task}, discovery {rate:g}: {missing} to find", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.set_xlabel("images looked at, most suspect first" if y + 1 == len(rates) else "", fontsize=8)
        axes.set_ylabel("recall" if x == 0 else "", fontsize=8)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return figure
