"""Functions of a Gramian by its eigenvectors. Eigenvalues within the rounding of the Gramian's type count as zero."""

import torch
from torch import Tensor


def significant(values: Tensor, tolerance: float) -> Tensor:
    """values: eigenvalues [..., T]; tolerance: relative to the largest; returns which are not zero."""
    return values > tolerance * values.amax(-1, keepdim=True).clamp_min(0)


def apply_pseudo_inverse(square: Tensor, vector: Tensor, tolerance: float) -> Tensor:
    """square: symmetric [..., T, T]; vector: [..., T]; returns square^+ vector."""
    values, vectors = torch.linalg.eigh(square)
    inverse = torch.where(significant(values, tolerance), 1 / values, 0)
    result: Tensor = vectors @ (inverse[..., None] * (vectors.mT @ vector[..., None]))
    return result.squeeze(-1)
