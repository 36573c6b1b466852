"""DWA: more weight to the tasks whose losses fall slowly.

    w = T softmax(r / temperature),    r_i = L_i[-1] / L_i[-2]

with L_i[-1] and L_i[-2] a task's mean losses over the last two epochs. Liu et al., "End-to-End Multi-Task Learning with
Attention", CVPR 2019. Until a task has two such means its ratio is 1. Weights sum to the number of active tasks. Departure: an
epoch is a round, or `period` steps.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mtl.balancing.active import count, only_active, softmax
from mtl.balancing.contract import Balancer, State


@dataclass(frozen=True)
class DWA(Balancer):
    """DWA: more weight to tasks whose losses fall slowly (Liu et al. 2019).

    Args:
        temperature: higher is closer to equal weights.
        period: steps per epoch, null for those a client makes in a round.
    """

    temperature: float = 2.0
    period: int | None = None
    needs = "losses"
    heads = True

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"balancer.temperature must be > 0, got {self.temperature}")
        if self.period is not None and self.period < 1:
            raise ValueError(f"balancer.period must be >= 1, got {self.period}")

    def for_run(self, *, steps_per_round: float, num_rounds: float) -> "DWA":
        """See `Balancer`."""
        return self if self.period is not None else replace(self, period=max(round(steps_per_round), 1))

    def init(self, like: Tensor) -> State:
        """State: `total`, `number` of this epoch's losses; `last`, `before`, means, 0 if none yet, [..., T] each; `step` [..., 1]."""
        if self.period is None:
            raise ValueError("balancer.period must be a number of steps where no run sets it, got null")
        names = ("total", "number", "last", "before")
        return {name: torch.zeros_like(like) for name in names} | {"step": torch.zeros_like(like[..., :1])}

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`."""
        assert self.period is not None
        last, before = state["last"], state["before"]
        ratio = torch.where((last > 0) & (before > 0), last / before, 1)
        weights = count(active) * softmax(ratio / self.temperature, active)
        total = state["total"] + only_active(losses, active)
        number = state["number"] + active
        step = state["step"] + 1
        over = step >= self.period
        rolled = over & (number > 0)
        return weights, {
            "total": torch.where(over, 0, total),
            "number": torch.where(over, 0, number),
            "last": torch.where(rolled, total / number, last),
            "before": torch.where(rolled, last, before),
            "step": torch.where(over, 0, step),
        }
