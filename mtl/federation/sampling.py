"""Which clients take part in a round, and which of them come back."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mtl.seeding import derive_seed


class Draws(Protocol):
    def draw(self, num_clients: int, *, seed: int, round: int) -> tuple[list[int], list[int]]:
        """The cohort of a round, and those of it that come back, both in rising order."""


@dataclass(frozen=True)
class Sampling:
    """Which clients take part in a round.

    cohort: clients drawn without replacement in each round, None for all; dropout: probability that one of them does not come back.
    """

    cohort: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.cohort is not None and self.cohort < 1:
            raise ValueError(f"sampling.cohort must be >= 1, got {self.cohort}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"sampling.dropout must be in [0, 1), got {self.dropout}")

    def draw(self, num_clients: int, *, seed: int, round: int, among: Sequence[int] | None = None) -> tuple[list[int], list[int]]:
        """The cohort of a round, and those of it that come back, both in rising order. among: who can be drawn, None for all clients."""
        cohort = range(num_clients) if among is None else among
        if self.cohort is not None:
            if self.cohort > len(cohort):
                whose = "clients" if among is None else f"clients of {num_clients} that can take part"
                raise ValueError(f"sampling.cohort must be in [1, {len(cohort)}], the number of {whose}, got {self.cohort}")
            # Costs as much as the cohort is large, however many clients sit out.
            cohort = sorted(random.Random(derive_seed(seed, "cohort", round)).sample(cohort, self.cohort))
        stays = [derive_seed(seed, "client-dropout", round, client) >= self.dropout * 2**63 for client in cohort]
        return list(cohort), [client for client, stay in zip(cohort, stays, strict=True) if stay]
