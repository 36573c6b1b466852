"""Customized gate control (Tang et al., "Progressive layered extraction", RecSys 2020): beside the shared experts each subtask has some
of its own, which no other subtask reaches, and its gate weighs both kinds,

    z_t = head_t( sum_e g_t(h)_e f_e(h) )        e: over the subtask's own experts and the shared ones

with experts and gates, and departures, as in `mmoe`. The paper tunes the numbers of experts; 2 shared and 1 own have no source.

Shared: the trunk and the shared experts. Of a subtask: its own experts, its gate and its head.
"""

import torch
from torch import Tensor, nn

from mtl.models.architecture import Parts, Representation, at_least_one
from mtl.models.mmoe import ExpertTrunk, SoftmaxGates
from mtl.models.task_layers import Experts


def cgc(parts: Parts, *, num_shared: int = 2, num_own: int = 1, width: int = 128) -> tuple[nn.Module, nn.Module]:
    """CGC: shared experts and experts of each subtask, weighed by its gate (Tang et al. 2020).

    num_shared: experts that all subtasks share; num_own: experts of each subtask; width: features of an expert.
    """
    at_least_one(num_shared=num_shared, num_own=num_own, width=width)
    trunk, num_tasks = parts.make_trunk(), len(parts.tasks)
    shared = Experts(trunk.width, 1, num_shared, width)
    heads = CGCHeads(trunk.width, num_tasks, num_shared, num_own, width, parts.make_heads(width))
    return ExpertTrunk(trunk, shared), heads


class CGCHeads(nn.Module):
    def __init__(self, inputs: int, num_tasks: int, num_shared: int, num_own: int, width: int, heads: nn.Module) -> None:
        super().__init__()
        self.experts = Experts(inputs, num_tasks, num_own, width)
        self.gates = SoftmaxGates(inputs, num_tasks, num_own + num_shared)
        self.last = heads
        self.activation_numel = num_tasks * num_own * width

    def forward(self, representation: Representation) -> Tensor:
        """representation: features [B, h] or [B, T, h], and what the shared experts say, [B, E, width]; returns logits [B, T]."""
        features, shared = representation
        logits: Tensor = self.last(mix(self.gates(features), self.experts(features), shared))
        return logits


def mix(gates: Tensor, own: Tensor, shared: Tensor) -> Tensor:
    """gates: [B, T, own + shared], the weights of the experts; own: [B, T, own, width]; shared: [B, shared, width];
    returns [B, T, width].
    """
    number = own.shape[2]
    return (gates[..., :number, None] * own).sum(2) + torch.bmm(gates[..., number:], shared)
