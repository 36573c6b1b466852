"""The clients' learning rate over the rounds, as a factor of its start."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Shape = Literal["constant", "cosine", "linear"]


@dataclass(frozen=True)
class Schedule:
    """The clients' learning rate over the rounds, as a factor of its start.

    Args:
        shape: constant, cosine (to zero) or linear (to zero)
        warmup: rounds of a linear rise at the beginning
    """

    shape: str = "cosine"
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.shape not in get_args(Shape):
            raise ValueError(f"schedule.shape must be one of {', '.join(get_args(Shape))}, got {self.shape}")
        if self.warmup < 0:
            raise ValueError(f"schedule.warmup must be >= 0, got {self.warmup}")

    def factor(self, round: int, num_rounds: int) -> float:
        """Return the factor of the learning rate in a round, counted from 0."""
        if round < self.warmup:
            return (round + 1) / (self.warmup + 1)
        progress = (round - self.warmup) / max(num_rounds - self.warmup, 1)
        if self.shape == "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        return 1 - progress if self.shape == "linear" else 1.0
