"""A balanced local step: the tasks' gradients, the balancer's weights or direction, and one update.

`BalancedStep` trains one client or a stack of clients; `BalancedLosses` a model whose tasks do not read the same images.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from mtl.balancing.contract import weighted_sum
from mtl.balancing.gramian import HeadGeometry, compare, gramian_of
from mtl.base.types import Params
from mtl.federation.clients.batches import Batch
from mtl.federation.clients.gradients import Gradients, Losses, State
from mtl.federation.layout import is_head, kind_of, shared
from mtl.federation.objective import Objective, pair_loss
from mtl.losses.pairs import TaskCounts
from mtl.models.multi_task_model import MultiTaskModel

if TYPE_CHECKING:
    from mtl.federation.clients.balance import Balance


@dataclass(frozen=True)
class _Forward:
    """The forward pass of a step, and the gradients of the losses at the logits.

    Attributes:
        leaves: the trained parameters.
        logits: [..., B, T].
        features: [..., B, h], where gradients are compared at the level of the representation.
        geometry: the geometry of the heads there.
        pairs: [..., 2, T], the positive and the negative loss of each task.
        losses: [..., T].
        errors: [..., B, T], the gradient of each task's loss at its logits.
    """

    leaves: Params
    logits: Tensor
    features: Tensor | None
    geometry: HeadGeometry | None
    pairs: Tensor
    losses: Tensor
    errors: Tensor

    @property
    def trunk(self) -> Params:
        """The parameters that the tasks share."""
        return {name: self.leaves[name] for name in shared(self.leaves)}


class BalancedStep:
    """The balanced step of a model whose tasks read the same images; see `Step`.

    Args:
        balance: the gradient rule.
        model: the model.
        objective: from images to losses.
        stacked: whether parameters and batches have a first axis of clients; else they are those of `model` itself.
    """

    def __init__(self, balance: "Balance", model: MultiTaskModel, objective: Objective, *, stacked: bool) -> None:
        self.balance, self.stacked = balance, stacked
        self._parts = _Parts(model, objective)

    def gradients(self, params: Params, memory: State, batch: Batch, resting: Params) -> Gradients:
        """See `Step`. The result takes the place of the gradient of the plain sum."""
        balance, active = self.balance, batch.active
        forward = self._forward(params, resting, batch)
        rows, gramian = self._compare(forward, active)
        weights, direction, memory = balance.decide(memory, forward.losses.detach(), rows, gramian, active, batch.draw_key)
        if rows is None and forward.geometry is None:
            moved, weights = balance.weighted_update(partial(self._weighted_gradient, forward), weights, active)
        else:
            moved = self._update(forward, rows, weights, direction)
        leaves, pairs = forward.leaves, forward.pairs.detach()
        heads = {name: value for name, value in leaves.items() if is_head(name)}
        plain = _grad(forward.logits, heads, forward.errors.to(forward.logits.dtype))
        of_heads, factors = balance.weigh_heads(plain, weights, active)
        learned = {name: value for name, value in leaves.items() if kind_of(name) == "loss"}
        moved |= of_heads | _grad(forward.losses, learned, factors)
        sums = pairs if self._parts.objective.reduction == "sum" else pairs * batch.valid.sum(-1)[..., None, None]
        conflict = compare(gramian, active).to(sums.dtype) if balance.conflict and gramian is not None else None
        return Gradients({name: moved[name] for name in params}, sums, memory, conflict)

    def _forward(self, params: Params, resting: Params, batch: Batch) -> _Forward:
        if not self.stacked:
            self._parts.model.set_step(batch.keys, batch.valid)
        features, geometry = None, None
        with torch.enable_grad():
            leaves = {name: value.detach().requires_grad_() for name, value in params.items()} if self.stacked else params
            named = leaves | resting
            if self.balance.compares and self.balance.level == "representation":
                features = self._call("represent", named, batch, batch.inputs)
                logits = self._call("logits", named, batch, features.detach())
                directions = self._call("directions", named, batch).detach()
                geometry = HeadGeometry(_at_least_float32(directions), _at_least_float32(features.detach()), self._parts.cosine)
            else:
                logits = self._call("forward_all", named, batch, batch.inputs)
            cut = _at_least_float32(logits.detach()).requires_grad_()
            pairs = self._losses(named, cut, batch)
            losses = pairs.sum(-2)
            (errors,) = torch.autograd.grad(losses.sum(), cut, retain_graph=True)
        return _Forward(leaves, logits, features, geometry, pairs, losses, errors)

    def _compare(self, forward: _Forward, active: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the tasks' gradients [..., T, P] and their Gramian [..., T, T], each None where the method does not need it."""
        if forward.geometry is not None:
            gramian = forward.geometry.gramian(forward.errors)
            return forward.geometry.rows(forward.errors) if self.balance.method.needs == "gradients" else None, gramian
        if not self.balance.compares:
            return None, None
        rows = self._exact(forward, active)
        return rows, gramian_of(rows)

    def _update(self, forward: _Forward, rows: Tensor | None, weights: Tensor, direction: Tensor | None) -> Params:
        """Return the update of the trunk, from gradients that have been compared."""
        if forward.geometry is not None:
            assert forward.features is not None
            pull = forward.geometry.pull_back(forward.errors * weights[..., None, :])
            to_features = pull if direction is None else direction.unflatten(-1, forward.features.shape[-2:])
            return _grad(forward.features, forward.trunk, to_features.to(forward.features.dtype))
        assert rows is not None
        return _split(weighted_sum(weights, rows) if direction is None else direction, forward.trunk)

    def _weighted_gradient(self, forward: _Forward, weights: Tensor) -> Params:
        """Return the trunk's gradient of the weighted sum of the losses."""
        pull = (forward.errors * weights[..., None, :]).to(forward.logits.dtype)
        return _grad(forward.logits, forward.trunk, pull, keep=True)

    @torch.no_grad()
    def observe(self, params: Params, memory: State, batch: Batch) -> State:
        """See `Step`."""
        if not self.balance.method.observes:
            return memory
        logits = _at_least_float32(self._call("forward_all", params, batch, batch.inputs))
        return self.balance.method.observe(memory, self._losses(params, logits, batch).sum(-2), batch.active)

    def _losses(self, params: Params, logits: Tensor, batch: Batch) -> Tensor:
        """Return the positive and the negative loss of every task, [..., 2, T]."""
        counts = (batch.positives, batch.negatives, batch.progress)
        return self._call("losses", params, batch, logits, batch.targets, batch.mask, batch.valid, *counts)

    def _exact(self, forward: _Forward, active: Tensor) -> Tensor:
        """Return every task's gradient of the trunk, [..., T, P], by a backward pass for each task that some client has."""
        errors, trunk = forward.errors, forward.trunk
        num_tasks, num_axes = errors.shape[-1], errors.dim() - 2
        sizes = [value[(0,) * num_axes].numel() for value in trunk.values()]
        rows = errors.new_zeros(*errors.shape[:num_axes], num_tasks, sum(sizes))
        columns = dict(zip(trunk, rows.split(sizes, -1), strict=True)) if trunk else {}
        tasks: Iterable[int] = range(num_tasks)
        if active.device.type == "cpu":
            tasks = active.reshape(-1, num_tasks).any(0).nonzero().flatten().tolist()
        for task in tasks:
            pull = torch.zeros_like(errors)
            pull[..., task] = errors[..., task]
            for name, grad in _grad(forward.logits, trunk, pull.to(forward.logits.dtype), keep=True).items():
                columns[name][..., task, :] = grad.flatten(num_axes)
        return rows

    def _call(self, stage: str, params: Params, batch: Batch, *inputs: Tensor) -> Tensor:
        """Run a stage of `_Parts` with these parameters, for one client or a stack."""
        if not self.stacked:
            result: Tensor = self._parts(stage, *inputs)
            return result

        def call_client(params: Params, keys: Tensor, valid: Tensor, *inputs: Tensor) -> Tensor:
            named = params | self._parts.model.step_buffers(keys, valid)
            result: Tensor = functional_call(self._parts, {f"model.{n}": v for n, v in named.items()}, (stage, *inputs))
            return result

        stacked: Tensor = vmap(call_client)(params, batch.keys, batch.valid, *inputs)
        return stacked


class BalancedLosses:
    """The balanced step of one model whose tasks need not read the same images; see `Step`.

    The gradients of the trunk are exact.

    Args:
        balance: the gradient rule.
        losses: returns the losses of a batch at the model's present parameters.
    """

    def __init__(self, balance: "Balance", losses: Callable[[Any], Losses]) -> None:
        self.balance, self.losses = balance, losses

    def gradients(self, params: Params, memory: State, batch: Any, resting: Params) -> Gradients:
        """See `Step`. `params` are those of the model itself; the batch needs a `draw_key`, int32 [2]."""
        balance = self.balance
        result = self.losses(batch)
        losses = _at_least_float32(result.tasks)
        trunk = {name: params[name] for name in shared(params)}
        rows = gramian = None
        if balance.compares:
            task_grads = [_grad(loss, trunk, torch.ones_like(loss), keep=True) for loss in losses]
            rows = torch.stack(
                [torch.cat([losses.new_zeros(0), *(grad.flatten() for grad in grads.values())]) for grads in task_grads]
            )
            gramian = gramian_of(rows)
        weights, direction, memory = balance.decide(memory, losses.detach(), rows, gramian, result.active, batch.draw_key)
        if rows is None:
            moved, weights = balance.weighted_update(
                lambda weights: _grad(losses, trunk, weights, keep=True), weights, result.active
            )
        else:
            moved = _split(weighted_sum(weights, rows) if direction is None else direction, trunk)
        learned = {name: value for name, value in params.items() if kind_of(name) == "loss"}
        others = {name: value for name, value in params.items() if name not in trunk and name not in learned}
        plain = _grad(losses, others, torch.ones_like(losses), keep=True)
        unshared, factors = balance.weigh_heads(plain, weights, result.active)
        moved |= unshared | _grad(losses, learned, factors)
        conflict = compare(gramian, result.active).to(losses.dtype) if balance.conflict and gramian is not None else None
        return Gradients({name: moved[name] for name in params}, result.sums, memory, conflict)

    @torch.no_grad()
    def observe(self, params: Params, memory: State, batch: Any) -> State:
        """See `Step`."""
        if not self.balance.method.observes:
            return memory
        result = self.losses(batch)
        return self.balance.method.observe(memory, _at_least_float32(result.tasks), result.active)


class _Parts(nn.Module):
    """The stages of a step as methods of one module, so that `functional_call` can replace the parameters."""

    def __init__(self, model: MultiTaskModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, stage: str, *inputs: Any) -> Any:
        """Run the stage of this name."""
        return getattr(self, stage)(*inputs)

    @property
    def cosine(self) -> bool:
        return bool(getattr(self.model.heads, "cosine", False))

    def forward_all(self, inputs: Tensor) -> Any:
        return self.model(inputs)

    def represent(self, inputs: Tensor) -> Any:
        return self.model.trunk(inputs)

    def logits(self, features: Tensor) -> Any:
        return self.model.heads(features)

    def directions(self) -> Any:
        return self.model.heads.directions()  # type: ignore[operator]

    def losses(self, logits: Tensor, targets: Tensor, mask: Tensor, valid: Tensor, *counts: Tensor) -> Tensor:
        terms = pair_loss(self.model).terms(logits, TaskCounts(*counts))
        losses = self.objective.reduce(terms, targets, mask, valid)
        return torch.stack([losses.positive, losses.negative])


def _at_least_float32(values: Tensor) -> Tensor:
    """Convert half precision, which autocast computes in, to float32: losses and solvers need it."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _grad(outputs: Tensor, inputs: Params, pull: Tensor, *, keep: bool = False) -> Params:
    """Return the gradient of sum(pull * outputs) at the inputs. `keep` keeps the graph for another backward pass."""
    if not inputs:
        return {}
    grads = torch.autograd.grad(outputs, list(inputs.values()), pull, retain_graph=keep, materialize_grads=True)
    return dict(zip(inputs, grads, strict=True))


def _split(direction: Tensor, like: Params) -> Params:
    """Split a direction [..., P] into tensors of the shapes of the parameters."""
    num_axes = direction.dim() - 1
    sizes = [value[(0,) * num_axes].numel() for value in like.values()]
    parts = direction.split(sizes, -1)
    return {name: part.reshape(value.shape).to(value.dtype) for (name, value), part in zip(like.items(), parts, strict=True)}
