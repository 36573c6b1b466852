"""The server: it aggregates the updates, applies them with its algorithm, and then runs its server steps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from mtl.balancing.contract import Balancer
from mtl.base.types import Params, Slots
from mtl.federation.aggregators.conflict_averse import ConflictAverse
from mtl.federation.aggregators.contract import Aggregator, Update
from mtl.federation.aggregators.weighted_mean import WeightedMean
from mtl.federation.algorithms.contract import ClientAlgorithm
from mtl.federation.algorithms.fedavg import FedAvg
from mtl.federation.collectors import Collector
from mtl.federation.layout import Layout
from mtl.federation.objective import Objective
from mtl.federation.orders import Orders
from mtl.federation.population.views import Views


@dataclass(frozen=True)
class StepContext:
    """What a server step may read of a run before the first round.

    Attributes:
        views: the parts of the model that the clients train.
        layout: which parameters travel.
        params: parameters of the global model.
        objective: the clients' objective.
        algorithm: the clients' algorithm.
        image_shape: (c, height, width) of stored images.
        pixels: type of stored images.
        seed: seed of the run.
    """

    views: Views
    layout: Layout
    params: Params
    objective: Objective
    algorithm: ClientAlgorithm
    image_shape: tuple[int, int, int]
    pixels: torch.dtype
    seed: int


class ServerAlgorithm(Protocol):
    """How the direction that the aggregator makes moves the global model."""

    def init(self, params: Params, layout: Layout) -> Slots:
        """The state before the first round; its slot `params` is the global model."""

    def apply(self, state: Slots, travelling: Params, update: Update) -> Slots:
        """The state after a round; what was given is left as it is. travelling: the parameters that were sent in it."""


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

    def bind(self, context: StepContext) -> ServerStep:
        """Return the step for one run.

        Raises:
            ValueError: the step cannot work in this run.
        """


@dataclass(frozen=True)
class Server:
    """Aggregator, algorithm and server steps, which run in this order at the end of a round.

    Attributes:
        algorithm: applies the aggregated update to the global model.
        aggregator: turns the clients' updates into one.
        options: options of the server steps, in order.
        steps: the steps that `bind` makes of the options.
    """

    algorithm: ServerAlgorithm
    aggregator: Aggregator
    options: Sequence[StepOptions] = ()
    steps: Sequence[ServerStep] = ()

    def bind(self, context: StepContext) -> "Server":
        """Return the server with its steps made for one run."""
        return replace(self, steps=tuple(options.bind(context) for options in self.options))

    def init(self, params: Params, layout: Layout) -> Slots:
        """Return the server's slots before the first round."""
        return self.algorithm.init(params, layout)

    def finish(self, state: Slots, orders: Orders, update: Update, collected: Sequence[Collector]) -> Slots:
        """Return the server's slots after a round.

        Args:
            state: the slots before it.
            orders: of the round.
            update: the collected updates, summed over the ranks.
            collected: the collector of each step, summed over the ranks.
        """
        state = self.algorithm.apply(state, orders.travelling, update)
        params = state["params"]
        for step, collector in zip(self.steps, collected, strict=True):
            params = step.apply(params, orders, collector)
        return state | {"params": params}


def fedavg(
    learning_rate: float = 1.0,
    momentum: float = 0.0,
    weighting: str = "samples",
    balancer: Balancer | None = None,
) -> Server:
    """FedAvg: the weighted mean of the clients' updates (McMahan et al. 2017).

    Args:
        learning_rate: factor of the mean update
        momentum: momentum over the rounds
        weighting: what a client counts by: samples (its training images) or clients (all the same)
        balancer: a balancer without state that combines the clients' updates, None for their mean
    """
    mean = WeightedMean(weighting)
    return Server(FedAvg(learning_rate, momentum), mean if balancer is None else ConflictAverse(balancer, mean))
