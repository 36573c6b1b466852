"""The reference backend: it trains one client after the other."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch.profiler import record_function

from mtl.base.types import Params
from mtl.data.federated_data import FederatedData
from mtl.federation.clients.batches import Batch, chunks, prepare
from mtl.federation.clients.contract import MEMORY, Block, CohortJob, Training, add_conflict, memory_on
from mtl.federation.layout import split_frozen
from mtl.losses.pairs import TaskCounts


class LoopBackend:
    """Trains the clients one by one on a copy of the model, whose parameters are reset for each client.

    Args:
        training: what every client trains with.
    """

    name = "loop"

    def __init__(self, training: Training) -> None:
        self.training = training
        self.model = copy.deepcopy(training.model).to(memory_format=torch.channels_last).train()
        self._step = training.rule.step(self.model, training.objective, stacked=False)

    def __call__(self, job: CohortJob, data: FederatedData) -> Iterator[Block]:
        """See `Backend`."""
        self.model.to(data.images.device, next(self.training.model.parameters()).dtype)
        for client in job.clients:
            yield self._train(client, job, data)

    def state_dict(self) -> dict[str, Any]:
        """See `Backend`."""
        return {"name": self.name}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Backend`: nothing to restore."""

    def _train(self, client: int, job: CohortJob, data: FederatedData) -> Block:
        algorithm, device = self.training.algorithm, data.images.device
        start = job.start([client])
        params, moved = self._reset(start["params"], job.frozen)
        memory = memory_on(device, {name: value[0] for name, value in start[MEMORY].items()})
        state = algorithm.init(moved)
        rate = torch.tensor(job.learning_rate, dtype=next(iter(params.values())).dtype, device=device)
        losses = torch.zeros(2, data.num_tasks, dtype=rate.dtype, device=device)
        conflict = None
        for batch in self._batches(client, job, data):
            step = self._step.gradients(moved, memory, batch, {})
            losses += step.losses
            conflict = add_conflict(conflict, step.conflict)
            moved, state = algorithm.step(moved, step.grads, state, rate)
            memory = self._step.observe(moved, step.memory, batch)
        trained = {name: value.detach()[None] for name, value in (params | moved).items()}
        client_memory = {name: value[None] for name, value in memory.items()}
        update = algorithm.final(trained, start["params"])
        return Block([client], {"params": trained, MEMORY: client_memory}, update, losses[None], conflict)

    def _reset(self, start: Params, frozen: frozenset[str]) -> tuple[Params, Params]:
        """Copy the start [1, ...] into the model; return all its parameters, and those that are trained."""
        params: Params = dict(self.model.named_parameters())
        with torch.no_grad():
            torch._foreach_copy_(list(params.values()), [start[name][0] for name in params])
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        return params, split_frozen(params, frozen)[0]

    def _batches(self, client: int, job: CohortJob, data: FederatedData) -> Iterator[Batch]:
        """Yield the batches of a client without their padding."""
        device, dtype = data.images.device, next(self.model.parameters()).dtype
        plan, tasks = self.training.plan([client], job, data), data.assignment[[client]].to(device)
        progress = torch.tensor([job.progress], dtype=dtype, device=device)
        counts = TaskCounts(data.positives[[client]].to(progress), data.negatives[[client]].to(progress), progress)
        filled = plan.filled.tolist()
        for steps, rows in chunks(plan, data.images[0].numel() * plan.index.shape[1]):
            prepared = prepare(self.training.objective, self.model, plan, rows, tasks, counts, data)
            inputs = prepared.inputs.flatten(0, 1).contiguous(memory_format=torch.channels_last).view_as(prepared.inputs)
            prepared = Batch(inputs, *prepared.tensors()[1:])
            with record_function("mtl/local steps"):
                for row, step in enumerate(steps):
                    yield prepared[row].first(filled[step])
