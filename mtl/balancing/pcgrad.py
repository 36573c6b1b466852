"""PCGrad: each gradient loses what conflicts with the others, one after another in random order; the results are summed.

    for every i, over j in random order:    g_i' <- g_i' - (g_i' . g_j)_- / |g_j|^2  g_j

Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, algorithm 1. All rows i are projected side by side, each in
an order of its own, on the Gramian: g_i' . g_k is kept for every k, so a projection is one row of G added. Weights sum to T or
more.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing.contract import Balancer, State
from mtl.balancing.gramian import restrict


@dataclass(frozen=True)
class PCGrad(Balancer):
    needs = "gramian"
    heads = False

    def draw_shape(self, num_tasks: int, num_coordinates: int) -> tuple[int, ...]:
        return (num_tasks, num_tasks)

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """draw: [..., T, T]; row i is visited in the order of its numbers."""
        assert gramian is not None
        square = restrict(gramian, active)
        order = draw.argsort(-1)
        rows = visited_rows(square, order)
        own = torch.arange(square.shape[-1], device=square.device)[:, None] == order
        length = square.diagonal(dim1=-2, dim2=-1)[..., None, :].expand_as(square).gather(-1, order)
        inverse = torch.where(own | (length == 0), 0, 1 / length)
        dots = square.clone()
        removed = []
        for step in range(square.shape[-1]):
            j = order[..., step : step + 1]
            along = dots.gather(-1, j).clamp_max(0) * inverse[..., step : step + 1]
            dots = dots - along * rows[..., step, :, :]
            removed.append(along)
        weights = active.double().scatter_add(-1, order.flatten(-2), -torch.cat(removed, -1).flatten(-2))
        return weights.to(losses.dtype), state


def visited_rows(square: Tensor, order: Tensor) -> Tensor:
    """square: [..., T, T]; order: [..., T, T]; returns the row of `square` that row i visits at each step, [..., step, i, T]."""
    return square[..., None, :, :].take_along_dim(order.mT[..., None], -2)
