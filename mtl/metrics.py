"""How well the scores answer the subtasks. Scores rise with belief and say yes above zero."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

Metrics = dict[str, float | None]


def evaluate_scores(
    scores: Tensor, targets: Tensor, known: Tensor, identity: Tensor, names: tuple[str, ...], num_exclusive: int
) -> Metrics:
    """scores: [N, T]; targets, known: bool [N, T]; identity: int64 [N], which of the first `num_exclusive` subtasks, that exclude one
    another, an image is a positive of, or -1.

    Returns `rank1` (where identities are known), `auroc`, `balanced_accuracy`, their `worst_task_`, their means over the `attributes_`
    that stand beside identities, and their values per subtask as `<task>/auroc`. A subtask without a known positive or without a known
    negative has no AUROC and no balanced accuracy: its value is None, and means and worst leave it out.
    """
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
        beside = [value for value in of_tasks[num_exclusive:] if value == value]
        if num_exclusive and beside:
            metrics[f"attributes_{name}"] = sum(beside) / len(beside)
        metrics |= {f"{task}/{name}": value if value == value else None for task, value in zip(names, of_tasks, strict=True)}
    return metrics


def worst_clients(metrics: Metrics, tasks: Sequence[str], assignment: Tensor) -> float | None:
    """Mean AUROC of the tenth of the clients, at least one, that are served worst, a client's being the mean over the subtasks that it
    trains (the worst 10 % of devices, as in q-FFL, Li et al., ICLR 2020).

    metrics: of `evaluate_scores`; assignment: bool [C, T], which client trains which of `tasks`.
    """
    areas = [metrics[f"{task}/auroc"] for task in tasks]
    of_clients = []
    for trained in assignment.tolist():
        own = [area for area, mine in zip(areas, trained, strict=True) if mine and area is not None]
        if own:
            of_clients.append(sum(own) / len(own))
    worst = sorted(of_clients)[: max(len(of_clients) // 10, 1)]
    return sum(worst) / len(worst) if worst else None


def rank1(scores: Tensor, identity: Tensor) -> float:
    """Share of the images of known identity whose highest score is that of their own subtask."""
    at_hand = identity >= 0
    return float((scores[at_hand].argmax(1) == identity[at_hand]).double().mean())


def auroc(scores: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """Area under the ROC curve of each subtask, float64 [T]; NaN where a subtask has known labels of one kind only."""
    # torchmetrics puts anything outside 0..1 through a sigmoid, which makes ties of large scores: scale first, in float64.
    scaled = scores.double() - scores.min()
    scaled = scaled / scaled.max().clamp_min(torch.finfo(torch.float64).tiny)
    labels = torch.where(known, targets.long(), -1)
    areas = [
        binary_auroc(scaled[:, t], labels[:, t], ignore_index=-1).double()
        if both
        else torch.tensor(torch.nan, dtype=torch.float64)
        for t, both in enumerate(_two_sided(targets, known).tolist())
    ]
    return torch.stack([area.cpu() for area in areas])


def balanced_accuracy(scores: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """Mean of the true positive and true negative rate at threshold zero, float64 [T]; NaN where one kind of label is missing."""
    # Counted here: torchmetrics' stat_scores cannot count a single subtask.
    yes = scores > 0
    true_positive, positives = (yes & targets & known).sum(0), (targets & known).sum(0)
    true_negative, negatives = (~yes & ~targets & known).sum(0), (~targets & known).sum(0)
    rates = (true_positive.double() / positives + true_negative.double() / negatives) / 2
    return torch.where(_two_sided(targets, known), rates, torch.nan).cpu()


def best_thresholds(scores: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """The threshold of each subtask, float [T], above which a score says yes, with the highest balanced accuracy on scores [N, T]; half
    way between neighbouring scores, of several equally good ones the nearest to zero, and zero where a kind of label is missing.
    """
    thresholds = torch.zeros(scores.shape[1], dtype=scores.dtype)
    for t in _two_sided(targets, known).nonzero().flatten().tolist():
        own, labels = scores[known[:, t], t], targets[known[:, t], t]
        steps = own.unique()
        candidates = torch.cat([thresholds.new_zeros(1), (steps[1:] + steps[:-1]) / 2])
        yes = own[:, None] > candidates
        quality = (yes & labels[:, None]).sum(0) / labels.sum() + (~yes & ~labels[:, None]).sum(0) / (~labels).sum()
        best = candidates[quality >= quality.max() - 1e-6]
        thresholds[t] = best[best.abs().argmin()]
    return thresholds


def _two_sided(targets: Tensor, known: Tensor) -> Tensor:
    return (known & targets).any(0) & (known & ~targets).any(0)
