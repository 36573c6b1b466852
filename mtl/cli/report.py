"""`mtl report`: a page from run directories."""

import argparse
import sys

from mtl.cli.terminal import console, path


def main(words: list[str]) -> int:
    """Run the command.

    Args:
        words: what follows `mtl report`.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="mtl report", description="One self-contained page and PNGs from run directories.")
    parser.add_argument("runs", nargs="+", type=path, metavar="RUN", help="a run directory, or a folder of them (a sweep)")
    parser.add_argument("--output", type=path, help="folder of the report; default: the run, or the folder of the runs")
    parser.add_argument("--by", metavar="METRIC", help="validation metric, such as val/rank1: order by it and mark the best")
    parser.add_argument("--csv", type=path, metavar="FILE", help="write the table as CSV, with mean and deviation as numbers")
    parser.add_argument("--latex", type=path, metavar="FILE", help="write the table in LaTeX, for the package booktabs")
    parser.add_argument(
        "--frame", type=path, metavar="FILE", help="write every number of every run as CSV: group, run, seed, metric, value"
    )
    options = parser.parse_args(words)
    from mtl.report.choice import choice_table
    from mtl.report.page import write_report
    from mtl.report.runs import failed_runs, find_runs
    from mtl.report.tables import comparison_table

    for run, reason in failed_runs(options.runs).items():
        print(f"failed: {run}: {reason}", file=sys.stderr)
    runs = find_runs(options.runs)
    page = write_report(runs, options.output, by=options.by)
    console().print(comparison_table(runs) if options.by is None else choice_table(runs, options.by))
    print(f"report: {page}")
    if options.csv or options.latex or options.frame:
        from mtl.report.exports import read_ordered, write_csv, write_frame, write_latex

        groups = read_ordered(runs, options.by)
        for file, write in ((options.csv, write_csv), (options.latex, write_latex), (options.frame, write_frame)):
            if file is not None:
                write(groups, file)
                print(f"written: {file}")
    return 0
