"""Pairs of face pictures for verification: do the two show the same person?

LFW's View 2 (Huang et al. 2007) is ten folds of 300 pairs of the same person and 300 of different people, no person in two folds; the
folds are as the file has them and never shuffled. `unseen_pairs` makes such folds from any data with identities.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mtl.base.seeding import generator
from mtl.base.types import ImageData
from mtl.data.faces import lfw_folders
from mtl.data.images import data_root, load_images, not_found
from mtl.data.lists import read_lines

Picture = tuple[str, int]  # a person and the number of the picture


@dataclass(frozen=True)
class Pairs:
    """Pairs of face pictures in folds.

    Attributes:
        name: of the data set.
        images: uint8 [M, c, H, W].
        first: int64 [P], index of the first picture.
        second: int64 [P], index of the second picture.
        same: bool [P], whether both show one person.
        fold: int64 [P].
        source: where the pictures and pairs come from.
    """

    name: str
    images: Tensor
    first: Tensor
    second: Tensor
    same: Tensor
    fold: Tensor
    source: str

    def __len__(self) -> int:
        return len(self.same)


def lfw_pairs(
    root: str = "data",
    *,
    image_size: Sequence[int] | None = (64, 64),
    crop: Sequence[int] | None = None,
    grey: bool = False,
) -> Pairs:
    """LFW's `pairs.txt` and the pictures that it names, `<Person>/<Person>_0001.jpg`.

    Looked for in the folders of `faces.lfw` and in those under `<root>/lfw-py`, where torchvision has them; the file may be in the
    folder of the people or above it.

    Args:
        root: folder of data sets.
        image_size: (height, width), None keeps that of the files.
        crop: (top, left, height, width), cut before resizing.
        grey: convert to one channel.

    Raises:
        DataNotFound: where there is no such file (a ValueError).
        ValueError: where a line of it cannot be read, or where pictures that it names are missing, which lists all of them.
    """
    base = data_root(root)
    looked = [*lfw_folders(base), *lfw_folders(base / "lfw-py")]
    lists = [
        (folder, file) for folder in looked for file in (folder / "pairs.txt", folder.parent / "pairs.txt") if file.is_file()
    ]
    if not lists:
        obtain = "Get both from https://vis-www.cs.umass.edu/lfw/ (for research; its authors state no licence)."
        raise not_found(root, looked, "LFW's pairs.txt next to [lfw/]<Person>/<Person>_0001.jpg", obtain)
    lines = read_pairs(lists[0][1])
    names = sorted({picture for first, second, _ in lines for picture in (first, second)})
    paths_by_folder = {folder: [_path(folder, name) for name in names] for folder, _ in lists if folder.is_dir()}
    missing = {folder: [path for path in paths if not path.is_file()] for folder, paths in paths_by_folder.items()}
    folder = min(missing, key=lambda folder: len(missing[folder]), default=None)
    if folder is None or missing[folder]:
        absent = [] if folder is None else [str(path.relative_to(folder)) for path in missing[folder]]
        if len(absent) == len(names):
            raise ValueError(
                f"{lists[0][1]} names {len(names)} pictures, and none of them is in {folder}: the first is {absent[0]}, letter case counts"
            )
        raise ValueError(
            f"{lists[0][1]} names {len(names)} pictures, and {len(absent)} of them are missing in {folder}: {', '.join(absent)}"
        )
    place = {name: number for number, name in enumerate(names)}
    images, _ = load_images("lfw-pairs", base, paths_by_folder[folder], image_size=image_size, crop=crop, grey=grey)
    return Pairs(
        name="lfw",
        images=images,
        first=torch.tensor([place[first] for first, _, _ in lines]),
        second=torch.tensor([place[second] for _, second, _ in lines]),
        same=torch.tensor([first[0] == second[0] for first, second, _ in lines]),
        fold=torch.tensor([fold for *_, fold in lines]),
        source=str(lists[0][1]),
    )


def read_pairs(file: Path) -> list[tuple[Picture, Picture, int]]:
    """The pairs of LFW's file, each with the number of its fold.

    The first line has the folds and the pairs of each kind in a fold; then for each fold `person 1 4`, two pictures of one person,
    and `person 1 other 2`, pictures of two.

    Raises:
        ValueError: for the first line of another form.
    """
    rows = [line.split() for line in read_lines(file) if line.strip()]
    if not rows or len(rows[0]) != 2 or not all(word.isdigit() and int(word) for word in rows[0]):
        raise ValueError(f"{file} must begin with the number of folds and of pairs of each kind in a fold, got {rows[:1]}")
    num_folds, num_pairs = map(int, rows[0])
    if len(rows) != 1 + 2 * num_folds * num_pairs:
        raise ValueError(
            f"{file} must have {2 * num_folds * num_pairs} pairs, {num_folds} folds of {num_pairs} of each kind, got {len(rows) - 1}"
        )
    pairs = []
    for number, row in enumerate(rows[1:]):
        fold, within = divmod(number, 2 * num_pairs)
        is_same = within < num_pairs
        words = [row[0], row[1], row[0], row[2]] if is_same and len(row) == 3 else row
        if len(row) != (3 if is_same else 4) or not (words[1].isdigit() and words[3].isdigit()):
            layout = "person, number, number" if is_same else "person, number, other person, number"
            raise ValueError(f"{file} must have in line {number + 2} {layout}, got {' '.join(row)!r}")
        if not is_same and words[0] == words[2]:
            raise ValueError(f"{file} must name two people in line {number + 2}, got {' '.join(row)!r}")
        pairs.append(((words[0], int(words[1])), (words[2], int(words[3])), fold))
    return pairs


def unseen_pairs(data: ImageData, *, num_folds: int = 10, pairs_per_fold: int = 300, seed: int = 0) -> Pairs:
    """Folds of random pairs of the people in `data`, no person in two folds.

    Each fold has as many pairs of one person as of two, drawn without replacement.

    Args:
        data: pictures with identities.
        num_folds: number of folds.
        pairs_per_fold: pairs of each kind in a fold, or all that there are where they are fewer.
        seed: of the random draws.

    Raises:
        ValueError: where there are not enough people or pictures.
    """
    people = data.classes[data.classes >= 0].unique()
    if len(people) < 2 * num_folds:
        raise ValueError(f"{num_folds} folds need at least {2 * num_folds} people, and {data.name} has {len(people)}")
    rng = generator(seed, "pairs")
    parts = people[torch.randperm(len(people), generator=rng)].tensor_split(num_folds)
    first, second, same, folds = [], [], [], []
    for fold, part in enumerate(parts):
        images = torch.isin(data.classes, part).nonzero().flatten()
        every = torch.combinations(images)
        alike = data.classes[every[:, 0]] == data.classes[every[:, 1]]
        kinds = [every[alike], every[~alike]]
        number = min(pairs_per_fold, *map(len, kinds))
        if not number:
            raise ValueError(f"each fold needs two pictures of one person, and the {len(part)} people of a fold have one each")
        for kind, is_same in zip(kinds, (True, False), strict=True):
            chosen = kind[torch.randperm(len(kind), generator=rng)[:number]]
            first.append(chosen[:, 0])
            second.append(chosen[:, 1])
            same.append(torch.full((number,), is_same))
            folds.append(torch.full((number,), fold))
    used, places = torch.cat([*first, *second]).unique(return_inverse=True)
    half = len(places) // 2
    return Pairs(
        name=data.name,
        images=data.images[used],
        first=places[:half],
        second=places[half:],
        same=torch.cat(same),
        fold=torch.cat(folds),
        source=data.source,
    )


def _path(folder: Path, picture: Picture) -> Path:
    person, number = picture
    return folder / person / f"{person}_{number:04d}.jpg"
