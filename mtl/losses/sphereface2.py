"""SphereFace2 (Wen et al., ICLR 2022): binary one-vs-rest face recognition on cosines.

    L+ = w (lam / r)       softplus(-r (g(z) - m) - b)
    L- = w ((1 - lam) / r) softplus( r (g(z) + m) + b)         g(z) = 2 ((z + 1) / 2)^t - 1

with z the cosine of a head, margin m, scale r, one learned bias b, and w the overall weight. b starts where the summed loss of a
random embedding is at rest; its start degenerates for two classes, so it is computed for the number of subtasks of the whole
federation even where a client trains few.

Defaults lam = .7 and t = 3 are those of the authors' code (OpenSphere), whose others are r = 40, m = .4 and w = 50, and for a
ResNet-100 on MS1M lam = .8, r = 64, m = .5, t = 3, w = 50; here r = 30, m = .6 and w = 1. Both sum over the classes and average over
the images, so that their w alone makes steps 50 times as long: their learning rates belong to `weight=50`. Departure: here the gradient
flows through g, whereas their code passes it through the cosine alone.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.losses.pairs import PairLoss, TaskCounts


class SphereFace2(PairLoss):
    """SphereFace2 on cosines: binary one-vs-rest face recognition with a margin (Wen et al. 2022).

    Args:
        num_tasks: subtasks of the whole federation.
        balance: lam, the share of the positive term.
        scale: r, factor of the cosines.
        margin: m, between positives and negatives.
        sharpness: t, exponent that spreads the cosines.
        weight: w, factor of the whole loss.
    """

    def __init__(
        self,
        num_tasks: int,
        *,
        balance: float = 0.7,
        scale: float = 30.0,
        margin: float = 0.6,
        sharpness: float = 3.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 < balance < 1:
            raise ValueError(f"loss.balance must be in (0, 1), got {balance}")
        for name, value in (("scale", scale), ("sharpness", sharpness), ("weight", weight)):
            if not value > 0:
                raise ValueError(f"loss.{name} must be > 0, got {value}")
        self.balance, self.scale, self.margin, self.sharpness, self.weight = balance, scale, margin, sharpness, weight
        self.bias = nn.Parameter(torch.tensor(initial_bias(num_tasks, balance, scale, margin, sharpness)))

    def terms(self, logits: Tensor, counts: TaskCounts) -> tuple[Tensor, Tensor]:
        """See `PairLoss`."""
        spread = self._spread(logits)
        positive = self.balance / self.scale * F.softplus(-self.scale * (spread - self.margin) - self.bias)
        negative = (1 - self.balance) / self.scale * F.softplus(self.scale * (spread + self.margin) + self.bias)
        return self.weight * positive, self.weight * negative

    def decision(self, logits: Tensor) -> Tensor:
        """See `PairLoss`."""
        return self.scale * self._spread(logits) + self.bias

    def _spread(self, cosines: Tensor) -> Tensor:
        spread: Tensor = 2 * ((cosines + 1) / 2).clamp_min(0) ** self.sharpness - 1
        return spread


def initial_bias(num_tasks: int, balance: float, scale: float, margin: float, sharpness: float) -> float:
    """The start of b in the paper's appendix, for `num_tasks` classes, at cosine zero."""
    if num_tasks < 2:
        raise ValueError(f"loss=sphereface2 needs at least 2 subtasks, got {num_tasks}")
    z = balance / ((1 - balance) * (num_tasks - 1))
    a_positive = scale * (2 * 0.5**sharpness - 1 - margin)
    a_negative = scale * (2 * 0.5**sharpness - 1 + margin)
    root = math.sqrt((1 - z) ** 2 + 4 * z * math.exp(a_positive - a_negative))
    # 1 - z + root cancels for z > 1; the conjugate form does not.
    last = math.log(1 - z + root) if z <= 1 else math.log(4 * z) + a_positive - a_negative - math.log(z - 1 + root)
    return float(math.log(2 * z) - a_negative - last)
