"""FedAvg (McMahan et al., AISTATS 2017), with a learning rate and momentum of the server (FedAvgM, Hsu et al. 2019).

    v <- momentum v + D          x <- x + learning_rate v

D is the aggregated update. Where no client trained a coordinate, its value and its momentum stay. Clients step along their
gradients with the optimiser of the group `client`.
"""

from dataclasses import dataclass

import torch
from torch.profiler import record_function

from mtl.base import tree
from mtl.base.types import Params, Slots
from mtl.federation.aggregators.contract import Update
from mtl.federation.algorithms.algorithm import Algorithm, ServerAlgorithm
from mtl.federation.layout import Layout

MOMENTUM = "momentum"


@dataclass(frozen=True)
class FedAvg(ServerAlgorithm):
    """The server's step: a learning rate and momentum on the aggregated update.

    Args:
        learning_rate: factor of the aggregated update, > 0.
        momentum: momentum over the rounds, in [0, 1).

    Raises:
        ValueError: a value is out of its range.
    """

    learning_rate: float = 1.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"algorithm.learning_rate must be > 0, got {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"algorithm.momentum must be in [0, 1), got {self.momentum}")

    def init(self, params: Params, layout: Layout) -> Slots:
        """See `ServerAlgorithm`."""
        return {"params": params, MOMENTUM: tree.zeros_like(layout.sent(params)) if self.momentum else {}}

    @torch.no_grad()
    @record_function("mtl/server")
    def apply(self, state: Slots, travelling: Params, update: Update) -> Slots:
        """See `ServerAlgorithm`."""
        direction, velocity = update.value(), state[MOMENTUM]
        if self.momentum:
            # Parameters that are frozen in this round have momentum but no update.
            moved = {name: self.momentum * velocity[name] + value for name, value in direction.items()}
            velocity = velocity | {name: update.keep_untrained(name, velocity[name], value) for name, value in moved.items()}
            direction = {
                name: update.keep_untrained(name, torch.zeros_like(velocity[name]), velocity[name]) for name in direction
            }
        params = {name: value + self.learning_rate * direction[name] for name, value in travelling.items()}
        return {"params": state["params"] | params, MOMENTUM: velocity}


def fedavg(learning_rate: float = 1.0, momentum: float = 0.0) -> Algorithm:
    """FedAvg: the model moves by the mean of the clients' updates (McMahan et al. 2017).

    Args:
        learning_rate: factor of the mean update
        momentum: momentum over the rounds
    """
    return Algorithm(FedAvg(learning_rate, momentum))
