"""Projection onto the dual cone of the gradients, the updates that make no task worse.

    project(u) = argmin_v  v^T G v  subject to  v >= u        J^T project(u) is the point of {d : J d >= 0} nearest to J^T u

Quinton and Rey, "Jacobian Descent for Multi-Objective Optimization", 2024, arXiv 2406.16232, proposition 1. torchjd solves it
with 1e-4 of the identity added to the scaled Gramian, so that its updates may conflict slightly; here `tolerance` is added, the rounding
of the type that the weights are applied in.
"""

import torch
from torch import Tensor

from mtl.balancing.complementarity import solve_complementarity
from mtl.balancing.gramian import cosines, restrict


def project_to_dual_cone(weights: Tensor, gramian: Tensor, active: Tensor, tolerance: float) -> Tensor:
    """Project weight vectors onto the dual cone of the gradients, [..., R, T].

    Solved for unit gradients and offsets about 1, so that neither the tasks' scales nor their ratios matter.

    Args:
        weights: float64 [..., R, T], R weight vectors over the tasks of each Gramian.
        gramian: [..., T, T], inner products of the tasks' gradients.
        active: bool [..., T], the tasks with a known label.
        tolerance: added to the diagonal of the Gramian of unit gradients.
    """
    cosine, norm = cosines(restrict(gramian, active))
    cosine = cosine * (1 + tolerance * torch.eye(norm.shape[-1], dtype=norm.dtype, device=norm.device))
    norm = norm[..., None, :]
    offset = (weights * norm) @ cosine
    unit = offset.abs().amax(-1, keepdim=True)
    unit = torch.where(unit > 0, unit, 1)
    matrix = cosine[..., None, :, :].expand(*offset.shape, -1)
    added, _ = solve_complementarity(matrix, offset / unit, offset < 0)
    return weights + torch.where(norm > 0, added * unit / norm, 0)
