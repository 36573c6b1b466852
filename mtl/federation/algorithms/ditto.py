"""Ditto (Li et al., ICML 2021): each client trains a model of its own, pulled towards the global one that FedAvg trains.

    y <- y - rate g_i(y)                                  sent and averaged, as in FedAvg
    v_i <- v_i - rate (g_i(v_i) + pull (v_i - x))         kept; it answers for the client

x is the model as the client has received it in this round, before its own steps. A client that has never trained starts v_i at x. Both
models take a step on each batch, each with optimiser state of its own that starts at zero in a round: twice the work. The authors' code
(github.com/litian96/ditto) trains one model after the other, on batches of their own. `pull` is the paper's lambda.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mtl.base.types import Params, Slots
from mtl.federation.algorithms.algorithm import Algorithm
from mtl.federation.algorithms.contract import RECEIVED, ClientAlgorithm, Clock, Optimizer
from mtl.federation.algorithms.fedavg import FedAvg

PERSONAL = "personal"


class Personal(ClientAlgorithm):
    """A client half with a second model, the slot `personal`, that stays on the client and answers for it."""

    reads: tuple[str, ...] = (PERSONAL,)
    keeps: tuple[str, ...] = (PERSONAL,)
    answers = PERSONAL

    def first(self, params: Params) -> Slots:
        """See `ClientAlgorithm`: a client that has never trained has the global model."""
        return {PERSONAL: params}

    def final(self, slots: Slots, state: Slots, start: Slots, clock: Clock, optimizer: Optimizer) -> tuple[Slots, Slots]:
        """See `ClientAlgorithm`."""
        return {slot: slots[slot] for slot in self.keeps}, {}


@dataclass(frozen=True)
class Ditto(Personal):
    """The client half of Ditto.

    Args:
        pull: weight of the pull towards the received model, >= 0.

    Raises:
        ValueError: `pull` is negative.
    """

    pull: float
    reads = (PERSONAL, RECEIVED)
    passes = 2

    def __post_init__(self) -> None:
        if not self.pull >= 0:
            raise ValueError(f"algorithm.pull must be >= 0, got {self.pull}")

    def init(self, slots: Slots, optimizer: Optimizer) -> Slots:
        """See `ClientAlgorithm`."""
        return super().init(slots, optimizer) | {PERSONAL: optimizer.init(trained(slots, PERSONAL))}

    def step(
        self, slots: Slots, state: Slots, gradients: Callable[[Params], Params], optimizer: Optimizer, learning_rate: Tensor
    ) -> None:
        """See `ClientAlgorithm`."""
        super().step(slots, state, gradients, optimizer, learning_rate)
        personal, received = trained(slots, PERSONAL), slots[RECEIVED]
        grads = gradients(personal)
        pulled = {name: grads[name] + self.pull * (value - received[name]) for name, value in personal.items()}
        optimizer.step(personal, pulled, state[PERSONAL], learning_rate)


def trained(slots: Slots, slot: str) -> Params:
    """Return the parameters of a slot that are trained in this round."""
    return {name: slots[slot][name] for name in slots["params"]}


def ditto(pull: float = 1.0, learning_rate: float = 1.0, momentum: float = 0.0) -> Algorithm:
    """Ditto: a model for each client, pulled towards the global one (Li et al. 2021).

    Args:
        pull: weight of the pull, the paper's lambda
        learning_rate: factor of the mean update
        momentum: momentum over the rounds
    """
    return Algorithm(FedAvg(learning_rate, momentum), Ditto(pull))
