"""Arithmetic on Params, the dictionaries of tensors that training passes around."""

import torch
from torch import Tensor

from mtl.base.types import Params


def subtract(left: Params, right: Params) -> Params:
    """Subtract `right` from `left`, over the names of `left`."""
    return {name: value - right[name] for name, value in left.items()}


def zeros_like(params: Params) -> Params:
    """Zeros of the names, shapes, types and devices of `params`."""
    return {name: torch.zeros_like(value) for name, value in params.items()}


def num_bytes(params: Params) -> int:
    """What the tensors take on the wire, uncompressed."""
    return sum(value.numel() * value.element_size() for value in params.values())


def rows(mask: Tensor, like: Tensor) -> Tensor:
    """A mask over the first axis, shaped to broadcast against `like`."""
    return mask.view(-1, *[1] * (like.dim() - 1))
