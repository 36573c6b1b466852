"""The clients of a cohort side by side: their parameters are stacked along a first axis, and one step moves them all.

`torch.func.vmap` of the gradient turns the step of one client into the step of many. Clients are sorted by their number of steps, so
that those who still train are always the first k of the stack: a step runs on views of the first k, none is masked, and a client that is
done costs nothing.
"""

import copy
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.func import functional_call, grad, vmap
from torch.profiler import record_function

from mtl.compiling import slow_guards_allowed
from mtl.data.client_batches import CohortBatches
from mtl.data.federated_data import FederatedData
from mtl.federation.balance import OWN, BalancedStep, Batch
from mtl.federation.block import block_size
from mtl.federation.cuda_graph import CapturedCalls
from mtl.federation.for_each_client import CohortJob, Trained, Training, chunks, prepare
from mtl.federation.objective import Objective
from mtl.losses.pairs import TaskCounts
from mtl.models.hard_sharing import HardSharing
from mtl.types import Params

logger = logging.getLogger(__name__)
START = "start."


class CannotStack(ValueError):
    """The model does something that cannot be done for many clients at once."""


class StackedBackend:
    """block: clients that are stacked at most, None for as many as memory holds; compiled: whether `torch.compile` makes the step.

    On a CUDA device the steps of a block run as one CUDA graph. Balanced steps, whose solvers look at what they found, are neither
    compiled nor captured.
    """

    def __init__(self, training: Training, *, block: int | None = None, compiled: bool = False) -> None:
        if block is not None and block < 1:
            raise ValueError(f"engine.block must be >= 1, got {block}")
        self.training, self.block = training, block
        self.name = "compiled" if compiled else "vmap"
        self._losses = _Losses(copy.deepcopy(training.model).train(), training.objective)
        if compiled and training.balance is not None:
            raise ValueError(
                f"a step balanced by {type(training.balance.method).__name__} cannot be compiled: use engine.backend=vmap"
            )
        self._step: Callable[..., None] = self._compiled_step() if compiled else self._eager_step
        self._captured = CapturedCalls(self._run) if training.balance is None else self._run
        self._balanced: BalancedStep | None = None
        if training.balance is not None:
            self._balanced = BalancedStep(training.balance, self._losses.model, training.objective, stacked=True)
        self._checked = False
        self._frozen: frozenset[str] = frozenset()

    def __call__(self, job: CohortJob, data: FederatedData) -> Iterator[Trained]:
        self._losses.to(data.images.device, next(self.training.model.parameters()).dtype)
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
        """The clients that are stacked at most: what was asked for, or what memory holds, once for the whole run."""
        if self.block is None:
            self.block = block_size(self.training, data)
        return self.block

    def state_dict(self) -> dict[str, Any]:
        return {"name": self.name, "block": self.block}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Other blocks would add up the updates in another order: that of the run goes on, where no other was asked for."""
        self.block = self.block or state.get("block")

    def _try(self, clients: Sequence[int], job: CohortJob, data: FederatedData) -> Trained | None:
        """None where memory did not suffice: then the next block is half as large."""
        try:
            return self._train(clients, job, data)
        except RuntimeError as error:
            if not _out_of_memory(error) or len(clients) == 1:
                raise
        # Out here the failed attempt's tensors are gone.
        self.block = (len(clients) + 1) // 2
        if data.images.device.type == "cuda":
            torch.cuda.empty_cache()
        logger.warning("out of memory with %d clients stacked: going on with %d at a time", len(clients), self.block)
        return None

    def _train(self, clients: Sequence[int], job: CohortJob, data: FederatedData) -> Trained:
        start, device = job.start(clients), data.images.device
        dtype = next(iter(start.values())).dtype
        batches = self.training.plan(clients, job, data)
        whom = torch.tensor(clients)
        tensors = {
            "index": batches.index,
            "filled": batches.filled,
            "client": batches.client,
            "step": batches.step,
            "key": batches.key,
            "tasks": data.assignment[whom].to(device),
            "positives": data.positives[whom].to(device, dtype),
            "negatives": data.negatives[whom].to(device, dtype),
            "rate": torch.tensor(job.learning_rate, dtype=dtype, device=device),
            "progress": torch.full((len(clients),), job.progress, dtype=dtype, device=device),
        }
        named = tensors | {START + name: v.to(device) for name, v in start.items()}
        found = self._captured(named, (batches.active, job.frozen), data)
        return Trained(clients, *found)

    def _run(
        self, tensors: dict[str, Tensor], shape: tuple[tuple[int, ...], frozenset[str]], data: FederatedData
    ) -> tuple[Params, Params, Tensor, Tensor | None]:
        active, self._frozen = shape
        start = {name.removeprefix(START): value for name, value in tensors.items() if name.startswith(START)}
        planned = {name: tensors[name] for name in ("index", "filled", "client", "step", "key")}
        batches = CohortBatches(active, **planned, batch_size=self.training.work.batch_size)
        tasks, rate = tensors["tasks"], tensors["rate"]
        algorithm = self.training.algorithm
        params = {name: value.clone(memory_format=torch.contiguous_format) for name, value in start.items()}
        own = {name: params.pop(name) for name in list(params) if name.startswith(OWN)}
        pairs = None
        state = algorithm.init({name: value for name, value in params.items() if name not in self._frozen})
        sums = torch.zeros(len(tasks), 2, data.num_tasks, dtype=rate.dtype, device=rate.device)
        pixels = data.images[0].numel() * batches.index.shape[1]
        for steps, rows in chunks(batches, pixels):
            chunk = prepare(self.training.objective, self._losses.model, batches, rows, tasks, data)
            end = 0
            with record_function("mtl/local steps"):
                for step in steps:
                    count = active[step]
                    now = slice(end, end + count)
                    end += count
                    if self._balanced is not None:
                        batch = Batch(
                            chunk.inputs[now],
                            chunk.targets[now],
                            chunk.mask[now],
                            chunk.valid[now],
                            chunk.keys[now],
                            chunk.draw_keys[now],
                            tensors["positives"][:count],
                            tensors["negatives"][:count],
                            tensors["progress"][:count],
                        )
                        firsts = (_first(params, count), _first(state, count), _first(own, count))
                        found = self._balanced_step(*firsts, sums[:count], batch, rate)
                        pairs = found if pairs is None or found is None else pairs + found
                        continue
                    self._step(
                        _first(params, count),
                        _first(state, count),
                        sums[:count],
                        chunk.inputs[now],
                        chunk.targets[now],
                        chunk.mask[now],
                        chunk.valid[now],
                        chunk.keys[now],
                        tensors["positives"][:count],
                        tensors["negatives"][:count],
                        tensors["progress"][:count],
                        rate,
                    )
        return params | own, algorithm.final(params, start), sums, pairs

    def _balanced_step(
        self, params: Params, state: Params, own: Params, sums: Tensor, batch: Batch, rate: Tensor
    ) -> Tensor | None:
        """Like `_eager_step`, with a balancer; `own` is written in place. Returns the pairs of tasks, summed over the clients."""
        assert self._balanced is not None
        resting = {name: value for name, value in params.items() if name in self._frozen}
        moved = {name: value for name, value in params.items() if name not in self._frozen}
        remembered = {name.removeprefix(OWN): value for name, value in own.items()}
        found = self._balanced.gradients(moved, remembered, batch, resting)
        self.training.algorithm.step(moved, found.grads, state, rate)
        for name, value in self._balanced.observe(params, found.own, batch).items():
            own[OWN + name].copy_(value)
        sums += found.sums
        return None if found.pairs is None else found.pairs.sum(0)

    @torch.no_grad()
    def _eager_step(
        self,
        params: Params,
        state: Params,
        sums: Tensor,
        inputs: Tensor,
        targets: Tensor,
        mask: Tensor,
        valid: Tensor,
        keys: Tensor,
        positives: Tensor,
        negatives: Tensor,
        progress: Tensor,
        rate: Tensor,
    ) -> None:
        resting = {name: value for name, value in params.items() if name in self._frozen}
        moved = {name: value for name, value in params.items() if name not in self._frozen}
        grads, losses = vmap(grad(self._loss, has_aux=True))(
            moved, resting, inputs, targets, mask, valid, keys, positives, negatives, progress
        )
        self.training.algorithm.step(moved, grads, state, rate)
        sums += losses

    def _compiled_step(self) -> Callable[..., None]:
        compiled = torch.compile(self._eager_step)

        def step(*arguments: Any) -> None:
            try:
                with slow_guards_allowed():
                    compiled(*arguments)
            except BackendCompilerFailed as error:
                logger.warning(
                    "torch.compile does not work here (%s): the step runs without it", _first_line(error.inner_exception)
                )
                self._step = self._eager_step
                self._eager_step(*arguments)

        return step

    def _loss(
        self,
        params: Params,
        resting: Params,
        inputs: Tensor,
        targets: Tensor,
        mask: Tensor,
        valid: Tensor,
        keys: Tensor,
        positives: Tensor,
        negatives: Tensor,
        progress: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The loss of one client in one step, and its parts [2, T] summed over the images."""
        buffers = self._losses.model.step_buffers(keys, valid)
        named = {f"model.{name}": value for name, value in (params | resting | buffers).items()}
        total, parts = functional_call(
            self._losses, named, (inputs, targets, mask, valid, TaskCounts(positives, negatives, progress))
        )
        return total, parts

    def _check(self, data: FederatedData) -> None:
        """Refuse a model that cannot be stacked, by the name of the layer where it shows."""
        model = self._losses.model
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


class _Losses(nn.Module):
    """The objective of one client as a module, so that the model's parameters can be swapped for a call."""

    def __init__(self, model: HardSharing, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, inputs: Tensor, targets: Tensor, mask: Tensor, valid: Tensor, counts: TaskCounts) -> tuple[Tensor, Tensor]:
        losses = self.objective.losses(self.model, inputs, targets, mask, valid, counts)
        return losses.tasks.sum(), self.objective.image_sums(losses, valid)


def _enter(inside: list[str], name: str, *_: Any) -> None:
    inside.append(name)


def _leave(inside: list[str], *_: Any) -> None:
    inside.pop()


def _first(params: Params, count: int) -> Params:
    return {name: value[:count] for name, value in params.items()}


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
