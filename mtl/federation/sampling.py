"""Which clients take part in a round, and which of them come back."""

from dataclasses import dataclass

import torch

from mtl.seeding import generator


@dataclass(frozen=True)
class Sampling:
    """cohort: clients drawn without replacement in each round, None for all; dropout: probability that one does not come back."""

    cohort: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.cohort is not None and self.cohort < 1:
            raise ValueError(f"sampling.cohort must be >= 1, got {self.cohort}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"sampling.dropout must be in [0, 1), got {self.dropout}")

    def draw(self, num_clients: int, *, seed: int, round: int) -> tuple[list[int], list[int]]:
        """The cohort of a round, and those of it that come back, both in rising order."""
        cohort = list(range(num_clients))
        if self.cohort is not None:
            if self.cohort > num_clients:
                raise ValueError(f"sampling.cohort must be in [1, {num_clients}], the number of clients, got {self.cohort}")
            cohort = sorted(torch.randperm(num_clients, generator=generator(seed, "cohort", round))[: self.cohort].tolist())
        if not self.dropout:
            return cohort, cohort
        stays = torch.rand(num_clients, generator=generator(seed, "client-dropout", round)) >= self.dropout
        return cohort, [client for client in cohort if stays[client]]
