"""Hinge loss (Cortes & Vapnik, Machine Learning 1995), or its square (Tang 2013, "Deep Learning using Linear SVMs").

    L+ = max(0, m - z)    L- = max(0, m + z)

An element beyond the margin m costs nothing. On the cosines of a head the margin should be below 1.
"""

from torch import Tensor

from mtl.losses.pairs import PairLoss, PerTask, TaskCounts, constant, per_task


class Hinge(PairLoss):
    """Hinge loss, or its square: an element beyond the margin costs nothing.

    Args:
        margin: logit from which an element costs nothing, > 0, for all subtasks or one for each; below 1 on cosine heads.
        squared: whether both terms are squared.
    """

    def __init__(self, num_tasks: int, *, margin: PerTask = 1.0, squared: bool = False) -> None:
        super().__init__()
        self.margin = constant(per_task("margin", margin, num_tasks=num_tasks, must_be="> 0"))
        self.squared = squared

    def terms(self, logits: Tensor, counts: TaskCounts) -> tuple[Tensor, Tensor]:
        """See `PairLoss`."""
        positive, negative = (self.margin - logits).clamp_min(0), (self.margin + logits).clamp_min(0)
        return (positive.square(), negative.square()) if self.squared else (positive, negative)
