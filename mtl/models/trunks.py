"""torchvision's networks as trunks, without their classifiers and for images of any size and number of channels.

Each is a chain of layers under torchvision's names that ends in the mean over all places of its last map (global average pooling), so
that no layer depends on the size of the images. `width=None` takes that mean as the features; a number adds a linear embedding of that
width, whose directions can serve cosine heads: the mean itself mostly follows a ReLU and has no negative numbers.

Where the images do not have three channels, the first convolution is made for theirs; `weights` says what happens to published ones.
Nearly all have BatchNorm: see `norm`.
"""

import bisect
import math
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from mtl.models.cnn import ImageShape, Published, Trunk, check_multiplier

LARGEST = 512  # height and width that every network here takes

VGG = {11: "A", 13: "B", 16: "D", 19: "E"}
RESNET = (18, 34, 50, 101, 152)
EFFICIENTNET = ("b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "v2_s", "v2_m", "v2_l")
# Table 5 of the paper: channels after the first convolution, of the three stages, and after the last convolution.
SHUFFLENET = {
    0.5: (24, 48, 96, 192, 1024),
    1.0: (24, 116, 232, 464, 1024),
    1.5: (24, 176, 352, 704, 1024),
    2.0: (24, 244, 488, 976, 2048),
}


def vgg(image_shape: ImageShape, *, depth: int = 11, batch_norm: bool = False, width: int | None = None) -> Trunk:
    """VGG with 512 features (Simonyan & Zisserman 2015).

    Initialised as torchvision does it (He et al. 2015).

    Args:
        image_shape: (channels, height, width) of an image.
        depth: 11, 13, 16 or 19, which counts its three linear layers: they are left out.
        batch_norm: the variant with BatchNorm.
        width: features of a linear layer behind the trunk, None takes the trunk's own features.
    """
    _one_of("depth", depth, VGG)
    # torchvision's own class would first draw 120 million numbers for the linear layers.
    vgg = _models().vgg
    features = vgg.make_layers(vgg.cfgs[VGG[depth]], batch_norm=batch_norm)
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    name = f"vgg{depth}_bn" if batch_norm else f"vgg{depth}"
    return _trunk({"features": features}, image_shape, width, _published(name, "classifier"))


def resnet(image_shape: ImageShape, *, depth: int = 18, small_images: bool = False, width: int | None = None) -> Trunk:
    """ResNet with 512 or 2048 features (He et al. 2016).

    Args:
        image_shape: (channels, height, width) of an image.
        depth: 18 or 34 (512 features), 50, 101 or 152 (2048), which counts the classifier.
        small_images: the first convolution is 3x3 with stride 1 and no pooling follows, as is usual on images of 32x32 (otherwise it
            is of stride 4 in all); published weights do not fit that.
        width: features of a linear layer behind the trunk, None takes the trunk's own features.
    """
    _one_of("depth", depth, RESNET)
    net = _models().get_model(f"resnet{depth}", num_classes=1)
    if small_images:
        net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = nn.Identity()
    return _trunk(_layers(net, "avgpool", "fc"), image_shape, width, _published(f"resnet{depth}", "fc"))


def inception_v3(image_shape: ImageShape, *, width: int | None = None) -> Trunk:
    """Inception v3 with 2048 features, for images of 75 x 75 and up (Szegedy et al. 2016).

    Without its auxiliary classifier. The published weights are made for pixels of mean .5 and deviation .5
    (`normalise.deviation=0.5`).

    Args:
        image_shape: (channels, height, width) of an image.
        width: features of a linear layer behind the trunk, None takes the trunk's own features.
    """
    net = _models().Inception3(num_classes=1, aux_logits=False, init_weights=True)
    published = _published("inception_v3", "fc", "AuxLogits")
    return _trunk(_layers(net, "avgpool", "dropout", "fc"), image_shape, width, published)


def mobilenet_v2(image_shape: ImageShape, *, multiplier: float = 1.0, width: int | None = None) -> Trunk:
    """MobileNet v2 with 1280 features (Sandler et al. 2018).

    Args:
        image_shape: (channels, height, width) of an image.
        multiplier: factor of the numbers of channels, and of features where it is above 1.
        width: features of a linear layer behind the trunk, None takes the trunk's own features.
    """
    check_multiplier(multiplier)
    net = _models().mobilenet_v2(width_mult=multiplier, num_classes=1)
    return _trunk(_layers(net, "classifier"), image_shape, width, _published("mobilenet_v2", "classifier"))


def mobilenet_v3(image_shape: ImageShape, *, size: str = "small", multiplier: float = 1.0, width: int | None = None) -> Trunk:
    """MobileNet v3 with 576 or 960 features (Howard et al. 2019).

    Args:
        image_shape: (channels, height, width) of an image.
        size: small (576 features) or large (960).
        multiplier: factor of the numbers of channels.
        width: features of a linear layer behind the trunk, None takes the trunk's own features.
    """
    _one_of("size", size, ("small", "large"))
    check_multiplier(multiplier)
    name = f"mobilenet_v3_{size}"
    net = _models().get_model(name, width_mult=multiplier, num_classes=1)
    return _trunk(_layers(net, "avgpool", "classifier"), image_shape, width, _published(name, "classifier"))


def shufflenet_v2(image_shape: ImageShape, *, multiplier: float = 1.0, width: int | None = None) -> Trunk:
    """ShuffleNet v2 with 1024 features, 2048 from multiplier 2 (Ma et al. 2018).

    Args:
        image_shape: (channels, height, width) of an image.
        multiplier: factor of the channels of its stages. The paper's own numbers at .5, 1, 1.5 and 2; elsewhere 116 times it in the
            first stage, to the next even number, doubled from stage to stage.
        width: features of a linear layer behind the trunk, None takes the trunk's own features.
    """
    check_multiplier(multiplier)
    stage = 2 * max(round(58 * multiplier), 1)
    channels = SHUFFLENET.get(multiplier, (24, stage, 2 * stage, 4 * stage, 2048 if multiplier > 2 else 1024))
    net = _models().ShuffleNetV2([4, 8, 4], list(channels), num_classes=1)
    published = _published(f"shufflenet_v2_x{multiplier:.1f}".replace(".", "_"), "fc") if multiplier in SHUFFLENET else None
    return _trunk(_layers(net, "fc"), image_shape, width, published)


def squeezenet(image_shape: ImageShape, *, version: str = "1_1", width: int | None = None) -> Trunk:
    """SqueezeNet with 512 features, without BatchNorm (Iandola et al. 2016).

    Args:
        image_shape: (channels, height, width) of an image.
        version: 1_0 or, with 2.4 times fewer multiplications, 1_1.
        width: features of a linear layer behind the trunk, None takes the trunk's own features.
    """
    _one_of("version", version, ("1_0", "1_1"))
    net = _models().SqueezeNet(version, num_classes=1)
    return _trunk(_layers(net, "classifier"), image_shape, width, _published(f"squeezenet{version}", "classifier"))


def efficientnet(
    image_shape: ImageShape, *, variant: str = "b0", stochastic_depth: float = 0.2, width: int | None = None
) -> Trunk:
    """EfficientNet with 1280 to 2560 features (Tan & Le 2019 and 2021).

    Args:
        image_shape: (channels, height, width) of an image.
        variant: b0 to b7 (1280 to 2560 features), v2_s, v2_m or v2_l (1280).
        stochastic_depth: the probability with which the last block is skipped for an image in training, less for those before it.
        width: features of a linear layer behind the trunk, None takes the trunk's own features.
    """
    _one_of("variant", variant, EFFICIENTNET)
    if not 0 <= stochastic_depth < 1:
        raise ValueError(f"trunk.stochastic_depth must be in [0, 1), got {stochastic_depth}")
    name = f"efficientnet_{variant}"
    net = _models().get_model(name, stochastic_depth_prob=stochastic_depth, num_classes=1)
    return _trunk(_layers(net, "avgpool", "classifier"), image_shape, width, _published(name, "classifier"))


def _models() -> Any:
    """Import torchvision.models where one of its networks is built: it takes longer to import than all of `mtl`."""
    from torchvision import models

    return models


def _layers(net: nn.Module, *dropped: str) -> dict[str, nn.Module]:
    """The layers of a network of torchvision in the order of use, which is that of its children in all networks here."""
    return {name: layer for name, layer in net.named_children() if name not in dropped}


def _trunk(layers: Mapping[str, nn.Module], image_shape: ImageShape, width: int | None, published: Published | None) -> Trunk:
    if width is not None and width < 1:
        raise ValueError(f"trunk.width must be null or >= 1, got {width}")
    chain = OrderedDict(layers)
    first = next(layer for layer in chain.values() for layer in layer.modules() if isinstance(layer, nn.Conv2d))
    if image_shape[0] != first.in_channels:
        with torch.no_grad():
            # Filters of other channels start like those of colours: torchvision draws them with one deviation for any number of them.
            repeats = math.ceil(image_shape[0] / first.in_channels)
            first.weight = nn.Parameter(first.weight.repeat(1, repeats, 1, 1)[:, : image_shape[0]].clone())
        first.in_channels = image_shape[0]
    chain["pool"] = nn.AdaptiveAvgPool2d(1)
    chain["flatten"] = nn.Flatten()
    features = nn.Sequential(chain)
    num_features = _num_features(features, image_shape)
    if num_features is None:
        channels, height, across = image_shape
        sizes = range(1, LARGEST + 1)
        least = sizes[
            bisect.bisect_left(sizes, True, key=lambda size: _num_features(features, (channels, size, size)) is not None)
        ]
        raise ValueError(f"images of {height}x{across} are too small for this trunk, which takes those of {least}x{least} and up")
    if width is not None:
        features.add_module("embedding", nn.Linear(num_features, width))
    return Trunk(features, width or num_features, published)


def _num_features(features: nn.Module, image_shape: ImageShape) -> int | None:
    """The number of features, None where the images are too small; computed on meta tensors, which have shapes only."""
    state = {name: value.to("meta") for name, value in features.state_dict().items()}
    training = features.training
    try:
        # In training BatchNorm needs more than one place.
        return int(functional_call(features.eval(), state, (torch.zeros(1, *image_shape, device="meta"),)).shape[1])
    except RuntimeError:
        return None
    finally:
        features.train(training)


def _published(name: str, *dropped: str) -> Published:
    return Published(_models().get_model_weights(name), dropped)


def _one_of(field: str, value: object, choices: Collection[object]) -> None:
    if value not in choices:
        raise ValueError(f"trunk.{field} must be one of {', '.join(map(str, choices))}, got {value}")
