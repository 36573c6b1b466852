"""From image files to one uint8 tensor in memory, decoded once and cached on disk.

A picture is turned upright by its EXIF tag, 16-bit grey is scaled to 8 bits, transparency is laid on black, and grey, palette
and CMYK become RGB (or all become grey, by the ITU-R 601 weights); of a TIFF with several pages the first is taken. Resizing
averages each target pixel's area (Pillow's BOX filter) and does not keep the aspect ratio; an axis that grows repeats its pixels.

The cache is `<root>/.cache/<name>-<fingerprint>.images`; the fingerprint covers the options and every file's path, size and time of
change, so a changed file makes a new cache, and a damaged one is made anew. Any file in `.cache` may be deleted at any time.
"""

import hashlib
import importlib
import io
import json
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mtl.data.cache import load_cache, store_cache

log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]
CACHE_VERSION = 1  # raise it when the same files and options decode to other pixels than before
HEIC = frozenset({".heic", ".heif"})
EXTENSIONS = HEIC | {".png", ".jpg", ".jpeg", ".jfif", ".pgm", ".ppm", ".bmp", ".webp", ".tif", ".tiff"}
FOREIGN = frozenset({"__MACOSX"})  # folders that a system or an archiver adds to the user's own
# What Pillow raises on damaged bytes, as seen by flipping some in files of each kind.
PILLOW_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, ArithmeticError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


class DataNotFound(FileNotFoundError, ValueError):
    """`data.root` does not have the data set."""


class CorruptImage(ValueError):
    """A file that has an image's name and cannot be decoded."""


class DecoderMissing(ValueError):
    """The library that reads this kind of picture is not installed."""


def data_root(root: str) -> Path:
    """The path `data.root` as an absolute one."""
    return Path(root).expanduser().absolute()


def not_found(root: str, looked: Iterable[Path], layout: str, obtain: str) -> DataNotFound:
    """The error for a missing data set: the folders that were looked in, the layout expected there, how to obtain the data."""
    folder = data_root(root)
    if folder.is_dir():
        names = [path.name for path in (*list_folders(folder), *list_images(folder))]
        came = (
            "a folder with " + ", ".join(names[:6]) + ", ..." * (len(names) > 6)
            if names
            else "a folder without sub-folders or images"
        )
    else:
        came = "a file" if folder.exists() else "no such folder"
    places = ", ".join(str(path) for path in looked)
    return DataNotFound(f"data.root must hold {layout}; looked in {places}; got {root!r}, {came}. {obtain}")


def no_attributes(num_images: int) -> Tensor:
    """Attributes of images without any, int8 [num_images, 0]."""
    return torch.empty((num_images, 0), dtype=torch.int8)


def list_folders(folder: Path) -> list[Path]:
    """Sub-folders that are the user's own and not hidden, by name."""
    with os.scandir(folder) as entries:
        folders = [Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(path for path in folders if path.name not in FOREIGN)


def list_images(folder: Path, extensions: frozenset[str] = EXTENSIONS) -> list[Path]:
    """Image files that are not hidden, by name."""
    with os.scandir(folder) as entries:
        paths = [Path(entry.path) for entry in entries if entry.is_file() and not entry.name.startswith(".")]
    return sorted(path for path in paths if path.suffix.lower() in extensions)


def list_others(folder: Path, *, folders: bool) -> list[Path]:
    """The files that `list_images` ignores and, with `folders`, the folders that `list_folders` ignores, by name."""
    taken = {*list_images(folder), *(list_folders(folder) if folders else ())}
    return sorted(path for path in folder.iterdir() if path not in taken and path.name != ".cache")


def printable(path: Path | str) -> str:
    """A path as text that can be written: bytes of its name that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def require_decoder(path: Path) -> None:
    """Raise DecoderMissing for a HEIC picture where the library that reads it is not installed."""
    if path.suffix.lower() not in HEIC:
        return
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError as error:
        raise DecoderMissing(
            f"HEIC pictures such as {printable(path)} need the extra heic (pip install -e '.[heic]', or pip install pillow-heif), "
            "or save them as JPEG"
        ) from error


def to_pixels(image: Image.Image, image_size: Sequence[int] | None, grey: bool, crop: Sequence[int] | None = None) -> Pixels:
    """The pixels of a picture, [1 or 3, height, width], cropped and resized.

    Args:
        image: the picture.
        image_size: (height, width), None keeps that of the picture.
        grey: convert to one channel.
        crop: (top, left, height, width) in the picture as it is shown.
    """
    if image.mode.startswith("I"):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    image = image.convert("L" if grey else "RGB")
    if crop is not None:
        top, left, height, width = crop
        image = image.crop((left, top, left + width, top + height))
    if image_size is not None:
        height, width = image_size
        image = image.resize((width, height), Image.Resampling.BOX)
    pixels: Pixels = np.array(image)
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def decode(
    path: Path,
    *,
    image_size: Sequence[int] | None = None,
    grey: bool = False,
    crop: Sequence[int] | None = None,
    read: Callable[[Path], bytes] = Path.read_bytes,
) -> Pixels:
    """The pixels of one file, [1 or 3, height, width].

    Args:
        path: the file.
        image_size: (height, width), None keeps that of the file.
        grey: convert to one channel.
        crop: (top, left, height, width), cut before resizing.
        read: the bytes of a file.

    Raises:
        CorruptImage: where the file cannot be decoded (a ValueError).
        ValueError: where the crop leaves the picture.
    """
    require_decoder(path)
    content = read(path)
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        # TIFF also stores measurements, whose range is not stated.
        if image.mode == "F" or (image.mode == "I" and not 0 <= np.asarray(image).min() <= np.asarray(image).max() <= 65535):
            raise ValueError
    except PILLOW_ERRORS as error:
        reason = "it is damaged or not an image of 8 or 16 bits"
        raise CorruptImage(f"cannot decode {printable(path)}: {reason} ({type(error).__name__})") from error
    if crop is not None and (crop[0] + crop[2] > image.height or crop[1] + crop[3] > image.width):
        raise ValueError(f"crop must lie inside every picture, got {tuple(crop)} for {path} of {image.height} x {image.width}")
    return to_pixels(image, image_size, grey, crop)


def check_integers(field: str, value: object, least: dict[str, int]) -> None:
    """Raise ValueError unless `value` is None, or one integer per key of `least` and no smaller."""
    if value is None:
        return
    if not isinstance(value, Sequence) or len(value) != len(least):
        raise ValueError(f"{field} must be null or ({', '.join(least)}), got {value!r}")
    for (part, bound), number in zip(least.items(), value, strict=True):
        if not isinstance(number, int) or number < bound:
            raise ValueError(f"{field} must be null or ({', '.join(least)}) with {part} an integer >= {bound}, got {value!r}")


def check_size(image_size: object) -> None:
    """Raise ValueError unless image_size is None or (height, width)."""
    check_integers("image_size", image_size, {"height": 1, "width": 1})


def read_images(
    paths: Sequence[Path],
    *,
    image_size: Sequence[int] | None = None,
    grey: bool = False,
    crop: Sequence[int] | None = None,
    skip_corrupt: bool = False,
    read: Callable[[Path], bytes] = Path.read_bytes,
) -> tuple[Tensor, Tensor]:
    """Images uint8 [M, channels, height, width] and their places in `paths`, int64 [M]; M < N only with skip_corrupt.

    The options are those of `decode`; skip_corrupt leaves out files that cannot be decoded.

    Raises:
        CorruptImage: for a file that cannot be decoded (a ValueError).
        ValueError: where sizes differ and image_size is None.
    """

    def attempt(path: Path) -> Pixels | CorruptImage:
        try:
            return decode(path, image_size=image_size, grey=grey, crop=crop, read=read)
        except CorruptImage as error:
            return error

    chunks = [
        paths[start : start + 64] for start in range(0, len(paths), 64)
    ]  # one by one, the threads cost more than small images

    images = torch.empty(0)
    kept: list[int] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for index, pixels in enumerate(chain.from_iterable(pool.map(lambda chunk: [attempt(path) for path in chunk], chunks))):
            if isinstance(pixels, CorruptImage):
                if not skip_corrupt:
                    raise pixels
                continue
            if not kept:
                images = torch.empty((len(paths), *pixels.shape), dtype=torch.uint8)
            elif pixels.shape != images.shape[1:]:
                sizes = [
                    f"{paths[i]} of {height} x {width}"
                    for i, (_, height, width) in ((kept[0], images.shape[1:]), (index, pixels.shape))
                ]
                raise ValueError(
                    f"image_size must be set, as the images differ in size: got {' and '.join(sizes)} (height x width)"
                )
            images[len(kept)] = torch.from_numpy(pixels)
            kept.append(index)
    if not kept:
        raise CorruptImage(f"none of {len(paths)} images can be decoded; the first is {paths[0]}")
    return images[: len(kept)].clone() if len(kept) < len(paths) else images, torch.tensor(kept)


def load_images(
    name: str,
    root: Path,
    paths: Sequence[Path],
    *,
    image_size: Sequence[int] | None = None,
    grey: bool = False,
    crop: Sequence[int] | None = None,
    skip_corrupt: bool = False,
) -> tuple[Tensor, Tensor]:
    """Read images through the cache, see `read_images`.

    Args:
        name: of the data set, for the cache.
        root: folder of the data set and of the cache.
        paths: files under root.
        image_size: (height, width), None keeps that of the files.
        grey: convert to one channel.
        crop: (top, left, height, width), cut before resizing.
        skip_corrupt: leave out files that cannot be decoded, and warn.
    """
    check_size(image_size)
    check_integers("crop", crop, {"top": 0, "left": 0, "height": 1, "width": 1})
    options = [CACHE_VERSION, name, image_size and list(image_size), grey, crop and list(crop), skip_corrupt]
    file = root / ".cache" / f"{name}-{_fingerprint(options, root, paths)}.images"
    result = load_cache(file)
    if result is None:
        log.info("decoding %d images of %s under %s", len(paths), name, root)
        result = read_images(paths, image_size=image_size, grey=grey, crop=crop, skip_corrupt=skip_corrupt)
        store_cache(file, *result)
    num_skipped = len(paths) - len(result[1])
    if num_skipped:
        first = min(set(range(len(paths))).difference(result[1].tolist()))
        log.warning(
            "skipped %d of %d images that cannot be decoded; the first is %s", num_skipped, len(paths), printable(paths[first])
        )
    return result


def _fingerprint(options: list[Any], root: Path, paths: Sequence[Path]) -> str:
    digest = hashlib.blake2b(json.dumps(options).encode(), digest_size=8)
    for path in paths:
        stat = path.stat()
        digest.update(os.fsencode(path.relative_to(root)) + f"\n{stat.st_size}\n{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
