"""Read one run directory into a `Run`, keeping note of what an unfinished or killed run did not leave behind.

Only `config.yaml` is required. Any other file may be missing or torn: what can be read is read, and `Run.notes` says what
could not, so that a table never shows an absent number as a zero.
"""

import csv
import functools
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

Array = NDArray[Any]
# What a torn or foreign file makes of its readers; a file that is no archive gives numpy's reader an array, of other methods.
SCORES = ("joined", "trained", "untrained", "pixels")  # of a verification, in the order in which they are shown
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error)


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
class Detections:
    """Faces found in the test scenes.

    scores, hits: [D], of every face that was found, and whether it stands for a true one; num_faces: of true ones; confidence: score from
    which a face counts as found. Of some scenes: images: uint8 [S, c, H, W]; found_scene [F], of images; found_boxes [F, 4] as (left, top,
    right, bottom); found_names [F], "" for none; found_place [F], which true box each stands for, or -1; true_scene [M]; true_boxes [M, 4];
    true_names [M].
    """

    scores: Array
    hits: Array
    num_faces: int
    confidence: float
    images: Array
    found_scene: Array
    found_boxes: Array
    found_names: Array
    found_place: Array
    true_scene: Array
    true_boxes: Array
    true_names: Array


@dataclass(frozen=True)
class Verified:
    """What `mtl verify` wrote: rates: by score, what `verification-<pairs>.json` says; curves: by score, the false accept and the false
    reject rates of all thresholds, empty where their file is missing; about: pairs, folds, round and where the pairs come from.
    """

    about: dict[str, Any]
    rates: dict[str, dict[str, float | None]]
    curves: dict[str, tuple[Array, Array]]


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
    detections: Detections | None = None
    verified: Mapping[str, Verified] = field(default_factory=dict)

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
        """`test/<task>/<metric>` of every task, in the order of the file; `test/trunk_<name>/` is of an architecture of clients."""
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
    """The run directories among `paths` and below those of them that are folders of runs, each once.

    Raises ValueError where a path neither holds a `config.yaml` nor lies above one.
    """
    runs: dict[Path, Path] = {}
    for path in paths:
        found = list(_walk(path, set()))
        if not found:
            raise ValueError(f"expected a run directory, or a folder of them, each with a config.yaml, got {path}")
        for run in found:
            runs.setdefault(run.resolve(), run)
    return list(runs.values())


def _walk(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """seen: folders that were walked, since a link may lead to one above."""
    if (folder / "config.yaml").is_file():
        yield folder  # and nothing below it: the folders of a run hold configs of other programs
    elif folder.is_dir() and folder.resolve() not in seen:
        seen.add(folder.resolve())
        for child in sorted(folder.iterdir()):
            if child.is_dir() and not child.name.startswith("."):
                yield from _walk(child, seen)


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
        except UNREADABLE as error:
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
        # So have they, and this one is of runs that detect.
        detections=read("detection.npz", _read_detections, None) if arrays and (path / "detection.npz").is_file() else None,
        verified=_read_verified(path, read) if arrays else {},
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


def _read_detections(path: Path) -> Detections:
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        arrays = {name: file[name] for name in Detections.__dataclass_fields__}
    found, true = len(arrays["found_scene"]), len(arrays["true_scene"])
    _check_shapes(arrays, ("num_faces", "confidence"), ())
    _check_shapes(arrays, ("hits",), arrays["scores"].shape[:1])
    _check_shapes(arrays, ("found_scene", "found_names", "found_place"), (found,))
    _check_shapes(arrays, ("true_scene", "true_names"), (true,))
    _check_shapes(arrays, ("found_boxes",), (found, 4))
    _check_shapes(arrays, ("true_boxes",), (true, 4))
    if arrays["images"].ndim != 4 or arrays["images"].shape[1] not in (1, 3):
        raise ValueError(f"images must be [S, 1 or 3, H, W], got shape {arrays['images'].shape}")
    return Detections(**arrays | {"num_faces": int(arrays["num_faces"]), "confidence": float(arrays["confidence"])})


def _place(order: Sequence[str], name: object) -> int:
    """Where a name stands in `order`; others come last, as they are."""
    return order.index(name) if isinstance(name, str) and name in order else len(order)


def _read_verified(path: Path, read: Callable[[str, Callable[[Path], Any], Any], Any]) -> dict[str, Verified]:
    """By the name of the pairs. The curves stand in a file beside the rates, and the page says where it is missing."""
    verified = {}
    for file in sorted(path.glob("verification-*.json")):
        about = read(file.name, _read_object, {})
        results = about.pop("results", {})
        if not isinstance(results, dict):
            results = {}
        rates = {
            str(name): {key: _finite_or_none(value) for key, value in result.items() if key != "folds"}
            for name, result in sorted(results.items(), key=lambda named: _place(SCORES, named[0]))
            if isinstance(result, dict)
        }
        if rates:
            curves = read(f"{file.stem}.npz", functools.partial(_read_curves, names=tuple(rates)), {})
            verified[file.stem.removeprefix("verification-")] = Verified(about, rates, curves)
    return verified


def _read_curves(path: Path, names: Sequence[str]) -> dict[str, tuple[Array, Array]]:
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        curves = {name: (file[f"{name}_far"], file[f"{name}_frr"]) for name in names}
    for name, (far, frr) in curves.items():
        _check_shapes({f"{name}_frr": frr}, (f"{name}_frr",), far.shape[:1])
    return curves


def _check_shapes(arrays: Mapping[str, Any], names: tuple[str, ...], shape: tuple[int, ...]) -> None:
    for name in names:
        if arrays[name].shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {arrays[name].shape}")
