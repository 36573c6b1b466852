"""The processes that share a run: each trains a part of the cohort, and their sums meet once a round.

Ranks are torch.distributed's, whoever started them: the Trainer, torchrun or srun. Every rank holds the whole state, and since all make
the same step from the same sums, it stays the same everywhere. Without a process group there is one rank.
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
    """This process among those of the run."""

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.number, self.count = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        self.here = min(int(os.environ.get("LOCAL_WORLD_SIZE", self.count)), self.count)  # on this machine

    @property
    def first(self) -> bool:
        return self.number == 0

    def share(self, costs: Sequence[float]) -> list[int]:
        """This rank's part of the work: the places of its pieces, given what each costs. The longest goes first to the least loaded."""
        return split_work(costs, self.count)[self.number]

    @record_function("mtl/sum over ranks")
    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add up what the ranks hold, in place, in one all-reduce for each type of number."""
        if self.count == 1:
            return
        for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.flatten() for tensor in alike])
            dist.all_reduce(flat)
            for tensor, total in zip(alike, flat.split([tensor.numel() for tensor in alike]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def agree(self, value: Any) -> Any:
        """What the first rank has."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """What each rank has, the first rank's first."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether some rank says so."""
        return any(self.gather(flag))

    def require_same(self, facts: dict[str, str]) -> None:
        """Raises ValueError where a rank has other facts than the first, naming them."""
        if self.count == 1:
            return
        everyones: list[dict[str, str]] = [{}] * self.count
        dist.all_gather_object(everyones, facts)
        differing = [
            f"{name} ({theirs[name]} on rank {rank}, {value} on rank 0)"
            for rank, theirs in enumerate(everyones)
            for name, value in everyones[0].items()
            if theirs[name] != value
        ]
        if differing:
            raise ValueError(f"all ranks must see the same, and they differ in {'; '.join(differing)}")


def split_work(costs: Sequence[float], count: int) -> list[list[int]]:
    """The places of `costs` in `count` lists of nearly equal sums: the longest first to the least loaded (Graham 1969)."""
    loads = [(0.0, part) for part in range(count)]
    parts: list[list[int]] = [[] for _ in range(count)]
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        load, part = heapq.heappop(loads)
        parts[part].append(place)
        heapq.heappush(loads, (load + costs[place], part))
    return [sorted(part) for part in parts]
