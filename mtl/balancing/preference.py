"""Preferences among the tasks: a vector p > 0, one number per task, that tilts what a method aims at; equal without it.

What a preference means is part of each method (its docstring has the formula), and it is not a factor of the losses: methods that do
not depend on the tasks' scales, such as Nash-MTL, would undo that.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtl.balancing.active import count, share
from mtl.balancing.contract import Balancer, State


@dataclass(frozen=True)
class PreferringBalancer(Balancer):
    """A balancer with a preference among the tasks.

    Args:
        preference: one number > 0 per task, of which only the ratios count; null for equal ones.
    """

    preference: tuple[float, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.preference is not None and not all(0 < value < math.inf for value in self.preference):
            raise ValueError(f"balancer.preference must be > 0 and finite for every task, got {list(self.preference)}")

    def init(self, like: Tensor) -> State:
        """Check the preference; no state.

        Raises:
            ValueError: unless there is one preference per task.
        """
        num_tasks = like.shape[-2] if self.needs == "gradients" else like.shape[-1]
        if self.preference is not None and len(self.preference) != num_tasks:
            raise ValueError(f"balancer.preference must be one per task, {num_tasks}, got {len(self.preference)}")
        return {}

    def preferences(self, active: Tensor) -> Tensor:
        """The preferences p, float64 [..., T], summing to 1 over the active tasks, bool [..., T], 0 elsewhere."""
        if self.preference is None:
            return active / count(active).double()
        return share(torch.tensor(self.preference, dtype=torch.float64, device=active.device).expand(active.shape), active)
