"""The table of transfer in experiments/README.md, in Markdown, from the run directories of its sweeps.

    python -m experiments.transfer_table RUNS...

RUNS are run directories or folders of them. Runs that differ only in their seed make one row, named by what of the source is transferred:
mean and sample standard deviation over the seeds.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl.report.groups import group_runs
from mtl.report.runs import find_runs, read_run
from mtl.report.tables import Column, comparison_rows, scaled, write_bytes

COLUMNS = (
    Column("Rank-1 %", "test/rank1", scaled(100, 1), True),
    Column("AUROC", "test/auroc", scaled(1, 4), True),
    Column("Worst-task AUROC", "test/worst_task_auroc", scaled(1, 3), True),
    Column("Balanced accuracy %", "test/balanced_accuracy", scaled(100, 1), True),
    Column("Up per client", "fit/bytes_up_per_client", write_bytes, False),
)


def transfer_name(config: Mapping[str, Any]) -> str:
    """What the configuration of a run transfers."""
    if config["weights"] is None:
        return "none"
    transfer = config["transfer"]
    kinds = {
        "instances": transfer["source"] is not None,
        "relations": bool(transfer["distance"] or transfer["angle"]),
        "features": transfer["trained"] is not None,
        "parameters": transfer["decay"] != 1 or transfer["unfreeze_every"] is not None,
    }
    return ", ".join(name for name, is_meant in kinds.items() if is_meant) or "the start alone"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.transfer_table", description="A table of transfer, in Markdown.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS")
    groups = group_runs([read_run(path, arrays=False) for path in find_runs(parser.parse_args(arguments).runs)])
    lines = [["Transfer", "mode", "images a person", "n", *(column.title for column in COLUMNS)]]
    lines.append(["---", "---", *["---:"] * (len(COLUMNS) + 2)])
    for group, row in zip(groups, comparison_rows(groups, COLUMNS), strict=True):
        config = group.runs[0].config
        told = [transfer_name(config), config["mode"], str(config["split"]["train"]), str(row.num_runs)]
        lines.append([*told, *row.cells])
    print("".join("| " + " | ".join(line) + " |\n" for line in lines), end="")


if __name__ == "__main__":
    main()
