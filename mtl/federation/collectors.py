"""Collectors: what a round sums over blocks of clients and over ranks.

A collector serves one round. It allocates its `sums` before the first block, adds each block to them, and the round then sums them over the
ranks. Values of single clients go to the client's position in the cohort.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mtl.base.types import Params
from mtl.federation.clients.contract import Block
from mtl.federation.orders import Orders


class Collector(Protocol):
    """Accumulates one quantity of a round, block by block."""

    @property
    def sums(self) -> Params:
        """The tensors that the round sums over the ranks, in place."""

    def add(self, block: Block, places: Tensor) -> None:
        """Add a block of trained clients to `sums`.

        Args:
            block: K clients after their local training.
            places: int64 [K], positions of these clients in the cohort, on the CPU.
        """


class NullCollector:
    """Collects nothing."""

    def __init__(self) -> None:
        self.sums: Params = {}

    def add(self, block: Block, places: Tensor) -> None:
        """See `Collector`."""


class Report:
    """Per client: losses [K, 2, T] and `health` [K], which is finite exactly where the client's losses and update are."""

    def __init__(self, orders: Orders) -> None:
        like, cohort = orders.like, orders.cohort
        self.losses = like.new_zeros(len(cohort.clients), 2, cohort.tasks.shape[1])
        self.health = like.new_zeros(len(cohort.clients))
        self.sums = {"losses": self.losses, "health": self.health}

    def add(self, block: Block, places: Tensor) -> None:
        """See `Collector`."""
        index = places.to(self.losses.device)
        self.losses[index] = block.losses
        self.health[index] = sum(value.reshape(len(index), -1).sum(1) for value in (block.losses, *block.update.values()))


class Conflict:
    """How much the gradients of each pair of tasks disagree: `balance.compare`, [3, T, T], summed over all local steps."""

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


def mean_losses(losses: Tensor, tasks: Tensor, samples: Tensor) -> Tensor:
    """Return the mean losses per image [2, T], of each subtask over the clients that train it.

    Args:
        losses: [K, 2, T], positive and negative, summed over the images that the client saw.
        tasks: bool [K, T], the subtasks that each client trains.
        samples: float64 [K], the images that each client saw.
    """
    seen = (samples @ tasks.double()).clamp_min(1).to(losses)
    return torch.where(tasks.to(losses.device)[:, None], losses, 0).sum(0) / seen
