"""Faces as points: a head on the trunk's feature map that says for each cell whether a face is centred there, and its box.

X. Zhou, D. Wang and P. Kraehenbuehl, "Objects as Points", 2019 (CenterNet). In place of their deconvolutions, a small pyramid of
depthwise-separable convolutions (T.-Y. Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017) lets a cell see faces much
larger than what the trunk sees from it: two levels down, each of half the resolution, and up again by addition.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.models.architecture import shapes_of
from mtl.models.cnn import DepthwiseSeparable, Trunk
from mtl.models.group_norm import GroupNorm

STRIDES = (2, 4, 8, 16)
PRIOR = 0.1  # the probability in every cell at the start (Lin et al., "Focal Loss for Dense Object Detection", 2017)


def map_layers(trunk: nn.Module) -> nn.Sequential:
    """The layers of a trunk before it pools or flattens places.

    Raises:
        ValueError: where there are none.
    """
    layers = [layer for _, layer in trunk.chain()] if isinstance(trunk, Trunk) else []
    places = [place for place, layer in enumerate(layers) if isinstance(layer, nn.Flatten | nn.AdaptiveAvgPool2d)]
    if not places or not places[0]:
        raise ValueError("mode=detection needs a trunk of convolutions and a Flatten after them, as small_cnn; this one has none")
    return nn.Sequential(*layers[: places[0]])


def map_stride(layers: nn.Sequential, channels: int) -> tuple[int, int]:
    """Channels of the feature map that `layers` compute, and pixels to a cell of it.

    Args:
        layers: see `map_layers`.
        channels: of the pictures.

    Raises:
        ValueError: where the stride is none of `STRIDES`.
    """
    (features,) = shapes_of([layers], (channels, 64, 64))
    stride = round(64 / features[2])
    if stride not in STRIDES:
        raise ValueError(f"the trunk's feature map must have a stride of {', '.join(map(str, STRIDES))}, got {stride}")
    return features[0], stride


class CentreHead(nn.Module):
    """CenterNet's head: says of each cell of the feature map whether a face is centred there, and its box.

    Feature maps [B, c, h, w] to [B, 5, h, w]: logit of the heat, offset of the centre in its cell (x, y), log of width and height in
    cells.

    Args:
        channels: c.
        width: channels inside the head.
        groups: groups of GroupNorm.
    """

    def __init__(self, channels: int, *, width: int = 64, groups: int = 8) -> None:
        super().__init__()
        if width < 1 or groups < 1 or width % groups:
            raise ValueError(f"detector.width must be a number divisible by detector.groups={groups}, got {width}")
        self.lateral = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), GroupNorm(groups, width), nn.ReLU(inplace=True))
        self.down = nn.ModuleList(DepthwiseSeparable(width, width, stride=2, groups=groups) for _ in range(2))
        self.deep = DepthwiseSeparable(width, width, groups=groups)
        self.merge = nn.ModuleList(DepthwiseSeparable(width, width, groups=groups) for _ in range(2))
        self.output = nn.Conv2d(width, 5, 1)
        nn.init.normal_(self.output.weight, std=0.01)
        self.output.bias = nn.Parameter(torch.tensor([-math.log(1 / PRIOR - 1), 0, 0, 0, 0]))

    def forward(self, features: Tensor) -> Tensor:
        """[B, c, h, w] -> [B, 5, h, w]."""
        levels = [self.lateral(features)]
        for down in self.down:
            levels.append(down(levels[-1]))
        up = self.deep(levels.pop())
        for merge in self.merge:
            finer = levels.pop()
            up = merge(finer + F.interpolate(up, size=finer.shape[-2:], mode="nearest"))
        maps: Tensor = self.output(up)
        return maps


def decode(maps: Tensor, stride: int, *, top: int = 100) -> tuple[Tensor, Tensor]:
    """The highest peaks, cells no lower than their eight neighbours: boxes [B, K, 4] in pixels and scores [B, K], falling.

    Args:
        maps: [B, 5, h, w].
        stride: pixels to a cell.
        top: K at most; fewer where there are fewer cells. What is no peak has score 0.
    """
    heat = maps[:, :1].float().sigmoid()
    peaks = torch.where(F.max_pool2d(heat, 3, stride=1, padding=1) == heat, heat, 0).flatten(1)
    scores, cell = peaks.topk(min(top, peaks.shape[1]), dim=1)
    values = maps[:, 1:].float().flatten(2).gather(2, cell[:, None].expand(-1, 4, -1)).transpose(1, 2)
    corner = torch.stack([cell % maps.shape[3], cell // maps.shape[3]], 2)
    centre, half = (corner + values[..., :2]) * stride, values[..., 2:].clamp(max=8.0).exp() * (stride / 2)
    return torch.cat([centre - half, centre + half], 2), scores
