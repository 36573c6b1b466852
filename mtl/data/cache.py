"""Decoded images on disk, read back only where every byte is as it was written.

A file is a header, the places `kept` as int64 and the pixels as uint8, little-endian. The header has a digest of all that follows, so that
a flipped bit, a torn file and a file of another kind are noticed, and the number of images and their shape.
"""

import hashlib
import logging
import os
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtl.base.files import atomic_write

log = logging.getLogger(__name__)
MAGIC = b"mtl-img1"
HEADER = struct.Struct("<8s32s4q")  # MAGIC, digest, images, channels, height, width


def load_cache(file: Path) -> tuple[Tensor, Tensor] | None:
    """The images and places that `store_cache` wrote; None where there is no file or, with a warning, a damaged one."""
    if not file.is_file():
        return None
    try:
        return _read(file)
    except (OSError, ValueError) as error:
        log.warning("cannot read the cache %s, decoding again: %s", file, error)
        return None


def store_cache(file: Path, images: Tensor, kept: Tensor) -> None:
    """Write a cache file, whole or not at all; warn where it cannot be written.

    Args:
        file: where to.
        images: uint8 [M, channels, height, width].
        kept: int64 [M], the places of the images in the list of files.
    """
    places, pixels = np.ascontiguousarray(kept.numpy(), "<i8"), np.ascontiguousarray(images.numpy())
    try:
        file.parent.mkdir(exist_ok=True)
        with atomic_write(file) as out:
            out.write(HEADER.pack(MAGIC, _digest(images.shape, places, pixels), *images.shape))
            out.write(places.data)
            out.write(pixels.data)
    except OSError as error:
        log.warning("cannot write the cache %s, going on without: %s", file, error)


def _read(file: Path) -> tuple[Tensor, Tensor]:
    with file.open("rb") as stream:
        header = stream.read(HEADER.size)
        if len(header) < HEADER.size or not header.startswith(MAGIC):
            raise ValueError("it is not a file of cached images")
        _, digest, *shape = HEADER.unpack(header)
        expected = HEADER.size + 8 * shape[0] + np.prod(shape, dtype=object)
        if min(shape) < 1 or os.fstat(stream.fileno()).st_size != expected:
            raise ValueError("it is torn")
        places = np.fromfile(stream, "<i8", shape[0])
        pixels = np.fromfile(stream, np.uint8, -1).reshape(shape)
    if _digest(shape, places, pixels) != digest:
        raise ValueError("its content is not what was written")
    return torch.from_numpy(pixels), torch.from_numpy(places.astype(np.int64, copy=False))


def _digest(shape: tuple[int, ...] | list[int], places: npt.NDArray[np.int64], pixels: npt.NDArray[np.uint8]) -> bytes:
    digest = hashlib.blake2b(repr(list(shape)).encode(), digest_size=32)
    digest.update(places.data)
    digest.update(pixels.data)
    return digest.digest()
