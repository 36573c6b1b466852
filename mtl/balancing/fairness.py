"""Weights a > 0 at which every task's gain is a given power of its weight: (G a)_i = (a_i / (T p_i))^(-1 / alpha).

They are the minimum of the convex function  1/2 a^T G a - sum_i u_i(a_i)  with u_i' the right-hand side. Damped Newton steps on unit
gradients, taken in log a so that a stays positive, the best of a few step lengths each; quadratic at the end, so that a start
from the last step's weights takes a few iterations and any start the same end.
"""

import torch
from torch import Tensor

from mtl.balancing.active import count
from mtl.balancing.gramian import cosines, restrict

ITERATIONS = 60
TOLERANCE = 1e-7
NEAR = 0.1
LONGEST = 2.0


def solve_fairness(
    gramian: Tensor, preference: Tensor, *, alpha: float, start: Tensor, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Solve G a = (a / (T p))^(-1 / alpha) for the weights a > 0.

    Args:
        gramian: [..., T, T].
        preference: p [..., T], summing to 1, 0 for inactive tasks.
        alpha: how fair, > 0.
        start: [..., T], the second value of an earlier solution, or zeros.
        tolerance: added to the diagonal of the Gramian of unit gradients.

    Returns:
        the weights, float64 [..., T], and the logarithm of the weights of unit gradients. Tasks without a gradient gain nothing from
        any update: their weight is 0. Where opposite gradients leave nothing to gain, weights grow to what the tolerance allows.
    """
    active = preference > 0
    cosine, norm = cosines(restrict(gramian, active))
    there = norm > 0
    cosine = cosine + torch.diag_embed(torch.where(there, tolerance, 1).to(norm.dtype))
    power = 1 / alpha
    # For unit gradients b = a |g| the problem reads (C b)_i = k_i b_i^(-power), k_i = (T p_i)^power |g_i|^(power - 1) up to a common unit.
    log_norm = torch.where(there, norm, 1).log()
    unit = log_norm.sum(-1, keepdim=True) / there.sum(-1, keepdim=True).clamp_min(1)
    gain = (torch.where(there, log_norm - unit, 0) * (power - 1)).exp() * (count(active) * preference) ** power
    log_b = torch.where(there, start.double(), 0)
    lengths = torch.tensor([1.0, 0.5, 0.25, 0.1, 0.03], dtype=norm.dtype, device=norm.device)
    last = torch.full_like(unit, torch.inf)
    done = torch.zeros_like(unit, dtype=torch.bool)
    for _ in range(ITERATIONS):
        b = log_b.exp()
        pull = gain * b**-power
        slope = (cosine @ b[..., None]).squeeze(-1) - pull
        factor, _ = torch.linalg.cholesky_ex(cosine + torch.diag_embed(power * pull / b))
        step = -torch.cholesky_solve(slope[..., None], factor).squeeze(-1) / b
        step = torch.where(there, step, 0).clamp(-LONGEST, LONGEST)
        tried = log_b[..., None, :] + lengths[:, None] * step[..., None, :]
        best = objective(tried, cosine, gain[..., None, :] * there[..., None, :], power).argmin(-1)
        # Close to the minimum the objective no longer distinguishes lengths: there a whole step is right, and its error squared. A
        # step that is not then much shorter than the last is rounding, as near opposite gradients.
        largest = step.abs().amax(-1, keepdim=True)
        best = torch.where(largest < NEAR, 0, best[..., None])
        log_b = torch.where(done, log_b, tried.take_along_dim(best[..., None], -2).squeeze(-2))
        done = done | (largest < TOLERANCE) | ((last < NEAR) & (largest > last / 2))
        if done.all():
            break
        last = largest
    scale = torch.where(there, log_b - log_norm + unit * (power - 1) / (power + 1), 0)
    return torch.where(there, scale.exp(), 0), log_b


def objective(log_b: Tensor, cosine: Tensor, gain: Tensor, power: float) -> Tensor:
    """What the weights minimise, [..., S], at S candidates log b, [..., S, T]."""
    b = log_b.exp()
    utility = log_b if power == 1 else b ** (1 - power) / (1 - power)
    return ((b @ cosine) * b / 2 - gain * utility).sum(-1)
