"""What asynchronous algorithms share: clients in flight, and updates that count less the older their model is.

    D = sum_k w_k (1 + s_k)^-a d_k / sum_k w_k

over the arrivals k of a round; s_k is the number of rounds that ended while client k was in flight. The discount is not in the
denominator, so that old updates make a smaller step. A head is averaged over the arrivals that trained it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import record_function

from mtl.base.types import Params, Slots
from mtl.federation.aggregators.contract import Aggregator, Update
from mtl.federation.aggregators.weighted_mean import RunningMean, WeightedMean
from mtl.federation.algorithms.algorithm import ServerAlgorithm
from mtl.federation.clients.contract import Block
from mtl.federation.layout import Layout
from mtl.federation.orders import Orders
from mtl.federation.population.arrivals import Arrivals
from mtl.federation.population.fleet import FleetSampling
from mtl.federation.population.sampling import Draws


@dataclass(frozen=True)
class Asynchronous(ServerAlgorithm):
    """A server that makes a new model after every `buffer` arrivals.

    Args:
        concurrency: clients in flight, None for all.
        staleness: exponent a of the discount, >= 0.
        learning_rate: factor of D, > 0.
        buffer: arrivals that end a round, >= 1.

    Raises:
        ValueError: a value is out of its range.
    """

    concurrency: int | None = None
    staleness: float = 0.5
    learning_rate: float = 1.0
    buffer: int = 1
    needs_mean = True

    def __post_init__(self) -> None:
        if self.concurrency is not None and self.concurrency < 1:
            raise ValueError(f"algorithm.concurrency must be >= 1, got {self.concurrency}")
        if not self.staleness >= 0:
            raise ValueError(f"algorithm.staleness must be >= 0, got {self.staleness}")
        if self.buffer < 1:
            raise ValueError(f"algorithm.buffer must be >= 1, got {self.buffer}")
        if self.concurrency is not None and self.buffer > self.concurrency:
            raise ValueError(
                f"algorithm.buffer must be in [1, {self.concurrency}], the number of clients in flight (algorithm.concurrency), got "
                f"{self.buffer}"
            )

    def change(self, block: Block, travelling: Params) -> Params:
        """Return the d_k of a block of clients, stacked [K, ...]. `travelling` is the server's model."""
        raise NotImplementedError

    def draws(self, draws: Draws) -> Draws:
        """See `ServerAlgorithm`."""
        if not isinstance(draws, FleetSampling):
            raise ValueError(
                "asynchronous rounds need a fleet, whose modelled seconds say who arrives when, such as fleet=phones"
            )
        return Arrivals(draws, concurrency=self.concurrency, buffer=self.buffer)

    def init(self, params: Params, layout: Layout) -> Slots:
        """See `ServerAlgorithm`."""
        return {"params": params}

    def collect(self, orders: Orders, aggregator: Aggregator) -> Update:
        """See `ServerAlgorithm`."""
        assert isinstance(aggregator, WeightedMean)
        discount = ((1 + orders.cohort.staleness) ** -self.staleness).to(orders.like)

        def discounted(block: Block, places: Tensor) -> Params:
            factor = discount[places.to(discount.device)]
            return {
                name: value * factor.view(-1, *[1] * (value.dim() - 1))
                for name, value in self.change(block, orders.travelling).items()
            }

        return RunningMean(orders, aggregator.weights(orders), discounted)

    @torch.no_grad()
    @record_function("mtl/server")
    def apply(self, state: Slots, travelling: Params, update: Update) -> Slots:
        """See `ServerAlgorithm`."""
        moved = update.value()
        params = {name: value + self.learning_rate * moved[name] for name, value in travelling.items()}
        return {"params": state["params"] | params}
