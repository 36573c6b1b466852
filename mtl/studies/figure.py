"""The figure of a study: its rows as points with their spread, next to stated and published numbers."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mtl.base.files import atomic_write
from mtl.report.style import BLUE, GREY, ORANGE, Look, Prefixed, figure_style, save_figure
from mtl.studies.definition import Definition, StudyColumn
from mtl.studies.results import RowResult

LINE = 46  # letters of a name on one line
LETTERS = 13  # of a title, on an inch
OFFSET = 0.22  # of the stated value, below the measured one
LOOKS: dict[str, Look] = {
    "mean ± sd": {"color": BLUE, "marker": "o", "markersize": 4, "linestyle": "-"},
    "a seed": {"color": BLUE, "marker": ".", "markersize": 3, "linestyle": "", "alpha": 0.45},
    "stated": {"color": ORANGE, "marker": "D", "markersize": 3.5, "markerfacecolor": "white", "linestyle": "-"},
    "published": {"color": GREY, "marker": "s", "markersize": 3.5, "linestyle": ""},
}


def draw_study(definition: Definition, results: Sequence[RowResult], *, quick: bool) -> Figure:
    """Draw the columns of `figure` side by side, with a line for each row.

    Args:
        definition: the study.
        results: of all rows.
        quick: whether the runs are of reduced size, so that stated and published numbers do not belong to them.
    """
    published = () if quick else definition.published
    columns = [definition.column(title) for title in definition.figure]
    names = [result.row.name for result in results] + [f"{row.name} ({row.source})" for row in published]
    width = 3.2 + 2.6 * len(columns)
    title = textwrap.wrap(f"QUICK, at reduced size: {definition.title}" if quick else definition.title, int(LETTERS * width))
    figure = Figure(figsize=(width, 0.95 + 0.15 * len(title) + 0.27 * len(names)))
    panels = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    used: set[str] = set()
    for axes, column in zip(panels, columns, strict=True):
        used |= _draw_column(axes, column, results, quick=quick)
        for place, row in enumerate(published, len(results)):
            if column.title in row.cells:
                axes.plot(row.cells[column.title].mean * column.scale, place, **LOOKS["published"])
                used.add("published")
        axes.set_xlabel(column.title)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if column.unit is not None:
            axes.xaxis.set_major_formatter(Prefixed(column.unit))
    panels[0].set_yticks(range(len(names)), [textwrap.fill(name, LINE) for name in names], size=6.5)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    for axes in panels:
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
    handles = [Line2D([], [], label=name, **look) for name, look in LOOKS.items() if name in used]
    if handles:
        figure.legend(handles=handles, loc="outside lower right", ncols=len(handles))
    figure.suptitle("\n".join(title), x=0.01, ha="left", size=9)
    return figure


def write_figure(definition: Definition, results: Sequence[RowResult], folder: Path, *, quick: bool) -> list[Path]:
    """Write `figure.png` and `figure.pdf` into a folder, and return their paths."""
    png, pdf = folder / "figure.png", folder / "figure.pdf"
    with figure_style():
        figure = draw_study(definition, results, quick=quick)
        save_figure(figure, png)
        with atomic_write(pdf) as file:
            figure.savefig(file, format="pdf", backend="pdf", metadata={"CreationDate": None})
    return [png, pdf]


def _draw_column(axes: Axes, column: StudyColumn, results: Sequence[RowResult], *, quick: bool) -> set[str]:
    """Draw a column; returns what was drawn."""
    used = set()
    for place, result in enumerate(results):
        cell = result.cells[column.title]
        if cell.spread is not None:
            mean, deviation = getattr(cell.spread, column.show), cell.spread.deviation if column.show == "mean" else None
            if len(cell.values) > 1:
                seeds = [value * column.scale for value in cell.values.values()]
                axes.plot(seeds, [place] * len(seeds), **LOOKS["a seed"])
                used.add("a seed")
            used.add(_draw_spread(axes, column, "mean ± sd", (mean, deviation), place))
        if cell.stated is not None and not quick:
            used.add(_draw_spread(axes, column, "stated", (cell.stated.mean, cell.stated.deviation), place + OFFSET))
    return used


def _draw_spread(axes: Axes, column: StudyColumn, name: str, value: tuple[float, float | None], place: float) -> str:
    mean, deviation = value
    if deviation is not None:
        ends = [(mean - deviation) * column.scale, (mean + deviation) * column.scale]
        axes.plot(ends, [place, place], color=LOOKS[name]["color"], linewidth=1.2)
    axes.plot(mean * column.scale, place, **LOOKS[name])
    return name
