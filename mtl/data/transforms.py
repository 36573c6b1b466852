"""Batched augmentation and normalisation of images in memory.

One uniform draw of nine numbers an image fixes everything that is random about it, so that the same draw gives the same picture in
every backend, whatever batch the image is in.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.data.warp import equalise

DRAWS = 9


@dataclass(frozen=True)
class Augmentation:
    """Random changes of the training images.

    Pixels from beyond the border repeat it.

    Args:
        flip: mirror left and right with probability one half.
        rotation: turn by up to this many degrees either way.
        scale: make larger or smaller by up to this fraction.
        shift: move by up to this fraction of height and width.
        brightness: change the gain by up to this fraction and the offset by up to half of it.
        cutout: side of a grey square at a random place, as a fraction of the height.
    """

    flip: bool = True
    rotation: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    brightness: float = 0.0
    cutout: float = 0.0

    def __post_init__(self) -> None:
        for name, end in (("rotation", 180.0), ("scale", 0.9), ("shift", 1.0), ("brightness", 1.0), ("cutout", 1.0)):
            if not 0 <= getattr(self, name) <= end:
                raise ValueError(f"augmentation.{name} must be in [0, {end:g}], got {getattr(self, name)}")

    @property
    def changes(self) -> bool:
        """Whether it changes images at all."""
        return self.flip or any((self.rotation, self.scale, self.shift, self.brightness, self.cutout))

    def __call__(self, images: Tensor, draw: Tensor) -> Tensor:
        """Augment images in 0..1, float [B, c, H, W], by uniform draws [B, DRAWS]; the same shape."""
        signed = draw * 2 - 1
        if self.rotation or self.scale or self.shift:
            images = self._warp(images, draw, signed)
        elif self.flip:
            images = torch.where(draw[:, 0, None, None, None] < 0.5, images.flip(-1), images)
        if self.brightness:
            gain = 1 + self.brightness * signed[:, 5, None, None, None]
            offset = 0.5 * self.brightness * signed[:, 6, None, None, None]
            images = images * gain + offset
        if self.cutout:
            images = self._cut(images, draw)
        return images

    def _warp(self, images: Tensor, draw: Tensor, signed: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        angle = signed[:, 1] * math.radians(self.rotation)
        scale = 1 + self.scale * signed[:, 2]
        cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
        mirror = torch.where(draw[:, 0] < 0.5, -1.0, 1.0) if self.flip else torch.ones_like(angle)
        # The grid is in units of half the height and half the width: turning needs the aspect ratio.
        aspect = height / width
        x, y = ((torch.arange(size, dtype=images.dtype, device=images.device) * 2 + 1) / size - 1 for size in (width, height))

        def plane(along_x: Tensor, along_y: Tensor, offset: Tensor) -> Tensor:
            rows = along_y[:, None] * y + offset[:, None]
            return rows[:, :, None] + (along_x[:, None] * x)[:, None]

        across = plane(cos * mirror, sin * aspect, 2 * self.shift * signed[:, 3])
        down = plane(-sin / aspect * mirror, cos, 2 * self.shift * signed[:, 4])
        grid = torch.stack([across, down], -1)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    def _cut(self, images: Tensor, draw: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        half = self.cutout * height / 2
        rows = torch.arange(height, device=images.device)[None, :, None] - draw[:, 7, None, None] * height
        columns = torch.arange(width, device=images.device)[None, None, :] - draw[:, 8, None, None] * width
        hole = (rows.abs() < half) & (columns.abs() < half)
        return torch.where(hole[:, None], 0.5, images)


@dataclass(frozen=True)
class Normalise:
    """From stored pixels to what the trunk sees: (x - mean) / deviation.

    Args:
        mean: a number for all channels, or a list with one for each.
        deviation: a number or a list, as for mean; images of one channel take the mean of a list.
        per_image: take each image's own mean and deviation.
        equalise: equalise each image's histogram first (`warp.equalise`), for light that differs from picture to picture.
    """

    mean: float | list[float] = 0.5
    deviation: float | list[float] = 0.25
    per_image: bool = False
    equalise: bool = False

    def __post_init__(self) -> None:
        means, deviations = (_listed(value) for value in (self.mean, self.deviation))
        if not means or not deviations or len({len(means), len(deviations), 1}) > 2:
            raise ValueError(
                "normalise.mean and normalise.deviation must be a number, or a list with one for each channel, "
                f"got {self.mean} and {self.deviation}"
            )
        if not min(deviations) > 0:
            raise ValueError(f"normalise.deviation must be > 0, got {self.deviation}")

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise images [B, c, H, W]; the same shape.

        Raises:
            ValueError: where c is neither 1 nor the length of a list.
        """
        if self.equalise:
            images = equalise(images)
        if self.per_image:
            mean = images.mean((1, 2, 3), keepdim=True)
            deviation = images.std((1, 2, 3), keepdim=True, correction=0)
            return (images - mean) / (deviation + 1e-3)
        if not isinstance(self.mean, list) and not isinstance(self.deviation, list):
            return (images - self.mean) / self.deviation
        channels = images.shape[1]
        means, deviations = (_for_channels(_listed(value), channels) for value in (self.mean, self.deviation))
        # Channel by channel, so that no numbers need to be brought to the device.
        return torch.stack([(images[:, c] - means[c]) / deviations[c] for c in range(channels)], 1)


def _listed(value: float | list[float]) -> list[float]:
    return value if isinstance(value, list) else [value]


def _for_channels(values: list[float], channels: int) -> list[float]:
    if len(values) == channels:
        return values
    if len(values) == 1 or channels == 1:
        return [sum(values) / len(values)] * channels
    raise ValueError(
        f"normalise.mean and normalise.deviation must be a number or a list of {channels}, the channels of the images, got {len(values)}"
    )


def to_float(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Scale uint8 pixels to 0..1; float data do not change."""
    return images.to(dtype) / 255 if images.dtype == torch.uint8 else images.to(dtype)
