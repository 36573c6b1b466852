"""`mtl study`: a published table, from the runs that are missing to its files."""

import argparse
import os
import shlex
import sys
from typing import TYPE_CHECKING

from mtl.cli.terminal import console, fail, path

if TYPE_CHECKING:
    from mtl.studies.study import Study


def main(words: list[str]) -> int:
    """Run the command.

    Args:
        words: what follows `mtl study`.

    Returns:
        The exit code: 0 the table is complete, 1 runs are missing or failed, 2 wrong input or no data, 130 stopped.
    """
    parser = argparse.ArgumentParser(
        prog="mtl study",
        description="Train the runs of a published table that are missing, and make the table. Further words, NAME=VALUE as "
        "after mtl train, say how runs are trained, such as trainer.threads=1 hydra/launcher=joblib hydra.launcher.n_jobs=2.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the study, or a YAML file")
    parser.add_argument("words", nargs="*", metavar="WORD", help="how runs are trained")
    parser.add_argument("--list", action="store_true", help="the studies, with what each takes and how far it is")
    parser.add_argument("--quick", action="store_true", help="at reduced size, in minutes, in a folder of its own")
    parser.add_argument("--dry-run", action="store_true", help="show the runs, and train nothing")
    parser.add_argument("--table", action="store_true", help="make the table of the runs that are there, and train nothing")
    parser.add_argument("--data", default="data", metavar="DIR", type=os.path.expanduser, help="folder of the data; default data")
    parser.add_argument("--more-seeds", type=int, default=0, metavar="N", help="runs that each row gets in addition")
    parser.add_argument("--runs", type=path, metavar="DIR", help="of the run directories; default runs/studies/NAME")
    parser.add_argument(
        "--out", type=path, metavar="DIR", help="of the table's files; default: the folder table in that of the runs"
    )
    options = parser.parse_intermixed_args(words)
    if options.list:
        from mtl.cli.study_list import show_studies

        show_studies(options.data)
        return 0
    if options.name is None:
        return fail("mtl study needs the name of a study; mtl study --list shows them")
    from mtl.studies.study import Study

    study = Study(
        options.name,
        folder=options.runs,
        data=options.data,
        quick=options.quick,
        more_seeds=options.more_seeds,
        words=options.words,
    )
    if options.dry_run:
        _show_jobs(study)
        return 0
    if not options.table:
        lacking = study.missing_data()
        if lacking:
            return fail("; ".join(lacking) + "; --data says where the data are")
        code = train_missing(study)
        if code == 130:
            print(f"this goes on with the study:\n  {shlex.join(['mtl', 'study', *words])}", file=sys.stderr)
            return code
    from mtl.report.table_files import rich_table

    for table in study.tables():
        console().print(rich_table(table))
    files = study.write(options.out)
    print(f"written: {files[0].parent}/{{{','.join(file.name for file in files)}}}")
    return _end(study)


def train_missing(study: "Study") -> int:
    """Train the sources and the runs that are missing, then run the command that follows on each.

    Returns:
        0, or the exit code of the last part that failed; 130 as soon as one is stopped.
    """
    from mtl.cli.launch import launch
    from mtl.cli.main import run_command

    failed = 0
    for source in study.grid.sources():
        if not source.is_done:
            code = launch([*source.words, *study.grid.run_words, f"output_dir={source.run_dir}", "resume=true"])
            if code:
                return code
    for words in study.grid.sweeps(study.jobs()):
        code = launch(["-m", *words])
        if code == 130:
            return code
        failed = code or failed
    then = study.definition.then
    for job in study.jobs():
        if then is not None and job.state == "trained" and job.run_dir is not None:
            code = run_command(list(study.grid.fill(then.words, job.run_dir)))
            if code == 130:
                return code
            failed = code or failed
    return failed


def _end(study: "Study") -> int:
    missing = [job for job in study.jobs() if job.state != "done"]
    if missing:
        names = ", ".join(dict.fromkeys(job.row for job in missing))
        print(f"mtl: {len(missing)} of {len(study.jobs())} runs are missing, of {names}", file=sys.stderr)
    return 1 if missing else 0


def _show_jobs(study: "Study") -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("row", "seed", "state", "run directory", title=f"study in {study.folder}", title_justify="left")
    for source in study.grid.sources():
        table.add_row(f"source {source.name}", "", "done" if source.is_done else "new", Text(str(source.run_dir)))
    jobs = study.jobs()
    for job in jobs:
        table.add_row(Text(job.row), str(job.seed), job.state, Text(job.run_dir.name if job.run_dir else ""))
    console().print(table)
    states = [job.state for job in jobs]
    print(f"{len(jobs)} runs: " + ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))
    for line in study.missing_data():
        print(f"missing data: {line}")
    for words in study.grid.sweeps(jobs):
        print(shlex.join(["mtl", "train", "-m", *words]))
