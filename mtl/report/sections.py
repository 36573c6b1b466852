"""The figures of one group of runs in their order on its page, with their captions."""

from collections.abc import Callable
from dataclasses import dataclass

from mtl.report import curves, detection, maps, multitask, style
from mtl.report.groups import Group, flatten

COSTS_CAPTION = (
    "The judged rate against what it had cost until then, with a fleet also by round; dotted, the target. Bytes are counted; seconds and "
    "joules are modelled from device profiles, not measured."
)


@dataclass(frozen=True)
class Section:
    """One figure of a group.

    Attributes:
        name: of the picture's file.
        title: heading on the page.
        draw: draws the figure, None where the runs hold nothing for it.
        caption: what the figure shows.
        over_seeds: added to the caption where there are several seeds.
        needed: whether a group should have the figure; the page then says so where it is missing.
    """

    name: str
    title: str
    draw: Callable[[Group], style.Drawing]
    caption: str
    over_seeds: str
    needed: Callable[[Group], bool] = lambda group: True


def _pays_by_round(group: Group) -> bool:
    """A federation sends in every round; the images of centralised training are sent once."""
    return group.runs[0].config.get("mode") not in ("centralised", "detection")


def _has_identities(group: Group) -> bool:
    return any(run.predictions is not None and (run.predictions.identity >= 0).any() for run in group.runs)


def _compares_gradients(group: Group) -> bool:
    return any(run.conflict is not None or flatten(run.config).get("balance.conflict") is True for run in group.runs)


def _detects(group: Group) -> bool:
    return any(run.detections is not None or run.config.get("mode") == "detection" for run in group.runs)


SECTIONS = (
    Section(
        "learning",
        "Learning",
        curves.draw_learning,
        "Every task's loss is the sum of a positive and a negative part.",
        "Lines are means over the seeds at the rounds they all have, bands their range.",
    ),
    Section(
        "costs",
        "What it costs",
        lambda group: curves.draw_costs([group]),
        COSTS_CAPTION,
        "Lines are means over the seeds, bands their range.",
        _pays_by_round,
    ),
    Section(
        "detection",
        "Faces found",
        detection.draw_precision_recall,
        "Precision and recall of the faces found in the test scenes, as the score from which one counts falls; a face stands for a true "
        "one where they overlap by at least one half. The dot is at the confidence of the run.",
        "One line per run.",
        _detects,
    ),
    Section(
        "scenes",
        "Test scenes",
        detection.draw_scenes,
        "Some of the test scenes, with the faces that are surer than the confidence of the run, and those that were missed.",
        "Shown for the first run.",
        _detects,
    ),
    Section(
        "tasks",
        "Tasks",
        maps.draw_tasks,
        "Each panel has its own order, the worst task first and in vermilion.",
        "Bars are means over the seeds, whiskers their range.",
    ),
    Section(
        "holdings",
        "Who holds and who trains what",
        maps.draw_holdings,
        "Positive training labels that each client holds, white where none; outlined where the client trains the task. "
        "Tasks are ordered by the first client that trains them.",
        "Shown for the first run.",
    ),
    Section(
        "confusion",
        "Who is taken for whom",
        maps.draw_confusion,
        "How the test images of each identity are spread over the answers. Images of nobody known are left out.",
        "Pooled over the seeds.",
        _has_identities,
    ),
    Section(
        "conflict",
        "Tasks against one another",
        multitask.draw_conflict,
        "How far the tasks' gradients point the same way: red pairs pull against each other. Tasks in most conflict come first.",
        "The map is that of the first run.",
        _compares_gradients,
    ),
    Section(
        "separation",
        "Separation of scores",
        maps.draw_separation,
        "How far the scores of a task's positives lie from those of its negatives, by their medians and 10 to 90 % of the test images; "
        "the least separated task comes first.",
        "Pooled over the seeds.",
    ),
)
