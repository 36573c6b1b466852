"""The server of a federation, put together from an algorithm, an aggregator and steps of its own."""

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
from mtl.federation.algorithms.fedavg import FedAvg
from mtl.federation.algorithms.local_sgd import LocalSGD
from mtl.federation.collectors import Collector
from mtl.federation.layout import Layout
from mtl.federation.objective import Objective
from mtl.federation.orders import Orders
from mtl.federation.population.views import Views


@dataclass(frozen=True)
class Surroundings:
    """What a server step may ask for before the first round: the views of the model, the clients' objective and algorithm, and the shape
    and type of stored images; features: whether features of a frozen trunk take the images' place.
    """

    views: Views
    layout: Layout
    params: Params
    objective: Objective
    algorithm: LocalSGD
    image_shape: tuple[int, int, int]
    pixels: torch.dtype
    seed: int
    features: bool = False


class ServerAlgorithm(Protocol):
    """How the direction that the aggregator makes moves the global model."""

    def init(self, params: Params, layout: Layout) -> Slots:
        """The state before the first round; its slot `params` is the global model."""

    def apply(self, state: Slots, travelling: Params, update: Update) -> Slots:
        """The state after a round; what was given is left as it is. travelling: the parameters that were sent in it."""


class ServerStep(Protocol):
    """What a server does after it has aggregated."""

    @property
    def data(self) -> tuple[Tensor, ...]:
        """Images of its own."""

    def collect(self, orders: Orders) -> Collector:
        """What it wants to know of the clients."""

    def apply(self, params: Params, orders: Orders, collected: Collector) -> Params:
        """The global model after the step; what was given is left as it is."""


class StepOptions(Protocol):
    """A server step before it knows the run."""

    def bind(self, around: Surroundings) -> ServerStep:
        """The step for one run. Raises ValueError where it cannot work there."""


@dataclass(frozen=True)
class Server:
    """algorithm, aggregator: see there; options: of the steps that come after these, in order; steps: made of them by `bind`."""

    algorithm: ServerAlgorithm
    aggregator: Aggregator
    options: Sequence[StepOptions] = ()
    steps: Sequence[ServerStep] = ()

    def bind(self, around: Surroundings) -> "Server":
        """The server for one run."""
        return replace(self, steps=tuple(options.bind(around) for options in self.options))

    def init(self, params: Params, layout: Layout) -> Slots:
        """The state before the first round."""
        return self.algorithm.init(params, layout)

    def finish(self, state: Slots, orders: Orders, update: Update, collected: Sequence[Collector]) -> Slots:
        """The state after a round. collected: by the steps."""
        state = self.algorithm.apply(state, orders.travelling, update)
        params = state["params"]
        for step, found in zip(self.steps, collected, strict=True):
            params = step.apply(params, orders, found)
        return state | {"params": params}


def fedavg(
    learning_rate: float = 1.0,
    momentum: float = 0.0,
    weighting: str = "samples",
    balancer: Balancer | None = None,
) -> Server:
    """FedAvg: the weighted mean of the clients' updates (McMahan et al. 2017).

    learning_rate: factor of the mean update; momentum: momentum over the rounds; weighting: what a client counts by: samples (its
    training images) or clients (all the same); balancer: a balancer that remembers nothing, over the clients' updates, None for their
    mean.
    """
    mean = WeightedMean(weighting)
    return Server(FedAvg(learning_rate, momentum), mean if balancer is None else ConflictAverse(balancer, mean))
