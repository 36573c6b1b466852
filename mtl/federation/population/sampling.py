"""Sampling: which clients take part in a round, and which of them come back."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from mtl.base.seeding import derive_seed


@dataclass(frozen=True)
class Outcome:
    """Who took part in a round, and what it cost. In asynchronous rounds clients stand in the order of events, some of them twice.

    Attributes:
        cohort: the K clients that were sent the model, in rising order.
        returned: those of them whose updates arrived, in rising order.
        seconds: modelled duration of the round, 0 without a fleet.
        joules: float64, modelled energy of each client that worked in the round.
        started: as in `Cohort`.
        in_flight: as in `Cohort`.
    """

    cohort: list[int]
    returned: list[int]
    seconds: float
    joules: Tensor
    started: Mapping[int, int] = field(default_factory=dict)
    in_flight: frozenset[int] = frozenset()


class Draws(Protocol):
    """Draws the cohort of a round; a pure function of seed and round."""

    @property
    def modelled(self) -> bool:
        """Whether seconds and joules are modelled."""

    def outcome(self, num_clients: int, *, seed: int, round: int) -> Outcome:
        """Return who takes part in a round, whose updates arrive, and what it costs."""

    def write(self, run_dir: Path, sizes: Sequence[int], widths: Sequence[float]) -> None:
        """Write a table of the clients to the run directory.

        Args:
            run_dir: the run directory.
            sizes: training images of each client, C.
            widths: share of the model's channels that each client trains, C.
        """


@dataclass(frozen=True)
class Sampling:
    """Which clients take part in a round.

    Args:
        cohort: clients drawn without replacement in each round, None for all
        dropout: probability that one of them does not come back
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
        """Return the cohort of a round and those of it that come back, both in rising order.

        Args:
            num_clients: number of clients of the federation.
            seed: seed of the run.
            round: the round, counted from 0.
            among: the clients that can be drawn, None for all.

        Raises:
            ValueError: the cohort is larger than the number of clients that can be drawn.
        """
        cohort = range(num_clients) if among is None else among
        if self.cohort is not None:
            if self.cohort > len(cohort):
                candidates = "clients" if among is None else f"clients of {num_clients} that can take part"
                raise ValueError(f"sampling.cohort must be in [1, {len(cohort)}], the number of {candidates}, got {self.cohort}")
            # The cost grows with the cohort, not with the number of clients.
            cohort = sorted(random.Random(derive_seed(seed, "cohort", round)).sample(cohort, self.cohort))
        stays = [derive_seed(seed, "client-dropout", round, client) >= self.dropout * 2**63 for client in cohort]
        return list(cohort), [client for client, stay in zip(cohort, stays, strict=True) if stay]

    def outcome(self, num_clients: int, *, seed: int, round: int) -> Outcome:
        """See `Draws`."""
        cohort, returned = self.draw(num_clients, seed=seed, round=round)
        return Outcome(cohort, returned, 0.0, torch.zeros(len(cohort), dtype=torch.float64))

    def write(self, run_dir: Path, sizes: Sequence[int], widths: Sequence[float]) -> None:
        """See `Draws`: nothing to write."""
