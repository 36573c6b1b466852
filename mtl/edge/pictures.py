"""How a picture becomes pixels, as a rule that an exported file carries, so that the device sees what training saw.

The steps are those of `data.images`, in this order: turn upright by the EXIF tag, bring 16-bit grey to 8 bits, lay transparency on a
background, convert to grey or RGB, cut, resize without keeping the proportions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mtl.models.cnn import ImageShape


@dataclass(frozen=True)
class PictureRule:
    """orientation: what turns a picture upright; sixteen_bit: 16-bit grey is divided by this and rounded; background: what shows through
    transparent pixels; colours: Pillow's mode, L (grey by the ITU-R 601 weights) or RGB, the order of the channels; crop: (top, left,
    height, width) of the upright picture that is cut out, None for all of it; size: (height, width) that it is resized to; resize:
    Pillow's filter; layout, values: of the tensor.
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
        """For stored images [c, height, width] of one or three channels."""
        channels, height, width = image_shape
        return cls("L" if channels == 1 else "RGB", [height, width], None if crop is None else list(crop))
