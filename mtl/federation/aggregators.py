"""How the clients' updates become one direction.

    weighted mean      D = sum_k w_k (x_k - x) / sum_k w_k
    conflict-averse    D = sum_k a_k K w_k (x_k - x) / sum_j |a_j|        w_k summing to 1

over the clients k that came back. The shared part is averaged over all of them; head t over exactly those that trained subtask t, and a
head that nobody trained stays where it is. Where clients train models of several widths (`views`), the same goes for each coordinate.

Conflict-averse: a balancer takes the clients for its tasks and their updates of the shared part for its gradients (FedHCA2, Lu et al.,
CVPR 2024, does so with CAGrad), so that equal weights give the mean. It keeps K updates at once. Heads are averaged as ever: a head is
trained by few clients, often by one, and has no part in what they disagree on.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.profiler import record_function

from mtl import tree
from mtl.balancing.contract import Balancer
from mtl.federation.clients import Block
from mtl.federation.collectors import Collector
from mtl.federation.layout import is_head
from mtl.federation.orders import Orders
from mtl.seeding import client_keys, random_uniform
from mtl.types import Params

Weighting = Literal["samples", "clients"]


class Update(Collector, Protocol):
    """The updates of one round on their way to one direction."""

    def value(self) -> Params:
        """The direction, zero where nobody contributed."""

    def keep_untrained(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        """`after` where some client trained it, `before` elsewhere."""


class Aggregator(Protocol):
    def collect(self, orders: Orders) -> Update:
        """A collector for the updates of a round."""


@dataclass(frozen=True)
class WeightedMean:
    """weighting: clients count by their training images (`samples`) or all the same (`clients`)."""

    weighting: str = "samples"

    def __post_init__(self) -> None:
        if self.weighting not in get_args(Weighting):
            raise ValueError(f"server.weighting must be one of {', '.join(get_args(Weighting))}, got {self.weighting}")

    def weights(self, orders: Orders) -> Tensor:
        """Of the clients' updates, float64 [K] on the CPU."""
        return torch.tensor(
            [float(size) if self.weighting == "samples" else 1.0 for size in orders.cohort.sizes], dtype=torch.float64
        )

    def collect(self, orders: Orders) -> "RunningMean":
        """See `Aggregator`."""
        return RunningMean(orders, self.weights(orders))


@dataclass(frozen=True)
class ConflictAverse:
    """balancer: one that remembers nothing, as cohorts change."""

    balancer: Balancer
    mean: WeightedMean

    def __post_init__(self) -> None:
        if getattr(self.balancer, "preference", None) is not None:
            raise ValueError("server.balancer.preference must be null: cohorts change, and it is one number per task")
        if self.balancer.observes or self.balancer.init(torch.zeros(2, 2)):
            name = type(self.balancer).__name__
            raise ValueError(f"server.balancer must be one that remembers nothing, as cohorts change; {name} does")

    def collect(self, orders: Orders) -> "ComparedUpdates":
        """See `Aggregator`."""
        return ComparedUpdates(self, orders, self.mean.weights(orders))

    @torch.no_grad()
    @record_function("mtl/server")
    def combine(self, updates: Params, losses: Tensor, weights: Tensor, *, seed: int, round: int) -> Params:
        """The direction of the shared part.

        Args:
            updates: of it, stacked [K, ...].
            losses: of each client, per image, [K].
            weights: of the updates, [K].
        """
        flat = torch.cat([value.reshape(len(value), -1) for value in updates.values()], 1)
        gradients = flat * (weights * len(weights) / weights.sum())[:, None]
        shape = self.balancer.draw_shape(*gradients.shape)
        key = client_keys(seed, "server balancer", round, [0])[0].to(flat.device)
        draw = random_uniform(key, torch.arange(torch.Size(shape).numel(), dtype=torch.int32, device=flat.device)).view(shape)
        active = torch.ones(len(weights), dtype=torch.bool, device=flat.device)
        direction, shares, _ = self.balancer.combine({}, losses, gradients, active, draw.to(flat))
        # Opposite updates may have no common direction: no weights, and the shared part stays.
        total = shares.abs().sum()
        parts = torch.where(total > 0, direction / torch.where(total > 0, total, 1), direction).split(
            [value[0].numel() for value in updates.values()]
        )
        return {name: part.view(value.shape[1:]) for (name, value), part in zip(updates.items(), parts, strict=True)}


class RunningMean:
    """The weighted mean of the updates, summed as they come: memory does not grow with the cohort. weights: float64 [K]."""

    def __init__(self, orders: Orders, weights: Tensor) -> None:
        cohort, self._views = orders.cohort, orders.views
        device = orders.like.device
        self.sums = tree.zeros_like(orders.travelling)
        self._weights, self._tasks = weights.to(orders.like), cohort.tasks.to(device)
        self._covered = orders.views.covered(orders.travelling, weights, cohort.clients)
        self._weight = weights.sum().to(device)
        self._task_weight = (weights[:, None] * cohort.tasks.cpu()).sum(0).to(device)

    @torch.no_grad()
    @record_function("mtl/sum of updates")
    def add(self, block: Block, places: Tensor) -> None:
        """See `Collector`; rows of heads that a client does not train do not count."""
        where = places.to(self._tasks.device)
        index = self._views.index(block.view, where.device)
        weights, tasks = self._weights[where], self._tasks[where]
        for name, total in self.sums.items():
            if name not in block.update:  # of another architecture than these clients'
                continue
            value, weight = block.update[name], weights.to(total)
            if is_head(name):
                counted = (weight[:, None] * tasks).view(*tasks.shape, *[1] * (value.dim() - 2))
                # Not by a product alone: a head that is not trained may hold anything.
                total += torch.where(counted > 0, value * counted, 0).sum(0)
            elif name in index:
                total.view(-1)[index[name]] += torch.tensordot(weight, value, 1)
            elif len(value) == 1:
                total += value[0] * weight[0]
            else:
                total += torch.tensordot(weight, value, 1)

    def value(self) -> Params:
        """See `Update`."""
        return {name: total / self._denominator(name, total) for name, total in self.sums.items()}

    def keep_untrained(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        """See `Update`."""
        return torch.where(self._weight_of(name, after) > 0, after, before)

    def _denominator(self, name: str, like: Tensor) -> Tensor:
        weight = self._weight_of(name, like)
        return torch.where(weight > 0, weight, 1).to(like.dtype)

    def _weight_of(self, name: str, like: Tensor) -> Tensor:
        """Of the clients that trained it, of a shape that broadcasts against `like`."""
        if name in self._covered:
            return self._covered[name]
        return tree.rows(self._task_weight, like) if is_head(name) else self._weight


class ComparedUpdates:
    """The updates of the shared part side by side, [K, ...], and the running mean of the rest. weights: float64 [K]."""

    def __init__(self, aggregator: ConflictAverse, orders: Orders, weights: Tensor) -> None:
        self._aggregator, self._orders, self._mean = aggregator, orders, RunningMean(orders, weights)
        count = len(orders.cohort.clients)
        self._weights = weights.to(orders.like)
        self._losses = orders.like.new_zeros(count)
        self._updates = {
            name: value.new_zeros(count, *value.shape) for name, value in orders.travelling.items() if not is_head(name)
        }
        compared = {f"update of {name}": value for name, value in self._updates.items()}
        self.sums = self._mean.sums | compared | {"losses of clients": self._losses}

    @torch.no_grad()
    def add(self, block: Block, places: Tensor) -> None:
        """See `Collector`."""
        self._mean.add(block, places)
        where = places.to(self._losses.device)
        self._losses[where] = block.losses.sum((1, 2))
        for name, value in self._updates.items():
            value[where] = block.update[name]

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
