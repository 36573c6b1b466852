"""The gradients of a local step: of the plain sum of the tasks' losses here, balanced in `balance`.

Every way of training asks the same of a step, whether it trains one client on the parameters of a module or a stack of clients side by
side: gradients by name, the losses for the log, and what the step remembers for the next one (nothing here; a balancer's state there).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from mtl.base.types import Params
from mtl.federation.clients.batches import Batch
from mtl.federation.objective import Objective
from mtl.losses.pairs import TaskCounts
from mtl.models.multi_task_model import MultiTaskModel

State = dict[str, Tensor]


@dataclass(frozen=True)
class Gradients:
    """What a step found, along the leading axis of a stack where there is one.

    grads: by the names of the parameters; losses: [..., 2, T], positive and negative, summed over the images; memory: for the next step;
    conflict: [..., 3, T, T], what `balance.compare` gives, or None where gradients are not compared.
    """

    grads: Params
    losses: Tensor
    memory: State
    conflict: Tensor | None = None


@dataclass(frozen=True)
class Losses:
    """tasks: [T]; active: bool [T], those with a known label; sums: [2, ...], positive and negative losses summed over the images."""

    tasks: Tensor
    active: Tensor
    sums: Tensor


class Step(Protocol):
    def gradients(self, params: Params, memory: State, batch: Any, resting: Params) -> Gradients:
        """params: the parameters that train; resting: those that do not train now."""

    def observe(self, params: Params, memory: State, batch: Any) -> State:
        """What is remembered once the step is taken. params: all of them, after it."""


class GradientRule(Protocol):
    """How the tasks' losses become one update.

    compiles: whether a compiler or a CUDA graph can take the step; conflict: whether the tasks' gradients are compared for the log;
    remembers_gradients: whether its memory has the shape of the parameters that train.
    """

    @property
    def name(self) -> str: ...
    @property
    def compiles(self) -> bool: ...
    @property
    def conflict(self) -> bool: ...
    @property
    def remembers_gradients(self) -> bool: ...

    def memory(self, params: Params, num_tasks: int) -> State:
        """What is remembered before the first step."""

    def step(self, model: MultiTaskModel, objective: Objective, *, stacked: bool) -> Step:
        """stacked: whether parameters and batches have a first axis of clients; without it, they are those of `model` itself."""

    def step_of_losses(self, losses: Callable[[Any], Losses]) -> Step:
        """A step on the losses of a model at its parameters as they are, which need not read the same images. losses: of a batch."""

    def bytes_of_step(self, params: Params, num_tasks: int) -> int:
        """Memory that a step of one client takes beside what autograd saves."""


@dataclass(frozen=True)
class PlainSum:
    """The gradient of sum_t L_t."""

    name = "equal"
    compiles, conflict, remembers_gradients = True, False, False

    def memory(self, params: Params, num_tasks: int) -> State:
        return {}

    def step(self, model: MultiTaskModel, objective: Objective, *, stacked: bool) -> Step:
        if stacked:
            return StackedSum(model, objective)

        def loss(batch: Batch) -> tuple[Tensor, Tensor]:
            model.set_step(batch.keys, batch.valid)
            losses = objective.losses(model, batch.inputs, batch.targets, batch.mask, batch.valid, batch.counts)
            return losses.tasks.sum(), objective.image_sums(losses, batch.valid)

        return SumOfLosses(loss)

    def step_of_losses(self, losses: Callable[[Any], Losses]) -> Step:
        def loss(batch: Any) -> tuple[Tensor, Tensor]:
            parts = losses(batch)
            return parts.tasks.sum(), parts.sums

        return SumOfLosses(loss)

    def bytes_of_step(self, params: Params, num_tasks: int) -> int:
        return 0


class SumOfLosses:
    """Of one client, on the parameters of a model itself.

    loss: of a batch, at the model's parameters as they are: the sum of the tasks' losses, and the parts for the log, [2, ...].
    """

    def __init__(self, loss: Callable[[Any], tuple[Tensor, Tensor]]) -> None:
        self._loss = loss

    def gradients(self, params: Params, memory: State, batch: Any, resting: Params) -> Gradients:
        loss, sums = self._loss(batch)
        grads = torch.autograd.grad(loss, list(params.values()))
        return Gradients(dict(zip(params, grads, strict=True)), sums, memory)

    def observe(self, params: Params, memory: State, batch: Any) -> State:
        return memory


class StackedSum:
    """Of many clients side by side: `torch.func.vmap` of the gradient of one."""

    def __init__(self, model: MultiTaskModel, objective: Objective) -> None:
        self._losses = _Losses(model, objective)

    def gradients(self, params: Params, memory: State, batch: Batch, resting: Params) -> Gradients:
        fields = (
            batch.inputs,
            batch.targets,
            batch.mask,
            batch.valid,
            batch.keys,
            batch.positives,
            batch.negatives,
            batch.progress,
        )
        grads, losses = vmap(grad(self._loss, has_aux=True))(params, resting, *fields)
        return Gradients(grads, losses, memory)

    def observe(self, params: Params, memory: State, batch: Batch) -> State:
        return memory

    def _loss(
        self,
        params: Mapping[str, Tensor],
        resting: Mapping[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
        mask: Tensor,
        valid: Tensor,
        keys: Tensor,
        *counts: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The loss of one client in one step, and its parts [2, T] summed over the images."""
        buffers = self._losses.model.step_buffers(keys, valid)
        named = {f"model.{name}": value for name, value in {**params, **resting, **buffers}.items()}
        total, parts = functional_call(self._losses, named, (inputs, targets, mask, valid, TaskCounts(*counts)))
        return total, parts


class _Losses(nn.Module):
    """The objective of one client as a module, so that the model's parameters can be swapped for a call."""

    def __init__(self, model: MultiTaskModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, inputs: Tensor, targets: Tensor, mask: Tensor, valid: Tensor, counts: TaskCounts) -> tuple[Tensor, Tensor]:
        losses = self.objective.losses(self.model, inputs, targets, mask, valid, counts)
        return losses.tasks.sum(), self.objective.image_sums(losses, valid)
