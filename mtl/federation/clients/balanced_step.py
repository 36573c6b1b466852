"""A balanced local step: the tasks' gradients, what a balancer makes of them, and one update.

`BalancedStep` serves one client or a stack of clients; `BalancedLosses` a model whose tasks do not read the same images.
"""

from collections.abc import Callable, Iterable
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


class BalancedStep:
    """stacked: whether parameters and batches have a first axis of clients; without it, they are those of `model` itself."""

    def __init__(self, balance: "Balance", model: MultiTaskModel, objective: Objective, *, stacked: bool) -> None:
        self.balance, self.stacked = balance, stacked
        self._parts = _Parts(model, objective)

    def gradients(self, params: Params, memory: State, batch: Batch, resting: Params) -> Gradients:
        """See `Step`; what is returned takes the place of the gradient of a plain sum."""
        balance = self.balance
        if not self.stacked:
            self._parts.model.set_step(batch.keys, batch.valid)
        apart = balance.compares and balance.level == "representation"
        with torch.enable_grad():
            leaves = {name: value.detach().requires_grad_() for name, value in params.items()} if self.stacked else params
            named = leaves | resting
            if apart:
                features = self._call("represent", named, batch, batch.inputs)
                logits = self._call("logits", named, batch, features.detach())
                directions = self._call("directions", named, batch).detach()
                geometry = HeadGeometry(_wide(directions), _wide(features.detach()), self._parts.cosine)
            else:
                logits = self._call("forward_all", named, batch, batch.inputs)
            cut = _wide(logits.detach()).requires_grad_()
            both = self._losses(named, cut, batch)
            losses, active = both.sum(-2), batch.active
            (errors,) = torch.autograd.grad(losses.sum(), cut, retain_graph=True)
        trunk = {name: leaves[name] for name in shared(leaves)}

        rows = gramian = None
        if apart:
            gramian = geometry.gramian(errors)
            rows = geometry.rows(errors) if balance.method.needs == "gradients" else None
        elif balance.compares:
            rows = self._exact(logits, trunk, errors, active)
            gramian = gramian_of(rows)
        weights, direction, memory = balance.decide(memory, losses.detach(), rows, gramian, active, batch.draw_key)

        def summed(weights: Tensor) -> Params:
            return _grad(logits, trunk, (errors * weights[..., None, :]).to(logits.dtype), keep=True)

        if apart:
            pull = geometry.pull_back(errors * weights[..., None, :])
            to_features = pull if direction is None else direction.unflatten(-1, features.shape[-2:])
            moved = _grad(features, trunk, to_features.to(features.dtype))
        elif rows is not None:
            moved = _split(weighted_sum(weights, rows) if direction is None else direction, trunk)
        else:
            moved, weights = balance.weighted_update(summed, weights, active)
        heads = {name: value for name, value in leaves.items() if is_head(name)}
        of_heads, factors = balance.weigh_heads(_grad(logits, heads, errors.to(logits.dtype)), weights, active)
        learned = {name: value for name, value in leaves.items() if kind_of(name) == "loss"}
        moved |= of_heads | _grad(losses, learned, factors)

        sums = both.detach() if self._parts.objective.reduction == "sum" else both.detach() * batch.valid.sum(-1)[..., None, None]
        pairs = compare(gramian, active).to(losses.dtype) if balance.conflict and gramian is not None else None
        return Gradients({name: moved[name] for name in params}, sums, memory, pairs)

    @torch.no_grad()
    def observe(self, params: Params, memory: State, batch: Batch) -> State:
        """See `Step`."""
        if not self.balance.method.observes:
            return memory
        logits = _wide(self._call("forward_all", params, batch, batch.inputs))
        return self.balance.method.observe(memory, self._losses(params, logits, batch).sum(-2), batch.active)

    def _losses(self, params: Params, logits: Tensor, batch: Batch) -> Tensor:
        """[..., 2, T], the positive and the negative loss of every task."""
        counts = (batch.positives, batch.negatives, batch.progress)
        return self._call("losses", params, batch, logits, batch.targets, batch.mask, batch.valid, *counts)

    def _exact(self, logits: Tensor, trunk: Params, errors: Tensor, active: Tensor) -> Tensor:
        """Every task's gradient of the trunk, [..., T, P], by a backward pass for each task that some client has."""
        num_tasks, lead = errors.shape[-1], errors.dim() - 2
        sizes = [value[(0,) * lead].numel() for value in trunk.values()]
        rows = errors.new_zeros(*errors.shape[:lead], num_tasks, sum(sizes))
        places = dict(zip(trunk, rows.split(sizes, -1), strict=True)) if trunk else {}
        whom: Iterable[int] = range(num_tasks)
        if active.device.type == "cpu":
            whom = active.reshape(-1, num_tasks).any(0).nonzero().flatten().tolist()
        for task in whom:
            pull = torch.zeros_like(errors)
            pull[..., task] = errors[..., task]
            for name, grad in _grad(logits, trunk, pull.to(logits.dtype), keep=True).items():
                places[name][..., task, :] = grad.flatten(lead)
        return rows

    def _call(self, what: str, params: Params, batch: Batch, *given: Tensor) -> Tensor:
        if not self.stacked:
            result: Tensor = self._parts(what, *given)
            return result

        def one(params: Params, keys: Tensor, valid: Tensor, *given: Tensor) -> Tensor:
            named = params | self._parts.model.step_buffers(keys, valid)
            result: Tensor = functional_call(self._parts, {f"model.{n}": v for n, v in named.items()}, (what, *given))
            return result

        many: Tensor = vmap(one)(params, batch.keys, batch.valid, *given)
        return many


class BalancedLosses:
    """`BalancedStep` for one model and tasks that need not read the same images. losses: of a batch, at the model's parameters as they
    are. The gradients of the trunk are exact.
    """

    def __init__(self, balance: "Balance", losses: Callable[[Any], Losses]) -> None:
        self.balance, self.losses = balance, losses

    def gradients(self, params: Params, memory: State, batch: Any, resting: Params) -> Gradients:
        """See `Step`. params: of the model itself; batch: it has a `draw_key`, int32 [2]."""
        balance = self.balance
        found = self.losses(batch)
        losses = _wide(found.tasks)
        trunk = {name: params[name] for name in shared(params)}
        rows = gramian = None
        if balance.compares:
            each = [_grad(loss, trunk, torch.ones_like(loss), keep=True) for loss in losses]
            rows = torch.stack([torch.cat([losses.new_zeros(0), *(grad.flatten() for grad in grads.values())]) for grads in each])
            gramian = gramian_of(rows)
        weights, direction, memory = balance.decide(memory, losses.detach(), rows, gramian, found.active, batch.draw_key)
        if rows is None:
            moved, weights = balance.weighted_update(
                lambda weights: _grad(losses, trunk, weights, keep=True), weights, found.active
            )
        else:
            moved = _split(weighted_sum(weights, rows) if direction is None else direction, trunk)
        learned = {name: value for name, value in params.items() if kind_of(name) == "loss"}
        rest = {name: value for name, value in params.items() if name not in trunk and name not in learned}
        plain = _grad(losses, rest, torch.ones_like(losses), keep=True)
        of_heads, factors = balance.weigh_heads(plain, weights, found.active)
        moved |= of_heads | _grad(losses, learned, factors)
        pairs = compare(gramian, found.active).to(losses.dtype) if balance.conflict and gramian is not None else None
        return Gradients({name: moved[name] for name in params}, found.sums, memory, pairs)

    @torch.no_grad()
    def observe(self, params: Params, memory: State, batch: Any) -> State:
        """See `Step`."""
        if not self.balance.method.observes:
            return memory
        found = self.losses(batch)
        return self.balance.method.observe(memory, _wide(found.tasks), found.active)


class _Parts(nn.Module):
    """The stages of a step as calls of one module, so that its parameters can be swapped for a call."""

    def __init__(self, model: MultiTaskModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, what: str, *given: Any) -> Any:
        return getattr(self, what)(*given)

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


def _wide(values: Tensor) -> Tensor:
    """In float32 at least: losses and solvers do not work in what autocast computes with."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _grad(outputs: Tensor, inputs: Params, pull: Tensor, *, keep: bool = False) -> Params:
    if not inputs:
        return {}
    grads = torch.autograd.grad(outputs, list(inputs.values()), pull, retain_graph=keep, materialize_grads=True)
    return dict(zip(inputs, grads, strict=True))


def _split(direction: Tensor, like: Params) -> Params:
    """direction: [..., P]; returns its parts in the shapes of the parameters."""
    lead = direction.dim() - 1
    sizes = [value[(0,) * lead].numel() for value in like.values()]
    parts = direction.split(sizes, -1)
    return {name: part.reshape(value.shape).to(value.dtype) for (name, value), part in zip(like.items(), parts, strict=True)}
