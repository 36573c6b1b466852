"""The residual networks of SphereFace (Liu et al., CVPR 2017, Table 2) as trunks for aligned faces."""

from collections import OrderedDict

from torch import Tensor, nn

from mtl.models.cnn import ImageShape, Trunk, check_multiplier
from mtl.models.group_norm import GroupNorm

CHANNELS = (64, 128, 256, 512)
UNITS = {4: (0, 0, 0, 0), 10: (0, 1, 2, 0), 20: (1, 2, 4, 1), 36: (2, 4, 8, 2), 64: (3, 8, 16, 3)}  # residual units of each stage


class ResidualUnit(nn.Module):
    """A residual unit x + f(x), f two 3x3 convolutions with GroupNorm and PReLU; the last norm, and so f, starts at zero."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_layer(channels, channels, groups), *_layer(channels, channels, groups))
        norm = self.body[4]
        assert isinstance(norm, nn.GroupNorm)
        nn.init.zeros_(norm.weight)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, c, H, W] to the same shape."""
        changed: Tensor = maps + self.body(maps)
        return changed


def sphereface_cnn(
    image_shape: ImageShape, *, depth: int = 10, multiplier: float = 1.0, width: int = 128, groups: int = 8
) -> Trunk:
    """SphereFace's residual CNN with 4 to 64 layers, then a linear embedding (Liu et al. 2017).

    Four stages, each a 3x3 convolution of stride 2 and then residual units. Each PReLU follows a GroupNorm, which the paper does
    not have: small batches and large learning rates are safe with it.

    Args:
        image_shape: (channels, height, width) of an image.
        depth: 4, 10, 20, 36 or 64 convolutions.
        multiplier: factor of all channels but the embedding's, rounded to whole groups.
        width: features.
        groups: groups of GroupNorm.
    """
    if depth not in UNITS:
        raise ValueError(f"trunk.depth must be one of {', '.join(map(str, UNITS))}, got {depth}")
    if width < 1 or groups < 1:
        raise ValueError(f"trunk.width and trunk.groups must be >= 1, got {width} and {groups}")
    check_multiplier(multiplier)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before, height, across = image_shape
    for stage, (full, units) in enumerate(zip(CHANNELS, UNITS[depth], strict=True)):
        channels = max(round(full * multiplier / groups), 1) * groups
        layers[f"stage{stage}"] = nn.Sequential(
            *_layer(before, channels, groups, stride=2), *(ResidualUnit(channels, groups) for _ in range(units))
        )
        before, height, across = channels, (height + 1) // 2, (across + 1) // 2
    layers["flatten"] = nn.Flatten()
    layers["embedding"] = nn.Linear(before * height * across, width)
    return Trunk(nn.Sequential(layers), width)


def _layer(before: int, after: int, groups: int, *, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", a=0.25)
    return [convolution, GroupNorm(groups, after), nn.PReLU(after)]
