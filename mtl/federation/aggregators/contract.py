"""What an aggregator is: it says how the updates of a round become one direction."""

from typing import Protocol

from torch import Tensor

from mtl.base.types import Params
from mtl.federation.collectors import Collector
from mtl.federation.orders import Orders


class Update(Collector, Protocol):
    """The updates of one round on their way to one direction."""

    def value(self) -> Params:
        """The direction, zero where nobody contributed."""

    def keep_untrained(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        """`after` where some client trained it, `before` elsewhere."""


class Aggregator(Protocol):
    def collect(self, orders: Orders) -> Update:
        """A collector for the updates of a round."""
