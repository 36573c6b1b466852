"""FedProx (Li et al., MLSys 2020): a client stays near the model that it has received.

    y <- y - rate (g + mu (y - x))

The term enters before the momentum. Parameters that stay on the client have no x, and no term. Departure from the paper: clients are
weighted, and drawn, as for FedAvg here; the paper draws them by their number of images and averages equally.
"""

from dataclasses import dataclass

import torch

from mtl.base.types import Params, Slots
from mtl.federation.algorithms.algorithm import Algorithm
from mtl.federation.algorithms.contract import RECEIVED, ClientAlgorithm
from mtl.federation.algorithms.fedavg import FedAvg


@dataclass(frozen=True)
class Proximal(ClientAlgorithm):
    """The client half of FedProx.

    Args:
        mu: weight of the proximal term, >= 0.

    Raises:
        ValueError: `mu` is negative.
    """

    mu: float
    reads = (RECEIVED,)

    def __post_init__(self) -> None:
        if not self.mu >= 0:
            raise ValueError(f"algorithm.mu must be >= 0, got {self.mu}")

    def correct(self, grads: Params, slots: Slots) -> Params:
        """See `ClientAlgorithm`."""
        return grads | pull(grads, slots["params"], slots[RECEIVED], self.mu)


def pull(grads: Params, params: Params, received: Params, weight: float) -> Params:
    """Return g + weight (y - x) of the parameters that were received."""
    names = [name for name in grads if name in received]
    if not names:
        return {}
    pulled = torch._foreach_sub([params[name] for name in names], [received[name] for name in names])
    torch._foreach_mul_(pulled, weight)
    torch._foreach_add_(pulled, [grads[name] for name in names])
    return dict(zip(names, pulled, strict=True))


def fedprox(mu: float = 0.01, learning_rate: float = 1.0, momentum: float = 0.0) -> Algorithm:
    """FedProx: clients are pulled towards the model that they received (Li et al. 2020).

    Args:
        mu: weight of the pull
        learning_rate: factor of the mean update
        momentum: momentum over the rounds
    """
    return Algorithm(FedAvg(learning_rate, momentum), Proximal(mu))
