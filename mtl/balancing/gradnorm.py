"""GradNorm: weights learned so that tasks that lag behind get longer gradients.

    G_i = w_i |g_i|        r_i = (L_i / L_i(0)) / mean_j (L_j / L_j(0))
    w <- w - learning_rate d/dw sum_i |G_i - T p_i mean_j G_j r_i^alpha|,    then scaled to sum T;  p: preference, 1 / T each unless given

with the target held constant. Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask
Networks", ICML 2018, algorithm 1, which takes the gradients of the last shared layer; here those of the Gramian given.

L_i(0) is the loss at the first step with labels. Departures: a plain gradient step instead of Adam, so that the tasks' scale
matters; weights stay above 1e-3, for the paper's may turn negative. Weights sum to the number of active tasks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing import active as over
from mtl.balancing.contract import State
from mtl.balancing.gramian import norms, restrict
from mtl.balancing.preference import PreferringBalancer

LEAST = 1e-3


@dataclass(frozen=True)
class GradNorm(PreferringBalancer):
    """GradNorm: weights learned so that tasks that lag behind get longer gradients (Chen et al. 2018).

    Args:
        alpha: how strongly tasks are pulled back to a common pace.
        learning_rate: step size of the weights.
    """

    alpha: float = 1.5
    learning_rate: float = 0.025
    needs = "gramian"
    heads = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alpha >= 0:
            raise ValueError(f"balancer.alpha must be >= 0, got {self.alpha}")
        if not self.learning_rate > 0:
            raise ValueError(f"balancer.learning_rate must be > 0, got {self.learning_rate}")

    def init(self, like: Tensor) -> State:
        """State: `weights` [..., T] and `first` [..., T], the losses at the tasks' first steps, 0 before them."""
        return super().init(like) | {"weights": torch.ones_like(like), "first": torch.zeros_like(like)}

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`."""
        assert gramian is not None
        first = torch.where(active & (state["first"] == 0), losses, state["first"])
        number = over.count(active)
        weights = over.share(state["weights"], active) * number
        norm = norms(restrict(gramian, active)).to(weights.dtype)
        lengths = weights * norm
        pace = over.only_active(torch.where(first > 0, losses / first, 1), active).clamp_min(0)
        mean_pace = over.mean(pace, active)
        rate = torch.where(mean_pace > 0, pace / mean_pace, 1)
        target = over.mean(lengths, active) * rate**self.alpha * (self.preferences(active) * number).to(rate.dtype)
        slope = (lengths - target).sign() * norm
        learned = over.share((weights - self.learning_rate * slope).clamp_min(LEAST), active)
        total = over.only_active(state["weights"], active).sum(-1, keepdim=True)
        return weights, {"weights": torch.where(active, learned * total, state["weights"]), "first": first}
