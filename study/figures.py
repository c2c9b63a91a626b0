"""The paper's figures from result rows, on matplotlib, which is imported when a figure is drawn.

    for k, figure in enumerate(draw("4", load_rows(["results"]))):
        save(Path(f"figure-4-{k}"), figure)

Readable in grey and by the colour-blind: viridis with the numbers printed, Okabe-Ito with markers, dashes and hatches.
"""

import math
import textwrap
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from experiment.files import write_whole
from experiment.methods import METHODS, reads_forget
from metrics import mean_sem
from study.captions import brief
from study.rows import (VARIANTS, Missing, compared, etd_alone, maskless, networks, percent, pick, split, sweep,
                        without_extra_curves)

REGULARITY = {"random": "random\n(low)", "confusion": "confusion\n(medium)", "poison": "poison\n(high)"}  # it rises
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")  # Okabe and Ito's
MARKERS, DASHES = "osD^vPX*", ("-", "--", ":", "-.")
HATCHES = ("", "///", "...", "xxx", "|||", "\\\\\\", "ooo", "+++")
ARCHS = {"resnet9": "ResNet-9", "vit": "ViT"}
CURVES = ("5", "lasting")  # figures of what a run noted after each epoch
HALF_WIDTH = dict(arch="resnet9", capacity=0.5, p_mem=0.2)  # where the paper draws, unless it says otherwise
Drawn = tuple[str, list[dict]]  # a figure's title and the rows that it shows
NOTHING = "runs of poison, confusion or random labels that ended well"


# --- A figure and its files -------------------------------------------------------------------------------------------

def draw(number: str, rows: list[dict]) -> list:
    """A matplotlib Figure for each data set and number of corrupted images that has the rows for it, at least one.

    Args: number: of DRAW; rows: of `rows.load_rows`.
    Raises: Missing for no data set has the rows; ModuleNotFoundError without matplotlib.
    """
    from matplotlib.figure import Figure  # which draws without a display

    made, reasons = [], []
    rows = [row for row in rows if row["task"] in REGULARITY]  # people's mistakes have no place on the plane
    rows = rows if number in CURVES else [row for row in sweep(without_extra_curves(rows)) if row["kept"]]
    rows = etd_alone(rows)
    for (data, n), part in split(pick(rows), "data", "n").items():
        with plain_text():
            figure = Figure(layout="constrained")
            try:
                title, drawn = DRAW[number](figure, part)
            except Missing as missing:
                reasons.append(str(missing))
                continue
            lost = failed(number, drawn, [row for row in rows if (row["data"], row["n"]) == (data, n)])
            warnings = "; ".join(filter(None, [brief(drawn, lost), other_masks(part, drawn)]))
            warnings = "".join("\n" + line for line in textwrap.wrap(warnings, 60))
            count = len(networks(drawn))
            runs = f"{count} run{'s' if count != 1 else ''}"
            name = f"Fig. {number}: " if number.isdecimal() else ""
            figure.suptitle(f"{name}{title}\n{data}, {n} corrupted images, {runs}{warnings}", fontsize=11)
        made.append(figure)
    if not made:
        raise Missing(f"figure {number} needs {reasons[0] if reasons else NOTHING}")
    return made


def plain_text(**more):
    """A context in which no text is read as a formula: a folder or a method's file may have a $ in its name."""
    import matplotlib

    return matplotlib.rc_context({"text.parse_math": False, **more})


def save(path: Path, figure) -> None:
    """Write a figure as PNG and as SVG, each whole or not at all and the same bytes each time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    figure.set_dpi(150)
    with plain_text(**{"svg.hashsalt": path.name}):
        # by the canvases themselves: savefig draws everything twice
        write_whole(path.with_name(f"{path.name}.png"), lambda file: FigureCanvasAgg(figure).print_png(file))
        figure.set_layout_engine("none")  # laid out once, the same in both
        canvas = FigureCanvasSVG(figure)
        write_whole(path.with_name(f"{path.name}.svg"), lambda file: canvas.print_svg(file, metadata={"Date": None}))


# --- Which rows -------------------------------------------------------------------------------------------------------

def failed(number: str, drawn: list[dict], rows: list[dict]) -> int:
    """How many runs failed that the figure would have drawn; Figs. 3, 6, 10 and 11 take every compared method, and
    Fig. 5 is of one discovery rate."""
    places = {(row["arch"], row["capacity"], row["p_mem"]) for row in drawn}
    methods = {(row["method"], row["etd"]) for row in drawn}
    whole = {"3": (False,), **dict.fromkeys(("6", "10", "11"), (False, True))}.get(number, ())  # of etd
    rates = {row["discovery"] for row in drawn} if number == "5" else ()
    lost = [row for row in networks(rows) if row["status"] == "failed" and (number not in CURVES or row["curve"])]
    lost = [row for row in lost if (row["arch"], row["capacity"], row["p_mem"]) in places]
    lost = [row for row in lost if not rates or row["discovery"] in rates]
    return sum((r["method"], r["etd"]) in methods or r["etd"] in whole and compared(r["method"]) for r in lost)


def other_masks(rows: list[dict], drawn: list[dict]) -> str:
    """Which masked runs a figure leaves out for their p_mem; empty where there are none."""
    here, there = ({row["p_mem"] for row in part if not maskless(row)} for part in (rows, drawn))
    left = sorted(here - there - {HALF_WIDTH["p_mem"]})
    return f"not drawn: p_mem {', '.join(f'{p:g}' for p in left)}" if left else ""


def need(rows: list, what: str) -> list:
    """The rows themselves; Missing where there are none."""
    if not rows:
        raise Missing(f"rows of {what}")
    return rows


def by_product(parts: dict[tuple, list[dict]]) -> dict[tuple, list[dict]]:
    """Parts in descending order of their mean product."""
    return {key: parts[key] for key in sorted(parts, key=lambda key: -fmean(row["product"] for row in parts[key]))}


# --- Heat maps --------------------------------------------------------------------------------------------------------

def heat(figure, panels: list[tuple[str, list, list]], columns: int) -> list[dict]:
    """Mean product over discovery and regularity, one panel per method, all on one scale; what was not run stays grey.

    Args: figure: to draw on; panels: (title, the method's rows, rows of the network before unlearning: left of the
        dashed line); columns: of panels.
    """
    rates = sorted({row["discovery"] for _, rows, _ in panels for row in rows})
    columns = min(columns, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure.set_size_inches(max(6, 1.5 + columns * max(2.5, 0.4 * (len(rates) + 1))), 1.1 + 1.7 * lines)
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flat
    cells = [[[pick(networks(untouched), task=task), *(at_rate(rows, task, rate) for rate in rates)]
              for task in REGULARITY] for _, rows, untouched in panels]
    tables = [[[percent(row["product"] for row in cell) for cell in line] for line in table] for table in cells]
    top = max((value[0] for table in tables for line in table for value in line if value), default=100)
    look = dict(cmap="viridis", origin="lower", vmin=0, vmax=min(100, 10 * math.ceil(top / 10 + 1e-9)), aspect="auto")
    for (title, _, _), values, axes in zip(panels, tables, grid, strict=False):
        image = axes.imshow([[value[0] if value else math.nan for value in line] for line in values], **look)
        axes.set_facecolor("0.85")
        axes.axvline(0.5, color="white", linewidth=2.5)
        axes.axvline(0.5, color="black", linestyle="--", linewidth=1.2)
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelsize=8)
        for y, line in enumerate(values):
            for x, value in enumerate(line):
                if value:
                    axes.text(x, y, f"{value[0]:.0f}", ha="center", va="center", fontsize=9,
                              color=contrast(image, value[0]), in_layout=False)  # laid out a third faster
    axes.set_xticks(range(len(rates) + 1), ["0.0", *(f"{rate:g}" if rate < 1 else "1.0" for rate in rates)])  # of all
    axes.set_yticks(range(3), REGULARITY.values())
    for empty in grid[len(panels):]:
        empty.set_axis_off()
    for lowest in grid[max(0, len(panels) - columns):len(panels)]:
        lowest.tick_params(labelbottom=True)
    figure.supxlabel("discovery rate (0.0: before unlearning)", fontsize=10)
    figure.colorbar(image, ax=figure.axes, label="Healed × Utility, %", aspect=12 * lines)
    return [row for _, found, before in panels for row in found + before]


def at_rate(rows: list[dict], task: str, rate: float) -> list[dict]:
    """A method's runs of a task at a discovery rate; of one that reads no D_f every network, whichever its rate."""
    found = pick(rows, task=task, discovery=rate)
    return networks(pick(rows, task=task)) if found and not reads_forget(found[0]["method"]) else found


def contrast(image, value: float) -> str:
    """Black or white, whichever stands out more from the cell's colour by relative luminance (WCAG)."""
    red, green, blue = (part**2.2 for part in image.cmap(image.norm(value))[:3])
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 else "white"


def name_of(method: str, etd: bool, capacity: float = 0.5) -> str:
    """A method with its training and capacity in words, as panels and bars are called."""
    name = METHODS[method].label if method in METHODS else method.replace("rem-no31-no32", "REM without 3.1 and 3.2")
    if etd:
        name = METHODS["etd"].label if method == "no-ul" else f"{name} on ETD"
    name = name if capacity == 0.5 else f"{name}, {100 * capacity:g} %"
    return textwrap.fill(name, 30, max_lines=2, placeholder="…")  # one of a user's method may be long


def figure1(figure, rows: list[dict]) -> Drawn:
    """Where six methods succeed in the task space."""
    untouched = pick(rows, **HALF_WIDTH, method="no-ul", etd=False)
    found = {name_of(m, m == "no-ul"): pick(rows, **HALF_WIDTH, method=m, etd=m == "no-ul")  # with ETD: ETD alone
             for m in ("retrain", "potion", "no-ul", "scrub", "ascent", "rem")}
    panels = [(name, part, untouched) for name, part in found.items() if part]
    drawn = heat(figure, need(panels, "rem, scrub, ascent, potion, retrain or etd (resnet9, capacity 0.5)"), 2)
    return f"{len(panels)} method{'s' if len(panels) != 1 else ''} over discovery and regularity", drawn


def every_heat_map(figure, rows: list[dict], arch: str) -> Drawn:
    """Every method but ablations, with and without ETD, at 50 % capacity, and without ETD at 100 %."""
    rows = pick(rows, arch=arch, p_mem=0.2, capacity=(0.5, 1.0))
    rows = [row for row in rows if not (row["etd"] and row["capacity"] == 1)]  # no theta_o2 to train with
    shown = [row for row in rows if compared(row["method"]) or row["method"] == "rem-ideal"]
    shown, panels = [row for row in shown if row["etd"] or row["method"] != "no-ul"], []
    for (capacity, etd, method), part in by_product(split(shown, "capacity", "etd", "method")).items():
        before = pick(rows, capacity=capacity, method="no-ul", etd=etd and method != "no-ul")
        panels.append((name_of(method, etd, capacity), part, before))
    need(panels, f"methods other than no-ul with {arch}, capacity 0.5 or 1")
    drawn = heat(figure, panels, 2 if len(panels) < 9 else 3)
    return f"{len(panels)} methods with {ARCHS[arch]}, at 50 % capacity unless it says otherwise", drawn


def figure4(figure, rows: list[dict]) -> Drawn:
    """REM with and without ETD."""
    panels = []
    for etd in (False, True):
        found = pick(rows, **HALF_WIDTH, method="rem", etd=etd)
        need(found, f"rem {'with' if etd else 'without'} --etd (resnet9, capacity 0.5)")
        panels.append((name_of("rem", etd), found, pick(rows, **HALF_WIDTH, method="no-ul", etd=etd)))
    return "REM without and with ETD", heat(figure, panels, 2)


# --- Bars -------------------------------------------------------------------------------------------------------------

def bars(axes, labels: list[str], series: dict[str, list], xlabel: str) -> None:
    """Horizontal bars with ±1 SEM and their value, first label on top; series: name to (mean, SEM) or None."""
    height = 0.8 / len(series)
    present = [[name for name, values in series.items() if values[y]] for y in range(len(labels))]
    for k, (name, values) in enumerate(series.items()):
        here = [(y, names.index(name) - (len(names) - 1) / 2) for y, names in enumerate(present) if name in names]
        place = [y + shift * height for y, shift in here]
        means, errors = [v[0] for v in values if v], [v[1] or 0.0 for v in values if v]
        colour = COLOURS[(0, 4, 2, 1, 3, 5, 7, 6)[k % 8]]
        look = dict(color=colour, hatch=HATCHES[k % 8], edgecolor="black", linewidth=0.6)
        axes.barh(place, means, height * 0.92, xerr=errors, label=name, error_kw=dict(capsize=2, elinewidth=1), **look)
        for y, mean, error in zip(place, means, errors, strict=True):
            inside = mean + error > 90  # its number would lie beyond the axis
            x, side = (mean - error - 1, "right") if inside else (mean + error + 1, "left")
            box = dict(facecolor="white", edgecolor="none", pad=1) if inside else None
            axes.text(x, y, f"{mean:.1f}", ha=side, va="center", fontsize=8, bbox=box)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(ylim=(len(labels) - 0.5, -0.5), xlim=(0, 100), xlabel=xlabel)


def figure3(figure, rows: list[dict]) -> Drawn:
    """Mean product of each method, by capacity."""
    shown = [row for row in pick(rows, arch="resnet9", p_mem=0.2) if not row["etd"] or row["method"] == "no-ul"]
    shown = [row for row in shown if compared(row["method"]) or row["method"] == "rem-ideal"]
    capacities = sorted({row["capacity"] for row in need(shown, "methods with resnet9") if row["method"] != "no-ul"})
    capacities = capacities or sorted({row["capacity"] for row in shown})
    shown = networks(pick(shown, capacity=tuple(capacities)))
    parts = split(shown, "method", "etd")
    first = {key: next(filter(None, (pick(part, capacity=c) for c in capacities))) for key, part in parts.items()}
    order = by_product(first)
    figure.set_size_inches(8, 1.5 + len(order) * (0.25 + 0.15 * len(capacities)))
    axes = figure.subplots()
    series = {f"{100 * c:g} % capacity": [percent(r["product"] for r in pick(parts[key], capacity=c)) for key in order]
              for c in capacities}
    bars(axes, [name_of(*key) for key in order], series, "Healed × Utility, %, mean ± SEM over runs")
    axes.legend(loc="lower right", fontsize=9)
    sizes = sorted({len(part) for part in split(shown, "method", "etd", "capacity").values()})
    runs = " to ".join(map(str, sizes[:: max(1, len(sizes) - 1)])) + (" run" if sizes == [1] else " runs")
    title = f"mean over tasks and discovery rates, {runs} per bar"
    return f"{title}\n(networks without unlearning count once for all rates)", shown


def figure9(figure, rows: list[dict]) -> Drawn:
    """What the shared mask does in ETD training when all of D_c is known."""
    kinds = {"no-ul": dict(method="no-ul", etd=False), "etd": dict(method="no-ul", etd=True),
             "etd-ideal": dict(method="etd-ideal")}
    rows = networks(rows)
    found = {name: need(pick(rows, **HALF_WIDTH, **kind), f"{name} (resnet9, capacity 0.5)")
             for name, kind in kinds.items()}
    tasks = [task for task in reversed(REGULARITY) if pick(found["etd-ideal"], task=task)]
    figure.set_size_inches(9, 2 + len(tasks))
    for axes, key in zip(figure.subplots(1, 2, sharey=True), ("healed", "utility"), strict=True):
        series = {METHODS[name].label: [percent(r[key] for r in pick(part, task=task)) for task in tasks]
                  for name, part in found.items()}
        bars(axes, [REGULARITY[task] for task in tasks], series, f"{key.capitalize()}, %")
    legend(figure, axes, 3)
    return "ETD with one mask row for all of D_c (ideal)", sum(found.values(), [])


# --- Lines and points -------------------------------------------------------------------------------------------------

def line(axes, points: list[tuple[float, float]], style: int, label: str, **more) -> None:
    """Mean ± SEM of y over the runs at each x, points being (x, y) with y a fraction."""
    places = sorted({x for x, _ in points})
    stats = [mean_sem(y for x, y in points if x == place) for place in places]
    more = dict(color=COLOURS[style % 8], marker=MARKERS[style % 8], markersize=5, linewidth=1.5, capsize=2) | more
    errors = [100 * (error or 0.0) for _, error in stats]
    axes.errorbar(places, [100 * mean for mean, _ in stats], yerr=errors, label=label, clip_on=False, **more)


def panels_of(figure, rows: list[dict], lines: int = 1) -> list[tuple[str, list]]:
    """(task, its axes from top to bottom) side by side for each task of the rows, from low to high regularity."""
    tasks = [task for task in REGULARITY if pick(rows, task=task)]
    figure.set_size_inches(max(6, 1 + 3.4 * len(tasks)), 4.4 if lines == 1 else 1.6 + 1.6 * lines)
    grid = figure.subplots(lines, len(tasks), sharex=True, sharey=True, squeeze=False)
    for task, axes in zip(tasks, grid[0], strict=True):
        axes.set_title(REGULARITY[task].replace("\n", " "), fontsize=10)
    for axes in grid.flat:
        axes.grid(alpha=0.3)
        axes.set_ylim(0, 100)
    return list(zip(tasks, grid.T.tolist(), strict=True))


def legend(figure, axes, columns: int) -> None:
    """One legend for the whole figure, below it."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns, fontsize=9)


def noted(row: dict, key: str, points: list[dict] | None = None) -> bool:
    """Whether a run has points, and all of them, or these, hold a number of that name."""
    points = row.get("points") if points is None else points
    return bool(points) and all(isinstance(point.get(key), int | float) for point in points)


def figure5(figure, rows: list[dict]) -> Drawn:
    """The corruption leaves theta_o1 and stays behind D_f's mask."""
    rows = need([row for row in pick(rows, **HALF_WIDTH, method="rem", etd=False) if noted(row, "full")],
                "rem with --curve (resnet9, capacity 0.5)")
    rate = min({row["discovery"] for row in rows}, key=lambda rate: abs(rate - 0.5))
    epochs = min({row["unlearn_epochs"] for row in rows}, key=lambda epochs: abs(epochs - 5))  # as in the paper
    rows = need(pick(rows, discovery=rate, unlearn_epochs=epochs), f"rem with --curve, {epochs} epochs at {rate:g}")
    for task, (axes,) in panels_of(figure, rows):
        curves = [point for row in pick(rows, task=task) for point in row["points"]]
        line(axes, [(p["epoch"], p["base"]) for p in curves], 0, "the repaired network")
        line(axes, [(p["epoch"], p["full"]) for p in curves], 1, "with the added part under D_f's mask", linestyle="--")
        axes.set_xlabel("unlearning epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.axes[0].set_ylabel("accuracy of given labels on D_c, %")
    legend(figure, axes, 2)
    return f"redirection by REM at discovery rate {rate:g}", rows


def lasting(figure, rows: list[dict]) -> Drawn:
    """How long a repair lasts where REM goes on: Healed and Acc(D_f) after each epoch, a line per discovery rate."""
    rows = [row for row in pick(rows, **HALF_WIDTH, method="rem", etd=False) if noted(row, "healed")]
    rows = need([row for row in rows if noted(row, "acc_forget_before", row["points"][1:])],
                "rem with --curve, with Healed after each epoch (resnet9, capacity 0.5)")
    epochs = max(row["unlearn_epochs"] for row in rows)
    rows = pick(rows, unlearn_epochs=epochs)
    for task, (above, below) in panels_of(figure, rows, 2):
        for k, rate in enumerate(sorted({row["discovery"] for row in rows})):
            runs = [row["points"] for row in pick(rows, task=task, discovery=rate)]
            look = dict(label=f"discovery rate {rate:g}", linestyle=DASHES[k % 4], markersize=3)
            line(above, [(p["epoch"], p["healed"]) for points in runs for p in points], k, **look)
            # Acc(D_f) at the end of an epoch is that before step 2 of the next.
            pairs = [pair for points in runs for pair in pairwise(points)]
            line(below, [(p["epoch"], after["acc_forget_before"]) for p, after in pairs], k, **look)
        below.set_xlabel("unlearning epoch")
        below.xaxis.get_major_locator().set_params(integer=True)
    figure.set_figheight(6)
    for words, axes in zip(("Healed, %", "Acc(D_f), %"), figure.axes[::len(figure.axes) // 2], strict=True):
        axes.set_ylabel(words)
    legend(figure, below, 4)
    return f"What is left of REM's repair in {epochs} epochs, mean ± SEM over seeds", rows


def figure6(figure, rows: list[dict]) -> Drawn:
    """Healing on training against test images."""
    rows = [row for row in networks(pick(rows, arch="resnet9")) if row.get("healed_test") is not None]
    need(rows, "resnet9 with healed_test")
    before = pick(rows, method="no-ul", etd=False) or [max(rows, key=lambda row: row["utility"])]
    # Choice: the paper's cut of 80 % is 10 points below CIFAR-10's untouched Utility; other data are cut as far below.
    cut = 0.8 if rows[0]["data"] == "cifar10" else mean_sem(row["utility"] for row in before)[0] - 0.1
    kept = [row for row in rows if row["utility"] >= cut]
    figure.set_size_inches(7.5, 6)
    axes = figure.subplots()
    for k, task in enumerate(REGULARITY):
        points = pick(kept, task=task)
        look = dict(color=COLOURS[k], edgecolor="black", linewidth=0.3)
        look = dict(facecolor="none", edgecolor=COLOURS[k]) if k == 1 else look
        axes.scatter([100 * r["healed"] for r in points], [100 * r["healed_test"] for r in points], s=24, alpha=0.7,
                     marker=MARKERS[k], label=f"{REGULARITY[task]}, n = {len(points)}".replace("\n", " "),
                     clip_on=False, **look)
    axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="Healed on training images, %",
             ylabel="Healed on test images corrupted alike, %")
    axes.grid(alpha=0.3)
    legend(figure, axes, 3)
    removed = f"{len(rows) - len(kept)} of {len(rows)} runs with Utility below {100 * cut:.1f} % removed"
    return f"all methods; {removed}", kept


def figure7(figure, rows: list[dict]) -> Drawn:
    """REM without one of its steps: a line of panels per variant, with REM in grey, so that no line hides another."""
    rows = pick(rows, **HALF_WIDTH, method=VARIANTS)
    need(pick(rows, method="rem"), "rem (resnet9, capacity 0.5)")
    need(pick(rows, method=VARIANTS[1:]), "rem-no31, rem-no32 or rem-ce (resnet9, capacity 0.5)")
    kinds = [(method, etd) for etd in (False, True) for method in VARIANTS if pick(rows, method=method, etd=etd)]
    variants = [kind for kind in kinds if kind != ("rem", False)]
    for task, column in panels_of(figure, rows, len(variants)):
        for (method, etd), axes in zip(variants, column, strict=True):
            style = VARIANTS.index(method) or len(VARIANTS)
            grey, own = dict(color="0.6", marker="o"), dict(linestyle=DASHES[style % 4])
            for kind, look in ((("rem", False), grey), ((method, etd), own)):
                points = pick(rows, task=task, method=kind[0], etd=kind[1])
                line(axes, [(row["discovery"], row["product"]) for row in points], style, name_of(*kind), **look)
        column[-1].set(xlabel="discovery rate", xlim=(0, 1), xticks=[0.2, 0.4, 0.6, 0.8, 1.0])
    for (method, etd), axes in zip(variants, figure.axes[::len(figure.axes) // len(variants)], strict=True):
        axes.set_ylabel(name_of(method, etd).replace(" without", "\nwithout").replace(" by", "\nby"))
    figure.supylabel("Healed × Utility, %")
    return "REM (grey) and its variants at 50 % capacity, mean ± SEM over seeds", rows


def figure8(figure, rows: list[dict]) -> Drawn:
    """What capacity and ETD do before any unlearning."""
    rows = networks(pick(rows, arch="resnet9", p_mem=0.2, method="no-ul"))
    if max(len({row["capacity"] for row in pick(rows, etd=etd)}) for etd in (False, True)) < 2:
        raise Missing("rows of no-ul at two capacities or more, all with or all without --etd (resnet9)")
    need(pick(rows, etd=True), "no-ul with --etd, or etd (resnet9)")
    for task, (axes,) in panels_of(figure, rows):
        for etd in (False, True):
            for k, key in enumerate(("healed", "utility")):
                points = [(100 * row["capacity"], row[key]) for row in pick(rows, task=task, etd=etd)]
                label = f"{key.capitalize()}, {'with' if etd else 'no'} ETD"
                face = COLOURS[2 * etd] if k == 0 else "white"
                line(axes, points, 2 * etd + k, label, linestyle=DASHES[2 * k + etd], markerfacecolor=face)
        axes.set(xlabel="capacity, %", xlim=(0, 100))
    figure.axes[0].set_ylabel("accuracy, %")
    legend(figure, axes, 4)
    return "networks without unlearning, by capacity", rows


DRAW = {"1": figure1, "3": figure3, "4": figure4, "5": figure5, "6": figure6, "7": figure7, "8": figure8, "9": figure9,
        "lasting": lasting, "10": partial(every_heat_map, arch="resnet9"),
        "11": partial(every_heat_map, arch="vit")}
