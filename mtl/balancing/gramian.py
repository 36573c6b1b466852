"""The Gramian of the tasks' gradients, G = J J^T, and what it says about their conflicts.

Gramians are accumulated in float64: in float32 the Gramian of opposed gradients of 100,000 coordinates is not positive semidefinite,
and solvers answer with anything.

Heads that are fused in one layer give the Gramian of the gradients by the features without a backward pass (at this level: Sener and
Koltun, NeurIPS 2018, section 3.3). With e = dL/dz, one column a task:

    linear   z_t = w_t . f + b_t      G = (e^T e) * (W W^T)                                 * elementwise
    cosine   z_t = w_t . f / |f|      G = (a^T a) * (W W^T) - (a * z)^T (a * z)             a = e / |f|, |w_t| = 1

A cosine does not change with the length of the features, so its gradient has no part along them: the second term takes it out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing.active import only_active

CHUNK = 2**16  # coordinates that are converted to float64 at once
CONFLICT = 1e-5  # cosines closer to zero than this are rounding of gradients in float32, not conflicts


@dataclass(frozen=True)
class Conflict:
    """How far the gradients of the tasks conflict.

    Attributes:
        mean_cosine: [...], over all pairs of tasks.
        conflicting: [...], the share of pairs whose gradients point against each other.
    """

    mean_cosine: Tensor
    conflicting: Tensor


@dataclass(frozen=True)
class HeadGeometry:
    """How the logits of all tasks follow from the features of a batch.

    Attributes:
        directions: [..., T, h], the heads' weights, of length 1 where logits are cosines.
        features: [..., B, h].
        cosine: whether logits are cosines or linear in the features.
    """

    directions: Tensor
    features: Tensor
    cosine: bool

    def gramian(self, errors: Tensor) -> Tensor:
        """The Gramian of the tasks' gradients by the features, float64 [..., T, T].

        Args:
            errors: [..., B, T], derivative of every task's loss by its logits.
        """
        errors, directions = errors.double(), self.directions.double()
        if not self.cosine:
            return (errors.mT @ errors) * (directions @ directions.mT)
        unit, length = self._unit(self.features.double())
        errors = errors / length
        radial = errors * (unit @ directions.mT)
        return (errors.mT @ errors) * (directions @ directions.mT) - radial.mT @ radial

    def pull_back(self, errors: Tensor) -> Tensor:
        """The gradient by the features, [..., B, h], from that by the logits, [..., B, T]."""
        pulled = errors @ self.directions
        if not self.cosine:
            return pulled
        unit, length = self._unit(self.features)
        return (pulled - (pulled * unit).sum(-1, keepdim=True) * unit) / length

    def rows(self, errors: Tensor) -> Tensor:
        """Every task's gradient by the features, [..., T, B h], from that by its logits, [..., B, T]."""
        rows = errors.mT[..., None] * self.directions[..., None, :]
        if self.cosine:
            unit, length = self._unit(self.features)
            unit, length = unit[..., None, :, :], length[..., None, :, :]
            rows = (rows - (rows * unit).sum(-1, keepdim=True) * unit) / length
        return rows.flatten(-2)

    @staticmethod
    def _unit(features: Tensor) -> tuple[Tensor, Tensor]:
        length = features.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return features / length, length


def gramian_of(gradients: Tensor) -> Tensor:
    """The Gramian, float64 [..., T, T], of gradients [..., T, P]."""
    gramian = gradients.new_zeros(*gradients.shape[:-1], gradients.shape[-2], dtype=torch.float64)
    for part in gradients.split(CHUNK, -1):
        wide = part.double()
        gramian += wide @ wide.mT
    return gramian


def conflict(gramian: Tensor, active: Tensor) -> Conflict:
    """Mean cosine of all pairs of tasks and the share of pairs that conflict; 0 without pairs.

    Args:
        gramian: [..., T, T].
        active: bool [..., T], the tasks with a known label; one without a gradient is in no pair.
    """
    cosine, against, pair = compare(gramian, active).unbind(-3)
    pairs = pair.sum((-2, -1)).clamp_min(1)
    return Conflict(cosine.sum((-2, -1)) / pairs, against.sum((-2, -1)) / pairs)


def compare(gramian: Tensor, active: Tensor) -> Tensor:
    """Compare the gradients of each pair of tasks, float64 [..., 3, T, T].

    The three are their cosine, whether it is below -CONFLICT, and whether both have a gradient.
    """
    cosine, norm = cosines(restrict(gramian, active))
    there = norm > 0
    pair = there[..., :, None] & there[..., None, :] & ~torch.eye(norm.shape[-1], dtype=torch.bool, device=norm.device)
    return torch.stack([only_active(cosine, pair), ((cosine < -CONFLICT) & pair).double(), pair.double()], -3)


def restrict(gramian: Tensor, active: Tensor) -> Tensor:
    """The Gramian with the rows and columns of inactive tasks zero, in float64: solvers work there, whatever the losses' type."""
    return only_active(gramian, active[..., :, None] & active[..., None, :]).double()


def cosines(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines [..., T, T], zero in the rows and columns of tasks without a gradient, and norms [..., T]."""
    norm = norms(gramian)
    inverse = torch.where(norm > 0, 1 / norm, 0)
    return gramian * inverse[..., :, None] * inverse[..., None, :], norm


def norms(gramian: Tensor) -> Tensor:
    """The gradients' lengths, [..., T]."""
    return gramian.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()


def length_of(weights: Tensor, gramian: Tensor) -> Tensor:
    """The length of the weighted sum of the gradients, |sum_t weights_t g_t|, [..., 1].

    Args:
        weights: [..., T].
        gramian: [..., T, T].
    """
    square = (weights * (gramian @ weights[..., None]).squeeze(-1)).sum(-1, keepdim=True)
    return square.clamp_min(0).sqrt()


def mean_square(gramian: Tensor, active: Tensor) -> Tensor:
    """The mean squared length of the active gradients, [..., 1, 1]; 1 where all are zero. The unit of scale-free solvers."""
    mean = gramian.diagonal(dim1=-2, dim2=-1).sum(-1) / active.sum(-1).clamp_min(1)
    return torch.where(mean > 0, mean, 1)[..., None, None]


def rounding(losses: Tensor) -> float:
    """Relative rounding error of a weighted sum of T gradients, in the type of `losses` [..., T].

    Solvers add it to the diagonal of a Gramian of unit gradients, or count smaller eigenvalues as zero: finer differences between
    weights would be lost when they are applied.
    """
    return losses.shape[-1] * torch.finfo(losses.dtype).eps
