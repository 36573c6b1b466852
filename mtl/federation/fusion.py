"""Fusion of the subtask scores at the server into one matrix, whose argmax is the decision: which person is this?

`argmax` takes the decision scores as they are, which needs comparable scores such as cosines. With `platt`, every client first calibrates
each of its subtasks on its training images (Platt 1999, with his smoothed targets) and sends two numbers for each. Where several clients
score a subtask with their own models, the fused score is the mean of theirs.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

Rule = Literal["argmax", "platt"]


def check_rule(rule: str) -> None:
    """Raise ValueError where the fusion rule is unknown."""
    if rule not in get_args(Rule):
        raise ValueError(f"fusion must be one of {', '.join(get_args(Rule))}, got {rule}")


def fit_platt(scores: Tensor, targets: Tensor, mask: Tensor, *, iterations: int = 30) -> tuple[Tensor, Tensor]:
    """Return scale a and offset b, [T] each, such that sigmoid(a s + b) is the probability of a positive.

    Newton steps on the logistic loss. A subtask that has only positives or only negatives keeps a = 1, b = 0.

    Args:
        scores: [N, T], decision scores.
        targets: bool [N, T].
        mask: bool [N, T], the labels that are known.
        iterations: number of Newton steps.

    Raises:
        ValueError: the score of a known label is not finite.
    """
    s = torch.where(mask, scores, 0).double()
    if not bool(s.isfinite().all()):
        wrong = (~s.isfinite()).any(0).nonzero().flatten().tolist()
        raise ValueError(f"fusion=platt needs finite scores to calibrate, got others in subtask {', '.join(map(str, wrong))}")
    weight = mask.double()
    positives, negatives = (targets & mask).sum(0), (~targets & mask).sum(0)
    goal = torch.where(targets, (positives + 1) / (positives + 2), 1 / (negatives + 2)).double()
    # Standardised scores let one damping serve every subtask.
    total = weight.sum(0).clamp_min(1)
    mean = s.sum(0) / total
    deviation = ((weight * (s - mean) ** 2).sum(0) / total).sqrt()
    # Equal scores deviate by rounding, which grows with their size: smaller deviations count as none.
    deviation = torch.maximum(deviation, 1e-12 * s.abs().amax(0)).clamp_min(torch.finfo(torch.float64).tiny)
    z = (s - mean) / deviation
    a, b = torch.ones_like(mean), torch.zeros_like(mean)
    for _ in range(iterations):
        p = torch.sigmoid(a * z + b)
        residual, curvature = weight * (p - goal), weight * p * (1 - p)
        gradient_a, gradient_b = (residual * z).sum(0) + 1e-3 * a, residual.sum(0)
        aa, ab, bb = (curvature * z * z).sum(0) + 1e-3, (curvature * z).sum(0), curvature.sum(0) + 1e-3
        determinant = aa * bb - ab * ab
        a = a - ((bb * gradient_a - ab * gradient_b) / determinant).clamp(-2, 2)
        b = b - ((aa * gradient_b - ab * gradient_a) / determinant).clamp(-2, 2)
    calibrated = (positives > 0) & (negatives > 0)
    scale = torch.where(calibrated, a / deviation, 1.0)
    offset = torch.where(calibrated, b - a * mean / deviation, 0.0)
    return scale.to(scores.dtype), offset.to(scores.dtype)
