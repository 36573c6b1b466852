"""Read one run directory into a `Run`, keeping note of what an unfinished or killed run did not leave behind.

Only `config.yaml` is required. Any other file may be missing or torn: what can be read is read, and `Run.notes` says what
could not, so that a table never shows an absent number as a zero.
"""

import csv
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

Array = NDArray[Any]


@dataclass(frozen=True)
class Predictions:
    """Test decisions of one run.

    scores: float [N, T], above zero is yes; targets, known: bool [N, T]; tasks: T names;
    identity: int [N], which of the first `num_exclusive` tasks, that exclude one another, is the true one, -1 for none. A file that
    does not say how many these are is of tasks that all do.
    """

    scores: Array
    targets: Array
    known: Array
    tasks: tuple[str, ...]
    identity: Array
    num_exclusive: int


@dataclass(frozen=True)
class Federation:
    """Who holds and who trains what: positives, negatives: int [C, T]; assignment: bool [C, T]; images: int [C]."""

    positives: Array
    negatives: Array
    assignment: Array
    images: Array


@dataclass(frozen=True)
class Conflict:
    """For each pair of tasks, [T, T]: mean cosine of their gradients, share of steps in which it is negative, number of steps;
    tasks: T names, those of the subtasks and of what else was balanced with them.
    """

    cosine: Array
    conflicting: Array
    steps: Array
    tasks: Array


@dataclass(frozen=True)
class Run:
    """One run directory. `curves[metric][round]` is a value; `summary` holds None where a metric is undefined."""

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    curves: dict[str, dict[int, float]]
    summary: dict[str, float | None]
    predictions: Predictions | None
    federation: Federation | None
    conflict: Conflict | None
    notes: tuple[str, ...]

    @property
    def label(self) -> str:
        return str(self.config.get("name") or self.path.resolve().name)

    def task_names(self, num_tasks: int) -> list[str]:
        """Names for the columns of an array [.., T]; numbers where no file names them."""
        if self.predictions is not None and len(self.predictions.tasks) == num_tasks:
            return list(self.predictions.tasks)
        named = self.task_metric("auroc")
        return list(named) if len(named) == num_tasks else [f"task {index}" for index in range(num_tasks)]

    def task_metric(self, metric: str) -> dict[str, float | None]:
        """`test/<task>/<metric>` of every task, in the order of the file."""
        start, end = "test/", f"/{metric}"
        return {
            key[len(start) : -len(end)]: value
            for key, value in self.summary.items()
            if key.startswith(start) and key.endswith(end) and len(key) > len(start) + len(end)
        }


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """The run directories among `paths` and below those of them that are folders of runs, each once.

    Raises ValueError where a path neither holds a `config.yaml` nor lies above one.
    """
    runs: dict[Path, None] = {}
    for path in paths:
        found = list(_walk(path))
        if not found:
            raise ValueError(f"expected a run directory, or a folder of them, each with a config.yaml, got {path}")
        runs |= dict.fromkeys(found)
    return list(runs)


def _walk(folder: Path) -> Iterator[Path]:
    if (folder / "config.yaml").is_file():
        yield folder  # and nothing below it: the folders of a run hold configs of other programs
    elif folder.is_dir():
        for child in sorted(folder.iterdir()):
            if child.is_dir() and not child.name.startswith("."):
                yield from _walk(child)


def read_run(path: Path, *, arrays: bool = True) -> Run:
    """Read the run directory `path`; `arrays=False` leaves the two npz files alone (tables do not need them).

    Raises ValueError where there is no readable `config.yaml`, since without it the numbers have no meaning.
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
        except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
            notes.append(f"{name} could not be read ({type(error).__name__}: {error})")
            return default

    curves, bad_lines = read("metrics.csv", _read_metrics, ({}, 0))
    if bad_lines:
        notes.append(f"metrics.csv: {bad_lines} torn or unreadable line{'s'[: bad_lines > 1]} left out")
    return Run(
        path=path,
        config=_read_config(path / "config.yaml"),
        environment=read("environment.json", _read_object, {}),
        curves=curves,
        summary={key: _finite_or_none(value) for key, value in read("summary.json", _read_object, {}).items()},
        predictions=read("predictions.npz", _read_predictions, None) if arrays else None,
        federation=read("federation.npz", _read_federation, None) if arrays else None,
        # Only runs that were asked for it have one.
        conflict=read("conflict.npz", _read_conflict, None) if arrays and (path / "conflict.npz").is_file() else None,
        notes=tuple(notes),
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # the YAML and OmegaConf errors share no base class below Exception
        raise ValueError(f"{path} must be a YAML mapping, got {type(error).__name__}: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must be a YAML mapping, got a {type(config).__name__}")
    return {str(key): value for key, value in config.items()}


def _read_object(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got a {type(value).__name__}")
    return value


def _finite_or_none(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _read_metrics(path: Path) -> tuple[dict[str, dict[int, float]], int]:
    """Curves by metric, and the number of lines left out. A round written twice (after a resume) keeps the later value."""
    curves: dict[str, dict[int, float]] = {}
    bad_lines = 0
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for line in lines:
        # A line without its end is torn even where it parses: 0.4 may have been 0.4123.
        fields = next(csv.reader([line])) if line.endswith("\n") else []
        if fields == ["round", "metric", "value"] or line.isspace():
            continue
        try:
            round_text, metric, value_text = fields
            round_number, value = int(float(round_text)), float(value_text) if value_text not in ("", "None") else math.nan
        except (ValueError, OverflowError):
            bad_lines += 1
            continue
        if math.isfinite(value):
            curves.setdefault(metric, {})[round_number] = value
    return {metric: dict(sorted(points.items())) for metric, points in curves.items()}, bad_lines


def _read_predictions(path: Path) -> Predictions:
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        tasks = tuple(str(task) for task in file["tasks"])
        num_exclusive = int(file["num_exclusive"]) if "num_exclusive" in file else len(tasks)
        predictions = Predictions(file["scores"], file["targets"], file["known"], tasks, file["identity"], num_exclusive)
    shape = (len(predictions.identity), len(tasks))
    _check_shapes(predictions.__dict__, ("scores", "targets", "known"), shape)
    return predictions


def _read_federation(path: Path) -> Federation:
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        federation = Federation(file["positives"], file["negatives"], file["assignment"], file["images"])
    if federation.positives.ndim != 2:
        raise ValueError(f"positives must be [C, T], got shape {federation.positives.shape}")
    _check_shapes(federation.__dict__, ("negatives", "assignment"), federation.positives.shape)
    _check_shapes(federation.__dict__, ("images",), federation.positives.shape[:1])
    return federation


def _read_conflict(path: Path) -> Conflict:
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        conflict = Conflict(file["cosine"], file["conflicting"], file["steps"], file["tasks"])
    if conflict.steps.ndim != 2 or conflict.steps.shape[0] != conflict.steps.shape[1]:
        raise ValueError(f"steps must be [T, T], got shape {conflict.steps.shape}")
    _check_shapes(conflict.__dict__, ("cosine", "conflicting"), conflict.steps.shape)
    _check_shapes(conflict.__dict__, ("tasks",), conflict.steps.shape[:1])
    return conflict


def _check_shapes(arrays: Mapping[str, Any], names: tuple[str, ...], shape: tuple[int, ...]) -> None:
    for name in names:
        if arrays[name].shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {arrays[name].shape}")
