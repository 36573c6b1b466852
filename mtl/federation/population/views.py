"""HeteroFL (Diao, Ding & Tarokh, ICLR 2021): clients train models of several widths, each a part of the global one (`edge.widths`), or of
several architectures with the same heads (`models.peers`), which are parts of a model that has them all.

    x_i <- x_i + sum_k w_k (x_ki - x_i) / sum_k w_k        over the clients k that came back and train coordinate i

A coordinate that none of them trains stays where it is, and so does its momentum at the server. A client is sent, and sends, what its
level has. Evaluation uses the whole model. Departures: clients count by `server.weighting` rather than all the same, and keep their level
over the rounds (the paper's "fix" rather than "dynamic"). Its masked loss is what every client here does: it trains its own subtasks.
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
from mtl.federation.clients.auto import AutoBackend
from mtl.federation.clients.contract import Backend, Block, CohortJob, Start, Training
from mtl.federation.message import message_bytes
from mtl.models.multi_task_model import MultiTaskModel


class Views:
    """The parts of the global model that clients train: all of it, or widths, the whole model first, or architectures, the server's own
    first; and whose they are.

    Args:
        of: int64 [C], the place of each client's view.
    """

    def __init__(self, levels: Sequence[Level], of: Tensor) -> None:
        self.levels, self.of = tuple(levels), of.tolist()
        self._index = [level.index for level in levels]
        names = [set(level.model.params()) for level in levels]
        self._absent = [set().union(*names) - own for own in names]

    @classmethod
    def whole(cls, model: MultiTaskModel, num_clients: int) -> "Views":
        """Every client trains the whole model."""
        return cls([Level(1.0, model, {})], torch.zeros(num_clients, dtype=torch.long))

    @property
    def alike(self) -> bool:
        """Whether every client trains the whole model."""
        return len(self.levels) == 1 and self.levels[0].trunk is None

    def __len__(self) -> int:
        return len(self.levels)

    @property
    def widths(self) -> list[float]:
        """The share of the channels that each client trains."""
        return [self.levels[level].ratio for level in self.of]

    @property
    def of_clients(self) -> dict[str, list[Any]]:
        """What a run records of its clients: the `trunks` that they train, or the `widths`; nothing where all train the same."""
        if self.alike:
            return {}
        if self.levels[0].trunk is None:
            return {"widths": self.widths}
        return {"trunks": [self.levels[level].trunk for level in self.of]}

    @property
    def students(self) -> int:
        """How many of the levels, from the first, no other contains."""
        return 1 if self.levels[0].trunk is None else len(self)

    def index(self, level: int, device: torch.device) -> Params:
        """Where the coordinates of the parameters of a level lie in the whole ones, on `device`."""
        if any(place.device != device for place in self._index[level].values()):
            self._index[level] = {name: place.to(device) for name, place in self._index[level].items()}
        return self._index[level]

    def take(self, level: int, params: Params) -> Params:
        """A level's part of whole parameters, stacked [K, ...], which are the same for all clients where they are cut."""
        taken = {name: value for name, value in params.items() if name not in self._absent[level]}
        for name, place in self.index(level, next(iter(params.values())).device).items():
            taken[name] = params[name][0].flatten()[place].expand(len(params[name]), *place.shape)
        return taken

    def message_bytes(self, travelling: Params, assignment: Tensor, clients: Sequence[int]) -> int:
        """As `message.message_bytes`, of what each client's level has of the whole parameters that travel."""
        total = 0
        for number, level in enumerate(self.levels):
            params = level.model.params()
            sent = {name: params[name] for name in travelling if name in params}
            total += message_bytes(sent, assignment, [client for client in clients if self.of[client] == number])
        return total

    def covered(self, travelling: Params, weights: Tensor, clients: Sequence[int]) -> Params:
        """What `RunningMean` wants to know. weights: [K], of the clients that came back."""
        of = torch.tensor([self.of[client] for client in clients], dtype=torch.long)
        total = [float(weights[of == level].sum()) for level in range(len(self))]
        found: Params = {}
        for name in travelling.keys() & {name for part in (*self._index, *self._absent) for name in part}:
            like = travelling[name]
            found[name] = torch.zeros(like.numel(), dtype=torch.float64, device=like.device)
            for level, weight in enumerate(total):
                if name in self._absent[level]:
                    continue
                place = self.index(level, like.device).get(name)
                found[name][slice(None) if place is None else place.flatten()] += weight
            found[name] = found[name].view_as(like)
        return found

    def workload(self, workloads: Sequence[Workload]) -> Workload:
        """Each client's, from that of all clients at each level."""
        fields = ("flops", "bytes_down", "bytes_up", "memory")
        return Workload(**{field: self._each(torch.stack([getattr(work, field) for work in workloads])) for field in fields})

    @property
    def accounts(self) -> list[str]:
        """What a run calls the images that the clients of each view see; nothing where all train the same."""
        return [] if self.alike else [f"samples_{level.name}" for level in self.levels]

    def samples(self, clients: Sequence[int], num_samples: Sequence[int]) -> dict[str, int]:
        """Images that some clients see in a round, by account. num_samples: of each of them."""
        seen = dict.fromkeys(self.accounts, 0)
        if seen:
            for client, count in zip(clients, num_samples, strict=True):
                seen[self.accounts[self.of[client]]] += count
        return seen

    def _each(self, by_level: Tensor) -> Tensor:
        """by_level: [L, C]; returns [C]."""
        return by_level.gather(0, torch.tensor(self.of)[None])[0]


class ViewsBackend:
    """The clients of each level by a backend of its own, made by `make`; they are of one kind, so that `auto` chooses for all."""

    def __init__(self, levels: Views, training: Training, make: Callable[[Training], Backend]) -> None:
        self.levels = levels
        self.backends = [make(replace(training, model=level.model)) for level in levels.levels]

    @property
    def name(self) -> str:
        return self.backends[0].name

    def state_dict(self) -> dict[str, Any]:
        return {"name": self.name, "levels": [backend.state_dict() for backend in self.backends]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for backend, own in zip(self.backends, state["levels"], strict=True):
            backend.load_state_dict(own)

    def __call__(self, job: CohortJob, data: FederatedData) -> Iterator[Block]:
        for level, backend in enumerate(self.backends):
            clients = [client for client in job.clients if self.levels.of[client] == level]
            for trained in backend(replace(job, clients=clients, start=self._start(level, job.start)), data):
                yield replace(trained, view=level)
            # What the first that had clients to try has chosen is for all.
            for other in self.backends:
                if isinstance(other, AutoBackend) and other.name == "auto":
                    other.settle(backend.name)

    def _start(self, level: int, whole: Start) -> Start:
        def start(clients: Sequence[int]) -> Slots:
            slots = whole(clients)
            return slots | {"params": self.levels.take(level, slots["params"])}

        return start


def largest_that_fit(workloads: Sequence[Workload], room: Tensor) -> Tensor:
    """The place of the largest level whose training step each client holds, int64 [C]; the smallest where none is. room: bytes [C]."""
    memory = torch.stack([work.memory for work in workloads])
    fits = memory <= room
    return torch.where(fits.any(0), torch.where(fits, memory, -1).argmax(0), memory.argmin(0))
