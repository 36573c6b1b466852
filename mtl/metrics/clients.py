"""How well each client's answers are right on its own test images, and the mean and the worst over clients."""

import torch
from torch import Tensor

from mtl.metrics.scores import Metrics, share_of_highest


def client_accuracy(
    scores: Tensor, targets: Tensor, known: Tensor, identity: Tensor, owner: Tensor, assignment: Tensor, num_exclusive: int
) -> Tensor:
    """Return the accuracy of each client on its own images, float64 [C]; NaN where it has none that count.

    A client that trains several of the exclusive subtasks answers with the one that scores highest among these; the images of others do not
    count. Another client answers yes or no to each of its subtasks, yes above zero; the accuracy is over all known labels.

    Args:
        scores: [R, T], of the client's model for the client's image.
        targets: bool [R, T].
        known: bool [R, T], where the label is known.
        identity: int64 [R], which of the first `num_exclusive` subtasks the image is a positive of, or -1.
        owner: int64 [R], the client of each row.
        assignment: bool [C, T], the subtasks that each client trains.
        num_exclusive: how many subtasks, the first ones, exclude one another.
    """
    right, count = (torch.zeros(len(assignment), dtype=torch.float64) for _ in range(2))
    several = assignment[:, :num_exclusive].sum(1) > 1
    chooses = several[owner]
    if bool(chooses.any()):
        rivals = assignment[owner, :num_exclusive]
        counted = chooses & (identity >= 0) & rivals.gather(1, identity.clamp_min(0)[:, None])[:, 0]
        ranked = scores[counted, :num_exclusive].masked_fill(~rivals[counted], -torch.inf)
        right.index_add_(0, owner[counted], share_of_highest(ranked, identity[counted]))
        count.index_add_(0, owner[counted], torch.ones(int(counted.sum()), dtype=torch.float64))
    counted_labels = known & assignment[owner] & ~chooses[:, None]
    correct = ((scores > 0) == targets) & counted_labels
    right.index_add_(0, owner, correct.sum(1).double())
    count.index_add_(0, owner, counted_labels.sum(1).double())
    return right / count


def summarise_clients(accuracy: Tensor) -> Metrics:
    """Return the mean accuracy of the clients, that of the worst tenth (at least one) and that of the worst; NaN is left out.

    Args:
        accuracy: float64 [C].
    """
    defined = accuracy[~accuracy.isnan()].sort().values
    if not len(defined):
        return dict.fromkeys(("accuracy", "worst_tenth_accuracy", "worst_client_accuracy"))
    worst = defined[: max(len(defined) // 10, 1)]
    return {
        "accuracy": float(defined.mean()),
        "worst_tenth_accuracy": float(worst.mean()),
        "worst_client_accuracy": float(defined[0]),
    }
