"""What one group of runs shows of its tasks and clients: bars, who holds what, confusions, separation of scores.

One function per figure, from a group to a matplotlib `Figure`, None without data. Above 45 tasks the 40 worst and the 5 best are
shown; larger maps are summed into bins.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mtl.report.groups import Group, Spread
from mtl.report.measures import count_confusions, matching_predictions, measure_score_ranges, sum_bins
from mtl.report.run_files import Array
from mtl.report.style import BLACK, BLUE, GREY, ORANGE, RED, SKY, Drawing, name_rows, set_log_ticks, shorten

NUM_WORST, NUM_BEST = 40, 5
MAX_CLIENTS, MAX_TASKS = 48, 60


def draw_tasks(group: Group) -> Drawing:
    """Draw AUROC and balanced accuracy of each task as bars from chance, worst first; whiskers are the range over seeds."""
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
        axes.set_title(title)
        axes.set_xlabel("bars start at chance" if title == "AUROC" else "%, bars start at chance")
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
    name_rows(axes, shown, num_all=len(spreads), length=32)


def draw_holdings(group: Group) -> Drawing:
    """Draw positive training labels per client and task, outlined where the client trains the task; tasks by first trainer."""
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
    axes.set_title("Positive labels; outlined where trained")
    return figure


def _draw_binned_holdings(positives: Array, trained: Array) -> Figure:
    num_clients, num_tasks = positives.shape
    labels, train, cells = (sum_bins(values, MAX_CLIENTS, MAX_TASKS) for values in (positives, trained, np.ones_like(positives)))
    share = 100 * train / cells
    figure = Figure(figsize=(9.0, 4.0))
    left, right = figure.subplots(1, 2)
    extent = (-0.5, num_tasks - 0.5, num_clients - 0.5, -0.5)
    _draw_cells(left, labels, _count_norm(labels), "positive labels, summed", extent=extent)
    _draw_cells(right, share, Normalize(0, share.max() or 1), "cells that are trained, %", extent=extent)
    left.set(title="Positive labels", ylabel=f"clients (in {labels.shape[0]} bins)")
    right.set(title="Trained")
    for axes in (left, right):
        axes.set_aspect("auto")
        axes.set_xlabel(f"tasks by first trainer (in {labels.shape[1]} bins)")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


def draw_confusion(group: Group) -> Drawing:
    """Draw identity against the task with the highest score, in percent of each row; above 60 tasks the commonest confusions."""
    predictions = matching_predictions(group)
    counts = count_confusions(predictions)
    if counts is None:
        return None
    tasks = predictions[0].tasks[: len(counts)]
    if len(tasks) > MAX_TASKS:
        return _draw_confused_pairs(counts, tasks)
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = map_side(len(tasks))
    figure = Figure(figsize=(side + 1.0, side))
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
        axes.text(1.02, place, f"{count:g} of {totals[row]:g}", transform=axes.get_yaxis_transform(), va="center", size=6)
    title = f"The {len(pairs)} commonest of {len(wrong):,} confusions among {len(tasks):,} identities"
    figure.suptitle(title, x=0.01, ha="left", size=9)
    axes.set_xlabel("test images")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    name_rows(axes, [f"{shorten(tasks[row])} taken for {shorten(tasks[column])}" for _, row, column in pairs], length=60)
    return figure


def draw_separation(group: Group) -> Drawing:
    """Draw median score and its 10 to 90 % range, for positives and negatives of each task, the least separated first."""
    predictions = matching_predictions(group)
    tasks = predictions[0].tasks if predictions else ()
    ranges = {task: pair for index, task in enumerate(tasks) if (pair := measure_score_ranges(predictions, index)) is not None}
    if not ranges:
        return None
    shown = _pick_extremes(dict(sorted(ranges.items(), key=lambda item: float(item[1][0][1] - item[1][1][1]))))
    figure = Figure(figsize=(6.5, 1.1 + 0.165 * max(len(shown), 3)))
    axes = figure.subplots()
    for side, (colour, label, marker) in enumerate(((BLUE, "positives: median, 10 to 90 %", "o"), (ORANGE, "negatives", "s"))):
        low, middle, high = np.array([ranges[task][side] for task in shown if task is not None]).T
        rows = np.array([row for row, task in enumerate(shown) if task is not None]) + (0.14 if side else -0.14)
        axes.hlines(rows, low, high, color=colour, linewidth=1.6, alpha=0.55)
        axes.plot(middle, rows, marker, color=colour, markersize=3, label=label)
    axes.axvline(0, color=GREY, linewidth=0.8, linestyle="--")
    axes.set_xlabel("decision score, above 0 is yes")
    name_rows(axes, shown, num_all=len(ranges))
    figure.legend(loc="outside upper right", ncols=2, handlelength=1)
    return figure


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
    if isinstance(norm, LogNorm):
        set_log_ticks(bar.ax.yaxis, *bar.ax.get_ylim(), "{x:,g}")
    bar.outline.set_visible(False)


def map_side(num_tasks: int) -> float:
    """Inches for a square of tasks against tasks, with room for their names and the labels along its sides."""
    return 1.7 + max(2.2, 0.14 * num_tasks)


def _name_cells(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Names and faint borders for the cells of a matrix."""
    axes.set_xticks(range(len(columns)), [shorten(name, 18) for name in columns], rotation=90, size=6.5)
    axes.set_yticks(range(len(rows)), [shorten(name, 30) for name in rows], size=6.5)
    axes.set_xticks(np.arange(-0.5, len(columns)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(rows)), minor=True)
    axes.grid(which="minor", color="#eeeeee", linewidth=0.5)
    axes.tick_params(which="both", length=0)


def _pick_extremes(ordered: Mapping[str, Any]) -> list[str | None]:
    """Keys from worst to best; where there are too many, None stands for those between."""
    keys: list[str | None] = list(ordered)
    return keys if len(keys) <= NUM_WORST + NUM_BEST else [*keys[:NUM_WORST], None, *keys[-NUM_BEST:]]


def _count_norm(counts: Array) -> Normalize:
    positive = counts[counts > 0]
    if len(positive) and positive.max() > 50 * positive.min():
        return LogNorm(positive.min(), positive.max())
    return Normalize(0, max(1, counts.max()))
