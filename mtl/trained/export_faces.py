"""The part of a run that finds faces, as a file for a device; the part that names them is exported like any other model.

A device looks at pictures of one size: a photo is resized to fit, in its proportions, and its border is repeated to fill the rest. The
graph looks at the picture and at its halves, as `FaceFinder` does, and gives the maps of each; `finder_facts` says how boxes are made
from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra_zen import instantiate
from torch import Tensor

from mtl.data.scenes import TEST
from mtl.edge import export
from mtl.edge.device_model import DeviceDetector
from mtl.edge.files import DeviceFacts
from mtl.faces.finder import LEAST_SIDE, OVERLAP, WITHIN, FaceFinder
from mtl.models.cnn import ImageShape
from mtl.models.flops import count_forward
from mtl.run.load import TrainedRun

SCENE = (480, 640)
MULTIPLE = 32  # of which both sides of a scene are, so that it can be halved
PADDING = 0.25  # of a gallery photo's height and width, repeated around it, as `mtl enrol` does
CHECKED = 8  # scenes on which a file is compared with the model


@dataclass(frozen=True)
class ExportedDetector:
    """The file of a detector.

    Attributes:
        path: the file.
        num_bytes: its size.
        difference: largest absolute difference of its maps from the model's.
        images: number of test scenes that they were compared on.
    """

    path: Path
    num_bytes: int
    difference: float
    images: int


def check_scene(scene: Sequence[int]) -> None:
    """Raise ValueError where a picture of (height, width) cannot be looked at."""
    if len(scene) != 2 or any(side < LEAST_SIDE or side % MULTIPLE for side in scene):
        raise ValueError(
            f"scene must be (height, width), each a multiple of {MULTIPLE} and at least {LEAST_SIDE}, got {tuple(scene)}"
        )


def halvings(scene: Sequence[int]) -> int:
    """How often `FaceFinder` halves a picture of (height, width)."""
    number, side = 0, min(scene)
    while side >= 2 * LEAST_SIDE:
        number, side = number + 1, side // 2
    return number


def scene_shape(run: TrainedRun, scene: Sequence[int]) -> ImageShape:
    """(channels, height, width) of a scene."""
    height, width = scene
    return run.image_shape[0], height, width


def face_finder(run: TrainedRun) -> FaceFinder:
    """The finder of a run's model."""
    assert run.model.detector is not None
    return FaceFinder(
        run.model.trunk,
        run.model.detector,
        run.objective.normalise,
        crop_shape=run.image_shape,
        margin=run.config.detection.margin,
        mirror=run.objective.mirror,
    )


def finder_facts(run: TrainedRun) -> dict[str, Any]:
    """What a program needs to get from maps to faces and from faces to names.

    Returns:
        stride: pixels to a cell. top: number of cells looked at. confidence: least score of a face. overlap, within: limits of two boxes
        that show the same face. margin: how much longer than a box the crop is. max_samples: of a pixel of the crop each way. padding: see
        `PADDING`. model: the fingerprint that a gallery carries.
    """
    finder = face_finder(run)
    return {
        "stride": finder.stride,
        "top": 100,
        "confidence": run.config.detection.confidence,
        "overlap": OVERLAP,
        "within": WITHIN,
        "margin": finder.margin,
        "max_samples": 8,
        "padding": PADDING,
        "model": finder.fingerprint(),
    }


def device_detector(run: TrainedRun, scene: Sequence[int]) -> DeviceDetector:
    """The detector as it runs on the device."""
    return DeviceDetector(run.model, run.objective.normalise, halvings=halvings(scene))


def detector_content(run: TrainedRun, facts: DeviceFacts, scene: Sequence[int], to: str) -> tuple[bytes, float, int]:
    """Make the file of the detector, and compare it with the model on the run's test scenes.

    Args:
        run: the run.
        facts: of the detector.
        scene: (height, width) of its pictures.
        to: onnx or executorch.

    Returns:
        The file, its largest difference from the model, and the number of scenes compared.

    Raises:
        ExportError: they differ.
    """
    device = device_detector(run, scene)
    shape = scene_shape(run, scene)
    if to == "onnx":
        content = export.to_onnx(device, shape, torch.uint8, facts)
        predict = export.onnx_predict(content)
    else:
        content = export.to_executorch(device, shape, torch.uint8, facts)
        predict = export.executorch_predict(content)
    scenes = instantiate(run.config.scenes)
    pictures = fit(scenes.images[scenes.part(TEST)[:CHECKED]], scene)
    with torch.no_grad():
        parts = [device(picture[None]) for picture in pictures]
    expected = [torch.cat(maps) for maps in zip(*parts, strict=True)]
    away, _ = export.differences(predict, expected, pictures)
    export.check_float(dict(zip(device.outputs, away, strict=True)), expected, len(pictures))
    return content, max(away), len(pictures)


def detector_flops(run: TrainedRun, scene: Sequence[int]) -> int:
    """Flops of one picture and its halves."""
    return count_forward(device_detector(run, scene), scene_shape(run, scene), torch.uint8)


def fit(images: Tensor, scene: Sequence[int]) -> Tensor:
    """Resize pictures in their proportions, and repeat the right and lower border to fill the scene.

    Args:
        images: uint8 [N, c, h, w].
        scene: (height, width).

    Returns:
        Uint8 [N, c, height, width].
    """
    height, width = scene
    scale = min(height / images.shape[2], width / images.shape[3])
    size = (max(round(images.shape[2] * scale), 1), max(round(images.shape[3] * scale), 1))
    resized = F.interpolate(images.float(), size=size, mode="area")
    return F.pad(resized, (0, width - size[1], 0, height - size[0]), mode="replicate").round().to(torch.uint8)
