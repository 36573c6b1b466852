"""FairGrad: the update that is alpha-fair to the tasks.

    G a = (a / (T p))^(-1 / alpha)        maximises  sum_i p_i (g_i . d)^(1 - alpha) / (1 - alpha)  over |d| <= 1, up to length

Ban and Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024, equation 4. p: preference, 1 / T each unless given. alpha = 1
is proportional fairness (Nash-MTL without its clip), whose update has length sqrt(T); towards infinity, the worst-off task alone counts.

Solved by Newton on the convex problem behind it rather than by least squares, started from the last step's weights. Departures: the
authors' code multiplies the weights by T and clips the gradient of the shared part at length 1, here neither is done. The weights'
scale follows the gradients': times k^(-2 alpha / (1 + alpha)) for gradients times k. A task without a gradient has weight 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing.contract import State
from mtl.balancing.fairness import solve_fairness
from mtl.balancing.gramian import rounding
from mtl.balancing.preference import PreferringBalancer


@dataclass(frozen=True)
class FairGrad(PreferringBalancer):
    """FairGrad: the update that is alpha-fair to the tasks (Ban & Ji 2024).

    Args:
        alpha: how fair, > 0: 1 is proportional fairness; towards infinity the worst-off task alone counts.
    """

    alpha: float = 1.0
    needs = "gramian"
    heads = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alpha > 0:
            raise ValueError(f"balancer.alpha must be > 0, got {self.alpha}")

    def init(self, like: Tensor) -> State:
        """State: `log_weights` [..., T], where the solver starts from."""
        return super().init(like) | {"log_weights": torch.zeros_like(like)}

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`."""
        assert gramian is not None
        start = state["log_weights"]
        weights, log_weights = solve_fairness(
            gramian, self.preferences(active), alpha=self.alpha, start=start, tolerance=rounding(losses)
        )
        return weights.to(losses.dtype), {"log_weights": torch.where(weights > 0, log_weights.to(start.dtype), start)}
