"""The comparison of experiments as rows, for a terminal (rich) and for a README (Markdown).

One row is one group of runs that differ only in their seed: mean ± sample standard deviation (ddof = 1) over n runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from mtl.report.groups import Group, Spread, read_groups
from mtl.report.target import ROUND

UNKNOWN = "–"
PREFIXES = ("", "k", "M", "G", "T", "P")


@dataclass(frozen=True)
class Column:
    """One metric of the comparison.

    Attributes:
        title: head of the column.
        metric: key of `summary.json`.
        write: makes the text of a cell.
        higher_is_better: whether a higher value is better.
    """

    title: str
    metric: str
    write: Callable[[Spread], str]
    higher_is_better: bool


@dataclass(frozen=True)
class Row:
    """One group: its name, how many runs it has, and one cell per column."""

    name: str
    num_runs: int
    cells: tuple[str, ...]


def scaled(factor: float, digits: int) -> Callable[[Spread], str]:
    """Return a writer of `mean ± deviation` times `factor`, with so many digits behind the point."""

    def write(spread: Spread) -> str:
        mean = f"{spread.mean * factor:.{digits}f}"
        return mean if spread.deviation is None else f"{mean} ± {spread.deviation * factor:.{digits}f}"

    return write


def decimal_multiple(value: float) -> tuple[float, str]:
    """The power of a thousand that suits a value, and its prefix, as (1000.0, "k")."""
    power = 0
    while power < len(PREFIXES) - 1 and abs(value) >= 1000 ** (power + 1):
        power += 1
    return 1000.0**power, PREFIXES[power]


def scaled_unit(unit: str) -> Callable[[Spread], str]:
    """Return a writer of `mean ± deviation` in the decimal multiple (1 kB = 1000 B) of the unit that suits the mean."""

    def write(spread: Spread) -> str:
        power = 0
        while power < len(PREFIXES) - 1 and abs(spread.mean) >= 999.95 * 1000**power:
            power += 1
        digits = 1 if power else 0
        return f"{scaled(1 / 1000**power, digits)(spread)} {PREFIXES[power]}{unit}".rstrip()

    return write


write_bytes = scaled_unit("B")

COLUMNS = (
    Column("Rank-1 %", "test/rank1", scaled(100, 1), True),
    Column("AUROC", "test/auroc", scaled(1, 3), True),
    Column("Worst-task AUROC", "test/worst_task_auroc", scaled(1, 3), True),
    Column("Balanced accuracy %", "test/balanced_accuracy", scaled(100, 1), True),
    Column("Worst-task balanced accuracy %", "test/worst_task_balanced_accuracy", scaled(100, 1), True),
    Column("Seconds", "fit/seconds", scaled(1, 1), False),
    Column("Up per client", "fit/bytes_up_per_client", write_bytes, False),
    Column("Down per client", "fit/bytes_down_per_client", write_bytes, False),
)
# Of runs that find faces only.
DETECTION = (
    Column("AP at overlap 0.5 %", "test/ap50", scaled(100, 1), True),
    Column("Faces found %", "test/found", scaled(100, 1), True),
    Column("Precision %", "test/precision", scaled(100, 1), True),
    Column("Faces named %", "test/named", scaled(100, 1), True),
)
# Of runs with a fleet only.
MODELLED = (
    Column("Modelled seconds", "cost/modelled_seconds", scaled(1, 1), False),
    Column("Modelled energy per client", "cost/modelled_joules_per_client", scaled_unit("J"), False),
)
# Of runs with `target_accuracy` only.
TARGET = (
    Column("Rounds to target", ROUND, scaled(1, 0), False),
    Column("Modelled seconds to target", "cost/modelled_seconds_to_target", scaled(1, 1), False),
    Column("Modelled energy to target", "cost/modelled_joules_to_target", scaled_unit("J"), False),
)


def columns_of(groups: Sequence[Group]) -> tuple[Column, ...]:
    """The columns of a comparison: those of detection, of modelled costs and of a target only where some run has them."""

    def known(columns: tuple[Column, ...]) -> tuple[Column, ...]:
        return tuple(column for column in columns if any(group.spread(column.metric) for group in groups))

    return known(DETECTION) + COLUMNS + known(MODELLED) + known(TARGET)


def comparison_rows(groups: Sequence[Group], columns: Sequence[Column] | None = None) -> list[Row]:
    """Make one row per group, with the cells of `columns`, or of `columns_of` where it is None."""
    columns = columns_of(groups) if columns is None else columns
    return [Row(group.name, len(group.runs), tuple(_write_cell(group, column) for column in columns)) for group in groups]


def _write_cell(group: Group, column: Column) -> str:
    spread = group.spread(column.metric)
    if spread is None:
        return UNKNOWN
    text = column.write(spread)
    return text if spread.count == len(group.runs) else f"{text} (n={spread.count})"


def comparison_table(runs: Sequence[Path]) -> Table:
    """Make the table of run directories for the terminal; its caption names those that cannot be read."""
    groups, left_out = read_groups(runs, arrays=False)
    rows = comparison_rows(groups)
    several = any(row.num_runs > 1 for row in rows)
    title = "mean ± sample standard deviation over n runs that differ only in their seed" if several else None
    # Text, since a path such as `norm=[mean]` must not be read as markup.
    table = Table(title=title, title_style="dim", caption=Text("\n".join(left_out)) if left_out else None)
    table.add_column("Run", overflow="fold", min_width=12)
    table.add_column("n", justify="right")
    for column in columns_of(groups):
        table.add_column(column.title, justify="right")
    for row in rows:
        table.add_row(Text(row.name), str(row.num_runs), *(Text(cell) for cell in row.cells))
    return table


def markdown_table(runs: Sequence[Path], columns: Sequence[Column] | None = None) -> str:
    """Make the table of run directories in Markdown.

    Args:
        runs: run directories.
        columns: None for those of `columns_of`.

    Raises:
        ValueError: a run cannot be read.
    """
    groups, left_out = read_groups(runs, arrays=False)
    if left_out:
        raise ValueError(", ".join(left_out))
    columns = columns_of(groups) if columns is None else columns
    lines = [["Run", "n", *(column.title for column in columns)], ["---", *["---:"] * (len(columns) + 1)]]
    lines += [[row.name, str(row.num_runs), *row.cells] for row in comparison_rows(groups, columns)]
    return "".join("| " + " | ".join(_escape_cell(cell) for cell in line) + " |\n" for line in lines)


def _escape_cell(cell: str) -> str:
    return " ".join(cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())
