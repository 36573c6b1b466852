"""CAGrad: the update near the mean gradient g_0 that helps the worst-off task most.

    max_d min_i g_i . d  subject to  |d - g_0| <= c |g_0|        d = g_0 + c |g_0| g_w / |g_w|
    w = argmin over the simplex of  g_w . g_0 + c |g_0| |g_w|,    g_w = J^T w

Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021, algorithm 1.

Solved exactly: since |g_w| = min_r (|g_w|^2 / r + r) / 2, the weights for a given r are those of the shortest vector in the hull
of the gradients shifted by r / c times the direction of g_0, and r is where |g_w| = r, a root of one monotone function of one
variable. Weights sum to 1 + c |g_0| / |g_w|. Departures: not divided by 1 + c^2 as in the authors' code for networks, nor by 1 +
c as in that for their toy; where |g_w| vanishes (c >= 1 at a Pareto-stationary point) the best update is none, and the weights
are 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing.active import count
from mtl.balancing.contract import Balancer, State
from mtl.balancing.gramian import mean_square, restrict, rounding
from mtl.balancing.mgda import shortest_in_hull

SMALLEST = 1e-8
ROOT_STEPS = 60
TOLERANCE = 1e-11


@dataclass(frozen=True)
class CAGrad(Balancer):
    """c: how far the update may be from the mean gradient, in its lengths; from 1 on, no task is made worse."""

    c: float = 0.4
    needs = "gramian"
    heads = False

    def __post_init__(self) -> None:
        if not self.c > 0:
            raise ValueError(f"balancer.c must be > 0, got {self.c}")

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        assert gramian is not None
        square = restrict(gramian, active)
        square = square / mean_square(square, active)
        mean = active / count(active).double()
        toward_mean = (square @ mean[..., None]).squeeze(-1)
        mean_length = (mean * toward_mean).sum(-1, keepdim=True).clamp_min(0).sqrt()
        along = torch.where(mean_length > 0, toward_mean / mean_length, 0)
        worst, length = self._worst_off(square, along, mean_length > 0, active, rounding(gramian))
        added = torch.where(length > 0, self.c * mean_length / length, 0)
        vanished = (length <= 10 * SMALLEST) & (mean_length > 0)
        return torch.where(vanished, 0, mean + added * worst).to(losses.dtype), state

    def _worst_off(self, square: Tensor, along: Tensor, has_mean: Tensor, active: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """The weights w [..., T] and |g_w| [..., 1]. `along`: component of each gradient along g_0, [..., T].

        Illinois' false position on log(|g_w| / r) over log r, which falls with slope -1 where the weights do not change.
        """
        free = torch.zeros_like(active)

        def excess(radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            nonlocal free
            shift = radius / self.c
            slope = (shift * along)[..., :, None]
            shifted = square + slope + slope.mT + (shift**2 * has_mean)[..., None]
            weights, free = shortest_in_hull(restrict(shifted, active), active, ridge, free)
            length = (weights * (square @ weights[..., None]).squeeze(-1)).sum(-1, keepdim=True).clamp_min(0).sqrt()
            return (length.clamp_min(SMALLEST) / radius).log(), weights, length

        high = square.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True).clamp_min(SMALLEST**2).sqrt()
        low = torch.full_like(high, SMALLEST)
        at_low, _, _ = excess(low)
        at_high, weights, length = excess(high)
        low, high = low.log(), high.log()
        side = torch.zeros_like(high)
        for _ in range(ROOT_STEPS):
            part = at_low / (at_low - at_high)
            middle = low + (high - low) * torch.where(part.isfinite(), part, 0)
            value, weights, length = excess(middle.exp())
            if (value.abs() < TOLERANCE).all():
                break
            above = value > 0
            again = torch.where(value.sign() == side, 0.5, 1.0)
            at_low, at_high = torch.where(above, value, at_low * again), torch.where(above, at_high * again, value)
            low, high, side = torch.where(above, middle, low), torch.where(above, high, middle), value.sign()
        return weights, length
