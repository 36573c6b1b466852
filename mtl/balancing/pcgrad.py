"""PCGrad: each gradient loses what conflicts with the others, one after another in random order; the results are summed.

    for every i, over j in random order:    g_i' <- g_i' - (g_i' . g_j)_- / |g_j|^2  g_j        d = sum_i T p_i g_i'

Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, algorithm 1. p: preference, 1 / T each unless given.

All rows i are projected at once, each in its own order, on the cosines: for unit gradients g_i' . g_k is stored for every k,
so a projection adds a multiple of one row. Weights sum to T or more.

Where the authors' code departs from their algorithm, the algorithm is followed: the code drops the losses that it shuffles, so that every
row visits the tasks in the same order, that of the list. Both sum the rows and leave learning rates as for the sum of the losses;
`Pytorch-PCGrad`, the usual port, averages by default.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing.active import count
from mtl.balancing.contract import State
from mtl.balancing.gramian import cosines, restrict
from mtl.balancing.preference import PreferringBalancer


@dataclass(frozen=True)
class PCGrad(PreferringBalancer):
    """PCGrad: each gradient loses the part that conflicts with another's, then all are summed (Yu et al. 2020)."""

    needs = "gramian"
    heads = False

    def draw_shape(self, num_tasks: int, num_coordinates: int) -> tuple[int, ...]:
        """See `Balancer`."""
        return (num_tasks, num_tasks)

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`; `draw` is [..., T, T], and row i visits the others in the order of its numbers."""
        assert gramian is not None
        cosine, norm = cosines(restrict(gramian, active))
        order = visiting_order(draw)
        dots, added = cosine.clone(), []
        for visited, rows in visits(cosine, order):
            added.append(dots.gather(-1, visited).clamp_max_(0).neg_())
            dots.addcmul_(added[-1], rows)
        return sum_of_rows(order, added, norm, self.preferences(active) * count(active)).to(losses.dtype), state


def visiting_order(draw: Tensor) -> Tensor:
    """In row i all tasks but i, in the order of the numbers in row i of `draw` [..., T, T]; [..., T, T - 1]."""
    diagonal = torch.eye(draw.shape[-1], dtype=torch.bool, device=draw.device)
    return torch.where(diagonal, torch.inf, draw).argsort(-1)[..., :-1]


def visits(cosine: Tensor, order: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each step the task that row i visits, [..., T, 1], and its cosines, [..., T, T].

    Args:
        cosine: [..., T, T].
        order: [..., T, T - 1], see `visiting_order`.
    """
    steps = order.mT[..., None].contiguous()
    rows = cosine[..., None, :, :].take_along_dim(steps, -2)
    return list(zip(steps.unbind(-3), rows.unbind(-3), strict=True))


def sum_of_rows(order: Tensor, added: list[Tensor], norm: Tensor, emphasis: Tensor) -> Tensor:
    """The weights of sum_i emphasis_i g_i', [..., T].

    Row i stands for a unit gradient, so that its multiples are scaled by |g_i| / |g_j|.

    Args:
        order: [..., T, T - 1], see `visiting_order`.
        added: for each step [..., T, 1], how much of the unit gradient that it visited row i added.
        norm: [..., T], lengths of the gradients.
        emphasis: [..., T].
    """
    total = torch.zeros_like(norm)
    if added:
        scaled = torch.cat(added, -1) * (norm * emphasis)[..., :, None]
        total = total.scatter_add(-1, order.flatten(-2), scaled.flatten(-2))
    return emphasis + torch.where(norm > 0, total / norm, 0)
