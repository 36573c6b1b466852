"""DSelect-k (Hazimeh et al., NeurIPS 2021): a mixture of experts whose gates come to use at most k of the n = 2^m experts each.

    S(z) = 0 up to -gamma / 2, 1 from gamma / 2 on, -2 z^3 / gamma^3 + 3 z / (2 gamma) + 1/2 between        smooth step
    r(z)_e = prod_j S(z_j) where the j-th bit of e is 1, 1 - S(z_j) where it is 0                           selector, sums to 1
    g = sum_{i <= k} softmax(w)_i r(z_i)                                                                    gate

z_i and w are of the subtask alone, or linear in the features of the image (`per_image`). A selector whose z are beyond gamma / 2 picks
exactly one expert; its entropy, `entropy` times which is added to the subtask's loss of every image whose label is known, drives it
there. As in the authors' code gamma is 1, the entropy is of r + 1e-6, and z starts within gamma / 100 of 0, where every expert has nearly
the same weight.

Departures: n is a power of two, so that the term which keeps selectors from experts that are not there is not needed. Here `entropy` is
.01 for each image, averaged as the loss is; their gate has no such term unless it is given one, whose default is 1e-6 on the sum over the
batch (LibMTL takes 1e-6 on that sum always). w starts as z does, theirs within .05 of 0. Gates look at the image by default, at the
features of the trunk, where theirs are of the subtask alone unless they are given routing inputs. n and k have no defaults there; 4 and 2
are their example.

Shared: the trunk and the experts. Of a subtask: its gate and its head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.models.architecture import Parts, Representation, at_least_one
from mtl.models.mmoe import ExpertTrunk, GatedHeads
from mtl.models.task_layers import Experts

EPSILON = 1e-6


def dselect_k(
    parts: Parts,
    *,
    num_experts: int = 4,
    num_selected: int = 2,
    width: int = 128,
    gamma: float = 1.0,
    entropy: float = 0.01,
    per_image: bool = True,
) -> tuple[nn.Module, nn.Module]:
    """DSelect-k: experts of which each subtask comes to use at most k (Hazimeh et al. 2021).

    Args:
        parts: how the trunk and the heads are made, and the subtasks.
        num_experts: experts, a power of two.
        num_selected: k, experts that a subtask uses.
        width: features of an expert.
        gamma: width of the smooth step of a gate, > 0.
        entropy: weight of the gates' entropy in the loss.
        per_image: whether a gate looks at the image or is the same for all.
    """
    at_least_one(num_experts=num_experts, num_selected=num_selected, width=width)
    if num_experts < 2 or num_experts & (num_experts - 1):
        raise ValueError(f"architecture.num_experts must be a power of two, 2 or more, got {num_experts}")
    if num_selected > num_experts:
        raise ValueError(f"architecture.num_selected must be in [1, {num_experts}], got {num_selected}")
    if not gamma > 0:
        raise ValueError(f"architecture.gamma must be > 0, got {gamma}")
    if not entropy >= 0:
        raise ValueError(f"architecture.entropy must be >= 0, got {entropy}")
    trunk, num_tasks = parts.make_trunk(), len(parts.tasks)
    inputs = trunk.width if per_image else 0
    gates = DSelectGates(inputs, num_tasks, num_experts, num_selected, gamma)
    experts = Experts(trunk.width, 1, num_experts, width)
    heads = DSelectHeads(gates, parts.make_heads(width), entropy, activation_numel=num_tasks * width)
    return ExpertTrunk(trunk, experts), heads


def smooth_step(z: Tensor, gamma: float) -> Tensor:
    """The smooth step S(z), exactly 0 and 1 outside of gamma / 2."""
    place = (z / gamma + 0.5).clamp(0, 1)
    return place.square() * (3 - 2 * place)


class DSelectGates(nn.Module):
    """The weights of the experts [B, T, E] from features [B, h].

    Args:
        num_tasks: T.
        num_experts: E, a power of two, 2^m.
        num_selected: k.
        inputs: h, or 0 where the gates do not look at the image.
        gamma: width of the smooth step.

    Attributes:
        weight: [T, k (m + 1), h], of the k m bits z, then of the k weights w; None where the gates do not look at the image.
        bias: [T, k (m + 1)], of the same.
    """

    codes: Tensor

    def __init__(self, inputs: int, num_tasks: int, num_experts: int, num_selected: int, gamma: float) -> None:
        super().__init__()
        self.num_selected, self.gamma = num_selected, gamma
        bits = torch.arange((num_experts - 1).bit_length())
        self.register_buffer("codes", (torch.arange(num_experts)[:, None] >> bits) % 2 == 1, persistent=False)
        outputs, near = num_selected * (len(bits) + 1), gamma / 100
        self.weight = nn.Parameter(torch.empty(num_tasks, outputs, inputs).uniform_(-near, near)) if inputs else None
        self.bias = nn.Parameter(torch.empty(num_tasks, outputs).uniform_(-near, near))

    def forward(self, features: Tensor) -> Tensor:
        """[B, h] -> [B, T, E]."""
        selectors, weights = self.selectors(features)
        return (weights[..., None] * selectors).sum(-2).expand(features.shape[0], -1, -1)

    def selectors(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """What each selector gives the experts, [B, T, k, E], and its weight, [B, T, k].

        Args:
            features: [B, h]; in the results B is 1 where the gates do not look at the image.
        """
        numbers = self.bias[None]
        if self.weight is not None:
            numbers = F.linear(features, self.weight.flatten(0, 1), self.bias.flatten()).unflatten(1, self.bias.shape)
        bits, weights = numbers.split([self.num_selected * self.codes.shape[1], self.num_selected], dim=-1)
        steps = smooth_step(bits.unflatten(-1, (self.num_selected, 1, -1)), self.gamma)
        return torch.where(self.codes, steps, 1 - steps).prod(-1), weights.softmax(-1)


class DSelectHeads(GatedHeads):
    """Each subtask's head on its gate's mixture of the experts."""

    gates: DSelectGates

    def __init__(self, gates: DSelectGates, heads: nn.Module, entropy: float, *, activation_numel: int) -> None:
        super().__init__(gates, heads, activation_numel=activation_numel)
        self.entropy = entropy

    def penalty(self, representation: Representation) -> Tensor:
        """The entropy of the subtask's selectors, summed and times `entropy`, for each image; [B, T] or [1, T]."""
        selectors, _ = self.gates.selectors(representation[0])
        return -self.entropy * (selectors * (selectors + EPSILON).log()).sum((-2, -1))
