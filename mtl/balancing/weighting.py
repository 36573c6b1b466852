"""Weights that learn nothing: the baselines, which should be in every table (Royer et al., 2025, arXiv 2505.10347).

    Equal    w_i = 1, a plain sum
    Fixed    w_i as given
    RLW      w = softmax(z), z standard normal, drawn anew at every step; sums to 1

RLW: Lin et al., "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning", TMLR 2022.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing.active import softmax
from mtl.balancing.contract import Balancer, State


@dataclass(frozen=True)
class Equal(Balancer):
    """A plain sum: every task has weight 1."""

    needs = "losses"
    heads = True

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`."""
        return active.to(losses.dtype), state


@dataclass(frozen=True)
class Fixed(Balancer):
    """Weights that the user gives and that never change.

    Args:
        weights: one number >= 0 per task.
    """

    weights: tuple[float, ...]
    needs = "losses"
    heads = True

    def __post_init__(self) -> None:
        if not all(0 <= weight < math.inf for weight in self.weights):
            raise ValueError(f"balancer.weights must be >= 0 and finite, got {self.weights}")

    def init(self, like: Tensor) -> State:
        """State: `weights` [..., T].

        Raises:
            ValueError: unless there is one per task.
        """
        if like.shape[-1] != len(self.weights):
            raise ValueError(f"balancer.weights must be one per task, {like.shape[-1]}, got {len(self.weights)}")
        return {"weights": torch.tensor(self.weights, dtype=like.dtype, device=like.device).expand(like.shape).clone()}

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`."""
        return state["weights"] * active, state


@dataclass(frozen=True)
class RLW(Balancer):
    """Random weights that sum to 1, drawn anew at every step (Lin et al. 2022)."""

    needs = "losses"
    heads = True

    def draw_shape(self, num_tasks: int, num_coordinates: int) -> tuple[int, ...]:
        """See `Balancer`."""
        return (num_tasks,)

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`; `draw` is [..., T]."""
        return softmax(standard_normal(draw), active).to(losses.dtype), state


def standard_normal(uniform: Tensor) -> Tensor:
    """Normal numbers from uniform ones in [0, 1), finite at the ends."""
    edge = torch.finfo(uniform.dtype).eps
    return math.sqrt(2) * torch.erfinv((2 * uniform - 1).clamp(edge - 1, 1 - edge))
