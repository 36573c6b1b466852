"""Class folders: one folder of images per class, with or without train/, val/ and test/ above them."""

from pathlib import Path

import torch
from torch import Tensor

from mtl.data.images import EXTENSIONS, data_root, list_folders, list_images, load_images, no_attributes, not_found
from mtl.types import ImageData

SPLITS = {"train": 0, "val": 1, "test": 2}


def list_class_folders(root: Path) -> tuple[list[Path], Tensor, tuple[str, ...], Tensor | None]:
    """Files, classes [N], class names by alphabet, and split [N] of `<class>/*` or `{train,val,test}/<class>/*`.

    No files where the root has no sub-folders. Raises ValueError where a class folder holds no image.
    """
    folders = [(folder, -1) for folder in list_folders(root)]
    has_splits = bool(folders) and all(folder.name in SPLITS and list_folders(folder) for folder, _ in folders)
    if has_splits:
        folders = [
            (inner, split) for name, split in SPLITS.items() if (root / name).is_dir() for inner in list_folders(root / name)
        ]
    names = tuple(sorted({folder.name for folder, _ in folders}))
    paths: list[Path] = []
    classes: list[int] = []
    splits: list[int] = []
    for folder, split in folders:
        found = list_images(folder)
        if not found:
            raise ValueError(
                f"data.root must hold class folders with images in each, got {folder} with none ({' '.join(sorted(EXTENSIONS))})"
            )
        paths += found
        classes += [names.index(folder.name)] * len(found)
        splits += [split] * len(found)
    return paths, torch.tensor(classes), names, torch.tensor(splits, dtype=torch.int8) if has_splits else None


def folder(
    root: str = "data", *, image_size: tuple[int, int] | None = (64, 64), grey: bool = False, skip_corrupt: bool = False
) -> ImageData:
    """Your own images: `<root>/<class>/*`, or `<root>/{train,val,test}/<class>/*`, which gives the official split.

    image_size: (height, width), None keeps the size that all images share. skip_corrupt: leave out files that cannot be decoded,
    and warn. Hidden files and other extensions are passed over. Raises DataNotFound (a ValueError) where there is no class
    folder, and ValueError for a class folder without images or for a corrupt image.
    """
    base = data_root(root)
    paths, classes, names, split = list_class_folders(base) if base.is_dir() else ([], torch.empty(0), (), None)
    if not paths:
        layout = "one folder of images per class, <class>/*.jpg, or these in train/, val/ and test/"
        raise not_found(root, [base], layout, f"Put your images there ({' '.join(sorted(EXTENSIONS))}).")
    images, kept = load_images("folder", base, paths, image_size=image_size, grey=grey, skip_corrupt=skip_corrupt)
    return ImageData(
        name="folder",
        images=images,
        classes=classes[kept],
        class_names=names,
        attributes=no_attributes(len(images)),
        attribute_names=(),
        source=str(base),
        official_split=None if split is None else split[kept],
    )
