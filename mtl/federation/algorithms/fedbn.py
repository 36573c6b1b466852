"""FedBN (Li et al., ICLR 2021): the parameters of the norm layers stay on the clients, and FedAvg averages the rest.

The name stands for `keep=norms`: weight and bias of every norm layer of the trunk. There is no global model. What is tested as `test/...`
is the mean of the clients' scores, as with `keep=heads` and `keep=all`: that of a subtask over the clients that train it.
`test/personal/...` tests each client's model on its own images. In the paper BatchNorm's running statistics stay too. Here no model has
any: `norm=local` takes them from each batch, and GroupNorm has none.
"""

from mtl.federation.algorithms.algorithm import Algorithm
from mtl.federation.algorithms.fedavg import FedAvg


def fedbn(learning_rate: float = 1.0, momentum: float = 0.0) -> Algorithm:
    """FedBN: norm layers stay on the clients, as with keep=norms (Li et al. 2021).

    Args:
        learning_rate: factor of the mean update
        momentum: momentum over the rounds
    """
    return Algorithm(FedAvg(learning_rate, momentum), keep="norms")
