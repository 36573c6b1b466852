"""How the figures of a report look, and how they are saved.

Nothing touches pyplot or leaves a global setting behind, so figures can be drawn inside a training process or a test. Colours are
those of Okabe and Ito (2008), which stay apart for colour-blind readers.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Drawing = Figure | None
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#222222"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY, BLACK)
DASHES = ("-", "--", ":", "-.")
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
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # a task may be called `$a$`
}


def figure_style() -> Any:
    """Context in which figures are drawn and saved; the settings outside are left as they were."""
    return matplotlib.rc_context(STYLE)


def save_figure(figure: Figure, path: Path) -> None:
    """Write `figure` as a PNG."""
    with warnings.catch_warnings():
        # A name in letters that the font lacks comes out as boxes, and the page around the figure still spells it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(path, dpi=DPI, facecolor="white")


def pick_colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def pick_dash(index: int) -> str:
    return DASHES[index // len(COLOURS) % len(DASHES)]


def shorten(text: str, length: int = 26) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def name_rows(axes: Axes, rows: Sequence[str | None], *, num_all: int = 0, size: float = 6.5, length: int = 40) -> None:
    """Names of horizontal rows, the first at the top; None is the gap for those that are not shown."""
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
