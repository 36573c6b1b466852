"""GradVac: gradients are moved until their cosines reach what they usually are.

    for every i, over j in random order, with c the cosine of g_i' and g_j and its target c^:
    if c < c^:    g_i' <- g_i' + |g_i'| (c^ sqrt(1 - c^2) - c sqrt(1 - c^^2)) / (|g_j| sqrt(1 - c^^2)) g_j
    c^ <- (1 - beta) c^ + beta c

Wang et al., "Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively Multilingual Models", ICLR 2021,
algorithm 1. Targets start at 0, where this is PCGrad. All rows are moved at once on the cosines, as in `pcgrad`. Departures: one
target per pair of tasks and not per layer. Weights sum to T or more: d = sum_i T p_i g_i', with a preference p.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing.active import count
from mtl.balancing.contract import State
from mtl.balancing.gramian import cosines, restrict
from mtl.balancing.pcgrad import sum_of_rows, visiting_order, visits
from mtl.balancing.preference import PreferringBalancer

SMALLEST = 1e-12


@dataclass(frozen=True)
class GradVac(PreferringBalancer):
    """GradVac: turn gradients towards each other until their cosines reach their usual values (Wang et al. 2021).

    Args:
        beta: rate at which the usual cosines follow those of the last step.
    """

    beta: float = 0.01
    needs = "gramian"
    heads = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta <= 1:
            raise ValueError(f"balancer.beta must be in [0, 1], got {self.beta}")

    def init(self, like: Tensor) -> State:
        """State: `targets` [..., T, T], row i for the cosines of the moved g_i with the others."""
        return super().init(like) | {"targets": torch.diag_embed(torch.zeros_like(like))}

    def draw_shape(self, num_tasks: int, num_coordinates: int) -> tuple[int, ...]:
        """See `Balancer`."""
        return (num_tasks, num_tasks)

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`; `draw` is [..., T, T], and row i visits the others in the order of its numbers."""
        assert gramian is not None
        cosine, norm = cosines(restrict(gramian, active))
        order = visiting_order(draw)
        there = norm > 0
        pair = there[..., :, None] & there[..., None, :]
        targets = state["targets"].double()
        # With s the length of the part of g_i' across g_j, the target asks for a part along g_j of at least cot s.
        cot = (
            torch.where(pair, targets / (1 - targets**2).clamp_min(SMALLEST).sqrt(), 0).gather(-1, order).unsqueeze(-1).unbind(-2)
        )
        dots, square = cosine.clone(), there[..., None].double()
        added, before = [], []
        for (visited, rows), target in zip(visits(cosine, order), cot, strict=True):
            along = dots.gather(-1, visited)
            across = torch.addcmul(square, along, along, value=-1).clamp_min_(0).sqrt_()
            amount = (target * across).sub_(along).clamp_min_(0)
            before.append(along / square.clamp_min(SMALLEST).sqrt())
            added.append(amount)
            square = square + amount * (2 * along + amount)
            dots.addcmul_(amount, rows)
        if added:
            met = torch.zeros_like(cosine).scatter(-1, order, torch.cat(before, -1))
            others = pair & ~torch.eye(norm.shape[-1], dtype=torch.bool, device=norm.device)
            targets = torch.where(others, torch.lerp(targets, met.clamp(-1, 1), self.beta), targets)
        weights = sum_of_rows(order, added, norm, self.preferences(active) * count(active))
        return weights.to(losses.dtype), {"targets": targets.to(state["targets"].dtype)}
