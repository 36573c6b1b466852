"""The reference backend: it trains one client after the other."""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.profiler import record_function

from mtl.base.types import Params
from mtl.data.federated_data import FederatedData
from mtl.federation.algorithms.contract import Clock
from mtl.federation.clients.batches import Batch, chunks, prepare
from mtl.federation.clients.contract import MEMORY, Block, CohortJob, Training, add_conflict, memory_on
from mtl.federation.clients.gradients import Gradients, State
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
        self._slots = dict.fromkeys((*training.client.reads, *training.client.keeps))

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
        training, device = self.training, data.images.device
        start = training.start([client], job, data)
        params, moved = self._reset(start["params"], job.frozen)
        memory = memory_on(device, {name: value[0] for name, value in start[MEMORY].items()})
        slots = {"params": moved} | {slot: _alone(start[slot], device) for slot in self._slots}
        state = training.client.init(slots, training.optimizer)
        rate = torch.tensor(job.learning_rate, dtype=next(iter(params.values())).dtype, device=device)
        losses = torch.zeros(2, data.num_tasks, dtype=rate.dtype, device=device)
        conflict, num_steps = None, 0
        for batch in self._batches(client, job, data):
            at_params: list[Gradients] = []
            gradients = partial(self._gradients, moved, memory, batch, at_params)
            with torch.no_grad():
                training.client.step(slots, state, gradients, training.optimizer, rate)
            (step,) = at_params
            losses += step.losses
            conflict = add_conflict(conflict, step.conflict)
            memory = self._step.observe(moved, step.memory, batch)
            num_steps += 1
        trained = {name: value.detach()[None] for name, value in (params | moved).items()}
        client_memory = {name: value[None] for name, value in memory.items()}
        update = training.optimizer.final(trained, start["params"])
        ended = {"params": trained} | {slot: _stacked(slots[slot]) for slot in training.client.keeps}
        clock = Clock([num_steps], job.learning_rate)
        states = {slot: _stacked(values) for slot, values in state.items()}
        kept, sent = training.client.final(ended, states, start, clock, training.optimizer)
        slots_after = {"params": trained, MEMORY: client_memory} | kept
        return Block([client], slots_after, update, losses[None], conflict, sent=sent)

    def _gradients(self, moved: Params, memory: State, batch: Batch, at_params: list[Gradients], point: Params) -> Params:
        """Return the gradients at a point; at the parameters themselves, add the whole result to `at_params`."""
        if point is moved:
            with torch.enable_grad():
                at_params.append(self._step.gradients(moved, memory, batch, {}))
            return at_params[-1].grads
        values = [value.detach() for value in moved.values()]
        before = [value.clone() for value in values]
        torch._foreach_copy_(values, [point[name] for name in moved])
        with torch.enable_grad():
            grads = self._step.gradients(moved, memory, batch, {}).grads
        torch._foreach_copy_(values, before)
        return grads

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


def _alone(stacked: Params, device: torch.device) -> Params:
    """Return a copy of the values of the first client."""
    return {name: value[0].to(device, copy=True) for name, value in stacked.items()}


def _stacked(params: Params) -> Params:
    return {name: value.detach()[None] for name, value in params.items()}
