"""FedBuff (Nguyen et al., AISTATS 2022): asynchronous rounds with a buffer of updates.

    x <- x + learning_rate / M sum_k (1 + s_k)^-a (y_k - x_k)        after M arrivals

y_k is the model of client k after its training and x_k the one that it started from, s_k rounds ago. Departures from the paper: with
`server.weighting=samples` a client counts by its images among those of the buffer, as in FedAvg; `clients` is the paper's 1/M. A head is
divided by the number of arrivals that trained it. The learning rate of `schedule` is that of the round in which a client arrives. The
authors' simulator (FLSim) divides the discounts by that of s = 1 and sums over the buffer.
"""

from dataclasses import dataclass

from mtl.base.types import Params
from mtl.federation.algorithms.algorithm import Algorithm
from mtl.federation.algorithms.asynchronous import Asynchronous
from mtl.federation.clients.contract import Block


@dataclass(frozen=True)
class FedBuff(Asynchronous):
    """See the module; arguments as in `Asynchronous`. `learning_rate` must be > 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.learning_rate > 0:
            raise ValueError(f"algorithm.learning_rate must be > 0, got {self.learning_rate}")

    def change(self, block: Block, travelling: Params) -> Params:
        """See `Asynchronous`: the client's update."""
        return block.update


def fedbuff(concurrency: int | None = None, buffer: int = 4, staleness: float = 0.5, learning_rate: float = 1.0) -> Algorithm:
    """FedBuff: asynchronous, the server moves after every `buffer` arrivals (Nguyen et al. 2022); needs a fleet.

    Args:
        concurrency: clients that train at the same time, null for all
        buffer: arrivals that end a round
        staleness: an update that missed s rounds counts by (1 + s)^-staleness
        learning_rate: factor of the mean update
    """
    return Algorithm(FedBuff(concurrency, staleness, learning_rate, buffer))
