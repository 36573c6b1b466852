"""Class folders: one folder of images per class, with or without train/, val/ and test/ above them."""

import filecmp
import hashlib
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mtl.base.types import ImageData
from mtl.data.images import (
    EXTENSIONS,
    data_root,
    list_folders,
    list_images,
    list_others,
    load_images,
    no_attributes,
    not_found,
    printable,
)

log = logging.getLogger(__name__)
# The usual names of the parts, in any letter case.
SPLITS = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "test": 2, "testing": 2}
PARTS = ("train", "val", "test")


def list_class_folders(root: Path) -> tuple[list[Path], Tensor, tuple[str, ...], Tensor | None]:
    """Files, classes [N], class names by alphabet, and split [N] of `<class>/*` or `{train,val,test}/<class>/*`.

    What is ignored is counted in a line of the log. No files where the root has no sub-folders.

    Raises:
        ValueError: where a class folder holds no image or has a name that is not UTF-8, and where two folders are the same part.
    """
    folders = [(folder, -1) for folder in list_folders(root)]
    has_splits = bool(folders) and all(folder.name.lower() in SPLITS and list_folders(folder) for folder, _ in folders)
    others = list_others(root, folders=True)
    if has_splits:
        parts = sorted((SPLITS[folder.name.lower()], folder) for folder, _ in folders)
        for (split, folder), (after, other) in itertools.pairwise(parts):
            if split == after:
                raise ValueError(f"data.root must hold one folder for {PARTS[split]}, got both {folder} and {other}")
        folders = [(inner, split) for split, part in parts for inner in list_folders(part)]
        others += [path for _, part in parts for path in list_others(part, folders=True)]
    for folder, _ in folders:
        if printable(folder.name) != folder.name:
            raise ValueError(
                f"data.root must hold class folders with names in UTF-8, got {printable(folder.name)!r} in {printable(folder.parent)}"
            )
    names = tuple(sorted({folder.name for folder, _ in folders}))
    paths: list[Path] = []
    classes: list[int] = []
    splits: list[int] = []
    for folder, split in folders:
        images_of_class = list_images(folder)
        if not images_of_class:
            raise ValueError(
                f"data.root must hold class folders with images in each, got {folder} with none ({' '.join(sorted(EXTENSIONS))})"
            )
        paths += images_of_class
        others += list_others(folder, folders=False)
        classes += [names.index(folder.name)] * len(images_of_class)
        splits += [split] * len(images_of_class)
    _log_others(root, others)
    return paths, torch.tensor(classes), names, torch.tensor(splits, dtype=torch.int8) if has_splits else None


def _log_others(root: Path, others: list[Path]) -> None:
    """Log what is ignored, by kind, with the name of the first of each."""
    kinds: dict[str, list[Path]] = {}
    for path in others:
        kind = "hidden" if path.name.startswith(".") else "folders" if path.is_dir() else path.suffix.lower() or "no extension"
        kinds.setdefault(kind, []).append(path)
    if others:
        counts = (f"{len(kinds[kind])} {kind} ({printable(kinds[kind][0].relative_to(root))})" for kind in sorted(kinds))
        log.info("ignored in %s, with the first of each kind: %s", printable(root), ", ".join(counts))


def warn_of_copies(paths: Sequence[Path], images: Tensor, classes: Tensor, split: Tensor | None) -> None:
    """Warn of files with the same content under two classes, in two parts, or, where the parts are not drawn yet, anywhere.

    Files are compared only where their decoded images are equal.

    Args:
        paths: the files.
        images: uint8 [N, ...], decoded.
        classes: int64 [N].
        split: int8 [N], None where the parts are not drawn yet.
    """
    places_by_digest: dict[bytes, list[int]] = {}
    for place, image in enumerate(images.numpy()):
        places_by_digest.setdefault(hashlib.blake2b(image.data, digest_size=16).digest(), []).append(place)
    copies: dict[str, list[tuple[int, int]]] = {"under two classes": [], "in two parts": [], "in one class": []}
    for places in places_by_digest.values():
        firsts: list[int] = []
        for place in places:
            first = next((one for one in firsts if filecmp.cmp(paths[one], paths[place], shallow=False)), None)
            if first is None:
                firsts.append(place)
            elif classes[first] != classes[place]:
                copies["under two classes"].append((first, place))
            elif split is None:
                copies["in one class"].append((first, place))
            elif split[first] != split[place]:
                copies["in two parts"].append((first, place))
    for where, pairs in copies.items():
        if pairs:
            first, place = pairs[0]
            message = "%d files are copies of others %s, so that an image may be trained and tested on: the first are %s and %s"
            log.warning(message, len(pairs), where, printable(paths[first]), printable(paths[place]))


def folder(
    root: str = "data", *, image_size: tuple[int, int] | None = (64, 64), grey: bool = False, skip_corrupt: bool = False
) -> ImageData:
    """Your own images, in a folder for each class: `<root>/<class>/*`.

    Or `<root>/{train,val,test}/<class>/*`, which gives the official split (`training`, `valid`, `validation` and `testing` are read
    too, in any letter case). Hidden files and other extensions are ignored, and named in the log; files with the same content in
    two parts or under two classes cause a warning.

    Args:
        root: the folder that holds the class folders.
        image_size: (height, width), None keeps the size that all images share.
        grey: convert to one channel.
        skip_corrupt: leave out files that cannot be decoded, and warn.

    Raises:
        DataNotFound: where there is no class folder (a ValueError).
        ValueError: for a class folder without images or for a corrupt image.
    """
    base = data_root(root)
    paths, classes, names, split = list_class_folders(base) if base.is_dir() else ([], torch.empty(0), (), None)
    if not paths:
        layout = "one folder of images per class, <class>/*.jpg, or these in train/, val/ and test/"
        raise not_found(root, [base], layout, f"Put your images there ({' '.join(sorted(EXTENSIONS))}).")
    images, kept = load_images("folder", base, paths, image_size=image_size, grey=grey, skip_corrupt=skip_corrupt)
    split = None if split is None else split[kept]
    warn_of_copies([paths[place] for place in kept.tolist()], images, classes[kept], split)
    return ImageData(
        name="folder",
        images=images,
        classes=classes[kept],
        class_names=names,
        attributes=no_attributes(len(images)),
        attribute_names=(),
        source=str(base),
        official_split=split,
    )
