"""Views: the parts of the global model that clients train (HeteroFL, Diao, Ding & Tarokh, ICLR 2021).

A view is the model at a smaller width (`devices.widths`), or one of several architectures with the same heads (`models.peers`), which are
parts of a model that has them all.

    x_i <- x_i + sum_k w_k (x_ki - x_i) / sum_k w_k        over the clients k whose updates arrived and that train coordinate i

A coordinate that none of them trains keeps its value, and its momentum at the server. Messages contain the client's view alone. Evaluation
uses the whole model. Departures from the paper: clients are weighted by `server.weighting` rather than equally, and keep their width over
the rounds ("fix" rather than "dynamic"). The paper's masked loss is what every client here does: it trains its own subtasks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mtl.base.types import Params, Slots
from mtl.data.federated_data import FederatedData
from mtl.devices.ledger import Workload
from mtl.devices.widths import Level
from mtl.federation.algorithms.contract import RECEIVED
from mtl.federation.clients.auto import AutoBackend
from mtl.federation.clients.contract import Backend, Block, CohortJob, Start, Training
from mtl.federation.message import message_bytes
from mtl.models.multi_task_model import MultiTaskModel


class Views:
    """The parts of the global model that clients train, and which client trains which.

    Args:
        levels: the whole model alone; or widths, the whole model first; or architectures, the server's first.
        view_of: int64 [C], index in `levels` of each client's view.
    """

    def __init__(self, levels: Sequence[Level], view_of: Tensor) -> None:
        self.levels, self.view_of = tuple(levels), view_of.tolist()
        self._index = [level.index for level in levels]
        names = [set(level.model.params()) for level in levels]
        self._absent = [set().union(*names) - present for present in names]

    @classmethod
    def whole(cls, model: MultiTaskModel, num_clients: int) -> "Views":
        """Return the views of a federation in which every client trains the whole model."""
        return cls([Level(1.0, model, {})], torch.zeros(num_clients, dtype=torch.long))

    @property
    def all_whole(self) -> bool:
        """Whether every client trains the whole model."""
        return len(self.levels) == 1 and self.levels[0].trunk is None

    def __len__(self) -> int:
        return len(self.levels)

    @property
    def widths(self) -> list[float]:
        """The share of the channels that each client trains."""
        return [self.levels[level].ratio for level in self.view_of]

    @property
    def client_records(self) -> dict[str, list[Any]]:
        """What the run directory records for each client: `widths` or `trunks`; empty where all train the whole model."""
        if self.all_whole:
            return {}
        if self.levels[0].trunk is None:
            return {"widths": self.widths}
        return {"trunks": [self.levels[level].trunk for level in self.view_of]}

    @property
    def students(self) -> int:
        """Number of levels, from the first, that no other level contains: the server trains these."""
        return 1 if self.levels[0].trunk is None else len(self)

    def index(self, level: int, device: torch.device) -> Params:
        """Return, by parameter, the positions of a level's coordinates in the flattened whole parameter, on `device`."""
        if any(place.device != device for place in self._index[level].values()):
            self._index[level] = {name: place.to(device) for name, place in self._index[level].items()}
        return self._index[level]

    def take(self, level: int, params: Params) -> Params:
        """Return a level's part of whole parameters, stacked [K, ...].

        Parameters that are smaller at this level must be equal for all K clients.
        """
        taken = {name: value for name, value in params.items() if name not in self._absent[level]}
        for name, place in self.index(level, next(iter(params.values())).device).items():
            if name in params:
                taken[name] = params[name][0].flatten()[place].expand(len(params[name]), *place.shape)
        return taken

    def message_bytes(self, travelling: Params, assignment: Tensor, clients: Sequence[int]) -> int:
        """Return the bytes that some clients send, or are sent, in a round: the parameters of each client's view that travel."""
        total = 0
        for number, level in enumerate(self.levels):
            params = level.model.params()
            sent = {name: params[name] for name in travelling if name in params}
            total += message_bytes(sent, assignment, [client for client in clients if self.view_of[client] == number])
        return total

    def trained_weights(self, travelling: Params, weights: Tensor, clients: Sequence[int]) -> Params:
        """Return, for each coordinate, the summed weight of the clients that train it; for parameters that not every view has in full.

        Args:
            travelling: the parameters that travel.
            weights: [K], weights of the clients.
            clients: K clients whose updates arrived.
        """
        views = torch.tensor([self.view_of[client] for client in clients], dtype=torch.long)
        level_weights = [float(weights[views == level].sum()) for level in range(len(self))]
        total: Params = {}
        for name in travelling.keys() & {name for part in (*self._index, *self._absent) for name in part}:
            like = travelling[name]
            total[name] = torch.zeros(like.numel(), dtype=torch.float64, device=like.device)
            for level, weight in enumerate(level_weights):
                if name in self._absent[level]:
                    continue
                place = self.index(level, like.device).get(name)
                total[name][slice(None) if place is None else place.flatten()] += weight
            total[name] = total[name].view_as(like)
        return total

    def workload(self, workloads: Sequence[Workload]) -> Workload:
        """Return the work of each client at its level, from the work of all clients at each level."""
        fields = ("flops", "bytes_down", "bytes_up", "memory")
        return Workload(**{field: self._select(torch.stack([getattr(work, field) for work in workloads])) for field in fields})

    @property
    def account_names(self) -> list[str]:
        """Names of the metrics that count the images seen at each level; empty where all train the whole model."""
        return [] if self.all_whole else [f"samples_{level.name}" for level in self.levels]

    def samples(self, clients: Sequence[int], num_samples: Sequence[int]) -> dict[str, int]:
        """Return the images seen at each level in a round, by `account_names`. `num_samples` are those of each of `clients`."""
        seen = dict.fromkeys(self.account_names, 0)
        if seen:
            for client, count in zip(clients, num_samples, strict=True):
                seen[self.account_names[self.view_of[client]]] += count
        return seen

    def _select(self, by_level: Tensor) -> Tensor:
        """Return each client's value at its level: [L, C] -> [C]."""
        return by_level.gather(0, torch.tensor(self.view_of)[None])[0]


class ViewsBackend:
    """Trains the clients of each level with one backend per level, all of the same kind.

    Args:
        levels: the views of the clients.
        training: what every client trains with.
        make: makes the backend of a level.
    """

    def __init__(self, levels: Views, training: Training, make: Callable[[Training], Backend]) -> None:
        self.levels = levels
        self.backends = [make(replace(training, model=level.model)) for level in levels.levels]

    @property
    def name(self) -> str:
        """See `Backend`."""
        return self.backends[0].name

    def state_dict(self) -> dict[str, Any]:
        """See `Backend`."""
        return {"name": self.name, "levels": [backend.state_dict() for backend in self.backends]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Backend`."""
        for backend, backend_state in zip(self.backends, state["levels"], strict=True):
            backend.load_state_dict(backend_state)

    def __call__(self, job: CohortJob, data: FederatedData) -> Iterator[Block]:
        """See `Backend`."""
        for level, backend in enumerate(self.backends):
            clients = [client for client in job.clients if self.levels.view_of[client] == level]
            for trained in backend(replace(job, clients=clients, start=self._start(level, job.start)), data):
                yield replace(trained, view=level)
            # The choice of the first backend that had clients to time applies to all.
            for other in self.backends:
                if isinstance(other, AutoBackend) and other.name == "auto":
                    other.settle(backend.name)

    def _start(self, level: int, whole: Start) -> Start:
        """Return the start of a level's clients, from that of the whole model."""

        def start(clients: Sequence[int]) -> Slots:
            slots = whole(clients)
            sent = {slot: slots[slot] for slot in ("params", RECEIVED) if slot in slots}
            return slots | {slot: self.levels.take(level, values) for slot, values in sent.items()}

        return start


def largest_that_fit(workloads: Sequence[Workload], available: Tensor) -> Tensor:
    """Return, for each client, the level that needs most memory among those that its device has memory for, int64 [C].

    Where no level fits it is the one that needs least.

    Args:
        workloads: work of all clients at each level.
        available: bytes [C] that a training step of each client may take.
    """
    memory = torch.stack([work.memory for work in workloads])
    fits = memory <= available
    return torch.where(fits.any(0), torch.where(fits, memory, -1).argmax(0), memory.argmin(0))
