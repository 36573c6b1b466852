"""The cohort of a round, and the orders that it receives."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtl.base.types import Params, Slots
from mtl.federation.population.views import Views


@dataclass(frozen=True)
class Cohort:
    """The clients of one round. In asynchronous rounds a client may be listed more than once: it has trained as often.

    Attributes:
        round: the round, counted from 0.
        drawn: the clients that are sent the model.
        clients: the K whose updates arrive.
        tasks: bool [K, T], the subtasks that each of these trains.
        sizes: training images of each, K numbers.
        steps: local steps of each, K numbers.
        samples: float64 [K], images that each sees in the round; an image counts as often as it is seen.
        seconds: modelled duration of the round, 0 without a fleet.
        joules: modelled energy of the round, 0 without a fleet.
        started: by position in `clients`, the round whose model an update is based on, where that is not this round.
        in_flight: rounds whose model a client still trains on when this round ends.
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
    started: Mapping[int, int] = field(default_factory=dict)
    in_flight: frozenset[int] = frozenset()

    def waves(self) -> list[dict[int, int]]:
        """Return the position of each client by client; a client's second update is in the second mapping, and so on. At least one."""
        waves: list[dict[int, int]] = [{}]
        seen: Counter[int] = Counter()
        for place, client in enumerate(self.clients):
            if seen[client] == len(waves):
                waves.append({})
            waves[seen[client]][client] = place
            seen[client] += 1
        return waves

    @property
    def staleness(self) -> Tensor:
        """How many rounds ended between a client's start and its arrival, float64 [K]."""
        return torch.tensor(
            [self.round - self.started.get(place, self.round) for place in range(len(self.clients))], dtype=torch.float64
        )


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
        versions: the travelling parameters of earlier rounds that clients are based on, by round.
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
    versions: Mapping[int, Params] = field(default_factory=dict)

    def earlier(self, places: Sequence[int]) -> Params:
        """Return the parameters that clients received, stacked [K, ...]; empty where all of them received those of this round.

        Args:
            places: positions of K clients in the cohort.
        """
        rounds = [self.cohort.started.get(place, self.cohort.round) for place in places]
        if all(round == self.cohort.round for round in rounds):
            return {}
        received = [self.versions.get(round, self.travelling) for round in rounds]
        return {name: torch.stack([params[name] for params in received]) for name in self.travelling}

    def versions_in_flight(self) -> dict[int, Params]:
        """Return the versions that clients still train on when the round ends; that of this round is copied."""
        earlier = {round: self.versions[round] for round in self.cohort.in_flight if round != self.cohort.round}
        if self.cohort.round not in self.cohort.in_flight:
            return earlier
        return earlier | {self.cohort.round: {name: value.detach().clone() for name, value in self.travelling.items()}}

    @property
    def like(self) -> Tensor:
        """A parameter, as an example of the round's dtype and device."""
        return next(iter(self.slots["params"].values()))
