"""What stays on the clients: nothing, their heads (as in FedPer, Arivazhagan et al. 2019, turned to heads per subtask), or the
whole model (each client alone). What stays is neither sent nor averaged, and lasts from round to round.
"""

import functools
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

    Heads are one row for each (client, subtask) that is trained. A client takes no memory until it has trained for the first time:
    until then its own parameters are those that all start from. Beyond `memory` bytes in all, the rows lie in files in `folder`, of which
    the system keeps in memory what is in use; the folder is made when a client has trained. Raises OSError where its disk is too small.
    """

    def __init__(
        self, keep: str, params: Params, assignment: Tensor, *, folder: Path | None = None, memory: float = math.inf
    ) -> None:
        self.keep = keep
        self._assignment = assignment.cpu()
        self._starts = torch.cat([torch.zeros(1, dtype=torch.long), self._assignment.sum(1).cumsum(0)])
        self._touched = torch.zeros(len(assignment), dtype=torch.bool)
        self._shapes = {
            name: ((int(self._starts[-1]), *value.shape[1:]) if is_head(name) else (len(assignment), *value.shape), value.dtype)
            for name, value in params.items()
            if self.stays(name)
        }
        self.num_bytes: int = sum(math.prod(shape) * dtype.itemsize for shape, dtype in self._shapes.values())
        self.folder = folder if self.num_bytes > memory else None
        if self.folder is not None:
            _check_disk(self.folder, self.num_bytes)

    @functools.cached_property
    def _rows(self) -> Params:
        return {name: _empty(shape, dtype, self.folder) for name, (shape, dtype) in self._shapes.items()}

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
        known = [place for place, client in enumerate(clients) if self._touched[client]]
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
                full[torch.tensor(known, device=full.device)] = rows[whom].to(full.device)
            stacked[name] = full
        return stacked

    @torch.no_grad()
    @record_function("mtl/bank")
    def store(self, clients: Sequence[int], params: Params) -> None:
        """Keep what stays with the clients of their parameters: stacked [K, ...], of heads the rows of the clients' own subtasks, one
        client after the other.
        """
        if not self._shapes or not len(clients):
            return
        whom = torch.tensor(clients)
        for name, rows in self._rows.items():
            rows[self._rows_of(whom) if is_head(name) else whom] = params[name].cpu()
        self._touched[whom] = True

    def trained(self) -> list[int]:
        """The clients that hold parameters of their own; the others are still at the start."""
        return [] if not self._shapes else self._touched.nonzero().flatten().tolist()

    def state_dict(self) -> dict[str, Tensor]:
        """The clients that have trained, and their rows."""
        whom = self._touched.nonzero().flatten()
        if len(whom) == len(self._touched):
            return {"clients": whom} | self._rows  # as they are: a copy would take as much memory again
        if not len(whom):
            return {"clients": whom} | {
                name: torch.empty(0, *shape[1:], dtype=dtype) for name, (shape, dtype) in self._shapes.items()
            }
        return {"clients": whom} | {
            name: rows[self._rows_of(whom) if is_head(name) else whom] for name, rows in self._rows.items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` gave."""
        whom = state["clients"]
        self._touched[:] = False
        self._touched[whom] = True
        for name, rows in self._rows.items() if len(whom) else ():
            rows[self._rows_of(whom) if is_head(name) else whom] = state[name]

    def _rows_of(self, clients: Tensor) -> Tensor:
        """The rows of the clients' heads, one client after the other."""
        first, counts = self._starts[clients], self._starts[clients + 1] - self._starts[clients]
        before = counts.cumsum(0) - counts
        return torch.arange(int(counts.sum())) + (first - before).repeat_interleave(counts)


def _check_disk(folder: Path, needed: int) -> None:
    """Raises OSError unless there is room for all files in `folder`, which need not exist yet."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise OSError(f"{folder} must have {needed} bytes free for what stays on the clients, and it has {free}")


def _empty(shape: tuple[int, ...], dtype: torch.dtype, folder: Path | None) -> Tensor:
    """Rows that take memory, or disk, only where they have been written."""
    kind = torch.empty(0, dtype=dtype).numpy().dtype
    if folder is None:
        return torch.from_numpy(np.zeros(shape, kind))
    folder.mkdir(parents=True, exist_ok=True)
    # A file without a name: it is gone when the process is, however that ends.
    with tempfile.TemporaryFile(dir=folder) as file:
        return torch.from_numpy(np.memmap(file, kind, mode="w+", shape=shape))
