"""Small convolutional trunks.

Each is built from the shape of an image, (channels, height, width), and has the number of its features as `width`.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mtl.models.group_norm import GroupNorm

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

ImageShape = tuple[int, int, int]


@dataclass(frozen=True)
class Published:
    """Weights of torchvision that fit a trunk.

    Attributes:
        weights: torchvision's enumeration of them.
        dropped: the parts of torchvision's network that the trunk does without.
    """

    weights: "type[WeightsEnum]"
    dropped: tuple[str, ...]


class Trunk(nn.Module):
    """A shared feature extractor: images [B, c, H, W] to features [B, h].

    Args:
        features: the layers.
        width: h, the number of features.
        published: weights that others trained and that fit the trunk.

    Attributes:
        passed_over: how many layers at the beginning are not called, because the inputs are their outputs already (see `transfer`).
    """

    def __init__(self, features: nn.Module, width: int, published: Published | None = None) -> None:
        super().__init__()
        self.features = features
        self.width = width
        self.published = published
        self.passed_over = 0

    def forward(self, images: Tensor) -> Tensor:
        """[B, c, H, W] -> [B, h]."""
        if not self.passed_over:
            features: Tensor = self.features(images)
            return features
        layers = [layer for _, layer in self.chain()]
        # Features without places are stored as images of one pixel.
        flat = any(isinstance(layer, nn.Flatten) for layer in layers[: self.passed_over])
        values = images.flatten(1) if flat else images
        for layer in layers[self.passed_over :]:
            values = layer(values)
        return values

    def chain(self) -> list[tuple[str, nn.Module]]:
        """The layers one after the other, with their paths: what plain Sequentials hold, and nothing inside any other layer."""
        return _chain("features", self.features)

    @property
    def stages(self) -> tuple[nn.Sequential, ...]:
        """`features` in pieces, one after the other, for architectures that work between them; none where it is no chain.

        A stage begins at each layer of the chain that has a matrix or filters, or at the Flatten before it. Each gives [B, c, H, W] or
        [B, h].
        """
        if not isinstance(self.features, nn.Sequential):
            return ()
        layers = list(self.features)
        starts = [place for place, layer in enumerate(layers) if any(parameter.ndim > 1 for parameter in layer.parameters())]
        starts = [place - (place > 0 and isinstance(layers[place - 1], nn.Flatten)) for place in starts]
        return tuple(nn.Sequential(*layers[start:end]) for start, end in itertools.pairwise((0, *starts[1:], len(layers))))


def _chain(path: str, layer: nn.Module) -> list[tuple[str, nn.Module]]:
    # A subclass of Sequential is a block of a network, and may do more than call its layers in order.
    if type(layer) is not nn.Sequential:
        return [(path, layer)]
    return [pair for name, child in layer.named_children() for pair in _chain(f"{path}.{name}", child)]


class FlattenPlaces(nn.Flatten):
    """[B, c, H, W] to [B, H * W * c], the channels of a place next to each other.

    Where the images are channels-last this copies nothing, and the gradient comes back channels-last: max pooling would otherwise
    convert everything twice.
    """

    def forward(self, images: Tensor) -> Tensor:
        """[B, c, H, W] -> [B, H * W * c]."""
        return images.permute(0, 2, 3, 1).flatten(1)


def flat(image_shape: ImageShape) -> Trunk:
    """No network: the pixels are the features; with linear heads this is logistic regression."""
    return Trunk(nn.Sequential(nn.Flatten()), math.prod(image_shape))


def classic_cnn(
    image_shape: ImageShape,
    *,
    channels: Sequence[int] = (32, 64),
    width: int = 128,
    conv_dropout: float = 0.25,
    dropout: float = 0.5,
) -> Trunk:
    """The CNN of the classic CIFAR-10 tutorial: two convolutions, max pooling, one linear layer, dropout.

    With ten linear heads on 3x32x32 images it has 1,626,442 parameters, as in pfl-research's benchmark. Xavier initialisation.

    Args:
        image_shape: (channels, height, width) of an image.
        channels: channels of each 3x3 convolution.
        width: features.
        conv_dropout: probability of dropout after the convolutions.
        dropout: probability of dropout of the features.
    """
    _check(channels, width)
    layers: list[nn.Module] = []
    for before, after in zip((image_shape[0], *channels), channels, strict=False):
        layers += [nn.Conv2d(before, after, 3), nn.ReLU(inplace=True)]
    layers += [nn.MaxPool2d(2), nn.Dropout(conv_dropout), FlattenPlaces()]
    layers += [nn.Linear(_flat_width(layers, image_shape), width), nn.ReLU(inplace=True), nn.Dropout(dropout)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    return Trunk(nn.Sequential(*layers), width)


def lenet(image_shape: ImageShape, *, channels: Sequence[int] = (6, 16), widths: Sequence[int] = (120, 84)) -> Trunk:
    """LeNet-5 as federated papers use it on CIFAR-10 (LeCun et al. 1998).

    Two 5x5 convolutions with max pooling, two fully connected layers. 61,156 parameters on 3x32x32 images, 62,006 with ten linear
    heads, as in NIID-Bench (Li et al., ICDE 2022).

    Args:
        image_shape: (channels, height, width) of an image.
        channels: channels of each convolution.
        widths: outputs of each fully connected layer; the last is the number of features.
    """
    _check(channels, min(widths))
    layers: list[nn.Module] = []
    for before, after in zip((image_shape[0], *channels), channels, strict=False):
        layers += [nn.Conv2d(before, after, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    layers.append(FlattenPlaces())
    for before, after in zip((_flat_width(layers, image_shape), *widths), widths, strict=False):
        layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
    return Trunk(nn.Sequential(*layers), widths[-1])


def small_cnn(image_shape: ImageShape, *, channels: Sequence[int] = (32, 64, 128), width: int = 128, groups: int = 8) -> Trunk:
    """A small CNN for aligned faces: convolutions of stride 2 with GroupNorm, then a linear embedding.

    GroupNorm (Wu & He 2018) needs no batch statistics, so clients of few images train it safely. The embedding of all places is
    linear, so its directions can serve cosine heads.

    Args:
        image_shape: (channels, height, width) of an image.
        channels: channels of each 3x3 convolution.
        width: features.
        groups: groups of GroupNorm.
    """
    _check(channels, width, groups)
    layers: list[nn.Module] = []
    for before, after in zip((image_shape[0], *channels), channels, strict=False):
        layers += [
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
            GroupNorm(groups, after),
            nn.ReLU(inplace=True),
        ]
    layers.append(nn.Flatten())
    return Trunk(nn.Sequential(*layers, nn.Linear(_flat_width(layers, image_shape), width)), width)


def separable_cnn(
    image_shape: ImageShape,
    *,
    channels: Sequence[int] = (32, 64, 128, 128),
    width: int = 128,
    groups: int = 8,
    multiplier: float = 1.0,
) -> Trunk:
    """`small_cnn` with depthwise-separable convolutions: ten times fewer multiplications.

    Args:
        image_shape: (channels, height, width) of an image.
        channels: channels of each convolution.
        width: features.
        groups: groups of GroupNorm.
        multiplier: factor of all channels but the features' (Howard et al. 2017), rounded to whole groups.
    """
    _check(channels, width, groups)
    check_multiplier(multiplier)
    channels = [max(round(number * multiplier / groups), 1) * groups for number in channels]
    first, *rest = channels
    layers: list[nn.Module] = [
        nn.Conv2d(image_shape[0], first, 3, stride=2, padding=1, bias=False),
        GroupNorm(groups, first),
        nn.ReLU(inplace=True),
    ]
    for i, (before, after) in enumerate(zip(channels, rest, strict=False)):
        layers.append(DepthwiseSeparable(before, after, stride=1 if i == 0 else 2, groups=groups))
    layers.append(nn.Flatten())
    return Trunk(nn.Sequential(*layers, nn.Linear(_flat_width(layers, image_shape), width)), width)


class DepthwiseSeparable(nn.Sequential):
    """A 3x3 convolution of each channel, then a 1x1 convolution across channels (MobileNet, Howard et al. 2017), with GroupNorm."""

    def __init__(self, before: int, after: int, *, stride: int = 1, groups: int = 8) -> None:
        super().__init__(
            nn.Conv2d(before, before, 3, stride=stride, padding=1, groups=before, bias=False),
            GroupNorm(groups, before),
            nn.ReLU(inplace=True),
            nn.Conv2d(before, after, 1, bias=False),
            GroupNorm(groups, after),
            nn.ReLU(inplace=True),
        )


def _check(channels: Sequence[int], width: int, groups: int = 1) -> None:
    if not channels or any(number < 1 or number % groups for number in channels):
        raise ValueError(f"trunk.channels must be numbers divisible by trunk.groups={groups}, at least one, got {list(channels)}")
    if width < 1:
        raise ValueError(f"trunk.width must be >= 1, got {width}")


def check_multiplier(multiplier: float) -> None:
    """Raise ValueError unless the factor of the channels is a finite number above zero."""
    if not 0 < multiplier < math.inf:
        raise ValueError(f"trunk.multiplier must be > 0, got {multiplier}")


def _flat_width(layers: list[nn.Module], image_shape: ImageShape) -> int:
    """The number of features that `layers` give; raises ValueError for images too small for them."""
    try:
        with torch.no_grad():
            return int(nn.Sequential(*layers)(torch.zeros(1, *image_shape)).flatten(1).shape[1])
    except RuntimeError as error:
        raise ValueError(f"images of {image_shape[1]}x{image_shape[2]} are too small for this trunk: {error}") from error
