"""GradVac: gradients are moved until their cosines reach what they usually are.

    for every i, over j in random order, with c the cosine of g_i' and g_j and its target c^:
    if c < c^:    g_i' <- g_i' + |g_i'| (c^ sqrt(1 - c^2) - c sqrt(1 - c^^2)) / (|g_j| sqrt(1 - c^^2)) g_j
    c^ <- (1 - beta) c^ + beta c

Wang et al., "Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively Multilingual Models", ICLR 2021,
algorithm 1. Targets start at 0, where this is PCGrad. Rows are moved side by side on the Gramian, as in `pcgrad`. Departures: one
target per pair of tasks and not per layer. Weights sum to T or more.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing.contract import Balancer, State
from mtl.balancing.gramian import mean_square, norms, restrict
from mtl.balancing.pcgrad import visited_rows

SMALLEST = 1e-12


@dataclass(frozen=True)
class GradVac(Balancer):
    """beta: how fast the targets follow."""

    beta: float = 0.01
    needs = "gramian"
    heads = False

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ValueError(f"balancer.beta must be in [0, 1], got {self.beta}")

    def init(self, like: Tensor) -> State:
        """targets: [..., T, T], row i for the cosines of the moved g_i with the others."""
        return {"targets": torch.diag_embed(torch.zeros_like(like))}

    def draw_shape(self, num_tasks: int, num_coordinates: int) -> tuple[int, ...]:
        return (num_tasks, num_tasks)

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """draw: [..., T, T]; row i is visited in the order of its numbers."""
        assert gramian is not None
        square = restrict(gramian, active)
        square = square / mean_square(square, active)
        order = draw.argsort(-1)
        rows = visited_rows(square, order)
        own = torch.arange(square.shape[-1], device=square.device)[:, None] == order
        length = norms(square)[..., None, :].expand_as(square).gather(-1, order)
        targets = state["targets"].double().gather(-1, order)
        there = ~own & (length > 0) & active[..., :, None]
        dots, moved = square.clone(), norms(square)[..., None] ** 2
        added, cosines = [], []
        for step in range(square.shape[-1]):
            j = order[..., step : step + 1]
            here, norm_j, target = (x[..., step : step + 1] for x in (there, length, targets))
            dot, norm_i = dots.gather(-1, j), moved.clamp_min(0).sqrt()
            cosine = (dot / (norm_i * norm_j).clamp_min(SMALLEST)).clamp(-1, 1)
            sine, target_sine = (1 - cosine**2).sqrt(), (1 - target**2).clamp_min(0).sqrt()
            amount = norm_i * (target * sine - cosine * target_sine) / (norm_j * target_sine).clamp_min(SMALLEST)
            amount = torch.where(here & (cosine < target), amount, 0)
            dots = dots + amount * rows[..., step, :, :]
            moved = moved + amount * (2 * dot + amount * norm_j**2)
            added.append(amount)
            cosines.append(torch.where(here, cosine, target))
        weights = active.double().scatter_add(-1, order.flatten(-2), torch.cat(added, -1).flatten(-2))
        seen = torch.lerp(targets, torch.cat(cosines, -1), self.beta)
        seen = torch.zeros_like(square).scatter(-1, order, seen).to(state["targets"].dtype)
        return weights.to(losses.dtype), {"targets": seen}
