"""AdamW as a client's optimiser (Loshchilov & Hutter, ICLR 2019).

    p <- p - rate weight_decay p
    m <- beta1 m + (1 - beta1) g                     v <- beta2 v + (1 - beta2) g^2
    p <- p - rate m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)

Each parameter counts its own steps t: one that begins to train later starts its averages then.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.base.types import Params
from mtl.federation.algorithms.local_sgd import LocalSGD

BETA2, EPS = 0.999, 1e-8
FIRST, SECOND, STEPS = ".first_moment", ".second_moment", ".steps"


@dataclass(frozen=True)
class LocalAdamW(LocalSGD):
    """AdamW with `momentum` as beta1; beta2 is .999 and eps 1e-8."""

    def init(self, params: Params) -> Params:
        """The two moments of each parameter, and its steps."""
        moments = {f"{name}{moment}": torch.zeros_like(value) for name, value in params.items() for moment in (FIRST, SECOND)}
        return moments | {f"{name}{STEPS}": torch.zeros((), device=value.device) for name, value in params.items()}

    @torch.no_grad()
    def step(self, params: Params, grads: Params, state: Params, learning_rate: Tensor) -> tuple[Params, Params]:
        """See `ClientAlgorithm`."""
        for scale, names in self.groups(params).items():
            steps = [state[name + STEPS] for name in names]
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                [params[name] for name in names],
                [grads[name] for name in names],
                [state[name + FIRST] for name in names],
                [state[name + SECOND] for name in names],
                [],
                steps,
                lr=learning_rate * scale,
                beta1=self.momentum,
                beta2=BETA2,
                weight_decay=self.weight_decay,
                eps=EPS,
                amsgrad=False,
                maximize=False,
            )
        return params, state
