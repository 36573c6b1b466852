"""What stays on the clients: nothing, their heads (as in FedPer, Arivazhagan et al. 2019, turned to heads per subtask), or the
whole model (each client alone). What stays is neither sent nor averaged, and lasts from round to round.
"""

import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from mtl import tree
from mtl.federation.balance import OWN
from mtl.models.hard_sharing import is_head
from mtl.types import Params

Keep = Literal["nothing", "heads", "all"]


def travels(keep: str, name: str) -> bool:
    """Whether the parameter of this name is sent and averaged. Raises ValueError where `keep` is unknown."""
    if keep not in get_args(Keep):
        raise ValueError(f"keep must be one of {', '.join(get_args(Keep))}, got {keep}")
    return keep == "nothing" or (keep == "heads" and not is_head(name))


class Bank:
    """The clients' own parameters, and what their balancers remember, in main memory whatever device trains.

    A client takes no memory until it has trained for the first time: until then its own parameters are those that all start from. Heads
    are one row for each subtask that it trains. Rows stand in the order in which clients first trained, so that those in use are the
    first ones, which a checkpoint writes where they lie. Where all clients together would take more than `memory` bytes, the rows lie in
    files without a name in `folder`, of which the system keeps in memory what is in use. `folder` and the rows are made when the first
    client has trained; too little disk is told at once. num_processes: that share the disk, with files of their own.
    """

    def __init__(
        self,
        keep: str,
        params: Params,
        assignment: Tensor,
        *,
        folder: Path | None = None,
        memory: float = math.inf,
        num_processes: int = 1,
    ) -> None:
        self.keep = keep
        self._assignment = assignment.cpu()
        self._num_tasks = self._assignment.sum(1)
        self._order: list[Tensor] = []  # the clients that have trained, in parts
        self._place = torch.full((len(assignment),), -1)  # of a client in that order
        self._first = torch.zeros(len(assignment), dtype=torch.long)  # row of a client's heads
        self._num_clients, self._num_heads = 0, 0
        self._like = {
            name: torch.empty(_shape(name, value, len(assignment), int(self._num_tasks.sum())), dtype=value.dtype, device="meta")
            for name, value in params.items()
            if self.stays(name)
        }
        self.num_bytes: int = tree.num_bytes(self._like)
        self.folder = folder if self.num_bytes > memory else None
        self._arrays: dict[str, np.ndarray] = {}
        self._rows: Params = {}
        if self.folder is not None:
            _check_disk(self.folder, self.num_bytes * num_processes)

    def stays(self, name: str) -> bool:
        """Whether the parameter of this name stays on the clients."""
        return not travels(self.keep, name) or name.startswith(OWN)

    @property
    def bytes_per_client(self) -> float:
        """What a client that has trained takes, on average."""
        return self.num_bytes / len(self._assignment)

    def load(self, clients: Sequence[int], params: Params) -> Params:
        """What the clients start from, stacked [K, ...]: their own where it stays with them, the global elsewhere. To be read only."""
        stacked = {name: value.expand(len(clients), *value.shape) for name, value in params.items()}
        known = [place for place, client in enumerate(clients) if self._place[client] >= 0]
        if not known:
            return stacked
        whom = torch.tensor([clients[place] for place in known])
        for name, rows in self._rows.items():
            if name not in stacked:
                continue
            full = stacked[name].clone()
            if is_head(name):
                places, tasks = self._assignment[whom].nonzero().unbind(1)
                places = torch.tensor(known)[places].to(full.device)
                full[places, tasks.to(full.device)] = rows[self._rows_of(whom)].to(full.device)
            else:
                full[torch.tensor(known, device=full.device)] = rows[self._place[whom]].to(full.device)
            stacked[name] = full
        return stacked

    @torch.no_grad()
    @record_function("mtl/bank")
    def store(self, clients: Sequence[int], kept: Params) -> None:
        """kept: what stays with the clients, as `Kept` has it."""
        if not self._like or not len(clients):
            return
        whom = torch.tensor(clients)
        self._admit(whom.sort().values)
        for name, rows in self._rows.items():
            rows[self._rows_of(whom) if is_head(name) else self._place[whom]] = kept[name].cpu()

    def trained(self) -> list[int]:
        """The clients that hold parameters of their own; the others are still at the start."""
        return (self._place >= 0).nonzero().flatten().tolist()

    def state_dict(self) -> Params:
        """The clients that have trained, and their rows: not copied, and so of this moment only."""
        clients = torch.cat([torch.zeros(0, dtype=torch.long), *self._order])
        used = {name: self._num_heads if is_head(name) else self._num_clients for name in self._like}
        # A tensor that is saved is saved with all of its storage, which is here no more than the rows in use.
        return {"clients": clients} | {
            name: torch.from_numpy(self._arrays[name][:count]) if count else torch.empty(0, *like.shape[1:], dtype=like.dtype)
            for (name, like), count in zip(self._like.items(), used.values(), strict=True)
        }

    def load_state_dict(self, state: Params) -> None:
        """Take over what `state_dict` gave."""
        self._order, self._num_clients, self._num_heads = [], 0, 0
        self._place[:] = -1
        if not self._like or not len(state["clients"]):
            return
        self._admit(state["clients"])
        for name, rows in self._rows.items():
            rows[: len(state[name])] = state[name]

    def _admit(self, clients: Tensor) -> None:
        """Give places to those of the clients that have none."""
        if not self._rows:
            self._arrays = {name: _empty(tuple(like.shape), like.dtype, self.folder) for name, like in self._like.items()}
            self._rows = {name: torch.from_numpy(array) for name, array in self._arrays.items()}
        new = clients[self._place[clients] < 0]
        counts = self._num_tasks[new]
        self._place[new] = self._num_clients + torch.arange(len(new))
        self._first[new] = self._num_heads + counts.cumsum(0) - counts
        self._order.append(new.clone())
        self._num_clients += len(new)
        self._num_heads += int(counts.sum())

    def _rows_of(self, clients: Tensor) -> Tensor:
        """The rows of the clients' heads, one client after the other."""
        return _ranges(self._first[clients], self._num_tasks[clients])


class Kept:
    """What stays with the clients of a cohort, as blocks of them come: stacked [K, ...], and of heads the rows of each client's own
    subtasks, one client after the other. tasks: bool [K, T], on the CPU.
    """

    def __init__(self, like: Params, tasks: Tensor) -> None:
        self._tasks, self._counts = tasks, tasks.sum(1)
        self._first = self._counts.cumsum(0) - self._counts
        total = int(self._counts.sum())
        self.values = {name: value.new_zeros(_shape(name, value, len(tasks), total)) for name, value in like.items()}

    def put(self, places: Tensor, params: Params) -> None:
        """places: of some clients in the cohort, on the CPU; params: all of theirs, stacked."""
        whose, tasks = self._tasks[places].nonzero().unbind(1)
        rows = _ranges(self._first[places], self._counts[places])
        for name, value in self.values.items():
            device = value.device
            if is_head(name):
                value[rows.to(device)] = params[name][whose.to(device), tasks.to(device)]
            else:
                value[places.to(device)] = params[name]


def _shape(name: str, value: Tensor, num_clients: int, num_heads: int) -> tuple[int, ...]:
    """Of what clients keep of a parameter: one each, or one row for each subtask that they train."""
    return (num_heads, *value.shape[1:]) if is_head(name) else (num_clients, *value.shape)


def _ranges(first: Tensor, counts: Tensor) -> Tensor:
    """first[0], first[0] + 1, ..., counts[0] numbers of them, and so on."""
    before = counts.cumsum(0) - counts
    return torch.arange(int(counts.sum())) + (first - before).repeat_interleave(counts)


def _check_disk(folder: Path, needed: int) -> None:
    """Raises OSError where the disk of `folder`, which need not be there yet, has less than `needed` bytes free."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise OSError(f"{folder} must have {needed} bytes free for what stays on the clients, and it has {free}")


def _empty(shape: tuple[int, ...], dtype: torch.dtype, folder: Path | None) -> np.ndarray:
    """Rows that take memory, or disk, only where they have been written."""
    kind = torch.empty(0, dtype=dtype).numpy().dtype
    if folder is None or not math.prod(shape):
        return np.zeros(shape, kind)
    folder.mkdir(parents=True, exist_ok=True)
    # A file without a name: it is gone when the process is, however that ends.
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, kind, mode="w+", shape=shape)
