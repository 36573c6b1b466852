"""Nash-MTL: the update that the tasks would agree on in a bargaining game.

    G a = T p / a        maximises  sum_i p_i log(g_i . d)  over |d| <= 1, up to length;  p: preference, 1 / T each unless given

Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022. Then sum_i a_i (G a)_i = T, so that |J^T a| = sqrt(T) whatever the
gradients, and the authors' clip of the update at `max_norm` 1 always acts: the weights are a / sqrt(T).

Departures: solved on the Gramian by Newton's method, exactly and at every step, instead of by a sequence of cone programs every
few steps (whose solver is gone from cvxpy 1.6 on); the clip scales the weights, so that heads that get them are scaled as well,
whereas the authors clip the trunk's gradient alone. A task without a gradient has weight 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing.contract import State
from mtl.balancing.fairness import solve_fairness
from mtl.balancing.gramian import length_of, restrict, rounding
from mtl.balancing.preference import PreferringBalancer


@dataclass(frozen=True)
class NashMTL(PreferringBalancer):
    """Nash-MTL: the update that the tasks would agree on in a bargaining game (Navon et al. 2022).

    Args:
        max_norm: length of the longest update J^T a; 0 does not clip.
    """

    max_norm: float = 1.0
    needs = "gramian"
    heads = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.max_norm >= 0:
            raise ValueError(f"balancer.max_norm must be >= 0, got {self.max_norm}")

    def init(self, like: Tensor) -> State:
        """State: `log_weights` [..., T], where the solver starts from."""
        return super().init(like) | {"log_weights": torch.zeros_like(like)}

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`."""
        assert gramian is not None
        start = state["log_weights"]
        weights, log_weights = solve_fairness(
            gramian, self.preferences(active), alpha=1.0, start=start, tolerance=rounding(losses)
        )
        state = {"log_weights": torch.where(weights > 0, log_weights.to(start.dtype), start)}
        if self.max_norm:
            norm = length_of(weights, restrict(gramian, active))
            weights = torch.where(norm > self.max_norm, weights * self.max_norm / norm, weights)
        return weights.to(losses.dtype), state
