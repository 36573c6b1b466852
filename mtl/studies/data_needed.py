"""Whether the data sets of a study are at hand, and where they are to be had (`data/README.md` has their layout and terms)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mtl.run.options import nearest


@dataclass(frozen=True)
class DataSet:
    """A data set: one of `marks` is in the folder of the data where it is there, and how to get it."""

    marks: tuple[str, ...]
    obtain: str


DATA_SETS = {
    "celeba": DataSet(
        ("celeba/img_align_celeba", "img_align_celeba"),
        "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (non-commercial research only)",
    ),
    "lfw": DataSet(
        ("lfw/pairs.txt", "lfw-deepfunneled/pairs.txt", "lfw_funneled/pairs.txt", "pairs.txt", "lfw-py/pairs.txt"),
        "https://vis-www.cs.umass.edu/lfw/, the pictures and pairs.txt (for research)",
    ),
    "cifar10": DataSet(
        ("cifar-10-batches-py", "cifar10/train", "train/airplane"),
        "https://www.cs.toronto.edu/~kriz/cifar.html, or mtl train data=cifar10 data.download=true",
    ),
    "widerface": DataSet(("widerface/wider_face_split",), "http://shuoyang1213.me/WIDERFACE/ (for research)"),
}


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError for the name of an unknown data set."""
    for name in names:
        if name not in DATA_SETS:
            raise ValueError(f"data must be among {', '.join(DATA_SETS)}, got {name}{nearest(name, DATA_SETS)}")


def missing_data(names: Sequence[str], folder: Path) -> list[str]:
    """A line for each data set that is not in `folder`: what was expected there, and where it is to be had."""
    lines = []
    for name in names:
        data_set = DATA_SETS[name]
        if not any((folder / mark).exists() for mark in data_set.marks):
            lines.append(f"{name} is not in {folder} (expected {folder / data_set.marks[0]}); get it from {data_set.obtain}")
    return lines
