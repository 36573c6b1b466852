"""`mtl study --list`: the studies, with what each takes and how far it is."""

import json

from rich.table import Table
from rich.text import Text

from mtl.cli.terminal import console
from mtl.studies.files import study_files
from mtl.studies.study import Study


def show_studies(data: str) -> None:
    """Print a line for each study.

    Args:
        data: folder of the data.
    """
    table = Table("study", "runs done", "hours", "data", "what", title_justify="left")
    for name, file in study_files().items():
        try:
            study = Study(str(file), data=data)
        except ValueError as error:
            table.add_row(name, "", "", "", Text(str(error), style="red"))
            continue
        total = sum(len(row.seeds) for row in study.grid.rows) + len(study.definition.sources)
        done, hours = _progress(study, total)
        lacking = study.missing_data()
        needs = ", ".join(study.definition.data) + (" (missing)" if lacking else "")
        table.add_row(Text(name), f"{done} of {total}", hours, needs, Text(study.definition.title))
    console().print(table)
    print("hours: of training in all, as stated, or measured where runs are done; --quick takes minutes")


def _progress(study: Study, total: int) -> tuple[int, str]:
    """The number of runs that are done, and the hours of the whole study."""
    stated = f"{study.definition.hours:g}"
    if not study.folder.is_dir():
        return 0, stated
    places = [job.run_dir for job in study.jobs() if job.state == "done" and job.run_dir is not None]
    places += [source.run_dir for source in study.grid.sources() if source.is_done]
    summaries = [json.loads((place / "summary.json").read_text(encoding="utf-8")) for place in places]
    seconds = [float(summary["fit/seconds"]) for summary in summaries]
    if not seconds:
        return 0, stated
    measured = sum(seconds) / len(seconds) * total / 3600
    return len(seconds), f"{measured:.2g} measured"
