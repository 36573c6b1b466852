"""The contract of a backend: it trains the clients of a cohort and yields the results in blocks.

`loop` trains one client after the other and is the readable reference; `stacked` trains many at once. A client's result depends neither on
the backend nor on the other clients of its block.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.profiler import record_function

from mtl.base.seeding import derive_seed
from mtl.base.types import Params, Slots
from mtl.data.client_batches import CohortBatches, LocalWork, plan_batches
from mtl.data.federated_data import FederatedData
from mtl.federation.algorithms.contract import STEPS, ClientAlgorithm, Optimizer
from mtl.federation.clients.gradients import GradientRule, PlainSum, State
from mtl.federation.layout import Layout
from mtl.federation.objective import Objective
from mtl.models.multi_task_model import MultiTaskModel

MEMORY = "gradients"  # the slot with the state of a client's gradient rule
Start = Callable[[Sequence[int]], Slots]
WHOLE = Layout()


@dataclass(frozen=True)
class CohortJob:
    """The local training of one round on one rank.

    Attributes:
        clients: the clients to train.
        round: the round, counted from 0.
        start: returns the slots that the given clients start from, stacked [K, ...]; read-only.
        learning_rate: learning rate of this round.
        progress: share of the run's training that is done, 0 to 1.
        max_steps: stop every client after this many steps, None to train in full; for timing.
        frozen: names of the parameters that are not trained in this round.
        again: how often these clients have trained in this round before.
    """

    clients: Sequence[int]
    round: int
    start: Start
    learning_rate: float
    progress: float = 0.0
    max_steps: int | None = None
    frozen: frozenset[str] = frozenset()
    again: int = 0


@dataclass(frozen=True)
class Block:
    """K clients of a cohort after their local training.

    Attributes:
        clients: the K clients.
        slots: their slots after training, stacked [K, ...]; valid until the backend makes the next block.
        update: trained minus initial parameters, stacked [K, ...].
        losses: [K, 2, T], positive and negative, summed over the images that the client saw.
        conflict: [3, T, T], `balance.compare` summed over steps and clients, or None where gradients are not compared.
        view: index of the part of the model that all of them trained, see `views`.
        sent: the slots that the clients send besides `update`, stacked [K, ...].
    """

    clients: Sequence[int]
    slots: Slots
    update: Params
    losses: Tensor
    conflict: Tensor | None = None
    view: int = 0
    sent: Slots = field(default_factory=dict)


class Backend(Protocol):
    """Trains the clients of a job, each from its own start."""

    @property
    def name(self) -> str:
        """The backend's name in the configuration."""

    def __call__(self, job: CohortJob, data: FederatedData) -> Iterator[Block]:
        """Train every client of the job once and yield the results in blocks, in any order."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs in order to sum in the same order; it contains `name`."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


@dataclass(frozen=True)
class Training:
    """What every backend trains with.

    Attributes:
        model: the model; backends work on copies of it.
        objective: from images to losses.
        optimizer: the optimiser of every client.
        work: batches and local steps of a client in a round.
        seed: seed of the run.
        rule: how the losses of the tasks become one gradient.
        client: the client half of the federated algorithm.
    """

    model: MultiTaskModel
    objective: Objective
    optimizer: Optimizer
    work: LocalWork
    seed: int
    rule: GradientRule = field(default_factory=PlainSum)
    client: ClientAlgorithm = field(default_factory=ClientAlgorithm)

    @record_function("mtl/plan")
    def plan(self, clients: Sequence[int], job: CohortJob, data: FederatedData) -> CohortBatches:
        """Return the batches of some clients of the job. `clients` must be sorted by number of steps, the most first."""
        seed = derive_seed(self.seed, "again", job.again) if job.again else self.seed
        return plan_batches(data.clients, clients, self.work, seed=seed, round=job.round, max_steps=job.max_steps)

    def start(self, clients: Sequence[int], job: CohortJob, data: FederatedData) -> Slots:
        """Return the slots that the clients start from, stacked [K, ...], with `STEPS` where the algorithm reads it."""
        slots = job.start(clients)
        if STEPS not in self.client.reads:
            return slots
        counts = [self.work.num_steps(data.clients.size(client)) for client in clients]
        return slots | {STEPS: {"count": torch.tensor(counts, dtype=torch.float32, device=data.images.device)}}

    def slots(self, params: Params, num_tasks: int, layout: Layout = WHOLE) -> Slots:
        """Return the slots of a client that has never trained. `params` are those of the global model."""
        return {"params": params, MEMORY: self.rule.memory(params, num_tasks)} | self.client.first(layout.sent(params))


def add_conflict(total: Tensor | None, conflict: Tensor | None) -> Tensor | None:
    """Return the sum; None where gradients are not compared. `total` is None before the first step."""
    return conflict if total is None or conflict is None else total + conflict


def memory_on(device: torch.device, memory: State) -> State:
    """Return the state of a gradient rule on `device`."""
    return {name: value.to(device) for name, value in memory.items()}
