"""Multi-gate mixture of experts (Ma et al., KDD 2018): experts on the features h of the trunk, and a gate of each subtask over them,

    f_e(h) = relu(W_e h + b_e)        g_t(h) = softmax(G_t h + c_t)        z_t = head_t( sum_e g_t(h)_e f_e(h) )

Departures: the gates start at zero, so that every subtask begins with the mean of all experts, where the usual start of a layer is random;
experts and gates look at the trunk's features, in the paper at the raw input (in LibMTL, too, whose experts are whole encoders). Numbers
and widths of experts are chosen for each task set there; 4 of 128 have no source.

Shared: the trunk and the experts. Of a subtask: its gate and its head.
"""

import torch
from torch import Tensor, nn

from mtl.models.architecture import Parts, Representation, at_least_one
from mtl.models.cnn import Trunk
from mtl.models.task_layers import Experts, TaskLinear


def mmoe(parts: Parts, *, num_experts: int = 4, width: int = 128) -> tuple[nn.Module, nn.Module]:
    """MMoE: experts behind the trunk, and a gate of each subtask over them (Ma et al. 2018).

    num_experts: experts; width: features of an expert, and so of what the heads see.
    """
    at_least_one(num_experts=num_experts, width=width)
    trunk = parts.make_trunk()
    gates = SoftmaxGates(trunk.width, len(parts.tasks), num_experts)
    heads = GatedHeads(gates, parts.make_heads(width), held=len(parts.tasks) * width)
    return ExpertTrunk(trunk, Experts(trunk.width, 1, num_experts, width)), heads


class ExpertTrunk(nn.Module):
    def __init__(self, trunk: Trunk, experts: Experts) -> None:
        super().__init__()
        self.base, self.experts = trunk, experts

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images: [B, c, H, W]; returns the features [B, h] and what the experts make of them, [B, E, width]."""
        features: Tensor = self.base(images)
        return features, self.experts(features)[:, 0]


class SoftmaxGates(nn.Module):
    """The weights of the experts [B, T, E] from features [B, h] or [B, T, h]."""

    def __init__(self, inputs: int, num_tasks: int, num_experts: int) -> None:
        super().__init__()
        self.layer = TaskLinear(inputs, num_tasks, num_experts, gain=0.0)

    def forward(self, features: Tensor) -> Tensor:
        weights: Tensor = self.layer(features).softmax(-1)
        return weights


class GatedHeads(nn.Module):
    """Each subtask's head on its gate's mixture of the experts."""

    def __init__(self, gates: nn.Module, heads: nn.Module, *, held: int) -> None:
        super().__init__()
        self.gates, self.last, self.activation_numel = gates, heads, held

    def forward(self, representation: Representation) -> Tensor:
        """representation: the features [B, h] and the experts' [B, E, width]; returns logits [B, T]."""
        features, experts = representation
        logits: Tensor = self.last(torch.bmm(self.gates(features), experts))
        return logits
