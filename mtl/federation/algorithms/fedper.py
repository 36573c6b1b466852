"""FedPer (Arivazhagan et al. 2019): the heads stay on the clients, and FedAvg averages the rest.

A client trains trunk and heads together in each step. The name stands for `keep=heads`. The paper keeps the last layers of one classifier;
here a client keeps a head for each subtask that it trains.
"""

from mtl.federation.algorithms.algorithm import Algorithm
from mtl.federation.algorithms.fedavg import FedAvg


def fedper(learning_rate: float = 1.0, momentum: float = 0.0) -> Algorithm:
    """FedPer: heads stay on the clients, as with keep=heads (Arivazhagan et al. 2019).

    Args:
        learning_rate: factor of the mean update
        momentum: momentum over the rounds
    """
    return Algorithm(FedAvg(learning_rate, momentum), keep="heads")
