"""Per-client state between rounds: the parameters that stay on the clients, and the state of their gradient rules."""

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
    """Per-client state between rounds, in named slots, kept in host memory or in files.

    Of the slot `params` it holds the parameters that stay on the clients by the layout, of every other slot all of them.

    A client takes no memory before it first trains: until then it has the initial parameters. Of a head it holds a row for each subtask
    that the client trains. The rows stand in the order in which clients first trained, so that the rows in use come first, and a checkpoint
    writes them without a copy. `folder` and the rows are created when the first client has trained.

    Args:
        layout: which parameters stay on the clients.
        slots: slots of a client, for names, shapes and types.
        assignment: bool [C, T], the subtasks that each client trains.
        folder: where the rows lie if all clients would take more than `memory` bytes, in unnamed files mapped into memory.
        memory: bytes of host memory that the rows of all clients may take.
        num_processes: number of processes on this machine, each with its own files.

    Raises:
        OSError: the disk of `folder` has too little space.
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
        self._place = torch.full((len(assignment),), -1)  # position of each client in that order
        self._first = torch.zeros(len(assignment), dtype=torch.long)  # first row of each client's heads
        self._num_clients, self._num_heads = 0, 0
        self._like = {
            name: torch.empty(_shape(name, value, len(assignment), int(self._num_tasks.sum())), dtype=value.dtype, device="meta")
            for name, value in _flat(self.client_slots(slots)).items()
        }
        self.num_bytes: int = tree.num_bytes(self._like)
        self.folder = folder if self.num_bytes > memory else None
        self._arrays: dict[str, np.ndarray] = {}
        self._rows: Params = {}
        if self.folder is not None:
            _check_disk(self.folder, self.num_bytes * num_processes)

    def client_slots(self, slots: Slots) -> Slots:
        """Return the part of the slots that stays on the clients."""
        return {slot: self.layout.client_params(values) if slot == "params" else values for slot, values in slots.items()}

    @property
    def bytes_per_client(self) -> float:
        """Average bytes of a client that has trained."""
        return self.num_bytes / len(self._assignment)

    def load(self, clients: Sequence[int], slots: Slots) -> Slots:
        """Return the slots that the clients start from, stacked [K, ...]; read-only.

        Args:
            clients: K clients.
            slots: the values for what does not stay on the clients, and for clients that have not trained.
        """
        stacked = {
            slot: {name: value.expand(len(clients), *value.shape) for name, value in values.items()}
            for slot, values in slots.items()
        }
        trained = [position for position, client in enumerate(clients) if self._place[client] >= 0]
        if not trained:
            return stacked
        trained_clients = torch.tensor([clients[position] for position in trained])
        for key, rows in self._rows.items():
            slot, _, name = key.partition("/")
            if name not in stacked.get(slot, {}):
                continue
            full = stacked[slot][name].clone()
            if _by_task(key):
                places, tasks = self._assignment[trained_clients].nonzero().unbind(1)
                places = torch.tensor(trained)[places].to(full.device)
                full[places, tasks.to(full.device)] = rows[self._head_rows(trained_clients)].to(full.device)
            else:
                full[torch.tensor(trained, device=full.device)] = rows[self._place[trained_clients]].to(full.device)
            stacked[slot][name] = full
        return stacked

    @torch.no_grad()
    @record_function("mtl/bank")
    def store(self, clients: Sequence[int], states: "ClientStates") -> None:
        """Store the collected states of a cohort.

        Args:
            clients: the clients of the cohort.
            states: their states after the round, summed over the ranks.
        """
        if not states.sums or not len(clients):
            return
        index = torch.tensor(clients)
        self._admit(index.sort().values)
        for name, rows in self._rows.items():
            rows[self._head_rows(index) if _by_task(name) else self._place[index]] = states.sums[name].cpu()

    def trained(self) -> list[int]:
        """Return the clients that have trained; the others have the initial parameters."""
        return (self._place >= 0).nonzero().flatten().tolist()

    def tasks_of(self, client: int) -> list[int]:
        """Return the subtasks that a client trains."""
        tasks: list[int] = self._assignment[client].nonzero().flatten().tolist()
        return tasks

    def state_dict(self) -> Params:
        """Return the clients that have trained and their rows, which are not copied: save them before the next round."""
        clients = torch.cat([torch.zeros(0, dtype=torch.long), *self._order])
        used = {name: self._num_heads if _by_task(name) else self._num_clients for name in self._like}
        # Saving a tensor saves its whole storage: made from a part of the array, that is the rows in use.
        return {"clients": clients} | {
            name: torch.from_numpy(self._arrays[name][:count]) if count else torch.empty(0, *like.shape[1:], dtype=like.dtype)
            for (name, like), count in zip(self._like.items(), used.values(), strict=True)
        }

    def load_state_dict(self, state: Params) -> None:
        """Restore what `state_dict` returned; raises ValueError where it holds other slots."""
        if state.keys() != {"clients", *self._like}:
            found, needed = (sorted({key.partition("/")[0] for key in keys} - {"clients"}) for keys in (state, self._like))
            raise ValueError(
                f"clients must keep {', '.join(needed) or 'nothing'}, got a state with {', '.join(found) or 'nothing'}"
            )
        self._order, self._num_clients, self._num_heads = [], 0, 0
        self._place[:] = -1
        if not self._like or not len(state["clients"]):
            return
        self._admit(state["clients"])
        for name, rows in self._rows.items():
            rows[: len(state[name])] = state[name]

    def _admit(self, clients: Tensor) -> None:
        """Assign rows to those of the clients that have none."""
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

    def _head_rows(self, clients: Tensor) -> Tensor:
        """Return the rows of the clients' heads, one client after the other."""
        return _ranges(self._first[clients], self._num_tasks[clients])


class ClientStates:
    """Collects the state that the clients of a cohort keep; see `Collector`.

    A parameter is collected as [K, ...], a head as one row for each subtask that the client trains, one client after the other.

    Args:
        client_slots: what one client keeps, from `Bank.client_slots`.
        tasks: bool [K, T], the subtasks that each client of the cohort trains.
    """

    def __init__(self, client_slots: Slots, tasks: Tensor) -> None:
        self._tasks = tasks.cpu()
        self._counts = self._tasks.sum(1)
        self._first = self._counts.cumsum(0) - self._counts
        total = int(self._counts.sum())
        self.sums = {name: value.new_zeros(_shape(name, value, len(tasks), total)) for name, value in _flat(client_slots).items()}

    def add(self, block: Block, places: Tensor) -> None:
        """See `Collector`."""
        members, tasks = self._tasks[places].nonzero().unbind(1)
        rows = _ranges(self._first[places], self._counts[places])
        for key, value in self.sums.items():
            slot, _, name = key.partition("/")
            device, trained = value.device, block.slots[slot][name]
            if _by_task(key):
                value[rows.to(device)] = trained[members.to(device), tasks.to(device)]
            else:
                value[places.to(device)] = trained


def _flat(slots: Slots) -> Params:
    """Return the slots by names such as `params/heads.weight`."""
    return {f"{slot}/{name}": value for slot, values in slots.items() for name, value in values.items()}


def _by_task(key: str) -> bool:
    """Return whether the bank holds a row for each subtask of a client under this key of `_flat`."""
    return is_head(key.partition("/")[2])


def _shape(key: str, value: Tensor, num_clients: int, num_heads: int) -> tuple[int, ...]:
    """Return the shape of all clients' values of a parameter: one each, or a row for each subtask that they train."""
    return (num_heads, *value.shape[1:]) if _by_task(key) else (num_clients, *value.shape)


def _ranges(first: Tensor, counts: Tensor) -> Tensor:
    """Return first[0], first[0] + 1, ... (counts[0] numbers), then first[1], ... and so on."""
    before = counts.cumsum(0) - counts
    return torch.arange(int(counts.sum())) + (first - before).repeat_interleave(counts)


def _check_disk(folder: Path, needed: int) -> None:
    """Raise OSError where the disk of `folder`, which need not exist yet, has less than `needed` bytes free."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise OSError(f"{folder} must have {needed} bytes free for the state of the clients, got {free}")


def _empty(shape: tuple[int, ...], dtype: torch.dtype, folder: Path | None) -> np.ndarray:
    """Return zeros that take memory, or disk, only where they have been written."""
    kind = torch.empty(0, dtype=dtype).numpy().dtype
    if folder is None or not math.prod(shape):
        return np.zeros(shape, kind)
    folder.mkdir(parents=True, exist_ok=True)
    # An unnamed file disappears with the process, however that ends.
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, kind, mode="w+", shape=shape)
