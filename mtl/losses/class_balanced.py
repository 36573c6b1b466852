"""Class-balanced loss (Cui et al., CVPR 2019, "Class-Balanced Loss Based on Effective Number of Samples").

    L+ = w+ softplus(-z)    L- = w- softplus(z)    w+- = (1 - beta) / (1 - beta^n+-), scaled so that w+ + w- = 2

n+ and n- are the labels of a subtask in the client's own training data, and (1 - beta^n) / (1 - beta) is their effective number:
beta = 0 weighs nothing (it is BCE), beta towards 1 weighs by 1/n. The weights sum to the number of classes, as in the paper; a
subtask is here a problem of two classes, whereas the paper weighs all binary terms of an image by its one class. Where a kind of
label is missing there is nothing to balance: both weights are 1.

The default beta is .999, one of the four that the paper tries (.9 to .9999); the authors' code has 0 by default, and .9999 in its
scripts. Departure: they start the bias of the last layer where p = 1/C and do not decay it, which here is the heads' matter and is
not done.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.losses.pairs import PairLoss, PerTask, TaskCounts, constant, per_task


class ClassBalanced(PairLoss):
    """Cross-entropy weighted by the effective number of labels of each kind (Cui et al. 2019).

    Args:
        beta: how strongly rarer labels gain weight, in [0, 1), for all subtasks or one for each; 0 is cross-entropy.
    """

    def __init__(self, num_tasks: int, *, beta: PerTask = 0.999) -> None:
        super().__init__()
        self.log_beta = constant(per_task("beta", beta, num_tasks=num_tasks, must_be="in [0, 1)").log())

    def terms(self, logits: Tensor, counts: TaskCounts) -> tuple[Tensor, Tensor]:
        """See `PairLoss`."""
        positive, negative = effective_number_weights(counts, self.log_beta)
        return positive * F.softplus(-logits), negative * F.softplus(logits)


def effective_number_weights(counts: TaskCounts, log_beta: Tensor) -> tuple[Tensor, Tensor]:
    """The weights w+ and w- of the two kinds of label, [T] each.

    Args:
        counts: labels of each kind.
        log_beta: logarithm of beta, [] or [T].
    """
    # From log beta, because 1 - beta^n cancels for beta near 1.
    positive, negative = (-torch.expm1(n * log_beta) for n in (counts.positives, counts.negatives))
    total = positive + negative
    return torch.where(counts.one_sided, 1.0, 2 * negative / total), torch.where(counts.one_sided, 1.0, 2 * positive / total)
