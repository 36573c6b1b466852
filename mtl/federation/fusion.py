"""Fusion of the subtask scores at the server into one matrix, whose argmax is the decision: which person is this?

`argmax` takes the decision scores as they are: right where they are comparable, as cosines are. `platt` first lets every client
calibrate each of its subtasks on its own training images (Platt 1999, with his smoothed targets) and send two numbers a subtask.
Where several clients answer a subtask with models of their own, the fused score is their mean.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

Rule = Literal["argmax", "platt"]


def check_rule(rule: str) -> None:
    if rule not in get_args(Rule):
        raise ValueError(f"fusion must be one of {', '.join(get_args(Rule))}, got {rule}")


def fit_platt(scores: Tensor, targets: Tensor, mask: Tensor, *, iterations: int = 30) -> tuple[Tensor, Tensor]:
    """Scale a and offset b [T] such that sigmoid(a s + b) is the probability of a yes, by Newton steps on the logistic loss.

    scores: [N, T]; targets, mask: bool [N, T]. A subtask with labels of one kind only keeps a = 1, b = 0. Raises ValueError where a
    score that counts is not finite.
    """
    s = torch.where(mask, scores, 0).double()
    if not bool(s.isfinite().all()):
        wrong = (~s.isfinite()).any(0).nonzero().flatten().tolist()
        raise ValueError(f"fusion=platt needs finite scores to calibrate, got others in subtask {', '.join(map(str, wrong))}")
    weight = mask.double()
    positives, negatives = (targets & mask).sum(0), (~targets & mask).sum(0)
    goal = torch.where(targets, (positives + 1) / (positives + 2), 1 / (negatives + 2)).double()
    # Work on standardised scores, so that one damping serves every subtask.
    total = weight.sum(0).clamp_min(1)
    mean = s.sum(0) / total
    deviation = ((weight * (s - mean) ** 2).sum(0) / total).sqrt()
    # Equal scores deviate by their rounding alone: what counts as a deviation goes with their size.
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
    both = (positives > 0) & (negatives > 0)
    scale = torch.where(both, a / deviation, 1.0)
    offset = torch.where(both, b - a * mean / deviation, 0.0)
    return scale.to(scores.dtype), offset.to(scores.dtype)
