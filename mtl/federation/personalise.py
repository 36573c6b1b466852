"""What stays on the clients: nothing, their heads (as in FedPer, Arivazhagan et al. 2019, turned to heads per subtask), or the
whole model (each client alone). What stays is neither sent nor averaged, and lasts from round to round.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from mtl.models.hard_sharing import is_head
from mtl.types import Params

Keep = Literal["nothing", "heads", "all"]


class Bank:
    """The clients' own parameters, outside the cohort. Heads are kept as one row per (client, subtask) that is trained."""

    def __init__(self, keep: str, params: Params, assignment: Tensor) -> None:
        if keep not in get_args(Keep):
            raise ValueError(f"keep must be one of {', '.join(get_args(Keep))}, got {keep}")
        self.keep = keep
        self._assignment = assignment
        self._starts = [0, *assignment.sum(1).cumsum(0).tolist()]
        task_of_row = assignment.nonzero()[:, 1]
        self.values: Params = {
            name: value[task_of_row].clone() if is_head(name) else value.expand(len(assignment), *value.shape).clone()
            for name, value in params.items()
            if self.stays(name)
        }

    def stays(self, name: str) -> bool:
        """Whether the parameter of this name stays on the clients."""
        return self.keep == "all" or (self.keep == "heads" and is_head(name))

    def to(self, device: torch.device) -> None:
        """Move the clients' own parameters."""
        self.values = {name: value.to(device) for name, value in self.values.items()}

    def load(self, client: int, params: Params) -> Params:
        """The parameters that the client starts from: its own where they stay with it, the global ones elsewhere."""
        return {name: self._own(client, name, value) if self.stays(name) else value for name, value in params.items()}

    @torch.no_grad()
    def store(self, client: int, own: Params) -> None:
        """Keep what `own_part` took out."""
        for name, value in own.items():
            self.values[name][self._place(client, name)] = value

    def own_part(self, client: int, params: Params) -> Params:
        """A copy of what stays with the client."""
        tasks = self._assignment[client]
        return {name: (params[name][tasks] if is_head(name) else params[name]).clone() for name in self.values}

    def _own(self, client: int, name: str, like: Tensor) -> Tensor:
        value = self.values[name][self._place(client, name)]
        if not is_head(name):
            return value
        full = like.clone()
        full[self._assignment[client]] = value
        return full

    def _place(self, client: int, name: str) -> slice | int:
        return slice(self._starts[client], self._starts[client + 1]) if is_head(name) else client
