"""Figures over the rounds and of several groups: learning curves, profiles of the tasks, comparisons.

One function per figure, from groups of runs to a matplotlib `Figure`, None without data. With several seeds a curve is the mean and
its band the range over seeds.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mtl.report.groups import Group, Spread
from mtl.report.style import (
    BLACK,
    BLUE,
    COLOURS,
    GREY,
    MAX_GROUPS,
    ORANGE,
    Drawing,
    Look,
    Prefixed,
    add_legend,
    name_rows,
    pick_colour,
    pick_line,
    set_log_ticks,
    shorten_apart,
)
from mtl.report.tables import Column, columns_of, decimal_multiple

Lines = Sequence[tuple[str, dict[int, Spread]]]
MAX_MARKED = 60  # tasks that still get a dot each
JUDGED = tuple(f"{stage}/{name}" for name in ("named", "ap50", "rank1", "auroc") for stage in ("val", "monitor"))
COSTS = (
    ("sent and received by all clients", ("fit/bytes_up", "fit/bytes_down"), "B"),
    ("modelled time", ("cost/modelled_seconds",), "s"),
    ("modelled energy of all clients", ("cost/modelled_joules",), "J"),
)
PARTS = ("loss", "positive", "negative")
STAGES = {"train": "Training loss", "val": "Validation", "monitor": "Monitored, never used to choose"}
LABELS = {
    "loss": "total",
    "positive": "positive part",
    "negative": "negative part",
    "named": "faces named",
    "ap50": "AP at overlap 0.5",
    "found": "faces found",
    "precision": "precision",
    "rank1": "rank-1",
    "auroc": "AUROC",
    "worst_task_auroc": "worst-task AUROC",
    "balanced_accuracy": "balanced accuracy",
    "worst_task_balanced_accuracy": "worst-task balanced accuracy",
}


def draw_learning(group: Group) -> Drawing:
    """Draw the loss with its two parts, and the validation and monitored rates, by round."""
    panels = {stage: names for stage in STAGES if (names := _curve_names([group], stage))}
    if not panels:
        return None
    is_log = _spans_decades([group])
    figure = Figure(figsize=(3.7 * len(panels) + 0.6, 2.9))
    for axes, (stage, names) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
        lines = [(LABELS.get(name, name), group.curve(f"{stage}/{name}")) for name in names]
        colours = (BLACK, BLUE, ORANGE) if stage == "train" else COLOURS
        _draw_lines(axes, lines, [{"color": colour} for colour in colours], stage, is_log)
        axes.set_title(STAGES[stage])
        _name_line_ends(axes, lines, colours)
        best = group.spread("fit/best_round")
        if stage == "val" and best is not None and len(group.runs) == 1:
            axes.axvline(best.mean, color=GREY, linewidth=0.8, linestyle=":")
            place = {"transform": axes.get_xaxis_transform(), "ha": "right", "size": 7, "color": GREY}
            axes.text(best.mean, 0.02, f"best round {best.mean:.0f} ", **place)
    return figure


def draw_learning_by_group(groups: Sequence[Group]) -> Drawing:
    """Draw one panel per metric (three per stage) with one line per group, of the first `MAX_GROUPS`."""
    groups = groups[:MAX_GROUPS]
    panels = [(stage, name) for stage in STAGES for name in _curve_names(groups, stage)[:3]]
    if not panels:
        return None
    is_log = _spans_decades(groups)
    num_columns = min(3, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure = Figure(figsize=(3.3 * num_columns, 2.4 * num_rows + 0.3))
    grid = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for axes, (stage, name) in zip(grid, panels, strict=False):
        lines = [(group.name, group.curve(f"{stage}/{name}")) for group in groups]
        _draw_lines(axes, lines, [pick_line(index) for index in range(len(groups))], stage, is_log)
        head, _, remark = STAGES[stage].partition(", ")
        axes.set_title(f"{head}: {LABELS.get(name, name)}" + (f"\n({remark})" if remark else ""))
    for axes in grid[len(panels) :]:
        axes.remove()
    add_legend(figure, [group.name for group in groups], [pick_line(index) for index in range(len(groups))])
    return figure


def draw_costs(groups: Sequence[Group]) -> Drawing:
    """Draw the rate that a run is judged by against its cost so far: bytes on the link, modelled seconds, modelled joules.

    With modelled costs the first panel is by round. A dotted line is the target of the runs. Only the first `MAX_GROUPS` groups are drawn.
    """
    groups = groups[:MAX_GROUPS]
    chosen = [f"val/{run.config.get('best_by')}" for group in groups for run in group.runs]
    judged = next((name for name in (*chosen, *JUDGED) if any(group.curve(name) for group in groups)), None)
    if judged is None:
        return None
    panels: list[tuple[str, str, list[list[tuple[float, Spread]]]]] = []
    for label, metrics, unit in COSTS:
        lines = [_cost_line(group, judged, metrics) for group in groups]
        # What one group has paid before its first round tells nothing over the rounds.
        if any(any(x for x, _ in line) for line in lines) and (len(groups) > 1 or len({x for x, _ in lines[0]}) > 1):
            panels.append((label, unit, lines))
    if not panels:
        return None
    if any("modelled" in label for label, _, _ in panels):
        panels.insert(0, ("round", "", [list(group.curve(judged).items()) for group in groups]))
    figure = Figure(figsize=((3.3 if len(panels) < 4 else 2.7) * len(panels) + 0.6, 2.7))
    stage, _, name = judged.partition("/")
    targets = {run.target for group in groups for run in group.runs if run.target is not None}
    for axes, (label, unit, lines) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        scale, prefix = decimal_multiple(max(x for line in lines for x, _ in line)) if unit else (1.0, "")
        for index, line in enumerate(lines):
            xs, spreads = [x / scale for x, _ in line], [spread for _, spread in line]
            axes.plot(xs, [spread.mean for spread in spreads], **pick_line(index, marked=True))
            low, high = [spread.minimum for spread in spreads], [spread.maximum for spread in spreads]
            axes.fill_between(xs, low, high, color=pick_colour(index), alpha=0.15, linewidth=0)
        for target in targets:
            axes.axhline(target, color=GREY, linewidth=0.8, linestyle=":")
        axes.set(
            xlabel=f"{label}, {prefix}{unit}" if unit else label,
            ylabel=f"{LABELS.get(name, name)}, {STAGES[stage].lower().partition(',')[0]}",
        )
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid()
    if len(groups) > 1:
        add_legend(figure, [group.name for group in groups], [pick_line(index, marked=True) for index in range(len(groups))])
    return figure


def _cost_line(group: Group, judged: str, metrics: Sequence[str]) -> list[tuple[float, Spread]]:
    """The summed means of some metrics, and the rate, at the rounds that have them all."""
    costs, rate = [group.curve(metric) for metric in metrics], group.curve(judged)
    rounds = [number for number in rate if all(number in cost for cost in costs)]
    return [(sum(cost[number].mean for cost in costs), rate[number]) for number in rounds]


def draw_profiles(groups: Sequence[Group]) -> Drawing:
    """Draw the AUROC of every task, each group sorted from its worst to its best: how evenly the tasks are served.

    Only the first `MAX_GROUPS` groups are drawn.
    """
    figure = Figure(figsize=(6.5, 3.0))
    axes = figure.subplots()
    looks: dict[str, Look] = {}
    for index, group in enumerate(groups[:MAX_GROUPS]):
        means = [spread.mean for spread in group.task_spreads("auroc").values() if spread is not None]
        if means:
            looks[group.name] = pick_line(index, marked=len(means) <= MAX_MARKED)
            axes.plot(100 * np.arange(1, len(means) + 1) / len(means), means, **looks[group.name])
    if not looks:
        return None
    axes.set(xlabel="tasks, from worst to best, % of tasks", ylabel="AUROC, mean over seeds", xlim=(0, 101))
    axes.grid()
    add_legend(figure, list(looks), list(looks.values()))
    return figure


def draw_comparison(groups: Sequence[Group]) -> Drawing:
    """Draw every group in every metric of the table: one dot per run, a mark at the mean, a line of ± one deviation.

    Only the first `MAX_GROUPS` groups are drawn.
    """
    groups = groups[:MAX_GROUPS]
    columns = [column for column in columns_of(groups) if any(group.spread(column.metric) for group in groups)]
    if not columns:
        return None
    num_columns = min(4, len(columns))
    num_rows = -(-len(columns) // num_columns)
    row_height, size = (0.26, 7.0) if len(groups) <= 30 else (0.15, 6.5)
    figure = Figure(figsize=(2.2 * num_columns + 2.4, num_rows * (0.85 + row_height * len(groups))))
    grid = list(figure.subplots(num_rows, num_columns, squeeze=False, sharey=True).flat)
    names = shorten_apart([group.name for group in groups], 48)
    for axes, column in zip(grid, columns, strict=False):
        _draw_column(axes, groups, column)
        name_rows(axes, names, size=size, length=60)
    for axes in grid[len(columns) :]:
        axes.remove()
    return figure


def _draw_column(axes: Axes, groups: Sequence[Group], column: Column) -> None:
    is_bytes = column.metric.startswith("fit/bytes")
    factor = 100 if column.title.endswith("%") else 1
    spreads = {row: spread for row, group in enumerate(groups) if (spread := group.spread(column.metric)) is not None}
    for row in sorted(set(range(len(groups))) - set(spreads)):
        axes.text(0.5, row, "unknown", transform=axes.get_yaxis_transform(), ha="center", va="center", size=6.5, color=GREY)
    dots = [(run.summary.get(column.metric), row) for row in spreads for run in groups[row].runs]
    values, rows = zip(*((value * factor, row) for value, row in dots if value is not None), strict=True)
    axes.scatter(values, rows, s=14, c=[pick_colour(row) for row in rows], alpha=0.45, linewidth=0)
    means, colours = [spread.mean * factor for spread in spreads.values()], [pick_colour(row) for row in spreads]
    reach = [(spread.deviation or 0) * factor for spread in spreads.values()]
    low, high = [m - r for m, r in zip(means, reach, strict=True)], [m + r for m, r in zip(means, reach, strict=True)]
    axes.hlines(list(spreads), low, high, colors=colours, linewidth=1.2)
    axes.scatter(means, list(spreads), s=80, c=colours, marker="|", linewidth=1.2)
    unit = "B" if is_bytes else "J" if "joules" in column.metric else ""
    axes.set_title(column.title, size=8, pad=13)
    wish = "higher is better" if column.higher_is_better else "lower is better"
    axes.annotate(wish, (0, 1), (0, 3), xycoords="axes fraction", textcoords="offset points", size=6.5, color=GREY)
    axes.margins(x=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    if unit or max(means) >= 10_000:
        axes.xaxis.set_major_formatter(Prefixed(unit))


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


def _draw_lines(axes: Axes, lines: Lines, looks: Sequence[Look], stage: str, is_log: bool) -> None:
    for (_, curve), look in zip(lines, looks, strict=False):
        if curve:
            rounds, means = list(curve), [spread.mean for spread in curve.values()]
            alone = {"marker": look.get("marker") or "o", "markersize": 3} if len(rounds) == 1 else {}
            axes.plot(rounds, means, **look | {"markevery": max(len(rounds) // 8, 1)} | alone)
            low, high = [spread.minimum for spread in curve.values()], [spread.maximum for spread in curve.values()]
            axes.fill_between(rounds, low, high, color=look["color"], alpha=0.15, linewidth=0)
    if stage == "train" and is_log:
        axes.set_yscale("log")
        set_log_ticks(axes.yaxis, *axes.get_ylim())
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
