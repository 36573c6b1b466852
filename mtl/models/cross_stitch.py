"""Cross-stitch networks (Misra, Shrivastava, Gupta & Hebert, CVPR 2016): a trunk for each group of subtasks, which after each stage
are mixed place by place,

    x~_a = sum_b alpha_ab x_b        alpha_aa = same, alpha_ab = (1 - same) / (groups - 1) at the start

with one alpha for each stage. The rows of alpha sum to one at the start, so that activations keep their size. Departures: the paper has
a trunk for each of its two tasks, here a group of subtasks has one, since as many trunks as subtasks are absurd for forty binary ones;
the trunks start at random, not trained; alpha learns at the rate of the trunk, in the paper at 100 to 1,000 times it. `same=.9` is among
the paper's starts; LibMTL and MTAN's authors start all alphas at one, so that activations grow with the number of trunks.

Shared: all trunks and all alphas, since each trunk has a part in the features of every group. Of a subtask: its head.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl.models.architecture import Groups, Parts, group_of_each, shapes_of
from mtl.models.branches import Branches
from mtl.models.task_layers import HeadsOfGroups


def cross_stitch(parts: Parts, *, groups: Groups = 4, same: float = 0.9) -> tuple[nn.Module, nn.Module]:
    """A trunk for each group of subtasks, mixed after every stage (Misra et al. 2016).

    groups: a number of groups of neighbouring subtasks, or lists of the names or numbers (from 0) of the subtasks in each; same: what a
    trunk at first keeps of its own features, in [0, 1].
    """
    if not 0 <= same <= 1:
        raise ValueError(f"architecture.same must be in [0, 1], got {same}")
    group = group_of_each(groups, parts.tasks)
    trunks = [parts.staged_trunk("cross_stitch") for _ in range(int(group.max()) + 1)]
    held = len(trunks) * sum(math.prod(shape) for shape in shapes_of(trunks[0].stages, parts.image_shape))
    stages = [Branches(stages) for stages in zip(*(trunk.stages for trunk in trunks), strict=True)]
    return CrossStitch(stages, same, held), HeadsOfGroups(group, parts.make_heads(trunks[0].width))


class CrossStitch(nn.Module):
    """alpha: [stages, groups, groups]."""

    def __init__(self, stages: Sequence[Branches], same: float, held: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.activation_numel = held
        groups = stages[0].number
        start = torch.full((groups, groups), (1 - same) / max(groups - 1, 1)).fill_diagonal_(same if groups > 1 else 1.0)
        self.alpha = nn.Parameter(start.repeat(len(stages), 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """images: [B, c, H, W]; returns [B, groups, h]."""
        features = images
        for number, stage in enumerate(self.stages):
            branches: Tensor = stage(features, same=number == 0)
            features = torch.tensordot(self.alpha[number], branches, 1)
        return features.movedim(0, 1)
