"""A federated algorithm: what a client does in a round, and what the server does with what the clients send."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mtl.base.types import Params, Slots
from mtl.federation.aggregators.contract import Aggregator, Update
from mtl.federation.algorithms.contract import ClientAlgorithm
from mtl.federation.layout import Layout
from mtl.federation.orders import Orders
from mtl.federation.population.sampling import Draws

if TYPE_CHECKING:
    from mtl.federation.server import RunContext


class ServerAlgorithm:
    """The server half: how the aggregated update moves the global model. A subclass has at least `init` and `apply`.

    Attributes:
        sends: slots that are sent to the clients besides the parameters.
        needs_mean: whether the clients must train the whole model and their updates be averaged, not compared.
        needs_sgd: whether the clients' steps must be linear in their gradients, as those of SGD are.
    """

    sends: tuple[str, ...] = ()
    needs_mean = False
    needs_sgd = False

    def bind(self, context: "RunContext", aggregator: Aggregator) -> "ServerAlgorithm":
        """Return the algorithm for one run.

        Raises:
            ValueError: it cannot work in this run.
        """
        return self

    def draws(self, draws: Draws) -> Draws:
        """Return who takes part in a round, from what `sampling` and `fleet` say.

        Raises:
            ValueError: the algorithm cannot work with these clients.
        """
        return draws

    def init(self, params: Params, layout: Layout) -> Slots:
        """Return the server's slots before the first round. `params`, those of the whole model, are one of them."""
        raise NotImplementedError

    def broadcast(self, state: Slots, travelling: Params) -> Slots:
        """Return the slots in `sends`.

        Args:
            state: the server's slots.
            travelling: the parameters that are sent in this round; a slot has no other names.
        """
        return {}

    def collect(self, orders: Orders, aggregator: Aggregator) -> Update:
        """Return an empty collector for what the clients of one round send."""
        return aggregator.collect(orders)

    def apply(self, state: Slots, travelling: Params, update: Update) -> Slots:
        """Return the server's slots after a round; `state` is not changed.

        Args:
            state: the slots before it.
            travelling: the parameters that were sent in this round.
            update: what `collect` returned, summed over the clients and the ranks.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class FineTuning:
    """What every client trains before its own model is tested; nothing without steps.

    Attributes:
        steps: local steps.
        learning_rate: of the trunk, None for that of the clients at the start of their schedule.
    """

    steps: int = 0
    learning_rate: float | None = None


@dataclass(frozen=True)
class Algorithm:
    """Both halves of a federated algorithm.

    Attributes:
        server: the server half.
        client: the client half.
        keep: what stays on the clients, see `Layout`; `nothing` leaves it to the option `keep`.
        tuning: what every client trains before its own model is tested.
    """

    server: ServerAlgorithm
    client: ClientAlgorithm = field(default_factory=ClientAlgorithm)
    keep: str = "nothing"
    tuning: FineTuning = field(default_factory=FineTuning)
