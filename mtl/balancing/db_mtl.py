"""DB-MTL: gradients of log-losses, smoothed, all made as long as the longest.

    y_i <- g_i / L_i + beta / k^decay (y_i - g_i / L_i)        d = max_j |y_j| sum_i T p_i y_i / |y_i|        at step k = 1, 2, ...

Lin et al., "Dual-Balancing for Multi-Task Learning", 2023, arXiv 2308.12029, algorithm 1. y starts at zero. With beta = 0 nothing
is remembered and the Gramian is enough; so it is here, whereas beta > 0 keeps y, as large as all tasks' gradients.

The weight of a task, max_j |y_j| / (|y_i| L_i), is what multiplies its newest gradient where beta = 0. Departure: the authors'
heads descend the log-losses, weight 1 / L_i; here heads get 1 or the whole weight. 1e-8 is added to losses, as in the authors' code. A
task whose loss is 0 has no newest gradient, and no weight unless it remembers one. p: preference, 1 / T each unless given.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing.active import SMALLEST, count, only_active, unsolved
from mtl.balancing.contract import Level, Needs, State
from mtl.balancing.gramian import norms, restrict
from mtl.balancing.preference import PreferringBalancer


@dataclass(frozen=True)
class DBMTL(PreferringBalancer):
    """DB-MTL: gradients of the log-losses, all made as long as the longest (Lin et al. 2023).

    Args:
        beta: how much of the smoothed gradient stays at the first step, 0 for none.
        decay: how fast that falls with the steps.
    """

    beta: float = 0.0
    decay: float = 0.5
    heads = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta < 1:
            raise ValueError(f"balancer.beta must be in [0, 1), got {self.beta}")
        if not self.decay >= 0:
            raise ValueError(f"balancer.decay must be >= 0, got {self.decay}")

    @property
    def needs(self) -> Needs:
        """See `Balancer`."""
        return "gradients" if self.beta else "gramian"

    @property
    def levels(self) -> tuple[Level, ...]:
        """See `Balancer`."""
        return ("parameters",) if self.beta else super().levels

    def init(self, like: Tensor) -> State:
        """State: `smooth` [..., T, P] and `step` [..., 1], the steps done."""
        own = super().init(like)
        return own | {"smooth": torch.zeros_like(like), "step": torch.zeros_like(like[..., 0, :1])} if self.beta else own

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`."""
        assert gramian is not None
        weight = log_loss_weight(losses, active)
        factor = to_longest(norms(restrict(gramian, active)).to(losses.dtype) * weight)
        return weight * factor * self._emphasis(losses, active), state

    def combine(
        self, state: State, losses: Tensor, gradients: Tensor, active: Tensor, draw: Tensor
    ) -> tuple[Tensor, Tensor, State]:
        """See `Balancer`."""
        if not self.beta:
            return super().combine(state, losses, gradients, active, draw)
        weight = log_loss_weight(losses, active)
        newest = only_active(gradients, active[..., None]) * weight[..., None]
        step = state["step"] + active.any(-1, keepdim=True)
        rate = self.beta / step.clamp_min(1) ** self.decay
        smooth = torch.where(active[..., None], newest + rate[..., None] * (state["smooth"] - newest), state["smooth"])
        taken = only_active(smooth, active[..., None])
        factor = to_longest(taken.norm(dim=-1)) * self._emphasis(losses, active)
        direction = (factor[..., None] * taken).sum(-2)
        return direction, factor * weight, {"smooth": smooth, "step": step}

    def _emphasis(self, losses: Tensor, active: Tensor) -> Tensor:
        """T times the preference p, [..., T]."""
        return (self.preferences(active) * count(active)).to(losses.dtype)


def log_loss_weight(losses: Tensor, active: Tensor) -> Tensor:
    """1 / L of the active tasks whose loss is not 0, [..., T]; 0 elsewhere."""
    there = unsolved(losses, active)
    return there / (only_active(losses, there) + SMALLEST)


def to_longest(length: Tensor) -> Tensor:
    """Factors that make all lengths [..., T] as long as the longest, 0 for those without length."""
    return torch.where(length > 0, length.amax(-1, keepdim=True) / torch.where(length > 0, length, 1), length)
