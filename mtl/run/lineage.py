"""Whose pictures a run was trained on: its own data, and those of the runs that it learned from, found through their run directories.

weights, start     its parameters began as those of another run, which may itself have begun as others'
distil.teacher     another run's model taught it; what that was trained on, and from, counts too
transfer.source    the pictures of another run were trained along; what that run's model began as does not count
server.images      pictures without labels that the server trained on
data.root          class folders (data=folder) may show the people to verify, or be links to their pictures
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from mtl.data.folders import list_class_folders
from mtl.data.pairs import read_pairs
from mtl.run.build import read_config

MODELS = ("weights", "start", "distil.teacher")
PUBLISHED = re.compile(r"(\w+\.)?[A-Z][A-Z0-9_]*")  # torchvision's names of weights


@dataclass(frozen=True)
class TrainingData:
    """config: of a data set that was trained on; path: how the run came to it, as `runs/b > weights=runs/a`."""

    config: DictConfig
    path: str

    @property
    def loader(self) -> str:
        """The name of what reads it, as `celeba`."""
        return str(self.config.get("_target_", "")).rpartition(".")[2]


@dataclass(frozen=True)
class Lineage:
    """data: all that is known to have been trained on; unknown: sentences, one for each place where that cannot be followed."""

    data: tuple[TrainingData, ...]
    unknown: tuple[str, ...]


def trace(run_dir: Path) -> Lineage:
    """Follow a run to all that its parameters were trained on. Raises ValueError where `run_dir` itself is no run."""
    read_config(run_dir)
    data: list[TrainingData] = []
    unknown: list[str] = []
    _follow(run_dir, str(run_dir), (), data, unknown)
    return Lineage(tuple(data), tuple(unknown))


def check_unseen(run_dir: Path, pairs: str, source: str, *, allow_unknown: bool = False) -> Lineage:
    """Refuse a run that was trained on the people of the pairs, or of which that cannot be told.

    pairs, source: lfw and its pairs.txt, or celeba, whose pairs are of its test part, and its folder. Raises ValueError with the way from
    the run to what it was trained on; with `allow_unknown` what cannot be followed is returned, and no error.
    """
    lineage = trace(run_dir)
    unknown = list(lineage.unknown)
    for data in lineage.data:
        shown = None
        if data.loader == pairs == "lfw":
            shown = "data=lfw; train on other data"
        elif data.loader == pairs == "celeba" and data.config.get("part") not in ("train", "val"):
            shown = f"data.part={data.config.get('part')}; use data.part=train"
        elif data.loader == "given":
            unknown.append(f"{data.path}: its images were given from Python, and whom they show cannot be told")
        elif data.loader == "folder":
            root = Path(str(data.config.root)).expanduser()
            if not root.is_dir():
                unknown.append(f"{data.path}: data.root={root} is not there, and whom it showed cannot be told")
                continue
            known = _people_of_lfw(root, Path(source)) if pairs == "lfw" else _test_part_of_celeba(root, Path(source))
            if known:
                shown = f"data.root={root}, which shows {', '.join(known[:3])}{', ...' * (len(known) > 3)}"
        if shown is not None:
            raise ValueError(f"verification is of people never seen, and this run was trained on {shown} (by {data.path})")
    if unknown and not allow_unknown:
        raise ValueError(
            f"verification is of people never seen, and of this run that cannot be told: {'; '.join(unknown)}. Put back what is missing, "
            "or say --allow-unknown, which marks the result"
        )
    return Lineage(lineage.data, tuple(unknown))


def _follow(run: Path, path: str, above: tuple[Path, ...], data: list[TrainingData], unknown: list[str]) -> None:
    here = run.resolve()
    if here in above:
        unknown.append(f"{path} is a circle: a run of it was written over, and what was there before is not known")
        return
    try:
        config = read_config(run)
    except ValueError as error:
        unknown.append(f"{path} cannot be followed: {error}")
        return
    data += [TrainingData(found, path) for found in _data_of(config)]
    source = OmegaConf.select(config, "transfer.source")
    if source:
        try:
            data.append(TrainingData(read_config(Path(source)).data, f"{path} > transfer.source={source}"))
        except ValueError as error:
            unknown.append(f"{path} > transfer.source={source} cannot be followed: {error}")
    for option in MODELS:
        value = OmegaConf.select(config, option)
        if not value:
            continue
        step = f"{path} > {option}={value}"
        origin = Path(str(value)).expanduser()
        if origin.is_file():
            # A checkpoint lies in a folder of its run directory.
            if not (origin.resolve().parents[1] / "config.yaml").is_file():
                unknown.append(f"{step} is a file, which does not say what it was trained on")
                continue
            origin = origin.resolve().parents[1]
        elif not origin.exists() and option == "weights" and PUBLISHED.fullmatch(str(value)):
            continue  # of pictures of things, ImageNet
        _follow(origin, step, (*above, here), data, unknown)


def _data_of(config: DictConfig) -> Iterator[DictConfig]:
    """What the run reads itself."""
    for option in ("data", "server.images"):
        found = OmegaConf.select(config, option)
        if isinstance(found, DictConfig):
            yield found


def _people_of_lfw(root: Path, pairs_file: Path) -> list[str]:
    """The class folders that are named like people of the pairs, wherever they lie."""
    people = {name for first, second, _ in read_pairs(pairs_file) for name, _ in (first, second)}
    return sorted(people.intersection(list_class_folders(root)[2]))


def _test_part_of_celeba(root: Path, folder: Path) -> list[str]:
    """The pictures of CelebA's test part that are in class folders, themselves or by links."""
    lines = map(str.split, (folder / "list_eval_partition.txt").read_text(encoding="utf-8-sig").splitlines())
    test = {words[0] for words in lines if words[1:] == ["2"]}
    pictures = (folder / "img_align_celeba").resolve()
    found = (path.resolve() for path in list_class_folders(root)[0])
    return sorted(path.name for path in found if path.name in test and path.parent == pictures)
