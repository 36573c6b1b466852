"""The gradients of a local step: the contract, and the plain sum of the tasks' losses. `balance` has the balanced ones.

A step trains one client, on the parameters of a module, or a stack of clients. It returns gradients by name, losses for the log, and state
for the next step: none for the plain sum, a balancer's state in `balance`.
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
    """The result of a step; a stack of clients has one leading axis [...].

    Attributes:
        grads: gradients by the names of the parameters.
        losses: [..., 2, T], positive and negative, summed over the images of the batch.
        memory: state for the next step.
        conflict: [..., 3, T, T], `balance.compare`, or None where gradients are not compared.
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
    """Computes the gradients of one local step."""

    def gradients(self, params: Params, memory: State, batch: Any, resting: Params) -> Gradients:
        """Return the gradients of a batch.

        Args:
            params: the parameters that are trained.
            memory: state of the gradient rule.
            batch: one batch, or one for each client of a stack.
            resting: the parameters that are frozen in this round.
        """

    def observe(self, params: Params, memory: State, batch: Any) -> State:
        """Return the state of the rule after the optimiser step.

        Args:
            params: all parameters, after the step.
            memory: the state that `gradients` returned.
            batch: the batch of the step.
        """


class GradientRule(Protocol):
    """How the losses of the tasks become one gradient."""

    @property
    def name(self) -> str:
        """Name of the method, for messages."""

    @property
    def compiles(self) -> bool:
        """Whether `torch.compile` or a CUDA graph can run the step."""

    @property
    def conflict(self) -> bool:
        """Whether the tasks' gradients are compared for the log."""

    @property
    def remembers_gradients(self) -> bool:
        """Whether the state has the shape of the trained parameters."""

    def memory(self, params: Params, num_tasks: int) -> State:
        """Return the state before the first step."""

    def step(self, model: MultiTaskModel, objective: Objective, *, stacked: bool) -> Step:
        """Return the step for a model.

        Args:
            model: the model.
            objective: from images to losses.
            stacked: whether parameters and batches have a first axis of clients; else they are those of `model` itself.
        """

    def step_of_losses(self, losses: Callable[[Any], Losses]) -> Step:
        """Return the step for tasks that need not read the same images.

        Args:
            losses: from a batch to its losses, at the model's parameters as they are.
        """

    def bytes_of_step(self, params: Params, num_tasks: int) -> int:
        """Return the bytes that a step of one client takes in addition to what autograd saves."""


@dataclass(frozen=True)
class PlainSum:
    """The gradient of sum_t L_t."""

    name = "equal"
    compiles, conflict, remembers_gradients = True, False, False

    def memory(self, params: Params, num_tasks: int) -> State:
        """See `GradientRule`: no state."""
        return {}

    def step(self, model: MultiTaskModel, objective: Objective, *, stacked: bool) -> Step:
        """See `GradientRule`."""
        if stacked:
            return StackedSum(model, objective)

        def loss(batch: Batch) -> tuple[Tensor, Tensor]:
            model.set_step(batch.keys, batch.valid)
            losses = objective.losses(model, batch.inputs, batch.targets, batch.mask, batch.valid, batch.counts)
            return losses.tasks.sum(), objective.image_sums(losses, batch.valid)

        return SumOfLosses(loss)

    def step_of_losses(self, losses: Callable[[Any], Losses]) -> Step:
        """See `GradientRule`."""

        def loss(batch: Any) -> tuple[Tensor, Tensor]:
            parts = losses(batch)
            return parts.tasks.sum(), parts.sums

        return SumOfLosses(loss)

    def bytes_of_step(self, params: Params, num_tasks: int) -> int:
        """See `GradientRule`."""
        return 0


class SumOfLosses:
    """The gradient of the summed losses of one client, on the parameters of a model itself.

    Args:
        loss: from a batch to the sum of the tasks' losses and to the parts for the log, [2, ...].
    """

    def __init__(self, loss: Callable[[Any], tuple[Tensor, Tensor]]) -> None:
        self._loss = loss

    def gradients(self, params: Params, memory: State, batch: Any, resting: Params) -> Gradients:
        """See `Step`."""
        loss, sums = self._loss(batch)
        grads = torch.autograd.grad(loss, list(params.values()))
        return Gradients(dict(zip(params, grads, strict=True)), sums, memory)

    def observe(self, params: Params, memory: State, batch: Any) -> State:
        """See `Step`: no state."""
        return memory


class StackedSum:
    """The gradients of the summed losses of a stack of clients: `torch.func.vmap` of the gradient of one."""

    def __init__(self, model: MultiTaskModel, objective: Objective) -> None:
        self._losses = _Losses(model, objective)

    def gradients(self, params: Params, memory: State, batch: Batch, resting: Params) -> Gradients:
        """See `Step`."""
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
        """See `Step`: no state."""
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
        """Return the loss of one client's batch, and its positive and negative parts [2, T] summed over the images."""
        buffers = self._losses.model.step_buffers(keys, valid)
        named = {f"model.{name}": value for name, value in {**params, **resting, **buffers}.items()}
        total, parts = functional_call(self._losses, named, (inputs, targets, mask, valid, TaskCounts(*counts)))
        return total, parts


class _Losses(nn.Module):
    """The objective as a module, so that `functional_call` can replace the model's parameters."""

    def __init__(self, model: MultiTaskModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, inputs: Tensor, targets: Tensor, mask: Tensor, valid: Tensor, counts: TaskCounts) -> tuple[Tensor, Tensor]:
        """[B, c, H, W] -> loss [], sums over the images [2, T]."""
        losses = self.objective.losses(self.model, inputs, targets, mask, valid, counts)
        return losses.tasks.sum(), self.objective.image_sums(losses, valid)
