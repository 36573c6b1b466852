"""The server: it aggregates the updates, applies them with its algorithm, and then runs its server steps."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from mtl.balancing.contract import Balancer
from mtl.base.types import Params, Slots
from mtl.federation.aggregators.conflict_averse import ConflictAverse
from mtl.federation.aggregators.contract import Aggregator, Update
from mtl.federation.aggregators.weighted_mean import WeightedMean
from mtl.federation.algorithms.algorithm import ServerAlgorithm
from mtl.federation.algorithms.contract import Optimizer
from mtl.federation.algorithms.fedavg import FedAvg
from mtl.federation.collectors import Collector
from mtl.federation.layout import Layout
from mtl.federation.objective import Objective
from mtl.federation.orders import Orders
from mtl.federation.population.views import Views


@dataclass(frozen=True)
class RunContext:
    """What the server may read of a run before the first round.

    Attributes:
        views: the parts of the model that the clients train.
        layout: which parameters travel.
        params: parameters of the global model.
        objective: the clients' objective.
        optimizer: the clients' optimiser.
        image_shape: (c, height, width) of stored images.
        pixels: type of stored images.
        seed: seed of the run.
        sizes: training images of each client, C numbers.
        assignment: bool [C, T], the subtasks that each client trains.
    """

    views: Views
    layout: Layout
    params: Params
    objective: Objective
    optimizer: Optimizer
    image_shape: tuple[int, int, int]
    pixels: torch.dtype
    seed: int
    sizes: Sequence[int]
    assignment: Tensor


class ServerStep(Protocol):
    """Changes the global model at the end of a round, after the aggregation."""

    @property
    def data(self) -> tuple[Tensor, ...]:
        """The images that the step itself uses; empty for most."""

    def collect(self, orders: Orders) -> Collector:
        """Return an empty collector for what the step needs from the clients of one round."""

    def apply(self, params: Params, orders: Orders, collected: Collector) -> Params:
        """Return the global model after the step; `params` is not changed.

        Args:
            params: the global model after the aggregation.
            orders: of the round.
            collected: the collector that `collect` returned, summed over blocks and ranks.
        """


class StepOptions(Protocol):
    """The options of a server step, before the run is known."""

    def bind(self, context: RunContext) -> ServerStep:
        """Return the step for one run.

        Raises:
            ValueError: the step cannot work in this run.
        """


@dataclass(frozen=True)
class Server:
    """Aggregator, algorithm and server steps, which run in this order at the end of a round.

    Attributes:
        aggregator: turns the clients' updates into one.
        options: options of the server steps, in order.
        algorithm: applies the aggregated update to the global model.
        steps: the steps that `bind` makes of the options.
    """

    aggregator: Aggregator
    options: Sequence[StepOptions] = ()
    algorithm: ServerAlgorithm = field(default_factory=FedAvg)
    steps: Sequence[ServerStep] = ()

    def bind(self, context: RunContext) -> "Server":
        """Return the server for one run, with its steps.

        Raises:
            ValueError: the algorithm or a step cannot work in this run.
        """
        algorithm = self.algorithm.bind(context, self.aggregator)
        return replace(self, algorithm=algorithm, steps=tuple(options.bind(context) for options in self.options))

    def init(self, params: Params, layout: Layout) -> Slots:
        """Return the server's slots before the first round."""
        return self.algorithm.init(params, layout)

    def collect(self, orders: Orders) -> Update:
        """Return an empty collector for what the clients of one round send."""
        return self.algorithm.collect(orders, self.aggregator)

    def finish(self, state: Slots, orders: Orders, update: Update, collected: Sequence[Collector]) -> Slots:
        """Return the server's slots after a round.

        Args:
            state: the slots before it.
            orders: of the round.
            update: what `collect` returned, summed over the ranks.
            collected: the collector of each step, summed over the ranks.
        """
        state = self.algorithm.apply(state, orders.travelling, update)
        params = state["params"]
        for step, collector in zip(self.steps, collected, strict=True):
            params = step.apply(params, orders, collector)
        return state | {"params": params}


def mean(weighting: str = "samples", balancer: Balancer | None = None) -> Server:
    """The weighted mean of the clients' updates.

    Args:
        weighting: what a client counts by: samples (its training images) or clients (all the same)
        balancer: a balancer without state that combines the clients' updates, None for their mean
    """
    weighted = WeightedMean(weighting)
    return Server(weighted if balancer is None else ConflictAverse(balancer, weighted))
