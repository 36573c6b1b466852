"""Choose among configurations by a validation metric: the mean over the runs of each, next to their test numbers."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from mtl.report.groups import Group, read_groups
from mtl.report.runs import Run, best_key
from mtl.report.tables import COLUMNS, DETECTION, Column, columns_of, comparison_rows, scaled

VALIDATION, BEST = "val/", best_key("val/")


@dataclass(frozen=True)
class Choice:
    """Configurations in the order of a validation metric.

    Attributes:
        by: the metric, such as `val/rank1`.
        ranked: the groups, the highest mean first, each of those runs alone that have the metric.
        left_out: a line for each run without it.
    """

    by: str
    ranked: tuple[Group, ...]
    left_out: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """What was chosen, among how many, and by what."""
        runs, count = sum(len(group.runs) for group in self.ranked), len(self.ranked)
        looked = f"Looked at {_count(count, 'configuration')} ({_count(runs, 'run')})"
        if count == 1:
            return f"{looked}: there is nothing to choose between."
        return (
            f"{looked}, ordered by their mean {self.by} in the tested round. The choice was made on validation images; test numbers "
            "played no part in it."
        )

    @property
    def header(self) -> list[str]:
        """Titles of the table's columns."""
        return ["Choice", "Run", "n", *(column.title for column in self._columns)]

    @property
    def rows(self) -> list[list[str]]:
        """A row for each ranked group; `best` stands in the first cell of the one with the highest mean, and of those equal to it."""
        means = [mean_of(group, self.by) for group in self.ranked]
        marks = ["best" if len(means) > 1 and mean == means[0] else "" for mean in means]
        rows = comparison_rows(self.ranked, self._columns)
        return [[mark, row.name, str(row.num_runs), *row.cells] for mark, row in zip(marks, rows, strict=True)]

    def order(self, groups: Sequence[Group]) -> list[Group]:
        """`groups` with all their runs: those that are ranked in that order, then the others."""
        place = {group.name: number for number, group in enumerate(self.ranked)}
        return sorted(groups, key=lambda group: place.get(group.name, len(place)))

    @property
    def _columns(self) -> tuple[Column, ...]:
        key, test = best_key(self.by), f"test/{self.by.removeprefix(VALIDATION)}"
        like = next((column for column in (*DETECTION, *COLUMNS) if column.metric == test), None)
        title = f"{self.by}{' %' if like is not None and like.title.endswith('%') else ''}"
        first = Column(title, key, scaled(1, 3) if like is None else like.write, True)
        return (first, *(dataclasses.replace(column, title=_test_title(column)) for column in columns_of(self.ranked)))


def choose(groups: Sequence[Group], by: str) -> Choice:
    """Order groups by the mean of the validation metric `by`, the highest first.

    Raises:
        ValueError: No run has this metric; the message lists the metrics that some have.
    """
    runs = [run for group in groups for run in group.runs]
    known = dict.fromkeys(
        VALIDATION + key.removeprefix(BEST)
        for run in runs
        for key, value in run.summary.items()
        if key.startswith(BEST) and value is not None
    )
    if not known:
        raise ValueError(
            f"--by {by} needs runs with validation images, and none of the {len(runs)} has validation metrics in summary.json"
        )
    if by not in known:
        raise ValueError(f"--by must be one of {', '.join(known)}, got {by}")
    with_metric = [dataclasses.replace(group, runs=tuple(run for run in group.runs if _has(run, by))) for group in groups]
    ranked = sorted((group for group in with_metric if group.runs), key=lambda group: mean_of(group, by), reverse=True)
    left_out = tuple(f"left out of the choice: {run.path} has no {by}" for run in runs if not _has(run, by))
    return Choice(by, tuple(ranked), left_out)


def choice_table(runs: Sequence[Path], by: str) -> Table:
    """Make the table of a choice among run directories for the terminal; its caption says how it was made and names what was left out.

    Raises:
        ValueError: as `choose`.
    """
    groups, unread = read_groups(runs, arrays=False)
    choice = choose(groups, by)
    # Text, since a path such as `norm=[mean]` must not be read as markup.
    table = Table(caption=Text("\n".join([choice.sentence, *choice.left_out, *unread])), caption_justify="left")
    for title in choice.header:
        table.add_column(title, **({"overflow": "fold", "min_width": 12} if title == "Run" else {"justify": "right"}))
    for row in choice.rows:
        table.add_row(*map(Text, row), style="bold" if row[0] else None)
    return table


def mean_of(group: Group, by: str) -> float:
    """The mean of a metric over the runs of a group, all of which have it."""
    spread = group.spread(best_key(by))
    assert spread is not None
    return spread.mean


def _has(run: Run, by: str) -> bool:
    return run.summary.get(best_key(by)) is not None


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s'[: number != 1]}"


def _test_title(column: Column) -> str:
    """A title that tells a test number from the validation number next to it."""
    return f"Test {column.title}" if column.metric.startswith("test/") else column.title
