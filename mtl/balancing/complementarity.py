"""The linear complementarity problem behind the projections: x >= 0, y = M x + q >= 0, x_i y_i = 0, with M positive definite.

It is the optimality condition of  min_x  1/2 x^T M x + q^T x  subject to  x >= 0.

Block principal pivoting (Judice and Pires, Computers and Operations Research 1994; Kim and Park, SIAM J. Sci. Comput. 2011):
guess which x are free, solve for them with y = 0 there, and exchange every index with a wrong sign; where that stops to improve,
exchange only the last wrong one, which cannot cycle (Murty 1974). A handful of linear systems gives the exact solution, for a
whole batch at a time: a problem that is solved has no wrong sign, so it stays as it is.
"""

import torch
from torch import Tensor

FULL_EXCHANGES = 3
TOLERANCE = 1e-11


def solve_complementarity(matrix: Tensor, offset: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Solve a batch of linear complementarity problems.

    Args:
        matrix: float64 [..., T, T], symmetric, entries about 1.
        offset: [..., T], about 1.
        free: bool [..., T], the first guess.

    Returns:
        x [..., T] and the indices that are free in it. Rows of the matrix that are all zero with offset 0 give x = 0.
    """
    num = matrix.shape[-1]
    identity = torch.eye(num, dtype=matrix.dtype, device=matrix.device)
    steady = matrix + 1e-13 * identity
    best = torch.full_like(free[..., :1], num + 1, dtype=torch.long)
    left = torch.full_like(best, FULL_EXCHANGES)
    for _ in range(10 * num):
        factor, _ = torch.linalg.cholesky_ex(torch.where(free[..., :, None] & free[..., None, :], steady, identity))
        x = torch.cholesky_solve(torch.where(free, -offset, 0)[..., None], factor)
        y = (matrix @ x).squeeze(-1) + offset
        x = x.squeeze(-1)
        wrong = torch.where(free, x, y) < -TOLERANCE
        if not wrong.any():
            break
        number = wrong.sum(-1, keepdim=True)
        better = number < best
        left = torch.where(better, FULL_EXCHANGES, left - 1)
        best = torch.minimum(best, number)
        last = wrong & (wrong.cumsum(-1) == number)
        free = free ^ torch.where(left >= 0, wrong, last)
    return torch.where(free, x, 0).clamp_min(0), free
