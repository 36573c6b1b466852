"""The table of trunks in experiments/README.md, in Markdown, from the run directories of its sweep.

    python -m experiments.light_trunks_table RUNS...

RUNS are run directories or folders of them. Runs that differ only in their seed make one row: mean and sample standard deviation over
the seeds. FLOPs (2 MAC) and parameters are counted, bytes too; seconds and joules are modelled from device profiles.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mtl.report.runs import find_runs
from mtl.report.tables import Column, markdown_table, scaled, scaled_unit, write_bytes

COLUMNS = (
    Column("Parameters", "cost/parameters", scaled_unit(""), False),
    Column("FLOPs an image, forward", "cost/flops_forward", scaled_unit(""), False),
    Column("FLOPs an image, training", "cost/flops_training", scaled_unit(""), False),
    Column("Modelled memory of a step", "cost/modelled_memory_bytes", write_bytes, False),
    Column("Rank-1 %", "test/rank1", scaled(100, 1), True),
    Column("Worst-task AUROC", "test/worst_task_auroc", scaled(1, 3), True),
    Column("Up per client", "fit/bytes_up_per_client", write_bytes, False),
    Column("Modelled seconds", "cost/modelled_seconds", scaled(1, 0), False),
    Column("Modelled energy per client", "cost/modelled_joules_per_client", scaled_unit("J"), False),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.light_trunks_table", description="Trunks side by side, in Markdown."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS")
    print(markdown_table(find_runs(parser.parse_args(arguments).runs), COLUMNS), end="")


if __name__ == "__main__":
    main()
