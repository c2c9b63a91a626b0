"""How well a repair heals networks and corruptions that it was not made on, beside what else one could do.

    python examples/trials.py --out runs/trials.jsonl                   # every network, corruption, treatment and seed
    python examples/trials.py --out FILE --networks VGG --seeds "0;1" --treatments "REM;CLP"
    python examples/trials.py --out FILE --table                        # the table of what is there

600 images of which 5 % have a trigger and a wrong label, or 10 % a wrong label; 40 % of these are known. A row is
appended for each treatment of each trained network; one that is there is skipped, so the same command goes on. The
trained networks are kept beside the rows, in a folder of their name. Each rival runs at three rates and is taken at the
one with the best product *on test images*, an advantage: nothing of ours is chosen by clean labels. (The table also has
its product at the one rate that is best over all trials, a smaller advantage.) Every network is judged as
`run.py repair` judges its own, by labels as given, so that a row tells whether a failure would be announced: without
and with 200 clean images that are held out.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from statistics import fmean

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before this file's own folder

from engine.features import features  # noqa: E402
from engine.streams import stream  # noqa: E402
from experiment.console import told_in_a_line  # noqa: E402
from examples.corrupted import CORRUPTIONS, TARGET, TRIGGERS, Trial, corrupt  # noqa: E402
from examples.rivals import RIVALS, rem_alone, settings_of  # noqa: E402
from examples.zoo import SUBJECTS, Subject  # noqa: E402
from experiment.rows import append_row, provenance  # noqa: E402
from metrics import accuracy, predict, share  # noqa: E402
from repair.finish import finish  # noqa: E402
from repair.looks import looking_alike  # noqa: E402
from repair.pipeline import looked_at  # noqa: E402
from repair.ranking import rank  # noqa: E402
from repair.suspects import crossed, logits, probe  # noqa: E402
from repair.verdict import REPAIRED, judge, undoubted  # noqa: E402
from train import fit  # noqa: E402


def finished(model, trial: Trial, subject: Subject, seed: int, rate: float, truths: bool = False):
    """REM, then `finish` and the cut of the suspects, as the command does it; with `truths` the listed images' true
    labels are known.

    Its seconds are those of the finish and the cut.
    """
    repaired, config = rem_alone(model, trial, subject, seed, rate), replace(settings_of(model, trial), seed=seed)
    true_labels = trial.truth[trial.known] if truths else None
    found = finish(model, repaired, trial.train, trial.known, config, true_labels=true_labels)
    h = features(model, trial.train)
    ranking = rank(*logits(found.model, trial.train), trial.known, probe(h, trial.known), crossed(h, trial.known))
    marked = ranking.index[:ranking.likely]
    return found.model, {**found.report(), "dropped_bad": int(torch.isin(found.dropped, trial.bad).sum()),
                         "hidden": len(trial.bad) - len(trial.known), "likely": len(marked),
                         "likely_bad": int(torch.isin(marked, trial.bad).sum())}


VERDICTS = "verdict", "verdict, held out"
TOGETHER = "gone together"
COSTLY = 0.02  # Utility lost that a user should be told of
TREATMENTS = {"REM": RIVALS["REM"], "finished": (finished, (1.0,)),
              "finished, true labels": (partial(finished, truths=True), (1.0,)), **RIVALS}


def trained(subject: Subject, trial: Trial, seed: int, file: Path) -> torch.nn.Module:
    """The network trained on the labels as given, read from its file if it is there."""
    model = subject.network(seed)
    if file.is_file():
        model.load_state_dict(torch.load(file, weights_only=True))
    else:
        fit(model, trial.train, None, subject.training, stream(seed, "training"))
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), file)
    return model.eval()


def scores_of(model, trial: Trial, corruption: str) -> dict[str, float | None]:
    """Healed (images corrupted as D_c is, true labels), Utility (clean test images), product; misled of triggers."""
    healed, utility = accuracy(model, trial.alike), accuracy(model, trial.test)
    misled = share(predict(model, trial.alike) == TARGET) if corruption in TRIGGERS else None
    return {"healed": healed, "utility": utility, "product": healed * utility, "misled": misled,
            "learnt": accuracy(model, trial.train, trial.bad), "listed": accuracy(model, trial.train, trial.known)}


def judging(model, trial: Trial, seed: int):
    """A function that gives what `run.py repair` says of a network made of `model`: its verdicts, a word where no
    images are held out and one where `trial.heldout` are, and how many labels' listed images have gone together."""
    labels, (before, margins) = trial.train.labels, looked_at(model, trial.train)
    h = features(model, trial.train)
    counted = undoubted(labels, trial.known, margins, probe(h, trial.known),
                        looking_alike(h, labels, trial.known, seed))
    new, new_before = trial.heldout.labels, looked_at(model, trial.heldout)[0]

    def told(treated) -> dict[str, str | int]:
        after, new_after = (looked_at(treated, data)[0] for data in (trial.train, trial.heldout))
        found = [judge(labels, before, after, trial.known, counted, heldout)
                 for heldout in (None, (new, new_before, new_after))]
        return {**{name: each.word for name, each in zip(VERDICTS, found, strict=True)},
                TOGETHER: len(found[0].together)}

    return told


def treat(name: str, model, trial: Trial, subject: Subject, corruption: str, seed: int) -> dict:
    """What a treatment gives at the best of its rates, and what each gave; null scores where it cannot be done."""
    treatment, rates = TREATMENTS[name]
    tried, verdict = [], judging(model, trial, seed)
    for rate in rates:
        begin = time.perf_counter()
        try:
            treated = treatment(model, trial, subject, seed, rate)
        except ArithmeticError:  # the loss is not finite at this rate
            continue
        if treated is None:
            continue
        seconds = round(time.perf_counter() - begin, 1)
        treated, more = treated if isinstance(treated, tuple) else (treated, {})
        tried.append({"rate": rate, **scores_of(treated, trial, corruption), **verdict(treated), **more,
                      "seconds": seconds})
    best = max(tried, key=lambda row: row["product"], default={"product": None})
    shown = ("rate", "healed", "utility", "product", "misled", "listed", *VERDICTS, TOGETHER, "seconds")
    return {**best, "tried": [{name: row[name] for name in shown} for row in tried]}


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, names in (("networks", SUBJECTS), ("corruptions", CORRUPTIONS), ("treatments", TREATMENTS)):
        p.add_argument(f"--{name}", default=";".join(names), help=f"with semicolons (default: {'; '.join(names)})")
    p.add_argument("--seeds", default="0;1;2")
    p.add_argument("--n", type=int, default=600, help="training images (default: 600)")
    p.add_argument("--out", type=Path, required=True, help="file of JSON lines, appended to")
    p.add_argument("--table", action="store_true", help="print the table of the rows, and run nothing")
    args = p.parse_args()
    asked = {name: getattr(args, name).split(";") for name in ("networks", "corruptions", "treatments", "seeds")}
    for name, known in (("networks", SUBJECTS), ("corruptions", CORRUPTIONS), ("treatments", TREATMENTS)):
        if unknown := sorted(set(asked[name]) - set(known)):
            p.error(f"--{name}: unknown {unknown[0]!r}; choose from {'; '.join(known)}")
    torch.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    if args.table:
        print(table(rows))
        return 0
    key = ("network", "corruption", "seed", "n", "treatment")
    done = {tuple(row[name] for name in key) for row in rows}
    for seed in map(int, asked["seeds"]):
        for corruption in asked["corruptions"]:
            for network in asked["networks"]:
                left = [name for name in asked["treatments"]
                        if (network, corruption, seed, args.n, name) not in done]
                if left:
                    run(network, corruption, seed, args.n, left, args.out)
    return 0


def run(network: str, corruption: str, seed: int, n: int, treatments: list[str], out: Path) -> None:
    """Append a row for each treatment of one trained network."""
    subject = SUBJECTS[network]
    trial = corrupt(corruption, subject.images, seed, n)
    name = f"{network}-{corruption}-{seed}-{n}.pt".replace(" ", "_").replace(",", "")
    model = trained(subject, trial, seed, out.with_suffix("") / name)
    before = scores_of(model, trial, corruption)
    for treatment in treatments:
        row = {"network": network, "images": subject.images, "corruption": corruption, "seed": seed, "n": n,
               "bad": len(trial.bad), "known": len(trial.known), "treatment": treatment, "before": before,
               **treat(treatment, model, trial, subject, corruption, seed),
               **provenance(torch.device("cpu"), sys.argv[1:])}
        append_row(str(out), row)
        shown = {name: row.get(name) for name in ("healed", "utility", "misled", "rate", "seconds")}
        print(f"{network} | {corruption} | {seed} | {treatment}: "
              f"{before['healed']:.3f}, {before['utility']:.3f} -> {shown}", flush=True)


# --- The tables -------------------------------------------------------------------------------------------------------

def table(rows: list[dict]) -> str:
    """Markdown: means over trials by treatment, Healed / Utility of each network and corruption in percent, and `cuts`.

    A treatment is compared with `finished` on the trials that have both. Of a failed treatment, such as pruning without
    BatchNorm, the network stays as it was. The last two columns count trials that lost more than 2 points of Utility,
    and those whose Healed ends below half of it, and how many of them have another verdict than REPAIRED; of the latter
    also of how many it is told that listed images have gone to one class together.
    """
    found = {(row["treatment"], *place(row)): row if row["product"] is not None else row["before"] for row in rows}
    names = [name for name in TREATMENTS if any(key[0] == name for key in found)]
    places = sorted({place(row) for row in rows}, key=lambda where: (order(where), where[2]))
    before = {place(row): row["before"] for row in rows}
    lines = ["| treatment | trials | Healed | Utility | product | at one rate | finished less it | Utility lost "
             "| worst loss | over 2 lost (announced) | not healed (announced) |",
             "|---" * 11 + "|", means("untouched", before, found, before)]
    lines += [means(name, {where: found[(name, *where)] for where in places if (name, *where) in found}, found, before)
              for name in names]
    cells = ["| network | corrupted | seeds | learnt | untouched | " + " | ".join(names) + " |",
             "|---" * (5 + len(names)) + "|"]
    for network, corruption in dict.fromkeys(where[:2] for where in places):
        alike = [where for where in places if where[:2] == (network, corruption)]
        learnt = fmean(before[where]["learnt"] for where in alike)
        parts = [pair([before[where] for where in alike])]
        parts += [pair([found[(name, *where)] for where in alike if (name, *where) in found]) for name in names]
        shown = " | ".join(parts)
        cells.append(f"| {network} | {corruption} | {len(alike)} | {100 * learnt:.0f} | {shown} |")
    return "\n\n".join("\n".join(part) for part in (lines, cells, cuts(rows)))


def cuts(rows: list[dict]) -> list[str]:
    """Lines: by corruption, how many bad images the finish had to find, dropped and marked as likely bad, means over
    trials; of the marked ones' number its error, the mean of |marked - to find| / to find; and in how many trials, of
    those whose rows say so, it is told that listed images have gone to one class together."""
    done = [row for row in rows if row["treatment"] == "finished" and "likely" in row]
    lines = ["| corrupted | trials | to find | dropped, bad | dropped, good | marked, bad | marked, good | error, % "
             "| gone together |", "|---" * 9 + "|"]
    for name in [name for name in CORRUPTIONS if any(row["corruption"] == name for row in done)]:
        mine = [row for row in done if row["corruption"] == name]
        counts = [fmean(count(row) for row in mine) for count in (
            itemgetter("hidden"), itemgetter("dropped_bad"), lambda row: row["dropped"] - row["dropped_bad"],
            itemgetter("likely_bad"), lambda row: row["likely"] - row["likely_bad"])]
        error = fmean(abs(row["likely"] - row["hidden"]) / row["hidden"] for row in mine)
        shown, asked = " | ".join(f"{value:.1f}" for value in counts), [row for row in mine if TOGETHER in row]
        told = f"{sum(row[TOGETHER] > 0 for row in asked)} of {len(asked)}"
        lines.append(f"| {name} | {len(mine)} | {shown} | {100 * error:.0f} | {told} |")
    return lines


def place(row: dict) -> tuple[str, str, int, int]:
    """Network, corruption, seed and number of images of a row."""
    return row["network"], row["corruption"], row["seed"], row["n"]


def order(where: tuple) -> tuple[int, int]:
    """Of lines: as the networks and the corruptions are listed."""
    return list(SUBJECTS).index(where[0]), CORRUPTIONS.index(where[1])


def means(name: str, mine: dict, found: dict, before: dict) -> str:
    """A line: mean scores over the trials of a treatment, `finished` less it, and what it costs in Utility."""
    shown = [f"{100 * fmean(row[key] for row in mine.values()):.1f}" for key in ("healed", "utility", "product")]
    ahead = [found[("finished", *where)]["product"] - row["product"] for where, row in mine.items()
             if ("finished", *where) in found]
    lost = [before[where]["utility"] - row["utility"] for where, row in mine.items()]
    lead = f"{100 * fmean(ahead):.1f}" if ahead and name != "finished" else ""
    costly = [row for row, points in zip(mine.values(), lost, strict=True) if points > COSTLY + 1e-9]
    unhealed = [row for row in mine.values() if 2 * row["healed"] < row["utility"]]
    one_rate = at_one_rate(mine) if name in TREATMENTS and len(TREATMENTS[name][1]) > 1 else ""
    return (f"| {name} | {len(mine)} | {' | '.join(shown)} | {one_rate} | {lead} | {100 * fmean(lost):.1f} "
            f"| {100 * max(lost):.1f} | {announced(costly)} | {announced(unhealed, TOGETHER)} |")


def at_one_rate(mine: dict) -> str:
    """The best mean product, in percent, of one rate for all trials; where it gave none, the network stays."""
    tried = [{one["rate"]: one["product"] for one in row.get("tried", ())} for row in mine.values()]
    before = [row.get("before", row)["product"] for row in mine.values()]
    rates = sorted({rate for one in tried for rate in one})
    found = [fmean(one.get(rate, stays) for one, stays in zip(tried, before, strict=True)) for rate in rates]
    return f"{100 * max(found):.1f}" if found else ""


def announced(rows: list[dict], *more: str) -> str:
    """How many rows there are and, in brackets, how many have a verdict that is not REPAIRED: by the verdict without
    held-out images, and by that with them; and how many have more than 0 in each field of `more`. "?" where a row lacks
    it."""
    counts = ["?" if any(name not in row for row in rows) else sum(row[name] not in (REPAIRED, 0) for row in rows)
              for name in (*VERDICTS, *more)]
    return f"{len(rows)} ({', '.join(map(str, counts))})"


def pair(rows: list[dict]) -> str:
    """Mean Healed / Utility in percent, empty without a row."""
    return " / ".join(f"{100 * fmean(row[key] for row in rows):.0f}" for key in ("healed", "utility")) if rows else ""


if __name__ == "__main__":
    sys.exit(told_in_a_line(main))
