"""Smooth Tchebycheff scalarisation: a soft maximum of the tasks' losses.

    STCH       mu ln sum_i exp((L_i - z_i) / (T mu))          w_i = softmax_i((L - z) / (T mu)) / T
    LogSTCH    T mu ln sum_i exp(ln(L_i / nadir_i) / mu)      w_i = T softmax_i(ln(L / nadir) / mu) / L_i

Lin et al., "Smooth Tchebycheff Scalarization for Multi-Objective Optimization", ICML 2024: STCH is its equation 7 with equal
preferences, LogSTCH what its multi-task experiments run. That descends the sum of the log-losses for `warmup` steps, the last
`nadir_steps` of which give the nadir, the mean loss. STCH's weights sum to 1 / T, LogSTCH's to anything. Departure: steps instead
of epochs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing.active import count, only_active, softmax
from mtl.balancing.contract import Balancer, State

SMALLEST = 1e-8


@dataclass(frozen=True)
class STCH(Balancer):
    """mu: how soft the maximum is; reference: the ideal loss z, the same for every task."""

    mu: float = 1.0
    reference: float = 0.0
    needs = "losses"
    heads = True

    def __post_init__(self) -> None:
        check_mu(self.mu)

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        number = count(active)
        above = only_active(losses, active) - self.reference
        return softmax(above / (number * self.mu), active) / number, state


@dataclass(frozen=True)
class LogSTCH(Balancer):
    """mu: how soft the maximum is; warmup: steps before it, of which the last nadir_steps are averaged."""

    mu: float = 1.0
    warmup: int = 500
    nadir_steps: int = 100
    needs = "losses"
    heads = True

    def __post_init__(self) -> None:
        check_mu(self.mu)
        if self.nadir_steps < 1:
            raise ValueError(f"balancer.nadir_steps must be >= 1, got {self.nadir_steps}")
        if self.warmup < self.nadir_steps:
            raise ValueError(f"balancer.warmup must be >= nadir_steps {self.nadir_steps}, got {self.warmup}")

    def init(self, like: Tensor) -> State:
        """total, number: [..., T], of the losses that give the nadir; step: [..., 1], the steps done."""
        return {"total": torch.zeros_like(like), "number": torch.zeros_like(like), "step": torch.zeros_like(like[..., :1])}

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        total, number, step = state["total"], state["number"], state["step"]
        positive = only_active(losses, active).clamp_min(0) + SMALLEST
        # A task that had no label while the nadir was taken is held against 1.
        nadir = torch.where(number > 0, total / number.clamp_min(1), 1).clamp_min(SMALLEST)
        soft = count(active) * softmax((positive / nadir).log() / self.mu, active)
        weights = torch.where(step < self.warmup, active.to(losses.dtype), soft) / positive
        averaged = active & (step >= self.warmup - self.nadir_steps) & (step < self.warmup)
        return weights, {
            "total": total + only_active(losses, averaged),
            "number": number + averaged,
            "step": step + 1,
        }


def check_mu(mu: float) -> None:
    if not mu > 0:
        raise ValueError(f"balancer.mu must be > 0, got {mu}")
