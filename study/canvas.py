"""Figures on paper: matplotlib where it is installed, and files that are the same bytes each time."""

from pathlib import Path

from experiment.files import write_whole


def import_figure():
    """matplotlib's Figure, which draws without a display; ValueError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("figures need matplotlib: pip install -r requirements-figures.txt") from error
    return Figure


def plain_text():
    """A context in which no text is read as a formula: a folder or a method's file may have a $ in its name."""
    import matplotlib

    return matplotlib.rc_context({"text.parse_math": False})


def save(folder: str, name: str, figure) -> None:
    """Write a figure as PNG and as SVG, each whole or not at all and the same bytes each time."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    figure.set_dpi(150)
    with plain_text(), matplotlib.rc_context({"svg.hashsalt": name}):
        # by the canvases themselves: savefig draws everything twice
        write_whole(Path(folder, f"{name}.png"), lambda file: FigureCanvasAgg(figure).print_png(file))
        figure.set_layout_engine("none")  # laid out once, the same in both
        canvas = FigureCanvasSVG(figure)
        write_whole(Path(folder, f"{name}.svg"), lambda file: canvas.print_svg(file, metadata={"Date": None}))
