"""The cohort of a round, and the orders that it receives."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.base.types import Params, Slots
from mtl.federation.population.views import Views


@dataclass(frozen=True)
class Cohort:
    """The clients of one round.

    Attributes:
        round: the round, counted from 0.
        drawn: the clients that are sent the model.
        clients: the K of them whose updates arrive.
        tasks: bool [K, T], the subtasks that each of these trains.
        sizes: training images of each, K numbers.
        steps: local steps of each, K numbers.
        samples: float64 [K], images that each sees in the round; an image counts as often as it is seen.
        seconds: modelled duration of the round, 0 without a fleet.
        joules: modelled energy of the round, 0 without a fleet.
    """

    round: int
    drawn: list[int]
    clients: list[int]
    tasks: Tensor
    sizes: list[int]
    steps: list[int]
    samples: Tensor
    seconds: float = 0.0
    joules: float = 0.0

    def places(self, clients: Sequence[int]) -> Tensor:
        """Return the positions of some clients in the cohort, int64 on the CPU."""
        positions = {client: position for position, client in enumerate(self.clients)}
        return torch.tensor([positions[client] for client in clients], dtype=torch.long)


@dataclass(frozen=True)
class Orders:
    """What the server sends to a cohort, and how the cohort trains.

    Attributes:
        cohort: the clients of the round.
        views: the part of the model that each client trains.
        slots: the slots that a client without state of its own starts from.
        travelling: the parameters that are sent to the clients and back in this round.
        broadcast: further slots that are sent to the clients.
        frozen: names of the parameters that are not trained in this round.
        learning_rate: the clients' learning rate in this round.
        progress: share of the run's training that is done, 0 to 1.
        seed: seed of the run.
    """

    cohort: Cohort
    views: Views
    slots: Slots
    travelling: Params
    broadcast: Slots
    frozen: frozenset[str]
    learning_rate: float
    progress: float
    seed: int

    @property
    def like(self) -> Tensor:
        """A parameter, as an example of the round's dtype and device."""
        return next(iter(self.slots["params"].values()))
