"""UniFace (Zhou et al., ICCV 2023, "UniFace: Unified Cross-Entropy Loss for Deep Face Recognition"), one versus the rest.

    L+ = softplus(-(s (z - m) - b))    L- = l softplus(s z - b)

with z the cosine of a head, scale s, margin m, weight l of the negatives, and one learned b: the cosine b/s is the threshold that
separates yes from no for every subtask alike, so that s and b belong to all of them. b starts at log(10 T) as in the authors'
code, T being the subtasks of the whole federation even where a client trains few. Defaults are those of the authors' code (s 64,
m .4, l 1). Departures: all negatives count, where the paper may sample a share r of them; and their code cuts the exponents off
at +-s, which softplus does not need. As in the paper s stays in the gradient: the learning rate has to be smaller than for BCE by
about as much.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.losses.pairs import PairLoss, PerTask, TaskCounts, constant, per_task


class UniFace(PairLoss):
    """UniFace on cosines: one learned threshold separates yes from no for every subtask (Zhou et al. 2023).

    Args:
        num_tasks: subtasks of the whole federation.
        scale: s, factor of the cosines, > 0.
        margin: m, >= 0, for all subtasks or one for each.
        negative_weight: l, weight of the negatives, > 0, for all subtasks or one for each.
    """

    def __init__(self, num_tasks: int, *, scale: float = 64.0, margin: PerTask = 0.4, negative_weight: PerTask = 1.0) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"loss.scale must be > 0, got {scale}")
        self.scale = scale
        self.margin = constant(per_task("margin", margin, num_tasks=num_tasks, must_be=">= 0"))
        self.negative_weight = constant(per_task("negative_weight", negative_weight, num_tasks=num_tasks, must_be="> 0"))
        self.bias = nn.Parameter(torch.tensor(math.log(10 * num_tasks)))

    def terms(self, logits: Tensor, counts: TaskCounts) -> tuple[Tensor, Tensor]:
        """See `PairLoss`."""
        decision = self.decision(logits)
        return F.softplus(self.scale * self.margin - decision), self.negative_weight * F.softplus(decision)

    def decision(self, logits: Tensor) -> Tensor:
        """See `PairLoss`."""
        return self.scale * logits - self.bias
