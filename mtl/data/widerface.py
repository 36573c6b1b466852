"""WIDER FACE: S. Yang, P. Luo, C. C. Loy and X. Tang, "WIDER FACE: A Face Detection Benchmark", CVPR 2016.

The annotations are read by torchvision's WIDERFace. Each picture is scaled to fit the scene, in its true proportions, and placed in its
top left corner on grey; the boxes move with it. A box is cut off at the border of its picture; one that the annotators call invalid, that
is outside, or that is left with less than a pixel is dropped and counted. No identities are known. The published average precision
differs from COCO's, has three levels of difficulty, and is not computed here.
"""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mtl.base.seeding import generator
from mtl.data.images import PILLOW_ERRORS, CorruptImage, check_integers, data_root, not_found, to_pixels
from mtl.data.scenes import SceneSet

logger = logging.getLogger(__name__)
GREY = 128
# A line is left, top, width, height, blur, expression, illumination, invalid, occlusion, pose, as the data set's readme has it; torchvision
# (0.26 to 0.29) takes the last three to be occlusion, pose, invalid.
INVALID = "occlusion"


def widerface(
    root: str = "data",
    *,
    image_size: Sequence[int] = (320, 320),
    grey: bool = False,
    val: float = 0.0,
    max_images: int | None = None,
    seed: int = 0,
) -> SceneSet:
    """WIDER FACE: photographs of crowds with the boxes of their faces.

    Scenes of `<root>/widerface/{WIDER_train,WIDER_val,WIDER_test,wider_face_split}`, as torchvision lays them out. The official
    training part trains, the official validation part tests (the boxes of the official test part are not public).

    Args:
        root: folder of data sets.
        image_size: (height, width) of a scene.
        grey: convert to one channel.
        val: random fraction of the training part that is left for validation.
        max_images: images of each part, the first ones, None for all.
        seed: seed of the draw of validation images.

    Raises:
        DataNotFound: where the data are not there (a ValueError).
        ValueError: for an image that cannot be decoded.
    """
    check_integers("scenes.image_size", image_size, {"height": 16, "width": 16})
    if not 0 <= val < 1:
        raise ValueError(f"scenes.val must be in [0, 1), got {val}")
    if max_images is not None and max_images < 1:
        raise ValueError(f"scenes.max_images must be null or >= 1, got {max_images}")
    base = data_root(root)
    described = [annotations[:max_images] for annotations in _read_annotations(root)]
    every = [info for part in described for info in part]
    height, width = image_size
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        pixels, boxes = zip(*pool.map(lambda info: _read(info, (height, width), grey), every), strict=True)
    total = sum(len(info["annotations"]["bbox"]) for info in every)
    counts = torch.tensor([len(boxes_of_image) for boxes_of_image in boxes])
    logger.info("WIDER FACE: %d faces in %d images; %d boxes dropped", int(counts.sum()), len(every), total - int(counts.sum()))
    padded = torch.nn.utils.rnn.pad_sequence(list(boxes), batch_first=True)
    split = torch.tensor([0] * len(described[0]) + [2] * len(described[1]), dtype=torch.int8)
    order = torch.randperm(len(described[0]), generator=generator(seed, "widerface/val"))
    split[order[: round(val * len(order))]] = 1
    return SceneSet(
        name="widerface",
        images=torch.from_numpy(np.stack(pixels)),
        boxes=padded,
        counts=counts,
        identity=torch.full(padded.shape[:2], -1),
        class_names=(),
        split=split,
        source=f"{base / 'widerface'}, {total - int(counts.sum())} of {total} boxes dropped",
    )


def _read_annotations(root: str) -> list[Any]:
    base = data_root(root)
    try:
        from torchvision.datasets import WIDERFace

        return [WIDERFace(str(base), split=split).img_info for split in ("train", "val")]
    except (RuntimeError, FileNotFoundError) as error:
        layout = "WIDER FACE as widerface/{WIDER_train,WIDER_val,WIDER_test}/images and widerface/wider_face_split/*.txt"
        obtain = "Get it from http://shuoyang1213.me/WIDERFACE/ (research only) and unpack its four archives there."
        raise not_found(root, [base / "widerface"], layout, obtain) from error


def _read(info: dict[str, Any], size: tuple[int, int], grey: bool) -> tuple[Any, Tensor]:
    """Pixels uint8 [c, *size] and boxes float [n, 4] of one picture."""
    path = Path(info["img_path"])
    try:
        image = Image.open(path)
        image.load()
    except PILLOW_ERRORS as error:
        raise CorruptImage(f"cannot decode {path}: it is missing, damaged or not an image ({type(error).__name__})") from error
    scale = min(size[0] / image.height, size[1] / image.width)
    inner = (max(round(image.height * scale), 1), max(round(image.width * scale), 1))
    pixels = np.full((1 if grey else 3, *size), GREY, np.uint8)
    pixels[:, : inner[0], : inner[1]] = to_pixels(image, inner, grey)
    scales = torch.tensor([inner[1] / image.width, inner[0] / image.height])
    return pixels, usable_boxes(info["annotations"]["bbox"], info["annotations"][INVALID] != 0, scales, inner)


def usable_boxes(bbox: Tensor, invalid: Tensor, scale: Tensor, size: tuple[int, int]) -> Tensor:
    """The boxes of a picture that count, [m, 4] as (left, top, right, bottom), scaled and cut off at its border.

    Args:
        bbox: [n, 4] as (left, top, width, height) in pixels of the picture.
        invalid: bool [n].
        scale: (x, y).
        size: (height, width) of the scaled picture.
    """
    corner, sides = bbox[:, :2] * scale, bbox[:, 2:] * scale
    extent = torch.tensor([size[1], size[0]], dtype=torch.float32)
    boxes = torch.cat([corner.clamp_min(0), torch.minimum(corner + sides, extent)], 1)
    large = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)
    return boxes[large & ~invalid]
