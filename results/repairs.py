"""What the rows give for the tables and the sentences on the pages of the repair. See check.py.

    lines = TABLES["results/repair/README.md", "network", "images"](labels)     # labels: the lines as shown
    for words, figures in FIGURES["results/repair/suspects/README.md"](): ...    # as in sentences.py
"""

from statistics import fmean, stdev

from made import lines_at


def trials(labels: list[list[str]]) -> list[list[str]]:
    """What repair heals of each network, images and layers, at each seed, before -> after, in the order shown."""
    parts, lines = {}, []
    for row in lines_at("results/repair/trials.jsonl"):
        parts.setdefault((row["network"], row["images"], row["layers"]), []).append(row)

    def place(key: tuple) -> int:  # of the line shown; the page says less of the layers than the rows
        shown = [key[:2] == tuple(label[:2]) and key[2].startswith(label[2].replace("`", "")) for label in labels]
        return shown.index(True) if any(shown) else len(labels)

    for key in sorted(parts, key=place):
        label = labels[place(key)][:3] if place(key) < len(labels) else list(key)
        pairs = [" -> ".join(" / ".join(f"{100 * row[name][k]:.0f}" for row in parts[key]) for k in (0, 1))
                 for name in ("stickered", "clean")]
        lines.append([*label, *pairs, " / ".join(f"{100 * row['misled'][1]:.0f}" for row in parts[key])])
    return lines


def ahead_of_rivals(labels: list[list[str]]) -> list[list[str]]:
    """How far the finish is ahead of each rival, at its best rate for all trials and in each trial."""
    trials = of_trials()
    return [[name, *trials[name]] for name in ("REM", "taught", "retrained", "CLP", "fine-tuned")]


def of_trials() -> dict[str, list[str]]:
    """The trials of the repair: their number, the product of the finish, what it gains in Utility on average and loses
    at most; and how far it is ahead of each treatment at its best rate for all trials, and in each trial."""
    rows = lines_at("results/repair/rivals.jsonl")
    runs = {name: {(row["network"], row["corruption"], row["seed"]): row for row in rows if row["treatment"] == name}
            for name in dict.fromkeys(row["treatment"] for row in rows)}
    mine = runs.pop("finished")
    product = 100 * fmean(row["product"] for row in mine.values())
    lost = [100 * (row["before"]["utility"] - row["utility"]) for row in mine.values()]
    found = {"finished": [str(len(mine)), f"{product:.1f}", f"{-fmean(lost):.1f}", f"{max(lost):.1f}"]}
    for name, others in runs.items():
        stays = [row["before"]["product"] for row in others.values()]  # where a treatment cannot be done
        tried = [{one["rate"]: one["product"] for one in row["tried"]} for row in others.values()]
        rates = {rate for one in tried for rate in one}
        best = max(fmean(one.get(rate, own) for one, own in zip(tried, stays, strict=True)) for rate in rates)
        each = fmean(own if row["product"] is None else row["product"]
                     for row, own in zip(others.values(), stays, strict=True))
        found[name] = [f"{product - 100 * value:.1f}" for value in (best, each)]
    return found


def candidates(labels: list[list[str]]) -> list[list[str]]:
    """Healed / Utility of each way to finish a repair, on the corruptions that it was chosen on, and mean product."""
    rows, lines = lines_at("results/repair/finish/candidates.jsonl"), []
    for name in dict.fromkeys(row["candidate"] for row in rows):
        runs = {row["corruption"]: row for row in rows if row["candidate"] == name}
        cells = [" / ".join(f"{100 * runs[kind][key]:.0f}" for key in ("healed", "utility"))
                 for kind in ("patch", "logo", "blended", "labels")]
        lines.append([name, *cells, f"{100 * fmean(run['healed'] * run['utility'] for run in runs.values()):.1f}"])
    return lines


def second_opinions(labels: list[list[str]]) -> list[list[str]]:
    """Ends of a repair beside one training."""
    return ends_of_repair("second.jsonl", "once")


def both_signs(labels: list[list[str]]) -> list[list[str]]:
    """Ends of a repair where few are listed."""
    return ends_of_repair("both.jsonl", "as in 0.6.0")


def rates_of_finish(labels: list[list[str]]) -> list[list[str]]:
    """Ends of a repair by the rate and the epochs of the finish, and by other rules."""
    return ends_of_repair("rates.jsonl", "0.01, 4 epochs")


def ends_of_repair(file: str, first: str) -> list[list[str]]:
    """Means over trials of how a repair ends, the product less that of the first (± SEM), and trials that lost over two
    points of Utility."""
    rows, lines = lines_at(f"results/repair/finish/{file}"), []
    once = [row["healed"] * row["utility"] for row in rows if row["finish"] == first]
    for name in dict.fromkeys(row["finish"] for row in rows):
        runs = [row for row in rows if row["finish"] == name]
        found = [row["healed"] * row["utility"] for row in runs]
        ahead = [100 * (one - other) for one, other in zip(found, once, strict=True)]
        error = stdev(ahead) / len(ahead) ** 0.5
        lost = [row["before"][1] - row["utility"] for row in runs]
        scores = [100 * fmean(row[key] for row in runs) for key in ("healed", "utility")] + [100 * fmean(found)]
        lines.append([name, str(len(runs)), *(f"{score:.1f}" for score in scores),
                      f"{fmean(ahead):+.1f} ± {error:.1f}" if error else "", str(sum(x > 0.02001 for x in lost)),
                      f"{100 * max(lost):.0f}"])
    return lines


def of_repairs() -> list[tuple]:
    """Repair of other networks: the most that is lost or left; the finish in the trials."""
    runs, (count, product, gained, worst) = lines_at("results/repair/trials.jsonl"), of_trials()["finished"]
    return [("At most {} % of stickered images", [f"{100 * max(run['misled'][1] for run in runs):.0f}"]),
            ("clean accuracy falls by at most {} points",
             [f"{100 * max(run['clean'][0] - run['clean'][1] for run in runs):.0f}"]),
            ("Over {} trials the finish ends at a product of {},", [count, product]),
            ("it gains {} points on the untouched network on average, and no trial loses more than {};",
             [gained, worst])]


def of_cut() -> list[tuple]:
    """Suspects: what the ranking and its cut find."""
    cuts = lines_at("results/repair/suspects/cut.jsonl")
    off = [100 * (run["likely"] / run["undiscovered"] - 1) for run in cuts]
    found = [[run["recall"][name] for run in cuts] for name in ("overall", "by score", "by similar", "better rank")]
    ahead = [str(sum(own >= other for own, other in zip(found[0], values, strict=True))) for values in found[1:]]
    right, all_marked = (sum(run[name] for run in cuts) for name in ("right", "likely"))
    others = [abs(100 * (run["others"]["other answers"] / run["undiscovered"] - 1)) for run in cuts]
    return [("mean recall over the {} runs is {} in the overall order, {} by score, {} by similar and {} by the better "
             "rank", [str(len(cuts)), *(f"{fmean(values):.2f}" for values in found)]),
            ("no lower than by score in {}, by similar in {} and by the better rank in {}", ahead),
            ("off by {} % on average, from {} to {} %; {} % of the marked images are bad",
             [f"{fmean(map(abs, off)):.0f}", f"{min(off):.0f}", f"{max(off):.0f}", f"{100 * right / all_marked:.0f}"]),
            ("given labels would be off by {} %", [f"{fmean(others):.0f}"])]


def of_published(treatment: str = "repair") -> dict[tuple, list[str]]:
    """Published networks by name, number of images and of bad ones, at seed 0: misled before and after a treatment,
    what it gains on clean images, triggered ones right after it, and accuracy on clean ones before and after it; in
    percent."""
    rows = [row for row in lines_at("results/repair/published/networks.jsonl") if row["treatment"] == treatment
            and row["seed"] == 0]
    return {(row["network"], row["images"], row["bad"]): [
        f"{100 * row['before']['misled']:.0f}", f"{100 * row['after']['misled']:.1f}",
        f"{100 * (row['after']['clean'] - row['before']['clean']):.1f}", f"{100 * row['after']['triggered']:.0f}",
        f"{100 * row['before']['clean']:.1f}", f"{100 * row['after']['clean']:.1f}"] for row in rows}


def of_networks() -> list[tuple]:
    """Published networks: the default repair of 50,000 images, a tenth and a hundredth of them bad."""
    before, after, gained, right, *_ = of_published()["badnets", 50000, 5000]
    _, few_after, few_gained, few_right, *_ = of_published()["badnets", 50000, 500]
    other, most = (of_published()["trojan", 50000, bad] for bad in (500, 5000))
    alone = of_published("REM")["trojan", 50000, 5000]
    return [("(misled {} -> {}), has {} % of the triggered images right and gains {} points of accuracy",
             [before, after, right, gained]),
            ("the default repair of `badnets` gains {} points of accuracy on clean test images; {} % of the triggered "
             "ones are still misled, and {} % are right", [few_gained, few_after, few_right]),
            ("the default repair gains {} points; {} % of the triggered images are still misled, and {} % are right",
             [other[2], other[1], other[3]]),
            ("{} % of the triggered images are misled, accuracy on clean ones is {} % in place of {} %",
             [f"{float(alone[1]):.0f}", alone[5], alone[4]]),
            ("The default repair ends at {} % misled, has {} % of the triggered images right and gains {} points",
             [most[1], most[3], most[2]]),
            ("Plain fine-tuning gains {} points and leaves it as it is.",
             [of_published("fine-tuned")["trojan", 50000, 5000][2]]),
            ("Of `trojan` the default repair leaves {} % misled", [another_draw()])]


def another_draw() -> str:
    """Misled after the default repair of `trojan` at seed 1, in percent."""
    (row,) = [row for row in lines_at("results/repair/published/seed-1.jsonl")
              if (row["network"], row["treatment"]) == ("trojan", "repair")]
    return f"{100 * row['after']['misled']:.1f}"


# As in expected.py and sentences.py.
TABLES = {
    ("results/repair/README.md", "network", "images"): trials,
    ("results/repair/README.md", "treatment", "one rate for all trials"): ahead_of_rivals,
    ("results/repair/finish/README.md", "candidate", "patch"): candidates,
    ("results/repair/finish/README.md", "candidate", "trials"): second_opinions,
    ("results/repair/finish/README.md", "variant", "trials"): both_signs,
    ("results/repair/finish/README.md", "what differs", "trials"): rates_of_finish,
}
FIGURES = {
    "results/repair/README.md": of_repairs,
    "results/repair/published/README.md": of_networks,
    "results/repair/suspects/README.md": of_cut,
}
