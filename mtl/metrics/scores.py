"""How well the scores answer the subtasks. Scores rise with belief and say yes above zero."""

from collections.abc import Sequence

import torch
from torch import Tensor

Metrics = dict[str, float | None]
Summary = dict[str, float | str | None]  # of a run: metrics, and in fit/chosen_by the name of one


def evaluate_scores(
    scores: Tensor, targets: Tensor, known: Tensor, identity: Tensor, names: tuple[str, ...], num_exclusive: int
) -> Metrics:
    """Rank-1 accuracy, AUROC and balanced accuracy of scores: over all subtasks, of the worst one, and of each.

    A subtask without a known positive or without a known negative has no AUROC and no balanced accuracy: its value is None, and means
    and worst leave it out.

    Args:
        scores: [N, T].
        targets: bool [N, T].
        known: bool [N, T], where the label is known.
        identity: int64 [N], which of the first `num_exclusive` subtasks the image is a positive of, or -1.
        names: of the subtasks.
        num_exclusive: how many subtasks, the first ones, exclude one another.

    Returns:
        `rank1` (where identities are known), `auroc`, `balanced_accuracy`, their `worst_task_`, their means over the `attributes_`, the
        subtasks behind the exclusive ones, and their values per subtask as `<task>/auroc`.

    Raises:
        ValueError: where a score is NaN, with the names of its subtasks.
    """
    _refuse_nan(scores, names)
    values: dict[str, list[float]] = {
        "auroc": auroc(scores, targets, known).tolist(),
        "balanced_accuracy": balanced_accuracy(scores, targets, known).tolist(),
    }
    metrics: Metrics = {}
    if bool((identity >= 0).any()):
        metrics["rank1"] = rank1(scores[:, :num_exclusive], identity)
    for name, of_tasks in values.items():
        defined = [value for value in of_tasks if value == value]
        metrics[name] = sum(defined) / len(defined) if defined else None
        metrics[f"worst_task_{name}"] = min(defined, default=None)
        of_attributes = [value for value in of_tasks[num_exclusive:] if value == value]
        if num_exclusive and of_attributes:
            metrics[f"attributes_{name}"] = sum(of_attributes) / len(of_attributes)
        metrics |= {f"{task}/{name}": value if value == value else None for task, value in zip(names, of_tasks, strict=True)}
    return metrics


def worst_clients(metrics: Metrics, tasks: Sequence[str], assignment: Tensor) -> float | None:
    """Mean AUROC of the worst tenth of the clients, at least one (as in q-FFL, Li et al., ICLR 2020).

    The AUROC of a client is the mean over the subtasks that it trains.

    Args:
        metrics: of `evaluate_scores`.
        tasks: names of the subtasks.
        assignment: bool [C, T], which client trains which subtasks.
    """
    areas = [metrics[f"{task}/auroc"] for task in tasks]
    of_clients = []
    for trained in assignment.tolist():
        target = [area for area, is_trained in zip(areas, trained, strict=True) if is_trained and area is not None]
        if target:
            of_clients.append(sum(target) / len(target))
    worst = sorted(of_clients)[: max(len(of_clients) // 10, 1)]
    return sum(worst) / len(worst) if worst else None


def rank1(scores: Tensor, identity: Tensor) -> float:
    """Share of the images of known identity that score highest on their own subtask.

    Of n equal highest scores each counts as 1/n, what a draw by lot would give on average: constant scores give 1/P, wherever a person
    is in the list.

    Args:
        scores: [N, P].
        identity: int64 [N], -1 where unknown.

    Raises:
        ValueError: where a score is NaN.
    """
    at_hand = identity >= 0
    return float(share_of_highest(scores[at_hand], identity[at_hand]).mean())


def share_of_highest(scores: Tensor, target: Tensor) -> Tensor:
    """For each row, 1/n where the score of its target column is one of the n equal highest, else 0; float64 [N].

    Args:
        scores: [N, P].
        target: int64 [N], the column that should win.

    Raises:
        ValueError: where a score is NaN.
    """
    _refuse_nan(scores)
    highest = scores == scores.amax(1, keepdim=True)
    return highest.gather(1, target[:, None])[:, 0].double() / highest.sum(1)


def auroc(scores: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """Area under the ROC curve of each subtask, float64 [T]; NaN where a subtask has known labels of one kind only.

    The share of the pairs of a known positive and a known negative in which the positive scores higher, equal scores counting a half
    (Hanley & McNeil 1982). Only the order within a subtask matters, so any scale serves, infinities too.

    Args:
        scores: [N, T].
        targets: bool [N, T].
        known: bool [N, T], where the label is known.

    Raises:
        ValueError: where a score is NaN.
    """
    _refuse_nan(scores)
    areas = torch.full((scores.shape[1],), torch.nan, dtype=torch.float64)
    for t in _two_sided(targets, known).nonzero().flatten().tolist():
        positives, negatives = _sorted_kinds(scores[:, t], targets[:, t], known[:, t])
        below, not_above = (torch.searchsorted(negatives, positives, right=right).sum() for right in (False, True))
        areas[t] = (below + not_above).double() / (2 * len(positives) * len(negatives))
    return areas


def balanced_accuracy(scores: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """Mean of the true positive and true negative rate, float64 [T]; NaN where one kind of label is missing.

    Yes is above zero: a score of exactly zero says no.

    Args:
        scores: [N, T].
        targets: bool [N, T].
        known: bool [N, T], where the label is known.

    Raises:
        ValueError: where a score is NaN.
    """
    _refuse_nan(scores)
    # Counted here: torchmetrics' stat_scores cannot count a single subtask.
    yes = scores > 0
    true_positive, positives = (yes & targets & known).sum(0), (targets & known).sum(0)
    true_negative, negatives = (~yes & ~targets & known).sum(0), (~targets & known).sum(0)
    rates = (true_positive.double() / positives + true_negative.double() / negatives) / 2
    return torch.where(_two_sided(targets, known), rates, torch.nan).cpu()


def best_thresholds(scores: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """The threshold of each subtask with the highest balanced accuracy, float [T]; a score above it says yes.

    It is half way between neighbouring scores. Of several equally good ones it is the nearest to zero, and it is zero where a kind of
    label is missing. It is finite, also where scores are not.

    Args:
        scores: [N, T].
        targets: bool [N, T].
        known: bool [N, T], where the label is known.

    Raises:
        ValueError: where a score is NaN.
    """
    _refuse_nan(scores)
    thresholds = torch.zeros(scores.shape[1], dtype=scores.dtype)
    limit = torch.finfo(scores.dtype).max
    for t in _two_sided(targets, known).nonzero().flatten().tolist():
        positives, negatives = _sorted_kinds(scores[:, t], targets[:, t], known[:, t])
        steps = torch.cat([positives, negatives]).unique().clamp(-limit, limit)
        middles = steps[1:] / 2 + steps[:-1] / 2  # not the sum first, which may overflow
        # Half way between neighbouring numbers is one of them: the lower one, so that the higher one is above it.
        middles = torch.where(middles < steps[1:], middles, steps[:-1])
        candidates = torch.cat([steps.new_zeros(1), middles])
        missed, refused = (torch.searchsorted(kind, candidates, right=True) for kind in (positives, negatives))
        quality = 1 - missed.double() / len(positives) + refused.double() / len(negatives)
        best = candidates[quality >= quality.max() - 1e-12]
        thresholds[t] = best[best.abs().argmin()]
    return thresholds


def _sorted_kinds(scores: Tensor, targets: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The scores [N] of the known positives and of the known negatives, each from low to high."""
    return scores[known & targets].sort().values, scores[known & ~targets].sort().values


def _refuse_nan(scores: Tensor, names: Sequence[str] | None = None) -> None:
    """Raise ValueError where a score [N, T] is NaN, with the names of its subtasks, or their numbers from 0 without names."""
    missing = scores.isnan().sum(0)
    if bool(missing.any()):
        wrong = missing.nonzero().flatten().tolist()
        shown = ", ".join(names[t] if names else str(t) for t in wrong[:5]) + (f" and {len(wrong) - 5} more" if wrong[5:] else "")
        raise ValueError(f"scores must be numbers, got NaN for {int(missing.max())} of {len(scores)} images in subtask {shown}")


def _two_sided(targets: Tensor, known: Tensor) -> Tensor:
    return (known & targets).any(0) & (known & ~targets).any(0)
