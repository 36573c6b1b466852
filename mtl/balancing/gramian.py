"""The Gramian of the tasks' gradients, G = J J^T, and what it says about their conflicts.

With fused linear heads, logits z = h W^T + b, the gradient of task t with respect to the features is e_t w_t^T, e = dL/dz, so
that the Gramian at the level of the representation (Sener and Koltun, NeurIPS 2018, section 3.3) needs no backward pass:

    G = (e^T e) * (W W^T)        elementwise
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.balancing.active import only_active


@dataclass(frozen=True)
class Conflict:
    """mean_cosine: [...], over all pairs of tasks; conflicting: [...], the share of pairs whose gradients point against each other."""

    mean_cosine: Tensor
    conflicting: Tensor


def gramian_of(gradients: Tensor) -> Tensor:
    """gradients: [..., T, P]; returns [..., T, T]."""
    return gradients @ gradients.mT


def gramian_of_heads(errors: Tensor, weight: Tensor) -> Tensor:
    """errors: dL/dz [..., B, T], every task's loss by its own logits; weight: [..., T, h]; returns [..., T, T].

    The Gramian of the gradients with respect to the features [B, h].
    """
    return (errors.mT @ errors) * (weight @ weight.mT)


def conflict(gramian: Tensor, active: Tensor) -> Conflict:
    """gramian: [..., T, T]; active: bool [..., T]. Tasks without a gradient are in no pair; without pairs both are 0."""
    cosine, norm = cosines(restrict(gramian, active))
    there = norm > 0
    pair = there[..., :, None] & there[..., None, :] & ~torch.eye(norm.shape[-1], dtype=torch.bool, device=norm.device)
    pairs = pair.sum((-2, -1)).clamp_min(1)
    return Conflict(
        (only_active(cosine, pair).sum((-2, -1)) / pairs).to(gramian.dtype),
        (((cosine < 0) & pair).sum((-2, -1)) / pairs).to(gramian.dtype),
    )


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


def mean_square(gramian: Tensor, active: Tensor) -> Tensor:
    """The mean squared length of the active gradients, [..., 1, 1]; 1 where all are zero. The unit of scale-free solvers."""
    mean = gramian.diagonal(dim1=-2, dim2=-1).sum(-1) / active.sum(-1).clamp_min(1)
    return torch.where(mean > 0, mean, 1)[..., None, None]


def rounding(gramian: Tensor) -> float:
    """How far a Gramian in this type may be from positive semidefinite, relative to the squared lengths."""
    return gramian.shape[-1] * torch.finfo(gramian.dtype).eps
