"""What multi-task training did to the tasks: compared with training each alone, and with one another."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from mtl.report.groups import Group, Spread
from mtl.report.maps import map_side
from mtl.report.style import BLUE, GREY, ORANGE, Drawing, shorten

MAX_TASKS = 60


def delta_m(joint: Mapping[str, float | None], single: Mapping[str, float | None], *, higher_is_better: bool = True) -> float:
    """Mean relative loss over the tasks in percent; below zero, joint training helps.

    Delta_m = 100 mean((single - joint) / single) where higher values are better, the opposite where lower ones are, as CAGrad, Nash-MTL
    and FAMO print it. Maninis et al. ("Attentive single-tasking of multiple tasks", CVPR 2019, equation 4) and LibMTL
    (`count_improvement`) have the opposite sign; LibMTL's is a share, not percent, and a mean over the metrics of each task first.

    Args:
        joint: value of each task after joint training.
        single: value of each task trained alone.
        higher_is_better: whether a higher value is better.

    Raises:
        ValueError: a task has a value on one side only, or its single value is 0.
    """
    if joint.keys() != single.keys():
        raise ValueError(f"tasks must be the same on both sides, got {sorted(joint.keys() ^ single.keys())} on one only")
    changes = []
    for task, value in joint.items():
        base = single[task]
        if value is None and base is None:
            continue
        if value is None or not base:
            raise ValueError(f"task {task} must have a value on both sides, not 0 alone, got {value} and {base} alone")
        changes.append((base - value) / base if higher_is_better else (value - base) / base)
    if not changes:
        raise ValueError("at least one task must have a value, got none")
    return 100 * sum(changes) / len(changes)


def group_delta_m(group: Group, single: Group, metric: str = "auroc") -> float:
    """`delta_m` of a group of runs against runs of single tasks, each task's value a mean over the seeds.

    Args:
        group: runs of joint training.
        single: runs of each task alone.
        metric: compared for each task, higher is better.
    """

    def means(spreads: Mapping[str, Spread | None]) -> dict[str, float | None]:
        return {task: None if spread is None else spread.mean for task, spread in spreads.items()}

    return delta_m(means(group.task_spreads(metric)), means(single.task_spreads(metric)))


def draw_conflict(group: Group) -> Drawing:
    """Draw the mean cosine of each pair of tasks' gradients, and its mean and the share of conflicting pairs over the rounds."""
    run = next((run for run in group.runs if run.conflict is not None), None)
    if run is None or run.conflict is None or not run.conflict.steps.any():
        return None
    conflict = run.conflict
    met = conflict.steps.sum(1) > 0
    worst_first = np.argsort(
        np.where(met, -(conflict.conflicting * conflict.steps).sum(1) / np.maximum(conflict.steps.sum(1), 1), 1)
    )
    shown = worst_first[: min(int(met.sum()), MAX_TASKS)]
    cosine = np.ma.masked_where(conflict.steps == 0, conflict.cosine)[np.ix_(shown, shown)]
    side = map_side(len(shown))
    figure = Figure(figsize=(2 * side + 0.7, side))
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    limit = float(np.abs(cosine).max()) or 1.0
    image = left.imshow(cosine, cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
    left.set_xticks(range(len(shown)), [shorten(str(name), 18) for name in conflict.tasks[shown]], rotation=90, size=6)
    left.set_yticks(range(len(shown)), [shorten(str(name), 18) for name in conflict.tasks[shown]], size=6)
    left.tick_params(length=0)
    left.spines[:].set_visible(False)
    figure.colorbar(image, ax=left, label="mean cosine of the gradients", pad=0.015, aspect=25, shrink=0.9).outline.set_visible(
        False
    )
    for metric, colour, label in (
        ("conflict/cosine", BLUE, "mean cosine"),
        ("conflict/share", ORANGE, "share of conflicting pairs"),
    ):
        curve = group.curve(metric)
        right.plot(list(curve), [spread.mean for spread in curve.values()], color=colour, label=label)
    right.axhline(0, color=GREY, linewidth=0.8, linestyle="--")
    right.set_xlabel("round")
    right.legend()
    return figure
