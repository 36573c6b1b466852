"""Who takes part in a round: the clients of a federation, how they are sampled, and which part of the model each trains."""

from dataclasses import dataclass

import torch

from mtl.data.client_batches import LocalWork
from mtl.data.federated_data import FederatedData
from mtl.federation.orders import Cohort
from mtl.federation.population.sampling import Draws
from mtl.federation.population.views import Views


@dataclass(frozen=True)
class Population:
    """sampling: who is drawn and who comes back; work: of each client in a round."""

    sampling: Draws
    views: Views
    work: LocalWork
    seed: int

    def draw(self, data: FederatedData, round: int) -> Cohort:
        """The cohort of a round, counted from 0."""
        outcome = self.sampling.outcome(data.num_clients, seed=self.seed, round=round)
        sizes = [data.clients.size(client) for client in outcome.returned]
        return Cohort(
            round=round,
            drawn=outcome.cohort,
            clients=outcome.returned,
            tasks=data.assignment[outcome.returned],
            sizes=sizes,
            samples=torch.tensor([self.work.num_samples(size) for size in sizes], dtype=torch.float64),
            seconds=outcome.seconds,
            joules=float(outcome.joules.sum()),
        )
