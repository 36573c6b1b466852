"""Logit adjustment (Menon et al., ICLR 2021, "Long-tail learning via logit adjustment"), for two classes.

    L+ = softplus(-(z + a))    L- = softplus(z + a)    a = tau log(n+ / n-)

n+ and n- are the labels of a subtask in the client's own training data. While training, each client's prior is added to the score;
the score itself is then that of data with as many positives as negatives, whatever the clients' priors are, and it alone
decides. With tau = 0 it is BCE. A missing kind counts as one label: such a client, whose prior alone explains most of its labels,
learns little from them, and one without any label has a = 0.

The default tau = 1 is the authors'. Of their code's modes this is `loss`; its default, `posthoc`, subtracts the prior after a training
without it.
"""

import torch.nn.functional as F
from torch import Tensor

from mtl.losses.pairs import PairLoss, PerTask, TaskCounts, constant, per_task


class LogitAdjusted(PairLoss):
    """Cross-entropy of logits plus the log-ratio of positives to negatives (Menon et al. 2021).

    Args:
        tau: factor of the log-ratio, >= 0, for all subtasks or one for each; 0 is cross-entropy.
    """

    def __init__(self, num_tasks: int, *, tau: PerTask = 1.0) -> None:
        super().__init__()
        self.tau = constant(per_task("tau", tau, num_tasks=num_tasks, must_be=">= 0"))

    def terms(self, logits: Tensor, counts: TaskCounts) -> tuple[Tensor, Tensor]:
        """See `PairLoss`."""
        adjusted = logits + self.tau * (counts.positives.clamp_min(1) / counts.negatives.clamp_min(1)).log()
        return F.softplus(-adjusted), F.softplus(adjusted)
