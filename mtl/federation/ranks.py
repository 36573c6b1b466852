"""The processes of a run: each trains a part of the cohort, and one all-reduce a round sums their results.

The ranks are those of torch.distributed, started by the Trainer, torchrun or srun. Every rank has the whole state. All make the same step
from the same sums, so that the states stay equal. Without a process group there is one rank.
"""

import heapq
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import record_function


class Ranks:
    """The rank of this process, and communication with the others.

    Attributes:
        number: this process's rank, from 0.
        count: number of ranks.
        num_local: number of ranks on this machine.
    """

    def __init__(self) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        self.number, self.count = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
        self.num_local = min(int(os.environ.get("LOCAL_WORLD_SIZE", self.count)), self.count)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which logs and writes the run directory."""
        return self.number == 0

    def share(self, costs: Sequence[float]) -> list[int]:
        """Return the positions of this rank's share of the work, given the cost of each piece. See `split_work`."""
        return split_work(costs, self.count)[self.number]

    @record_function("mtl/sum over ranks")
    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors over the ranks, in place, with one all-reduce for each dtype."""
        if self.count == 1:
            return
        for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
            group = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.flatten() for tensor in group])
            dist.all_reduce(flat)
            for tensor, total in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in the order of the ranks."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on some rank."""
        return any(self.gather(flag))

    def require_same(self, facts: dict[str, str]) -> None:
        """Check that all ranks have the same facts, such as versions and configuration.

        Raises:
            ValueError: a rank has another value than rank 0; the message names the facts that differ.
        """
        if self.count == 1:
            return
        gathered: list[dict[str, str]] = [{}] * self.count
        dist.all_gather_object(gathered, facts)
        differing = [
            f"{name} ({rank_facts[name]} on rank {rank}, {value} on rank 0)"
            for rank, rank_facts in enumerate(gathered)
            for name, value in gathered[0].items()
            if rank_facts[name] != value
        ]
        if differing:
            raise ValueError(
                f"all ranks must have the same data, configuration and versions, got different {'; '.join(differing)}"
            )


def split_work(costs: Sequence[float], count: int) -> list[list[int]]:
    """Split pieces of work into `count` lists of nearly equal cost: the longest first, to the least loaded (Graham 1969).

    Args:
        costs: cost of each piece.
        count: number of lists.

    Returns:
        The positions of the pieces in `costs`, in rising order, for each list.
    """
    loads = [(0.0, part) for part in range(count)]
    parts: list[list[int]] = [[] for _ in range(count)]
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        load, part = heapq.heappop(loads)
        parts[part].append(place)
        heapq.heappush(loads, (load + costs[place], part))
    return [sorted(part) for part in parts]
