"""Binary cross-entropy with a positive weight: L+ = w softplus(-z), L- = softplus(z).

`w` is one number for all subtasks, or n-/n+ of each subtask in the client's own training data ("balanced"), which gives both kinds of
label the same total weight; a client with only one kind uses w = 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.losses.pairs import PairLoss, TaskCounts


class BCE(PairLoss):
    """positive_weight: a number > 0, or "balanced" (n-/n+)."""

    def __init__(self, num_tasks: int, *, positive_weight: float | str = 1.0) -> None:
        super().__init__()
        if positive_weight != "balanced" and not (isinstance(positive_weight, int | float) and positive_weight > 0):
            raise ValueError(f"loss.positive_weight must be a number > 0 or balanced, got {positive_weight}")
        self.positive_weight = positive_weight

    def terms(self, logits: Tensor, counts: TaskCounts) -> tuple[Tensor, Tensor]:
        return self._weight(counts) * F.softplus(-logits), F.softplus(logits)

    def _weight(self, counts: TaskCounts) -> Tensor | float:
        if not isinstance(self.positive_weight, str):
            return self.positive_weight
        one_sided = (counts.positives == 0) | (counts.negatives == 0)
        return torch.where(one_sided, 1.0, counts.negatives / counts.positives.clamp_min(1))
