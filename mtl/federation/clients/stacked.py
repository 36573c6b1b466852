"""The stacked backend: the parameters of many clients along a first axis, and one step for all of them.

`torch.func.vmap` turns the gradient of one client into that of many. Clients are sorted by number of steps, so that those that still train
are always the first k of the stack. A step runs on views of the first k: no client is masked, and a finished one costs nothing.
"""

import copy
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.profiler import record_function

from mtl.base.compiling import slow_guards_allowed
from mtl.base.types import Params, Slots
from mtl.data.client_batches import CohortBatches
from mtl.data.federated_data import FederatedData
from mtl.federation.algorithms.contract import Clock
from mtl.federation.clients.batches import Batch, chunks, prepare
from mtl.federation.clients.block import block_size
from mtl.federation.clients.contract import MEMORY, Block, CohortJob, Training, add_conflict
from mtl.federation.clients.cuda_graph import CapturedCalls
from mtl.federation.clients.gradients import Gradients
from mtl.federation.layout import split_frozen
from mtl.losses.pairs import TaskCounts

logger = logging.getLogger(__name__)


class CannotStack(ValueError):
    """The model has an operation that cannot be vectorised over clients."""


class StackedBackend:
    """Trains blocks of clients at once.

    On a CUDA device the steps of a block run as one CUDA graph. Balanced steps are neither compiled nor captured: their solvers branch on
    their results.

    Args:
        training: what every client trains with.
        block: clients that are stacked at most, None for as many as memory holds.
        compiled: whether `torch.compile` compiles the step.

    Raises:
        ValueError: `block` is below 1, or the step cannot be compiled.
    """

    def __init__(self, training: Training, *, block: int | None = None, compiled: bool = False) -> None:
        if block is not None and block < 1:
            raise ValueError(f"engine.block must be >= 1, got {block}")
        self.training, self.block = replace(training, optimizer=training.optimizer.for_stack()), block
        self.name = "compiled" if compiled else "vmap"
        if compiled and not training.rule.compiles:
            raise ValueError(f"a step balanced by {training.rule.name} cannot be compiled: use engine.backend=vmap")
        self._model = copy.deepcopy(training.model).train()
        self._gradients = training.rule.step(self._model, training.objective, stacked=True)
        self._step: Callable[..., Tensor | None] = self._compiled_step() if compiled else self._eager_step
        self._captured = CapturedCalls(self._run) if training.rule.compiles else self._run
        self._checked = False
        self._frozen: frozenset[str] = frozenset()

    def __call__(self, job: CohortJob, data: FederatedData) -> Iterator[Block]:
        """See `Backend`."""
        self._model.to(data.images.device, next(self.training.model.parameters()).dtype)
        longest_first = sorted(job.clients, key=lambda client: -self.training.work.num_steps(data.clients.size(client)))
        if longest_first and not self._checked:
            self._check(data)
        while longest_first:
            trained = self._try(longest_first[: self.settle_block(data)], job, data)
            if trained is None:
                continue
            longest_first = longest_first[len(trained.clients) :]
            yield trained

    def settle_block(self, data: FederatedData) -> int:
        """Return how many clients are stacked at most. Where no number was set, memory decides, once for the whole run."""
        if self.block is None:
            self.block = block_size(self.training, data)
        return self.block

    def state_dict(self) -> dict[str, Any]:
        """See `Backend`."""
        return {"name": self.name, "block": self.block}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Backend`: restores the block, because other blocks would sum in another order; a block that was set stays."""
        self.block = self.block or state.get("block")

    def _try(self, clients: Sequence[int], job: CohortJob, data: FederatedData) -> Block | None:
        """Train a block; return None where memory did not suffice, and halve the block for the next attempt."""
        try:
            return self._train(clients, job, data)
        except RuntimeError as error:
            if not _out_of_memory(error) or len(clients) == 1:
                raise
        # Outside the handler the tensors of the failed attempt are freed.
        self.block = (len(clients) + 1) // 2
        if data.images.device.type == "cuda":
            torch.cuda.empty_cache()
        logger.warning("out of memory with %d clients stacked: going on with %d at a time", len(clients), self.block)
        return None

    def _train(self, clients: Sequence[int], job: CohortJob, data: FederatedData) -> Block:
        start, device = self.training.start(clients, job, data), data.images.device
        dtype = next(iter(start["params"].values())).dtype
        batches = self.training.plan(clients, job, data)
        index = torch.tensor(clients)
        tensors = {
            "index": batches.index,
            "filled": batches.filled,
            "client": batches.client,
            "step": batches.step,
            "key": batches.key,
            "tasks": data.assignment[index].to(device),
            "positives": data.positives[index].to(device, dtype),
            "negatives": data.negatives[index].to(device, dtype),
            "rate": torch.tensor(job.learning_rate, dtype=dtype, device=device),
            "progress": torch.full((len(clients),), job.progress, dtype=dtype, device=device),
        }
        named = tensors | {f"{slot}/{name}": v.to(device) for slot, values in start.items() for name, v in values.items()}
        slots, state, update, losses, conflict = self._captured(named, (batches.active, job.frozen), data)
        clock = Clock([sum(count > place for count in batches.active) for place in range(len(clients))], job.learning_rate)
        kept, sent = self.training.client.final(slots, state, start, clock, self.training.optimizer)
        ended = {"params": slots["params"], MEMORY: slots[MEMORY]} | kept
        return Block(clients, ended, update, losses, conflict, sent=sent)

    def _run(
        self, tensors: dict[str, Tensor], shape: tuple[tuple[int, ...], frozenset[str]], data: FederatedData
    ) -> tuple[Slots, Slots, Params, Tensor, Tensor | None]:
        active, self._frozen = shape
        planned = {name: tensors[name] for name in ("index", "filled", "client", "step", "key")}
        batches = CohortBatches(active, **planned, batch_size=self.training.work.batch_size)
        tasks, rate = tensors["tasks"], tensors["rate"]
        counts = TaskCounts(tensors["positives"], tensors["negatives"], tensors["progress"])
        client, optimizer = self.training.client, self.training.optimizer
        start = _slot("params", tensors)
        slots = {slot: _cloned(_slot(slot, tensors)) for slot in ("params", MEMORY, *client.keeps)}
        slots |= {slot: _slot(slot, tensors) for slot in client.reads if slot not in client.keeps}
        state = client.init(slots | {"params": split_frozen(slots["params"], self._frozen)[0]}, optimizer)
        losses = torch.zeros(len(tasks), 2, data.num_tasks, dtype=rate.dtype, device=rate.device)
        conflict = None
        for steps, rows in chunks(batches, data.images[0].numel() * batches.index.shape[1]):
            prepared = prepare(self.training.objective, self._model, batches, rows, tasks, counts, data).tensors()
            end = 0
            with record_function("mtl/local steps"):
                for step in steps:
                    count = active[step]
                    rows_of_step = slice(end, end + count)
                    end += count
                    views = [{slot: _first(values, count) for slot, values in part.items()} for part in (slots, state)]
                    batch = tuple(value[rows_of_step] for value in prepared)
                    step_conflict = self._step(*views, losses[:count], batch, rate)
                    conflict = add_conflict(conflict, step_conflict)
        return slots, state, optimizer.final(slots["params"], start), losses, conflict

    @torch.no_grad()
    def _eager_step(self, slots: Slots, state: Slots, losses: Tensor, tensors: tuple[Tensor, ...], rate: Tensor) -> Tensor | None:
        """Train the first k clients by one step, in place; return the conflict of their tasks, summed over the clients.

        Args:
            slots: all parameters, the state of the gradient rule and the slots of the client algorithm, [k, ...].
            state: state of the optimiser.
            losses: [k, 2, T], to which the step's losses are added.
            tensors: the tensors of their `Batch`.
            rate: scalar, learning rate.
        """
        batch, memory, training = Batch(*tensors), slots[MEMORY], self.training
        moved, resting = split_frozen(slots["params"], self._frozen)
        at_params: list[Gradients] = []

        def gradients(point: Params) -> Params:
            result = self._gradients.gradients(point, memory, batch, resting)
            if point is moved:
                at_params.append(result)
            return result.grads

        training.client.step(slots | {"params": moved}, state, gradients, training.optimizer, rate)
        (step,) = at_params
        for name, value in self._gradients.observe(slots["params"], step.memory, batch).items():
            memory[name].copy_(value)
        losses += step.losses
        return None if step.conflict is None else step.conflict.sum(0)

    def _compiled_step(self) -> Callable[..., Tensor | None]:
        from torch._dynamo.exc import BackendCompilerFailed  # takes seconds to import

        compiled = torch.compile(self._eager_step)

        def step(*arguments: Any) -> Tensor | None:
            try:
                with slow_guards_allowed():
                    conflict: Tensor | None = compiled(*arguments)
                return conflict
            except BackendCompilerFailed as error:
                logger.warning("torch.compile failed (%s): the step runs without it", _first_line(error.inner_exception))
                self._step = self._eager_step
                return self._eager_step(*arguments)

        return step

    def _check(self, data: FederatedData) -> None:
        """Raise CannotStack where the model cannot be stacked, naming the layer."""
        model = self._model
        images = torch.zeros(2, 2, *data.images.shape[1:], dtype=next(model.parameters()).dtype, device=data.images.device)
        params = {name: torch.stack([value, value]) for name, value in model.params().items()}
        keys = torch.zeros(2, len(model.dropouts), 2, dtype=torch.int32, device=images.device)
        valid = torch.ones(2, dtype=torch.bool, device=images.device)
        inside: list[str] = []
        hooks = []
        for name, layer in model.named_modules():
            hooks.append(layer.register_forward_pre_hook(functools.partial(_enter, inside, name)))
            hooks.append(layer.register_forward_hook(functools.partial(_leave, inside)))

        def call(params: Params, images: Tensor, keys: Tensor) -> Tensor:
            logits: Tensor = functional_call(model, params | model.step_buffers(keys, valid), (images,))
            return logits

        try:
            with torch.no_grad():
                vmap(call)(params, images, keys)
        except RuntimeError as error:
            if _out_of_memory(error):
                raise
            layer = model.get_submodule(inside[-1]) if inside else model
            raise CannotStack(
                f"engine.backend=vmap cannot stack {inside[-1] if inside else 'the model'} ({type(layer).__name__}): {_first_line(error)};"
                " use engine.backend=loop"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
        self._checked = True


def _enter(inside: list[str], name: str, *_: Any) -> None:
    inside.append(name)


def _leave(inside: list[str], *_: Any) -> None:
    inside.pop()


def _first(params: Params, count: int) -> Params:
    return {name: value[:count] for name, value in params.items()}


def _cloned(params: Params) -> Params:
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in params.items()}


def _slot(slot: str, tensors: dict[str, Tensor]) -> Params:
    """Return one slot of tensors that are named `slot/name`."""
    start = f"{slot}/"
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
