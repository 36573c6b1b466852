"""IMTL-G: an update with the same projection onto every gradient.

    a ~ G^+ sqrt(diag G),    sum a = 1

Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021; for dependent gradients by the pseudo-inverse, as Quinton and Rey
(2024, arXiv 2406.16232). Weights may be negative, so a head that gets them may ascend. They are 0 where they sum to 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing.contract import Balancer, State
from mtl.balancing.eigen import apply_pseudo_inverse
from mtl.balancing.gramian import mean_square, norms, restrict, rounding


@dataclass(frozen=True)
class IMTLG(Balancer):
    needs = "gramian"
    heads = False

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        assert gramian is not None
        square = restrict(gramian, active)
        square = square / mean_square(square, active)
        raw = apply_pseudo_inverse(square, norms(square), rounding(gramian))
        total = raw.sum(-1, keepdim=True)
        none = total.abs() <= 1e-12 * raw.abs().sum(-1, keepdim=True)
        return torch.where(none, 0, raw / torch.where(none, 1, total)).to(losses.dtype), state
