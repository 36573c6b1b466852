"""The ORL table of experiments/README.md, in Markdown, from the run directories of its sweeps.

    python -m experiments.orl_table RUNS...

RUNS are run directories or folders of them. Runs that differ only in their seed make one row: mean and sample standard deviation over
the seeds, and the lowest rank-1.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mtl.report.runs import find_runs
from mtl.report.tables import Column, markdown_table, scaled

COLUMNS = (
    Column("Rank-1 %", "test/rank1", scaled(100, 1), True),
    Column("Lowest", "test/rank1", lambda spread: f"{100 * spread.minimum:.1f}", True),
    Column("AUROC", "test/auroc", scaled(1, 4), True),
    Column("Worst-task AUROC", "test/worst_task_auroc", scaled(1, 3), True),
    Column("Balanced accuracy %", "test/balanced_accuracy", scaled(100, 1), True),
    Column("Training s", "fit/seconds", scaled(1, 0), False),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.orl_table", description="The ORL table, in Markdown.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS")
    print(markdown_table(find_runs(parser.parse_args(arguments).runs), COLUMNS), end="")


if __name__ == "__main__":
    main()
