"""Layers in which every subtask has its own parameters, computed as one product of matrices."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.models.architecture import Representation


class TaskLinear(nn.Module):
    """A linear layer for each of T subtasks: weight [T, outputs, inputs], bias [T, outputs].

    `gain` is that of the uniform initialisation of He et al. (2015), sqrt(2) before a ReLU.
    """

    def __init__(self, inputs: int, num_tasks: int, outputs: int, *, gain: float = 1.0) -> None:
        super().__init__()
        bound = gain * math.sqrt(3 / inputs)
        self.weight = nn.Parameter(torch.empty(num_tasks, outputs, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(num_tasks, outputs))

    def forward(self, features: Tensor) -> Tensor:
        """[B, inputs], the same for all subtasks, or [B, T, inputs] -> [B, T, outputs]."""
        if features.ndim == 2:
            everything = F.linear(features, self.weight.flatten(0, 1), self.bias.flatten())
            return everything.view(-1, *self.bias.shape)
        return torch.einsum("bti,toi->bto", features, self.weight) + self.bias


class Experts(nn.Module):
    """`number` experts relu(W x + b) for each of T subtasks, or streams."""

    def __init__(self, inputs: int, num_tasks: int, number: int, width: int) -> None:
        super().__init__()
        self.number = number
        self.layer = TaskLinear(inputs, num_tasks, number * width, gain=math.sqrt(2))

    def forward(self, features: Tensor) -> Tensor:
        """[B, inputs] or [B, T, inputs] -> [B, T, number, width]."""
        experts = F.relu(self.layer(features))
        return experts.view(*experts.shape[:2], self.number, -1)


class HeadsOfGroups(nn.Module):
    """Each subtask's head on the features of its group.

    Args:
        group: int64 [T], see `group_of_each`.
        heads: features to logits.
    """

    group: Tensor

    def __init__(self, group: Tensor, heads: nn.Module) -> None:
        super().__init__()
        self.register_buffer("group", group, persistent=False)
        self.last = heads

    def forward(self, features: Representation) -> Tensor:
        """[B, groups, h] -> logits [B, T]."""
        assert isinstance(features, Tensor)
        logits: Tensor = self.last(features[:, self.group])
        return logits
