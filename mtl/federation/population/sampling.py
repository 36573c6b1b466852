"""Which clients take part in a round, and which of them come back."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from mtl.base.seeding import derive_seed


@dataclass(frozen=True)
class Outcome:
    """cohort, returned: clients in rising order; seconds: modelled, of the round; joules: modelled, of each of the cohort, float64 [K]."""

    cohort: list[int]
    returned: list[int]
    seconds: float
    joules: Tensor


class Draws(Protocol):
    @property
    def modelled(self) -> bool:
        """Whether seconds and joules are modelled."""

    def outcome(self, num_clients: int, *, seed: int, round: int) -> Outcome:
        """Who takes part in a round, who of them comes back, and what it takes."""

    def write(self, run_dir: Path, sizes: Sequence[int], widths: Sequence[float]) -> None:
        """Write what is known of the clients into a run directory. sizes: images that each holds; widths: of the model that each trains."""


@dataclass(frozen=True)
class Sampling:
    """Which clients take part in a round.

    cohort: clients drawn without replacement in each round, None for all; dropout: probability that one of them does not come back.
    """

    cohort: int | None = None
    dropout: float = 0.0
    modelled = False

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

    def outcome(self, num_clients: int, *, seed: int, round: int) -> Outcome:
        """See `Draws`."""
        cohort, returned = self.draw(num_clients, seed=seed, round=round)
        return Outcome(cohort, returned, 0.0, torch.zeros(len(cohort), dtype=torch.float64))

    def write(self, run_dir: Path, sizes: Sequence[int], widths: Sequence[float]) -> None:
        """Nothing is known beside the data."""
