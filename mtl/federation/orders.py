"""The cohort of a round, and what it is asked to do."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.base.types import Params, Slots
from mtl.federation.population.views import Views


@dataclass(frozen=True)
class Cohort:
    """Who takes part in a round, drawn once.

    drawn: the clients that are sent the model; clients: K of them, whose updates arrive; tasks: bool [K, T], the subtasks that each
    trains; sizes: training images that each holds, K; samples: float64 [K], images that each sees in the round; seconds, joules: modelled,
    0 without a fleet.
    """

    round: int
    drawn: list[int]
    clients: list[int]
    tasks: Tensor
    sizes: list[int]
    samples: Tensor
    seconds: float = 0.0
    joules: float = 0.0

    def places(self, clients: Sequence[int]) -> Tensor:
        """Where some of the clients stand in the cohort, int64 on the CPU."""
        place = {client: number for number, client in enumerate(self.clients)}
        return torch.tensor([place[client] for client in clients], dtype=torch.long)


@dataclass(frozen=True)
class Orders:
    """What a cohort is sent, and how it is to train.

    slots: of a client that keeps nothing; travelling: the parameters that are sent and sent back; frozen: those that rest; progress: share
    of the training that is done; seed: of the run.
    """

    cohort: Cohort
    views: Views
    slots: Slots
    travelling: Params
    frozen: frozenset[str]
    learning_rate: float
    progress: float
    seed: int

    @property
    def like(self) -> Tensor:
        """A parameter: the type and the device that a round computes in."""
        return next(iter(self.slots["params"].values()))
