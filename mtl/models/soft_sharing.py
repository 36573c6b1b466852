"""Soft sharing learned by a tensor factorisation (Yang & Hospedales, "Deep multi-task representation learning: a tensor factorisation
approach", ICLR 2017, the LAF variant): a trunk for each group of subtasks, whose every layer is a mixture of the same few bases,

    W_a = sum_k S_ak L_k        W: the layer's parameters in trunk a; S: [groups, bases], of the layer's own

so that each layer learns how much the groups share: equal rows of S are hard sharing, as many bases as groups and S = 1 are trunks on
their own. Departures: bases start as trunks at random and S near one basis for each group (the paper factorises trained networks); a
layer's bias and norm are mixed by the same S as its filters. The rows of S sum to one at the start, so that norms start at theirs.

Shared: the bases and S. Of a subtask: its head.
"""

import math

import torch
from torch import Tensor, nn

from mtl.base.types import Params
from mtl.models.architecture import Groups, Parts, at_least_one, group_of_each, shapes_of
from mtl.models.branches import Branches, run_branches
from mtl.models.task_layers import HeadsOfGroups

OWN = 0.9  # share of the basis that a group starts near


def soft_sharing(parts: Parts, *, groups: Groups = 4, num_bases: int = 2) -> tuple[nn.Module, nn.Module]:
    """A trunk for each group of subtasks, every layer a learned mixture of shared bases (Yang & Hospedales 2017).

    groups: a number of groups of neighbouring subtasks, or lists of the names or numbers (from 0) of the subtasks in each; num_bases:
    trunks that are mixed.
    """
    at_least_one(num_bases=num_bases)
    group = group_of_each(groups, parts.tasks)
    bases = [parts.make_trunk() for _ in range(num_bases)]
    number = int(group.max()) + 1
    held = number * sum(math.prod(shape) for shape in shapes_of(bases[0].stages or bases[:1], parts.image_shape))
    return SoftSharing(Branches(bases), number, held), HeadsOfGroups(group, parts.make_heads(bases[0].width))


class SoftSharing(nn.Module):
    """mixing: for each layer of the trunk [groups, bases], named as the layer with _ for the dots."""

    def __init__(self, bases: Branches, groups: int, held: int) -> None:
        super().__init__()
        self.bases, self.groups, self.activation_numel = bases, groups, held
        nearest = torch.arange(groups)[:, None] % bases.number == torch.arange(bases.number)
        others = max(bases.number - 1, 1)
        start = torch.where(nearest, OWN if bases.number > 1 else 1.0, (1 - OWN) / others)
        layers = dict.fromkeys(_layer_of(name) for name in bases.shapes)
        self.mixing = nn.ParameterDict({layer: nn.Parameter(start.clone()) for layer in layers})

    def forward(self, images: Tensor) -> Tensor:
        """images: [B, c, H, W]; returns [B, groups, h]."""
        return run_branches(self.bases.module, self.groups, self.params_of_groups(), images, same=True).movedim(0, 1)

    def params_of_groups(self) -> Params:
        """The parameters of the trunks by name, with the groups as their first axis."""
        bases = self.bases.params_of_branches()
        return {name: torch.tensordot(self.mixing[_layer_of(name)], value, 1) for name, value in bases.items()}


def _layer_of(name: str) -> str:
    return name.rpartition(".")[0].replace(".", "_")
