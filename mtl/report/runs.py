"""Read one run directory into a `Run`, and note what an unfinished or killed run did not leave behind.

Only `config.yaml` is required. Any other file may be missing or torn: what can be read is read, and `Run.notes` says what
could not, so that a table never shows an absent number as a zero.
"""

import functools
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mtl.base.files import parse_yaml
from mtl.report.run_files import (
    Conflict,
    Detections,
    Federation,
    Predictions,
    Verified,
    finite_or_none,
    read_conflict,
    read_detections,
    read_federation,
    read_metrics,
    read_object,
    read_predictions,
    read_verified,
)

# What readers raise on a torn or foreign file; of a file that is no archive numpy's reader returns an array, which lacks its methods.
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error)


CHOSEN_BY = "fit/chosen_by"  # in `summary.json`, the name of the metric that chose the round: the only text among its numbers


def best_key(metric: str) -> str:
    """The key of `summary.json` for a validation metric such as `val/rank1`, of the chosen round."""
    return f"val/best_{metric.removeprefix('val/')}"


@dataclass(frozen=True)
class Run:
    """One run directory.

    Attributes:
        path: the directory.
        config: its configuration.
        environment: commit, machine and versions.
        curves: value by round by metric.
        summary: value by metric, None where undefined; without `CHOSEN_BY`.
        predictions, federation, conflict, detections: what the files of these names hold, None where there is none.
        notes: what is missing or could not be read.
        verified: what `mtl verify` wrote, by the name of the pairs.
    """

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    curves: dict[str, dict[int, float]]
    summary: dict[str, float | None]
    predictions: Predictions | None
    federation: Federation | None
    conflict: Conflict | None
    notes: tuple[str, ...]
    detections: Detections | None = None
    verified: Mapping[str, Verified] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name of the run, or that of its directory."""
        return str(self.config.get("name") or self.path.resolve().name)

    @property
    def target(self) -> float | None:
        """The accuracy on validation images that `target_accuracy` asks for."""
        target = self.config.get("target_accuracy")
        return float(target) if isinstance(target, int | float) else None

    def task_names(self, num_tasks: int) -> list[str]:
        """Names for the columns of an array [.., T].

        Args:
            num_tasks: T; columns are numbered where no file names as many.
        """
        if self.predictions is not None and len(self.predictions.tasks) == num_tasks:
            return list(self.predictions.tasks)
        named = self.task_metric("auroc")
        return list(named) if len(named) == num_tasks else [f"task {index}" for index in range(num_tasks)]

    def task_metric(self, metric: str) -> dict[str, float | None]:
        """`test/<task>/<metric>` of every task, in the order of the file."""
        start, end = "test/", f"/{metric}"
        named = {
            key[len(start) : -len(end)]: value
            for key, value in self.summary.items()
            if key.startswith(start) and key.endswith(end) and len(key) > len(start) + len(end)
        }
        trunk = self.config.get("trunk")
        trunks = trunk.get("trunks") if isinstance(trunk, Mapping) else None
        others = {f"trunk_{name}" for name in trunks} if isinstance(trunks, Mapping) else set()
        return {task: value for task, value in named.items() if task not in others}


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Find the run directories among `paths` and below those that are folders of runs, each once.

    Raises:
        ValueError: a path neither holds a `config.yaml` nor lies above one.
    """
    runs: dict[Path, Path] = {}
    for path in paths:
        below = list(_walk(path, set()))
        if not below:
            raise ValueError(f"expected a run directory, or a folder of them, each with a config.yaml, got {path}")
        for run in below:
            runs.setdefault(run.resolve(), run)
    return list(runs.values())


def _walk(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Run directories below a folder. seen: folders that were walked, since a link may lead to one above."""
    if (folder / "config.yaml").is_file():
        yield folder  # and nothing below it: the folders of a run hold configs of other programs
    elif folder.is_dir() and folder.resolve() not in seen:
        seen.add(folder.resolve())
        for child in sorted(folder.iterdir()):
            if child.is_dir() and not child.name.startswith("."):
                yield from _walk(child, seen)


def failed_runs(paths: Sequence[Path]) -> dict[Path, str]:
    """The run directories among `paths` and in those that are sweeps which hold an `error.txt`, with its first line."""
    files = {file for path in paths for file in (path / "error.txt", *path.glob("*/error.txt")) if file.is_file()}
    return {file.parent: _first_line(file) for file in sorted(files)}


def _first_line(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()


def read_run(path: Path, *, arrays: bool = True) -> Run:
    """Read the run directory `path`.

    Args:
        path: run directory.
        arrays: whether to read the npz files, which tables do not need.

    Raises:
        ValueError: there is no readable `config.yaml`, without which the numbers have no meaning.
    """
    if not (path / "config.yaml").is_file():
        raise ValueError(f"run directory must hold config.yaml, got {path} without one")
    notes: list[str] = []

    def read(name: str, reader: Callable[[Path], Any], default: Any) -> Any:
        if not (path / name).is_file():
            notes.append(f"{name} is missing")
            return default
        try:
            return reader(path / name)
        except UNREADABLE as error:
            notes.append(f"{name} could not be read ({type(error).__name__}: {error})")
            return default

    if (path / "error.txt").is_file():
        notes.append(f"the run failed: {_first_line(path / 'error.txt')}")
    curves, bad_lines = read("metrics.csv", read_metrics, ({}, 0))
    if bad_lines:
        notes.append(f"metrics.csv: {bad_lines} torn or unreadable line{'s'[: bad_lines > 1]} left out")
    return Run(
        path=path,
        config=_read_config(path / "config.yaml"),
        environment=read("environment.json", read_object, {}),
        curves=curves,
        summary={key: finite_or_none(value) for key, value in read("summary.json", read_object, {}).items() if key != CHOSEN_BY},
        predictions=read("predictions.npz", read_predictions, None) if arrays else None,
        federation=read("federation.npz", read_federation, None) if arrays else None,
        # Only runs that were asked for it have one.
        conflict=read("conflict.npz", read_conflict, None) if arrays and (path / "conflict.npz").is_file() else None,
        # So have they, and this one is of runs that detect.
        detections=read("detection.npz", read_detections, None) if arrays and (path / "detection.npz").is_file() else None,
        verified=read_verified(path, read) if arrays else {},
        notes=tuple(notes),
    )


# The page and the table of a report read the same files one after the other.
_parse = functools.lru_cache(maxsize=1024)(parse_yaml)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = _parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path} must be a YAML mapping, got {type(error).__name__}: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must be a YAML mapping, got a {type(config).__name__}")
    return {str(key): value for key, value in config.items()}
