"""Results as pictures (SVG), with matplotlib; without it there are none. A picture for each scenario that has a say."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.results import Results
from bench.tables import format_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = {
    "histfs": "#d62728",
    "histfs on rdiff-backup's": "#ff9896",
    "rdiff-backup": "#9467bd",
    "restic": "#1f77b4",
    "borg": "#2ca02c",
    "bup": "#8c564b",
    "plain copy": "#7f7f7f",
}
_BARS_A_ROW = 4
_MOST_MARKED = 20
_FAR_APART = 20


def is_available() -> bool:
    try:
        import matplotlib  # noqa: F401  (whether it is there is the question)
    except ImportError:
        return False
    return True


def draw(results: Results, folder: Path) -> list[Path]:
    """Write the pictures of a scenario to `folder`; where they are."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "histfs"  # the same figures make the same file
    mpl.rcParams["svg.fonttype"] = "none"
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for suffix, figure in (("bars", _bars(results)), ("curves", _curves(results))):
        if figure is not None:
            path = folder / f"{results.scenario}-{suffix}.svg"
            figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
            drawn.append(path)
    return drawn


def _bars(results: Results) -> "Figure | None":
    """A small chart a measure: a bar a program, its figure beside it; logarithmic where figures are far apart."""
    from matplotlib.figure import Figure

    rows = [(measure, figures) for measure, figures in results.rows() if len(figures) > 2 and measure.unit]
    if not rows:
        return None
    height = -(-len(rows) // _BARS_A_ROW)
    figure = Figure(figsize=(3.4 * _BARS_A_ROW, 2.2 * height), layout="constrained")
    for number, (measure, figures) in enumerate(rows, 1):
        axes = figure.add_subplot(height, _BARS_A_ROW, number)
        names = [name for name in results.programs() if name in figures]
        values = [figures[name] for name in names]
        bars = axes.barh(names, values, color=[_COLORS.get(name, "black") for name in names])
        axes.bar_label(bars, [format_figure(value, measure.unit) for value in values], padding=2, fontsize=7)
        remarks = ["more is better"] * measure.unit.endswith("/s") + ["logarithmic"] * _set_scale(axes, values)
        axes.invert_yaxis()
        axes.set_title(f"{measure.name}\n{', '.join(remarks)}".strip(), fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    return figure


def _set_scale(axes: "Axes", values: Sequence[float]) -> bool:
    """With room for the figures beside the bars, which need no ticks then. Whether it is logarithmic."""
    least, most = min(values), max(values)
    is_logarithmic = 0 < least < most / _FAR_APART
    if is_logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(least / 3, most * (most / least) ** 0.6)
    else:
        axes.set_xlim(0, 1.6 * most or 1)
    axes.set_xticks([], minor=False)
    axes.set_xticks([], minor=True)
    return is_logarithmic


def _curves(results: Results) -> "Figure | None":
    """A chart for all curves of a kind: a line a program."""
    from matplotlib.figure import Figure

    if not results.curves:
        return None
    figure = Figure(figsize=(5 * len(results.curves), 4), layout="constrained")
    for number, (title, curves) in enumerate(results.curves.items(), 1):
        axes = figure.add_subplot(1, len(results.curves), number)
        for name in [name for name in results.programs() if name in curves.lines]:
            points = curves.lines[name]
            marker = "o" if len(points) < _MOST_MARKED else None
            axes.plot(*zip(*points, strict=True), label=name, color=_COLORS.get(name, "black"), marker=marker)
        for axis, set_scale in (("x", axes.set_xscale), ("y", axes.set_yscale)):
            set_scale("log" if axis in curves.logarithmic else "linear")
        axes.set_xlabel(curves.x)
        axes.set_ylabel(curves.y)
        axes.set_title(title, fontsize=9)
        axes.grid(visible=True, alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=7, fontsize=8)
    return figure
