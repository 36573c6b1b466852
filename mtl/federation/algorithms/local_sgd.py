"""Local SGD, the client algorithm of FedAvg (McMahan et al., AISTATS 2017): init -> step -> final.

    v <- momentum v + g + weight_decay p        p <- p - learning_rate v

as in torch.optim.SGD. Every operation is elementwise, so that the same code serves one client and a stack of clients. The momentum starts
at zero in every round: the client keeps no state.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mtl.base import tree
from mtl.base.types import Params
from mtl.federation.layout import is_head


@dataclass(frozen=True)
class LocalSGD:
    """SGD whose momentum starts at zero in every round (FedAvg's clients, McMahan et al. 2017).

    Args:
        learning_rate: learning rate of the trunk, at the start of `schedule`
        momentum: momentum of SGD
        weight_decay: weight decay of SGD
        head_scale: the heads' learning rate as a multiple of the trunk's, 0 leaves them as they are
        scales: that of single parameters by name, where it is not 1 (see `transfer`)
    """

    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    head_scale: float = 0.1
    scales: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"client.learning_rate must be > 0, got {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"client.momentum must be in [0, 1), got {self.momentum}")
        for name in ("weight_decay", "head_scale"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"client.{name} must be >= 0, got {getattr(self, name)}")

    def init(self, params: Params) -> Params:
        """Return a client's state at the start of its round: zero momentum."""
        return tree.zeros_like(params) if self.momentum else {}

    @torch.no_grad()
    def step(self, params: Params, grads: Params, state: Params, learning_rate: Tensor) -> tuple[Params, Params]:
        """Return parameters and state after one step.

        The step works in place: the caller must not use `params`, `grads` and `state` again.

        Args:
            params: the trained parameters, of one client or stacked.
            grads: their gradients.
            state: the momentum.
            learning_rate: scalar tensor, so that a compiled step or a CUDA graph serves every round.
        """
        for scale, names in self.groups(params).items():
            values, slopes = [params[name] for name in names], [grads[name] for name in names]
            velocity = [state[name] for name in names] if self.momentum else []
            rate = learning_rate * scale
            # The compiler fuses the plain operations, and does not know the fused kernel.
            step = self._step_by_step if torch.compiler.is_compiling() else self._step_at_once
            step(values, slopes, velocity, rate)
        return params, state

    def groups(self, params: Iterable[str]) -> dict[float, list[str]]:
        """Return the names of the parameters by the factor of their learning rate."""
        groups: dict[float, list[str]] = {}
        for name in params:
            groups.setdefault(self.head_scale if is_head(name) else self.scales.get(name, 1.0), []).append(name)
        return groups

    def _step_by_step(self, values: list[Tensor], slopes: list[Tensor], velocity: list[Tensor], rate: Tensor) -> None:
        for i, (value, slope) in enumerate(zip(values, slopes, strict=True)):
            step = slope + self.weight_decay * value
            if self.momentum:
                step = velocity[i].mul_(self.momentum).add_(step)
            value.sub_(rate * step)

    def _step_at_once(self, values: list[Tensor], slopes: list[Tensor], velocity: list[Tensor], rate: Tensor) -> None:
        # The kernel assumes that a parameter and its gradient have the same strides.
        torch._fused_sgd_(
            values,
            [
                slope if slope.stride() == value.stride() else torch.empty_like(value).copy_(slope)
                for value, slope in zip(values, slopes, strict=True)
            ],
            velocity,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )

    def without_decay(self) -> "LocalSGD":
        """The same without weight decay."""
        return replace(self, weight_decay=0.0)

    def final(self, params: Params, start: Params) -> Params:
        """Return what the client sends: the difference to its start."""
        return tree.subtract(params, start)
