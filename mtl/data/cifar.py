"""CIFAR-10: 60,000 colour images of 32x32 in ten classes.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical report, University of Toronto, 2009.
"""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mtl.base.types import ImageData
from mtl.data.folders import list_class_folders
from mtl.data.images import (
    DataNotFound,
    Pixels,
    check_size,
    data_root,
    list_folders,
    load_images,
    no_attributes,
    not_found,
    to_pixels,
)

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# As torchvision's CIFAR10 names them.
BATCHES, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
LAYOUT = f"CIFAR-10 as {BATCHES}/ (torchvision's) or as class folders cifar10/{{train,test}}/<class>/*.jpg"
OBTAIN = (
    f"Set data.download=true, or unpack https://www.cs.toronto.edu/~kriz/{ARCHIVE} in data.root "
    "(cite Krizhevsky 2009; its authors state no licence). "
    f"With no network there, download {ARCHIVE} elsewhere and copy it into data.root."
)


def cifar10(
    root: str = "data", *, download: bool = False, image_size: tuple[int, int] | None = None, grey: bool = False
) -> ImageData:
    """CIFAR-10: 60,000 colour images of 10 classes, 32 x 32.

    uint8 [60000, 3, 32, 32], train (split 0), then test (2). Read from torchvision's layout, or else from class folders. Class
    numbers are the usual ones in both layouts, as the usual order is the alphabet's.

    Args:
        root: folder of data sets.
        download: let torchvision fetch what is missing into root.
        image_size: (height, width), None keeps 32 x 32.
        grey: convert to one channel.

    Raises:
        DataNotFound: where neither layout is there (a ValueError).
    """
    check_size(image_size)
    base = data_root(root)
    batches = [folder for folder in (base, base / "cifar10") if (folder / BATCHES).is_dir()]
    if batches or download:
        return _from_batches(root, batches[0] if batches else base, download, image_size, grey)
    for folder in (base / "cifar10", base):
        if folder.is_dir() and {"train", "test"} & {inner.name for inner in list_folders(folder)}:
            return _from_class_folders(base, folder, image_size, grey)
    raise not_found(root, [base / BATCHES, base / "cifar10", base], LAYOUT, OBTAIN)


def _from_batches(root: str, folder: Path, download: bool, image_size: tuple[int, int] | None, grey: bool) -> ImageData:
    try:
        with warnings.catch_warnings():
            # The files are pickles of numpy 1; numpy 2.4.0 to 2.4.4 warn of their dtypes, later ones do not.
            warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
            from torchvision.datasets import CIFAR10

            parts = [CIFAR10(str(folder), train=train, download=download) for train in (True, False)]
    except (OSError, RuntimeError) as error:  # no network; a file that is missing or has another checksum
        reason = f"torchvision cannot read {folder / BATCHES}: {error}"
        raise DataNotFound(f"data.root must hold {LAYOUT}; got {root!r}, {reason}. {OBTAIN}") from error
    assert all(tuple(part.classes) == CLASSES for part in parts)
    pixels: Pixels = np.concatenate([part.data for part in parts])
    if image_size is None and not grey:
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    else:
        images = torch.from_numpy(np.stack([to_pixels(Image.fromarray(picture), image_size, grey) for picture in pixels]))
    return ImageData(
        name="cifar10",
        images=images,
        classes=torch.tensor([target for part in parts for target in part.targets]),
        class_names=CLASSES,
        attributes=no_attributes(len(images)),
        attribute_names=(),
        source=str(folder / BATCHES),
        official_split=torch.tensor([0, 2], dtype=torch.int8).repeat_interleave(torch.tensor([len(part) for part in parts])),
    )


def _from_class_folders(base: Path, folder: Path, image_size: tuple[int, int] | None, grey: bool) -> ImageData:
    paths, classes, names, split = list_class_folders(folder)
    if names != CLASSES or split is None:
        raise ValueError(
            f"data.root must hold {LAYOUT}, with the classes {', '.join(CLASSES)}; got {folder} with {', '.join(names)}"
        )
    images, _ = load_images("cifar10", base, paths, image_size=image_size, grey=grey)
    return ImageData(
        name="cifar10",
        images=images,
        classes=classes,
        class_names=names,
        attributes=no_attributes(len(images)),
        attribute_names=(),
        source=str(folder),
        official_split=split,
    )
