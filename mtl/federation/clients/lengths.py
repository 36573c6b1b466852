"""Lengths of gradients and updates, for `balance.normalise=length`."""

import torch
from torch import Tensor

from mtl.base.types import Params
from mtl.federation.layout import is_head

LEAST = 0.1


def plain_part(update: Tensor, plain: Tensor, along: Tensor) -> Tensor:
    """Return the length of the plain sum's part along an update, at least LEAST of it.

    Args:
        update: length of the update.
        plain: length of the plain sum.
        along: dot product of the two.
    """
    product = update * plain
    cosine = torch.where(product == 0, 0, along / torch.where(product == 0, 1, product))
    return plain * cosine.clamp(LEAST, 1)


def lengths_of_tasks(gradients: Params, like: Tensor) -> Tensor:
    """Return the length of each task's gradient, float64 [..., T]; gradients as in `weigh_heads`."""
    square, num_axes = torch.zeros_like(like, dtype=torch.float64), like.dim() - 1
    for name, value in gradients.items():
        if is_head(name):
            square[..., : value.shape[num_axes]] += value.double().square().unsqueeze(-1).flatten(num_axes + 1).sum(-1)
        else:
            square[..., -1] += value.double().square().flatten(num_axes).sum(-1)
    return square.sqrt()


def dot(left: Params, right: Params, num_axes: int) -> Tensor:
    """Return the dot product over all parameters, float64 [..., 1]; `num_axes` is the number of leading axes."""
    parts = [
        (value.detach().double() * right[name].detach().double()).flatten(num_axes).sum(-1, keepdim=True)
        for name, value in left.items()
    ]
    return torch.stack(parts).sum(0) if parts else torch.zeros(1, dtype=torch.float64)
