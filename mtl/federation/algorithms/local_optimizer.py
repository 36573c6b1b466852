"""What the clients' optimisers share: learning rates of trunk and heads, weight decay, and clipping by the norm of the gradient.

    g <- g min(1, clip / (|g| + 1e-6))

|g| is the norm over all parameters that the client trains, of trunk and heads together, as in torch.nn.utils.clip_grad_norm_; parameters
whose learning rate is 0 do not count. Each client of a stack has a norm of its own. The squares are summed in float64, so that gradients
up to the largest number of their type are clipped, where torch's norm would be infinite and the step zero. A gradient that is not finite
stays so, and the round's check of health finds it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from mtl.base import tree
from mtl.base.types import Params
from mtl.federation.layout import is_head

EPS = 1e-6  # of torch.nn.utils.clip_grad_norm_


@dataclass(frozen=True)
class LocalOptimizer:
    """An optimiser of one client or of a stack of them, whose state starts anew in every round; a subclass has `init` and `update`.

    Args:
        learning_rate: learning rate of the trunk, at the start of `schedule`
        weight_decay: weight decay
        head_scale: the heads' learning rate as a multiple of the trunk's, 0 leaves them as they are
        clip: largest norm of a client's gradient, of trunk and heads together; null: any
        scales: that of single parameters by name, where it is not 1 (see `transfer`)
        stacked: whether parameters have a first axis of clients (see `for_stack`)
    """

    learning_rate: float
    weight_decay: float = 0.0
    head_scale: float = 0.1
    clip: float | None = None
    scales: Mapping[str, float] = field(default_factory=dict)
    stacked: bool = False

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"client.learning_rate must be > 0, got {self.learning_rate}")
        for name in ("weight_decay", "head_scale"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"client.{name} must be >= 0, got {getattr(self, name)}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"client.clip must be > 0, or null for no clipping, got {self.clip}")

    def init(self, params: Params) -> Params:
        """Return the state at the start of a round."""
        raise NotImplementedError

    def update(self, names: list[str], params: Params, grads: Params, state: Params, learning_rate: Tensor) -> None:
        """Move the parameters `names` and their state by one step, in place.

        Args:
            names: parameters of one learning rate.
            params: the trained parameters.
            grads: their gradients, clipped.
            state: what `init` returned.
            learning_rate: scalar tensor, of these parameters.
        """
        raise NotImplementedError

    @torch.no_grad()
    def step(self, params: Params, grads: Params, state: Params, learning_rate: Tensor) -> tuple[Params, Params]:
        """Return parameters and state after one step.

        The step works in place: the caller must not use `params`, `grads` and `state` again.

        Args:
            params: the trained parameters, of one client or stacked.
            grads: their gradients.
            state: what `init` returned, of these parameters or of more.
            learning_rate: scalar tensor, so that a compiled step or a CUDA graph serves every round.
        """
        groups = self.groups(params)
        if self.clip is not None:
            moving = [name for scale, names in groups.items() if scale for name in names]
            grads = grads | clip_by_norm({name: grads[name] for name in moving}, self.clip, stacked=self.stacked)
        for scale, names in groups.items():
            self.update(names, params, grads, state, learning_rate * scale)
        return params, state

    def groups(self, params: Iterable[str]) -> dict[float, list[str]]:
        """Return the names of the parameters by the factor of their learning rate."""
        groups: dict[float, list[str]] = {}
        for name in params:
            groups.setdefault(self.head_scale if is_head(name) else self.scales.get(name, 1.0), []).append(name)
        return groups

    def for_stack(self) -> Self:
        """Return the same for parameters with a first axis of clients."""
        return replace(self, stacked=True)

    def without_decay(self) -> Self:
        """Return the same without weight decay."""
        return replace(self, weight_decay=0.0)

    def final(self, params: Params, start: Params) -> Params:
        """Return what the client sends: the difference to its start."""
        return tree.subtract(params, start)


def clip_by_norm(grads: Params, largest: float, *, stacked: bool) -> Params:
    """Return gradients whose norm over all of `grads` is at most `largest`; with `stacked`, the norm of each client."""
    if not grads:
        return grads
    lead = len(next(iter(grads.values()))) if stacked else 1
    norms = [torch.linalg.vector_norm(grad.reshape(lead, -1), dim=1, dtype=torch.float64) for grad in grads.values()]
    factor = (largest / (torch.linalg.vector_norm(torch.stack(norms), dim=0) + EPS)).clamp(max=1.0)
    if not stacked:
        return {name: grad * factor[0].to(grad.dtype) for name, grad in grads.items()}
    return {name: grad * tree.rows(factor, grad).to(grad.dtype) for name, grad in grads.items()}


def aligned(grads: list[Tensor], params: list[Tensor]) -> list[Tensor]:
    """Return the gradients with the strides of their parameters, which torch's fused kernels assume."""
    return [
        grad if grad.stride() == param.stride() else torch.empty_like(param).copy_(grad)
        for grad, param in zip(grads, params, strict=True)
    ]
