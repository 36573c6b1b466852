"""CAGrad: the update near the mean gradient g_0 that helps the worst-off task most.

    max_d min_i g_i . d  subject to  |d - g_0| <= c |g_0|        d = g_0 + c |g_0| g_w / |g_w|,    g_0 = J^T p
    w = argmin over the simplex of  g_w . g_0 + c |g_0| |g_w|,    g_w = J^T w

Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021, algorithm 1. p: preference,
1 / T each unless given.

Solved exactly: since |g_w| = min_r (|g_w|^2 / r + r) / 2, the weights for a given r are those of the shortest vector in the hull of
the gradients shifted by r / c times the direction of g_0, and r is where |g_w| = r, the root of a function of one variable
that changes sign once.

Weights sum to 1 + c |g_0| / r. Where |g_w| vanishes r stays above 1e-6 of the gradients' size: weights grow, and the update
J^T a tends to the best one, which is none for c >= 1 at a Pareto-stationary point. Departures: not divided by 1 + c^2 as in the
authors' code for networks, nor by 1 + c as in that for their toy.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing.active import only_active
from mtl.balancing.contract import State
from mtl.balancing.gramian import mean_square, norms, restrict, rounding
from mtl.balancing.mgda import shortest_in_hull
from mtl.balancing.preference import PreferringBalancer

SMALLEST = 1e-6
ROOT_STEPS = 50
TOLERANCE = 1e-8


@dataclass(frozen=True)
class CAGrad(PreferringBalancer):
    """CAGrad: the update near the mean gradient that helps the worst-off task most (Liu et al. 2021).

    Args:
        c: how far the update may be from the mean gradient, in lengths of the mean gradient; from 1 on, no task is made worse.
    """

    c: float = 0.4
    needs = "gramian"
    heads = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.c > 0:
            raise ValueError(f"balancer.c must be > 0, got {self.c}")

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`."""
        assert gramian is not None
        square = restrict(gramian, active)
        square = square / mean_square(square, active)
        square = square + torch.diag_embed(rounding(losses) * square.diagonal(dim1=-2, dim2=-1))
        mean = self.preferences(active)
        toward_mean = (square @ mean[..., None]).squeeze(-1)
        mean_length = (mean * toward_mean).sum(-1, keepdim=True).clamp_min(0).sqrt()
        along = torch.where(mean_length > 0, toward_mean / mean_length, 0)
        worst, radius = self._worst_off(square, along, (active & ~(norms(square) == 0)).double())
        return (mean + self.c * mean_length / radius * worst).to(losses.dtype), state

    def _worst_off(self, square: Tensor, along: Tensor, one: Tensor) -> tuple[Tensor, Tensor]:
        """The weights w [..., T] and r [..., 1], |g_w| or SMALLEST.

        While the tasks with weight stay the same, the root has a closed form: it is tried first, and the middle of what is left of
        the bracket where it is outside.

        Args:
            square: Gramian of gradients about 1 long, [..., T, T].
            along: component of each gradient along g_0, [..., T].
            one: 1 for the active tasks, 0 elsewhere, [..., T].
        """
        low = torch.full_like(along[..., :1], math.log(SMALLEST))
        high = square.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True).log().div(2).clamp_min(math.log(SMALLEST))
        radius, free = high.exp(), one > 0
        tilt, pairs = along[..., :, None] * one[..., None, :], one[..., :, None] * one[..., None, :]
        tilt = tilt + tilt.mT
        for _ in range(ROOT_STEPS):
            shift = (radius / self.c)[..., None]
            weights, free = shortest_in_hull(square + shift * (tilt + shift * pairs), one, free)
            length = (weights * (square @ weights[..., None]).squeeze(-1)).sum(-1, keepdim=True).clamp_min(0).sqrt()
            excess = (length.clamp_min(SMALLEST) / radius).log()
            done = (excess.abs() < TOLERANCE) | (radius < 1.001 * SMALLEST)
            if done.all():
                break
            at = radius.log()
            low, high = torch.where(excess > 0, at, low), torch.where(excess > 0, high, at)
            guess = self._root(square, along, free).clamp_min(math.log(SMALLEST))
            # Where rounding keeps |g_w| from r the closed form returns the same r: it cannot get closer.
            done = done | ((guess - at).abs() < TOLERANCE)
            if done.all():
                break
            guess = torch.where((guess >= low) & (guess <= high), guess, (low + high) / 2)
            radius = torch.where(done, radius, guess.exp())
        return weights, radius

    def _root(self, square: Tensor, along: Tensor, free: Tensor) -> Tensor:
        """The logarithm of |g_w|, [..., 1], at the optimum, if the tasks with weight are the free ones.

        For these g_w . g_i c / |g_w| + along_i = nu. Solved for nu by |g_w| = 1 up to scale, then for the scale by sum w = 1; not finite
        where these tasks have no optimum.
        """
        matrix = restrict(square, free)
        matrix = matrix + torch.diag_embed((matrix.diagonal(dim1=-2, dim2=-1) == 0).double())
        sides = torch.stack([free.double(), only_active(along, free)], -1)
        factor, _ = torch.linalg.cholesky_ex(matrix)
        product = sides.mT @ torch.cholesky_solve(sides, factor)
        one, mixed, mean = product[..., 0, 0], product[..., 0, 1], product[..., 1, 1]
        discriminant = mixed**2 - one * (mean - self.c**2)
        return (self.c / discriminant.sqrt()).log()[..., None]
