"""A table of multi-task runs in Markdown, from the run directories of sweeps.

    python -m experiments.multitask_table RUNS... [--single-task RUNS...]

Runs that differ only in their seed make one row: mean and sample standard deviation over the seeds. With runs of mode=single_task,
delta-m is the mean relative loss of the tasks' AUROC against those in percent: below zero, training together helps.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mtl.report.groups import Group, group_runs
from mtl.report.multitask import group_delta_m
from mtl.report.runs import find_runs, read_run
from mtl.report.tables import Column, comparison_rows, scaled

COLUMNS = (
    Column("AUROC", "test/auroc", scaled(1, 4), True),
    Column("Worst-task AUROC", "test/worst_task_auroc", scaled(1, 3), True),
    Column("Balanced accuracy %", "test/balanced_accuracy", scaled(100, 2), True),
    Column("Worst-task balanced accuracy %", "test/worst_task_balanced_accuracy", scaled(100, 1), True),
    Column("Training s", "fit/seconds", scaled(1, 1), False),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.multitask_table", description="A table of multi-task runs, in Markdown."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS")
    parser.add_argument("--single-task", nargs="+", type=Path, metavar="RUNS", default=[], help="runs of mode=single_task")
    options = parser.parse_args(arguments)
    groups = group_runs([read_run(path, arrays=False) for path in find_runs(options.runs)])
    alone = group_runs([read_run(path, arrays=False) for path in find_runs(options.single_task)]) if options.single_task else []
    if len(alone) > 1:
        parser.error(f"--single-task must name runs that differ only in their seed, got {len(alone)} different ones")
    heads = ["Run", "n", *(column.title for column in COLUMNS), *(["delta-m %"] if alone else [])]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    rows = comparison_rows(groups, COLUMNS)
    order = sorted(range(len(groups)), key=lambda place: -_mean(groups[place]))
    lines += [
        [
            rows[place].name,
            str(rows[place].num_runs),
            *rows[place].cells,
            *(_delta_m(groups[place], one) for one in alone),
        ]
        for place in order
    ]
    print("".join("| " + " | ".join(line) + " |\n" for line in lines), end="")


def _delta_m(group: Group, alone: Group) -> str:
    """A dash where no run of the group came to its end."""
    return f"{group_delta_m(group, alone):+.2f}" if group.spread("test/auroc") else "–"


def _mean(group: Group) -> float:
    spread = group.spread("test/auroc")
    return float("-inf") if spread is None else spread.mean


if __name__ == "__main__":
    main()
