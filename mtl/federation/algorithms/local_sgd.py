"""Local SGD, the optimiser of FedAvg's clients (McMahan et al., AISTATS 2017): init -> step -> final.

    v <- momentum v + g + weight_decay p        p <- p - learning_rate v

as in torch.optim.SGD; with Nesterov p <- p - learning_rate (g + weight_decay p + momentum v). `local_optimizer` clips g before. The same
code serves one client and a stack of clients. The momentum starts at zero in every round: the client keeps no state.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.base import tree
from mtl.base.types import Params
from mtl.federation.algorithms.local_optimizer import LocalOptimizer, aligned


@dataclass(frozen=True)
class LocalSGD(LocalOptimizer):
    """SGD whose momentum starts at zero in every round (FedAvg's clients, McMahan et al. 2017).

    Args:
        learning_rate: learning rate of the trunk, at the start of `schedule`
        weight_decay: weight decay of SGD
        head_scale: the heads' learning rate as a multiple of the trunk's, 0 leaves them as they are
        clip: largest norm of a client's gradient, of trunk and heads together; null: any
        momentum: momentum of SGD
        nesterov: Nesterov's momentum
        scales: that of single parameters by name, where it is not 1 (see `transfer`)
        stacked: whether parameters have a first axis of clients (see `for_stack`)
    """

    learning_rate: float = 0.05
    weight_decay: float = 5e-4
    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ValueError(f"client.momentum must be in [0, 1), got {self.momentum}")
        if self.nesterov and not self.momentum:
            raise ValueError(f"client.nesterov needs client.momentum > 0, got {self.momentum}")

    def init(self, params: Params) -> Params:
        """Return a client's state at the start of its round: zero momentum."""
        return tree.zeros_like(params) if self.momentum else {}

    def update(self, names: list[str], params: Params, grads: Params, state: Params, learning_rate: Tensor) -> None:
        """See `LocalOptimizer`."""
        values, slopes = [params[name] for name in names], [grads[name] for name in names]
        velocity = [state[name] for name in names] if self.momentum else []
        # The compiler fuses the plain operations, and does not know the fused kernel.
        step = self._step_by_step if torch.compiler.is_compiling() else self._step_at_once
        step(values, slopes, velocity, learning_rate)

    def _step_by_step(self, values: list[Tensor], slopes: list[Tensor], velocity: list[Tensor], rate: Tensor) -> None:
        for i, (value, slope) in enumerate(zip(values, slopes, strict=True)):
            step = slope + self.weight_decay * value
            if self.momentum:
                moved = velocity[i].mul_(self.momentum).add_(step)
                step = step + self.momentum * moved if self.nesterov else moved
            value.sub_(rate * step)

    def _step_at_once(self, values: list[Tensor], slopes: list[Tensor], velocity: list[Tensor], rate: Tensor) -> None:
        torch._fused_sgd_(
            values,
            aligned(slopes, values),
            velocity,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=rate,
            dampening=0.0,
            nesterov=self.nesterov,
            maximize=False,
            is_first_step=False,
        )
