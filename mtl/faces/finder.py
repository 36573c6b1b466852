"""A face finder with one trunk: its map of the picture gives boxes, its features of a box's content identify the person."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.data.transforms import Normalise
from mtl.data.warp import crop_boxes
from mtl.models.centre import decode, map_layers, map_stride

OVERLAP, WITHIN = 0.5, 0.7  # two boxes show the same face: intersection over union, and over the smaller box
LEAST_SIDE = 64  # pixels on the shorter side that a halved picture must have


@dataclass(frozen=True)
class DetectionOptions:
    """Scenes in a step, and when a face counts as found.

    Args:
        batch_size: scenes in a step
        confidence: score from which a face counts as found, in use and in the shares of faces found and named
        margin: how much longer than its box the part of the picture is that the trunk sees of a face
    """

    batch_size: int = 8
    confidence: float = 0.3
    margin: float = 0.15

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"detection.batch_size must be >= 1, got {self.batch_size}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"detection.confidence must be in (0, 1), got {self.confidence}")
        if not 0 <= self.margin <= 2:
            raise ValueError(f"detection.margin must be in [0, 2], got {self.margin}")


@dataclass(frozen=True)
class Faces:
    """The faces of a picture, in falling order of their scores.

    Attributes:
        boxes: [n, 4], (left, top, right, bottom) in pixels.
        scores: [n], 0 to 1.
    """

    boxes: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return len(self.boxes)

    def surer_than(self, confidence: float) -> "Faces":
        """Return the faces whose score is at least `confidence`."""
        keep = self.scores >= confidence
        return Faces(self.boxes[keep], self.scores[keep])


class FaceFinder:
    """Finds and embeds faces. The modules are used in their present mode (training or evaluation).

    Args:
        trunk: a trunk of convolutions, see `map_layers`.
        detector: a head on the trunk's map.
        normalise: brings pixels to the range that the trunk expects.
        crop_shape: (c, height, width) of the crops that the trunk embeds.
        margin: see `crop_placement`.
        mirror: whether an embedding is the mean over the face and its mirror image.
    """

    def __init__(
        self,
        trunk: nn.Module,
        detector: nn.Module,
        normalise: Normalise,
        *,
        crop_shape: Sequence[int],
        margin: float,
        mirror: bool = True,
    ) -> None:
        self.trunk, self.detector, self.normalise = trunk, detector, normalise
        self.channels, *size = crop_shape
        self.crop_size = (size[0], size[1])
        self.margin, self.mirror = margin, mirror
        self.layers = map_layers(trunk)
        self.stride = map_stride(self.layers, self.channels)[1]

    def maps(self, images: Tensor) -> Tensor:
        """Return the detector's maps [B, 5, h, w] of float images [B, c, H, W] in 0..1; see `CentreHead`."""
        maps: Tensor = self.detector(self.layers(self.normalise(images)))
        return maps

    @torch.no_grad()
    def find(self, images: Tensor, *, confidence: float = 0.01, pyramid: bool = False) -> list[Faces]:
        """Return the faces of each picture.

        Of boxes that overlap by more than one half, or of which one lies in the other, only the one of highest score stays.

        Args:
            images: float [B, c, H, W] in 0..1.
            confidence: minimum score.
            pyramid: whether to search the picture repeatedly halved too, for faces larger than those in the training data.
        """
        levels = [images]
        while pyramid and min(levels[-1].shape[2:]) >= 2 * LEAST_SIDE:
            height, width = levels[-1].shape[2:]
            levels.append(F.interpolate(levels[-1], size=(height // 2, width // 2), mode="area"))
        height, width = images.shape[2:]
        extent = images.new_tensor([width, height])
        parts = []
        for level in levels:
            boxes, scores = decode(self.maps(level), self.stride)
            scale = extent / extent.new_tensor([level.shape[3], level.shape[2]])
            corners = boxes.to(images.dtype).unflatten(2, (2, 2)) * scale
            parts.append((torch.minimum(corners.clamp_min(0), extent).flatten(2), scores))
        boxes, scores = (torch.cat(values, 1) for values in zip(*parts, strict=True))
        return [_distinct(Faces(*pair).surer_than(confidence)) for pair in zip(boxes, scores, strict=True)]

    def crops(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Return the crops [n, c, height, width] of an image, float [c, H, W], at boxes [n, 4]."""
        return crop_boxes(image.expand(len(boxes), -1, -1, -1), boxes, self.crop_size, margin=self.margin)

    @torch.no_grad()
    def embed(self, crops: Tensor) -> Tensor:
        """Return embeddings [n, h] of length 1 of crops, float [n, c, height, width] in 0..1."""
        inputs = self.normalise(crops)
        views = (inputs, inputs.flip(-1)) if self.mirror else (inputs,)
        return F.normalize(torch.stack([F.normalize(self.trunk(view).float(), dim=1) for view in views]).mean(0), dim=1)

    def fingerprint(self) -> str:
        """Return a hash of all weights and of the preparation of pictures; embeddings are comparable where it is equal."""
        settings = [self.channels, self.crop_size, self.margin, self.mirror, self.normalise]
        digest = hashlib.blake2b(repr(settings).encode(), digest_size=12)
        for module in (self.trunk, self.detector):
            for name, value in sorted(module.state_dict().items()):
                digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def _distinct(faces: Faces) -> Faces:
    """Return the faces without those outside the picture and those that a face of higher score covers.

    It covers them where the two overlap by more than `OVERLAP`, or share more than `WITHIN` of the smaller one: no face is inside another.
    """
    inside = ((faces.boxes[:, 2:] - faces.boxes[:, :2]) >= 1).all(1)
    faces = Faces(faces.boxes[inside], faces.scores[inside])
    from torchvision.ops import nms

    kept = nms(faces.boxes.float(), faces.scores.float(), OVERLAP)
    boxes, scores = faces.boxes[kept], faces.scores[kept]
    shared = (
        (torch.minimum(boxes[:, None, 2:], boxes[:, 2:]) - torch.maximum(boxes[:, None, :2], boxes[:, :2])).clamp_min(0).prod(2)
    )
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    nested = (shared > WITHIN * torch.minimum(area[:, None], area)).cpu()
    distinct = torch.ones(len(boxes), dtype=torch.bool)
    for place in range(len(boxes)):
        if distinct[place]:
            distinct[place + 1 :] &= ~nested[place, place + 1 :]
    distinct = distinct.to(boxes.device)
    return Faces(boxes[distinct], scores[distinct])


def match_faces(boxes: Tensor, truth: Tensor, *, overlap: float = OVERLAP) -> Tensor:
    """Return the true box that each found box matches, int64 [n], -1 for none.

    As in COCO's evaluation, each box takes the true box that it overlaps most among those not taken yet, if by at least `overlap`.

    Args:
        boxes: [n, 4], the found boxes, in falling order of their scores.
        truth: [m, 4], the true boxes.
        overlap: minimum intersection over union.
    """
    matches = torch.full((len(boxes),), -1)
    from torchvision.ops import box_iou

    overlaps = box_iou(boxes, truth).cpu()
    for place in range(len(boxes) if len(truth) else 0):
        best = int(overlaps[place].argmax())
        if overlaps[place, best] >= overlap:
            matches[place] = best
            overlaps[:, best] = -1
    return matches
