"""The files of a run directory that a report reads, as arrays and numbers; each reader raises an error on a torn or foreign file."""

import csv
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SCORES = ("joined", "trained", "untrained", "pixels")  # of a verification, in the order in which they are shown


@dataclass(frozen=True)
class Predictions:
    """Test decisions of one run.

    Attributes:
        scores: float [N, T], above zero is yes.
        targets: bool [N, T].
        known: bool [N, T], whether a target is known.
        tasks: T names.
        identity: int [N], which of the first `num_exclusive` tasks is the true one, -1 for none.
        num_exclusive: how many of the first tasks exclude one another; all, where the file does not say.
    """

    scores: Array
    targets: Array
    known: Array
    tasks: tuple[str, ...]
    identity: Array
    num_exclusive: int


@dataclass(frozen=True)
class Federation:
    """Who holds and who trains what.

    Attributes:
        positives: int [C, T], positive training labels.
        negatives: int [C, T], negative training labels.
        assignment: bool [C, T], whether the client trains the task.
        images: int [C], training images.
    """

    positives: Array
    negatives: Array
    assignment: Array
    images: Array


@dataclass(frozen=True)
class Conflict:
    """How the gradients of each pair of tasks point.

    Attributes:
        cosine: [T, T], mean cosine of the two gradients.
        conflicting: [T, T], share of the steps in which it is negative.
        steps: [T, T], number of steps in which both tasks had labels.
        tasks: T names, those of the subtasks and of what else was balanced with them.
    """

    cosine: Array
    conflicting: Array
    steps: Array
    tasks: Array


@dataclass(frozen=True)
class Detections:
    """Faces found in the test scenes.

    Attributes:
        scores: [D], of every face found.
        hits: bool [D], whether it matches a true face.
        num_faces: number of true faces.
        confidence: score from which a face counts as found.
        images: uint8 [S, c, H, W], some of the scenes.
        found_scene: int [F], which of `images` a found face is in.
        found_boxes: [F, 4], (left, top, right, bottom) in pixels.
        found_names: [F], "" for none.
        found_place: int [F], the true box that each matches, or -1.
        true_scene: int [M], which of `images` a true face is in.
        true_boxes: [M, 4].
        true_names: [M].
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
    """What `mtl verify` wrote for one set of pairs.

    Attributes:
        about: pairs, folds, round and where the pairs come from.
        rates: by score, the numbers of `verification-<pairs>.json`.
        curves: by score, the false accept and the false reject rates [V] of all thresholds; empty where their file is missing.
    """

    about: dict[str, Any]
    rates: dict[str, dict[str, float | None]]
    curves: dict[str, tuple[Array, Array]]


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got a {type(value).__name__}")
    return value


def finite_or_none(value: object) -> float | None:
    """The number as a float, None where it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def read_metrics(path: Path) -> tuple[dict[str, dict[int, float]], int]:
    """Read `metrics.csv`.

    Returns:
        The curves, value by round by metric, where the later line of two for the same round counts; and the number of lines left out.
    """
    curves: dict[str, dict[int, float]] = {}
    bad_lines = 0
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for line in lines:
        # A line without its end is torn even where it parses: 0.4 may have been 0.4123.
        whole, quoted = line.endswith("\n"), '"' in line
        fields = (next(csv.reader([line])) if quoted else line.rstrip("\r\n").split(",")) if whole else []
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


def read_predictions(path: Path) -> Predictions:
    """Read `predictions.npz`."""
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        tasks = tuple(str(task) for task in file["tasks"])
        num_exclusive = int(file["num_exclusive"]) if "num_exclusive" in file else len(tasks)
        predictions = Predictions(file["scores"], file["targets"], file["known"], tasks, file["identity"], num_exclusive)
    shape = (len(predictions.identity), len(tasks))
    _check_shapes(predictions.__dict__, ("scores", "targets", "known"), shape)
    return predictions


def read_federation(path: Path) -> Federation:
    """Read `federation.npz`."""
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        federation = Federation(file["positives"], file["negatives"], file["assignment"], file["images"])
    if federation.positives.ndim != 2:
        raise ValueError(f"positives must be [C, T], got shape {federation.positives.shape}")
    _check_shapes(federation.__dict__, ("negatives", "assignment"), federation.positives.shape)
    _check_shapes(federation.__dict__, ("images",), federation.positives.shape[:1])
    return federation


def read_conflict(path: Path) -> Conflict:
    """Read `conflict.npz`."""
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        conflict = Conflict(file["cosine"], file["conflicting"], file["steps"], file["tasks"])
    if conflict.steps.ndim != 2 or conflict.steps.shape[0] != conflict.steps.shape[1]:
        raise ValueError(f"steps must be [T, T], got shape {conflict.steps.shape}")
    _check_shapes(conflict.__dict__, ("cosine", "conflicting"), conflict.steps.shape)
    _check_shapes(conflict.__dict__, ("tasks",), conflict.steps.shape[:1])
    return conflict


def read_detections(path: Path) -> Detections:
    """Read `detection.npz`."""
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        arrays = {name: file[name] for name in Detections.__dataclass_fields__}
    num_found, num_true = len(arrays["found_scene"]), len(arrays["true_scene"])
    _check_shapes(arrays, ("num_faces", "confidence"), ())
    _check_shapes(arrays, ("hits",), arrays["scores"].shape[:1])
    _check_shapes(arrays, ("found_scene", "found_names", "found_place"), (num_found,))
    _check_shapes(arrays, ("true_scene", "true_names"), (num_true,))
    _check_shapes(arrays, ("found_boxes",), (num_found, 4))
    _check_shapes(arrays, ("true_boxes",), (num_true, 4))
    if arrays["images"].ndim != 4 or arrays["images"].shape[1] not in (1, 3):
        raise ValueError(f"images must be [S, 1 or 3, H, W], got shape {arrays['images'].shape}")
    return Detections(**arrays | {"num_faces": int(arrays["num_faces"]), "confidence": float(arrays["confidence"])})


def _place(order: Sequence[str], name: object) -> int:
    """Index of a name in `order`; other names come last, in the order they are in."""
    return order.index(name) if isinstance(name, str) and name in order else len(order)


def read_verified(path: Path, read: Callable[[str, Callable[[Path], Any], Any], Any]) -> dict[str, Verified]:
    """Read what `mtl verify` wrote, by the name of the pairs.

    Args:
        path: run directory.
        read: reads a file of it by name, reader and default, and notes where it cannot.
    """
    verified = {}
    for file in sorted(path.glob("verification-*.json")):
        about = read(file.name, read_object, {})
        results = about.pop("results", {})
        if not isinstance(results, dict):
            results = {}
        rates = {
            str(name): {key: finite_or_none(value) for key, value in result.items() if key != "folds"}
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
