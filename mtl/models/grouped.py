"""A trunk for each group of subtasks: which tasks should be learned together (Standley et al., ICML 2020).

Groups are given; `mtl.balancing.grouping` finds them from the cosines of the subtasks' gradients. Shared: all trunks. Of a subtask: its
head.
"""

import math

from torch import Tensor, nn

from mtl.models.architecture import Groups, Parts, group_of_each, shapes_of
from mtl.models.branches import Branches
from mtl.models.task_layers import HeadsOfGroups


def grouped(parts: Parts, *, groups: Groups = 4) -> tuple[nn.Module, nn.Module]:
    """A trunk for each group of subtasks, without sharing between groups (Standley et al. 2020).

    groups: a number of groups of neighbouring subtasks, or lists of the names or numbers (from 0) of the subtasks in each; 1 is hard
    sharing.
    """
    group = group_of_each(groups, parts.tasks)
    trunks = [parts.make_trunk() for _ in range(int(group.max()) + 1)]
    held = len(trunks) * sum(math.prod(shape) for shape in shapes_of(trunks[0].stages or trunks[:1], parts.image_shape))
    return TrunksOfGroups(Branches(trunks), held), HeadsOfGroups(group, parts.make_heads(trunks[0].width))


class TrunksOfGroups(nn.Module):
    def __init__(self, trunks: Branches, held: int) -> None:
        super().__init__()
        self.trunks, self.activation_numel = trunks, held

    def forward(self, images: Tensor) -> Tensor:
        """images: [B, c, H, W]; returns [B, groups, h]."""
        features: Tensor = self.trunks(images, same=True)
        return features.movedim(0, 1)
