"""The weighted mean of the clients' updates (McMahan et al., AISTATS 2017).

    D = sum_k w_k (x_k - x) / sum_k w_k

over the clients k whose updates arrived. Shared parameters are averaged over all of them, head t over exactly those that trained subtask t.
A head that no client trained keeps its value. Where clients train models of several widths (`views`), this holds for each coordinate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.profiler import record_function

from mtl.base import tree
from mtl.base.types import Params
from mtl.federation.clients.contract import Block
from mtl.federation.layout import is_head
from mtl.federation.orders import Orders

Weighting = Literal["samples", "clients"]
Take = Callable[[Block, Tensor], Params]


@dataclass(frozen=True)
class WeightedMean:
    """The weighted mean of the clients' updates.

    Args:
        weighting: `samples` weighs a client by its number of training images, `clients` weighs all clients the same.

    Raises:
        ValueError: `weighting` is unknown.
    """

    weighting: str = "samples"

    def __post_init__(self) -> None:
        if self.weighting not in get_args(Weighting):
            raise ValueError(f"server.weighting must be one of {', '.join(get_args(Weighting))}, got {self.weighting}")

    def weights(self, orders: Orders) -> Tensor:
        """Return the weights of the clients' updates, float64 [K] on the CPU."""
        return self._weigh(orders.cohort.sizes)

    def total(self, sizes: Sequence[int], assignment: Tensor) -> "TotalWeight":
        """Return the summed weight of all clients.

        Args:
            sizes: training images of each client, C numbers.
            assignment: bool [C, T], the subtasks that each client trains.
        """
        weights = self._weigh(sizes)
        return TotalWeight(weights.sum(), weights @ assignment.cpu().double())

    def _weigh(self, sizes: Sequence[int]) -> Tensor:
        return torch.tensor([float(size) if self.weighting == "samples" else 1.0 for size in sizes], dtype=torch.float64)

    def collect(self, orders: Orders) -> "RunningMean":
        """See `Aggregator`."""
        return RunningMean(orders, self.weights(orders))


@dataclass(frozen=True)
class TotalWeight:
    """The summed weight of all clients of the federation, whether they take part or not.

    Attributes:
        shared: float64 [], of the clients that train a shared parameter: all of them.
        tasks: float64 [T], of those that train each subtask.
    """

    shared: Tensor
    tasks: Tensor

    def of(self, name: str, like: Tensor) -> Tensor:
        """Return the weight of the clients that train a parameter, at least one of which must; it broadcasts against `like`."""
        weight = tree.rows(self.tasks, like) if is_head(name) else self.shared
        return torch.where(weight > 0, weight, 1).to(like)


class RunningMean:
    """Sums the weighted updates block by block, so that memory does not grow with the cohort.

    Args:
        orders: of the round.
        weights: float64 [K], weights of the clients' updates.
        take: from a block and its positions in the cohort to what is averaged in place of the update, stacked [K, ...].
    """

    def __init__(self, orders: Orders, weights: Tensor, take: Take | None = None) -> None:
        cohort, self._views, self._take = orders.cohort, orders.views, take
        device = orders.like.device
        self.sums = tree.zeros_like(orders.travelling)
        self._weights, self._tasks = weights.to(orders.like), cohort.tasks.to(device)
        self._view_weights = orders.views.trained_weights(orders.travelling, weights, cohort.clients)
        self._weight = weights.sum().to(device)
        self._task_weight = (weights[:, None] * cohort.tasks.cpu()).sum(0).to(device)

    @torch.no_grad()
    @record_function("mtl/sum of updates")
    def add(self, block: Block, places: Tensor) -> None:
        """See `Collector`. Rows of heads that a client does not train are left out."""
        rows = places.to(self._tasks.device)
        index = self._views.index(block.view, rows.device)
        weights, tasks = self._weights[rows], self._tasks[rows]
        values = block.update if self._take is None else self._take(block, places)
        for name, total in self.sums.items():
            if name not in values:  # these clients train another architecture
                continue
            value, weight = values[name], weights.to(total)
            if is_head(name):
                counted = (weight[:, None] * tasks).view(*tasks.shape, *[1] * (value.dim() - 2))
                # A product alone would not do: a head that was not trained may hold NaN.
                total += torch.where(counted > 0, value * counted, 0).sum(0)
            elif name in index:
                total.view(-1)[index[name]] += torch.tensordot(weight, value, 1)
            elif len(value) == 1:
                total += value[0] * weight[0]
            else:
                total += torch.tensordot(weight, value, 1)

    def value(self) -> Params:
        """See `Update`."""
        return {name: total / self._denominator(name, total) for name, total in self.sums.items()}

    def keep_untrained(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        """See `Update`."""
        return torch.where(self.weight_of(name, after) > 0, after, before)

    def _denominator(self, name: str, like: Tensor) -> Tensor:
        weight = self.weight_of(name, like)
        return torch.where(weight > 0, weight, 1).to(like.dtype)

    def weight_of(self, name: str, like: Tensor) -> Tensor:
        """Return the summed weight of the clients that trained the parameter, in a shape that broadcasts against `like`."""
        if name in self._view_weights:
            return self._view_weights[name]
        return tree.rows(self._task_weight, like) if is_head(name) else self._weight
