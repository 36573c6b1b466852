"""How far the local steps of a round move a parameter along a gradient that does not change.

    y_K - x = -r_K g        r_K = rate a_K,  a_K = K for SGD,  (K - rho (1 - rho^K) / (1 - rho)) / (1 - rho) with momentum rho

Algorithms that read gradients out of updates divide by it. It is measured on the steps themselves, so that it holds for every optimiser
whose steps are linear in the gradients, for a proximal term ((1 - (1 - rate mu)^K) / mu without momentum), and for each parameter's
learning rate. Weight decay counts as a part of the gradient.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mtl.base.types import Slots
from mtl.federation.algorithms.contract import RECEIVED, ClientAlgorithm, Optimizer

UNIT = 2.0**-30  # a gradient so short that it is never clipped


def reach(
    optimizer: Optimizer, client: ClientAlgorithm, names: Iterable[str], *, steps: Sequence[int], learning_rate: float
) -> dict[str, Tensor]:
    """Return r_K of each parameter for some clients, float64 [K] on the CPU; 0 where a parameter does not move.

    Args:
        optimizer: of the clients.
        client: the client half, which reads nothing but what the server has sent.
        names: of the parameters.
        steps: local steps of each client, K numbers.
        learning_rate: of the trunk.
    """
    optimizer = optimizer.without_decay()
    groups = {group[0]: group for group in optimizer.groups(names).values()}
    slots: Slots = {slot: {name: torch.zeros(1, dtype=torch.float64) for name in groups} for slot in ("params", RECEIVED)}
    state, rate = client.init(slots, optimizer), torch.tensor(learning_rate, dtype=torch.float64)
    path = {name: [torch.zeros(1, dtype=torch.float64)] for name in groups}
    for _ in range(max(steps, default=0)):
        client.step(
            slots, state, lambda point: {name: torch.full_like(value, UNIT) for name, value in point.items()}, optimizer, rate
        )
        for name, value in slots["params"].items():
            path[name].append(value / -UNIT)
    chosen = torch.tensor(steps, dtype=torch.long)
    return {name: torch.cat(path[first])[chosen] for first, group in groups.items() for name in group}


def divide(update: Tensor, reached: Tensor) -> Tensor:
    """Return an update [K, ...] divided by r_K [K]; 0 for clients whose parameter did not move."""
    inverse = torch.where(reached > 0, 1 / torch.where(reached > 0, reached, 1), 0).to(update)
    return update * inverse.view(-1, *[1] * (update.dim() - 1))
