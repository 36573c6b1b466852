"""Binary cross-entropy with a positive weight: L+ = w softplus(-s z), L- = softplus(s z).

`w` is a number, or n-/n+ of each subtask in the client's own training data ("balanced"), which gives both kinds of label the same
total weight; a client with only one kind uses w = 1. On the cosines of a head a scale s makes room for sure answers (NormFace, Wang et
al., ACM MM 2017).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.losses.pairs import PairLoss, PerTask, TaskCounts, constant, per_task


class BCE(PairLoss):
    """Binary cross-entropy of logits, with a weight of the positives.

    Args:
        positive_weight: weight of the positives, > 0, for all subtasks or one for each, or balanced (negatives / positives in the
            client's data).
        scale: factor s of the logits, > 0; raise it on cosine heads.
    """

    def __init__(self, num_tasks: int, *, positive_weight: PerTask | str = 1.0, scale: float = 1.0) -> None:
        super().__init__()
        self.balanced = positive_weight == "balanced"
        if isinstance(positive_weight, str):
            if not self.balanced:
                raise ValueError(f"loss.positive_weight must be a number > 0 or balanced, got {positive_weight}")
            positive_weight = 1.0
        if not scale > 0:
            raise ValueError(f"loss.scale must be > 0, got {scale}")
        self.scale = scale
        self.positive_weight = constant(per_task("positive_weight", positive_weight, num_tasks=num_tasks, must_be="> 0"))

    def terms(self, logits: Tensor, counts: TaskCounts) -> tuple[Tensor, Tensor]:
        """See `PairLoss`."""
        scores = self.decision(logits)
        return self._weight(counts) * F.softplus(-scores), F.softplus(scores)

    def decision(self, logits: Tensor) -> Tensor:
        """See `PairLoss`."""
        return self.scale * logits

    def _weight(self, counts: TaskCounts) -> Tensor:
        if not self.balanced:
            return self.positive_weight
        return torch.where(counts.one_sided, 1.0, counts.negatives / counts.positives.clamp_min(1))
