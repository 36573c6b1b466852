"""How the figures of a report look, and how they are saved.

Nothing touches pyplot or leaves a global setting behind, so figures can be drawn inside a training process or a test. Colours are
those of Okabe and Ito (2008), which stay apart for colour-blind readers.
"""

import contextlib
import functools
import itertools
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.ticker import Formatter, LogLocator, NullLocator

from mtl.base.files import atomic_write
from mtl.report.tables import decimal_multiple

Drawing = Figure | None
Look = dict[str, Any]
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#222222"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY, BLACK)
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h", "d", "8", "H")
MAX_GROUPS = 100  # that a figure draws
LETTER = 0.62  # width of a usual letter, in units of the font's size
GREY = "#767676"
DPI = 200
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelcolor": "#444444",
    "axes.edgecolor": "#999999",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.color": "#999999",
    "ytick.color": "#999999",
    "xtick.labelcolor": "#444444",
    "ytick.labelcolor": "#444444",
    "axes.formatter.useoffset": False,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # a task may be called `$a$`
}


def figure_style() -> Any:
    """Context in which figures are drawn and saved; the settings outside are left as they were."""
    return matplotlib.rc_context(STYLE)


def save_figure(figure: Figure, path: Path) -> None:
    """Write `figure` as a PNG, by Agg whatever backend pyplot has."""
    with atomic_write(path) as file, _missing_glyphs():
        figure.savefig(file, format="png", backend="agg", dpi=DPI, facecolor="white")


@contextlib.contextmanager
def _missing_glyphs() -> Iterator[None]:
    """Let letters that the font lacks come out as boxes: the page around the figure still spells the name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def pick_colour(index: int) -> str:
    """Colour of the line `index`; there are seven."""
    return COLOURS[index % len(COLOURS)]


def pick_line(index: int, *, marked: bool = False) -> Look:
    """Colour, dash and marker of a line; no two of the first 140 are alike.

    Args:
        index: number of the line.
        marked: give a marker to all lines, not only to those beyond the 28th.
    """
    again = index // (len(COLOURS) * len(DASHES)) % 5
    look = {"color": pick_colour(index), "linestyle": DASHES[index // len(COLOURS) % len(DASHES)], "markersize": 2.5}
    return look | {"marker": MARKERS[again] if marked or again else ""}


def pick_point(index: int) -> Look:
    """Colour and marker of a point; no two of the first 105 are alike."""
    return {"color": pick_colour(index), "marker": MARKERS[index // len(COLOURS) % len(MARKERS)], "linestyle": ""}


def add_legend(figure: Figure, names: Sequence[str], looks: Sequence[Look]) -> None:
    """Add a legend above the axes, in as many columns as fit; the figure grows by its height and to the width of the longest name."""
    handles = [Line2D([], [], label=name, **look) for name, look in zip(shorten_apart(names, 48), looks, strict=True)]
    renderer = FigureCanvasAgg(figure).get_renderer()
    at: Look = {"handles": handles, "loc": "outside upper left"}
    with _missing_glyphs():
        column = figure.legend(**at)
        size = column.prop.get_size_in_points() * figure.dpi / 72
        edge, gap = (2 * column.borderpad * size + 4, column.columnspacing * size)
        wide = column.get_window_extent(renderer).width - edge + 4
        column.remove()
        num_columns = int((figure.bbox.width - edge + gap) / (wide + gap))
        legend = figure.legend(**at, ncols=max(1, min(num_columns, 6, len(names))))
        box = legend.get_window_extent(renderer)
    width, height = figure.get_size_inches()
    figure.set_size_inches(max(width, (box.width + 8) / figure.dpi), height + box.height / figure.dpi)


class Prefixed(Formatter):
    """Ticks in one decimal multiple (1 k = 1000) for the whole axis, with as many digits as tell them apart."""

    def __init__(self, unit: str = "") -> None:
        self.unit = unit

    def __call__(self, value: float, pos: int | None = None) -> str:
        """One tick by itself."""
        return self.format_ticks([value])[0]

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """All ticks of an axis."""
        values = [float(value) for value in values]
        scale, prefix = decimal_multiple(max((abs(value) for value in values), default=0.0))
        steps = [abs(b - a) / scale for a, b in itertools.pairwise(values) if a != b]
        least = min(steps, default=0.0) or max(abs(values[0]) / scale if values else 1.0, 1e-12)
        digits = 0
        while digits < 12 and any(abs(round(value / scale, digits) - value / scale) > 0.01 * least for value in values):
            digits += 1
        return [f"{value / scale:.{digits}f} {prefix}{self.unit}".rstrip() for value in values]


def set_log_ticks(axis: Axis, low: float, high: float, formatter: Any = "{x:g}") -> None:
    """Set few ticks in plain figures on a logarithmic axis from `low` to `high`: matplotlib's are TeX, which is not parsed here."""
    decades = math.log10(high / low) if 0 < low < high else 1.0
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades <= 2 else (1, 3) if decades <= 3 else (1,), numticks=7))
    axis.set_major_formatter(formatter)
    axis.set_minor_locator(NullLocator())


def shorten(text: str, length: int = 26, *, ending: float = 0.4) -> str:
    """Shorten a text to at most `length` letters, and no wider than as many of the usual width.

    Args:
        text: what may be too long.
        length: in letters.
        ending: share of the room for the last letters; what is too much is left out before them.
    """
    room = LETTER * length
    if len(text) <= length and sum(map(_letter_width, text)) <= room:
        return text
    room -= _letter_width("…")
    num_last = min(int((length - 1) * ending), len(text))
    first, last = list(text[: min(length - 1, len(text)) - num_last]), list(text[len(text) - num_last :])
    while last and sum(map(_letter_width, last)) > max(ending * room, room - sum(map(_letter_width, first))):
        del last[0]
    while first and sum(map(_letter_width, [*first, *last])) > room:
        del first[-1]
    return f"{''.join(first)}…{''.join(last)}"


def shorten_apart(names: Sequence[str], length: int) -> list[str]:
    """Shorten names where that leaves most of them different; those that are still alike are numbered."""
    ways = [[shorten(name, length, ending=ending) for name in names] for ending in (0.4, 0.0, 0.7, 1.0)]
    best = max(ways, key=lambda way: len(set(way)))
    alike = {name for name, count in Counter(best).items() if count > 1}
    return [f"{place + 1}: {name}" if name in alike else name for place, name in enumerate(best)]


@functools.cache
def _letter_width(letter: str) -> float:
    """Width of a letter, in units of the font's size."""
    font = get_font(findfont(STYLE["font.family"]))
    font.set_size(100, 72)
    return font.load_glyph(font.get_char_index(ord(letter))).linearHoriAdvance / 65536 / 100


def name_rows(axes: Axes, rows: Sequence[str | None], *, num_all: int = 0, size: float = 6.5, length: int = 40) -> None:
    """Write names beside horizontal rows, the first at the top.

    Args:
        axes: with one row at each whole number.
        rows: names; None is the gap for those that are not shown.
        num_all: number of rows with those that are not shown.
        size: of the letters, in points.
        length: of a name, in letters.
    """
    named = [(place, shorten(row, length)) for place, row in enumerate(rows) if row is not None]
    axes.set_yticks([place for place, _ in named], [row for _, row in named], size=size)
    if None in rows:
        text = f"{num_all - len(named):,} tasks between"
        at_left = axes.get_yaxis_transform()
        axes.text(0.05, rows.index(None), text, transform=at_left, va="center", color=GREY, size=6.5, style="italic")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
