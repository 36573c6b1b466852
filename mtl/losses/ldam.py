"""LDAM (Cao et al., NeurIPS 2019, "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss"), for two classes.

    L+ = w+ softplus(-s (z - d+))    L- = w- softplus(s (z + d-))    d+- = margin (min(n+, n-) / n+-)^(1/4)

z is the cosine of a head; n+ and n- are the labels of a subtask in the client's own training data: the rarer kind gets the whole
margin. Deferred re-weighting: w+- are 1 until the share `defer` of the training is done, and from then on the class-balanced
weights of Cui et al. for `beta` (0 leaves them at 1). With margin 0 and scale 1 it is BCE until then. The largest margin is that of
each subtask, where the paper has one over all its classes. A missing kind counts as one label for the margins, and leaves both
weights at 1.

Defaults are those of the authors' CIFAR training (margin .5, s 30, beta .9999, re-weighting from epoch 160 of 200). Departures:
their softmax compares two cosines, here one is compared with zero, which halves the range of s z; their re-weighted loss is divided
by the weights of the batch (torch's `cross_entropy`), here by its images. As in the paper s stays in the gradient: the learning
rate has to be smaller than for BCE by about as much.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.losses.class_balanced import effective_number_weights
from mtl.losses.pairs import PairLoss, PerTask, TaskCounts, constant, per_task


class LDAM(PairLoss):
    """LDAM on cosines: a larger margin for the rarer kind of label, and late re-weighting (Cao et al. 2019).

    Args:
        margin: the largest margin, >= 0, for all subtasks or one for each.
        scale: factor s of the cosines, > 0, for all subtasks or one for each.
        beta: as in class_balanced, for the late re-weighting, in [0, 1), 0 for none, for all subtasks or one for each.
        defer: share of the training after which these weights act, in [0, 1], for all subtasks or one for each.
    """

    def __init__(
        self,
        num_tasks: int,
        *,
        margin: PerTask = 0.5,
        scale: PerTask = 30.0,
        beta: PerTask = 0.9999,
        defer: PerTask = 0.8,
    ) -> None:
        super().__init__()
        self.margin = constant(per_task("margin", margin, num_tasks=num_tasks, must_be=">= 0"))
        self.scale = constant(per_task("scale", scale, num_tasks=num_tasks, must_be="> 0"))
        self.log_beta = constant(per_task("beta", beta, num_tasks=num_tasks, must_be="in [0, 1)").log())
        self.defer = constant(per_task("defer", defer, num_tasks=num_tasks, must_be="in [0, 1]"))

    def terms(self, logits: Tensor, counts: TaskCounts) -> tuple[Tensor, Tensor]:
        """See `PairLoss`."""
        positives, negatives = counts.positives.clamp_min(1), counts.negatives.clamp_min(1)
        rarer = torch.minimum(positives, negatives)
        positive = F.softplus(-self.scale * (logits - self.margin * (rarer / positives) ** 0.25))
        negative = F.softplus(self.scale * (logits + self.margin * (rarer / negatives) ** 0.25))
        reweighted = counts.progress >= self.defer
        weights = [torch.where(reweighted, weight, 1.0) for weight in effective_number_weights(counts, self.log_beta)]
        return weights[0] * positive, weights[1] * negative

    def decision(self, logits: Tensor) -> Tensor:
        """See `PairLoss`."""
        return self.scale * logits
