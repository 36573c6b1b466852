"""PCD: follow the gradient of one primary task, as long as every other one gets a share of the progress that it could make alone.

    d = argmin |d - h_p|^2 / 2    subject to    h_j . d >= tau |h_j|^2  for all j but p,        h_i = g_i / sqrt(v_i + 1e-8)

scaled to the length of g_p; v_i is the bias-corrected moving average of |g_i|^2 with decay beta. Priority-Constrained Descent, "Not All
Objectives Are Born Equal", TMLR 2026, arXiv 2606.29521, with their defaults. d = h_p + sum_j mu_j h_j, mu >= 0 the solution of a linear
complementarity problem, so the Gramian is enough. Constraints that cannot all hold are dropped: d = g_p. A primary task without a
gradient gives no update, as in the paper. Departure: where no label of the primary task is known, the first active task after it replaces
it, in the order of the tasks and around their end.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing.complementarity import solve_complementarity
from mtl.balancing.contract import Balancer, State
from mtl.balancing.gramian import length_of, norms, restrict, rounding

SMALLEST = 1e-8


@dataclass(frozen=True)
class PCD(Balancer):
    """PCD: follow one primary task while every other task keeps a share of the progress it could make alone.

    Args:
        primary: number of the primary task, from 0.
        tau: share of their own progress that the other tasks keep.
        beta: decay of the mean squared lengths of the gradients.
    """

    primary: int = 0
    tau: float = 0.02
    beta: float = 0.999
    needs = "gramian"
    heads = False

    def __post_init__(self) -> None:
        if self.primary < 0:
            raise ValueError(f"balancer.primary must be >= 0, got {self.primary}")
        if not 0 <= self.tau <= 1:
            raise ValueError(f"balancer.tau must be in [0, 1], got {self.tau}")
        if not 0 <= self.beta < 1:
            raise ValueError(f"balancer.beta must be in [0, 1), got {self.beta}")

    def init(self, like: Tensor) -> State:
        """State: `squares`, the moving average before its correction, and `steps`, the steps in it; [..., T] each."""
        if self.primary >= like.shape[-1]:
            raise ValueError(f"balancer.primary must be in [0, {like.shape[-1] - 1}], got {self.primary}")
        return {"squares": torch.zeros_like(like), "steps": torch.zeros_like(like)}

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`."""
        assert gramian is not None
        square, dtype = restrict(gramian, active), state["squares"].dtype
        steps = state["steps"] + active
        newest = norms(square) ** 2
        squares = torch.where(active, torch.lerp(newest, state["squares"].double(), self.beta), state["squares"].double())
        scale = 1 / (squares / (1 - self.beta ** steps.clamp_min(1).double()) + SMALLEST).sqrt()
        weights = self._solve(square * scale[..., :, None] * scale[..., None, :], active, rounding(losses)) * scale
        length = length_of(weights, square)
        first = (self._primary(active) * norms(square)).sum(-1, keepdim=True)
        known = length > rounding(losses) * (weights * norms(square)).sum(-1, keepdim=True)
        weights = torch.where(known, weights * first / length, 0)
        return weights.to(losses.dtype), {"squares": squares.to(dtype), "steps": steps}

    def _primary(self, active: Tensor) -> Tensor:
        """1 at the primary task, or at its replacement where it is not active; 0 elsewhere; [..., T]."""
        order = (torch.arange(active.shape[-1], device=active.device) - self.primary) % active.shape[-1]
        rank = torch.where(active, order, active.shape[-1])
        return (active & (rank == rank.amin(-1, keepdim=True))).double()

    def _solve(self, square: Tensor, active: Tensor, tolerance: float) -> Tensor:
        """The weights of the h in d, [..., T], from the Gramian of the h, [..., T, T]."""
        first = self._primary(active)
        size = square.diagonal(dim1=-2, dim2=-1)
        others = active & (first == 0) & (size > 0)
        offset = torch.where(others, (square @ first[..., None]).squeeze(-1) - self.tau * size, 0)
        pairs = square * (others[..., :, None] & others[..., None, :])
        unit = size.amax(-1, keepdim=True)
        unit = torch.where(unit > 0, unit, 1)
        steady = pairs / unit[..., None] + torch.diag_embed(tolerance * size / unit)
        multiplier, _ = solve_complementarity(steady, offset / unit, offset < 0)
        slack = (pairs @ multiplier[..., None]).squeeze(-1) + offset
        feasible = (slack >= -(self.tau / 2) * size - tolerance * unit).all(-1, keepdim=True)
        return first * (size > 0) + torch.where(feasible, multiplier, 0)
