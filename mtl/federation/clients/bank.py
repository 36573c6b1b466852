"""Per-client state between rounds: the parameters that stay on the clients, and what else their local steps remember."""

import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from mtl.base import tree
from mtl.base.types import Params, Slots
from mtl.federation.clients.contract import Block
from mtl.federation.layout import Layout, is_head


class Bank:
    """Per-client state between rounds, in named slots, kept in host memory: of the slot `params` what the layout says that stays on the
    clients, of every other slot everything.

    A client takes no memory until it has trained for the first time: until then its own parameters are those that all start from. Heads
    are one row for each subtask that it trains. Rows stand in the order in which clients first trained, so that those in use are the
    first ones, which a checkpoint writes where they lie. Where all clients together would take more than `memory` bytes, the rows lie in
    files without a name in `folder`, of which the system keeps in memory what is in use. `folder` and the rows are made when the first
    client has trained; too little disk is told at once. num_processes: that share the disk, with files of their own.
    """

    def __init__(
        self,
        layout: Layout,
        slots: Slots,
        assignment: Tensor,
        *,
        folder: Path | None = None,
        memory: float = math.inf,
        num_processes: int = 1,
    ) -> None:
        self.layout = layout
        self._assignment = assignment.cpu()
        self._num_tasks = self._assignment.sum(1)
        self._order: list[Tensor] = []  # the clients that have trained, in parts
        self._place = torch.full((len(assignment),), -1)  # of a client in that order
        self._first = torch.zeros(len(assignment), dtype=torch.long)  # row of a client's heads
        self._num_clients, self._num_heads = 0, 0
        self._like = {
            name: torch.empty(_shape(name, value, len(assignment), int(self._num_tasks.sum())), dtype=value.dtype, device="meta")
            for name, value in _flat(self.kept(slots)).items()
        }
        self.num_bytes: int = tree.num_bytes(self._like)
        self.folder = folder if self.num_bytes > memory else None
        self._arrays: dict[str, np.ndarray] = {}
        self._rows: Params = {}
        if self.folder is not None:
            _check_disk(self.folder, self.num_bytes * num_processes)

    def kept(self, slots: Slots) -> Slots:
        """The part of the slots that stays on the clients."""
        return {slot: self.layout.kept(values) if slot == "params" else values for slot, values in slots.items()}

    @property
    def bytes_per_client(self) -> float:
        """What a client that has trained takes, on average."""
        return self.num_bytes / len(self._assignment)

    def load(self, clients: Sequence[int], slots: Slots) -> Slots:
        """What the clients start from, stacked [K, ...]: their own where it stays with them, elsewhere that of `slots`. To be read only."""
        stacked = {
            slot: {name: value.expand(len(clients), *value.shape) for name, value in values.items()}
            for slot, values in slots.items()
        }
        known = [place for place, client in enumerate(clients) if self._place[client] >= 0]
        if not known:
            return stacked
        whom = torch.tensor([clients[place] for place in known])
        for key, rows in self._rows.items():
            slot, _, name = key.partition("/")
            if name not in stacked.get(slot, {}):
                continue
            full = stacked[slot][name].clone()
            if _by_task(key):
                places, tasks = self._assignment[whom].nonzero().unbind(1)
                places = torch.tensor(known)[places].to(full.device)
                full[places, tasks.to(full.device)] = rows[self._rows_of(whom)].to(full.device)
            else:
                full[torch.tensor(known, device=full.device)] = rows[self._place[whom]].to(full.device)
            stacked[slot][name] = full
        return stacked

    @torch.no_grad()
    @record_function("mtl/bank")
    def store(self, clients: Sequence[int], kept: "Kept") -> None:
        """Take over what a cohort keeps. clients: of the cohort."""
        if not kept.sums or not len(clients):
            return
        whom = torch.tensor(clients)
        self._admit(whom.sort().values)
        for name, rows in self._rows.items():
            rows[self._rows_of(whom) if _by_task(name) else self._place[whom]] = kept.sums[name].cpu()

    def trained(self) -> list[int]:
        """The clients that hold parameters of their own; the others are still at the start."""
        return (self._place >= 0).nonzero().flatten().tolist()

    def state_dict(self) -> Params:
        """The clients that have trained, and their rows: not copied, and so of this moment only."""
        clients = torch.cat([torch.zeros(0, dtype=torch.long), *self._order])
        used = {name: self._num_heads if _by_task(name) else self._num_clients for name in self._like}
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
    """Collects what stays with the clients of a cohort, as blocks of them come: [K, ...], and of heads one row for each of the client's own
    subtasks, one client after the other. kept: of `Bank.kept`, of one client; tasks: bool [K, T].
    """

    def __init__(self, kept: Slots, tasks: Tensor) -> None:
        self._tasks = tasks.cpu()
        self._counts = self._tasks.sum(1)
        self._first = self._counts.cumsum(0) - self._counts
        total = int(self._counts.sum())
        self.sums = {name: value.new_zeros(_shape(name, value, len(tasks), total)) for name, value in _flat(kept).items()}

    def add(self, block: Block, places: Tensor) -> None:
        """places: of the block's clients in the cohort, on the CPU."""
        whose, tasks = self._tasks[places].nonzero().unbind(1)
        rows = _ranges(self._first[places], self._counts[places])
        for key, value in self.sums.items():
            slot, _, name = key.partition("/")
            device, trained = value.device, block.slots[slot][name]
            if _by_task(key):
                value[rows.to(device)] = trained[whose.to(device), tasks.to(device)]
            else:
                value[places.to(device)] = trained


def _flat(slots: Slots) -> Params:
    """By names such as `params/heads.weight`."""
    return {f"{slot}/{name}": value for slot, values in slots.items() for name, value in values.items()}


def _by_task(key: str) -> bool:
    """Whether a client has a row for each subtask that it trains, of what `_flat` calls so."""
    return is_head(key.partition("/")[2])


def _shape(key: str, value: Tensor, num_clients: int, num_heads: int) -> tuple[int, ...]:
    """Of what clients keep of a parameter: one each, or one row for each subtask that they train."""
    return (num_heads, *value.shape[1:]) if _by_task(key) else (num_clients, *value.shape)


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
