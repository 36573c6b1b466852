"""Asymmetric loss, ASL (Ridnik et al., ICCV 2021, "Asymmetric Loss For Multi-Label Classification").

    L+ = (1 - p)^g+ softplus(-z)    L- = q^g- (-log(1 - q))    p = sigmoid(z), q = max(p - clip, 0)

Negatives are focused harder than positives, and those below `clip` cost nothing; with a clip the gradient of the very hardest
negatives, which may be wrong labels, fades. Without clip and with both exponents 0 it is BCE.

Defaults are those of the class in the authors' code (g+ = 1, g- = 4, clip .05); their COCO training takes g+ = 0. Departures: the
gradient flows through the focusing factors, as in the paper's analysis, where that class and that training hold them constant
(`disable_torch_grad_focal_loss`): at z = 0 the slopes are -.423 and .073, theirs -.250 and .019. No floor inside the logarithms
(theirs 1e-8), which need none here. They sum over subtasks and images: their learning rates belong to `reduction=sum`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.losses.pairs import PairLoss, PerTask, TaskCounts, constant, per_task


class Asymmetric(PairLoss):
    """Asymmetric loss: easy negatives count much less than easy positives (Ridnik et al. 2021).

    Args:
        gamma_positive: exponent of the positives, >= 0, for all subtasks or one for each.
        gamma_negative: exponent of the negatives, >= 0, for all subtasks or one for each.
        clip: negatives with a probability below it cost nothing, in [0, 1), for all subtasks or one for each.
    """

    def __init__(
        self, num_tasks: int, *, gamma_positive: PerTask = 1.0, gamma_negative: PerTask = 4.0, clip: PerTask = 0.05
    ) -> None:
        super().__init__()
        self.gamma_positive = constant(per_task("gamma_positive", gamma_positive, num_tasks=num_tasks, must_be=">= 0"))
        self.gamma_negative = constant(per_task("gamma_negative", gamma_negative, num_tasks=num_tasks, must_be=">= 0"))
        self.log_clip = constant(per_task("clip", clip, num_tasks=num_tasks, must_be="in [0, 1)").log())

    def terms(self, logits: Tensor, counts: TaskCounts) -> tuple[Tensor, Tensor]:
        """See `PairLoss`."""
        positive, negative = F.softplus(-logits), F.softplus(logits)
        # -log(1 - q) = -log(min(1 - p + clip, 1)), from log(1 - p): 1 - p itself is 0 for a large logit.
        shifted = (-torch.logaddexp(-negative, self.log_clip)).clamp_min(0)
        # The derivative of the power is infinite at q = 0 for an exponent below 1; there the other factor is 0.
        q = (-torch.expm1(-shifted)).clamp_min(torch.finfo(shifted.dtype).tiny)
        return torch.exp(-self.gamma_positive * negative) * positive, q**self.gamma_negative * shifted
