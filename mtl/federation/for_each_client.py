"""Train each client of a cohort from its own start.

A backend is called with what the clients of a round have to do, and yields what came out, a block of clients at a time. `LoopBackend`
is the readable reference: one working model, one client after the other. Results must not depend on the backend or on the company a
client keeps.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.profiler import record_function

from mtl.data.client_batches import CohortBatches, LocalWork, plan_batches
from mtl.data.federated_data import FederatedData
from mtl.federation.balance import OWN, Balance, BalancedStep, Batch
from mtl.federation.local_sgd import LocalSGD
from mtl.federation.objective import Objective
from mtl.losses.pairs import TaskCounts
from mtl.models.hard_sharing import HardSharing
from mtl.types import Params

CHUNK = 2**23  # pixels that are prepared at once
Start = Callable[[Sequence[int]], Params]


@dataclass(frozen=True)
class CohortJob:
    """What the clients do in a round. start: their parameters, stacked [K, ...], to be read only; learning_rate: of this round;
    progress: share of the training that is done, 0 to 1; max_steps: stop there, to try things out; frozen: the parameters that stay as
    they are.
    """

    clients: Sequence[int]
    round: int
    start: Start
    learning_rate: float
    progress: float = 0.0
    max_steps: int | None = None
    frozen: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Trained:
    """clients: K of them; params: stacked [K, ...], after training, valid until the next result is asked for, with what their
    balancers remember; update: params - start, of the model; losses: [K, 2, T], the positive and negative losses summed over the images
    seen; pairs: [3, T, T], what `balance.compare` gives, summed over steps and clients, or None; level: of all of them, see `heterofl`.
    """

    clients: Sequence[int]
    params: Params
    update: Params
    losses: Tensor
    pairs: Tensor | None = None
    level: int = 0


class Backend(Protocol):
    @property
    def name(self) -> str:
        """What it is called in the configuration."""

    def __call__(self, job: CohortJob, data: FederatedData) -> Iterator[Trained]: ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know to go on with the same arithmetic; `name` is in it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""


@dataclass(frozen=True)
class Training:
    """What every backend trains with. The model is only read. balance: None for the plain sum of the tasks' losses."""

    model: HardSharing
    objective: Objective
    algorithm: LocalSGD
    work: LocalWork
    seed: int
    balance: Balance | None = None

    @record_function("mtl/plan")
    def plan(self, clients: Sequence[int], job: CohortJob, data: FederatedData) -> CohortBatches:
        """The batches of some clients of the job, in the order given: the one with most steps first."""
        return plan_batches(data.clients, clients, self.work, seed=self.seed, round=job.round, max_steps=job.max_steps)


@dataclass(frozen=True)
class Rows:
    """Batches as the step reads them: inputs [rows, B, c, H, W]; targets, mask: bool [rows, B, T]; valid: bool [rows, B];
    keys: int32 [rows, L, 2], of the dropout layers; draw_keys: int32 [rows, 2], of a balancer.
    """

    inputs: Tensor
    targets: Tensor
    mask: Tensor
    valid: Tensor
    keys: Tensor
    draw_keys: Tensor


@record_function("mtl/images")
def prepare(
    objective: Objective, model: HardSharing, batches: CohortBatches, rows: slice, tasks: Tensor, data: FederatedData
) -> Rows:
    """Gather, augment and normalise the images of many batches at once. tasks: bool [K, T], what the clients train."""
    index = batches.index[rows]
    dtype = next(model.parameters()).dtype
    draws = batches.draws(rows).flatten(0, 1) if objective.augmentation.changes else None
    inputs = objective.inputs(data.images[index.flatten()], draws, dtype=dtype)
    return Rows(
        inputs=inputs.unflatten(0, index.shape),
        targets=data.targets[index],
        mask=data.known[index] & tasks[batches.client[rows], None],
        valid=batches.valid[rows],
        keys=batches.dropout_keys(rows, len(model.dropouts)),
        draw_keys=batches.balance_key(rows),
    )


def chunks(batches: CohortBatches, pixels: int) -> Iterator[tuple[range, slice]]:
    """Ranges of steps with their rows, each of about `CHUNK` pixels in all. pixels: of one batch."""
    first, start, end = 0, 0, 0
    for step, active in enumerate(batches.active):
        if end > start and (end - start + active) * pixels > CHUNK:
            yield range(first, step), slice(start, end)
            first, start = step, end
        end += active
    if end > start:
        yield range(first, len(batches.active)), slice(start, end)


class LoopBackend:
    """The clients one by one on a working copy of the model, whose parameters are reset in place."""

    name = "loop"

    def __init__(self, training: Training) -> None:
        self.training = training
        self.model = copy.deepcopy(training.model).to(memory_format=torch.channels_last).train()
        self._balanced: BalancedStep | None = None
        if training.balance is not None:
            self._balanced = BalancedStep(training.balance, self.model, training.objective, stacked=False)

    def __call__(self, job: CohortJob, data: FederatedData) -> Iterator[Trained]:
        self.model.to(data.images.device, next(self.training.model.parameters()).dtype)
        for client in job.clients:
            yield self._train(client, job, data)

    def state_dict(self) -> dict[str, Any]:
        return {"name": self.name}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is remembered."""

    def _train(self, client: int, job: CohortJob, data: FederatedData) -> Trained:
        objective, algorithm, device = self.training.objective, self.training.algorithm, data.images.device
        params: Params = dict(self.model.named_parameters())
        values = list(params.values())
        start = job.start([client])
        own = {name.removeprefix(OWN): start.pop(name)[0].to(device) for name in list(start) if name.startswith(OWN)}
        with torch.no_grad():
            torch._foreach_copy_(values, [start[name][0] for name in params])
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in job.frozen)
        moved = {name: value for name, value in params.items() if name not in job.frozen}
        state = algorithm.init(moved)
        rate, progress = torch.tensor([job.learning_rate, job.progress], dtype=values[0].dtype, device=device)
        counts = TaskCounts(data.positives[client].to(rate), data.negatives[client].to(rate), progress)
        tasks, batches = data.assignment[[client]].to(device), self.training.plan([client], job, data)
        filled = batches.filled.tolist()
        sums = torch.zeros(2, data.num_tasks, dtype=values[0].dtype, device=device)
        pairs = None
        pixels = data.images[0].numel() * batches.index.shape[1]
        for steps, rows in chunks(batches, pixels):
            chunk = prepare(objective, self.model, batches, rows, tasks, data)
            inputs = chunk.inputs.flatten(0, 1).contiguous(memory_format=torch.channels_last).view_as(chunk.inputs)
            with record_function("mtl/local steps"):
                for row, step in enumerate(steps):
                    used = slice(filled[step])  # the padding need not be computed
                    self.model.set_step(chunk.keys[row], chunk.valid[row, used])
                    seen = (inputs[row, used], chunk.targets[row, used], chunk.mask[row, used], chunk.valid[row, used])
                    if self._balanced is None:
                        losses = objective.losses(self.model, *seen, counts)
                        grads = dict(zip(moved, torch.autograd.grad(losses.tasks.sum(), list(moved.values())), strict=True))
                        sums += objective.image_sums(losses, chunk.valid[row])
                    else:
                        batch = Batch(*seen, chunk.keys[row], chunk.draw_keys[row], counts.positives, counts.negatives, progress)
                        found = self._balanced.gradients(moved, own, batch)
                        grads, own = found.grads, found.own
                        sums += found.sums
                        pairs = found.pairs if pairs is None or found.pairs is None else pairs + found.pairs
                    moved, state = algorithm.step(moved, grads, state, rate)
                    if self._balanced is not None:
                        own = self._balanced.observe(moved, own, batch)
        trained = {name: value.detach()[None] for name, value in (params | moved).items()}
        update = algorithm.final(trained, start)
        return Trained([client], trained | {OWN + name: value[None] for name, value in own.items()}, update, sums[None], pairs)
