"""Multi-task attention network (Liu, Johns & Davison, CVPR 2019): one trunk, and at each of its stages an attention mask of each subtask,

    a_tj = sigmoid( h_tj( relu( g_tj( [p_j ; pool(x_t(j-1))] ) ) ) )        x_tj = a_tj * p_j

p_j is what stage j of the trunk makes of the image, and g, h are 1x1 convolutions, which squeeze the channels by `squeeze` between them.
The head of subtask t reads the last x_t. Departures: there is no BatchNorm in the attention; the shared 3x3 convolution between x_t(j-1)
and g is folded into g, so that all of the attention belongs to its subtask, and x is averaged, not max-pooled, to the size of the stage;
the mask looks at the end of a stage, where in the paper it looks at its middle. `squeeze=4` is that of the authors' ResNet (256 channels
to 64 and back); their SegNet and their wide ResNet do not squeeze (`squeeze=1`).

Shared: the trunk. Of a subtask: its attention and its head. With `groups`, for which forty subtasks on large maps are a reason, a group
has one attention, which is shared.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.models.architecture import Groups, Parts, Representation, at_least_one, group_of_each, shapes_of
from mtl.models.task_layers import HeadsOfGroups


def mtan(parts: Parts, *, groups: Groups | None = None, squeeze: int = 4) -> tuple[nn.Module, nn.Module]:
    """MTAN: one trunk, and an attention of each subtask at every stage (Liu et al. 2019).

    groups: a number of groups of neighbouring subtasks, or lists of the names or numbers (from 0) of the subtasks in each, which then
    share an attention; null gives each subtask its own. squeeze: factor by which the attention reduces the channels.
    """
    at_least_one(squeeze=squeeze)
    trunk = parts.staged_trunk("mtan")
    shapes = shapes_of(trunk.stages, parts.image_shape)
    if any(len(shape) not in (1, 3) for shape in shapes):
        told = ", ".join(str(["B", *shape]) for shape in shapes)
        raise ValueError(
            f"architecture=mtan needs stages that give [B, c, H, W] or [B, h], and trunk={parts.trunk_name} gives {told}"
        )
    group = None if groups is None else group_of_each(groups, parts.tasks)
    attention = Attention(shapes, len(parts.tasks) if group is None else int(group.max()) + 1, squeeze)
    heads, stages = parts.make_heads(trunk.width), Stages(trunk.stages)
    if group is None:
        return stages, AttendingHeads(attention, heads)
    return AttendingTrunk(stages, attention), HeadsOfGroups(group, heads)


class Stages(nn.Module):
    def __init__(self, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """images: [B, c, H, W]; returns what each stage makes of them."""
        features = [images]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return tuple(features[1:])


class Attention(nn.Module):
    """The attention of A subtasks or groups at every stage. shapes: what each stage makes of an image, [c, H, W] or [h]."""

    def __init__(self, shapes: Sequence[torch.Size], number: int, squeeze: int) -> None:
        super().__init__()
        before = [0, *(shape[0] for shape in shapes[:-1])]
        self.masks = nn.ModuleList(Mask(own, then, number, squeeze) for (own, *_), then in zip(shapes, before, strict=True))
        self.activation_numel = number * sum(math.prod(shape) for shape in shapes)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """stages: what each makes of the images, [B, c, H, W] or [B, h]; returns the last of them as each sees it, [B, A, h]."""
        attended: Tensor | None = None
        for mask, features in zip(self.masks, stages, strict=True):
            attended = mask(features, attended)
        assert attended is not None
        return attended.permute(2, 0, 1)


class Mask(nn.Module):
    """own, before: [A, squeezed, channels], g on the trunk's channels and on those of the stage before, none of them where there is none;
    out: [A, channels, squeezed], h.
    """

    def __init__(self, channels: int, before: int, number: int, squeeze: int) -> None:
        super().__init__()
        squeezed = max(channels // squeeze, 1)
        bound = math.sqrt(6 / (channels + before))
        self.own = nn.Parameter(torch.empty(number, squeezed, channels).uniform_(-bound, bound))
        self.before = nn.Parameter(torch.empty(number, squeezed, before).uniform_(-bound, bound)) if before else None
        self.bias = nn.Parameter(torch.zeros(number, squeezed))
        bound = math.sqrt(3 / squeezed)
        self.out = nn.Parameter(torch.empty(number, channels, squeezed).uniform_(-bound, bound))
        self.out_bias = nn.Parameter(torch.zeros(number, channels))

    def forward(self, features: Tensor, before: Tensor | None) -> Tensor:
        """features: [B, c, H, W] or [B, h]; before: what came out of the stage before; returns [A, c, B, H, W] or [A, h, B]."""
        maps = features.movedim(0, 1)
        flat = maps.flatten(1)
        hidden = (self.own.flatten(0, 1) @ flat).view(*self.bias.shape, -1) + self.bias[..., None]
        if before is not None:
            assert self.before is not None
            hidden = hidden + torch.bmm(self.before, resize(before, features.shape[2:]).flatten(2))
        mask = torch.sigmoid(torch.bmm(self.out, F.relu(hidden)) + self.out_bias[..., None])
        return (mask * flat).view(-1, *maps.shape)


def resize(maps: Tensor, size: torch.Size) -> Tensor:
    """maps: [A, c, B, H, W] or [A, h, B]; returns them averaged to [A, c, B, *size]."""
    if not size:
        return maps.flatten(3).mean(3) if maps.ndim > 3 else maps
    return F.adaptive_avg_pool2d(maps.flatten(0, 1), (size[0], size[1])).view(*maps.shape[:3], *size)


class AttendingHeads(nn.Module):
    """Each subtask's attention and head."""

    def __init__(self, attention: Attention, heads: nn.Module) -> None:
        super().__init__()
        self.attention, self.last, self.activation_numel = attention, heads, attention.activation_numel

    def forward(self, stages: Representation) -> Tensor:
        """stages: what each makes of the images; returns logits [B, T]."""
        assert isinstance(stages, tuple)
        logits: Tensor = self.last(self.attention(stages))
        return logits


class AttendingTrunk(nn.Module):
    """A trunk with the attention of groups."""

    def __init__(self, stages: Stages, attention: Attention) -> None:
        super().__init__()
        self.stages, self.attention, self.activation_numel = stages, attention, attention.activation_numel

    def forward(self, images: Tensor) -> Tensor:
        """images: [B, c, H, W]; returns [B, groups, h]."""
        features: Tensor = self.attention(self.stages(images))
        return features
