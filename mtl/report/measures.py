"""Numbers behind the figures of decisions: confusions, score ranges, precision and recall, and large matrices summed into bins."""

from collections.abc import Sequence

import numpy as np

from mtl.report.groups import Group
from mtl.report.run_files import Array, Predictions


def matching_predictions(group: Group) -> list[Predictions]:
    """The predictions of the runs that have the same tasks as the first one, so that their columns may be pooled."""
    every = [run.predictions for run in group.runs if run.predictions is not None]
    return [predictions for predictions in every if predictions.tasks == every[0].tasks]


def count_confusions(predictions: Sequence[Predictions]) -> Array | None:
    """Count true identities against the tasks with the highest score.

    Of n equal highest scores each counts 1/n, as in `rank1`; an image with a score that is NaN is left out.

    Args:
        predictions: of runs with the same tasks.

    Returns:
        Float [P, P], true identity by answer, over the P tasks that exclude one another; None where no image has an identity.
    """
    number = predictions[0].num_exclusive if predictions else 0
    counts = np.zeros((number, number))
    for one in predictions:
        scores = one.scores[:, :number]
        known = (one.identity >= 0) & ~np.isnan(scores).any(1)
        if known.any():
            highest = scores[known] == scores[known].max(1, keepdims=True)
            np.add.at(counts, one.identity[known], highest / highest.sum(1, keepdims=True))
    return counts if counts.any() else None


def measure_score_ranges(predictions: Sequence[Predictions], task: int) -> tuple[Array, Array] | None:
    """Measure how far the scores of one task's positives and negatives reach.

    Args:
        predictions: of runs with the same tasks.
        task: column of the scores.

    Returns:
        The 10 %, 50 % and 90 % quantiles, [3], of the known positives' scores and of the negatives'; None where either has no score.
    """
    ranges = []
    for target in (True, False):
        chosen = [one.scores[one.known[:, task] & (one.targets[:, task] == target), task] for one in predictions]
        scores = np.concatenate(chosen).astype(np.float64)
        scores = scores[np.isfinite(scores)]
        if len(scores) == 0:
            return None
        ranges.append(np.quantile(scores, [0.1, 0.5, 0.9]))
    return ranges[0], ranges[1]


def precision_recall(scores: Array, hits: Array, num_faces: int) -> tuple[Array, Array, Array]:
    """Precision and recall of found faces, as the score from which one counts falls.

    Args:
        scores: [D], of the found faces.
        hits: bool [D], whether each matches one of the true faces.
        num_faces: number of true faces.

    Returns:
        Precision, recall and the lowest score that counts, each [V]; equal scores give one point.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    right = np.cumsum(hits[order])
    last = np.append(ordered[1:] != ordered[:-1], True)
    return (right / np.arange(1, len(scores) + 1))[last], (right / num_faces)[last], ordered[last]


def sum_bins(values: Array, max_rows: int, max_columns: int) -> Array:
    """Sum a matrix into at most [max_rows, max_columns] bins of neighbouring rows and columns."""
    for axis, count in enumerate((max_rows, max_columns)):
        edges = np.linspace(0, values.shape[axis], min(count, values.shape[axis]) + 1).astype(int)[:-1]
        values = np.add.reduceat(values.astype(np.int64), edges, axis=axis)
    return values
