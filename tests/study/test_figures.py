"""study/figures.py: each figure of the paper is drawn from rows alone, and says what it leaves out."""

import math
import statistics
import subprocess
import sys

import pytest

pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install -r requirements-optional.txt")

from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.colors import to_rgb  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from few_images import refusal  # noqa: E402
from made_rows import ROOT, grid, load, main, make_row, noting, write  # noqa: E402
from study.figures import DRAW, draw  # noqa: E402
from study.rows import Missing  # noqa: E402
from tasks import TASKS  # noqa: E402

RATES = (0.1, 0.5, 1.0)


def only(number, rows) -> Figure:
    """The only figure of a number."""
    (figure,) = draw(number, rows)
    return figure


def panels(figure) -> dict:
    """Axes by title."""
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def labels(figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


# --- Files ------------------------------------------------------------------------------------------------------------


def test_figures_are_written_without_a_display(tmp_path, capsys, monkeypatch):
    """V21, R4: a real process without a display writes figures as PNG and SVG, and nothing on stderr; drawn again they
    are the same bytes."""
    source, out, again = (tmp_path / name for name in ("x.jsonl", "out", "again"))
    write(source, grid(("no-ul", "rem")))
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND"):
        monkeypatch.delenv(name, raising=False)
    command = [sys.executable, "-B", "-W", "error", ROOT / "run.py", "report", source, "--figure", "1,3", "--out", out]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    names = {f"figure-{number}.{kind}" for number in "13" for kind in ("png", "svg")}
    assert {path.name for path in out.iterdir()} == names
    assert main([str(source), "--figure", "1,3", "--out", str(again)]) == 0
    assert capsys.readouterr().out == f"0 files of tables and 4 of figures in {again}\n"
    for path in out.iterdir():
        content = path.read_bytes()
        assert len(content) > 5000 and content == (again / path.name).read_bytes()
        assert content.startswith(b"\x89PNG") if path.suffix == ".png" else b"</svg>" in content
    assert "matplotlib.pyplot" not in sys.modules  # which keeps every figure open


def test_numbers_stand_out(tmp_path):
    """V21: Fig. 1: every printed number has a contrast of at least 4.4 : 1 to its cell (WCAG), read in grey as well."""
    rows = [make_row("rem", k / 10, 1.0, task=task, discovery=k / 10) for k in range(1, 11) for task in TASKS]
    axes = panels(only("1", load(tmp_path, rows)))["REM"]

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    image = axes.images[0]
    assert len(axes.texts) == 30 and {text.get_color() for text in axes.texts} == {"black", "white"}
    for text in axes.texts:
        x, y = text.get_position()
        cell = image.cmap(image.norm(image.get_array()[y, x]))[:3]
        dark, light = sorted((luminance(cell), luminance(text.get_color())))
        assert (light + 0.05) / (dark + 0.05) >= 4.4


def test_every_figure_can_be_laid_out(tmp_path):
    """V21: titles, legends and labels of every figure lie within its edges."""
    points = dict(base=[1.0, 0.8, 0.6, 0.4, 0.2], full=[0.9] * 5, healed=[0.0, 0.1, 0.2, 0.3, 0.4],
                  acc_forget_before=[0.5] * 5)
    rows = grid(("no-ul", "rem-no31", "etd-ideal")) + grid(("no-ul", "rem"), etd=True) + grid(("no-ul",), capacity=1.0)
    rows += grid(("no-ul", "rem"), arch="vit") + grid(("cf",))
    rows += [noting(row, **points) for row in grid(("rem",), stop="max")]
    rows = load(tmp_path, rows)
    for number in DRAW:
        figure = only(number, rows)
        FigureCanvasAgg(figure).draw()
        width, height = figure.bbox.width, figure.bbox.height
        boxes = [artist.get_window_extent() for artist in (*figure.texts, *figure.legends)]
        for box in boxes + [axes.get_tightbbox() for axes in figure.axes]:
            assert box.x0 >= -2 and box.y0 >= -2 and box.x1 <= width + 2 and box.y1 <= height + 2, (number, box)


def test_a_figure_for_each_data_set(tmp_path):
    """V21: data sets and numbers of corrupted images are never drawn together."""
    rows = load(tmp_path, grid(("no-ul", "rem")) + grid(("no-ul", "rem"), n=500)
                + grid(("no-ul", "rem"), dataset="svhn"))
    titles = [figure.get_suptitle() for figure in draw("3", rows)]
    for title, words in zip(titles, ("cifar10, 500 corrupted", "cifar10, 1000 corrupted", "svhn, 1000"), strict=True):
        assert words in title


def test_figures_warn(tmp_path):
    """V21: other settings, unequal cells, SCRUB's alphas and failed runs are in the title, and none of them without
    cause; what reads no D_f has failed once, at however many rates."""
    rows = grid(("no-ul", "rem", "scrub"), seeds=(0, 1), rates=RATES)
    for number in "13":
        assert only(number, load(tmp_path, rows)).get_suptitle().endswith("cifar10, 1000 corrupted images, 42 runs")
    worse = [{**row, "lr": 0.5} if row["seed"] else row for row in rows[:-1]]
    worse += [make_row("scrub", 0.01, alpha=7.0), make_row("potion", status="failed"),
              make_row("rem", etd=True, status="failed"),
              make_row("rem-no31", status="failed"), make_row("rem", arch="vit", status="failed")]
    worse += [make_row("no-ul", status="failed", seed=5, discovery=rate) for rate in RATES]
    title = " ".join(only("3", load(tmp_path, worse)).get_suptitle().split())
    for words in ("NOT ONE EXPERIMENT: the runs differ in peak rate", "tasks, rates or seeds differ",
                  "scrub alpha 0.01 (of 0.01, 7.0)", "2 failed runs left out"):
        assert words in title, words
    assert "3 failed runs left out" in " ".join(only("10", load(tmp_path, worse)).get_suptitle().split())


NEEDED = {"1": "rem, scrub", "3": "resnet9", "4": "rem with --etd", "5": "--curve", "6": "healed_test", "7": "rem-no31",
          "8": "two capacities", "9": "etd-ideal", "10": "methods other than no-ul", "11": "vit",
          "lasting": "rem with --curve"}


@pytest.mark.parametrize("number", DRAW)
def test_missing_rows_are_named(tmp_path, number):
    """R2: a figure says which rows it lacks."""
    methods = {"9": ("no-ul", "etd"), **dict.fromkeys(("1", "10"), ("no-ul",))}.get(number, ("no-ul", "rem"))
    rows = grid(methods, arch="vit" if number == "3" else "resnet9")
    rows = [{**row, "healed_test": None} for row in rows] if number == "6" else rows
    with pytest.raises(Missing, match=f"figure {number} needs rows of .*{NEEDED[number]}"):
        draw(number, load(tmp_path, rows))


def test_a_figure_that_cannot_be_drawn(tmp_path, capsys):
    """R2: a figure without its rows is one line, exit 2, and no other is written."""
    source = write(tmp_path / "x.jsonl", grid(("no-ul", "rem")))
    err = refusal(capsys, "report", source, "--figure", "3,9", "--out", tmp_path / "o")
    assert err.startswith("run.py report: figure 9 needs rows of ") and not list(tmp_path.glob("o/*"))


# --- What is in them --------------------------------------------------------------------------------------------------


def test_heat_map(tmp_path):
    """V21: Fig. 1: each cell has the mean product over seeds, printed; left of the dashed line is before unlearning."""
    rows = [make_row("rem", 0.5, 0.8, task="poison", discovery=0.1),
            make_row("rem", 0.7, 0.8, task="poison", discovery=0.1, seed=1),
            make_row("rem", 1.0, 1.0, task="random", discovery=1.0),
            make_row("no-ul", 0.1, 0.9, task="random", discovery=0.1),
            make_row("retrain", 0.2, 0.5, task="confusion", discovery=1.0)]
    figure = only("1", load(tmp_path, rows))
    assert list(panels(figure)) == ["retraining", "REM"]
    axes = panels(figure)["REM"]
    printed = {text.get_position(): text.get_text() for text in axes.texts}
    assert printed == {(1, 2): "48", (2, 0): "100", (0, 0): "9"}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.0", "0.1", "1.0"]
    tasks = [tick.get_text().split("\n")[0] for tick in figure.axes[0].get_yticklabels()]
    assert tasks == ["random", "confusion", "poison"]
    values = axes.images[0].get_array()
    assert values.mask.sum() == 6 and values[2, 1] == pytest.approx(48) and axes.images[0].origin == "lower"
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [list(line.get_xdata()) for line in dashed] == [[0.5, 0.5]]
    assert figure.axes[-1].get_ylabel() == "Healed × Utility, %"


def test_one_scale_for_all_panels(tmp_path):
    """V21: Fig. 10: panels and colour bar have one scale, up to the next ten above the largest mean, at most 100 %."""
    rows = [make_row("rem", 0.75, 1.0), make_row("cf", 0.55, 1.0), make_row("npo", 0.02, 1.0),
            make_row("no-ul", 0.1, 1.0)]
    figure = only("10", load(tmp_path, rows))
    images = [axes.images[0] for axes in panels(figure).values()]
    assert len(images) == 3 and {image.get_clim() for image in images} == {(0, 80)}
    assert figure.axes[-1].get_ylim() == (0, 80)
    full = only("10", load(tmp_path, [make_row("rem", 1.0, 1.0)]))
    assert full.axes[0].images[0].get_clim() == (0, 100)


def test_bars(tmp_path):
    """V21: Fig. 3: a bar per method and capacity, best first, with mean and SEM; with ETD alone, without REM on ETD."""
    rows = [make_row("rem", h, 1.0, seed=s) for s, h in enumerate((0.6, 0.8))] + [make_row("cf", 0.3, 1.0)]
    rows += [make_row("cf", 0.2, 1.0, capacity=1.0), make_row("no-ul", 0.4, 1.0, etd=True), make_row("rem", etd=True)]
    rows += [make_row("rem-no31"), make_row("no-ul", capacity=0.1)]
    figure = only("3", load(tmp_path, rows))
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["REM", "ETD", "fine-tuning"]
    half, full = (bars for bars in axes.containers if hasattr(bars, "patches"))
    assert [bar.get_width() for bar in half] == pytest.approx([70, 40, 30])
    assert [bar.get_width() for bar in full] == pytest.approx([20])
    assert [bar.get_y() + bar.get_height() / 2 for bar in (*half, *full)] == pytest.approx([0, 1, 1.8, 2.2])
    assert half.errorbar[2][0].get_segments()[0][:, 0] == pytest.approx([60, 80])
    assert {bar.get_hatch() for bar in half} != {bar.get_hatch() for bar in full}
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["50 % capacity", "100 % capacity"]
    assert [t.get_text() for t in axes.texts] == ["70.0", "40.0", "30.0", "20.0"]
    assert "1 to 2 runs per bar" in figure.get_suptitle()


def test_figures_count_a_network_once(tmp_path):
    """V21: what reads no D_f has the SEM and number of its networks."""
    rates = [k / 10 for k in range(1, 11)]
    kinds = (("no-ul", 0.5), ("etd", 0.5), ("no-ul", 1.0), ("etd-ideal", 0.5), ("rem", 0.5))
    rows = [make_row(method, h, 1.0, seed=s, discovery=d, capacity=c, task="random")
            for s, h in enumerate((0.2, 0.4, 0.9)) for d in rates for method, c in kinds]
    rows, error = load(tmp_path, rows), 100 * statistics.stdev((0.2, 0.4, 0.9)) / math.sqrt(3)

    def errors(figure):
        bars = [c[2][0] for c in figure.axes[0].containers if not hasattr(c, "patches")]
        return sorted(abs(ends).max() / 2 for bar in bars for ends in (s[1] - s[0] for s in bar.get_segments()))

    assert errors(only("8", rows)) == pytest.approx([0.0] * 3 + [error] * 3, abs=1e-9)
    assert errors(only("9", rows)) == pytest.approx([error] * 3)
    assert "3 to 30 runs per bar" in only("3", rows).get_suptitle()
    assert "n = 42" in labels(only("6", rows))[0]  # 4 x 3 networks and rem's 30 runs


def test_networks_without_rates_have_one_number(tmp_path):
    """V21: a method that reads no D_f has the mean over its networks at every rate of its runs, and no other has."""
    for method, title, printed in (("etd", "ETD", ["10", "40", "40"]), ("rem", "REM", ["10", "40", "20"])):
        runs = [make_row(method, healed, 1.0, discovery=rate, seed=seed)
                for healed, rate, seed in ((0.2, 0.1, 0), (0.2, 0.5, 0), (0.6, 0.1, 1))]
        axes = panels(only("1", load(tmp_path, [make_row("no-ul", 0.1, 1.0), *runs])))[title]
        assert [text.get_text() for text in axes.texts] == printed


@pytest.mark.parametrize("number", ["1", "3", "10"])
def test_other_masks_are_told(tmp_path, number):
    """V21: runs that a figure leaves out for their p_mem are named in its title; what has no mask stands in any."""
    rows = grid(("no-ul", "rem"))
    plain = only(number, load(tmp_path, [*rows, *grid(("cf",), p_mem=0.05)]))
    assert "p_mem" not in plain.get_suptitle()
    bars = [text.get_text() for text in plain.axes[0].get_yticklabels()]
    assert number == "1" or "fine-tuning" in [*panels(plain), *bars]
    assert "not drawn: p_mem 0.05" in only(number, load(tmp_path, [*rows, *grid(("rem",), p_mem=0.05)])).get_suptitle()


def test_rem_on_and_off_etd(tmp_path):
    """V21: Fig. 4: REM without and with ETD, each beside its own network before unlearning."""
    rows = [make_row("rem", 0.9, 1.0), make_row("rem-on-etd", 0.8, 1.0, etd=True)]
    rows += [make_row("no-ul", 0.1, 1.0), make_row("no-ul", 0.3, 1.0, etd=True)]
    found = panels(only("4", load(tmp_path, rows)))
    assert {title: sorted(t.get_text() for t in axes.texts) for title, axes in found.items()} == {
        "REM": ["10", "90"], "REM on ETD": ["30", "80"]}


def test_redirection(tmp_path):
    """V21: Fig. 5: accuracy by epoch, mean over seeds, at the discovery rate next to one half; of the runs that failed
    those that were to note it are counted."""
    def curve(base, **more):
        return noting(make_row(unlearn_epochs=5, **more), base=base, full=[1.0, 1.0])

    rows = [curve([1.0, 0.2]), curve([0.8, 0.0], seed=1), curve([0.0, 0.0], discovery=1.0), make_row()]
    rows += [make_row(status="failed", seed=2, curve=True), make_row(status="failed", seed=3)]
    rows += [make_row(status="failed", seed=2, curve=True, discovery=0.9)]  # of another rate than is drawn
    figure = only("5", load(tmp_path, rows))
    (axes,) = figure.axes
    base, full = [lines[0] for lines in axes.containers]
    assert list(base.get_xdata()) == [0, 1] and list(base.get_ydata()) == pytest.approx([90, 10])
    assert list(full.get_ydata()) == [100, 100] and base.get_linestyle() != full.get_linestyle()
    assert "discovery rate 0.5\ncifar10, 1000 corrupted images, 2 runs\n1 failed run" in figure.get_suptitle()
    assert labels(figure)[0] == "the repaired network"


def test_lasting(tmp_path):
    """V21: Healed and Acc(D_f) after each epoch, a line per discovery rate, of the longest runs of REM, which go on
    to the end; REM+ has no line."""
    def run(healed, forget, **more):
        row = make_row(**{"unlearn_epochs": 24} | more)
        return noting(row, base=[0.5] * 3, healed=healed, acc_forget_before=forget)

    rows = [run([0.1, 0.9, 0.4], [1.0, 1.0, 0.2], discovery=0.1)]
    rows += [run([0.3, 0.7, 0.6], [1.0, 1.0, 0.0], discovery=0.1, seed=1)]
    rows += [run([0.1, 0.9, 0.9], [1.0, 1.0, 0.1], discovery=1.0), run([0, 0, 0], [0, 0, 0], unlearn_epochs=5)]
    rows += [run([0, 0, 0], [0, 0, 0], method="rem-plus")]
    figure = only("lasting", load(tmp_path, rows))
    above, below = figure.axes
    healed, forget = ([lines[0] for lines in axes.containers] for axes in (above, below))
    assert list(healed[0].get_xdata()) == [0, 1, 2] and list(healed[0].get_ydata()) == pytest.approx([20, 80, 50])
    assert list(forget[0].get_xdata()) == [0, 1] and list(forget[0].get_ydata()) == pytest.approx([100, 10])
    assert list(healed[1].get_ydata()) == pytest.approx([10, 90, 90])
    assert list(forget[1].get_ydata()) == pytest.approx([100, 10])
    assert labels(figure) == ["discovery rate 0.1", "discovery rate 1"]
    assert above.get_ylabel() == "Healed, %" and below.get_ylabel() == "Acc(D_f), %"
    assert "in 24 epochs" in figure.get_suptitle() and "3 runs" in figure.get_suptitle()


def test_healing_on_training_and_test(tmp_path):
    """V21: Fig. 6: a point a run, cut at 80 % on CIFAR-10, elsewhere 10 points below the untouched network."""
    rows = [{**make_row("rem", 0.5, 0.9, p_mem=0.05), "healed_test": 0.25}, make_row("cf", 0.5, 0.79),
            make_row("no-ul", 0.1, 0.95)]
    figure = only("6", load(tmp_path, rows))
    assert "1 of 3 runs with Utility below 80.0 % removed" in figure.get_suptitle()
    assert "not drawn" not in figure.get_suptitle()  # runs of every p_mem are
    points = {tuple(p) for scatter in figure.axes[0].collections for p in scatter.get_offsets().data}
    assert points == {(50.0, 25.0), (10.0, 10.0)} and labels(figure)[2] == "poison (high), n = 2"
    other = [{**row, "dataset": "fashion-mini"} for row in rows]
    assert "1 of 3 runs with Utility below 85.0 % removed" in only("6", load(tmp_path, other)).get_suptitle()


def test_ablations(tmp_path):
    """V21: Fig. 7: a row of panels per variant, over discovery, with REM in each; no two variants look alike."""
    rows = grid(("rem", "rem-no31", "rem-no32", "rem-ce"), seeds=(0, 1), rates=RATES)
    rows += grid(("rem",), rates=RATES, etd=True)
    figure = only("7", load(tmp_path, rows))
    assert list(panels(figure)) == ["random (low)", "confusion (medium)", "poison (high)"]
    names = [axes.get_ylabel().replace("\n", " ") for axes in figure.axes if axes.get_ylabel()]
    assert names == ["REM without 3.1", "REM without 3.2", "REM by cross-entropy", "REM on ETD"]
    kinds = [("rem-no31", False), ("rem-no32", False), ("rem-ce", False), ("rem", True)]
    looks = set()
    for axes, kind in zip(figure.axes[2::3], kinds, strict=True):  # poison
        for bars, (method, etd) in zip(axes.containers, (("rem", False), kind), strict=True):
            mine = [row for row in rows if (row["method"], row["task"], row["etd"]) == (method, "poison", etd)]
            mine = [[row["product"] for row in mine if row["discovery"] == rate] for rate in RATES]
            assert list(bars[0].get_xdata()) == list(RATES)
            assert list(bars[0].get_ydata()) == pytest.approx([100 * statistics.mean(products) for products in mine])
            looks.add((bars[0].get_color(), bars[0].get_marker(), bars[0].get_linestyle()))
    assert len(looks) == 5


def test_capacity(tmp_path):
    """V21: Fig. 8: Healed and Utility of the untouched network over capacity, with and without ETD."""
    rows = [make_row("no-ul", 0.2, 0.9), make_row("no-ul", 0.1, 0.95, capacity=1.0), make_row("etd", 0.6, 0.85),
            make_row("no-ul", 0.7, 0.5, etd=True, capacity=0.1)]
    figure = only("8", load(tmp_path, rows))
    lines = dict(zip(labels(figure), [c[0] for c in figure.axes[0].containers], strict=True))
    assert len({line.get_color() for line in lines.values()}) == 4
    drawn = {name: [list(line.get_xdata()), [round(y, 9) for y in line.get_ydata()]] for name, line in lines.items()}
    assert drawn == {
        "Healed, no ETD": [[50, 100], [20, 10]], "Utility, no ETD": [[50, 100], [90, 95]],
        "Healed, with ETD": [[10, 50], [70, 60]], "Utility, with ETD": [[10, 50], [50, 85]]}


def test_ideal_etd(tmp_path):
    """V21: Fig. 9: Healed and Utility of the untouched network, ETD and ETD with D_c known, by task."""
    rows = [make_row(m, h, 0.9, task="random") for m, h in (("no-ul", 0.1), ("etd", 0.5), ("etd-ideal", 0.8))]
    figure = only("9", load(tmp_path, rows))
    healed, utility = figure.axes
    assert [t.get_text() for t in healed.texts] == ["10.0", "50.0", "80.0"]
    assert [t.get_text() for t in utility.texts] == ["90.0"] * 3
    assert labels(figure) == ["no unlearning", "ETD", "ETD (ideal)"] and healed.get_xlabel() == "Healed, %"


@pytest.mark.parametrize("number, arch", [("10", "resnet9"), ("11", "vit")])
def test_every_method_has_its_heat_map(tmp_path, number, arch):
    """V21: Figs. 10, 11: a panel a method, with ETD and without, and at 100 %; ablations are Fig. 7's."""
    rows = grid(("no-ul", "cf", "rem", "rem-no31"), arch=arch) + grid(("no-ul", "rem"), arch=arch, etd=True)
    other = {"vit": "resnet9", "resnet9": "vit"}[arch]
    rows += grid(("rem",), arch=arch, capacity=1.0) + grid(("rem",), arch=other, capacity=0.75)
    found = panels(only(number, load(tmp_path, rows)))
    assert set(found) == {"fine-tuning", "REM", "REM on ETD", "ETD", "REM, 100 %"}


def test_points_that_lack_a_number_are_not_drawn(tmp_path):
    """R2: Fig. 5 and lasting take runs whose points have all that they draw; without one they say what is missing."""
    plain = noting(make_row(unlearn_epochs=5), base=[0.5, 0])
    later = noting(make_row(stop="max", seed=1), base=[0.5] * 3, healed=[0.5] * 3)
    for number in ("5", "lasting"):
        with pytest.raises(Missing, match="--curve"):
            only(number, load(tmp_path, [plain, later]))
    whole = noting({**plain, "seed": 2}, base=[0.5, 0], full=[1.0, 1.0])
    assert "1 run" in only("5", load(tmp_path, [plain, later, whole])).get_suptitle()


def test_people_have_no_place_on_the_plane(tmp_path, capsys):
    """V21, R2: rows of people's mistakes are drawn in no figure: beside others they are left out; where there are no
    others, or failed ones alone, every figure is skipped with a note."""
    people = [make_row(method, task="human", discovery=rate, seed=seed)
              for method in ("no-ul", "npo", "rem") for rate in (0.1, 0.5) for seed in (0, 1)]
    source = write(tmp_path / "people.jsonl", [*people, make_row(status="failed")])
    assert main([str(source), "--figure", "all", "--out", str(tmp_path / "no")]) == 0
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(DRAW) and all(line.startswith("run.py report: skipped: figure ") for line in said)
    assert all("needs runs of poison, confusion or random labels that ended well" in line for line in said)
    for number in ("3", "10"):
        rows = grid(("no-ul", "npo", "rem"))
        assert only(number, load(tmp_path, people + rows)).get_suptitle() == only(
            number, load(tmp_path, rows)).get_suptitle()


def test_a_dollar_is_no_formula(tmp_path):
    """V21: a method's file and a folder may have two $ in their names."""
    rows = [make_row("a$^$.py:f"), make_row(dataset="folder", data_dir="/x/$a_$/b", image_size=16)]
    assert main([str(write(tmp_path / "x.jsonl", rows)), "--figure", "3", "--out", str(tmp_path / "o")]) == 0
    assert {path.name for path in (tmp_path / "o").glob("*.svg")} == {"figure-3.svg", "figure-3-2.svg"}
