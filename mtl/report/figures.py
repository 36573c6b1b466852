"""Draw the figures of a report: one function per figure, from groups of runs to a matplotlib `Figure`, None without data.

Nothing touches pyplot or leaves a global setting behind, so figures can be drawn inside a training process or a test.
Colours are those of Okabe and Ito (2008), which stay apart for colour-blind readers. With several seeds a curve is the mean
and its band the range over seeds. Above 45 tasks the 40 worst and the 5 best are shown; larger maps are summed into bins.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from mtl.report.groups import Group, Spread
from mtl.report.measures import count_confusions, matching_predictions, measure_score_ranges, sum_bins
from mtl.report.runs import Array
from mtl.report.tables import COLUMNS

Drawing = Figure | None
Lines = Sequence[tuple[str, dict[int, Spread]]]

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#222222"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY, BLACK)
DASHES = ("-", "--", ":", "-.")
GREY = "#767676"
DPI = 200
NUM_WORST, NUM_BEST = 40, 5
MAX_CLIENTS, MAX_TASKS = 48, 60
PARTS = ("loss", "positive", "negative")
STAGES = {"train": "Training loss", "val": "Validation", "monitor": "Monitored, never used to choose"}
LABELS = {
    "loss": "total",
    "positive": "positive part",
    "negative": "negative part",
    "rank1": "rank-1",
    "auroc": "AUROC",
    "worst_task_auroc": "worst-task AUROC",
    "balanced_accuracy": "balanced accuracy",
    "worst_task_balanced_accuracy": "worst-task balanced accuracy",
}
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


def draw_learning(group: Group) -> Drawing:
    """Loss with its two parts, and the validation and monitored rates, by round."""
    panels = {stage: names for stage in STAGES if (names := _curve_names([group], stage))}
    if not panels:
        return None
    is_log = _spans_decades([group])
    figure = Figure(figsize=(3.7 * len(panels) + 0.6, 2.9))
    for axes, (stage, names) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
        lines = [(LABELS.get(name, name), group.curve(f"{stage}/{name}")) for name in names]
        colours = (BLACK, BLUE, ORANGE) if stage == "train" else COLOURS
        _draw_lines(axes, lines, colours, stage, is_log)
        axes.set_title(STAGES[stage])
        _name_line_ends(axes, lines, colours)
        best = group.spread("fit/best_round")
        if stage == "val" and best is not None and len(group.runs) == 1:
            axes.axvline(best.mean, color=GREY, linewidth=0.8, linestyle=":")
            place = {"transform": axes.get_xaxis_transform(), "ha": "right", "size": 7, "color": GREY}
            axes.text(best.mean, 0.02, f"best round {best.mean:.0f} ", **place)
    return figure


def draw_learning_by_group(groups: Sequence[Group]) -> Drawing:
    """One panel per metric (three per stage), one line per group."""
    panels = [(stage, name) for stage in STAGES for name in _curve_names(groups, stage)[:3]]
    if not panels:
        return None
    is_log = _spans_decades(groups)
    num_columns = min(3, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure = Figure(figsize=(3.3 * num_columns, 2.4 * num_rows + 0.07 * len(groups) + 0.3))
    grid = figure.subplots(num_rows, num_columns, squeeze=False).flat
    for axes, (stage, name) in zip(grid, panels, strict=False):
        _draw_lines(axes, [(group.name, group.curve(f"{stage}/{name}")) for group in groups], COLOURS, stage, is_log)
        head, _, remark = STAGES[stage].partition(", ")
        axes.set_title(f"{head}: {LABELS.get(name, name)}" + (f"\n({remark})" if remark else ""))
    for axes in list(grid)[len(panels) :]:
        axes.remove()
    for index, group in enumerate(groups):
        figure.axes[0].plot([], [], color=_colour(index), linestyle=_dash(index), label=_shorten(group.name, 48))
    figure.legend(loc="outside upper left", ncols=min(3, len(groups)))
    return figure


def draw_profiles(groups: Sequence[Group]) -> Drawing:
    """AUROC of every task, each group sorted from its worst to its best: how evenly the tasks are served."""
    figure = Figure(figsize=(6.5, 3.2))
    axes = figure.subplots()
    for index, group in enumerate(groups):
        means = [spread.mean for spread in group.task_spreads("auroc").values() if spread is not None]
        if means:
            look: dict[str, Any] = {"color": _colour(index), "linestyle": _dash(index), "markersize": 2.5}
            place = 100 * np.arange(1, len(means) + 1) / len(means)
            axes.plot(place, means, marker="o" if len(means) <= MAX_TASKS else "", label=_shorten(group.name, 48), **look)
    if not axes.lines:
        return None
    axes.set(xlabel="tasks, from worst to best, % of tasks", ylabel="AUROC, mean over seeds", xlim=(0, 101))
    axes.grid()
    figure.legend(loc="outside upper left", ncols=min(3, len(groups)))
    return figure


def draw_comparison(groups: Sequence[Group]) -> Drawing:
    """Every group in every metric of the table: one dot per run, a mark at the mean, a line of ± one deviation."""
    columns = [column for column in COLUMNS if any(group.spread(column.metric) for group in groups)]
    if not columns:
        return None
    num_columns = min(4, len(columns))
    num_rows = -(-len(columns) // num_columns)
    figure = Figure(figsize=(2.4 * num_columns + 1.2, num_rows * (0.85 + 0.26 * len(groups))))
    grid = figure.subplots(num_rows, num_columns, squeeze=False, sharey=True).flat
    for axes, column in zip(grid, columns, strict=False):
        is_bytes = column.metric.startswith("fit/bytes")
        factor = 100 if column.title.endswith("%") else 1e-6 if is_bytes else 1
        for row, group in enumerate(groups):
            spread = group.spread(column.metric)
            if spread is None:
                axes.text(0.5, row, "unknown", transform=axes.get_yaxis_transform(), ha="center", va="center", color=GREY)
                continue
            values = [value * factor for run in group.runs if (value := run.summary.get(column.metric)) is not None]
            look: dict[str, Any] = {"color": _colour(row), "markersize": 9, "linewidth": 1.2}
            axes.plot(values, [row] * len(values), "o", color=_colour(row), markersize=3.5, alpha=0.45, markeredgewidth=0)
            axes.errorbar(spread.mean * factor, row, xerr=(spread.deviation or 0) * factor, marker="|", **look)
        axes.set_title(f"{column.title}{', MB' if is_bytes else ''}", size=8, pad=13)
        wish = "higher is better" if column.higher_is_better else "lower is better"
        axes.text(0, 1.04, wish, transform=axes.transAxes, size=6.5, color=GREY)
        axes.margins(x=0.12)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        _name_rows(axes, [_shorten(group.name, 36) for group in groups], size=8)
    for axes in list(grid)[len(columns) :]:
        axes.remove()
    return figure


def draw_tasks(group: Group) -> Drawing:
    """AUROC and balanced accuracy of each task as bars from chance, worst first; whiskers are the range over seeds."""
    panels = {}
    for metric, title in (("auroc", "AUROC"), ("balanced_accuracy", "Balanced accuracy")):
        spreads = {task: spread for task, spread in group.task_spreads(metric).items() if spread is not None}
        if spreads:
            panels[title] = spreads
    if not panels:
        return None
    num_rows = max(len(_pick_extremes(spreads)) for spreads in panels.values())
    figure = Figure(figsize=(4.4 * len(panels), 0.9 + 0.165 * max(num_rows, 3)))
    for axes, (title, spreads) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
        _draw_bars(axes, spreads, is_percent=title != "AUROC")
        axes.set_title(f"{title}: the worst task is {_shorten(next(iter(spreads)))}")
        axes.set_xlabel(f"{title if title == 'AUROC' else 'balanced accuracy, %'} (bars start at chance)")
    return figure


def _draw_bars(axes: Axes, spreads: Mapping[str, Spread], *, is_percent: bool) -> None:
    shown = _pick_extremes(spreads)
    rows = [row for row, task in enumerate(shown) if task is not None]
    bars = [spreads[task] for task in shown if task is not None]
    means = np.array([spread.mean for spread in bars])
    colours = [RED] + [SKY] * (len(rows) - 1)
    # The edge keeps a bar at chance, which has no length, to be seen.
    axes.barh(rows, means - 0.5, left=0.5, height=0.72, color=colours, edgecolor=colours, linewidth=1.2)
    axes.axvline(0.5, color=GREY, linewidth=0.8, zorder=0.9)
    if any(spread.count > 1 for spread in bars):
        axes.hlines(rows, [spread.minimum for spread in bars], [spread.maximum for spread in bars], color=BLACK, linewidth=0.8)
    for row, mean in zip(rows, means, strict=True):
        text = f"{100 * mean:.1f}" if is_percent else f"{mean:.3f}"
        weight = "normal" if row else "bold"
        axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", size=6, weight=weight)
    axes.set_xlim(min(0.5, min(spread.minimum for spread in bars)) - 0.02, 1.0)
    if is_percent:
        axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=None))
    _name_rows(axes, shown, num_all=len(spreads))


def draw_holdings(group: Group) -> Drawing:
    """Positive training labels per client and task, outlined where the client trains the task; tasks by first trainer."""
    run = next((run for run in group.runs if run.federation is not None), None)
    if run is None or run.federation is None or run.federation.positives.size == 0:
        return None
    federation = run.federation
    num_clients, num_tasks = federation.positives.shape
    first_trainer = np.where(federation.assignment.any(0), federation.assignment.argmax(0), num_clients)
    order = np.argsort(first_trainer, kind="stable")
    positives, trained = federation.positives[:, order], federation.assignment[:, order]
    if num_clients > MAX_CLIENTS or num_tasks > MAX_TASKS:
        return _draw_binned_holdings(positives, trained)
    figure = Figure(figsize=(max(4.6, min(10.5, 2.2 + 0.24 * num_tasks)), 1.5 + 0.24 * num_clients))
    axes = figure.subplots()
    names = run.task_names(num_tasks)
    clients = [f"client {client} ({count:,} images)" for client, count in enumerate(federation.images)]
    texts = positives if positives.size <= 600 and positives.max() < 10_000 else None
    _draw_cells(axes, positives, _count_norm(positives), "positive labels", texts=texts)
    _name_cells(axes, clients, [names[task] for task in order])
    corners = [(task - 0.5, client - 0.5) for client, task in np.argwhere(trained)]
    boxes = [[(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1), (x, y)] for x, y in corners]
    axes.add_collection(LineCollection(boxes, colors=RED, linewidths=1.0, clip_on=False))
    axes.set_aspect("auto")
    axes.set_title("Positive labels held; outlined where trained")
    return figure


def _draw_binned_holdings(positives: Array, trained: Array) -> Figure:
    num_clients, num_tasks = positives.shape
    held, train, cells = (sum_bins(values, MAX_CLIENTS, MAX_TASKS) for values in (positives, trained, np.ones_like(positives)))
    share = 100 * train / cells
    figure = Figure(figsize=(9.0, 4.0))
    left, right = figure.subplots(1, 2)
    extent = (-0.5, num_tasks - 0.5, num_clients - 0.5, -0.5)
    _draw_cells(left, held, _count_norm(held), "positive labels, summed", extent=extent)
    _draw_cells(right, share, Normalize(0, share.max() or 1), "cells that are trained, %", extent=extent)
    left.set(title="Positive labels held", ylabel=f"clients (in {held.shape[0]} bins)")
    right.set(title="Trained")
    for axes in (left, right):
        axes.set_aspect("auto")
        axes.set_xlabel(f"tasks by first trainer (in {held.shape[1]} bins)")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


def draw_confusion(group: Group) -> Drawing:
    """True identity against the task with the highest score, in percent of each row; above 60 tasks the commonest confusions."""
    predictions = matching_predictions(group)
    counts = count_confusions(predictions)
    if counts is None:
        return None
    tasks = predictions[0].tasks
    if len(tasks) > MAX_TASKS:
        return _draw_confused_pairs(counts, tasks)
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 1.9 + 0.14 * max(len(tasks), 8)
    figure = Figure(figsize=(side + 0.7, side))
    axes = figure.subplots()
    # The square root keeps a single confusion among many images visible.
    _draw_cells(
        axes, percent, PowerNorm(0.5, 0, 100), "% of the identity's test images", texts=percent if len(tasks) <= 12 else None
    )
    _name_cells(axes, tasks, tasks)
    axes.set(xlabel="answer: task with the highest score", ylabel="true identity")
    return figure


def _draw_confused_pairs(counts: Array, tasks: Sequence[str]) -> Drawing:
    totals = counts.sum(1)
    wrong = [(counts[row, column], row, column) for row, column in np.argwhere(counts) if row != column]
    pairs = sorted(wrong, key=lambda pair: (-pair[0], totals[pair[1]]))[:NUM_WORST]
    if not pairs:
        return None
    figure = Figure(figsize=(6.5, 1.0 + 0.165 * max(len(pairs), 3)))
    axes = figure.subplots()
    axes.barh(range(len(pairs)), [count for count, _, _ in pairs], height=0.72, color=SKY)
    for place, (count, row, _) in enumerate(pairs):
        axes.text(1.02, place, f"{count} of {totals[row]}", transform=axes.get_yaxis_transform(), va="center", size=6)
    axes.set_title(f"The {len(pairs)} commonest of {len(wrong):,} confusions among {len(tasks):,} identities")
    axes.set_xlabel("test images")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    _name_rows(axes, [f"{_shorten(tasks[row])} taken for {_shorten(tasks[column])}" for _, row, column in pairs], length=60)
    return figure


def draw_separation(group: Group) -> Drawing:
    """Median score and its 10 to 90 % range, for positives and negatives of each task, the least separated first."""
    predictions = matching_predictions(group)
    tasks = predictions[0].tasks if predictions else ()
    ranges = {task: pair for index, task in enumerate(tasks) if (pair := measure_score_ranges(predictions, index)) is not None}
    if not ranges:
        return None
    shown = _pick_extremes(dict(sorted(ranges.items(), key=lambda item: float(item[1][0][1] - item[1][1][1]))))
    figure = Figure(figsize=(6.5, 1.1 + 0.165 * max(len(shown), 3)))
    axes = figure.subplots()
    for side, (colour, label, marker) in enumerate(((BLUE, "positives", "o"), (ORANGE, "negatives", "s"))):
        low, middle, high = np.array([ranges[task][side] for task in shown if task is not None]).T
        rows = np.array([row for row, task in enumerate(shown) if task is not None]) + (0.14 if side else -0.14)
        axes.hlines(rows, low, high, color=colour, linewidth=1.6, alpha=0.55)
        axes.plot(middle, rows, marker, color=colour, markersize=3, label=label)
    axes.axvline(0, color=GREY, linewidth=0.8, linestyle="--")
    axes.set_xlabel("decision score (above 0 is yes); median, and 10 to 90 % of the test images")
    _name_rows(axes, shown, num_all=len(ranges))
    figure.legend(loc="outside upper right", ncols=2, handlelength=1)
    return figure


def _curve_names(groups: Sequence[Group], stage: str) -> list[str]:
    """Names of `stage/name` (no task) that hold the loss, a part of it, or a rate in [0, 1]; known names first, at most six."""
    names = []
    keys = dict.fromkeys(key for group in groups for key in group.metrics if key.startswith(f"{stage}/") and key.count("/") == 1)
    for key in keys:
        name = key.removeprefix(f"{stage}/")
        spreads = [spread for group in groups for spread in group.curve(key).values()]
        is_rate = all(spread.minimum >= 0 and spread.maximum <= 1 for spread in spreads)
        if spreads and (name in PARTS if stage == "train" else is_rate and name not in PARTS):
            names.append(name)
    known = list(LABELS)
    return sorted(names, key=lambda name: known.index(name) if name in known else len(known))[:6]


def _spans_decades(groups: Sequence[Group]) -> bool:
    """Whether the losses need a logarithmic axis; one answer for all panels of a figure."""
    losses = [spread.mean for group in groups for name in PARTS for spread in group.curve(f"train/{name}").values()]
    return bool(losses) and min(losses) > 0 and max(losses) > 30 * min(losses)


def _draw_lines(axes: Axes, lines: Lines, colours: Sequence[str], stage: str, is_log: bool) -> None:
    for index, (_, curve) in enumerate(lines):
        if curve:
            rounds, means = list(curve), [spread.mean for spread in curve.values()]
            colour, marker = colours[index % len(colours)], "o" if len(rounds) == 1 else ""
            axes.plot(rounds, means, color=colour, linestyle=_dash(index), marker=marker, markersize=3)
            low, high = [spread.minimum for spread in curve.values()], [spread.maximum for spread in curve.values()]
            axes.fill_between(rounds, low, high, color=colour, alpha=0.15, linewidth=0)
    if stage == "train" and is_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="round", ylabel="loss" if stage == "train" else "rate")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.grid()


def _name_line_ends(axes: Axes, lines: Lines, colours: Sequence[str]) -> None:
    """Name each line at its right end, moving names apart where they would overlap."""
    ends = []
    for index, (label, curve) in enumerate(lines):
        if curve:
            last = list(curve)[-1]
            height = float((axes.transScale + axes.transLimits).transform((last, curve[last].mean))[1])
            ends.append((height, label, colours[index % len(colours)]))
    ends.sort()
    heights: list[float] = []
    for height, _, _ in ends:
        heights.append(max(height, heights[-1] + 0.075) if heights else height)
    excess = max(0.0, heights[-1] - 1.0) if heights else 0.0
    for height, (_, label, colour) in zip(heights, ends, strict=True):
        axes.text(1.02, height - excess, label, color=colour, transform=axes.transAxes, va="center", size=7.5)


def _draw_cells(
    axes: Axes, values: Array, norm: Normalize, label: str, *, texts: Array | None = None, extent: Any = None
) -> None:
    """A matrix in shades of blue, zero in white, with a scale, and a number in each cell where `texts` gives them."""
    image = axes.imshow(np.ma.masked_equal(values, 0), cmap="Blues", norm=norm, interpolation="nearest", extent=extent)
    if texts is not None:
        size = 5.5 if texts.max() < 1000 else 4
        for row, column in np.argwhere(values > 0):
            colour = "white" if float(norm(values[row, column])) > 0.6 else BLACK
            axes.text(column, row, f"{texts[row, column]:.0f}", ha="center", va="center", size=size, color=colour)
    axes.spines[:].set_visible(False)
    ticks: Any = [0, 5, 25, 50, 100] if isinstance(norm, PowerNorm) else None
    if type(norm) is Normalize:
        ticks = MaxNLocator(6, integer=values.dtype.kind in "iu")
    bar = axes.figure.colorbar(image, ax=axes, label=label, pad=0.015, aspect=25, shrink=0.9, ticks=ticks)
    bar.outline.set_visible(False)


def _name_cells(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Names and faint borders for the cells of a matrix."""
    axes.set_xticks(range(len(columns)), [_shorten(name, 18) for name in columns], rotation=90, size=6.5)
    axes.set_yticks(range(len(rows)), [_shorten(name, 30) for name in rows], size=6.5)
    axes.set_xticks(np.arange(-0.5, len(columns)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(rows)), minor=True)
    axes.grid(which="minor", color="#eeeeee", linewidth=0.5)
    axes.tick_params(which="both", length=0)


def _name_rows(axes: Axes, rows: Sequence[str | None], *, num_all: int = 0, size: float = 6.5, length: int = 40) -> None:
    """Names of horizontal rows, the first at the top; None is the gap for those that are not shown."""
    named = [(place, _shorten(row, length)) for place, row in enumerate(rows) if row is not None]
    axes.set_yticks([place for place, _ in named], [row for _, row in named], size=size)
    if None in rows:
        text = f"{num_all - len(named):,} tasks between"
        at_left = axes.get_yaxis_transform()
        axes.text(0.05, rows.index(None), text, transform=at_left, va="center", color=GREY, size=6.5, style="italic")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)


def _pick_extremes(ordered: Mapping[str, Any]) -> list[str | None]:
    """Keys from worst to best; where there are too many, None stands for those between."""
    keys: list[str | None] = list(ordered)
    return keys if len(keys) <= NUM_WORST + NUM_BEST else [*keys[:NUM_WORST], None, *keys[-NUM_BEST:]]


def _count_norm(counts: Array) -> Normalize:
    held = counts[counts > 0]
    if len(held) and held.max() > 50 * held.min():
        return LogNorm(held.min(), held.max())
    return Normalize(0, max(1, counts.max()))


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _dash(index: int) -> str:
    return DASHES[index // len(COLOURS) % len(DASHES)]


def _shorten(text: str, length: int = 26) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
