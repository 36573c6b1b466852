"""ExcessMTL: more weight to the tasks that are further from their optimum, estimated by a diagonal second-order expansion.

    S_i <- S_i + g_i^2        e_i = sum g_i^2 / sqrt(S_i + 1e-7)        w_i ~ w_i exp(step_size e_i / e_i(first))

He et al., "Robust Multi-Task Learning with Excess Risks", ICML 2024, equations 6, 7 and 9. A task's first step only stores its excess
e_i(first) and leaves its weight as it is, as in the authors' code. Weights start equal and sum to the number of active tasks; a step
moves weight among them alone. Departures: no warm-up; a task whose first excess is 0 keeps its weight until it has one. S is as large as
all tasks' gradients.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing import active as over
from mtl.balancing.contract import Balancer, State, weighted_sum


@dataclass(frozen=True)
class ExcessMTL(Balancer):
    """ExcessMTL: more weight to tasks that are further from their optimum (He et al. 2024).

    Args:
        step_size: step size of the weights, which follow an exponentiated gradient.
    """

    step_size: float = 0.01
    needs = "gradients"
    levels = ("parameters",)
    heads = True

    def __post_init__(self) -> None:
        if not self.step_size > 0:
            raise ValueError(f"balancer.step_size must be > 0, got {self.step_size}")

    def init(self, like: Tensor) -> State:
        """State: `squares` [..., T, P], `log_weights` [..., T] and `first` [..., T], the excess at a task's first step, 0 before it."""
        tasks = like[..., 0]
        return {
            "squares": torch.zeros_like(like),
            "log_weights": torch.zeros_like(tasks),
            "first": torch.zeros_like(tasks),
        }

    def combine(
        self, state: State, losses: Tensor, gradients: Tensor, active: Tensor, draw: Tensor
    ) -> tuple[Tensor, Tensor, State]:
        """See `Balancer`."""
        gradients = over.only_active(gradients, active[..., None])
        square = gradients**2
        squares = state["squares"] + square
        excess = (square / (squares + 1e-7).sqrt()).sum(-1)
        first, before = state["first"], state["log_weights"]
        known = active & (first > 0)
        raised = torch.where(known, before + self.step_size * excess / torch.where(known, first, 1), before)
        # The summed weight of the active tasks does not change.
        after = raised + log_total(before, active) - log_total(raised, active)
        weights = over.softmax(raised, active) * over.count(active)
        return (
            weighted_sum(weights, gradients),
            weights,
            {
                "squares": squares,
                "log_weights": torch.where(active, after, before),
                "first": torch.where(active & ~known, excess, first),
            },
        )


def log_total(log_weights: Tensor, active: Tensor) -> Tensor:
    """The logarithm of the active tasks' summed weights, [..., 1]; 0 if there are none."""
    total = torch.where(active, log_weights, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.where(total.isfinite(), total, 0)
