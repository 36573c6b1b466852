"""Random images for timing: speed does not depend on what they show."""

import torch

from mtl.base.types import ImageData
from mtl.data.images import no_attributes


def pictures(*, num_train: int, num_test: int, shape: list[int], num_classes: int = 10, floats: bool = False) -> ImageData:
    """Images of `shape` [channels, height, width], uint8 or floats; the last `num_test` are for test."""
    count, rng = num_train + num_test, torch.Generator().manual_seed(0)
    if floats:
        images = torch.randn(count, *shape, generator=rng)
    else:
        images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=rng)
    return ImageData(
        name="random",
        images=images,
        classes=torch.arange(count) % num_classes,
        class_names=tuple(str(c) for c in range(num_classes)),
        attributes=no_attributes(count),
        attribute_names=(),
        source="made for timing",
        official_split=(torch.arange(count) >= num_train).to(torch.int8) * 2,
    )
