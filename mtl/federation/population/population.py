"""The population: the clients of a federation, how they are sampled, and which part of the model each trains."""

from dataclasses import dataclass

import torch

from mtl.data.client_batches import LocalWork
from mtl.data.federated_data import FederatedData
from mtl.federation.orders import Cohort
from mtl.federation.population.sampling import Draws
from mtl.federation.population.views import Views


@dataclass(frozen=True)
class Population:
    """The clients of a federation.

    Attributes:
        sampling: draws the cohorts.
        views: the part of the model that each client trains.
        work: batches and local steps of a client in a round.
        seed: seed of the run.
    """

    sampling: Draws
    views: Views
    work: LocalWork
    seed: int

    def draw(self, data: FederatedData, round: int) -> Cohort:
        """Return the cohort of a round, counted from 0."""
        outcome = self.sampling.outcome(data.num_clients, seed=self.seed, round=round)
        sizes = [data.clients.size(client) for client in outcome.returned]
        return Cohort(
            round=round,
            drawn=outcome.cohort,
            clients=outcome.returned,
            tasks=data.assignment[outcome.returned],
            sizes=sizes,
            steps=[self.work.num_steps(size) for size in sizes],
            samples=torch.tensor([self.work.num_samples(size) for size in sizes], dtype=torch.float64),
            seconds=outcome.seconds,
            joules=float(outcome.joules.sum()),
            started=outcome.started,
            in_flight=outcome.in_flight,
        )
