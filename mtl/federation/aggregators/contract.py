"""The aggregator contract: how the clients' updates of a round become one."""

from typing import Protocol

from torch import Tensor

from mtl.base.types import Params
from mtl.federation.collectors import Collector
from mtl.federation.orders import Orders


class Update(Collector, Protocol):
    """Collects the clients' updates of one round and aggregates them."""

    def value(self) -> Params:
        """Return the aggregated update; a coordinate that no client trained is zero.

        Call it after the sums over the ranks are complete.
        """

    def keep_untrained(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        """Return `after` at the coordinates that some client trained and `before` at the others.

        Args:
            name: name of the parameter.
            before: its value before the server's step.
            after: its value after it, of the same shape.
        """


class Aggregator(Protocol):
    """Makes the collector that aggregates the updates of a round."""

    def collect(self, orders: Orders) -> Update:
        """Return an empty collector for the updates of one round."""
