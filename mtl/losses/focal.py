"""Focal loss (Lin et al., ICCV 2017, "Focal Loss for Dense Object Detection"): what is already right counts less.

    L+ = alpha (1 - p)^gamma softplus(-z)    L- = (1 - alpha) p^gamma softplus(z)    p = sigmoid(z)

Without alpha both kinds weigh 1; then gamma = 0 is BCE. Defaults are the paper's (gamma 2, alpha .25). Departures: the paper divides by
the number of positive anchors of the picture, here `reduction` divides as for every loss; and it starts the last layer's bias at
-log(99), where p = .01, which here is the heads' matter and is not done.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.losses.pairs import PairLoss, PerTask, TaskCounts, constant, per_task


class Focal(PairLoss):
    """Focal loss: what is already right counts less (Lin et al. 2017).

    Args:
        gamma: how much less, >= 0, for all subtasks or one for each; 0 is cross-entropy.
        alpha: weight of the positives, in [0, 1], where the negatives have 1 - alpha, for all subtasks or one for each; null for no
            weights.
    """

    def __init__(self, num_tasks: int, *, gamma: PerTask = 2.0, alpha: PerTask | None = 0.25) -> None:
        super().__init__()
        self.gamma = constant(per_task("gamma", gamma, num_tasks=num_tasks, must_be=">= 0"))
        if alpha is None:
            positive = negative = torch.ones(())
        else:
            positive = per_task("alpha", alpha, num_tasks=num_tasks, must_be="in [0, 1]")
            negative = 1 - positive
        self.positive_weight, self.negative_weight = constant(positive), constant(negative)

    def terms(self, logits: Tensor, counts: TaskCounts) -> tuple[Tensor, Tensor]:
        """See `PairLoss`."""
        positive, negative = F.softplus(-logits), F.softplus(logits)
        # p^gamma by its logarithm: the derivative of the power itself is infinite at p = 0 for gamma < 1.
        return (
            self.positive_weight * torch.exp(-self.gamma * negative) * positive,
            self.negative_weight * torch.exp(-self.gamma * positive) * negative,
        )
