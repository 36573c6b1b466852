"""Smooth Tchebycheff scalarisation: a soft maximum of the tasks' losses.

    STCH       mu ln sum_i exp(p_i (L_i - z_i) / mu)                w_i = p_i softmax_i(p (L - z) / mu)
    LogSTCH    T mu ln sum_i exp(T p_i ln(L_i / nadir_i) / mu)      w_i = T^2 p_i softmax_i(T p ln(L / nadir) / mu) / L_i

Lin et al., "Smooth Tchebycheff Scalarization for Multi-Objective Optimization", ICML 2024: STCH is its equation 7 with equal
preferences unless p is given, LogSTCH what its multi-task experiments run. That descends the sum of the log-losses for `warmup` steps,
the last `nadir_steps` of which give the nadir, the mean loss. STCH's weights sum to 1 / T, LogSTCH's to anything. 1e-8 is added to
LogSTCH's losses, and a task whose loss is 0 gets no weight. Departure: the authors warm up for 4 epochs of 200; here it is the twentieth
part of the run, and the nadir is taken over the last fifth of that.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mtl.balancing.active import SMALLEST, count, only_active, softmax, unsolved
from mtl.balancing.contract import State
from mtl.balancing.preference import PreferringBalancer


@dataclass(frozen=True)
class STCH(PreferringBalancer):
    """STCH: descend a soft maximum of the losses (smooth Tchebycheff, Lin et al. 2024).

    Args:
        mu: how soft the maximum is.
        reference: the ideal loss z, the same for every task.
    """

    mu: float = 1.0
    reference: float = 0.0
    needs = "losses"
    heads = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mu(self.mu)

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`."""
        preference = self.preferences(active).to(losses.dtype)
        above = only_active(losses, active) - self.reference
        return preference * softmax(preference * above / self.mu, active), state


@dataclass(frozen=True)
class LogSTCH(PreferringBalancer):
    """LogSTCH: after a warm-up, descend a soft maximum of the log-losses (Lin et al. 2024).

    Args:
        mu: how soft the maximum is.
        warmup: steps before it, null for a twentieth of those a client makes in the run.
        nadir_steps: the last steps of the warm-up, whose losses are averaged to the nadir, null for a fifth.
    """

    mu: float = 1.0
    warmup: int | None = None
    nadir_steps: int | None = None
    needs = "losses"
    heads = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mu(self.mu)
        if self.nadir_steps is not None and self.nadir_steps < 1:
            raise ValueError(f"balancer.nadir_steps must be >= 1, got {self.nadir_steps}")
        least = self.nadir_steps or 1
        if self.warmup is not None and self.warmup < least:
            raise ValueError(f"balancer.warmup must be >= nadir_steps {least}, got {self.warmup}")

    def for_run(self, *, steps_per_round: float, num_rounds: float) -> "LogSTCH":
        """See `Balancer`."""
        nadir = self.nadir_steps or 1
        warmup = max(round(steps_per_round * num_rounds / 20), nadir) if self.warmup is None else self.warmup
        return replace(self, warmup=warmup, nadir_steps=self.nadir_steps or max(warmup // 5, 1))

    def init(self, like: Tensor) -> State:
        """State: `total`, `number` [..., T], of the losses that give the nadir; `step` [..., 1], the steps done."""
        if self.warmup is None or self.nadir_steps is None:
            raise ValueError("balancer.warmup and nadir_steps must be numbers of steps where no run sets them, got null")
        return super().init(like) | {
            "total": torch.zeros_like(like),
            "number": torch.zeros_like(like),
            "step": torch.zeros_like(like[..., :1]),
        }

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`."""
        total, number, step = state["total"], state["number"], state["step"]
        assert self.warmup is not None
        assert self.nadir_steps is not None
        there = unsolved(losses, active)
        positive = only_active(losses, there) + SMALLEST
        preference = self.preferences(there).to(losses.dtype) * count(there)
        # A task that had no label while the nadir was measured has nadir 1.
        nadir = torch.where(number > 0, total / number.clamp_min(1), 1).clamp_min(SMALLEST)
        soft = count(there) * softmax(preference * (positive / nadir).log() / self.mu, there)
        weights = preference * torch.where(step < self.warmup, there.to(losses.dtype), soft) / positive
        averaged = active & (step >= self.warmup - self.nadir_steps) & (step < self.warmup)
        return weights, {
            "total": total + only_active(losses, averaged),
            "number": number + averaged,
            "step": step + 1,
        }


def check_mu(mu: float) -> None:
    """Raise ValueError unless mu is above zero."""
    if not mu > 0:
        raise ValueError(f"balancer.mu must be > 0, got {mu}")
