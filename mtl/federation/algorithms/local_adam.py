"""Adam (Kingma & Ba, ICLR 2015) and AdamW (Loshchilov & Hutter, ICLR 2019) as a client's optimiser.

    Adam     g <- g + weight_decay p                AdamW    p <- p - rate weight_decay p
    m <- beta1 m + (1 - beta1) g                    v <- beta2 v + (1 - beta2) g^2
    p <- p - rate m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)

as in torch.optim. `local_optimizer` clips g before. Moments and steps t start at zero in every round of a federation. Each parameter counts
its own steps: one that begins to train later starts its averages then. The clients of a stack count their own steps too; those that still
train have made the same number.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mtl.base import tree
from mtl.base.types import Params
from mtl.federation.algorithms.local_optimizer import LocalOptimizer, aligned

FIRST, SECOND = ".first_moment", ".second_moment"
STEPS = "steps of "  # before the name: a head has one count and not a row for each subtask


@dataclass(frozen=True)
class LocalAdam(LocalOptimizer):
    """Adam whose moments start at zero in every round (Kingma & Ba 2015).

    Args:
        learning_rate: learning rate of the trunk, at the start of `schedule`
        weight_decay: L2 penalty, which is added to the gradient
        head_scale: the heads' learning rate as a multiple of the trunk's, 0 leaves them as they are
        clip: largest norm of a client's gradient, of trunk and heads together; null: any
        beta1: decay of the mean of the gradients
        beta2: decay of the mean of their squares
        eps: added to the root of the mean square
        scales: that of single parameters by name, where it is not 1 (see `transfer`)
        stacked: whether parameters have a first axis of clients (see `for_stack`)
    """

    decoupled: ClassVar[bool] = False  # whether weight decay leaves the gradient alone

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"client.{name} must be in [0, 1), got {getattr(self, name)}")
        if not self.eps > 0:
            raise ValueError(f"client.eps must be > 0, got {self.eps}")

    def init(self, params: Params) -> Params:
        """Return the two moments of each parameter and its steps: zeros."""
        moments = {f"{name}{moment}": torch.zeros_like(value) for name, value in params.items() for moment in (FIRST, SECOND)}
        return moments | {
            f"{STEPS}{name}": torch.zeros(value.shape[:1] if self.stacked else (), device=value.device)
            for name, value in params.items()
        }

    def update(self, names: list[str], params: Params, grads: Params, state: Params, learning_rate: Tensor) -> None:
        """See `LocalOptimizer`."""
        values, slopes = [params[name] for name in names], [grads[name] for name in names]
        first, second = [state[name + FIRST] for name in names], [state[name + SECOND] for name in names]
        steps = [state[STEPS + name].add_(1) for name in names]
        step = self._step_by_step if torch.compiler.is_compiling() else self._step_at_once
        step(values, slopes, first, second, steps, learning_rate)

    def _step_by_step(
        self,
        values: list[Tensor],
        slopes: list[Tensor],
        first: list[Tensor],
        second: list[Tensor],
        steps: list[Tensor],
        rate: Tensor,
    ) -> None:
        for value, slope, m, v, step in zip(values, slopes, first, second, steps, strict=True):
            if self.decoupled:
                value.mul_(1 - rate * self.weight_decay)
            else:
                slope = slope + self.weight_decay * value
            m.lerp_(slope, 1 - self.beta1)
            v.mul_(self.beta2).add_((1 - self.beta2) * slope * slope)
            # In single precision 1 - beta2^t would lose four digits.
            bias1, bias2 = (self._rows(1 - beta ** step.double(), value) for beta in (self.beta1, self.beta2))
            value.sub_(rate * (m / bias1) / ((v / bias2).sqrt() + self.eps))

    def _rows(self, number: Tensor, like: Tensor) -> Tensor:
        """Return a number, or one of each client of a stack, in a shape that broadcasts against `like`."""
        return (tree.rows(number, like) if self.stacked else number).to(like.dtype)

    def _step_at_once(
        self,
        values: list[Tensor],
        slopes: list[Tensor],
        first: list[Tensor],
        second: list[Tensor],
        steps: list[Tensor],
        rate: Tensor,
    ) -> None:
        kernel = torch._fused_adamw_ if self.decoupled else torch._fused_adam_
        kernel(
            values,
            aligned(slopes, values),
            first,
            second,
            [],
            [count[0] for count in steps] if self.stacked else steps,
            lr=rate,
            beta1=self.beta1,
            beta2=self.beta2,
            weight_decay=self.weight_decay,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
        )


@dataclass(frozen=True)
class LocalAdamW(LocalAdam):
    """AdamW: Adam whose weight decay leaves the gradient alone (Loshchilov & Hutter 2019).

    Args:
        learning_rate: learning rate of the trunk, at the start of `schedule`
        weight_decay: share of a parameter that a step of learning rate 1 takes away
        head_scale: the heads' learning rate as a multiple of the trunk's, 0 leaves them as they are
        clip: largest norm of a client's gradient, of trunk and heads together; null: any
        beta1: decay of the mean of the gradients
        beta2: decay of the mean of their squares
        eps: added to the root of the mean square
        scales: that of single parameters by name, where it is not 1 (see `transfer`)
        stacked: whether parameters have a first axis of clients (see `for_stack`)
    """

    decoupled: ClassVar[bool] = True

    weight_decay: float = 0.01
