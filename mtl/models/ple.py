"""Progressive layered extraction (Tang et al., RecSys 2020): levels of `cgc`, one on the other.

A level takes a stream of each group of subtasks and a shared stream; in each stream its experts and a gate make the next one,

    x_g  <-  sum over the group's own experts on x_g and the shared ones on s, weighed by the group's gate on x_g
    s    <-  sum over the experts of all groups and the shared ones, weighed by a gate on s

and the last level is that of the subtasks, without a gate for the shared stream. All streams start as the features of the trunk.
Departures: those of `mmoe`; with `groups` the lower levels are of groups, in the paper of each task. Two levels, as the paper draws
it; LibMTL has one for each of the five stages of a ResNet, and no gate for the shared stream.

Shared: the trunk and everything of the lower levels, experts and gates of the groups among them, since through s they have a part in
every subtask; and the shared experts of the last. Of a subtask: its own experts and gate of the last level, and its head.
"""

import torch
from torch import Tensor, nn

from mtl.models.architecture import Groups, Parts, at_least_one, group_of_each
from mtl.models.cgc import CGCHeads, mix
from mtl.models.cnn import Trunk
from mtl.models.mmoe import SoftmaxGates
from mtl.models.task_layers import Experts


def ple(
    parts: Parts,
    *,
    num_levels: int = 2,
    num_shared: int = 2,
    num_own: int = 1,
    width: int = 128,
    groups: Groups | None = None,
) -> tuple[nn.Module, nn.Module]:
    """PLE: levels of CGC, one on the other (Tang et al. 2020).

    Args:
        parts: how the trunk and the heads are made, and the subtasks.
        num_levels: levels, 1 is CGC.
        num_shared: shared experts of a level.
        num_own: experts of each group or subtask in a level.
        width: features of an expert.
        groups: a number of groups of neighbouring subtasks, or lists of the names or numbers (from 0) of the subtasks in each, for
            the lower levels; null makes each subtask a group.
    """
    at_least_one(num_levels=num_levels, num_shared=num_shared, num_own=num_own, width=width)
    trunk, num_tasks = parts.make_trunk(), len(parts.tasks)
    group = group_of_each(num_tasks if groups is None else groups, parts.tasks)
    num_groups = int(group.max()) + 1
    widths = [trunk.width, *[width] * num_levels]
    levels = [Level(inputs, num_groups, num_shared, num_own, width) for inputs in widths[: num_levels - 1]]
    shared = Experts(widths[-2], 1, num_shared, width)
    heads = CGCHeads(widths[-2], num_tasks, num_shared, num_own, width, parts.make_heads(width))
    return Levels(trunk, levels, group, shared), heads


class Levels(nn.Module):
    """The levels below the last, and the shared experts of the last."""

    group: Tensor

    def __init__(self, trunk: Trunk, levels: list["Level"], group: Tensor, shared: Experts) -> None:
        super().__init__()
        self.base = trunk
        self.levels = nn.ModuleList(levels)
        self.shared = shared
        self.register_buffer("group", group, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The stream of each subtask and the outputs of the last level's shared experts.

        Args:
            images: [B, c, H, W].

        Returns:
            streams [B, T, width], or the features [B, h] where there is only one level, and the experts' [B, E, width].
        """
        stream: Tensor = self.base(images)
        groups = stream
        for level in self.levels:
            groups, stream = level(groups, stream)
        return groups if groups.ndim == 2 else groups[:, self.group], self.shared(stream)[:, 0]


class Level(nn.Module):
    """One level: experts and gates of the groups and of the shared stream."""

    def __init__(self, inputs: int, num_groups: int, num_shared: int, num_own: int, width: int) -> None:
        super().__init__()
        self.own = Experts(inputs, num_groups, num_own, width)
        self.shared = Experts(inputs, 1, num_shared, width)
        self.gates = SoftmaxGates(inputs, num_groups, num_own + num_shared)
        self.shared_gate = SoftmaxGates(inputs, 1, num_groups * num_own + num_shared)

    def forward(self, groups: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        """The next streams of the groups, [B, groups, width], and the next shared one, [B, width].

        Args:
            groups: streams [B, groups, h], or [B, h] for all.
            stream: the shared one, [B, h].
        """
        own, shared = self.own(groups), self.shared(stream)[:, 0]
        everything = torch.cat([own.flatten(1, 2), shared], 1)
        return mix(self.gates(groups), own, shared), torch.bmm(self.shared_gate(stream), everything)[:, 0]
