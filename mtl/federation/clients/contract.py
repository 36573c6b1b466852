"""What a simulated cohort is asked to do, and what comes back, a block of clients at a time.

A backend trains each client of a cohort from its own start: `loop` one after the other, the readable reference, `stacked` side by side.
Results must not depend on the backend or on which clients are trained together.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.profiler import record_function

from mtl.base.types import Params, Slots
from mtl.data.client_batches import CohortBatches, LocalWork, plan_batches
from mtl.data.federated_data import FederatedData
from mtl.federation.algorithms.contract import ClientAlgorithm
from mtl.federation.clients.gradients import GradientRule, PlainSum, State
from mtl.federation.objective import Objective
from mtl.models.multi_task_model import MultiTaskModel

MEMORY = "gradients"  # the slot of what a client's gradient rule remembers
Start = Callable[[Sequence[int]], Slots]


@dataclass(frozen=True)
class CohortJob:
    """What the clients do in a round.

    clients: to train here; start: the slots that given clients start from, stacked [K, ...], to be read only; learning_rate: of this round;
    progress: share of the training that is done, 0 to 1; max_steps: stop there, to try things out; frozen: the parameters that rest.
    """

    clients: Sequence[int]
    round: int
    start: Start
    learning_rate: float
    progress: float = 0.0
    max_steps: int | None = None
    frozen: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Block:
    """Some clients of a cohort after their local training.

    clients: K of them; slots: after training, stacked [K, ...], valid until the next block is asked for; update: params - start, of the
    model; losses: [K, 2, T], positive and negative, summed over the images seen; conflict: [3, T, T], what `balance.compare` gives,
    summed over steps and clients, or None; view: which part of the model all of them trained, see `views`.
    """

    clients: Sequence[int]
    slots: Slots
    update: Params
    losses: Tensor
    conflict: Tensor | None = None
    view: int = 0


class Backend(Protocol):
    @property
    def name(self) -> str:
        """Its name in the configuration."""

    def __call__(self, job: CohortJob, data: FederatedData) -> Iterator[Block]: ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know to go on with the same arithmetic; `name` is in it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""


@dataclass(frozen=True)
class Training:
    """What every backend trains with. The model is only read."""

    model: MultiTaskModel
    objective: Objective
    algorithm: ClientAlgorithm
    work: LocalWork
    seed: int
    rule: GradientRule = field(default_factory=PlainSum)

    @record_function("mtl/plan")
    def plan(self, clients: Sequence[int], job: CohortJob, data: FederatedData) -> CohortBatches:
        """The batches of some clients of the job, in the order given: the one with most steps first."""
        return plan_batches(data.clients, clients, self.work, seed=self.seed, round=job.round, max_steps=job.max_steps)

    def slots(self, params: Params, num_tasks: int) -> Slots:
        """What a client that has never trained starts from. params: the global model's."""
        return {"params": params, MEMORY: self.rule.memory(params, num_tasks)}


def add_conflict(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    """The sum, where there is something to sum."""
    return more if total is None or more is None else total + more


def memory_on(device: torch.device, memory: State) -> State:
    """What a rule remembers, where it is computed with."""
    return {name: value.to(device) for name, value in memory.items()}
