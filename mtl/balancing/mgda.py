"""MGDA: the shortest vector in the convex hull of the gradients, a direction in which every task descends equally or more.

    min_w |J^T w|^2  subject to  w >= 0, sum w = 1

Sener and Koltun, "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018 (after Desideri 2012). On the Gramian at the
level of the representation it is their MGDA-UB.

Solved exactly instead of by Frank-Wolfe: x = argmin_{x >= 0} |J^T x|^2 + (sum x - 1)^2 has w = x / sum x. Weights sum to 1; the
authors' sum T times less than a plain sum's, so the same learning rate takes smaller steps. Departure: a task without a gradient gets no
weight instead of all of it, which would stop the others.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mtl.balancing.active import only_active
from mtl.balancing.complementarity import solve_complementarity
from mtl.balancing.contract import Balancer, State
from mtl.balancing.gramian import mean_square, norms, restrict, rounding

Normalisation = Literal["none", "l2", "loss", "loss+"]


@dataclass(frozen=True)
class MGDA(Balancer):
    """MGDA: the shortest vector in the convex hull of the gradients, which makes no task worse (Sener & Koltun 2018).

    Args:
        normalisation: what the gradients are divided by before solving: nothing (none), their length (l2), their loss (loss) or both
            (loss+). The weights are then applied to the gradients as they are.
    """

    normalisation: Normalisation = "none"
    needs = "gramian"
    heads = True

    def __post_init__(self) -> None:
        if self.normalisation not in get_args(Normalisation):
            choices = ", ".join(get_args(Normalisation))
            raise ValueError(f"balancer.normalisation must be one of {choices}, got {self.normalisation}")

    def weigh(self, state: State, losses: Tensor, gramian: Tensor | None, active: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """See `Balancer`."""
        assert gramian is not None
        square = restrict(gramian, active)
        divisor = torch.ones_like(losses, dtype=torch.float64)
        if self.normalisation in ("l2", "loss+"):
            divisor = divisor * norms(square)
        if self.normalisation in ("loss", "loss+"):
            divisor = divisor * only_active(losses, active).abs()
        inverse = torch.where(divisor > 0, 1 / divisor, 1)
        square = square * inverse[..., :, None] * inverse[..., None, :]
        there = active & ~(norms(square) == 0)
        square = square / mean_square(square, there)
        square = square + torch.diag_embed(rounding(losses) * square.diagonal(dim1=-2, dim2=-1))
        weights, _ = shortest_in_hull(square, there.double(), there)
        return weights.to(losses.dtype), state


def shortest_in_hull(square: Tensor, one: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """The weights of the shortest vector in the convex hull of the gradients.

    Args:
        square: a Gramian of gradients about 1 long, float64 [..., T, T].
        one: 1 for the active tasks, 0 elsewhere, [..., T].
        free: bool [..., T], a guess of the tasks with weight.

    Returns:
        weights [..., T] that sum to 1 over the active tasks, and the tasks with weight.
    """
    x, free = solve_complementarity(square + one[..., :, None] * one[..., None, :], -one, free)
    return x / x.sum(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny), free
