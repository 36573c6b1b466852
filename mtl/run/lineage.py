"""The data that a run was trained on, directly or through other runs, read from run directories.

weights, start     training started from the parameters of another run, which is followed in the same way
distil.teacher     the model of another run was the teacher; it is followed too
transfer.source    pictures of another run were added to the training data; the model of that run does not count
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
    """A data set that a run was trained on.

    Attributes:
        config: of the data set.
        path: the way to it from the run, such as `runs/b > weights=runs/a`.
    """

    config: DictConfig
    path: str

    @property
    def loader(self) -> str:
        """Name of the function that reads it, such as `celeba`."""
        return str(self.config.get("_target_", "")).rpartition(".")[2]


@dataclass(frozen=True)
class Lineage:
    """What a run was trained on.

    Attributes:
        data: the data sets that are known.
        unknown: sentences, one for each place where the training data cannot be known.
    """

    data: tuple[TrainingData, ...]
    unknown: tuple[str, ...]


def trace(run_dir: Path) -> Lineage:
    """Follow a run to all data that its parameters were trained on; raises ValueError where `run_dir` is not a run."""
    read_config(run_dir)
    data: list[TrainingData] = []
    unknown: list[str] = []
    _follow(run_dir, str(run_dir), (), data, unknown)
    return Lineage(tuple(data), tuple(unknown))


def check_unseen(run_dir: Path, pairs: str, source: str, *, allow_unknown: bool = False) -> Lineage:
    """Refuse a run that was trained on people of the verification pairs.

    Args:
        run_dir: the run.
        pairs: lfw, or celeba, whose pairs are of its test part.
        source: pairs.txt of lfw, or the folder of celeba.
        allow_unknown: accept a run whose training data are partly unknown.

    Returns:
        What the run was trained on.

    Raises:
        ValueError: the run was trained on such people, with the way from the run to these data; or that cannot be known.
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
            unknown.append(f"{data.path}: its images were given from Python, and whom they show is not known")
        elif data.loader == "folder":
            root = Path(str(data.config.root)).expanduser()
            if not root.is_dir():
                unknown.append(f"{data.path}: data.root={root} is not there, and whom it showed is not known")
                continue
            people = _people_of_lfw(root, Path(source)) if pairs == "lfw" else _test_part_of_celeba(root, Path(source))
            if people:
                shown = f"data.root={root}, which shows {', '.join(people[:3])}{', ...' * (len(people) > 3)}"
        if shown is not None:
            raise ValueError(
                f"verification needs people that were never trained on, and this run was trained on {shown} (by {data.path})"
            )
    if unknown and not allow_unknown:
        raise ValueError(
            f"verification needs people that were never trained on, and for this run that is not known: {'; '.join(unknown)}. "
            "Put back what is missing, or use --allow-unknown, which marks the result"
        )
    return Lineage(lineage.data, tuple(unknown))


def _follow(run: Path, path: str, above: tuple[Path, ...], data: list[TrainingData], unknown: list[str]) -> None:
    here = run.resolve()
    if here in above:
        unknown.append(f"{path} is a circle: one of its runs was overwritten, and the earlier one is not known")
        return
    try:
        config = read_config(run)
    except ValueError as error:
        unknown.append(f"{path} cannot be followed: {error}")
        return
    data += [TrainingData(node, path) for node in _data_of(config)]
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
            continue  # trained on ImageNet, pictures of objects
        _follow(origin, step, (*above, here), data, unknown)


def _data_of(config: DictConfig) -> Iterator[DictConfig]:
    """The data sets that the run reads itself."""
    for option in ("data", "server.images"):
        node = OmegaConf.select(config, option)
        if isinstance(node, DictConfig):
            yield node


def _people_of_lfw(root: Path, pairs_file: Path) -> list[str]:
    """The class folders that are named like people of the pairs."""
    people = {name for first, second, _ in read_pairs(pairs_file) for name, _ in (first, second)}
    return sorted(people.intersection(list_class_folders(root)[2]))


def _test_part_of_celeba(root: Path, folder: Path) -> list[str]:
    """The pictures of CelebA's test part that are in class folders, themselves or by links."""
    lines = map(str.split, (folder / "list_eval_partition.txt").read_text(encoding="utf-8-sig").splitlines())
    test = {words[0] for words in lines if words[1:] == ["2"]}
    pictures = (folder / "img_align_celeba").resolve()
    paths = (path.resolve() for path in list_class_folders(root)[0])
    return sorted(path.name for path in paths if path.name in test and path.parent == pictures)
