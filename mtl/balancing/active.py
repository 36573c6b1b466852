"""Arithmetic over the active tasks of a batch, as if the others did not exist."""

import torch
from torch import Tensor

SMALLEST = 1e-8  # added to losses that are divided by; a loss that is not above it is solved


def only_active(values: Tensor, active: Tensor) -> Tensor:
    """Zero where not active, even if the value there is not finite."""
    return torch.where(active, values, torch.zeros((), dtype=values.dtype, device=values.device))


def unsolved(losses: Tensor, active: Tensor) -> Tensor:
    """The active tasks with a loss above SMALLEST, bool [..., T], or one that is NaN.

    The others have no gradient, and dividing by their loss would give them all the weight.
    """
    return active & ~(losses <= SMALLEST)


def count(active: Tensor) -> Tensor:
    """The number of active tasks, [..., 1], at least 1."""
    return active.sum(-1, keepdim=True).clamp_min(1)


def mean(values: Tensor, active: Tensor) -> Tensor:
    """The mean over the active tasks, [..., 1]; 0 if there are none."""
    return only_active(values, active).sum(-1, keepdim=True) / count(active)


def softmax(logits: Tensor, active: Tensor) -> Tensor:
    """Softmax over the active tasks; 0 elsewhere."""
    top = torch.where(active, logits, -torch.inf).amax(-1, keepdim=True)
    raised = only_active((logits - top).exp(), active)
    return raised / raised.sum(-1, keepdim=True).clamp_min(1)


def share(values: Tensor, active: Tensor) -> Tensor:
    """Scale the values >= 0 of the active tasks to sum 1; equal shares where they are all 0."""
    masked = only_active(values, active)
    total = masked.sum(-1, keepdim=True)
    equal = active / count(active)
    return torch.where(total > 0, masked / torch.where(total > 0, total, 1), equal.to(values.dtype))
