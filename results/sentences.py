"""What the rows give for figures that stand in sentences. See check.py.

    for words, figures in FIGURES["results/spread/README.md"](): ...  # ("({} runs; one", ["30"])

A figure is text, as it should stand in place of {}; None where no row holds it.
"""

from statistics import fmean, stdev

from expected import (ANEW, CELLS, COPY, FLOAT32, GRID, LASTING, MINI, NINE, RATES, SEVEN, SMALL, TASKS, TEN, TWELVE,
                      half_and_quarter, mean, mean_sem, plane_of, seeds_difference)
from made import grid_of, lines_at, made_by, rows_at
from repairs import another_draw, of_published, of_repairs, of_trials
from study import suspects
from study.rows import networks, pick, products
from study.stats import minus
from study.tables import PAPER


def least_most(values, digits: int = 1) -> list[str]:
    """The least and the most of some values, as text."""
    values = list(values)
    return [f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"]


def points_of(rows: list[dict]) -> list[float]:
    """The products of runs, in percent."""
    return [100 * row["product"] for row in rows]


def ahead(mine: list[dict], other: list[dict]) -> list[float]:
    """Product of each run less that of the other in the same cell and seed, in points."""
    return [100 * value for value in minus(products(mine), products(other)).values()]


def turned(difference: str) -> str:
    """A difference as text, with the other sign."""
    return difference.removeprefix("-") if difference.startswith("-") else f"-{difference}"


def of_methods() -> list[tuple]:
    """fashion-mini, nine cells: what the page says beside its two tables."""
    rows, plane = rows_at(*MINI), plane_of(*MINI)
    plain = pick(rows, etd=False)
    rem, npo, no31 = (pick(plain, method=name) for name in ("rem", "npo", "rem-no31"))
    few = {name: least_most((100 * row["healed"] for row in pick(plain, method=name, task="poison", discovery=0.1,
                                                                 alpha=0.01)), 0) for name in ("rem", "npo", "scrub")}
    on_etd = {name: [plane[f"{name} on ETD"]["over seeds"].split(" ± ")[0], plane[name]["over seeds"].split(" ± ")[0]]
              for name in ("scrub", "npo", "ascent", "potion")}
    best = 100 * fmean(row["product"] for row in rem) - float(plane["scrub"]["best per cell"].split()[0])
    less = minus(products(rem), products(no31))
    tasks = {task: 100 * fmean(value for key, value in less.items() if key[0] == task) for task in TASKS}
    papers = {row["method"]: row["product"][0] for row in PAPER["tables"]["2"]["rows"] if not row["etd"]}
    regular = {task: [row["score"] for row in lines_at("results/fashion-mini/cscore.jsonl") if row["task"] == task]
               for task in TASKS}
    errors = [f"{fmean(found):.3f} ± {stdev(found) / len(found)**0.5:.3f}" for found in regular.values()]
    return [
        ("REM on ETD is level with it ({} behind)", [plane["rem on ETD"]["minus REM"].lstrip("-")]),
        ("lowest cells being {} and {}", [str(min(int(plane[name][f"{task} {rate:g}"]) for task, rate in CELLS))
                                          for name in ("rem", "rem on ETD")]),
        ("SCRUB, NPO, Ascent and Potion are {}, {}, {} and {} points behind REM, and {}, {}, {} and {} ahead of",
         [*(turned(plane[f"{name} on ETD"]["minus REM"].split(" ± ")[0]) for name in on_etd),
          *(f"{float(own) - float(without):.0f}" for own, without in on_etd.values())]),
        ("SCRUB is next without ETD, {} points behind with one alpha for all cells, and {} behind",
         [turned(plane["scrub"]["minus REM"]), f"{best:.0f}"]),
        ("CF is level with doing nothing ({} and {}; in the paper {} and {})",
         [*(f"{float(plane[name]['mean'].split()[0]):.0f}" for name in ("cf", "no-ul")),
          *(plane[name]["Table 4"] for name in ("cf", "no-ul"))]),
        ("REM heals {} to {} % at the five seeds, NPO {} to {} %, SCRUB {} to {} %", sum(few.values(), [])),
        ("({} cells; float32", [f"{len(rows):,}"]),
        ("REM loses {} points (± {} over seeds, ± {} over pairs of runs; the paper {})",
         [*seeds_difference(rem, no31).split(" ± "), mean_sem(less.values()).split(" ± ")[1],
          f"{papers['rem'] - papers['rem-no31']:.1f}"]),
        ("keeps {} of its lead of {} points over NPO",
         [seeds_difference(mine, npo).split(" ± ")[0] for mine in (no31, rem)]),
        ("Random labels lose {} and poison loses {}, while confusion gains {}",
         [f"{tasks['random']:.1f}", f"{tasks['poison']:.1f}", f"{-tasks['confusion']:.1f}"]),
        ("could be told from noise (the paper {})", [f"{papers['rem'] - papers['rem-no32']:.1f}"]),
        ("is {} for poison, {} for confusion and {} for random labels", errors),
    ]


def of_ten_rates() -> list[tuple]:
    """fashion-mini, ten rates: REM's product; on ETD what the methods have on poison, and what REM costs."""
    rows = rows_at(TEN)
    rem = points_of(pick(rows, method="rem", etd=False))
    names = ("rem", "scrub", "potion", "npo", "ascent", "badt", "no-ul")
    on_etd = {name: pick(rows, method=name, etd=True) for name in names}
    behind = {name: f"{fmean(rem) - fmean(points_of(runs)):.1f}" for name, runs in on_etd.items()}
    poison = {name: least_most(points_of(pick(runs, task="poison")), 0) for name, runs in on_etd.items()}
    alone, mine = ({task: fmean(points_of(pick(on_etd[name], task=task))) for task in TASKS}
                   for name in ("no-ul", "rem"))
    return [("its product is between {} and {} in all {} cells", [*least_most(rem, 0), str(len(rem))]),
            ("REM ends {} points behind REM without it, and Potion, SCRUB, NPO and Ascent {} to {},",
             [behind["rem"], behind["potion"], behind["ascent"]]),
            ("random labels are healed to {} and {} there", [f"{alone[task]:.0f}" for task in ("confusion", "random")]),
            ("REM on ETD has {} to {} at the ten rates, SCRUB {} to {}, Potion {} to {}, NPO {} to {}, Ascent {} to {} "
             "and BadT {} to {};", [value for name in names[:-1] for value in poison[name]]),
            ("costs {} points on confusion and {} on random labels, beside",
             [f"{alone[task] - mine[task]:.1f}" for task in ("confusion", "random")])]


def of_step_2() -> list[tuple]:
    """Step 2's mode: the runs that diverged, and poison, confusion and random labels on batch statistics."""
    rows = rows_at(GRID, "results/fashion-mini/forget-norm")
    rem = {norm: {task: mean(pick(rows, method="rem", etd=False, discovery=RATES, seed=0, forget_norm=norm, task=task),
                             digits=0) for task in TASKS} for norm in ("auto", "batch")}
    ascent = pick(rows, method="ascent", forget_norm="running", seed=(0, 1, 2))
    return [("n = {} but for {} of ascent in eval mode", ["27", str(27 - len(ascent))]),
            ("poison falls from {} to {}", [rem[norm]["poison"] for norm in rem]),
            ("random labels fall from {} to {}", [rem[norm]["random"] for norm in rem])]


def of_suspects() -> list[tuple]:
    """Suspects: ranges over cells of some scores, and what the rounds change."""
    lines = lines_at("results/fashion-mini/suspects/scores.jsonl")
    header, *scored = grid_of(suspects.suspects_table(lines))
    cells = {line[0]: dict(zip(header[1:], line[1:], strict=True)) for line in scored}

    def number(score: str, column: str, key: int) -> float:  # 0: AUROC, 1: recall
        return float(cells[score][column].split(" / ")[key].split(" ± ")[0])

    named = (suspects.NEAREST, suspects.PROBE)
    confusion, random = ([number(name, f"{task} {rate:g}", key) for name in named for rate in (0.1, 0.5)]
                         for task, key in (("confusion", 1), ("random", 0)))
    _, *rounds = grid_of(suspects.round_table(lines_at("results/fashion-mini/suspects/rounds.jsonl")))
    product = [[cell.split(" / ")[-1].split(" ± ")[0] for cell in line[4:]] for line in rounds]
    known = [line[3].split(" / ") for line in rounds]
    repaired = [fmean(row["auroc"] for row in lines if (row.get("score"), row["task"], row["discovery"])
                      == (suspects.REPAIRED, task, rate)) for task in TASKS for rate in (0.1, 0.5)]
    return [("{} or more in all six cells", [f"{int(100 * min(repaired)) / 100:.2f}"]),
            ("little recall on confusion ({} to {})", least_most(confusion, 2)),
            ("labels (AUROC {} to {})", least_most(random, 2)),
            ("raises D_f from {} to {}", [known[0][0], known[1][0]]),
            ("gains {} points of product over the three tasks ({} on poison, {} on confusion, {} on random labels;",
             gained_by_rounds("looks")),
            ("level with discovery 1 ({} against {}), confusion and random labels below it ({} against {}, {} against "
             "{})", [line[k] for k in range(3) for line in (product[1], product[-1])]),
            ("unseen, {} clean ones among them", [str(int(known[2][0]) - int(known[2][1]))]),
            ("among them, gains {} points", gained_by_rounds("none")[:1])]


def gained_by_rounds(user: str) -> list[str]:
    """What the second round gains in product on the first of the same run, ± SEM over seeds: over the three tasks, and
    on each."""
    rows = [row for row in lines_at("results/fashion-mini/suspects/rounds.jsonl")
            if "round" in row and row["discovery"] == 0.1]
    product = {(row["task"], row["seed"], row["user"]): row["product"] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    gained = [[product[task, seed, user] - product[task, seed, ""] for seed in seeds] for task in TASKS]
    return [mean_sem(values) for values in (list(map(fmean, zip(*gained, strict=True))), *gained)]


def of_lasting() -> list[tuple]:
    """Lasting healing: on fashion-mini by the rule and to the letter, and on the copy of CIFAR-10 at two widths."""
    rows = rows_at(LASTING)
    ended = pick(rows, method="rem", stop="repaired")
    epochs = max(row["points"][-1]["epoch"] for row in ended)
    (letter,), rule = pick(rows, stop="max"), pick(ended, unlearn_epochs=24, task="poison", discovery=0.1)
    healed = {point["epoch"]: f"{100 * point['healed']:.0f}" for point in letter["points"]}
    printed = pick(rows_at(TWELVE), method="rem", stop="max", reach=0.0)
    after_3, ends = [[100 * row["points"][k]["healed"] for row in printed] for k in (3, 12)]
    return [("every run ended by itself before epoch {}", [str(max(8, epochs + 1))]),
            ("twelve epochs end at a product of {}, the rule at {}", [mean([letter]), mean(rule)]),
            ("Healed falls from {} to {} between epochs 5 and 8", [healed[5], healed[8]]),
            ("from {} to {} % healed after the third epoch to {} to {} % after the twelfth, at every seed",
             least_most(after_3, 0) + least_most(ends, 0)),
            *of_widths()]


def of_widths() -> list[tuple]:
    """Lasting healing: what the page says of half and quarter width on the copy of CIFAR-10."""
    half, quarter = half_and_quarter().values()
    runs = {name: pick(quarter, method=name) for name in ("no-ul", "npo", "rem")}
    confusion = {name: pick(rows, task="confusion") for name, rows in runs.items()}
    below = {name: [-value for value in ahead(confusion[name], confusion["no-ul"])] for name in ("rem", "npo")}
    leads = {task: ahead(pick(runs["rem"], task=task), pick(runs["npo"], task=task)) for task in TASKS}
    learnt = [mean(pick(rows, method="no-ul", task="random"), "learnt", 0) for rows in (half, quarter)]
    gained = ahead(*(pick(half, method=name) for name in ("rem", "npo")))
    utility = [mean(pick(half, method=name), "utility") for name in ("rem", "no-ul")]
    return [("At quarter width REM leads NPO by {} to {}", least_most(leads["poison"])),
            ("hardly learnt, {} % at half width and {} % at quarter width", learnt),
            ("heals what step 3 unteaches: {} to {} points at half width and {} to {} at quarter width",
             [*least_most(gained), *least_most(leads["random"])]),
            ("Its Utility at half width is {} there in place of {}", utility),
            ("is partly learnt ({} %", [mean(confusion["no-ul"], "learnt", 0)]),
            ("REM ends {} to {} points below the untouched network, NPO {} to {}",
             [*least_most(below["rem"]), *least_most(below["npo"])]),
            ("where all is known REM is {} behind NPO", [f"{-min(leads['confusion']):.1f}"]),
            ("over all tasks, this one {} %", [mean(runs["no-ul"], "healed", 0)])]


def of_copy() -> list[tuple]:
    """The copy of CIFAR-10 at 16x16, seed 0: REM's leads, confusion and random labels, ETD."""
    rows, plane = pick(rows_at(COPY), etd=False), plane_of(COPY)
    runs = {name: pick(rows, method=name) for name in ("no-ul", "cf", "scrub", "npo", "rem")}
    on_etd = pick(rows_at(COPY), etd=True)

    def over(name: str, other: str, task: str) -> list[str]:  # in points of product
        return least_most(ahead(*(pick(runs[key], task=task) for key in (name, other))))

    poison = [row for name in ("cf", "scrub") for row in pick(runs[name], task="poison") if row["discovery"] < 1]
    behind = [value for value in ahead(pick(on_etd, method="rem"), runs["rem"]) if value < 0]
    utility = [100 * fmean(row["utility"] for row in networks(part))
               for part in (runs["no-ul"], pick(on_etd, method="no-ul"))]
    learnt, masked = (plane[name]["learnt"].split(" / ") for name in ("no-ul", "ETD alone"))
    return [("over the plane, by {} points over NPO and {} over Ascent",
             [turned(plane[name]["minus REM"]) for name in ("npo", "ascent")]),
            ("On poison it leads NPO by {} to {} points", over("rem", "npo", "poison")),
            ("no cell of it is below {}", [least_most(points_of(runs["rem"]), 0)[0]]),
            ("they have {} to {} where half of it is known or less", least_most(points_of(poison), 0)),
            ("On confusion it ends {} to {} points below the untouched network",
             [turned(value) for value in reversed(over("rem", "no-ul", "confusion"))]),
            ("end {} to {} and {} to {} points above it",
             over("cf", "no-ul", "confusion") + over("scrub", "no-ul", "confusion")),
            ("On random labels REM gains {} to {} points, fine-tuning {} to {} and SCRUB {} to {}",
             sum((over(name, "no-ul", "random") for name in ("rem", "cf", "scrub")), [])),
            ("fits {} % of the random labels and {} % of the confused ones, with ETD {} and {} %",
             [learnt[2], learnt[1], masked[2], masked[1]]),
            ("REM on ETD is behind REM in all {} runs, by {} points",
             [str(len(behind)), turned(plane["rem on ETD"]["minus REM"])]),
            ("the masks cost {} points of Utility", [f"{utility[0] - utility[1]:.1f}"]),
            ("no unlearning has {} in place of {}", [f"{float(plane['no-ul']['mean'].split()[0]):.0f}",
                                                     f"{float(plane['no-ul']['Table 4']):.0f}"]),
            *of_float32()]


def of_float32() -> list[tuple]:
    """The copy at 16x16 in float32 at ten rates, and poison at seven rates in bf16: means and ranges."""
    single, half, seven = rows_at(FLOAT32), rows_at(COPY), rows_at(SEVEN)
    means = [mean(pick(rows, method=name, task=task, discovery=RATES, etd=False))
             for name, task in (("no-ul", TASKS), ("npo", TASKS), ("rem", "random")) for rows in (single, half)]
    before, npo, badt = (pick(single, method=name) for name in ("no-ul", "npo", "badt"))
    nearest = [abs(value) for task in TASKS[1:] for value in ahead(*(pick(rows, task=task) for rows in (badt, before)))]
    ranges = [least_most(points_of(pick(seven, method=name, etd=etd)))
              for name, etd in (("rem", True), ("npo", False), ("ascent", False), ("retrain", False))]
    return [("no unlearning has {} in float32 and {} in bf16, NPO {} and {}, REM on random labels {} and {}", means),
            ("NPO has {} to {} on poison and {} to {} on confusion, where no unlearning has {}",
             [*least_most(points_of(pick(npo, task="poison"))), *least_most(points_of(pick(npo, task="confusion"))),
              mean(pick(before, task="confusion"))]),
            ("BadT climbs on poison from {} at 0.2 to {} at 0.9",
             [mean(pick(badt, task="poison", discovery=rate)) for rate in (0.2, 0.9)]),
            ("within {} points of the untouched network", [f"{max(nearest):.1f}"]),
            ("REM on ETD has {} to {} there, NPO {} to {}, Ascent {} to {}", sum(ranges[:3], [])),
            ("retraining without the known images has {} to {}", ranges[3])]


def of_machines() -> list[tuple]:
    """The main job: how often REM is ahead, what moves it, and the other machine."""
    runs, other = (lines_at(f"results/spread/{name}.jsonl") for name in ("main", "intel"))
    seeds = sorted({run["seed"] for run in runs})
    within, between = [], []
    for key in ("rem product", "npo product"):
        parts = [[100 * run[key] for run in runs if run["seed"] == seed] for seed in seeds]
        within.append(f"{fmean(stdev(part) ** 2 for part in parts) ** 0.5:.1f}")
        between.append(f"{stdev(map(fmean, parts)):.1f}")
    healed, over = ([100 * run[key] for run in other] for key in ("rem healed", "product over npo"))
    won = sum(run["product over npo"] > 0 for run in runs)
    return [("({} runs; one", [str(len(runs))]),
            ("above NPO's in {} of the {} runs", [str(won), str(len(runs))]),
            ("(SD within a seed {}) more than the seed does (SD of the seeds' means {}); the seed moves NPO more ({} "
             "and {})", [within[0], between[0], within[1], between[1]]),
            ("{} runs), REM's Healed is {} on average and {} at least, its product {} above NPO's on average and {} at "
             "least", [str(len(other)), f"{fmean(healed):.1f}", f"{min(healed):.1f}", f"{fmean(over):.1f}",
                       f"{min(over):.1f}"])]


def of_tuning() -> list[tuple]:
    """The copy of CIFAR-10 at 16x16 with REM of version 0.5.0: beside 0.2.0 at seed 0, and beside no unlearning."""
    rows = pick(rows_at(ANEW), etd=False)
    before, rem = (pick(rows, method=name) for name in ("no-ul", "rem"))
    less = {task: seeds_difference(pick(rem, task=task), pick(before, task=task)) for task in TASKS}
    learnt = {task: mean(networks(pick(before, task=task)), "learnt", 0) for task in TASKS}
    was = pick(rows_at(COPY), etd=False, method="rem")
    return [("at seed 0 is {}, as with version 0.2.0 ({};", [mean(pick(rem, seed=0)), mean(was)]),
            ("by {} points over its three rates, as NPO does at seed 0: {} % of these labels",
             [turned(less["confusion"]), learnt["confusion"]]),
            ("of which {} % were learnt, it gains {}.", [learnt["random"], less["random"]])]


def of_scale() -> list[tuple]:
    """What repair costs: two processes against one, and their weights."""
    at = {(row["n"], row["mode"]): row for row in lines_at("results/scale/scale.jsonl")}
    one, two = ([at[n, mode]["seconds"] for n in (1500, 60000)] for mode in ("in memory", "in memory, 2 processes"))
    faster = [f"{a / b:.1f}" for a, b in zip(one, two, strict=True)]
    return [("are {} times as fast at {} images, {} times at {}", [faster[0], "1,500", faster[1], "60,000"])]


def of_growth() -> list[tuple]:
    """How cost grows: slopes and memory of ETD and REM, from the table."""
    ((_, *lines),) = made_by("python benchmarks/growth.py")
    at = {(line[0].split()[0], line[1]): line[2:] for line in lines}
    more = []
    for name in ("etd", "rem"):
        megabytes = [int(value) for value in at["images", name][2].split(" / ")]
        more.append(str(megabytes[-1] - megabytes[0]))
    return [("ETD and REM are at {} and {}", [at["images", name][1] for name in ("etd", "rem")]),
            ("ETD and REM take {} and {} MB more", more),
            ("CUTS is at {}", [at["width", "cuts"][1]]),
            ("`expand`'s memory at {}", [at["width", "expand"][3].rstrip("0")]),
            ("`expand` is at {}, one run", [at["network", "expand"][1]])]


def by_heart() -> tuple[str, list[str]]:
    """10,000 images learnt by heart: REM's product over the plane, and its lead over retraining, NPO and Ascent."""
    plane = plane_of(f"{SMALL}/nine")
    leads = [plane[name]["minus REM"].split(" ± ")[0].lstrip("-") for name in ("retrain", "npo", "ascent")]
    return plane["rem"]["over seeds"].split(" ± ")[0], leads


def of_both() -> list[tuple]:
    """The front page's words on fashion-mini and on 10,000 images learnt by heart: who is ahead of REM, and where."""
    plain, etd = pick(rows_at(f"{SMALL}/nine"), etd=False), rows_at(f"{SMALL}/etd")
    untouched, rem = (pick(plain, method=name) for name in ("no-ul", "rem"))
    alone, seeds = pick(etd, method="no-ul"), tuple({row["seed"] for row in etd})
    plane, lead = plane_of(*NINE), plane_of(*MINI)["scrub"]["minus REM"]
    less = {task: seeds_difference(pick(alone, task=task), pick(rem, task=task)) for task in TASKS}
    healed = {name: [mean(pick(plain, method=name, task="confusion", discovery=rate), "healed", 0) for rate in RATES]
              for name in ("rem", "npo", "scrub")}
    utility = [mean(networks(rows), "utility", 0) for rows in (alone, pick(untouched, seed=seeds))]
    confused = {name: pick(rows_at(ANEW), etd=False, method=name, task="confusion") for name in ("no-ul", "rem")}
    return [("by {} points over SCRUB on fashion-mini, and by {} over retraining and {} over NPO on the 10,000",
             [turned(lead), *(turned(plane[name]["minus REM"]) for name in ("retrain", "npo"))]),
            ("ETD alone ends {} points behind REM there, NPO on ETD {}, and REM on ETD {} ahead of it",
             [*(turned(plane[name]["minus REM"]) for name in ("ETD alone", "npo on ETD")),
              plane["rem on ETD"]["minus REM"]]),
            ("which theta_o1 knows to {}, {} and {} % at the three seeds",
             [mean(pick(alone, task="poison", seed=seed), "learnt", 0) for seed in (0, 1, 2)]),
            ("ETD alone is {} points above REM on confusion and {} on random labels, and {} below it on poison",
             [less["confusion"], less["random"], turned(less["poison"])]),
            ("at a Utility of {} in place of {}", utility),
            ("Of the confused images among the 10,000 REM heals {}, {} and {} %", healed["rem"]),
            ("NPO at most {} %, SCRUB at most {} % and ETD alone {} %",
             [max(healed["npo"], key=int), max(healed["scrub"], key=int),
              mean(pick(alone, task="confusion"), "healed", 0)]),
            ("REM ends {} points below the untouched network on confusion", [seeds_difference(*confused.values())]),
            ("knows {}, {} and {} % of them", plane["ETD alone"]["learnt"].split(" / "))]


def of_small() -> list[tuple]:
    """10,000 images learnt by heart: REM's leads; people's mistakes that are healed."""
    people = pick(rows_at(f"{SMALL}/human"), method="rem")
    healed = [f"{100 * row['healed']:.0f}" for rate in (0.1, 0.5)
              for row in sorted(pick(people, discovery=rate), key=lambda row: row["seed"])]
    plain = rows_at(f"{SMALL}/nine")
    anew, rem = ([mean(pick(plain, method=name, task=task, discovery=1.0), digits=0) for task in TASKS]
                 for name in ("retrain", "rem"))
    few = [mean(pick(plain, method="retrain", task=task, discovery=0.1), digits=0) for task in TASKS]
    known = sorted(pick(plain, method="retrain", task="confusion", discovery=1.0), key=lambda row: row["seed"])
    return [("the methods without ETD, by {} points over retraining, {} over NPO and {} over Ascent", by_heart()[1]),
            ("Where all corrupted images are known it has {}, {} and {} (poison", anew),
            ("it has {}, {} and {}.", few),
            ("those that are all known {}, {} and {} % get their own class from a network that never saw them",
             [f"{100 * row['healed']:.0f}" for row in known]),
            ("REM heals {}, {} and {} % of the mistakes where a tenth of them is known (seeds 0, 1, 2), {}, {} and "
             "{} %", healed)]


def of_readme() -> list[tuple]:
    """README.md: the published networks."""
    first, second = (of_published()[name, 50000, 5000] for name in ("badnets", "trojan"))
    return [("triggers mislead {} and {} % of images, not {} and {} %; accuracy gains {} and {} points",
             [value[k] for k in (1, 0, 2) for value in (first, second)])]


def of_front_page() -> list[tuple]:
    """The front page of the results."""
    methods = dict(of_methods())
    few = methods["REM heals {} to {} % at the five seeds, NPO {} to {} %, SCRUB {} to {} %"]
    first = pick(rows_at(COPY), etd=False, method="no-ul")
    learnt = [mean(pick(first, task=task), "learnt", 0) for task in TASKS]
    seeds = [str(len({row["seed"] for row in rows_at(folder)})) for folder in NINE]
    papers = {(row["method"], row["etd"]): f"{row['product'][0]:.0f}" for row in PAPER["tables"]["1"]["rows"]
              if row["capacity"] == 0.5}
    grid = rows_at(GRID)
    within = seeds_difference(*(pick(grid, method=name) for name in ("rem", "rem-no31")))
    lead_without_32 = seeds_difference(*(pick(grid, method=name) for name in ("rem-no32", "npo"))).split(" ± ")[0]
    repairs, machine = dict(of_repairs()), dict(of_machines())
    won = machine["above NPO's in {} of the {} runs"]
    rounds = dict(of_suspects())["raises D_f from {} to {}"]
    trials, whole, few_bad = of_trials(), *(of_published()["badnets", 50000, bad] for bad in (5000, 500))
    other = {bad: of_published()["trojan", 50000, bad] for bad in (500, 5000)}
    alone = f"{float(of_published('REM')['trojan', 50000, 5000][1]):.0f}"
    return [("ends {} points of product ahead of REM alone at one rate for all ({} at the best", trials["REM"]),
            ("clean accuracy rises by {} points on average, and no trial loses more than {}.", trials["finished"][2:]),
            ("the second one ends at {} %).", [another_draw()]),
            ("the first one goes from {} to {} % misled and gains {} points", whole[:3]),
            ("with 500 bad and 50 listed to {} %, at a gain of {}", few_bad[1:3]),
            ("With 5,000 bad the second one goes to {} %, at a gain of {}, where REM alone leaves {} %, and with "
             "500 to {} %, at a gain of {} (", [*other[5000][1:3], alone, *other[500][1:3]]),
            ("REM's product is {} there in place of {} on fashion-mini",
             [by_heart()[0], plane_of(*MINI)["rem"]["over seeds"].split(" ± ")[0]]),
            *of_both(),
            ("known, REM heals {} to {} % at its five seeds", few[:2]),
            ("is within {} points of REM", [within]),
            ("keeps {} of the {} points", methods["keeps {} of its lead of {} points over NPO"]),
            ("`rem-no32` keeps {}:", [lead_without_32]),
            ("{} % of the random labels and {} % of the confused ones", [learnt[2], learnt[1]]),
            ("every method that was run there has {} seeds", ["/".join(sorted(set(seeds)))]),
            ("third to fifth in it ({}, {} and {}; NPO alone {})",
             [papers["npo", True], papers["ascent", True], papers["scrub", True], papers["npo", False]]),
            ("{} of the {} rows of the paper's Table 1", [str(sum(etd for _, etd in papers)), str(len(papers))]),
            ("REM is ahead of NPO in {} of {} runs", won),
            ("at most {} % of stickered images still", repairs["At most {} % of stickered images"]),
            ("accuracy on clean ones falls by at most {} points", repairs["clean accuracy falls by at most {} points"]),
            ("raises what is known from {} to {}", rounds),
            ("repairing again with these gains {} points of", gained_by_rounds("looks")[:1])]


# Page -> what makes (words around the figures, the figures as text; None for one that no row holds)
FIGURES = {
    "README.md": of_readme,
    "results/README.md": of_front_page,
    "results/cifar10-jpeg-16px/README.md": of_copy,
    "results/cifar10-jpeg-small/README.md": of_small,
    "results/fashion-mini/README.md": of_methods,
    "results/fashion-mini/forget-norm/README.md": of_step_2,
    "results/fashion-mini/rates/README.md": of_ten_rates,
    "results/fashion-mini/suspects/README.md": of_suspects,
    "results/growth/README.md": of_growth,
    "results/lasting/README.md": of_lasting,
    "results/scale/README.md": of_scale,
    "results/spread/README.md": of_machines,
    "results/tuning/README.md": of_tuning,
}
