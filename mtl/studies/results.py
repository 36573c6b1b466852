"""The numbers of a study, read from its run directories."""

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtl.report.groups import Spread, measure_spread
from mtl.report.multitask import delta_m
from mtl.report.runs import Run, read_run
from mtl.studies.definition import StudyColumn, StudyRow
from mtl.studies.jobs import DONE, Job
from mtl.studies.stated import Stated

DELTA_M = "delta_m/"


@dataclass(frozen=True)
class Cell:
    """One cell: what the runs of a row have of a column.

    Attributes:
        values: by seed, in the unit of the metric; runs that are missing, or that do not define it, have none.
        expected: number of seeds of the row, 0 where the column means nothing for its runs.
        stated: the number that the study states, None where it states none.
        error: of a single run, where the column names one.
    """

    values: Mapping[int, float]
    expected: int
    stated: Stated | None
    error: float | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every run of the row has a value."""
        return len(self.values) == self.expected

    @property
    def spread(self) -> Spread | None:
        """Over the seeds; the error of a single run stands for the deviation where the column names one."""
        spread = measure_spread(self.values.values())
        if spread is None or spread.deviation is not None or self.error is None:
            return spread
        return Spread(spread.mean, self.error, spread.minimum, spread.maximum, spread.count)


@dataclass(frozen=True)
class RowResult:
    """A row with its runs.

    Attributes:
        row: as the file states it.
        jobs: one for each seed.
        cells: by title of a column.
    """

    row: StudyRow
    jobs: tuple[Job, ...]
    cells: Mapping[str, Cell]

    @property
    def missing(self) -> list[int]:
        """The seeds whose run is not done."""
        return [job.seed for job in self.jobs if job.state != DONE]


def read_results(rows: Sequence[StudyRow], columns: Sequence[StudyColumn], jobs: Sequence[Job]) -> list[RowResult]:
    """Read the numbers of all rows.

    Raises:
        ValueError: a run that is done lacks a metric that a column names.
    """
    runs = _Runs()
    by_row = {row.name: tuple(job for job in jobs if job.row == row.name) for row in rows}
    results = []
    for row in rows:
        cells = {}
        for column in columns:
            base = _task_means(runs.of(by_row[column.against]), column) if column.against is not None else {}
            cells[column.title] = _cell(row, column, runs.of(by_row[row.name]), base)
        results.append(RowResult(row, by_row[row.name], cells))
    return results


class _Runs:
    """The runs of jobs that are done, each read once."""

    def __init__(self) -> None:
        self._read = functools.cache(functools.partial(read_run, arrays=False))

    def of(self, jobs: Iterable[Job]) -> dict[int, Run]:
        """By seed."""
        return {job.seed: self._read(job.run_dir) for job in jobs if job.state == DONE and job.run_dir is not None}


def _cell(row: StudyRow, column: StudyColumn, runs: Mapping[int, Run], base: Mapping[str, float | None]) -> Cell:
    if row.only is not None and column.title not in row.only:
        return Cell({}, 0, None)
    values = {seed: _value(column.metric, row, column, run, base) for seed, run in runs.items()}
    known = {seed: value for seed, value in values.items() if value is not None}
    error = None
    if column.error is not None and len(known) == 1:
        error = _value(column.error, row, column, next(iter(runs.values())), base)
    return Cell(known, len(row.seeds), row.stated.get(column.title), error)


def _value(metric: str, row: StudyRow, column: StudyColumn, run: Run, base: Mapping[str, float | None]) -> float | None:
    for name, value in row.values.items():
        metric = metric.replace(f"{{{name}}}", value)
    if metric.startswith(DELTA_M):
        return delta_m(run.task_metric(metric.removeprefix(DELTA_M)), base) if base else None
    if ".json/" in metric:
        return _in_file(run.path, metric)
    if column.round is not None:
        return run.curves.get(metric, {}).get(column.round)
    return run.summary.get(metric)


def _in_file(run_dir: Path, metric: str) -> float | None:
    """The number that `FILE.json/key/key` names; None where the file has no such key."""
    name, _, place = metric.partition(".json/")
    file = run_dir / f"{name}.json"
    if not file.is_file():
        return None
    content: Any = json.loads(file.read_text(encoding="utf-8"))
    for key in place.split("/"):
        try:
            content = content[int(key)] if isinstance(content, list) else content[key]
        except (LookupError, ValueError, TypeError):
            return None
    return None if content is None else float(content)


def _task_means(runs: Mapping[int, Run], column: StudyColumn) -> dict[str, float | None]:
    """The mean of each task over runs of single tasks."""
    tables = [run.task_metric(column.metric.removeprefix(DELTA_M)) for run in runs.values()]
    tasks = dict.fromkeys(task for table in tables for task in table)
    spreads = {task: measure_spread(table.get(task) for table in tables) for task in tasks}
    return {task: None if spread is None else spread.mean for task, spread in spreads.items()}
