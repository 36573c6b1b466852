"""FedAsync (Xie, Koyejo & Gupta, 2019): the server mixes the model of each client that arrives into its own.

    x <- (1 - alpha_s) x + alpha_s y        alpha_s = alpha (1 + s)^-a

y is the client's model after its training and s the number of rounds since it left; every arrival is a round. The paper also has a proximal
term in the clients' loss, which is left out here, as `algorithm` is FedAvg on the clients' side. The learning rate of `schedule` is that of
the round in which a client arrives.
"""

from dataclasses import dataclass, field

from mtl.base.types import Params
from mtl.federation.algorithms.algorithm import Algorithm
from mtl.federation.algorithms.asynchronous import Asynchronous
from mtl.federation.clients.contract import Block


@dataclass(frozen=True)
class FedAsync(Asynchronous):
    """See the module; arguments as in `Asynchronous`. `learning_rate` is alpha, in (0, 1], and the buffer is 1."""

    buffer: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.learning_rate <= 1:
            raise ValueError(f"algorithm.alpha must be in (0, 1], got {self.learning_rate}")

    def change(self, block: Block, travelling: Params) -> Params:
        """See `Asynchronous`: from the server's model to the client's."""
        return {name: block.slots["params"][name] - value for name, value in travelling.items()}


def fedasync(concurrency: int | None = None, alpha: float = 0.6, staleness: float = 0.5) -> Algorithm:
    """FedAsync: asynchronous, each client that arrives is mixed into the model (Xie et al. 2019); needs a fleet.

    Args:
        concurrency: clients that train at the same time, null for all
        alpha: weight of a client's model that missed no round, in (0, 1]
        staleness: a model that missed s rounds has the weight alpha (1 + s)^-staleness
    """
    return Algorithm(FedAsync(concurrency, staleness, alpha))
