"""UW and IMTL-L: a scale per task, learned with the model.

    UW        sum_i exp(-s_i) L_i / 2 + s_i / 2        w_i = exp(-s_i) / 2
    IMTL-L    sum_i exp(s_i) L_i - s_i                 w_i = exp(s_i)

Kendall et al., "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics", CVPR 2018; Liu et al.,
"Towards Impartial Multi-task Learning", ICLR 2021. The scales follow their own gradient, one plain step at a time after the
weights are taken, whatever optimiser the model has; both start at s = 0. They are the same method up to a factor 2 and the sign
of s, and rest where w_i is 1 / (2 L_i) or 1 / L_i: SI is their limit. The scale of a task whose loss is 0 does not change; it would grow
without bounds. The weights sum to anything.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing.active import unsolved
from mtl.balancing.contract import Balancer, State


@dataclass(frozen=True)
class UW(Balancer):
    """UW: weights learned with the model from the tasks' uncertainty (Kendall et al. 2018).

    Args:
        learning_rate: step size of the log-variances s.
    """

    learning_rate: float = 0.025
    needs = "losses"
    heads = True

    def __post_init__(self) -> None:
        check_learning_rate(self.learning_rate)

    def init(self, like: Tensor) -> State:
        """State: `log_variances` [..., T]."""
        return {"log_variances": torch.zeros_like(like)}

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`."""
        log_variances = state["log_variances"]
        weights = (-log_variances).exp() / 2
        learned = log_variances - self.learning_rate * (0.5 - weights * losses)
        return weights * active, {"log_variances": torch.where(unsolved(losses, active), learned, log_variances)}


@dataclass(frozen=True)
class IMTLL(Balancer):
    """IMTL-L: a scale per task, learned so that all scaled losses become alike (Liu et al. 2021).

    Args:
        learning_rate: step size of the scales s.
    """

    learning_rate: float = 0.025
    needs = "losses"
    heads = True

    def __post_init__(self) -> None:
        check_learning_rate(self.learning_rate)

    def init(self, like: Tensor) -> State:
        """State: `log_scales` [..., T]."""
        return {"log_scales": torch.zeros_like(like)}

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`."""
        log_scales = state["log_scales"]
        weights = log_scales.exp()
        learned = log_scales - self.learning_rate * (weights * losses - 1)
        return weights * active, {"log_scales": torch.where(unsolved(losses, active), learned, log_scales)}


def check_learning_rate(learning_rate: float) -> None:
    """Raise ValueError unless the learning rate is above zero."""
    if not learning_rate > 0:
        raise ValueError(f"balancer.learning_rate must be > 0, got {learning_rate}")
