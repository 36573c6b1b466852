"""`mtl compress`: a smaller model, step by step."""

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mtl.cli.terminal import console, fail, message_of, path

if TYPE_CHECKING:
    from rich.table import Table

    from mtl.trained.compress import Row


def main(words: list[str]) -> int:
    """Run the command.

    Args:
        words: what follows `mtl compress`.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="mtl compress", description="Distil, prune and quantise a trained run, and tabulate each step."
    )
    parser.add_argument("run", type=path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--recipe", nargs="+", required=True, metavar="STEP", help="of distil, prune, sparsify, int8, in this order"
    )
    parser.add_argument(
        "--student",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="options in which the distilled student differs from the run",
    )
    parser.add_argument("--ratio", type=float, default=0.5, help="of the channels that are cut; default 0.5")
    parser.add_argument(
        "--sparsity", type=float, default=0.8, help="share of the weights that sparsify sets to zero; default 0.8"
    )
    parser.add_argument("--rounds", type=int, help="of each training; default: as many as the run had")
    parser.add_argument("--threads", type=int, default=1, help="for the latency; default 1")
    parser.add_argument(
        "--data-root", type=os.path.expanduser, metavar="DIR", help="where the data of the run lie now, if elsewhere"
    )
    parser.add_argument("--out", type=path, metavar="DIR", help="default: the run directory with -compressed behind its name")
    options = parser.parse_args(words)
    from mtl.base.types import Diverged, Interrupted
    from mtl.trained.compress import CompressOptions, compress

    chosen = CompressOptions(
        recipe=options.recipe,
        student=options.student,
        ratio=options.ratio,
        sparsity=options.sparsity,
        rounds=options.rounds,
        threads=options.threads,
    )
    out = options.out or options.run.resolve().with_name(f"{options.run.resolve().name}-compressed")
    try:
        rows = compress(options.run, chosen, out=out, data_root=options.data_root)
    except Diverged as error:
        return fail(message_of(error), 1)
    except Interrupted as stop:
        return fail(message_of(stop), 130)
    console().print(_table(rows))
    print(f"files and runs: {out}")
    return 0


def _table(rows: "Sequence[Row]") -> "Table":
    from rich.table import Table

    rates = ("rank-1 %", "AUROC %", "worst task", "worst clients", "balanced accuracy %")
    table = Table("step", *rates, *("parameters", "zeros %", "MFLOPs", "bytes", "p50 ms", "p90 ms"))
    for row in rows:
        values = (row.rank1, row.auroc, row.worst_task_auroc, row.worst_clients_auroc, row.balanced_accuracy)
        accuracies = ["" if value is None else f"{100 * value:.1f}" for value in values]
        sizes = [f"{row.parameters:,}", f"{100 * row.zeros:.0f}", f"{row.flops / 1e6:.2f}", f"{row.num_bytes:,}"]
        table.add_row(row.step, *accuracies, *sizes, f"{row.p50:.3f}", f"{row.p90:.3f}")
    for column in table.columns[1:]:
        column.justify = "right"
    return table
