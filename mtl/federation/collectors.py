"""What a round sums over blocks of clients and over ranks.

A collector belongs to one round. Its `sums` are allocated before the first block, filled block by block, and added up over the ranks; what
depends on the order of the cohort is filled by place.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mtl.base.types import Params
from mtl.federation.clients.contract import Block
from mtl.federation.orders import Orders


class Collector(Protocol):
    @property
    def sums(self) -> Params:
        """Tensors to add up over the ranks, in place."""

    def add(self, block: Block, places: Tensor) -> None:
        """places: int64 [K], of the block's clients in the cohort, on the CPU."""


class Nothing:
    """Collects nothing."""

    def __init__(self) -> None:
        self.sums: Params = {}

    def add(self, block: Block, places: Tensor) -> None:
        """Nothing is collected."""


class Report:
    """Per client: losses [K, 2, T], and whether its losses and its update are finite, as a sum [K] that then is."""

    def __init__(self, orders: Orders) -> None:
        like, cohort = orders.like, orders.cohort
        self.losses = like.new_zeros(len(cohort.clients), 2, cohort.tasks.shape[1])
        self.health = like.new_zeros(len(cohort.clients))
        self.sums = {"losses": self.losses, "health": self.health}

    def add(self, block: Block, places: Tensor) -> None:
        """See `Collector`."""
        where = places.to(self.losses.device)
        self.losses[where] = block.losses
        self.health[where] = sum(value.reshape(len(where), -1).sum(1) for value in (block.losses, *block.update.values()))


class Conflict:
    """How much the tasks' gradients disagree, [3, T, T], see `balance.compare`, summed over all local steps."""

    def __init__(self, orders: Orders) -> None:
        num_tasks = orders.cohort.tasks.shape[1]
        self.pairs = orders.like.new_zeros(3, num_tasks, num_tasks)
        self.sums = {"pairs": self.pairs}

    def add(self, block: Block, places: Tensor) -> None:
        """See `Collector`."""
        if block.conflict is not None:
            self.pairs += block.conflict


def all_sums(collectors: Sequence[Collector]) -> list[Tensor]:
    """The tensors of all collectors, in their order."""
    return [value for collector in collectors for value in collector.sums.values()]


def share_of_trained(losses: Tensor, tasks: Tensor, samples: Tensor) -> Tensor:
    """Mean losses per image [2, T] on the clients that train the subtask. losses: [K, 2, T]; tasks: bool [K, T]; samples: float64 [K]."""
    seen = (samples @ tasks.double()).clamp_min(1).to(losses)
    return torch.where(tasks.to(losses.device)[:, None], losses, 0).sum(0) / seen
