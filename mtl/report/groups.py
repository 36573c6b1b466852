"""Group the runs that differ only in their seed, and measure the spread over those seeds.

Two runs are repetitions of one experiment when their configs agree in every key but the seed and those that never make another run
(`mtl.base.same_run`): name, place, tracking, machine and engine. Paths of *data* are compared: runs on different data are different
experiments.
The deviation is that of a sample, s = sqrt(sum_i (x_i - mean)^2 / (n - 1)), and unknown for n = 1.
"""

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mtl.base.same_run import identity_with_files
from mtl.report.runs import Run, read_run

_OWN_LEAVES = frozenset({"seed", "output_dir", "run_dir", "log_dir", "save_dir", "checkpoint_dir", "default_root_dir"})
_OWN_SECTIONS = frozenset({"hydra", "wandb", "logger"})


@dataclass(frozen=True)
class Spread:
    """How one number varies over the runs of a group.

    Attributes:
        mean: of the values.
        deviation: of a sample, None for one value.
        minimum, maximum: the extremes.
        count: number of values.
    """

    mean: float
    deviation: float | None
    minimum: float
    maximum: float
    count: int


def measure_spread(values: Iterable[float | None]) -> Spread | None:
    """Measure the spread of the values that are defined; None where none is."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return Spread(statistics.fmean(known), deviation, min(known), max(known), len(known))


@dataclass(frozen=True)
class Group:
    """Runs of one experiment.

    Attributes:
        name: the fewest config keys that tell it from the other groups.
        runs: at least one.
        settings: values, as text, of all config keys in which the groups differ.
    """

    name: str
    runs: tuple[Run, ...]
    settings: dict[str, str]

    def spread(self, metric: str) -> Spread | None:
        """Spread of one key of `summary.json` over the runs."""
        return measure_spread(run.summary.get(metric) for run in self.runs)

    def task_spreads(self, metric: str) -> dict[str, Spread | None]:
        """Spread of `test/<task>/<metric>` over the runs, worst task first; None where no run defines it."""
        tables = [run.task_metric(metric) for run in self.runs]
        tasks = dict.fromkeys(task for table in tables for task in table)
        spreads = {task: measure_spread(table.get(task) for table in tables) for task in tasks}
        return dict(sorted(spreads.items(), key=lambda item: float("inf") if item[1] is None else item[1].mean))

    def curve(self, metric: str) -> dict[int, Spread]:
        """Spread by round, at the rounds that every run with this metric has: a run that stops early bends no mean."""
        curves = [run.curves[metric] for run in self.runs if metric in run.curves]
        if not curves:
            return {}
        rounds = sorted(set.intersection(*(set(curve) for curve in curves)))
        spreads = {number: measure_spread(curve[number] for curve in curves) for number in rounds}
        return {number: spread for number, spread in spreads.items() if spread is not None}

    @cached_property
    def metrics(self) -> list[str]:
        """Every metric with a curve, in the order of the files."""
        return list(dict.fromkeys(metric for run in self.runs for metric in run.curves))

    @property
    def notes(self) -> list[str]:
        """What is missing from the runs, and seeds that were counted more than once."""
        notes = [f"{run.path}: {note}" for run in self.runs for note in run.notes]
        seeds = Counter(str(run.config["seed"]) for run in self.runs if "seed" in run.config)
        notes += [
            f"{self.name}: seed {seed} occurs {n} times, so the deviation is too small" for seed, n in seeds.items() if n > 1
        ]
        return notes


def mixed_code(name: str, runs: Sequence[Run]) -> list[str]:
    """Say where runs are not of the same commit, of the same versions of Python and libraries, or of committed files."""

    def differing(values: Iterable[Any]) -> str:
        """The known values, where there are several."""
        known = list(dict.fromkeys(str(value) for value in values if value))
        return ", ".join(known) if len(known) > 1 else ""

    notes = []
    if commits := differing(str(run.environment.get("commit") or "")[:10] for run in runs):
        notes.append(f"of different commits ({commits})")
    dirty = sum(bool(run.environment.get("dirty")) for run in runs)
    if dirty and len(runs) > 1:
        notes.append(f"of files that were not committed, {dirty} of {len(runs)} of them")
    versions = []
    for run in runs:
        libraries, python = run.environment.get("versions"), {"Python": run.environment.get("python")}
        versions.append({**libraries, **python} if isinstance(libraries, Mapping) else python)
    for library in dict.fromkeys(library for libraries in versions for library in libraries):
        if values := differing(libraries.get(library) for libraries in versions):
            notes.append(f"of different versions of {library} ({values})")
    return [f"{name}: the runs are {note}; what tells them apart may come from there" for note in notes]


def read_groups(paths: Sequence[Path], *, arrays: bool = True) -> tuple[list[Group], list[str]]:
    """Read run directories and group them.

    Args:
        paths: run directories; one that several links lead to counts once.
        arrays: whether to read the npz files.

    Returns:
        The groups, and a note on each directory that could not be read.

    Raises:
        ValueError: there is no path, or none can be read.
    """
    if not paths:
        raise ValueError("runs must name at least one run directory, got none")
    runs, errors = [], []
    for path in dict.fromkeys(Path(path).resolve() for path in paths):
        try:
            runs.append(read_run(path, arrays=arrays))
        except ValueError as error:
            errors.append(error)
    if not runs:
        raise errors[0]
    return group_runs(runs), [f"left out: {error}" for error in errors]


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group runs, in the order of their first runs."""
    settings: dict[str, dict[str, str]] = {}
    members: dict[str, list[Run]] = {}
    for run in runs:
        experiment = flatten(identity_with_files(run.config))
        flat = {key: json.dumps(value, default=str) for key, value in experiment.items() if not _is_own(key)}
        signature = json.dumps(flat, sort_keys=True)
        settings[signature] = flat
        members.setdefault(signature, []).append(run)
    flats = list(settings.values())
    keys = dict.fromkeys(key for flat in flats for key in flat)
    differing = sorted((key for key in keys if len({flat.get(key) for flat in flats}) > 1), key=_naming_order)
    naming = _fewest_keys(flats, differing)
    groups = []
    for signature, flat in settings.items():
        shown = {key: _show(key, flat.get(key)) for key in differing}
        name = ", ".join(shown[key] if key == "mode" else f"{key.removesuffix('._target_')}={shown[key]}" for key in naming)
        groups.append(Group(name or members[signature][0].label, tuple(members[signature]), shown))
    return groups


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config as dotted keys; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _is_own(key: str) -> bool:
    parts = key.split(".")
    return parts[-1] in _OWN_LEAVES or parts[0] in _OWN_SECTIONS


def _naming_order(key: str) -> tuple[bool, int, str]:
    return key != "mode", key.count("."), key


def _fewest_keys(flats: list[dict[str, str]], differing: list[str]) -> list[str]:
    """Greedy: the key that splits the groups furthest, until each group stands alone."""
    chosen: list[str] = []

    def num_told_apart(keys: list[str]) -> int:
        return len({tuple(flat.get(key) for key in keys) for flat in flats})

    while num_told_apart(chosen) < len(flats):
        chosen.append(max(differing, key=lambda key: num_told_apart([*chosen, key])))
    return chosen


def _show(key: str, value: str | None) -> str:
    """A JSON value as a person writes it; a class by its own name."""
    if value is None:
        return "–"
    loaded = json.loads(value)
    if not isinstance(loaded, str):
        return value
    return loaded.rsplit(".", 1)[-1] if key.endswith("_target_") else loaded
