"""Random changes of scenes that take the boxes with them, batched."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.data.warp import warp

SCENE_DRAWS = 6


@dataclass(frozen=True)
class SceneAugmentation:
    """Random changes of scenes that take the boxes with them.

    A face whose centre leaves the picture no longer counts; the boxes of the others end at its border.

    Args:
        flip: mirror left and right with probability one half.
        scale: make larger (a crop) or smaller (what is beyond the border repeats it) by up to this fraction.
        shift: move by up to this fraction of height and width.
        brightness: change the gain by up to this fraction and the offset by up to half of it.
    """

    flip: bool = True
    scale: float = 0.25
    shift: float = 0.1
    brightness: float = 0.2

    def __post_init__(self) -> None:
        for name, end in (("scale", 0.9), ("shift", 1.0), ("brightness", 1.0)):
            if not 0 <= getattr(self, name) <= end:
                raise ValueError(f"scene_augmentation.{name} must be in [0, {end:g}], got {getattr(self, name)}")

    def __call__(self, images: Tensor, boxes: Tensor, valid: Tensor, draw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Change a batch of scenes, and return images, boxes and valid of the same shapes.

        Args:
            images: float [B, c, H, W] in 0..1.
            boxes: [B, M, 4].
            valid: bool [B, M], False for padding.
            draw: uniform [B, SCENE_DRAWS] in 0..1.
        """
        height, width = images.shape[2:]
        extent = boxes.new_tensor([width, height])
        signed = draw * 2 - 1
        mirror = torch.where(draw[:, 0] < 0.5, -1.0, 1.0) if self.flip else torch.ones_like(draw[:, 0])
        scale = 1 + self.scale * signed[:, 1]
        # A point p of the old picture moves to (p - middle) * along + middle + shift.
        along = torch.stack([mirror * scale, scale], 1)
        shift = self.shift * signed[:, 2:4] * extent
        if self.flip or self.scale or self.shift:
            back = torch.diag_embed(1 / along)
            offset = extent / 2 - (extent / 2 + shift) / along
            images = warp(images, torch.cat([back, offset[:, :, None]], 2), (height, width), max_samples=1)
            corners = (boxes.unflatten(2, (2, 2)) - extent / 2) * along[:, None, None] + (extent / 2 + shift)[:, None, None]
            centre = corners.mean(2)
            valid = valid & ((centre >= 0) & (centre < extent)).all(2)
            corners = torch.minimum(corners.clamp_min(0), extent)
            boxes = torch.cat([corners.amin(2), corners.amax(2)], 2)
        if self.brightness:
            images = images * (1 + self.brightness * signed[:, 4, None, None, None])
            images = images + 0.5 * self.brightness * signed[:, 5, None, None, None]
        return images, boxes, valid
