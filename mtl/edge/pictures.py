"""The rule by which a picture becomes an image; exported files contain it, so that a device prepares pictures as training did.

The steps are those of `data.images`, in this order: turn upright by the EXIF tag, bring 16-bit grey to 8 bits, put transparent pixels on a
background, convert to grey or RGB, cut, resize without keeping the proportions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mtl.models.cnn import ImageShape


@dataclass(frozen=True)
class PictureRule:
    """How a picture file becomes an image tensor.

    Attributes:
        colours: Pillow's mode, L (grey by the ITU-R 601 weights) or RGB, the order of the channels.
        size: (height, width) that the picture is resized to.
        crop: (top, left, height, width) of the part of the upright picture that is used, None for all of it.
        orientation: the source of the rotation that turns a picture upright.
        sixteen_bit: 16-bit grey is divided by this and rounded.
        background: colour behind transparent pixels.
        resize: Pillow's filter.
        layout: order of the tensor's axes.
        values: type of the tensor.
    """

    colours: str
    size: Sequence[int]
    crop: Sequence[int] | None = None
    orientation: str = "exif"
    sixteen_bit: int = 257
    background: str = "black"
    resize: str = "box"
    layout: str = "CHW"
    values: str = "uint8"

    @classmethod
    def of(cls, image_shape: ImageShape, crop: Sequence[int] | None = None) -> "PictureRule":
        """Return the rule for stored images [c, height, width] of one or three channels."""
        channels, height, width = image_shape
        return cls("L" if channels == 1 else "RGB", [height, width], None if crop is None else list(crop))
