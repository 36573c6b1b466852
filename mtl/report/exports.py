"""The comparison of runs as files: LaTeX, CSV, and every number of every run."""

from collections.abc import Sequence
from pathlib import Path

from mtl.report.choice import choose
from mtl.report.groups import Group, read_groups
from mtl.report.table_files import Entry, TextTable, csv_text, latex, save_text
from mtl.report.tables import columns_of, comparison_rows

TITLE = "Runs that differ only in their seed: mean ± sample standard deviation over n"


def read_ordered(runs: Sequence[Path], by: str | None) -> list[Group]:
    """Read run directories in groups, ordered by a validation metric where `by` names one.

    Raises:
        ValueError: no run can be read, or none has the metric.
    """
    groups, _ = read_groups(runs, arrays=False)
    return groups if by is None else choose(groups, by).order(groups)


def write_latex(groups: Sequence[Group], path: Path) -> None:
    """Write the comparison as a LaTeX table with the rules of booktabs."""
    columns = columns_of(groups)
    rows = tuple((Entry(row.name), Entry(str(row.num_runs)), *map(Entry, row.cells)) for row in comparison_rows(groups, columns))
    table = TextTable(TITLE, ("run", "n", *(column.title for column in columns)), rows)
    save_text(path, latex(table, f"tab:{path.stem}"))


def write_csv(groups: Sequence[Group], path: Path) -> None:
    """Write the comparison as CSV: one line of heads, then a group a line, with mean and deviation of each metric as numbers."""
    metrics = [column.metric for column in columns_of(groups)]
    header = ["run", "n", *(f"{metric}{part}" for metric in metrics for part in ("", " sd"))]
    rows = []
    for group in groups:
        spreads = [group.spread(metric) for metric in metrics]
        pairs = [(None, None) if spread is None else (spread.mean, spread.deviation) for spread in spreads]
        rows.append([group.name, len(group.runs), *(value for pair in pairs for value in pair)])
    save_text(path, csv_text(header, rows))


def write_frame(groups: Sequence[Group], path: Path) -> None:
    """Write every number of every `summary.json` as CSV in long form: group, run, seed, metric, value."""
    rows = [
        [group.name, str(run.path), run.config.get("seed"), metric, value]
        for group in groups
        for run in group.runs
        for metric, value in run.summary.items()
    ]
    save_text(path, csv_text(("group", "run", "seed", "metric", "value"), rows))
