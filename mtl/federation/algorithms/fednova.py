"""FedNova (Wang et al., NeurIPS 2020): clients that make more steps do not weigh more.

    x <- x + learning_rate tau sum_S p_i (y_i - x) / a_i         tau = sum_S p_i a'_i

p_i are the weights of the clients that returned; of head t, of those that train subtask t. a_i is the length of client i's path along a
gradient that does not change (`reach`): K_i for SGD, longer with momentum, shorter with a proximal term. a'_i is the same without the
proximal term. The server knows both. Without a proximal term, equal a_i give FedAvg. A client without a step adds nothing to the sum.
Departures: momentum and the proximal term together are counted as they act, where the authors' code multiplies the two. As in that code,
weight decay counts as a part of the gradient.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from mtl.base import tree
from mtl.base.types import Params, Slots
from mtl.federation.aggregators.contract import Aggregator, Update
from mtl.federation.aggregators.weighted_mean import RunningMean, WeightedMean
from mtl.federation.algorithms.algorithm import Algorithm, ServerAlgorithm
from mtl.federation.algorithms.contract import ClientAlgorithm, Optimizer
from mtl.federation.algorithms.fedavg import FedAvg
from mtl.federation.algorithms.fedprox import Proximal
from mtl.federation.algorithms.reach import divide, reach
from mtl.federation.clients.contract import Block
from mtl.federation.layout import Layout, is_head
from mtl.federation.orders import Orders

if TYPE_CHECKING:
    from mtl.federation.server import RunContext


@dataclass(frozen=True)
class NormalisedOptions(ServerAlgorithm):
    """The server half of FedNova before the run is known."""

    client: ClientAlgorithm
    step: FedAvg
    needs_mean = True
    needs_sgd = True

    def bind(self, context: "RunContext", aggregator: Aggregator) -> "Normalised":
        """See `ServerAlgorithm`."""
        return Normalised(self.client, self.step, context.optimizer)


@dataclass(frozen=True)
class Normalised(ServerAlgorithm):
    """The server half of FedNova in one run.

    Attributes:
        client: the client half.
        step: moves the model.
        optimizer: of the clients.
    """

    client: ClientAlgorithm
    step: FedAvg
    optimizer: Optimizer

    def init(self, params: Params, layout: Layout) -> Slots:
        """See `ServerAlgorithm`."""
        return self.step.init(params, layout)

    def collect(self, orders: Orders, aggregator: Aggregator) -> "NormalisedUpdate":
        """See `ServerAlgorithm`."""
        assert isinstance(aggregator, WeightedMean)
        return NormalisedUpdate(self, orders, aggregator.weights(orders))

    def apply(self, state: Slots, travelling: Params, update: Update) -> Slots:
        """See `ServerAlgorithm`."""
        return self.step.apply(state, travelling, update)


class NormalisedUpdate:
    """Collects the mean of the updates, each divided by its a_i.

    Args:
        algorithm: the server half.
        orders: of the round.
        weights: float64 [K], weights of the updates.
    """

    def __init__(self, algorithm: Normalised, orders: Orders, weights: Tensor) -> None:
        names, steps, rate = orders.travelling, orders.cohort.steps, orders.learning_rate
        self._paths = reach(algorithm.optimizer, algorithm.client, names, steps=steps, learning_rate=rate)
        plain = reach(algorithm.optimizer, ClientAlgorithm(), names, steps=steps, learning_rate=rate)
        tasks = orders.cohort.tasks.cpu().double()
        self._tau: dict[str, Tensor] = {}
        for name in names:
            counted = weights[:, None] * tasks if is_head(name) else weights[:, None]
            total = counted.sum(0)
            tau = (counted * plain[name][:, None]).sum(0) / total.where(total > 0, 1)
            self._tau[name] = tree.rows(tau, orders.travelling[name]) if is_head(name) else tau[0]
        self._mean = RunningMean(orders, weights, self._normalise)
        self.sums = self._mean.sums

    def add(self, block: Block, places: Tensor) -> None:
        """See `Collector`."""
        self._mean.add(block, places)

    def value(self) -> Params:
        """See `Update`."""
        return {name: value * self._tau[name].to(value) for name, value in self._mean.value().items()}

    def keep_untrained(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        """See `Update`."""
        return self._mean.keep_untrained(name, before, after)

    def _normalise(self, block: Block, places: Tensor) -> Params:
        return {name: divide(block.update[name], path[places]) for name, path in self._paths.items()}


def fednova(mu: float = 0.0, learning_rate: float = 1.0, momentum: float = 0.0) -> Algorithm:
    """FedNova: clients that make more steps do not weigh more (Wang et al. 2020).

    Args:
        mu: weight of a proximal term, as in fedprox
        learning_rate: factor of the mean update
        momentum: momentum over the rounds
    """
    client = Proximal(mu) if mu else ClientAlgorithm()
    return Algorithm(NormalisedOptions(client, FedAvg(learning_rate, momentum)), client)
