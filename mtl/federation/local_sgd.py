"""Local SGD, the client algorithm of FedAvg (McMahan et al., AISTATS 2017): init -> step -> final.

    v <- momentum v + g + weight_decay p        p <- p - learning_rate v

as torch.optim.SGD does it. Every operation is elementwise, so the same code steps one client or a whole stacked cohort. The momentum
starts at zero in every round: nothing lasts on the client.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl import tree
from mtl.models.hard_sharing import is_head
from mtl.types import Params


@dataclass(frozen=True)
class LocalSGD:
    """head_scale: the heads' learning rate as a multiple of the trunk's; 0 freezes the heads."""

    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    head_scale: float = 0.1

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"client.learning_rate must be > 0, got {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"client.momentum must be in [0, 1), got {self.momentum}")
        for name in ("weight_decay", "head_scale"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"client.{name} must be >= 0, got {getattr(self, name)}")

    def init(self, params: Params) -> Params:
        """The state of a client at the start of its round: its momentum."""
        return tree.zeros_like(params) if self.momentum else {}

    @torch.no_grad()
    def step(self, params: Params, grads: Params, state: Params, learning_rate: Tensor) -> tuple[Params, Params]:
        """One step; takes over the memory of `params`, `grads` and `state`, which the caller must not use again.

        learning_rate: a tensor of no dimension, so that a compiled step or a CUDA graph serves every round.
        """
        values, steps = list(params.values()), [grads[name] for name in params]
        if self.weight_decay:
            torch._foreach_add_(steps, values, alpha=self.weight_decay)
        if self.momentum:
            velocity = list(state.values())
            torch._foreach_mul_(velocity, self.momentum)
            torch._foreach_add_(velocity, steps)
            steps = velocity
        for name, value, step in zip(params, values, steps, strict=True):
            value.addcmul_(step, learning_rate, value=-(self.head_scale if is_head(name) else 1.0))
        return params, state

    def final(self, params: Params, start: Params) -> Params:
        """What the client sends: how far it moved."""
        return tree.subtract(params, start)
