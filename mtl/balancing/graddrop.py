"""GradDrop: every coordinate of the update takes one sign, drawn by how much of the gradients has it.

    p = (1 + sum_i g_i / sum_i |g_i|) / 2        d = sum_i (leak + (1 - leak) [g_i has the drawn sign]) g_i

positive with probability p; per coordinate. Chen et al., "Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign
Dropout", NeurIPS 2020, algorithm 1, lines 10 to 15. Departure: on the gradients as they are; the paper works on activations, with
their signs and the batch summed. The mask differs by coordinate, so there are no task weights: heads get 1. Sums, like a plain
sum.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing.active import only_active
from mtl.balancing.contract import Balancer, State


@dataclass(frozen=True)
class GradDrop(Balancer):
    """GradDrop: every coordinate of the update takes one sign, drawn by the gradients' signs (Chen et al. 2020).

    Args:
        leak: share of a gradient of the other sign that stays.
    """

    leak: float = 0.0
    needs = "gradients"
    heads = False

    def __post_init__(self) -> None:
        if not 0 <= self.leak <= 1:
            raise ValueError(f"balancer.leak must be in [0, 1], got {self.leak}")

    def draw_shape(self, num_tasks: int, num_coordinates: int) -> tuple[int, ...]:
        """See `Balancer`."""
        return (num_coordinates,)

    def combine(
        self, state: State, losses: Tensor, gradients: Tensor, active: Tensor, draw: Tensor
    ) -> tuple[Tensor, Tensor, State]:
        """See `Balancer`; `draw` is [..., P]."""
        gradients = only_active(gradients, active[..., None])
        total, size = gradients.sum(-2), gradients.abs().sum(-2)
        purity = (1 + torch.where(size > 0, total / size, 0)) / 2
        positive = (draw < purity)[..., None, :]
        same_sign = torch.where(positive, gradients.clamp_min(0), gradients.clamp_max(0))
        direction = torch.lerp(same_sign.sum(-2), total, self.leak)
        return direction, active.to(losses.dtype), state
