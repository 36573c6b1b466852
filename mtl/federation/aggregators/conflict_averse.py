"""Conflict-averse aggregation: a balancer compares the clients' updates (FedHCA2, Lu et al., CVPR 2024, does so with CAGrad).

    D = sum_k a_k K w_k (x_k - x) / sum_j |a_j|        w_k summing to 1

The balancer takes the clients as its tasks and their updates of the shared parameters as the tasks' gradients; equal weights give the mean.
All K updates are in memory at once. Heads are averaged as in `weighted_mean`: few clients train a head, often one, so that there is no
conflict to resolve.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import record_function

from mtl.balancing.contract import Balancer
from mtl.base.seeding import client_keys, random_uniform
from mtl.base.types import Params
from mtl.federation.aggregators.weighted_mean import RunningMean, WeightedMean
from mtl.federation.clients.contract import Block
from mtl.federation.layout import is_head
from mtl.federation.orders import Orders


@dataclass(frozen=True)
class ConflictAverse:
    """Combine the clients' updates with a balancer.

    Args:
        balancer: a balancer without state, since the cohort changes from round to round.
        mean: weighs the updates, and averages the heads.

    Raises:
        ValueError: the balancer has state, or a preference over tasks.
    """

    balancer: Balancer
    mean: WeightedMean

    def __post_init__(self) -> None:
        if getattr(self.balancer, "preference", None) is not None:
            raise ValueError("server.balancer.preference must be null: cohorts change, and it is one number per task")
        if self.balancer.observes or self.balancer.init(torch.zeros(2, 2)):
            name = type(self.balancer).__name__
            raise ValueError(f"server.balancer must have no state, since the cohort changes from round to round, got {name}")

    def collect(self, orders: Orders) -> "ComparedUpdates":
        """See `Aggregator`."""
        return ComparedUpdates(self, orders, self.mean.weights(orders))

    @torch.no_grad()
    @record_function("mtl/server")
    def combine(self, updates: Params, losses: Tensor, weights: Tensor, *, seed: int, round: int) -> Params:
        """Return the aggregated update of the shared parameters.

        Args:
            updates: the clients' updates of these parameters, stacked [K, ...].
            losses: [K], loss of each client per image.
            weights: [K], weights of the updates.
            seed: seed of the run.
            round: round, counted from 0; the balancer's random numbers depend on both.
        """
        flat = torch.cat([value.reshape(len(value), -1) for value in updates.values()], 1)
        gradients = flat * (weights * len(weights) / weights.sum())[:, None]
        shape = self.balancer.draw_shape(*gradients.shape)
        key = client_keys(seed, "server balancer", round, [0])[0].to(flat.device)
        draw = random_uniform(key, torch.arange(torch.Size(shape).numel(), dtype=torch.int32, device=flat.device)).view(shape)
        active = torch.ones(len(weights), dtype=torch.bool, device=flat.device)
        direction, shares, _ = self.balancer.combine({}, losses, gradients, active, draw.to(flat))
        # Opposite updates may have no common direction: then the weights are zero, and the shared parameters stay.
        total = shares.abs().sum()
        parts = torch.where(total > 0, direction / torch.where(total > 0, total, 1), direction).split(
            [value[0].numel() for value in updates.values()]
        )
        return {name: part.view(value.shape[1:]) for (name, value), part in zip(updates.items(), parts, strict=True)}


class ComparedUpdates:
    """Collects the clients' updates of the shared parameters, [K, ...], and the running mean of the heads.

    Args:
        aggregator: combines the updates.
        orders: of the round.
        weights: float64 [K], weights of the updates.
    """

    def __init__(self, aggregator: ConflictAverse, orders: Orders, weights: Tensor) -> None:
        self._aggregator, self._orders, self._mean = aggregator, orders, RunningMean(orders, weights)
        count = len(orders.cohort.clients)
        self._weights = weights.to(orders.like)
        self._losses = orders.like.new_zeros(count)
        self._updates = {
            name: value.new_zeros(count, *value.shape) for name, value in orders.travelling.items() if not is_head(name)
        }
        stacked = {f"update of {name}": value for name, value in self._updates.items()}
        self.sums = self._mean.sums | stacked | {"losses of clients": self._losses}

    @torch.no_grad()
    def add(self, block: Block, places: Tensor) -> None:
        """See `Collector`."""
        self._mean.add(block, places)
        rows = places.to(self._losses.device)
        self._losses[rows] = block.losses.sum((1, 2))
        for name, value in self._updates.items():
            value[rows] = block.update[name]

    def value(self) -> Params:
        """See `Update`."""
        if not len(self._losses) or not self._updates:
            return self._mean.value()
        cohort, seed = self._orders.cohort, self._orders.seed
        losses = self._losses / cohort.samples.to(self._losses)
        combined = self._aggregator.combine(self._updates, losses, self._weights, seed=seed, round=cohort.round)
        return self._mean.value() | combined

    def keep_untrained(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        """See `Update`."""
        return self._mean.keep_untrained(name, before, after)
