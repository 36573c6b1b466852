"""Photos of users: find them by name, folder or pattern, read them, and draw on them.

Supported are jpg, jfif, png, webp, bmp, tif, pgm, ppm and, with the extra `heic`, heic, grey or colour. Photos are turned upright by their
EXIF tag, and transparent pixels become black. A photo must have at least 16 pixels on each side and at most 64 megapixels; larger ones are
averaged down to `max_side`.
"""

import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from mtl.data.images import EXTENSIONS, PILLOW_ERRORS, list_images, require_decoder, to_pixels

MIN_SIDE, MAX_PIXELS = 16, 2**26
COLOURS = {True: (30, 160, 80), False: (215, 95, 20)}


class UnreadablePhoto(ValueError):
    """A photo cannot be read, or has too few or too many pixels."""


@dataclass(frozen=True)
class Photo:
    """A photo as the model takes it.

    Attributes:
        path: the file.
        image: float [c, H, W] in 0..1.
        scale: pixels of the upright picture in the file per pixel of `image`.
    """

    path: Path
    image: Tensor
    scale: float


def find_photos(names: Sequence[str]) -> list[Path]:
    """Return the photos that files, folders and patterns such as `holiday/*.jpg` name, each once, in order.

    Raises:
        ValueError: a name matches no photo.
    """
    photos: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            matched = list_images(path)
        elif path.is_file():
            matched = [path]
        else:
            start = Path(path.anchor or ".")
            matches = _expand(start, (path.relative_to(start) if path.anchor else path).parts)
            matched = sorted(
                p for p in set(matches) if p.is_file() and p.suffix.lower() in EXTENSIONS and not p.name.startswith(".")
            )
        if not matched:
            kinds = " ".join(sorted(EXTENSIONS))
            raise ValueError(f"PHOTO must be a photo, a folder of them or a pattern, got {name} with none ({kinds})")
        photos += matched
    return list(dict.fromkeys(photos))


def _expand(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """Yield the paths under a folder that match a pattern; a part that exists as it is, such as `holiday [2024]`, is no pattern."""
    if not parts:
        yield folder
        return
    first, remaining = parts[0], parts[1:]
    if first == "**":
        matches: Iterable[Path] = (path for path in folder.glob("**") if path.is_dir())
    else:
        matches = [folder / first] if (folder / first).exists() else folder.glob(first)
    for path in matches:
        yield from _expand(path, remaining)


def open_photo(path: Path) -> Image.Image:
    """Return a picture, upright.

    Raises:
        UnreadablePhoto: it cannot be decoded, or is too small or too large.
        DecoderMissing: it is HEIC, and the library is not installed.
    """
    require_decoder(path)
    try:
        with warnings.catch_warnings():
            # Pillow's own limit is only a warning; ours is checked before anything is decoded.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(path.read_bytes()))
        width, height = image.size
        if min(width, height) < MIN_SIDE:
            raise UnreadablePhoto(f"{path} must have at least {MIN_SIDE} pixels on each side, got {width} x {height}")
        if width * height > MAX_PIXELS:
            raise _too_large(path, f"{width} x {height}")
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except UnreadablePhoto:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(path, "more than Pillow opens") from error
    except PILLOW_ERRORS as error:
        raise UnreadablePhoto(
            f"{path} cannot be decoded: it is empty, damaged or not an image ({type(error).__name__})"
        ) from error
    return image


def _too_large(path: Path, size: str) -> UnreadablePhoto:
    return UnreadablePhoto(f"{path} must have at most {MAX_PIXELS // 2**20} megapixels (2^20 pixels each), got {size}")


def read_photo(path: Path, *, channels: int, max_side: int = 640) -> Photo:
    """Read a photo.

    Args:
        path: the file.
        channels: 1 for grey, 3 for RGB.
        max_side: pixels of the longer side; larger photos are scaled down.

    Raises:
        UnreadablePhoto: it cannot be decoded, or is too small or too large.
    """
    image = open_photo(path)
    scale = max(max(image.size) / max_side, 1.0)
    width, height = (max(round(side / scale), MIN_SIDE) for side in image.size)
    pixels = to_pixels(image, (height, width) if scale > 1 else None, channels == 1)
    return Photo(path, torch.from_numpy(pixels).float() / 255, scale)


def draw_faces(path: Path, boxes: Sequence[Sequence[float]], labels: Sequence[str], recognised: Sequence[bool]) -> Image.Image:
    """Return the photo with a frame and a label for each face, green for recognised people, orange for others.

    Args:
        path: the photo.
        boxes: (left, top, right, bottom) of each face, in pixels of the upright picture.
        labels: text for each face.
        recognised: whether each face is recognised.
    """
    image = Image.fromarray(to_pixels(open_photo(path), None, False).transpose(1, 2, 0))
    draw = ImageDraw.Draw(image)
    line = max(round(min(image.size) / 300), 1)
    for box, label, is_recognised in zip(boxes, labels, recognised, strict=True):
        colour = COLOURS[is_recognised]
        left, top, right, bottom = box
        draw.rectangle((left, top, right, bottom), outline=colour, width=line)
        font = ImageFont.load_default(size=min(max((right - left) / 7, 9 * line), 16 * line))
        text = draw.textbbox((0, 0), label, font=font)
        width, height = text[2] + 4 * line, text[3] + 2 * line
        # Above the frame where there is room, else inside; never beyond the right border.
        x = max(min(left, image.width - width), 0)
        y = top - height if top >= height else top
        draw.rectangle((x, y, x + width, y + height), fill=colour)
        draw.text((x + 2 * line, y + line / 2), label, fill="white", font=font)
    return image
