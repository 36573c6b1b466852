"""Functions of a Gramian by its eigenvectors.

Eigenvalues within rounding count as zero; those of a matrix that is not finite are NaN.
"""

import torch
from torch import Tensor


def eigen(square: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [..., T] and eigenvectors [..., T, T] of a symmetric matrix [..., T, T].

    LAPACK ends the program for a matrix that is not finite; here such a matrix gives NaN, which the health check of the round reports.
    """
    finite = square.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    values, vectors = torch.linalg.eigh(torch.where(finite, square, 0))
    return torch.where(finite.squeeze(-1), values, torch.nan), vectors


def significant(values: Tensor, tolerance: float) -> Tensor:
    """Which eigenvalues [..., T] are not zero, relative to the largest; NaN is not zero."""
    return ~(values <= tolerance * values.amax(-1, keepdim=True).clamp_min(0))


def apply_pseudo_inverse(square: Tensor, vector: Tensor, tolerance: float) -> Tensor:
    """The pseudo-inverse of a symmetric matrix [..., T, T] times a vector [..., T].

    Args:
        square: the matrix.
        vector: the vector.
        tolerance: eigenvalues below it count as zero, relative to the largest.
    """
    values, vectors = eigen(square)
    inverse = torch.where(significant(values, tolerance), 1 / values, 0)
    result: Tensor = vectors @ (inverse[..., None] * (vectors.mT @ vector[..., None]))
    return result.squeeze(-1)
